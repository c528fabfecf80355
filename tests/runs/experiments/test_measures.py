"""What measures read of a run, and clauses of rules that decide alone."""

import math

import numpy as np
import pytest

from runs.experiments import (
    fig2_left,
    fig4_features,
    fig8,
    fig10,
    fig11,
    high_utd_pilot,
    panel_grokking,
    theory,
)
from runs.experiments.shared import atari, warm_start
from runs.sweeps.experiment import Measured, Result, load
from tests.runs.experiments.test_every_rule import made_up


def result(config=None, **scalars):
    return Result("a", "", 1, config or {}, {tag.replace("__", "/"): curve for tag, curve in scalars.items()})


def test_fig11_looks_before_and_after_each_event():
    episodes = [(240, 1.0), (250, 3.0), (260, 5.0), (300, 7.0), (301, 9.0), (500, 2.0), (540, 4.0), (745, 6.0)]
    run = result({"total_timesteps": 1000}, charts__episodic_return=[*episodes, (800, 8.0)])
    assert fig11.around(run, -0.1, 0.0) == (2.0, 2.0, 6.0)
    assert fig11.around(run, 0.0, 0.2) == (6.0, 4.0, 8.0)


def test_atari_scores_are_of_the_last_fiftieth_and_tenth():
    run = result({"total_timesteps": 100}, charts__episodic_return=[(97, 1.0), (99, 5.0)])
    assert atari.MEASURES[atari.SCORE](run) == 5.0
    assert atari.MEASURES[atari.TENTH](run) == 3.0


def test_the_pilot_reads_the_middle_and_the_end():
    episodes = [(30, 9.0), (31, 1.0), (60, 3.0), (61, 9.0), (70, 9.0), (71, 5.0), (100, 7.0)]
    run = result({"total_timesteps": 100}, charts__episodic_return=episodes)
    assert high_utd_pilot.EXPERIMENT.measures[high_utd_pilot.MIDDLE](run) == 2.0
    assert high_utd_pilot.EXPERIMENT.measures[high_utd_pilot.LATE](run) == 6.0
    with pytest.raises(ValueError, match="return from 30% to 60% is undefined for a"):
        high_utd_pilot.between(result({"total_timesteps": 900}, charts__episodic_return=episodes), 0.3, 0.6)


def test_the_pilot_needs_both_ratios_and_one_network():
    runs = made_up("high-utd-pilot", True)
    alike = {(run.world, run.seed): run.values for run in runs if run.arm == "plain-1"}

    def without(*arms):
        return [
            Measured(run.arm, run.world, run.seed, alike[run.world, run.seed]) if run.arm in arms else run
            for run in runs
        ]

    judge = load("high-utd-pilot").judge
    assert judge(without("plain-4")).outcome == "reproduced"
    assert judge(without("plain-4", "normalised-8")).outcome == "undecided"
    sooner = [  # four and eight updates per step learn sooner and end higher, though they gain less
        run
        if run.arm.endswith("-1")
        else Measured(run.arm, run.world, run.seed, {name: 3 * value for name, value in run.values.items()})
        for run in runs
    ]
    assert judge(sooner).outcome == "undecided"


def test_grokking_arrives_by_the_test_and_warm_starting_has_a_gap_with_a_sign():
    run = result(train__accuracy=[(1, 1.0)], test__accuracy=[(5, 0.89), (9, 0.9)], test__gap=[(9, -0.5)])
    assert fig2_left.arrival(run) == 9
    assert warm_start.gap(run) == -0.5
    assert warm_start.accuracy(run) == 90


def test_fig8_reads_the_rank_at_memorisation():
    scalars = {"train/accuracy": [(10, 0.5), (20, 0.99)], fig8.RANK: [(10, 30.0), (20, 25.0), (30, 9.0)]}
    assert fig8.memorised(Result("a", "", 1, {}, scalars)) == 25.0


def test_theory_deviates_from_the_closed_form_and_from_the_unscaled_one():
    scalars = {
        "theory/cosine": [(0, 0.5)], "theory/cosine_closed": [(0, 0.4)], "theory/cosine_error": [(0, 0.05)],
        "charts/learning_rate": [(0, 2.0)],
    }  # fmt: skip
    run = Result("a", "", 1, {"sigma": 0.5}, scalars)
    assert theory.deviation(run, "cosine") == pytest.approx(2)
    assert theory.deviation(run, "cosine", theory.unscaled) == pytest.approx((math.sqrt(0.5) - 0.5) / 0.05)


def test_panel_grokking_reads_the_first_event_and_what_was_learned_until_then():
    accuracies = {"train/accuracy": [(10, 0.5), (20, 0.99), (30, 0.7)], "test/accuracy": [(30, 0.9), (40, 0.2)]}
    rewarmed = Result("a", "", 1, {}, {**accuracies, "rewarm/event": [(29, 1.0), (39, 1.0)]})
    low = Result("a", "", 1, {}, accuracies)
    values = [[measure(run) for measure in panel_grokking.EXPERIMENT.measures.values()] for run in (rewarmed, low)]
    assert values == [[29, 0.99, 30, 0.2], [math.inf, 0.7, 30, 0.2]]


def changed(runs, arm, **values):
    """The runs, with these numbers in those of one arm; numbers are callables of the run's own."""
    return [
        Measured(run.arm, run.world, run.seed, {**run.values, **{k: f(run.values[k]) for k, f in values.items()}})
        if run.arm == arm
        else run
        for run in runs
    ]


@pytest.mark.parametrize("metric", fig4_features.METRICS.values())
def test_fig4_features_needs_both_metrics(metric):
    runs = changed(made_up("fig4-features", True), fig4_features.OURS, **{metric: lambda value: value / 4})
    assert load("fig4-features").judge(runs).outcome == "not reproduced"


@pytest.mark.parametrize("arm", fig10.ARMS[1:])
def test_fig10_needs_every_arm(arm):
    runs = changed(made_up("fig10", True), arm, **{atari.SCORE: lambda value: value / 4})
    assert load("fig10").judge(runs).outcome == "not reproduced"


def test_fig11_losses_are_losses_where_returns_are_negative():
    """Both arms fall below the return before the event: a resetting one by 0.7 or more of it, a cycling one by 0.3."""
    runs = [
        Measured(arm, game, 1, {fig11.BEFORE: (-scale,) * 3, fig11.AFTER: (-scale * (1 + loss),) * 3})
        for k, (game, scale) in enumerate({"A": 10.0, "B": 20.0, "C": 300.0}.items())
        for arm, loss in ((fig11.RESETS, 0.7 + 0.01 * k), (fig11.CYCLES, 0.3))
    ]
    verdict = load("fig11").judge(runs)
    assert verdict.outcome == "reproduced" and "smaller by 0.41 ± " in verdict.reason


@pytest.mark.parametrize(("accuracy", "outcome"), [(0.99, "not reproduced"), (0.98, "reproduced")])
def test_fig8_judges_the_fall_of_runs_that_end_at_99_percent(accuracy, outcome):
    """The rank rises in all runs without scale decay; it matters only if they grok."""
    runs = made_up("fig8", True)
    for arm in ("plain-every100", "plain-every1000"):
        runs = changed(runs, arm, **{fig8.ACCURACY: lambda _: accuracy, fig8.END: lambda rank: 100 * rank})
    assert load("fig8").judge(runs).outcome == outcome


@pytest.mark.parametrize(
    ("deviation", "outcome"),
    [(4.9, "reproduced"), (5.1, "undecided"), (19.9, "undecided"), (20.1, "not reproduced")],
)
@pytest.mark.parametrize("number", [theory.COSINE, theory.SHARE])
def test_theory_needs_both_closed_forms(number, deviation, outcome):
    runs = changed(made_up("theory", True), "steep", **{number: lambda _: deviation})
    assert load("theory").judge(runs).outcome == outcome


def better(values, rng):
    """The same numbers, a fifth larger."""

    def one(value):
        return 1.2 * value * (1 + 0.01 * rng.normal())

    return {name: tuple(map(one, v)) if isinstance(v, tuple) else one(v) for name, v in values.items()}


PANELS = {
    "panel-control-v1": ("nap-switch", ()),
    "panel-minatar": ("chain-switch", ("chain-plain", "chain-reset")),
    "panel-warm-start": ("projected", ("plain",)),
}


@pytest.mark.parametrize("name", PANELS)
def test_any_single_method_that_is_ahead_refutes_a_panel(name):
    ours, extra = PANELS[name]
    module = __import__(f"runs.experiments.{name.replace('-', '_')}", fromlist=["METHODS"])
    prefix = "chain-" if name == "panel-minatar" else ""
    runs = made_up(name, True)
    of_ours = {(run.world, run.seed): run.values for run in runs if run.arm == ours}
    assert load(name).judge(runs).outcome == "reproduced"
    for other in (*extra, *(prefix + method for method in module.METHODS)):
        rng = np.random.default_rng(1)
        overtaken = [
            Measured(run.arm, run.world, run.seed, better(of_ours[run.world, run.seed], rng))
            if run.arm == other
            else run
            for run in runs
        ]
        assert load(name).judge(overtaken).outcome == "not reproduced", other


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_is_seldom_reproduced_if_one_method_differs_by_chance_alone(name):
    """All others are far behind. Where there are several environments, in the first."""
    ours, rival = PANELS[name][0], "chain-redo" if name == "panel-minatar" else "redo"
    outcomes = []
    for k in range(100):
        again = {run.seed: run.values for run in reversed(made_up(name, True, 1_000 + k)) if run.arm == ours}
        runs = made_up(name, True, k)
        runs = [
            Measured(run.arm, run.world, run.seed, again[run.seed]) if run.arm == rival else run
            for run in runs
            if run.world == runs[0].world
        ]
        outcomes.append(load(name).judge(runs).outcome)
    assert outcomes.count("reproduced") <= 7  # one-sided 2.5 %: 8 or more of 100 has a probability below 1 %


def test_one_method_ahead_in_one_environment_or_level_in_most_leaves_a_panel_undecided():
    runs = made_up("panel-control-v1", True)
    worlds = list(dict.fromkeys(run.world for run in runs))
    by = {(run.arm, run.world, run.seed): run.values for run in runs}
    swap = {"nap-switch": "redo", "redo": "nap-switch"}
    ahead = [
        Measured(run.arm, run.world, run.seed, by[swap.get(run.arm, run.arm), run.world, run.seed])
        if run.world == worlds[0]
        else run
        for run in runs
    ]
    level = [
        Measured(run.arm, run.world, run.seed, by["nap-switch", run.world, run.seed])
        if run.arm == "redo" and run.world != worlds[0]
        else run
        for run in runs
    ]
    for one in (ahead, level):
        assert load("panel-control-v1").judge(one).outcome == "undecided"


GROKS = {panel_grokking.ARRIVAL: 4_000.0, panel_grokking.END: 1.0}
NEVER = {panel_grokking.ARRIVAL: math.inf, panel_grokking.END: 0.1}
LATE, CLOSE = {panel_grokking.EVENT: 3_200.0}, {panel_grokking.EVENT: 2_500.0}
UNDECIDED = [
    ({"fire": GROKS}, 1), ({"low": GROKS}, 2), ({"l2-init": GROKS}, 1),  # a few of another arm grok
    ({"fire": {**GROKS, **LATE}}, 5), ({"fire": LATE}, 1), ({"fire": {panel_grokking.EVENT: math.inf}}, 1),
    ({"rewarmed": NEVER}, 1), ({"rewarmed": {panel_grokking.TRAINED: 0.98}}, 1),
    ({"rewarmed": {panel_grokking.ARRIVAL: 2_000.0}}, 1),  # before it is re-warmed
    ({"rewarmed": {panel_grokking.END: 0.1}}, 2),  # it groks and forgets
    ({"low": {panel_grokking.END: 0.1}, "rewarmed": {panel_grokking.END: 1.0}}, 5),  # an interval without width
]  # fmt: skip
DECIDED = [
    *(({arm: GROKS}, 3, "not reproduced") for arm in ("low", *panel_grokking.AT_TRIGGER, *panel_grokking.THROUGHOUT)),
    ({"rewarmed": NEVER}, 3, "not reproduced"), ({"fire": CLOSE}, 5, "reproduced"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "seeds", "outcome"), [*DECIDED, *((changes, seeds, "undecided") for changes, seeds in UNDECIDED)]
)
def test_panel_grokking_decides_by_all_that_its_rule_names(changes, seeds, outcome):
    """Of an effect as claimed, change some numbers of an arm, for the first so many seeds."""
    runs = made_up("panel-grokking", True)
    first = sorted({run.seed for run in runs})[:seeds]
    altered = [
        Measured(run.arm, run.world, run.seed, {**run.values, **changes.get(run.arm, {})}) if run.seed in first else run
        for run in runs
    ]
    assert panel_grokking.judge(runs).outcome == "reproduced"
    assert panel_grokking.judge(altered).outcome == outcome
