"""Flag groups: what they refuse, what they build, and that a detector which is accepted can see the changes."""

import ast
import dataclasses
import inspect
import math
import re
import textwrap
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
import torch
import tyro
from torch import nn

from elr.flags import (
    InterventionArgs,
    NapArgs,
    ProbeArgs,
    ResetArgs,
    RewarmArgs,
    ScheduleArgs,
    SwitchArgs,
    TriggeredSwitchArgs,
)
from elr.measure import NoMeter
from elr.probe import NoProbe
from elr.projection import NoProjection
from elr.schedules import Constant, Cyclic, CyclicThenConstant, LinearDecay, OneCycle, WarmupCosine
from elr.triggers import Every, Never, OnCusum
from elr.weights import scalable_weights
from envs.flags import MinAtarShiftArgs as ShiftArgs

GROUPS = (NapArgs, ScheduleArgs, InterventionArgs, SwitchArgs, TriggeredSwitchArgs, RewarmArgs, ResetArgs, ProbeArgs)
PEAK = 1e-3
NEVER = ShiftArgs()
OFTEN = ShiftArgs("actions", every_steps=100_000)


@dataclass(frozen=True)
class LowScheduleArgs(ScheduleArgs):
    """A script's own defaults, without help of its own."""

    low: float = 4e-6
    period_steps: int = 50_000


@dataclass(frozen=True)
class ReplaySwitchArgs(SwitchArgs):
    """A script's own flag."""

    replay: str = "keep"
    """the replay memory"""


CYCLIC, KEEP, DECAY = LowScheduleArgs("cyclic"), SwitchArgs(), WarmupCosine(PEAK, 10, 90, 0.0)


def one_per_step(steps):
    return steps


def one_in_four(steps):
    return max(1, round(steps / 4))


def check(
    rewarm, schedule=CYCLIC, switch=KEEP, shift=NEVER, updates=one_per_step, total=1_000_000, **more
):  # fmt: skip
    rewarm.check(schedule, switch, shift, updates, total=total, **more)


class Network(nn.Module):
    """One hidden layer, whose weight may be scaled freely only with its normalisation."""

    def __init__(self, normalised=True, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.hidden = nn.Linear(4, 8, bias=False)
        self.norm = nn.LayerNorm(8) if normalised else nn.Identity()
        self.relu = nn.ReLU()
        self.head = nn.Linear(8, 2)

    def forward(self, x):  # [B, 4] -> [B, 2]
        return self.head(self.relu(self.norm(self.hidden(x))))


def inputs():
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(3))


def weights(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).tolist()


# what is refused

REFUSED = [
    (lambda: NapArgs(every=5).check(), ["--nap.every 5", "without --nap.enabled"]),
    (lambda: NapArgs(gains="free").check(), ["--nap.gains free", "without --nap.enabled"]),
    (lambda: NapArgs(gain_strength=0.1).check(), ["--nap.gain-strength 0.1", "without --nap.enabled"]),
    (
        lambda: NapArgs(allow_scale_dependent=True).check(),
        ["--nap.allow-scale-dependent True", "without --nap.enabled"],
    ),
    (lambda: NapArgs(True, every=0).check(), ["--nap.every must be at least 1, got 0"]),
    (
        lambda: NapArgs(True).check(normalised=False),
        ["--nap.enabled", "--network normalised", "--nap.allow-scale-dependent"],
    ),
    (lambda: ScheduleArgs("cyclic", period_steps=-1).check(PEAK), ["--schedule.period-steps must be", "got -1"]),
    (
        lambda: ScheduleArgs("cyclic", period_steps=3).check(PEAK, least=4),
        ["--schedule.period-steps must be at least 4, the steps of one update, got 3"],
    ),
    (lambda: LowScheduleArgs("cyclic").check(4e-6), ["--schedule.low 4e-06", "--learning-rate 4e-06"]),
    (lambda: LowScheduleArgs("cyclic").check(1e-6), ["--schedule.low 4e-06", "--learning-rate 1e-06"]),
    *[
        (
            lambda name=name, value=value: SwitchArgs(**{name: value}).check(changes=False),
            [f"--switch.{name.replace('_', '-')} {value}", "--shift.kind none"],
        )
        for name, value in {
            "fresh_agent": True, "optimizer": "reset", "intervention": "reset", "shrink": 0.5, "perturb": 0.5,
        }.items()
    ],
    (
        lambda: InterventionArgs(intervention="reset").check(changes=False, unchanged="with one task"),
        ["--switch.intervention reset has no effect with one task"],
    ),
    (lambda: ReplaySwitchArgs(replay="clear").check(changes=False), ["--switch.replay clear", "--shift.kind none"]),
    (
        lambda: SwitchArgs(fresh_agent=True, optimizer="reset").check(changes=True),
        ["--switch.optimizer reset", "--switch.fresh-agent"],
    ),
    (
        lambda: SwitchArgs(fresh_agent=True, intervention="reset").check(changes=True),
        ["--switch.intervention reset", "--switch.fresh-agent"],
    ),
    (
        lambda: ReplaySwitchArgs(fresh_agent=True, replay="clear").check(changes=True),
        ["--switch.replay clear", "--switch.fresh-agent"],
    ),
    (
        lambda: SwitchArgs(fresh_agent=True, shrink=0.5).check(changes=True),
        ["--switch.shrink 0.5", "--switch.intervention none"],
    ),
    (
        lambda: SwitchArgs(intervention="reset", perturb=0.5).check(changes=True),
        ["--switch.perturb 0.5", "--switch.intervention reset"],
    ),
    *[
        (
            lambda mix=mix: SwitchArgs(intervention="shrink-and-perturb", shrink=mix[0], perturb=mix[1]).check(True),
            ["--switch.shrink", "--switch.perturb", f"got {mix[0]} and {mix[1]}"],
        )
        for mix in [(1.5, 0.1), (-0.1, 0.1), (0.4, -0.1), (0.4, math.inf), (math.nan, 0.1), (1, 0), (0, 0)]
    ],
    (
        lambda: TriggeredSwitchArgs(fresh_agent=True).check(changes=False),
        ["--switch.fresh-agent True", "--shift.kind none"],
    ),
    *[
        (
            lambda more=more: TriggeredSwitchArgs(when="trigger", fresh_agent=True).check(changes=True, **more),
            ["--switch.when trigger", f"--rewarm.trigger {more.get('trigger', 'never')}: choose every or cusum"],
        )
        for more in ({}, {"trigger": "never"}, {"trigger": "switch"})
    ],
    *[
        (
            lambda changes=changes: TriggeredSwitchArgs(when="trigger").check(changes, trigger="cusum"),
            ["--switch.when trigger", "--switch.fresh-agent, --switch.intervention or --switch.optimizer"],
        )
        for changes in (False, True)
    ],
    (
        lambda: TriggeredSwitchArgs(when="trigger", fresh_agent=True, optimizer="reset").check(False, trigger="every"),
        ["--switch.optimizer reset", "--switch.fresh-agent"],
    ),
    (
        lambda: TriggeredSwitchArgs(when="trigger", optimizer="reset", shrink=0.5).check(False, trigger="every"),
        ["--switch.shrink 0.5", "--switch.intervention none"],
    ),
    (
        lambda: check(
            RewarmArgs("every", moments="reset"), switch=TriggeredSwitchArgs(when="trigger", optimizer="reset")
        ),
        ["--switch.optimizer reset", "--rewarm.moments reset", "drop one of them"],
    ),
    (
        lambda: check(RewarmArgs("every"), schedule=ScheduleArgs(), switch=TriggeredSwitchArgs(fresh_agent=True)),
        ["--rewarm.trigger every", "--schedule.kind constant", "--rewarm.moments keep"],
    ),
    (lambda: check(RewarmArgs(every_steps=9)), ["--rewarm.every-steps 9", "--rewarm.trigger never"]),
    (lambda: check(RewarmArgs(moments="reset")), ["--rewarm.moments reset", "--rewarm.trigger never"]),
    (lambda: check(RewarmArgs("cusum", every_steps=9)), ["--rewarm.every-steps 9", "--rewarm.trigger cusum"]),
    (
        lambda: check(RewarmArgs("switch", every_steps=9), shift=OFTEN),
        ["--rewarm.every-steps 9", "--rewarm.trigger switch"],
    ),
    *[
        (
            lambda trigger=trigger, name=name: check(RewarmArgs(trigger, **{name: 3}), shift=OFTEN),
            [f"--rewarm.{name.replace('_', '-')} 3", f"--rewarm.trigger {trigger}"],
        )
        for trigger in ("never", "every", "switch")
        for name in ("threshold", "slack", "block", "burn_in", "refractory", "smoothing")
    ],
    *[
        (
            lambda trigger=trigger: check(RewarmArgs(trigger), schedule=ScheduleArgs(), shift=OFTEN),
            [f"--rewarm.trigger {trigger}", "--schedule.kind constant", "--rewarm.moments keep"],
        )
        for trigger in ("every", "cusum", "switch")
    ],
    (lambda: check(RewarmArgs("every", 0)), ["--rewarm.every-steps must be at least 1, got 0"]),
    (lambda: check(RewarmArgs("every", 3), least=4), ["--rewarm.every-steps must be at least 4, got 3"]),
    (
        lambda: check(RewarmArgs("every", 60_000), total=65_000, starts=5_000),
        ["--rewarm.every-steps 60000 never comes", "--total-timesteps", "60000 steps"],
    ),
    (
        lambda: check(RewarmArgs("every", 150_000)),
        ["--rewarm.every-steps 150000", "--schedule.kind cyclic", "--schedule.period-steps 50000"],
    ),
    (lambda: check(RewarmArgs("switch")), ["--rewarm.trigger switch", "--shift.kind none"]),
    (
        lambda: check(RewarmArgs("switch"), switch=SwitchArgs(fresh_agent=True), shift=OFTEN),
        ["--rewarm.trigger switch", "--switch.fresh-agent"],
    ),
    (
        lambda: check(RewarmArgs("switch", moments="reset"), switch=SwitchArgs(optimizer="reset"), shift=OFTEN),
        ["--switch.optimizer reset", "--rewarm.moments reset"],
    ),
    *[
        (
            lambda kind=kind, period=period: check(
                RewarmArgs("switch"), LowScheduleArgs(kind, period_steps=period), shift=OFTEN
            ),
            ["--rewarm.trigger switch", "every 100000 steps", f"--schedule.period-steps {said}", "give 1 to 100000"],
        )
        for kind, period, said in (
            ("linear-decay", 100_001, "100001 are over"),
            ("cyclic", 100_001, "100001 are over"),
            ("linear-decay", 0, "0, the whole run, are over"),
        )
    ],
    (
        lambda: check(RewarmArgs("cusum", burn_in=20), total=7_000, starts=5_000),
        ["--rewarm.trigger cusum", "--rewarm.burn-in is 20 blocks x 100", "2000 updates in the run", "--rewarm.block"],
    ),
    (lambda: ResetArgs(layers="head").check(total=100), ["--reset.layers head", "without --reset.at-steps"]),
    (lambda: ResetArgs(at_steps=(0, 5)).check(total=100), ["--reset.at-steps", "got (0, 5)"]),
    (lambda: ResetArgs(at_steps=(5, 5)).check(total=100), ["--reset.at-steps", "got (5, 5)"]),
    (lambda: ResetArgs(at_steps=(5, 100)).check(total=100), ["--reset.at-steps 100", "--total-timesteps 100"]),
    (lambda: ProbeArgs(every=-1).check(), ["--probe.every must be at least 0, got -1"]),
    (lambda: ProbeArgs(meter_every=-1).check(), ["--probe.meter-every must be at least 0, got -1"]),
    (lambda: ProbeArgs(size=1).check(), ["--probe.size must be at least 2, got 1"]),
    (lambda: ProbeArgs(every=0, tau=0.2).check(), ["--probe.tau 0.2", "--probe.every 0"]),
    (lambda: ProbeArgs(every=0, tau=0.2).check(size_is_read=True), ["--probe.tau 0.2", "--probe.every 0"]),
    (lambda: ProbeArgs(every=0, size=9).check(), ["--probe.size 9", "--probe.every 0"]),
]  # fmt: skip


@pytest.mark.parametrize(("refused", "named"), REFUSED, ids=[named[0] for _, named in REFUSED])
def test_each_refusal_is_one_line_that_names_the_flags(refused, named):
    with pytest.raises(ValueError) as error:
        refused()
    message = str(error.value)
    assert "\n" not in message
    assert [name for name in named if name not in message] == [], message


@pytest.mark.parametrize("kind", ScheduleArgs.READS)
def test_a_schedule_refuses_exactly_the_flags_that_its_kind_does_not_read(kind):
    changed = {"low": 1e-5, "period_steps": 77, "warmup_frac": 0.3, "cycles": 7}
    refused = []
    for name, value in changed.items():
        try:
            LowScheduleArgs(kind, **{name: value}).check(PEAK)
        except ValueError as error:
            assert f"--schedule.{name.replace('_', '-')} {value}" in str(error)
            assert f"--schedule.kind {kind}" in str(error)
            refused.append(name)
    assert refused == [name for name in changed if name not in ScheduleArgs.READS[kind]]


def test_defaults_of_a_subclass_count():
    LowScheduleArgs("constant").check(PEAK)
    LowScheduleArgs("constant", low=4e-6).check(PEAK)
    for other in (0.0, 1e-6):  # 0 is the default of the group, not of the script
        with pytest.raises(ValueError, match=rf"--schedule.low {other} has no effect with --schedule.kind constant"):
            LowScheduleArgs("constant", low=other).check(PEAK)


def test_flags_that_nobody_set_are_not_refused():
    """A period of 50,000 steps is less than one update here, but neither the schedule nor the trigger reads it."""
    NapArgs().check()
    NapArgs().check(normalised=False)
    ResetArgs().check(total=100)
    ProbeArgs(every=0).check()
    for changes in (False, True):
        SwitchArgs().check(changes)
        for trigger in ("never", "every", "cusum", "switch"):
            TriggeredSwitchArgs().check(changes, trigger=trigger)
    LowScheduleArgs().check(1e-9, least=1e5)
    check(RewarmArgs(), schedule=LowScheduleArgs(), updates=lambda steps: max(1, round(steps * 1e-5)), least=1e5)


def test_what_is_next_to_a_refusal_is_accepted():
    NapArgs(True, every=1, allow_scale_dependent=True).check(normalised=False)
    ScheduleArgs("linear-decay").check(PEAK)  # 0: the whole run
    ScheduleArgs("cyclic", period_steps=4).check(PEAK, least=4)
    LowScheduleArgs("cyclic").check(4.1e-6)
    SwitchArgs(optimizer="reset", intervention="reset-head").check(changes=True)
    SwitchArgs(intervention="shrink-and-perturb", shrink=1, perturb=0.1).check(changes=True)
    SwitchArgs(fresh_agent=True).check(changes=True)
    for trigger in ("every", "cusum"):
        for changes in (False, True):  # a trigger fires also where the task does not change
            TriggeredSwitchArgs(when="trigger", fresh_agent=True).check(changes, trigger=trigger)
            TriggeredSwitchArgs(when="trigger", optimizer="reset").check(changes, trigger=trigger)
            TriggeredSwitchArgs(when="trigger", intervention="reset-head").check(changes, trigger=trigger)
    TriggeredSwitchArgs(fresh_agent=True).check(changes=True)
    renewing = TriggeredSwitchArgs(when="trigger", fresh_agent=True)
    check(RewarmArgs("every"), schedule=ScheduleArgs(), switch=renewing)  # the alarm renews the agent, not the rate
    check(RewarmArgs("every", moments="reset"), switch=TriggeredSwitchArgs(when="trigger", intervention="reset"))
    check(RewarmArgs("every", moments="reset"), switch=TriggeredSwitchArgs(optimizer="reset"), shift=OFTEN)
    check(RewarmArgs("every", 4), least=4)
    check(RewarmArgs("every", moments="reset"), schedule=ScheduleArgs())
    check(RewarmArgs("switch"), shift=OFTEN)
    check(RewarmArgs("switch"), switch=SwitchArgs(optimizer="reset"), shift=OFTEN)
    check(RewarmArgs("switch"), LowScheduleArgs("linear-decay", period_steps=100_000), shift=OFTEN)
    for times in ({"at_steps": (100_000, 200_000)}, {"rate": 1e-5}):  # only equal distances are certain
        shift = ShiftArgs("actions", **times)
        check(RewarmArgs("switch"), LowScheduleArgs("linear-decay", period_steps=150_000), shift=shift)
    often = ShiftArgs("actions", every_steps=10_000)
    check(RewarmArgs("switch", moments="reset"), LowScheduleArgs("constant"), shift=often)  # reads no period
    ResetArgs(at_steps=(1, 99)).check(total=100)
    ProbeArgs(every=0, size=9).check(size_is_read=True)
    ProbeArgs(every=0, meter_every=0).check()
    ProbeArgs(size=2).check()


BUILDS_REFUSED = [
    (lambda: NapArgs(True, gains="decay").build(Network(), inputs=inputs()), "--nap: .*strength"),
    (lambda: NapArgs(True).build(Network(normalised=False), inputs=inputs()), "--nap: .*hidden"),
    (lambda: LowScheduleArgs("cyclic", warmup_frac=2.0).build(PEAK, one_per_step), "--schedule: warmup_frac"),
    (lambda: LowScheduleArgs("cyclic-then-constant", cycles=0).build(PEAK, one_per_step), "--schedule: cycles"),
    (lambda: LowScheduleArgs("cyclic", low=-1.0).build(PEAK, one_per_step), "--schedule: low"),
    (lambda: rewarming(RewarmArgs("cusum", block=0)), "--schedule, --rewarm: block"),
    (lambda: rewarming(RewarmArgs("cusum", smoothing=1.0)), "--schedule, --rewarm: smoothing"),
    (lambda: measuring(ProbeArgs(tau=2.0)), "--probe: tau"),
]


@pytest.mark.parametrize(("build", "named"), BUILDS_REFUSED, ids=[named for _, named in BUILDS_REFUSED])
def test_values_that_a_constructor_refuses_are_reported_with_their_flags(build, named):
    with pytest.raises(ValueError, match=named):
        build()


# what is built


def rewarming(args, schedule=DECAY, updates=one_per_step):
    optimizer = torch.optim.Adam(Network().parameters(), lr=PEAK)
    return args.build(optimizer, schedule, updates)


def measuring(args, network=None):
    network = network or Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=PEAK)
    return args.build(network, scalable_weights(network), optimizer, inputs(), ["relu"])


def test_advice_for_a_layer_that_cannot_be_probed_works():
    network = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(20, 2))
    batch = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(0))

    def build(args, probed, **more):
        return args.build(network, {}, torch.optim.SGD(network.parameters()), batch, probed, **more)[1]

    off = ProbeArgs(meter_every=0)
    with pytest.raises(ValueError, match=r"unit_dim=1 .*leave it out of `probed`, or give --probe\.every 0"):
        build(off, ["0", "1"])
    assert "plasticity/dead_fraction/0" in build(off, ["0", "1"], unit_dim=1).measure()
    assert "plasticity/dead_fraction/1" in build(off, ["1"]).measure()
    assert isinstance(build(ProbeArgs(every=0, meter_every=0), ["0", "1"]), NoProbe)


def test_with_everything_off_null_objects_are_built():
    assert isinstance(NapArgs().build(Network(), inputs=inputs()), NoProjection)
    meter, probe = measuring(ProbeArgs(every=0, meter_every=0))
    assert isinstance(meter, NoMeter)
    assert isinstance(probe, NoProbe)
    assert isinstance(rewarming(RewarmArgs()).trigger, Never)
    assert ScheduleArgs().build(PEAK, one_per_step) == Constant(PEAK)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", Constant(PEAK)),
        ("linear-decay", LinearDecay(PEAK, 1e-5, 125)),
        ("warmup-cosine", WarmupCosine(PEAK, 25, 100, 1e-5, initial=1e-5)),
        ("cyclic", Cyclic(1e-5, PEAK, 125, 0.2)),
        ("cyclic-then-constant", CyclicThenConstant(1e-5, PEAK, 125, 5, 0.2)),
        ("one-cycle", OneCycle(1e-5, PEAK, 125, 1e-5, 0.2)),
    ],
)
def test_each_kind_of_schedule_is_the_one_of_elr_in_updates(kind, expected):
    args = ScheduleArgs(kind, low=1e-5, period_steps=500, warmup_frac=0.2, cycles=5)
    assert args.build(PEAK, one_in_four) == expected


@pytest.mark.parametrize("kind", [kind for kind in ScheduleArgs.READS if kind != "constant"])
def test_each_kind_of_schedule_begins_peaks_and_ends_where_its_flags_say(kind):
    args = ScheduleArgs(kind, low=1e-5, period_steps=2_000, warmup_frac=0.25, cycles=1)
    schedule = args.build(PEAK, one_in_four)
    rates = [schedule(update) for update in range(501)]
    top = 0 if kind == "linear-decay" else 125
    assert np.argmax(rates) == top
    assert rates[top] == PEAK
    assert rates[0] == (PEAK if kind == "linear-decay" else 1e-5)
    assert rates[-1] == 1e-5


@pytest.mark.parametrize("kind", ScheduleArgs.READS)
def test_each_flag_that_a_kind_reads_changes_its_schedule_and_no_other_does(kind):
    args = ScheduleArgs(kind, low=1e-5, period_steps=500)
    for name, value in {"low": 2e-5, "period_steps": 700, "warmup_frac": 0.3, "cycles": 7}.items():
        changed = dataclasses.replace(args, **{name: value}).build(PEAK, one_per_step)
        assert (changed != args.build(PEAK, one_per_step)) == (name in ScheduleArgs.READS[kind]), name
    assert args.build(2 * PEAK, one_per_step) != args.build(PEAK, one_per_step)


def test_triggers_are_built_from_their_flags():
    every = rewarming(RewarmArgs("every", 500), updates=one_in_four).trigger
    assert isinstance(every, Every)
    assert every.period == 125
    assert isinstance(rewarming(RewarmArgs("switch")).trigger, Never)  # the script calls restart()
    flags_of_cusum = {
        "threshold": 3.0, "slack": 0.5, "block": 7, "burn_in": 6, "refractory": 5, "smoothing": 0.2,
    }  # fmt: skip
    assert set(flags_of_cusum) == set(RewarmArgs.CUSUM)
    cusum = rewarming(RewarmArgs("cusum", **flags_of_cusum)).trigger.cusum
    assert {name: getattr(cusum, name) for name in flags_of_cusum} == flags_of_cusum
    assert (cusum.log, cusum.min_relative_deviation, cusum.clip) == (True, 0.05, 3.0)
    assert isinstance(rewarming(RewarmArgs("cusum")).trigger, OnCusum)


def test_the_schedule_restarts_and_moments_follow_their_flag():
    for moments, left in (("keep", True), ("reset", False)):
        network = Network()
        optimizer = torch.optim.Adam(network.parameters(), lr=PEAK)
        driver = RewarmArgs("every", 2, moments=moments).build(optimizer, LinearDecay(PEAK, 0.0, 10), one_per_step)
        fired = []
        for _ in range(4):
            network(inputs()).square().sum().backward()
            optimizer.step()
            fired.append(driver.step())
        assert fired == [False, True, False, True]
        assert driver.rate == PEAK
        assert bool(optimizer.state[network.hidden.weight]["exp_avg"].any()) == left


def test_projection_leaves_out_the_heads_that_it_is_given():
    assert list(NapArgs(True).build(Network(), inputs=inputs()).weights) == ["hidden"]
    args = NapArgs(True, allow_scale_dependent=True)
    assert list(args.build(Network(), inputs=inputs(), heads=["hidden"]).weights) == ["head"]


def test_the_meter_measures_the_given_layers_by_the_norm_that_adam_moves():
    network = Network()
    norm = network.hidden.weight.detach().norm().item()
    meter, _ = measuring(ProbeArgs(), network)
    network(inputs()).square().sum().backward()
    meter.before_step()
    meter.after_step()
    scalars = meter.fresh_scalars()
    assert {tag.split("/")[-1] for tag in scalars} == {"hidden"}
    assert scalars["elr_nominal/hidden"] == pytest.approx(PEAK / norm)


def test_interventions_do_what_their_flags_say():
    def outcome(**changes):
        network = Network()
        projection = NapArgs(True).build(network, inputs=inputs())
        SwitchArgs(**changes).intervene_(network, Network(seed=1), projection, heads=["head"])
        return network, projection

    old, fresh = Network(), Network(seed=1)
    network, _ = outcome()
    assert weights(network) == weights(old)
    for renewed in ({"intervention": "reset"}, {"fresh_agent": True}):
        network, projection = outcome(**renewed)
        assert weights(network) == weights(fresh)
        assert projection.norms["hidden"] == pytest.approx(fresh.hidden.weight.norm().item())
    network, _ = outcome(intervention="reset-head")
    assert weights(network.head) == weights(fresh.head)
    assert weights(network.hidden) == weights(old.hidden)
    network, projection = outcome(intervention="shrink-and-perturb", shrink=0.5, perturb=0.2)
    mixed = 0.5 * old.hidden.weight + 0.2 * fresh.hidden.weight
    projected = mixed * old.hidden.weight.norm() / mixed.norm()
    assert torch.allclose(network.hidden.weight, projected)
    assert torch.allclose(network.head.weight, 0.5 * old.head.weight + 0.2 * fresh.head.weight)


def test_a_reset_to_weights_that_cannot_be_projected_names_nap():
    network, fresh = Network(), Network()
    projection = NapArgs(True).build(network, inputs=inputs())
    nn.init.zeros_(fresh.hidden.weight)
    with pytest.raises(ValueError, match=r"--nap: .*hidden"):
        SwitchArgs(intervention="reset").intervene_(network, fresh, projection, heads=["head"])


def test_what_a_change_renews_is_said_by_its_flag_or_by_fresh_agent():
    names = ("optimizer", "intervention", "replay")
    assert [ReplaySwitchArgs().does(name) for name in names] == [False, False, False]
    assert [ReplaySwitchArgs(replay="clear").does(name) for name in names] == [False, False, True]
    assert [ReplaySwitchArgs(optimizer="reset").does(name) for name in names] == [True, False, False]
    assert [ReplaySwitchArgs(fresh_agent=True).does(name) for name in names] == [True, True, True]


def test_only_a_triggered_switch_may_come_when_the_trigger_fires():
    assert [args.at_trigger for args in (SwitchArgs(), TriggeredSwitchArgs())] == [False, False]
    triggered = TriggeredSwitchArgs(when="trigger")
    assert triggered.at_trigger and not triggered.does("optimizer") and not triggered.does("intervention")
    assert TriggeredSwitchArgs(when="trigger", fresh_agent=True).does("optimizer")


def test_a_reset_is_due_at_the_first_step_from_its_number_on():
    args = ResetArgs(at_steps=(5, 12))
    assert [step for step in range(20) if args.due(step, 1)] == [5, 12]
    assert [step for step in range(0, 20, 4) if args.due(step, 4)] == [8, 12]
    assert not ResetArgs().due(0, 4)


# every field counts


def outcome_of_nap(args):
    def projected(normalised):
        network = Network(normalised)
        try:
            args.check()
            projection = args.build(network, inputs=inputs())
        except ValueError as error:
            return str(error)
        for parameter in network.parameters():
            parameter.data += 0.5
        projection.step(0.1)
        return weights(network)

    return projected(True), projected(False)


def outcome_of_schedule(args):
    return args.build(PEAK, one_per_step)


def outcome_of_switch(args):
    network = Network()
    args.intervene_(network, Network(seed=1), NoProjection(), heads=["head"])
    at_trigger = args.at_trigger if isinstance(args, SwitchArgs) else None
    return weights(network), args.does("optimizer"), args.does("intervention"), at_trigger


def outcome_of_rewarm(args):
    built = rewarming(args)
    detector = getattr(built.trigger, "cusum", None)
    settings = [getattr(detector, name, None) for name in RewarmArgs.CUSUM]
    return type(built.trigger), getattr(built.trigger, "period", None), built.moments, settings, args.on


def outcome_of_reset(args):
    try:
        args.check(total=100)
    except ValueError as error:  # `layers` itself is read by the script
        return str(error)
    return [args.due(step, 1) for step in range(100)]


def outcome_of_probe(args):
    try:
        args.check()
    except ValueError as error:  # `size` is read where the script draws the inputs
        return str(error)
    network = Network()
    meter, probe = measuring(args, network)
    network(inputs()).square().sum().backward()
    measured = []
    for update in range(1, 5):
        meter.before_step()
        measured.append(meter.after_step())
        measured.append(probe.due(update))
    return measured, probe.measure()


COUNTS = [
    (outcome_of_nap, NapArgs(True), {"enabled": False, "every": 2, "gains": "free", "allow_scale_dependent": True}),
    (outcome_of_nap, NapArgs(True, gains="decay", gain_strength=0.5), {"gain_strength": 0.25}),
    (
        outcome_of_schedule,
        ScheduleArgs("cyclic-then-constant", period_steps=100),
        {"kind": "cyclic", "low": 1e-5, "period_steps": 50, "warmup_frac": 0.2, "cycles": 2},
    ),
    (outcome_of_switch, SwitchArgs(), {"fresh_agent": True, "optimizer": "reset", "intervention": "reset-head"}),
    (outcome_of_switch, SwitchArgs(intervention="shrink-and-perturb"), {"shrink": 0.5, "perturb": 0.2}),
    (
        outcome_of_switch,
        TriggeredSwitchArgs(),
        {"when": "trigger", "fresh_agent": True, "optimizer": "reset", "intervention": "reset-head"},
    ),
    (outcome_of_switch, TriggeredSwitchArgs(intervention="shrink-and-perturb"), {"shrink": 0.5, "perturb": 0.2}),
    (outcome_of_switch, InterventionArgs(), {"optimizer": "reset", "intervention": "reset"}),
    (outcome_of_switch, InterventionArgs(intervention="shrink-and-perturb"), {"shrink": 0.5, "perturb": 0.2}),
    (outcome_of_rewarm, RewarmArgs("every", 5), {"trigger": "never", "every_steps": 6, "moments": "reset"}),
    (
        outcome_of_rewarm,
        RewarmArgs("cusum"),
        {"threshold": 9, "slack": 1, "block": 9, "burn_in": 9, "refractory": 9, "smoothing": 0.1},
    ),
    (outcome_of_reset, ResetArgs(), {"at_steps": (7,), "layers": "head"}),
    (outcome_of_probe, ProbeArgs(every=2, meter_every=2), {"every": 3, "tau": 0.9, "meter_every": 3}),
    (outcome_of_probe, ProbeArgs(every=0), {"size": 9}),
]


@pytest.mark.parametrize(
    ("outcome", "args", "changes"),
    COUNTS,
    ids=[f"{type(args).__name__}-{'-'.join(changes)}" for _, args, changes in COUNTS],
)
def test_every_field_changes_what_its_group_builds_or_checks(outcome, args, changes):
    assert outcome(args) == outcome(args)
    for name, value in changes.items():
        assert outcome(dataclasses.replace(args, **{name: value})) != outcome(args), name


def test_no_field_is_left_out_of_the_test_above():
    covered = {(type(args), name) for _, args, changes in COUNTS for name in changes}
    assert covered == {(group, field.name) for group in GROUPS for field in dataclasses.fields(group)}


# when a detector can see the changes


def run(args, changes, *, total, starts=0, pauses=False, ratio=1.0, schedule=DECAY):
    """Steps at which the schedule restarts in a run whose signal rises five-fold at each change.

    Updates come as in the DQN scripts: `ratio` per step from `starts` on, and again after each change if it pauses.
    """
    driver = rewarming(args, schedule, lambda steps: max(1, round(steps * ratio)))
    rng = np.random.default_rng(0)
    level, start, before, updates, restarts = 1.0, starts, 0, 0, []
    for step in range(1, total + 1):
        while updates < before + int((step - start) * ratio):
            updates += 1
            if driver.step(level * math.exp(0.1 * rng.normal())):
                restarts.append(step)
        if step in changes:
            level *= 5
            start, before = (step + starts, updates) if pauses else (start, before)
    return restarts


def answered(changes, alarms, total):
    """For each change whether an alarm comes after it and before the next."""
    return [
        any(change < alarm <= following for alarm in alarms)
        for change, following in zip(changes, [*changes[1:], total], strict=True)
    ]


def accepts(args, shift, *, ratio=1.0, **more):
    try:
        check(args, shift=shift, updates=lambda steps: max(1, round(steps * ratio)), **more)
    except ValueError as error:
        assert "--rewarm.trigger cusum would miss a change" in str(error)
        return False
    return True


def at(*steps):
    return ShiftArgs("actions", at_steps=steps)


@pytest.mark.parametrize("ratio", [1.0, 0.25, 2.0])
def test_a_burn_in_that_is_over_at_the_first_change_is_accepted_and_the_change_found(ratio):
    args = RewarmArgs("cusum", block=10, burn_in=20, refractory=0)  # 200 updates of burn-in
    starts = 500
    for updates, fits in ((204, True), (200, False), (100, False)):
        change = starts + int(updates / ratio)
        total = change + int(1000 / ratio)
        assert accepts(args, at(change), total=total, starts=starts, ratio=ratio) == fits
        if updates != 200:  # at 200 it would be over in the moment of the change, but `updates` may have rounded up
            alarms = run(args, [change], total=total, starts=starts, ratio=ratio)
            assert answered([change], alarms, total) == [fits]


def test_the_burn_in_begins_with_the_first_update_and_not_with_the_first_step():
    """6,000 steps would hold a burn-in of 2,000 updates; but only 1,000 of them bring an update."""
    args = RewarmArgs("cusum")
    assert not accepts(args, at(6_000), total=10_000, starts=5_000)
    assert not any(alarm > 6_000 for alarm in run(args, [6_000], total=10_000, starts=5_000))
    assert accepts(args, at(6_000), total=10_000, starts=3_900)
    assert answered([6_000], run(args, [6_000], total=10_000, starts=3_900), 10_000) == [True]


def test_a_change_before_the_first_update_leaves_no_burn_in():
    assert not accepts(RewarmArgs("cusum", block=1, burn_in=2), at(400), total=10_000, starts=500)
    with pytest.raises(ValueError, match="there are 0 updates before the first change"):
        check(RewarmArgs("cusum"), shift=at(400), total=10_000, starts=500)


@pytest.mark.parametrize(
    ("burn_in", "refractory", "gap", "starts", "fits"),
    [
        (20, 40, 500, 0, True),
        (20, 40, 300, 0, False),
        (60, 0, 700, 0, True),
        (60, 0, 500, 0, False),  # an alarm begins a new burn-in
        (20, 40, 1_000, 500, True),  # updates pause for 500 steps after each change
        (20, 40, 800, 500, False),
    ],
)
def test_burn_in_and_refractory_period_after_an_alarm_fit_between_two_changes(burn_in, refractory, gap, starts, fits):
    args = RewarmArgs("cusum", block=10, burn_in=burn_in, refractory=refractory)
    changes = [1_500 + gap * i for i in range(12)]
    total, pauses = changes[-1] + gap, starts > 0
    assert accepts(args, at(*changes), total=total, starts=starts, pauses=pauses) == fits
    found = answered(changes, run(args, changes, total=total, starts=starts, pauses=pauses), total)
    assert found[0]  # it is after the first alarm that a change is missed
    assert all(found) == fits


def test_random_changes_are_as_far_apart_as_they_are_on_average():
    args = RewarmArgs("cusum", block=10, burn_in=20, refractory=40)
    for mean, fits in ((2_000, True), (100, False)):
        shift = ShiftArgs("actions", rate=1 / mean)
        changes = np.cumsum(np.random.default_rng(5).geometric(shift.rate, 100 if mean == 100 else 20)).tolist()
        total = changes[-1] + mean
        assert accepts(args, shift, total=total) == fits
        found = answered(changes, run(args, changes, total=total), total)
        assert (np.mean(found) > 0.7) == fits
        assert (np.mean(found) < 0.3) == (not fits)


def test_without_a_second_change_the_detector_must_fit_into_the_run():
    args = RewarmArgs("cusum", block=10, burn_in=20, refractory=40)
    assert accepts(args, NEVER, total=901, starts=500)
    with pytest.raises(ValueError, match=r"--rewarm.refractory is 40 blocks .* there are 400 updates in the run"):
        check(args, total=900, starts=500)
    with pytest.raises(ValueError, match=r"--rewarm.refractory is 40 blocks .* there are 400 updates in the run"):
        check(args, shift=at(800), total=900, starts=500)


def test_the_longer_of_burn_in_and_refractory_period_is_named():
    for blocks, named in (({"burn_in": 50, "refractory": 0}, "burn-in is 50"), ({}, "refractory is 40")):
        with pytest.raises(ValueError, match=f"--rewarm.{named} blocks .* 1000 updates between two changes"):
            check(RewarmArgs("cusum", **blocks), shift=at(500_000, 501_000))


@pytest.mark.parametrize("ratio", [1.0, 0.25, 4.0])
def test_a_restart_every_so_often_that_never_comes_is_refused(ratio):
    """It is refused from as many steps on as are learned from: a restart after the last update changes nothing."""
    total, starts = 1_000, 200
    updates = int((total - starts) * ratio)
    for every, comes in ((400, True), (796, True), (800, False), (999, False)):
        args = RewarmArgs("every", every)
        restarts = run(args, [], total=total, starts=starts, ratio=ratio)
        assert any(int((step - starts) * ratio) < updates for step in restarts) == comes
        if comes:
            check(args, total=total, starts=starts)
        else:
            with pytest.raises(ValueError, match=f"--rewarm.every-steps {every} never comes"):
                check(args, total=total, starts=starts)


def test_a_restart_at_the_end_of_a_cycle_is_refused_because_it_changes_no_rate():
    def rates(every):
        schedule = LowScheduleArgs("cyclic", period_steps=100)
        driver = rewarming(RewarmArgs("every", every), schedule.build(PEAK, one_in_four), one_in_four)
        return [driver.rate for _ in range(200) if driver.step() or True]

    schedule = LowScheduleArgs("cyclic", period_steps=100)
    without = rates(10**6)
    for every, changes in ((150, True), (200, False), (201, False), (204, True)):  # 201 steps are 50 updates, too
        assert (rates(every) != without) == changes
        if changes:
            check(RewarmArgs("every", every), schedule, updates=one_in_four)
        else:
            with pytest.raises(ValueError, match=f"--rewarm.every-steps {every} .* changes nothing"):
                check(RewarmArgs("every", every), schedule, updates=one_in_four)
    check(RewarmArgs("every", 200, moments="reset"), schedule, updates=one_in_four)  # it resets the moments


# help


def documented(group):
    """Help text by field: the string below a field, in the class or the first above it that has one."""
    texts = {}
    for cls in reversed(group.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
        for node, below in pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(below, ast.Expr):
                texts[node.target.id] = below.value.value
    return texts


@dataclass(frozen=True)
class EveryGroup:
    """All groups, two of them with a script's own defaults."""

    nap: NapArgs = field(default_factory=NapArgs)
    schedule: LowScheduleArgs = field(default_factory=LowScheduleArgs)
    switch: ReplaySwitchArgs = field(default_factory=ReplaySwitchArgs)
    triggered: TriggeredSwitchArgs = field(default_factory=TriggeredSwitchArgs)
    rewarm: RewarmArgs = field(default_factory=RewarmArgs)
    reset: ResetArgs = field(default_factory=ResetArgs)
    probe: ProbeArgs = field(default_factory=ProbeArgs)


def test_every_flag_has_help_also_one_that_a_subclass_gives_another_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        tyro.cli(EveryGroup, args=["--help"])
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert "--schedule.low FLOAT rate at the bottom of a cycle or at the end of a decay (default: 4e-06)" in shown
    for name, default in vars(EveryGroup()).items():
        texts = documented(type(default))
        for flag in dataclasses.fields(default):
            option = f"--{name}.{flag.name.replace('_', '-')}"
            found = re.findall(rf"{option}[ ,](.*?)\(default: ", shown)  # another flag's help may name it too
            assert sum(" ".join(texts[flag.name].split()) in help_text for help_text in found) == 1, option


@pytest.mark.parametrize("share", [-0.1, 1.5, math.inf, math.nan])
@pytest.mark.parametrize("kind", ["cyclic", "warmup-cosine", "one-cycle", "cyclic-then-constant"])
def test_warmup_frac_is_a_share(kind, share) -> None:
    schedule = ScheduleArgs(kind, low=1e-6, period_steps=100, warmup_frac=share)
    with pytest.raises(ValueError, match=r"--schedule.warmup-frac must lie in \[0, 1\]"):
        schedule.check(1e-3)


def test_a_network_of_another_kind_is_projected_by_naming_what_is_not_known():
    """As a copied script does whose author has written a normalisation layer."""

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.g = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.g * x / x.square().mean(-1, keepdim=True).sqrt()

    network = nn.Sequential(nn.Linear(4, 4, bias=False), Norm(), nn.ReLU(), nn.Linear(4, 2))
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    nap = NapArgs(enabled=True)
    with pytest.raises(ValueError, match=r"--nap: elr does not know whether \['1.g'\] are gains"):
        nap.build(network, inputs=inputs)
    projection = nap.build(network, inputs=inputs, more_gains=["1.g"])
    assert [id(p) for p in projection.held()] == [id(network[0].weight), id(network[1].g)]
