"""One writer per run: a lock that the operating system releases when its holder dies."""

from __future__ import annotations

import os
from pathlib import Path

from runs.recording.errors import RunError
from runs.recording.files import failures_named

try:
    import fcntl
except ImportError:  # Windows: no such lock, and two writers are not detected
    fcntl = None  # type: ignore[assignment]


class Locked(RunError):
    """Another process holds the lock."""


def is_held(path: Path) -> bool:
    """Whether a process holds the lock; True where that cannot be found out. The file is not changed."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False  # no lock file, no writer
    except OSError:
        return True
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except OSError:
        pass
    finally:
        os.close(handle)
    return True


class RunLock:
    """Held from construction to `release`. The lock file stays, because removing it would be a race.

    Raises:
        Locked: another process holds it; the message has its id.
        RunError: the file system cannot lock.
    """

    def __init__(self, path: Path):
        with failures_named("open the lock file", path):
            self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if fcntl is None:
            return
        try:
            with failures_named("lock the run", path):
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except RunError as error:
            holder = os.read(self._handle, 32).decode(errors="replace").strip() or "unknown"
            self._close()
            if isinstance(error.__cause__, BlockingIOError):
                raise Locked(f"{path.parent} is being written by another process ({holder})") from None
            raise
        os.ftruncate(self._handle, 0)
        os.write(self._handle, f"process {os.getpid()}\n".encode())

    def release(self) -> None:
        """Release the lock; releasing twice does nothing."""
        if self._handle is not None and fcntl is not None:
            fcntl.flock(self._handle, fcntl.LOCK_UN)
        self._close()

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)
