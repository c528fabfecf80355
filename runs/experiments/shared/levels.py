"""What the experiments on continual control share: arms, levels, the score."""

from __future__ import annotations

import math

import numpy as np

from runs.analysis.statistics import Scores, bootstrap, iqm
from runs.experiments.shared.rules import Column
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
    level = result.config["shift"]["every_steps"]
    curve = result.scalars.get("charts/iteration_return", ())
    # An iteration is recorded at its end: that at the end of a level belongs to it.
    returns = [value for step, value in curve if step > level and (step - 1) % level >= 0.8 * level]
    return float(np.mean(returns)) if returns else math.nan


TUNED: Flags = {"learning_rate": 3e-4}
"""for all arms: of 3e-4, 1e-3 and 3e-3 the best mean rank on the first level, for the plain network at a constant rate
and with a decay, with LayerNorm, and projected at a constant rate and with a decay (40 iterations, three environments,
seeds 101 and 102, which no scale has)"""
HEADS = (
    "environment",
    "arm",
    "n",
    "score: IQM [95 %]",
    "(arm - plain) / (oracle - plain), of means [95 %]",
    "mean of the last fifth of levels 2 on",
)
"""of a table of `table`'s rows, each behind its environment"""


def in_world(values: Column, world: str) -> dict[str, dict[tuple[str, int], float]]:
    """The values of one environment."""
    return {arm: {key: v for key, v in runs.items() if key[0] == world} for arm, runs in values.items()}


def lead(arm: Scores, plain: Scores, oracle: Scores) -> np.ndarray:
    """(arm - plain) / (oracle - plain), of means over seeds.

    0 is plain training, 1 a fresh agent per level; nan if these are equal.
    """
    ours, low, high = (np.asarray(one[0]).mean(axis=-1) for one in (arm, plain, oracle))
    return np.divide(ours - low, high - low, out=np.full_like(ours, np.nan), where=high != low)


def table(scores: Column, ends: Column) -> list[list[str]]:
    """A row per arm of one environment."""
    rows = []
    columns = {arm: [np.array(list(runs.values()))] for arm, runs in scores.items()}
    for arm, one in columns.items():
        low, high = bootstrap(iqm, one)
        share = lead(one, columns["plain"], columns["oracle"])
        least, most = bootstrap(lead, one, columns["plain"], columns["oracle"])
        of_lead = "–" if arm in ("plain", "oracle") or math.isnan(share) else f"{share:.2f} [{least:.2f}, {most:.2f}]"
        end = np.mean(list(ends[arm].values()))
        rows.append([arm, str(len(one[0])), f"{iqm(one):.1f} [{low:.1f}, {high:.1f}]", of_lead, f"{end:.1f}"])
    return rows
