"""The arithmetic of projection: rescale tensors in place to given norms, and which norms and types it can hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Rescaling:
    """Tensors, each alone or with a partner, and the norms to which `apply_` rescales them in place.

        (x_i, y_i) <- (x_i, y_i) * rho_i / sqrt(||x_i||^2 + ||y_i||^2),  or x_i <- x_i * rho_i / ||x_i|| without a y_i

    With x = W_l and rho = ||W_l(0)||_F this is the projection of weights, Eq. 2 of arXiv:2507.20057; with x = g, y = b
    and rho = their joint norm at construction, sqrt(d) for a new layer, it is the projection of gains and offsets,
    arXiv:2407.01800. See `projection.project_to_norms_` for precision and zeros.

    float32 and float64 on a CPU go through NumPy, whose calls cost less than torch's; all else through torch's foreach
    functions, without waiting for the device.

    Args:
        tensors: x_i, any shape.
        partners: y_i or None, same order and length.
        norms: rho_i > 0, host numbers.
    """

    def __init__(self, tensors: Sequence[Tensor], partners: Sequence[Tensor | None], norms: Sequence[float]) -> None:
        # All x_i come first, then the partners that exist; `_paired` holds the index of each partner's x_i.
        self.tensors = [*tensors, *(partner for partner in partners if partner is not None)]
        self._paired = [i for i, partner in enumerate(partners) if partner is not None]
        self._norms = list(norms)
        self._groups: list[tuple[float, list[NDArray[Any]]]] | None = None
        self._addresses: list[int] = []

    def apply_(self) -> None:
        """Rescale now."""
        # Building the NumPy views costs as much as using them, so they are rebuilt only when a tensor's storage has
        # moved. (A change of shape in place would not be noticed; no module does that.)
        addresses = [tensor.data_ptr() for tensor in self.tensors]
        if addresses != self._addresses:
            self._groups = self._views()
            self._addresses = addresses
        if self._groups is None:
            self._apply_on_device_()
            return
        for rho, arrays in self._groups:
            squares = 0.0
            for array in arrays:
                squares += _squared_norm(array)
            scale = rho / math.sqrt(squares) if 0.0 < squares < math.inf else math.nan
            for array in arrays:
                array *= scale
        torch.autograd.graph.increment_version(self.tensors)  # so autograd refuses a graph from before the change

    @torch.no_grad()
    def _apply_on_device_(self) -> None:
        if self.tensors:
            scales = self._scales(list(torch._foreach_norm(self.tensors)))
            torch._foreach_mul_(self.tensors, scales + [scales[i] for i in self._paired])

    def _scales(self, measured: list[Tensor]) -> list[Tensor]:
        """rho_i / sqrt(||x_i||^2 + ||y_i||^2) from the norms of all x_i, then of the partners."""
        # The square of a half-precision norm overflows.
        measured = [norm if norm.dtype == torch.float64 else norm.float() for norm in measured]
        squares = list(torch._foreach_mul(measured, measured))
        if self._paired:
            torch._foreach_add_([squares[i] for i in self._paired], squares[len(self._norms) :])
        squares = squares[: len(self._norms)]
        scales = torch._foreach_reciprocal(torch._foreach_sqrt(squares))
        torch._foreach_mul_(scales, self._norms)
        torch._foreach_add_(scales, torch._foreach_sub(squares, squares))  # + 0, or NaN where a norm is infinite
        return list(scales)

    def _views(self) -> list[tuple[float, list[NDArray[Any]]]] | None:
        """rho_i with the memory of x_i and, if it has one, of its partner; None if NumPy cannot take them.

        NumPy would sum the squares of a half precision in that precision, and overflow.
        """
        if not all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) for t in self.tensors):
            return None
        arrays = [tensor.detach().numpy() for tensor in self.tensors]
        groups = [(rho, [array]) for rho, array in zip(self._norms, arrays[: len(self._norms)], strict=True)]
        for i, partner in zip(self._paired, arrays[len(self._norms) :], strict=True):
            groups[i][1].append(partner)
        return groups


def positive_and_finite(number: float) -> bool:
    """Whether a number can be a norm or a factor; NaN cannot."""
    return 0.0 < number < math.inf


def require_positive(numbers: Iterable[float]) -> None:
    """Refuse a norm or scale factor that is not positive and finite (ValueError)."""
    for number in numbers:
        if not positive_and_finite(number):
            raise ValueError(f"{number} is not a positive finite number, but norms and scale factors must be")


def require_full_precision(what: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse parameters in half precision (ValueError).

    Args:
        what: what they are, for the message.
        tensors: names and tensors.
    """
    if coarse := {name: t.dtype for name, t in tensors if t.dtype not in (torch.float32, torch.float64)}:
        raise ValueError(
            f"{what} of type {coarse} are too coarse to hold a norm: give the float32 copy that the optimiser steps "
            "(its master weights), or keep parameters in float32 and compute in half precision with torch.autocast"
        )


_BLOCK = 2**18


def _squared_norm(array: NDArray[Any]) -> float:
    """||x||^2; a large array is summed in blocks, because the error of a float32 sum grows with its length."""
    in_memory = array.transpose(sorted(range(array.ndim), key=lambda axis: -array.strides[axis]))  # channels last
    if array.size <= _BLOCK or not in_memory.flags.c_contiguous:
        return float(np.vdot(array, array))
    flat = in_memory.reshape(-1)  # a view
    return sum(float(np.vdot(part, part)) for part in np.split(flat, range(_BLOCK, flat.size, _BLOCK)))
