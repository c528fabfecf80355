"""--intervene: what is refused, and that each preset builds the method that it names."""

import copy
import dataclasses

import pytest
import torch

from elr.interventions import policy_divergence
from elr.interventions.flags import BASELINES, InterveneArgs
from elr.projection import NoProjection
from tests.elr.interventions import twins

STILL = "with --shift.kind none: the task does not change"


def check(args, trigger="cusum", projected=False, changes=True):
    args.check(trigger, projected, changes, STILL)


@pytest.mark.parametrize("name", BASELINES)
def test_presets_are_accepted_and_each_is_another(name):
    check(BASELINES[name])
    assert sum(args == BASELINES[name] for args in BASELINES.values()) == 1


@pytest.mark.parametrize(
    ("flags", "surroundings", "message"),
    [
        ({"methods": ("redo", "redo")}, {}, r"names \['redo'\] twice"),
        ({"tau": 0.2}, {}, r"--intervene.tau 0.2 has no effect with --intervene.methods \(none\)"),
        ({"methods": ("fire",), "tau": 0.2}, {}, "--intervene.tau 0.2 has no effect with --intervene.methods fire"),
        ({"methods": ("redo",), "every": 5}, {}, "--intervene.every 5 has no effect"),
        (
            {"methods": ("l2-init",), "when": "every"},
            {},
            "--intervene.when every has no effect with --intervene.methods l2-init",
        ),
        ({"methods": ("fire", "reset")}, {}, "fire and reset both decide what becomes of all weights"),
        ({"methods": ("weight-clipping",)}, {"projected": True}, "weight-clipping and --nap.enabled both decide"),
        ({"methods": ("fire",)}, {"changes": False}, "--intervene.when change has no effect with --shift.kind none"),
        ({"methods": ("fire",), "when": "trigger"}, {"trigger": "never"}, "needs --rewarm.trigger cusum or every"),
        ({"methods": ("redo",), "when": "every", "every": 0}, {}, "--intervene.every must be positive"),
        ({"methods": ("redo",), "tau": -1.0}, {}, "--intervene.tau and --intervene.maturity must be at least 0"),
        ({"methods": ("continual-backprop",), "rate": 2.0}, {}, "--intervene.rate at most 1"),
        ({"methods": ("shrink-and-perturb",), "shrink": 1.0, "perturb": 0.0}, {}, "changes nothing"),
        ({"methods": ("churn",), "ratio": float("inf")}, {}, "--intervene.ratio must be positive and finite"),
    ],
)
def test_flags_without_effect_or_meaning_are_refused(flags, surroundings, message):
    with pytest.raises(ValueError, match=message):
        check(InterveneArgs(**flags), **surroundings)


def build(args, net, optimizer, held=None):
    return args.build(
        net, optimizer, held or NoProjection(), layers=net.layers, heads=["head", "value"],
        inputs=torch.randn(2, 6).double(), fresh=lambda: twins.network(twins.Mlp, 99),
        divergence=policy_divergence, batch=8, churn={},
    )  # fmt: skip


def train(methods, net, optimizer, updates=12, change_at=6):
    generator = torch.Generator().manual_seed(3)
    for update, (x, y) in enumerate(twins.batches(twins.Mlp, updates)):
        optimizer.zero_grad()
        loss = twins.loss_of(net, x, y)
        loss.backward()
        methods.before_step(lambda count: torch.randn(count, 6, generator=generator, dtype=torch.float64), loss.item())
        optimizer.step()
        methods.after_step()
        if update == change_at:
            methods.react(changed=True, fired=True)


def test_without_methods_not_a_bit_changes():
    (net, optimizer), (twin, twin_optimizer) = twins.pair(twins.Mlp)
    train(build(InterveneArgs(), net, optimizer), net, optimizer)
    for x, y in twins.batches(twins.Mlp, 12):
        twin_optimizer.zero_grad()
        twins.loss_of(twin, x, y).backward()
        twin_optimizer.step()
    twins.assert_equal(net, twin, optimizer, twin_optimizer, atol=0)


@pytest.mark.parametrize("name", BASELINES)
def test_every_preset_changes_training_and_leaves_nothing_out_of_the_optimiser(name):
    (net, optimizer), (twin, twin_optimizer) = twins.pair(twins.Mlp)
    args = BASELINES[name]
    sooner = {"every": 4, "maturity": 2, "rate": 0.05, "kappa": 0.9, "tau": 0.6}
    read = {flag for method in args.methods for flag in args.READS.get(method, ())} | (
        {"every"} if args.acts_at == "every" else set()
    )
    args = dataclasses.replace(args, **{flag: value for flag, value in sooner.items() if flag in read})
    train(build(args, net, optimizer), net, optimizer)
    train(build(InterveneArgs(), twin, twin_optimizer), twin, twin_optimizer)
    assert any(not torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in net.parameters()}
    assert all(torch.isfinite(p).all() for p in net.parameters())


class Recorder(NoProjection):
    def __init__(self):
        self.calls = []

    def project_(self):
        self.calls.append("project")

    def remember_norms_(self):
        self.calls.append("remember")


@pytest.mark.parametrize(
    ("methods", "calls"),
    [
        (("reset",), ["remember"]), (("fire",), ["remember"]), (("shrink-and-perturb",), ["project"]),
        (("reset-head",), []), (("local-time",), []),
    ],
)  # fmt: skip
def test_new_norms_are_held_after_new_weights_and_old_ones_otherwise(methods, calls):
    (net, optimizer), _ = twins.pair(twins.Mlp)
    held = Recorder()
    train(build(InterveneArgs(methods), net, optimizer, held), net, optimizer)
    assert held.calls == calls


@pytest.mark.parametrize("when", ["every", "change", "trigger"])
def test_events_come_when_they_are_asked_for(when):
    (net, optimizer), _ = twins.pair(twins.Mlp)
    held = Recorder()
    args = InterveneArgs(("reset",), when=when, **({"every": 3} if when == "every" else {}))
    methods = build(args, net, optimizer, held)
    assert not methods.react(changed=True, fired=True)  # before the first update there is nothing to act on
    train(methods, net, optimizer)
    assert len(held.calls) == (4 if when == "every" else 1)
    assert methods.react(changed=True) == (when == "change") and methods.react(fired=True) == (when == "trigger")


def test_decoupled_decay_is_adamw():
    (net, optimizer), _ = twins.pair(twins.Mlp)
    twin = copy.deepcopy(net)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.3)
    train(build(InterveneArgs(("weight-decay",), decay=0.3), net, optimizer), net, optimizer)
    for x, y in twins.batches(twins.Mlp, 12):
        theirs.zero_grad()
        twins.loss_of(twin, x, y).backward()
        theirs.step()
    twins.assert_equal(net, twin, optimizer, theirs, atol=1e-14)


def test_heads_are_reset_with_their_moments():
    (net, optimizer), _ = twins.pair(twins.Mlp)
    train(build(InterveneArgs(), net, optimizer), net, optimizer)
    methods = build(InterveneArgs(("reset-head",)), net, optimizer)
    methods.before_step(lambda count: torch.randn(count, 6).double(), 0.0)
    before = copy.deepcopy(net.state_dict())
    assert methods.react(changed=True)
    fresh = twins.network(twins.Mlp, 99).state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(value, (fresh if name.startswith(("head", "value")) else before)[name]), name
    for name, parameter in net.named_parameters():
        state = optimizer.state[parameter]
        assert bool(state["exp_avg"].any()) != name.startswith(("head", "value"))
        assert state["step"].item() == 12
