"""One run brought to its end, whatever state its directory is in: started, resumed, waited for, or left alone.

Nothing here is remembered between launches. What a run needs is read off its directory each time, and two locks say who
may act: the run's own, held by the process that writes it, and one on its log, held by whoever started that process and
by the process itself, which inherits the open file. A launcher that is killed therefore leaves a claim that ends with
the run, and between a decision and the process that carries it out there is no moment at which a second launcher could
decide the same.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from runs.experiment import REPOSITORY, Job
from runs.recording import RunError, read_json, read_status, require_whole
from runs.recording.directory import CHECKPOINT, CONFIG, LOCK, PROVENANCE, STATUS
from runs.recording.files import failures_named
from runs.recording.lock import Locked, RunLock
from runs.recording.table import TABLE

try:
    import fcntl
except ImportError:  # Windows: as for the run's lock, a second launcher is not detected
    fcntl = None  # type: ignore[assignment]

State = Literal["waiting", "blocked", "running", "finished", "failed", "interrupted"]
ENDED: tuple[State, ...] = ("finished", "failed", "interrupted")
Halt = Callable[[], int]
"""Asked a few times a second: 0 go on, 1 stop at a checkpoint, 2 stop at once."""
_POLL_SECONDS = 0.2
_BAD_FLAGS = 2  # what scripts exit with after the one line that refuses their flags or their directory


@dataclass(frozen=True)
class News:
    """What has become of a job."""

    job: str
    state: State
    text: str = ""
    resumed: bool = False
    """whether its process starts from a checkpoint"""


@dataclass(frozen=True)
class Found:
    """What a run directory holds."""

    state: Literal["nothing", "finished", "resumable", "stillborn"]
    """stillborn: a run was started, and was gone before its first checkpoint"""
    status: str = ""
    """as in status.json: running, interrupted, failed, finished"""
    step: int = 0


def inspect(job: Job) -> Found:
    """What the job's directory holds.

    Raises:
        RunError: another run than the job's (the first differing key is named), a finished one that has lost lines of
            its table, or damaged files.
    """
    files = {name: (job.directory / name).exists() for name in (CONFIG, PROVENANCE, STATUS, CHECKPOINT, TABLE)}
    if not any(files.values()):
        return Found("nothing")
    _refuse_other_run(job)
    status: dict[str, Any] = read_status(job.directory) if files[STATUS] else {"status": "", "step": 0}
    if status["status"] == "finished":
        require_whole(job.directory, status)
        return Found("finished", "finished", status["step"])
    resumable = files[CONFIG] and files[CHECKPOINT]
    return Found("resumable" if resumable else "stillborn", status["status"], status["step"])


def writer(job: Job) -> str | None:
    """The process that writes the run now, in words, or None."""
    if not (job.directory / LOCK).exists():
        return None
    try:
        RunLock(job.directory / LOCK).release()
    except Locked as error:
        return str(error)
    return None


def claimed(job: Job) -> bool:
    """Whether a launcher, or a process that one started, has the job."""
    if not job.log.exists():
        return False
    with job.log.open("ab") as log:
        return not _lock(log)


def execute(
    job: Job,
    *,
    retries: int = 2,
    tell: Callable[[News], None] = lambda news: None,
    halt: Halt = lambda: 0,
    tethered: bool = False,
    environment: Mapping[str, str] | None = None,
) -> News:
    """Bring a job to its end. A process of another launcher, or one started by hand, is waited for.

    Args:
        job: what to run.
        retries: how often a process that crashed is followed by another, from the checkpoint.
        tell: is given what happens on the way.
        halt: is asked whether to stop.
        tethered: the run's process is asked to stop when this one dies (Linux). Otherwise it goes on, and whoever
            executes the job next waits for it.
        environment: variables for the process, besides those of this one.
    Returns:
        How it ended: finished, failed with the reason, or interrupted because `halt` said so.
    Raises:
        RunError: the directory holds another run, or files cannot be read or written.
    """
    crashes, after, resumed = 0, "", False
    with _claim(job, tell, halt) as log:
        while log and _await_writer(job, tell, halt):
            found = inspect(job)
            if found.state == "finished":
                return News(job.id, "finished", f"at step {found.step:,}", resumed)
            how = _prepare(job, found)
            resumed = found.state == "resumable"
            tell(News(job.id, "running", how + after, resumed))
            command = job.resume_command() if resumed else job.command()
            code = _run(job, command, log, halt, tethered, environment or {})
            if inspect(job).state == "finished" or halt():
                continue
            if code == _BAD_FLAGS and writer(job):  # one was started by hand while ours was loading
                continue
            crashes += 1
            if code == _BAD_FLAGS or crashes > retries:
                refused = "refused its flags or its directory: " if code == _BAD_FLAGS else ""
                times = f", {crashes} times in all" if crashes > 1 else ""
                return News(job.id, "failed", f"{refused}{_in_words(code)}{times}", resumed)
            after = f", as it {_in_words(code)} (retry {crashes} of {retries})"
        found = inspect(job)
        return News(job.id, "interrupted", f"at step {found.step:,}" if found.status else "before it was started")


def end_of_log(job: Job, lines: int = 15) -> list[str]:
    """The last lines of a job's output."""
    if not job.log.exists():
        return []
    with job.log.open("rb") as file:
        file.seek(max(0, job.log.stat().st_size - (1 << 16)))
        return file.read().decode(errors="replace").splitlines()[-lines:]


def _refuse_other_run(job: Job) -> None:
    def refuse(name: str, there: object, here: object) -> None:
        raise RunError(
            f"{job.directory} holds another run: {name} is {there!r} there and {here!r} in {job.id}; "
            "move it away, or give other --logs"
        )

    if (job.directory / PROVENANCE).exists():
        script, *words = read_json(job.directory / PROVENANCE).get("command") or [""]
        preset = words[0] if words and not words[0].startswith("-") else None
        for name, there, here in (
            ("script", Path(script).stem, Path(job.script).name),
            ("preset", preset, job.preset),
        ):
            if there != here:
                refuse(name, there, here)
    if (job.directory / CONFIG).exists():
        config = read_json(job.directory / CONFIG)
        for name, value in job.flags.items():
            there = _at(config, name)
            if there != _plain(value):
                refuse(name, there, value)


def _at(config: Any, name: str) -> Any:
    """The value at a dotted name; "(none)" if the configuration has no such key."""
    for key in name.split("."):
        if not isinstance(config, dict) or key not in config:
            return "(none)"
        config = config[key]
    return config


def _plain(value: Any) -> Any:
    """A flag's value as config.json holds it."""
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _lock(log: BinaryIO) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _claim(job: Job, tell: Callable[[News], None], halt: Halt) -> Iterator[BinaryIO | None]:
    """The job's log, locked; None if halted while another process had it."""
    with failures_named("write the log", job.log):
        job.log.parent.mkdir(parents=True, exist_ok=True)
        log = job.log.open("ab", buffering=0)
    told = False
    with log:
        while not _lock(log):
            if halt():
                yield None
                return
            if not told:
                told = True
                # Not asked of the run's lock: asking holds it for an instant, just when that run may be starting.
                tell(News(job.id, "blocked", "another launcher, or a run that one left, has it"))
            time.sleep(_POLL_SECONDS)
        yield log


def _await_writer(job: Job, tell: Callable[[News], None], halt: Halt) -> bool:
    """Wait until nobody writes the run; False once halted."""
    told = False
    while not halt():
        other = writer(job)
        if other is None:
            return True
        if not told:
            told = True
            tell(News(job.id, "blocked", other))
        time.sleep(_POLL_SECONDS)
    return False


def _prepare(job: Job, found: Found) -> str:
    """Make room for a new run where one was stillborn; returns what comes next, in words."""
    if found.state == "resumable":
        return f"resumed at step {found.step:,}"
    if found.state == "nothing":
        return "started"
    number = 1
    while (aside := job.directory.with_name(f"{job.directory.name}.abandoned-{number}")).exists():
        number += 1
    with failures_named(f"move {job.directory.name} aside", job.directory):
        job.directory.rename(aside)
    return f"started anew: what was there had no checkpoint yet and is now {aside.name}"


def _run(
    job: Job, command: list[str], log: BinaryIO, halt: Halt, tethered: bool, environment: Mapping[str, str]
) -> int:
    """The process from its start to its exit code; negative for the signal that ended it."""
    log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {platform.node()}: {shlex.join(command)}\n".encode())
    if tethered:
        command = [sys.executable, str(REPOSITORY / "runs" / "tethered.py"), str(os.getpid()), *command]
    threads = {f"{library}_NUM_THREADS": str(job.threads) for library in ("OMP", "MKL", "OPENBLAS")}
    with failures_named("start a process", REPOSITORY / command[0]):
        child = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **threads, **environment},
            start_new_session=True,  # Ctrl-C reaches it through us, once; a closed terminal does not
        )
    try:
        sent = 0
        while (code := child.poll()) is None:
            if (level := halt()) > sent:
                sent = level
                if level == 1:
                    child.send_signal(signal.SIGINT)
                else:
                    child.kill()
            time.sleep(_POLL_SECONDS)
        return code
    except BaseException:
        child.terminate()  # it writes a checkpoint; nobody would hear of its end
        raise


def _in_words(code: int) -> str:
    if code >= 0:
        return f"left with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"
