"""Which Atari games: the 57 of the literature, and the 20 of the paper's experiments at one update per step."""

from __future__ import annotations

import gymnasium

HIGH_UTD_GAMES = (
    "Asterix", "SpaceInvaders", "Breakout", "Pong", "Qbert", "DemonAttack", "Seaquest", "WizardOfWor", "RoadRunner",
    "BeamRider", "Frostbite", "CrazyClimber", "Assault", "Krull", "Boxing", "Jamesbond", "Kangaroo", "UpNDown",
    "Gopher", "Hero",
)  # fmt: skip
"""Lyle et al. 2025, App. A.3, in their order; the environment is ALE/<name>-v5."""

ATARI_57 = (
    "Alien", "Amidar", "Assault", "Asterix", "Asteroids", "Atlantis", "BankHeist", "BattleZone", "BeamRider", "Berzerk",
    "Bowling", "Boxing", "Breakout", "Centipede", "ChopperCommand", "CrazyClimber", "Defender", "DemonAttack",
    "DoubleDunk", "Enduro", "FishingDerby", "Freeway", "Frostbite", "Gopher", "Gravitar", "Hero", "IceHockey",
    "Jamesbond", "Kangaroo", "Krull", "KungFuMaster", "MontezumaRevenge", "MsPacman", "NameThisGame", "Phoenix",
    "Pitfall", "Pong", "PrivateEye", "Qbert", "Riverraid", "RoadRunner", "Robotank", "Seaquest", "Skiing", "Solaris",
    "SpaceInvaders", "StarGunner", "Surround", "Tennis", "TimePilot", "Tutankham", "UpNDown", "Venture", "VideoPinball",
    "WizardOfWor", "YarsRevenge", "Zaxxon",
)  # fmt: skip
"""Hessel et al. 2018, Table 4: those of the low update-to-data experiments."""


def script_for(env_id: str) -> str:
    """The script for an environment that another script was given, as the end of a message; empty if it is not known.

    Atari's older ids, such as BreakoutNoFrameskip-v4, count as Atari.
    """
    if env_id.startswith("MinAtar/"):
        return "; agents/dqn_minatar.py and agents/ppo_minatar.py are for MinAtar"
    if env_id.startswith(("ALE/", "rewarm/")) or "NoFrameskip-" in env_id:
        return "; agents/dqn_atari.py, agents/ppo_atari.py and agents/rainbow_atari.py are for Atari"
    return f"; agents/ppo_control.py is for {env_id}" if env_id in gymnasium.registry else ""
