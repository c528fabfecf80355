"""Several seeds of one script, `python agents/dqn_minatar.py nap --seeds 1 2 3`: a process and a run directory each."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs.recording import RunError
from runs.recording.directory import STATUS
from runs.recording.terminal import tensorboard_command
from runs.sweeps.experiment import Job
from runs.sweeps.launcher import Local, available_cores, follow, make_slots
from runs.sweeps.progress import Progress
from runs.sweeps.run_job import end_of_log, inspect

_SECONDS = 30.0
"""between two lines of a run in a log file"""


@dataclass(frozen=True)
class SeedJob(Job):
    """The run of one seed: the user's own command line with `--seed` instead of `--seeds`."""

    words: Sequence[str] = ()
    """script, preset and flags"""

    @property
    def log(self) -> Path:
        """In the run directory: next to it, a pattern for runs (`runs/logs/nap__*`) would match it."""
        return self.directory / "output.txt"

    @property
    def folder(self) -> Path:
        """Where the user is: paths on the command line are relative to it."""
        return Path.cwd()

    def command(self) -> list[str]:
        """See `Job`."""
        return [sys.executable, *self.words, "--seed", str(self.seed), "--directory", str(self.directory)]

    def resume_command(self) -> list[str]:
        """See `Job`."""
        return [sys.executable, self.words[0], "--resume", str(self.directory)]


class SeedProgress(Progress):
    """The latest line that each run has printed: in one table on a terminal, now and then elsewhere."""

    def show(self) -> None:
        """Draw or print the lines if they are due."""
        now = time.monotonic()
        if self._live:
            super().show()
        elif now - self._summary_at >= _SECONDS:
            self._summary_at = now
            for news in self.latest.values():
                if news.state == "running":
                    self.say(f"{news.job}: {_last_progress(self.jobs[news.job])}")

    def _table(self, now: float, most: int) -> list[str]:
        active = [news for news in self.latest.values() if news.state == "running"]
        return [self._summary(), *(f"  {news.job}: {_last_progress(self.jobs[news.job])}" for news in active[:most])]


def run_seeds(args: Any, directories: Mapping[int, Path]) -> int:
    """Train every seed in its own process and follow them; the exit code.

    Args:
        args: the script's flags, of which threads and device are read.
        directories: of the runs, by seed; none exists.
    Raises:
        RunError: there is no command line with --seeds to repeat.
    """
    jobs = seed_jobs(sys.argv, directories, args.threads, _share_of_a_gpu(args.device, len(directories)))
    slots = make_slots(jobs, None, False, available_cores(), _gpus() if jobs[0].gpus else 0)
    waiting = f", {len(slots)} at the same time" if len(slots) < len(jobs) else ""
    print(f"{len(jobs)} runs{waiting}, each on {args.device}:")
    print(*(f"  {job.id}: {job.directory}" for job in jobs), sep="\n")
    print(_looks(jobs), flush=True)
    progress = SeedProgress(jobs, sys.stdout)
    engine = Local(jobs, slots, 0, die_with_parent=sys.platform == "linux")
    code = follow(engine, progress, advice="the commands that resume the runs follow")
    for job in jobs:
        if summary := list(_summary_of(job)):
            print(f"{job.id}: {'; '.join(summary)}")
    if code == 130:
        print(*_how_to_resume([job for job in jobs if progress.latest[job.id].state == "interrupted"]), sep="\n")
    if begun := [job for job in jobs if (job.directory / STATUS).exists()]:
        print(_looks(begun))
        pattern = str(begun[0].directory).replace(f"__s{begun[0].seed}__", "__s*__")
        print(f"their mean and range: {shlex.quote(sys.executable)} -m runs board {shlex.quote(pattern)}", flush=True)
    return code


def _looks(jobs: Sequence[Job]) -> str:
    return f"look at them with: {tensorboard_command({f's{job.seed}': job.directory for job in jobs})}"


def seed_jobs(argv: Sequence[str], directories: Mapping[int, Path], threads: int, gpus: float) -> list[SeedJob]:
    """A job for each seed of a command line.

    Raises:
        RunError: --seeds is not on it.
    """
    words = without_seeds(argv)
    if len(words) == len(argv):
        raise RunError("--seeds works on a command line only: give other programs one --seed at a time")
    script, preset = Path(words[0]).stem, next((word for word in words[1:2] if not word.startswith("-")), None)
    return [
        SeedJob(
            f"seed {seed}", script, "", f"s{seed}", "", seed, script, preset, {"seed": seed}, directory, threads, gpus,
            words=words,
        )
        for seed, directory in directories.items()
    ]  # fmt: skip


def without_seeds(words: Sequence[str]) -> list[str]:
    """A command line without --seeds and its numbers."""
    kept, dropping = [], False
    for word in words:
        begins = word.partition("=")[0] == "--seeds"
        dropping = begins or (dropping and not word.startswith("--"))
        if not dropping:
            kept.append(word)
    return kept


def _share_of_a_gpu(device: str, count: int) -> float:
    """With several GPUs, `--device cuda` spreads the runs over them; `--device cuda:1` keeps them on one."""
    gpus = _gpus() if device == "cuda" else 0
    return min(1.0, gpus / count)


def _gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def _last_progress(job: Job) -> str:
    """The last line of progress in a run's output."""
    lines = [line for line in end_of_log(job, 100) if re.match(r"(step|update) [\d,]+ of ", line)]
    return lines[-1] if lines else "starting"


def _summary_of(job: Job) -> Iterator[str]:
    """What a finished run has said of itself, without its directory."""
    lines = end_of_log(job)
    ends = [i for i, line in enumerate(lines) if re.match(r"finished [\d,]+ \w+ in ", line)]
    for line in lines[ends[-1] + 1 :] if ends else ():
        if not line.startswith("look at it with"):
            yield line


def _how_to_resume(jobs: Sequence[SeedJob]) -> Iterator[str]:
    """The command lines that continue interrupted runs, and start those that never began."""
    resumable = [job for job in jobs if inspect(job).state == "resumable"]
    if resumable:
        yield f"to resume {'it' if len(resumable) == 1 else f'all {len(resumable)} at once'}:"
        for job in resumable[:-1]:
            yield f"{shlex.join(job.resume_command())} &"
        yield shlex.join(resumable[-1].resume_command())
    if left := [str(job.seed) for job in jobs if job not in resumable]:
        yield "not begun, or stopped before the first checkpoint; to run:"
        yield shlex.join([sys.executable, *jobs[0].words, "--seeds", *left])
