"""Mistakes on a command line that are seen before it is read: flags of other programs, stray words, 1e6 for 1000000."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from runs.recording.errors import RunError

_VIDEO = "`python -m runs evaluate RUN --video` films an agent"
_DEVICE = "give --device cpu or --device cuda"
ELSEWHERE: Mapping[str, str] = {
    "--capture-video": _VIDEO, "--record-video": _VIDEO,
    "--cuda": _DEVICE, "--no-cuda": _DEVICE,
    "--torch-deterministic": "runs on a CPU repeat exactly by themselves",
    "--no-torch-deterministic": "runs on a CPU repeat exactly by themselves",
    "--save-model": "a finished agent leaves weights.pt in its run directory",
    "--anneal-lr": "give --schedule.kind linear-decay",
    "--num-envs": "the PPO and Atari scripts step several environments, this one does not",
    "--preset": "a preset is the first word, without a flag",
    "--nap": "give --nap.enabled",
}  # fmt: skip
"""CleanRL's flags, and other guesses, by what does the same here"""
HERE: Mapping[str, str] = {"--capture-video": "--record-video"}
"""CleanRL's flags by the name that they have here, in scripts that have it"""


def refuse_stray(cls: Any, words: Sequence[str], presets: Mapping[str, Any]) -> None:
    """Refuse (RunError) a word that belongs to no flag: a preset that is not first, or the value of a switch; and 1e6
    as a whole number."""
    hints, flag, room = dict(_flag_types(cls, "--")), "", 0.0
    for word in words:
        if re.match(r"--[a-zA-Z]|-h$", word):
            flag, has_value, value = word.partition("=")
            flag = flag.replace("_", "-")
            room = _words_of(hints.get(flag))
            if has_value:
                _refuse_value(flag, hints.get(flag), value)
                room = math.inf if room == math.inf else 0
        elif room > 0:
            room -= 1
            _refuse_value(flag, hints.get(flag), word)
        elif flag in hints and hints[flag] is bool:
            _refuse_value(flag, bool, word)
        elif word in presets:
            raise RunError(f"the preset {word} must be the first word, before all flags, and the only preset")
        else:
            raise RunError(f"{word!r} belongs to no flag" + (f": {flag} is complete without it" if flag else ""))


def _refuse_value(flag: str, hint: Any, value: str) -> None:
    if hint is bool:
        group, _, name = flag.rpartition(".")
        on = f"{group}.{name}" if group else name
        on = re.sub(r"(^--|\.)no-", r"\1", on) if "no-" in name else on
        off = re.sub(r"^(--(?:.*\.)?)", r"\1no-", on)
        raise RunError(f"{flag} takes no value, got {value}: give {on}, or {off} to turn it off")
    if _single(hint) is int and re.fullmatch(r"[\d.]+(e\+?\d+)?", value, re.I):
        with contextlib.suppress(ValueError):
            if not value.isdecimal() and float(value).is_integer():
                raise RunError(f"{flag} is a whole number: write {float(value):.0f} for {value}")


def _words_of(hint: Any) -> float:
    """How many words a flag of this type takes."""
    if hint is bool:
        return 0
    if get_origin(hint) is tuple:
        items = get_args(hint)
        return math.inf if items[-1:] == (...,) else len(items)
    return max(map(_words_of, get_args(hint)), default=1) if get_origin(hint) in (Union, types.UnionType) else 1


def _single(hint: Any) -> Any:
    """The type of one word: int for int, for int | None and for tuple[int, ...]."""
    parts = {part for part in get_args(hint) if part not in (type(None), ...)}
    return parts.pop() if len(parts) == 1 and get_origin(hint) is not Literal else hint


def refuse_unknown(cls: Any, words: Sequence[str]) -> None:
    """Refuse (RunError) a flag that a dataclass does not have, with the one that may be meant."""
    known = sorted(_flag_names(cls, "--"))
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if (
            re.fullmatch(r"--[a-zA-Z][\w.-]*", flag)
            and flag not in known
            and not flag.startswith(("--help", "--tyro-"))
        ):
            moved = re.sub(r"^--no-(.+)\.", r"--\1.no-", flag)  # --no-nap.enabled is --nap.no-enabled
            near = [moved] if moved in known else difflib.get_close_matches(flag, known, n=1, cutoff=0.76)
            hint = f"did you mean {near[0]}?" if near else "--help lists all flags"
            if HERE.get(flag) in known:
                raise RunError(f"unknown flag {flag}; give {HERE[flag]}")
            raise RunError(f"unknown flag {flag}; {ELSEWHERE.get(flag, hint)}")


def _flag_names(cls: Any, prefix: str) -> Iterator[str]:
    """Every flag of a dataclass and its groups, also as --no-flag."""
    yield from (name for name, _ in _flag_types(cls, prefix))


def _flag_types(cls: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every flag of a dataclass and its groups, also as --no-flag, with its type."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _flag_types(hints[field.name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hints[field.name]
            if hints[field.name] is bool:
                yield f"{prefix}no-{name}", bool
