"""What is written out by hand is compared with the script's own before it is used.

A script's network and loss are its definition; someone who changes them must never train on the gradient of the old
ones. Both are run on copies with other weights, in double precision, in which rounding moves no unit across ReLU's kink
and makes differences of some 1e-14.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

TOLERANCE = 1e-9
"""largest ||difference|| / ||reference|| of an output or a gradient"""

SCALES = (1.0, 30.0, 1000.0)
"""of errors and outputs: what is cut off at a large value shows too, up to some 1000"""


HOOKS = (
    "_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_pre_hooks", "_post_accumulate_grad_hooks",
)  # fmt: skip
"""where torch keeps the hooks of modules and parameters"""


class NotTheSame(ValueError):
    """What is written by hand is not the script's; the message says where they differ."""


def on_copies(require_same: Callable[..., None], *networks: nn.Module, weight_power: float = 1.0) -> None:
    """Call require_same(*copies, scale, seed) for copies of the networks with small and with large weights.

    torch's global generator is seeded within (a network with dropout draws) and is as it was behind it.

    Args:
        require_same: raises NotTheSame.
        weight_power: weights are scaled by scale ** weight_power.
    Raises:
        NotTheSame: what is compared differs; it does not fit the network, of whatever kind the error is; or a network
            has buffers or hooks. A mask may be harmless now and change while the network trains; a copy has no hooks of
            parameters, and nothing written out calls one.
    """
    for network in networks:
        if any(True for _ in network.buffers()):
            raise NotTheSame("the network has buffers, which may change while it trains")
        if any(getattr(part, kind, None) for part in [*network.modules(), *network.parameters()] for kind in HOOKS):
            raise NotTheSame("the network has hooks, which would not be called")
        if any(p.dtype not in (torch.float32, torch.float64) for p in network.parameters()):
            raise NotTheSame("the network is neither in float32 nor in float64")
    for seed, scale in enumerate(SCALES):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                require_same(*(_shaken(network, scale**weight_power) for network in networks), scale, seed)
            except (NotTheSame, ImportError):
                raise
            except Exception as error:  # of whatever kind: it is not the network that is written out
                raise NotTheSame(f"it does not fit the network ({type(error).__name__}: {error})") from error


def _shaken(network: nn.Module, scale: float) -> Any:
    """A copy in double precision whose every parameter has other values, so that no gain is 1 and no bias 0."""
    twin = copy.deepcopy(network).double()
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(torch.randn_like(p), alpha=0.3 * scale * (float(p.std(correction=0)) + 0.1))
    forget_gradients(twin)
    return twin


def forget_gradients(network: nn.Module) -> None:
    """Every .grad is NaN, so that a parameter that is not written to differs."""
    for p in network.parameters():
        p.grad = torch.full_like(p, math.nan)


def compare(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Of numbers, arrays or tensors by name: the script's own, and those by hand.

    Raises:
        NotTheSame: one differs, is missing or is there in addition.
    """
    if other := sorted(expected.keys() ^ found.keys()):
        raise NotTheSame(f"{other[0]} is computed by only one of them")
    for name in expected:
        a, b = (torch.as_tensor(numbers[name], dtype=torch.float64) for numbers in (expected, found))
        # "not <=", because NaN differs
        if a.shape != b.shape or not torch.linalg.vector_norm(a - b) <= TOLERANCE * torch.linalg.vector_norm(a):
            raise NotTheSame(f"{name} is not the script's own")


class Memory:
    """Where the parameters and gradients of networks were when their arrays were made.

    An array goes on pointing there when a parameter is given other memory, and would be trained in its place.
    """

    def __init__(self, *networks: nn.Module) -> None:
        self._places = [(name, p, p.data_ptr(), p.grad) for n in networks for name, p in n.named_parameters()]

    def check(self) -> None:
        """Raises: RuntimeError: a parameter or a gradient was replaced."""
        for name, p, place, grad in self._places:
            if p.data_ptr() != place or p.grad is not grad:
                raise RuntimeError(
                    f"{name} was given other memory, which the gradient written out by hand does not see: change it in "
                    "place (copy_, load_state_dict), or train with --gradient autograd"
                )
