"""Which weights belong to a hidden unit: those that make it, and those that read it.

Methods that recycle single units (ReDo, continual backprop) must find, for each unit behind a nonlinearity, the row of
the layer that makes it, its gain and offset in the norm layer between, and the columns of every layer that reads it.
Names and order of modules do not tell: a convolution's channel is read by many columns of a linear layer, in an order
that depends on how the features were flattened. So the network is asked. `hidden_units` sends numbers through it that
name the units, and looks where they arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from elr.undisturbed import tensors_in, undisturbed

NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Reader:
    """A linear or convolutional layer that reads the units."""

    name: str
    weight: Tensor
    """[out, in, ...]"""
    bias: Tensor | None
    """[out]"""
    columns: Tensor
    """[entries]: places in dimension 1 of the weight that carry a unit"""
    unit_of: Tensor
    """[entries]: which unit each of them carries"""


@dataclass(frozen=True)
class Hidden:
    """The units behind one nonlinearity, and the parameters that belong to them."""

    name: str
    """of the nonlinearity"""
    module: nn.Module
    """the nonlinearity"""
    units: int
    makers: Mapping[str, Tensor]
    """by name, with one row per unit in dimension 0: weight and bias of the layer that makes them, gain and offset of a
    norm layer between"""
    readers: Sequence[Reader]
    other_dims: tuple[int, ...]
    """dimensions of the nonlinearity's output that are not the unit's: batch and space"""

    def mean_activity(self, features: Tensor) -> Tensor:
        """E|h_i| over batch and space, [units]; `features` is the nonlinearity's output."""
        return features.abs().mean(dim=self.other_dims)


def hidden_units(network: nn.Module, layers: Sequence[str], inputs: Tensor) -> list[Hidden]:
    """The units behind the named nonlinearities, found by sending numbers through the network.

    The nonlinearity's input must be the output of a linear or convolutional layer, with nothing but norm layers
    between; and what reads its output must be such layers again, with nothing between but reshaping, or pooling that
    leaves equal numbers as they are. It is proved that nothing else in the network reads the units.

    Args:
        network: called as network(inputs); afterwards it is as before.
        layers: names of nonlinearities, as in `network.named_modules()`.
        inputs: a few inputs, axis 0 is the batch, at least 2; in the type of the network.

    Raises:
        ValueError: a name does not exist, or its units are not made and read in that way.
    """
    modules = dict(network.named_modules())
    if isinstance(layers, str) or not layers:
        raise ValueError(f"layers must be a list of names, got {layers!r}")
    if unknown := [name for name in layers if name not in modules]:
        raise ValueError(f"layers {unknown} do not exist; there are {[name for name in modules if name]}")
    if inputs.ndim < 1 or inputs.shape[0] < 2:
        raise ValueError(f"inputs of shape {tuple(inputs.shape)}: give at least 2, along axis 0")
    with torch.no_grad(), undisturbed(network, inputs):
        calls = _calls(network, inputs)
        return [_hidden(network, name, inputs, calls) for name in layers]


@dataclass(frozen=True)
class _Call:
    """One call of a module in a forward pass."""

    name: str
    module: nn.Module
    source: _Call | None
    """whose output the input is, the very tensor"""
    given: Tensor
    output: Tensor


def _calls(network: nn.Module, inputs: Tensor) -> dict[str, list[_Call]]:
    """The calls of the modules without children in one forward pass, by name."""
    found: dict[str, list[_Call]] = {}
    producer: dict[int, _Call] = {}
    kept: list[Any] = []  # tensors live until the end, so that no address is used twice
    waiting: dict[str, tuple[_Call | None, Tensor]] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor):
                waiting[name] = producer.get(id(args[0])), args[0]

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if name in waiting and isinstance(output, Tensor):
                call = _Call(name, module, *waiting.pop(name), output)
                if not isinstance(module, nn.Identity):  # its output is its input, and keeps its maker
                    producer[id(output)] = call
                found.setdefault(name, []).append(call)
                kept.append((args, output))

        return hook

    with _hooks(network, lambda name, module: [
        module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name)),
    ] if not list(module.children()) else []):  # fmt: skip
        network(inputs)
    return found


def _hidden(network: nn.Module, name: str, inputs: Tensor, calls: Mapping[str, list[_Call]]) -> Hidden:
    if len(calls.get(name, [])) != 1:
        raise ValueError(
            f"{name} is called {len(calls.get(name, []))} times in a forward pass, and must be called once"
        )
    (activation,) = calls[name]
    between, maker = [], activation.source
    while maker is not None and isinstance(maker.module, NORMS):
        between.append(maker)
        maker = maker.source
    if maker is None or not isinstance(maker.module, nn.Linear | _ConvNd) or getattr(maker.module, "transposed", False):
        what = f"{maker.name}, a {type(maker.module).__name__}" if maker else "something that is no module"
        raise ValueError(
            f"the input of {name} comes from {what}: it must be that of a linear or convolutional layer, with nothing "
            "but norm layers between"
        )
    if len(calls[maker.name]) != 1:
        raise ValueError(f"{maker.name}, which makes the units of {name}, is called more than once in a forward pass")
    weight = maker.module.weight
    units, features = weight.shape[0], activation.output
    unit_dim = 1 if isinstance(maker.module, _ConvNd) else features.ndim - 1
    if features.shape != maker.output.shape:
        raise ValueError(
            f"{name} makes {tuple(features.shape)} of the {tuple(maker.output.shape)} of {maker.name}: single units "
            "can be told apart only where each output belongs to one"
        )
    vectors = {"bias": maker.module.bias} | {
        f"{norm.name}.{kind}": getattr(norm.module, kind, None) for norm in between for kind in ("weight", "bias")
    }
    makers = {f"{maker.name}.weight": weight}
    for key, vector in vectors.items():
        if vector is not None and vector.shape[0] == units and vector.ndim in (1, features.ndim - 1):
            makers[f"{maker.name}.bias" if key == "bias" else key] = vector
    readers = _readers(network, activation, unit_dim, units, inputs, calls)
    other = tuple(d for d in range(features.ndim) if d != unit_dim)
    return Hidden(name, activation.module, units, makers, readers, other)


def _readers(
    network: nn.Module, activation: _Call, unit_dim: int, units: int, inputs: Tensor, calls: Mapping[str, list[_Call]]
) -> list[Reader]:
    shape = [1] * activation.output.ndim
    shape[unit_dim] = units
    # Numbers that no arithmetic of a network is likely to produce, and that single precision holds exactly.
    names = (torch.arange(units, dtype=torch.float64) * 4 + 4097).to(activation.output)
    marked = names.reshape(shape).expand_as(activation.output).clone()
    given: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            given.setdefault(name, []).append(args[0].clone())

        return hook

    layers = {name: call[0] for name, call in calls.items() if isinstance(call[0].module, nn.Linear | _ConvNd)}
    with (
        _replaced(activation.module, marked),
        _hooks(
            network,
            lambda name, module: [module.register_forward_pre_hook(note(name))] if name in layers else [],
        ),
    ):
        network(inputs)
    readers = []
    for name, call in layers.items():
        arrived, number = given[name], len(calls[name])
        if number != 1 or all(torch.equal(one, other.given) for one, other in zip(arrived, calls[name], strict=True)):
            continue
        columns, unit_of = _columns(arrived[0], call, names)
        if len(columns):
            weight, bias = (dict(call.module.named_parameters(recurse=False)).get(kind) for kind in ("weight", "bias"))
            if weight is None:
                raise ValueError(f"{name} has no weight of its own: it is computed from other parameters")
            readers.append(Reader(name, weight, bias, columns, unit_of))
    _prove(network, activation, readers, inputs)
    return readers


def _columns(arrived: Tensor, call: _Call, names: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of a layer that are the name of one unit, for every entry of the batch and of space; and which unit."""
    dim = 1 if isinstance(call.module, _ConvNd) else arrived.ndim - 1
    flat = arrived.movedim(dim, 0).flatten(1)  # [inputs, entries]
    constant = (flat == flat[:, :1]).all(1)
    place = torch.searchsorted(names, flat[:, 0].contiguous()).clamp(max=len(names) - 1)
    columns = (constant & (names[place] == flat[:, 0])).nonzero()[:, 0]
    return columns, place[columns]


def _prove(network: nn.Module, activation: _Call, readers: Sequence[Reader], inputs: Tensor) -> None:
    """With zeros where the readers read them, the units must not matter for anything that the network returns.

    Raises:
        ValueError: they do, or nothing reads them.
    """
    if not readers:
        raise ValueError(
            f"no linear or convolutional layer reads the output of {activation.name} as it is, through reshaping alone"
        )
    saved = [reader.weight.detach().clone() for reader in readers]
    try:
        for reader in readers:
            reader.weight[:, reader.columns] = 0
        returned = []
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            noise = torch.rand(activation.output.shape, generator=generator).to(activation.output)
            with _replaced(activation.module, noise):
                returned.append(tensors_in(network(inputs)))
    finally:
        for reader, weight in zip(readers, saved, strict=True):
            reader.weight.copy_(weight)
    if not all(torch.equal(one, other) for one, other in zip(*returned, strict=True)):
        read = ", ".join(reader.name for reader in readers)
        raise ValueError(
            f"besides {read} something else reads the output of {activation.name}, which cannot be cut off"
        )


@contextmanager
def _replaced(module: nn.Module, output: Tensor) -> Iterator[None]:
    handle = module.register_forward_hook(lambda module, args, old: output)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _hooks(network: nn.Module, register: Callable[[str, nn.Module], list[Any]]) -> Iterator[None]:
    handles: list[Any] = []
    try:
        for name, module in network.named_modules():
            handles += register(name, module)
        yield
    finally:
        for handle in handles:
            handle.remove()
