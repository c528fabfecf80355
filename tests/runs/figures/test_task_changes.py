"""Changes of the task and re-warmings on a page of arms: by hand, arms that differ, TensorBoard's own reader."""

import numpy as np
import pytest

from runs.__main__ import main
from runs.analysis.events import read_events
from runs.figures import task_changes
from runs.figures.arms_page import marked
from runs.recording import Run, read_scalars
from runs.recording.glance import REWARMED
from tests.runs.figures.test_board import read


def run_of(changes=(), rewarmed=(), end=100):
    """The curves of a run."""
    curves = {"charts/episodic_return": (np.array([0, end]), np.array([0.0, 1.0]))}
    for tag, steps in (("shift/boundary", changes), ("rewarm/event", rewarmed)):
        if steps:
            curves[tag] = np.array(steps), np.ones(len(steps))
    return curves


def shifting(directory, name, seed=1, changes=(400, 800), rewarmed=(), end=1000):
    """A run of ours whose task changes."""
    run = Run.create(directory, {"exp_name": name, "seed": seed}, argv=["x.py"])
    for step in range(0, end + 1, 50):
        run.scalar("charts/episodic_return", float(step * seed), step)
        run.scalar("charts/learning_rate", 0.5, step)
        for tag, steps in (("shift/boundary", changes), ("rewarm/event", rewarmed)):
            if step in steps:
                run.scalar(tag, 1.0, step)
    run.finish(end)


def test_a_line_has_a_peak_at_each_change():
    x, y = task_changes.peaks([10, 20], 30, -1.0, 5.0)
    assert x.tolist() == [0, 9, 10, 11, 19, 20, 21, 30] and y.tolist() == [-1, -1, 5, -1, -1, 5, -1, -1]
    x, y = task_changes.peaks([1, 2, 30, 40], 30, 0.0, 1.0)  # next to each other, with the last step, and after it
    assert x.tolist() == [0, 1, 2, 3, 29, 30] and y.tolist() == [0, 1, 1, 0, 0, 1]


def test_peaks_reach_from_the_lowest_to_the_highest_band():
    x = np.array([0.0, 50.0])
    arms = [
        {"a": (x, x, x - 1, x + 1), "flat": (x, 0 * x, 0 * x, 0 * x)},
        {"a": (x / 2, x, x, x), "none": (x[:0],) * 4},
    ]
    bands = marked(arms, [10])
    assert set(bands) == {"a"}  # a line of one height has none, and needs none
    at, line, low, high = bands["a"]
    assert at[-1] == 50 and line.min() == -1 and line.max() == 51
    assert np.array_equal(line, low) and np.array_equal(line, high)


def test_re_warmings_are_counted_over_the_seeds_up_to_the_shortest():
    found = task_changes.rewarmed([run_of(rewarmed=[10, 40]), run_of(rewarmed=[20, 90], end=90), run_of()])
    x, counts = found[REWARMED]
    assert x.tolist() == [0, 9, 10, 19, 20, 39, 40, 89, 90]
    assert counts.tolist() == [[0, 0, 1, 1, 1, 1, 2, 2, 2], [0, 0, 0, 0, 1, 1, 1, 1, 2], [0] * 9]
    assert task_changes.rewarmed([run_of()]) == {}


def test_arms_with_the_same_changes_are_marked_once():
    some = {"a": [run_of([10, 20]), run_of([10], end=15)], "b": [run_of([10, 20])], "fresh": [run_of()]}
    assert task_changes.marks(some) == task_changes.Marks({"task changes": [10, 20]}, [])
    assert not task_changes.marks({"fresh": [run_of()]}).steps and not task_changes.marks({}).steps


def test_arms_with_other_changes_are_marked_each():
    found = task_changes.marks({"a": [run_of([10])], "b": [run_of([10, 20])]})
    assert found.steps == {"task changes of a": [10], "task changes of b": [10, 20]} and not found.notes


def test_what_cannot_be_marked_is_said():
    many = list(range(1, 500, 2))
    found = task_changes.marks({"a": [run_of([10]), run_of([11])], "b": [run_of(many, end=500)], "c": [run_of([30])]})
    assert found.steps == {"task changes": [30]}
    assert task_changes.unmarked({"Pong": found}) == [
        "Pong: a: the changes of its task are not marked, its seeds have them at different steps",
        "Pong: b: its 250 changes of the task are not marked, they are more than 200",
    ]


def test_a_page_marks_the_changes_in_every_chart(tmp_path, capsys):
    for seed in (1, 2):
        shifting(tmp_path / "runs" / f"a{seed}", "nap", seed, rewarmed=(450,) * (seed == 1))
        shifting(tmp_path / "runs" / f"b{seed}", "plain", seed)
    command = ["board", str(tmp_path / "runs"), "--out", str(tmp_path / "page")]
    main(command)
    assert "not marked" not in capsys.readouterr().out
    main(command)  # the page is replaced, so what marks the changes is known to be ours
    scalars, layout = read(tmp_path / "page" / "task changes")
    assert "charts/learning_rate" not in scalars  # constant
    top = [step for step, value in scalars["charts/episodic_return"] if value > 1000]
    assert top == [400, 800]
    assert [chart.title for chart in layout.category[0].chart][::-1] == [
        "training return", "learning rate", "re-warmings so far",
    ]  # fmt: skip
    nap, _ = read(tmp_path / "page" / "nap, n = 2")
    assert nap[REWARMED] == [(0, 0.0), (449, 0.0), (450, 0.5), (1000, 0.5)]
    assert nap[f"highest/{REWARMED}"][-1] == (1000, 1.0) and REWARMED not in read(tmp_path / "page" / "plain, n = 2")[0]


def test_runs_whose_task_does_not_change_have_no_marks(tmp_path):
    shifting(tmp_path / "runs" / "a", "nap", changes=())
    main(["board", str(tmp_path / "runs"), "--out", str(tmp_path / "page")])
    assert sorted(path.name for path in (tmp_path / "page").iterdir() if path.is_dir()) == ["nap, n = 1"]


@pytest.mark.parametrize("resumed", [False, True])
def test_the_task_of_a_run_is_drawn_in_steps(tmp_path, resumed):
    run = Run.create(tmp_path / "r", {}, argv=["x.py"])
    for step, task in ((0, 0), (100, 1)):
        run.scalar("shift/task", task, step)
    if resumed:
        run.checkpoint(150, {})
        run.interrupt(150)
        run = Run.resume(tmp_path / "r")
    run.scalar("shift/task", 2, 200)
    run.finish(300)
    drawn = read_events(tmp_path / "r").scalars["shift/task"]
    assert drawn == [(0, 0), (99, 0), (100, 1), *([] if resumed else [(199, 1)]), (200, 2), (300, 2)]
    assert read_scalars(tmp_path / "r")["shift/task"] == [(0, 0), (100, 1), (200, 2)]  # the table has it once
