"""Adam on one vector: the same numbers as Adam, gradients and moments that remain views, hooks, copies, refusals."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from elr.fast.flat_adam import FlatAdam


def network(seed=0, width=5):
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(2, 16, 3), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, width), nn.Linear(width, 16)
    )
    for p in module.parameters():
        nn.init.normal_(p, generator=generator)
    return module


def loss(module, generator):
    return module(torch.randn(7, 2, 4, 4, generator=generator)).square().mean()


@pytest.mark.parametrize("width", [16, 5])
def test_equals_fused_adam_with_gradients_of_autograd(width):
    ours, theirs = network(width=width), network(width=width)
    flat = FlatAdam(list(ours.parameters()), lr=1e-3, eps=1e-8)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-3, eps=1e-8, fused=True)
    for module, optimizer in ((ours, flat), (theirs, adam)):
        generator = torch.Generator().manual_seed(3)
        for step in range(20):
            optimizer.zero_grad()
            loss(module, generator).backward()
            optimizer.param_groups[0]["lr"] = 1e-3 / (1 + step)
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        pairs = ((p.detach(), q.detach()), (flat.state[p]["exp_avg_sq"], adam.state[q]["exp_avg_sq"]))
        for one, other in pairs:
            if width == 16:  # no elements are left over at the end of a tensor
                assert torch.equal(one, other)
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert torch.equal(flat.vector, torch.cat([p.detach().flatten() for p in ours.parameters()]))
    assert torch.equal(flat.grad, torch.cat([p.grad.flatten() for p in ours.parameters()]))


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_clipping_equals_clip_grad_norm(max_norm):
    ours, theirs = network(), network()
    flat = FlatAdam(list(ours.parameters()), lr=1e-3, eps=1e-8)
    for module in (ours, theirs):
        loss(module, torch.Generator().manual_seed(4)).backward()
    before = flat.grad.clone()
    norm = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    torch.testing.assert_close(flat.clip_(max_norm), norm)
    torch.testing.assert_close(flat.grad, torch.cat([p.grad.flatten() for p in theirs.parameters()]))
    assert torch.equal(flat.grad, before) == (max_norm > norm)


def test_resume_is_exact():
    networks = [network(), network(1)]
    first, second = (FlatAdam(list(n.parameters()), lr=1e-3, eps=1e-8) for n in networks)
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        first.grad.normal_(generator=generator)
        first.step()
    networks[1].load_state_dict(networks[0].state_dict())
    second.load_state_dict(first.state_dict())
    for optimizer in (first, second):
        optimizer.grad.fill_(0.1)
        optimizer.step()
    assert second.steps.item() == 4
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True))
    assert torch.equal(second.vector, first.vector)


def test_a_generator_of_parameters_is_trained():
    trained = []
    for parameters in (network().parameters(), list(network().parameters())):
        flat = FlatAdam(parameters, lr=1e-3, eps=1e-8)
        flat.grad.fill_(0.1)
        flat.step()
        trained.append(flat.vector)
    assert len(trained[0]) > 800 and torch.equal(*trained)
    assert not torch.equal(trained[0], torch.cat([p.flatten() for p in network().parameters()]))


class Hooks:
    """Counts calls, and sees whether the step has been taken."""

    def __init__(self):
        self.seen = []

    def pre(self, optimizer, args, kwargs):
        self.seen.append(("pre", optimizer.steps.item()))

    def post(self, optimizer, args, kwargs):
        self.seen.append(("post", optimizer.steps.item()))


@pytest.mark.parametrize("everywhere", [False, True])
def test_step_hooks_run_and_change_no_number(everywhere):
    hooked, plain, hooks = (*(FlatAdam(network().parameters(), lr=1e-3, eps=1e-8) for _ in range(2)), Hooks())
    for optimizer in (hooked, plain):
        optimizer.grad.fill_(0.1)
        optimizer.step()
    plain.step()
    if everywhere:
        handles = [register_optimizer_step_pre_hook(hooks.pre), register_optimizer_step_post_hook(hooks.post)]
    else:
        handles = [hooked.register_step_pre_hook(hooks.pre), hooked.register_step_post_hook(hooks.post)]
    try:
        hooked.step()
    finally:
        for handle in handles:
            handle.remove()
    assert hooks.seen == [("pre", 1.0), ("post", 2.0)]
    assert torch.equal(hooked.vector, plain.vector) and torch.equal(hooked.exp_avg_sq, plain.exp_avg_sq)
    hooked.step()
    assert len(hooks.seen) == 2  # removed


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_one_kind_of_hook_is_enough(kind):
    flat, hooks = FlatAdam(network().parameters(), lr=1e-3, eps=1e-8), Hooks()
    getattr(flat, f"register_step_{kind}_hook")(getattr(hooks, kind))
    flat.step()
    assert [seen for seen, _ in hooks.seen] == [kind]


def test_refusals():
    module = network()
    flat = FlatAdam(list(module.parameters()), lr=1e-3, eps=1e-8)
    with pytest.raises(ValueError, match="cannot be set to None"):
        flat.zero_grad(set_to_none=True)
    with pytest.raises(ValueError, match="cannot be added"):
        flat.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match="one dtype on one device"):
        FlatAdam([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1).double())], lr=1e-3, eps=1e-8)
    for groups in ([{"params": list(network().parameters())}], network().named_parameters()):
        with pytest.raises(ValueError, match="not parameter groups or named parameters"):
            FlatAdam(groups, lr=1e-3, eps=1e-8)
    with pytest.raises(ValueError, match="empty"):
        FlatAdam([], lr=1e-3, eps=1e-8)
    with pytest.raises(ValueError, match="given twice"):
        FlatAdam([*network().parameters()] * 2, lr=1e-3, eps=1e-8)
    with pytest.raises(ValueError, match=r"floating-point type, got torch\.complex64"):
        FlatAdam([nn.Parameter(torch.zeros(1, dtype=torch.complex64))], lr=1e-3, eps=1e-8)
    with pytest.raises(ValueError, match="all parameters are frozen"):
        FlatAdam(module.requires_grad_(False).parameters(), lr=1e-3, eps=1e-8)


@pytest.mark.parametrize("clear", ["module to None", "module to zero", "optimiser", "replaced"])
def test_gradients_that_were_cleared_or_replaced_are_used(clear) -> None:
    """However a loop clears them, the update is torch.optim.Adam's."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(16, 16), nn.Linear(16, 16)
    theirs.load_state_dict(ours.state_dict())
    flat = FlatAdam(ours.parameters(), lr=1e-2, eps=1e-8)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-2, eps=1e-8, fused=True)
    x = torch.randn(8, 16)
    for _ in range(3):
        if clear == "module to None":
            ours.zero_grad()
        elif clear == "module to zero":
            ours.zero_grad(set_to_none=False)
        elif clear == "replaced":
            for p in ours.parameters():
                p.grad = torch.zeros_like(p)
        else:
            flat.zero_grad()
        adam.zero_grad()
        for network in (ours, theirs):
            network(x).square().mean().backward()
        torch.testing.assert_close(flat.clip_(0.1), nn.utils.clip_grad_norm_(theirs.parameters(), 0.1))
        flat.step()
        adam.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_step_without_gradients_is_refused() -> None:
    network = nn.Linear(3, 2)
    flat = FlatAdam(network.parameters(), lr=1e-2, eps=1e-8)
    network.zero_grad()
    with pytest.raises(ValueError, match="no gradient"):
        flat.step()
    flat.zero_grad()
    flat.step()


def twins(width=16, **options):
    """The same network under FlatAdam and under torch's Adam."""
    ours, theirs = network(width=width), network(width=width)
    flat = FlatAdam(ours.parameters(), lr=1e-2, eps=1e-8)
    return ours, flat, theirs, torch.optim.Adam(theirs.parameters(), lr=1e-2, eps=1e-8, fused=True, **options)


def train(module, optimizer, steps, after=lambda: None):
    for step in steps:
        optimizer.zero_grad()
        loss(module, torch.Generator().manual_seed(step)).backward()
        optimizer.step()
        after()


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def lies_in_one_vector(module, optimizer):
    return all(
        torch.equal(vector, torch.cat([value(p).flatten() for p in module.parameters()]))
        for vector, value in (
            (optimizer.vector, lambda p: p.detach()),
            (optimizer.grad, lambda p: p.grad),
            (optimizer.exp_avg, lambda p: optimizer.state[p]["exp_avg"]),
            (optimizer.exp_avg_sq, lambda p: optimizer.state[p]["exp_avg_sq"]),
        )
    )


GROUPS = {
    "weight decay": {"weight_decay": 0.1},
    "decoupled weight decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True},
    "betas and eps": {"betas": (0.5, 0.7), "eps": 1e-3},
    "0-d rate": {"lr": torch.tensor(3e-3)},
    "rate of shape (1,)": {"lr": torch.tensor([3e-3])},
}


@pytest.mark.parametrize("options", GROUPS.values(), ids=GROUPS)
def test_what_the_group_asks_for_is_done(options):
    ours, flat, theirs, adam = twins()
    plain = network(width=16)
    train(plain, FlatAdam(plain.parameters(), lr=1e-2, eps=1e-8), range(12))
    if "decoupled_weight_decay" in options and "decoupled_weight_decay" not in adam.param_groups[0]:
        pytest.skip("this torch's Adam has no decoupled_weight_decay")
    for module, optimizer in ((ours, flat), (theirs, adam)):
        train(module, optimizer, range(4))
        optimizer.param_groups[0].update(options)
        train(module, optimizer, range(4, 12))
    assert same(ours, theirs) and not same(ours, plain)


@pytest.mark.parametrize("name", ["amsgrad", "differentiable"])
def test_what_the_group_cannot_have_is_refused(name):
    ours, flat, *_ = twins()
    train(ours, flat, range(2))
    before = flat.vector.clone()
    flat.param_groups[0][name] = True
    with pytest.raises(ValueError, match=f"does not support {name}: use torch.optim.Adam"):
        flat.step()
    assert torch.equal(flat.vector, before) and flat.steps == 2
    state = FlatAdam(network().parameters(), lr=1e-2, eps=1e-8).state_dict()
    state["param_groups"][0][name] = True
    fresh = FlatAdam(network().parameters(), lr=1e-3, eps=1e-8)
    with pytest.raises(ValueError, match=f"does not support {name}"):
        fresh.load_state_dict(state)
    assert fresh.param_groups[0]["lr"] == 1e-3 and not fresh.param_groups[0][name]


def test_torch_schedulers_change_rate_and_betas():
    ours, flat, theirs, adam = twins()
    for module, optimizer in ((ours, flat), (theirs, adam)):
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=20)
        train(module, optimizer, range(15), scheduler.step)
    assert flat.param_groups[0]["betas"] == adam.param_groups[0]["betas"] != (0.9, 0.999)
    assert same(ours, theirs)


@pytest.mark.parametrize("hooked", [False, True])
def test_a_closure_makes_the_gradients_and_its_loss_is_returned(hooked):
    ours, flat, theirs, adam = twins()
    seen = []
    if hooked:
        flat.register_step_post_hook(lambda optimizer, args, kwargs: seen.append(len(args)))
    for step in range(3):
        losses = []
        for module, optimizer in ((ours, flat), (theirs, adam)):

            def closure(module=module, optimizer=optimizer, step=step):
                optimizer.zero_grad()
                value = loss(module, torch.Generator().manual_seed(step))
                value.backward()
                return value

            with torch.no_grad():
                losses.append(optimizer.step(closure))
        assert losses[0] == losses[1] > 0.0
    assert same(ours, theirs) and len(seen) == 3 * hooked


@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler(unscale):
    """Scaled gradients are unscaled, and a step with an infinite one is skipped and not counted."""
    ours, flat, theirs, adam = twins()
    counts = []
    for module, optimizer in ((ours, flat), (theirs, adam)):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        for step in range(8):
            optimizer.zero_grad()
            scaler.scale(loss(module, torch.Generator().manual_seed(step))).backward()
            if step in (3, 5):
                module[0].weight.grad[0, 0, 0, 0] = (float("inf"), float("nan"))[step == 5]
            before = [p.detach().clone() for p in module.parameters()]
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(module.parameters(), 1e6)
            scaler.step(optimizer)
            scaler.update()
            moved = [not torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True)]
            assert all(moved) if step not in (3, 5) else not any(moved)
        counts.append((scaler.get_scale(), optimizer.state[module[0].weight]["step"].item()))
    assert counts[0] == counts[1] == (1024.0, 6.0)
    assert same(ours, theirs) and torch.isfinite(flat.vector).all()


def test_gradients_that_were_there_at_construction_are_used():
    ours, theirs = network(width=16), network(width=16)
    for module in (ours, theirs):
        loss(module, torch.Generator().manual_seed(0)).backward()
    FlatAdam(ours.parameters(), lr=1e-2, eps=1e-8).step()
    torch.optim.Adam(theirs.parameters(), lr=1e-2, eps=1e-8, fused=True).step()
    assert same(ours, theirs) and not same(ours, network(width=16))


def saved(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing)), "torch.save": saved}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copy_with_its_network_trains_on_exactly_and_apart(make):
    ours, flat, theirs, adam = twins()
    train(ours, flat, range(3))
    train(theirs, adam, range(3))
    flat.register_step_post_hook(lambda *_: pytest.fail("a copy has no hooks, as in torch"))
    frozen = flat.vector.clone()
    module, optimizer = make((ours, flat))
    assert optimizer.steps == 3 and optimizer.param_groups[0]["params"][0] is module[0].weight
    with pytest.raises(ValueError, match="no gradient"):
        optimizer.step()
    train(module, optimizer, range(3, 6))
    train(theirs, adam, range(3, 6))
    assert same(module, theirs) and lies_in_one_vector(module, optimizer) and optimizer.steps == 6
    assert torch.equal(flat.vector, frozen) and flat.steps == 3 and lies_in_one_vector(ours, flat)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer.zero_grad()
    scaler.scale(loss(module, torch.Generator().manual_seed(6))).backward()
    scaler.step(optimizer)
    train(theirs, adam, range(6, 7))
    assert same(module, theirs)


def test_a_copy_of_the_optimiser_alone_has_parameters_of_its_own():
    ours, flat, *_ = twins()
    train(ours, flat, range(3))
    other = copy.deepcopy(flat)
    before = flat.vector.clone()
    assert torch.equal(other.vector, flat.vector) and torch.equal(other.exp_avg, flat.exp_avg)
    for optimizer in (other, flat):
        optimizer.zero_grad()
        optimizer.grad.fill_(0.5)
        optimizer.step()
        assert torch.equal(flat.vector, before) == (optimizer is other)
    assert torch.equal(other.vector, flat.vector) and other.steps == flat.steps == 4
    parameters = other.param_groups[0]["params"]
    assert torch.equal(other.vector, torch.cat([p.detach().flatten() for p in parameters]))


def test_after_a_shallow_copy_the_original_is_refused():
    ours, flat, *_ = twins()
    train(ours, flat, range(3))
    other = copy.copy(flat)  # takes over the parameters, as there is one storage for each
    with pytest.raises(ValueError, match="something has replaced the data"):
        flat.step()
    train(ours, other, range(1))
    assert lies_in_one_vector(ours, other) and other.steps == 4


@pytest.mark.parametrize("through", [lambda state: state, saved], ids=["in memory", "saved"])
@pytest.mark.parametrize("fused", [True, False])
def test_states_are_exchanged_with_adam(through, fused):
    """In both directions, and training continues as it would have."""
    ours, flat, theirs, adam = twins()
    train(ours, flat, range(3))
    train(theirs, adam, range(3))
    adam.param_groups[0]["lr"] = flat.param_groups[0]["lr"] = 0.03
    heirs = []
    for old, old_network in ((flat, ours), (adam, theirs)):
        for kind in ("flat", "adam"):
            module = copy.deepcopy(old_network)
            if kind == "flat":
                new = FlatAdam(module.parameters(), lr=1.0, eps=1.0)
            else:
                new = torch.optim.Adam(module.parameters(), lr=1.0, fused=fused)
            new.load_state_dict(copy.deepcopy(through(old.state_dict())))
            new.param_groups[0]["fused"] = fused if kind == "adam" else None
            train(module, new, range(3, 8))
            heirs.append(module)
            assert {float(kept["step"]) for kept in new.state.values()} == {8.0}
            assert kind == "adam" or lies_in_one_vector(module, new)
    train(ours, flat, range(3, 8))
    for heir in heirs:
        for p, q in zip(heir.parameters(), ours.parameters(), strict=True):
            if fused:
                assert torch.equal(p, q)
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_the_state_of_an_optimiser_without_an_update_is_a_new_one():
    ours, flat, _, adam = twins()
    train(ours, flat, range(3))
    flat.load_state_dict(adam.state_dict())
    assert flat.steps == 0 and not flat.exp_avg.any() and not flat.exp_avg_sq.any()
    assert len(flat.state) == len(list(ours.parameters())) and lies_in_one_vector(ours, flat)


def unequal_counts(state):
    state["state"][0]["step"] = torch.tensor(7.0)


def another_shape(state):
    state["state"][1]["exp_avg"] = torch.zeros(1)


def one_missing(state):
    del state["state"][2]


def another_optimiser(state):
    for kept in state["state"].values():
        kept["momentum_buffer"] = kept.pop("exp_avg")


@pytest.mark.parametrize(("spoil", "message"), [
    (unequal_counts, r"one step count .* the state has \[2\.0, 7\.0\]: use torch.optim.Adam"),
    (one_missing, r"one step count .* the state has \[0\.0, 2\.0\]"),
    (another_shape, r"cannot take moments of shape \[\(1,\)\] for a parameter of shape \(16,\)"),
    (another_optimiser, r"cannot take a state that differs in \['exp_avg', 'momentum_buffer'\]"),
])  # fmt: skip
def test_a_state_that_is_not_one_adams_is_refused_and_nothing_changes(spoil, message):
    ours, flat, theirs, adam = twins()
    train(ours, flat, range(3))
    train(theirs, adam, range(2))
    state = copy.deepcopy(adam.state_dict())
    state["param_groups"][0]["lr"] = 0.5
    spoil(state)
    before = [tensor.clone() for tensor in (flat.vector, flat.exp_avg, flat.exp_avg_sq)]
    with pytest.raises(ValueError, match=message) as refusal:
        flat.load_state_dict(state)
    assert "\n" not in str(refusal.value) and flat.param_groups[0]["lr"] == 1e-2 and flat.steps == 3
    assert all(torch.equal(a, b) for a, b in zip(before, (flat.vector, flat.exp_avg, flat.exp_avg_sq), strict=True))
    assert lies_in_one_vector(ours, flat)


def test_averaged_models_and_loaded_weights():
    ours, flat, theirs, adam = twins()
    averages = [torch.optim.swa_utils.AveragedModel(module) for module in (ours, theirs)]
    for module, optimizer, average in ((ours, flat, averages[0]), (theirs, adam, averages[1])):
        train(module, optimizer, range(5), lambda average=average, module=module: average.update_parameters(module))
        module.load_state_dict(network(1, width=16).state_dict())
        train(module, optimizer, range(5, 8))
    assert same(*averages) and same(ours, theirs) and not same(averages[0].module, ours)
    assert lies_in_one_vector(ours, flat)


def to_double(module):
    module.double()


def from_vector(module):
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(module.parameters()), module.parameters())


def last_data(module):
    module[4].bias.data = module[4].bias.data.clone()


@pytest.mark.parametrize(("move", "shape"), [(to_double, (16, 2, 3, 3)), (from_vector, (16, 2, 3, 3)),
                                             (last_data, (16,))])  # fmt: skip
def test_parameters_that_left_the_vector_are_refused(move, shape):
    ours, flat, *_ = twins()
    train(ours, flat, range(2))
    move(ours)
    with pytest.raises(ValueError, match="something has replaced the data of a parameter of shape") as refusal:
        flat.step()
    assert str(shape) in str(refusal.value) and flat.steps == 2
    with pytest.raises(ValueError, match="something has replaced the data"):
        flat.clip_(1.0)


def test_shared_memory_is_no_move():
    ours, flat, theirs, adam = twins()
    ours.share_memory()
    train(ours, flat, range(3))
    train(theirs, adam, range(3))
    assert same(ours, theirs)


def test_a_parameter_frozen_later_is_refused():
    ours, flat, *_ = twins()
    train(ours, flat, range(2))
    ours[4].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"a parameter of shape \(16,\) was frozen"):
        train(ours, flat, range(1))
    ours[4].bias.requires_grad_(True)
    train(ours, flat, range(1))


def test_frozen_parameters_are_left_alone_until_they_are_trained_again():
    """As with Adam, for which a parameter without a gradient does not exist."""
    ours, theirs = network(), network()
    for net in (ours, theirs):
        net[0].requires_grad_(False)
    flat = FlatAdam(ours.parameters(), lr=1e-3, eps=1e-8)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-3, eps=1e-8, fused=True)
    before = ours[0].weight.clone()
    train(ours, flat, range(3))
    train(theirs, adam, range(3))
    assert same(ours, theirs) and torch.equal(ours[0].weight, before)
    ours[0].weight.requires_grad_(True)
    with pytest.raises(ValueError, match="was frozen when it was built and is not now"):
        train(ours, flat, range(1))


def test_a_sparse_gradient_is_refused():
    table = nn.Embedding(16, 2, sparse=True)
    flat = FlatAdam(table.parameters(), lr=1e-2, eps=1e-8)
    table.zero_grad()
    table(torch.tensor([1, 1])).sum().backward()
    with pytest.raises(ValueError, match=r"sparse gradient; use torch\.optim\.SparseAdam"):
        flat.step()


def test_parameters_in_double_precision_and_empty_ones():
    torch.set_default_dtype(torch.float64)
    try:
        ours, flat, theirs, adam = twins()
    finally:
        torch.set_default_dtype(torch.float32)
    for module, optimizer in ((ours, flat), (theirs, adam)):
        for step in range(3):
            optimizer.zero_grad()
            x = torch.randn(7, 2, 4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            module(x).square().mean().backward()
            optimizer.step()
    assert flat.vector.dtype == torch.float64 and flat.steps.dtype == torch.float32 and same(ours, theirs)
    p = [nn.Parameter(torch.zeros(0)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(0))]
    flat = FlatAdam(p, lr=0.5, eps=1e-12)
    flat.grad.fill_(1.0)
    flat.step()
    torch.testing.assert_close(p[1].detach(), torch.full((2,), 0.5))
