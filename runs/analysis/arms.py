"""Runs made by hand, grouped into arms by what differs in their configuration.

Two runs are of the same arm if they differ in nothing but their seed, their task (env_id or dataset) and their names.
An arm is called by its exp_name, and, if several arms have the same, also by settings that tell them apart.

`run_groups.group` is stricter, because it compares: it refuses arms that differ in their budget, for instance. Here
such arms are shown next to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runs.analysis.curves import Recorded
from runs.analysis.run_groups import NAMES, TASKS, add_run, require_settings, setting
from runs.recording import RunError

_LONGEST = 40


@dataclass(frozen=True)
class Arms:
    """Runs by arm, then by task; "" is the task where there is only one."""

    runs: Mapping[str, Mapping[str, Sequence[Recorded]]]
    differ: Sequence[str]
    """settings in which arms differ"""
    left_out: Sequence[Recorded]
    """unfinished runs of which a finished one exists"""


def arms_of(runs: Sequence[Recorded], by: Sequence[str] = ()) -> Arms:
    """Group runs.

    Args:
        runs: in any order.
        by: settings that tell arms apart; empty: every one that differs.
    Raises:
        RunError: a run has no seed, or lacks a setting of `by`; two have the same arm, task and seed.
    """
    require_settings(runs, ("seed", *by), {})
    task = next((key for key in TASKS if all(key in run.config for run in runs)), "")
    keys = list(by) or _differing(runs, {*NAMES, "seed", task})
    names = _names(runs, keys, by)
    single = len({run.config.get(task) for run in runs}) == 1
    arms: dict[str, dict[str, list[Recorded]]] = {}
    left_out: list[Recorded] = []
    for run, name in sorted(zip(runs, names, strict=True), key=lambda pair: bool(pair[0].unfinished)):
        where = "" if single else _as_folder(run.config[task])
        members = arms.setdefault(name, {}).setdefault(where, [])
        if run.unfinished and any(_again(run, other) for other in members):
            left_out.append(run)
        else:
            add_run(run, members, name)
    ordered = {name: dict(sorted(arms[name].items())) for name in sorted(arms)}
    return Arms(ordered, keys if len(ordered) > 1 else [], left_out)


def _again(run: Recorded, other: Recorded) -> bool:
    return run.config["seed"] == other.config["seed"] and not other.unfinished


def _differing(runs: Sequence[Recorded], ignored: set[str]) -> list[str]:
    keys = sorted({key for run in runs for key in run.config} - ignored)
    return [key for key in keys if len({_value(run, key) for run in runs}) > 1]


def _value(run: Recorded, key: str) -> str:
    return str(setting(run, key))


def _names(runs: Sequence[Recorded], keys: Sequence[str], by: Sequence[str]) -> list[str]:
    """The name of each run's arm: runs have the same name if and only if they have the same values of `keys`."""
    experiments = ["" if by else str(run.config.get("exp_name", "")) for run in runs]
    short = []
    for run, name in zip(runs, experiments, strict=True):
        alike = [other for other, its in zip(runs, experiments, strict=True) if its == name]
        stated = [f"{key}={_value(run, key)[:_LONGEST]}" for key in by or _telling(alike, keys)]
        shown = [name] if name and (len(set(experiments)) > 1 or not stated) else []
        short.append(_as_folder(", ".join([*shown, *stated]) or "runs"))
    values = [(name, *(_value(run, key) for key in keys)) for run, name in zip(runs, experiments, strict=True)]
    if len(set(short)) < len(set(values)):  # the beginnings of long values are the same
        number = {value: k for k, value in enumerate(dict.fromkeys(values), start=1)}
        return [f"{name} ({number[value]})" for name, value in zip(short, values, strict=True)]
    return short


def _telling(runs: Sequence[Recorded], keys: Sequence[str]) -> list[str]:
    """Few of the settings `keys` whose values tell apart the runs that differ in any of them."""

    def groups(some: Sequence[str]) -> int:
        return len({tuple(_value(run, key) for key in some) for run in runs})

    chosen: list[str] = []
    while groups(chosen) < groups(keys):
        chosen.append(max(keys, key=lambda key: groups([*chosen, key])))
    return sorted(chosen)


def _as_folder(name: object) -> str:
    """A name that can be that of a folder."""
    text = str(name).replace("/", "-").replace("\n", " ")
    if text.strip(".") == "":
        raise RunError(f"{name!r} cannot be the name of an arm or task")
    return text
