"""A function on fixed memory: on a GPU recorded once, and replayed from then on.

The gradient of a small network is many small kernels, and each has to be launched. A CUDA graph launches all of them at
once (what that saves has not been measured here: there was no GPU). It does again what was recorded, on the same
memory: so inputs are copied into tensors that stay where they are, and results are read from tensors that the next call
overwrites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

R = TypeVar("R")
Inputs = Mapping[str, Tensor] | Sequence[Tensor | NDArray[Any]]

WARM_UP = 3
"""calls before the recording, in which libraries choose their kernels and take their memory"""


class Captured(Generic[R]):
    """`function(inputs)` on fixed memory. On a CPU nothing is recorded: the function is called.

    What the function reads besides its inputs (weights, the target network) must change in place, and what it writes
    besides its result (`.grad`) must exist before, as with FlatAdam. It may neither read a number from the device nor
    draw random numbers, and calling it several times in a row must be the same as calling it once.

    Args:
        function: of inputs as they are given here, as tensors on the device.
        device: where it computes.
    """

    def __init__(self, function: Callable[[Any], R], device: torch.device) -> None:
        self._function, self._device, self._records = function, device, device.type == "cuda"
        self._fixed: dict[Any, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: Inputs) -> R:
        """The function's result; on a GPU its tensors hold until the next call.

        Args:
            inputs: tensors or arrays by name or in order. Shapes and types are those of the first call.
        Raises:
            ValueError: they are others.
        """
        named: dict[Any, Any] = dict(inputs) if isinstance(inputs, Mapping) else dict(enumerate(inputs))
        tensors = {name: torch.as_tensor(value) for name, value in named.items()}
        if not self._fixed:
            self._fixed = {name: torch.empty_like(x, device=self._device) for name, x in tensors.items()}
        self._check(tensors)
        for name, fixed in self._fixed.items():
            fixed.copy_(tensors[name])
        memory: Any = self._fixed if isinstance(inputs, Mapping) else list(self._fixed.values())
        if not self._records:
            return self._function(memory)
        if self._graph is None:
            self._record(memory)
        assert self._graph is not None
        self._graph.replay()
        return self._result

    def _check(self, tensors: Mapping[Any, Tensor]) -> None:
        if tensors.keys() != self._fixed.keys():
            raise ValueError(f"captured for the inputs {list(self._fixed)}, got {list(tensors)}")
        for name, fixed in self._fixed.items():
            if (tensors[name].shape, tensors[name].dtype) != (fixed.shape, fixed.dtype):
                raise ValueError(
                    f"captured for an input {name} of shape {tuple(fixed.shape)} and {fixed.dtype}, got "
                    f"{tuple(tensors[name].shape)} and {tensors[name].dtype}"
                )

    def _record(self, memory: Any) -> None:
        """As torch asks for it: warm up on another stream, then record on it.

        torch's own stream for recordings is that of the device that is current when it is first used, which need not be
        this one.
        """
        with torch.cuda.device(self._device):
            present, other = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            other.wait_stream(present)
            with torch.cuda.stream(other):
                for _ in range(WARM_UP):
                    self._function(memory)
            present.wait_stream(other)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=other):
                self._result = self._function(memory)
        self._graph = graph
