"""DQN on Atari with normalize-and-project and a re-warmed learning rate, in one file.

    python agents/dqn_atari.py --env-id ALE/Breakout-v5       DQN with Adam, constant learning rate
    python agents/dqn_atari.py high-utd-cyclic --seed 1       one update per step, the rate cycles (the paper's Fig. 6)
    python agents/dqn_atari.py catch                          Catch, a small test game: minutes on two CPU cores
    python agents/dqn_atari.py --resume runs/logs/RUN         continue a killed or interrupted run

The method is Algorithm 1 of Lyle et al. 2025 (arXiv:2507.20057, "the paper" below): step the optimiser, project the
weights (arXiv:2407.01800), ask the trigger whether to re-warm (restart the learning-rate schedule), set the rate of the
next update. In `main` these are three calls in this order.

All flags count agent steps. One step is one decision of the agent and lasts four frames, so 200 million frames are 50
million steps. One update is one optimiser step, and updates = replay_ratio * (steps - learning_starts). Ratio 1 is the
paper's high update-to-data regime; 0.25 is usual. From the paper: Adam, rate 6.25e-5, low rate 1e-6; no projection in
the high update-to-data arms, and weight decay, 1e-2, in one of them only. On cycles its text and its figures disagree:
the text says 4 million, of frames, of steps and of updates; the curves of Figs. 6 and 7 show cycles of 20 million
frames where the rate cycles to the end, and ten of 4 million where cycling stops early. The presets follow the figures;
`high-utd-cyclic --schedule.period-steps 1000000` (or 4000000) is the text, read as frames (or as steps or updates). The
paper does not specify the rest; we follow Dopamine's JAX DQN (Castro et al. 2018, arXiv:1812.06110): Adam's epsilon of
1.5e-4, squared loss, no normalisation, sticky actions (Machado et al. 2018), exploration (but from the first step on),
replay memory, target network. `--protocol classic` is Mnih et al. 2015. Weight decay is decoupled, as in AdamW.

--shift changes the task during training, and --switch sets how the agent reacts; by default it does not react.
--rewarm.trigger cusum watches the squared TD errors of the newest transitions. The paper uses the loss, but most
replayed transitions predate a change and hide it.

The replay memory keeps every frame once: a million transitions take 7.1 GB. A checkpoint writes only the new frames,
compressed, into pieces/ of the run directory. With --env-threads 0 a killed run resumes exactly; ale-py's own vector
environment (--env-threads 1 or more) cannot be saved, so a resumed run starts new episodes.

Measured with `catch`: evaluation return 9.60 (best possible 9.99, random about -5), one seed. No Atari game has been
run to the published length yet: docs/results.md.
"""

from __future__ import annotations

import runs.quiet_imports  # noqa: F401  # isort: skip

from dataclasses import dataclass, field
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
from elr.weights import scalable_weights
from envs.catch import ENV_ID as CATCH
from envs.evaluation import play, uniform_observations
from envs.flags import ScreenShiftArgs as ShiftArgs
from envs.frames import STACK
from envs.replay import FrameMemory, Where
from envs.worlds import evaluation_world, resumed_observation
from runs.recording import exit_with_one_line, one_line_errors, parse, presets, reject_unused
from runs.recording.video import FirstEpisode
from runs.training import Returns, RunArgs, Session, in_float32
from runs.training.checks import require, require_multiples, require_not_negative, require_positive

# ------------------------------------------------------------------------------------------------- hyperparameters


@dataclass(frozen=True)
class ScheduleArgs(flags.ScheduleArgs):
    """Learning rate as a function of the updates since the last trigger; its peak is --learning-rate."""

    low: float = 1e-6
    period_steps: int = 1_000_000
    cycles: int = 10


# same as agents/dqn_minatar.py::SwitchArgs
@dataclass(frozen=True)
class SwitchArgs(flags.SwitchArgs):
    """What happens when the task changes, besides re-warming (--rewarm.trigger switch)."""

    replay: Literal["keep", "clear"] = "keep"
    """keep the replay memory, or clear it and pause updates for --learning-starts steps"""
    exploration: Literal["keep", "restart"] = "keep"
    """keep the exploration rate, or decay it again from --start-e"""
    target: Literal["keep", "copy"] = "keep"
    """copy the target network at the usual time, or at once"""


@dataclass(frozen=True)
class Args(RunArgs):
    """DQN on Atari: every flag, its default, its meaning."""

    env_id: str = "ALE/Pong-v5"
    """ALE/<Game>-v5, or rewarm/Catch-v0"""
    seed: int = 1
    """seed of every random stream"""
    total_timesteps: int = 10_000_000
    """agent steps of the run, summed over the environments; a step is four frames"""
    learning_rate: float = 6.25e-5
    """Adam's rate; with a schedule, its peak"""
    adam_eps: float = 1.5e-4
    """Adam's epsilon"""
    weight_decay: float = 0.0
    """decoupled weight decay of all parameters, times the rate"""
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
    n_step: int = 1
    """rewards summed before the value of the state after them is used"""
    target_network_frequency: int = 8_000
    """agent steps between copies of the network into the target network"""
    start_e: float = 1.0
    """exploration rate at the first step"""
    end_e: float = 0.01
    """exploration rate after --exploration-steps"""
    exploration_steps: int = 250_000
    """agent steps over which the exploration rate decays linearly"""
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
    """episodes per evaluation, each in a freshly seeded environment"""
    eval_epsilon: float = 0.001
    """probability of a random action in an evaluation"""
    record_video: bool = False
    """write what the agent sees in the first episode of each evaluation, its first 2,700 steps (3 minutes), as a GIF:
    video/step-<step>.gif in the run directory"""
    log_every: int = 1_000
    """agent steps between records of speed and exploration, and updates between records of losses and rates"""
    checkpoint_every: int = 50_000
    """agent steps between checkpoints"""
    env_threads: int = 0
    """threads of ale-py's vector environment; 0: emulators in Python, with which a killed run resumes exactly"""
    bf16: bool = False
    """convolutions and hidden layers in bfloat16 (torch.autocast; on a CPU their LayerNorms, too); outputs, losses,
    weights and updates stay in float32"""
    exp_name: str = "dqn"

    def updates(self, steps: int) -> int:
        """Agent steps -> optimiser updates."""
        return max(1, round(steps * self.replay_ratio))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "total_timesteps learning_rate adam_eps num_envs buffer_size batch_size replay_ratio")
        require_positive(self, "n_step target_network_frequency exploration_steps eval_episodes log_every")
        require_positive(self, "checkpoint_every")
        require_not_negative(self, "weight_decay learning_starts eval_every env_threads")
        require_multiples(self, "buffer_size target_network_frequency log_every checkpoint_every", of="num_envs")
        require_multiples(self, "eval_every", of="num_envs")
        require(0 <= self.end_e <= self.start_e <= 1, self, "end_e start_e", "need 0 <= end <= start <= 1")
        require(0 <= self.gamma < 1, self, "gamma", "must lie in [0, 1)")
        require(0 <= self.eval_epsilon <= 1, self, "eval_epsilon", "must lie in [0, 1]")
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
        decays = self.switch.exploration == "keep" or self.start_e != self.end_e
        require(decays, self, "start_e end_e", "--switch.exploration restart changes nothing")


M = 1_000_000 // 4  # agent steps of a million frames
NAP: dict[str, Any] = {"nap": NapArgs(enabled=True), "network": "normalised"}
ANNEALED = ScheduleArgs("cyclic-then-constant")
LONG_CYCLES = ScheduleArgs("cyclic", period_steps=20 * M)
DECAY = ScheduleArgs("warmup-cosine", period_steps=20 * M)
HIGH_UTD: dict[str, Any] = {"total_timesteps": 200 * M, "replay_ratio": 1.0}
# A hundredth of the budget and of the cycles, but a tenth of the exploration and of the memory.
QUICK: dict[str, Any] = {
    "total_timesteps": 2 * M, "replay_ratio": 1.0, "learning_starts": 5_000, "exploration_steps": 25_000,
    "buffer_size": 100_000, "target_network_frequency": 2_000, "eval_every": 50_000, "probe": ProbeArgs(every=25_000),
}  # fmt: skip
CHAIN: dict[str, Any] = {
    "env_id": "ALE/Pong-v5", "total_timesteps": 120 * M,
    "shift": ShiftArgs("games", games=("ALE/Breakout-v5", "ALE/SpaceInvaders-v5"), every_steps=20 * M),
}  # fmt: skip
PRESETS = presets(
    Args,
    {
        "baseline": ("constant rate, one update in four steps", {}),
        "nap": ("normalize-and-project, constant rate", NAP),
        "nap-cyclic": ("normalize-and-project, rate cycles", {**NAP, "schedule": ScheduleArgs("cyclic")}),
        "high-utd-baseline": ("paper, Fig. 6: constant high rate", HIGH_UTD),
        "high-utd-low": ("paper, Fig. 6: constant low rate", {**HIGH_UTD, "learning_rate": 1e-6}),
        "high-utd-cyclic": ("paper, Fig. 6: ten cycles of 20M frames", {**HIGH_UTD, "schedule": LONG_CYCLES}),
        "high-utd-cyclic-annealed":
            ("paper, Fig. 7: ten cycles of 4M frames, then the low rate", {**HIGH_UTD, "schedule": ANNEALED}),
        "high-utd-cyclic-annealed-8M":
            ("paper, Fig. 10: two cycles of 4M frames, then the low rate",
             {**HIGH_UTD, "schedule": ScheduleArgs("cyclic-then-constant", cycles=2)}),
        "high-utd-cyclic-annealed-20M":
            ("paper, Fig. 10: five cycles of 4M frames, then the low rate",
             {**HIGH_UTD, "schedule": ScheduleArgs("cyclic-then-constant", cycles=5)}),
        "high-utd-weight-decay": ("paper: constant high rate, weight decay", {**HIGH_UTD, "weight_decay": 1e-2}),
        "quick-high-utd-baseline": ("high-utd-baseline, 2M frames", QUICK),
        "quick-high-utd-low": ("high-utd-low, 2M frames", {**QUICK, "learning_rate": 1e-6}),
        "quick-high-utd-cyclic":
            ("high-utd-cyclic, 2M frames", {**QUICK, "schedule": ScheduleArgs("cyclic", period_steps=50_000)}),
        "quick-high-utd-cyclic-annealed":
            ("high-utd-cyclic-annealed, 2M frames",
             {**QUICK, "schedule": ScheduleArgs("cyclic-then-constant", period_steps=10_000)}),
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
            ("Catch on a screen, learned in minutes on two CPU cores",
             {"env_id": CATCH, "total_timesteps": 60_000, "buffer_size": 50_000, "learning_starts": 1_000,
              "target_network_frequency": 500, "exploration_steps": 10_000, "eval_every": 10_000, "eval_episodes": 20,
              "checkpoint_every": 10_000, "probe": ProbeArgs(every=2_500), "threads": 2}),
    },
)  # fmt: skip

# --------------------------------------------------------------------------------------------------------- network


class QNetwork(nn.Module):
    """Q(s, .) for a stack of four 84 x 84 frames: three convolutions, 512 hidden units, linear head (Mnih et al. 2015).

    normalised: LayerNorm before each nonlinearity; its offset makes the layer's own bias redundant.
    bf16: convolutions and hidden layers in bfloat16, the head in float32.
    """

    def __init__(self, actions: int, normalised: bool = False, bf16: bool = False):
        super().__init__()
        self.bf16, bias, width = bf16, not normalised, 512
        norm = nn.LayerNorm if normalised else lambda shape: nn.Identity()
        self.conv1, self.conv1_norm = nn.Conv2d(STACK, 32, 8, 4, bias=bias), norm((32, 20, 20))
        self.conv1_relu = nn.ReLU()
        self.conv2, self.conv2_norm = nn.Conv2d(32, 64, 4, 2, bias=bias), norm((64, 9, 9))
        self.conv2_relu = nn.ReLU()
        self.conv3, self.conv3_norm = nn.Conv2d(64, 64, 3, 1, bias=bias), norm((64, 7, 7))
        self.conv3_relu = nn.ReLU()
        self.hidden, self.hidden_norm = nn.Linear(64 * 7 * 7, width, bias=bias), norm(width)
        self.hidden_relu = nn.ReLU()
        self.head = nn.Linear(width, actions)
        self.probed = ["conv1_relu", "conv2_relu", "conv3_relu", "hidden_relu"]  # after the nonlinearity
        self.heads = ["head"]  # never projected
        # Reset by --reset.layers dense: everything with weights behind the convolutions.
        self.dense = [name for name, part in self.named_children() if name[:4] != "conv" and [*part.parameters()]]

    def forward(self, obs: Tensor) -> Tensor:  # [B, 4, 84, 84] uint8 -> [B, A]
        # Convolutions are faster with the channels last.
        x = obs.to(self.head.weight.dtype, memory_format=torch.channels_last) / 255
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.conv1_relu(self.conv1_norm(self.conv1(x)))  # [B, 32, 20, 20]
            x = self.conv2_relu(self.conv2_norm(self.conv2(x)))  # [B, 64, 9, 9]
            x = self.conv3_relu(self.conv3_norm(self.conv3(x))).flatten(1)  # [B, 3136]
            x = self.hidden_relu(self.hidden_norm(self.hidden(x)))  # [B, 512]
        return self.head(x.to(self.head.weight.dtype))


def q_values(network: QNetwork, obs: np.ndarray) -> np.ndarray:  # [N, 4, 84, 84] -> [N, A]
    """Q of observations of the environment, to act on."""
    with torch.no_grad():
        return network(torch.from_numpy(obs).to(network.head.weight.device)).cpu().numpy()


def make_network(env: Any, args: Args, seed: int, device: torch.device) -> QNetwork:
    """A network for these environments, with the initial weights that this seed gives it."""
    with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global stream
        torch.manual_seed(seed)
        return QNetwork(int(env.single_action_space.n), args.network == "normalised", args.bf16).to(device)


def make_optimizer(network: nn.Module, args: Args) -> torch.optim.Optimizer:
    """Adam, or with --weight-decay AdamW."""
    kind = torch.optim.AdamW if args.weight_decay else torch.optim.Adam
    parameters = list(network.parameters())
    return kind(parameters, lr=args.learning_rate, eps=args.adam_eps, weight_decay=args.weight_decay, fused=True)


# ------------------------------------------------------------------------------------------------------------ loss


def td_gradient(
    q_network: QNetwork, target_network: QNetwork, batch: list[Any], *, double_q: bool
) -> tuple[Tensor, Tensor]:
    """Gradient of the mean squared TD error: write every .grad of q_network; return the loss [] and Q(s, a) [B].

    The target is y = R + discount Q'(s', a') with a' = argmax Q'(s', .), or a' = argmax Q(s', .) for double Q-learning.

    Args:
        batch: s, a, R, s', discount as `FrameMemory.gather` returns them.
    """
    device = q_network.head.weight.device
    obs, actions, returns, next_obs, discounts = (torch.as_tensor(array, device=device) for array in batch)
    with torch.no_grad():
        next_q = target_network(next_obs)  # [B, A]
        next_actions = (q_network(next_obs) if double_q else next_q).argmax(1, keepdim=True)
        td_target = returns + discounts * next_q.gather(1, next_actions)[:, 0]  # [B]
    with torch.enable_grad():
        q = q_network(obs).gather(1, actions[:, None])[:, 0]  # [B]
        loss = (q - td_target).square().mean()
    q_network.zero_grad()
    loss.backward()
    return loss.detach(), q.detach()


# same as agents/dqn_minatar.py::linear_schedule
def linear_schedule(start: float, end: float, duration: int, step: int) -> float:
    """start at step 0, end from step `duration` on, a straight line between."""
    return start + (end - start) * min(step / duration, 1.0)


# ------------------------------------------------------------------------------------------------------------ main


def main(args: Args) -> None:
    """Train one agent; everything it leaves behind is in its run directory."""
    run = Session(
        args, f"{Path(__file__).stem}__{args.env_id.split('/')[-1]}", total=args.total_timesteps,
        streams="init env probe minibatch action switch",
    )  # fmt: skip
    minibatch_rng, action_rng = run.generator("minibatch"), run.generator("action")
    world = partial(args.shift.world, args.env_id, protocol=args.protocol, threads=args.env_threads)

    with one_line_errors():  # what a library refuses here becomes one line for the user; nothing is written yet
        env = world(args.num_envs)
        actions = int(env.single_action_space.n)
        q_network, target_network = (make_network(env, args, run.seed("init"), run.device) for _ in range(2))
        optimizer = make_optimizer(q_network, args)
        replay = FrameMemory(
            args.buffer_size, args.num_envs, args.gamma, args.n_step, where=args.replay_device, device=run.device
        )
        gradient = partial(td_gradient, q_network, target_network, double_q=args.double_q)

        # The objects of elr work on the network and the optimiser in place; one that is off does nothing.
        layers = scalable_weights(q_network, heads=q_network.heads)  # convolutions and hidden
        probe_obs = uniform_observations(world(1, changing=False), args.probe.size, run.seed("probe")).to(run.device)
        with in_float32(q_network):
            projection = args.nap.build(q_network, inputs=probe_obs, heads=q_network.heads)
        schedule = args.schedule.build(args.learning_rate, args.updates)
        rewarming = args.rewarm.build(optimizer, schedule, args.updates)
        recent = RecentTDErrors(args.gamma, args.num_envs, on=args.rewarm.trigger == "cusum")  # what CUSUM watches
        meter, probe = args.probe.build(q_network, layers, optimizer, probe_obs, q_network.probed)

    returns = Returns(window=100)
    # A change of the task may restart exploration, and pause learning until --learning-starts more steps.
    origin = run.counters(exploration_step=0, learning_step=args.learning_starts, learning_updates=0)
    run.keep(
        q_network=q_network, target_network=target_network, optimizer=optimizer, replay=replay, env=env,
        rewarming=rewarming, projection=projection, meter=meter, probe=probe, recent=recent, returns=returns,
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
            origin.learning_step, origin.learning_updates = run.step + args.learning_starts, run.updates
        if switch.does("exploration"):
            origin.exploration_step = run.step
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
        run.layout(layout(layers, q_network.probed, rewarming=args.rewarm.on), shifts=args.shift.on)
        if run.resumed:
            run.restore()
            last_obs = env.observation()
            obs, continues = resumed_observation(env)
            if not continues:  # ale-py's threads cannot be saved: the running episodes count as truncated
                replay.cut(last_obs)
                recent.cut()
        else:
            run.scalars(probe.measure())
            run.checkpoint()
        evaluation_env = make_evaluation_env()

        while run.running():
            # Act: epsilon-greedily, in each of the N environments.
            exploring = run.step - origin.exploration_step
            epsilon = linear_schedule(args.start_e, args.end_e, args.exploration_steps, exploring)
            explores = action_rng.random(args.num_envs) < epsilon
            chosen = action_rng.integers(actions, size=args.num_envs)
            values = q_values(q_network, obs) if recent.on or not explores.all() else None  # [N, A]
            if values is not None:
                chosen = np.where(explores, chosen, values.argmax(1))
            recent.act(values, chosen)
            next_obs, rewards, terminated, truncated, infos = env.step(chosen)
            learned_rewards = np.clip(rewards, -1, 1) if args.clip_rewards else rewards
            # In the classic protocol a lost life ends the return, although the game continues.
            terminal = terminated | infos.get("life_lost", False) if args.protocol == "classic" else terminated
            restarted, final_obs = terminated | truncated, infos.get("final_obs", next_obs)
            replay.add(obs, chosen, learned_rewards, terminal, truncated, restarted, final_obs)
            recent.step(learned_rewards, terminal, truncated)
            obs, run.step = next_obs, run.step + args.num_envs
            returns.record(infos, truncated, run)  # of the episodes that ended

            # Learn: Algorithm 1 of arXiv:2507.20057, `replay_ratio` times per agent step.
            while run.updates < origin.learning_updates + int((run.step - origin.learning_step) * args.replay_ratio):
                loss, q = gradient(replay.sample(args.batch_size, minibatch_rng))
                signal = recent.read()
                run.require_finite(loss=loss, td_error=signal)
                meter.before_step()
                optimizer.step()
                meter.after_step()  # measures the step really taken, before the projection
                rate = rewarming.rate  # of this update
                projection.step(rate)  # W <- W ||W_0|| / ||W||; --nap.gains regularise and decay use the rate
                rewarmed = rewarming.step(signal)  # trigger? restart the schedule; set the next update's rate
                run.updates += 1

                run.scalars(meter.fresh_scalars())
                if rewarmed:
                    run.scalar("rewarm/event", 1)
                if run.updates % args.log_every == 0:
                    run.scalars({"charts/learning_rate": rate, "losses/td_loss": float(loss)})
                    run.scalars({"losses/q_values": float(q.mean()), **rewarming.scalars()})
                if probe.due(run.updates):
                    run.require_finite()
                    run.scalars(probe.measure())

            if run.step % args.target_network_frequency == 0:
                target_network.load_state_dict(q_network.state_dict())

            # Report, evaluate, change, reset.
            if run.due(args.log_every):
                run.scalar("charts/epsilon", epsilon)
                run.show_speed(f"mean return {returns.mean}   lr {rewarming.rate:.2e}")
            if run.due(args.eval_every, last=True):
                policy, seed = partial(q_values, q_network), run.seed("env") + run.step
                run.evaluated(play(evaluation_env, policy, seed, epsilon=args.eval_epsilon))
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
