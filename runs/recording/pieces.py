"""Parts of a checkpoint in their own files, so that not every checkpoint writes gigabytes of replay memory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runs.recording.checkpoint import load_checkpoint, save_checkpoint
from runs.recording.files import failures_named, link_atomically

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class Pieces:
    """Parts of a state, each in its own file, which is never changed once a checkpoint names it.

    Write new pieces, then the checkpoint that names them, then remove the others. Whenever the process is killed, the
    checkpoint on disk finds every piece that it names. Pieces are verified like checkpoints when they are read.

    Args:
        directory: created with the first piece.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a piece; content and further errors as in `save_checkpoint`.

        Raises:
            ValueError: the name has other characters than lower-case letters, digits and hyphens.
        """
        path = self._path(name)
        with failures_named(f"write {path.name}", path):
            self.directory.mkdir(exist_ok=True)
        save_checkpoint(path, content)

    def read(self, name: str) -> dict[str, Any]:
        """Read a piece; raises RunError, like `load_checkpoint`, if it is missing or damaged."""
        return load_checkpoint(self._path(name))

    def link_to(self, folder: Path, names: Iterable[str]) -> None:
        """Let these pieces exist in another folder too, which takes no more of the disk where there are hard links.

        Raises:
            RunError: a piece is missing, or the disk is full.
        """
        for name in names:
            with failures_named(f"make {folder.name}", folder):
                folder.mkdir(parents=True, exist_ok=True)
            link_atomically(self._path(name), folder / self._path(name).name)

    def keep_only(self, names: Iterable[str]) -> None:
        """Remove all other pieces; files that cannot be removed stay."""
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
            raise ValueError(f"the name of a piece must have lower-case letters, digits and hyphens only, got {name!r}")
        return self.directory / f"{name}.pt"
