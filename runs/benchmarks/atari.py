"""Speed on Atari against CleanRL, on your own machine: environments, DQN, and parts of Rainbow.

    git clone https://github.com/vwxyzjn/cleanrl
    python -m runs bench atari --cleanrl cleanrl
    python -m runs bench atari --cleanrl cleanrl --what dqn --games Pong --threads 1

envs: agent steps per second of random play. CleanRL's stack of wrappers in a SyncVectorEnv against
`envs.worlds.ScreenWorld`, in ale-py's threads and in Python. dqn: agent steps per second of CleanRL's `dqn_atari.py`
and of `agents/dqn_atari.py`, preset `baseline`, while they learn: same network, batch and exploration, one update in
four steps. parts: microseconds per call of what CleanRL's `rainbow_atari.py` and `agents/rainbow_atari.py` both do, on
one thread, each with its own defaults: new noise for a whole network; the same with a forward pass; the projection onto
the atoms; prioritised sampling with importance weights and without frames; and updating priorities.

Both sides play without sticky actions, start a game with up to 30 no-ops, and see lost lives. At the start of a life
CleanRL's wrappers play two or three steps, FIRE among them, that are not counted; ours leave this to the agent.
Measurements alternate (CleanRL, ours, CleanRL, ours, ...), so that a machine that slows down slows both, and the ratio
is taken within each pair. Start-up, the steps before learning starts, and our checkpoints are left out.

runs/benchmarks/cleanrl.py says how CleanRL's text is made to run. Its wrappers need OpenCV, which nothing here depends
on: `pip install opencv-python-headless`.
"""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from threadpoolctl import threadpool_limits

from envs.replay import FrameMemory, Priorities
from envs.worlds import ScreenWorld
from runs.benchmarks import dqn
from runs.benchmarks.cleanrl import (
    ROOT,
    Pair,
    Substitution,
    child_environment,
    describe,
    overall_rate,
    read_speeds,
    run_script,
    substitute,
    summarise,
    timed_rate,
)
from runs.benchmarks.timing import rate
from runs.recording import RunError

EPSILON = 0.05
BATCH = 32
LOG_EVERY = 100  # agent steps; fixed in CleanRL's scripts
ACTIONS = 6  # Pong's, for the networks whose parts are timed
CUT = "# ---- cut here ----\n"


@dataclass(frozen=True)
class Args:
    """What to measure, and for how long."""

    cleanrl: Path
    """a clone of CleanRL"""
    what: tuple[Literal["envs", "dqn", "parts"], ...] = ("envs", "dqn", "parts")
    """what to measure"""
    games: tuple[str, ...] = ("Pong", "Breakout")
    """Atari games by ale-py's names (envs, dqn)"""
    repeats: int = 5
    """interleaved pairs (envs, dqn)"""
    num_envs: int = 32
    """environments that are stepped together (envs)"""
    env_threads: tuple[int, ...] = (2, 0)
    """threads of our environments, one measurement each; 0 means in Python (envs)"""
    env_steps: int = 100
    """steps of all environments per measurement (envs)"""
    threads: tuple[int, ...] = (1, 2)
    """threads of both scripts, one measurement each (dqn)"""
    bf16: bool = False
    """run ours with --bf16; CleanRL has no such flag (dqn)"""
    steps: int = 2_000
    """agent steps per measurement, after learning has started (dqn)"""
    learning_starts: int = 1_000
    """agent steps before the first update, which are not measured (dqn)"""
    blocks: int = 15
    """interleaved pairs of blocks (parts)"""
    calls: int = 20
    """calls in a block (parts)"""
    capacity: int = 1_000_000
    """transitions in the prioritised memory (parts)"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, before the first run."""
        for name in ("dqn_atari.py", "rainbow_atari.py"):
            if not (self.cleanrl / "cleanrl" / name).is_file():
                raise ValueError(
                    f"--cleanrl must be the root of a CleanRL clone, but {self.cleanrl} has no cleanrl/{name}"
                )
        if self.bf16 and "dqn" not in self.what:
            raise ValueError(f"--bf16 has no effect with --what {' '.join(self.what)}: only dqn runs in bfloat16")
        least = {
            "repeats": 1, "num_envs": 1, "env_steps": 1, "steps": LOG_EVERY, "learning_starts": LOG_EVERY, "blocks": 1,
            "calls": 1, "capacity": 1_000,
        }  # fmt: skip
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {value}, got {getattr(self, name)}")
        for name in ("steps", "learning_starts"):
            if getattr(self, name) % LOG_EVERY:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be a multiple of {LOG_EVERY} (the interval of our speed), "
                    f"got {getattr(self, name)}"
                )
        for name in ("what", "games", "env_threads", "threads"):
            if not getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')} is empty: give at least one value, or leave it out")
        if min(self.threads) < 1 or min(self.env_threads) < 0:
            raise ValueError(
                f"--threads must be >= 1 and --env-threads >= 0, got {self.threads} and {self.env_threads}"
            )
        if {"envs", "dqn"} & set(self.what) and find_spec("cv2") is None:
            raise ValueError("CleanRL's wrappers need OpenCV: pip install opencv-python-headless (or --what parts)")


class Part(NamedTuple):
    """The same work on both sides."""

    name: str
    cleanrl: Callable[[], object]
    ours: Callable[[], object]


# ---------------------------------------------------------------------------------------------------- CleanRL's text


def dqn_substitutions(threads: int) -> tuple[Substitution, ...]:
    """The edits that make CleanRL's dqn_atari.py run on Gymnasium 1.x, and time itself."""
    same = {edit.name: edit for edit in dqn.substitutions(threads)}  # where its dqn.py has the same text
    return (
        Substitution(
            "imports, registration and threads",
            "from cleanrl_utils.buffers import ReplayBuffer",
            "from cleanrl_utils.buffers import ReplayBuffer\n"
            "import ale_py\n"
            "from runs.benchmarks.cleanrl import timed_range\n"
            f"gym.register_envs(ale_py)\ntorch.set_num_threads({threads})",
        ),
        Substitution("grey frames", "gym.wrappers.GrayScaleObservation(", "gym.wrappers.GrayscaleObservation("),
        Substitution("stack of frames", "gym.wrappers.FrameStack(", "gym.wrappers.FrameStackObservation("),
        same["autoreset mode"],
        same["timer"],
        Substitution(
            # Under SAME_STEP final_info is one dictionary of arrays [num_envs], and the script asserts num_envs == 1.
            # At the end of a life no episode of the game ends.
            "episodic return",
            'for info in infos["final_info"]:',
            "for info in [{k: {name: v[0] for name, v in e.items()} "
            'for k, e in infos["final_info"].items() if k == "episode"}]:',
        ),
        same["final observation"],
    )


RAINBOW_SUBSTITUTIONS = (
    # `{} and {...}` is the empty dictionary, and the other one is never built.
    Substitution("sampling without frames", "samples = {\n", "samples = {} and {\n"),
    Substitution("sample without frames", "return PrioritizedBatch(**samples)", "return samples"),
    Substitution(
        "projection, its beginning",
        "                    # compute the n-step Bellman update.\n",
        f"{CUT}                    # compute the n-step Bellman update.\n",
    ),
    Substitution(
        "projection, its end",
        "                dist = q_network(data.observations)",
        f"{CUT}                dist = q_network(data.observations)",
    ),
)


def with_projection(text: str) -> str:
    """CleanRL's rainbow_atari.py, in which the projection of its training loop is also a function.

    `project(args, data, support, q_network, next_pmfs)` returns the target distribution.
    """
    before, loop, after = substitute(text, RAINBOW_SUBSTITUTIONS, "rainbow_atari.py").split(CUT)
    head = "def project(args, data, support, q_network, next_pmfs):\n"
    body = textwrap.indent(textwrap.dedent(loop), "    ")
    return f"{before}{loop}{after}\n\n{head}{body}    return target_pmfs\n"


def load(text: str, clone: Path) -> dict[str, Any]:
    """The names that one of CleanRL's scripts defines when it is imported."""
    root = str(clone.resolve())
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "cleanrl_script.py"
        script.write_text(text, encoding="utf-8")
        sys.path.insert(0, root)
        try:
            return runpy.run_path(str(script))
        finally:
            sys.path.remove(root)


# ------------------------------------------------------------------------------------------------------ environments


def cleanrl_envs(script: dict[str, Any], game: str, num_envs: int) -> VectorEnv[Any, Any, Any]:
    """Environments of a game in CleanRL's wrappers, as its scripts build them."""
    ids = f"{game}NoFrameskip-v4"
    makers = [script["make_env"](ids, 1 + i, i, False, "") for i in range(num_envs)]
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def player(env: VectorEnv[Any, Any, Any]) -> Callable[[], object]:
    """A function that steps every environment with random actions; every call of `player` gives the same actions."""
    rng, actions = np.random.default_rng(1), int(env.single_action_space.n)
    env.reset(seed=1)
    return lambda: env.step(rng.integers(actions, size=env.num_envs))


def interleave(
    cleanrl: Callable[[], object], ours: Callable[[], object], *, repeats: int, calls: int, unit: int = 1
) -> Iterator[Pair]:
    """Yield pairs of blocks of calls, in `unit` x calls per second, after three calls of each to warm up."""
    for call in (cleanrl, ours):
        rate(call, 3)
    for _ in range(repeats):
        yield Pair(cleanrl=unit * rate(cleanrl, calls), ours=unit * rate(ours, calls))


def measure_envs(args: Args, script: dict[str, Any], game: str, threads: int) -> Iterator[Pair]:
    """Yield agent steps per second of random play, pair by pair."""
    world = ScreenWorld((f"ALE/{game}-v5",), args.num_envs, sticky_action_prob=0.0, noop_max=30, threads=threads)
    ours, theirs = world.make(), cleanrl_envs(script, game, args.num_envs)
    try:
        sides = player(theirs), player(ours)
        yield from interleave(*sides, repeats=args.repeats, calls=args.env_steps, unit=args.num_envs)
    finally:
        ours.close()
        theirs.close()


# --------------------------------------------------------------------------------------------------------------- DQN


def shared_flags(args: Args) -> list[str]:
    """Flags of both scripts that decide how much work a step is."""
    flags = {
        "batch-size": BATCH, "buffer-size": args.learning_starts + args.steps + LOG_EVERY, "start-e": EPSILON,
        "end-e": EPSILON, "learning-starts": args.learning_starts, "target-network-frequency": 1000,
    }  # fmt: skip
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def environment(args: Args, threads: int) -> dict[str, str]:
    """Environment variables of both scripts; PYTHONPATH keeps what the caller has on it (OpenCV, for instance)."""
    names = child_environment(threads, args.cleanrl)
    inherited = os.environ.get("PYTHONPATH", "")
    return {**names, "PYTHONPATH": os.pathsep.join(filter(None, (names["PYTHONPATH"], inherited)))}


def measure_cleanrl_dqn(args: Args, game: str, threads: int) -> float:
    """Agent steps per second of the patched dqn_atari.py while it learns."""
    text = (args.cleanrl / "cleanrl" / "dqn_atari.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "cleanrl_dqn_atari.py"
        script.write_text(substitute(text, dqn_substitutions(threads), "dqn_atari.py"), encoding="utf-8")
        flags = ["--env-id", f"{game}NoFrameskip-v4", "--train-frequency", "4", *shared_flags(args)]
        flags += ["--total-timesteps", str(args.learning_starts + 1 + args.steps)]
        return timed_rate(run_script([script, *flags], Path(name), environment(args, threads)))


def measure_our_dqn(args: Args, game: str, threads: int, script: Path = ROOT / "agents" / "dqn_atari.py") -> float:
    """Agent steps per second of our script while it learns, from the charts/SPS it records."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "run"
        flags = ["baseline", "--env-id", f"ALE/{game}-v5", "--protocol", "classic", "--replay-ratio", "0.25"]
        flags += [*shared_flags(args), "--total-timesteps", str(args.learning_starts + args.steps)]
        flags += ["--eval-every", "0", "--log-every", str(LOG_EVERY), "--threads", str(threads)]
        flags += ["--directory", str(directory), *(["--bf16"] if args.bf16 else [])]
        run_script([script, *flags], Path(name), environment(args, threads))
        return overall_rate(read_speeds(directory / "scalars.csv"), after=args.learning_starts)


def measure_dqn(args: Args, game: str, threads: int) -> Iterator[Pair]:
    """Yield one interleaved pair after another."""
    for _ in range(args.repeats):
        yield Pair(measure_cleanrl_dqn(args, game, threads), measure_our_dqn(args, game, threads))


# ------------------------------------------------------------------------------------------------- parts of Rainbow


def fill_tree(nodes: np.ndarray, leaves: np.ndarray, combine: Callable[..., np.ndarray]) -> None:
    """Write a tree of 2n - 1 nodes over n leaves at once; the children of node k are 2k + 1 and 2k + 2."""
    inner = len(leaves) - 1
    nodes[inner:] = leaves
    for level in range(inner.bit_length(), -1, -1):
        first, end = (1 << level) - 1, min((2 << level) - 1, inner)
        if first < end:
            nodes[first:end] = combine(nodes[2 * first + 1 : 2 * end : 2], nodes[2 * first + 2 : 2 * end + 1 : 2])


def require_same(what: str, cleanrl: Any, ours: Any) -> None:
    """Both sides compute the same.

    Raises:
        RunError: they do not, so their times cannot be compared.
    """
    if not np.allclose(cleanrl, ours, rtol=1e-4, atol=1e-4):
        raise RunError(f"{what}: CleanRL's rainbow_atari.py and ours disagree, so their times cannot be compared")


def network_parts(cleanrl: dict[str, Any], ours: dict[str, Any]) -> list[Part]:
    """New noise, without and with a forward pass; and the projection."""
    settings, rng = cleanrl["Args"](), np.random.default_rng(1)
    space = SimpleNamespace(single_action_space=SimpleNamespace(n=ACTIONS))
    atoms = settings.n_atoms, settings.v_min, settings.v_max
    theirs = cleanrl["NoisyDuelingDistributionalNetwork"](space, *atoms)
    network = ours["make_network"](space, ours["Args"](), 1, torch.device("cpu"))
    obs = torch.from_numpy(rng.integers(256, size=(BATCH, 4, 84, 84), dtype=np.uint8))

    def their_pass() -> Any:
        theirs.reset_noise()
        return theirs(obs)

    def our_pass() -> Any:
        ours["draw_noise_"](network, rng)
        return network.logits(obs)

    support, gamma = theirs.support, settings.gamma**settings.n_step
    rewards = torch.from_numpy(rng.integers(-2, 3, size=BATCH).astype(np.float32))
    dones = torch.from_numpy(rng.random(BATCH) < 0.1)
    discounts = gamma * (~dones).float()
    next_pmfs = torch.from_numpy(rng.dirichlet(np.ones(settings.n_atoms), size=BATCH).astype(np.float32))
    data = SimpleNamespace(rewards=rewards[:, None], dones=dones[:, None])

    def their_projection() -> Any:
        return cleanrl["project"](settings, data, support, theirs, next_pmfs)

    def our_projection() -> Any:
        return ours["categorical_projection"](network.support, rewards, discounts, next_pmfs)

    require_same("projection", their_projection(), our_projection())
    return [
        Part("noise", theirs.reset_noise, lambda: ours["draw_noise_"](network, rng)),
        Part(f"noise, forward of {BATCH}", their_pass, our_pass),
        Part("projection", their_projection, our_projection),
    ]


def priority_parts(cleanrl: dict[str, Any], ours: dict[str, Any], capacity: int) -> list[Part]:
    """Prioritised sampling and new priorities of a full memory, which has no frames on both sides."""
    settings, flags, rng = cleanrl["Args"](), ours["Args"](), np.random.default_rng(1)
    first = rng.exponential(size=capacity).astype(np.float32) + 0.01

    theirs = cleanrl["PrioritizedReplayBuffer"](
        capacity, (), torch.device("cpu"), settings.n_step, settings.gamma, settings.prioritized_replay_alpha,
        settings.prioritized_replay_beta, settings.prioritized_replay_eps,
    )  # fmt: skip
    leaves = (first + theirs.eps) ** theirs.alpha
    fill_tree(theirs.sum_tree.tree, leaves, np.add)
    fill_tree(theirs.min_tree.tree, leaves, np.minimum)
    theirs.size, theirs.max_priority = capacity, float(first.max())

    priorities = Priorities(capacity, flags.prioritized_replay_alpha, flags.prioritized_replay_uniform)
    priorities.add(np.arange(capacity))
    priorities.update(np.arange(capacity), first)
    replay = FrameMemory(capacity, 1, flags.gamma, flags.n_step)  # it knows the valid slots
    replay.written[:], replay.age[:] = capacity, 3

    require_same("sum of the priorities", theirs.sum_tree.total() / capacity, priorities.tree.total / capacity)
    batches = [
        (rng.choice(capacity, size=BATCH, replace=False), rng.exponential(size=BATCH).astype(np.float32))
        for _ in range(256)
    ]
    their_batches = cycle([(slots.tolist(), losses) for slots, losses in batches])
    our_batches = cycle(batches)

    def our_sample() -> Any:
        slots, probabilities = priorities.sample(BATCH, rng, replay.valid)
        return slots, priorities.importance_weights(probabilities, flags.prioritized_replay_beta)

    return [
        Part("prioritised sampling", lambda: theirs.sample(BATCH), our_sample),
        Part(
            "new priorities",
            lambda: theirs.update_priorities(*next(their_batches)),
            lambda: priorities.update(*next(our_batches)),
        ),
    ]


def measure_parts(args: Args) -> Iterator[tuple[str, list[Pair]]]:
    """Yield the name of each part and calls per second of both sides."""
    text = (args.cleanrl / "cleanrl" / "rainbow_atari.py").read_text(encoding="utf-8")
    cleanrl = load(with_projection(text), args.cleanrl)
    ours = runpy.run_path(str(ROOT / "agents" / "rainbow_atari.py"))
    with torch.no_grad():
        for part in (*network_parts(cleanrl, ours), *priority_parts(cleanrl, ours, args.capacity)):
            yield part.name, list(interleave(part.cleanrl, part.ours, repeats=args.blocks, calls=args.calls))


def microseconds(name: str, pairs: Sequence[Pair]) -> str:
    """One line about a part: medians over the blocks, and the ratio within a pair."""
    cleanrl, ours = (1e6 * median(1 / speed for speed in side) for side in zip(*pairs, strict=True))
    ratios = [pair.ours / pair.cleanrl for pair in pairs]
    spread = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    return f"  {name:<22} CleanRL {cleanrl:8.0f}   ours {ours:8.0f}   ratio {spread}"


# -------------------------------------------------------------------------------------------------------------- main


def report(title: str, measured: Iterable[Pair]) -> None:
    """Print each pair, and the summary."""
    print(title, flush=True)
    pairs: list[Pair] = []
    for pair in measured:
        print(describe(pair), flush=True)
        pairs.append(pair)
    print(summarise(pairs), flush=True)


def main(args: Args) -> None:
    """Measure and print."""
    print(f"torch {torch.__version__}, gymnasium {gymnasium.__version__}, {os.cpu_count()} CPU cores")
    torch.set_num_threads(1)
    threadpool_limits(1)
    if "envs" in args.what:
        text = (args.cleanrl / "cleanrl" / "dqn_atari.py").read_text(encoding="utf-8")
        script = load(substitute(text, dqn_substitutions(1), "dqn_atari.py"), args.cleanrl)
        for game in args.games:
            for threads in args.env_threads:
                how = f"{threads} thread(s)" if threads else "in Python"
                title = (
                    f"envs, {game}, agent steps per second, {args.num_envs} environments, {args.env_steps} steps each"
                )
                report(f"{title}; ours {how}", measure_envs(args, script, game, threads))
    if "dqn" in args.what:
        for game in args.games:
            for threads in args.threads:
                title = f"dqn, {game}, agent steps per second, {threads} thread(s), {args.steps} steps each"
                title += "; ours in bfloat16" if args.bf16 else ""
                report(title, measure_dqn(args, game, threads))
    if "parts" in args.what:
        work = f"batch {BATCH}, {args.capacity:,} transitions, medians of {args.blocks} blocks of {args.calls} calls"
        print(f"parts, microseconds per call, one thread, {work}", flush=True)
        for name, pairs in measure_parts(args):
            print(microseconds(name, pairs), flush=True)
