"""What all shifts share: when the task changes, what happens to episodes then, seeding, saving.

How a change happens, in all environments together. Steps are counted in agent steps, summed over the environments. At
the end of the `step()` in which a change falls due, every episode that is still running is truncated, not terminated:
a learner bootstraps from its last observation, which is in `infos["final_obs"]` and still of the old task. Then the
task changes, all environments are reset, and the observations returned are the first of the new task.

Tasks. Changes count 1, 2, 3, ...; with K tasks, change k leads to task k mod K: A B C A B C. Task 0 is the environment
as it is, unless values say otherwise. A wrapper draws its settings from its own random stream, which depends only on
the seed of `reset`: task 2 is the same permutation whenever it comes. The wrapped environment gets the same seed: until
the first change, and always with `NoChange`, it plays bit for bit as it does without the wrapper.

After `reset`, and after a step with a change, `infos["shift"]` has a dictionary for each wrapper, by name: its present
`task`, the number of its `changes`, the agent steps at which it made the last one (`step`, 0 before the first), and
whether it `changed` in this step. Everything else in `infos` is then of the new episodes.
`infos["episode"]` and `infos["_episode"]` report return and length of every episode that ended, truncated ones too, in
the rewards that the learner got.

Wrapped environments must reset finished episodes within the step (`AutoresetMode.SAME_STEP`), give `final_obs` for
them, and continue their random streams in `reset()` without a seed. `state_dict` calls theirs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from envs.timetables import NoChange, Timetable

Step = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]


class Shift(VectorWrapper):
    """A task that changes at the times of a timetable; subclasses say what changes.

    Args:
        env: vector environment with `AutoresetMode.SAME_STEP`.
        timetable: when the task changes.
        tasks: number of tasks, visited in turn.
        arguments: what else the subclass was built with, by name; see `frozen_copy`.
    Raises:
        ValueError: another autoreset mode; fewer than two tasks although there are changes; changes closer to each
            other than the agent steps of one `step()`.
    """

    name: str
    """key in `infos["shift"]`, and of the wrapper's random stream"""

    def __init__(
        self, env: VectorEnv[Any, Any, Any], timetable: Timetable, tasks: int, arguments: dict[str, Any] | None = None
    ) -> None:
        super().__init__(env)
        if self.name in _names(env):
            raise ValueError(f"{self.name!r} already changes in the wrapped environment: give one wrapper more tasks")
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"{type(self).__name__} needs an environment with AutoresetMode.SAME_STEP, got {mode}: with any other "
                "the step in which an episode ends is unknown"
            )
        if tasks < 1:
            raise ValueError(f"{type(self).__name__} needs at least one task, got {tasks}")
        gap = timetable.smallest_gap
        if tasks < 2 and not isinstance(timetable, NoChange):
            raise ValueError(f"{type(self).__name__} has one task, so {timetable} cannot change it; give at least two")
        if gap is not None and gap < self.num_envs:
            raise ValueError(
                f"{timetable} has changes {gap} agent steps apart, fewer than the {self.num_envs} agent steps of one "
                f"step() of {self.num_envs} environments"
            )
        self.timetable, self.tasks, self._arguments = timetable, tasks, dict(arguments or {})
        self._entropy: int | list[int] | None = None
        self._frozen: tuple[int | list[int] | None, int] | None = None  # entropy of the settings, and the task
        self._steps = self._changes = self._changed_at = 0
        self._due: int | None = None
        self._stream, self._clock = np.random.default_rng(0), np.random.default_rng(0)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._obs: NDArray[Any] | None = None

    # What a subclass changes.

    def _set_task(self, task: int) -> None:
        """Switch to the settings of this task."""
        raise NotImplementedError

    def _actions(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions [N] of the learner -> actions for the wrapped environment."""
        return actions

    def _observations(self, obs: NDArray[Any]) -> NDArray[Any]:
        """Observations [N, ...] of the wrapped environment -> observations for the learner."""
        return obs

    def _rewards(self, rewards: NDArray[Any]) -> NDArray[Any]:
        """Rewards [N] of the wrapped environment -> rewards for the learner."""
        return rewards

    def _end_episodes(self, ended: NDArray[np.bool_]) -> None:
        """Forget what belongs to the episodes that ended, bool [N]."""

    def _own_state(self) -> dict[str, Any]:
        """State that the task does not determine."""
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        """Load what `_own_state` returned."""

    # The environment.

    @property
    def task(self) -> int:
        """Present task."""
        return self._changes % self.tasks

    @property
    def last_change(self) -> int | None:
        """Agent steps at which the task changed last; None before the first change."""
        return self._changed_at if self._changes else None

    @property
    def steps(self) -> int:
        """Agent steps, summed over the environments, since the last `reset` with a seed."""
        return self._steps

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start new episodes in all environments; with a seed, or the first time, at task 0 and step 0.

        Without a seed the task and the number of steps stay as they are.

        Raises:
            ValueError: `options` asks for the reset of single environments, or a seed is None in a sequence.
        """
        if options and "reset_mask" in options:
            raise ValueError(
                "single environments cannot be reset from outside: they restart within the step() that ends an episode"
            )
        if seed is not None or self._entropy is None:
            self._start(seed)
        obs, infos = self._reset_env(seed, options)
        self._obs = self._observations(obs)
        self._restart_episodes(np.ones(self.num_envs, dtype=np.bool_))
        return self._obs.copy(), {**infos, "shift": {**infos.get("shift", {}), self.name: self._report(False)}}

    def _start(self, seed: int | Sequence[int] | None) -> None:
        if seed is None:
            self._entropy = np.random.SeedSequence().entropy  # type: ignore[assignment]
        elif isinstance(seed, (int, np.integer)):
            self._entropy = int(seed)
        elif any(one is None for one in seed):
            raise ValueError(f"reset(seed={list(seed)}): give one seed, or one for every environment")
        else:
            self._entropy = [int(one) for one in seed]
        # Changes have their own stream: how often the other one is used may depend on what the agent does.
        self._clock, self._stream = (np.random.default_rng(s) for s in self._sequence(entropy=self._entropy).spawn(2))
        self._steps = self._changed_at = 0
        self._changes = self._frozen[1] if self._frozen else 0
        self._due = self.timetable.next_change(0, self._clock)
        self._set_task(self.task)

    def _sequence(self, *task: int, entropy: int | list[int] | None = None) -> np.random.SeedSequence:
        """The stream of a task's settings, which a frozen copy shares with its original; with `entropy`, of the rest.

        The name's checksum separates it from other wrappers' streams and from those of the environment.
        """
        if entropy is None:
            entropy = self._frozen[0] if self._frozen else self._entropy
        return np.random.SeedSequence(entropy, spawn_key=(zlib.crc32(self.name.encode()), *task))

    def frozen_copy(self, make: Callable[[Any], VectorEnv[Any, Any, Any]], task: int | None = None) -> Shift:
        """Wrap other environments so that they stay in the present task, or another: for evaluating a policy.

        The copy has the settings of this environment whatever seed it is reset with; the seed decides everything else.

        Args:
            make: innermost environment -> the one that takes its place, for instance with another num_envs.
            task: the task to stay in; None for the present one.
        Raises:
            ValueError: there is no such task.
            gymnasium.error.ResetNeeded: this environment was never reset.
        """
        if task is not None and not 0 <= task < self.tasks:
            raise ValueError(f"there is no task {task}: the tasks of {type(self).__name__} are 0 to {self.tasks - 1}")
        if self._entropy is None:
            raise gymnasium.error.ResetNeeded(f"call reset() of {type(self).__name__} first: its tasks follow from it")
        build: Any = type(self)
        copy: Shift = build(timetable=NoChange(), **self._arguments, **self._inner(make))
        copy._frozen = (self._frozen[0] if self._frozen else self._entropy, self.task if task is None else task)
        copy._changes = copy._frozen[1]
        return copy

    def _inner(self, make: Callable[[Any], VectorEnv[Any, Any, Any]]) -> dict[str, Any]:
        return {"env": freeze(self.env, make)}

    def _reset_env(
        self, seed: int | Sequence[int] | None, options: dict[str, Any] | None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        env: Any = self.env  # MinAtar takes one seed per environment, which Gymnasium's signature does not allow
        obs, infos = env.reset(seed=seed, options=options)
        return obs, infos

    def step(self, actions: NDArray[Any]) -> Step:
        """One step in every environment, and the change that falls due with it; see the module's text."""
        if self._obs is None:
            raise gymnasium.error.ResetNeeded(f"call reset() of {type(self).__name__} before the first step()")
        obs, rewards, terminated, truncated, infos = self.env.step(self._actions(actions))
        infos = dict(infos)
        rewards, seen = self._rewards(rewards), self._observations(obs)
        ended, final = terminated | truncated, seen.copy()
        if ended.any():
            final[ended] = self._observations(_stacked(infos["final_obs"], obs))[ended]
        self._returns += rewards
        self._lengths += 1
        self._steps += self.num_envs
        inner: dict[str, Any] = infos.get("shift", {})
        change = self._due is not None and self._steps >= self._due
        if change:
            # Episodes that ended on this very step stay terminated or truncated as they were; all others are truncated.
            truncated = truncated | ~ended
            ended = np.ones(self.num_envs, dtype=np.bool_)
            while self._due is not None and self._steps >= self._due:
                self._changes += 1
                self._due = self.timetable.next_change(self._due, self._clock)
            self._changed_at = self._steps
            self._set_task(self.task)
            obs, infos = self._reset_env(None, None)
            # The reset reports the inner wrappers' tasks; only the step knows which of them changed.
            after = infos.get("shift", {})
            inner = {name: {**report, "changed": inner.get(name, report)["changed"]} for name, report in after.items()}
            infos, seen = dict(infos), self._observations(obs)
        if change or inner:
            infos["shift"] = {**inner, self.name: self._report(change)}
        if ended.any():
            # What the wrapped environment reports of episodes is in its own rewards; these entries replace it.
            infos["final_obs"], infos["_final_obs"] = final, ended.copy()
            infos["episode"] = {"r": np.where(ended, self._returns, 0.0), "l": np.where(ended, self._lengths, 0)}
            infos["_episode"] = ended.copy()
            self._restart_episodes(ended)
        self._obs = seen
        return seen.copy(), rewards, terminated, truncated, infos

    def _restart_episodes(self, ended: NDArray[np.bool_]) -> None:
        self._returns[ended], self._lengths[ended] = 0.0, 0
        self._end_episodes(ended)

    def _report(self, changed: bool) -> dict[str, Any]:
        return {"task": self.task, "changes": self._changes, "step": self._changed_at, "changed": changed}

    def observation(self) -> NDArray[Any]:
        """Return the observations that the last `reset` or `step` returned.

        Raises:
            gymnasium.error.ResetNeeded: there are none yet.
        """
        if self._obs is None:
            raise gymnasium.error.ResetNeeded(f"call reset() of {type(self).__name__} first")
        return self._obs.copy()

    # Saving.

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that decides what happens next, including the wrapped environment's state.

        Raises:
            TypeError: the wrapped environment has no `state_dict`.
        """
        return {
            "built": self._built(),
            "frozen": self._frozen,
            "entropy": self._entropy,
            "stream": self._stream.bit_generator.state,
            "clock": self._clock.bit_generator.state,
            "steps": self._steps,
            "changes": self._changes,
            "changed_at": self._changed_at,
            "due": self._due,
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "obs": None if self._obs is None else self._obs.copy(),
            "own": self._own_state(),
            "env": self._env_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was called.

        Raises:
            ValueError: the state is of a wrapper built with other arguments. Nothing has been changed then.
        """
        theirs, mine = state["built"], self._built()
        if differ := [key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)]:
            differences = ", ".join(f"{key}: {theirs.get(key)} saved, {mine.get(key)} here" for key in differ)
            raise ValueError(f"this state is of an environment built with other arguments ({differences})")
        self._load_env_state(state["env"])
        self._frozen, self._entropy = state["frozen"], state["entropy"]
        self._stream.bit_generator.state = state["stream"]
        self._clock.bit_generator.state = state["clock"]
        self._steps, self._changes = state["steps"], state["changes"]
        self._changed_at, self._due = state["changed_at"], state["due"]
        self._returns, self._lengths = state["returns"].copy(), state["lengths"].copy()
        self._obs = None if state["obs"] is None else state["obs"].copy()
        if self._entropy is not None:
            self._set_task(self.task)
        self._load_own_state(state["own"])

    def begin_around(self, state: Any, steps: int) -> None:
        """Continue an environment that has run without this wrapper; call `reset` with a seed first.

        From here on it is in the first task. The running episodes continue.

        Args:
            state: `state_dict` of the wrapped environment.
            steps: agent steps that it has taken; the timetable counts them.
        """
        if self._entropy is None:
            raise gymnasium.error.ResetNeeded(f"call reset() of {type(self).__name__} with a seed first")
        self._load_env_state(state)
        self._steps, self._changes, self._changed_at = steps, 0, 0
        self._due = self.timetable.next_change(steps, self._clock)
        self._set_task(self.task)
        self._returns, self._lengths = _running_episodes(state)
        env: Any = self.env
        self._obs = self._observations(env.observation())

    def continue_otherwise(self, state: dict[str, Any]) -> None:
        """`load_state_dict`, but from now on with this wrapper's own timetable."""
        self.load_state_dict({**state, "built": {**state["built"], "timetable": self._built()["timetable"]}})
        self._due = self.timetable.next_change(self._steps, self._clock)

    def _built(self) -> dict[str, str]:
        """Everything that the constructor was given except the environment, as text."""
        arguments = {"timetable": self.timetable, **self._arguments}
        return {"name": self.name, **{key: repr(value) for key, value in arguments.items()}}

    def _env_state(self) -> Any:
        return save(self.env)

    def _load_env_state(self, state: Any) -> None:
        restore(self.env, state)


def _stacked(final_obs: NDArray[Any], obs: NDArray[Any]) -> NDArray[Any]:
    """`final_obs` as one array [N, ...]; Gymnasium's own environments give objects, None where no episode ended."""
    if final_obs.dtype != object:
        return final_obs
    return np.stack([other if one is None else one for one, other in zip(final_obs, obs, strict=True)])


def _running_episodes(state: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return and length so far of the episodes that run in an environment without wrappers, from its state."""
    if "returns" in state:
        return state["returns"].astype(np.float64), state["lengths"].astype(np.int64)
    games = state["games"]
    returns = np.array([game["episode_return"] for game in games], dtype=np.float64)
    return returns, np.array([game["episode_length"] for game in games], dtype=np.int64)


def _names(env: Any) -> set[str]:
    """Names of the shifts in an environment."""
    found: set[str] = set()
    while isinstance(env, Shift):
        found.add(env.name)
        env = env.env
    return found


def freeze(env: Any, make: Callable[[Any], VectorEnv[Any, Any, Any]]) -> VectorEnv[Any, Any, Any]:
    """`make` applied to the innermost environment, and the shifts around it frozen in their present task."""
    return env.frozen_copy(make) if isinstance(env, Shift) else make(env)


def save(env: VectorEnv[Any, Any, Any]) -> Any:
    """The environment's `state_dict()`.

    Raises:
        TypeError: it has none.
    """
    state_dict = getattr(env, "state_dict", None)
    if state_dict is None:
        raise TypeError(f"{type(env).__name__} has no state_dict, so the wrappers around it cannot be saved either")
    return state_dict()


def restore(env: Any, state: Any) -> None:
    """Load what `save` returned."""
    env.load_state_dict(state)
