"""ReDo against a literal twin, and what it must and must not change."""

import copy

import pytest
import torch

from elr.interventions import ReDo
from elr.interventions.recycle import recycle_
from elr.interventions.units import hidden_units
from tests.elr.interventions import twins


def dull(net, layer, units):
    """Make some units of a layer nearly silent."""
    with torch.no_grad():
        for name in twins.MAKERS[type(net)][layer]:
            dict(net.named_parameters())[name][units] *= 1e-4
            if name.endswith("bias"):
                dict(net.named_parameters())[name][units] -= 1e-3


@pytest.mark.parametrize("kind", [twins.Mlp, twins.Cnn])
def test_a_hundred_steps_equal_a_literal_twin(kind):
    (net, optimizer), (twin, twin_optimizer) = twins.pair(kind)
    for one in (net, twin):
        dull(one, "relu1", [0, 2])
        dull(one, "relu2", [1])
    redo = ReDo(net, net.layers, torch.randn(2, *twins.SHAPES[kind]).double(), optimizer=optimizer, tau=0.3)
    recycled = 0
    for step, (x, y) in enumerate(twins.batches(kind, 100)):
        for one, opt in ((net, optimizer), (twin, twin_optimizer)):
            opt.zero_grad()
            twins.loss_of(one, x, y).backward()
            opt.step()
        if step % 20 == 10:
            fresh = twins.network(kind, 100 + step)
            counts = redo.step_(x, fresh)
            acts = twins.features(twin, x)
            chosen = {}
            for layer in twin.layers:
                units = acts[layer].shape[1]
                mean = [acts[layer][:, unit].abs().mean().item() for unit in range(units)]
                average = sum(mean) / units
                chosen[layer] = [unit for unit in range(units) if mean[unit] / (average + 1e-9) <= 0.3]
            for layer, units in chosen.items():
                for unit in units:
                    twins.twin_recycle(twin, kind, layer, unit, fresh, twin_optimizer)
            assert counts == {layer: len(units) for layer, units in chosen.items()}
            recycled += sum(counts.values())
        twins.assert_equal(net, twin, optimizer, twin_optimizer)
    assert recycled >= 3


@pytest.mark.parametrize("kind", [twins.Mlp, twins.Cnn])
def test_recycling_changes_its_entries_alone_and_the_output_by_what_the_unit_contributed(kind):
    (net, optimizer), _ = twins.pair(kind)
    for x, y in twins.batches(kind, 5):
        optimizer.zero_grad()
        twins.loss_of(net, x, y).backward()
        optimizer.step()
    before, layer = copy.deepcopy(net), net.layers[0]
    moments = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in net.parameters()}
    (hidden,) = hidden_units(net, [layer], x[:2])
    mask = torch.zeros(hidden.units, dtype=torch.bool)
    mask[1] = True
    recycle_(hidden, mask, dict(twins.network(kind, 9).named_parameters()), optimizer)
    touched = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in net.named_parameters()}
    for name in twins.MAKERS[kind][layer]:
        touched[name][1] = True
    for reader, columns in twins.readers(kind, layer, 1):
        touched[f"{reader}.weight"][:, columns] = True
    for (name, p), (_, old) in zip(net.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(p[~touched[name]], old[~touched[name]]), name
        for key, value in optimizer.state[p].items():
            same = moments[p][key]
            if value.shape == p.shape:
                assert torch.equal(value[~touched[name]], same[~touched[name]]) and not value[touched[name]].any()
            else:
                assert torch.equal(value, same)  # step counts go on
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in net.parameters()}
    # The unit contributes nothing now: as the old network with the unit's columns at zero.
    silent = before
    with torch.no_grad():
        for reader, columns in twins.readers(kind, layer, 1):
            dict(silent.named_parameters())[f"{reader}.weight"][:, columns] = 0
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(net(x), silent(x), strict=True))


def test_nothing_dormant_leaves_every_bit():
    (net, optimizer), _ = twins.pair(twins.Mlp)
    with torch.no_grad():  # no unit is dead
        net.one.bias += 3.0
        net.two.bias += 3.0
    before = copy.deepcopy(net.state_dict())
    redo = ReDo(net, net.layers, torch.randn(2, 6).double(), optimizer=optimizer, tau=0.0)
    assert redo.step_(torch.randn(64, 6).double(), twins.network(twins.Mlp, 5)) == {"relu1": 0, "relu2": 0}
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_scores_are_one_on_average_and_leave_no_trace():
    net = twins.network(twins.Cnn, 1).train()
    x = torch.randn(32, 2, 8, 8).double()
    redo = ReDo(net, net.layers, x[:2])
    for scores in redo.scores(x).values():
        assert scores.mean().item() == pytest.approx(1.0, abs=1e-6)
    assert net.training and not any(module._forward_hooks for module in net.modules())


def test_bad_arguments_are_refused():
    net, x = twins.network(twins.Mlp, 1), torch.randn(2, 6).double()
    with pytest.raises(ValueError, match="tau must be at least 0"):
        ReDo(net, net.layers, x, tau=float("nan"))
    (hidden, _), fresh = hidden_units(net, net.layers, x), dict(net.named_parameters())
    with pytest.raises(ValueError, match="relu1 has 12 units: give a mask of as many"):
        recycle_(hidden, torch.ones(3, dtype=torch.bool), fresh)
    with pytest.raises(ValueError, match="the fresh network has no"):
        recycle_(hidden, torch.ones(12, dtype=torch.bool), {})

    class Odd(torch.optim.SGD):
        def step(self):
            for p in self.param_groups[0]["params"]:
                self.state[p]["odd"] = torch.ones(())

    optimizer = Odd(net.parameters(), lr=0.1)
    optimizer.step()
    before, new = copy.deepcopy(net.state_dict()), dict(twins.network(twins.Mlp, 2).named_parameters())
    with pytest.raises(ValueError, match="odd"):
        recycle_(hidden, torch.ones(12, dtype=torch.bool), new, optimizer)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
