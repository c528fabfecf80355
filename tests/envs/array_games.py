"""Comparing the games that are written as arrays with the package's, step by step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.array_games import ArrayVectorEnv
from envs.breakout import BreakoutVectorEnv
from envs.invaders import SpaceInvadersVectorEnv
from envs.minatar import MinAtarVectorEnv

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
