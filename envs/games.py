"""Which Atari games: the 20 of the paper's experiments at one update per step."""

from __future__ import annotations

HIGH_UTD_GAMES = (
    "Asterix", "SpaceInvaders", "Breakout", "Pong", "Qbert", "DemonAttack", "Seaquest", "WizardOfWor", "RoadRunner",
    "BeamRider", "Frostbite", "CrazyClimber", "Assault", "Krull", "Boxing", "Jamesbond", "Kangaroo", "UpNDown",
    "Gopher", "Hero",
)  # fmt: skip
"""Lyle et al. 2025, App. A.3, in their order; the environment is ALE/<name>-v5."""
