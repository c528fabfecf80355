"""Keep the first batch that a network is trained on, to check on it what projection presumes."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from elr.scale_invariance import Call


class TrainingBatch:
    """The arguments of the network's last forward pass with gradients before `stop`, copied.

    The last, because agents choose actions for a while before the first update, one observation at a time.

    Args:
        network: watched through a forward pre-hook, until `stop`.
    """

    def __init__(self, network: nn.Module) -> None:
        self._hook = _Hook(network)
        self._handle = network.register_forward_pre_hook(self._hook, with_kwargs=True, prepend=True)

    def arguments(self) -> Call:
        """The arguments.

        Raises:
            ValueError: there was no such pass.
        """
        if self._hook.seen is None:
            raise ValueError(
                "scale invariance could not be checked: the network was not called, network(...), before the first "
                "optimizer.step(). Give attach projection=Projection(network, check_inputs=batch), for which the "
                "network needs a forward method, or Projection(network, allow_scale_dependent=True)"
            )
        return self._hook.seen

    def stop(self) -> None:
        """Remove the hook."""
        self._handle.remove()


class _Hook:
    """The forward pre-hook. A copied or saved network carries an inert one."""

    def __init__(self, network: nn.Module | None = None) -> None:
        self.seen: Call | None = None
        self._network = None if network is None else weakref.ref(network)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._network is not None and self._network() is module and torch.is_grad_enabled():
            self.seen = Call(*tree_map(_copy, (args, kwargs)))

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()  # a copied network must neither keep this one alive nor fill its batch


def _copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        try:
            return copy.deepcopy(value)  # a batch of a kind of its own, which the loop may change before the check
        except Exception:  # it cannot be copied, for instance because it holds tensors of a graph
            return value
    # Under autocast a network may be given what another has computed in half precision; the check runs without it.
    half = value.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(value.device.type)
    return value.detach().to(torch.float32 if half else value.dtype, copy=True)
