"""Re-warming the effective learning rate: a trigger decides when, a schedule decides how much.

Algorithm 1 of arXiv:2507.20057: after each optimiser step and projection, if ``rewarm(.)`` then restart the schedule.

    optimizer.step()
    projection.step(rewarming.rate)
    fired = rewarming.step(loss)        # sets the rate of the next update

All steps are optimiser updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from elr.moments import Moments, reset_moments_, states_to_reset
from elr.rates import set_rates_
from elr.schedules import Schedule
from elr.states import check_keys
from elr.triggers import Signal, Trigger


class Rewarming:
    """Drives an optimiser's learning rates by a trigger and a schedule.

    With eta the schedule, s the updates since the last trigger (or the start) and lr_g the groups' rates at
    construction, the rate of group g at the next update is
        eta(s) * lr_g / max_g' lr_g'
    so the schedule is the rate of the fastest group, and the ratios between groups are kept. Construction sets eta(0).
    Until the first trigger eta can be another schedule, ``initial``, for instance a rate too low to learn features.

    A group's rate remains a Python float; if it is a tensor, it is filled in place, so a captured CUDA graph sees the
    change. When the rate has not changed, the groups are not touched. Nothing else may set the rates: a second
    scheduler, or a framework that sets the rate before every update, is refused at the next `step`.

    Args:
        optimizer: its groups' rates give the ratios; all its groups must exist already.
        schedule: updates since the last trigger -> rate, finite and >= 0.
        trigger: when to restart the schedule.
        moments: at a trigger, "keep" the optimiser's moments or "reset" moments and step counts to zero, in place.
        initial: the schedule until the first trigger; None means ``schedule``.
    Raises:
        ValueError: no group has a positive rate, a rate is negative or not finite, or ``moments`` is unknown.
    Source: arXiv:2507.20057, Alg. 1.
    Deviation: the paper does not say what happens to Adam's moments at a re-warming; the default keeps them.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        trigger: Trigger,
        moments: Moments = "keep",
        initial: Schedule | None = None,
    ) -> None:
        if moments not in get_args(Moments):
            raise ValueError(f"moments = {moments!r} is not known; choose one of {get_args(Moments)}")
        self.optimizer = optimizer
        self.schedule = schedule
        self.trigger = trigger
        self.moments = moments
        self.initial = initial
        self._base = [float(group["lr"]) for group in optimizer.param_groups]
        _check_base(self._base)
        self._fastest = max(self._base)
        self._start()

    def _start(self) -> None:
        self._set: list[_SetRate] = []
        self.events: list[int] = []
        self._updates = 0
        self._since = 0
        self._set_rate(self._scheduled())

    @property
    def rate(self) -> float:
        """Rate of the fastest group at the next update."""
        return self._rate

    @property
    def statistic(self) -> float | None:
        """The detector's statistic, None for a trigger that measures nothing."""
        return self.trigger.statistic

    def scalars(self) -> dict[str, float]:
        """{"rewarm/statistic": statistic} for a trigger that measures something, otherwise {}."""
        statistic = self.statistic
        return {} if statistic is None else {"rewarm/statistic": statistic}

    def step(self, signal: Signal = None) -> bool:
        """Count one update, ask the trigger, set the rate of the next update.

        Call once per optimiser update, after the optimiser step and the projection.

        Args:
            signal: what the trigger watches, one number (the loss); read without host sync unless the trigger must.
        Returns:
            Whether the trigger fired after this update; its number is then the last of ``events``.
        Raises:
            ValueError: the trigger refuses the signal, the schedule gives a rate that is negative or not finite, or the
                optimiser's state holds something that ``moments="reset"`` does not know.
            RuntimeError: something else has set a group's rate, see `require_own_rates`.
        """
        self.require_own_rates()
        if self._updates == 0 and self.moments == "reset":  # refuse after the first update, not hours later
            groups = self.optimizer.param_groups
            states_to_reset(self.optimizer, [p for group in groups for p in group["params"]], self.moments)
        self._updates += 1
        self._since += 1
        fired = False
        try:
            fired = self.trigger.fires(self._updates, signal)
        finally:  # also after an error of the trigger, which the caller may catch
            if not fired and (rate := self._scheduled()) != self._rate:
                self._set_rate(rate)
        if fired:
            self.restart()
        return fired

    def restart(self) -> None:
        """Do what a trigger does: start the schedule again with the next update.

        For a known change between two updates. The trigger is not asked, and keeps its state.

        Raises:
            ValueError: as `step`, except for the trigger's.
        """
        if self.moments == "reset":
            reset_moments_(self.optimizer)
        self._since = 0
        self.events.append(self._updates)
        rate = self._scheduled()
        if rate != self._rate:
            self._set_rate(rate)

    def reset(self) -> None:
        """Return to the state after construction: schedule, trigger, counts, events and the groups' rates.

        For a change after which training starts again. The optimiser's moments are not touched.

        Raises:
            ValueError: the optimiser has another number of groups than at construction.
        """
        self.trigger.reset()
        self._start()

    def require_own_rates(self) -> None:
        """Refuse groups whose rate is not the one set here.

        Raises:
            RuntimeError: a rate was set by something else since.
            ValueError: the number of groups has changed.
        """
        self._check_groups(len(self._base))
        for index, (group, mine) in enumerate(zip(self.optimizer.param_groups, self._set, strict=True)):
            if not mine.is_still_in(group):
                raise RuntimeError(
                    f"the learning rate of parameter group {index} is {float(group['lr']):.6g}, but the schedule has "
                    f"set {mine.value:.6g}: something else sets it too. If you resume, load the state that was saved "
                    "here as well. A torch scheduler, or the training loop of a framework: leave the rate to one of "
                    'them, or let elr.attach overrule the other by outside_rates="overrule"'
                )

    def set_rates_again(self) -> None:
        """Overrule whatever has changed the groups' rates: set those of the next update again."""
        self._set_rate(self._rate)

    def state_dict(self) -> dict[str, Any]:
        """State to continue from exactly; the optimiser's own state is not in it."""
        return {
            "updates": self._updates,
            "since": self._since,
            "events": list(self.events),
            "base": list(self._base),
            "trigger_type": type(self.trigger).__name__,
            "trigger": self.trigger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly from :meth:`state_dict`, and set the rate of the next update.

        Schedule, trigger and ``moments`` are configuration: build with the same. May come before or after the
        optimiser's own ``load_state_dict``.

        Raises:
            ValueError: wrong keys, another type of trigger, or another number of groups.
        """
        check_keys("Rewarming", state, ["updates", "since", "events", "base", "trigger_type", "trigger"])
        if state["trigger_type"] != type(self.trigger).__name__:
            raise ValueError(
                f"state comes from the trigger {state['trigger_type']}, this run has {type(self.trigger).__name__}; "
                "build the Rewarming with the stored run's trigger"
            )
        self._check_groups(len(state["base"]))
        self.trigger.load_state_dict(state["trigger"])
        self._updates = state["updates"]
        self._since = state["since"]
        self.events = list(state["events"])
        self._base = list(state["base"])
        self._fastest = max(self._base)
        self._set_rate(self._scheduled())

    def _scheduled(self) -> float:
        schedule = self.schedule if self.initial is None or self.events else self.initial
        return schedule(self._since)

    def _set_rate(self, rate: float) -> None:
        if not (math.isfinite(rate) and rate >= 0.0):
            raise ValueError(f"the schedule gives the rate {rate} at step {self._since}; it must be finite and >= 0")
        self._check_groups(len(self._base))
        # Without rounding: the fastest group gets the schedule's value, and at the initial rate all groups theirs.
        values = [base if rate == self._fastest else rate * (base / self._fastest) for base in self._base]
        set_rates_(self.optimizer, values)
        self._set = [
            _SetRate(group["lr"], value) for group, value in zip(self.optimizer.param_groups, values, strict=True)
        ]
        self._rate = rate

    def _check_groups(self, recorded: int) -> None:
        present = len(self.optimizer.param_groups)
        if present != recorded:
            raise ValueError(
                f"the optimiser has {present} parameter groups but rates were recorded for {recorded}; "
                "add all groups before building the Rewarming"
            )


class _SetRate:
    """A rate put into a parameter group, and how to recognise it there without waiting for a device."""

    def __init__(self, put: float | Tensor, value: float) -> None:
        self.value = value
        self._put = put
        self._version = put._version if isinstance(put, Tensor) else 0

    def is_still_in(self, group: dict[str, Any]) -> bool:
        lr = group["lr"]
        if lr is self._put and not (isinstance(lr, Tensor) and lr._version != self._version):
            return True
        if isinstance(lr, Tensor):  # another tensor, as after the optimiser's load_state_dict, or the same written to
            return bool(float(lr) == float(torch.tensor(self.value, dtype=lr.dtype)))
        return bool(lr == self.value)


def _check_base(base: list[float]) -> None:
    if not all(math.isfinite(lr) and lr >= 0.0 for lr in base):
        raise ValueError(f"the groups' learning rates are {base}; each must be finite and >= 0")
    if not any(base):
        raise ValueError(
            f"the groups' learning rates are {base}, and their ratios need at least one > 0: build the optimiser with "
            "a rate, and load its state after this"
        )
