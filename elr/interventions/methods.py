"""Several methods on one network, called at three places of a training loop.

    methods.before_step(reference, loss)                after the loss's backward pass, before clipping and the step
    methods.after_step()                                after the optimiser's step, before the projection
    methods.react(reference, changed=..., fired=...)    when the task changed, or a trigger fired
    methods.weights_renewed()                           when something else has made all weights new
    methods.scalars()                                   what they do, for a log

`InterveneArgs.build` makes it from flags. One without methods does nothing, and changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from elr.interventions.churn import ChurnReduction
from elr.interventions.continual_backprop import ContinualBackprop
from elr.interventions.fire import fire_
from elr.interventions.l2_init import L2Init
from elr.interventions.local_time import restart_local_time_
from elr.interventions.redo import ReDo
from elr.interventions.reset import reset_
from elr.interventions.shrink_and_perturb import shrink_and_perturb_
from elr.interventions.trac import Trac
from elr.interventions.weight_clipping import WeightClipping
from elr.moments import per_entry, states_to_reset
from elr.states import check_keys

When = Literal["every", "change", "trigger"]
Fresh = Callable[[], nn.Module]
"""makes a newly initialised network of the same shape, another each time"""


Draw = Callable[[int], Tensor]
"""draws so many inputs of those that are learned from, apart from the batch of the update"""
SCORED = 256
"""inputs on which units are scored at an event"""


class Held(Protocol):
    """What holds the norms of weights: a Projection."""

    def project_(self) -> object: ...  # noqa: D102
    def remember_norms_(self) -> object: ...  # noqa: D102


class Method:
    """A method that does nothing; each of those below overrides what it needs."""

    def learned(self) -> None:
        """The last forward pass was that of the update; others may follow before the step."""

    def before_step(self, reference: Draw, loss: float | Tensor) -> None:
        """Add to the gradients; `loss` is that of the batch that is learned from. Only churn reads it."""

    def after_step(self) -> bool:
        """Change weights after every optimiser step; whether they were changed other than in passing."""
        return False

    def act(self, inputs: Tensor, fresh: Fresh) -> bool:
        """Change weights at an event, or now and then; whether anything was changed."""
        return False

    def task_changed(self) -> None:
        """The task has changed, and the agent is told."""

    def weights_renewed(self) -> None:
        """All weights are new: what the method has kept of the old ones is void."""

    def scalars(self) -> dict[str, float]:
        """What it does, by tag, for a log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it (ValueError if it is of something else)."""
        check_keys(type(self).__name__, state, ())


class Reset(Method):
    """`reset_` of the whole network; norms are held at their new values, and the optimiser restarts."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, held: Held) -> None:
        self._network, self._optimizer, self._held = network, optimizer, held
        states_to_reset(optimizer, list(network.parameters()), "reset")  # refuse at once what would be refused then

    def act(self, inputs: Tensor, fresh: Fresh) -> bool:
        """Reset."""
        reset_(self._network, fresh(), optimizer=self._optimizer, moments="reset")
        self._held.remember_norms_()
        return True


class ResetHeads(Method):
    """`reset_` of the output layers. Their moments restart; Adam's step count, which others share, continues."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, heads: Sequence[str]) -> None:
        self._network, self._optimizer, self._heads = network, optimizer, heads
        for head in heads:
            for parameter in network.get_submodule(head).parameters():
                per_entry(optimizer, parameter)  # refuse at once what would be refused then

    @torch.no_grad()
    def act(self, inputs: Tensor, fresh: Fresh) -> bool:
        """Reset."""
        reset_(self._network, fresh(), modules=self._heads)
        for head in self._heads:
            for parameter in self._network.get_submodule(head).parameters():
                for moment, first in per_entry(self._optimizer, parameter):
                    moment.fill_(first)
        return True


class ShrinkAndPerturb(Method):
    """`shrink_and_perturb_`."""

    def __init__(self, network: nn.Module, held: Held, shrink: float, perturb: float) -> None:
        if frozen := [name for name, p in network.named_parameters() if not p.requires_grad]:
            raise ValueError(f"shrink-and-perturb changes all parameters, but these are frozen: {', '.join(frozen)}")
        self._network, self._held, self._shrink, self._perturb = network, held, shrink, perturb

    def act(self, inputs: Tensor, fresh: Fresh) -> bool:
        """Shrink and perturb; moments are kept."""
        shrink_and_perturb_(self._network, fresh(), shrink=self._shrink, perturb=self._perturb)
        self._held.project_()
        return True


class Fire(Method):
    """`fire_`; its scale is its own, so that norms are held at their new values."""

    def __init__(self, network: nn.Module, held: Held, heads: Sequence[str]) -> None:
        self._network, self._held, self._heads = network, held, heads

    def act(self, inputs: Tensor, fresh: Fresh) -> bool:
        """Make all weights but those of the heads orthogonal; moments are kept."""
        if not all(bool(p.isfinite().all()) for p in self._network.parameters()):
            return False  # the loop's own check stops such a run, and names layer and rate
        fire_(self._network, leave=self._heads)
        self._held.remember_norms_()
        return True


class LocalTime(Method):
    """`restart_local_time_`."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if not all("betas" in group for group in optimizer.param_groups):
            raise ValueError(f"local time is that of Adam and its relatives, not of {type(optimizer).__name__}")
        self._optimizer = optimizer

    def act(self, inputs: Tensor, fresh: Fresh) -> bool:
        """Restart Adam's count; no weight changes."""
        restart_local_time_(self._optimizer)
        return False


class Recycle(Method):
    """`ReDo`."""

    def __init__(self, redo: ReDo, held: Held) -> None:
        self._redo, self._held, self._recycled = redo, held, 0

    def act(self, inputs: Tensor, fresh: Fresh) -> bool:
        """Recycle what is dormant on these inputs."""
        recycled = sum(self._redo.step_(inputs, fresh()).values())
        if recycled:
            self._held.project_()
        self._recycled += recycled
        return recycled > 0

    def scalars(self) -> dict[str, float]:
        """Units recycled so far."""
        return {"intervene/recycled": self._recycled}

    def state_dict(self) -> dict[str, Any]:
        """Units recycled so far."""
        return {"recycled": self._recycled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        check_keys("Recycle", state, ("recycled",))
        self._recycled = state["recycled"]


class GenerateAndTest(Method):
    """`ContinualBackprop`."""

    def __init__(self, method: ContinualBackprop, fresh: Fresh) -> None:
        self._method, self._fresh, self._replaced = method, fresh, 0

    def learned(self) -> None:
        """Features are those of this pass."""
        self._method.hold_()

    def after_step(self) -> bool:
        """Renew utilities; replace what is due. A few units at a time are no event."""
        self._replaced += self._method.step_(self._fresh)
        return False

    def scalars(self) -> dict[str, float]:
        """Units replaced so far."""
        return {"intervene/replaced": self._replaced}

    def weights_renewed(self) -> None:
        """All units are new."""
        self._method.forget_()

    def state_dict(self) -> dict[str, Any]:
        """Utilities and ages, and the units replaced so far."""
        return {"method": self._method.state_dict(), "replaced": self._replaced}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        check_keys("GenerateAndTest", state, ("method", "replaced"))
        self._method.load_state_dict(state["method"])
        self._replaced = state["replaced"]


class Clip(Method):
    """`WeightClipping`."""

    def __init__(self, clipping: WeightClipping) -> None:
        self._clipping = clipping

    def after_step(self) -> bool:
        """Clamp."""
        self._clipping.clip_()
        return False

    def scalars(self) -> dict[str, float]:
        """Share of the entries at their bound."""
        return {"intervene/clipped_fraction": self._clipping.clipped_fraction()}


class WeightDecay(Method):
    """Decoupled weight decay, as AdamW's: theta <- theta - rate strength theta before each step (arXiv:1711.05101).

    Of all parameters but those of norm layers, each at the rate of its group. It is no part of the realised effective
    learning rate, which is Adam's.
    """

    def __init__(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, strength: float) -> None:
        self._decayed, self._optimizer, self._strength = {id(p) for p in parameters}, optimizer, strength

    @torch.no_grad()
    def before_step(self, reference: Draw, loss: float | Tensor) -> None:
        """Decay; the gradients are those of the weights before."""
        for group in self._optimizer.param_groups:
            chosen = [p for p in group["params"] if id(p) in self._decayed]
            if chosen:
                torch._foreach_mul_(chosen, 1.0 - float(group["lr"]) * self._strength)


class Pull(Method):
    """`L2Init`."""

    def __init__(self, pull: L2Init) -> None:
        self._pull = pull

    def before_step(self, reference: Draw, loss: float | Tensor) -> None:
        """Add the gradient of the penalty."""
        self._pull.add_gradient_()

    @torch.no_grad()
    def scalars(self) -> dict[str, float]:
        """The penalty."""
        return {"intervene/l2_init_penalty": float(self._pull.penalty())}

    def weights_renewed(self) -> None:
        """Pull to the new weights."""
        self._pull.remember_()

    def state_dict(self) -> dict[str, Any]:
        """The initial weights."""
        return self._pull.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._pull.load_state_dict(state)


class Churn(Method):
    """`ChurnReduction`."""

    def __init__(self, churn: ChurnReduction, batch: int) -> None:
        self._churn, self._batch, self._divergence = churn, batch, 0.0

    def before_step(self, reference: Draw, loss: float | Tensor) -> None:
        """Add the gradient of the divergence from the older network."""
        self._divergence = self._churn.add_gradient_(reference(self._batch), loss)

    def scalars(self) -> dict[str, float]:
        """Divergence from the older network at the last update, and lambda of the next."""
        return {"intervene/churn": self._divergence, "intervene/churn_strength": self._churn.strength}

    def weights_renewed(self) -> None:
        """There is no older network."""
        self._churn.forget_copies()

    def task_changed(self) -> None:
        """Restart the averages of its strength."""
        self._churn.forget()

    def state_dict(self) -> dict[str, Any]:
        """Copies and averages."""
        return self._churn.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._churn.load_state_dict(state)


class Displacement(Method):
    """`Trac`, inside the optimiser's step: so a meter around that step measures what is left of it.

    Weight decay, clipping of gradients and penalties are part of the step that it scales.
    """

    def __init__(self, trac: Trac, optimizer: torch.optim.Optimizer) -> None:
        self._trac = trac
        optimizer.register_step_post_hook(lambda *_: trac.step_())

    def learned(self) -> None:
        """The step begins here, before other methods change weights."""
        self._trac.before_step()

    def scalars(self) -> dict[str, float]:
        """The factor of the displacement."""
        return {"intervene/trac_scale": self._trac.scale}

    def weights_renewed(self) -> None:
        """Displacements are from the new weights."""
        self._trac.remember_()

    def state_dict(self) -> dict[str, Any]:
        """The initial weights, and the tuners."""
        return self._trac.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._trac.load_state_dict(state)


class Methods:
    """Several methods, in the order given.

    Args:
        methods: by name.
        when: what their events follow: "every", "change", "trigger", or "" if none acts at times.
        every: updates between events (when every).
        fresh: makes a newly initialised network of the same shape.
    """

    def __init__(self, methods: Mapping[str, Method], *, when: When | Literal[""], every: int, fresh: Fresh) -> None:
        self._methods, self._when, self._every, self._fresh = dict(methods), when, every, fresh
        self._updates = 0
        self._reference: Draw | None = None

    def before_step(self, reference: Draw, loss: float | Tensor) -> None:
        """See `Method.before_step`. An event after this step draws from `reference`, too."""
        self._reference = reference
        for method in self._methods.values():
            method.learned()
        for method in self._methods.values():
            method.before_step(reference, loss)

    def after_step(self) -> bool:
        """See `Method.after_step`; whether an event came and changed weights, except what every update does."""
        for method in self._methods.values():
            method.after_step()
        self._updates += 1
        if self._when != "every" or self._updates % self._every or self._reference is None:
            return False
        return self._event(self._reference) and self._every > 1

    def react(self, reference: Draw, *, changed: bool = False, fired: bool = False) -> bool:
        """Tell the methods that the task changed, or that --rewarm.trigger fired; whether weights were changed."""
        if changed:
            for method in self._methods.values():
                method.task_changed()
        due = (changed and self._when == "change") or (fired and self._when == "trigger")
        return due and self._event(reference)

    def weights_renewed(self) -> None:
        """Something else has made all weights new."""
        for method in self._methods.values():
            method.weights_renewed()

    def scalars(self) -> dict[str, float]:
        """What the methods do, by tag, for a log."""
        return {tag: value for method in self._methods.values() for tag, value in method.scalars().items()}

    def _event(self, reference: Draw) -> bool:
        """Let all methods act; whether weights were changed."""
        inputs = reference(SCORED)
        acted = [method.act(inputs, self._fresh) for method in self._methods.values()]
        if any(isinstance(method, Reset) for method in self._methods.values()):
            self.weights_renewed()
        return any(acted)

    def state_dict(self) -> dict[str, Any]:
        """The updates so far, and the state of every method."""
        return {
            "updates": self._updates,
            "methods": {name: method.state_dict() for name, method in self._methods.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them (ValueError: other methods)."""
        check_keys("Methods", state, ("updates", "methods"))
        check_keys("Methods", state["methods"], self._methods)
        self.branch(state)

    def branch(self, state: Mapping[str, Any], updates: int = 0) -> None:
        """Continue a run with other methods: those of the same name are restored, others begin with the weights as they
        are now.

        Args:
            state: `state_dict` of the other run's methods; may be empty.
            updates: taken so far, if the state does not say it.
        """
        saved = state.get("methods", {})
        self._updates = state.get("updates", updates)
        for name, method in self._methods.items():
            method.load_state_dict(saved[name]) if name in saved else method.weights_renewed()
