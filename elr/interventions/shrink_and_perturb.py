"""Shrink-and-perturb: every parameter is shrunk, and a scaled fresh network is added."""

from __future__ import annotations

import math

import torch
from torch import nn

from elr.interventions.pairs import is_parameter, parameters_of, tensor_pairs
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

    The noise is a network, not N(0, sigma^2), so its size follows each layer's initialisation: gains get perturb * 1,
    zero biases get nothing. shrink = 1, perturb = 0 leaves every parameter as it is, bit for bit;
    shrink = 0, perturb = 1 is `elr.interventions.reset_`, also where parameters are not finite.

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
    pairs = tensor_pairs(network, fresh, [""])
    parameters = parameters_of(pairs)
    states = states_to_reset(optimizer, parameters, moments)
    if shrink == 0.0:
        torch._foreach_zero_(parameters)  # 0 * inf is not 0
    else:
        torch._foreach_mul_(parameters, shrink)
    if perturb != 0.0:
        torch._foreach_add_(parameters, [theirs for ours, theirs in pairs if is_parameter(ours)], alpha=perturb)
    for ours, theirs in pairs:
        if not is_parameter(ours):
            ours.copy_(theirs)
    zero_(states)
