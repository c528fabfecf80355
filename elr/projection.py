"""Normalize-and-Project (NaP): hold the norm of each chosen weight at its initial value.

The schedule alone then sets the effective learning rate.

The projection is W_l <- W_l * ||W_l(0)||_F / ||W_l||_F after the optimiser step: one scalar per weight tensor, a
convolution kernel as a whole, the output head left out, Adam's moments left alone (arXiv:2407.01800; arXiv:2507.20057,
Eq. 2). `elr.weights` chooses the tensors, `elr.scale_invariance` checks that the output ignores their scale.

`project_to_norms_` and `project_gains_` project once; `Projection` does so after every k-th update of the optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elr.gains import GainPolicy, Gains, check_policy
from elr.rescaling import Rescaling, positive_and_finite, require_full_precision, require_positive
from elr.scale_invariance import Call, check_scale_invariance
from elr.states import check_keys
from elr.weights import choose


def project_to_norms_(weights: Iterable[Tensor], norms: Iterable[float]) -> None:
    """Rescale each weight in place to its recorded Frobenius norm.

    W_l <- W_l * rho_l / ||W_l||_F,  rho_l = ||W_l(0)||_F   (arXiv:2507.20057, Eq. 2)

    Does not wait for a device. A weight that is zero or not finite cannot be projected: all its entries become NaN, and
    the caller should stop. The norm is computed in the precision of the weight. In float32 on a CPU it is off by about
    2e-7 for entries of random sizes and by up to 1e-4 where all are equal, at any number of entries; by the same at
    each call with the same number of threads.

    Args:
        weights: any shape; a conv kernel [out, in, kh, kw] is one vector.
        norms: rho_l > 0, host numbers, same order and length.

    Raises:
        ValueError: lengths differ, or a norm is not a positive finite number.

    Deviation: none.
    """
    weights, norms = list(weights), list(norms)  # generators can be read once
    if len(weights) != len(norms):
        raise ValueError(f"got {len(weights)} weights and {len(norms)} norms: give one norm per weight")
    require_positive(norms)
    Rescaling(weights, [None] * len(weights), norms).apply_()


def project_gains_(gains: Iterable[Tensor], offsets: Iterable[Tensor | None]) -> None:
    """Rescale the gain and offset of each normalisation layer jointly, in place; does not wait for a device.

    (g, b) <- (g, b) * sqrt(d) / sqrt(||g||^2 + ||b||^2),  d = number of gains   (arXiv:2407.01800)

    The radius is that of g = 1, b = 0. The output stays the same only where a positively homogeneous activation (ReLU)
    and another normalisation follow. Without an offset the gain alone is rescaled.

    Args:
        gains: g per layer, any shape.
        offsets: b per layer, or None; same order and length.

    Raises:
        ValueError: lengths differ.

    Deviation: none.
    """
    gains, offsets = list(gains), list(offsets)
    if len(gains) != len(offsets):
        raise ValueError(f"got {len(gains)} gains and {len(offsets)} offsets: give an offset or None for each gain")
    Rescaling(gains, offsets, gain_radii(gains)).apply_()


def gain_radii(gains: Sequence[Tensor]) -> list[float]:
    """sqrt(d) for each gain: the norm of d gains at 1 and offsets at 0."""
    return [math.sqrt(gain.numel()) for gain in gains]


class Projection:
    """Normalize-and-Project for one network; call `step` once after every optimiser step.

    Weights (every k updates): W_l <- W_l * rho_l / ||W_l||_F, rho_l = ||W_l(0)||_F at construction or at the last
    `remember_norms_`. A weight mu that has a partner sigma is rescaled with it: (mu, sigma) <- (mu, sigma) rho /
    sqrt(||mu||^2 + ||sigma||^2), rho their joint norm at the same time.
    Gains g and offsets b of normalisation layers, by policy:

        joint        (g, b) <- (g, b) rho / sqrt(||g||^2 + ||b||^2)      every k updates, with the weights
        regularise   g <- g - lr s (g - 1),  b <- b - lr s b             every update
        decay        g <- g - lr s g   (scale decay, gains only)         every update
        free         untouched

    where s = gain_strength (arXiv:2407.01800; scale decay: arXiv:2507.20057, Sec. 4) and rho = sqrt(||g(0)||^2 +
    ||b(0)||^2) at construction: sqrt(d) for d gains at 1 and offsets at 0, or whatever a pre-trained network has. Gains
    of one layer that are all 0, with their offsets, have no norm; they are left alone, with a warning.

    Weights are chosen by `scalable_weights`; what is frozen is left alone; the optimiser and its moments are never
    touched. A zero weight is an error at construction; one that becomes zero or not finite later becomes NaN at the
    next projection, without waiting for the device.

    Args:
        network: compiled or in DataParallel too; names are without what these add.
        every: k, projection at updates k, 2k, ...
        gains: policy above. joint leaves the output unchanged only where a positively homogeneous activation (ReLU) and
            another normalisation follow. This is not checked. It is not so for the last normalisation before a head, or
            with tanh or GELU.
        gain_strength: s > 0 for regularise and decay, 0 otherwise.
        heads, embeddings, more_weights, leave: see `scalable_weights`. Gains and offsets that lie beneath a head or in
            leave are left alone as well.
        more_gains: gains of hand-written normalisation layers, or pairs of a gain and an offset, by parameter name.
        check_inputs: a batch, a tensor or a `Call`, for `check_scale_invariance`; kept (not copied) for
            `remember_norms_`; not used with allow_scale_dependent. If neither check_inputs nor allow_scale_dependent is
            given, `check` must come before the first `step` (`elr.attach` calls it with the first batch).
        allow_scale_dependent: project although the output may depend on the scale of the weights.

    Attributes:
        weights: what is held, by name; norms: rho_l by the same names.
        unchecked: whether `check` must come before `step`.

    Raises:
        ValueError: bad arguments or arguments without effect, what `scalable_weights` refuses, a parameter that is not
            float32 or float64, a weight without a positive finite norm, a layer that is not scale-invariant, a vector
            that may be a gain and is not named (unless gains are free), or regularise or decay without any gains.

    Deviation: the paper normalises gains jointly or regularises them and does not say where it does which; here the
        caller chooses. Its rho for gains is sqrt(d); here it is the initial norm, which is the same for new layers.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        every: int = 1,
        gains: GainPolicy = "joint",
        gain_strength: float = 0.0,
        heads: Iterable[str] | None = None,
        embeddings: bool = False,
        more_weights: Iterable[str | tuple[str, str]] = (),
        more_gains: Iterable[str | tuple[str, str]] = (),
        leave: Iterable[str] = (),
        check_inputs: Tensor | Call | None = None,
        allow_scale_dependent: bool = False,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got every={every}; without projection use NoProjection")
        check_policy(gains, gain_strength)
        chosen = choose(
            network, embeddings=embeddings, heads=heads, more_weights=more_weights, more_gains=more_gains, leave=leave
        )
        if chosen.vectors and gains != "free":
            raise ValueError(
                f"elr does not know whether {chosen.vectors} are gains of normalisation layers. Name those that are in "
                "more_gains=[...], alone or as a pair (gain, offset), and the others in leave=[...]; or give "
                'gains="free"'
            )
        self.weights: dict[str, nn.Parameter] = chosen.weights
        self._partners = chosen.partners
        named_partners = [(f"{name}'s partner", p) for name, p in self._partners.items() if p is not None]
        require_full_precision("weights", [*self.weights.items(), *named_partners])
        self.every = every
        self.gains: GainPolicy = gains
        self.gain_strength = gain_strength
        self._gains = Gains(chosen.gains, gains, gain_strength)
        self._more_gains = chosen.more_gains
        self._guessed = chosen.guessed
        self._network = network
        self._check_inputs = None if allow_scale_dependent else check_inputs
        self.unchecked = check_inputs is None and not allow_scale_dependent
        self.remember_norms_()

    def check(self, inputs: Tensor | Call) -> None:
        """Run `check_scale_invariance` on a batch, and keep it (not copied) for `remember_norms_`.

        Raises:
            ValueError: a layer is not scale-invariant; the projection is then as before.
        """
        scaled_together = {
            name: (self.weights[name],) if partner is None else (self.weights[name], partner)
            for name, partner in self._partners.items()
        }
        try:
            check_scale_invariance(self._network, inputs, scaled_together, more_gains=self._more_gains)
        except ValueError as error:
            if not self._guessed:
                raise
            guess = (
                f"(No heads were named, so {self._guessed[0]!r} was taken for the output layer; name all if several.)"
            )
            raise ValueError(f"{error} {guess}") from None
        self._check_inputs = inputs
        self.unchecked = False

    def held(self) -> list[Tensor]:
        """Every parameter that is rescaled: weights and their partners, and with joint the gains and offsets."""
        return list(self._rescaling.tensors)

    def changed(self, tolerance: float = 1e-5) -> list[str]:
        """Names of the weights and normalisation layers whose norm is not the one that is held.

        Args:
            tolerance: largest relative difference that does not count.
        """
        norms = {name: _norm(weight, self._partners[name]) for name, weight in self.weights.items()}
        pairs = [*((norms[name], norm) for name, norm in self.norms.items()), *self._gains.norms_now()]
        names = [*self.norms, *(name for name, norm in self._gains.norms.items() if norm > 0.0)]
        return [name for name, (now, held) in zip(names, pairs, strict=True) if not abs(now - held) <= tolerance * held]

    def remember_norms_(self, *, gains: bool = False) -> None:
        """From now on hold the norms that the weights have now, as a new Projection of this network would.

        Checks what construction checks, scale invariance included, and starts the update count at 0. The norms of gains
        and offsets stay those at construction: between two projections they have drifted, and what belongs to a new
        network is their initial norm.

        Args:
            gains: hold the present norms of gains and offsets as well, as for a network that was loaded.
        Raises:
            ValueError: a weight has no positive finite norm, or a layer is not scale-invariant. The norms held so far
                and the update count are then kept.
        """
        norms = {name: _norm(weight, self._partners[name]) for name, weight in self.weights.items()}
        _check_norms(norms)
        if self._check_inputs is not None:
            self.check(self._check_inputs)
        if gains:
            self._gains.remember_norms_()
        self._set_norms(norms, updates=0)

    def _set_norms(self, norms: dict[str, float], updates: int) -> None:
        self.norms = norms
        self._updates = updates
        gains, offsets, radii = self._gains.with_norms()
        tensors, others = [*self.weights.values(), *gains], [*self._partners.values(), *offsets]
        self._rescaling = Rescaling(tensors, others, [*norms.values(), *radii])

    def step(self, lr: float | Tensor) -> None:
        """Count one optimiser update and apply the gain policy and, when due, the projection.

        Args:
            lr: the rate of the update just taken, for regularise and decay: the rate of the fastest group. A 0-d
                tensor is not read on the host.

        Raises:
            ValueError: lr is a number and lr * gain_strength is not in [0, 1].
            RuntimeError: scale invariance has not been checked.
        """
        self._require_checked()
        self._updates += 1
        if self.gain_strength > 0.0:
            self._gains.pull_(lr)
        if self._updates % self.every == 0:
            self._rescaling.apply_()

    def project_(self) -> None:
        """Project the weights now, and with policy joint the gains and offsets: after an intervention changed them.

        Raises:
            RuntimeError: scale invariance has not been checked.
        """
        self._require_checked()
        self._rescaling.apply_()

    def _require_checked(self) -> None:
        if self.unchecked:
            raise RuntimeError(
                "the scale invariance that projection presumes has not been checked: give Projection check_inputs, or "
                "use elr.attach, which checks on the first batch, or pass allow_scale_dependent=True"
            )

    def state_dict(self) -> dict[str, Any]:
        """Norms by layer name, with a partner or offset the joint one, and the update count.

        In `gain_norms` a 0 stands for gains that are left alone; it is empty unless the policy is joint.
        """
        return {"norms": dict(self.norms), "gain_norms": dict(self._gains.norms), "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore norms and update count.

        Raises:
            ValueError: the layers differ from this network's, a norm is not positive, or the count is negative.
        """
        check_keys("Projection", state, ("norms", "gain_norms", "updates"))
        norms, updates = state["norms"], state["updates"]
        if set(norms) != set(self.weights):
            raise ValueError(
                f"saved norms are for layers {sorted(norms)}, this projection holds {sorted(self.weights)}: build it "
                "with the same network, heads and embeddings"
            )
        _check_norms(norms)
        if updates < 0:
            raise ValueError(f"saved update count {updates} is negative: load a state that state_dict returned")
        self._gains.load_norms(state["gain_norms"])
        self._set_norms({name: float(norms[name]) for name in self.weights}, int(updates))


class NoProjection:
    """The projection of a run without one: nothing happens, and there is no state."""

    unchecked = False

    def check(self, inputs: Tensor | Call) -> None:
        """Do nothing."""

    def step(self, lr: float | Tensor) -> None:
        """Do nothing."""

    def project_(self) -> None:
        """Do nothing."""

    def remember_norms_(self, *, gains: bool = False) -> None:
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
    bad = {name: norm for name, norm in norms.items() if not positive_and_finite(norm)}
    if bad:
        raise ValueError(
            f"weights with norms {bad} cannot be projected: initialise these layers with finite non-zero weights, or "
            "name them as heads"
        )
