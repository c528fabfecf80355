"""The grokking benchmark still fits the script, and times both sides."""

import pytest

from runs import benchmark_grokking


def test_prints_each_pair_and_the_ratio(capsys):
    benchmark_grokking.main(benchmark_grokking.Args(repeats=2, updates=1, batch_size=32))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["pair 1", "pair 2", "ratio"]
    assert "n = 2 pairs" in lines[-1]


def test_the_two_sides_start_from_the_same_network_and_both_learn():
    plain, ours = benchmark_grokking.sides(benchmark_grokking.Args(batch_size=64))
    networks = [update.__closure__ for update in (plain, ours)]
    found = [
        next(cell.cell_contents for cell in cells if type(cell.cell_contents).__name__ == "Transformer")
        for cells in networks
    ]
    first = [network.decoder.weight.detach().clone() for network in found]
    assert found[0] is not found[1]
    assert (first[0] == first[1]).all()
    for update, network, weight in zip((plain, ours), found, first, strict=True):
        update()
        assert (network.decoder.weight != weight).any()


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"updates": 0}, {"batch_size": -1}, {"threads": 0}])
def test_refuses_what_cannot_be_measured(wrong):
    with pytest.raises(ValueError, match="--" + next(iter(wrong)).replace("_", "-")):
        benchmark_grokking.Args(**wrong)
