"""The probe: it reports the metric functions' numbers and does not disturb training."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from elr import metrics
from elr.probe import NoProbe, Probe

METRICS = metrics.CHANGE_METRICS + metrics.MOMENT_METRICS


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


def _network(seed: int = 0, width: int = 16) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3),
            nn.Linear(36, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, 3),
        )  # fmt: skip


def _inputs(n: int = 10, seed: int = 5) -> Tensor:
    return torch.randn(n, 2, 5, 5, generator=_generator(seed))


def _perturb_(network: nn.Module, seed: int) -> None:
    generator = _generator(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_probe_reports_the_pure_functions() -> None:
    network, inputs = _network(), _inputs()
    probe = Probe(network, inputs, ["2", "7"], every=5, tau=0.3, delta=0.2)
    outputs: list[dict[str, Tensor]] = []
    scalars: list[dict[str, float]] = []
    for seed in (0, 1):
        _perturb_(network, seed)
        network.eval()
        with torch.no_grad():
            outputs.append({"2": network[:3](inputs), "7": network[:8](inputs)})
        network.train()
        scalars.append(probe.measure())
    assert set(scalars[0]) == {f"plasticity/{m}/{name}" for m in metrics.MOMENT_METRICS for name in ("2", "7")}
    assert set(scalars[1]) == {f"plasticity/{m}/{name}" for m in METRICS for name in ("2", "7")}
    for name in ("2", "7"):
        F0, F1 = outputs[0][name], outputs[1][name]
        expected = {
            "delta_c": metrics.covariance_change(F0, F1),
            "delta_a": metrics.activation_pattern_change(F0, F1),
            "flipped_fraction": metrics.flipped_fraction(F0, F1),
            "dead_fraction": metrics.dead_fraction(F1),
            "dormant_fraction": metrics.dormant_fraction(F1, 0.3),
            "effective_rank": metrics.effective_rank(F1),
            "stable_rank": metrics.stable_rank(F1),
            "srank": metrics.srank(F1, 0.2),
            "feature_norm": metrics.feature_norm(F1),
        }
        assert {metric: scalars[1][f"plasticity/{metric}/{name}"] for metric in expected} == pytest.approx(expected)
        assert expected["delta_c"] > 0 and expected["flipped_fraction"] > 0


def test_a_later_in_place_operation_does_not_change_the_captured_features() -> None:
    network = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
    inputs = -torch.ones(3, 2, dtype=torch.float64)  # float32 would be copied by the conversion to float64
    probe = Probe(network, inputs, ["0"], every=1)
    for _ in range(2):  # nor may it reach the inputs of the next measurement
        assert probe.measure()["plasticity/feature_norm/0"] == pytest.approx(math.sqrt(2))


def _careless_measure(network: nn.Module, inputs: Tensor) -> Callable[[], object]:
    return lambda: network(inputs)


def _train(measure: Callable[[], object] | None, network: nn.Module) -> tuple[list[Tensor], Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        losses = []
        for _ in range(12):
            loss = (network(torch.randn(8, 2, 5, 5)) - 1.0).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if measure is not None:
                measure()  # between backward and step: .grad is live
            optimizer.step()
            losses.append(loss.detach())
        return [*losses, *(tensor.clone() for tensor in network.state_dict().values())], torch.get_rng_state()


def test_probe_leaves_training_bit_equal() -> None:
    plain, plain_rng = _train(None, _network())
    network = _network()
    probed, probed_rng = _train(Probe(network, _inputs(), ["2", "7"], every=1).measure, network)
    assert all(torch.equal(a, b) for a, b in zip(plain, probed, strict=True))
    assert torch.equal(plain_rng, probed_rng)
    # Control: the same comparison sees a forward pass that takes no care.
    network = _network()
    careless, careless_rng = _train(_careless_measure(network, _inputs()), network)
    assert not torch.equal(plain_rng, careless_rng)
    assert not all(torch.equal(a, b) for a, b in zip(plain, careless, strict=True))


class _Restless(nn.Module):
    """Draws random numbers, writes and rebinds buffers even in eval mode, and can be told to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("written", torch.zeros(2))
        self.register_buffer("rebound", torch.zeros(2))
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.written += 1
        self.rebound = self.rebound + 1
        if self.fail:
            raise RuntimeError("planned")
        return x + torch.randn(x.shape)


@pytest.mark.parametrize("fail", [False, True])
def test_probe_restores_everything_also_when_the_forward_pass_raises(fail: bool) -> None:
    restless = _Restless()
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), restless, nn.Dropout(0.5))
    network[3].eval()  # a mixture of modes that train(True) would not bring back
    probe = Probe(network, torch.randn(5, 3, generator=_generator(0)), ["1"], every=1)
    restless.fail = fail
    rng, rebound = torch.get_rng_state(), restless.rebound
    if fail:
        with pytest.raises(RuntimeError, match="planned"):
            probe.measure()
    else:
        probe.measure()
    assert torch.equal(torch.get_rng_state(), rng)
    assert restless.rebound is rebound and torch.equal(rebound, torch.zeros(2))
    assert torch.equal(restless.written, torch.zeros(2))
    assert [module.training for module in network.modules()] == [True, True, True, True, False]
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_probe_leaves_a_saved_graph_usable() -> None:
    network = _network()
    probe = Probe(network, _inputs(), ["2"], every=1)
    network.eval()  # batch norm then saves its running statistics for backward
    loss = network(_inputs(seed=6)).sum()
    probe.measure()
    loss.backward()


def test_probe_copies_its_inputs() -> None:
    network, inputs = _network(), _inputs()
    probe = Probe(network, inputs, ["7"], every=1)
    first = probe.measure()
    inputs.zero_()
    second = probe.measure()
    assert second["plasticity/delta_c/7"] == 0.0
    assert {tag: second[tag] for tag in first} == first


def test_resume_is_exact() -> None:
    def run(resume_at: int | None) -> list[dict[str, float]]:
        network = _network()
        probe = Probe(network, _inputs(), ["2", "7"], every=1)
        rows = []
        for step in range(5):
            if step == resume_at:
                state = probe.state_dict()
                probe = Probe(network, _inputs(), ["2", "7"], every=1)
                probe.load_state_dict(state)
            rows.append(probe.measure())
            _perturb_(network, step)
        return rows

    straight = run(None)
    assert run(3) == straight and run(0) == straight
    assert "plasticity/delta_c/2" not in straight[0] and straight[4]["plasticity/delta_c/2"] > 0


def test_many_inputs_are_measured_without_square_matrices_of_them() -> None:
    """n > 4 d: the same numbers as the functions, a state of n x d, and resumed exactly."""
    network, n = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()), 100
    inputs = torch.randn(n, 3, generator=_generator(1))
    probe = Probe(network, inputs, ["1", "3"], every=1)
    with torch.no_grad():
        probe.measure()
        F0 = network(inputs)
        state = probe.state_dict()
        assert state["previous"]["1"]["geometry"].shape == (n, 8)
        _perturb_(network, 0)
        measured = probe.measure()
        F1 = network(inputs)
    assert measured["plasticity/delta_c/3"] == pytest.approx(metrics.covariance_change(F0, F1), rel=1e-12)
    assert measured["plasticity/effective_rank/3"] == pytest.approx(metrics.effective_rank(F1), rel=1e-12)
    resumed = Probe(network, inputs, ["1", "3"], every=1)
    resumed.load_state_dict(state)
    assert resumed.measure() == measured
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert "plasticity/delta_c/3" not in probe.measure()
    with torch.no_grad():
        network[0].weight.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        probe.measure()


def test_state_can_be_saved_and_loaded_weights_only(tmp_path: Path) -> None:
    network = _network()
    probe = Probe(network, _inputs(), ["2", "7"], every=1)
    probe.measure()
    torch.save(probe.state_dict(), f"{tmp_path}/probe.pt")
    resumed = Probe(network, _inputs(), ["2", "7"], every=1)
    resumed.load_state_dict(torch.load(f"{tmp_path}/probe.pt", weights_only=True))
    _perturb_(network, 0)
    assert resumed.measure() == probe.measure()


def test_resume_refuses_another_probe() -> None:
    probe = Probe(_network(), _inputs(), ["2", "7"], every=1)
    probe.measure()
    state = probe.state_dict()
    others = [
        (Probe(_network(), _inputs(), ["2"], every=1), "layers and shapes"),
        (Probe(_network(), _inputs(), ["7", "2"], every=1), "layers and shapes"),
        (Probe(_network(width=8), _inputs(), ["2", "7"], every=1), "layers and shapes"),
        (Probe(_network(), _inputs(11), ["2", "7"], every=1), "layers and shapes"),
        (Probe(_network(), _inputs(seed=6), ["2", "7"], every=1), "other inputs"),
    ]
    for other, message in others:
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)


def test_layers_must_exist_and_run_once() -> None:
    network, inputs = _network(), _inputs()
    with pytest.raises(ValueError, match=r"no module named \['relu'\].*'7'"):
        Probe(network, inputs, ["2", "relu"], every=1)
    for layers in ([], "27", ["2", "2"], [""]):
        with pytest.raises(ValueError, match=r"layers=|no module"):
            Probe(network, inputs, layers, every=1)
    relu = nn.ReLU()
    shared = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu)
    for name in ("1", "3"):
        with pytest.raises(ValueError, match="ran 2 times"):
            Probe(shared, torch.ones(4, 3), [name], every=1)
    lazy = nn.Sequential(nn.Linear(3, 3))
    lazy[0].add_module("unused", nn.ReLU())
    with pytest.raises(ValueError, match="ran 0 times"):
        Probe(lazy, torch.ones(4, 3), ["0.unused"], every=1)


def test_outputs_must_fit() -> None:
    with pytest.raises(ValueError, match="tuple"):
        Probe(nn.Sequential(nn.LSTM(3, 4)), torch.ones(4, 2, 3), ["0"], every=1)
    with pytest.raises(ValueError, match=r"\(n, \.\.\.\)"):
        Probe(nn.Sequential(nn.Flatten(0)), torch.ones(4, 3), ["0"], every=1)
    with pytest.raises(ValueError, match="unit_dim"):
        Probe(nn.Sequential(nn.ReLU()), torch.ones(4, 3, 2), ["0"], every=1)
    tokens = Probe(nn.Sequential(nn.ReLU()), torch.tensor([1.0, -1.0]).expand(4, 3, 2), ["0"], every=1, unit_dim=-1)
    assert tokens.measure()["plasticity/dead_fraction/0"] == 0.5


def test_probe_arguments() -> None:
    network, inputs = _network(), _inputs()
    for arguments in ({"every": 0}, {"every": 1, "tau": 1.0}, {"every": 1, "delta": 0.0}):
        with pytest.raises(ValueError, match=r"(every|tau|delta) must"):
            Probe(network, inputs, ["2"], **arguments)
    with pytest.raises(ValueError, match="n >= 2"):
        Probe(network, _inputs(1), ["2"], every=1)
    probe = Probe(network, inputs, ["2"], every=3)
    assert [update for update in range(8) if probe.due(update)] == [0, 3, 6]
    with pytest.raises(ValueError, match="counted from 0"):
        probe.due(-1)


def test_collapsed_layer_keeps_its_curve_and_drops_delta_c() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    probe = Probe(network, torch.randn(6, 3, generator=_generator(0)), ["1"], every=1)
    with torch.no_grad():
        network[0].weight.fill_(0.1)
        network[0].bias.fill_(1.0)
        probe.measure()
        network[0].weight.zero_()
        network[0].bias.fill_(-1.0)
    for _ in range(2):
        scalars = probe.measure()
        assert "plasticity/delta_c/1" not in scalars
        assert scalars["plasticity/dead_fraction/1"] == scalars["plasticity/dormant_fraction/1"] == 1.0
        assert scalars["plasticity/effective_rank/1"] == scalars["plasticity/feature_norm/1"] == 0.0
    assert scalars["plasticity/flipped_fraction/1"] == 0.0
    with torch.no_grad():
        network[0].bias.fill_(1.0)
    assert probe.measure()["plasticity/flipped_fraction/1"] == 1.0
    assert "plasticity/delta_c/1" in probe.measure()


def test_diverged_network_raises_and_names_the_layer() -> None:
    network = _network()
    probe = Probe(network, _inputs(), ["2", "7"], every=1)
    probe.measure()
    before = probe.state_dict()["previous"]
    with torch.no_grad():
        network[5].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="'7' is not finite"):
        probe.measure()
    after = probe.state_dict()["previous"]
    assert all(torch.equal(after[name][key], before[name][key]) for name in before for key in before[name])


class _Given(nn.Module):
    """Returns its features, whatever comes in."""

    def __init__(self, F: Tensor) -> None:
        super().__init__()
        self.relu, self.F = nn.ReLU(), F

    def forward(self, _inputs: Tensor) -> Tensor:
        out: Tensor = self.relu(self.F)
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_last_memory_changes_no_number(dtype: torch.dtype) -> None:
    before, after = (_gaussian(9, 4, 3, 5, seed=seed).to(dtype) for seed in (4, 5))
    networks = _Given(before), _Given(before.contiguous(memory_format=torch.channels_last))
    probes = [Probe(network, _inputs(9), ["relu"], every=1) for network in networks]
    for probe in probes:
        probe.measure()
    networks[0].F = after
    networks[1].F = after.contiguous(memory_format=torch.channels_last)
    values = [probe.measure() for probe in probes]
    assert len(values[0]) == 9
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_after_forgetting_the_next_measurement_has_no_changes() -> None:
    network = _network()
    probe = Probe(network, _inputs(), ["1"], every=1)
    first, second = probe.measure(), probe.measure()
    assert set(second) - set(first) == {f"plasticity/{name}/1" for name in ("delta_c", "delta_a", "flipped_fraction")}
    probe.forget()
    assert set(probe.measure()) == set(first) and set(probe.measure()) == set(second)


def test_no_probe_does_nothing() -> None:
    probe = NoProbe()
    probe.forget()
    assert not any(probe.due(update) for update in range(3))
    assert probe.measure() == probe.state_dict() == {}
    probe.load_state_dict({})
    with pytest.raises(ValueError, match="NoProbe needs exactly"):
        probe.load_state_dict({"previous": {}})
