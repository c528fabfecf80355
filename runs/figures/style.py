"""How pictures of runs look: one palette, faint lines for seeds behind their mean, n in every legend.

Needs the `plots` extra, which is imported with the first picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runs.recording import RunError, one_line_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes  # re-exported, so that only this file names matplotlib
    from matplotlib.figure import Figure as Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito (2008): distinct with any colour blindness. Their yellow is left out, as it is too faint on white."""
DASHES = ("solid", "dashed", "dashdot", "dotted")
"""the first seven arms are solid lines, the next seven dashed, and so on"""


class Look(NamedTuple):
    """How an arm is drawn, in every panel of a picture."""

    colour: str
    dashes: str


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each arm, in alphabetical order: it depends on the names only, not on the order they came in.

    Raises:
        RunError: there are more than 28 names.
    """
    ordered = sorted(set(names))
    if len(ordered) > len(COLOURS) * len(DASHES):
        raise RunError(f"{len(ordered)} lines cannot be told apart in one picture: draw at most 28")
    return {name: Look(COLOURS[k % len(COLOURS)], DASHES[k // len(COLOURS)]) for k, name in enumerate(ordered)}


def begin(panels: int, columns: int = 3, width: float = 4.4, height: float = 3.1) -> tuple[Figure, list[Axes]]:
    """A figure, drawn without a display, and its panels of this size [inches], row by row.

    Raises:
        RunError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RunError("drawing needs matplotlib: pip install -e '.[plots]'") from error
    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(max(width * columns, 5.5), height * rows + 0.5), layout="constrained")
    drawn = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in drawn:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in drawn[panels:]:
        axes.set_visible(False)
    return figure, drawn[:panels]


DENSE = 1_000
"""points of all its runs from which on the runs and the interval of an arm are pixels in an SVG"""


def draw_arm(
    axes: Axes,
    x: NDArray[np.float64],
    runs: NDArray[np.float64],
    look: Look,
    label: str,
    band: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    cut: bool = False,
) -> None:
    """The runs of an arm as thin faint lines, in front of them their mean, and its interval.

    Points where a run has no value (nan) are left out of its line, and of the mean, which would be one of fewer runs.
    Dots mark the mean if points were left out or there is only one.

    Args:
        axes: the panel.
        x: [points].
        runs: [n, points].
        look: of the arm.
        label: of the legend, with n.
        band: lower and upper end [points]; nan where there is no interval.
        cut: the axis covers the runs only, and the interval is cut off beyond. A wide interval of few runs would
            otherwise flatten the curves.
    """
    dense = runs.size > DENSE  # then an image of the faint lines is smaller than their points
    if len(runs) > 1:
        for run in runs:
            known = ~np.isnan(run)
            (line,) = axes.plot(
                x[known], run[known], color=look.colour, linestyle=look.dashes, linewidth=0.6, alpha=0.3, zorder=1
            )
            line.set_rasterized(dense)
    mean = runs.mean(axis=0)
    known = ~np.isnan(mean)
    if band is not None:
        limits = axes.dataLim.frozen()
        area = axes.fill_between(
            x[known], band[0][known], band[1][known], color=look.colour, alpha=0.15, linewidth=0, zorder=2
        )
        area.set_rasterized(dense)
        if cut:
            axes.dataLim.set(limits)
    marker = "" if known.all() and len(x) > 1 else "."
    axes.plot(
        x[known], mean[known], color=look.colour, linestyle=look.dashes, linewidth=1.6, marker=marker, label=label,
        zorder=3,
    )  # fmt: skip


def steps_axis(axes: Axes) -> None:
    """Steps from 0, written as 200k or 1M."""
    from matplotlib.ticker import EngFormatter

    axes.set_xlim(left=0)
    axes.set_xlabel("steps", fontsize=8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, below them, in as many columns as fit."""
    entries = [axes.get_legend_handles_labels() for axes in panels]
    named = {label: handle for handles, labels in entries for handle, label in zip(handles, labels, strict=True)}
    labels = sorted(named)
    handles = [named[label] for label in labels]
    widest = 0.7 + 0.065 * max(map(len, labels))  # inches: line and gaps, and 8-point letters
    columns = max(1, min(len(labels), int(figure.get_size_inches()[0] / widest)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def save(figure: Figure, paths: Sequence[Path]) -> None:
    """Write the picture to each path; the ending chooses the format (.png, .svg). Equal pictures give equal bytes.

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
        figure.set_layout_engine("none")  # keep the first file's layout; computing it takes time
