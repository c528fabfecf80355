"""Where the task changed, and how often arms were re-warmed, as lines of a TensorBoard page of arms.

TensorBoard draws no vertical lines. The changes are a run of their own, with its own colour, that is in every chart:
its line lies at the lowest value of the chart, with a peak up to the highest value at each change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from runs.analysis.curves import Curve
from runs.recording.glance import REWARMED

Floats: TypeAlias = NDArray[np.float64]

EVENTS = ("shift/boundary", "rewarm/event")
"""what is drawn from moments"""
NAME = "task changes"
MOST = 200
"""changes that are marked: TensorBoard shows a thousand points of a line, and so many changes are a solid block"""


@dataclass(frozen=True)
class Marks:
    """The changes that are marked on a page."""

    steps: Mapping[str, Sequence[int]]
    """by the name of the TensorBoard run that marks them"""
    notes: Sequence[str] = ()
    """what is not marked, a line each"""


NONE = Marks({})


def marks(arms: Mapping[str, Sequence[Mapping[str, Curve]]]) -> Marks:
    """The changes of the arms of a page, once if all have the same; otherwise for each arm.

    Args:
        arms: curves of the seeds, by the arm's name. Arms whose task never changes are left out, and so, with a note,
            are those whose seeds change at different steps, or too often.
    """
    steps: dict[str, Sequence[int]] = {}
    notes = []
    for arm, seeds in arms.items():
        longest = max((_changes(run) for run in seeds), key=len)
        if not longest:
            continue
        if len(longest) > MOST:
            notes.append(f"{arm}: its {len(longest):,} changes of the task are not marked, they are more than {MOST}")
        elif any(_changes(run) != [step for step in longest if step <= _end(run)] for run in seeds):
            notes.append(f"{arm}: the changes of its task are not marked, its seeds have them at different steps")
        else:
            steps[arm] = longest
    common: Sequence[int] = max(steps.values(), key=len, default=[])
    if all(list(its) == [step for step in common if step <= max(map(_end, arms[arm]))] for arm, its in steps.items()):
        return Marks({NAME: common} if common else {}, notes)
    return Marks({f"{NAME} of {arm}": its for arm, its in steps.items()}, notes)


def unmarked(pages: Mapping[str, Marks]) -> list[str]:
    """The notes of all pages, with the task where there are several."""
    return [f"{task}: {note}" if task else note for task, its in pages.items() for note in its.notes]


def _changes(run: Mapping[str, Curve]) -> list[int]:
    return run["shift/boundary"][0].tolist() if "shift/boundary" in run else []


def _end(run: Mapping[str, Curve]) -> int:
    return max(int(steps.max(initial=0)) for steps, _ in run.values())


def peaks(changes: Sequence[int], end: float, low: float, high: float) -> tuple[Floats, Floats]:
    """A line from step 0 to `end` that is high at the changes, and low one step before and after each, and at the ends.

    TensorBoard shows one value of a step, so a line cannot be quite vertical.
    """
    x = np.unique(np.array([0, end, *(step + d for step in changes for d in (-1, 0, 1))], dtype=np.float64))
    x = x[(x >= 0) & (x <= end)]
    return x, np.where(np.isin(x, changes), high, low).astype(np.float64)


def rewarmed(seeds: Sequence[Mapping[str, Curve]]) -> dict[str, tuple[Floats, Floats]]:
    """How often each seed has been re-warmed so far, x [points] and values [seeds, points], by its tag; empty if none
    was. The line steps at each re-warming of a seed.
    """
    found = [run["rewarm/event"][0] if "rewarm/event" in run else np.empty(0, dtype=np.int64) for run in seeds]
    end = min(map(_end, seeds))
    steps = np.unique(np.concatenate(found))
    steps = steps[steps <= end]
    if not len(steps):
        return {}
    x = np.unique([0, *np.maximum(steps - 1, 0), *steps, end])
    counts = np.stack([np.searchsorted(np.sort(one), x, side="right") for one in found])
    return {REWARMED: (x.astype(np.float64), counts.astype(np.float64))}
