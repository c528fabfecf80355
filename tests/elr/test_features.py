"""Feature metrics: hand-worked tables, planted structure, invariances, and a probe that leaves no trace."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from elr import features
from elr.features import Probe

SEEDS = st.integers(0, 2**32 - 1)
METRICS = features.CHANGE_METRICS + features.MOMENT_METRICS


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


def _orthogonal(d: int, seed: int = 1) -> Tensor:
    return torch.linalg.qr(_gaussian(d, d, seed=seed)).Q


# Numbers worked by hand


def test_covariance_change_by_hand() -> None:
    # C0 = diag(1/2, 1/2), C1 = [[1/2, 1/2], [1/2, 1/2]]: the difference has two entries of 1/2.
    F0, F1 = torch.eye(2), torch.ones(2, 3)
    assert features.covariance_change(F0, F1) == pytest.approx(math.sqrt(0.5))
    # Disjoint support: C0 = diag(1, 0), C1 = diag(0, 1), the largest distance there is.
    F0, F1 = torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0], [3.0]])
    assert features.covariance_change(F0, F1) == pytest.approx(math.sqrt(2.0))


def test_pattern_by_hand() -> None:
    F0 = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]])
    F1 = torch.tensor([[0.0, 0.1, -1.0], [0.5, 2.0, 3.0]])  # three of six entries flip
    assert features.activation_pattern_change(F0, F1) == pytest.approx(math.sqrt(3.0))
    assert features.flipped_fraction(F0, F1) == pytest.approx(0.5)


def test_unit_metrics_by_hand() -> None:
    # E|h| = 0, 1, 0.05, 3 with mean 1.0125: scores 0, .988, .049, 2.96.
    F = torch.tensor([[0.0, 2.0, 0.1, 3.0], [0.0, 0.0, 0.0, 3.0]])
    assert features.dead_fraction(F) == 0.25
    assert [features.dormant_fraction(F, tau) for tau in (0.0, 0.04, 0.1, 0.99)] == [0.25, 0.25, 0.5, 0.75]
    assert features.feature_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]])) == pytest.approx(3.0)


def test_dormant_uses_the_absolute_value_and_dead_the_sign() -> None:
    F = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
    assert features.dormant_fraction(F, 0.1) == 0.0
    assert features.dead_fraction(F) == 0.5


def test_ranks_of_known_spectrum() -> None:
    # s = 4, 3, 2, 1: p = .4, .3, .2, .1; cumulative .4, .7, .9, 1.
    F = _orthogonal(6)[:, :4] @ torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]).double()) @ _orthogonal(4, seed=2)
    entropy = -sum(p * math.log(p) for p in (0.4, 0.3, 0.2, 0.1))
    assert features.effective_rank(F) == pytest.approx(math.exp(entropy), rel=1e-12)
    assert features.stable_rank(F) == pytest.approx(30 / 16, rel=1e-12)
    assert [features.srank(F, delta) for delta in (0.01, 0.1, 0.11, 0.3, 0.5, 0.65)] == [4, 3, 3, 2, 2, 1]


@pytest.mark.parametrize("d", [1, 7, 100, 200])
def test_ranks_of_an_orthogonal_matrix(d: int) -> None:
    Q = _orthogonal(d)
    assert features.effective_rank(Q) == pytest.approx(d, rel=1e-9)
    assert features.stable_rank(Q) == pytest.approx(d, rel=1e-9)
    assert features.srank(Q) == math.ceil(0.99 * d)  # 99 of 100 and 198 of 200


def test_srank_counts_a_tie_as_reached() -> None:
    # 3 of 10 equal values hold exactly a share 1 - 0.7, but (1.0 - 0.7) * 10 > 3 in float64.
    assert (1.0 - 0.7) * 10 > 3
    assert features.srank(torch.eye(10), 0.7) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rank_one(dtype: torch.dtype) -> None:
    F = (_gaussian(40, 1) @ _gaussian(1, 70, seed=1)).to(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4  # a float32 product is rank one only up to its rounding
    assert features.effective_rank(F) == pytest.approx(1.0, abs=tolerance)
    assert features.stable_rank(F) == pytest.approx(1.0, abs=tolerance)
    assert features.srank(F) == 1


@pytest.mark.parametrize("shape", [(256, 128), (128, 256), (64, 64)])
def test_gram_spectrum_gives_the_ranks_of_the_svd(shape: tuple[int, int]) -> None:
    decay = torch.logspace(0, -9, shape[1], dtype=torch.float64)
    F = _gaussian(*shape) * decay
    s = torch.linalg.svdvals(F)
    p = s / s.sum()
    assert features.effective_rank(F) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-4)
    assert features.stable_rank(F) == pytest.approx(float((F**2).sum() / s[0] ** 2), rel=1e-10)
    assert features.srank(F) == int((p.cumsum(0) < 0.99).sum()) + 1


# Planted structure


@pytest.mark.parametrize("k", [0, 1, 5, 12])
def test_planted_dead_units(k: int) -> None:
    F = _gaussian(64, 12).abs()
    F[:, torch.randperm(12, generator=_generator(3))[:k]] = 0.0
    assert features.dead_fraction(F) == k / 12
    assert features.dormant_fraction(F, 0.0) == k / 12


@given(SEEDS, st.integers(0, 60))
def test_planted_flips(seed: int, flips: int) -> None:
    F0 = _gaussian(5, 12, seed=seed)
    F1 = F0.clone()
    chosen = torch.randperm(60, generator=_generator(seed))[:flips]
    F1.view(-1)[chosen] *= -1
    assert features.flipped_fraction(F0, F1) == pytest.approx(flips / 60)
    assert features.activation_pattern_change(F0, F1) == pytest.approx(math.sqrt(flips))


def test_convolution_units_are_channels() -> None:
    F = _gaussian(8, 4, 3, 5).abs()
    F[:, 1] = 0.0
    F[:, 2] = 0.0
    F[6, 2, 1, 4] = 0.3  # one active position keeps the channel alive, but it stays dormant
    assert features.dead_fraction(F) == 0.25
    assert features.dormant_fraction(F, 0.1) == 0.5
    assert features.unit_view(F).shape == (8 * 3 * 5, 4)
    assert torch.equal(features.unit_view(F)[5 * 15 + 7], F[5, :, 1, 2])


def test_convolution_without_space_is_dense() -> None:
    dense = _gaussian(9, 6).clamp(min=0)
    conv = dense.reshape(9, 6, 1, 1)
    for metric in (features.dead_fraction, features.effective_rank, features.srank, features.feature_norm):
        assert metric(conv) == metric(dense)
    assert features.dormant_fraction(conv, 0.5) == features.dormant_fraction(dense, 0.5)


def test_convolution_ranks_use_the_flattened_features() -> None:
    F = _gaussian(6, 4, 3, 5)
    assert features.effective_rank(F) == features.effective_rank(F.reshape(6, 60))
    assert features.effective_rank(F) != pytest.approx(features.effective_rank(features.unit_view(F)), rel=0.1)
    assert features.covariance_change(F, F + 1) == features.covariance_change(F.reshape(6, 60), F.reshape(6, 60) + 1)


def test_three_axes_are_ambiguous() -> None:
    F = _gaussian(4, 5, 3)
    with pytest.raises(ValueError, match="unit_dim"):
        features.dead_fraction(F)
    F[..., 0] = -1.0
    assert features.dead_fraction(F, unit_dim=-1) == pytest.approx(1 / 3)
    assert features.dead_fraction(F, unit_dim=1) == 0.0
    for axis in (0, 3, -3):
        with pytest.raises(ValueError, match="not a unit axis"):
            features.unit_view(F, unit_dim=axis)


# Invariances and bounds


@given(SEEDS, st.integers(2, 9), st.integers(1, 9), st.floats(1e-3, 1e3))
def test_rotation_and_scale_change_nothing(seed: int, n: int, d: int, scale: float) -> None:
    F, G = _gaussian(n, d, seed=seed), _gaussian(n, d, seed=seed + 1)
    turned = scale * F @ _orthogonal(d, seed=seed + 2)
    for rank in (features.effective_rank, features.stable_rank, features.srank):
        assert rank(turned) == pytest.approx(rank(F), rel=1e-9)
    assert features.covariance_change(F, turned) == pytest.approx(0.0, abs=1e-12)
    assert features.covariance_change(turned, G) == pytest.approx(features.covariance_change(F, G), abs=1e-12)


def test_rotation_changes_what_is_not_invariant() -> None:
    F = _gaussian(50, 8)
    turned = F @ _orthogonal(8)
    assert features.flipped_fraction(F, turned) > 0.2
    left = _orthogonal(50) @ F  # mixes the samples: C must notice, the ranks must not
    assert features.covariance_change(F, left) > 0.1
    assert features.effective_rank(left) == pytest.approx(features.effective_rank(F))


@given(SEEDS, st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
def test_ranks_lie_between_one_and_the_rank(seed: int, n: int, d: int, k: int) -> None:
    F = _gaussian(n, k, seed=seed) @ _gaussian(k, d, seed=seed + 1)
    rank = min(n, d, k)
    for metric in (features.effective_rank, features.stable_rank, features.srank):
        assert 1.0 - 1e-9 <= metric(F) <= rank + 1e-9
    # p <= 1 for each of the three, and stable rank <= effective rank (Renyi order against Shannon)
    assert features.stable_rank(F) <= features.effective_rank(F) + 1e-9


@given(SEEDS, st.integers(-20, 20))
def test_unit_metrics_ignore_scale(seed: int, power: int) -> None:
    F = _gaussian(6, 10, seed=seed).clamp(min=0)
    scaled = F * 2.0**power
    assert features.dormant_fraction(scaled, 0.3) == features.dormant_fraction(F, 0.3)
    assert features.dead_fraction(scaled) == features.dead_fraction(F)
    assert features.flipped_fraction(F, scaled) == 0.0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_extreme_scales_do_not_overflow(scale: float) -> None:
    F = _gaussian(5, 4)
    assert features.effective_rank(F * scale) == pytest.approx(features.effective_rank(F))
    assert features.covariance_change(F * scale, F) == pytest.approx(0.0, abs=1e-12)


# The collapsed layer and bad input


def test_all_zero_features() -> None:
    F = torch.zeros(4, 3)
    assert features.dead_fraction(F) == 1.0
    assert features.dormant_fraction(F, 0.0) == features.dormant_fraction(F, 0.1) == 1.0
    assert features.effective_rank(F) == features.stable_rank(F) == features.srank(F) == features.feature_norm(F) == 0
    assert features.flipped_fraction(F, torch.ones(4, 3)) == 1.0
    for pair in ((F, torch.ones(4, 3)), (torch.ones(4, 3), F), (F, F)):
        with pytest.raises(ValueError, match="0/0"):
            features.covariance_change(*pair)


UNARY: list[Callable[[Tensor], float]] = [
    features.dead_fraction,
    lambda F: features.dormant_fraction(F, 0.1),
    features.effective_rank,
    features.stable_rank,
    features.srank,
    features.feature_norm,
    lambda F: features.covariance_change(F, torch.ones(2, 2)),
    lambda F: features.covariance_change(torch.ones(2, 2), F),
    lambda F: features.activation_pattern_change(F, torch.ones(2, 2)),
    lambda F: features.flipped_fraction(torch.ones(2, 2), F),
]


@pytest.mark.parametrize("metric", UNARY)
def test_bad_features_raise(metric: Callable[[Tensor], float]) -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            metric(torch.tensor([[1.0, bad], [0.0, 2.0]]))
    with pytest.raises(ValueError, match="floating"):
        metric(torch.ones(2, 2, dtype=torch.int64))


def test_bad_arguments_raise() -> None:
    F = torch.ones(3, 2)
    for tau in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="tau"):
            features.dormant_fraction(F, tau)
    for delta in (0.0, 1.0):
        with pytest.raises(ValueError, match="delta"):
            features.srank(F, delta)
    with pytest.raises(ValueError, match="same n inputs"):
        features.covariance_change(F, torch.ones(4, 2))
    with pytest.raises(ValueError, match="shapes"):
        features.flipped_fraction(F, torch.ones(3, 3))
    for shape in ((3,), (0, 2)):
        with pytest.raises(ValueError, match="shape"):
            features.effective_rank(torch.ones(shape))


# The probe


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
    assert set(scalars[0]) == {f"plasticity/{m}/{name}" for m in features.MOMENT_METRICS for name in ("2", "7")}
    assert set(scalars[1]) == {f"plasticity/{m}/{name}" for m in METRICS for name in ("2", "7")}
    for name in ("2", "7"):
        F0, F1 = outputs[0][name], outputs[1][name]
        expected = {
            "delta_c": features.covariance_change(F0, F1),
            "delta_a": features.activation_pattern_change(F0, F1),
            "flipped_fraction": features.flipped_fraction(F0, F1),
            "dead_fraction": features.dead_fraction(F1),
            "dormant_fraction": features.dormant_fraction(F1, 0.3),
            "effective_rank": features.effective_rank(F1),
            "stable_rank": features.stable_rank(F1),
            "srank": features.srank(F1, 0.2),
            "feature_norm": features.feature_norm(F1),
        }
        assert {metric: scalars[1][f"plasticity/{metric}/{name}"] for metric in expected} == pytest.approx(expected)
        assert expected["delta_c"] > 0 and expected["flipped_fraction"] > 0


def test_a_later_in_place_operation_does_not_reach_the_captured_features() -> None:
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


def test_probe_inputs_are_its_own() -> None:
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


def test_state_survives_torch_save(tmp_path: Path) -> None:
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
        with pytest.raises(ValueError, match=r"every=0|tau=|delta="):
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
