"""What a detector is told between two optimiser updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from elr.states import check_keys
from elr.triggers import AtKnownChange, Every, Never, OnCusum, Signal, Trigger


class MeanSignal:
    """The mean of the numbers given since the last update.

    There are several under gradient accumulation, one per backward pass. A single number is passed on as it is. Tensors
    on a GPU are summed there, without waiting for it. Where several processes train one network, it is the mean
    over them as well: by losses of their own they would restart apart.
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
            none = trigger is None or isinstance(trigger, Never)
            name = "there is no trigger" if none else f"the trigger {type(trigger).__name__} watches nothing"
            raise ValueError(f"signal() has no effect: {name}. Leave it out, or use a trigger such as OnCusum(Cusum())")
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"signal() needs one number, got shape {tuple(value.shape)}: pass e.g. loss.mean()")
            if _is_on_host(value):  # nothing to wait for, and numbers cost less to add than tensors
                return self._take_in(value.item())
            # A half precision would lose the sum of several.
            value = value.detach().reshape(()).to(value.dtype if value.dtype == torch.float64 else torch.float32)
        else:
            value = _number(value)
        self._take_in(value)

    def _take_in(self, value: float | Tensor) -> None:
        self._sum = value if self._count == 0 else self._sum + value
        self._count += 1

    def require_for(self, trigger: Trigger) -> None:
        """Refuse an update without a number for a trigger that needs one at each (ValueError)."""
        if isinstance(trigger, OnCusum) and self._count == 0:
            raise ValueError("OnCusum needs a number for each update: call signal(loss) before the step")

    def take(self) -> Signal:
        """The mean, None without a number; the next one starts empty. All processes must take theirs."""
        if self._count == 0:
            return None
        mean = self._sum if self._count == 1 else self._sum / self._count
        self._sum, self._count = 0.0, 0
        return _mean_over_processes(mean)

    def state_dict(self) -> dict[str, Any]:
        """Sum, its precision and count, as plain values."""
        dtype = str(self._sum.dtype).removeprefix("torch.") if isinstance(self._sum, Tensor) else None
        return {"sum": float(self._sum), "dtype": dtype, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` (ValueError on other keys)."""
        check_keys("MeanSignal", state, ["sum", "dtype", "count"])
        dtype = state["dtype"]
        self._sum = state["sum"] if dtype is None else torch.tensor(state["sum"], dtype=getattr(torch, dtype))
        self._count = state["count"]


def _is_on_host(value: Tensor) -> bool:
    return value.device.type == "cpu"


def _number(value: Any) -> float:
    try:
        if not isinstance(value, str):
            return float(value)
    except TypeError:
        pass
    raise ValueError(f"signal() needs a number or a tensor with one, got {type(value).__name__}")


def _mean_over_processes(value: float | Tensor) -> float | Tensor:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return value
    if isinstance(value, Tensor):
        total = value.clone()
    else:  # NCCL takes only what is on a GPU
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total / dist.get_world_size()
