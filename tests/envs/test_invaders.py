"""envs.invaders: step by step the package's Space Invaders, in the whole interface of `MinAtarVectorEnv`."""

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.invaders import FASTER_FROM, Invaders, SpaceInvadersVectorEnv
from envs.minatar import MinAtarVectorEnv, game_seed
from envs.shifts import (
    CorruptObservations,
    EnvSequence,
    PermuteActions,
    PermuteObservations,
    RepeatActions,
    ScaleRewards,
)
from envs.timetables import AtRandom, EverySteps
from envs.worlds import World, evaluation_world, minatar_env

V0, V1 = "MinAtar/SpaceInvaders-v0", "MinAtar/SpaceInvaders-v1"
NAMES = {
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


def both(env_id=V1, num_envs=4, **kwargs):
    return MinAtarVectorEnv(env_id, num_envs, **kwargs), SpaceInvadersVectorEnv(env_id, num_envs, **kwargs)


def as_ours(state):
    """A state of the package's games as `SpaceInvadersVectorEnv` saves it."""
    games = state["games"]
    boards = ("shots", "bombs", "aliens")
    return {
        "config": state["config"],
        "started": state["started"],
        "invaders": {
            name: np.array([game["attributes"][theirs] for game in games]).astype(bool if name in boards else np.int64)
            for name, theirs in NAMES.items()
        },
        "random": [game["random"] for game in games],
        "last_actions": np.array([game["last_action"] for game in games]),
        "returns": np.array([game["episode_return"] for game in games]),
        "lengths": np.array([game["episode_length"] for game in games]),
    }


def plant(package, arrays, attributes):
    """Give game i of both environments the i-th of these attributes (ours: a name each)."""
    state = package.state_dict()
    for game, one in zip(state["games"], attributes, strict=True):
        game["attributes"].update({NAMES[name]: value for name, value in one.items()})
    package.load_state_dict(state)
    arrays.load_state_dict(as_ours(state))


def assert_same_state(package, arrays):
    np.testing.assert_equal(arrays.state_dict(), as_ours(package.state_dict()))


def assert_same(theirs, ours):
    """Two returns of `step` or `reset`: the same values, types, shapes, and keys in their order."""
    if isinstance(theirs, np.ndarray):
        assert (theirs.dtype, theirs.shape) == (ours.dtype, ours.shape) and np.array_equal(theirs, ours)
    else:
        assert type(theirs) is type(ours) and len(theirs) == len(ours)
        if isinstance(theirs, dict):
            assert list(theirs) == list(ours)
            theirs, ours = theirs.values(), ours.values()
        for one, other in zip(theirs, ours, strict=True):
            assert_same(one, other)


def play(package, arrays, choose, steps):
    """Step both alike and compare; return what the steps returned. The first must have been reset alike."""
    obs, steps_returned = package.observation(), []
    for step in range(steps):
        actions = choose(obs)
        theirs, ours = package.step(actions), arrays.step(actions)
        assert_same(theirs, ours)
        if step % 20 == 0:
            assert_same_state(package, arrays)
        obs = theirs[0]
        steps_returned.append(theirs)
    assert_same_state(package, arrays)
    return steps_returned


def at_random(env, seed=0):
    rng = np.random.default_rng(seed)
    return lambda obs: rng.integers(0, env.single_action_space.n, env.num_envs)


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


def skilled(seed=0):
    """Steps out of the way of bombs, goes below the most aliens within reach, and fires. (-v1 actions.)"""
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
        chosen = np.array([3, 1, 2])[worth_of_moves.argmax(axis=1)]
        for i in np.flatnonzero(last & (chosen == 3)):
            chosen[i] = 3 if would_hit(obs[i], at[i]) else 0
        return chosen

    return choose


def hiding(seed=0):
    """Steps out of the way of bombs as `skilled` does, but never fires. (-v1 actions.)"""
    choose = skilled(seed)

    def without_fire(obs):
        chosen = choose(obs)
        return np.where(chosen == 3, 0, chosen)

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
    package, arrays = both(V1, 8, **rules)
    assert_same(package.reset(seed=0), arrays.reset(seed=0))
    played, intervals, choose = [], set(), skilled(7)
    for _ in range(100):
        played += play(package, arrays, choose, 20)
        intervals |= {seat.game.enemy_move_interval for seat in package._seats}
    best = max(infos["episode"]["r"].max() for *_, infos in played if infos)
    assert best >= 5 * 24, best  # so many waves in one episode
    assert intervals == (set(range(6, 13)) if ramping else {12})
    ended = endings(played)
    assert min(ended.values()) > 0, ended


def test_every_step_equals_the_package_when_the_aliens_come_down():
    package, arrays = both(V1, 4, sticky_action_prob=0.05)
    assert_same(package.reset(seed=0), arrays.reset(seed=0))
    ended = endings(play(package, arrays, hiding(), 1500))
    assert ended["alien"] > 10, ended


def test_a_game_lost_on_the_last_step_allowed_is_terminated():
    package, arrays = both(V1, 2, sticky_action_prob=0.0, max_episode_steps=17)  # the first bomb's way down
    assert_same(package.reset(seed=0), arrays.reset(seed=0))
    _, _, terminated, truncated, infos = play(package, arrays, lambda obs: np.zeros(2, dtype=int), 17)[-1]
    assert terminated.all() and not truncated.any() and list(infos["episode"]["l"]) == [17, 17]


def scattered(rng, density):
    return rng.random((10, 10)) < density


def test_every_step_equals_the_package_from_scattered_boards():
    """Most of these boards never arise; every order of events that could, does, many times."""
    package, arrays = both(V0, 64, sticky_action_prob=0.0)
    package.reset(seed=0)
    arrays.reset(seed=0)
    rng = np.random.default_rng(0)
    seen = {"lost": 0, "landed": 0, "hits in the last step": 0, "new wave": 0}
    for _ in range(25):
        attributes = [
            {
                "cannon": int(rng.integers(10)),
                "shots": scattered(rng, rng.choice([0.0, 0.1, 0.4])).astype(float),
                "bombs": scattered(rng, rng.choice([0.0, 0.02])).astype(float),
                "aliens": np.maximum(
                    np.eye(100)[rng.integers(100)].reshape(10, 10),  # one at least, as in every game
                    scattered(rng, rng.choice([0.0, 0.01, 0.05, 0.3])),
                ),
                "direction": int(rng.choice([-1, 1])),
                "interval": int(rng.integers(6, 13)),
                "move_timer": int(rng.integers(3)),
                "bomb_timer": int(rng.integers(3)),
                "gun_timer": int(rng.integers(6)),
            }
            for _ in range(64)
        ]
        plant(package, arrays, attributes)
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
    start = {name: value[0] for name, value in vars(Invaders(1, ramping=True)).items() if name in NAMES}
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


def test_the_comparison_can_fail():
    package, arrays = both(V1, 4)
    package.reset(seed=0)
    arrays.reset(seed=1)
    with pytest.raises(AssertionError):
        play(package, arrays, at_random(package), 300)


def test_a_saved_environment_continues_exactly():
    env, other = (SpaceInvadersVectorEnv(V1, 3, max_episode_steps=150) for _ in range(2))
    twin = MinAtarVectorEnv(V1, 3, max_episode_steps=150)
    assert_same(env.reset(seed=9), twin.reset(seed=9))
    play(twin, env, at_random(env), 137)
    saved = env.state_dict()
    kept = env.state_dict()
    other.load_state_dict(saved)
    assert np.array_equal(other.observation(), env.observation())
    fresh = twin.state_dict()
    play(twin, env, at_random(env, 1), 600)
    twin.load_state_dict(fresh)
    play(twin, other, at_random(env, 1), 600)  # the loaded one, unreset, against the package's game
    np.testing.assert_equal(other.state_dict(), env.state_dict())
    other.load_state_dict(saved)
    other.reset(seed=1)
    np.testing.assert_equal(saved, kept)  # neither has changed the saved state


def test_a_state_holds_plain_types_and_arrays():
    def plain(value):
        if isinstance(value, dict):
            return all(type(key) is str for key in value) and all(map(plain, value.values()))
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (int, float, bool, str, np.ndarray)

    assert plain(SpaceInvadersVectorEnv(V1, 2).state_dict())


def test_streams_and_previous_actions_continue_without_a_seed():
    package, arrays = both(V1, 3, sticky_action_prob=0.5)
    assert_same(package.reset(seed=0), arrays.reset(seed=0))
    for seed in (None, [None, 7, None], [3, None, 2**32 - 1], np.int64(4), None):
        play(package, arrays, at_random(package), 60)
        assert_same(package.reset(seed=seed), arrays.reset(seed=seed))
        assert package.np_random_seed == arrays.np_random_seed
        assert_same_state(package, arrays)
    play(package, arrays, at_random(package), 200)


def test_returned_arrays_are_safe_to_keep():
    env = SpaceInvadersVectorEnv(V1, 8, max_episode_steps=30)
    kept = [env.reset(seed=0)[0], env.observation()]
    expected = [array.copy() for array in kept]
    choose = at_random(env)
    for _ in range(100):
        obs, rewards, terminated, truncated, infos = env.step(choose(None))
        new = [obs, rewards, terminated, truncated]
        if infos:
            new += [infos["final_obs"], infos["_final_obs"], infos["_episode"], *infos["episode"].values()]
        kept += new
        expected += [array.copy() for array in new]
        assert not any(np.shares_memory(a, b) for i, a in enumerate(new) for b in new[:i])
        assert all(array.flags["C_CONTIGUOUS"] and array.flags["OWNDATA"] for array in new)
    assert all(np.array_equal(a, b) for a, b in zip(kept, expected, strict=True))


def test_frames_equal_those_of_the_package():
    package, arrays = both(V1, 3)
    package.reset(seed=0)
    arrays.reset(seed=0)
    play(package, arrays, at_random(package), 33)
    for index in range(3):
        assert np.array_equal(package.frame(index), arrays.frame(index))
    assert np.array_equal(package.render(), arrays.render()) and arrays.render().max() > 200


def test_spaces_and_rules_equal_those_of_the_package():
    for env_id in (V0, V1):
        package, arrays = both(env_id, 3, sticky_action_prob=0.25, difficulty_ramping=False)
        for name in ("single_observation_space", "single_action_space", "observation_space", "action_space"):
            assert getattr(package, name) == getattr(arrays, name)
        assert package.metadata == arrays.metadata and package.rules == arrays.rules
        more = SpaceInvadersVectorEnv(**{**arrays.rules, "num_envs": 7, "max_episode_steps": 30})
        assert more.rules == {**arrays.rules, "num_envs": 7, "max_episode_steps": 30}


def test_the_package_is_not_needed(monkeypatch):
    monkeypatch.setattr("envs.minatar._game_class", None)
    assert SpaceInvadersVectorEnv(V1, 2).reset(seed=0)[0].shape == (2, 6, 10, 10)


@pytest.mark.parametrize("env_id", ["MinAtar/Breakout-v1", "MinAtar/SpaceInvader-v1"])
def test_other_games_are_refused(env_id):
    with pytest.raises(ValueError, match="SpaceInvaders-v"):
        SpaceInvadersVectorEnv(env_id)


@pytest.mark.parametrize(
    "call",
    [
        lambda make: make(V1, 0),
        lambda make: make(V1, sticky_action_prob=1.1),
        lambda make: make(V1, max_episode_steps=0),
        lambda make: make(V1).step(np.array([0])),
        lambda make: make(V1, 2).reset(seed=[1]),
        lambda make: make(V1, 2).reset(seed=-1),
        lambda make: make(V1, 2).reset(options={"reset_mask": None}),
    ],
)
def test_errors_equal_those_of_the_package(call):
    errors = []
    for make in (MinAtarVectorEnv, SpaceInvadersVectorEnv):
        with pytest.raises((ValueError, gymnasium.error.ResetNeeded)) as error:
            call(make)
        errors.append((type(error.value), str(error.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("actions", [[0], [0, 4], [0, -1], [0.0, 1.0], [[0], [1]], [True, False]])
def test_invalid_actions_raise_before_any_game_moves(actions):
    env = SpaceInvadersVectorEnv(V1, 2)
    env.reset(seed=0)
    before = env.state_dict()
    with pytest.raises(ValueError, match="actions must"):
        env.step(np.array(actions))
    np.testing.assert_equal(env.state_dict(), before)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: MinAtarVectorEnv(V1, 2), "not of a SpaceInvadersVectorEnv"),
        (lambda: SpaceInvadersVectorEnv(V1, 3), "num_envs: 3 saved, 2 here"),
        (lambda: SpaceInvadersVectorEnv(V0, 2), "env_id"),
        (lambda: SpaceInvadersVectorEnv(V1, 2, difficulty_ramping=False), "difficulty_ramping"),
    ],
)
def test_the_state_of_another_environment_is_refused(other, message):
    env = SpaceInvadersVectorEnv(V1, 2)
    env.reset(seed=0)
    before, state = env.state_dict(), other().state_dict()
    with pytest.raises(ValueError, match=message) as error:
        env.load_state_dict(state)
    assert "\n" not in str(error.value)
    np.testing.assert_equal(env.state_dict(), before)


def test_the_package_refuses_our_states():
    with pytest.raises(ValueError, match="not of a MinAtarVectorEnv: it has no 'games'"):
        MinAtarVectorEnv(V1, 2).load_state_dict(SpaceInvadersVectorEnv(V1, 2).state_dict())


WRAPPED = {
    "games": lambda env: EnvSequence([MinAtarVectorEnv("MinAtar/Breakout-v0", 2), env], EverySteps(120)),
    "actions": lambda env: PermuteActions(env, EverySteps(100), tasks=3),
    "channels": lambda env: PermuteObservations(env, EverySteps(100), tasks=3),
    "rewards": lambda env: ScaleRewards(env, EverySteps(100), values=(1.0, -2.0)),
    "sticky": lambda env: RepeatActions(env, AtRandom(0.01), values=(0.1, 0.5)),
    "noise": lambda env: CorruptObservations(env, EverySteps(100), values=(0.0, 0.2)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_shifts_around_it_equal_those_around_the_package(name):
    theirs, ours, loaded = (WRAPPED[name](make(V0, 2)) for make in (*[MinAtarVectorEnv], *[SpaceInvadersVectorEnv] * 2))
    np.testing.assert_equal(ours.reset(seed=3), theirs.reset(seed=3))
    choose = at_random(theirs)
    for step in range(300):
        if step == 110:
            loaded.load_state_dict(ours.state_dict())
            ours = loaded
        actions = choose(None)
        np.testing.assert_equal(ours.step(actions), theirs.step(actions))
    one, other = (evaluation_world(world, 3, max_episode_steps=50) for world in (theirs, ours))
    np.testing.assert_equal(one.reset(seed=4), other.reset(seed=4))
    for _ in range(60):
        actions = choose(None)[[0, 1, 0]]
        np.testing.assert_equal(one.step(actions), other.step(actions))


def test_worlds_use_the_faster_class():
    assert type(World((V1,), FASTER_FROM).make()) is SpaceInvadersVectorEnv
    assert type(World((V1,), FASTER_FROM - 1).make()) is MinAtarVectorEnv
    assert type(minatar_env("MinAtar/Seaquest-v0", 64)) is MinAtarVectorEnv
    chain = World(("MinAtar/Freeway-v0", V0), 64, "games", EverySteps(128)).make()
    assert [type(env) for env in chain._envs] == [MinAtarVectorEnv, SpaceInvadersVectorEnv]
    single = World((V1,), 1).make()
    test = evaluation_world(single, 64, max_episode_steps=20)
    assert type(test) is SpaceInvadersVectorEnv
    assert test.rules == {**single.rules, "num_envs": 64, "max_episode_steps": 20}
    with pytest.raises(ValueError, match="Did you mean 'MinAtar/SpaceInvaders-v1'"):
        minatar_env("MinAtar/SpaceInvaders-v2", 64)
