"""Every rule on three made-up data sets: the effect, no effect, the reverse.

The numbers are those that a rule reads, for every run of a plan. "No effect" is made in two ways: every arm has the
numbers of one and the same arm, and all numbers are dealt out to the arms at random.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from runs.experiments import (
    continual_control_v1,
    control_published_v1,
    fig2_left,
    fig2_right,
    fig3,
    fig4_features,
    fig8,
    fig11,
    high_utd_pilot,
    panel_grokking,
    theory,
)
from runs.experiments.shared import atari, chains, levels, warm_start
from runs.experiments.throughput import SPEED
from runs.sweeps.experiment import Job, Measured, load, names, plan


class Case(NamedTuple):
    """How the numbers of a run are made up."""

    values: Callable[[Job, bool, np.random.Generator], dict]
    """of a job, with the effect or with its reverse; the generator draws the noise of its seed"""
    scale: str = "laptop"
    reverse: str = "not reproduced"
    alike: str = ""
    """why equal arms may be called reproduced: the claim is that there is no difference"""


def dealt(rng, mean, spread=0.02):
    return float(mean * (1 + spread * rng.normal()))


def fig2_left_values(job, effect, rng):
    groks = ("projected" in job.arm) == effect
    return {fig2_left.ARRIVAL: dealt(rng, 3_000) if groks else math.inf, fig2_left.END: 0.99 if groks else 0.1}


def fig2_right_values(job, effect, rng):
    groks = ("scale-decay" in job.arm) == effect
    return {
        fig2_right.ARRIVAL: dealt(rng, 2_000) if groks else math.inf,
        fig2_right.END: 0.99 if groks else dealt(rng, 0.2),
    }


def fig3_values(job, effect, rng):
    groks = ("fig3-0.01-" in job.arm) == effect
    return {fig3.END: 1.0 if groks else 0.1, fig3.BEFORE: 0.01, fig3.AFTER: dealt(rng, 0.17 if groks else 0.012)}


def fig4_values(job, effect, rng):
    held, share = job.arm.split("-")[1:]
    lossless = (held == "projected") == effect
    accuracy = 68.0 - (0.0 if lossless else {"0.1": 5.0, "0.5": 3.0, "1": 0.0}[share])
    return {warm_start.ACCURACY: accuracy + 0.3 * rng.normal(), warm_start.GAP: rng.normal()}


def fig4_features_values(job, effect, rng):
    more = ("projected" in job.arm) == effect
    return {name: dealt(rng, 0.08 if more else 0.04) for name in fig4_features.METRICS.values()}


def fig5_left_values(job, effect, rng):
    wide = ("slow" in job.arm) == effect
    return {warm_start.ACCURACY: 60.0 + rng.normal(), warm_start.GAP: (4.0 if wide else 0.3) + 0.2 * rng.normal()}


def fig5_right_values(job, effect, rng):
    low = job.arm.endswith("unconstrained-single") == effect
    return {warm_start.ACCURACY: (60.0 if low else 65.0) + 0.3 * rng.normal(), warm_start.GAP: rng.normal()}


def fig8_values(job, effect, rng):
    groks = ("scale-decay" in job.arm) == effect
    return {
        fig8.MEMORISED: dealt(rng, 40),
        fig8.END: dealt(rng, (12 if effect else 60) if groks else 38),
        fig8.ACCURACY: 1.0 if groks else 0.2,
    }


def fig9_values(job, effect, rng):
    behind = not job.arm.endswith("whole") and ("unconstrained" in job.arm) == effect
    return {warm_start.ACCURACY: (62.0 if behind else 67.0) + 0.3 * rng.normal()}


def fig13_values(job, effect, rng):
    gap = 0.0 if job.arm.endswith("whole") else {"slow-x1": 5.0, "slow-x3": 3.0, "slow-x10": 1.0}[job.arm]
    if not effect and gap:
        gap = 6.0 - gap
    return {warm_start.ACCURACY: 60.0 - gap + 0.3 * rng.normal()}


def atari_values(rng, mean):
    return {name: dealt(rng, mean, 0.05) for name in (atari.SCORE, atari.TENTH)}


def fig6_left_values(job, effect, rng):
    order = ["constant", "reset", "early-stop", "reset-cycles", "four-cycles", "one-cycle"]
    place = order.index(job.arm) if effect else -order.index(job.arm)
    return atari_values(rng, -5.0 * (2 + len(job.world)) + 3.0 * place)  # of either sign


def high_utd_minatar_values(job, effect, rng):
    level = 1.5 if (job.arm == "cyclic-annealed") == effect else 1.0
    return {atari.TENTH: dealt(rng, (1.0 + len(job.world)) * level, 0.05)}


def high_utd_pilot_values(job, effect, rng):
    one = job.arm.endswith("-1")
    of_game = 10.0 * (1 + len(job.world))
    middle, late = (1.0, 1.5 if one else 1.1) if effect else (1.0, 1.1 if one else 1.6)
    return {
        high_utd_pilot.MIDDLE: dealt(rng, of_game * middle, 0.05),
        high_utd_pilot.LATE: dealt(rng, of_game * late, 0.05),
    }


def ahead(best, low=1.0, high=1.5):
    """Returns of an arm that is ahead of all others, or behind them."""

    def values(job, effect, rng):
        of_game = 1.0 + len(job.world)
        return atari_values(rng, of_game * (high if (job.arm == best) == effect else low))

    return values


def several_ahead(*better):
    """Returns in which these arms are ahead of all others, the last of them not of the one before."""

    def values(job, effect, rng):
        of_game = 1.0 + len(job.world)
        return atari_values(rng, of_game * (1.5 if (job.arm in better) == effect else 1.0))

    return values


def fig11_values(job, effect, rng):
    loses = (job.arm == "reset") == effect
    before = [dealt(rng, 10.0 * (1 + len(job.world))) for _ in range(3)]
    return {
        fig11.BEFORE: tuple(before),
        fig11.AFTER: tuple(dealt(rng, one * (0.3 if loses else 0.7)) for one in before),
    }


def chain_values(job, effect, rng):
    rewarmed = job.arm in ("chain-switch", "chain-cusum")
    level = 10.0 if job.arm == "chain-fresh" else 8.0 if rewarmed == effect else 4.0
    return {chains.ENDS: tuple(dealt(rng, level) for _ in range(6))}


def control_values(job, effect, rng):
    base = {"plain": 90.0, "oracle": 250.0, "nap-constant": 150.0, "nap-switch": 220.0}.get(job.arm, 160.0)
    if not effect and job.arm != "oracle":
        base = 300.0 - base
    return {levels.SCORE: dealt(rng, base, 0.05), levels.LATE: dealt(rng, base)}


def published_values(job, effect, rng):
    mean, error = control_published_v1.PUBLISHED[job.arm, job.world]
    return {levels.SCORE: mean + (0.0 if effect else 100.0) + error * rng.normal()}


def speed_values(job, effect, rng):
    slower = 0.95 if effect else 0.6
    return {SPEED: dealt(rng, 1_000 * (slower if job.arm.endswith("nap") else 1.0), 0.005)}


def panel_grokking_values(job, effect, rng):
    groks = (job.arm == panel_grokking.OURS) == effect
    acts = job.arm in (panel_grokking.OURS, *panel_grokking.AT_TRIGGER)
    return {
        panel_grokking.EVENT: 2_200.0 + 100 * (job.seed % 4) if acts else math.inf,
        panel_grokking.TRAINED: 1.0,
        panel_grokking.ARRIVAL: dealt(rng, 3_200) if groks else math.inf,
        panel_grokking.END: 0.99 if groks else dealt(rng, 0.1, 0.2),
    }


def panel_minatar_values(job, effect, rng):
    level = 10.0 if job.arm == "chain-fresh" else 8.0 if (job.arm == "chain-switch") == effect else 4.0
    return {chains.ENDS: tuple(dealt(rng, level) for _ in range(6))}


def panel_warm_start_values(job, effect, rng):
    return {warm_start.ACCURACY: (67.0 if (job.arm == "projected") == effect else 62.0) + 0.3 * rng.normal()}


def theory_values(job, effect, rng):
    of_scale = dealt(rng, 300) if job.arm != "steep" else 2.0
    return {
        theory.COSINE: abs(rng.normal()) if effect else 300.0,
        theory.SHARE: abs(rng.normal()),
        theory.WITHOUT: of_scale if effect else abs(rng.normal()),
    }


EQUAL = "the claim is that two things are about equal"
CASES = {
    "chain-of-games": Case(chain_values),
    "continual-control-v1": Case(control_values),
    "control-published-v1": Case(published_values, "paper", alike=EQUAL),
    "fig10": Case(several_ahead("cyclic-annealed-8M", "cyclic-annealed-20M", "cyclic-annealed"), "paper"),
    "fig11": Case(fig11_values, "paper"),
    "fig13": Case(fig13_values),
    "fig2-left": Case(fig2_left_values),
    "fig2-right": Case(fig2_right_values),
    "fig3": Case(fig3_values),
    "fig4": Case(fig4_values),
    "fig4-features": Case(fig4_features_values),
    "fig4-resnet": Case(fig4_values, scale="paper"),
    "fig5-left": Case(fig5_left_values),
    "fig5-right": Case(fig5_right_values),
    "fig6-left": Case(fig6_left_values, "paper"),
    "fig6-right": Case(ahead("cyclic"), "paper"),
    "fig7-left": Case(ahead("cyclic-annealed"), "paper"),
    "fig7-right": Case(ahead("cyclic-annealed"), "paper"),
    "fig8": Case(fig8_values),
    "fig9": Case(fig9_values),
    "high-utd-minatar": Case(high_utd_minatar_values),
    "high-utd-pilot": Case(high_utd_pilot_values),
    "panel-control-v1": Case(control_values),
    "panel-grokking": Case(panel_grokking_values),
    "panel-minatar": Case(panel_minatar_values),
    "panel-warm-start": Case(panel_warm_start_values),
    "permutations": Case(chain_values),
    "theory": Case(theory_values, alike="every number is itself a distance from a closed form"),
    "throughput": Case(speed_values, alike=EQUAL),
}


def made_up(name, effect, seed=0):
    """Every run of the plan, with numbers of its own."""
    case, rng = CASES[name], np.random.default_rng(seed)
    jobs = plan(load(name), case.scale, Path("logs"))
    return [Measured(job.arm, job.world, job.seed, case.values(job, effect, rng)) for job in jobs]


def test_every_experiment_has_a_case_and_its_numbers_are_those_that_it_measures():
    assert set(CASES) == set(names())
    for name in names():
        experiment = load(name)
        assert CASES[name].scale in experiment.judged
        assert all(run.values.keys() == experiment.measures.keys() for run in made_up(name, True)), name


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_effect_is_reproduced_and_its_reverse_is_not(name):
    for seed in range(20):
        assert load(name).judge(made_up(name, True, seed)).outcome == "reproduced", seed
        assert load(name).judge(made_up(name, False, seed)).outcome == "not reproduced", seed


@pytest.mark.parametrize("name", sorted(name for name, case in CASES.items() if not case.alike))
def test_the_same_arm_under_every_name_is_not_reproduced(name):
    """Whichever arm it is, with the effect or with its reverse in the numbers."""
    for effect in (True, False):
        runs = made_up(name, effect)
        by_arm = {}
        for run in runs:
            by_arm.setdefault(run.arm, {})[run.world, run.seed] = run.values
        for one in by_arm.values():
            alike = [Measured(run.arm, run.world, run.seed, one[run.world, run.seed]) for run in runs]
            assert load(name).judge(alike).outcome != "reproduced"


@pytest.mark.parametrize(
    "name", sorted(name for name, case in CASES.items() if not (case.alike or name.startswith("panel-")))
)
def test_numbers_dealt_out_at_random_are_seldom_reproduced(name):
    """Numbers change places between the arms of the same task and seed: differences between arms are chance.

    In a panel one arm would have to be the best of all by chance, so this test could hardly fail: test_measures.py has
    another one for panels.
    """
    rng = np.random.default_rng(1)
    runs, outcomes = made_up(name, True), []
    for _ in range(100):
        blocks = {}
        for k, run in enumerate(runs):
            blocks.setdefault((run.world, run.seed), []).append(k)
        values = [run.values for run in runs]
        for places in blocks.values():
            for to, of in zip(places, rng.permutation(places), strict=True):
                values[to] = runs[of].values
        dealt_out = [Measured(run.arm, run.world, run.seed, v) for run, v in zip(runs, values, strict=True)]
        outcomes.append(load(name).judge(dealt_out).outcome)
    assert outcomes.count("reproduced") <= 7  # one-sided 2.5 %: 8 or more of 100 has a probability below 1 %


def test_control_has_environments_in_which_the_effect_shows():
    verdict = continual_control_v1.judge(made_up("continual-control-v1", True))
    assert all(world in verdict.reason for world in levels.WORLDS)
