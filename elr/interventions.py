"""Baselines that change weights: shrink-and-perturb, resets, and a pull to the initial weights.

They work in place on the tensors that the optimiser already holds. `fresh` is a newly initialised network of the same
architecture, drawn by the caller from its own generator and only read; nothing here draws random numbers or waits for
a device, and nothing has changed when an error is raised.

Under a Projection a projected weight changes its direction only: the next projection returns it to the recorded norm,
so that of shrink-and-perturb nothing but the ratio perturb : shrink is left there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elr.moments import Moments, states_to_reset, zero_


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

    The noise is a network and not N(0, sigma^2), so that its size follows each layer's initialisation: gains get
    perturb * 1, zero biases get nothing. shrink = 1, perturb = 0 leaves every parameter as it is, bit for bit;
    shrink = 0, perturb = 1 is `reset_`, also where parameters are not finite.

    Buffers are copied from `fresh` whatever the two numbers are, as in the authors' code, which writes the mixture into
    the new network: running statistics describe activations of weights that are gone, so they start again at mean 0,
    variance 1, count 0. In eval mode such a network is of no use before some batches in train mode.

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
        raise ValueError(f"shrink={shrink} does not shrink: give a number in [0, 1]")
    if not 0.0 <= perturb < math.inf:
        raise ValueError(f"perturb={perturb} is not a noise scale: give a finite number >= 0")
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
    """Regenerative regularisation: a penalty, added to the loss, on the distance to the parameters at construction.

    penalty = strength * sum_i ||theta_i - theta_i(0)||^2   (arXiv:2308.11958),  gradient 2 strength (theta - theta(0))

    Args:
        parameters_by_name: name to parameter, any shape, on its final device. The choice is the caller's; the authors
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
            raise ValueError("there are no parameters to pull: give at least one by name")
        if not 0.0 < strength < math.inf:
            raise ValueError(f"strength={strength} is no pull: give a positive finite number, or build no L2Init")
        self.strength = strength
        self._parameters = dict(parameters_by_name)
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


def _pairs(network: nn.Module, fresh: nn.Module, modules: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """Every tensor of the named modules ("" is the whole network) with its counterpart in a network that matches."""
    _check_match(_tensors(network), _tensors(fresh))
    known = [name for name, module in network.named_modules(remove_duplicate=False) if _tensors(module)]
    if isinstance(modules, str) or not modules:
        raise ValueError(f"modules={modules!r} is no list of modules: give names such as {known[-1:]}, or None for all")
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
