"""Generalisation gap of warm-started networks over seeds: a table, and a picture of their accuracies.

    python -m runs.gaps runs/logs/fig4-* --out gaps.png

Runs of `agents/warm_start.py` are grouped by their exp_name. The gap is the accuracy of the fresh network minus that of
the warm one, in points, at the last evaluation; beside it stands the norm of the weights at the last switch and at the
end. A second table averages what moved since the last switch, over probe intervals and layers: Delta_C, Delta_A, the
share of activations that flipped (Delta_A for layers of any size), and the norm of the updates. A third, for arms with
CUSUM, counts its alarms. Intervals are Student's at 95 %, over the seeds. The picture needs the `plots` extra.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runs.arms import Scalars, estimate, interval, read_arms, shown, table
from runs.recording import RunError, exit_with_one_line, one_line_errors
from runs.style import canvas

_CURVES = {"test/accuracy": ("warm", "#D55E00"), "test/accuracy_fresh": ("fresh", "#0072B2")}


@dataclass(frozen=True)
class Args:
    """Tabulate gaps, draw accuracies."""

    directories: tuple[Path, ...]
    """run directories of agents/warm_start.py"""
    out: Path | None = None
    """picture to write; none by default"""


def since(scalars: Scalars, prefix: str, start: int) -> float:
    """Mean over layers and updates > start of all tags that begin with prefix; nan if there is none.

    The first change after `start` is left out if the probe did not measure at `start` itself: it would hold what
    happened before.
    """
    found: list[float] = []
    for tag, curve in scalars.items():
        if tag.startswith(prefix):
            after = [v for step, v in curve if step > start]
            whole = not prefix.startswith("plasticity/") or any(step == start for step, _ in curve)
            found += after if whole else after[1:]
    return float(np.mean(found)) if found else math.nan


def weight_norm(scalars: Scalars, until: int | None = None) -> float:
    """sqrt(sum ||W_l||^2) over the measured layers, at the last measurement not after `until`; nan before the first."""
    curves = [curve for tag, curve in scalars.items() if tag.startswith("norms/parameter/")]
    measured = [[v for step, v in curve if until is None or step <= until] for curve in curves]
    if not measured or not all(measured):
        return math.nan
    return math.sqrt(sum(values[-1] ** 2 for values in measured))


def last_switch(run: Scalars) -> int:
    """Update of the last switch."""
    return int(run["shift/boundary"][-1][0])


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seed."""

    name: str
    runs: Sequence[Scalars]
    config: Mapping[str, Any]
    """of the first run"""

    def gap_row(self) -> str:
        """This arm's line of the table of gaps."""

        def percent(tag: str) -> str:
            return f"{100 * np.mean([run[tag][-1][1] for run in self.runs]):.2f}"

        gap, half = interval([run["test/gap"][-1][1] for run in self.runs])
        width = "" if math.isnan(half) else f" ± {half:.2f}"
        norms = [
            np.mean([weight_norm(run, last_switch(run)) for run in self.runs]),
            np.mean([weight_norm(run) for run in self.runs]),
        ]
        accuracies = f"{percent('test/accuracy')} | {percent('test/accuracy_fresh')} | {gap:.2f}{width}"
        return f"| {self.name} | {len(self.runs)} | {accuracies} | {' | '.join(map(shown, norms))} |"

    def change_row(self) -> str:
        """This arm's line of the table of what moved since the last switch."""
        prefixes = ("plasticity/delta_c/", "plasticity/delta_a/", "plasticity/flipped_fraction/", "norms/update/")
        means = [estimate([since(run, prefix, last_switch(run)) for run in self.runs]) for prefix in prefixes]
        return f"| {self.name} | {len(self.runs)} | {' | '.join(means)} |"

    def has_detector(self) -> bool:
        """Whether CUSUM watched the loss."""
        return any("rewarm/statistic" in run for run in self.runs)

    def alarm_row(self) -> str:
        """This arm's line of the table of alarms: the first after each switch is right, any other is false."""
        delays, false, missed = [], 0, 0
        for run in self.runs:
            alarms = [step for step, _ in run.get("rewarm/event", [])]
            switches = [step for step, _ in run["shift/boundary"]]
            for switch, following in zip(switches, [*switches[1:], math.inf], strict=True):
                after = [step for step in alarms if switch < step <= following]
                delays += [after[0] - switch] if after else []
                missed += not after
                false += max(0, len(after) - 1)
            false += sum(step <= switches[0] for step in alarms)
        spread = f"{min(delays)} to {max(delays)}" if delays else "–"
        return f"| {self.name} | {len(self.runs)} | {spread} | {missed} | {false} |"


def read(directories: Sequence[Path]) -> list[Arm]:
    """The runs by arm.

    Raises:
        RunError: as `runs.arms.read_arms`, or a run has no gap.
    """
    arms = read_arms(directories)
    for arm in arms:
        for directory, run in zip(arm.directories, arm.runs, strict=True):
            if "test/gap" not in run:
                raise RunError(
                    f"{directory} has recorded no test/gap: it has no control, or is no run of warm_start.py"
                )
    return [Arm(arm.name, arm.runs, arm.config) for arm in arms]


def draw(arms: Sequence[Arm], out: Path) -> None:
    """One panel per arm: accuracies of the warm and the fresh network, seeds thin, their mean thick.

    An arm with CUSUM has a second panel with the statistic of each seed, its alarms and the threshold.
    """
    watched = [arm for arm in arms if arm.has_detector()]
    count = len(arms) + len(watched)
    columns = min(3, count)
    rows = -(-count // columns)
    figure = canvas(4.6 * columns, 3.4 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    lowest = min(v for arm in arms for run in arm.runs for _, v in run["test/accuracy"])
    highest = max(v for arm in arms for run in arm.runs for tag in _CURVES for _, v in run[tag])
    for axes, arm in zip(panels, arms, strict=False):
        for tag, (label, colour) in _CURVES.items():
            for run in arm.runs:
                axes.plot(*zip(*run[tag], strict=True), color=colour, alpha=0.3, linewidth=0.8)
            updates = [step for step, _ in arm.runs[0][tag]]
            mean = np.mean([[v for _, v in run[tag]] for run in arm.runs], axis=0)
            axes.plot(updates, mean, color=colour, label=label)
        axes.set_ylim(lowest - 0.02, highest + 0.02)
        axes.set_ylabel("test accuracy")
        axes.set_title(f"{arm.name}, n = {len(arm.runs)}", fontsize=10)
    for axes, arm in zip(panels[len(arms) :], watched, strict=False):
        for run in arm.runs:
            axes.plot(*zip(*run["rewarm/statistic"], strict=True), color="0.4", alpha=0.5, linewidth=0.8)
        alarms = [step for run in arm.runs for step, _ in run.get("rewarm/event", [])]
        threshold = arm.config["rewarm"]["threshold"]
        axes.axhline(threshold, color="#0072B2", linewidth=0.8, label="threshold")
        axes.plot(alarms, [threshold] * len(alarms), "v", color="#D55E00", label="alarm")
        axes.set_ylabel("CUSUM statistic")
        axes.set_title(f"{arm.name}, n = {len(arm.runs)}", fontsize=10)
    for axes, arm in zip(panels, [*arms, *watched], strict=False):
        for step, _ in arm.runs[0]["shift/boundary"]:
            axes.axvline(step, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_xlabel("update")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    for axes in panels[count:]:
        axes.set_visible(False)
    with one_line_errors(f"cannot write {out}", also=(OSError,)):
        figure.savefig(out, dpi=110)


def main(args: Args) -> None:
    """Read the runs, print the tables, draw the picture."""
    arms = read(args.directories)
    gaps = ("arm", "n", "warm, %", "fresh, %", "gap, points", "norm at switch", "at end")
    table(gaps, [arm.gap_row() for arm in arms])
    table(("arm, since the switch", "n", "Δ_C", "Δ_A", "flipped", "update norm"), [arm.change_row() for arm in arms])
    if watched := [arm for arm in arms if arm.has_detector()]:
        alarms = ("arm", "n", "updates from a switch to the first alarm", "switches without", "false alarms")
        table(alarms, [arm.alarm_row() for arm in watched])
    if args.out:
        draw(arms, args.out)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    import tyro

    exit_with_one_line(
        lambda: main(
            tyro.cli(Args, prog="python -m runs.gaps", description=__doc__, config=(tyro.conf.PositionalRequiredArgs,))
        )
    )
