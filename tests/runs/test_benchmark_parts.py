"""The benchmark of the parts still fits the script, and times every part it names."""

from runs import benchmark_parts


def test_every_part_is_timed():
    watch, args = benchmark_parts.measure(benchmark_parts.Args(updates=6, probes=2))
    counts = {name: len(seconds) for name, seconds in watch.seconds.items()}
    assert counts == {"update": 6, "projection": 6, "meter, idle": 6, "meter, measuring": 2, "probe": 2}
    assert all(second > 0 for seconds in watch.seconds.values() for second in seconds)
    assert args.nap.enabled
