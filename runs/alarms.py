"""How well a detector found the changes of a world: delay, changes missed, false alarms.

    python -m runs.alarms runs/logs/chain-cusum__*

Runs with --shift and --rewarm.trigger cusum are grouped by their exp_name; alarms are the recorded `rewarm/event`. The
first alarm after a change finds it if it comes within a share --within of the visit; every other alarm is false: later
ones, and all before the first change. Columns:

    changes  changes of the world, over all seeds
    found    how many were found
    delay    agent steps from a change to the alarm that found it: median (smallest to largest)
    chance   share of the changes that false alarms alone would have found at the arm's rate: 1 - exp(-rate x window).
             found / changes must lie well above it before found means anything
    false    false alarms, and agent steps per false alarm
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runs.arms import table
from runs.changes import Visit, read
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


def sort_alarms(visits: Sequence[Visit], alarms: Sequence[int], within: float) -> tuple[list[int], list[int]]:
    """Delays [agent steps] of the alarms that found a change, and the steps of the false ones.

    An alarm at the very step of a change belongs to the visit before it: it was raised by what came before.
    """
    delays, false = [], []
    for k, visit in enumerate(visits):
        here = [step for step in alarms if visit.begin < step <= visit.end]
        if k and here and here[0] - visit.begin <= within * (visit.end - visit.begin):
            delays.append(here.pop(0) - visit.begin)
        false += here
    return delays, false


def row(name: str, runs: Sequence[tuple[Sequence[Visit], Sequence[int]]], within: float) -> str:
    """The line of an arm; `runs` holds visits and alarms of each seed."""
    delays: list[int] = []
    false: list[int] = []
    for visits, alarms in runs:
        found, others = sort_alarms(visits, alarms, within)
        delays, false = delays + found, false + others
    changes = sum(len(visits) - 1 for visits, _ in runs)
    steps = sum(visits[-1].end for visits, _ in runs)
    windows = [within * (v.end - v.begin) for visits, _ in runs for v in visits[1:]]
    chance = np.mean([1 - math.exp(-len(false) / steps * window) for window in windows])
    delay = f"{np.median(delays):,.0f} ({min(delays):,} to {max(delays):,})" if delays else "–"
    rate = f"{len(false)} ({steps / len(false):,.0f})" if false else f"0 (> {steps:,})"
    return f"| {name} | {len(runs)} | {changes} | {len(delays)} | {delay} | {chance:.2f} | {rate} |"


def main(args: Args) -> None:
    """Read the runs, print the table."""
    lines = []
    for name, (arm, by_seed) in read(args.directories).items():
        if (trigger := arm.config["rewarm"]["trigger"]) != "cusum":
            raise RunError(f"{name} has --rewarm.trigger {trigger}, which detects nothing: leave it out")
        events = [[int(step) for step, _ in run.get("rewarm/event", ())] for run in arm.runs]
        lines.append(row(name, [(by_seed[s], e) for s, e in zip(arm.seeds, events, strict=True)], args.within))
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
