"""Command lines: one dataclass of flags, presets by name, and --resume, which takes the flags of the recorded run."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from runs.recording import flag_help
from runs.recording.config import config_from_dict, config_to_dict
from runs.recording.directory import CONFIG, PROVENANCE, read_json, read_status
from runs.recording.errors import RunError
from runs.recording.interrupt import fail
from runs.recording.mistakes import refuse_stray, refuse_unknown
from runs.recording.reading import ask_tyro, values_of, with_checks, without_checks

T = TypeVar("T")

TOTALS = ("total_timesteps", "total_updates")
"""flags that say how long a run is"""
HEADS = {
    "schedule": ("kind",),
    "rewarm": ("trigger",),
    "nap": ("enabled",),
    "shift": ("kind",),
    "intervene": ("methods",),
}
"""flags that decide which others of their group are read"""


@dataclass(frozen=True)
class Preset(Generic[T]):
    """A named configuration: one line for the help text, and the flags it stands for."""

    description: str
    args: T


def presets(cls: type[T], table: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, Preset[T]]:
    """A script's presets: by name, a line for the help text and the flags that differ from the defaults.

    The name becomes --exp-name, the first part of the run's name.
    """
    return {name: Preset(text, cls(**{"exp_name": name, **flags})) for name, (text, flags) in table.items()}


def parse(
    cls: type[T], presets: Mapping[str, Preset[T]], argv: Sequence[str] | None = None, prog_description: str = ""
) -> T:
    """Read the command line `[preset] [flags]`.

    If the first word is not a flag, it names a preset, and the flags change that preset. Otherwise they change `cls()`.
    With `--resume RUN_DIR` the configuration is RUN_DIR's; a preset, or a flag that differs from it, is refused. With
    `--extend TOTAL` as well, the run's total is a new one. With `--branch RUN_DIR` or `RUN_DIR@STEP` the flags change
    those of RUN_DIR, whose state the new run starts from; a preset is refused.

    Args:
        cls: a dataclass with nested dataclass groups and a field `resume: Path | None`. Its `__post_init__` may raise
            ValueError for flags that conflict.
        presets: by name.
        argv: without the script's name; None means sys.argv[1:].
        prog_description: what the script does, for --help.
    Returns:
        The flags; `resume` is set if and only if --resume was given.
    Raises:
        SystemExit: 2 with a message on stderr for anything refused, 0 after --help.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    preset = words.pop(0) if words and not words[0].startswith("-") else None
    try:
        _refuse_beside_seeds(words)
        base = cls() if preset is None else _find(presets, preset).args
        if preset is not None and words and words[0] in presets:
            both = f"; did you mean {preset}-{words[0]}?" if f"{preset}-{words[0]}" in presets else ""
            raise RunError(f"only one preset can be given, got {preset} and {words[0]}{both}")
        _print_help(cls, base, words, presets, prog_description)
        directory, branch = _value_of(words, "--resume"), _value_of(words, "--branch")
        if directory is not None:
            if branch is not None:
                raise RunError("--branch starts a new run and --resume continues one: give one of them")
            return _resumed(cls, Path(directory), preset, words, presets, prog_description)
        if _value_of(words, "--extend") is not None:
            raise RunError("--extend needs --resume RUN, the run that it makes longer")
        if branch is not None:
            return _branched(cls, branch, preset, words, presets, prog_description)
        return with_checks(cls, _ask(cls, base, words, presets, prog_description))
    except (RunError, ValueError) as error:
        conflict = preset in presets and isinstance(error, ValueError) and bool(words)
        fail(f"{error} (flags not on your command line come from the preset {preset})" if conflict else str(error))
        raise AssertionError("unreachable") from error


def _print_help(
    cls: type[T], base: T, words: Sequence[str], presets: Mapping[str, Preset[T]], description: str
) -> None:
    """If help is asked for: print it, and exit."""
    wanted = next((word for word in words if word == "-h" or word.partition("-help")[0] == "-"), "")
    if not wanted or wanted == "--help-all":
        return
    described, topic = {name: preset.description for name, preset in presets.items()}, wanted[len("--help-") :]
    known = {name.replace("_", "-"): name for name in flag_help.groups(cls)}
    if wanted in ("-h", "--help"):
        print(flag_help.short_help(cls, base, described, description))
    elif topic == "presets":
        print(flag_help.preset_help(described))
    elif topic in known:
        print(flag_help.group_help(cls, base, known[topic]))
    else:
        listed = ", ".join(f"--help-{name}" for name in ("all", "presets", *known))
        raise RunError(f"there is no {wanted}; there are --help, {listed}")
    raise SystemExit(0)


def _find(presets: Mapping[str, Preset[T]], name: str) -> Preset[T]:
    if name in presets:
        return presets[name]
    near = difflib.get_close_matches(name, presets, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise RunError(f"unknown preset {name!r}; presets: {', '.join(presets) or 'none'}{hint}")


_BESIDE_SEEDS = {
    "--seed": "list every seed after --seeds",
    "--resume": "a run is resumed on its own",
    "--branch": "a branch has the seed of its parent",
    "--directory": "each seed has a directory of its own, whose name begins with --exp-name",
}


def _refuse_beside_seeds(words: Sequence[str]) -> None:
    """Refuse flags of a single run next to --seeds, and --seeds without a number."""
    given = [word.partition("=")[0] for word in words]
    if "--seeds" in given:
        after = given[given.index("--seeds") + 1 :]
        if words[given.index("--seeds")] == "--seeds" and (not after or after[0].startswith("--")):
            raise RunError("--seeds needs numbers, such as --seeds 1 2 3")
        value = words[given.index("--seeds")].partition("=")[2]
        numbers = list(itertools.takewhile(re.compile(r"[\d,]+").fullmatch, [value] * bool(value) + after))
        if any("," in word for word in numbers):
            spaced = " ".join(" ".join(numbers).replace(",", " ").split())
            raise RunError(f"--seeds takes numbers with spaces between them: --seeds {spaced}")
        for flag, why in _BESIDE_SEEDS.items():
            if flag in given:
                raise RunError(f"--seeds and {flag} cannot be given together: {why}")


def _value_of(words: Sequence[str], flag: str) -> str | None:
    """What is given to this flag; None if nothing is."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    parser.add_argument(flag, dest="value")
    value: str | None = parser.parse_known_args(words)[0].value
    return None if value == "None" else value


def _resumed(
    cls: type[T],
    directory: Path,
    preset: str | None,
    words: Sequence[str],
    presets: Mapping[str, Preset[T]],
    description: str,
) -> T:
    recorded = dataclasses.replace(_recorded(cls, directory, "resume", preset), resume=directory)  # type: ignore[type-var]
    unchecked = _ask(cls, recorded, words, presets, description)
    asked = dict(_flags(config_to_dict(unchecked)))
    for flag, value in _flags(config_to_dict(recorded)):
        if asked[flag] != value and flag not in ("--resume", "--extend"):
            raise RunError(
                f"{flag} is {value!r} in {directory / CONFIG} but {asked[flag]!r} was asked for; "
                "a resumed run keeps its flags: drop it, or start a new run (with --branch, from this run's state)"
            )
    if (total := getattr(unchecked, "extend", None)) is None:
        return recorded
    if (name := next((n for n in TOTALS if hasattr(recorded, n)), None)) is None:
        raise RunError("--extend: how long a run of this script is follows from other flags; start a new run")
    if total <= getattr(recorded, name) and read_status(directory)["status"] == "finished":
        flag = f"--{name.replace('_', '-')}"
        raise RunError(f"--extend {total} does not make the run longer: its {flag} is {getattr(recorded, name)}")
    return dataclasses.replace(recorded, extend=total, **{name: total})  # type: ignore[type-var]


def _branched(
    cls: type[T],
    source: str,
    preset: str | None,
    words: Sequence[str],
    presets: Mapping[str, Preset[T]],
    description: str,
) -> T:
    directory, _ = branch_source(source)
    recorded = _recorded(cls, directory, "branch from", preset, flag="--branch")
    fresh = {"resume": None, "extend": None, "directory": None, "branch": source}
    base: Any = dataclasses.replace(recorded, **fresh)  # type: ignore[type-var]
    try:
        asked: Any = _ask(cls, base, words, presets, description)
        # What --schedule.low and so on meant in the parent does not go with another --schedule.kind.
        for group, heads in HEADS.items():
            given, theirs = getattr(asked, group, None), getattr(recorded, group, None)
            if any(getattr(given, head, None) != getattr(theirs, head, None) for head in heads):
                base = without_checks(cls)(**{**values_of(base), group: getattr(cls(), group)})
        return with_checks(cls, _ask(cls, base, words, presets, description))
    except ValueError as error:
        raise RunError(f"{error} (flags not on your command line come from {directory / CONFIG})") from error


def branch_source(source: str) -> tuple[Path, int | None]:
    """RUN or RUN@STEP as directory and step."""
    path, at, step = source.rpartition("@")
    if not at or Path(source).is_dir():
        return Path(source), None
    if not step.isdecimal():
        raise RunError(f"--branch {source}: after @ comes a step, a whole number, got {step!r}")
    return Path(path), int(step)


def _recorded(cls: type[T], directory: Path, action: str, preset: str | None, flag: str = "--resume") -> T:
    """The flags of a run."""
    if not directory.is_dir():
        raise RunError(f"cannot {action} {directory}: there is no such directory")
    if not (directory / CONFIG).exists():
        raise RunError(f"cannot {action} {directory}: it is not a run directory (no {CONFIG})")
    if preset is not None:
        raise RunError(f"the preset {preset} cannot be given with {flag}: the flags come from {directory / CONFIG}")
    try:
        return config_from_dict(cls, read_json(directory / CONFIG))
    except RunError as error:
        if script := _made_by_another(directory):
            this = Path(sys.argv[0]).name
            raise RunError(f"cannot {action} {directory} with {this}: {script} made this run; {error}") from error
        gained = " (flags that the script has gained since can be named in Args.LATER)"
        raise RunError(f"cannot {action} {directory}: {error}{gained * ('missing keys' in str(error))}") from error


def _made_by_another(directory: Path) -> str:
    """Which other script made a run; empty if it was this one or is not known."""
    try:
        command = read_json(directory / PROVENANCE)["command"]
        script = Path(str(command[0])).name
    except (RunError, KeyError, IndexError, TypeError):
        return ""
    return "" if script == Path(sys.argv[0]).name else script


def _ask(cls: type[T], base: T, words: Sequence[str], presets: Mapping[str, Preset[T]], description: str) -> T:
    """The flags over `base`, before `cls` has checked them."""
    unchecked, words = without_checks(cls), ["--help" if word == "--help-all" else word for word in words]
    refuse_unknown(cls, words)
    refuse_stray(cls, words, presets)
    described = {name: preset.description for name, preset in presets.items()}
    listed = f"\n\n{flag_help.preset_help(described)}" if described else ""
    return ask_tyro(unchecked, words, default=unchecked(**values_of(base)), description=description + listed)


def _flags(config: Mapping[str, Any], prefix: str = "--") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = prefix + key.replace("_", "-")
        if isinstance(value, dict):
            yield from _flags(value, name + ".")
        else:
            yield name, value
