"""Does the output of a network ignore the scale of its weights? Projection presumes that it does."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from elr.inventory import named_modules, own_parameters, unwrapped
from elr.rescaling import require_positive
from elr.undisturbed import tensors_in, undisturbed
from elr.weights import gains_and_offsets, partners

PLANTED = 10.0
"""Norm of the bias that the check puts into a layer, in norms of the weight. With inputs of size 1 this bias is about
ten times as large as the product of weight and inputs. So it is still noticed with inputs of some hundreds, such as
pixels."""


@dataclass(frozen=True)
class Call:
    """The arguments of a network that is not called with one tensor: network(*args, **kwargs)."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def check_scale_invariance(
    network: nn.Module,
    inputs: Tensor | Call,
    weights: Mapping[str, Tensor | tuple[Tensor, ...]],
    factors: Sequence[float] = (0.5, 2.0),
    tolerance: float = 0.01,
    *,
    more_gains: Sequence[Tensor] = (),
) -> None:
    """Refuse layers whose scale the output depends on.

    Each weight W is scaled by each factor a, and the change of the output f is compared with the change that another
    W of the same norm makes, W' = -W with every axis reversed:

        r_l = max_a ||f(aW) - f(W)|| / ||f(W') - f(W)||  <=  tolerance

    so neither a small head nor a large output bias hides a dependence. A weight that is given as one tensor is scaled
    together with its partner (`partners`). The output of a LayerNorm with eps changes by about |1 - 1/a^2| eps /
    (2 s^2) if its inputs have variance s^2: with eps = 1e-5, a = 0.5 the default tolerance allows s^2 down to 1.5e-3.

    A trainable bias between a layer and its normalisation breaks the invariance once it is trained, unless the
    normalisation subtracts it, as batch normalisation does. Biases often start at zero, so r_l is measured again with
    large numbers in the trainable biases of the layer.

    The check cannot see the effect of gains and offsets, which it never scales; a bias that another module adds; a bias
    behind inputs above about 500; or outputs of methods other than forward.

    Gains that are all zero, as in residual branches that start as zero, are ones during the check. Everything is
    restored, also after an exception: parameters and buffers bit for bit, train or eval mode of each module, random
    state. The forward passes run in eval mode (dropout off) and uncompiled, except that batch and instance
    normalisation in training mode use the statistics of the batch. No graph is built.

    Args:
        network: called as network(inputs), or network(*inputs.args, **inputs.kwargs) for a `Call`; the output is a
            tensor, or a nest of mappings, sequences and dataclasses that holds tensors. Floating-point ones are
            compared.
        inputs: one batch as the network takes it, [B, ...]; several varied rows.
        weights: name to tensor, as `scalable_weights` returns it, or to a tuple of all tensors that are scaled
            together.
        factors: positive, none of them 1.
        tolerance: largest r_l accepted, in (0, 1).
        more_gains: gains of hand-written normalisation layers, beyond those of `gains_and_offsets`.

    Raises:
        ValueError: bad arguments; an output without floating-point tensors or that is not finite; layers that are not
            invariant, or on which the output does not depend at all for these inputs, so invariance cannot be judged
            (all of them are named).
    """
    require_positive(factors)
    if not weights or not factors or 1.0 in factors or not 0.0 < tolerance < 1.0:
        raise ValueError(
            f"weights {list(weights)}, factors {tuple(factors)}, tolerance {tolerance}: give at least one weight, "
            "factors other than 1, and a tolerance between 0 and 1"
        )
    if not isinstance(inputs, Tensor | Call):
        raise ValueError(
            f"inputs of type {type(inputs).__name__} may be one argument or several: give a tensor, or "
            "elr.scale_invariance.Call(args=(...,), kwargs={...})"
        )
    network = unwrapped(network)
    call = inputs if isinstance(inputs, Call) else Call((inputs,))
    zero = [g for g in (*more_gains, *(g for g, _ in gains_and_offsets(network).values())) if not g.any()]
    ratios: dict[str, float] = {}
    because_of_bias: list[str] = []
    with (
        torch.no_grad(),
        _uncompiled(),
        undisturbed(network, call, batch_statistics=True),
        _filled(zero, torch.ones_like),
    ):
        forward = _repeatable(network, call)
        reference = forward()
        if not reference.isfinite().all():
            raise ValueError("the output is not finite on the check inputs: give finite inputs and weights")
        for name, tensors in _jointly(network, weights).items():
            ratios[name] = _scale_dependence(forward, reference, tensors, factors)
            passes = ratios[name] <= tolerance
            biases = [bias for bias in _biases(network, tensors[0]) if bias.requires_grad or not passes]
            if biases and ratios[name] < math.inf:
                # A layer that passed: would a trained bias break it? A layer that failed: is its bias the only cause?
                other = partial(_varied, norm=PLANTED * float(tensors[0].norm())) if passes else torch.zeros_like
                with _filled(biases, other):
                    passes_with_other = _scale_dependence(forward, forward(), tensors, factors) <= tolerance
                if passes_with_other != passes:
                    because_of_bias.append(name)
    _refuse_dependent(ratios, because_of_bias, tolerance, _on_running_statistics(network))


def _jointly(network: nn.Module, weights: Mapping[str, Tensor | tuple[Tensor, ...]]) -> dict[str, list[Tensor]]:
    """What is scaled together, the weight first."""
    groups = {name: [weight] if isinstance(weight, Tensor) else list(weight) for name, weight in weights.items()}
    single = {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}
    for name, partner in partners(network, single).items():
        if partner is not None:
            groups[name].append(partner)
    return groups


def _biases(network: nn.Module, weight: Tensor) -> list[Tensor]:
    """Those of the modules that own the weight."""
    found: dict[int, Tensor] = {}
    for module in named_modules(network).values():
        own = own_parameters(module)
        if any(parameter is weight for parameter in own.values()):
            found |= {id(p): p for name, p in own.items() if "bias" in name and p.ndim == 1}
    return list(found.values())


def _varied(vector: Tensor, norm: float) -> Tensor:
    """Numbers of different sizes and signs."""
    numbers = torch.arange(len(vector), device=vector.device, dtype=torch.float64).cos()
    return torch.mul(numbers, norm / float(numbers.norm())).to(vector.dtype)


@contextlib.contextmanager
def _filled(tensors: Sequence[Tensor], values: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Other values in the tensors, inside."""
    originals = [tensor.detach().clone() for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.copy_(values(tensor))
        yield
    finally:
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.copy_(original)


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


def _refuse_dependent(
    ratios: Mapping[str, float],
    because_of_bias: Sequence[str],
    tolerance: float,
    on_running_statistics: Sequence[str],
) -> None:
    unseen = [name for name, ratio in ratios.items() if ratio == math.inf]
    if unseen:
        raise ValueError(
            f"the output does not depend on {unseen} for the check inputs, so scale invariance cannot be judged: "
            "give varied non-zero inputs and a non-zero head, or pass allow_scale_dependent=True"
        )
    messages = []
    dependent = {n: ratio for n, ratio in ratios.items() if not ratio <= tolerance and n not in because_of_bias}
    if dependent:
        measured = ", ".join(f"{name!r} ({ratio:.3g})" for name, ratio in dependent.items())
        messages.append(
            f"the output depends on the scale of {measured}: relative change above the tolerance {tolerance}, so "
            "projection would alter the function. Put a normalisation layer, with no bias before it, between the layer "
            "and its nonlinearity; or name it as an output layer (heads=[...]); or leave it alone (leave=[...]), as "
            "suits recurrent and attention layers; or pass allow_scale_dependent=True if that is intended"
        )
        if on_running_statistics:
            messages.append(
                f"the normalisation layers {list(on_running_statistics)} are in eval mode and use running statistics, "
                "which do not follow the weights: call network.train() first; or if they are to stay frozen, pass "
                "allow_scale_dependent=True"
            )
    if because_of_bias:
        messages.append(
            f"each of {list(because_of_bias)} has a bias before its normalisation, so the output depends on the scale "
            "of its weight once the bias is not zero: build it with bias=False, or pass allow_scale_dependent=True"
        )
    if messages:
        raise ValueError(". Also, ".join(messages))


def _on_running_statistics(network: nn.Module) -> list[str]:
    """Normalisation layers that do not look at the batch."""
    return [
        name
        for name, module in named_modules(network).items()
        if isinstance(module, _BatchNorm | _InstanceNorm) and not module.training and module.running_mean is not None
    ]


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Run compiled modules as they were written: the modes of the check would compile them again."""
    if "torch._dynamo" not in sys.modules:  # its import takes a second, and nothing is compiled yet
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _fresh(call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, copied: a forward pass may consume them or write to them."""
    try:
        return copy.deepcopy((call.args, dict(call.kwargs)))
    except Exception:  # of a kind that cannot be copied
        return call.args, dict(call.kwargs)


def _repeatable(network: nn.Module, call: Call) -> Callable[[], Tensor]:
    """Return a forward pass to one float64 vector that draws the same random numbers at every call."""
    tensors = (*tensors_in(call), *network.parameters())
    devices = {tensor.device.index for tensor in tensors if tensor.device.type == "cuda"}

    def forward() -> Tensor:
        with torch.random.fork_rng(devices=list(devices)):
            args, kwargs = _fresh(call)
            output = network(*args, **kwargs)
        found = tensors_in(output)
        leaves = [torch.view_as_real(t) if t.is_complex() else t for t in found]
        leaves = [leaf.double().flatten() for leaf in leaves if leaf.is_floating_point()]
        if not leaves:
            kinds = sorted({str(t.dtype) for t in found}) or "none"
            raise ValueError(
                f"the output, of type {type(output).__name__}, holds no floating-point tensor (tensors in it: {kinds}),"
                " so scale invariance cannot be judged: check a module whose forward returns one, or pass "
                "allow_scale_dependent=True"
            )
        return torch.cat(leaves)

    return forward
