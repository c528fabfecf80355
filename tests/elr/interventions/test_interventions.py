"""Interventions: values by hand, the authors' code as a twin, the optimiser's state, training afterwards, refusals."""

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from elr.interventions import L2Init, reset_, shrink_and_perturb_
from elr.moments import reset_moments_

Optimizer = torch.optim.Optimizer


class Net(nn.Module):
    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width, bias=False), nn.BatchNorm1d(width), nn.Tanh())
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def network(seed: int = 0, make: Callable[[], nn.Module] = Net) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def train(net: nn.Module, optimizer: Optimizer, updates: range, penalty: Callable[[], Tensor | float] = float) -> float:
    """Return the last loss."""
    for update in updates:
        x = torch.randn(32, 3, generator=torch.Generator().manual_seed(update))
        loss = (net(x) - x.sum(1, keepdim=True).sin()).square().mean()
        optimizer.zero_grad()
        (loss + penalty()).backward()
        optimizer.step()
    return float(loss.detach())


def flat_adam(parameters, shared_step: bool = False) -> Optimizer:
    """Adam whose moments are views of one vector each, as in `elr.fast.flat_adam`."""
    parameters = list(parameters)
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    first, second = (torch.zeros(sum(p.numel() for p in parameters)) for _ in range(2))
    steps, start = torch.zeros(len(parameters)), 0
    for i, p in enumerate(parameters):
        m, v = (flat[start : start + p.numel()].view_as(p) for flat in (first, second))
        optimizer.state[p] = {"step": steps[0 if shared_step else i], "exp_avg": m, "exp_avg_sq": v}
        start += p.numel()
    return optimizer


OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "fused": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True, weight_decay=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2),
    "flat": flat_adam,
}


def snapshot(*networks: nn.Module) -> list[Tensor]:
    return [tensor.clone() for net in networks for tensor in net.state_dict().values()]


def kept(optimizer: Optimizer) -> list[Tensor]:
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]


def equal(one, other) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


def bits(parameters) -> list[Tensor]:
    return [p.detach().clone().view(torch.int32) for p in parameters]


def set_(layer: nn.Linear, weight: list[float], bias: float) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weight]))
        layer.bias.fill_(bias)


def test_shrink_and_perturb_by_hand():
    net, fresh = nn.Linear(2, 1), nn.Linear(2, 1)
    set_(net, [2.0, -4.0], 1.0)
    set_(fresh, [10.0, 20.0], -10.0)
    shrink_and_perturb_(net, fresh, shrink=0.5, perturb=0.1)
    torch.testing.assert_close(net.weight.detach(), torch.tensor([[2.0, 0.0]]))
    torch.testing.assert_close(net.bias.detach(), torch.tensor([-0.5]))


def authors_shrink_perturb(net: nn.Module, new_init: nn.Module, shrink: float, perturb: float) -> nn.Module:
    """The rule as the authors apply it: the new network takes the mixed parameters, and is used from then on."""
    new_init = copy.deepcopy(new_init)
    for new, old in zip(new_init.parameters(), net.parameters(), strict=True):
        new.data = shrink * old.data + perturb * new.data
    return new_init


@pytest.mark.parametrize(("shrink", "perturb"), [(0.4, 0.1), (1.0, 0.0), (0.0, 1.0), (0.999999, 1e-6)])
def test_shrink_and_perturb_equals_the_authors_code_with_its_buffers(shrink, perturb):
    net, fresh = network(0), network(1)
    train(net, OPTIMIZERS["adam"](net.parameters()), range(20))
    fresh.body[1].running_mean.fill_(0.25)  # not what any reset would make of it
    before, twin = snapshot(fresh), authors_shrink_perturb(net, fresh, shrink, perturb)
    places = [tensor.data_ptr() for tensor in (*net.parameters(), *net.buffers())]
    assert net.body[1].num_batches_tracked == 20 and not torch.equal(net.body[1].running_var, torch.ones(5))
    shrink_and_perturb_(net, fresh, shrink=shrink, perturb=perturb)
    torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=1e-6, atol=1e-7)
    assert net.body[1].num_batches_tracked == 0 and equal(net.buffers(), fresh.buffers())
    assert [tensor.data_ptr() for tensor in (*net.parameters(), *net.buffers())] == places
    assert equal(snapshot(fresh), before)


def test_the_two_ends_are_exact():
    net, fresh = network(0), network(1)
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[1e-42, -0.0, -0.0, -0.0, -0.0]]))
        fresh.head.weight.fill_(0.5)  # -0.0 + 0 * 0.5 would be 0.0
    before = bits(net.parameters())
    shrink_and_perturb_(net, fresh, shrink=1.0, perturb=0.0)
    assert equal(bits(net.parameters()), before)
    with torch.no_grad():
        net.head.weight[0, :2] = torch.tensor([math.nan, -math.inf])
    copied = copy.deepcopy(net)
    shrink_and_perturb_(net, fresh, shrink=0.0, perturb=1.0)
    reset_(copied, fresh)
    assert equal(snapshot(net), snapshot(copied)) and equal(snapshot(net), snapshot(fresh))


def test_a_tied_tensor_is_mixed_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.decode.weight = self.encode.weight

    net, fresh = network(0, Tied), network(1, Tied)
    before = net.encode.weight.detach().clone()
    shrink_and_perturb_(net, fresh, shrink=0.5, perturb=0.0)
    torch.testing.assert_close(net.decode.weight.detach(), 0.5 * before)
    reset_(net, fresh, modules=["decode"])
    assert torch.equal(net.encode.weight, fresh.encode.weight)


@pytest.mark.parametrize(
    ("modules", "changed"),
    [
        (["head"], {"head.weight", "head.bias"}),
        (["body.1"], {f"body.1.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}),
        (["body.0", "body"], {key for key in Net().state_dict() if key.startswith("body")}),
        (None, set(Net().state_dict())),
    ],
)
def test_reset_copies_the_named_modules_and_nothing_else(modules, changed):
    net, fresh = network(0), network(1)
    train(net, OPTIMIZERS["adam"](net.parameters()), range(20))
    before = copy.deepcopy(net.state_dict())
    reset_(net, fresh, modules=modules)
    for key, value in net.state_dict().items():
        assert torch.equal(value, (fresh.state_dict() if key in changed else before)[key])
        assert torch.equal(value, before[key]) is (key not in changed)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_reset_parameters_step_as_with_a_new_optimiser_and_others_as_before(kind):
    net = network()
    optimizer = OPTIMIZERS[kind](net.parameters())
    train(net, optimizer, range(20))
    other_net, other = copy.deepcopy((net, optimizer))
    new_net = copy.deepcopy(net)
    assert kind == "sgd" or all(value.any() for value in kept(optimizer))
    places = [value.data_ptr() for value in kept(optimizer)]

    reset_moments_(optimizer, net.head.parameters())
    for p, q in zip(net.parameters(), other_net.parameters(), strict=True):
        in_head = any(p is r for r in net.head.parameters())
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, torch.zeros_like(value) if in_head else other.state[q][key])
    assert [value.data_ptr() for value in kept(optimizer)] == places

    new = OPTIMIZERS[kind](new_net.parameters())
    for each, its_optimizer in ((net, optimizer), (other_net, other), (new_net, new)):
        train(each, its_optimizer, range(20, 21))
    assert equal(net.head.parameters(), new_net.head.parameters())
    assert equal(net.body.parameters(), other_net.body.parameters())
    if kind != "sgd":
        assert not equal(net.head.parameters(), other_net.head.parameters())
        assert not equal(net.body.parameters(), new_net.body.parameters())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_naming_all_parameters_equals_naming_none(kind):
    net = network()
    optimizer = OPTIMIZERS[kind](net.parameters())
    train(net, optimizer, range(3))
    other = copy.deepcopy(optimizer)
    reset_moments_(optimizer, net.parameters())
    reset_moments_(other)
    assert equal(kept(optimizer), kept(other)) and not any(value.any() for value in kept(optimizer))


def test_a_parameter_without_state_and_plain_step_counts():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p, q], lr=0.1)
    optimizer.state[p] = {"step": 7, "exp_avg": torch.ones(2), "momentum_buffer": None}
    reset_moments_(optimizer, [p, q])
    assert optimizer.state[p]["step"] == 0 and optimizer.state[p]["momentum_buffer"] is None
    assert not optimizer.state[p]["exp_avg"].any() and q not in optimizer.state


INTERVENTIONS = {
    "shrink-and-perturb": lambda net, fresh, opt, moments: shrink_and_perturb_(
        net, fresh, shrink=0.4, perturb=0.1, optimizer=opt, moments=moments
    ),
    "reset": lambda net, fresh, opt, moments: reset_(net, fresh, optimizer=opt, moments=moments),
    "reset-head": lambda net, fresh, opt, moments: reset_(
        net, fresh, modules=["head"], optimizer=opt, moments=moments
    ),
}  # fmt: skip


@pytest.mark.parametrize("moments", ["keep", "reset"])
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_50_updates_before_and_after(name, moments):
    net, fresh = network(0), network(1)
    optimizer = OPTIMIZERS["adam"](net.parameters())
    train(net, optimizer, range(50))
    before, memory = copy.deepcopy(net), [value.clone() for value in kept(optimizer)]
    INTERVENTIONS[name](net, fresh, optimizer, moments)

    changed = list(net.head.parameters()) if name == "reset-head" else list(net.parameters())
    for p, old, new in zip(net.parameters(), before.parameters(), fresh.parameters(), strict=True):
        mixed = 0.4 * old + 0.1 * new if name == "shrink-and-perturb" else new
        is_changed = any(p is each for each in changed)
        torch.testing.assert_close(p.detach(), (mixed if is_changed else old).detach())
        assert optimizer.state[p]["step"] == (0 if is_changed and moments == "reset" else 50)
        assert bool(optimizer.state[p]["exp_avg"].any()) is not (is_changed and moments == "reset")
    assert moments == "reset" or equal(kept(optimizer), memory)

    start = copy.deepcopy(net)
    first = train(net, optimizer, range(50, 51))
    assert train(net, optimizer, range(51, 100)) < 0.9 * first
    assert all((p - q).abs().min() > 0 for p, q in zip(net.parameters(), start.parameters(), strict=True))


def test_l2_init_by_hand_and_as_in_the_authors_code():
    parameters = {"w": nn.Parameter(torch.tensor([[1.0, -2.0]])), "b": nn.Parameter(torch.tensor([0.5]))}
    l2_init = L2Init(parameters, 0.1)
    assert float(l2_init.penalty().detach()) == 0.0
    with torch.no_grad():
        parameters["w"].add_(torch.tensor([[3.0, 4.0]]))
        parameters["b"].add_(2.0)
    penalty = l2_init.penalty()
    penalty.backward()
    assert penalty.shape == () and float(penalty.detach()) == pytest.approx(0.1 * (9 + 16 + 4))
    torch.testing.assert_close(parameters["w"].grad, torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(parameters["b"].grad, torch.tensor([0.4]))

    l2_weight, l2_loss = 0.2, 0.0  # theirs is twice ours
    for parameter, initial in ((parameters["w"], torch.tensor([[1.0, -2.0]])), (parameters["b"], torch.tensor([0.5]))):
        l2_loss += torch.sum((parameter - initial) ** 2)
    assert float(penalty.detach()) == pytest.approx(float((l2_weight * 0.5 * l2_loss).detach()))


def test_gradient_descent_on_the_penalty_alone_returns_geometrically():
    net = network()
    l2_init, start = L2Init(dict(net.named_parameters()), 0.5), copy.deepcopy(net)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        l2_init.penalty().backward()
        optimizer.step()
    for p, q in zip(net.parameters(), start.parameters(), strict=True):  # each step: 1 - 2 * 0.1 * 0.5
        torch.testing.assert_close((p - q).detach(), torch.full_like(p, 0.9**5))


def test_l2_init_keeps_weights_closer_and_every_parameter_moves():
    nets = {strength: network() for strength in (0.0, 0.05, 0.5)}
    start, distance = copy.deepcopy(nets[0.0]), {}
    for strength, net in nets.items():
        l2_init = L2Init(dict(net.named_parameters()), strength or 1.0)
        train(net, OPTIMIZERS["adam"](net.parameters()), range(50), l2_init.penalty if strength else float)
        moves = [p.detach() - q.detach() for p, q in zip(net.parameters(), start.parameters(), strict=True)]
        assert all(move.any() for move in moves)
        distance[strength] = float(torch.cat([move.flatten() for move in moves]).norm())
        assert float(l2_init.penalty().detach()) == pytest.approx((strength or 1.0) * distance[strength] ** 2, rel=1e-5)
    assert 0 < distance[0.5] < 0.6 * distance[0.05] < distance[0.05] < 0.9 * distance[0.0]


def test_l2_init_remembers_as_a_new_one_would():
    net = network()
    l2_init = L2Init(dict(net.named_parameters()), 0.1)
    train(net, OPTIMIZERS["adam"](net.parameters()), range(5))
    assert float(l2_init.penalty().detach()) > 0
    l2_init.remember_()
    new = L2Init(dict(net.named_parameters()), 0.1)
    assert float(l2_init.penalty().detach()) == 0
    assert equal(l2_init.state_dict()["initial"].values(), new.state_dict()["initial"].values())
    train(net, OPTIMIZERS["adam"](net.parameters()), range(5, 8))
    assert l2_init.penalty() == new.penalty() > 0


def test_l2_init_state_survives_a_file_and_shares_no_memory():
    net = network()
    first = L2Init(dict(net.named_parameters()), 0.1)
    train(net, OPTIMIZERS["adam"](net.parameters()), range(5))
    second = L2Init(dict(net.named_parameters()), 0.1)  # built after training: pulls to the wrong place
    assert float(second.penalty().detach()) == 0.0
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    second.load_state_dict(state)
    expected = float(first.penalty().detach())
    assert expected > 0 and float(second.penalty().detach()) == expected
    for holder in (state, first.state_dict(), second.state_dict()):
        holder["initial"]["head.bias"].fill_(9.0)
    assert float(first.penalty().detach()) == float(second.penalty().detach()) == expected
    for wrong in ({"head.bias": torch.ones(1)}, {**state["initial"], "head.weight": torch.ones(1, 4)}):
        with pytest.raises(ValueError, match="saved initial values"):
            second.load_state_dict({"initial": wrong})
    assert float(second.penalty().detach()) == expected


def aliasing(net: nn.Module) -> nn.Module:
    fresh = network(1)
    fresh.head.weight.data = net.head.weight.data
    return fresh


def only_head(net: nn.Module) -> Optimizer:
    return OPTIMIZERS["adam"](net.head.parameters())


def rprop(net: nn.Module) -> Optimizer:
    return torch.optim.Rprop(net.parameters())


def shared(net: nn.Module) -> Optimizer:
    return flat_adam(net.parameters(), shared_step=True)


def adam(net: nn.Module) -> Optimizer:
    return OPTIMIZERS["adam"](net.parameters())


MIX = {"shrink": 0.4, "perturb": 0.1}
STALE = {"moments": "reset"}
REFUSED = [
    (shrink_and_perturb_, network, adam, {**MIX, "shrink": -0.1}, r"shrink must be in \[0, 1\], got -0\.1"),
    (shrink_and_perturb_, network, adam, {**MIX, "shrink": 1.1}, r"shrink must be in \[0, 1\], got 1\.1"),
    (shrink_and_perturb_, network, adam, {**MIX, "shrink": math.nan}, r"shrink must be in \[0, 1\], got nan"),
    (shrink_and_perturb_, network, adam, {**MIX, "perturb": -0.1}, r"perturb must be finite and >= 0, got -0\.1"),
    (shrink_and_perturb_, network, adam, {**MIX, "perturb": math.inf}, "perturb must be finite and >= 0, got inf"),
    (shrink_and_perturb_, network, adam, {"shrink": 0.0, "perturb": 0.0}, "makes every weight zero"),
    (shrink_and_perturb_, lambda: Net(width=4), adam, MIX, r"'body\.0\.weight' is \(\(5, 3\), .* \(\(4, 3\)"),
    (shrink_and_perturb_, lambda: Net().double(), adam, MIX, r"torch\.float32.* 'torch\.float64"),
    (shrink_and_perturb_, lambda: Net().to("meta"), adam, MIX, "'cpu'.* 'meta'"),
    (shrink_and_perturb_, lambda: Net().body, adam, MIX, r"only one of network and fresh has \['0\.weight'"),
    (shrink_and_perturb_, None, adam, MIX, r"fresh shares the memory of .*'body\.0\.weight'"),
    (shrink_and_perturb_, aliasing, adam, MIX, r"fresh shares the memory of \['head\.weight'\]"),
    (shrink_and_perturb_, network, adam, {**MIX, "moments": "drop"}, "moments='drop' is not known"),
    (shrink_and_perturb_, network, lambda net: None, {**MIX, **STALE}, "optimizer=None has nothing to reset"),
    (shrink_and_perturb_, network, only_head, {**MIX, **STALE}, r"does not hold parameters of shape \[\(5, 3\)"),
    (shrink_and_perturb_, network, rprop, {**MIX, **STALE}, r"keeps \['prev', 'step_size'\]"),
    (reset_, network, adam, {"modules": []}, r"modules must be a list of names, got \[\]"),
    (reset_, network, adam, {"modules": "head"}, "modules must be a list of names, got 'head'"),
    (reset_, network, adam, {"modules": ["head", "tail"]}, r"modules \['tail'\] do not exist"),
    (reset_, network, adam, {"modules": ["head", "body.2"]}, r"modules \['body\.2'\] .* hold no parameter"),
    (reset_, lambda: Net(width=4), adam, {"modules": ["head"]}, r"'body\.0\.weight' is \(\(5, 3\)"),
    (reset_, None, adam, {}, "fresh shares the memory"),
    (reset_, network, adam, {"moments": "drop"}, "moments='drop' is not known"),
    (reset_, network, lambda net: None, {"modules": ["head"], **STALE}, "optimizer=None has nothing to reset"),
    (reset_, network, only_head, {"modules": ["body.0"], **STALE}, r"does not hold parameters of shape \[\(5, 3\)\]"),
    (reset_, network, rprop, {"modules": ["head"], **STALE}, r"keeps \['prev', 'step_size'\]"),
    (reset_, network, shared, {"modules": ["head"], **STALE}, r"share \['step'\]: reset all"),
]  # fmt: skip


@pytest.mark.parametrize(("intervene_", "make_fresh", "make_optimizer", "arguments", "message"), REFUSED)
def test_an_error_changes_nothing(intervene_, make_fresh, make_optimizer, arguments, message):
    net = network(0)
    optimizer = make_optimizer(net)
    train(net, optimizer or adam(net), range(5))
    fresh = net if make_fresh is None else aliasing(net) if make_fresh is aliasing else make_fresh()
    networks = [each for each in (net, fresh) if next(each.parameters()).device.type == "cpu"]
    before, memory = snapshot(*networks), copy.deepcopy(kept(optimizer)) if optimizer else []
    with pytest.raises(ValueError, match=message) as refusal:
        intervene_(net, fresh, optimizer=optimizer, **arguments)
    assert "\n" not in str(refusal.value)
    assert equal(snapshot(*networks), before) and (optimizer is None or equal(kept(optimizer), memory))


@pytest.mark.parametrize(
    ("make_optimizer", "choose", "message"),
    [
        (adam, lambda net: [], "there are no parameters whose moments"),
        (adam, lambda net: [net.head.weight, nn.Parameter(torch.ones(7))], r"of shape \[\(7,\)\]"),
        (rprop, lambda net: [net.head.weight], r"keeps \['prev', 'step_size'\]"),
        (shared, lambda net: net.head.parameters(), r"share \['step'\]: reset all"),
    ],
)
def test_moments_that_cannot_be_reset_alone_are_refused(make_optimizer, choose, message):
    net = network()
    optimizer = make_optimizer(net)
    train(net, optimizer, range(5))
    memory = copy.deepcopy(kept(optimizer))
    with pytest.raises(ValueError, match=message):
        reset_moments_(optimizer, choose(net))
    assert equal(kept(optimizer), memory)


def test_a_shared_step_count_is_reset_with_all_its_parameters():
    net = network()
    optimizer = shared(net)
    train(net, optimizer, range(5))
    shrink_and_perturb_(net, network(1), **MIX, optimizer=optimizer, moments="reset")
    assert not any(value.any() for value in kept(optimizer))


@pytest.mark.parametrize("strength", [0.0, -1.0, math.inf, math.nan])
def test_l2_init_refuses_a_bad_strength(strength):
    with pytest.raises(ValueError, match=f"strength must be positive and finite, got {strength}"):
        L2Init({"w": torch.ones(2)}, strength)


def test_l2_init_needs_parameters():
    with pytest.raises(ValueError, match="at least one named parameter"):
        L2Init({}, 0.1)


class NoHostReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a tensor was read on the host"
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_on_the_host():
    net, fresh = network(0), network(1)
    optimizer = adam(net)
    train(net, optimizer, range(3))
    with NoHostReads():
        shrink_and_perturb_(net, fresh, **MIX, optimizer=optimizer, moments="reset")
        reset_(net, fresh, modules=["head"], optimizer=optimizer, moments="reset")
        reset_moments_(optimizer, net.parameters())
        L2Init(dict(net.named_parameters()), 0.1).penalty().backward()
        with pytest.raises(AssertionError, match="read on the host"):
            float(net.head.bias.detach())
