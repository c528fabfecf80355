"""Which parameters the method scales: weights, the partners they are scaled with, gains and offsets.

They are chosen by the type of their module, or named by the caller. A matrix that is neither is an error: left out
silently, it would have an effective learning rate that nothing controls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from elr.arguments import names_in, pairs_in, require_once
from elr.heads import Places, beneath, guessed_heads
from elr.inventory import Inventory, Owned, is_sharded, named_modules
from elr.roles import NORMALISERS, UNKNOWN


def scalable_weights(
    network: nn.Module,
    *,
    embeddings: bool = False,
    heads: Iterable[str] | None = None,
    more_weights: Iterable[str | tuple[str, str]] = (),
    leave: Iterable[str] = (),
) -> dict[str, nn.Parameter]:
    """Choose the weight tensors to hold at fixed norm, by name.

    Chosen are, with subclasses:

        nn.Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d, Bilinear   weight, by module name
        nn.Embedding, EmbeddingBag                                 weight, by module name, if asked for
        nn.MultiheadAttention           in_proj_weight or q_proj_weight, ..., by parameter name; out_proj is a Linear
        nn.RNN, LSTM, GRU, their cells  weight_ih_l0, weight_hh_l0, ..., by parameter name

    and what `more_weights` names. Biases, parameters of one number, and parameters that are frozen when this is called
    are left alone. Every other parameter with two axes or more must be named in `more_weights`, `heads` or `leave`. A
    tensor that several modules share is returned once, under the first name. Names are without the parts that
    torch.compile and DataParallel add. For what a weight is scaled together with, see `partners`.

    Args:
        network: its submodules are visited in registration order.
        embeddings: also take embedding tables.
        heads: output layers to leave out, each with all beneath it: names of modules or parameters. None: the
            module that owns the last matrix in registration order. This guess is an error if that module is not linear,
            convolutional or bilinear, is an attention out_proj, is frozen, or is named in another argument. () means no
            head.
        more_weights: parameters to hold as well. A pair is held at its joint norm, under the name of the first, such as
            ("fc.weight_mu", "fc.weight_sigma") of a noisy layer.
        leave: modules, each with all beneath it, and parameters to leave alone.

    Raises:
        ValueError: a name matches nothing or is given twice; a matrix is of no known type and not named; the head
            cannot be guessed; something left out shares its tensor with a chosen weight; nothing is left; a weight is
            lazy, sharded over processes, or computed from other parameters (weight or spectral normalisation).

    Deviation: the paper does not say how embeddings are treated; they are left out by default. Nor does it treat
        attention and recurrent layers: here the tensor that holds queries, keys and values has one norm, and so has the
        one that holds a layer's gates.
    """
    return choose(network, embeddings=embeddings, heads=heads, more_weights=more_weights, leave=leave).weights


def partners(
    network: nn.Module, weights: Mapping[str, Tensor], more_weights: Iterable[str | tuple[str, str]] = ()
) -> dict[str, nn.Parameter | None]:
    """The parameter that each weight is scaled together with, keyed as the weights; None for most of them.

    A pair in `more_weights` says so, or a module type declares it by a class attribute that names the parameter:
    `scaled_with_weight = "weight_sigma"` for noisy layers W = mu + sigma * eps, whose mu is `weight`. If a
    normalisation follows, the output ignores the joint scale of (mu, sigma), but not that of mu or sigma alone.

    Args:
        network: modules with the attribute are matched by the identity of their `weight`.
        weights: as `scalable_weights` returns them.
        more_weights: as given to `scalable_weights`.

    Raises:
        ValueError: modules that share their weight do not share its partner.
    """
    inventory = Inventory(network)
    pairs = [inventory.find("more_weights", names) for names in pairs_in("more_weights", more_weights)]
    return _partners(inventory, weights, pairs)


def _partners(
    inventory: Inventory, weights: Mapping[str, Tensor], pairs: Iterable[Sequence[Owned]]
) -> dict[str, nn.Parameter | None]:
    found = {id(pair[0].tensor): pair[1].tensor for pair in pairs if len(pair) == 2}
    for name, module in inventory.modules.items():
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
    found: dict[str, tuple[nn.Parameter, nn.Parameter | None]] = {}
    for name, module in named_modules(network).items():
        if isinstance(module, NORMALISERS) and (gain := module._parameters.get("weight")) is not None:
            found[name] = (gain, module._parameters.get("bias"))
    return found


@dataclass(frozen=True)
class Choice:
    """What `choose` finds."""

    weights: dict[str, nn.Parameter]
    """The weights by name, as `scalable_weights` returns them."""
    partners: dict[str, nn.Parameter | None]
    """The partner of each weight, as `partners` returns it."""
    gains: dict[str, tuple[nn.Parameter, nn.Parameter | None]]
    """Gains and offsets. Those of normalisation layers come first, by module name, frozen ones too. Those that the
    caller names follow, by parameter name."""
    more_gains: list[nn.Parameter]
    """The gains that the caller names."""
    vectors: list[str]
    """Names of trainable parameters of unknown modules that have one axis and may be gains."""
    guessed: tuple[str, ...]
    """The output layer that was guessed, if the caller named none."""


def choose(
    network: nn.Module,
    *,
    embeddings: bool = False,
    heads: Iterable[str] | None = None,
    more_weights: Iterable[str | tuple[str, str]] = (),
    more_gains: Iterable[str | tuple[str, str]] = (),
    leave: Iterable[str] = (),
) -> Choice:
    """Weights as `scalable_weights` chooses them, and gains and offsets outside of `heads` and `leave`.

    Args:
        more_gains: gains of hand-written normalisation layers, or pairs of a gain and an offset, by parameter name.
    """
    weight_names, gain_names = pairs_in("more_weights", more_weights), pairs_in("more_gains", more_gains)
    leave, heads = names_in("leave", leave), None if heads is None else names_in("heads", heads)
    require_once(
        {
            "more_weights": [name for pair in weight_names for name in pair],
            "more_gains": [name for pair in gain_names for name in pair],
            "leave": leave,
            "heads": heads or (),
        }
    )
    inventory = Inventory(network)
    named_weights = {names[0]: inventory.find("more_weights", names) for names in weight_names}
    named_gains = {names[0]: inventory.find("more_gains", names) for names in gain_names}
    named = [owned for pair in (*named_weights.values(), *named_gains.values()) for owned in pair]
    left_out, why_no_guess = beneath(inventory, leave, as_heads=False), None
    guess = heads is None
    if heads is None:
        heads, why_no_guess = guessed_heads(inventory, left_out, named)
    left_out |= beneath(inventory, heads, as_heads=True)
    trainable = [owned for owned in inventory.parameters if owned.place not in left_out and owned.tensor.requires_grad]
    identified = {id(owned.tensor) for owned in named} | {
        id(owned.tensor) for owned in inventory.parameters if owned.place in left_out or owned.role not in UNKNOWN
    }
    unidentified = [owned for owned in trainable if id(owned.tensor) not in identified]
    _require_usable(trainable)
    _require_named([owned.name for owned in unidentified if owned.role == "unknown_matrix"])
    # Raised only now: if the last matrix is the cause, the two errors above say better what to do about it.
    if why_no_guess is not None:
        raise ValueError(why_no_guess)
    _check_named("more_weights", named_weights, left_out, embeddings)
    _check_named("more_gains", named_gains, left_out, embeddings)
    left_out_tensors = {id(o.tensor): left_out[o.place] for o in inventory.parameters if o.place in left_out}
    for i, owned in enumerate(named):
        if any(owned.tensor is other.tensor for other in named[:i]):
            raise ValueError(f"{owned.name!r} is a tensor that is named under another name as well: name it once")
        if id(owned.tensor) in left_out_tensors:
            raise ValueError(
                f"{owned.name!r} is to be held, but shares its tensor with {left_out_tensors[id(owned.tensor)]}"
            )
    weights = _weights(trainable, named_weights, left_out_tensors, embeddings)
    if not weights:
        raise ValueError(
            f"no weight to project in {type(network).__name__} outside the heads {sorted(heads)}: it needs a trainable "
            "linear or convolutional module that is not a head"
        )
    weight_partners = _partners(inventory, weights, named_weights.values())
    _check_partners(trainable, weight_partners)
    gains = _gains(inventory, left_out_tensors)
    gains |= {name: (pair[0].tensor, pair[1].tensor if len(pair) == 2 else None) for name, pair in named_gains.items()}
    return Choice(
        weights,
        weight_partners,
        gains,
        more_gains=[pair[0].tensor for pair in named_gains.values()],
        vectors=[owned.name for owned in unidentified if owned.role == "unknown_vector"],
        guessed=tuple(heads) if guess else (),
    )


def _check_named(argument: str, named: Mapping[str, Sequence[Owned]], left_out: Places, embeddings: bool) -> None:
    """Refuse what `more_weights` or `more_gains` cannot hold, and what is held without them."""
    known = ("gain", "offset") if argument == "more_weights" else ("weight", "embedding", "partner", "gain", "offset")
    held_by_type = ("weight", "embedding") if embeddings else ("weight",)
    for pair in named.values():
        for owned in pair:
            if owned.place in left_out:
                why = f"lies in {left_out[owned.place]}"
            elif not owned.tensor.requires_grad:
                why = "is frozen, so nothing changes its norm"
            elif owned.role in known:
                why = f"is known as the {owned.role} of a {type(owned.module).__name__}"
            elif len(pair) == 1 and owned.role in held_by_type:
                why = f"is held already, as {owned.layer!r}"
            elif owned.role == "partner" and (owned is pair[0] or owned.module is not pair[0].module):
                why = "is held already, together with the weight of its layer"
            else:
                continue
            raise ValueError(f"{argument}: {owned.name!r} {why}: do not name it there")


def _require_usable(trainable: Sequence[Owned]) -> None:
    """Refuse trainable parameters whose norm cannot be held in place."""
    for owned in trainable:
        if owned.role == "computed":
            raise ValueError(
                f"the weight of {owned.module_name!r} is computed from other parameters (weight or spectral "
                "normalisation, pruning), so scaling it in place has no effect: remove the parametrisation, or name "
                "the layer in leave=[...] or heads=[...]"
            )
        if isinstance(owned.tensor, nn.parameter.UninitializedParameter) and owned.role != "other":
            raise ValueError(
                f"the weight of {owned.module_name!r} is not initialised: run one batch through the network first"
            )
        if is_sharded(owned.tensor):
            raise ValueError(
                f"{owned.name!r} is sharded over processes (DTensor), none of which knows its norm: use "
                "DistributedDataParallel, or name it in leave=[...]"
            )


def _require_named(names: Sequence[str]) -> None:
    if names:
        layer = names[0].rpartition(".")[0] or names[0]
        second = next((name for name in names[1:] if name.rpartition(".")[0] == names[0].rpartition(".")[0]), None)
        pair = "" if second is None else f" or, two at their joint norm, [({names[0]!r}, {second!r})]"
        raise ValueError(
            f"elr does not know what the matrices {list(names)} are. Name each: to hold its norm, more_weights="
            f"[{names[0]!r}]{pair}; as an output layer, heads=[{layer!r}]; to leave it alone, leave=[{names[0]!r}]"
        )


def _weights(
    trainable: Sequence[Owned],
    named: Mapping[str, Sequence[Owned]],
    left_out_tensors: Mapping[int, str],
    embeddings: bool,
) -> dict[str, nn.Parameter]:
    """The weights in registration order, each tensor once."""
    firsts = {pair[0].place: name for name, pair in named.items()}
    named_tensors = {id(owned.tensor) for pair in named.values() for owned in pair}
    weights: dict[str, nn.Parameter] = {}
    for owned in trainable:
        by_type = owned.role == "weight" or (embeddings and owned.role == "embedding")
        if owned.place in firsts:
            weights[firsts[owned.place]] = owned.tensor
            continue
        if not by_type or id(owned.tensor) in named_tensors:
            continue
        if id(owned.tensor) in left_out_tensors:
            raise ValueError(
                f"{owned.layer!r} shares its weight with {left_out_tensors[id(owned.tensor)]}: untie them, or leave "
                "both out by naming both"
            )
        if all(owned.tensor is not other for other in weights.values()):
            weights[owned.layer] = owned.tensor
    return weights


def _check_partners(trainable: Sequence[Owned], weight_partners: Mapping[str, nn.Parameter | None]) -> None:
    """Refuse to scale one half of what is scaled together."""
    half_held = [n for n, partner in weight_partners.items() if partner is not None and not partner.requires_grad]
    tensors = {id(partner) for partner in weight_partners.values()}
    half_held += [owned.name for owned in trainable if owned.role == "partner" and id(owned.tensor) not in tensors]
    if half_held:
        raise ValueError(
            f"{half_held} and the parameters that they are scaled together with are not both trained and held: freeze "
            "or leave out both, or neither"
        )


def _gains(
    inventory: Inventory, left_out_tensors: Mapping[int, str]
) -> dict[str, tuple[nn.Parameter, nn.Parameter | None]]:
    """Gains and offsets of normalisation layers, by module name, without what is left out."""
    parameters = [owned for owned in inventory.parameters if id(owned.tensor) not in left_out_tensors]
    offsets = {id(owned.module): owned.tensor for owned in parameters if owned.role == "offset"}
    return {
        owned.module_name: (owned.tensor, offsets.get(id(owned.module))) for owned in parameters if owned.role == "gain"
    }
