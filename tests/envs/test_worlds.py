"""Worlds from one description."""

import numpy as np
import pytest

from envs.minatar import MinAtarVectorEnv
from envs.shifts import EnvSequence, RepeatActions, Shift
from envs.timetables import AtSteps, EverySteps
from envs.worlds import World, evaluation_world

GAMES = ("MinAtar/Breakout-v0", "MinAtar/Seaquest-v0", "MinAtar/Freeway-v0")
SETTINGS = {"rewards": (1.0, -1.0), "sticky": (0.1, 0.5), "noise": (0.0, 0.2)}


def test_none_is_the_bare_environment():
    env = World(GAMES[:1], num_envs=3).make()
    assert type(env) is MinAtarVectorEnv and env.num_envs == 3
    assert env._config["sticky_action_prob"] == 0.1


def test_a_chain_of_games_pads_to_the_widest():
    env = World(GAMES, 2, "games", EverySteps(10)).make()
    assert isinstance(env, EnvSequence) and env.single_observation_space.shape == (10, 10, 10)
    assert env.reset(seed=1)[0][:, 4:].sum() == 0  # Breakout has four channels
    seen = {env.step(np.zeros(2, dtype=int))[-1].get("shift", {}).get("env", {}).get("task") for _ in range(15)}
    assert seen == {None, 0, 1, 2}


@pytest.mark.parametrize("kind", ["actions", "channels", "pixels", "rewards", "sticky", "noise"])
def test_every_kind_changes_and_can_be_evaluated_in(kind):
    given = {"values": SETTINGS[kind]} if kind in SETTINGS else {"tasks": 3}
    env = World(GAMES[:1], 2, kind, AtSteps([10]), **given).make()
    assert isinstance(env, Shift)
    env.reset(seed=1)
    for _ in range(6):
        env.step(np.ones(2, dtype=int))
    assert env.task == 1
    test = evaluation_world(env, 5, max_episode_steps=20)
    test.reset(seed=2)
    assert test.num_envs == 5 and test.task == 1
    ended = np.zeros(5, dtype=bool)
    for _ in range(20):
        _, _, terminated, truncated, _ = test.step(np.zeros(5, dtype=int))
        ended |= terminated | truncated
    assert ended.all()


def test_sticky_is_all_there_is_of_it():
    env = World(GAMES[:1], 1, "sticky", AtSteps([10]), values=(0.3, 0.6)).make()
    assert isinstance(env, RepeatActions) and env.env._config["sticky_action_prob"] == 0.0


def test_evaluation_in_an_unchanging_world_is_the_bare_game():
    bare = World(GAMES[:1]).make()
    test = evaluation_world(bare, 4, max_episode_steps=50)
    twin = MinAtarVectorEnv(GAMES[0], 4, max_episode_steps=50)
    assert np.array_equal(test.reset(seed=5)[0], twin.reset(seed=5)[0])
    assert test._config == twin._config


def test_refusals():
    with pytest.raises(ValueError, match="stays in one"):
        World(GAMES, 1, "actions", EverySteps(10)).make()
    with pytest.raises(ValueError, match="all actions"):
        World(("MinAtar/Breakout-v1", "MinAtar/Seaquest-v1"), 1, "games", EverySteps(10)).make()
    with pytest.raises(ValueError, match="unknown MinAtar"):
        World(("MinAtar/Brakeout-v1",)).make()
    for unused in ({"timetable": EverySteps(10)}, {"tasks": 3}, {"values": (1.0, 2.0)}):
        with pytest.raises(ValueError, match=rf"\['{next(iter(unused))}'\] would change nothing"):
            World(GAMES[:1], **unused).make()
    with pytest.raises(ValueError, match=r"\['tasks'\] would change nothing with kind 'rewards'"):
        World(GAMES[:1], 1, "rewards", EverySteps(10), tasks=3, values=(1.0, 2.0)).make()
    with pytest.raises(TypeError, match="no world"):
        evaluation_world(object(), 1, 1)
