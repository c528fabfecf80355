"""Normalize-and-Project (NaP): hold every weight norm at its initial value, so that the schedule alone sets the ELR.

The projection is W_l <- W_l * ||W_l(0)||_F / ||W_l||_F after the optimiser step: one scalar per weight tensor, a
convolution kernel as a whole, the output head left out, Adam's moments left alone (arXiv:2407.01800; arXiv:2507.20057,
Eq. 2). `elr.weights` chooses the tensors, `elr.scale_invariance` checks that the output ignores their scale.

`Rescaling` does the arithmetic. `project_to_norms_` and `project_gains_` apply it once; `Projection` keeps one and
applies it after the optimiser's updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elr.scale_invariance import Call, check_scale_invariance
from elr.states import check_keys
from elr.weights import gains_and_offsets, partners, require_positive, scalable_weights

GainPolicy = Literal["joint", "regularise", "decay", "free"]


def project_to_norms_(weights: Sequence[Tensor], norms: Sequence[float]) -> None:
    """Rescale each weight in place to its recorded Frobenius norm.

    W_l <- W_l * rho_l / ||W_l||_F,  rho_l = ||W_l(0)||_F   (arXiv:2507.20057, Eq. 2)

    Does not wait for a device. A weight that is zero or not finite cannot be projected: all its entries become NaN, and
    the caller should stop. The norm is computed in the precision of the weight; float32 sums on a CPU are off by up to
    3e-5 of the norm at 1.6M equal entries, the same at each call with the same number of threads.

    Args:
        weights: any shape; a conv kernel [out, in, kh, kw] is one vector.
        norms: rho_l > 0, host numbers, same order and length.

    Raises:
        ValueError: lengths differ, or a norm is not a positive finite number.

    Deviation: none.
    """
    if len(weights) != len(norms):
        raise ValueError(f"got {len(weights)} weights and {len(norms)} norms: give one norm per weight")
    require_positive(norms)
    Rescaling(weights, [None] * len(weights), norms).apply_()


def project_gains_(gains: Sequence[Tensor], offsets: Sequence[Tensor | None]) -> None:
    """Rescale the gain and offset of each normalisation layer jointly, in place; does not wait for a device.

    (g, b) <- (g, b) * sqrt(d) / sqrt(||g||^2 + ||b||^2),  d = number of gains   (arXiv:2407.01800)

    The radius is that of g = 1, b = 0. Harmless where a positively homogeneous activation (ReLU) and another
    normalisation follow. Without an offset the gain alone is rescaled.

    Args:
        gains: g per layer, any shape.
        offsets: b per layer, or None; same order and length.

    Raises:
        ValueError: lengths differ.

    Deviation: none.
    """
    if len(gains) != len(offsets):
        raise ValueError(f"got {len(gains)} gains and {len(offsets)} offsets: give an offset or None for each gain")
    Rescaling(gains, offsets, gain_radii(gains)).apply_()


def gain_radii(gains: Sequence[Tensor]) -> list[float]:
    """sqrt(d) for each gain: the norm of d gains at 1 and offsets at 0."""
    return [math.sqrt(gain.numel()) for gain in gains]


class Rescaling:
    """Tensors, each alone or with a partner, and the norms to which `apply_` rescales them in place.

        (x_i, y_i) <- (x_i, y_i) * rho_i / sqrt(||x_i||^2 + ||y_i||^2),  or x_i <- x_i * rho_i / ||x_i|| without a y_i

    With x = W_l and rho = ||W_l(0)||_F this is the projection of weights, Eq. 2 of arXiv:2507.20057; with x = g, y = b
    and rho = sqrt(d) that of gains and offsets, arXiv:2407.01800. See `project_to_norms_` for precision and zeros.

    float32 and float64 on a CPU go through NumPy, whose calls cost less than torch's; all else through torch's foreach
    functions, without waiting for the device.

    Args:
        tensors: x_i, any shape.
        partners: y_i or None, same order and length.
        norms: rho_i > 0, host numbers.
    """

    def __init__(self, tensors: Sequence[Tensor], partners: Sequence[Tensor | None], norms: Sequence[float]) -> None:
        # All x_i come first, then the partners that exist; `_paired` holds the index of each partner's x_i.
        self._tensors = [*tensors, *(partner for partner in partners if partner is not None)]
        self._paired = [i for i, partner in enumerate(partners) if partner is not None]
        self._norms = list(norms)
        self._groups: list[tuple[float, list[NDArray[Any]]]] | None = None
        self._addresses: list[int] = []

    def apply_(self) -> None:
        """Rescale now."""
        # Building the NumPy views costs as much as using them, so they are rebuilt only when a tensor's storage has
        # moved. (A change of shape in place would not be noticed; no module does that.)
        addresses = [tensor.data_ptr() for tensor in self._tensors]
        if addresses != self._addresses:
            self._groups = self._views()
            self._addresses = addresses
        if self._groups is None:
            self._apply_on_device_()
            return
        for rho, arrays in self._groups:
            squares = 0.0
            for array in arrays:
                squares += float(np.vdot(array, array))
            scale = rho / math.sqrt(squares) if 0.0 < squares < math.inf else math.nan
            for array in arrays:
                array *= scale
        torch.autograd.graph.increment_version(self._tensors)  # so autograd refuses a graph from before the change

    @torch.no_grad()
    def _apply_on_device_(self) -> None:
        if self._tensors:
            scales = self._scales(list(torch._foreach_norm(self._tensors)))
            torch._foreach_mul_(self._tensors, scales + [scales[i] for i in self._paired])

    def _scales(self, measured: list[Tensor]) -> list[Tensor]:
        """rho_i / sqrt(||x_i||^2 + ||y_i||^2) from the norms of all x_i, then of the partners."""
        # The square of a half-precision norm overflows.
        measured = [norm if norm.dtype == torch.float64 else norm.float() for norm in measured]
        squares = list(torch._foreach_mul(measured, measured))
        if self._paired:
            torch._foreach_add_([squares[i] for i in self._paired], squares[len(self._norms) :])
        scales = torch._foreach_reciprocal(torch._foreach_sqrt(squares[: len(self._norms)]))
        torch._foreach_mul_(scales, self._norms)
        return list(scales)

    def _views(self) -> list[tuple[float, list[NDArray[Any]]]] | None:
        """rho_i with the memory of x_i and, if it has one, of its partner; None if NumPy cannot take them.

        NumPy would sum the squares of a half precision in that precision, and overflow.
        """
        if not all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) for t in self._tensors):
            return None
        arrays = [tensor.detach().numpy() for tensor in self._tensors]
        groups = [(rho, [array]) for rho, array in zip(self._norms, arrays, strict=False)]
        for i, partner in zip(self._paired, arrays[len(self._norms) :], strict=True):
            groups[i][1].append(partner)
        return groups


class Projection:
    """Normalize-and-Project for one network; call `step` once after every optimiser step.

    Weights (every `every` updates): W_l <- W_l * rho_l / ||W_l||_F, rho_l = ||W_l(0)||_F at construction or at the last
    `remember_norms_`. A weight mu that has a partner sigma is rescaled with it: (mu, sigma) <- (mu, sigma) rho /
    sqrt(||mu||^2 + ||sigma||^2), rho their joint norm then.
    Gains g and offsets b of normalisation layers, by policy:

        joint        (g, b) <- (g, b) sqrt(d) / sqrt(||g||^2 + ||b||^2)  with each projection, where there are gains
        regularise   g <- g - lr s (g - 1),  b <- b - lr s b             every update
        decay        g <- g - lr s g   (scale decay, gains only)         every update
        free         untouched

    where s = gain_strength (arXiv:2407.01800; scale decay: arXiv:2507.20057, Sec. 4). Weights are chosen by
    `scalable_weights`; the optimiser and its moments are never touched. A zero weight is an error at construction; one
    that becomes zero or not finite later becomes NaN at the next projection, without waiting for the device.

    Args:
        every: k, projection at updates k, 2k, ...
        gains: policy above. joint presumes positively homogeneous activations.
        gain_strength: s > 0 for regularise and decay, 0 otherwise.
        heads: module names left out, see `scalable_weights`.
        embeddings: also project nn.Embedding tables.
        check_inputs: a batch, a tensor or a `Call`, for `check_scale_invariance`; kept (not copied) for
            `remember_norms_`; not used with allow_scale_dependent. Without both, `check` must come before the first
            `step` (`elr.attach` calls it with the first batch).
        allow_scale_dependent: project although the output may depend on the scale of the weights.

    Raises:
        ValueError: bad arguments or arguments without effect, a weight that is not float32 or float64 or has no
            positive finite norm, a layer that is not scale-invariant, or regularise or decay without any gains.

    Deviation: the paper normalises gains jointly or regularises them and does not say where it does which; here the
        caller chooses.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        every: int = 1,
        gains: GainPolicy = "joint",
        gain_strength: float = 0.0,
        heads: Sequence[str] | None = None,
        embeddings: bool = False,
        check_inputs: Tensor | Call | None = None,
        allow_scale_dependent: bool = False,
    ) -> None:
        _check_policy(every, gains, gain_strength)
        self.weights: dict[str, nn.Parameter] = scalable_weights(network, embeddings=embeddings, heads=heads)
        self._partners = partners(network, self.weights)
        held = {f"{name}'s partner": partner for name, partner in self._partners.items() if partner is not None}
        _check_dtypes({**self.weights, **held})
        self.every = every
        self.gains: GainPolicy = gains
        self.gain_strength = gain_strength
        pairs = list(gains_and_offsets(network).values())
        self._gains: list[Tensor] = [gain for gain, _ in pairs]
        self._offsets: list[Tensor | None] = [offset for _, offset in pairs]
        if gain_strength > 0.0 and not pairs:
            raise ValueError(f'gains="{gains}" has nothing to pull: the network has no normalisation layer with a gain')
        self._network = network
        self._check_inputs = None if allow_scale_dependent else check_inputs
        self.unchecked = check_inputs is None and not allow_scale_dependent
        self.remember_norms_()

    def check(self, inputs: Tensor | Call) -> None:
        """Run `check_scale_invariance` on a batch, and keep it (not copied) for `remember_norms_`.

        Raises:
            ValueError: a layer is not scale-invariant; the projection is then as before.
        """
        check_scale_invariance(self._network, inputs, self.weights)
        self._check_inputs = inputs
        self.unchecked = False

    def remember_norms_(self) -> None:
        """From now on hold the norms that the weights have now, as a new Projection of this network would.

        Checks what construction checks, scale invariance included, and starts the update count at 0.

        Raises:
            ValueError: a weight has no positive finite norm, or a layer is not scale-invariant. The norms held so far
                and the update count are then kept.
        """
        norms = {name: _norm(weight, self._partners[name]) for name, weight in self.weights.items()}
        _check_norms(norms)
        if self._check_inputs is not None:
            check_scale_invariance(self._network, self._check_inputs, self.weights)
        self._hold(norms, updates=0)

    def _hold(self, norms: dict[str, float], updates: int) -> None:
        self.norms = norms
        self._updates = updates
        tensors: list[Tensor] = list(self.weights.values())
        others: list[Tensor | None] = list(self._partners.values())
        radii = list(norms.values())
        if self.gains == "joint":
            tensors, others, radii = tensors + self._gains, others + self._offsets, radii + gain_radii(self._gains)
        self._rescaling = Rescaling(tensors, others, radii)

    def step(self, lr: float | Tensor) -> None:
        """Count one optimiser update and apply the gain policy and, when due, the projection.

        Args:
            lr: the rate of the update just taken, for the decoupled pulls; a tensor (0-d) is not read on the host.

        Raises:
            ValueError: lr is a number and lr * gain_strength is not in [0, 1].
        """
        self._require_checked()
        self._updates += 1
        if self.gain_strength > 0.0:
            self._pull_gains(lr)
        if self._updates % self.every == 0:
            self.project_()

    def project_(self) -> None:
        """Project the weights now, and with policy joint the gains and offsets: after an intervention changed them."""
        self._require_checked()
        self._rescaling.apply_()

    def _require_checked(self) -> None:
        if self.unchecked:
            raise RuntimeError(
                "the scale invariance that projection presumes has not been checked: give Projection check_inputs, or "
                "use elr.attach, which checks on the first batch, or pass allow_scale_dependent=True"
            )

    @torch.no_grad()
    def _pull_gains(self, lr: float | Tensor) -> None:
        pull: Any = lr * self.gain_strength  # the foreach functions take a number or a 0-d tensor
        if not isinstance(pull, Tensor) and not 0.0 <= pull <= 1.0:
            raise ValueError(
                f"lr * gain_strength = {lr} * {self.gain_strength} = {pull} is not in [0, 1] and would overshoot: "
                "lower one of them"
            )
        if self.gains == "decay":
            torch._foreach_mul_(self._gains, 1.0 - pull)
            return
        # By way of g - 1, so a gain of exactly 1 stays 1 in float32.
        excess = torch._foreach_sub(self._gains, 1.0)
        torch._foreach_mul_(excess, pull)
        torch._foreach_sub_(self._gains, excess)
        if offsets := [offset for offset in self._offsets if offset is not None]:
            torch._foreach_mul_(offsets, 1.0 - pull)

    def state_dict(self) -> dict[str, Any]:
        """Recorded norms by layer name, with a partner the joint one, and the update count."""
        return {"norms": dict(self.norms), "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore norms and update count.

        Raises:
            ValueError: the layers differ from this network's, a norm is not positive, or the count is negative.
        """
        norms, updates = state["norms"], state["updates"]
        if set(norms) != set(self.weights):
            raise ValueError(
                f"saved norms are for layers {sorted(norms)}, this projection holds {sorted(self.weights)}: build it "
                "with the same network, heads and embeddings"
            )
        _check_norms(norms)
        if updates < 0:
            raise ValueError(f"saved update count {updates} is negative: load a state that state_dict returned")
        self._hold({name: float(norms[name]) for name in self.weights}, int(updates))


class NoProjection:
    """The projection of a run without one: nothing happens, and there is no state."""

    def step(self, lr: float | Tensor) -> None:
        """Do nothing."""

    def project_(self) -> None:
        """Do nothing."""

    def remember_norms_(self) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept the empty state only (ValueError)."""
        check_keys("NoProjection", state, ())


def _norm(weight: Tensor, partner: Tensor | None) -> float:
    tensors = [weight] if partner is None else [weight, partner]
    return math.hypot(*(float(torch.linalg.vector_norm(t.detach(), dtype=torch.float64)) for t in tensors))


def _check_norms(norms: Mapping[str, float]) -> None:
    bad = {name: norm for name, norm in norms.items() if not 0.0 < norm < math.inf}
    if bad:
        raise ValueError(
            f"weights with norms {bad} cannot be projected: initialise these layers with finite non-zero weights, or "
            "name them as heads"
        )


def _check_dtypes(weights: Mapping[str, Tensor]) -> None:
    bad = {name: weight.dtype for name, weight in weights.items() if weight.dtype not in (torch.float32, torch.float64)}
    if bad:
        raise ValueError(f"weights of type {bad} are too coarse to hold a norm: use float32 parameters and autocast")


def _check_policy(every: int, gains: str, strength: float) -> None:
    if every < 1:
        raise ValueError(f"every must be at least 1, got every={every}; without projection use NoProjection")
    if gains not in get_args(GainPolicy):
        raise ValueError(f"gains={gains!r} is unknown: choose one of {get_args(GainPolicy)}")
    pulls = gains in ("regularise", "decay")
    if pulls and not 0.0 < strength < math.inf:
        raise ValueError(f'gains="{gains}" with gain_strength={strength} pulls nothing: give a positive strength')
    if not pulls and strength != 0.0:
        raise ValueError(
            f'gains="{gains}" does not use gain_strength={strength}: leave it at 0, or choose "regularise" or "decay"'
        )
