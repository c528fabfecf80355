"""Figure 2 (left) of Lyle et al. 2025 from your own runs, beside the numbers read off the published figure.

    python agents/grokking.py fig2-left-projected-lr0.01-wd0.01        and the other eleven arms
    python -m runs.fig2_left runs/logs/fig2-left-* --out fig2_left.png

Test accuracy over updates, unconstrained and renormalised every 100 updates, for three learning rates and two weight
decays. Lines are the runs given (the mean where an arm has several seeds), circles the published means of 3 seeds. The
table on the terminal has the same numbers. Drawing needs the `plots` extra.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runs.recording import RunError, exit_with_one_line, one_line_errors, read_json, read_scalars
from runs.style import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCE = Path(__file__).parent / "reference" / "fig2_left.csv"
COLOURS = {0.01: "#D55E00", 0.001: "#0072B2", 0.0001: "#009E73"}  # of Okabe and Ito, distinct to the colour-blind
STYLES = {0.01: "-", 1.0: "--"}
TASK = (117, "add", 0.2, 512)
"""p, operation, fraction and batch of the presets."""
Curve = list[tuple[int, float]]


class Arm(NamedTuple):
    """What distinguishes the twelve arms."""

    projected: bool
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Args:
    """Draw Figure 2 (left) and print its table."""

    directories: tuple[Path, ...]
    """run directories of the fig2-left presets"""
    out: Path = Path("fig2_left.png")
    """picture to write"""
    at: tuple[int, ...] = (1_000, 5_000, 10_000, 20_000)
    """updates of the table's columns"""


def arm_of(directory: Path) -> Arm:
    """The arm that a run belongs to.

    Raises:
        RunError: the run is of no fig2-left preset, whose task, network and batch the published numbers are beside.
    """
    config = read_json(directory / "config.json")
    try:
        arm = Arm(config["nap"]["enabled"], config["learning_rate"], config["weight_decay"])
        task = (config["p"], config["operation"], config["train_fraction"], config["batch_size"])
        norms, every = any(config["norm"].values()), config["nap"]["every"]
    except KeyError as error:
        raise RunError(f"{directory} is no run of agents/grokking.py: its config.json has no {error}") from error
    if arm.learning_rate not in COLOURS or arm.weight_decay not in STYLES or norms:
        raise RunError(f"{directory} is no arm of fig2-left: it has {arm} and {'norm' if norms else 'no norm'} layers")
    if task != TASK or (arm.projected and every != 100):
        raise RunError(
            f"{directory} is no arm of fig2-left: p, operation, fraction and batch are {task}, not {TASK}, or it is "
            f"projected every {every} updates, not 100"
        )
    return arm


def read_runs(directories: Sequence[Path]) -> dict[Arm, list[Curve]]:
    """Test accuracy of each run, by arm."""
    if not directories:
        raise RunError("there is nothing to draw: give run directories of the fig2-left presets")
    found: dict[Arm, list[Curve]] = {}
    seeds: set[tuple[Arm, int]] = set()
    for directory in directories:
        curve = read_scalars(directory).get("test/accuracy")
        if not curve:
            raise RunError(f"{directory} has recorded no test/accuracy")
        arm, seed = arm_of(directory), read_json(directory / "config.json")["seed"]
        if (arm, seed) in seeds:
            raise RunError(f"{directory} is another run of seed {seed} of {arm}: leave one out")
        seeds.add((arm, seed))
        found.setdefault(arm, []).append(curve)
    return found


def read_reference(path: Path = REFERENCE) -> dict[Arm, Curve]:
    """The published mean of each arm, as far as it could be read off."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    found: dict[Arm, Curve] = {}
    for row in rows:
        projected = {"renormalised_every_100": True, "unconstrained": False}[row["panel"]]
        arm = Arm(projected, float(row["learning_rate"]), float(row["weight_decay"]))
        found.setdefault(arm, []).append((int(row["step"]), float(row["mean_test_accuracy"])))
    return found


def value_at(curve: Curve, update: int) -> float | None:
    """The last value at or before an update; None before the first, and once the run has ended."""
    before = [value for step, value in curve if step <= update]
    return before[-1] if before and curve[-1][0] >= update else None


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over runs at the updates that all of them have."""
    values = [dict(curve) for curve in curves]
    common = sorted(set(values[0]).intersection(*values[1:]))
    return [(step, sum(v[step] for v in values) / len(values)) for step in common]


def table(runs: Mapping[Arm, Sequence[Curve]], reference: Mapping[Arm, Curve], at: Sequence[int]) -> str:
    """Markdown: in each cell our mean, then the published number where it could be read off."""
    lines = [
        f"| norm | rate | weight decay | n | {' | '.join(f'{update:,}' for update in at)} |",
        f"|---|---|---|---|{'---|' * len(at)}",
    ]
    for arm in sorted(runs, reverse=True):
        cells = []
        for update in at:
            ours = value_at(mean_curve(runs[arm]), update)
            published = dict(reference.get(arm, [])).get(update)
            cells.append(("–" if ours is None else f"{ours:.3f}") + (f" ({published:.3f})" if published else ""))
        name = "renormalised" if arm.projected else "unconstrained"
        lines.append(
            f"| {name} | {arm.learning_rate:g} | {arm.weight_decay:g} | {len(runs[arm])} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def draw(axes: Axes, projected: bool, runs: Mapping[Arm, Sequence[Curve]], reference: Mapping[Arm, Curve]) -> None:
    """One panel."""
    for arm in sorted(runs, reverse=True):
        if arm.projected == projected:
            label = f"rate {arm.learning_rate:g}, decay {arm.weight_decay:g}"
            curve = zip(*mean_curve(runs[arm]), strict=True)
            axes.plot(*curve, color=COLOURS[arm.learning_rate], linestyle=STYLES[arm.weight_decay], label=label)
    for arm, points in reference.items():
        if arm.projected == projected and points:
            filled = COLOURS[arm.learning_rate] if arm.weight_decay == 0.01 else "none"
            axes.scatter(*zip(*points, strict=True), s=28, edgecolors=COLOURS[arm.learning_rate], facecolors=filled)
    axes.set_title("renormalised every 100 updates" if projected else "unconstrained", fontsize=10)
    axes.set_xscale("log")
    axes.set_xlim(10, 1.3e6)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("update")
    axes.set_ylabel("test accuracy")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="upper left",
            fontsize=8,
            title="lines: these runs; circles: published,\nfilled: decay 0.01",
            title_fontsize=8,
        )


def main(args: Args) -> None:
    """Read the runs, print the table, write the picture."""
    runs, reference = read_runs(args.directories), read_reference()
    print(table(runs, reference, args.at))
    figure = canvas(13, 4.6)
    for axes, projected in zip(figure.subplots(1, 2), (False, True), strict=True):
        draw(axes, projected, runs, reference)
    with one_line_errors(f"cannot write {args.out}", also=(OSError,)):
        figure.savefig(args.out, dpi=110)
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    import tyro

    exit_with_one_line(
        lambda: main(
            tyro.cli(
                Args, prog="python -m runs.fig2_left", description=__doc__, config=(tyro.conf.PositionalRequiredArgs,)
            )
        )
    )
