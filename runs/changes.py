"""What a change of the world cost each arm, and how it recovered: tables, and a picture aligned at the changes.

    python -m runs.changes runs/logs/chain-* --fresh chain-fresh --against chain-plain --out changes.png

Runs of `agents/dqn_minatar.py` or `agents/ppo_minatar.py` with --shift are grouped by their exp_name. A visit is the
time between two changes. Of the training returns (exploration included, episodes that a change cut short left out):

    start   mean over the episodes that ended in the first tenth of the visit
    end     mean over those that ended in its last tenth
    drop    end of the visit before minus start, where both visits are of one game
    steps   until the mean of the last 20 episodes has come 90 % of the way from the fresh agent's start to its end of
            the same visit; (k/n) tells how many seeds got there, of whose steps this is the median
    gap     the fresh agent's end of the same visit minus end
    again   end minus the end of the first visit to the same task

A second table has one line per arm:

    share   mean over all visits but the first of end as a share of the fresh agent's end of the same visit and seed
    least   the smallest of these ends of the fresh agent: a share of next to nothing says nothing
    minus   share minus that of the arm that --against names, paired by seed
    differs whether that difference's interval leaves out 0: "more", "less", or "not shown"

gap, steps, share and minus need the arm that --fresh names, with the same seeds. The others are means over seeds with
Student's interval at 95 %; a dash stands where a seed has no such episode. When reading: 20 episodes are the least
that `steps` needs, however good the arm; and copies that restart together at a change end their short episodes first,
so that `start` is of these where a visit is short. Arms must visit the same tasks of one world at the same steps, which
runs of several seeds with --shift.rate do not. The picture needs the `plots` extra.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from runs.arms import Runs, Scalars, estimate, interval, read_arms, shown, table
from runs.recording import RunError, exit_with_one_line, one_line_errors, read_status
from runs.style import COLOURS, canvas, steps_axis

TENTH, RECENT = 0.1, 20


@dataclass(frozen=True)
class Args:
    """Tabulate and draw what changes did."""

    directories: tuple[Path, ...]
    """run directories"""
    fresh: str = ""
    """exp_name of the arm in which a fresh agent learns each task; none leaves out what is measured against it"""
    against: str = ""
    """exp_name of the arm whose share is taken from those of the others (minus)"""
    out: Path | None = None
    """picture to write; none by default"""


@dataclass(frozen=True)
class Visit:
    """The time between two changes, in one run."""

    task: int
    begin: int
    end: int
    episodes: Sequence[tuple[int, float]]
    """(step of its end, return) of the training episodes in it"""

    def mean_between(self, first: float, last: float) -> float:
        """Mean return of the episodes that ended in this part of the visit, given as shares; nan if none did."""
        length = self.end - self.begin
        found = [r for step, r in self.episodes if first * length < step - self.begin <= last * length]
        return float(np.mean(found)) if found else math.nan

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

        inf if it never is, nan if there are not so many or `wanted` is not known.
        """
        returns = [r for _, r in self.episodes]
        if math.isnan(wanted) or len(returns) < RECENT:
            return math.nan
        for i in range(RECENT, len(returns) + 1):
            if np.mean(returns[i - RECENT : i]) >= wanted:
                return float(self.episodes[i - 1][0] - self.begin)
        return math.inf


def arrival(steps: Sequence[float]) -> str:
    """Median of those who arrived, and how many of all; a dash if it is not known of one of them."""
    if any(math.isnan(one) for one in steps):
        return "–"
    arrived = [one for one in steps if math.isfinite(one)]
    return f"{np.median(arrived):,.0f} ({len(arrived)}/{len(steps)})" if arrived else f"never (0/{len(steps)})"


def visits(run: Scalars, directory: Path) -> list[Visit]:
    """The visits of a run, in order.

    Raises:
        RunError: the run records no tasks or no episodes.
    """
    return split(run, int(read_status(directory)["step"]), str(directory))


def split(run: Scalars, steps: int, name: str) -> list[Visit]:
    """The visits of a run of so many steps, in order; `name` is what an error calls it.

    Raises:
        RunError: the run records no tasks or no episodes.
    """
    if "shift/task" not in run:
        raise RunError(f"{name} records no shift/task: was its world to change?")
    if "charts/episodic_return" not in run:
        raise RunError(f"{name} records no charts/episodic_return: no episode ended by itself; give it more steps")
    tasks = [(int(step), int(task)) for step, task in run["shift/task"]]
    ends = [step for step, _ in tasks[1:]] + [steps]
    return [
        Visit(task, begin, end, [(int(s), r) for s, r in run["charts/episodic_return"] if begin < s <= end])
        for (begin, task), end in zip(tasks, ends, strict=True)
        if end > begin
    ]


def read(directories: Sequence[Path]) -> dict[str, tuple[Runs, dict[int, list[Visit]]]]:
    """Arms by name, with the visits of each seed.

    Raises:
        RunError: as `read_arms` and `visits`, or two runs have other worlds, or visit tasks at other steps.
    """
    found = {}
    world: tuple[str, object] | None = None
    plan: tuple[Path, list[tuple[int, int, int]]] | None = None
    for arm in read_arms(directories):
        here_world = arm.config.get("env_id"), arm.config.get("shift")
        if world is not None and here_world != world[1]:
            raise RunError(f"{arm.name} and {world[0]} have other games or other changes: they cannot be compared")
        world = world or (arm.name, here_world)
        by_seed = {}
        for directory, run, seed in zip(arm.directories, arm.runs, arm.seeds, strict=True):
            by_seed[seed] = visits(run, directory)
            here = [(v.task, v.begin, v.end) for v in by_seed[seed]]
            if plan is not None and here != plan[1]:
                raise RunError(
                    f"{directory} and {plan[0]} visit other tasks, or at other steps: they cannot be compared"
                )
            plan = plan or (directory, here)
        found[arm.name] = arm, by_seed
    return found


def rows(
    name: str, by_seed: Mapping[int, Sequence[Visit]], fresh: Mapping[int, Sequence[Visit]] | None, one_game: bool
) -> list[str]:
    """One line per visit of an arm."""
    seeds, lines = sorted(by_seed), []
    count = len(by_seed[seeds[0]])
    for k in range(count):
        here = {seed: by_seed[seed][k] for seed in seeds}
        task, begin = here[seeds[0]].task, here[seeds[0]].begin
        earlier = [j for j in range(k) if by_seed[seeds[0]][j].task == task]
        columns = [name, str(k + 1), str(task), f"{begin:,}", str(len(seeds))]
        columns.append(estimate([v.start_return for v in here.values()]))
        columns.append(estimate([v.end_return for v in here.values()]))
        drops = [by_seed[seed][k - 1].end_return - v.start_return for seed, v in here.items()] if k else []
        columns.append(estimate(drops) if drops and one_game else "–")
        if fresh is None:
            columns += ["–", "–"]
        else:
            wanted = {s: 0.1 * fresh[s][k].start_return + 0.9 * fresh[s][k].end_return for s in seeds}
            columns.append(arrival([v.steps_until(wanted[seed]) for seed, v in here.items()]))
            columns.append(estimate([fresh[seed][k].end_return - v.end_return for seed, v in here.items()]))
        again = [v.end_return - by_seed[seed][earlier[0]].end_return for seed, v in here.items()] if earlier else []
        columns.append(estimate(again) if again else "–")
        lines.append(f"| {' | '.join(columns)} |")
    return lines


def share(visits: Sequence[Visit], fresh: Sequence[Visit]) -> float:
    """Mean over all visits but the first of the end return as a share of the fresh agent's.

    nan if there is no such visit, or one in which no episode ended at its end or the fresh agent's return is not above
    0.
    """
    pairs = [(v.end_return, f.end_return) for v, f in zip(visits[1:], fresh[1:], strict=True)]
    if not pairs or not all(theirs > 0 for _, theirs in pairs):
        return math.nan
    return float(np.mean([ours / theirs for ours, theirs in pairs]))


def share_rows(
    arms: Mapping[str, Mapping[int, Sequence[Visit]]], fresh: Mapping[int, Sequence[Visit]], against: str
) -> list[str]:
    """One line per arm: its share, and its share minus that of the arm `against` (dashes without one)."""
    found = {
        name: {seed: share(by_seed[seed], fresh[seed]) for seed in sorted(by_seed)} for name, by_seed in arms.items()
    }
    lines = []
    for name, shares in found.items():
        least = min((v.end_return for seed in shares for v in fresh[seed][1:]), default=math.nan)
        minus = [shares[seed] - found[against][seed] for seed in shares] if against else [math.nan]
        mean, half = interval(minus)
        differs = "–" if math.isnan(half) or name == against else "not shown"
        if abs(mean) > half and name != against:
            differs = "more" if mean > 0 else "less"
        columns = [name, str(len(shares)), estimate(list(shares.values())), shown(least), estimate(minus), differs]
        lines.append(f"| {' | '.join(columns)} |")
    return lines


def draw(arms: Mapping[str, tuple[Runs, Mapping[int, Sequence[Visit]]]], out: Path) -> None:
    """One panel per visit, arms in it: mean return by twentieths of the visit, seeds thin, their mean thick."""
    plan = next(iter(next(iter(arms.values()))[1].values()))
    columns = min(3, len(plan))
    lines = -(-len(plan) // columns)
    figure = canvas(4.4 * columns, 3.1 * lines + 0.4)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    parts = np.linspace(0.0, 1.0, 21)
    for k, axes in enumerate(panels):
        axes.set_visible(k < len(plan))
        if k >= len(plan):
            continue
        middle = (plan[k].end - plan[k].begin) * (parts[1:] + parts[:-1]) / 2
        for (name, (_, by_seed)), colour in zip(arms.items(), COLOURS * len(arms), strict=False):
            curves = np.array([[v[k].mean_between(a, b) for a, b in pairwise(parts)] for v in by_seed.values()])
            for curve in curves:
                there = ~np.isnan(curve)  # long episodes leave parts of a visit in which none ended
                axes.plot(middle[there], curve[there], color=colour, linewidth=0.7, alpha=0.35)
            mean = curves.mean(axis=0)
            there = ~np.isnan(mean)
            mark = None if there.all() else "."
            label = f"{name}, n = {len(curves)}"
            axes.plot(middle[there], mean[there], color=colour, marker=mark, label=label)
        axes.set_title(f"visit {k + 1}, task {plan[k].task}, from step {plan[k].begin:,}", fontsize=9)
        steps_axis(axes)
        axes.set_xlim(0, plan[k].end - plan[k].begin)
        axes.set_xlabel("steps since the change")
        axes.set_ylabel("training return")
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    with one_line_errors(f"cannot write {out}", also=(OSError,)):
        figure.savefig(out, dpi=110)


def main(args: Args) -> None:
    """Read the runs, print the table, draw the picture."""
    arms = read(args.directories)
    fresh = None
    if args.against and not args.fresh:
        raise RunError("--against compares shares of a fresh agent's returns: name that arm with --fresh")
    for flag, chosen in (("fresh", args.fresh), ("against", args.against)):
        if not chosen:
            continue
        if chosen not in arms:
            raise RunError(f"--{flag} {chosen} is none of the arms: {', '.join(arms)}")
        for name, (_, by_seed) in arms.items():
            if missing := sorted(set(by_seed) - set(arms[chosen][1])):
                raise RunError(f"{name} has seeds {missing}, which --{flag} {chosen} has not: run it with them too")
    if args.fresh:
        fresh = arms[args.fresh][1]
    heads = ("arm", "visit", "task", "from step", "n", "start", "end", "drop", "steps", "gap", "again")
    lines = [
        row
        for name, (runs, by_seed) in arms.items()
        for row in rows(name, by_seed, fresh, runs.config["shift"]["kind"] != "games")
    ]
    table(heads, lines)
    if fresh is not None:
        print()
        by_arm = {name: by_seed for name, (_, by_seed) in arms.items()}
        heads = ("arm", "n", "share", "least", f"minus {args.against}".strip(), "differs")
        table(heads, share_rows(by_arm, fresh, args.against))
    if args.out:
        draw(arms, args.out)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    import tyro

    exit_with_one_line(
        lambda: main(
            tyro.cli(
                Args, prog="python -m runs.changes", description=__doc__, config=(tyro.conf.PositionalRequiredArgs,)
            )
        )
    )
