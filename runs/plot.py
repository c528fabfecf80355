"""Draw scalars of finished or running runs over their steps, one panel per tag, one curve per run.

    python -m runs.plot runs/logs/RUN_A runs/logs/RUN_B --tags charts/episodic_return elr/hidden --out curves.png

Episodic returns are averaged over windows of `--window` steps, other tags drawn as recorded. Needs the `plots` extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runs.recording import RunError, exit_with_one_line, one_line_errors, read_json, read_scalars
from runs.style import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFAULT_TAGS = (
    "charts/episodic_return",
    "charts/learning_rate",
    "elr/hidden",
    "plasticity/flipped_fraction/hidden_relu",
)
LOGARITHMIC = ("charts/learning_rate", "elr/", "elr_nominal/")

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Args:
    """Draw scalars of runs."""

    directories: tuple[Path, ...]
    """run directories; a curve's label is its run's exp_name and seed, with the directory where two would be alike"""
    tags: tuple[str, ...] = DEFAULT_TAGS
    """one panel each"""
    out: Path = Path("curves.png")
    """picture to write"""
    window: int = 10_000
    """steps over which episodic returns are averaged"""
    until: int | None = None
    """leave out what lies beyond this step"""


def windowed_means(curve: Sequence[tuple[int, float]], window: int) -> Curve:
    """Mean of the values in (k window - window, k window], at k window; windows without a value are left out.

    Raises:
        ValueError: window is not positive.
    """
    if window < 1:
        raise ValueError(f"window = {window}: episodes are averaged over at least one step")
    grouped: dict[int, list[float]] = {}
    for step, value in curve:
        grouped.setdefault(-(-step // window) * window, []).append(value)
    return [(step, sum(values) / len(values)) for step, values in sorted(grouped.items())]


def labels(directories: Sequence[Path]) -> list[str]:
    """exp_name and seed of each run, from its config.json; with the directory where these are not unique."""
    configs = [read_json(d / "config.json") for d in directories]
    short = [
        f"{c.get('exp_name', d.name)}, seed {c.get('seed', '?')}" for c, d in zip(configs, directories, strict=True)
    ]
    return [f"{s} ({d})" if short.count(s) > 1 else s for s, d in zip(short, directories, strict=True)]


def curves(directory: Path, tags: Sequence[str], window: int, until: int | None) -> list[Curve]:
    """The run's curve of each tag.

    Raises:
        RunError: the run recorded none of the tags; a single missing tag is an empty curve.
    """
    scalars = read_scalars(directory)
    if not any(tag in scalars for tag in tags):
        raise RunError(
            f"{directory} holds none of {', '.join(tags)}; it holds {', '.join(sorted(scalars)) or 'nothing'}"
        )
    found = [[(s, v) for s, v in scalars.get(tag, []) if until is None or s <= until] for tag in tags]
    return [
        windowed_means(c, window) if tag == "charts/episodic_return" else c for tag, c in zip(tags, found, strict=True)
    ]


def draw(axes: Axes, tag: str, named: Sequence[tuple[str, Curve]]) -> None:
    """One panel."""
    for colour, (name, curve) in enumerate(named):
        axes.plot(*zip(*curve, strict=True) if curve else ([], []), label=name, color=f"C{colour}", linewidth=1.2)
    axes.set_title(tag, fontsize=10)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if tag.startswith(LOGARITHMIC):
        axes.set_yscale("log")


def main(args: Args) -> None:
    """Read the runs, draw the panels, write the picture."""
    if not args.directories:
        raise RunError("there is nothing to draw: give run directories")
    if not args.tags:
        raise RunError("--tags is empty: name at least one tag to draw")
    with one_line_errors("--window"):
        found = [curves(d, args.tags, args.window, args.until) for d in args.directories]
    drawn = list(zip(labels(args.directories), found, strict=True))
    columns = min(2, len(args.tags))
    rows = -(-len(args.tags) // columns)
    figure = canvas(6.5 * columns, 3.4 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for i, (panel, tag) in enumerate(zip(panels, args.tags, strict=False)):
        draw(panel, tag, [(name, found[i]) for name, found in drawn])
    panels[0].legend(fontsize=8)
    for panel in list(panels)[len(args.tags) :]:
        panel.set_visible(False)
    with one_line_errors(f"cannot write {args.out}", also=(OSError,)):
        figure.savefig(args.out, dpi=110)
    empty = [tag for i, tag in enumerate(args.tags) if not any(run[i] for run in found)]
    print(f"wrote {args.out}" + (f"; no run has {', '.join(empty)} there" if empty else ""))


if __name__ == "__main__":
    import tyro

    exit_with_one_line(
        lambda: main(
            tyro.cli(Args, prog="python -m runs.plot", description=__doc__, config=(tyro.conf.PositionalRequiredArgs,))
        )
    )
