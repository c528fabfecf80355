"""What each shift changes: actions, observations, the game."""

from __future__ import annotations

import numpy as np
import pytest

from envs.minatar import MinAtarVectorEnv
from envs.shifts import CorruptObservations, EnvSequence, PermuteActions, PermuteObservations, RepeatActions
from envs.timetables import AtSteps, EverySteps, NoChange
from tests.envs.echo import EchoEnv
from tests.envs.rollouts import play


def test_actions_are_permuted_and_the_permutations_come_back_in_turn():
    env = PermuteActions(EchoEnv(num_envs=4, length=1000), EverySteps(4), tasks=3)
    env.reset(seed=5)
    maps = []
    for _ in range(7):
        obs = env.step(np.arange(4))
        maps.append(tuple(obs[1].astype(int)))  # rewards are the executed actions
    assert maps[0] == (0, 1, 2, 3) and all(sorted(m) == [0, 1, 2, 3] for m in maps)
    assert len(set(maps[:3])) == 3 and maps[3:6] == maps[:3] and maps[6] == maps[0]


def test_all_permutations_can_be_used_and_no_more():
    env = PermuteActions(EchoEnv(num_envs=3, actions=3, length=1000), EverySteps(3), tasks=6)
    env.reset(seed=5)
    assert len({tuple(env.step(np.arange(3))[1]) for _ in range(6)}) == 6
    with pytest.raises(ValueError, match="7 tasks, but 3 things have 6"):
        PermuteActions(EchoEnv(actions=3), EverySteps(3), tasks=7)


def test_permutations_depend_only_on_the_seed():
    def maps(seed, tasks, timetable):
        env = PermuteActions(EchoEnv(num_envs=4, length=1000), timetable, tasks=tasks)
        env.reset(seed=seed)
        return [tuple(env.step(np.arange(4))[1]) for _ in range(12)]

    assert maps(1, 3, EverySteps(4))[:3] == maps(1, 5, EverySteps(4))[:3]
    assert maps(1, 3, EverySteps(4))[:3] == maps(1, 3, EverySteps(8))[0:6:2]
    assert maps(1, 3, EverySteps(4)) != maps(2, 3, EverySteps(4))


def test_channels_and_pixels_are_permuted():
    for what, shape in (("channels", (6, 2, 2)), ("pixels", (2, 2, 2))):
        env = PermuteObservations(EchoEnv(channels=shape[0], length=1000), EverySteps(2), tasks=2, what=what)
        before = env.reset(seed=2)[0]
        after = env.step(np.array([0, 0]))[0]
        inner = env.env.seen()
        assert not np.array_equal(after, inner)
        for i in range(2):
            moved = after[i] if what == "channels" else after[i].reshape(shape[0], -1).T
            original = inner[i] if what == "channels" else inner[i].reshape(shape[0], -1).T
            assert sorted(map(bytes, moved)) == sorted(map(bytes, original))
        assert np.array_equal(before, EchoEnv(channels=shape[0]).seen())
        assert env.observation_space.contains(after)


def test_final_observations_are_permuted_like_all_others():
    bare, env = EchoEnv(channels=4, length=3), PermuteObservations(EchoEnv(channels=4, length=3), AtSteps([2]), tasks=2)
    env.reset(seed=2)
    first = env.step(np.array([0, 0]))[-1]["final_obs"]
    assert first[0, :, 0, 0].tolist() == [0, 10, 20, 30]  # of the old task
    order = (env.observation()[0, :, 0, 0] // 10).tolist()
    assert order != [0, 1, 2, 3]
    bare.reset()
    for _ in range(3):
        ours, theirs = env.step(np.array([1, 2])), bare.step(np.array([1, 2]))
    assert np.array_equal(ours[-1]["final_obs"], theirs[-1]["final_obs"][:, order])
    assert np.array_equal(ours[0], theirs[0][:, order])


def test_sticky_actions_repeat_the_executed_action_but_never_across_episodes():
    env = RepeatActions(EchoEnv(num_envs=500, length=10_000), NoChange(), values=(0.3,))
    env.reset(seed=1)
    previous, rng, repeated = None, np.random.default_rng(0), []
    for step in range(40):
        chosen = rng.integers(4, size=500)
        executed = env.step(chosen)[1].astype(int)
        if step == 0:
            assert np.array_equal(executed, chosen)
        else:
            differ = chosen != previous
            assert np.array_equal(executed[differ & (executed != chosen)], previous[differ & (executed != chosen)])
            repeated.append((executed[differ] == previous[differ]).mean())
        previous = executed
    assert abs(np.mean(repeated) - 0.3) < 0.02
    env = RepeatActions(EchoEnv(num_envs=2, length=1), NoChange(), values=(1.0,))
    env.reset(seed=1)
    assert env.step(np.array([1, 1]))[1].tolist() == [1.0, 1.0]
    assert env.step(np.array([2, 2]))[1].tolist() == [2.0, 1.0]  # environment 0 has begun a new episode


def test_noise_replaces_entries_with_the_given_probability():
    env = CorruptObservations(EchoEnv(num_envs=400, channels=20, length=3), EverySteps(400), values=(0.0, 0.25))
    obs = env.reset(seed=1)[0]
    assert np.array_equal(obs, env.env.seen())
    obs, *_, infos = env.step(np.zeros(400, dtype=int))
    share = (obs != env.env.seen()).mean()
    assert abs(share - 0.25 * 255 / 256) < 0.01
    assert np.array_equal(infos["final_obs"][:, :, 0, 0], env.env.seen()[:, :, 0, 0])  # of the old task, without noise
    other = env.step(np.zeros(400, dtype=int))[0]
    assert np.array_equal(other, env.env.seen())  # back to 0


def test_noise_on_zeros_and_ones_flips_half_of_the_replaced_entries():
    env = CorruptObservations(MinAtarVectorEnv("MinAtar/Breakout-v0", 50), NoChange(), values=(0.4,))
    obs = env.reset(seed=1)[0]
    assert obs.max() == 1 and abs((obs != env.env.observation()).mean() - 0.2) < 0.02
    for _ in range(200):
        obs, *_, infos = env.step(np.ones(50, dtype=int))
        assert env.observation_space.contains(obs)
        if "final_obs" in infos:
            going = ~infos["_final_obs"]
            assert np.array_equal(infos["final_obs"][going], obs[going])
    assert np.array_equal(env.observation(), obs)


def test_a_sequence_seeds_every_game_once_and_continues_its_stream():
    env = EnvSequence([EchoEnv(), EchoEnv(mark=5)], EverySteps(4))
    env.reset(seed=9)
    play(env, 5, start=False)
    assert [e.seeds for e in env._envs] == [[9, None], [9, None]]
    env.close()
    assert all(e.closed_by_us for e in env._envs)


def test_the_first_reset_without_a_seed_resets_every_environment_of_a_sequence():
    games = [PermuteActions(EchoEnv(mark=mark), NoChange()) for mark in (0, 5)]
    env = EnvSequence(games, EverySteps(8))
    env.reset()
    assert env.frozen_copy(lambda bare: EchoEnv(3, mark=bare.mark)).num_envs == 3
