"""What each change of the task cost every arm, and how it recovered: tables, and a picture aligned at the changes.

    python -m runs changes runs/logs/chain-* --fresh chain-fresh --against chain-plain --out changes.png

Takes runs of the reinforcement-learning scripts with --shift, grouped by their exp_name. A visit is the time between
two changes. The columns are about training returns (with exploration, without episodes that a change cut short):

    start   mean over the episodes that ended in the first tenth of the visit
    end     mean over those that ended in its last tenth
    drop    end of the previous visit minus start, if both visits are to one game
    steps   steps until the mean of the last 20 episodes has come 90 % of the way from the fresh agent's start to its
            end in the same visit; (k/n) counts the seeds that got there, and the number is their median
    gap     the fresh agent's end of the same visit minus end
    again   end minus the end of the first visit to the same task

A second table has one line per arm:

    share   mean over all visits but the first of end divided by the fresh agent's end of the same visit and seed
    least   the smallest of these ends of the fresh agent; a share of a number near 0 means nothing
    minus   share minus that of the arm that --against names, paired by seed
    differs whether that difference's interval excludes 0: "more", "less", or "not shown"

The columns gap, steps, share and minus need the arm that --fresh names, with the same seeds. The others are means over
seeds with Student's 95 % interval; a dash means that a seed has no such episode. When reading: `steps` cannot be below
20 episodes, however good the arm is. Environments that restart together at a change finish their short episodes first,
so in a short visit `start` is the mean of short episodes. All arms must visit the same tasks at the same steps; several
seeds with --shift.rate do not. The picture needs the `plots` extra.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from runs.analysis.curves import Recorded, Scalars
from runs.analysis.run_groups import RunGroup, read_groups
from runs.analysis.statistics import student_interval
from runs.analysis.tables import markdown, mean_over_seeds, shown
from runs.figures import style
from runs.positionals import Directories
from runs.recording import RunError

TENTH, RECENT = 0.1, 20


@dataclass(frozen=True)
class Args:
    """Tabulate and draw what changes of the task did."""

    directories: Directories
    """run directories"""
    fresh: str = ""
    """exp_name of the arm in which a fresh agent learns each task; without it, columns that need it stay empty"""
    against: str = ""
    """exp_name of the arm whose share is subtracted from those of the others (column minus)"""
    out: Path | None = None
    """picture to write; default: none"""


@dataclass(frozen=True)
class Visit:
    """The time between two changes in one run."""

    task: int
    begin: int
    end: int
    episodes: Sequence[tuple[int, float]]
    """(step at its end, return) of each training episode that ended in it"""

    def mean_between(self, first: float, last: float) -> float:
        """Mean return of the episodes that ended between two fractions of the visit; nan if none did."""
        length = self.end - self.begin
        returns = [r for step, r in self.episodes if first * length < step - self.begin <= last * length]
        return float(np.mean(returns)) if returns else math.nan

    @property
    def start_return(self) -> float:
        """Mean return of the first tenth."""
        return self.mean_between(0.0, TENTH)

    @property
    def end_return(self) -> float:
        """Mean return of the last tenth."""
        return self.mean_between(1.0 - TENTH, 1.0)

    def steps_until(self, wanted: float) -> float:
        """Steps until the mean of the last 20 episodes of the visit is at least `wanted`.

        inf if that never happens; nan if there are fewer episodes, or `wanted` is nan.
        """
        returns = [r for _, r in self.episodes]
        if math.isnan(wanted) or len(returns) < RECENT:
            return math.nan
        for i in range(RECENT, len(returns) + 1):
            if np.mean(returns[i - RECENT : i]) >= wanted:
                return float(self.episodes[i - 1][0] - self.begin)
        return math.inf


def arrival(steps: Sequence[float]) -> str:
    """Median over the seeds that arrived, and how many of all did; a dash if one of them is unknown."""
    if any(math.isnan(one) for one in steps):
        return "–"
    arrived = [one for one in steps if math.isfinite(one)]
    return f"{np.median(arrived):,.0f} ({len(arrived)}/{len(steps)})" if arrived else f"never (0/{len(steps)})"


def visits(run: Recorded) -> list[Visit]:
    """The visits of a run, in order.

    Raises:
        RunError: the run records no tasks or no episodes.
    """
    return split(run.scalars, run.end, str(run.directory))


def split(run: Scalars, steps: int, name: str) -> list[Visit]:
    """The visits of a run of `steps` steps, in order; `name` names it in errors.

    Raises:
        RunError: the run records no tasks or no episodes.
    """
    if "shift/task" not in run:
        raise RunError(f"{name} records no shift/task: run it with --shift")
    if "charts/episodic_return" not in run:
        raise RunError(f"{name} records no charts/episodic_return: no episode was completed; run more steps")
    tasks = [(int(step), int(task)) for step, task in run["shift/task"]]
    ends = [step for step, _ in tasks[1:]] + [steps]
    return [
        Visit(task, begin, end, [(int(s), r) for s, r in run["charts/episodic_return"] if begin < s <= end])
        for (begin, task), end in zip(tasks, ends, strict=True)
        if end > begin
    ]


def read(directories: Sequence[Path]) -> dict[str, tuple[RunGroup, dict[int, list[Visit]]]]:
    """Arms by name, with the visits of each seed.

    Raises:
        RunError: as `read_groups` and `visits`; or two runs have other games or changes, or visit other tasks or change
            at other steps.
    """
    arms = {}
    task: tuple[str, object] | None = None
    timetable: tuple[Path, list[tuple[int, int, int]]] | None = None
    for group in read_groups(directories):
        this_task = {key: value for key, value in group.config.items() if key == "env_id" or key.startswith("shift.")}
        task = task or (group.name, this_task)
        if this_task != task[1]:
            raise RunError(f"{group.name} and {task[0]} have other games or other changes: they cannot be compared")
        by_seed = {}
        for run in group.runs:
            by_seed[run.config["seed"]] = visits(run)
            this_timetable = [(v.task, v.begin, v.end) for v in by_seed[run.config["seed"]]]
            timetable = timetable or (run.directory, this_timetable)
            if this_timetable != timetable[1]:
                raise RunError(
                    f"{run.directory} and {timetable[0]} visit other tasks, or change at other steps: they cannot be "
                    "compared"
                )
        arms[group.name] = group, by_seed
    return arms


def rows(
    name: str, by_seed: Mapping[int, Sequence[Visit]], fresh: Mapping[int, Sequence[Visit]] | None, one_game: bool
) -> list[list[str]]:
    """One row per visit of an arm."""
    seeds, table = sorted(by_seed), []
    count = len(by_seed[seeds[0]])
    for k in range(count):
        visit = {seed: by_seed[seed][k] for seed in seeds}
        task, begin = visit[seeds[0]].task, visit[seeds[0]].begin
        earlier = [j for j in range(k) if by_seed[seeds[0]][j].task == task]
        columns = [name, str(k + 1), str(task), f"{begin:,}", str(len(seeds))]
        columns.append(mean_over_seeds([v.start_return for v in visit.values()]))
        columns.append(mean_over_seeds([v.end_return for v in visit.values()]))
        drops = [by_seed[seed][k - 1].end_return - v.start_return for seed, v in visit.items()] if k else []
        columns.append(mean_over_seeds(drops) if drops and one_game else "–")
        if fresh is None:
            columns += ["–", "–"]
        else:
            wanted = {s: 0.1 * fresh[s][k].start_return + 0.9 * fresh[s][k].end_return for s in seeds}
            columns.append(arrival([v.steps_until(wanted[seed]) for seed, v in visit.items()]))
            columns.append(mean_over_seeds([fresh[seed][k].end_return - v.end_return for seed, v in visit.items()]))
        again = [v.end_return - by_seed[seed][earlier[0]].end_return for seed, v in visit.items()] if earlier else []
        columns.append(mean_over_seeds(again) if again else "–")
        table.append(columns)
    return table


def share(visits: Sequence[Visit], fresh: Sequence[Visit]) -> float:
    """Mean over all visits but the first of the end return divided by the fresh agent's.

    nan if there is no such visit, if no episode ended in the last tenth of one, or if the fresh agent's return in one
    is not above 0.
    """
    pairs = [(v.end_return, f.end_return) for v, f in zip(visits[1:], fresh[1:], strict=True)]
    if not pairs or not all(theirs > 0 for _, theirs in pairs):
        return math.nan
    return float(np.mean([ours / theirs for ours, theirs in pairs]))


def share_rows(
    arms: Mapping[str, Mapping[int, Sequence[Visit]]], fresh: Mapping[int, Sequence[Visit]], against: str
) -> list[list[str]]:
    """One row per arm: its share, and its share minus that of the arm `against` (dashes without one)."""
    by_arm = {
        name: {seed: share(by_seed[seed], fresh[seed]) for seed in sorted(by_seed)} for name, by_seed in arms.items()
    }
    table = []
    for name, shares in by_arm.items():
        least = min((v.end_return for seed in shares for v in fresh[seed][1:]), default=math.nan)
        minus = [shares[seed] - by_arm[against][seed] for seed in shares] if against else [math.nan]
        mean, half = student_interval(minus)
        differs = "–" if math.isnan(half) or name == against else "not shown"
        if abs(mean) > half and name != against:
            differs = "more" if mean > 0 else "less"
        of_fresh = mean_over_seeds(list(shares.values())), shown(least)
        table.append([name, str(len(shares)), *of_fresh, mean_over_seeds(minus), differs])
    return table


def draw(arms: Mapping[str, tuple[RunGroup, Mapping[int, Sequence[Visit]]]], out: Path) -> None:
    """One panel per visit: mean return by twentieths of the visit, seeds faint, their mean strong."""
    plan = next(iter(next(iter(arms.values()))[1].values()))
    figure, panels = style.begin(len(plan))
    looks = style.looks(arms)
    parts = np.linspace(0.0, 1.0, 21)
    for k, axes in enumerate(panels):
        middle = (plan[k].end - plan[k].begin) * (parts[1:] + parts[:-1]) / 2
        for name, (_, by_seed) in arms.items():
            curves = np.array([[v[k].mean_between(a, b) for a, b in pairwise(parts)] for v in by_seed.values()])
            style.draw_arm(axes, middle, curves, looks[name], f"{name}, n = {len(curves)}")
        axes.set_title(f"visit {k + 1}, task {plan[k].task}, from step {plan[k].begin:,}", fontsize=9)
        style.steps_axis(axes)
        axes.set_xlim(0, plan[k].end - plan[k].begin)
        axes.set_xlabel("steps since the change", fontsize=8)
        axes.set_ylabel("training return", fontsize=8)
    style.legend_below(figure, panels)
    style.save(figure, [out])


LEGEND = (
    "start, end: mean return of the episodes that ended in the first and in the last tenth of the visit; drop: end of "
    "the\nprevious visit - start; again: end - end of the first visit to this task. A dash: a seed has no such episode"
)
FRESH_LEGEND = (
    "steps: until 90 % of the fresh agent's gain is reached (k/n: by k of n seeds); gap: the fresh agent's end - end"
)


def no_numbers(table: Sequence[Sequence[str]]) -> bool:
    """Whether no row has a start or an end."""
    return all(row[5] == row[6] == "–" for row in table)


def main(args: Args) -> None:
    """Read the runs, print the tables, draw the picture."""
    arms = read(args.directories)
    if args.against and not args.fresh:
        raise RunError("--against compares shares of a fresh agent's returns: name the fresh agent's arm with --fresh")
    for flag, chosen in (("fresh", args.fresh), ("against", args.against)):
        if not chosen:
            continue
        if chosen not in arms:
            raise RunError(f"--{flag} {chosen} is not an arm; the arms are {', '.join(arms)}")
        for name, (_, by_seed) in arms.items():
            if missing := sorted(set(by_seed) - set(arms[chosen][1])):
                raise RunError(
                    f"{name} has seeds {missing}, which --{flag} {chosen} lacks: run it with these seeds, too"
                )
    fresh = arms[args.fresh][1] if args.fresh else None
    heads = ("arm", "visit", "task", "from step", "n", "start", "end", "drop", "steps", "gap", "again")
    table = [
        row
        for name, (group, by_seed) in arms.items()
        for row in rows(name, by_seed, fresh, group.config.get("shift.kind") != "games")
    ]
    print(markdown(heads, table))
    print(LEGEND if fresh is None else f"{LEGEND}\n{FRESH_LEGEND}")
    if no_numbers(table):
        print(
            "No arm has numbers: in no tenth at the start or end of a visit did an episode end in every seed. Make the "
            "visits longer than an episode, or run more environments"
        )
    print()
    if fresh is not None:
        heads = ("arm", "n", "share", "least", f"minus {args.against}".strip(), "differs")
        shares = share_rows({name: by_seed for name, (_, by_seed) in arms.items()}, fresh, args.against)
        print(markdown(heads, shares))
    if args.out:
        draw(arms, args.out)
        print(f"wrote {args.out}")
