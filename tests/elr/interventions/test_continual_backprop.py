"""Continual backprop against a literal twin."""

import copy

import pytest
import torch

from elr.interventions import ContinualBackprop
from tests.elr.interventions import twins


@pytest.mark.parametrize("kind", [twins.Mlp, twins.Cnn])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_hundred_steps_equal_a_literal_twin(kind, resumed):
    rate, maturity, decay = 0.02, 7, 0.9
    (net, optimizer), (twin, twin_optimizer) = twins.pair(kind)
    inputs = torch.randn(2, *twins.SHAPES[kind]).double()

    def build():
        return ContinualBackprop(
            net, net.layers, inputs, optimizer=optimizer, rate=rate, maturity=maturity, decay=decay
        )

    cbp, total = build(), 0
    sizes = {name: act.shape[1] for name, act in twins.features(twin, inputs).items()}
    u, f, age, due = ({n: [0.0] * size for n, size in sizes.items()} for _ in range(4))
    due = dict.fromkeys(sizes, 0.0)
    for step, (x, y) in enumerate(twins.batches(kind, 100)):
        fresh = twins.network(kind, 200 + step)
        acts = twins.features(twin, x)  # of the weights before this update
        for one, opt in ((net, optimizer), (twin, twin_optimizer)):
            opt.zero_grad()
            twins.loss_of(one, x, y).backward()
            opt.step()
        if resumed and step == 50:  # as a checkpoint between the step and the next
            state = copy.deepcopy(cbp.state_dict())
            cbp.close()
            cbp = build()
            cbp.load_state_dict(state)
            twins.loss_of(net, x, y)  # weights have moved: the features of this update are those of the twin's pass
            cbp._seen = {
                n: (1, acts[n].abs().mean(dim=[d for d in range(acts[n].ndim) if d != 1]),
                    acts[n].mean(dim=[d for d in range(acts[n].ndim) if d != 1])) for n in sizes
            }  # fmt: skip
        replaced = cbp.step_(lambda fresh=fresh: fresh)
        # The twin: numbers, unit by unit.
        parameters, count = dict(twin.named_parameters()), 0
        for layer, size in sizes.items():
            for unit in range(size):
                age[layer][unit] += 1
                active = acts[layer][:, unit]
                weights = [
                    parameters[f"{reader}.weight"][:, column].detach().abs().flatten()
                    for reader, columns in twins.readers(kind, layer, unit)
                    for column in columns
                ]
                new = active.abs().mean().item() * torch.cat(weights).mean().item()
                u[layer][unit] = decay * u[layer][unit] + (1 - decay) * new
                f[layer][unit] = decay * f[layer][unit] + (1 - decay) * active.mean().item()
            mature = [unit for unit in range(size) if age[layer][unit] > maturity]
            due[layer] += rate * len(mature)
            number = int(due[layer])
            due[layer] -= number
            worst = sorted(mature, key=lambda unit: u[layer][unit] / (1 - decay ** age[layer][unit]))[:number]
            for unit in worst:
                mean = f[layer][unit] / (1 - decay ** age[layer][unit])
                with torch.no_grad():
                    for reader, columns in twins.readers(kind, layer, unit):
                        if f"{reader}.bias" in parameters:
                            for column in columns:
                                weight = parameters[f"{reader}.weight"][:, column]
                                parameters[f"{reader}.bias"] += mean * weight.reshape(len(weight), -1).sum(1)
            for unit in worst:
                twins.twin_recycle(twin, kind, layer, unit, fresh, twin_optimizer)
                u[layer][unit] = f[layer][unit] = 0.0
                age[layer][unit] = 0
            count += number
        assert replaced == count
        total += count
        twins.assert_equal(net, twin, optimizer, twin_optimizer, atol=1e-10)
    assert total >= 15


def test_a_dead_unit_is_the_first_to_go_and_the_output_stays_nearly_the_same():
    net = twins.network(twins.Mlp, 1)
    with torch.no_grad():
        net.one.bias[4] = -50.0
    cbp = ContinualBackprop(net, net.layers, torch.randn(2, 6).double(), rate=1 / 12, maturity=0)
    x = torch.randn(64, 6).double()
    before = net(x)[0].detach()
    assert cbp.step_(lambda: twins.network(twins.Mlp, 2)) == 1
    assert net.one.bias[4] > -1 and not net.two.weight[:, 4].any()
    assert torch.allclose(net(x)[0], before)  # it contributed nothing


def test_the_mean_contribution_moves_to_the_bias():
    net = twins.network(twins.Mlp, 1)
    x = torch.randn(64, 6).double()
    with torch.no_grad():
        net.one.weight[:] = 0.0
        net.one.bias[:] = torch.arange(1.0, 13.0)  # every unit is constant, unit 0 the least active
        net.two.weight[:] = 0.1
    cbp = ContinualBackprop(net, ["relu1"], x[:2], rate=1 / 12, maturity=0)
    before = net(x)[0].detach()
    assert cbp.step_(lambda: twins.network(twins.Mlp, 2)) == 1
    assert not net.two.weight[:, 0].any() and torch.allclose(net(x)[0], before)


def test_passes_without_gradients_do_not_count_and_none_is_refused():
    net = twins.network(twins.Mlp, 1)
    x = torch.randn(8, 6).double()
    cbp = ContinualBackprop(net, net.layers, x)
    with torch.no_grad():
        net(x)
    with pytest.raises(ValueError, match="no forward pass with gradients reached"):
        cbp.step_(lambda: net)
    cbp.close()
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("flags", [{"rate": 0.0}, {"rate": 2.0}, {"maturity": -1}, {"decay": 1.0}])
def test_bad_arguments_are_refused(flags):
    net = twins.network(twins.Mlp, 1)
    with pytest.raises(ValueError, match="rate must lie in"):
        ContinualBackprop(net, net.layers, torch.randn(2, 6).double(), **flags)


def test_a_state_of_other_widths_is_refused():
    net, other = twins.network(twins.Mlp, 1), twins.network(twins.Cnn, 1)
    state = ContinualBackprop(other, other.layers, torch.randn(2, 2, 8, 8).double()).state_dict()
    with pytest.raises(ValueError, match="the saved state is of"):
        ContinualBackprop(net, net.layers, torch.randn(2, 6).double()).load_state_dict(state)
