"""What rules of experiments share: runs paired by task and seed, and intervals of their differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from runs.analysis.statistics import student_interval
from runs.analysis.tables import mean_over_seeds
from runs.sweeps.experiment import Measured, Outcome, Result

Column = Mapping[str, Mapping[tuple[str, int], float]]
"""one number of every run: {arm: {(task, seed): value}}"""


class Difference(NamedTuple):
    """Mean of paired differences, and half the width of Student's 95 % interval over the pairs."""

    mean: float
    half: float
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 if the interval is above or below 0.

        0 if it contains 0, has no width (equal differences say nothing of their spread), or does not exist (n < 2).
        """
        wide = self.half > 1e-9 * abs(self.mean)  # equal differences of rounded numbers have an interval of rounding
        return int(math.copysign(1, self.mean)) if abs(self.mean) > self.half and wide else 0

    def __str__(self) -> str:
        if math.isnan(self.half):
            return f"{self.mean:.3g} (n = {self.n} pair{'s' * (self.n != 1)})"
        return f"{self.mean:.3g} ± {self.half:.2g} (n = {self.n} pairs)"


def column(runs: Sequence[Measured], name: str) -> dict[str, dict[tuple[str, int], float]]:
    """One number of every run, by its name among the experiment's measures."""
    values: dict[str, dict[tuple[str, int], float]] = {}
    for run in runs:
        value = run.values[name]
        if isinstance(value, tuple):
            raise ValueError(f"{name} is several numbers of each run")
        values.setdefault(run.arm, {})[run.world, run.seed] = value
    return values


def difference(values: Column, arm: str, other: str) -> Difference:
    """arm minus other, over the tasks and seeds that both have.

    Raises:
        ValueError: there is no such pair.
    """
    pairs = sorted(set(values.get(arm, {})) & set(values.get(other, {})))
    if not pairs:
        raise ValueError(f"{arm} and {other} share no task and seed")
    gaps = [values[arm][pair] - values[other][pair] for pair in pairs]
    return Difference(*student_interval(gaps), len(gaps))


def over_games(values: Column) -> dict[str, dict[tuple[str, int], float]]:
    """The mean over the seeds of each task: where a claim is about games, games are the sample, not games times seeds.

    Paired intervals over all runs would be too narrow: seeds of a game share what is particular to the game.
    """
    found: dict[str, dict[tuple[str, int], float]] = {}
    for arm, runs in values.items():
        for world in dict.fromkeys(world for world, _ in runs):
            found.setdefault(arm, {})[world, 0] = float(np.mean([v for (w, _), v in runs.items() if w == world]))
    return found


def decide(holds: bool, fails: bool) -> Outcome:
    """The outcome: the claim holds by the rule, fails by it, or neither."""
    return "reproduced" if holds else "not reproduced" if fails else "undecided"


def all_above(differences: Sequence[Difference]) -> Outcome:
    """Reproduced if every interval is above 0, not reproduced if one is below 0, undecided otherwise."""
    signs = [one.sign for one in differences]
    return decide(min(signs) > 0, min(signs) < 0)


def last(result: Result, tag: str) -> float:
    """The last value of a tag.

    Raises:
        ValueError: it was never recorded, or is not finite.
    """
    curve = result.scalars.get(tag)
    return defined(curve[-1][1] if curve else math.nan, f"the last {tag}", result)


def defined(value: float, what: str, result: Result) -> float:
    """The value itself.

    Raises:
        ValueError: it is nan or infinite.
    """
    if not math.isfinite(value):
        where = f" in {result.world}" if result.world else ""
        raise ValueError(f"{what} is undefined for {result.arm}, seed {result.seed}{where}")
    return value


def first_reaching(result: Result, tag: str, level: float) -> float:
    """Step of the first value of at least `level`, inf if there is none."""
    return next((float(step) for step, value in result.scalars.get(tag, ()) if value >= level), math.inf)


def end_return(result: Result, share: float = 0.1) -> float:
    """Mean training return of the episodes that ended in the last `share` of the run's steps; nan if none did."""
    episodes = result.scalars.get("charts/episodic_return", ())
    start = (1 - share) * result.config["total_timesteps"]
    values = [value for step, value in episodes if step > start]
    return float(np.mean(values)) if values else math.nan


def per_world(values: Column) -> dict[str, dict[tuple[str, int], float]]:
    """Values divided by the mean over all arms and seeds of the same task, so that all tasks have the same weight.

    Raises:
        ValueError: the mean of a task is not above 0.
    """
    worlds = {world for runs in values.values() for world, _ in runs}
    means = {w: float(np.mean([v for runs in values.values() for (x, _), v in runs.items() if x == w])) for w in worlds}
    for world, mean in means.items():
        if not mean > 0:
            raise ValueError(f"the mean score in {world or 'this task'} must be above 0 to divide by it, got {mean}")
    return {arm: {key: v / means[key[0]] for key, v in runs.items()} for arm, runs in values.items()}


def standardised(values: Column) -> dict[str, dict[tuple[str, int], float]]:
    """Values minus the mean of the same task and divided by its standard deviation, over all its arms and seeds.

    So tasks have about the same weight whatever the sign and the unit of their scores. 0 where all are equal.
    """
    tasks: dict[str, list[float]] = {}
    for runs in values.values():
        for (world, _), value in runs.items():
            tasks.setdefault(world, []).append(value)
    scales = {world: (float(np.mean(all_)), float(np.std(all_))) for world, all_ in tasks.items()}
    return {
        arm: {key: (value - scales[key[0]][0]) / (scales[key[0]][1] or 1.0) for key, value in runs.items()}
        for arm, runs in values.items()
    }


def mean_rows(values: Column, *more: Column) -> list[list[str]]:
    """A row per arm: its name, n, and mean and interval of each measure."""
    rows = []
    for arm, runs in values.items():
        rows.append([arm, str(len(runs)), *(mean_over_seeds(list(one[arm].values())) for one in (values, *more))])
    return rows
