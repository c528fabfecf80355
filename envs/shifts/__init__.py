"""Shifts: wrappers of vector environments that change one thing at the times of a timetable.

    env = MinAtarVectorEnv("MinAtar/Breakout-v1", 8)
    env = PermuteActions(env, EverySteps(200_000), tasks=2)        # A B A B ...
    env = ScaleRewards(env, AtSteps([500_000]), values=(1.0, -1.0))

They nest. `envs.shifts.base` says how a change happens, and what `infos` reports of it.

* `Shift` is their base class: counts agent steps, truncates episodes at a change, saves and restores.
* `EnvSequence` changes the game: one environment after another, or one game's modes or difficulties.
* `PermuteActions` permutes the actions.
* `RepeatActions` changes the probability of sticky actions.
* `PermuteObservations` permutes the channels or the pixels of observations.
* `CorruptObservations` changes the probability of noise in observations.
* `OffsetObservations`, `RotateObservations` and `ScaleObservations` change observations that are vectors.
* `ScaleRewards` changes the factor of rewards.
* `ChangePhysics` changes a number of the simulated world, such as gravity; `DriftPhysics` moves it slowly.

When they change is given by `envs.timetables`.
"""

from envs.shifts.actions import PermuteActions, RepeatActions
from envs.shifts.base import Shift
from envs.shifts.games import EnvSequence
from envs.shifts.observations import CorruptObservations, PermuteObservations
from envs.shifts.physics import ChangePhysics, DriftPhysics
from envs.shifts.rewards import ScaleRewards
from envs.shifts.vectors import OffsetObservations, RotateObservations, ScaleObservations

__all__ = [
    "ChangePhysics",
    "CorruptObservations",
    "DriftPhysics",
    "EnvSequence",
    "OffsetObservations",
    "PermuteActions",
    "PermuteObservations",
    "RepeatActions",
    "RotateObservations",
    "ScaleObservations",
    "ScaleRewards",
    "Shift",
]
