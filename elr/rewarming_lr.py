"""Re-warming as a torch learning-rate scheduler, for training code that takes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from elr.moments import Moments
from elr.rates import rates_of, set_rates_
from elr.rewarming import Rewarming
from elr.schedules import Schedule
from elr.signals import MeanSignal
from elr.states import check_keys
from elr.triggers import Never, Trigger


class RewarmingLR(LRScheduler):
    """`Rewarming` as a torch scheduler: `step` once after every optimiser update.

    With eta the schedule, s the updates since the last restart and lr_g the groups' `initial_lr`, which the first
    scheduler of an optimiser records (usually this one, at construction), the rate of group g at the next update is
        eta(s) * lr_g / max_g' lr_g'
    See `Rewarming`, which does the work.

        scheduler = RewarmingLR(optimizer, WarmupCosine(peak=1e-3, ...), OnCusum(Cusum()))
        for x, y in stream:
            ...
            optimizer.step()
            scheduler.signal(loss)      # only for a trigger that watches something
            scheduler.step()            # asks the trigger; sets the rate of the next update

    A step without an optimiser update since the last, as after an update that GradScaler has skipped, changes nothing.
    Several updates since the last step are refused: its steps are updates, not epochs.

    It works inside `SequentialLR`: when its turn comes, its schedule starts. Schedulers that change the rate between
    its steps (`ChainedScheduler`, a second scheduler, a framework) are refused at the next step.

    Args:
        optimizer: all its groups must exist already.
        schedule: updates since the last restart -> rate; its steps are updates, not epochs.
        trigger: when the schedule starts again; None means at `restart` only.
        moments: at a restart, "keep" or "reset" the optimiser's moments and step counts.
    Raises:
        ValueError: as `Rewarming`.
    Source, deviation: as `Rewarming`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        trigger: Trigger | None = None,
        moments: Moments = "keep",
    ) -> None:
        self._schedule = schedule
        self._trigger: Trigger = Never() if trigger is None else trigger
        self._moments: Moments = moments
        self._updates = 0  # since the last step
        self._hook = optimizer.register_step_post_hook(self._count)
        self._rewarming: Rewarming
        super().__init__(optimizer)  # takes its first step, which calls get_lr

    @property
    def events(self) -> list[int]:
        """The numbers of the updates after which the schedule was restarted."""
        return self._rewarming.events

    @property
    def rate(self) -> float:
        """Rate of the fastest group at the next update."""
        return self._rewarming.rate

    def scalars(self) -> dict[str, float]:
        """The detector's statistic, as `Rewarming.scalars`."""
        return self._rewarming.scalars()

    def signal(self, value: float | Tensor) -> None:
        """Give the trigger one number, such as the loss. It sees the mean of the numbers since the last step.

        Raises:
            ValueError: the trigger watches nothing, or the value is not one number.
        """
        self._signal.add(value, self._trigger)

    def restart(self) -> None:
        """Start the schedule again with the next update, at a change that is known."""
        self._rewarming.restart()
        self._last_lr = rates_of(self.optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Count one optimiser update, ask the trigger, set the rate of the next update.

        Args:
            epoch: None. 0 starts the schedule, as `SequentialLR` asks for.
        Raises:
            ValueError: another epoch; otherwise as `Rewarming.step`.
            RuntimeError: something else has set a group's rate; there were several updates since the last step; or this
                is a copy, whose optimiser it cannot follow.
        """
        if epoch not in (None, 0):
            raise ValueError(f"RewarmingLR counts updates itself: call step() without an epoch, got epoch={epoch}")
        if epoch == 0:
            self.last_epoch = -1
        super().step()  # counts, warns of a wrong order, and calls get_lr
        self._last_lr = rates_of(self.optimizer)  # torch 2.6 keeps the group's own tensor

    def get_lr(self) -> list[float | Tensor]:
        """The groups' rates. Within `step`, where torch calls it, those of the next update."""
        if self._get_lr_called_within_step:
            if self.last_epoch == 0:  # at construction, and when SequentialLR hands over
                self._begin()
            elif self._one_update():
                self._signal.require_for(self._trigger)
                self._rewarming.step(self._signal.take())
            self._updates = 0
        return rates_of(self.optimizer)

    def _count(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found_inf = getattr(optimizer, "found_inf", None)  # a fused optimiser under a GradScaler that skips the update
        self._updates += int(found_inf is None or not bool(found_inf))

    def _one_update(self) -> bool:
        """Whether there was an update since the last step."""
        if self._updates > 1:
            raise RuntimeError(
                f"there were {self._updates} updates since the last RewarmingLR.step(), whose schedule counts updates: "
                'step it after each optimizer.step() (in Lightning: "interval": "step")'
            )
        if self._hook.id not in self.optimizer._optimizer_step_post_hooks:
            raise RuntimeError(
                "this RewarmingLR is a copy, and cannot follow its optimiser: build a new one and load state_dict()"
            )
        return self._updates == 1

    def _begin(self) -> None:
        """Start with the ratios that torch has recorded: other schedulers may have changed the rates since."""
        set_rates_(self.optimizer, self.base_lrs)
        self._trigger.reset()
        self._signal = MeanSignal()
        self._rewarming = Rewarming(self.optimizer, self._schedule, self._trigger, self._moments)

    def state_dict(self) -> dict[str, Any]:
        """State to continue from exactly, as plain numbers: `torch.load(weights_only=True)` reads it."""
        return {
            "last_epoch": self.last_epoch,
            "step_count": self._step_count,
            "updates": self._updates,
            "rewarming": self._rewarming.state_dict(),
            "signal": self._signal.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue exactly from `state_dict`, and set the rates of the next update.

        Schedule, trigger and moments are configuration: build with the same.

        Raises:
            ValueError: as `Rewarming.load_state_dict`.
        """
        check_keys("RewarmingLR", state_dict, ["last_epoch", "step_count", "updates", "rewarming", "signal"])
        if state_dict["last_epoch"] >= 0:  # else SequentialLR has not handed over yet, and another sets the rates
            self._rewarming.load_state_dict(state_dict["rewarming"])
        self._signal.load_state_dict(state_dict["signal"])
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["step_count"]
        self._updates = state_dict["updates"]
        self._last_lr = rates_of(self.optimizer)
