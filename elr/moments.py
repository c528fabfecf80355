"""Reset an optimiser's moments and step counts in place.

In place, so moments that are views of one vector remain views, and a captured CUDA graph sees the change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

Moments = Literal["keep", "reset"]
"""When the weights or the rate are changed: keep the optimiser's moments, or set them to zero."""

_ZERO_AT_FIRST = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "step")
# Only for torch's own classes: other people's RMSprop may start its square_avg at 1, as TensorFlow's does.
_ZERO_AT_FIRST_IN: tuple[tuple[type[torch.optim.Optimizer], tuple[str, ...]], ...] = (
    (torch.optim.RMSprop, ("square_avg", "grad_avg")),
    (torch.optim.Adadelta, ("square_avg", "acc_delta")),
    (torch.optim.Adamax, ("exp_inf",)),
)


class Kept(NamedTuple):
    """What an optimiser keeps for one parameter, and the values with which a new optimiser starts, by name.

    The value None means that a new optimiser keeps nothing under this name until its first update.
    """

    state: dict[str, Any]
    initial: dict[str, float | None]


@torch.no_grad()
def reset_moments_(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor] | None = None) -> None:
    """Reset an optimiser's moments and step counts in place, for all its parameters or for exactly these.

    m <- 0,  v <- 0,  max v <- 0,  momentum <- 0,  t <- 0;  in NAdam also mu_product <- 1,  in Adagrad
    sum <- initial_accumulator_value

    The next updates of these parameters equal those of a new optimiser with the same groups, to the last bit. This
    holds for torch's Adam, AdamW, Adamax, NAdam, RAdam, SparseAdam, Adagrad, Adadelta, RMSprop and SGD, `fused`,
    `foreach` and `capturable` included, and for other optimisers whose whole state has the names that Adam and SGD
    use. A parameter without a first update has nothing to reset.

    Args:
        optimizer: one of those above.
        parameters: some of the optimiser's, at least one; None means all.

    Raises:
        ValueError: there are no parameters, or one that the optimiser does not hold; the optimiser keeps something
            whose initial value is not known, in a parameter's state or beside it; or a parameter shares a moment or
            step count with one that is not reset. Nothing has been changed then.

    Source: arXiv:2205.07802, which makes a new optimiser for the reset parameters.
    Deviation: ReDo's code zeroes m and v but not t, which makes the next updates about 3 times a new Adam's.
    """
    held = [p for group in optimizer.param_groups for p in group["params"]]
    chosen = held if parameters is None else list(parameters)
    if not chosen:
        raise ValueError("there are no parameters whose moments to reset: give at least one that the optimiser holds")
    zero_(states_to_reset(optimizer, chosen, "reset"))


def states_to_reset(optimizer: torch.optim.Optimizer | None, parameters: Sequence[Tensor], moments: str) -> list[Kept]:
    """What the optimiser keeps of the parameters, checked to be of kinds that can be reset; empty for "keep".

    Raises:
        ValueError: `moments` is unknown; "reset" without an optimiser; otherwise as `reset_moments_`.
    """
    if moments not in get_args(Moments):
        raise ValueError(f"moments={moments!r} is not known: choose one of {get_args(Moments)}")
    if moments == "keep":
        return []
    if optimizer is None:
        raise ValueError('moments="reset" with optimizer=None has nothing to reset: give the optimiser, or "keep"')
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    if strangers := [tuple(parameter.shape) for parameter in parameters if id(parameter) not in group_of]:
        raise ValueError(f"the optimiser does not hold parameters of shape {strangers}: give it these, or leave them")
    chosen = {id(parameter) for parameter in parameters}
    states, others = [], []
    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, Tensor):
            raise ValueError(f"{_name(optimizer)} keeps {parameter!r} next to the parameters' states: keep the moments")
        if id(parameter) in chosen:
            states.append(Kept(state, _initial(optimizer, group_of[id(parameter)], state)))
        else:
            others.append(state)
    addresses = _addresses([kept.state for kept in states])
    if shared := addresses.keys() & _addresses(others).keys():
        keys = {addresses[address] for address in shared}
        raise ValueError(f"parameters that are not reset share {sorted(keys)}: reset all of the optimiser's parameters")
    return states


def per_entry(optimizer: torch.optim.Optimizer, parameter: Tensor) -> list[tuple[Tensor, float]]:
    """What the optimiser keeps for every single entry of a parameter, with the value at which it starts.

    Step counts, which belong to whole parameters or to several, are left out: for resets of single entries, or of
    parameters that share a count with others.

    Raises:
        ValueError: the optimiser does not hold the parameter, or keeps something whose initial value is not known.
    """
    for group in optimizer.param_groups:
        if any(held is parameter for held in group["params"]):
            state = optimizer.state.get(parameter, {})
            initial = _initial(optimizer, group, state)
            tensors = ((key, value) for key, value in state.items() if key != "step" and isinstance(value, Tensor))
            return [(value, initial[key] or 0.0) for key, value in tensors if value.shape == parameter.shape]
    raise ValueError(f"the optimiser does not hold a parameter of shape {tuple(parameter.shape)}")


@torch.no_grad()
def zero_(states: Sequence[Kept]) -> None:
    """Set what `states_to_reset` returned to its initial values, which are zero with few exceptions."""
    for state, initial in states:
        for key, value in state.items():
            first = initial[key]
            if isinstance(value, Tensor):
                if first:
                    value.fill_(complex(first, first) if value.is_complex() else first)  # as Adagrad starts its sum
                else:
                    value.zero_()  # also a sparse one
                if first is None:
                    state[key] = None
            elif value is not None:  # a plain number of steps; None is SGD's without momentum
                state[key] = type(value)(first or 0)


def _initial(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, float | None]:
    """The values with which a new optimiser starts, for the names in the state."""
    known: dict[str, float | None] = dict.fromkeys(_ZERO_AT_FIRST, 0.0)
    for kind, names in _ZERO_AT_FIRST_IN:
        if isinstance(optimizer, kind):
            known |= dict.fromkeys(names, 0.0)
    if isinstance(optimizer, torch.optim.NAdam):
        known["mu_product"] = 1.0
    if isinstance(optimizer, torch.optim.Adagrad):
        known["sum"] = float(optimizer.defaults["initial_accumulator_value"])
    if unknown := state.keys() - known.keys():
        raise ValueError(
            f"{_name(optimizer)} keeps {sorted(unknown)}, and with which values it starts is not known: keep the "
            "moments, or build a new optimiser"
        )
    if "step" in group:
        raise ValueError(
            f"{_name(optimizer)} keeps a step count in its groups, which counts for parameters that are not reset too: "
            "keep the moments, or build a new optimiser"
        )
    if group.get("dampening") and state.get("momentum_buffer") is not None:
        if group.get("fused") or not isinstance(optimizer, torch.optim.SGD):
            raise ValueError(
                f"{_name(optimizer)} does not damp the first momentum, so momentum 0 is not how it starts: use "
                f"dampening=0 instead of {group['dampening']}, fused=False, or keep the moments"
            )
        known["momentum_buffer"] = None
    return known


def _name(optimizer: torch.optim.Optimizer) -> str:
    return type(optimizer).__name__


def _addresses(states: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The tensors' memory addresses, and their keys; a sparse tensor has none of its own."""
    return {
        tensor.data_ptr(): key
        for state in states
        for key, tensor in state.items()
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.numel()
    }
