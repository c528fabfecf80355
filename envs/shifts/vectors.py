"""Shifts of observations that are vectors [N, D]: an offset, a rotation, or a gain of each coordinate.

Task 0 leaves the observations as they are, bit for bit. The settings of every other task depend only on the seed of
`reset` and on the number of the task.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.shifts.base import Shift
from envs.timetables import Timetable

DEVIATIONS = 10.0
"""settings are representable up to so many standard deviations; the check at construction demands it"""


class VectorShift(Shift):
    """Base class: checks the observations, and draws the setting of each task.

    Args:
        env: environment with observations [N, D] of a float type, which they keep.
        timetable: when the next setting comes.
        tasks: number of settings, including that of task 0, visited in turn.
        arguments: what else the subclass was built with, by name.
    Raises:
        ValueError: observations are not vectors of floats; otherwise as `Shift`.
    """

    def __init__(
        self, env: VectorEnv[Any, Any, Any], timetable: Timetable, tasks: int, arguments: dict[str, Any] | None = None
    ) -> None:
        super().__init__(env, timetable, tasks, {"tasks": tasks, **(arguments or {})})
        space = env.single_observation_space
        if not isinstance(space, Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
            raise ValueError(f"{type(self).__name__} needs observations that are vectors of floats, got {space}")
        self._box, self._size = space, int(space.shape[0])
        self._setting: NDArray[Any] | None = None  # None: task 0
        if tasks > 1:
            low, high = (bound.astype(np.float64) for bound in (space.low, space.high))
            with np.errstate(over="ignore"):  # a bound beyond the type's largest number is infinite
                low, high = (bound.astype(space.dtype) for bound in self._bounds(low, high))
            self.single_observation_space = Box(low, high, dtype=space.dtype)
            self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def _draw(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """The setting of a task other than 0."""
        raise NotImplementedError

    def _apply(self, obs: NDArray[Any], setting: NDArray[np.float64]) -> NDArray[Any]:
        """Observations [N, D] -> those of the task, in float64."""
        raise NotImplementedError

    def _bounds(
        self, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds [D] of the environment's observations -> bounds of what any task makes of them."""
        return np.full_like(low, -np.inf), np.full_like(high, np.inf)

    def _set_task(self, task: int) -> None:
        self._setting = self._draw(np.random.default_rng(self._sequence(task))) if task else None

    def _observations(self, obs: NDArray[Any]) -> NDArray[Any]:
        if self._setting is None:
            return obs
        # The setting is float64, so the type's own rounding happens once.
        return self._apply(obs, self._setting).astype(obs.dtype)

    def _require_scale(self, scale: float, largest: float) -> None:
        """Raise ValueError unless scale lies in (0, largest], beyond which settings might overflow."""
        if not 0.0 < scale <= largest:
            raise ValueError(
                f"{type(self).__name__} needs a scale above 0 and at most {largest:.3g}, with {self._box.dtype} "
                f"observations, got {scale}"
            )


class OffsetObservations(VectorShift):
    """A constant vector is added: each coordinate of it is drawn from N(0, scale^2). Task 0 adds nothing.

    Args:
        env: environment with observations [N, D] of a float type, which they keep.
        timetable: when the next offset comes.
        tasks: number of offsets, including that of task 0, visited in turn.
        scale: standard deviation of the offsets, in the units of the observations.
    Raises:
        ValueError: observations are not vectors of floats, or the scale is not positive; otherwise as `Shift`.
    """

    name = "offsets"

    def __init__(self, env: VectorEnv[Any, Any, Any], timetable: Timetable, tasks: int = 2, scale: float = 2.0) -> None:
        super().__init__(env, timetable, tasks, {"scale": scale})
        self._require_scale(scale, float(np.finfo(self._box.dtype).max) / DEVIATIONS)
        self.scale = scale

    def _draw(self, rng: np.random.Generator) -> NDArray[np.float64]:
        return self.scale * rng.standard_normal(self._size)

    def _apply(self, obs: NDArray[Any], setting: NDArray[np.float64]) -> NDArray[Any]:
        return obs + setting


class RotateObservations(VectorShift):
    """Observations are multiplied by a random orthogonal matrix, drawn uniformly from all of them. Task 0 is the
    identity.

    The matrix keeps lengths and angles; about half of the matrices also reflect.

    Args:
        env: environment with observations [N, D] of a float type, which they keep, D >= 2.
        timetable: when the next matrix comes.
        tasks: number of matrices, including the identity, visited in turn.
    Raises:
        ValueError: observations are not vectors of floats, or have one coordinate; otherwise as `Shift`.
    Source:
        Mezzadri, "How to generate random matrices from the classical compact groups", Notices of the AMS 54 (2007):
        QR of a Gaussian matrix, with the diagonal of R made positive, is uniform (Haar's measure).
    """

    name = "rotations"

    def __init__(self, env: VectorEnv[Any, Any, Any], timetable: Timetable, tasks: int = 2) -> None:
        super().__init__(env, timetable, tasks)
        if self._size < 2:
            raise ValueError(f"RotateObservations needs observations with at least 2 coordinates, got {self._box}")

    def _draw(self, rng: np.random.Generator) -> NDArray[np.float64]:
        q, r = np.linalg.qr(rng.standard_normal((self._size, self._size)))
        matrix: NDArray[np.float64] = q * np.sign(np.diagonal(r))
        return matrix

    def _apply(self, obs: NDArray[Any], setting: NDArray[np.float64]) -> NDArray[Any]:
        rotated: NDArray[Any] = obs @ setting.T
        return rotated

    def _bounds(
        self, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        # No coordinate exceeds the length of the vector; the margin is for rounding.
        longest = np.linalg.norm(np.maximum(np.abs(low), np.abs(high)))
        radius = np.full_like(low, longest * (1.0 + 4.0 * float(np.finfo(self._box.dtype).eps)))
        return -radius, radius


class ScaleObservations(VectorShift):
    """Each coordinate is multiplied by a factor 2**g, with g drawn from N(0, scale^2). Task 0 has factors of 1.

    Args:
        env: environment with observations [N, D] of a float type, which they keep.
        timetable: when the next factors come.
        tasks: number of vectors of factors, including that of task 0, visited in turn.
        scale: standard deviation of the factors' binary logarithm.
    Raises:
        ValueError: observations are not vectors of floats, or the scale is not positive or so large that factors could
            overflow; otherwise as `Shift`.
    """

    name = "gains"

    def __init__(self, env: VectorEnv[Any, Any, Any], timetable: Timetable, tasks: int = 2, scale: float = 2.0) -> None:
        super().__init__(env, timetable, tasks, {"scale": scale})
        self._require_scale(scale, float(np.finfo(self._box.dtype).maxexp) / DEVIATIONS)
        self.scale = scale

    def _draw(self, rng: np.random.Generator) -> NDArray[np.float64]:
        return np.exp2(self.scale * rng.standard_normal(self._size))

    def _apply(self, obs: NDArray[Any], setting: NDArray[np.float64]) -> NDArray[Any]:
        return obs * setting

    def _bounds(
        self, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        # Factors are positive, of any size: signs stay.
        return np.where(low < 0, -np.inf, 0.0), np.where(high > 0, np.inf, 0.0)
