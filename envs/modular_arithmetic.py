"""Modular arithmetic as a data set: all ordered pairs (x, y) and x o y mod p, split into training and test pairs.

Source: A. Power et al. (2022), Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets,
arXiv:2201.02177.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

OPERATIONS = ("add", "subtract", "multiply", "divide")
"""The operations that `modular_pairs` knows."""


class Pairs(NamedTuple):
    """Ordered pairs (x, y) and their answers."""

    xy: Tensor  # [N, 2] int64
    answer: Tensor  # [N] int64
    mirrored: Tensor  # [N] bool: (y, x) is another pair, and a training sample

    def to(self, device: torch.device) -> Pairs:
        """The same pairs on a device."""
        return Pairs(*(tensor.to(device) for tensor in self))


def modular_pairs(p: int, operation: str, train_fraction: float, rng: np.random.Generator) -> tuple[Pairs, Pairs]:
    """All pairs for which x o y mod p is defined, split at random into training and test set.

    Args:
        p: modulus, at least 2; it need not be prime.
        operation: one of `OPERATIONS`; divide is defined for the y that have an inverse.
        train_fraction: share of the pairs that is trained on, rounded to whole pairs.
        rng: draws the split.
    Returns:
        Training and test pairs, in the order of the draw.
    Raises:
        ValueError: an unknown operation, p below 2, or a split that leaves one of the two empty.
    """
    if operation not in OPERATIONS or p < 2:
        raise ValueError(f"operation must be one of {OPERATIONS} and p at least 2, got {operation!r} and {p}")
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(p), np.arange(p), indexing="ij"))
    if operation == "divide":
        inverse = {b: pow(b, -1, p) for b in range(p) if math.gcd(b, p) == 1}
        defined = np.isin(y, list(inverse))
        x, y = x[defined], y[defined]
        answer = x * np.array([inverse[int(b)] for b in y]) % p
    else:
        answer = {"add": x + y, "subtract": x - y, "multiply": x * y}[operation] % p
    order = rng.permutation(len(x))
    train_size = round(train_fraction * len(x))
    if not 0 < train_size < len(x):
        raise ValueError(f"{train_fraction} of {len(x)} pairs leaves no training or no test pair")
    trained = np.zeros((p, p), dtype=bool)
    trained[x[order[:train_size]], y[order[:train_size]]] = True

    def part(index: np.ndarray) -> Pairs:
        a, b = x[index], y[index]
        mirrored = trained[b, a] & (a != b)
        return Pairs(torch.from_numpy(np.stack([a, b], 1)), torch.from_numpy(answer[index]), torch.from_numpy(mirrored))

    return part(order[:train_size]), part(order[train_size:])
