"""MinAtar's Asterix as NumPy arrays, all environments at once: equal to the package's game, and faster.

`AsterixVectorEnv` returns exactly what `MinAtarVectorEnv("MinAtar/Asterix-v0")` (or -v1) returns from the same seeds.
The rules are in `Asterix.act`; see `envs.array_games` for where they come from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.array_games import COLUMN_AFTER, DOWN, LEFT, RIGHT, ROW_AFTER, UP, ArrayGames, ArrayVectorEnv

FASTER_FROM = 32
"""Number of environments from which this is faster than the package's game: measured by `python -m runs bench minatar`
at 16 (0.88 of the package's steps per second) and 32 (1.32)."""

SPAWN_EVERY, MOVE_EVERY, RAMP_EVERY = 10, 5, 100
"""Steps between two new things, between two moves of all things, and about between two increases of the difficulty."""


class Asterix(ArrayGames):
    """N games with at most one thing, an enemy or gold, in each of the rows 1 to 8. The player stays in these rows."""

    ACTIONS = (0, LEFT, UP, RIGHT, DOWN)
    CHANNELS = 4
    FIXED = (*ArrayGames.FIXED, "row_cells")

    def _allocate(self, num_games: int) -> None:
        self.row_cells = (400 * self.each[:, None] + 10 * np.arange(1, 9)).reshape(-1)  # first cells of all games' rows
        self.row = np.zeros(num_games, dtype=np.int64)  # of the player
        self.column = np.zeros(num_games, dtype=np.int64)
        self.things = np.zeros((num_games, 8), dtype=np.int64)  # column of the thing in each row; -1: none
        self.way = np.zeros((num_games, 8), dtype=np.int64)  # -1 to the left, 1 to the right; 0 without one
        self.gold = np.zeros((num_games, 8), dtype=np.bool_)  # whether it is gold
        self.spawn_timer = np.zeros(num_games, dtype=np.int64)  # steps until something comes
        self.spawn_every = np.zeros(num_games, dtype=np.int64)
        self.move_timer = np.zeros(num_games, dtype=np.int64)  # steps until all things move
        self.move_every = np.zeros(num_games, dtype=np.int64)
        self.ramp_timer = np.zeros(num_games, dtype=np.int64)
        self.ramps = np.zeros(num_games, dtype=np.int64)  # how often the difficulty was increased

    def restart(self, which: NDArray[np.bool_]) -> None:
        """Start the games of a mask, bool [N], again."""
        self.row[which] = self.column[which] = 5
        self.things[which], self.way[which], self.gold[which] = -1, 0, False
        self.spawn_timer[which] = self.spawn_every[which] = SPAWN_EVERY
        self.move_timer[which] = self.move_every[which] = MOVE_EVERY
        self.ramp_timer[which], self.ramps[which] = RAMP_EVERY, 0

    def act(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """One step of every game.

        Args:
            actions: [N], 0 .. 5.
        Returns:
            Rewards [N], one for gold, and whether an enemy was met, bool [N].
            observed: the step that loses a game is completed.
        """
        spawning = (self.spawn_timer == 0).nonzero()[0]
        if len(spawning):
            self._spawn(spawning)
            self.spawn_timer[spawning] = self.spawn_every[spawning]

        self.row = np.minimum(np.maximum(ROW_AFTER[actions, self.row], 1), 8)
        self.column = COLUMN_AFTER[actions, self.column]

        # observed: what is on the player counts before and after all things move, so they cannot pass the player.
        rewards, lost = np.zeros(len(actions), dtype=np.float64), np.zeros(len(actions), dtype=np.bool_)
        self._meet(self.each, rewards, lost)
        moving = (self.move_timer == 0).nonzero()[0]
        if len(moving):
            self._move(moving)
            self.move_timer[moving] = self.move_every[moving]
            self._meet(moving, rewards, lost)

        self.spawn_timer = self.spawn_timer - 1
        self.move_timer = self.move_timer - 1
        if self.ramping:
            self._ramp()
        return rewards, lost

    def _spawn(self, which: NDArray[np.int64]) -> None:
        """In each of these games a thing comes, from the left or the right, if a row is free."""
        free = self.things[which] < 0  # [M, 8]
        drawn = []
        for i, count in zip(which.tolist(), free.sum(axis=1).tolist(), strict=True):
            stream = self.streams[i]
            drawn.append((stream.random_sample(), stream.random_sample(), stream.randint(count) + 1 if count else 0))
        side, kind, number = np.array(drawn).T
        chosen, row = (free & (free.cumsum(axis=1) == number[:, None])).nonzero()  # the number-th free row, if any
        games, from_left = which[chosen], side[chosen] < 1 / 2
        self.things[games, row] = np.where(from_left, 0, 9)
        self.way[games, row] = np.where(from_left, 1, -1)
        self.gold[games, row] = kind[chosen] < 1 / 3

    def _move(self, which: NDArray[np.int64]) -> None:
        """All things of these games move by one cell; what leaves the board disappears."""
        way = self.way[which]
        things = self.things[which] + way
        stays = things.view(np.uint64) < 10  # and not below 0
        self.things[which] = np.where(stays, things, -1)
        self.way[which] = way * stays
        self.gold[which] &= stays

    def _meet(self, which: NDArray[np.int64], rewards: NDArray[np.float64], lost: NDArray[np.bool_]) -> None:
        """What is on the player in these games: gold is taken, an enemy ends the game."""
        row = self.row[which] - 1
        some = (self.things.reshape(-1)[8 * which + row] == self.column[which]).nonzero()[0]
        if not len(some):
            return
        games, row = which[some], row[some]
        gold = self.gold[games, row]
        rewards[games] += gold
        lost[games] |= ~gold
        games, row = games[gold], row[gold]
        self.things[games, row], self.way[games, row], self.gold[games, row] = -1, 0, False

    def _ramp(self) -> None:
        """Things come more often every time, and move more often every other time, until both happen in every step."""
        limited = (self.spawn_every > 1) | (self.move_every > 1)
        due = (limited & (self.ramp_timer < 0)).nonzero()[0]
        self.ramp_timer = self.ramp_timer - limited
        if len(due):
            self.ramp_timer[due] = RAMP_EVERY
            self.move_every[due] = np.maximum(self.move_every[due] - self.ramps[due] % 2, 1)
            self.spawn_every[due] = np.maximum(self.spawn_every[due] - 1, 1)
            self.ramps[due] += 1

    def draw(self, cells: NDArray[np.bool_], which: slice | NDArray[np.int64]) -> None:
        """Write the observations of M of the games, bool [M, 4, 100] of zeros: player, enemies, trails, gold."""
        line = cells.reshape(-1)
        line[400 * self.each[: len(cells)] + 10 * self.row[which] + self.column[which]] = True
        things = self.things[which].reshape(-1)
        some = (things >= 0).nonzero()[0]
        column, start = things[some], self.row_cells[some]
        line[start + column + np.where(self.gold[which].reshape(-1)[some], 300, 100)] = True
        behind = column - self.way[which].reshape(-1)[some]
        line[(start + behind)[behind.view(np.uint64) < 10] + 200] = True


class AsterixVectorEnv(ArrayVectorEnv):
    """N environments of MinAtar's Asterix as arrays; see `ArrayVectorEnv`."""

    GAME, RULES, _saved_in = "Asterix", Asterix, "asterix"
