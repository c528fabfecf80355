"""What the MinAtar games written as NumPy arrays share: one vector environment around the rules of any of them.

The games are `envs.breakout`, `envs.freeway`, `envs.asterix`, `envs.seaquest` and `envs.invaders`.

A game is an `ArrayGames`: all of N games at once, as arrays. `ArrayVectorEnv` adds what `MinAtarVectorEnv` promises:
actions, sticky actions, time limits, restarts, episode statistics, seeds and saving. It returns exactly what
`MinAtarVectorEnv` returns from the same seeds, if the rules are right.

The rules were written from the descriptions of the games (arXiv:1903.03176) and from experiments with the running games
of the `minatar` package: set attributes, make one step, see what changed and which random numbers were drawn. Comments
that begin with "observed" are results of these experiments that the description does not give. The package is the
reference, and the tests compare with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from envs.minatar import MinAtarVectorEnv, _plain

LEFT, UP, RIGHT, DOWN, FIRE = 1, 2, 3, 4, 5
"""Actions, numbered as in every MinAtar game; 0 does nothing."""

COLUMN_AFTER: NDArray[np.int64] = np.clip(np.arange(10) + np.array([0, -1, 0, 1, 0, 0])[:, None], 0, 9)
"""Where the player is after each action, [action, column before], if it moves left and right, and stops at the edge."""

ROW_AFTER: NDArray[np.int64] = np.clip(np.arange(10) + np.array([0, 0, -1, 0, 1, 0])[:, None], 0, 9)
"""The same up and down, [action, row before]."""


class ArrayGames(ABC):
    """N games. Every attribute except those in `FIXED` is an array, and is saved. Its first axis is usually the games.

    Boards are [row, column] with row 0 on top, or lines of 100 cells: cell = 10 row + column.
    """

    ACTIONS: ClassVar[tuple[int, ...]]
    """the actions that do something"""
    CHANNELS: ClassVar[int]
    """number of channels of an observation"""
    FIXED: ClassVar[tuple[str, ...]] = ("ramping", "streams", "each")
    """attributes that are not saved"""

    def __init__(self, num_games: int, ramping: bool, streams: Sequence[np.random.RandomState] = ()) -> None:
        """Start all games.

        Args:
            num_games: N.
            ramping: whether the game becomes harder with time.
            streams: random numbers, one stream per game; the games draw in the same order as the package's.
        """
        self.ramping, self.streams = ramping, streams
        self.each = np.arange(num_games)
        self._allocate(num_games)
        self.restart(np.ones(num_games, dtype=np.bool_))

    @abstractmethod
    def _allocate(self, num_games: int) -> None:
        """Make the arrays."""

    @abstractmethod
    def restart(self, which: NDArray[np.bool_]) -> None:
        """Start the games of a mask, bool [N], again."""

    @abstractmethod
    def act(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Make one step of every game with actions [N], 0 .. 5; return rewards [N] and which games ended, bool [N]."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name; equal for equal games."""
        return {name: value for name, value in vars(self).items() if name not in self.FIXED}

    @abstractmethod
    def draw(self, cells: NDArray[np.bool_], which: slice | NDArray[np.int64]) -> None:
        """Write the observations of M of the games into bool [M, C, 100] of zeros."""


class ArrayVectorEnv(MinAtarVectorEnv):
    """N environments of one MinAtar game as arrays; arguments, results and streams as `MinAtarVectorEnv`.

    States saved by another class are refused: they have another form. The `minatar` package is not needed.

    Raises:
        ValueError: `env_id` is of another game; otherwise as `MinAtarVectorEnv`.
    """

    GAME: ClassVar[str]
    """name of the game in environment ids"""
    RULES: ClassVar[type[ArrayGames]]
    """the game"""

    def _build(self, game_name: str) -> tuple[list[int], int]:
        if game_name != self.GAME:
            raise ValueError(f"{type(self).__name__} plays MinAtar/{self.GAME}-v0 and -v1, not {game_name}")
        num_envs = self._config["num_envs"]
        self._streams = [np.random.RandomState() for _ in range(num_envs)]
        self._last_actions = np.zeros(num_envs, dtype=np.int64)
        self._games = self.RULES(num_envs, self._config["difficulty_ramping"], self._streams)
        self._restart([None] * num_envs)
        return list(self.RULES.ACTIONS), self.RULES.CHANNELS

    def _set_spaces(self, num_envs: int, channels: int) -> None:
        super()._set_spaces(num_envs, channels)
        self._action_table = np.array(self._action_set)

    def _restart(self, seeds: list[int | None]) -> None:
        for i, seed in enumerate(seeds):
            if seed is not None:
                self._streams[i] = np.random.RandomState(seed)
                self._last_actions[i] = 0
        # Game and sticky actions draw from one stream, in the same order as in the package.
        self._games.restart(np.ones(len(seeds), dtype=np.bool_))
        self._returns = np.zeros(len(seeds), dtype=np.float64)
        self._lengths = np.zeros(len(seeds), dtype=np.int64)

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Play one action in every game; see `MinAtarVectorEnv.step`."""
        chosen = self._chosen(actions)
        repeat = np.array([stream.random_sample() for stream in self._streams]) < self._config["sticky_action_prob"]
        self._last_actions = np.where(repeat, self._last_actions, chosen)
        rewards, terminated = self._games.act(self._last_actions)
        self._returns += rewards
        self._lengths += 1
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        if self._config["max_episode_steps"] is not None:
            truncated = (self._lengths >= self._max_episode_steps) & ~terminated
        obs = self.observation()
        infos: dict[str, Any] = {}
        ended = terminated | truncated
        if np.count_nonzero(ended):  # a third of the time of `any`
            infos = {
                "final_obs": obs.copy(),
                "_final_obs": ended,
                "episode": {"r": np.where(ended, self._returns, 0.0), "l": np.where(ended, self._lengths, 0)},
                "_episode": ended.copy(),
            }
            self._games.restart(ended)
            self._returns[ended], self._lengths[ended] = 0.0, 0
            which = ended.nonzero()[0]
            obs[which] = self._drawn(len(which), which)
        return obs, rewards, terminated, truncated, infos

    def _chosen(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `_game_actions`, as an array."""
        array = np.asarray(actions)
        usual = self._started and array.dtype == np.int64 and array.shape == (self.num_envs,)
        if usual and array.view(np.uint64).max() < len(self._action_set):  # a negative number becomes a huge one
            chosen: NDArray[np.int64] = self._action_table[array]
            return chosen
        return np.array(self._game_actions(actions))  # refuses what is wrong

    def observation(self) -> NDArray[np.uint8]:
        """Return the present observations [N, C, 10, 10], those that the last `reset` or `step` returned."""
        return self._drawn(self.num_envs, slice(None))

    def _drawn(self, count: int, which: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        obs = np.zeros((count, *self._obs_shape[1:]), dtype=np.uint8)
        self._games.draw(obs.reshape(count, -1, 100).view(np.bool_), which)
        return obs

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that decides what happens next, in plain types and NumPy arrays."""
        return {
            "config": dict(self._config),
            "started": self._started,
            self._saved_in: _plain(self._games.arrays()),
            "random": [_plain(stream.get_state(legacy=False)) for stream in self._streams],
            "last_actions": self._last_actions.copy(),
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was called.

        Args:
            state: from an environment of this class built with the same arguments. It is copied.
        Raises:
            ValueError: class or arguments differ. Nothing has been changed then.
        """
        self._require_own(state)
        vars(self._games).update(_plain(state[self._saved_in]))
        for stream, saved in zip(self._streams, state["random"], strict=True):
            stream.set_state(saved)
        self._last_actions = state["last_actions"].copy()
        self._returns, self._lengths = state["returns"].copy(), state["lengths"].copy()
        self._started = bool(state["started"])
