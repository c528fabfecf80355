"""DQN's update on a small network for 10x10 images, differentiated by hand in NumPy: faster than autograd on a CPU.

The definition of the network and of the loss is the script's. What is here is the same function for one architecture:
3x3 convolution, LayerNorm or bias, ReLU, linear layer, LayerNorm or bias, ReLU, linear head; squared TD error. `proved`
compares output and gradient with the script's own before it hands anything out, so that a script whose network or loss
was changed never trains on the wrong gradient.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]
Network = Any
"""A module with the layers conv, conv_norm, hidden, hidden_norm and head."""
Batch = list[Array]
"""obs [B, C, 10, 10] uint8, actions [B], rewards [B], next_obs [B, C, 10, 10] uint8, terminated [B]"""

TOLERANCE = 1e-9
"""largest ||difference|| / ||reference|| of an output or a gradient in double precision; rounding makes some 1e-14"""

layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default


class NotTheSame(ValueError):
    """The hand-written function is not the script's; the message says where they differ."""


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


class ExplicitQ:
    """The network on a CPU for a fixed batch size, written out in NumPy, LayerNorm by torch's kernels.

    The same function of the same parameters as under autograd: the arrays share the memory of the parameters and, if it
    `learns`, of their gradients, which must exist already (FlatAdam makes them). Two networks may share their
    `windows`; only the last one run forward can go backward.

    Raises:
        NotTheSame: another architecture.
        ValueError: it learns and a parameter has no .grad.
    """

    def __init__(self, network: Network, windows: Windows, learns: bool = False):
        filters = network.conv.out_channels
        self.windows = windows
        self.conv, self.d_conv = (a.reshape(filters, -1) for a in memory(network.conv.weight, learns))  # [F, 9C]
        self.hidden, self.d_hidden = memory(network.hidden.weight, learns)
        self.head, self.d_head = memory(network.head.weight, learns)
        self.bias, self.d_bias = memory(network.head.bias, learns)
        self.conv_norm, self.hidden_norm = (
            ExplicitLayerNorm(norm, learns) if isinstance(norm, nn.LayerNorm) else ExplicitBias(layer, learns)
            for layer, norm in ((network.conv, network.conv_norm), (network.hidden, network.hidden_norm))
        )

    def forward(self, obs: Array) -> Array:
        """Q [B, A] of obs [B, C, 10, 10] uint8."""
        self.x_out = self.conv_norm.forward(self.windows.forward(obs, self.conv))  # [B, 64F]
        self.x_active = self.x_out > 0
        self.x_out *= self.x_active  # ReLU
        self.h_out = self.hidden_norm.forward(self.x_out @ self.hidden.T)  # [B, H]
        self.h_active = self.h_out > 0
        self.h_out *= self.h_active
        return np.asarray(self.h_out @ self.head.T + self.bias)

    def backward(self, dq: Array) -> None:
        """Write d loss / d parameter into every .grad, given dq = d loss / d Q [B, A] at the last forward's input."""
        np.matmul(dq.T, self.h_out, out=self.d_head)
        np.add.reduce(dq, 0, out=self.d_bias)
        dh = self.hidden_norm.backward((dq @ self.head) * self.h_active)  # [B, H]
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


class ExplicitGradient:
    """Gradient of mean (Q(s, a) - y)^2, y = r + gamma (1 - terminated) Q'(s', a'), through ExplicitQ.

    a' = argmax Q'(s', .), or argmax Q(s', .) for double Q-learning.
    """

    def __init__(self, q_network: Network, target_network: Network, *, gamma: float, double_q: bool, batch_size: int):
        windows = Windows(q_network.conv, batch_size)
        self.q, self.target = ExplicitQ(q_network, windows, learns=True), ExplicitQ(target_network, windows)
        self.gamma, self.double_q, self.rows = gamma, double_q, np.arange(batch_size)

    def __call__(self, batch: Batch) -> tuple[float, Array]:
        """Write every parameter's .grad; return the loss and Q(s, a) [B]."""
        obs, actions, rewards, next_obs, terminated = batch
        next_q = self.target.forward(next_obs)
        next_value = next_q[self.rows, self.q.forward(next_obs).argmax(1)] if self.double_q else next_q.max(1)
        td_target = rewards + self.gamma * (1 - terminated) * next_value
        all_q = self.q.forward(obs)
        q = all_q[self.rows, actions]
        error = q - td_target
        dq = np.zeros_like(all_q)
        dq[self.rows, actions] = 2 / len(q) * error  # d loss / d Q
        self.q.backward(dq)
        return float(error @ error) / len(q), q


def proved(
    q_network: Network,
    target_network: Network,
    reference: Callable[[Network, Network, Batch], tuple[Any, Any]],
    q_values: Callable[[Network, Array], Array],
    *,
    gamma: float,
    double_q: bool,
    batch_size: int,
    num_envs: int = 1,
) -> tuple[ExplicitGradient, Callable[[Array], Array]]:
    """Gradient and acting written out by hand, after comparing them with the script's own.

    They are compared on copies of the networks with other weights, small and large, on random batches with TD errors
    from about 1 to 1000, in double precision, in which rounding moves no unit across ReLU's kink. What such a batch
    cannot show is not seen: a network or loss that changes with time, a limit far above 1000.

    Args:
        q_network, target_network: on a CPU; q_network's parameters have their .grad.
        reference: the script's update: (q_network, target_network, batch) -> loss, Q(s, a) [B]; writes every .grad.
        q_values: the script's values to act on: (network, obs [N, C, 10, 10]) -> Q [N, A].
        num_envs: N, environments to act in.
    Returns:
        gradient: batch -> loss, Q(s, a) [B]; writes every .grad.
        act: obs [N, C, 10, 10] -> Q [N, A].
    Raises:
        NotTheSame: the architecture is another, or outputs or gradients differ.
    """

    def by_hand(online: Network, target: Network) -> tuple[ExplicitGradient, Callable[[Array], Array]]:
        gradient = ExplicitGradient(online, target, gamma=gamma, double_q=double_q, batch_size=batch_size)
        return gradient, ExplicitQ(online, Windows(online.conv, num_envs)).forward

    if any(True for network in (q_network, target_network) for _ in network.buffers()):
        raise NotTheSame("the network has buffers, which may change while it trains")
    for seed, scale in enumerate((1.0, 30.0, 1000.0)):
        with torch.random.fork_rng(devices=[]):  # a network with dropout draws
            torch.manual_seed(seed)
            online, target = _shaken(q_network, scale), _shaken(target_network, scale)
            batch = _random_batch(online, batch_size, scale, seed)
            try:
                explicit = _numbers(online, *by_hand(online, target), batch, num_envs)
                own = _numbers(online, partial(reference, online, target), partial(q_values, online), batch, num_envs)
            except Exception as error:  # of whatever kind: it is not the network that is written out here
                raise NotTheSame(f"it does not fit the network ({type(error).__name__}: {error})") from error
        for name, a in own.items():
            b = explicit[name]
            # "not <=", because NaN differs
            if a.shape != b.shape or not torch.linalg.vector_norm(a - b) <= TOLERANCE * torch.linalg.vector_norm(a):
                raise NotTheSame(f"{name} is not the script's own")
    return by_hand(q_network, target_network)


def _numbers(
    network: Network, gradient: Callable[[Batch], Any], act: Callable[[Array], Any], batch: Batch, num_envs: int
) -> dict[str, Tensor]:
    """Everything that is compared, by name, in double precision."""
    loss, q = gradient(batch)
    numbers = {"the loss": loss, "Q(s, a)": q}
    numbers |= {f"the gradient of {name}": p.grad.clone() for name, p in network.named_parameters()}
    numbers["Q(s, .) to act on"] = act(np.resize(batch[0], (num_envs, *batch[0].shape[1:])))  # repeated if N > B
    return {name: torch.as_tensor(number, dtype=torch.float64) for name, number in numbers.items()}


def _shaken(network: Network, scale: float) -> Network:
    """A copy in double precision whose every parameter has other values, so that no gain is 1 and no bias 0."""
    twin = copy.deepcopy(network).double()
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(torch.randn_like(p), alpha=0.3 * scale * (float(p.std(correction=0)) + 0.1))
            p.grad = torch.full_like(p, math.nan)  # a parameter that is not written to differs
    return twin


def _random_batch(network: Network, size: int, scale: float, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    images = (size, network.conv.in_channels, 10, 10)
    obs, next_obs = ((rng.random(images) < 0.2).astype(np.uint8) for _ in range(2))
    actions = rng.integers(network.head.out_features, size=size)
    rewards, terminated = 3 * scale * rng.standard_normal(size), (rng.random(size) < 0.3).astype(float)
    return [obs, actions, rewards, next_obs, terminated]


def memory(parameter: Tensor | None, learns: bool) -> tuple[Array, Array]:
    """Arrays that share the memory of a parameter and of its gradient; the second is unused if it does not learn."""
    if parameter is None:
        raise NotTheSame("a weight or bias of the written-out architecture is missing")
    value: Array = parameter.detach().numpy()
    if not learns:
        return value, np.empty_like(value)
    if parameter.grad is None:
        raise NotTheSame("a parameter has no .grad to write to: FlatAdam makes them, other optimisers do not")
    return value, parameter.grad.numpy()
