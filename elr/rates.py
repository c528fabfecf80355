"""The learning rates of an optimiser's parameter groups, which are numbers or tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rates_of(optimizer: torch.optim.Optimizer) -> list[float | Tensor]:
    """The rate of each group; of a tensor a copy, which later changes do not reach."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]


def set_rates_(optimizer: torch.optim.Optimizer, rates: Sequence[float | Tensor]) -> None:
    """Give the first groups these rates. A tensor is filled in place, so a captured CUDA graph sees the change."""
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def fastest_rate(optimizer: torch.optim.Optimizer) -> float | Tensor:
    """The largest rate of the groups; if one of them is a tensor, a tensor of its own, without waiting for a device."""
    rates = [group["lr"] for group in optimizer.param_groups]
    if any(isinstance(rate, Tensor) for rate in rates):
        device = next(rate.device for rate in rates if isinstance(rate, Tensor))
        return torch.stack([torch.as_tensor(rate, device=device).reshape(()) for rate in rates]).max()
    return float(max(rates))
