"""What projection, meter and probe cost, as shares of one DQN update.

    python -m runs bench parts

One process runs agent steps as the script does (act, play, store, sample, update), so that caches are as warm or cold
as in training, and times the parts of each step. An update is sampling, gradient and optimiser step. The cadences are
the script's defaults.
"""

from __future__ import annotations

import runpy
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

SCRIPT = Path(__file__).resolve().parents[2] / "agents" / "dqn_minatar.py"


@dataclass(frozen=True)
class Args:
    """How much to time."""

    updates: int = 4000
    """updates timed"""
    probes: int = 20
    """probe and meter measurements timed"""


class Stopwatch:
    """Measures how many seconds each named part takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block."""
        start = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - start)

    def microseconds(self, name: str) -> float:
        """Median of a part."""
        return median(self.seconds[name]) * 1e6


def agent(script: dict[str, Any]) -> dict[str, Any]:
    """Network, optimiser, replay memory and gradient as the script builds them for the preset nap."""
    args = script["PRESETS"]["nap"].args
    network, target = script["QNetwork"](4, 3), script["QNetwork"](4, 3)
    optimizer = script["FlatAdam"](list(network.parameters()), lr=args.learning_rate, eps=args.adam_eps)
    target.load_state_dict(network.state_dict())
    env = script["make_world"](args, script["NoChange"](), 1)
    return {
        "args": args,
        "network": network,
        "optimizer": optimizer,
        "replay": script["ReplayMemory"](args.buffer_size, 4),
        "gradient": script["ExplicitGradient"](network, target, args),
        "act": script["ExplicitQ"](network, script["Windows"](network, 1)).forward,
        "env": env,
        "obs": env.reset(seed=0)[0],
    }


def play(a: dict[str, Any], rng: np.random.Generator) -> None:
    """One agent step; a tenth of them are random."""
    action = int(a["act"](a["obs"]).argmax()) if rng.random() > 0.1 else int(rng.integers(3))
    next_obs, rewards, terminated, _, infos = a["env"].step(np.array([action]))
    a["replay"].add(a["obs"][0], action, rewards[0], infos.get("final_obs", next_obs)[0], terminated[0])
    a["obs"] = next_obs


def measure(args: Args) -> tuple[Stopwatch, Any]:
    """Time every part, update by update."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    script = runpy.run_path(str(SCRIPT))
    a, rng, watch = agent(script), np.random.default_rng(0), Stopwatch()
    minibatch_rng = np.random.default_rng(1)
    for _ in range(2000):
        play(a, rng)
    probed = script["collect_probe"](script["make_world"](a["args"], script["NoChange"](), 1), a["args"].probe.size, 0)
    projection = script["Projection"](
        a["network"], every=a["args"].nap.every, gains=a["args"].nap.gains, check_inputs=probed
    )
    idle = 10 * args.updates  # never measures, so that the idle meter can be timed separately
    weights = script["scalable_weights"](a["network"])
    meter = script["Meter"](weights, every=idle, optimizer=a["optimizer"], nominal_power=1)
    active = script["Meter"](weights, every=1, optimizer=a["optimizer"], nominal_power=1)
    probe = script["Probe"](
        a["network"], probed, script["PROBED"], every=a["args"].probe.every, tau=a["args"].probe.tau
    )
    for update in range(args.updates):
        play(a, rng)
        with watch.part("update"):
            a["gradient"](a["replay"].sample(a["args"].batch_size, minibatch_rng))
            a["optimizer"].step()
        with watch.part("projection"):
            projection.step(a["args"].learning_rate)
        with watch.part("meter, idle"):
            meter.before_step()
            meter.after_step()
        if update % max(1, args.updates // args.probes) == 0:
            with watch.part("meter, measuring"):
                active.before_step()
                active.after_step()
                active.scalars()
            with watch.part("probe"):
                probe.measure()
    return watch, a["args"]


def main(args: Args) -> None:
    """Print medians, cadences and shares."""
    watch, script_args = measure(args)
    update = watch.microseconds("update")
    per_update = {
        "projection": watch.microseconds("projection"),
        "meter, idle": watch.microseconds("meter, idle"),
        "meter, measuring": watch.microseconds("meter, measuring") / script_args.probe.meter_every,
        "probe": watch.microseconds("probe") / script_args.probe.every,
    }
    print(f"update {update:.0f} us (median of {args.updates}; torch {torch.__version__}, one thread)")
    for name, cost in per_update.items():
        once = watch.microseconds(name)
        print(f"{name:<18} {once:>9.1f} us each, {cost:7.2f} us per update = {100 * cost / update:5.2f} %")
    reporting = sum(cost for name, cost in per_update.items() if name != "projection")
    print(f"meter and probe together {100 * reporting / update:.2f} %")
