"""Which weights belong to a hidden unit: those that make it, and those that read it.

Methods that recycle single units (ReDo, continual backprop) must find, for each unit behind a nonlinearity, the row of
the layer that makes it, its gain and offset in the norm layer between, and the columns of every layer that reads it.
Names and order of modules do not tell: a convolution's channel is read by many columns of a linear layer, in an order
that depends on how the features were flattened. So the network is asked. `hidden_units` sends numbers through it that
name the units, and looks where they arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    """The units of one nonlinearity, and the parameters that belong to them."""

    name: str
    """of the nonlinearity"""
    module: nn.Module
    """the nonlinearity"""
    units: int
    makers: Mapping[str, Tensor]
    """by name, with one row per unit in dimension 0: weight and bias of the layer that makes them; of a norm layer
    between gain, offset and running statistics"""
    readers: Sequence[Reader]
    other_dims: tuple[int, ...]
    """dimensions of the nonlinearity's output that are not the unit's: batch and space"""

    def mean_activity(self, features: Tensor) -> Tensor:
        """E|h_i| over batch and space, [units]; `features` is the nonlinearity's output."""
        return features.abs().mean(dim=self.other_dims)


def hidden_units(network: nn.Module, layers: Iterable[str], inputs: Tensor) -> list[Hidden]:
    """The units of the named nonlinearities, found by sending numbers through the network.

    The nonlinearity's input must be the output of a linear or convolutional layer, with nothing but norm layers
    between; and what reads its output must be such layers again, with nothing between but reshaping, or pooling that
    leaves equal numbers as they are. It is checked, in eval mode and on two random draws, that nothing else reads the
    units on the way to what the network returns. Not seen is a path that is silent at these numbers, or that only
    training takes.

    Args:
        network: called as network(inputs); afterwards it is as before.
        layers: names of nonlinearities, as in `network.named_modules()`.
        inputs: a few inputs, axis 0 is the batch, at least 2; in the type of the network.

    Raises:
        ValueError: a name does not exist, or its units are not made and read in that way.
    """
    modules = dict(network.named_modules())
    layers = layers if isinstance(layers, str) else list(layers)  # a generator can be read once
    if isinstance(layers, str) or not layers:
        raise ValueError(f"layers must be a list of names, got {layers!r}")
    if len(set(layers)) < len(layers):
        raise ValueError(f"layers names one twice: {list(layers)}")
    if unknown := [name for name in layers if name not in modules]:
        raise ValueError(f"layers {unknown} do not exist; there are {[name for name in modules if name]}")
    if inputs.ndim < 1 or inputs.shape[0] < 2:
        raise ValueError(f"inputs of shape {tuple(inputs.shape)}: give at least 2, along axis 0")
    with torch.no_grad(), undisturbed(network, inputs):
        calls = _calls(network, inputs)
        return [_hidden(network, name, inputs, calls) for name in layers]


def check_complete(network: nn.Module, found: Sequence[Hidden], leave: Sequence[str]) -> None:
    """Refuse (ValueError) a trained linear or convolutional layer that makes none of these units and lies not beneath
    one of the modules to leave alone, such as heads."""
    made = {id(tensor) for hidden in found for tensor in hidden.makers.values()}
    for name, module in network.named_modules():
        under = any(name == one or name.startswith(f"{one}.") for one in leave)
        if under or not isinstance(module, nn.Linear | _ConvNd) or not module.weight.requires_grad:
            continue
        if id(module.weight) not in made:
            listed = ", ".join(hidden.name for hidden in found)
            raise ValueError(
                f"{name} makes none of the units of {listed}: add its nonlinearity to these, or it is left out"
            )


def check_held(optimizer: torch.optim.Optimizer | None, found: Sequence[Hidden]) -> None:
    """Refuse (ValueError) weights of these units that the optimiser does not hold, such as frozen ones."""
    if optimizer is None:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for hidden in found:
        readers = {f"{reader.name}.weight": reader.weight for reader in hidden.readers}
        for name, tensor in {**hidden.makers, **readers}.items():
            if isinstance(tensor, nn.Parameter) and id(tensor) not in held:
                raise ValueError(f"{name} belongs to the units of {hidden.name}, but the optimiser does not hold it")


@dataclass(frozen=True)
class _Call:
    """One call of a module in a forward pass."""

    name: str
    module: nn.Module
    source: _Call | None
    """whose output the input is: the very tensor, not written to since"""
    given: Tensor
    """a copy of the input"""
    output: Tensor


def _calls(network: nn.Module, inputs: Tensor) -> dict[str, list[_Call]]:
    """The calls of the modules without children in one forward pass, by name."""
    found: dict[str, list[_Call]] = {}
    producer: dict[int, tuple[_Call, int]] = {}  # by address; with the version of the tensor when it was made
    kept: list[Any] = []  # tensors live until the end, so that no address is used twice
    waiting: dict[str, tuple[_Call | None, Tensor]] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor):
                maker, version = producer.get(id(args[0]), (None, 0))
                waiting[name] = maker if args[0]._version == version else None, args[0].clone()

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if name in waiting and isinstance(output, Tensor):
                call = _Call(name, module, *waiting.pop(name), output)
                if not isinstance(module, nn.Identity):  # its output is its input, and keeps its maker
                    producer[id(output)] = call, output._version
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
    if maker is None or not _multiplies(maker.module):
        what = f"{maker.name}, a {type(maker.module).__name__}" if maker else "something that is no module"
        raise ValueError(
            f"the input of {name} comes from {what}: it must be that of a linear or convolutional layer, with nothing "
            "but norm layers between"
        )
    for call in (maker, *between):
        if len(calls[call.name]) != 1:
            raise ValueError(f"{call.name}, in front of {name}, is called more than once in a forward pass")
    if activation.output.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"units are told apart in single or double precision, not in {activation.output.dtype}")
    weight = _own(maker.module).get("weight")
    if weight is None:
        raise ValueError(f"{maker.name} has no weight of its own: it is computed from other parameters")
    units, features = weight.shape[0], activation.output
    unit_dim = 1 if isinstance(maker.module, _ConvNd) else features.ndim - 1
    if features.shape != maker.output.shape:
        raise ValueError(
            f"{name} makes {tuple(features.shape)} of the {tuple(maker.output.shape)} of {maker.name}: single units "
            "can be told apart only where each output belongs to one"
        )
    makers = {f"{maker.name}.{kind}": tensor for kind, tensor in _own(maker.module).items()}
    for norm in between:
        if _per_unit(norm.module, features, unit_dim):
            makers |= {f"{norm.name}.{kind}": tensor for kind, tensor in _own(norm.module).items() if tensor.ndim}
    readers = _readers(network, activation, unit_dim, units, inputs, calls)
    _refuse_shared(network, name, [*makers.values(), *(reader.weight for reader in readers)])
    other = tuple(d for d in range(features.ndim) if d != unit_dim)
    return Hidden(name, activation.module, units, makers, readers, other)


def _multiplies(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | _ConvNd) and not getattr(module, "transposed", False)


def _own(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module itself."""
    both = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {name: tensor for name, tensor in both if tensor is not None}


def _per_unit(norm: nn.Module, features: Tensor, unit_dim: int) -> bool:
    """Whether what the norm layer holds has one entry, or slice, per unit in dimension 0."""
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return len(norm.normalized_shape) == features.ndim - unit_dim
    return unit_dim == 1  # GroupNorm and BatchNorm: by channel


def _refuse_shared(network: nn.Module, name: str, tensors: Sequence[Tensor]) -> None:
    owners: dict[int, set[str]] = {}
    for owner, module in network.named_modules():
        for tensor in _own(module).values():
            owners.setdefault(id(tensor), set()).add(owner)
    for tensor in tensors:
        if len(shared := owners.get(id(tensor), set())) > 1:
            raise ValueError(f"{' and '.join(sorted(shared))} share a weight, which {name}'s units cannot change alone")


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
        passes = list(zip(given[name], calls[name], strict=True))
        if all(torch.equal(arrived, before.given) for arrived, before in passes):
            continue  # none of its inputs comes from these units
        found = [_columns(arrived, before, names) for arrived, before in passes]
        if len(found) > 1 and any(len(columns) for columns, _ in found):
            raise ValueError(f"{name} reads the output of {activation.name} and is called {len(found)} times in a pass")
        columns, unit_of = found[0]
        if len(columns):
            own = _own(call.module)
            if not _multiplies(call.module) or getattr(call.module, "groups", 1) != 1 or "weight" not in own:
                raise ValueError(
                    f"{name} reads the output of {activation.name} and is transposed, in groups, or has no weight of "
                    "its own: its columns do not belong to single units"
                )
            readers.append(Reader(name, own["weight"], own.get("bias"), columns, unit_of))
    _prove(network, activation, readers, inputs)
    read = {unit for reader in readers for unit in reader.unit_of.tolist()}
    if unread := sorted(set(range(units)) - read):
        raise ValueError(f"no layer reads units {unread[:5]} of {activation.name} as they are")
    return readers


def _columns(arrived: Tensor, call: _Call, names: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of a layer that are the name of one unit, for every entry of the batch and of space; and which unit."""
    dim = 1 if isinstance(call.module, _ConvNd) else arrived.ndim - 1
    flat, before = (one.movedim(dim, 0).flatten(1) for one in (arrived, call.given))  # [inputs, entries]
    constant = (flat == flat[:, :1]).all(1) & (flat != before).any(1)  # an input may happen to be such a number
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
    parameters = list(network.parameters())
    saved = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(1)

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    try:
        for parameter in parameters:  # a head of zeros would hide everything
            if parameter.is_floating_point():
                parameter.copy_(random(parameter) / max(1.0, parameter[0].numel() if parameter.ndim else 1) ** 0.5)
        for reader in readers:
            reader.weight[:, reader.columns] = 0
        returned = []
        for _ in range(2):
            with _replaced(activation.module, random(activation.output)):
                returned.append(tensors_in(network(inputs)))
    finally:
        for parameter, values in zip(parameters, saved, strict=True):
            parameter.copy_(values)
    if not returned[0]:
        raise ValueError("the network returns no tensor, so that it cannot be seen what depends on the units")
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
