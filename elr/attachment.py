"""Control and measure a network from inside `optimizer.step()`: for training loops that are not ours to edit."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from elr.attachable import (
    OutsideRates,
    check_arguments,
    check_meter,
    check_options,
    check_pair,
    check_probe,
    check_projection,
    frozen_matrices,
    require_held_norms,
    require_still_frozen,
)
from elr.measure import Meter, NoMeter
from elr.moments import Moments
from elr.probe import NoProbe, Probe
from elr.projection import NoProjection, Projection
from elr.rates import fastest_rate, rates_of, set_rates_
from elr.rewarming import Rewarming
from elr.scale_invariance import Call
from elr.schedules import Schedule
from elr.signals import MeanSignal
from elr.states import check_keys
from elr.step_hooks import StepHooks
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
    Deviation: the paper does not say what happens to Adam's moments at a restart, see `moments`. The rate that pulls
        gains (policies "regularise" and "decay" of `Projection`) is that of the fastest parameter group.
    """
    return Attachment(network, optimizer, schedule, trigger, projection, meter, probe, moments, outside_rates)


class Attachment:
    """What `attach` returns.

    Attributes:
        projection, rewarming, meter, probe: the parts; rewarming is None without a schedule.
        updates: updates that the optimiser has taken since `attach`.
    """

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
        check_arguments(schedule, trigger, projection, meter, probe)
        check_options(schedule, trigger, moments, outside_rates)
        self._optimizer = optimizer
        self._own_rates = rates_of(optimizer)
        self.projection = Projection(network) if projection is None else projection
        check_projection(self.projection, network, optimizer)
        self.meter = self._meter(network, meter)
        self.probe = NoProbe() if probe is None else probe
        check_probe(self.probe, network)
        probed = self.probe.measure() if self.probe.due(0) else {}
        self.rewarming: Rewarming | None = None
        if schedule is not None:  # from here on nothing can fail: a refusal leaves the rates as they were
            trigger = Never() if trigger is None else trigger
            trigger.reset()  # it may have watched another run, as where the cell of a notebook is run again
            self.rewarming = Rewarming(optimizer, schedule, trigger, moments)
        self._overrule = outside_rates == "overrule"
        self._signal = MeanSignal()
        self.updates = 0
        self._open = self._skipped = self._restarted = self._inside = False
        self._rate_used: float | Tensor | None = None
        self._news: dict[str, float] = probed  # measured, but perhaps not read yet
        self._metered = self._read = self._loaded = False
        self._training_batch: TrainingBatch | None = None
        if isinstance(self.projection, Projection) and self.projection.unchecked:
            self._training_batch = TrainingBatch(network)
        self._frozen = frozen_matrices(network) if isinstance(self.projection, Projection) else {}
        self._hooks = StepHooks(optimizer, self._begin_step, self._before_update, self._after_update)

    @property
    def rate(self) -> float:
        """Rate of the fastest parameter group at the next update."""
        return self.rewarming.rate if self.rewarming is not None else float(fastest_rate(self._optimizer))

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
        """What is known after the last update, by tag; reading the meter waits for the device.

        Returns:
            charts/learning_rate: the rate of the last update; not before the first, or if it was skipped. With a
            detector rewarm/statistic, which an alarm sets to 0. Then what has happened since they were last read:
            rewarm/event = 1 if the schedule was restarted, by the trigger after an update or by `restart` before one;
            the last tags of `Meter.scalars` and `Probe.measure`. A restart and the newest measurement wait until they
            are read, so nothing is missed by reading less often than measuring. Until the next step all calls return
            the same.
        """
        self._read = True
        rate = {} if self._rate_used is None else {"charts/learning_rate": float(self._rate_used)}
        statistic = {} if self.rewarming is None or self._rate_used is None else self.rewarming.scalars()
        return {**rate, **statistic, **(self.meter.scalars() if self._metered else {}), **self._news}

    def state_dict(self) -> dict[str, Any]:
        """State to continue from exactly; the network's and the optimiser's are not in it.

        Raises:
            RuntimeError: an exception (Ctrl-C) has interrupted the last update: weights, optimiser and handle may be of
                different updates.
        """
        if self._inside:
            raise RuntimeError(
                "the last optimizer.step() was interrupted, so its state cannot be resumed exactly: save between steps "
                "(on Ctrl-C, set a flag in a signal handler and save after the step)"
            )
        return self._state()

    def _state(self) -> dict[str, Any]:
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

        Attach with the same arguments first; another schedule or cadence counts from here on. May come before or after
        the network's and the optimiser's own load_state_dict.

        Raises:
            ValueError: the state is of other parts; nothing has changed then.
            RuntimeError: detached.
        """
        self._require_attached()
        parts = ["updates", "checked", "restarted", "signal", "projection", "rewarming", "meter", "probe"]
        check_keys("Attachment", state, parts)
        own = self._state()
        if differ := [name for name in parts[4:] if bool(state[name]) != bool(own[name])]:
            raise ValueError(f"only one of the state and this attachment has {differ}: attach with the same arguments")
        try:
            self._load_parts(state)
        except Exception:
            self._load_parts(own)
            raise
        if state["checked"] and self._training_batch is not None:  # a layer without influence can no longer be judged
            self.projection.unchecked = False
            self._end_check()
        self._signal.load_state_dict(state["signal"])
        self.updates, self._restarted = state["updates"], state["restarted"]
        self._news, self._metered, self._rate_used = {}, False, None
        self._open = self._inside = False  # also where a step that was interrupted is what one wants to go back from
        self._loaded = True

    def _load_parts(self, state: Mapping[str, Any]) -> None:
        self.projection.load_state_dict(state["projection"])
        self.meter.load_state_dict(state["meter"])
        self.probe.load_state_dict(state["probe"])
        if self.rewarming is not None:
            self.rewarming.load_state_dict(state["rewarming"])

    def detach(self) -> None:
        """Remove every hook: `optimizer.step()` is again the optimiser's own.

        With a schedule, the groups get the rates back that they had before `attach`. Weights stay as they are. A second
        call does nothing.
        """
        if not self._hooks.removed and self.rewarming is not None:
            set_rates_(self._optimizer, self._own_rates)
        self._hooks.remove()
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
        if self._hooks.removed:
            raise RuntimeError("this handle is detached: attach again")

    def _meter(self, network: nn.Module, meter: Meter | NoMeter | int | None) -> Meter | NoMeter:
        if meter is None:
            return NoMeter()
        if isinstance(meter, Meter | NoMeter):
            check_meter(meter, self._optimizer)
            return meter
        weights = self.projection.weights if isinstance(self.projection, Projection) else scalable_weights(network)
        return Meter(weights, every=meter, optimizer=self._optimizer)

    def _begin_step(self) -> None:
        if self._open:  # the last step was interrupted
            self._forget_step()
        if self._read:
            self._news, self._metered, self._read = {}, False, False

    def _before_update(self) -> None:
        if self._open:
            raise RuntimeError("the optimiser evaluated its closure twice in one step, which attach cannot follow")
        if self._training_batch is not None and isinstance(self.projection, Projection):
            self._uncompiled_check(self.projection, self._training_batch.arguments())
            self._end_check()
        require_still_frozen(self._frozen)
        if self.updates == 0 and not self._loaded:
            require_held_norms(self.projection)
        if self.rewarming is not None:
            self._signal.require_for(self.rewarming.trigger)
            if self._overrule:
                self.rewarming.set_rates_again()
            else:
                self.rewarming.require_own_rates()
        # A fused optimiser under a GradScaler is stepped also where it changes nothing; reading why waits for the GPU.
        found_inf = getattr(self._optimizer, "found_inf", None)
        self._skipped = found_inf is not None and bool(found_inf)
        self._rate_used = fastest_rate(self._optimizer) if self.rewarming is None else self.rewarming.rate
        self._open = self._inside = True
        self.meter.before_step()

    def _after_update(self) -> None:
        if not self._open:
            raise RuntimeError("the optimiser did not call its closure, which attach cannot follow")
        if self._skipped:
            self._forget_step()
            return
        self._open = False
        self.updates += 1
        self._metered = self.meter.after_step() or self._metered
        assert self._rate_used is not None
        self.projection.step(self._rate_used)
        if self.rewarming is not None:
            if self.rewarming.step(self._signal.take()) or self._restarted:
                self._news["rewarm/event"] = 1.0
            self._restarted = False
        if self.probe.due(self.updates):
            self._news |= self.probe.measure()
        self._inside = False

    def _forget_step(self) -> None:
        """Undo the count of a step that was skipped or interrupted."""
        self._open = self._inside = False
        self._rate_used = None
        self.meter.cancel_step()
        self._metered = self._metered and self.meter.measured


class CopiedHandle:
    """What deepcopy and pickle make of an `Attachment`: the optimiser's copy has no hooks, so it controls nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling look for methods of their own
            raise AttributeError(name)
        raise RuntimeError(
            f"{name}: this is a copy of a handle of elr.attach and controls nothing. Call elr.attach with the copied "
            "network and optimiser, and load handle.state_dict()"
        )
