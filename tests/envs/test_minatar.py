"""envs.minatar: the package's games bit for bit, Gymnasium's vector contract, and exact saving."""

import importlib
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import minatar as module
from envs.minatar import GAME_FILES, PALETTE, MinAtarVectorEnv, game_seed

CHANNELS = {"Asterix": 4, "Breakout": 4, "Freeway": 7, "Seaquest": 10, "SpaceInvaders": 6}
MINIMAL_ACTIONS = {"Asterix": 5, "Breakout": 3, "Freeway": 3, "Seaquest": 6, "SpaceInvaders": 4}
GAMES = sorted(GAME_FILES)


@pytest.fixture(scope="module")
def package():
    """The package itself, without its plotting imports: they take seconds, and it plays without them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("matplotlib", "seaborn"):
            patch.setitem(sys.modules, name, None)
        package = importlib.import_module("minatar")
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "minatar"]:
        del sys.modules[name]


def make(game, num_envs=1, version=1, **kwargs):
    return MinAtarVectorEnv(f"MinAtar/{game}-v{version}", num_envs, **kwargs)


def random_actions(env, steps, seed=0):
    return np.random.default_rng(seed).integers(0, env.single_action_space.n, (steps, env.num_envs))


def rollout(env, actions):
    """Stack what every step returned, final observations included."""
    outputs = []
    for row in actions:
        obs, rewards, terminated, truncated, infos = env.step(row)
        outputs.append((obs, rewards, terminated, truncated, infos.get("final_obs", obs)))
    return [np.stack(column) for column in zip(*outputs, strict=True)]


def identical(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("ramping", [True, False], ids=["ramp", "flat"])
@pytest.mark.parametrize("sticky", [0.1, 0.0])
@pytest.mark.parametrize("game", GAMES)
def test_every_step_equals_the_package(package, game, sticky, ramping):
    for seed, version in ((0, 1), (71, 0)):
        env = make(game, 2, version, sticky_action_prob=sticky, difficulty_ramping=ramping)
        theirs = []
        for i in range(2):
            one = package.Environment(GAME_FILES[game], sticky_action_prob=sticky, difficulty_ramping=ramping)
            one.seed(game_seed(seed, i))
            one.reset()
            theirs.append(one)
        obs, _ = env.reset(seed=seed)
        table = theirs[0].minimal_action_set() if version else list(range(6))
        endings = 0
        for row in random_actions(env, 300, seed):
            assert all(np.array_equal(obs[i].transpose(1, 2, 0), one.state()) for i, one in enumerate(theirs))
            obs, rewards, terminated, truncated, infos = env.step(row)
            for i, one in enumerate(theirs):
                assert (rewards[i], terminated[i]) == one.act(table[row[i]])
                if terminated[i]:
                    assert np.array_equal(infos["final_obs"][i].transpose(1, 2, 0), one.state())
                    one.reset()
                    endings += 1
            assert not truncated.any()
        assert (endings > 0) == (game != "Freeway")


def test_freeway_terminates_as_in_the_package(package):
    env = make("Freeway", 2, max_episode_steps=2501)
    one = package.Environment("freeway")
    one.seed(game_seed(5))
    one.reset()
    env.reset(seed=5)
    for step, row in enumerate(random_actions(env, 2501), start=1):
        _, rewards, terminated, truncated, infos = env.step(row)
        assert (rewards[0], terminated[0]) == one.act([0, 2, 4][row[0]])
        assert terminated.all() == terminated.any() == (step == 2501)
        assert not truncated.any()  # the limit falls on the same step: the game's own end wins
    assert list(infos["episode"]["l"]) == [2501, 2501]


def test_the_comparison_can_fail(package):
    """Control: a stream shifted by one game is noticed, and so are sticky actions."""
    env = make("Breakout", 2)
    env.reset(seed=0)
    actions = random_actions(env, 300)
    first = rollout(env, actions)
    env.reset(seed=1)
    assert not identical(first, rollout(env, actions))
    bare = make("Breakout", 2, sticky_action_prob=0.0)
    bare.reset(seed=0)
    assert not identical(first, rollout(bare, actions))


@pytest.mark.parametrize("game", ["Asterix", "Seaquest", "SpaceInvaders"])
def test_difficulty_ramping_reaches_the_game(game):
    for ramping in (True, False):
        saved = make(game, difficulty_ramping=ramping).state_dict()
        assert saved["games"][0]["attributes"]["ramping"] is ramping


def test_always_sticky_ignores_the_actions():
    env = make("Freeway", 1, sticky_action_prob=1.0)
    env.reset(seed=0)
    ups = rollout(env, np.ones((300, 1), dtype=int))
    env.reset(seed=0)
    assert identical(ups, rollout(env, np.zeros((300, 1), dtype=int)))
    assert ups[1].sum() == 0.0


def test_no_plotting_package_is_imported():
    code = (
        "import sys; from envs.minatar import MinAtarVectorEnv, GAME_FILES\n"
        "for game in GAME_FILES:\n"
        "    env = MinAtarVectorEnv(f'MinAtar/{game}-v1'); env.reset(seed=0); env.render()\n"
        "print([name for name in ('minatar', 'seaborn', 'matplotlib', 'pandas', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_named(monkeypatch):
    module._game_class.cache_clear()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install minatar"):
        make("Breakout")


@pytest.mark.parametrize(
    ("env_id", "hint"),
    [
        ("MinAtar/Breakot-v1", "Did you mean 'MinAtar/Breakout-v1'"),
        ("MinAtar/space_invaders-v0", "Did you mean 'MinAtar/SpaceInvaders-v0'"),
        ("Seaquest-v1", "Did you mean 'MinAtar/Seaquest-v1'"),
        ("MinAtar/Freeway-v2", "Did you mean 'MinAtar/Freeway-v"),
        ("CartPole", "There are MinAtar/<Game>-v1"),
    ],
)
def test_unknown_ids_give_one_helpful_line(env_id, hint):
    with pytest.raises(ValueError, match=f"unknown MinAtar environment '{env_id}'") as error:
        MinAtarVectorEnv(env_id)
    message = str(error.value)
    assert hint in message and "\n" not in message and all(game in message for game in GAMES)


@pytest.mark.parametrize(
    ("env_id", "script"),
    [("ALE/Breakout-v5", "dqn_atari.py"), ("CartPole-v1", "agents/ppo_control.py is for CartPole")],
)
def test_an_environment_of_another_script_names_that_script(env_id, script):
    with pytest.raises(ValueError, match=f"'{env_id}' is not a MinAtar game.*{script}"):
        MinAtarVectorEnv(env_id)


@pytest.mark.parametrize(
    "kwargs",
    [{"num_envs": 0}, {"sticky_action_prob": 1.1}, {"sticky_action_prob": float("nan")}, {"max_episode_steps": 0}],
)
def test_invalid_arguments_raise(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        MinAtarVectorEnv("MinAtar/Breakout-v1", **kwargs)


@pytest.mark.parametrize("actions", [[0], [0, 3], [0, -1], [0.0, 1.0], [[0], [1]], [True, False]])
def test_invalid_actions_raise_before_any_game_moves(actions):
    env = make("Breakout", 2)
    env.reset(seed=0)
    before = env.state_dict()
    with pytest.raises(ValueError, match="actions must"):
        env.step(np.array(actions))
    np.testing.assert_equal(env.state_dict(), before)


def test_step_needs_a_reset_first():
    with pytest.raises(gymnasium.error.ResetNeeded):
        make("Breakout").step(np.array([0]))


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("game", GAMES)
def test_spaces_contain_what_is_returned(game, version):
    env = make(game, 3, version)
    assert isinstance(env, gymnasium.vector.VectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.single_action_space.n == (MINIMAL_ACTIONS[game] if version else 6)
    assert env.single_observation_space == gymnasium.spaces.Box(0, 1, (CHANNELS[game], 10, 10), np.uint8)
    obs, infos = env.reset(seed=0)
    assert infos == {} and obs.shape == (3, CHANNELS[game], 10, 10) and env.observation_space.contains(obs)
    env.action_space.seed(0)
    for _ in range(100):
        obs, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs) and obs.flags["C_CONTIGUOUS"]
        assert (rewards.shape, rewards.dtype) == ((3,), np.float64)
        assert (terminated.shape, terminated.dtype) == (truncated.shape, truncated.dtype) == ((3,), np.bool_)
        assert set(infos) in (set(), {"final_obs", "_final_obs", "episode", "_episode"})
        assert bool(infos) == bool((terminated | truncated).any())


def test_returned_arrays_are_safe_to_keep():
    env = make("Asterix", 4, max_episode_steps=30)
    kept = [env.reset(seed=0)[0]]
    expected = [kept[0].copy()]
    for row in random_actions(env, 200):
        obs, rewards, terminated, truncated, infos = env.step(row)
        new = [obs, rewards, terminated, truncated]
        if infos:
            new += [infos["final_obs"], infos["_final_obs"], infos["_episode"], *infos["episode"].values()]
        kept += new
        expected += [array.copy() for array in new]
    assert identical(kept, expected)


def test_infos_report_each_episode_that_ended():
    env = make("Breakout", 4, max_episode_steps=25)
    env.reset(seed=3)
    returns, lengths, ended = np.zeros(4), np.zeros(4, dtype=int), {"terminated": 0, "truncated": 0}
    for row in random_actions(env, 400):
        obs, rewards, terminated, truncated, infos = env.step(row)
        returns, lengths, done = returns + rewards, lengths + 1, terminated | truncated
        assert not (terminated & truncated).any()
        assert np.array_equal(truncated, (lengths == 25) & ~terminated)
        if done.any():
            assert np.array_equal(infos["_episode"], done) and np.array_equal(infos["_final_obs"], done)
            assert np.array_equal(infos["episode"]["r"], np.where(done, returns, 0.0))
            assert np.array_equal(infos["episode"]["l"], np.where(done, lengths, 0))
            assert infos["final_obs"].dtype == np.uint8
            assert np.array_equal(infos["final_obs"][~done], obs[~done])
            returns, lengths = np.where(done, 0.0, returns), np.where(done, 0, lengths)
        ended["terminated"] += terminated.sum()
        ended["truncated"] += truncated.sum()
    assert min(ended.values()) > 5


def test_truncation_returns_the_last_observation_then_a_new_episode():
    limited, free = make("Freeway", 2, max_episode_steps=7), make("Freeway", 2)
    limited.reset(seed=0)
    free.reset(seed=0)
    for step, row in enumerate(random_actions(free, 7), start=1):
        obs, _, terminated, truncated, infos = limited.step(row)
        expected = free.step(row)[0]
        assert truncated.all() == truncated.any() == (step == 7) and not terminated.any()
    assert np.array_equal(infos["final_obs"], expected)
    assert not np.array_equal(obs, expected)
    assert np.array_equal(obs[:, 0], np.eye(10)[[9]][:, :, None] * np.eye(10)[4] * np.ones((2, 1, 1)))  # at the start


@pytest.mark.skipif(
    tuple(map(int, gymnasium.__version__.split(".")[:2])) < (1, 2), reason="its wrapper counts a step less in 1.1"
)
def test_episode_statistics_equal_those_of_gymnasium():
    env = RecordEpisodeStatistics(make("SpaceInvaders", 3, max_episode_steps=60), stats_key="theirs")
    env.reset(seed=0)
    episodes = 0
    for row in random_actions(env, 300):
        infos = env.step(row)[4]
        if infos:
            assert np.array_equal(infos["_theirs"], infos["_episode"])
            for key in ("r", "l"):
                assert np.array_equal(infos["theirs"][key], infos["episode"][key])
                assert infos["theirs"][key].dtype == infos["episode"][key].dtype
            episodes += infos["_episode"].sum()
    assert episodes >= 15 and sum(env.return_queue) > 0


@settings(max_examples=20)
@given(seed=st.integers(0, 2**64), n=st.integers(1, 5))
def test_game_seeds_are_the_spawned_streams(seed, n):
    spawned = [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(n)]
    assert [game_seed(seed, i) for i in range(n)] == spawned
    assert all(0 <= s < 2**32 for s in spawned)


def test_equal_seeds_give_equal_results():
    env, other = make("Seaquest", 3), make("Seaquest", 3)
    env.reset(seed=11)
    start = env.state_dict()
    actions = random_actions(env, 200)
    first = rollout(env, actions)
    env.reset(seed=11)  # from the middle of an episode, with a previous action
    np.testing.assert_equal(env.state_dict(), start)
    assert identical(first, rollout(env, actions))
    other.reset(seed=[game_seed(11, i) for i in range(3)])
    assert identical(first, rollout(other, actions))
    other.reset(seed=np.int64(11))
    assert identical(first, rollout(other, actions))


def test_games_of_one_seed_differ_and_do_not_depend_on_their_number():
    small, large = make("Freeway", 2), make("Freeway", 5)
    first, more = small.reset(seed=4)[0], large.reset(seed=4)[0]
    actions = np.ones((200, 5), dtype=int)
    few, many = rollout(small, actions[:, :2])[0], rollout(large, actions)[0]
    assert np.array_equal(first, more[:2]) and np.array_equal(few, many[:, :2])
    assert len({many[:, i].tobytes() for i in range(5)}) == 5


def test_reset_without_a_seed_continues_the_streams():
    env, twin = make("Freeway", 2), make("Freeway", 2)
    start = env.reset(seed=0)[0]
    twin.reset(seed=0)
    actions = random_actions(env, 100)
    assert np.array_equal(env.reset()[0], twin.reset(seed=[None, None])[0])
    first = rollout(env, actions)
    assert identical(first, rollout(twin, actions))
    assert np.array_equal(env.reset(seed=0)[0], start)
    assert not identical(first, rollout(env, actions))


@pytest.mark.parametrize("seed", [-1, [0], [0, -1], [0, 2**32]])
def test_invalid_seeds_raise(seed):
    with pytest.raises(ValueError, match="seed"):
        make("Breakout", 2).reset(seed=seed)


def test_reset_mask_is_refused():
    with pytest.raises(ValueError, match=r"no options.*reset_mask"):
        make("Breakout", 2).reset(options={"reset_mask": np.array([True, False])})


def test_the_global_random_stream_is_not_used():
    before = np.random.get_state()[1].copy()
    env = make("Asterix", 2)
    env.reset(seed=0)
    rollout(env, random_actions(env, 50))
    assert np.array_equal(np.random.get_state()[1], before)


def assert_plain(value):
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            assert_plain(item)
    else:
        assert value is None or type(value) in (int, float, bool, str, np.ndarray)


@pytest.mark.parametrize("game", GAMES)
def test_a_saved_environment_continues_exactly(game):
    env = make(game, 2, max_episode_steps=300)
    env.reset(seed=9)
    rng = np.random.default_rng(GAMES.index(game))
    for part in range(3):
        rollout(env, random_actions(env, int(rng.integers(1, 80)), seed=part))
    saved = env.state_dict()
    assert_plain(saved)
    other = make(game, 2, max_episode_steps=300)
    other.load_state_dict(saved)
    assert np.array_equal(other.observation(), env.observation())
    actions = random_actions(env, 2000)
    first = rollout(env, actions)
    assert identical(first, rollout(other, actions))
    np.testing.assert_equal(other.state_dict(), env.state_dict())
    other.load_state_dict(saved)  # neither run has changed the saved state
    assert identical([column[:100] for column in first], rollout(other, actions[:100]))


def test_loading_keeps_one_stream_per_game():
    env = make("Asterix", 2)
    env.load_state_dict(env.state_dict())
    for seat in env._seats:
        assert seat.game.random is seat.stream


def test_episode_statistics_are_saved():
    env, other = make("SpaceInvaders"), make("SpaceInvaders")
    env.reset(seed=0)
    fire = np.array([3])
    rewards = [env.step(fire)[1][0] for _ in range(10)]
    assert sum(rewards) > 0
    other.load_state_dict(env.state_dict())
    lengths = 10
    while True:
        _, reward, _, _, infos = other.step(fire)
        rewards.append(reward[0])
        lengths += 1
        if infos:
            break
    assert infos["episode"]["r"] == sum(rewards) and infos["episode"]["l"] == lengths


@pytest.mark.parametrize(
    "other",
    [
        lambda: make("Asterix", 2),
        lambda: make("Breakout", 3),
        lambda: make("Breakout", 2, version=0),
        lambda: make("Breakout", 2, sticky_action_prob=0.0),
        lambda: make("Breakout", 2, max_episode_steps=10),
    ],
)
def test_the_state_of_another_environment_is_refused(other):
    env = make("Breakout", 2)
    with pytest.raises(ValueError, match="other arguments"):
        env.load_state_dict(other().state_dict())


def test_a_state_with_other_attributes_is_refused_and_nothing_changes():
    env = make("Breakout", 2)
    env.reset(seed=0)
    saved, before = make("Breakout", 2).state_dict(), env.state_dict()
    del saved["games"][1]["attributes"]["ball_x"]
    with pytest.raises(ValueError, match="ball_x"):
        env.load_state_dict(saved)
    np.testing.assert_equal(env.state_dict(), before)


def test_types_that_cannot_be_saved_exactly_are_refused():
    env = make("Breakout")
    env._seats[0].game.extra = object()
    with pytest.raises(TypeError, match="object"):
        env.state_dict()


def test_frame_shows_each_cell_in_the_colour_of_its_last_channel():
    env = make("Breakout", 2)
    env.reset(seed=0)
    rollout(env, random_actions(env, 4))
    frame = env.render()
    assert (frame.shape, frame.dtype) == ((160, 160, 3), np.uint8)
    assert np.array_equal(frame, env.frame(0)) and frame.max() > 200
    obs = env.observation()[0]
    for row in range(10):
        for column in range(10):
            active = [c for c in range(4) if obs[c, row, column]]
            block = frame[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].reshape(-1, 3)
            assert (block == PALETTE[active[-1] + 1 if active else 0]).all()


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
VISION = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("vision", VISION)
def test_colours_differ_for_colour_blind_eyes(vision):
    """CIE 1976 distance between any two colours; 2.3 is just noticeable."""
    srgb = PALETTE / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = seen @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(len(PALETTE), 1)]
    assert len(apart) == 55 and apart.min() > 15


def test_rules_build_the_same_environment():
    env = MinAtarVectorEnv("MinAtar/Seaquest-v0", 2, sticky_action_prob=0.25, difficulty_ramping=False)
    more = MinAtarVectorEnv(**{**env.rules, "num_envs": 7, "max_episode_steps": 30})
    assert more.num_envs == 7
    assert more.rules == {**env.rules, "num_envs": 7, "max_episode_steps": 30}
