"""What the experiments on continual control share: arms, levels, the score."""

from __future__ import annotations

import math

import numpy as np

from runs.sweeps.experiment import Arm, Flags, Result

NAMES = (
    "plain", "oracle", "layernorm", "nap-constant", "nap-decay", "nap-switch", "nap-cusum", "plain-switch",
    "reset-cusum",
)  # fmt: skip
ITERATION = 800
"""agent steps of an iteration"""
WORLDS: dict[str, Flags] = {
    "CartPole": {"env_id": "CartPole-v1"},
    "Acrobot": {"env_id": "Acrobot-v1"},
    "MountainCar": {"env_id": "MountainCar-v0"},
}


def arms(*names: str) -> list[Arm]:
    """The presets levels-* of agents/ppo_control.py."""
    return [Arm(name, "ppo_control", f"levels-{name}") for name in names]


def levels(count: int, iterations: int) -> Flags:
    """Flags of `count` levels, each of so many iterations of 800 steps. No evaluations: the score is of training."""
    level = iterations * ITERATION
    return {"total_timesteps": count * level, "shift.tasks": count, "shift.every_steps": level, "eval_every": 0}


def decays(iterations: int) -> dict[str, Flags]:
    """The rate of the re-warmed arms decays over one level."""
    period = {"schedule.period_steps": iterations * ITERATION}
    return {name: period for name in ("nap-switch", "nap-cusum", "plain-switch")}


def score(result: Result) -> float:
    """The mean over all iterations of all levels of the mean return of an iteration's episodes; nan without one."""
    returns = [value for _, value in result.scalars.get("charts/iteration_return", ())]
    return float(np.mean(returns)) if returns else math.nan
