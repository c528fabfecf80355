"""An experiment as data: its arms, seeds and scales, the claim that it tests, and the rule that decides, in writing.

    from runs.experiment import load, plan
    jobs = plan(load("fig3"), "smoke", Path("runs/logs"))

Each file of `runs/experiments/` defines one `EXPERIMENT`. The flags of a run are written as in its config.json, dotted
(`{"rewarm.at_update": 5_000}`), so that what a run was asked for can be compared with what it recorded.
"""

from __future__ import annotations

import importlib
import pkgutil
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from runs.arms import Scalars
from runs.recording import RunError

LOGS = Path("runs/logs")
"""where run directories are made unless told otherwise"""
REPOSITORY = Path(__file__).resolve().parent.parent
Flags = Mapping[str, Any]
"""Values by dotted name, as in config.json; tuples for flags that take several words."""
Outcome = Literal["reproduced", "not reproduced", "undecided"]


@dataclass(frozen=True)
class Arm:
    """What is compared: a script, the preset it starts from, and the flags that differ from it."""

    name: str
    script: str
    """file name in agents/, without .py"""
    preset: str | None = None
    flags: Flags = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """How much of the experiment is run."""

    seeds: Sequence[int]
    estimate: str
    """what all of it costs, with the hardware: "40 min on two cores"; of `paper` in GPU-hours"""
    flags: Flags = field(default_factory=dict)
    """of every run"""
    by_arm: Mapping[str, Flags] = field(default_factory=dict)
    """of the arms named; they come after `flags`"""
    arms: Sequence[str] | None = None
    """those that are run; None is all"""
    worlds: Mapping[str, Flags] = field(default_factory=lambda: {"": {}})
    """every arm and seed is run in each: games, say; by a short name that directories carry"""
    instead: Mapping[str, Arm] = field(default_factory=dict)
    """scripts that stand for the arms named at this scale: another agent, on other games"""
    threads: int = 1
    """cores that one run uses, and its --threads"""
    gpus: float = 0.0
    """share of a GPU that one run uses; above 0 it gets --device cuda"""


def guessed_gpu_hours(runs: int, updates: int, per_second: int, gpus: float = 0.25) -> str:
    """An estimate in words, from a guess of how fast a run will be: no script has been run on a GPU yet."""
    hours = runs * updates / per_second * gpus / 3600
    speed = f"{per_second:,} a second, {1 / gpus:g} on a GPU"
    return f"{hours:,.1f} GPU-hours if {runs} runs of {updates:,} updates make {speed}"


@dataclass(frozen=True)
class Result:
    """A finished run, as a rule sees it."""

    arm: str
    world: str
    seed: int
    config: Mapping[str, Any]
    scalars: Scalars


@dataclass(frozen=True)
class Verdict:
    """What the rule says of the runs."""

    outcome: Outcome
    reason: str
    """the numbers that decided, with n, in a sentence"""
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """a table of what was measured, arm by arm"""


@dataclass(frozen=True)
class Experiment:
    """One figure or claim."""

    name: str
    source: str
    """where the claim comes from: figure and paper, or "ours" """
    claim: str
    """in a sentence"""
    rule: str
    """how the runs decide, written before any of them was made"""
    arms: Sequence[Arm]
    scales: Mapping[str, Scale]
    judge: Callable[[Sequence[Result]], Verdict]
    """the rule as code, over the finished runs of a scale that is large enough to judge"""
    curve: str
    """tag of the curve that its figure shows"""
    judged: Sequence[str] = ("laptop", "paper")
    """scales of which the rule speaks; at others the runs only show that everything works"""
    log_steps: bool = False
    """whether the figure's axis of steps is logarithmic"""
    note: str = ""
    """what a reader of the page must know of the claim, a change after the runs for one"""
    file: str = ""
    """the path by which it was loaded, if it is none of runs/experiments/"""

    @property
    def word(self) -> str:
        """What names it on a command line."""
        return shlex.quote(self.file or self.name)

    def __post_init__(self) -> None:
        """Refuse names that are no arms, arms named twice, seeds given twice."""
        names = [arm.name for arm in self.arms]
        for name in {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{self.name}: two arms are called {name}")
        for label, scale in self.scales.items():
            for name in [*scale.by_arm, *scale.instead, *(scale.arms or ())]:
                if name not in names:
                    raise ValueError(f"{self.name}, {label}: there is no arm {name}; arms: {', '.join(names)}")
            if not scale.seeds or len(set(scale.seeds)) < len(scale.seeds):
                raise ValueError(f"{self.name}, {label}: seeds {tuple(scale.seeds)} are none, or name one twice")
            for name, arm in scale.instead.items():
                if arm.name != name:
                    raise ValueError(f"{self.name}, {label}: what stands for {name} is called {arm.name}")


@dataclass(frozen=True)
class Job:
    """One run: a process with its flags, and the directory that it fills."""

    id: str
    """experiment/scale/arm[--world]-sSEED, the same whenever the experiment is planned"""
    experiment: str
    scale: str
    arm: str
    world: str
    seed: int
    script: str
    preset: str | None
    flags: Flags
    """all that it is asked for, seed, exp_name and threads included, the directory not"""
    directory: Path
    threads: int
    gpus: float
    places: Flags = field(default_factory=dict)
    """flags that say where this machine keeps things, such as data_folder; no part of what the run is"""

    @property
    def log(self) -> Path:
        """Where its output goes: beside the directory, as there is output before there is a directory."""
        return self.directory.with_name(f"{self.directory.name}.log")

    def command(self) -> list[str]:
        """The words that start it, from the repository's root."""
        words = [sys.executable, str(Path("agents") / f"{self.script}.py"), *([self.preset] if self.preset else [])]
        return [*words, *as_words(self.flags), *as_words(self.places), "--directory", str(self.directory)]

    def resume_command(self) -> list[str]:
        """The words that continue it from its checkpoint."""
        return [sys.executable, str(Path("agents") / f"{self.script}.py"), "--resume", str(self.directory)]


def as_words(flags: Flags) -> list[str]:
    """Flags as they are typed: `{"a.b_c": 1, "nap.enabled": False, "games": ("x", "y")}` -> `--a.b-c 1
    --nap.no-enabled --games x y`.
    """
    words: list[str] = []
    for name, value in flags.items():
        group, _, last = name.replace("_", "-").rpartition(".")
        dotted = f"{group}." if group else ""
        if isinstance(value, bool):
            words.append(f"--{dotted}{'' if value else 'no-'}{last}")
        elif isinstance(value, (tuple, list)):
            words += [f"--{dotted}{last}", *map(str, value)]
        else:
            words += [f"--{dotted}{last}", str(value)]
    return words


def names() -> list[str]:
    """Every experiment, in alphabetical order."""
    import runs.experiments

    return sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(runs.experiments.__path__)
        if not module.name.startswith("_")
    )


def load(name: str) -> Experiment:
    """An experiment by its name, `fig2-right` for runs/experiments/fig2_right.py, or by the path of a .py file.

    Raises:
        RunError: there is none of that name, no such file, or it defines no EXPERIMENT.
    """
    if name.endswith(".py"):
        return _load_file(Path(name))
    if name not in names():
        raise RunError(f"there is no experiment {name}; there are {', '.join(names())}, or give the path of a .py file")
    experiment: Experiment = importlib.import_module(f"runs.experiments.{name.replace('-', '_')}").EXPERIMENT
    return experiment


def chosen(words: Sequence[str], scale: str) -> list[Experiment]:
    """The experiments that a command line names; `all` is every one that has this scale.

    Raises:
        RunError: none is named, there is no such experiment, or with `all` none that has the scale.
    """
    if not words:
        raise RunError(f"name an experiment: {', '.join(names())}, or all")
    if tuple(words) != ("all",):
        return [load(name) for name in dict.fromkeys(words)]
    found = [experiment for experiment in map(load, names()) if scale in experiment.scales]
    if not found:
        raise RunError(f"no experiment has a scale {scale}")
    return found


def run_command(experiment: Experiment, scale: str, logs: Path) -> str:
    """What to type to have its runs made there."""
    where = "" if logs == LOGS else f" --logs {shlex.quote(str(logs))}"
    return f"python -m runs run {experiment.word} --scale {scale}{where}"


class Unfinished(RunError):
    """Runs of an experiment are missing."""


class NoRuns(Unfinished):
    """No run of an experiment is finished."""

    def __init__(self, experiment: Experiment, scale: str, logs: Path):
        there = logs / experiment.name / scale
        super().__init__(
            f"no run of {experiment.name} at {scale} is finished in {there}: {run_command(experiment, scale, logs)}"
        )


def _load_file(path: Path) -> Experiment:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise RunError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    if not isinstance(experiment := getattr(module, "EXPERIMENT", None), Experiment):
        raise RunError(f"{path} defines no EXPERIMENT")
    return replace(experiment, file=str(path))


def plan(experiment: Experiment, scale: str, logs: Path) -> list[Job]:
    """All runs of an experiment at a scale, seed by seed, so that what is finished first is comparable.

    Args:
        experiment: what to run.
        scale: one of `experiment.scales`.
        logs: where run directories are made.
    Raises:
        RunError: there is no such scale.
    """
    if scale not in experiment.scales:
        raise RunError(f"{experiment.name} has no scale {scale}; it has {', '.join(experiment.scales)}")
    size = experiment.scales[scale]
    arms = [arm for arm in experiment.arms if size.arms is None or arm.name in size.arms]
    jobs = []
    for seed in size.seeds:
        for world, world_flags in size.worlds.items():
            for arm in (size.instead.get(arm.name, arm) for arm in arms):
                device = {"device": "cuda"} if size.gpus else {}
                flags = {
                    **arm.flags, **size.flags, **size.by_arm.get(arm.name, {}), **world_flags, **device,
                    "seed": seed, "threads": size.threads, "exp_name": arm.name,
                }  # fmt: skip
                run = f"{arm.name}{f'--{world}' if world else ''}-s{seed}"
                words = (experiment.name, scale, arm.name, world, seed, arm.script, arm.preset, flags)
                directory = logs / experiment.name / scale / run
                jobs.append(Job(f"{experiment.name}/{scale}/{run}", *words, directory, size.threads, size.gpus))
    return jobs
