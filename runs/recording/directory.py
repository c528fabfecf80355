"""A run directory: the files of one training run, from which it can be resumed."""

from __future__ import annotations

import contextlib
import json
import numbers
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from runs.recording.about import PLACES, about
from runs.recording.checkpoint import load_checkpoint, save_checkpoint
from runs.recording.config import flat
from runs.recording.errors import RunError
from runs.recording.events_file import EventFile
from runs.recording.files import crc_of, failures_named, link_atomically, write_atomically
from runs.recording.layout import Layout, layout
from runs.recording.lock import RunLock
from runs.recording.pieces import Pieces
from runs.recording.provenance import provenance
from runs.recording.scalars_file import TABLE, ScalarTable, require_length, require_unchanged, rows
from runs.recording.tags import check_tag
from runs.recording.weights_and_biases import Tracker

if TYPE_CHECKING:
    import torch

CONFIG, PROVENANCE, STATUS, CHECKPOINT, LOCK = "config.json", "provenance.json", "status.json", "checkpoint.pt", "lock"
PIECES, KEPT = "pieces", "checkpoints"
_FLUSH_SECONDS, _FLUSH_BYTES = 30.0, 1 << 20


class Run:
    """An open run. Opened by `create` or `resume`, closed by `finish`, `interrupt` or `fail`; one process at a time.

    As a context manager it marks itself as failed if an exception is raised (interrupted for KeyboardInterrupt), and as
    interrupted if the block ends without `finish`, `interrupt` or `fail`.

    Attributes:
        directory: where the files are.
        step: the latest step recorded; after `resume`, the step of the checkpoint.
        pieces: large parts of the state in their own files, which checkpoints name; removed when the run finishes.
    """

    def __init__(self, directory: Path, lock: RunLock, step: int, table_bytes: int | None = None):
        self.directory, self.step = directory, step
        self.pieces = Pieces(directory / PIECES)
        self._lock, self._table_bytes = lock, table_bytes
        self._layout: Layout | None = None
        self._about: dict[str, str] = {}  # for TensorBoard: texts by tag
        self._flags: dict[str, Any] = {}
        self._event_files: dict[str, tuple[int, int]] = {}  # those of earlier processes at the checkpoint
        self._rebuild = False  # they are damaged
        self._files: tuple[ScalarTable, EventFile] | None = None
        self._restored: dict[str, Any] | None = None
        self._open = True
        self._tracker: Tracker | None = None
        self._flushed_at = time.monotonic()

    @classmethod
    def create(
        cls,
        directory: Path,
        config: Mapping[str, Any],
        *,
        argv: Sequence[str],
        device: str | torch.device | None = None,
        defaults: Mapping[str, Any] | None = None,
        branch: Mapping[str, Any] | None = None,
        step: int = 0,
    ) -> Run:
        """Start a run in a directory without a run; other files in it are not touched.

        Args:
            directory: created if missing.
            config: the resolved configuration as plain data (`config_to_dict`).
            argv: the command line, script first.
            device: what the run computes on, for the record.
            defaults: the configuration without any flag; TensorBoard's Text page shows what differs from it.
            branch: of which run and step this one is a branch, and what it changes, for the record.
            step: where it begins.
        Raises:
            RunError: the directory holds a run, finished or not, or cannot be written.
        """
        directory = Path(directory)
        with failures_named("make a run", directory / CONFIG):
            directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory) as lock:
            _refuse_existing(directory)
            origin = provenance(argv, device)
            _write_json(directory / PROVENANCE, {**origin, **({"branch": branch} if branch else {}), "resumed": []})
            _write_json(directory / CONFIG, dict(config))
            run = cls(directory, lock, step)
            run._about, run._flags = about(config, defaults, origin), flat(config)
            run._describe(run._opened_files()[1])
            run._write_status("running")
            return run

    @classmethod
    def resume(
        cls,
        directory: Path,
        *,
        argv: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        longer: Mapping[str, Any] | None = None,
    ) -> Run:
        """Open an unfinished run at its checkpoint; `take_state` then returns the state given to `checkpoint`.

        The first scalar recorded cuts the table to its length at the checkpoint, and makes TensorBoard drop every later
        step. This does not happen earlier because the state may turn out not to fit.

        What the table and the event files held at the checkpoint must be unchanged. A changed table is refused: event
        files hold 32-bit floats and cannot replace it. If an event file was changed or lost, a line on stderr says so,
        and all numbers up to the checkpoint are written again, from the table, to a new one that TensorBoard shows
        instead.

        Args:
            directory: a run directory.
            argv: the command line of this process, for the record; None means sys.argv.
            device: as for `create`.
            longer: the configuration with which the run continues beyond its end, which may have been reached.
        Raises:
            RunError: no such directory, no run or no checkpoint in it, already finished, open in another process,
                or its files are damaged.
        """
        directory = Path(directory)
        _require_resumable(directory, finished=longer is not None)
        with _locked(directory) as lock:
            if longer is None:
                _refuse_finished(directory)  # it may have finished while the lock was another's
            saved = load_checkpoint(directory / CHECKPOINT)
            if not saved.keys() >= {"step", "table_bytes", "state"}:
                raise RunError(f"{directory / CHECKPOINT} lacks step, table_bytes or state: no run wrote it")
            require_length(directory, saved["table_bytes"])
            sums = dict(saved.get("sums", {}))  # checkpoints of earlier versions have none
            if TABLE in sums:
                require_unchanged(directory, *sums.pop(TABLE))
            session = provenance(sys.argv if argv is None else argv, device)
            extended = {}
            if longer is not None:
                before = read_json(directory / CONFIG)
                extended = {
                    "extended": {key: [before.get(key), now] for key, now in longer.items() if before.get(key) != now}
                }
            _add_resumption(directory, {"step": saved["step"], **extended, **session})
            run = cls(directory, lock, saved["step"], saved["table_bytes"])
            run._restored, run._layout, run._event_files = saved["state"], saved.get("layout"), sums
            run._about, run._flags = dict(saved.get("about", {})), flat(read_json(directory / CONFIG))
            damaged = [name for name, (length, crc) in sums.items() if crc_of(directory / name, length) != crc]
            if damaged:
                run._rebuild = True
                what = "was changed or lost after the checkpoint: its numbers are written again, from"
                print(f"{directory / damaged[0]} {what} {TABLE}", file=sys.stderr)
            run._write_status("running")
            if longer is not None:  # only now, when the status says that the run is not finished
                _write_json(directory / CONFIG, dict(longer))
            return run

    def track(self, project: str, entity: str | None) -> None:
        """Send what is recorded from now on to Weights & Biases, too; see `Tracker`, also for errors."""
        self._require_open()
        self._tracker = Tracker(self.directory, read_json(self.directory / CONFIG), project, entity)

    def take_state(self) -> dict[str, Any]:
        """Return the restored state once and forget it, so that a replay memory is not kept in memory twice.

        Raises:
            RunError: the run was not resumed, or the state was already taken.
        """
        if self._restored is None:
            raise RunError(f"{self.directory} has no state to take: it was not resumed, or the state was already taken")
        state, self._restored = self._restored, None
        return state

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Record one number in the table and for TensorBoard.

        Args:
            tag: a documented tag (`TAGS`), or one of your own under `custom/`.
            value: a Python or numpy number; nan and inf are recorded as such.
            step: agent decisions, or optimiser updates in supervised scripts; a whole number, zero or more.
        Raises:
            ValueError: unknown tag, a tensor or array as value (use `.item()`, which waits for the device), or a step
                that is not a whole number.
            RunError: the disk is full, or the run is closed.
        """
        self._require_open()
        check_tag(tag)
        number, step = _as_float(tag, value), _as_step(tag, step)
        table, events = self._opened_files()
        table.add(tag, number, step)
        events.add(tag, number, step)
        if self._tracker:
            self._tracker.add(tag, number, step)
        self.step = max(self.step, step)
        if table.file.pending > _FLUSH_BYTES or time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
            self.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record several numbers of one step; see `scalar`."""
        for tag, value in values.items():
            self.scalar(tag, value, step)

    def layout(self, measured: Layout, **options: Any) -> None:
        """Group TensorBoard's charts; arguments as in `runs.recording.layout`."""
        self._require_open()
        self._layout = layout(measured, **options)
        self._opened_files()[1].add_layout(self._layout)

    def checkpoint(self, step: int, state: dict[str, Any], *, keep: Iterable[str] | None = None) -> None:
        """Save the state that a resumed run starts from. Call it last in a step: scalars recorded later at the same
        step are dropped when the run is resumed.

        Args:
            step: of the state.
            state: nested plain data, see `save_checkpoint`.
            keep: keep this checkpoint in checkpoints/, also after the end, with the pieces of these names.
        Raises:
            ValueError: the state holds something that is not plain data.
            RunError: the disk is full (the previous checkpoint stays), or the run is closed.
        """
        self._require_open()
        self.flush()
        sums = {part.file.path.name: part.file.sum() for part in self._opened_files()}
        content = {
            "step": _as_step("checkpoint", step),
            "table_bytes": sums[TABLE][0],
            "sums": {**self._event_files, **sums},
            "layout": self._layout,
            "about": self._about,
            "state": state,
        }
        if keep is None:
            save_checkpoint(self.directory / CHECKPOINT, content)
        else:  # the kept one first: a run that is killed in between makes it again
            kept = kept_path(self.directory, step)
            with failures_named("make a folder", kept):
                kept.parent.mkdir(exist_ok=True)
            self.pieces.link_to(kept.with_suffix(""), keep)
            save_checkpoint(kept, content)
            link_atomically(kept, self.directory / CHECKPOINT)
        self.step = max(self.step, step)
        self._write_status("running")

    def flush(self) -> None:
        """Write pending scalars to the table and the event file.

        Raises:
            RunError: the disk is full, or the run is closed.
        """
        for part in self._opened_files():
            part.file.flush()
        self._flushed_at = time.monotonic()

    def finish(self, step: int) -> None:
        """Mark the run as finished; neither `create` nor `resume` opens it again."""
        self._end("finished", step)

    def interrupt(self, step: int) -> None:
        """Mark the run as interrupted; `resume` continues from the latest checkpoint."""
        self._end("interrupted", step)

    def fail(self, step: int, message: str) -> None:
        """Mark the run as failed, with an error message; `resume` can continue from the latest checkpoint."""
        self._end("failed", step, message)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._open:
            return
        if error is None:
            self.interrupt(self.step)
            return
        with contextlib.suppress(RunError):  # on a full disk, report the first failure
            if isinstance(error, KeyboardInterrupt):
                self.interrupt(self.step)
            else:
                self.fail(self.step, f"{type(error).__name__}: {error}")

    def _end(self, status: str, step: int, message: str | None = None) -> None:
        self._require_open()
        step = _as_step(status, step)
        with contextlib.ExitStack() as closing:  # each is attempted even if the one before it fails
            closing.callback(self._lock.release)
            closing.callback(setattr, self, "_open", False)
            if self._tracker:
                closing.callback(self._tracker.finish, status == "finished")
            if status == "finished":
                files = self._opened_files()  # cuts the table of a resumed run that recorded nothing
                files[1].hold_task(step)
            else:
                files = self._files or ()
                closing.callback(self._write_status, status, message)
            self.step = step
            for part in reversed(files):
                closing.callback(part.file.close)
            if status == "finished":  # only once the numbers are on the disk
                table, events = self._opened_files()
                events.file.flush(durable=True)
                self._write_status(status, message, table_bytes=table.file.sum()[0])
                self.pieces.keep_only([])  # a finished run is not resumed

    def _opened_files(self) -> tuple[ScalarTable, EventFile]:
        """Table and event file, opened at the first call, which cuts the table of a resumed run to its checkpoint."""
        self._require_open()
        if self._files is None:
            resumed = self._table_bytes is not None
            table = ScalarTable(self.directory, self._table_bytes)
            first_dropped = 0 if self._rebuild else self.step + 1
            self._files = table, EventFile(self.directory, first_dropped if resumed else None)
            if self._rebuild:
                self._rewrite_events(self._files[1])
        return self._files

    def _describe(self, events: EventFile) -> None:
        """Fill the HParams and Text pages."""
        events.add_hyperparameters({name: value for name, value in self._flags.items() if name not in PLACES})
        for tag, text in self._about.items():
            events.add_text(tag, text)

    def _rewrite_events(self, events: EventFile) -> None:
        self._describe(events)
        if self._layout is not None:
            events.add_layout(self._layout)
        for step, tag, value in rows(self.directory, self._table_bytes or 0):
            events.add(tag, value, step)
            if events.file.pending > _FLUSH_BYTES:
                events.file.flush()
        self._event_files, self._rebuild = {}, False

    def _require_open(self) -> None:
        if not self._open:
            raise RunError(f"the run in {self.directory} is closed: nothing more can be recorded")

    def _write_status(self, status: str, message: str | None = None, **more: int) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        content = {"status": status, "step": self.step, "message": message, "written": now, **more}
        _write_json(self.directory / STATUS, content)


@dataclass(frozen=True)
class SavedState:
    """What a branch begins with."""

    step: int
    state: dict[str, Any]
    pieces: Pieces
    """of the state; those of a kept checkpoint stay, others are removed when their run goes on"""
    layout: Layout | None


def kept_path(directory: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return Path(directory) / KEPT / f"step-{step}.pt"


def kept_steps(directory: Path) -> list[int]:
    """Steps of the checkpoints that a run has kept."""
    names = (path.stem.removeprefix("step-") for path in (Path(directory) / KEPT).glob("step-*.pt"))
    return sorted(int(name) for name in names if name.isdecimal())


def read_state(directory: Path, step: int | None = None) -> SavedState:
    """Read a checkpoint of a run, which is not changed: that of a step, or the latest.

    Raises:
        RunError: there is none of this step, none at all, or it is damaged.
    """
    directory = Path(directory)
    kept = kept_steps(directory)
    path = directory / CHECKPOINT if step is None or step not in kept else kept_path(directory, step)
    if not path.exists():
        raise RunError(f"cannot branch from {directory}: it has no checkpoint")
    saved = load_checkpoint(path)
    if not saved.keys() >= {"step", "state"}:
        raise RunError(f"{path} lacks step or state: no run wrote it")
    found = saved["step"]
    if step not in (None, found):
        others = ", ".join(map(str, kept)) or "none"
        raise RunError(
            f"cannot branch from {directory} at step {step}: the steps of its kept checkpoints are: {others}; its "
            f"latest checkpoint is of step {found}"
        )
    place = kept_path(directory, found).with_suffix("") if found in kept else directory / PIECES
    return SavedState(found, saved["state"], Pieces(place), saved.get("layout"))


def read_status(directory: Path) -> dict[str, Any]:
    """A run's status: {"status": running | interrupted | failed | finished, "step", "message", "written"}.

    A finished run also has "table_bytes", the length of its table. A killed run still has the status running; only
    `resume` finds out, by its lock.

    Raises:
        RunError: there is no status file, or it is not one.
    """
    status = read_json(Path(directory) / STATUS)
    if not {"status", "step"} <= status.keys():
        raise RunError(f"{Path(directory) / STATUS} is not a status file: it lacks status or step")
    return status


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: the file is missing or holds something else.
    """
    try:
        with failures_named(f"read {path.name}", path):
            content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} does not hold a JSON object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[RunLock]:
    """The run's lock, released if opening the run fails."""
    lock = RunLock(directory / LOCK)
    try:
        yield lock
    except BaseException:
        lock.release()
        raise


def _refuse_existing(directory: Path) -> None:
    elsewhere = "choose another directory or name"
    if (directory / STATUS).exists():
        status = read_status(directory)
        if status["status"] == "finished":
            raise RunError(f"{directory} holds a finished run (step {status['step']}); {elsewhere}")
        if (directory / CHECKPOINT).exists():
            found = f"an unfinished run (step {status['step']})"
            raise RunError(f"{directory} holds {found}; resume it with --resume {directory}, or {elsewhere}")
        raise RunError(f"{directory} holds a run that stopped before its first checkpoint; {elsewhere}")
    for name in (CONFIG, PROVENANCE, TABLE, CHECKPOINT):
        if (directory / name).exists():
            raise RunError(f"{directory} already holds {name}, part of another run; {elsewhere}")


def _require_resumable(directory: Path, *, finished: bool = False) -> None:
    if not directory.is_dir():
        raise RunError(f"cannot resume {directory}: there is no such directory")
    if not (directory / CONFIG).exists():
        raise RunError(f"cannot resume {directory}: it is not a run directory (no {CONFIG})")
    if not finished:
        _refuse_finished(directory)
    if not (directory / CHECKPOINT).exists():
        raise RunError(f"cannot resume {directory}: the run stopped before its first checkpoint; start a new one")


def _refuse_finished(directory: Path) -> None:
    if (directory / STATUS).exists():
        status = read_status(directory)
        if status["status"] == "finished":
            raise RunError(f"cannot resume {directory}: already finished at step {status['step']}")


def _add_resumption(directory: Path, description: Mapping[str, Any]) -> None:
    record = read_json(directory / PROVENANCE)
    if not isinstance(earlier := record.get("resumed", []), list):
        raise RunError(f"{directory / PROVENANCE} is damaged: resumed must be a list, got {earlier!r:.80}")
    _write_json(directory / PROVENANCE, {**record, "resumed": [*earlier, description]})


def _as_float(tag: str, value: object) -> float:
    if (not isinstance(value, numbers.Real) and type(value).__module__ != "numpy") or getattr(value, "ndim", 0) != 0:
        raise ValueError(
            f"{tag} was given a {type(value).__name__}; a scalar is a Python or numpy number (use .item() on a tensor)"
        )
    return float(value)  # type: ignore[arg-type]


def _as_step(what: str, step: object) -> int:
    if isinstance(step, bool) or not isinstance(step, numbers.Integral) or step < 0:
        raise ValueError(f"{what} was given the step {step!r}; a step is a whole number, zero or more")
    return int(step)
