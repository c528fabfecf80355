"""Agent steps per second of DQN against CleanRL's `dqn.py`, on your own machine.

    git clone https://github.com/vwxyzjn/cleanrl
    python -m runs bench dqn --cleanrl cleanrl

Both scripts learn MinAtar Breakout with the same network, batch and exploration, at 1, 0.25, 2, 4 and 8 updates per
agent step. The large ratios take most of the time; `--replay-ratios 1 0.25` leaves them out. Ours also projects, with
its meter and probe on; the probe measures every 10,000 updates, so runs of fewer do not include it. Runs alternate
(CleanRL, ours, CleanRL, ours, ...), so that a machine that slows down slows both, and the ratio is taken within each
pair. Start-up and the steps before learning starts are left out on both sides.

CleanRL's NumPy replay buffer, default Adam and TensorBoard logging are unchanged; runs/benchmarks/cleanrl.py says how
its text is made to run. It has no flag for ratios above 1: there, an edit repeats its update in each step.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from runs.benchmarks.cleanrl import (
    ROOT,
    Gradient,
    Pair,
    Substitution,
    child_environment,
    describe,
    gradient_flags,
    overall_rate,
    read_speeds,
    run_script,
    substitute,
    summarise,
    timed_rate,
)

ENV_ID = "MinAtar/Breakout-v1"
# Given to both scripts, because they decide how much work a step is: game, batch, and how often the network acts.
SHARED_FLAGS = (
    *("--env-id", ENV_ID),
    *("--batch-size", "32"),
    *("--buffer-size", "100000"),
    *("--start-e", "0.1"),
    *("--end-e", "0.1"),
)


@dataclass(frozen=True)
class Args:
    """What to measure, and for how long."""

    cleanrl: Path
    """a clone of CleanRL"""
    steps: int = 10_000
    """agent steps per measurement, after learning has started"""
    repeats: int = 5
    """interleaved pairs per replay ratio"""
    replay_ratios: tuple[float, ...] = (1.0, 0.25, 2.0, 4.0, 8.0)
    """updates per agent step, k or 1/k for a whole number k"""
    learning_starts: int = 1000
    """agent steps before the first update, which are not measured"""
    threads: int = 1
    """threads of both scripts; 0 means each script's default"""
    preset: str = "nap"
    """preset of agents/dqn_minatar.py: baseline is CleanRL's algorithm, nap adds projection; meter and probe are on"""
    gradient: Gradient = "default"
    """--gradient of agents/dqn_minatar.py; compiled needs the extra fast"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, before the first run."""
        if not (self.cleanrl / "cleanrl" / "dqn.py").is_file():
            raise ValueError(f"--cleanrl must be the root of a CleanRL clone, but {self.cleanrl} has no cleanrl/dqn.py")
        gradient_flags(self.gradient)
        for name, least in (("steps", 1), ("repeats", 1), ("learning_starts", 1), ("threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        for ratio in self.replay_ratios:
            cadence(ratio)


class MinAtarQNetwork(nn.Module):
    """The Q network of `agents/dqn_minatar.py` with the constructor that CleanRL's script calls.

    Conv(C, 16, 3x3) - LayerNorm - ReLU - Linear(1024, 128) - LayerNorm - ReLU - Linear(128, A); no bias before a norm.
    """

    def __init__(self, env: VectorEnv) -> None:  # type: ignore[type-arg]
        """Read C and A from the vector environment's single spaces."""
        super().__init__()
        channels = env.single_observation_space.shape[-1]
        self.network = nn.Sequential(
            nn.Conv2d(channels, 16, kernel_size=3, bias=False),
            nn.LayerNorm([16, 8, 8]),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1024, 128, bias=False),
            nn.LayerNorm(128),
            nn.ReLU(),
            nn.Linear(128, int(env.single_action_space.n)),
        )

    def forward(self, obs: Tensor) -> Tensor:
        """Map observations [B, 10, 10, C], of any dtype, to Q values [B, A]."""
        return self.network(obs.permute(0, 3, 1, 2).float())


def cadence(replay_ratio: float) -> tuple[int, int]:
    """CleanRL's form of the ratio: agent steps from one update to the next, and updates at once. One of them is 1.

    Raises:
        ValueError: the ratio is neither k nor 1/k for a whole k.
    """
    fits = 0 < replay_ratio < math.inf
    if fits:
        steps, updates = max(1, round(1 / replay_ratio)), max(1, round(replay_ratio))
        fits = math.isclose(updates / steps, replay_ratio)
    if not fits:
        raise ValueError(
            "--replay-ratios must be k or 1/k for a whole number k (8, 1, 0.25, ...), as CleanRL's script makes k "
            f"updates in each step or one every k steps, got {replay_ratio}"
        )
    return steps, updates


def substitutions(threads: int, updates: int = 1) -> tuple[Substitution, ...]:
    """The edits that make CleanRL's dqn.py run on Gymnasium 1.x and MinAtar, time itself, and make several updates at
    once."""
    set_threads = f"\ntorch.set_num_threads({threads})" if threads else ""
    # The updates of a step that CleanRL logs are all logged: one in a hundred, as at ratio 1.
    several = "if global_step % args.train_frequency == 0:", f"for _ in range({updates}):"
    return (
        *([Substitution("updates in a step", *several)] if updates > 1 else []),
        Substitution(
            "imports, registration and threads",
            "from cleanrl_utils.buffers import ReplayBuffer",
            "from cleanrl_utils.buffers import ReplayBuffer\n"
            "import minatar.gym\n"
            "from runs.benchmarks.cleanrl import timed_range\n"
            "from runs.benchmarks.dqn import MinAtarQNetwork as QNetwork\n"
            f"minatar.gym.register_envs(){set_threads}",
        ),
        Substitution("network", "class QNetwork(nn.Module):", "class UnusedCartPoleNetwork(nn.Module):"),
        Substitution(
            "autoreset mode",
            "for i in range(args.num_envs)]\n    )",
            "for i in range(args.num_envs)],\n        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,\n    )",
        ),
        Substitution(
            "timer",
            "for global_step in range(args.total_timesteps):",
            "for global_step in timed_range(args.total_timesteps, start=args.learning_starts + 1):",
        ),
        Substitution(
            # Under SAME_STEP final_info is one dictionary of arrays [num_envs], and the script asserts num_envs == 1.
            "episodic return",
            'for info in infos["final_info"]:',
            'for info in [{"episode": {k: v[0] for k, v in infos["final_info"]["episode"].items()}}]:',
        ),
        Substitution("final observation", 'infos["final_observation"][idx]', 'infos["final_obs"][idx]'),
    )


def measure_cleanrl(args: Args, replay_ratio: float) -> float:
    """Agent steps per second of the patched dqn.py while it learns."""
    text = (args.cleanrl / "cleanrl" / "dqn.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "cleanrl_dqn.py"
        frequency, updates = cadence(replay_ratio)
        script.write_text(substitute(text, substitutions(args.threads, updates)), encoding="utf-8")
        flags = ["--train-frequency", str(frequency), *SHARED_FLAGS]
        flags += ["--learning-starts", str(args.learning_starts)]
        flags += ["--total-timesteps", str(args.learning_starts + 1 + args.steps)]
        return timed_rate(run_script([script, *flags], Path(name), child_environment(args.threads, args.cleanrl)))


def measure_ours(args: Args, replay_ratio: float, script: Path = ROOT / "agents" / "dqn_minatar.py") -> float:
    """Agent steps per second of our script while it learns, from the charts/SPS it records."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "run"
        flags = [args.preset, "--replay-ratio", str(replay_ratio), "--directory", str(directory), *SHARED_FLAGS]
        flags += gradient_flags(args.gradient)
        flags += ["--eval-every", "0"]  # CleanRL's script evaluates nothing while it learns
        flags += ["--threads", str(args.threads)] if args.threads else []
        flags += ["--learning-starts", str(args.learning_starts)]
        flags += ["--total-timesteps", str(args.learning_starts + args.steps)]
        run_script([script, *flags], Path(name), child_environment(args.threads, args.cleanrl))
        return overall_rate(read_speeds(directory / "scalars.csv"), after=args.learning_starts)


def measure_pairs(args: Args, replay_ratio: float) -> Iterator[Pair]:
    """Yield one interleaved pair after another."""
    for _ in range(args.repeats):
        yield Pair(cleanrl=measure_cleanrl(args, replay_ratio), ours=measure_ours(args, replay_ratio))


def main(args: Args) -> None:
    """Measure and print, pair by pair."""
    threads = f"{args.threads} thread(s)" if args.threads else "default threads"
    print(f"agent steps per second, {ENV_ID}, {threads}, torch {torch.__version__}, {args.steps} steps each")
    for ratio in args.replay_ratios:
        print(f"replay ratio {ratio:g}", flush=True)
        pairs: list[Pair] = []
        for pair in measure_pairs(args, ratio):
            print(describe(pair), flush=True)
            pairs.append(pair)
        print(summarise(pairs), flush=True)
