"""MinAtar's Seaquest as NumPy arrays, all environments at once: equal to the package's game, and faster.

`SeaquestVectorEnv` returns exactly what `MinAtarVectorEnv("MinAtar/Seaquest-v0")` (or -v1) returns from the same seeds.
The rules are in `Seaquest.act`; see `envs.array_games` for where they come from.

Fish, submarines, divers and bullets are tables with one column for each of them, of all games together. A step costs
the same number of operations whatever their number is, and no game has a limit. Only what touches is looked at one by
one: a shot hits the first enemy in its cell, so their order within a game matters.

From states that no game reaches, in which a shot is in the cell of an enemy when a step begins, the package may leave
the shots in another order. Everything else is equal from there, too, as far as it was tried.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.array_games import COLUMN_AFTER, DOWN, FIRE, LEFT, RIGHT, ROW_AFTER, UP, ArrayGames, ArrayVectorEnv

FASTER_FROM = 48
"""Number of environments from which this is faster than the package's game: measured by `python -m runs bench minatar`
at 32 (0.85 of the package's steps per second), 48 (1.07) and 64 (1.25)."""

FULL_TANK, TANK_CELLS, CREW = 200, 10, 6
"""Steps that full oxygen lasts, cells of its bar, and divers that the player can carry."""

ENEMY_EVERY, DIVER_EVERY, MOVE_EVERY, GUN_PAUSE, SUB_PAUSE = 20, 30, 5, 5, 10
"""Steps between two enemies and two divers that come, two moves of one, two shots of the player, and two of an enemy.
Enemies come and move more often when the player has surfaced often."""

CELL, WAY, TIMER, GUN = 0, 1, 2, 3
"""Rows of the tables: cell (100 game + 10 row + column), way (-1 to the left, 1 to the right), steps until it moves,
and, only of submarines, until it shoots. Bullets have the first two only, as they move in every step."""

TABLES = {"shots": 2, "bullets": 2, "fish": 3, "subs": 4, "divers": 3}
"""The tables: of the player, of enemies, and what comes from the sides. The number of rows of each."""

SHOWN: NDArray[np.int64] = np.array([200, 400, 500, 600, 900])
"""First cell of the channel of each table in an observation of one game."""

TRAILS = 300
"""The same of the trails."""

COLUMN_STEP: NDArray[np.int64] = np.array([0, -1, 0, 1, 0, 0])
"""Columns by which each action moves the player, who then faces this way."""

AIR: NDArray[np.bool_] = np.arange(10) < np.append(np.arange(FULL_TANK + 1) * TANK_CELLS // FULL_TANK, 0)[:, None]
"""The bar of oxygen, [oxygen, column]; the last row is for -1, which is seen when a game is lost for want of air."""

ABOARD: NDArray[np.bool_] = (np.arange(10) >= 9 - np.arange(CREW + 1)[:, None]) & (np.arange(10) < 9)
"""The bar of divers on board, [divers, column]."""


class Seaquest(ArrayGames):
    """N games. The player is in the rows 0 (the surface) to 8, all others come in the rows 1 to 8."""

    ACTIONS = (0, LEFT, UP, RIGHT, DOWN, FIRE)
    CHANNELS = 10

    def _allocate(self, num_games: int) -> None:
        self.row = np.zeros(num_games, dtype=np.int64)  # of the player
        self.column = np.zeros(num_games, dtype=np.int64)
        self.facing = np.zeros(num_games, dtype=np.int64)  # -1 to the left, 1 to the right
        self.oxygen = np.zeros(num_games, dtype=np.int64)
        self.crew = np.zeros(num_games, dtype=np.int64)  # divers on board
        self.surfaced = np.zeros(num_games, dtype=np.bool_)
        self.gun_timer = np.zeros(num_games, dtype=np.int64)  # steps until the player can shoot
        self.enemy_timer = np.zeros(num_games, dtype=np.int64)  # steps until an enemy comes
        self.diver_timer = np.zeros(num_games, dtype=np.int64)
        self.enemy_every = np.zeros(num_games, dtype=np.int64)
        self.move_every = np.zeros(num_games, dtype=np.int64)
        self.ramps = np.zeros(num_games, dtype=np.int64)  # how often the difficulty was increased
        self.shots, self.bullets, self.fish, self.subs, self.divers = (
            np.zeros((rows, 0), dtype=np.int64) for rows in TABLES.values()
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name; the tables are in the order of the games."""
        arrays = super().arrays()
        for name in TABLES:
            arrays[name] = arrays[name][:, np.argsort(arrays[name][CELL] // 100, kind="stable")]
        return arrays

    def restart(self, which: NDArray[np.bool_]) -> None:
        """Start the games of a mask, bool [N], again. Nothing of this is random."""
        self.row[which], self.column[which], self.facing[which] = 0, 5, -1
        self.oxygen[which], self.crew[which], self.surfaced[which] = FULL_TANK, 0, True
        self.gun_timer[which] = self.ramps[which] = 0
        self.enemy_timer[which] = self.enemy_every[which] = ENEMY_EVERY
        self.diver_timer[which], self.move_every[which] = DIVER_EVERY, MOVE_EVERY
        stays = ~which
        self.shots, self.bullets, self.fish, self.subs, self.divers = (
            table[:, stays[table[CELL] // 100]]
            for table in (self.shots, self.bullets, self.fish, self.subs, self.divers)
        )

    def act(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """One step of every game.

        Args:
            actions: [N], 0 .. 5.
        Returns:
            Rewards [N], one for each enemy hit and one for each cell of oxygen at a rescue of six divers, and whether
            the game is lost, bool [N]. observed: the step that loses a game is completed.
        """
        self._spawn()
        firing = ((actions == FIRE) & (self.gun_timer == 0)).nonzero()[0]
        self.row = np.minimum(ROW_AFTER[actions, self.row], 8)
        self.column = COLUMN_AFTER[actions, self.column]
        turns = COLUMN_STEP[actions]
        self.facing = np.where(turns, turns, self.facing)
        player = 100 * self.each + 10 * self.row + self.column
        if len(firing):
            self.shots = np.concatenate([self.shots, [player[firing], self.facing[firing]]], axis=1)
            self.gun_timer[firing] = GUN_PAUSE
        at_player = np.zeros(100 * len(player), dtype=np.bool_)
        at_player[player] = True
        rewards, touched = np.zeros(len(player), dtype=np.float64), []

        # Shots move, also those just fired, and hit. observed: in a cell a shot hits a fish before a submarine, and
        # the first of several; of several shots the last one hits first.
        self.shots = _flown(self.shots)
        self._hit_with_shots(rewards)

        # Divers. observed: whoever is on the player before or after all divers move comes on board.
        self._move_divers(at_player)

        # Enemies. observed: what is on the player before or after its move ends the game, so they cannot pass. If it
        # comes to a shot it is hit. A submarine that is hit when it comes to a shot still shoots.
        subs = self.subs
        touched.append(subs[CELL, at_player[subs[CELL]]])
        subs, moved = self._moved(subs)
        shoots = subs[GUN] == 0
        subs[GUN] = np.where(shoots, SUB_PAUSE, subs[GUN] - 1)
        new = subs[:2, shoots][:, ::-1]
        self.subs = self._hit_on_arrival(subs, moved, at_player, touched, rewards)

        bullets = np.concatenate([self.bullets, new], axis=1)
        touched.append(bullets[CELL, at_player[bullets[CELL]]])
        self.bullets = _flown(bullets)
        touched.append(self.bullets[CELL, at_player[self.bullets[CELL]]])

        touched.append(self.fish[CELL, at_player[self.fish[CELL]]])
        fish, moved = self._moved(self.fish)
        self.fish = self._hit_on_arrival(fish, moved, at_player, touched, rewards)

        lost = np.zeros(len(player), dtype=np.bool_)
        lost[np.concatenate(touched) // 100] = True
        self._breathe(rewards, lost)
        self.gun_timer = np.maximum(self.gun_timer - 1, 0)
        self.enemy_timer = np.maximum(self.enemy_timer - 1, 0)
        self.diver_timer = np.maximum(self.diver_timer - 1, 0)
        return rewards, lost

    def _spawn(self) -> None:
        """Enemies and divers come from the left or the right, in any of the rows 1 to 8."""
        fish, subs, divers = [], [], []
        due = (self.enemy_timer == 0).nonzero()[0]
        if len(due):
            # observed: no enemy comes in a row where another one goes the other way.
            taken = np.zeros((2, 10 * len(self.each)), dtype=np.bool_)  # [to the right?, row]
            for table in (self.fish, self.subs):
                taken[(table[WAY] > 0).astype(np.int64), table[CELL] // 10] = True
            for i, every in zip(due.tolist(), self.move_every[due].tolist(), strict=True):
                stream = self.streams[i]
                right, shoots = stream.random_sample() < 1 / 2, stream.random_sample() < 1 / 3
                row = 10 * i + int(stream.randint(1, 9))
                if taken[int(not right), row]:
                    continue
                start = [10 * row + (0 if right else 9), 1 if right else -1, every]
                if shoots:
                    subs.append([*start, SUB_PAUSE])
                else:
                    fish.append(start)
            self.enemy_timer[due] = self.enemy_every[due]
        due = (self.diver_timer == 0).nonzero()[0]
        if len(due):
            for i in due.tolist():
                stream = self.streams[i]
                right = stream.random_sample() < 1 / 2
                cell = 100 * i + 10 * int(stream.randint(1, 9)) + (0 if right else 9)
                divers.append([cell, 1 if right else -1, MOVE_EVERY])
            self.diver_timer[due] = DIVER_EVERY
        if fish:
            self.fish = np.concatenate([self.fish, np.array(fish).T], axis=1)
        if subs:
            self.subs = np.concatenate([self.subs, np.array(subs).T], axis=1)
        if divers:
            self.divers = np.concatenate([self.divers, np.array(divers).T], axis=1)

    def _moved(self, table: NDArray[np.int64], every: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """A table after everything in it whose time has come has moved, without what left the board; and which moved.

        Args:
            table: of fish, submarines or divers.
            every: steps until the next move; None for that of the game.
        """
        moves = table[TIMER] == 0
        column = table[CELL] % 10 + table[WAY] * moves
        stays = column.view(np.uint64) < 10  # and not below 0
        pause = self.move_every[table[CELL] // 100] if every is None else every
        table = table.copy()
        table[CELL] += table[WAY] * moves
        table[TIMER] = np.where(moves, pause, table[TIMER] - 1)
        if np.count_nonzero(stays) < len(stays):
            table, moves = table[:, stays], moves[stays]
        return table, moves

    def _hit_with_shots(self, rewards: NDArray[np.float64]) -> None:
        """Remove the shots that are on enemies now, and these enemies."""
        if not self.shots.shape[1]:
            return
        enemies = np.zeros(100 * len(self.each), dtype=np.bool_)
        enemies[self.fish[CELL]] = enemies[self.subs[CELL]] = True
        some = enemies[self.shots[CELL]].nonzero()[0]
        if not len(some):
            return
        shots, fish, subs = (np.ones(table.shape[1], dtype=np.bool_) for table in (self.shots, self.fish, self.subs))
        for shot in some[::-1].tolist():
            cell = self.shots[CELL, shot]
            for table, left in ((self.fish, fish), (self.subs, subs)):
                there = (left & (table[CELL] == cell)).nonzero()[0]
                if len(there):
                    left[there[0]] = shots[shot] = False
                    rewards[cell // 100] += 1.0
                    break
        self.shots, self.fish, self.subs = self.shots[:, shots], self.fish[:, fish], self.subs[:, subs]

    def _hit_on_arrival(
        self,
        table: NDArray[np.int64],
        moved: NDArray[np.bool_],
        at_player: NDArray[np.bool_],
        touched: list[NDArray[np.int64]],
        rewards: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Those of fish or submarines that moved may have come to the player, or to a shot; returns what is left."""
        cells = table[CELL]
        arrived = moved & at_player[cells]
        touched.append(cells[arrived])
        if not self.shots.shape[1]:
            return table
        shot_at = np.zeros(len(at_player), dtype=np.bool_)
        shot_at[self.shots[CELL]] = True
        some = (moved & shot_at[cells] & ~arrived).nonzero()[0]
        if not len(some):
            return table
        left, shots = np.ones(len(cells), dtype=np.bool_), np.ones(self.shots.shape[1], dtype=np.bool_)
        for one in some[::-1].tolist():
            there = (shots & (self.shots[CELL] == cells[one])).nonzero()[0]
            if len(there):
                left[one] = shots[there[0]] = False
                rewards[cells[one] // 100] += 1.0
        self.shots = self.shots[:, shots]
        return table[:, left]

    def _move_divers(self, at_player: NDArray[np.bool_]) -> None:
        """Divers come on board, while there is room, or move."""
        table = self.divers
        before = at_player[table[CELL]]
        moves = table[TIMER] == 0
        column = table[CELL] % 10 + table[WAY] * moves
        stays = column.view(np.uint64) < 10
        moved = table.copy()
        moved[CELL] += table[WAY] * moves
        moved[TIMER] = np.where(moves, MOVE_EVERY, table[TIMER] - 1)
        meets = before | (moves & stays & at_player[np.where(stays, moved[CELL], 0)])
        for one in meets.nonzero()[0][::-1].tolist():
            game = table[CELL, one] // 100
            if self.crew[game] < CREW:
                self.crew[game] += 1
                stays[one] = False
        self.divers = moved if np.count_nonzero(stays) == len(stays) else moved[:, stays]

    def _breathe(self, rewards: NDArray[np.float64], lost: NDArray[np.bool_]) -> None:
        """Use up oxygen below the surface; at the surface divers leave, and oxygen is refilled."""
        lost |= self.oxygen <= 0
        below = self.row > 0
        up = (~below & ~self.surfaced).nonzero()[0]
        self.surfaced &= ~below
        if len(up):
            lost[up] |= self.crew[up] == 0
            up = up[self.crew[up] != 0]
            self.surfaced[up] = True
            rescue = up[self.crew[up] == CREW]
            rewards[rescue] += self.oxygen[rescue] * TANK_CELLS // FULL_TANK
            self.crew[rescue] = 0
            self.crew[up] -= 1  # observed: after a rescue of six, too, which leaves -1
            self.oxygen[up] = FULL_TANK
            if self.ramping:
                harder = up[(self.enemy_every[up] > 1) | (self.move_every[up] > 2)]
                more = harder[(self.ramps[harder] % 2 == 1) & (self.move_every[harder] > 2)]
                self.move_every[more] -= 1
                self.enemy_every[harder] = np.maximum(self.enemy_every[harder] - 1, 1)
                self.ramps[harder] += 1
        self.oxygen = self.oxygen - below

    def draw(self, cells: NDArray[np.bool_], which: slice | NDArray[np.int64]) -> None:
        """Write the observations of M of the games, bool [M, 10, 100] of zeros.

        The channels: the player's front and back, its shots, trails, bullets, fish, submarines, oxygen, the divers on
        board, divers.
        """
        line, games = cells.reshape(-1), self.each[: len(cells)]
        front = 1000 * games + 10 * self.row[which] + self.column[which]
        line[front] = True
        line[front - self.facing[which] + 100] = True
        cells[:, 7, 90:] = AIR[self.oxygen[which]]
        cells[:, 8, 90:] = ABOARD[np.maximum(self.crew[which], 0)]

        tables = (self.shots, self.bullets, self.fish, self.subs, self.divers)
        cell, way = np.concatenate([table[:2] for table in tables], axis=1)
        channel = np.repeat(SHOWN, [table.shape[1] for table in tables])
        game = cell // 100
        if len(cells) < len(self.each):
            rank = np.full(len(self.each), -1)
            rank[which] = games
            shown = (rank[game] >= 0).nonzero()[0]
            cell, way, channel, game = cell[shown] % 100, way[shown], channel[shown], rank[game[shown]]
            cell += 100 * game
        cell = cell + 900 * game
        line[cell + channel] = True
        behind = ((cell % 10 - way).view(np.uint64) < 10) & (channel > SHOWN[1])  # bullets have no trails
        line[(cell - way)[behind] + TRAILS] = True


class SeaquestVectorEnv(ArrayVectorEnv):
    """N environments of MinAtar's Seaquest as arrays; see `ArrayVectorEnv`."""

    GAME, RULES, _saved_in = "Seaquest", Seaquest, "seaquest"


def _flown(bullets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bullets one cell further; what leaves the board disappears."""
    if not bullets.shape[1]:
        return bullets
    column = bullets[CELL] % 10 + bullets[WAY]
    moved = np.stack([bullets[CELL] + bullets[WAY], bullets[WAY]])
    stays = column.view(np.uint64) < 10
    return moved if np.count_nonzero(stays) == len(stays) else moved[:, stays]
