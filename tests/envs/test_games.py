"""Lists of Atari games."""

import ale_py
import gymnasium as gym
import pytest

from envs.games import HIGH_UTD_GAMES, script_for


def test_the_paper_s_games_exist_and_none_is_listed_twice():
    gym.register_envs(ale_py)
    assert len(set(HIGH_UTD_GAMES)) == len(HIGH_UTD_GAMES) == 20
    assert [name for name in HIGH_UTD_GAMES if f"ALE/{name}-v5" not in gym.registry] == []


@pytest.mark.parametrize(
    ("env_id", "script"),
    [
        ("MinAtar/Breakout-v1", "agents/dqn_minatar.py"),
        ("ALE/Breakout-v5", "agents/rainbow_atari.py"),
        ("BreakoutNoFrameskip-v4", "agents/ppo_atari.py"),
        ("rewarm/Catch-v0", "agents/dqn_atari.py"),
        ("CartPole-v1", "agents/ppo_control.py"),
    ],
)
def test_the_script_for_an_environment_is_named(env_id, script):
    assert script in script_for(env_id)
    assert script_for("Nothing-v9") == ""
