"""A replay memory of whole transitions, for observations that are small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PARTS = ("obs", "actions", "rewards", "next_obs", "terminated")


class TransitionMemory:
    """The last `capacity` transitions, sampled uniformly with replacement.

    Slots are filled in the order of time, and within a step in the order of the environments.

    Args:
        capacity: number of transitions, a multiple of `num_envs`.
        obs_shape: shape of one observation of bytes, with one axis at least; MinAtar's is [C, 10, 10].
        num_envs: N, environments stepped together.

    Raises:
        ValueError: num_envs is less than 1, or capacity is not a multiple of it.
    """

    def __init__(self, capacity: int, obs_shape: Sequence[int], num_envs: int = 1) -> None:
        if num_envs < 1 or capacity % num_envs:
            raise ValueError(f"capacity must be a multiple of num_envs, got {capacity} and {num_envs}")
        self.obs = np.zeros((capacity, *obs_shape), dtype=np.uint8)
        self.next_obs = np.zeros_like(self.obs)
        self.actions = np.zeros(capacity, dtype=np.int64)
        self.rewards = np.zeros(capacity, dtype=np.float32)
        self.terminated = np.zeros(capacity, dtype=np.float32)
        self.capacity, self.num_envs, self.size, self.position = capacity, num_envs, 0, 0

    def __len__(self) -> int:
        """Transitions held."""
        return self.size

    def add(
        self,
        obs: NDArray[np.uint8],
        actions: NDArray[Any],
        rewards: NDArray[Any],
        next_obs: NDArray[np.uint8],
        terminated: NDArray[Any],
    ) -> None:
        """Keep one transition of each environment; a full memory overwrites its oldest ones.

        Args:
            obs: s_t [N, *obs_shape], what was acted on.
            actions: a_t [N].
            rewards: r_t [N].
            next_obs: s_{t+1} [N, *obs_shape], of the same episodes: where one ended, its last observation.
            terminated: [N], the return ends with this reward; False for a truncated episode, which bootstraps.
        """
        i = slice(self.position, self.position + self.num_envs)  # never wraps: the capacity is a multiple
        self.obs[i], self.actions[i], self.rewards[i] = obs, actions, rewards
        self.next_obs[i], self.terminated[i] = next_obs, terminated
        self.position = i.stop % self.capacity
        self.size = min(self.size + self.num_envs, self.capacity)

    def sample(self, batch_size: int, rng: np.random.Generator) -> list[NDArray[Any]]:
        """obs [B, *obs_shape], actions [B], rewards [B], next_obs [B, *obs_shape], terminated [B] (0 or 1)."""
        index = rng.integers(self.size, size=batch_size)
        return [a.take(index, 0) for a in (self.obs, self.actions, self.rewards, self.next_obs, self.terminated)]

    def clear(self) -> None:
        """Forget all transitions."""
        self.size = self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """The filled part. Observations of zeros and ones, as MinAtar's, take a bit per pixel; others a byte."""
        state: dict[str, Any] = {"position": self.position, "shape": [self.size, *self.obs.shape[1:]]}
        for name in PARTS:
            filled = getattr(self, name)[: self.size]
            binary = filled.dtype == np.uint8 and filled.max(initial=0) <= 1
            state[name] = np.packbits(filled) if binary else filled.copy()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: the state holds observations of another shape, more transitions than this memory, or part of a
                step of its environments.
        """
        shape = tuple(state["shape"])
        if shape[0] > self.capacity or shape[1:] != self.obs.shape[1:]:
            raise ValueError(f"the checkpoint's replay memory {shape} does not fit into {self.obs.shape}")
        if state["position"] % self.num_envs:
            raise ValueError(f"the checkpoint's replay memory does not fit {self.num_envs} environments")
        self.size, self.position = shape[0], state["position"]
        for name in PARTS:
            part, saved = getattr(self, name), state[name]
            if saved.ndim < part.ndim:  # eight pixels to a byte, in one row
                saved = np.unpackbits(saved, count=math.prod(shape)).reshape(shape)
            part[: self.size] = saved
