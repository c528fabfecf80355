"""Rainbow on Atari with normalize-and-project and a re-warmed learning rate, in one file.

    python agents/rainbow_atari.py --env-id ALE/Breakout-v5        Rainbow, constant learning rate
    python agents/rainbow_atari.py low-utd-four-cycles --seed 1    weights projected, the rate cycles four times
    python agents/rainbow_atari.py high-utd-cyclic --seed 1        one update per step, the rate cycles
    python agents/rainbow_atari.py catch                           Catch, a small test game, on two CPU cores
    python agents/rainbow_atari.py --resume runs/logs/RUN          continue a killed or interrupted run

Rainbow is DQN with six additions (Hessel et al. 2018, arXiv:1710.02298): double Q-learning, prioritised replay, dueling
streams, n-step returns, a distribution of returns instead of their mean, and noisy weights instead of random actions.
The method is Algorithm 1 of Lyle et al. 2025 (arXiv:2507.20057, "the paper" below): step the optimiser, project the
weights, ask the trigger whether to re-warm (restart the learning-rate schedule), set the rate of the next update. In
`main` these are three calls in this order. Normalize-and-project is arXiv:2407.01800.

All flags count agent steps. One step is one decision of the agent and lasts four frames, so 200 million frames are 50
million steps. One update is one optimiser step, and updates = replay_ratio * (steps - learning_starts). Ratio 1 is the
paper's high update-to-data regime; 0.25 is its low one, and usual.

From the paper: Adam, rate 6.25e-5. One more high update-to-data arm has weight decay 1e-2. Low ones: projection, resets
after 50, 100 and 150 million frames, final rate 1e-7 where cycling stops early, and the protocol of Hessel et al. 2018
(no-op starts, no sticky actions, a lost life ends the return). On the cycles of the high arms its text and its figures
disagree: the text says 4 million, of frames, of steps and of updates; Rainbow's curve in Fig. 7 (left, Hero) shows
cycles of 20 million frames where the rate cycles to the end, and DQN's (right) ten of 4 million where cycling stops
early. The presets follow the figures; `high-utd-cyclic --schedule.period-steps 1000000` (or 4000000) is the text, read
as frames (or as steps or updates).

Not specified in the paper, our choices: a reset renews the whole network and its moments and keeps the replay memory;
the low arms' cycles go down to 1e-6, or to 1e-7 where cycling stops early, after three of four cycles; the high arms
have no normalisation, no projection (said of DQN only) and the protocol of Machado et al. 2018 (sticky actions, no
no-op starts, a lost life ends nothing). Resets count steps; cycles count updates, which begin --learning-starts later.

From DQN Zoo (github.com/google-deepmind/dqn_zoo): all other defaults.

Deviations from DQN Zoo: the protocol of Machado et al. (--protocol classic is theirs) but in the low arms; biases in
the value and advantage layers; Gaussian noise that is not truncated, the same in all environments; no upper bound of
priorities; beta grows over the whole run, from the first step; an evaluation uses the mean weights and takes a random
action once in a thousand steps. Weight decay is decoupled, as in AdamW, and applies to the noise scales sigma as well.

Projection needs --network normalised; it rescales mu and sigma of a noisy layer together and leaves the value and
advantage layers out. The meter records sigma as <layer>.sigma; the probe uses mean weights. losses/td_loss is the mean
cross-entropy with importance weights. --shift changes the task during training, and --switch sets how the agent reacts;
by default it does not react (plain continual learning). --rewarm.trigger cusum watches the squared errors of expected
returns, under the noise that the agent acts with, on the newest transitions.

The replay memory keeps every frame once: a million transitions take 7.1 GB, their priorities 17 MB. A checkpoint writes
only the new frames, compressed, into pieces/ of the run directory. With --env-threads 0 a killed run resumes exactly;
ale-py's own vector environment (--env-threads 1 or more) cannot be saved, so a resumed run starts new episodes.

Measured with `catch`: evaluation return 9.50 (best possible 9.99, random about -5), one seed. No Atari game has been
run to the published length yet: docs/results.md.
"""

from __future__ import annotations

import runs.quiet_imports  # noqa: F401  # isort: skip

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from elr import flags, layout
from elr.flags import NapArgs, ProbeArgs, ResetArgs, RewarmArgs
from elr.interventions import reset_
from elr.moments import reset_moments_
from elr.td_errors import RecentTDErrors
from elr.weights import partners, scalable_weights
from envs.catch import ENV_ID as CATCH
from envs.evaluation import play, uniform_observations
from envs.flags import ScreenShiftArgs as ShiftArgs
from envs.frames import STACK
from envs.replay import FrameMemory, Priorities, Where
from envs.worlds import evaluation_world, resumed_observation
from runs.recording import exit_with_one_line, one_line_errors, parse, presets, reject_unused
from runs.recording.video import FirstEpisode
from runs.training import Returns, RunArgs, Session, in_float32, require_multiples, require_share
from runs.training.checks import require, require_not_negative, require_positive

# ------------------------------------------------------------------------------------------------- hyperparameters


@dataclass(frozen=True)
class ScheduleArgs(flags.ScheduleArgs):
    """Learning rate as a function of the updates since the last trigger; its peak is --learning-rate."""

    low: float = 1e-6
    period_steps: int = 1_000_000
    cycles: int = 10


@dataclass(frozen=True)
class SwitchArgs(flags.SwitchArgs):
    """What happens when the task changes, besides re-warming (--rewarm.trigger switch)."""

    replay: Literal["keep", "clear"] = "keep"
    """keep the replay memory and its priorities, or clear them and pause updates for --learning-starts steps"""
    target: Literal["keep", "copy"] = "keep"
    """copy the target network at the usual time, or at once"""


@dataclass(frozen=True)
class Args(RunArgs):
    """Rainbow on Atari: every flag, its default, its meaning."""

    env_id: str = "ALE/Pong-v5"
    """ALE/<Game>-v5, or rewarm/Catch-v0"""
    seed: int = 1
    """seed of every random stream"""
    total_timesteps: int = 10_000_000
    """agent steps of the run, summed over the environments; a step is four frames"""
    learning_rate: float = 6.25e-5
    """Adam's rate; with a schedule, its peak"""
    adam_eps: float = 1.5625e-4
    """Adam's epsilon"""
    weight_decay: float = 0.0
    """decoupled weight decay of all parameters, times the rate"""
    max_grad_norm: float = 10.0
    """norm to which the gradient of all parameters together is clipped"""
    num_envs: int = 1
    """environments that are stepped together"""
    buffer_size: int = 1_000_000
    """transitions kept in the replay memory"""
    replay_device: Where = "auto"
    """where its frames are; auto: a GPU with room"""
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
    """atoms of the distribution of returns, evenly spaced"""
    v_min: float = -10.0
    """lowest atom; lower returns count as this"""
    v_max: float = 10.0
    """highest atom; higher returns count as this"""
    noisy_sigma: float = 0.1
    """sigma_0: the noise scale of a weight starts at sigma_0 / sqrt(inputs of its layer)"""
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
    """episodes per evaluation, each in a freshly seeded environment"""
    eval_epsilon: float = 0.001
    """probability of a random action in an evaluation"""
    record_video: bool = False
    """write what the agent sees in the first episode of each evaluation, its first 2,700 steps (3 minutes), as a GIF:
    video/step-<step>.gif in the run directory"""
    log_every: int = 1_000
    """agent steps between records of speed, and updates between records of losses and rates"""
    checkpoint_every: int = 50_000
    """agent steps between checkpoints"""
    env_threads: int = 0
    """threads of ale-py's vector environment; 0: emulators in Python, which a killed run resumes exactly"""
    bf16: bool = False
    """convolutions and hidden layers in bfloat16 (torch.autocast; on a CPU their LayerNorms, too); outputs, losses,
    weights and updates stay in float32"""
    exp_name: str = "rainbow"

    def updates(self, steps: int) -> int:
        """Agent steps -> optimiser updates."""
        return max(1, round(steps * self.replay_ratio))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "total_timesteps learning_rate adam_eps max_grad_norm num_envs buffer_size batch_size")
        require_positive(self, "replay_ratio n_step target_network_frequency noisy_sigma eval_episodes log_every")
        require_positive(self, "checkpoint_every")
        require_not_negative(self, "weight_decay learning_starts eval_every env_threads prioritized_replay_alpha")
        require_share(self, "prioritized_replay_beta prioritized_replay_uniform eval_epsilon")
        require_multiples(self, "buffer_size target_network_frequency log_every checkpoint_every", of="num_envs")
        require_multiples(self, "eval_every", of="num_envs")
        require(0 <= self.gamma < 1, self, "gamma", "must lie in [0, 1)")
        ends = -math.inf < self.v_min < self.v_max < math.inf
        require(ends, self, "v_min v_max", "need two finite ends, the first below the second")
        require(self.n_atoms >= 2, self, "n_atoms", "need at least 2 atoms")
        require(
            self.buffer_size // self.num_envs > self.n_step + STACK, self, "buffer_size num_envs n_step",
            f"the memory needs room for n_step + {STACK + 1} transitions of each environment",
        )  # fmt: skip
        require(self.batch_size <= self.buffer_size, self, "batch_size buffer_size", "a batch must fit the memory")
        require(
            self.learning_starts >= self.n_step * self.num_envs, self, "learning_starts n_step num_envs",
            f"the first update needs a transition whose n steps are known: start at {self.n_step * self.num_envs}",
        )  # fmt: skip
        require(self.learning_starts < self.total_timesteps, self, "learning_starts total_timesteps", "no update left")
        if self.eval_every == 0:
            reject_unused("", self, ["eval_episodes", "eval_epsilon", "record_video"], "with --eval-every 0")
        beta = "prioritized_replay_beta"
        if self.prioritized_replay_alpha == 0:
            why = "with --prioritized-replay-alpha 0: all draws are uniform"
            reject_unused("", self, [beta, "prioritized_replay_uniform"], why)
        if self.prioritized_replay_uniform == 1:
            why = "with --prioritized-replay-uniform 1: all draws are uniform"
            reject_unused("", self, [beta, "prioritized_replay_alpha"], why)
        least = 1 / self.replay_ratio  # agent steps of one update
        self.nap.check(normalised=self.network == "normalised")
        self.schedule.check(self.learning_rate, least)
        self.shift.check(self.env_id, self.total_timesteps, clip_rewards=self.clip_rewards, threads=self.env_threads)
        self.switch.check(self.shift.on)
        pauses = self.switch.does("replay")
        self.rewarm.check(
            self.schedule, self.switch, self.shift, self.updates,
            total=self.total_timesteps, starts=self.learning_starts, pauses=pauses, least=least,
        )  # fmt: skip
        self.reset.check(self.total_timesteps)
        self.probe.check(size_is_read=self.nap.enabled)
        blind = self.rewarm.trigger == "cusum" and self.learning_starts < 2 * self.num_envs
        require(
            not blind, self, "learning_starts num_envs",
            f"--rewarm.trigger cusum needs a TD error before the first update: start at {2 * self.num_envs}",
        )  # fmt: skip
        apart = min(self.shift.first_change or np.inf, self.shift.shortest_gap or np.inf)
        require(
            not pauses or apart > self.learning_starts, self, "learning_starts",
            f"changes of --shift come {apart} steps apart; --switch (replay, fresh-agent) pauses updates for longer",
        )  # fmt: skip


M = 1_000_000 // 4  # agent steps of a million frames
NAP: dict[str, Any] = {"nap": NapArgs(enabled=True), "network": "normalised"}
LOW_UTD: dict[str, Any] = {"total_timesteps": 200 * M, "replay_ratio": 0.25, "protocol": "classic", **NAP}
HIGH_UTD: dict[str, Any] = {"total_timesteps": 200 * M, "replay_ratio": 1.0}
FOUR_CYCLES = ScheduleArgs("cyclic", period_steps=50 * M)
THREE_CYCLES = ScheduleArgs("cyclic-then-constant", period_steps=50 * M, cycles=3, low=1e-7)
RESETS = ResetArgs(at_steps=(50 * M, 100 * M, 150 * M))
DECAY = ScheduleArgs("warmup-cosine", period_steps=20 * M)
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "low-utd-constant": ("paper, low update-to-data: projected, constant rate", LOW_UTD),
    "low-utd-one-cycle":
        ("paper: projected, the rate rises once and decays over the run",
         {**LOW_UTD, "schedule": ScheduleArgs("one-cycle", period_steps=200 * M)}),
    "low-utd-four-cycles":
        ("paper: projected, four cycles of 50M frames", {**LOW_UTD, "schedule": FOUR_CYCLES}),
    "low-utd-reset":
        ("paper: projected, constant rate, the network reset after 50M, 100M and 150M frames",
         {**LOW_UTD, "reset": RESETS}),
    "low-utd-reset-cycles":
        ("paper: projected, four cycles, a reset before each except the first",
         {**LOW_UTD, "schedule": FOUR_CYCLES, "reset": RESETS}),
    "low-utd-early-stop":
        ("paper: projected, three cycles of 50M frames, then 1e-7", {**LOW_UTD, "schedule": THREE_CYCLES}),
    "high-utd-baseline": ("paper, high update-to-data: constant high rate", HIGH_UTD),
    "high-utd-low": ("constant low rate, an arm of the paper's DQN", {**HIGH_UTD, "learning_rate": 1e-6}),
    "high-utd-cyclic":
        ("paper, Fig. 7: ten cycles of 20M frames",
         {**HIGH_UTD, "schedule": ScheduleArgs("cyclic", period_steps=20 * M)}),
    "high-utd-cyclic-annealed":
        ("paper, Fig. 7: ten cycles of 4M frames, then the low rate",
         {**HIGH_UTD, "schedule": ScheduleArgs("cyclic-then-constant")}),
}  # fmt: skip
CHAIN: dict[str, Any] = {
    "env_id": "ALE/Pong-v5", "total_timesteps": 120 * M,
    "shift": ShiftArgs("games", games=("ALE/Breakout-v5", "ALE/SpaceInvaders-v5"), every_steps=20 * M),
}  # fmt: skip


def quick(arm: dict[str, Any]) -> dict[str, Any]:
    """A hundredth of an arm's budget, of its cycles and between its resets, but a tenth of the memory."""
    small = {"learning_starts": 5_000, "buffer_size": 100_000, "target_network_frequency": 2_000, "eval_every": 50_000}
    small |= {"total_timesteps": 2 * M, "probe": ProbeArgs(every=round(25_000 * arm["replay_ratio"]))}
    if "schedule" in arm:
        small["schedule"] = replace(arm["schedule"], period_steps=arm["schedule"].period_steps // 100)
    if "reset" in arm:
        small["reset"] = ResetArgs(tuple(step // 100 for step in arm["reset"].at_steps))
    return {**arm, **small}


PRESETS = presets(
    Args,
    {
        "baseline": ("constant rate, one update in four steps", {}),
        "nap": ("normalize-and-project, constant rate", NAP),
        **ARMS,
        "high-utd-weight-decay": ("paper: constant high rate, weight decay", {**HIGH_UTD, "weight_decay": 1e-2}),
        **{f"quick-{name}": (f"{name}, 2M frames", quick(arm)) for name, (_, arm) in ARMS.items()},
        "chain-plain": ("three games in turn, twice: plain continual training", CHAIN),
        "chain-fresh": ("the same games, a fresh agent for each", {**CHAIN, "switch": SwitchArgs(fresh_agent=True)}),
        "chain-nap": ("the same games, normalize-and-project, constant rate", {**CHAIN, **NAP}),
        "chain-switch":
            ("the same games, normalize-and-project, rate decays, re-warmed at each change",
             {**CHAIN, **NAP, "schedule": DECAY, "rewarm": RewarmArgs("switch")}),
        "chain-cusum":
            ("the same games, normalize-and-project, rate decays, re-warmed when CUSUM detects a change",
             {**CHAIN, **NAP, "schedule": DECAY, "rewarm": RewarmArgs("cusum")}),
        "catch":
            ("Catch on a screen, learned on two CPU cores",
             {"env_id": CATCH, "total_timesteps": 40_000, "buffer_size": 40_000, "learning_starts": 1_000,
              "target_network_frequency": 500, "eval_every": 5_000, "eval_episodes": 20, "checkpoint_every": 10_000,
              "probe": ProbeArgs(every=1_000), "threads": 2}),
    },
)  # fmt: skip

# --------------------------------------------------------------------------------------------------------- network


class NoisyLinear(nn.Linear):
    """A linear layer whose weights are drawn around learned means with learned scales (arXiv:1706.10295).

    y = W x + b,   W = mu + sigma * f(eps_out) f(eps_in)^T,   b = mu_b + sigma_b * f(eps_out),   f(x) = sign(x) sqrt|x|

    with standard normal eps: factorised noise. `weight` and `bias` are mu, initialised uniformly in +-1/sqrt(in) as in
    any linear layer; the scales start at sigma_0 / sqrt(in). The noise has rank one, so W need not be formed:

    y = mu x + mu_b + f(eps_out) * (sigma (f(eps_in) * x) + sigma_b)

    In training mode the noise is what `draw_noise_` put there, at first zero, the same for the whole batch; in
    evaluation mode there is none.
    """

    scaled_with_weight = "weight_sigma"  # projection holds the joint norm of the two

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
    """Distribution of the return of each action, as logits of its atoms, for a stack of four 84 x 84 frames.

    Three convolutions (Mnih et al. 2015), then two streams of 512 hidden units whose layers are all noisy; `dueling`
    combines their outputs, value and advantages.

    normalised: LayerNorm before each nonlinearity; its offset makes the layer's own bias redundant.
    bf16: convolutions and hidden layers in bfloat16, the last layers of the streams in float32.

    Args:
        support: z [N], the atoms.
    """

    def __init__(self, actions: int, support: Tensor, sigma_0: float, normalised: bool, bf16: bool = False):
        super().__init__()
        self.bf16, bias, width = bf16, not normalised, 512
        norm = nn.LayerNorm if normalised else lambda shape: nn.Identity()
        self.conv1, self.conv1_norm = nn.Conv2d(STACK, 32, 8, 4, bias=bias), norm((32, 20, 20))
        self.conv1_relu = nn.ReLU()
        self.conv2, self.conv2_norm = nn.Conv2d(32, 64, 4, 2, bias=bias), norm((64, 9, 9))
        self.conv2_relu = nn.ReLU()
        self.conv3, self.conv3_norm = nn.Conv2d(64, 64, 3, 1, bias=bias), norm((64, 7, 7))
        self.conv3_relu = nn.ReLU()
        self.value_hidden, self.value_norm = NoisyLinear(64 * 7 * 7, width, bias, sigma_0), norm(width)
        self.value_relu = nn.ReLU()
        self.value = NoisyLinear(width, len(support), True, sigma_0)
        self.advantage_hidden, self.advantage_norm = NoisyLinear(64 * 7 * 7, width, bias, sigma_0), norm(width)
        self.advantage_relu = nn.ReLU()
        self.advantage = NoisyLinear(width, actions * len(support), True, sigma_0)
        self.register_buffer("support", support, persistent=False)
        self.probed = ["conv1_relu", "conv2_relu", "conv3_relu", "value_relu", "advantage_relu"]  # nonlinearities
        self.heads = ["value", "advantage"]  # never projected
        # Reset by --reset.layers dense: everything with weights behind the convolutions.
        self.dense = [name for name, part in self.named_children() if name[:4] != "conv" and [*part.parameters()]]

    def logits(self, obs: Tensor) -> Tensor:  # [B, 4, 84, 84] uint8 -> [B, A, N]
        # Convolutions are faster with the channels last.
        x = obs.to(self.support.dtype, memory_format=torch.channels_last) / 255
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.conv1_relu(self.conv1_norm(self.conv1(x)))  # [B, 32, 20, 20]
            x = self.conv2_relu(self.conv2_norm(self.conv2(x)))  # [B, 64, 9, 9]
            x = self.conv3_relu(self.conv3_norm(self.conv3(x))).flatten(1)  # [B, 3136]
            value = self.value_relu(self.value_norm(self.value_hidden(x)))  # [B, 512]
            advantage = self.advantage_relu(self.advantage_norm(self.advantage_hidden(x)))  # [B, 512]
        value = self.value(value.to(self.support.dtype))  # [B, N]
        advantage = self.advantage(advantage.to(self.support.dtype))  # [B, A N]
        return dueling(value, advantage.unflatten(1, (-1, len(self.support))))

    def forward(self, obs: Tensor) -> Tensor:  # [B, 4, 84, 84] uint8 -> Q-values [B, A]
        return expected_returns(self.logits(obs), self.support)


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


def q_values(network: QNetwork, obs: np.ndarray) -> np.ndarray:  # [N, 4, 84, 84] -> [N, A]
    """Expected returns from observations of the environment, to act on."""
    with torch.no_grad():
        return network(torch.from_numpy(obs).to(network.support.device)).cpu().numpy()


def make_network(env: Any, args: Args, seed: int, device: torch.device) -> QNetwork:
    """A network for these environments, with the initial weights that this seed gives it."""
    actions, support = int(env.single_action_space.n), torch.linspace(args.v_min, args.v_max, args.n_atoms)
    with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global stream
        torch.manual_seed(seed)
        return QNetwork(actions, support, args.noisy_sigma, args.network == "normalised", args.bf16).to(device)


# same as agents/dqn_atari.py::make_optimizer
def make_optimizer(network: nn.Module, args: Args) -> torch.optim.Optimizer:
    """Adam, or with --weight-decay AdamW."""
    kind = torch.optim.AdamW if args.weight_decay else torch.optim.Adam
    parameters = list(network.parameters())
    return kind(parameters, lr=args.learning_rate, eps=args.adam_eps, weight_decay=args.weight_decay, fused=True)


# ------------------------------------------------------------------------------------------------------------ loss


def dueling(value: Tensor, advantage: Tensor) -> Tensor:  # [B, N], [B, A, N] -> [B, A, N]
    """v + a_i - mean_k a_k, atom by atom (Wang et al. 2016, arXiv:1511.06581, Eq. 9)."""
    return value[:, None] + advantage - advantage.mean(1, keepdim=True)


def expected_returns(logits: Tensor, support: Tensor) -> Tensor:  # [B, A, N], [N] -> [B, A]
    """Q = sum_j z_j p_j, p = softmax of the logits."""
    return logits.softmax(2) @ support


def categorical_projection(
    support: Tensor, returns: Tensor, discounts: Tensor, next_probabilities: Tensor
) -> Tensor:  # [N], [B], [B], [B, N] -> [B, N]
    """The distribution of R + d Z', projected onto the atoms of Z' (Bellemare et al. 2017, arXiv:1707.06887, Eq. 7).

    The probability of atom z_j moves to R + d z_j, clipped to the ends of the support, and is divided there between
    the two nearest atoms, in proportion to their nearness. Within the support the mean is kept.

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
    """Target distribution: next_q chooses the action, next_logits of the target network evaluate it."""
    best = next_logits[torch.arange(len(next_q), device=next_q.device), next_q.argmax(1)]  # [B, N]
    return categorical_projection(support, returns, discounts, best.softmax(1))


def cross_entropies(logits: Tensor, actions: Tensor, target: Tensor) -> Tensor:  # [B, A, N], [B], [B, N] -> [B]
    """- sum_j m_j log p_j(s, a), m the target distribution: the loss of each transition, and its new priority."""
    chosen = logits[torch.arange(len(actions), device=actions.device), actions]
    return -(target * chosen.log_softmax(1)).sum(1)


def td_gradient(
    q_network: QNetwork, target_network: QNetwork, batch: list[Any], weights: np.ndarray,
    *, rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient of the weighted mean cross-entropy: write every .grad; return the cross-entropies [B] and Q(s, a) [B].

    Three independent draws of noise, as in arXiv:1706.10295: for the online network when it chooses the next action,
    for the target network when it evaluates that action, and for the online network that learns.

    Args:
        batch: s, a, R, s', discount as `FrameMemory.gather` returns them.
        weights: importance weights [B].
        rng: of the noise.
    """
    support = q_network.support
    obs, actions, returns, next_obs, discounts = (torch.as_tensor(array, device=support.device) for array in batch)
    with torch.no_grad():
        draw_noise_(q_network, rng)
        next_q = q_network(next_obs)
        draw_noise_(target_network, rng)
        next_logits = target_network.logits(next_obs)
        target = double_q_target(support, returns.to(support), discounts.to(support), next_q, next_logits)
        draw_noise_(q_network, rng)
    with torch.enable_grad():
        logits = q_network.logits(obs)
        losses = cross_entropies(logits, actions, target)
        loss = (torch.from_numpy(weights).to(support) * losses).mean()
    q_network.zero_grad(set_to_none=False)
    loss.backward()
    q = expected_returns(logits.detach(), support).gather(1, actions[:, None])[:, 0]
    return losses.detach(), q


# same as agents/dqn_minatar.py::linear_schedule
def linear_schedule(start: float, end: float, duration: int, step: int) -> float:
    """start at step 0, end from step `duration` on, a straight line between."""
    return start + (end - start) * min(step / duration, 1.0)


# ------------------------------------------------------------------------------------------------------------ main


def main(args: Args) -> None:
    """Train one agent; everything it leaves behind is in its run directory."""
    run = Session(
        args, f"{Path(__file__).stem}__{args.env_id.split('/')[-1]}", total=args.total_timesteps,
        streams="init env probe minibatch noise switch",
    )  # fmt: skip
    minibatch_rng, noise_rng = run.generator("minibatch"), run.generator("noise")
    world = partial(args.shift.world, args.env_id, protocol=args.protocol, threads=args.env_threads)

    with one_line_errors():  # what a library refuses here becomes one line for the user; nothing is written yet
        env = world(args.num_envs)
        q_network, target_network = (make_network(env, args, run.seed("init"), run.device) for _ in range(2))
        optimizer = make_optimizer(q_network, args)
        replay = FrameMemory(
            args.buffer_size, args.num_envs, args.gamma, args.n_step, where=args.replay_device, device=run.device
        )
        priorities = Priorities(args.buffer_size, args.prioritized_replay_alpha, args.prioritized_replay_uniform)
        gradient = partial(td_gradient, q_network, target_network, rng=noise_rng)

        # The objects of elr work on the network and the optimiser in place; one that is off does nothing.
        layers = scalable_weights(q_network, heads=q_network.heads)  # convolutions, mu of the streams' hidden layers
        sigmas = {f"{name}.sigma": sigma for name, sigma in partners(q_network, layers).items() if sigma is not None}
        probe_obs = uniform_observations(world(1, changing=False), args.probe.size, run.seed("probe")).to(run.device)
        with in_float32(q_network):
            projection = args.nap.build(q_network, inputs=probe_obs, heads=q_network.heads)
        schedule = args.schedule.build(args.learning_rate, args.updates)
        rewarming = args.rewarm.build(optimizer, schedule, args.updates)
        recent = RecentTDErrors(args.gamma, args.num_envs, on=args.rewarm.trigger == "cusum")  # what CUSUM watches
        meter, probe = args.probe.build(q_network, layers | sigmas, optimizer, probe_obs, q_network.probed)

    returns = Returns(window=100)
    # A change of the task may pause learning until --learning-starts more steps.
    origin = run.counters(learning_step=args.learning_starts, learning_updates=0)
    run.keep(
        q_network=q_network, target_network=target_network, optimizer=optimizer, replay=replay, priorities=priorities,
        env=env, rewarming=rewarming, projection=projection, meter=meter, probe=probe, recent=recent, returns=returns,
    )  # fmt: skip
    run.watch(q_network, optimizer)
    obs, _ = env.reset(seed=run.seed("env"))  # [N, 4, 84, 84] uint8

    def make_evaluation_env() -> Any:
        """Environments that stay in the present task; None without evaluations."""
        evaluation_env = evaluation_world(env, args.eval_episodes) if args.eval_every else None
        return FirstEpisode(evaluation_env) if args.record_video else evaluation_env

    def react_to_change() -> None:
        """The environment has changed its task: do what --switch asks for, before the agent learns from the new one."""
        switch = args.switch
        fresh = make_network(env, args, run.seed("switch", run.step), run.device)
        with in_float32(q_network):
            switch.intervene_(q_network, fresh, projection, heads=q_network.heads)
        if switch.does("optimizer"):
            reset_moments_(optimizer)
        if switch.does("target"):
            target_network.load_state_dict(q_network.state_dict())
        if switch.does("replay"):
            replay.clear()
            priorities.clear(forget_largest=switch.fresh_agent)
            origin.learning_step, origin.learning_updates = run.step + args.learning_starts, run.updates
        if switch.fresh_agent:
            rewarming.reset()  # schedule and trigger as at the start of the run
            recent.clear()
        elif args.rewarm.trigger == "switch":
            rewarming.restart()  # re-warm
            run.scalar("rewarm/event", 1)
        if switch.does("intervention"):
            probe.forget()  # the next change of the features is measured from here, without the intervention
        returns.clear()

    def reset_layers() -> None:
        """--reset: new layers with fresh moments, and a copy for the target network; the replay memory is kept."""
        fresh = make_network(env, args, run.seed("switch", run.step), run.device)
        named = {"head": q_network.heads, "dense": q_network.dense, "all": None}[args.reset.layers]
        reset_(q_network, fresh, modules=named, optimizer=optimizer, moments="reset")
        target_network.load_state_dict(q_network.state_dict())
        if named is None:
            with in_float32(q_network):
                projection.remember_norms_()
        else:
            projection.project_()
        probe.forget()
        run.scalar("reset/event", 1)

    with run.open(), torch.no_grad():
        run.layout(layout(layers | sigmas, q_network.probed, rewarming=args.rewarm.on), shifts=args.shift.on)
        if run.resumed:
            run.restore()
            last_obs = env.observation()
            obs, continues = resumed_observation(env)
            if not continues:  # ale-py's threads cannot be saved: the running episodes count as truncated
                replay.cut(last_obs)
                priorities.blank(replay.only_states())
                recent.cut()
        else:
            run.scalars(probe.measure())
            run.checkpoint()
        evaluation_env = make_evaluation_env()

        while run.running():
            # Act: greedily, on newly drawn noisy weights, in each of the N environments.
            draw_noise_(q_network, noise_rng)
            values = q_values(q_network, obs)  # [N, A]
            chosen = values.argmax(1)
            recent.act(values, chosen)
            next_obs, rewards, terminated, truncated, infos = env.step(chosen)
            learned_rewards = np.clip(rewards, -1, 1) if args.clip_rewards else rewards
            # In the classic protocol a lost life ends the return, although the game continues.
            terminal = terminated | infos.get("life_lost", False) if args.protocol == "classic" else terminated
            restarted, final_obs = terminated | truncated, infos.get("final_obs", next_obs)
            slots = replay.add(obs, chosen, learned_rewards, terminal, truncated, restarted, final_obs)
            priorities.add(slots)
            priorities.blank(replay.only_states())
            recent.step(learned_rewards, terminal, truncated)
            obs, run.step = next_obs, run.step + args.num_envs
            returns.record(infos, truncated, run)  # of the episodes that ended

            # Learn: Algorithm 1 of arXiv:2507.20057, `replay_ratio` times per agent step.
            beta = linear_schedule(args.prioritized_replay_beta, 1.0, args.total_timesteps, run.step)
            while run.updates < origin.learning_updates + int((run.step - origin.learning_step) * args.replay_ratio):
                slots, probabilities = priorities.sample(args.batch_size, minibatch_rng, replay.valid)
                weights = priorities.importance_weights(probabilities, beta)
                losses, q = gradient(replay.gather(slots), weights)
                losses = losses.cpu().numpy()  # waits for a GPU; the priorities are on the host
                loss, signal = float((weights * losses).mean()), recent.read()
                run.require_finite(loss=loss, td_error=signal)
                nn.utils.clip_grad_norm_(q_network.parameters(), args.max_grad_norm)
                meter.before_step()
                optimizer.step()
                meter.after_step()  # measures the step really taken, before the projection
                rate = rewarming.rate  # of this update
                projection.step(rate)  # W <- W ||W_0|| / ||W||; --nap.gains regularise and decay use the rate
                rewarmed = rewarming.step(signal)  # trigger? restart the schedule; set the next update's rate
                priorities.update(slots, losses)
                run.updates += 1

                run.scalars(meter.fresh_scalars())
                if rewarmed:
                    run.scalar("rewarm/event", 1)
                if run.updates % args.log_every == 0:
                    run.scalars({"charts/learning_rate": rate, "losses/td_loss": loss})
                    run.scalars({"losses/q_values": float(q.mean()), **rewarming.scalars()})
                if probe.due(run.updates):
                    run.require_finite()
                    run.scalars(probe.measure())

            if run.step % args.target_network_frequency == 0:
                target_network.load_state_dict(q_network.state_dict())

            # Report, evaluate, change, reset.
            if run.due(args.log_every):
                run.show_speed(f"mean return {returns.mean}   lr {rewarming.rate:.2e}")
            if run.due(args.eval_every, last=True):
                q_network.eval()  # without noise
                policy, seed = partial(q_values, q_network), run.seed("env") + run.step
                run.evaluated(play(evaluation_env, policy, seed, epsilon=args.eval_epsilon))
                q_network.train()
                if args.record_video:
                    evaluation_env.write(run.directory / "video" / f"step-{run.step}.gif")
            if "shift" in infos and run.step < run.total:
                react_to_change()
                evaluation_env = make_evaluation_env()
                run.shifted(infos)
            if args.reset.due(run.step, args.num_envs):
                reset_layers()
            if run.due(args.checkpoint_every, last=False):
                run.checkpoint()
        run.end()
    frames = "" if args.env_id == CATCH else f"{4 * run.step:,} frames; "
    run.farewell(f"{frames}{returns.summary}")


if __name__ == "__main__":
    exit_with_one_line(lambda: main(parse(Args, PRESETS, prog_description=__doc__.split("\n\n")[0])))
