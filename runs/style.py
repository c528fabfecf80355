"""How pictures of runs look: one palette, seeds drawn faintly behind their mean, n in every legend.

Needs the `plots` extra, which is imported when the first picture is begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runs.recording import RunError, one_line_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes  # for callers, so that matplotlib is named in this file alone
    from matplotlib.figure import Figure as Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito (2008), told apart with any colour blindness; their yellow, too faint on white, is left out"""
DASHES = ("solid", "dashed", "dashdot", "dotted")
"""lines of the second seven arms are dashed, and so on"""


class Look(NamedTuple):
    """How an arm is drawn, in every panel of a picture."""

    colour: str
    dashes: str


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each arm, by the alphabet: it depends on which arms there are and not on the order they came in.

    Raises:
        RunError: there are more arms than can be told apart.
    """
    ordered = sorted(set(names))
    if len(ordered) > len(COLOURS) * len(DASHES):
        raise RunError(f"{len(ordered)} arms cannot be told apart in one picture: draw fewer than 29")
    return {name: Look(COLOURS[k % len(COLOURS)], DASHES[k // len(COLOURS)]) for k, name in enumerate(ordered)}


def canvas(width: float, height: float) -> Figure:
    """An empty figure of so many inches, drawn without a display.

    Raises:
        RunError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RunError("drawing needs matplotlib: pip install -e '.[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def begin(panels: int, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row; raises as `canvas`."""
    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = canvas(max(4.4 * columns, 5.5), 3.1 * rows + 0.5)
    drawn = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in drawn:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in drawn[panels:]:
        axes.set_visible(False)
    return figure, drawn[:panels]


def draw_arm(
    axes: Axes,
    x: NDArray[np.float64],
    runs: NDArray[np.float64],
    look: Look,
    label: str,
    band: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    cut: bool = False,
) -> None:
    """The runs of an arm, thin and faint, their mean over them, and its interval.

    Where a run has no value (nan) its line is bridged, and the mean, which would be of other runs there, too.

    Args:
        axes: the panel.
        x: [points].
        runs: [n, points].
        look: of the arm.
        label: the legend's text, which should say n.
        band: lower and upper end [points]; nan where there is no interval.
        cut: the axis ends where the runs do, and cuts off what goes beyond of the interval: a wide one of few runs
            would press the curves flat.
    """
    if len(runs) > 1:
        for run in runs:
            there = ~np.isnan(run)
            axes.plot(
                x[there], run[there], color=look.colour, linestyle=look.dashes, linewidth=0.6, alpha=0.3, zorder=1
            )
    mean = runs.mean(axis=0)
    there = ~np.isnan(mean)
    if band is not None:
        seen = axes.dataLim.frozen()
        axes.fill_between(
            x[there], band[0][there], band[1][there], color=look.colour, alpha=0.15, linewidth=0, zorder=2
        )
        if cut:
            axes.dataLim.set(seen)
    axes.plot(x[there], mean[there], color=look.colour, linestyle=look.dashes, linewidth=1.6, label=label, zorder=3)


def steps_axis(axes: Axes) -> None:
    """Steps from 0, as 200k or 1M."""
    from matplotlib.ticker import EngFormatter

    axes.set_xlim(left=0)
    axes.set_xlabel("steps", fontsize=8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, under them, where it hides no curve, in as many columns as there is room for."""
    found = [axes.get_legend_handles_labels() for axes in panels]
    named = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
    labels = sorted(named)
    handles = [named[label] for label in labels]
    widest = 0.7 + 0.065 * max(map(len, labels))  # inches: line and gaps, and a letter of 8 points
    columns = max(1, min(len(labels), int(figure.get_size_inches()[0] / widest)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def save(figure: Figure, paths: Sequence[Path]) -> None:
    """Write the picture, once per ending: .png, .svg. The same picture gives the same bytes.

    Raises:
        RunError: a file cannot be written.
    """
    from matplotlib import rc_context

    for path in paths:
        undated = {"Date": None} if path.suffix == ".svg" else {}
        with (
            one_line_errors(f"cannot write {path}", also=(OSError,)),
            rc_context({"svg.hashsalt": "rewarm", "svg.fonttype": "none"}),
        ):
            figure.savefig(path, dpi=120, metadata=undated)
        figure.set_layout_engine("none")  # the panels stay where the first picture put them; finding that takes time
