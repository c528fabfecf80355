"""Fig. 4, below: after the re-warming the features of a projected network move more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from runs.experiments.fig4 import EXPERIMENT as FIG4
from runs.experiments.shared.rules import all_above, column, difference, mean_rows
from runs.experiments.shared.warm_start import REGIME, SEEDS, SMOKE, paper, since_switch
from runs.sweeps.experiment import Experiment, Measured, Scale, Verdict

OURS, OTHER = "fig4-projected-0.1", "fig4-unconstrained-0.1"
METRICS = {"delta_c": "Δ_C after the switch", "delta_a": "Δ_A after the switch"}


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    columns = {name: column(runs, name) for name in METRICS.values()}
    ratios = {
        name: difference({arm: {k: math.log(v) for k, v in values.items()} for arm, values in one.items()}, OURS, OTHER)
        for name, one in columns.items()
    }
    said = " and ".join(f"{name} is {math.exp(ratio.mean):.2f} times" for name, ratio in ratios.items())
    return Verdict(
        all_above(list(ratios.values())),
        f"{said} as large in the projected network (geometric means; the differences of their logarithms are "
        f"{' and '.join(map(str, ratios.values()))})",
        ("arm", "n", *METRICS.values()),
        mean_rows(*columns.values()),
    )


EXPERIMENT = Experiment(
    name="fig4-features",
    source="Fig. 4 of Lyle et al. 2025",
    claim="Re-warmed when the data grow from 10 %, a projected network's features move more than an unconstrained "
    "one's: both Δ_C and Δ_A are larger.",
    rule="Mean of Δ_C, and of Δ_A, over layers and over all measurements after the switch; logarithm of projected "
    "minus unconstrained, by seed. Reproduced if both 95 % intervals are above 0, not reproduced if one is below 0, "
    "undecided otherwise.",
    arms=[arm for arm in FIG4.arms if arm.name in (OURS, OTHER)],
    scales={
        "smoke": Scale(seeds=(1,), estimate="1 min on two cores", flags=SMOKE, folder="fig4/smoke"),
        "laptop": Scale(
            seeds=SEEDS, estimate="20 min on two cores, none after fig4", flags=REGIME, folder="fig4/laptop"
        ),
        "paper": Scale(**{**vars(paper(2, control=True)), "folder": "fig4/paper"}),
    },
    measures={name: partial(since_switch, metric=metric) for metric, name in METRICS.items()},
    judge=judge,
    curve="plasticity/delta_c/hidden_relu",
)
