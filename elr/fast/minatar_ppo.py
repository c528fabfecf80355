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
    """PPO's loss, and its gradient in logits and values.

    L = -E min(r A, clip(r, 1 - c, 1 + c) A) + vf_coef / 2 E max((V - R)^2, (V_clipped - R)^2) - ent_coef E H.

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
            clipped_errors = old_values + np.clip(change, -c, c) - returns
            clipped_squares = np.square(clipped_errors)
            d_values = np.where(squares >= clipped_squares, errors, clipped_errors * (np.abs(change) <= c))
            squares = np.maximum(squares, clipped_squares)
        value_loss = 0.5 * squares.mean()
        d_values = d_values * (self.vf_coef / count)

        # Of logits z: d log pi(a) / d z_j = 1[j = a] - pi_j and d H / d z_j = -pi_j (log pi_j + H).
        p_log_p = policy * logprobs  # [B, A]
        entropies = -p_log_p.sum(1, keepdims=True)  # H [B, 1]
        d_logits = policy * (-d_chosen[:, None]) + (p_log_p + policy * entropies) * (self.ent_coef / count)
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
        self.memory = proof.Memory(network)

    def __call__(self, batch: Batch) -> tuple[Any, dict[str, Any]]:
        """Write every parameter's .grad; return the loss and what is recorded of it."""
        self.memory.check()
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
    seen: a network or loss that changes with time or with the learning rate, another precision, a limit of ratios above
    some thousands or of anything else far above 1000.

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

    size = max(batch_size, 128)  # so many that each case of the loss is among them

    def require_same(twin: Network, scale: float, seed: int) -> None:
        _scale_outputs(twin, scale, seed)
        batch = _random_batch(twin, loss, size, scale, seed)
        optimizer = FlatAdam(twin.parameters(), lr=1e-3, eps=1e-8)
        own = _numbers(twin, partial(reference, twin, optimizer), twin, batch, num_envs)
        proof.forget_gradients(twin)
        gradient, actor = CompiledGradient(twin, loss, size), CompiledActorCritic(twin, num_envs)
        proof.compare(own, _numbers(twin, gradient, actor, batch, num_envs))

    # The heads bring the outputs to the scale, whatever the three layers of weights make of it.
    proof.on_copies(require_same, network, weight_power=1 / 3)
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


def _images(twin: Network, size: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.random((size, twin.conv.in_channels, 10, 10)) < 0.2).astype(np.uint8))


@torch.no_grad()
def _scale_outputs(twin: Network, scale: float, seed: int) -> None:
    """Give logits and values this scale. Of much larger logits, too few digits of their differences would be left."""
    for head, output in zip((twin.actor, twin.critic), twin(_images(twin, 64, seed)), strict=True):
        for p in head.parameters():
            p.mul_(scale / output.square().mean().sqrt())


SPREADS = {1.0: 0.0, 30.0: 1.0, 1000.0: 3.0}
"""of log r, by scale: ratios up to some 3, 20 and 10,000; where 0, twice the distance at which they are clipped"""


@torch.no_grad()
def _random_batch(twin: Network, loss: Loss, size: int, scale: float, seed: int) -> dict[str, Tensor]:
    """Old log probabilities and values lie around the network's own, so that each clip is met from both sides.

    With larger scales, ratios and single advantages are as large as only a run in trouble has them.
    """
    rng, obs = np.random.default_rng(seed), _images(twin, size, seed)
    actions = torch.from_numpy(rng.integers(twin.actor.out_features, size=size))
    logits, values = twin(obs)
    logprobs = torch.log_softmax(logits, 1).gather(1, actions[:, None])[:, 0]
    noise = torch.from_numpy(rng.standard_normal((4, size)))
    near = min(max(2 * loss.clip_coef, 0.05), 1.0)
    advantages = scale * noise[1]
    advantages[:: 16 if scale > 1 else size] *= 30
    return {
        "obs": obs, "actions": actions, "logprobs": logprobs + (SPREADS[scale] or near) * noise[0],
        "advantages": advantages, "returns": values + scale * noise[2], "values": values + near * noise[3],
    }  # fmt: skip
