"""Triggers: when to re-warm.

A trigger is asked once after every optimiser update. How much the learning rate rises is a schedule's business, see
`elr.schedules`; `elr.rewarming.Rewarming` puts the two together.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from elr.changepoint import Cusum
from elr.stagnation import Stagnation
from elr.states import check_keys

Signal = float | Tensor | None

_CUSUM_ARGUMENTS = tuple(inspect.signature(Cusum).parameters)


class Trigger(Protocol):
    """Decides when to re-warm: asked once after every optimiser update."""

    @property
    def statistic(self) -> float | None:
        """The detector's statistic, None for a trigger that measures nothing."""

    def fires(self, update: int, signal: Signal) -> bool:
        """True if the schedule restarts after update number ``update`` (1, 2, ...)."""

    def reset(self) -> None:
        """Return to the state after construction."""

    def state_dict(self) -> dict[str, Any]:
        """State to continue from exactly."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly from :meth:`state_dict`."""


class _Stateless:
    """What triggers have in common that remember and measure nothing."""

    statistic: None = None

    def reset(self) -> None:
        """Do nothing: there is nothing to forget."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept the empty state only (ValueError)."""
        check_keys(type(self).__name__, state, ())


class Never(_Stateless):
    """The schedule runs once."""

    def fires(self, update: int, signal: Signal) -> bool:
        """Never."""
        return False


class Every(_Stateless):
    """A fixed cycle: fires after updates period, 2 period, ...

    Args:
        period: updates, >= 1.
    Raises:
        ValueError: the period is not a whole number >= 1.
    """

    def __init__(self, period: int) -> None:
        if period != int(period) or period < 1:
            raise ValueError(f"period = {period} is not a number of updates; Every needs a whole number >= 1")
        self.period = period

    def fires(self, update: int, signal: Signal) -> bool:
        """True at multiples of the period; the update count is the caller's."""
        return update % self.period == 0


class OnCusum:
    """Fires at an alarm of a change-point detector fed with the signal.

    Args:
        cusum: the detector; it sees one value per update.
    """

    def __init__(self, cusum: Cusum) -> None:
        self.cusum = cusum

    @property
    def statistic(self) -> float:
        """The detector's S."""
        return self.cusum.statistic

    def fires(self, update: int, signal: Signal) -> bool:
        """Feed the signal; True at an alarm.

        Raises:
            ValueError: there is no signal. Errors of :meth:`Cusum.update` pass through.
        """
        if signal is None:
            raise ValueError(f"update {update} came without a signal; OnCusum needs one per update, e.g. step(loss)")
        return self.cusum.update(signal)

    def reset(self) -> None:
        """Reset the detector."""
        self.cusum.reset()

    def state_dict(self) -> dict[str, Any]:
        """The detector's state, and the arguments that it was built with."""
        return {"arguments": self._arguments(), "cusum": self.cusum.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the detector.

        Raises:
            ValueError: wrong keys, or a Cusum with other arguments.
        """
        check_keys("OnCusum", state, ["arguments", "cusum"])
        mine, saved = self._arguments(), state["arguments"]
        if differ := [f"{name}={saved[name]}" for name in mine if saved[name] != mine[name]]:
            raise ValueError(f"the state was saved with Cusum({', '.join(differ)}): build it with the same arguments")
        self.cusum.load_state_dict(state["cusum"])

    def _arguments(self) -> dict[str, float | bool]:
        return {name: getattr(self.cusum, name) for name in _CUSUM_ARGUMENTS}


class OnStagnation:
    """Fires when a signal that measures movement has stagnated.

    Args:
        stagnation: the detector; it sees the updates that come with a signal, and only those: movement is measured
            over an interval, not at every update.
    """

    def __init__(self, stagnation: Stagnation) -> None:
        self.stagnation = stagnation

    @property
    def statistic(self) -> float:
        """Recent movement as a share of the largest."""
        return self.stagnation.statistic

    def fires(self, update: int, signal: Signal) -> bool:
        """Feed the signal if there is one; True at an alarm. Errors of :meth:`Stagnation.update` pass through."""
        return signal is not None and self.stagnation.update(float(signal))

    def reset(self) -> None:
        """Reset the detector."""
        self.stagnation.reset()

    def state_dict(self) -> dict[str, Any]:
        """The detector's state."""
        return {"stagnation": self.stagnation.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the detector."""
        check_keys("OnStagnation", state, ["stagnation"])
        self.stagnation.load_state_dict(state["stagnation"])


class AtKnownChange:
    """Fires once, at the first check after the script has announced a change of the task (the oracle)."""

    statistic: None = None

    def __init__(self) -> None:
        self._pending = False

    def notify(self) -> None:
        """Announce a change. Several calls before a check count as one."""
        self._pending = True

    def fires(self, update: int, signal: Signal) -> bool:
        """True once after :meth:`notify`."""
        pending, self._pending = self._pending, False
        return pending

    def reset(self) -> None:
        """Forget an announcement."""
        self._pending = False

    def state_dict(self) -> dict[str, Any]:
        """Whether a change is announced and the trigger has not fired yet."""
        return {"pending": self._pending}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the announcement."""
        check_keys("AtKnownChange", state, ["pending"])
        self._pending = state["pending"]
