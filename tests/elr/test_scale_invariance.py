"""The check that the output ignores the scale of the weights."""

import math
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from elr.scale_invariance import Call, check_scale_invariance
from elr.weights import scalable_weights
from tests.elr.networks import HandWrittenNorm, Noisy, RawNoisy, fill, inputs, mlp, noisy_mlp, same, snapshot


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


@pytest.mark.parametrize("factors", [(0.5, 2.0), (2.0, 0.5)])
def test_every_factor_must_pass(factors):
    x = inputs(64, 6)
    network = nn.Sequential(
        nn.Linear(6, 16, bias=False), nn.Hardtanh(-5.0, 5.0), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)
    )
    fill(network, 0)
    with torch.no_grad():
        network[0].weight.mul_(4.0 / network[0](x).abs().max())  # only what twice the weight gives is clipped
    check_scale_invariance(network, x, scalable_weights(network), factors=(0.5,))
    with pytest.raises(ValueError, match=r"depends on the scale of '0' \("):
        check_scale_invariance(network, x, scalable_weights(network), factors=factors)


def test_an_even_function_of_the_weight_depends_on_it():
    """The other weight of the same norm is not only the negative one, which gives the same output here."""

    class Square(nn.Module):
        def forward(self, x):
            return x.square()

    network = fill(nn.Sequential(nn.Linear(6, 16, bias=False), nn.LayerNorm(16), Square(), nn.Linear(16, 3)), 0)
    check_scale_invariance(network, inputs(32, 6), scalable_weights(network))


def test_rounding_is_no_dependence():
    class Faint(nn.Module):
        """A layer whose part of the output is hardly more than the rounding of the rest."""

        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(6, 16, bias=False), nn.LayerNorm(16)), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(nn.functional.pad(x, (0, 10)) + 1e-7 * self.body(x))

    network = fill(Faint(), 0)
    with pytest.raises(ValueError, match=r"does not depend on \['body\.0'\]"):
        check_scale_invariance(network, inputs(64, 6), scalable_weights(network))


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


# arguments and outputs


class Takes(nn.Module):
    """Calls `forward` of a network as `how` says."""

    def __init__(self, network: nn.Module, how):
        super().__init__()
        self.network, self.how = network, how

    def forward(self, *args, **kwargs):
        return self.how(self.network, *args, **kwargs)


@dataclass
class Output:
    logits: torch.Tensor
    hidden: list[torch.Tensor] | None = None


def test_a_call_gives_positional_and_keyword_arguments():
    def how(network, observation, *, scale, nothing=None):
        assert isinstance(observation, dict) and nothing is None
        return network(observation["pixels"] * scale)

    network = Takes(mlp(), how)
    weights = scalable_weights(network)
    call = Call(({"pixels": inputs(8, 6)},), {"scale": torch.tensor(2.0)})
    check_scale_invariance(network, call, weights)
    network.network[4] = nn.Identity()
    with pytest.raises(ValueError, match=r"depends on the scale of 'network\.3' \("):
        check_scale_invariance(network, call, weights)
    for bad in ((inputs(8, 6),), {"x": inputs(8, 6)}, None):
        with pytest.raises(ValueError, match=r"give a tensor, or elr\.scale_invariance\.Call\(args=\(\.\.\.,\)"):
            check_scale_invariance(network, bad, weights)


@pytest.mark.parametrize(
    "nest",
    [
        lambda y: {"a": [y[:, :1], (y[:, 1:], None)]},
        lambda y: Output(y, [y]),
        lambda y: OrderedDict(logits=y, text="x"),
        lambda y: (torch.view_as_complex(y[:, :2].contiguous()), y.argmax(1)),
    ],
)
def test_every_floating_point_tensor_of_a_nest_is_compared(nest):
    network = Takes(mlp(), lambda network, x: nest(network(x)))
    check_scale_invariance(network, inputs(8, 6), scalable_weights(network))
    network.network[4] = nn.Identity()
    with pytest.raises(ValueError, match=r"depends on the scale of 'network\.3' \("):
        check_scale_invariance(network, inputs(8, 6), scalable_weights(network))


def test_whole_numbers_and_other_objects_are_no_evidence():
    for nest, found in (
        (lambda y: y.argmax(1), r"of type Tensor, .*: \['torch\.int64'\]"),
        (lambda y: torch.distributions.Normal(y, 1.0), "of type Normal, .*: none"),
    ):
        network = Takes(mlp(), lambda network, x, nest=nest: nest(network(x)))
        with pytest.raises(ValueError, match=f"the output, {found}"):
            check_scale_invariance(network, inputs(8, 6), scalable_weights(network))


def test_tensors_that_are_scaled_together_may_be_given_as_a_tuple():
    network = nn.Sequential(RawNoisy(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))
    layer = network[0]
    layer.forward = lambda x: nn.functional.linear(x, layer.weight_mu + layer.weight_sigma * layer.weight_epsilon)
    pair = layer.weight_mu, layer.weight_sigma
    check_scale_invariance(network, inputs(32, 6), {"0": pair})
    for alone in pair:
        with pytest.raises(ValueError, match="depends on the scale of '0'"):
            check_scale_invariance(network, inputs(32, 6), {"0": alone})
    network = noisy_mlp()  # its layers declare a partner, which goes with a tensor but not with a tuple
    check_scale_invariance(network, inputs(32, 6), {"0": network[0].weight})
    with pytest.raises(ValueError, match="depends on the scale of '0'"):
        check_scale_invariance(network, inputs(32, 6), {"0": (network[0].weight,)})


def test_random_states_of_the_devices_of_nested_inputs_are_kept(monkeypatch):
    """Without a GPU: a tensor that says it is on one."""

    class OnDevice(torch.Tensor):
        is_cuda, device = True, torch.device("cuda", 3)

        def get_device(self):
            return 3

    kept = []
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: kept.append(list(devices)) or fork(devices=[]))
    network = Takes(mlp(), lambda network, batch: network(batch["x"][0]))
    x = inputs(8, 6)
    call = Call(({"x": [x, torch.ones(1).as_subclass(OnDevice)]},))
    check_scale_invariance(network, call, scalable_weights(network))
    assert len(kept) == 8 and all(devices == [3] for devices in kept)  # around all, and around each forward pass


# biases, zero gains, running statistics


def test_a_bias_is_told_apart_from_other_dependences_and_everything_is_restored():
    layers = [nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)]
    network = fill(nn.Sequential(*layers, nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)), 0)
    with torch.no_grad():
        network[5].bias.copy_(inputs(16, seed=4))
    before = snapshot(network)
    # 0 has a zero bias before a norm; 3 has no norm, though without the bias of 5 it would have one behind it
    with pytest.raises(
        ValueError, match=r"depends on the scale of '3' \(.*each of \['0', '5'\] has a bias before"
    ) as why:
        check_scale_invariance(network, inputs(32, 6), scalable_weights(network))
    assert "\n" not in str(why.value) and same(before, snapshot(network))


def test_a_bias_that_the_normalisation_subtracts_passes():
    for norm in (nn.BatchNorm1d(16), nn.BatchNorm1d(16, track_running_stats=False).eval(), nn.Sequential()):
        network = fill(nn.Sequential(nn.Linear(6, 16), norm, nn.ReLU(), nn.Linear(16, 3)), 0)
        with torch.no_grad():
            network[0].bias.copy_(inputs(16, seed=5))
        if isinstance(norm, nn.BatchNorm1d):
            check_scale_invariance(network, inputs(32, 6), scalable_weights(network))
        else:
            with pytest.raises(
                ValueError, match="depends on the scale of '0'"
            ):  # without any norm it is no bias's fault
                check_scale_invariance(network, inputs(32, 6), scalable_weights(network))
    layers = [nn.Conv2d(1, 4, 3), nn.GroupNorm(4, 4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4), nn.Flatten()]
    network = fill(nn.Sequential(*layers, nn.Linear(64, 3)), 0)
    check_scale_invariance(network, inputs(4, 1, 8, 8), scalable_weights(network))


def test_a_frozen_zero_bias_passes_and_one_that_is_not_zero_does_not():
    network = fill(nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)), 0)
    network[0].bias.requires_grad_(False)
    check_scale_invariance(network, inputs(32, 6), scalable_weights(network))
    with torch.no_grad():
        network[0].bias.copy_(inputs(16, seed=5))
    with pytest.raises(ValueError, match=r"each of \['0'\] has a bias"):
        check_scale_invariance(network, inputs(32, 6), scalable_weights(network))


def test_biases_of_noisy_layers_are_planted():
    for bias in (False, True):
        network = nn.Sequential(RawNoisy(6, 16, bias=bias), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))
        weights = {"0": (network[0].weight_mu, network[0].weight_sigma)}
        if bias:
            with pytest.raises(ValueError, match=r"each of \['0'\] has a bias"):
                check_scale_invariance(network, inputs(32, 6), weights)
        else:
            check_scale_invariance(network, inputs(32, 6), weights)


def test_zero_gains_do_not_hide_a_layer():
    network = mlp()
    nn.init.zeros_(network[4].weight)
    before = snapshot(network)
    check_scale_invariance(network, inputs(32, 6), scalable_weights(network))
    network[3] = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Softmax(-1))  # the layer behind it is judged
    with pytest.raises(ValueError, match=r"depends on the scale of '3\.0'"):
        check_scale_invariance(network, inputs(32, 6), scalable_weights(network))
    assert same({k: v for k, v in before.items() if k[0] != "3"}, snapshot(network))

    network = nn.Sequential(nn.Linear(6, 16, bias=False), HandWrittenNorm(16), nn.ReLU(), nn.Linear(16, 3))
    nn.init.zeros_(network[1].g)
    with pytest.raises(ValueError, match="does not depend on"):
        check_scale_invariance(network, inputs(32, 6), scalable_weights(network))
    check_scale_invariance(network, inputs(32, 6), scalable_weights(network), more_gains=[network[1].g])
    assert not network[1].g.any()


def test_normalisation_in_eval_mode_uses_its_running_statistics():
    network = mlp(nn.BatchNorm1d)
    check_scale_invariance(network, inputs(32, 6), scalable_weights(network))
    network[4].eval()
    with pytest.raises(
        ValueError, match=r"scale of '3' \(.*Also, the normalisation layers \['4'\] are in eval mode"
    ) as why:
        check_scale_invariance(network, inputs(32, 6), scalable_weights(network))
    assert "'0' (" not in str(why.value) and [m.training for m in (network, network[1], network[4])] == [
        True,
        True,
        False,
    ]
    without = mlp(lambda width: nn.BatchNorm1d(width, track_running_stats=False)).eval()
    check_scale_invariance(without, inputs(32, 6), scalable_weights(without))
    without[4] = nn.Identity()
    with pytest.raises(ValueError, match="depends on the scale of '3'") as why:
        check_scale_invariance(without, inputs(32, 6), scalable_weights(without))
    assert "eval mode" not in str(why.value)


@pytest.mark.parametrize("when", range(2, 12))
def test_everything_is_restored_wherever_it_fails(when):
    """Biases are planted, gains are filled, weights are scaled, and the forward pass fails at any of these."""
    calls = []

    def how(network, x):
        calls.append(x)
        if len(calls) == when:
            raise RuntimeError("boom")
        return network(x)

    network = Takes(fill(nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)), 0), how)
    network.network[0].bias.data.copy_(inputs(16, seed=5))
    nn.init.zeros_(network.network[1].weight)
    before, state = snapshot(network), torch.get_rng_state()
    try:
        check_scale_invariance(network, inputs(8, 6), scalable_weights(network))
        assert len(calls) < when
    except RuntimeError:
        assert len(calls) == when
    assert same(before, snapshot(network)) and torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in network.modules())


def test_compiled_and_parallel_networks_are_run_as_they_were_written(monkeypatch):
    compilations = []

    def backend(graph, example_inputs):
        compilations.append(graph)
        return graph.forward

    torch.compiler.reset()
    inner = torch.compile(mlp(), backend=backend)
    network = Takes(inner, lambda network, x: network(x))
    network(inputs(8, 6))
    before = len(compilations)
    assert before > 0  # and without a graph, as in the check, it would be compiled again
    monkeypatch.setattr(nn.DataParallel, "forward", None)
    for wrapped in (network, inner, torch.compile(network, backend=backend), nn.DataParallel(network)):
        check_scale_invariance(wrapped, inputs(8, 6), scalable_weights(wrapped))
    assert len(compilations) == before
