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
        optimizer: Adam, AdamW, NAdam, RAdam or Adamax.

    Raises:
        ValueError: it is of another kind, or counts its steps in its groups.
    """
    if any("step" in group for group in optimizer.param_groups):
        raise ValueError(f"{type(optimizer).__name__} counts its steps in its groups, for all parameters together")
    for state in optimizer.state.values():
        if not {"step", "exp_avg"} <= state.keys():
            raise ValueError(
                f"{type(optimizer).__name__} corrects no moments by a count of steps: local time is Adam's"
            )
    for state in optimizer.state.values():
        for key, first in (("step", 0), ("mu_product", 1)):  # the latter is NAdam's product over its steps
            if isinstance(state.get(key), Tensor):
                state[key].fill_(first)
            elif key in state:
                state[key] = first
