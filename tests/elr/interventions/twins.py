"""Networks and streams on which a method is compared with a literal twin, and the twin's view of units."""

import copy

import torch
from torch import nn


class Mlp(nn.Module):
    """Two hidden layers; the second is read by two heads."""

    def __init__(self):
        super().__init__()
        self.one, self.relu1 = nn.Linear(6, 12), nn.ReLU()
        self.two, self.relu2 = nn.Linear(12, 10), nn.ReLU()
        self.head, self.value = nn.Linear(10, 4), nn.Linear(10, 1)
        self.layers = ["relu1", "relu2"]

    def forward(self, x):
        h = self.relu2(self.two(self.relu1(self.one(x))))
        return self.head(h), self.value(h)[:, 0]


class Cnn(nn.Module):
    """Convolution, convolution, flattened channels last, linear with LayerNorm, head."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(2, 5, 3), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(5, 4, 3, stride=2), nn.LeakyReLU(0.1)
        self.fc, self.norm, self.relu3 = nn.Linear(16, 9, bias=False), nn.LayerNorm(9), nn.ReLU()
        self.head = nn.Linear(9, 3)
        self.layers = ["relu1", "relu2", "relu3"]

    def forward(self, x):
        h = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        h = h.permute(0, 2, 3, 1).flatten(1)
        logits = self.head(self.relu3(self.norm(self.fc(h))))
        return logits, logits.mean(1)


SHAPES = {Mlp: (6,), Cnn: (2, 8, 8)}
MAKERS = {
    Mlp: {"relu1": ["one.weight", "one.bias"], "relu2": ["two.weight", "two.bias"]},
    Cnn: {
        "relu1": ["conv1.weight", "conv1.bias"], "relu2": ["conv2.weight", "conv2.bias"],
        "relu3": ["fc.weight", "norm.weight", "norm.bias"],
    },
}  # fmt: skip


def readers(kind, layer, unit):
    """[(name of the reader, columns that carry the unit)], written down by hand."""
    if kind is Mlp:
        return [("two", [unit])] if layer == "relu1" else [("head", [unit]), ("value", [unit])]
    if layer == "relu1":
        return [("conv2", [unit])]
    return [("fc", [4 * place + unit for place in range(4)])] if layer == "relu2" else [("head", [unit])]


def network(kind, seed):
    torch.manual_seed(seed)
    return kind().double()


def batches(kind, count, seed=7, size=16):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(size, *SHAPES[kind], generator=generator, dtype=torch.float64)
        yield x, torch.randint(3, (size,), generator=generator)


def loss_of(net, x, y):
    logits, value = net(x)
    return nn.functional.cross_entropy(logits, y) + value.square().mean()


def features(net, x):
    """Outputs of the nonlinearities on these inputs, by name."""
    found = {}
    handles = [
        net.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: found.update({name: out.detach()}))
        for name in net.layers
    ]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return found


def twin_recycle(net, kind, layer, unit, fresh, optimizer):
    """One unit: new rows, zero columns, moments of exactly these entries 0, step counts as they were."""
    parameters, new = dict(net.named_parameters()), dict(fresh.named_parameters())

    def forget(parameter, index):
        state = optimizer.state.get(parameter, {})
        for key in ("exp_avg", "exp_avg_sq"):
            if key in state:
                state[key][index] = 0

    with torch.no_grad():
        for name in MAKERS[kind][layer]:
            parameters[name][unit] = new[name][unit]
            forget(parameters[name], unit)
        for reader, columns in readers(kind, layer, unit):
            for column in columns:
                parameters[f"{reader}.weight"][:, column] = 0
                forget(parameters[f"{reader}.weight"], (slice(None), column))


def pair(kind, seed=3):
    """Two equal networks, each with an Adam of its own."""
    one = network(kind, seed)
    other = copy.deepcopy(one)
    return [(net, torch.optim.Adam(net.parameters(), lr=0.01)) for net in (one, other)]


def assert_equal(one, other, optimizer, other_optimizer, atol=1e-12, rtol=0.0):
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.allclose(a, b, rtol=rtol, atol=atol), name
        for key, value in optimizer.state[a].items():
            assert torch.allclose(value, other_optimizer.state[b][key], rtol=rtol, atol=atol), (name, key)
