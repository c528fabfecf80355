"""envs.atari: both classes against each other and against an emulator played by hand, and exact saving."""

from __future__ import annotations

import math
import pickle

import ale_py
import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.atari import AtariVectorEnv, ThreadedAtariVectorEnv, area_resize, atari_env, rom
from envs.frames import StackFrames
from envs.minatar import game_seed
from tests.envs.rollouts import equal, play
from tests.envs.single import SingleEnv

BREAKOUT, PONG, SEAQUEST = "ALE/Breakout-v5", "ALE/Pong-v5", "ALE/Seaquest-v5"
CLASSES = [AtariVectorEnv, ThreadedAtariVectorEnv]


def area_mean(image):
    """[H, W] -> [84, 84] by definition, in float64: the overlap of each cell with each pixel, over the cell's size."""

    def shares(size):
        edges, pixels = np.arange(85) * size / 84, np.arange(size)
        overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        return overlap.clip(0) / (size / 84)

    return shares(image.shape[0]) @ image.astype(np.float64) @ shares(image.shape[1]).T


def assert_resized(frame, image):
    """The frame is the area mean, rounded; a mean that lies at one half may go either way."""
    assert frame.dtype == np.uint8 and frame.shape == (84, 84)
    assert np.abs(frame - area_mean(image)).max() <= 0.5 + 1e-4


class ByHand:
    """One game played step by step on its own emulator, as the module describes it; screens are not resized."""

    def __init__(self, env_id, seed, *, sticky=0.25, frames=108_000, noop_max=0):
        self.emulator = ale_py.ALEInterface()
        self.emulator.setInt("random_seed", seed)
        self.emulator.setFloat("repeat_action_probability", sticky)
        self.emulator.loadROM(rom(env_id))
        self.actions, self.frames, self.noop_max = self.emulator.getMinimalActionSet(), frames, noop_max
        self.noops = np.random.default_rng(seed)
        self.begin()

    def begin(self):
        self.emulator.reset_game()
        self.count = int(self.noops.integers(1, self.noop_max + 1)) if self.noop_max else 0
        for _ in range(self.count):
            self.emulator.act(0)
        self.seen = self.emulator.getScreenGrayscale()

    def step(self, action):
        """Reward, terminated, truncated, and whether a life was lost in a game that continues."""
        self.screens, reward, lives, terminated, truncated = [], 0, self.emulator.lives(), False, False
        while len(self.screens) < 4 and not (terminated or truncated):
            reward += self.emulator.act(self.actions[action])
            self.count += 1
            self.screens.append(self.emulator.getScreenGrayscale())
            terminated = self.emulator.game_over()
            truncated = self.count >= self.frames and not terminated
        self.before, self.seen = self.seen, np.max(self.screens[2:] or self.screens[-1:], axis=0)
        return reward, terminated, truncated, self.emulator.lives() < lives and not (terminated or truncated)


def env_seeds(seed, n):
    return [game_seed(seed, i) % 2**31 for i in range(n)]


def assert_alike(ours, theirs):
    """Two steps are equal, except `final_obs` where an episode ended."""
    ended = ours[2] | ours[3]
    assert ours[4].keys() == theirs[4].keys()
    for key, mine in ours[4].items():
        if key == "final_obs":
            assert np.array_equal(mine[~ended], theirs[4][key][~ended]) and mine.shape == theirs[4][key].shape
        else:
            assert equal(mine, theirs[4][key]), key
    for mine, other in zip(ours[:4], theirs[:4], strict=True):
        assert mine.dtype == other.dtype and np.array_equal(mine, other)


@pytest.fixture(scope="module")
def both():
    """Two environments of Breakout in each class; loading a game takes a tenth of a second, so tests share them."""
    return {AtariVectorEnv: AtariVectorEnv(BREAKOUT, 2), ThreadedAtariVectorEnv: ThreadedAtariVectorEnv(BREAKOUT, 2)}


@pytest.fixture(scope="module")
def breakout(both):
    """Two whole games of Breakout."""
    return play(both[AtariVectorEnv], 190, seed=0)


# the two classes


@pytest.mark.parametrize("threads", [1, 2])
def test_breakout_is_equal_in_both_classes(both, breakout, threads):
    env = both[ThreadedAtariVectorEnv] if threads == 1 else ThreadedAtariVectorEnv(BREAKOUT, 2, threads=2)
    theirs = play(env, 190, seed=0)
    assert equal(breakout[0], theirs[0])
    for a, b in zip(breakout[1:], theirs[1:], strict=True):
        assert_alike(a, b)
    assert sum(out[2].sum() for out in breakout[1:]) == 2 and sum(out[1].sum() for out in breakout[1:]) > 0


@pytest.mark.parametrize(
    ("game", "num_envs", "steps", "rules"),
    [
        (PONG, 1, 60, {"sticky_action_prob": 0.0}),
        (SEAQUEST, 2, 60, {"max_episode_frames": 102}),
        ("ALE/AirRaid-v5", 1, 25, {"full_action_space": True}),  # 250 rows
    ],
)
def test_games_are_equal_in_both_classes(game, num_envs, steps, rules):
    one, other = (
        AtariVectorEnv(game, num_envs, **rules),
        ThreadedAtariVectorEnv(game, num_envs, threads=num_envs, **rules),
    )
    assert one.single_action_space == other.single_action_space
    ours, theirs = play(one, steps, seed=5), play(other, steps, seed=5)
    assert equal(ours[0], theirs[0])
    ours_too, theirs_too = play(one, 8, seed=6, start=False), play(other, 8, seed=6, start=False)
    assert equal(one.reset(), other.reset())  # their streams continue
    ours_last, theirs_last = play(one, 15, seed=7, start=False), play(other, 15, seed=7, start=False)
    for a, b in zip(ours[1:] + ours_too + ours_last, theirs[1:] + theirs_too + theirs_last, strict=True):
        assert_alike(a, b)
    truncations = [step for step, out in enumerate(ours[1:], start=1) if out[3].all()]
    assert truncations == ([26, 52] if game == SEAQUEST else [])
    assert sum(out[3].sum() for out in ours[1:]) == num_envs * len(truncations) and not any(
        out[2].any() for out in ours[1:]
    )


def test_the_comparison_can_fail(both, breakout):
    """Control: another seed is noticed within a few steps."""
    both[ThreadedAtariVectorEnv].reset(seed=1)
    theirs = play(both[ThreadedAtariVectorEnv], 40, seed=0, start=False)
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(breakout[1:], theirs, strict=False))


# an emulator played by hand


@pytest.mark.parametrize(
    ("game", "num_envs", "rules", "steps"),
    [
        (BREAKOUT, 2, {"noop_max": 9, "max_episode_frames": 143}, 80),
        ("ALE/Freeway-v5", 1, {"sticky_action_prob": 0.6}, 25),
    ],
)
def test_every_step_equals_an_emulator_played_by_hand(game, num_envs, rules, steps):
    env = AtariVectorEnv(game, num_envs, **rules)
    names = {"sticky_action_prob": "sticky", "max_episode_frames": "frames", "noop_max": "noop_max"}
    given = {names[name]: value for name, value in rules.items()}
    hands = [ByHand(game, seed, **given) for seed in env_seeds(4, num_envs)]
    obs = env.reset(seed=4)[0]
    for hand, frame in zip(hands, obs[:, 0], strict=True):
        assert_resized(frame, hand.seen)
    rng, truncations = np.random.default_rng(0), 0
    for _ in range(steps):
        actions = rng.integers(env.single_action_space.n, size=num_envs)
        obs, rewards, terminated, truncated, infos = env.step(actions)
        for i, hand in enumerate(hands):
            expected = hand.step(actions[i])
            lost = bool(infos.get("life_lost", np.zeros(num_envs))[i])
            assert (rewards[i], terminated[i], truncated[i], lost) == expected
            assert_resized(infos["final_obs"][i, 0] if truncated[i] else obs[i, 0], hand.seen)
            if truncated[i]:
                truncations += 1
                hand.begin()
                assert_resized(obs[i, 0], hand.seen)
        assert np.array_equal(env.observation(), obs)
    assert truncations == (4 if rules.get("noop_max") else 0)


@pytest.mark.parametrize("frames", [40, 43])
def test_the_last_frame_of_an_episode_shows_its_last_screens(frames):
    """`AtariVectorEnv`'s contains the screen of the end; ale-py's may lack it, as its class documents."""
    hand = ByHand(SEAQUEST, env_seeds(3, 1)[0], frames=frames)
    actions = np.random.default_rng(0).integers(18, size=(math.ceil(frames / 4), 1))
    for action in actions[:, 0]:
        hand.step(action)
    assert len(hand.screens) == (frames - 1) % 4 + 1
    without = area_resize(np.max([hand.before, *hand.screens[2:3]] if frames == 40 else [hand.before], axis=0))
    assert not np.array_equal(area_resize(hand.seen), without)  # or this test shows nothing
    for cls in CLASSES:
        env = cls(SEAQUEST, 1, max_episode_frames=frames)
        env.reset(seed=3)
        outs = [env.step(row) for row in actions]
        assert outs[-1][3].all()
        final = outs[-1][-1]["final_obs"][0, 0]
        if cls is AtariVectorEnv or not np.array_equal(final, without):
            assert_resized(final, hand.seen)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_game_that_ends_on_the_last_frame_allowed_is_terminated(cls):
    """Breakout with a paddle that does not move: five balls fall. With one frame less it is truncated."""
    hand = ByHand(BREAKOUT, env_seeds(3, 1)[0])
    fire, ended = 1, False
    while not ended:
        ended = hand.step(fire)[1]
    steps = math.ceil(hand.count / 4)
    for frames in (hand.count, hand.count - 1):
        env = cls(BREAKOUT, 1, max_episode_frames=frames)
        env.reset(seed=3)
        outs = [env.step(np.array([fire])) for _ in range(math.ceil(frames / 4))]
        ends = [(step, bool(out[2][0]), bool(out[3][0])) for step, out in enumerate(outs, 1) if (out[2] | out[3])[0]]
        assert ends == [(math.ceil(frames / 4), frames == hand.count, frames != hand.count)]
        assert frames != hand.count or len(outs) == steps


def test_a_game_of_breakout_has_five_lives(breakout):
    for i in range(2):
        lost, length, score = 0, 0, 0.0
        for _, rewards, terminated, truncated, infos in breakout[1:]:
            length, score = length + 1, score + rewards[i]
            lives_lost = infos.get("life_lost", np.zeros(2, dtype=bool))
            assert lives_lost.shape == (2,) and lives_lost.dtype == np.bool_ and not truncated.any()
            lost += int(lives_lost[i])
            if terminated[i]:
                assert not lives_lost[i] and lost == 4
                assert (infos["episode"]["r"][i], infos["episode"]["l"][i]) == (score, length)
                break
        else:
            pytest.fail("the game did not end")
    assert not any("life_lost" in out[-1] and not out[-1]["life_lost"].any() for out in breakout[1:])
    assert not any(out[-1] for out in breakout[1:] if not (out[2] | out[3]).any() and "life_lost" not in out[-1])


@pytest.mark.parametrize("cls", CLASSES)
def test_a_life_lost_on_the_step_of_a_truncation_is_not_reported(breakout, cls):
    """The game would have continued. The five lives of the next episode do not count as lost either."""
    lost = [step for step, out in enumerate(breakout[1:], 1) if out[-1].get("life_lost", np.zeros(2))[0]]
    env = cls(BREAKOUT, 1, max_episode_frames=4 * lost[1])
    env.reset(seed=env_seeds(0, 1))
    actions = np.random.default_rng(0).integers(4, size=(190, 2))[: lost[1] + 5, :1]  # those of environment 0
    outs = [env.step(row) for row in actions]
    assert [step for step, out in enumerate(outs, 1) if "life_lost" in out[-1]] == lost[:1]
    assert [step for step, out in enumerate(outs, 1) if out[3][0]] == [lost[1]]


def test_noops_begin_every_episode(both):
    for noop_max, env in ((0, both[AtariVectorEnv]), (4, AtariVectorEnv(BREAKOUT, 2, noop_max=4))):
        env.reset(seed=1)
        counts = []
        for _ in range(16):
            counts.append([emulator.getEpisodeFrameNumber() for emulator in env._emulators])
            env.reset()
        drawn = np.array(counts)
        assert set(drawn.ravel().tolist()) == (set(range(1, noop_max + 1)) or {0})
        assert not noop_max or not np.array_equal(drawn[:, 0], drawn[:, 1])


# resizing


@settings(max_examples=25)
@given(
    height=st.sampled_from([84, 105, 168, 210, 214, 230, 250]),
    width=st.sampled_from([84, 160]),
    seed=st.integers(0, 99),
)
def test_resizing_is_the_area_mean(height, width, seed):
    rng = np.random.default_rng(seed)
    assert_resized(area_resize(image := rng.integers(0, 256, (height, width), dtype=np.uint8)), image)
    assert_resized(area_resize(image := rng.choice(np.array([0, 255], dtype=np.uint8), (height, width))), image)


@pytest.mark.parametrize("height", [210, 250])
def test_resizing_keeps_constants(height):
    for value in range(256):
        assert (area_resize(np.full((height, 160), value, dtype=np.uint8)) == value).all()


def test_resizing_by_whole_numbers_rounds_half_to_even():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (168, 168), dtype=np.uint8)
    blocks = image.reshape(84, 2, 84, 2).sum((1, 3))
    quarter = blocks // 4 + (blocks % 4 == 3) + ((blocks % 4 == 2) & (blocks // 4 % 2 == 1))
    assert (blocks % 4 == 2).sum() > 1000
    assert np.array_equal(area_resize(image), quarter)
    same = image[:84, :84]
    assert np.array_equal(area_resize(same), same)


# seeds


@pytest.mark.parametrize("cls", CLASSES)
def test_equal_seeds_give_equal_results(both, cls):
    env = both[cls]
    first = play(env, 40, seed=3)
    env.reset(seed=np.array(env_seeds(3, 2)))  # from the middle of an episode
    assert equal(first[1:], play(env, 40, seed=3, start=False))
    env.reset(seed=np.int64(4))
    assert not equal(first[1:], play(env, 40, seed=3, start=False))
    env.reset()  # continues the streams
    second = play(env, 40, seed=3, start=False)
    assert not equal(first[1:], second)


def test_environments_differ_and_do_not_depend_on_their_number(both):
    def frames(env, seeds):
        env.reset(seed=seeds)
        return np.stack([env.step(np.full(len(seeds), 1 + step // 3 % 3))[0] for step in range(40)])

    together, one = frames(both[AtariVectorEnv], [0, 2**31 - 1]), AtariVectorEnv(BREAKOUT)
    alone = [frames(one, [seed]) for seed in (0, 2**31 - 1)]  # 0 is a valid seed
    assert all(np.array_equal(alone[i][:, 0], together[:, i]) for i in range(2))
    assert not np.array_equal(together[:, 0], together[:, 1])


def test_the_global_random_stream_is_not_used():
    before = np.random.get_state()[1].copy()
    play(AtariVectorEnv(PONG, noop_max=3), 5)
    assert np.array_equal(np.random.get_state()[1], before)


# saving


def assert_plain(value):
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            assert_plain(item)
    else:
        assert value is None or type(value) in (int, float, bool, str, np.ndarray), type(value)


def test_a_saved_environment_continues_exactly():
    """Sticky actions, in the middle of episodes of 30 steps, in the same instance and in a fresh one."""
    rules = {"noop_max": 7, "mode": 12, "difficulty": 1, "max_episode_frames": 120}
    make = lambda: AtariVectorEnv(BREAKOUT, 2, **rules)  # noqa: E731
    env, fresh = make(), make()
    play(env, 44, seed=2)
    state = env.state_dict()
    assert_plain(state)
    written = pickle.dumps(state)
    ahead = play(env, 50, seed=8, start=False)
    assert sum(out[3].sum() for out in ahead) >= 2 and any(out[1].any() or "life_lost" in out[-1] for out in ahead)
    end = env.state_dict()
    for other in (fresh, env):
        other.load_state_dict(pickle.loads(written))
        assert np.array_equal(other.observation(), state["frames"][:, None])
        assert equal(ahead, play(other, 50, seed=8, start=False))
        np.testing.assert_equal(other.state_dict(), end)
    env.load_state_dict(state)
    assert equal(ahead[:20], play(env, 20, seed=8, start=False))
    np.testing.assert_equal(state, pickle.loads(written))  # no run has changed the saved state
    env.load_state_dict({**state, "played": [actions * 0 for actions in state["played"]]})  # control: other actions
    assert not equal(ahead, play(env, 50, seed=8, start=False))


def test_the_previous_action_is_restored_too(both):
    """It is not in the emulator's own state: without it one in eight of these would part at the first sticky frame."""
    env, other = both[AtariVectorEnv], AtariVectorEnv(BREAKOUT, 2)
    for seed in range(6):
        play(env, 15 + seed, seed=seed)
        other.load_state_dict(env.state_dict())
        assert equal(play(env, 20, seed=8, start=False), play(other, 20, seed=8, start=False))


def test_a_state_from_before_the_first_reset_can_be_loaded():
    env, other = AtariVectorEnv(PONG), AtariVectorEnv(PONG)
    other.reset(seed=3)
    other.load_state_dict(env.state_dict())
    for ask in (lambda: other.step(np.array([0])), other.observation, other.render):
        with pytest.raises(gymnasium.error.ResetNeeded):
            ask()
    for one in (env, other):  # both begin as if they had never been reset
        one.reset()
    assert equal(play(env, 15, start=False), play(other, 15, start=False))


@pytest.mark.parametrize("cls", CLASSES)
def test_the_state_of_another_environment_is_refused(both, cls):
    env, other = both[cls], both[CLASSES[cls is AtariVectorEnv]]
    env.reset(seed=0)
    other.reset(seed=0)
    before = env.state_dict()
    assert set(before["config"]) == set(env.rules) and env.rules["num_envs"] == 2
    changed = [{**before, "config": {**before["config"], name: "another"}} for name in env.rules]
    for state in (other.state_dict(), {"stack": 1}, *changed):
        with pytest.raises(ValueError, match="this state is of an environment built with"):
            env.load_state_dict(state)
    np.testing.assert_equal(env.state_dict(), before)


def test_the_threaded_class_starts_new_episodes_when_it_is_resumed():
    make = lambda: ThreadedAtariVectorEnv(BREAKOUT, 1, noop_max=4)  # noqa: E731
    env, other = make(), make()
    assert not env.resumes_exactly and AtariVectorEnv.resumes_exactly
    start = play(env, 40, seed=2)
    saved = env.state_dict()
    assert_plain(saved)
    written = pickle.dumps(saved)
    rest = play(env, 40, seed=2, start=False)
    runs = []
    for resumed in (other, env):  # a fresh instance, and one in the middle of something
        resumed.load_state_dict(pickle.loads(written))
        runs.append((resumed.observation(), play(resumed, 40, seed=2, start=False)))
    assert equal(*runs)
    different = [start[1:], rest, runs[0][1]]
    for _ in range(2):  # a second and a third time
        env.load_state_dict(other.state_dict())
        different.append(play(env, 40, seed=2, start=False))
        env, other = other, env
    assert not any(equal(a, b) for k, a in enumerate(different) for b in different[:k])
    assert other.state_dict()["resumptions"] == 3 and other.state_dict()["seeds"] == env_seeds(2, 1)
    other.reset(seed=2)
    assert other.state_dict()["resumptions"] == 0 and equal(start[1:], play(other, 40, seed=2, start=False))
    np.testing.assert_equal(saved, pickle.loads(written))


def test_episode_statistics_restart_in_the_threaded_class():
    env = ThreadedAtariVectorEnv(SEAQUEST, 1, max_episode_frames=40)
    play(env, 7)
    env.load_state_dict(env.state_dict())
    outs = play(env, 10, seed=4, start=False)
    assert [out[3].all() for out in outs] == [False] * 9 + [True]
    assert outs[-1][-1]["episode"]["l"].tolist() == [10]
    assert np.array_equal(outs[-1][-1]["episode"]["r"], sum(out[1] for out in outs))


def test_a_threaded_environment_that_was_never_seeded_cannot_be_resumed():
    env = ThreadedAtariVectorEnv(BREAKOUT, 1)
    with pytest.raises(ValueError, match="never seeded"):
        env.load_state_dict(env.state_dict())


# arguments


def test_modes_and_difficulties_reach_the_emulator():
    envs = [AtariVectorEnv(BREAKOUT, **rules) for rules in ({}, {"mode": 12}, {"difficulty": 1})]
    seen = [env.reset(seed=0)[0] for env in envs]
    for env in envs:
        play(env, 20, seed=0, start=False)  # through starts of episodes too
    settings = [
        {(state.getCurrentMode(), state.getDifficulty()) for state in (e.cloneState() for e in env._emulators)}
        for env in envs
    ]
    assert settings == [{(0, 0)}, {(12, 0)}, {(0, 1)}]
    assert len({frame.tobytes() for frame in seen}) == 3


def test_the_default_mode_is_the_first_even_if_that_is_not_0():
    env = AtariVectorEnv("ALE/AirRaid-v5")
    env.reset(seed=0)
    assert env._emulators[0].getAvailableModes()[0] == env._emulators[0].cloneState().getCurrentMode() == 1


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"mode": 5}, r"ALE/Breakout-v5 has no mode 5: there are \[0, 4, 8, 12, .*44\]"),
        ({"difficulty": 2}, r"ALE/Breakout-v5 has no difficulty 2: there are \[0, 1\]"),
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"sticky_action_prob": 1.1}, "sticky_action_prob"),
        ({"sticky_action_prob": float("nan")}, "sticky_action_prob"),
        ({"noop_max": -1}, "noop_max must be at least 0, got -1"),
        ({"max_episode_frames": 3}, "max_episode_frames at least 4, got 3"),
    ],
)
def test_invalid_arguments_raise(rules, message):
    with pytest.raises(ValueError, match=message):
        AtariVectorEnv(BREAKOUT, **rules)


def test_threads_choose_the_class_and_exclude_modes():
    env = atari_env(BREAKOUT, mode=4)
    assert type(env) is AtariVectorEnv and env.rules["mode"] == 4
    env = atari_env(BREAKOUT, threads=2, mode=None, noop_max=3)
    assert type(env) is ThreadedAtariVectorEnv and env.rules["threads"] == 2 and env.rules["noop_max"] == 3
    for name, value in (("mode", 0), ("difficulty", 1)):
        with pytest.raises(ValueError, match=f"does not support {name}: use threads=0"):
            atari_env(BREAKOUT, threads=1, **{name: value})
    with pytest.raises(ValueError, match="threads must be at least 1"):
        atari_env(BREAKOUT, threads=-1)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("ALE/Brekout-v5", "similar: .*ALE/Breakout-v5"),
        ("Breakout-v5", "similar: .*ALE/Breakout-v5"),
        ("ALE/Breakout-v4", "similar: .*ALE/Breakout-v5"),
        ("CartPole-v1", "is not an Atari game: ids are ALE/<Game>-v5"),  # Gymnasium knows it
        ("MinAtar/Breakout-v1", "is not an Atari game.*dqn_minatar.py"),
    ],
)
def test_unknown_games_are_refused(env_id, message):
    with pytest.raises(ValueError, match=message):
        AtariVectorEnv(env_id)


def test_roms_exist():
    assert rom("ALE/SpaceInvaders-v5").stem == "space_invaders" and rom("ALE/SpaceInvaders-v5").is_file()


def test_invalid_actions_raise_before_any_environment_moves(both):
    for env in both.values():
        env.reset(seed=0)
    before = both[AtariVectorEnv].state_dict()
    for actions in ([0], [0, 4], [0, -1], [0.0, 1.0], [[0], [1]], [True, False]):
        for env in both.values():
            with pytest.raises(ValueError, match="actions must"):
                env.step(np.array(actions))
    np.testing.assert_equal(both[AtariVectorEnv].state_dict(), before)
    for kind in (np.uint8, np.int32):  # and so nothing has moved in the other
        assert_alike(*(env.step(np.array([3, 1], dtype=kind)) for env in both.values()))


@pytest.mark.parametrize("cls", CLASSES)
def test_with_num_envs_keeps_the_rules(cls):
    more = {"mode": 4, "difficulty": 1} if cls is AtariVectorEnv else {"threads": 2}
    rules = {
        "sticky_action_prob": 0.5,
        "full_action_space": True,
        "noop_max": 3,
        "max_episode_frames": 999,
        **more,
    }
    env = cls(BREAKOUT, 1, **rules)
    other = env.with_num_envs(2)
    assert type(other) is cls and other.num_envs == 2 and env.rules == {**env.rules, **rules}
    assert other.rules == {**env.rules, "num_envs": 2}
    assert other.single_action_space.n == 18
    env.rules["noop_max"] = 4
    assert env.rules["noop_max"] == 3


@pytest.mark.parametrize("cls", CLASSES)
def test_spaces_contain_what_is_returned(both, cls):
    env = both[cls]
    assert env.single_action_space.n == 4
    assert env.single_observation_space == gymnasium.spaces.Box(0, 255, (1, 84, 84), np.uint8)
    obs, infos = env.reset(seed=0)
    assert infos == {} and env.observation_space.contains(obs) and obs.flags["C_CONTIGUOUS"]
    for _ in range(5):
        obs, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs) and obs.flags["C_CONTIGUOUS"]
        assert (rewards.shape, rewards.dtype) == ((2,), np.float64)
        assert (terminated.shape, terminated.dtype) == (truncated.shape, truncated.dtype) == ((2,), np.bool_)


def test_render_draws_the_first_environment(both):
    env, threaded = both.values()
    assert equal(env.reset(seed=0), threaded.reset(seed=0))
    frame = env.render()
    assert (frame.shape, frame.dtype) == ((210, 160, 3), np.uint8)
    assert np.array_equal(frame, env._emulators[0].getScreenRGB()) and len(np.unique(frame.reshape(-1, 3), axis=0)) > 5
    assert np.array_equal(threaded.render(), np.repeat(env.observation()[0, 0, :, :, None], 3, axis=2))


def test_emulators_print_no_banner(capfd):
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Info)
    env = AtariVectorEnv(BREAKOUT)
    env.reset(seed=0)
    assert capfd.readouterr() == ("", "")


def test_gymnasium_s_check_env_passes():
    env = SingleEnv(StackFrames(AtariVectorEnv(BREAKOUT, max_episode_frames=40)))
    env.spec = gymnasium.envs.registration.EnvSpec(id="Screen-v0")
    check_env(env, skip_render_check=True, skip_close_check=True)
