"""Per-layer learning rates: a hand-worked table, completeness, and what is refused."""

import pytest
import torch
from torch import nn

from elr.layerwise import layerwise_groups

NAMES = ["body.first", "body.norm", "body.second", "head"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict(
            {"first": nn.Conv2d(1, 2, 1), "norm": nn.LayerNorm(2), "second": nn.Linear(2, 2, bias=False)}
        )
        self.head = nn.Linear(2, 1)
        with torch.no_grad():
            self.body["first"].weight.copy_(torch.tensor([0.5, -0.5]).view(2, 1, 1, 1))
            self.body["first"].bias.zero_()  # mean |.| of {.5, .5, 0, 0} = 0.25
            self.body["second"].weight.copy_(torch.tensor([[0.5, -0.5], [0.25, -0.75]]))  # mean |.| = 0.5
            self.head.weight.copy_(torch.tensor([[0.1, -0.3]]))
            self.head.bias.fill_(-0.2)  # mean |.| of {.1, .3, .2} = 0.2


@pytest.mark.parametrize(
    ("assignment", "rates"),
    [
        ("constant", [0.01, 0.01, 0.01, 0.01]),
        ("fast-features", [0.01, 0.01, 0.01, 0.001]),
        ("slow-features", [0.001, 0.001, 0.001, 0.01]),
        ("even-ratio-abs", [0.005, 0.01, 0.01, 0.004]),
    ],
)
def test_hand_worked_table(assignment, rates):
    groups = layerwise_groups(Net(), 0.01, assignment, "head")
    assert [group["name"] for group in groups] == NAMES
    assert [group["lr"] for group in groups] == pytest.approx(rates, rel=1e-6)


@pytest.mark.parametrize("assignment", ["constant", "fast-features", "slow-features", "even-ratio-abs"])
def test_every_parameter_is_in_exactly_one_group_and_adam_moves_it_by_its_rate(assignment):
    network = Net()
    groups = layerwise_groups(network, 0.01, assignment, "head")
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(parameter) for parameter in network.parameters()}
    before = {id(parameter): parameter.detach().clone() for parameter in network.parameters()}
    optimizer = torch.optim.Adam(groups, lr=123.0)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moved = (before[id(parameter)] - parameter.detach()).abs()
            torch.testing.assert_close(moved, torch.full_like(moved, group["lr"]), rtol=1e-3, atol=1e-7)


def test_a_module_registered_twice_is_one_layer():
    network = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    network["again"] = network["encoder"]
    assert [group["name"] for group in layerwise_groups(network, 0.1, "constant", "head")] == ["encoder", "head"]


def test_refusals():
    network = Net()
    for lr in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="lr must be positive"):
            layerwise_groups(network, lr, "constant", "head")
    with pytest.raises(ValueError, match="unknown"):
        layerwise_groups(network, 0.1, "slow", "head")
    for head in ("body", "tail"):
        with pytest.raises(ValueError, match=f"head='{head}'"):
            layerwise_groups(network, 0.1, "constant", head)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
    with pytest.raises(ValueError, match=r"cannot rate layers.*'head': 0\.0"):
        layerwise_groups(network, 0.1, "even-ratio-abs", "head")
    network.head.weight = network.body["second"].weight
    with pytest.raises(ValueError, match=r"'body\.second' and 'head' share"):
        layerwise_groups(network, 0.1, "constant", "head")
