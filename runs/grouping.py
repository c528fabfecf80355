"""Which runs may be compared: arms, tasks and seeds, and what their configurations may differ in.

Runs of one arm differ in seed and task, and in nothing else.

What arms may differ in depends on how they are told apart. `exp_name`, the default, is a name that states nothing. To
have every comparison list its settings again would teach users to wave the refusal through; so arms with names may
differ in any setting of the agent, which the comparison then lists for its reader, but not in PROTOCOL: how long, on
what, and how is measured. An arm that had twice the steps is no arm. Told apart by a setting (`by` nap.enabled), or
with `differ_in`, the difference is stated, and every other one is refused. `allow` lets named settings pass everywhere.

A setting that only one of two runs has is a difference where it was to be the same: a script has gained a flag since.
It is not one for PROTOCOL and named arms, as runs of different programs (CleanRL's) hardly ever have the same settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runs.curves import Recorded
from runs.recording import RunError

NAMES = (
    "exp_name", "directory", "resume",
    # CleanRL's, of which nothing that is measured depends
    "track", "wandb_project_name", "wandb_entity", "capture_video", "save_model", "upload_model", "hf_entity",
)  # fmt: skip
"""what no run is told apart by, unless asked to: names, places, and what is kept of a run"""

PROTOCOL = (
    "total_timesteps", "total_updates", "phase_updates", "phase_epochs",
    "env_id", "shift", "protocol", "dataset", "batches", "train_images", "fractions", "p", "operation",
    "train_fraction",
    "eval_every", "eval_episodes", "eval_epsilon", "evaluations_per_decade",
)  # fmt: skip
"""settings that no arm with a name may differ in: budget, task, and how it is evaluated; groups with all in them"""

TASKS = ("env_id", "dataset")
"""settings that tell tasks apart, the first that every run has"""

_MISSING = "(missing)"


@dataclass(frozen=True)
class Groups:
    """Runs by arm, then by task, then in the order of their seeds; arms and tasks by the alphabet."""

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
    """Sort runs into arms, tasks and seeds, and refuse what cannot be compared.

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
    _refuse_unknown(runs, (*by, task, "seed"), {"--differ-in": differ_in, "--allow-different": allow})
    task = task or next((key for key in TASKS if all(key in run.config for run in runs)), "")
    arms: dict[str, dict[str, list[Recorded]]] = {}
    firsts: dict[str, Recorded] = {}
    ignored = ({*NAMES, "seed", task} | set(by)) - {""}
    for run in runs:
        arm = (
            str(run.config[by[0]]) if len(by) == 1 and by[0] in NAMES else ", ".join(f"{k}={run.config[k]}" for k in by)
        )
        first = firsts.setdefault(arm, run)
        if odd := [key for key in differences(first, run) if key not in ignored and not covers(allow, key)]:
            raise RunError(
                f"{first.directory} and {run.directory} are both {arm} and differ in {_shown(odd, (first, run))}: give "
                f"one --exp-name, or say --allow-different {' '.join(odd)}"
            )
        place = arms.setdefault(arm, {}).setdefault(str(run.config[task]) if task else "all", [])
        for other in place:
            if other.directory.resolve() == run.directory.resolve():
                raise RunError(f"{run.directory} is given twice")
            if other.config["seed"] == run.config["seed"]:
                seed = run.config["seed"]
                raise RunError(f"{other.directory} and {run.directory} are both {arm}, seed {seed}: leave one out")
        place.append(run)
    differ, partial = _between(firsts, ignored, by, differ_in, allow)
    ordered = {
        arm: {
            one: sorted(found, key=lambda run: str(run.config["seed"]).zfill(20))
            for one, found in sorted(tasks.items())
        }
        for arm, tasks in sorted(arms.items())
    }
    return Groups(ordered, differ, partial)


def differences(one: Recorded, other: Recorded) -> list[str]:
    """Settings that differ, or that only one of the two has."""
    keys = sorted(one.config.keys() | other.config.keys())
    return [key for key in keys if one.config.get(key, _MISSING) != other.config.get(key, _MISSING)]


def covers(names: Iterable[str], key: str) -> bool:
    """Whether a setting is one of `names` or lies in a group of that name: schedule covers schedule.kind."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _between(
    firsts: Mapping[str, Recorded],
    ignored: set[str],
    by: Sequence[str],
    differ_in: Sequence[str],
    allow: Sequence[str],
) -> tuple[list[str], list[str]]:
    """Settings in which arms differ, those that all have and those that some have; refused if they must not."""
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
        why = "that is budget, task or evaluation, and no arm"
    if odd:
        raise RunError(
            f"the arms {', '.join(firsts)} differ in {_shown(odd, found)}, {why}: run them alike, or say "
            f"--allow-different {' '.join(odd)}"
        )
    return differ, partial


def _refuse_unknown(runs: Sequence[Recorded], needed: Sequence[str], flags: Mapping[str, Sequence[str]]) -> None:
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
    """Settings with the values that they have, each value once."""
    values = {key: list(dict.fromkeys(str(run.config.get(key, _MISSING)) for run in runs)) for key in keys}
    return ", ".join(f"{key} ({' | '.join(found)})" for key, found in values.items())
