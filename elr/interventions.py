"""Baselines that change weights: shrink-and-perturb, resets, and a pull to the initial weights.

They work in place on the tensors that the optimiser already holds. `fresh` is a newly initialised network of the same
architecture. The caller draws it from a generator; here it is only read. These functions draw no random numbers and do
not wait for a device. When they raise an error, nothing has been changed.

Under a Projection only the direction of a projected weight changes, because the next projection returns it to the
recorded norm. Of shrink-and-perturb only the ratio perturb : shrink matters there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elr.moments import Moments, states_to_reset, zero_
from elr.states import check_keys


@torch.no_grad()
def shrink_and_perturb_(
    network: nn.Module,
    fresh: nn.Module,
    *,
    shrink: float,
    perturb: float,
    optimizer: torch.optim.Optimizer | None = None,
    moments: Moments = "keep",
) -> None:
    """Shrink every parameter and add a scaled fresh network, in place.

    theta <- shrink * theta + perturb * theta_fresh   (arXiv:1910.08475, whose lambda is shrink)

    The noise is a network, not N(0, sigma^2), so its size follows each layer's initialisation: gains get perturb * 1,
    zero biases get nothing. shrink = 1, perturb = 0 leaves every parameter as it is, bit for bit;
    shrink = 0, perturb = 1 is `reset_`, also where parameters are not finite.

    Buffers are copied from `fresh` for all values of the two numbers, as in the authors' code, which writes the mixture
    into the new network. Running statistics describe activations of weights that no longer exist, so they start again
    at mean 0, variance 1, count 0. Run some batches in train mode before such a network is used in eval mode.

    Args:
        network: changed; frozen parameters too, tied ones once.
        fresh: same names, shapes, types and devices. A copy of the network at its start is another known variant.
        shrink: in [0, 1]; 0.4 in the authors' code.
        perturb: finite, >= 0; 0.1 in the authors' code.
        optimizer: for moments="reset"; must then hold every parameter of the network.
        moments: "keep" the optimiser's, or "reset" those of every parameter of the network by `reset_moments_`.

    Raises:
        ValueError: bad numbers or both zero; the networks differ or share memory; `moments` is unknown, or its reset
            is refused.

    Source: Ash & Adams 2020; github.com/JordanAsh/warm_start.
    Deviation: the authors make a new optimiser each time, which is moments="reset"; the default keeps the moments.
    """
    if not 0.0 <= shrink <= 1.0:
        raise ValueError(f"shrink must be in [0, 1], got {shrink}")
    if not 0.0 <= perturb < math.inf:
        raise ValueError(f"perturb must be finite and >= 0, got {perturb}")
    if shrink == perturb == 0.0:
        raise ValueError(f"shrink={shrink} with perturb={perturb} makes every weight zero: give one a positive value")
    pairs = _pairs(network, fresh, [""])
    parameters = _parameters(pairs)
    states = states_to_reset(optimizer, parameters, moments)
    if shrink == 0.0:
        torch._foreach_zero_(parameters)  # 0 * inf is not 0
    else:
        torch._foreach_mul_(parameters, shrink)
    if perturb != 0.0:
        torch._foreach_add_(parameters, [theirs for ours, theirs in pairs if _is_parameter(ours)], alpha=perturb)
    for ours, theirs in pairs:
        if not _is_parameter(ours):
            ours.copy_(theirs)
    zero_(states)


@torch.no_grad()
def reset_(
    network: nn.Module,
    fresh: nn.Module,
    *,
    modules: Sequence[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    moments: Moments = "keep",
) -> None:
    """Copy parameters and buffers of a fresh network, in place, for the whole network or for some of its modules.

    theta_m <- theta_fresh,m   for every tensor of every named module m   (arXiv:2205.07802)

    Args:
        network: changed. A tensor that a named module shares with another changes for both.
        fresh: same names, shapes, types and devices.
        modules: names as in `network.named_modules()`, each with all it contains; None means the whole network.
        optimizer: for moments="reset"; must then hold every copied parameter.
        moments: "keep" the optimiser's, or "reset" those of the copied parameters by `reset_moments_`.

    Raises:
        ValueError: a name is unknown or holds no tensor, or there is none; the networks differ or share memory;
            `moments` is unknown, or its reset is refused.

    Source: Nikishin et al. 2022, who reset the last layers, or the whole agent, every so many steps.
    Deviation: the authors give reset parts fresh moments, which is moments="reset"; the default keeps the moments.
    """
    pairs = _pairs(network, fresh, [""] if modules is None else modules)
    states = states_to_reset(optimizer, _parameters(pairs), moments)
    torch._foreach_copy_([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    zero_(states)


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
            raise ValueError(f"strength must be positive and finite, got {strength}; without a penalty use NoL2Init")
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


class NoL2Init:
    """The penalty of a run without one: zero, and there is no state."""

    def remember_(self) -> None:
        """Do nothing."""

    def penalty(self) -> float:
        """Zero: added to a loss, it changes neither the loss nor its gradient, not by a bit."""
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept the empty state only (ValueError)."""
        check_keys("NoL2Init", state, ())


def _pairs(network: nn.Module, fresh: nn.Module, modules: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """Every tensor of the named modules ("" is the whole network) with its counterpart in a network that matches."""
    _check_match(_tensors(network), _tensors(fresh))
    known = [name for name, module in network.named_modules(remove_duplicate=False) if _tensors(module)]
    if isinstance(modules, str) or not modules:
        raise ValueError(
            f"modules must be a list of names, got {modules!r}: give names such as {known[-1:]}, or None for all"
        )
    if unknown := [name for name in modules if name not in known]:
        raise ValueError(f"modules {unknown} do not exist or hold no parameter or buffer; there are {known}")
    both = [(_tensors(network.get_submodule(name)), _tensors(fresh.get_submodule(name))) for name in modules]
    return [(ours[key], theirs[key]) for ours, theirs in both for key in ours]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each tensor once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def _parameters(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [ours for ours, _ in pairs if _is_parameter(ours)]


def _check_match(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    if unmatched := sorted(set(ours) ^ set(theirs)):
        raise ValueError(f"only one of network and fresh has {unmatched}: build both with the same class and arguments")
    for name in ours:
        one, other = ((tuple(t.shape), str(t.dtype), str(t.device)) for t in (ours[name], theirs[name]))
        if one != other:
            raise ValueError(f"{name!r} is {one} in network, {other} in fresh: build both alike, on the same device")
    used = {tensor.data_ptr() for tensor in ours.values() if tensor.numel()}
    if shared := [name for name, tensor in theirs.items() if tensor.data_ptr() in used]:
        raise ValueError(f"fresh shares the memory of {shared} with network: build a new network or a deep copy")
