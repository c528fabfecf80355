"""What each method against loss of plasticity costs: time of an update with it over that without, on your own machine.

    python -m runs bench interventions

Two updates are timed: that of `agents/ppo_control.py` (two networks of three hidden layers of 256, minibatches of 32)
and that of `agents/dqn_minatar.py` (convolution and 128 hidden units with LayerNorm, batches of 32), each with loss,
gradient and Adam's step. Every method has the constants of its preset. Blocks of updates come in pairs, one without and
one with the method, and the order within a pair alternates. The row "plain" is a pair without any method: it shows what
the ratio is worth. DQN's gradient is the one that the script would choose: written by hand, or autograd for
continual-backprop and crelu, which is a part of what these cost. Methods that act at a change of the task or on a
trigger cost nothing between; one of these events is timed by itself.
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from elr.fast.flat_adam import FlatAdam
from elr.fast.minatar_q import proved
from elr.interventions import policy_divergence, value_divergence
from elr.interventions.flags import BASELINES, Q_BASELINES, Q_CHURN, InterveneArgs
from elr.interventions.methods import Methods
from elr.projection import NoProjection
from runs.analysis.statistics import student_interval
from runs.analysis.tables import markdown

AGENTS = Path(__file__).resolve().parents[2] / "agents"
NAMES = ("plain", *BASELINES, "crelu")
CPU = torch.device("cpu")
Update = Callable[[], None]
Event = Callable[[], bool]


@dataclass(frozen=True)
class Args:
    """How long to measure."""

    methods: tuple[str, ...] = NAMES
    """presets to measure; plain is the same update twice"""
    updates: int = 1_000
    """updates in a block; redo acts once in 1,000"""
    repeats: int = 5
    """pairs of blocks of every method; an interval needs 2"""
    threads: int = 1
    """threads of torch and of NumPy's linear algebra"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name, least in (("updates", 2), ("repeats", 2), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if unknown := [name for name in self.methods if name not in NAMES]:
            raise ValueError(f"--methods must be some of {', '.join(NAMES)}, got {', '.join(unknown)}")


def activation_of(name: str) -> dict[str, str]:
    """The flag of a preset that is no method of --intervene."""
    return {"activation": "crelu"} if name == "crelu" else {}


def mlp_update(script: dict[str, Any], name: str) -> tuple[Update, Event]:
    """One update of PPO with a method, on networks of its own and made-up samples; and one event of it."""
    rng, method = np.random.default_rng(0), BASELINES.get(name, InterveneArgs())
    args = script["Args"](**activation_of(name))
    env = args.shift.world(args.env_id, 1)  # CartPole: 4 inputs, 2 actions
    network = script["make_network"](env, args, 0, CPU)
    optimizer = FlatAdam(network.parameters(), lr=args.learning_rate, eps=args.adam_eps)
    obs = torch.from_numpy(rng.normal(size=(800, 4)).astype(np.float32))
    batch = {
        "obs": obs[:32], "actions": torch.from_numpy(rng.integers(2, size=32)), "logprobs": torch.full((32,), -0.7),
        "advantages": torch.from_numpy(rng.normal(size=32).astype(np.float32)), "returns": torch.ones(32),
    }  # fmt: skip
    methods = method.build(
        network, optimizer, NoProjection(), layers=network.probed, heads=network.heads, inputs=obs[:2],
        fresh=fresh(script, env, args, rng), divergence=policy_divergence, batch=32,
        churn={"block": 125, "least": 1.0},
    )  # fmt: skip
    reference = partial(drawn, obs, rng)

    def update() -> None:
        loss, parts = script["ppo_loss"](network, batch, args)
        optimizer.zero_grad()
        loss.backward()
        if method.on:
            methods.before_step(reference, parts["policy_loss"].item())
        optimizer.step()
        methods.after_step()

    return update, partial(event, methods, reference)


def cnn_update(script: dict[str, Any], name: str) -> tuple[Update, Event]:
    """The same of DQN; the rewards and observations are made up."""
    rng, method = np.random.default_rng(0), Q_BASELINES.get(name, InterveneArgs())
    args = script["Args"](**activation_of(name))
    env = args.shift.world(args.env_id, 1)  # Breakout: 4 channels, 3 actions
    network, target = (script["make_network"](env, args, 0, CPU) for _ in range(2))
    optimizer = FlatAdam(network.parameters(), lr=args.learning_rate, eps=args.adam_eps)
    many = rng.integers(2, size=(800, 4, 10, 10)).astype(np.uint8)
    obs, size = torch.from_numpy(many), args.batch_size
    batch = [
        many[:size], rng.integers(3, size=size), rng.normal(size=size).astype(np.float32), many[-size:],
        np.zeros(size, np.float32),
    ]  # fmt: skip
    loss_of = partial(script["td_gradient"], gamma=args.gamma, double_q=args.double_q)
    gradient: Callable[[list[np.ndarray]], tuple[Any, Any]] = partial(loss_of, network, target)
    if not method.watches and name != "crelu":  # as the script chooses
        options = {"gamma": args.gamma, "double_q": args.double_q, "batch_size": size}
        gradient, _ = proved(network, target, loss_of, script["q_values"], **options)
    methods = method.build(
        network, optimizer, NoProjection(), layers=network.probed, heads=["head"], inputs=obs[:2],
        fresh=fresh(script, env, args, rng), divergence=value_divergence, batch=size, churn=Q_CHURN,
    )  # fmt: skip
    reference = partial(drawn, obs, rng)

    @torch.no_grad()
    def update() -> None:
        loss, _ = gradient(batch)
        if method.on:
            methods.before_step(reference, float(loss))
        optimizer.step()
        methods.after_step()

    return update, partial(event, methods, reference)


def drawn(obs: Tensor, rng: np.random.Generator, count: int) -> Tensor:
    """So many of these observations."""
    return obs[torch.from_numpy(rng.integers(len(obs), size=count))]


def fresh(script: dict[str, Any], env: Any, args: Any, rng: np.random.Generator) -> Callable[[], nn.Module]:
    """Makes newly initialised networks."""
    return lambda: script["make_network"](env, args, int(rng.integers(2**32)), CPU)


def event(methods: Methods, reference: Callable[[int], Tensor]) -> bool:
    """The task changes, or a trigger fires; whether weights were changed."""
    return methods.react(reference, changed=True, fired=True)


UPDATES = {"MLP": ("ppo_control", mlp_update), "CNN": ("dqn_minatar", cnn_update)}


def seconds(call: Callable[[], object], count: int) -> float:
    """Of one call, as the mean of so many."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def measure(make: Callable[[str], tuple[Update, Event]], args: Args) -> dict[str, list[str]]:
    """The three columns of one network, by method."""
    plain, _ = make("plain")
    made = {name: make(name) for name in args.methods}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    events: dict[str, list[float]] = {name: [] for name in made}
    for update in (plain, *(update for update, _ in made.values())):
        seconds(update, 20)
    for i in range(args.repeats):
        for name, (update, act) in made.items():
            both = {call: seconds(call, args.updates) for call in ((plain, update) if i % 2 else (update, plain))}
            times[name].append((both[plain], both[update]))
            events[name].append(seconds(act, 1))
    columns = {}
    for name, pairs in times.items():
        mean, half = student_interval([slow / fast for fast, slow in pairs])
        acts = name in BASELINES and BASELINES[name].acts_at in ("change", "trigger")
        columns[name] = [
            f"{1e6 * median(slow for _, slow in pairs):.0f}",
            f"{mean:.2f} [{mean - half:.2f}, {mean + half:.2f}]",
            f"{1e3 * median(events[name]):.1f}" if acts else "–",
        ]
    return columns


def main(args: Args) -> None:
    """Measure and print a table."""
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    columns = {
        network: measure(partial(make, runpy.run_path(str(AGENTS / f"{name}.py"))), args)
        for network, (name, make) in UPDATES.items()
    }
    heads = [
        f"{network}: {what}"
        for network in columns
        for what in ("microseconds an update", "over plain [95 %]", "an event, milliseconds")
    ]
    rows = [[name, *(cell for one in columns.values() for cell in one[name])] for name in args.methods]
    print(markdown(("method", *heads), rows))
    print(
        f"n = {args.repeats} pairs of blocks of {args.updates} updates, Student's interval; {args.threads} thread(s), "
        f"torch {torch.__version__}"
    )
