"""A vector environment without its batch axis."""

import gymnasium
import numpy as np
import pytest

from envs.shifts import ScaleRewards
from envs.timetables import AtSteps
from tests.envs.echo import EchoEnv
from tests.envs.single import SingleEnv


def test_the_end_of_an_episode_waits_for_a_reset():
    env = SingleEnv(ScaleRewards(EchoEnv(1, length=3), AtSteps([5]), values=(1.0, 2.0)))
    obs, info = env.reset(seed=4)
    assert obs.shape == (2, 2, 2) and info["shift"]["rewards"]["task"] == 0
    for _ in range(2):
        obs, reward, terminated, truncated, info = env.step(np.int64(3))
        assert (reward, terminated, truncated, info) == (3.0, False, False, {})
    obs, reward, terminated, truncated, info = env.step(1)
    assert (terminated, truncated) == (True, False) and obs[0, 0, 1] == 3
    assert info == {"episode": {"r": 7.0, "l": 3}}
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    obs, info = env.reset()
    assert obs[0, 0, 1] == 0 and env.env.env.seeds == [4]  # the episode that was waiting
    env.step(0)
    obs, _, terminated, truncated, info = env.step(1)
    assert (terminated, truncated) == (False, True) and info["shift"]["rewards"]["task"] == 1
    assert obs[0, 0, 1] == 2
    env.reset(seed=5)
    assert env.env.env.seeds == [4, None, 5]


def test_invalid_arguments_and_calls_raise():
    with pytest.raises(ValueError, match="num_envs 1"):
        SingleEnv(EchoEnv(2))
    with pytest.raises(gymnasium.error.ResetNeeded):
        SingleEnv(EchoEnv(1)).step(0)


def test_environments_that_report_no_episodes_are_accepted():
    env = SingleEnv(EchoEnv(1, length=2, objects=True))
    env.reset(seed=1)
    env.step(0)
    obs, _, terminated, _, info = env.step(0)
    assert terminated and info == {} and obs[0, 0, 1] == 2
