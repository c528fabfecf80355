"""The table of scalars, scalars.csv: one line `step,tag,value` per number, without rounding."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runs.recording.errors import RunError
from runs.recording.files import AppendFile, crc_of, failures_named

TABLE = "scalars.csv"
_HEADER = b"step,tag,value\n"
_WHAT_TO_DO = "restore it from a copy, or start a new run elsewhere"


class ScalarTable:
    """Appends to scalars.csv. A resumed run cuts it to its `length` at the checkpoint.

    Raises:
        RunError: the file cannot be written, or is shorter than the checkpoint says.
    """

    def __init__(self, directory: Path, length: int | None = None):
        path = directory / TABLE
        if length is not None:
            require_length(directory, length)
            with failures_named(f"cut {path.name}", path):
                os.truncate(path, length)
        self.file = AppendFile(path)
        if length is None:
            self.file.write(_HEADER)

    def add(self, tag: str, value: float, step: int) -> None:
        """Append one number; its repr reads back as the same float, including nan and inf."""
        self.file.write(f"{step},{tag},{value!r}\n".encode())


def require_length(directory: Path, length: int) -> None:
    """Refuse a table that is shorter than `length`, its bytes at the checkpoint.

    Raises:
        RunError: it is shorter, or cannot be read.
    """
    path = directory / TABLE
    with failures_named(f"read {path.name}", path):
        size = path.stat().st_size
    if size < length:
        raise RunError(f"{path} has {size} bytes, but had {length} at the checkpoint: lines are missing; {_WHAT_TO_DO}")


def require_unchanged(directory: Path, length: int, crc: int) -> None:
    """Refuse a table whose first `length` bytes, those at the checkpoint, have changed since.

    Raises:
        RunError: they have another CRC-32, or cannot be read.
    """
    if crc_of(directory / TABLE, length) != crc:
        raise RunError(
            f"{directory / TABLE} was changed after the checkpoint: its checksum does not match; {_WHAT_TO_DO}"
        )


def require_whole(directory: Path, status: Mapping[str, Any]) -> None:
    """Refuse the table of a finished run if its length has changed since; `status` is the content of status.json.

    Runs from before the length was recorded are accepted.

    Raises:
        RunError: it is shorter or longer, or cannot be read.
    """
    if "table_bytes" not in status:
        return
    path, length = directory / TABLE, status["table_bytes"]
    with failures_named(f"read {path.name}", path):
        size = path.stat().st_size
    if size != length:
        what = "lines are missing" if size < length else "something was added to it"
        raise RunError(
            f"{path} has {size} bytes, but had {length} at the end of the run: {what}; repeat the run elsewhere"
        )


def rows(directory: Path, length: int) -> Iterator[tuple[int, str, float]]:
    """(step, tag, value) of every line in the first `length` bytes of an undamaged table, in the order of writing."""
    with open(directory / TABLE, "rb") as file:
        at = len(file.readline())
        while at < length:
            line = file.readline()
            at += len(line)
            step, tag, value = line.decode().split(",")
            yield int(step), tag, float(value)


def read_scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Read a run's table.

    Args:
        directory: the run directory; the run may still be running.
    Returns:
        {tag: [(step, value), ...]} in the order of writing. A last line without a line break (after a kill, or during a
        write) is left out, because its number may be incomplete.
    Raises:
        RunError: there is no table, or a complete line is not `step,tag,value`.
    """
    path = Path(directory) / TABLE
    with failures_named(f"read {TABLE}", path):
        text = path.read_bytes().decode(errors="replace")
    curves: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(text.split("\n")[1:-1], start=2):
        try:
            step, tag, value = line.split(",")
            curves.setdefault(tag, []).append((int(step), float(value)))
        except ValueError:
            raise RunError(f"{path} line {number} is not 'step,tag,value': {line[:80]!r}") from None
    return curves
