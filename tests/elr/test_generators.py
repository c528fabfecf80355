"""Whatever takes several names or parameters also takes a generator of them, which can be read only once."""

import pytest
import torch
from torch import nn

import elr
from elr.fast.flat_adam import FlatAdam
from elr.interventions import ContinualBackprop, ReDo, WeightClipping, fire_, reset_
from elr.moments import reset_moments_
from elr.projection import project_gains_, project_to_norms_
from elr.weights import scalable_weights


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1))


def once(*items):
    yield from items


INPUTS = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


def of_flat_adam(several):
    net = network()
    optimizer = FlatAdam(several(*net.parameters()), lr=0.1, eps=1e-8)
    net(INPUTS).sum().backward()
    optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def of_moments(several):
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    net(INPUTS).sum().backward()
    optimizer.step()
    reset_moments_(optimizer, several(*net[0].parameters()))
    return [optimizer.state[p]["exp_avg"] for p in net.parameters()]


def of_projection(several):
    net = network()
    projection = elr.Projection(net, heads=several("3"), allow_scale_dependent=True)
    with torch.no_grad():
        net[0].weight.mul_(3)
    projection.step(0.1)
    return [net[0].weight]


def of_reset(several):
    net, fresh = network(), network()
    with torch.no_grad():
        fresh[3].weight.fill_(7)
    reset_(net, fresh, modules=several("3"))
    return list(net.parameters())


def of_clipping(several):
    net = network()
    with torch.no_grad():
        net[0].weight.mul_(100)
        net[3].weight.mul_(100)
    WeightClipping(net, kappa=0.01, leave=several("3"))
    return list(net.parameters())


def of_fire(several):
    net = network()
    fire_(net, leave=several("3"))
    return list(net.parameters())


def of_functions(several):
    net = network()
    project_to_norms_(several(net[0].weight.data, net[3].weight.data), several(1.0, 2.0))
    project_gains_(several(net[1].weight.data), several(net[1].bias.data))
    return list(net.parameters())


CALLS = {
    "FlatAdam": of_flat_adam,
    "reset_moments_": of_moments,
    "Projection": of_projection,
    "reset_": of_reset,
    "WeightClipping": of_clipping,
    "fire_": of_fire,
    "project_to_norms_, project_gains_": of_functions,
    "Probe": lambda several: elr.Probe(network(), INPUTS, several("2"), every=1).measure(),
    "ReDo": lambda several: [hidden.name for hidden in ReDo(network(), several("2"), INPUTS).hidden],
    "ContinualBackprop": lambda several: [h.name for h in ContinualBackprop(network(), several("2"), INPUTS).hidden],
    "scalable_weights": lambda several: list(scalable_weights(network(), heads=several("3"))),
    "layout": lambda several: elr.layout(several("0"), several("2")),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_generator_does_the_same_as_a_list(name):
    expected, found = CALLS[name](lambda *items: list(items)), CALLS[name](once)
    assert len(found) == len(expected) > 0
    if isinstance(found, list):
        assert all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(found, expected, strict=True)
        )
    else:
        assert found == expected
