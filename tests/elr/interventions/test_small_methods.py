"""FIRE, weight clipping, local time, CReLU, churn reduction and the gradient of L2-init."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from elr.fast.flat_adam import FlatAdam
from elr.interventions import (
    ChurnReduction,
    CReLU,
    L2Init,
    WeightClipping,
    fire_,
    policy_divergence,
    restart_local_time_,
    value_divergence,
)
from elr.interventions.fire import newton_schulz, polar
from tests.elr.interventions import twins

# FIRE


@pytest.mark.parametrize("kind", [twins.Mlp, twins.Cnn])
def test_fire_makes_weights_orthogonal_and_the_nearest_such(kind):
    net = twins.network(kind, 1)
    before = copy.deepcopy(net.state_dict())
    assert set(fire_(net, leave=["head"])) == {
        name for name, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and name != "head"
    }
    for name, weight in net.state_dict().items():
        if weight.ndim < 2 or name.startswith("head"):
            assert torch.equal(weight, before[name])
            continue
        matrices = weight.numpy().reshape(*weight.shape[:2], -1)
        old = before[name].numpy().reshape(*weight.shape[:2], -1)
        positions = matrices.shape[2]
        for k in range(positions):
            scale = math.sqrt(weight.shape[0] / weight.shape[1]) / positions
            w, o = matrices[:, :, k] / scale, old[:, :, k]
            small = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            assert np.allclose(small, np.eye(len(small)), atol=1e-10)
            eigen, vectors = np.linalg.eigh(o.T @ o)  # W (W^T W)^(-1/2), on the space where it is defined
            inverse = vectors @ np.diag([e**-0.5 if e > 1e-12 else 0.0 for e in eigen]) @ vectors.T
            assert np.allclose(w, o @ inverse, atol=1e-8)


def test_newton_and_schulz_come_near_where_singular_values_are_not_small():
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(3, 8, 20, generator=generator, dtype=torch.float64)
    for matrices in (wide, wide.mT):
        ten, thirty, exact = newton_schulz(matrices, 10), newton_schulz(matrices, 30), polar(matrices)
        assert (thirty - exact).abs().max() < 1e-9 and (ten - exact).abs().max() < 0.3
    x = wide[0] / wide[0].norm()
    assert torch.allclose(newton_schulz(wide[0], 1), 1.5 * x - 0.5 * (x @ x.T) @ x)
    assert not newton_schulz(torch.zeros(3, 2), 5).any()


def test_fire_twice_is_fire_once_and_its_refusals():
    net = twins.network(twins.Mlp, 1)
    fire_(net)
    once = copy.deepcopy(net.state_dict())
    fire_(net)
    assert all(torch.allclose(once[name], value, atol=1e-12) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match=r"leave names \['heads'\], which do not exist"):
        fire_(net, leave=["heads"])
    with pytest.raises(ValueError, match="nothing to change"):
        fire_(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        fire_(net, iterations=0)
    with torch.no_grad():
        net.two.weight[0, 0] = math.nan
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="the weight of two is not finite"):
        fire_(net)
    assert all(torch.equal(before[n], v) or n == "two.weight" for n, v in net.state_dict().items())


# weight clipping


@pytest.mark.parametrize("kind", [twins.Mlp, twins.Cnn])
def test_a_hundred_clipped_steps_equal_a_literal_twin(kind):
    (net, optimizer), (twin, twin_optimizer) = twins.pair(kind)
    clipping, parameters, clipped = WeightClipping(net, kappa=1.2, leave=["head"]), dict(twin.named_parameters()), 0
    for x, y in twins.batches(kind, 100):
        for one, opt in ((net, optimizer), (twin, twin_optimizer)):
            opt.zero_grad()
            twins.loss_of(one, x, y).backward()
            opt.step()
        clipping.clip_()
        for name, module in twin.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and name != "head":
                bound = 1.2 / math.sqrt(np.prod(module.weight.shape[1:]))
                for tensor in (parameters[f"{name}.weight"], parameters.get(f"{name}.bias")):
                    if tensor is not None:
                        clipped += int((tensor.abs() > bound).sum())
                        tensor.data = tensor.data.clip(-bound, bound)
        twins.assert_equal(net, twin, optimizer, twin_optimizer, atol=0)
    assert clipped > 100 and 0 < clipping.clipped_fraction() < 1


def test_clipping_beyond_every_weight_changes_no_bit_and_refusals():
    net = twins.network(twins.Cnn, 1)
    before = copy.deepcopy(net.state_dict())
    WeightClipping(net, kappa=1.0001).clip_()  # torch initialises within 1 / sqrt(fan_in)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    WeightClipping(net, kappa=0.5).clip_()
    assert net.conv1.weight.abs().max().item() == pytest.approx(0.5 / math.sqrt(18))
    for flags, message in (({"kappa": 0.0}, "kappa must be positive"), ({"leave": ["no"]}, "leave names")):
        with pytest.raises(ValueError, match=message):
            WeightClipping(net, **flags)
    with pytest.raises(ValueError, match="no trained weight or bias"):
        WeightClipping(nn.LayerNorm(3))


# local time


@pytest.mark.parametrize("flat", [False, True])
def test_local_time_equals_a_literal_adam_whose_count_begins_again(flat):
    torch.manual_seed(0)
    net = nn.Linear(5, 3).double()
    make = FlatAdam if flat else torch.optim.Adam
    optimizer = make(net.parameters(), lr=0.01, eps=1e-8)
    twin = [p.detach().clone() for p in net.parameters()]
    m, v, t = [torch.zeros_like(p) for p in twin], [torch.zeros_like(p) for p in twin], 0
    for step in range(100):
        x = torch.randn(8, 5, dtype=torch.float64) * (1 + 50 * (step >= 50))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        grads = [p.grad.clone() for p in net.parameters()]
        optimizer.step()
        t += 1
        for p, g, one, two in zip(twin, grads, m, v, strict=True):
            one.mul_(0.9).add_(0.1 * g)
            two.mul_(0.999).add_(0.001 * g * g)
            p -= 0.01 * (one / (1 - 0.9**t)) / ((two / (1 - 0.999**t)).sqrt() + 1e-8)
        if step == 50:
            restart_local_time_(optimizer)
            t = 0
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(net.parameters(), twin, strict=True))


def test_optimisers_without_a_count_are_refused():
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="SGD corrects no moments"):
        restart_local_time_(optimizer)
    restart_local_time_(torch.optim.Adam(net.parameters()))  # before its first step there is nothing to restart


# CReLU


def test_crelu_has_both_halves_and_always_a_gradient():
    x = torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True)
    out = CReLU()(x)
    assert out.tolist() == [[1.0, 0.0, 0.5, 0.0, 2.0, 0.0]]
    out.sum().backward()
    assert x.grad.tolist() == [[1.0, -1.0, 1.0]]
    assert CReLU(dim=1)(torch.zeros(2, 3, 4, 4)).shape == (2, 6, 4, 4)


# L2-init


def test_the_gradient_added_is_that_of_the_penalty():
    (net, optimizer), (twin, twin_optimizer) = twins.pair(twins.Cnn)
    pulls = [L2Init(dict(one.named_parameters()), 0.01) for one in (net, twin)]
    for x, y in twins.batches(twins.Cnn, 100):
        optimizer.zero_grad(), twin_optimizer.zero_grad()
        twins.loss_of(net, x, y).backward()
        pulls[0].add_gradient_()
        (twins.loss_of(twin, x, y) + pulls[1].penalty()).backward()
        optimizer.step(), twin_optimizer.step()
    twins.assert_equal(net, twin, optimizer, twin_optimizer, atol=1e-9)
    net.zero_grad(set_to_none=True)
    with pytest.raises(ValueError, match="have no gradient"):
        pulls[0].add_gradient_()


# churn


def cross_entropy(now, before):
    p, q = torch.softmax(before[0], -1), torch.softmax(now[0], -1)
    return -(p * q.log()).sum(-1).mean()


def squares(now, before):
    return (now[0] - before[0]).square().mean()


@pytest.mark.parametrize("kind", [twins.Mlp, twins.Cnn])
@pytest.mark.parametrize(("divergence", "literal"), [(policy_divergence, cross_entropy), (value_divergence, squares)])
@pytest.mark.parametrize("lag", [1, 2])
def test_a_hundred_steps_with_reduced_churn_equal_a_literal_twin(kind, divergence, literal, lag):
    (net, optimizer), (twin, twin_optimizer) = twins.pair(kind)
    settings = {"ratio": 0.5, "lag": lag, "start": 2.0, "window": 20, "warmup": 5, "least": 0.1, "block": 3}
    churn, history, losses, values, part = ChurnReduction(net, divergence, **settings), [copy.deepcopy(net)], [], [], []
    strengths = []
    for step, ((x, y), (ref, _)) in enumerate(
        zip(twins.batches(kind, 100), twins.batches(kind, 100, seed=8), strict=True)
    ):
        optimizer.zero_grad()
        loss = twins.loss_of(net, x, y)
        loss.backward()
        measured = churn.add_gradient_(ref, loss.item())
        optimizer.step()
        if step == 40:  # killed and resumed
            state = copy.deepcopy(churn.state_dict())
            churn = ChurnReduction(net, divergence, **settings)
            churn.load_state_dict(state)

        twin_optimizer.zero_grad()
        plain = twins.loss_of(twin, x, y)
        total = plain
        if len(history) > lag:
            with torch.no_grad():
                before = history[-lag - 1](ref)
            strength = 2.0
            if len(values) >= 5:
                recent = [abs(one) for one in losses[-20:]], values[-20:]
                strength = max(0.1, 0.5 * np.mean(recent[0]) / (np.mean(recent[1]) + 1e-8))
            strengths.append(strength)
            d = literal(twin(ref), before)
            total = plain + strength * d
            assert measured == pytest.approx(d.item(), rel=1e-6, abs=1e-15)
        part.append((plain.item(), d.item() if len(history) > lag else 0.0))
        if len(part) == 3:
            losses.append(np.mean([one for one, _ in part])), values.append(np.mean([one for _, one in part]))
            part = []
        total.backward()
        twin_optimizer.step()
        history.append(copy.deepcopy(twin))
        twins.assert_equal(net, twin, optimizer, twin_optimizer, atol=1e-9, rtol=1e-7)
    assert len(set(strengths)) > 20  # the ratio set it, and not `start` or `least` throughout


def test_churn_falls():
    """What the method claims: outputs on other inputs move less per step."""
    moved = {}
    for ratio in (None, 100.0):
        (net, optimizer), _ = twins.pair(twins.Mlp)
        churn = ChurnReduction(net, policy_divergence, ratio=ratio or 1.0, start=5.0, warmup=5)
        changes = []
        for (x, y), (ref, _) in zip(twins.batches(twins.Mlp, 100), twins.batches(twins.Mlp, 100, seed=8), strict=True):
            before = net(ref)[0].softmax(-1).detach()
            optimizer.zero_grad()
            loss = twins.loss_of(net, x, y)
            loss.backward()
            if ratio:
                churn.add_gradient_(ref, loss.item())
            optimizer.step()
            changes.append((net(ref)[0].softmax(-1) - before).abs().mean().item())
        moved[ratio] = np.mean(changes[20:])
    assert moved[100.0] < 0.7 * moved[None]


@pytest.mark.parametrize(
    "flags", [{"ratio": 0.0}, {"ratio": 1.0, "lag": 0}, {"ratio": 1.0, "warmup": 60}, {"ratio": 1.0, "least": -1.0}]
)
def test_bad_arguments_of_churn_reduction_are_refused(flags):
    with pytest.raises(ValueError, match="ratio must be positive"):
        ChurnReduction(nn.Linear(2, 2), policy_divergence, **flags)


def test_a_state_of_another_network_is_refused():
    churn = ChurnReduction(net := nn.Linear(2, 2), value_divergence, ratio=1.0)
    net(torch.ones(1, 2)).sum().backward()
    churn.add_gradient_(torch.ones(1, 2), 1.0)
    with pytest.raises(ValueError, match="of another network"):
        ChurnReduction(nn.Linear(3, 2), value_divergence, ratio=1.0).load_state_dict(churn.state_dict())
