"""Fig. 9: periodic re-warming closes the gap, too, although it is not timed to the growth of the data."""

from __future__ import annotations

from collections.abc import Sequence

from runs.analysis.statistics import student_interval
from runs.experiments.shared.rules import decide, mean_rows, measured
from runs.experiments.shared.warm_start import REGIME, SMOKE, gap, paper
from runs.sweeps.experiment import Arm, Experiment, Result, Scale, Verdict


def judge(results: Sequence[Result]) -> Verdict:
    """The rule below."""
    gaps = measured(results, gap)
    mean, half = student_interval(list(gaps["fig9-projected"].values()))
    return Verdict(
        decide(mean + half <= 1.5, mean - half > 1),
        f"the projected network's gap is {mean:.2f} ± {half:.2f} points, n = {len(gaps['fig9-projected'])}",
        ("arm", "n", "gap, points"),
        mean_rows(gaps),
    )


EXPERIMENT = Experiment(
    name="fig9",
    source="Fig. 9 of Lyle et al. 2025",
    claim="Five cycles of re-warming, out of step with the growth of the data, close the gap of a projected network.",
    rule="Reproduced if the 95 % interval of the projected network's mean gap ends at 1.5 points or below, not "
    "reproduced if it begins above 1 point, undecided otherwise.",
    arms=[Arm(name, "warm_start", name) for name in ("fig9-projected", "fig9-unconstrained")],
    scales={
        "smoke": Scale(seeds=(1,), estimate="1 min on two cores", flags=SMOKE),
        "laptop": Scale(seeds=(6, 7, 8, 9, 10), estimate="30 to 55 min on two cores", flags=REGIME),
        "paper": paper(2),
    },
    judge=judge,
    curve="test/accuracy",
)
