"""Does the output of a network ignore the scale of its weights? Projection presumes that it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from elr.undisturbed import tensors_in, undisturbed
from elr.weights import partners, require_positive


@dataclass(frozen=True)
class Call:
    """The arguments of a network that is not called with one tensor: network(*args, **kwargs)."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def check_scale_invariance(
    network: nn.Module,
    inputs: Tensor | Call,
    weights: Mapping[str, Tensor],
    factors: Sequence[float] = (0.5, 2.0),
    tolerance: float = 0.01,
) -> None:
    """Refuse layers whose scale the output depends on.

    Each weight W is scaled by each factor a, and the change of the output f is compared with the change that another
    W of the same norm makes, W' = -W with every axis reversed:

        r_l = max_a ||f(aW) - f(W)|| / ||f(W') - f(W)||  <=  tolerance

    so neither a small head nor a large output bias hides a dependence. A weight is scaled together with its partner
    (`partners`). The output of a LayerNorm with eps changes by about |1 - 1/a^2| eps / (2 s^2) if its inputs have
    variance s^2: with eps = 1e-5, a = 0.5 the default tolerance allows s^2 down to 1.5e-3. A bias between the layer and
    the normalisation breaks the invariance, but this check cannot detect it while it is zero: leave such biases out.

    Everything is restored, also after an exception: weights and buffers bit for bit, train or eval mode of each module,
    random state. The forward passes run in eval mode (dropout off), except that batch and instance normalisation use
    the statistics of the batch, as in training. No graph is built.

    Args:
        network: called as network(inputs), or network(*inputs.args, **inputs.kwargs) for a `Call`; the output is a
            tensor or a nest of tensors.
        inputs: one batch as the network takes it, [B, ...]; several varied rows.
        weights: name to tensor, as `scalable_weights` returns it.
        factors: positive, none of them 1.
        tolerance: largest r_l accepted, in (0, 1).

    Raises:
        ValueError: bad arguments; an output that is not finite; layers that are not invariant, or on which the output
            does not depend at all for these inputs, so invariance cannot be judged (all of them are named).
    """
    require_positive(factors)
    if not weights or not factors or 1.0 in factors or not 0.0 < tolerance < 1.0:
        raise ValueError(
            f"weights {list(weights)}, factors {tuple(factors)}, tolerance {tolerance}: give at least one weight, "
            "factors other than 1, and a tolerance between 0 and 1"
        )
    call = inputs if isinstance(inputs, Call) else Call((inputs,))
    with torch.no_grad(), undisturbed(network, call, batch_statistics=True):
        forward = _repeatable(network, call)
        reference = forward()
        if not reference.isfinite().all():
            raise ValueError("the output is not finite on the check inputs: give finite inputs and weights")
        ratios = {}
        for name, partner in partners(network, weights).items():
            tensors = [weights[name]] if partner is None else [weights[name], partner]
            ratios[name] = _scale_dependence(forward, reference, tensors, factors)
    _refuse_dependent(ratios, tolerance)


def _scale_dependence(
    forward: Callable[[], Tensor], reference: Tensor, tensors: list[Tensor], factors: Sequence[float]
) -> float:
    """Return r_l of `check_scale_invariance`, or infinity if the output does not depend on the weight."""
    originals = [tensor.detach().clone() for tensor in tensors]  # the weight and, if it has one, its partner

    def put(replacements: list[Tensor]) -> None:
        for tensor, replacement in zip(tensors, replacements, strict=True):
            tensor.copy_(replacement)

    def change(replacements: list[Tensor]) -> float:
        put(replacements)
        return float((forward() - reference).norm())

    try:
        influence = change([-original.flip(tuple(range(original.ndim))) for original in originals])
        scaled = max(change([original * factor for original in originals]) for factor in factors)
    finally:
        put(originals)
    seen = influence > 1e-6 * float(reference.norm())  # below: float32 noise of the forward pass
    return scaled / influence if seen else math.inf


def _refuse_dependent(ratios: Mapping[str, float], tolerance: float) -> None:
    unseen = [name for name, ratio in ratios.items() if ratio == math.inf]
    if unseen:
        raise ValueError(
            f"the output does not depend on {unseen} for the check inputs, so scale invariance cannot be judged: "
            "give varied non-zero inputs and a non-zero head, or pass allow_scale_dependent=True"
        )
    dependent = {name: ratio for name, ratio in ratios.items() if not ratio <= tolerance}
    if dependent:
        measured = ", ".join(f"{name!r} ({ratio:.3g})" for name, ratio in dependent.items())
        raise ValueError(
            f"the output depends on the scale of {measured}: relative change above the tolerance {tolerance}, so "
            "projection would alter the function. Put a normalisation layer, with no bias before it, between the layer "
            "and its nonlinearity; or name it as a head; or pass allow_scale_dependent=True if that is intended"
        )


def _repeatable(network: nn.Module, call: Call) -> Callable[[], Tensor]:
    """Return a forward pass to one float64 vector that draws the same random numbers at every call."""
    devices = {
        tensor.device.index for tensor in (*tensors_in(call), *network.parameters()) if tensor.device.type == "cuda"
    }

    def forward() -> Tensor:
        with torch.random.fork_rng(devices=list(devices)):
            leaves = [leaf for leaf in tree_leaves(network(*call.args, **call.kwargs)) if isinstance(leaf, Tensor)]
        return torch.cat([leaf.double().flatten() for leaf in leaves])

    return forward
