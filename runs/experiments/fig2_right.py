"""Fig. 2, right: with norm layers, projection needs scale decay, or the network does not generalise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runs.experiments.shared.rules import column, decide, first_reaching, last
from runs.sweeps.experiment import Arm, Experiment, Measured, Scale, Verdict, guessed_gpu_hours

ARRIVAL, END = "first update at 99 %", "test accuracy at the end"
SYMMETRIC = 0.203
"""test accuracy of a network that knows x + y = y + x and the training pairs, where the paper's arm stays"""


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    first, ends = column(runs, ARRIVAL), column(runs, END)
    grok = [
        step < math.inf and ends[arm][key] >= 0.9
        for arm, steps in first.items()
        if "scale-decay" in arm
        for key, step in steps.items()
    ]
    low = [end for arm, values in ends.items() if "plain" in arm for end in values.values()]
    stall, near = sum(end < 0.5 for end in low), sum(abs(end - SYMMETRIC) <= 0.05 for end in low)
    rows = []
    for arm, steps in first.items():
        for (world, seed), step in steps.items():
            when = "never" if step == math.inf else f"{step:,.0f}"
            rows.append([arm, str(seed), when, f"{ends[arm][world, seed]:.3f}"])
    return Verdict(
        decide(
            all(grok) and stall == len(low),
            sum(grok) <= len(grok) / 2 or stall <= len(low) / 2,
        ),
        f"{sum(grok)} of {len(grok)} runs with scale decay reach 99 % and end at 90 % or more, {stall} of {len(low)} "
        f"without it end below 50 %; {near} of these {len(low)} end within 5 points of 20.3 %, where the paper's "
        "stay",
        ("arm", "seed", "first update at 99 %", "test accuracy at the end"),
        rows,
    )


EXPERIMENT = Experiment(
    name="fig2-right",
    source="after Fig. 2 (right) of Lyle et al. 2025, in which accuracy stays at 20.3 % for 1M updates",
    claim="With norm layers, projection every update and embeddings of scale 0.07, a network whose gains decay groks "
    "and keeps what it found, and one whose gains do not ends below 50 %.",
    rule="Reproduced if every run with scale decay reaches a test accuracy of 99 % and ends at 90 % or more, and "
    "every run without it ends below 50 %. Not reproduced if at most half of the runs of either kind do. Undecided "
    "otherwise.",
    arms=[
        Arm(name, "grokking", name)
        for scale in ("plain", "scale-decay")
        for decay in ("1", "10")
        for name in (f"fig2-right-projected-{scale}-wd{decay}",)
    ],
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="1 min on two cores",
            flags={"total_updates": 200},
            arms=("fig2-right-projected-plain-wd1", "fig2-right-projected-scale-decay-wd1"),
        ),
        "laptop": Scale(
            seeds=(1, 2, 3, 4, 5, 6, 7, 8),
            estimate="35 min on two cores",
            arms=("fig2-right-projected-plain-wd1", "fig2-right-projected-scale-decay-wd1"),
        ),
        "paper": Scale(
            seeds=(1, 2, 3),
            estimate=guessed_gpu_hours(12, 1_000_000, 250),
            flags={"total_updates": 1_000_000},
            gpus=0.25,
        ),
    },
    measures={
        ARRIVAL: lambda run: first_reaching(run, "test/accuracy", 0.99),
        END: lambda run: last(run, "test/accuracy"),
    },
    judge=judge,
    note="Seeds 1 to 3 were seen before the rule was written, and are counted. A first page judged seeds 4 to 8 alone "
    "and claimed a stall near 20 %, which they do not show. A run has 6,000 updates at scale laptop. The decay of the "
    "weights is set together with that of the gains.",
    curve="test/accuracy",
    log_steps=True,
)
