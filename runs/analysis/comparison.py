"""Compare arms over seeds and tasks: tables with intervals, and a picture, from our runs or TensorBoard event files.

    python -m runs compare runs/logs/nap__* runs/logs/baseline__* --against baseline --out comparison
    python -m runs compare runs/logs/nap__* cleanrl/runs/*__dqn__* --out comparison

Runs are grouped by exp_name (--by) into arms and by env_id or dataset (--task) into tasks. Runs that differ in what a
comparison must keep equal are refused (runs/analysis/run_groups.py says what and why). Each run gives one score: the
mean of --tag over the last tenth of its steps (--last). Runs of one task are compared up to the end of the shortest.
Columns:

    n       runs, one per seed
    mean    with Student's 95 % interval (half its width)
    IQM     mean of the middle half of the scores, with a stratified bootstrap interval at 95 %
    P       probability that a run scores above one of the arm that --against names (ties count half), with such an
            interval; 0.5 means no difference

With several tasks a second table aggregates: P over all tasks and, if --reference gives the scores that count as 0 and
1 on each task, mean, median, IQM and optimality gap (how far scores fall short of 1) of the normalised scores. Raw
scores of different tasks are not averaged. A single run has no interval, shown as a dash. Bootstrap intervals of three
runs of one task are too narrow (runs/analysis/statistics.py says by how much); Student's are not.

--out PREFIX writes PREFIX.md, PREFIX.csv, PREFIX.png and PREFIX.svg. The picture has a panel per task with the mean,
its Student interval and faint lines for the seeds, and the performance profile of normalised scores. It needs the
`plots` extra. Estimates follow Agarwal et al. 2021 (arXiv:2108.13264).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from runs.analysis import statistics
from runs.analysis.curves import Recorded, common_points, read_run
from runs.analysis.run_groups import Groups, group
from runs.analysis.tables import markdown, shown, with_half_width
from runs.figures import style
from runs.positionals import Directories
from runs.recording import RunError, one_line_errors

MAIN_TAGS = ("charts/episodic_return", "eval/episodic_return", "test/accuracy", "rollout/ep_rew_mean")
"""What is compared by default: the first tag that every run has. Training returns come first, as in the literature, and
because they average hundreds of episodes. The last one is Stable-Baselines3's."""

ALL = "all tasks"
_PROFILE_REPLICATES = 2000
_FEW = 10
"""with fewer runs than this, readers are warned that a bootstrap interval says little"""

ByTask: TypeAlias = dict[str, NDArray[np.float64]]
"""scores of an arm's runs, by task"""


@dataclass(frozen=True)
class Args:
    """Compare arms over seeds and tasks."""

    directories: Directories
    """run directories, or directories of TensorBoard event files"""
    tag: str = ""
    """scalar to compare (larger is better); default: the script's main score, which the output names"""
    last: float = 0.1
    """share of the steps, at the end of the run, over which it is averaged; 0 takes the last value"""
    until: int | None = None
    """ignore everything after this step"""
    against: str = ""
    """arm that every other arm is compared with (column P)"""
    by: tuple[str, ...] = ("exp_name",)
    """settings that tell arms apart; dotted in groups: nap.enabled"""
    task: str = ""
    """setting that tells tasks apart; by default env_id, or dataset"""
    differ_in: tuple[str, ...] = ()
    """settings or groups in which arms may differ; all others must be equal"""
    allow_different: tuple[str, ...] = ()
    """settings or groups that may differ although a comparison should keep them equal"""
    unfinished: bool = False
    """include runs that are not finished"""
    reference: Path | None = None
    """CSV with columns task,low,high: the scores that count as 0 and 1; lines that begin with # are comments"""
    replicates: int = 10_000
    """bootstrap resamples"""
    out: Path | None = None
    """prefix of the files to write (.md, .csv, .png, .svg); default: none"""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0 <= self.last <= 1:
            raise ValueError(f"--last must be in [0, 1] (a share of the steps), got {self.last}")
        if self.replicates < 100:
            raise ValueError(f"--replicates must be at least 100 for a 95 % interval, got {self.replicates}")
        if not self.by:
            raise ValueError("--by is empty: name the setting that tells arms apart")
        if self.until is not None and self.until < 1:
            raise ValueError(f"--until must be above 0, got {self.until}")


@dataclass(frozen=True)
class Estimate:
    """A number and the two ends of its interval; nan if there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        """0.61 [0.5, 0.7], or the number alone; a dash if it is unknown."""
        if math.isnan(self.low):
            return shown(self.value)
        return f"{shown(self.value)} [{shown(self.low)}, {shown(self.high)}]"


@dataclass(frozen=True)
class Row:
    """Results of an arm on one task, or on all."""

    arm: str
    task: str
    n: int
    mean: Estimate
    iqm: Estimate
    improvement: Estimate
    median: Estimate
    optimality_gap: Estimate


UNKNOWN = Estimate(math.nan)


def choose_tag(runs: Sequence[Recorded], wanted: str) -> str:
    """The wanted tag, or the first of MAIN_TAGS that every run has.

    Raises:
        RunError: a run lacks it, or there is none.
    """
    if not wanted:
        wanted = next((tag for tag in MAIN_TAGS if all(tag in run.curves for run in runs)), "")
        if not wanted:
            common = sorted(set.intersection(*(set(run.curves) for run in runs)))
            raise RunError(
                f"the runs have none of {', '.join(MAIN_TAGS)} in common: choose one with --tag; all runs have "
                f"{', '.join(common) or 'none'}"
            )
    for run in runs:
        if wanted not in run.curves:
            raise RunError(f"{run.directory} has no {wanted}; it has {', '.join(sorted(run.curves)) or 'no scalars'}")
    return wanted


def score(run: Recorded, tag: str, end: int, last: float) -> float:
    """Mean of the values in the last share of the steps up to `end`, or the last value.

    Raises:
        RunError: there is no value, one is not finite, or the steps go back.
    """
    steps, values = run.curves[tag]
    back = np.flatnonzero(np.diff(steps) < 0)
    if len(back):
        before, after = steps[back[0]], steps[back[0] + 1]
        raise RunError(
            f"{run.directory}: the steps of {tag} go back from {before:,} to {after:,}: does it hold two runs?"
        )
    values = values[steps <= end][-1:] if last == 0 else values[(steps > end * (1 - last)) & (steps <= end)]
    if len(values) == 0:
        raise RunError(
            f"{run.directory} has no {tag} in the last {100 * last:g} % of {end:,} steps: give a larger --last"
        )
    if not np.isfinite(values).all():
        raise RunError(f"{run.directory} has a {tag} that is not finite in the last {100 * last:g} % of {end:,} steps")
    return float(values.mean())


def ends(groups: Groups, until: int | None) -> dict[str, int]:
    """By task, the step until which its runs are compared: the end of the shortest."""
    found = {}
    for task in groups.tasks:
        shortest = min(run.end for tasks in groups.arms.values() for run in tasks.get(task, ()))
        found[task] = min(shortest, until or shortest)
    return found


def read_reference(path: Path, tasks: Sequence[str]) -> dict[str, tuple[float, float]]:
    """The scores that count as 0 and as 1, by task.

    Raises:
        RunError: the file cannot be read, has other columns, lacks a task, or high is not above low.
    """
    with one_line_errors(f"cannot read {path}", also=(OSError, KeyError, TypeError)):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        found = {row["task"]: (float(row["low"]), float(row["high"])) for row in csv.DictReader(lines)}
    for task in tasks:
        if task not in found:
            raise RunError(f"{path} has no scores of {task}; it has {', '.join(found) or 'none'}")
        low, high = found[task]
        if not -math.inf < low < high < math.inf:
            raise RunError(f"{path} gives {task} low {low} and high {high}: high must be above low")
    return found


def normalised(scores: Mapping[str, ByTask], reference: Mapping[str, tuple[float, float]]) -> dict[str, ByTask]:
    """(score - low) / (high - low), by arm and task."""
    return {
        arm: {task: (one - reference[task][0]) / (reference[task][1] - reference[task][0]) for task, one in by.items()}
        for arm, by in scores.items()
    }


def estimate(statistic: statistics.Statistic, *samples: ByTask, replicates: int) -> Estimate:
    """A statistic with its bootstrap interval."""
    low, high = statistics.bootstrap(statistic, *samples, replicates=replicates)
    return Estimate(float(statistic(*samples)), float(low), float(high))


def task_rows(scores: Mapping[str, ByTask], against: str, replicates: int) -> list[Row]:
    """One row per task and arm."""
    rows = []
    for task in sorted({task for by_task in scores.values() for task in by_task}):
        for arm, by_task in scores.items():
            if task not in by_task:
                continue
            ours = {task: by_task[task]}
            mean, half = statistics.student_interval(by_task[task].tolist())
            improvement = UNKNOWN
            if against and arm != against and task in scores[against]:
                theirs = {task: scores[against][task]}
                improvement = estimate(statistics.probability_of_improvement, ours, theirs, replicates=replicates)
            iqm = estimate(statistics.iqm, ours, replicates=replicates)
            around = Estimate(mean, mean - half, mean + half)
            rows.append(Row(arm, task, len(by_task[task]), around, iqm, improvement, UNKNOWN, UNKNOWN))
    return rows


def aggregate_rows(scores: Mapping[str, ByTask], against: str, replicates: int, comparable: bool) -> list[Row]:
    """One row per arm over all tasks; of scores that are not comparable between tasks, P alone."""
    rows = []
    for arm, by_task in scores.items():
        found = [UNKNOWN] * 4
        if comparable:
            wanted = (statistics.mean, statistics.iqm, statistics.median, statistics.optimality_gap)
            found = [estimate(statistic, by_task, replicates=replicates) for statistic in wanted]
        improvement = UNKNOWN
        if against and arm != against:
            pair = by_task, scores[against]
            improvement = estimate(statistics.probability_of_improvement, *pair, replicates=replicates)
        mean, iqm, median, gap = found
        rows.append(Row(arm, ALL, sum(map(len, by_task.values())), mean, iqm, improvement, median, gap))
    return rows


def no_aggregate(scores: Mapping[str, ByTask], against: str, comparable: bool) -> str:
    """Why there is no row over all tasks; empty if there is one."""
    tasks = sorted({task for by_task in scores.values() for task in by_task})
    for arm, by_task in scores.items():
        if missing := [task for task in tasks if task not in by_task]:
            return f"Not aggregated over tasks: {arm} has no run of {', '.join(missing)}."
    if not comparable and not against:
        return "Not aggregated over tasks: their scores have different scales (--reference), and P needs --against."
    return ""


def tables(rows: Sequence[Row], whole: Sequence[Row], against: str, comparable: bool) -> str:
    """Both tables in markdown."""
    heads = ["arm", "task", "n", "mean", "IQM"]
    means = [with_half_width(r.mean.value, r.mean.high - r.mean.value) for r in rows]
    lines: list[list[object]] = [[r.arm, r.task, r.n, mean, r.iqm] for r, mean in zip(rows, means, strict=True)]
    if against:
        heads.append(f"P(above {against})")
        lines = [[*line, r.improvement] for line, r in zip(lines, rows, strict=True)]
    text = markdown(heads, lines)
    if whole:
        heads = ["arm, all tasks", "n"]
        lines = [[r.arm, r.n] for r in whole]
        if comparable:
            heads += ["mean", "median", "IQM", "optimality gap"]
            lines = [[*line, r.mean, r.median, r.iqm, r.optimality_gap] for line, r in zip(lines, whole, strict=True)]
        if against:
            heads.append(f"P(above {against})")
            lines = [[*line, r.improvement] for line, r in zip(lines, whole, strict=True)]
        text += "\n" + markdown(heads, lines)
    return text


def as_csv(rows: Sequence[Row], tag: str, against: str, comparable: bool) -> str:
    """All rows in full precision; unknown values are empty."""
    names = ("mean", "iqm", "improvement", "median", "optimality_gap")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    writer.writerow(["arm", "task", "n", "tag", "scores", "against", *ends])
    for row in rows:
        numbers = [n for name in names for e in [getattr(row, name)] for n in (e.value, e.low, e.high)]
        kind = "normalised" if row.task == ALL and comparable else "raw"
        cells = ["" if math.isnan(number) else repr(number) for number in numbers]
        writer.writerow([row.arm, row.task, row.n, tag, kind, against, *cells])
    return file.getvalue()


def draw(
    groups: Groups, tag: str, until: Mapping[str, int], profiled: Mapping[str, ByTask], paths: Sequence[Path]
) -> None:
    """A panel of curves per task and, for normalised scores, one with the performance profile."""
    looks, tasks = style.looks(groups.arms), groups.tasks
    figure, panels = style.begin(len(tasks) + bool(profiled))
    for axes, task in zip(panels, tasks, strict=False):
        for arm, by_task in groups.arms.items():
            if task in by_task:
                x, runs = common_points([run.curves[tag] for run in by_task[task]], until[task])
                style.draw_arm(axes, x, runs, looks[arm], legend(arm, by_task), statistics.student_band(runs))
        axes.set_title(task, fontsize=9)
        axes.set_ylabel(tag, fontsize=8)
        style.steps_axis(axes)
    if profiled:
        draw_profile(panels[-1], profiled, looks)
    style.legend_below(figure, panels)
    style.save(figure, paths)


def draw_profile(axes: style.Axes, scores: Mapping[str, ByTask], looks: Mapping[str, style.Look]) -> None:
    """Share of runs above each normalised score, with its bootstrap interval."""
    pooled = np.concatenate([one for by_task in scores.values() for one in by_task.values()])
    taus = np.linspace(min(0.0, pooled.min()), max(1.0, pooled.max()), 101)
    for arm, by_task in scores.items():
        profile = statistics.performance_profile(by_task, taus)
        band = statistics.bootstrap(
            lambda s: statistics.performance_profile(s, taus), by_task, replicates=_PROFILE_REPLICATES
        )
        style.draw_arm(axes, taus, profile[None], looks[arm], legend(arm, by_task), band)
    axes.set_title(f"performance profile, {len(next(iter(scores.values())))} tasks", fontsize=9)
    axes.set_xlabel("normalised score", fontsize=8)
    axes.set_ylabel("share of runs above it", fontsize=8)
    axes.set_ylim(0, 1.02)


def legend(arm: str, by_task: Mapping[str, Sequence[object] | NDArray[np.float64]]) -> str:
    """The arm and its n; smallest and largest n if tasks differ."""
    counts = sorted({len(runs) for runs in by_task.values()})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    return f"{arm}, {n}" + (" per task" if len(by_task) > 1 else "")


def heading(tag: str, args: Args, until: Mapping[str, int], groups: Groups) -> str:
    """What was measured, and in what the arms differ."""
    steps = sorted(set(until.values()))
    span = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,} (the shortest run of each task)"
    what = (
        f"last value within {span} steps"
        if args.last == 0
        else f"mean over the last {100 * args.last:g} % of {span} steps"
    )
    lines = [
        f"{tag}, {what}; n counts runs; intervals at 95 %, of the IQM and P by {args.replicates:,} bootstrap resamples."
    ]
    if len(groups.arms) > 1:
        lines.append(f"The arms differ in: {', '.join(groups.differ) or 'nothing that all of them have'}.")
        if groups.partial:
            some = ", ".join(groups.partial) if len(groups.partial) <= 8 else f"{len(groups.partial)} settings"
            lines.append(f"Only some of them have: {some}.")
    return "\n".join(lines) + "\n"


def caveat(groups: Groups, against: str) -> str:
    """A warning about the intervals of few runs."""
    counts = [len(found) for by_task in groups.arms.values() for found in by_task.values()]
    fewest = min((count for count in counts if count > 1), default=_FEW)  # a single run has no interval
    if fewest >= _FEW:
        return ""
    certain = ", and a P of 0 or 1 is not certain" if against else ""
    narrow = "bootstrap intervals are too narrow (with three runs they cover about 75 %)"
    return f"\nWith {fewest} runs per task {narrow}{certain}.\n"


def main(args: Args) -> None:
    """Read the runs, print the tables, write the files."""
    runs = [read_run(directory) for directory in args.directories]
    for run in runs:
        if run.unfinished and not args.unfinished:
            raise RunError(f"{run.directory} {run.unfinished}: finish it, leave it out, or say --unfinished")
    groups = group(runs, args.by, args.task, args.differ_in, args.allow_different)
    if args.against and args.against not in groups.arms:
        raise RunError(f"--against {args.against} is not an arm; the arms are {'; '.join(groups.arms)}")
    tag = choose_tag(runs, args.tag)
    until = ends(groups, args.until)
    scores: dict[str, ByTask] = {
        arm: {task: np.array([score(run, tag, until[task], args.last) for run in found]) for task, found in by.items()}
        for arm, by in groups.arms.items()
    }
    rows = task_rows(scores, args.against, args.replicates)
    text = heading(tag, args, until, groups) + "\n"
    whole: list[Row] = []
    profiled: dict[str, ByTask] = {}
    comparable = args.reference is not None
    if args.reference:
        profiled = normalised(scores, read_reference(args.reference, groups.tasks))
    if len(groups.tasks) > 1:
        why_not = no_aggregate(scores, args.against, comparable)
        if not why_not:
            whole = aggregate_rows(profiled or scores, args.against, args.replicates, comparable)
        text += tables(rows, whole, args.against, comparable) + (f"\n{why_not}\n" if why_not else "")
    else:
        text += tables(rows, [], args.against, comparable)
    text += caveat(groups, args.against)
    print(text, end="")
    if args.out:
        write(args.out, text, as_csv([*rows, *whole], tag, args.against, comparable))
        pictures = [with_ending(args.out, ".png"), with_ending(args.out, ".svg")]
        draw(groups, tag, until, profiled if whole else {}, pictures)
        print(f"\nwrote {', '.join(str(with_ending(args.out, ending)) for ending in ('.md', '.csv', '.png', '.svg'))}")


def with_ending(prefix: Path, ending: str) -> Path:
    """The prefix with this ending, in place of one of our endings that it may already have."""
    name = prefix.stem if prefix.suffix in (".md", ".csv", ".png", ".svg") else prefix.name
    return prefix.with_name(name + ending)


def write(prefix: Path, text: str, cells: str) -> None:
    """The tables as files."""
    with one_line_errors(f"cannot write {prefix}", also=(OSError,)):
        with_ending(prefix, ".md").write_text(text, encoding="utf-8")
        with_ending(prefix, ".csv").write_text(cells, encoding="utf-8")
