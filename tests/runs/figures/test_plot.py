"""The plot: averaging, labels, colours, errors, and that it draws a run."""

from pathlib import Path

import numpy as np
import pytest

from runs.analysis.curves import read_table
from runs.figures import plot, style
from runs.recording import Run, RunError


def recorded(directory: Path) -> Path:
    with Run.create(directory, {"exp_name": "nap", "seed": 4}, argv=["x.py"]) as run:
        for step, value in ((5, 1.0), (10, 3.0), (11, 7.0)):
            run.scalar("charts/episodic_return", value, step)
        run.scalar("elr/hidden", 0.25, 20)
    return directory


def pairs(curve):
    return list(zip(*(array.tolist() for array in curve), strict=True))


def test_windowed_means_by_hand():
    curve = np.array([0, 5, 10, 11, 31]), np.array([9.0, 1.0, 3.0, 7.0, 2.0])
    assert pairs(plot.windowed_means(curve, 10)) == [(0, 9.0), (10, 2.0), (20, 7.0), (31, 2.0)]
    assert pairs(plot.windowed_means(plot.EMPTY, 10)) == []


def test_curves_of_a_run(tmp_path):
    directory = recorded(tmp_path / "run")
    tags = ("charts/episodic_return", "elr/hidden", "elr/conv")
    table = read_table(directory)
    whole, cut = (plot.curves(directory, table, tags, 10, until) for until in (None, 10))
    assert [pairs(curve) for curve in whole] == [[(10, 2.0), (11, 7.0)], [(20, 0.25)], []]
    assert [pairs(curve) for curve in cut] == [[(10, 2.0)], [], []]
    with pytest.raises(RunError, match="holds none of"):
        plot.curves(directory, table, ["elr/conv"], 10, None)


def test_labels_name_the_directory_only_where_needed(tmp_path):
    first, second = recorded(tmp_path / "run"), recorded(tmp_path / "b" / "run")
    config = {"exp_name": "nap", "seed": 4}
    assert plot.labels([first], [config]) == ["nap, seed 4"]
    assert plot.labels([first], [{}]) == ["run"]
    assert plot.labels([first, second], [config, config]) == [f"nap, seed 4 ({first})", f"nap, seed 4 ({second})"]


def test_several_runs_of_several_arms_are_in_one_colour_each(tmp_path, monkeypatch):
    runs = [("nap", 1), ("nap", 2), ("plain", 1)]
    configs = [{"exp_name": name, "seed": seed} for name, seed in runs]
    names = [f"{name}, seed {seed}" for name, seed in runs]
    assert plot.by_arm(names, configs) == ["nap, seeds 1, 2", "nap, seeds 1, 2", "plain, seed 1"]
    assert plot.by_arm(names[:2], configs[:2]) == names[:2] and plot.by_arm(names[1:], configs[1:]) == names[1:]
    assert plot.by_arm(["a", "b"], [{}, {}]) == ["a", "b"]
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(style, "save", lambda figure, paths: figures.append(figure))
    for name, seed in runs:
        with Run.create(tmp_path / f"{name}{seed}", {"exp_name": name, "seed": seed}, argv=["x.py"]) as run:
            for step in (10, 20):
                run.scalar("test/accuracy", 0.5, step)
    plot.main(plot.Args(tuple(tmp_path / f"{name}{seed}" for name, seed in runs), out=tmp_path / "a.png"))
    assert len({line.get_color() for line in figures[0].axes[0].lines}) == 2
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["nap, seeds 1, 2", "plain, seed 1"]


def test_picture_is_written_in_the_colours_of_all_pictures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures, save = [], style.save
    monkeypatch.setattr(style, "save", lambda figure, paths: (figures.append(figure), save(figure, paths)))
    plot.main(plot.Args((recorded(tmp_path / "run"),), out=tmp_path / "curves.png"))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert figures[0].axes[0].lines[0].get_color() == style.COLOURS[0]


def test_bad_arguments_are_refused(tmp_path):
    pytest.importorskip("matplotlib")
    directory = recorded(tmp_path / "run")
    with pytest.raises(RunError, match="cannot write"):
        plot.main(plot.Args((directory,), out=tmp_path / "no" / "a.png"))
    with pytest.raises(RunError, match="no runs to draw"):
        plot.main(plot.Args(()))
    with pytest.raises(ValueError, match=r"--window must be at least 1 step, or 0 .*, got -1"):
        plot.Args((directory,), window=-1)


def test_the_usual_panels_are_those_that_a_run_has():
    tags = (
        "charts/learning_rate", "elr/policy_1", "charts/episodic_return", "elr/value_3", "plasticity/dead_fraction/a",
        "plasticity/flipped_fraction/policy_1_relu", "plasticity/flipped_fraction/value_3_relu",
    )  # fmt: skip
    assert plot.usual_tags([dict.fromkeys(tags, plot.EMPTY)]) == (
        "charts/episodic_return", "charts/learning_rate", "elr/value_3", "plasticity/flipped_fraction/value_3_relu",
    )  # fmt: skip
    assert plot.usual_tags([{"test/accuracy": plot.EMPTY}, {"elr/one": plot.EMPTY}]) == ("test/accuracy", "elr/one")
    assert plot.usual_tags([{"charts/SPS": plot.EMPTY}]) == ()
