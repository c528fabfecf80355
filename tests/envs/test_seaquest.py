"""envs.seaquest: the surprising rules one by one, so that a package with other rules is noticed by name.

tests/envs/test_array_games.py compares it with the package in everything else.
"""

import numpy as np
import pytest

from tests.envs.array_games import FIRE, GAMES, LEFT, RIGHT, UP, plant, play


def state(**others):
    """Attributes of a player in the middle who looks to the left, before nothing comes."""
    lists = {"f_bullets": [], "e_bullets": [], "e_fish": [], "e_subs": [], "divers": []}
    timers = {"e_spawn_timer": 9, "d_spawn_timer": 9, "shot_timer": 0}
    return {"sub_x": 5, "sub_y": 5, "sub_or": False, "surface": False, "oxygen": 100, **timers, **lists, **others}


PLANTED = {
    # name: (attributes, action, reward, lost, what is left by name)
    "a shot flies at once": (state(), FIRE, 0, False, {"f_bullets": [[4, 5, False]]}),
    "a shot hits the next cell at once": (
        state(e_fish=[[4, 5, False, 3]]), FIRE, 1, False, {"f_bullets": [], "e_fish": []},
    ),
    "a shot hits a fish before a submarine": (
        state(f_bullets=[[2, 3, True]], e_fish=[[3, 3, True, 3]], e_subs=[[3, 3, True, 3, 3]]), 0, 1, False,
        {"f_bullets": [], "e_fish": [], "e_subs": [[3, 3, True, 2, 2]]},
    ),
    "of two shots the last one hits": (
        state(f_bullets=[[2, 3, True], [4, 3, False]], e_fish=[[3, 3, True, 3]]), 0, 1, False,
        {"f_bullets": [[3, 3, True]], "e_fish": []},
    ),
    "a fish comes to a shot": (
        state(f_bullets=[[3, 3, True]], e_fish=[[5, 3, False, 0]]), 0, 1, False, {"f_bullets": [], "e_fish": []},
    ),
    "a submarine comes to a shot before a fish, and shoots": (
        state(f_bullets=[[3, 3, True]], e_fish=[[5, 3, False, 0]], e_subs=[[5, 3, False, 0, 0]]), 0, 1, False,
        {"f_bullets": [], "e_fish": [[4, 3, False, 5]], "e_subs": [], "e_bullets": [[3, 3, False]]},
    ),
    "the last submarine shoots first": (
        state(e_subs=[[3, 3, True, 2, 0], [4, 4, True, 2, 0]]), 0, 0, False,
        {"e_bullets": [[5, 4, True], [4, 3, True]]},
    ),
    "a fish that leaves the player ends the game": (state(e_fish=[[5, 5, True, 0]]), 0, 0, True, {}),
    "a fish cannot pass": (state(e_fish=[[4, 5, True, 0]]), LEFT, 0, True, {}),
    "a bullet that leaves the player ends the game": (state(e_bullets=[[5, 5, True]]), 0, 0, True, {}),
    "the player can run into a bullet": (state(e_bullets=[[5, 5, True]]), RIGHT, 0, True, {}),
    "the back of the player is not hit": (state(e_fish=[[6, 5, True, 3]]), 0, 0, False, {}),
    "a diver comes on board": (state(divers=[[4, 5, True, 0]], diver_count=2), 0, 0, False, {"diver_count": 3}),
    "six divers are all": (
        state(divers=[[4, 5, True, 0]], diver_count=6), 0, 0, False, {"diver_count": 6, "divers": [[5, 5, True, 5]]},
    ),
    "no air": (state(oxygen=0), 0, 0, True, {}),
    "the last air": (state(oxygen=1), 0, 0, False, {"oxygen": 0}),
    "up without a diver": (state(sub_y=1), UP, 0, True, {}),
    "up with a diver": (state(sub_y=1, diver_count=2), UP, 0, False, {"diver_count": 1, "oxygen": 200}),
    "up with six divers leaves -1": (
        state(sub_y=1, diver_count=6), UP, 5, False, {"diver_count": -1, "oxygen": 200},
    ),
    "up with -1 divers": (state(sub_y=1, diver_count=-1), UP, 0, False, {"diver_count": -2, "oxygen": 200}),
    "a diver is picked up on the way up": (
        state(sub_y=1, divers=[[5, 0, True, 3]]), UP, 0, False, {"diver_count": 0, "surface": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_rules_found_by_observation(name):
    attributes, action, reward, lost, left = PLANTED[name]
    package, arrays = GAMES["Seaquest"].both("MinAtar/Seaquest-v0", 1, sticky_action_prob=0.0)
    package.reset(seed=0)
    arrays.reset(seed=0)
    plant(package, arrays, [attributes])
    _, rewards, terminated, _, _ = play(package, arrays, lambda obs: np.array([action]), 1)[0]
    assert (rewards[0], terminated[0]) == (reward, lost)
    game = package._seats[0].game
    assert {name: getattr(game, name) for name in left} == left


@pytest.mark.parametrize(
    ("spawn", "move", "ramps", "then"),
    [(20, 5, 0, (19, 5, 1)), (20, 5, 1, (19, 4, 2)), (1, 3, 0, (1, 3, 1)), (1, 3, 1, (1, 2, 2)), (1, 2, 1, (1, 2, 1))],
)
def test_difficulty(spawn, move, ramps, then):
    for ramping in (True, False):
        package, arrays = GAMES["Seaquest"].both(
            "MinAtar/Seaquest-v0", 1, sticky_action_prob=0.0, difficulty_ramping=ramping
        )
        package.reset(seed=0)
        arrays.reset(seed=0)
        up = state(sub_y=1, diver_count=2, e_spawn_speed=spawn, move_speed=move, ramp_index=ramps)
        plant(package, arrays, [up])
        play(package, arrays, lambda obs: np.array([UP]), 1)
        game = package._seats[0].game
        expected = then if ramping else (spawn, move, ramps)
        assert (game.e_spawn_speed, game.move_speed, game.ramp_index) == expected


@pytest.mark.parametrize("row", range(1, 9))
def test_no_enemy_comes_against_the_traffic_of_its_row(row):
    package, arrays = GAMES["Seaquest"].both("MinAtar/Seaquest-v0", 64, sticky_action_prob=0.0)
    package.reset(seed=row)
    arrays.reset(seed=row)
    waiting = [[4, y, True, 9] for y in range(1, 9) if y != row]
    plant(package, arrays, [state(sub_y=0, surface=True, e_spawn_timer=0, e_fish=waiting) for _ in range(64)])
    play(package, arrays, lambda obs: np.zeros(64, dtype=int), 1)
    new = [one for seat in package._seats for one in seat.game.e_fish + seat.game.e_subs if one[0] in (0, 9)]
    assert new and all(one[2] or one[1] == row for one in new)
