"""TensorBoard event files, written without a thread.

torch's SummaryWriter passes events to a background thread. When the disk is full, that thread dies with its own
traceback, and the training loop notices later. Here the caller writes the same records.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.recording.files import AppendFile
from runs.recording.layout import Layout
from runs.recording.tags import TASK

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

_FILE_VERSION = "brain.Event:2"
_NAME = "events.out.tfevents."


def number_of(path: Path) -> int | None:
    """The number of an event file of ours."""
    return int(path.suffix[1:]) if path.suffix[1:].isdecimal() else None


class EventFile:
    """One event file per process that writes to the run, with names that sort in order of time.

    Args:
        directory: the run directory.
        purge_step: on resume, TensorBoard drops scalars of earlier files at this step or later.
        number: of the file; default: one more than the highest in the directory.
    Raises:
        RunError: the file cannot be written.
    """

    def __init__(self, directory: Path, purge_step: int | None = None, number: int | None = None):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        if number is None:
            numbers = [number_of(path) for path in directory.glob(f"{_NAME}*")]
            number = max((n for n in numbers if n is not None), default=-1) + 1
        self.file = AppendFile(directory / f"{_NAME}{number:06d}")
        self._records = RecordWriter(self.file)
        self._write(self._event(wall_time=time.time(), file_version=_FILE_VERSION))
        self._task: tuple[int, float] | None = None
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(self._event(wall_time=time.time(), step=purge_step, session_log=start))

    def add(self, tag: str, value: float, step: int) -> None:
        """Append one number; event files hold 32-bit floats. Before another task comes the last step of the old one, so
        that TensorBoard, which joins points by lines, draws steps.
        """
        if tag == TASK:
            self.hold_task(step - 1)
            self._task = step, value
        self._add(tag, value, step)

    def hold_task(self, step: int) -> None:
        """Append the latest task once more, at this step."""
        if self._task is not None and self._task[0] < step:
            self._task = step, self._task[1]
            self._add(TASK, self._task[1], step)

    def _add(self, tag: str, value: float, step: int) -> None:
        summary = self._summary(value=[self._summary.Value(tag=tag, simple_value=value)])
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def add_layout(self, layout: Layout) -> None:
        """Append the grouping of the custom-scalars tab."""
        from torch.utils.tensorboard.summary import custom_scalars

        self._write(self._event(wall_time=time.time(), summary=custom_scalars(layout)))

    def add_text(self, tag: str, markdown: str) -> None:
        """Append a text for the Text page."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._write(self._event(wall_time=time.time(), summary=text_pb(tag, markdown)))

    def add_hyperparameters(self, flags: Mapping[str, Any]) -> None:
        """Append a run's row of the HParams page: flags by name."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        plain = {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in flags.items()}
        self._write(self._event(wall_time=time.time(), summary=hparams_pb(plain)))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
