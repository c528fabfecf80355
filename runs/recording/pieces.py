"""Files beside a checkpoint that it names: a replay memory of gigabytes is written once, not with every checkpoint."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runs.recording.checkpoint import load_checkpoint, save_checkpoint
from runs.recording.files import failures_named

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class Pieces:
    """Parts of a state, each in a file of its own that is never changed once a checkpoint names it.

    Write new pieces, then the checkpoint that names them, then let go of those that it does not: killed at any moment,
    the checkpoint on disk finds every piece that it names. A piece is checked as a checkpoint is when it is read.

    Args:
        directory: made with the first piece.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a piece; see `save_checkpoint` for what it may hold and what is raised.

        Raises:
            ValueError: a name that is not of lower-case letters, digits and hyphens.
        """
        path = self._path(name)
        with failures_named(f"write {path.name}", path):
            self.directory.mkdir(exist_ok=True)
        save_checkpoint(path, content)

    def read(self, name: str) -> dict[str, Any]:
        """Read a piece; raises RunError, as `load_checkpoint` does, when it is missing or damaged."""
        return load_checkpoint(self._path(name))

    def keep_only(self, names: Iterable[str]) -> None:
        """Remove all pieces but these; what cannot be removed stays."""
        kept = {self._path(name) for name in names}
        for path in self.directory.glob("*.pt"):
            if path not in kept:
                with contextlib.suppress(OSError):
                    path.unlink()
        if not kept:
            with contextlib.suppress(OSError):
                self.directory.rmdir()

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a piece: use lower-case letters, digits and hyphens")
        return self.directory / f"{name}.pt"
