"""How well CUSUM detected the changes of the task: delay, missed changes, false alarms.

    python -m runs alarms runs/logs/chain-cusum__*

Takes runs with --shift and --rewarm.trigger cusum, grouped by their exp_name. Alarms are the recorded `rewarm/event`.
The first alarm after a change detects it if it comes within a share --within of the visit (the time until the next
change). Every other alarm is false: later ones, and all before the first change. Columns:

    changes  changes of the task, over all seeds
    found    changes that were detected
    delay    agent steps from a change to the alarm that detected it: median (smallest to largest)
    chance   share of the changes that alarms without any cause would detect: the mean of 1 - exp(-rate x window). The
             rate is that of the false alarms over the steps in which an alarm would have been false; if there were
             none, it is below 3 / steps, the bound at 95 % confidence. found / changes means something only if it is
             well above chance
    false    false alarms, and in brackets the steps in which an alarm would have been false, per false alarm

Seeds may differ in when their task changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runs.analysis.changes import Visit, visits
from runs.analysis.run_groups import read_groups
from runs.analysis.tables import markdown
from runs.positionals import Directories
from runs.recording import RunError


@dataclass(frozen=True)
class Args:
    """Tabulate what a detector found."""

    directories: Directories
    """run directories"""
    within: float = 0.5
    """share of a visit in which its first alarm counts as a detection of the change before it"""

    def __post_init__(self) -> None:
        """Refuse a share out of range."""
        if not 0 < self.within <= 1:
            raise ValueError(f"--within must be in (0, 1] (a share of a visit), got {self.within}")


def sort_alarms(visits: Sequence[Visit], alarms: Sequence[int], within: float) -> tuple[list[int], list[int], float]:
    """Delays [agent steps] of the alarms that detected a change, steps of the false alarms, and the number of steps in
    which an alarm would have been false.

    An alarm at the very step of a change belongs to the visit before: its cause came earlier. After a change the first
    alarm within the window is a detection.
    """
    delays, false, exposed = [], [], 0.0
    for k, visit in enumerate(visits):
        raised = [step for step in alarms if visit.begin < step <= visit.end]
        length = visit.end - visit.begin
        window = within * length if k else 0.0
        if raised and raised[0] - visit.begin <= window:
            window = raised.pop(0) - visit.begin
            delays.append(window)
        false += raised
        exposed += length - window
    return delays, false, exposed


def row(name: str, runs: Sequence[tuple[Sequence[Visit], Sequence[int]]], within: float) -> list[str]:
    """The row of an arm; `runs` holds visits and alarms of each seed."""
    delays: list[int] = []
    windows: list[float] = []
    false, exposed = 0, 0.0
    for visits_, alarms in runs:
        detected, others, steps = sort_alarms(visits_, alarms, within)
        delays += detected
        windows += [within * (v.end - v.begin) for v in visits_[1:]]
        false, exposed = false + len(others), exposed + steps
    delay = f"{np.median(delays):,.0f} ({min(delays):,} to {max(delays):,})" if delays else "–"
    chance = "–"
    if windows and exposed:
        expected = np.mean([-math.expm1(-(false or 3) / exposed * w) for w in windows])
        chance = f"{expected:.2f}" if false else f"< {expected:.2f}"
    rate = f"{false} ({exposed / false:,.0f})" if false else f"0 (> {exposed:,.0f})"
    return [name, str(len(runs)), str(len(windows)), str(len(delays)), delay, chance, rate]


def main(args: Args) -> None:
    """Read the runs, print the table."""
    table = []
    for group in read_groups(args.directories):
        if (trigger := group.config.get("rewarm.trigger")) != "cusum":
            has = f"has --rewarm.trigger {trigger}, which detects nothing" if trigger else "has no --rewarm.trigger"
            raise RunError(f"{group.name} {has}: leave it out")
        runs = [(visits(run), [int(step) for step, _ in run.scalars.get("rewarm/event", ())]) for run in group.runs]
        table.append(row(group.name, runs, args.within))
    print(markdown(("arm", "n", "changes", "found", "delay", "chance", "false"), table))
