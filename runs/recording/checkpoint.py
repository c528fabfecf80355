"""Checkpoint files: written completely or not at all, and refused if a single bit has changed.

Layout: magic (16 bytes), format version and payload length (two unsigned 64-bit, little-endian), sha256 of the payload
(32 bytes), then the payload of torch.save.
"""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path
from typing import Any, BinaryIO

from runs.recording.errors import RunError
from runs.recording.files import replace_atomically
from runs.recording.serialise import from_plain, to_plain

_MAGIC = b"rewarm-checkpnt\n"
_VERSION = 1
_HEADER = struct.Struct("<16sQQ32s")
_CHUNK = 1 << 20


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` atomically: a kill or a full disk leaves the previous file unchanged.

    Args:
        state: nested dict, list, tuple, str, int, float, bool, None, tensors, numpy arrays and numpy scalars.
    Raises:
        ValueError: the state holds something else (see `to_plain`).
        RunError: the disk is full or the directory cannot be written.
    """
    import torch

    plain = to_plain(state)

    def write(file: BinaryIO) -> None:
        file.write(bytes(_HEADER.size))
        payload = _HashingWriter(file)
        torch.save(plain, payload)
        payload.raise_failure()
        file.seek(0)
        file.write(_HEADER.pack(_MAGIC, _VERSION, payload.length, payload.digest.digest()))

    replace_atomically(path, write)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of `save_checkpoint`; tensors are loaded to the CPU.

    Raises:
        RunError: the file is missing, not a checkpoint, truncated, or altered; the message says which.
    """
    import torch

    try:
        with open(path, "rb") as file:
            _verify(file, path)
            payload = io.BufferedReader(_Payload(file))
            state = torch.load(payload, map_location="cpu", weights_only=True)  # type: ignore[arg-type]
            payload.detach()
    except OSError as error:
        raise RunError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except RunError:
        raise
    except Exception as error:  # the bytes are unchanged, so torch does not accept this format
        raise RunError(f"{path} is intact but this torch cannot read it: {_first_line(error)}") from error
    return from_plain(state)  # type: ignore[no-any-return]


def _verify(file: BinaryIO, path: Path) -> None:
    header = file.read(_HEADER.size)
    if not header.startswith(_MAGIC[: max(len(header), 1)]):
        what = "is not a checkpoint of these scripts" if header else "is empty"
        raise RunError(f"{path} {what}")
    if len(header) < _HEADER.size:
        raise RunError(f"{path} is truncated: it ends within its header")
    _, version, length, expected = _HEADER.unpack(header)
    if version != _VERSION:
        raise RunError(f"{path} is a checkpoint of format {version}; this version reads format {_VERSION}")
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    if size != length:
        raise RunError(f"{path} is {'truncated' if size < length else 'too long'}: {size} of {length} bytes of state")
    if digest.digest() != expected:
        raise RunError(f"{path} is damaged: its checksum does not match its content")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _HashingWriter:
    """Forwards and hashes what is written. Keeps an OSError for later, as torch's C++ writer would replace it."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._failure: OSError | None = None
        self.digest = hashlib.sha256()
        self.length = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self._failure is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._failure = error
        self.digest.update(data)
        self.length += size
        return size

    def flush(self) -> None:
        """Does nothing: the file is flushed once, at the end."""

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


class _Payload(io.RawIOBase):
    """The file after its header, so that torch reads it in place and not from a copy in memory."""

    def __init__(self, file: BinaryIO):
        self._file = file
        file.seek(_HEADER.size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)  # type: ignore[attr-defined, no-any-return]

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset + (_HEADER.size if whence == 0 else 0), whence) - _HEADER.size

    def tell(self) -> int:
        return self._file.tell() - _HEADER.size
