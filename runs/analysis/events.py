"""Scalars and texts of TensorBoard event files of any program: torch's SummaryWriter, TensorFlow 2, CleanRL.

A file is a sequence of records: length (8 bytes), its checksum (4), a protobuf `Event` of this length, its checksum
(4). This module reads the framing, and tensorboard's protobuf classes read the events. For 10,000 scalars this takes
about a sixth of the time of tensorboard's EventAccumulator, which computes checksums byte by byte in Python, and which
silently drops everything after a damaged record.

As in TensorBoard, the files of a directory are read in the order of their names. An event that starts a session at step
s removes all earlier scalars at step s or later: a killed run recorded them after the checkpoint from which it was
resumed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runs.recording.errors import RunError
from runs.recording.files import failures_named

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

PATTERN = "*tfevents*"
"""names of event files, as TensorBoard finds them"""
_NO_EVENTS = ("~", ".swp", ".part", ".filepart", ".crdownload", ".tmp")
"""ends of the names of what lies next to event files: backups of editors, copies under way"""

_HYPERPARAMETERS = (
    "hyperparameters/text_summary",
    "hyperparameters",
)  # torch's add_text, TensorFlow
_FEW = 32  # for fewer records, a loop over their bytes is faster than one over the columns of a matrix


@dataclass
class Events:
    """The content of event files.

    Attributes:
        scalars: {tag: [(step, value), ...]} in the order of writing; event files round values to 32 bits.
        texts: the latest text by tag.
        cut: whether the last file ends in the middle of a record: it is still being written, or its writer was killed.
    """

    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    cut: bool = False


def event_files(directory: Path) -> list[Path]:
    """The event files directly in a directory, in the order of their names. Hidden files, such as macOS's `._*` and
    what rsync has not finished, are none, nor are backups and partial copies.
    """
    return sorted(p for p in directory.glob(PATTERN) if is_event_file(p))


def is_event_file(path: Path) -> bool:
    """Whether a file is an event file by its name."""
    return path.match(PATTERN) and not path.name.startswith(".") and not path.name.endswith(_NO_EVENTS)


def read_events(path: Path) -> Events:
    """Read an event file, or all event files directly in a directory.

    An incomplete record at the end of a file is left out, like an incomplete last line of a table. Numbers are taken
    from `simple_value` (torch, TensorFlow 1) and from tensors without axes (TensorFlow 2). Histograms, images and other
    kinds are ignored.

    Raises:
        RunError: there is no event file, or one is damaged: a checksum is wrong, or a record is not an event.
    """
    path = Path(path)
    files = event_files(path) if path.is_dir() else [path]
    if not files:
        raise RunError(f"{path} holds no event file ({PATTERN})")
    events = Events()
    plugins: dict[str, str] = {}  # by tag: only the first value of a tag names its plugin
    for file in files:
        with failures_named(f"read {file.name}", file):
            data = file.read_bytes()
        spans, events.cut = _records(data, file)
        for event in _events(data, spans, file):
            _add(events, event, plugins)
    return events


def hyperparameters(texts: dict[str, str]) -> dict[str, Any]:
    """The configuration that CleanRL records: a Markdown table |param|value| as a text named hyperparameters.

    True, False, None and numbers as Python prints them are converted. Everything else stays text: lists, and names such
    as 007, 1e5 and 2024_01_15. Empty without such a text.
    """
    text = next((texts[tag] for tag in _HYPERPARAMETERS if tag in texts), "")
    rows = re.findall(r"^\|([^|\n]*)\|(.*)\|\s*$", text, re.M)[2:]  # after the head and the rule below it
    return {key.strip(): _plain(value.strip()) for key, value in rows}


def _plain(text: str) -> Any:
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if repr(number) == text:
            return number
    return text


def _records(data: bytes, file: Path) -> tuple[list[tuple[int, int]], bool]:
    """Begin and length of each record's content, verified, and whether the last record is incomplete."""
    spans, at = [], 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if at + 16 + length > len(data):
            break
        spans.append((at + 12, length))
        at += 16 + length
    heads = [(begin - 12, 8) for begin, _ in spans]
    if at + 12 <= len(data):
        heads.append((at, 8))  # of the incomplete record, or of one with a damaged length
    if bad := _mismatches(data, heads) + _mismatches(data, spans):
        what = "it is not an event file" if min(bad) == 0 else "copy it again"
        raise RunError(f"{file} is damaged at byte {min(bad)}: a checksum does not match; {what}")
    return spans, at < len(data)


def _mismatches(data: bytes, spans: list[tuple[int, int]]) -> list[int]:
    """Where the spans begin whose checksum does not equal the 4 bytes after them."""
    everything = np.frombuffer(data, dtype=np.uint8)
    bad: list[int] = []
    table = np.array(spans, dtype=np.int64).reshape(-1, 2)
    for length in np.unique(table[:, 1]).tolist():
        starts = table[table[:, 1] == length, 0]
        rows = everything[starts[:, None] + np.arange(length + 4)]
        stored = np.ascontiguousarray(rows[:, length:]).view("<u4")[:, 0]
        bad += starts[_masked_crc32c(rows[:, :length]) != stored].tolist()
    return bad


def _crc_table() -> NDArray[np.uint32]:
    entries = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        entries = np.where(entries & 1, (entries >> 1) ^ np.uint32(0x82F63B78), entries >> 1)
    return entries


_TABLE = _crc_table()


def _masked_crc32c(rows: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Checksum of each row [n, bytes] -> [n]: CRC-32C (Castagnoli), rotated and shifted as in TensorFlow."""
    if len(rows) < _FEW:
        table = _TABLE.tolist()
        crc = np.array([_crc32c(row.tobytes(), table) for row in rows], dtype=np.uint32)
    else:
        crc = np.full(len(rows), 0xFFFFFFFF, dtype=np.uint32)
        for column in np.ascontiguousarray(rows.T):  # one byte of every row at a time
            crc = _TABLE[(crc ^ column) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
        crc ^= np.uint32(0xFFFFFFFF)
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)


def _crc32c(data: bytes, table: list[int]) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _events(data: bytes, spans: list[tuple[int, int]], file: Path) -> Iterator[Event]:
    from tensorboard.compat.proto.event_pb2 import Event

    for begin, length in spans:
        try:
            event = Event.FromString(data[begin : begin + length])
        except Exception as error:
            if type(error).__name__ != "DecodeError":  # protobuf's class; only tensorboard depends on protobuf
                raise
            raise RunError(
                f"{file} has a record at byte {begin} that is not an event: it is not an event file"
            ) from None
        yield event


def _add(events: Events, event: Event, plugins: dict[str, str]) -> None:
    if values := event.summary.value:
        step = event.step
        for value in values:
            kind = value.WhichOneof("value")
            if kind == "simple_value":
                events.scalars.setdefault(value.tag, []).append((step, value.simple_value))
            elif kind == "tensor":
                _add_tensor(events, step, value, plugins)
    elif event.HasField("session_log") and event.session_log.status == event.session_log.START:
        for tag, curve in events.scalars.items():
            events.scalars[tag] = [(step, number) for step, number in curve if step < event.step]


def _add_tensor(events: Events, step: int, value: Summary.Value, plugins: dict[str, str]) -> None:
    from tensorboard.util.tensor_util import make_ndarray

    plugin = plugins.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
    if plugin == "text":
        array = make_ndarray(value.tensor).ravel()
        events.texts[value.tag] = b"\n".join(array.tolist()).decode(errors="replace")
    elif plugin in ("scalars", "") and not value.tensor.tensor_shape.dim and not value.tensor.string_val:
        array = make_ndarray(value.tensor)
        if array.dtype.kind in "fiub":
            events.scalars.setdefault(value.tag, []).append((step, float(array)))
