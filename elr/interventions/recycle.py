"""Give hidden units new weights: what ReDo and continual backprop do to the units that they choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elr.interventions.pairs import is_parameter
from elr.interventions.units import Hidden
from elr.moments import per_entry


@torch.no_grad()
def recycle_(
    hidden: Hidden, chosen: Tensor, fresh: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Redraw the weights that make the chosen units, set those that read them to 0, and forget their moments; in place.

    A unit's row, bias, gain and offset become those of a freshly initialised network, so that they have the
    distribution of the layer's own initialisation. Its readers ignore it at first, so that the network's output changes
    by what the unit contributed before; and, behind a LayerNorm over several units, by the others' new mean and
    deviation.

    Args:
        hidden: of the network that is changed.
        chosen: mask [units].
        fresh: parameters of a freshly initialised network of the same shape, by name.
        optimizer: the moments of exactly the entries that change become those of a new optimiser; None: they are kept.
            Its step counts are kept: they belong to whole tensors, which are mostly not new.

    Raises:
        ValueError: the mask does not fit, or the optimiser keeps something whose initial value is not known.
    """
    if chosen.shape != (hidden.units,) or chosen.dtype != torch.bool:
        raise ValueError(f"{hidden.name} has {hidden.units} units: give a mask of as many, not {tuple(chosen.shape)}")
    if not bool(chosen.any()):
        return
    check_fresh([hidden], fresh)
    rows: list[tuple[Tensor, Any]] = [(parameter, chosen) for parameter in hidden.makers.values()]
    columns: list[tuple[Tensor, Any]] = [
        (r.weight, (slice(None), r.columns[chosen[r.unit_of]])) for r in hidden.readers
    ]
    changed = [*rows, *columns]
    # Refuse what cannot be reset before anything is changed.
    trained = [(p, index) for p, index in changed if is_parameter(p)]  # running statistics have no moments
    kept = [(entry, index) for p, index in trained if optimizer for entry in per_entry(optimizer, p)]
    for name, parameter in hidden.makers.items():
        parameter[chosen] = fresh[name][chosen].to(parameter)
    for weight, index in columns:
        weight[index] = 0.0
    for (moment, first), index in kept:
        moment[index] = first


def check_fresh(layers: Sequence[Hidden], fresh: Mapping[str, Tensor]) -> None:
    """Refuse (ValueError) a fresh network that lacks what makes the units, or has it in another shape."""
    for hidden in layers:
        for name, tensor in hidden.makers.items():
            if name not in fresh or fresh[name].shape != tensor.shape:
                raise ValueError(
                    f"the fresh network has no {name} of shape {tuple(tensor.shape)}: build it with the same class and "
                    "arguments"
                )


def tensors_by_name(network: nn.Module) -> dict[str, Tensor]:
    """The network's parameters and buffers."""
    return {**dict(network.named_parameters(remove_duplicate=False)), **dict(network.named_buffers())}
