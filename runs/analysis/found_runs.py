"""The run directories that words on a command line mean: runs, folders that hold runs, and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from runs.analysis.events import PATTERN, event_files, is_event_file
from runs.recording import RunError

_FILES = ("scalars.csv", "status.json")


def is_run(path: Path) -> bool:
    """Whether a directory holds a run of ours, or event files of another program."""
    return any((path / name).exists() for name in _FILES) or bool(event_files(path))


def found_runs(words: Sequence[str], page: str) -> list[Path]:
    """Every run, each once, in the order of the words and then of the names.

    Args:
        words: run directories, event files, folders with runs at any depth, or glob patterns of them.
        page: a file that marks folders which hold no runs, although they look so; they are left out.
    Raises:
        RunError: a word means no run.
    """
    found: dict[Path, Path] = {}
    for word in words:
        paths = [Path(word)] if os.path.exists(word) else sorted(map(Path, glob.glob(word, recursive=True)))
        inside = [run for path in paths for run in _below(path, page)]
        if not inside:
            what = "there is no such file or directory" if not paths else "it holds no run"
            raise RunError(f"no run in {word}: {what} (a run has scalars.csv, or event files, {PATTERN})")
        for run in inside:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _below(path: Path, page: str) -> Iterator[Path]:
    if path.is_file():
        if is_event_file(path):  # others that a pattern matches, as logs, are left out
            yield path
        return
    for folder, below, files in os.walk(path, followlinks=False):
        if page in files:
            below.clear()
        elif is_run(Path(folder)):
            yield Path(folder)
            below.clear()
        below[:] = sorted(name for name in below if not name.startswith("."))
