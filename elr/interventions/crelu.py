"""CReLU: a nonlinearity without dead units (Shang et al. 2016; Abbas et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CReLU(nn.Module):
    """[relu(x), relu(-x)] along the dimension of the units: twice as many outputs as inputs, no unit dead for long.

    One of the two halves of a unit is always active, so its weights always get a gradient (arXiv:1603.05201;
    arXiv:2303.07507 against loss of plasticity).

    Args:
        dim: of the units: 1 for convolutions [B, C, H, W] and vectors [B, d].
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """[..., d, ...] -> [..., 2 d, ...]."""
        return torch.cat([x.relu(), (-x).relu()], self.dim)

    def extra_repr(self) -> str:
        """The dimension."""
        return f"dim={self.dim}"
