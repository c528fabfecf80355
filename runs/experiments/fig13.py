"""Fig. 13: with slow features, a second peak above the first closes more of the gap."""

from __future__ import annotations

from collections.abc import Sequence

from runs.analysis.statistics import student_interval
from runs.experiments.shared.rules import Difference, all_above, column, difference
from runs.experiments.shared.warm_start import (
    ACCURACY,
    ALONE,
    REGIME,
    SEEDS,
    SMOKE,
    accuracy,
    behind,
    paper,
    rows,
    whole,
)
from runs.sweeps.experiment import Arm, Experiment, Measured, Scale, Verdict

PRESETS = {
    "x1": "fig5-left-slow-features",
    "x3": "fig13-slow-features-x3",
    "x10": "fig13-slow-features-x10",
}


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    accuracies = column(runs, ACCURACY)
    gaps = {f"slow-{peak}": behind(accuracies, f"slow-{peak}", f"slow-{peak}-whole") for peak in PRESETS}
    first = gaps["slow-x1"].values()
    gap = Difference(*student_interval(list(first)), len(first))
    less = difference(gaps, "slow-x1", "slow-x10")
    return Verdict(
        all_above([gap, less]),
        f"with equal peaks the gap with slow features is {gap} points; a second peak ten times the first makes it "
        f"smaller by {less}",
        ("arm", "n", "accuracy, %", "behind all data from the start, points"),
        rows(accuracies, gaps),
    )


EXPERIMENT = Experiment(
    name="fig13",
    source="Fig. 13 of Lyle et al. 2025",
    claim="With slow features a second peak ten times the first leaves a smaller gap to a network that has all data "
    "from the start.",
    rule="Gap: test accuracy at the end of the same arm, with the same peaks, that has 100 % in both phases, minus "
    "that of the arm. Gap with equal peaks minus gap with the second ten times as high, by seed. Reproduced if the "
    "95 % intervals of the former and of the difference are above 0, not reproduced if one is below, undecided "
    "otherwise.",
    arms=[
        arm
        for peak, preset in PRESETS.items()
        for arm in (Arm(f"slow-{peak}", "warm_start", preset), whole(f"slow-{peak}-whole", preset))
    ],
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="1 min on two cores",
            flags={**SMOKE, **ALONE},
            arms=("slow-x1", "slow-x10", "slow-x10-whole"),
        ),
        "laptop": Scale(seeds=SEEDS, estimate="50 min on two cores", flags={**REGIME, **ALONE}),
        "paper": paper(6),
    },
    measures={ACCURACY: accuracy},
    judge=judge,
    curve="test/accuracy",
)
