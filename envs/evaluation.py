"""Observations and returns of a policy that is not being trained: evaluation, and the inputs of a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor, nn

Policy = Callable[[NDArray[Any]], NDArray[Any]]
"""Observations [N, ...] -> Q-values or logits [N, A]; a `functools.partial` lets `play` find the network."""


@contextmanager
def evaluation_mode(policy: Policy) -> Iterator[None]:
    """Run a policy's networks in eval mode; after it, train/eval flags and torch's random states are as before.

    Args:
        policy: a `functools.partial`; its arguments that are modules are the networks. Of any other callable no network
            is known, and only the random state of the CPU is restored.
    """
    arguments = (*policy.args, *policy.keywords.values()) if isinstance(policy, partial) else ()
    networks = [argument for argument in arguments if isinstance(argument, nn.Module)]
    # Flags are set directly: train() recurses, and would switch on what the caller holds in eval mode.
    flags = [(module, module.training) for network in networks for module in network.modules()]
    devices = {weight.get_device() for network in networks for weight in network.parameters() if weight.is_cuda}
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            for module, _ in flags:
                module.training = False
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def play(env: VectorEnv[Any, Any, Any], policy: Policy, seed: int, *, epsilon: float = 0.0) -> NDArray[np.float64]:
    """Undiscounted returns [N] of one episode in each of the N environments; see `play_episodes`."""
    return play_episodes(env, policy, seed, epsilon=epsilon)[0]


def play_episodes(
    env: VectorEnv[Any, Any, Any], policy: Policy, seed: int, *, epsilon: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Undiscounted returns [N], in the rewards that the environments give, and lengths [N] in steps, of one episode in
    each of the N environments.

    Args:
        env: environments that restart within a step; those that finish early play on, and only their first episode
            counts.
        policy: gives each action a number [N, A]; the action with the largest is taken. See `evaluation_mode`.
        seed: of the environments, and of the random actions.
        epsilon: probability of a random action instead.
    """
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    returns, running = np.zeros(env.num_envs), np.ones(env.num_envs, dtype=np.bool_)
    lengths = np.zeros(env.num_envs, dtype=np.int64)
    with evaluation_mode(policy):
        while running.any():
            actions = policy(obs).argmax(1)
            if epsilon:
                explores = rng.random(env.num_envs) < epsilon
                actions = np.where(explores, rng.integers(_actions(env), size=env.num_envs), actions)
            obs, rewards, terminated, truncated, _ = env.step(actions)
            returns += rewards * running
            lengths += running
            running &= ~(terminated | truncated)
    return returns, lengths


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
