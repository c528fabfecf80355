"""A TensorBoard page that compares arms: one line per arm, the mean of its seeds, in a band over all of them.

    python -m runs board fig3 --scale laptop
    tensorboard --logdir runs/logs/fig3/laptop-arms

Reads the finished runs of an experiment and writes one TensorBoard run per arm next to them. Each game or other task
gets its own folder, because returns of two games should not share an axis. *Custom Scalars* then shows the experiment's
curve, the learning rate, and ELR and plasticity of the last hidden layer first. Below are the other quantities of every
layer (but no speeds and no events). A line is the mean of the seeds, its band goes from the lowest seed to the highest,
and the arm's name carries n. Episodes are averaged over windows of steps. A tag that one seed lacks has no line. Run
the command again to rebuild the page from the runs finished by then.

*Time Series* shows the seeds themselves, in the colour of their arm: open `tensorboard --logdir runs/logs/fig3/laptop`,
and in the palette above the runs group them by the regular expression `(.*)-s`.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runs.analysis.curves import Curve, as_curve, over_seeds
from runs.positionals import Experiments
from runs.recording import RunError, one_line_errors
from runs.recording.events_file import EventFile
from runs.recording.layout import Layout
from runs.sweeps.experiment import LOGS, Experiment, Job, NoRuns, Result, chosen, plan
from runs.sweeps.results import results_of

GROUPS: Mapping[str, Sequence[str]] = {
    "return": ("charts/episodic_return", "charts/iteration_return", "eval/"),
    "accuracy and loss": ("train/", "test/"),
    "rate and realised ELR": ("charts/learning_rate", "elr/", "elr_nominal/", "rewarm/statistic"),
    "feature learning": ("plasticity/delta_c/", "plasticity/delta_a/", "plasticity/flipped_fraction/"),
    "plasticity": ("plasticity/",),
    "norms": ("norms/",),
    "other methods": ("intervene/",),
    "losses": ("losses/",),
    "theory": ("theory/",),
    "custom": ("custom/",),
}
"""The group of a tag's chart: the first one that lists a prefix of the tag."""
LEFT_OUT = (
    "charts/SPS",
    "charts/epsilon",
    "charts/episodic_length",
    "rewarm/event",
    "reset/event",
    "shift/",
    "physics/",
)
"""Not averaged over seeds, unless it is the experiment's curve: speed and exploration are not results, events are
moments, tasks and the physics of a world are not the network's."""
FIRST = "at a glance"
_GLANCE = ("delta_c", "delta_a", "dead_fraction", "dormant_fraction", "effective_rank", "stable_rank")
_DEAD = "plasticity/dead_fraction/"
_MARK = "made-by-runs-board"

Points = tuple[NDArray[np.float64], NDArray[np.float64]]
"""x [points], values [seeds, points]"""


@dataclass(frozen=True)
class Args:
    """Compare the arms of an experiment in TensorBoard."""

    experiments: Experiments
    """names as in `python -m runs list`, or all: those that have finished runs"""
    scale: str = "laptop"
    """which of its scales"""
    logs: Path = LOGS
    """where the run directories are"""
    out: Path | None = None
    """where the page is written, as OUT/EXPERIMENT/SCALE-arms; default: the folder of --logs"""


def group_of(tag: str) -> str | None:
    """The group of a tag's chart; None: the tag has no chart."""
    if tag.startswith(LEFT_OUT):
        return None
    return next((group for group, starts in GROUPS.items() if tag.startswith(tuple(starts))), None)


def weight_before(feature: str, weights: Sequence[str]) -> str | None:
    """The weight that produces a probed feature: `hidden` for `hidden_relu`, `value_hidden` for `value_relu`; or the
    last one of the feature's block, `blocks.0.down` for `blocks.0.relu`. None if there is neither.
    """
    layer, block = feature.removesuffix("_relu"), f"{feature.rpartition('.')[0]}."
    inside = [weight for weight in weights if weight.startswith(block)]
    return next((weight for weight in (layer, f"{layer}_hidden", *inside[::-1]) if weight in weights), None)


def glance(tags: Sequence[str], curve: str) -> list[str]:
    """The first charts: the experiment's curve, the learning rate, and ELR, feature learning and plasticity of the last
    probed layer.
    """
    features = [tag.removeprefix(_DEAD) for tag in tags if tag.startswith(_DEAD)]
    weights = [tag.removeprefix("elr/") for tag in tags if tag.startswith("elr/")]
    weight = weight_before(features[-1], weights) if features else None
    wanted = [
        curve,
        "charts/learning_rate",
        f"elr/{weight}",
        *(f"plasticity/{name}/{feature}" for name in _GLANCE for feature in features[-1:]),
        f"norms/parameter/{weight}",
    ]
    return [tag for tag in dict.fromkeys(wanted) if tag in tags]


def margin(tag: str) -> list[str]:
    """The tags of a line and of its band."""
    return [tag, f"lowest/{tag}", f"highest/{tag}"]


def charts(tags: Sequence[str], curve: str) -> Layout:
    """The page: for each tag a chart with a line and a band per arm, in groups."""
    groups = {FIRST: glance(tags, curve)}
    for group in GROUPS:
        inside = [tag for tag in tags if group_of(tag) == group]
        groups[group] = sorted(
            inside, key=lambda tag: tag.rpartition("/")[0]
        )  # keeps all layers of one metric together
    # TensorBoard (2.21) shows the margin charts of a group from the last to the first
    return {
        group: {tag: ("Margin", margin(tag)) for tag in reversed(inside)} for group, inside in groups.items() if inside
    }


def gathered(jobs: Sequence[Job], results: Mapping[str, Result], curve: str) -> dict[str, dict[str, dict[str, Points]]]:
    """Curves of the finished runs, {task: {"arm, n = 3": {tag: points}}}, of the tags that all seeds of an arm have."""
    runs: dict[str, dict[str, list[dict[str, Curve]]]] = {}
    for job in jobs:
        scalars = results[job.id].scalars
        curves = {tag: as_curve(pts, job.directory) for tag, pts in scalars.items() if group_of(tag) or tag == curve}
        runs.setdefault(job.world, {}).setdefault(job.arm, []).append(curves)
    return {
        world: {
            f"{arm}, n = {len(seeds)}": {
                tag: over_seeds(tag, [run[tag] for run in seeds])
                for tag in seeds[0]
                if all(tag in run for run in seeds)
            }
            for arm, seeds in arms.items()
        }
        for world, arms in runs.items()
    }


def write_arm(directory: Path, curves: Mapping[str, Points], layout: Layout) -> None:
    """One TensorBoard run: mean, lowest and highest seed of each tag at the steps where every seed has a value."""
    directory.mkdir(parents=True)
    events = EventFile(directory)
    events.add_layout(layout)
    for tag, (x, values) in curves.items():
        known = np.isfinite(values).all(axis=0)
        lines = zip(margin(tag), (values.mean(axis=0), values.min(axis=0), values.max(axis=0)), strict=True)
        for name, line in lines:
            for step, value in zip(x[known].tolist(), line[known].tolist(), strict=True):
                events.add(name, value, round(step))
    events.file.close()


def require_ours(folder: Path) -> None:
    """A folder that is to be replaced holds only files that this command wrote.

    Raises:
        RunError: it holds something else.
    """
    if not (folder / _MARK).exists():
        raise RunError(f"{folder} exists, but this command did not write it: move it away")
    arms = {folder / path for path in (folder / _MARK).read_text(encoding="utf-8").split("\n")}
    ours = {folder / _MARK, *arms, *(arm.parent for arm in arms)}
    for path in folder.rglob("*"):
        if path not in ours and not (path.parent in arms and path.name.startswith("events.out.")):
            raise RunError(f"{path} would be removed, but this command did not write it: move it away")


def write(args: Args, experiment: Experiment) -> list[Path]:
    """Write the page of one experiment; returns its folders, one for each task.

    Raises:
        RunError: no run is finished (NoRuns), the folder holds something else, or it cannot be written.
    """
    jobs = plan(experiment, args.scale, args.logs)
    results = results_of(jobs)
    if not results:
        raise NoRuns(experiment, args.scale, args.logs)
    worlds = gathered([job for job in jobs if job.id in results], results, experiment.curve)
    folder = (args.out or args.logs) / experiment.name / f"{args.scale}-arms"
    with one_line_errors(f"cannot write {folder}", also=(OSError,)):
        if folder.exists():
            require_ours(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            made, old = Path(temporary) / "new", Path(temporary) / "old"
            made.mkdir()
            written = [Path(world) / arm for world, arms in worlds.items() for arm in arms]
            (made / _MARK).write_text("\n".join(map(str, written)), encoding="utf-8")
            for world, arms in worlds.items():
                layout = charts(
                    list(dict.fromkeys(tag for curves in arms.values() for tag in curves)), experiment.curve
                )
                for arm, curves in arms.items():
                    write_arm(made / world / arm, curves, layout)
            if folder.exists():
                folder.rename(old)  # removed with the temporary folder
            made.rename(folder)
    return [folder / world for world in worlds]


def main(args: Args) -> None:
    """Write the pages, and print how to open them.

    Raises:
        RunError: as `chosen` and `write`; with `all`, if no experiment has a finished run.
    """
    written = 0
    for experiment in chosen(args.experiments, args.scale):
        try:
            for folder in write(args, experiment):
                print(f"tensorboard --logdir {shlex.quote(str(folder))}", flush=True)
                written += 1
        except NoRuns:
            if args.experiments != ("all",):
                raise
    if not written:
        raise RunError(f"no experiment has a finished run at {args.scale} in {args.logs}")
    print("then open Custom Scalars")
