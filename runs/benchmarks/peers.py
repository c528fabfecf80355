"""Agent steps per second next to Stable-Baselines3, SBX, and one compiled loop in JAX, on your own machine.

    pip install -e ".[peers]"
    python -m runs bench peers
    python -m runs bench peers --peers jax --cases dqn:1 --repeats 3 --gradient compiled

DQN and PPO learn MinAtar Breakout with the same network, batches and numbers of updates. Ours also projects and
records, with its meter and probe on. In each round ours and the peers run one after the other, and ratios are taken
within a round, so that a machine that slows down slows all of them. Start-up, compilation and what comes before
learning are left out on all sides. `jax` is runs/benchmarks/peer_jax.py: game, acting and update in one compiled
function.

What still differs: SB3's and SBX's DQN have the Huber loss, and SB3 clips gradients; `jax` takes the end by a time
limit for a final state, where ours bootstraps, and gymnax's game has no sticky actions and a limit of 1,000 steps.
CleanRL's scripts have `bench dqn` and `bench ppo`.
"""

from __future__ import annotations

import importlib.util
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from runs.benchmarks.cleanrl import (
    ROOT,
    Gradient,
    child_environment,
    gradient_flags,
    overall_rate,
    read_speeds,
    run_script,
    spread,
    timed_rate,
)
from runs.recording import RunError

Peer = Literal["sb3", "sbx", "jax"]
NEEDS = {"sb3": "stable_baselines3", "sbx": "sbx", "jax": "gymnax"}
"""the module whose absence means that a peer is not installed"""


@dataclass(frozen=True)
class Args:
    """What to measure, and for how long."""

    peers: tuple[Peer, ...] = ("sb3", "sbx", "jax")
    """whom to compare with"""
    cases: tuple[str, ...] = ("dqn:1", "dqn:0.25", "ppo:8", "ppo:128")
    """dqn:RATIO, updates per agent step, k or 1/k; ppo:N, environments"""
    seconds: float = 20.0
    """about how long each measurement takes, by its first round; an iteration of PPO at least"""
    repeats: int = 5
    """rounds"""
    preset: str = "nap"
    """preset of our scripts; meter and probe are on"""
    gradient: Gradient = "default"
    """--gradient of our scripts; compiled needs the extra fast"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, before the first run."""
        if self.repeats < 1 or not 0 < self.seconds < math.inf:
            raise ValueError("--repeats must be at least 1, and --seconds a number above 0")
        for case in self.cases:
            parts(case)
        gradient_flags(self.gradient)
        if missing := [peer for peer in self.peers if importlib.util.find_spec(NEEDS[peer]) is None]:
            raise ValueError(f'--peers {missing[0]} is not installed: pip install -e ".[peers]", or leave it out')


def parts(case: str) -> tuple[str, str]:
    """Algorithm and setting of `dqn:RATIO` or `ppo:N`.

    Raises:
        ValueError: it is neither.
    """
    what, _, setting = case.partition(":")
    try:
        number = float(setting)
        fits = (what == "dqn" and number > 0 and max(number, 1 / number).is_integer()) or (
            what == "ppo" and number >= 1 and setting.isdecimal()
        )
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"--cases are dqn:RATIO with a ratio of k or 1/k, or ppo:N, got {case}")
    return what, setting


STEPS = {"dqn": 3_000, "ppo": 20_000}
"""agent steps of the first round, from which --seconds decides those of the others"""


def measure(who: Peer | Literal["ours"], case: str, steps: int, preset: str, gradient: Gradient = "default") -> float:
    """Agent steps per second while it learns."""
    what, setting = parts(case)
    with tempfile.TemporaryDirectory() as name:
        environment = child_environment(1, ROOT)
        if who != "ours":
            module = ["runs.benchmarks.peer_jax"] if who == "jax" else ["runs.benchmarks.peer_sb3", who]
            words = ["-W", "ignore", "-m", *module, what, setting, str(steps)]
            return timed_rate(run_script(words, Path(name), environment))
        directory = Path(name) / "run"
        flags = [preset, "--env-id", "MinAtar/Breakout-v1", "--directory", str(directory), "--eval-every", "0"]
        flags += gradient_flags(gradient)
        if what == "dqn":
            starts = 1_000
            flags += ["--replay-ratio", setting, "--start-e", "0.1", "--end-e", "0.1", "--buffer-size", "100000"]
            flags += ["--learning-starts", str(starts), "--total-timesteps", str(starts + max(2_000, steps))]
        else:
            starts = int(setting) * 128
            flags += ["--num-envs", setting, "--num-steps", "128", "--update-epochs", "4", "--num-minibatches", "4"]
            flags += ["--total-timesteps", str(starts * (1 + max(1, steps // starts)))]
        run_script([ROOT / "agents" / f"{what}_minatar.py", *flags], Path(name), environment)
        return overall_rate(read_speeds(directory / "scalars.csv"), after=starts)


def rounds(args: Args, case: str) -> dict[str, list[float]]:
    """Steps per second by name, of each round; the first round, which decides how long the others take, is left out."""
    rates: dict[str, list[float]] = {who: [] for who in ("ours", *args.peers)}
    steps = dict.fromkeys(rates, STEPS[parts(case)[0]])
    for repeat in range(args.repeats + 1):
        for who in rates:
            rate = measure(who, case, steps[who], args.preset, args.gradient)  # type: ignore[arg-type]
            if repeat == 0:
                steps[who] = max(1_000, int(rate * args.seconds))
            else:
                rates[who].append(rate)
        if repeat:
            print(f"  {case}, round {repeat}: " + ", ".join(f"{w} {r[-1]:,.0f}" for w, r in rates.items()), flush=True)
    return rates


def main(args: Args) -> None:
    """Measure and print, round by round, then a table."""
    pinned = hasattr(os, "sched_setaffinity")  # JAX has no flag that keeps it to one thread; the children inherit this
    if pinned:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    lines = ["| case | steps per second: ours | " + " | ".join(f"{p}, ours / {p}" for p in args.peers) + " |"]
    lines.append("|---" * (2 + len(args.peers)) + "|")
    for case in args.cases:
        try:
            rates = rounds(args, case)
        except RuntimeError as error:
            raise RunError(str(error)) from error
        ours = rates["ours"]
        cells = [
            f"{median(rates[peer]):,.0f}, {spread([a / b for a, b in zip(ours, rates[peer], strict=True)], 2)}"
            for peer in args.peers
        ]
        lines.append(f"| {case} | {spread(ours, 0)} | " + " | ".join(cells) + " |")
    where = "one core" if pinned else "all cores for JAX, which cannot be kept to one on this system"
    print(f"median [smallest, largest] of {args.repeats} rounds, {where}")
    print("\n".join(lines))
