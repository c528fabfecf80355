"""Which parameters the method scales: weights, the partners they are scaled with, gains and offsets.

All are chosen by module type, never by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

SCALABLE = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
NORMALISERS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _BatchNorm, _InstanceNorm)
# Their matrices are not in one parameter `weight`, so a choice by type would silently leave them out.
OPAQUE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)


def scalable_weights(
    network: nn.Module, *, embeddings: bool = False, heads: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Choose the weight tensors to hold at fixed norm, by module type, keyed by module name.

    Chosen are nn.Linear, nn.Conv1d/2d/3d and nn.ConvTranspose1d/2d/3d with their subclasses, and nn.Embedding if asked
    for. Parameters of modules of other types are not chosen. A tensor that several modules share is returned once,
    under the first name. For what a weight is scaled together with, see `partners`.

    Args:
        network: its submodules are visited in registration order.
        embeddings: also take nn.Embedding tables.
        heads: names of the output layers to leave out; None means the last linear or convolutional module in
            registration order, an empty sequence means that there is none.

    Raises:
        ValueError: a head does not exist or is not of these types; a head shares its tensor with a chosen layer;
            nothing is left; a weight is lazy or computed from other parameters (weight or spectral normalisation); the
            network holds a module whose matrices cannot be chosen this way (attention, recurrent, bilinear).

    Deviation: the paper does not say how embeddings are treated; they are left out by default.
    """
    kinds = (*SCALABLE, nn.Embedding) if embeddings else SCALABLE
    left_out = _heads(network, heads)
    head_tensors = {id(module.weight): name for name, module in left_out.items()}
    chosen: dict[str, nn.Parameter] = {}
    for name, module in network.named_modules():
        if isinstance(module, OPAQUE):
            raise ValueError(
                f"{name!r} is a {type(module).__name__}, whose matrices cannot be chosen by module type: build it from "
                "nn.Linear modules"
            )
        if not isinstance(module, kinds) or any(module is head for head in left_out.values()):
            continue
        weight = _own_weight(name, module)
        if id(weight) in head_tensors:
            raise ValueError(
                f"{name!r} shares its weight with the head {head_tensors[id(weight)]!r}, which is not scaled: "
                "untie them, or leave both out by naming both as heads"
            )
        if all(weight is not other for other in chosen.values()):
            chosen[name] = weight
    if not chosen:
        raise ValueError(
            f"no weight to project in {type(network).__name__} outside the heads {sorted(left_out)}: it needs a linear "
            "or convolutional module that is not a head"
        )
    return chosen


def _heads(network: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    if isinstance(names, str):
        raise ValueError(f"heads={names!r} is one string; give a sequence of module names, such as [{names!r}]")
    if names is None:
        candidates = [(name, module) for name, module in network.named_modules() if isinstance(module, SCALABLE)]
        return dict(candidates[-1:])
    modules = dict(network.named_modules(remove_duplicate=False))
    kinds = (*SCALABLE, nn.Embedding)
    for name in names:
        if not isinstance(modules.get(name), kinds):
            known = [known for known, module in modules.items() if isinstance(module, kinds)]
            raise ValueError(f"head {name!r} is not a linear, convolutional or embedding module; there are {known}")
    return {name: modules[name] for name in names}


def _own_weight(name: str, module: nn.Module) -> nn.Parameter:
    weight = module._parameters.get("weight")
    if weight is None:
        raise ValueError(
            f"the weight of {name!r} is computed from other parameters (weight or spectral normalisation), so scaling "
            "it in place has no effect: remove the parametrisation"
        )
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(f"the weight of {name!r} is not initialised: run one batch through the network first")
    return weight


def partners(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, nn.Parameter | None]:
    """The parameter that each weight is scaled together with, keyed as the weights; None for most of them.

    A module type declares it by a class attribute that names the parameter: `scaled_with_weight = "weight_sigma"` for
    noisy layers W = mu + sigma * eps, whose mu is `weight`. If a normalisation follows, the output ignores the joint
    scale of (mu, sigma), but not that of mu or sigma alone.

    Args:
        network: modules with the attribute are matched by the identity of their `weight`.
        weights: as `scalable_weights` returns them.

    Raises:
        ValueError: modules that share their weight do not share its partner.
    """
    found: dict[int, nn.Parameter] = {}
    for name, module in network.named_modules():
        if declared := getattr(type(module), "scaled_with_weight", None):
            partner = getattr(module, declared)
            if found.setdefault(id(module.weight), partner) is not partner:
                raise ValueError(
                    f"{name!r} shares its weight with another module, but not its {declared!r}, so no single scale "
                    "fits both: share both, or untie them"
                )
    return {name: found.get(id(weight)) for name, weight in weights.items()}


def gains_and_offsets(network: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter | None]]:
    """Gain and offset of every normalisation layer that has a gain, by module type, keyed by module name.

    Types: LayerNorm, GroupNorm, RMSNorm, BatchNorm and InstanceNorm of every rank. Layers built without affine
    parameters have no entry; the offset is None where there is none.
    """
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, NORMALISERS) and module.weight is not None:
            found[name] = (module.weight, getattr(module, "bias", None))
    return found


def require_positive(numbers: Sequence[float]) -> None:
    """Refuse a norm or scale factor that is not positive and finite (ValueError)."""
    for number in numbers:
        if not 0.0 < number < math.inf:
            raise ValueError(f"{number} is not a positive finite number, but norms and scale factors must be")
