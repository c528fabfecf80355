"""Watch one agent stop learning when its task changes, and another one keep learning, in about two minutes.

    python -m runs demo

Two agents learn CartPole. Every 60,000 steps, another constant vector is added to the observation. One agent is plain
PPO. The other has LayerNorm, its weights are projected after each update, and its learning rate decays and is re-warmed
at each change, of which it is told. They train side by side on two cores, or one after the other on one. At the end, a
table, a sentence and a picture (pip install -e '.[plots]') show what happened.

Ctrl-C saves and stops both agents, and the same command continues them. After the end it starts new ones. The runs are
in LOGS/sSEED/, then LOGS/sSEED-2/, and so on. They are ordinary run directories, for TensorBoard and all commands.

Exit codes: 0 finished, 1 an agent failed, 2 refused, 130 interrupted.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runs.analysis.curves import read_table
from runs.demo.design import Size, agents, planned
from runs.demo.summary import LEARNED, draw, scores, sentence, table
from runs.demo.watch import Watch
from runs.recording import RunError
from runs.recording.files import failures_named
from runs.recording.terminal import tensorboard_command
from runs.sweeps.experiment import LOGS, Job, require_scripts
from runs.sweeps.launcher import Local, available_cores, follow, make_slots
from runs.sweeps.run_job import end_of_log, inspect


@dataclass(frozen=True)
class Args:
    """Two agents whose task changes."""

    seed: int = 1
    """seed of both agents and of the changes"""
    logs: Path = LOGS / "demo"
    """folder of the runs"""

    def __post_init__(self) -> None:
        """Refuse a seed that names no stream of random numbers."""
        if self.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {self.seed}")


def pictures(folder: Path) -> list[Path]:
    """The picture's files; the last one is written last."""
    return [folder / "demo.png", folder / "demo.svg"]


def next_folder(logs: Path, seed: int, size: Size) -> Path:
    """The first of s1, s1-2, s1-3, ... that is not complete: empty, or with runs to continue or a picture to draw.

    Raises:
        RunError: a folder cannot be read.
    """
    for number in itertools.count(1):
        folder = logs / (f"s{seed}" if number == 1 else f"s{seed}-{number}")
        with failures_named("read the runs", folder / "plain"):
            if pictures(folder)[-1].exists():
                continue
            try:
                for job in planned(folder, seed, size):
                    inspect(job)
            except RunError:  # other runs: of another version of the demo, or damaged
                continue
        return folder
    raise AssertionError("unreachable")


def report(jobs: Sequence[Job], size: Size, seed: int, folder: Path) -> None:
    """Print the table and the sentence, draw the picture, and say how to look at the runs.

    Raises:
        RunError: a run's table cannot be read, or the picture cannot be written.
    """
    curves = {job.arm: read_table(job.directory) for job in jobs}
    measured = {run: scores(curves[run], size) for run in curves}
    print(f"\n{table(measured, {run: agent.name for run, agent in agents(size).items()})}")
    print(
        f"(end: over the last fifth of a level, which counts as learned from {LEARNED:.0f} on; "
        f"one run of each agent, seed {seed})\n"
    )
    print(textwrap.fill(sentence(**measured), 100), end="\n\n")
    if importlib.util.find_spec("matplotlib"):
        draw(curves, size, seed, pictures(folder))
        print(f"picture: {'  '.join(map(str, pictures(folder)))}")
    else:
        print("no picture, it needs matplotlib: pip install -e '.[plots]', then the same command draws it at once")
    print(f"all curves, under Custom Scalars: {tensorboard_command(folder)}")
    print("more agents, environments and seeds: python -m runs show continual-control-v1")


def main(args: Args, size: Size | None = None) -> int:
    """Train both agents and show what happened; the exit code.

    Raises:
        RunError: a folder or a file cannot be read or written.
    """
    size = size or Size()
    folder = next_folder(args.logs, args.seed, size)
    jobs = planned(folder, args.seed, size)
    require_scripts(jobs)
    with failures_named("make runs", folder / "plain"):
        folder.mkdir(parents=True, exist_ok=True)
    slots = make_slots(jobs, None, False, available_cores())
    how = "side by side" if len(slots) > 1 else "one after the other, on the one core there is"
    print(
        f"Two agents learn CartPole for {size.total:,} steps, {how}. After every {size.level:,} steps the task changes."
    )
    for run, agent in agents(size).items():
        print(f"  {run:<9} {agent.name}: {agent.about}")
    print(f"Runs: {folder}", flush=True)
    watch = Watch(jobs, size)
    code = follow(Local(jobs, slots, 0, die_with_parent=sys.platform == "linux"), watch, stop_at_failure=True)
    for news in watch.ended("failed")[:1]:  # the other agent fails for the same reason, or was stopped
        job = watch.jobs[news.job]
        said = [line for line in end_of_log(job) if line.strip() and not line.startswith("--- ")]
        why = f"{news.text}: {said[-1].strip()}" if said else news.text
        print(f"{sys.argv[0]}: {job.arm} failed: {why} (its output is in {job.log})", file=sys.stderr)
    if code == 0:
        report(jobs, size, args.seed, folder)
    return code
