"""How well a detector found the changes of a world: delay, changes missed, false alarms.

    python -m runs.alarms runs/logs/chain-cusum__*

Runs with --shift and --rewarm.trigger cusum are grouped by their exp_name; alarms are the recorded `rewarm/event`. The
first alarm after a change finds it if it comes within a share --within of the visit; every other alarm is false: later
ones, and all before the first change. Columns:

    changes  changes of the world, over all seeds
    found    how many were found
    delay    agent steps from a change to the alarm that found it: median (smallest to largest)
    chance   share of the changes that alarms without any cause would find: the mean of 1 - exp(-rate x window). Their
             rate is that of the false alarms in the steps in which an alarm would have been false; if there were none,
             it is below the 3 / steps that 95 % of such silences allow. found / changes must lie well above it before
             found means anything
    false    false alarms, and agent steps, of those in which an alarm would have been false, per false alarm

Seeds may differ in when their worlds change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runs.arms import read_arms, table
from runs.changes import Visit, visits
from runs.recording import RunError, exit_with_one_line


@dataclass(frozen=True)
class Args:
    """Tabulate what a detector found."""

    directories: tuple[Path, ...]
    """run directories"""
    within: float = 0.5
    """share of a visit in which its first alarm counts as an answer to the change before it"""

    def __post_init__(self) -> None:
        """Refuse a window that is none."""
        if not 0 < self.within <= 1:
            raise ValueError(f"--within {self.within} is a share of a visit: give a number in (0, 1]")


def sort_alarms(visits: Sequence[Visit], alarms: Sequence[int], within: float) -> tuple[list[int], list[int], float]:
    """Delays [agent steps] of the alarms that found a change, steps of the false ones, steps in which one was false.

    An alarm at the very step of a change belongs to the visit before it: it was raised by what came before. After a
    change an alarm is true until the first one, or until the window ends.
    """
    delays, false, exposed = [], [], 0.0
    for k, visit in enumerate(visits):
        here = [step for step in alarms if visit.begin < step <= visit.end]
        length = visit.end - visit.begin
        window = within * length if k else 0.0
        if here and here[0] - visit.begin <= window:
            window = here.pop(0) - visit.begin
            delays.append(window)
        false += here
        exposed += length - window
    return delays, false, exposed


def row(name: str, runs: Sequence[tuple[Sequence[Visit], Sequence[int]]], within: float) -> str:
    """The line of an arm; `runs` holds visits and alarms of each seed."""
    delays: list[int] = []
    windows: list[float] = []
    false, exposed = 0, 0.0
    for visits_, alarms in runs:
        found, others, steps = sort_alarms(visits_, alarms, within)
        delays += found
        windows += [within * (v.end - v.begin) for v in visits_[1:]]
        false, exposed = false + len(others), exposed + steps
    delay = f"{np.median(delays):,.0f} ({min(delays):,} to {max(delays):,})" if delays else "–"
    chance = "–"
    if windows and exposed:
        expected = np.mean([-math.expm1(-(false or 3) / exposed * w) for w in windows])
        chance = f"{expected:.2f}" if false else f"< {expected:.2f}"
    rate = f"{false} ({exposed / false:,.0f})" if false else f"0 (> {exposed:,.0f})"
    return f"| {name} | {len(runs)} | {len(windows)} | {len(delays)} | {delay} | {chance} | {rate} |"


def main(args: Args) -> None:
    """Read the runs, print the table."""
    lines = []
    for arm in read_arms(args.directories):
        if (trigger := arm.config["rewarm"]["trigger"]) != "cusum":
            raise RunError(f"{arm.name} has --rewarm.trigger {trigger}, which detects nothing: leave it out")
        runs = [
            (visits(run, directory), [int(step) for step, _ in run.get("rewarm/event", ())])
            for directory, run in zip(arm.directories, arm.runs, strict=True)
        ]
        lines.append(row(arm.name, runs, args.within))
    table(("arm", "n", "changes", "found", "delay", "chance", "false"), lines)


if __name__ == "__main__":
    import tyro

    exit_with_one_line(
        lambda: main(
            tyro.cli(
                Args, prog="python -m runs.alarms", description=__doc__, config=(tyro.conf.PositionalRequiredArgs,)
            )
        )
    )
