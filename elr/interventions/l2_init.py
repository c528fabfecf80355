"""Regenerative regularisation: a pull to the initial weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class L2Init:
    """Regenerative regularisation: a penalty, added to the loss, on the distance to the parameters at construction
    or at the last `remember_`.

    penalty = strength * sum_i ||theta_i - theta_i(0)||^2   (arXiv:2308.11958),  gradient 2 strength (theta - theta(0))

    Args:
        parameters_by_name: name to parameter, any shape, on its final device. The caller chooses them; the authors
            leave out frozen parameters and those of layer normalisation.
        strength: positive, finite; the paper's lambda. The authors' code multiplies by 0.5 * l2_weight, so that its
            l2_weight = 1e-2 is strength = 5e-3.

    Raises:
        ValueError: there are no parameters, or the strength is not positive and finite.

    Source: Kumar et al. 2023; github.com/skumar9876/L2_Init.
    Deviation: none from the paper; the factor 0.5 from its code.
    """

    def __init__(self, parameters_by_name: Mapping[str, Tensor], strength: float) -> None:
        if not parameters_by_name:
            raise ValueError("L2Init needs at least one named parameter, got none")
        if not 0.0 < strength < math.inf:
            raise ValueError(f"strength must be positive and finite, got {strength}")
        self.strength = strength
        self._parameters = dict(parameters_by_name)
        self.remember_()

    def remember_(self) -> None:
        """From now on pull to the values that the parameters have now, as a new L2Init would."""
        self._initial = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def penalty(self) -> Tensor:
        """Return the penalty, 0-d, with its graph."""
        squares = [F.mse_loss(theta, self._initial[name], reduction="sum") for name, theta in self._parameters.items()]
        return self.strength * torch.stack(squares).sum()

    @torch.no_grad()
    def add_gradient_(self) -> None:
        """Add 2 strength (theta - theta(0)) to every .grad, as the penalty in the loss would, without a graph.

        Raises:
            ValueError: a parameter has no gradient yet; nothing has been changed.
        """
        if missing := [name for name, theta in self._parameters.items() if theta.grad is None]:
            raise ValueError(f"{missing} have no gradient: call add_gradient_ after the loss's backward pass")
        for name, theta in self._parameters.items():
            assert theta.grad is not None
            theta.grad.add_(theta - self._initial[name], alpha=2.0 * self.strength)

    def state_dict(self) -> dict[str, Any]:
        """theta(0) by name, as copies; the strength is configuration."""
        return {"initial": {name: initial.clone() for name, initial in self._initial.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore theta(0).

        Raises:
            ValueError: names or shapes differ.
        """
        saved, held = ({n: tuple(t.shape) for n, t in each.items()} for each in (state["initial"], self._initial))
        if saved != held:
            raise ValueError(f"saved initial values are of {saved}, the parameters {held}: build with the same network")
        for name, initial in self._initial.items():
            initial.copy_(state["initial"][name])
