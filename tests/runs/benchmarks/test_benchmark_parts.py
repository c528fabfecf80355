"""The benchmark of the parts fits the script and times every part."""

import pytest

from runs.benchmarks import parts


def test_every_part_of_dqn_is_timed():
    watch, args = parts.measure(parts.Args(updates=6, probes=2))
    counts = {name: len(seconds) for name, seconds in watch.seconds.items()}
    assert counts == {"update": 6, "projection": 6, "meter, idle": 6, "meter, measuring": 2, "probe": 2}
    assert all(second > 0 for seconds in watch.seconds.values() for second in seconds)
    assert args.nap.enabled


@pytest.mark.parametrize("bad", [{"updates": 0}, {"probes": 0}])
def test_parts_args_refuse_bad_numbers(bad):
    with pytest.raises(ValueError, match=f"--{next(iter(bad))} must be at least 1, got 0"):
        parts.Args(**bad)
