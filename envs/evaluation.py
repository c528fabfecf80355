"""Observations and returns of a policy that is not being trained: evaluation, and the inputs of a probe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

Policy = Callable[[NDArray[Any]], NDArray[Any]]
"""Observations [N, ...] -> Q-values or logits [N, A]."""


def play(env: VectorEnv[Any, Any, Any], policy: Policy, seed: int, *, epsilon: float = 0.0) -> NDArray[np.float64]:
    """Undiscounted returns [N] of one episode in each of the N environments, in the rewards that they give.

    Args:
        env: environments that restart within a step; those that finish early play on, and only their first episode
            counts.
        policy: gives each action a number [N, A]; the action with the largest is taken.
        seed: of the environments, and of the random actions.
        epsilon: probability of a random action instead.
    """
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    returns, running = np.zeros(env.num_envs), np.ones(env.num_envs, dtype=np.bool_)
    while running.any():
        actions = policy(obs).argmax(1)
        if epsilon:
            explores = rng.random(env.num_envs) < epsilon
            actions = np.where(explores, rng.integers(_actions(env), size=env.num_envs), actions)
        obs, rewards, terminated, truncated, _ = env.step(actions)
        returns += rewards * running
        running &= ~(terminated | truncated)
    return returns


def uniform_observations(env: VectorEnv[Any, Any, Any], n: int, seed: int) -> Tensor:
    """[n, ...]: every fifth observation of a uniformly random policy in the first environment, from its reset on.

    Args:
        env: environments of any number; they are reset with this seed.
        n: observations, at least 1.
        seed: of the environments and of the policy.
    """
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    kept = [obs[0]]
    for step in range(1, 5 * n - 4):
        obs = env.step(rng.integers(_actions(env), size=env.num_envs))[0]
        if step % 5 == 0:
            kept.append(obs[0])
    return torch.from_numpy(np.stack(kept))


def _actions(env: VectorEnv[Any, Any, Any]) -> int:
    space: Any = env.single_action_space
    return int(space.n)
