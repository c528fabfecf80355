"""Fig. 2, left: with projection the network generalises at any weight decay; without, it does so late or never."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runs.experiments.shared.rules import column, decide, first_reaching, last
from runs.sweeps.experiment import Arm, Experiment, Measured, Result, Scale, Verdict, guessed_gpu_hours

RATES = ("0.01", "0.001")
ARRIVAL, END = "first update at 90 %", "test accuracy at the end"


def arrival(result: Result) -> float:
    """The first evaluation at a test accuracy of 90 %, inf without one."""
    return first_reaching(result, "test/accuracy", 0.9)


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    first, ends = column(runs, ARRIVAL), column(runs, END)
    sooner, later, total, reached, stayed = 0, 0, 0, 0, 0
    for rate in RATES:
        free = first[f"fig2-left-free-lr{rate}-wd0.01"]
        for decay in ("0.01", "1"):
            for pair, step in first[f"fig2-left-projected-lr{rate}-wd{decay}"].items():
                if pair not in free:
                    raise ValueError(f"seed {pair[1]} has no unconstrained run at rate {rate}")
                total, reached = total + 1, reached + (step < math.inf)
                stayed += ends[f"fig2-left-projected-lr{rate}-wd{decay}"][pair] >= 0.9
                sooner, later = sooner + (step < free[pair]), later + (step > free[pair])
    rows = [
        [
            arm,
            str(len(steps)),
            ", ".join("never" if s == math.inf else f"{s:,.0f}" for s in steps.values()),
            ", ".join(f"{end:.3f}" for end in ends[arm].values()),
        ]
        for arm, steps in first.items()
    ]
    return Verdict(
        decide(sooner == reached == stayed == total, reached <= total / 2 or later > total / 2),
        f"{reached} of {total} projected runs reach 90 %, {stayed} end there, {sooner} reach it before the "
        f"unconstrained run of their rate and seed with decay 0.01, {later} after it or never while that one does",
        ("arm", "n", "first update at 90 %, by seed", "test accuracy at the end, by seed"),
        rows,
    )


EXPERIMENT = Experiment(
    name="fig2-left",
    source="Fig. 2 (left) of Lyle et al. 2025",
    claim="Projected every 100 updates, a network without norm layers groks whatever the weight decay, and sooner "
    "than an unconstrained one with little decay.",
    rule="Per run, the first evaluation at a test accuracy of 90 %. Reproduced if every projected run (rates 1e-2 "
    "and 1e-3, decays 0.01 and 1) has one, earlier than the unconstrained run of the same rate and seed with decay "
    "0.01, and ends at 90 % or more. Not reproduced if at most half of the projected runs have one, or more than "
    "half have it later, or never while that run does. Undecided otherwise.",
    arms=[
        Arm(name, "grokking", name)
        for held in ("free", "projected")
        for rate in (*RATES, "0.0001")
        for decay in ("0.01", "1")
        for name in (f"fig2-left-{held}-lr{rate}-wd{decay}",)
    ],
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="1 min on two cores",
            flags={"total_updates": 200},
            arms=("fig2-left-free-lr0.01-wd0.01", "fig2-left-projected-lr0.01-wd0.01"),
        ),
        "laptop": Scale(
            seeds=(4, 5, 6, 7, 8),
            estimate="100 min on two cores",
            flags={"total_updates": 12_000},
            arms=[
                f"fig2-left-{arm}"
                for rate in RATES
                for arm in (f"free-lr{rate}-wd0.01", f"projected-lr{rate}-wd0.01", f"projected-lr{rate}-wd1")
            ],
        ),
        "paper": Scale(
            seeds=(1, 2, 3),
            estimate=guessed_gpu_hours(36, 1_000_000, 250),
            flags={"total_updates": 1_000_000},
            gpus=0.25,
        ),
    },
    measures={ARRIVAL: arrival, END: lambda run: last(run, "test/accuracy")},
    judge=judge,
    curve="test/accuracy",
    log_steps=True,
)
