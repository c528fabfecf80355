"""Continual control: other methods against loss of plasticity, on the same levels."""

from __future__ import annotations

from collections.abc import Sequence

from runs.experiments.shared.levels import (
    HEADS,
    LATE,
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
from runs.experiments.shared.panels import UNTUNED, listed
from runs.experiments.shared.rules import column, decide, difference
from runs.sweeps.experiment import Experiment, Measured, Scale, Verdict

OURS, AROUND = "nap-switch", ("plain", "oracle", "layernorm", "nap-constant", "nap-switch", "nap-cusum")
METHODS = (
    "reset-head", "shrink-and-perturb", "soft-shrink-and-perturb", "fire", "fire-cusum", "local-time", "redo",
    "continual-backprop", "weight-clipping", "weight-decay", "l2-init", "churn", "trac", "crelu",
)  # fmt: skip
"""except a full reset, which is the oracle's"""


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    scores, ends = column(runs, SCORE), column(runs, LATE)
    worlds = list(dict.fromkeys(run.world for run in runs))
    signs = {method: [difference(in_world(scores, world), OURS, method).sign for world in worlds] for method in METHODS}
    behind = [method for method, one in signs.items() if 2 * sum(s > 0 for s in one) > len(worlds) and min(one) >= 0]
    ahead = [method for method, one in signs.items() if 2 * sum(s < 0 for s in one) > len(worlds)]
    return Verdict(
        decide(len(behind) == len(METHODS), bool(ahead)),
        f"{OURS} is ahead of {len(behind)} of {len(METHODS)} methods in most environments and behind in none; "
        f"ahead of it in most environments: {', '.join(ahead) or 'none'}",
        HEADS,
        [[world, *row] for world in worlds for row in table(in_world(scores, world), in_world(ends, world))],
    )


EXPERIMENT = Experiment(
    name="panel-control-v1",
    source="ours; the protocol of Muppidi et al. 2024 (arXiv:2405.16642) as aligned by Tang et al. 2025 "
    "(arXiv:2506.00592)",
    claim="On continual control, PPO that is projected and re-warmed at the change does better than PPO with any of "
    "the other methods that the rule lists, at constants that were not tuned here.",
    rule="Score: mean over all iterations of all levels of the mean return of an iteration's episodes. In each "
    "environment nap-switch minus the method, paired by seed, with Student's 95 % interval. Reproduced if for every "
    "method the interval is above 0 in more than half of the environments and below 0 in none; not reproduced if for "
    "one it is below 0 in more than half; undecided otherwise. " + listed(METHODS),
    arms=arms(*AROUND, *METHODS),
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="2 min on two cores",
            flags=levels(2, 10),
            by_arm={name: flags for name, flags in by_arm(10).items() if name in AROUND}
            | {
                "fire-cusum": {"rewarm.burn_in": 3, "rewarm.refractory": 5},
                "continual-backprop": {"intervene.maturity": 500},
            },
            worlds={"CartPole": WORLDS["CartPole"]},
        ),
        "laptop": Scale(
            seeds=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
            estimate="3.5 h on two cores after continual-control-v1, whose runs it shares",
            flags={**levels(4, 60), **TUNED},
            by_arm={name: flags for name, flags in by_arm(60).items() if name in AROUND},
            worlds=WORLDS,
            folder="continual-control-v1/laptop",
        ),
        "paper": Scale(
            seeds=(1, 2, 3, 4, 5, 6),
            estimate="5 h on two cores after continual-control-v1",
            flags=levels(10, 200),
            by_arm={name: flags for name, flags in by_arm(200).items() if name in AROUND},
            worlds={"CartPole": WORLDS["CartPole"]},
            folder="continual-control-v1/paper",
        ),
    },
    measures={SCORE: score, LATE: late},
    judge=judge,
    note="Tuning: the learning rate is that of continual-control-v1, chosen on the first level for plain, normalised "
    f"and projected networks. {UNTUNED} At scale laptop the shared runs are not new: scores of "
    "continual-control-v1 with these seeds were known before any run of a method.",
    curve="charts/iteration_return",
)
