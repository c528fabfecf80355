"""The TD errors of new transitions: what CUSUM watches in an agent that learns from a replay memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from elr.states import check_keys

_SAVED = ("errors", "mean", "chosen", "rewards", "known")


class RecentTDErrors:
    """Squared one-step TD errors of the transitions just seen, averaged from reading to reading.

        delta_t^2 = (r_t + gamma max_a Q(s_{t+1}, a) - Q(s_t, a_t))^2,  each Q as it was when the agent acted

    without the middle term where s_{t+1} is terminal. A change of the task shows in these errors at once. The loss on
    replayed transitions hides it, because nearly all of them are from before the change. The last transition of a
    truncated episode is left out, because its s_{t+1} is never valued. The errors of all environments are averaged
    together, in double precision whatever the types of the arguments.

        errors.act(values, actions)                      # values [N, A] of the observations, before env.step
        errors.step(rewards, terminated, truncated)      # what env.step returned
        signal = errors.read()                           # once per update

    Args:
        gamma: discount factor.
        num_envs: N, environments stepped together, >= 1.
        on: False switches it off: all methods do nothing, `read` returns None, and there is no state.

    Raises:
        ValueError: num_envs is less than 1.

    Source: ours. arXiv:2507.20057 watches the loss.
    """

    def __init__(self, gamma: float, num_envs: int = 1, on: bool = True) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.gamma, self.num_envs, self.on = gamma, num_envs, on
        self.clear()

    def clear(self) -> None:
        """Return to the state after construction."""
        self._errors: list[float] = []  # since the last reading
        self._mean = 0.0
        self._chosen = [0.0] * self.num_envs  # Q(s_t, a_t)
        self._rewards = [0.0] * self.num_envs
        self._known = [False] * self.num_envs  # whether a transition of the same episode led to s_t

    def act(self, values: ArrayLike | Tensor | None, actions: int | ArrayLike) -> None:
        """Take the action values of the current observations, and the actions chosen in them.

        Args:
            values: Q(s_t, .), [N, A]; may be None when this is off.
            actions: a_t, [N] or one number for N = 1.
        Raises:
            ValueError: this is on and values is None, or values or actions are not of N environments.
        """
        if not self.on:
            return
        if values is None:
            raise ValueError("RecentTDErrors is on and needs the action values at every step, got None")
        q: NDArray[Any] = np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values)
        chosen = [actions] if isinstance(actions, int) else np.asarray(actions).tolist()
        if q.ndim != 2 or not len(q) == len(chosen) == self.num_envs:
            raise ValueError(f"got values of shape {q.shape} and {len(chosen)} actions for num_envs={self.num_envs}")
        for i, (action, best) in enumerate(zip(chosen, q.max(1).tolist(), strict=True)):
            if self._known[i]:
                self._errors.append((self._rewards[i] + self.gamma * best - self._chosen[i]) ** 2)
            self._chosen[i] = float(q[i, action])

    def step(self, rewards: ArrayLike, terminated: ArrayLike, truncated: ArrayLike) -> None:
        """Take the outcome of the actions.

        Args:
            rewards: r_t as learned from (clipped, if the agent clips), [N].
            terminated: whether the return ends with r_t, [N].
            truncated: whether the episode is cut after r_t, [N].
        """
        if not self.on:
            return
        outcomes = zip(*(np.asarray(x).tolist() for x in (rewards, terminated, truncated)), strict=True)
        for i, (reward, ends, cut) in enumerate(outcomes):
            if ends:
                self._errors.append((reward - self._chosen[i]) ** 2)
            self._rewards[i] = float(reward)
            self._known[i] = not (ends or cut)

    def cut(self) -> None:
        """The running episodes will not continue: their last transitions are left out, as at a truncation."""
        self._known = [False] * self.num_envs

    def read(self) -> float | None:
        """The mean of the errors since the last reading, at least 1e-12; with no new error the previous reading.

        Returns:
            0.0 before the first error; None when this is off.
        """
        if not self.on:
            return None
        if self._errors:
            self._mean = max(float(np.mean(self._errors)), 1e-12)  # a detector may take the logarithm
            self._errors = []
        return self._mean

    def state_dict(self) -> dict[str, Any]:
        """State as plain numbers; empty when this is off."""
        return {name: copy.copy(getattr(self, f"_{name}")) for name in _SAVED if self.on}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly from `state_dict`.

        Raises:
            ValueError: the keys differ (also if one of the two is off), or the number of environments does.
        """
        check_keys("RecentTDErrors", state, _SAVED if self.on else ())
        if self.on and len(state["chosen"]) != self.num_envs:
            raise ValueError(f"state is of {len(state['chosen'])} environments, num_envs is {self.num_envs}")
        for name, value in state.items():
            setattr(self, f"_{name}", copy.copy(value))
