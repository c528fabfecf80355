"""Gymnasium's control tasks as one vector environment: flat observations, discrete actions, physics that can change.

`control_env("CartPole-v1", 8)` builds N environments of any Gymnasium id whose observations are a flat Box of floats
and whose actions are Discrete: CartPole, Acrobot, MountainCar, LunarLander, or one of another package
("module:Name-v0"). They are Gymnasium's own, stepped in a loop (`envs.control_loop`). With enough environments the
first three are computed in arrays instead, which is faster and gives the same numbers (`envs.classic_control`).

It adds what a training script needs: batches, a time limit of your own, episode statistics, seeds, exact saving, and
`set_physics`, which changes gravity, masses and other numbers while training runs.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.classic_control import FASTER_FROM, Arrays
from envs.control_loop import Loop
from envs.minatar import game_seed

Step = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class ControlVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """N environments of one Gymnasium id; a finished episode restarts within the step (`AutoresetMode.SAME_STEP`).

    Observations are float32 [N, D], fresh arrays that are safe to keep. Rewards are float64 [N]. `terminated` and
    `truncated` are bool [N] and never both true: an episode that ends by itself on the last step allowed is terminated.

    When an episode ended in a step (and only then) `infos` holds, for all environments at once,

    * `final_obs`: float32 [N, D], the observation before the restart; where no episode ended, the returned one,
    * `episode`: {"r": float64 [N], "l": int64 [N]}, return and length in steps, 0 where no episode ended,
    * `_final_obs` and `_episode`: bool [N], where an episode ended.

    Nothing else that the environments report reaches `infos`.

    Build it with `control_env`.
    """

    def __init__(self, env_id: str, num_envs: int = 1, *, max_episode_steps: int | None = None) -> None:
        """Build the environments, with streams from the operating system's entropy until `reset(seed=...)`.

        Args:
            env_id: as `gymnasium.make` takes it, with its version.
            num_envs: N.
            max_episode_steps: longer episodes are truncated; None for the limit that the id is registered with.
        Raises:
            ValueError: as `control_env`.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, or None for the id's own, got {max_episode_steps}")
        spec = _spec(env_id)
        limit = spec.max_episode_steps if max_episode_steps is None else int(max_episode_steps)
        self._config: dict[str, Any] = {"env_id": env_id, "num_envs": num_envs, "max_episode_steps": limit}
        self._limit = math.inf if limit is None else limit
        self._engine = _engine(env_id, spec, num_envs)
        self._built = {**self._config, "arrays": isinstance(self._engine, Arrays)}  # the two save different things
        observations, actions = self._engine.spaces
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = None
        with np.errstate(over="ignore"):  # the largest float64 as a bound becomes infinity
            low, high = observations.low.astype(np.float32), observations.high.astype(np.float32)
        self.single_observation_space = Box(low, high, dtype=np.float32)
        self.single_action_space = Discrete(int(actions.n))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._shape, self._actions = (num_envs,), int(actions.n)
        self._obs: NDArray[np.float32] | None = None  # what the last reset or step returned
        self._returns = np.zeros(num_envs)
        # Steps since the last reset of all, and at which of them each episode began: the length is the difference, so
        # no array is counted up in every step. `_due` is the next step at which an episode can reach the limit.
        self._clock, self._began, self._due = 0, np.zeros(num_envs, dtype=np.int64), self._limit

    @property
    def rules(self) -> dict[str, Any]:
        """The arguments that it was built with, by name; `max_episode_steps` is the limit that holds."""
        return dict(self._config)

    def with_num_envs(self, num_envs: int, max_episode_steps: int | None = None) -> ControlVectorEnv:
        """Build the same environment with the same physics and another number of them.

        Args:
            num_envs: N.
            max_episode_steps: another time limit; None keeps this one's.
        """
        limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
        other = control_env(**{**self.rules, "num_envs": num_envs, **limit})
        for name, value in self.changed_physics.items():
            other.set_physics(name, value)
        return other

    @property
    def changed_physics(self) -> dict[str, float]:
        """What `set_physics` has set, by name."""
        return dict(self._engine.changed)

    def physics(self, name: str) -> float:
        """The present value of one of the environment's numbers, such as "gravity".

        Raises:
            ValueError: there is no such number; the message lists those that exist.
        """
        self._require_physics(name)
        return float(self._engine.physics(name))

    def set_physics(self, name: str, value: float) -> None:
        """Change one of the environment's numbers in all N environments, from the next step on.

        What an environment reads only when an episode begins (LunarLander: gravity) changes with its next episode.

        Raises:
            ValueError: there is no such number (the message lists those that exist), or the value is not finite, or
                not positive where it must be.
        """
        self._require_physics(name)
        lowest = self._engine.names[name]
        if not (math.isfinite(value) and value > lowest):
            kind = "a positive" if lowest == 0 else "a finite"
            raise ValueError(f"{name} of {self._config['env_id']} must be {kind} number, got {value}")
        self._engine.set_physics(name, float(value))

    def _require_physics(self, name: str) -> None:
        names = self._engine.names
        if name not in names:
            known = ", ".join(names) or "none"
            raise ValueError(f"{self._config['env_id']} has no number {name!r} that can be changed; it has: {known}")

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a new episode in every environment.

        Args:
            seed: an int seeds environment i with `game_seed(seed, i)`, reduced to 31 bits; a sequence of N gives each
                environment its own number in 0 .. 2**31 - 1; None continues the streams.
            options: none are supported, `reset_mask` included.
        Raises:
            ValueError: options were given, a seed is out of range, or there are not N of them.
        """
        if options:
            raise ValueError(
                f"{type(self).__name__}.reset takes no options, got {sorted(options)}: single environments cannot "
                "be reset from outside, they restart within the step that ends an episode"
            )
        seeds: list[int] | None = None
        if isinstance(seed, (int, np.integer)):
            seeds = [game_seed(int(seed), i) & 0x7FFFFFFF for i in range(self.num_envs)]
            super().reset(seed=int(seed))
        elif seed is not None:
            given, n = list(seed), self.num_envs
            if len(given) != n or not all(isinstance(one, (int, np.integer)) and 0 <= one < 2**31 for one in given):
                raise ValueError(f"reset(seed=[...]) takes {n} integers in 0 .. 2**31 - 1, got {given}")
            seeds = [int(one) for one in given]
        self._obs = self._engine.begin(seeds)
        self._returns[:], self._began[:] = 0.0, 0
        self._clock, self._due = 0, self._limit
        return self._obs.copy(), {}

    def step(self, actions: NDArray[np.int64]) -> Step:
        """Play one action in every environment.

        Raises:
            ValueError: actions have another shape or type, or one is out of range. No environment has moved then.
            gymnasium.error.ResetNeeded: `reset` was never called.
        """
        if self._obs is None:
            raise gymnasium.error.ResetNeeded(f"call {type(self).__name__}.reset() before the first step()")
        array = np.asarray(actions)
        if array.shape != self._shape or array.dtype.kind not in "iu":
            raise ValueError(f"actions must be integers of shape {self._shape}, got {array.dtype} {array.shape}")
        chosen = array.tolist()
        if min(chosen) < 0 or max(chosen) >= self._actions:
            raise ValueError(f"actions must lie in 0 .. {self._actions - 1}, got {chosen}")
        obs, rewards, terminated, truncated, over = self._engine.play(array)
        self._returns += rewards
        self._clock += 1
        infos = self._end_episodes(obs, terminated, truncated) if over or self._clock >= self._due else {}
        self._obs = obs
        return obs.copy(), rewards, terminated, truncated, infos

    def _end_episodes(
        self, obs: NDArray[np.float32], terminated: NDArray[np.bool_], truncated: NDArray[np.bool_]
    ) -> dict[str, Any]:
        """Truncate at the limit, restart what has ended, put its new observations into `obs`, and report."""
        lengths = self._clock - self._began
        truncated |= lengths >= self._limit
        truncated &= ~terminated
        ended = terminated | truncated
        final_obs = obs.copy()
        for i in np.flatnonzero(ended).tolist():
            obs[i] = self._engine.restart(i)
        infos = {
            "final_obs": final_obs,
            "_final_obs": ended,
            "episode": {"r": np.where(ended, self._returns, 0.0), "l": np.where(ended, lengths, 0)},
            "_episode": ended.copy(),
        }
        self._returns[ended], self._began[ended] = 0.0, self._clock
        self._due = int(self._began.min()) + self._limit
        return infos

    def observation(self) -> NDArray[np.float32]:
        """Return the present observations [N, D], those that the last `reset` or `step` returned."""
        if self._obs is None:
            raise gymnasium.error.ResetNeeded(f"call {type(self).__name__}.reset() first")
        return self._obs.copy()

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that decides what happens next, physics included."""
        return {
            "config": dict(self._built),
            "returns": self._returns.copy(),
            "lengths": self._clock - self._began,
            "obs": None if self._obs is None else self._obs.copy(),
            "engine": self._engine.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was called; `observation()` then gives the observations of that moment.

        Raises:
            ValueError: the state is of an environment built with other arguments; or playing the running episodes
                again leads elsewhere, so that they cannot be resumed exactly. Nothing has been changed then.
        """
        if state.get("config") != self._built:
            raise ValueError(f"this state is of an environment built with {state.get('config')}, not {self._built}")
        self._engine.load_state_dict(state["engine"], state["obs"], state["returns"])
        self._returns, self._began = state["returns"].copy(), -state["lengths"]
        self._clock, self._due = 0, int(self._began.min()) + self._limit
        self._obs = None if state["obs"] is None else state["obs"].copy()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments."""
        if hasattr(self, "_engine"):  # before Gymnasium 1.4 also called of an object whose constructor refused
            self._engine.close()


def _spec(env_id: str) -> EnvSpec:
    """What the id is registered with; the module in front of a colon is imported first, as `gymnasium.make` does.

    Raises:
        ValueError: the id is of a game, or unknown, or its module cannot be imported.
    """
    module, _, name = env_id.rpartition(":")
    for prefix, script in (("MinAtar/", "ppo_minatar.py"), ("ALE/", "ppo_atari.py"), ("rewarm/", "ppo_atari.py")):
        if name.startswith(prefix):
            raise ValueError(f"{env_id} is a game with images, not a flat vector: agents/{script} is for it")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"{env_id}: the module {module!r} cannot be imported ({error})") from error
    if name not in gymnasium.registry:
        by_lower = {known.lower(): known for known in gymnasium.registry}
        close = [by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, n=2)]
        hint = f"Did you mean {' or '.join(close)}?" if close else "Give one of gymnasium.registry, with its version"
        raise ValueError(f"unknown environment {env_id!r}. {hint}; for another package's write module:Name-v0")
    return gymnasium.spec(name)


def _engine(env_id: str, spec: EnvSpec, num_envs: int) -> Loop | Arrays:
    """What plays the environments faster. Arrays are for the ids that are registered as Gymnasium registers its own."""
    if isinstance(spec.entry_point, str) and not spec.kwargs and not spec.additional_wrappers:
        arrays, faster_from = FASTER_FROM.get(spec.entry_point, (Loop, 0))
        if num_envs >= faster_from:
            return arrays(env_id, spec, num_envs)
    return Loop(env_id, spec, num_envs)


def control_env(env_id: str, num_envs: int = 1, *, max_episode_steps: int | None = None) -> ControlVectorEnv:
    """Build N environments of a Gymnasium id.

    Args:
        env_id: with its version, such as "CartPole-v1"; "module:Name-v0" imports the module first.
        num_envs: N.
        max_episode_steps: longer episodes are truncated; None for the limit that the id is registered with
            (CartPole-v1: 500).
    Raises:
        ValueError: the id is unknown, or its package is not installed; observations are not a flat Box of floats;
            actions are not Discrete; a number is out of range.
    """
    return ControlVectorEnv(env_id, num_envs, max_episode_steps=max_episode_steps)
