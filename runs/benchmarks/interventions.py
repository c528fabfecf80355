"""What each method of --intervene costs: time of an update with it over that without, on your own machine.

    python -m runs bench interventions

The update is that of `agents/ppo_control.py` (two networks of three hidden layers of 256, minibatches of 32): loss,
gradient, Adam's step. Every method has the constants of its preset. All take turns, block by block, and the ratio is
taken to the plain block of the same round. Methods that act at a change of the task or on a trigger cost nothing
between; one of these events is timed by itself.
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elr.fast.flat_adam import FlatAdam
from elr.interventions import policy_divergence
from elr.interventions.flags import BASELINES, InterveneArgs
from elr.projection import NoProjection
from runs.analysis.tables import markdown

SCRIPT = Path(__file__).resolve().parents[2] / "agents" / "ppo_control.py"


@dataclass(frozen=True)
class Args:
    """How long to measure."""

    methods: tuple[str, ...] = tuple(BASELINES)
    """presets to measure"""
    updates: int = 1_000
    """updates in a block; redo acts once in 1,000"""
    repeats: int = 5
    """rounds, each with a block of every method"""
    threads: int = 1
    """threads of torch"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name, least in (("updates", 2), ("repeats", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if unknown := [name for name in self.methods if name not in BASELINES]:
            raise ValueError(f"--methods must be some of {', '.join(BASELINES)}, got {', '.join(unknown)}")


def make_update(script: dict[str, Any], method: InterveneArgs) -> tuple[Callable[[], None], Callable[[], bool]]:
    """One update with a method, on networks of its own and made-up samples; and one event of it."""
    rng = np.random.default_rng(0)
    args = script["Args"]()
    env = args.shift.world(args.env_id, 1)  # CartPole: 4 inputs, 2 actions
    network = script["make_network"](env, args, 0, torch.device("cpu"))
    optimizer = FlatAdam(network.parameters(), lr=args.learning_rate, eps=args.adam_eps)
    obs = torch.from_numpy(rng.normal(size=(800, 4)).astype(np.float32))
    batch = {
        "obs": obs[:32], "actions": torch.from_numpy(rng.integers(2, size=32)), "logprobs": torch.full((32,), -0.7),
        "advantages": torch.from_numpy(rng.normal(size=32).astype(np.float32)), "returns": torch.ones(32),
    }  # fmt: skip
    methods = method.build(
        network, optimizer, NoProjection(), layers=network.probed, heads=network.heads, inputs=obs[:2],
        fresh=lambda: script["make_network"](env, args, int(rng.integers(2**32)), torch.device("cpu")),
        divergence=policy_divergence, batch=32, churn={"block": 125, "least": 1.0},
    )  # fmt: skip

    def reference(count: int) -> Tensor:
        return obs[torch.from_numpy(rng.integers(len(obs), size=count))]

    def update() -> None:
        loss, parts = script["ppo_loss"](network, batch, args)
        optimizer.zero_grad()
        loss.backward()
        if method.on:
            methods.before_step(reference, parts["policy_loss"].item())
        optimizer.step()
        methods.after_step()

    return update, lambda: methods.react(reference, changed=True, fired=True)


def main(args: Args) -> None:
    """Measure and print a table."""
    torch.set_num_threads(args.threads)
    script = runpy.run_path(str(SCRIPT))
    asked = {"plain": InterveneArgs(), **{name: BASELINES[name] for name in args.methods}}
    made = {name: make_update(script, method) for name, method in asked.items()}
    times: dict[str, list[float]] = {name: [] for name in made}
    events: dict[str, list[float]] = {name: [] for name in made}
    for update, _ in made.values():
        for _ in range(20):
            update()
    for _ in range(args.repeats):
        for name, (update, event) in made.items():
            start = time.perf_counter()
            for _ in range(args.updates):
                update()
            times[name].append((time.perf_counter() - start) / args.updates)
            start = time.perf_counter()
            event()
            events[name].append(time.perf_counter() - start)
    rows = []
    for name, seconds in times.items():
        ratios = [one / plain for one, plain in zip(seconds, times["plain"], strict=True)]
        spread = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        acts = name in BASELINES and BASELINES[name].acts_at in ("change", "trigger")
        once = f"{1e3 * median(events[name]):.1f}" if acts else "–"
        rows.append([name, f"{1e6 * median(seconds):.0f}", spread, once])
    heads = "method", "microseconds an update", "over plain: median [smallest, largest]", "an event, milliseconds"
    print(markdown(heads, rows))
    print(f"n = {args.repeats} rounds of {args.updates} updates, {args.threads} thread(s), torch {torch.__version__}")
