"""Feature learning and plasticity, measured on fixed inputs.

Two groups of numbers. How far the features of a layer moved between two moments: `covariance_change` (Delta_C),
`activation_pattern_change` (Delta_A), `flipped_fraction` (arXiv:2507.20057). How much of the layer is in use at one
moment: `dead_fraction`, `dormant_fraction`, `effective_rank`, `stable_rank`, `srank`, `feature_norm`. Each function
defines one metric, checks its arguments and returns a number. `elr.probe.Probe` measures all of them on named layers of
a network without disturbing its training; both use the formulas in `elr.metric_kernels`.

Shapes: F is one layer's output on n inputs, (n, d) for a dense layer or (n, C, *spatial) for a convolution. The units
of a convolution are its channels. Unit metrics see n * spatial samples of C units (`unit_view`); ranks, norms, Delta_C
and Delta_A see the flattened (n, C * spatial) matrix, written F below.

Give the output *after* the nonlinearity: ReDo's score, the ranks and the paper's F are defined there. For a ReLU the
dead fraction and the pattern are the same before and after it (never > 0). The other metrics are not: |h| of a
normalised pre-activation is far from 0 even where the ReLU outputs 0, so its dormant fraction is always 0. Signed
outputs (GELU, an attention output whose rank matters) are accepted: every metric keeps its definition, dead then means
"never positive" and dormant "small in absolute value".

All-zero F, a collapsed layer: dead and dormant fraction are 1, ranks and feature norm are 0, so the curve shows the
collapse. Delta_A is defined as usual. C = F F^T / ||F||^2 is 0/0, so `covariance_change` raises and a `Probe` leaves
out that layer's delta_c. Input that is not finite raises in all functions.

All arithmetic is float64. Singular values are square roots of the eigenvalues of the smaller Gram matrix. Those below
sqrt(max(n, d) * 2.2e-16) of the largest (5e-7 for d = 1024) cannot be distinguished from 0 this way and are set to 0.
Less than min(n, d) * 5e-7 of their sum is lost (1.3e-4 for n = 256), which is small compared with srank's delta = 0.01.
"""

import torch
from torch import Tensor

from elr import metric_kernels as kernels

MOMENT_METRICS = ("dead_fraction", "dormant_fraction", "effective_rank", "stable_rank", "srank", "feature_norm")
CHANGE_METRICS = ("delta_c", "delta_a", "flipped_fraction")


def covariance_change(F0: Tensor, F1: Tensor) -> float:
    """Distance between the normalised feature covariances of two moments.

    Delta_C = ||C_0 - C_1||_F,  C = F F^T / ||F||_F^2, C of shape (n, n)   (arXiv:2507.20057)

    In [0, sqrt(2)]. Unchanged by an orthogonal map of the features and by a positive scale, of either argument. It is
    0 whenever n = 1.

    Args:
        F0: features at the first moment, (n, d) or (n, C, *spatial).
        F1: features at the second moment, the same n; the width may differ.

    Raises:
        ValueError: n differs, an F is not finite or not floating, or an F is all zero (C is 0/0).
    Deviation: the paper does not name the norm; Frobenius.
    """
    matrix_0, matrix_1 = kernels.as_matrix(_checked(F0, "F0")), kernels.as_matrix(_checked(F1, "F1"))
    if matrix_0.shape[0] != matrix_1.shape[0]:
        raise ValueError(
            f"covariance_change compares the same n inputs: F0 has n = {matrix_0.shape[0]}, F1 has "
            f"n = {matrix_1.shape[0]}. Compute both on one fixed batch."
        )
    scaled = kernels.scaled(F0, matrix_0), kernels.scaled(F1, matrix_1)
    grams = [kernels.gram_of(matrix) for matrix in scaled]
    if matrix_0.shape[1] != matrix_1.shape[1]:
        grams = [matrix @ matrix.T for matrix in scaled]
    geometries = [kernels.geometry(matrix, gram) for matrix, gram in zip(scaled, grams, strict=True)]
    if not all(kernels.is_defined(geometry) for geometry in geometries):
        raise ValueError(
            "covariance_change of all-zero features: C = F F^T / ||F||^2 is 0/0. Check dead_fraction first and leave "
            "the point out."
        )
    return float(kernels.distance(*geometries))


def activation_pattern_change(F0: Tensor, F1: Tensor) -> float:
    """Distance between the activation patterns of two moments.

    Delta_A = ||A_0 - A_1||_F = sqrt(number of entries that flipped),  A = 1[F > 0]   (arXiv:2507.20057)

    It grows with sqrt(n * d): compare it only between batches and layers of one size, or use `flipped_fraction`.

    Args:
        F0: features at the first moment, (n, d) or (n, C, *spatial).
        F1: features at the second moment, the same shape.

    Raises:
        ValueError: shapes differ, or an F is not finite or not floating.
    Deviation: the paper does not name the norm; Frobenius.
    """
    return float(_flips(F0, F1).sum().sqrt())


def flipped_fraction(F0: Tensor, F1: Tensor) -> float:
    """Share of activation-pattern entries that differ: mean(1[A_0 != A_1]) = Delta_A^2 / (n * d).

    Args:
        F0: features at the first moment, (n, d) or (n, C, *spatial).
        F1: features at the second moment, the same shape.

    Raises:
        ValueError: shapes differ, or an F is not finite or not floating.
    Source: arXiv:2507.20057, which reports it with Delta_A. Deviation: none.
    """
    return float(_flips(F0, F1).mean())


def dead_fraction(F: Tensor, *, unit_dim: int | None = None) -> float:
    """Share of units that are never > 0 on the batch; a channel is dead if it is dead at every position.

    dead = mean_i 1[F_ji <= 0 for all samples j]

    Args:
        F: post-activation features, (n, d) or (n, C, *spatial).
        unit_dim: axis of the units, see `unit_view`.

    Raises:
        ValueError: F is not finite or not floating, or the axis of its units is ambiguous.
    Deviation: none.
    """
    return float(kernels.dead(unit_view(_checked(F, "F"), unit_dim=unit_dim)))


def dormant_fraction(F: Tensor, tau: float, *, unit_dim: int | None = None) -> float:
    """Share of tau-dormant units, those with a ReDo score of at most tau (Sokar et al. 2023).

    s_i = E|h_i| / mean_k E|h_k| <= tau,  E over batch and positions

    Args:
        F: post-activation features h, (n, d) or (n, C, *spatial).
        tau: threshold in [0, 1); 0 counts units that are exactly 0 everywhere.
        unit_dim: axis of the units, see `unit_view`.

    Raises:
        ValueError: tau is outside [0, 1), F is not finite or not floating, or the axis of its units is ambiguous.
    Deviation: compared as E|h_i| <= tau * mean_k E|h_k|, without ReDo's 1e-9 in the denominator; an all-zero layer
        is then all dormant (1.0), not 0/0.
    """
    check_tau(tau)
    return float(kernels.dormant(unit_view(kernels.measurable(_checked(F, "F")), unit_dim=unit_dim), tau))


def effective_rank(F: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values (Roy & Vetterli 2007), F not centred.

    exp(-sum_i p_i log p_i),  p_i = s_i / sum_j s_j

    In [1, rank F]; 0 for all-zero F.

    Args:
        F: (n, d) or (n, C, *spatial).

    Raises:
        ValueError: F is not finite or not floating.
    Deviation: small singular values are set to 0, see the module's docstring.
    """
    return float(kernels.effective_rank(_spectrum(F)))


def stable_rank(F: Tensor) -> float:
    """||F||_F^2 / ||F||_2^2 = sum_i s_i^2 / s_1^2, F not centred.

    In [1, rank F]; 0 for all-zero F. Not `srank`, which several code bases call "stable rank".

    Args:
        F: (n, d) or (n, C, *spatial).

    Raises:
        ValueError: F is not finite or not floating.
    Deviation: none.
    """
    return float(kernels.stable_rank(_spectrum(F)))


def srank(F: Tensor, delta: float = 0.01) -> int:
    """Number of singular values that hold a share 1 - delta of their sum (Kumar et al. 2021; not squared).

    min{k : sum_{i<=k} s_i / sum_j s_j >= 1 - delta}

    In [1, rank F]; 0 for all-zero F.

    Args:
        F: (n, d) or (n, C, *spatial).
        delta: share left out, in (0, 1).

    Raises:
        ValueError: delta outside (0, 1), or F is not finite or not floating.
    Deviation: a cumulative share within 1e-9 of 1 - delta counts as reaching it.
    """
    check_delta(delta)
    return int(kernels.srank(_spectrum(F), delta))


def feature_norm(F: Tensor) -> float:
    """Mean over the samples of the Euclidean norm of their features: (1/n) sum_j ||F_j||_2.

    Args:
        F: (n, d) or (n, C, *spatial).

    Raises:
        ValueError: F is not finite or not floating.
    Deviation: none.
    """
    return float(kernels.feature_norm(kernels.as_matrix(_checked(F, "F"))))


def unit_view(F: Tensor, *, unit_dim: int | None = None) -> Tensor:
    """Features as samples of units: (n, d) as it is, (n, C, *spatial) as (n * spatial, C).

    Args:
        F: (n, d), (n, C, *spatial), or tokens (n, length, width) with unit_dim = -1.
        unit_dim: the axis that holds the units, by default axis 1. A 3-D F is ambiguous and needs it: 1 for (n, C,
            length) of a 1-D convolution, -1 for (n, length, width) of a sequence model.

    Raises:
        ValueError: F has fewer than 2 axes, is 3-D without unit_dim, or unit_dim is the sample axis or not an axis.
    """
    if F.ndim < 2:
        raise ValueError(f"features need shape (n, d) or (n, C, *spatial), got {tuple(F.shape)}")
    if unit_dim is None:
        if F.ndim == 3:
            raise ValueError(
                f"features of shape {tuple(F.shape)} can be (n, channels, length) or (n, length, width): pass "
                "unit_dim=1 for a 1-D convolution or unit_dim=-1 for tokens"
            )
        unit_dim = 1
    if unit_dim not in range(-F.ndim + 1, F.ndim) or unit_dim == 0:
        raise ValueError(f"unit_dim={unit_dim} is not a unit axis of features of shape {tuple(F.shape)}; axis 0 is n")
    return F.movedim(unit_dim, -1).reshape(-1, F.shape[unit_dim])


def _checked(F: Tensor, name: str) -> Tensor:
    if F.ndim < 2 or F.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(F.shape)}; it must be a non-empty (n, d) or (n, C, *spatial)")
    if not F.is_floating_point():
        raise ValueError(f"{name} has dtype {F.dtype}; features are floating, convert with .float()")
    F = F.detach()
    if not bool(torch.isfinite(F).all()):
        raise ValueError(f"{name} holds NaN or infinite entries, for which no feature metric is defined")
    return F


def check_tau(tau: float) -> None:
    """Refuse a threshold of dormancy outside [0, 1) (ValueError)."""
    if not 0.0 <= tau < 1.0:
        raise ValueError(
            f"tau must be in [0, 1), got {tau}; from 1 on all units of an equally active layer are dormant"
        )


def check_delta(delta: float) -> None:
    """Refuse a share left out by srank outside (0, 1) (ValueError)."""
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must be in (0, 1), got {delta}: srank keeps a share 1 - delta of the singular values")


def _flips(F0: Tensor, F1: Tensor) -> Tensor:
    if F0.shape != F1.shape:
        raise ValueError(
            f"activation patterns of shapes {tuple(F0.shape)} and {tuple(F1.shape)} cannot be compared; use the same "
            "inputs and the same layer"
        )
    return ((_checked(F0, "F0") > 0) != (_checked(F1, "F1") > 0)).double()


def _spectrum(F: Tensor) -> Tensor:
    matrix = kernels.scaled(F, kernels.as_matrix(_checked(F, "F")))
    return kernels.singular_values(matrix, kernels.gram_of(matrix))
