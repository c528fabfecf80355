"""Errors about flags: flags without effect, and library errors as one line."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from runs.recording.errors import RunError


def reject_unused(group: str, args: Any, names: Iterable[str], why: str) -> None:
    """Refuse flags that were changed from their default although nothing reads them.

    Args:
        group: the flags' group, "" for none: `--<group>.<name>`.
        args: a dataclass holding them.
        names: fields of `args` that have no effect.
        why: completes "--group.name 3 has no effect ...".
    Raises:
        ValueError: a field differs from its default; the message names it.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    for name in names:
        value = getattr(args, name)
        if value != defaults[name]:
            flag = (f"{group}." if group else "") + name.replace("_", "-")
            raise ValueError(f"--{flag} {value} has no effect {why}; drop it")


@contextlib.contextmanager
def one_line_errors(prefix: str = "", also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn an error of a library about its arguments or a state into a RunError, which the user sees as one line.

    Only for setting up and loading. Later in a run the same errors are bugs and keep their traceback.

    Args:
        prefix: what was being done; it is put before the library's message.
        also: errors that are treated like ValueError and ImportError.
    """
    try:
        yield
    except (ValueError, ImportError, *also) as error:
        message = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{prefix}: {message}" if prefix else message) from error
