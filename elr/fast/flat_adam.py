"""Adam on one vector.

With a dozen small tensors, Adam spends as long on the calls as on the arithmetic. Laid out one after another in one
vector, they are zeroed, clipped and stepped in one operation each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

_MOMENTS = ("exp_avg", "exp_avg_sq")


class FlatAdam(torch.optim.Adam):
    """torch.optim.Adam, its parameters, gradients and moments laid out in one vector each, stepped in one kernel.

    The numbers are those of Adam's fused kernel, to the last bit where a tensor's size is a multiple of 16; the kernel
    rounds the elements left over at the end of a tensor differently, and in one vector they are not at the end. From
    construction on every `p.data`, `p.grad`, `exp_avg` and `exp_avg_sq` is a view of its vector. A gradient that was
    replaced, as after `network.zero_grad()`, is copied into its view before it is used.

    Step hooks, closures, GradScaler, a rate that is a tensor, and the group's betas, eps, weight_decay,
    decoupled_weight_decay and maximize work as with torch's Adam; amsgrad and differentiable are refused. States are
    exchanged with torch's Adam by `state_dict` and `load_state_dict`. A copy (`copy.deepcopy`, pickle) lays out vectors
    of its own, and like torch's has neither gradients nor hooks.

    Args:
        parameters: as `network.parameters()` gives them, of one dtype on one device; their order is that of the
            vectors. Those that are frozen are left alone, as Adam leaves them without a gradient.
        lr: learning rate of the one group, which a schedule may change.
        eps: Adam's epsilon.
    Attributes:
        vector, grad: [sum of the parameters' sizes].
        steps: 0-d, the updates taken, for all parameters.
    Raises:
        ValueError: no parameter is trained, one is there twice or not of floating point, they differ in dtype or
            device, or they are groups.
    """

    _frozen: Sequence[nn.Parameter] = ()

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float | Tensor, eps: float) -> None:
        """Move the parameters' values into the vector."""
        parameters = list(parameters)  # a generator can be read once
        if not all(isinstance(p, Tensor) for p in parameters):
            raise ValueError("FlatAdam needs parameters, not parameter groups or named parameters: it has one group")
        if len({id(p) for p in parameters}) < len(parameters):
            raise ValueError("FlatAdam: a parameter is given twice; give each once")
        trained = [p for p in parameters if p.requires_grad]
        if parameters and not trained:
            raise ValueError("FlatAdam: all parameters are frozen, so there is nothing to train")
        super().__init__(trained, lr=lr, eps=eps, fused=True)
        self._frozen = [p for p in parameters if not p.requires_grad]
        self._lay_out()
        for p, view, _ in self._views:
            if p.grad is None:
                p.grad = view
        self._gather()

    def _lay_out(self) -> None:
        """Make the vectors, of zeros but for the parameters' values, and the views that are kept of them."""
        parameters = self.param_groups[0]["params"]
        first = parameters[0]
        if any(p.dtype != first.dtype or p.device != first.device for p in parameters):
            raise ValueError("FlatAdam needs parameters of one dtype on one device")
        if not first.dtype.is_floating_point:
            raise ValueError(f"FlatAdam needs parameters of a floating-point type, got {first.dtype}")
        self.vector, self.grad, self.exp_avg, self.exp_avg_sq = (
            torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device) for _ in range(4)
        )
        self.steps = torch.zeros((), dtype=torch.float32, device=first.device)
        self._views: list[tuple[nn.Parameter, Tensor, int]] = []  # parameter, gradient, address within the vector
        start = 0
        for p in parameters:
            end = start + p.numel()
            value, grad, exp_avg, exp_avg_sq = (
                flat[start:end].view_as(p) for flat in (self.vector, self.grad, self.exp_avg, self.exp_avg_sq)
            )
            value.copy_(p.detach())
            p.data = value
            self._views.append((p, grad, start * first.element_size()))
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
        for p, view, _ in self._views:
            if p.grad is not view:
                p.grad = view
        self.grad.zero_()

    @torch.no_grad()
    def clip_(self, max_norm: float) -> Tensor:
        """g <- g min(1, max_norm / (||g|| + 1e-6)) of the whole gradient, as torch's clip_grad_norm_; returns ||g||."""
        self._gather()
        norm: Tensor = torch.linalg.vector_norm(self.grad)
        self.grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters; step hooks run as with torch's optimisers.

        Args:
            closure: computes the gradients and returns the loss, which is returned.
        Raises:
            ValueError: a parameter has no gradient, a sparse one, was frozen, or its values are no longer in the
                vector; or the group asks for something that is not supported. Nothing has been changed then.
        """
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
        ):
            return self._step_with_hooks(closure)
        return self._step(closure)

    # torch would wrap `step` in a profiler call that costs as much as the step. The wrapper also runs the hooks, so
    # `step` uses it when there are any.
    step.hooked = True  # type: ignore[attr-defined]

    def _gather(self) -> None:
        """Bring gradients that something else put in place of a view into the vector."""
        for p in self._frozen:
            if p.requires_grad:
                raise ValueError(
                    f"FlatAdam: a parameter of shape {tuple(p.shape)} was frozen when it was built and is not now; "
                    "build it again to train that"
                )
        vector = self.vector.data_ptr()
        for p, view, start in self._views:
            if (p.data_ptr() != vector + start and p.numel()) or not p.requires_grad:
                _refuse(p)
            if p.grad is not view:
                if p.grad is None:
                    raise ValueError(
                        "FlatAdam: a parameter has no gradient; compute it before the step, and clear gradients with "
                        "optimizer.zero_grad()"
                    )
                if p.grad.is_sparse:
                    raise ValueError("FlatAdam: a parameter has a sparse gradient; use torch.optim.SparseAdam for it")
                view.copy_(p.grad.detach())
                p.grad = view

    # Without torch.no_grad(), which costs as much as the checks: nothing here asks for a gradient.
    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._gather()
        group = self.param_groups[0]
        if group["amsgrad"] or group["differentiable"]:
            _check_group(group)
        # A GradScaler leaves these two for the time of the step. The kernel divides by the one and skips by the other.
        grad_scale, found_inf = self.__dict__.get("grad_scale"), self.__dict__.get("found_inf")
        update = torch._fused_adamw_ if group.get("decoupled_weight_decay") else torch._fused_adam_
        self.steps += 1
        update(
            [self.vector], [self.grad], [self.exp_avg], [self.exp_avg_sq], [], [self.steps],
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
            weight_decay=group["weight_decay"], amsgrad=False, maximize=group["maximize"],
            grad_scale=grad_scale, found_inf=found_inf,
        )  # fmt: skip
        if found_inf is not None:
            self.steps -= found_inf  # a skipped step does not count
        return loss

    _step_with_hooks = torch.optim.Optimizer.profile_hook_step(_step)

    def state_dict(self) -> dict[str, Any]:
        """As torch's Adam: with a step count for each parameter, so that it can be loaded by one."""
        state_dict = super().state_dict()
        state = {index: {**kept, "step": kept["step"].clone()} for index, kept in state_dict["state"].items()}
        return {**state_dict, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of FlatAdam or of torch's Adam; the views stay views.

        Raises:
            ValueError: the parameters' step counts, shapes or kinds of state are not those of one Adam without amsgrad,
                or the group asks for something that is not supported. Nothing has been changed then.
        """
        super().load_state_dict(state_dict)  # calls __setstate__

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state: in `load_state_dict` into the vectors, in a copy into new ones."""
        kept = _check(state)
        views = dict(self.state) if hasattr(self, "vector") else None
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if views is None:
            self._lay_out()
            views = dict(self.state)
        count = float(kept[0]["step"]) if kept[0] else 0.0
        for (p, view), loaded in zip(views.items(), kept, strict=True):
            for name in _MOMENTS:
                view[name].copy_(loaded[name]) if loaded else view[name].zero_()
            self.state[p] = view
        self.steps.fill_(count)


def _check(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The state of each parameter, checked to be that of one Adam; empty before its first update."""
    (group,) = state["param_groups"]
    _check_group(group)
    kept = [dict(state["state"].get(p, {})) for p in group["params"]]
    names = {"step", *_MOMENTS}
    if other := {name for each in kept if each for name in each.keys() ^ names}:
        raise ValueError(f"FlatAdam cannot take a state that differs in {sorted(other)} from {sorted(names)} of Adam")
    if len(counts := {float(each["step"]) if each else 0.0 for each in kept}) > 1:
        raise ValueError(
            f"FlatAdam has one step count for all parameters and the state has {sorted(counts)}: use torch.optim.Adam"
        )
    for p, each in zip(group["params"], kept, strict=True):
        if bad := [tuple(each[name].shape) for name in _MOMENTS if each and each[name].shape != p.shape]:
            raise ValueError(f"FlatAdam cannot take moments of shape {bad} for a parameter of shape {tuple(p.shape)}")
    return kept


def _check_group(group: dict[str, Any]) -> None:
    if asked := [name for name in ("amsgrad", "differentiable") if group.get(name)]:
        raise ValueError(f"FlatAdam does not support {' and '.join(asked)}: use torch.optim.Adam")


def _refuse(p: nn.Parameter) -> NoReturn:
    shape = tuple(p.shape)
    if not p.requires_grad:
        raise ValueError(f"FlatAdam: a parameter of shape {shape} was frozen after FlatAdam was built; build it again")
    raise ValueError(
        f"FlatAdam: something has replaced the data of a parameter of shape {shape}, such as network.to(...), which "
        "takes it out of the vector that is trained; do that before building FlatAdam, or copy values in place"
    )
