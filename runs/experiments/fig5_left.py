"""Fig. 5, left: the gap closes only if the features may change fast."""

from __future__ import annotations

from collections.abc import Sequence

from runs.analysis.statistics import student_interval
from runs.experiments.shared.rules import column, decide, difference
from runs.experiments.shared.warm_start import ACCURACY, GAP, REGIME, SEEDS, SMOKE, accuracy, gap, paper, rows
from runs.sweeps.experiment import Arm, Experiment, Measured, Scale, Verdict

ASSIGNMENTS = ("constant", "fast-features", "slow-features", "even-ratio-abs")
SLOW, FAST = "fig5-left-slow-features", "fig5-left-fast-features"


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    gaps = column(runs, GAP)
    more = difference(gaps, SLOW, FAST)
    mean, half = student_interval(list(gaps[FAST].values()))
    return Verdict(
        decide(more.sign > 0 and mean <= 1, more.sign < 0 or mean > 2),
        f"the gap with fast features is {mean:.2f} ± {half:.2f} points (n = {len(gaps[FAST])}), that with slow ones "
        f"larger by {more}",
        ("arm", "n", "accuracy, %", "gap, points"),
        rows(column(runs, ACCURACY), gaps),
    )


EXPERIMENT = Experiment(
    name="fig5-left",
    source="after Fig. 5 (left) of Lyle et al. 2025; the reference, a fresh network with the same rates, is ours",
    claim="The gap to a fresh network closes where the features may move fast, and less where their rate is a tenth.",
    rule="Gap: test accuracy at the end of a fresh network with the same rates of its layers, minus that of the arm. "
    "Reproduced if the mean gap with fast features is at most 1 point, and that with slow ones larger by seed (95 % "
    "interval above 0). Not reproduced if the former exceeds 2 points or the interval is below 0. Undecided otherwise.",
    arms=[Arm(f"fig5-left-{name}", "warm_start", f"fig5-left-{name}") for name in ASSIGNMENTS],
    scales={
        "smoke": Scale(seeds=(1,), estimate="1 min on two cores", flags=SMOKE),
        "laptop": Scale(seeds=SEEDS, estimate="50 min on two cores", flags=REGIME),
        "paper": paper(4, control=True),
    },
    measures={ACCURACY: accuracy, GAP: gap},
    judge=judge,
    curve="test/accuracy",
)
