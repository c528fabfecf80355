"""Continual control as published: does plain PPO score what Tang et al. report, and a fresh agent per level as well?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from runs.experiments.shared.levels import SCORE, WORLDS, arms, levels, score
from runs.experiments.shared.rules import column, decide
from runs.sweeps.experiment import Experiment, Measured, Scale, Verdict

PUBLISHED = {
    ("plain", "CartPole"): (61.8, 6.9),
    ("oracle", "CartPole"): (299.9, 6.0),
    ("plain", "Acrobot"): (-372.7, 3.3),
    ("oracle", "Acrobot"): (-125.7, 8.3),
}
"""mean and standard error of 6 seeds: Table 1 of Tang et al. 2025, columns Vanilla and Oracle"""


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    scores = column(runs, SCORE)
    rows, near = [], []
    for (arm, world), (theirs, error) in PUBLISHED.items():
        ours = [value for (one, _), value in scores[arm].items() if one == world]
        if len(ours) < 6:
            raise ValueError(f"{arm} in {world} has {len(ours)} seeds, and the rule needs 6")
        own_error = stdev(ours) / math.sqrt(len(ours))
        reach = 1.96 * math.hypot(error, own_error)
        near.append(abs(fmean(ours) - theirs) <= reach)
        rows.append(
            [
                world, arm, str(len(ours)), f"{fmean(ours):.1f} ± {own_error:.1f}", f"{theirs} ± {error}",
                f"{round(fmean(ours) - theirs, 1) + 0.0:+.1f}", f"{reach:.1f}", "yes" if near[-1] else "no",
            ]
        )  # fmt: skip
    gaps = [
        fmean(v for (one, _), v in scores["oracle"].items() if one == world)
        - fmean(v for (one, _), v in scores["plain"].items() if one == world)
        for world in ("CartPole", "Acrobot")
    ]
    return Verdict(
        decide(all(near), not any(near)),
        f"{sum(near)} of {len(near)} published numbers are within reach; a fresh agent per level is ahead of plain PPO "
        f"by {gaps[0]:.1f} on CartPole and {gaps[1]:.1f} on Acrobot",
        (
            "environment",
            "arm",
            "n",
            "ours ± standard error",
            "published ± standard error",
            "difference",
            "reach",
            "within",
        ),
        rows,
    )


EXPERIMENT = Experiment(
    name="control-published-v1",
    source="Table 1 of Tang et al. 2025 (arXiv:2506.00592), protocol of Muppidi et al. 2024 (arXiv:2405.16642)",
    claim="On continual CartPole and Acrobot, plain PPO scores 61.8 and -372.7, and a fresh agent per level 299.9 and "
    "-125.7.",
    rule="Score: mean over all iterations of all levels of the mean return of an iteration's episodes. A number is "
    "within reach if our mean differs from it by at most 1.96 standard errors of the difference, of which ours comes "
    "from at least 6 seeds. Reproduced if all four are, not reproduced if none is, undecided otherwise.",
    arms=arms("plain", "oracle"),
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="1 min on two cores",
            flags=levels(2, 10),
            worlds={name: WORLDS[name] for name in ("CartPole", "Acrobot")},
        ),
        "paper": Scale(
            seeds=(1, 2, 3, 4, 5, 6),
            estimate="90 min on two cores",
            flags=levels(10, 200),
            worlds={name: WORLDS[name] for name in ("CartPole", "Acrobot")},
            folder="continual-control-v1/paper",
        ),
    },
    measures={SCORE: score},
    judge=judge,
    judged=("paper",),
    curve="charts/iteration_return",
)
