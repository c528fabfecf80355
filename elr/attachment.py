"""Control and measure a network from inside `optimizer.step()`: for training loops that are not ours to edit."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from elr.attachable import OutsideRates, check_arguments, check_meter, check_pair, check_probe, check_projection
from elr.measure import Meter, NoMeter
from elr.moments import Moments
from elr.probe import NoProbe, Probe
from elr.projection import NoProjection, Projection
from elr.rewarming import Rewarming
from elr.scale_invariance import Call
from elr.schedules import Schedule
from elr.signals import MeanSignal
from elr.states import check_keys
from elr.training_batch import TrainingBatch
from elr.triggers import Never, Trigger
from elr.weights import scalable_weights


def attach(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    schedule: Schedule | None = None,
    trigger: Trigger | None = None,
    projection: Projection | NoProjection | None = None,
    meter: Meter | NoMeter | int | None = None,
    probe: Probe | NoProbe | None = None,
    moments: Moments = "keep",
    outside_rates: OutsideRates = "refuse",
) -> Attachment:
    """From now on `optimizer.step()` alone does what Algorithm 1 of arXiv:2507.20057 does around an update.

        handle = elr.attach(network, optimizer, schedule=WarmupCosine(peak=1e-3, ...), trigger=OnCusum(Cusum()))
        for x, y in stream:
            optimizer.zero_grad()
            loss = loss_of(network(x), y)
            loss.backward()
            handle.signal(loss)             # what the trigger watches
            optimizer.step()                # update, project, ask the trigger, set the next rate
            log(handle.scalars())

    One `optimizer.step()` then is:

        1. before the first update: check that the output ignores the scale of the weights that are projected
        2. refuse, or overrule, learning rates that something else has set
        3. meter: store weights, gradient norms and rates, if due
        4. the optimiser's update
        5. meter: norms of the update
        6. projection: W <- W rho / ||W||, and the policy for gains and offsets
        7. ask the trigger; if it fires, the schedule restarts
        8. set the rate of the next update: eta(updates since the last restart)
        9. probe, if due

    A step that a GradScaler skips is not counted; what was signalled for it is averaged with what comes next.

    Args:
        network: what the optimiser trains, compiled or in DataParallel too. For several modules give one whose
            forward calls them, or nn.ModuleList([a, b]) and a projection with heads named and its own check.
        optimizer: it holds all weights that are projected or measured.
        schedule: updates since the last restart -> rate. None leaves the rates to the caller.
        trigger: when the schedule starts again; None means at `Attachment.restart` only.
        projection: None means `Projection(network)`, which holds all weights except the head; or a Projection of this
            network with heads named, layers left alone, ...; or NoProjection(). A Projection without check_inputs is
            checked before the first update, on the batch of the last forward pass with gradients.
        meter: a Meter of this optimiser, or its cadence in updates, for the weights that are projected.
        probe: a Probe of this network; its first measurement is made now.
        moments: at a restart, "keep" or "reset" the optimiser's moments and step counts.
        outside_rates: what to do before an update if something else has set the optimiser's rate: "refuse" or
            "overrule"; without a schedule "overrule" is an error.

    Raises:
        ValueError: a part belongs to another network or optimiser, the optimiser does not hold a weight, it is attached
            already, it evaluates the loss several times per step (LBFGS), or an argument has no effect.

    Source: arXiv:2507.20057, Algorithm 1.
    Deviation: the paper does not say on which step of Adam's moments a restart acts; see `Rewarming`. The rate that
        pulls gains (policies "regularise" and "decay" of `Projection`) is that of the fastest parameter group.
    """
    return Attachment(network, optimizer, schedule, trigger, projection, meter, probe, moments, outside_rates)


class Attachment:
    """What `attach` returns.

    Attributes:
        projection, rewarming, meter, probe: the parts; rewarming is None without a schedule.
        updates: updates that the optimiser has taken since `attach`.
        is_attachment: marks the hooks of an attached optimiser.
    """

    is_attachment = True

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule | None,
        trigger: Trigger | None,
        projection: Projection | NoProjection | None,
        meter: Meter | NoMeter | int | None,
        probe: Probe | NoProbe | None,
        moments: Moments,
        outside_rates: OutsideRates,
    ) -> None:
        check_pair(network, optimizer)
        check_arguments(schedule, trigger, moments, outside_rates)
        self._optimizer = optimizer
        self.projection = Projection(network) if projection is None else projection
        check_projection(self.projection, network, optimizer)
        self.meter = self._meter(network, meter)
        self.probe = NoProbe() if probe is None else probe
        check_probe(self.probe, network)
        probed = self.probe.measure() if self.probe.due(0) else {}
        self.rewarming: Rewarming | None = None
        if schedule is not None:  # from here on nothing can fail: a refusal leaves the rates as they were
            self.rewarming = Rewarming(optimizer, schedule, Never() if trigger is None else trigger, moments)
        self._overrule = outside_rates == "overrule"
        self._signal = MeanSignal()
        self.updates = 0
        self._open = self._skipped = self._restarted = False
        self._rate_used: float | Tensor | None = None
        self._scalars: dict[str, float] = {**self._no_event(), **probed}
        self._training_batch: TrainingBatch | None = None
        if isinstance(self.projection, Projection) and self.projection.unchecked:
            self._training_batch = TrainingBatch(network)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def rate(self) -> float:
        """Rate of the fastest parameter group at the next update."""
        return self.rewarming.rate if self.rewarming is not None else float(_fastest(self._optimizer))

    def signal(self, value: float | Tensor) -> None:
        """Give the trigger one number before an update, such as the loss. It sees the mean of several.

        With several processes (torch.distributed) it sees their mean, so all of them re-warm together.

        Raises:
            ValueError: no trigger uses a signal, or the value is not one number.
            RuntimeError: detached.
        """
        self._require_attached()
        self._signal.add(value, None if self.rewarming is None else self.rewarming.trigger)

    def restart(self) -> None:
        """Re-warm at a change that is known: the schedule starts again with the next update.

        Raises:
            ValueError: there is no schedule.
            RuntimeError: detached.
        """
        self._require_attached()
        if self.rewarming is None:
            raise ValueError("restart() has no effect without a schedule: give attach one")
        self.rewarming.restart()
        self._restarted = True

    def scalars(self) -> dict[str, float]:
        """What is known of the last update, by tag; reading the meter waits for the device.

        Returns:
            charts/learning_rate: the rate of that update. With a schedule rewarm/event: 1 if the trigger fired after it
            or `restart` was called before it, else 0; rewarm/statistic of a detector. In steps that were measured the
            tags of `Meter.scalars` and `Probe.measure`. Before the first step, and after one that was skipped, there is
            no rate, and rewarm/event is 0.
        """
        rate = {} if self._rate_used is None else {"charts/learning_rate": float(self._rate_used)}
        return {**rate, **self._scalars, **self.meter.fresh_scalars()}

    def state_dict(self) -> dict[str, Any]:
        """State to continue from exactly; the network's and the optimiser's are not in it."""
        return {
            "updates": self.updates,
            "checked": not self.projection.unchecked,
            "restarted": self._restarted,
            "signal": self._signal.state_dict(),
            "projection": self.projection.state_dict(),
            "rewarming": {} if self.rewarming is None else self.rewarming.state_dict(),
            "meter": self.meter.state_dict(),
            "probe": self.probe.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly from `state_dict`, and set the rate of the next update.

        Attach with the same arguments first. May come before or after the network's and the optimiser's own
        load_state_dict.

        Raises:
            ValueError: the state is of other parts.
        """
        parts = ["updates", "checked", "restarted", "signal", "projection", "rewarming", "meter", "probe"]
        check_keys("Attachment", state, parts)
        own = self.state_dict()
        if differ := [name for name in parts[4:] if bool(state[name]) != bool(own[name])]:
            raise ValueError(f"only one of the state and this attachment has {differ}: attach with the same arguments")
        self.projection.load_state_dict(state["projection"])
        self.meter.load_state_dict(state["meter"])
        self.probe.load_state_dict(state["probe"])
        if self.rewarming is not None:
            self.rewarming.load_state_dict(state["rewarming"])
        if state["checked"] and self._training_batch is not None:  # a layer without influence can no longer be judged
            self.projection.unchecked = False
            self._end_check()
        self._signal.load_state_dict(state["signal"])
        self.updates, self._restarted = state["updates"], state["restarted"]
        self._scalars, self._rate_used = self._no_event(), None

    def detach(self) -> None:
        """Remove every hook: `optimizer.step()` is again the optimiser's own. Weights and rates stay as they are."""
        self._require_attached()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._end_check()

    @staticmethod
    def _uncompiled_check(projection: Projection, batch: Call) -> None:
        """Run the check uncompiled, even if the caller has compiled `optimizer.step()`."""
        check = projection.check
        if "torch._dynamo" in sys.modules:  # its import takes a second
            check = torch.compiler.disable(check)  # type: ignore[no-untyped-call]
        check(batch)

    def _end_check(self) -> None:
        if self._training_batch is not None:
            self._training_batch.stop()
            self._training_batch = None

    def __reduce__(self) -> tuple[type[CopiedHandle], tuple[()]]:
        return CopiedHandle, ()

    def _require_attached(self) -> None:
        if not self._hooks:
            raise RuntimeError("this handle is detached: attach again")

    def _meter(self, network: nn.Module, meter: Meter | NoMeter | int | None) -> Meter | NoMeter:
        if meter is None:
            return NoMeter()
        if isinstance(meter, Meter | NoMeter):
            check_meter(meter, self._optimizer)
            return meter
        weights = self.projection.weights if isinstance(self.projection, Projection) else scalable_weights(network)
        return Meter(weights, every=meter, optimizer=self._optimizer)

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
            raise RuntimeError("optimizer.step() is being captured in a CUDA graph, whose replays would run no hooks")
        if self._open:  # the last step was interrupted
            self._forget_step()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimiser
        if closure is None:
            self._open_step()
            return None

        def then_open() -> Any:
            loss = closure()  # makes the gradients
            if self._open:
                raise RuntimeError("the optimiser evaluated its closure twice in one step, which attach cannot follow")
            with torch.no_grad():
                self._open_step()
            return loss

        return ((args[0], then_open, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": then_open})

    def _open_step(self) -> None:
        """Everything that must happen between the gradients and the update."""
        if self._training_batch is not None and isinstance(self.projection, Projection):
            self._uncompiled_check(self.projection, self._training_batch.arguments())
            self._end_check()
        if self.rewarming is not None:
            self._signal.require_for(self.rewarming.trigger)
            if self._overrule:
                self.rewarming.set_rates_again()
            else:
                self.rewarming.require_own_rates()
        # A fused optimiser under a GradScaler is stepped also where it changes nothing; reading why waits for the GPU.
        found_inf = getattr(self._optimizer, "found_inf", None)
        self._skipped = found_inf is not None and bool(found_inf)
        self._rate_used = _fastest(self._optimizer) if self.rewarming is None else self.rewarming.rate
        self._scalars = self._no_event()
        self._open = True
        self.meter.before_step()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._open:
            raise RuntimeError("the optimiser did not call its closure, which attach cannot follow")
        if self._skipped:
            self._forget_step()
            return
        self._open = False
        self.updates += 1
        self.meter.after_step()
        assert self._rate_used is not None
        self.projection.step(self._rate_used)
        if self.rewarming is not None:
            fired = self.rewarming.step(self._signal.take())
            self._scalars = {"rewarm/event": float(fired or self._restarted), **self.rewarming.scalars()}
            self._restarted = False
        if self.probe.due(self.updates):
            self._scalars |= self.probe.measure()

    def _forget_step(self) -> None:
        """Undo the count of a step that was skipped or interrupted."""
        self._open, self._rate_used, self._scalars = False, None, self._no_event()
        self.meter.cancel_step()

    def _no_event(self) -> dict[str, float]:
        return {} if self.rewarming is None else {"rewarm/event": 0.0}


class CopiedHandle:
    """What deepcopy and pickle make of an `Attachment`: the optimiser's copy has no hooks, so it controls nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling look for methods of their own
            raise AttributeError(name)
        raise RuntimeError(
            f"{name}: this is a copy of a handle of elr.attach and controls nothing. Call elr.attach with the copied "
            "network and optimiser, and load handle.state_dict()"
        )


def _fastest(optimizer: torch.optim.Optimizer) -> float | Tensor:
    """The largest rate of the groups; a tensor, which is not read, if one of them is."""
    rates = [group["lr"] for group in optimizer.param_groups]
    if any(isinstance(rate, Tensor) for rate in rates):
        device = next(rate.device for rate in rates if isinstance(rate, Tensor))
        return torch.stack([torch.as_tensor(rate, device=device).reshape(()) for rate in rates]).max()
    return float(max(rates))
