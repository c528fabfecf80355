"""A TensorBoard page that compares arms: one line per arm, the mean of its seeds, in a band over all of them.

    python -m runs board fig3 --scale laptop                      the finished runs of an experiment
    python -m runs board runs/logs/nap__* runs/logs/baseline__*   any runs, also CleanRL's and other event files
    python -m runs board runs/logs --watch                        again and again while runs are under way
    tensorboard --logdir runs/logs/board-arms

Writes one TensorBoard run per arm: for an experiment next to its runs (LOGS/EXPERIMENT/SCALE-arms), for other runs to
LOGS/board-arms. Each game or other task gets its own folder, because returns of two games should not share an axis.
*Custom Scalars* then shows the main curve, the learning rate, and ELR and plasticity of the last hidden layer first.
Below are the other quantities of every layer (but no speeds and no events). A line is the mean of the seeds, its band
goes from the lowest seed to the highest, and the arm's name carries n. Episodes are averaged over windows of steps. A
tag that one seed lacks has no line. The TensorBoard run "task changes" marks where the task changed. Run the command
again to rebuild the page.

RUN is a run directory, a folder of runs, or a pattern. Runs that differ only in seed and task form an arm. It is called
by its exp_name, and by settings that differ if two arms have the same exp_name (--by names others). Unfinished runs are
included: the line of an arm ends where its shortest run is. --finished leaves them out.

*Time Series* shows the seeds themselves, in the colour of their arm: open `tensorboard --logdir runs/logs`, and in the
palette above the runs group them by the regular expression `(.*)[-_]s[0-9]`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runs.figures.arms_page import Written
from runs.figures.board_of_experiments import write_experiment
from runs.figures.board_of_runs import runs_in, write_runs
from runs.positionals import ExperimentsOrRuns
from runs.recording import RunError
from runs.recording.directory import LOCK
from runs.recording.lock import is_held
from runs.recording.terminal import tensorboard_command
from runs.sweeps.experiment import LOGS, Experiment, NoRuns, chosen, is_experiment, plan

_SECONDS = 30.0


@dataclass(frozen=True)
class Args:
    """Compare arms in TensorBoard."""

    words: ExperimentsOrRuns
    """names as in `python -m runs list`, or all: those that have finished runs; or runs, folders of runs, patterns"""
    scale: str = "laptop"
    """which scale of the experiments"""
    logs: Path = LOGS
    """where the run directories of experiments are"""
    out: Path | None = None
    """where the page is written: OUT/EXPERIMENT/SCALE-arms (default: in the folder of --logs); for runs OUT itself
    (default: board-arms in the folder of --logs)"""
    tag: str = ""
    """of runs: tag of the first chart; default: the main score, as in `compare`"""
    by: tuple[str, ...] = ()
    """of runs: settings that tell arms apart, dotted in groups: nap.enabled; default: all that differ"""
    finished: bool = False
    """of runs: leave out those that are not finished; of experiments only finished runs are shown anyway"""
    watch: tuple[float, ...] | None = None
    """write the page again every so many seconds (--watch alone: 30) until no run is under way, or until Ctrl-C"""

    def __post_init__(self) -> None:
        """Refuse flags that contradict each other or have no effect."""
        if self.watch is not None and (
            len(self.watch) > 1 or not all(1 <= seconds < math.inf for seconds in self.watch)
        ):
            raise ValueError(f"--watch takes one number of seconds, at least 1, got {' '.join(map(str, self.watch))}")
        kinds = [is_experiment(word) for word in self.words]
        if any(kinds) and not all(kinds):
            one, other = self.words[kinds.index(True)], self.words[kinds.index(False)]
            raise ValueError(f"{one} is an experiment, but {other} is not: give experiments, or runs")
        unused = {"--tag": self.tag, "--by": self.by, "--finished": self.finished}
        if any(kinds) and (names := [flag for flag, given in unused.items() if given]):
            raise ValueError(f"{' and '.join(names)} cannot be given for experiments, only for runs")
        if kinds and not any(kinds) and self.scale != "laptop":
            raise ValueError(f"--scale {self.scale} cannot be given for runs: only experiments have scales")


@dataclass(frozen=True)
class Page:
    """A page that can be written again."""

    write: Callable[[], Written]
    runs: Callable[[], Sequence[Path]]
    """of the page, or to be in it when they are finished"""

    def state(self) -> list[tuple[str, int]]:
        """Names and sizes of files, and who is being written; it changes when a run does."""
        files = [
            file
            for run in self.runs()
            for file in ([run] if run.is_file() else run.glob("*"))
            if file.name in ("scalars.csv", "status.json") or "tfevents" in file.name
        ]
        held = [(str(run), int(is_held(run / LOCK))) for run in self.runs()]  # a killed run changes nothing else
        return [*((str(file), file.stat().st_size) for file in sorted(files)), *held]


def pages(args: Args) -> list[Page]:
    """One of all runs, or one for each experiment.

    Raises:
        RunError: no experiment is named, or there is none of that name.
    """
    if not args.words:
        raise RunError("give runs, folders of runs, patterns or experiments (python -m runs list)")
    if not is_experiment(args.words[0]):
        folder = args.out or args.logs / "board-arms"
        write = partial(write_runs, args.words, folder, tag=args.tag, by=args.by, finished=args.finished)
        return [Page(write, partial(runs_in, args.words))]

    def page(experiment: Experiment) -> Page:
        return Page(
            partial(write_experiment, experiment, args.scale, args.logs, args.out or args.logs),
            lambda: [job.directory for job in plan(experiment, args.scale, args.logs)],
        )

    return [page(experiment) for experiment in chosen(args.words, args.scale)]


def main(args: Args) -> None:
    """Write the pages, print how to open them, and with --watch write them again when runs change.

    Raises:
        RunError: as `pages` and their writing; with `all`, if no experiment has a finished run.
    """
    under_way: dict[int, int] = {}  # runs, by page
    among = pages(args)
    states = [page.state() for page in among]
    shown: set[int] = set()
    for k, page in enumerate(among):
        try:
            made = page.write()
        except NoRuns:
            if args.words != ("all",) and args.watch is None:
                raise
            under_way[k] = len(page.runs())
            continue
        shown.add(k)
        under_way[k] = made.under_way
        tell(made)
    if not shown and args.watch is None:
        raise RunError(f"no experiment has a finished run at {args.scale} in {args.logs}")
    if shown:
        print("then open Custom Scalars", flush=True)
    if args.watch is not None:
        try:
            watch(among, states, under_way, shown, (*args.watch, _SECONDS)[0])
        except KeyboardInterrupt:
            print("\nno longer watched")


def watch(
    among: Sequence[Page],
    states: list[list[tuple[str, int]]],
    under_way: dict[int, int],
    shown: set[int],
    seconds: float,
) -> None:
    """Write each page again when its runs have changed, until none is under way. An error is printed: a run that is
    just being made may not be complete, and is the next time.
    """
    while running := sum(under_way.values()):
        print(f"{time.strftime('%H:%M:%S')} runs under way: {running}. Ctrl-C ends the watch", flush=True)
        time.sleep(seconds)
        for k, page in enumerate(among):
            try:
                if (state := page.state()) == states[k]:
                    continue
                made = page.write()
            except (RunError, OSError) as error:
                if not isinstance(error, NoRuns):
                    print(f"not written: {error}", flush=True)
                continue
            states[k], under_way[k] = state, made.under_way
            if k in shown:
                print(*made.notes, sep="\n", end="\n" if made.notes else "", flush=True)
            else:
                shown.add(k)
                tell(made)
    print("no run is under way")


def tell(made: Written) -> None:
    """Say what a page shows and how to open it."""
    print(*made.notes, sep="\n", end="\n" if made.notes else "")
    for folder in made.folders:
        print(tensorboard_command(folder), flush=True)
