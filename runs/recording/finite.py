"""Find the layer at which a run stopped being finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from runs.recording.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor, nn


class NonFiniteError(RunError):
    """A loss, gradient or weight is nan or infinite; the message says at which step, layer and rate."""


def weights_and_gradients(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight, then every gradient of `module`, named for `describe_nonfinite`.

    Weights come first: a weight that is not finite was so before this update, and makes every gradient nan.
    """
    for name, parameter in module.named_parameters():
        yield f"the weight {name}", parameter.detach()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            yield f"the gradient of {name}", parameter.grad


def describe_nonfinite(named_tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Name the first tensor that is not finite and count its nan and inf; waits for the device.

    Args:
        named_tensors: in the order of search, for instance `weights_and_gradients(network)`.
    Returns:
        "the gradient of fc1.weight holds 3 nan and 0 inf among 64 entries", or that all are finite.
    """
    count = 0
    for name, tensor in named_tensors:
        if not bool(tensor.isfinite().all()):
            nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
            return f"{name} holds {nan} nan and {inf} inf among {tensor.numel()} entries"
        count += 1
    return f"all {count} tensors examined are finite"
