"""The benchmark of the parts fits the script and times every part."""

from runs.benchmarks import parts


def test_every_part_of_dqn_is_timed():
    watch, args = parts.measure(parts.Args(updates=6, probes=2))
    counts = {name: len(seconds) for name, seconds in watch.seconds.items()}
    assert counts == {"update": 6, "projection": 6, "meter, idle": 6, "meter, measuring": 2, "probe": 2}
    assert all(second > 0 for seconds in watch.seconds.values() for second in seconds)
    assert args.nap.enabled
