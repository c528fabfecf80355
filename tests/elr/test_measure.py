"""The meter: closed forms, a float64 twin, the cadence, and no effect on training."""

import math

import pytest
import torch
from torch import Tensor, nn

from elr.measure import Meter, NoMeter
from elr.projection import project_to_norms_


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
    w.grad = None
    with pytest.raises(ValueError, match=r"\['fc'\] have no gradient"):
        Meter(**good).before_step()


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
