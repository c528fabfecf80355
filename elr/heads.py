"""Which parameters are left out: those of the output layers, and those that the caller leaves alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from elr.inventory import Inventory, Owned, listed
from elr.roles import SCALABLE

Places = dict[tuple[int, str], str]
"""`Owned.place` of what is left out, and words for it in a message."""


def left_alone(inventory: Inventory, names: Iterable[str]) -> Places:
    """The parameters of these names, and those beneath the modules of these names.

    Raises:
        ValueError: a name matches no parameter.
    """
    left: Places = {}
    for name in names:
        found = inventory.under(name)
        if not found:
            known = listed(part for p in inventory.parameters for part in (p.module_name, p.name) if part)
            raise ValueError(f"leave: {name!r} is not a parameter or a module that has any; there are {known}")
        left |= {owned.place: f"{name!r}, which is left alone" for owned in found}
    return left


def beneath_heads(inventory: Inventory, names: Iterable[str]) -> Places:
    """The same for output layers.

    Raises:
        ValueError: a name matches nothing that has a matrix.
    """
    left: Places = {}
    for name in names:
        found = inventory.under(name)
        if not any(owned.is_matrix for owned in found):
            known = listed(owned.layer for owned in inventory.parameters if owned.is_matrix)
            raise ValueError(f"head {name!r} is not a parameter or module with a matrix; there are {known}")
        left |= {owned.place: f"the head {name!r}, which is not scaled" for owned in found}
    return left


def guessed_heads(inventory: Inventory, left: Places, claimed: Sequence[Owned]) -> tuple[tuple[str, ...], str | None]:
    """The name of the last module that has a matrix; or no name, and why that would be a bad guess.

    Args:
        left: what is left alone.
        claimed: what the caller names to be held.
    """
    matrices = [owned for owned in inventory.parameters if owned.is_matrix]
    matrices = [owned for owned in matrices if owned.tensor.requires_grad or isinstance(owned.module, SCALABLE)]
    if not matrices:
        return (), None
    last = matrices[-1]
    attention = [owned.module for owned in inventory.parameters if isinstance(owned.module, nn.MultiheadAttention)]
    if last.place in left:  # perhaps as the output layer, and the one before it is none
        why = "is left alone"
    elif any(owned.module is last.module for owned in claimed):
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
