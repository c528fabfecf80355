"""Projection: the equations, the gain policies, the norms held, and a twin that follows the literal algorithm."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from elr.projection import NoProjection, Projection, project_gains_, project_to_norms_
from elr.rescaling import Rescaling, _squared_norm
from elr.scale_invariance import Call
from elr.weights import gains_and_offsets
from tests.elr.networks import Noisy, inputs, mlp, noisy_mlp, same, snapshot


def _forced(network: nn.Module, **options) -> Projection:
    return Projection(network, allow_scale_dependent=True, **options)


def test_hand_worked_table():
    weights = [torch.tensor([[3.0, 4.0]]), torch.full((2, 2), -1.0), torch.tensor([0.0, 0.0, 8.0])]
    project_to_norms_(weights, [10.0, 1.0, 2.0])
    torch.testing.assert_close(weights[0], torch.tensor([[6.0, 8.0]]))
    torch.testing.assert_close(weights[1], torch.full((2, 2), -0.5))
    torch.testing.assert_close(weights[2], torch.tensor([0.0, 0.0, 2.0]))


@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 3, 4, 2), (5, 3, 2, 2, 2)])
def test_a_conv_kernel_is_one_vector(shape):
    kernel = inputs(*shape)
    expected = kernel * (2.0 / math.sqrt(sum(value**2 for value in kernel.flatten().tolist())))
    project_to_norms_([kernel], [2.0])
    torch.testing.assert_close(kernel, expected)


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), rho=st.floats(0.1, 50.0))
@settings(max_examples=50, deadline=None)
def test_projection_keeps_direction_sets_norm_and_is_idempotent(seed, scale, rho):
    before = inputs(7, 5, seed=seed) * scale
    weight = before.clone()
    project_to_norms_([weight], [rho])
    once = weight.clone()
    project_to_norms_([weight], [rho])
    assert float(once.double().norm()) == pytest.approx(rho, rel=1e-6)
    torch.testing.assert_close(weight, once, rtol=1e-6, atol=0.0)
    cosine = torch.cosine_similarity(once.flatten().double(), before.flatten().double(), dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-6)


def test_bad_arguments_of_the_functions():
    with pytest.raises(ValueError, match="one norm per weight"):
        project_to_norms_([torch.ones(2)], [])
    for norm in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive finite"):
            project_to_norms_([torch.ones(2)], [norm])
    with pytest.raises(ValueError, match="offset or None"):
        project_gains_([torch.ones(2)], [])


@pytest.mark.parametrize("value", [0.0, 1e30, math.inf, math.nan])
def test_a_weight_that_cannot_be_projected_becomes_nan_on_a_device_too(value):
    """The path of a GPU, run on a CPU."""
    weight, good = torch.tensor([value, 2.0 * value]), torch.tensor([3.0, 4.0])
    Rescaling([weight, good], [None, None], [1.0, 1.0])._apply_on_device_()
    assert weight.isnan().all()
    assert good.tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("value", [0.0, 1e30, math.inf, math.nan])  # the square of 1e30 is infinite in float32
def test_a_weight_that_cannot_be_projected_becomes_nan(value):
    weight = torch.eye(3) * value if math.isfinite(value) else torch.eye(3).index_fill(0, torch.tensor(1), value)
    project_to_norms_([weight], [1.0])
    assert weight.isnan().all()


def test_no_tensor_of_another_device_is_read_on_the_host():
    meta = [torch.empty(3, 4, device="meta"), torch.empty(8, 4, 3, 3, device="meta")]
    project_to_norms_(meta, [1.0, 2.0])
    project_gains_([torch.empty(4, device="meta")] * 2, [torch.empty(4, device="meta"), None])
    with pytest.raises(RuntimeError):
        meta[0].sum().item()  # control: reading a meta tensor fails
    for gains, strength in (("joint", 0.0), ("regularise", 0.1), ("decay", 0.1), ("free", 0.0)):
        projection = _forced(mlp(), gains=gains, gain_strength=strength)
        # The CPU reads norms on purpose; any other device must not.
        for owner, name in (
            (projection._rescaling, "tensors"),
            (projection._gains, "pulled"),
            (projection._gains, "pulled_offsets"),
        ):
            setattr(owner, name, [t.to("meta") for t in getattr(owner, name)])
        projection.step(torch.empty((), device="meta"))


def test_scales_on_a_device_equal_those_on_the_host():
    tensors = [torch.tensor(x) for x in ([2.0], [3.0, 0.0], [0.0], [0.0, 4.0])]  # the last is the second one's partner
    rescaling = Rescaling(tensors[:3], [None, tensors[3], None], [1.0, 10.0, 1.0])
    on_device = torch.stack(rescaling._scales([t.norm() for t in tensors]))
    rescaling.apply_()
    assert tensors[0].tolist() == [1.0] and tensors[1].tolist() == [6.0, 0.0] and tensors[3].tolist() == [0.0, 8.0]
    assert tensors[2].isnan().all()
    torch.testing.assert_close(on_device[:2], torch.tensor([0.5, 2.0]))
    assert not (torch.zeros(1) * on_device[2]).isfinite().any()  # 0 * inf: a zero weight turns to NaN there as well


def test_project_restores_norms_and_gains_and_does_not_count_an_update():
    network = mlp()
    projection = Projection(network, every=100, gains="joint", check_inputs=inputs(8, 6))
    before = snapshot(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.4)
    projection.project_()
    for name, value in network.state_dict().items():
        expected = before[name] * (0.4 if name.startswith("6.") else 1.0)  # the head is left out
        assert torch.allclose(value, expected, rtol=1e-5), name
    assert projection.state_dict()["updates"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_projected_without_overflow(dtype):
    weight = torch.ones(400, 400, dtype=dtype)
    project_to_norms_([weight], [200.0])
    torch.testing.assert_close(weight, torch.full_like(weight, 0.5))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((4096, 512), torch.contiguous_format), ((512, 256, 3, 3), torch.channels_last)],
)
def test_a_large_weight_is_projected_to_its_norm(shape, layout):
    """In one float32 sum, of 2.1 and 1.2 million squares, the norm would be off by 4e-6 and 2e-6."""
    weight = inputs(*shape).to(memory_format=layout)
    expected = weight.double() * (3.0 / weight.double().norm())
    project_to_norms_([weight], [3.0])
    assert float(weight.double().norm()) == pytest.approx(3.0, rel=1e-6)
    torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=0.0)


def test_a_large_weight_of_equal_entries_is_projected_to_its_norm():
    """Roundings of equal squares do not cancel; in one float32 sum the norm would be off by 2.5e-4."""
    weight = torch.full((2048, 1024), 0.1)
    project_to_norms_([weight], [3.0])
    assert float(weight.double().norm()) == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squares_are_summed_at_once_up_to_2_to_the_18(dtype):
    entries = inputs(2**18 + 1000).to(dtype).numpy()
    for size in (1, 7, 1000, 2**17 + 1, 2**18 - 1, 2**18):
        assert _squared_norm(entries[:size]) == float(np.vdot(entries[:size], entries[:size]))
    matrix = entries[: 2**18].reshape(512, 512).T
    assert _squared_norm(matrix) == float(np.vdot(matrix, matrix))
    blocks = entries[: 2**18], entries[2**18 :]
    assert _squared_norm(entries) == sum(float(np.vdot(block, block)) for block in blocks)


def test_a_backward_pass_through_a_projected_weight_is_refused():
    network = mlp()
    projection = _forced(network)
    loss = network(torch.ones(2, 6)).square().sum()
    projection.step(0.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_projection_follows_a_parameter_that_moved_to_other_memory():
    network = mlp()
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


@given(seed=st.integers(0, 10**6), scale=st.floats(0.3, 5.0), norm=st.sampled_from([nn.LayerNorm, nn.RMSNorm]))
@settings(max_examples=30, deadline=None)
def test_projection_leaves_a_normalised_network_unchanged(seed, scale, norm):
    network = mlp(norm, seed).double()
    x = inputs(16, 6, seed=seed + 1).double()
    projection = Projection(network, check_inputs=x, gains="free")
    with torch.no_grad():
        for weight in projection.weights.values():
            weight.mul_(scale)
        before = network(x)
        projection.step(0.1)
        after = network(x)
    assert float((after - before).norm() / before.norm()) < 2e-3  # eps of the norm layers at scale 0.3


def test_bad_arguments_of_projection():
    network, x = mlp(), inputs(8, 6)
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
        _forced(mlp().bfloat16())
    with torch.no_grad():
        plain[0].weight.zero_()
    with pytest.raises(ValueError, match=r"cannot be projected.*or name them as heads"):
        _forced(plain)


def test_a_projection_does_nothing_before_it_is_checked():
    network = mlp()
    projection = Projection(network)
    assert projection.unchecked
    before = snapshot(network)
    for act in (projection.project_, lambda: projection.step(0.1)):
        with pytest.raises(
            RuntimeError, match=r"has not been checked: give Projection check_inputs, or use elr\.attach"
        ):
            act()
    with pytest.raises(ValueError, match="does not depend on"):
        projection.check(torch.zeros(8, 6))
    assert projection.unchecked and same(before, snapshot(network)) and projection.state_dict()["updates"] == 0
    projection.check(Call(kwargs={"input": inputs(8, 6)}))
    with torch.no_grad():
        network[0].weight.mul_(2.0)
    projection.step(0.1)
    assert not projection.unchecked
    torch.testing.assert_close(network[0].weight.detach(), before["0.weight"])
    network[4] = nn.Identity()
    with pytest.raises(ValueError, match="depends on the scale of '3'"):
        projection.remember_norms_()  # it keeps the batch
    assert not _forced(mlp()).unchecked and not Projection(mlp(), check_inputs=inputs(8, 6)).unchecked


def test_head_and_gains_are_not_touched_by_the_weight_projection():
    network = mlp()
    projection = _forced(network, gains="free")
    norms = {name: float(weight.detach().norm()) for name, weight in projection.weights.items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0).add_(0.1)
    before = snapshot(network)
    projection.step(0.1)
    after = snapshot(network)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"0.weight", "3.weight"}
    for name, weight in projection.weights.items():
        assert float(weight.detach().norm()) == pytest.approx(norms[name], rel=1e-6)


def test_joint_radius_is_the_root_of_the_width():
    network = mlp()
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


def test_joint_norms_of_gains_are_summed_in_float64():
    width = 100_003
    network = nn.Sequential(nn.Linear(1, width, bias=False), nn.LayerNorm(width), nn.Linear(width, 1))
    with torch.no_grad():
        network[1].weight.copy_(0.1 * inputs(width))
        network[1].bias.copy_(0.1 * inputs(width, seed=2))
    squares = sum(float(p.detach().double().square().sum()) for p in network[1].parameters())
    assert _forced(network).state_dict()["gain_norms"]["1"] == pytest.approx(math.sqrt(squares), rel=1e-12)


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
    network = mlp()
    projection = _forced(network, gains=policy, gain_strength=0.5, every=100)
    with torch.no_grad():
        network[1].weight.fill_(2.0)
        network[1].bias.fill_(1.0)
    projection.step(lr)  # by lr * s = 0.05 of the way
    for parameter, value in ((network[1].weight, gain), (network[1].bias, offset), (network[4].weight, unit)):
        torch.testing.assert_close(parameter.detach(), torch.full((16,), float(value)), rtol=1e-6, atol=0.0)
    if policy == "regularise":
        assert torch.equal(network[4].weight, torch.ones(16))  # unchanged exactly


def test_an_overshooting_pull_is_refused():
    projection = _forced(mlp(), gains="decay", gain_strength=10.0)
    for lr in (0.11, -0.1, math.nan):
        with pytest.raises(ValueError, match="overshoot"):
            projection.step(lr)


@pytest.mark.parametrize("every", [1, 3, 4])
def test_projects_at_exactly_the_multiples(every):
    network = mlp()
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
    assert projection.state_dict()["updates"] == 12


def test_state_resumes_norms_and_cadence():
    first = _forced(mlp(), every=3)
    first.step(0.1)
    network = mlp()
    with torch.no_grad():
        network[0].weight.mul_(7.0)
    second = _forced(network, every=3)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict() and first.state_dict()["updates"] == 1
    second.step(0.1)
    second.step(0.1)
    assert float(network[0].weight.detach().norm()) == pytest.approx(first.norms["0"], rel=1e-6)
    for bad, message in (
        ({"norms": {"0": 1.0}}, "saved norms are for layers"),
        ({"norms": {"0": 1.0, "3": 0.0}}, "cannot be projected"),
        ({"updates": -1}, "negative"),
        ({"gain_norms": {"1": 4.0}}, r"saved gain norms are for layers \['1'\], this projection has \['1', '4'\]"),
        ({"gain_norms": {"1": 4.0, "4": -1.0}}, r"\{'4': -1.0\} cannot be held"),
        ({"gain_norms": {"1": 4.0, "4": math.inf}}, r"\{'4': inf\} cannot be held"),
    ):
        held = second.state_dict()
        with pytest.raises(ValueError, match=message):
            second.load_state_dict(held | bad)
        assert second.state_dict() == held
    with pytest.raises(ValueError, match=r"state has keys .*Projection needs exactly \['gain_norms', 'norms', "):
        second.load_state_dict({"norms": {"0": 1.0, "3": 1.0}, "updates": 0})  # of a version without gain_norms


# the norms that are held


def _after_training(change) -> tuple[nn.Module, Projection, dict]:
    """Train, change a weight, train again with the projection that `change` returns; also what that held before."""
    network = mlp()
    projection = Projection(network, every=3, gains="free", check_inputs=inputs(32, 6))
    _train(network, 4, projection)
    with torch.no_grad():
        network[0].weight.copy_(2.0 * inputs(16, 6, seed=9))
    projection = change(network, projection)
    held = projection.state_dict()
    _train(network, 10, projection)
    return network, projection, held


def _remember(network: nn.Module, projection: Projection) -> Projection:
    projection.remember_norms_()
    return projection


def _rebuild(network: nn.Module, projection: Projection) -> Projection:
    return Projection(network, every=3, gains="free", check_inputs=inputs(32, 6))


def test_remembering_norms_equals_a_rebuilt_projection():
    (network, projection, held), (expected, rebuilt, expected_held) = map(_after_training, (_remember, _rebuild))
    assert held == expected_held and held["updates"] == 0 and held["gain_norms"] == {}
    assert same(snapshot(network), snapshot(expected)) and projection.state_dict() == rebuilt.state_dict()
    unremembered, _, _ = _after_training(lambda network, projection: projection)
    assert not same(snapshot(unremembered), snapshot(expected))  # control


def test_gains_keep_their_initial_norm_when_norms_of_weights_are_remembered():
    network = mlp()
    with torch.no_grad():
        network[1].weight.fill_(0.1)  # as in a pre-trained network
        network[4].bias.fill_(3.0)
    projection = _forced(network)
    _train(network, 4, None)
    with torch.no_grad():
        network[0].weight.mul_(2.0)
        network[1].weight.mul_(5.0)
    projection.remember_norms_()
    projection.step(0.1)
    assert projection.state_dict()["gain_norms"] == pytest.approx({"1": 0.4, "4": math.sqrt(16 * 10)}, rel=1e-7)
    for name, radius in (("1", 0.4), ("4", math.sqrt(16 * 10))):
        gain, offset = gains_and_offsets(network)[name]
        assert math.hypot(gain.detach().norm(), offset.detach().norm()) == pytest.approx(radius, rel=1e-6)


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (lambda network: network[3].weight.zero_(), "cannot be projected"),
        (lambda network: network.__setitem__(4, nn.Identity()), "depends on the scale of '3'"),
    ],
)
def test_remembering_norms_checks_what_construction_checks(break_, message):
    network = mlp()
    projection = Projection(network, check_inputs=inputs(32, 6))
    projection.step(0.1)
    held = projection.state_dict()
    with torch.no_grad():
        break_(network)
    with pytest.raises(ValueError, match=message):
        projection.remember_norms_()
    assert projection.state_dict() == held  # unchanged


def test_remembering_norms_without_a_check_when_dependence_is_allowed():
    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    projection = _forced(plain, check_inputs=inputs(8, 6))
    with torch.no_grad():
        plain[0].weight.mul_(2.0)
    norm = 2.0 * projection.norms["0"]
    projection.remember_norms_()
    assert projection.norms["0"] == pytest.approx(norm)


def test_no_projection_does_nothing():
    plain, held = mlp(), mlp()
    projection = NoProjection()
    projection.project_()
    projection.remember_norms_()
    _train(plain, 5, None)
    _train(held, 5, projection)
    assert same(snapshot(plain), snapshot(held))
    assert projection.state_dict() == {}
    projection.load_state_dict({})
    with pytest.raises(ValueError, match="NoProjection needs exactly"):
        projection.load_state_dict({"norms": {}, "updates": 0})


def test_projection_runs_the_public_functions():
    """One projection equals `project_to_norms_` and `project_gains_` bit for bit."""
    network, twin = mlp(), mlp()
    projection = _forced(network)
    for module in (network, twin):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.7).add_(0.1)
    projection.project_()
    project_to_norms_([twin[0].weight, twin[3].weight], list(projection.norms.values()))
    project_gains_([twin[1].weight, twin[4].weight], [twin[1].bias, twin[4].bias])
    assert same(snapshot(network), snapshot(twin))


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
    return inputs(8, 6, seed=100 + step), inputs(8, 3, seed=500 + step)


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
    network = mlp().double()
    optimizer = _train(network, 50, _forced(network, every=every))
    p, m, v = _literal_nap(mlp().double(), 50, every)
    for name, parameter in network.named_parameters():
        state = optimizer.state[parameter]
        for mine, twin in ((parameter, p), (state["exp_avg"], m), (state["exp_avg_sq"], v)):
            expected = torch.tensor(twin[name], dtype=torch.float64).view_as(mine)
            torch.testing.assert_close(mine.detach(), expected, rtol=1e-8, atol=1e-11)
        assert state["step"] == 50


def test_projection_does_not_change_the_optimiser():
    network = mlp()
    optimizer = _train(network, 3, None)
    moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
    _forced(network, gains="regularise", gain_strength=0.5).step(0.1)
    now = [value for state in optimizer.state.values() for value in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, now, strict=True))


def test_a_projection_that_never_acts_equals_plain_training():
    plain, held, acting = mlp(), mlp(), mlp()
    _train(plain, 20, None)
    _train(held, 20, Projection(held, every=21, gains="free", check_inputs=inputs(32, 6)))
    _train(acting, 20, Projection(acting, gains="free", check_inputs=inputs(32, 6)))
    assert same(snapshot(plain), snapshot(held))
    assert not same(snapshot(plain), snapshot(acting))  # control: an acting one does change training


def _joint(layer: Noisy) -> float:
    return math.sqrt(sum(value * value for part in layer.parameters() for value in part.detach().flatten().tolist()))


@pytest.mark.parametrize("gains", ["joint", "free"])
def test_means_and_deviations_are_scaled_by_one_number(gains):
    network = noisy_mlp().double()
    x, radius = inputs(16, 6).double(), _joint(network[0])
    projection = Projection(network, gains=gains, check_inputs=x)
    assert projection.norms["0"] == pytest.approx(radius, rel=1e-12)
    with torch.no_grad():
        network[0].weight.mul_(3.0)
        network[0].weight_sigma.add_(0.1)
    before, output = snapshot(network), network(x).detach()
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


def test_partners_are_scaled_on_a_device_as_on_the_host():
    """The path for other devices, run on the CPU."""
    host, device = noisy_mlp(), noisy_mlp()
    for network in (host, device):
        projection = _forced(network, gains="joint")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.7).add_(0.1)
        if network is device:
            projection._rescaling._apply_on_device_()
        else:
            projection.project_()
    for a, b in zip(host.parameters(), device.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_gains_in_half_precision_are_refused_unless_frozen():
    network = mlp()
    norm = next(module for module in network if isinstance(module, nn.LayerNorm))
    norm.bfloat16()
    with pytest.raises(ValueError, match=r"gains of type .* too coarse"):
        _forced(network)
    norm.requires_grad_(False)
    assert _forced(network).weights


def test_partner_dtype_is_checked_and_joint_norm_is_saved():
    network = noisy_mlp()
    first = _forced(network)
    second = _forced(noisy_mlp())
    state = first.state_dict()
    state["norms"]["0"] = 2.0
    second.load_state_dict(state)
    second.project_()
    joint = torch.cat([part.detach().flatten() for part in (second.weights["0"], second._partners["0"])]).norm()
    assert float(joint) == pytest.approx(2.0, rel=1e-6)
    network[0].weight_sigma = nn.Parameter(network[0].weight_sigma.detach().half())
    with pytest.raises(ValueError, match=r"0's partner.*too coarse"):
        _forced(network)
