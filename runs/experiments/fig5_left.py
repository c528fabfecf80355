"""Fig. 5, left: the gap closes only if the features may change fast."""

from __future__ import annotations

from collections.abc import Sequence

from runs.experiments.shared.rules import all_above, difference, mean_rows, measured
from runs.experiments.shared.warm_start import REGIME, SMOKE, gap, paper
from runs.sweeps.experiment import Arm, Experiment, Result, Scale, Verdict

ASSIGNMENTS = ("constant", "fast-features", "slow-features", "even-ratio-abs")


def judge(results: Sequence[Result]) -> Verdict:
    """The rule below."""
    gaps = measured(results, gap)
    more = difference(gaps, "fig5-left-slow-features", "fig5-left-fast-features")
    return Verdict(
        all_above([more]),
        f"the gap with slow features is larger than with fast ones by {more} points",
        ("arm", "n", "gap, points"),
        mean_rows(gaps),
    )


EXPERIMENT = Experiment(
    name="fig5-left",
    source="Fig. 5 (left) of Lyle et al. 2025",
    claim="The gap closes where the features may move fast, and less where their rate is a tenth.",
    rule="Gap with slow features minus gap with fast ones, by seed. Reproduced if its 95 % interval is above 0, not "
    "reproduced if it is below, undecided otherwise.",
    arms=[Arm(f"fig5-left-{name}", "warm_start", f"fig5-left-{name}") for name in ASSIGNMENTS],
    scales={
        "smoke": Scale(seeds=(1,), estimate="1 min on two cores", flags=SMOKE),
        "laptop": Scale(seeds=(6, 7, 8), estimate="35 to 65 min on two cores", flags=REGIME),
        "paper": paper(4),
    },
    judge=judge,
    curve="test/accuracy",
)
