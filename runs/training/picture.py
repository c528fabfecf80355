"""A picture of recorded accuracies, put into the run directory when a run has finished."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runs.recording import read_scalars

COLOURS = ("#D55E00", "#0072B2")


def draw_comparison(directory: Path, curves: Mapping[str, str], *, ylabel: str) -> Path | None:
    """Draw up to two recorded shares over the updates as comparison.png, with dotted lines where the data grew.

    The vertical axis follows the first curve and ends at 1. The other may begin outside: a fresh network starts at
    chance.

    Args:
        directory: of the run.
        curves: tags with their labels; a tag that was not recorded is left out, except the first.
        ylabel: what is compared.
    Returns:
        The picture's path; None where matplotlib is not installed.
    Raises:
        RunError: the run cannot be read.
        KeyError: the first tag was not recorded.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    scalars = read_scalars(directory)
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for (tag, label), colour in zip(curves.items(), COLOURS, strict=False):
        if tag in scalars:
            axes.plot(*zip(*scalars[tag], strict=True), label=label, color=colour, marker=".", markersize=3)
    for i, (update, _) in enumerate(scalars.get("shift/boundary", [])):
        axes.axvline(update, color="0.6", linewidth=0.8, linestyle=":", label=None if i else "data grow")
    lowest = min(value for _, value in scalars[next(iter(curves))])
    axes.set_ylim(top=1.0, bottom=max(0.0, lowest - 0.02))
    axes.set_xlabel("update")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend()
    path = directory / "comparison.png"
    figure.savefig(path, dpi=110)
    return path
