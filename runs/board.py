"""A TensorBoard page on which arms are compared: a line per arm, the mean of its seeds, in a band over all of them.

    python -m runs board fig3 --scale laptop
    tensorboard --logdir runs/logs/fig3/laptop-arms

reads the finished runs of an experiment and writes one TensorBoard run per arm (and world) beside them. *Custom
Scalars* then shows the experiment's curve and the plasticity of the last hidden layer first, and below them every tag
of every layer, in the groups of a single run's page. A line is the mean of the seeds, its band goes from the lowest of
them to the highest, and the arm's name carries n. Given again, it makes the page anew from what is finished by then.

*Time Series* shows the seeds themselves, in the colour of their arm: open `tensorboard --logdir runs/logs/fig3/laptop`,
and in the palette above the runs group them by the regular expression `(.*)-s`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runs.curves import Curve, as_curve
from runs.experiment import Job, Result, load, names, plan
from runs.recording import RunError, refusals
from runs.recording.layout import Layout
from runs.recording.screen import EventFile
from runs.report import results_of, together

GROUPS: Mapping[str, Sequence[str]] = {
    "return": ("charts/episodic_return", "eval/"),
    "accuracy and loss": ("train/", "test/"),
    "rate and realised ELR": ("charts/learning_rate", "elr/", "elr_nominal/", "rewarm/statistic"),
    "feature learning": ("plasticity/delta_c/", "plasticity/delta_a/", "plasticity/flipped_fraction/"),
    "plasticity": ("plasticity/",),
    "norms": ("norms/",),
    "losses": ("losses/",),
}
"""Where a tag's chart stands: the first group with a beginning of it."""
LEFT_OUT = ("charts/SPS", "charts/epsilon", "charts/episodic_length", "rewarm/event", "reset/event", "shift/")
"""No means over seeds: speed and exploration are no results, events are moments, tasks are indices."""
FIRST = "at a glance"
_GLANCE = ("delta_c", "delta_a", "dead_fraction", "dormant_fraction", "effective_rank", "stable_rank")
_MARK = "made-by-runs-board"

Points = tuple[NDArray[np.float64], NDArray[np.float64]]
"""x [points], values [seeds, points]"""


@dataclass(frozen=True)
class Args:
    """Compare the arms of an experiment in TensorBoard."""

    experiments: tuple[str, ...]
    """names, as `python -m runs list` shows them"""
    scale: str = "laptop"
    """which of its scales"""
    logs: Path = Path("runs/logs")
    """where the run directories are; the page goes to LOGS/EXPERIMENT/SCALE-arms"""


def group_of(tag: str) -> str | None:
    """The group that a tag's chart stands in; None: it has no chart."""
    if tag.startswith(LEFT_OUT):
        return None
    return next((group for group, starts in GROUPS.items() if tag.startswith(tuple(starts))), None)


def last_hidden(tags: Iterable[str], prefix: str) -> str | None:
    """The layer under `prefix` that was recorded last, in the order of the network."""
    layers = [tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix)]
    return layers[-1] if layers else None


def glance(tags: Sequence[str], curve: str) -> list[str]:
    """What stands first: the experiment's curve, the rate, and ELR, feature learning and plasticity of one layer.

    The layer is the last that is probed. Where no weight has its name (the features of a transformer's block), the ELR
    and the norm shown are those of the last weight before the output's.
    """
    layer = last_hidden(tags, "plasticity/dead_fraction/")
    weights = [tag.removeprefix("elr/") for tag in tags if tag.startswith("elr/")]
    weight = layer if layer in weights else next(iter(weights[-2:-1]), None)
    wanted = [
        curve,
        "charts/learning_rate",
        *([f"elr/{weight}"] if weight else []),
        *(f"plasticity/{name}/{layer}" for name in _GLANCE if layer),
        *([f"norms/parameter/{weight}"] if weight else []),
    ]
    return [tag for tag in wanted if tag in tags]


def margin(tag: str) -> list[str]:
    """The tags of a line and of its band."""
    return [tag, f"lowest/{tag}", f"highest/{tag}"]


def charts(tags: Sequence[str], curve: str) -> Layout:
    """The page: a chart with a line and a band per arm for each tag, in groups."""
    groups = {FIRST: glance(tags, curve)}
    for group in GROUPS:
        inside = [tag for tag in tags if group_of(tag) == group]
        groups[group] = sorted(inside, key=lambda tag: tag.rpartition("/")[0])  # all layers of one metric together
    # TensorBoard (2.21) shows the margin charts of a group from the last to the first
    return {
        group: {tag: ("Margin", margin(tag)) for tag in reversed(inside)} for group, inside in groups.items() if inside
    }


def gathered(jobs: Sequence[Job], results: Mapping[str, Result]) -> dict[str, dict[str, Points]]:
    """Curves of the finished runs, {arm[--world], n = seeds: {tag: points}}, of the tags that all its seeds have."""
    arms: dict[str, list[dict[str, Curve]]] = {}
    for job in jobs:
        scalars = results[job.id].scalars
        curves = {tag: as_curve(points, job.directory) for tag, points in scalars.items() if group_of(tag)}
        arms.setdefault(f"{job.arm}{f'--{job.world}' if job.world else ''}", []).append(curves)
    return {
        f"{arm}, n = {len(runs)}": {
            tag: together([run[tag] for run in runs]) for tag in runs[0] if all(tag in run for run in runs)
        }
        for arm, runs in arms.items()
    }


def write_arm(directory: Path, curves: Mapping[str, Points], layout: Layout) -> None:
    """One TensorBoard run: mean, lowest and highest seed of each tag at the steps where every seed has a value."""
    directory.mkdir(parents=True)
    events = EventFile(directory)
    events.add_layout(layout)
    for tag, (x, values) in curves.items():
        there = np.isfinite(values).all(axis=0)
        lines = zip(margin(tag), (values.mean(axis=0), values.min(axis=0), values.max(axis=0)), strict=True)
        for name, line in lines:
            for step, value in zip(x[there].tolist(), line[there].tolist(), strict=True):
                events.add(name, value, round(step))
    events.file.close()


def write(args: Args, name: str) -> Path:
    """The page of one experiment; returns its folder.

    Raises:
        RunError: no run is finished, the folder holds something else, or it cannot be written.
    """
    experiment = load(name)
    jobs = plan(experiment, args.scale, args.logs)
    results = results_of(jobs)
    if not results:
        raise RunError(
            f"no run of {name} at {args.scale} is finished: run them with python -m runs run {name} "
            f"--scale {args.scale}"
        )
    arms = gathered([job for job in jobs if job.id in results], results)
    tags = list(dict.fromkeys(tag for curves in arms.values() for tag in curves))
    layout = charts(tags, experiment.curve)
    folder = args.logs / experiment.name / f"{args.scale}-arms"
    if folder.exists() and not (folder / _MARK).exists():
        raise RunError(f"{folder} exists and is no page of this command: move it away")
    with refusals(f"cannot write {folder}", also=(OSError,)):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        (folder / _MARK).touch()
        for arm, curves in arms.items():
            write_arm(folder / arm, curves, layout)
    return folder


def main(args: Args) -> None:
    """Write the pages, and say how to look at them.

    Raises:
        RunError: no experiment is named; or as `write`.
    """
    if not args.experiments:
        raise RunError(f"name an experiment: {', '.join(names())}")
    for name in args.experiments:
        print(f"tensorboard --logdir {write(args, name)}")
