"""What changes in a world: shifts, as wrappers of vector environments.

Each wrapper changes one thing (`Shift` lists them), when its timetable (`envs.timetables`) says so, and they nest:

    env = MinAtarVectorEnv("MinAtar/Breakout-v1", 8)
    env = PermuteActions(env, EverySteps(200_000), tasks=2)        # A B A B ...
    env = ScaleRewards(env, AtSteps([500_000]), values=(1.0, -1.0))

How a change happens, in all copies together. Steps are counted in agent steps, summed over the copies. At the end of
the `step()` in which a change falls due, every episode that still runs is truncated, not terminated, so that a learner
bootstraps from its last observation, which is in `infos["final_obs"]` and still of the old world; then the world
changes, all copies are restarted, and the observations returned are the first of the new world.

Tasks. Changes count 1, 2, 3, ...; with K settings, change k leads to task k mod K: A B C A B C. Task 0 is the
environment as it is, unless values say otherwise. A wrapper's settings come from a stream of its own, which follows
from the seed of `reset` alone, so that task 2 is the same permutation whenever it comes. The wrapped environment is
given the same seed: until the first change, and always with `NoChange`, it plays bit for bit as it does bare.

After `reset`, and after a step with a change, `infos["shift"]` has a dictionary for each wrapper, by name: its present
`task`, the number of its `changes`, the agent steps at which it made the last one (`step`, 0 before the first), and
whether it `changed` just now. Everything else in `infos` is then of the new episodes.
`infos["episode"]` and `infos["_episode"]` report return and length of every episode that ended, truncated ones too, in
the rewards that the learner saw.

Wrapped environments must restart finished copies within the step (`AutoresetMode.SAME_STEP`), give `final_obs` for
them, and go on with their random streams in `reset()` without a seed. `state_dict` asks for theirs.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.timetables import NoChange, Timetable

Step = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]


class Shift(VectorWrapper, RecordConstructorArgs):
    """A world that changes by a timetable; subclasses say what changes.

    `EnvSequence` (games, modes, difficulties), `PermuteActions`, `PermuteObservations`, `ScaleRewards`,
    `RepeatActions`, `CorruptObservations`.

    Args:
        env: vector environment with `AutoresetMode.SAME_STEP`.
        timetable: when the world changes.
        tasks: number of settings, visited in turn.
    Raises:
        ValueError: another autoreset mode; fewer than two tasks although there are changes; changes closer to each
            other than the agent steps of one `step()`.
    """

    name: str
    """key in `infos["shift"]`, and of the wrapper's stream"""

    def __init__(self, env: VectorEnv[Any, Any, Any], timetable: Timetable, tasks: int) -> None:
        super().__init__(env)
        if self.name in _names(env):
            raise ValueError(f"{self.name!r} already changes in the wrapped environment: give one wrapper more tasks")
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"{type(self).__name__} needs an environment with AutoresetMode.SAME_STEP, got {mode}: with any other "
                "the step in which an episode ends cannot be told"
            )
        if tasks < 1:
            raise ValueError(f"{type(self).__name__} needs at least one task, got {tasks}")
        gap = timetable.smallest_gap
        if tasks < 2 and not isinstance(timetable, NoChange):
            raise ValueError(f"{type(self).__name__} has one task, between which {timetable} cannot change")
        if gap is not None and gap < self.num_envs:
            raise ValueError(
                f"{timetable} has changes {gap} agent steps apart, and one step() of {self.num_envs} copies is "
                f"{self.num_envs}: give at least that"
            )
        self.timetable, self.tasks = timetable, tasks
        self._entropy: int | list[int] | None = None
        self._pinned: tuple[int | list[int] | None, int] | None = None  # entropy of the settings, and the task
        self._steps = self._changes = self._changed_at = 0
        self._due: int | None = None
        self._stream, self._clock = np.random.default_rng(0), np.random.default_rng(0)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._obs: NDArray[Any] | None = None

    # What a subclass changes.

    def _become(self, task: int) -> None:
        """Take on the setting of this task."""
        raise NotImplementedError

    def _chosen(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions [N] as the wrapped environment is to get them."""
        return actions

    def _observed(self, obs: NDArray[Any]) -> NDArray[Any]:
        """Observations [N, ...] as the learner is to see them."""
        return obs

    def _rewarded(self, rewards: NDArray[Any]) -> NDArray[Any]:
        """Rewards [N] as the learner is to get them."""
        return rewards

    def _restarted(self, ended: NDArray[np.bool_]) -> None:
        """Forget what belongs to the episodes that ended, bool [N]."""

    def _own_state(self) -> dict[str, Any]:
        """What the setting of a task does not determine."""
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        """Take it back."""

    # The world.

    @property
    def task(self) -> int:
        """Present task."""
        return self._changes % self.tasks

    @property
    def steps(self) -> int:
        """Agent steps, summed over the copies, since the last `reset` with a seed."""
        return self._steps

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Restart every copy; with a seed, or the first time, the world begins anew too, at task 0 and step 0.

        Without a seed the world goes on where it is: steps are not taken back and the task stays.

        Raises:
            ValueError: `options` asks for the reset of single copies, or a seed is None in a sequence.
        """
        if options and "reset_mask" in options:
            raise ValueError("single copies cannot be reset from outside: they restart within the step that ends them")
        if seed is not None or self._entropy is None:
            self._begin(seed)
        obs, infos = self._reset_env(seed, options)
        self._obs = self._observed(obs)
        self._restart_episodes(np.ones(self.num_envs, dtype=np.bool_))
        return self._obs.copy(), {**infos, "shift": {**infos.get("shift", {}), self.name: self._told(False)}}

    def _begin(self, seed: int | Sequence[int] | None) -> None:
        if seed is None:
            self._entropy = np.random.SeedSequence().entropy  # type: ignore[assignment]
        elif isinstance(seed, (int, np.integer)):
            self._entropy = int(seed)
        elif any(one is None for one in seed):
            raise ValueError(f"reset(seed={list(seed)}): a world needs one seed, or one for every copy")
        else:
            self._entropy = [int(one) for one in seed]
        # Changes come from a stream of their own: how often the other is asked may depend on what the agent does.
        self._clock, self._stream = (np.random.default_rng(s) for s in self._sequence(entropy=self._entropy).spawn(2))
        self._steps = self._changed_at = 0
        self._changes = self._pinned[1] if self._pinned else 0
        self._due = self.timetable.next_change(0, self._clock)
        self._become(self.task)

    def _sequence(self, *task: int, entropy: int | list[int] | None = None) -> np.random.SeedSequence:
        """The stream of a task's setting, which a pinned copy shares with its original; with `entropy`, of the rest.

        The name's checksum keeps it apart from other wrappers' streams and from those of the environment.
        """
        if entropy is None:
            entropy = self._pinned[0] if self._pinned else self._entropy
        return np.random.SeedSequence(entropy, spawn_key=(zlib.crc32(self.name.encode()), *task))

    def pinned(self, make: Callable[[Any], VectorEnv[Any, Any, Any]]) -> Shift:
        """A copy that stays in the present task, around other environments: what a policy is evaluated in.

        Its settings are those of this world, whatever seed it is reset with; that seed decides the rest.

        Args:
            make: innermost environment -> the one to stand in its place, for instance with more copies.
        Raises:
            gymnasium.error.ResetNeeded: this world has not begun.
        """
        if self._entropy is None:
            raise gymnasium.error.ResetNeeded(f"call reset() of {type(self).__name__} first: its tasks follow from it")
        copy = type(self)(**{**self._saved_kwargs, "timetable": NoChange(), **self._inner(make)})
        copy._pinned = (self._pinned[0] if self._pinned else self._entropy, self.task)
        copy._changes = self.task
        return copy

    def _inner(self, make: Callable[[Any], VectorEnv[Any, Any, Any]]) -> dict[str, Any]:
        return {"env": _pinned_or_made(self.env, make)}

    def _reset_env(
        self, seed: int | Sequence[int] | None, options: dict[str, Any] | None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        env: Any = self.env  # MinAtar takes a seed for every copy, which Gymnasium's signature does not know
        obs, infos = env.reset(seed=seed, options=options)
        return obs, infos

    def step(self, actions: NDArray[Any]) -> Step:
        """One step in every copy, and the change that falls due with it; see the module's text."""
        if self._obs is None:
            raise gymnasium.error.ResetNeeded(f"call reset() of {type(self).__name__} before the first step()")
        obs, rewards, terminated, truncated, infos = self.env.step(self._chosen(actions))
        infos = dict(infos)
        rewards, seen = self._rewarded(rewards), self._observed(obs)
        ended, final = terminated | truncated, seen.copy()
        if ended.any():
            final[ended] = self._observed(_stacked(infos["final_obs"], obs))[ended]
        self._returns += rewards
        self._lengths += 1
        self._steps += self.num_envs
        inner: dict[str, Any] = infos.get("shift", {})
        change = self._due is not None and self._steps >= self._due
        if change:
            # Ended on this very step by themselves: terminated or truncated as they were. All others: truncated.
            truncated = truncated | ~ended
            ended = np.ones(self.num_envs, dtype=np.bool_)
            while self._due is not None and self._steps >= self._due:
                self._changes += 1
                self._due = self.timetable.next_change(self._due, self._clock)
            self._changed_at = self._steps
            self._become(self.task)
            obs, infos = self._reset_env(None, None)
            # The reset says how things are within; what changed there in this step was said before it.
            told = infos.get("shift", {})
            inner = {name: {**here, "changed": inner.get(name, here)["changed"]} for name, here in told.items()}
            infos, seen = dict(infos), self._observed(obs)
        if change or inner:
            infos["shift"] = {**inner, self.name: self._told(change)}
        if ended.any():
            # What the wrapped environment says of episodes is in its own rewards; these entries are made here.
            infos["final_obs"], infos["_final_obs"] = final, ended.copy()
            infos["episode"] = {"r": np.where(ended, self._returns, 0.0), "l": np.where(ended, self._lengths, 0)}
            infos["_episode"] = ended.copy()
            self._restart_episodes(ended)
        self._obs = seen
        return seen.copy(), rewards, terminated, truncated, infos

    def _restart_episodes(self, ended: NDArray[np.bool_]) -> None:
        self._returns[ended], self._lengths[ended] = 0.0, 0
        self._restarted(ended)

    def _told(self, changed: bool) -> dict[str, Any]:
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
        """Return everything that decides what happens next, of the wrapped environment too, as a copy.

        Raises:
            TypeError: the wrapped environment has no `state_dict`.
        """
        return {
            "built": self._built(),
            "pinned": self._pinned,
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
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: the state is of a wrapper built with other arguments. Nothing has been changed then.
        """
        theirs, mine = state["built"], self._built()
        if differ := [key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)]:
            told = ", ".join(f"{key}: {theirs.get(key)} saved, {mine.get(key)} here" for key in differ)
            raise ValueError(f"this state is of a world built otherwise ({told})")
        self._load_env_state(state["env"])
        self._pinned, self._entropy = state["pinned"], state["entropy"]
        self._stream.bit_generator.state = state["stream"]
        self._clock.bit_generator.state = state["clock"]
        self._steps, self._changes = state["steps"], state["changes"]
        self._changed_at, self._due = state["changed_at"], state["due"]
        self._returns, self._lengths = state["returns"].copy(), state["lengths"].copy()
        self._obs = None if state["obs"] is None else state["obs"].copy()
        if self._entropy is not None:
            self._become(self.task)
        self._load_own_state(state["own"])

    def _built(self) -> dict[str, str]:
        """Everything but the environment that the constructor was given, as text."""
        arguments = {key: value for key, value in self._saved_kwargs.items() if key not in ("env", "envs")}
        return {"name": self.name, **{key: repr(value) for key, value in arguments.items()}}

    def _env_state(self) -> Any:
        return _saved(self.env)

    def _load_env_state(self, state: Any) -> None:
        _restore(self.env, state)


class EnvSequence(Shift):
    """One environment after the other: games, or one game in several modes, difficulties or time limits.

    Each is built by the caller and keeps its own streams: back in the first one, its games go on. Observations
    [N, C, ...] with fewer channels than the widest are padded with zeros behind.

    Args:
        envs: vector environments with the same number of copies, the same actions, and observations that differ in
            channels alone (MinAtar: -v0 ids, which have all six actions).
        timetable: when the next one takes over.
    Raises:
        ValueError: they do not fit together; otherwise as `Shift`.
    """

    name = "env"

    def __init__(self, envs: Sequence[VectorEnv[Any, Any, Any]], timetable: Timetable) -> None:
        RecordConstructorArgs.__init__(self, envs=envs, timetable=timetable, _disable_deepcopy=True)
        if not envs:
            raise ValueError("EnvSequence needs at least one environment")
        first = envs[0]
        for other in envs[1:]:
            if other.num_envs != first.num_envs:
                raise ValueError(f"environments of {first.num_envs} and of {other.num_envs} copies make no sequence")
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

    def _become(self, task: int) -> None:
        self.env = self._envs[task]

    def _reset_env(
        self, seed: int | Sequence[int] | None, options: dict[str, Any] | None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        if seed is not None or self._obs is None:  # the world begins: all of them do
            others: Any = self._envs[1:]
            for env in others:
                env.reset(seed=seed, options=options)
        return super()._reset_env(seed, options)

    def _observed(self, obs: NDArray[Any]) -> NDArray[Any]:
        shape = self.single_observation_space.shape or ()
        if obs.shape[1:] == shape:
            return obs
        padded = np.zeros((self.num_envs, *shape), dtype=obs.dtype)
        padded[:, : obs.shape[1]] = obs
        return padded

    def _inner(self, make: Callable[[Any], VectorEnv[Any, Any, Any]]) -> dict[str, Any]:
        return {"envs": [_pinned_or_made(env, make) for env in self._envs]}

    def _env_state(self) -> Any:
        return [_saved(env) for env in self._envs]

    def _load_env_state(self, state: Any) -> None:
        for env, saved in zip(self._envs, state, strict=True):
            _restore(env, saved)

    def close(self, **kwargs: Any) -> None:
        """Close all of them."""
        for env in self._envs:
            env.close(**kwargs)


class PermuteActions(Shift):
    """Actions mean something else: action a is executed as p(a). Task 0 leaves them; no two permutations are alike.

    Two worlds still may be: of MinAtar's six actions under a -v0 id some do nothing, and it is the same to swap these.

    Args:
        env: environment with discrete actions.
        timetable: when the next permutation comes.
        tasks: permutations, the identity among them, visited in turn.
    Raises:
        ValueError: actions are not discrete, or there are not so many permutations; otherwise as `Shift`.
    """

    name = "actions"

    def __init__(self, env: VectorEnv[Any, Any, Any], timetable: Timetable, tasks: int = 2) -> None:
        RecordConstructorArgs.__init__(self, env=env, timetable=timetable, tasks=tasks, _disable_deepcopy=True)
        super().__init__(env, timetable, tasks)
        space = env.single_action_space
        if not isinstance(space, Discrete) or space.start != 0:
            raise ValueError(f"PermuteActions needs actions 0 .. n - 1, got {space}")
        _require_permutations(int(space.n), tasks)
        self._order = np.arange(int(space.n))

    def _become(self, task: int) -> None:
        self._order = _permutations(len(self._order), task, self._sequence)[task]

    def _chosen(self, actions: NDArray[Any]) -> NDArray[Any]:
        array = np.asarray(actions)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iu":
            raise ValueError(f"actions must be integers of shape ({self.num_envs},), got {array.dtype} {array.shape}")
        if array.min() < 0 or array.max() >= len(self._order):
            raise ValueError(f"actions must lie in 0 .. {len(self._order) - 1}, got {array.tolist()}")
        executed: NDArray[Any] = self._order[array]
        return executed


class PermuteObservations(Shift):
    """The input is rearranged: channels, or the positions of the pixels. Task 0 leaves it; no permutation comes twice.

    Args:
        env: environment with observations [C, H, W] whose entries all have the same bounds.
        timetable: when the next permutation comes.
        tasks: permutations, the identity among them, visited in turn.
        what: "channels" [C], or "pixels" [H * W], moved alike in all channels.
    Raises:
        ValueError: observations have another shape or uneven bounds, or there are not so many permutations; otherwise
            as `Shift`.
    """

    def __init__(
        self, env: VectorEnv[Any, Any, Any], timetable: Timetable, tasks: int = 2, what: str = "channels"
    ) -> None:
        RecordConstructorArgs.__init__(
            self, env=env, timetable=timetable, tasks=tasks, what=what, _disable_deepcopy=True
        )
        if what not in ("channels", "pixels"):
            raise ValueError(f"what={what!r}: channels or pixels can be permuted")
        self.name = what
        super().__init__(env, timetable, tasks)
        space = env.single_observation_space
        low, high = _even_bounds(space, "PermuteObservations")
        if len(space.shape or ()) != 3 or low == high:
            raise ValueError(f"PermuteObservations needs observations [C, H, W], got {space}")
        channels, height, width = space.shape or ()
        self.what, self._size = what, channels if what == "channels" else height * width
        _require_permutations(self._size, tasks)
        self._order = np.arange(self._size)

    def _become(self, task: int) -> None:
        self._order = _permutations(self._size, task, self._sequence)[task]

    def _observed(self, obs: NDArray[Any]) -> NDArray[Any]:
        if self.what == "channels":
            return obs[:, self._order]
        flat = obs.reshape(*obs.shape[:2], self._size)
        permuted: NDArray[Any] = flat[:, :, self._order].reshape(obs.shape)
        return permuted


class ScaleRewards(Shift):
    """Rewards are multiplied: by another size, or another sign.

    Args:
        env: any.
        timetable: when the next factor comes.
        values: the factors, in turn; the first is there from the start.
    Raises:
        ValueError: a factor is not finite; otherwise as `Shift`.
    """

    name = "rewards"

    def __init__(self, env: VectorEnv[Any, Any, Any], timetable: Timetable, values: Sequence[float]) -> None:
        RecordConstructorArgs.__init__(self, env=env, timetable=timetable, values=values, _disable_deepcopy=True)
        super().__init__(env, timetable, len(values))
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"factors of rewards must be finite, got {tuple(values)}")
        self.values, self._factor = tuple(values), values[0]

    def _become(self, task: int) -> None:
        self._factor = self.values[task]

    def _rewarded(self, rewards: NDArray[Any]) -> NDArray[Any]:
        return rewards * self._factor


class RepeatActions(Shift):
    """Sticky actions of changing probability: with it, the copy's previous executed action is executed instead.

    The first action of an episode is always executed. Each copy draws one number per step, whatever the probability.
    An environment that has sticky actions of its own keeps them besides.

    Args:
        env: any.
        timetable: when the next probability comes.
        values: the probabilities, in turn; the first is there from the start.
    Raises:
        ValueError: a value is no probability; otherwise as `Shift`.
    """

    name = "sticky"

    def __init__(self, env: VectorEnv[Any, Any, Any], timetable: Timetable, values: Sequence[float]) -> None:
        RecordConstructorArgs.__init__(self, env=env, timetable=timetable, values=values, _disable_deepcopy=True)
        super().__init__(env, timetable, len(values))
        self.values = _probabilities(values, "RepeatActions")
        self._probability = self.values[0]
        self._previous: NDArray[Any] | None = None
        self._running = np.zeros(self.num_envs, dtype=np.bool_)

    def _become(self, task: int) -> None:
        self._probability = self.values[task]

    def _chosen(self, actions: NDArray[Any]) -> NDArray[Any]:
        repeat = (self._stream.random(self.num_envs) < self._probability) & self._running
        executed = np.array(actions)
        if self._previous is not None:
            executed[repeat] = self._previous[repeat]
        self._previous = executed
        self._running = np.ones(self.num_envs, dtype=np.bool_)
        return executed.copy()

    def _restarted(self, ended: NDArray[np.bool_]) -> None:
        self._running = self._running & ~ended

    def _own_state(self) -> dict[str, Any]:
        previous = None if self._previous is None else self._previous.copy()
        return {"previous": previous, "running": self._running.copy()}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self._previous = None if state["previous"] is None else state["previous"].copy()
        self._running = state["running"].copy()


class CorruptObservations(Shift):
    """Noise of changing strength: each entry is, with the given probability, a random one of its range instead.

    Integer observations draw from all integers of their range, others uniformly from it. On observations of zeros and
    ones half of the replaced entries flip.

    Args:
        env: environment with bounded observations whose entries all have the same bounds.
        timetable: when the next probability comes.
        values: the probabilities, in turn; the first is there from the start.
    Raises:
        ValueError: a value is no probability, or observations are unbounded; otherwise as `Shift`.
    """

    name = "noise"

    def __init__(self, env: VectorEnv[Any, Any, Any], timetable: Timetable, values: Sequence[float]) -> None:
        RecordConstructorArgs.__init__(self, env=env, timetable=timetable, values=values, _disable_deepcopy=True)
        super().__init__(env, timetable, len(values))
        self.values = _probabilities(values, "CorruptObservations")
        self._low, self._high = _even_bounds(env.single_observation_space, "CorruptObservations")
        self._probability = self.values[0]

    def _become(self, task: int) -> None:
        self._probability = self.values[task]

    def _observed(self, obs: NDArray[Any]) -> NDArray[Any]:
        if self._probability == 0:
            return obs
        if obs.dtype.kind in "iub":
            drawn = self._stream.integers(int(self._low), int(self._high), obs.shape, endpoint=True).astype(obs.dtype)
        else:
            drawn = self._stream.uniform(self._low, self._high, obs.shape).astype(obs.dtype)
        return np.where(self._stream.random(obs.shape) < self._probability, drawn, obs)


def _stacked(final_obs: NDArray[Any], obs: NDArray[Any]) -> NDArray[Any]:
    """`final_obs` as one array [N, ...]; Gymnasium's own environments give objects, None where no episode ended."""
    if final_obs.dtype != object:
        return final_obs
    return np.stack([there if one is None else one for one, there in zip(final_obs, obs, strict=True)])


def _permutations(size: int, last: int, sequence: Any) -> list[NDArray[np.int64]]:
    """Those of tasks 0 .. last: the identity, then random ones unlike all before."""
    found = [np.arange(size)]
    for task in range(1, last + 1):
        rng = np.random.default_rng(sequence(task))
        candidate = rng.permutation(size)
        while any(np.array_equal(candidate, known) for known in found):
            candidate = rng.permutation(size)
        found.append(candidate)
    return found


def _require_permutations(size: int, tasks: int) -> None:
    if size < 10 and tasks > math.factorial(size):
        raise ValueError(f"{tasks} tasks, but {size} things have {math.factorial(size)} permutations")


def _widest(spaces: Sequence[gymnasium.Space[Any]]) -> gymnasium.Space[Any]:
    """The space to which padding channels with zeros brings all of them, or a refusal."""
    first = spaces[0]
    if all(space == first for space in spaces):
        return first
    for space in spaces:
        low, high = _even_bounds(space, "EnvSequence")
        alike = space.dtype == first.dtype and (low, high) == _even_bounds(first, "EnvSequence")
        if not alike or low > 0 or high < 0 or (space.shape or ())[1:] != (first.shape or ())[1:]:
            raise ValueError(f"observations {first} and {space} differ in more than their channels")
    return max(spaces, key=lambda space: (space.shape or (0,))[0])


def _even_bounds(space: gymnasium.Space[Any], who: str) -> tuple[float, float]:
    if not isinstance(space, Box) or not space.is_bounded():
        raise ValueError(f"{who} needs bounded observations, got {space}")
    low, high = float(space.low.min()), float(space.high.max())
    if (space.low != low).any() or (space.high != high).any():
        raise ValueError(f"{who} needs observations whose entries all have the same bounds, got {space}")
    return low, high


def _probabilities(values: Sequence[float], who: str) -> tuple[float, ...]:
    if not values or not all(0.0 <= value <= 1.0 for value in values):
        raise ValueError(f"{who} needs probabilities in [0, 1], got {tuple(values)}")
    return tuple(float(value) for value in values)


def _names(env: Any) -> set[str]:
    """Names of the shifts in an environment."""
    found: set[str] = set()
    while isinstance(env, Shift):
        found.add(env.name)
        env = env.env
    return found


def _pinned_or_made(env: Any, make: Callable[[Any], VectorEnv[Any, Any, Any]]) -> VectorEnv[Any, Any, Any]:
    return env.pinned(make) if isinstance(env, Shift) else make(env)


def _restore(env: Any, state: Any) -> None:
    env.load_state_dict(state)


def _saved(env: VectorEnv[Any, Any, Any]) -> Any:
    save = getattr(env, "state_dict", None)
    if save is None:
        raise TypeError(f"{type(env).__name__} has no state_dict, so that what is around it cannot be saved either")
    return save()
