"""Fig. 8: with norm layers and weights renormalised now and then, the rank of attention falls as the network groks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runs.analysis.statistics import student_interval
from runs.experiments.shared.rules import (
    Difference,
    all_above,
    column,
    difference,
    first_reaching,
    last,
    mean_rows,
)
from runs.sweeps.experiment import Arm, Experiment, Measured, Result, Scale, Verdict, guessed_gpu_hours

RANK = "plasticity/effective_rank/blocks.0.attention_out"
MEMORISED, END, ACCURACY = "rank when memorised", "rank at the end", "test accuracy at the end"
EVERY = (100, 1_000)


def memorised(result: Result) -> float:
    """Effective rank of the attention's output at the first probe with a training accuracy of 99 %, else at the end."""
    arrival = first_reaching(result, "train/accuracy", 0.99)
    return next((value for step, value in result.scalars[RANK] if step >= arrival), last(result, RANK))


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    before, after, accuracies = column(runs, MEMORISED), column(runs, END), column(runs, ACCURACY)
    falls = {
        arm: {key: math.log(before[arm][key] / value) for key, value in values.items()} for arm, values in after.items()
    }
    grokked = [v for arm, one in falls.items() for key, v in one.items() if accuracies[arm][key] >= 0.99]
    mean, half = student_interval(grokked) if grokked else (math.nan, math.nan)
    down = Difference(mean, half, len(grokked))
    further = [difference(falls, f"scale-decay-every{every}", f"plain-every{every}") for every in EVERY]
    return Verdict(
        all_above([down, *further]),
        f"from memorisation to the end the logarithm of the rank falls by {mean:.2f} ± {half:.2f} in the "
        f"{len(grokked)} runs that grok; with scale decay it falls further than "
        f"without by {further[0]} and {further[1]}",
        ("arm", "n", "test accuracy at the end", "rank when memorised", "rank at the end"),
        mean_rows(accuracies, before, after),
    )


EXPERIMENT = Experiment(
    name="fig8",
    source="after Fig. 8 and App. B.1 of Lyle et al. 2025; the contrast of decaying and other gains is ours",
    claim="With norm layers and weights renormalised now and then, the effective rank of the attention's output "
    "falls when a network groks, and further than in one whose gains do not decay.",
    rule="Effective rank of the attention's output at the first probe at which the training accuracy is 99 %, and at "
    "the end. The fall is the difference of their logarithms. Reproduced if it is above 0 over all runs that end at a "
    "test accuracy of 99 % or more (95 % interval), and, at each projection frequency, larger with scale decay than "
    "without, by seed (95 % interval above 0). Not reproduced if one of these intervals is below 0. Undecided "
    "otherwise.",
    arms=[
        Arm(f"{gains}-every{every}", "grokking", f"fig8-{gains}-every{every}")
        for every in EVERY
        for gains in ("plain", "scale-decay")
    ],
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="1 min on two cores",
            flags={"total_updates": 200},
            arms=("plain-every100", "scale-decay-every100"),
        ),
        "laptop": Scale(seeds=(4, 5, 6, 7, 8), estimate="40 min on two cores"),
        "paper": Scale(
            seeds=(1, 2, 3),
            estimate=guessed_gpu_hours(12, 1_000_000, 250),
            flags={"total_updates": 1_000_000},
            gpus=0.25,
        ),
    },
    measures={MEMORISED: memorised, END: lambda run: last(run, RANK), ACCURACY: lambda run: last(run, "test/accuracy")},
    judge=judge,
    note="The colours of the paper's figure are weight decay and projection frequency; here the decay is 1, and arms "
    "with and without scale decay are compared, over all runs. A run that never reaches 99 % in training counts as a "
    "fall of 0. The paper's App. B.1 names falling norms of queries and keys as "
    "another way for the rank to fall.",
    curve=RANK,
)
