"""Draw scalars of finished or running runs over their steps: one panel per tag, one curve per run.

RUN is a run directory, or one with TensorBoard event files of another program. Runs of several arms are coloured by
their exp_name.

    python -m runs plot runs/logs/RUN_A runs/logs/RUN_B --tags charts/episodic_return elr/hidden --out curves.png

Without --tags it draws the return or the accuracy, the learning rate, and the realised ELR and the flipped features of
the last layer that has them. Episodic returns are averaged over windows of steps; other tags are drawn as recorded.
Needs the `plots` extra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runs.analysis.curves import Curve, is_ours, read_drawn, windowed, with_history
from runs.figures import style
from runs.positionals import Directories
from runs.recording import RunError

SCORES = ("charts/episodic_return", "test/accuracy", "rollout/ep_rew_mean")
RATES = ("charts/learning_rate", "train/learning_rate")
"""the last of each is Stable-Baselines3's"""
LAYERED = ("elr/", "plasticity/flipped_fraction/")
WINDOWS = 50
LOGARITHMIC = (*RATES, "elr/", "elr_nominal/")
EMPTY: Curve = (np.empty(0, dtype=np.int64), np.empty(0))


@dataclass(frozen=True)
class Args:
    """Draw scalars of runs."""

    directories: Directories
    """run directories; curves are labelled with exp_name and seed, and the directory where these are not unique; one
    colour per arm if there are several"""
    tags: tuple[str, ...] = ()
    """one panel each; default: see above"""
    out: Path = Path("curves.png")
    """picture to write"""
    window: int = 0
    """steps over which episodic returns are averaged; 0: a fiftieth of the longest run"""
    until: int | None = None
    """ignore everything after this step"""
    history: bool = False
    """draw a branch (--branch of the scripts) behind its parent's curve up to the branch point"""

    def __post_init__(self) -> None:
        """Refuse values that draw nothing."""
        if self.window < 0:
            raise ValueError(f"--window must be at least 1 step, or 0 for a fiftieth of the run, got {self.window}")


def usual_tags(tables: Sequence[Mapping[str, Curve]]) -> tuple[str, ...]:
    """What is drawn without --tags: of each kind the first score, and the last layer, that a run has recorded."""
    recorded = list(dict.fromkeys(tag for table in tables for tag in table))
    scores = [tag for tag in SCORES if tag in recorded][:1]
    rate = [tag for tag in RATES if tag in recorded][:1]
    layers = [[tag for tag in recorded if tag.startswith(prefix)][-1:] for prefix in LAYERED]
    return (*scores, *rate, *(tag for one in layers for tag in one))


def windowed_means(curve: Curve, window: int) -> Curve:
    """Means over the windows (0, window], (window, 2 window], ... of steps; empty windows are left out.

    They are placed at the ends of the windows, the last at the last step. What was recorded at step 0 is a separate
    window.
    """
    last = int(curve[0].max(initial=0))
    edges = np.arange(-window, last + window, window, dtype=np.float64)
    means = windowed(curve, edges)
    known = ~np.isnan(means)
    return np.minimum(edges[1:], last)[known].astype(np.int64), means[known]


def labels(directories: Sequence[Path], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """exp_name and seed from each configuration; with the directory where they are not unique."""
    short = [
        str(c.get("exp_name", d.name)) + (f", seed {c['seed']}" if "seed" in c else "")
        for c, d in zip(configs, directories, strict=True)
    ]
    return [f"{s} ({d})" if short.count(s) > 1 else s for s, d in zip(short, directories, strict=True)]


def by_arm(names: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each curve is called and coloured by: several runs of several arms by their exp_name, with all its seeds, as
    "nap, seeds 1, 2". Otherwise each run by its own label.
    """
    arms = [str(c.get("exp_name", name)) for c, name in zip(configs, names, strict=True)]
    if not 1 < len(set(arms)) < len(names):
        return list(names)
    seeds = {arm: [str(c.get("seed", "?")) for c, its in zip(configs, arms, strict=True) if its == arm] for arm in arms}
    return [
        f"{arm}, seeds {', '.join(seeds[arm])}" if len(seeds[arm]) > 1 else name
        for arm, name in zip(arms, names, strict=True)
    ]


def curves(
    directory: Path, table: Mapping[str, Curve], tags: Sequence[str], window: int, until: int | None
) -> list[Curve]:
    """The run's curve of each tag.

    Raises:
        RunError: the run recorded none of the tags. A single missing tag is an empty curve.
    """
    if not any(tag in table for tag in tags):
        raise RunError(f"{directory} holds none of {', '.join(tags)}; it holds {', '.join(sorted(table)) or 'nothing'}")
    drawn = []
    for tag in tags:
        steps, values = table.get(tag, EMPTY)
        if until is not None:
            steps, values = steps[steps <= until], values[steps <= until]
        drawn.append(windowed_means((steps, values), window) if tag == "charts/episodic_return" else (steps, values))
    return drawn


def draw(axes: style.Axes, tag: str, named: Sequence[tuple[str, Curve]], looks: dict[str, style.Look]) -> None:
    """One panel."""
    for name, (steps, values) in named:
        if len(steps):
            style.draw_arm(axes, steps.astype(np.float64), values[None], looks[name], name)
    axes.set_title(tag, fontsize=9)
    style.steps_axis(axes)
    if tag.startswith(LOGARITHMIC):
        axes.set_yscale("log")


def main(args: Args) -> None:
    """Read the runs, draw the panels, write the picture."""
    if not args.directories:
        raise RunError("there are no runs to draw: give run directories")
    read = [read_drawn(directory) for directory in args.directories]
    configs = [config for config, _ in read]
    names = by_arm(labels(args.directories, configs), configs)
    looks = style.looks(names)
    tables = [table for _, table in read]
    if args.history:
        tables = [
            with_history(directory, table) if is_ours(directory) else table
            for directory, table in zip(args.directories, tables, strict=True)
        ]
    if not (tags := args.tags or usual_tags(tables)):
        held = ", ".join(sorted(tables[0])) or "nothing"
        raise RunError(
            f"{args.directories[0]} holds nothing that is usually drawn; name what to draw by --tags. It holds {held}"
        )
    longest = max(int(steps.max(initial=0)) for table in tables for steps, _ in table.values())
    window = args.window or max(1, longest // WINDOWS)
    by_run = [
        curves(directory, table, tags, window, args.until)
        for directory, table in zip(args.directories, tables, strict=True)
    ]
    figure, panels = style.begin(len(tags), columns=2, width=6.5)
    for axes, tag, by_name in zip(panels, tags, zip(*by_run, strict=True), strict=True):
        draw(axes, tag, list(zip(names, by_name, strict=True)), looks)
    style.legend_below(figure, panels)
    style.save(figure, [args.out])
    empty = [
        tag for tag, by_name in zip(tags, zip(*by_run, strict=True), strict=True) if not any(len(c[0]) for c in by_name)
    ]
    print(f"wrote {args.out}" + (f"; no run has recorded {', '.join(empty)} in this range" if empty else ""))
