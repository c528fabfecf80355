"""The detector's table: which alarm finds a change, which is false."""

import math
from pathlib import Path

import pytest

from runs import alarms
from runs.changes import Visit
from runs.recording import Run, RunError


def recorded(directory: Path, events, *, seed=1, name="cusum", trigger="cusum", boundaries=(0, 1000, 2000), end=3000):
    config = {"exp_name": name, "seed": seed, "shift": {"kind": "games"}, "rewarm": {"trigger": trigger}}
    with Run.create(directory, config, argv=["x.py"]) as run:
        for k, step in enumerate(boundaries):
            run.scalar("shift/task", k % 2, step)
        run.scalar("charts/episodic_return", 1.0, 10)
        for step in events:
            run.scalar("rewarm/event", 1, step)
        run.checkpoint(end, {})
        run.finish(end)
    return directory


def test_which_alarm_finds_a_change():
    visits = [Visit(k % 2, 1000 * k, 1000 * (k + 1), []) for k in range(3)]
    assert alarms.sort_alarms(visits, [], 0.5) == ([], [])
    assert alarms.sort_alarms(visits, [300, 1000, 1200, 1300, 2500], 0.5) == ([200, 500], [300, 1000, 1300])
    assert alarms.sort_alarms(visits, [1501, 1600, 2501], 0.5) == ([], [1501, 1600, 2501])  # too late


def test_the_table_by_hand(tmp_path, capsys):
    alarms.main(
        alarms.Args((recorded(tmp_path / "a", [500, 1100, 2300]), recorded(tmp_path / "b", [1900], seed=2)), within=0.5)
    )
    chance = 1 - math.exp(-2 / 6000 * 500)
    line = capsys.readouterr().out.splitlines()[2]
    assert line == f"| cusum | 2 | 4 | 2 | 200 (100 to 300) | {chance:.2f} | 2 (3,000) |"


def test_nothing_found_and_nothing_false(tmp_path, capsys):
    alarms.main(alarms.Args((recorded(tmp_path / "a", []),)))
    assert capsys.readouterr().out.splitlines()[2] == "| cusum | 1 | 2 | 0 | – | 0.00 | 0 (> 3,000) |"


def test_refusals(tmp_path):
    with pytest.raises(RunError, match=r"other has --rewarm\.trigger switch, which detects nothing"):
        alarms.main(alarms.Args((recorded(tmp_path / "a", [], name="other", trigger="switch"),)))
    for within in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="--within"):
            alarms.Args((tmp_path,), within=within)
