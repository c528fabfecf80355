"""C-CHAIN: a pull to the network's own recent outputs, which reduces churn (Tang et al. 2025)."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elr.states import check_keys
from elr.undisturbed import tensors_in

Divergence = Callable[[Any, Any], Tensor]
"""of the network's outputs now and those of its older copy on the same inputs: a 0-d tensor"""


def policy_divergence(now: Any, before: Any) -> Tensor:
    """Cross-entropy of the older policy and the present one, for networks whose first output is logits [B, A].

    E sum_a pi_old(a) (-log pi(a)): the authors' loss for PPO. It differs from the divergence by the older policy's
    entropy, which has no gradient.

    Raises:
        ValueError: the first output is not [B, A] with at least two actions, such as a value that is returned first.
    """
    if (shape := tuple(_first(now).shape))[1:] < (2,) or len(shape) != 2:
        raise ValueError(f"the network's first output is {shape}, not logits [B, A] of at least 2 actions")
    return -(F.softmax(_first(before), -1) * F.log_softmax(_first(now), -1)).sum(-1).mean()


def value_divergence(now: Any, before: Any) -> Tensor:
    """Mean squared difference of the first output, the values of all actions: the authors' loss for Q-networks."""
    return F.mse_loss(_first(now), _first(before))


class ChurnReduction:
    """Gradients of strength * divergence(outputs now, outputs of the network as it was some updates ago).

        loss + lambda D(f_theta(x_ref), f_theta_old(x_ref)),   theta_old: `lag` updates ago     (arXiv:2506.00592)

    on a batch x_ref drawn apart from the one that is learned from. lambda is set so that the two losses keep a ratio:

        lambda = ratio * mean|loss| / (mean D + 1e-8)    over the last `window` values of each, from `warmup` values on,
                                                         each the mean over `block` updates

    Use: `add_gradient_` at every update, after the backward pass of the loss, before clipping and the step. It keeps
    a copy of the network as it is then, so that the older network has all that was done to it.

    Args:
        network: called as network(inputs).
        divergence: `policy_divergence`, `value_divergence` or another.
        ratio: of the two losses; the authors' target_rel_loss_scale.
        lag: updates between the older network and the present one; 1, the network before the last step, is theirs.
        start: lambda before there are `warmup` values; theirs is 1 for PPO, 50 for Q-networks.
        window, warmup: values of each loss that count.
        block: updates whose mean is one value. In PPO those of an iteration: a minibatch's policy loss is mostly noise
            around 0, and the mean of its size says nothing.
        least: lambda never falls below this from then on; theirs is 1 for PPO, 0 for Q-networks.

    Raises:
        ValueError: an argument out of range.

    Source: Tang et al. 2025; github.com/bluecontra/C-CHAIN (no licence: read, not copied).
    Deviation: none with block the updates of an iteration, and `forget` at each change of the task, which their PPO is
        told of.
    """

    def __init__(
        self,
        network: nn.Module,
        divergence: Divergence,
        *,
        ratio: float,
        lag: int = 1,
        start: float = 1.0,
        window: int = 50,
        warmup: int = 10,
        least: float = 0.0,
        block: int = 1,
    ) -> None:
        if block < 1:
            raise ValueError(f"block must be at least 1 update, got {block}")
        if not ratio > 0 or lag < 1 or not start >= 0 or not 1 <= warmup <= window or not least >= 0:
            raise ValueError(
                f"ratio must be positive, lag at least 1, start and least at least 0 and 1 <= warmup <= window, got "
                f"{ratio}, {lag}, {start}, {least}, {warmup} and {window}"
            )
        self.ratio, self.lag, self.start, self.least = ratio, lag, start, least
        self.window, self.warmup, self.block = window, warmup, block
        self._network, self._divergence = network, divergence
        self._old = copy.deepcopy(network).requires_grad_(False)
        self._copies: deque[list[Tensor]] = deque(maxlen=lag)  # before the last updates
        self._losses: deque[float] = deque(maxlen=window)
        self._divergences: deque[float] = deque(maxlen=window)
        self._part: list[tuple[float, float]] = []  # of the block that is not full yet

    @property
    def strength(self) -> float:
        """lambda of the next update."""
        if len(self._divergences) < self.warmup:
            return self.start
        losses, divergences = (sum(map(abs, values)) / len(values) for values in (self._losses, self._divergences))
        return max(self.least, self.ratio * losses / (divergences + 1e-8))

    def add_gradient_(self, inputs: Tensor, loss: float | Tensor) -> float:
        """Add the gradient of lambda D to every .grad; D. Without an older copy nothing is added, and D is 0.

        Args:
            inputs: x_ref.
            loss: of the minibatch that is learned from, without this term.
        """
        value = 0.0
        if len(self._copies) == self.lag:
            strength = self.strength
            with torch.no_grad():
                for tensor, kept in zip(self._tensors(self._old), self._copies[0], strict=True):
                    tensor.copy_(kept)
                before = self._old(inputs)
            with torch.enable_grad():
                divergence = self._divergence(self._network(inputs), before)
                (strength * divergence).backward()  # type: ignore[no-untyped-call]
            value = float(divergence.detach())
        self._copies.append([tensor.detach().clone() for tensor in self._tensors(self._network)])
        self._part.append((float(loss), value))
        if len(self._part) == self.block:
            losses, divergences = (sum(column) / self.block for column in zip(*self._part, strict=True))
            self._losses.append(losses)
            self._divergences.append(divergences)
            self._part.clear()
        return value

    def forget_copies(self) -> None:
        """All weights are new: there is no older network."""
        self._copies.clear()

    def forget(self) -> None:
        """Restart the averages of lambda, as at a change of the task."""
        self._losses.clear()
        self._divergences.clear()
        self._part.clear()

    @staticmethod
    def _tensors(network: nn.Module) -> list[Tensor]:
        return [*network.parameters(), *network.buffers()]

    def state_dict(self) -> dict[str, Any]:
        """Copies of the network, and the values of both losses."""
        return {
            "copies": [[tensor.clone() for tensor in one] for one in self._copies],
            "losses": list(self._losses),
            "divergences": list(self._divergences),
            "part": list(self._part),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them (ValueError: another network, or other lengths)."""
        check_keys("ChurnReduction", state, ("copies", "losses", "divergences", "part"))
        shapes = [tuple(tensor.shape) for tensor in self._tensors(self._network)]
        if len(state["copies"]) > self.lag or any([tuple(t.shape) for t in one] != shapes for one in state["copies"]):
            raise ValueError("the saved copies are of another network, or more than these")
        for kept, saved in ((self._losses, state["losses"]), (self._divergences, state["divergences"])):
            kept.clear()
            kept.extend(saved)
        self._part = [tuple(one) for one in state["part"]]
        self._copies.clear()
        self._copies.extend([tensor.clone() for tensor in one] for one in state["copies"])


def _first(outputs: Any) -> Tensor:
    return tensors_in(outputs)[0]
