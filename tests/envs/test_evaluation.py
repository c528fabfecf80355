"""Evaluation of a policy, and the inputs of a probe."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector.utils import batch_space

from envs.evaluation import play, play_episodes, uniform_observations
from envs.minatar import MinAtarVectorEnv
from envs.worlds import ScreenWorld
from tests.envs.echo import EchoEnv


class TwoGames:
    """Rewards of 1 and 10 a step; game 0 terminates every 2 steps, game 1 is truncated after 50. Keeps the actions."""

    num_envs, single_action_space = 2, gymnasium.spaces.Discrete(3)
    action_space = batch_space(single_action_space, 2)

    def reset(self, seed):
        self.seed, self.actions = seed, []
        return np.zeros((2, 4)), {}

    def step(self, actions):
        self.actions.append(actions.tolist())
        t = len(self.actions)
        terminated, truncated = np.array([t % 2 == 0, False]), np.array([False, t == 50])
        return np.full((2, 4), t), np.array([1.0, 10.0]), terminated, truncated, {}


def prefers(*values):
    """A policy that values the actions so in every environment."""
    return lambda obs: np.tile(values, (len(obs), 1))


def test_only_the_first_episode_of_each_environment_counts():
    env = TwoGames()
    assert play(env, prefers(1.0, 0.0, 2.0), seed=3).tolist() == [2.0, 500.0]
    assert env.seed == 3


def test_the_length_is_that_of_the_first_episode_too():
    returns, lengths = play_episodes(TwoGames(), prefers(1, 0, 0), seed=0)
    assert lengths.tolist() == [2, 50] and returns.tolist() == [2.0, 500.0]


def test_the_action_with_the_largest_value_is_taken_and_the_first_of_equal_ones():
    env = TwoGames()
    play(env, prefers(1.0, 0.0, 2.0), seed=3)
    assert {action for actions in env.actions for action in actions} == {2}
    play(env, prefers(0.0, 2.0, 2.0), seed=3)
    assert {action for actions in env.actions for action in actions} == {1}


def test_the_policy_sees_the_newest_observations():
    seen = []
    play(TwoGames(), lambda obs: seen.append(obs[0, 0]) or np.zeros((2, 3)), seed=3)
    assert seen == list(range(50))


@pytest.mark.parametrize(("epsilon", "greedy"), [(0.0, 100), (0.3, 80), (1.0, 33.3)])
def test_epsilon_is_the_share_of_uniformly_random_actions(epsilon, greedy):
    env, counts = TwoGames(), np.zeros(3)
    for seed in range(100):
        play(env, prefers(0.0, 1.0, 0.0), seed, epsilon=epsilon)
        counts += np.bincount(np.ravel(env.actions), minlength=3)
    assert counts.sum() == 10_000
    assert counts[1] / 100 == pytest.approx(greedy, abs=2.5)  # five standard errors at most
    assert abs(counts[0] - counts[2]) < 5 * np.sqrt(10_000)


def test_random_actions_follow_from_the_seed():
    env, actions = TwoGames(), []
    for seed in (1, 1, 2):
        play(env, prefers(0.0, 1.0, 0.0), seed, epsilon=0.5)
        actions.append(env.actions)
    assert actions[0] == actions[1] != actions[2]


def test_epsilon_draws_nothing_from_the_environment_s_streams():
    """A policy that is uniform and one that ignores epsilon see the same first frames."""
    env = MinAtarVectorEnv("MinAtar/Breakout-v1", 3, sticky_action_prob=0.0)
    returns = [play(env, prefers(1.0, 0.0, 0.0), 5, epsilon=epsilon).tolist() for epsilon in (0.0, 1e-12)]
    assert returns[0] == returns[1]


def test_every_fifth_observation_of_the_first_environment_is_kept():
    obs = uniform_observations(EchoEnv(1, length=1000), 7, seed=4)
    assert isinstance(obs, torch.Tensor) and obs.shape == (7, 2, 2, 2) and obs.dtype == torch.uint8
    assert obs[:, 0, 0, 1].tolist() == [0, 5, 10, 15, 20, 25, 30]
    assert torch.equal(uniform_observations(EchoEnv(1, length=1000), 1, seed=4), obs[:1])


def test_the_probe_s_policy_is_uniform_and_seeded():
    obs = uniform_observations(EchoEnv(1, length=10_000), 400, seed=4)
    actions = obs[1:, 0, 1, 0].numpy()
    counts = np.bincount(actions, minlength=4)
    assert ((counts - 399 / 4) ** 2 / (399 / 4)).sum() < 16.3  # 99.9 % point with 3 degrees of freedom
    assert torch.equal(uniform_observations(EchoEnv(1, length=10_000), 400, seed=4), obs)
    assert not torch.equal(uniform_observations(EchoEnv(1, length=10_000), 400, seed=5), obs)


def test_uniform_observations_of_the_environments_of_this_package():
    for env in (MinAtarVectorEnv("MinAtar/Breakout-v1"), ScreenWorld(("rewarm/Catch-v0",)).make()):
        obs = uniform_observations(env, 20, seed=1)
        assert obs.shape == (20, *env.single_observation_space.shape) and len(obs.unique(dim=0)) > 10
