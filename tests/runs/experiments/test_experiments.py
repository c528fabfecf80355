"""Every experiment: the scripts accept its commands, and its rule decides as written."""

import contextlib
import dataclasses
import importlib
import io
import math
import re
from pathlib import Path

import pytest

from runs.recording import parse
from runs.sweeps.experiment import Result, guessed_gpu_hours, load, names, plan


def script(name):
    return importlib.import_module(f"agents.{name}")


@pytest.mark.parametrize("name", names())
def test_smoke_commands_are_accepted_by_the_scripts(name):
    for job in plan(load(name), "smoke", Path("logs")):
        module, errors = script(job.script), io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                args = parse(module.Args, module.PRESETS, job.command()[2:])
        except SystemExit:
            pytest.fail(f"{job.id}: {errors.getvalue()}")
        assert args.seed == job.seed and args.exp_name == job.arm and args.directory == job.directory
        assert args == changed(module.PRESETS[job.preset].args, {**job.flags, "directory": job.directory})


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
def test_flags_of_other_scales_exist_and_do_not_conflict(name):
    experiment = load(name)
    for scale in set(experiment.scales) - {"smoke"}:
        for job in plan(experiment, scale, Path("logs")):
            module = script(job.script)
            flags = {name: value for name, value in job.flags.items() if name != "device"}  # no GPU here
            assert changed(module.PRESETS[job.preset].args, flags).seed == job.seed


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
    assert "fig3/laptop/fig3-0.01-offset5000-s4" in ids and "fig6-high-utd/laptop/low--Breakout-s11" in ids


# every rule and outcome, with invented numbers


def run(arm, seed=1, world="", config=None, **curves):
    return Result(arm, world, seed, config or {}, {t.replace("__", "/"): c for t, c in curves.items()})


def grokking(arm, seed, accuracies):
    return run(arm, seed, test__accuracy=[(1000 * (k + 1), a) for k, a in enumerate(accuracies)])


@pytest.mark.parametrize(
    ("projected", "free", "outcome"),
    [
        ([0.5, 0.95], [0.1, 0.1], "reproduced"),
        ([0.5, 0.95], [0.95, 0.95], "undecided"),
        ([0.5, 0.5], [0.1, 0.1], "not reproduced"),
    ],
)
def test_fig2_left(projected, free, outcome):
    results = [
        grokking(f"fig2-left-{held}-lr{rate}-wd{decay}", seed, projected if held == "projected" else free)
        for rate in ("0.01", "0.001")
        for held, decay in (("projected", "0.01"), ("projected", "1"), ("free", "0.01"))
        for seed in (4, 5)
    ]
    verdict = load("fig2-left").judge(results)
    assert verdict.outcome == outcome and "of 8 projected runs" in verdict.reason


@pytest.mark.parametrize(
    ("decayed", "plain", "outcome"),
    [
        ((1.0, 1.0, 1.0), (0.2, 0.2, 0.2), "reproduced"),
        ((1.0, 1.0, 1.0), (0.2, 0.2, 0.6), "undecided"),
        ((1.0, 0.9, 1.0), (0.2, 0.2, 0.2), "undecided"),
        ((1.0, 0.9, 0.9), (0.2, 0.2, 0.2), "not reproduced"),
        ((1.0, 1.0, 1.0), (0.6, 0.6, 0.2), "not reproduced"),
    ],
)
def test_fig2_right(decayed, plain, outcome):
    results = [grokking("fig2-right-projected-scale-decay-wd1", s, [a]) for s, a in enumerate(decayed)]
    results += [grokking("fig2-right-projected-plain-wd1", s, [a]) for s, a in enumerate(plain)]
    assert load("fig2-right").judge(results).outcome == outcome


@pytest.mark.parametrize(
    ("high", "low", "rise", "outcome"),
    [
        ((1.0, 1.0), (0.1, 0.1), 0.2, "reproduced"),
        ((1.0, 1.0), (0.1, 0.1), 0.02, "undecided"),
        ((1.0, 0.5), (0.1, 0.1), 0.2, "not reproduced"),
        ((1.0, 1.0), (0.1, 0.8), 0.2, "not reproduced"),
    ],
)
def test_fig3(high, low, rise, outcome):
    def one(peak, seed, accuracy, after):
        flips = [(4400, 9.0), (4600, 0.01), (5000, 0.01), (5100, 0.0), (5200, after)]
        return run(
            f"fig3-{peak}-offset5000", seed, config={"rewarm": {"at_update": 5000}},
            test__accuracy=[(9000, accuracy)], plasticity__flipped_fraction__mlp=flips,
        )  # fmt: skip

    results = [one("0.01", s, a, rise) for s, a in enumerate(high)] + [
        one("0.001", s, a, 0.03) for s, a in enumerate(low)
    ]
    verdict = load("fig3").judge(results)
    assert verdict.outcome == outcome and f"at least {rise / 0.01:.1f}-fold" in verdict.reason
    for accuracy, after, what in (
        (math.nan, 0.2, "the last test/accuracy"),
        (1.0, math.nan, "the largest share after"),
    ):
        with pytest.raises(ValueError, match=f"{what} is undefined for fig3-0.01-offset5000, seed 9"):
            load("fig3").judge([*results, one("0.01", 9, accuracy, after)])


def warm(arm, gaps, accuracies=(0.7, 0.7, 0.7)):
    return [
        run(arm, seed, test__gap=[(1, 5.0), (2, gap)], test__accuracy=[(2, accuracy)])
        for seed, (gap, accuracy) in enumerate(zip(gaps, accuracies, strict=True))
    ]


@pytest.mark.parametrize(
    ("projected", "free", "outcome"),
    [
        ((0.5, 0.7, 0.6), (2.5, 2.8, 2.6), "reproduced"),
        ((1.5, 1.7, 1.6), (2.5, 2.8, 2.6), "undecided"),
        ((0.5, 0.7, 0.6), (0.5, 2.8, 0.6), "undecided"),
        ((2.5, 2.7, 2.6), (4.5, 4.8, 4.6), "not reproduced"),
        ((0.5, 0.7, 0.6), (-1.5, -1.3, -1.6), "not reproduced"),
        ((0.5, 0.7, 0.6), (2.5, 2.7, 2.6), "undecided"),  # equal differences have no interval
    ],
)
def test_fig4(projected, free, outcome):
    results = warm("fig4-projected-0.1", projected) + warm("fig4-unconstrained-0.1", free)
    assert load("fig4").judge(results).outcome == outcome


@pytest.mark.parametrize(
    ("name", "larger", "smaller"),
    [
        ("fig5-left", "fig5-left-slow-features", "fig5-left-fast-features"),
        ("fig13", "fig5-left-slow-features", "fig13-slow-features-x10"),
    ],
)
def test_fig5_left_and_fig13(name, larger, smaller):
    judge = load(name).judge
    high, low = (2.0, 2.2, 2.1), (0.5, 0.6, 0.5)
    assert judge(warm(larger, high) + warm(smaller, low)).outcome == "reproduced"
    assert judge(warm(larger, low) + warm(smaller, high)).outcome == "not reproduced"
    assert judge(warm(larger, (0.5, 2.2, 0.4)) + warm(smaller, low)).outcome == "undecided"


def test_fig5_right():
    judge = load("fig5-right").judge

    def arms(cusum, single, free, plain):
        pairs = zip(("projected-cusum", "projected-single", "unconstrained-cusum"), (cusum, single, free), strict=True)
        plain_runs = warm("fig5-right-unconstrained-single", (0, 0, 0), plain)
        return sum((warm(f"fig5-right-{arm}", (0, 0, 0), a) for arm, a in pairs), plain_runs)

    better, worse, low = (0.7, 0.71, 0.7), (0.6, 0.61, 0.605), (0.5, 0.505, 0.5)
    assert judge(arms(better, better, better, worse)).outcome == "reproduced"
    assert judge(arms(better, better, low, worse)).outcome == "not reproduced"
    assert judge(arms(better, better, (0.5, 0.7, 0.6), worse)).outcome == "undecided"


def test_fig9():
    judge = load("fig9").judge
    assert judge(warm("fig9-projected", (0.5, 0.6, 0.5))).outcome == "reproduced"
    assert judge(warm("fig9-projected", (1.5, 1.6, 1.5))).outcome == "not reproduced"
    assert judge(warm("fig9-projected", (0.0, 2.0, 1.0))).outcome == "undecided"


@pytest.mark.parametrize("name", ["fig6-high-utd", "fig7"])
def test_fig6_and_fig7(name):
    def results(annealed, baseline, low):
        scores = {"cyclic-annealed": annealed, "baseline": baseline, "low": low, "cyclic": baseline}
        config = {"total_timesteps": 100}
        return [
            run(arm, seed, world, config, charts__episodic_return=[(50, 1e6), (95, factor * (value + 0.01 * seed))])
            for arm, value in scores.items()
            for world, factor in (("Pong", 1.0), ("Breakout", 100.0))
            for seed in (1, 2)
        ]

    judge = load(name).judge
    assert judge(results(2.0, 1.0, 0.5)).outcome == "reproduced"
    assert judge(results(1.0, 1.0, 0.5)).outcome == "undecided"
    assert judge(results(1.0, 2.0, 0.5)).outcome == "not reproduced"
    assert judge(results(1.0, 0.5, 2.0)).outcome == "not reproduced"
    assert judge(results(1.0, 0.5, 1.0)).outcome == "undecided"
    assert len(judge(results(2.0, 1.0, 0.5)).rows) == 8


@pytest.mark.parametrize("name", ["chain-of-games", "permutations"])
def test_chains(name):
    def results(plain, switch, cusum):
        ends = {"chain-plain": plain, "chain-switch": switch, "chain-cusum": cusum, "chain-fresh": 10.0}
        return [
            run(
                arm,
                seed,
                "w",
                {"total_timesteps": 300},
                shift__task=[(0, 0.0), (100, 1.0), (200, 0.0)],
                charts__episodic_return=[(99, 5.0), (150, 0.0), (195, end + 0.01 * seed), (295, end)],
            )
            for arm, end in ends.items()
            for seed in (1, 2, 3)
        ]

    judge = load(name).judge
    assert judge(results(5.0, 8.0, 8.0)).outcome == "reproduced"
    assert judge(results(5.0, 8.0, 5.0)).outcome == "undecided"
    assert judge(results(5.0, 8.0, 3.0)).outcome == "not reproduced"


def test_throughput():
    def results(dqn, ppo):
        return [
            run(arm, seed, charts__SPS=[(1, 1.0), (2, 1.0), (3, speed), (4, speed)])
            for arm, speed in {"dqn": 100.0, "dqn-nap": dqn, "ppo": 1000.0, "ppo-nap": ppo}.items()
            for seed in (1, 2, 3)
        ]

    judge = load("throughput").judge
    assert judge(results(95.0, 950.0)).outcome == "reproduced"
    assert judge(results(85.0, 950.0)).outcome == "undecided"
    assert judge(results(95.0, 750.0)).outcome == "not reproduced"
