"""DQN on MinAtar with normalize-and-project and a re-warmed learning rate, in one file.

    python agents/dqn_minatar.py                              DQN, weights not projected, rate constant
    python agents/dqn_minatar.py nap-cyclic --seed 2          weights projected, learning rate cycles
    python agents/dqn_minatar.py adaptive                     re-warmed when CUSUM detects a jump of the TD errors
    python agents/dqn_minatar.py chain-switch                 three games in turn, twice; re-warmed at each change
    python agents/dqn_minatar.py --resume runs/logs/RUN       continue a killed or interrupted run

The method is Algorithm 1 of Lyle et al. 2025 (arXiv:2507.20057, "the paper" below): step the optimiser, project the
weights, ask the trigger whether to re-warm (restart the learning-rate schedule), set the rate of the next update. The
loop of `main` makes these calls in this order; `rewarming.step` is the last two. Normalize-and-project: 2407.01800.

An agent step is a frame of one environment (no frame skip); the steps of all environments are counted together. An
update is an optimiser step. Except for pauses after a change, updates = priming_updates + replay_ratio * (steps -
learning_starts). The paper's high update-to-data arms make one update per step, four times Atari's usual number. In
MinAtar one is usual, so their counterpart is the preset replay-ratio-4.

Deviations from Young & Tian (2019, arXiv:1903.03176): Adam instead of RMSProp, squared instead of Huber loss, minimal
action sets (-v1), exploration that falls from the first step on (theirs: from step 5,000) to 0.05 (0.1), a target
network copied every 1,000 steps (theirs: updates, which differ if --replay-ratio is not 1), minibatches drawn with
replacement, LayerNorm before each nonlinearity (--network plain: theirs). Deviations from the paper, which trains on
Atari: rates 2.5e-4 and 4e-6 (paper: 6.25e-5 and 1e-6, the same ratio), cycles of 50,000 steps, three in
`cyclic-annealed` (paper: ten of 4M or 20M frames), and CUSUM watches the squared TD errors of the newest transitions
instead of the loss: most replayed transitions predate a change and hide it.

--shift changes the task during training; --switch and --rewarm.trigger set how the agent reacts. By default it does not
(plain continual learning). The probe (feature metrics on fixed inputs) always uses observations of the first task.

Measured with `baseline` on Breakout: training return 14.8, 18.1, 15.6 over the last 100,000 of 1,000,000 steps (three
seeds; random: 0.4). All results, including where they fall short of published DQN: docs/results.md.
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
from elr.fast.captured import Captured
from elr.fast.flat_adam import FlatAdam
from elr.fast.minatar_q import proved
from elr.fast.proof import NotTheSame
from elr.flags import NapArgs, ProbeArgs, RewarmArgs
from elr.interventions import CReLU, value_divergence
from elr.interventions.flags import Q_BASELINES, Q_CHURN
from elr.interventions.flags import QInterveneArgs as InterveneArgs
from elr.moments import reset_moments_
from elr.td_errors import RecentTDErrors
from elr.weights import scalable_weights
from envs.evaluation import play, uniform_observations
from envs.flags import MinAtarShiftArgs as ShiftArgs
from envs.pictures import Filming
from envs.replay import TransitionMemory
from envs.worlds import evaluation_world
from runs.recording import exit_with_one_line, one_line_errors, parse, presets, reject_unused
from runs.training import Returns, RunArgs, Session, require, require_multiples, require_not_negative, require_positive

# ------------------------------------------------------------------------------------------------- hyperparameters


@dataclass(frozen=True)
class ScheduleArgs(flags.ScheduleArgs):
    """Learning rate as a function of the updates since the last trigger; its peak is --learning-rate."""

    low: float = 4e-6
    """rate at the bottom of a cycle or at the end of a decay (the paper's ratio of high to low is 62.5)"""
    period_steps: int = 50_000
    """agent steps of one cycle or decay, warm-up included"""


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
    """DQN on MinAtar: every flag, its default, its meaning."""

    env_id: str = "MinAtar/Breakout-v1"
    """MinAtar/<Game>-v1 (minimal actions) or -v0 (all six); Asterix, Breakout, Freeway, Seaquest, SpaceInvaders"""
    seed: int = 1
    """seed of every random stream"""
    total_timesteps: int = 1_000_000
    """agent steps of the run, summed over the environments"""
    learning_rate: float = 2.5e-4
    """Adam's rate; with a schedule, its peak"""
    adam_eps: float = 1e-8
    """Adam's epsilon"""
    num_envs: int = 1
    """environments that are stepped together"""
    buffer_size: int = 100_000
    """transitions kept in the replay memory"""
    learning_starts: int = 5_000
    """agent steps before the first update"""
    batch_size: int = 32
    """transitions per update"""
    replay_ratio: float = 1.0
    """updates per agent step"""
    priming_updates: int = 0
    """updates at once when learning begins, also after a cleared memory, with a copy into the target network after each
    --target-network-frequency of them; schedules count them (heavy priming, Nikishin et al. 2022)"""
    gamma: float = 0.99
    """discount"""
    target_network_frequency: int = 1_000
    """agent steps between copies of the network into the target network"""
    start_e: float = 1.0
    """exploration rate at the first step"""
    end_e: float = 0.05
    """exploration rate after --exploration-steps"""
    exploration_steps: int = 100_000
    """agent steps over which the exploration rate decays linearly"""
    double_q: bool = False
    """choose the target's action with the online network (van Hasselt et al. 2016)"""
    network: Literal["normalised", "plain"] = "normalised"
    """LayerNorm before each nonlinearity, or biases and no LayerNorm (Young & Tian 2019)"""
    activation: Literal["relu", "crelu"] = "relu"
    """nonlinearity; crelu, [relu(x), relu(-x)], doubles the inputs of the next layer and trains by autograd"""
    gradient: Literal["auto", "explicit", "compiled", "autograd"] = "auto"
    """the same gradient: by hand in NumPy (explicit), or compiled by numba (compiled, needs pip install -e ".[fast]"),
    faster and on a CPU only, or by autograd; auto is explicit where it can be"""
    capture: bool = False
    """launch the kernels of a gradient all at once, as a CUDA graph; trains by autograd, also on a CPU"""
    nap: NapArgs = field(default_factory=NapArgs)
    schedule: ScheduleArgs = field(default_factory=ScheduleArgs)
    rewarm: RewarmArgs = field(default_factory=RewarmArgs)
    shift: ShiftArgs = field(default_factory=ShiftArgs)
    switch: SwitchArgs = field(default_factory=SwitchArgs)
    intervene: InterveneArgs = field(default_factory=InterveneArgs)
    probe: ProbeArgs = field(default_factory=ProbeArgs)
    eval_every: int = 50_000
    """agent steps between evaluations in the current task (at a change: in the one that ends); 0 is off"""
    eval_episodes: int = 10
    """greedy episodes per evaluation, each in a freshly seeded game, at most 10,000 steps long"""
    record_video: bool = False
    """write the first episode of each evaluation, its first 1,000 pictures, as a GIF: video/step-<step>.gif in the run
    directory"""
    log_every: int = 1_000
    """updates between records of losses and rates; agent steps between records of speed and exploration"""
    checkpoint_every: int = 50_000
    """agent steps between checkpoints"""
    exp_name: str = "dqn"

    def updates(self, steps: int) -> int:
        """Agent steps -> optimiser updates."""
        return max(1, round(steps * self.replay_ratio))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "total_timesteps learning_rate adam_eps num_envs buffer_size batch_size replay_ratio")
        require_positive(self, "target_network_frequency exploration_steps eval_episodes log_every checkpoint_every")
        require_not_negative(self, "eval_every learning_starts priming_updates")
        counted = "buffer_size learning_starts target_network_frequency eval_every log_every checkpoint_every"
        require_multiples(self, counted, of="num_envs")
        require(0 <= self.end_e <= self.start_e <= 1, self, "end_e start_e", "need 0 <= end <= start <= 1")
        require(0 <= self.gamma < 1, self, "gamma", "must lie in [0, 1)")
        require(self.batch_size <= self.buffer_size, self, "batch_size buffer_size", "a batch must fit the memory")
        require(self.learning_starts < self.total_timesteps, self, "learning_starts total_timesteps", "no update left")
        if self.priming_updates:
            require(self.learning_starts > 0, self, "priming_updates learning_starts", "there is nothing to learn from")
            require(self.rewarm.trigger != "cusum", self, "priming_updates rewarm.trigger", "no TD errors in priming")
        if self.eval_every == 0:
            reject_unused("", self, ["eval_episodes", "record_video"], "with --eval-every 0")
        steps_per_update = 1 / self.replay_ratio
        self.nap.check()
        self.schedule.check(self.learning_rate, steps_per_update)
        self.shift.check(self.env_id, self.total_timesteps)
        self.switch.check(self.shift.on)
        pauses = self.switch.does("replay")
        self.rewarm.check(
            self.schedule, self.switch, self.shift, self.updates,
            total=self.total_timesteps, starts=self.learning_starts, pauses=pauses, least=steps_per_update,
            heard=self.intervene.acts_at == "trigger",
        )  # fmt: skip
        self.intervene.check(
            self.rewarm.trigger, self.nap.enabled, self.switch, self.learning_rate, self.shift.on,
            updates=self.updates(max(1, self.total_timesteps - self.learning_starts)) + self.priming_updates,
            activation=self.activation,
        )  # fmt: skip
        hooked = self.capture and self.intervene.watches
        require(not hooked, self, "capture intervene.methods", "continual-backprop needs a forward pass per update")
        if self.gradient in ("explicit", "compiled"):
            require(not self.capture, self, "gradient capture", f"{self.gradient} has no kernels of torch to launch")
            require(self.device == "cpu", self, "gradient device", f"{self.gradient} needs a CPU")
            require(not self.intervene.watches, self, "gradient intervene.methods", "continual-backprop needs autograd")
            require(self.activation == "relu", self, "gradient activation", "the one written by hand is that of ReLU")
        self.probe.check(size_is_read=self.nap.enabled)
        blind = self.rewarm.trigger == "cusum" and self.learning_starts == 0
        require(not blind, self, "learning_starts", "--rewarm.trigger cusum needs a TD error before the first update")
        shortest_task = min(self.shift.first_change or np.inf, self.shift.shortest_gap or np.inf)
        require(
            not pauses or shortest_task >= self.learning_starts + self.num_envs, self, "learning_starts num_envs",
            f"--switch (replay, fresh-agent) pauses updates for the whole of a task of --shift, {shortest_task} steps",
        )  # fmt: skip
        decays = self.switch.exploration == "keep" or self.start_e != self.end_e
        require(decays, self, "start_e end_e", "--switch.exploration restart changes nothing")


NAP, CYCLIC = NapArgs(enabled=True), ScheduleArgs("cyclic")
DECAY = ScheduleArgs("warmup-cosine", period_steps=200_000)
CHAIN: dict[str, Any] = {  # Breakout, Freeway, Space Invaders, twice; -v0: the same six actions in each
    "env_id": "MinAtar/Breakout-v0", "total_timesteps": 1_200_000,
    "shift": ShiftArgs("games", games=("MinAtar/Freeway-v0", "MinAtar/SpaceInvaders-v0"), every_steps=200_000),
}  # fmt: skip
PRESETS = presets(
    Args,
    {
        "baseline": ("constant high rate, no projection", {}),
        "low": ("constant low rate, no projection", {"learning_rate": 4e-6}),
        "cyclic": ("rate cycles between high and low", {"schedule": CYCLIC}),
        "cyclic-annealed": ("three cycles, then the low rate", {"schedule": ScheduleArgs("cyclic-then-constant")}),
        "nap": ("normalize-and-project, constant high rate", {"nap": NAP}),
        "nap-cyclic": ("normalize-and-project, rate cycles", {"nap": NAP, "schedule": CYCLIC}),
        "quickstart": (
            "nap-cyclic on Breakout in a few minutes",
            {
                "nap": NAP, "schedule": ScheduleArgs("cyclic", period_steps=18_000), "total_timesteps": 59_000,
                "exploration_steps": 30_000,  # 5,000 steps before learning and three cycles
                "eval_every": 10_000, "probe": ProbeArgs(every=2_000, meter_every=500),  # enough points for a curve
            },
        ),
        "adaptive": (
            "normalize-and-project, rate decays, re-warmed when CUSUM detects a change in new TD errors",
            {"nap": NAP, "schedule": ScheduleArgs("warmup-cosine"), "rewarm": RewarmArgs("cusum")},
        ),
        "replay-ratio-2": ("2 updates per agent step", {"replay_ratio": 2.0}),
        "replay-ratio-4": ("4 updates per agent step", {"replay_ratio": 4.0}),
        "replay-ratio-8": ("8 updates per agent step", {"replay_ratio": 8.0}),
        "chain-plain": ("three games in turn, twice: the agent does not react", CHAIN),
        "chain-fresh": ("the same games, a fresh agent for each", {"switch": SwitchArgs(fresh_agent=True), **CHAIN}),
        "chain-reset": (
            "the same games, network and Adam's moments reset at each change, the rest kept",
            {"switch": SwitchArgs(intervention="reset", optimizer="reset"), **CHAIN},
        ),
        "chain-nap": ("the same games, normalize-and-project, constant rate", {"nap": NAP, **CHAIN}),
        "chain-switch": (
            "the same games, normalize-and-project, rate decays, re-warmed at each change",
            {"nap": NAP, "schedule": DECAY, "rewarm": RewarmArgs("switch"), **CHAIN},
        ),
        "chain-cusum": (
            "the same games, normalize-and-project, rate decays, re-warmed when CUSUM detects a change",
            {"nap": NAP, "schedule": DECAY, "rewarm": RewarmArgs("cusum"), **CHAIN},
        ),
        "chain-crelu": ("the same games, the agent of chain-plain with CReLU", {"activation": "crelu", **CHAIN}),
        **{
            f"chain-{name}": (
                f"the same games, the agent of chain-plain and {name}",
                {"intervene": args, **({"rewarm": RewarmArgs("cusum")} if args.acts_at == "trigger" else {}), **CHAIN},
            ) for name, args in Q_BASELINES.items() if name != "reset"
        },
    },
)  # fmt: skip

# --------------------------------------------------------------------------------------------------------- network


class QNetwork(nn.Module):
    """Q(s, .) for one MinAtar observation: 3x3 convolution (16 channels), 128 hidden units, linear head.

    normalised: LayerNorm before each nonlinearity and no bias in front of it, so that scaling a weight tensor leaves
    the output as it is.
    plain: the network of Young & Tian (2019), with biases and no normalisation.
    """

    def __init__(self, channels: int, actions: int, normalised: bool = True, crelu: bool = False):
        super().__init__()
        filters, width = 16, 128
        self.conv = nn.Conv2d(channels, filters, kernel_size=3, bias=not normalised)
        self.conv_norm = nn.LayerNorm((filters, 8, 8)) if normalised else nn.Identity()
        self.conv_relu = CReLU() if crelu else nn.ReLU()
        self.hidden = nn.Linear(filters * 8 * 8 * (1 + crelu), width, bias=not normalised)
        self.hidden_norm = nn.LayerNorm(width) if normalised else nn.Identity()
        self.hidden_relu = CReLU() if crelu else nn.ReLU()
        self.head = nn.Linear(width * (1 + crelu), actions)
        self.probed = ["conv_relu", "hidden_relu"]  # after the nonlinearity, where "dead" and "dormant" are defined

    def forward(self, obs: Tensor) -> Tensor:  # [B, C, 10, 10] -> [B, A]
        x = self.conv_relu(self.conv_norm(self.conv(obs.to(self.head.weight.dtype))))  # [B, 16, 8, 8]
        x = x.permute(0, 2, 3, 1).flatten(1)  # [B, 1024] (CReLU: 2048), channels last, as elr/fast/minatar_q.py has it
        x = self.hidden_relu(self.hidden_norm(self.hidden(x)))  # [B, 128]
        return self.head(x)


def q_values(network: QNetwork, obs: np.ndarray) -> np.ndarray:  # [N, C, 10, 10] -> [N, A]
    """Q of observations of the environment, to act on."""
    with torch.no_grad():
        return network(torch.from_numpy(obs).to(network.head.weight.device)).cpu().numpy()


def make_network(env: Any, args: Args, seed: int, device: torch.device) -> QNetwork:
    """A network for these environments, with the initial weights that this seed gives it."""
    channels, actions = env.single_observation_space.shape[0], int(env.single_action_space.n)
    with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global stream
        torch.manual_seed(seed)
        return QNetwork(channels, actions, args.network == "normalised", args.activation == "crelu").to(device)


# ------------------------------------------------------------------------------------------------------------ loss


def td_gradient(
    q_network: QNetwork, target_network: QNetwork, batch: list[np.ndarray], *, gamma: float, double_q: bool
) -> tuple[Tensor, Tensor]:
    """Gradient of the mean squared TD error: write every .grad of q_network; return the loss [] and Q(s, a) [B].

    The target is y = r + gamma (1 - terminated) Q'(s', a') with a' = argmax Q'(s', .), or a' = argmax Q(s', .) for
    double Q-learning. A truncated episode bootstraps: only termination ends the return.
    """
    device = q_network.head.weight.device
    obs, actions, rewards, next_obs, terminated = (torch.as_tensor(array, device=device) for array in batch)
    with torch.no_grad():
        next_q = target_network(next_obs)  # [B, A]
        next_actions = (q_network(next_obs) if double_q else next_q).argmax(1, keepdim=True)
        td_target = rewards + gamma * (1 - terminated) * next_q.gather(1, next_actions)[:, 0]  # [B]
    with torch.enable_grad():
        q = q_network(obs).gather(1, actions[:, None])[:, 0]  # [B]
        loss = (q - td_target).square().mean()
    q_network.zero_grad(set_to_none=False)  # FlatAdam keeps these very tensors
    loss.backward()
    return loss.detach(), q.detach()


def linear_schedule(start: float, end: float, duration: int, step: int) -> float:
    """start at step 0, end from step `duration` on, a straight line between."""
    return start + (end - start) * min(step / duration, 1.0)


# ------------------------------------------------------------------------------------------------------------ main


def main(args: Args) -> None:
    """Train one agent; everything it leaves behind is in its run directory."""
    run = Session(
        args, f"{Path(__file__).stem}__{args.env_id.split('/')[-1]}", total=args.total_timesteps,
        streams="init env probe minibatch action switch intervene",
    )  # fmt: skip
    minibatch_rng, action_rng, reference_rng = map(run.generator, ("minibatch", "action", "intervene"))

    with one_line_errors():  # what a library refuses here becomes one line for the user; nothing is written yet
        env = args.shift.world(args.env_id, args.num_envs)
        # Both of one seed: the target begins as a copy.
        q_network, target_network = (make_network(env, args, run.seed("init"), run.device) for _ in range(2))
        optimizer = FlatAdam(q_network.parameters(), lr=args.learning_rate, eps=args.adam_eps)
        replay = TransitionMemory(args.buffer_size, env.single_observation_space.shape, args.num_envs)
        by_autograd = partial(td_gradient, gamma=args.gamma, double_q=args.double_q)
        gradient, act = partial(by_autograd, q_network, target_network), partial(q_values, q_network)
        autograd = args.intervene.watches or args.activation == "crelu" or args.capture
        if args.gradient in ("explicit", "compiled") or (args.gradient == "auto" and run.on_cpu and not autograd):
            try:  # the same two functions by hand, if they give the same numbers on other weights and random batches
                gradient, act = proved(
                    q_network, target_network, by_autograd, q_values, compiled=args.gradient == "compiled",
                    gamma=args.gamma, double_q=args.double_q, batch_size=args.batch_size, num_envs=args.num_envs,
                )  # fmt: skip
            except NotTheSame as error:
                require(args.gradient == "auto", args, "gradient", str(error))
                print(f"gradient by autograd, not the faster one written by hand: {error}")
        gradient = Captured(gradient, run.device) if args.capture else gradient

        # The objects of elr work on the network and the optimiser in place; one that is off does nothing.
        layers = scalable_weights(q_network, heads=["head"])  # weights of conv and hidden, by name
        first_task = args.shift.world(args.env_id, 1, changing=False)
        probe_obs = uniform_observations(first_task, args.probe.size, run.seed("probe")).to(run.device)
        filming = Filming(first_task, args.record_video)
        projection = args.nap.build(q_network, inputs=probe_obs, heads=["head"])
        schedule = args.schedule.build(args.learning_rate, args.updates)
        rewarming = args.rewarm.build(optimizer, schedule, args.updates)
        recent = RecentTDErrors(args.gamma, args.num_envs, on=args.rewarm.trigger == "cusum")  # the signal for CUSUM
        meter, probe = args.probe.build(q_network, layers, optimizer, probe_obs, q_network.probed)
        methods = args.intervene.build(
            q_network, optimizer, projection, layers=q_network.probed, heads=["head"], inputs=probe_obs[:2],
            fresh=lambda: make_network(env, args, int(reference_rng.integers(2**32)), run.device),
            divergence=value_divergence, batch=args.batch_size, churn=Q_CHURN,
        )  # fmt: skip

    returns = Returns(window=100)
    # Where exploration and learning begin to count; a change of the task may move them.
    origin = run.counters(exploration_step=0, learning_step=args.learning_starts, learning_updates=0)
    # What a checkpoint holds, besides random streams and counters: everything that has a state.
    run.keep(
        q_network=q_network, target_network=target_network, optimizer=optimizer, replay=replay, returns=returns,
        env=env, rewarming=rewarming, projection=projection, meter=meter, probe=probe, methods=methods, recent=recent,
    )  # fmt: skip
    run.watch(q_network, optimizer)  # weights, gradients and moments, for `require_finite`
    obs, _ = env.reset(seed=run.seed("env"))  # [N, C, 10, 10] uint8

    def reference(count: int) -> Tensor:
        """Observations of the replay memory, for --intervene."""
        return torch.from_numpy(replay.sample(count, reference_rng)[0]).to(run.device)

    def weights_changed() -> None:
        """By something else than learning."""
        run.scalar("reset/event", 1)
        probe.forget()  # the next change of the features is measured from here, without the intervention

    def react_to_change() -> None:
        """The environment has changed its task: do what --switch asks for, before anything is learned of the new one.

        An intervention of your own belongs here, or behind an update. Change weights in place; then call
        projection.project_() to keep their norms or projection.remember_norms_() to hold the new ones.
        """
        switch = args.switch
        fresh = make_network(env, args, run.seed("switch", run.step), run.device)
        switch.intervene_(q_network, fresh, projection, heads=["head"])
        if switch.renews:
            methods.weights_renewed()
        if methods.react(reference, changed=True):
            weights_changed()
        if switch.does("optimizer"):  # by its own flag, or with everything else by --switch.fresh-agent
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
            probe.forget()
        returns.clear()

    # td_gradient turns gradients on for itself. `require_finite` stops a run that diverges, so NumPy need not warn.
    with run.open(), torch.no_grad(), np.errstate(over="ignore", invalid="ignore"):
        run.layout(layout(layers, q_network.probed, rewarming=args.rewarm.on), shifts=args.shift.on)
        if run.resumed:
            run.restore()
            obs = env.observation()
        else:
            run.scalars(probe.measure())
            run.checkpoint()
        evaluation_env = evaluation_world(env, args.eval_episodes, 10_000, around=filming.around)  # the current task

        while run.running():
            # Act: epsilon-greedily, in each of the N environments.
            since = run.step - origin.exploration_step
            epsilon = linear_schedule(args.start_e, args.end_e, args.exploration_steps, since)
            exploring = np.flatnonzero(action_rng.random(args.num_envs) < epsilon)
            values = act(obs) if recent.on or len(exploring) < args.num_envs else None  # [N, A]
            actions = np.zeros(args.num_envs, np.int64) if values is None else values.argmax(1)
            if len(exploring):
                actions[exploring] = action_rng.integers(env.single_action_space.n, size=len(exploring))
            recent.act(values, actions)
            next_obs, rewards, terminated, truncated, infos = env.step(actions)
            replay.add(obs, actions, rewards, infos.get("final_obs", next_obs), terminated)
            recent.step(rewards, terminated, truncated)
            obs, run.step = next_obs, run.step + args.num_envs
            returns.record(infos, truncated, run)  # of the episodes that ended

            # Learn: Algorithm 1 of arXiv:2507.20057, `replay_ratio` times per agent step.
            learned = run.step - origin.learning_step  # steps since learning began, below 0 before
            due = int(learned * args.replay_ratio) + args.priming_updates * (learned >= 0)
            while run.updates < origin.learning_updates + due:
                loss, q = gradient(replay.sample(args.batch_size, minibatch_rng))  # writes every .grad
                signal = recent.read()
                run.require_finite(loss=loss, td_error=signal)
                if args.intervene.on:
                    methods.before_step(reference, loss)
                meter.before_step()
                optimizer.step()
                meter.after_step()  # measures the step really taken, before the projection
                acted = methods.after_step()  # other methods against loss of plasticity, if any
                rate = rewarming.rate  # of this update
                projection.step(rate)  # W <- W ||W_0|| / ||W||; --nap.gains regularise and decay use the rate
                rewarmed = rewarming.step(signal)  # trigger? restart the schedule; set the next update's rate
                run.updates += 1
                if learned == 0 and run.updates % args.target_network_frequency == 0:  # while priming
                    target_network.load_state_dict(q_network.state_dict())
                run.scalars(meter.fresh_scalars())
                if acted:
                    weights_changed()
                if rewarmed:
                    run.scalar("rewarm/event", 1)
                    if methods.react(reference, fired=True):
                        weights_changed()
                if run.updates % args.log_every == 0:
                    run.scalars({"charts/learning_rate": rate, "losses/td_loss": float(loss)})
                    run.scalars({"losses/q_values": float(q.mean()), **rewarming.scalars(), **methods.scalars()})
                if probe.due(run.updates):
                    run.require_finite()
                    run.scalars(probe.measure())

            if run.step % args.target_network_frequency == 0:
                target_network.load_state_dict(q_network.state_dict())

            # Report, evaluate, change.
            if run.due(args.log_every):
                run.scalar("charts/epsilon", epsilon)
                run.show_speed(f"mean return {returns.mean}   lr {rewarming.rate:.2e}")
            if run.due(args.eval_every, last=True):
                run.evaluated(play(evaluation_env, partial(q_values, q_network), run.seed("env") + run.step))
                run.write_video(filming.film)
            if "shift" in infos and run.step < run.total:
                react_to_change()
                evaluation_env = evaluation_world(env, args.eval_episodes, 10_000, around=filming.around)
                run.shifted(infos)
            if run.due(args.checkpoint_every, last=False):
                run.checkpoint()
        run.end()
    run.farewell(returns.summary)


if __name__ == "__main__":
    exit_with_one_line(lambda: main(parse(Args, PRESETS, prog_description=__doc__.split("\n\n")[0])))
