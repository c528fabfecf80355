"""The warm-start benchmark fits the script and times both sides."""

import pytest
import torch

from runs.benchmarks import timing, warm_start


def test_warm_start_prints_each_pair_and_the_ratio(capsys):
    warm_start.main(warm_start.Args(repeats=2, updates=1, batch_size=8))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["pair 1", "pair 2", "ratio"]


def test_both_warm_start_sides_learn():
    plain, ours = warm_start.sides(warm_start.Args(batch_size=16))
    both = [
        next(c.cell_contents for c in update.__closure__ if type(c.cell_contents).__name__ == "CNN")
        for update in (plain, ours)
    ]
    before = [network.conv1.weight.detach().clone() for network in both]
    assert torch.equal(*before) and both[0] is not both[1]
    for update, network, weight in zip((plain, ours), both, before, strict=True):
        update()
        assert not torch.equal(network.conv1.weight, weight)


def test_rates_and_ratios_come_from_the_clock(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def takes(seconds):
        return lambda: now.__setitem__(0, now[0] + seconds)

    assert timing.rate(takes(0.25), 8) == 4.0
    line = timing.compare(takes(0.5), takes(0.125), repeats=3, updates=2, unit=10)
    assert line.startswith("ratio: median 4.00 [smallest 4.00, largest 4.00], n = 3 pairs of 2 updates")
    assert capsys.readouterr().out.splitlines()[0] == "pair 1: plain 20.0, script 80.0 per second"


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"updates": 0}, {"batch_size": 0}, {"threads": 0}])
def test_warm_start_args_refuse_bad_numbers(wrong):
    with pytest.raises(ValueError, match="--" + next(iter(wrong)).replace("_", "-")):
        warm_start.Args(**wrong)
