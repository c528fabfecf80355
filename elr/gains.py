"""What happens to the gains and offsets of normalisation layers: held at a norm, pulled to 1 and 0, or nothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from elr.rescaling import positive_and_finite, require_full_precision

GainPolicy = Literal["joint", "regularise", "decay", "free"]


class Gains:
    """Gains g and offsets b of one network, under the policy of a `Projection`, which has the formulas.

    Frozen gains and offsets are left alone: a frozen offset is no part of the joint norm, and the offset of a frozen
    gain is not rescaled. A tensor that layers share is taken once.

    Args:
        pairs: layer name to (g, b), as `weights.choose` returns them.
        policy: what to do.
        strength: s, for regularise and decay.

    Raises:
        ValueError: the policy has nothing to pull; a gain is not float32 or float64, or not finite; with policy joint,
            layers share a gain but not the offset, or the reverse.

    Attributes:
        norms: rho = sqrt(||g||^2 + ||b||^2) at construction, or as loaded, by layer name. It is 0 for a layer
            without anything to hold. Empty unless the policy is joint.
    """

    def __init__(
        self,
        pairs: Mapping[str, tuple[nn.Parameter, nn.Parameter | None]],
        policy: GainPolicy,
        strength: float,
    ) -> None:
        self._strength = strength
        self._regularise = policy == "regularise"
        trained = {name: (g, b if b is not None and b.requires_grad else None) for name, (g, b) in pairs.items()}
        self.pulled = _distinct([g for g, _ in trained.values() if g.requires_grad])
        self.pulled_offsets = _distinct([b for _, b in trained.values() if b is not None])
        if policy in ("regularise", "decay") and not (self.pulled or (self._regularise and self.pulled_offsets)):
            raise ValueError(
                f'gains="{policy}" has nothing to pull: the network has no normalisation layer with a trainable gain'
            )
        self.norms: dict[str, float] = {}
        self._joint: dict[str, tuple[Tensor, Tensor | None]] = {}
        if policy == "joint":
            self._joint = _shared_once({name: pair for name, pair in trained.items() if pair[0].requires_grad})
            self.remember_norms_()
        if policy != "free":
            tensors = [(name, tensor) for name, pair in trained.items() for tensor in pair if tensor is not None]
            require_full_precision("gains", [(name, tensor) for name, tensor in tensors if tensor.requires_grad])

    def remember_norms_(self) -> None:
        """Hold the norms that gains and offsets have now.

        Raises:
            ValueError: one is not finite.
        """
        norms = {name: _joint_norm(*pair) for name, pair in self._joint.items()}
        _check_norms(norms)
        self.norms = norms

    def with_norms(self) -> tuple[list[Tensor], list[Tensor | None], list[float]]:
        """Gains, offsets, and their joint norms, for the layers that have a norm to hold."""
        names = [name for name, norm in self.norms.items() if norm > 0.0]
        return [self._joint[n][0] for n in names], [self._joint[n][1] for n in names], [self.norms[n] for n in names]

    def norms_now(self) -> list[tuple[float, float]]:
        """The joint norm now and the one to hold, for the layers that have one."""
        return [(_joint_norm(*self._joint[name]), norm) for name, norm in self.norms.items() if norm > 0.0]

    def load_norms(self, norms: Mapping[str, float]) -> None:
        """Hold these norms from now on.

        Raises:
            ValueError: they are of other layers, or one is negative or not finite.
        """
        if set(norms) != set(self.norms):
            raise ValueError(
                f"saved gain norms are for layers {sorted(norms)}, this projection has {sorted(self.norms)}: build it "
                "with the same network and arguments"
            )
        if bad := {name: norm for name, norm in norms.items() if not 0.0 <= norm < math.inf}:
            raise ValueError(f"saved gain norms {bad} cannot be held: load a state that state_dict returned")
        self.norms = {name: float(norms[name]) for name in self.norms}

    @torch.no_grad()
    def pull_(self, lr: float | Tensor) -> None:
        """Apply regularise or decay at rate lr; see `Projection.step`."""
        pull = lr * self._strength
        if not isinstance(pull, Tensor) and not 0.0 <= pull <= 1.0:
            raise ValueError(
                f"lr * gain_strength = {lr} * {self._strength} = {pull} is not in [0, 1] and would overshoot: "
                "lower one of them"
            )
        if not self._regularise:
            torch._foreach_mul_(self.pulled, 1.0 - pull)
            return
        if self.pulled:
            # By way of g - 1, so a gain of exactly 1 stays 1 in float32.
            excess = torch._foreach_sub(self.pulled, 1.0)
            torch._foreach_mul_(excess, pull)
            torch._foreach_sub_(self.pulled, excess)
        if self.pulled_offsets:
            torch._foreach_mul_(self.pulled_offsets, 1.0 - pull)


def check_policy(gains: str, strength: float) -> None:
    """Refuse an unknown policy, or a strength that it does not use or lacks (ValueError)."""
    if gains not in get_args(GainPolicy):
        raise ValueError(f"gains={gains!r} is unknown: choose one of {get_args(GainPolicy)}")
    pulls = gains in ("regularise", "decay")
    if pulls and not positive_and_finite(strength):
        raise ValueError(f'gains="{gains}" with gain_strength={strength} pulls nothing: give a positive strength')
    if not pulls and strength != 0.0:
        raise ValueError(
            f'gains="{gains}" does not use gain_strength={strength}: leave it at 0, or choose "regularise" or "decay"'
        )


def _distinct(tensors: list[nn.Parameter]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _shared_once(
    pairs: Mapping[str, tuple[nn.Parameter, nn.Parameter | None]],
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """The pairs without repetitions."""
    once: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, (gain, offset) in pairs.items():
        sharing = [n for n, (g, b) in once.items() if g is gain or (b is not None and b is offset)]
        if not sharing:
            once[name] = gain, offset
            continue
        other_gain, other_offset = once[sharing[0]]
        if gain is other_gain and offset is other_offset:
            continue
        shared, apart = ("gain", "offset") if gain is other_gain else ("offset", "gain")
        raise ValueError(
            f"{name!r} shares its {shared} with {sharing[0]!r}, but not its {apart}, so no single scale fits both: "
            "share both, untie them, or name one in leave=[...]"
        )
    return once


def _joint_norm(gain: Tensor, offset: Tensor | None) -> float:
    """sqrt(||g||^2 + ||b||^2), for d gains at 1 and offsets at 0 exactly sqrt(d).

    The joint norm of weights in `projection` sums in another order and may differ in the last bit.
    """
    tensors = [gain] if offset is None else [gain, offset]
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def _check_norms(norms: Mapping[str, float]) -> None:
    if bad := {name: norm for name, norm in norms.items() if not norm < math.inf}:
        raise ValueError(f"gains with norms {bad} cannot be held: initialise these layers with finite numbers")
    if zero := [name for name, norm in norms.items() if norm == 0.0]:
        warnings.warn(
            f"the gains of {zero} are zero and have no norm to hold, so they are left alone; leave={zero} says so "
            "without this warning",
            stacklevel=5,
        )
