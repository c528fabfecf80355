"""Gaps over seeds: intervals, means since the switch, the tables, errors."""

import math
from pathlib import Path

import pytest

from runs.analysis import gaps
from runs.analysis.statistics import student_interval
from runs.analysis.tables import shown
from runs.recording import Run, RunError


def recorded(directory: Path, gap=2.0, *, seed=1, name="arm", rate=0.1, control=True, finished=True, alarms=()) -> Path:
    config = {"exp_name": name, "seed": seed, "rate": rate, "rewarm": {"threshold": 10.0}}
    with Run.create(directory, config, argv=["x.py"]) as run:
        for update, norm in ((10, 3.0), (20, 6.0)):
            run.scalar("norms/parameter/a", norm, update)
            run.scalar("norms/parameter/b", 4.0, update)
            run.scalar("norms/update/a", norm, update)
            run.scalar("plasticity/delta_c/a", norm / 10, update)
            run.scalar("plasticity/delta_a/a", norm + seed, update)
            run.scalar("plasticity/flipped_fraction/a", norm / 20, update)
            run.scalar("test/accuracy", 0.5, update)
        run.scalar("shift/boundary", 1, 10)
        for update in alarms:
            run.scalar("rewarm/statistic", 11.0, update)
            run.scalar("rewarm/event", 1, update)
        if control:
            run.scalar("test/accuracy_fresh", 0.5 + gap / 100, 20)
            run.scalar("test/gap", gap, 20)
        if finished:
            run.checkpoint(20, {})
            run.finish(20)
    return directory


def test_interval_is_student_s():
    mean, half = student_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0 and half == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5))
    assert math.isnan(student_interval([1.0])[1])
    assert student_interval([0.0, 1.0] * 50)[1] == pytest.approx(1.984 * 0.5025 / 10, rel=1e-3)


def test_means_since_the_switch_and_norms_by_hand():
    scalars = {
        "norms/parameter/a": [(0, 1.0), (10, 3.0), (20, 6.0)],
        "norms/parameter/b": [(0, 1.0), (10, 4.0), (20, 8.0)],
        "norms/update/a": [(10, 100.0), (15, 1.0), (20, 2.0)],
        "norms/update/b": [(20, 6.0)],
    }
    assert gaps.since(scalars, "norms/update/", 10) == 3.0
    changes = {
        "plasticity/delta_c/a": [(10, 9.0), (15, 1.0), (20, 2.0)],
        "plasticity/delta_c/b": [(12, 9.0), (20, 6.0)],
    }
    assert gaps.since(changes, "plasticity/delta_c/", 10) == 3.0  # b's first change began before 10
    assert gaps.weight_norm(scalars, 10) == 5.0 and gaps.weight_norm(scalars) == 10.0
    assert math.isnan(gaps.since(scalars, "plasticity/delta_c/", 10)) and math.isnan(gaps.weight_norm(scalars, -1))
    assert shown(math.nan) == "–" and shown(0.12345) == "0.123"


def test_tables_and_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    runs = tuple(recorded(tmp_path / str(s), gap, seed=s) for s, gap in ((1, 1.0), (2, 3.0)))
    gaps.main(gaps.Args(runs, out=tmp_path / "gaps.png"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| arm | 2 | 50.00 | 52.00 | 2.00 ± 12.71 | 5 | 7.21 |"
    assert lines[6] == "| arm | 2 | 0.6 ± 0 | 7.5 ± 6.4 | 0.3 ± 0 | 6 ± 0 |"
    assert "alarm" not in "".join(lines)
    assert (tmp_path / "gaps.png").stat().st_size > 5000


def test_alarms_are_counted_by_hand(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    when = {1: (5, 12), 2: (11, 13, 19), 3: (10,), 4: (20,)}  # the data grow after update 10
    runs = tuple(recorded(tmp_path / str(s), seed=s, alarms=alarms) for s, alarms in when.items())
    gaps.main(gaps.Args(runs, out=tmp_path / "gaps.png"))
    # right: 12, 11, none, 20; false: 5; 13 and 19; 10
    assert capsys.readouterr().out.splitlines()[10] == "| arm | 4 | 1 to 10 | 1 | 4 |"
    assert (tmp_path / "gaps.png").stat().st_size > 5000


def test_runs_that_cannot_be_grouped_are_refused(tmp_path):
    one, same = recorded(tmp_path / "a"), recorded(tmp_path / "b")
    with pytest.raises(RunError, match="are both arm, seed 1: leave one out"):
        gaps.read([one, same])
    with pytest.raises(RunError, match=r"are both arm and differ in rate \(0.1 \| 0.2\): give each its own --exp-name"):
        gaps.read([one, recorded(tmp_path / "c", seed=2, rate=0.2)])
    with pytest.raises(RunError, match="give run directories"):
        gaps.read([])
    with pytest.raises(RunError, match="not finished"):
        gaps.read([recorded(tmp_path / "f", finished=False)])
    with pytest.raises(RunError, match="no control"):
        gaps.read([recorded(tmp_path / "d", control=False)])
    assert [arm.name for arm in gaps.read([one, recorded(tmp_path / "e", name="other")])] == ["arm", "other"]
