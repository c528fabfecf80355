"""Generalisation gap of warm-started networks over seeds: tables, and a picture of their accuracies.

    python -m runs gaps runs/logs/fig4-* --out gaps.png

Takes runs of `agents/warm_start.py`, grouped by their exp_name. The gap is the accuracy of the fresh network minus that
of the warm-started one, in points, at the last evaluation. The same table has the norm of the weights at the last
switch, when the training set last grew, and at the end. A second table averages, over probe intervals and layers since
the last switch: Delta_C, Delta_A, the share of activations that flipped (Delta_A for layers of any size), and the norm
of the updates. A third one counts alarms, for arms with CUSUM. Intervals are Student's at 95 % over the seeds. The
picture needs the `plots` extra.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runs.analysis.curves import Scalars
from runs.analysis.run_groups import RunGroup, read_groups
from runs.analysis.statistics import student_interval
from runs.analysis.tables import markdown, mean_over_seeds, shown
from runs.figures import style
from runs.positionals import Directories
from runs.recording import RunError

WARM, FRESH = "test/accuracy", "test/accuracy_fresh"


@dataclass(frozen=True)
class Args:
    """Tabulate gaps, draw accuracies."""

    directories: Directories
    """run directories of agents/warm_start.py"""
    out: Path | None = None
    """picture to write; default: none"""


def since(scalars: Scalars, prefix: str, start: int) -> float:
    """Mean over layers and updates > start of all tags that begin with prefix; nan if there is none.

    If the probe did not measure at `start` itself, the first change after it is left out, because it began earlier.
    """
    values: list[float] = []
    for tag, curve in scalars.items():
        if tag.startswith(prefix):
            after = [v for step, v in curve if step > start]
            whole = not prefix.startswith("plasticity/") or any(step == start for step, _ in curve)
            values += after if whole else after[1:]
    return float(np.mean(values)) if values else math.nan


def weight_norm(scalars: Scalars, until: int | None = None) -> float:
    """sqrt(sum ||W_l||^2) over the measured layers at their last measurement up to `until`; nan if there is none."""
    curves = [curve for tag, curve in scalars.items() if tag.startswith("norms/parameter/")]
    measured = [[v for step, v in curve if until is None or step <= until] for curve in curves]
    if not measured or not all(measured):
        return math.nan
    return math.sqrt(sum(values[-1] ** 2 for values in measured))


def last_switch(run: Scalars) -> int:
    """Update of the last switch (when the training set last grew)."""
    return int(run["shift/boundary"][-1][0])


def gap_row(arm: RunGroup) -> list[str]:
    """An arm's row of the table of gaps."""

    def percent(tag: str) -> str:
        return f"{100 * np.mean([run.scalars[tag][-1][1] for run in arm.runs]):.2f}"

    gap, half = student_interval([run.scalars["test/gap"][-1][1] for run in arm.runs])
    width = "" if math.isnan(half) else f" ± {half:.2f}"
    at_switch = float(np.mean([weight_norm(run.scalars, last_switch(run.scalars)) for run in arm.runs]))
    at_end = float(np.mean([weight_norm(run.scalars) for run in arm.runs]))
    accuracies = percent(WARM), percent(FRESH), f"{gap:.2f}{width}"
    return [arm.name, str(len(arm.runs)), *accuracies, shown(at_switch), shown(at_end)]


def change_row(arm: RunGroup) -> list[str]:
    """An arm's row of the table of what moved since the last switch."""
    prefixes = ("plasticity/delta_c/", "plasticity/delta_a/", "plasticity/flipped_fraction/", "norms/update/")
    means = [
        mean_over_seeds([since(run.scalars, prefix, last_switch(run.scalars)) for run in arm.runs])
        for prefix in prefixes
    ]
    return [arm.name, str(len(arm.runs)), *means]


def has_detector(arm: RunGroup) -> bool:
    """Whether CUSUM watched the loss."""
    return any("rewarm/statistic" in run.scalars for run in arm.runs)


def alarm_row(arm: RunGroup) -> list[str]:
    """An arm's row of the table of alarms: the first alarm after each switch is right, any other is false."""
    delays, false, missed = [], 0, 0
    for run in arm.runs:
        alarms = [step for step, _ in run.scalars.get("rewarm/event", ())]
        switches = [step for step, _ in run.scalars["shift/boundary"]]
        for switch, following in zip(switches, [*switches[1:], math.inf], strict=True):
            after = [step for step in alarms if switch < step <= following]
            delays += [after[0] - switch] if after else []
            missed += not after
            false += max(0, len(after) - 1)
        false += sum(step <= switches[0] for step in alarms)
    spread = f"{min(delays)} to {max(delays)}" if delays else "–"
    return [arm.name, str(len(arm.runs)), spread, str(missed), str(false)]


def read(directories: Sequence[Path]) -> list[RunGroup]:
    """The runs by arm.

    Raises:
        RunError: as `read_groups`, or a run lacks the gap, an accuracy, or the switches.
    """
    arms = read_groups(directories)
    for arm in arms:
        for run in arm.runs:
            for tag in ("test/gap", WARM, FRESH, "shift/boundary"):
                if tag not in run.scalars:
                    raise RunError(
                        f"{run.directory} has recorded no {tag}: it has no control, or is not a run of warm_start.py"
                    )
    return arms


def draw(arms: Sequence[RunGroup], out: Path) -> None:
    """One panel per arm: accuracies of the warm and the fresh network, seeds faint, their mean strong.

    An arm with CUSUM has a second panel with the statistic of each seed, its alarms and the threshold.
    """
    watched = [arm for arm in arms if has_detector(arm)]
    figure, panels = style.begin(len(arms) + len(watched))
    looks = style.looks(["fresh", "warm"])
    lowest = min(v for arm in arms for run in arm.runs for v in run.curves[WARM][1])
    highest = max(v for arm in arms for run in arm.runs for tag in (WARM, FRESH) for v in run.curves[tag][1])
    for axes, arm in zip(panels, arms, strict=False):
        for tag, label in ((WARM, "warm"), (FRESH, "fresh")):
            values = np.array([run.curves[tag][1] for run in arm.runs])
            style.draw_arm(axes, arm.runs[0].curves[tag][0], values, looks[label], label)
        axes.set_ylim(lowest - 0.02, highest + 0.02)
        axes.set_ylabel(WARM, fontsize=8)
    for axes, arm in zip(panels[len(arms) :], watched, strict=True):
        for run in arm.runs:
            axes.plot(*run.curves["rewarm/statistic"], color="0.4", alpha=0.5, linewidth=0.8)
        alarms = [step for run in arm.runs for step, _ in run.scalars.get("rewarm/event", ())]
        threshold = arm.config["rewarm.threshold"]
        axes.axhline(threshold, color=style.COLOURS[2], linewidth=0.8, label="threshold")
        axes.plot(alarms, [threshold] * len(alarms), "v", color=style.COLOURS[3], label="alarm")
        axes.set_ylabel("CUSUM statistic", fontsize=8)
    for axes, arm in zip(panels, [*arms, *watched], strict=True):
        axes.set_title(f"{arm.name}, n = {len(arm.runs)}", fontsize=9)
        axes.set_xlabel("update", fontsize=8)
        for step, _ in arm.runs[0].scalars["shift/boundary"]:
            axes.axvline(step, color="0.6", linewidth=0.8, linestyle=":")
    style.legend_below(figure, panels)
    style.save(figure, [out])


def main(args: Args) -> None:
    """Read the runs, print the tables, draw the picture."""
    arms = read(args.directories)
    heads = ("arm", "n", "warm, %", "fresh, %", "gap, points", "norm at switch", "at end")
    print(markdown(heads, [gap_row(arm) for arm in arms]))
    heads = ("arm, since the switch", "n", "Δ_C", "Δ_A", "flipped", "update norm")
    print(markdown(heads, [change_row(arm) for arm in arms]))
    if watched := [arm for arm in arms if has_detector(arm)]:
        heads = ("arm", "n", "updates from a switch to the first alarm", "switches without", "false alarms")
        print(markdown(heads, [alarm_row(arm) for arm in watched]))
    if args.out:
        draw(arms, args.out)
        print(f"wrote {args.out}")
