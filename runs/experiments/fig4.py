"""Fig. 4: with projection and re-warming, a warm-started network is as good as a fresh one."""

from __future__ import annotations

from collections.abc import Sequence

from runs.analysis.statistics import student_interval
from runs.experiments.shared.rules import decide, difference, mean_rows, measured
from runs.experiments.shared.warm_start import REGIME, SMOKE, gap, paper
from runs.sweeps.experiment import Arm, Experiment, Result, Scale, Verdict

PROJECTED, FREE = "fig4-projected-0.1", "fig4-unconstrained-0.1"


def judge(results: Sequence[Result]) -> Verdict:
    """The rule below."""
    gaps = measured(results, gap)
    warm = measured(results, lambda run: 100 * run.scalars["test/accuracy"][-1][1])
    mean, _ = student_interval(list(gaps[PROJECTED].values()))
    more = difference(gaps, FREE, PROJECTED)
    return Verdict(
        decide(mean <= 1 and more.sign > 0, mean > 2 or more.sign < 0),
        f"the projected network's gap is {mean:.2f} points, the unconstrained one's larger by {more} points",
        ("arm", "n", "gap, points", "accuracy of the warm network, %"),
        mean_rows(gaps, warm),
    )


EXPERIMENT = Experiment(
    name="fig4",
    source="Fig. 4 of Lyle et al. 2025",
    claim="Re-warmed when the data grow from 10 %, a projected network ends as well as a fresh one; an unconstrained "
    "one does not.",
    rule="Gap: test accuracy of the fresh minus the warm network at the end. Reproduced if the mean gap of the "
    "projected network is at most 1 point and the unconstrained one's is larger by seed (95 % interval above 0). Not "
    "reproduced if the projected gap exceeds 2 points or the interval is below 0. Undecided otherwise.",
    arms=[
        Arm(name, "warm_start", name)
        for fraction in ("0.1", "0.5", "1")
        for held in ("projected", "unconstrained")
        for name in (f"fig4-{held}-{fraction}",)
    ],
    scales={
        "smoke": Scale(seeds=(1,), estimate="1 min on two cores", flags=SMOKE, arms=(PROJECTED, FREE)),
        "laptop": Scale(seeds=(6, 7, 8, 9, 10), estimate="20 min on two cores", flags=REGIME, arms=(PROJECTED, FREE)),
        "paper": paper(6),
    },
    judge=judge,
    curve="test/accuracy",
)
