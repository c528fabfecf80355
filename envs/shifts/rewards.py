"""Shifts of rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from envs.shifts.base import Shift
from envs.timetables import Timetable


class ScaleRewards(Shift):
    """Rewards are multiplied by a factor that changes, in size or in sign.

    Args:
        env: any.
        timetable: when the next factor comes.
        values: the factors, visited in turn; the first holds from the start.
    Raises:
        ValueError: a factor is not finite; otherwise as `Shift`.
    """

    name = "rewards"

    def __init__(self, env: VectorEnv[Any, Any, Any], timetable: Timetable, values: Sequence[float]) -> None:
        super().__init__(env, timetable, len(values), {"values": values})
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"factors of rewards must be finite, got {tuple(values)}")
        self.values, self._factor = tuple(values), values[0]

    def _set_task(self, task: int) -> None:
        self._factor = self.values[task]

    def _rewards(self, rewards: NDArray[Any]) -> NDArray[Any]:
        return rewards * self._factor
