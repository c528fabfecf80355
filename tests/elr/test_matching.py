"""ELR matching: the rates by hand, and an unconstrained scale-invariant network that follows its projected twin."""

import pytest
import torch
from torch import nn

from elr.matching import ElrMatch
from elr.projection import project_to_norms_, scalable_weights


def grouped(weights, lr=0.1, kind=torch.optim.SGD, **kwargs):
    return kind([{"params": [w]} for w in weights], lr=lr, **kwargs)


def test_rates_by_hand():
    one, two = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([2.0]))
    for power, expected in ((1, [0.2, 0.05]), (2, [0.4, 0.025])):
        with torch.no_grad():
            one.copy_(torch.tensor([[3.0, 4.0]])), two.fill_(2.0)
        optimizer = grouped([one, two])
        match = ElrMatch(optimizer, {"one": one, "two": two}, power)
        with torch.no_grad():
            one.mul_(2.0), two.mul_(-0.5)
        match.step(0.1)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)
        match.step(0.1)  # from the rate, not from the rate before
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)


@pytest.mark.parametrize("kind, power, rate", [(torch.optim.SGD, 2, 0.5), (torch.optim.Adam, 1, 0.02)])
def test_a_scale_invariant_network_follows_its_projected_twin(kind, power, rate):
    """Unconstrained and matched, a layer keeps the direction of its projected twin while its norm grows."""
    torch.manual_seed(0)

    def build():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(6, 16, bias=False), nn.LayerNorm(16, 1e-12), nn.ReLU(), nn.Linear(16, 2))
        return net.double()

    free, projected = build(), build()
    x, y = torch.randn(64, 6, dtype=torch.float64), torch.randn(64, 2, dtype=torch.float64)
    settings = {"eps": 1e-30} if kind is torch.optim.Adam else {}
    optimizers = [grouped([net[0].weight], lr=rate, kind=kind, **settings) for net in (free, projected)]
    rho = float(projected[0].weight.detach().norm())
    match = ElrMatch(optimizers[0], {"0": free[0].weight}, power)
    for _ in range(30):
        match.step(rate)
        for net, optimizer in zip((free, projected), optimizers, strict=True):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
        project_to_norms_([projected[0].weight.detach()], [rho])
    grown = float(free[0].weight.detach().norm())
    assert grown > 1.01 * rho
    directions = [net[0].weight.detach() / net[0].weight.detach().norm() for net in (free, projected)]
    # SGD exactly up to rounding; Adam's moments mix gradients of different scale, which the match does not undo
    torch.testing.assert_close(*directions, rtol=0.0, atol=1e-9 if power == 2 else 0.02)


def test_state_and_refusals():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    weights = scalable_weights(net, heads=())
    with pytest.raises(ValueError, match="shares its parameter group"):
        ElrMatch(torch.optim.SGD(net.parameters(), lr=0.1), weights, 1)
    with pytest.raises(ValueError, match="does not hold '2'"):
        ElrMatch(grouped([net[0].weight]), weights, 1)
    with pytest.raises(ValueError, match="power 3"):
        ElrMatch(grouped(weights.values()), weights, 3)
    with pytest.raises(ValueError, match="at least one weight"):
        ElrMatch(grouped(weights.values()), {}, 1)
    optimizer = grouped(weights.values())
    match = ElrMatch(optimizer, weights, 1)
    state = match.state_dict()
    with torch.no_grad():
        net[0].weight.mul_(3.0)
    resumed = ElrMatch(optimizer, weights, 1)
    resumed.load_state_dict(state)
    resumed.step(0.1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="saved norms"):
        resumed.load_state_dict({"norms": {"0": 1.0}})
    with torch.no_grad():
        net[2].weight.zero_()
    with pytest.raises(ValueError, match="non-zero"):
        ElrMatch(optimizer, weights, 1)
