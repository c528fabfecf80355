"""DQN's update on the MinAtar network, differentiated by hand: faster than autograd on a CPU.

The definition of the network and of the loss is the script's. What is here is the same function for one architecture:
the features of `minatar_layers` or `minatar_kernels`, a linear head; squared TD error. `proved` compares output and
gradient with the script's own before it hands anything out, so that a script whose network or loss was changed never
trains on the wrong gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from elr.fast import proof
from elr.fast.minatar_layers import Array, Features, Network, NumpyFeatures, Windows, memory

Batch = list[Array]
"""obs [B, C, 10, 10] uint8, actions [B], rewards [B], next_obs [B, C, 10, 10] uint8, terminated [B]"""


class ExplicitQ:
    """Q of the features of a network with a linear layer `head`, and its gradient.

    Raises:
        NotTheSame: another architecture, or it learns and a parameter has no .grad.
    """

    def __init__(self, network: Network, features: Features, learns: bool = False):
        self.features = features
        self.head, self.d_head = memory(network.head.weight, learns)
        self.bias, self.d_bias = memory(network.head.bias, learns)

    def forward(self, obs: Array) -> Array:
        """Q [B, A] of obs [B, C, 10, 10] uint8."""
        self.h = self.features.forward(obs)  # [B, H]
        return self.h @ self.head.T + self.bias

    def backward(self, dq: Array) -> None:
        """Write d loss / d parameter into every .grad, given dq = d loss / d Q [B, A] at the last forward's input."""
        np.matmul(dq.T, self.h, out=self.d_head)
        np.add.reduce(dq, 0, out=self.d_bias)
        self.features.backward(dq @ self.head)


class ExplicitGradient:
    """Gradient of mean (Q(s, a) - y)^2, y = r + gamma (1 - terminated) Q'(s', a'), through ExplicitQ.

    a' = argmax Q'(s', .), or argmax Q(s', .) for double Q-learning.

    Args:
        compiled: features by numba's kernels.
    """

    def __init__(
        self, q_network: Network, target_network: Network, *, gamma: float, double_q: bool, batch_size: int,
        compiled: bool = False,
    ):  # fmt: skip
        windows = None if compiled else Windows(q_network.conv, batch_size)
        self.q = written_out(q_network, batch_size, learns=True, compiled=compiled, windows=windows)
        self.target = written_out(target_network, batch_size, compiled=compiled, windows=windows)
        self.gamma, self.double_q, self.rows = gamma, double_q, np.arange(batch_size)
        self.memory = proof.Memory(q_network, target_network)

    def __call__(self, batch: Batch) -> tuple[float, Array]:
        """Write every parameter's .grad; return the loss and Q(s, a) [B]."""
        self.memory.check()
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


def written_out(
    network: Network, batch_size: int, *, learns: bool = False, compiled: bool = False, windows: Windows | None = None
) -> ExplicitQ:
    """Q of a network for batches of one size; `windows` is memory to share, which compiled features do not need."""
    features: Features
    if compiled:
        from elr.fast.minatar_kernels import CompiledFeatures  # numba: only where it is asked for

        features = CompiledFeatures(network, batch_size, learns, channels_last=True)
    else:
        features = NumpyFeatures(network, windows or Windows(network.conv, batch_size), learns)
    return ExplicitQ(network, features, learns)


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
    compiled: bool = False,
) -> tuple[ExplicitGradient, Callable[[Array], Array]]:
    """Gradient and acting written out by hand, after comparing them with the script's own.

    They are compared on copies of the networks with other weights, small and large, on random batches with TD errors
    from about 1 to 1000, in double precision. What such a batch cannot show is not seen: a network or loss that changes
    with time, a limit far above 1000.

    Args:
        q_network, target_network: on a CPU; q_network's parameters have their .grad.
        reference: the script's update: (q_network, target_network, batch) -> loss, Q(s, a) [B]; writes every .grad.
        q_values: the script's values to act on: (network, obs [N, C, 10, 10]) -> Q [N, A].
        num_envs: N, environments to act in.
        compiled: features by numba's kernels.
    Returns:
        gradient: batch -> loss, Q(s, a) [B]; writes every .grad.
        act: obs [N, C, 10, 10] -> Q [N, A].
    Raises:
        NotTheSame: the architecture is another, or outputs or gradients differ.
    """

    def by_hand(online: Network, target: Network) -> tuple[ExplicitGradient, Callable[[Array], Array]]:
        gradient = ExplicitGradient(
            online, target, gamma=gamma, double_q=double_q, batch_size=batch_size, compiled=compiled
        )
        return gradient, written_out(online, num_envs, compiled=compiled).forward

    def require_same(online: Network, target: Network, scale: float, seed: int) -> None:
        batch = _random_batch(online, batch_size, scale, seed)
        own = _numbers(online, partial(reference, online, target), partial(q_values, online), batch, num_envs)
        proof.forget_gradients(online)
        proof.compare(own, _numbers(online, *by_hand(online, target), batch, num_envs))

    proof.on_copies(require_same, q_network, target_network)
    return by_hand(q_network, target_network)


def _numbers(
    network: Network, gradient: Callable[[Batch], Any], act: Callable[[Array], Any], batch: Batch, num_envs: int
) -> dict[str, Any]:
    """Everything that is compared, by name."""
    loss, q = gradient(batch)
    numbers = {"the loss": loss, "Q(s, a)": q}
    numbers |= {f"the gradient of {name}": p.grad.clone() for name, p in network.named_parameters()}
    numbers["Q(s, .) to act on"] = act(np.resize(batch[0], (num_envs, *batch[0].shape[1:])))  # repeated if N > B
    return numbers


def _random_batch(network: Network, size: int, scale: float, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    images = (size, network.conv.in_channels, 10, 10)
    obs, next_obs = ((rng.random(images) < 0.2).astype(np.uint8) for _ in range(2))
    actions = rng.integers(network.head.out_features, size=size)
    rewards, terminated = 3 * scale * rng.standard_normal(size), (rng.random(size) < 0.3).astype(float)
    return [obs, actions, rewards, next_obs, terminated]
