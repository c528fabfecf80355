"""Weight clipping: no entry may leave a multiple of its layer's initial range (Elsayed et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class WeightClipping:
    """Clamp weights and biases after every optimiser step.

        theta <- clamp(theta, -kappa b, kappa b),   b = 1 / sqrt(fan_in) of the layer   (arXiv:2407.01704)

    b is the bound of torch's default initialisation of linear and convolutional layers, weights and biases alike.

    Args:
        network: linear and convolutional layers are clamped; others, and frozen parameters, are left alone.
        kappa: 1 to 5 in the paper; 3 in its PPO.
        leave: names of modules to leave alone, each with all beneath it; the authors can leave out the last layer.

    Raises:
        ValueError: kappa is not positive and finite, a name is unknown, or there is nothing to clamp.

    Source: Elsayed et al. 2024; github.com/mohmdelsayed/weight-clipping.
    """

    def __init__(self, network: nn.Module, *, kappa: float = 3.0, leave: Iterable[str] = ()) -> None:
        if not 0 < kappa < math.inf:
            raise ValueError(f"kappa must be positive and finite, got {kappa}")
        modules = dict(network.named_modules())
        left = list(leave)
        if unknown := [name for name in left if name not in modules]:
            raise ValueError(f"leave names {unknown}, which do not exist")
        self.kappa = kappa
        self._bounds: list[tuple[Tensor, float]] = []
        for name, module in modules.items():
            if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                continue
            if any(name == one or name.startswith(f"{one}.") for one in left):
                continue
            own = dict(module.named_parameters(recurse=False))
            if "weight" not in own:
                raise ValueError(f"{name} has no weight of its own: it is computed from other parameters")
            fan_in = own["weight"][0].numel()  # as torch's initialisation counts it, in transposed layers too
            self._bounds += [(tensor, kappa / math.sqrt(fan_in)) for tensor in own.values() if tensor.requires_grad]
        if not self._bounds:
            raise ValueError("there is no trained weight or bias of a linear or convolutional layer to clip")

    @torch.no_grad()
    def clip_(self) -> None:
        """Clamp every entry, in place."""
        for tensor, bound in self._bounds:
            tensor.clamp_(-bound, bound)

    @torch.no_grad()
    def clipped_fraction(self) -> float:
        """Share of entries at their bound."""
        at = sum(int((tensor.abs() >= bound).sum()) for tensor, bound in self._bounds)
        return at / sum(tensor.numel() for tensor, _ in self._bounds)
