"""PPO's update and acting on the MinAtar network, differentiated by hand with compiled features: for one CPU core.

The definition of the network and of the loss is the script's. What is here is the same function for one architecture:
the features of `minatar_kernels`, a linear layer for the policy and one for the value; the clipped loss. `proved`
compares outputs, gradient and recorded numbers with the script's own before it hands anything out. By NumPy alone this
is no faster than autograd with 64 environments, so it exists with numba only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elr.fast import proof
from elr.fast.flat_adam import FlatAdam
from elr.fast.minatar_layers import Array, Network, memory

Batch = Mapping[str, Tensor]
"""obs [B, C, 10, 10] uint8, actions, logprobs, advantages, returns, values [B]"""
Numbers = Mapping[str, Any]
"""what is recorded of a loss, by name"""


class CompiledActorCritic:
    """Preferences for actions and values of images on a CPU, for a fixed batch size; the network's own memory.

    Args:
        network: with the layers conv, conv_norm, hidden, hidden_norm, actor and critic.
        batch_size: B, of every call.
        learns: it goes backward too.
    Raises:
        NotTheSame: another architecture, or it learns and a parameter has no .grad.
    """

    def __init__(self, network: Network, batch_size: int, learns: bool = False) -> None:
        from elr.fast.minatar_kernels import CompiledFeatures  # numba: only where it is asked for

        self.features = CompiledFeatures(network, batch_size, learns, channels_last=False)
        self.actor, self.d_actor = memory(network.actor.weight, learns)  # [A, H]
        self.actor_bias, self.d_actor_bias = memory(network.actor.bias, learns)
        self.critic, self.d_critic = memory(network.critic.weight, learns)  # [1, H]
        self.critic_bias, self.d_critic_bias = memory(network.critic.bias, learns)

    def forward(self, obs: Array) -> tuple[Array, Array]:
        """Logits [B, A] and values [B] of obs [B, C, 10, 10] uint8."""
        self.h = self.features.forward(obs)  # [B, H]
        return self.h @ self.actor.T + self.actor_bias, (self.h @ self.critic.T + self.critic_bias)[:, 0]

    def backward(self, d_logits: Array, d_values: Array) -> None:
        """Write d loss / d parameter into every .grad, given d loss / d logits [B, A] and d loss / d values [B]."""
        d_value = d_values[:, None]
        np.matmul(d_logits.T, self.h, out=self.d_actor)
        np.add.reduce(d_logits, 0, out=self.d_actor_bias)
        np.matmul(d_value.T, self.h, out=self.d_critic)
        np.add.reduce(d_value, 0, out=self.d_critic_bias)
        self.features.backward(d_logits @ self.actor + d_value * self.critic)

    def __call__(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """As the network is called, to act."""
        logits, values = self.forward(obs.numpy())
        return torch.from_numpy(logits), torch.from_numpy(values)


@dataclass(frozen=True)
class Loss:
    """L = -E min(r A, clip(r, 1 - c, 1 + c) A) + vf_coef / 2 E max((V - R)^2, (V_clipped - R)^2) - ent_coef E H.

    r = pi(a | s) / pi_old(a | s), V_clipped = V_old + clip(V - V_old, -c, c)   (arXiv:1707.06347)

    Attributes:
        norm_adv: A has mean 0 and standard deviation 1 within the batch.
        clip_coef: c.
        clip_vloss: with V_clipped.
    """

    norm_adv: bool
    clip_coef: float
    clip_vloss: bool
    ent_coef: float
    vf_coef: float

    def __call__(self, logits: Array, values: Array, batch: Batch) -> tuple[Any, dict[str, Any], Array, Array]:
        """Loss, what is recorded of it, d loss / d logits [B, A] and d loss / d values [B]."""
        actions, old_logprobs, advantages, returns, old_values = (
            batch[name].numpy() for name in ("actions", "logprobs", "advantages", "returns", "values")
        )
        count, rows, c = len(actions), np.arange(len(actions)), self.clip_coef
        shifted = logits - logits.max(1, keepdims=True)
        logprobs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))  # [B, A]
        policy = np.exp(logprobs)
        log_ratio = logprobs[rows, actions] - old_logprobs  # [B]
        ratio = np.exp(log_ratio)
        if self.norm_adv:
            advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)
        free, clipped = ratio * advantages, np.clip(ratio, 1 - c, 1 + c) * advantages
        policy_loss = -np.minimum(free, clipped).mean()
        d_chosen = np.where(free <= clipped, free, 0) / -count  # d loss / d log pi(a | s) [B]; d r / d log pi = r

        errors = values - returns
        squares, d_values = np.square(errors), errors
        if self.clip_vloss:
            change = values - old_values
            near = old_values + np.clip(change, -c, c) - returns
            cut = np.square(near)
            d_values = np.where(squares >= cut, errors, near * (np.abs(change) <= c))
            squares = np.maximum(squares, cut)
        value_loss = 0.5 * squares.mean()
        d_values = d_values * (self.vf_coef / count)

        surprise = policy * logprobs  # [B, A]; its sum is -H
        entropies = -surprise.sum(1, keepdims=True)  # [B, 1]
        d_logits = policy * (-d_chosen[:, None]) + (surprise + policy * entropies) * (self.ent_coef / count)
        d_logits[rows, actions] += d_chosen
        parts = {
            "losses/policy_loss": policy_loss,
            "losses/value_loss": value_loss,
            "losses/entropy": entropies.mean(),
            "losses/approx_kl": (ratio - 1 - log_ratio).mean(),
            "losses/clipfrac": (np.abs(ratio - 1) > c).mean(),
        }
        return policy_loss + self.vf_coef * value_loss - self.ent_coef * entropies.mean(), parts, d_logits, d_values


class CompiledGradient:
    """Gradient of the loss of a minibatch through CompiledActorCritic."""

    def __init__(self, network: Network, loss: Loss, batch_size: int) -> None:
        self.network, self.loss = CompiledActorCritic(network, batch_size, learns=True), loss

    def __call__(self, batch: Batch) -> tuple[Any, dict[str, Any]]:
        """Write every parameter's .grad; return the loss and what is recorded of it."""
        loss, parts, d_logits, d_values = self.loss(*self.network.forward(batch["obs"].numpy()), batch)
        self.network.backward(d_logits, d_values)
        return loss, parts


def proved(
    network: Network,
    reference: Callable[[Network, FlatAdam, Batch], tuple[Any, Numbers]],
    loss: Loss,
    *,
    batch_size: int,
    num_envs: int,
) -> tuple[CompiledGradient, CompiledActorCritic]:
    """Gradient and acting written out by hand, after comparing them with the script's own.

    They are compared on copies of the network with other weights, small and large, on random batches with ratios around
    1, and logits, values and errors from about 1 to 1000, in double precision. What such a batch cannot show is not
    seen: a network or loss that changes with time, a limit far above 1000.

    Args:
        network: on a CPU; its parameters have their .grad.
        reference: the script's gradient: (network, optimizer, batch) -> loss, recorded numbers; writes every .grad.
        loss: its constants.
        batch_size: of a minibatch.
        num_envs: N, environments to act in.
    Returns:
        gradient: batch -> loss, recorded numbers; writes every .grad.
        actor: obs [N, C, 10, 10] -> logits [N, A] and values [N], called as the network is.
    Raises:
        NotTheSame: the architecture is another, or outputs, gradients or recorded numbers differ.
    """

    def same(twin: Network, scale: float, seed: int) -> None:
        batch = _random_batch(twin, loss, batch_size, scale, seed)

        def own() -> dict[str, Any]:
            optimizer = FlatAdam(twin.parameters(), lr=0.0, eps=1e-8)
            return _numbers(twin, partial(reference, twin, optimizer), twin, batch, num_envs)

        def by_hand() -> dict[str, Any]:
            gradient, actor = CompiledGradient(twin, loss, batch_size), CompiledActorCritic(twin, num_envs)
            return _numbers(twin, gradient, actor, batch, num_envs)

        proof.compare(own, by_hand)

    proof.on_copies(same, network, layers=3)
    return CompiledGradient(network, loss, batch_size), CompiledActorCritic(network, num_envs)


def _numbers(
    network: Network, gradient: Callable[[Batch], Any], act: Callable[[Tensor], Any], batch: Batch, num_envs: int
) -> dict[str, Any]:
    """Everything that is compared, by name."""
    loss, parts = gradient(batch)
    gradients = {f"the gradient of {name}": p.grad.clone() for name, p in network.named_parameters()}
    images = np.resize(batch["obs"].numpy(), (num_envs, *batch["obs"].shape[1:]))  # repeated if N > B
    with torch.no_grad():
        logits, values = act(torch.from_numpy(images))
    return {"the loss": loss, **parts, **gradients, "the logits to act on": logits, "the values to act on": values}


def _random_batch(twin: Network, loss: Loss, size: int, scale: float, seed: int) -> dict[str, Tensor]:
    """Old log probabilities and values lie around the network's own, so that each clip is met from both sides.

    The heads are scaled so that logits and values have this scale: with larger logits, too few digits would be left of
    their differences, which are what decides.
    """
    rng, c = np.random.default_rng(seed), loss.clip_coef
    try:
        obs = torch.from_numpy((rng.random((size, twin.conv.in_channels, 10, 10)) < 0.2).astype(np.uint8))
        actions = torch.from_numpy(rng.integers(twin.actor.out_features, size=size))
        with torch.no_grad():
            for head, output in zip((twin.actor, twin.critic), twin(obs), strict=True):
                for p in head.parameters():
                    p.mul_(scale / output.square().mean().sqrt())
            logits, values = twin(obs)
            logprobs = torch.log_softmax(logits, 1).gather(1, actions[:, None])[:, 0]
    except Exception as error:
        raise proof.NotTheSame(f"it does not fit the network ({type(error).__name__}: {error})") from error
    noise = torch.from_numpy(rng.standard_normal((4, size)))
    return {
        "obs": obs, "actions": actions, "logprobs": logprobs + 2 * c * noise[0], "advantages": scale * noise[1],
        "returns": values + scale * noise[2], "values": values + 2 * c * noise[3],
    }  # fmt: skip
