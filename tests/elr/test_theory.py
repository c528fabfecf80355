"""Two closed forms of arXiv:2507.20057 (App. C), by simulation.

Setting. One hidden layer of m units, pre-activations z = alpha W x with W_ij ~ N(0, 1), features relu(z). One step
adds -eta G with G_ij ~ N(0, sigma_g^2) drawn independently of W: z' = z + delta, delta = -eta G x. For a fixed x the m
units are independent, and in each

    z ~ N(0, alpha^2 |x|^2),   delta ~ N(0, eta^2 sigma_g^2 |x|^2),   independent.

Write r = eta sigma_g / alpha; nothing below depends on eta, sigma_g and alpha other than through r.

1. Cosine. With m -> infinity, cos(z, z') -> E[z z'] / sqrt(E[z^2] E[z'^2]) = alpha / sqrt(alpha^2 + eta^2 sigma_g^2),

       rho = 1 / sqrt(1 + (eta / alpha)^2 sigma_g^2).

   At finite m the mean is lower by about rho (1 - rho^2) / (2 m), the bias of a sample correlation.
2. Switching off. (z, z') is a bivariate normal of correlation rho, so P(z > 0, z' < 0) = arccos(rho) / (2 pi). Given
   that the unit is active, which has probability 1/2, and with arccos(rho) = arctan(r),

       P(z' < 0 | z > 0) = arctan(r) / pi = 1/2 - arctan(1 / r) / pi.

Where the usual wording is looser than the formulas:
- "the cosine between an embedding and its update": with the *updated* embedding z'. With the update delta itself it is
  0 on average. And the embedding is the pre-activation: the cosine of the ReLU features is the arc-cosine kernel,
  (sqrt(1 - rho^2) + rho (pi - arccos rho)) / pi, which is larger.
- the switch-off formula is written with eta sigma_g alone, that is for alpha = 1; in general r = eta sigma_g / alpha.
  It is conditional on the unit being active. By symmetry it is also the share of all entries that flip either way.
- sigma_g is the gradient scale at the weights alpha W. In a scale-invariant network that is 1 / alpha of the scale at
  W: in terms of the gradient at unit-scale weights the ratio eta / alpha becomes eta / alpha^2, the effective rate of
  gradient descent. For an update of fixed size (Adam) it stays eta / alpha.
- G does not depend on W. A true gradient passes nothing to a unit that is off on the whole batch.
"""

import functools
import math

import pytest
import torch
from torch import Tensor

from elr import metrics

INPUTS, FAN_IN, WIDTH = 16, 24, 16384
ENTRIES = INPUTS * WIDTH
SIGMAS = 5.0  # a right formula fails one such check in 1.7 million

# (eta, sigma_g, alpha): r from 0.1 to 4, among them pairs with equal r and alpha != 1
CASES = [(0.1, 1.0, 1.0), (0.5, 2.0, 1.0), (2.0, 1.0, 0.5), (0.3, 1.0, 3.0), (1.0, 0.7, 2.0)]


@functools.cache
def _step(eta: float, sigma_g: float, alpha: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pre-activations (INPUTS, WIDTH) before and after one step.

    The inputs are orthogonal with norms from 1 to 3, so that all entries are independent, not only those of one input.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(FAN_IN, INPUTS, generator=generator, dtype=torch.float64)).Q.T
    inputs = torch.linspace(1, 3, INPUTS, dtype=torch.float64)[:, None] * directions
    weights = alpha * torch.randn(FAN_IN, WIDTH, generator=generator, dtype=torch.float64)
    gradient = sigma_g * torch.randn(FAN_IN, WIDTH, generator=generator, dtype=torch.float64)
    return inputs @ weights, inputs @ (weights - eta * gradient)


def _cosines(z: Tensor, other: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(z, other, dim=1)


def _rho(eta: float, sigma_g: float, alpha: float) -> float:
    return 1 / math.sqrt(1 + (eta / alpha) ** 2 * sigma_g**2)


def _switch_off(eta: float, sigma_g: float, alpha: float) -> float:
    return 0.5 - math.atan(alpha / (eta * sigma_g)) / math.pi


def _cosine_tolerance(rho: float) -> float:
    """SIGMAS standard errors of the mean of INPUTS sample correlations, plus their bias."""
    return SIGMAS * (1 - rho**2) / math.sqrt(ENTRIES) + rho * (1 - rho**2) / WIDTH


def _share_tolerance(p: float, samples: int) -> float:
    return SIGMAS * math.sqrt(p * (1 - p) / samples)


@pytest.mark.parametrize("case", CASES)
def test_cosine_of_embedding_and_updated_embedding(case: tuple[float, float, float]) -> None:
    z, updated = _step(*case)
    rho = _rho(*case)
    measured = _cosines(z, updated).mean().item()
    assert measured == pytest.approx(rho, abs=_cosine_tolerance(rho))
    # Controls: the forms it is not.
    for wrong in (1 / (1 + (case[0] / case[2]) ** 2 * case[1] ** 2), _rho(case[0], 2 * case[1], case[2])):
        assert abs(measured - wrong) > 2 * _cosine_tolerance(rho)


def test_cosine_with_the_update_itself_is_zero() -> None:
    z, updated = _step(0.5, 2.0, 1.0)
    assert _cosines(z, updated - z).mean().item() == pytest.approx(0.0, abs=SIGMAS / math.sqrt(ENTRIES))


@pytest.mark.parametrize("case", CASES)
def test_cosine_after_the_relu_is_the_arc_cosine_kernel(case: tuple[float, float, float]) -> None:
    z, updated = _step(*case)
    rho = _rho(*case)
    kernel = (math.sqrt(1 - rho**2) + rho * (math.pi - math.acos(rho))) / math.pi
    cosines = _cosines(z.relu(), updated.relu())  # one independent draw per input, so their spread gives the error
    measured = cosines.mean().item()
    assert measured == pytest.approx(kernel, abs=SIGMAS * cosines.std().item() / math.sqrt(INPUTS) + 1 / WIDTH)
    if rho < 0.9:
        assert measured - rho > 0.01  # control: the pre-activation formula is not that of the features


def test_normalised_embedding_has_the_same_cosine() -> None:
    z, updated = _step(0.5, 2.0, 1.0)
    width = (WIDTH,)
    normed = _cosines(torch.nn.functional.rms_norm(z, width), torch.nn.functional.rms_norm(updated, width))
    assert torch.allclose(normed, _cosines(z, updated), rtol=0, atol=1e-9)
    centred = _cosines(torch.nn.functional.layer_norm(z, width), torch.nn.functional.layer_norm(updated, width))
    rho = _rho(0.5, 2.0, 1.0)
    assert centred.mean().item() == pytest.approx(rho, abs=_cosine_tolerance(rho))


@pytest.mark.parametrize("case", CASES)
def test_chance_that_an_active_unit_switches_off(case: tuple[float, float, float]) -> None:
    z, updated = _step(*case)
    p = _switch_off(*case)
    active = z > 0
    off = (updated[active] <= 0).double().mean().item()
    tolerance = _share_tolerance(p, int(active.sum()))
    assert off == pytest.approx(p, abs=tolerance)
    # Controls: the joint probability (not given active) and the arctangent of the inverse ratio.
    joint = (active & (updated <= 0)).double().mean().item()
    assert joint == pytest.approx(p / 2, abs=_share_tolerance(p / 2, ENTRIES))
    assert abs(joint - p) > 2 * tolerance
    if p != pytest.approx(0.25):  # at r = 1 the two coincide
        assert abs(off - (0.5 - math.atan(case[0] * case[1] / case[2]) / math.pi)) > 2 * tolerance


@pytest.mark.parametrize("case", CASES)
def test_flipped_fraction_estimates_the_switch_off_chance(case: tuple[float, float, float]) -> None:
    before, after = (z.relu() for z in _step(*case))
    p = _switch_off(*case)
    flipped = metrics.flipped_fraction(before, after)
    assert flipped == pytest.approx(p, abs=_share_tolerance(p, ENTRIES))
    assert metrics.activation_pattern_change(before, after) == pytest.approx(math.sqrt(flipped * ENTRIES))


def test_without_alpha_the_switch_off_formula_is_that_of_unit_scale() -> None:
    eta, sigma_g, alpha = 1.0, 0.7, 2.0
    flipped = metrics.flipped_fraction(*(z.relu() for z in _step(eta, sigma_g, alpha)))
    literal = 0.5 - math.atan(1 / (eta * sigma_g)) / math.pi
    assert abs(flipped - literal) > 20 * _share_tolerance(literal, ENTRIES)


def test_only_the_ratio_of_rate_to_scale_counts() -> None:
    z, updated = _step(0.5, 2.0, 1.0)
    z_scaled, updated_scaled = _step(0.5 * 8, 2.0, 8.0)
    assert torch.allclose(_cosines(z, updated), _cosines(z_scaled, updated_scaled), rtol=0, atol=1e-12)
    assert metrics.flipped_fraction(updated.relu(), updated_scaled.relu()) == 0.0


@pytest.mark.parametrize("alpha", [0.25, 4.0])
def test_gradient_of_a_scale_invariant_layer_is_one_over_alpha(alpha: float) -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(12, 32, generator=generator, dtype=torch.float64)
    inputs = torch.randn(20, 12, generator=generator, dtype=torch.float64)
    readout = torch.randn(32, generator=generator, dtype=torch.float64)

    def gradient(scale: float, *, normalised: bool) -> Tensor:
        weights = (scale * base).requires_grad_()
        z = inputs @ weights
        hidden = z * z.square().mean(dim=1, keepdim=True).rsqrt() if normalised else z
        return torch.autograd.grad((hidden.relu() @ readout - 1).square().mean(), weights)[0]

    unit = gradient(1.0, normalised=True)
    assert torch.allclose(gradient(alpha, normalised=True), unit / alpha, rtol=1e-10)
    assert (unit * base).sum().abs() < 1e-10 * unit.norm() * base.norm()  # and orthogonal to the weights
    # Control: without the normalisation neither holds.
    assert not torch.allclose(gradient(alpha, normalised=False), gradient(1.0, normalised=False) / alpha, rtol=0.1)
