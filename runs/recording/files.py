"""Writing files so that a kill or a full disk never leaves half a file."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from runs.recording.errors import RunError


@contextlib.contextmanager
def failures_named(action: str, path: Path) -> Iterator[None]:
    """Turn an operating-system error into a RunError that says what could not be done, where and why.

    Raises:
        RunError: "cannot <action> in <directory>: <reason>".
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot {action} in {path.parent}: {error.strerror or error}") from error


def replace_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a temporary file next to `path`, then move it to `path` atomically.

    Before the move the old file is untouched; after it, file and directory entry are on the disk.

    Raises:
        RunError: the disk is full or the directory cannot be written. The old file stays, the temporary one is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with failures_named(f"write {path.name}", path):
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_directory(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` by a file of these bytes; see `replace_atomically`."""

    def write(file: BinaryIO) -> None:
        file.write(data)

    replace_atomically(path, write)


def link_atomically(source: Path, path: Path) -> None:
    """Make `path` another name of the file `source`, or a copy of it where the file system has no hard links.

    Both must be files that are only ever replaced, never changed in place: then each keeps its content whatever becomes
    of the other.

    Raises:
        RunError: the source is missing, the disk is full or the directory cannot be written. The old `path` stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with failures_named(f"write {path.name}", path):
        try:
            try:
                os.link(source, temporary)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOSPC, errno.EDQUOT, errno.EEXIST):
                    raise
                shutil.copyfile(source, temporary)
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_directory(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()  # after a failure; also if the two were one file already, which rename leaves alone


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":  # on other systems a directory cannot be opened, and the rename is durable
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def crc_of(path: Path, length: int) -> int | None:
    """CRC-32 of the first `length` bytes of a file; None if it is missing or shorter.

    Raises:
        RunError: the file cannot be read.
    """
    crc = 0
    with failures_named(f"read {path.name}", path):
        try:
            with open(path, "rb") as file:
                while length and (chunk := file.read(min(length, 1 << 20))):
                    crc, length = zlib.crc32(chunk, crc), length - len(chunk)
        except FileNotFoundError:
            return None
    return None if length else crc


class AppendFile:
    """A file that only grows: bytes are buffered in memory until `flush`.

    After a failed write Python's buffered files try again at close and at exit, and print a traceback each time. This
    one fails once, with a RunError.
    """

    def __init__(self, path: Path):
        self.path = path
        self._buffer = bytearray()
        with failures_named(f"open {path.name}", path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._handle: int | None = os.open(path, flags, 0o666)
            self._length = os.fstat(self._handle).st_size
        self._crc = crc_of(path, self._length) or 0

    def write(self, data: bytes) -> int:
        """Buffer `data` for the next flush; returns its length, as files do."""
        self._buffer += data
        return len(data)

    @property
    def pending(self) -> int:
        """Number of buffered bytes."""
        return len(self._buffer)

    def flush(self, durable: bool = False) -> None:
        """Write the buffer; with `durable`, return only once it is on the disk.

        Raises:
            RunError: the disk is full, or the file is closed (after a failure it is).
        """
        if self._handle is None:
            raise RunError(f"{self.path} is closed: nothing more can be recorded")
        try:
            with failures_named(f"write {self.path.name}", self.path):
                while self._buffer:
                    written = os.write(self._handle, self._buffer)
                    self._crc = zlib.crc32(memoryview(self._buffer)[:written], self._crc)
                    self._length += written
                    del self._buffer[:written]
                if durable:
                    os.fsync(self._handle)
        except RunError:
            self._abandon()
            raise

    def sum(self) -> tuple[int, int]:
        """Length in bytes and CRC-32 of all that was written, once it is safely on the disk.

        Raises:
            RunError: the disk is full, or the file is closed.
        """
        self.flush(durable=True)
        return self._length, self._crc

    def close(self) -> None:
        """Write the buffer and close; closing twice, or after a failure, does nothing.

        Raises:
            RunError: the disk is full.
        """
        if self._handle is not None:
            self.flush()
            self._abandon()

    def _abandon(self) -> None:
        self._buffer.clear()
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)
