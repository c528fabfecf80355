"""Control and measure the networks of Stable-Baselines3 while `model.learn` trains them.

    model = PPO("MlpPolicy", env, policy_kwargs=dict(
        net_arch=[], features_extractor_class=LayerNormMlp, share_features_extractor=False))
    model.learn(1_000_000, callback=RewarmCallback(schedule=Cyclic(low=1e-5, high=1e-3, period=5_000), meter=100))

Stable-Baselines3 sets the optimiser's rate, and logs it, at the start of each `train()` from `model.lr_schedule`. While
attached that is ours, so `train/learning_rate` is the rate of the first update of a `train()`; within it our rate
changes from update to update.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import update_learning_rate
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from elr.attachable import OutsideRates
from elr.attachment import Attachment, attach
from elr.integrations.sb3_policies import LayerNormMlp, Target, find, observations, policy_projection, still_collecting
from elr.measure import Meter, NoMeter
from elr.moments import Moments
from elr.probe import NoProbe, Probe
from elr.projection import NoProjection, Projection
from elr.schedules import Schedule
from elr.states import check_keys
from elr.triggers import AtKnownChange, Every, Never, OnCusum, Signal, Trigger
from elr.undisturbed import undisturbed
from elr.weights import scalable_weights

__all__ = ["LayerNormMlp", "RewarmCallback", "policy_projection"]

STATE = "rewarm_state"
"""The attribute of a model that holds the state to continue from; `_critic` or `_actor` is appended for a part."""

_LOSSES = ("train/value_loss", "train/critic_loss", "train/loss")


class RewarmCallback(BaseCallback):
    """`elr.attach` for `model.learn(..., callback=...)`: PPO, A2C, DQN, and a part of SAC, TD3 or DDPG.

    From the start of `learn` to its end, each update of the optimiser is projected and measured, and its rate is the
    schedule's. What was measured goes to `model.logger`, so to TensorBoard, whenever the algorithm dumps its log:
    the last value since the last dump, and `rewarm/event` = 1 if the schedule was restarted since then. The lines that
    are printed leave out the tags per layer.

    What the trigger sees: Stable-Baselines3 keeps a loss to itself until `train()` ends. So there is one number per
    call of `train()`, and the trigger is asked at the first update of the next call: after each rollout in PPO (where
    `Cusum(block=1)` is one rollout) and each update in A2C and DQN (`gradient_steps=1`).

    `model.save` and `CheckpointCallback` save the state with the model, as plain numbers; the file loads without this
    package. After `load`, `learn` with a callback of the same arguments continues exactly.

    Args:
        schedule: updates since the last restart -> rate. It takes the place of `learning_rate`. None leaves that.
        trigger, meter, probe, moments: as in `elr.attach`.
        projection: None holds all weights but the heads, and checks on the first observations that the outputs ignore
            their scale; or `policy_projection(model, ...)`, a Projection of yours, or NoProjection().
        outside_rates: as in `elr.attach`. "overrule" also accepts a model whose `learning_rate` is a function.
        signal: what the trigger sees: a logged name, or a function of the model that is called after `train()`; None
            means the first that is logged of train/value_loss (PPO, A2C), train/critic_loss and train/loss (DQN).
        part: "actor" or "critic" of SAC, TD3 and DDPG, which have an optimiser for each. Stable-Baselines3 sets one
            rate for all of them: the schedule sets that of its part again before each update. Tags begin with the part.
        resume: continue from the state in the model, which an earlier `learn` or a saved file has left there; False
            starts anew at each `learn`, except that a Projection of yours keeps the norms that it holds.
        verbose: without effect.

    Attributes:
        handle: what `elr.attach` returned at the last `learn`, None before the first.

    Raises:
        ValueError: an argument without effect. At `learn`: an algorithm that is not known, a model with a rate schedule
            of its own, a state of other arguments, and whatever `elr.attach` refuses.
        RuntimeError: in training: the optimiser was replaced, or something else has set its rate.
    """

    def __init__(
        self,
        *,
        schedule: Schedule | None = None,
        trigger: Trigger | None = None,
        projection: Projection | NoProjection | None = None,
        meter: Meter | NoMeter | int | None = None,
        probe: Probe | NoProbe | None = None,
        moments: Moments = "keep",
        outside_rates: OutsideRates = "refuse",
        signal: str | Callable[[Any], float | None] | None = None,
        part: str | None = None,
        resume: bool = True,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self._listens = trigger is not None and not isinstance(trigger, Never | Every | AtKnownChange)
        if signal is not None and not self._listens:
            raise ValueError("signal has no effect: give a trigger that watches something, such as OnCusum(Cusum())")
        self._schedule, self._projection, self._meter, self._probe = schedule, projection, meter, probe
        self._trigger = _OnCusumPerTrain(trigger) if isinstance(trigger, OnCusum) else trigger
        self._moments: Moments = moments
        self._outside_rates: OutsideRates = outside_rates
        self._signal, self._part, self._resume = signal, part, resume
        self._key = STATE if part is None else f"{STATE}_{part}"
        self._prefix = "" if part is None else f"{part}/"
        self.handle: Attachment | None = None
        self._release: list[Callable[[], object]] = []
        self._restart_first = False

    def restart(self) -> None:
        """Re-warm at a change that is known: the schedule starts again with the next update, also of the next `learn`.

        Raises:
            ValueError: there is no schedule.
        """
        if self._schedule is None:
            raise ValueError("restart() has no effect without a schedule: give RewarmCallback one")
        if self._release and self.handle is not None:
            self.handle.restart()
        else:
            self._restart_first = True

    def _on_training_start(self) -> None:
        if self._release:  # a learn() that was interrupted, of this or another model
            self._detach()
        model = self._attached = self.model
        if isinstance(left := model.__dict__.get(self._key), _LiveState):
            if left.owner.locals is self.locals:
                raise ValueError("two RewarmCallbacks for the same optimiser in one learn(): keep one of them")
            left.owner._detach()
        target = self._target = find(model, self._part)
        several, own = self._part is not None, model.learning_rate
        if self._schedule is not None and callable(own) and self._outside_rates == "refuse" and not several:
            raise ValueError(
                "the model has a learning-rate schedule of its own, and the callback another: give the model a number "
                'as learning_rate, or the callback outside_rates="overrule"'
            )
        projection = policy_projection(model, self._part) if self._projection is None else self._projection
        meter = self._meter
        if isinstance(meter, int):
            chosen = projection.weights if isinstance(projection, Projection) else _weights(target)
            meter = Meter(chosen, every=meter, optimizer=target.optimizer)
        state = model.__dict__.get(self._key) if self._resume else None
        if state is None and self.handle is not None:
            self._forget()
        if self._schedule is not None:  # as Stable-Baselines3 does; a schedule that ended at 0 leaves no ratios
            update_learning_rate(target.optimizer, model.lr_schedule(model._current_progress_remaining))
        self.handle = attach(
            target.network,
            target.optimizer,
            schedule=self._schedule,
            trigger=self._trigger,
            projection=projection,
            meter=meter,
            probe=self._probe,
            moments=self._moments,
            outside_rates="overrule" if several and self._schedule is not None else self._outside_rates,
        )
        hook = target.optimizer.register_step_post_hook(lambda *_: self._record())  # it runs after the handle's
        self._release = [self.handle.detach, hook.remove]
        if self._schedule is not None and not several:
            model.lr_schedule = _Rate(self.handle, model.lr_schedule)
        model.__dict__[self._key] = _LiveState(self)
        if state is not None:
            try:
                self.handle.load_state_dict(state)
            except ValueError as error:
                self._detach()
                model.__dict__[self._key] = state
                raise ValueError(
                    f"cannot continue from the model's state: {error}; resume=False starts anew"
                ) from error
        self._signalled = self.handle.updates
        self._to_show = isinstance(projection, Projection) and projection.unchecked and target.has_no_forward
        if self._restart_first:
            self._restart_first = False
            self.handle.restart()
        self._record()

    def _on_rollout_start(self) -> None:
        self._give_signal()

    def _on_rollout_end(self) -> None:
        model, target = self.model, self._target
        if find(model, self._part).optimizer is not target.optimizer:
            raise RuntimeError(
                "the model has another optimizer than at the start of learn(): call learn() again after it"
            )
        if self._outside_rates == "overrule" and self._part is None and not isinstance(model.lr_schedule, _Rate):
            model.lr_schedule = _Rate(self.handle, model.lr_schedule)  # so that what is logged is right too
        if self._to_show and not still_collecting(model):
            batch = observations(model)
            with torch.enable_grad(), undisturbed(target.network, batch):
                target.network(batch, deterministic=True)  # the handle checks the projection on what it sees
            self._to_show = False

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._give_signal()
        self._detach()

    def _give_signal(self) -> None:
        """Tell the trigger what the call of train() that has just ended left in the log."""
        if not self._listens or self.handle is None or self.handle.updates == self._signalled:
            return
        self._signalled = self.handle.updates
        if callable(self._signal):
            value = self._signal(self.model)
        else:
            logged = self.logger.name_to_value
            names = _LOSSES if self._signal is None else (self._signal,)
            found = [name for name in names if name in logged]
            if not found:
                raise ValueError(
                    f"signal={self._signal!r} is not logged by {type(self.model).__name__}.train(): choose one of "
                    f"{sorted(name for name in logged if name.startswith('train/'))}, or give a function of the model"
                )
            value = float(logged[found[0]])
        if value is not None:
            self.handle.signal(value)

    def _record(self) -> None:
        assert self.handle is not None
        scalars = self.handle.scalars()
        if self._schedule is not None and "charts/learning_rate" in scalars:
            scalars.setdefault("rewarm/event", 0.0)  # a curve with a point at each dump
        for tag, value in scalars.items():
            tag = self._prefix + tag
            if tag.endswith("rewarm/event"):
                value = max(value, self.logger.name_to_value.get(tag, 0.0))
            # Names of layers are cut to 36 letters where the log is printed, and equal ones are an error there.
            few = tag.removeprefix(self._prefix).startswith(("charts/", "rewarm/"))
            self.logger.record(tag, value, exclude=None if few else ("stdout", "log"))

    def _forget(self) -> None:
        """Begin with the given parts as if they were new."""
        if self._trigger is not None:
            self._trigger.reset()
        if isinstance(self._meter, Meter):
            self._meter.load_state_dict({"updates": 0})
        if self._probe is not None:
            self._probe.forget()

    def _detach(self) -> None:
        """Leave the model as it was, and in it the state to continue from."""
        model = self._attached
        assert self.handle is not None
        model.__dict__[self._key] = _plain(self.handle.state_dict())
        if isinstance(model.lr_schedule, _Rate):
            model.lr_schedule = model.lr_schedule.own
        for release in self._release:
            release()
        self._release = []


def _weights(target: Target) -> dict[str, nn.Parameter]:
    return scalable_weights(target.network, heads=target.heads, leave=target.leave)


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with its tensors on the host, so that a model saved on a GPU can be loaded without one."""
    moved: dict[str, Any] = tree_map(lambda value: value.cpu() if isinstance(value, Tensor) else value, dict(state))
    return moved


class _Rate:
    """`model.lr_schedule` while attached: ours. Copies and saved models get the model's own."""

    def __init__(self, handle: Attachment | None, own: Callable[[float], float]) -> None:
        self._handle, self.own = handle, own

    def __call__(self, progress_remaining: float) -> float:
        assert self._handle is not None
        return self._handle.rate

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return copy.copy, (self.own,)


class _LiveState:
    """In the model while attached: becomes the state, a plain dict, when the model is saved or copied."""

    def __init__(self, owner: RewarmCallback) -> None:
        self.owner = owner

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        assert self.owner.handle is not None
        return dict, (_plain(self.owner.handle.state_dict()),)


class _OnCusumPerTrain:
    """OnCusum where a number comes with some updates only: those are the ones it counts."""

    def __init__(self, trigger: OnCusum) -> None:
        self._trigger = trigger

    @property
    def statistic(self) -> float:
        return self._trigger.statistic

    def fires(self, update: int, signal: Signal) -> bool:
        return signal is not None and self._trigger.fires(update, signal)

    def reset(self) -> None:
        self._trigger.reset()

    def state_dict(self) -> dict[str, Any]:
        return {"on_cusum": self._trigger.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_keys("OnCusum", state, ["on_cusum"])
        self._trigger.load_state_dict(state["on_cusum"])
