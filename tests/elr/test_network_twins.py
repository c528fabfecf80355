"""Projection of four kinds of network against the arithmetic written out, over lists of parameters made by hand.

The twin is a second network that the same optimiser trains on the same batches in float64. After every step each group
of parameters is scaled to the joint norm that it had at the start.
"""

import copy
import math

import pytest
import torch
from torch import nn

from elr.projection import Projection
from tests.elr.networks import ImageTransformer, RawNoisy, Recurrent, ResNet, inputs

STEPS = 200
RATE = 0.01


def _transformer():
    torch.manual_seed(0)
    network = ImageTransformer()
    for block in network.blocks:  # softmax ignores a bias of the keys: its gradient is rounding, which Adam magnifies
        block.attention.in_proj_bias.requires_grad_(False)
    options = {"leave": ["class_token", "positions"], "allow_scale_dependent": True}
    groups = [
        ["patches.weight"],
        ["blocks.0.attention.in_proj_weight"],
        ["blocks.0.attention.out_proj.weight"],
        ["blocks.0.up.weight"],
        ["blocks.0.down.weight"],
        ["blocks.1.attention.in_proj_weight"],
        ["blocks.1.attention.out_proj.weight"],
        ["blocks.1.up.weight"],
        ["blocks.1.down.weight"],
        ["blocks.0.norm1.weight", "blocks.0.norm1.bias"],
        ["blocks.0.norm2.weight", "blocks.0.norm2.bias"],
        ["blocks.1.norm1.weight", "blocks.1.norm1.bias"],
        ["blocks.1.norm2.weight", "blocks.1.norm2.bias"],
        ["norm.weight", "norm.bias"],
    ]
    return network, options, groups, (8, 1, 4, 4)


def _resnet():
    torch.manual_seed(1)
    network = ResNet()
    options = {"leave": ["blocks.0.norm2", "blocks.1.norm2"], "check_inputs": inputs(8, 1, 6, 6).double()}
    groups = [
        ["stem.weight"],
        ["blocks.0.conv1.weight"],
        ["blocks.0.conv2.weight"],
        ["blocks.1.conv1.weight"],
        ["blocks.1.conv2.weight"],
        ["norm.weight", "norm.bias"],
        ["blocks.0.norm1.weight", "blocks.0.norm1.bias"],
        ["blocks.1.norm1.weight", "blocks.1.norm1.bias"],
    ]
    return network, options, groups, (8, 1, 6, 6)


def _lstm():
    torch.manual_seed(2)
    network = Recurrent(nn.LSTM(6, 8, num_layers=2), 8)
    groups = [
        ["recurrent.weight_ih_l0"],
        ["recurrent.weight_hh_l0"],
        ["recurrent.weight_ih_l1"],
        ["recurrent.weight_hh_l1"],
    ]
    return network, {"allow_scale_dependent": True}, groups, (8, 5, 6)


def _noisy():
    torch.manual_seed(3)
    hidden = [nn.Linear(6, 16, bias=False), nn.LayerNorm(16), nn.ReLU(), RawNoisy(16, 16), nn.LayerNorm(16), nn.ReLU()]
    network = nn.Sequential(*hidden, RawNoisy(16, 3, bias=True))
    options = {
        "more_weights": [("3.weight_mu", "3.weight_sigma")],
        "heads": ["6"],
        "check_inputs": inputs(32, 6).double(),
    }
    groups = [["0.weight"], ["3.weight_mu", "3.weight_sigma"], ["1.weight", "1.bias"], ["4.weight", "4.bias"]]
    return network, options, groups, (8, 6)


def _joint_norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(math.fsum(value * value for tensor in tensors for value in tensor.detach().flatten().tolist()))


@pytest.mark.parametrize("make", [_transformer, _resnet, _lstm, _noisy])
def test_projection_equals_the_arithmetic_written_out(make):
    network, options, groups, shape = make()
    network = network.double()
    twin, plain = copy.deepcopy(network), copy.deepcopy(network)
    projection = Projection(network, **options)
    assert len(projection.weights) + len(projection.state_dict()["gain_norms"]) == len(groups)
    parameters = dict(twin.named_parameters())
    radii = [_joint_norm([parameters[name] for name in group]) for group in groups]
    optimizers = [torch.optim.Adam(each.parameters(), lr=RATE) for each in (network, twin, plain)]
    for step in range(STEPS):
        x, y = inputs(*shape, seed=1000 + step).double(), inputs(8, 3, seed=5000 + step).double()
        for each, optimizer in zip((network, twin, plain), optimizers, strict=True):
            optimizer.zero_grad()
            (each(x) - y).square().mean().backward()
            optimizer.step()
        projection.step(RATE)
        with torch.no_grad():
            for group, radius in zip(groups, radii, strict=True):
                scale = radius / _joint_norm([parameters[name] for name in group])
                for name in group:
                    parameters[name].mul_(scale)
    ours, free = dict(network.named_parameters()), dict(plain.named_parameters())
    for name, expected in parameters.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-10, atol=1e-10)
    for group, radius in zip(groups, radii, strict=True):  # control: without projection the norms drift
        assert abs(_joint_norm([free[name] for name in group]) / radius - 1) > 1e-3, group
