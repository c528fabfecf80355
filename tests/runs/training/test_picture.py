"""runs.training.draw_comparison: the picture of two recorded accuracies."""

from __future__ import annotations

import sys

import pytest

from runs.recording import Run
from runs.training import draw_comparison

CURVES = {"test/accuracy": "warm", "test/accuracy_fresh": "fresh"}


def record(directory, tags=tuple(CURVES)):
    with Run.create(directory, {}, argv=["script.py"]) as run:
        for update in (10, 20):
            for tag in tags:
                run.scalar(tag, 0.9 if tag == "test/accuracy" else 0.1, update)
        run.scalar("shift/boundary", 1, 15)
        run.finish(20)
    return directory


def drawn(directory, monkeypatch):
    """The axes of the picture, which is saved as well."""
    figures = pytest.importorskip("matplotlib.figure")
    kept, save = [], figures.Figure.savefig
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k))[1])
    path = draw_comparison(directory, CURVES, ylabel="test accuracy")
    assert path == directory / "comparison.png" and path.read_bytes().startswith(b"\x89PNG")
    return kept[0].axes[0]


def test_both_curves_and_the_switch_are_drawn(tmp_path, monkeypatch):
    axes = drawn(record(tmp_path / "r"), monkeypatch)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["warm", "fresh", "data grow"]
    assert [line.get_ydata()[0] for line in axes.lines[:2]] == [0.9, 0.1]
    assert axes.lines[2].get_xdata()[0] == 15


def test_the_axis_follows_the_first_curve(tmp_path, monkeypatch):
    assert drawn(record(tmp_path / "r"), monkeypatch).get_ylim() == pytest.approx((0.88, 1.0))


def test_a_curve_that_was_not_recorded_is_left_out(tmp_path, monkeypatch):
    axes = drawn(record(tmp_path / "r", tags=["test/accuracy"]), monkeypatch)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["warm", "data grow"]


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw_comparison(record(tmp_path / "r"), CURVES, ylabel="test accuracy") is None
    assert not (tmp_path / "r" / "comparison.png").exists()
