"""Resets: parameters of the network, or of some of its modules, become those of a fresh one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from elr.interventions.pairs import parameters_of, tensor_pairs
from elr.moments import Moments, states_to_reset, zero_


@torch.no_grad()
def reset_(
    network: nn.Module,
    fresh: nn.Module,
    *,
    modules: Iterable[str] | None = None,
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
    pairs = tensor_pairs(network, fresh, [""] if modules is None else modules)
    states = states_to_reset(optimizer, parameters_of(pairs), moments)
    torch._foreach_copy_([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    zero_(states)
