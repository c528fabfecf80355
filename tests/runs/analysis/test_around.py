"""Recorded numbers around the changes, by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from runs.analysis import around
from runs.analysis.curves import read_run
from runs.recording import Run, RunError


def recorded(directory: Path, *, seed=1, name="plain", changes=(100, 200), end=300, every=5, value=lambda step: step):
    with Run.create(directory, {"exp_name": name, "seed": seed}, argv=["x.py"]) as run:
        for step in range(every, end + 1, every):
            run.scalar("losses/entropy", float(value(step)), step)
        run.scalar("charts/SPS", 1.0, 5)
        for step in changes:
            run.scalar("shift/boundary", 1, step)
        run.checkpoint(end, {})
        run.finish(end)
    return directory


def test_numbers_before_at_once_and_after(tmp_path):
    run = read_run(recorded(tmp_path / "a"))
    # Before: (80, 100] and (180, 200] by fives, means 92.5 and 192.5; at once: steps 105 and 205.
    assert around.around(run, "losses/entropy") == (142.5, 155.0, 242.5)


def test_a_number_recorded_too_seldom_is_a_dash(tmp_path, capsys):
    directory = recorded(tmp_path / "a", every=50)
    before, at_once, after = around.around(read_run(directory), "losses/entropy")
    assert (before, after) == (150.0, 250.0) and math.isnan(at_once)
    around.main(around.Args((directory,)))
    assert capsys.readouterr().out.splitlines()[2] == "| losses/entropy | plain | 1 | 150 | – | 250 |"


def test_table_over_seeds(tmp_path, capsys):
    one = recorded(tmp_path / "a", value=lambda step: 1.0)
    two = recorded(tmp_path / "b", seed=2, value=lambda step: 3.0)
    around.main(around.Args((one, two), tags=("losses/entropy",)))
    assert capsys.readouterr().out.splitlines()[2] == "| losses/entropy | plain | 2 | 2 ± 13 | 2 ± 13 | 2 ± 13 |"


def test_aligned_at_the_change(tmp_path):
    run = read_run(recorded(tmp_path / "a", value=lambda step: step > 100))
    x, values = around.aligned(run, "losses/entropy")
    assert len(x) == 30 and x[9] == pytest.approx(-0.025) and x[10] == pytest.approx(0.025)
    # Before the first change 0, before the second 1; after both 1.
    np.testing.assert_array_equal(values[:10], 0.5)
    np.testing.assert_array_equal(values[10:], 1.0)


def test_a_short_visit_is_left_out_and_the_change_beside_it_counts_where_it_can(tmp_path):
    run = read_run(recorded(tmp_path / "a", changes=(100, 200, 300), end=305, value=lambda step: step > 200))
    assert around.spans(run) == [(0, 100), (100, 200), (200, 300), None]
    # Before the changes at 100, 200 and 300: 1 only before the last one. At once and after: at 100 and 200.
    assert around.around(run, "losses/entropy") == pytest.approx((1 / 3, 1 / 2, 1 / 2))


def test_changes_beside_short_visits_only_are_not_drawn(tmp_path):
    run = read_run(recorded(tmp_path / "a", changes=(290,)))
    before, at_once, after = around.around(run, "losses/entropy")
    assert math.isfinite(before) and math.isnan(at_once) and math.isnan(after)
    with pytest.raises(RunError, match="no change lies between two visits that are long enough"):
        around.aligned(run, "losses/entropy")


def test_refusals(tmp_path):
    quiet = recorded(tmp_path / "quiet", changes=())
    with pytest.raises(RunError, match="records no shift/boundary: its task never changes"):
        around.main(around.Args((quiet,)))
    run = recorded(tmp_path / "a")
    with pytest.raises(RunError, match="has recorded no losses/td_loss"):
        around.main(around.Args((run,), tags=("losses/td_loss",)))


def test_default_numbers_are_those_that_all_runs_have(tmp_path):
    groups = around.read_groups((recorded(tmp_path / "a"), recorded(tmp_path / "b", seed=2)))
    assert around.chosen(groups, ()) == ["losses/entropy"]
    groups[0].runs[1].curves.pop("losses/entropy")
    with pytest.raises(RunError, match="none of the usual numbers in common"):
        around.chosen(groups, ())


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    runs = tuple(recorded(tmp_path / f"{name}{seed}", name=name, seed=seed) for name in "ab" for seed in (1, 2))
    around.main(around.Args(runs, out=tmp_path / "around.png"))
    assert (tmp_path / "around.png").stat().st_size > 10_000
