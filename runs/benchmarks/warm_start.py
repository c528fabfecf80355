"""Images per second of `agents/warm_start.py` against a plain PyTorch loop over a DataLoader, on your own machine.

    python -m runs bench warm-start --data-folder cifar-10-batches-bin --batches 1 2

The plain side trains the same CNN with default `torch.optim.Adam`, channels first, from a shuffling `DataLoader`
without workers. Its data set normalises each image when it is drawn, as is common in image pipelines, or (--plain
prepared) holds all images normalised in one tensor. The script's side draws bytes on the device, normalises the
minibatch, works channels last with the fused optimiser, and reads the loss at every update. It also projects, with
meter and probe at their default cadence. Blocks of updates alternate in one process; see runs/benchmarks/timing.py.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from elr.schedules import Constant
from elr.triggers import Never
from elr.weights import scalable_weights
from envs.images import load_images
from envs.minibatches import Minibatches, Pixels
from runs.benchmarks.timing import compare
from runs.recording import one_line_errors

SCRIPT = Path(__file__).resolve().parents[2] / "agents" / "warm_start.py"


@dataclass(frozen=True)
class Args:
    """What to measure, and for how long."""

    data_folder: Path | None = None
    """folder of CIFAR-10's binary batches; default: the digits are used instead"""
    batches: tuple[int, ...] = ()
    """numbers of the CIFAR-10 training batches to use; default: all five"""
    plain: Literal["each", "prepared"] = "each"
    """when the plain loop normalises: each image when it is drawn, or all before the start"""
    batch_size: int = 32
    """images per update"""
    repeats: int = 5
    """interleaved pairs of blocks"""
    updates: int = 100
    """updates in a block; use a multiple of the script's --probe.every to include the probe at its true share"""
    threads: int = 1
    """CPU threads"""

    def __post_init__(self) -> None:
        for name in ("batch_size", "repeats", "updates", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


class Each(Dataset[tuple[Tensor, Tensor]]):
    """Images as bytes, each normalised when it is drawn."""

    def __init__(self, x: Tensor, y: Tensor, mean: Tensor, deviation: Tensor):
        self.x, self.y, self.mean, self.deviation = x, y, mean, deviation

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return (self.x[index] - self.mean) / self.deviation, self.y[index]


def sides(args: Args) -> tuple[Callable[[], None], Callable[[], None]]:
    """One update of the plain loop, and one of the script."""
    script: dict[str, Any] = runpy.run_path(str(SCRIPT))
    flags = script["Args"](batch_size=args.batch_size)
    with one_line_errors("--data-folder"):
        if args.data_folder:
            images = load_images("cifar10", folder=args.data_folder, batches=args.batches or None)
        else:
            images = load_images("digits")
    device, shape = torch.device("cpu"), images.train_x.shape[1:]
    pixels = Pixels(images, device)
    plain = script["CNN"](shape, images.classes, flags)
    network = script["make_network"](flags, shape, images.classes, 0, device)
    network.load_state_dict(plain.state_dict())

    data: Dataset[Any] = Each(images.train_x, images.train_y, pixels.mean[0], pixels.deviation[0])
    if args.plain == "prepared":
        data = TensorDataset(pixels.normalised(images.train_x).contiguous(), images.train_y)
    loader = DataLoader(data, args.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.Adam(plain.parameters(), lr=flags.learning_rate)

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    batches = endless()

    def plain_update() -> None:
        x, answer = next(batches)
        loss = F.cross_entropy(plain(x), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    check = pixels.normalised(images.train_x[: flags.probe.size])
    rate = Constant(flags.learning_rate)
    learner = script["make_learner"](flags, network, check, rate, Never(), flags.intervene, lambda: network)
    weights = scalable_weights(network, heads=network.heads)
    meter, probe = flags.probe.build(network, weights, learner.optimizer, check, network.probed)
    minibatches = Minibatches(len(images.train_y), args.batch_size, np.random.default_rng(0))
    updates = 0

    def our_update() -> None:
        nonlocal updates
        index = torch.from_numpy(minibatches.draw())
        loss = F.cross_entropy(network(pixels.normalised(pixels.train_x[index])), pixels.train_y[index])
        learner.optimizer.zero_grad()
        loss.backward()
        loss.item()  # the script checks that it is finite
        meter.before_step()
        learner.optimizer.step()
        meter.after_step()
        meter.fresh_scalars()
        learner.projection.step(learner.rewarming.rate)
        learner.rewarming.step(loss.item())
        updates += 1
        if probe.due(updates):
            probe.measure()

    return plain_update, our_update


def main(args: Args) -> None:
    """Print images per second of both sides, and their ratio."""
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    plain, ours = sides(args)
    print(compare(plain, ours, repeats=args.repeats, updates=args.updates, unit=args.batch_size))
