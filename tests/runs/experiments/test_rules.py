"""Paired differences and the building blocks of rules."""

import math

import pytest

from runs.experiments.shared import rules
from runs.experiments.shared.rules import Difference
from runs.sweeps.experiment import Measured, Result


def result(arm="a", world="", seed=1, config=None, **scalars):
    return Result(arm, world, seed, config or {}, {tag.replace("__", "/"): curve for tag, curve in scalars.items()})


def test_differences_are_paired_by_task_and_seed():
    values = {"a": {("x", 1): 3.0, ("x", 2): 5.0, ("y", 1): 9.0}, "b": {("x", 2): 1.0, ("x", 1): 2.0, ("z", 1): 0.0}}
    one = rules.difference(values, "a", "b")
    assert one.mean == 2.5 and one.n == 2
    # gaps 1 and 4: s = 3 / sqrt(2), half = t(0.975, 1) s / sqrt(2)
    assert one.half == pytest.approx(12.706 * 1.5)
    assert rules.difference(values, "b", "a").mean == -2.5


def test_differences_without_pairs_are_refused():
    with pytest.raises(ValueError, match="a and b share no task and seed"):
        rules.difference({"a": {("", 1): 0.0}, "b": {("", 2): 0.0}}, "a", "b")


def test_equal_differences_decide_nothing_whatever_their_rounding():
    values = {"a": {("", 1): 2.5, ("", 2): 2.8, ("", 3): 2.6}, "b": {("", 1): 0.5, ("", 2): 0.8, ("", 3): 0.6}}
    assert rules.difference(values, "a", "b").sign == 0


def test_a_column_is_one_number_of_every_run():
    runs = [Measured("a", "x", 1, {"n": 2.0, "many": (1.0, 2.0)}), Measured("b", "", 3, {"n": 5.0, "many": ()})]
    assert rules.column(runs, "n") == {"a": {("x", 1): 2.0}, "b": {("", 3): 5.0}}
    with pytest.raises(ValueError, match="many is several numbers of each run"):
        rules.column(runs, "many")


def test_games_are_means_over_their_seeds():
    values = {"a": {("x", 1): 1.0, ("x", 2): 3.0, ("y", 1): 9.0}}
    assert rules.over_games(values) == {"a": {("x", 0): 2.0, ("y", 0): 9.0}}


@pytest.mark.parametrize(
    ("mean", "half", "sign"),
    [(2.0, 1.0, 1), (-2.0, 1.0, -1), (1.0, 1.0, 0), (-0.5, 1.0, 0), (9.0, math.nan, 0), (0.0, 0.0, 0)],
)
def test_sign_is_zero_if_the_interval_contains_zero(mean, half, sign):
    assert Difference(mean, half, 3).sign == sign


@pytest.mark.parametrize(
    ("signs", "outcome"),
    [
        ((1, 1), "reproduced"),
        ((1, 0), "undecided"),
        ((0, 0), "undecided"),
        ((1, -1), "not reproduced"),
        ((-1,), "not reproduced"),
    ],
)
def test_all_above(signs, outcome):
    assert rules.all_above([Difference(float(sign), 0.5, 3) for sign in signs]) == outcome


def test_first_reaching_and_last():
    run = result(acc=[(10, 0.2), (20, 0.9), (30, 0.5)])
    assert rules.first_reaching(run, "acc", 0.9) == 20 and rules.first_reaching(run, "acc", 0.91) == math.inf
    assert rules.first_reaching(run, "none", 0.0) == math.inf
    assert rules.last(run, "acc") == 0.5
    for tag, curve in (("none", []), ("nan", [(1, math.nan)]), ("inf", [(1, math.inf)])):
        with pytest.raises(ValueError, match=f"the last {tag} is undefined for"):
            rules.last(result(**{tag: curve}), tag)


def test_end_return_is_the_mean_of_episodes_that_ended_in_the_last_tenth():
    run = result(config={"total_timesteps": 100}, charts__episodic_return=[(50, 1.0), (90, 7.0), (91, 2.0), (100, 4.0)])
    assert rules.end_return(run) == 3.0 and rules.end_return(run, 0.5) == pytest.approx(13 / 3)
    assert math.isnan(rules.end_return(result(config={"total_timesteps": 100}, charts__episodic_return=[(5, 1.0)])))


def test_tasks_have_the_same_weight():
    values = {"a": {("x", 1): 10.0, ("y", 1): 300.0}, "b": {("x", 1): 30.0, ("y", 1): 100.0}}
    assert rules.per_world(values) == {"a": {("x", 1): 0.5, ("y", 1): 1.5}, "b": {("x", 1): 1.5, ("y", 1): 0.5}}
    with pytest.raises(ValueError, match="mean score in x must be above 0 to divide by it, got 0"):
        rules.per_world({"a": {("x", 1): 0.0}})


def test_rows_have_name_n_mean_and_interval():
    rows = rules.mean_rows({"a": {("", 1): 1.0, ("", 2): 3.0}, "b": {("", 1): 5.0}})
    assert rows == [["a", "2", "2 ± 13"], ["b", "1", "5"]]


def test_standardised_scores_have_mean_0_and_deviation_1_in_every_task():
    values = {"a": {("x", 1): -10.0, ("y", 1): 300.0}, "b": {("x", 1): -30.0, ("y", 1): 100.0}}
    assert rules.standardised(values) == {"a": {("x", 1): 1.0, ("y", 1): 1.0}, "b": {("x", 1): -1.0, ("y", 1): -1.0}}
    assert rules.standardised({"a": {("x", 1): 7.0}, "b": {("x", 1): 7.0}})["a"] == {("x", 1): 0.0}
