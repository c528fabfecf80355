"""Groups of runs over seeds: which runs belong together, and what groups that are compared may differ in.

`read_groups` groups finished runs by exp_name; the runs of a group may differ in nothing but their seed. `group` is for
comparisons: it sorts runs into arms, tasks and seeds. The runs of an arm may differ in seed and task only.

What arms may differ in depends on how they are told apart. The default, `exp_name`, is a name that states no setting.
Refusing every unstated difference would teach users to switch the check off. So named arms may differ in any setting of
the agent, and the comparison lists these settings. They may not differ in PROTOCOL: budget, task, and evaluation. Arms
that are told apart by a setting (`by` nap.enabled), or by `differ_in`, state their difference: any other is refused.
`allow` lets named settings pass everywhere.

If only one of two runs has a setting, that counts as a difference wherever the setting must be equal: a script has
gained a flag in the meantime. It does not count for PROTOCOL with named arms, because different programs (CleanRL's)
hardly ever have the same settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs.analysis.curves import Recorded, read_run
from runs.recording import RunError

NAMES = (
    "exp_name", "directory", "resume", "seeds", "record_video", "extend", "branch", "keep_checkpoints_every",
    "replay_device",
    # CleanRL's; nothing measured depends on them
    "track", "wandb_project_name", "wandb_entity", "capture_video", "save_model", "upload_model", "hf_entity",
)  # fmt: skip
"""settings that never tell runs apart, unless asked for: names, places, and what is kept of a run"""

PROTOCOL = (
    "total_timesteps", "total_updates", "phase_updates", "phase_epochs",
    "env_id", "shift", "protocol", "dataset", "batches", "train_images", "fractions", "p", "operation",
    "train_fraction",
    "eval_every", "eval_episodes", "eval_epsilon", "evaluations_per_decade",
)  # fmt: skip
"""settings that named arms may not differ in: budget, task and evaluation; a group stands for everything in it"""

TASKS = ("env_id", "dataset")
"""settings that tell tasks apart; the first one that every run has is used"""

_MISSING = "(missing)"
_GAINED: Mapping[str, Any] = {"capture": False, "num_envs": 1, "gradient": "autograd"}
"""settings that scripts have gained: a run made before has none, and did what these values say"""


@dataclass(frozen=True)
class RunGroup:
    """Finished runs that differ in nothing but their seed."""

    name: str
    runs: Sequence[Recorded]

    @property
    def seeds(self) -> list[Any]:
        """One per run."""
        return [run.config["seed"] for run in self.runs]

    @property
    def config(self) -> Mapping[str, Any]:
        """Settings of the first run, flat: nap.enabled."""
        return self.runs[0].config


def read_groups(directories: Sequence[Path]) -> list[RunGroup]:
    """Read finished runs and group them by exp_name, in the order of the directories.

    Raises:
        RunError: there is no run; one is given twice, is not finished, or its table has lost lines; two runs of a group
            have the same seed or differ in more than the seed.
    """
    if not directories:
        raise RunError("there are no runs to read: give run directories")
    groups: dict[str, list[Recorded]] = {}
    for run in map(read_run, directories):
        if run.unfinished:
            raise RunError(f"{run.directory} {run.unfinished}: finish it with --resume, or leave it out")
        require_settings([run], ("exp_name", "seed"), {})
        members = groups.setdefault(str(run.config["exp_name"]), [])
        add_run(run, members, str(run.config["exp_name"]))
        _require_same(members[0], run, str(run.config["exp_name"]), {*NAMES, "seed"})
    return [RunGroup(name, runs) for name, runs in groups.items()]


@dataclass(frozen=True)
class Groups:
    """Runs by arm, then by task, then in the order of their seeds; arms and tasks in alphabetical order."""

    arms: Mapping[str, Mapping[str, Sequence[Recorded]]]
    differ: Sequence[str]
    """settings that all arms have and in which they differ"""
    partial: Sequence[str]
    """settings that only some arms have"""

    @property
    def tasks(self) -> list[str]:
        """Every task of any arm."""
        return sorted({task for by_task in self.arms.values() for task in by_task})


def group(
    runs: Sequence[Recorded],
    by: Sequence[str] = ("exp_name",),
    task: str = "",
    differ_in: Sequence[str] = (),
    allow: Sequence[str] = (),
) -> Groups:
    """Sort runs into arms, tasks and seeds. Refuse what cannot be compared.

    Args:
        runs: in any order.
        by: settings that tell arms apart.
        task: the setting that tells tasks apart; empty takes the first of TASKS that every run has. Without one all
            runs are of the task "all".
        differ_in: settings or groups in which the arms may differ, and in no others.
        allow: settings or groups that may differ, within an arm too.
    Raises:
        RunError: there is no run; one is given twice, lacks a setting that is needed, or has arm, task and seed of
            another; runs or arms differ in what they must not.
    """
    if not runs:
        raise RunError("there is nothing to compare: give run directories")
    require_settings(runs, (*by, task, "seed"), {"--differ-in": differ_in, "--allow-different": allow})
    task = task or next((key for key in TASKS if all(key in run.config for run in runs)), "")
    arms: dict[str, dict[str, list[Recorded]]] = {}
    firsts: dict[str, Recorded] = {}
    ignored = ({*NAMES, "seed", task} | set(by)) - {""}
    for run in runs:
        arm = (
            str(run.config[by[0]]) if len(by) == 1 and by[0] in NAMES else ", ".join(f"{k}={run.config[k]}" for k in by)
        )
        _require_same(firsts.setdefault(arm, run), run, arm, ignored, allow)
        add_run(run, arms.setdefault(arm, {}).setdefault(str(run.config[task]) if task else "all", []), arm)
    differ, partial = _between(firsts, ignored, by, differ_in, allow)
    ordered = {
        arm: {
            one: sorted(found, key=lambda run: str(run.config["seed"]).zfill(20))
            for one, found in sorted(tasks.items())
        }
        for arm, tasks in sorted(arms.items())
    }
    return Groups(ordered, differ, partial)


def add_run(run: Recorded, members: list[Recorded], name: str) -> None:
    """Add a run to those of the same arm and task, which must have other directories and seeds."""
    for other in members:
        if other.directory.resolve() == run.directory.resolve():
            raise RunError(f"{run.directory} is given twice")
        if other.config["seed"] == run.config["seed"]:
            seed = run.config["seed"]
            apart = (
                "" if other.config.get("branch") == run.config.get("branch") else ", or give each its own --exp-name"
            )
            raise RunError(f"{other.directory} and {run.directory} are both {name}, seed {seed}: leave one out{apart}")
    members.append(run)


def _require_same(
    first: Recorded, run: Recorded, name: str, ignored: Iterable[str], allow: Iterable[str] | None = None
) -> None:
    """Two runs of an arm have the same settings; `allow` is None where no flag could allow a difference."""
    odd = [key for key in differences(first, run) if key not in ignored and not covers(allow or (), key)]
    if odd:
        otherwise = "" if allow is None else f", or say --allow-different {' '.join(odd)}"
        raise RunError(
            f"{first.directory} and {run.directory} are both {name} and differ in {_shown(odd, (first, run))}: give "
            f"each its own --exp-name{otherwise}"
        )


def differences(one: Recorded, other: Recorded) -> list[str]:
    """Settings that differ, or that only one of the two has."""
    keys = sorted(one.config.keys() | other.config.keys())
    return [key for key in keys if not _equal(setting(one, key), setting(other, key))]


def setting(run: Recorded, key: str) -> Any:
    """A setting of a run; of one that it lacks, what a run made before there was this setting did, or "(missing)"."""
    return run.config.get(key, _GAINED.get(key, _MISSING))


def _equal(one: Any, other: Any) -> bool:
    """Equal, where a nan equals another, also in a list."""
    return bool(one == other) or repr(one) == repr(other)


def covers(names: Iterable[str], key: str) -> bool:
    """Whether a setting is one of `names`, or in a group of that name: schedule covers schedule.kind."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _between(
    firsts: Mapping[str, Recorded],
    ignored: set[str],
    by: Sequence[str],
    differ_in: Sequence[str],
    allow: Sequence[str],
) -> tuple[list[str], list[str]]:
    """Settings in which arms differ: those that all arms have, and those that only some have.

    Raises:
        RunError: they must not differ.
    """
    found = list(firsts.values())
    keys = sorted({key for other in found[1:] for key in differences(found[0], other)} - ignored)
    differ = [key for key in keys if all(key in run.config for run in found)]
    partial = [key for key in keys if key not in differ]
    stated = (*differ_in, *(key for key in by if key not in NAMES))
    if stated:
        odd = [key for key in keys if not covers((*stated, *allow), key)]
        why = f"and not only in {' '.join(stated)}"
    else:
        odd = [key for key in differ if covers(PROTOCOL, key) and not covers(allow, key)]
        why = "which are budget, task or evaluation"
    if odd:
        raise RunError(
            f"the arms {', '.join(firsts)} differ in {_shown(odd, found)}, {why}: use the same values, or say "
            f"--allow-different {' '.join(odd)}"
        )
    return differ, partial


def require_settings(runs: Sequence[Recorded], needed: Sequence[str], flags: Mapping[str, Sequence[str]]) -> None:
    """Every run has the needed settings, and some run those that flags name.

    Raises:
        RunError: the first that is missing.
    """
    for run in runs:
        for key in filter(None, needed):
            if key not in run.config:
                within = [one for one in run.config if one.startswith(f"{key}.")]
                near = f"it is a group: name one of {', '.join(within)}" if within else "its configuration lacks it"
                raise RunError(f"{run.directory} has no setting {key}: {near}")
    known = {key for run in runs for key in run.config}
    for flag, names in flags.items():
        for name in names:
            if not any(covers([name], key) for key in known):
                raise RunError(f"{flag} {name}: no run has such a setting")


def _shown(keys: Sequence[str], runs: Sequence[Recorded]) -> str:
    """Settings with their values, each value once."""
    values = {key: list(dict.fromkeys(str(setting(run, key)) for run in runs)) for key in keys}
    return ", ".join(f"{key} ({' | '.join(found)})" for key, found in values.items())
