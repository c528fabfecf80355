"""Settings of tasks: drawing permutations, and checks that the wrappers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray


def even_bounds(space: gymnasium.Space[Any], who: str) -> tuple[float, float]:
    """The lowest and highest value of every entry of an observation; `who` asks.

    Raises:
        ValueError: observations are unbounded, or their entries have different bounds.
    """
    if not isinstance(space, Box) or not space.is_bounded():
        raise ValueError(f"{who} needs bounded observations, got {space}")
    low, high = float(space.low.min()), float(space.high.max())
    if (space.low != low).any() or (space.high != high).any():
        raise ValueError(f"{who} needs observations whose entries all have the same bounds, got {space}")
    return low, high


def permutations(size: int, last: int, sequence: Callable[[int], np.random.SeedSequence]) -> list[NDArray[np.int64]]:
    """Those of tasks 0 .. last: the identity, then random ones that differ from all before."""
    found = [np.arange(size)]
    for task in range(1, last + 1):
        rng = np.random.default_rng(sequence(task))
        candidate = rng.permutation(size)
        while any(np.array_equal(candidate, known) for known in found):
            candidate = rng.permutation(size)
        found.append(candidate)
    return found


def require_permutations(size: int, tasks: int) -> None:
    """Raise ValueError if `size` things have fewer than `tasks` permutations."""
    if size < 10 and tasks > math.factorial(size):
        raise ValueError(f"{tasks} tasks, but {size} things have {math.factorial(size)} permutations")


def probabilities(values: Sequence[float], who: str) -> tuple[float, ...]:
    """The values as floats; raises ValueError unless all lie in [0, 1] and there is one at least."""
    if not values or not all(0.0 <= value <= 1.0 for value in values):
        raise ValueError(f"{who} needs probabilities in [0, 1], got {tuple(values)}")
    return tuple(float(value) for value in values)
