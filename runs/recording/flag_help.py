"""What a script's --help prints: two screens, with groups and presets folded. --help-all prints everything."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shlex
import shutil
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from runs.recording.config import own_fields_first

_LEFT = 28
"""columns of a flag's name"""


@cache
def own_helps(cls: type) -> dict[str, str]:
    """Texts below the fields that this class itself defines, by field."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match below:
                case ast.Expr(ast.Constant(str(text))):
                    found[field.target.id] = " ".join(inspect.cleandoc(text).split())
    return found


def help_of(cls: type, name: str) -> str:
    """The text of a field, from the class that comes first in the order of inheritance and has one."""
    return next((own_helps(one)[name] for one in cls.__mro__ if one is not object and name in own_helps(one)), "")


def groups(cls: Any) -> dict[str, type]:
    """The groups of flags of a dataclass, by name."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if dataclasses.is_dataclass(hints[f.name])}


def short_help(cls: Any, values: Any, presets: Mapping[str, str], description: str) -> str:
    """Usage, an example, presets by name, every flag outside a group, and a line for each group.

    Args:
        cls: the script's flags.
        values: the defaults to show, an object of `cls`.
        presets: descriptions by name.
        description: what the script does.
    """
    script = sys.argv[0]
    command = f"python {shlex.quote(Path(script).as_posix())}"
    chosen = next((f" {name}" for name in ("nap", "quick-nap", *presets) if name in presets), "")
    lines = [
        f"usage: {script} {'[PRESET] ' if presets else ''}[--flag value ...]", "",
        *textwrap.wrap(description, width()), "",
        f"example: {command}{chosen} --seed 2", "",
    ]  # fmt: skip
    if presets:
        lines += ["presets, given as the first word (--help-presets describes them):"]
        lines += [line for family in families(list(presets)) for line in _wrapped(family, "  ", "      ")]
        lines += [""]
    lines += ["flags:", *_rows(cls, values, ""), ""]
    lines += ["groups of flags (--help-all prints them all):"]
    for name, group in groups(cls).items():
        lines += _row(f"--{name.replace('_', '-')}.*", f"{_title(group)} [--help-{name.replace('_', '-')}]")
    return "\n".join(lines)


def group_help(cls: Any, values: Any, name: str) -> str:
    """The flags of one group."""
    group = groups(cls)[name]
    return "\n".join([*textwrap.wrap(_title(group), width()), "", *_rows(group, getattr(values, name), f"{name}.")])


def preset_help(presets: Mapping[str, str]) -> str:
    """Every preset and what it is."""
    longest = max(map(len, presets), default=0)
    return "\n".join(
        ["presets (first word of the command line):"] + [f"  {n:<{longest}}  {presets[n]}" for n in presets]
    )


def families(names: Sequence[str]) -> list[str]:
    """Names on one line, those with the same first word together: `chain-{plain, fresh, nap}`."""
    kin: dict[str, list[str]] = {}
    for name in names:
        first, dash, _ = name.partition("-")
        kin.setdefault(first if dash else "", []).append(name)
    alone = [name for name in names if "-" not in name or len(kin[name.partition("-")[0]]) < 3]
    folded = [
        f"{first}-{{{', '.join(name.partition('-')[2] for name in members)}}}"
        for first, members in kin.items()
        if first and len(members) >= 3
    ]
    return [*([", ".join(alone)] if alone else []), *folded]


def width() -> int:
    """Columns of the terminal, at most 100."""
    return min(shutil.get_terminal_size().columns, 100)


def _title(group: type) -> str:
    return " ".join(inspect.cleandoc(group.__doc__ or "").split("\n\n")[0].split())


def _rows(cls: Any, values: Any, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in own_fields_first(cls) if not prefix else dataclasses.fields(cls):
        if not dataclasses.is_dataclass(hint := hints[field.name]):
            value = getattr(values, field.name)
            notes = [f"default: {_shown(value)}"] if value not in (None, ()) and not isinstance(value, bool) else []
            if isinstance(value, bool):
                notes = ["on by default; --" + f"{prefix}no-{field.name}".replace("_", "-")] if value else []
            if typing.get_origin(hint) is typing.Literal:
                notes.append("one of " + ", ".join(map(str, typing.get_args(hint))))
            after = f" [{'; '.join(notes)}]" if notes else ""
            yield from _row(f"--{prefix}{field.name}".replace("_", "-"), help_of(cls, field.name) + after)


def _row(flag: str, meaning: str) -> list[str]:
    return _wrapped(meaning, f"  {flag:<{_LEFT}} ", " " * (_LEFT + 3)) or [f"  {flag}"]


def _wrapped(text: str, first: str, then: str) -> list[str]:
    return textwrap.wrap(
        text, width(), initial_indent=first, subsequent_indent=then, break_long_words=False, break_on_hyphens=False
    )


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
