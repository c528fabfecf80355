"""Methods, as flags build them, against training written out: an Adam of plain arrays, and each method's formula.

ReDo, continual backprop, weight clipping, churn and TRAC have twins of their own in the tests of their modules.
"""

import math

import pytest
import torch
from torch import nn

from elr.interventions import policy_divergence
from elr.interventions.flags import BASELINES, InterveneArgs
from elr.projection import NoProjection
from tests.elr.interventions import twins

RATE = 0.01
HEADS = {twins.Mlp: ["head", "value"], twins.Cnn: ["head"]}
NORMS = ("norm.weight", "norm.bias")


class LiteralAdam:
    """W, m, v and t by name of the parameter."""

    def __init__(self, net):
        self.w = {name: p.detach().clone() for name, p in net.named_parameters()}
        self.m, self.v = ({name: torch.zeros_like(w) for name, w in self.w.items()} for _ in range(2))
        self.t = dict.fromkeys(self.w, 0)

    def step(self, gradients):
        for name, g in gradients.items():
            self.t[name] += 1
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = 0.999 * self.v[name] + 0.001 * g * g
            m, v = self.m[name] / (1 - 0.9 ** self.t[name]), self.v[name] / (1 - 0.999 ** self.t[name])
            self.w[name] = self.w[name] - RATE * m / (v.sqrt() + 1e-8)


def orthogonal(w):
    """The polar factor by its definition, W (W^T W)^(-1/2), on the smaller side; scaled."""
    if w.shape[0] < w.shape[1]:
        values, vectors = torch.linalg.eigh(w @ w.T)
        factor = vectors @ torch.diag(values**-0.5) @ vectors.T @ w
    else:
        values, vectors = torch.linalg.eigh(w.T @ w)
        factor = w @ vectors @ torch.diag(values**-0.5) @ vectors.T
    return math.sqrt(w.shape[0] / w.shape[1]) * factor


def at_a_change(name, twin, fresh, kind):
    """What the method does to the twin when the task changes."""
    for key, w in twin.w.items():
        new, in_head = fresh[key], key.partition(".")[0] in HEADS[kind]
        if name == "reset" or (name == "reset-head" and in_head):
            twin.w[key] = new
            twin.m[key], twin.v[key] = torch.zeros_like(w), torch.zeros_like(w)
            if name == "reset":
                twin.t[key] = 0
        elif name == "shrink-and-perturb":
            twin.w[key] = 0.4 * w + 0.1 * new
        elif name == "local-time":
            twin.t[key] = 0
        elif name == "fire" and not in_head and w.ndim == 2:
            twin.w[key] = orthogonal(w)
        elif name == "fire" and w.ndim == 4:
            rows, columns = w.shape[2:]
            twin.w[key] = torch.stack(
                [
                    torch.stack([orthogonal(w[:, :, i, j]) / (rows * columns) for j in range(columns)], -1)
                    for i in range(rows)
                ],
                -2,
            )


@pytest.mark.parametrize("kind", [twins.Mlp, twins.Cnn])
@pytest.mark.parametrize("name", [
    "", "reset", "reset-head", "shrink-and-perturb", "soft-shrink-and-perturb", "fire", "local-time", "weight-decay",
    "l2-init",
])  # fmt: skip
def test_a_hundred_updates_equal_the_formula_written_out(name, kind):
    net = twins.network(kind, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    seeds = iter(range(500, 700))

    def draw(count):
        return torch.zeros(count, *twins.SHAPES[kind], dtype=torch.float64)

    made = (BASELINES[name] if name else InterveneArgs()).build(
        net, optimizer, NoProjection(), layers=net.layers, heads=HEADS[kind], inputs=draw(2),
        fresh=lambda: twins.network(kind, next(seeds)), divergence=policy_divergence, batch=8, churn={},
    )  # fmt: skip
    twin, model = LiteralAdam(net), twins.network(kind, 3)
    start, changes, moved = dict(twin.w), 0, {}
    for step, (x, y) in enumerate(twins.batches(kind, 100)):
        optimizer.zero_grad()
        loss = twins.loss_of(net, x, y)
        loss.backward()
        made.before_step(draw, loss.item())
        optimizer.step()
        made.after_step()

        nn.Module.load_state_dict(model, twin.w)
        found = torch.autograd.grad(twins.loss_of(model, x, y), list(model.parameters()))
        gradients = dict(zip(twin.w, found, strict=True))
        if name == "weight-decay":
            twin.w = {key: w if key in NORMS else w - RATE * 1e-3 * w for key, w in twin.w.items()}
        if name == "l2-init":
            gradients = {
                key: g if key in NORMS else g + 2 * 1e-3 * (twin.w[key] - start[key]) for key, g in gradients.items()
            }
        twin.step(gradients)
        if name == "soft-shrink-and-perturb":
            fresh = dict(twins.network(kind, 500 + step).named_parameters())
            twin.w = {key: (1 - 1e-6) * w + 1e-6 * fresh[key].detach() for key, w in twin.w.items()}
        if step % 30 == 29:
            before = {key: p.detach().clone() for key, p in net.named_parameters()}
            made.react(draw, changed=True)
            fresh = {key: p.detach() for key, p in twins.network(kind, 500 + changes).named_parameters()}
            at_a_change(name, twin, fresh, kind)
            changes += 1
            moved = {key for key, p in net.named_parameters() if not torch.equal(p, before[key])}

        for key, p in net.named_parameters():
            assert torch.allclose(p, twin.w[key], rtol=0, atol=1e-9), (step, key)
            state = optimizer.state[p]
            assert torch.allclose(state["exp_avg"], twin.m[key], rtol=0, atol=1e-9), (step, key)
            assert torch.allclose(state["exp_avg_sq"], twin.v[key], rtol=0, atol=1e-9), (step, key)
            assert state["step"].item() == twin.t[key], (step, key)
    every, heads = set(twin.w), {key for key in twin.w if key.partition(".")[0] in HEADS[kind]}
    expected = {
        "reset": every, "reset-head": heads, "shrink-and-perturb": every,
        "fire": {key for key, w in twin.w.items() if w.ndim > 1} - heads,
    }  # fmt: skip
    assert moved == expected.get(name, set())
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(map(id, net.parameters()))
