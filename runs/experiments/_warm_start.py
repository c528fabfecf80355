"""What the warm-starting experiments share: budgets, and the gap to a fresh network."""

from __future__ import annotations

from runs.experiment import Flags, Result, Scale
from runs.rules import last

SMOKE: Flags = {
    "dataset": "digits", "phase_updates": 60, "eval_every": 20, "checkpoint_every": 60, "probe.every": 20,
    "probe.meter_every": 20,
}  # fmt: skip
REGIME: Flags = {"batches": (1, 2)}
"""20,000 training images: the regime that docs/results.md fixed before any gap was looked at"""
PAPER: Flags = {"phase_updates": 140_000, "batch_size": 25, "learning_rate": 1e-3, "eval_every": 5_000}


def gap(result: Result) -> float:
    """Accuracy of the fresh network minus that of the warm one at the end, in points."""
    return 100 * last(result, "test/gap")


def paper(runs: int) -> Scale:
    """Five seeds in the paper's 280,000 updates."""
    return Scale(
        seeds=(1, 2, 3, 4, 5),
        estimate=f"some {runs * 5 * 0.5:g} GPU-hours: {runs * 5} runs of 420,000 updates, guessed at 1,000 a second "
        f"and four on a GPU",
        flags=PAPER,
        gpus=0.25,
    )
