"""envs.array_games: every game as arrays equals the package's, in the whole interface of `MinAtarVectorEnv`.

`python -m pytest -m slow tests/envs/test_array_games.py` compares at least 200,000 steps of each game.
"""

import copy

import gymnasium
import numpy as np
import pytest

from envs.array_games import ArrayVectorEnv
from envs.minatar import GAME_FILES, MinAtarVectorEnv
from envs.shifts import (
    CorruptObservations,
    EnvSequence,
    PermuteActions,
    PermuteObservations,
    RepeatActions,
    ScaleRewards,
)
from envs.timetables import AtRandom, EverySteps
from envs.worlds import AS_ARRAYS, World, evaluation_world, minatar_env
from tests.envs.array_games import GAMES, assert_same, assert_same_state, at_random, plant, play


@pytest.fixture(params=GAMES)
def game(request):
    return GAMES[request.param]


RULES = [
    (0, 1, {"sticky_action_prob": 0.0}),
    (1, 2, {}),
    (0, 7, {"sticky_action_prob": 0.1, "max_episode_steps": 8}),
    (1, 7, {"sticky_action_prob": 0.0, "difficulty_ramping": False}),
    (0, 3, {"sticky_action_prob": 1.0, "max_episode_steps": 12}),
    (1, 5, {"sticky_action_prob": 0.6, "max_episode_steps": 1}),
]


@pytest.mark.parametrize(("version", "num_envs", "rules"), RULES)
def test_every_step_equals_the_package(game, version, num_envs, rules):
    for seed in (0, 71):
        package, arrays = game.both(f"MinAtar/{game.name}-v{version}", num_envs, **rules)
        assert_same(package.reset(seed=seed), arrays.reset(seed=seed))
        steps = play(package, arrays, at_random(package, seed), 400)
        assert any(truncated.any() for _, _, _, truncated, _ in steps) == ("max_episode_steps" in rules)


@pytest.mark.parametrize("ramping", [True, False])
def test_every_step_of_skilled_play_equals_the_package(game, ramping):
    package, arrays = game.both(game.v0, 8, sticky_action_prob=0.0, difficulty_ramping=ramping)
    assert_same(package.reset(seed=0), arrays.reset(seed=0))
    play(package, arrays, game.skilled(7), 600)


def test_every_step_from_planted_states_equals_the_package(game):
    package, arrays = game.both(game.v0, 64, sticky_action_prob=0.0)
    assert_same(package.reset(seed=0), arrays.reset(seed=0))
    rng = np.random.default_rng(0)
    for _ in range(12):
        plant(package, arrays, [game.planted(rng) for _ in range(64)])
        play(package, arrays, at_random(package, int(rng.integers(1e9))), 4)


def campaign(game):
    """Random, skilled and planted play at 1 to 128 environments; returns the steps compared, of single environments."""
    compared = {"random": 0, "skilled": 0, "planted": 0}
    cases = [(1, 6000), (2, 3000), (8, 1500), (32, 600), (128, 250)]
    for case, (num_envs, steps) in enumerate(cases):
        for sticky in (0.0, 0.1):
            for ramping in (True, False):
                rules = {"sticky_action_prob": sticky, "difficulty_ramping": ramping}
                env_id = (game.v0, game.v1)[(case + ramping) % 2]
                for how in ("random", "skilled"):
                    package, arrays = game.both(env_id if how == "random" else game.v0, num_envs, **rules)
                    assert_same(package.reset(seed=case), arrays.reset(seed=case))
                    choose = at_random(package, case) if how == "random" else game.skilled(case)
                    play(package, arrays, choose, steps, states_every=5)
                    compared[how] += num_envs * steps
                package, arrays = game.both(game.v0, num_envs, **rules)
                assert_same(package.reset(seed=case), arrays.reset(seed=case))
                rng = np.random.default_rng(case)
                for _ in range(max(8, 200 // num_envs)):
                    plant(package, arrays, [game.planted(rng) for _ in range(num_envs)])
                    play(package, arrays, at_random(package, int(rng.integers(1e9))), 10, states_every=1)
                    compared["planted"] += num_envs * 10
    return compared


@pytest.mark.slow
@pytest.mark.parametrize("name", GAMES)
def test_campaign(name):
    compared = campaign(GAMES[name])
    print(f"{name}: {sum(compared.values()):,} steps equal, {compared}")
    assert sum(compared.values()) >= 200_000


def test_the_comparison_can_fail(game):
    package, arrays = game.both(game.v1, 4)
    package.reset(seed=0)
    arrays.reset(seed=1)
    with pytest.raises(AssertionError):
        play(package, arrays, at_random(package), 300)


def test_a_saved_environment_continues_exactly(game):
    env, other = (game.arrays(game.v1, 3, max_episode_steps=150) for _ in range(2))
    twin = MinAtarVectorEnv(game.v1, 3, max_episode_steps=150)
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


def test_a_copy_has_streams_of_its_own(game):
    """A bound method of a stream, kept in the environment, stays that of the original under NumPy before 2."""
    package, arrays = MinAtarVectorEnv(game.v1, 3), game.arrays(game.v1, 3)
    assert_same(package.reset(seed=9), arrays.reset(seed=9))
    copies = copy.deepcopy(package), copy.deepcopy(arrays)
    play(package, copies[1], at_random(package), 200)
    play(copies[0], arrays, at_random(package), 200)


def test_a_state_holds_plain_types_and_arrays(game):
    def plain(value):
        if isinstance(value, dict):
            return all(type(key) is str for key in value) and all(map(plain, value.values()))
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (int, float, bool, str, np.ndarray)

    assert plain(game.arrays(game.v1, 2).state_dict())


def test_streams_and_previous_actions_continue_without_a_seed(game):
    package, arrays = game.both(game.v1, 3, sticky_action_prob=0.5)
    assert_same(package.reset(seed=0), arrays.reset(seed=0))
    for seed in (None, [None, 7, None], [3, None, 2**32 - 1], np.int64(4), None):
        play(package, arrays, at_random(package), 60)
        assert_same(package.reset(seed=seed), arrays.reset(seed=seed))
        assert package.np_random_seed == arrays.np_random_seed
        assert_same_state(package, arrays)
    play(package, arrays, at_random(package), 200)


def test_returned_arrays_are_safe_to_keep(game):
    env = game.arrays(game.v1, 8, max_episode_steps=30)
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


def test_frames_equal_those_of_the_package(game):
    package, arrays = game.both(game.v1, 3)
    package.reset(seed=0)
    arrays.reset(seed=0)
    play(package, arrays, at_random(package), 33)
    for index in range(3):
        assert np.array_equal(package.frame(index), arrays.frame(index))
    assert np.array_equal(package.render(), arrays.render()) and arrays.render().max() > 200


def test_spaces_and_rules_equal_those_of_the_package(game):
    for env_id in (game.v0, game.v1):
        package, arrays = game.both(env_id, 3, sticky_action_prob=0.25, difficulty_ramping=False)
        for name in ("single_observation_space", "single_action_space", "observation_space", "action_space"):
            assert getattr(package, name) == getattr(arrays, name)
        assert package.metadata == arrays.metadata and package.rules == arrays.rules
        more = game.arrays(**{**arrays.rules, "num_envs": 7, "max_episode_steps": 30})
        assert more.rules == {**arrays.rules, "num_envs": 7, "max_episode_steps": 30}


def test_the_package_is_not_needed(game, monkeypatch):
    monkeypatch.setattr("envs.minatar._game_class", None)
    env = game.arrays(game.v1, 2)
    assert env.reset(seed=0)[0].shape == env.observation_space.shape


def test_other_games_are_refused(game):
    other = next(name for name in GAME_FILES if name != game.name)
    for env_id in (f"MinAtar/{other}-v1", f"MinAtar/{game.name}-v2"):
        with pytest.raises(ValueError, match=f"{game.name}-v"):
            game.arrays(env_id)


@pytest.mark.parametrize(
    "call",
    [
        lambda make, v1: make(v1, 0),
        lambda make, v1: make(v1, sticky_action_prob=1.1),
        lambda make, v1: make(v1, max_episode_steps=0),
        lambda make, v1: make(v1).step(np.array([0])),
        lambda make, v1: make(v1, 2).reset(seed=[1]),
        lambda make, v1: make(v1, 2).reset(seed=-1),
        lambda make, v1: make(v1, 2).reset(options={"reset_mask": None}),
    ],
)
def test_errors_equal_those_of_the_package(game, call):
    errors = []
    for make in (MinAtarVectorEnv, game.arrays):
        with pytest.raises((ValueError, gymnasium.error.ResetNeeded)) as error:
            call(make, game.v1)
        errors.append((type(error.value), str(error.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("actions", [[0], [0, 6], [0, -1], [0.0, 1.0], [[0], [1]], [True, False]])
def test_invalid_actions_raise_before_any_game_moves(game, actions):
    env = game.arrays(game.v0, 2)
    env.reset(seed=0)
    before = env.state_dict()
    with pytest.raises(ValueError, match="actions must"):
        env.step(np.array(actions))
    np.testing.assert_equal(env.state_dict(), before)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.uint64, ">i8"])
def test_actions_of_any_integer_type(game, dtype):
    env, other = game.arrays(game.v0, 2), game.arrays(game.v0, 2)
    env.reset(seed=0)
    other.reset(seed=0)
    assert_same(env.step(np.array([5, 3], dtype=dtype)), other.step([5, 3]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda game: MinAtarVectorEnv(game.v1, 2), "not of a {name}"),
        (lambda game: game.arrays(game.v1, 3), "num_envs: 3 saved, 2 here"),
        (lambda game: game.arrays(game.v0, 2), "env_id"),
        (lambda game: game.arrays(game.v1, 2, difficulty_ramping=False), "difficulty_ramping"),
    ],
)
def test_the_state_of_another_environment_is_refused(game, other, message):
    env = game.arrays(game.v1, 2)
    env.reset(seed=0)
    before, state = env.state_dict(), other(game).state_dict()
    with pytest.raises(ValueError, match=message.format(name=game.arrays.__name__)) as error:
        env.load_state_dict(state)
    assert "\n" not in str(error.value)
    np.testing.assert_equal(env.state_dict(), before)


def test_the_package_refuses_our_states(game):
    with pytest.raises(ValueError, match="not of a MinAtarVectorEnv: it has no 'games'"):
        MinAtarVectorEnv(game.v1, 2).load_state_dict(game.arrays(game.v1, 2).state_dict())


def another(game):
    """A game with another number of channels."""
    return MinAtarVectorEnv("MinAtar/Seaquest-v0" if game.name != "Seaquest" else "MinAtar/Breakout-v0", 2)


WRAPPED = {
    "games": lambda env, game: EnvSequence([another(game), env], EverySteps(120)),
    "actions": lambda env, game: PermuteActions(env, EverySteps(100), tasks=3),
    "channels": lambda env, game: PermuteObservations(env, EverySteps(100), tasks=3),
    "rewards": lambda env, game: ScaleRewards(env, EverySteps(100), values=(1.0, -2.0)),
    "sticky": lambda env, game: RepeatActions(env, AtRandom(0.01), values=(0.1, 0.5)),
    "noise": lambda env, game: CorruptObservations(env, EverySteps(100), values=(0.0, 0.2)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_shifts_around_it_equal_those_around_the_package(game, name):
    makers = (MinAtarVectorEnv, game.arrays, game.arrays)
    theirs, ours, loaded = (WRAPPED[name](make(game.v0, 2), game) for make in makers)
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


def test_worlds_use_the_faster_class(game):
    arrays, faster_from = AS_ARRAYS[game.name]
    assert arrays is game.arrays
    assert type(World((game.v1,), faster_from).make()) is arrays
    assert type(World((game.v1,), faster_from - 1).make()) is MinAtarVectorEnv
    single = World((game.v1,), 1).make()
    test = evaluation_world(single, 64, max_episode_steps=20)
    assert type(test) is arrays
    assert test.rules == {**single.rules, "num_envs": 64, "max_episode_steps": 20}
    with pytest.raises(ValueError, match=f"Did you mean 'MinAtar/{game.name}-v1'"):
        minatar_env(f"MinAtar/{game.name}-v2", 64)


def test_every_class_has_its_own_name_in_states():
    assert set(AS_ARRAYS) == set(GAMES) <= set(GAME_FILES)
    names = [arrays._saved_in for arrays, _ in AS_ARRAYS.values()]
    assert len({*names, ArrayVectorEnv._saved_in}) == len(names) + 1
