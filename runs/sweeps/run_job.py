"""Run one job to completion: start it, resume it, wait for whoever is running it, or skip it if it is finished.

Nothing is remembered between launches. The state of a run is read from its directory each time, and two locks say who
may act: the run's own lock, held by the process that writes it, and a lock on its log. The log's lock is held by the
launcher that started the process, and by the process itself, which inherits the open file. So if a launcher is killed,
its claim lasts as long as the run does. And between a launcher's decision and the start of the process there is no
moment in which a second launcher could decide the same.
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

from runs.recording import RunError, read_json, read_status, require_whole
from runs.recording.directory import CHECKPOINT, CONFIG, LOCK, PROVENANCE, STATUS
from runs.recording.files import failures_named
from runs.recording.lock import Locked, RunLock
from runs.recording.scalars_file import TABLE
from runs.sweeps.experiment import Job

try:
    import fcntl
except ImportError:  # Windows: as for the run's lock, a second launcher is not detected
    fcntl = None  # type: ignore[assignment]

State = Literal["waiting", "blocked", "running", "finished", "failed", "interrupted"]
ENDED: tuple[State, ...] = ("finished", "failed", "interrupted")
Halt = Callable[[], int]
"""Called a few times a second: 0 continue, 1 stop at a checkpoint, 2 stop at once."""
_POLL_SECONDS = 0.2
_BAD_FLAGS = 2  # exit code of scripts that refuse their flags or their directory


@dataclass(frozen=True)
class News:
    """A change in the state of a job."""

    job: str
    state: State
    text: str = ""
    resumed: bool = False
    """whether its process starts from a checkpoint"""


@dataclass(frozen=True)
class Contents:
    """What a run directory holds."""

    state: Literal["nothing", "finished", "resumable", "without checkpoint"]
    status: str = ""
    """as in status.json: running, interrupted, failed or finished"""
    step: int = 0


def inspect(job: Job) -> Contents:
    """Read the state of the job's directory.

    Raises:
        RunError: it holds another run than the job's (the first differing key is named), a finished run whose table has
            lost lines, or damaged files.
    """
    files = {name: (job.directory / name).exists() for name in (CONFIG, PROVENANCE, STATUS, CHECKPOINT, TABLE)}
    if not any(files.values()):
        return Contents("nothing")
    _refuse_other_run(job)
    status: dict[str, Any] = read_status(job.directory) if files[STATUS] else {"status": "", "step": 0}
    if status["status"] == "finished":
        require_whole(job.directory, status)
        return Contents("finished", "finished", status["step"])
    resumable = files[CONFIG] and files[CHECKPOINT]
    return Contents("resumable" if resumable else "without checkpoint", status["status"], status["step"])


def writer(job: Job) -> str | None:
    """A description of the process that is writing the run, or None."""
    if not (job.directory / LOCK).exists():
        return None
    try:
        RunLock(job.directory / LOCK).release()
    except Locked as error:
        return str(error)
    return None


def claimed(job: Job) -> bool:
    """Whether a launcher, or a process started by one, holds the job."""
    if not job.log.exists():
        return False
    with job.log.open("ab") as log:
        return not _lock(log)


def run_job(
    job: Job,
    *,
    retries: int = 2,
    tell: Callable[[News], None] = lambda news: None,
    halt: Halt = lambda: 0,
    die_with_parent: bool = False,
    environment: Mapping[str, str] | None = None,
) -> News:
    """Run a job to completion. If another launcher or a person has started it, wait for that process.

    Args:
        job: what to run.
        retries: how often a crashed process is followed by another one, from the checkpoint.
        tell: gets the news on the way.
        halt: says whether to stop.
        die_with_parent: the run's process gets SIGTERM when this process dies (Linux). Otherwise it continues, and
            whoever runs the job next waits for it.
        environment: additional environment variables for the process.
    Returns:
        How it ended: finished, failed with the reason, or interrupted because `halt` said so.
    Raises:
        RunError: the directory holds another run, or files cannot be read or written.
    """
    crashes, after, resumed = 0, "", False
    with _claim(job, tell, halt) as log:
        while log and _await_writer(job, tell, halt):
            contents = inspect(job)
            if contents.state == "finished":
                return News(job.id, "finished", f"at step {contents.step:,}", resumed)
            how = _prepare(job, contents)
            resumed = contents.state == "resumable"
            tell(News(job.id, "running", how + after, resumed))
            command = job.resume_command() if resumed else job.command()
            code = _run(job, command, log, halt, die_with_parent, environment or {})
            if inspect(job).state == "finished" or halt():
                continue
            if code == _BAD_FLAGS and writer(job):  # somebody started it by hand while ours was loading
                continue
            crashes += 1
            if code == _BAD_FLAGS or crashes > retries:
                refused = "refused its flags or its directory: " if code == _BAD_FLAGS else ""
                times = f", {crashes} times in total" if crashes > 1 else ""
                return News(job.id, "failed", f"{refused}{_in_words(code)}{times}", resumed)
            after = f", because it {_in_words(code)} (retry {crashes} of {retries})"
        contents = inspect(job)
        return News(job.id, "interrupted", f"at step {contents.step:,}" if contents.status else "before it was started")


def end_of_log(job: Job, lines: int = 15) -> list[str]:
    """The last lines of a job's output."""
    if not job.log.exists():
        return []
    with job.log.open("rb") as file:
        file.seek(max(0, job.log.stat().st_size - (1 << 16)))
        return file.read().decode(errors="replace").splitlines()[-lines:]


def _refuse_other_run(job: Job) -> None:
    def refuse(name: str, recorded: object, planned: object) -> None:
        raise RunError(
            f"{job.directory} holds another run: its {name} is {recorded!r}, that of {job.id} is {planned!r}; "
            "move it away, or give other --logs"
        )

    if (job.directory / PROVENANCE).exists():
        script, *words = read_json(job.directory / PROVENANCE).get("command") or [""]
        preset = words[0] if words and not words[0].startswith("-") else None
        for name, recorded, planned in (
            ("script", Path(script).stem, Path(job.script).name),
            ("preset", preset, job.preset),
        ):
            if recorded != planned:
                refuse(name, recorded, planned)
        resumed = read_json(job.directory / PROVENANCE).get("resumed")
        for session in resumed if isinstance(resumed, list) else ():
            if isinstance(session, dict) and session.get("extended"):
                refuse("length (--extend)", session["extended"], "that of the plan")
    if (job.directory / CONFIG).exists():
        config = read_json(job.directory / CONFIG)
        if not _is_branch(job, recorded := config.get("branch")):
            refuse("branch", recorded, _branch(job))
        for name, value in {**_inherited(job), **job.flags}.items():
            recorded = _at(config, name)
            if recorded != _plain(value):
                refuse(name, recorded, value)


def _branch(job: Job) -> str | None:
    """What the job branches from, in the form of config.json without the folder of runs, which may have moved."""
    if job.parent is None:
        return None
    return job.parent.directory.name + ("" if job.branch_step is None else f"@{job.branch_step}")


def _inherited(job: Job) -> dict[str, Any]:
    """The planned flags of the runs that the job branches from, as far as it has them too: where it changes a flag of a
    group, others of the group may return to their defaults.
    """
    if job.parent is None:
        return {}
    groups = {name.rpartition(".")[0] for name in job.flags} - {""}
    above = {**_inherited(job.parent), **job.parent.flags}
    return {name: value for name, value in above.items() if name.rpartition(".")[0] not in groups}


def _is_branch(job: Job, recorded: str | None) -> bool:
    if recorded is None or job.parent is None:
        return recorded is None and job.parent is None
    name = Path(recorded).name  # always with a step
    return name == _branch(job) or (job.branch_step is None and name.rpartition("@")[0] == _branch(job))


def _at(config: Any, name: str) -> Any:
    """The value at a dotted name; "(none)" if the configuration has no such key."""
    for key in name.split("."):
        if not isinstance(config, dict) or key not in config:
            return "(none)"
        config = config[key]
    return config


def _plain(value: Any) -> Any:
    """A flag's value in the form of config.json."""
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
    """The job's log, locked; None if halted while another process held the lock."""
    with failures_named("write the log", job.log):
        job.log.parent.mkdir(parents=True, exist_ok=True)
        log = job.log.open("ab", buffering=0)
    reported = False
    with log:
        while not _lock(log):
            if halt():
                yield None
                return
            if not reported:
                reported = True
                # The run's lock is not tried: trying holds it for an instant, in which that run may be starting.
                tell(News(job.id, "blocked", "another launcher, or a run left by one, has it"))
            time.sleep(_POLL_SECONDS)
        yield log


def _await_writer(job: Job, tell: Callable[[News], None], halt: Halt) -> bool:
    """Wait until nobody writes the run; False once halted."""
    reported = False
    while not halt():
        other = writer(job)
        if other is None:
            return True
        if not reported:
            reported = True
            tell(News(job.id, "blocked", other))
        time.sleep(_POLL_SECONDS)
    return False


def _prepare(job: Job, contents: Contents) -> str:
    """Move a run without a checkpoint aside; returns what happens next, in words."""
    if contents.state == "resumable":
        return f"resumed at step {contents.step:,}"
    if contents.state == "nothing":
        return "started"
    number = 1
    while (aside := job.directory.with_name(f"{job.directory.name}.abandoned-{number}")).exists():
        number += 1
    with failures_named(f"move {job.directory.name} aside", job.directory):
        job.directory.rename(aside)
    return f"started again: the earlier run had no checkpoint yet and is now {aside.name}"


def _run(
    job: Job, command: list[str], log: BinaryIO, halt: Halt, die_with_parent: bool, environment: Mapping[str, str]
) -> int:
    """Start the process and wait for its exit code, which is negative if a signal ended it."""
    with failures_named("write the log", job.log):
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {platform.node()}: {shlex.join(command)}\n".encode())
    if die_with_parent:
        command = [sys.executable, str(Path(__file__).with_name("die_with_parent.py")), str(os.getpid()), *command]
    threads = {f"{library}_NUM_THREADS": str(job.threads) for library in ("OMP", "MKL", "OPENBLAS")}
    with failures_named("start a process", job.folder / command[0]):
        child = subprocess.Popen(
            command,
            cwd=job.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **threads, **environment},
            start_new_session=True,  # Ctrl-C reaches it only through us, once; a closed terminal does not reach it
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
        child.terminate()  # it writes a checkpoint; nobody would wait for its end
        raise


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"
