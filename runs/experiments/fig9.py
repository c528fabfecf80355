"""Fig. 9: re-warming helps even if it is out of step with the data."""

from __future__ import annotations

from collections.abc import Sequence

from runs.analysis.statistics import student_interval
from runs.experiments.shared.rules import Difference, column, decide, difference
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

PROJECTED, FREE = "fig9-projected", "fig9-unconstrained"


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    accuracies = column(runs, ACCURACY)
    gaps = {arm: behind(accuracies, arm, f"{arm}-whole") for arm in (PROJECTED, FREE)}
    mean, half = student_interval(list(gaps[PROJECTED].values()))
    free = Difference(*student_interval(list(gaps[FREE].values())), len(gaps[FREE]))
    more = difference(gaps, FREE, PROJECTED)
    return Verdict(
        decide(
            half > 0 and mean + half <= 1.5 and free.sign > 0 and more.sign > 0,
            mean - half > 1.5 or free.sign < 0 or more.sign < 0,
        ),
        f"the projected network is {mean:.2f} ± {half:.2f} points behind its arm with all data from the start (n = "
        f"{len(gaps[PROJECTED])}), the unconstrained one {free} points, which is {more} more",
        ("arm", "n", "accuracy, %", "behind all data from the start, points"),
        rows(accuracies, gaps),
    )


EXPERIMENT = Experiment(
    name="fig9",
    source="Fig. 9 of Lyle et al. 2025",
    claim="Five cycles of re-warming, out of step with the growth of the data, close the gap of a projected network, "
    "and not that of an unconstrained one.",
    rule="Gap: test accuracy at the end of the same arm, with the same cycles, that has 100 % in both phases, minus "
    "that of the arm, by seed. Reproduced if the 95 % interval of the projected network's mean gap ends at 1.5 "
    "points or below, that of the unconstrained one's is above 0, and so is that of their difference by seed. Not "
    "reproduced if the first begins above 1.5 points or one of the others is below 0. Undecided otherwise.",
    arms=[arm for name in (PROJECTED, FREE) for arm in (Arm(name, "warm_start", name), whole(f"{name}-whole", name))],
    scales={
        "smoke": Scale(seeds=(1,), estimate="1 min on two cores", flags={**SMOKE, **ALONE}),
        "laptop": Scale(seeds=SEEDS, estimate="35 min on two cores", flags={**REGIME, **ALONE}),
        "paper": paper(4),
    },
    measures={ACCURACY: accuracy},
    judge=judge,
    curve="test/accuracy",
)
