"""Forward passes for measurement that leave no trace in the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm


def tensors_in(nest: Any) -> list[Tensor]:
    """Tensors in mappings, lists, tuples and dataclasses, however nested, in their order; of other objects none."""
    if isinstance(nest, Tensor):
        return [nest]
    if isinstance(nest, Mapping):
        return [tensor for value in nest.values() for tensor in tensors_in(value)]
    if isinstance(nest, list | tuple):
        return [tensor for value in nest for tensor in tensors_in(value)]
    if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        return [t for field in dataclasses.fields(nest) for t in tensors_in(getattr(nest, field.name, None))]
    return []


@contextmanager
def undisturbed(network: nn.Module, inputs: Any, *, batch_statistics: bool = False) -> Iterator[None]:
    """Eval mode inside; train/eval flags, buffers and random states are the same after as before, also on an error.

    Without `batch_statistics` only buffers that were changed are written back, so that a graph which the caller has
    built before stays usable. Not covered: parameters, gradients, and modules that use their own random generator.

    Args:
        network: the network that is run inside.
        inputs: its inputs, a tensor or a nest of tensors; with the network they tell which CUDA random states to keep.
        batch_statistics: batch and instance normalisation that are in training mode stay in it, and normalise by the
            statistics of the batch. False means eval mode for all modules.
    """
    # Flags are set directly: train() recurses, and a module may override it with side effects.
    flags = [(module, module.training) for module in network.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    tensors = (*tensors_in(inputs), *network.parameters(), *network.buffers())
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    versions = [buffer._version for _, _, buffer, _ in buffers]
    try:
        with torch.random.fork_rng(devices=devices):
            for module, flag in flags:
                module.training = batch_statistics and flag and isinstance(module, _BatchNorm | _InstanceNorm)
            yield
    finally:
        for module, flag in flags:
            module.training = flag
        for (module, name, buffer, copy), version in zip(buffers, versions, strict=True):
            module._buffers[name] = buffer
            # Writing an unchanged buffer would invalidate a graph that a caller has saved for backward. But training
            # mode updates running statistics without a new version.
            if batch_statistics or buffer._version != version:
                buffer.copy_(copy)
