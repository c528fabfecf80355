"""Shifts of the physics: a number of the simulated world, such as gravity or a length, jumps or drifts.

The innermost environment must have `physics(name) -> float` and `set_physics(name, value)`, as those of `envs.control`
do. Other wrappers may lie between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from envs.shifts.base import Shift, Step
from envs.shifts.games import EnvSequence
from envs.timetables import NoChange, Timetable


class _Physics(Shift):
    """What both have in common: the attribute, its values, and how it is set."""

    name = "physics"

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        timetable: Timetable,
        tasks: int,
        what: str,
        values: Sequence[float],
        **arguments: Any,
    ) -> None:
        self.what, self.values = what, tuple(float(value) for value in values)
        super().__init__(env, timetable, tasks, {**arguments, "what": what, "values": self.values})
        if not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"values of {what!r} must be finite, got {self.values}")
        self._simulated = _innermost(env)
        for inner in self._simulated:
            if not hasattr(inner, "set_physics"):
                raise ValueError(
                    f"{type(self).__name__} needs an environment whose physics can be set, such as those of "
                    f"envs.control, got {type(inner).__name__}"
                )
            present = inner.physics(what)
            for value in (*self.values, present):  # an impossible value is refused now, not in the middle of a run
                inner.set_physics(what, value)

    def _set(self, value: float) -> None:
        for inner in self._simulated:
            if inner.physics(self.what) != value:
                inner.set_physics(self.what, value)


class ChangePhysics(_Physics):
    """An attribute of the simulated world jumps to another value.

    Args:
        env: environment whose physics can be set, see the module's text.
        timetable: when the next value comes.
        what: name of the attribute, as the environment has it.
        values: visited in turn; the first holds from the start.
    Raises:
        ValueError: the environment does not have the attribute or refuses a value, or a value is not finite; otherwise
            as `Shift`.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], timetable: Timetable, what: str, values: Sequence[float]) -> None:
        super().__init__(env, timetable, len(values), what, values)

    def _set_task(self, task: int) -> None:
        self._set(self.values[task])


class DriftPhysics(_Physics):
    """An attribute of the simulated world moves slowly: there is one task, no change, and no episode is truncated.

    With values v_0 ... v_(K - 1) and n agent steps so far, summed over the environments, and k = n // period,

        value = v_(k mod K) + (v_((k + 1) mod K) - v_(k mod K)) (n mod period) / period.

    So it moves in a straight line from each value to the next, and from the last back to the first. The value is that
    of the next step, the same in all environments. `infos["physics"]` has it, by the attribute's name, after `reset`
    and after every step. `infos["shift"]` never reports a change of it. What an environment reads only at the start of
    an episode (gravity in LunarLander) follows with the next episode.

    Args:
        env: environment whose physics can be set, see the module's text.
        period: agent steps from one value to the next.
        what: name of the attribute, as the environment has it.
        values: at least two, reached in turn; the first holds at the start.
    Raises:
        ValueError: the environment does not have the attribute or refuses a value, a value is not finite, there are
            fewer than two, or the period is less than the agent steps of one `step()`; otherwise as `Shift`.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], period: int, what: str, values: Sequence[float]) -> None:
        super().__init__(env, NoChange(), 1, what, values, period=period)
        if len(self.values) < 2:
            raise ValueError(f"DriftPhysics needs at least two values of {what!r}, got {self.values}")
        if period < self.num_envs:
            raise ValueError(
                f"the period must be at least the {self.num_envs} agent steps of one step() of {self.num_envs} "
                f"environments, got {period}"
            )
        self.period = period
        self._held: float | None = None  # a frozen copy's value

    @property
    def value(self) -> float:
        """The present value: that of the next step."""
        if self._held is not None:
            return self._held
        leg, along = divmod(self._steps, self.period)
        start, end = self.values[leg % len(self.values)], self.values[(leg + 1) % len(self.values)]
        return start + (end - start) * (along / self.period)

    def _set_task(self, task: int) -> None:
        self._set(self.value)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start new episodes; with a seed, or the first time, at the first value. See `Shift.reset`."""
        obs, infos = super().reset(seed=seed, options=options)
        return obs, {**infos, "physics": {self.what: self.value}}

    def step(self, actions: NDArray[Any]) -> Step:
        """One step in every environment, then the next value."""
        obs, rewards, terminated, truncated, infos = super().step(actions)
        value = self.value
        self._set(value)
        return obs, rewards, terminated, truncated, {**infos, "physics": {self.what: value}}

    def frozen_copy(self, make: Callable[[Any], VectorEnv[Any, Any, Any]], task: int | None = None) -> Shift:
        """As `Shift.frozen_copy`; the copy stays at the present value, and no task can be chosen."""
        if task is not None:
            raise ValueError(f"there is no task {task}: {self.what} drifts, so only its present value can be held")
        if self._entropy is None:
            raise gymnasium.error.ResetNeeded("call reset() of DriftPhysics first: its value follows from the steps")
        copy = DriftPhysics(period=self.period, what=self.what, values=self.values, **self._inner(make))
        copy._frozen, copy._held = (self._frozen[0] if self._frozen else self._entropy, 0), self.value
        return copy

    def _own_state(self) -> dict[str, Any]:
        return {"held": self._held}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self._held = state["held"]
        if self._entropy is not None:
            self._set(self.value)


def _innermost(env: Any) -> list[Any]:
    """The environments inside all wrappers: one, or those of a sequence."""
    if isinstance(env, EnvSequence):
        return [inner for each in env._envs for inner in _innermost(each)]
    return _innermost(env.env) if isinstance(env, gymnasium.vector.VectorWrapper) else [env]
