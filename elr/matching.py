"""The ELR-matched control: does the norm matter when the relative step sizes are the same?"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from elr.states import check_keys

Curve = Sequence[tuple[int, float]]
"""(update, effective learning rate) in rising order of the updates."""


class ElrMatch:
    """Give every step of an unconstrained network the relative size that another network's steps had.

        dW_l <- dW_l * t_l(u) ||W_l||_F / ||dW_l||_F,   dW_l the optimiser's step, u its number, from 1

    so the realised effective learning rate ||dW_l|| / ||W_l|| is t_l(u), for instance the one measured in a projected
    run. This control separates the effect of the norm from that of the rate it implies. A step of SGD or AdamW is
    proportional to its rate, decoupled decay included, so this is the same as rescaling each layer's rate at each step.
    t_l is interpolated between the given points, linearly in u and log t; outside them it is that of the nearest point.

        match.before_step()
        optimizer.step()
        match.after_step()

    The realised rate is matched, not the nominal one, eta / ||W||: once a network fits its data, Adam's steps shrink
    far below its rate, and each network fits its data at another time.

    Args:
        weights: layer name to parameter, as `scalable_weights` returns it.
        targets: layer name to curve t_l, positive; at least the layers of `weights`.

    Raises:
        ValueError: no weights, a layer without a target, a curve that is empty, not in order, or not positive.

    Source: ours; arXiv:2407.01800 rescales a projected network's rates per layer to reproduce an unprojected run.
    """

    def __init__(self, weights: Mapping[str, Tensor], targets: Mapping[str, Curve]) -> None:
        if not weights:
            raise ValueError("ElrMatch needs the weights of at least one layer, got none")
        missing = [layer for layer in weights if layer not in targets]
        if missing:
            raise ValueError(f"layers {missing} have no target; there are targets for {sorted(targets)}")
        for layer in weights:
            _check_curve(layer, targets[layer])
        self._weights = dict(weights)
        self._targets = {layer: [(int(u), float(t)) for u, t in targets[layer]] for layer in weights}
        self._before = {layer: torch.empty_like(w, requires_grad=False) for layer, w in weights.items()}
        self._updates = 0

    def target(self, layer: str, update: int) -> float:
        """Return t_l(u)."""
        return _interpolate(self._targets[layer], update)

    @torch.no_grad()
    def before_step(self) -> None:
        """Store the weights."""
        for layer, weight in self._weights.items():
            self._before[layer].copy_(weight)

    @torch.no_grad()
    def after_step(self) -> None:
        """Rescale the step just taken. A layer that did not move has no direction and is left unchanged."""
        self._updates += 1
        for layer, weight in self._weights.items():
            before = self._before[layer]
            step = weight - before
            length, norm = (torch.linalg.vector_norm(x, dtype=torch.float64) for x in (step, before))
            scale = torch.where(length > 0, self.target(layer, self._updates) * norm / length, 0.0)
            weight.copy_(before + step * scale.to(step.dtype))

    def state_dict(self) -> dict[str, Any]:
        """The targets and the number of updates."""
        targets = {layer: [list(point) for point in curve] for layer, curve in self._targets.items()}
        return {"targets": targets, "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly from `state_dict`, with its targets.

        Raises:
            ValueError: the layers differ.
        """
        if set(state["targets"]) != set(self._targets):
            raise ValueError(f"saved targets are for {sorted(state['targets'])}, the weights {sorted(self._targets)}")
        self._targets = {layer: [(int(u), float(t)) for u, t in state["targets"][layer]] for layer in self._targets}
        self._updates = int(state["updates"])


class NoElrMatch:
    """The matching of a run without one: nothing happens, and there is no state."""

    def before_step(self) -> None:
        """Do nothing."""

    def after_step(self) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept the empty state only (ValueError)."""
        check_keys("NoElrMatch", state, ())


def _interpolate(curve: Sequence[tuple[int, float]], update: int) -> float:
    after = bisect_right(curve, (update, math.inf))
    if after == 0:
        return curve[0][1]
    if after == len(curve):
        return curve[-1][1]
    (u0, t0), (u1, t1) = curve[after - 1], curve[after]
    return float(t0 * (t1 / t0) ** ((update - u0) / (u1 - u0)))


def _check_curve(layer: str, curve: Curve) -> None:
    updates = [update for update, _ in curve]
    if not updates or updates != sorted(set(updates)):
        raise ValueError(f"the target of {layer!r} has updates {updates[:5]}...: give some, each once, in rising order")
    bad = [target for _, target in curve if not 0.0 < target < math.inf]
    if bad:
        raise ValueError(f"the target of {layer!r} holds {bad[0]}; targets must be positive and finite")
