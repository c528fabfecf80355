"""What a detector is told between two optimiser updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from elr.states import check_keys
from elr.triggers import AtKnownChange, Every, Never, OnCusum, Signal, Trigger


class MeanSignal:
    """The mean of the numbers given since the last update: one per backward pass under gradient accumulation.

    A single number is passed on as it is. Tensors are summed on their own device, without waiting for it.
    """

    def __init__(self) -> None:
        self._sum: float | Tensor = 0.0
        self._count = 0

    def add(self, value: float | Tensor, trigger: Trigger | None) -> None:
        """Take one number for the trigger.

        Raises:
            ValueError: the trigger watches nothing, or the value is not one number.
        """
        if trigger is None or isinstance(trigger, Never | Every | AtKnownChange):
            name = "there is no trigger" if trigger is None else f"the trigger {type(trigger).__name__} watches nothing"
            raise ValueError(f"signal() has no effect: {name}. Leave it out, or use a trigger such as OnCusum(Cusum())")
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"signal() needs one number, got shape {tuple(value.shape)}: pass e.g. loss.mean()")
            # A half precision would lose the sum of several.
            value = value.detach().reshape(()).to(value.dtype if value.dtype == torch.float64 else torch.float32)
        self._sum = value if self._count == 0 else self._sum + value
        self._count += 1

    def require_for(self, trigger: Trigger) -> None:
        """Refuse an update without a number for a trigger that needs one at each (ValueError)."""
        if isinstance(trigger, OnCusum) and self._count == 0:
            raise ValueError("OnCusum needs a number before each update: call signal(loss) before optimizer.step()")

    def take(self) -> Signal:
        """The mean, None without a number; the next one starts empty."""
        mean = None if self._count == 0 else self._sum if self._count == 1 else self._sum / self._count
        self._sum, self._count = 0.0, 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Sum and count as plain numbers."""
        return {"sum": float(self._sum), "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` (ValueError on other keys)."""
        check_keys("MeanSignal", state, ["sum", "count"])
        self._sum, self._count = state["sum"], state["count"]
