"""The check that the output ignores the scale of the weights."""

import math

import pytest
import torch
from torch import nn

from elr.scale_invariance import check_scale_invariance
from elr.weights import scalable_weights
from tests.elr.networks import Noisy, fill, inputs, mlp, noisy_mlp, same, snapshot


def _conv(seed: int = 0) -> nn.Module:
    layers = [nn.Conv2d(4, 8, 3, bias=False), nn.LayerNorm([8, 8, 8]), nn.ReLU(), nn.Flatten()]
    return fill(nn.Sequential(*layers, nn.Linear(512, 3)), seed)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d])
def test_normalised_networks_pass_and_are_not_disturbed(norm):
    network = mlp(norm).train()
    network[2].eval()
    before, modes, state = snapshot(network), [m.training for m in network.modules()], torch.get_rng_state()
    check_scale_invariance(network, inputs(32, 6), scalable_weights(network))
    assert same(before, snapshot(network))
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_convolution_before_layer_norm_passes():
    network = _conv()
    check_scale_invariance(network, inputs(4, 4, 10, 10), scalable_weights(network))


def test_error_names_unnormalised_layers():
    network = fill(nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                                  nn.Linear(16, 3)), 0)  # fmt: skip
    with pytest.raises(ValueError, match="allow_scale_dependent=True") as failure:
        check_scale_invariance(network, inputs(32, 6), scalable_weights(network))
    assert "'3' (" in str(failure.value) and "'0' (" not in str(failure.value)


def test_large_output_bias_or_small_head_does_not_hide_a_dependence():
    network = fill(nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 3)), 0)
    with torch.no_grad():
        network[2].weight.mul_(0.01)
        network[2].bias.fill_(10.0)
    with pytest.raises(ValueError, match="depends on the scale of '0'"):
        check_scale_invariance(network, inputs(32, 6), scalable_weights(network))


def test_bias_before_the_normalisation_and_the_head_are_errors():
    network = fill(nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)), 0)
    with torch.no_grad():
        network[0].bias.copy_(inputs(16, seed=5))
    with pytest.raises(ValueError, match="'0'"):
        check_scale_invariance(network, inputs(32, 6), scalable_weights(network))
    with pytest.raises(ValueError, match="'6'"):
        check_scale_invariance(mlp(), inputs(32, 6), scalable_weights(mlp(), heads=()) | {"6": _head(network)})


def _head(network: nn.Module) -> nn.Parameter:
    return network[-1].weight


def test_networks_that_cannot_be_judged_are_errors():
    network = mlp()
    weights = scalable_weights(network)
    with pytest.raises(ValueError, match="does not depend on"):
        check_scale_invariance(network, torch.zeros(4, 6), weights)
    with torch.no_grad():
        network[-1].weight.zero_()
    with pytest.raises(ValueError, match="does not depend on"):
        check_scale_invariance(network, inputs(4, 6), weights)
    with pytest.raises(ValueError, match="not finite"):
        check_scale_invariance(network, torch.full((4, 6), math.nan), weights)
    for bad in ({"factors": (1.0,)}, {"factors": (0.0,)}, {"factors": ()}, {"tolerance": 0.0}, {"weights": {}}):
        with pytest.raises(ValueError):
            check_scale_invariance(network, inputs(4, 6), **({"weights": weights} | bad))


def test_effect_of_eps_is_as_documented():
    variance, factor = 0.05, 0.5
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm(2, eps=1e-3), nn.Linear(2, 2)).double()
    with torch.no_grad():
        network[0].weight.copy_(math.sqrt(variance) * torch.eye(2))
    x = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    with torch.no_grad():
        before = network[1](network[0](x))
        change = (network[1](factor * network[0](x)) - before).norm() / before.norm()
    assert float(change) == pytest.approx(abs(1 - factor**-2) * 1e-3 / (2 * variance), rel=0.1)


def test_everything_is_restored_when_the_forward_pass_raises():
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.calls = mlp(nn.BatchNorm1d), 0

        def forward(self, x):
            self.calls += 1
            out = self.body(x)
            if self.calls == 3:
                raise RuntimeError("boom")
            return out

    network = Fragile().train()
    before = snapshot(network)
    with pytest.raises(RuntimeError, match="boom"):
        check_scale_invariance(network, inputs(8, 6), scalable_weights(network))
    assert same(before, snapshot(network))
    assert all(module.training for module in network.modules())


def test_a_weight_is_scaled_together_with_its_partner():
    check_scale_invariance(network := noisy_mlp(), inputs(32, 6), scalable_weights(network))
    before = snapshot(network)
    with pytest.raises(ValueError, match="depends on the scale of '0'"):  # the mean alone
        network[0].__class__ = type("Undeclared", (Noisy,), {"scaled_with_weight": None})
        check_scale_invariance(network, inputs(32, 6), scalable_weights(network, leave=["0.weight_sigma"]))
    unnormalised = noisy_mlp(nn.Identity)
    with pytest.raises(ValueError, match=r"'0' \(.*'3' \("):
        check_scale_invariance(unnormalised, inputs(32, 6), scalable_weights(unnormalised))
    assert same(before, snapshot(network)) and same(snapshot(unnormalised), snapshot(noisy_mlp(nn.Identity)))
