"""Projection: the equation, its choice of layers, the invariance check, the gain policies and a literal twin."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from elr import projection as projection_module
from elr.projection import (
    Projection,
    check_scale_invariance,
    gains_and_offsets,
    partners,
    project_gains_,
    project_to_norms_,
    scalable_weights,
)


def _fill(network: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
            elif name.endswith("bias"):
                parameter.zero_()
    return network


def _mlp(norm: type[nn.Module] = nn.LayerNorm, seed: int = 0) -> nn.Module:
    hidden = [nn.Linear(6, 16, bias=False), norm(16), nn.ReLU(), nn.Linear(16, 16, bias=False), norm(16), nn.ReLU()]
    return _fill(nn.Sequential(*hidden, nn.Linear(16, 3)), seed)


def _conv(seed: int = 0) -> nn.Module:
    layers = [nn.Conv2d(4, 8, 3, bias=False), nn.LayerNorm([8, 8, 8]), nn.ReLU(), nn.Flatten()]
    return _fill(nn.Sequential(*layers, nn.Linear(512, 3)), seed)


def _inputs(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _forced(network: nn.Module, **options) -> Projection:
    return Projection(network, allow_scale_dependent=True, **options)


def _snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


# the equation


def test_hand_worked_table():
    weights = [torch.tensor([[3.0, 4.0]]), torch.full((2, 2), -1.0), torch.tensor([0.0, 0.0, 8.0])]
    project_to_norms_(weights, [10.0, 1.0, 2.0])
    torch.testing.assert_close(weights[0], torch.tensor([[6.0, 8.0]]))
    torch.testing.assert_close(weights[1], torch.full((2, 2), -0.5))
    torch.testing.assert_close(weights[2], torch.tensor([0.0, 0.0, 2.0]))


@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 3, 4, 2), (5, 3, 2, 2, 2)])
def test_a_conv_kernel_is_one_vector(shape):
    kernel = _inputs(*shape)
    expected = kernel * (2.0 / math.sqrt(sum(value**2 for value in kernel.flatten().tolist())))
    project_to_norms_([kernel], [2.0])
    torch.testing.assert_close(kernel, expected)


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), rho=st.floats(0.1, 50.0))
@settings(max_examples=50, deadline=None)
def test_projection_keeps_direction_sets_norm_and_is_idempotent(seed, scale, rho):
    before = _inputs(7, 5, seed=seed) * scale
    weight = before.clone()
    project_to_norms_([weight], [rho])
    once = weight.clone()
    project_to_norms_([weight], [rho])
    assert float(once.double().norm()) == pytest.approx(rho, rel=1e-6)
    torch.testing.assert_close(weight, once, rtol=1e-6, atol=0.0)
    cosine = torch.cosine_similarity(once.flatten().double(), before.flatten().double(), dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-6)


def test_bad_arguments_of_the_projection():
    with pytest.raises(ValueError, match="one norm per weight"):
        project_to_norms_([torch.ones(2)], [])
    for norm in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive finite"):
            project_to_norms_([torch.ones(2)], [norm])
    with pytest.raises(ValueError, match="offset or None"):
        project_gains_([torch.ones(2)], [])


def test_a_weight_that_became_zero_turns_to_nan():
    weight = torch.zeros(3, 3)
    project_to_norms_([weight], [1.0])
    assert weight.isnan().all()


def test_hot_path_never_reads_a_tensor():
    meta = [torch.empty(3, 4, device="meta"), torch.empty(8, 4, 3, 3, device="meta")]
    project_to_norms_(meta, [1.0, 2.0])
    project_gains_([torch.empty(4, device="meta")] * 2, [torch.empty(4, device="meta"), None])
    with pytest.raises(RuntimeError):
        meta[0].sum().item()  # what the device is good for
    for gains, strength in (("joint", 0.0), ("regularise", 0.1), ("decay", 0.1), ("free", 0.0)):
        projection = _forced(_mlp(), gains=gains, gain_strength=strength)
        for name in ("_tensors", "_gains", "_offsets"):  # the CPU reads norms on purpose; any other device must not
            setattr(projection, name, [t.to("meta") for t in getattr(projection, name)])
        projection.step(torch.empty((), device="meta"))


def test_scales_on_a_device_are_those_on_the_host():
    tensors = [torch.tensor(x) for x in ([2.0], [3.0, 0.0], [0.0], [0.0, 4.0])]  # the last is the second one's partner
    on_device = torch.stack(projection_module._scales([t.norm() for t in tensors], [1], [1.0, 10.0, 1.0]))
    projection_module._rescale_(tensors, [1], [1.0, 10.0, 1.0])
    assert tensors[0].tolist() == [1.0] and tensors[1].tolist() == [6.0, 0.0] and tensors[3].tolist() == [0.0, 8.0]
    assert tensors[2].isnan().all()
    torch.testing.assert_close(on_device[:2], torch.tensor([0.5, 2.0]))
    assert not (torch.zeros(1) * on_device[2]).isfinite().any()  # 0 * inf: a zero weight turns to NaN there as well


def test_projecting_now_restores_norms_and_gains_and_counts_no_update():
    """After weights were changed by something else, whatever the cadence."""
    network = _mlp()
    projection = Projection(network, every=100, gains="joint", check_inputs=_inputs(8, 6))
    before = _snapshot(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.4)
    projection.project_()
    for name, value in network.state_dict().items():
        expected = before[name] * (0.4 if name.startswith("6.") else 1.0)  # the head is left out
        assert torch.allclose(value, expected, rtol=1e-5), name
    assert projection.updates == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_projected_without_overflow(dtype):
    weight = torch.ones(400, 400, dtype=dtype)
    project_to_norms_([weight], [200.0])
    torch.testing.assert_close(weight, torch.full_like(weight, 0.5))


def test_a_backward_pass_through_a_projected_weight_is_refused():
    network = _mlp()
    projection = _forced(network)
    loss = network(torch.ones(2, 6)).square().sum()
    projection.step(0.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_projection_follows_a_parameter_that_moved_to_other_memory():
    network = _mlp()
    projection = _forced(network, gains="joint")
    projection.step(0.0)
    for p in network.parameters():
        p.data = p.data * 3.0
    projection.step(0.0)
    for name, weight in projection.weights.items():
        assert float(weight.detach().double().norm()) == pytest.approx(projection.norms[name], rel=1e-6)
    for gain, offset in gains_and_offsets(network).values():
        assert math.hypot(gain.detach().norm(), offset.detach().norm()) == pytest.approx(
            math.sqrt(gain.numel()), rel=1e-6
        )


# which weights


def test_weights_are_chosen_by_type_and_the_last_layer_is_the_head():
    network = nn.ModuleDict(
        {
            "weight_free_norm": nn.LayerNorm(4),
            "c1": nn.Conv1d(2, 3, 2),
            "c2": nn.Conv2d(2, 3, 2),
            "c3": nn.Conv3d(2, 3, 2),
            "t1": nn.ConvTranspose1d(2, 3, 2),
            "t2": nn.ConvTranspose2d(2, 3, 2),
            "t3": nn.ConvTranspose3d(2, 3, 2),
            "table": nn.Embedding(5, 4),
            "actor": nn.Linear(4, 2),
            "critic": nn.Linear(4, 1),
            "batch": nn.BatchNorm2d(3),
        }
    )
    kernels = ["c1", "c2", "c3", "t1", "t2", "t3"]
    assert list(scalable_weights(network)) == [*kernels, "actor"]
    assert list(scalable_weights(network, heads=["actor", "critic"])) == kernels
    assert list(scalable_weights(network, embeddings=True, heads=())) == [*kernels, "table", "actor", "critic"]
    assert scalable_weights(network)["c2"] is network["c2"].weight


def test_refused_choices():
    network = _mlp()
    for heads in (["nope"], ["1"], ["2"]):
        with pytest.raises(ValueError, match=f"head '{heads[0]}' is not"):
            scalable_weights(network, heads=heads)
    with pytest.raises(ValueError, match="one string"):
        scalable_weights(network, heads="6")
    with pytest.raises(ValueError, match="no weight to project"):
        scalable_weights(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="MultiheadAttention"):
        scalable_weights(nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="computed from other parameters"):
        scalable_weights(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="not initialised"):
        scalable_weights(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4)))


def test_tied_weights_come_once_and_never_with_the_head():
    network = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "head": nn.Linear(4, 4)})
    network["b"].weight = network["a"].weight
    assert list(scalable_weights(network)) == ["a"]
    network["head"].weight = network["a"].weight
    with pytest.raises(ValueError, match="shares its weight with the head 'head'"):
        scalable_weights(network)


def test_gains_and_offsets_by_type():
    network = nn.Sequential(
        nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.BatchNorm1d(4), nn.LayerNorm(4, bias=False),
        nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 4),
    )  # fmt: skip
    found = gains_and_offsets(network)
    assert list(found) == ["0", "1", "2", "3", "4"]
    assert [offset is not None for _, offset in found.values()] == [True, True, False, True, False]
    assert found["1"][0] is network[1].weight and found["1"][1] is network[1].bias


# scale invariance


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d])
def test_normalised_networks_pass_and_nothing_is_disturbed(norm):
    network = _mlp(norm).train()
    network[2].eval()
    before, modes, state = _snapshot(network), [m.training for m in network.modules()], torch.get_rng_state()
    check_scale_invariance(network, _inputs(32, 6), scalable_weights(network))
    assert _same(before, _snapshot(network))
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_convolution_before_layer_norm_passes():
    network = _conv()
    check_scale_invariance(network, _inputs(4, 4, 10, 10), scalable_weights(network))


def test_unnormalised_layers_are_named():
    network = _fill(nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                                  nn.Linear(16, 3)), 0)  # fmt: skip
    with pytest.raises(ValueError, match="allow_scale_dependent=True") as failure:
        check_scale_invariance(network, _inputs(32, 6), scalable_weights(network))
    assert "'3' (" in str(failure.value) and "'0' (" not in str(failure.value)


def test_a_large_output_bias_or_a_small_head_hides_nothing():
    network = _fill(nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 3)), 0)
    with torch.no_grad():
        network[2].weight.mul_(0.01)
        network[2].bias.fill_(10.0)
    with pytest.raises(ValueError, match="depends on the scale of '0'"):
        check_scale_invariance(network, _inputs(32, 6), scalable_weights(network))


def test_a_bias_before_the_normalisation_and_the_head_itself_are_refused():
    network = _fill(nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)), 0)
    with torch.no_grad():
        network[0].bias.copy_(_inputs(16, seed=5))
    with pytest.raises(ValueError, match="'0'"):
        check_scale_invariance(network, _inputs(32, 6), scalable_weights(network))
    with pytest.raises(ValueError, match="'6'"):
        check_scale_invariance(_mlp(), _inputs(32, 6), scalable_weights(_mlp(), heads=()) | {"6": _head(network)})


def _head(network: nn.Module) -> nn.Parameter:
    return network[-1].weight


def test_what_cannot_be_judged_is_refused():
    network = _mlp()
    weights = scalable_weights(network)
    with pytest.raises(ValueError, match="does not depend on"):
        check_scale_invariance(network, torch.zeros(4, 6), weights)
    with torch.no_grad():
        network[-1].weight.zero_()
    with pytest.raises(ValueError, match="does not depend on"):
        check_scale_invariance(network, _inputs(4, 6), weights)
    with pytest.raises(ValueError, match="not finite"):
        check_scale_invariance(network, torch.full((4, 6), math.nan), weights)
    for bad in ({"factors": (1.0,)}, {"factors": (0.0,)}, {"factors": ()}, {"tolerance": 0.0}, {"weights": {}}):
        with pytest.raises(ValueError):
            check_scale_invariance(network, _inputs(4, 6), **({"weights": weights} | bad))


def test_stated_effect_of_eps():
    variance, factor = 0.05, 0.5
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm(2, eps=1e-3), nn.Linear(2, 2)).double()
    with torch.no_grad():
        network[0].weight.copy_(math.sqrt(variance) * torch.eye(2))
    x = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    with torch.no_grad():
        before = network[1](network[0](x))
        change = (network[1](factor * network[0](x)) - before).norm() / before.norm()
    assert float(change) == pytest.approx(abs(1 - factor**-2) * 1e-3 / (2 * variance), rel=0.1)


def test_everything_is_put_back_when_the_forward_pass_raises():
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.calls = _mlp(nn.BatchNorm1d), 0

        def forward(self, x):
            self.calls += 1
            out = self.body(x)
            if self.calls == 3:
                raise RuntimeError("boom")
            return out

    network = Fragile().train()
    before = _snapshot(network)
    with pytest.raises(RuntimeError, match="boom"):
        check_scale_invariance(network, _inputs(8, 6), scalable_weights(network))
    assert _same(before, _snapshot(network))
    assert all(module.training for module in network.modules())


@given(seed=st.integers(0, 10**6), scale=st.floats(0.3, 5.0), norm=st.sampled_from([nn.LayerNorm, nn.RMSNorm]))
@settings(max_examples=30, deadline=None)
def test_projection_leaves_a_normalised_network_unchanged(seed, scale, norm):
    network = _mlp(norm, seed).double()
    x = _inputs(16, 6, seed=seed + 1).double()
    projection = Projection(network, check_inputs=x, gains="free")
    with torch.no_grad():
        for weight in projection.weights.values():
            weight.mul_(scale)
        before = network(x)
        projection.step(0.1)
        after = network(x)
    assert float((after - before).norm() / before.norm()) < 2e-3  # eps of the norm layers at scale 0.3


# the class


def test_argument_checks():
    network, x = _mlp(), _inputs(8, 6)
    with pytest.raises(ValueError, match="needs check_inputs"):
        Projection(network)
    for options, message in (
        ({"every": 0}, "every=0"),
        ({"gains": "none"}, "unknown"),
        ({"gains": "regularise"}, "pulls nothing"),
        ({"gains": "decay", "gain_strength": -1.0}, "pulls nothing"),
        ({"gains": "joint", "gain_strength": 0.1}, "does not use"),
        ({"gains": "free", "gain_strength": 0.1}, "does not use"),
    ):
        with pytest.raises(ValueError, match=message):
            Projection(network, check_inputs=x, **options)
    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="depends on the scale of '0'"):
        Projection(plain, check_inputs=x)
    with pytest.raises(ValueError, match="nothing to pull"):
        _forced(plain, gains="decay", gain_strength=0.1)
    with pytest.raises(ValueError, match="too coarse"):
        _forced(_mlp().bfloat16())
    with torch.no_grad():
        plain[0].weight.zero_()
    with pytest.raises(ValueError, match=r"cannot be projected.*or name them as heads"):
        _forced(plain)


def test_head_and_gains_are_not_touched_by_the_weight_projection():
    network = _mlp()
    projection = _forced(network, gains="free")
    norms = {name: float(weight.detach().norm()) for name, weight in projection.weights.items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0).add_(0.1)
    before = _snapshot(network)
    projection.step(0.1)
    after = _snapshot(network)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"0.weight", "3.weight"}
    for name, weight in projection.weights.items():
        assert float(weight.detach().norm()) == pytest.approx(norms[name], rel=1e-6)


def test_joint_radius_is_the_root_of_the_width_not_of_two():
    network = _mlp()
    projection = _forced(network)
    with torch.no_grad():
        network[1].weight.fill_(3.0)
        network[1].bias.fill_(4.0)
        network[4].weight.fill_(0.5)
    projection.step(0.1)
    torch.testing.assert_close(network[1].weight.detach(), torch.full((16,), 0.6))
    torch.testing.assert_close(network[1].bias.detach(), torch.full((16,), 0.8))
    torch.testing.assert_close(network[4].weight.detach(), torch.ones(16))
    radius = math.hypot(float(network[1].weight.detach().norm()), float(network[1].bias.detach().norm()))
    assert radius == pytest.approx(math.sqrt(16), rel=1e-6)


def test_joint_rescales_the_gain_alone_where_there_is_no_offset():
    gains, offsets = [torch.full((4,), 2.0), torch.full((9,), 3.0)], [None, torch.full((9,), 4.0)]
    project_gains_(gains, offsets)
    torch.testing.assert_close(gains[0], torch.ones(4))
    torch.testing.assert_close(gains[1], torch.full((9,), 0.6))
    torch.testing.assert_close(offsets[1], torch.full((9,), 0.8))


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
@pytest.mark.parametrize(
    ("policy", "gain", "offset", "unit"), [("regularise", 1.95, 0.95, 1.0), ("decay", 1.9, 1, 0.95)]
)
def test_pulls_happen_at_every_update(lr, policy, gain, offset, unit):
    network = _mlp()
    projection = _forced(network, gains=policy, gain_strength=0.5, every=100)
    with torch.no_grad():
        network[1].weight.fill_(2.0)
        network[1].bias.fill_(1.0)
    projection.step(lr)  # by lr * s = 0.05 of the way
    for parameter, value in ((network[1].weight, gain), (network[1].bias, offset), (network[4].weight, unit)):
        torch.testing.assert_close(parameter.detach(), torch.full((16,), float(value)), rtol=1e-6, atol=0.0)
    if policy == "regularise":
        assert torch.equal(network[4].weight, torch.ones(16))  # at rest exactly


def test_an_overshooting_pull_is_refused():
    projection = _forced(_mlp(), gains="decay", gain_strength=10.0)
    for lr in (0.11, -0.1, math.nan):
        with pytest.raises(ValueError, match="overshoot"):
            projection.step(lr)


@pytest.mark.parametrize("every", [1, 3, 4])
def test_projects_at_exactly_the_multiples(every):
    network = _mlp()
    projection = _forced(network, every=every)
    acted = []
    for update in range(1, 13):
        with torch.no_grad():
            network[0].weight.mul_(1.5)
        before = network[0].weight.detach().clone()
        projection.step(0.1)
        if not torch.equal(before, network[0].weight):
            acted.append(update)
    assert acted == list(range(every, 13, every))
    assert projection.updates == 12


def test_state_resumes_norms_and_cadence():
    first = _forced(_mlp(), every=3)
    first.step(0.1)
    network = _mlp()
    with torch.no_grad():
        network[0].weight.mul_(7.0)
    second = _forced(network, every=3)
    second.load_state_dict(first.state_dict())
    assert second.norms == first.norms and second.updates == 1
    second.step(0.1)
    second.step(0.1)
    assert float(network[0].weight.detach().norm()) == pytest.approx(first.norms["0"], rel=1e-6)
    for bad, message in (
        ({"norms": {"0": 1.0}, "updates": 0}, "saved norms are for layers"),
        ({"norms": {"0": 1.0, "3": 0.0}, "updates": 0}, "cannot be projected"),
        ({"norms": {"0": 1.0, "3": 1.0}, "updates": -1}, "negative"),
    ):
        with pytest.raises(ValueError, match=message):
            second.load_state_dict(bad)


# the literal algorithm


def _train(network: nn.Module, steps: int, projection: Projection | None, lr: float = 0.02) -> torch.optim.Adam:
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for step in range(steps):
        x, y = _batch(step)
        optimizer.zero_grad()
        ((network(x.to(next(network.parameters()).dtype)) - y) ** 2).mean().backward()
        optimizer.step()
        if projection is not None:
            projection.step(lr)
    return optimizer


def _batch(step: int) -> tuple[Tensor, Tensor]:
    return _inputs(8, 6, seed=100 + step), _inputs(8, 3, seed=500 + step)


def _adam(p: list[float], g: list[float], m: list[float], v: list[float], t: int, lr: float) -> None:
    for i, grad in enumerate(g):
        m[i] = 0.9 * m[i] + 0.1 * grad
        v[i] = 0.999 * v[i] + 0.001 * grad * grad
        p[i] -= lr * (m[i] / (1 - 0.9**t)) / (math.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)


def _rescale(vectors: list[list[float]], radius: float) -> None:
    norm = math.sqrt(sum(value * value for vector in vectors for value in vector))
    for vector in vectors:
        vector[:] = [value * radius / norm for value in vector]


def _literal_nap(network: nn.Module, steps: int, every: int, lr: float = 0.02) -> tuple[dict, dict, dict]:
    """NaP with Adam and joint gains, over Python floats; autograd serves for the gradient only."""
    p = {name: parameter.detach().flatten().tolist() for name, parameter in network.named_parameters()}
    m, v = ({name: [0.0] * len(values) for name, values in p.items()} for _ in range(2))
    rho = {name: math.sqrt(sum(value * value for value in p[name])) for name in ("0.weight", "3.weight")}
    for t in range(1, steps + 1):
        x, y = _batch(t - 1)
        network.zero_grad()
        ((network(x.double()) - y) ** 2).mean().backward()
        for name, parameter in network.named_parameters():
            _adam(p[name], parameter.grad.flatten().tolist(), m[name], v[name], t, lr)
        if t % every == 0:
            for name, radius in rho.items():
                _rescale([p[name]], radius)
            for layer in ("1", "4"):
                _rescale([p[f"{layer}.weight"], p[f"{layer}.bias"]], math.sqrt(16))
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(torch.tensor(p[name], dtype=torch.float64).view_as(parameter))
    return p, m, v


@pytest.mark.parametrize("every", [1, 7])
def test_fifty_steps_equal_the_literal_algorithm_with_its_optimiser_state(every):
    network = _mlp().double()
    optimizer = _train(network, 50, _forced(network, every=every))
    p, m, v = _literal_nap(_mlp().double(), 50, every)
    for name, parameter in network.named_parameters():
        state = optimizer.state[parameter]
        for mine, twin in ((parameter, p), (state["exp_avg"], m), (state["exp_avg_sq"], v)):
            expected = torch.tensor(twin[name], dtype=torch.float64).view_as(mine)
            torch.testing.assert_close(mine.detach(), expected, rtol=1e-8, atol=1e-11)
        assert state["step"] == 50


def test_the_optimiser_is_left_alone():
    network = _mlp()
    optimizer = _train(network, 3, None)
    moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
    _forced(network, gains="regularise", gain_strength=0.5).step(0.1)
    now = [value for state in optimizer.state.values() for value in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, now, strict=True))


def test_a_projection_that_never_acts_equals_plain_training():
    plain, held, acting = _mlp(), _mlp(), _mlp()
    _train(plain, 20, None)
    _train(held, 20, Projection(held, every=21, gains="free", check_inputs=_inputs(32, 6)))
    _train(acting, 20, Projection(acting, gains="free", check_inputs=_inputs(32, 6)))
    assert _same(_snapshot(plain), _snapshot(held))
    assert not _same(_snapshot(plain), _snapshot(acting))  # control: an acting one does change training


# weights with a partner


class Noisy(nn.Linear):
    """W = mu + sigma * eps with eps fixed: only the joint scale of `weight` and `weight_sigma` is of no account."""

    scaled_with_weight = "weight_sigma"

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__(fan_in, fan_out, bias=False)
        self.weight_sigma = nn.Parameter(torch.full_like(self.weight, 0.5 / math.sqrt(fan_in)))
        self.register_buffer("eps", torch.outer(_inputs(fan_out, seed=7), _inputs(fan_in, seed=8)))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + self.weight_sigma * self.eps)


def _noisy_mlp(norm: type[nn.Module] = nn.LayerNorm) -> nn.Sequential:
    hidden = [Noisy(6, 16), norm(16), nn.ReLU(), nn.Linear(16, 16, bias=False), norm(16), nn.ReLU()]
    network = nn.Sequential(*hidden, Noisy(16, 3))
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(_inputs(*parameter.shape, seed=i) / 4 if parameter.ndim > 1 else parameter)
    return network


def _joint(layer: Noisy) -> float:
    return math.sqrt(sum(value * value for part in layer.parameters() for value in part.detach().flatten().tolist()))


def test_partners_are_found_by_what_the_module_type_declares():
    network = _noisy_mlp()
    found = partners(network, scalable_weights(network))
    assert list(found) == ["0", "3"] and found["0"] is network[0].weight_sigma and found["3"] is None
    assert partners(network, {"other": torch.ones(2)}) == {"other": None}
    network[3] = tied = Noisy(6, 16)
    tied.weight = network[0].weight
    with pytest.raises(ValueError, match="'3' shares its weight"):
        partners(network, scalable_weights(network))
    tied.weight_sigma = network[0].weight_sigma
    assert partners(network, {"0": tied.weight})["0"] is tied.weight_sigma


@pytest.mark.parametrize("gains", ["joint", "free"])
def test_means_and_deviations_take_one_scalar(gains):
    network = _noisy_mlp().double()
    x, radius = _inputs(16, 6).double(), _joint(network[0])
    projection = Projection(network, gains=gains, check_inputs=x)
    assert projection.norms["0"] == pytest.approx(radius, rel=1e-12)
    with torch.no_grad():
        network[0].weight.mul_(3.0)
        network[0].weight_sigma.add_(0.1)
    before, output = _snapshot(network), network(x).detach()
    scalar = radius / _joint(network[0])
    projection.step(0.1)
    assert 0.3 < scalar < 0.6 and _joint(network[0]) == pytest.approx(radius, rel=1e-12)
    for name in ("0.weight", "0.weight_sigma"):
        torch.testing.assert_close(network.state_dict()[name], before[name] * scalar, rtol=1e-12, atol=0.0)
    for name in ("6.weight", "6.weight_sigma", "6.eps"):  # the head
        assert torch.equal(network.state_dict()[name], before[name])
    assert float((network(x).detach() - output).norm() / output.norm()) < 1e-4  # the eps of LayerNorm
    with torch.no_grad():  # control: the means alone are not scale-invariant
        network[0].weight.mul_(2.0)
    assert float((network(x).detach() - output).norm() / output.norm()) > 0.05


def test_on_a_device_partners_are_scaled_as_on_the_host():
    """The path of other devices, on this one."""
    host, device = _noisy_mlp(), _noisy_mlp()
    for network in (host, device):
        projection = _forced(network, gains="joint")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.7).add_(0.1)
        if network is device:
            scales = projection_module._scales(
                list(torch._foreach_norm(projection._tensors)), projection._paired, projection._radii
            )
            with torch.no_grad():
                torch._foreach_mul_(projection._tensors, scales + [scales[i] for i in projection._paired])
        else:
            projection.project_()
    for a, b in zip(host.parameters(), device.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_scale_invariance_is_that_of_the_pair():
    check_scale_invariance(network := _noisy_mlp(), _inputs(32, 6), scalable_weights(network))
    before = _snapshot(network)
    with pytest.raises(ValueError, match="depends on the scale of '0'"):  # the mean alone
        network[0].__class__ = type("Undeclared", (Noisy,), {"scaled_with_weight": None})
        check_scale_invariance(network, _inputs(32, 6), scalable_weights(network))
    unnormalised = _noisy_mlp(nn.Identity)
    with pytest.raises(ValueError, match=r"'0' \(.*'3' \("):
        check_scale_invariance(unnormalised, _inputs(32, 6), scalable_weights(unnormalised))
    assert _same(before, _snapshot(network)) and _same(_snapshot(unnormalised), _snapshot(_noisy_mlp(nn.Identity)))


def test_a_coarse_partner_and_a_saved_joint_norm():
    network = _noisy_mlp()
    first = _forced(network)
    second = _forced(_noisy_mlp())
    state = first.state_dict()
    state["norms"]["0"] = 2.0
    second.load_state_dict(state)
    second.project_()
    joint = torch.cat([part.detach().flatten() for part in (second.weights["0"], second._partners["0"])]).norm()
    assert float(joint) == pytest.approx(2.0, rel=1e-6)
    network[0].weight_sigma = nn.Parameter(network[0].weight_sigma.detach().half())
    with pytest.raises(ValueError, match=r"0's partner.*too coarse"):
        _forced(network)
