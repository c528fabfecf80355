"""What recorded numbers do around the changes of the task: a table, and a picture aligned at the changes.

    python -m runs around runs/logs/levels-plain__* runs/logs/levels-nap-switch__* --out around.png
    python -m runs around RUN ... --tags losses/entropy elr/actor.hidden2

Takes runs with --shift, grouped by their exp_name. A visit is the time between two changes. The columns, each a mean
over the changes of a run and then over seeds, with Student's 95 % interval:

    before   the last fifth of the visits that end with a change
    at once  the first twentieth after the changes
    after    the last fifth of the visits that begin with a change

A visit shorter than a tenth of the longest is left out. A dash means that a seed has no value there: the number is
recorded too seldom. The picture has a panel per number and needs the `plots` extra.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runs.analysis.curves import Curve, Recorded, windowed
from runs.analysis.run_groups import RunGroup, read_groups
from runs.analysis.statistics import student_band
from runs.analysis.tables import markdown, mean_over_seeds
from runs.figures import style
from runs.positionals import Directories
from runs.recording import RunError

FIFTH, TWENTIETH, BINS = 0.2, 0.05, 20
TAGS = (
    "charts/iteration_return", "charts/episodic_return", "losses/entropy", "plasticity/logit_scale",
    "losses/squared_td_error", "losses/clipfrac", "plasticity/dead_fraction/actor.relu3",
    "plasticity/effective_rank/actor.relu3", "elr/actor.hidden2", "norms/parameter/actor.hidden2",
    "norms/gradient/actor.hidden2",
)  # fmt: skip


@dataclass(frozen=True)
class Args:
    """Tabulate and draw recorded numbers around the changes of the task."""

    directories: Directories
    """run directories"""
    tags: tuple[str, ...] = ()
    """numbers to look at; default: those of agents/ppo_control.py that all runs have"""
    out: Path | None = None
    """picture to write; default: none"""


class Span(NamedTuple):
    """Steps of a visit."""

    begin: int
    end: int

    def part(self, first: float, last: float) -> tuple[float, float]:
        """The steps between two fractions of it."""
        length = self.end - self.begin
        return self.begin + first * length, self.begin + last * length


def spans(run: Recorded) -> list[Span | None]:
    """The visits of a run, in order; None in place of one that is shorter than a tenth of the longest.

    Raises:
        RunError: its task never changes.
    """
    changes = [int(step) for step, _ in run.scalars.get("shift/boundary", ())]
    if not changes:
        raise RunError(f"{run.directory} records no shift/boundary: its task never changes")
    found = [Span(begin, end) for begin, end in pairwise((0, *changes, run.end))]
    longest = max(one.end - one.begin for one in found)
    return [one if one.end - one.begin >= longest / 10 else None for one in found]


def mean_between(curve: Curve, first: float, last: float) -> float:
    """Mean of the values recorded at steps in (first, last]; nan without one."""
    steps, values = curve
    inside = values[(steps > first) & (steps <= last)]
    return float(inside.mean()) if len(inside) else math.nan


def around(run: Recorded, tag: str) -> tuple[float, float, float]:
    """Before, at once, after: see the module's text; nan if a change has no value there."""
    curve, visits = run.curves[tag], spans(run)
    before = [mean_between(curve, *one.part(1 - FIFTH, 1)) for one in visits[:-1] if one]
    at_once = [mean_between(curve, *one.part(0, TWENTIETH)) for one in visits[1:] if one]
    after = [mean_between(curve, *one.part(1 - FIFTH, 1)) for one in visits[1:] if one]
    return mean_or_nan(before), mean_or_nan(at_once), mean_or_nan(after)


def mean_or_nan(values: Sequence[float]) -> float:
    """The mean; nan if one value is nan or there is none."""
    return float(np.mean(values)) if values else math.nan


def aligned(run: Recorded, tag: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middles of windows, in visits since the change, and the mean over the changes of the run's values in each.

    The first half of the windows is the end of the visit before. A window in which no change has a value is nan.

    Raises:
        RunError: a short visit is on one side of each change.
    """
    rows = []
    for old, new in pairwise(spans(run)):
        if old is None or new is None:
            continue
        past, coming = np.linspace(*old.part(0.5, 1), BINS // 2 + 1), np.linspace(*new.part(0, 1), BINS + 1)
        rows.append(np.concatenate([windowed(run.curves[tag], past), windowed(run.curves[tag], coming)]))
    if not rows:
        raise RunError(f"{run.directory}: no change lies between two visits that are long enough to be drawn")
    stacked = np.stack(rows)
    count = (~np.isnan(stacked)).sum(axis=0)
    total = np.nansum(stacked, axis=0)
    edges = np.concatenate([np.linspace(-0.5, 0, BINS // 2 + 1), np.linspace(0, 1, BINS + 1)[1:]])
    means = np.full(len(count), np.nan)
    np.divide(total, count, out=means, where=count > 0)
    return (edges[1:] + edges[:-1]) / 2, means


def chosen(groups: Sequence[RunGroup], asked: Sequence[str]) -> list[str]:
    """The tags that are asked for, or those of TAGS that every run has.

    Raises:
        RunError: a run lacks one that is asked for, or all of TAGS.
    """
    runs = [run for one in groups for run in one.runs]
    for run in runs:
        spans(run)  # a run without changes is refused, whatever its numbers
    for tag in asked:
        for run in runs:
            if tag not in run.curves:
                raise RunError(f"{run.directory} has recorded no {tag}")
    found = list(asked) or [tag for tag in TAGS if all(tag in run.curves for run in runs)]
    if "charts/iteration_return" in found and not asked:
        found = [tag for tag in found if tag != "charts/episodic_return"]  # the same, in another form
    if not found:
        raise RunError("the runs have none of the usual numbers in common: name some with --tags")
    return found


def draw(groups: Sequence[RunGroup], tags: Sequence[str], out: Path) -> None:
    """A panel per number: the mean over changes of each seed faint, their mean strong."""
    figure, panels = style.begin(len(tags))
    looks = style.looks(one.name for one in groups)
    for tag, axes in zip(tags, panels, strict=True):
        for one in groups:
            x, _ = aligned(one.runs[0], tag)
            values = np.stack([aligned(run, tag)[1] for run in one.runs])
            known = ~np.isnan(values).any(axis=0)
            label = f"{one.name}, n = {len(values)}"
            style.draw_arm(
                axes, x[known], values[:, known], looks[one.name], label, student_band(values[:, known]), cut=True
            )
        axes.axvline(0, color="black", linewidth=0.8, linestyle="dotted")
        axes.set_title(tag, fontsize=9)
        axes.set_xlabel("visits since the change", fontsize=8)
    style.legend_below(figure, panels)
    style.save(figure, [out])


def main(args: Args) -> None:
    """Read the runs, print the table, draw the picture."""
    groups = read_groups(args.directories)
    tags = chosen(groups, args.tags)
    rows = []
    for tag in tags:
        for one in groups:
            columns = zip(*(around(run, tag) for run in one.runs), strict=True)
            rows.append([tag, one.name, str(len(one.runs)), *(mean_over_seeds(list(column)) for column in columns)])
    print(markdown(("number", "arm", "n", "before", "at once", "after"), rows))
    if args.out:
        draw(groups, tags, args.out)
        print(f"wrote {args.out}")
