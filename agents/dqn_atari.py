"""DQN on Atari with a re-warmed learning rate and normalize-and-project, in one file.

    python agents/dqn_atari.py --env-id ALE/Breakout-v5           DQN with Adam, constant learning rate
    python agents/dqn_atari.py high-utd-cyclic --seed 1           one update per step, cycling rate: the paper's Fig. 6
    python agents/dqn_atari.py catch                              Catch, a test world, in minutes on two CPU cores
    python agents/dqn_atari.py --resume runs/logs/RUN             go on with a killed or interrupted run

The method is Algorithm 1 of Lyle et al. 2025 (arXiv:2507.20057): optimiser step -> project -> re-warm? -> set the rate;
those lines stand in this order in `main`. Normalize-and-project is arXiv:2407.01800.
All flags are in agent steps. A step is one decision of the agent and lasts four frames: 200 million frames are 50
million steps. An update is one optimiser step; updates = replay_ratio x (steps - learning_starts). Ratio 1 is the
paper's high update-to-data regime, 0.25 the usual one.

As in the paper: Adam, rate 6.25e-5, epsilon 1.5e-4, low rate 1e-6, cycles of 4 million frames (it says frames in one
place and steps in another), ten of them before annealing, weight decay 1e-2, no normalisation and no projection in the
high update-to-data arms. The rest it leaves open, and is that of Dopamine's DQN (Castro et al. 2018, arXiv:1812.06110):
sticky actions (Machado et al. 2018), exploration 1 to 0.01 in 250,000 steps (here from the first step on, not from the
first update), learning from step 20,000 on, target network copied every 8,000 steps, a million transitions. Loss: the
mean squared TD error of rewards clipped to [-1, 1] (--no-clip-rewards: as they are). Weight decay is decoupled, as
AdamW's.
--protocol classic is that of Mnih et al. 2015: no sticky actions, up to 30 frames without action at the start, and a
lost life ends the return.

--network normalised puts LayerNorm before each nonlinearity, over all of a layer's features; with it --nap.enabled
projects. With --shift the world changes (envs/shifts.py), and --switch says what else happens then; --reset.at-steps
resets layers at fixed steps, the replay memory kept (Nikishin et al. 2022), which is the paper's baseline.

The replay memory keeps every frame once: a million transitions are 7.1 GB. A checkpoint writes the frames that are new
since the one before, compressed, into pieces/ of the run directory. With --env-threads 0 a killed run resumes exactly;
ale-py's vector environment (--env-threads 1 or more) cannot be saved, so that a resumed run begins new episodes.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator
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
from elr.interventions import reset_, shrink_and_perturb_
from elr.measure import Meter
from elr.moments import reset_moments_
from elr.probe import Probe
from elr.projection import Projection
from elr.rewarming import Rewarming
from elr.schedules import Constant, Cyclic, CyclicThenConstant, LinearDecay, OneCycle, Schedule, WarmupCosine
from elr.triggers import Every, Never, OnCusum, Trigger
from elr.weights import scalable_weights
from envs.catch import ENV_ID as CATCH
from envs.timetables import AtRandom, AtSteps, EverySteps, NoChange, Timetable
from envs.worlds import STACK, ScreenWorld, evaluation_world, resumed_observation
from runs.recording import (
    NonFiniteError,
    Pieces,
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
from runs.recording.video import FirstEpisode

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
    ] = "constant"  # fmt: skip
    """shape of the schedule"""
    low: float = 1e-6
    """rate at the bottom of a cycle or at the end of a decay"""
    period_steps: int = 1_000_000
    """agent steps of one cycle or decay, warm-up included"""
    warmup_frac: float = 0.1
    """share of the period spent rising"""
    cycles: int = 10
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


@dataclass(frozen=True)
class ShiftArgs:
    """A world that changes. The running episode is truncated at a change; exactly one flag says when changes come."""

    kind: Literal[
        "none", "games", "modes", "difficulties", "actions", "pixels", "rewards", "sticky", "noise"
    ] = "none"  # fmt: skip
    """what changes: the game (with all 18 actions), its mode or difficulty, the meaning of actions, the places of
    pixels, the factor of rewards, the probability of sticky actions (then drawn per step), of noise"""
    every_steps: int = 0
    """a change after each so many agent steps"""
    at_steps: tuple[int, ...] = ()
    """changes after these agent steps"""
    rate: float = 0.0
    """changes at random, with this probability after each agent step"""
    games: tuple[str, ...] = ()
    """the games after --env-id, visited in turn (kind games)"""
    tasks: int = 2
    """number of permutations, the identity first, visited in turn (actions, pixels)"""
    values: tuple[float, ...] = ()
    """factors, probabilities, modes or difficulties, the first from the start, visited in turn"""


# same as agents/dqn_minatar.py::SwitchArgs
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
class ResetArgs:
    """Layers reset at fixed steps, in place, with fresh moments; the replay memory is kept (Nikishin et al. 2022)."""

    at_steps: tuple[int, ...] = ()
    """agent steps after which it is done (the paper: 50, 100 and 150 million frames)"""
    layers: Literal["head", "dense", "all"] = "all"
    """the head, the head and the hidden layer, or the whole network (the paper does not say)"""


# same as agents/dqn_minatar.py::ProbeArgs
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
    """DQN on Atari: every flag, its default, its meaning."""

    env_id: str = "ALE/Pong-v5"
    """ALE/<Game>-v5, or rewarm/Catch-v0"""
    seed: int = 1
    """seed of every random stream"""
    total_timesteps: int = 10_000_000
    """agent steps of the run, summed over the copies; a step is four frames"""
    learning_rate: float = 6.25e-5
    """Adam's rate; with a schedule, its peak"""
    adam_eps: float = 1.5e-4
    """Adam's epsilon"""
    weight_decay: float = 0.0
    """decoupled weight decay of all parameters, times the rate"""
    num_envs: int = 1
    """copies of the game that act together"""
    buffer_size: int = 1_000_000
    """transitions kept in the replay memory"""
    learning_starts: int = 20_000
    """agent steps before the first update"""
    batch_size: int = 32
    """transitions per update"""
    replay_ratio: float = 0.25
    """updates per agent step"""
    gamma: float = 0.99
    """discount"""
    n_step: int = 1
    """rewards summed before the value of the state after them is used"""
    target_network_frequency: int = 8_000
    """agent steps between copies of the network into the target network"""
    start_e: float = 1.0
    """exploration rate at the first step"""
    end_e: float = 0.01
    """exploration rate after --exploration-steps"""
    exploration_steps: int = 250_000
    """agent steps in which the exploration rate falls linearly"""
    double_q: bool = False
    """choose the target's action with the online network (van Hasselt et al. 2016)"""
    clip_rewards: bool = True
    """clip rewards to [-1, 1] for learning; recorded returns are never clipped"""
    protocol: Literal["machado", "classic"] = "machado"
    """sticky actions, and only game over ends an episode; or none, no-op starts, and a lost life ends the return"""
    network: Literal["plain", "normalised"] = "plain"
    """biases and no normalisation (Mnih et al. 2015), or LayerNorm before each nonlinearity"""
    nap: NapArgs = field(default_factory=NapArgs)
    schedule: ScheduleArgs = field(default_factory=ScheduleArgs)
    rewarm: RewarmArgs = field(default_factory=RewarmArgs)
    shift: ShiftArgs = field(default_factory=ShiftArgs)
    switch: SwitchArgs = field(default_factory=SwitchArgs)
    reset: ResetArgs = field(default_factory=ResetArgs)
    probe: ProbeArgs = field(default_factory=ProbeArgs)
    eval_every: int = 250_000
    """agent steps between evaluations, in the present task (at a change: in the one that ends); 0 is off"""
    eval_episodes: int = 5
    """episodes of one evaluation, each in a freshly seeded copy"""
    eval_epsilon: float = 0.001
    """chance of a random action in an evaluation"""
    record_video: bool = False
    """what the agent sees in the first episode of each evaluation, its first 2,700 steps (3 minutes), becomes a GIF:
    video/step-<step>.gif in the run directory"""
    log_every: int = 1_000
    """agent steps between points of speed and exploration, and updates between points of losses and rates"""
    checkpoint_every: int = 50_000
    """agent steps between checkpoints"""
    env_threads: int = 0
    """threads of ale-py's vector environment; 0: emulators in Python, which a killed run resumes exactly"""
    device: str = "cpu"
    """cpu or cuda; the latter has not been run yet"""
    bf16: bool = False
    """convolutions and hidden layers in bfloat16 (torch.autocast; on a CPU their LayerNorms, too); outputs, losses,
    weights and updates stay in float32"""
    threads: int = 1
    """CPU threads of torch and of NumPy's linear algebra"""
    exp_name: str = "dqn"
    """first part of the run's name"""
    directory: Path | None = None
    """run directory; default runs/logs/<exp_name>__<script>__<game>__s<seed>__<time>"""
    resume: Path | None = None
    """run directory to go on with; all other flags come from its config.json"""

    def __post_init__(self) -> None:
        positive = "total_timesteps learning_rate buffer_size batch_size replay_ratio target_network_frequency n_step"
        positive += " exploration_steps log_every checkpoint_every threads eval_episodes adam_eps num_envs"
        for name in positive.split():
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}")
        if not 0 <= self.end_e <= self.start_e <= 1:
            raise ValueError(f"--end-e {self.end_e} and --start-e {self.start_e}: need 0 <= end <= start <= 1")
        if not 0 <= self.gamma < 1 or not 0 <= self.eval_epsilon <= 1:
            raise ValueError(f"--gamma {self.gamma} must lie in [0, 1), --eval-epsilon {self.eval_epsilon} in [0, 1]")
        if self.buffer_size % self.num_envs or self.buffer_size // self.num_envs < self.n_step + STACK + 1:
            raise ValueError(
                f"--buffer-size {self.buffer_size} is to be a multiple of --num-envs {self.num_envs}, with room for "
                f"--n-step {self.n_step} + {STACK + 1} transitions of each copy"
            )
        if self.learning_starts < self.n_step * self.num_envs:
            raise ValueError(
                f"--learning-starts {self.learning_starts} leaves the first update without a transition whose --n-step "
                f"{self.n_step} steps are known: give at least {self.n_step * self.num_envs}"
            )
        if self.batch_size > self.buffer_size:
            raise ValueError(f"--batch-size {self.batch_size} exceeds --buffer-size {self.buffer_size}")
        counts = self.probe.every, self.probe.meter_every, self.eval_every, self.learning_starts, self.env_threads
        if min(*counts, self.weight_decay) < 0:
            raise ValueError(
                "--probe.every, --probe.meter-every, --eval-every, --learning-starts, --env-threads, --weight-decay "
                "must be >= 0"
            )
        for name in ("target_network_frequency", "log_every", "checkpoint_every", "eval_every"):
            if getattr(self, name) % self.num_envs:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is not a multiple of --num-envs "
                    f"{self.num_envs}, the agent steps that are made together"
                )
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"--device {self.device}: this torch sees no GPU; install a CUDA build or use --device cpu"
            )
        self._refuse_inert_flags()

    def _refuse_inert_flags(self) -> None:
        nap, schedule, rewarm, probe, reset = self.nap, self.schedule, self.rewarm, self.probe, self.reset
        if not nap.enabled:
            unused = ["every", "gains", "gain_strength", "allow_scale_dependent"]
            reject_unused("nap", nap, unused, "without --nap.enabled")
        elif self.network == "plain" and not nap.allow_scale_dependent:
            raise ValueError(
                "--nap.enabled needs --network normalised: without LayerNorm the scale of a weight matters, unless "
                "--nap.allow-scale-dependent says that this is meant"
            )
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
        if rewarm.trigger == "cusum" and self.learning_starts < 2 * self.num_envs:
            raise ValueError(
                f"--learning-starts {self.learning_starts} leaves --rewarm.trigger cusum without a TD error at the "
                f"first update: give at least {2 * self.num_envs}"
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
        if not reset.at_steps:
            reject_unused("reset", reset, ["layers"], "without --reset.at-steps")
        elif any(after <= before for before, after in pairwise((0, *reset.at_steps))):
            raise ValueError(f"--reset.at-steps {reset.at_steps} must be above 0 and rise")
        elif reset.at_steps[-1] >= self.total_timesteps:
            raise ValueError(
                f"--reset.at-steps {reset.at_steps[-1]} never comes in --total-timesteps {self.total_timesteps}"
            )
        refuse_inert_shifts(self)
        refuse_unseen_factors(self)
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
            reject_unused("", self, ["eval_episodes", "eval_epsilon", "record_video"], "with --eval-every 0")

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


def refuse_unseen_factors(args: Args) -> None:
    """Factors of rewards, which are whole numbers in these games, that clipping makes alike."""
    shift = args.shift
    if args.clip_rewards and shift.kind == "rewards" and len({min(max(v, -1.0), 1.0) for v in shift.values}) == 1:
        raise ValueError(
            f"--shift.values {shift.values} are factors that --clip-rewards makes alike: nothing changes for the "
            "learner; give --no-clip-rewards, or others"
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
    permuted = ("actions", "pixels")
    valued = ("rewards", "sticky", "noise", "modes", "difficulties")
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


# same as agents/dqn_minatar.py::to_updates
def to_updates(args: Args, steps: int) -> int:
    """Agent steps -> optimiser updates."""
    return max(1, round(steps * args.replay_ratio))


def steps(frames: int) -> int:
    """Frames -> agent steps."""
    return frames // 4


def high_utd(name: str, **changes: Any) -> Args:
    """An arm of the paper's high update-to-data experiment: 200 million frames, one update per step."""
    flags = {"total_timesteps": steps(200_000_000), "replay_ratio": 1.0, "exp_name": name}
    return Args(**(flags | changes))


def quick(name: str, **changes: Any) -> Args:
    """The same in a hundredth of the budget: cycles are scaled with it, exploration and memory to a tenth only."""
    scaled = {
        "total_timesteps": steps(2_000_000), "learning_starts": 5_000, "exploration_steps": 25_000,
        "buffer_size": 100_000, "target_network_frequency": 2_000, "eval_every": 50_000,
        "probe": ProbeArgs(every=25_000),
    }  # fmt: skip
    return high_utd(name, **(scaled | changes))


_cyclic = ScheduleArgs(kind="cyclic")
_quick_cyclic = ScheduleArgs(kind="cyclic", period_steps=steps(40_000))


def _annealed(cycles: int, period: int = steps(4_000_000)) -> ScheduleArgs:
    return ScheduleArgs(kind="cyclic-then-constant", period_steps=period, cycles=cycles)


_nap = {"nap": NapArgs(enabled=True), "network": "normalised"}
_chain = {
    "env_id": "ALE/Pong-v5",
    "shift": ShiftArgs(kind="games", games=("ALE/Breakout-v5", "ALE/SpaceInvaders-v5"), every_steps=steps(20_000_000)),
    "total_timesteps": steps(120_000_000),
}
_decay = ScheduleArgs(kind="warmup-cosine", period_steps=steps(20_000_000))
PRESETS = {
    "baseline": Preset("constant rate, one update in four steps", Args(exp_name="baseline")),
    "nap": Preset("normalize-and-project, constant rate", Args(exp_name="nap", **_nap)),
    "nap-cyclic": Preset("normalize-and-project, cycling rate", Args(exp_name="nap-cyclic", schedule=_cyclic, **_nap)),
    "high-utd-baseline": Preset("paper, Fig. 6: constant high rate", high_utd("high-utd-baseline")),
    "high-utd-low": Preset("paper, Fig. 6: constant low rate", high_utd("high-utd-low", learning_rate=1e-6)),
    "high-utd-cyclic": Preset("paper, Fig. 6: the rate cycles", high_utd("high-utd-cyclic", schedule=_cyclic)),
    "high-utd-cyclic-annealed": Preset(
        "paper, Fig. 6: ten cycles (40M frames), then the low rate for good",
        high_utd("high-utd-cyclic-annealed", schedule=_annealed(10)),
    ),
    "high-utd-cyclic-annealed-8M": Preset(
        "paper, Fig. 10: two cycles (8M frames), then low",
        high_utd("high-utd-cyclic-annealed-8M", schedule=_annealed(2)),
    ),
    "high-utd-cyclic-annealed-20M": Preset(
        "paper, Fig. 10: five cycles (20M frames), then low",
        high_utd("high-utd-cyclic-annealed-20M", schedule=_annealed(5)),
    ),
    "high-utd-weight-decay": Preset(
        "paper: constant high rate, weight decay", high_utd("high-utd-weight-decay", weight_decay=1e-2)
    ),
    "quick-high-utd-baseline": Preset("high-utd-baseline, 2M frames", quick("quick-high-utd-baseline")),
    "quick-high-utd-low": Preset("high-utd-low, 2M frames", quick("quick-high-utd-low", learning_rate=1e-6)),
    "quick-high-utd-cyclic": Preset(
        "high-utd-cyclic, 2M frames", quick("quick-high-utd-cyclic", schedule=_quick_cyclic)
    ),
    "quick-high-utd-cyclic-annealed": Preset(
        "high-utd-cyclic-annealed, 2M frames",
        quick("quick-high-utd-cyclic-annealed", schedule=_annealed(10, steps(40_000))),
    ),
    "chain-plain": Preset(
        "three games in turn, twice: plain continual training", Args(exp_name="chain-plain", **_chain)
    ),
    "chain-fresh": Preset(
        "the same games, a fresh agent for each visit",
        Args(exp_name="chain-fresh", switch=SwitchArgs(fresh_agent=True), **_chain),
    ),
    "chain-nap": Preset(
        "the same games, normalize-and-project, constant rate", Args(exp_name="chain-nap", **_nap, **_chain)
    ),
    "chain-switch": Preset(
        "the same games, normalize-and-project, rate decays and is re-warmed at each change",
        Args(exp_name="chain-switch", schedule=_decay, rewarm=RewarmArgs(trigger="switch"), **_nap, **_chain),
    ),
    "chain-cusum": Preset(
        "the same games, normalize-and-project, rate decays and is re-warmed when CUSUM fires on new TD errors",
        Args(exp_name="chain-cusum", schedule=_decay, rewarm=RewarmArgs(trigger="cusum"), **_nap, **_chain),
    ),
    "catch": Preset(
        "Catch on a screen, learned in minutes on two CPU cores",
        Args(
            exp_name="catch",
            env_id="rewarm/Catch-v0",
            total_timesteps=60_000,
            buffer_size=50_000,
            learning_starts=1_000,
            target_network_frequency=500,
            exploration_steps=10_000,
            eval_every=10_000,
            eval_episodes=20,
            checkpoint_every=10_000,
            probe=ProbeArgs(every=2_500),
            threads=2,
        ),
    ),
}

# ------------------------------------------------------------------------------------------------------ environment

PROTOCOLS: dict[str, dict[str, Any]] = {
    "machado": {"sticky_action_prob": 0.25, "noop_max": 0},
    "classic": {"sticky_action_prob": 0.0, "noop_max": 30},
}


class ReplayMemory:
    """The last transitions of N copies of a game on a screen, each frame kept once; sampled uniformly.

    Every copy has a lane, a ring of L = capacity / N rows. Row t holds the newest frame of s_t, a_t, r_t, and how the
    episode went on; the stack s_t is put together from the rows before. An episode that is truncated is followed by a
    row that holds its last frame and nothing else: a state to bootstrap from, in which no action was taken.

    A slot is a place in the memory, lane * L + row. What follows from it, with n = n_step:

        R = sum_{k < m} gamma^k r_{t+k},   discount = gamma^m (0 if s_{t+m} is terminal),   s_{t+m}

    where m = n, or less where the episode ends before. Memory: 84 x 84 + 16 bytes per transition, taken when filled.
    """

    def __init__(self, capacity: int, copies: int, gamma: float, n_step: int = 1):
        self.lanes, self.rows, self.gamma, self.n_step = copies, capacity // copies, gamma, n_step
        shape = (self.lanes, self.rows)
        self.frames = np.zeros((*shape, 84, 84), dtype=np.uint8)
        self.actions = np.zeros(shape, dtype=np.int64)
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.age = np.zeros(shape, dtype=np.uint8)  # frames of the same episode before this one, at most 3
        self.terminal = np.zeros(shape, dtype=bool)  # the return ends with this reward
        self.truncated = np.zeros(shape, dtype=bool)  # the episode was cut here: the next row is only a state
        self.only_state = np.zeros(shape, dtype=bool)
        self.next_age = np.zeros(self.lanes, dtype=np.uint8)
        self.written = np.zeros(self.lanes, dtype=np.int64)  # rows ever written in each lane
        self.forgotten = np.zeros(self.lanes, dtype=np.int64)  # rows before this one are not to be seen
        self.saved = np.zeros(self.lanes, dtype=np.int64)  # rows that are in pieces on the disk
        self.pieces: list[tuple[str, int, int, int]] = []  # name, lane, first row, row after the last

    def __len__(self) -> int:
        """Rows held."""
        return int(self._held().sum())

    def _held(self) -> np.ndarray:
        return np.minimum(self.written - self.forgotten, self.rows)

    def add(
        self,
        obs: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminal: np.ndarray,
        truncated: np.ndarray,
        restarted: np.ndarray,
        final_obs: np.ndarray,
    ) -> np.ndarray:
        """One transition of every copy; returns their slots [N].

        Args:
            obs: s_t [N, 4, 84, 84], what was acted on.
            terminal: the return ends here [N].
            truncated: the episode was cut, and `final_obs` [N, 4, 84, 84] is the state to bootstrap from [N].
            restarted: another episode begins, so that stacks do not reach back [N]; where a life was lost it does not.
        """
        lanes = np.arange(self.lanes)
        rows = self.written % self.rows
        self.frames[lanes, rows], self.actions[lanes, rows], self.rewards[lanes, rows] = obs[:, -1], actions, rewards
        self.terminal[lanes, rows], self.truncated[lanes, rows] = terminal, truncated & ~terminal
        self.age[lanes, rows], self.only_state[lanes, rows] = self.next_age, False
        self.next_age = np.minimum(self.next_age + 1, STACK - 1).astype(np.uint8)
        self.written += 1
        for lane in np.flatnonzero(truncated & ~terminal):
            self._add_state(lane, final_obs[lane, -1])
        self.next_age[restarted] = 0
        return lanes * self.rows + rows

    def _add_state(self, lane: int, frame: np.ndarray) -> None:
        row = self.written[lane] % self.rows
        self.frames[lane, row], self.age[lane, row], self.only_state[lane, row] = frame, self.next_age[lane], True
        self.terminal[lane, row] = self.truncated[lane, row] = False
        self.written[lane] += 1

    def cut(self, obs: np.ndarray) -> None:
        """The episodes that run cannot be gone on with: they were truncated in the states `obs` [N, 4, 84, 84]."""
        last = (self.written - 1) % self.rows
        for lane in np.flatnonzero((self.written > self.forgotten) & (self.next_age > 0)):
            if not self.terminal[lane, last[lane]]:
                self.truncated[lane, last[lane]] = True
                self.saved[lane] = min(self.saved[lane], self.written[lane] - 1)  # a piece holds that row as it was
                self._add_state(lane, obs[lane, -1])
        self.next_age[:] = 0

    def valid(self, slots: np.ndarray) -> np.ndarray:
        """Whether everything about these slots [B] is in memory: the stack before and the n steps after."""
        lanes, rows = slots // self.rows, slots % self.rows
        newest = self.written[lanes] - 1
        number = newest - (newest - rows) % self.rows  # of the row, counted since the start
        oldest = np.maximum(self.written[lanes] - self.rows, self.forgotten[lanes])
        transition = ~self.only_state[lanes, rows]
        if ((number - STACK >= oldest) & (number + self.n_step <= newest)).all():  # nearly always, of a large memory
            return transition
        whole = number - self.age[lanes, rows].astype(np.int64) >= oldest
        ended = np.zeros(len(slots), dtype=bool)
        for k in range(self.n_step):
            row = (rows + k) % self.rows
            ended |= (number + k <= newest) & (self.terminal[lanes, row] | self.truncated[lanes, row])
        return whole & transition & (ended | (number + self.n_step <= newest))

    def gather(self, slots: np.ndarray) -> list[np.ndarray]:
        """s_t [B, 4, 84, 84], a_t [B], R [B], s_{t+m} [B, 4, 84, 84], discounts [B], for valid slots."""
        lanes, rows = slots // self.rows, slots % self.rows
        returns, goes_on = np.zeros(len(slots), dtype=np.float32), np.ones(len(slots), dtype=bool)
        discounts, m = np.ones(len(slots), dtype=np.float32), np.zeros(len(slots), dtype=np.int64)
        for k in range(self.n_step):
            row = (rows + k) % self.rows
            returns += np.where(goes_on, np.float32(self.gamma**k) * self.rewards[lanes, row], 0)
            m += goes_on
            discounts = np.where(goes_on, np.float32(self.gamma ** (k + 1)), discounts)
            discounts[goes_on & self.terminal[lanes, row]] = 0
            goes_on &= ~(self.terminal[lanes, row] | self.truncated[lanes, row])
        next_obs = self._stacks(lanes, (rows + m) % self.rows)
        return [self._stacks(lanes, rows), self.actions[lanes, rows], returns, next_obs, discounts]

    def _stacks(self, lanes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """[B, 4, 84, 84]: each frame with the three before it, zeros where the episode had not begun."""
        back = np.arange(STACK - 1, -1, -1)  # 3 2 1 0
        stacks = self.frames[lanes[:, None], (rows[:, None] - back) % self.rows]
        stacks[back > self.age[lanes, rows][:, None]] = 0
        return stacks

    def sample(self, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """`gather` for B slots drawn uniformly, with replacement, from the valid ones."""
        slots = np.empty(0, dtype=np.int64)
        held = self._held()
        ends = np.cumsum(held)
        for _ in range(1000):
            drawn = rng.integers(ends[-1], size=batch_size)
            lanes = np.searchsorted(ends, drawn, side="right")
            rows = (self.written[lanes] - 1 - (drawn - (ends[lanes] - held[lanes]))) % self.rows
            found = lanes * self.rows + rows
            slots = np.concatenate([slots, found[self.valid(found)]])
            if len(slots) >= batch_size:
                return self.gather(slots[:batch_size])
        raise RunError("the replay memory holds no transition whose following steps are known: give more room or time")

    def clear(self) -> None:
        """Forget all transitions."""
        self.forgotten = self.written.copy()
        self.next_age[:] = 0

    def save(self, pieces: Pieces) -> dict[str, Any]:
        """Write the rows that no piece holds yet; return what a checkpoint keeps, which names the pieces."""
        oldest = np.maximum(self.written - self.rows, self.forgotten)
        for lane in range(self.lanes):
            for first in range(max(self.saved[lane], oldest[lane]), self.written[lane], PIECE_ROWS):
                end = min(first + PIECE_ROWS, int(self.written[lane]))
                rows = np.arange(first, end) % self.rows
                content = {name: getattr(self, name)[lane, rows] for name in ROW_PARTS}
                frames = zlib.compress(self.frames[lane, rows].data, 1)
                name = f"replay-{lane}-{first}-{end}"
                pieces.write(name, content | {"frames": np.frombuffer(frames, dtype=np.uint8)})
                self.pieces.append((name, lane, int(first), end))
        self.saved = self.written.copy()
        self.pieces = [piece for piece in self.pieces if piece[3] > oldest[piece[1]]]
        parts = {name: getattr(self, name).copy() for name in ("written", "forgotten", "next_age")}
        return parts | {"rows": self.rows, "pieces": list(self.pieces)}

    def load(self, state: dict[str, Any], pieces: Pieces) -> None:
        """Continue from what `save` returned."""
        if state["rows"] != self.rows or len(state["written"]) != self.lanes:
            raise RunError(f"the checkpoint's replay memory has another shape than {self.lanes} x {self.rows}")
        for name in ("written", "forgotten", "next_age"):
            setattr(self, name, state[name].copy())
        self.saved, self.pieces = self.written.copy(), [tuple(piece) for piece in state["pieces"]]
        for name, lane, first, end in self.pieces:
            content, rows = pieces.read(name), np.arange(first, end) % self.rows
            frames = np.frombuffer(zlib.decompress(content["frames"].tobytes()), dtype=np.uint8)
            self.frames[lane, rows] = frames.reshape(-1, 84, 84)
            for part in ROW_PARTS:
                getattr(self, part)[lane, rows] = content[part]


ROW_PARTS = ("actions", "rewards", "age", "terminal", "truncated", "only_state")
PIECE_ROWS = 8192


# same as agents/dqn_minatar.py::make_timetable
def make_timetable(shift: ShiftArgs) -> Timetable:
    """When the world changes."""
    if shift.kind == "none":
        return NoChange()
    if shift.rate:
        return AtRandom(shift.rate)
    return AtSteps(shift.at_steps) if shift.at_steps else EverySteps(shift.every_steps)


def make_world(args: Args, timetable: Timetable, copies: int) -> VectorEnv:
    """Copies of the world that the flags describe."""
    shift, rules = args.shift, PROTOCOLS[args.protocol]
    if args.env_id == CATCH:  # it begins at once
        rules = rules | {"noop_max": 0}
    games = (args.env_id, *shift.games)
    return ScreenWorld(
        games, copies, shift.kind, timetable, shift.tasks, shift.values, threads=args.env_threads, **rules
    ).make()


def collect_probe(env: VectorEnv, size: int, seed: int) -> Tensor:
    """[size, 4, 84, 84]: every fifth observation of a uniform policy in a game of its own."""
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    kept = [obs[0]]
    for step in range(1, 5 * size - 4):
        obs = env.step(rng.integers(env.single_action_space.n, size=1))[0]
        if step % 5 == 0:
            kept.append(obs[0])
    return torch.from_numpy(np.stack(kept))


def evaluate(q_network: QNetwork, env: VectorEnv, seed: int, epsilon: float) -> np.ndarray:
    """Undiscounted raw returns [N] of the epsilon-greedy policy, one episode in each of the N seeded copies."""
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    returns, running = np.zeros(env.num_envs), np.ones(env.num_envs, dtype=bool)
    while running.any():
        greedy = q_values(q_network, obs).argmax(1)
        explores = rng.random(env.num_envs) < epsilon
        actions = np.where(explores, rng.integers(env.single_action_space.n, size=env.num_envs), greedy)
        obs, rewards, terminated, truncated, _ = env.step(actions)
        returns += rewards * running
        running &= ~(terminated | truncated)
    return returns


class QNetwork(nn.Module):
    """Q(s, .) for a stack of four 84 x 84 frames: three convolutions, 512 hidden units, linear head (Mnih et al. 2015).

    normalised: LayerNorm before each nonlinearity, whose offset makes the layer's own bias redundant.
    bf16: convolutions and hidden layers in bfloat16, but not the head.
    """

    def __init__(self, actions: int, normalised: bool = False, bf16: bool = False):
        super().__init__()
        self.bf16, bias = bf16, not normalised
        norm = nn.LayerNorm if normalised else lambda shape: nn.Identity()
        self.conv1 = nn.Conv2d(STACK, 32, 8, 4, bias=bias)
        self.conv1_norm, self.conv1_relu = norm((32, 20, 20)), nn.ReLU()
        self.conv2, self.conv2_norm, self.conv2_relu = nn.Conv2d(32, 64, 4, 2, bias=bias), norm((64, 9, 9)), nn.ReLU()
        self.conv3, self.conv3_norm, self.conv3_relu = nn.Conv2d(64, 64, 3, 1, bias=bias), norm((64, 7, 7)), nn.ReLU()
        self.hidden, self.hidden_norm, self.hidden_relu = nn.Linear(64 * 7 * 7, 512, bias=bias), norm(512), nn.ReLU()
        self.head = nn.Linear(512, actions)

    def forward(self, obs: Tensor) -> Tensor:  # [B, 4, 84, 84] uint8 -> [B, A]
        x = obs.to(self.head.weight.dtype, memory_format=torch.channels_last) / 255  # convolutions are faster so
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.conv1_relu(self.conv1_norm(self.conv1(x)))  # [B, 32, 20, 20]
            x = self.conv2_relu(self.conv2_norm(self.conv2(x)))  # [B, 64, 9, 9]
            x = self.conv3_relu(self.conv3_norm(self.conv3(x)))  # [B, 64, 7, 7]
            x = self.hidden_relu(self.hidden_norm(self.hidden(x.flatten(1))))  # [B, 512]
        return self.head(x.to(self.head.weight.dtype))


PROBED = ["conv1_relu", "conv2_relu", "conv3_relu", "hidden_relu"]  # after it dead, dormant, pattern are defined


@torch.no_grad()
def q_values(network: QNetwork, obs: np.ndarray) -> np.ndarray:  # [N, 4, 84, 84] -> [N, A]
    """Q of observations of the environment."""
    return network(torch.from_numpy(obs).to(network.head.weight.device)).cpu().numpy()


# ----------------------------------------------------------------------------------------------------------- losses


# same as agents/dqn_minatar.py::linear_schedule
def linear_schedule(start: float, end: float, duration: int, step: int) -> float:
    """start at step 0, end from step `duration` on, a straight line between."""
    return start + (end - start) * min(step / duration, 1.0)


def gradient(
    q_network: QNetwork, target_network: QNetwork, batch: list[np.ndarray], double_q: bool
) -> tuple[Tensor, Tensor]:
    """Write every parameter's .grad; return the loss [] and Q(s, a) [B].

    loss = mean (Q(s, a) - y)^2,  y = R + discount Q'(s', a'),  a' = argmax Q'(s', .), or argmax Q(s', .) if double_q

    Args:
        batch: s, a, R, s', discount as `ReplayMemory.gather` returns them.
    """
    device = q_network.head.weight.device
    obs, actions, returns, next_obs, discounts = (torch.from_numpy(array).to(device) for array in batch)
    with torch.no_grad():
        next_q = target_network(next_obs)
        next_actions = (q_network(next_obs) if double_q else next_q).argmax(1, keepdim=True)
        td_target = returns + discounts * next_q.gather(1, next_actions)[:, 0]
    with torch.enable_grad():
        q = q_network(obs).gather(1, actions[:, None])[:, 0]
        loss = (q - td_target).square().mean()
    q_network.zero_grad()
    loss.backward()
    return loss.detach(), q.detach()


class NewestErrors:
    """Squared TD errors of the newest transitions, averaged from update to update: what CUSUM watches.

    delta_t^2 = (r_t + gamma max_a Q(s_{t+1}, a) - Q(s_t, a_t))^2, each Q as it was when the agent acted

    A change of the world shows in them at once. The loss of replayed transitions hides it: nearly all are from before.
    The last transition of a truncated episode is left out. Of N copies together; one step, whatever --n-step is.
    """

    def __init__(self, gamma: float, copies: int):
        self.gamma, self.mean = gamma, 0.0
        self.errors: list[float] = []
        self.chosen, self.rewards = np.zeros(copies), np.zeros(copies)
        self.known = np.zeros(copies, dtype=bool)  # whether a transition of the same episode led to s_t

    def act(self, best: np.ndarray, chosen: np.ndarray) -> None:
        """The agent values s_t at `best` = max_a Q(s_t, a) [N], and the actions taken at `chosen` = Q(s_t, a_t) [N]."""
        self.errors += ((self.rewards + self.gamma * best - self.chosen)[self.known] ** 2).tolist()
        self.chosen = chosen.astype(np.float64)

    def step(self, rewards: np.ndarray, terminal: np.ndarray, truncated: np.ndarray) -> None:
        """What the actions brought [N]."""
        self.errors += ((rewards - self.chosen)[terminal] ** 2).tolist()
        self.rewards, self.known = np.array(rewards, dtype=np.float64), ~(terminal | truncated)

    def cut(self) -> None:
        """The running episodes are not gone on with."""
        self.known[:] = False

    def read(self) -> float:
        """Mean since the last reading, or that one if nothing is new; above 0 (for a logarithm) once there is one."""
        if self.errors:
            self.mean = max(float(np.mean(self.errors)), 1e-12)
            self.errors = []
        return self.mean

    def state_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).copy() for name in ("chosen", "rewards", "known")}
        return parts | {"mean": self.mean, "errors": list(self.errors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.chosen, self.rewards, self.known = (state[name].copy() for name in ("chosen", "rewards", "known"))
        self.mean, self.errors = state["mean"], list(state["errors"])


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


def make_network(actions: int, args: Args, seed: int, device: torch.device) -> QNetwork:
    """A network with the weights that this seed gives it."""
    with torch.random.fork_rng(devices=[]):  # torch's layers initialise themselves from the global stream
        torch.manual_seed(seed)
        return QNetwork(actions, args.network == "normalised", args.bf16).to(device)


@contextlib.contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Without --bf16 for a moment: to projection's check its rounding looks like a dependence on the weights' scale."""
    bf16, network.bf16 = network.bf16, False
    try:
        yield
    finally:
        network.bf16 = bf16


def make_optimizer(network: QNetwork, args: Args) -> torch.optim.Optimizer:
    """Adam, or with --weight-decay AdamW."""
    kind = torch.optim.AdamW if args.weight_decay else torch.optim.Adam
    parameters = list(network.parameters())
    return kind(parameters, lr=args.learning_rate, eps=args.adam_eps, weight_decay=args.weight_decay, fused=True)


def layers_to_reset(args: Args) -> list[str] | None:
    """Names of the modules that --reset.layers means; None is the whole network."""
    norm = ["hidden_norm"] if args.network == "normalised" else []
    return {"head": ["head"], "dense": ["hidden", *norm, "head"], "all": None}[args.reset.layers]


# same as agents/dqn_minatar.py::intervene
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
        env = make_world(args, make_timetable(args.shift), args.num_envs)
    actions = int(env.single_action_space.n)
    with one_line_errors("--device", also=(RuntimeError,)):
        device = torch.device(args.device)
        torch.empty(1, device=device)
    q_network, target_network = (make_network(actions, args, init_seed, device) for _ in range(2))
    optimizer = make_optimizer(q_network, args)
    replay = ReplayMemory(args.buffer_size, args.num_envs, args.gamma, args.n_step)
    on_cpu = device.type == "cpu"

    # elr attaches to the network and the optimiser.
    layers = scalable_weights(q_network)  # convolutions and hidden: the head is left out
    probe_obs = collect_probe(make_world(args, NoChange(), 1), args.probe.size, probe_seed).to(device)

    def make_rewarming() -> Rewarming:
        """Schedule and trigger, from their start."""
        with one_line_errors("--schedule, --rewarm"):
            return Rewarming(optimizer, make_schedule(args), make_trigger(args), args.rewarm.moments)

    rewarming = make_rewarming()
    newest = NewestErrors(args.gamma, args.num_envs) if args.rewarm.trigger == "cusum" else None
    meter = probe = None

    def make_projection() -> Projection | None:
        """What holds the norms where they are now."""
        if not args.nap.enabled:
            return None
        with one_line_errors("--nap"), in_float32(q_network):
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
        "projection": projection, "meter": meter, "probe": probe, "env": env, "newest": newest,
    }  # fmt: skip
    stateful = {name: part for name, part in stateful.items() if part is not None}
    global_step, updates, recent_returns, returns = 0, 0, deque[float](maxlen=100), None
    # Where exploration began, and where learning is to begin with how many updates before: a change may move them.
    explores_from, learns_from, learned = 0, args.learning_starts, 0
    obs, _ = env.reset(seed=env_seed)  # [N, 4, 84, 84] uint8

    def evaluation() -> VectorEnv | None:
        """The present task, for good."""
        world = evaluation_world(env, args.eval_episodes) if args.eval_every else None
        return FirstEpisode(world) if args.record_video else world

    evaluation_env = evaluation()

    def fresh_network() -> QNetwork:
        """Newly initialised, from a stream of its own for every step."""
        key = np.random.SeedSequence(args.seed, spawn_key=(*streams[5].spawn_key, global_step))
        return make_network(actions, args, int(key.generate_state(1)[0]), device)

    def reset_layers() -> None:
        """--reset: layers as new, and what the optimiser remembers of them; the replay memory stays."""
        nonlocal projection
        modules = layers_to_reset(args)
        reset_(q_network, fresh_network(), modules=modules, optimizer=optimizer, moments="reset")
        target_network.load_state_dict(q_network.state_dict())
        if projection and modules is None:
            projection = stateful["projection"] = make_projection()  # the norms are the new network's
        elif projection:
            projection.project_()
        if probe:
            probe.forget()  # what the reset did to the features is no learning
        run.scalar("reset/event", 1, global_step)

    def switch_world(task: int) -> None:
        """The world has changed: what the flags have happen then, before anything is learned of it."""
        nonlocal projection, rewarming, newest, explores_from, learns_from, learned, evaluation_env
        switch, fresh = args.switch, args.switch.fresh_agent
        intervene(switch, q_network, fresh_network(), projection)
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
                newest = stateful["newest"] = NewestErrors(args.gamma, args.num_envs)
        elif args.rewarm.trigger == "switch":
            rewarming.restart()
            run.scalar("rewarm/event", 1, global_step)
        if probe and (fresh or switch.intervention != "none"):
            probe.forget()  # what the intervention did to the features is no learning
        recent_returns.clear()
        evaluation_env = evaluation()
        run.scalar("shift/task", task, global_step)
        run.scalar("shift/boundary", 1, global_step)

    def moments() -> list[tuple[str, Tensor]]:
        """Adam's second moments, as far as there are any."""
        states = ((name, optimizer.state.get(p, {})) for name, p in q_network.named_parameters())
        return [(f"Adam's second moment of {name}", s["exp_avg_sq"]) for name, s in states if "exp_avg_sq" in s]

    def require_finite(what: str = "") -> None:
        """Stop before a broken network is saved, measured or stepped; the checkpoint on disk is from before."""
        named = [*weights_and_gradients(q_network), *moments()]
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
        parts = {"replay": replay.save(run.pieces)} | {n: part.state_dict() for n, part in stateful.items()}
        run.checkpoint(global_step, counters | draws | parts)
        run.pieces.keep_only(name for name, *_ in replay.pieces)

    if args.resume:
        run = Run.resume(args.resume, device=device)
    else:
        run = Run.create(run_directory(args), config_to_dict(args), argv=sys.argv, device=device)
    with run, StopOnSignal() as stop, torch.no_grad():
        if args.resume:
            state = run.take_state()
            misfit = f"{args.resume}: the checkpoint does not fit this version of the script"
            with one_line_errors(misfit, also=(KeyError, RuntimeError)):
                for name, part in stateful.items():
                    part.load_state_dict(state[name])
                replay.load(state["replay"], run.pieces)
                restore_rng(action_rng, state["action_rng"])
                restore_rng(minibatch_rng, state["minibatch_rng"])
                global_step, updates = state["global_step"], state["updates"]
                recent_returns.extend(state["recent_returns"])
                explores_from, learns_from, learned = (
                    state[name] for name in ("explores_from", "learns_from", "learned")
                )
                last_obs = state["env"]["stack"]
                (obs, episodes_go_on), evaluation_env = resumed_observation(env), evaluation()
                if not episodes_go_on:
                    replay.cut(last_obs)
                    if newest:
                        newest.cut()
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
            # Act: epsilon-greedy, in each of the N copies.
            epsilon = linear_schedule(args.start_e, args.end_e, args.exploration_steps, global_step - explores_from)
            explores = action_rng.random(args.num_envs) < epsilon
            chosen = action_rng.integers(actions, size=args.num_envs)
            if newest or not explores.all():
                values = q_values(q_network, obs)  # [N, A]
                chosen = np.where(explores, chosen, values.argmax(1))
            if newest:
                newest.act(values.max(1), values[np.arange(args.num_envs), chosen])
            next_obs, rewards, terminated, truncated, infos = env.step(chosen)
            learned_rewards = np.clip(rewards, -1, 1) if args.clip_rewards else rewards
            # In the classic protocol a lost life ends the return, though the game goes on.
            terminal = terminated | infos.get("life_lost", False) if args.protocol == "classic" else terminated
            final_obs = infos.get("final_obs", next_obs)
            replay.add(obs, chosen, learned_rewards, terminal, truncated, terminated | truncated, final_obs)
            if newest:
                newest.step(learned_rewards, terminal, truncated)
            obs, global_step = next_obs, global_step + args.num_envs
            if "episode" in infos:  # one that a change cut short says little
                whole = infos["_episode"] & ~truncated if "shift" in infos else infos["_episode"]
                for copy in np.flatnonzero(whole):
                    recent_returns.append(float(infos["episode"]["r"][copy]))
                    run.scalar("charts/episodic_return", recent_returns[-1], global_step)
                    run.scalar("charts/episodic_length", int(infos["episode"]["l"][copy]), global_step)

            # Learn: Algorithm 1 of arXiv:2507.20057, `replay_ratio` times per agent step.
            while updates < learned + int((global_step - learns_from) * args.replay_ratio):
                batch = replay.sample(args.batch_size, minibatch_rng)
                loss, q = gradient(q_network, target_network, batch, args.double_q)
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
                    run.scalar("losses/q_values", float(q.mean()), global_step)
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
            if args.eval_every and (global_step % args.eval_every == 0 or global_step >= args.total_timesteps):
                returns = evaluate(q_network, evaluation_env, env_seed + global_step, args.eval_epsilon)
                run.scalar("eval/episodic_return", returns.mean(), global_step)
                run.scalar("eval/episodic_return_std", returns.std(), global_step)
                if args.record_video:
                    evaluation_env.write(run.directory / "video" / f"step-{global_step}.gif")
            if "shift" in infos and global_step < args.total_timesteps:
                (told,) = infos["shift"].values()
                switch_world(told["task"])
            if any(at <= global_step < at + args.num_envs for at in args.reset.at_steps):
                reset_layers()
            if global_step % args.checkpoint_every == 0 and global_step < args.total_timesteps:
                checkpoint()

        checkpoint()
        if global_step < args.total_timesteps:
            run.interrupt(global_step)
            command = shlex.join([sys.executable, sys.argv[0], "--resume", str(run.directory)])
            print(f"\nstopped at step {global_step}; go on with: {command}")
            raise SystemExit(130)
        run.finish(global_step)
    frames = "" if args.env_id == CATCH else f" ({4 * global_step:,} frames)"
    print(f"\nfinished {global_step:,} steps{frames} in {run.directory}")
    if recent_returns:
        print(f"training return {np.mean(recent_returns):.2f}, mean of the last {len(recent_returns)} episodes")
    if returns is not None:
        print(f"evaluation return {returns.mean():.2f}, mean of {args.eval_episodes} episodes")
    print(f"look at it with: tensorboard --logdir {run.directory}")


if __name__ == "__main__":
    exit_with_one_line(lambda: main(parse(Args, PRESETS, prog_description=__doc__.split("\n\n")[0])))
