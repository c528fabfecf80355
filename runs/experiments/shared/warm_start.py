"""What the warm-starting experiments share: budgets, and the gap to a fresh network."""

from __future__ import annotations

from runs.experiments.shared.rules import last
from runs.sweeps.experiment import Flags, Result, Scale, guessed_gpu_hours

SMOKE: Flags = {
    "dataset": "digits", "phase_updates": 60, "eval_every": 20, "checkpoint_every": 60, "probe.every": 20,
    "probe.meter_every": 20,
}  # fmt: skip
REGIME: Flags = {"batches": (1, 2)}
"""20,000 training images: fixed in docs/results.md before any gap was measured"""
PAPER: Flags = {"phase_updates": 140_000, "batch_size": 25, "learning_rate": 1e-3, "eval_every": 5_000}


def gap(result: Result) -> float:
    """Final accuracy of the fresh network minus that of the warm-started one, in points."""
    return last(result, "test/gap")


def paper(arms: int) -> Scale:
    """Five seeds of the paper's 280,000 updates, plus 140,000 of the fresh network."""
    return Scale(
        seeds=(1, 2, 3, 4, 5),
        estimate=guessed_gpu_hours(5 * arms, 420_000, 1_000),
        flags=PAPER,
        gpus=0.25,
    )
