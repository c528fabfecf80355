"""Per-layer learning rates: which layers learn fast (arXiv:2507.20057, Sec. 5.2)."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from torch import nn

Assignment = Literal["constant", "fast-features", "slow-features", "even-ratio-abs"]

SLOWDOWN = 10.0


def layerwise_groups(network: nn.Module, lr: float, assignment: Assignment, head: str) -> list[dict[str, Any]]:
    """Build optimiser parameter groups, one per module that owns parameters.

    With lr the base rate and m_l the mean absolute value of all parameters of module l:

        constant         lr_l = lr
        fast-features    lr_head = lr / 10, the others lr
        slow-features    lr_head = lr, the others lr / 10
        even-ratio-abs   lr_l = lr * m_l / max_k m_k

    (arXiv:2507.20057, Sec. 5.2.) m_l is measured once, now; a schedule multiplies the rates of all groups by the same
    factor. Every parameter of the network is in exactly one group.

    Args:
        network: every module that owns parameters gets a group.
        lr: base rate, positive.
        assignment: row of the table above.
        head: name of the module that is the last linear layer, for every assignment.

    Returns:
        groups {"name": module name, "params": [...], "lr": rate} in registration order.

    Raises:
        ValueError: lr is not positive; unknown assignment; no module of that name owns parameters; two modules share a
            parameter; for even-ratio-abs a layer is all zero or not finite, so that it would never move.

    Deviation: the paper gives the proportion but not its constant: the largest rate is lr. It does not mention
        normalisation layers under even-ratio-abs: modules with vectors only (gains near 1) would dominate the maximum,
        so they do not count in it and keep the rate lr.
    """
    if not 0.0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if assignment not in get_args(Assignment):
        raise ValueError(f"assignment={assignment!r} is unknown: choose one of {get_args(Assignment)}")
    owners = _owners(network)
    if head not in owners:
        raise ValueError(f"head={head!r} is not a module with parameters; choose one of {list(owners)}")
    rates = _even_rates(owners, lr) if assignment == "even-ratio-abs" else _head_rates(owners, lr, assignment, head)
    return [{"name": name, "params": params, "lr": rates[name]} for name, params in owners.items()]


def _owners(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    owners: dict[str, list[nn.Parameter]] = {}
    owner_of: dict[int, str] = {}
    for name, module in network.named_modules():
        params = list(module.parameters(recurse=False))
        for param in params:
            if id(param) in owner_of:
                raise ValueError(
                    f"{owner_of[id(param)]!r} and {name!r} share a parameter; its rate would be ambiguous: untie them"
                )
            owner_of[id(param)] = name
        if params:
            owners[name] = params
    return owners


def _head_rates(owners: dict[str, list[nn.Parameter]], lr: float, assignment: str, head: str) -> dict[str, float]:
    slow = {"constant": [], "fast-features": [head], "slow-features": [name for name in owners if name != head]}
    return {name: lr / SLOWDOWN if name in slow[assignment] else lr for name in owners}


def _even_rates(owners: dict[str, list[nn.Parameter]], lr: float) -> dict[str, float]:
    means = {name: _mean_abs(params) for name, params in owners.items() if any(param.ndim > 1 for param in params)}
    bad = {name: mean for name, mean in means.items() if not 0.0 < mean < math.inf}
    if bad:
        raise ValueError(
            f"even-ratio-abs cannot rate layers whose mean absolute parameter is {bad}: initialise them with finite "
            "non-zero weights, or choose another assignment"
        )
    largest = max(means.values(), default=1.0)
    return {name: lr * means[name] / largest if name in means else lr for name in owners}


def _mean_abs(params: list[nn.Parameter]) -> float:
    total = sum(float(param.detach().double().abs().sum()) for param in params)
    return total / sum(param.numel() for param in params)
