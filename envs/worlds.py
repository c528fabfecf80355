"""Worlds from one description: the seeded vector environment that a script trains in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gymnasium.vector import VectorEnv

from envs.invaders import FASTER_FROM, SpaceInvadersVectorEnv
from envs.minatar import MinAtarVectorEnv
from envs.shifts import (
    CorruptObservations,
    EnvSequence,
    PermuteActions,
    PermuteObservations,
    RepeatActions,
    ScaleRewards,
    Shift,
)
from envs.timetables import NoChange, Timetable

Kind = Literal["none", "games", "actions", "channels", "pixels", "rewards", "sticky", "noise"]


@dataclass(frozen=True)
class World:
    """MinAtar games, how many copies, what changes in them and when.

    Raises (in `make`):
        ValueError: the games do not exist or do not fit together, or what changes does not fit the rest, or a field is
            given that this kind does not use.
    """

    games: Sequence[str]
    """environment ids; several only for kind "games", which visits them in turn and needs -v0 ids"""
    num_envs: int = 1
    """copies"""
    kind: Kind = "none"
    """what changes: the game, the meaning of actions, the order of channels or pixels, the factor of rewards, the
    probability of sticky actions (in place of the games' own 0.1), that of noise"""
    timetable: Timetable = field(default_factory=NoChange)
    """when"""
    tasks: int = 2
    """number of permutations, the identity among them (actions, channels, pixels)"""
    values: Sequence[float] = ()
    """factors or probabilities (rewards, sticky, noise), the first from the start"""

    def make(self) -> VectorEnv[Any, Any, Any]:
        """Build it, unseeded. Kind "none" is the bare environment of `minatar_env`."""
        permuted, valued = ("actions", "channels", "pixels"), ("rewards", "sticky", "noise")
        given = {"timetable": self.timetable != NoChange(), "tasks": self.tasks != 2, "values": bool(self.values)}
        used = {"timetable": self.kind != "none", "tasks": self.kind in permuted, "values": self.kind in valued}
        if unused := [name for name, is_given in given.items() if is_given and not used[name]]:
            raise ValueError(f"{unused} would change nothing with kind {self.kind!r}: leave them out")
        # With kind "sticky" the games' own sticky actions are off: the wrapper's probability is then all there is.
        own = 0.0 if self.kind == "sticky" else 0.1
        envs = [minatar_env(game, self.num_envs, sticky_action_prob=own) for game in self.games]
        if len(envs) != 1 and self.kind != "games":
            raise ValueError(f"{len(envs)} games, but kind {self.kind!r} stays in one: give one, or kind 'games'")
        match self.kind:
            case "none":
                return envs[0]
            case "games":
                return EnvSequence(envs, self.timetable)
            case "actions":
                return PermuteActions(envs[0], self.timetable, self.tasks)
            case "channels" | "pixels":
                return PermuteObservations(envs[0], self.timetable, self.tasks, self.kind)
            case "rewards":
                return ScaleRewards(envs[0], self.timetable, self.values)
            case "sticky":
                return RepeatActions(envs[0], self.timetable, self.values)
            case "noise":
                return CorruptObservations(envs[0], self.timetable, self.values)


def minatar_env(env_id: str, num_envs: int, **rules: Any) -> MinAtarVectorEnv:
    """Build a `MinAtarVectorEnv`, or the class that plays this game alike and is faster with so many copies."""
    arrays = env_id.startswith("MinAtar/SpaceInvaders-") and num_envs >= FASTER_FROM
    return (SpaceInvadersVectorEnv if arrays else MinAtarVectorEnv)(env_id, num_envs, **rules)


def evaluation_world(world: VectorEnv[Any, Any, Any], copies: int, max_episode_steps: int) -> VectorEnv[Any, Any, Any]:
    """Build copies of a world that stay in its present task, with a time limit; reset them with a seed of their own."""

    def more(env: MinAtarVectorEnv) -> MinAtarVectorEnv:
        return minatar_env(**{**env.rules, "num_envs": copies, "max_episode_steps": max_episode_steps})

    if isinstance(world, Shift):
        return world.pinned(more)
    if isinstance(world, MinAtarVectorEnv):
        return more(world)
    raise TypeError(f"{type(world).__name__} is no world of this module")
