"""The detector's table: which alarm detects a change, which is false."""

import math
from pathlib import Path

import numpy as np
import pytest

from runs.analysis import alarms
from runs.analysis.changes import Visit
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


def test_first_alarm_in_the_window_detects_the_change():
    visits = [Visit(k % 2, 1000 * k, 1000 * (k + 1), []) for k in range(3)]
    assert alarms.sort_alarms(visits, [], 0.5) == ([], [], 2000)  # all steps of the first visit, half of the others
    raised = [300, 1000, 1200, 1300, 2500]
    assert alarms.sort_alarms(visits, raised, 0.5) == ([200, 500], [300, 1000, 1300], 1000 + 800 + 500)
    assert alarms.sort_alarms(visits, [1501, 1600, 2501], 0.5) == ([], [1501, 1600, 2501], 2000)  # too late


@pytest.mark.parametrize(("per_visit", "within"), [(0.3, 0.5), (1.0, 0.5), (1.0, 1.0)])
def test_random_alarms_detect_as_many_changes_as_chance_says(per_visit, within):
    rng, runs = np.random.default_rng(0), []
    for _ in range(400):
        visits = [Visit(k, 10_000 * k, 10_000 * (k + 1), []) for k in range(6)]
        runs.append((visits, sorted(rng.integers(1, 60_001, size=rng.poisson(6 * per_visit)).tolist())))
    cells = alarms.row("noise", runs, within)
    assert int(cells[3]) / int(cells[2]) == pytest.approx(float(cells[5]), abs=0.03)
    assert float(cells[5]) == pytest.approx(1 - math.exp(-per_visit * within), abs=0.03)


def test_alarm_table_by_hand(tmp_path, capsys):
    late = recorded(tmp_path / "b", [1900], seed=2, boundaries=(0, 1500))  # seeds may change at other steps
    alarms.main(alarms.Args((recorded(tmp_path / "a", [500, 1100, 2300]), late), within=0.5))
    exposed = 1000 + 900 + 700 + 1500 + 1100
    chance = sum(1 - math.exp(-window / exposed) for window in (500, 500, 750)) / 3
    line = capsys.readouterr().out.splitlines()[2]
    assert line == f"| cusum | 2 | 3 | 3 | 300 (100 to 400) | {chance:.2f} | 1 ({exposed:,}) |"


def test_run_without_a_change(tmp_path, capsys):
    alarms.main(alarms.Args((recorded(tmp_path / "a", [500], boundaries=(0,)),)))
    assert capsys.readouterr().out.splitlines()[2] == "| cusum | 1 | 0 | 0 | – | – | 1 (3,000) |"


def test_no_alarms_at_all(tmp_path, capsys):
    alarms.main(alarms.Args((recorded(tmp_path / "a", []),)))
    assert (
        capsys.readouterr().out.splitlines()[2]
        == f"| cusum | 1 | 2 | 0 | – | < {1 - math.exp(-3 / 2000 * 500):.2f} | 0 (> 2,000) |"
    )


def test_runs_without_a_detector_and_bad_shares_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"other has --rewarm\.trigger switch, which detects nothing"):
        alarms.main(alarms.Args((recorded(tmp_path / "a", [], name="other", trigger="switch"),)))
    for within in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="--within"):
            alarms.Args((tmp_path,), within=within)
