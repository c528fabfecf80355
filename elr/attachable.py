"""What can be attached to what: the checks of `elr.attach` before it changes anything."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from elr.measure import Meter, NoMeter
from elr.probe import NoProbe, Probe
from elr.projection import NoProjection, Projection
from elr.schedules import Schedule
from elr.triggers import Trigger

OutsideRates = Literal["refuse", "overrule"]
"""When something else has set the optimiser's rate: refuse the next update, or set the schedule's rate again."""


def check_pair(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse what is no network or an optimiser whose steps cannot be followed (ValueError)."""
    if not isinstance(network, nn.Module):
        raise ValueError(f"attach(network, optimizer) needs an nn.Module first, got {type(network).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"attach(network, optimizer) needs a torch optimiser, got {type(optimizer).__name__}")
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise ValueError(
            f"{type(optimizer).__name__} wraps an optimiser and runs no step hooks: attach to the optimiser inside it"
        )
    hooks = optimizer._optimizer_step_pre_hooks.values()  # wrappers of an optimiser share them
    if any(hasattr(getattr(hook, "__self__", None), "is_attachment") for hook in hooks):
        raise ValueError("this optimiser is attached already: keep one handle, or detach the other first")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("LBFGS evaluates the loss several times per step, so there is no one update to measure")


def check_arguments(schedule: Schedule | None, trigger: Trigger | None, moments: str, outside_rates: str) -> None:
    """Refuse unknown values and arguments that would have no effect (ValueError)."""
    if outside_rates not in get_args(OutsideRates):
        raise ValueError(f"outside_rates={outside_rates!r} is not known: choose one of {get_args(OutsideRates)}")
    given = {"trigger": trigger is not None, "moments": moments != "keep", "outside_rates": outside_rates != "refuse"}
    if schedule is None and (unused := [name for name, used in given.items() if used]):
        raise ValueError(
            f"{', '.join(unused)} has no effect without a schedule: give one, such as schedule=Cyclic(...)"
        )


def check_projection(
    projection: Projection | NoProjection, network: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Refuse weights that are not the network's or not the optimiser's (ValueError)."""
    if isinstance(projection, NoProjection):
        return
    own = {id(parameter) for parameter in network.parameters()}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if strangers := [name for name, weight in projection.weights.items() if id(weight) not in own]:
        raise ValueError(f"the projection holds {strangers} of another network: build it from the network you attach")
    if missing := [name for name, weight in projection.weights.items() if id(weight) not in held]:
        raise ValueError(
            f"the optimiser does not hold {missing}: attach the part of the network that it trains, or name these in "
            "Projection(network, leave=[...])"
        )


def check_probe(probe: Probe | NoProbe, network: nn.Module) -> None:
    """Refuse a probe of another network (ValueError)."""
    if isinstance(probe, NoProbe):
        return
    own = {id(parameter) for parameter in network.parameters()}
    if not any(id(parameter) in own for parameter in probe.network.parameters()):
        raise ValueError("the probe is of another network: build it from the network you attach")


def check_meter(meter: Meter | NoMeter, optimizer: torch.optim.Optimizer) -> None:
    """Refuse a meter of another optimiser (ValueError)."""
    if isinstance(meter, Meter) and meter.optimizer.param_groups is not optimizer.param_groups:
        raise ValueError("the meter was built with another optimiser: build it with the one you attach")
