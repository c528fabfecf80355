"""The page of arms of any runs, finished or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from runs.analysis.arms import Arms, arms_of
from runs.analysis.comparison import MAIN_TAGS, choose_tag
from runs.analysis.curves import Recorded, read_run
from runs.analysis.found_runs import found_runs
from runs.figures.arms_page import MARK, Points, Written, averaged, write_page
from runs.figures.task_changes import marks, unmarked
from runs.recording import RunError

_MOST = 8
"""settings that are listed by name"""


def runs_in(words: Sequence[str]) -> list[Path]:
    """The run directories that words mean.

    Raises:
        RunError: a word means none.
    """
    return found_runs(words, MARK)


def write_runs(words: Sequence[str], folder: Path, *, tag: str, by: Sequence[str], finished: bool) -> Written:
    """Write the page of the runs that words mean.

    Raises:
        RunError: there are no runs, they are damaged or without a configuration, none is finished (where this is asked
            for), they have no score in common or no `tag`, lack a setting of `by`, or are given twice; the folder holds
            something else, or it cannot be written.
    """
    every = [read_run(directory) for directory in runs_in(words)]
    wanted = (tag,) if tag else MAIN_TAGS
    early = [run for run in every if run.unfinished and not any(one in run.curves for one in wanted)]
    runs = [run for run in every if run not in early and not (finished and run.unfinished)]
    if not runs and finished:
        raise RunError(f"none of the {len(every)} runs is finished: leave --finished out, or wait")
    if not runs:
        raise RunError(f"none of the {len(every)} runs has recorded {' or '.join(wanted)} yet")
    curve, arms = choose_tag(runs, tag), arms_of(runs, by)
    page: dict[str, dict[str, Mapping[str, Points]]] = {}
    for arm, by_task in arms.runs.items():
        for task, seeds in by_task.items():
            page.setdefault(task, {})[counted(arm, seeds)] = averaged([run.curves for run in seeds], curve)
    changes = {
        task: marks(
            {arm: [run.curves for run in by_task[task]] for arm, by_task in arms.runs.items() if task in by_task}
        )
        for task in page
    }
    write_page(folder, page, curve, changes)
    under_way = sum(bool(run.unfinished) and not run.stopped for run in every)
    return Written(
        [folder / task for task in sorted(page)], under_way, [*notes(every, early, arms, finished), *unmarked(changes)]
    )


def reached(run: Recorded) -> int:
    """The last step that a run has recorded; the end of an unfinished run is that of its checkpoint."""
    return max(int(steps.max()) for steps, _ in run.curves.values())


def counted(arm: str, seeds: Sequence[Recorded]) -> str:
    """The arm's name on the page: "nap, n = 3, 1 not finished"."""
    unfinished = sum(bool(run.unfinished) for run in seeds)
    return f"{arm}, n = {len(seeds)}" + (f", {unfinished} not finished" if unfinished else "")


def notes(every: Sequence[Recorded], early: Sequence[Recorded], arms: Arms, finished: bool) -> list[str]:
    """What users must know of the page, a line each."""
    lines = [f"{len(arms.runs)} arms: {'; '.join(arms.runs)}"]
    if arms.differ:
        some = ", ".join(arms.differ) if len(arms.differ) <= _MOST else f"{len(arms.differ)} settings"
        lines[0] += f" (they differ in {some})"
    unfinished = [run for run in every if run.unfinished and run not in early and run not in arms.left_out]
    if finished and unfinished:
        lines.append(f"left out: {len(unfinished)} of {len(every)} runs, which are not finished")
    elif unfinished:
        ends = [
            f"{arm}{f' ({task})' if task else ''} at {min(map(reached, seeds)):,}"
            for arm, by_task in arms.runs.items()
            for task, seeds in by_task.items()
            if any(run.unfinished for run in seeds)
        ]
        lines.append(
            f"not finished: {len(unfinished)} of {len(every)} runs. Lines end at the last step that all runs of the "
            f"arm have reached: {', '.join(ends)}"
        )
    if early:
        lines.append(f"left out, no score so far: {_named(early)}")
    if arms.left_out:
        lines.append(f"left out, not finished, but a run with the same settings and seed is: {_named(arms.left_out)}")
    return lines


def _named(runs: Sequence[Recorded]) -> str:
    return ", ".join(str(run.directory) for run in runs)
