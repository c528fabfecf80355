"""App. C: how far a step moves the features, in closed form and by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from runs.experiments.shared.rules import column, decide
from runs.sweeps.experiment import Arm, Experiment, Measured, Result, Scale, Verdict

COSINE, SHARE = "largest deviation of the cosine, standard errors", "largest deviation of the share, standard errors"
WITHOUT = "largest deviation of the cosine from the form without the scale of the weights, standard errors"
WITHIN, BEYOND = 5.0, 20.0
"""of 1,200 deviations, with errors from 64 inputs each, one exceeds 5 about once in 150 times"""


def unscaled(step: float) -> float:
    """The cosine if the scale of the weights did not matter; step is eta sigma."""
    return 1 / math.sqrt(1 + step**2)


def deviation(result: Result, name: str, closed: Callable[[float], float] | None = None) -> float:
    """The largest distance of simulation and closed form over all rates; `closed` is another form, of eta sigma."""
    curves = (result.scalars[f"theory/{name}{part}"] for part in ("", "_closed", "_error"))
    rates = (rate for _, rate in result.scalars["charts/learning_rate"])
    found = 0.0
    for (_, value), (_, expected), (_, error), rate in zip(*curves, rates, strict=True):
        other = closed(rate * result.config["sigma"]) if closed else expected
        found = max(found, abs(value - other) / error)
    return found


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    cosine, share, without = (column(runs, name) for name in (COSINE, SHARE, WITHOUT))
    worst = max(value for one in (cosine, share) for arm in one.values() for value in arm.values())
    scaled = [value for arm in ("halved", "doubled") for value in without[arm].values()]
    rows = [
        [arm, str(len(values)), *(f"{max(one[arm].values()):.1f}" for one in (cosine, share, without))]
        for arm, values in cosine.items()
    ]
    return Verdict(
        decide(worst <= WITHIN and min(scaled) > BEYOND, worst > BEYOND or max(scaled) <= WITHIN),
        f"simulation and closed forms differ by at most {worst:.1f} standard errors (n = {len(runs)} runs of 40 "
        f"rates); without the scale of the weights, by {min(scaled):.0f} or more where it is not 1",
        ("arm", "n", "cosine", "share switched off", "cosine, scale of the weights left out"),
        rows,
    )


EXPERIMENT = Experiment(
    name="theory",
    source="App. C of Lyle et al. 2025",
    claim="How far a step moves the features, if its gradient is Gaussian and independent of the weights, depends "
    "on rate, gradient and weights through the size of the step relative to the weights alone: the cosine of a "
    "pre-activation and the updated one is 1 / sqrt(1 + r^2), the share of active units that switch off 1/2 - "
    "arctan(1/r) / pi.",
    rule="At each of 40 rates, distance of simulation and closed form in standard errors. Reproduced if none exceeds "
    "5, and if the form that leaves out the scale of the weights is off by more than 20 somewhere in every run in "
    "which that scale is not 1. Not reproduced if a closed form is off by more than 20, or the form without the scale "
    "by at most 5 in all these runs. Undecided otherwise.",
    arms=[Arm(name, "theory", name) for name in ("halved", "doubled", "steep")],
    scales={
        "smoke": Scale(seeds=(1,), estimate="10 seconds on two cores", flags={"rates": 5}),
        "laptop": Scale(seeds=(1, 2, 3, 4, 5), estimate="1 min on two cores"),
        "paper": Scale(seeds=(1, 2, 3, 4, 5), estimate="10 min on two cores", flags={"width": 65_536}),
    },
    measures={
        COSINE: lambda run: deviation(run, "cosine"),
        SHARE: lambda run: deviation(run, "switched_off"),
        WITHOUT: lambda run: deviation(run, "cosine", unscaled),
    },
    judge=judge,
    note='A step of these runs is a rate: 0.05 is the first, 20 the last, evenly in the logarithm. The words "if its '
    'gradient is Gaussian and independent of the weights" were added to the claim after the runs; the rule was not '
    "changed.",
    curve="theory/cosine",
)
