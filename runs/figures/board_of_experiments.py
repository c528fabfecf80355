"""The page of arms of an experiment: its finished runs, its curve first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from runs.analysis.curves import Curve, as_curve
from runs.figures.arms_page import Points, Written, averaged, group_of, write_page
from runs.figures.task_changes import EVENTS, Marks, marks, unmarked
from runs.sweeps.experiment import Experiment, Job, NoRuns, Result, plan
from runs.sweeps.results import results_of


def gathered(
    jobs: Sequence[Job], results: Mapping[str, Result], curve: str
) -> tuple[dict[str, dict[str, dict[str, Points]]], dict[str, Marks]]:
    """Curves of the finished runs, {task: {"arm, n = 3": {tag: points}}}, of the tags that all seeds of an arm have;
    and the changes to mark, by task.
    """

    def wanted(tag: str) -> bool:
        return bool(group_of(tag)) or tag in (curve, *EVENTS)

    runs: dict[str, dict[str, list[dict[str, Curve]]]] = {}
    for job in jobs:
        scalars = results[job.id].scalars
        curves = {tag: as_curve(pts, job.directory) for tag, pts in scalars.items() if wanted(tag)}
        runs.setdefault(job.world, {}).setdefault(job.arm, []).append(curves)
    averages = {
        world: {f"{arm}, n = {len(seeds)}": averaged(seeds, curve) for arm, seeds in arms.items()}
        for world, arms in runs.items()
    }
    return averages, {world: marks(arms) for world, arms in runs.items()}


def write_experiment(experiment: Experiment, scale: str, logs: Path, out: Path) -> Written:
    """Write the page of one experiment to OUT/EXPERIMENT/SCALE-arms, a folder for each task.

    Raises:
        RunError: no run is finished (NoRuns), the folder holds something else, or it cannot be written.
    """
    jobs = plan(experiment, scale, logs)
    results = results_of(jobs)
    if not results:
        raise NoRuns(experiment, scale, logs)
    worlds, changes = gathered([job for job in jobs if job.id in results], results, experiment.curve)
    folder = out / experiment.name / f"{scale}-arms"
    write_page(folder, worlds, experiment.curve, changes)
    return Written([folder / world for world in worlds], len(jobs) - len(results), unmarked(changes))
