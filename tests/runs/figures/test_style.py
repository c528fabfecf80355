"""How pictures look: looks by name, the legend, intervals that are cut, single points."""

import numpy as np
import pytest

from runs.figures import style
from runs.recording import RunError


def test_looks_depend_only_on_the_names():
    chosen = style.looks(["b", "a", "c", "a"])
    assert chosen == style.looks(["c", "b", "a"]) and list(chosen) == ["a", "b", "c"]
    many = style.looks([f"{k:02d}" for k in range(28)])
    assert len(set(many.values())) == 28 and many["07"] == (style.COLOURS[0], "dashed")
    with pytest.raises(RunError, match="29 lines cannot be told apart in one picture"):
        style.looks(map(str, range(29)))


@pytest.mark.parametrize("length", [5, 45])
def test_legend_fits_into_the_picture(length, tmp_path):
    pytest.importorskip("matplotlib")
    names = [f"{letter}" * length for letter in "abcd"]
    figure, panels = style.begin(1)
    for name, look in style.looks(names).items():
        style.draw_arm(panels[0], np.arange(2.0), np.ones((1, 2)), look, name)
    style.legend_below(figure, panels)
    style.save(figure, [tmp_path / "out.png"])
    box, room = figure.legends[0].get_window_extent(), figure.bbox
    assert room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0
    assert box.y1 < panels[0].get_window_extent().y0


def test_wide_interval_does_not_flatten_the_curves_if_cut():
    pytest.importorskip("matplotlib")
    x, values = np.arange(3.0), np.array([[0.4, 0.5, 0.6], [0.5, 0.6, 0.5]])
    band = np.full(3, -9.0), np.full(3, 9.0)
    heights = []
    for cut in (True, False):
        _, (panel,) = style.begin(1)
        style.draw_arm(panel, x, values, style.looks(["a"])["a"], "a", band, cut=cut)
        heights.append(np.ptp(panel.get_ylim()))
    assert heights[0] < 0.3 and heights[1] > 18


def test_points_without_neighbours_are_marked():
    pytest.importorskip("matplotlib")
    _, (panel,) = style.begin(1)
    look = style.looks(["a"])["a"]
    style.draw_arm(panel, np.arange(3.0), np.array([[1.0, np.nan, 3.0]]), look, "gap")
    style.draw_arm(panel, np.arange(1.0), np.array([[1.0]]), look, "single")
    style.draw_arm(panel, np.arange(2.0), np.array([[1.0, 2.0]]), look, "whole")
    assert [line.get_marker() for line in panel.lines] == [".", ".", ""]
