"""Aggregates against rliable's numbers and literal formulas, intervals, and errors."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.analysis import statistics

RLIABLE = json.loads((Path(__file__).parent / "data" / "rliable.json").read_text())
SAMPLES = {sample["name"]: np.array(sample["scores"]) for sample in RLIABLE["samples"]}
STATISTICS = {name: getattr(statistics, name) for name in ("mean", "median", "iqm", "optimality_gap")}

SCORES = st.lists(  # tasks with unequal numbers of runs; halves, so that there are ties
    st.lists(st.integers(-6, 12).map(lambda k: k / 2), min_size=1, max_size=9), min_size=1, max_size=4
)


def noise(spread, ours, theirs):
    """Five standard deviations of the difference of two quantiles at 2.5 % of a normal statistic.

    One has the variance p (1 - p) / (reps density^2) = 7.13 spread^2 / reps, `spread` being the statistic's.
    """
    return 5 * spread * math.sqrt(7.13 * (1 / ours + 1 / theirs))


@pytest.mark.parametrize("sample", RLIABLE["samples"], ids=lambda sample: sample["name"])
@pytest.mark.parametrize("name", STATISTICS)
def test_estimates_and_intervals_are_rliables(sample, name):
    scores, theirs = np.array(sample["scores"]), np.array(sample["intervals"][name])
    assert STATISTICS[name](scores) == pytest.approx(sample["estimates"][name], abs=1e-12)
    ours = np.array(statistics.bootstrap(STATISTICS[name], scores, replicates=40_000))
    spread = (theirs[1] - theirs[0]) / 3.92
    step = 1 / 15 if "ties" in sample["name"] else 0.0  # whole scores: quantiles move in steps of 1 over 15 runs
    assert np.abs(ours - theirs).max() <= noise(spread, 40_000, RLIABLE["replicates"]) + step


@pytest.mark.parametrize("sample", RLIABLE["samples"], ids=lambda sample: sample["name"])
def test_profiles_are_rliables(sample):
    scores, taus = np.array(sample["scores"]), RLIABLE["taus"]
    profile = statistics.performance_profile(scores, taus)
    assert profile.tolist() == pytest.approx(sample["profile"], abs=1e-12)
    ours = np.array(statistics.bootstrap(lambda s: statistics.performance_profile(s, taus), scores, replicates=20_000))
    spread = np.sqrt(profile * (1 - profile) / scores.size)
    allowed = noise(spread, 20_000, RLIABLE["profile_replicates"]) + 1 / scores.size  # a share moves in such steps
    assert (np.abs(ours - np.array(sample["profile_bands"])) <= allowed + 1e-12).all()


@pytest.mark.parametrize("pair", RLIABLE["pairs"], ids=lambda pair: pair["x"])
def test_probabilities_of_improvement_are_rliables(pair):
    x, y, theirs = SAMPLES[pair["x"]], np.array(pair["y"]), np.array(pair["interval"])
    assert statistics.probability_of_improvement(x, y) == pytest.approx(pair["probability"], abs=1e-12)
    ours = np.array(statistics.bootstrap(statistics.probability_of_improvement, x, y, replicates=40_000))
    step = 0.5 / (x.shape[1] * len(x) * len(y))
    assert (
        np.abs(ours - theirs).max() <= noise((theirs[1] - theirs[0]) / 3.92, 40_000, RLIABLE["pair_replicates"]) + step
    )


@given(SCORES)
def test_estimates_equal_the_literal_formulas(tasks):
    means = sorted(sum(task) / len(task) for task in tasks)
    middle = (means[len(means) // 2] + means[(len(means) - 1) // 2]) / 2
    pooled = sorted(score for task in tasks for score in task)
    inner = [score for k, score in enumerate(pooled) if len(pooled) // 4 <= k < len(pooled) - len(pooled) // 4]
    short = sum(sum(max(1.0 - score, 0.0) for score in task) / len(task) for task in tasks) / len(tasks)
    assert statistics.mean(tasks) == pytest.approx(sum(means) / len(means))
    assert statistics.median(tasks) == pytest.approx(middle)
    assert statistics.iqm(tasks) == pytest.approx(sum(inner) / len(inner))
    assert statistics.optimality_gap(tasks) == pytest.approx(short)
    for tau in (-0.5, 0.0, 1.0):
        share = sum(sum(score > tau for score in task) / len(task) for task in tasks) / len(tasks)
        assert statistics.performance_profile(tasks, tau).tolist() == pytest.approx([share])


@given(SCORES, st.data())
def test_probability_of_improvement_counts_pairs_and_half_of_ties(tasks, data):
    numbers = st.lists(st.integers(-6, 12).map(lambda k: k / 2), min_size=1, max_size=9)
    others = [data.draw(numbers) for _ in tasks]
    shares = [
        sum((a > b) + 0.5 * (a == b) for a, b in product(x, y)) / (len(x) * len(y))
        for x, y in zip(tasks, others, strict=True)
    ]
    wins = statistics.probability_of_improvement(tasks, others)
    assert wins == pytest.approx(sum(shares) / len(shares))
    assert statistics.probability_of_improvement(others, tasks) == pytest.approx(1 - wins)
    assert statistics.probability_of_improvement(tasks, tasks) == 0.5


@pytest.mark.parametrize(("count", "expected"), [(1, 0.0), (3, 1.0), (4, 1.5), (5, 2.0), (7, 3.0), (8, 3.5)])
def test_iqm_of_numbers_of_runs_not_divisible_by_four(count, expected):
    scores = np.arange(count, dtype=float)
    assert statistics.iqm([scores]) == expected
    scores[-1] = 1000.0  # left out with four or more
    assert (statistics.iqm([scores]) == expected) == (count >= 4)


def test_batch_equals_single_calls():
    generator = np.random.default_rng(0)
    tasks = [generator.normal(size=(6, n)) for n in (3, 5)]
    others = [generator.normal(size=(6, n)) for n in (4, 2)]
    for k in range(6):
        x, y = [task[k] for task in tasks], [task[k] for task in others]
        for statistic in STATISTICS.values():
            assert statistic(tasks)[k] == pytest.approx(float(statistic(x)))
        together = statistics.probability_of_improvement(tasks, others)
        assert together.shape == (6,) and together[k] == pytest.approx(
            float(statistics.probability_of_improvement(x, y))
        )
        profile = statistics.performance_profile(tasks, [0.0, 0.5])
        assert profile.shape == (6, 2)
        assert profile[k].tolist() == pytest.approx(statistics.performance_profile(x, [0.0, 0.5]).tolist())


def test_all_resamples_of_a_small_sample():
    """Two tasks of two runs: the nine means, with their exact probabilities."""
    scores = {"a": [0.0, 1.0], "b": [0.0, 10.0]}
    means = {
        (a + b) / 2: p * q for a, p in ((0, 0.25), (0.5, 0.5), (1, 0.25)) for b, q in ((0, 0.25), (5, 0.5), (10, 0.25))
    }
    seen = []

    def watched(drawn):
        seen.append(statistics.mean(drawn))
        return seen[-1]

    statistics.bootstrap(watched, scores, replicates=40_000)
    values, counts = np.unique(np.concatenate(seen), return_counts=True)
    assert values.tolist() == sorted(means)
    expected = np.array([means[value] for value in values])
    assert np.abs(counts / 40_000 - expected).max() < 5 * math.sqrt(0.25 / 40_000)


def test_tasks_are_resampled_separately():
    """No resample mixes runs of different tasks."""
    low, high = statistics.bootstrap(statistics.mean, {"small": [1.0] * 4, "large": [1001.0] * 3})
    assert low == high == 501.0


def test_intervals_repeat_with_the_seed_and_widen_with_the_level():
    scores = np.random.default_rng(0).normal(size=(6, 2))
    first = statistics.bootstrap(statistics.iqm, scores, seed=1)
    assert first == statistics.bootstrap(statistics.iqm, scores, seed=1)
    assert first != statistics.bootstrap(statistics.iqm, scores, seed=2)
    wide = statistics.bootstrap(statistics.iqm, scores, seed=1, level=0.99)
    assert wide[0] < first[0] < first[1] < wide[1]
    assert statistics.bootstrap(statistics.iqm, scores, replicates=1500)[0] < first[1]  # not a multiple of a chunk


def test_single_run_has_no_interval():
    single = {"a": [1.0, 2.0, 3.0], "b": [4.0]}
    assert statistics.mean(single) == 3.0
    assert np.isnan(statistics.bootstrap(statistics.mean, single)).all()
    x, y = {"a": [1.0, 2.0]}, {"a": [0.0]}
    assert np.isnan(statistics.bootstrap(statistics.probability_of_improvement, x, y)).all()
    bands = statistics.bootstrap(lambda s: statistics.performance_profile(s, [0.0, 1.0]), single)
    assert bands[0].shape == bands[1].shape == (2,) and np.isnan(bands).all()


def test_named_tasks_are_matched_by_name():
    x, y = {"a": [1.0, 1.0], "b": [5.0, 5.0]}, {"b": [4.0, 6.0], "a": [0.0, 0.0]}
    assert statistics.probability_of_improvement(x, y) == 0.75
    low, high = statistics.bootstrap(statistics.probability_of_improvement, x, y)
    assert (low, high) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "at least one task"),
        ([], "at least one task"),
        ({"a": [1.0], "b": []}, "b has no runs"),
        ({"a": [1.0, math.nan]}, "a has a score that is not finite: nan"),
        ([[1.0], [math.inf]], "task 2 has a score that is not finite: inf"),
        (np.zeros((0, 2)), "task 1 has no runs"),
        (np.zeros(3), r"\[runs, tasks\], not of shape \(3,\)"),
        ([1.0, 2.0], "task 1 has no runs"),
    ],
)
def test_bad_scores_are_refused(scores, message):
    for call in (statistics.mean, statistics.iqm, lambda s: statistics.bootstrap(statistics.mean, s)):
        with pytest.raises(ValueError, match=message):
            call(scores)


def test_bad_samples_and_arguments_are_refused():
    with pytest.raises(ValueError, match="only one of them has b, c"):
        statistics.probability_of_improvement({"a": [1.0], "b": [1.0]}, {"a": [1.0], "c": [1.0]})
    with pytest.raises(ValueError, match="have 1 and 2"):
        statistics.probability_of_improvement([[1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match=r"replicates must be at least 1 .*, got 0"):
        statistics.bootstrap(statistics.mean, [[1.0, 2.0]], replicates=0)
    with pytest.raises(ValueError, match=r"level in .*, got .* 95"):
        statistics.bootstrap(statistics.mean, [[1.0, 2.0]], level=95)
    with pytest.raises(ValueError, match="without further axes"):
        statistics.bootstrap(statistics.mean, [np.zeros((2, 3))])
