"""DQN on MinAtar with normalize-and-project and a re-warmed learning rate, in one file.

    python agents/dqn_minatar.py                              plain DQN (Mnih et al. 2015), constant learning rate
    python agents/dqn_minatar.py nap-cyclic --seed 1          weights projected, learning rate re-warmed on a cycle
    python agents/dqn_minatar.py adaptive                     re-warmed when CUSUM finds a change in the TD errors
    python agents/dqn_minatar.py chain-switch                 three games in turn, twice; re-warmed at each change
    python agents/dqn_minatar.py --resume runs/logs/RUN       go on with a killed or interrupted run

Measured with `baseline` on Breakout: training return 14.8, 18.1, 15.6 over the last 100,000 of 1,000,000 steps (three
seeds; random: 0.4). On Freeway it stands still near 29, below published DQN; with --adam-eps 1e-2 it ends
at 39. One CPU core makes 300 to 600 steps a second at replay ratio 1. All numbers so far: docs/results.md.

The method is Algorithm 1 of Lyle et al. 2025 (arXiv:2507.20057): optimiser step -> project -> re-warm? -> set the rate;
those lines stand in this order in `main`. Normalize-and-project is arXiv:2407.01800.
A step is one decision of the agent, and a frame, as MinAtar skips none; an update is one optimiser step; updates =
replay_ratio x (steps - learning_starts). Ratio 1 is the paper's high update-to-data regime, 0.25 the usual one.

Deviations from Young & Tian (2019, arXiv:1903.03176): Adam for RMSProp, squared loss for Huber loss, minimal action
sets (-v1), final exploration 0.05 for 0.1, and LayerNorm before each nonlinearity (`--network plain` is theirs).
From Lyle et al. 2025, whose experiments are on Atari: rates 2.5e-4 and 4e-6 (theirs 6.25e-5 and 1e-6, the same ratio),
cycles of 50,000 steps (4M), three of them before annealing (ten). Projection rescales gains and offsets jointly also in
the last LayerNorm, before the head; there it bounds the features that the head sees, as no normalisation follows.

With --shift the world changes (envs/shifts.py), and --switch says what else happens then; by default nothing but the
change, which is plain continual training. The probe's observations are of the first task, and stay.

--rewarm.trigger cusum watches the squared TD errors of the newest transitions (`NewestErrors`), in their logarithm. The
paper says the loss; but the loss of replayed transitions hides a change, as most of them are from before.
"""

from __future__ import annotations

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
from gymnasium.vector import VectorEnv
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from elr.changepoint import Cusum
from elr.features import Probe
from elr.flat_adam import FlatAdam
from elr.interventions import reset_, shrink_and_perturb_
from elr.measure import Meter
from elr.moments import reset_moments_
from elr.projection import Projection, scalable_weights
from elr.rewarming import Every, Never, OnCusum, Rewarming, Trigger
from elr.schedules import Constant, Cyclic, CyclicThenConstant, LinearDecay, OneCycle, Schedule, WarmupCosine
from envs.timetables import AtRandom, AtSteps, EverySteps, NoChange, Timetable
from envs.worlds import World, evaluation_world
from runs.recording import (
    NonFiniteError,
    Preset,
    Run,
    RunError,
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
    ] = "constant"  # fmt: skip
    """shape of the schedule"""
    low: float = 4e-6
    """rate at the bottom of a cycle or at the end of a decay (the paper's ratio of high to low is 62.5)"""
    period_steps: int = 50_000
    """agent steps of one cycle or decay, warm-up included"""
    warmup_frac: float = 0.1
    """share of the period spent rising"""
    cycles: int = 3
    """cycles before the rate stays low (cyclic-then-constant)"""


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
    """What else happens when the world changes."""

    fresh_agent: bool = False
    """a new agent learns each task (the oracle): a reset of all that follows, schedule and trigger included"""
    optimizer: Literal["keep", "reset"] = "keep"
    """Adam's moments and step counts: kept, or set to zero as in an optimiser that is built anew"""
    replay: Literal["keep", "clear"] = "keep"
    """the replay memory; cleared, updates pause for --learning-starts steps"""
    exploration: Literal["keep", "restart"] = "keep"
    """the exploration rate goes on, or falls from --start-e again"""
    target: Literal["keep", "copy"] = "keep"
    """the target network waits for --target-network-frequency, or is copied at once"""
    intervention: Literal["none", "shrink-and-perturb", "reset", "reset-head"] = "none"
    """what is done to the weights"""
    shrink: float = 0.4
    """W <- shrink * W + perturb * W_fresh (shrink-and-perturb; Ash and Adams' code has 0.4 and 0.1)"""
    perturb: float = 0.1
    """see shrink"""


@dataclass(frozen=True)
class ProbeArgs:
    """Measurements that never change training."""

    every: int = 10_000
    """updates between feature-learning measurements on the probe (the interval T of Delta_C, Delta_A); 0 is off"""
    size: int = 256
    """observations in the probe, from an environment and uniform policy of its own"""
    tau: float = 0.1
    """a unit is dormant when its share of the layer's mean activation is at most tau"""
    meter_every: int = 1000
    """updates between measurements of the realised effective learning rate and the norms; 0 is off"""


@dataclass(frozen=True)
class Args:
    """DQN on MinAtar: every flag, its default, its meaning."""

    env_id: str = "MinAtar/Breakout-v1"
    """MinAtar/<Game>-v1 (minimal actions) or -v0 (all six); Asterix, Breakout, Freeway, Seaquest, SpaceInvaders"""
    seed: int = 1
    """seed of every random stream"""
    total_timesteps: int = 1_000_000
    """agent steps of the run"""
    learning_rate: float = 2.5e-4
    """Adam's rate; with a schedule, its peak"""
    adam_eps: float = 1e-8
    """Adam's epsilon"""
    buffer_size: int = 100_000
    """transitions kept in the replay memory"""
    learning_starts: int = 5_000
    """agent steps before the first update"""
    batch_size: int = 32
    """transitions per update"""
    replay_ratio: float = 1.0
    """updates per agent step"""
    gamma: float = 0.99
    """discount"""
    target_network_frequency: int = 1_000
    """agent steps between copies of the network into the target network"""
    start_e: float = 1.0
    """exploration rate at the first step"""
    end_e: float = 0.05
    """exploration rate after --exploration-steps"""
    exploration_steps: int = 100_000
    """agent steps in which the exploration rate falls linearly"""
    double_q: bool = False
    """choose the target's action with the online network (van Hasselt et al. 2016)"""
    network: Literal["normalised", "plain"] = "normalised"
    """LayerNorm before each nonlinearity, or biases and none (Young & Tian 2019)"""
    gradient: Literal["auto", "explicit", "autograd"] = "auto"
    """the same gradient, written out by hand (faster, CPU only) or by autograd; auto is explicit on a CPU"""
    nap: NapArgs = field(default_factory=NapArgs)
    schedule: ScheduleArgs = field(default_factory=ScheduleArgs)
    rewarm: RewarmArgs = field(default_factory=RewarmArgs)
    shift: ShiftArgs = field(default_factory=ShiftArgs)
    switch: SwitchArgs = field(default_factory=SwitchArgs)
    probe: ProbeArgs = field(default_factory=ProbeArgs)
    eval_every: int = 50_000
    """agent steps between evaluations, in the present task (at a change: in the one that ends); 0 is off"""
    eval_episodes: int = 10
    """episodes of one evaluation, each from a fresh seeded game, greedy, at most 10,000 steps long"""
    log_every: int = 1_000
    """agent steps between points of speed and exploration, and updates between points of losses and rates"""
    checkpoint_every: int = 50_000
    """agent steps between checkpoints"""
    device: str = "cpu"
    """cpu or cuda; the latter has not been run yet"""
    threads: int = 1
    """CPU threads of torch and of NumPy's linear algebra"""
    exp_name: str = "dqn"
    """first part of the run's name"""
    directory: Path | None = None
    """run directory; default runs/logs/<exp_name>__<script>__<game>__s<seed>__<time>"""
    resume: Path | None = None
    """run directory to go on with; all other flags come from its config.json"""

    def __post_init__(self) -> None:
        positive = "total_timesteps learning_rate buffer_size batch_size replay_ratio target_network_frequency"
        positive += " exploration_steps log_every checkpoint_every threads eval_episodes adam_eps"
        for name in positive.split():
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}")
        if not 0 <= self.end_e <= self.start_e <= 1:
            raise ValueError(f"--end-e {self.end_e} and --start-e {self.start_e}: need 0 <= end <= start <= 1")
        if not 0 <= self.gamma < 1:
            raise ValueError(f"--gamma must lie in [0, 1), not {self.gamma}")
        if self.batch_size > self.buffer_size:
            raise ValueError(f"--batch-size {self.batch_size} exceeds --buffer-size {self.buffer_size}")
        if min(self.probe.every, self.probe.meter_every, self.eval_every, self.learning_starts) < 0:
            raise ValueError("--probe.every, --probe.meter-every, --eval-every, --learning-starts must be >= 0")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"--device {self.device}: this torch sees no GPU; install a CUDA build or use --device cpu"
            )
        if self.gradient == "explicit" and self.device != "cpu":
            raise ValueError(f"--gradient explicit runs on a CPU only, not on --device {self.device}; drop one of them")
        self._refuse_inert_flags()

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
        if rewarm.trigger == "cusum" and self.learning_starts == 0:
            raise ValueError(
                "--learning-starts 0 leaves --rewarm.trigger cusum without a TD error at the first update: give at "
                "least 1"
            )
        if rewarm.trigger != "never" and schedule.kind == "constant" and rewarm.moments == "keep":
            raise ValueError(
                f"--rewarm.trigger {rewarm.trigger} restarts nothing with --schedule.kind constant and "
                "--rewarm.moments keep; choose another schedule, or --rewarm.moments reset"
            )
        for flag, steps in (("schedule.period", schedule.period_steps), ("rewarm.every", rewarm.every_steps)):
            if steps * self.replay_ratio < 1:
                raise ValueError(f"--{flag}-steps {steps} at --replay-ratio {self.replay_ratio} is not even one update")
        if rewarm.trigger == "every" and rewarm.every_steps >= self.total_timesteps:
            raise ValueError(
                f"--rewarm.every-steps {rewarm.every_steps} never comes in --total-timesteps {self.total_timesteps}"
            )
        if rewarm.trigger == "every" and schedule.kind == "cyclic" and rewarm.every_steps % schedule.period_steps == 0:
            raise ValueError(
                f"--rewarm.every-steps {rewarm.every_steps} restarts --schedule.kind cyclic just where a cycle of "
                f"--schedule.period-steps {schedule.period_steps} ends: it changes nothing"
            )
        refuse_inert_shifts(self)
        self._refuse_switches_without_learning()
        refuse_blind_detector(self)
        if self.learning_starts >= self.total_timesteps:
            raise ValueError(
                f"--learning-starts {self.learning_starts} leaves no update in --total-timesteps {self.total_timesteps}"
            )
        if probe.size < 2:
            raise ValueError(f"--probe.size {probe.size} compares nothing: give at least 2 observations")
        if probe.every == 0:
            inert = ["tau"] if nap.enabled else ["size", "tau"]  # projection is checked on the probe's observations
            reject_unused("probe", probe, inert, "with --probe.every 0")
        if self.eval_every == 0:
            reject_unused("", self, ["eval_episodes"], "with --eval-every 0")

    def _refuse_switches_without_learning(self) -> None:
        shift, switch = self.shift, self.switch
        if switch.exploration == "restart" and self.start_e == self.end_e:
            raise ValueError(
                f"--switch.exploration restart changes nothing with --start-e {self.start_e} and --end-e {self.end_e}"
            )
        gaps = [b - a for a, b in pairwise((0, *shift.at_steps))]
        gap = shift.every_steps or min(gaps, default=math.inf)
        if (switch.fresh_agent or switch.replay == "clear") and gap <= self.learning_starts:
            what = "--switch.fresh-agent" if switch.fresh_agent else "--switch.replay clear"
            raise ValueError(
                f"{what} pauses updates for --learning-starts {self.learning_starts} steps, and --shift has changes "
                f"{gap} steps apart: nothing would be learned in between"
            )


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


SCHEDULE_FLAGS: dict[str, list[str]] = {
    "constant": [],
    "linear-decay": ["low", "period_steps"],
    "warmup-cosine": ["low", "period_steps", "warmup_frac"],
    "cyclic": ["low", "period_steps", "warmup_frac"],
    "cyclic-then-constant": ["low", "period_steps", "warmup_frac", "cycles"],
    "one-cycle": ["low", "period_steps", "warmup_frac"],
}


def to_updates(args: Args, steps: int) -> int:
    """Agent steps -> optimiser updates."""
    return max(1, round(steps * args.replay_ratio))


_nap, _cyclic = NapArgs(enabled=True), ScheduleArgs(kind="cyclic")
_chain = {
    "env_id": "MinAtar/Breakout-v0",
    "shift": ShiftArgs(kind="games", games=("MinAtar/Freeway-v0", "MinAtar/SpaceInvaders-v0"), every_steps=200_000),
    "total_timesteps": 1_200_000,
}
_decay = ScheduleArgs(kind="warmup-cosine", period_steps=200_000)
PRESETS = {
    "baseline": Preset("constant high rate, no projection", Args(exp_name="baseline")),
    "low": Preset("constant low rate, no projection", Args(exp_name="low", learning_rate=4e-6)),
    "cyclic": Preset("rate cycles between high and low", Args(exp_name="cyclic", schedule=_cyclic)),
    "cyclic-annealed": Preset(
        "three cycles, then the low rate for good",
        Args(exp_name="cyclic-annealed", schedule=ScheduleArgs(kind="cyclic-then-constant")),
    ),
    "nap": Preset("normalize-and-project, constant high rate", Args(exp_name="nap", nap=_nap)),
    "nap-cyclic": Preset(
        "normalize-and-project, cycling rate", Args(exp_name="nap-cyclic", nap=_nap, schedule=_cyclic)
    ),
    "quickstart": Preset(
        "nap-cyclic on Breakout in a few minutes",
        Args(
            exp_name="quickstart",
            nap=_nap,
            schedule=ScheduleArgs(kind="cyclic", period_steps=18_000),
            total_timesteps=59_000,
            exploration_steps=30_000,
        ),
    ),
    "adaptive": Preset(
        "normalize-and-project, rate decays and is re-warmed when CUSUM fires on new TD errors",
        Args(
            exp_name="adaptive",
            nap=_nap,
            schedule=ScheduleArgs(kind="warmup-cosine"),
            rewarm=RewarmArgs(trigger="cusum"),
        ),
    ),
    "chain-plain": Preset(
        "three games in turn, twice: plain continual training", Args(exp_name="chain-plain", **_chain)
    ),
    "chain-fresh": Preset(
        "the same games, a fresh agent for each visit",
        Args(exp_name="chain-fresh", switch=SwitchArgs(fresh_agent=True), **_chain),
    ),
    "chain-reset": Preset(
        "the same games, network and Adam's moments reset at each change",
        Args(exp_name="chain-reset", switch=SwitchArgs(intervention="reset", optimizer="reset"), **_chain),
    ),
    "chain-nap": Preset(
        "the same games, normalize-and-project, constant rate", Args(exp_name="chain-nap", nap=_nap, **_chain)
    ),
    "chain-switch": Preset(
        "the same games, normalize-and-project, rate decays and is re-warmed at each change",
        Args(exp_name="chain-switch", nap=_nap, schedule=_decay, rewarm=RewarmArgs(trigger="switch"), **_chain),
    ),
    "chain-cusum": Preset(
        "the same games, normalize-and-project, rate decays and is re-warmed when CUSUM fires on new TD errors",
        Args(exp_name="chain-cusum", nap=_nap, schedule=_decay, rewarm=RewarmArgs(trigger="cusum"), **_chain),
    ),
}

# ------------------------------------------------------------------------------------------------------ environment


class ReplayMemory:
    """The last `capacity` transitions; observations as bytes, sampled uniformly with replacement."""

    def __init__(self, capacity: int, channels: int):
        self.obs = np.zeros((capacity, channels, 10, 10), dtype=np.uint8)
        self.next_obs = np.zeros_like(self.obs)
        self.actions = np.zeros(capacity, dtype=np.int64)
        self.rewards = np.zeros(capacity, dtype=np.float32)
        self.terminated = np.zeros(capacity, dtype=np.float32)
        self.capacity, self.size, self.position = capacity, 0, 0

    def add(self, obs: np.ndarray, action: int, reward: float, next_obs: np.ndarray, terminated: bool) -> None:
        i = self.position
        self.obs[i], self.actions[i], self.rewards[i] = obs, action, reward
        self.next_obs[i], self.terminated[i] = next_obs, terminated
        self.position = (i + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def sample(self, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """obs [B, C, 10, 10], actions [B], rewards [B], next_obs [B, C, 10, 10], terminated [B]."""
        index = rng.integers(self.size, size=batch_size)
        return [a.take(index, 0) for a in (self.obs, self.actions, self.rewards, self.next_obs, self.terminated)]

    def clear(self) -> None:
        """Forget all transitions."""
        self.size = self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """The filled part; MinAtar's observations are binary, so eight pixels fit in a byte."""
        return {
            "position": self.position,
            "shape": [self.size, *self.obs.shape[1:]],
            "obs": np.packbits(self.obs[: self.size]),
            "next_obs": np.packbits(self.next_obs[: self.size]),
            "actions": self.actions[: self.size],
            "rewards": self.rewards[: self.size],
            "terminated": self.terminated[: self.size],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        shape = tuple(state["shape"])
        if shape[0] > self.capacity or shape[1:] != self.obs.shape[1:]:
            raise RunError(f"the checkpoint's replay memory {shape} does not fit into {self.obs.shape}")
        self.size, self.position = shape[0], state["position"]
        for name in ("obs", "next_obs"):
            bits = np.unpackbits(state[name], count=math.prod(shape))
            getattr(self, name)[: self.size] = bits.reshape(shape)
        for name in ("actions", "rewards", "terminated"):
            getattr(self, name)[: self.size] = state[name]


def make_timetable(shift: ShiftArgs) -> Timetable:
    """When the world changes."""
    if shift.kind == "none":
        return NoChange()
    if shift.rate:
        return AtRandom(shift.rate)
    return AtSteps(shift.at_steps) if shift.at_steps else EverySteps(shift.every_steps)


def make_world(args: Args, timetable: Timetable, copies: int) -> VectorEnv:
    """Copies of the world that the flags describe."""
    shift = args.shift
    return World((args.env_id, *shift.games), copies, shift.kind, timetable, shift.tasks, shift.values).make()


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


def evaluate(q_network: QNetwork, env: VectorEnv, seed: int) -> np.ndarray:
    """Undiscounted returns [N] of the greedy policy, one episode in each of the N seeded copies."""
    device = q_network.head.weight.device
    obs, _ = env.reset(seed=seed)
    returns, running = np.zeros(env.num_envs), np.ones(env.num_envs, dtype=bool)
    while running.any():
        with torch.no_grad():
            actions = q_network(torch.from_numpy(obs).to(device)).argmax(1).cpu().numpy()
        obs, rewards, terminated, truncated, _ = env.step(actions)
        returns += rewards * running
        running &= ~(terminated | truncated)
    return returns


class QNetwork(nn.Module):
    """Q(s, .) for one MinAtar observation: 3x3 convolution (16 channels), 128 hidden units, linear head.

    normalised: LayerNorm before each nonlinearity, whose offset makes the layer's own bias redundant.
    plain: the network of Young & Tian (2019), biases and no normalisation.
    """

    def __init__(self, channels: int, actions: int, normalised: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, kernel_size=3, bias=not normalised)
        self.conv_norm = nn.LayerNorm((16, 8, 8)) if normalised else nn.Identity()
        self.conv_relu = nn.ReLU()
        self.hidden = nn.Linear(16 * 8 * 8, 128, bias=not normalised)
        self.hidden_norm = nn.LayerNorm(128) if normalised else nn.Identity()
        self.hidden_relu = nn.ReLU()
        self.head = nn.Linear(128, actions)

    def forward(self, obs: Tensor) -> Tensor:  # [B, C, 10, 10] -> [B, A]
        x = self.conv_relu(self.conv_norm(self.conv(obs.to(self.head.weight.dtype))))  # [B, 16, 8, 8]
        x = x.permute(0, 2, 3, 1).flatten(1)  # channels last, the order in which ExplicitQ computes them
        x = self.hidden_relu(self.hidden_norm(self.hidden(x)))  # [B, 128]
        return self.head(x)


PROBED = ["conv_relu", "hidden_relu"]  # after the nonlinearity, where dead, dormant and pattern are defined


class Windows:
    """The memory in which a valid 3x3 convolution of B images is one matrix product, [80B, 9C] @ [9C, 16].

    Read row by row, output (r, c) sees the pixels 10 r + c + 10 i + j, so that the window of kernel offset (i, j) is a
    run of 80 consecutive pixels of a 10x10 image. The results at c = 8, 9 wrap around a row; they are left out on the
    way forward and stay zero on the way back.
    """

    def __init__(self, network: QNetwork, batch_size: int):
        b, c, dtype = batch_size, network.conv.in_channels, network.conv.weight.detach().numpy().dtype
        pixels = np.zeros(100 * b * c + 2, dtype)  # + 2: the last run of 80 ends two pixels past the image
        self.image = pixels[:-2].reshape(b, c, 10, 10)
        strides = [pixels.itemsize * n for n in (100, 10, 1, 100 * c, 1)]
        self.windows = np.lib.stride_tricks.as_strided(pixels, (c, 3, 3, b, 80), strides)
        self.patches = np.empty((9 * c, 80 * b), dtype)
        self.runs = self.patches.reshape(c, 3, 3, b, 80)
        self.maps, self.d_maps = np.zeros((80 * b, 16), dtype), np.zeros((80 * b, 16), dtype)
        self.valid, self.d_valid = (maps.reshape(b, 8, 10, 16)[:, :, :8] for maps in (self.maps, self.d_maps))
        self.x = np.empty((b, 8 * 8 * 16), dtype)  # channels last, as QNetwork flattens it
        self.x_maps = self.x.reshape(b, 8, 8, 16)

    def forward(self, obs: np.ndarray, kernel: np.ndarray) -> np.ndarray:  # [B, C, 10, 10], [16, 9C] -> [B, 1024]
        np.copyto(self.image, obs)
        np.copyto(self.runs, self.windows)
        np.matmul(self.patches.T, kernel.T, out=self.maps)
        np.copyto(self.x_maps, self.valid)
        return self.x

    def kernel_gradient(self, dx: np.ndarray) -> np.ndarray:  # [B, 1024] -> [16, 9C], for the last obs
        np.copyto(self.d_valid, dx.reshape(self.x_maps.shape))
        return (self.patches @ self.d_maps).T


class ExplicitQ:
    """QNetwork on a CPU for a fixed batch size, written out in NumPy, LayerNorm by torch's kernels.

    The same function of the same parameters as QNetwork under autograd: the arrays share the memory of the parameters
    and, if it `learns`, of their gradients, which must exist already (FlatAdam makes them). Two networks may share
    their `windows`; only the last one run forward can go backward.
    """

    def __init__(self, network: QNetwork, windows: Windows, learns: bool = False):
        self.windows = windows
        self.conv = array(network.conv.weight).reshape(16, -1)  # [16, 9C]
        self.hidden, self.head, self.bias = (  # [128, 1024], [A, 128], [A]
            array(p) for p in (network.hidden.weight, network.head.weight, network.head.bias)
        )
        if learns:
            self.d_conv = gradient_array(network.conv.weight).reshape(16, -1)
            self.d_hidden, self.d_head, self.d_bias = (
                gradient_array(p) for p in (network.hidden.weight, network.head.weight, network.head.bias)
            )
        self.conv_norm = explicit_norm(network.conv, network.conv_norm, learns)
        self.hidden_norm = explicit_norm(network.hidden, network.hidden_norm, learns)

    def forward(self, obs: np.ndarray) -> np.ndarray:  # [B, C, 10, 10] uint8 -> [B, A]
        self.x_out = self.conv_norm.forward(self.windows.forward(obs, self.conv))  # [B, 1024]
        self.x_active = self.x_out > 0
        self.x_out *= self.x_active  # ReLU
        self.h_out = self.hidden_norm.forward(self.x_out @ self.hidden.T)  # [B, 128]
        self.h_active = self.h_out > 0
        self.h_out *= self.h_active
        return self.h_out @ self.head.T + self.bias

    def backward(self, dq: np.ndarray) -> None:
        """Write d loss / d parameter into every .grad, given dq = d loss / d Q [B, A] at the last forward's input."""
        np.matmul(dq.T, self.h_out, out=self.d_head)
        np.add.reduce(dq, 0, out=self.d_bias)
        dh = self.hidden_norm.backward((dq @ self.head) * self.h_active)  # [B, 128]
        np.matmul(dh.T, self.x_out, out=self.d_hidden)
        dx = dh @ self.hidden  # [B, 1024]
        dx *= self.x_active
        self.d_conv[...] = self.windows.kernel_gradient(self.conv_norm.backward(dx))


def array(parameter: nn.Parameter) -> np.ndarray:
    """The parameter's memory."""
    return parameter.detach().numpy()


def gradient_array(parameter: nn.Parameter) -> np.ndarray:
    """The memory of the parameter's gradient."""
    if parameter.grad is None:
        raise ValueError("a network that learns needs its .grad tensors first: build the optimiser before it")
    return parameter.grad.numpy()


def explicit_norm(layer: nn.Module, norm: nn.Module, learns: bool) -> ExplicitLayerNorm | ExplicitBias:
    """What stands between a layer and its nonlinearity."""
    return ExplicitLayerNorm(norm, learns) if isinstance(norm, nn.LayerNorm) else ExplicitBias(layer, learns)


class ExplicitLayerNorm:
    """y = g x_hat + o with x_hat = (x - mean) / sqrt(variance + eps), mean and variance over the D features of a row.

    For a batch by torch's kernels, each of which is one pass where NumPy needs several; one row, to act on, is so small
    that calling a kernel costs more than its work.
    """

    def __init__(self, norm: nn.LayerNorm, learns: bool):
        # [16, 8, 8] -> [8, 8, 16], the order of the features here; [128] is as it is.
        ordered = lambda a: a.transpose(1, 2, 0) if a.ndim == 3 else a  # noqa: E731
        self.gain, self.offset = ordered(array(norm.weight)), ordered(array(norm.bias))
        if learns:
            self.d_gain, self.d_offset = ordered(gradient_array(norm.weight)), ordered(gradient_array(norm.bias))
        self.eps, self.size, self.learns = norm.eps, [self.gain.size], learns

    def forward(self, x: np.ndarray) -> np.ndarray:  # [B, D] -> [B, D]
        if len(x) == 1 and not self.learns:
            x = x - x.sum() / x.size
            return x * (self.gain.ravel() / math.sqrt(x[0] @ x[0] / x.size + self.eps)) + self.offset.ravel()
        self.x = torch.from_numpy(x)
        self.g, self.o = torch.from_numpy(self.gain.ravel()), torch.from_numpy(self.offset.ravel())
        y, self.mean, self.rstd = torch.native_layer_norm(self.x, self.size, self.g, self.o, self.eps)
        return y.numpy()

    def backward(self, dy: np.ndarray) -> np.ndarray:  # [B, D] -> [B, D]
        dx, d_gain, d_offset = layer_norm_backward(
            torch.from_numpy(dy), self.x, self.size, self.mean, self.rstd, self.g, self.o, [True, True, True]
        )
        self.d_gain[...] = d_gain.numpy().reshape(self.gain.shape)
        self.d_offset[...] = d_offset.numpy().reshape(self.gain.shape)
        return dx.numpy()


layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default


class ExplicitBias:
    """y = x + b: what the plain network has instead of a normalisation; features [..., F] with one bias for each F."""

    def __init__(self, layer: nn.Module, learns: bool):
        self.bias = array(layer.bias)
        if learns:
            self.d_bias = gradient_array(layer.bias)

    def forward(self, x: np.ndarray) -> np.ndarray:  # [B, D] -> [B, D]
        return (x.reshape(-1, self.bias.size) + self.bias).reshape(x.shape)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        np.add.reduce(dy.reshape(-1, self.bias.size), 0, out=self.d_bias)
        return dy


# ----------------------------------------------------------------------------------------------------------- losses


def linear_schedule(start: float, end: float, duration: int, step: int) -> float:
    """start at step 0, end from step `duration` on, a straight line between."""
    return start + (end - start) * min(step / duration, 1.0)


class AutogradGradient:
    """Gradient of the mean squared TD error by autograd.

    The TD target is y = r + gamma (1 - terminated) Q'(s', a') with a' = argmax Q'(s', .), or, for double Q-learning,
    a' = argmax Q(s', .). A truncated episode bootstraps: only termination ends the return.
    """

    def __init__(self, q_network: QNetwork, target_network: QNetwork, args: Args):
        self.q_network, self.target_network = q_network, target_network
        self.gamma, self.double_q = args.gamma, args.double_q

    def __call__(self, batch: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Write every parameter's .grad; return the loss [] and Q(s, a) [B]."""
        device = self.q_network.head.weight.device
        obs, actions, rewards, next_obs, terminated = (torch.from_numpy(array).to(device) for array in batch)
        with torch.no_grad():
            next_q = self.target_network(next_obs)
            next_actions = (self.q_network(next_obs) if self.double_q else next_q).argmax(1, keepdim=True)
            td_target = rewards + self.gamma * (1 - terminated) * next_q.gather(1, next_actions)[:, 0]
        with torch.enable_grad():
            q = self.q_network(obs).gather(1, actions[:, None])[:, 0]
            loss = (q - td_target).square().mean()
        self.q_network.zero_grad(set_to_none=False)
        loss.backward()
        return loss.detach(), q.detach()


class ExplicitGradient:
    """The same gradient through ExplicitQ."""

    def __init__(self, q_network: QNetwork, target_network: QNetwork, args: Args):
        windows = Windows(q_network, args.batch_size)
        self.q, self.target = ExplicitQ(q_network, windows, learns=True), ExplicitQ(target_network, windows)
        self.gamma, self.double_q, self.rows = args.gamma, args.double_q, np.arange(args.batch_size)

    def __call__(self, batch: list[np.ndarray]) -> tuple[float, np.ndarray]:
        """Write every parameter's .grad; return the loss and Q(s, a) [B]."""
        obs, actions, rewards, next_obs, terminated = batch
        next_q = self.target.forward(next_obs)
        next_value = next_q[self.rows, self.q.forward(next_obs).argmax(1)] if self.double_q else next_q.max(1)
        td_target = rewards + self.gamma * (1 - terminated) * next_value
        all_q = self.q.forward(obs)
        q = all_q[self.rows, actions]
        error = q - td_target
        dq = np.zeros_like(all_q)
        dq[self.rows, actions] = 2 / len(q) * error  # d loss / d Q
        self.q.backward(dq)
        return float(error @ error) / len(q), q


class NewestErrors:
    """Squared TD errors of the newest transitions, averaged from update to update: what CUSUM watches.

    delta_t^2 = (r_t + gamma max_a Q(s_{t+1}, a) - Q(s_t, a_t))^2, each Q as it was when the agent acted

    A change of the world shows in them at once. The loss of replayed transitions hides it: nearly all are from before.
    The last transition of a truncated episode is left out.
    """

    def __init__(self, gamma: float):
        self.gamma, self.chosen, self.mean = gamma, 0.0, 0.0
        self.reward: float | None = None
        self.errors: list[float] = []

    def act(self, best: float, chosen: float) -> None:
        """The agent values s_t at `best` = max_a Q(s_t, a), and the action that it takes at `chosen` = Q(s_t, a_t)."""
        if self.reward is not None:  # of the transition that led to s_t
            self.errors.append((self.reward + self.gamma * best - self.chosen) ** 2)
        self.chosen = chosen

    def step(self, reward: float, terminated: bool, truncated: bool) -> None:
        """What the action brought."""
        if terminated:
            self.errors.append((reward - self.chosen) ** 2)
        self.reward = None if terminated or truncated else reward

    def read(self) -> float:
        """Mean since the last reading, or that one if nothing is new; above 0 (for a logarithm) once there is one."""
        if self.errors:
            self.mean = max(float(np.mean(self.errors)), 1e-12)
            self.errors.clear()
        return self.mean

    def state_dict(self) -> dict[str, Any]:
        return {"chosen": self.chosen, "mean": self.mean, "reward": self.reward, "errors": list(self.errors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.chosen, self.mean, self.reward = state["chosen"], state["mean"], state["reward"]
        self.errors = list(state["errors"])


# ------------------------------------------------------------------------------------------------------------- main


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


def make_network(channels: int, actions: int, args: Args, seed: int, device: torch.device) -> QNetwork:
    """A network with the weights that this seed gives it."""
    with torch.random.fork_rng(devices=[]):  # torch's layers initialise themselves from the global stream
        torch.manual_seed(seed)
        return QNetwork(channels, actions, args.network == "normalised").to(device)


def intervene(switch: SwitchArgs, q_network: QNetwork, fresh: QNetwork, projection: Projection | None) -> None:
    """What --switch does to the weights, in place; `fresh` is a newly initialised network."""
    match "reset" if switch.fresh_agent else switch.intervention:
        case "shrink-and-perturb":
            shrink_and_perturb_(q_network, fresh, shrink=switch.shrink, perturb=switch.perturb)
            if projection:  # of shrinking and perturbing a new direction is left
                projection.project_()
        case "reset":
            reset_(q_network, fresh)
        case "reset-head":
            reset_(q_network, fresh, modules=["head"])


def run_directory(args: Args) -> Path:
    """--directory, or runs/logs/<exp_name>__<script>__<game>__s<seed>__<time>."""
    what = f"{args.exp_name}__{Path(__file__).stem}__{args.env_id.split('/')[-1]}__s{args.seed}"
    return args.directory or Path("runs/logs", f"{what}__{datetime.now():%Y%m%d-%H%M%S-%f}")


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


def main(args: Args) -> None:
    """Train one agent; everything it leaves behind is in its run directory."""
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)  # NumPy's BLAS: two threads that wait for each other are slower than one

    # Every random draw below comes from one of these streams.
    with one_line_errors("--seed"):
        streams = np.random.SeedSequence(args.seed).spawn(6)
    init_seed, env_seed, probe_seed = (int(s.generate_state(1)[0]) for s in streams[:3])
    minibatch_rng, action_rng = (np.random.default_rng(s) for s in streams[3:5])

    with one_line_errors("--env-id, --shift" if args.shift.kind != "none" else ""):
        env = make_world(args, make_timetable(args.shift), 1)
    channels, actions = env.single_observation_space.shape[0], int(env.single_action_space.n)
    with one_line_errors("--device", also=(RuntimeError,)):
        device = torch.device(args.device)
        torch.empty(1, device=device)
    q_network, target_network = (make_network(channels, actions, args, init_seed, device) for _ in range(2))
    optimizer = FlatAdam(list(q_network.parameters()), lr=args.learning_rate, eps=args.adam_eps)
    replay = ReplayMemory(args.buffer_size, channels)
    on_cpu = device.type == "cpu"
    if args.gradient == "explicit" or (args.gradient == "auto" and on_cpu):
        gradient = ExplicitGradient(q_network, target_network, args)
        act = ExplicitQ(q_network, Windows(q_network, 1)).forward
    else:
        gradient = AutogradGradient(q_network, target_network, args)
        act = lambda obs: q_network(torch.from_numpy(obs).to(device))  # noqa: E731

    # elr attaches to the network and the optimiser.
    layers = scalable_weights(q_network)  # conv and hidden: the head is left out
    probe_obs = collect_probe(make_world(args, NoChange(), 1), args.probe.size, probe_seed).to(device)

    def make_rewarming() -> Rewarming:
        """Schedule and trigger, from their start."""
        with one_line_errors("--schedule, --rewarm"):
            return Rewarming(optimizer, make_schedule(args), make_trigger(args), args.rewarm.moments)

    rewarming = make_rewarming()
    newest = NewestErrors(args.gamma) if args.rewarm.trigger == "cusum" else None
    meter = probe = None

    def make_projection() -> Projection | None:
        """What holds the norms where they are now."""
        if not args.nap.enabled:
            return None
        with one_line_errors("--nap"):
            return Projection(
                q_network,
                every=args.nap.every,
                gains=args.nap.gains,
                gain_strength=args.nap.gain_strength,
                check_inputs=probe_obs,
                allow_scale_dependent=args.nap.allow_scale_dependent,
            )

    projection = make_projection()
    if args.probe.meter_every:
        meter = Meter(layers, every=args.probe.meter_every, optimizer=optimizer, nominal_power=1)
    if args.probe.every:
        with one_line_errors("--probe"):
            probe = Probe(q_network, probe_obs, PROBED, every=args.probe.every, tau=args.probe.tau)

    stateful: dict[str, Any] = {
        "q_network": q_network, "target_network": target_network, "optimizer": optimizer, "rewarming": rewarming,
        "projection": projection, "meter": meter, "probe": probe, "replay": replay, "env": env, "newest": newest,
    }  # fmt: skip
    stateful = {name: part for name, part in stateful.items() if part is not None}
    global_step, updates, recent_returns, returns = 0, 0, deque[float](maxlen=100), None
    # Where exploration began, and where learning is to begin with how many updates before: a change may move them.
    explores_from, learns_from, learned = 0, args.learning_starts, 0
    obs, _ = env.reset(seed=env_seed)  # [1, C, 10, 10] uint8

    def evaluation() -> VectorEnv | None:
        """The present task, for good."""
        return evaluation_world(env, args.eval_episodes, max_episode_steps=10_000) if args.eval_every else None

    evaluation_env = evaluation()

    def switch_world(task: int) -> None:
        """The world has changed: what the flags have happen then, before anything is learned of it."""
        nonlocal projection, rewarming, newest, explores_from, learns_from, learned, evaluation_env
        switch, fresh = args.switch, args.switch.fresh_agent
        key = np.random.SeedSequence(args.seed, spawn_key=(*streams[5].spawn_key, global_step))
        new = make_network(channels, actions, args, int(key.generate_state(1)[0]), device)
        intervene(switch, q_network, new, projection)
        if projection and (fresh or switch.intervention == "reset"):
            projection = stateful["projection"] = make_projection()  # the norms are the new network's
        if fresh or switch.optimizer == "reset":
            reset_moments_(optimizer)
        if fresh or switch.target == "copy":
            target_network.load_state_dict(q_network.state_dict())
        if fresh or switch.replay == "clear":
            replay.clear()
            learns_from, learned = global_step + args.learning_starts, updates
        if fresh or switch.exploration == "restart":
            explores_from = global_step
        if fresh:
            optimizer.param_groups[0]["lr"] = args.learning_rate
            rewarming = stateful["rewarming"] = make_rewarming()
            if newest:
                newest = stateful["newest"] = NewestErrors(args.gamma)
        elif args.rewarm.trigger == "switch":
            rewarming.restart()
            run.scalar("rewarm/event", 1, global_step)
        if probe and (fresh or switch.intervention != "none"):
            probe.forget()  # what the intervention did to the features is no learning
        recent_returns.clear()
        evaluation_env = evaluation()
        run.scalar("shift/task", task, global_step)
        run.scalar("shift/boundary", 1, global_step)

    def require_finite(what: str = "") -> None:
        """Stop before a broken network is saved, measured or stepped; the checkpoint on disk is from before."""
        named = [*weights_and_gradients(q_network), ("Adam's second moment", optimizer.exp_avg_sq)]
        if what or not all(bool(torch.isfinite(t).all()) for _, t in named):
            raise NonFiniteError(
                f"{what or 'a network that is'} not finite at step {global_step}, update {updates}, learning rate "
                f"{rewarming.rate:g}: {describe_nonfinite(named)}; the last checkpoint is from before"
            )

    def checkpoint() -> None:
        require_finite()
        counters = {"global_step": global_step, "updates": updates, "recent_returns": list(recent_returns)}
        counters |= {"explores_from": explores_from, "learns_from": learns_from, "learned": learned}
        draws = {"action_rng": rng_state(action_rng), "minibatch_rng": rng_state(minibatch_rng)}
        run.checkpoint(global_step, counters | draws | {n: part.state_dict() for n, part in stateful.items()})

    if args.resume:
        run = Run.resume(args.resume, device=device)
    else:
        run = Run.create(run_directory(args), config_to_dict(args), argv=sys.argv, device=device)
    # NumPy's warnings of an overflow are left out: the loss is looked at, and a run that diverges says so in one line.
    with run, StopOnSignal() as stop, torch.no_grad(), np.errstate(over="ignore", invalid="ignore"):
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
                explores_from, learns_from, learned = (
                    state[name] for name in ("explores_from", "learns_from", "learned")
                )
                obs, evaluation_env = env.observation(), evaluation()
        else:
            charts = {"task": ["shift/task"]} if args.shift.kind != "none" else {}
            run.layout(list(layers), PROBED, rewarming=args.rewarm.trigger != "never", charts=charts)
            if args.shift.kind != "none":
                run.scalar("shift/task", 0, global_step)
            if probe:
                run.scalars(probe.measure(), global_step)
            checkpoint()
        progress = Progress(args.total_timesteps, global_step)
        while global_step < args.total_timesteps and not stop.requested:
            # Act: epsilon-greedy.
            epsilon = linear_schedule(args.start_e, args.end_e, args.exploration_steps, global_step - explores_from)
            explores = action_rng.random() < epsilon
            values = act(obs) if newest or not explores else None  # [1, A]
            action = int(action_rng.integers(actions)) if explores else int(values.argmax())
            if newest:
                newest.act(float(values.max()), float(values[0, action]))
            next_obs, rewards, terminated, truncated, infos = env.step(np.array([action]))
            replay.add(obs[0], action, rewards[0], infos.get("final_obs", next_obs)[0], terminated[0])
            if newest:
                newest.step(float(rewards[0]), bool(terminated[0]), bool(truncated[0]))
            obs, global_step = next_obs, global_step + 1
            if "episode" in infos and not (
                "shift" in infos and truncated[0]
            ):  # one that a change cut short says little
                recent_returns.append(float(infos["episode"]["r"][0]))
                run.scalar("charts/episodic_return", recent_returns[-1], global_step)
                run.scalar("charts/episodic_length", int(infos["episode"]["l"][0]), global_step)

            # Learn: Algorithm 1 of arXiv:2507.20057, `replay_ratio` times per agent step.
            while updates < learned + int((global_step - learns_from) * args.replay_ratio):
                loss, q_values = gradient(replay.sample(args.batch_size, minibatch_rng))
                # Reading the loss waits for a GPU: there it is read when it is recorded.
                if (on_cpu or (updates + 1) % args.log_every == 0) and not math.isfinite(loss):
                    require_finite(f"loss {float(loss)},")
                surprise = newest.read() if newest else None
                if newest and not math.isfinite(surprise):
                    require_finite(f"TD error {surprise},")
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
                if updates % args.log_every == 0:
                    run.scalar("charts/learning_rate", rate, global_step)
                    run.scalar("losses/td_loss", float(loss), global_step)
                    run.scalar("losses/q_values", float(q_values.mean()), global_step)
                    if rewarming.statistic is not None:
                        run.scalar("rewarm/statistic", rewarming.statistic, global_step)
                if probe and probe.due(updates):
                    require_finite()
                    run.scalars(probe.measure(), global_step)

            if global_step % args.target_network_frequency == 0:
                target_network.load_state_dict(q_network.state_dict())

            # Report.
            if global_step % args.log_every == 0:
                sps = progress.steps_per_second(global_step)
                run.scalar("charts/SPS", sps, global_step)
                run.scalar("charts/epsilon", epsilon, global_step)
                progress.show(global_step, sps, recent_returns, rewarming.rate)
            if args.eval_every and (global_step % args.eval_every == 0 or global_step == args.total_timesteps):
                returns = evaluate(q_network, evaluation_env, seed=env_seed + global_step)
                run.scalar("eval/episodic_return", returns.mean(), global_step)
                run.scalar("eval/episodic_return_std", returns.std(), global_step)
            if "shift" in infos and global_step < args.total_timesteps:
                (told,) = infos["shift"].values()
                switch_world(told["task"])
            if global_step % args.checkpoint_every == 0 and global_step < args.total_timesteps:
                checkpoint()

        checkpoint()
        if global_step < args.total_timesteps:
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
