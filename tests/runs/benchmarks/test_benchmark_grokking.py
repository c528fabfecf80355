"""The grokking benchmark fits the script and times both sides."""

import pytest

from runs.benchmarks import grokking


def test_grokking_prints_each_pair_and_the_ratio(capsys):
    grokking.main(grokking.Args(repeats=2, updates=1, batch_size=32))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["pair 1", "pair 2", "ratio"]
    assert "n = 2 pairs" in lines[-1]


def test_both_grokking_sides_start_from_the_same_network_and_learn():
    plain, ours = grokking.sides(grokking.Args(batch_size=64))
    networks = [update.__closure__ for update in (plain, ours)]
    both = [
        next(cell.cell_contents for cell in cells if type(cell.cell_contents).__name__ == "Transformer")
        for cells in networks
    ]
    first = [network.decoder.weight.detach().clone() for network in both]
    assert both[0] is not both[1]
    assert (first[0] == first[1]).all()
    for update, network, weight in zip((plain, ours), both, first, strict=True):
        update()
        assert (network.decoder.weight != weight).any()


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"updates": 0}, {"batch_size": -1}, {"threads": 0}])
def test_grokking_args_refuse_bad_numbers(wrong):
    with pytest.raises(ValueError, match="--" + next(iter(wrong)).replace("_", "-")):
        grokking.Args(**wrong)
