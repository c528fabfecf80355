"""Every experiment: the scripts accept its commands, and its rule decides as written."""

import contextlib
import dataclasses
import importlib
import io
import json
import math
import re
from pathlib import Path

import pytest

from runs.experiments import fig2_left, fig2_right, fig3, throughput
from runs.experiments.shared import chains
from runs.experiments.shared.atari import SCORE, TENTH
from runs.experiments.shared.warm_start import ACCURACY, GAP, since_switch
from runs.recording import config_to_dict, parse
from runs.sweeps.experiment import Measured, Result, guessed_gpu_hours, load, names, plan
from runs.training.branching import Branch


def script(name):
    return importlib.import_module(f"agents.{name}")


@pytest.mark.parametrize("name", names())
def test_smoke_commands_are_accepted_by_the_scripts(name, tmp_path):
    for job in plan(load(name), "smoke", tmp_path):
        module, errors = script(job.script), io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                args = parse(module.Args, module.PRESETS, job.command()[2:])
        except SystemExit:
            pytest.fail(f"{job.id}: {errors.getvalue()}")
        assert args.seed == job.seed and args.exp_name == job.arm and args.directory == job.directory
        assert dataclasses.replace(args, branch=None) == flags_of(job)
        if job.parent is not None:
            Branch(args)  # refuses flags that cannot change
        job.directory.mkdir(parents=True)
        # A branch takes its flags from there.
        (job.directory / "config.json").write_text(json.dumps(config_to_dict(args)))


def flags_of(job):
    """The flags of a job's run: its preset's, or those of the run that it branches from, and what it changes."""
    module = script(job.script)
    start = module.PRESETS[job.preset].args if job.parent is None else flags_of(job.parent)
    flags = {name: value for name, value in job.flags.items() if name != "device"}  # no GPU here
    return changed(start, {**flags, "directory": job.directory})


def changed(args, flags):
    """Flags over a preset, without the slow command line. Unknown names and conflicts raise."""
    groups = {}
    for name, value in flags.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {}).update({rest: value} if rest else {"": value})
    values = {group: one[""] if "" in one else changed(getattr(args, group), one) for group, one in groups.items()}
    for name, value in values.items():
        default = getattr(args, name)
        assert default is None or type(value) is type(default) or (type(value), type(default)) == (int, float), name
    return dataclasses.replace(args, **values)


@pytest.mark.parametrize("name", names())
def test_flags_of_all_scales_exist_and_do_not_conflict(name):
    experiment = load(name)
    for scale in experiment.scales:
        for job in plan(experiment, scale, Path("logs")):
            args = flags_of(job)
            assert args.seed == job.seed
            if job.branch_step is not None:  # the parent keeps this step, and what the branch changes comes later
                assert job.branch_step % flags_of(job.parent).keep_checkpoints_every == 0
                assert job.branch_step < getattr(args.rewarm, "at_update", math.inf)


@pytest.mark.parametrize("name", names())
def test_claim_rule_and_estimates_are_given(name):
    experiment = load(name)
    assert experiment.name == name and experiment.claim.endswith(".") and experiment.rule.endswith(".")
    assert {"smoke", "paper"} <= set(experiment.scales) and "smoke" not in experiment.judged
    assert all(re.search(r"\d|an hour", scale.estimate) for scale in experiment.scales.values())
    assert {"reproduced", "undecided"} <= set(re.findall(r"[Rr]eproduced|[Uu]ndecided", experiment.rule.lower()))


def test_gpu_hours_match_the_planned_runs():
    assert guessed_gpu_hours(8, 1_800_000, 500) == (
        "2.0 GPU-hours if 8 runs of 1,800,000 updates make 500 a second, 4 on a GPU"
    )
    for name in names():
        experiment = load(name)
        for label, scale in experiment.scales.items():
            if runs := re.search(r"if (\d+) runs of", scale.estimate):
                assert int(runs.group(1)) == len(plan(experiment, label, Path("logs"))), (name, label)
            assert ("GPU-hours" in scale.estimate) == (scale.gpus > 0), (name, label)


def test_ids_are_unique_and_stable():
    ids = [job.id for name in names() for scale in load(name).scales for job in plan(load(name), scale, Path("logs"))]
    assert len(set(ids)) == len(ids)
    assert "fig3/laptop/fig3-0.01-early-beta0.95-s7" in ids and "high-utd-minatar/laptop/low--Breakout-s11" in ids


# thresholds of rules; that each tells an effect from none is in test_every_rule.py


def runs_of(arm, *columns):
    """A run per seed; each column is (name, values by seed)."""
    rows = zip(*(values for _, values in columns), strict=True)
    return [
        Measured(arm, "", seed, dict(zip((name for name, _ in columns), row, strict=True)))
        for seed, row in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("projected", "free", "ends", "outcome"),
    [
        (2_000, math.inf, 0.95, "reproduced"),
        (2_000, 3_000, 0.95, "reproduced"),
        (2_000, 3_000, 0.008, "undecided"),  # they reach it, and do not stay
        (2_000, 2_000, 0.95, "undecided"),
        (3_000, 2_000, 0.95, "not reproduced"),
        (math.inf, math.inf, 0.1, "not reproduced"),
    ],
)
def test_fig2_left(projected, free, ends, outcome):
    runs = [
        run
        for rate in ("0.01", "0.001")
        for held, decay, first in (
            ("projected", "0.01", projected),
            ("projected", "1", projected),
            ("free", "0.01", free),
        )
        for run in runs_of(
            f"fig2-left-{held}-lr{rate}-wd{decay}",
            (fig2_left.ARRIVAL, [first, first]),
            (fig2_left.END, [ends if held == "projected" else 0.1] * 2),
        )
    ]
    verdict = load("fig2-left").judge(runs)
    assert verdict.outcome == outcome and "of 8 projected runs" in verdict.reason
    with pytest.raises(ValueError, match=r"seed 1 has no unconstrained run at rate 0\.01"):
        load("fig2-left").judge([one for one in runs if (one.arm, one.seed) != ("fig2-left-free-lr0.01-wd0.01", 1)])


@pytest.mark.parametrize(
    ("decayed", "plain", "outcome"),
    [
        ((1.0, 1.0, 1.0), (0.2, 0.2, 0.1), "reproduced"),
        ((1.0, 1.0, 1.0), (0.2, 0.2, 0.6), "undecided"),
        ((1.0, 0.95, 1.0), (0.2, 0.2, 0.2), "undecided"),
        ((1.0, 0.95, 0.95), (0.2, 0.2, 0.2), "not reproduced"),
        ((1.0, 1.0, 1.0), (0.6, 0.6, 0.2), "not reproduced"),
    ],
)
def test_fig2_right(decayed, plain, outcome):
    def arm(name, ends):
        first = [1_000.0 if end >= 0.99 else math.inf for end in ends]
        return runs_of(f"fig2-right-projected-{name}-wd1", (fig2_right.ARRIVAL, first), (fig2_right.END, ends))

    verdict = load("fig2-right").judge(arm("scale-decay", decayed) + arm("plain", plain))
    assert verdict.outcome == outcome
    near = sum(end == 0.2 for end in plain)
    assert f"{near} of these 3 end within 5 points of 20.3 %" in verdict.reason


@pytest.mark.parametrize(("end", "outcome"), [(0.9, "reproduced"), (0.89, "undecided")])
def test_fig2_right_counts_runs_that_stay_above_90_percent(end, outcome):
    def arm(name, first, ends):
        return runs_of(f"fig2-right-projected-{name}-wd1", (fig2_right.ARRIVAL, [first] * 3), (fig2_right.END, ends))

    runs = arm("scale-decay", 1_000.0, (1.0, 1.0, end)) + arm("plain", math.inf, (0.2, 0.2, 0.2))
    assert load("fig2-right").judge(runs).outcome == outcome


@pytest.mark.parametrize(
    ("high", "low", "rise", "other", "outcome"),
    [
        ((1.0, 1.0, 1.0), (0.1, 0.1, 0.1), 0.2, 0.015, "reproduced"),
        ((1.0, 1.0, 1.0), (0.1, 0.1, 0.1), 0.2, 0.03, "not reproduced"),  # the share rises after 1e-3, too
        ((1.0, 1.0, 1.0), (0.1, 0.1, 0.1), 0.015, 0.01, "not reproduced"),
        ((1.0, 0.5, 1.0), (0.1, 0.1, 0.1), 0.2, 0.015, "undecided"),
        ((1.0, 0.5, 0.5), (0.1, 0.1, 0.1), 0.2, 0.015, "not reproduced"),
        ((1.0, 1.0, 1.0), (0.1, 0.8, 0.8), 0.2, 0.015, "not reproduced"),
    ],
)
def test_fig3(high, low, rise, other, outcome):
    def arm(peak, beta2, ends, after):
        three = [0.01] * len(ends)
        columns = (fig3.END, ends), (fig3.BEFORE, three), (fig3.AFTER, [after] * len(ends))
        return runs_of(f"fig3-{peak}-early-beta{beta2}", *columns)

    runs = arm("0.01", "0.999", high, rise) + arm("0.001", "0.999", low, other)
    other_beta2 = arm("0.01", "0.95", (0.1,) * 3, 0.0) + arm("0.001", "0.95", (1.0,) * 3, 0.9)  # decides nothing
    assert load("fig3").judge(runs + other_beta2).outcome == outcome


def test_fig3_measures_the_activations_alone():
    def result(**flips):
        tags = {f"plasticity/flipped_fraction/blocks.0.{name}": curve for name, curve in flips.items()}
        return Result("a", "", 9, {"rewarm": {"at_update": 5000}}, tags)

    before = [(4400, 9.0), (4600, 0.01), (5000, 0.03), (5100, 0.0), (5200, 0.2)]
    run = result(relu=before, attention_out=[(4600, 0.5), (5200, 0.9)])
    assert fig3.before(run) == pytest.approx(0.02) and fig3.after(run) == 0.2
    with pytest.raises(ValueError, match="largest flipped share after is undefined for a, seed 9"):
        fig3.after(result(relu=[*before, (5300, math.nan)]))


@pytest.mark.parametrize(
    ("projected", "half", "free", "outcome"),
    [
        ((0.5, 0.7, 0.6), (0.1, 0.2, 0.1), (2.5, 2.9, 2.6), "reproduced"),
        ((1.5, 1.7, 1.6), (0.1, 0.2, 0.1), (2.5, 2.9, 2.6), "undecided"),
        ((0.95, 1.03, 0.98), (0.1, 0.2, 0.1), (4.5, 4.9, 4.6), "reproduced"),  # 1 point is the threshold
        ((0.98, 1.05, 1.02), (0.1, 0.2, 0.1), (4.5, 4.9, 4.6), "undecided"),
        ((1.95, 2.03, 1.98), (0.1, 0.2, 0.1), (4.5, 4.9, 4.6), "undecided"),  # 2 points are the other one
        ((1.98, 2.05, 2.02), (0.1, 0.2, 0.1), (4.5, 4.9, 4.6), "not reproduced"),
        ((0.5, 0.7, 0.6), (1.1, 1.2, 1.1), (2.5, 2.9, 2.6), "undecided"),
        ((0.5, 0.7, 0.6), (0.1, 0.2, 0.1), (0.5, 2.8, 0.6), "undecided"),
        ((-0.9, -1.0, -0.95), (0.1, 0.2, 0.1), (-0.5, -0.55, -0.52), "not reproduced"),  # neither has a gap
        ((2.5, 2.7, 2.6), (0.1, 0.2, 0.1), (4.5, 4.9, 4.6), "not reproduced"),
        ((0.5, 0.7, 0.6), (0.1, 0.2, 0.1), (-1.5, -1.3, -1.6), "not reproduced"),
        ((0.5, 0.7, 0.6), (0.1, 0.2, 0.1), (2.5, 2.7, 2.6), "undecided"),  # equal differences have no interval
    ],
)
def test_fig4(projected, half, free, outcome):
    def arm(name, gaps):
        return runs_of(f"fig4-{name}", (ACCURACY, [70 - gap for gap in gaps]), (GAP, [9.0] * 3))

    runs = arm("projected-0.1", projected) + arm("projected-0.5", half) + arm("projected-1", (0, 0, 0))
    runs += arm("unconstrained-0.1", free) + arm("unconstrained-0.5", (1, 1, 1)) + arm("unconstrained-1", (0, 0, 0))
    assert load("fig4").judge(runs).outcome == outcome
    with pytest.raises(ValueError, match=r"fig4-projected-1 has no seed 2, which fig4-projected-0\.1 has"):
        load("fig4").judge([one for one in runs if (one.arm, one.seed) != ("fig4-projected-1", 2)])


def test_feature_movement_is_the_mean_over_layers_and_times_after_the_switch():
    curves = {"a": [(50, 9.0), (100, 9.0), (150, 1.0), (200, 2.0)], "b": [(150, 3.0), (200, 6.0)]}
    run = Result("x", "", 1, {"phase_updates": 100}, {f"plasticity/delta_c/{k}": c for k, c in curves.items()})
    assert since_switch(run, "delta_c") == 3.0
    with pytest.raises(ValueError, match="x, seed 1, measured no delta_a after the switch"):
        since_switch(run, "delta_a")


def test_fig5_left():
    def outcome(slow, fast):
        arms = {"slow": slow, "fast": fast}
        runs = [
            run
            for name, gaps in arms.items()
            for run in runs_of(f"fig5-left-{name}-features", (ACCURACY, [60.0] * 3), (GAP, gaps))
        ]
        return load("fig5-left").judge(runs).outcome

    high, low = (2.0, 2.3, 2.1), (0.5, 0.6, 0.5)
    assert outcome(high, low) == "reproduced" and outcome(low, high) == "not reproduced"
    assert outcome((0.5, 2.2, 0.4), low) == "undecided"
    assert outcome((4.0, 4.5, 4.3), (1.5, 1.6, 1.5)) == "undecided"  # the gap does not close


def test_fig5_right():
    def outcome(cusum, single, free, plain):
        pairs = zip(
            ("projected-cusum", "projected-single", "unconstrained-cusum", "unconstrained-single"),
            (cusum, single, free, plain),
            strict=True,
        )
        runs = [run for arm, a in pairs for run in runs_of(f"fig5-right-{arm}", (ACCURACY, a), (GAP, (0, 0, 0)))]
        return load("fig5-right").judge(runs).outcome

    better, worse, low = (70.0, 71.0, 70.0), (60.0, 61.0, 60.5), (50.0, 50.5, 50.0)
    assert outcome(better, better, better, worse) == "reproduced"
    assert outcome(better, better, low, worse) == "not reproduced"
    assert outcome(better, better, (50, 70, 60), worse) == "undecided"


def test_fig9():
    def outcome(projected, free):
        def arm(name, gaps):
            return runs_of(f"fig9-{name}", (ACCURACY, [70 - gap for gap in gaps]))

        whole = arm("projected-whole", (0, 0, 0)) + arm("unconstrained-whole", (0, 0, 0))
        return load("fig9").judge(arm("projected", projected) + arm("unconstrained", free) + whole).outcome

    assert outcome((0.5, 0.6, 0.5), (3.0, 3.2, 3.3)) == "reproduced"
    assert outcome((0.5, 0.6, 0.5), (0.5, 0.6, 0.5)) == "undecided"  # no gap that could be closed
    assert outcome((1.8, 1.9, 1.8), (3.0, 3.2, 3.3)) == "not reproduced"
    assert outcome((0.0, 2.0, 1.0), (3.0, 3.2, 3.3)) == "undecided"
    # the interval is 0.025 wide on either side
    assert outcome((1.46, 1.47, 1.48), (3.0, 3.2, 3.3)) == "reproduced"
    assert outcome((1.49, 1.5, 1.51), (3.0, 3.2, 3.3)) == "undecided"
    assert outcome((1.52, 1.53, 1.54), (3.0, 3.2, 3.3)) == "not reproduced"
    assert outcome((-2.9, -3.0, -2.8), (-1.0, -1.2, -1.1)) == "not reproduced"  # the unconstrained one has no gap
    assert outcome((0.5, 0.5, 0.5), (3.0, 3.2, 3.3)) == "undecided"  # an interval without width


def test_fig13_is_about_the_gap_and_not_about_the_accuracy():
    def outcome(gap, high_gap, gain):
        """A second peak ten times the first raises the accuracy with and without a warm start by `gain`."""
        runs = []
        for peak, gaps, more in (("x1", gap, 0.0), ("x3", gap, 0.0), ("x10", high_gap, gain)):
            runs += runs_of(f"slow-{peak}", (ACCURACY, [60 + more - one for one in gaps]))
            runs += runs_of(f"slow-{peak}-whole", (ACCURACY, [60 + more] * 3))
        return load("fig13").judge(runs).outcome

    assert outcome((2.0, 2.3, 2.1), (0.5, 0.6, 0.5), 0.0) == "reproduced"
    assert outcome((2.0, 2.3, 2.1), (2.1, 2.2, 2.2), 10.0) == "undecided"
    assert outcome((0.5, 0.6, 0.5), (2.0, 2.3, 2.1), 10.0) == "not reproduced"
    assert outcome((-1.0, -1.1, -1.2), (-3.0, -3.2, -3.1), 0.0) == "not reproduced"  # there is no gap to close


def test_games_are_the_sample_where_a_claim_is_about_games():
    """Two games with many seeds are two pairs: however far an arm is ahead in both, its interval is wide."""

    def run(arm, level, k, game, seed):
        score = -50.0 + 10.0 * (k + 1) * (level + 0.01 * seed + (0.03 * k**2 if arm == "cyclic" else 0.0))
        return Measured(arm, game, seed, {SCORE: score, TENTH: 0.0})

    def runs(games, seeds):
        levels = {"cyclic": 2.0, "baseline": 1.0, "low": 1.1}
        return [
            run(arm, level, k, game, seed)
            for arm, level in levels.items()
            for k, game in enumerate(games)
            for seed in range(seeds)
        ]

    judge = load("fig6-right").judge
    assert "(n = 2 pairs)" in judge(runs(("A", "B"), 30)).reason
    verdict = judge(runs("ABCDEFGH", 2))
    assert verdict.outcome == "reproduced" and "(n = 8 pairs)" in verdict.reason and len(verdict.rows) == 24


def test_high_utd_minatar():
    def outcome(annealed, baseline, low):
        scores = {"cyclic-annealed": annealed, "baseline": baseline, "low": low, "cyclic": baseline}
        runs = [
            Measured(arm, world, seed, {TENTH: factor * (value + 0.01 * seed * (1 + value))})
            for arm, value in scores.items()
            for world, factor in (("Pong", 1.0), ("Breakout", 100.0))
            for seed in (1, 2)
        ]
        return load("high-utd-minatar").judge(runs).outcome

    assert outcome(2.0, 1.0, 0.5) == "reproduced"
    assert outcome(1.0, 1.0, 0.5) == "undecided"
    assert outcome(1.0, 2.0, 0.5) == outcome(1.0, 0.5, 2.0) == "not reproduced"


@pytest.mark.parametrize("name", ["chain-of-games", "permutations"])
def test_chains(name):
    def runs(plain, switch, cusum):
        ends = {"chain-plain": plain, "chain-switch": switch, "chain-cusum": cusum, "chain-fresh": 10.0}
        return [
            Measured(
                arm, "w", seed, {chains.ENDS: (5.0, end, end + (0.01 * seed * end if arm != "chain-fresh" else 0.0))}
            )
            for arm, end in ends.items()
            for seed in (1, 2, 3)
        ]

    judge = load(name).judge
    assert judge(runs(5.0, 8.0, 8.0)).outcome == "reproduced"
    assert judge(runs(5.0, 8.0, 5.0)).outcome == "undecided"
    assert judge(runs(5.0, 8.0, 3.0)).outcome == "not reproduced"
    with pytest.raises(ValueError, match="a fresh agent whose return is above 0"):
        judge([*runs(5.0, 8.0, 8.0)[:-1], Measured("chain-fresh", "w", 3, {chains.ENDS: (5.0, 0.0, 1.0)})])


def test_end_returns_of_visits():
    curves = {
        "shift/task": [(0, 0.0), (100, 1.0), (200, 0.0)],
        "charts/episodic_return": [(95, 5.0), (150, 0.0), (195, 7.0), (291, 8.0), (295, 10.0)],
    }
    assert chains.end_returns(Result("a", "", 1, {"total_timesteps": 300}, curves)) == (5.0, 7.0, 9.0)
    assert chains.share((5.0, 7.0, 9.0), (0.0, 14.0, 9.0)) == 0.75


def test_throughput():
    def outcome(dqn, ppo):
        speeds = {"dqn": 100.0, "dqn-nap": dqn, "ppo": 1000.0, "ppo-nap": ppo}
        runs = [run for arm, speed in speeds.items() for run in runs_of(arm, (throughput.SPEED, [speed] * 3))]
        return load("throughput").judge(runs).outcome

    assert outcome(95.0, 950.0) == "reproduced"
    assert outcome(85.0, 950.0) == "undecided"
    assert outcome(95.0, 750.0) == "not reproduced"
    curve = [(1, 1.0), (2, 1.0), (3, 5.0), (4, 7.0)]
    assert throughput.speed(Result("dqn", "", 1, {}, {"charts/SPS": curve})) == 6.0
