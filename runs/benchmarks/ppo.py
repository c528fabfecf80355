"""Agent steps per second of PPO against CleanRL's `ppo.py`, on your own machine.

    git clone https://github.com/vwxyzjn/cleanrl
    python -m runs bench ppo --cleanrl cleanrl
    python -m runs bench ppo --cleanrl cleanrl --env-id MinAtar/SpaceInvaders-v1 --num-envs 32

Both scripts learn the same game with the same network, environments, steps, epochs and minibatches. Ours also projects,
with its meter and probe on. Runs alternate, the ratio is taken within each pair, and the first iteration is left out on
both sides. runs/benchmarks/cleanrl.py says how CleanRL's text is made to run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from torch.distributions.categorical import Categorical

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


@dataclass(frozen=True)
class Args:
    """What to measure, and for how long."""

    cleanrl: Path
    """a clone of CleanRL"""
    env_id: str = "MinAtar/Breakout-v1"
    """the game"""
    num_envs: tuple[int, ...] = (8, 128)
    """numbers of environments, one measurement each"""
    num_steps: int = 128
    """steps of each environment per iteration"""
    update_epochs: int = 4
    """passes over an iteration's steps"""
    num_minibatches: int = 4
    """minibatches per epoch"""
    iterations: int = 4
    """iterations per run; the first is not measured"""
    repeats: int = 5
    """interleaved pairs"""
    threads: int = 1
    """threads of both scripts"""
    preset: str = "nap"
    """preset of agents/ppo_minatar.py; meter and probe are on"""
    gradient: Gradient = "default"
    """--gradient of agents/ppo_minatar.py; compiled needs the extra fast"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, before the first run."""
        if not (self.cleanrl / "cleanrl" / "ppo.py").is_file():
            raise ValueError(f"--cleanrl must be the root of a CleanRL clone, but {self.cleanrl} has no cleanrl/ppo.py")
        gradient_flags(self.gradient)
        for name, least in (("iterations", 2), ("repeats", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")


class MinAtarAgent(nn.Module):
    """The network of `agents/ppo_minatar.py` with the methods that CleanRL's script calls."""

    def __init__(self, envs: VectorEnv) -> None:  # type: ignore[type-arg]
        """Read C and A from the vector environment's single spaces."""
        super().__init__()
        channels, actions = envs.single_observation_space.shape[-1], int(envs.single_action_space.n)  # type: ignore
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 16, kernel_size=3, bias=False), nn.LayerNorm([16, 8, 8]), nn.ReLU(), nn.Flatten(),
            nn.Linear(1024, 128, bias=False), nn.LayerNorm(128), nn.ReLU(),
        )  # fmt: skip
        self.actor, self.critic = nn.Linear(128, actions), nn.Linear(128, 1)

    def get_value(self, obs: Tensor) -> Tensor:
        """V of observations [B, 10, 10, C], [B, 1]."""
        value: Tensor = self.critic(self.trunk(obs.permute(0, 3, 1, 2)))
        return value

    def get_action_and_value(self, obs: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Action [B], its log-probability, the entropy, and V."""
        features = self.trunk(obs.permute(0, 3, 1, 2))
        policy = Categorical(logits=self.actor(features))
        chosen = policy.sample() if action is None else action
        return chosen, policy.log_prob(chosen), policy.entropy(), self.critic(features)


def timed_iterations(iterations: int, steps: int, clock: Callable[[], float] = time.perf_counter) -> Iterator[int]:
    """Yield 1 ... iterations, of `steps` agent steps each, and print the seconds that all but the first took."""
    began = clock()
    for iteration in range(1, iterations + 1):
        yield iteration
        if iteration == 1:
            began = clock()
    print(f"timed steps={(iterations - 1) * steps} seconds={clock() - began!r}", flush=True)


def substitutions(threads: int) -> tuple[Substitution, ...]:
    """The edits that make CleanRL's ppo.py run on Gymnasium 1.x and MinAtar, and time itself."""
    return (
        Substitution(
            "imports, registration and threads",
            "from torch.utils.tensorboard import SummaryWriter",
            "from torch.utils.tensorboard import SummaryWriter\n"
            "import minatar.gym\n"
            "from runs.benchmarks.ppo import MinAtarAgent as Agent, timed_iterations\n"
            f"minatar.gym.register_envs()\ntorch.set_num_threads({threads})",
        ),
        Substitution("network", "class Agent(nn.Module):", "class UnusedCartPoleAgent(nn.Module):"),
        Substitution(
            "autoreset mode",
            "for i in range(args.num_envs)],\n    )",
            "for i in range(args.num_envs)],\n        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,\n    )",
        ),
        Substitution(
            "timer",
            "for iteration in range(1, args.num_iterations + 1):",
            "for iteration in timed_iterations(args.num_iterations, args.batch_size):",
        ),
        Substitution(
            # Under SAME_STEP final_info is one dictionary of arrays [num_envs], with a mask.
            "episodic return",
            'for info in infos["final_info"]:',
            'for info in [{"episode": {k: infos["final_info"]["episode"][k][i] for k in "rl"}} '
            'for i in np.flatnonzero(infos["_final_info"])]:',
        ),
    )


def shared_flags(args: Args, num_envs: int) -> list[str]:
    """Flags of both scripts that decide how much work a step is."""
    flags = {
        "env-id": args.env_id, "num-envs": num_envs, "num-steps": args.num_steps, "update-epochs": args.update_epochs,
        "num-minibatches": args.num_minibatches, "total-timesteps": args.iterations * num_envs * args.num_steps,
    }  # fmt: skip
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def measure_cleanrl(args: Args, num_envs: int) -> float:
    """Agent steps per second of the patched ppo.py while it learns."""
    text = (args.cleanrl / "cleanrl" / "ppo.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "cleanrl_ppo.py"
        script.write_text(substitute(text, substitutions(args.threads), "ppo.py"), encoding="utf-8")
        environment = child_environment(args.threads, args.cleanrl)
        return timed_rate(run_script([script, *shared_flags(args, num_envs)], Path(name), environment))


def measure_ours(args: Args, num_envs: int, script: Path = ROOT / "agents" / "ppo_minatar.py") -> float:
    """Agent steps per second of our script while it learns, from the charts/SPS it records."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "run"
        flags = [args.preset, *shared_flags(args, num_envs), "--eval-every", "0", "--threads", str(args.threads)]
        flags += ["--directory", str(directory), *gradient_flags(args.gradient)]
        run_script([script, *flags], Path(name), child_environment(args.threads, args.cleanrl))
        return overall_rate(read_speeds(directory / "scalars.csv"), after=num_envs * args.num_steps)


def main(args: Args) -> None:
    """Measure and print, pair by pair."""
    work = f"{args.num_steps} steps, {args.update_epochs} epochs of {args.num_minibatches} minibatches"
    print(f"agent steps per second, {args.env_id}, {work}, {args.threads} thread(s), torch {torch.__version__}")
    for num_envs in args.num_envs:
        print(f"{num_envs} environments", flush=True)
        pairs: list[Pair] = []
        for _ in range(args.repeats):
            pairs.append(Pair(cleanrl=measure_cleanrl(args, num_envs), ours=measure_ours(args, num_envs)))
            print(describe(pairs[-1]), flush=True)
        print(summarise(pairs), flush=True)
