"""envs.freeway: the surprising rules one by one, so that a package with other rules is noticed by name.

tests/envs/test_array_games.py compares it with the package in everything else.
"""

import numpy as np
import pytest

from envs.freeway import BOTTOM
from tests.envs.array_games import DOWN, GAMES, UP, assert_same, plant, play


def state(row=BOTTOM, pause=0, time=2000, **cars):
    """Attributes of a player, and of waiting cars; r5=(4, 0, -3) puts the car of row 5 there: column, timer, speed."""
    return {
        "pos": row,
        "move_timer": pause,
        "terminate_timer": time,
        "cars": [[one[0], r, *one[1:]] for r in range(1, 9) for one in [cars.get(f"r{r}", (0, 5, 5))]],
    }


PLANTED = {
    # name: (attributes, action, reward, ended, the player's row and pause)
    "a move pauses": (state(5), UP, 0, False, 4, 2),
    "no move during the pause": (state(5, pause=1), UP, 0, False, 5, 0),
    "at the bottom a move pauses, too": (state(), DOWN, 0, False, 9, 2),
    "waiting does not pause": (state(5), 0, 0, False, 5, 0),
    "a crossing": (state(1), UP, 1, False, 9, 2),
    "a car comes": (state(5, r5=(3, 0, 2)), 0, 0, False, 9, 0),
    "a car that leaves still hits": (state(5, r5=(4, 0, 2)), 0, 0, False, 9, 0),
    "the player steps into a car that leaves": (state(6, r5=(4, 0, 2)), UP, 0, False, 9, 2),
    "the player leaves before the car comes": (state(5, r5=(5, 0, -1)), DOWN, 0, False, 6, 2),
    "time ends": (state(5, time=0), 0, 0, True, 5, 0),
    "a crossing in the last step counts": (state(1, time=0), UP, 1, True, 9, 2),
}


@pytest.mark.parametrize("name", PLANTED)
def test_rules_found_by_observation(name):
    attributes, action, reward, ended, row, pause = PLANTED[name]
    package, arrays = GAMES["Freeway"].both("MinAtar/Freeway-v0", 1, sticky_action_prob=0.0)
    package.reset(seed=0)
    arrays.reset(seed=0)
    plant(package, arrays, [attributes])
    obs, rewards, terminated, _, infos = play(package, arrays, lambda obs: np.array([action]), 1)[0]
    assert (rewards[0], terminated[0]) == (reward, ended)
    assert infos.get("final_obs", obs)[0, 0, row, 4] == 1
    if not ended:
        assert package._seats[0].game.move_timer == pause


def test_a_whole_episode_equals_the_package():
    package, arrays = GAMES["Freeway"].both("MinAtar/Freeway-v0", 2)
    assert_same(package.reset(seed=3), arrays.reset(seed=3))
    steps = play(package, arrays, GAMES["Freeway"].skilled(0), 2510, states_every=100)
    assert [step for step, (_, _, terminated, _, _) in enumerate(steps, start=1) if terminated.any()] == [2501]
    assert sum(rewards.sum() for _, rewards, *_ in steps) > 20
