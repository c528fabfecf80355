"""Each flag reaches its method, each method what it should change; what cannot work is refused at the start."""

import copy
import math

import pytest
import torch
from torch import nn

from elr.flags import TriggeredSwitchArgs as SwitchArgs
from elr.interventions import (
    ChurnReduction,
    ContinualBackprop,
    ReDo,
    WeightClipping,
    fire_,
    policy_divergence,
    restart_local_time_,
)
from elr.interventions.fire import newton_schulz, polar
from elr.interventions.flags import InterveneArgs
from elr.interventions.methods import Recycle
from tests.elr.interventions import twins
from tests.elr.interventions.test_intervention_flags import DRAW, build, check, train


def mlp():
    return twins.pair(twins.Mlp)[0]


def test_flags_reach_their_method():
    net, optimizer = mlp()
    assert build(InterveneArgs(("l2-init",), pull=0.7), net, optimizer)._methods["l2-init"]._pull.strength == 0.7
    assert build(InterveneArgs(("churn",), ratio=7.0), net, optimizer)._methods["churn"]._churn.ratio == 7.0
    old, fresh = copy.deepcopy(net), twins.network(twins.Mlp, 99)
    build(InterveneArgs(("shrink-and-perturb",), shrink=0.9, perturb=0.3), net, optimizer).react(DRAW, changed=True)
    for now, before, new in zip(net.parameters(), old.parameters(), fresh.parameters(), strict=True):
        assert torch.allclose(now, 0.9 * before + 0.3 * new, atol=1e-12)


def test_a_reset_restarts_the_optimiser():
    net, optimizer = mlp()
    train(build(InterveneArgs(), net, optimizer), net, optimizer)
    build(InterveneArgs(("reset",)), net, optimizer).react(DRAW, changed=True)
    assert not any(tensor.any() for state in optimizer.state.values() for tensor in state.values())


def test_recycled_units_and_reset_heads_start_adagrads_sum_as_a_new_optimiser_does():
    net = twins.network(twins.Mlp, 1)
    optimizer = torch.optim.Adagrad(net.parameters(), lr=0.1, initial_accumulator_value=0.5)
    train(build(InterveneArgs(), net, optimizer), net, optimizer)
    hidden, head = (optimizer.state[p]["sum"] for p in (net.one.weight, net.head.weight))
    assert (hidden > 0.5).any() and (head > 0.5).all()
    build(InterveneArgs(("redo",), when="change", tau=1e9), net, optimizer).react(DRAW, changed=True)
    assert (hidden == 0.5).all()
    train(build(InterveneArgs(), net, optimizer), net, optimizer)
    build(InterveneArgs(("reset-head",)), net, optimizer).react(DRAW, changed=True)
    assert (head == 0.5).all()


class CountsProjections:
    def __init__(self):
        self.projections = 0

    def project_(self):
        self.projections += 1


@pytest.mark.parametrize(("tau", "recycles"), [(1e9, True), (0.0, False)])
def test_weights_are_projected_after_recycling_which_is_an_event(tau, recycles):
    net, _ = mlp()
    with torch.no_grad():
        net.one.bias.fill_(5.0), net.two.bias.fill_(5.0)  # every unit is active
    held = CountsProjections()
    method = Recycle(ReDo(net, net.layers, DRAW(2), tau=tau), held)
    assert method.act(DRAW(8), lambda: twins.network(twins.Mlp, 5)) is recycles
    assert held.projections == recycles == (method.scalars()["intervene/recycled"] > 0)


@pytest.mark.parametrize(("name", "flags"), [
    ("redo", {"when": "change", "tau": 1e9}), ("continual-backprop", {"rate": 1.0, "maturity": 0}),
])  # fmt: skip
def test_recycled_units_have_no_moments(name, flags):
    net, optimizer = mlp()
    train(build(InterveneArgs(), net, optimizer), net, optimizer)
    methods = build(InterveneArgs((name,), **flags), net, optimizer)
    net(DRAW(8))
    methods.before_step(DRAW, 0.0)
    methods.react(DRAW, changed=True)
    methods.after_step()
    assert not optimizer.state[net.one.weight]["exp_avg"].any()
    assert next(iter(methods.scalars().values())) > 0


def test_fire_leaves_the_heads():
    net, optimizer = mlp()
    before = copy.deepcopy(net.state_dict())
    build(InterveneArgs(("fire",)), net, optimizer).react(DRAW, changed=True)
    assert torch.equal(net.head.weight, before["head.weight"])
    assert not torch.equal(net.two.weight, before["two.weight"])


def test_fire_leaves_a_broken_network_to_the_check_of_the_loop():
    net, optimizer = mlp()
    methods = build(InterveneArgs(("fire",)), net, optimizer)
    with torch.no_grad():
        net.one.weight[0, 0] = torch.nan
    assert not methods.react(DRAW, changed=True)


class Normed(twins.Mlp):
    """With a LayerNorm."""

    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12))


def test_norm_layers_are_neither_decayed_nor_pulled():
    net = Normed().double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    build(InterveneArgs(("weight-decay",), decay=0.5), net, optimizer).before_step(DRAW, 0.0)
    assert (net.one[1].weight == 1).all()
    pull = build(InterveneArgs(("l2-init",)), net, optimizer)._methods["l2-init"]._pull
    pulled = pull.state_dict()["initial"]
    assert "one.0.weight" in pulled
    assert not [name for name in pulled if name.startswith("one.1")]


def test_a_change_of_the_task_restarts_the_averages_of_churn():
    net, optimizer = mlp()
    methods = build(InterveneArgs(("churn",)), net, optimizer)
    methods._methods["churn"]._churn.block = 7  # so that a part of a block is left
    train(methods, net, optimizer, change_at=99)
    assert methods.state_dict()["methods"]["churn"]["part"]
    methods.react(DRAW, changed=True)
    state = methods.state_dict()["methods"]["churn"]
    assert state["losses"] == state["divergences"] == state["part"] == []
    assert len(state["copies"]) == 1


def test_the_strength_of_churn_never_falls_below_its_least():
    net, _ = mlp()
    churn = ChurnReduction(net, policy_divergence, ratio=1e-9, warmup=1, least=50.0, start=3.0)
    assert churn.strength == 3.0
    for _ in range(3):
        torch.nn.functional.cross_entropy(net(DRAW(8))[0], torch.arange(8) % 3).backward()
        churn.add_gradient_(DRAW(8), 1.0)
    assert churn.strength == 50.0


def test_dead_units_are_recycled_at_tau_0():
    net = twins.network(twins.Mlp, 1)
    with torch.no_grad():
        net.one.bias[4] = -50.0
    redo = ReDo(net, ["relu1"], torch.randn(2, 6).double(), tau=0.0)
    assert redo.step_(torch.randn(64, 6).double(), twins.network(twins.Mlp, 5))["relu1"] >= 1


def test_fire_takes_each_group_by_itself_and_iterates_as_told():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 1, groups=2).double()
    old = conv.weight.detach().clone()
    fire_(conv)
    for rows in (slice(0, 3), slice(3, 6)):
        assert torch.allclose(conv.weight[rows, :, 0, 0], math.sqrt(3 / 2) * polar(old[rows, :, 0, 0]))
    linear = nn.Linear(5, 5, bias=False).double()
    old = linear.weight.detach().clone()
    fire_(linear, iterations=2)
    assert torch.allclose(linear.weight, newton_schulz(old, 2))


def test_frozen_weights_are_left_by_fire_and_clipping():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[0].requires_grad_(False)
    old = net[0].weight.clone()
    assert fire_(net) == ["1"]
    WeightClipping(net, kappa=1e-3).clip_()
    assert torch.equal(net[0].weight, old)


def test_local_time_of_nadam_and_of_counts_in_groups():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.NAdam([parameter])
    parameter.sum().backward()
    optimizer.step()
    restart_local_time_(optimizer)
    assert optimizer.state[parameter]["step"] == 0
    assert optimizer.state[parameter]["mu_product"] == 1
    optimizer.param_groups[0]["step"] = 3
    with pytest.raises(ValueError, match="in its groups"):
        restart_local_time_(optimizer)


def test_flags_that_clash_and_flags_that_do_not():
    check(InterveneArgs(("reset",), when="every", every=5), switch=SwitchArgs(intervention="reset"))
    with pytest.raises(ValueError, match="fires by itself, not switch"):
        check(InterveneArgs(("fire",), when="trigger"), trigger="switch")
    with pytest.raises(ValueError, match=r"weight-decay and --nap.enabled"):
        check(InterveneArgs(("weight-decay",)), projected=True)


@pytest.mark.parametrize("name", ["redo", "continual-backprop", "reset"])
def test_a_frozen_layer_is_refused_when_the_method_is_built(name):
    net, _ = mlp()
    net.two.weight.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad])
    with pytest.raises(ValueError, match="does not hold"):
        build(InterveneArgs((name,)), net, optimizer)


def test_shrink_and_perturb_refuses_frozen_weights():
    net, optimizer = mlp()
    net.two.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"these are frozen: two.weight"):
        build(InterveneArgs(("shrink-and-perturb",)), net, optimizer)


def test_local_time_refuses_an_optimiser_that_is_not_adam_when_it_is_built():
    net, _ = mlp()
    with pytest.raises(ValueError, match="not of RMSprop"):
        build(InterveneArgs(("local-time",)), net, torch.optim.RMSprop(net.parameters()))


@pytest.mark.parametrize("name", ["redo", "continual-backprop"])
def test_a_hidden_layer_that_is_not_listed_is_refused(name, monkeypatch):
    net, optimizer = mlp()
    with pytest.raises(ValueError, match=r"two makes none of the units of relu1"):
        net.layers = ["relu1"]
        build(InterveneArgs((name,)), net, optimizer)


class ValueFirst(twins.Mlp):
    """A copy of an actor and critic whose first output is the value."""

    def forward(self, x):
        logits, other = super().forward(x)
        return other, logits


def test_churn_refuses_a_network_that_returns_its_value_first():
    net = ValueFirst().double()
    with pytest.raises(ValueError, match=r"first output is \(\d+,\), not logits"):
        build(InterveneArgs(("churn",)), net, torch.optim.Adam(net.parameters()))
    with pytest.raises(ValueError, match="not logits"):
        policy_divergence(torch.zeros(8, 1), torch.zeros(8, 1))


def test_utilities_are_means_over_all_passes_of_an_update():
    (net, _), (twin, _) = twins.pair(twins.Mlp)
    made = [ContinualBackprop(one, one.layers, torch.randn(2, 6).double()) for one in (net, twin)]
    x = torch.randn(12, 6).double()
    for part in (x[:2], x[2:5], x[5:]):
        net(part)
    twin(x)
    for one in made:
        one.step_(lambda: twins.network(twins.Mlp, 5))
    one, other = (method.state_dict()["layers"] for method in made)
    for layer in one:
        for number in ("utility", "mean"):
            assert torch.allclose(one[layer][number], other[layer][number], rtol=1e-12)
            assert other[layer][number].any()


class Embedded(twins.Mlp):
    """With a linear layer before the first that has units."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 6)

    def forward(self, x):
        return super().forward(self.embed(x))


@pytest.mark.parametrize("name", ["redo", "continual-backprop"])
def test_a_layer_that_is_not_listed_may_be_frozen(name):
    net = Embedded().double()
    with pytest.raises(ValueError, match=r"embed makes none of the units"):
        build(InterveneArgs((name,)), net, torch.optim.Adam(net.parameters()))
    net.embed.requires_grad_(False)
    build(InterveneArgs((name,)), net, torch.optim.Adam([p for p in net.parameters() if p.requires_grad]))
