"""Many jobs brought to their end: the engine of this machine, and the loop that follows any engine.

A run is a process of its own, in its own session, on its own cores. If the launcher is killed the processes go on; the
next launcher finds them by their locks, waits for them and does not start a second one. So does a launcher that is
started beside this one: it shows such runs as blocked, and counts them as skipped once they have finished.
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

from runs.executing import News, execute
from runs.experiment import Job
from runs.progress import Progress
from runs.recording import RunError, StopOnSignal


class Engine(Protocol):
    """Runs jobs somewhere; every job ends with news that say finished, failed or interrupted."""

    def news(self) -> list[News]:
        """What has happened since the last call; waits a moment for it."""

    def stop(self) -> None:
        """Start nothing more; let what runs write a checkpoint and stop."""

    def kill(self) -> None:
        """Stop at once, if the engine can."""


@dataclass(frozen=True)
class Slot:
    """Where one job at a time runs."""

    cores: frozenset[int] = frozenset()
    """the process is held to them; empty leaves it to the operating system"""
    environment: dict[str, str] = field(default_factory=dict)


def available_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def make_slots(jobs: Sequence[Job], at_once: int | None, pin: bool, cores: Sequence[int], gpus: int = 0) -> list[Slot]:
    """One slot for each job that runs at the same time.

    Args:
        jobs: what will run; the one with most threads, and the one with the largest share of a GPU, set the measure.
        at_once: number of slots; None is as many as cores and GPUs carry, at least one.
        pin: give each slot cores of its own; beyond the last core it begins with the first again.
        cores: their numbers.
        gpus: how many there are; slots take them in turn.
    Raises:
        RunError: jobs want a GPU and there is none.
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
    """The name of the index-th GPU that this process may use."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return allowed[index] if index < len(allowed) and allowed[index] else str(index)


class Local:
    """The engine of this machine: a thread for each slot, which takes the next job when it is free."""

    def __init__(self, jobs: Sequence[Job], slots: Sequence[Slot], retries: int):
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._level, self._retries = 0, retries
        for job in jobs:
            self._jobs.put(job)
        for slot in slots:
            threading.Thread(target=self._work, args=(slot,), daemon=True).start()

    def news(self) -> list[News]:
        """What has happened since the last call; waits up to a fifth of a second for it."""
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._news.get(timeout=0.2))
            while True:
                found.append(self._news.get_nowait())
        return found

    def stop(self) -> None:
        """Send SIGINT to the processes, once; start no more."""
        self._level = max(self._level, 1)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._level = 2

    def _work(self, slot: Slot) -> None:
        if slot.cores and hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # a container may forbid it
                os.sched_setaffinity(0, slot.cores)  # on Linux of this thread alone; its children inherit it
        with contextlib.suppress(queue.Empty):
            while True:
                self._news.put(self._bring_to_its_end(self._jobs.get_nowait(), slot))

    def _bring_to_its_end(self, job: Job, slot: Slot) -> News:
        if self._level:
            return News(job.id, "interrupted", "before it was started")
        try:
            return execute(
                job,
                retries=self._retries,
                tell=self._news.put,
                halt=lambda: self._level,
                environment=slot.environment,
            )
        except RunError as error:
            return News(job.id, "failed", str(error))
        except Exception as error:  # a defect here must not leave the job unended and the launcher waiting for it
            return News(job.id, "failed", f"defect of the launcher: {type(error).__name__}: {error}")


def follow(engine: Engine, progress: Progress) -> int:
    """Show an engine's work until all jobs have ended. The first Ctrl-C, or SIGTERM, stops it, the second kills.

    Returns:
        The exit code: 0 if all have finished, 1 if one failed, 130 if they were interrupted.
    """
    with StopOnSignal() as stop:
        try:
            _until_the_end(engine, progress, stop)
        except KeyboardInterrupt:
            engine.kill()
            progress.say("killing the runs; they resume from the checkpoints that they have")
            _until_the_end(engine, progress, None)
    progress.close()
    if progress.ended("interrupted"):
        print(f"{sys.argv[0]}: interrupted; the same command goes on from the checkpoints", file=sys.stderr)
        return 130
    return 1 if progress.ended("failed") else 0


def _until_the_end(engine: Engine, progress: Progress, stop: StopOnSignal | None) -> None:
    stopping = False
    while progress.open:
        for news in engine.news():
            progress.take(news)
        progress.show()
        if stop and stop.requested and not stopping:
            stopping = True
            engine.stop()
            progress.say("stopping: the runs write a checkpoint first (Ctrl-C again kills them)")


def launch(jobs: Sequence[Job], at_once: int | None = None, retries: int = 2, pin: bool = True) -> int:
    """Run jobs on this machine and show them; see `follow` for the exit code.

    Raises:
        RunError: they need a GPU and there is none.
    """
    gpus = 0
    if any(job.gpus for job in jobs):
        import torch

        gpus = torch.cuda.device_count()
    slots = make_slots(jobs, at_once, pin, available_cores(), gpus)
    return follow(Local(jobs, slots, retries), Progress(jobs, sys.stdout))
