"""Run many jobs: the engine of this machine, and the loop that follows any engine.

Each run is its own process, in its own session, on its own cores. If the launcher is killed, the processes continue.
The next launcher finds them by their locks, waits for them, and does not start them a second time. A launcher that is
started while this one runs does the same: it shows such runs as blocked, and counts them as skipped once they have
finished.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runs.recording import RunError, StopOnSignal
from runs.sweeps.experiment import Job
from runs.sweeps.progress import Progress
from runs.sweeps.run_job import News, run_job


class Engine(Protocol):
    """Runs jobs somewhere. The last news of every job is finished, failed or interrupted."""

    def news(self) -> list[News]:
        """The news since the last call; waits a moment for some."""

    def stop(self) -> None:
        """Start no more jobs; let the running ones write a checkpoint and stop."""

    def kill(self) -> None:
        """Stop at once, if the engine can."""


@dataclass(frozen=True)
class Slot:
    """A place where one job runs at a time."""

    cores: frozenset[int] = frozenset()
    """the process is pinned to them; empty leaves the choice to the operating system"""
    environment: dict[str, str] = field(default_factory=dict)


def available_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def make_slots(jobs: Sequence[Job], at_once: int | None, pin: bool, cores: Sequence[int], gpus: int = 0) -> list[Slot]:
    """One slot for each job that runs at the same time.

    Args:
        jobs: jobs to run; the largest number of threads and the largest share of a GPU among them decide.
        at_once: number of slots; None is as many as the cores and GPUs allow, at least one.
        pin: give each slot its own cores, starting again with the first core when all are taken.
        cores: their numbers.
        gpus: number of GPUs; slots use them in turn.
    Raises:
        RunError: jobs need a GPU and there is none.
    """
    threads, share = max(job.threads for job in jobs), max(job.gpus for job in jobs)
    if share and not gpus:
        raise RunError(f"{jobs[0].experiment} at this scale needs a GPU, and torch sees none here")
    if at_once is None:
        at_once = max(1, min(len(cores) // threads, int(gpus / share + 1e-9) if share else len(cores)))
    slots = []
    for i in range(min(at_once, len(jobs))):
        own = [cores[(i * threads + j) % len(cores)] for j in range(threads)]
        environment = {"CUDA_VISIBLE_DEVICES": _device(i % gpus)} if share else {}
        slots.append(Slot(frozenset(own) if pin else frozenset(), environment))
    return slots


def _device(index: int) -> str:
    """The number of the index-th GPU that this process may use."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return allowed[index] if index < len(allowed) and allowed[index] else str(index)


class Local:
    """The engine of this machine: one thread per slot, which takes the next job when it is free.

    A job that branches from another one among them waits for it, while later jobs are taken.

    Args:
        jobs: what to run.
        slots: where.
        retries: as for `run_job`.
        die_with_parent: as for `run_job`.
    """

    def __init__(self, jobs: Sequence[Job], slots: Sequence[Slot], retries: int, die_with_parent: bool = False):
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._level, self._retries, self._die_with_parent = 0, retries, die_with_parent
        self._waiting = list(jobs)
        self._open = {job.id for job in jobs}  # not ended yet
        self._failed: set[str] = set()
        self._ended = threading.Condition()
        for slot in slots:
            threading.Thread(target=self._work, args=(slot,), daemon=True).start()

    def news(self) -> list[News]:
        """The news since the last call; waits up to a fifth of a second for some."""
        news = []
        with contextlib.suppress(queue.Empty):
            news.append(self._news.get(timeout=0.2))
            while True:
                news.append(self._news.get_nowait())
        return news

    def stop(self) -> None:
        """Send SIGINT to the processes, once; start no more."""
        self._level = max(self._level, 1)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._level = 2

    def _work(self, slot: Slot) -> None:
        if slot.cores and hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # a container may forbid it
                os.sched_setaffinity(0, slot.cores)  # on Linux for this thread only; its children inherit it
        while job := self._next():
            news = self._run(job, slot)
            with self._ended:
                self._open.discard(job.id)
                if news.state == "failed":
                    self._failed.add(job.id)
                self._ended.notify_all()
            self._news.put(news)

    def _next(self) -> Job | None:
        """The next job that need not wait for another one; None when none is left."""
        with self._ended:
            while self._waiting:
                for job in self._waiting:
                    if job.parent is None or job.parent.id not in self._open:
                        self._waiting.remove(job)
                        return job
                self._ended.wait()
        return None

    def _run(self, job: Job, slot: Slot) -> News:
        if self._level:
            return News(job.id, "interrupted", "before it was started")
        if job.parent is not None and job.parent.id in self._failed:
            return News(job.id, "failed", f"it branches from {job.parent.id}, which failed")
        try:
            return run_job(
                job,
                retries=self._retries,
                tell=self._news.put,
                halt=lambda: self._level,
                die_with_parent=self._die_with_parent,
                environment=slot.environment,
            )
        except RunError as error:
            return News(job.id, "failed", str(error))
        except Exception as error:  # after a bug here the launcher must not wait for the job forever
            return News(job.id, "failed", f"bug in the launcher: {type(error).__name__}: {error}")


AGAIN = "run the same command again to resume from the checkpoints"


def follow(engine: Engine, progress: Progress, *, stop_at_failure: bool = False, advice: str = AGAIN) -> int:
    """Show an engine's progress until all jobs have ended. The first Ctrl-C or SIGTERM stops it, the second kills.

    Args:
        engine: runs the jobs.
        progress: shows them.
        stop_at_failure: when a job fails, let the others write a checkpoint and stop, too.
        advice: how to resume, for the message about an interruption.
    Returns:
        The exit code: 0 if all jobs finished, 1 if one failed, 130 if interrupted.
    """
    with StopOnSignal() as stop:
        try:
            _until_the_end(engine, progress, stop, stop_at_failure)
        except KeyboardInterrupt:
            engine.kill()
            progress.say("killing the runs; they can be resumed from their latest checkpoints")
            _until_the_end(engine, progress, None)
    progress.close()
    if progress.ended("interrupted") and not (stop_at_failure and progress.ended("failed")):
        print(f"{sys.argv[0]}: interrupted; {advice}", file=sys.stderr)
        return 130
    return 1 if progress.ended("failed") else 0


def _until_the_end(
    engine: Engine, progress: Progress, stop: StopOnSignal | None, stop_at_failure: bool = False
) -> None:
    stopping = False
    while progress.open:
        for news in engine.news():
            progress.take(news)
        progress.show()
        if stop and stop.requested and not stopping:
            stopping = True
            engine.stop()
            progress.say("stopping: the runs write a checkpoint first (press Ctrl-C again to kill them)")
        if stop_at_failure and not stopping and progress.ended("failed"):
            stopping = True
            engine.stop()


def launch(jobs: Sequence[Job], at_once: int | None = None, retries: int = 2, pin: bool = True) -> int:
    """Run jobs on this machine and show their progress; see `follow` for the exit code.

    Raises:
        RunError: they need a GPU and there is none.
    """
    gpus = 0
    if any(job.gpus for job in jobs):
        import torch

        gpus = torch.cuda.device_count()
    slots = make_slots(jobs, at_once, pin, available_cores(), gpus)
    return follow(Local(jobs, slots, retries), Progress(jobs, sys.stdout))
