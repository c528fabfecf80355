"""Realised and nominal effective learning rates per layer, and the norms that they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from elr.states import check_keys


class Meter:
    """Measure the realised ELR of each layer around `optimizer.step()`.

        realised   ||dW_l||_F / ||W_l||_F,  dW_l = W_l(after the step) - W_l(before it)
        nominal    eta_l / ||W_l||_F^p,     p = 1 for Adam and RMSProp, p = 2 for gradient descent

    (arXiv:2507.20057, Sec. 2.) dW_l is the step the optimiser took. It contains clipping and weight decay if they
    happen before or inside `optimizer.step()`; it does not contain projection if that follows `after_step`. W_l and the
    gradient, as clipped, are those before the step. Update 1 and updates every, 2 * every, ... are measured; others are
    only counted. The numbers stay on the device until `scalars` is called.

        meter.before_step()
        optimizer.step()
        meter.after_step()
        projection.step(lr)
        write(meter.fresh_scalars())

    Args:
        weights: layer name to parameter, as `scalable_weights` returns it; at least one, each tensor once, all on one
            device.
        every: cadence in optimiser updates.
        optimizer: its groups give eta_l by parameter identity, also after `load_state_dict`.
        nominal_power: p.

    Raises:
        ValueError: no weights, a tensor twice or on another device, a weight that no group holds, bad every or power.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        every: int,
        optimizer: torch.optim.Optimizer,
        nominal_power: Literal[1, 2],
    ) -> None:
        _check(weights, every, nominal_power)
        self._layers = list(weights)
        self._weights = list(weights.values())
        self._every = every
        self._optimizer = optimizer
        self._power = nominal_power
        self._group_index = _group_indices(weights, optimizer)
        self._before = [torch.empty_like(weight, requires_grad=False) for weight in self._weights]
        self._norms: list[Tensor] = []
        self._rates: list[float | Tensor] = []
        self._updates = 0
        self._open = False
        self._fresh = False

    def before_step(self) -> None:
        """Count an update; if it is to be measured, store the weights, their norms, the gradients' norms and the rates.

        Raises:
            RuntimeError: called twice without `after_step`.
            ValueError: a measured weight has no gradient.
        """
        if self._open:
            raise RuntimeError("before_step was called twice: call after_step once after each optimizer.step()")
        self._updates += 1
        self._open, self._fresh = True, False
        if self._due():
            self._record_before()

    def after_step(self) -> bool:
        """End the measurement of a step; return True if there is a new one for `scalars`.

        Raises:
            RuntimeError: called without `before_step`.
        """
        if not self._open:
            raise RuntimeError("after_step was called without before_step: call before_step before optimizer.step()")
        self._open = False
        if not self._due():
            return False
        self._record_after()
        self._fresh = True
        return True

    def fresh_scalars(self) -> dict[str, float]:
        """The scalars of the step just taken if it was measured, otherwise {}."""
        return self.scalars() if self._fresh else {}

    def scalars(self) -> dict[str, float]:
        """Return the last measurement in one transfer to the host.

        A layer that is zero before the step has an infinite rate, or NaN if it did not move.

        Returns:
            tags elr/<layer>, elr_nominal/<layer>, norms/parameter/<layer>, norms/gradient/<layer>,
            norms/update/<layer>.

        Raises:
            RuntimeError: there is no measurement yet, or `after_step` has not been called.
        """
        if self._open or not self._norms:
            raise RuntimeError("there is no complete measurement: call scalars when after_step returned True")
        layers = len(self._layers)
        on_device = [rate for rate in self._rates if isinstance(rate, Tensor)]
        device = self._norms[0].device
        host = torch.stack([value.double().to(device) for value in (*self._norms, *on_device)]).cpu()
        parameter, gradient, update = host[: 3 * layers].view(3, layers)
        moved = iter(host[3 * layers :].tolist())
        rate = host.new_tensor([next(moved) if isinstance(rate, Tensor) else rate for rate in self._rates])
        columns = {
            "elr": update / parameter,
            "elr_nominal": rate / parameter**self._power,
            "norms/parameter": parameter,
            "norms/gradient": gradient,
            "norms/update": update,
        }
        return {
            f"{tag}/{layer}": value
            for tag, column in columns.items()
            for layer, value in zip(self._layers, column.tolist(), strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the update count, so that a resumed run measures at the same updates."""
        return {"updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the update count and forget any measurement.

        Raises:
            ValueError: the count is negative.
        """
        if state["updates"] < 0:
            raise ValueError(f"saved update count {state['updates']} is negative: load what state_dict returned")
        self._updates = int(state["updates"])
        self._open = self._fresh = False
        self._norms = []

    def _due(self) -> bool:
        return self._updates % self._every == 0 or self._updates == 1

    @torch.no_grad()
    def _record_before(self) -> None:
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        if len(gradients) < len(self._weights):
            missing = [layer for layer, w in zip(self._layers, self._weights, strict=True) if w.grad is None]
            raise ValueError(f"{missing} have no gradient: call before_step after backward, with layers in the loss")
        torch._foreach_copy_(self._before, self._weights)
        groups = self._optimizer.param_groups
        rates = [groups[index]["lr"] for index in self._group_index]
        self._rates = [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]
        self._norms = [*_norms(self._weights), *_norms(gradients)]

    @torch.no_grad()
    def _record_after(self) -> None:
        torch._foreach_sub_(self._before, self._weights)
        self._norms.extend(_norms(self._before))


class NoMeter:
    """The meter of a run without one: nothing is measured, and there is no state."""

    def before_step(self) -> None:
        """Do nothing."""

    def after_step(self) -> bool:
        """Never a measurement."""
        return False

    def fresh_scalars(self) -> dict[str, float]:
        """No scalars."""
        return {}

    def scalars(self) -> dict[str, float]:
        """No scalars."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept the empty state only (ValueError)."""
        check_keys("NoMeter", state, ())


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    # Summed in float64: a float32 sum of many equal squares, as in Adam's first step, is off in the fourth digit.
    return list(torch._foreach_norm(tensors, 2, dtype=torch.float64))


def _check(weights: Mapping[str, Tensor], every: int, power: int) -> None:
    if not weights:
        raise ValueError("Meter needs the weights of at least one layer, got none")
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}; without measurements use NoMeter")
    if power not in (1, 2):
        raise ValueError(f"nominal_power must be 1 (Adam and RMSProp) or 2 (gradient descent), got {power}")
    if len({id(weight) for weight in weights.values()}) < len(weights):
        raise ValueError(f"{list(weights)} name the same tensor twice: give each layer once")
    devices = {str(weight.device) for weight in weights.values()}
    if len(devices) > 1:
        raise ValueError(f"weights are on {sorted(devices)}: use one Meter per device")


def _group_indices(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> list[int]:
    group_of = {id(param): index for index, group in enumerate(optimizer.param_groups) for param in group["params"]}
    missing = [layer for layer, weight in weights.items() if id(weight) not in group_of]
    if missing:
        raise ValueError(f"the optimiser does not hold {missing}: build it over the parameters of the same network")
    return [group_of[id(weight)] for weight in weights.values()]
