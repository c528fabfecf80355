"""One dataclass of flags per script, named presets, and resuming a run under the flags it was started with."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from runs.recording.config import config_from_dict, config_to_dict
from runs.recording.directory import CONFIG, read_json
from runs.recording.errors import RunError
from runs.recording.interrupt import fail

T = TypeVar("T")


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

    The first word, if it is not a flag, names the preset that the flags then change; without it they change `cls()`.
    With `--resume RUN_DIR` the configuration is RUN_DIR's; a preset, or a flag that differs from it, is refused.

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
        base = cls() if preset is None else _find(presets, preset).args
        directory = _resume_directory(words)
        if directory is None:
            return _checked(cls, _ask(cls, base, words, presets, prog_description))
        return _resumed(cls, directory, preset, words, presets, prog_description)
    except (RunError, ValueError) as error:
        conflict = preset in presets and isinstance(error, ValueError) and bool(words)
        fail(f"{error} (what you did not type, the preset {preset} set)" if conflict else str(error))
        raise AssertionError("unreachable") from error


def _find(presets: Mapping[str, Preset[T]], name: str) -> Preset[T]:
    if name in presets:
        return presets[name]
    near = difflib.get_close_matches(name, presets, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise RunError(f"unknown preset {name!r}; presets: {', '.join(presets) or 'none'}{hint}")


def _resume_directory(words: Sequence[str]) -> Path | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    parser.add_argument("--resume")
    directory = parser.parse_known_args(words)[0].resume
    return None if directory in (None, "None") else Path(directory)


def _resumed(
    cls: type[T],
    directory: Path,
    preset: str | None,
    words: Sequence[str],
    presets: Mapping[str, Preset[T]],
    description: str,
) -> T:
    if not directory.is_dir():
        raise RunError(f"cannot resume {directory}: there is no such directory")
    if not (directory / CONFIG).exists():
        raise RunError(f"cannot resume {directory}: it is not a run directory (no {CONFIG})")
    if preset is not None:
        raise RunError(f"the preset {preset} cannot be given with --resume: the flags come from {directory / CONFIG}")
    recorded = dataclasses.replace(config_from_dict(cls, read_json(directory / CONFIG)), resume=directory)  # type: ignore[type-var]
    asked = dict(_flags(config_to_dict(_ask(cls, recorded, words, presets, description))))
    for flag, value in _flags(config_to_dict(recorded)):
        if asked[flag] != value and flag != "--resume":
            raise RunError(
                f"{flag} is {value!r} in {directory / CONFIG} but {asked[flag]!r} was asked for; "
                "a resumed run keeps its flags: drop it, or start a new run"
            )
    return recorded


def _ask(cls: type[T], base: T, words: Sequence[str], presets: Mapping[str, Preset[T]], description: str) -> T:
    """Flags over `base`, before `cls` has judged them: its ValueError is to be one line, and tyro would frame it."""
    import tyro

    class Unchecked(cls):  # type: ignore[valid-type, misc]
        def __post_init__(self) -> None:
            pass

    default = Unchecked(**_values(base))
    text = f"{description}\n\n{_list(presets)}".strip()
    return tyro.cli(Unchecked, args=words, default=default, description=text)  # type: ignore[no-any-return]


def _checked(cls: type[T], unchecked: T) -> T:
    return cls(**_values(unchecked))


def _values(args: Any) -> dict[str, Any]:
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(args) if field.init}


def _list(presets: Mapping[str, Preset[T]]) -> str:
    if not presets:
        return ""
    width = max(map(len, presets))
    lines = [f"  {name:<{width}}  {preset.description}" for name, preset in presets.items()]
    return "\n".join(["presets (first word of the command line):", *lines])


def _flags(config: Mapping[str, Any], prefix: str = "--") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = prefix + key.replace("_", "-")
        if isinstance(value, dict):
            yield from _flags(value, name + ".")
        else:
            yield name, value
