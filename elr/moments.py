"""Reset an optimiser's moments and step counts in place.

In place, so moments that are views of one vector remain views, and a captured CUDA graph sees the change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Moments = Literal["keep", "reset"]
"""When the weights or the rate are changed: keep the optimiser's moments, or set them to zero."""

_KNOWN = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "step"})


@torch.no_grad()
def reset_moments_(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor] | None = None) -> None:
    """Zero an optimiser's moments and step counts in place, for all its parameters or for exactly these.

    m <- 0,  v <- 0,  max v <- 0,  momentum <- 0,  t <- 0

    The next update of these parameters equals that of a new Adam or AdamW; for SGD with dampening d it is smaller by
    1 - d, as a new SGD does not damp its first momentum. A parameter without a first update has nothing to reset.

    Args:
        optimizer: its state may contain exp_avg, exp_avg_sq, max_exp_avg_sq, momentum_buffer and step, nothing else.
        parameters: some of the optimiser's, at least one; None means all.

    Raises:
        ValueError: there are no parameters, or one that the optimiser does not hold; the optimiser's state contains
            something else; or a parameter shares a moment or step count with one that is not reset. Nothing has been
            changed then.

    Source: arXiv:2205.07802, which makes a new optimiser for the reset parameters.
    Deviation: ReDo's code zeroes m and v but not t, which makes the next updates about 3 times a new Adam's.
    """
    held = [p for group in optimizer.param_groups for p in group["params"]]
    chosen = held if parameters is None else list(parameters)
    if not chosen:
        raise ValueError("there are no parameters whose moments to reset: give at least one that the optimiser holds")
    zero_(states_to_reset(optimizer, chosen, "reset"))


def states_to_reset(
    optimizer: torch.optim.Optimizer | None, parameters: Sequence[Tensor], moments: str
) -> list[dict[str, Any]]:
    """The optimiser's states of the parameters, checked to be of kinds that can be zeroed; empty for "keep".

    Raises:
        ValueError: `moments` is unknown; "reset" without an optimiser; otherwise as `reset_moments_`.
    """
    if moments not in get_args(Moments):
        raise ValueError(f"moments={moments!r} is not known: choose one of {get_args(Moments)}")
    if moments == "keep":
        return []
    if optimizer is None:
        raise ValueError('moments="reset" with optimizer=None has nothing to reset: give the optimiser, or "keep"')
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if strangers := [tuple(parameter.shape) for parameter in parameters if id(parameter) not in held]:
        raise ValueError(f"the optimiser does not hold parameters of shape {strangers}: give it these, or leave them")
    chosen = {id(parameter) for parameter in parameters}
    states = [state for parameter, state in optimizer.state.items() if id(parameter) in chosen]
    others = [state for parameter, state in optimizer.state.items() if id(parameter) not in chosen]
    if unknown := {key for state in states for key in state} - _KNOWN:
        raise ValueError(
            f"{type(optimizer).__name__} keeps {sorted(unknown)}, and only {sorted(_KNOWN)} can be reset by zeroing: "
            "keep the moments"
        )
    if shared := _addresses(states).keys() & _addresses(others).keys():
        keys = {_addresses(states)[address] for address in shared}
        raise ValueError(f"parameters that are not reset share {sorted(keys)}: reset all of the optimiser's parameters")
    return states


def zero_(states: Sequence[dict[str, Any]]) -> None:
    """Zero what `states_to_reset` returned."""
    for state in states:
        for key, value in state.items():
            if isinstance(value, Tensor):
                value.zero_()
            elif value is not None:  # a plain number of steps; None is SGD's without momentum
                state[key] = 0


def _addresses(states: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The tensors' memory addresses, and their keys."""
    return {t.data_ptr(): key for state in states for key, t in state.items() if isinstance(t, Tensor) and t.numel()}
