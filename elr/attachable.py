"""What can be attached to what: the checks of `elr.attach` before it changes anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from elr.changepoint import Cusum
from elr.measure import Meter, NoMeter
from elr.probe import NoProbe, Probe
from elr.projection import NoProjection, Projection
from elr.schedules import Schedule
from elr.stagnation import Stagnation
from elr.step_hooks import StepHooks
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
    if any(isinstance(getattr(hook, "__self__", None), StepHooks) for hook in hooks):
        raise ValueError("this optimiser is attached already: keep one handle, or detach the other first")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("LBFGS evaluates the loss several times per step, so there is no one update to measure")


def check_arguments(schedule: object, trigger: object, projection: object, meter: object, probe: object) -> None:
    """Refuse parts of a wrong kind, with what to write instead (ValueError)."""
    given = {"schedule": schedule, "trigger": trigger, "projection": projection, "meter": meter, "probe": probe}
    instead: dict[str, str] = {}
    if schedule is not None and (isinstance(schedule, LRScheduler | type) or not callable(schedule)):
        number = isinstance(schedule, int | float)
        instead["schedule"] = f"Constant({schedule})" if number else "a schedule of elr, or a function of the update"
    if trigger is not None and (isinstance(trigger, type) or not hasattr(trigger, "fires")):
        watched = {Cusum: "OnCusum(Cusum(...))", Stagnation: "OnStagnation(Stagnation(...))"}
        instead["trigger"] = watched.get(type(trigger), "a trigger, such as OnCusum(Cusum())")
    if projection is not None and not isinstance(projection, Projection | NoProjection):
        instead["projection"] = "NoProjection() for none, or Projection(network, ...)"
    if meter is not None and (isinstance(meter, bool) or not isinstance(meter, int | Meter | NoMeter)):
        instead["meter"] = "a whole number of updates, or a Meter"
    if probe is not None and not isinstance(probe, Probe | NoProbe):
        instead["probe"] = "Probe(network, inputs, layers=[...], every=...)"
    for name, remedy in instead.items():
        part = given[name]
        kind = part.__name__ if isinstance(part, type) else type(part).__name__
        raise ValueError(f"{name}={kind} is not of the right kind: give {remedy}")


def check_options(schedule: Schedule | None, trigger: Trigger | None, moments: str, outside_rates: str) -> None:
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


def frozen_matrices(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with several axes that are not trained now, by name."""
    return {name: p for name, p in network.named_parameters() if p.ndim > 1 and not p.requires_grad}


def require_still_frozen(frozen: Mapping[str, nn.Parameter]) -> None:
    """Refuse a matrix that is trained although it was frozen when the projection was chosen (RuntimeError)."""
    if trained := [name for name, parameter in frozen.items() if parameter.requires_grad]:
        raise RuntimeError(
            f"{trained} were frozen when elr.attach was called and are trained now, so nothing holds their norms: "
            "detach() and attach again"
        )


def require_held_norms(projection: Projection | NoProjection) -> None:
    """Refuse weights that were changed between the choice of the projection and its first update (ValueError)."""
    if isinstance(projection, NoProjection) or projection.state_dict()["updates"] > 0:
        return
    if changed := projection.changed():
        raise ValueError(
            f"the norms of {changed} have changed since the projection was built, which would scale them back: load "
            "the weights before, or handle.load_state_dict() with them, or call projection.remember_norms_()"
        )
