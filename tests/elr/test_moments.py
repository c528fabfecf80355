"""After a reset every optimiser of torch steps as a new one, to the last bit, or refuses in one line."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from elr.moments import per_entry, reset_moments_

OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "SGD plain": (torch.optim.SGD, {"weight_decay": 0.1}),
    "SGD nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "SGD dampening": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.4}),
    "SGD dampening, foreach": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.4, "foreach": True}),
    "SGD foreach": (torch.optim.SGD, {"momentum": 0.9, "foreach": True}),
    "SGD fused": (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
    "Adam": (torch.optim.Adam, {}),
    "Adam amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "Adam foreach": (torch.optim.Adam, {"foreach": True}),
    "Adam fused": (torch.optim.Adam, {"fused": True}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "AdamW fused": (torch.optim.AdamW, {"weight_decay": 0.1, "fused": True, "amsgrad": True}),
    "Adamax": (torch.optim.Adamax, {}),
    "Adamax foreach": (torch.optim.Adamax, {"foreach": True}),
    "NAdam": (torch.optim.NAdam, {}),
    "NAdam foreach": (torch.optim.NAdam, {"foreach": True}),
    "RAdam": (torch.optim.RAdam, {}),
    "RAdam foreach": (torch.optim.RAdam, {"foreach": True}),
    "RMSprop": (torch.optim.RMSprop, {}),
    "RMSprop momentum": (torch.optim.RMSprop, {"momentum": 0.9}),
    "RMSprop centered, momentum": (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}),
    "RMSprop foreach": (torch.optim.RMSprop, {"centered": True, "momentum": 0.9, "foreach": True}),
    "Adagrad": (torch.optim.Adagrad, {"lr_decay": 0.1}),
    "Adagrad initial sum": (torch.optim.Adagrad, {"initial_accumulator_value": 0.25}),
    "Adagrad foreach": (torch.optim.Adagrad, {"initial_accumulator_value": 0.25, "foreach": True}),
    "Adagrad fused": (torch.optim.Adagrad, {"initial_accumulator_value": 0.25, "fused": True}),
    "Adadelta": (torch.optim.Adadelta, {}),
    "Adadelta foreach": (torch.optim.Adadelta, {"foreach": True}),
}


def build(kind: str, parameters) -> torch.optim.Optimizer:
    constructor, options = OPTIMIZERS[kind]
    return constructor(parameters, lr=0.02, **options)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, updates: range) -> None:
    for update in updates:
        x = torch.randn(32, 3, generator=torch.Generator().manual_seed(update))
        optimizer.zero_grad()
        (net(x) - x[:, :2].sin()).square().mean().backward()
        optimizer.step()


def equal(one, other) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


def kept(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_next_steps_are_those_of_a_new_optimiser(kind):
    net = network()
    optimizer = build(kind, net.parameters())
    train(net, optimizer, range(20))
    kept_net, kept_optimizer = copy.deepcopy((net, optimizer))
    new_net = copy.deepcopy(net)
    new = build(kind, new_net.parameters())
    reset_moments_(optimizer)
    for update in range(20, 25):
        for each, its_optimizer in ((net, optimizer), (kept_net, kept_optimizer), (new_net, new)):
            train(each, its_optimizer, range(update, update + 1))
        assert equal(net.parameters(), new_net.parameters()) and equal(kept(optimizer), kept(new))
    if kind != "SGD plain":  # it keeps nothing
        assert len(kept(optimizer)) and not equal(net.parameters(), kept_net.parameters())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_parameters_that_are_not_named_step_as_before(kind):
    net = network()
    optimizer = build(kind, net.parameters())
    train(net, optimizer, range(20))
    other_net, other = copy.deepcopy((net, optimizer))
    new_net = copy.deepcopy(net)
    new = build(kind, new_net.parameters())
    reset_moments_(optimizer, net[2].parameters())
    for each, its_optimizer in ((net, optimizer), (other_net, other), (new_net, new)):
        train(each, its_optimizer, range(20, 21))
    assert equal(net[2].parameters(), new_net[2].parameters())
    assert equal(net[0].parameters(), other_net[0].parameters())
    if kind != "SGD plain":
        assert not equal(net[0].parameters(), new_net[0].parameters())


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_sparse_gradients(momentum):
    """SparseAdam's moments are dense, SGD's momentum is sparse."""
    table = nn.Embedding(9, 4, sparse=True)

    def make(parameters):
        if momentum is None:
            return torch.optim.SparseAdam(list(parameters), lr=0.02)
        return torch.optim.SGD(parameters, lr=0.02, momentum=momentum)

    def steps(table, optimizer, updates):
        for update in updates:
            index = torch.randint(9, (6,), generator=torch.Generator().manual_seed(update))
            optimizer.zero_grad()
            table(index).square().sum().backward()
            optimizer.step()

    optimizer = make(table.parameters())
    steps(table, optimizer, range(6))
    new_table = copy.deepcopy(table)
    new = make(new_table.parameters())
    reset_moments_(optimizer)
    for each, its_optimizer in ((table, optimizer), (new_table, new)):
        steps(each, its_optimizer, range(6, 11))
    assert torch.equal(table.weight, new_table.weight)
    assert all(value.to_dense().any() for value in kept(optimizer))


def test_a_complex_adagrad_starts_its_sum_as_torch_does():
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = torch.optim.Adagrad([p], initial_accumulator_value=0.25)
    first = optimizer.state[p]["sum"].clone()
    assert first[0] == 0.25 + 0.25j
    optimizer.state[p]["sum"].fill_(3.0)
    reset_moments_(optimizer)
    assert torch.equal(optimizer.state[p]["sum"], first)


def test_an_addition_in_place_keeps_the_memory():
    net = network()
    for kind in ("Adam", "NAdam", "Adagrad initial sum", "RMSprop centered, momentum", "SGD"):
        optimizer = build(kind, net.parameters())
        train(net, optimizer, range(2))
        places = [value.data_ptr() for value in kept(optimizer)]
        reset_moments_(optimizer)
        assert len(places) and [value.data_ptr() for value in kept(optimizer)] == places


def test_plain_numbers_keep_their_type():
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.NAdam([p])
    optimizer.state[p] = {"step": 7, "mu_product": 0.3, "exp_avg": torch.ones(2)}
    reset_moments_(optimizer)
    assert optimizer.state[p]["step"] == 0 and type(optimizer.state[p]["step"]) is int
    assert optimizer.state[p]["mu_product"] == 1.0 and type(optimizer.state[p]["mu_product"]) is float


class StepInGroup(torch.optim.SGD):
    """As Lamb or FusedAdam of other packages."""

    def step(self, closure=None):
        self.param_groups[0]["step"] = self.param_groups[0].get("step", 0) + 1
        return super().step(closure)


class StartsAtOne(torch.optim.Optimizer):
    """As Stable-Baselines3's RMSpropTFLike."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            square = state.setdefault("square_avg", torch.ones_like(p)).mul_(0.99).addcmul_(p.grad, p.grad, value=0.01)
            p.data.addcdiv_(p.grad, square.sqrt(), value=-self.param_groups[0]["lr"])


class DampedElsewhere(StartsAtOne):
    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.param_groups[0]["dampening"] = 0.5

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)).add_(p.grad)


class KeepsBesides(torch.optim.SGD):
    def step(self, closure=None):
        self.state["shared"] = {"exp_avg": torch.ones(1)}
        return super().step(closure)


REFUSED = [
    (lambda ps: torch.optim.Rprop(ps), r"Rprop keeps \['prev', 'step_size'\], and with which values it starts"),
    (lambda ps: torch.optim.ASGD(ps), r"ASGD keeps \['ax', 'eta', 'mu'\]"),
    (lambda ps: StartsAtOne(ps, lr=0.1), r"StartsAtOne keeps \['square_avg'\]"),
    (lambda ps: StepInGroup(ps, lr=0.1, momentum=0.9), "StepInGroup keeps a step count in its groups"),
    (lambda ps: KeepsBesides(ps, lr=0.1), "KeepsBesides keeps 'shared' next to the parameters' states"),
    (lambda ps: DampedElsewhere(ps, lr=0.1), "DampedElsewhere does not damp the first momentum"),
    (
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, dampening=0.4, fused=True),
        r"SGD does not damp the first momentum, .* use dampening=0 instead of 0\.4, fused=False, or keep the moments",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message.split()[0] for _, message in REFUSED])
def test_what_does_not_start_at_a_known_value_is_refused_and_kept(make, message):
    net = network()
    optimizer = make(net.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(net, optimizer, range(3))
    before = copy.deepcopy(kept(optimizer))
    with pytest.raises(ValueError, match=message) as refusal:
        reset_moments_(optimizer)
    assert "\n" not in str(refusal.value) and equal(kept(optimizer), before)


def test_a_step_count_is_not_kept_per_entry_even_where_its_shape_fits():
    scale = nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.Adam([scale])
    (scale**2).backward()
    optimizer.step()
    state = optimizer.state[scale]
    assert state["step"].shape == scale.shape
    assert [id(tensor) for tensor, _ in per_entry(optimizer, scale)] == [id(state["exp_avg"]), id(state["exp_avg_sq"])]


def test_lbfgs_is_refused():
    net = network()
    optimizer = torch.optim.LBFGS(net.parameters())

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(4, 3)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(ValueError, match=r"LBFGS keeps .*'old_dirs'"):
        reset_moments_(optimizer)
