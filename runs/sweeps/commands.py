"""The commands that plan, run and watch experiments: list, show, run, status."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from runs import positionals
from runs.recording import RunError, read_json
from runs.sweeps.experiment import (
    LOGS,
    REPOSITORY,
    Experiment,
    Job,
    as_words,
    chosen,
    load,
    names,
    plan,
    require_scripts,
    with_parents,
)


@dataclass(frozen=True)
class ListArgs:
    """Print every experiment with its claim, and its scales with their number of runs and cost.

    python -m runs list
    """


@dataclass(frozen=True)
class ShowArgs:
    """Print an experiment's claim, the rule that decides it, its arms and its scales.

    python -m runs show fig3
    """

    experiment: positionals.Experiment
    """a name from `python -m runs list`, or the path of your own .py file"""


@dataclass(frozen=True)
class Selection:
    """Which runs of which experiments."""

    experiments: positionals.Experiments
    """names from `python -m runs list`, paths of your own .py files, or all"""
    scale: str
    """smoke (does everything work?), laptop, paper, or another scale that list shows"""
    arms: tuple[str, ...] = ()
    """only these arms"""
    seeds: tuple[int, ...] = ()
    """only these of the scale's seeds"""
    logs: Path = LOGS
    """folder of the runs, which are in LOGS/EXPERIMENT/SCALE/"""


@dataclass(frozen=True)
class StatusArgs(Selection):
    """Print which runs of an experiment are finished, running, interrupted, or not started.

    python -m runs status fig3 --scale laptop
    """


@dataclass(frozen=True)
class RunArgs(Selection):
    """Run all jobs of an experiment to completion, on this machine or on a Ray cluster.

        python -m runs run fig3 --scale smoke
        python -m runs run fig4 fig9 --scale laptop --jobs 4 --seeds 12 13
        python -m runs run all --scale paper --engine ray --address auto

    Each run is its own process with the flags that --dry-run prints. Give the same command again to continue: finished
    runs are skipped, interrupted or killed ones are resumed from their checkpoints, and runs of another launcher are
    waited for. Nothing is overwritten. A run directory made with other flags is refused by name before anything starts;
    a run that was killed before its first checkpoint is moved aside to RUN.abandoned-1. The output of a run is in
    RUN.log, next to its directory.

    After Ctrl-C the runs write checkpoints and stop; a second Ctrl-C kills them. If the launcher itself is killed, its
    runs continue (on Ray they write a checkpoint and stop), and the same command waits for them.

    Exit codes: 0 all runs finished, 1 a run failed, 2 refused, 130 interrupted.
    """

    join: tuple[Path, ...] = ()
    """records (NAME-SCALE.json or NAME-SCALE-partial.json) of runs that another machine has finished: these runs are
    left out; `report --join` adds them"""
    data_folder: Path | None = None
    """folder of CIFAR-10's official files for runs of warm_start.py, which otherwise download them"""
    dry_run: bool = False
    """print the commands and start nothing"""
    retries: int = 2
    """how often a crashed run is resumed from its checkpoint"""
    engine: Literal["local", "ray"] = "local"
    """where to run: on this machine, or on a Ray cluster (pip install -e '.[ray]')"""
    jobs: int | None = None
    """local: runs at the same time; default: as many as the cores and GPUs allow"""
    pin: bool = True
    """local: pin each run to its own cores; two launchers at once would pin theirs to the same ones"""
    address: str | None = None
    """ray: auto or host:port of the cluster that this machine belongs to, or local to start one here; default: auto.
    --logs must be on a file system that all nodes share"""

    def __post_init__(self) -> None:
        """Refuse values out of range and flags that the engine does not use."""
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {self.jobs}")
        if self.retries < 0:
            raise ValueError(f"--retries must be at least 0, got {self.retries}")
        if self.engine == "local" and self.address:
            raise ValueError(
                f"--address {self.address} has no effect with --engine local; drop it or give --engine ray"
            )
        if self.engine == "ray" and (self.jobs or not self.pin):
            raise ValueError("--jobs and --no-pin have no effect with --engine ray: Ray decides where runs are placed")


def list_experiments(args: ListArgs) -> None:
    """Print each experiment, its claim and its scales."""
    for experiment in map(load, names()):
        print(f"{experiment.name}  ({experiment.source})\n{_wrapped(experiment.claim)}")
        for label, scale in experiment.scales.items():
            print(f"    {label:<7} {len(plan(experiment, label, Path())):>4} runs  {scale.estimate}")
        print()


def show(args: ShowArgs) -> None:
    """Print an experiment's claim, rule, arms and scales."""
    experiment = load(args.experiment)
    print(f"{experiment.name}  ({experiment.source})")
    print(f"\nClaim:\n{_wrapped(experiment.claim)}\n\nRule:\n{_wrapped(experiment.rule)}\n\nArms:")
    for arm in experiment.arms:
        words = [f"{arm.script}.py", *([arm.preset] if arm.preset else []), *as_words(arm.flags)]
        print(f"    {arm.name}: {shlex.join(words)}")
    print("\nScales:")
    for label, scale in experiment.scales.items():
        seeds = f"seeds {', '.join(map(str, scale.seeds))}"
        print(f"    {label}: {scale.estimate}; {' '.join([seeds, *as_words(scale.flags)])}")
        for arm in (scale.instead.get(arm.name, arm) for arm in experiment.arms):
            words = as_words(scale.by_arm.get(arm.name, {}))
            if scale.arms is not None and arm.name not in scale.arms:
                words = ["(not run)"]
            elif arm.name in scale.instead:
                words = [f"{arm.script}.py", *([arm.preset] if arm.preset else []), *as_words(arm.flags), *words]
            if words:
                print(f"        {arm.name}: {' '.join(words)}")
    print(f"\nNext: python -m runs run {experiment.word} --scale {next(iter(experiment.scales))}")


def status(args: StatusArgs) -> None:
    """Print what each run's directory holds, without disturbing the process that writes it."""
    from runs.sweeps.progress import last_step, total_steps
    from runs.sweeps.run_job import claimed, inspect, writer

    for job in planned(args):
        try:
            contents = inspect(job)
        except RunError as error:
            print(f"{job.id}: {error}")
            continue
        # Trying a run's lock holds it for an instant: do not try while a launcher may be starting that run.
        busy = contents.state != "finished" and (claimed(job) or writer(job) is not None)
        idle = {"running": "killed", "": "not started"}.get(contents.status, contents.status)
        step, total = last_step(job.directory), total_steps(job.directory)
        at = "" if step is None else f", step {step:,}" + (f" of {total:,}" if total else "")
        print(f"{job.id}: {'running' if busy else idle}{at}")


def run(args: RunArgs) -> int:
    """Launch the selected jobs; the exit code."""
    from runs.sweeps.launcher import follow, launch
    from runs.sweeps.progress import Progress
    from runs.sweeps.run_job import inspect

    left = left_to_do(planned(args), args.join, args.scale, chosen(args.experiments, args.scale))
    jobs = with_data_folder(left, args.data_folder)
    if args.dry_run:
        print(f"cd {shlex.quote(str(REPOSITORY))}", *(shlex.join(job.command()) for job in jobs), sep="\n")
        return 0
    require_scripts(jobs)
    for job in jobs:  # refuse now rather than after hours
        inspect(job)
    if args.engine == "local":
        return launch(jobs, args.jobs, args.retries, args.pin)
    from runs.sweeps.on_ray import OnRay

    engine = OnRay(jobs, args.address or "auto", args.retries, args.logs.absolute())
    progress = Progress(jobs, sys.stdout)
    if shortage := engine.shortage(jobs):
        progress.say(shortage)
    return follow(engine, progress)


def planned(selection: Selection) -> list[Job]:
    """The selected jobs, and those that they branch from.

    Raises:
        RunError: there is no such experiment, scale, arm or seed.
    """
    logs = selection.logs.absolute()
    experiments = chosen(selection.experiments, selection.scale)
    jobs = [job for experiment in experiments for job in plan(experiment, selection.scale, logs)]
    _require("arm", selection.arms, {job.arm for job in jobs}, selection.scale)
    _require("seed", selection.seeds, {job.seed for job in jobs}, selection.scale)
    return with_parents(
        [
            job
            for job in jobs
            if job.arm in (selection.arms or [job.arm]) and job.seed in (selection.seeds or [job.seed])
        ]
    )


def left_to_do(
    jobs: Sequence[Job], records: Sequence[Path], scale: str, experiments: Sequence[Experiment] = ()
) -> list[Job]:
    """The jobs without those whose runs are in records of other machines, unless another branches from them.

    Raises:
        RunError: a record cannot be read, is of none of these experiments, or its runs had other flags; or nothing is
            left.
    """
    from runs.sweeps.record import key_of, read

    done = set()
    for path in records:
        name: Any = read_json(path).get("experiment")
        mine = [job for job in jobs if job.experiment == name]
        if not mine:
            raise RunError(f"{path} is of {name}, of which no run is planned here")
        experiment = next((one for one in experiments if one.name == name), None) or load(name)
        done |= {(name, key) for key in read(path, experiment, scale, plan(experiment, scale, Path())).runs}
    left = [job for job in jobs if (job.experiment, key_of(job)) not in done]
    if not left:
        raise RunError("all these runs are in the records that --join names: nothing is left to run")
    return with_parents(left)


def with_data_folder(jobs: Sequence[Job], folder: Path | None) -> list[Job]:
    """The jobs, with the folder of images for those that read one.

    Raises:
        RunError: none of them reads a folder of images.
    """
    if folder is None:
        return list(jobs)
    reads = [job.script == "warm_start" and job.flags.get("dataset") != "digits" for job in jobs]
    if not any(reads):
        raise RunError(f"--data-folder {folder} has no effect: none of the runs reads images from a folder")
    places = {"data_folder": folder.absolute()}
    return [replace(job, places=places) if one else job for job, one in zip(jobs, reads, strict=True)]


def _require(what: str, wanted: Sequence[Any], known: set[Any], scale: str) -> None:
    for name in wanted:
        if name not in known:
            listed = ", ".join(map(str, sorted(known)))
            raise RunError(f"there is no {what} {name} at scale {scale}; there are {listed}")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="    ", subsequent_indent="    ")
