"""Continual control: a new offset of the observation at each level. Which agents keep learning?"""

from __future__ import annotations

from collections.abc import Sequence

from runs.experiments.shared.levels import (
    HEADS,
    LATE,
    NAMES,
    SCORE,
    TUNED,
    WORLDS,
    arms,
    by_arm,
    in_world,
    late,
    levels,
    score,
    table,
)
from runs.experiments.shared.rules import column, decide, difference
from runs.sweeps.experiment import Experiment, Measured, Scale, Verdict

OURS, OTHERS = "nap-switch", ("plain", "nap-constant")


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    scores, ends = column(runs, SCORE), column(runs, LATE)
    worlds = list(dict.fromkeys(run.world for run in runs))
    ahead = {world: [difference(in_world(scores, world), OURS, other) for other in OTHERS] for world in worlds}
    signs = {world: [one.sign for one in differences] for world, differences in ahead.items()}
    holds = [world for world in worlds if min(signs[world]) > 0]
    fails = [world for world in worlds if min(signs[world]) < 0]
    said = "; ".join(f"{world}: {one[0]} and {one[1]}" for world, one in ahead.items())
    return Verdict(
        decide(2 * len(holds) > len(worlds) and not fails, 2 * len(fails) > len(worlds)),
        f"{OURS} minus {OTHERS[0]} and minus {OTHERS[1]}, {said}",
        HEADS,
        [[world, *row] for world in worlds for row in table(in_world(scores, world), in_world(ends, world))],
    )


EXPERIMENT = Experiment(
    name="continual-control-v1",
    source="ours; the protocol of Muppidi et al. 2024 (arXiv:2405.16642) as aligned by Tang et al. 2025 "
    "(arXiv:2506.00592)",
    claim="When a new offset is added to the observation at each level, PPO that is projected and re-warmed at the "
    "change does better than plain PPO, and than the same projected network at a constant rate.",
    rule="Score: mean over all iterations of all levels of the mean return of an iteration's episodes. In each "
    "environment nap-switch minus plain and minus nap-constant, paired by seed, with Student's 95 % interval. "
    "Reproduced if both intervals are above 0 in more than half of the environments and in none one is below 0; not "
    "reproduced if one is below 0 in more than half; undecided otherwise. An interval without width decides nothing.",
    arms=arms(*NAMES),
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="2 min on two cores",
            flags=levels(2, 10),
            by_arm=by_arm(10),
            worlds={"CartPole": WORLDS["CartPole"]},
        ),
        "laptop": Scale(
            seeds=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
            estimate="2 h on two cores; half of it is seeds 1 to 5",
            flags={**levels(4, 60), **TUNED},
            by_arm=by_arm(60),
            worlds=WORLDS,
        ),
        "paper": Scale(
            seeds=(1, 2, 3, 4, 5, 6),
            estimate="3 h on two cores",
            flags=levels(10, 200),
            by_arm=by_arm(200),
            worlds={"CartPole": WORLDS["CartPole"]},  # the published rate of 1e-3 for all arms
        ),
    },
    measures={SCORE: score, LATE: late},
    judge=judge,
    note="66 of the 270 runs at scale laptop had been made and looked at before, with the same seeds, arms and rule.",
    curve="charts/iteration_return",
)
