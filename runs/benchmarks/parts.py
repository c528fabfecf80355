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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from threadpoolctl import threadpool_limits

from elr.fast.flat_adam import FlatAdam
from elr.fast.minatar_q import proved
from elr.measure import Meter
from elr.projection import Projection
from elr.weights import scalable_weights
from envs.evaluation import uniform_observations
from envs.replay.transitions import TransitionMemory

SCRIPT = Path(__file__).resolve().parents[2] / "agents" / "dqn_minatar.py"


@dataclass(frozen=True)
class Args:
    """How much to time."""

    updates: int = 4000
    """timed updates"""
    probes: int = 20
    """timed measurements of probe and meter"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name in ("updates", "probes"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")


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


class Agent(NamedTuple):
    """What takes part in an agent step, as the script builds it for the preset nap."""

    args: Any
    network: Any
    optimizer: FlatAdam
    replay: TransitionMemory
    gradient: Callable[..., object]
    act: Callable[[Any], Any]
    env: VectorEnv[Any, Any, Any]

    @classmethod
    def of(cls, script: dict[str, Any]) -> Agent:
        """Build it from the names that the script defines."""
        args = script["PRESETS"]["nap"].args
        env = args.shift.world(args.env_id, 1)
        network, target = (script["make_network"](env, args, 1, torch.device("cpu")) for _ in range(2))
        optimizer = FlatAdam(network.parameters(), lr=args.learning_rate, eps=args.adam_eps)
        reference = partial(script["td_gradient"], gamma=args.gamma, double_q=args.double_q)
        gradient, act = proved(
            network, target, reference, script["q_values"],
            gamma=args.gamma, double_q=args.double_q, batch_size=args.batch_size,
        )  # fmt: skip
        replay = TransitionMemory(args.buffer_size, env.single_observation_space.shape)
        return cls(args, network, optimizer, replay, gradient, act, env)

    def play(self, obs: Any, rng: np.random.Generator) -> Any:
        """One agent step; a tenth of them are random. Returns the next observation."""
        if rng.random() > 0.1:
            actions = self.act(obs).argmax(1)
        else:
            actions = rng.integers(self.env.single_action_space.n, size=1)
        next_obs, rewards, terminated, _, infos = self.env.step(actions)
        self.replay.add(obs, actions, rewards, infos.get("final_obs", next_obs), terminated)
        return next_obs


def measure(args: Args) -> tuple[Stopwatch, Any]:
    """Time every part, update by update."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    agent, watch = Agent.of(runpy.run_path(str(SCRIPT))), Stopwatch()
    rng, minibatch_rng, flags = np.random.default_rng(0), np.random.default_rng(1), agent.args
    obs, _ = agent.env.reset(seed=0)
    for _ in range(2000):
        obs = agent.play(obs, rng)
    probed = uniform_observations(flags.shift.world(flags.env_id, 1, changing=False), flags.probe.size, 0)
    projection = flags.nap.build(agent.network, inputs=probed)
    assert isinstance(projection, Projection)  # the preset projects
    weights = scalable_weights(agent.network)
    _, probe = flags.probe.build(agent.network, weights, agent.optimizer, probed, agent.network.probed)
    # One meter never measures and the other always does, so that both cases are timed separately.
    meter = Meter(weights, every=10 * args.updates, optimizer=agent.optimizer, nominal_power=1)
    active = Meter(weights, every=1, optimizer=agent.optimizer, nominal_power=1)
    for update in range(args.updates):
        obs = agent.play(obs, rng)
        with watch.part("update"):
            agent.gradient(agent.replay.sample(flags.batch_size, minibatch_rng))
            agent.optimizer.step()
        with watch.part("projection"):
            projection.step(flags.learning_rate)
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
    return watch, flags


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
