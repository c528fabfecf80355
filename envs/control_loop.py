"""N environments of Gymnasium one after another, and what is asked of a single one: spaces, physics, random stream.

`envs.control` makes a vector environment of them; `envs.classic_control` plays some of them in arrays.

Saving. In general the state of a Gymnasium environment cannot be read. Kept instead are the state of its random stream
at the beginning of the episode, the actions since then, and the changes of physics. `Loop.load_state_dict` plays the
episode again, in as many steps, and compares the last observation, the return and the stream with the saved ones.
State that outlives an episode (a curriculum, say) is not saved; it is noticed only if the running episode shows it.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

_ANY, _POSITIVE = -math.inf, 0.0
PHYSICS: dict[type, dict[str, float]] = {
    CartPoleEnv: {
        **dict.fromkeys(("gravity", "force_mag", "x_threshold", "theta_threshold_radians"), _ANY),
        **dict.fromkeys(("masscart", "masspole", "length", "tau"), _POSITIVE),
    },
    AcrobotEnv: {
        **dict.fromkeys(("LINK_COM_POS_1", "LINK_COM_POS_2", "torque_noise_max"), _ANY),
        **dict.fromkeys(("LINK_LENGTH_1", "LINK_MASS_1", "LINK_MASS_2", "LINK_MOI"), _POSITIVE),
        **dict.fromkeys(("MAX_VEL_1", "MAX_VEL_2", "dt"), _POSITIVE),
    },
    MountainCarEnv: {
        **dict.fromkeys(("force", "gravity", "min_position", "max_position"), _ANY),
        **dict.fromkeys(("goal_position", "goal_velocity"), _ANY),
        "max_speed": _POSITIVE,
    },
}
"""What can be changed in Gymnasium's environments, and the number above which it must be: whatever `step` reads.
Acrobot's LINK_LENGTH_2 is only drawn. Of any other environment it is every numeric attribute."""


@dataclass
class _Episode:
    """What a running episode can be played again from."""

    start: Any
    """the seed that `reset` got, or the state of the random stream before it"""
    physics: dict[str, float]
    """what was changed when it began"""
    actions: list[int] = field(default_factory=list)
    """taken since"""
    changes: list[tuple[int, str, float]] = field(default_factory=list)
    """of physics since it began: after how many actions, which, to what"""


class Loop:
    """N environments of `gymnasium.make`, one after another."""

    def __init__(self, env_id: str, spec: EnvSpec, num_envs: int) -> None:
        self._env_id, self._spec, self._num_envs = env_id, spec, num_envs
        self._envs = [make(env_id, spec)]
        self.spaces = spaces(env_id, self._envs[0])
        self._size, actions = self.spaces[0].shape[0], self.spaces[1]
        self._choices = [np.int64(actions.start + i) for i in range(int(actions.n))]  # of the type that `sample` gives
        self._envs += [make(env_id, spec) for _ in range(num_envs - 1)]
        self._steps = [env.step for env in self._envs]
        self.names = numbers(self._envs[0])
        self.changed: dict[str, float] = {}
        self._episodes = [_Episode(_stream(env), {}) for env in self._envs]

    def begin(self, seeds: list[int] | None) -> NDArray[np.float32]:
        """Start all episodes, with random streams of these seeds or the present ones."""
        obs = np.empty((self._num_envs, self._size), dtype=np.float32)
        for i in range(self._num_envs):
            obs[i] = self.restart(i, None if seeds is None else seeds[i])
        return obs

    def restart(self, i: int, seed: int | None = None) -> Any:
        """Start an episode in environment i and return its observation [D]."""
        env = self._envs[i]
        self._episodes[i] = _Episode(_stream(env) if seed is None else seed, self.changed)
        obs = env.reset(seed=seed)[0]
        if np.shape(obs) != (self._size,):  # a single number would be repeated
            raise ValueError(f"{self._env_id} gave an observation of shape {np.shape(obs)}, but has ({self._size},)")
        return obs

    def play(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], bool]:
        """One step: observations, rewards, terminated, truncated, and whether any episode ended."""
        n, choices, over = self._num_envs, self._choices, False
        obs, rewards = np.empty((n, self._size), dtype=np.float32), np.empty(n)
        terminated, truncated = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
        for i, action in enumerate(actions.tolist()):
            self._episodes[i].actions.append(action)
            obs[i], rewards[i], ends, stops, _ = self._steps[i](choices[action])
            if ends or stops:
                terminated[i], truncated[i], over = ends, stops, True
        return obs, rewards, terminated, truncated, over

    def physics(self, name: str) -> float:
        """The present value of a number in `names`."""
        return float(getattr(self._envs[0].unwrapped, name))

    def set_physics(self, name: str, value: float) -> None:
        """Change a number in `names`."""
        for env, episode in zip(self._envs, self._episodes, strict=True):
            assign(env, name, value)
            episode.changes.append((len(episode.actions), name, value))
        self.changed = {**self.changed, name: value}  # a new dictionary: episodes keep the one that they began with

    def state_dict(self) -> dict[str, Any]:
        """Where each running episode began, and what was done since."""
        return {
            "physics": dict(self.changed),
            "episodes": [
                {
                    "start": episode.start,
                    "physics": dict(episode.physics),
                    "actions": np.array(episode.actions, dtype=np.int64),
                    "changes": list(episode.changes),
                    "stream": _stream(env),
                }
                for env, episode in zip(self._envs, self._episodes, strict=True)
            ],
        }

    def load_state_dict(
        self, state: dict[str, Any], obs: NDArray[np.float32] | None, returns: NDArray[np.float64]
    ) -> None:
        """Play the saved episodes in new environments, which then replace the present ones.

        Raises:
            ValueError: they end elsewhere. Nothing has been changed then.
        """
        envs: list[gymnasium.Env[Any, Any]] = []
        episodes = []
        for i, saved in enumerate(state["episodes"]):
            envs.append(env := make(self._env_id, self._spec))
            episode = _Episode(saved["start"], saved["physics"], saved["actions"].tolist(), list(saved["changes"]))
            if obs is None:  # no episode has begun
                _set_stream(env, saved["stream"])
                for name, value in state["physics"].items():
                    assign(env, name, value)
            elif not self._leads_to(env, episode, saved["stream"], obs[i], returns[i]):
                for opened in envs:
                    opened.close()
                raise ValueError(
                    f"{self._env_id} is not determined by its random stream and its actions, so it cannot be resumed "
                    f"exactly: environment {i}, {len(episode.actions)} steps into its episode, came elsewhere"
                )
            episodes.append(episode)
        self.close()
        self._envs, self._episodes, self.changed = envs, episodes, dict(state["physics"])
        self._steps = [env.step for env in envs]

    def _leads_to(
        self, env: gymnasium.Env[Any, Any], episode: _Episode, stream: Any, obs: NDArray[np.float32], total: float
    ) -> bool:
        """Play the episode in a new environment; whether it comes to this stream, observation and return."""
        for name, value in episode.physics.items():
            assign(env, name, value)
        if isinstance(episode.start, int):
            last = env.reset(seed=episode.start)[0]
        else:
            _set_stream(env, episode.start)
            last = env.reset()[0]
        changes, returned = episode.changes[::-1], 0.0
        for step, action in enumerate([*episode.actions, None]):
            while changes and changes[-1][0] == step:
                assign(env, *changes.pop()[1:])
            if action is not None:
                last, reward, *_ = env.step(self._choices[action])
                returned += float(reward)
        if np.asarray(last).astype(np.float32).tobytes() != obs.tobytes():
            return False
        return repr((returned, _stream(env))) == repr((float(total), stream))  # streams may hold arrays

    def close(self) -> None:
        """Close all environments."""
        for env in self._envs:
            env.close()


def make(env_id: str, spec: EnvSpec, **options: Any) -> gymnasium.Env[Any, Any]:
    """One environment without time limit, order enforcement and checker, which cost time and are done here.

    Args:
        env_id: for messages.
        spec: what the id is registered with.
        options: of its constructor, such as a render mode.
    """
    spec = copy.copy(spec)
    spec.max_episode_steps, spec.order_enforce = None, False
    try:
        with warnings.catch_warnings():  # Box2D warns while it is imported, and crashes where warnings are errors
            warnings.simplefilter("ignore", DeprecationWarning)
            return gymnasium.make(spec, disable_env_checker=True, **options)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        if "box2d" in str(error).lower():
            raise ValueError(f"{env_id} needs Box2D and pygame: pip install -e '.[box2d]'") from error
        raise ValueError(f"{env_id} cannot be built: {error}") from error


def spaces(env_id: str, env: gymnasium.Env[Any, Any]) -> tuple[Box, Discrete]:
    """The spaces of observations and actions.

    Raises:
        ValueError: observations are not a flat Box of floats, or actions are not Discrete.
    """
    observations, actions = env.observation_space, env.action_space
    if not isinstance(observations, Box) or len(observations.shape) != 1 or observations.dtype.kind != "f":
        hint = "; agents/ppo_minatar.py and ppo_atari.py are for images" if len(observations.shape or ()) == 3 else ""
        raise ValueError(f"{env_id} has observations {observations}, but a flat Box of floats is needed{hint}")
    if not isinstance(actions, Discrete):
        why = "continuous actions" if isinstance(actions, Box) else "actions"
        raise ValueError(f"{env_id} has {why} {actions}, but Discrete ones are needed: this policy is categorical")
    return observations, actions


def numbers(env: gymnasium.Env[Any, Any]) -> dict[str, float]:
    """Names of the numbers of an environment that can be changed, and what each must be greater than."""
    inner = env.unwrapped
    for kind, names in PHYSICS.items():
        if isinstance(inner, kind):
            return names
    found: dict[str, Any] = {}
    for holder in (*(kind for kind in type(inner).__mro__[::-1] if kind not in (object, gymnasium.Env)), inner):
        found.update(vars(holder))  # not getattr: a property is no number that can be set
    kinds = (int, float, np.integer, np.floating)
    numeric = {name for name, value in found.items() if isinstance(value, kinds) and not isinstance(value, bool)}
    return {name: _ANY for name in found if name in numeric and not name.startswith("_")}


def assign(env: gymnasium.Env[Any, Any], name: str, value: float) -> None:
    """Change a number of one environment, and what it derives from it; a whole number stays of type int."""
    inner: Any = env.unwrapped
    whole = isinstance(getattr(inner, name), (int, np.integer)) and value == int(value)
    setattr(inner, name, int(value) if whole else value)
    if isinstance(inner, CartPoleEnv):  # computed once in its constructor, read in every step
        inner.total_mass = inner.masspole + inner.masscart
        inner.polemass_length = inner.masspole * inner.length


def _stream(env: gymnasium.Env[Any, Any]) -> Any:
    """State of the environment's random stream; None if it has none of NumPy's generators."""
    generator = getattr(getattr(env.unwrapped, "np_random", None), "bit_generator", None)
    return None if generator is None else generator.state


def _set_stream(env: gymnasium.Env[Any, Any], state: Any) -> None:
    """Continue the environment's random stream in this state."""
    if state is not None:
        env.unwrapped.np_random.bit_generator.state = state
