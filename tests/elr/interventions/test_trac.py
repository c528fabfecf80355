"""TRAC against its formula written out, and what it refuses."""

import copy
import math

import numpy as np
import pytest
import torch

from elr.fast.flat_adam import FlatAdam
from elr.flags import TriggeredSwitchArgs as SwitchArgs
from elr.interventions import Trac, policy_divergence
from elr.interventions.flags import BASELINES, InterveneArgs
from elr.interventions.trac import BETAS, erfi
from elr.measure import Meter
from elr.projection import NoProjection
from tests.elr.interventions import twins
from tests.elr.interventions.test_intervention_flags import check
from tests.elr.interventions.test_methods_against_twins import HEADS, RATE, LiteralAdam


def integral(x):
    """2 / sqrt(pi) times the integral of exp(t^2) from 0 to x, by Gauss and Legendre's rule."""
    nodes, weights = np.polynomial.legendre.leggauss(100)
    t = x * (nodes + 1) / 2
    return 2 / math.sqrt(math.pi) * float(weights @ np.exp(t * t)) * x / 2


def test_erfi_is_its_integral():
    for x in (1e-12, 0.01, 0.3, math.sqrt(0.5), 1.0, 2.5, 5.0, 8.0):
        assert erfi(x) == pytest.approx(integral(x), rel=1e-12)
        assert erfi(-x) == -erfi(x)
    assert erfi(1.0) == pytest.approx(1.6504257587975429, rel=1e-15)  # tables
    assert erfi(0.0) == 0.0 and erfi(27.0) == math.inf and erfi(-math.inf) == -math.inf and math.isnan(erfi(math.nan))
    assert 1e290 < erfi(26.0) < 1e293


def build(args, kind, net, optimizer):
    return args.build(
        net, optimizer, NoProjection(), layers=net.layers, heads=HEADS[kind], inputs=draw(kind, 2),
        fresh=lambda: twins.network(kind, 9), divergence=policy_divergence, batch=8, churn={},
    )  # fmt: skip


def draw(kind, count):
    return torch.zeros(count, *twins.SHAPES[kind], dtype=torch.float64)


def data(kind, count):
    """The same batch 60 times, so that displacements pay, and then others, whose labels are noise."""
    batches = list(twins.batches(kind, count))
    return [batches[0] if i < 60 else batch for i, batch in enumerate(batches)]


def update(made, net, optimizer, kind, batch):
    optimizer.zero_grad()
    loss = twins.loss_of(net, *batch)
    loss.backward()
    made.before_step(lambda count: draw(kind, count), loss.item())
    optimizer.step()
    made.after_step()


@pytest.mark.parametrize("kind", [twins.Mlp, twins.Cnn])
def test_a_hundred_updates_equal_the_formula_written_out(kind):
    net = twins.network(kind, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    made = build(BASELINES["trac"], kind, net, optimizer)
    twin, model = LiteralAdam(net), twins.network(kind, 3)
    start = dict(twin.w)
    v, sigma, scale, scales = np.zeros(6), np.full(6, 1e-8), 0.0, []
    for step, (x, y) in enumerate(data(kind, 100)):
        update(made, net, optimizer, kind, (x, y))

        model.load_state_dict(twin.w)
        found = torch.autograd.grad(twins.loss_of(model, x, y), list(model.parameters()))
        gradients = dict(zip(twin.w, found, strict=True))
        before = dict(twin.w)
        twin.step(gradients)
        delta = {name: (before[name] - start[name]) / (scale + 1e-8) for name in start}
        h = sum(float((delta[name] * gradients[name]).sum()) for name in start)
        betas = np.array([0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999])
        v, sigma = betas**2 * v + h**2, betas * sigma - h
        shares = [1e-8 / integral(1 / math.sqrt(2)) * integral(s) for s in sigma / (math.sqrt(2) * np.sqrt(v) + 1e-8)]
        scale = max(0.0, sum(shares))
        twin.w = {name: start[name] + scale * (delta[name] + twin.w[name] - before[name]) for name in start}

        scales.append(made.scalars()["intervene/trac_scale"])
        assert scales[-1] == pytest.approx(scale, rel=1e-8), step
        for name, p in net.named_parameters():
            assert torch.allclose(p, twin.w[name], rtol=0, atol=1e-9), (step, name)
            assert torch.allclose(optimizer.state[p]["exp_avg"], twin.m[name], rtol=0, atol=1e-9), (step, name)
    assert scales[0] == pytest.approx(sum(integral(beta) for beta in BETAS) * 1e-8 / integral(math.sqrt(0.5)))
    assert scales[59] > 1e-2 and min(scales[60:]) < 0.7 * max(scales)  # it grew, and fell
    assert max(float((twin.w[name] - start[name]).abs().max()) for name in start) > 0.01


@pytest.mark.parametrize("make", [torch.optim.Adam, FlatAdam])
def test_the_meter_measures_the_scaled_step(make):
    """What is recorded as the effective learning rate is the step that the weights take, not Adam's own."""
    net = twins.network(twins.Mlp, 3).float()
    optimizer = make(net.parameters(), lr=RATE, eps=1e-8)
    made = build(BASELINES["trac"], twins.Mlp, net, optimizer)
    meter = Meter({"two": net.two.weight}, every=1, optimizer=optimizer)
    for x, y in data(twins.Mlp, 40):
        optimizer.zero_grad()
        twins.loss_of(net, x.float(), y).backward()
        made.before_step(lambda count: draw(twins.Mlp, count), 0.0)
        before = net.two.weight.detach().clone()
        meter.before_step()
        optimizer.step()
        meter.after_step()
        made.after_step()
    moved = (net.two.weight - before).norm() / before.norm()
    assert meter.scalars()["elr/two"] == pytest.approx(moved.item(), rel=1e-4)
    own = RATE * math.sqrt(before.numel()) / before.norm()  # about Adam's, whose entries move by the rate at most
    assert 0 < moved < 0.3 * own


def one_weight(**changes):
    weight = torch.nn.Parameter(torch.tensor([2.0, 2.0], dtype=torch.float64))
    return weight, Trac({"w": weight}, **changes)


def move(trac, weight, step, gradient):
    """An optimiser's step, and TRAC's."""
    weight.grad = torch.tensor(gradient, dtype=torch.float64)
    trac.before_step()
    with torch.no_grad():
        weight += torch.tensor(step, dtype=torch.float64)
    trac.step_()


def test_a_displacement_that_does_not_pay_is_taken_back():
    weight, trac = one_weight(scale=0.1)
    move(trac, weight, [1.0, 0.0], [-1.0, 5.0])
    assert trac.scale > 0.1 and weight.tolist() == [2.0 + trac.scale, 2.0]
    move(trac, weight, [0.5, 0.0], [+1.0, 5.0])  # the loss grows along the displacement
    assert trac.scale == 0.0 and weight.tolist() == [2.0, 2.0]
    move(trac, weight, [0.5, 0.0], [-1.0, 0.0])  # there is no displacement to judge
    assert trac.scale == 0.0 and weight.tolist() == [2.0, 2.0]


def test_new_weights_are_the_new_start_as_for_a_new_trac():
    weight, trac = one_weight(scale=0.1)
    for _ in range(5):
        move(trac, weight, [1.0, -1.0], [-1.0, 1.0])
    with torch.no_grad():
        weight.copy_(torch.tensor([7.0, 8.0]))
    trac.remember_()
    other = torch.nn.Parameter(weight.detach().clone())
    new = Trac({"w": other}, scale=0.1)
    for _ in range(5):
        move(trac, weight, [1.0, 2.0], [-1.0, 0.5])
        move(new, other, [1.0, 2.0], [-1.0, 0.5])
    assert torch.equal(weight, other) and trac.scale == new.scale > 0.1


def test_a_parameter_without_gradient_is_left_alone():
    weight, idle = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    trac = Trac({"w": weight, "idle": idle}, scale=0.1)
    for _ in range(3):
        with torch.no_grad():
            idle += 1.0
        move(trac, weight, [1.0, 1.0], [-1.0, -1.0])
    assert idle.tolist() == [4.0, 4.0] and weight[0] > 1.1
    weight.grad = None
    trac.before_step()
    trac.step_()
    assert idle.tolist() == [4.0, 4.0]


def test_what_is_not_finite_stays_so():
    weight, trac = one_weight()
    move(trac, weight, [1.0, 1.0], [1.0, 1.0])
    move(trac, weight, [1.0, 1.0], [math.nan, 1.0])
    assert weight.isnan().all()


@pytest.mark.parametrize("kind", [twins.Mlp, twins.Cnn])
def test_saved_and_restored_it_continues_bit_for_bit(kind):
    batches = data(kind, 80)
    nets = []
    for stop in (80, 37):
        net = twins.network(kind, 3)
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
        made = build(InterveneArgs(("trac", "l2-init")), kind, net, optimizer)
        for batch in batches[:stop]:
            update(made, net, optimizer, kind, batch)
        if stop < 80:
            saved = copy.deepcopy([net.state_dict(), optimizer.state_dict(), made.state_dict()])
            net = twins.network(kind, 4)  # another start
            optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
            made = build(InterveneArgs(("trac", "l2-init")), kind, net, optimizer)
            for part, state in zip((net, optimizer, made), saved, strict=True):
                part.load_state_dict(state)
            for batch in batches[stop:]:
                update(made, net, optimizer, kind, batch)
        nets.append((net, made.state_dict()["methods"]["trac"]))
    (one, state), (other, restored) = nets
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert {name: state[name] for name in ("sums", "squares", "scale")} == {
        name: restored[name] for name in ("sums", "squares", "scale")
    }
    assert state["scale"] > 1e-3


def test_a_state_of_something_else_is_refused():
    _, trac = one_weight()
    state = trac.state_dict()
    for wrong, words in (
        ({**state, "start": {"v": torch.ones(2)}}, "build with the same network"),
        ({**state, "sums": [0.0] * 3}, "of 3 betas, and this Trac has 6"),
        ({"start": state["start"]}, "state has keys"),
    ):
        with pytest.raises(ValueError, match=words):
            trac.load_state_dict(wrong)


@pytest.mark.parametrize("flags", [{"betas": ()}, {"betas": (0.9, 1.0)}, {"scale": 0.0}, {"scale": math.inf}])
def test_bad_arguments_are_refused(flags):
    with pytest.raises(ValueError, match="betas must lie in"):
        one_weight(**flags)
    with pytest.raises(ValueError, match="at least one named parameter"):
        Trac({})


def test_a_step_without_the_weights_before_it_is_refused():
    weight, trac = one_weight()
    move(trac, weight, [1.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="call before_step before each optimiser step"):
        trac.step_()


@pytest.mark.parametrize("other", [
    "reset-head", "shrink-and-perturb", "fire", "redo", "continual-backprop", "weight-clipping",
])  # fmt: skip
def test_methods_that_move_single_weights_are_refused(other):
    for names in (("trac", other), (other, "l2-init", "trac")):
        with pytest.raises(ValueError, match=r"both decide where weights are after an update: give one"):
            check(InterveneArgs(names))


def test_what_else_decides_about_weights_is_refused_and_the_rest_is_not():
    trac = InterveneArgs(("trac",))
    with pytest.raises(ValueError, match=r"trac and --nap.enabled both decide"):
        check(trac, projected=True)
    for kind in ("shrink-and-perturb", "reset-head"):
        with pytest.raises(ValueError, match=r"--switch.intervention makes only some of them new; give reset"):
            check(trac, switch=SwitchArgs(intervention=kind))
    check(trac, switch=SwitchArgs(intervention="reset"))
    check(trac, switch=SwitchArgs(fresh_agent=True))
    for other in ("reset", "local-time", "l2-init", "churn", "weight-decay"):
        check(InterveneArgs(("trac", other)))
        check(InterveneArgs((other, "trac")))


def test_weight_decay_is_part_of_the_step_whatever_the_order():
    results = []
    for names in (("trac", "weight-decay"), ("weight-decay", "trac"), ("trac",)):
        net = twins.network(twins.Mlp, 3)
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
        args = InterveneArgs(names, **({"decay": 1.0} if len(names) > 1 else {}))
        made = build(args, twins.Mlp, net, optimizer)
        for batch in data(twins.Mlp, 60):
            update(made, net, optimizer, twins.Mlp, batch)
        results.append(list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert max(float((a - b).detach().abs().max()) for a, b in zip(results[0], results[2], strict=True)) > 1e-3
