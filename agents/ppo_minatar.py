"""PPO on MinAtar with normalize-and-project and a re-warmed learning rate, in one file.

    python agents/ppo_minatar.py                              PPO, weights free, learning rate annealed to 0
    python agents/ppo_minatar.py nap-cyclic --seed 2          weights projected, learning rate cycles
    python agents/ppo_minatar.py adaptive                     re-warmed when CUSUM detects a jump of the TD errors
    python agents/ppo_minatar.py chain-switch                 three games in turn, twice; re-warmed at each change
    python agents/ppo_minatar.py --resume runs/logs/RUN       continue a killed or interrupted run

The method is Algorithm 1 of Lyle et al. 2025 (arXiv:2507.20057, "the paper" below): step the optimiser, project the
weights, ask the trigger whether to re-warm (restart the learning-rate schedule), set the rate of the next update. In
`main` these are three calls in this order. Normalize-and-project is arXiv:2407.01800.

An agent step is a frame (no frame skip) in one of the num_envs environments. An iteration is num_steps steps in each
of them, then update_epochs * num_minibatches updates. Runs are made of whole iterations.

Details as commonly published (Huang et al. 2022): generalised advantage estimation, advantages normalised per
minibatch, clipped value loss, orthogonal initialisation, gradients clipped by their norm, Adam's epsilon 1e-5.
Deviations: a truncated episode bootstraps from its last observation (in MinAtar only a change of the task truncates);
LayerNorm before each nonlinearity (--network plain: none); the rate falls with every update, not every iteration.
Deviation from the paper: CUSUM watches the mean squared TD error of an iteration's steps, valued as they were taken,
instead of the loss, which is measured after the first updates have adapted and misses changes to smaller returns.

--shift changes the task during training; --switch and --rewarm.trigger set how the agent reacts, at the end of the
iteration. By default it does not (plain continual learning); then choose --schedule.kind constant: the default falls to
0 over the whole run. The probe (feature metrics on fixed inputs) always uses observations of the first task.

Measured with `baseline` on Breakout: training return 30, 40, 43 at 10M steps (three seeds). All: docs/results.md.
"""

from __future__ import annotations

import runs.quiet_imports  # noqa: F401  # isort: skip

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elr import flags, layout
from elr.fast.captured import Captured
from elr.fast.flat_adam import FlatAdam
from elr.fast.minatar_ppo import Loss, proved
from elr.flags import NapArgs, RewarmArgs, SwitchArgs
from elr.interventions import CReLU, policy_divergence
from elr.interventions.flags import BASELINES, InterveneArgs
from elr.moments import reset_moments_
from elr.weights import scalable_weights
from envs.evaluation import play, uniform_observations
from envs.flags import MinAtarShiftArgs as ShiftArgs
from envs.pictures import Filming
from envs.worlds import evaluation_world
from runs.recording import exit_with_one_line, one_line_errors, parse, presets, reject_unused
from runs.training import Returns, RunArgs, Session, require, require_not_negative, require_positive
from runs.training.freed_memory import keep_freed_memory

# ------------------------------------------------------------------------------------------------- hyperparameters


@dataclass(frozen=True)
class ScheduleArgs(flags.ScheduleArgs):
    """Learning rate as a function of the updates since the last trigger; its peak is --learning-rate."""

    kind: flags.ScheduleKind = "linear-decay"
    """shape of the schedule"""
    period_steps: int = 0
    """agent steps of one cycle or decay, warm-up included; 0 is the whole run"""


@dataclass(frozen=True)
class ProbeArgs(flags.ProbeArgs):
    """Measurements that never change training."""

    every: int = 1000
    """updates between feature-learning measurements on the probe (the interval T of Delta_C, Delta_A); 0 is off"""
    meter_every: int = 100
    """updates between measurements of the realised effective learning rate and the norms; 0 is off"""


@dataclass(frozen=True)
class Args(RunArgs):
    """PPO on MinAtar: every flag, its default, its meaning."""

    env_id: str = "MinAtar/Breakout-v1"
    """MinAtar/<Game>-v1 (minimal actions) or -v0 (all six); Asterix, Breakout, Freeway, Seaquest, SpaceInvaders"""
    seed: int = 1
    """seed of every random stream"""
    total_timesteps: int = 10_000_000
    """agent steps of the run, summed over the environments; rounded up to whole iterations"""
    learning_rate: float = 1e-3
    """Adam's rate at the peak of the schedule"""
    adam_eps: float = 1e-5
    """Adam's epsilon"""
    num_envs: int = 64
    """environments stepped together"""
    num_steps: int = 128
    """steps in each environment per iteration"""
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
    """LayerNorm before each nonlinearity, or biases and no LayerNorm"""
    activation: Literal["relu", "crelu"] = "relu"
    """nonlinearity; crelu, [relu(x), relu(-x)], doubles the inputs of the next layer"""
    gradient: Literal["autograd", "compiled"] = "autograd"
    """compiled: the same gradient and acting, faster on a CPU, compiled by numba (needs pip install -e ".[fast]")"""
    capture: bool = False
    """launch the kernels of a gradient all at once, as a CUDA graph; on a CPU its inputs are copied, and no more"""
    nap: NapArgs = field(default_factory=NapArgs)
    schedule: ScheduleArgs = field(default_factory=ScheduleArgs)
    rewarm: RewarmArgs = field(default_factory=RewarmArgs)
    shift: ShiftArgs = field(default_factory=ShiftArgs)
    switch: SwitchArgs = field(default_factory=SwitchArgs)
    intervene: InterveneArgs = field(default_factory=InterveneArgs)
    probe: ProbeArgs = field(default_factory=ProbeArgs)
    eval_every: int = 50
    """iterations between evaluations in the current task (at a change: in the one that ends); 0 is off"""
    eval_episodes: int = 10
    """greedy episodes per evaluation, each in a freshly seeded game, at most 10,000 steps long"""
    record_video: bool = False
    """write the first episode of each evaluation, its first 1,000 pictures, as a GIF: video/step-<step>.gif in the run
    directory"""
    checkpoint_every: int = 50
    """iterations between checkpoints"""
    exp_name: str = "ppo"

    @property
    def iteration_steps(self) -> int:
        """Agent steps of one iteration."""
        return self.num_envs * self.num_steps

    @property
    def run_steps(self) -> int:
        """Agent steps of the run: --total-timesteps, rounded up to whole iterations."""
        return math.ceil(self.total_timesteps / self.iteration_steps) * self.iteration_steps

    def updates(self, steps: int) -> int:
        """Agent steps -> optimiser updates; 0 steps are the whole run."""
        iterations = (steps or self.run_steps) / self.iteration_steps
        return max(1, round(iterations * self.update_epochs * self.num_minibatches))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "total_timesteps learning_rate adam_eps num_envs num_steps num_minibatches")
        require_positive(self, "update_epochs clip_coef max_grad_norm eval_episodes checkpoint_every")
        require_not_negative(self, "ent_coef vf_coef eval_every")
        require(0 <= self.gamma < 1, self, "gamma", "must lie in [0, 1)")
        require(0 <= self.gae_lambda <= 1, self, "gae_lambda", "must lie in [0, 1]")
        batch, sizes = self.iteration_steps, "num_envs num_steps num_minibatches"
        require(batch % self.num_minibatches == 0, self, sizes, "minibatches must be of equal size")
        require(batch > self.num_minibatches or not self.norm_adv, self, sizes, "--norm-adv needs 2 steps in each")
        if self.eval_every == 0:
            reject_unused("", self, ["eval_episodes", "record_video"], "with --eval-every 0")
        self.nap.check()
        self.schedule.check(self.learning_rate)
        self.shift.check(self.env_id, self.total_timesteps)
        self.switch.check(self.shift.on)
        self.rewarm.check(
            self.schedule, self.switch, self.shift, self.updates,
            total=self.total_timesteps, least=batch, heard=self.intervene.acts_at == "trigger",
        )  # fmt: skip
        self.intervene.check(
            self.rewarm.trigger, self.nap.enabled, self.switch, self.learning_rate, self.shift.on,
            updates=self.updates(0), activation=self.activation,
        )  # fmt: skip
        hooked = self.capture and self.intervene.watches
        require(not hooked, self, "capture intervene.methods", "continual-backprop needs a forward pass per update")
        if self.gradient == "compiled":
            require(not self.capture, self, "gradient capture", "compiled has no kernels of torch to launch")
            require(self.device == "cpu", self, "gradient device", "compiled needs a CPU")
            require(not self.intervene.watches, self, "gradient intervene.methods", "continual-backprop needs autograd")
            require(self.activation == "relu", self, "gradient activation", "the one written by hand is that of ReLU")
        self.probe.check(size_is_read=self.nap.enabled)
        apart = self.shift.every_steps or min(self.shift.gaps()[1:], default=batch)
        require(
            apart >= batch, self, "num_envs num_steps",
            f"changes of --shift come {apart} steps apart, but the agent reacts only once per iteration, {batch} steps",
        )  # fmt: skip


NAP, CONSTANT, CYCLIC = {"nap": NapArgs(enabled=True)}, ScheduleArgs("constant"), ScheduleArgs("cyclic", 1e-5, 500_000)
VISIT = 256 * 64 * 128  # 256 iterations
DECAY, CUSUM = ScheduleArgs("warmup-cosine", 1e-5, VISIT), RewarmArgs("cusum", block=32, smoothing=0.1)
ALARM: dict[str, Any] = {"trigger": {"rewarm": CUSUM}}  # of methods that act when it fires
CHAIN: dict[str, Any] = {  # Breakout, Freeway, Space Invaders, twice; -v0: the same six actions in each
    "env_id": "MinAtar/Breakout-v0", "total_timesteps": 6 * VISIT,
    "shift": ShiftArgs("games", games=("MinAtar/Freeway-v0", "MinAtar/SpaceInvaders-v0"), every_steps=VISIT),
}  # fmt: skip
PRESETS = presets(
    Args,
    {
        "baseline": ("rate annealed linearly to 0, no projection", {}),
        "constant": ("constant rate, no projection", {"schedule": CONSTANT}),
        "cyclic": ("rate cycles between high and low", {"schedule": CYCLIC}),
        "nap": ("normalize-and-project, rate annealed to 0", NAP),
        "nap-constant": ("normalize-and-project, constant rate", {**NAP, "schedule": CONSTANT}),
        "nap-cyclic": ("normalize-and-project, rate cycles", {**NAP, "schedule": CYCLIC}),
        "adaptive": (
            "normalize-and-project, rate decays, re-warmed when CUSUM detects a change in new TD errors",
            {**NAP, "schedule": DECAY, "rewarm": CUSUM},
        ),
        "chain-plain": ("three games in turn, twice: the agent does not react", {"schedule": CONSTANT, **CHAIN}),
        "chain-fresh": (
            "the same games, a fresh agent for each (here the same as a reset of network and moments)",
            {"schedule": CONSTANT, "switch": SwitchArgs(fresh_agent=True), **CHAIN},
        ),
        "chain-nap": ("the same games, normalize-and-project, constant rate", {**NAP, "schedule": CONSTANT, **CHAIN}),
        "chain-switch": (
            "the same games, normalize-and-project, rate decays, re-warmed at each change",
            {**NAP, "schedule": DECAY, "rewarm": RewarmArgs("switch"), **CHAIN},
        ),
        "chain-cusum": (
            "the same games, normalize-and-project, rate decays, re-warmed when CUSUM detects a change",
            {**NAP, "schedule": DECAY, "rewarm": CUSUM, **CHAIN},
        ),
        "chain-crelu": (
            "the same games, the agent of chain-plain with CReLU",
            {"schedule": CONSTANT, "activation": "crelu", **CHAIN},
        ),
        **{
            f"chain-{name}": (
                f"the same games, the agent of chain-plain and {name}",
                {"schedule": CONSTANT, "intervene": args, **ALARM.get(args.acts_at, {}), **CHAIN},
            ) for name, args in BASELINES.items()
        },
    },
)  # fmt: skip

# --------------------------------------------------------------------------------------------------------- rollout


class Rollout:
    """What T steps in N environments gave: T = --num-steps, N = --num-envs."""

    def __init__(self, steps: int, num_envs: int, shape: tuple[int, ...]):
        self.obs = np.zeros((steps, num_envs, *shape), dtype=np.uint8)
        self.actions = np.zeros((steps, num_envs), dtype=np.int64)
        self.logprobs, self.values, self.rewards = (np.zeros((steps, num_envs), dtype=np.float32) for _ in range(3))
        self.dones = np.zeros((steps, num_envs), dtype=bool)  # the episode ended with this step

    def flat(self, advantages: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        """The T x N samples of the update, [T * N, ...] each."""
        parts = {
            "obs": self.obs, "actions": self.actions, "logprobs": self.logprobs, "values": self.values,
            "advantages": advantages, "returns": advantages + self.values,
        }  # fmt: skip
        return {name: torch.from_numpy(a.reshape(-1, *a.shape[2:])).to(device) for name, a in parts.items()}


# --------------------------------------------------------------------------------------------------------- network


class ActorCritic(nn.Module):
    """Policy logits and value of one MinAtar observation: 3x3 convolution (16), 128 hidden units, two linear heads.

    normalised: LayerNorm before each nonlinearity and no bias in front of it, so that scaling a weight tensor leaves
    the output as it is.
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
        self.actor, self.critic = (nn.Linear(width * (1 + crelu), outputs) for outputs in (actions, 1))
        self.heads = ["actor", "critic"]  # never projected
        self.probed = ["conv_relu", "hidden_relu"]  # after the nonlinearity, where "dead" and "dormant" are defined
        for layer, gain in ((self.conv, 2**0.5), (self.hidden, 2**0.5), (self.actor, 0.01), (self.critic, 1.0)):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:  # [B, C, 10, 10] -> [B, A], [B]
        w = self.conv.weight
        x = self.conv_relu(self.conv_norm(self.conv(obs.to(w.device).to(w.dtype))))  # [B, 16, 8, 8]
        x = self.hidden_relu(self.hidden_norm(self.hidden(x.flatten(1))))  # [B, 128]
        return self.actor(x), self.critic(x)[:, 0]


def make_network(env: Any, args: Args, seed: int, device: torch.device) -> ActorCritic:
    """A network for these environments, with the initial weights that this seed gives it."""
    channels, actions = env.single_observation_space.shape[0], int(env.single_action_space.n)
    with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global stream
        torch.manual_seed(seed)
        return ActorCritic(channels, actions, args.network == "normalised", args.activation == "crelu").to(device)


@torch.no_grad()
def act(network: ActorCritic, obs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actions [N] drawn from the policy, the logarithms of their probabilities [N], and values [N]."""
    logits, values = network(torch.from_numpy(obs))
    logprobs = F.log_softmax(logits, 1).cpu().numpy()  # [N, A]
    actions = (logprobs + rng.gumbel(size=logprobs.shape)).argmax(1)  # argmax of log p + Gumbel noise is a draw from p
    return actions, logprobs[np.arange(len(actions)), actions], values.cpu().numpy()


@torch.no_grad()
def policy_logits(network: ActorCritic, obs: np.ndarray) -> np.ndarray:
    """Preferences for actions [N, A]; the largest is the greedy action."""
    return network(torch.from_numpy(obs))[0].cpu().numpy()


@torch.no_grad()
def value(network: ActorCritic, obs: np.ndarray) -> np.ndarray:
    """V [N]."""
    return network(torch.from_numpy(obs))[1].cpu().numpy()


# ------------------------------------------------------------------------------------------------------------ loss


def gae(
    rewards: np.ndarray, values: np.ndarray, dones: np.ndarray, last_values: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Generalised advantage estimates [T, N] (arXiv:1506.02438), and the TD errors delta [T, N] that they sum up.

    delta_t = r_t + gamma V(s_{t+1}) (1 - done_t) - V(s_t),  A_t = delta_t + gamma lambda (1 - done_t) A_{t+1}

    A step that truncates an episode is done too; its reward must hold gamma V(final observation) already.

    Args:
        rewards, values, dones: [T, N], of the steps.
        last_values: [N], V of the observations after the last step.
    """
    continues = 1.0 - dones
    next_values = np.concatenate([values[1:], last_values[None]])
    deltas = (rewards + gamma * next_values * continues - values).astype(rewards.dtype)
    discounts = gamma * lam * continues
    advantages, following = np.zeros_like(rewards), np.zeros_like(last_values)
    for t in reversed(range(len(rewards))):
        advantages[t] = following = deltas[t] + discounts[t] * following
    return advantages, deltas


def ppo_loss(network: ActorCritic, batch: dict[str, Tensor], args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a minibatch [] and its parts.

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


def ppo_gradient(
    network: ActorCritic, optimizer: FlatAdam, batch: dict[str, Tensor], args: Args
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradient of the loss of a minibatch: write every .grad; return the loss [] and its parts."""
    loss, parts = ppo_loss(network, batch, args)
    optimizer.zero_grad()
    loss.backward()
    return loss.detach(), {name: part.detach() for name, part in parts.items()}


# ------------------------------------------------------------------------------------------------------------ main


def main(args: Args) -> None:
    """Train one agent; everything it leaves behind is in its run directory."""
    keep_freed_memory()
    run = Session(
        args, f"{Path(__file__).stem}__{args.env_id.split('/')[-1]}", total=args.run_steps,
        streams="init env probe minibatch action switch intervene",
        reads_every=args.update_epochs * args.num_minibatches,
    )  # fmt: skip
    minibatch_rng, action_rng, reference_rng = map(run.generator, ("minibatch", "action", "intervene"))

    with one_line_errors():  # what a library refuses here becomes one line for the user; nothing is written yet
        env = args.shift.world(args.env_id, args.num_envs)
        network = make_network(env, args, run.seed("init"), run.device)
        optimizer = FlatAdam(network.parameters(), lr=args.learning_rate, eps=args.adam_eps)
        rollout = Rollout(args.num_steps, args.num_envs, env.single_observation_space.shape)
        gradient, actor = partial(ppo_gradient, network, optimizer, args=args), network
        if args.gradient == "compiled":
            with one_line_errors("--gradient compiled"):  # the same two functions, if they give the same numbers
                gradient, actor = proved(
                    network, partial(ppo_gradient, args=args),
                    Loss(args.norm_adv, args.clip_coef, args.clip_vloss, args.ent_coef, args.vf_coef),
                    batch_size=args.iteration_steps // args.num_minibatches, num_envs=args.num_envs,
                )  # fmt: skip
        gradient = Captured(gradient, run.device) if args.capture else gradient

        # The objects of elr work on the network and the optimiser in place; one that is off does nothing.
        layers = scalable_weights(network, heads=network.heads)  # weights of conv and hidden, by name
        first_task = args.shift.world(args.env_id, 1, changing=False)
        probe_obs = uniform_observations(first_task, args.probe.size, run.seed("probe")).to(run.device)
        filming = Filming(first_task, args.record_video)
        projection = args.nap.build(network, inputs=probe_obs, heads=network.heads)
        schedule = args.schedule.build(args.learning_rate, args.updates)
        rewarming = args.rewarm.build(optimizer, schedule, args.updates)
        meter, probe = args.probe.build(network, layers, optimizer, probe_obs, network.probed)
        methods = args.intervene.build(
            network, optimizer, projection, layers=network.probed, heads=network.heads, inputs=probe_obs[:2],
            fresh=lambda: make_network(env, args, int(reference_rng.integers(2**32)), run.device),
            divergence=policy_divergence, batch=args.iteration_steps // args.num_minibatches,
            churn={"block": args.update_epochs * args.num_minibatches, "least": 1.0},
        )  # fmt: skip

    returns = Returns(window=100)
    run.keep(
        network=network, optimizer=optimizer, env=env, rewarming=rewarming, projection=projection, meter=meter,
        probe=probe, methods=methods, returns=returns,
    )  # fmt: skip
    run.watch(network, optimizer)  # weights, gradients and moments, for `require_finite`
    obs, _ = env.reset(seed=run.seed("env"))  # [N, C, 10, 10] uint8

    def weights_changed() -> None:
        """By something else than learning."""
        run.scalar("reset/event", 1)
        probe.forget()  # the next change of the features is measured from here, without the intervention

    def react_to_change(changed: int) -> None:
        """The task changed at this step of the iteration that has just ended: do what --switch asks for.

        An intervention of your own belongs here, or behind an update. Change weights in place; then call
        projection.project_() to keep their norms or projection.remember_norms_() to hold the new ones.
        """
        switch = args.switch
        fresh = make_network(env, args, run.seed("switch", changed), run.device)
        switch.intervene_(network, fresh, projection, heads=network.heads)
        if switch.renews:
            methods.weights_renewed()
        if switch.does("optimizer"):  # by its own flag, or with everything else by --switch.fresh-agent
            reset_moments_(optimizer)
        if switch.fresh_agent:
            rewarming.reset()  # schedule and trigger as at the start of the run
        elif args.rewarm.trigger == "switch":
            rewarming.restart()  # re-warm
            run.scalar("rewarm/event", 1)
        if switch.does("intervention"):
            probe.forget()
        returns.clear()

    with run.open(), np.errstate(over="ignore", invalid="ignore"):  # `require_finite` stops a run that diverges
        run.layout(layout(layers, network.probed, rewarming=args.rewarm.on), shifts=args.shift.on)
        if run.resumed:
            run.restore()
            obs = env.observation()
        else:
            run.scalars(probe.measure())
            run.checkpoint()
        evaluation_env = evaluation_world(env, args.eval_episodes, 10_000, around=filming.around)

        while run.running():
            # Act: T steps in each of the N environments.
            changed, fired = 0, False
            for t in range(args.num_steps):
                drawn, rollout.logprobs[t], rollout.values[t] = act(actor, obs, action_rng)
                rollout.obs[t], rollout.actions[t] = obs, drawn
                obs, rewards, terminated, truncated, infos = env.step(drawn)
                if truncated.any():  # the episode was cut, not finished: add the value of its last observation
                    rewards = rewards + args.gamma * value(actor, infos["final_obs"]) * truncated
                rollout.rewards[t], rollout.dones[t] = rewards, terminated | truncated
                run.step += args.num_envs
                if "shift" in infos and run.step < run.total:
                    changed = run.step
                    run.shifted(infos)
                returns.record(infos, truncated, run)  # of episodes that ended
            advantages, deltas = gae(
                rollout.rewards, rollout.values, rollout.dones, value(actor, obs), args.gamma, args.gae_lambda
            )
            signal = max(float(np.square(deltas).mean()), 1e-12)  # what CUSUM watches; it takes the logarithm
            samples = rollout.flat(advantages, run.device)

            def reference(count: int, obs: Tensor = samples["obs"]) -> Tensor:
                """Observations of this iteration, for --intervene."""
                return obs[torch.from_numpy(reference_rng.integers(len(obs), size=count)).to(run.device)]

            # Learn: Algorithm 1 of arXiv:2507.20057, for each minibatch.
            for _ in range(args.update_epochs):
                order = torch.from_numpy(minibatch_rng.permutation(args.iteration_steps)).to(run.device)
                for index in order.chunk(args.num_minibatches):
                    loss, parts = gradient({name: x[index] for name, x in samples.items()})  # writes every .grad
                    if args.intervene.on:
                        policy_loss = parts["losses/policy_loss"] - args.ent_coef * parts["losses/entropy"]
                        methods.before_step(reference, policy_loss)
                    optimizer.clip_(args.max_grad_norm)
                    run.require_finite(loss=loss)
                    meter.before_step()
                    optimizer.step()
                    meter.after_step()  # measures the step really taken, before the projection
                    acted = methods.after_step()  # other methods against loss of plasticity, if any
                    rate = rewarming.rate  # of this update
                    projection.step(rate)  # W <- W ||W_0|| / ||W||; --nap.gains regularise and decay use the rate
                    rewarmed = rewarming.step(signal)  # trigger? restart the schedule; set the next update's rate
                    run.updates += 1

                    run.scalars(meter.fresh_scalars())
                    if acted:
                        weights_changed()
                    if rewarmed:
                        fired = True
                        run.scalar("rewarm/event", 1)
                    if probe.due(run.updates):
                        run.require_finite()
                        run.scalars(probe.measure())

            # Report, evaluate, change.
            run.scalars({name: float(part) for name, part in parts.items()})  # of the last minibatch
            if spread := float(np.var(advantages + rollout.values)):  # returns all alike leave nothing to explain
                run.scalar("losses/explained_variance", 1 - float(np.var(advantages)) / spread)
            run.scalar("charts/learning_rate", rate)
            run.show_speed(f"mean return {returns.mean}   lr {rewarming.rate:.2e}")
            run.scalars({**rewarming.scalars(), **methods.scalars()})
            if run.due(args.eval_every * args.iteration_steps, last=True):
                run.evaluated(play(evaluation_env, partial(policy_logits, network), run.seed("env") + run.step))
                run.write_video(filming.film)
            if changed and run.step < run.total:
                react_to_change(changed)
                evaluation_env = evaluation_world(env, args.eval_episodes, 10_000, around=filming.around)
            if run.step < run.total and methods.react(reference, changed=bool(changed), fired=fired):
                weights_changed()
            if run.due(args.checkpoint_every * args.iteration_steps, last=False):
                run.checkpoint()
        run.end()
    run.farewell(returns.summary)


if __name__ == "__main__":
    exit_with_one_line(lambda: main(parse(Args, PRESETS, prog_description=__doc__.split("\n\n")[0])))
