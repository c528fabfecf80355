"""The method as flags: dataclasses that check themselves and build the objects of this package.

    @dataclass(frozen=True)
    class Args:
        nap: NapArgs = field(default_factory=NapArgs)
        ...
    projection = args.nap.build(network, inputs=batch)

A script that wants other defaults subclasses a group and overrides them. Messages name flags as tyro names the fields
of nested dataclasses (`--nap.every`); nothing here parses a command line. Every `check` and `build` raises ValueError
with one line that names the flags. `updates` is the script's own `Args.updates`, which converts agent steps to
optimiser updates: the only thing here that depends on the script.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from elr.changepoint import Cusum
from elr.interventions import reset_, shrink_and_perturb_
from elr.measure import Meter, NoMeter
from elr.metrics import check_tau
from elr.probe import NoProbe, Probe
from elr.projection import NoProjection, Projection
from elr.rewarming import Rewarming
from elr.schedules import Constant, Cyclic, CyclicThenConstant, LinearDecay, OneCycle, Schedule, WarmupCosine
from elr.triggers import Every, Never, OnCusum, Trigger

ToUpdates = Callable[[int], int]
"""Agent steps -> optimiser updates."""
ScheduleKind = Literal["constant", "linear-decay", "warmup-cosine", "cyclic", "cyclic-then-constant", "one-cycle"]
"""Shapes of a schedule."""


class Changes(Protocol):
    """When the task changes, as far as this package must know; `envs.flags` gives it."""

    @property
    def on(self) -> bool:
        """The task changes at all."""

    @property
    def first_change(self) -> int | None:
        """Agent steps until the first change, on average if it is random; None without one."""

    @property
    def every_steps(self) -> int:
        """Agent steps between changes at equal distances; 0 without them."""

    @property
    def shortest_gap(self) -> int | None:
        """Fewest agent steps between two changes, the mean if they are random; None with fewer than two changes."""


def reject_unused(group: str, args: object, names: Sequence[str], why: str) -> None:
    """Refuse (ValueError) fields that differ from their class's default although nothing reads them.

    Args:
        group: name of the group of flags.
        args: a dataclass; a subclass with other defaults is compared with its own.
        names: fields of it that have no effect.
        why: completes "--group.name 3 has no effect ...".
    """
    defaults = {field.name: field.default for field in dataclasses.fields(args)}  # type: ignore[arg-type]
    for name in names:
        if (value := getattr(args, name)) != defaults[name]:
            raise ValueError(f"--{group}.{name.replace('_', '-')} {value} has no effect {why}; drop it")


@contextlib.contextmanager
def _named(flags: str) -> Iterator[None]:
    """Put the flags before what a constructor refuses."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{flags}: {error}") from error


@dataclass(frozen=True)
class NapArgs:
    """Normalize-and-project: hold every hidden weight tensor at its initial norm."""

    enabled: bool = False
    """project the weights"""
    every: int = 1
    """updates between projections"""
    gains: Literal["joint", "regularise", "decay", "free"] = "joint"
    """LayerNorm gains g and offsets b: hold their joint norm, pull them to 1 and 0, decay g to 0, or leave them"""
    gain_strength: float = 0.0
    """strength of regularise or decay, multiplied by the learning rate as in decoupled weight decay"""
    allow_scale_dependent: bool = False
    """project even a network whose output changes when a weight tensor is scaled"""

    def check(self, normalised: bool = True) -> None:
        """Refuse flags without effect, and projection of a network that is not `normalised`: behind each weight there
        must be a normalisation layer, which --network decides."""
        if not self.enabled:
            unused = ["every", "gains", "gain_strength", "allow_scale_dependent"]
            reject_unused("nap", self, unused, "without --nap.enabled")
        elif self.every < 1:
            raise ValueError(f"--nap.every must be at least 1, got {self.every}")
        elif not normalised and not self.allow_scale_dependent:
            raise ValueError(
                "--nap.enabled needs --network normalised: without LayerNorm the scale of the weights matters; or give "
                "--nap.allow-scale-dependent"
            )

    def build(
        self, network: nn.Module, *, inputs: Tensor, heads: Sequence[str] | None = None, **named: Any
    ) -> Projection | NoProjection:
        """What holds the norms that the network has now, those of its heads (None: the last layer) left out. Scale
        invariance is checked on `inputs`, a batch. A network of another kind may need more arguments of `Projection`:
        more_weights, more_gains, leave."""
        if not self.enabled:
            return NoProjection()
        with _named("--nap"):
            return Projection(
                network, every=self.every, gains=self.gains, gain_strength=self.gain_strength, heads=heads,
                check_inputs=inputs, allow_scale_dependent=self.allow_scale_dependent, **named,
            )  # fmt: skip


@dataclass(frozen=True)
class ScheduleArgs:
    """Learning rate as a function of the updates since the last trigger; its peak is --learning-rate."""

    kind: ScheduleKind = "constant"
    """shape of the schedule"""
    low: float = 0.0
    """rate at the bottom of a cycle or at the end of a decay"""
    period_steps: int = 0
    """agent steps of one cycle or decay, warm-up included"""
    warmup_frac: float = 0.1
    """share of the period spent rising"""
    cycles: int = 3
    """cycles before the rate stays low (cyclic-then-constant)"""

    READS: ClassVar[Mapping[str, Sequence[str]]] = {
        "constant": [],
        "linear-decay": ["low", "period_steps"],
        "warmup-cosine": ["low", "period_steps", "warmup_frac"],
        "cyclic": ["low", "period_steps", "warmup_frac"],
        "cyclic-then-constant": ["low", "period_steps", "warmup_frac", "cycles"],
        "one-cycle": ["low", "period_steps", "warmup_frac"],
    }
    """flags that each kind reads"""

    def check(self, peak: float, least: float = 0.0) -> None:
        """Refuse flags without effect and schedules that do not fit `peak`, --learning-rate, or have a period below
        `least` agent steps, those of one update; `least` is 0 where a period of 0 is the whole run."""
        unused = {field.name for field in dataclasses.fields(self)} - {"kind", *self.READS[self.kind]}
        reject_unused("schedule", self, sorted(unused), f"with --schedule.kind {self.kind}")
        if self.kind == "constant":
            return
        if self.period_steps < least:
            what = f"{least:g}, the steps of one update" if least else "0"
            raise ValueError(f"--schedule.period-steps must be at least {what}, got {self.period_steps}")
        if "warmup_frac" in self.READS[self.kind] and not 0 <= self.warmup_frac <= 1:
            raise ValueError(f"--schedule.warmup-frac must lie in [0, 1], got {self.warmup_frac}")
        if self.low >= peak:
            raise ValueError(f"--schedule.low {self.low} must be below --learning-rate {peak}, the schedule's peak")

    def build(self, peak: float, updates: ToUpdates) -> Schedule:
        """Updates since the last trigger -> learning rate."""
        period = updates(self.period_steps)
        warmup = round(self.warmup_frac * period)
        with _named("--schedule"):
            match self.kind:
                case "constant":
                    return Constant(peak)
                case "linear-decay":
                    return LinearDecay(peak, self.low, period)
                case "warmup-cosine":
                    return WarmupCosine(peak, warmup, period - warmup, self.low, initial=self.low)
                case "cyclic":
                    return Cyclic(self.low, peak, period, self.warmup_frac)
                case "cyclic-then-constant":
                    return CyclicThenConstant(self.low, peak, period, self.cycles, self.warmup_frac)
                case "one-cycle":
                    return OneCycle(self.low, peak, period, final=self.low, warmup_frac=self.warmup_frac)


NO_CHANGE = "with --shift.kind none: the task does not change"
SAME_RESET = "--switch.optimizer reset and --rewarm.moments reset are the same here: drop one of them"


@dataclass(frozen=True)
class InterventionArgs:
    """What else happens when the task changes."""

    optimizer: Literal["keep", "reset"] = "keep"
    """Adam's moments and step counts: kept, or set to zero as in a newly built optimiser"""
    intervention: Literal["none", "shrink-and-perturb", "reset", "reset-head"] = "none"
    """what is done to the weights"""
    shrink: float = 0.4
    """W <- shrink * W + perturb * W_fresh (shrink-and-perturb; Ash and Adams' code uses 0.4 and 0.1)"""
    perturb: float = 0.1
    """see shrink"""

    def does(self, what: str) -> bool:
        """Whether `what`, the name of a flag of this group, is renewed at a change."""
        return getattr(self, what) not in ("keep", "none")

    @property
    def renews(self) -> bool:
        """All weights become new ones."""
        return self._intervention == "reset"

    @property
    def acts_at(self) -> Literal["change", "trigger"]:
        """When all this happens."""
        return "change"

    @property
    def _intervention(self) -> str:
        return self.intervention

    def check(self, changes: bool, unchanged: str = NO_CHANGE) -> None:
        """Refuse flags without effect or meaning. Where the task does not change at all, `unchanged` completes
        "--switch.name has no effect ..."."""
        if not changes:
            reject_unused("switch", self, [field.name for field in dataclasses.fields(self)], unchanged)
            return
        if self.intervention != "shrink-and-perturb":
            reject_unused("switch", self, ["shrink", "perturb"], f"with --switch.intervention {self.intervention}")
            return
        shares = 0 <= self.shrink <= 1 and 0 <= self.perturb < math.inf
        if not shares or (self.shrink, self.perturb) in ((1, 0), (0, 0)):
            raise ValueError(
                f"--switch.shrink must lie in [0, 1] and --switch.perturb be at least 0, got {self.shrink} and "
                f"{self.perturb}; (1, 0) changes nothing and (0, 0) makes all weights zero"
            )

    def intervene_(
        self, network: nn.Module, fresh: nn.Module, projection: Projection | NoProjection, *, heads: Sequence[str]
    ) -> None:
        """Do to the weights what --switch.intervention asks for, in place.

        Args:
            fresh: a newly initialised network of the same shape.
            projection: holds the network's norms; after a reset, those of the new weights.
            heads: modules that reset-head resets.
        """
        match self._intervention:
            case "shrink-and-perturb":
                shrink_and_perturb_(network, fresh, shrink=self.shrink, perturb=self.perturb)
                projection.project_()  # only the new direction is kept
            case "reset":
                reset_(network, fresh)
                with _named("--nap"):
                    projection.remember_norms_()
            case "reset-head":
                reset_(network, fresh, modules=heads)


@dataclass(frozen=True)
class SwitchArgs(InterventionArgs):
    """What else happens when the task changes."""

    fresh_agent: bool = False
    """train a new agent on each task (the oracle): all of this group, the schedule and the trigger are reset"""

    def does(self, what: str) -> bool:
        """Whether this is renewed at a change: by its own flag, or because the whole agent is new."""
        return self.fresh_agent or super().does(what)

    @property
    def _intervention(self) -> str:
        return "reset" if self.fresh_agent else self.intervention

    def check(self, changes: bool, unchanged: str = NO_CHANGE) -> None:
        """Refuse flags without effect or meaning; see `InterventionArgs.check`."""
        if changes and self.fresh_agent:
            names = [field.name for field in dataclasses.fields(self)]
            others = [name for name in names if name not in ("fresh_agent", "shrink", "perturb", "when")]
            reject_unused("switch", self, others, "with --switch.fresh-agent, which does all of it")
        super().check(changes, unchanged)

    @property
    def at_trigger(self) -> bool:
        """All this happens when --rewarm.trigger fires, and not at a change."""
        return False


@dataclass(frozen=True)
class TriggeredSwitchArgs(SwitchArgs):
    """What else happens when the task changes, or when --rewarm.trigger fires."""

    when: Literal["change", "trigger"] = "change"
    """when it happens: at a change of the task, of which the agent is told, or when --rewarm.trigger fires"""

    @property
    def at_trigger(self) -> bool:
        """All this happens when --rewarm.trigger fires, and not at a change."""
        return self.when == "trigger"

    @property
    def acts_at(self) -> Literal["change", "trigger"]:
        """When all this happens."""
        return self.when

    def check(self, changes: bool, unchanged: str = NO_CHANGE, *, trigger: str = "never") -> None:
        """Refuse flags without effect or meaning; `trigger` is --rewarm.trigger. See `InterventionArgs.check`."""
        if not self.at_trigger:
            super().check(changes, unchanged)
            return
        if trigger in ("never", "switch"):
            raise ValueError(
                f"--switch.when trigger has no effect with --rewarm.trigger {trigger}: choose every or cusum"
            )
        if not (self.does("optimizer") or self.does("intervention")):
            raise ValueError(
                "--switch.when trigger needs something to do: --switch.fresh-agent, --switch.intervention or "
                "--switch.optimizer"
            )
        super().check(True)


@dataclass(frozen=True)
class RewarmArgs:
    """Restart the schedule (Algorithm 1)."""

    trigger: Literal["never", "every", "cusum", "switch"] = "never"
    """what restarts it: nothing, a fixed period, a change point in the squared TD errors of new steps, or a change of
    the task (the agent is told)"""
    every_steps: int = 50_000
    """agent steps between restarts (trigger every)"""
    moments: Literal["keep", "reset"] = "keep"
    """Adam's moments at a restart"""
    threshold: float = 8.0
    """CUSUM alarm threshold h, in standard deviations of a block mean"""
    slack: float = 1.5
    """CUSUM slack k: half the smallest shift of interest, in standard deviations"""
    block: int = 100
    """updates (not agent steps) whose errors are averaged into one CUSUM value"""
    burn_in: int = 20
    """blocks from which mean and deviation are estimated before CUSUM may fire"""
    refractory: int = 40
    """blocks after an alarm during which no alarm is raised"""
    smoothing: float = 0.05
    """weight of the newest block in the running mean and deviation, which follow slow growth so that it is no alarm"""

    CUSUM: ClassVar[Sequence[str]] = ("threshold", "slack", "block", "burn_in", "refractory", "smoothing")
    """flags that only the trigger cusum reads"""

    @property
    def on(self) -> bool:
        """Something restarts the schedule."""
        return self.trigger != "never"

    def check(
        self, schedule: ScheduleArgs, switch: SwitchArgs, shift: Changes, updates: ToUpdates, *,
        total: int, starts: int = 0, pauses: bool = False, least: float = 0.0, heard: bool = False,
    ) -> None:  # fmt: skip
        """Refuse flags without effect, alone or next to another, and a detector that would miss the changes.

        Args:
            total: agent steps of the run.
            starts: agent steps before the first update.
            pauses: updates pause for `starts` steps again at each change.
            least: fewest agent steps between two restarts.
            heard: a method of --intervene acts when the trigger fires.
        """
        unused: dict[str, Sequence[str]] = {
            "never": ["every_steps", "moments", *self.CUSUM],
            "every": self.CUSUM,
            "cusum": ["every_steps"],
            "switch": ["every_steps", *self.CUSUM],
        }
        reject_unused("rewarm", self, unused[self.trigger], f"with --rewarm.trigger {self.trigger}")
        renews = schedule.kind != "constant" or self.moments != "keep" or switch.at_trigger or heard
        if self.on and not renews:
            raise ValueError(
                f"--rewarm.trigger {self.trigger} restarts nothing with --schedule.kind constant and --rewarm.moments "
                "keep; choose another schedule, or --rewarm.moments reset"
            )
        if self.trigger == "every":
            self._check_period(schedule, updates, total - starts, least)
        if switch.at_trigger and switch.optimizer == "reset" and self.moments == "reset":
            raise ValueError(SAME_RESET)
        if self.trigger == "switch":
            self._check_switch(schedule, switch, shift, total)
        if self.trigger == "cusum":
            self._check_detector(shift, updates, total - starts, starts, starts if pauses else 0)

    def _check_period(self, schedule: ScheduleArgs, updates: ToUpdates, learning: int, least: float) -> None:
        if self.every_steps < max(least, 1):
            raise ValueError(f"--rewarm.every-steps must be at least {max(least, 1):g}, got {self.every_steps}")
        if self.every_steps >= learning:
            raise ValueError(
                f"--rewarm.every-steps {self.every_steps} never comes: --total-timesteps leaves {learning} steps of "
                "learning"
            )
        in_cycles = schedule.kind == "cyclic" and updates(self.every_steps) % updates(schedule.period_steps) == 0
        if in_cycles and self.moments == "keep":
            raise ValueError(
                f"--rewarm.every-steps {self.every_steps} restarts --schedule.kind cyclic just where a cycle of "
                f"--schedule.period-steps {schedule.period_steps} ends: it changes nothing"
            )

    def _check_switch(self, schedule: ScheduleArgs, switch: SwitchArgs, shift: Changes, total: int) -> None:
        if not shift.on:
            raise ValueError("--rewarm.trigger switch never comes with --shift.kind none: choose what changes")
        if switch.fresh_agent:
            raise ValueError("--rewarm.trigger switch is part of --switch.fresh-agent: use --rewarm.trigger never")
        if switch.optimizer == "reset" and self.moments == "reset":
            raise ValueError(SAME_RESET)
        rising = schedule.warmup_frac * (schedule.period_steps or total)
        if shift.shortest_gap and "warmup_frac" in schedule.READS[schedule.kind] and rising >= shift.shortest_gap:
            raise ValueError(
                "--rewarm.trigger switch restarts the schedule before the rate has reached its peak: it rises for "
                f"{rising:g} steps, --schedule.warmup-frac of --schedule.period-steps, but --shift changes the task "
                f"after {shift.shortest_gap}"
            )
        every, period = shift.every_steps if shift.shortest_gap else 0, schedule.period_steps
        again = 0 < every < total / 2  # it is restarted by two changes or more
        if again and "period_steps" in schedule.READS[schedule.kind] and (period or total) > every:
            length = f"{period} are over" if period else "0, the whole run, are over"
            raise ValueError(
                f"--rewarm.trigger switch restarts the schedule every {every} steps, before its "
                f"--schedule.period-steps {length}: give 1 to {every}"
            )

    def _check_detector(self, shift: Changes, updates: ToUpdates, learning: int, starts: int, pause: int) -> None:
        """CUSUM misses a change in its burn-in; after an alarm, a burn-in and the refractory period run together."""
        burn_in, refractory = ("burn-in", self.burn_in), ("refractory", self.refractory)
        after_alarm = burn_in if self.burn_in > self.refractory else refractory
        run = learning, "in the run"
        first = (shift.first_change - starts, "before the first change") if shift.first_change else run
        gap = (shift.shortest_gap - pause, "between two changes") if shift.shortest_gap else run
        for (flag, blocks), (steps, where) in ((burn_in, first), (after_alarm, gap)):
            available = updates(steps) if steps > 0 else 0
            if blocks * self.block >= available:
                raise ValueError(
                    f"--rewarm.trigger cusum would miss a change: --rewarm.{flag} is {blocks} blocks x {self.block} "
                    f"updates = {blocks * self.block} updates, but there are {available} updates {where}; use "
                    + (f"fewer than {available / self.block:g} blocks, a smaller --rewarm.block or " * (available > 0))
                    + "longer tasks"
                )

    def build(self, optimizer: torch.optim.Optimizer, schedule: Schedule, updates: ToUpdates) -> Rewarming:
        """Trigger and schedule on this optimiser."""
        with _named("--schedule, --rewarm"):
            return Rewarming(optimizer, schedule, self._trigger(updates), self.moments)

    def _trigger(self, updates: ToUpdates) -> Trigger:
        if self.trigger == "every":
            return Every(updates(self.every_steps))
        if self.trigger == "cusum":
            # On logarithms: errors grow slowly with the returns, so only a sudden factor counts, and 5 % is none. The
            # clip limits how far one block moves the estimates, so the first block of a jump does not mask the rest.
            cusum = {name: getattr(self, name) for name in self.CUSUM}
            return OnCusum(Cusum(**cusum, log=True, min_relative_deviation=0.05, clip=3.0))
        return Never()  # at a change, which comes between updates, the script calls `restart()`


@dataclass(frozen=True)
class ResetArgs:
    """Layers reset at fixed steps, in place, with fresh moments; the replay memory is kept (Nikishin et al. 2022)."""

    at_steps: tuple[int, ...] = ()
    """agent steps after which layers are reset (the paper: 50, 100 and 150 million frames)"""
    layers: Literal["head", "dense", "all"] = "all"
    """the last layers, all dense layers, or the whole network (the paper does not say)"""

    def check(self, total: int) -> None:
        """Refuse flags without effect and steps that never come in a run of `total` agent steps."""
        if not self.at_steps:
            reject_unused("reset", self, ["layers"], "without --reset.at-steps")
        elif any(after <= before for before, after in pairwise((0, *self.at_steps))):
            raise ValueError(f"--reset.at-steps must be above 0 and rise, got {self.at_steps}")
        elif self.at_steps[-1] >= total:
            raise ValueError(f"--reset.at-steps {self.at_steps[-1]} never comes in --total-timesteps {total}")

    def due(self, step: int, num_envs: int) -> bool:
        """Whether one of the steps has passed since `step` - `num_envs`."""
        return any(at <= step < at + num_envs for at in self.at_steps)


@dataclass(frozen=True)
class ProbeArgs:
    """Measurements that never change training."""

    every: int = 10_000
    """updates between feature-learning measurements on the probe (the interval T of Delta_C, Delta_A); 0 is off"""
    size: int = 256
    """inputs in the probe, drawn independently of training"""
    tau: float = 0.1
    """a unit is dormant when its share of the layer's mean activation is at most tau"""
    meter_every: int = 1000
    """updates between measurements of the realised effective learning rate and the norms; 0 is off"""

    def check(self, size_is_read: bool = False) -> None:
        """Refuse flags without effect. Where --probe.every is 0, something else may still use --probe.size, if
        `size_is_read`: projection is checked on the probe's inputs."""
        for name, least in (("every", 0), ("meter_every", 0), ("size", 2)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"--probe.{name.replace('_', '-')} must be at least {least}, got {value}")
        if self.every == 0:
            reject_unused("probe", self, ["tau"] if size_is_read else ["size", "tau"], "with --probe.every 0")

    def build(
        self, network: nn.Module, layers: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, inputs: Tensor,
        probed: Sequence[str], *, unit_dim: int | None = None,
    ) -> tuple[Meter | NoMeter, Probe | NoProbe]:  # fmt: skip
        """Meter of the realised ELR and norms of `layers`, weights by name, and probe of the features that the modules
        `probed` give for `inputs`, the probe's batch. `unit_dim` as in `Probe`, for modules with 3-D outputs."""
        meter: Meter | NoMeter = NoMeter()
        if self.meter_every:
            meter = Meter(layers, every=self.meter_every, optimizer=optimizer, nominal_power=1)
        if not self.every:
            return meter, NoProbe()
        with _named("--probe"):
            check_tau(self.tau)
            try:
                return meter, Probe(network, inputs, probed, every=self.every, tau=self.tau, unit_dim=unit_dim)
            except ValueError as error:
                raise ValueError(f"{error}; or leave it out of `probed`, or give --probe.every 0") from error
