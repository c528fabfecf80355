"""Normalize-and-Project (NaP): hold every weight norm at its initial value, so that the schedule alone sets the ELR.

The projection is W_l <- W_l * ||W_l(0)||_F / ||W_l||_F after the optimiser step: one scalar per weight tensor, a
convolution kernel as a whole, the output head left out, Adam's moments left alone (arXiv:2407.01800; arXiv:2507.20057,
Eq. 2). Weights, gains and offsets are chosen by module type, never by name. Two parameters of which the output ignores
only the joint scale, as means and deviations of noisy weights, take one scalar (see `partners`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_leaves

GainPolicy = Literal["joint", "regularise", "decay", "free"]

SCALABLE = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
NORMALISERS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _BatchNorm, _InstanceNorm)
# Their matrices are not in a `weight` of their own, so that a choice by type would silently leave them out.
OPAQUE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)


@torch.no_grad()
def project_to_norms_(weights: Sequence[Tensor], norms: Sequence[float]) -> None:
    """Rescale each weight in place to its recorded Frobenius norm.

    W_l <- W_l * rho_l / ||W_l||_F,  rho_l = ||W_l(0)||_F   (arXiv:2507.20057, Eq. 2)

    Waits for no device. A weight that is zero or not finite cannot be projected: all of it becomes NaN, for the caller
    to stop on. The norm is taken in the weight's own precision; float32 sums on a CPU are off by up to 3e-5 of the
    norm at 1.6M equal entries, the same at each call with the same number of threads.

    Args:
        weights: any shape; a conv kernel [out, in, kh, kw] is one vector.
        norms: rho_l > 0, host numbers, same order and length.

    Raises:
        ValueError: lengths differ, or a norm is not a positive finite number.

    Deviation: none.
    """
    if len(weights) != len(norms):
        raise ValueError(f"got {len(weights)} weights and {len(norms)} norms: give one norm per weight")
    _require_positive(norms)
    if not weights:
        return
    _rescale_(list(weights), [], list(norms))


@torch.no_grad()
def project_gains_(gains: Sequence[Tensor], offsets: Sequence[Tensor | None]) -> None:
    """Rescale the gain and offset of each normalisation layer jointly, in place; waits for no device.

    (g, b) <- (g, b) * sqrt(d) / sqrt(||g||^2 + ||b||^2),  d = number of gains   (arXiv:2407.01800)

    The radius is that of g = 1, b = 0. Harmless where a positively homogeneous activation (ReLU) and another
    normalisation follow. Without an offset the gain alone is rescaled.

    Args:
        gains: g per layer, any shape.
        offsets: b per layer, or None; same order and length.

    Raises:
        ValueError: lengths differ.
    """
    if len(gains) != len(offsets):
        raise ValueError(f"got {len(gains)} gains and {len(offsets)} offsets: give an offset or None for each gain")
    if not gains:
        return
    _rescale_(*_with_partners(gains, offsets), [math.sqrt(gain.numel()) for gain in gains])


def _with_partners(tensors: Sequence[Tensor], partners: Sequence[Tensor | None]) -> tuple[list[Tensor], list[int]]:
    """The tensors, then those partners that exist; and for each of these the index of its tensor."""
    paired = [i for i, partner in enumerate(partners) if partner is not None]
    return [*tensors, *(partner for partner in partners if partner is not None)], paired


def _rescale_(tensors: list[Tensor], paired: list[int], norms: list[float]) -> None:
    """(x_i, y_i) <- (x_i, y_i) rho_i / sqrt(||x_i||^2 + ||y_i||^2), y_i the partner of x_i or nothing.

    Args:
        tensors: all x_i, then the partners, as `_with_partners` returns them.
        paired: the index of each partner's tensor.
        norms: rho_i.
    """
    if _are_arrays(tensors):
        _rescale_arrays_(_groups_of_arrays(tensors, paired, norms))
        torch.autograd.graph.increment_version(tensors)
        return
    scales = _scales(list(torch._foreach_norm(tensors)), paired, norms)
    torch._foreach_mul_(tensors, scales + [scales[i] for i in paired])


def _are_arrays(tensors: list[Tensor]) -> bool:
    """Whether NumPy can take them, and sum their squares without overflow of a half precision."""
    return all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) for t in tensors)


def _groups_of_arrays(
    tensors: list[Tensor], paired: list[int], norms: list[float]
) -> list[tuple[float, list[NDArray[Any]]]]:
    """rho_i with the memory of x_i and, if it has one, of its partner."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    groups = [(rho, [array]) for rho, array in zip(norms, arrays, strict=False)]
    for i, partner in zip(paired, arrays[len(norms) :], strict=True):
        groups[i][1].append(partner)
    return groups


def _rescale_arrays_(groups: list[tuple[float, list[NDArray[Any]]]]) -> None:
    """`_rescale_` on a CPU, where reading a number waits for nothing and NumPy's calls cost less than torch's."""
    for rho, arrays in groups:
        squares = 0.0
        for array in arrays:
            squares += float(np.vdot(array, array))
        scale = rho / math.sqrt(squares) if 0.0 < squares < math.inf else math.nan
        for array in arrays:
            array *= scale


def _scales(measured: list[Tensor], paired: Sequence[int], norms: Sequence[float]) -> list[Tensor]:
    """rho_i / sqrt(m_i^2 + m_j^2), j the partner of i; `measured` holds the norms of all i, then of the partners."""
    measured = [norm if norm.dtype == torch.float64 else norm.float() for norm in measured]  # a half's square overflows
    squares = list(torch._foreach_mul(measured, measured))
    if paired:
        torch._foreach_add_([squares[i] for i in paired], squares[len(norms) :])
    scales = torch._foreach_reciprocal(torch._foreach_sqrt(squares[: len(norms)]))
    torch._foreach_mul_(scales, list(norms))
    return list(scales)


def scalable_weights(
    network: nn.Module, *, embeddings: bool = False, heads: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Choose the weight tensors to hold at fixed norm, by module type, keyed by module name.

    Chosen are nn.Linear, nn.Conv1d/2d/3d and nn.ConvTranspose1d/2d/3d with their subclasses, and nn.Embedding if asked
    for. Parameters that a module of another type owns are not weights in this sense. A tensor that several modules
    share is returned once, under the first name. What a weight is scaled together with is `partners`' business.

    Args:
        network: its submodules are looked at, in registration order.
        embeddings: also take nn.Embedding tables.
        heads: names of the output layers to leave out; None means the last linear or convolutional module in
            registration order, an empty sequence means that there is none.

    Raises:
        ValueError: a head does not exist or is not of these types; a head shares its tensor with a chosen layer;
            nothing is left; a weight is lazy or computed from other parameters (weight or spectral normalisation); the
            network holds a module with matrices out of reach (attention, recurrent, bilinear).

    Deviation: the paper does not say how embeddings are treated; they are left out by default.
    """
    kinds = (*SCALABLE, nn.Embedding) if embeddings else SCALABLE
    left_out = _heads(network, heads)
    head_tensors = {id(module.weight): name for name, module in left_out.items()}
    chosen: dict[str, nn.Parameter] = {}
    for name, module in network.named_modules():
        if isinstance(module, OPAQUE):
            raise ValueError(
                f"{name!r} is a {type(module).__name__}, whose matrices cannot be chosen by module type: build it from "
                "nn.Linear modules"
            )
        if not isinstance(module, kinds) or any(module is head for head in left_out.values()):
            continue
        weight = _own_weight(name, module)
        if id(weight) in head_tensors:
            raise ValueError(
                f"{name!r} shares its weight with the head {head_tensors[id(weight)]!r}, which is not to be scaled: "
                "untie them, or leave both out by naming both as heads"
            )
        if all(weight is not other for other in chosen.values()):
            chosen[name] = weight
    if not chosen:
        raise ValueError(
            f"no weight to project in {type(network).__name__} outside the heads {sorted(left_out)}: it needs a linear "
            "or convolutional module that is not a head"
        )
    return chosen


def _heads(network: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    if isinstance(names, str):
        raise ValueError(f"heads={names!r} is one string; give a sequence of module names, such as [{names!r}]")
    if names is None:
        candidates = [(name, module) for name, module in network.named_modules() if isinstance(module, SCALABLE)]
        return dict(candidates[-1:])
    modules = dict(network.named_modules(remove_duplicate=False))
    kinds = (*SCALABLE, nn.Embedding)
    for name in names:
        if not isinstance(modules.get(name), kinds):
            known = [known for known, module in modules.items() if isinstance(module, kinds)]
            raise ValueError(f"head {name!r} is not a linear, convolutional or embedding module; there are {known}")
    return {name: modules[name] for name in names}


def _own_weight(name: str, module: nn.Module) -> nn.Parameter:
    weight = module._parameters.get("weight")
    if weight is None:
        raise ValueError(
            f"the weight of {name!r} is computed from other parameters (weight or spectral normalisation), so that "
            "scaling it in place has no effect: remove the parametrisation"
        )
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(f"the weight of {name!r} is not initialised: run one batch through the network first")
    return weight


def partners(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, nn.Parameter | None]:
    """The parameter that each weight is scaled together with, keyed as the weights; None for most of them.

    A module type declares it by a class attribute, the name of that parameter: `scaled_with_weight = "weight_sigma"`
    for noisy layers W = mu + sigma * eps, whose mu is `weight`. With a normalisation behind it the output ignores the
    scale of (mu, sigma), but neither that of mu nor that of sigma alone.

    Args:
        network: modules with the attribute are found by the identity of their `weight`.
        weights: as `scalable_weights` returns them.

    Raises:
        ValueError: modules that share their weight do not share its partner.
    """
    found: dict[int, nn.Parameter] = {}
    for name, module in network.named_modules():
        if declared := getattr(type(module), "scaled_with_weight", None):
            partner = getattr(module, declared)
            if found.setdefault(id(module.weight), partner) is not partner:
                raise ValueError(
                    f"{name!r} shares its weight with another module, but not its {declared!r}, so that no one scale "
                    "suits both: share both, or untie them"
                )
    return {name: found.get(id(weight)) for name, weight in weights.items()}


def gains_and_offsets(network: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter | None]]:
    """Gain and offset of every normalisation layer that has a gain, by module type, keyed by module name.

    Types: LayerNorm, GroupNorm, RMSNorm, BatchNorm and InstanceNorm of every rank. Layers built without affine
    parameters have no entry; the offset is None where there is none.
    """
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, NORMALISERS) and module.weight is not None:
            found[name] = (module.weight, getattr(module, "bias", None))
    return found


def check_scale_invariance(
    network: nn.Module,
    inputs: Tensor,
    weights: Mapping[str, Tensor],
    factors: Sequence[float] = (0.5, 2.0),
    tolerance: float = 0.01,
) -> None:
    """Refuse layers whose scale the output depends on.

    Each weight W is scaled by each factor a, and the change of the output f is compared with the change that another
    W of the same norm makes, W' = -W with every axis reversed:

        r_l = max_a ||f(aW) - f(W)|| / ||f(W') - f(W)||  <=  tolerance

    so that neither a small head nor a large output bias hides a dependence. A weight changes together with its partner
    (`partners`). A LayerNorm with eps in front of which the pre-activations have variance s^2 changes by about
    |1 - 1/a^2| eps / (2 s^2): with eps = 1e-5, a = 0.5 the default tolerance allows s^2 down to 1.5e-3. A bias between
    the layer and the normalisation breaks the invariance, but cannot be seen here while it is zero: leave such biases
    out.

    Everything is put back, also after an exception: weights and buffers bit for bit, train or eval mode of each module,
    random state. The forward passes run in eval mode (dropout off), batch and instance normalisation on the
    statistics of the batch as in training. No gradient is built.

    Args:
        network: called as network(inputs); the output is a tensor or a nest of tensors.
        inputs: one batch as the network takes it, [B, ...]; several varied rows.
        weights: name to tensor, as `scalable_weights` returns it.
        factors: positive, none of them 1.
        tolerance: largest r_l accepted, in (0, 1).

    Raises:
        ValueError: bad arguments; an output that is not finite; a layer that is not invariant, or on which the output
            does not depend at all for these inputs, so that nothing can be said (all of them are named).
    """
    _require_positive(factors)
    if not weights or not factors or 1.0 in factors or not 0.0 < tolerance < 1.0:
        raise ValueError(
            f"weights {list(weights)}, factors {tuple(factors)}, tolerance {tolerance}: give at least one weight, "
            "factors other than 1, and a tolerance between 0 and 1"
        )
    with torch.no_grad(), _undisturbed(network):
        forward = _repeatable(network, inputs)
        reference = forward()
        if not reference.isfinite().all():
            raise ValueError("the output is not finite on the check inputs: give finite inputs and weights")
        ratios = {}
        for name, partner in partners(network, weights).items():
            tensors = [weights[name]] if partner is None else [weights[name], partner]
            ratios[name] = _scale_dependence(forward, reference, tensors, factors)
    _refuse_dependent(ratios, tolerance)


def _scale_dependence(
    forward: Callable[[], Tensor], reference: Tensor, tensors: list[Tensor], factors: Sequence[float]
) -> float:
    """Return r_l of `check_scale_invariance`, or infinity if the output does not depend on the weight."""
    originals = [tensor.detach().clone() for tensor in tensors]  # the weight and, if it has one, its partner

    def put(replacements: list[Tensor]) -> None:
        for tensor, replacement in zip(tensors, replacements, strict=True):
            tensor.copy_(replacement)

    def change(replacements: list[Tensor]) -> float:
        put(replacements)
        return float((forward() - reference).norm())

    try:
        influence = change([-original.flip(tuple(range(original.ndim))) for original in originals])
        scaled = max(change([original * factor for original in originals]) for factor in factors)
    finally:
        put(originals)
    seen = influence > 1e-6 * float(reference.norm())  # below: float32 noise of the forward pass
    return scaled / influence if seen else math.inf


def _refuse_dependent(ratios: Mapping[str, float], tolerance: float) -> None:
    unseen = [name for name, ratio in ratios.items() if ratio == math.inf]
    if unseen:
        raise ValueError(
            f"the output does not depend on {unseen} for the check inputs, so that scale invariance cannot be judged: "
            "give varied non-zero inputs and a non-zero head, or pass allow_scale_dependent=True"
        )
    dependent = {name: ratio for name, ratio in ratios.items() if not ratio <= tolerance}
    if dependent:
        measured = ", ".join(f"{name!r} ({ratio:.3g})" for name, ratio in dependent.items())
        raise ValueError(
            f"the output depends on the scale of {measured}: relative change above the tolerance {tolerance}, so that "
            "projection would alter the function. Put a normalisation layer, with no bias before it, between the layer "
            "and its nonlinearity; or name it as a head; or pass allow_scale_dependent=True if that is meant"
        )


def _repeatable(network: nn.Module, inputs: Tensor) -> Callable[[], Tensor]:
    """Return a forward pass to one float64 vector that draws the same random numbers at every call."""
    devices = {tensor.device.index for tensor in (inputs, *network.parameters()) if tensor.device.type == "cuda"}

    def forward() -> Tensor:
        with torch.random.fork_rng(devices=list(devices)):
            leaves = [leaf for leaf in tree_leaves(network(inputs)) if isinstance(leaf, Tensor)]
        return torch.cat([leaf.double().flatten() for leaf in leaves])

    return forward


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Eval mode with batch statistics inside; modes and buffers as before outside."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    for module, _ in modes:
        module.training = isinstance(module, _BatchNorm | _InstanceNorm)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer, copy in buffers:
            buffer.copy_(copy)


class Projection:
    """Normalize-and-Project for one network; call `step` once after every optimiser step.

    Weights (every `every` updates): W_l <- W_l * rho_l / ||W_l||_F, rho_l = ||W_l(0)||_F at construction. A weight mu
    that has a partner sigma is rescaled with it: (mu, sigma) <- (mu, sigma) rho / sqrt(||mu||^2 + ||sigma||^2), rho the
    joint norm at construction.
    Gains g and offsets b of normalisation layers, by policy:

        joint        (g, b) <- (g, b) sqrt(d) / sqrt(||g||^2 + ||b||^2)  with each projection; void without gains
        regularise   g <- g - lr s (g - 1),  b <- b - lr s b             every update
        decay        g <- g - lr s g   (scale decay, gains only)         every update
        free         untouched

    where s = gain_strength (arXiv:2407.01800; scale decay: arXiv:2507.20057, Sec. 4). Weights are chosen by
    `scalable_weights`; the optimiser and its moments are never touched. A zero weight is refused at construction; one
    that becomes zero or not finite later turns to NaN at the next projection, without waiting for the device.

    Args:
        every: k, projection at updates k, 2k, ...
        gains: policy above. joint presumes positively homogeneous activations.
        gain_strength: s > 0 for regularise and decay, 0 otherwise.
        heads: module names left out, see `scalable_weights`.
        embeddings: also project nn.Embedding tables.
        check_inputs: a batch for `check_scale_invariance`; not used with allow_scale_dependent.
        allow_scale_dependent: project although the output may depend on the scale of the weights.

    Raises:
        ValueError: bad or inert arguments, a weight that is not float32 or float64 or has no positive finite norm, a
            layer that is not scale-invariant, or gains to pull where the network has none.

    Deviation: the paper normalises gains jointly or regularises them without saying which where; here it is a choice.
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
        check_inputs: Tensor | None = None,
        allow_scale_dependent: bool = False,
    ) -> None:
        _check_policy(every, gains, gain_strength)
        if check_inputs is None and not allow_scale_dependent:
            raise ValueError(
                "projection presumes scale invariance, which needs check_inputs to be verified: give a batch, or pass "
                "allow_scale_dependent=True"
            )
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
        self.norms = {name: _norm(weight, self._partners[name]) for name, weight in self.weights.items()}
        _check_norms(self.norms)
        if check_inputs is not None and not allow_scale_dependent:
            check_scale_invariance(network, check_inputs, self.weights)
        self._updates = 0
        self._cache_lists()

    def _cache_lists(self) -> None:
        """What a projection rescales, and to which norms."""
        weights: list[Tensor] = list(self.weights.values())
        others: list[Tensor | None] = list(self._partners.values())
        self._radii = [self.norms[name] for name in self.weights]
        if self.gains == "joint":
            weights, others = weights + self._gains, others + self._offsets
            self._radii += [math.sqrt(gain.numel()) for gain in self._gains]
        self._tensors, self._paired = _with_partners(weights, others)
        self._groups: list[tuple[float, list[NDArray[Any]]]] | None = None
        self._addresses: list[int] = []

    @property
    def updates(self) -> int:
        """Number of optimiser updates seen."""
        return self._updates

    def step(self, lr: float | Tensor) -> None:
        """Count one optimiser update and apply the gain policy and, when due, the projection.

        Args:
            lr: the rate of the update just taken, for the decoupled pulls; a tensor (0-d) is not read on the host.

        Raises:
            ValueError: lr is a number and lr * gain_strength is not in [0, 1].
        """
        self._updates += 1
        if self.gain_strength > 0.0:
            self._pull_gains(lr)
        if self._updates % self.every == 0:
            self.project_()

    def project_(self) -> None:
        """Project weights, and gains and offsets by their policy, now: after weights were changed by something else."""
        # Making the arrays costs as much as using them: they are made anew only when a parameter has moved. (One that
        # changed its shape in place would go unnoticed; no module does that.)
        addresses = [tensor.data_ptr() for tensor in self._tensors]
        if addresses != self._addresses:
            on_host = _are_arrays(self._tensors)
            self._groups = _groups_of_arrays(self._tensors, self._paired, self._radii) if on_host else None
            self._addresses = addresses
        if self._groups is not None:
            _rescale_arrays_(self._groups)
            torch.autograd.graph.increment_version(self._tensors)  # so that a later backward notices, as it should
            return
        with torch.no_grad():
            _rescale_(self._tensors, self._paired, self._radii)

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
        # Through g - 1, so that a gain of exactly 1 stays there in float32.
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
        self.norms = {name: float(norms[name]) for name in self.weights}
        self._updates = int(updates)
        self._cache_lists()


def _norm(weight: Tensor, partner: Tensor | None) -> float:
    tensors = [weight] if partner is None else [weight, partner]
    return math.hypot(*(float(torch.linalg.vector_norm(t.detach(), dtype=torch.float64)) for t in tensors))


def _require_positive(numbers: Sequence[float]) -> None:
    for number in numbers:
        if not 0.0 < number < math.inf:
            raise ValueError(f"{number} is not a positive finite number, but norms and scale factors must be")


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
        raise ValueError(
            f"weights of type {bad} are too coarse to hold a norm: keep float32 parameters and use autocast"
        )


def _check_policy(every: int, gains: str, strength: float) -> None:
    if every < 1:
        raise ValueError(f"every={every} is not a number of updates: give 1 or more, or build no Projection")
    if gains not in get_args(GainPolicy):
        raise ValueError(f"gains={gains!r} is unknown: choose one of {get_args(GainPolicy)}")
    pulls = gains in ("regularise", "decay")
    if pulls and not 0.0 < strength < math.inf:
        raise ValueError(f'gains="{gains}" with gain_strength={strength} pulls nothing: give a positive strength')
    if not pulls and strength != 0.0:
        raise ValueError(
            f'gains="{gains}" does not use gain_strength={strength}: leave it at 0, or choose "regularise" or "decay"'
        )
