"""Tensors of a network with their counterparts in a freshly initialised one of the same shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn


def tensor_pairs(network: nn.Module, fresh: nn.Module, modules: Iterable[str]) -> list[tuple[Tensor, Tensor]]:
    """Every tensor of the named modules ("" is the whole network) with its counterpart in a network that matches."""
    _check_match(_tensors(network), _tensors(fresh))
    known = [name for name, module in network.named_modules(remove_duplicate=False) if _tensors(module)]
    modules = modules if isinstance(modules, str) else list(modules)  # a generator can be read once
    if isinstance(modules, str) or not modules:
        raise ValueError(
            f"modules must be a list of names, got {modules!r}: give names such as {known[-1:]}, or None for all"
        )
    if unknown := [name for name in modules if name not in known]:
        raise ValueError(f"modules {unknown} do not exist or hold no parameter or buffer; there are {known}")
    both = [(_tensors(network.get_submodule(name)), _tensors(fresh.get_submodule(name))) for name in modules]
    return [(ours[key], theirs[key]) for ours, theirs in both for key in ours]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each tensor once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def is_parameter(tensor: Tensor) -> bool:
    """Whether the tensor is trained, and no buffer."""
    return isinstance(tensor, nn.Parameter)


def parameters_of(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The parameters among the network's tensors."""
    return [ours for ours, _ in pairs if is_parameter(ours)]


def _check_match(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    if unmatched := sorted(set(ours) ^ set(theirs)):
        raise ValueError(f"only one of network and fresh has {unmatched}: build both with the same class and arguments")
    for name in ours:
        one, other = ((tuple(t.shape), str(t.dtype), str(t.device)) for t in (ours[name], theirs[name]))
        if one != other:
            raise ValueError(f"{name!r} is {one} in network, {other} in fresh: build both alike, on the same device")
    used = {tensor.data_ptr() for tensor in ours.values() if tensor.numel()}
    if shared := [name for name, tensor in theirs.items() if tensor.data_ptr() in used]:
        raise ValueError(f"fresh shares the memory of {shared} with network: build a new network or a deep copy")
