"""Continual control: a new offset of the observation at each level. Which agents keep learning?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from runs.analysis.statistics import Scores, bootstrap, iqm
from runs.experiments.shared.levels import LATE, NAMES, SCORE, WORLDS, arms, by_arm, late, levels, score
from runs.experiments.shared.rules import Column, column, decide, difference
from runs.sweeps.experiment import Experiment, Flags, Measured, Scale, Verdict

OURS, OTHERS = "nap-switch", ("plain", "nap-constant")


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    scores, ends = column(runs, SCORE), column(runs, LATE)
    worlds = list(dict.fromkeys(run.world for run in runs))
    ahead = {world: [difference(in_world(scores, world), OURS, other) for other in OTHERS] for world in worlds}
    signs = {world: [one.sign for one in differences] for world, differences in ahead.items()}
    holds = [world for world in worlds if min(signs[world]) > 0]
    fails = [world for world in worlds if min(signs[world]) < 0]
    rows = [[world, *row] for world in worlds for row in table(in_world(scores, world), in_world(ends, world))]
    said = "; ".join(f"{world}: {one[0]} and {one[1]}" for world, one in ahead.items())
    return Verdict(
        decide(2 * len(holds) > len(worlds) and not fails, 2 * len(fails) > len(worlds)),
        f"{OURS} minus {OTHERS[0]} and minus {OTHERS[1]}, {said}",
        (
            "environment",
            "arm",
            "n",
            "score: IQM [95 %]",
            "(arm - plain) / (oracle - plain), of means [95 %]",
            "mean of the last fifth of levels 2 on",
        ),
        rows,
    )


def in_world(values: Column, world: str) -> dict[str, dict[tuple[str, int], float]]:
    """The values of one environment."""
    return {arm: {key: v for key, v in runs.items() if key[0] == world} for arm, runs in values.items()}


def lead(arm: Scores, plain: Scores, oracle: Scores) -> np.ndarray:
    """(arm - plain) / (oracle - plain), of means over seeds.

    0 is plain training, 1 a fresh agent per level; nan if these are equal.
    """
    ours, low, high = (np.asarray(one[0]).mean(axis=-1) for one in (arm, plain, oracle))
    return np.divide(ours - low, high - low, out=np.full_like(ours, np.nan), where=high != low)


def table(scores: Column, ends: Column) -> list[list[str]]:
    """A row per arm of one environment."""
    rows = []
    columns = {arm: [np.array(list(runs.values()))] for arm, runs in scores.items()}
    for arm, one in columns.items():
        low, high = bootstrap(iqm, one)
        share = lead(one, columns["plain"], columns["oracle"])
        least, most = bootstrap(lead, one, columns["plain"], columns["oracle"])
        of_lead = "–" if arm in ("plain", "oracle") or math.isnan(share) else f"{share:.2f} [{least:.2f}, {most:.2f}]"
        end = np.mean(list(ends[arm].values()))
        rows.append([arm, str(len(one[0])), f"{iqm(one):.1f} [{low:.1f}, {high:.1f}]", of_lead, f"{end:.1f}"])
    return rows


TUNED: Flags = {"learning_rate": 3e-4}
"""for all arms: of 3e-4, 1e-3 and 3e-3 the best mean rank on the first level, for the plain network at a constant rate
and with a decay, with LayerNorm, and projected at a constant rate and with a decay (40 iterations, three environments,
seeds 101 and 102, which no scale has)"""


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
    curve="charts/iteration_return",
)
