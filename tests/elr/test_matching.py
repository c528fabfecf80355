"""ELR matching: the rescaled step by hand, interpolation, and the realised rate in real training."""

import math

import pytest
import torch
from torch import nn

from elr.matching import ElrMatch, NoElrMatch
from elr.measure import Meter
from elr.weights import scalable_weights


def test_the_step_is_rescaled_by_hand():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))  # norm 5
    match = ElrMatch({"w": weight}, {"w": [(1, 0.2)]})
    match.before_step()
    with torch.no_grad():
        weight.add_(torch.tensor([[0.0, 7.0]]))
    match.after_step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[3.0, 5.0]]))  # a step of 0.2 * 5, in the same direction
    match.before_step()
    match.after_step()  # no step: no direction
    torch.testing.assert_close(weight.detach(), torch.tensor([[3.0, 5.0]]))


def test_targets_are_interpolated_between_points_and_constant_beyond():
    match = ElrMatch({"w": torch.ones(2)}, {"w": [(10, 1e-2), (20, 1e-4), (30, 1e-4)], "other": []})
    expected = {1: 1e-2, 10: 1e-2, 15: 1e-3, 18: 1e-2 * 100**-0.8, 20: 1e-4, 25: 1e-4, 30: 1e-4, 99: 1e-4}
    for update, target in expected.items():
        assert match.target("w", update) == pytest.approx(target, rel=1e-12)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_realised_rate_is_the_target_with_weight_decay_too(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    x, y = torch.randn(64, 6), torch.randn(64, 2)
    optimizer = kind(net.parameters(), lr=0.01, weight_decay=0.1)
    weights = scalable_weights(net, heads=())
    match = ElrMatch(weights, {layer: [(1, 0.05), (40, 0.002)] for layer in weights})
    meter = Meter(weights, every=1, optimizer=optimizer, nominal_power=1)
    for update in range(1, 41):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        meter.before_step()
        match.before_step()
        optimizer.step()
        match.after_step()
        assert meter.after_step()
        for layer in weights:
            assert meter.scalars()[f"elr/{layer}"] == pytest.approx(match.target(layer, update), rel=1e-4)
    assert match.target("0", 40) == 0.002


def test_state_and_refusals():
    weights = {"a": torch.ones(3), "b": torch.ones(2)}
    for targets, message in (
        ({"a": [(1, 0.1)]}, "have no target"),
        ({"a": [(1, 0.1)], "b": []}, "in rising order"),
        ({"a": [(2, 0.1), (1, 0.1)], "b": [(1, 0.1)]}, "in rising order"),
        ({"a": [(1, 0.0)], "b": [(1, 0.1)]}, "positive"),
        ({"a": [(1, math.nan)], "b": [(1, 0.1)]}, "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            ElrMatch(weights, targets)
    with pytest.raises(ValueError, match="at least one layer"):
        ElrMatch({}, {})
    first = ElrMatch(weights, {"a": [(1, 0.1), (3, 0.3)], "b": [(1, 0.2)]})
    first.before_step(), first.after_step()
    second = ElrMatch(weights, {"a": [(1, 9.0)], "b": [(1, 9.0)]})
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict() and second.target("a", 2) == first.target("a", 2)
    with pytest.raises(ValueError, match="saved targets"):
        second.load_state_dict({"targets": {"a": [[1, 0.1]]}, "updates": 1})


def test_no_elr_match_does_nothing():
    match = NoElrMatch()
    match.before_step()
    match.after_step()
    assert match.state_dict() == {}
    match.load_state_dict({})
    with pytest.raises(ValueError, match="NoElrMatch needs exactly"):
        match.load_state_dict({"targets": {}, "updates": 0})
