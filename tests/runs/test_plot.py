"""Averaging and refusals of the plot, and that it draws a run."""

from pathlib import Path

import pytest

from runs import plot
from runs.recording import Run, RunError


def recorded(directory: Path) -> Path:
    with Run.create(directory, {"exp_name": "nap", "seed": 4}, argv=["x.py"]) as run:
        for step, value in ((5, 1.0), (10, 3.0), (11, 7.0)):
            run.scalar("charts/episodic_return", value, step)
        run.scalar("elr/hidden", 0.25, 20)
    return directory


def test_windowed_means_by_hand():
    assert plot.windowed_means([(5, 1.0), (10, 3.0), (11, 7.0), (31, 2.0)], 10) == [(10, 2.0), (20, 7.0), (40, 2.0)]
    with pytest.raises(ValueError, match="window"):
        plot.windowed_means([], 0)


def test_curves_and_label_of_a_run(tmp_path):
    directory = recorded(tmp_path / "run")
    assert plot.labels([directory]) == ["nap, seed 4"]
    other = recorded(tmp_path / "b" / "run")
    assert plot.labels([directory, other]) == [f"nap, seed 4 ({directory})", f"nap, seed 4 ({other})"]
    tags = ("charts/episodic_return", "elr/hidden", "elr/conv")
    assert plot.curves(directory, tags, 10, None) == [[(10, 2.0), (20, 7.0)], [(20, 0.25)], []]
    assert plot.curves(directory, tags, 10, 10) == [[(10, 2.0)], [], []]
    with pytest.raises(RunError, match="holds none of"):
        plot.curves(directory, ["elr/conv"], 10, None)


def test_the_picture_is_written_or_refused_in_one_line(tmp_path):
    pytest.importorskip("matplotlib")
    directory = recorded(tmp_path / "run")
    plot.main(plot.Args((directory,), out=tmp_path / "curves.png"))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    for changes, named in (
        ({"out": tmp_path / "no" / "a.png"}, "cannot write"),
        ({"window": 0}, "--window"),
        ({"tags": ()}, "--tags"),
    ):
        with pytest.raises(RunError, match=named):
            plot.main(plot.Args((directory,), **changes))
