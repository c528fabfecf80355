"""PPO on MinAtar with normalize-and-project and a re-warmed learning rate, in one file.

    python agents/ppo_minatar.py                              plain PPO (Schulman et al. 2017), rate annealed to 0
    python agents/ppo_minatar.py nap-cyclic --seed 1          weights projected, learning rate re-warmed on a cycle
    python agents/ppo_minatar.py adaptive                     re-warmed when CUSUM finds a change in the TD errors
    python agents/ppo_minatar.py chain-switch                 three games in turn, twice; re-warmed at each change
    python agents/ppo_minatar.py --resume runs/logs/RUN       go on with a killed or interrupted run

On Breakout at 10 million steps: a training return of 30, 40 and 43 (three seeds); see docs/results.md, docs/chains.md.

The method is Algorithm 1 of Lyle et al. 2025 (arXiv:2507.20057): optimiser step -> project -> re-warm? -> set the rate;
those lines stand in this order in `main`. Normalize-and-project is arXiv:2407.01800; both heads are left out.
A step is one decision of the agent in one copy of the game; an iteration is --num-steps steps of all --num-envs copies,
followed by --update-epochs x --num-minibatches updates.

Details as commonly published (Huang et al. 2022): generalised advantage estimation, advantages normalised by minibatch,
clipped value loss (--no-clip-vloss), orthogonal initialisation, gradients clipped by their norm, Adam's epsilon 1e-5.
Not as there: an episode that is truncated bootstraps from its last observation; LayerNorm before each nonlinearity
(--network plain has none); the rate falls with every update, not every iteration. In MinAtar only a change of the world
truncates. Recorded losses are of an iteration's last minibatch.

With --shift the world changes (envs/shifts.py), and --switch says what else happens then, at the end of the iteration
in which it changed; by default nothing but the change. Plain continual training is that with --schedule.kind constant:
the default's rate is annealed over the whole run, and late tasks would be learned at next to none. A period that is a
multiple of --num-envs x --num-steps changes the world where an iteration ends. The probe's observations are of the
first task.

--rewarm.trigger cusum watches the mean squared TD error of an iteration's steps, as they were acted, in its logarithm:
one value for all updates of the iteration. The paper says the loss; that of the updates is seen only after the first of
them have learned, and it misses changes to a game of smaller returns.
"""

from __future__ import annotations

import ctypes
import math
import shlex
import sys
import time
from collections import deque
from dataclasses import dataclass, field, fields
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.vector import VectorEnv
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from elr.changepoint import Cusum
from elr.fast.flat_adam import FlatAdam
from elr.interventions import reset_, shrink_and_perturb_
from elr.measure import Meter
from elr.moments import reset_moments_
from elr.probe import Probe
from elr.projection import Projection
from elr.rewarming import Rewarming
from elr.schedules import Constant, Cyclic, CyclicThenConstant, LinearDecay, OneCycle, Schedule, WarmupCosine
from elr.triggers import Every, Never, OnCusum, Trigger
from elr.weights import scalable_weights
from envs.timetables import AtRandom, AtSteps, EverySteps, NoChange, Timetable
from envs.worlds import World, evaluation_world
from runs.recording import (
    NonFiniteError,
    Preset,
    Run,
    StopOnSignal,
    config_to_dict,
    describe_nonfinite,
    exit_with_one_line,
    one_line_errors,
    parse,
    reject_unused,
    restore_rng,
    rng_state,
    weights_and_gradients,
)

# ------------------------------------------------------------------------------------------------------------ flags


# same as agents/dqn_minatar.py::NapArgs
@dataclass(frozen=True)
class NapArgs:
    """Normalize-and-project: hold every hidden weight tensor at its initial norm."""

    enabled: bool = False
    """project the weights"""
    every: int = 1
    """updates between projections"""
    gains: Literal["joint", "regularise", "decay", "free"] = "joint"
    """LayerNorm gains g and offsets b: hold their joint norm, pull them to 1 and 0, decay g to 0, or leave them"""
    gain_strength: float = 0.0
    """strength of regularise or decay, multiplied by the learning rate as in decoupled weight decay"""
    allow_scale_dependent: bool = False
    """project even a network whose output changes when a weight tensor is scaled"""


@dataclass(frozen=True)
class ScheduleArgs:
    """Learning rate as a function of the updates since the last trigger; its peak is --learning-rate."""

    kind: Literal[
        "constant", "linear-decay", "warmup-cosine", "cyclic", "cyclic-then-constant", "one-cycle"
    ] = "linear-decay"  # fmt: skip
    """shape of the schedule"""
    low: float = 0.0
    """rate at the bottom of a cycle or at the end of a decay"""
    period_steps: int = 0
    """agent steps of one cycle or decay, warm-up included; 0 is the whole run"""
    warmup_frac: float = 0.1
    """share of the period spent rising"""
    cycles: int = 3
    """cycles before the rate stays low (cyclic-then-constant)"""


# same as agents/dqn_minatar.py::RewarmArgs
@dataclass(frozen=True)
class RewarmArgs:
    """Restart the schedule (Algorithm 1)."""

    trigger: Literal["never", "every", "cusum", "switch"] = "never"
    """what restarts it: nothing, a fixed period, a change point in the squared TD errors of new steps, or a change of
    the world (told)"""
    every_steps: int = 50_000
    """agent steps between restarts (trigger every)"""
    moments: Literal["keep", "reset"] = "keep"
    """Adam's moments at a restart"""
    threshold: float = 8.0
    """CUSUM alarm threshold h, in standard deviations of a block mean"""
    slack: float = 1.5
    """CUSUM slack k: half the smallest shift of interest, in standard deviations"""
    block: int = 100
    """updates (not agent steps) whose errors are averaged into one value of the CUSUM"""
    burn_in: int = 20
    """blocks from which mean and deviation are estimated before the CUSUM may fire"""
    refractory: int = 40
    """blocks after an alarm in which none is raised"""
    smoothing: float = 0.05
    """weight of the newest block in mean and deviation, which follow slow growth so that it is no alarm"""


# same as agents/dqn_minatar.py::ShiftArgs
@dataclass(frozen=True)
class ShiftArgs:
    """A world that changes. The running episode is truncated at a change; exactly one flag says when changes come."""

    kind: Literal["none", "games", "actions", "channels", "pixels", "rewards", "sticky", "noise"] = "none"
    """what changes: the game, the meaning of actions (best with -v1 ids, whose actions all do something), the order of
    channels or pixels, the factor of rewards, the probability of sticky actions (not the game's 0.1), of noise"""
    every_steps: int = 0
    """a change after each so many agent steps"""
    at_steps: tuple[int, ...] = ()
    """changes after these agent steps"""
    rate: float = 0.0
    """changes at random, with this probability after each agent step"""
    games: tuple[str, ...] = ()
    """the games after --env-id, visited in turn (kind games; -v0 ids)"""
    tasks: int = 2
    """number of permutations, the identity first, visited in turn (actions, channels, pixels)"""
    values: tuple[float, ...] = ()
    """factors or probabilities, the first from the start, visited in turn (rewards, sticky, noise)"""


@dataclass(frozen=True)
class SwitchArgs:
    """What else happens when the world has changed, at the end of that iteration."""

    fresh_agent: bool = False
    """a new agent learns each task (the oracle): a reset of all that follows, schedule and trigger included"""
    optimizer: Literal["keep", "reset"] = "keep"
    """Adam's moments and step counts: kept, or set to zero as in an optimiser that is built anew"""
    intervention: Literal["none", "shrink-and-perturb", "reset", "reset-head"] = "none"
    """what is done to the weights; the heads are those of policy and value"""
    shrink: float = 0.4
    """W <- shrink * W + perturb * W_fresh (shrink-and-perturb; Ash and Adams' code has 0.4 and 0.1)"""
    perturb: float = 0.1
    """see shrink"""


@dataclass(frozen=True)
class ProbeArgs:
    """Measurements that never change training."""

    every: int = 1000
    """updates between feature-learning measurements on the probe (the interval T of Delta_C, Delta_A); 0 is off"""
    size: int = 256
    """observations in the probe, from an environment and uniform policy of its own"""
    tau: float = 0.1
    """a unit is dormant when its share of the layer's mean activation is at most tau"""
    meter_every: int = 100
    """updates between measurements of the realised effective learning rate and the norms; 0 is off"""


@dataclass(frozen=True)
class Args:
    """PPO on MinAtar: every flag, its default, its meaning."""

    env_id: str = "MinAtar/Breakout-v1"
    """MinAtar/<Game>-v1 (minimal actions) or -v0 (all six); Asterix, Breakout, Freeway, Seaquest, SpaceInvaders"""
    seed: int = 1
    """seed of every random stream"""
    total_timesteps: int = 10_000_000
    """agent steps of the run, summed over the copies; the last iteration is whole"""
    learning_rate: float = 1e-3
    """Adam's rate at the peak of the schedule"""
    adam_eps: float = 1e-5
    """Adam's epsilon"""
    num_envs: int = 64
    """copies of the game"""
    num_steps: int = 128
    """steps of each copy per iteration"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    num_minibatches: int = 8
    """minibatches per epoch"""
    update_epochs: int = 4
    """passes over the steps of an iteration"""
    norm_adv: bool = True
    """normalise advantages within the minibatch"""
    clip_coef: float = 0.2
    """how far the probability ratio may leave 1 before its gradient is cut"""
    clip_vloss: bool = True
    """cut the gradient of values that leave their old ones by more than --clip-coef as well"""
    ent_coef: float = 0.01
    """weight of the policy's entropy"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """norm to which gradients are clipped"""
    network: Literal["normalised", "plain"] = "normalised"
    """LayerNorm before each nonlinearity, or biases and none"""
    nap: NapArgs = field(default_factory=NapArgs)
    schedule: ScheduleArgs = field(default_factory=ScheduleArgs)
    rewarm: RewarmArgs = field(default_factory=RewarmArgs)
    shift: ShiftArgs = field(default_factory=ShiftArgs)
    switch: SwitchArgs = field(default_factory=SwitchArgs)
    probe: ProbeArgs = field(default_factory=ProbeArgs)
    eval_every: int = 50
    """iterations between evaluations, in the present task (at a change: in the one that ends); 0 is off"""
    eval_episodes: int = 10
    """episodes of one evaluation, each from a fresh seeded game, greedy, at most 10,000 steps long"""
    checkpoint_every: int = 50
    """iterations between checkpoints"""
    device: str = "cpu"
    """cpu or cuda; the latter has not been run yet"""
    threads: int = 1
    """CPU threads of torch and of NumPy's linear algebra"""
    exp_name: str = "ppo"
    """first part of the run's name"""
    directory: Path | None = None
    """run directory; default runs/logs/<exp_name>__<script>__<game>__s<seed>__<time>"""
    resume: Path | None = None
    """run directory to go on with; all other flags come from its config.json"""

    def __post_init__(self) -> None:
        positive = "total_timesteps learning_rate adam_eps num_envs num_steps num_minibatches update_epochs clip_coef"
        for name in [*positive.split(), "max_grad_norm", "checkpoint_every", "threads", "eval_episodes"]:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}")
        for name in ("ent_coef", "vf_coef", "eval_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 0, not {getattr(self, name)}")
        if not 0 <= self.gamma < 1 or not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"--gamma {self.gamma} must lie in [0, 1), --gae-lambda {self.gae_lambda} between 0 and 1")
        batch = self.num_envs * self.num_steps
        if batch % self.num_minibatches:
            raise ValueError(
                f"--num-minibatches {self.num_minibatches} does not divide --num-envs {self.num_envs} x --num-steps "
                f"{self.num_steps}"
            )
        if self.norm_adv and batch == self.num_minibatches:
            raise ValueError(
                f"--num-minibatches {self.num_minibatches} leaves one step in each, which --norm-adv cannot normalise"
            )
        if min(self.probe.every, self.probe.meter_every) < 0:
            raise ValueError("--probe.every and --probe.meter-every must be >= 0")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"--device {self.device}: this torch sees no GPU; install a CUDA build or use --device cpu"
            )
        self._refuse_inert_flags()
        refuse_inert_shifts(self)
        refuse_blind_detector(self)
        gaps = [after - before for before, after in pairwise(self.shift.at_steps)]
        if 0 < (gap := self.shift.every_steps or min(gaps, default=0)) < batch:
            raise ValueError(
                f"--shift has changes {gap} steps apart, less than one iteration, --num-envs x --num-steps = {batch}: "
                "re-warming and --switch come where an iteration ends, once for all changes in it"
            )

    def _refuse_inert_flags(self) -> None:
        nap, schedule, rewarm, probe = self.nap, self.schedule, self.rewarm, self.probe
        if not nap.enabled:
            unused = ["every", "gains", "gain_strength", "allow_scale_dependent"]
            reject_unused("nap", nap, unused, "without --nap.enabled")
        unused = {"low", "period_steps", "warmup_frac", "cycles"} - set(SCHEDULE_FLAGS[schedule.kind])
        reject_unused("schedule", schedule, sorted(unused), f"with --schedule.kind {schedule.kind}")
        if schedule.kind != "constant" and schedule.low >= self.learning_rate:
            raise ValueError(
                f"--schedule.low {schedule.low} is not below --learning-rate {self.learning_rate}, its peak"
            )
        cusum_flags = ["threshold", "slack", "block", "burn_in", "refractory", "smoothing"]
        unused = {
            "never": ["every_steps", "moments", *cusum_flags],
            "every": cusum_flags,
            "cusum": ["every_steps"],
            "switch": ["every_steps", *cusum_flags],
        }
        reject_unused("rewarm", rewarm, unused[rewarm.trigger], f"with --rewarm.trigger {rewarm.trigger}")
        if rewarm.trigger != "never" and schedule.kind == "constant" and rewarm.moments == "keep":
            raise ValueError(
                f"--rewarm.trigger {rewarm.trigger} restarts nothing with --schedule.kind constant and "
                "--rewarm.moments keep; choose another schedule, or --rewarm.moments reset"
            )
        if schedule.period_steps < 0:
            raise ValueError(f"--schedule.period-steps {schedule.period_steps} is no length: give at least 0")
        if rewarm.trigger == "every" and rewarm.every_steps < self.num_envs * self.num_steps:
            raise ValueError(
                f"--rewarm.every-steps {rewarm.every_steps} is less than one iteration, --num-envs x --num-steps"
            )
        if rewarm.trigger == "every" and rewarm.every_steps >= self.total_timesteps:
            raise ValueError(
                f"--rewarm.every-steps {rewarm.every_steps} never comes in --total-timesteps {self.total_timesteps}"
            )
        if (
            rewarm.trigger == "every"
            and schedule.kind == "cyclic"
            and to_updates(self, rewarm.every_steps) % to_updates(self, schedule.period_steps) == 0
        ):
            raise ValueError(
                f"--rewarm.every-steps {rewarm.every_steps} restarts --schedule.kind cyclic just where a cycle of "
                f"--schedule.period-steps {schedule.period_steps} ends: it changes nothing"
            )
        if probe.size < 2:
            raise ValueError(f"--probe.size {probe.size} compares nothing: give at least 2 observations")
        if probe.every == 0:
            inert = ["tau"] if nap.enabled else ["size", "tau"]  # projection is checked on the probe's observations
            reject_unused("probe", probe, inert, "with --probe.every 0")
        if self.eval_every == 0:
            reject_unused("", self, ["eval_episodes"], "with --eval-every 0")


# same as agents/dqn_minatar.py::refuse_inert_shifts
def refuse_inert_shifts(args: Args) -> None:
    """Flags of --shift and --switch that would change nothing, alone or beside another."""
    shift, switch = args.shift, args.switch
    others = [f.name for f in fields(SwitchArgs) if f.name not in ("fresh_agent", "shrink", "perturb")]
    if shift.kind == "none":
        why = "with --shift.kind none: the world does not change"
        reject_unused("shift", shift, ["every_steps", "at_steps", "rate", "games", "tasks", "values"], why)
        reject_unused("switch", switch, ["fresh_agent", *others, "shrink", "perturb"], why)
        if args.rewarm.trigger == "switch":
            raise ValueError("--rewarm.trigger switch never comes with --shift.kind none: choose what changes")
        return
    if (shift.every_steps != 0) + (shift.at_steps != ()) + (shift.rate != 0) != 1:
        raise ValueError(
            f"--shift.kind {shift.kind} needs exactly one of --shift.every-steps, --shift.at-steps, --shift.rate"
        )
    permuted, valued = ("actions", "channels", "pixels"), ("rewards", "sticky", "noise")
    unused = [*(["games"] * (shift.kind != "games")), *(["tasks"] * (shift.kind not in permuted))]
    reject_unused("shift", shift, unused + ["values"] * (shift.kind not in valued), f"with --shift.kind {shift.kind}")
    if shift.kind == "games" and not shift.games:
        raise ValueError("--shift.kind games needs --shift.games, those that follow --env-id")
    if shift.kind in valued and len(shift.values) < 2:
        raise ValueError(f"--shift.kind {shift.kind} needs at least two --shift.values to go between")
    if shift.kind in valued and len(set(shift.values)) == 1:
        raise ValueError(f"--shift.values {shift.values} are all alike: nothing changes")
    if shift.kind == "games" and set(shift.games) == {args.env_id}:
        raise ValueError(f"--shift.games {shift.games} are --env-id {args.env_id}: nothing changes")
    last = shift.every_steps or max(shift.at_steps, default=0)
    if last >= args.total_timesteps:
        raise ValueError(f"--shift's change at step {last} never comes in --total-timesteps {args.total_timesteps}")
    if switch.fresh_agent:
        reject_unused("switch", switch, others, "with --switch.fresh-agent, which does all of it")
        if args.rewarm.trigger == "switch":
            raise ValueError(
                "--rewarm.trigger switch adds nothing to --switch.fresh-agent, whose schedule is new: use never"
            )
    if switch.optimizer == "reset" and args.rewarm.trigger == "switch" and args.rewarm.moments == "reset":
        raise ValueError("--switch.optimizer reset and --rewarm.moments reset are the same here: drop one of them")
    if switch.intervention != "shrink-and-perturb":
        why = f"with --switch.intervention {switch.intervention}"
        reject_unused("switch", switch, ["shrink", "perturb"], why)
    elif (switch.shrink, switch.perturb) in ((1, 0), (0, 0)) or not (
        0 <= switch.shrink <= 1 and 0 <= switch.perturb < math.inf
    ):
        raise ValueError(
            f"--switch.shrink {switch.shrink} and --switch.perturb {switch.perturb}: give a share in [0, 1] and a "
            "number at or above 0 that change the weights and leave some"
        )


# same as agents/dqn_minatar.py::refuse_blind_detector
def refuse_blind_detector(args: Args) -> None:
    """A CUSUM that rests while the world changes finds nothing, or only every other change."""
    rewarm, shift = args.rewarm, args.shift
    if rewarm.trigger != "cusum":
        return
    gaps = [after - before for before, after in pairwise(shift.at_steps)]
    gaps = gaps or [shift.every_steps or args.total_timesteps]
    for flag, blocks, steps in (
        ("burn-in", rewarm.burn_in, min(shift.at_steps, default=gaps[0])),
        ("refractory", rewarm.refractory, min(gaps)),
    ):
        if blocks * rewarm.block >= (updates := to_updates(args, steps)):
            raise ValueError(
                f"--rewarm.{flag} {blocks} blocks of --rewarm.block {rewarm.block} updates outlast the {updates} "
                "updates between changes (of the run, if there are none), so that the next is missed: give fewer "
                f"than {updates / rewarm.block:g} blocks, or shorter ones"
            )


# same as agents/dqn_minatar.py::SCHEDULE_FLAGS
SCHEDULE_FLAGS: dict[str, list[str]] = {
    "constant": [],
    "linear-decay": ["low", "period_steps"],
    "warmup-cosine": ["low", "period_steps", "warmup_frac"],
    "cyclic": ["low", "period_steps", "warmup_frac"],
    "cyclic-then-constant": ["low", "period_steps", "warmup_frac", "cycles"],
    "one-cycle": ["low", "period_steps", "warmup_frac"],
}


def run_steps(args: Args) -> int:
    """Agent steps of the run: --total-timesteps, rounded up to whole iterations."""
    iteration = args.num_envs * args.num_steps
    return math.ceil(args.total_timesteps / iteration) * iteration


def to_updates(args: Args, steps: int) -> int:
    """Agent steps -> optimiser updates; 0 steps are the whole run."""
    iterations = (steps or run_steps(args)) / (args.num_envs * args.num_steps)
    return max(1, round(iterations * args.update_epochs * args.num_minibatches))


_nap, _constant, _cyclic = NapArgs(enabled=True), ScheduleArgs(kind="constant"), ScheduleArgs("cyclic", 1e-5, 500_000)
_chain = {
    "env_id": "MinAtar/Breakout-v0",
    "shift": ShiftArgs(
        kind="games", games=("MinAtar/Freeway-v0", "MinAtar/SpaceInvaders-v0"), every_steps=256 * 64 * 128
    ),
    "total_timesteps": 6 * 256 * 64 * 128,
}
_decay = ScheduleArgs("warmup-cosine", 1e-5, 256 * 64 * 128)
_cusum = RewarmArgs(trigger="cusum", block=32, smoothing=0.1)  # an iteration is a block
PRESETS = {
    "baseline": Preset("rate annealed linearly to 0, no projection", Args(exp_name="baseline")),
    "constant": Preset("constant rate, no projection", Args(exp_name="constant", schedule=_constant)),
    "cyclic": Preset("rate cycles between high and low", Args(exp_name="cyclic", schedule=_cyclic)),
    "nap": Preset("normalize-and-project, rate annealed to 0", Args(exp_name="nap", nap=_nap)),
    "nap-constant": Preset(
        "normalize-and-project, constant rate", Args(exp_name="nap-constant", nap=_nap, schedule=_constant)
    ),
    "nap-cyclic": Preset(
        "normalize-and-project, cycling rate", Args(exp_name="nap-cyclic", nap=_nap, schedule=_cyclic)
    ),
    "adaptive": Preset(
        "normalize-and-project, rate decays and is re-warmed when CUSUM fires on new TD errors",
        Args(exp_name="adaptive", nap=_nap, schedule=_decay, rewarm=_cusum),
    ),
    "chain-plain": Preset(
        "three games in turn, twice: plain continual training",
        Args(exp_name="chain-plain", schedule=_constant, **_chain),
    ),
    "chain-fresh": Preset(
        "the same games, a fresh agent for each visit (here the same as a reset of network and moments)",
        Args(exp_name="chain-fresh", schedule=_constant, switch=SwitchArgs(fresh_agent=True), **_chain),
    ),
    "chain-nap": Preset(
        "the same games, normalize-and-project, constant rate",
        Args(exp_name="chain-nap", nap=_nap, schedule=_constant, **_chain),
    ),
    "chain-switch": Preset(
        "the same games, normalize-and-project, rate decays and is re-warmed at each change",
        Args(exp_name="chain-switch", nap=_nap, schedule=_decay, rewarm=RewarmArgs(trigger="switch"), **_chain),
    ),
    "chain-cusum": Preset(
        "the same games, normalize-and-project, rate decays and is re-warmed when CUSUM fires on new TD errors",
        Args(exp_name="chain-cusum", nap=_nap, schedule=_decay, rewarm=_cusum, **_chain),
    ),
}

# ------------------------------------------------------------------------------------------------------ environment


class Rollout:
    """What T steps of N copies brought: T = --num-steps, N = --num-envs."""

    def __init__(self, steps: int, copies: int, shape: tuple[int, ...]):
        self.obs = np.zeros((steps, copies, *shape), dtype=np.uint8)
        self.actions = np.zeros((steps, copies), dtype=np.int64)
        self.logprobs, self.values, self.rewards = (np.zeros((steps, copies), dtype=np.float32) for _ in range(3))
        self.dones = np.zeros((steps, copies), dtype=bool)  # the episode ended with this step

    def flat(self, advantages: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        """The T x N samples of the update, [T * N, ...] each."""
        parts = {
            "obs": self.obs, "actions": self.actions, "logprobs": self.logprobs, "values": self.values,
            "advantages": advantages, "returns": advantages + self.values,
        }  # fmt: skip
        return {name: torch.from_numpy(a.reshape(-1, *a.shape[2:])).to(device) for name, a in parts.items()}


# same as agents/dqn_minatar.py::make_timetable
def make_timetable(shift: ShiftArgs) -> Timetable:
    """When the world changes."""
    if shift.kind == "none":
        return NoChange()
    if shift.rate:
        return AtRandom(shift.rate)
    return AtSteps(shift.at_steps) if shift.at_steps else EverySteps(shift.every_steps)


# same as agents/dqn_minatar.py::make_world
def make_world(args: Args, timetable: Timetable, copies: int) -> VectorEnv:
    """Copies of the world that the flags describe."""
    shift = args.shift
    return World((args.env_id, *shift.games), copies, shift.kind, timetable, shift.tasks, shift.values).make()


# same as agents/dqn_minatar.py::collect_probe
def collect_probe(env: VectorEnv, size: int, seed: int) -> Tensor:
    """[size, C, 10, 10]: every fifth observation of a uniform policy in a game of its own."""
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    kept = [obs[0]]
    for step in range(1, 5 * size - 4):
        obs = env.step(rng.integers(env.single_action_space.n, size=1))[0]
        if step % 5 == 0:
            kept.append(obs[0])
    return torch.from_numpy(np.stack(kept))


def evaluate(network: ActorCritic, env: VectorEnv, seed: int) -> np.ndarray:
    """Undiscounted returns [N] of the policy's likeliest actions, one episode in each of the N seeded copies."""
    device = network.actor.weight.device
    obs, _ = env.reset(seed=seed)
    returns, running = np.zeros(env.num_envs), np.ones(env.num_envs, dtype=bool)
    while running.any():
        with torch.no_grad():
            actions = network(torch.from_numpy(obs).to(device))[0].argmax(1).cpu().numpy()
        obs, rewards, terminated, truncated, _ = env.step(actions)
        returns += rewards * running
        running &= ~(terminated | truncated)
    return returns


# ---------------------------------------------------------------------------------------------------------- network


class ActorCritic(nn.Module):
    """Policy logits and value of one MinAtar observation: 3x3 convolution (16), 128 hidden units, two linear heads.

    normalised: LayerNorm before each nonlinearity, whose offset makes the layer's own bias redundant.
    """

    def __init__(self, channels: int, actions: int, normalised: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, kernel_size=3, bias=not normalised)
        self.conv_norm = nn.LayerNorm((16, 8, 8)) if normalised else nn.Identity()
        self.conv_relu = nn.ReLU()
        self.hidden = nn.Linear(16 * 8 * 8, 128, bias=not normalised)
        self.hidden_norm = nn.LayerNorm(128) if normalised else nn.Identity()
        self.hidden_relu = nn.ReLU()
        self.actor, self.critic = nn.Linear(128, actions), nn.Linear(128, 1)
        for layer, gain in ((self.conv, 2**0.5), (self.hidden, 2**0.5), (self.actor, 0.01), (self.critic, 1.0)):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:  # [B, C, 10, 10] -> [B, A], [B]
        x = self.conv_relu(self.conv_norm(self.conv(obs.to(self.actor.weight.dtype))))  # [B, 16, 8, 8]
        x = self.hidden_relu(self.hidden_norm(self.hidden(x.flatten(1))))  # [B, 128]
        return self.actor(x), self.critic(x)[:, 0]


HEADS = ["actor", "critic"]
PROBED = ["conv_relu", "hidden_relu"]  # after the nonlinearity, where dead, dormant and pattern are defined


@torch.no_grad()
def act(network: ActorCritic, obs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actions [N] drawn from the policy, the logarithms of their probabilities [N], and values [N]."""
    logits, values = network(torch.from_numpy(obs).to(network.actor.weight.device))
    logprobs = F.log_softmax(logits, 1).cpu().numpy()  # [N, A]
    actions = (logprobs + rng.gumbel(size=logprobs.shape)).argmax(1)  # argmax of log p + Gumbel noise is a draw from p
    return actions, logprobs[np.arange(len(actions)), actions], values.cpu().numpy()


@torch.no_grad()
def value(network: ActorCritic, obs: np.ndarray) -> np.ndarray:
    """V [N]."""
    return network(torch.from_numpy(obs).to(network.actor.weight.device))[1].cpu().numpy()


# ----------------------------------------------------------------------------------------------------------- losses


def gae(
    rewards: np.ndarray, values: np.ndarray, dones: np.ndarray, last_values: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Generalised advantage estimates [T, N] (arXiv:1506.02438), and the TD errors delta [T, N] that they sum up.

    delta_t = r_t + gamma V(s_{t+1}) (1 - done_t) - V(s_t),  A_t = delta_t + gamma lambda (1 - done_t) A_{t+1}

    A step that truncates an episode is done too; its reward is expected to hold gamma V(final observation) already.

    Args:
        rewards, values, dones: [T, N], of the steps.
        last_values: [N], V of the observations after the last step.
    """
    advantages, deltas = np.zeros_like(rewards), np.zeros_like(rewards)
    following, next_values = np.zeros_like(last_values), last_values
    for t in reversed(range(len(rewards))):
        goes_on = 1.0 - dones[t]
        deltas[t] = rewards[t] + gamma * next_values * goes_on - values[t]
        advantages[t] = following = deltas[t] + gamma * lam * goes_on * following
        next_values = values[t]
    return advantages, deltas


def ppo_loss(network: ActorCritic, batch: dict[str, Tensor], args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a minibatch and its parts.

    L = -E min(r A, clip(r, 1 - c, 1 + c) A) + vf_coef / 2 E max((V - R)^2, (V_clipped - R)^2) - ent_coef E H,
    r = pi(a | s) / pi_old(a | s)   (arXiv:1707.06347)
    """
    logits, values = network(batch["obs"])
    logprobs = F.log_softmax(logits, 1)  # [B, A]
    chosen = logprobs.gather(1, batch["actions"][:, None])[:, 0]  # [B]
    log_ratio = chosen - batch["logprobs"]
    ratio = log_ratio.exp()
    advantages = batch["advantages"]
    if args.norm_adv:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    policy_loss = -torch.min(ratio * advantages, clipped * advantages).mean()
    errors = (values - batch["returns"]).square()
    if args.clip_vloss:
        near = batch["values"] + (values - batch["values"]).clamp(-args.clip_coef, args.clip_coef)
        errors = torch.max(errors, (near - batch["returns"]).square())
    value_loss = 0.5 * errors.mean()
    entropy = -(logprobs.exp() * logprobs).sum(1).mean()
    with torch.no_grad():
        parts = {
            "losses/policy_loss": policy_loss.detach(),
            "losses/value_loss": value_loss.detach(),
            "losses/entropy": entropy.detach(),
            "losses/approx_kl": (ratio - 1 - log_ratio).mean(),
            "losses/clipfrac": ((ratio - 1).abs() > args.clip_coef).double().mean(),
        }
    return policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy, parts


# ------------------------------------------------------------------------------------------------------------- main


# same as agents/dqn_minatar.py::make_schedule
def make_schedule(args: Args) -> Schedule:
    """Updates since the last trigger -> learning rate."""
    s, peak = args.schedule, args.learning_rate
    period = to_updates(args, s.period_steps)
    warmup = round(s.warmup_frac * period)
    match s.kind:
        case "constant":
            return Constant(peak)
        case "linear-decay":
            return LinearDecay(peak, s.low, period)
        case "warmup-cosine":
            return WarmupCosine(peak, warmup, period - warmup, s.low, initial=s.low)
        case "cyclic":
            return Cyclic(s.low, peak, period, s.warmup_frac)
        case "cyclic-then-constant":
            return CyclicThenConstant(s.low, peak, period, s.cycles, s.warmup_frac)
        case "one-cycle":
            return OneCycle(s.low, peak, period, final=s.low, warmup_frac=s.warmup_frac)


# same as agents/dqn_minatar.py::make_trigger
def make_trigger(args: Args) -> Trigger:
    """What restarts the schedule."""
    r = args.rewarm
    match r.trigger:
        case "never" | "switch":  # at a change of the world, which comes between updates, `main` restarts the schedule
            return Never()
        case "every":
            return Every(to_updates(args, r.every_steps))
        case "cusum":
            return OnCusum(
                Cusum(
                    threshold=r.threshold,
                    slack=r.slack,
                    block=r.block,
                    burn_in=r.burn_in,
                    refractory=r.refractory,
                    smoothing=r.smoothing,
                    # Errors grow with the returns, slowly: what counts is by which factor, and at once. 5 % is no
                    # change; one block of a jump shall not hide the rest of it.
                    log=True,
                    min_relative_deviation=0.05,
                    clip=3.0,
                )
            )


def make_network(channels: int, actions: int, args: Args, seed: int, device: torch.device) -> ActorCritic:
    """A network with the weights that this seed gives it."""
    with torch.random.fork_rng(devices=[]):  # torch's layers initialise themselves from the global stream
        torch.manual_seed(seed)
        return ActorCritic(channels, actions, args.network == "normalised").to(device)


def intervene(switch: SwitchArgs, network: ActorCritic, fresh: ActorCritic, projection: Projection | None) -> None:
    """What --switch does to the weights, in place; `fresh` is a newly initialised network."""
    match "reset" if switch.fresh_agent else switch.intervention:
        case "shrink-and-perturb":
            shrink_and_perturb_(network, fresh, shrink=switch.shrink, perturb=switch.perturb)
            if projection:  # of shrinking and perturbing a new direction is left
                projection.project_()
        case "reset":
            reset_(network, fresh)
        case "reset-head":
            reset_(network, fresh, modules=HEADS)


# same as agents/dqn_minatar.py::run_directory
def run_directory(args: Args) -> Path:
    """--directory, or runs/logs/<exp_name>__<script>__<game>__s<seed>__<time>."""
    what = f"{args.exp_name}__{Path(__file__).stem}__{args.env_id.split('/')[-1]}__s{args.seed}"
    return args.directory or Path("runs/logs", f"{what}__{datetime.now():%Y%m%d-%H%M%S-%f}")


# same as agents/dqn_minatar.py::Progress
class Progress:
    """The line on the terminal, and the speed since the line before."""

    def __init__(self, total_timesteps: int, step: int):
        self.total, self.step, self.time, self.shown = total_timesteps, step, time.perf_counter(), 0.0

    def steps_per_second(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) / (now - self.time)
        self.step, self.time = step, now
        return rate

    def show(self, step: int, sps: float, returns: deque[float], rate: float) -> None:
        now, terminal = time.perf_counter(), sys.stdout.isatty()
        if now - self.shown < (1.0 if terminal else 10.0) and step < self.total:
            return
        self.shown, mean = now, f"{np.mean(returns):.2f}" if returns else "none"
        line = f"step {step:,} of {self.total:,}   {sps:.0f} steps/s   mean return {mean}   learning rate {rate:.2e}"
        print(f"\r{line:<100}" if terminal else line, end="" if terminal else "\n", flush=True)


def keep_freed_memory() -> None:
    """Have glibc keep the large blocks that an update frees and takes again; elsewhere nothing happens.

    Handing 16 MB back to the system and faulting it in again, at every operation, costs as much as the arithmetic.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
    for option, size in ((-3, 32 << 20), (-1, 2**31 - 1), (-2, 64 << 20)):
        mallopt(option, size)


def main(args: Args) -> None:
    """Train one agent; everything it leaves behind is in its run directory."""
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)  # NumPy's BLAS: two threads that wait for each other are slower than one

    # Every random draw below comes from one of these streams.
    with one_line_errors("--seed"):
        streams = np.random.SeedSequence(args.seed).spawn(6)
    init_seed, env_seed, probe_seed = (int(s.generate_state(1)[0]) for s in streams[:3])
    minibatch_rng, action_rng = (np.random.default_rng(s) for s in streams[3:5])

    with one_line_errors("--env-id, --shift" if args.shift.kind != "none" else ""):
        env = make_world(args, make_timetable(args.shift), args.num_envs)
    channels, actions = env.single_observation_space.shape[0], int(env.single_action_space.n)
    with one_line_errors("--device", also=(RuntimeError,)):
        device = torch.device(args.device)
        torch.empty(1, device=device)
    network = make_network(channels, actions, args, init_seed, device)
    optimizer = FlatAdam(list(network.parameters()), lr=args.learning_rate, eps=args.adam_eps)
    rollout = Rollout(args.num_steps, args.num_envs, env.single_observation_space.shape)

    # elr attaches to the network and the optimiser.
    layers = scalable_weights(network, heads=HEADS)  # conv and hidden
    probe_obs = collect_probe(make_world(args, NoChange(), 1), args.probe.size, probe_seed).to(device)

    def make_rewarming() -> Rewarming:
        """Schedule and trigger, from their start."""
        with one_line_errors("--schedule, --rewarm"):
            return Rewarming(optimizer, make_schedule(args), make_trigger(args), args.rewarm.moments)

    rewarming = make_rewarming()
    meter = probe = None

    def make_projection() -> Projection | None:
        """What holds the norms where they are now."""
        if not args.nap.enabled:
            return None
        with one_line_errors("--nap"):
            return Projection(
                network,
                every=args.nap.every,
                gains=args.nap.gains,
                gain_strength=args.nap.gain_strength,
                heads=HEADS,
                check_inputs=probe_obs,
                allow_scale_dependent=args.nap.allow_scale_dependent,
            )

    projection = make_projection()
    if args.probe.meter_every:
        meter = Meter(layers, every=args.probe.meter_every, optimizer=optimizer, nominal_power=1)
    if args.probe.every:
        with one_line_errors("--probe"):
            probe = Probe(network, probe_obs, PROBED, every=args.probe.every, tau=args.probe.tau)

    stateful: dict[str, Any] = {
        "network": network, "optimizer": optimizer, "rewarming": rewarming, "projection": projection, "meter": meter,
        "probe": probe, "env": env,
    }  # fmt: skip
    stateful = {name: part for name, part in stateful.items() if part is not None}
    iteration_steps = args.num_envs * args.num_steps
    end = run_steps(args)
    global_step, updates, recent_returns, returns = 0, 0, deque[float](maxlen=100), None
    obs, _ = env.reset(seed=env_seed)  # [N, C, 10, 10] uint8

    def evaluation() -> VectorEnv | None:
        """The present task, for good."""
        return evaluation_world(env, args.eval_episodes, max_episode_steps=10_000) if args.eval_every else None

    evaluation_env = evaluation()

    def switch_world(step: int) -> None:
        """The world has changed at `step`: what the flags have happen then."""
        nonlocal projection, rewarming, evaluation_env
        switch, fresh = args.switch, args.switch.fresh_agent
        key = np.random.SeedSequence(args.seed, spawn_key=(*streams[5].spawn_key, step))
        new = make_network(channels, actions, args, int(key.generate_state(1)[0]), device)
        intervene(switch, network, new, projection)
        if projection and (fresh or switch.intervention == "reset"):
            projection = stateful["projection"] = make_projection()  # the norms are the new network's
        if fresh or switch.optimizer == "reset":
            reset_moments_(optimizer)
        if fresh:
            optimizer.param_groups[0]["lr"] = args.learning_rate
            rewarming = stateful["rewarming"] = make_rewarming()
        elif args.rewarm.trigger == "switch":
            rewarming.restart()
            run.scalar("rewarm/event", 1, global_step)
        if probe and (fresh or switch.intervention != "none"):
            probe.forget()  # what the intervention did to the features is no learning
        recent_returns.clear()
        evaluation_env = evaluation()

    def require_finite(what: str = "") -> None:
        """Stop before a broken network is saved, measured or stepped; the checkpoint on disk is from before."""
        named = list(weights_and_gradients(network))
        if what or not all(bool(torch.isfinite(t).all()) for _, t in named):
            raise NonFiniteError(
                f"{what or 'a network that is'} not finite at step {global_step}, update {updates}, learning rate "
                f"{rewarming.rate:g}: {describe_nonfinite(named)}; the last checkpoint is from before"
            )

    def checkpoint() -> None:
        require_finite()
        counters = {"global_step": global_step, "updates": updates, "recent_returns": list(recent_returns)}
        draws = {"action_rng": rng_state(action_rng), "minibatch_rng": rng_state(minibatch_rng)}
        run.checkpoint(global_step, counters | draws | {n: part.state_dict() for n, part in stateful.items()})

    if args.resume:
        run = Run.resume(args.resume, device=device)
    else:
        run = Run.create(run_directory(args), config_to_dict(args), argv=sys.argv, device=device)
    with run, StopOnSignal() as stop:
        if args.resume:
            state = run.take_state()
            misfit = f"{args.resume}: the checkpoint does not fit this version of the script"
            with one_line_errors(misfit, also=(KeyError, RuntimeError)):
                for name, part in stateful.items():
                    part.load_state_dict(state[name])
                restore_rng(action_rng, state["action_rng"])
                restore_rng(minibatch_rng, state["minibatch_rng"])
                global_step, updates = state["global_step"], state["updates"]
                recent_returns.extend(state["recent_returns"])
                obs, evaluation_env = env.observation(), evaluation()
        else:
            charts = {"task": ["shift/task"]} if args.shift.kind != "none" else {}
            run.layout(list(layers), PROBED, rewarming=args.rewarm.trigger != "never", charts=charts)
            if args.shift.kind != "none":
                run.scalar("shift/task", 0, global_step)
            if probe:
                run.scalars(probe.measure(), global_step)
            checkpoint()
        progress = Progress(end, global_step)
        while global_step < end and not stop.requested:
            # Act: T steps in each of the N copies.
            changed = 0
            for t in range(args.num_steps):
                drawn, rollout.logprobs[t], rollout.values[t] = act(network, obs, action_rng)
                rollout.obs[t], rollout.actions[t] = obs, drawn
                obs, rewards, terminated, truncated, infos = env.step(drawn)
                if truncated.any():  # the episode would have gone on: its last observation says how well
                    rewards = rewards + args.gamma * value(network, infos["final_obs"]) * truncated
                rollout.rewards[t], rollout.dones[t] = rewards, terminated | truncated
                global_step += args.num_envs
                if "shift" in infos and global_step < end:
                    (told,) = infos["shift"].values()
                    changed = global_step
                    run.scalar("shift/task", told["task"], global_step)
                    run.scalar("shift/boundary", 1, global_step)
                if "episode" in infos:  # one that a change cut short says little of the task
                    whole = infos["_episode"] & ~truncated if "shift" in infos else infos["_episode"]
                    for copy in np.flatnonzero(whole):
                        recent_returns.append(float(infos["episode"]["r"][copy]))
                        run.scalar("charts/episodic_return", recent_returns[-1], global_step)
                        run.scalar("charts/episodic_length", int(infos["episode"]["l"][copy]), global_step)
            advantages, deltas = gae(
                rollout.rewards, rollout.values, rollout.dones, value(network, obs), args.gamma, args.gae_lambda
            )
            surprise = max(float(np.square(deltas).mean()), 1e-12)  # what CUSUM watches, in its logarithm
            samples = rollout.flat(advantages, device)

            # Learn: Algorithm 1 of arXiv:2507.20057 for each minibatch.
            for _ in range(args.update_epochs):
                order = torch.from_numpy(minibatch_rng.permutation(iteration_steps)).to(device)
                for index in order.chunk(args.num_minibatches):
                    loss, parts = ppo_loss(network, {name: x[index] for name, x in samples.items()}, args)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.clip_(args.max_grad_norm)
                    if not math.isfinite(loss.item()):
                        require_finite(f"loss {loss.item()},")
                    if meter:
                        meter.before_step()
                    optimizer.step()
                    measured = meter is not None and meter.after_step()  # the step really taken, before the projection
                    if projection:
                        projection.step(rewarming.rate)  # W <- W ||W_0|| / ||W||; gains and offsets by --nap.gains
                    rate = rewarming.rate
                    # trigger? restart the schedule; set the next update's rate
                    rewarmed = rewarming.step(surprise)
                    updates += 1

                    if measured:
                        run.scalars(meter.scalars(), global_step)
                    if rewarmed:
                        run.scalar("rewarm/event", 1, global_step)
                    if probe and probe.due(updates):
                        require_finite()
                        run.scalars(probe.measure(), global_step)

            # Report.
            iteration = global_step // iteration_steps
            sps = progress.steps_per_second(global_step)
            spread = float(np.var(advantages + rollout.values))
            unexplained = float(np.var(advantages)) / spread if spread else math.nan
            run.scalars({name: float(part) for name, part in parts.items()}, global_step)
            if not math.isnan(unexplained):  # returns that are all alike leave nothing to explain
                run.scalar("losses/explained_variance", 1 - unexplained, global_step)
            run.scalars({"charts/learning_rate": rate, "charts/SPS": sps}, global_step)
            if rewarming.statistic is not None:
                run.scalar("rewarm/statistic", rewarming.statistic, global_step)
            progress.show(global_step, sps, recent_returns, rewarming.rate)
            if args.eval_every and (iteration % args.eval_every == 0 or global_step == end):
                returns = evaluate(network, evaluation_env, seed=env_seed + global_step)
                run.scalar("eval/episodic_return", returns.mean(), global_step)
                run.scalar("eval/episodic_return_std", returns.std(), global_step)
            if changed and global_step < end:
                switch_world(changed)
            if iteration % args.checkpoint_every == 0 and global_step < end:
                checkpoint()

        checkpoint()
        if global_step < end:
            run.interrupt(global_step)
            command = shlex.join([sys.executable, sys.argv[0], "--resume", str(run.directory)])
            print(f"\nstopped at step {global_step}; go on with: {command}")
            raise SystemExit(130)
        run.finish(global_step)
    print(f"\nfinished {global_step:,} steps in {run.directory}")
    if recent_returns:
        print(f"training return {np.mean(recent_returns):.2f}, mean of the last {len(recent_returns)} episodes")
    if returns is not None:
        print(f"greedy return {returns.mean():.2f}, mean of {args.eval_episodes} episodes")
    print(f"look at it with: tensorboard --logdir {run.directory}")


if __name__ == "__main__":
    exit_with_one_line(lambda: main(parse(Args, PRESETS, prog_description=__doc__.split("\n\n")[0])))
