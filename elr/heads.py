"""Which parameters are left out: those of the output layers, and those that the caller leaves alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from elr.arguments import listed
from elr.inventory import Inventory, Owned
from elr.roles import SCALABLE

Places = dict[tuple[int, str], str]
"""`Owned.place` of what is left out, and words for it in a message."""


def beneath(inventory: Inventory, names: Iterable[str], *, as_heads: bool) -> Places:
    """The parameters of these names, and those beneath the modules of these names.

    Args:
        as_heads: the names are those of output layers, so each must have a matrix. Otherwise they are those that the
            caller leaves alone.

    Raises:
        ValueError: a name matches no parameter, or as a head no matrix.
    """
    places: Places = {}
    for name in names:
        found = inventory.under(name)
        if as_heads and not any(owned.is_matrix for owned in found):
            known = listed(owned.layer for owned in inventory.parameters if owned.is_matrix)
            raise ValueError(f"head {name!r} is not a parameter or module with a matrix; there are {known}")
        if not found:
            known = listed(part for p in inventory.parameters for part in (p.module_name, p.name) if part)
            raise ValueError(f"leave: {name!r} is not a parameter or a module that has any; there are {known}")
        words = f"the head {name!r}, which is not scaled" if as_heads else f"{name!r}, which is left alone"
        places |= {owned.place: words for owned in found}
    return places


def guessed_heads(
    inventory: Inventory, left_alone: Places, named: Sequence[Owned]
) -> tuple[tuple[str, ...], str | None]:
    """The name of the last module that has a matrix; or no name, and why that would be a bad guess.

    Args:
        left_alone: what the caller leaves alone.
        named: what the caller names to be held.
    """
    matrices = [owned for owned in inventory.parameters if owned.is_matrix]
    # A frozen matrix of an unknown module is passed over: it is more likely a constant, such as a table of positions,
    # than an output layer. A frozen linear layer may be the output layer; it is refused below.
    matrices = [owned for owned in matrices if owned.tensor.requires_grad or isinstance(owned.module, SCALABLE)]
    if not matrices:
        return (), None
    last = matrices[-1]
    attention = [owned.module for owned in inventory.parameters if isinstance(owned.module, nn.MultiheadAttention)]
    if last.place in left_alone:
        # The caller may have left it alone because it is the output layer. Then the layer before it is a hidden one.
        why = "is left alone"
    elif any(owned.module is last.module for owned in named):
        why = "is named to be held"
    elif any(last.module is module.out_proj for module in attention):
        why = "is the output projection of an attention layer, which is no output layer by itself"
    elif not isinstance(last.module, SCALABLE):
        why = f"is of type {type(last.module).__name__}, which is no output layer by itself"
    elif not last.tensor.requires_grad:
        why = "is frozen"
    else:
        return (last.module_name,), None
    return (), (
        f"the output layer cannot be guessed: the last module with a matrix, {last.module_name!r}, {why}. Name the "
        "output layers in heads=[...]; heads=() means that there is none"
    )
