"""Aggregates of scores over seeds and tasks with bootstrap intervals: Agarwal et al. 2021 (arXiv:2108.13264), in NumPy.

A score is one number per run. `Scores` are the scores of one arm, in one of these forms:

    {task: scores of its runs}      tasks may have different numbers of runs
    [scores of a task's runs, ...]  a list or tuple with one array per task, [..., n]; leading axes are a batch
    array [runs, tasks]             the form of the library rliable

A statistic maps scores to a number (to an array of the batch's shape if there is a batch). `bootstrap` gives any
statistic a percentile interval. Estimates equal rliable's, and intervals do up to the noise of resampling
(tests/runs/analysis/test_statistics.py). Tasks without runs and scores that are not finite are ValueErrors.

Percentile intervals of few runs are too narrow. In 2,000 samples of n = 3, 5, 10, 20 normal scores of one task, 75, 85,
91 and 94 % of the nominal 95 % intervals of the mean contained the true mean; with five tasks of n runs each, 85, 90,
92 and 92 % did. `student_interval` does not have this fault. A probability of improvement of 0 or 1 has an interval of
zero width for every n, because all resamples give the same value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.float64]
Scores: TypeAlias = Mapping[str, ArrayLike] | Sequence[ArrayLike] | FloatArray
Tasks: TypeAlias = Sequence[FloatArray]
Statistic: TypeAlias = Callable[..., FloatArray]
"""maps one `Tasks` per sample, each array [..., n] with one batch shape, to an array [...] or [..., k]"""

# Quantiles 0.975 of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086)  # fmt: skip
_CHUNK = 1000  # replicates at a time: scores stay in the cache, and n x m comparisons take tens of megabytes


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of Student's 95 % interval; nan for a single value."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.nan
    quantile = _T[n - 2] if n - 2 < len(_T) else 1.96 + 2.5 / (n - 1)  # within 0.0015 beyond 20 degrees of freedom
    return float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / math.sqrt(n)


def student_band(runs: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """Lower and upper end of Student's 95 % interval of the mean at each point of [n, points]; None for one run."""
    if len(runs) < 2:
        return None
    pairs = np.array([student_interval(column.tolist()) for column in runs.T])
    return pairs[:, 0] - pairs[:, 1], pairs[:, 0] + pairs[:, 1]


def by_task(scores: Scores) -> list[FloatArray]:
    """Scores as one array [..., n] of floats per task.

    Raises:
        ValueError: there is no task, a task has no run, or a score is nan or infinite; the task is named.
    """
    if isinstance(scores, np.ndarray):
        if scores.ndim != 2:
            raise ValueError(f"an array of scores is [runs, tasks], not of shape {scores.shape}")
        named = {f"task {k + 1}": column for k, column in enumerate(scores.T)}
    elif isinstance(scores, Mapping):
        named = {str(task): np.asarray(one, dtype=np.float64) for task, one in scores.items()}
    else:
        named = {f"task {k + 1}": np.asarray(one, dtype=np.float64) for k, one in enumerate(scores)}
    if not named:
        raise ValueError("there are no scores: give at least one task")
    for task, array in named.items():
        if array.ndim == 0 or array.shape[-1] == 0:
            raise ValueError(f"{task} has no runs")
        if not np.isfinite(array).all():
            raise ValueError(f"{task} has a score that is not finite: {array[~np.isfinite(array)][0]}")
    return [np.asarray(array, dtype=np.float64) for array in named.values()]


def mean(scores: Scores) -> FloatArray:
    """Mean over tasks of the mean over a task's runs: every task has the same weight."""
    return np.asarray(np.mean([task.mean(axis=-1) for task in by_task(scores)], axis=0))


def median(scores: Scores) -> FloatArray:
    """Median over tasks of the mean over a task's runs (Agarwal et al. 2021, Sec. 4.3; with one task, its mean)."""
    return np.asarray(np.median([task.mean(axis=-1) for task in by_task(scores)], axis=0))


def iqm(scores: Scores) -> FloatArray:
    """Interquartile mean over all runs of all tasks together (Agarwal et al. 2021, Sec. 4.3).

    Of N sorted scores the floor(N / 4) smallest and the floor(N / 4) largest are left out, and the rest is averaged, as
    in scipy.stats.trim_mean(x, 0.25): for N = 7 the middle five, not 3.5. A task with more runs has more weight.
    """
    pooled = np.sort(np.concatenate(by_task(scores), axis=-1), axis=-1)
    count = pooled.shape[-1]
    cut = count // 4
    return np.asarray(pooled[..., cut : count - cut].mean(axis=-1))


def optimality_gap(scores: Scores, gamma: float = 1.0) -> FloatArray:
    """By how much scores fall short of `gamma`: gamma - mean(min(score, gamma)), every task with the same weight.

    For normalised scores, where 1 is the goal (Agarwal et al. 2021, Sec. 4.3).
    """
    reached = [np.minimum(task, gamma).mean(axis=-1) for task in by_task(scores)]
    return np.asarray(gamma - np.mean(reached, axis=0))


def probability_of_improvement(x: Scores, y: Scores) -> FloatArray:
    """P(a run of x scores above a run of y on the same task), averaged over tasks (Agarwal et al. 2021, Sec. 4.3).

    On each task this is the share of the n_x n_y pairs in which x is above y, ties counting half: the Mann-Whitney U
    statistic over n_x n_y. 0.5 means no difference. It does not say how large a difference is.

    Raises:
        ValueError: the tasks differ (by name, if both samples name them).
    """
    shares = [
        0.5 + 0.5 * np.sign(ours[..., :, None] - theirs[..., None, :]).mean(axis=(-2, -1))
        for ours, theirs in zip(*_paired(x, y), strict=True)
    ]
    return np.asarray(np.mean(shares, axis=0))


def performance_profile(scores: Scores, taus: ArrayLike) -> FloatArray:
    """Share of runs that score above each tau, every task with the same weight: the score distribution of Sec. 4.2.

    Returns:
        [..., number of taus], decreasing in tau; "above" is strict.
    """
    tasks = by_task(scores)
    above = [np.mean([(task > tau).mean(axis=-1) for task in tasks], axis=0) for tau in np.atleast_1d(taus)]
    return np.stack(above, axis=-1)


def bootstrap(
    statistic: Statistic, *samples: Scores, replicates: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """Stratified percentile bootstrap (Agarwal et al. 2021, Sec. 4.1): the interval of a statistic.

    In every replicate the runs of each task are resampled with replacement, as many as there are. Several samples (two
    arms) are resampled independently.

    Args:
        statistic: a function of one `Scores` per sample, such as `iqm`.
        samples: scores of each arm.
        replicates: resamples. With 10,000 the ends of a 95 % interval vary by about 0.03 standard errors of the
            statistic (one standard deviation over seeds of the generator).
        level: share of the replicates inside the interval.
        seed: of the generator; the same seed gives the same interval.
    Returns:
        lower and upper end, of the statistic's shape; nan if a task of any sample has a single run, because its
        resamples are all equal.
    Raises:
        ValueError: as `by_task`, or replicates or level are out of range.
    """
    if replicates < 1 or not 0 < level < 1:
        raise ValueError(f"replicates must be at least 1 and level in (0, 1), got {replicates} and {level}")
    tasks = [by_task(sample) for sample in _aligned(samples)]
    if any(task.ndim != 1 for sample in tasks for task in sample):
        raise ValueError("scores to resample must be one array [n] per task, without further axes")
    if min(len(task) for sample in tasks for task in sample) == 1:
        nothing = np.full(np.shape(statistic(*tasks)), np.nan)
        return nothing, nothing.copy()
    generator = np.random.default_rng(seed)
    found = []
    for begin in range(0, replicates, _CHUNK):
        count = min(_CHUNK, replicates - begin)
        drawn = [[task[generator.integers(len(task), size=(count, len(task)))] for task in s] for s in tasks]
        found.append(statistic(*drawn))
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _aligned(samples: Sequence[Scores]) -> list[Scores]:
    """The samples, with named tasks in the order of the first sample.

    Raises:
        ValueError: named samples have different tasks.
    """
    first = samples[0]
    aligned = [first]
    for other in samples[1:]:
        if isinstance(first, Mapping) and isinstance(other, Mapping):
            if first.keys() != other.keys():
                odd = ", ".join(sorted(map(str, first.keys() ^ other.keys())))
                raise ValueError(f"the samples must have the same tasks, but only one of them has {odd}")
            other = {task: other[task] for task in first}
        aligned.append(other)
    return aligned


def _paired(x: Scores, y: Scores) -> tuple[list[FloatArray], list[FloatArray]]:
    ours, theirs = (by_task(sample) for sample in _aligned([x, y]))
    if len(ours) != len(theirs):
        raise ValueError(f"the samples must have the same tasks, but have {len(ours)} and {len(theirs)}")
    return ours, theirs
