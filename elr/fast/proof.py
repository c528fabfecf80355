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
from torch import Tensor, nn

TOLERANCE = 1e-9
"""largest ||difference|| / ||reference|| of an output or a gradient"""

SCALES = (1.0, 30.0, 1000.0)
"""of errors and outputs: what is cut off at a large value shows too, up to some 1000"""


class NotTheSame(ValueError):
    """What is written by hand is not the script's; the message says where they differ."""


def on_copies(same: Callable[..., None], *networks: nn.Module, layers: int = 1) -> None:
    """Call same(*copies, scale, seed) for copies of the networks with small and with large weights.

    torch's global generator is as it was behind it; it is seeded within: a network with dropout draws.

    Args:
        same: raises NotTheSame.
        layers: that share a scale between them, so that the output has it.
    Raises:
        NotTheSame: what is compared differs, or a network has buffers: a mask or a running mean may be harmless now and
            change while the network trains.
    """
    if any(True for network in networks for _ in network.buffers()):
        raise NotTheSame("the network has buffers, which may change while it trains")
    for seed, scale in enumerate(SCALES):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            same(*(_shaken(network, scale ** (1 / layers)) for network in networks), scale, seed)


def _shaken(network: nn.Module, scale: float) -> Any:
    """A copy in double precision whose every parameter has other values, so that no gain is 1 and no bias 0.

    Every .grad is NaN, so that a parameter that is not written to differs.
    """
    twin = copy.deepcopy(network).double()
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(torch.randn_like(p), alpha=0.3 * scale * (float(p.std(correction=0)) + 0.1))
            p.grad = torch.full_like(p, math.nan)
    return twin


def compare(own: Callable[[], Mapping[str, Any]], by_hand: Callable[[], Mapping[str, Any]]) -> None:
    """Run both and compare their numbers, arrays or tensors by name.

    Raises:
        NotTheSame: a number differs, or one of them raised: it is not the network that is written out.
    """
    try:
        found, expected = _doubles(by_hand()), _doubles(own())
    except Exception as error:  # of whatever kind
        raise NotTheSame(f"it does not fit the network ({type(error).__name__}: {error})") from error
    for name, a in expected.items():
        b = found[name]
        # "not <=", because NaN differs
        if a.shape != b.shape or not torch.linalg.vector_norm(a - b) <= TOLERANCE * torch.linalg.vector_norm(a):
            raise NotTheSame(f"{name} is not the script's own")


def _doubles(numbers: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(number, dtype=torch.float64).clone() for name, number in numbers.items()}
