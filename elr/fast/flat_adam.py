"""Adam on one vector.

With a dozen small tensors, Adam spends as long on the calls as on the arithmetic. Laid out one after another in one
vector, they are zeroed, clipped and stepped in one operation each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer


class FlatAdam(torch.optim.Adam):
    """torch.optim.Adam, its parameters, gradients and moments laid out in one vector each, stepped in one kernel.

    The numbers are those of Adam's fused kernel, to the last bit where a tensor's size is a multiple of 16; the kernel
    rounds the elements left over at the end of a tensor differently, and in one vector they are not at the end. From
    construction on every `p.data`, `p.grad`, `exp_avg` and `exp_avg_sq` is a view of its vector. A gradient that was
    replaced, as after `network.zero_grad()`, is copied into its view before it is used.

    Args:
        parameters: as `network.parameters()` gives them, all of one dtype on one device; their order is that of the
            vectors.
        lr: learning rate of the one group, which a schedule may change.
        eps: Adam's epsilon.
    Attributes:
        vector, grad: [sum of the parameters' sizes].
    Raises:
        ValueError: there are no parameters, they differ in dtype or device, or they are groups.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, eps: float) -> None:
        """Move the parameters' values into the vector."""
        parameters = list(parameters)  # a generator can be read once
        if not all(isinstance(p, Tensor) for p in parameters):
            raise ValueError("FlatAdam needs parameters, not parameter groups or named parameters: it has one group")
        super().__init__(parameters, lr=lr, eps=eps, fused=True)
        first = parameters[0]
        if any(p.dtype != first.dtype or p.device != first.device for p in parameters):
            raise ValueError("FlatAdam needs parameters of one dtype on one device")
        self.vector, self.grad, self.exp_avg, self.exp_avg_sq = (
            torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device) for _ in range(4)
        )
        self._views: list[tuple[nn.Parameter, Tensor]] = []
        self.steps, start = torch.zeros((), device=first.device), 0
        for p in parameters:
            end = start + p.numel()
            value, grad, exp_avg, exp_avg_sq = (
                flat[start:end].view_as(p) for flat in (self.vector, self.grad, self.exp_avg, self.exp_avg_sq)
            )
            value.copy_(p.detach())
            p.data, p.grad = value, grad
            self._views.append((p, grad))
            self.state[p] = {"step": self.steps, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
            start = end

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Called by the constructor only.

        Raises:
            ValueError: the vectors are laid out already.
        """
        if hasattr(self, "vector"):
            raise ValueError("FlatAdam's vectors are laid out: parameters cannot be added")
        super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Zero the vector of gradients.

        Raises:
            ValueError: `set_to_none`, which would cut the gradients off their vector.
        """
        if set_to_none:
            raise ValueError("FlatAdam's gradients are views of one vector and cannot be set to None")
        for p, view in self._views:
            p.grad = view
        self.grad.zero_()

    @torch.no_grad()
    def clip_(self, max_norm: float) -> Tensor:
        """g <- g min(1, max_norm / (||g|| + 1e-6)) of the whole gradient, as torch's clip_grad_norm_; returns ||g||."""
        self._gather()
        norm: Tensor = torch.linalg.vector_norm(self.grad)
        self.grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters; step hooks run as with torch's optimisers.

        Raises:
            ValueError: there is a closure, which is not supported.
        """
        if closure is not None:
            raise ValueError("FlatAdam.step takes no closure: compute the gradients before it")
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
        ):
            self._step_with_hooks()
        else:
            self._step()

    # torch would wrap `step` in a profiler call that costs as much as the step. The wrapper also runs the hooks, so
    # `step` uses it when there are any.
    step.hooked = True  # type: ignore[attr-defined]

    def _gather(self) -> None:
        """Bring gradients that something else put in place of a view into the vector."""
        for p, view in self._views:
            if p.grad is not view:
                if p.grad is None:
                    raise ValueError(
                        "FlatAdam: a parameter has no gradient; compute it before the step, and clear gradients with "
                        "optimizer.zero_grad()"
                    )
                view.copy_(p.grad)
                p.grad = view

    @torch.no_grad()
    def _step(self) -> None:
        self._gather()
        group = self.param_groups[0]
        self.steps += 1
        torch._fused_adam_(
            [self.vector], [self.grad], [self.exp_avg], [self.exp_avg_sq], [], [self.steps],
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
            weight_decay=0.0, amsgrad=False, maximize=False,
        )  # fmt: skip

    _step_with_hooks = torch.optim.Optimizer.profile_hook_step(_step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state; the views stay views."""
        views = {p: dict(state) for p, state in self.state.items()}
        super().load_state_dict(state_dict)
        for p, view in views.items():
            for name, tensor in view.items():
                tensor.copy_(self.state[p][name])
            self.state[p] = view
