"""MinAtar's Freeway as NumPy arrays, all environments at once: equal to the package's game, and faster.

`FreewayVectorEnv` returns exactly what `MinAtarVectorEnv("MinAtar/Freeway-v0")` (or -v1) returns from the same seeds.
The rules are in `Freeway.act`; see `envs.array_games` for where they come from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.array_games import DOWN, ROW_AFTER, UP, ArrayGames, ArrayVectorEnv

FASTER_FROM = 4
"""Number of environments from which this is faster than the package's game: measured by `python -m runs bench minatar`
at 1 (0.34 of the package's steps per second), 4 (1.10) and 8 (2.00)."""

COLUMN, BOTTOM = 4, 9
"""The player's column, and the row in which it starts."""

PAUSE, TIME = 3, 2500
"""Steps from one move of the player to the next, and an episode has one step more than TIME."""

LANES: NDArray[np.int64] = 10 * np.arange(1, 9)
"""The first cells of the eight lanes."""

STEERS: NDArray[np.bool_] = np.isin(np.arange(6), (UP, DOWN))
"""Whether an action moves the player."""


class Freeway(ArrayGames):
    """N games with eight cars each, one in each of the rows 1 to 8. Difficulty ramping has no effect."""

    ACTIONS = (0, UP, DOWN)
    CHANNELS = 7

    def _allocate(self, num_games: int) -> None:
        self.row = np.zeros(num_games, dtype=np.int64)  # of the player
        self.pause = np.zeros(num_games, dtype=np.int64)  # steps until the player can move
        self.time_left = np.zeros(num_games, dtype=np.int64)
        self.cars = np.zeros((num_games, 8), dtype=np.int64)  # column
        self.car_timer = np.zeros((num_games, 8), dtype=np.int64)  # steps until the car moves
        self.period = np.zeros((num_games, 8), dtype=np.int64)  # 1 to 5, of the car's timer
        self.way = np.zeros((num_games, 8), dtype=np.int64)  # -1 to the left, 1 to the right

    def restart(self, which: NDArray[np.bool_]) -> None:
        """Start the games of a mask, bool [N], again."""
        self.row[which], self.pause[which], self.time_left[which] = BOTTOM, PAUSE, TIME
        self.cars[which] = 0
        self._new_cars(which.nonzero()[0])

    def _new_cars(self, which: NDArray[np.int64]) -> None:
        """In M games all cars have new speeds and directions; they stay where they are."""
        for i in which.tolist():
            self.period[i] = self.car_timer[i] = self.streams[i].randint(1, 6, 8)
            self.way[i] = np.where(self.streams[i].random_sample(8) < 0.5, -1, 1)

    def act(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """One step of every game.

        Args:
            actions: [N], 0 .. 5.
        Returns:
            Rewards [N], one for a crossing, and whether the time is over, bool [N].
        """
        # The player moves. observed: at the bottom, too, a move has its pause.
        steers = STEERS[actions] & (self.pause == 0)
        self.row = np.where(steers, ROW_AFTER[actions, self.row], self.row)
        self.pause = np.where(steers, PAUSE - 1, np.maximum(self.pause - 1, 0))

        # A player who arrives starts again, and the cars change.
        arrived = self.row == 0
        rewards = arrived.astype(np.float64)
        if np.count_nonzero(arrived):
            self.row[arrived] = BOTTOM
            self._new_cars(arrived.nonzero()[0])

        # observed: a car hits the player where it was and where it goes. Only the car of the player's row can.
        lane = np.minimum(self.row - 1, 7)
        hit = self.cars[self.each, lane] == COLUMN
        moves = self.car_timer == 0
        self.cars = (self.cars + self.way * moves) % 10
        self.car_timer = np.where(moves, self.period, self.car_timer - 1)
        hit |= self.cars[self.each, lane] == COLUMN
        self.row[hit] = BOTTOM  # a player in this row, which has no car, is there already

        self.time_left = self.time_left - 1
        return rewards, self.time_left < 0

    def draw(self, cells: NDArray[np.bool_], which: slice | NDArray[np.int64]) -> None:
        """Write the observations of M of the games, bool [M, 7, 100] of zeros.

        The channels: player, cars, and behind the cars their trails, in one of five channels by the car's period.
        """
        line, start = cells.reshape(-1), 700 * self.each[: len(cells)]
        line[start + 10 * self.row[which] + COLUMN] = True
        lanes, cars = start[:, None] + LANES, self.cars[which]
        line[lanes + cars + 100] = True
        line[lanes + (cars - self.way[which]) % 10 + 100 * self.period[which] + 100] = True


class FreewayVectorEnv(ArrayVectorEnv):
    """N environments of MinAtar's Freeway as arrays; see `ArrayVectorEnv`."""

    GAME, RULES, _saved_in = "Freeway", Freeway, "freeway"
