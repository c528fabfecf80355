"""Feature learning and plasticity, measured on fixed inputs.

Two groups of numbers. How far the features of a layer moved between two moments: `covariance_change` (Delta_C),
`activation_pattern_change` (Delta_A), `flipped_fraction` (arXiv:2507.20057). How much of the layer is in use at one
moment: `dead_fraction`, `dormant_fraction`, `effective_rank`, `stable_rank`, `srank`, `feature_norm`. `Probe` measures
all of them on named layers of a network without disturbing its training.

Shapes: F is one layer's output on n inputs, (n, d) for a dense layer or (n, C, *spatial) for a convolution. The units
of a convolution are its channels. Unit metrics see n * spatial samples of C units (`unit_view`); ranks, norms, Delta_C
and Delta_A see the flattened (n, C * spatial) matrix, written F below.

Which output to give: the one *after* the nonlinearity. ReDo's score, the ranks and the paper's F are defined there. For
a ReLU the dead fraction and the pattern are the same on both sides of it (never > 0), the others are not: |h| of a
normalised pre-activation is far from 0 even where the ReLU passes nothing, so its dormant fraction reads 0 by
construction. Signed outputs (GELU, an attention output whose rank matters) are not refused: every metric keeps its
definition, dead then means "never positive" and dormant "small in absolute value".

All-zero F, a collapsed layer: dead and dormant fraction 1, ranks and feature norm 0, so that the curve shows the
collapse; Delta_A is defined as ever; C = F F^T / ||F||^2 is 0/0, so `covariance_change` raises and a `Probe` leaves
out that layer's delta_c. Input that is not finite raises everywhere.

All arithmetic is float64. Singular values are square roots of the eigenvalues of the smaller Gram matrix. Those below
sqrt(max(n, d) * 2.2e-16) of the largest (5e-7 for d = 1024) cannot be told from 0 this way and are set to 0. Less than
min(n, d) * 5e-7 of their sum is lost (1.3e-4 for n = 256), small beside srank's delta = 0.01.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MOMENT_METRICS = ("dead_fraction", "dormant_fraction", "effective_rank", "stable_rank", "srank", "feature_norm")
CHANGE_METRICS = ("delta_c", "delta_a", "flipped_fraction")

# Singular values that tie with 1 - delta in exact arithmetic (a flat spectrum) must count as having reached it.
_SRANK_TIE = 1e-9


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
    matrix_0, matrix_1 = _matrix(_checked(F0, "F0")), _matrix(_checked(F1, "F1"))
    if matrix_0.shape[0] != matrix_1.shape[0]:
        raise ValueError(
            f"covariance_change compares the same n inputs: F0 has n = {matrix_0.shape[0]}, F1 has "
            f"n = {matrix_1.shape[0]}. Compute both on one fixed batch."
        )
    scaled = _scaled(F0, matrix_0), _scaled(F1, matrix_1)
    covariances = [_covariance(matrix @ matrix.T) for matrix in scaled]
    if not all(_is_defined(covariance) for covariance in covariances):
        raise ValueError(
            "covariance_change of all-zero features: C = F F^T / ||F||^2 is 0/0. Check dead_fraction first and leave "
            "the point out."
        )
    return float(_distance(covariances[0], covariances[1]))


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
    Source: arXiv:2507.20057 (reported beside Delta_A). Deviation: none.
    """
    return float(_flips(F0, F1).mean())


def dead_fraction(F: Tensor, *, unit_dim: int | None = None) -> float:
    """Share of units that are never > 0 on the batch; a channel is dead if it is dead at every position.

    dead = mean_i 1[F_ji <= 0 for all samples j]

    Args:
        F: post-activation features, (n, d) or (n, C, *spatial).
        unit_dim: axis of the units, see `unit_view`.

    Raises:
        ValueError: F is not finite or not floating, or the axis of its units is not known.
    Deviation: none.
    """
    return float(_dead(unit_view(_checked(F, "F"), unit_dim=unit_dim)))


def dormant_fraction(F: Tensor, tau: float, *, unit_dim: int | None = None) -> float:
    """Share of tau-dormant units, those with a ReDo score of at most tau (Sokar et al. 2023).

    s_i = E|h_i| / mean_k E|h_k| <= tau,  E over batch and positions

    Args:
        F: post-activation features h, (n, d) or (n, C, *spatial).
        tau: threshold in [0, 1); 0 counts units that are exactly 0 everywhere.
        unit_dim: axis of the units, see `unit_view`.

    Raises:
        ValueError: tau outside [0, 1), F not finite or not floating, or the axis of its units is not known.
    Deviation: compared as E|h_i| <= tau * mean_k E|h_k|, without ReDo's 1e-9 in the denominator; an all-zero layer
        is then all dormant (1.0), not 0/0.
    """
    _check_tau(tau)
    return float(_dormant(unit_view(_measurable(_checked(F, "F")), unit_dim=unit_dim), tau))


def effective_rank(F: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values (Roy & Vetterli 2007), F not centred.

    exp(-sum_i p_i log p_i),  p_i = s_i / sum_j s_j

    In [1, rank F]; 0 for all-zero F.

    Args:
        F: (n, d) or (n, C, *spatial).

    Raises:
        ValueError: F is not finite or not floating.
    Deviation: small singular values are cut, see the module's text.
    """
    return float(_effective_rank(_spectrum(F)))


def stable_rank(F: Tensor) -> float:
    """||F||_F^2 / ||F||_2^2 = sum_i s_i^2 / s_1^2, F not centred.

    In [1, rank F]; 0 for all-zero F. Not `srank`, which several code bases call "stable rank".

    Args:
        F: (n, d) or (n, C, *spatial).

    Raises:
        ValueError: F is not finite or not floating.
    Deviation: none.
    """
    return float(_stable_rank(_spectrum(F)))


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
    _check_delta(delta)
    return int(_srank(_spectrum(F), delta))


def feature_norm(F: Tensor) -> float:
    """Mean over the samples of the Euclidean norm of their features: (1/n) sum_j ||F_j||_2.

    Args:
        F: (n, d) or (n, C, *spatial).

    Raises:
        ValueError: F is not finite or not floating.
    Deviation: none.
    """
    return float(_feature_norm(_matrix(_checked(F, "F"))))


def unit_view(F: Tensor, *, unit_dim: int | None = None) -> Tensor:
    """Features as samples of units: (n, d) as it is, (n, C, *spatial) as (n * spatial, C).

    Args:
        F: (n, d), (n, C, *spatial), or tokens (n, length, width) with unit_dim = -1.
        unit_dim: the axis that holds the units. By default axis 1, except that a 3-D F must be told apart: (n, C,
            length) of a 1-D convolution has axis 1, (n, length, width) of a sequence model has axis -1.

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


class Probe:
    """Feature metrics of named layers on fixed inputs, every so many updates, without a trace in the training.

    A measurement is one forward pass of the whole network in eval mode, under `torch.no_grad()`. Hooks exist only
    during it. Afterwards, also when it raised, every module's train/eval flag, every buffer and the CPU and CUDA random
    states are what they were; `.grad` is never touched. (A module that draws from a generator of its own is outside
    this promise.) Names and shapes are checked by one such pass at construction.

    The changes Delta_C, Delta_A and the flipped share are taken against the previous measurement: T = `every` updates
    if `measure` is called exactly when `due`. Scalars reach the host in one transfer at the end (on CUDA the eigenvalue
    solver synchronises on its own).

    Args:
        network: called as network(inputs).
        inputs: n >= 2 inputs, axis 0 is n; copied.
        layers: dotted names from `network.named_modules()`, each run exactly once per forward pass and returning one
            tensor with n as axis 0. Name the nonlinearity (the `nn.ReLU`), see the module's text. To watch one token
            position, name a module that returns it.
        every: interval T in optimiser updates.
        tau: threshold of `dormant_fraction`.
        delta: share left out by `srank`.
        unit_dim: axis of the units in all the layers, see `unit_view`; needed for 3-D outputs.

    Raises:
        ValueError: an argument out of range, a name that does not exist, or a layer that does not run exactly once or
            whose output does not fit.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Tensor,
        layers: Sequence[str],
        *,
        every: int,
        tau: float = 0.1,
        delta: float = 0.01,
        unit_dim: int | None = None,
    ) -> None:
        _check_tau(tau)
        _check_delta(delta)
        if every < 1:
            raise ValueError(f"every={every}: the interval between probes is a number of updates >= 1")
        if inputs.ndim < 1 or inputs.shape[0] < 2:
            raise ValueError(f"inputs of shape {tuple(inputs.shape)}: a probe compares n >= 2 inputs along axis 0")
        self.every, self.tau, self.delta, self.unit_dim = every, tau, delta, unit_dim
        self._network = network
        self._inputs = inputs.detach().clone()
        self._modules = _modules_by_name(network, layers)
        self._previous: dict[str, _Snapshot] = {}
        self._shapes = {name: list(F.shape) for name, F in self._capture().items()}

    def due(self, update: int) -> bool:
        """Whether to measure after `update` optimiser updates: at 0, every, 2 * every, ..."""
        if update < 0:
            raise ValueError(f"update={update}: updates are counted from 0")
        return update % self.every == 0

    def measure(self) -> dict[str, float]:
        """Measure now; tags `plasticity/<metric>/<layer>`.

        Metrics: delta_c, delta_a, flipped_fraction (absent at the first one, and after `forget`), dead_fraction,
        dormant_fraction, effective_rank, stable_rank, srank, feature_norm. delta_c is also absent where it is
        undefined: the layer is all zero now or was at the previous measurement.

        Raises:
            ValueError: a layer's output is not finite or changed its shape, or a layer did not run exactly once. The
                previous measurement is then kept.
        """
        features = self._capture()
        current: dict[str, _Snapshot] = {}
        columns: list[Tensor] = []
        for name, F in features.items():
            if list(F.shape) != self._shapes[name]:
                raise ValueError(
                    f"layer {name!r} now returns {tuple(F.shape)}, at construction {tuple(self._shapes[name])}; make a "
                    "new Probe after changing the network"
                )
            moment, current[name] = _measure_layer(F, self.tau, self.delta, self.unit_dim)
            columns.append(torch.cat([moment, _change(self._previous.get(name, current[name]), current[name])]))
        rows = torch.stack(columns).tolist()  # the one transfer
        scalars = self._scalars(dict(zip(features, rows, strict=True)))
        self._previous = current
        return scalars

    def forget(self) -> None:
        """The network is another one now: the next measurement has no changes, as the first has none."""
        self._previous = {}

    def state_dict(self) -> dict[str, Any]:
        """The previous covariances and patterns, with what they must be compared with: layers, shapes, inputs."""
        previous = {
            name: {"covariance": snapshot.covariance.clone(), "pattern": snapshot.pattern.clone()}
            for name, snapshot in self._previous.items()
        }
        shapes = {name: list(shape) for name, shape in self._shapes.items()}
        return {"shapes": shapes, "inputs_digest": _digest(self._inputs), "previous": previous}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`: later measurements equal those of the uninterrupted run bit for bit.

        Raises:
            ValueError: the layers, their shapes or the inputs are not those of the saved probe.
        """
        if list(state["shapes"].items()) != list(self._shapes.items()):
            raise ValueError(
                f"the saved probe watched {state['shapes']}, this one {self._shapes}: layers and shapes must be the "
                "same, in the same order. Load it into a probe built as the saved one was."
            )
        if state["inputs_digest"] != _digest(self._inputs):
            raise ValueError(
                "the saved probe was run on other inputs, so changes against it would mean nothing. Build this probe "
                "with the same inputs (save them, or draw them from the same seed)."
            )
        self._previous = {
            name: _Snapshot(entry["covariance"].clone(), entry["pattern"].clone())
            for name, entry in state["previous"].items()
        }

    def _capture(self) -> dict[str, Tensor]:
        """Copies of the layers' outputs: a later in-place operation may overwrite the originals."""
        seen: dict[str, list[Any]] = {name: [] for name in self._modules}

        def keep(name: str, output: Any) -> None:
            seen[name].append(output.detach().clone() if isinstance(output, Tensor) else output)

        handles = [
            module.register_forward_hook(lambda _module, _args, output, name=name: keep(name, output))
            for name, module in self._modules.items()
        ]
        try:
            with torch.no_grad(), _undisturbed(self._network, self._inputs):
                self._network(self._inputs.clone())  # a first layer that works in place would write to the inputs
        finally:
            for handle in handles:
                handle.remove()
        return {name: self._only_output(name, outputs) for name, outputs in seen.items()}

    def _only_output(self, name: str, outputs: list[Any]) -> Tensor:
        if len(outputs) != 1:
            raise ValueError(
                f"layer {name!r} ran {len(outputs)} times in one forward pass, and its features are defined only if "
                "it runs once. Use one module per place in the network (one nn.ReLU each) and name that."
            )
        output, n = outputs[0], self._inputs.shape[0]
        if not isinstance(output, Tensor):
            raise ValueError(f"layer {name!r} returns {type(output).__name__}; name a module that returns one tensor")
        if output.ndim < 2 or output.shape[0] != n:
            raise ValueError(
                f"layer {name!r} returns shape {tuple(output.shape)}; needed is (n, ...), n = {n}, of at least 2 axes"
            )
        unit_view(output[:1], unit_dim=self.unit_dim)  # refuses an ambiguous axis now, not at the first measurement
        return output

    def _scalars(self, rows: dict[str, list[float]]) -> dict[str, float]:
        scalars: dict[str, float] = {}
        for name, (finite, *values) in rows.items():
            if not finite:
                raise ValueError(
                    f"the output of layer {name!r} is not finite on the probe inputs: the network has diverged, or "
                    "the inputs are not finite"
                )
            moment, change = values[: len(MOMENT_METRICS)], values[len(MOMENT_METRICS) :]
            tagged = dict(zip(MOMENT_METRICS, moment, strict=True))
            if self._previous:
                defined, *changes = change
                tagged |= dict(zip(CHANGE_METRICS, changes, strict=True))
                if not defined:
                    del tagged["delta_c"]
            scalars |= {f"plasticity/{metric}/{name}": value for metric, value in tagged.items()}
        return scalars


class _Snapshot(NamedTuple):
    """What the next measurement compares with: C (n, n) float64 and A (n, d) bool."""

    covariance: Tensor
    pattern: Tensor


def _measure_layer(F: Tensor, tau: float, delta: float, unit_dim: int | None) -> tuple[Tensor, _Snapshot]:
    """[finite flag, *MOMENT_METRICS] and the snapshot, on F's device (MPS: on the host).

    The features of a convolution outgrow the caches, and then every pass over them in float64 costs more than all the
    arithmetic: few are made.
    """
    F = _measurable(F)
    matrix = _matrix(F)
    scaled = _scaled(F, matrix)
    gram = scaled @ scaled.T
    spectrum = _singular_values(scaled, gram)
    units = unit_view(F, unit_dim=unit_dim)
    values = [
        torch.stack(F.aminmax()).isfinite().all().double(),  # either is NaN where an entry is
        _dead(units),
        _dormant(units, tau),
        _effective_rank(spectrum),
        _stable_rank(spectrum),
        _srank(spectrum, delta).double(),
        _feature_norm(matrix),
    ]
    return torch.stack(values), _Snapshot(_covariance(gram), (F > 0).flatten(1))


def _change(before: _Snapshot, after: _Snapshot) -> Tensor:
    """[delta_c is defined, *CHANGE_METRICS] on the device of `after`."""
    covariance, pattern = (tensor.to(after.covariance.device) for tensor in before)
    flips = (pattern != after.pattern).sum().double()
    defined = _is_defined(covariance) & _is_defined(after.covariance)
    distance = _distance(covariance, after.covariance)
    return torch.stack([defined.double(), distance, flips.sqrt(), flips / pattern.numel()])


def _checked(F: Tensor, name: str) -> Tensor:
    if F.ndim < 2 or F.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(F.shape)}; needed is a non-empty (n, d) or (n, C, *spatial)")
    if not F.is_floating_point():
        raise ValueError(f"{name} has dtype {F.dtype}; features are floating, convert with .float()")
    F = F.detach()
    if not bool(torch.isfinite(F).all()):
        raise ValueError(f"{name} holds NaN or infinite entries, for which no feature metric is defined")
    return F


def _check_tau(tau: float) -> None:
    if not 0.0 <= tau < 1.0:
        raise ValueError(f"tau={tau}: needed is 0 <= tau < 1; from 1 on a layer of equally active units is all dormant")


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta={delta}: srank keeps a share 1 - delta of the singular values, with 0 < delta < 1")


def _measurable(F: Tensor) -> Tensor:
    # MPS has no float64, so features from there are measured on the host.
    return F.detach().cpu() if F.device.type == "mps" else F.detach()


def _matrix(F: Tensor) -> Tensor:
    """Rows of F in float64. Columns stand as they lie in memory, on which nothing made of them depends."""
    F = _measurable(F)
    if F.ndim == 4 and F.is_contiguous(memory_format=torch.channels_last):
        F = F.permute(0, 2, 3, 1)
    return F.double().flatten(1)


def _scaled(F: Tensor, matrix: Tensor) -> Tensor:
    """`matrix` so scaled that its squares neither overflow nor vanish; those of narrower types than float64 do not."""
    if F.dtype != torch.float64:
        return matrix
    largest = matrix.abs().amax()
    return matrix / torch.where(largest > 0, largest, torch.ones_like(largest))


def _covariance(gram: Tensor) -> Tensor:
    """C = F F^T / ||F||_F^2, trace 1; zero for all-zero F, which `_is_defined` tells apart."""
    trace: Tensor = gram.trace()
    return gram / torch.where(trace > 0, trace, torch.ones_like(trace))


def _is_defined(covariance: Tensor) -> Tensor:
    return covariance.trace() > 0.5


def _distance(covariance_0: Tensor, covariance_1: Tensor) -> Tensor:
    return (covariance_0 - covariance_1).square().sum().sqrt()


def _flips(F0: Tensor, F1: Tensor) -> Tensor:
    if F0.shape != F1.shape:
        raise ValueError(
            f"activation patterns of shapes {tuple(F0.shape)} and {tuple(F1.shape)} cannot be compared; use the same "
            "inputs and the same layer"
        )
    return ((_checked(F0, "F0") > 0) != (_checked(F1, "F1") > 0)).double()


def _dead(units: Tensor) -> Tensor:
    return (units.amax(dim=0) <= 0).double().mean()


def _dormant(units: Tensor, tau: float) -> Tensor:
    activity: Tensor = torch.linalg.vector_norm(units, ord=1, dim=0, dtype=torch.float64) / len(units)
    return (activity <= tau * activity.mean()).double().mean()


def _spectrum(F: Tensor) -> Tensor:
    matrix = _scaled(F, _matrix(_checked(F, "F")))
    return _singular_values(matrix, matrix @ matrix.T)


def _singular_values(matrix: Tensor, gram: Tensor) -> Tensor:
    """Descending singular values of the scaled matrix, from the smaller of its two Gram matrices; `gram` is (n, n)."""
    n, d = matrix.shape
    smaller = gram if n <= d else matrix.T @ matrix
    # The solver throws on NaN. A probe reports that by its finite flag, which names the layer and needs no extra sync.
    eigenvalues = torch.linalg.eigvalsh(smaller.nan_to_num(0.0, 0.0, 0.0)).flip(0)
    floor = eigenvalues[0] * max(n, d) * torch.finfo(torch.float64).eps
    return torch.where(eigenvalues > floor, eigenvalues, 0.0).sqrt()


def _effective_rank(spectrum: Tensor) -> Tensor:
    total = spectrum.sum()
    shares = spectrum / torch.where(total > 0, total, torch.ones_like(total))
    return torch.where(total > 0, torch.special.entr(shares).sum().exp(), 0.0)


def _stable_rank(spectrum: Tensor) -> Tensor:
    squares = spectrum.square()
    return torch.where(squares[0] > 0, squares.sum() / squares[0], 0.0)


def _srank(spectrum: Tensor, delta: float) -> Tensor:
    total = spectrum.sum()
    short = spectrum.cumsum(0) < (1.0 - delta - _SRANK_TIE) * total
    return torch.where(total > 0, short.sum() + 1, 0)


def _feature_norm(matrix: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=1)
    return norms.mean()


def _digest(inputs: Tensor) -> str:
    raw = inputs.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{inputs.dtype}{tuple(inputs.shape)}".encode() + raw).hexdigest()


def _modules_by_name(network: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    if isinstance(layers, str) or not layers:
        raise ValueError(f"layers={layers!r}: needed is a non-empty sequence of module names")
    if len(set(layers)) != len(layers):
        raise ValueError(f"layers={list(layers)} names a layer twice, which would write its tags twice")
    existing = {name: module for name, module in network.named_modules(remove_duplicate=False) if name}
    missing = [name for name in layers if name not in existing]
    if missing:
        raise ValueError(f"the network has no module named {missing}; it has {sorted(existing)}")
    return {name: existing[name] for name in layers}


@contextmanager
def _undisturbed(network: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Eval mode inside; train/eval flags, buffers and random states as before outside."""
    # Flags are set directly: train() recurses, and a module may override it with side effects.
    flags = [(module, module.training) for module in network.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    tensors = (inputs, *network.parameters(), *network.buffers())
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    versions = [buffer._version for _, _, buffer, _ in buffers]
    try:
        with torch.random.fork_rng(devices=devices):
            for module, _ in flags:
                module.training = False
            yield
    finally:
        for module, flag in flags:
            module.training = flag
        for (module, name, buffer, copy), version in zip(buffers, versions, strict=True):
            module._buffers[name] = buffer
            # Writing an unchanged buffer would invalidate a graph that a caller has saved for backward.
            if buffer._version != version:
                buffer.copy_(copy)
