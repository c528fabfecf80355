"""Lists of Atari games."""

import ale_py
import gymnasium as gym

from envs.games import HIGH_UTD_GAMES


def test_the_paper_s_games_exist_and_none_is_listed_twice():
    gym.register_envs(ale_py)
    assert len(set(HIGH_UTD_GAMES)) == len(HIGH_UTD_GAMES) == 20
    assert [name for name in HIGH_UTD_GAMES if f"ALE/{name}-v5" not in gym.registry] == []
