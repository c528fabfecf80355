"""When a task changes: timetables, in agent steps.

A timetable gives the numbers of agent steps after which a change is due. Agent steps are summed over the environments
of a vector environment: eight environments make eight per `step()`. `envs.shifts` defines what changes. It applies a
change at the end of the first `step()` that reaches its number, in all environments together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Timetable(Protocol):
    """When changes are due."""

    @property
    def smallest_gap(self) -> int | None:
        """Fewest agent steps between two changes, or before the first; None without changes and for random ones."""

    def next_change(self, after: int, rng: np.random.Generator) -> int | None:
        """Return the first due number of agent steps greater than `after`; None if there is no further change.

        Args:
            after: agent steps so far, or the number at which the last change was due.
            rng: stream from which a random timetable draws; others do not use it.
        """


@dataclass(frozen=True)
class NoChange:
    """No changes."""

    smallest_gap = None

    def next_change(self, after: int, rng: np.random.Generator) -> int | None:
        """Return None."""
        return None


@dataclass(frozen=True)
class EverySteps:
    """A change after `period`, 2 * `period`, 3 * `period`, ... agent steps.

    Raises:
        ValueError: the period is less than one step.
    """

    period: int

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"the period must be at least 1 agent step, got {self.period}")

    @property
    def smallest_gap(self) -> int | None:
        """The period."""
        return self.period

    def next_change(self, after: int, rng: np.random.Generator) -> int | None:
        """Return the next multiple of the period."""
        return (after // self.period + 1) * self.period


@dataclass(frozen=True)
class AtSteps:
    """Changes at the listed numbers of agent steps.

    Raises:
        ValueError: the list is empty, begins below 1, or is not in rising order.
    """

    steps: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))  # equal timetables must compare and print alike
        if not self.steps:
            raise ValueError("no step is listed; give at least one, or use NoChange")
        if min(self._gaps()) < 1:
            raise ValueError(f"steps must begin at 1 or later and rise, got {tuple(self.steps)}")

    def _gaps(self) -> list[int]:
        return [later - earlier for earlier, later in zip([0, *self.steps], self.steps, strict=False)]

    @property
    def smallest_gap(self) -> int | None:
        """The smallest distance in the list, step 0 included."""
        return min(self._gaps())

    def next_change(self, after: int, rng: np.random.Generator) -> int | None:
        """Return the first listed step after `after`."""
        return next((step for step in self.steps if step > after), None)


@dataclass(frozen=True)
class AtRandom:
    """Random changes: after each agent step with probability `rate`, independent of the time since the last change.

    Gaps are geometric with mean 1 / rate. The first is drawn when the environment is seeded.

    Raises:
        ValueError: the rate is not in (0, 1].
    """

    rate: float

    smallest_gap = None

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"rate must be a probability in (0, 1], got {self.rate}")

    def next_change(self, after: int, rng: np.random.Generator) -> int | None:
        """Draw a gap."""
        return after + int(rng.geometric(self.rate))
