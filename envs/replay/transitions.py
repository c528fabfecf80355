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

    Args:
        capacity: number of transitions.
        obs_shape: shape of one observation of bytes, with one axis at least; MinAtar's is [C, 10, 10].
    """

    def __init__(self, capacity: int, obs_shape: Sequence[int]) -> None:
        self.obs = np.zeros((capacity, *obs_shape), dtype=np.uint8)
        self.next_obs = np.zeros_like(self.obs)
        self.actions = np.zeros(capacity, dtype=np.int64)
        self.rewards = np.zeros(capacity, dtype=np.float32)
        self.terminated = np.zeros(capacity, dtype=np.float32)
        self.capacity, self.size, self.position = capacity, 0, 0

    def __len__(self) -> int:
        """Transitions held."""
        return self.size

    def add(
        self, obs: NDArray[np.uint8], action: int, reward: float, next_obs: NDArray[np.uint8], terminated: bool
    ) -> None:
        """Keep one transition; a full memory overwrites its oldest one.

        Args:
            obs: s_t [*obs_shape], what was acted on.
            next_obs: s_{t+1}, of the same episode: where it ended, its last observation.
            terminated: the return ends with this reward; False for a truncated episode, which bootstraps.
        """
        i = self.position
        self.obs[i], self.actions[i], self.rewards[i] = obs, action, reward
        self.next_obs[i], self.terminated[i] = next_obs, terminated
        self.position = (i + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

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
            ValueError: the state holds observations of another shape, or more transitions than this memory.
        """
        shape = tuple(state["shape"])
        if shape[0] > self.capacity or shape[1:] != self.obs.shape[1:]:
            raise ValueError(f"the checkpoint's replay memory {shape} does not fit into {self.obs.shape}")
        self.size, self.position = shape[0], state["position"]
        for name in PARTS:
            part, saved = getattr(self, name), state[name]
            if saved.ndim < part.ndim:  # eight pixels to a byte, in one row
                saved = np.unpackbits(saved, count=math.prod(shape)).reshape(shape)
            part[: self.size] = saved
