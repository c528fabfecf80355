"""The demo's progress: one line for each agent."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from runs.demo.design import RETURN, Size
from runs.recording.scalars_file import TABLE
from runs.recording.terminal import duration
from runs.sweeps.experiment import Job
from runs.sweeps.progress import Pace, Progress
from runs.sweeps.run_job import News

_TAIL_BYTES, _EPISODES = 1 << 16, 20


def latest(directory: Path, size: Size) -> tuple[int, float | None]:
    """The last step that a run has recorded, and the mean of the last 20 returns of its level, None before the first.

    Its table is written when it saves a checkpoint.
    """
    try:
        with (directory / TABLE).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            tail = file.read().decode(errors="replace")
    except OSError:  # not there yet
        return 0, None
    rows = [line.split(",") for line in tail.split("\n")[1:-1]]  # the header, or a cut line; and what is not complete
    step = int(rows[-1][0]) if rows else 0
    began = (level_of(step, size) - 1) * size.level
    returns = [float(value) for at, tag, value in rows if tag == RETURN and int(at) > began]
    return step, float(np.mean(returns[-_EPISODES:])) if returns else None


def level_of(step: int, size: Size) -> int:
    """The level, counted from 1, that a step belongs to; a change comes after the last step of a level."""
    return min(size.levels, max(1, -(-step // size.level)))


class Watch(Progress):
    """One line for each agent, in place on a terminal and every ten seconds elsewhere."""

    def __init__(self, jobs: Sequence[Job], size: Size, out: TextIO | None = None, live: bool | None = None):
        super().__init__(jobs, out or sys.stdout, live)
        self._size = size
        self._ended: set[str] = set()  # whose last line has been printed
        self._drawn_at = -math.inf if self._live else time.monotonic()  # there is nothing to say yet

    def take(self, news: News) -> None:
        """Take news of an agent; print what its line does not say."""
        if self.latest[news.job].state == "waiting" and news.state == "blocked":
            self.say(f"{self.jobs[news.job].arm}: another process trains this agent; following it")
        if news.state == "running":
            self._paces[news.job] = Pace()
            if news.text != "started":
                self.say(f"{self.jobs[news.job].arm}: {news.text}")
        self.latest[news.job] = news

    def show(self) -> None:
        """Draw the lines if they are due."""
        now = time.monotonic()
        if now - self._drawn_at >= (1.0 if self._live else 10.0):
            self._drawn_at = now
            self._draw(now)

    def close(self) -> None:
        """Draw the lines for the last time."""
        self._draw(time.monotonic())
        self._drawn = 0

    def _draw(self, now: float) -> None:
        ended = ("finished", "failed", "interrupted")
        shown = [news for news in self.latest.values() if self._live or news.job not in self._ended]
        lines = [self._line(news, now) for news in shown]
        self._ended |= {news.job for news in shown if news.state in ended}
        if not lines:
            return
        self._erase()
        if self._live:
            lines = [line[: shutil.get_terminal_size().columns - 1] for line in lines]
            self._drawn = len(lines)
        print(*lines, sep="\n", file=self._out, flush=True)

    def _line(self, news: News, now: float) -> str:
        job, size = self.jobs[news.job], self._size
        step, mean = latest(job.directory, size)
        pace = self._paces.setdefault(news.job, Pace())
        pace.see(now, step)
        left = f"   {_duration((size.total - step) / pace.per_second)} left" if pace.per_second else ""
        if news.state not in ("running", "blocked"):
            left = f"   {news.state}"
        shown = "none" if mean is None else f"{mean:.0f}"
        return (
            f"{job.arm:<9} step {step:>7,} of {size.total:,}   level {level_of(step, size)} of {size.levels}   "
            f"mean return {shown:>4}{left}"
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else duration(seconds)
