"""What the experiments on continual control share: arms, levels, the score."""

from __future__ import annotations

import math

import numpy as np

from runs.sweeps.experiment import Arm, Flags, Result

NAMES = (
    "plain", "oracle", "layernorm", "nap-constant", "nap-decay", "nap-switch", "nap-cusum", "plain-switch",
    "reset-cusum",
)  # fmt: skip
SCORE = "mean return of an iteration's episodes, over all iterations"
LATE = "the same, over the last fifth of levels 2 on"
ITERATION = 800
"""agent steps of an iteration"""
WORLDS: dict[str, Flags] = {
    "CartPole": {"env_id": "CartPole-v1"},
    "Acrobot": {"env_id": "Acrobot-v1"},
    "LunarLander": {"env_id": "LunarLander-v3"},
}
"""LunarLander needs Box2D: pip install -e '.[box2d]'"""


def arms(*names: str) -> list[Arm]:
    """The presets levels-* of agents/ppo_control.py."""
    return [Arm(name, "ppo_control", f"levels-{name}") for name in names]


def levels(count: int, iterations: int) -> Flags:
    """Flags of `count` levels, each of so many iterations of 800 steps. No evaluations: the score is of training."""
    level = iterations * ITERATION
    return {"total_timesteps": count * level, "shift.tasks": count, "shift.every_steps": level, "eval_every": 0}


def by_arm(iterations: int) -> dict[str, Flags]:
    """The rate of the re-warmed arms decays over one level; CUSUM learns no longer than half a level."""
    period = {"schedule.period_steps": iterations * ITERATION}
    short = {"rewarm.burn_in": iterations // 3, "rewarm.refractory": iterations // 2} if iterations < 40 else {}
    return {
        "nap-switch": period,
        "plain-switch": period,
        "nap-cusum": {**period, **short},
        "reset-cusum": short,
    }


def score(result: Result) -> float:
    """The mean over all iterations of all levels of the mean return of an iteration's episodes; nan without one."""
    returns = [value for _, value in result.scalars.get("charts/iteration_return", ())]
    return float(np.mean(returns)) if returns else math.nan


def late(result: Result) -> float:
    """The mean return of the iterations in the last fifth of each level but the first; nan without one."""
    level = result.config["shift.every_steps"]
    curve = result.scalars.get("charts/iteration_return", ())
    # An iteration is recorded at its end: that at the end of a level belongs to it.
    returns = [value for step, value in curve if step > level and (step - 1) % level >= 0.8 * level]
    return float(np.mean(returns)) if returns else math.nan
