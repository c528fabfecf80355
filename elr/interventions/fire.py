"""FIRE: weights become the nearest orthogonal ones (Han et al. 2026)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from elr.interventions.pairs import is_parameter


@torch.no_grad()
def fire_(network: nn.Module, *, leave: Iterable[str] = (), iterations: int | None = None) -> list[str]:
    """Replace every linear and convolutional weight by its orthogonal polar factor, scaled, in place.

        W <- s W (W^T W)^(-1/2),   s = sqrt(d_out / d_in)                 linear
        W_ij <- s W_ij (W_ij^T W_ij)^(-1/2),   s = sqrt(c_out / c_in) / (k_h k_w)    each position ij of a kernel

    (arXiv:2602.08040). Of all matrices with equal singular values this is the nearest to W.

    Args:
        network: changed; frozen weights are left alone.
        leave: names of modules to leave alone, each with all beneath it; the authors' DQN resets its linear layers
            instead, and keeps this for the convolutions.
        iterations: of Newton and Schulz, as in the authors' code, which takes 10; these do not reach the polar factor
            where singular values are small. None computes it by a singular value decomposition.

    Returns:
        the names of the modules whose weight was changed.

    Raises:
        ValueError: a name is unknown, there is nothing to change, or a weight is not finite; nothing has been changed.

    Source: Han et al. 2026; github.com/isaac7778/FIRE.
    Deviation: exact by default. Kernels of one dimension and three are treated as those of two.
    """
    modules = dict(network.named_modules())
    left = list(leave)
    if unknown := [name for name in left if name not in modules]:
        raise ValueError(f"leave names {unknown}, which do not exist; there are {[name for name in modules if name]}")
    if iterations is not None and iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    chosen = [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and is_parameter(module.weight)
        and module.weight.requires_grad
        and not any(name == one or name.startswith(f"{one}.") for one in left)
    ]
    if not chosen:
        raise ValueError("fire_ has nothing to change: there is no trained linear or convolutional weight")
    new = {}
    for name in chosen:
        weight, groups = modules[name].weight, getattr(modules[name], "groups", 1)
        if not bool(weight.isfinite().all()):
            raise ValueError(f"the weight of {name} is not finite")
        positions = math.prod(weight.shape[2:])
        # A matrix for each group and position: [groups, positions, out, in].
        stacked = weight.reshape(groups, -1, weight.shape[1], positions).permute(0, 3, 1, 2)
        factor = polar(stacked) if iterations is None else newton_schulz(stacked, iterations)
        factor = factor * (math.sqrt(stacked.shape[2] / stacked.shape[3]) / positions)
        new[name] = factor.permute(0, 2, 3, 1).reshape(weight.shape)
    for name, weight in new.items():
        modules[name].weight.copy_(weight)
    return chosen


def polar(matrices: Tensor) -> Tensor:
    """The orthogonal polar factor U V^T of matrices [..., m, n] = U S V^T; in double precision."""
    u, _, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    factor: Tensor = u @ vh
    return factor.to(matrices.dtype)


def newton_schulz(matrices: Tensor, iterations: int) -> Tensor:
    """X <- 1.5 X - 0.5 X X^T X from X = W / ||W||_F: towards the polar factor of matrices [..., m, n].

    A matrix of zeros stays one.
    """
    wide = matrices.shape[-1] > matrices.shape[-2]
    x = matrices.mT if wide else matrices
    norm = torch.linalg.matrix_norm(x)[..., None, None]
    x = x / torch.where(norm > 0, norm, 1.0)
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * x @ (x.mT @ x)
    return x.mT if wide else x
