"""Rows and columns of hidden units: found whatever the order of features, and refused where they cannot be told."""

import copy

import pytest
import torch
from torch import nn

from agents.dqn_minatar import QNetwork
from agents.ppo_control import ActorCritic
from agents.ppo_minatar import ActorCritic as MinAtarActorCritic
from elr.interventions.recycle import recycle_, tensors_by_name
from elr.interventions.units import hidden_units


def flatten_channels_first():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 4, 10, bias=False), nn.LayerNorm(10), nn.GELU(), nn.Linear(10, 3),
    )  # fmt: skip


class Shared(nn.Module):
    """Two heads on one layer, the first of them on a part of its units after a permutation."""

    def __init__(self):
        super().__init__()
        self.body, self.relu = nn.Linear(5, 8), nn.ReLU()
        self.first, self.second = nn.Linear(4, 2), nn.Linear(8, 3)

    def forward(self, x):
        h = self.relu(self.body(x))
        return {"one": self.first(h.flip(1)[:, :4]), "two": self.second(h)}


CASES = {
    "sequential": (flatten_channels_first, (2, 8, 8), ["1", "5", "9"]),
    "channels last": (lambda: QNetwork(4, 6), (4, 10, 10), ["conv_relu", "hidden_relu"]),
    "plain": (lambda: QNetwork(4, 6, normalised=False), (4, 10, 10), ["conv_relu", "hidden_relu"]),
    "separate networks": (lambda: ActorCritic(4, 2, 16, True), (4,), None),
    "two heads": (lambda: MinAtarActorCritic(4, 6), (4, 10, 10), None),
    "parts of a layer": (Shared, (5,), ["relu"]),
}  # fmt: skip


def built(name):
    make, shape, layers = CASES[name]
    torch.manual_seed(1)
    network = make().double()
    with torch.no_grad():
        for parameter in network.parameters():  # gains and offsets too differ from unit to unit
            parameter.add_(0.1 * torch.rand_like(parameter))
    x = torch.randn(8, *shape, dtype=torch.float64)
    return network.eval(), x, layers or network.probed


def outputs(network, x):
    out = network(x)
    tensors = out.values() if isinstance(out, dict) else out if isinstance(out, tuple) else [out]
    return torch.cat([one.flatten() for one in tensors])


@pytest.mark.parametrize("name", CASES)
def test_a_unit_without_readers_does_not_matter_and_no_other_changes(name):
    """Zero in the columns of one unit is the same as zero in its activity, for every unit."""
    network, x, layers = built(name)
    for hidden in hidden_units(network, layers, x[:2]):
        mattered = 0
        for unit in range(min(hidden.units, 7)):
            cut = copy.deepcopy(network)
            parameters = dict(cut.named_parameters())
            with torch.no_grad():
                for reader in hidden.readers:
                    parameters[f"{reader.name}.weight"][:, reader.columns[reader.unit_of == unit]] = 0

            def silence(module, args, output, hidden=hidden, unit=unit):
                dim = next(d for d in range(output.ndim) if d not in hidden.other_dims)
                mask = torch.ones(hidden.units).index_fill(0, torch.tensor([unit]), 0.0)
                return output * mask.reshape([-1 if d == dim else 1 for d in range(output.ndim)])

            handle = network.get_submodule(hidden.name).register_forward_hook(silence)
            silent = outputs(network, x)
            handle.remove()
            assert torch.allclose(outputs(cut, x), silent, atol=1e-12)
            mattered += not torch.allclose(outputs(network, x), silent, atol=1e-9)
        assert mattered >= 2


@pytest.mark.parametrize("name", CASES)
def test_makers_are_all_parameters_of_the_layer_and_of_norm_layers_behind_it(name):
    network, x, layers = built(name)
    for hidden in hidden_units(network, layers, x[:2]):
        for key, tensor in hidden.makers.items():
            assert tensor is tensors_by_name(network)[key] and tensor.shape[0] == hidden.units
        names = [key.rsplit(".", 1)[0] for key in hidden.makers]
        owners = [network.get_submodule(one) for one in dict.fromkeys(names)]
        every = {id(p) for owner in owners for p in (*owner.parameters(False), *owner.buffers(False)) if p.ndim}
        assert every == {id(p) for p in hidden.makers.values()}


def test_nothing_is_left_behind():
    network, x, layers = built("sequential")
    network.train()
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(5)
    hidden_units(network, layers, x[:2])
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert network.training and all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.relu, self.two = nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)

    def forward(self, x):
        h = self.relu(self.one(x))
        return self.two(h) + h


class Twice(Residual):
    def forward(self, x):
        return self.two(self.relu(self.one(self.relu(self.one(x)))))


class Doubled(Residual):
    def forward(self, x):
        return self.two(self.relu(2 * self.one(x)))


class Scaled(Residual):
    def forward(self, x):
        return self.two(2 * self.relu(self.one(x)))


class InPlace(Residual):
    def forward(self, x):
        h = self.one(x)
        h += x
        return self.two(self.relu(h))


class Selecting(Residual):
    def forward(self, x):
        h = self.relu(self.one(x))
        return self.two(torch.cat([torch.maximum(h[:, :2], h[:, 2:4]), h[:, 2:]], 1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.relu, self.two, self.three = nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 5)
        self.three.weight = self.one.weight

    def forward(self, x):
        return self.three(self.two(self.relu(self.one(x))))


class Hiding(Residual):
    """A residual network whose head is zero at first: no test on its output alone could show what reads the units."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 2)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        h = self.relu(self.one(x))
        return self.head(self.two(h) + h)


class Distribution(Residual):
    def forward(self, x):
        return torch.distributions.Categorical(logits=self.two(self.relu(self.one(x))))


class Twin(nn.Module):
    """The same norm layer twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm, self.relu, self.head = (
            nn.Linear(5, 5), nn.Linear(5, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 2)
        )  # fmt: skip

    def forward(self, x):
        return self.head(self.relu(self.norm(self.two(self.norm(self.one(x))))))


class Pair(nn.Module):
    def forward(self, x):
        return torch.cat([x.relu(), (-x).relu()], 1)


@pytest.mark.parametrize(
    ("network", "layers", "message"),
    [
        (Residual(), ["relu"], "besides two something else reads the output of relu"),
        (Twice(), ["relu"], "relu is called 2 times in a forward pass"),
        (Doubled(), ["relu"], "the input of relu comes from something that is no module"),
        (Scaled(), ["relu"], "no linear or convolutional layer reads the output of relu as it is"),
        (InPlace(), ["relu"], "the input of relu comes from something that is no module"),
        (Selecting(), ["relu"], r"no layer reads units \[0, 1\] of relu as they are"),
        (Tied(), ["relu"], "one and three share a weight"),
        (Hiding(), ["relu"], "besides two something else reads the output of relu"),
        (Distribution(), ["relu"], "the network returns no tensor"),
        (Twin(), ["relu"], "norm, in front of relu, is called more than once"),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), ["1", "1"], "layers names one twice"),
        (nn.Sequential(nn.Linear(5, 4), Pair(), nn.Linear(8, 2)), ["1"], r"1 makes \(2, 8\) of the \(2, 4\) of 0"),
        (nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.ReLU()), ["2"], "comes from 1, a Tanh"),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU()), ["1"], "no linear or convolutional layer reads"),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU()), ["x"], r"layers \['x'\] do not exist; there are \['0', '1'\]"),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU()), [], "layers must be a list of names"),
    ],
)
def test_units_that_cannot_be_told_apart_are_refused(network, layers, message):
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=message):
        hidden_units(network, layers, torch.randn(2, 5))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_mean_activity_is_over_batch_and_space():
    network, x, layers = built("channels last")
    conv, dense = hidden_units(network, layers, x[:2])
    h = torch.randn(3, 16, 8, 8)
    assert torch.allclose(conv.mean_activity(h), h.abs().mean((0, 2, 3)))
    h = torch.randn(3, 128)
    assert torch.allclose(dense.mean_activity(h), h.abs().mean(0))


@pytest.mark.parametrize(
    "reader", [nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4)]
)
def test_readers_whose_columns_are_not_single_units_are_refused(reader):
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), reader)
    with pytest.raises(ValueError, match="is transposed, in groups, or has no weight of its own"):
        hidden_units(network, ["1"], torch.randn(2, 2, 8, 8))


def test_half_precision_cannot_name_units_and_is_refused():
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    with pytest.raises(ValueError, match=r"single or double precision, not in torch\.bfloat16"):
        hidden_units(network, ["1"], torch.randn(2, 5).bfloat16())


def test_a_norm_layer_over_space_belongs_to_no_unit():
    """Its gain has one entry per image column, as many as there are channels."""
    network = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.LayerNorm(8), nn.ReLU(), nn.Conv2d(8, 2, 3))
    (hidden,) = hidden_units(network, ["2"], torch.randn(2, 2, 8, 8))
    assert set(hidden.makers) == {"0.weight", "0.bias"}


def test_running_statistics_of_a_unit_are_those_of_a_new_layer_after_recycling():
    torch.manual_seed(1)
    network, fresh = (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))
    network[1].running_mean += 7.0
    (hidden,) = hidden_units(network, ["2"], torch.randn(2, 5))
    recycle_(hidden, torch.tensor([False, True, False, False]), tensors_by_name(fresh))
    assert network[1].running_mean.tolist() == [7.0, 0.0, 7.0, 7.0]


def test_an_input_that_happens_to_be_a_mark_is_no_unit():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.relu, self.two = nn.Linear(5, 4), nn.ReLU(), nn.Linear(9, 2)

        def forward(self, x):
            return self.two(torch.cat([x, self.relu(self.one(x))], 1))

    (hidden,) = hidden_units(Both(), ["relu"], torch.full((2, 5), 4101.0))
    (reader,) = hidden.readers
    assert reader.columns.tolist() == [5, 6, 7, 8] and reader.unit_of.tolist() == [0, 1, 2, 3]
