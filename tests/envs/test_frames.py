"""envs.frames: the contract of single frames on a scripted game, and stacks on an echo environment."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation
from hypothesis import given
from hypothesis import strategies as st

from envs.catch import CatchVectorEnv
from envs.frames import SIZE, FrameVectorEnv, StackFrames
from envs.minatar import game_seed
from envs.shifts import PermuteObservations, ScaleRewards
from envs.timetables import AtSteps, EverySteps
from tests.envs.echo import EchoEnv
from tests.envs.rollouts import equal, play
from tests.envs.single import SingleEnv


class Scripted(FrameVectorEnv):
    """Every pixel of environment i is 100 * i + 10 * episode + step. Its episodes take lengths[i] steps; those of more
    than two lose a life in the second. Reward: the action."""

    def __init__(self, lengths, truncates=False):
        super().__init__(len(lengths), actions=5)
        self.lengths, self.truncates = np.array(lengths), truncates
        self.time, self.episode = np.zeros((2, len(lengths)), dtype=int)
        self.begun, self.played = [], []

    def drawn(self):
        values = 100 * np.arange(self.num_envs) + 10 * self.episode + self.time
        return np.broadcast_to(values.astype(np.uint8)[:, None, None], (self.num_envs, SIZE, SIZE)).copy()

    def _begin(self, seeds):
        self.begun.append(seeds)
        self.episode[:], self.time[:] = self.episode + 1, 0
        return self.drawn()

    def _play(self, actions):
        self.played.append(actions.tolist())
        self.time += 1
        final, ended, lost = self.drawn(), self.time == self.lengths, self.time == 2
        self.episode[ended] += 1
        self.time[ended] = 0
        over = (ended & False, ended) if self.truncates else (ended, ended & False)
        return self.drawn(), final, actions * 1.0, *over, lost & ~ended


def values(obs):
    """The one value of each frame [N, K, 84, 84]."""
    assert (obs.max((2, 3)) == obs.min((2, 3))).all()
    return obs[:, :, 0, 0].tolist()


# single frames


@pytest.mark.parametrize("truncates", [False, True])
def test_what_a_step_reports(truncates):
    env = Scripted([2, 3], truncates)
    obs, infos = env.reset(seed=1)
    assert values(obs) == [[10], [110]] and infos == {} and env.observation_space.contains(obs)
    obs, rewards, terminated, truncated, infos = env.step(np.array([3, 1]))
    assert values(obs) == [[11], [111]] and rewards.tolist() == [3.0, 1.0] and infos == {}
    assert not terminated.any() and not truncated.any()

    obs, rewards, terminated, truncated, infos = env.step(np.array([4, 2]))
    assert values(obs) == [[20], [112]] and rewards.dtype == np.float64
    assert (terminated.tolist(), truncated.tolist()) == ([not truncates, False], [truncates, False])
    assert infos.keys() == {"final_obs", "_final_obs", "episode", "_episode", "life_lost"}
    assert infos["life_lost"].tolist() == [False, True]  # environment 0 had its second step too, but its game is over
    assert values(infos["final_obs"]) == [[12], [112]] and env.observation_space.contains(infos["final_obs"])
    assert infos["_final_obs"].tolist() == infos["_episode"].tolist() == [True, False]
    assert infos["episode"]["r"].tolist() == [7.0, 0.0] and infos["episode"]["l"].tolist() == [2, 0]

    obs, _, terminated, truncated, infos = env.step(np.array([1, 4]))  # environment 1 ends
    assert values(obs) == [[21], [120]] and (terminated | truncated).tolist() == [False, True]
    assert values(infos["final_obs"]) == [[21], [113]] and "life_lost" not in infos
    assert infos["episode"]["r"].tolist() == [0.0, 7.0] and infos["episode"]["l"].tolist() == [0, 3]

    infos = env.step(np.array([0, 0]))[-1]  # the next episode's statistics begin at 0
    assert infos["episode"]["r"].tolist() == [1.0, 0.0] and infos["episode"]["l"].tolist() == [2, 0]


def test_a_reset_forgets_the_running_episodes():
    env = Scripted([9, 3])
    env.reset(seed=1)
    play(env, 2, start=False)
    assert values(env.reset()[0]) == [[20], [120]]
    for _ in range(3):
        infos = env.step(np.array([0, 2]))[-1]
    assert infos["episode"]["r"].tolist() == [0.0, 6.0] and infos["episode"]["l"].tolist() == [0, 3]


def test_every_environment_gets_its_own_seed():
    env = Scripted([2, 3])
    for seed in (7, np.int64(7), None, [3, 4], np.array([0, 2**31 - 1])):
        env.reset(seed=seed)
    spawned = [game_seed(7, i) % 2**31 for i in range(2)]
    assert env.begun == [spawned, spawned, None, [3, 4], [0, 2**31 - 1]]
    assert all(type(one) is int for seeds in env.begun if seeds for one in seeds)


@pytest.mark.parametrize("seed", [-1, [0], [0, 1, 2], [0, -1], [0, 2**31], [0, None], [0.5, 1]])
def test_invalid_seeds_raise(seed):
    env = Scripted([2, 3])
    with pytest.raises(ValueError, match="seed"):
        env.reset(seed=seed)
    assert env.begun == []


def test_options_are_refused():
    with pytest.raises(ValueError, match=r"Scripted.reset takes no options, got \['reset_mask'\]"):
        Scripted([2]).reset(options={"reset_mask": np.array([True])})


@pytest.mark.parametrize("actions", [[0], [0, 5], [0, -1], [0.0, 1.0], [[0], [1]], [True, False]])
def test_invalid_actions_raise_before_any_environment_moves(actions):
    env = Scripted([2, 3])
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must"):
        env.step(np.array(actions))
    assert env.played == [] and env._lengths.tolist() == [0, 0]
    for kind in (np.uint8, np.int32, np.int64):
        env.step(np.array([0, 4], dtype=kind))
    assert env.played == [[0, 4]] * 3


def test_step_and_observation_need_a_reset_first():
    env = Scripted([2])
    for ask in (lambda: env.step(np.array([0])), env.observation, env.render):
        with pytest.raises(gymnasium.error.ResetNeeded):
            ask()
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        Scripted([])


def test_spaces_and_drawing():
    env = Scripted([4, 4])
    assert env.single_observation_space == Box(0, 255, (1, 84, 84), np.uint8)
    assert env.single_action_space == Discrete(5) and env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    env.reset(seed=0)
    env.step(np.array([0, 0]))
    frame = env.render()
    assert (frame.shape, frame.dtype) == ((84, 84, 3), np.uint8) and (frame == 11).all()


def test_returned_arrays_are_safe_to_keep():
    env, twin = Scripted([2, 3]), Scripted([2, 3])
    outs, theirs = [env.reset(seed=0)], [twin.reset(seed=0)]
    for _ in range(12):
        outs.append(env.step(np.array([1, 2])))
        theirs.append(twin.step(np.array([1, 2])))
        for array in (outs[-1][0], outs[-1][-1].get("final_obs", outs[-1][0])):
            kept = array.copy()
            array[:] = 77  # what a learner does with its arrays does not reach the environment
            assert np.array_equal(env.observation(), theirs[-1][0])
            array[:] = kept
    assert equal(outs, theirs)


# stacks


def times(stack):
    """The echoed steps of a stack [N, K, 2, 2]; "." where there is no frame."""
    assert ((stack[:, :, 0, 0] == 7) | (stack == 0).all((2, 3))).all()
    return ["".join("." if frame[0, 0] == 0 else str(frame[0, 1]) for frame in frames) for frames in stack]


@pytest.mark.parametrize("objects", [False, True])
@pytest.mark.parametrize("truncates", [False, True])
def test_stacks_by_hand(truncates, objects):
    env = StackFrames(EchoEnv(channels=1, mark=7, length=4, truncates=truncates, objects=objects), 3)
    obs, infos = env.reset(seed=5)
    assert times(obs) == ["..0", "..0"] and infos == {} and env.env.seeds == [5]
    seen, finals = [], {}
    for step in range(1, 10):
        obs, rewards, *_, infos = env.step(np.array([1, 2]))
        assert rewards.tolist() == [1.0, 2.0]
        assert obs[:, -1, 1, 1].tolist() == [0, 1]  # each environment has its own frames
        seen.append(times(obs))
        assert np.array_equal(env.observation(), obs)
        if "final_obs" in infos:
            finals[step] = (times(infos["final_obs"]), infos["_final_obs"].tolist())
            going = ~infos["_final_obs"]
            assert infos["final_obs"].dtype == np.uint8 and np.array_equal(infos["final_obs"][going], obs[going])
    assert [first for first, _ in seen] == [".01", "012", "123", "..0", ".01", "012", "123", "..0", ".01"]  # 4 steps
    assert [second for _, second in seen] == [".01", "012", "123", "234", "..0", ".01", "012", "123", "234"]  # 5
    assert finals == {
        4: (["234", "234"], [True, False]),
        5: ([".01", "345"], [False, True]),
        8: (["234", "123"], [True, False]),
    }
    assert times(env.reset()[0]) == ["..0", "..0"]


def test_a_stack_of_one_frame_equals_the_bare_environment():
    make = lambda: EchoEnv(channels=1, mark=7, length=3)  # noqa: E731
    env = StackFrames(make(), 1)
    assert equal(play(env, 20), play(make(), 20))
    assert env.observation_space == make().observation_space


def test_a_stack_longer_than_the_episode_keeps_its_zeros():
    env = StackFrames(EchoEnv(1, channels=1, mark=7, length=2), 5)
    assert times(env.reset(seed=1)[0]) == ["....0"]
    assert times(env.step(np.array([0]))[0]) == ["...01"]
    obs, *_, infos = env.step(np.array([0]))
    assert times(obs) == ["....0"] and times(infos["final_obs"]) == ["..012"]


@given(frames=st.integers(1, 5), length=st.integers(1, 7), steps=st.integers(1, 25))
def test_stacks_hold_the_last_frames_of_the_episode(frames, length, steps):
    """A list of each episode's frames, kept by hand."""
    bare, env = EchoEnv(3, channels=1, mark=7, length=length), StackFrames(EchoEnv(3, 1, 4, length, 7), frames)
    obs, stack = bare.reset(seed=1)[0], env.reset(seed=1)[0]
    history = [[obs[i, 0]] for i in range(3)]

    def stacked(kept):
        return np.stack([np.zeros((2, 2))] * max(0, frames - len(kept)) + kept[-frames:])

    rng = np.random.default_rng(length)
    for _ in range(steps):
        actions = rng.integers(4, size=3)
        obs, _, terminated, _, infos = bare.step(actions)
        stack, *_, ours = env.step(actions)
        for i in range(3):
            last = infos["final_obs"][i, 0] if terminated[i] else obs[i, 0]
            final = stacked([*history[i], last])
            history[i] = [obs[i, 0]] if terminated[i] else [*history[i], last]
            assert np.array_equal(stack[i], stacked(history[i]))
            if terminated.any():
                assert np.array_equal(ours["final_obs"][i], final)


def test_a_change_of_the_task_clears_the_stack():
    inner = ScaleRewards(EchoEnv(channels=1, mark=7, length=100), EverySteps(8), values=(1.0, 2.0))
    env = StackFrames(inner, 3)
    assert env.reset(seed=1)[1]["shift"]["rewards"]["task"] == 0
    for _ in range(4):
        obs, rewards, _, truncated, infos = env.step(np.array([1, 3]))
    assert truncated.all() and infos["shift"]["rewards"]["changed"] and rewards.tolist() == [1.0, 3.0]
    assert times(infos["final_obs"]) == ["234", "234"] and times(obs) == ["..0", "..0"]
    assert infos["episode"]["r"].tolist() == [4.0, 12.0]
    assert env.step(np.array([1, 3]))[1].tolist() == [2.0, 6.0]


def test_stacks_equal_those_of_gymnasium():
    """FrameStackObservation with zeros, over several episodes of Catch, including last observations."""
    ours = SingleEnv(StackFrames(CatchVectorEnv(1), 4))
    theirs = FrameStackObservation(SingleEnv(CatchVectorEnv(1)), 4, padding_type="zero")
    assert np.array_equal(ours.reset(seed=2)[0], theirs.reset(seed=2)[0][:, 0])
    rng, ends = np.random.default_rng(0), 0
    for _ in range(250):
        action = rng.integers(3)
        mine, his = ours.step(action), theirs.step(action)
        assert np.array_equal(mine[0], his[0][:, 0]) and mine[1:4] == his[1:4]
        if mine[3]:
            assert np.array_equal(ours.reset()[0], theirs.reset()[0][:, 0])
            ends += 1
    assert ends == 2


def test_spaces_of_stacks():
    env = StackFrames(CatchVectorEnv(3))
    assert env.single_observation_space == Box(0, 255, (4, 84, 84), np.uint8)
    assert env.observation_space.shape == (3, 4, 84, 84) and env.observation_space.contains(env.reset(seed=0)[0])
    assert env.frames == 4


def test_stacks_are_safe_to_keep():
    env, twin = (StackFrames(EchoEnv(channels=1, mark=7), 3) for _ in range(2))
    outs, unchanged = play(env, 1), play(twin, 1)
    outs[0][0][:] = outs[1][0][:] = env.observation()[:] = 77
    ours, theirs = play(env, 20, start=False), play(twin, 20, start=False)
    assert equal(ours, theirs)
    assert unchanged[0][0].max() < 77


def test_a_saved_stack_continues_exactly():
    make = lambda: StackFrames(  # noqa: E731
        PermuteObservations(EchoEnv(channels=1, mark=7, length=4), AtSteps([30]), what="pixels"), 3
    )
    env, other = make(), make()
    play(env, 6)
    state = env.state_dict()
    ahead = play(env, 20, seed=8, start=False)
    play(other, 3, seed=9)
    other.load_state_dict(state)
    assert times(other.observation()) == [".01" if i else "012" for i in (0, 1)]
    assert equal(ahead, play(other, 20, seed=8, start=False))
    other.load_state_dict(state)  # neither run has changed the saved state
    assert equal(ahead, play(other, 20, seed=8, start=False))


def test_a_state_of_another_stack_is_refused():
    env = StackFrames(EchoEnv(channels=1), 3)
    env.reset(seed=1)
    before = env.state_dict()
    for other in (StackFrames(EchoEnv(channels=1), 4), StackFrames(EchoEnv(3, channels=1), 3)):
        with pytest.raises(ValueError, match="this state is of a stack"):
            env.load_state_dict(other.state_dict())
    np.testing.assert_equal(env.state_dict(), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StackFrames(EchoEnv(channels=2)), r"observations \[1, H, W\]"),
        (lambda: StackFrames(EchoEnv(channels=1), 0), "frames must be at least 1, got 0"),
        (
            lambda: StackFrames(SyncVectorEnv([lambda: SingleEnv(CatchVectorEnv())])),
            "SAME_STEP",
        ),
        (
            lambda: StackFrames(
                SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")], autoreset_mode=AutoresetMode.SAME_STEP)
            ),
            r"observations \[1, H, W\]",
        ),
    ],
)
def test_invalid_arguments_of_stacks_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()
