"""The benchmark of the MinAtar games times both sides, and refuses what cannot be measured."""

import pytest

from runs.benchmarks import minatar


def test_a_game_is_timed(capsys):
    minatar.main(minatar.Args(games=("Breakout",), num_envs=(1, 2), repeats=2, steps=3))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["Breakout", "1"], ["Breakout", "2"]]
    assert all(float(number) > 0 for line in lines[2:] for number in line.split()[2:5])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"repeats": 0}, "--repeats must be at least 1, got 0"),
        ({"num_envs": (8, 0)}, "--num-envs must be at least 1, got 0"),
        ({"games": ("Pong",)}, "--games must be some of Breakout.*got Pong"),
    ],
)
def test_bad_arguments_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        minatar.Args(**bad)
