"""From one description to the vector environment that a script trains in: which game, what changes in it, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from gymnasium.vector import VectorEnv, VectorWrapper

from envs import asterix, breakout, catch, freeway, invaders, seaquest
from envs.array_games import ArrayVectorEnv
from envs.atari import atari_env
from envs.catch import CatchVectorEnv
from envs.control import ControlVectorEnv, control_env
from envs.frames import STACK, FrameVectorEnv, StackFrames
from envs.minatar import MinAtarVectorEnv
from envs.shifts import (
    ChangePhysics,
    CorruptObservations,
    DriftPhysics,
    EnvSequence,
    OffsetObservations,
    PermuteActions,
    PermuteObservations,
    RepeatActions,
    RotateObservations,
    ScaleObservations,
    ScaleRewards,
    Shift,
)
from envs.timetables import EverySteps, NoChange, Timetable

Kind = Literal["none", "games", "actions", "channels", "pixels", "rewards", "sticky", "noise"]
ScreenKind = Literal["none", "games", "modes", "difficulties", "actions", "pixels", "rewards", "sticky", "noise"]
ControlKind = Literal["none", "offsets", "rotations", "gains", "actions", "rewards", "sticky", "physics"]

PROTOCOLS: dict[str, dict[str, Any]] = {
    "machado": {"sticky_action_prob": 0.25, "noop_max": 0},
    "classic": {"sticky_action_prob": 0.0, "noop_max": 30},
}
"""How Atari games are played: sticky actions (Machado et al. 2018), or none and no-op starts (Mnih et al. 2015)."""


@dataclass(frozen=True)
class World:
    """MinAtar games: how many environments, what changes in them and when.

    Raises (in `make`):
        ValueError: the games do not exist or do not fit together, what changes does not fit the rest, or a field is
            given that this kind does not use.
    """

    games: Sequence[str]
    """environment ids; several only for kind "games", which visits them in turn and needs -v0 ids"""
    num_envs: int = 1
    """number of environments"""
    kind: Kind = "none"
    """what changes: the game, the meaning of actions, the order of channels or pixels, the factor of rewards, the
    probability of sticky actions (in place of the games' own 0.1) or of noise"""
    timetable: Timetable = field(default_factory=NoChange)
    """when"""
    tasks: int = 2
    """number of permutations, including the identity (actions, channels, pixels)"""
    values: Sequence[float] = ()
    """factors or probabilities (rewards, sticky, noise); the first holds from the start"""

    PERMUTED: ClassVar[tuple[str, ...]] = ("actions", "channels", "pixels")
    """kinds that use `tasks`"""
    VALUED: ClassVar[tuple[str, ...]] = ("rewards", "sticky", "noise")
    """kinds that use `values`"""

    def make(self) -> VectorEnv[Any, Any, Any]:
        """Build the environments, unseeded. Kind "none" has no wrapper: it is what `minatar_env` returns."""
        _reject_unused(self)
        # With kind "sticky" the games' own sticky actions are off, and the wrapper's probability is the only one.
        own = 0.0 if self.kind == "sticky" else 0.1
        envs = [minatar_env(game, self.num_envs, sticky_action_prob=own) for game in self.games]
        return _shifted(envs, self.kind, self.timetable, self.tasks, self.values)


@dataclass(frozen=True)
class ScreenWorld:
    """Games seen as stacks of four grey frames, Atari or Catch: how many environments, what changes in them and when.

    Raises (in `make`):
        ValueError: as `World`; modes and difficulties need Atari, and no threads.
    """

    games: Sequence[str]
    """environment ids, ALE/<Game>-v5 or rewarm/Catch-v0; several only for kind "games", with all 18 actions"""
    num_envs: int = 1
    """number of environments"""
    kind: ScreenKind = "none"
    """what changes: as for `World`, or a game's mode or difficulty; there is no kind "channels", which would be the
    order of frames"""
    timetable: Timetable = field(default_factory=NoChange)
    """when"""
    tasks: int = 2
    """number of permutations, including the identity (actions, pixels)"""
    values: Sequence[float] = ()
    """factors, probabilities, modes or difficulties; the first holds from the start"""
    sticky_action_prob: float = 0.25
    """of the games; off with kind "sticky", whose values replace it (drawn once per step, not per frame)"""
    noop_max: int = 0
    """an episode begins with up to so many frames without action (Atari)"""
    threads: int = 0
    """of ale-py's vector environment; 0: emulators in Python, which can be saved"""

    PERMUTED: ClassVar[tuple[str, ...]] = ("actions", "pixels")
    """kinds that use `tasks`"""
    VALUED: ClassVar[tuple[str, ...]] = ("rewards", "sticky", "noise", "modes", "difficulties")
    """kinds that use `values`"""

    def make(self) -> VectorEnv[Any, Any, Any]:
        """Build the environments, unseeded."""
        _reject_unused(self)
        own = 0.0 if self.kind == "sticky" else self.sticky_action_prob
        rules: dict[str, Any] = {"sticky_action_prob": own, "noop_max": self.noop_max, "threads": self.threads}
        if self.kind == "games":
            rules["full_action_space"] = True
        if self.kind in ("modes", "difficulties"):
            if any(value != int(value) for value in self.values):
                raise ValueError(f"{self.kind} must be whole numbers, got {tuple(self.values)}")
            name = "mode" if self.kind == "modes" else "difficulty"
            each = [{name: int(value)} for value in self.values]
            envs = [screen_env(game, self.num_envs, **rules, **more) for game in self.games for more in each]
            if len(self.games) != 1:
                raise ValueError(f"kind {self.kind!r} needs exactly one game, got {len(self.games)}")
            return StackFrames(EnvSequence(envs, self.timetable), STACK)
        envs = [screen_env(game, self.num_envs, **rules) for game in self.games]
        return StackFrames(_shifted(envs, self.kind, self.timetable, self.tasks, self.values), STACK)


@dataclass(frozen=True)
class ControlWorld:
    """Environments with observations that are vectors, and discrete actions: how many, what changes in them and when.

    Raises (in `make`):
        ValueError: as `World`; or the physics lacks `what`.
    """

    env_id: str
    """a Gymnasium id, see `envs.control`"""
    num_envs: int = 1
    """number of environments"""
    kind: ControlKind = "none"
    """what changes: an offset, a rotation or the gains of the observations, the meaning of actions, the factor of
    rewards, the probability of sticky actions, or the physics; there is no kind "noise", which needs bounded
    observations, and no kind "games", since observations and actions differ"""
    timetable: Timetable = field(default_factory=NoChange)
    """when; with `drift` its period is the number of agent steps from one value to the next"""
    tasks: int = 2
    """number of offsets, rotations, vectors of gains or permutations, including the identity"""
    values: Sequence[float] = ()
    """factors, probabilities, or values of the physics; the first holds from the start"""
    scale: float = 2.0
    """standard deviation of offsets (in units of the observations), or of the binary logarithm of gains"""
    what: str = ""
    """the number of the physics that changes"""
    drift: bool = False
    """the physics moves slowly from value to value, without a change of task"""
    max_episode_steps: int | None = None
    """episodes are truncated after so many steps; None: the environment's own limit"""

    PERMUTED: ClassVar[tuple[str, ...]] = ("offsets", "rotations", "gains", "actions")
    """kinds that use `tasks`"""
    VALUED: ClassVar[tuple[str, ...]] = ("rewards", "sticky", "physics")
    """kinds that use `values`"""
    SCALED: ClassVar[tuple[str, ...]] = ("offsets", "gains")
    """kinds that use `scale`"""

    def make(self) -> VectorEnv[Any, Any, Any]:
        """Build the environments, unseeded. Kind "none" has no wrapper: it is what `control_env` returns."""
        physics = self.kind == "physics"
        _reject_unused(
            self,
            scale=(self.scale != 2.0, self.kind in self.SCALED),
            what=(self.what != "", physics),
            drift=(self.drift, physics),
        )
        if self.kind not in get_args(ControlKind):
            raise ValueError(f"kind {self.kind!r} is unknown")
        env, when = control_env(self.env_id, self.num_envs, max_episode_steps=self.max_episode_steps), self.timetable
        if env.rules["max_episode_steps"] is None:  # an evaluation might never end, nor an episode be recorded
            raise ValueError(f"{self.env_id} is registered without a time limit: give one with --max-episode-steps")
        match self.kind:
            case "offsets":
                return OffsetObservations(env, when, self.tasks, self.scale)
            case "rotations":
                return RotateObservations(env, when, self.tasks)
            case "gains":
                return ScaleObservations(env, when, self.tasks, self.scale)
            case "physics" if self.drift and isinstance(when, EverySteps):
                return DriftPhysics(env, when.period, self.what, self.values)
            case "physics" if self.drift and when != NoChange():
                raise ValueError(f"drift needs a period, EverySteps, got {when}")
            case "physics":  # without changes, one that drifts stays at its first value, too
                return ChangePhysics(env, when, self.what, self.values)
        return _shifted([env], self.kind, when, self.tasks, self.values)


def _reject_unused(world: World | ScreenWorld | ControlWorld, **more: tuple[bool, bool]) -> None:
    """Raise ValueError for fields that this kind does not use; `more` has others: whether given, and whether used."""
    given = {"timetable": world.timetable != NoChange(), "tasks": world.tasks != 2, "values": bool(world.values)}
    used = {"timetable": world.kind != "none", "tasks": world.kind in world.PERMUTED}
    used["values"] = world.kind in world.VALUED
    for name, (is_given, is_used) in more.items():
        given[name], used[name] = is_given, is_used
    if unused := [name for name, is_given in given.items() if is_given and not used[name]]:
        raise ValueError(f"{unused} would change nothing with kind {world.kind!r}: leave them out")


def _shifted(
    envs: Sequence[VectorEnv[Any, Any, Any]], kind: str, timetable: Timetable, tasks: int, values: Sequence[float]
) -> VectorEnv[Any, Any, Any]:
    """The environments in the wrapper that changes them."""
    if len(envs) != 1 and kind != "games":
        raise ValueError(f"kind {kind!r} needs exactly one game, got {len(envs)}; several need kind 'games'")
    match kind:
        case "none":
            return envs[0]
        case "games":
            return EnvSequence(envs, timetable)
        case "actions":
            return PermuteActions(envs[0], timetable, tasks)
        case "channels" | "pixels":
            return PermuteObservations(envs[0], timetable, tasks, kind)
        case "rewards":
            return ScaleRewards(envs[0], timetable, values)
        case "sticky":
            return RepeatActions(envs[0], timetable, values)
        case "noise":
            return CorruptObservations(envs[0], timetable, values)
    raise ValueError(f"kind {kind!r} is unknown")


def screen_env(env_id: str, num_envs: int = 1, **rules: Any) -> FrameVectorEnv:
    """Build environments of one game in single frames: Atari, or Catch.

    Raises:
        ValueError: as `atari_env`; or a rule that Catch does not have.
    """
    if env_id != catch.ENV_ID:
        return atari_env(env_id, num_envs, **rules)
    sticky = rules.pop("sticky_action_prob", 0.25)
    numbered = ("mode", "difficulty")  # 0 is one of them
    if given := sorted(name for name, value in rules.items() if value or (value == 0 and name in numbered)):
        raise ValueError(f"{env_id} does not support {', '.join(given)}")
    return CatchVectorEnv(num_envs, sticky_action_prob=sticky)


AS_ARRAYS: dict[str, tuple[type[ArrayVectorEnv], int]] = {
    "Breakout": (breakout.BreakoutVectorEnv, breakout.FASTER_FROM),
    "Freeway": (freeway.FreewayVectorEnv, freeway.FASTER_FROM),
    "Asterix": (asterix.AsterixVectorEnv, asterix.FASTER_FROM),
    "Seaquest": (seaquest.SeaquestVectorEnv, seaquest.FASTER_FROM),
    "SpaceInvaders": (invaders.SpaceInvadersVectorEnv, invaders.FASTER_FROM),
}
"""MinAtar games that have a class with all environments as arrays, and the num_envs from which it is faster."""


def minatar_env(env_id: str, num_envs: int, **rules: Any) -> MinAtarVectorEnv:
    """Build a `MinAtarVectorEnv`, or the class that plays the same game faster with this num_envs."""
    for game, (arrays, faster_from) in AS_ARRAYS.items():
        if env_id in (f"MinAtar/{game}-v0", f"MinAtar/{game}-v1") and num_envs >= faster_from:
            return arrays(env_id, num_envs, **rules)
    return MinAtarVectorEnv(env_id, num_envs, **rules)


def evaluation_world(
    world: VectorEnv[Any, Any, Any],
    num_envs: int,
    max_episode_steps: int | None = None,
    task: int | None = None,
    around: Callable[[Any], VectorEnv[Any, Any, Any]] | None = None,
) -> VectorEnv[Any, Any, Any]:
    """Build new environments of the same game and rules that stay in the present task, or another.

    Args:
        world: what `World.make` or `ScreenWorld.make` returned, or the environment of one game.
        num_envs: number of new environments; reset them with a seed.
        max_episode_steps: episodes are truncated after so many steps (None: MinAtar never, control as in `world`).
        task: the task to stay in; None for the present one.
        around: a wrapper of each game itself, inside everything that changes it: it sees the true observations.
    Raises:
        ValueError: a time limit for games on a screen, which have their own; or there is no such task.
        TypeError: an environment that is not from this package.
        gymnasium.error.ResetNeeded: the task changes, and `world` was never reset.
    """

    def make(env: Any) -> VectorEnv[Any, Any, Any]:
        if isinstance(env, MinAtarVectorEnv):
            return minatar_env(**{**env.rules, "num_envs": num_envs, "max_episode_steps": max_episode_steps})
        if isinstance(env, ControlVectorEnv):
            return env.with_num_envs(num_envs, max_episode_steps)
        if not isinstance(env, FrameVectorEnv):
            raise TypeError(f"{type(env).__name__} is not an environment that this module builds")
        if max_episode_steps is not None:
            raise ValueError(f"max_episode_steps {max_episode_steps} is for MinAtar: games on a screen have a limit")
        return env.with_num_envs(num_envs)

    if isinstance(world, StackFrames):
        return StackFrames(evaluation_world(world.env, num_envs, max_episode_steps, task, around), world.frames)

    def build(env: Any) -> VectorEnv[Any, Any, Any]:
        return around(make(env)) if around else make(env)

    if isinstance(world, Shift):
        return world.frozen_copy(build, task)
    if task:
        raise ValueError(f"there is no task {task}: the task never changes, so there is only task 0")
    return build(world)


def shift_of(world: VectorEnv[Any, Any, Any]) -> Shift | None:
    """What changes the task in an environment of this module; None if nothing does."""
    inner: Any = world.env if isinstance(world, StackFrames) else world
    return inner if isinstance(inner, Shift) else None


def resumed_observation(world: VectorEnv[Any, Any, Any]) -> tuple[Any, bool]:
    """After `load_state_dict`: the observations to continue from, and whether the episodes continue.

    If they cannot be continued (ale-py's threads cannot be saved), new episodes begin.
    """
    inner: Any = world
    while isinstance(inner, VectorWrapper):
        inner = inner.env
    if getattr(inner, "resumes_exactly", True):
        return world.observation(), True  # type: ignore[attr-defined]
    return world.reset()[0], False
