"""An experiment as data: its arms, seeds and scales, the claim that it tests, and the rule that decides.

    from runs.sweeps.experiment import load, plan
    jobs = plan(load("fig3"), "smoke", Path("runs/logs"))

Each file of `runs/experiments/` defines one `EXPERIMENT`. The flags of a run are written as in its config.json, dotted
(`{"rewarm.at_update": 5_000}`). This way the requested flags can be compared with the recorded ones.
"""

from __future__ import annotations

import difflib
import glob
import importlib
import importlib.util
import pkgutil
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from runs.analysis.curves import Scalars
from runs.recording import RunError

LOGS = Path("runs/logs")
"""where run directories are made by default"""
REPOSITORY = Path(__file__).resolve().parents[2]
Flags = Mapping[str, Any]
"""values by dotted name, as in config.json; tuples for flags that take several words"""
Outcome = Literal["reproduced", "not reproduced", "undecided"]


@dataclass(frozen=True)
class Arm:
    """What is compared: a script, its preset, and the flags that differ from the preset."""

    name: str
    script: str
    """file name in agents/, without .py"""
    preset: str | None = None
    flags: Flags = field(default_factory=dict)
    """`{"branch": "low@5000"}` continues the run of the arm `low` with the same task and seed from step 5,000 (without
    @STEP from its end), and the other flags are those that change (docs/experiments.md, "Branch from a run"). The arm
    `low` comes before this one, has the same script, and keeps a checkpoint of that step"""


@dataclass(frozen=True)
class Scale:
    """How large the experiment is."""

    seeds: Sequence[int]
    estimate: str
    """cost of all runs, with the hardware: "40 min on two cores"; for `paper` in GPU-hours"""
    flags: Flags = field(default_factory=dict)
    """for every run"""
    by_arm: Mapping[str, Flags] = field(default_factory=dict)
    """for single arms, by name; they override `flags`"""
    arms: Sequence[str] | None = None
    """arms that are run; None means all"""
    worlds: Mapping[str, Flags] = field(default_factory=lambda: {"": {}})
    """tasks (for instance games) in which every arm and seed is run: their flags, by a short name for directories"""
    instead: Mapping[str, Arm] = field(default_factory=dict)
    """arms that replace the arm of the same name at this scale: another script on other games, for instance"""
    threads: int = 1
    """cores that one run uses, and its --threads"""
    gpus: float = 0.0
    """share of a GPU that one run uses; above 0 it gets --device cuda"""
    folder: str = ""
    """where in the folder of logs the runs are; default: EXPERIMENT/SCALE. Two experiments that name the same folder
    share the runs that they have in common"""


def guessed_gpu_hours(runs: int, updates: int, per_second: int, gpus: float = 0.25) -> str:
    """An estimate in words. It rests on a guess of the speed, because no script has been run on a GPU yet."""
    hours = runs * updates / per_second * gpus / 3600
    speed = f"{per_second:,} a second, {1 / gpus:g} on a GPU"
    return f"{hours:,.1f} GPU-hours if {runs} runs of {updates:,} updates make {speed}"


@dataclass(frozen=True)
class Result:
    """A finished run, as rules read it."""

    arm: str
    world: str
    seed: int
    config: Mapping[str, Any]
    scalars: Scalars


Value = float | tuple[float, ...]
"""a number of a run, or several in a row; inf for an event that never came, never nan"""


@dataclass(frozen=True)
class Measured:
    """The numbers of a finished run, on which alone a rule decides; they are published with the verdict."""

    arm: str
    world: str
    seed: int
    values: Mapping[str, Value]
    """by the names of `Experiment.measures`"""


@dataclass(frozen=True)
class Verdict:
    """The rule's decision on the runs."""

    outcome: Outcome
    reason: str
    """one sentence with the numbers that decided, and n"""
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """a table of the measurements by arm"""


@dataclass(frozen=True)
class Experiment:
    """One figure or claim."""

    name: str
    source: str
    """where the claim comes from: figure and paper, or "ours" """
    claim: str
    """one sentence"""
    rule: str
    """how the runs decide; written before the first run"""
    arms: Sequence[Arm]
    scales: Mapping[str, Scale]
    measures: Mapping[str, Callable[[Result], Value]]
    """what is measured of each run, by a name that says what it is, with its unit"""
    judge: Callable[[Sequence[Measured]], Verdict]
    """the rule as code; it gets the numbers of all runs of one scale"""
    curve: str
    """tag of the curve in the figure"""
    judged: Sequence[str] = ("laptop", "paper")
    """scales that the rule applies to; runs at other scales only show that everything works"""
    log_steps: bool = False
    """whether the figure has a logarithmic x axis"""
    note: str = ""
    """what readers of the page must know about the claim, for instance a change after the runs"""
    file: str = ""
    """the path it was loaded from, if it is not in runs/experiments/"""

    @property
    def word(self) -> str:
        """Its name on a command line."""
        return shlex.quote(self.file or self.name)

    def __post_init__(self) -> None:
        """Refuse unknown or repeated arm names, missing or repeated seeds, and names of measures that are taken."""
        names = [arm.name for arm in self.arms]
        for name in sorted({"arm", "world", "seed"} & set(self.measures)):
            raise ValueError(f"{self.name}: a measure cannot be called {name}, which names the run")
        for name in {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{self.name}: two arms are called {name}")
        for label, scale in self.scales.items():
            for name in [*scale.by_arm, *scale.instead, *(scale.arms or ())]:
                if name not in names:
                    raise ValueError(f"{self.name}, {label}: there is no arm {name}; arms: {', '.join(names)}")
            if not scale.seeds or len(set(scale.seeds)) < len(scale.seeds):
                raise ValueError(
                    f"{self.name}, {label}: give at least one seed, and each once, got {tuple(scale.seeds)}"
                )
            for name, arm in scale.instead.items():
                if arm.name != name:
                    raise ValueError(
                        f"{self.name}, {label}: the arm that replaces {name} must have its name, got {arm.name}"
                    )


@dataclass(frozen=True)
class Job:
    """One run: a process with its flags, and the directory that it writes."""

    id: str
    """experiment/scale/arm[--world]-sSEED, the same each time the experiment is planned"""
    experiment: str
    scale: str
    arm: str
    world: str
    seed: int
    script: str
    preset: str | None
    flags: Flags
    """all flags, including seed, exp_name and threads, but not the directory"""
    directory: Path
    threads: int
    gpus: float
    places: Flags = field(default_factory=dict)
    """flags that name places on this machine, such as data_folder; not part of the run's identity"""
    parent: Job | None = None
    """the run that it branches from, which must be finished first"""
    branch_step: int | None = None
    """the step of its parent at which it branches off; None is the end"""

    @property
    def log(self) -> Path:
        """The file for its output, next to the directory, because output may come before the directory exists."""
        return self.directory.with_name(f"{self.directory.name}.log")

    @property
    def folder(self) -> Path:
        """The working directory of its process."""
        return REPOSITORY

    def command(self) -> list[str]:
        """The command that starts it, in `folder`."""
        words = [sys.executable, str(Path("agents") / f"{self.script}.py"), *([self.preset] if self.preset else [])]
        words += [*as_words(self.flags), *as_words(self.places)]
        if self.parent is not None:
            at = "" if self.branch_step is None else f"@{self.branch_step}"
            words += ["--branch", f"{self.parent.directory}{at}"]
        return [*words, "--directory", str(self.directory)]

    def resume_command(self) -> list[str]:
        """The command that resumes it from its checkpoint."""
        return [sys.executable, str(Path("agents") / f"{self.script}.py"), "--resume", str(self.directory)]


def as_words(flags: Flags) -> list[str]:
    """Flags as typed on a command line: `{"a.b_c": 1, "nap.enabled": False, "games": ("x", "y")}` -> `--a.b-c 1
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
        if not module.ispkg  # what experiments share
    )


def load(name: str) -> Experiment:
    """An experiment by its name, `fig2-right` for runs/experiments/fig2_right.py, or by the path of a .py file.

    Raises:
        RunError: there is no such experiment or file, or the file defines no EXPERIMENT.
    """
    if name.endswith(".py"):
        return _load_file(Path(name))
    if name not in names():
        if Path(name).exists():
            raise RunError(f"{name} is no experiment (python -m runs list); for runs, use board, compare or plot")
        near = [known for known in names() if known.startswith(name)] or difflib.get_close_matches(name, names())
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names())}"
        raise RunError(f"there is no experiment {name}; {hint} (or give the path of a .py file)")
    experiment: Experiment = importlib.import_module(f"runs.experiments.{name.replace('-', '_')}").EXPERIMENT
    return experiment


def is_experiment(word: str) -> bool:
    """Whether a word on a command line is meant as the name of an experiment, and not as a path of runs."""
    if word == "all" or word.endswith(".py") or word in names():
        return True
    return not (Path(word).exists() or "/" in word or glob.has_magic(word))


def chosen(words: Sequence[str], scale: str) -> list[Experiment]:
    """The experiments named on a command line; `all` means all that have this scale.

    Raises:
        RunError: no name is given, there is no such experiment, or with `all` none has this scale.
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
    """The command that makes its runs in this folder."""
    where = "" if logs == LOGS else f" --logs {shlex.quote(str(logs))}"
    return f"python -m runs run {experiment.word} --scale {scale}{where}"


class Unfinished(RunError):
    """Runs of an experiment are missing."""


class NoRuns(Unfinished):
    """No run of an experiment is finished."""

    def __init__(self, experiment: Experiment, scale: str, logs: Path):
        folder = logs / experiment.name / scale
        super().__init__(
            f"no run of {experiment.name} at {scale} is finished in {folder}: {run_command(experiment, scale, logs)}"
        )


def _load_file(path: Path) -> Experiment:
    # A name that no import asks for: a file random.py must not replace the module.
    spec = importlib.util.spec_from_file_location(f"experiment of {path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise RunError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    if not isinstance(experiment := getattr(module, "EXPERIMENT", None), Experiment):
        raise RunError(f"{path} defines no EXPERIMENT")
    import runs.experiments

    ours = any(path.resolve().parent == Path(folder).resolve() for folder in runs.experiments.__path__)
    if experiment.name in names() and not ours:
        raise RunError(f"{path}: the name {experiment.name} is that of another experiment; give yours its own name")
    return replace(experiment, file=str(path))


def plan(experiment: Experiment, scale: str, logs: Path) -> list[Job]:
    """All runs of an experiment at a scale, seed by seed, so that the first finished runs can be compared.

    Args:
        experiment: what to run.
        scale: one of `experiment.scales`.
        logs: folder of the run directories.
    Raises:
        RunError: there is no such scale, or an arm branches from a run that is not there.
    """
    if scale not in experiment.scales:
        raise RunError(f"{experiment.name} has no scale {scale}; it has {', '.join(experiment.scales)}")
    size = experiment.scales[scale]
    arms = [arm for arm in experiment.arms if size.arms is None or arm.name in size.arms]
    jobs = []
    for seed in size.seeds:
        for world, world_flags in size.worlds.items():
            siblings: dict[str, Job] = {}  # of this seed and task
            for arm in (size.instead.get(arm.name, arm) for arm in arms):
                device = {"device": "cuda"} if size.gpus else {}
                flags = {
                    **arm.flags, **size.flags, **size.by_arm.get(arm.name, {}), **world_flags, **device,
                    "seed": seed, "threads": size.threads, "exp_name": arm.name,
                }  # fmt: skip
                parent, step = _parent(experiment, scale, arm, flags.pop("branch", None), siblings)
                run = f"{arm.name}{f'--{world}' if world else ''}-s{seed}"
                words = (experiment.name, scale, arm.name, world, seed, arm.script, arm.preset, flags)
                directory = logs / (size.folder or f"{experiment.name}/{scale}") / run
                place = (directory, size.threads, size.gpus)
                job = Job(f"{experiment.name}/{scale}/{run}", *words, *place, parent=parent, branch_step=step)
                siblings[arm.name] = job
                jobs.append(job)
    return jobs


def _parent(
    experiment: Experiment, scale: str, arm: Arm, branch: str | None, siblings: Mapping[str, Job]
) -> tuple[Job | None, int | None]:
    """The run that an arm branches from, and the step; (None, None) if it starts anew."""
    if branch is None:
        return None, None
    name, at, step = branch.partition("@")
    where = f"{experiment.name}, {scale}: the arm {arm.name} branches from {branch}"
    if name not in siblings:
        raise RunError(f"{where}, but no arm {name} comes before it")
    if at and not step.isdecimal():
        raise RunError(f"{where}: after @ comes a step, a whole number")
    if siblings[name].script != arm.script:
        raise RunError(f"{where}, a run of {siblings[name].script}, and is a run of {arm.script}")
    if arm.preset:
        raise RunError(f"{where}, so its flags come from there: it can have no preset, got {arm.preset}")
    return siblings[name], int(step) if at else None


def require_scripts(jobs: Sequence[Job]) -> None:
    """Refuse (RunError) jobs whose script is not there: it is part of a clone, not of a wheel."""
    for job in jobs:
        if not (script := job.folder / "agents" / f"{job.script}.py").exists():
            raise RunError(f"there is no {script}: the scripts come with a clone, installed by pip install -e .")


def with_parents(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, and before each the runs that it branches from."""
    found: dict[str, Job] = {}

    def add(job: Job) -> None:
        if job.parent is not None:
            add(job.parent)
        found.setdefault(job.id, job)

    for job in jobs:
        add(job)
    return list(found.values())
