"""The warm-start benchmark still fits the script, and times both sides."""

import pytest
import torch

from runs import benchmark_warm_start, pairs


def test_prints_each_pair_and_the_ratio(capsys):
    benchmark_warm_start.main(benchmark_warm_start.Args(repeats=2, updates=1, batch_size=8))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["pair 1", "pair 2", "ratio"]


def test_both_sides_learn():
    plain, ours = benchmark_warm_start.sides(benchmark_warm_start.Args(batch_size=16))
    found = [
        next(c.cell_contents for c in update.__closure__ if type(c.cell_contents).__name__ == "CNN")
        for update in (plain, ours)
    ]
    before = [network.conv1.weight.detach().clone() for network in found]
    assert torch.equal(*before) and found[0] is not found[1]
    for update, network, weight in zip((plain, ours), found, before, strict=True):
        update()
        assert not torch.equal(network.conv1.weight, weight)


def test_rates_and_ratios_come_from_the_clock(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(pairs.time, "perf_counter", lambda: now[0])

    def takes(seconds):
        return lambda: now.__setitem__(0, now[0] + seconds)

    assert pairs.rate(takes(0.25), 8) == 4.0
    line = pairs.compare(takes(0.5), takes(0.125), repeats=3, updates=2, unit=10)
    assert line.startswith("ratio: median 4.00 [least 4.00, greatest 4.00], n = 3 pairs of 2 updates")
    assert capsys.readouterr().out.splitlines()[0] == "pair 1: plain 20.0, script 80.0 per second"


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"updates": 0}, {"batch_size": 0}, {"threads": 0}])
def test_refuses_what_cannot_be_measured(wrong):
    with pytest.raises(ValueError, match="--" + next(iter(wrong)).replace("_", "-")):
        benchmark_warm_start.Args(**wrong)
