"""The meter: closed forms, a float64 twin, the cadence, and no effect on training."""

import math

import pytest
import torch
from torch import Tensor, nn

from elr.fast.flat_adam import FlatAdam
from elr.measure import Meter, NoMeter
from elr.projection import project_to_norms_
from elr.weights import scalable_weights


def _tensor(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def _parameter(*shape: int, seed: int = 0, scale: float = 1.0) -> nn.Parameter:
    parameter = nn.Parameter(_tensor(*shape, seed=seed, scale=scale))
    parameter.grad = _tensor(*shape, seed=seed + 1000)
    return parameter


def _measure(weights: dict[str, Tensor], optimizer: torch.optim.Optimizer, power: int = 1) -> dict[str, float]:
    meter = Meter(weights, every=1, optimizer=optimizer, nominal_power=power)
    meter.before_step()
    optimizer.step()
    assert meter.after_step()
    return meter.scalars()


def test_sgd_closed_form():
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    w.grad = torch.tensor([[0.6, 0.8]])
    out = _measure({"fc": w}, torch.optim.SGD([w], lr=0.5), power=2)
    expected = {
        "elr/fc": 0.1, "elr_nominal/fc": 0.02, "norms/parameter/fc": 5.0, "norms/gradient/fc": 1.0,
        "norms/update/fc": 0.5,
    }  # fmt: skip
    assert out == pytest.approx(expected, rel=1e-6)
    assert all(type(value) is float for value in out.values())


def test_first_adam_step_moves_every_entry_by_the_rate():
    w = _parameter(8, 3, 3, 3)
    norm = float(w.detach().norm())
    out = _measure({"conv": w}, torch.optim.Adam([w], lr=1e-3, eps=1e-12))
    assert out["norms/update/conv"] == pytest.approx(1e-3 * math.sqrt(8 * 27), rel=1e-6)
    assert out["elr_nominal/conv"] == pytest.approx(1e-3 / norm, rel=1e-9)


@pytest.mark.parametrize(("fan_in", "fan_out"), [(64, 256), (256, 64), (1024, 128)])
def test_adam_with_fan_in_initialisation_turns_by_rate_times_root_fan_in(fan_in, fan_out):
    w = _parameter(fan_out, fan_in, scale=fan_in**-0.5)
    out = _measure({"fc": w}, torch.optim.Adam([w], lr=1e-3, eps=1e-12))
    assert out["elr/fc"] == pytest.approx(1e-3 * math.sqrt(fan_in), rel=0.03)


def test_decoupled_weight_decay_is_counted():
    w = _parameter(5, 4)
    w.grad = torch.zeros_like(w)
    out = _measure({"fc": w}, torch.optim.AdamW([w], lr=0.1, weight_decay=0.2))
    assert out["elr/fc"] == pytest.approx(0.1 * 0.2, rel=1e-9)


def test_clipping_is_counted():
    w = _parameter(5, 4)
    torch.nn.utils.clip_grad_norm_([w], 0.25)
    out = _measure({"fc": w}, torch.optim.SGD([w], lr=0.1), power=2)
    assert out["norms/gradient/fc"] == pytest.approx(0.25, rel=1e-5)
    assert out["norms/update/fc"] == pytest.approx(0.025, rel=1e-5)


def test_projection_after_the_measured_step_is_not_counted():
    w = _parameter(5, 4)
    optimizer = torch.optim.SGD([w], lr=0.1)
    meter = Meter({"fc": w}, every=1, optimizer=optimizer, nominal_power=2)
    gradient = float(w.grad.norm())
    meter.before_step()
    optimizer.step()
    assert meter.after_step()
    project_to_norms_([w], [100.0])
    assert meter.scalars()["norms/update/fc"] == pytest.approx(0.1 * gradient, rel=1e-9)


def _twin(before: list[list[float]], after: list[list[float]]) -> list[tuple[float, float]]:
    rows = []
    for old, new in zip(before, after, strict=True):
        norm = math.sqrt(sum(value * value for value in old))
        rows.append((math.sqrt(sum((b - a) ** 2 for a, b in zip(old, new, strict=True))) / norm, norm))
    return rows


def test_twenty_steps_equal_a_float64_loop():
    weights = {"conv": _parameter(4, 2, 3, 3), "fc": _parameter(6, 5, seed=1)}
    groups = [{"params": [weights["conv"]], "lr": 0.01}, {"params": [weights["fc"]], "lr": torch.tensor(0.03)}]
    optimizer = torch.optim.Adam(groups, weight_decay=0.1, foreach=False)
    meter = Meter(weights, every=1, optimizer=optimizer, nominal_power=1)
    for step in range(20):
        for index, weight in enumerate(weights.values()):
            weight.grad = _tensor(*weight.shape, seed=50 * step + index)
        optimizer.param_groups[0]["lr"] = rate = 0.01 * (step + 1)
        before = [weight.detach().flatten().tolist() for weight in weights.values()]
        meter.before_step()
        optimizer.step()
        assert meter.after_step()
        optimizer.param_groups[1]["lr"].fill_(0.5)  # a schedule acts before the numbers are fetched
        out = meter.scalars()
        optimizer.param_groups[1]["lr"].fill_(0.03)
        rows = _twin(before, [weight.detach().flatten().tolist() for weight in weights.values()])
        for (layer, weight), (elr, norm), lr in zip(weights.items(), rows, (rate, 0.03), strict=True):
            assert out[f"elr/{layer}"] == pytest.approx(elr, rel=1e-10)
            assert out[f"norms/parameter/{layer}"] == pytest.approx(norm, rel=1e-12)
            assert out[f"elr_nominal/{layer}"] == pytest.approx(lr / norm, rel=1e-6)
            assert out[f"norms/gradient/{layer}"] == pytest.approx(float(weight.grad.norm()), rel=1e-12)


def test_rates_are_found_by_identity_also_after_the_optimiser_is_loaded():
    first, second = _parameter(3, 3), _parameter(3, 3, seed=1)
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.2}])
    meter = Meter({"b": second, "a": first}, every=1, optimizer=optimizer, nominal_power=1)
    state = optimizer.state_dict()
    state["param_groups"][1]["lr"] = 0.7
    optimizer.load_state_dict(state)
    norm = float(second.detach().norm())
    meter.before_step()
    meter.after_step()
    assert meter.scalars()["elr_nominal/b"] == pytest.approx(0.7 / norm, rel=1e-9)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_rates_that_are_tensors_of_one_element(shape):
    first, second, third = (_parameter(3, 3, seed=seed) for seed in range(3))
    rates = [torch.full(shape, 0.25), 0.5, torch.full(shape, 0.125, dtype=torch.float64)]
    groups = [{"params": [p], "lr": rate} for p, rate in zip((first, second, third), rates, strict=True)]
    optimizer = torch.optim.SGD(groups, fused=True)  # takes rates of shape (1,) in every release
    weights = {"c": third, "a": first, "b": second}
    meter = Meter(weights, every=1, optimizer=optimizer)
    norms = {layer: float(weight.detach().norm()) for layer, weight in weights.items()}
    meter.before_step()
    optimizer.step()
    meter.after_step()
    out = meter.scalars()
    for layer, rate in (("a", 0.25), ("b", 0.5), ("c", 0.125)):
        assert out[f"elr_nominal/{layer}"] == pytest.approx(rate / norms[layer] ** 2, rel=1e-12)
        assert out[f"norms/update/{layer}"] == pytest.approx(rate * out[f"norms/gradient/{layer}"], rel=1e-12)


def test_groups_that_were_added_or_put_in_another_order():
    first, second = _parameter(3, 3), _parameter(3, 3, seed=1)
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.2}])
    meter = Meter({"a": first, "b": second}, every=1, optimizer=optimizer, nominal_power=1)
    optimizer.add_param_group({"params": [_parameter(2)], "lr": 0.3})
    optimizer.param_groups.reverse()
    meter.before_step()
    meter.after_step()
    out = meter.scalars()
    assert out["elr_nominal/a"] == pytest.approx(0.1 / out["norms/parameter/a"], rel=1e-12)
    assert out["elr_nominal/b"] == pytest.approx(0.2 / out["norms/parameter/b"], rel=1e-12)
    del optimizer.param_groups[1]
    with pytest.raises(ValueError, match=r"the optimiser does not hold \['b'\]"):
        meter.before_step()


POWERS = {
    torch.optim.SGD: 2, torch.optim.Adam: 1, torch.optim.AdamW: 1, torch.optim.Adamax: 1, torch.optim.NAdam: 1,
    torch.optim.RAdam: 1, torch.optim.RMSprop: 1, torch.optim.Adagrad: 1, torch.optim.SparseAdam: 1,
    type("Mine", (torch.optim.Adam,), {}): 1,
}  # fmt: skip


@pytest.mark.parametrize("kind", POWERS)
def test_the_power_follows_from_the_class(kind):
    w = _parameter(3, 3)
    meter = Meter({"fc": w}, every=1, optimizer=kind([w], lr=0.5))
    meter.before_step()
    meter.after_step()
    out = meter.scalars()
    assert out["elr_nominal/fc"] == pytest.approx(0.5 / out["norms/parameter/fc"] ** POWERS[kind], rel=1e-12)
    other = Meter({"fc": w}, every=1, optimizer=kind([w], lr=0.5), nominal_power=3 - POWERS[kind])
    other.before_step()
    other.after_step()
    assert other.scalars()["elr_nominal/fc"] == pytest.approx(0.5 / out["norms/parameter/fc"] ** (3 - POWERS[kind]))


def test_the_power_is_what_makes_both_rates_fall_alike():
    """Doubling a scale-invariant weight divides the realised ELR as it divides the nominal one: by 4, or by 2."""
    for kind, factor in ((torch.optim.SGD, 4.0), (torch.optim.Adam, 2.0), (torch.optim.RMSprop, 2.0),
                         (torch.optim.Adagrad, 2.0), (torch.optim.Adamax, 2.0), (torch.optim.NAdam, 2.0)):  # fmt: skip
        measured = []
        for scale in (1.0, 2.0):
            w = nn.Parameter(scale * _tensor(4, 4, seed=0))
            (w / w.norm() * _tensor(4, 4, seed=1)).sum().backward()
            options = {} if kind is torch.optim.SGD else {"eps": 1e-30}
            measured.append(_measure({"fc": w}, kind([w], lr=1e-3, **options), power=None))
        for tag in ("elr/fc", "elr_nominal/fc"):
            assert measured[0][tag] / measured[1][tag] == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.SparseAdam])
def test_sparse_gradients(kind):
    table = nn.Embedding(5, 2, sparse=True)
    dense = nn.Embedding(5, 2)
    dense.load_state_dict(table.state_dict())
    index = torch.tensor([1, 3, 1])  # a row twice
    for each in (table, dense):
        (each(index) * torch.tensor([[1.0, 2.0], [3.0, -1.0], [2.0, 2.0]])).sum().backward()
    assert not table.weight.grad.is_coalesced()
    before = table.weight.detach().clone()
    out = _measure({"table": table.weight}, kind(list(table.parameters()), lr=0.5))
    # rows (1 + 2, 2 + 2) and (3, -1)
    assert out["norms/gradient/table"] == pytest.approx(math.sqrt(9 + 16 + 9 + 1), rel=1e-6)
    assert out["norms/gradient/table"] == pytest.approx(float(dense.weight.grad.norm()), rel=1e-6)
    step = 0.5 * out["norms/gradient/table"] if kind is torch.optim.SGD else 0.5 * math.sqrt(4)
    assert out["norms/update/table"] == pytest.approx(step, rel=1e-6)
    assert out["norms/update/table"] == pytest.approx(float((table.weight.detach() - before).norm()), rel=1e-6)
    table.weight.grad = torch.zeros(5, 2).to_sparse()
    assert _measure({"table": table.weight}, kind(list(table.parameters()), lr=0.5))["norms/gradient/table"] == 0.0


def test_a_weight_without_a_gradient():
    """Unused in this batch: torch's optimisers leave it alone, FlatAdam moves it by momentum."""
    used, unused = _parameter(3, 3), _parameter(3, 3, seed=1)
    optimizer = torch.optim.SGD([used, unused], lr=torch.tensor(0.125), momentum=0.9)
    meter = Meter({"unused": unused, "used": used}, every=1, optimizer=optimizer)
    for gradient in (_tensor(3, 3, seed=5), None, _tensor(3, 3, seed=6)):
        unused.grad = gradient
        meter.before_step()
        optimizer.step()
        meter.after_step()
        out = meter.scalars()
        for layer in ("used", "unused"):
            expected = 0.125 / out[f"norms/parameter/{layer}"] ** 2
            assert out[f"elr_nominal/{layer}"] == pytest.approx(expected, rel=1e-12)
        assert ("norms/gradient/unused" in out) == (gradient is not None)
        assert (out["elr/unused"] == 0.0) == (gradient is None) and out["elr/used"] > 0.0
        assert out["norms/gradient/used"] == pytest.approx(float(used.grad.norm()), rel=1e-12)
        if gradient is not None:
            assert out["norms/gradient/unused"] == pytest.approx(float(gradient.norm()), rel=1e-12)
    used.grad = unused.grad = None
    meter.before_step()
    optimizer.step()
    meter.after_step()
    assert {tag for tag, value in meter.scalars().items() if value == 0.0} == {
        "elr/unused", "elr/used", "norms/update/unused", "norms/update/used"
    }  # fmt: skip


@pytest.mark.parametrize("make", [
    lambda ps: torch.optim.Adam(ps, lr=0.1), lambda ps: torch.optim.Adam(ps, lr=0.1, fused=True),
    lambda ps: torch.optim.SGD(ps, lr=0.1, fused=True), lambda ps: FlatAdam(ps, lr=0.1, eps=1e-8),
])  # fmt: skip
@pytest.mark.parametrize("unscaled", [False, True])
def test_within_a_step_under_a_grad_scaler_the_true_gradient_is_measured(make, unscaled):
    network = nn.Linear(3, 2)
    optimizer = make(network.parameters())
    meter = Meter({"fc": network.weight}, every=1, optimizer=optimizer)
    optimizer.register_step_pre_hook(lambda *_: meter.before_step())
    optimizer.register_step_post_hook(lambda *_: meter.after_step())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x = torch.ones(4, 3)
    (network(x).square().mean()).backward()
    true = float(network.weight.grad.double().norm())
    optimizer.zero_grad()
    scaler.scale(network(x).square().mean()).backward()
    assert float(network.weight.grad.double().norm()) == pytest.approx(1024.0 * true, rel=1e-6)
    if unscaled:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert meter.scalars()["norms/gradient/fc"] == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: w.double(), r"'fc' was torch.float32 \(2, 2\) on cpu .* and is torch.float64 \(2, 2\) on cpu now"),
    (lambda w: w.to("meta"), r"'fc' was torch.float32 \(2, 2\) on cpu .* and is torch.float32 \(2, 2\) on meta now"),
    (lambda w: w[:1].clone(), r"and is torch.float32 \(1, 2\) on cpu now: build the Meter after that"),
])  # fmt: skip
def test_a_weight_that_has_moved_is_refused_at_the_next_measurement(change, message):
    w = nn.Parameter(torch.eye(2))
    meter = Meter({"fc": w}, every=3, optimizer=torch.optim.SGD([w], lr=0.1))
    meter.before_step()
    meter.after_step()
    torch.utils.swap_tensors(w, nn.Parameter(change(w.detach())))  # as `network.to` may
    meter.before_step()  # not measured
    meter.after_step()
    with pytest.raises(ValueError, match=message):
        meter.before_step()


def test_names_with_dots():
    network = nn.Sequential(nn.Sequential(nn.Linear(3, 2)), nn.Linear(2, 2))
    network(torch.ones(1, 3)).sum().backward()
    out = _measure(scalable_weights(network), torch.optim.SGD(network.parameters(), lr=0.1))
    assert out["elr/0.0"] > 0.0 and len(out) == 5


def _measured(meter: Meter, updates: int) -> list[int]:
    fresh = []
    for update in range(1, updates + 1):
        meter.before_step()
        if meter.after_step():
            fresh.append(update)
    return fresh


def test_cadence_and_resume():
    w = _parameter(2, 2)
    build = {"weights": {"fc": w}, "every": 4, "optimizer": torch.optim.SGD([w], lr=0.1), "nominal_power": 2}
    assert _measured(Meter(**build), 13) == [1, 4, 8, 12]
    first, second = Meter(**build), Meter(**build)
    assert _measured(first, 6) == [1, 4]
    second.load_state_dict(first.state_dict())
    assert _measured(second, 7) == [2, 6]  # updates 8 and 12
    with pytest.raises(ValueError, match="negative"):
        second.load_state_dict({"updates": -1})


def test_fresh_scalars_are_those_of_a_measured_step():
    w = _parameter(3, 3)
    optimizer = torch.optim.SGD([w], lr=0.1)
    meter = Meter({"fc": w}, every=3, optimizer=optimizer, nominal_power=2)
    assert meter.fresh_scalars() == {}
    fresh = []
    for step in range(1, 8):
        w.grad = _tensor(3, 3, seed=step)
        meter.before_step()
        assert meter.fresh_scalars() == {}  # of the step before, which is over
        optimizer.step()
        if meter.after_step():
            fresh.append(step)
            assert meter.fresh_scalars() == meter.scalars() == meter.fresh_scalars()
        else:
            assert meter.fresh_scalars() == {}
    assert fresh == [1, 3, 6]
    meter.before_step(), meter.after_step()  # no. 8
    meter.before_step(), meter.after_step()  # no. 9, measured
    meter.load_state_dict(meter.state_dict())
    assert meter.fresh_scalars() == {}


def test_a_loaded_meter_has_no_measurement():
    w = _parameter(3, 3)
    optimizer = torch.optim.SGD([w], lr=0.1)
    meter = Meter({"fc": w}, every=1, optimizer=optimizer)
    meter.before_step()
    optimizer.step()
    meter.after_step()
    assert meter.measured and meter.scalars()
    meter.load_state_dict(meter.state_dict())
    assert not meter.measured
    with pytest.raises(RuntimeError, match="no complete measurement"):
        meter.scalars()


def test_no_meter_does_nothing():
    meter = NoMeter()
    meter.before_step()
    assert meter.after_step() is False
    assert meter.fresh_scalars() == meter.scalars() == meter.state_dict() == {}
    meter.load_state_dict({})
    with pytest.raises(ValueError, match="NoMeter needs exactly"):
        meter.load_state_dict({"updates": 1})


def test_a_zero_layer_has_an_infinite_rate():
    w = nn.Parameter(torch.zeros(2))
    w.grad = torch.ones(2)
    assert _measure({"fc": w}, torch.optim.SGD([w], lr=0.1), power=2)["elr/fc"] == math.inf


def test_misuse():
    w = _parameter(2, 2)
    optimizer = torch.optim.SGD([w], lr=0.1)
    good = {"weights": {"fc": w}, "every": 2, "optimizer": optimizer, "nominal_power": 2}
    for change, message in (
        ({"weights": {}}, "at least one layer"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"nominal_power": 3}, r"nominal_power must be 1 .* got 3"),
        ({"weights": {"a": w, "b": w}}, "twice"),
        ({"optimizer": torch.optim.Adadelta([w]), "nominal_power": None}, "Adadelta .* give nominal_power"),
        ({"weights": {"fc": _parameter(2, 2)}}, r"does not hold \['fc'\]"),
        ({"weights": {"fc": w, "far": nn.Parameter(torch.empty(2, device="meta"))}}, "one Meter per device"),
    ):
        with pytest.raises(ValueError, match=message):
            Meter(**(good | change))
    meter = Meter(**good)
    with pytest.raises(RuntimeError, match="no complete measurement"):
        meter.scalars()
    with pytest.raises(RuntimeError, match="without before_step"):
        meter.after_step()
    meter.before_step()
    with pytest.raises(RuntimeError, match="twice"):
        meter.before_step()
    with pytest.raises(RuntimeError, match="no complete measurement"):
        meter.scalars()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_meter_does_not_change_training(kind):
    ends = []
    for metered in (False, True):
        w = _parameter(4, 4)
        optimizer = kind([w], lr=0.05)
        meter = Meter({"fc": w}, every=2, optimizer=optimizer, nominal_power=1)
        state = torch.get_rng_state()
        for step in range(10):
            w.grad = w.detach() * _tensor(4, 4, seed=step)
            if metered:
                meter.before_step()
            optimizer.step()
            if metered and meter.after_step():
                meter.scalars()
        assert torch.equal(state, torch.get_rng_state())
        ends.append([w.detach().clone(), *(v for v in optimizer.state[w].values() if isinstance(v, Tensor))])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
