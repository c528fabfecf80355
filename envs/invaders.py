"""MinAtar's Space Invaders as NumPy arrays, all environments at once: equal to the package's game, and much faster.

`SpaceInvadersVectorEnv` returns exactly what `MinAtarVectorEnv("MinAtar/SpaceInvaders-v0")` (or -v1) returns from the
same seeds. The package's game takes 25 µs a step, ten times as long as the other games, and N environments take N times
that. Here a step is some seventy operations on arrays, and 64 environments cost about twice as much as one.

The rules are in `Invaders.act`, in the order in which they happen. They were written from the game's description
(arXiv:1903.03176) and from experiments with the running game: set attributes, make one step, see what changed. Comments
that begin with "observed" are results of these experiments that the description does not give. The package is the
reference, and the tests compare with it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.array_games import COLUMN_AFTER, FIRE, LEFT, RIGHT, ArrayGames, ArrayVectorEnv

FASTER_FROM = 2
"""Number of environments from which this is faster than the package's game.

Microseconds per step: random actions, the two classes in turn in one process on a busy core; minimum (first quartile)
of 800 to 4000 steps.

environments       1         2         8            64
this          46 (83)   44 (49)   52 (91)     106 (212)
package       31 (58)   54 (60)  191 (236)  1,551 (1,829)
"""

GUN_PAUSE, BOMB_PAUSE = 5, 10
"""Steps between two shots of the cannon at least, and between two bombs of the aliens exactly."""

SLOWEST, FASTEST = 12, 6
"""Steps between two moves of many aliens: in the first wave, and in the seventh and all later ones."""

WAVE: NDArray[np.bool_] = np.zeros((10, 10), dtype=np.bool_)
"""The aliens of a new wave, bool [10, 10]: four rows of six."""
WAVE[0:4, 2:8] = True

COLUMNS: NDArray[np.int64] = np.arange(10)

CAME_FROM: NDArray[np.int64] = np.stack([np.roll(np.arange(100), shift) for shift in (-1, 1, 10)])
"""For every cell of a board, as one line of 100: the cell whose alien moves there, [moving left, right, down; cell]."""


class Invaders(ArrayGames):
    """N games. The cannon stands in row 9. With ramping, every wave is faster than the one before."""

    ACTIONS = (0, LEFT, RIGHT, FIRE)
    CHANNELS = 6

    def _allocate(self, num_games: int) -> None:
        self.cannon = np.zeros(num_games, dtype=np.int64)  # column
        self.shots = np.zeros((num_games, 10, 10), dtype=np.bool_)  # of the cannon, on their way up
        self.bombs = np.zeros((num_games, 10, 10), dtype=np.bool_)  # of the aliens, on their way down
        self.aliens = np.zeros((num_games, 10, 10), dtype=np.bool_)
        self.direction = np.zeros(num_games, dtype=np.int64)  # of all aliens of a game: -1 left, 1 right
        self.interval = np.zeros(num_games, dtype=np.int64)  # steps between moves of many aliens
        self.move_timer = np.zeros(num_games, dtype=np.int64)  # steps until the aliens move
        self.bomb_timer = np.zeros(num_games, dtype=np.int64)  # steps until an alien drops a bomb
        self.gun_timer = np.zeros(num_games, dtype=np.int64)  # steps until the cannon can fire

    def restart(self, which: NDArray[np.bool_]) -> None:
        """Start the games of a mask, bool [N], again. Nothing of this is random."""
        self.cannon[which] = 5
        self.shots[which] = self.bombs[which] = False
        self.aliens[which] = WAVE
        self.direction[which] = -1
        self.interval[which] = self.move_timer[which] = SLOWEST
        self.bomb_timer[which] = BOMB_PAUSE
        self.gun_timer[which] = 0

    def act(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """One step of every game.

        Args:
            actions: [N], 0 .. 5.
        Returns:
            Rewards [N], one for each alien hit, and whether the game is lost, bool [N].
            observed: the step that loses a game is completed; aliens hit in it count.
        """
        # The cannon fires, from its own row, or moves; at the edge it stays.
        firing = (actions == FIRE) & (self.gun_timer == 0)
        self.shots[self.each, 9, self.cannon] |= firing
        self.gun_timer[firing] = GUN_PAUSE
        self.cannon = COLUMN_AFTER[actions, self.cannon]

        # Everything that flies moves by one cell, including the shot just fired. observed: bombs and shots pass each
        # other, even within a cell; a bomb next to the cannon in its row is gone before the cannon can run into it.
        self.shots = _flown(self.shots, up=True)
        self.bombs = _flown(self.bombs, up=False)
        lost = self._at_cannon(self.bombs)

        # observed: an alien on the cannon counts before and after the aliens move, so they cannot pass it.
        lost |= self._at_cannon(self.aliens)
        marching = np.flatnonzero(self.move_timer == 0)
        if len(marching):
            lost[marching] |= self._march(marching)
            lost |= self._at_cannon(self.aliens)

        # observed: bombs are aimed at the cannon and dropped by the aliens where they are now, including those that are
        # hit in this step; the bomb stays with its alien until the next step.
        dropping = np.flatnonzero(self.bomb_timer == 0)
        if len(dropping):
            self._drop(dropping)

        # Shots hit where the aliens are now.
        hits = self.shots & self.aliens
        self.shots ^= hits
        self.aliens ^= hits
        rewards = np.bincount(np.flatnonzero(hits) // 100, minlength=len(hits)).astype(np.float64)

        self.gun_timer = np.maximum(self.gun_timer - 1, 0)
        self.move_timer -= 1
        self.bomb_timer -= 1

        # After the last alien a new wave comes, faster by one step. observed: everything else stays: shots and bombs in
        # flight, timers, and the direction of the last wave.
        cleared = ~self.aliens.reshape(-1, 100).any(axis=1)
        if cleared.any():
            self.aliens[cleared] = WAVE
            if self.ramping:
                self.interval[cleared & (self.interval > FASTEST)] -= 1
        return rewards, lost

    def _at_cannon(self, board: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether a board [N, 10, 10] has something where the cannon is, bool [N]."""
        hit: NDArray[np.bool_] = board[self.each, 9, self.cannon]
        return hit

    def _march(self, which: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The aliens of M games move to the side, or, from the edge, down and turn; returns whether they land, [M].

        With fewer aliens than the interval has steps, they move as often as there are aliens (counted before hits).
        """
        aliens, direction = self.aliens[which], self.direction[which]  # [M, 10, 10], [M]
        game = np.arange(len(which))
        line = aliens.reshape(-1, 100)
        self.move_timer[which] = np.minimum(line.sum(axis=1), self.interval[which])
        turns = aliens[game, :, np.where(direction < 0, 0, 9)].any(axis=1)
        landing: NDArray[np.bool_] = np.logical_and(turns, aliens[:, 9].any(axis=1))
        self.direction[which] = np.where(turns, -direction, direction)
        # Aliens that move to the side stay in their row: the edge is free. observed: aliens that land appear at the top
        # in the last observation.
        came_from = CAME_FROM[np.where(turns, 2, direction > 0)]  # [M, 100]
        self.aliens[which] = line[game[:, None], came_from].reshape(-1, 10, 10)
        return landing

    def _drop(self, which: NDArray[np.int64]) -> None:
        """In M games the lowest alien of the column nearest to the cannon (of two, the left one) drops a bomb."""
        aliens = self.aliens[which]  # [M, 10, 10]
        distance = np.abs(COLUMNS - self.cannon[which, None])
        column = np.where(aliens.any(axis=1), distance, 10).argmin(axis=1)  # [M]
        row = 9 - aliens[np.arange(len(which)), ::-1, column].argmax(axis=1)
        self.bombs[which, row, column] = True
        self.bomb_timer[which] = BOMB_PAUSE

    def draw(self, cells: NDArray[np.bool_], which: slice | NDArray[np.int64]) -> None:
        """Write the observations of M of the games, bool [M, 6, 100] of zeros.

        The channels: cannon, aliens, aliens that go left, that go right, shots, bombs.
        """
        each = self.each[: len(cells)]
        aliens = self.aliens[which].reshape(-1, 100)
        cells[each, 0, 90 + self.cannon[which]] = True
        cells[:, 1] = aliens
        cells[each, np.where(self.direction[which] < 0, 2, 3)] = aliens
        cells[:, 4] = self.shots[which].reshape(-1, 100)
        cells[:, 5] = self.bombs[which].reshape(-1, 100)


class SpaceInvadersVectorEnv(ArrayVectorEnv):
    """N environments of MinAtar's Space Invaders as arrays; see `ArrayVectorEnv`."""

    GAME, RULES, _saved_in = "SpaceInvaders", Invaders, "invaders"


def _flown(board: NDArray[np.bool_], *, up: bool) -> NDArray[np.bool_]:
    """Move everything on a board [N, 10, 10] by one row; what leaves the board disappears."""
    moved = np.zeros_like(board)
    if up:
        moved[:, :-1] = board[:, 1:]
    else:
        moved[:, 1:] = board[:, :-1]
    return moved
