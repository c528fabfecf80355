"""Agent steps per second of PPO on classic control against CleanRL's `ppo.py`, on your own machine.

    git clone https://github.com/vwxyzjn/cleanrl
    python -m runs bench control --cleanrl cleanrl
    python -m runs bench control --cleanrl cleanrl --cases levels --repeats 10

Both scripts learn the same environment with the same networks (three hidden layers of 256 units for the policy, three
for the value), environments, steps, epochs and minibatches. Ours also projects, with its meter and probe on. Runs
alternate, the ratio is taken within each pair, and the first iteration is left out on both sides.
runs/benchmarks/cleanrl.py says how CleanRL's text is made to run.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from torch.distributions.categorical import Categorical

from runs.benchmarks import ppo
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

SCRIPT = ROOT / "agents" / "ppo_control.py"


class Case(NamedTuple):
    """The work of an iteration."""

    env_id: str
    num_envs: int
    num_steps: int
    update_epochs: int
    num_minibatches: int

    @property
    def steps(self) -> int:
        """Agent steps of an iteration."""
        return self.num_envs * self.num_steps


CASES = {
    "cleanrl": Case("CartPole-v1", 4, 128, 4, 4),
    "script": Case("CartPole-v1", 8, 100, 5, 25),
    "levels": Case("CartPole-v1", 1, 800, 5, 25),
    "acrobot": Case("Acrobot-v1", 8, 100, 5, 25),
}
"""CleanRL's own setting, that of our script, that of continual control, and another environment"""


@dataclass(frozen=True)
class Args:
    """What to measure, and for how long."""

    cleanrl: Path
    """a clone of CleanRL"""
    cases: tuple[str, ...] = tuple(CASES)
    """settings to measure: cleanrl (CartPole, 4 environments x 128 steps, 4 epochs x 4 minibatches), script (8 x 100,
    5 x 25), levels (1 x 800, 5 x 25), acrobot (8 x 100, 5 x 25)"""
    iterations: int = 16
    """iterations per run; the first is not measured"""
    repeats: int = 5
    """interleaved pairs"""
    threads: int = 1
    """threads of both scripts"""
    preset: str = "nap"
    """preset of agents/ppo_control.py; meter and probe are on"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, before the first run."""
        if not (self.cleanrl / "cleanrl" / "ppo.py").is_file():
            raise ValueError(f"--cleanrl must be the root of a CleanRL clone, but {self.cleanrl} has no cleanrl/ppo.py")
        for name, least in (("iterations", 2), ("repeats", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if unknown := [name for name in self.cases if name not in CASES]:
            raise ValueError(f"--cases must be some of {', '.join(CASES)}, got {', '.join(unknown)}")
        if self.preset not in (known := ("baseline", "layernorm", "nap")):
            raise ValueError(
                f"--preset must be one of {', '.join(known)}, whose task does not change; got {self.preset}"
            )

    @property
    def normalised(self) -> bool:
        """The networks have LayerNorm, and no biases in front of it."""
        return self.preset != "baseline"


class ControlAgent(nn.Module):
    """The networks of `agents/ppo_control.py` with the methods that CleanRL's script calls."""

    normalised = True

    def __init__(self, envs: VectorEnv) -> None:  # type: ignore[type-arg]
        """Read D and A from the vector environment's single spaces."""
        super().__init__()
        inputs, actions = envs.single_observation_space.shape[0], int(envs.single_action_space.n)  # type: ignore
        self.actor, self.critic = self._network(inputs, actions), self._network(inputs, 1)

    def _network(self, inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = [nn.ConstantPad1d((0, 1), 1.0)] if self.normalised else []
        for fan_in in (inputs + self.normalised, 256, 256):
            layers.append(nn.Linear(fan_in, 256, bias=not self.normalised))
            layers += [nn.LayerNorm(256)] * self.normalised
            layers.append(nn.LeakyReLU(0.1))
        return nn.Sequential(*layers, nn.Linear(256, outputs))

    def get_value(self, obs: Tensor) -> Tensor:
        """V of observations [B, D], [B, 1]."""
        value: Tensor = self.critic(obs)
        return value

    def get_action_and_value(self, obs: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Action [B], its log-probability, the entropy, and V."""
        policy = Categorical(logits=self.actor(obs))
        chosen = policy.sample() if action is None else action
        return chosen, policy.log_prob(chosen), policy.entropy(), self.critic(obs)


class PlainAgent(ControlAgent):
    """Without LayerNorm, with biases."""

    normalised = False


def substitutions(args: Args) -> tuple[Substitution, ...]:
    """The edits that make CleanRL's ppo.py run on Gymnasium 1.x with these networks, and time itself."""
    agent = ControlAgent if args.normalised else PlainAgent
    imports = Substitution(
        "imports and threads",
        "from torch.utils.tensorboard import SummaryWriter",
        "from torch.utils.tensorboard import SummaryWriter\n"
        f"from runs.benchmarks.control import {agent.__name__} as Agent\n"
        "from runs.benchmarks.ppo import timed_iterations\n"
        f"torch.set_num_threads({args.threads})",
    )
    return imports, *ppo.substitutions(args.threads)[1:]


def shared_flags(case: Case, iterations: int) -> list[str]:
    """Flags of both scripts that decide how much work a step is."""
    flags = {**case._asdict(), "total_timesteps": iterations * case.steps}
    return [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def measure_cleanrl(args: Args, case: Case) -> float:
    """Agent steps per second of the patched ppo.py while it learns."""
    text = (args.cleanrl / "cleanrl" / "ppo.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "cleanrl_ppo.py"
        script.write_text(substitute(text, substitutions(args), "ppo.py"), encoding="utf-8")
        environment = child_environment(args.threads, args.cleanrl)
        return timed_rate(run_script([script, *shared_flags(case, args.iterations)], Path(name), environment))


def measure_ours(args: Args, case: Case) -> float:
    """Agent steps per second of our script while it learns, from the charts/SPS it records."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "run"
        flags = [args.preset, *shared_flags(case, args.iterations), "--eval-every", "0"]
        flags += ["--threads", str(args.threads), "--directory", str(directory)]
        run_script([SCRIPT, *flags], Path(name), child_environment(args.threads, args.cleanrl))
        return overall_rate(read_speeds(directory / "scalars.csv"), after=case.steps)


def main(args: Args) -> None:
    """Measure and print, pair by pair."""
    print(f"agent steps per second, preset {args.preset}, {args.threads} thread(s), torch {torch.__version__}")
    for name in args.cases:
        case = CASES[name]
        print(
            f"{name}: {case.env_id}, {case.num_envs} environments x {case.num_steps} steps, {case.update_epochs} "
            f"epochs x {case.num_minibatches} minibatches",
            flush=True,
        )
        pairs: list[Pair] = []
        for _ in range(args.repeats):
            pairs.append(Pair(cleanrl=measure_cleanrl(args, case), ours=measure_ours(args, case)))
            print(describe(pairs[-1]), flush=True)
        print(summarise(pairs), flush=True)
