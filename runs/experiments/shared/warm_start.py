"""What the warm-starting experiments share: budgets, measures, and the gap to an arm with all data from the start.

The paper's reference is not a fresh network: it is trained on the whole set in both phases, on the same schedule. So
in Figs. 4, 9 and 13 the gap of an arm is the accuracy of its own arm at 100 % minus its accuracy, by seed. In Fig. 5,
which has no such arm, it is that to the script's own control, a fresh network that learns in the last phase only.
"""

from __future__ import annotations

import numpy as np

from runs.analysis.tables import mean_over_seeds
from runs.experiments.shared.rules import Column, last
from runs.sweeps.experiment import Arm, Flags, Result, Scale, guessed_gpu_hours

ACCURACY, GAP = "test accuracy at the end, %", "fresh network's accuracy minus this, points"
SMOKE: Flags = {
    "dataset": "digits", "phase_updates": 60, "eval_every": 20, "checkpoint_every": 60, "probe.every": 20,
    "probe.meter_every": 20,
}  # fmt: skip
REGIME: Flags = {"batches": (1, 2)}
"""20,000 training images: fixed in docs/results.md before any gap was measured"""
PAPER: Flags = {"phase_updates": 140_000, "batch_size": 25, "learning_rate": 1e-3, "eval_every": 5_000}
SEEDS = (12, 13, 14, 15, 16)
"""seeds 1 to 11 were seen before the rules of these experiments"""
ALONE: Flags = {"control": "none"}
"""no fresh network: the reference is another arm"""


def accuracy(result: Result) -> float:
    """Test accuracy at the end, in per cent."""
    return 100 * last(result, "test/accuracy")


def gap(result: Result) -> float:
    """Final accuracy of the fresh network minus that of the warm-started one, in points."""
    return last(result, "test/gap")


def since_switch(result: Result, metric: str) -> float:
    """The mean of a feature-learning metric over all layers and all measurements of the second phase."""
    switch = result.config["phase_updates"]
    curves = [curve for tag, curve in result.scalars.items() if tag.startswith(f"plasticity/{metric}/")]
    values = [value for curve in curves for step, value in curve if step > switch]
    if not values:
        raise ValueError(f"{result.arm}, seed {result.seed}, measured no {metric} after the switch")
    return float(np.mean(values))


def whole(name: str, preset: str) -> Arm:
    """The same arm with all data in both phases."""
    return Arm(name, "warm_start", preset, {"fractions": (1.0, 1.0)})


def behind(accuracies: Column, arm: str, reference: str) -> dict[tuple[str, int], float]:
    """By seed: accuracy of the reference minus that of the arm.

    Raises:
        ValueError: a seed of the arm has no run of the reference.
    """
    missing = accuracies[arm].keys() - accuracies[reference].keys()
    if missing:
        raise ValueError(f"{reference} has no seed {min(seed for _, seed in missing)}, which {arm} has")
    return {pair: accuracies[reference][pair] - value for pair, value in accuracies[arm].items()}


def rows(accuracies: Column, *more: Column) -> list[list[str]]:
    """A row per arm: name, n, accuracy, and further columns, empty for arms that they do not have."""
    columns = (accuracies, *more)
    return [
        [arm, str(len(runs)), *(mean_over_seeds(list(one[arm].values())) if arm in one else "–" for one in columns)]
        for arm, runs in accuracies.items()
    ]


def paper(arms: int, control: bool = False) -> Scale:
    """Five seeds of the paper's 280,000 updates, and 140,000 of a fresh network where there is one."""
    return Scale(
        seeds=(1, 2, 3, 4, 5),
        estimate=guessed_gpu_hours(5 * arms, 420_000 if control else 280_000, 1_000),
        flags=PAPER,
        gpus=0.25,
    )
