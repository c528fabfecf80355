"""Figure 2 (left) of Lyle et al. 2025 from your own runs, next to the numbers read off the published figure.

    python agents/grokking.py fig2-left-projected-lr0.01-wd0.01        and the other eleven settings
    python -m runs fig2-left runs/logs/fig2-left-* --out fig2_left.png

Test accuracy over updates, unconstrained and renormalised every 100 updates, for three learning rates and two weight
decays. Lines are the given runs (their mean if there are several seeds), circles the published means of 3 seeds. The
table on the terminal has the same numbers. Drawing needs the `plots` extra.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from runs.analysis.tables import markdown
from runs.figures import style
from runs.positionals import Directories
from runs.recording import RunError, read_json, read_scalars

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "fig2_left.csv"
COLOURS = dict(zip((0.001, 0.01, 0.0001), style.COLOURS, strict=False))
"""by learning rate"""
DASHES = dict(zip((0.01, 1.0), style.DASHES, strict=False))
"""by weight decay"""
TASK = (117, "add", 0.2, 512)
"""p, operation, training fraction and batch size of the presets"""
Points = list[tuple[int, float]]
"""(update, test accuracy)"""


class Setting(NamedTuple):
    """What distinguishes the twelve settings of the figure."""

    projected: bool
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Args:
    """Draw Figure 2 (left) and print its table."""

    directories: Directories
    """run directories of the fig2-left presets"""
    out: Path = Path("fig2_left.png")
    """picture to write"""
    at: tuple[int, ...] = (1_000, 5_000, 10_000, 20_000)
    """updates of the table's columns"""


def setting_of(directory: Path) -> Setting:
    """The setting that a run belongs to.

    Raises:
        RunError: the run has another task, network, batch or projection than the fig2-left presets, so the published
            numbers do not apply to it.
    """
    config = read_json(directory / "config.json")
    try:
        setting = Setting(config["nap"]["enabled"], config["learning_rate"], config["weight_decay"])
        task = (config["p"], config["operation"], config["train_fraction"], config["batch_size"])
        norms, every = any(config["norm"].values()), config["nap"]["every"]
    except KeyError as error:
        raise RunError(f"{directory} is not a run of agents/grokking.py: its config.json has no {error}") from error
    if setting.learning_rate not in COLOURS or setting.weight_decay not in DASHES or norms:
        layers = "norm" if norms else "no norm"
        raise RunError(f"{directory} is not a setting of fig2-left: it has {setting} and {layers} layers")
    if task != TASK or (setting.projected and every != 100):
        raise RunError(
            f"{directory} is not a setting of fig2-left: p, operation, training fraction and batch size are {task}, "
            f"not {TASK}, or it is projected every {every} updates, not 100"
        )
    return setting


def read_runs(directories: Sequence[Path]) -> dict[Setting, list[Points]]:
    """Test accuracy of each run, by setting."""
    if not directories:
        raise RunError("there are no runs to draw: give run directories of the fig2-left presets")
    by_setting: dict[Setting, list[Points]] = {}
    seeds: set[tuple[Setting, int]] = set()
    for directory in directories:
        if not (directory / "scalars.csv").exists():
            raise RunError(f"{directory} is not a run of agents/grokking.py: it has no scalars.csv")
        curve = read_scalars(directory).get("test/accuracy")
        if not curve:
            raise RunError(f"{directory} has recorded no test/accuracy")
        setting, seed = setting_of(directory), read_json(directory / "config.json")["seed"]
        if (setting, seed) in seeds:
            raise RunError(f"{directory} is another run of seed {seed} of {setting}: leave one out")
        seeds.add((setting, seed))
        by_setting.setdefault(setting, []).append(curve)
    return by_setting


def read_reference(path: Path = REFERENCE) -> dict[Setting, Points]:
    """The published mean of each setting, as far as it could be read off the figure."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    by_setting: dict[Setting, Points] = {}
    for row in rows:
        projected = {"renormalised_every_100": True, "unconstrained": False}[row["panel"]]
        setting = Setting(projected, float(row["learning_rate"]), float(row["weight_decay"]))
        by_setting.setdefault(setting, []).append((int(row["step"]), float(row["mean_test_accuracy"])))
    return by_setting


def value_at(curve: Points, update: int) -> float | None:
    """The last value at or before an update; None before the first, and once the run has ended."""
    before = [value for step, value in curve if step <= update]
    return before[-1] if before and curve[-1][0] >= update else None


def mean_curve(curves: Sequence[Points]) -> Points:
    """Mean over runs at the updates that all of them have."""
    values = [dict(curve) for curve in curves]
    common = sorted(set(values[0]).intersection(*values[1:]))
    return [(step, sum(v[step] for v in values) / len(values)) for step in common]


def table(runs: Mapping[Setting, Sequence[Points]], reference: Mapping[Setting, Points], at: Sequence[int]) -> str:
    """Markdown: each cell has our mean, then the published number if it could be read off."""
    rows = []
    for setting in sorted(runs, reverse=True):
        cells = []
        for update in at:
            ours = value_at(mean_curve(runs[setting]), update)
            published = dict(reference.get(setting, [])).get(update)
            cells.append(("–" if ours is None else f"{ours:.3f}") + (f" ({published:.3f})" if published else ""))
        name = "renormalised" if setting.projected else "unconstrained"
        rows.append([name, f"{setting.learning_rate:g}", f"{setting.weight_decay:g}", str(len(runs[setting])), *cells])
    return markdown(["norm", "rate", "weight decay", "n", *(f"{update:,}" for update in at)], rows)


def draw(
    axes: style.Axes,
    projected: bool,
    runs: Mapping[Setting, Sequence[Points]],
    reference: Mapping[Setting, Points],
) -> None:
    """One panel."""
    for setting in sorted(runs, reverse=True):
        if setting.projected == projected:
            label = f"rate {setting.learning_rate:g}, decay {setting.weight_decay:g}"
            curve = zip(*mean_curve(runs[setting]), strict=True)
            dashes = DASHES[setting.weight_decay]
            axes.plot(*curve, color=COLOURS[setting.learning_rate], linestyle=dashes, label=label)
    for setting, points in reference.items():
        if setting.projected == projected and points:
            colour = COLOURS[setting.learning_rate]
            filled = colour if setting.weight_decay == 0.01 else "none"
            axes.scatter(*zip(*points, strict=True), s=28, edgecolors=colour, facecolors=filled)
    axes.set_title("renormalised every 100 updates" if projected else "unconstrained", fontsize=10)
    axes.set_xscale("log")
    axes.set_xlim(10, 1.3e6)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("update")
    axes.set_ylabel("test accuracy")
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
    figure, panels = style.begin(2, width=6.5, height=4.6)
    for axes, projected in zip(panels, (False, True), strict=True):
        draw(axes, projected, runs, reference)
    style.save(figure, [args.out])
    print(f"wrote {args.out}")
