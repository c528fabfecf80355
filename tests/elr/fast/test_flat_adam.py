"""Adam on one vector: the same numbers as Adam, gradients and moments that remain views, step hooks."""

from __future__ import annotations

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
    with pytest.raises(ValueError, match="takes no closure"):
        flat.step(lambda: 0.0)
    with pytest.raises(ValueError, match="cannot be added"):
        flat.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match="one dtype on one device"):
        FlatAdam([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1).double())], lr=1e-3, eps=1e-8)
    for groups in ([{"params": list(network().parameters())}], network().named_parameters()):
        with pytest.raises(ValueError, match="not parameter groups or named parameters"):
            FlatAdam(groups, lr=1e-3, eps=1e-8)
    with pytest.raises(ValueError, match="empty"):
        FlatAdam([], lr=1e-3, eps=1e-8)


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
