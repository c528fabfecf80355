"""Lists of Atari games."""

import ale_py
import gymnasium as gym

from envs.games import ATARI_57, HIGH_UTD_GAMES


def test_the_lists_name_games_that_the_emulator_has_each_once():
    gym.register_envs(ale_py)
    assert len(set(ATARI_57)) == len(ATARI_57) == 57 and list(ATARI_57) == sorted(ATARI_57)
    assert len(set(HIGH_UTD_GAMES)) == len(HIGH_UTD_GAMES) == 20 and set(HIGH_UTD_GAMES) < set(ATARI_57)
    assert [name for name in ATARI_57 if f"ALE/{name}-v5" not in gym.registry] == []
