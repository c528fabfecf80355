"""Adam on local time: at a change its step count begins again, and its moments go on (Ellis et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def restart_local_time_(optimizer: torch.optim.Optimizer) -> None:
    """Set the optimiser's step counts to 0 in place; moments are kept.

        t <- 0    (arXiv:2412.17113, Adam-Rel)

    After a change gradients may grow a thousandfold, and then the second moment, which remembers the small ones, makes
    Adam's next steps huge. Bias correction at t = 1 divides the first moment by 1 - beta1 and the second by 1 - beta2:
    with the moments kept, both are larger than at a restart from zero, and the quotient is small, so that the steps
    after a change are small at first.

    Args:
        optimizer: Adam, AdamW or another whose state counts steps per parameter.

    Raises:
        ValueError: it counts no steps, or in its groups rather than per parameter.
    """
    counts = [state["step"] for state in optimizer.state.values() if "step" in state]
    if any("step" in group for group in optimizer.param_groups):
        raise ValueError(f"{type(optimizer).__name__} counts its steps in its groups, for all parameters together")
    if optimizer.state and not counts:
        raise ValueError(f"{type(optimizer).__name__} counts no steps: local time is Adam's")
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"].zero_()
        elif "step" in state:
            state["step"] = 0
