"""Fig. 2, right: with norm layers, projection needs scale decay, or attention saturates and accuracy stalls."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runs.experiments.shared.rules import decide, first_reaching, last
from runs.sweeps.experiment import Arm, Experiment, Result, Scale, Verdict, guessed_gpu_hours


def judge(results: Sequence[Result]) -> Verdict:
    """The rule below."""
    plain = [run for run in results if "plain" in run.arm]
    decayed = [run for run in results if "scale-decay" in run.arm]
    grok = sum(first_reaching(run, "test/accuracy", 0.99) < math.inf for run in decayed)
    stall = sum(last(run, "test/accuracy") < 0.5 for run in plain)
    holds = grok == len(decayed) and stall == len(plain)
    fails = grok <= len(decayed) / 2 or stall <= len(plain) / 2
    rows = []
    for run in (*plain, *decayed):
        step = first_reaching(run, "test/accuracy", 0.99)
        first = "never" if step == math.inf else f"{step:,.0f}"
        rows.append([run.arm, str(run.seed), first, f"{last(run, 'test/accuracy'):.3f}"])
    return Verdict(
        decide(holds, fails),
        f"{grok} of {len(decayed)} runs with scale decay reach 99 %, {stall} of {len(plain)} without it end below 50 %",
        ("arm", "seed", "first update at 99 %", "test accuracy at the end"),
        rows,
    )


EXPERIMENT = Experiment(
    name="fig2-right",
    source="Fig. 2 (right) of Lyle et al. 2025",
    claim="With norm layers and projection every update, accuracy stalls near the 20 % of a symmetric table unless the "
    "gains decay; with scale decay the network groks.",
    rule="Reproduced if every run with scale decay reaches a test accuracy of 99 % and every run without it ends "
    "below 50 %. Not reproduced if at most half of the runs of either kind do. Undecided otherwise.",
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
            seeds=(4, 5, 6, 7, 8),
            estimate="20 min on two cores",
            arms=("fig2-right-projected-plain-wd1", "fig2-right-projected-scale-decay-wd1"),
        ),
        "paper": Scale(
            seeds=(1, 2, 3),
            estimate=guessed_gpu_hours(12, 1_000_000, 250),
            flags={"total_updates": 1_000_000},
            gpus=0.25,
        ),
    },
    judge=judge,
    curve="test/accuracy",
    log_steps=True,
)
