"""Updates per second of `agents/grokking.py` against the same model in plain PyTorch, on your own machine.

    python -m runs bench grokking

The plain side runs every layer over all five positions of every pair and uses default `torch.optim.AdamW`. The script's
side is its default run: shared rows, the last position only, and the fused optimiser. It also does what the plain side
does not: projection at every update, meter and probe at their cadence. Both have the same weights, training set and
batch. Blocks of updates alternate (plain, ours, plain, ours, ...) in one process, so that a machine that slows down
slows both, and the ratio is taken within each pair. Evaluations are left out on both sides.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from elr.measure import Meter
from elr.projection import Projection
from elr.weights import scalable_weights
from envs.modular_arithmetic import modular_pairs
from runs.benchmarks.timing import compare

SCRIPT = Path(__file__).resolve().parents[2] / "agents" / "grokking.py"


@dataclass(frozen=True)
class Args:
    """What to measure, and for how long."""

    repeats: int = 5
    """interleaved pairs of blocks"""
    updates: int = 50
    """updates in a block; use a multiple of the script's --probe.every to include the probe at its true share"""
    batch_size: int = 0
    """training pairs per update; 0 takes all of them"""
    threads: int = 1
    """CPU threads"""

    def __post_init__(self) -> None:
        for name, least in (("repeats", 1), ("updates", 1), ("batch_size", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")


def sides(args: Args) -> tuple[Callable[[], None], Callable[[], None]]:
    """One update of the plain version, and one of the script's default run."""
    script: dict[str, Any] = runpy.run_path(str(SCRIPT))
    flags, rng = script["Args"](), np.random.default_rng(0)
    train, _ = modular_pairs(flags.p, flags.operation, flags.train_fraction, rng)
    networks = [script["Transformer"](flags) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    plain, ours = networks

    def batch() -> Any:
        if not args.batch_size:
            return slice(None)
        return torch.from_numpy(rng.integers(len(train.xy), size=args.batch_size))

    plain_optimizer = torch.optim.AdamW(plain.parameters(), lr=flags.learning_rate, weight_decay=flags.weight_decay)

    def plain_update() -> None:
        b = batch()
        loss = torch.nn.functional.cross_entropy(plain.plain_forward(train.xy[b]), train.answer[b])
        plain_optimizer.zero_grad()
        loss.backward()
        plain_optimizer.step()

    optimizer = torch.optim.AdamW(
        script["parameter_groups"](ours, flags.weight_decay, flags.scale_decay), lr=flags.learning_rate, fused=True
    )
    projection = script["make_projection"](flags, ours)
    assert isinstance(projection, Projection)  # the default run projects
    weights = scalable_weights(ours, embeddings=True, heads=())
    meter, probe = flags.probe.build(ours, weights, optimizer, train.xy[: flags.probe.size], ours.probed)
    assert isinstance(meter, Meter)
    updates = 0

    def our_update() -> None:
        nonlocal updates
        b = batch()
        loss = script["cross_entropy"](ours(train.xy[b]), train.answer[b], flags.loss_dtype)
        optimizer.zero_grad()
        loss.backward()
        loss.item()  # the script checks that it is finite
        meter.before_step()
        optimizer.step()
        meter.after_step()
        meter.fresh_scalars()
        projection.step(flags.learning_rate)
        updates += 1
        if probe.due(updates):
            probe.measure()

    return plain_update, our_update


def main(args: Args) -> None:
    """Print updates per second of both sides, and their ratio."""
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    plain, ours = sides(args)
    print(compare(plain, ours, repeats=args.repeats, updates=args.updates, unit=1))
