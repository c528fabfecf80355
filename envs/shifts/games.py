"""Shifts of the game: one environment after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.shifts.base import Shift, freeze, restore, save
from envs.shifts.settings import even_bounds
from envs.timetables import Timetable


class EnvSequence(Shift):
    """One environment after another: games, or one game in several modes, difficulties or time limits.

    Each is built by the caller and keeps its own random streams; when the first one comes back, its streams continue.
    Observations [N, C, ...] with fewer channels than the widest are padded with zeros at the end.

    Args:
        envs: vector environments with the same num_envs, the same actions, and observations that differ only in their
            channels (MinAtar: -v0 ids, which have all six actions).
        timetable: when the next one takes over.
    Raises:
        ValueError: they do not fit together; otherwise as `Shift`.
    """

    name = "env"

    def __init__(self, envs: Sequence[VectorEnv[Any, Any, Any]], timetable: Timetable) -> None:
        if not envs:
            raise ValueError("EnvSequence needs at least one environment")
        first = envs[0]
        for other in envs[1:]:
            if other.num_envs != first.num_envs:
                raise ValueError(f"num_envs must be the same in a sequence, got {first.num_envs} and {other.num_envs}")
            if other.single_action_space != first.single_action_space:
                raise ValueError(
                    f"actions {first.single_action_space} and {other.single_action_space} differ: use environments "
                    "with all actions, -v0 in MinAtar, full_action_space=True in Atari"
                )
            if other.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
                raise ValueError("every environment of a sequence needs AutoresetMode.SAME_STEP")
        widest = _widest([env.single_observation_space for env in envs])
        super().__init__(first, timetable, len(envs))
        self._envs = list(envs)
        self.single_observation_space = widest
        self.observation_space = batch_space(widest, self.num_envs)

    def _set_task(self, task: int) -> None:
        self.env = self._envs[task]

    def _reset_env(
        self, seed: int | Sequence[int] | None, options: dict[str, Any] | None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        if seed is not None or self._obs is None:  # the start of the run: all of them are reset
            others: Any = self._envs[1:]
            for env in others:
                env.reset(seed=seed, options=options)
        return super()._reset_env(seed, options)

    def _observations(self, obs: NDArray[Any]) -> NDArray[Any]:
        shape = self.single_observation_space.shape or ()
        if obs.shape[1:] == shape:
            return obs
        padded = np.zeros((self.num_envs, *shape), dtype=obs.dtype)
        padded[:, : obs.shape[1]] = obs
        return padded

    def _inner(self, make: Callable[[Any], VectorEnv[Any, Any, Any]]) -> dict[str, Any]:
        return {"envs": [freeze(env, make) for env in self._envs]}

    def _env_state(self) -> Any:
        return [save(env) for env in self._envs]

    def _load_env_state(self, state: Any) -> None:
        for env, saved in zip(self._envs, state, strict=True):
            restore(env, saved)

    def close(self, **kwargs: Any) -> None:
        """Close all of them."""
        for env in self._envs:
            env.close(**kwargs)


def _widest(spaces: Sequence[gymnasium.Space[Any]]) -> gymnasium.Space[Any]:
    """The space that all of them have after their channels are padded with zeros.

    Raises:
        ValueError: there is none.
    """
    first = spaces[0]
    if all(space == first for space in spaces):
        return first
    for space in spaces:
        low, high = even_bounds(space, "EnvSequence")
        alike = space.dtype == first.dtype and (low, high) == even_bounds(first, "EnvSequence")
        if not alike or low > 0 or high < 0 or (space.shape or ())[1:] != (first.shape or ())[1:]:
            raise ValueError(f"observations {first} and {space} differ in more than their channels")
    return max(spaces, key=lambda space: (space.shape or (0,))[0])
