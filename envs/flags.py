"""--shift: how the task changes during training, as flags that check themselves and build the environments.

    @dataclass(frozen=True)
    class Args:
        shift: MinAtarShiftArgs = field(default_factory=MinAtarShiftArgs)
        ...
    args.shift.check(args.env_id, args.total_timesteps)
    env = args.shift.world(args.env_id, num_envs=1)

A script that wants other defaults subclasses a group and overrides them. Nothing here parses a command line: the names
in messages are those that tyro gives to nested dataclasses (`--shift.every-steps`). `check` and `world` raise
ValueError with one line that names the flags.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from gymnasium.vector import VectorEnv

from envs.catch import ENV_ID as CATCH
from envs.timetables import AtRandom, AtSteps, EverySteps, NoChange, Timetable
from envs.worlds import PROTOCOLS, ControlKind, ControlWorld, Kind, ScreenKind, ScreenWorld, World


def reject_unused(group: str, args: Any, names: Sequence[str], why: str) -> None:
    """Raise ValueError for fields that differ from their class's default although nothing reads them.

    Args:
        group: the flags' group: `--<group>.<name>`.
        args: a dataclass holding them; a subclass with other defaults is compared with its own.
        names: fields of `args` that have no effect.
        why: completes "--group.name 3 has no effect ...".
    """
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    for name in names:
        if (value := getattr(args, name)) != defaults[name]:
            raise ValueError(f"--{group}.{name.replace('_', '-')} {value} has no effect {why}; drop it")


@dataclass(frozen=True)
class ShiftArgs:
    """Changes of the task: what they are called and when they come. All groups share this; each adds the rest."""

    kind: str = "none"
    """what changes"""
    every_steps: int = 0
    """agent steps between changes"""
    at_steps: tuple[int, ...] = ()
    """agent steps after which the task changes"""
    rate: float = 0.0
    """probability of a change after each agent step"""

    WORLD: ClassVar[Any]
    """builds the environments, and knows which kinds use `tasks` (PERMUTED) and `values` (VALUED)"""

    @property
    def on(self) -> bool:
        """The task changes at all."""
        return self.kind != "none"

    def gaps(self) -> list[int]:
        """Agent steps until the first change and then between changes, as far as they are certain.

        [every_steps] if they are all alike; empty without changes and for random ones.
        """
        if self.every_steps:
            return [self.every_steps]
        return [later - earlier for earlier, later in pairwise((0, *self.at_steps))]

    @property
    def first_change(self) -> int | None:
        """Agent steps until the first change; for random changes the mean, 1 / rate; None without changes."""
        return next(iter(self.gaps()), self._mean_gap())

    @property
    def shortest_gap(self) -> int | None:
        """Fewest agent steps between two changes; for random ones the mean, 1 / rate; None without a second change."""
        return min(self.gaps() if self.every_steps else self.gaps()[1:], default=self._mean_gap())

    def _mean_gap(self) -> int | None:
        return max(1, round(1 / self.rate)) if self.rate else None

    def timetable(self) -> Timetable:
        """When the task changes."""
        if self.kind == "none":
            return NoChange()
        if self.rate:
            return AtRandom(self.rate)
        return AtSteps(self.at_steps) if self.at_steps else EverySteps(self.every_steps)

    def _unused(self) -> list[str]:
        """Fields that this kind does not use, of those that a subclass adds."""
        raise NotImplementedError

    def _check_kind(self, env_id: str) -> None:
        """Refuse what does not fit this kind, of the fields that a subclass adds."""
        raise NotImplementedError

    def check(self, env_id: str, total_steps: int) -> None:
        """Refuse flags that contradict each other or change nothing.

        Args:
            env_id: the first game, --env-id.
            total_steps: agent steps of the run, --total-timesteps.
        """
        kind, used = self.kind, f"with --shift.kind {self.kind}"
        if kind == "none":
            reject_unused("shift", self, [field.name for field in dataclasses.fields(self)][1:], used)
            return
        when = [name for name in ("every_steps", "at_steps", "rate") if getattr(self, name)]
        if len(when) != 1:
            raise ValueError(
                f"--shift.kind {kind} needs exactly one of --shift.every-steps, --shift.at-steps, --shift.rate"
            )
        flag = f"--shift.{when[0].replace('_', '-')}"
        try:
            self.timetable()
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from error
        reject_unused("shift", self, self._unused(), used)
        self._check_kind(env_id)
        if self.on and (last := self.every_steps or max(self.at_steps, default=0)) >= total_steps:
            raise ValueError(f"{flag}: the change at step {last} never comes in --total-timesteps {total_steps}")

    def _check_values(self, values: tuple[float, ...]) -> None:
        if self.kind not in self.WORLD.VALUED:
            return
        if len(values) < 2:
            raise ValueError(f"--shift.kind {self.kind} needs at least two --shift.values, got {values}")
        if len(set(values)) == 1:
            raise ValueError(f"--shift.values {values} are all alike, so nothing changes")

    def _make(self, **fields: Any) -> VectorEnv[Any, Any, Any]:
        """Build WORLD with these fields; a refusal names the flags."""
        try:
            env: VectorEnv[Any, Any, Any] = self.WORLD(**fields).make()
        except ValueError as error:
            raise ValueError(f"--env-id, --shift: {error}" if self.kind != "none" else str(error)) from error
        return env


@dataclass(frozen=True)
class GameShiftArgs(ShiftArgs):
    """Changes of the task; what MinAtar's and Atari's flags share."""

    games: tuple[str, ...] = ()
    """the games after --env-id, visited in turn (kind games)"""
    tasks: int = 2
    """number of permutations, the identity first, visited in turn"""
    values: tuple[float, ...] = ()
    """values visited in turn; the first holds from the start"""

    def _unused(self) -> list[str]:
        used = {
            "games": self.kind == "games",
            "tasks": self.kind in self.WORLD.PERMUTED,
            "values": self.kind in self.WORLD.VALUED,
        }
        return [name for name in used if not used[name]]

    def _check_kind(self, env_id: str) -> None:
        if self.kind == "games" and not self.games:
            raise ValueError("--shift.kind games needs --shift.games, the games that follow --env-id")
        if self.kind == "games" and set(self.games) == {env_id}:
            raise ValueError(f"--shift.games {self.games} only repeats --env-id {env_id}, so nothing changes")
        self._check_values(self.values)

    def world(self, env_id: str, num_envs: int, *, changing: bool = True, **rules: Any) -> VectorEnv[Any, Any, Any]:
        """Build the environments that the flags describe, unseeded.

        Args:
            env_id: the first game.
            num_envs: N.
            changing: False: they stay in the first task.
            rules: other fields of WORLD, as it has them.
        Raises:
            ValueError: as WORLD; the message names the flags.
        """
        when = self.timetable() if changing else NoChange()
        games = (env_id, *self.games)
        return self._make(
            games=games,
            num_envs=num_envs,
            kind=self.kind,
            timetable=when,
            tasks=self.tasks,
            values=self.values,
            **rules,
        )


@dataclass(frozen=True)
class MinAtarShiftArgs(GameShiftArgs):
    """Changes of the task. A change truncates the running episodes; exactly one flag says when changes come."""

    kind: Kind = "none"
    """what changes: the game, the meaning of actions (best with -v1 ids, in which every action does something), the
    order of channels or pixels, the factor of rewards, the probability of sticky actions (in place of the game's 0.1)
    or of noise"""
    games: tuple[str, ...] = ()
    """the games after --env-id, visited in turn (kind games; -v0 ids)"""
    tasks: int = 2
    """number of permutations, the identity first, visited in turn (kinds actions, channels, pixels)"""
    values: tuple[float, ...] = ()
    """factors or probabilities, visited in turn; the first holds from the start (kinds rewards, sticky, noise)"""

    WORLD = World


@dataclass(frozen=True)
class ScreenShiftArgs(GameShiftArgs):
    """Changes of the task. A change truncates the running episodes; exactly one flag says when changes come."""

    kind: ScreenKind = "none"
    """what changes: the game (with all 18 actions), its mode or difficulty, the meaning of actions, the positions of
    pixels, the factor of rewards, the probability of sticky actions (then drawn per step) or of noise"""
    tasks: int = 2
    """number of permutations, the identity first, visited in turn (kinds actions, pixels)"""
    values: tuple[float, ...] = ()
    """factors, probabilities, modes or difficulties, visited in turn; the first holds from the start"""

    WORLD = ScreenWorld

    def check(  # type: ignore[override]
        self, env_id: str, total_steps: int, *, clip_rewards: bool, threads: int
    ) -> None:
        """As `ShiftArgs.check`, and refuse what Catch, threads or clipped rewards do not support.

        Args:
            clip_rewards: the learner sees rewards clipped to [-1, 1], --clip-rewards.
            threads: of ale-py's vector environment, --env-threads.
        """
        super().check(env_id, total_steps)
        if CATCH in (env_id, *self.games):
            which = "--env-id" if env_id == CATCH else "--shift.games"
            if threads:
                raise ValueError(f"{which} {CATCH} does not support --env-threads, got {threads}; use 0")
            if self.kind in ("games", "modes", "difficulties"):
                raise ValueError(f"{which} {CATCH} does not support --shift.kind {self.kind}, which is for Atari games")
        if threads and self.kind in ("modes", "difficulties"):
            raise ValueError(
                f"--env-threads {threads} does not support --shift.kind {self.kind}, which ale-py's vector environment "
                "does not have; use 0"
            )
        # Rewards are whole numbers in these games, so a clipped factor is all that the learner sees.
        if clip_rewards and self.kind == "rewards" and len({min(max(v, -1.0), 1.0) for v in self.values}) == 1:
            raise ValueError(
                f"--shift.values {self.values} are all alike after --clip-rewards, so the learner sees no change; use "
                "--no-clip-rewards or other factors"
            )

    def world(  # type: ignore[override]
        self, env_id: str, num_envs: int, *, protocol: str, threads: int, changing: bool = True
    ) -> VectorEnv[Any, Any, Any]:
        """As `GameShiftArgs.world`.

        Args:
            protocol: one of `envs.worlds.PROTOCOLS`.
            threads: of ale-py's vector environment; 0: emulators in Python, which can be saved.
        """
        rules = dict(PROTOCOLS[protocol])
        if env_id == CATCH:  # it starts at once
            rules["noop_max"] = 0
        return super().world(env_id, num_envs, changing=changing, threads=threads, **rules)


@dataclass(frozen=True)
class ControlShiftArgs(ShiftArgs):
    """Changes of the task. A change truncates the running episodes; exactly one flag says when changes come."""

    kind: ControlKind = "none"
    """what changes: an offset, a rotation or the gains of the observations, the meaning of actions, the factor of
    rewards, the probability of sticky actions, or a number of the physics"""
    every_steps: int = 0
    """agent steps between changes; with --shift.drift, from one value to the next"""
    tasks: int = 2
    """number of offsets, rotations, gains or permutations, the identity first, visited in turn (kinds offsets,
    rotations, gains, actions)"""
    values: tuple[float, ...] = ()
    """factors, probabilities or values of the physics, visited in turn; the first holds from the start (kinds rewards,
    sticky, physics)"""
    scale: float = 2.0
    """standard deviation of offsets, in the units of the observations, or of the base-2 logarithm of gains"""
    what: str = ""
    """the number that changes (kind physics): length or gravity, for instance, of CartPole-v1"""
    drift: bool = False
    """move slowly from each value to the next, and from the last to the first, without a change of task (kind physics)
    """

    WORLD = ControlWorld

    @property
    def on(self) -> bool:
        """The task changes, at some step. What drifts does not."""
        return super().on and not self.drift

    @property
    def unchanged(self) -> str:
        """Why the task does not change, where `on` is False; completes "--switch.name has no effect ..."."""
        if self.drift:
            return "with --shift.drift: the physics moves slowly, and the task does not change"
        return "with --shift.kind none: the task does not change"

    def gaps(self) -> list[int]:
        """As `ShiftArgs.gaps`; empty with `drift`."""
        return [] if self.drift else super().gaps()

    def _unused(self) -> list[str]:
        used = {
            "tasks": self.kind in self.WORLD.PERMUTED,
            "values": self.kind in self.WORLD.VALUED,
            "scale": self.kind in self.WORLD.SCALED,
            "what": self.kind == "physics",
            "drift": self.kind == "physics",
        }
        return [name for name in used if not used[name]]

    def _check_kind(self, env_id: str) -> None:
        if self.kind in self.WORLD.SCALED and not self.scale > 0:
            raise ValueError(f"--shift.scale must be positive, got {self.scale}")
        if self.kind == "physics" and not self.what:
            raise ValueError("--shift.kind physics needs --shift.what, the number that changes (CartPole-v1: length)")
        self._check_values(self.values)

    def check(self, env_id: str, total_steps: int) -> None:
        """As `ShiftArgs.check`. A drift begins at once, so its period may be longer than the run."""
        if self.kind == "physics" and self.drift:
            if self.at_steps or self.rate:
                given = f"--shift.at-steps {self.at_steps}" if self.at_steps else f"--shift.rate {self.rate}"
                raise ValueError(
                    f"--shift.drift has no changes, so it does not support {given}; use --shift.every-steps"
                )
            if not self.every_steps:
                raise ValueError("--shift.drift needs --shift.every-steps, the agent steps from one value to the next")
        super().check(env_id, total_steps)

    def world(
        self, env_id: str, num_envs: int, *, max_episode_steps: int | None = None, changing: bool = True
    ) -> VectorEnv[Any, Any, Any]:
        """Build the environments that the flags describe, unseeded.

        Args:
            env_id: a Gymnasium id, see `envs.control`.
            num_envs: N.
            max_episode_steps: episodes are truncated after so many steps; None: the environment's own limit.
            changing: False: they stay in the first task, or at the first value.
        Raises:
            ValueError: as `ControlWorld`; the message names the flags.
        """
        return self._make(
            env_id=env_id, num_envs=num_envs, kind=self.kind, timetable=self.timetable() if changing else NoChange(),
            tasks=self.tasks, values=self.values, scale=self.scale, what=self.what, drift=self.drift,
            max_episode_steps=max_episode_steps,
        )  # fmt: skip
