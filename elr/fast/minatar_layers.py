"""Features of a small network for 10x10 images, forward and back by hand in NumPy: faster than autograd on a CPU.

3x3 convolution, LayerNorm or bias, ReLU, linear layer, LayerNorm or bias, ReLU. `minatar_kernels` has the same,
compiled; `minatar_q` and `minatar_ppo` put heads and a loss on top.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elr.fast.proof import NotTheSame

Array = NDArray[Any]
Network = Any
"""A module with the layers conv, conv_norm, hidden and hidden_norm."""

layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default


class Features(Protocol):
    """Of the hidden layer, h [B, H], of a network on a CPU, and back."""

    def forward(self, obs: Array) -> Array:
        """h [B, H] of obs [B, C, 10, 10] uint8."""

    def backward(self, dh: Array) -> None:
        """Write d loss / d parameter into every .grad, given d loss / d h [B, H], which may be overwritten."""


class Windows:
    """The memory in which a valid 3x3 convolution of B images is one matrix product, [80B, 9C] @ [9C, F].

    Read row by row, output (r, c) sees the pixels 10 r + c + 10 i + j, so that the window of kernel offset (i, j) is a
    run of 80 consecutive pixels of a 10x10 image. The results at c = 8, 9 wrap around a row; they are left out on the
    way forward and stay zero on the way back.
    """

    def __init__(self, conv: nn.Conv2d, batch_size: int):
        b, c, f = batch_size, conv.in_channels, conv.out_channels
        dtype = conv.weight.detach().numpy().dtype
        pixels = np.zeros(100 * b * c + 2, dtype)  # + 2: the last run of 80 ends two pixels past the image
        self.image = pixels[:-2].reshape(b, c, 10, 10)
        strides = [pixels.itemsize * n for n in (100, 10, 1, 100 * c, 1)]
        self.windows = np.lib.stride_tricks.as_strided(pixels, (c, 3, 3, b, 80), strides)
        self.patches = np.empty((9 * c, 80 * b), dtype)
        self.runs = self.patches.reshape(c, 3, 3, b, 80)
        self.maps, self.d_maps = np.zeros((80 * b, f), dtype), np.zeros((80 * b, f), dtype)
        self.valid, self.d_valid = (maps.reshape(b, 8, 10, f)[:, :, :8] for maps in (self.maps, self.d_maps))
        self.x = np.empty((b, 8 * 8 * f), dtype)  # channels last, as the network flattens it
        self.x_maps = self.x.reshape(b, 8, 8, f)

    def forward(self, obs: Array, kernel: Array) -> Array:
        """Feature maps [B, 64F] of obs [B, C, 10, 10] under the kernel [F, 9C]."""
        np.copyto(self.image, obs)
        np.copyto(self.runs, self.windows)
        np.matmul(self.patches.T, kernel.T, out=self.maps)
        np.copyto(self.x_maps, self.valid)
        return self.x

    def kernel_gradient(self, dx: Array) -> Array:
        """d loss / d kernel [F, 9C] for the last obs, given d loss / d feature maps [B, 64F]."""
        np.copyto(self.d_valid, dx.reshape(self.x_maps.shape))
        return np.asarray((self.patches @ self.d_maps).T)


class NumpyFeatures:
    """Features of the hidden layer for a fixed batch size, LayerNorm by torch's kernels.

    The same function of the same parameters as under autograd, of a network that flattens its maps channels last: the
    arrays share the memory of the parameters and, if it `learns`, of their gradients, which must exist already
    (FlatAdam makes them). Two networks may share their `windows`; only the last one run forward can go backward.

    Raises:
        NotTheSame: another architecture, or it learns and a parameter has no .grad.
    """

    def __init__(self, network: Network, windows: Windows, learns: bool = False):
        self.windows = windows
        self.conv, self.d_conv = (a.reshape(len(a), -1) for a in memory(network.conv.weight, learns))  # [F, 9C]
        self.hidden, self.d_hidden = memory(network.hidden.weight, learns)
        self.conv_norm, self.hidden_norm = (
            ExplicitLayerNorm(norm, learns) if isinstance(norm, nn.LayerNorm) else ExplicitBias(layer, learns)
            for layer, norm in ((network.conv, network.conv_norm), (network.hidden, network.hidden_norm))
        )

    def forward(self, obs: Array) -> Array:
        """h [B, H] of obs [B, C, 10, 10] uint8."""
        self.x_out = self.conv_norm.forward(self.windows.forward(obs, self.conv))  # [B, 64F]
        self.x_active = self.x_out > 0
        self.x_out *= self.x_active  # ReLU
        self.h_out = self.hidden_norm.forward(self.x_out @ self.hidden.T)  # [B, H]
        self.h_active = self.h_out > 0
        self.h_out *= self.h_active
        return self.h_out

    def backward(self, dh: Array) -> None:
        """Write d loss / d parameter into every .grad, given d loss / d h [B, H] at the last forward's input."""
        dh = self.hidden_norm.backward(dh * self.h_active)  # [B, H]
        np.matmul(dh.T, self.x_out, out=self.d_hidden)
        dx = dh @ self.hidden  # [B, 64F]
        dx *= self.x_active
        self.d_conv[...] = self.windows.kernel_gradient(self.conv_norm.backward(dx))


class ExplicitLayerNorm:
    """y = g x_hat + o with x_hat = (x - mean) / sqrt(variance + eps), mean and variance over the D features of a row.

    For a batch by torch's kernels, each of which is one pass where NumPy needs several; one row, to act on, is so small
    that calling a kernel costs more than its work.
    """

    def __init__(self, norm: nn.LayerNorm, learns: bool):
        # [F, 8, 8] -> [8, 8, F], the order of the features here; [H] is as it is.
        self.gain, self.d_gain = (np.moveaxis(a, 0, -1) for a in memory(norm.weight, learns))
        self.offset, self.d_offset = (np.moveaxis(a, 0, -1) for a in memory(norm.bias, learns))
        self.eps, self.size, self.learns = norm.eps, [self.gain.size], learns

    def forward(self, x: Array) -> Array:  # [B, D] -> [B, D]
        """y."""
        if len(x) == 1 and not self.learns:
            x = x - x.sum() / x.size
            scaled: Array = x * (self.gain.ravel() / math.sqrt(x[0] @ x[0] / x.size + self.eps)) + self.offset.ravel()
            return scaled
        self.x = torch.from_numpy(x)
        self.g, self.o = torch.from_numpy(self.gain.ravel()), torch.from_numpy(self.offset.ravel())
        y, self.mean, self.rstd = torch.native_layer_norm(self.x, self.size, self.g, self.o, self.eps)
        normalised: Array = y.numpy()
        return normalised

    def backward(self, dy: Array) -> Array:  # [B, D] -> [B, D]
        """Write the gradients of gain and offset; return that of x."""
        dx, d_gain, d_offset = layer_norm_backward(
            torch.from_numpy(dy), self.x, self.size, self.mean, self.rstd, self.g, self.o, [True, True, True]
        )
        self.d_gain[...] = d_gain.numpy().reshape(self.gain.shape)
        self.d_offset[...] = d_offset.numpy().reshape(self.gain.shape)
        return np.asarray(dx.numpy())


class ExplicitBias:
    """y = x + b: what the plain network has instead of a normalisation; features [..., F] with one bias for each F."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, learns: bool):
        self.bias, self.d_bias = memory(layer.bias, learns)

    def forward(self, x: Array) -> Array:  # [B, D] -> [B, D]
        """y."""
        return (x.reshape(-1, self.bias.size) + self.bias).reshape(x.shape)

    def backward(self, dy: Array) -> Array:
        """Write the gradient of the bias; return that of x."""
        np.add.reduce(dy.reshape(-1, self.bias.size), 0, out=self.d_bias)
        return dy


def memory(parameter: Tensor | None, learns: bool) -> tuple[Array, Array]:
    """Arrays that share the memory of a parameter and of its gradient; the second is unused if it does not learn."""
    if parameter is None:
        raise NotTheSame("a weight or bias of the written-out architecture is missing")
    if parameter.dtype not in (torch.float32, torch.float64):
        raise NotTheSame(f"a weight or bias is in {parameter.dtype}")
    value: Array = parameter.detach().numpy()
    if not learns:
        return value, np.empty_like(value)
    if parameter.grad is None:
        raise NotTheSame("a parameter has no .grad to write to: FlatAdam makes them, other optimisers do not")
    return value, parameter.grad.numpy()
