"""Rainbow on Atari with a re-warmed learning rate and normalize-and-project, in one file.

    python agents/rainbow_atari.py --env-id ALE/Breakout-v5        Rainbow, constant learning rate
    python agents/rainbow_atari.py low-utd-four-cycles --seed 1    weights projected, the rate cycles four times
    python agents/rainbow_atari.py high-utd-cyclic --seed 1        one update per step, the rate cycles
    python agents/rainbow_atari.py catch                           Catch, a test world, on two CPU cores
    python agents/rainbow_atari.py --resume runs/logs/RUN          go on with a killed or interrupted run

Rainbow is DQN with six additions (Hessel et al. 2018, arXiv:1710.02298): double Q-learning, prioritised replay, dueling
streams, n-step returns, a distribution of returns instead of their mean, and noisy weights instead of random actions.
The method is Algorithm 1 of Lyle et al. 2025 (arXiv:2507.20057): optimiser step -> project -> re-warm? -> set the rate;
those lines stand in this order in `main`. Normalize-and-project is arXiv:2407.01800.
All flags are in agent steps. A step is one decision of the agent and lasts four frames: 200 million frames are 50
million steps. An update is one optimiser step; updates = replay_ratio x (steps - learning_starts). Ratio 1 is the
paper's high update-to-data regime, 0.25 its low one and the usual one.

As in the paper: Adam, rate 6.25e-5; in the high update-to-data arms low rate 1e-6, cycles of 4 million frames (it says
frames in one place and steps in another), ten of them before annealing, weight decay 1e-2, no projection; in the low
ones projection, 200 million frames, resets after 50, 100 and 150 million, and the final rate 1e-7 after three quarters
where cycling stops early. Open there and chosen here: what a reset renews (the whole network and its moments; the
replay memory is kept), the bottom of the low arms' cycles (1e-6; where cycling stops early its final rate, 1e-7), that
early stopping leaves three of four cycles, and that the high arms have no normalisation. Resets count steps, cycles
count updates, which begin --learning-starts later: a reset comes so many steps before the cycle ends.
From DQN Zoo (github.com/google-deepmind/dqn_zoo), which counts frames: Adam's epsilon 0.005 / 32, batches of 32,
gradients clipped at the norm 10, learning from step 20,000 on, target network copied every 8,000 steps, a million
transitions, three steps, 51 atoms in [-10, 10], sigma_0 = 0.1, priorities to the power 0.5, a thousandth of the draws
uniform, beta from 0.4 to 1.

Deviations from DQN Zoo: sticky actions, no no-op starts, and a lost life is no end (Machado et al. 2018; --protocol
classic is as there); the value and advantage layers have biases; noise is Gaussian, not cut off at two deviations, and
the same in copies of the game that act together; priorities are not bounded by 100; beta grows from the first step, not
from the first update, over the whole run, and so does not begin anew with a fresh agent (--switch.fresh-agent); an
evaluation acts on mean weights, and at random once in a thousand steps. Weight decay is decoupled, as AdamW's, and
takes the deviations of noisy weights too.

--network normalised puts LayerNorm before each nonlinearity, over all of a layer's features; with it --nap.enabled
projects: a noisy layer's means and deviations by one scalar, the value and advantage layers not at all. The meter shows
deviations as <layer>.sigma; the probe sees means. With --shift the world changes (envs/shifts.py), and --switch says
what else happens then; --reset.at-steps resets layers at fixed steps (Nikishin et al. 2022). --rewarm.trigger cusum
watches squared errors of expected returns, those under the noise that the agent acts with. losses/td_loss is the mean
cross-entropy with its importance weights.

The replay memory keeps every frame once: a million transitions are 7.1 GB, their priorities 17 MB. A checkpoint holds
the priorities, and writes the frames that are new since the one before, compressed, into pieces/ of the run directory.
With --env-threads 0 a killed run resumes exactly; ale-py's vector environment (--env-threads 1 or more) cannot be
saved, so that a resumed run begins new episodes.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
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
from elr.weights import partners, scalable_weights
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


# same as agents/dqn_atari.py::ScheduleArgs
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


# same as agents/dqn_atari.py::ShiftArgs
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


@dataclass(frozen=True)
class SwitchArgs:
    """What else happens when the world changes."""

    fresh_agent: bool = False
    """a new agent learns each task (the oracle): a reset of all that follows, schedule and trigger included"""
    optimizer: Literal["keep", "reset"] = "keep"
    """Adam's moments and step counts: kept, or set to zero as in an optimiser that is built anew"""
    replay: Literal["keep", "clear"] = "keep"
    """the replay memory and its priorities; cleared, updates pause for --learning-starts steps"""
    target: Literal["keep", "copy"] = "keep"
    """the target network waits for --target-network-frequency, or is copied at once"""
    intervention: Literal["none", "shrink-and-perturb", "reset", "reset-head"] = "none"
    """what is done to the weights; the heads are the value and advantage layers"""
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
    """both streams' last layers, both streams, or the whole network (the paper does not say)"""


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
    """Rainbow on Atari: every flag, its default, its meaning."""

    env_id: str = "ALE/Pong-v5"
    """ALE/<Game>-v5, or rewarm/Catch-v0"""
    seed: int = 1
    """seed of every random stream"""
    total_timesteps: int = 10_000_000
    """agent steps of the run, summed over the copies; a step is four frames"""
    learning_rate: float = 6.25e-5
    """Adam's rate; with a schedule, its peak"""
    adam_eps: float = 1.5625e-4
    """Adam's epsilon"""
    weight_decay: float = 0.0
    """decoupled weight decay of all parameters, times the rate"""
    max_grad_norm: float = 10.0
    """gradients are scaled down to this norm, that of all parameters together"""
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
    n_step: int = 3
    """rewards summed before the value of the state after them is used"""
    target_network_frequency: int = 8_000
    """agent steps between copies of the network into the target network"""
    n_atoms: int = 51
    """returns that the distribution tells apart, evenly spaced"""
    v_min: float = -10.0
    """the lowest of them; what lies below counts as this"""
    v_max: float = 10.0
    """the highest of them; what lies above counts as this"""
    noisy_sigma: float = 0.1
    """sigma_0: a noisy weight's deviation begins at sigma_0 / sqrt(inputs of its layer)"""
    prioritized_replay_alpha: float = 0.5
    """a transition is drawn in proportion to its priority, its latest loss, to this power"""
    prioritized_replay_beta: float = 0.4
    """exponent of the importance weights at the first step; it grows linearly to 1 over --total-timesteps"""
    prioritized_replay_uniform: float = 1e-3
    """share of the draws that are uniform"""
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
    """agent steps between points of speed, and updates between points of losses and rates"""
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
    exp_name: str = "rainbow"
    """first part of the run's name"""
    directory: Path | None = None
    """run directory; default runs/logs/<exp_name>__<script>__<game>__s<seed>__<time>"""
    resume: Path | None = None
    """run directory to go on with; all other flags come from its config.json"""

    def __post_init__(self) -> None:
        positive = "total_timesteps learning_rate buffer_size batch_size replay_ratio target_network_frequency n_step"
        positive += " log_every checkpoint_every threads eval_episodes adam_eps num_envs max_grad_norm noisy_sigma"
        for name in positive.split():
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}")
        for name in ("prioritized_replay_beta", "prioritized_replay_uniform", "eval_epsilon"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} must lie in [0, 1], not {getattr(self, name)}")
        if not 0 <= self.gamma < 1:
            raise ValueError(f"--gamma must lie in [0, 1), not {self.gamma}")
        if not -math.inf < self.v_min < self.v_max < math.inf or self.n_atoms < 2:
            raise ValueError(
                f"--v-min {self.v_min}, --v-max {self.v_max}, --n-atoms {self.n_atoms}: the returns need two ends, the "
                "first below the second, and at least 2 atoms"
            )
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
        if not 0 <= min(*counts, self.weight_decay, self.prioritized_replay_alpha) < math.inf:
            raise ValueError(
                "--probe.every, --probe.meter-every, --eval-every, --learning-starts, --env-threads, --weight-decay, "
                "--prioritized-replay-alpha must be >= 0"
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
        uniform = ["prioritized_replay_beta"]
        if self.prioritized_replay_alpha == 0:
            inert = [*uniform, "prioritized_replay_uniform"]
            reject_unused("", self, inert, "with --prioritized-replay-alpha 0: all draws are uniform")
        if self.prioritized_replay_uniform == 1:
            inert = [*uniform, "prioritized_replay_alpha"]
            reject_unused("", self, inert, "with --prioritized-replay-uniform 1: all draws are uniform")
        if probe.size < 2:
            raise ValueError(f"--probe.size {probe.size} compares nothing: give at least 2 observations")
        if probe.every == 0:
            inert = ["tau"] if nap.enabled else ["size", "tau"]  # projection is checked on the probe's observations
            reject_unused("probe", probe, inert, "with --probe.every 0")
        if self.eval_every == 0:
            reject_unused("", self, ["eval_episodes", "eval_epsilon", "record_video"], "with --eval-every 0")

    def _refuse_switches_without_learning(self) -> None:
        shift, switch = self.shift, self.switch
        gaps = [b - a for a, b in pairwise((0, *shift.at_steps))]
        gap = shift.every_steps or min(gaps, default=math.inf)
        if (switch.fresh_agent or switch.replay == "clear") and gap <= self.learning_starts:
            what = "--switch.fresh-agent" if switch.fresh_agent else "--switch.replay clear"
            raise ValueError(
                f"{what} pauses updates for --learning-starts {self.learning_starts} steps, and --shift has changes "
                f"{gap} steps apart: nothing would be learned in between"
            )


# same as agents/dqn_atari.py::refuse_unseen_factors
def refuse_unseen_factors(args: Args) -> None:
    """Factors of rewards, which are whole numbers in these games, that clipping makes alike."""
    shift = args.shift
    if args.clip_rewards and shift.kind == "rewards" and len({min(max(v, -1.0), 1.0) for v in shift.values}) == 1:
        raise ValueError(
            f"--shift.values {shift.values} are factors that --clip-rewards makes alike: nothing changes for the "
            "learner; give --no-clip-rewards, or others"
        )


# same as agents/dqn_atari.py::refuse_inert_shifts
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


# same as agents/dqn_atari.py::steps
def steps(frames: int) -> int:
    """Frames -> agent steps."""
    return frames // 4


_nap = {"nap": NapArgs(enabled=True), "network": "normalised"}


def low_utd(name: str, **changes: Any) -> Args:
    """An arm of the paper's low update-to-data experiment: 200 million frames, projected, one update in four steps."""
    flags = {"total_timesteps": steps(200_000_000), "replay_ratio": 0.25, "exp_name": name}
    return Args(**(flags | _nap | changes))


# same as agents/dqn_atari.py::high_utd
def high_utd(name: str, **changes: Any) -> Args:
    """An arm of the paper's high update-to-data experiment: 200 million frames, one update per step."""
    flags = {"total_timesteps": steps(200_000_000), "replay_ratio": 1.0, "exp_name": name}
    return Args(**(flags | changes))


def quick(arm: Args) -> Args:
    """The same arm in a hundredth of the budget: cycles and resets are scaled with it, the memory to a tenth only."""
    schedule, at_steps = arm.schedule, tuple(step // 100 for step in arm.reset.at_steps)
    if schedule.kind != "constant":
        schedule = replace(schedule, period_steps=schedule.period_steps // 100)
    return replace(
        arm,
        total_timesteps=arm.total_timesteps // 100,
        learning_starts=5_000,
        buffer_size=100_000,
        target_network_frequency=2_000,
        eval_every=50_000,
        schedule=schedule,
        reset=replace(arm.reset, at_steps=at_steps),
        probe=ProbeArgs(every=to_updates(arm, 25_000)),
        exp_name=f"quick-{arm.exp_name}",
    )


_cyclic = ScheduleArgs(kind="cyclic")
_one_cycle = ScheduleArgs(kind="one-cycle", period_steps=steps(200_000_000))
_four_cycles = ScheduleArgs(kind="cyclic", period_steps=steps(50_000_000))
_three_cycles = ScheduleArgs(kind="cyclic-then-constant", period_steps=steps(50_000_000), cycles=3, low=1e-7)
_resets = ResetArgs(at_steps=(steps(50_000_000), steps(100_000_000), steps(150_000_000)))


def _annealed(cycles: int) -> ScheduleArgs:
    return ScheduleArgs(kind="cyclic-then-constant", period_steps=steps(4_000_000), cycles=cycles)


_arms = {
    "low-utd-constant": Preset("paper, low update-to-data: projected, constant rate", low_utd("low-utd-constant")),
    "low-utd-one-cycle": Preset(
        "paper: projected, the rate rises once and decays over the run",
        low_utd("low-utd-one-cycle", schedule=_one_cycle),
    ),
    "low-utd-four-cycles": Preset(
        "paper: projected, four cycles of 50M frames", low_utd("low-utd-four-cycles", schedule=_four_cycles)
    ),
    "low-utd-reset": Preset(
        "paper: projected, constant rate, the network reset after 50M, 100M and 150M frames",
        low_utd("low-utd-reset", reset=_resets),
    ),
    "low-utd-reset-cycles": Preset(
        "paper: projected, four cycles, a reset before each but the first",
        low_utd("low-utd-reset-cycles", schedule=_four_cycles, reset=_resets),
    ),
    "low-utd-early-stop": Preset(
        "paper: projected, three cycles of 50M frames, then 1e-7 for good",
        low_utd("low-utd-early-stop", schedule=_three_cycles),
    ),
    "high-utd-baseline": Preset("paper, high update-to-data: constant high rate", high_utd("high-utd-baseline")),
    "high-utd-low": Preset("paper: constant low rate", high_utd("high-utd-low", learning_rate=1e-6)),
    "high-utd-cyclic": Preset("paper: the rate cycles", high_utd("high-utd-cyclic", schedule=_cyclic)),
    "high-utd-cyclic-annealed": Preset(
        "paper, Fig. 6: ten cycles (40M frames), then the low rate for good",
        high_utd("high-utd-cyclic-annealed", schedule=_annealed(10)),
    ),
}
_chain = {
    "env_id": "ALE/Pong-v5",
    "shift": ShiftArgs(kind="games", games=("ALE/Breakout-v5", "ALE/SpaceInvaders-v5"), every_steps=steps(20_000_000)),
    "total_timesteps": steps(120_000_000),
}
_decay = ScheduleArgs(kind="warmup-cosine", period_steps=steps(20_000_000))
PRESETS = {
    "baseline": Preset("constant rate, one update in four steps", Args(exp_name="baseline")),
    "nap": Preset("normalize-and-project, constant rate", Args(exp_name="nap", **_nap)),
    **_arms,
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
    **{f"quick-{name}": Preset(f"{name}, 2M frames", quick(arm.args)) for name, arm in _arms.items()},
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
        "Catch on a screen, learned on two CPU cores",
        Args(
            exp_name="catch",
            env_id="rewarm/Catch-v0",
            total_timesteps=40_000,
            buffer_size=40_000,
            learning_starts=1_000,
            target_network_frequency=500,
            eval_every=5_000,
            eval_episodes=20,
            checkpoint_every=10_000,
            probe=ProbeArgs(every=1_000),
            threads=2,
        ),
    ),
}

# ------------------------------------------------------------------------------------------------------ environment

# same as agents/dqn_atari.py::PROTOCOLS
PROTOCOLS: dict[str, dict[str, Any]] = {
    "machado": {"sticky_action_prob": 0.25, "noop_max": 0},
    "classic": {"sticky_action_prob": 0.0, "noop_max": 30},
}


# Its `sample` is DQN's; here `Priorities` chooses what is sampled.
# same as agents/dqn_atari.py::ReplayMemory
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


# same as agents/dqn_atari.py::ROW_PARTS
ROW_PARTS = ("actions", "rewards", "age", "terminal", "truncated", "only_state")
PIECE_ROWS = 8192


def only_states(replay: ReplayMemory) -> np.ndarray:
    """Slots of the rows written last, of each lane, that hold a state to bootstrap from and no transition [K]."""
    lanes, rows = np.arange(replay.lanes), (replay.written - 1) % replay.rows
    held = replay.only_state[lanes, rows] & (replay.written > replay.forgotten)
    return (lanes * replay.rows + rows)[held]


class SumTree:
    """Non-negative numbers x_0 ... x_{n-1} of which the one that holds a point of [0, sum) is found in a few searches.

    A tree with 64 children to a node: for a million numbers two levels below 245 nodes. A node is the sum of its
    children. Each level also keeps where its nodes end, as shares of their parents, in one sorted row,

        ends_i = parent + (x_first + ... + x_i) / (x_first + ... + x_last),   over i's siblings, parent = i // 64

    so that the child that holds the share s of a parent, the first that ends beyond parent + s, is found by one binary
    search of the whole level. A level resolves shares to 2^-52 times the number of parents, at most 4e-12 here.
    Where a number changes, the sums over it are taken anew, so that no rounding error accumulates.
    """

    FAN, TOP = 64, 1024

    def __init__(self, size: int):
        self.nodes: list[np.ndarray] = []  # from x up, rows of siblings [parents, 64]
        parents = size
        while not self.nodes or parents > self.TOP:
            parents = -(-parents // self.FAN)
            self.nodes.append(np.zeros((parents, self.FAN)))
        self.top = np.zeros(parents)
        self.ends = [np.zeros_like(level) + np.arange(len(level))[:, None] for level in self.nodes]
        self.leaves = self.nodes[0].reshape(-1)[:size]

    @property
    def total(self) -> float:
        return float(self.top.sum())

    def set(self, index: np.ndarray, values: np.ndarray) -> None:
        """x[index] <- values, [B] each; of an index that comes twice the last value stays."""
        self.leaves[index] = values
        self._sum_up(index // self.FAN)

    def set_all(self, values: np.ndarray) -> None:
        """x <- values, [n]."""
        self.leaves[:] = values
        self._sum_up(np.arange(len(self.nodes[0])))

    def _sum_up(self, parents: np.ndarray) -> None:
        for nodes, ends, above in zip(self.nodes, self.ends, [*self.nodes[1:], self.top], strict=True):
            sums = np.cumsum(nodes[parents], axis=1)
            above.reshape(-1)[parents] = whole = sums[:, -1]
            ends[parents] = parents[:, None] + sums / (whole + (whole == 0))[:, None]
            parents = parents // self.FAN

    def find(self, points: np.ndarray) -> np.ndarray:
        """The i with x_0 + ... + x_{i-1} <= point < x_0 + ... + x_i for each point [B] in [0, sum), up to rounding.

        Never one with x_i = 0, whichever way the sums round; 0 if all are.
        """
        nodes, ends, whole = self.top, self.top.cumsum(), np.float64(1)
        if not ends[-1] > 0:
            return np.zeros(len(points), dtype=np.int64)
        key = np.minimum(points, np.nextafter(ends[-1], 0))  # rounding may have put it past the end
        node = ends.searchsorted(key, side="right")  # the first whose end is beyond the point: it is not empty
        for below, ends_below in zip(self.nodes[::-1], self.ends[::-1], strict=True):
            within = nodes[node]
            share = 1 - (ends[node] - key) * whole / within
            key = node + np.minimum(np.maximum(share, 0), 1 - len(below) * 2.0**-52)  # rounding, again
            whole, nodes, ends = within, below.reshape(-1), ends_below.reshape(-1)
            node = ends.searchsorted(key, side="right")
        return node


class Priorities:
    """Prioritised sampling of replay slots, proportional variant (Schaul et al. 2016, arXiv:1511.05952).

    P(i) = (1 - u) p_i^alpha / sum_k p_k^alpha + u / n,   over the n slots that have been written

    A new transition gets the largest priority seen so far, at first 1. A slot that holds none adds nothing to the sum.

    Args:
        slots: how many there are.
        exponent: alpha.
        uniform: u, the share of draws that are uniform.
    """

    def __init__(self, slots: int, exponent: float, uniform: float):
        self.tree, self.exponent, self.uniform, self.largest = SumTree(slots), exponent, uniform, 1.0
        # Slots in the order in which they were first written, and which of them were.
        self.order, self.written, self.size = np.zeros(slots, dtype=np.int64), np.zeros(slots, dtype=bool), 0

    def add(self, slots: np.ndarray) -> None:
        """The slots [K], all different, hold new transitions."""
        self._write(slots, self.largest**self.exponent)

    def blank(self, slots: np.ndarray) -> None:
        """The slots [K], all different, were written and hold no transition, whatever they held before."""
        if len(slots):
            self._write(slots, 0.0)

    def _write(self, slots: np.ndarray, leaf: float) -> None:
        new = slots[~self.written[slots]]
        self.order[self.size : self.size + len(new)] = new
        self.written[new], self.size = True, self.size + len(new)
        self.tree.set(slots, np.full(len(slots), leaf))

    def update(self, slots: np.ndarray, priorities: np.ndarray) -> None:
        """The slots [B] have these priorities p >= 0 now."""
        self.largest = max(self.largest, float(priorities.max()))
        self.tree.set(slots, priorities.astype(np.float64) ** self.exponent)

    def sample(
        self, batch_size: int, rng: np.random.Generator, valid: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Slots [B], drawn independently, and their P(i) [B]; a slot that is not valid is drawn again.

        Given that a slot is valid, its probability is P(i) divided by that of a valid one: one factor for all.
        """
        slots = self._draw(batch_size, rng)
        for _ in range(1000):
            if not len(again := np.flatnonzero(~valid(slots))):
                return slots, self.probabilities(slots)
            slots[again] = self._draw(len(again), rng)
        raise RunError(f"next to none of {self.size} replay slots has known following steps: give more room or time")

    def _draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        which, point, place = rng.random((3, count))
        slots = self.tree.find(point * self.tree.total)
        if (uniform := which < self.uniform).any():
            slots[uniform] = self.order[(place[uniform] * self.size).astype(np.int64)]
        return slots

    def probabilities(self, slots: np.ndarray) -> np.ndarray:
        """P(i) [B]."""
        return (1 - self.uniform) * self.tree.leaves[slots] / self.tree.total + self.uniform / self.size

    def importance_weights(self, probabilities: np.ndarray, beta: float) -> np.ndarray:
        """w_i = (n P(i))^-beta, divided by the largest of the batch, [B]."""
        weights = (self.size * probabilities) ** -beta
        return weights / weights.max()

    def clear(self) -> None:
        """Forget all slots; the largest priority stays."""
        self.tree.set_all(np.zeros(len(self.order)))
        self.written[:], self.size = False, 0

    def state_dict(self) -> dict[str, Any]:
        order = self.order[: self.size]
        return {"slots": len(self.order), "order": order, "leaves": self.tree.leaves[order], "largest": self.largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["slots"] != len(self.order):
            raise RunError(f"the checkpoint has priorities of {state['slots']} slots, not of {len(self.order)}")
        order, leaves = state["order"], np.zeros(len(self.order))
        leaves[order] = state["leaves"]
        self.tree.set_all(leaves)
        self.size, self.largest = len(order), state["largest"]
        self.order[: self.size], self.written[:] = order, False
        self.written[order] = True


# same as agents/dqn_minatar.py::make_timetable
def make_timetable(shift: ShiftArgs) -> Timetable:
    """When the world changes."""
    if shift.kind == "none":
        return NoChange()
    if shift.rate:
        return AtRandom(shift.rate)
    return AtSteps(shift.at_steps) if shift.at_steps else EverySteps(shift.every_steps)


# same as agents/dqn_atari.py::make_world
def make_world(args: Args, timetable: Timetable, copies: int) -> VectorEnv:
    """Copies of the world that the flags describe."""
    shift, rules = args.shift, PROTOCOLS[args.protocol]
    if args.env_id == CATCH:  # it begins at once
        rules = rules | {"noop_max": 0}
    games = (args.env_id, *shift.games)
    return ScreenWorld(
        games, copies, shift.kind, timetable, shift.tasks, shift.values, threads=args.env_threads, **rules
    ).make()


# same as agents/dqn_atari.py::collect_probe
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


# same as agents/dqn_atari.py::evaluate
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


class NoisyLinear(nn.Linear):
    """A linear layer whose weights are redrawn around learned means with learned deviations (arXiv:1706.10295).

    y = W x + b,   W = mu + sigma * f(eps_out) f(eps_in)^T,   b = mu_b + sigma_b * f(eps_out),   f(x) = sign(x) sqrt|x|

    with standard normal eps: factorised noise. `weight` and `bias` are mu, which begin uniform in +-1/sqrt(in) as those
    of any linear layer; the deviations begin at sigma_0 / sqrt(in). As the noise has rank one, W need not be formed:

    y = mu x + mu_b + f(eps_out) * (sigma (f(eps_in) * x) + sigma_b)

    In training mode the noise is what `draw_noise_` put there, at first zero, the same for the whole batch; in
    evaluation mode there is none.
    """

    scaled_with_weight = "weight_sigma"  # elr/projection.py holds the joint norm of the two

    def __init__(self, in_features: int, out_features: int, bias: bool, sigma_0: float):
        super().__init__(in_features, out_features, bias)
        sigma = sigma_0 / math.sqrt(in_features)
        self.weight_sigma = nn.Parameter(torch.full_like(self.weight, sigma))
        self.bias_sigma = nn.Parameter(torch.full_like(self.bias, sigma)) if bias else None
        self.register_buffer("noise_in", torch.zeros(in_features), persistent=False)  # f(eps_in)
        self.register_buffer("noise_out", torch.zeros(out_features), persistent=False)  # f(eps_out)

    def forward(self, x: Tensor) -> Tensor:  # [B, in] -> [B, out]
        y = super().forward(x)
        if not self.training:
            return y
        return y + self.noise_out * nn.functional.linear(x * self.noise_in, self.weight_sigma, self.bias_sigma)


class QNetwork(nn.Module):
    """Distribution of the return of each action, as logits of its atoms, for a stack of four 84x84 frames.

    Three convolutions (Mnih et al. 2015), then two streams of 512 hidden units, all of whose layers are noisy; what
    they say of value and advantages is added up by `dueling`.

    normalised: LayerNorm before each nonlinearity, whose offset makes the layer's own bias redundant.
    plain: biases and no normalisation.
    bf16: convolutions and hidden layers in bfloat16, but not the streams' last layers.

    Args:
        support: z [N], the atoms.
    """

    def __init__(self, actions: int, support: Tensor, sigma_0: float, normalised: bool, bf16: bool = False):
        super().__init__()
        self.bf16, bias, norm = bf16, not normalised, nn.LayerNorm if normalised else lambda _: nn.Identity()
        self.conv1, self.conv1_norm = nn.Conv2d(4, 32, kernel_size=8, stride=4, bias=bias), norm((32, 20, 20))
        self.conv1_relu = nn.ReLU()
        self.conv2, self.conv2_norm = nn.Conv2d(32, 64, kernel_size=4, stride=2, bias=bias), norm((64, 9, 9))
        self.conv2_relu = nn.ReLU()
        self.conv3, self.conv3_norm = nn.Conv2d(64, 64, kernel_size=3, stride=1, bias=bias), norm((64, 7, 7))
        self.conv3_relu = nn.ReLU()
        self.value_hidden, self.value_norm = NoisyLinear(64 * 7 * 7, 512, bias, sigma_0), norm(512)
        self.value_relu = nn.ReLU()
        self.value = NoisyLinear(512, len(support), True, sigma_0)
        self.advantage_hidden, self.advantage_norm = NoisyLinear(64 * 7 * 7, 512, bias, sigma_0), norm(512)
        self.advantage_relu = nn.ReLU()
        self.advantage = NoisyLinear(512, actions * len(support), True, sigma_0)
        self.register_buffer("support", support, persistent=False)

    def logits(self, obs: Tensor) -> Tensor:  # [B, 4, 84, 84] -> [B, A, N]
        x = obs.to(self.support.dtype, memory_format=torch.channels_last) / 255  # convolutions are faster so
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.conv1_relu(self.conv1_norm(self.conv1(x)))  # [B, 32, 20, 20]
            x = self.conv2_relu(self.conv2_norm(self.conv2(x)))  # [B, 64, 9, 9]
            x = self.conv3_relu(self.conv3_norm(self.conv3(x))).flatten(1)  # [B, 3136]
            value = self.value_relu(self.value_norm(self.value_hidden(x)))  # [B, 512]
            advantage = self.advantage_relu(self.advantage_norm(self.advantage_hidden(x)))  # [B, 512]
        value = self.value(value.to(self.support.dtype))  # [B, N]
        advantage = self.advantage(advantage.to(self.support.dtype))  # [B, A N]
        return dueling(value, advantage.unflatten(1, (-1, len(self.support))))

    def forward(self, obs: Tensor) -> Tensor:  # [B, 4, 84, 84] -> Q-values [B, A]
        return expected_returns(self.logits(obs), self.support)


HEADS = ["value", "advantage"]  # never projected
PROBED = ["conv1_relu", "conv2_relu", "conv3_relu", "value_relu", "advantage_relu"]  # after the nonlinearity


@torch.no_grad()
def draw_noise_(network: nn.Module, rng: np.random.Generator) -> None:
    """New noise f(eps) for every noisy layer, drawn on the host and copied to the device at once."""
    layers = [module for module in network.modules() if isinstance(module, NoisyLinear)]
    sizes = [size for layer in layers for size in (layer.in_features, layer.out_features)]
    eps = rng.standard_normal(sum(sizes), dtype=np.float32)
    noise = torch.from_numpy(np.copysign(np.sqrt(np.abs(eps)), eps)).to(layers[0].weight)
    parts = iter(noise.split(sizes))
    for layer in layers:
        layer.noise_in, layer.noise_out = next(parts), next(parts)


@torch.no_grad()
def q_values(network: QNetwork, obs: np.ndarray) -> np.ndarray:  # [N, 4, 84, 84] -> [N, A]
    """Expected returns from observations of the environment."""
    return network(torch.from_numpy(obs).to(network.support.device)).cpu().numpy()


# ----------------------------------------------------------------------------------------------------------- losses


# same as agents/dqn_minatar.py::linear_schedule
def linear_schedule(start: float, end: float, duration: int, step: int) -> float:
    """start at step 0, end from step `duration` on, a straight line between."""
    return start + (end - start) * min(step / duration, 1.0)


def dueling(value: Tensor, advantage: Tensor) -> Tensor:  # [B, N], [B, A, N] -> [B, A, N]
    """v + a_i - mean_k a_k, atom by atom (Wang et al. 2016, arXiv:1511.06581, Eq. 9)."""
    return value[:, None] + advantage - advantage.mean(1, keepdim=True)


def expected_returns(logits: Tensor, support: Tensor) -> Tensor:  # [B, A, N], [N] -> [B, A]
    """Q = sum_j z_j p_j, p = softmax of the logits."""
    return logits.softmax(2) @ support


def categorical_projection(
    support: Tensor, returns: Tensor, discounts: Tensor, next_probabilities: Tensor
) -> Tensor:  # [N], [B], [B], [B, N] -> [B, N]
    """The distribution of R + d Z', moved onto the atoms of Z' (Bellemare et al. 2017, arXiv:1707.06887, Eq. 7).

    The probability of atom z_j goes to R + d z_j, or to the end of the support beyond which that lies, and from there
    to the two atoms beside it, to each the more the nearer it is. Within the support the mean is kept.

    Args:
        support: z, evenly spaced, ascending.
        returns: R, discounted over the steps up to the state that Z' is the return from.
        discounts: d = gamma^m, 0 where the episode terminated before.
        next_probabilities: p' of Z'.
    """
    last = len(support) - 1
    spacing = (support[-1] - support[0]) / last
    # Where the atoms land, in units of the spacing from z_0.
    place = ((returns[:, None] + discounts[:, None] * support - support[0]) / spacing).clamp(0, last)  # [B, N]
    below = place.floor()
    share = place - below  # of the atom above; 0 at z_last, which has none
    index = below.long()
    projected = torch.zeros_like(next_probabilities)
    projected.scatter_add_(1, index, next_probabilities * (1 - share))
    return projected.scatter_add_(1, (index + 1).clamp(max=last), next_probabilities * share)


def double_q_target(
    support: Tensor, returns: Tensor, discounts: Tensor, next_q: Tensor, next_logits: Tensor
) -> Tensor:  # [N], [B], [B], [B, A], [B, A, N] -> [B, N]
    """Target distribution: of the action that next_q prefers, as next_logits, of the target network, value it."""
    best = next_logits[torch.arange(len(next_q), device=next_q.device), next_q.argmax(1)]  # [B, N]
    return categorical_projection(support, returns, discounts, best.softmax(1))


def cross_entropies(logits: Tensor, actions: Tensor, target: Tensor) -> Tensor:  # [B, A, N], [B], [B, N] -> [B]
    """- sum_j m_j log p_j(s, a), m the target distribution: the loss of each transition, and its new priority."""
    chosen = logits[torch.arange(len(actions), device=actions.device), actions]
    return -(target * chosen.log_softmax(1)).sum(1)


class Gradient:
    """Gradient of the importance-weighted mean of the cross-entropies, by autograd.

    Three independent draws of noise, as in arXiv:1706.10295: for the online network when it chooses the next action,
    for the target network when it values that action, and for the online network that learns.
    """

    def __init__(self, q_network: QNetwork, target_network: QNetwork, rng: np.random.Generator):
        self.q_network, self.target_network, self.rng = q_network, target_network, rng

    def __call__(self, batch: list[np.ndarray], weights: np.ndarray) -> tuple[Tensor, Tensor]:
        """Write every parameter's .grad; return the cross-entropies [B] and Q(s, a) [B].

        Args:
            batch: obs [B, 4, 84, 84], actions [B], n-step returns [B], next_obs [B, 4, 84, 84], discounts [B].
            weights: importance weights [B].
        """
        support = self.q_network.support
        obs, actions, returns, next_obs, discounts = (torch.from_numpy(a).to(support.device) for a in batch)
        with torch.no_grad():
            draw_noise_(self.q_network, self.rng)
            next_q = self.q_network(next_obs)
            draw_noise_(self.target_network, self.rng)
            next_logits = self.target_network.logits(next_obs)
            target = double_q_target(support, returns.to(support), discounts.to(support), next_q, next_logits)
            draw_noise_(self.q_network, self.rng)
        with torch.enable_grad():
            logits = self.q_network.logits(obs)
            losses = cross_entropies(logits, actions, target)
            loss = (torch.from_numpy(weights).to(support) * losses).mean()
        self.q_network.zero_grad(set_to_none=False)
        loss.backward()
        q = expected_returns(logits.detach(), support).gather(1, actions[:, None])[:, 0]
        return losses.detach(), q


# same as agents/dqn_atari.py::NewestErrors
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
    support = torch.linspace(args.v_min, args.v_max, args.n_atoms)
    with torch.random.fork_rng(devices=[]):  # torch's layers initialise themselves from the global stream
        torch.manual_seed(seed)
        return QNetwork(actions, support, args.noisy_sigma, args.network == "normalised", args.bf16).to(device)


# same as agents/dqn_atari.py::in_float32
@contextlib.contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Without --bf16 for a moment: to projection's check its rounding looks like a dependence on the weights' scale."""
    bf16, network.bf16 = network.bf16, False
    try:
        yield
    finally:
        network.bf16 = bf16


# same as agents/dqn_atari.py::make_optimizer
def make_optimizer(network: QNetwork, args: Args) -> torch.optim.Optimizer:
    """Adam, or with --weight-decay AdamW."""
    kind = torch.optim.AdamW if args.weight_decay else torch.optim.Adam
    parameters = list(network.parameters())
    return kind(parameters, lr=args.learning_rate, eps=args.adam_eps, weight_decay=args.weight_decay, fused=True)


def layers_to_reset(args: Args) -> list[str] | None:
    """Names of the modules that --reset.layers means; None is the whole network."""
    hidden = ["value_hidden", "advantage_hidden"]
    norms = ["value_norm", "advantage_norm"] if args.network == "normalised" else []
    return {"head": HEADS, "dense": [*hidden, *norms, *HEADS], "all": None}[args.reset.layers]


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
            reset_(q_network, fresh, modules=HEADS)


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
    minibatch_rng, noise_rng = (np.random.default_rng(s) for s in streams[3:5])

    with one_line_errors("--env-id, --shift" if args.shift.kind != "none" else ""):
        env = make_world(args, make_timetable(args.shift), args.num_envs)
    actions = int(env.single_action_space.n)
    with one_line_errors("--device", also=(RuntimeError,)):
        device = torch.device(args.device)
        torch.empty(1, device=device)
    q_network, target_network = (make_network(actions, args, init_seed, device) for _ in range(2))
    optimizer = make_optimizer(q_network, args)
    gradient = Gradient(q_network, target_network, noise_rng)
    replay = ReplayMemory(args.buffer_size, args.num_envs, args.gamma, args.n_step)

    def make_priorities() -> Priorities:
        """Of an empty replay memory."""
        return Priorities(args.buffer_size, args.prioritized_replay_alpha, args.prioritized_replay_uniform)

    priorities = make_priorities()

    # elr attaches to the network and the optimiser.
    layers = scalable_weights(q_network, heads=HEADS)  # convolutions, and the means of the streams' hidden layers
    sigmas = {f"{name}.sigma": sigma for name, sigma in partners(q_network, layers).items() if sigma is not None}
    metered = layers | sigmas
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
                heads=HEADS,
                check_inputs=probe_obs,
                allow_scale_dependent=args.nap.allow_scale_dependent,
            )

    projection = make_projection()
    if args.probe.meter_every:
        meter = Meter(metered, every=args.probe.meter_every, optimizer=optimizer, nominal_power=1)
    if args.probe.every:
        with one_line_errors("--probe"):
            probe = Probe(q_network, probe_obs, PROBED, every=args.probe.every, tau=args.probe.tau)

    stateful: dict[str, Any] = {
        "q_network": q_network, "target_network": target_network, "optimizer": optimizer, "rewarming": rewarming,
        "projection": projection, "meter": meter, "probe": probe, "env": env, "newest": newest,
        "priorities": priorities,
    }  # fmt: skip
    stateful = {name: part for name, part in stateful.items() if part is not None}
    global_step, updates, recent_returns, returns = 0, 0, deque[float](maxlen=100), None
    # Where learning is to begin, with how many updates before: a change may move it.
    learns_from, learned = args.learning_starts, 0
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
        nonlocal projection, rewarming, newest, priorities, learns_from, learned, evaluation_env
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
            priorities.clear()
            learns_from, learned = global_step + args.learning_starts, updates
        if fresh:
            optimizer.param_groups[0]["lr"] = args.learning_rate
            rewarming = stateful["rewarming"] = make_rewarming()
            priorities = stateful["priorities"] = make_priorities()
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
        counters |= {"learns_from": learns_from, "learned": learned}
        draws = {"noise_rng": rng_state(noise_rng), "minibatch_rng": rng_state(minibatch_rng)}
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
                restore_rng(noise_rng, state["noise_rng"])
                restore_rng(minibatch_rng, state["minibatch_rng"])
                global_step, updates = state["global_step"], state["updates"]
                recent_returns.extend(state["recent_returns"])
                learns_from, learned = state["learns_from"], state["learned"]
                last_obs = state["env"]["stack"]
                (obs, episodes_go_on), evaluation_env = resumed_observation(env), evaluation()
                if not episodes_go_on:
                    replay.cut(last_obs)
                    priorities.blank(only_states(replay))
                    if newest:
                        newest.cut()
        else:
            charts = {"task": ["shift/task"]} if args.shift.kind != "none" else {}
            run.layout(list(metered), PROBED, rewarming=args.rewarm.trigger != "never", charts=charts)
            if args.shift.kind != "none":
                run.scalar("shift/task", 0, global_step)
            if probe:
                run.scalars(probe.measure(), global_step)
            checkpoint()
        progress = Progress(args.total_timesteps, global_step)
        while global_step < args.total_timesteps and not stop.requested:
            # Act: greedily, on weights with new noise, in each of the N copies.
            draw_noise_(q_network, noise_rng)
            values = q_values(q_network, obs)  # [N, A]
            chosen = values.argmax(1)
            if newest:
                newest.act(values.max(1), values.max(1))  # the action taken is the best
            next_obs, rewards, terminated, truncated, infos = env.step(chosen)
            learned_rewards = np.clip(rewards, -1, 1) if args.clip_rewards else rewards
            # In the classic protocol a lost life ends the return, though the game goes on.
            terminal = terminated | infos.get("life_lost", False) if args.protocol == "classic" else terminated
            final_obs = infos.get("final_obs", next_obs)
            slots = replay.add(obs, chosen, learned_rewards, terminal, truncated, terminated | truncated, final_obs)
            priorities.add(slots)
            priorities.blank(only_states(replay))
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
            beta = linear_schedule(args.prioritized_replay_beta, 1.0, args.total_timesteps, global_step)
            while updates < learned + int((global_step - learns_from) * args.replay_ratio):
                slots, probabilities = priorities.sample(args.batch_size, minibatch_rng, replay.valid)
                weights = priorities.importance_weights(probabilities, beta)
                losses, q = gradient(replay.gather(slots), weights)
                losses = losses.cpu().numpy()  # waits for a GPU; the priorities are on the host
                loss = float((weights * losses).mean())
                if not math.isfinite(loss):
                    require_finite(f"loss {loss},")
                surprise = newest.read() if newest else None
                if newest and not math.isfinite(surprise):
                    require_finite(f"TD error {surprise},")
                nn.utils.clip_grad_norm_(q_network.parameters(), args.max_grad_norm)
                if meter:
                    meter.before_step()
                optimizer.step()
                measured = meter is not None and meter.after_step()  # the step really taken, before the projection
                if projection:
                    projection.step(rewarming.rate)  # W <- W ||W_0|| / ||W||; gains and offsets by --nap.gains
                rate = rewarming.rate
                # trigger? restart the schedule; set the next update's rate
                rewarmed = rewarming.step(surprise)
                priorities.update(slots, losses)
                updates += 1

                if measured:
                    run.scalars(meter.scalars(), global_step)
                if rewarmed:
                    run.scalar("rewarm/event", 1, global_step)
                if updates % args.log_every == 0:
                    run.scalar("charts/learning_rate", rate, global_step)
                    run.scalar("losses/td_loss", loss, global_step)
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
                progress.show(global_step, sps, recent_returns, rewarming.rate)
            if args.eval_every and (global_step % args.eval_every == 0 or global_step >= args.total_timesteps):
                q_network.eval()  # on the means of the noisy weights
                returns = evaluate(q_network, evaluation_env, env_seed + global_step, args.eval_epsilon)
                q_network.train()
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
