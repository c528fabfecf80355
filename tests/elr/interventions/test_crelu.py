"""CReLU in a network, against the same network written out with its two halves apart."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from elr.flags import TriggeredSwitchArgs as SwitchArgs
from elr.interventions import CReLU, policy_divergence
from elr.interventions.flags import BASELINES, InterveneArgs
from elr.projection import NoProjection, Projection
from tests.elr.interventions import twins
from tests.elr.interventions.test_methods_against_twins import RATE, LiteralAdam


class Mlp(twins.Mlp):
    """With CReLU, which doubles the inputs of the next layers."""

    def __init__(self):
        super().__init__()
        self.relu1, self.two = CReLU(), nn.Linear(24, 10)
        self.relu2, self.head, self.value = CReLU(), nn.Linear(20, 4), nn.Linear(20, 1)
        self.heads = ["head", "value"]


class Cnn(twins.Cnn):
    """The same."""

    def __init__(self):
        super().__init__()
        self.relu1, self.conv2 = CReLU(), nn.Conv2d(10, 4, 3, stride=2)
        self.relu2, self.fc = CReLU(), nn.Linear(32, 9, bias=False)
        self.relu3, self.head = CReLU(), nn.Linear(18, 3)
        self.heads = ["head"]


KINDS = {Mlp: twins.Mlp, Cnn: twins.Cnn}


def above(z):
    return torch.where(z > 0, z, 0.0)


def below(z):
    return torch.where(z < 0, -z, 0.0)


def literal_mlp(w, x):
    """Each layer reads z > 0 with the first half of its columns, -z > 0 with the second."""
    z = x @ w["one.weight"].T + w["one.bias"]
    z = above(z) @ w["two.weight"][:, :12].T + below(z) @ w["two.weight"][:, 12:].T + w["two.bias"]
    logits, value = (
        above(z) @ w[f"{head}.weight"][:, :10].T + below(z) @ w[f"{head}.weight"][:, 10:].T + w[f"{head}.bias"]
        for head in ("head", "value")
    )
    return logits, value[:, 0]


def literal_cnn(w, x):
    """Likewise with channels; the linear layer's columns are [place, half, channel]."""
    z = F.conv2d(x, w["conv1.weight"], w["conv1.bias"])
    first, second = w["conv2.weight"][:, :5], w["conv2.weight"][:, 5:]
    z = F.conv2d(above(z), first, w["conv2.bias"], stride=2) + F.conv2d(below(z), second, stride=2)
    columns, z = w["fc.weight"].reshape(9, 4, 2, 4), z.flatten(2)  # [9, place, half, channel], [B, channel, place]
    z = torch.einsum("bcp,opc->bo", above(z), columns[:, :, 0]) + torch.einsum(
        "bcp,opc->bo", below(z), columns[:, :, 1]
    )
    z = (z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    z = z * w["norm.weight"] + w["norm.bias"]
    logits = above(z) @ w["head.weight"][:, :9].T + below(z) @ w["head.weight"][:, 9:].T + w["head.bias"]
    return logits, logits.mean(1)


LITERAL = {Mlp: literal_mlp, Cnn: literal_cnn}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_updates_equal_the_halves_written_out(kind):
    net = twins.network(kind, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    twin = LiteralAdam(net)
    start = {name: w.clone() for name, w in twin.w.items()}
    for step, (x, y) in enumerate(twins.batches(KINDS[kind], 100)):
        optimizer.zero_grad()
        twins.loss_of(net, x, y).backward()
        optimizer.step()
        w = {name: value.clone().requires_grad_() for name, value in twin.w.items()}
        logits, value = LITERAL[kind](w, x)
        loss = F.cross_entropy(logits, y) + value.square().mean()
        twin.step(dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True)))
        for name, p in net.named_parameters():
            assert torch.allclose(p, twin.w[name], rtol=0, atol=1e-9), (step, name)
            assert torch.allclose(optimizer.state[p]["exp_avg_sq"], twin.v[name], rtol=0, atol=1e-9), (step, name)
    for name, w in start.items():  # both halves learn, except of units that never change their sign
        moved = (twin.w[name] != w).double()
        assert moved.mean() > 0.9, name


def build(args, kind):
    net = twins.network(kind, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)

    def draw(count):
        return torch.randn(count, *twins.SHAPES[KINDS[kind]], dtype=torch.float64)

    return args.build(
        net, optimizer, NoProjection(), layers=net.layers, heads=net.heads, inputs=draw(2),
        fresh=lambda: twins.network(kind, 9), divergence=policy_divergence, batch=8, churn={},
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["redo", "continual-backprop"])
def test_units_with_two_outputs_are_not_recycled(name, kind):
    with pytest.raises(ValueError, match="single units can be told apart only where each output belongs to one"):
        build(BASELINES[name], kind)


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"redo", "continual-backprop"}))
def test_every_other_method_builds_on_it(name):
    build(BASELINES[name], Cnn)
    BASELINES[name].check("cusum", False, SwitchArgs(), 1e-3, True, activation="crelu")


@pytest.mark.parametrize("names", [("redo",), ("l2-init", "continual-backprop"), ("redo", "continual-backprop")])
def test_flags_refuse_it_by_both_names(names):
    only = " ".join(name for name in names if name != "l2-init")
    with pytest.raises(ValueError, match=rf"--intervene.methods {only} and --activation crelu"):
        InterveneArgs(names).check("cusum", False, SwitchArgs(), 1e-3, True, activation="crelu")
    InterveneArgs(names).check("cusum", False, SwitchArgs(), 1e-3, True, activation="relu")


class Normalised(nn.Module):
    """LayerNorm in front of every CReLU, no bias."""

    def __init__(self):
        super().__init__()
        self.one, self.norm1, self.relu1 = nn.Linear(6, 12, bias=False), nn.LayerNorm(12), CReLU()
        self.two, self.norm2, self.relu2 = nn.Linear(24, 10, bias=False), nn.LayerNorm(10), CReLU()
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        return self.head(self.relu2(self.norm2(self.two(self.relu1(self.norm1(self.one(x)))))))


def test_projection_leaves_the_output_as_it_is():
    net, x = Normalised().double(), torch.randn(8, 6, dtype=torch.float64)
    projection = Projection(net, heads=["head"], check_inputs=x)
    with torch.no_grad():
        before, norms = net(x), {name: float(weight.norm()) for name, weight in projection.weights.items()}
        torch._foreach_mul_(list(projection.weights.values()), 3.0)
        projection.step(0.1)
        assert {name: float(weight.norm()) for name, weight in projection.weights.items()} == pytest.approx(norms)
        assert set(norms) == {"one", "two"}
        assert torch.allclose(net(x), before, rtol=1e-12, atol=0)
