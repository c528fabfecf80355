"""Shifts of actions: which action is executed for the one that the agent chose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from envs.shifts.base import Shift
from envs.shifts.settings import permutations, probabilities, require_permutations
from envs.timetables import Timetable


class PermuteActions(Shift):
    """Actions change their meaning: action a is executed as p(a). Task 0 is the identity; no permutation comes twice.

    Two tasks may still be equal: under MinAtar's -v0 ids some of the six actions do nothing, and swapping those changes
    nothing.

    Args:
        env: environment with discrete actions.
        timetable: when the next permutation comes.
        tasks: number of permutations, including the identity, visited in turn.
    Raises:
        ValueError: actions are not discrete, or have fewer permutations; otherwise as `Shift`.
    """

    name = "actions"

    def __init__(self, env: VectorEnv[Any, Any, Any], timetable: Timetable, tasks: int = 2) -> None:
        super().__init__(env, timetable, tasks, {"tasks": tasks})
        space = env.single_action_space
        if not isinstance(space, Discrete) or space.start != 0:
            raise ValueError(f"PermuteActions needs actions 0 .. n - 1, got {space}")
        require_permutations(int(space.n), tasks)
        self._order = np.arange(int(space.n))

    def _set_task(self, task: int) -> None:
        self._order = permutations(len(self._order), task, self._sequence)[task]

    def _actions(self, actions: NDArray[Any]) -> NDArray[Any]:
        array = np.asarray(actions)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iu":
            raise ValueError(f"actions must be integers of shape ({self.num_envs},), got {array.dtype} {array.shape}")
        if array.min() < 0 or array.max() >= len(self._order):
            raise ValueError(f"actions must lie in 0 .. {len(self._order) - 1}, got {array.tolist()}")
        executed: NDArray[Any] = self._order[array]
        return executed


class RepeatActions(Shift):
    """Sticky actions: with probability p, which changes, an environment repeats its previously executed action.

    The first action of an episode is always executed. Each environment draws one number per step, whatever p is.
    Sticky actions of the wrapped environment stay, in addition to these.

    Args:
        env: any.
        timetable: when the next probability comes.
        values: the probabilities, visited in turn; the first holds from the start.
    Raises:
        ValueError: a value is not a probability; otherwise as `Shift`.
    """

    name = "sticky"

    def __init__(self, env: VectorEnv[Any, Any, Any], timetable: Timetable, values: Sequence[float]) -> None:
        super().__init__(env, timetable, len(values), {"values": values})
        self.values = probabilities(values, "RepeatActions")
        self._probability = self.values[0]
        self._previous: NDArray[Any] | None = None
        self._running = np.zeros(self.num_envs, dtype=np.bool_)

    def _set_task(self, task: int) -> None:
        self._probability = self.values[task]

    def _actions(self, actions: NDArray[Any]) -> NDArray[Any]:
        repeat = (self._stream.random(self.num_envs) < self._probability) & self._running
        executed = np.array(actions)
        if self._previous is not None:
            executed[repeat] = self._previous[repeat]
        self._previous = executed
        self._running = np.ones(self.num_envs, dtype=np.bool_)
        return executed.copy()

    def _end_episodes(self, ended: NDArray[np.bool_]) -> None:
        self._running = self._running & ~ended

    def _own_state(self) -> dict[str, Any]:
        previous = None if self._previous is None else self._previous.copy()
        return {"previous": previous, "running": self._running.copy()}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self._previous = None if state["previous"] is None else state["previous"].copy()
        self._running = state["running"].copy()
