"""Continual control: scores of levels, both rules, on numbers made by hand."""

import math

import numpy as np
import pytest

from runs.experiments import continual_control_v1 as control
from runs.experiments import control_published_v1 as published
from runs.experiments.shared import levels
from runs.sweeps.experiment import Measured, Result, load, plan

LEVEL = 10 * levels.ITERATION


def run(arm, value, *, world="CartPole", seed=1, count=3):
    """A run of `count` levels with ten iterations each; `value` is one number or one per iteration."""
    returns = np.broadcast_to(np.asarray(value, dtype=float), (10 * count,))
    curve = [((k + 1) * levels.ITERATION, float(one)) for k, one in enumerate(returns)]
    config = {"shift": {"every_steps": LEVEL}, "total_timesteps": count * LEVEL}
    return Result(arm, world, seed, config, {"charts/iteration_return": curve})


def test_score_is_the_mean_over_all_iterations():
    assert levels.score(run("plain", np.arange(30))) == 14.5
    assert math.isnan(levels.score(Result("plain", "", 1, {}, {})))


def test_late_returns_are_the_last_two_of_ten_iterations_after_the_first_level():
    value = np.zeros(30)
    value[[8, 9]] = 1000.0  # first level: not counted
    value[[18, 19, 28, 29]] = 10.0, 20.0, 30.0, 40.0
    value[[10, 17, 20, 27]] = 555.0
    assert levels.late(run("plain", value)) == 25.0
    assert math.isnan(levels.late(run("plain", 1.0, count=1)))


def numbers(arm, value, *, world="CartPole", seed=1):
    """What the rule reads of a run that scores `value` throughout."""
    return Measured(arm, world, seed, {levels.SCORE: value, levels.LATE: value})


def scored(**means):
    """Every arm, four seeds, one environment: its mean plus a deviation of the seed that differs between arms."""
    rng = np.random.default_rng(1)
    return [
        numbers(name, means.get(name.replace("-", "_"), 50.0) + rng.normal(0, 1), seed=seed)
        for name in levels.NAMES
        for seed in range(4)
    ]


def test_effect_in_one_environment():
    verdict = control.judge(scored(plain=10, oracle=110, nap_switch=85, nap_constant=60))
    assert verdict.outcome == "reproduced"
    (row,) = [row for row in verdict.rows if row[1] == "nap-switch"]
    assert row[2] == "4" and float(row[4].split()[0]) == pytest.approx(0.75, abs=0.03)
    low, high = (float(one) for one in row[4].split("[")[1].rstrip("]").split(", "))
    assert low < 0.75 < high and high - low < 0.1
    assert [row[4] for row in verdict.rows if row[1] in ("plain", "oracle")] == ["–", "–"]


@pytest.mark.parametrize(
    ("means", "outcome"),
    [
        ({}, "undecided"),  # all arms alike
        ({"plain": 10, "nap_constant": 85, "nap_switch": 85}, "undecided"),
        ({"plain": 10, "nap_constant": 85, "nap_switch": 60}, "not reproduced"),
        ({"plain": 90, "nap_constant": 40, "nap_switch": 60}, "not reproduced"),
    ],
)
def test_no_effect(means, outcome):
    assert control.judge(scored(oracle=110, **means)).outcome == outcome


def test_the_same_runs_twice_decide_nothing():
    arms = [numbers(name, 10.0 + seed, seed=seed) for name in levels.NAMES for seed in range(4)]
    arms = [one if one.arm != "oracle" else numbers("oracle", 100.0 + one.seed, seed=one.seed) for one in arms]
    assert control.judge(arms).outcome == "undecided"


def test_an_interval_without_width_decides_nothing():
    means = {"plain": 10.0, "oracle": 100.0, "nap-switch": 80.0}
    arms = [numbers(name, means.get(name, 50.0), seed=seed) for name in levels.NAMES for seed in range(4)]
    assert control.judge(arms).outcome == "undecided"


def test_most_environments_decide_and_one_against_prevents():
    good = scored(plain=10, oracle=110, nap_switch=85, nap_constant=60)
    bad = scored(plain=10, oracle=110, nap_switch=60, nap_constant=85)
    dull = scored(oracle=110)

    def moved(runs, world):
        return [Measured(one.arm, world, one.seed, one.values) for one in runs]

    three = [*moved(good, "A"), *moved(good, "B")]
    assert control.judge([*three, *moved(dull, "C")]).outcome == "reproduced"
    assert control.judge([*three, *moved(bad, "C")]).outcome == "undecided"
    assert control.judge([*moved(good, "A"), *moved(dull, "B"), *moved(dull, "C")]).outcome == "undecided"
    assert control.judge([*moved(bad, "A"), *moved(bad, "B"), *moved(good, "C")]).outcome == "not reproduced"


def published_runs(shift=0.0, **replaced):
    """Six seeds around each published number, with a standard error of 1."""
    spread = np.array([-1, -1, -1, 1, 1, 1]) * math.sqrt(5)  # sd sqrt(6), so the mean's is 1
    means = {key: mean + shift for key, (mean, _) in published.PUBLISHED.items()} | replaced
    return [
        numbers(arm, mean + d, world=world, seed=s)
        for (arm, world), mean in means.items()
        for s, d in enumerate(spread)
    ]


def test_published_numbers_within_reach():
    verdict = published.judge(published_runs())
    assert verdict.outcome == "reproduced"
    assert verdict.rows[0] == ["CartPole", "plain", "6", "61.8 ± 1.0", "61.8 ± 6.9", "+0.0", "13.7", "yes"]
    assert published.judge(published_runs(6.7)).outcome == "reproduced"
    assert published.judge(published_runs(6.8)).outcome == "undecided"  # Acrobot's 3.3 and 1 reach 6.76
    assert published.judge(published_runs(30.0)).outcome == "not reproduced"
    with pytest.raises(ValueError, match="plain in CartPole has 5 seeds, and the rule needs 6"):
        published.judge([one for one in published_runs() if one.seed])


def test_the_two_experiments_share_their_runs(tmp_path):
    both = [
        {(job.arm, job.world, job.seed): job for job in plan(load(name), "paper", tmp_path)}
        for name in ("continual-control-v1", "control-published-v1")
    ]
    shared = both[0].keys() & both[1].keys()
    assert len(shared) == 12
    for key in shared:
        one, other = both[0][key], both[1][key]
        assert one.directory == other.directory and (one.script, one.preset, one.flags) == (
            other.script, other.preset, other.flags,
        )  # fmt: skip
