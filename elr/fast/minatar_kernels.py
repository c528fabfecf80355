"""Features of the MinAtar networks compiled by numba: convolution, LayerNorm and ReLU in one pass over an image.

MinAtar's images are nearly empty (1 to 8 % of the pixels are not 0 in random play). The convolution adds the kernel's
rows of those pixels that are not 0 and leaves out the others; an image's 1,024 features stay in the core's nearest
cache until LayerNorm and ReLU are done. Products of matrices are NumPy's.

Needs numba (`pip install -e ".[fast]"`), which is imported here and nowhere else. The kernels are compiled at the first
call, in float64 for the proof and in float32 to train, some five seconds, and kept in `__pycache__` or in
NUMBA_CACHE_DIR. A NaN in what is computed stays a NaN; the weights that only meet pixels of 0 are not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from torch import nn

from elr.fast.minatar_layers import Array, Network, memory
from elr.fast.proof import NotTheSame

try:
    import numba
except ImportError as error:  # missing, or it does not work with the NumPy that is there
    raise ImportError(f'it needs numba: pip install -e ".[fast]" ({error})') from error

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(kernel: Kernel) -> Kernel:
    """The kernel in machine code, made at its first call for a type of numbers.

    Without `fastmath`: every sum keeps the order in which it is written, so that the numbers are the same whether a
    kernel was compiled now or read from the disk. (With it they differed in the last bit.)
    """
    made: Any = numba.njit(cache=True, error_model="numpy")(kernel)
    return cast(Kernel, made)


FILTERS = 16
"""of the convolution, known when it is compiled so that the innermost loop is one or two instructions"""
PLACES = 64
"""8 x 8 outputs of a valid 3x3 convolution of a 10x10 image"""
FEATURES = PLACES * FILTERS


class CompiledFeatures:
    """Features of the hidden layer [B, H] of images [B, C, 10, 10], and back: the twin of `NumpyFeatures`.

    The arrays share the memory of the parameters and, if it `learns`, of their gradients, which must exist already.
    Within, the maps are in the order [8, 8, F]. Of a network that flattens them [F, 8, 8], the hidden layer's weights
    are put in this order for a batch to learn from, and the maps of each image in the network's order to act on.

    Args:
        network: with the layers conv, conv_norm, hidden and hidden_norm.
        batch_size: B, of every call.
        learns: it goes backward too.
        channels_last: the network flattens its maps [8, 8, F].
    Raises:
        NotTheSame: another architecture, or it learns and a parameter has no .grad.
    """

    def __init__(self, network: Network, batch_size: int, learns: bool, channels_last: bool) -> None:
        self.conv, self.d_conv = memory(network.conv.weight, learns)  # [F, C, 3, 3]
        self.hidden, self.d_hidden = memory(network.hidden.weight, learns)  # [H, 64F]
        if self.conv.shape[0] != FILTERS or self.conv.shape[2:] != (3, 3):
            raise NotTheSame(f"the convolution is not one of {FILTERS} 3x3 filters")
        if self.hidden.shape[1] != FEATURES:
            raise NotTheSame(f"the hidden layer has {self.hidden.shape[1]} inputs instead of {FEATURES}")
        self.permutes_weights, self.permutes_maps = learns and not channels_last, not (learns or channels_last)
        self.weights, self.d_weights = self.hidden, self.d_hidden
        if self.permutes_weights:  # in the order of the maps; `forward` fills the first, `backward` uses both
            self.weights, self.d_weights = np.empty_like(self.hidden), np.empty_like(self.hidden)
        self.shape = (batch_size, self.conv.shape[1], 10, 10)
        self.conv_rows = Rows(network.conv_norm, network.conv, batch_size, FEATURES, learns)
        self.hidden_rows = Rows(network.hidden_norm, network.hidden, batch_size, len(self.hidden), learns)
        self.maps = np.empty_like(self.conv_rows.out)

    def forward(self, obs: Array) -> Array:
        """h [B, H] of obs [B, C, 10, 10] uint8; overwritten by the next call."""
        x, h = self.conv_rows, self.hidden_rows
        if obs.shape != self.shape:  # the kernels do not look where they write
            raise ValueError(f"made for images {list(self.shape)}, got {list(obs.shape)}")
        self.obs = np.ascontiguousarray(obs)
        self.pixels = np.flatnonzero(self.obs != 0)
        if self.permutes_weights:
            filters_last(self.hidden, self.weights)
        convolve(
            self.obs, self.pixels, self.conv, self.permutes_maps, x.layer_norm, x.gain, x.offset, x.eps, self.maps,
            x.out, x.mean, x.rstd,
        )  # fmt: skip
        self.before = x.out @ self.weights.T  # [B, H]
        normalise(self.before, h.layer_norm, h.gain, h.offset, h.eps, h.out, h.mean, h.rstd)
        return h.out

    def backward(self, dh: Array) -> None:
        """Write d loss / d parameter into every .grad, given d loss / d h [B, H], which is overwritten."""
        x, h = self.conv_rows, self.hidden_rows
        normalise_back(dh, self.before, h.mean, h.rstd, h.layer_norm, h.gain, h.offset, h.d_gain, h.d_offset)
        np.matmul(dh.T, x.out, out=self.d_weights)
        if self.permutes_weights:
            filters_first(self.d_weights, self.d_hidden)
        convolve_back(
            self.obs, self.pixels, self.maps, dh @ self.weights, x.mean, x.rstd, x.layer_norm, x.gain, x.offset,
            self.d_conv, x.d_gain, x.d_offset,
        )  # fmt: skip


class Rows:
    """Parameters and memory of y = relu(g x_hat + o) for B rows of D features, or of y = relu(x + o) without LayerNorm.

    Attributes:
        layer_norm: whether there is one.
        gain, offset: as the network has them, flattened: [D], or no gain and one offset for each filter or unit.
        out: y [B, D].
        mean, rstd: of x [B]; rstd is 1 / sqrt(variance + eps).
    Raises:
        NotTheSame: they are of another size, or a parameter has no .grad.
    """

    def __init__(self, norm: nn.Module, layer: nn.Conv2d | nn.Linear, rows: int, size: int, learns: bool) -> None:
        self.layer_norm = isinstance(norm, nn.LayerNorm)
        shift = norm.bias if isinstance(norm, nn.LayerNorm) else layer.bias
        self.offset, self.d_offset = (a.reshape(-1) for a in memory(shift, learns))
        self.gain = self.d_gain = np.empty(0, self.offset.dtype)
        self.eps = 0.0
        if isinstance(norm, nn.LayerNorm):
            self.gain, self.d_gain = (a.reshape(-1) for a in memory(norm.weight, learns))
            self.eps = norm.eps
        sizes = (size, size) if self.layer_norm else (0, len(layer.weight))
        if (self.gain.size, self.offset.size) != sizes:
            raise NotTheSame(f"gain and offset have {self.gain.size} and {self.offset.size} numbers instead of {sizes}")
        self.out = np.empty((rows, size), self.offset.dtype)
        self.mean, self.rstd = (np.empty(rows, self.offset.dtype) for _ in range(2))


# ---------------------------------------------------------------------------------------------------------- kernels
# `number(...)` keeps a constant in the arrays' precision: numba would go on in float64.


@compiled
def _dot(x: Any, y: Any, lanes: Any) -> Any:
    """Sum of x y [D], in 64 sums side by side, which the processor adds at once; lanes [64] is memory for them.

    A mean is a dot product with ones, for the same reason.
    """
    lanes[:] = 0
    whole = len(x) // 64 * 64
    for start in range(0, whole, 64):
        for i in range(64):
            lanes[i] += x[start + i] * y[start + i]
    for i in range(whole, len(x)):
        lanes[0] += x[i] * y[i]
    width = 32
    while width:
        for i in range(width):
            lanes[i] += lanes[i + width]
        width //= 2
    return lanes[0]


@compiled
def _normalise_row(
    x: Any, ones: Any, lanes: Any, centred: Any, layer_norm: Any, gain: Any, offset: Any, eps: Any, out: Any
) -> Any:
    """out = relu(gain x_hat + offset), x_hat = (x - mean) rstd; returns mean and rstd = 1 / sqrt(variance + eps)."""
    number, size = x.dtype.type, len(x)
    if not layer_norm:
        for d in range(size):
            y = x[d] + offset[d]
            out[d] = number(0) if y <= 0 else y  # a NaN is not <= 0
        return number(0), number(1)
    mean = _dot(x, ones, lanes) / number(size)
    for d in range(size):
        centred[d] = x[d] - mean
    rstd = number(1 / math.sqrt(_dot(centred, centred, lanes) / number(size) + eps))
    for d in range(size):
        y = (centred[d] * rstd) * gain[d] + offset[d]
        out[d] = number(0) if y <= 0 else y
    return mean, rstd


@compiled
def _normalise_row_back(
    dy: Any, x: Any, mean: Any, rstd: Any, ones: Any, lanes: Any, hat: Any, layer_norm: Any, gain: Any, offset: Any,
    d_gain: Any, d_offset: Any,
) -> None:  # fmt: skip
    """Replace dy = d loss / d out of a row by d loss / d x; add to the gradients of gain and offset."""
    # Short loops over few arrays: which may overlap is asked when they run, and with many arrays the compiler gives up
    # and takes one number at a time.
    number, size = dy.dtype.type, len(dy)
    if layer_norm:
        for d in range(size):
            hat[d] = (x[d] - mean) * rstd
        for d in range(size):
            dy[d] = number(0) if hat[d] * gain[d] + offset[d] <= 0 else dy[d]
    else:
        for d in range(size):
            dy[d] = number(0) if x[d] + offset[d] <= 0 else dy[d]
    for d in range(size):
        d_offset[d] += dy[d]
    if layer_norm:
        for d in range(size):
            d_gain[d] += dy[d] * hat[d]
        for d in range(size):
            dy[d] *= gain[d]
        mean_g, along = _dot(dy, ones, lanes) / number(size), _dot(dy, hat, lanes) / number(size)
        for d in range(size):
            dy[d] = (dy[d] - mean_g - hat[d] * along) * rstd


@compiled
def normalise(x: Any, layer_norm: Any, gain: Any, offset: Any, eps: Any, out: Any, mean: Any, rstd: Any) -> None:
    """LayerNorm (or a bias) and ReLU of the rows of x [B, D]."""
    size, dtype = x.shape[1], x.dtype
    ones, lanes, hat = np.ones(size, dtype), np.empty(64, dtype), np.empty(size, dtype)
    for b in range(len(x)):
        mean[b], rstd[b] = _normalise_row(x[b], ones, lanes, hat, layer_norm, gain, offset, eps, out[b])


@compiled
def normalise_back(
    dy: Any, x: Any, mean: Any, rstd: Any, layer_norm: Any, gain: Any, offset: Any, d_gain: Any, d_offset: Any
) -> None:
    """Replace dy [B, D] = d loss / d out by d loss / d x; write the gradients of gain and offset [D]."""
    size, dtype = x.shape[1], x.dtype
    ones, lanes, hat = np.ones(size, dtype), np.empty(64, dtype), np.empty(size, dtype)
    d_gain[:] = 0
    d_offset[:] = 0
    for b in range(len(dy)):
        _normalise_row_back(dy[b], x[b], mean[b], rstd[b], ones, lanes, hat, layer_norm, gain, offset, d_gain, d_offset)


@compiled
def filters_last(weights: Any, permuted: Any) -> None:
    """Each row [F, 8, 8] -> [8, 8, F]."""
    for n in range(len(weights)):
        for p in range(PLACES):
            for f in range(FILTERS):
                permuted[n, p * FILTERS + f] = weights[n, f * PLACES + p]


@compiled
def filters_first(permuted: Any, weights: Any) -> None:
    """Each row [8, 8, F] -> [F, 8, 8]."""
    for n in range(len(weights)):
        for f in range(FILTERS):
            for p in range(PLACES):
                weights[n, f * PLACES + p] = permuted[n, p * FILTERS + f]


@compiled
def _for_each_feature(values: Any, row: Any) -> None:
    """row [8, 8, F] <- values of the maps [F, 8, 8], or of the filters [F]."""
    each = len(values) // FILTERS  # 64 or 1
    for p in range(PLACES):
        for f in range(FILTERS):
            row[p * FILTERS + f] = values[f * each + p % each]


@compiled
def _from_each_feature(row: Any, values: Any) -> None:
    """The way back of a gradient: values <- row, summed up over a filter's places if it has one value."""
    each = len(values) // FILTERS
    values[:] = 0
    for p in range(PLACES):
        for f in range(FILTERS):
            values[f * each + p % each] += row[p * FILTERS + f]


@compiled
def _kernel_rows(kernel: Any) -> Any:
    """[F, C, 3, 3] -> [C, 3, 3, F]."""
    channels = kernel.shape[1]
    rows = np.empty((channels, 3, 3, FILTERS), kernel.dtype)
    for f in range(FILTERS):
        for c in range(channels):
            for i in range(3):
                for j in range(3):
                    rows[c, i, j, f] = kernel[f, c, i, j]
    return rows


@compiled
def convolve(
    obs: Any, pixels: Any, kernel: Any, permutes: Any, layer_norm: Any, gains: Any, offsets: Any, eps: Any, maps: Any,
    out: Any, mean: Any, rstd: Any,
) -> None:  # fmt: skip
    """A valid 3x3 convolution, maps [B, 8, 8, F], of obs [B, C, 10, 10] by kernel [F, C, 3, 3], and its `normalise`.

    Pixel (r, q) is seen by output (r - i, q - j) at the kernel's offset (i, j).

    Args:
        pixels: indices into the flat obs of those that are not 0, in order.
        permutes: out is [B, F, 8, 8] instead of [B, 8, 8, F].
    """
    dtype, flat, image, rows = out.dtype, obs.reshape(-1), obs.shape[1] * 100, _kernel_rows(kernel)
    gain, offset = np.empty(FEATURES, dtype), np.empty(FEATURES, dtype)
    _for_each_feature(offsets, offset)
    if layer_norm:
        _for_each_feature(gains, gain)
    hat, row = np.empty(FEATURES, dtype), np.empty(FEATURES, dtype)
    ones, lanes = np.ones(FEATURES, dtype), np.empty(64, dtype)
    number, k = dtype.type, 0
    for b in range(len(obs)):
        m = maps[b]
        m[:] = 0
        while k < len(pixels) and pixels[k] < (b + 1) * image:
            pixel, place = number(flat[pixels[k]]), pixels[k] - b * image
            c, r, q = place // 100, place % 100 // 10, place % 10
            for i in range(max(0, r - 7), min(3, r + 1)):
                for j in range(max(0, q - 7), min(3, q + 1)):
                    start = ((r - i) * 8 + q - j) * FILTERS
                    for f in range(FILTERS):
                        m[start + f] += pixel * rows[c, i, j, f]
            k += 1
        if permutes:
            mean[b], rstd[b] = _normalise_row(m, ones, lanes, hat, layer_norm, gain, offset, eps, row)
            for f in range(FILTERS):
                for p in range(PLACES):
                    out[b, f * PLACES + p] = row[p * FILTERS + f]
        else:
            mean[b], rstd[b] = _normalise_row(m, ones, lanes, hat, layer_norm, gain, offset, eps, out[b])


@compiled
def convolve_back(
    obs: Any, pixels: Any, maps: Any, dy: Any, mean: Any, rstd: Any, layer_norm: Any, gains: Any, offsets: Any,
    d_kernel: Any, d_gains: Any, d_offsets: Any,
) -> None:  # fmt: skip
    """Write the gradients of kernel [F, C, 3, 3], gains and offsets, given dy [B, D] = d loss / d out, overwritten."""
    dtype, flat, image = dy.dtype, obs.reshape(-1), obs.shape[1] * 100
    gain, offset = np.empty(FEATURES, dtype), np.empty(FEATURES, dtype)
    _for_each_feature(offsets, offset)
    if layer_norm:
        _for_each_feature(gains, gain)
    d_gain, d_offset = np.zeros(FEATURES, dtype), np.zeros(FEATURES, dtype)
    d_rows = np.zeros((obs.shape[1], 3, 3, FILTERS), dtype)
    hat, ones, lanes = np.empty(FEATURES, dtype), np.ones(FEATURES, dtype), np.empty(64, dtype)
    number, k = dtype.type, 0
    for b in range(len(obs)):
        d = dy[b]
        _normalise_row_back(d, maps[b], mean[b], rstd[b], ones, lanes, hat, layer_norm, gain, offset, d_gain, d_offset)
        while k < len(pixels) and pixels[k] < (b + 1) * image:
            pixel, place = number(flat[pixels[k]]), pixels[k] - b * image
            c, r, q = place // 100, place % 100 // 10, place % 10
            for i in range(max(0, r - 7), min(3, r + 1)):
                for j in range(max(0, q - 7), min(3, q + 1)):
                    start = ((r - i) * 8 + q - j) * FILTERS
                    for f in range(FILTERS):
                        d_rows[c, i, j, f] += pixel * d[start + f]
            k += 1
    for f in range(FILTERS):
        for c in range(len(d_rows)):
            for i in range(3):
                for j in range(3):
                    d_kernel[f, c, i, j] = d_rows[c, i, j, f]
    _from_each_feature(d_offset, d_offsets)
    if layer_norm:
        _from_each_feature(d_gain, d_gains)
