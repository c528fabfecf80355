"""Words of a command line as a dataclass of flags, by tyro, with one line for what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any, TypeVar

from runs.recording.config import own_fields_first
from runs.recording.errors import RunError
from runs.recording.mistakes import refuse_unknown

T = TypeVar("T")


def read_flags(cls: type[T], words: Sequence[str], *, prog: str, description: str) -> T:
    """Read the command line of a tool.

    Args:
        cls: a dataclass; fields may be `tyro.conf.Positional`. Its `__post_init__` may raise ValueError.
        words: the command line.
        prog: what --help calls the tool.
        description: what the tool does, for --help; its indented lines are printed as they are.
    Raises:
        RunError: the words cannot be read, or `cls` refuses them; one line.
        SystemExit: 0, after --help.
    """
    if not {"-h", "--help"}.isdisjoint(words):
        print(f"{_filled(description)}\n")  # tyro would put each paragraph on one line
    try:
        return with_checks(cls, ask_tyro(without_checks(cls), words, prog=prog, description=""))
    except ValueError as error:
        raise RunError(str(error)) from error


def _filled(text: str) -> str:
    """Paragraphs wrapped for the terminal; a paragraph with indented lines stays as it is."""
    width = min(shutil.get_terminal_size().columns, 100)
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(one if "\n " in f"\n{one}" else textwrap.fill(one, width) for one in paragraphs)


def without_checks(cls: type[T]) -> type[T]:
    """`cls` without its checks, its own flags before those that it inherits: a ValueError should become one line, and
    tyro would put a frame around it."""

    class Unchecked(cls):  # type: ignore[valid-type, misc]
        def __post_init__(self) -> None:
            pass

    Unchecked.__dataclass_fields__ = {field.name: field for field in own_fields_first(cls)}
    return Unchecked


def ask_tyro(cls: type[T], words: Sequence[str], **options: Any) -> T:
    """Let tyro read the words. Its framed messages become a RunError of one line."""
    import tyro

    refuse_unknown(cls, words)
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(cls, args=list(words), **options)  # type: ignore[no-any-return]
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise RunError(f"{_without_frame(message.getvalue())}; --help lists all flags") from leaving


def _without_frame(text: str) -> str:
    """What a framed message says, as one line: its first section, without the title."""
    lines = [line.strip("│╭╮╰╯ ") for line in text.splitlines()][1:]
    if lines and not lines[0].strip("─-"):  # the frame in ASCII has a rule below the title
        lines = lines[1:]
    rule = next((k for k, line in enumerate(lines) if line and not line.strip("─-")), len(lines))
    return " ".join(" ".join(lines[:rule]).split()).partition(" Got errors:")[0].rstrip(".")


def with_checks(cls: type[T], args: T) -> T:
    """The same flags as a `cls`, whose `__post_init__` may raise ValueError."""
    return cls(**values_of(args))


def values_of(args: Any) -> dict[str, Any]:
    """A dataclass's fields, as its constructor takes them."""
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(args) if field.init}
