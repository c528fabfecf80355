"""Stagnation: has movement, for instance of the features, stopped?

The loss on a memorised training set stays near 0 and does not show that learning has stopped. The features do: they
move while a network learns, and stop when it no longer does. `elr.triggers.OnStagnation` re-warms then.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TypedDict

from elr.states import check_keys


class StagnationState(TypedDict):
    """Everything a :class:`Stagnation` needs to continue exactly, as plain numbers."""

    recent: list[float]
    peak: float
    seen: int
    alarms: int
    statistic: float


class Stagnation:
    """Raises an alarm when movement has fallen to a fraction of its largest value.

    With m_t >= 0 the movement in the t-th interval since the last alarm (or the start), w = ``window``:
        r_t = (m_{t-w+1} + ... + m_t) / w
        alarm at t >= b  if  r_t <= ratio * max_{w <= s <= t} r_s
    b is ``burn_in`` before the first alarm and ``refractory`` after one. An alarm forgets everything.

    The rule compares a ratio, so the unit of the movement does not matter. Constant movement, growing movement and a
    stream that is 0 from its start raise no alarm. Movement falls with the learning rate: choose ``refractory`` long
    enough for a restarted schedule to anneal. The largest movement is then that at the schedule's peak, far above any
    at the annealed rate, so after the first alarm the alarms come in nearly fixed cycles. The detector finds when a
    network first stops learning, not whether there is more to learn.

    Args:
        ratio: share of the largest movement at which there is an alarm, in (0, 1).
        window: intervals averaged, >= 1.
        burn_in: intervals after the start in which no alarm is raised, >= window.
        refractory: intervals after an alarm in which none is raised, >= window; None means ``burn_in``.
    Raises:
        ValueError: an argument outside its range.
    Deviation: arXiv:2507.20057 triggers on a fixed cycle or on CUSUM; this detector is ours, for Algorithm 1's
        ``rewarm`` on a training set that does not change.
    """

    def __init__(
        self, *, ratio: float = 0.1, window: int = 5, burn_in: int = 10, refractory: int | None = None
    ) -> None:
        _check("ratio", ratio, 0.0 < ratio < 1.0, "in (0, 1)")
        _check("window", window, window == int(window) and window >= 1, "a whole number of intervals >= 1")
        _check("burn_in", burn_in, burn_in == int(burn_in) and burn_in >= window, f"a whole number >= window {window}")
        refractory = burn_in if refractory is None else refractory
        whole = refractory == int(refractory) and refractory >= window
        _check("refractory", refractory, whole, f"a whole number >= window {window}")
        self.ratio = ratio
        self.window = window
        self.burn_in = burn_in
        self.refractory = refractory
        self.reset()

    def reset(self) -> None:
        """Return to the state after construction: forget the movement and the alarms."""
        self._recent: deque[float] = deque(maxlen=self.window)
        self._peak = 0.0
        self._seen = 0
        self._alarms = 0
        self._statistic = 1.0

    @property
    def statistic(self) -> float:
        """r_t / max r_s at the last test, in [0, 1]; 1 before the first full window, and before the first movement.

        After an alarm it is the value that raised it, until the next update.
        """
        return self._statistic

    def update(self, movement: float) -> bool:
        """Take the movement of one interval; True at an alarm.

        Raises:
            ValueError: the movement is negative.
            FloatingPointError: it is NaN or infinite. After either error the state is as before it.
        """
        if not math.isfinite(movement):
            raise FloatingPointError(f"movement {movement} after {self._seen} intervals; it must be finite")
        if movement < 0.0:
            raise ValueError(f"movement {movement} is negative; give a distance or an absolute change")
        self._recent.append(float(movement))
        self._seen += 1
        self._statistic = 1.0
        if len(self._recent) < self.window:
            return False
        mean = math.fsum(self._recent) / self.window
        self._peak = max(self._peak, mean)
        if self._peak > 0.0:
            self._statistic = mean / self._peak
        wait = self.refractory if self._alarms else self.burn_in
        if self._seen < wait or self._statistic > self.ratio:
            return False
        self._alarms += 1
        self._recent.clear()
        self._peak, self._seen = 0.0, 0
        return True

    def state_dict(self) -> StagnationState:
        """State as plain numbers."""
        return StagnationState(
            recent=list(self._recent),
            peak=self._peak,
            seen=self._seen,
            alarms=self._alarms,
            statistic=self._statistic,
        )

    def load_state_dict(self, state: StagnationState) -> None:
        """Continue exactly from :meth:`state_dict`; the constructor's arguments must be the same.

        Raises:
            ValueError: keys are missing or unknown, or more values are stored than this window holds.
        """
        check_keys("Stagnation", state, StagnationState.__annotations__)
        if len(state["recent"]) > self.window:
            raise ValueError(
                f"state holds {len(state['recent'])} values, this window {self.window}; use the stored run's arguments"
            )
        self._recent = deque(state["recent"], maxlen=self.window)
        self._peak = state["peak"]
        self._seen = state["seen"]
        self._alarms = state["alarms"]
        self._statistic = state["statistic"]


def _check(name: str, value: float, valid: bool, range_: str) -> None:
    if not valid:
        raise ValueError(f"{name} = {value} is not valid for Stagnation; it must be {range_}")
