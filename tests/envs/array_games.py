"""Comparing the games that are written as arrays with the package's, step by step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.array_games import ArrayVectorEnv
from envs.asterix import AsterixVectorEnv
from envs.breakout import BreakoutVectorEnv
from envs.freeway import FreewayVectorEnv
from envs.invaders import SpaceInvadersVectorEnv
from envs.minatar import MinAtarVectorEnv
from envs.seaquest import SeaquestVectorEnv

UP, DOWN, LEFT, RIGHT, FIRE = 2, 4, 1, 3, 5


def integers(attributes, name):
    return np.array([one[name] for one in attributes], dtype=np.int64)


def breakout(attributes):
    y, x = integers(attributes, "ball_y"), integers(attributes, "ball_x")
    last_y, last_x = integers(attributes, "last_y"), integers(attributes, "last_x")
    return {
        "paddle": integers(attributes, "pos"),
        "flight": 100 * integers(attributes, "ball_dir") + 10 * y + x,
        "trail": 10 * last_y + last_x,
        "struck": np.array([bool(one["strike"]) for one in attributes]),
        "bricks": np.array([one["brick_map"] for one in attributes]).reshape(-1, 100).astype(bool),
    }


def skilled_breakout(seed=0):
    """Goes where the ball will land or next to it, or anywhere in one step of fifty."""
    rng = np.random.default_rng(seed)

    def choose(obs):
        paddle = obs[:, 0, 9].argmax(axis=1)
        (y, x), (before_y, before_x) = (divmod(obs[:, i].reshape(-1, 100).argmax(axis=1), 10) for i in (1, 2))
        rightwards = np.where(x == before_x, x < 5, x > before_x)
        way = (np.where(rightwards, x, 19 - x) + 9 - y) % 20  # back and forth between the walls
        landing = np.where(way < 10, way, 19 - way)
        goal = np.where(y > before_y, landing - rng.integers(-1, 2, len(obs)) * (rng.random(len(obs)) < 0.3), x)
        chosen = np.where(goal < paddle, LEFT, np.where(goal > paddle, RIGHT, 0))
        return np.where(rng.random(len(obs)) < 0.02, rng.integers(0, 6, len(obs)), chosen)

    return choose


def planted_breakout(rng):
    """A ball anywhere above the paddle's row, any paddle, and any remains of the wall."""
    bricks = np.zeros((10, 10))
    bricks[1:4] = rng.random((3, 10)) < rng.choice([0.0, 0.05, 0.5, 1.0])
    column = int(rng.integers(10))
    return {
        "ball_y": int(rng.choice([rng.integers(9), 8, 7])),
        "ball_x": column,
        "ball_dir": int(rng.integers(4)),
        "pos": int(np.clip(column + rng.integers(-3, 4), 0, 9)),
        "strike": bool(rng.integers(2)),
        "last_y": int(rng.integers(10)),
        "last_x": int(rng.integers(10)),
        "brick_map": bricks,
    }


def freeway(attributes):
    cars = np.array([[[int(number) for number in car] for car in one["cars"]] for one in attributes])
    assert (cars[:, :, 1] == np.arange(1, 9)).all()
    return {
        "row": integers(attributes, "pos"),
        "pause": integers(attributes, "move_timer"),
        "time_left": integers(attributes, "terminate_timer"),
        "cars": cars[:, :, 0].copy(),
        "car_timer": cars[:, :, 2].copy(),
        "period": np.abs(cars[:, :, 3]),
        "way": np.sign(cars[:, :, 3]),
    }


def skilled_freeway(seed=0):
    """Goes up if no car is near its column in the next row, else waits or goes down; anything in a step of fifty."""
    rng = np.random.default_rng(seed)

    def choose(obs):
        row = obs[:, 0, :, 4].argmax(axis=1)
        each = np.arange(len(obs))
        near = obs[:, 1, :, 3:6].any(axis=2)  # [N, row]
        chosen = np.where(near[each, row - 1], np.where(near[each, row], DOWN, 0), UP)
        return np.where(rng.random(len(obs)) < 0.02, rng.integers(0, 6, len(obs)), chosen)

    return choose


def planted_freeway(rng):
    """Any player, and any cars, many of them near its column."""
    return {
        "pos": int(rng.integers(1, 10)),
        "move_timer": int(rng.choice([0, rng.integers(4)])),
        "terminate_timer": int(rng.choice([0, 1, 3, 2000])),
        "cars": [
            [
                int(rng.choice([rng.integers(10), rng.integers(3, 6)])),
                row,
                int(rng.integers(6)),
                int(rng.choice([-1, 1]) * rng.integers(1, 6)),
            ]
            for row in range(1, 9)
        ],
    }


def asterix(attributes):
    none = [-1, 0, None, False]
    lanes = [[none if thing is None else thing for thing in one["entities"]] for one in attributes]
    for one in attributes:
        assert all(thing is None or thing[1] == row for row, thing in enumerate(one["entities"], start=1))
        assert one["shot_timer"] == 0 and len(one["entities"]) == 8
    return {
        "row": integers(attributes, "player_y"),
        "column": integers(attributes, "player_x"),
        "things": np.array([[thing[0] for thing in one] for one in lanes], dtype=np.int64),
        "way": np.array([[{None: 0, True: 1, False: -1}[thing[2]] for thing in one] for one in lanes], dtype=np.int64),
        "gold": np.array([[bool(thing[3]) for thing in one] for one in lanes]),
        "spawn_timer": integers(attributes, "spawn_timer"),
        "spawn_every": integers(attributes, "spawn_speed"),
        "move_timer": integers(attributes, "move_timer"),
        "move_every": integers(attributes, "move_speed"),
        "ramp_timer": integers(attributes, "ramp_timer"),
        "ramps": integers(attributes, "ramp_index"),
    }


APART = np.abs(np.arange(100)[:, None] // 10 - np.arange(100) // 10) + np.abs(
    np.arange(100)[:, None] % 10 - np.arange(100) % 10
)
"""Steps from each cell to each other."""


def aside(board, columns):
    """A board [N, 10, 10] moved to the right; what leaves it disappears."""
    moved = np.zeros_like(board)
    if columns > 0:
        moved[:, :, columns:] = board[:, :, :-columns]
    else:
        moved[:, :, :columns] = board[:, :, -columns:]
    return moved


def walk(at, worth):
    """The action, of none and the four directions, to the best cell; worth [N, 10, 10] of being in each."""
    y, x = at // 10, at % 10
    cells = 10 * np.clip(y + MOVES[:, :1], 0, 9) + np.clip(x + MOVES[:, 1:], 0, 9)  # [5, N]
    return np.take_along_axis(worth.reshape(-1, 100), cells.T, axis=1).argmax(axis=1)


MOVES = np.array([[0, 0], [0, -1], [-1, 0], [0, 1], [1, 0]])


def skilled_asterix(seed=0):
    """Goes to the nearest gold and out of the way of enemies; anything in a step of a hundred."""
    rng = np.random.default_rng(seed)

    def choose(obs):
        player, enemies, trails, gold = obs.transpose(1, 0, 2, 3).astype(float)
        goal = (gold.reshape(-1, 1, 100) * (20 - APART)).max(axis=2).reshape(-1, 10, 10)
        right = enemies * aside(trails, 1)
        new = enemies * (1 - aside(trails, 1)) * (1 - aside(trails, -1))  # just come, from the nearer side
        right[:, :, :5] += new[:, :, :5]
        soon = aside(right, 1) + aside(enemies - right, -1)
        worth = goal - 100 * enemies - 50 * soon + rng.random((len(obs), 10, 10))
        worth[:, [0, 9]] -= 1000
        chosen = walk(player.reshape(-1, 100).argmax(axis=1), worth)
        return np.where(rng.random(len(obs)) < 0.01, rng.integers(0, 6, len(obs)), chosen)

    return choose


def planted_asterix(rng):
    """Things near the player, and any timers and difficulty."""
    column, filled = int(rng.integers(10)), rng.choice([0.2, 0.7, 1.0])

    def thing(row):
        if rng.random() > filled:
            return None
        at = int(np.clip(rng.choice([rng.integers(10), column + rng.integers(-1, 2)]), 0, 9))
        return [at, row, bool(rng.integers(2)), bool(rng.integers(2))]

    return {
        "player_x": column,
        "player_y": int(rng.integers(1, 9)),
        "entities": [thing(row) for row in range(1, 9)],
        "spawn_timer": int(rng.integers(3)),
        "spawn_speed": int(rng.integers(1, 11)),
        "move_timer": int(rng.integers(3)),
        "move_speed": int(rng.integers(1, 6)),
        "ramp_timer": int(rng.integers(-1, 3)),
        "ramp_index": int(rng.integers(10)),
    }


def table(attributes, name, rows):
    """One of the package's lists, of all games, as Seaquest's tables are."""
    lists = [(game, one) for game, single in enumerate(attributes) for one in single[name]]
    columns = [[100 * game + 10 * y + x, 1 if way else -1, *timers] for game, (x, y, way, *timers) in lists]
    return np.array(columns, dtype=np.int64).reshape(len(columns), rows).T


def seaquest(attributes):
    return {
        "row": integers(attributes, "sub_y"),
        "column": integers(attributes, "sub_x"),
        "facing": np.where([one["sub_or"] for one in attributes], 1, -1),
        "oxygen": integers(attributes, "oxygen"),
        "crew": integers(attributes, "diver_count"),
        "surfaced": np.array([one["surface"] for one in attributes]),
        "gun_timer": integers(attributes, "shot_timer"),
        "enemy_timer": integers(attributes, "e_spawn_timer"),
        "diver_timer": integers(attributes, "d_spawn_timer"),
        "enemy_every": integers(attributes, "e_spawn_speed"),
        "move_every": integers(attributes, "move_speed"),
        "ramps": integers(attributes, "ramp_index"),
        "shots": table(attributes, "f_bullets", 2),
        "bullets": table(attributes, "e_bullets", 2),
        "fish": table(attributes, "e_fish", 3),
        "subs": table(attributes, "e_subs", 4),
        "divers": table(attributes, "divers", 3),
    }


def skilled_seaquest(seed=0):
    """Shoots at enemies ahead, gets out of their way, fetches divers, and surfaces with six or when air runs out."""
    rng = np.random.default_rng(seed)

    def choose(obs):
        front, back, _, _, bullets, fish, subs, oxygen, crew, divers = obs.transpose(1, 0, 2, 3).astype(float)
        enemies = np.maximum(fish, subs)
        at = front.reshape(-1, 100).argmax(axis=1)
        y, x, each = at // 10, at % 10, np.arange(len(obs))
        right = back.reshape(-1, 100).argmax(axis=1) < at
        danger = np.maximum(enemies, bullets)
        near = np.maximum(danger, np.maximum(aside(danger, 1), aside(danger, -1)))
        aboard, air = crew[:, 9].sum(axis=1), oxygen[:, 9].sum(axis=1)
        home = ((aboard >= 6) | (air <= 2)) & (aboard > 0)
        worth = (divers.reshape(-1, 1, 100) * (20 - APART)).max(axis=2).reshape(-1, 10, 10)
        worth += 0.3 * (enemies.sum(axis=2)[:, :, None] > 0) + rng.random((len(obs), 10, 10))
        worth = np.where(home[:, None, None], 20.0 - np.arange(10)[:, None], worth) - 50 * near
        worth[:, 9] -= 1000
        worth[~home, 0] -= 200
        chosen = walk(at, worth)
        columns = np.arange(10)
        ahead = np.where(right[:, None], columns > x[:, None], columns < x[:, None])
        aims = (enemies[each, y] * ahead).any(axis=1) & (rng.random(len(obs)) < 0.5)
        chosen = np.where(aims, FIRE, chosen)
        return np.where(rng.random(len(obs)) < 0.02, rng.integers(0, 6, len(obs)), chosen)

    return choose


def planted_seaquest(rng):
    """Crowds in few rows around the player, so that much meets, and any timers, air, crew and difficulty.

    No shot is in the cell of an enemy when a step begins, as in every game: it would have hit. Where it is, the package
    orders the remaining shots differently.
    """
    x, y = int(rng.integers(10)), int(rng.choice([0, 1, rng.integers(9)]))
    rows = [int(row) for row in rng.integers(1, 9, 2)] + [max(y, 1)]

    def crowd(timers, most):
        return [
            [
                int(np.clip(rng.choice([rng.integers(10), x + rng.integers(-2, 3)]), 0, 9)),
                int(rng.choice(rows)),
                bool(rng.integers(2)),
                *(int(rng.integers(3)) for _ in range(timers)),
            ]
            for _ in range(rng.integers(most + 1))
        ]

    fish, subs = crowd(1, 7), crowd(2, 5)
    taken = {(one[0], one[1]) for one in fish + subs}
    return {
        "sub_x": x,
        "sub_y": y,
        "sub_or": bool({0: 0, 9: 1}.get(x, rng.integers(2))),  # never with its back beyond the edge
        "oxygen": int(rng.choice([0, 1, rng.integers(201)])),
        "diver_count": int(rng.choice([-1, 0, 1, 5, 6])),
        "surface": bool(rng.integers(2)) if y == 0 else False,
        "shot_timer": int(rng.integers(3)),
        "e_spawn_timer": int(rng.integers(3)),
        "d_spawn_timer": int(rng.integers(3)),
        "e_spawn_speed": int(rng.choice([1, 2, 20])),
        "move_speed": int(rng.integers(2, 6)),
        "ramp_index": int(rng.integers(4)),
        "f_bullets": [shot for shot in crowd(0, 6) if (shot[0], shot[1]) not in taken],
        "e_bullets": crowd(0, 4),
        "e_fish": fish,
        "e_subs": subs,
        "divers": crowd(1, 4),
    }


INVADERS = {
    "cannon": "pos",
    "shots": "f_bullet_map",
    "bombs": "e_bullet_map",
    "aliens": "alien_map",
    "direction": "alien_dir",
    "interval": "enemy_move_interval",
    "move_timer": "alien_move_timer",
    "bomb_timer": "alien_shot_timer",
    "gun_timer": "shot_timer",
}
"""Our arrays -> the package's attributes. Its `ramp_index` counts what `interval` shows; no step depends on it."""


def invaders(attributes):
    boards = ("shots", "bombs", "aliens")
    return {
        name: np.array([one[theirs] for one in attributes]).astype(bool if name in boards else np.int64)
        for name, theirs in INVADERS.items()
    }


def would_hit(obs, column):
    """Whether a shot fired now meets the last alien, which moves in every step."""
    row, at = np.argwhere(obs[1])[0]
    way = 1 if obs[3].any() else -1
    for shot in range(8, -1, -1):
        if 0 <= at + way <= 9:
            at += way
        else:
            row, way = row + 1, -way
        if (row, at) == (shot, column):
            return True
    return False


def skilled_invaders(seed=0):
    """Steps out of the way of bombs, goes below the most aliens within reach, and fires."""
    rng = np.random.default_rng(seed)
    columns = np.arange(10)
    near = np.maximum(6 - np.abs(columns[:, None] - columns), 0)  # [column of the cannon, column of aliens]

    def choose(obs):
        cannon, aliens, bombs = (obs[:, channel].astype(float) for channel in (0, 1, 5))
        at = cannon[:, 9].argmax(axis=1)
        last = aliens.sum(axis=(1, 2)) == 1
        worth = (aliens.sum(axis=1) @ near) * ~last[:, None] + rng.random((len(obs), 10))  # [N, 10], of being there
        worth -= 1000 * (bombs[:, 8] + aliens[:, 9]) + 100 * bombs[:, 6:8].sum(axis=1)
        reach = np.clip(at[:, None] + np.array([0, -1, 1]), 0, 9)
        worth_of_moves = np.take_along_axis(worth, reach, axis=1) + np.array([2.0, 0.0, 0.0])
        chosen = np.array([FIRE, LEFT, RIGHT])[worth_of_moves.argmax(axis=1)]
        for i in np.flatnonzero(last & (chosen == FIRE)):
            chosen[i] = FIRE if would_hit(obs[i], at[i]) else 0
        return chosen

    return choose


def scattered(rng, density):
    return rng.random((10, 10)) < density


def planted_invaders(rng):
    """Most of these boards never arise; every order of events that could, does, many times."""
    return {
        "pos": int(rng.integers(10)),
        "f_bullet_map": scattered(rng, rng.choice([0.0, 0.1, 0.4])).astype(float),
        "e_bullet_map": scattered(rng, rng.choice([0.0, 0.02])).astype(float),
        "alien_map": np.maximum(
            np.eye(100)[rng.integers(100)].reshape(10, 10),  # one at least, as in every game
            scattered(rng, rng.choice([0.0, 0.01, 0.05, 0.3])),
        ),
        "alien_dir": int(rng.choice([-1, 1])),
        "enemy_move_interval": int(rng.integers(6, 13)),
        "alien_move_timer": int(rng.integers(3)),
        "alien_shot_timer": int(rng.integers(3)),
        "shot_timer": int(rng.integers(6)),
    }


@dataclass(frozen=True)
class Game:
    """One game, as arrays and as the package's."""

    arrays: type[ArrayVectorEnv]
    convert: Callable[[list[dict[str, Any]]], dict[str, Any]]
    """our arrays from the attributes of the package's games"""
    skilled: Callable[[int], Callable[[Any], Any]]
    """from a seed: a policy for -v0 that gets far"""
    planted: Callable[[np.random.Generator], dict[str, Any]]
    """attributes of the package's game: a state from which much happens"""

    @property
    def name(self):
        return self.arrays.GAME

    @property
    def v0(self):
        return f"MinAtar/{self.name}-v0"

    @property
    def v1(self):
        return f"MinAtar/{self.name}-v1"

    def both(self, env_id=None, num_envs=4, **kwargs):
        """The package's games and ours."""
        env_id = env_id or self.v1
        return MinAtarVectorEnv(env_id, num_envs, **kwargs), self.arrays(env_id, num_envs, **kwargs)


GAMES = {
    game.name: game
    for game in (
        Game(BreakoutVectorEnv, breakout, skilled_breakout, planted_breakout),
        Game(FreewayVectorEnv, freeway, skilled_freeway, planted_freeway),
        Game(AsterixVectorEnv, asterix, skilled_asterix, planted_asterix),
        Game(SeaquestVectorEnv, seaquest, skilled_seaquest, planted_seaquest),
        Game(SpaceInvadersVectorEnv, invaders, skilled_invaders, planted_invaders),
    )
}


def as_ours(arrays, state):
    """A state of the package's games as `arrays` saves it."""
    games = state["games"]
    return {
        "config": state["config"],
        "started": state["started"],
        arrays._saved_in: GAMES[arrays.GAME].convert([game["attributes"] for game in games]),
        "random": [game["random"] for game in games],
        "last_actions": np.array([game["last_action"] for game in games]),
        "returns": np.array([game["episode_return"] for game in games]),
        "lengths": np.array([game["episode_length"] for game in games]),
    }


def plant(package, arrays, attributes):
    """Give game i of both environments the i-th of these dictionaries of the package's attributes."""
    state = package.state_dict()
    for game, one in zip(state["games"], attributes, strict=True):
        assert set(one) <= set(game["attributes"])
        game["attributes"].update(one)
    package.load_state_dict(state)
    arrays.load_state_dict(as_ours(arrays, state))


def assert_same_state(package, arrays):
    assert_same(as_ours(arrays, package.state_dict()), arrays.state_dict())


def assert_same(theirs, ours):
    """Two returns of `step` or `reset`: the same values, types, shapes, and keys in their order."""
    if isinstance(theirs, np.ndarray):
        assert (theirs.dtype, theirs.shape) == (ours.dtype, ours.shape) and np.array_equal(theirs, ours)
    elif isinstance(theirs, (dict, list, tuple)):
        assert type(theirs) is type(ours) and len(theirs) == len(ours)
        if isinstance(theirs, dict):
            assert list(theirs) == list(ours)
            theirs, ours = theirs.values(), ours.values()
        for one, other in zip(theirs, ours, strict=True):
            assert_same(one, other)
    else:
        assert type(theirs) is type(ours) and theirs == ours


def play(package, arrays, choose, steps, states_every=20):
    """Step both alike and compare; return what the steps returned. The first must have been reset alike."""
    obs, steps_returned = package.observation(), []
    for step in range(steps):
        actions = choose(obs)
        theirs, ours = package.step(actions), arrays.step(actions)
        assert_same(theirs, ours)
        if step % states_every == 0:
            assert_same_state(package, arrays)
        obs = theirs[0]
        steps_returned.append(theirs)
    assert_same_state(package, arrays)
    return steps_returned


def at_random(env, seed=0):
    rng = np.random.default_rng(seed)
    return lambda obs: rng.integers(0, env.single_action_space.n, env.num_envs)
