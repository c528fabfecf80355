"""The formulas of `elr.metrics` over tensors.

They compute in float64 on the features' device, without checks and without transfers to the host: `elr.metrics` checks
its arguments and returns numbers, `elr.probe` makes one transfer for all layers. Names of arguments:

    F         features, (n, d) or (n, C, *spatial)
    matrix    F as (n, C * spatial) in float64
    gram      matrix @ matrix.T, (n, n), of the scaled matrix; None where nothing needs it
    geometry  what Delta_C compares: C, (n, n), or of many inputs the factor G with C = G G^T, (n, d)
    spectrum  singular values in descending order
    units     (samples, C), see `elr.metrics.unit_view`
"""

import torch
from torch import Tensor

# Singular values that tie with 1 - delta in exact arithmetic (a flat spectrum) must count as having reached it.
_SRANK_TIE = 1e-9


def measurable(F: Tensor) -> Tensor:
    """F without its graph, on a device that has float64: features from MPS are measured on the host."""
    return F.detach().cpu() if F.device.type == "mps" else F.detach()


def as_matrix(F: Tensor) -> Tensor:
    """F as (n, C * spatial) in float64. The order of the columns is that in memory; no metric depends on it."""
    F = measurable(F)
    if F.ndim == 4 and F.is_contiguous(memory_format=torch.channels_last):
        F = F.permute(0, 2, 3, 1)
    return F.double().flatten(1)


def scaled(F: Tensor, matrix: Tensor) -> Tensor:
    """The matrix scaled so that its squares neither overflow nor vanish; those of types below float64 never do."""
    if F.dtype != torch.float64:
        return matrix
    largest = matrix.abs().amax()
    return matrix / torch.where(largest > 0, largest, torch.ones_like(largest))


def many_inputs(n: int, d: int) -> bool:
    """Whether (n, n) matrices would cost more than the QR decomposition in `distance`; see `runs.benchmarks.probe`."""
    return n > 4 * d


def geometry(matrix: Tensor, gram: Tensor | None) -> Tensor:
    """C = F F^T / ||F||_F^2, (n, n) with trace 1; without a gram its factor G = F / ||F||_F, (n, d). Zero for all-zero
    F, which `is_defined` tells apart."""
    if gram is None:
        norm = torch.linalg.vector_norm(matrix)
        return matrix / torch.where(norm > 0, norm, torch.ones_like(norm))
    trace: Tensor = gram.trace()
    return gram / torch.where(trace > 0, trace, torch.ones_like(trace))


def is_defined(geometry: Tensor) -> Tensor:
    """Whether it is that of features that are not all zero, [] bool."""
    square = geometry.shape[0] == geometry.shape[1]
    return (geometry.trace() if square else torch.linalg.vector_norm(geometry)) > 0.5


def distance(geometry_0: Tensor, geometry_1: Tensor) -> Tensor:
    """||C_0 - C_1||_F. Both are C, or both are factors.

    The factors G_0 and G_1 = G_0 + D are written in one orthonormal basis, [G_0 D] = Q [R S]. Q drops out of the norm,
    and C_1 - C_0 becomes R S^T + S R^T + S S^T, of 2 d x 2 d. (The closed form ||G_0^T G_0||^2 + ||G_1^T G_1||^2 -
    2 ||G_0^T G_1||^2 needs no basis, but loses half the digits of a small distance.)
    """
    n, d = geometry_0.shape
    if d == n:
        return (geometry_0 - geometry_1).square().sum().sqrt()
    both = torch.cat([geometry_0, geometry_1 - geometry_0], dim=1)
    basis = torch.linalg.qr(both.nan_to_num(0.0, 0.0, 0.0), mode="r").R
    R, S = basis[:, :d], basis[:, d:]
    mixed: Tensor = R @ S.T
    change: Tensor = mixed + mixed.T + S @ S.T
    return change.square().sum().sqrt()


def dead(units: Tensor) -> Tensor:
    """Share of units that are never > 0."""
    return (units.amax(dim=0) <= 0).double().mean()


def dormant(units: Tensor, tau: float) -> Tensor:
    """Share of units with E|h_i| <= tau * mean_k E|h_k|."""
    activity: Tensor = torch.linalg.vector_norm(units, ord=1, dim=0, dtype=torch.float64) / len(units)
    return (activity <= tau * activity.mean()).double().mean()


def gram_of(matrix: Tensor) -> Tensor | None:
    """The (n, n) Gram matrix, or None with many inputs."""
    return None if many_inputs(*matrix.shape) else matrix @ matrix.T


def singular_values(matrix: Tensor, gram: Tensor | None) -> Tensor:
    """Descending singular values of the scaled matrix, from the smaller of its two Gram matrices; `gram` is (n, n)."""
    n, d = matrix.shape
    smaller = gram if gram is not None and n <= d else matrix.T @ matrix
    # The solver throws on NaN. A probe reports that by its finite flag, which names the layer and needs no extra sync.
    eigenvalues = torch.linalg.eigvalsh(smaller.nan_to_num(0.0, 0.0, 0.0)).flip(0)
    floor = eigenvalues[0] * max(n, d) * torch.finfo(torch.float64).eps
    return torch.where(eigenvalues > floor, eigenvalues, 0.0).sqrt()


def effective_rank(spectrum: Tensor) -> Tensor:
    """exp of the entropy of s_i / sum_j s_j; 0 if all are 0."""
    total = spectrum.sum()
    shares = spectrum / torch.where(total > 0, total, torch.ones_like(total))
    return torch.where(total > 0, torch.special.entr(shares).sum().exp(), 0.0)


def stable_rank(spectrum: Tensor) -> Tensor:
    """sum_i s_i^2 / s_1^2; 0 if all are 0."""
    squares = spectrum.square()
    return torch.where(squares[0] > 0, squares.sum() / squares[0], 0.0)


def srank(spectrum: Tensor, delta: float) -> Tensor:
    """How many singular values hold a share 1 - delta of their sum; 0 if all are 0."""
    total = spectrum.sum()
    short = spectrum.cumsum(0) < (1.0 - delta - _SRANK_TIE) * total
    return torch.where(total > 0, short.sum() + 1, 0)


def feature_norm(matrix: Tensor) -> Tensor:
    """Mean of the rows' Euclidean norms."""
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=1)
    return norms.mean()
