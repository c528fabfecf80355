"""What a measurement of the probe costs, by the number of its inputs, on your own machine.

    python -m runs bench probe

Two networks: a convolution and a hidden layer of the sizes of MinAtar's agents (1,024 and 128 features), and two dense
layers of 256 units. Each measurement is made in two ways: as the probe makes it, and with the matrices of n x n that it
avoids above n = 4 d inputs. The two alternate in one process on one thread. The clock is the CPU time of the process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from unittest import mock

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from elr import metric_kernels
from elr.probe import Probe


@dataclass(frozen=True)
class Args:
    """What to measure, and how often."""

    inputs: tuple[int, ...] = (64, 256, 1024, 4096, 8192)
    """numbers of inputs"""
    repeats: int = 5
    """interleaved pairs of measurements"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.repeats < 1:
            raise ValueError(f"--repeats must be at least 1, got {self.repeats}")
        if min(self.inputs, default=0) < 2:
            raise ValueError(f"--inputs must be at least 2 each, got {' '.join(map(str, self.inputs)) or 'none'}")


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...], list[str]]]:
    """By name: the network, the shape of an input, and the layers that are measured."""
    dense = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))
    convolution = nn.Sequential(
        nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 6)
    )
    return {"dense": (dense, (4,), ["1", "3"]), "convolution": (convolution, (4, 10, 10), ["1", "4"])}


def milliseconds(network: nn.Module, inputs: torch.Tensor, layers: list[str], square: bool) -> float:
    """CPU time of one measurement that has a previous one to compare with."""
    limit = mock.patch.object(metric_kernels, "many_inputs", lambda n, d: False) if square else mock.MagicMock()
    with limit:
        probe = Probe(network, inputs, layers, every=1)
        probe.measure()
        start = time.process_time()
        probe.measure()
        return (time.process_time() - start) * 1000


def main(args: Args) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    torch.manual_seed(0)
    print(f"milliseconds per measurement, one thread, n = {args.repeats} interleaved pairs, median [least, greatest]")
    print(f"{'network':<12}{'inputs':>7}   {'probe':>26}   {'with n x n':>26}   ratio")
    for name, (network, shape, layers) in networks().items():
        for count in args.inputs:
            inputs = torch.randn(count, *shape)
            pairs = [[milliseconds(network, inputs, layers, square) for square in (False, True)]
                     for _ in range(args.repeats)]  # fmt: skip
            ours, square = ([f"{f(column):.1f}" for f in (median, min, max)] for column in zip(*pairs, strict=True))
            ratios = [b / a for a, b in pairs]
            cells = [f"{middle} [{least}, {most}]" for middle, least, most in (ours, square)]
            ratio = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            print(f"{name:<12}{count:>7}   {cells[0]:>26}   {cells[1]:>26}   {ratio}", flush=True)
