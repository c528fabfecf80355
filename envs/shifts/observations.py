"""Shifts of observations: rearranged, or with noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from envs.shifts.base import Shift
from envs.shifts.settings import even_bounds, permutations, probabilities, require_permutations
from envs.timetables import Timetable


class PermuteObservations(Shift):
    """The channels or the positions of the pixels are permuted. Task 0 is the identity; no permutation comes twice.

    Args:
        env: environment with observations [C, H, W] whose entries all have the same bounds.
        timetable: when the next permutation comes.
        tasks: number of permutations, including the identity, visited in turn.
        what: "channels" [C], or "pixels" [H * W], the same permutation in all channels.
    Raises:
        ValueError: observations have another shape or uneven bounds, or there are fewer permutations; otherwise as
            `Shift`.
    """

    def __init__(
        self, env: VectorEnv[Any, Any, Any], timetable: Timetable, tasks: int = 2, what: str = "channels"
    ) -> None:
        if what not in ("channels", "pixels"):
            raise ValueError(f"what must be channels or pixels, got {what!r}")
        self.name = what
        super().__init__(env, timetable, tasks, {"tasks": tasks, "what": what})
        space = env.single_observation_space
        low, high = even_bounds(space, "PermuteObservations")
        if len(space.shape or ()) != 3 or low == high:
            raise ValueError(f"PermuteObservations needs observations [C, H, W], got {space}")
        channels, height, width = space.shape or ()
        self.what, self._size = what, channels if what == "channels" else height * width
        require_permutations(self._size, tasks)
        self._order = np.arange(self._size)

    def _set_task(self, task: int) -> None:
        self._order = permutations(self._size, task, self._sequence)[task]

    def _observations(self, obs: NDArray[Any]) -> NDArray[Any]:
        if self.what == "channels":
            return obs[:, self._order]
        flat = obs.reshape(*obs.shape[:2], self._size)
        permuted: NDArray[Any] = flat[:, :, self._order].reshape(obs.shape)
        return permuted


class CorruptObservations(Shift):
    """Noise: with probability p, which changes, an entry is replaced by a random value of its range.

    Integer observations draw from all integers of their range, others uniformly from it. In observations of zeros and
    ones half of the replaced entries flip.

    Args:
        env: environment with bounded observations whose entries all have the same bounds.
        timetable: when the next probability comes.
        values: the probabilities, visited in turn; the first holds from the start.
    Raises:
        ValueError: a value is not a probability, or observations are unbounded; otherwise as `Shift`.
    """

    name = "noise"

    def __init__(self, env: VectorEnv[Any, Any, Any], timetable: Timetable, values: Sequence[float]) -> None:
        super().__init__(env, timetable, len(values), {"values": values})
        self.values = probabilities(values, "CorruptObservations")
        self._low, self._high = even_bounds(env.single_observation_space, "CorruptObservations")
        self._probability = self.values[0]

    def _set_task(self, task: int) -> None:
        self._probability = self.values[task]

    def _observations(self, obs: NDArray[Any]) -> NDArray[Any]:
        if self._probability == 0:
            return obs
        if obs.dtype.kind in "iub":
            drawn = self._stream.integers(int(self._low), int(self._high), obs.shape, endpoint=True).astype(obs.dtype)
        else:
            drawn = self._stream.uniform(self._low, self._high, obs.shape).astype(obs.dtype)
        return np.where(self._stream.random(obs.shape) < self._probability, drawn, obs)
