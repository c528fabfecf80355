"""Agent steps per second against CleanRL's `dqn.py`, on your own machine.

    git clone https://github.com/vwxyzjn/cleanrl
    python -m runs.benchmark --cleanrl cleanrl

Both scripts learn MinAtar Breakout with the same network, batch and exploration, at one update per agent step and at
one per four. Ours projects meanwhile, its meter and probe on; the probe's turn comes every 10,000 updates, so that
shorter runs do not see it. Runs alternate (CleanRL, ours, CleanRL, ours, ...), so that a machine that slows down slows
both, and the ratio is taken within each pair. Start-up and the steps before learning starts are left out on both sides.

None of CleanRL's code lies here. The clone's text is read, and the substitutions below, each of which must match
exactly once, make it run on Gymnasium 1.x and MinAtar. Its NumPy replay buffer, its default Adam and its TensorBoard
logging stay as they are. Written against CleanRL fe8d8a0 (April 2026).
"""

import csv
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import tyro
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
ENV_ID = "MinAtar/Breakout-v1"
# Told to both scripts, because they set how much work a step is: game, batch, and how often the network acts.
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
    replay_ratios: tuple[float, ...] = (1.0, 0.25)
    """updates per agent step; CleanRL can do 1/k"""
    learning_starts: int = 1000
    """agent steps before the first update, not measured"""
    threads: int = 1
    """threads of both scripts; 0 leaves each as it ships"""
    preset: str = "nap"
    """preset of agents/dqn_minatar.py; baseline is CleanRL's algorithm, nap projects on top; meter and probe are on"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, before the first minute is spent."""
        if not (self.cleanrl / "cleanrl" / "dqn.py").is_file():
            raise ValueError(f"--cleanrl {self.cleanrl} holds no cleanrl/dqn.py; give the root of a CleanRL clone")
        for name, least in (("steps", 1), ("repeats", 1), ("learning_starts", 1), ("threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give at least {least}")
        for ratio in self.replay_ratios:
            train_frequency(ratio)


class Substitution(NamedTuple):
    """One named edit of a source text: `old`, found exactly once, becomes `new`."""

    name: str
    old: str
    new: str


class Pair(NamedTuple):
    """Agent steps per second of two runs made one after the other."""

    cleanrl: float
    ours: float


class MinAtarQNetwork(nn.Module):
    """The Q network of `agents/dqn_minatar.py`, behind the constructor that CleanRL's script calls.

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


def timed_range(stop: int, start: int, clock: Callable[[], float] = time.perf_counter) -> Iterator[int]:
    """Yield 0 ... stop - 1, and at the end print the seconds that the steps from `start` on took.

    Raises:
        ValueError: no step would be timed.
    """
    if not 0 <= start < stop:
        raise ValueError(f"timing from step {start} of {stop} times nothing; give more steps")
    began = math.nan
    for step in range(stop):
        if step == start:
            began = clock()
        yield step
    print(f"timed steps={stop - start} seconds={clock() - began!r}", flush=True)


def timed_rate(output: str) -> float:
    """Steps per second from the one line that `timed_range` printed among a script's output.

    Raises:
        ValueError: there is not exactly one such line.
    """
    found = re.findall(r"^timed steps=(\d+) seconds=(\S+)$", output, flags=re.MULTILINE)
    if len(found) != 1:
        raise ValueError(f"expected one 'timed steps=' line in the script's output, found {len(found)}")
    steps, seconds = found[0]
    return int(steps) / float(seconds)


def train_frequency(replay_ratio: float) -> int:
    """Agent steps per update, CleanRL's way of saying 1 / replay_ratio.

    Raises:
        ValueError: the ratio is not 1/k for a whole k.
    """
    frequency = round(1 / replay_ratio) if replay_ratio > 0 else 0
    if frequency < 1 or not math.isclose(frequency * replay_ratio, 1.0):
        raise ValueError(f"replay ratio {replay_ratio} is not 1/k, and CleanRL updates every k steps; try 1, 0.5, 0.25")
    return frequency


def substitutions(threads: int) -> tuple[Substitution, ...]:
    """The edits that make CleanRL's dqn.py run on Gymnasium 1.x and MinAtar, and time itself."""
    set_threads = f"\ntorch.set_num_threads({threads})" if threads else ""
    return (
        Substitution(
            "imports, registration and threads",
            "from cleanrl_utils.buffers import ReplayBuffer",
            "from cleanrl_utils.buffers import ReplayBuffer\n"
            "import minatar.gym\n"
            "from runs.benchmark import MinAtarQNetwork as QNetwork, timed_range\n"
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


def substitute(text: str, edits: Iterable[Substitution], name: str = "dqn.py") -> str:
    """Apply the edits in order; `name` is the text's, for the message.

    Raises:
        ValueError: an edit's text does not stand exactly once in what the edits before it left.
    """
    for edit in edits:
        count = text.count(edit.old)
        if count != 1:
            raise ValueError(
                f"substitution {edit.name!r} needs {edit.old!r} exactly once in CleanRL's {name} and found it {count} "
                "times; the clone has moved on from the version this was written for: check out fe8d8a0"
            )
        text = text.replace(edit.old, edit.new)
    return text


def read_speeds(table: Path) -> list[tuple[int, float]]:
    """The (step, steps per second) rows of charts/SPS in a run's scalars.csv, in order.

    Raises:
        ValueError: the table lacks a column, or holds no charts/SPS.
    """
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = {"step", "tag", "value"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{table} has no column {sorted(missing)}; it has {reader.fieldnames}")
        rows = [(int(row["step"]), float(row["value"])) for row in reader if row["tag"] == "charts/SPS"]
    if not rows:
        raise ValueError(f"{table} has no row of charts/SPS; run longer than one logging interval")
    return rows


def overall_rate(speeds: Sequence[tuple[int, float]], after: int) -> float:
    """Steps per second over all logging intervals that began at step `after` or later.

    sum_i n_i / sum_i (n_i / r_i): the harmonic mean, weighted by the steps n_i of each interval at rate r_i. The first
    row only marks where the second interval begins, and the interval in which learning starts is left out.

    Raises:
        ValueError: no interval lies entirely after `after`.
    """
    steps, seconds = 0, 0.0
    for (begin, _), (end, rate) in pairwise(speeds):
        if begin >= after:
            steps += end - begin
            seconds += (end - begin) / rate
    if steps == 0:
        raise ValueError(f"no interval of charts/SPS lies after step {after}; measure more steps")
    return steps / seconds


def child_environment(threads: int, clone: Path) -> dict[str, str]:
    """The environment of both scripts: on the CPU, with `threads` threads, and the clone importable."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT}{os.pathsep}{clone.resolve()}"}
    if threads:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return environment


def run_script(command: Sequence[str | Path], directory: Path, environment: dict[str, str]) -> str:
    """Run a Python script in `directory` and return what it printed.

    Raises:
        RuntimeError: it failed; the message ends with the last lines of its errors.
    """
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} exited with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def measure_cleanrl(args: Args, replay_ratio: float) -> float:
    """Agent steps per second of the patched dqn.py while it learns."""
    text = (args.cleanrl / "cleanrl" / "dqn.py").read_text()
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "cleanrl_dqn.py"
        script.write_text(substitute(text, substitutions(args.threads)))
        flags = ["--train-frequency", str(train_frequency(replay_ratio)), *SHARED_FLAGS]
        flags += ["--learning-starts", str(args.learning_starts)]
        flags += ["--total-timesteps", str(args.learning_starts + 1 + args.steps)]
        return timed_rate(run_script([script, *flags], Path(name), child_environment(args.threads, args.cleanrl)))


def measure_ours(args: Args, replay_ratio: float, script: Path = ROOT / "agents" / "dqn_minatar.py") -> float:
    """Agent steps per second of our script while it learns, from the charts/SPS it records."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "run"
        flags = [args.preset, "--replay-ratio", str(replay_ratio), "--directory", str(directory), *SHARED_FLAGS]
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


def describe(pair: Pair) -> str:
    """One line on one pair."""
    return f"  CleanRL {pair.cleanrl:7.0f}   ours {pair.ours:7.0f}   ratio {pair.ours / pair.cleanrl:.2f}"


def summarise(pairs: Sequence[Pair]) -> str:
    """Median, least and greatest of both speeds and of the ratio within a pair.

    Raises:
        ValueError: there is no pair.
    """
    if not pairs:
        raise ValueError("no pair was measured; give --repeats 1 or more")

    def spread(values: list[float], digits: int) -> str:
        return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"

    return (
        f"  median [min, max] of {len(pairs)}: CleanRL {spread([p.cleanrl for p in pairs], 0)}, "
        f"ours {spread([p.ours for p in pairs], 0)}, ratio {spread([p.ours / p.cleanrl for p in pairs], 2)}"
    )


def main(args: Args) -> None:
    """Measure and print, pair by pair."""
    threads = f"{args.threads} thread(s)" if args.threads else "threads as each script ships"
    print(f"agent steps per second, {ENV_ID}, {threads}, torch {torch.__version__}, {args.steps} steps each")
    for ratio in args.replay_ratios:
        print(f"replay ratio {ratio:g}", flush=True)
        pairs: list[Pair] = []
        for pair in measure_pairs(args, ratio):
            print(describe(pair), flush=True)
            pairs.append(pair)
        print(summarise(pairs), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
