"""envs.invaders: step by step the package's Space Invaders, in the whole interface of `MinAtarVectorEnv`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.invaders import Invaders, SpaceInvadersVectorEnv
from envs.minatar import MinAtarVectorEnv, game_seed
from envs.timetables import EverySteps
from envs.worlds import World
from tests.envs import array_games
from tests.envs.array_games import (
    FIRE,
    GAMES,
    INVADERS,
    assert_same,
    at_random,
    planted_invaders,
    play,
    skilled_invaders,
)

V0, V1 = "MinAtar/SpaceInvaders-v0", "MinAtar/SpaceInvaders-v1"
both = GAMES["SpaceInvaders"].both


def plant(package, arrays, attributes):
    """Give game i of both environments the i-th of these attributes (ours: a name each)."""
    array_games.plant(package, arrays, [{INVADERS[name]: value for name, value in one.items()} for one in attributes])


def hiding(seed=0):
    """Steps out of the way of bombs as `skilled_invaders` does, but never fires."""
    choose = skilled_invaders(seed)

    def without_fire(obs):
        chosen = choose(obs)
        return np.where(chosen == FIRE, 0, chosen)

    return without_fire


def endings(steps_returned):
    """How the episodes ended: of a bomb, of aliens, by the time limit."""
    counted = {"bomb": 0, "alien": 0, "limit": 0}
    for _, _, terminated, truncated, infos in steps_returned:
        counted["limit"] += int(truncated.sum())
        for cannon, aliens, _, _, _, bombs in infos.get("final_obs", terminated)[terminated]:
            column = cannon[9].argmax()
            counted["bomb"] += int(bombs[9, column])
            counted["alien"] += int(aliens[9, column])
    return counted


@pytest.mark.parametrize(
    ("env_id", "num_envs", "rules"),
    [
        (V0, 1, {"sticky_action_prob": 0.0}),
        (V1, 2, {}),
        (V0, 7, {"sticky_action_prob": 0.1, "max_episode_steps": 40}),
        (V1, 7, {"sticky_action_prob": 0.0, "difficulty_ramping": False}),
        (V0, 3, {"sticky_action_prob": 1.0, "max_episode_steps": 12}),
        (V1, 5, {"sticky_action_prob": 0.6, "max_episode_steps": 1}),
    ],
)
def test_every_step_equals_the_package(env_id, num_envs, rules):
    for seed in (0, 71):
        package, arrays = both(env_id, num_envs, **rules)
        assert_same(package.reset(seed=seed), arrays.reset(seed=seed))
        ended = endings(play(package, arrays, at_random(package, seed), 800))
        assert (ended["limit"] > 0) == ("max_episode_steps" in rules)
        assert ended["bomb"] > 0 or rules.get("max_episode_steps", 99) < 13


@pytest.mark.parametrize("ramping", [True, False])
def test_every_step_equals_the_package_in_skilled_play(ramping):
    rules = {"sticky_action_prob": 0.0, "difficulty_ramping": ramping, "max_episode_steps": 1200}
    package, arrays = both(V0, 8, **rules)
    assert_same(package.reset(seed=0), arrays.reset(seed=0))
    played, intervals, choose = [], set(), skilled_invaders(7)
    for _ in range(100):
        played += play(package, arrays, choose, 20)
        intervals |= {seat.game.enemy_move_interval for seat in package._seats}
    best = max(infos["episode"]["r"].max() for *_, infos in played if infos)
    assert best >= 5 * 24, best  # so many waves in one episode
    assert intervals == (set(range(6, 13)) if ramping else {12})
    ended = endings(played)
    assert min(ended.values()) > 0, ended


def test_every_step_equals_the_package_when_the_aliens_come_down():
    package, arrays = both(V0, 4, sticky_action_prob=0.05)
    assert_same(package.reset(seed=0), arrays.reset(seed=0))
    ended = endings(play(package, arrays, hiding(), 1500))
    assert ended["alien"] > 10, ended


def test_a_game_lost_on_the_last_step_allowed_is_terminated():
    package, arrays = both(V1, 2, sticky_action_prob=0.0, max_episode_steps=17)  # the first bomb's way down
    assert_same(package.reset(seed=0), arrays.reset(seed=0))
    _, _, terminated, truncated, infos = play(package, arrays, lambda obs: np.zeros(2, dtype=int), 17)[-1]
    assert terminated.all() and not truncated.any() and list(infos["episode"]["l"]) == [17, 17]


def test_every_step_equals_the_package_from_scattered_boards():
    """Most of these boards never arise; every order of events that could, does, many times."""
    package, arrays = both(V0, 64, sticky_action_prob=0.0)
    package.reset(seed=0)
    arrays.reset(seed=0)
    rng = np.random.default_rng(0)
    seen = {"lost": 0, "landed": 0, "hits in the last step": 0, "new wave": 0}
    for _ in range(25):
        array_games.plant(package, arrays, [planted_invaders(rng) for _ in range(64)])
        for _, rewards, terminated, _, infos in play(package, arrays, at_random(package, int(rng.integers(1e9))), 4):
            final = infos.get("final_obs", np.zeros((64, 6, 10, 10)))[terminated]
            column = final[:, 0, 9].argmax(axis=1)
            each = np.arange(len(final))
            seen["lost"] += len(final)
            seen["landed"] += int(((final[each, 1, 9, column] == 0) & (final[each, 5, 9, column] == 0)).sum())
            seen["hits in the last step"] += int((rewards[terminated] > 0).sum())
        seen["new wave"] += sum(int(seat.game.ramp_index > 0) for seat in package._seats)
    assert min(seen.values()) > 20, seen


cells = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6)
few = st.integers(0, 2)


def board(occupied):
    filled = np.zeros((10, 10))
    for cell in occupied:
        filled[cell] = 1.0
    return filled


@pytest.fixture(scope="module", params=[True, False], ids=["ramp", "flat"])
def pair(request):
    package, arrays = both(V0, 1, sticky_action_prob=0.0, difficulty_ramping=request.param)
    package.reset(seed=0)
    arrays.reset(seed=0)
    return package, arrays


@settings(max_examples=150)
@given(
    st.fixed_dictionaries(
        {
            "cannon": st.integers(0, 9),
            "shots": cells.map(board),
            "bombs": cells.map(board),
            "aliens": cells.filter(bool).map(board),
            "direction": st.sampled_from([-1, 1]),
            "interval": st.integers(6, 12),
            "move_timer": few,
            "bomb_timer": few,
            "gun_timer": few,
        }
    ),
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
)
def test_every_step_equals_the_package_from_any_board(pair, attributes, actions):
    plant(*pair, [attributes])
    for action in actions:
        play(*pair, lambda obs, action=action: np.array([action]), 1)


PLANTED = {
    # name: (board, action, reward, lost, what it leaves); all else as at the start of an episode
    "a shot and a bomb pass": ({"shots": board([(6, 2)]), "bombs": board([(6, 2)])}, 0, 0, False, {"shots": [(5, 2)]}),
    "a bomb follows the cannon no further": ({"bombs": board([(9, 4)])}, 1, 0, False, {"bombs": []}),
    "the cannon steps below a bomb": ({"bombs": board([(8, 4)])}, 1, 0, True, {}),
    "the cannon steps into an alien that leaves": (
        {"aliens": board([(9, 6), (3, 5)]), "direction": 1, "move_timer": 0},
        3,
        0,
        True,
        {"aliens": [(3, 6), (9, 7)]},
    ),
    "aliens land and come out on top": (
        {"aliens": board([(9, 0), (3, 5)]), "move_timer": 0},
        0,
        0,
        True,
        {"aliens": [(0, 0), (4, 5)]},
    ),
    "aliens move into a shot": (
        {"aliens": board([(3, 4), (1, 8)]), "shots": board([(4, 3)]), "move_timer": 0},
        0,
        1,
        False,
        {"aliens": [(1, 7)], "shots": []},
    ),
    "an alien that is hit still drops its bomb": (
        {"aliens": board([(3, 5), (1, 1)]), "shots": board([(4, 5)]), "bomb_timer": 0},
        0,
        1,
        False,
        {"aliens": [(1, 1)], "bombs": [(3, 5)]},
    ),
    "of two columns as near the left one bombs, from below": (
        {"aliens": board([(1, 4), (2, 4), (3, 6)]), "bomb_timer": 0},
        0,
        0,
        False,
        {"bombs": [(2, 4)]},
    ),
    "a lost game counts the hits of its last step": (
        {"bombs": board([(8, 5)]), "shots": board([(4, 4)])},
        0,
        1,
        True,
        {"shots": []},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_rules_found_by_observation(pair, name):
    """The surprising rules one by one, so that a package with other rules is noticed by name."""
    attributes, action, reward, lost, leaves = PLANTED[name]
    start = {name: value[0] for name, value in vars(Invaders(1, ramping=True)).items() if name in INVADERS}
    plain = {name: value.astype(float) if value.ndim else int(value) for name, value in start.items()}
    plant(*pair, [{**plain, **attributes}])
    obs, rewards, terminated, _, infos = play(*pair, lambda obs: np.array([action]), 1)[0]
    assert (rewards[0], terminated[0]) == (reward, lost)
    seen = infos.get("final_obs", obs)[0]
    for what, where in leaves.items():
        channel = {"aliens": 1, "shots": 4, "bombs": 5}[what]
        assert [tuple(cell) for cell in np.argwhere(seen[channel])] == where


def test_a_new_wave_keeps_shots_bombs_and_direction():
    package, arrays = both(V0, 1, sticky_action_prob=0.0)
    package.reset(seed=0)
    arrays.reset(seed=0)
    flying = {"shots": board([(4, 4), (7, 7)]), "bombs": board([(1, 1)]), "aliens": board([(3, 4)])}
    plant(package, arrays, [{**flying, "direction": 1, "move_timer": 5, "bomb_timer": 5, "gun_timer": 2}])
    (obs, rewards, *_), *_ = play(package, arrays, lambda obs: np.array([0]), 1)
    assert rewards[0] == 1 and obs[0, 1].sum() == obs[0, 3].sum() == 24
    assert obs[0, 4, 6, 7] == obs[0, 5, 2, 1] == 1
    assert arrays._games.interval[0] == 11 and arrays._games.move_timer[0] == 4


def test_the_game_uses_no_random_numbers():
    """Why a stream is of the sticky actions alone: one number a step."""
    package, arrays = both(V1, 2, sticky_action_prob=0.3)
    package.reset(seed=0)
    arrays.reset(seed=0)
    play(package, arrays, at_random(package), 500)
    for i, saved in enumerate(arrays.state_dict()["random"]):
        stream = np.random.RandomState(game_seed(0, i))
        stream.random_sample(500)
        np.testing.assert_equal(saved, stream.get_state(legacy=False))


def test_a_chain_of_games_uses_the_faster_class():
    chain = World(("MinAtar/Freeway-v0", V0), 2, "games", EverySteps(128)).make()
    assert [type(env) for env in chain._envs] == [MinAtarVectorEnv, SpaceInvadersVectorEnv]
