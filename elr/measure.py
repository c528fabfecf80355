"""Realised and nominal effective learning rates per layer, and the norms that they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from elr.states import check_keys

_GRADIENT_SCALE_CANCELS = (
    torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam,
    torch.optim.SparseAdam, torch.optim.RMSprop, torch.optim.Adagrad,
)  # fmt: skip


class Meter:
    """Measure the realised ELR of each layer around `optimizer.step()`.

        realised   ||dW_l||_F / ||W_l||_F,  dW_l = W_l(after the step) - W_l(before it)
        nominal    eta_l / ||W_l||_F^p,     p = 1 for Adam and RMSProp, p = 2 for gradient descent

    (arXiv:2507.20057, Sec. 2.) dW_l is the step the optimiser took. It contains clipping and weight decay if they
    happen before or inside `optimizer.step()`; it does not contain projection if that follows `after_step`. W_l and the
    gradient, as clipped, are those before the step. Update 1 and updates every, 2 * every, ... are measured; others are
    only counted. The numbers stay on the device until `scalars` is called.

    A weight without a gradient is measured like any other. The rows of a sparse gradient are summed first. With a
    GradScaler, call `scaler.unscale_(optimizer)` before `before_step`; called by a hook within the optimiser's step, as
    `elr.attach` does, it divides by the scale itself. A step that the GradScaler skips is measured as one of size 0.

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
        nominal_power: p. None takes it from the optimiser's class: 2 for torch's SGD; 1 for torch's Adam, AdamW,
            Adamax, NAdam, RAdam, SparseAdam, RMSprop and Adagrad, whose update does not grow with the gradient.

    Raises:
        ValueError: no weights, a tensor twice or on another device, a weight that no group holds, bad every or power,
            or an optimiser of another class without nominal_power.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        every: int,
        optimizer: torch.optim.Optimizer,
        nominal_power: Literal[1, 2] | None = None,
    ) -> None:
        power = _power_of(optimizer) if nominal_power is None else nominal_power
        _check(weights, every, power)
        self._layers = list(weights)
        self._weights = list(weights.values())
        self._every = every
        self.optimizer = optimizer
        self._power = power
        _groups(weights, optimizer)
        self._before = [torch.empty_like(weight, requires_grad=False) for weight in self._weights]
        self._with_gradient: list[str] = []
        self._weight_norms: list[Tensor] = []
        self._gradient_norms: list[Tensor] = []
        self._norms: list[Tensor] = []  # of all weights, all updates, and the gradients that there are
        self._rates: list[float | Tensor] = []
        self._updates = 0
        self._open = False
        self._fresh = False

    def before_step(self) -> None:
        """Count an update; if it is to be measured, store the weights, their norms, the gradients' norms and the rates.

        Raises:
            RuntimeError: called twice without `after_step`.
            ValueError: a measured weight has changed its device, type or shape, or left the optimiser.
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

    def cancel_step(self) -> None:
        """Undo `before_step`, for a step that the optimiser did not take."""
        if self._open and self._due():
            self._norms = []  # half of a measurement has taken the place of the last
        if self._open:
            self._updates -= 1
        self._open = self._fresh = False

    @property
    def measured(self) -> bool:
        """Whether there is a measurement for `scalars`."""
        return not self._open and bool(self._norms)

    def fresh_scalars(self) -> dict[str, float]:
        """The scalars of the step just taken if it was measured, otherwise {}."""
        return self.scalars() if self._fresh else {}

    def scalars(self) -> dict[str, float]:
        """Return the last measurement in one transfer to the host.

        A layer that is zero before the step has an infinite rate, or NaN if it did not move.

        Returns:
            tags elr/<layer>, elr_nominal/<layer>, norms/parameter/<layer>, norms/gradient/<layer>,
            norms/update/<layer>; norms/gradient/<layer> only if the layer had a gradient.

        Raises:
            RuntimeError: there is no measurement yet, or `after_step` has not been called.
        """
        if self._open or not self._norms:
            raise RuntimeError("there is no complete measurement: call scalars when after_step returned True")
        layers = len(self._layers)
        on_device = [rate.reshape(()) for rate in self._rates if isinstance(rate, Tensor)]
        device = self._norms[0].device
        host = torch.stack([value.double().to(device) for value in (*self._norms, *on_device)]).cpu()
        parameter, update, rest = host[:layers], host[layers : 2 * layers], host[2 * layers :].tolist()
        gradient, moved = rest[: len(self._with_gradient)], iter(rest[len(self._with_gradient) :])
        rate = host.new_tensor([next(moved) if isinstance(rate, Tensor) else rate for rate in self._rates])
        columns = {
            "elr": (self._layers, (update / parameter).tolist()),
            "elr_nominal": (self._layers, (rate / parameter**self._power).tolist()),
            "norms/parameter": (self._layers, parameter.tolist()),
            "norms/gradient": (self._with_gradient, gradient),
            "norms/update": (self._layers, update.tolist()),
        }
        return {
            f"{tag}/{layer}": value
            for tag, (layers_of, column) in columns.items()
            for layer, value in zip(layers_of, column, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the update count, so that a resumed run measures at the same updates."""
        return {"updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the update count and forget any measurement.

        Raises:
            ValueError: wrong keys, or the count is negative.
        """
        check_keys("Meter", state, ["updates"])
        if state["updates"] < 0:
            raise ValueError(f"saved update count {state['updates']} is negative: load what state_dict returned")
        self._updates = int(state["updates"])
        self._open = self._fresh = False
        self._norms = []

    def _due(self) -> bool:
        return self._updates % self._every == 0 or self._updates == 1

    @torch.no_grad()
    def _record_before(self) -> None:
        weights = dict(zip(self._layers, self._weights, strict=True))
        for (layer, weight), before in zip(weights.items(), self._before, strict=True):
            _require_same(layer, weight, before)
        rates = [group["lr"] for group in _groups(weights, self.optimizer)]
        gradients = {layer: _values(weight.grad) for layer, weight in weights.items() if weight.grad is not None}
        torch._foreach_copy_(self._before, self._weights)
        self._rates = [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]
        self._with_gradient = list(gradients)
        self._weight_norms = _norms(self._weights)
        # A GradScaler gives a fused optimiser this attribute for the step, and leaves the division to its kernel.
        scale = getattr(self.optimizer, "grad_scale", None)
        norms = _norms(list(gradients.values()))
        self._gradient_norms = norms if scale is None else [norm / scale.to(norm.device) for norm in norms]

    @torch.no_grad()
    def _record_after(self) -> None:
        torch._foreach_sub_(self._before, self._weights)
        self._norms = [*self._weight_norms, *_norms(self._before), *self._gradient_norms]


class NoMeter:
    """The meter of a run without one: nothing is measured, and there is no state."""

    def before_step(self) -> None:
        """Do nothing."""

    def after_step(self) -> bool:
        """Never a measurement."""
        return False

    measured = False

    def cancel_step(self) -> None:
        """Do nothing."""

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
    return list(torch._foreach_norm(tensors, 2, dtype=torch.float64)) if tensors else []


def _values(gradient: Tensor) -> Tensor:
    """The gradient, or the values of a sparse one, in which a row that occurs twice in the batch stands twice."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _require_same(layer: str, weight: Tensor, before: Tensor) -> None:
    now, then = ((tensor.device, tensor.dtype, tensor.shape) for tensor in (weight, before))
    if now != then:
        was, is_ = (f"{dtype} {tuple(shape)} on {device}" for device, dtype, shape in (then, now))
        raise ValueError(f"{layer!r} was {was} when its Meter was built and is {is_} now: build the Meter after that")


def _power_of(optimizer: torch.optim.Optimizer) -> Literal[1, 2]:
    if isinstance(optimizer, torch.optim.SGD):
        return 2
    if isinstance(optimizer, _GRADIENT_SCALE_CANCELS):
        return 1
    raise ValueError(
        f"how the updates of {type(optimizer).__name__} grow with the gradient is not known: give nominal_power, 1 if "
        "its updates do not grow with the gradient, as Adam's, 2 if they are proportional to it, as SGD's"
    )


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


def _groups(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The group of each weight."""
    group_of = {id(param): group for group in optimizer.param_groups for param in group["params"]}
    missing = [layer for layer, weight in weights.items() if id(weight) not in group_of]
    if missing:
        raise ValueError(f"the optimiser does not hold {missing}: build it over the parameters of the same network")
    return [group_of[id(weight)] for weight in weights.values()]
