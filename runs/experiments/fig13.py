"""Fig. 13: with slow features, a second peak above the first closes more of the gap."""

from __future__ import annotations

from collections.abc import Sequence

from runs.experiments.shared.rules import all_above, difference, mean_rows, measured
from runs.experiments.shared.warm_start import REGIME, SMOKE, gap, paper
from runs.sweeps.experiment import Arm, Experiment, Result, Scale, Verdict

SAME, HIGHER = "fig5-left-slow-features", "fig13-slow-features-x10"


def judge(results: Sequence[Result]) -> Verdict:
    """The rule below."""
    gaps = measured(results, gap)
    less = difference(gaps, SAME, HIGHER)
    return Verdict(
        all_above([less]),
        f"a second peak ten times the first makes the gap with slow features smaller by {less} points",
        ("arm", "n", "gap, points"),
        mean_rows(gaps),
    )


EXPERIMENT = Experiment(
    name="fig13",
    source="Fig. 13 of Lyle et al. 2025",
    claim="With slow features the gap needs a second peak ten times the first to close.",
    rule="Gap with equal peaks minus gap with the second ten times as high, by seed. Reproduced if its 95 % interval "
    "is above 0, not reproduced if it is below, undecided otherwise.",
    arms=[Arm(name, "warm_start", name) for name in (SAME, "fig13-slow-features-x3", HIGHER)],
    scales={
        "smoke": Scale(seeds=(1,), estimate="1 min on two cores", flags=SMOKE),
        "laptop": Scale(seeds=(6, 7, 8), estimate="30 to 50 min on two cores", flags=REGIME),
        "paper": paper(3),
    },
    judge=judge,
    curve="test/accuracy",
)
