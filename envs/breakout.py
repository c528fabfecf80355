"""MinAtar's Breakout as NumPy arrays, all environments at once: equal to the package's game, and faster.

`BreakoutVectorEnv` returns exactly what `MinAtarVectorEnv("MinAtar/Breakout-v0")` (or -v1) returns from the same seeds.
The rules are in `Breakout.act`; see `envs.array_games` for where they come from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.array_games import COLUMN_AFTER, LEFT, RIGHT, ArrayGames, ArrayVectorEnv

FASTER_FROM = 16
"""Number of environments from which this is faster than the package's game: measured by `python -m runs bench minatar`
at 8 (0.81 of the package's steps per second), 10 (0.87), 12 (1.00) and 16 (1.25)."""

WALL: NDArray[np.bool_] = np.zeros(100, dtype=np.bool_)
"""The bricks of a new wall, bool [100]: three rows."""
WALL[10:40] = True

# A flight is the cell of the ball and its direction: 100 direction + cell. The directions are 0 left and up, 1 right
# and up, 2 right and down, 3 left and down.
STARTS: NDArray[np.int64] = np.array([230, 339])
"""The two flights at the start of an episode."""

TURNED_BACK: NDArray[np.int64] = np.array([300, 200, 100, 0])
"""100 times the direction after a bounce off a brick or the paddle."""

REVERSED: NDArray[np.int64] = np.array([200, 300, 0, 100])
"""100 times the opposite of each direction."""


def _flights() -> NDArray[np.int64]:
    """For every flight, [400]: the next one, without bricks and paddle."""
    direction, row, column = np.ogrid[0:4, 0:10, 0:10]
    right, down = np.isin(direction, (1, 2)), direction >= 2
    row, column = row + np.where(down, 1, -1), column + np.where(right, 1, -1)
    # observed: at a wall or the ceiling the ball turns at once, and stays in its column or row for one step.
    right, down = right ^ (column < 0) ^ (column > 9), down ^ (row < 0)
    turned = np.where(down, np.where(right, 2, 3), np.where(right, 1, 0))
    following: NDArray[np.int64] = 100 * turned + 10 * np.clip(row, 0, 9) + np.clip(column, 0, 9)
    return following.reshape(-1)


NEXT: NDArray[np.int64] = _flights()


class Breakout(ArrayGames):
    """N games. The paddle is in row 9, bricks are in rows 1 to 3. Difficulty ramping has no effect."""

    ACTIONS = (0, LEFT, RIGHT)
    CHANNELS = 4

    def _allocate(self, num_games: int) -> None:
        self.paddle = np.zeros(num_games, dtype=np.int64)  # column
        self.flight = np.zeros(num_games, dtype=np.int64)  # of the ball
        self.trail = np.zeros(num_games, dtype=np.int64)  # cell where the ball was before
        self.struck = np.zeros(num_games, dtype=np.bool_)  # whether the ball met a brick in the last step
        self.bricks = np.zeros((num_games, 100), dtype=np.bool_)

    def restart(self, which: NDArray[np.bool_]) -> None:
        """Start the games of a mask, bool [N], again: the ball comes from the left or the right."""
        games = which.nonzero()[0]
        side = np.array([self.streams[i].randint(2) for i in games.tolist()], dtype=np.int64)
        self.paddle[games] = 4
        self.flight[games] = STARTS[side]
        self.trail[games] = STARTS[side] % 100
        self.struck[games] = False
        self.bricks[games] = WALL

    def act(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """One step of every game.

        Args:
            actions: [N], 0 .. 5.
        Returns:
            Rewards [N], one for a brick, and whether the ball is lost, bool [N].
        """
        # The paddle moves; at the edge it stays.
        self.paddle = COLUMN_AFTER[actions, self.paddle]

        self.trail = self.flight % 100
        self.flight = NEXT[self.flight]
        target = self.flight % 100
        meets = self.bricks[self.each, target]

        # The ball breaks a brick, turns back, and keeps its row. observed: if it met a brick in the step before, it
        # flies through this one.
        breaks = meets > self.struck
        self.struck = meets
        broken = breaks.nonzero()[0]
        if len(broken):
            cell, before = target[broken], self.trail[broken]
            self.bricks[broken, cell] = False
            self.flight[broken] = TURNED_BACK[self.flight[broken] // 100] + before - before % 10 + cell % 10

        lost = target >= 90
        low = lost.nonzero()[0]
        if len(low):
            lost[low] = self._at_bottom(low)
        return breaks.astype(np.float64), lost

    def _at_bottom(self, which: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The ball of M games comes to the paddle's row; returns whether it is lost, bool [M]."""
        # observed: only now a new wall is built, if nothing is left of the last one.
        bare = ~self.bricks[which].any(axis=1)
        if np.count_nonzero(bare):
            self.bricks[which[bare]] = WALL
        # observed: if the ball was above the paddle it turns back, as at a brick; if it comes to the paddle from one
        # side, it is sent back to this side.
        paddle, before, flight = self.paddle[which], self.trail[which], self.flight[which]
        above, beside = paddle == before % 10, paddle == flight % 10
        direction = flight // 100
        bounced = np.where(above, TURNED_BACK[direction], REVERSED[direction]) + before - before % 10 + flight % 10
        lost: NDArray[np.bool_] = ~(above | beside)
        self.flight[which] = np.where(lost, flight, bounced)
        return lost

    def draw(self, cells: NDArray[np.bool_], which: slice | NDArray[np.int64]) -> None:
        """Write the observations of M of the games, bool [M, 4, 100] of zeros: paddle, ball, trail, bricks."""
        line, start = cells.reshape(-1), 400 * self.each[: len(cells)]
        line[start + self.paddle[which] + 90] = True
        line[start + self.flight[which] % 100 + 100] = True
        line[start + self.trail[which] + 200] = True
        cells[:, 3] = self.bricks[which]


class BreakoutVectorEnv(ArrayVectorEnv):
    """N environments of MinAtar's Breakout as arrays; see `ArrayVectorEnv`."""

    GAME, RULES, _saved_in = "Breakout", Breakout, "breakout"
