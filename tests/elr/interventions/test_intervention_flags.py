"""--intervene: what is refused, and that each preset builds the method that it names."""

import copy
import dataclasses

import pytest
import torch

from elr.flags import TriggeredSwitchArgs as SwitchArgs
from elr.interventions import policy_divergence
from elr.interventions.flags import BASELINES, InterveneArgs
from elr.projection import NoProjection
from tests.elr.interventions import twins

STILL = "with --shift.kind none: the task does not change"


def check(args, trigger="cusum", projected=False, changes=True, peak=1e-3, switch=None):
    args.check(trigger, projected, switch or SwitchArgs(), peak, changes, STILL)


@pytest.mark.parametrize("name", BASELINES)
def test_presets_are_accepted_and_each_is_another(name):
    check(BASELINES[name])
    assert sum(args == BASELINES[name] for args in BASELINES.values()) == 1


def test_methods_act_when_they_usually_do_or_when_told():
    assert InterveneArgs(("redo", "l2-init")).acts_at == "every"
    assert InterveneArgs(("fire",)).acts_at == InterveneArgs(("redo",), when="change").acts_at == "change"
    assert InterveneArgs(("l2-init",)).acts_at == InterveneArgs().acts_at == ""


@pytest.mark.parametrize(
    ("flags", "surroundings", "message"),
    [
        ({"methods": ("redo", "redo")}, {}, r"names \['redo'\] twice"),
        ({"tau": 0.2}, {}, r"--intervene.tau 0.2 has no effect with --intervene.methods \(none\)"),
        ({"methods": ("fire",), "tau": 0.2}, {}, "--intervene.tau 0.2 has no effect with --intervene.methods fire"),
        ({"methods": ("fire",), "every": 5}, {}, "--intervene.every 5 has no effect"),
        ({"methods": ("redo", "fire")}, {}, "redo usually acts every so many updates, the others at a change"),
        (
            {"methods": ("l2-init",), "when": "every"},
            {},
            "--intervene.when every has no effect with --intervene.methods l2-init",
        ),
        ({"methods": ("fire", "reset")}, {}, "fire and reset both decide what becomes of the weights"),
        ({"methods": ("reset", "local-time")}, {}, "reset and local-time both restart Adam's count"),
        ({"methods": ("reset", "reset-head")}, {}, "both decide what becomes of the weights"),
        ({"methods": ("reset",)}, {"switch": SwitchArgs(intervention="reset")}, "--switch .* both renew weights"),
        ({"methods": ("fire",)}, {"switch": SwitchArgs(fresh_agent=True)}, "--switch .* both renew weights"),
        ({"methods": ("weight-decay",), "decay": 3000.0}, {}, "exceeds 1: the weights would change sign"),
        ({"methods": ("weight-clipping",)}, {"projected": True}, "weight-clipping and --nap.enabled both decide"),
        ({"methods": ("fire",)}, {"changes": False}, "--intervene.when change has no effect with --shift.kind none"),
        (
            {"methods": ("fire",), "when": "trigger"},
            {"trigger": "never"},
            "needs a --rewarm.trigger that fires by itself, not never",
        ),
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


def DRAW(count):
    return torch.randn(count, 6).double()


def build(args, net, optimizer, held=None):
    return args.build(
        net, optimizer, held or NoProjection(), layers=net.layers, heads=["head", "value"],
        inputs=torch.randn(2, 6).double(), fresh=lambda: twins.network(twins.Mlp, 99),
        divergence=policy_divergence, batch=8, churn={},
    )  # fmt: skip


def train(methods, net, optimizer, updates=12, change_at=6):
    generator = torch.Generator().manual_seed(3)

    def draw(count):
        return torch.randn(count, 6, generator=generator, dtype=torch.float64)

    for update, (x, y) in enumerate(twins.batches(twins.Mlp, updates)):
        optimizer.zero_grad()
        loss = twins.loss_of(net, x, y)
        loss.backward()
        methods.before_step(draw, loss.item())
        optimizer.step()
        methods.after_step()
        if update == change_at:
            methods.react(draw, changed=True, fired=True)


@pytest.mark.parametrize("name", ["redo", "continual-backprop"])
def test_layers_without_units_are_left_alone_only_if_they_are_named(name):
    (net, optimizer), _ = twins.pair(twins.Mlp)
    net.extra = torch.nn.Linear(6, 3).double()
    args = BASELINES[name]
    rest = {"heads": ["head", "value"], "inputs": torch.randn(2, 6).double(), "layers": net.layers, "batch": 8}
    made = {**rest, "fresh": lambda: net, "divergence": policy_divergence, "churn": {}}
    with pytest.raises(ValueError, match="extra makes none of the units"):
        args.build(net, optimizer, NoProjection(), **made)
    args.build(net, optimizer, NoProjection(), leave=["extra"], **made)


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
    train(methods, net, optimizer)
    assert len(held.calls) == (4 if when == "every" else 1)
    assert methods.react(DRAW, changed=True) == (when == "change")
    assert methods.react(DRAW, fired=True) == (when == "trigger")


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
    before = copy.deepcopy(net.state_dict())
    assert methods.react(DRAW, changed=True)
    fresh = twins.network(twins.Mlp, 99).state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(value, (fresh if name.startswith(("head", "value")) else before)[name]), name
    for name, parameter in net.named_parameters():
        state = optimizer.state[parameter]
        assert bool(state["exp_avg"].any()) != name.startswith(("head", "value"))
        assert state["step"].item() == 12


def test_decay_is_at_the_rate_of_each_group():
    net = twins.network(twins.Mlp, 1)
    groups = [{"params": [net.one.weight], "lr": 0.1}, {"params": [net.two.weight], "lr": 0.01}]
    optimizer = torch.optim.Adam(groups)
    before = copy.deepcopy(net.state_dict())
    build(InterveneArgs(("weight-decay",), decay=0.5), net, optimizer).before_step(DRAW, 0.0)
    for name, factor in (("one", 0.95), ("two", 0.995), ("head", 1.0)):
        assert torch.allclose(net.state_dict()[f"{name}.weight"], factor * before[f"{name}.weight"], rtol=1e-12)


def test_after_new_weights_methods_forget_the_old_ones():
    for other in ("l2-init", "churn", "continual-backprop", "trac"):
        for renewed in ("react", "weights_renewed"):
            (net, optimizer), _ = twins.pair(twins.Mlp)
            methods = build(InterveneArgs(("reset", other)), net, optimizer)
            train(methods, net, optimizer, change_at=99)
            methods.react(DRAW, changed=True) if renewed == "react" else methods.weights_renewed()
            state = methods.state_dict()["methods"][other]
            if other in ("l2-init", "trac"):
                start = state["initial" if other == "l2-init" else "start"]
                assert all(torch.equal(start[name], p) for name, p in net.named_parameters())
                assert other == "l2-init" or state["scale"] == 0.0
            elif other == "churn":
                assert state["copies"] == []
            else:
                assert not any(tensor.any() for one in state["method"]["layers"].values() for tensor in one.values())


def test_utilities_are_of_the_batch_that_is_learned_from_though_churn_looks_at_another():
    states = []
    for methods in (("continual-backprop",), ("churn", "continual-backprop")):
        (net, optimizer), _ = twins.pair(twins.Mlp)
        made = build(InterveneArgs(methods), net, optimizer)
        for x, y in twins.batches(twins.Mlp, 2):  # in the second update churn has an older network to look at
            optimizer.zero_grad()
            loss = twins.loss_of(net, x, y)
            loss.backward()
            made.before_step(lambda count: 100.0 * DRAW(count), loss.item())
            made.after_step()  # no step: weights are the same in both
        states.append(made.state_dict()["methods"]["continual-backprop"]["method"]["layers"])
    for layer, one in states[0].items():
        assert torch.allclose(one["utility"], states[1][layer]["utility"], rtol=1e-12)


def test_what_comes_with_every_update_is_no_event():
    (net, optimizer), _ = twins.pair(twins.Mlp)
    methods = build(BASELINES["soft-shrink-and-perturb"], net, optimizer)
    before = copy.deepcopy(net.state_dict())
    methods.before_step(DRAW, 0.0)
    assert not methods.after_step()
    assert any(not torch.equal(before[name], value) for name, value in net.state_dict().items())
