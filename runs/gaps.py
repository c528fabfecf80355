"""Generalisation gap of warm-started networks over seeds: a table, and a picture of their accuracies.

    python -m runs.gaps runs/logs/fig4-* --out gaps.png

Runs of `agents/warm_start.py` are grouped by their exp_name. The gap is the accuracy of the fresh network minus that of
the warm one, in points, at the last evaluation; its interval is Student's at 95 %, over the seeds, each of which pairs
the two networks. The table has the norm of the weights at the last switch and at the end, and Delta_C, the share of
activations that flipped (Delta_A, for layers of any size) and the update norm averaged over the updates since the last
switch. The picture needs the `plots` extra.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runs.recording import RunError, exit_with_one_line, read_json, read_scalars, read_status, refusals

Scalars = Mapping[str, Sequence[tuple[int, float]]]

# Quantiles 0.975 of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086)  # fmt: skip


@dataclass(frozen=True)
class Args:
    """Tabulate gaps, draw accuracies."""

    directories: tuple[Path, ...]
    """run directories of agents/warm_start.py"""
    out: Path | None = None
    """picture to write; none by default"""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of Student's 95 % interval; nan for a single value."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.nan
    quantile = _T[n - 2] if n - 2 < len(_T) else 1.96 + 2.5 / (n - 1)  # within 0.0015 beyond 20 degrees of freedom
    return float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / math.sqrt(n)


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


def shown(number: float) -> str:
    """Three digits, or a dash for what was not recorded."""
    return "–" if math.isnan(number) else f"{number:.3g}"


def row(name: str, runs: Sequence[Scalars]) -> str:
    """One arm's line of the table."""
    switches = [int(run["shift/boundary"][-1][0]) for run in runs]

    def percent(tag: str) -> str:
        return f"{100 * np.mean([run[tag][-1][1] for run in runs]):.2f}"

    gap, half = interval([run["test/gap"][-1][1] for run in runs])
    ends = list(zip(runs, switches, strict=True))
    numbers = [
        np.mean([weight_norm(run, switch) for run, switch in ends]),
        np.mean([weight_norm(run) for run in runs]),
        *(
            np.mean([since(run, prefix, switch) for run, switch in ends])
            for prefix in ("plasticity/delta_c/", "plasticity/flipped_fraction/", "norms/update/")
        ),
    ]
    columns = [name, str(len(runs)), percent("test/accuracy"), percent("test/accuracy_fresh")]
    width = "" if math.isnan(half) else f" ± {half:.2f}"
    return f"| {' | '.join(columns)} | {gap:.2f}{width} | {' | '.join(map(shown, numbers))} |"


def read_arms(directories: Sequence[Path]) -> dict[str, list[Scalars]]:
    """Scalars of the runs by exp_name.

    Raises:
        RunError: there is no run; one is not finished or has no gap; two runs of an arm have the same seed or differ in
            more than the seed.
    """
    if not directories:
        raise RunError("there is nothing to tabulate: give run directories of agents/warm_start.py")
    arms: dict[str, list[Scalars]] = {}
    configs: dict[str, list[tuple[Path, dict[str, object]]]] = {}
    for directory in directories:
        config, scalars = read_json(directory / "config.json"), read_scalars(directory)
        if (status := read_status(directory)["status"]) != "finished":
            raise RunError(f"{directory} is {status}, not finished: finish it with --resume, or leave it out")
        if "test/gap" not in scalars:
            raise RunError(f"{directory} has recorded no test/gap: it has no control, or is no run of warm_start.py")
        name = str(config["exp_name"])
        for other, known in configs.setdefault(name, []):
            differ = {key for key in config if config[key] != known.get(key)} - {"directory"}
            if differ != {"seed"}:
                what = sorted(differ) or "nothing"
                raise RunError(f"{directory} and {other} are both {name} and differ in {what}: give one --exp-name")
        configs[name].append((directory, config))
        arms.setdefault(name, []).append(scalars)
    return arms


def draw(arms: Mapping[str, Sequence[Scalars]], out: Path) -> None:
    """One panel per arm: accuracies of the warm and the fresh network, seeds thin, their mean thick."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RunError("drawing needs matplotlib: pip install -e '.[plots]'") from error
    columns = min(3, len(arms))
    rows = -(-len(arms) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, (name, runs) in zip(panels, arms.items(), strict=False):
        for tag, label, colour in (("test/accuracy", "warm", "#D55E00"), ("test/accuracy_fresh", "fresh", "#0072B2")):
            for run in runs:
                axes.plot(*zip(*run[tag], strict=True), color=colour, alpha=0.3, linewidth=0.8)
            updates = [step for step, _ in runs[0][tag]]
            mean = np.mean([[v for _, v in run[tag]] for run in runs], axis=0)
            axes.plot(updates, mean, color=colour, label=label)
        axes.set_title(f"{name}, n = {len(runs)}", fontsize=10)
        axes.set_xlabel("update")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy")
    panels[0].legend()
    for axes in panels[len(arms) :]:
        axes.set_visible(False)
    with refusals(f"cannot write {out}", also=(OSError,)):
        figure.savefig(out, dpi=110)


def main(args: Args) -> None:
    """Read the runs, print the table, draw the picture."""
    arms = read_arms(args.directories)
    print("| arm | n | warm, % | fresh, % | gap, points | norm at switch | at end | Δ_C | flipped | update norm |")
    print(f"|{'---|' * 10}")
    for name, runs in arms.items():
        print(row(name, runs))
    if args.out:
        draw(arms, args.out)
        print(f"\nwrote {args.out}")


if __name__ == "__main__":
    import tyro

    exit_with_one_line(
        lambda: main(
            tyro.cli(Args, prog="python -m runs.gaps", description=__doc__, config=(tyro.conf.PositionalRequiredArgs,))
        )
    )
