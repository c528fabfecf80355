"""The benchmark of the probe times both ways of measuring, and refuses what cannot be measured."""

import pytest

from elr import metric_kernels
from runs.benchmarks import probe


def test_both_ways_are_timed(capsys):
    probe.main(probe.Args(inputs=(4, 520), repeats=1))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        ["dense", "4"], ["dense", "520"], ["convolution", "4"], ["convolution", "520"],
    ]  # fmt: skip
    assert all(float(line.split()[2]) > 0 for line in lines[2:])


def test_the_other_way_makes_square_matrices(monkeypatch):
    """Of 1,100 inputs and 256 features: as the probe measures, no matrix of n x n is made."""
    network, shape, layers = probe.networks()["dense"]
    made = []
    gram_of = metric_kernels.gram_of
    monkeypatch.setattr(metric_kernels, "gram_of", lambda matrix: made.append(gram_of(matrix)) or made[-1])
    for square in (False, True):
        made.clear()
        assert probe.milliseconds(network, probe.torch.randn(1100, *shape), layers, square) > 0
        assert len(made) == 4 and all((gram is not None) == square for gram in made)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"repeats": 0}, "--repeats must be at least 1, got 0"),
        ({"inputs": (8, 1)}, "--inputs must be at least 2 each, got 8 1"),
        ({"inputs": ()}, "--inputs must be at least 2 each, got none"),
    ],
)
def test_bad_arguments_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        probe.Args(**bad)
