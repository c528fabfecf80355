"""Feature metrics of a network's layers, measured while it trains."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elr import metric_kernels as kernels
from elr.metrics import CHANGE_METRICS, MOMENT_METRICS, check_delta, check_tau, unit_view
from elr.states import check_keys
from elr.undisturbed import undisturbed


class Probe:
    """The metrics of `elr.metrics` for named layers on fixed inputs, every `every` updates.

    A measurement is one forward pass of the whole network in eval mode, under `torch.no_grad()`. It does not disturb
    training: hooks exist only during the pass; afterwards, also after an error, every module's train/eval flag, every
    buffer and the CPU and CUDA random states are the same as before, and `.grad` is not touched. (Modules that use
    their own random generator are not covered.) Construction checks names and shapes by one such pass.

    Delta_C, Delta_A and the flipped fraction compare with the previous measurement, which is `every` updates ago if
    `measure` is called exactly when `due`. Scalars reach the host in one transfer at the end (on CUDA the eigenvalue
    solver synchronises as well).

    Args:
        network: called as network(inputs).
        inputs: n >= 2 inputs, axis 0 is n; copied.
        layers: dotted names from `network.named_modules()`, each run exactly once per forward pass and returning one
            tensor with n as axis 0. Name the nonlinearity (the `nn.ReLU`), see `elr.metrics`. To measure one token
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
        layers: Iterable[str],
        *,
        every: int,
        tau: float = 0.1,
        delta: float = 0.01,
        unit_dim: int | None = None,
    ) -> None:
        check_tau(tau)
        check_delta(delta)
        if every < 1:
            raise ValueError(f"every must be at least 1 update, got every={every}")
        if inputs.ndim < 1 or inputs.shape[0] < 2:
            raise ValueError(f"inputs of shape {tuple(inputs.shape)}: a probe compares n >= 2 inputs along axis 0")
        self.every, self.tau, self.delta, self.unit_dim = every, tau, delta, unit_dim
        self.network = network
        self._inputs = inputs.detach().clone()
        self._modules = _modules_by_name(network, layers)
        self._previous: dict[str, _Snapshot] = {}
        self._shapes = {name: list(F.shape) for name, F in self._capture().items()}

    def due(self, update: int) -> bool:
        """Whether to measure after `update` optimiser updates: at 0, every, 2 * every, ..."""
        if update < 0:
            raise ValueError(f"update must be >= 0, because updates are counted from 0; got {update}")
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
        """Forget the previous measurement, for instance after a reset: the next one has no changes, as the first."""
        self._previous = {}

    def state_dict(self) -> dict[str, Any]:
        """The previous geometries and patterns, with what they must be compared with: layers, shapes, inputs."""
        previous = {
            name: {"geometry": snapshot.geometry.clone(), "pattern": snapshot.pattern.clone()}
            for name, snapshot in self._previous.items()
        }
        shapes = {name: list(shape) for name, shape in self._shapes.items()}
        return {"shapes": shapes, "inputs_digest": _digest(self._inputs), "previous": previous}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`: later measurements equal those of the uninterrupted run bit for bit.

        Raises:
            ValueError: wrong keys, or the layers, their shapes or the inputs are not those of the saved probe.
        """
        check_keys("Probe", state, ["shapes", "inputs_digest", "previous"])
        if list(state["shapes"].items()) != list(self._shapes.items()):
            raise ValueError(
                f"the saved probe measures {state['shapes']}, this one {self._shapes}: layers and shapes must be the "
                "same, in the same order. Build this probe as the saved one was built."
            )
        if state["inputs_digest"] != _digest(self._inputs):
            raise ValueError(
                "the saved probe has other inputs, so changes since then would mean nothing. Build this probe with the "
                "same inputs (save them, or draw them from the same seed)."
            )
        self._previous = {
            name: _Snapshot(entry["geometry"].clone(), entry["pattern"].clone())
            for name, entry in state["previous"].items()
        }

    def _capture(self) -> dict[str, Tensor]:
        """The layers' outputs, copied because a later in-place operation may overwrite them."""
        seen: dict[str, list[Any]] = {name: [] for name in self._modules}

        def keep(name: str, output: Any) -> None:
            seen[name].append(output.detach().clone() if isinstance(output, Tensor) else output)

        handles = [
            module.register_forward_hook(lambda _module, _args, output, name=name: keep(name, output))
            for name, module in self._modules.items()
        ]
        try:
            with torch.no_grad(), undisturbed(self.network, self._inputs):
                self.network(self._inputs.clone())  # a first layer that works in place would write to the inputs
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
                f"layer {name!r} returns shape {tuple(output.shape)}; it must be (n, ...), n = {n}, at least 2-D"
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


class NoProbe:
    """The probe of a run without one: never due, nothing is measured, and there is no state."""

    def due(self, update: int) -> bool:
        """Never."""
        return False

    def measure(self) -> dict[str, float]:
        """No scalars."""
        return {}

    def forget(self) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept the empty state only (ValueError)."""
        check_keys("NoProbe", state, ())


class _Snapshot(NamedTuple):
    """What the next measurement compares with: `kernels.geometry`, float64, and A (n, d) bool."""

    geometry: Tensor
    pattern: Tensor


def _measure_layer(F: Tensor, tau: float, delta: float, unit_dim: int | None) -> tuple[Tensor, _Snapshot]:
    """[finite flag, *MOMENT_METRICS] and the snapshot, on F's device (MPS: on the host).

    The features of a convolution outgrow the caches, and then every pass over them in float64 costs more than all the
    arithmetic: so the code avoids extra passes.
    """
    F = kernels.measurable(F)
    matrix = kernels.as_matrix(F)
    scaled = kernels.scaled(F, matrix)
    gram = kernels.gram_of(scaled)
    spectrum = kernels.singular_values(scaled, gram)
    units = unit_view(F, unit_dim=unit_dim)
    values = [
        torch.stack(F.aminmax()).isfinite().all().double(),  # either is NaN where an entry is
        kernels.dead(units),
        kernels.dormant(units, tau),
        kernels.effective_rank(spectrum),
        kernels.stable_rank(spectrum),
        kernels.srank(spectrum, delta).double(),
        kernels.feature_norm(matrix),
    ]
    return torch.stack(values), _Snapshot(kernels.geometry(scaled, gram), (F > 0).flatten(1))


def _change(before: _Snapshot, after: _Snapshot) -> Tensor:
    """[delta_c is defined, *CHANGE_METRICS] on the device of `after`."""
    geometry, pattern = (tensor.to(after.geometry.device) for tensor in before)
    flips = (pattern != after.pattern).sum().double()
    defined = kernels.is_defined(geometry) & kernels.is_defined(after.geometry)
    distance = kernels.distance(geometry, after.geometry)
    return torch.stack([defined.double(), distance, flips.sqrt(), flips / pattern.numel()])


def _digest(inputs: Tensor) -> str:
    raw = inputs.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{inputs.dtype}{tuple(inputs.shape)}".encode() + raw).hexdigest()


def _modules_by_name(network: nn.Module, layers: Iterable[str]) -> dict[str, nn.Module]:
    layers = layers if isinstance(layers, str) else list(layers)  # a generator can be read once
    if isinstance(layers, str) or not layers:
        raise ValueError(f"layers={layers!r} must be a non-empty sequence of module names")
    if len(set(layers)) != len(layers):
        raise ValueError(f"layers={list(layers)} names a layer twice: name each once, because tags are per layer")
    existing = {name: module for name, module in network.named_modules(remove_duplicate=False) if name}
    missing = [name for name in layers if name not in existing]
    if missing:
        raise ValueError(f"the network has no module named {missing}; it has {sorted(existing)}")
    return {name: existing[name] for name in layers}
