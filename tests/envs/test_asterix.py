"""envs.asterix: the surprising rules one by one, so that a package with other rules is noticed by name.

tests/envs/test_array_games.py compares it with the package in everything else.
"""

import numpy as np
import pytest

from tests.envs.array_games import GAMES, LEFT, RIGHT, UP, plant, play


def state(*things, **others):
    """Attributes of a player in the middle, and of things (column, row, to the right?, gold?), before nothing moves."""
    entities = [None] * 8
    for thing in things:
        entities[thing[1] - 1] = list(thing)
    timers = {"spawn_timer": 9, "move_timer": 9, "ramp_timer": 50}
    return {"player_x": 5, "player_y": 5, "entities": entities, **timers, **others}


PLANTED = {
    # name: (attributes, action, reward, lost, things left)
    "gold is taken": (state((4, 5, True, True)), LEFT, 1, False, 0),
    "an enemy comes": (state((4, 5, True, False), move_timer=0), 0, 0, True, 1),
    "an enemy cannot pass": (state((4, 5, True, False), move_timer=0), LEFT, 0, True, 1),
    "the player can flee": (state((4, 5, True, False), move_timer=0), RIGHT, 0, False, 1),
    "gold that leaves the board is taken before": (
        state((9, 5, True, True), player_x=9, move_timer=0), 0, 1, False, 0,
    ),
    "things leave the board": (state((9, 2, True, False), (0, 3, False, True), move_timer=0), 0, 0, False, 0),
    "something comes": (state(spawn_timer=0), 0, 0, False, 1),
    "nothing comes if no row is free": (
        state(*((2, row, True, False) for row in range(1, 9)), spawn_timer=0), 0, 0, False, 8,
    ),
    "the player stays below the first row": (state((5, 1, True, True), player_y=1), UP, 1, False, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_rules_found_by_observation(name):
    attributes, action, reward, lost, left = PLANTED[name]
    package, arrays = GAMES["Asterix"].both("MinAtar/Asterix-v0", 1, sticky_action_prob=0.0)
    package.reset(seed=0)
    arrays.reset(seed=0)
    plant(package, arrays, [attributes])
    obs, rewards, terminated, _, infos = play(package, arrays, lambda obs: np.array([action]), 1)[0]
    assert (rewards[0], terminated[0]) == (reward, lost)
    assert infos.get("final_obs", obs)[0, [1, 3]].sum() == left


@pytest.mark.parametrize(
    ("spawn", "move", "ramps", "then"),
    [(10, 5, 0, (9, 5, 1)), (9, 5, 1, (8, 4, 2)), (1, 2, 2, (1, 2, 3)), (1, 2, 3, (1, 1, 4)), (1, 1, 9, (1, 1, 9))],
)
def test_difficulty(spawn, move, ramps, then):
    for ramping in (True, False):
        package, arrays = GAMES["Asterix"].both("MinAtar/Asterix-v0", 1, difficulty_ramping=ramping)
        package.reset(seed=0)
        arrays.reset(seed=0)
        plant(package, arrays, [state(spawn_speed=spawn, move_speed=move, ramp_index=ramps, ramp_timer=-1)])
        play(package, arrays, lambda obs: np.array([0]), 3)
        game = package._seats[0].game
        expected = then if ramping else (spawn, move, ramps)
        assert (game.spawn_speed, game.move_speed, game.ramp_index) == expected
