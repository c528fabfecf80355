"""The ELR-matched control: what does the norm do, once the relative step is the same?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor


class ElrMatch:
    """Per-layer rates with which an unconstrained network takes the relative steps of a projected one.

        lr_l(t) = eta(t) (||W_l(t)||_F / ||W_l(0)||_F)^p,   p = 1 for Adam and RMSProp, p = 2 for gradient descent

    With an update of size lr_l u, the effective learning rate lr_l u / ||W_l|| is then eta u / ||W_l(0)||, that of a
    network whose norms are held at their initial values: the control that separates the norm itself from the rate that
    it implies. Call `step` before each optimiser step, with the rate that the schedule sets.

        match.step(rewarming.rate)
        optimizer.step()

    Args:
        optimizer: each of the weights is alone in its parameter group.
        weights: layer name to parameter, as `scalable_weights` returns it.
        power: p.

    Raises:
        ValueError: no weights, a bad power, a weight that shares its group or that no group holds, or one whose norm is
            not positive.

    Source: the matched rates are those of arXiv:2407.01800 (per-layer rescaling reproduces the unprojected run), turned
        round. Decoupled weight decay lr_l * decay follows the rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], power: Literal[1, 2]) -> None:
        if not weights or power not in (1, 2):
            raise ValueError(f"weights {list(weights)}, power {power}: give at least one weight, and power 1 or 2")
        self._power = power
        self._weights = dict(weights)
        self._groups = {name: _own_group(optimizer, name, weight) for name, weight in weights.items()}
        self._norms = {name: _frobenius(weight) for name, weight in weights.items()}
        bad = {name: norm for name, norm in self._norms.items() if not 0.0 < norm < math.inf}
        if bad:
            raise ValueError(f"layers with initial norms {bad} have no rate to match: initialise them non-zero")

    def step(self, rate: float) -> None:
        """Set the rates of the next update; reads the norms, so it waits for a GPU.

        Args:
            rate: eta of the next update.
        """
        for name, group in self._groups.items():
            group["lr"] = rate * (_frobenius(self._weights[name]) / self._norms[name]) ** self._power

    def state_dict(self) -> dict[str, Any]:
        """The initial norms."""
        return {"norms": dict(self._norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the initial norms.

        Raises:
            ValueError: the layers differ.
        """
        if set(state["norms"]) != set(self._norms):
            raise ValueError(f"saved norms are for {sorted(state['norms'])}, these weights are {sorted(self._norms)}")
        self._norms = {name: float(state["norms"][name]) for name in self._norms}


def _own_group(optimizer: torch.optim.Optimizer, name: str, weight: Tensor) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(param is weight for param in group["params"]):
            if len(group["params"]) > 1:
                raise ValueError(f"{name!r} shares its parameter group with others: give each matched weight its own")
            return group
    raise ValueError(f"the optimiser does not hold {name!r}: build it over the parameters of the same network")


def _frobenius(weight: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float64))
