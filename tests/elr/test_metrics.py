"""Feature metrics: hand-worked tables, planted structure, invariances."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from elr import metrics

SEEDS = st.integers(0, 2**32 - 1)


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
    assert metrics.covariance_change(F0, F1) == pytest.approx(math.sqrt(0.5))
    # Disjoint support: C0 = diag(1, 0), C1 = diag(0, 1), the largest distance there is.
    F0, F1 = torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0], [3.0]])
    assert metrics.covariance_change(F0, F1) == pytest.approx(math.sqrt(2.0))


def test_pattern_by_hand() -> None:
    F0 = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]])
    F1 = torch.tensor([[0.0, 0.1, -1.0], [0.5, 2.0, 3.0]])  # three of six entries flip
    assert metrics.activation_pattern_change(F0, F1) == pytest.approx(math.sqrt(3.0))
    assert metrics.flipped_fraction(F0, F1) == pytest.approx(0.5)


def test_unit_metrics_by_hand() -> None:
    # E|h| = 0, 1, 0.05, 3 with mean 1.0125: scores 0, .988, .049, 2.96.
    F = torch.tensor([[0.0, 2.0, 0.1, 3.0], [0.0, 0.0, 0.0, 3.0]])
    assert metrics.dead_fraction(F) == 0.25
    assert [metrics.dormant_fraction(F, tau) for tau in (0.0, 0.04, 0.1, 0.99)] == [0.25, 0.25, 0.5, 0.75]
    assert metrics.feature_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]])) == pytest.approx(3.0)


def test_dormant_uses_the_absolute_value_and_dead_the_sign() -> None:
    F = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
    assert metrics.dormant_fraction(F, 0.1) == 0.0
    assert metrics.dead_fraction(F) == 0.5


def test_ranks_of_known_spectrum() -> None:
    # s = 4, 3, 2, 1: p = .4, .3, .2, .1; cumulative .4, .7, .9, 1.
    F = _orthogonal(6)[:, :4] @ torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]).double()) @ _orthogonal(4, seed=2)
    entropy = -sum(p * math.log(p) for p in (0.4, 0.3, 0.2, 0.1))
    assert metrics.effective_rank(F) == pytest.approx(math.exp(entropy), rel=1e-12)
    assert metrics.stable_rank(F) == pytest.approx(30 / 16, rel=1e-12)
    assert [metrics.srank(F, delta) for delta in (0.01, 0.1, 0.11, 0.3, 0.5, 0.65)] == [4, 3, 3, 2, 2, 1]


@pytest.mark.parametrize("d", [1, 7, 100, 200])
def test_ranks_of_an_orthogonal_matrix(d: int) -> None:
    Q = _orthogonal(d)
    assert metrics.effective_rank(Q) == pytest.approx(d, rel=1e-9)
    assert metrics.stable_rank(Q) == pytest.approx(d, rel=1e-9)
    assert metrics.srank(Q) == math.ceil(0.99 * d)  # 99 of 100 and 198 of 200


def test_srank_counts_a_tie_as_reached() -> None:
    # 3 of 10 equal values hold exactly a share 1 - 0.7, but (1.0 - 0.7) * 10 > 3 in float64.
    assert (1.0 - 0.7) * 10 > 3
    assert metrics.srank(torch.eye(10), 0.7) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rank_one(dtype: torch.dtype) -> None:
    F = (_gaussian(40, 1) @ _gaussian(1, 70, seed=1)).to(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4  # a float32 product is rank one only up to its rounding
    assert metrics.effective_rank(F) == pytest.approx(1.0, abs=tolerance)
    assert metrics.stable_rank(F) == pytest.approx(1.0, abs=tolerance)
    assert metrics.srank(F) == 1


@pytest.mark.parametrize("shape", [(256, 128), (128, 256), (64, 64)])
def test_gram_spectrum_gives_the_ranks_of_the_svd(shape: tuple[int, int]) -> None:
    decay = torch.logspace(0, -9, shape[1], dtype=torch.float64)
    F = _gaussian(*shape) * decay
    s = torch.linalg.svdvals(F)
    p = s / s.sum()
    assert metrics.effective_rank(F) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-4)
    assert metrics.stable_rank(F) == pytest.approx(float((F**2).sum() / s[0] ** 2), rel=1e-10)
    assert metrics.srank(F) == int((p.cumsum(0) < 0.99).sum()) + 1


# Planted structure


@pytest.mark.parametrize("k", [0, 1, 5, 12])
def test_planted_dead_units(k: int) -> None:
    F = _gaussian(64, 12).abs()
    F[:, torch.randperm(12, generator=_generator(3))[:k]] = 0.0
    assert metrics.dead_fraction(F) == k / 12
    assert metrics.dormant_fraction(F, 0.0) == k / 12


@given(SEEDS, st.integers(0, 60))
def test_planted_flips(seed: int, flips: int) -> None:
    F0 = _gaussian(5, 12, seed=seed)
    F1 = F0.clone()
    chosen = torch.randperm(60, generator=_generator(seed))[:flips]
    F1.view(-1)[chosen] *= -1
    assert metrics.flipped_fraction(F0, F1) == pytest.approx(flips / 60)
    assert metrics.activation_pattern_change(F0, F1) == pytest.approx(math.sqrt(flips))


def test_convolution_units_are_channels() -> None:
    F = _gaussian(8, 4, 3, 5).abs()
    F[:, 1] = 0.0
    F[:, 2] = 0.0
    F[6, 2, 1, 4] = 0.3  # one active position keeps the channel alive, but it stays dormant
    assert metrics.dead_fraction(F) == 0.25
    assert metrics.dormant_fraction(F, 0.1) == 0.5
    assert metrics.unit_view(F).shape == (8 * 3 * 5, 4)
    assert torch.equal(metrics.unit_view(F)[5 * 15 + 7], F[5, :, 1, 2])


def test_convolution_without_space_is_dense() -> None:
    dense = _gaussian(9, 6).clamp(min=0)
    conv = dense.reshape(9, 6, 1, 1)
    for metric in (metrics.dead_fraction, metrics.effective_rank, metrics.srank, metrics.feature_norm):
        assert metric(conv) == metric(dense)
    assert metrics.dormant_fraction(conv, 0.5) == metrics.dormant_fraction(dense, 0.5)


def test_convolution_ranks_use_the_flattened_features() -> None:
    F = _gaussian(6, 4, 3, 5)
    assert metrics.effective_rank(F) == metrics.effective_rank(F.reshape(6, 60))
    assert metrics.effective_rank(F) != pytest.approx(metrics.effective_rank(metrics.unit_view(F)), rel=0.1)
    assert metrics.covariance_change(F, F + 1) == metrics.covariance_change(F.reshape(6, 60), F.reshape(6, 60) + 1)


def test_three_axes_are_ambiguous() -> None:
    F = _gaussian(4, 5, 3)
    with pytest.raises(ValueError, match="unit_dim"):
        metrics.dead_fraction(F)
    F[..., 0] = -1.0
    assert metrics.dead_fraction(F, unit_dim=-1) == pytest.approx(1 / 3)
    assert metrics.dead_fraction(F, unit_dim=1) == 0.0
    for axis in (0, 3, -3):
        with pytest.raises(ValueError, match="not a unit axis"):
            metrics.unit_view(F, unit_dim=axis)


# Invariances and bounds


@given(SEEDS, st.integers(2, 9), st.integers(1, 9), st.floats(1e-3, 1e3))
def test_rotation_and_scale_change_nothing(seed: int, n: int, d: int, scale: float) -> None:
    F, G = _gaussian(n, d, seed=seed), _gaussian(n, d, seed=seed + 1)
    turned = scale * F @ _orthogonal(d, seed=seed + 2)
    for rank in (metrics.effective_rank, metrics.stable_rank, metrics.srank):
        assert rank(turned) == pytest.approx(rank(F), rel=1e-9)
    assert metrics.covariance_change(F, turned) == pytest.approx(0.0, abs=1e-12)
    assert metrics.covariance_change(turned, G) == pytest.approx(metrics.covariance_change(F, G), abs=1e-12)


def test_rotation_changes_what_is_not_invariant() -> None:
    F = _gaussian(50, 8)
    turned = F @ _orthogonal(8)
    assert metrics.flipped_fraction(F, turned) > 0.2
    left = _orthogonal(50) @ F  # mixes the samples: C must notice, the ranks must not
    assert metrics.covariance_change(F, left) > 0.1
    assert metrics.effective_rank(left) == pytest.approx(metrics.effective_rank(F))


@given(SEEDS, st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
def test_ranks_lie_between_one_and_the_rank(seed: int, n: int, d: int, k: int) -> None:
    F = _gaussian(n, k, seed=seed) @ _gaussian(k, d, seed=seed + 1)
    rank = min(n, d, k)
    for metric in (metrics.effective_rank, metrics.stable_rank, metrics.srank):
        assert 1.0 - 1e-9 <= metric(F) <= rank + 1e-9
    # p <= 1 for each of the three, and stable rank <= effective rank (Renyi order against Shannon)
    assert metrics.stable_rank(F) <= metrics.effective_rank(F) + 1e-9


@given(SEEDS, st.integers(-20, 20))
def test_unit_metrics_ignore_scale(seed: int, power: int) -> None:
    F = _gaussian(6, 10, seed=seed).clamp(min=0)
    scaled = F * 2.0**power
    assert metrics.dormant_fraction(scaled, 0.3) == metrics.dormant_fraction(F, 0.3)
    assert metrics.dead_fraction(scaled) == metrics.dead_fraction(F)
    assert metrics.flipped_fraction(F, scaled) == 0.0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_extreme_scales_do_not_overflow(scale: float) -> None:
    F = _gaussian(5, 4)
    assert metrics.effective_rank(F * scale) == pytest.approx(metrics.effective_rank(F))
    assert metrics.covariance_change(F * scale, F) == pytest.approx(0.0, abs=1e-12)


# Many inputs: other formulas, the same numbers


def _literal_change(F0: Tensor, F1: Tensor) -> float:
    C0, C1 = (F @ F.T / F.square().sum() for F in (F0, F1))
    return float(torch.linalg.matrix_norm(C0 - C1))


@pytest.mark.parametrize(("n", "d"), [(5, 1), (64, 16), (65, 16), (300, 16), (4096, 16)])
@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-6, 1e-2, 1.0, 100.0])
def test_covariance_change_of_many_inputs_is_the_literal_one(n: int, d: int, size: float) -> None:
    F = _gaussian(n, d).clamp(min=0)
    G = F + size * _gaussian(n, d, seed=1)
    assert metrics.covariance_change(F, G) == pytest.approx(_literal_change(F, G), rel=0, abs=1e-14)
    assert metrics.covariance_change(F, F) == 0.0
    assert metrics.covariance_change(F, 3 * F @ _orthogonal(d)) == pytest.approx(0.0, abs=1e-14)


def test_a_small_change_of_many_inputs_keeps_its_digits() -> None:
    """First order in the size of the change; the sum of the three squared norms has lost it at 1e-9."""
    F, D = _gaussian(4096, 16), _gaussian(4096, 16, seed=1)
    small, smaller = (metrics.covariance_change(F, F + size * D) for size in (1e-7, 1e-9))
    assert small / smaller == pytest.approx(100.0, rel=1e-5) and smaller > 0


def test_ranks_of_many_inputs_are_those_of_the_svd() -> None:
    F = _gaussian(300, 12) * torch.logspace(0, -3, 12, dtype=torch.float64)
    s = torch.linalg.svdvals(F)
    p = s / s.sum()
    assert metrics.effective_rank(F) == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-9)
    assert metrics.stable_rank(F) == pytest.approx(float(s.square().sum() / s[0] ** 2), rel=1e-12)


def test_widths_of_many_inputs_may_differ() -> None:
    F = _gaussian(100, 8)
    assert metrics.covariance_change(F, torch.cat([F, 0 * F[:, :1]], 1)) == pytest.approx(0.0, abs=1e-14)
    G = _gaussian(100, 60, seed=1)  # one side has few features, the other many
    assert metrics.covariance_change(F, G) == pytest.approx(_literal_change(F, G), rel=0, abs=1e-14)


def test_all_zero_features_of_many_inputs_have_no_covariance() -> None:
    F = _gaussian(100, 8)
    for pair in ((F, 0 * F), (0 * F, F)):
        with pytest.raises(ValueError, match="all-zero features"):
            metrics.covariance_change(*pair)


# The collapsed layer and bad input


def test_all_zero_features() -> None:
    F = torch.zeros(4, 3)
    assert metrics.dead_fraction(F) == 1.0
    assert metrics.dormant_fraction(F, 0.0) == metrics.dormant_fraction(F, 0.1) == 1.0
    assert metrics.effective_rank(F) == metrics.stable_rank(F) == metrics.srank(F) == metrics.feature_norm(F) == 0
    assert metrics.flipped_fraction(F, torch.ones(4, 3)) == 1.0
    for pair in ((F, torch.ones(4, 3)), (torch.ones(4, 3), F), (F, F)):
        with pytest.raises(ValueError, match="0/0"):
            metrics.covariance_change(*pair)


UNARY: list[Callable[[Tensor], float]] = [
    metrics.dead_fraction,
    lambda F: metrics.dormant_fraction(F, 0.1),
    metrics.effective_rank,
    metrics.stable_rank,
    metrics.srank,
    metrics.feature_norm,
    lambda F: metrics.covariance_change(F, torch.ones(2, 2)),
    lambda F: metrics.covariance_change(torch.ones(2, 2), F),
    lambda F: metrics.activation_pattern_change(F, torch.ones(2, 2)),
    lambda F: metrics.flipped_fraction(torch.ones(2, 2), F),
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
            metrics.dormant_fraction(F, tau)
    for delta in (0.0, 1.0):
        with pytest.raises(ValueError, match="delta"):
            metrics.srank(F, delta)
    with pytest.raises(ValueError, match="same n inputs"):
        metrics.covariance_change(F, torch.ones(4, 2))
    with pytest.raises(ValueError, match="shapes"):
        metrics.flipped_fraction(F, torch.ones(3, 3))
    for shape in ((3,), (0, 2)):
        with pytest.raises(ValueError, match="shape"):
            metrics.effective_rank(torch.ones(shape))
