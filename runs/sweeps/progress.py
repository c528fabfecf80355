"""Show the progress of the jobs of a launch: a table that is redrawn on a terminal, lines of news elsewhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from runs.recording import RunError, read_json
from runs.recording.directory import CONFIG
from runs.recording.scalars_file import TABLE
from runs.recording.terminal import duration
from runs.sweeps.experiment import Job
from runs.sweeps.run_job import ENDED, News, end_of_log

_DRAW_SECONDS, _SUMMARY_SECONDS = 1.0, 60.0


@dataclass
class Pace:
    """Speed of a running job, between the first and the latest observed step."""

    started: tuple[float, int] | None = None
    latest: tuple[float, int] | None = None

    def see(self, now: float, step: int | None) -> None:
        """Observe a step. If the step went backwards (a resumed run), the estimate is restarted."""
        if step is None:
            return
        if self.latest is None or step < self.latest[1]:
            self.started = self.latest = now, step
        elif step > self.latest[1]:
            self.latest = now, step

    @property
    def per_second(self) -> float | None:
        """Steps per second; None before two different steps were observed."""
        if self.started is None or self.latest is None or self.latest == self.started:
            return None
        return (self.latest[1] - self.started[1]) / (self.latest[0] - self.started[0])


def last_step(directory: Path) -> int | None:
    """The step of the last complete line of scalars.csv, which scripts update twice a minute."""
    try:
        with (directory / TABLE).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            return int(file.read().rpartition(b"\n")[0].rpartition(b"\n")[2].split(b",")[0])
    except (OSError, ValueError):  # no table yet, or only its header
        return None


def total_steps(directory: Path) -> int | None:
    """The number of steps of a run, if its configuration has it: --total-timesteps or --total-updates."""
    with contextlib.suppress(RunError):
        config = read_json(directory / CONFIG)
        total = config.get("total_timesteps", config.get("total_updates"))
        return total if isinstance(total, int) else None
    return None


class Progress:
    """The latest news of each job, and how they are shown.

    Args:
        jobs: all jobs of the launch.
        out: where to print.
        live: redraw one table; None means if `out` is a terminal.
    """

    def __init__(self, jobs: Sequence[Job], out: TextIO, live: bool | None = None):
        self.jobs = {job.id: job for job in jobs}
        self.latest = {job.id: News(job.id, "waiting") for job in jobs}
        self._ran: set[str] = set()
        self._resumed: set[str] = set()
        self._paces: dict[str, Pace] = {}
        self._totals: dict[str, int] = {}
        self._out, self._live = out, out.isatty() if live is None else live
        self._drawn, self._drawn_at, self._summary_at = 0, 0.0, time.monotonic()

    @property
    def open(self) -> bool:
        """Whether some job has not ended yet."""
        return any(news.state not in ENDED for news in self.latest.values())

    def ended(self, state: str) -> list[News]:
        """The last news of the jobs in a state."""
        return [news for news in self.latest.values() if news.state == state]

    def take(self, news: News) -> None:
        """Take news of a job. Print a line for what somebody who comes back later should see."""
        if self.latest[news.job].state in ENDED:  # news from a node may arrive late
            return
        self.latest[news.job] = news
        if news.state == "running":
            self._ran.add(news.job)
            self._paces[news.job] = Pace()
            if news.resumed:
                self._resumed.add(news.job)
        if self._is_worth_a_line(news):
            self.say(f"{news.job}: {news.state}{f', {news.text}' if news.text else ''}")

    def _is_worth_a_line(self, news: News) -> bool:
        if news.state == "interrupted":
            return news.job in self._ran  # hundreds of others may never have been started
        in_the_table = news.state == "finished" or news.text.partition(" on ")[0] == "started"
        return not (self._live and in_the_table)

    def say(self, line: str) -> None:
        """Print a line that stays, with the time of day."""
        self._erase()
        print(f"{time.strftime('%H:%M:%S')}  {line}", file=self._out, flush=True)

    def show(self) -> None:
        """Redraw the table or print the summary if it is due."""
        now = time.monotonic()
        if self._live and now - self._drawn_at >= _DRAW_SECONDS:
            self._drawn_at = now
            size = shutil.get_terminal_size()
            lines = [line[: size.columns - 1] for line in self._table(now, size.lines - 3)]
            self._erase()
            print(*lines, sep="\n", file=self._out, flush=True)
            self._drawn = len(lines)
        elif not self._live and now - self._summary_at >= _SUMMARY_SECONDS:
            self._summary_at = now
            self.say(self._summary())

    def close(self) -> None:
        """Print how many jobs were run, resumed, skipped and not finished, and the end of each failed job's log."""
        self._erase()
        finished = {news.job for news in self.ended("finished")}
        counts = {
            "run": len(finished & self._ran - self._resumed),
            "resumed": len(finished & self._resumed),
            "already finished": len(finished - self._ran),
            "failed": len(self.ended("failed")),
            "interrupted": len(self.ended("interrupted")),
        }
        for news in self.ended("failed"):
            job = self.jobs[news.job]
            print(f"\n{news.job} failed: {news.text}", file=self._out)
            if lines := end_of_log(job):
                print(f"the end of {job.log}:", *(f"    {line}" for line in lines), sep="\n", file=self._out)
        parts = [f"{count} {what}" for what, count in counts.items() if count or what in ("run", "failed")]
        print(f"\n{len(self.jobs)} runs: {', '.join(parts)}", file=self._out, flush=True)

    def _erase(self) -> None:
        if self._drawn:
            # Move to the first line of the table and clear from there.
            print(f"\x1b[{self._drawn}F\x1b[J", end="", file=self._out)
            self._drawn = 0

    def _summary(self) -> str:
        states = Counter(news.state for news in self.latest.values())
        shown = [f"{states['finished']} of {len(self.jobs)} finished"]
        return ", ".join(
            [*shown, *(f"{states[s]} {s}" for s in ("running", "blocked", "waiting", "failed") if states[s])]
        )

    def _table(self, now: float, most: int) -> list[str]:
        active = [news for news in self.latest.values() if news.state in ("running", "blocked")]
        rows = [self._row(news, now) for news in active[:most]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        more = [f"... and {len(active) - most} more"] if len(active) > most else []
        return [self._summary(), *lines, *more]

    def _row(self, news: News, now: float) -> Sequence[str]:
        if news.state == "blocked":
            return f"  {news.job}", "", "", "", f"waiting: {news.text}"
        directory, pace = self.jobs[news.job].directory, self._paces[news.job]
        pace.see(now, last_step(directory))
        if news.job not in self._totals and (total := total_steps(directory)) is not None:
            self._totals[news.job] = total
        step, speed, total = pace.latest[1] if pace.latest else None, pace.per_second, self._totals.get(news.job)
        left: Any = "" if None in (step, speed, total) else duration(max(total - step, 0) / speed)  # type: ignore[operator]
        return (
            f"  {news.job}",
            ("" if step is None else f"{step:,}") + (f" of {total:,}" if total is not None else ""),
            "" if speed is None else f"{speed:,.1f}/s",
            f"{left} left" if left else "",
            news.text,
        )
