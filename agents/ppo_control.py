"""PPO on classic control with normalize-and-project and a re-warmed learning rate, in one file.

    python agents/ppo_control.py                                 CartPole, plain PPO, constant rate
    python agents/ppo_control.py nap --env-id Acrobot-v1         weights projected, LayerNorm
    python agents/ppo_control.py levels-plain                    ten levels, each with another offset: plain PPO
    python agents/ppo_control.py levels-nap-switch               the same, projected, re-warmed at each change
    python agents/ppo_control.py --resume runs/logs/RUN          continue a killed or interrupted run

The method is Algorithm 1 of Lyle et al. 2025 (arXiv:2507.20057, "the paper" below): step the optimiser, project the
weights (arXiv:2407.01800), ask the trigger whether to re-warm (restart the learning-rate schedule), set the rate of the
next update. In `main` these are three calls in this order; an agent that is told of changes restarts in `intervene`.

Any Gymnasium id with a flat Box of observations and Discrete actions works. An agent step is a step in one of the
num_envs environments. An iteration is num_steps steps in each of them, then update_epochs * num_minibatches updates.

The `levels-` presets are the continual control of Muppidi et al. 2024 (arXiv:2405.16642) as Tang et al. 2025
(arXiv:2506.00592) aligned it: ten levels of 200 iterations of 800 steps in one environment, and at each level another
constant is added to the observation. Network, loss and constants are theirs: no orthogonal initialisation, no clipping
of gradients or values, advantages normalised over the iteration, values that learn returns with lambda 1. Their score
is the mean of charts/iteration_return. Deviation: log-probabilities come from log_softmax, where theirs are of
probabilities held above 1e-7. Deviation from the paper: CUSUM watches the mean squared TD error of an iteration's
steps, valued as they were taken, and not the loss, which is measured while the values change.

--shift changes the task during training; --switch and --rewarm.trigger set how the agent reacts, at the end of the
iteration. By default it does not. The probe (feature metrics on fixed inputs) always uses observations of the first
task. A LeakyReLU unit is never silent: "dead" means negative on every input of the probe.
"""

from __future__ import annotations

import runs.quiet_imports  # noqa: F401  # isort: skip

import math
from collections import OrderedDict
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
from elr.flags import NapArgs, ProbeArgs, RewarmArgs
from elr.flags import TriggeredSwitchArgs as SwitchArgs
from elr.interventions import CReLU, policy_divergence
from elr.interventions.flags import BASELINES, InterveneArgs
from elr.moments import reset_moments_
from elr.weights import scalable_weights
from envs.evaluation import play, uniform_observations
from envs.flags import ControlShiftArgs as ShiftArgs
from envs.pictures import Filming
from envs.worlds import evaluation_world
from runs.recording import exit_with_one_line, one_line_errors, parse, presets, reject_unused
from runs.training import Returns, RunArgs, Session, keep_freed_memory
from runs.training.checks import require, require_not_negative, require_positive, require_share

# ------------------------------------------------------------------------------------------------- hyperparameters


@dataclass(frozen=True)
class ScheduleArgs(flags.ScheduleArgs):
    """Learning rate as a function of the updates since the last trigger; its peak is --learning-rate."""

    period_steps: int = 0
    """agent steps of one cycle or decay, warm-up included; 0 is the whole run"""


@dataclass(frozen=True)
class Args(RunArgs):
    """PPO on classic control: every flag, its default, its meaning."""

    env_id: str = "CartPole-v1"
    """any Gymnasium id with a flat Box of observations and Discrete actions: Acrobot-v1, module:YourEnv-v0"""
    max_episode_steps: int = 0
    """steps after which an episode is truncated; 0 is the environment's own limit"""
    seed: int = 1
    """seed of every random stream"""
    total_timesteps: int = 160_000
    """agent steps of the run, summed over the environments; rounded up to whole iterations"""
    learning_rate: float = 1e-3
    """Adam's rate at the peak of the schedule"""
    adam_eps: float = 1e-8
    """Adam's epsilon"""
    num_envs: int = 8
    """environments stepped together"""
    num_steps: int = 100
    """steps in each environment per iteration"""
    fresh_episodes: bool = False
    """begin new episodes with each iteration: those still running are truncated"""
    reward_scale: float = 20.0
    """rewards are divided by this before the agent learns from them; recorded returns are not"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    value_lambda: float = 1.0
    """lambda of the returns that values learn; 1: discounted sums of rewards, plus V where an episode was cut"""
    num_minibatches: int = 25
    """minibatches per epoch"""
    update_epochs: int = 5
    """passes over the steps of an iteration"""
    norm_adv: Literal["iteration", "minibatch", "off"] = "iteration"
    """where advantages are normalised"""
    clip_coef: float = 0.2
    """how far the probability ratio may leave 1 before its gradient is cut"""
    ent_coef: float = 0.01
    """weight of the policy's entropy"""
    vf_coef: float = 0.5
    """weight of the value loss, the mean squared error"""
    max_grad_norm: float = 0.0
    """norm to which gradients are clipped; 0 does not clip"""
    network: Literal["normalised", "plain"] = "plain"
    """LayerNorm before each nonlinearity, or biases and no LayerNorm"""
    width: int = 256
    """units of each of the three hidden layers, in the policy's network and in the value's"""
    activation: Literal["leaky-relu", "crelu"] = "leaky-relu"
    """nonlinearity; crelu, [relu(x), relu(-x)], doubles the inputs of the next layer"""
    capture: bool = False
    """launch the kernels of a gradient all at once, as a CUDA graph; on a CPU its inputs are copied, and no more"""
    nap: NapArgs = field(default_factory=NapArgs)
    schedule: ScheduleArgs = field(default_factory=ScheduleArgs)
    rewarm: RewarmArgs = field(default_factory=RewarmArgs)
    shift: ShiftArgs = field(default_factory=ShiftArgs)
    switch: SwitchArgs = field(default_factory=SwitchArgs)
    intervene: InterveneArgs = field(default_factory=InterveneArgs)
    probe: ProbeArgs = field(default_factory=partial(ProbeArgs, every=2500, meter_every=250))
    eval_every: int = 50
    """iterations between evaluations in the current task (at a change: in the one that ends); 0 is off"""
    eval_episodes: int = 10
    """greedy episodes per evaluation, each in a freshly seeded environment"""
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
        require_positive(self, "total_timesteps learning_rate adam_eps num_envs num_steps reward_scale num_minibatches")
        require_positive(self, "update_epochs clip_coef width eval_episodes checkpoint_every")
        require_not_negative(self, "max_episode_steps ent_coef vf_coef max_grad_norm eval_every")
        require(0 <= self.gamma < 1, self, "gamma", "must lie in [0, 1)")
        require_share(self, "gae_lambda value_lambda")
        batch, sizes = self.iteration_steps, "num_envs num_steps num_minibatches"
        require(batch % self.num_minibatches == 0, self, sizes, "minibatches must be of equal size")
        normalised = {"iteration": batch, "minibatch": batch // self.num_minibatches, "off": 2}[self.norm_adv]
        require(normalised > 1, self, f"{sizes} norm_adv", "advantages are normalised over at least 2 steps")
        if self.eval_every == 0:
            reject_unused("", self, ["eval_episodes", "record_video"], "with --eval-every 0")
        self.nap.check(self.network == "normalised")
        self.schedule.check(self.learning_rate)
        self.shift.check(self.env_id, self.total_timesteps)
        self.switch.check(self.shift.on, self.shift.unchanged, trigger=self.rewarm.trigger)
        self.rewarm.check(
            self.schedule, self.switch, self.shift, self.updates,
            total=self.total_timesteps, least=batch, heard=self.intervene.acts_at == "trigger",
        )  # fmt: skip
        self.intervene.check(
            self.rewarm.trigger, self.nap.enabled, self.switch, self.learning_rate, self.shift.on, self.shift.unchanged,
            updates=self.updates(0), activation=self.activation,
        )  # fmt: skip
        hooked = self.capture and self.intervene.watches
        require(not hooked, self, "capture intervene.methods", "continual-backprop needs a forward pass per update")
        self.probe.check(size_is_read=self.nap.enabled)
        apart = (self.shift.on and self.shift.every_steps) or min(self.shift.gaps()[1:], default=batch)
        require(
            apart >= batch, self, "num_envs num_steps",
            f"changes of --shift come {apart} steps apart, but the agent reacts only once per iteration, {batch} steps",
        )  # fmt: skip


NAP: dict[str, Any] = {"nap": NapArgs(enabled=True), "network": "normalised"}
LEVEL = 200 * 800
LEVELS: dict[str, Any] = {
    "num_envs": 1, "num_steps": 800, "fresh_episodes": True, "max_episode_steps": 400, "total_timesteps": 10 * LEVEL,
    "shift": ShiftArgs("offsets", scale=2.0, tasks=10, every_steps=LEVEL),
}  # fmt: skip
NAP_LEVELS: dict[str, Any] = {**LEVELS, **NAP}
DECAY, ONE_DECAY = ScheduleArgs("warmup-cosine", 1e-5, LEVEL), ScheduleArgs("warmup-cosine", 1e-5)
ALARM = RewarmArgs("cusum", block=125, burn_in=10, refractory=20, smoothing=0.2)
TOLD: dict[str, Any] = {"schedule": DECAY, "rewarm": RewarmArgs("switch")}
CUSUM: dict[str, Any] = {"schedule": DECAY, "rewarm": ALARM}
FRESH: dict[str, Any] = {"rewarm": ALARM, "switch": SwitchArgs(fresh_agent=True, when="trigger")}
PRESETS = presets(
    Args,
    {
        "baseline": ("plain PPO at a constant rate", {}),
        "layernorm": ("LayerNorm, constant rate", {"network": "normalised"}),
        "nap": ("normalize-and-project, constant rate", NAP),
        "levels-plain": ("ten levels, plain PPO", LEVELS),
        "levels-oracle": ("ten levels, a fresh agent for each", {**LEVELS, "switch": SwitchArgs(fresh_agent=True)}),
        "levels-layernorm": ("ten levels, LayerNorm, constant rate", {**LEVELS, "network": "normalised"}),
        "levels-nap-constant": ("ten levels, normalize-and-project, constant rate", NAP_LEVELS),
        "levels-nap-decay": ("ten levels, normalize-and-project, one decay", {**NAP_LEVELS, "schedule": ONE_DECAY}),
        "levels-nap-switch": ("ten levels, normalize-and-project, re-warmed at each change", {**NAP_LEVELS, **TOLD}),
        "levels-nap-cusum": ("ten levels, normalize-and-project, re-warmed by CUSUM", {**NAP_LEVELS, **CUSUM}),
        "levels-reset-cusum": ("ten levels, a fresh agent when CUSUM detects a change", {**LEVELS, **FRESH}),
        "levels-plain-switch": ("ten levels, plain network, re-warmed at each change", {**LEVELS, **TOLD}),
        "levels-crelu": ("ten levels, plain PPO with CReLU", {**LEVELS, "activation": "crelu"}),
        **{
            f"levels-{name}": (
                f"ten levels, plain PPO and {name}",
                {**LEVELS, "intervene": args, **({"rewarm": ALARM} if args.acts_at == "trigger" else {})},
            )
            for name, args in BASELINES.items()
        },
    },
)

# --------------------------------------------------------------------------------------------------------- network


class ActorCritic(nn.Module):
    """Policy logits and value of an observation vector: two separate networks with three hidden layers each.

    normalised: LayerNorm before each nonlinearity and no bias in front of it, so that scaling a weight tensor leaves
    the output as it is. That would hide the length of the observation too, and on CartPole cost a third of the return:
    an observation therefore ends with a 1.
    """

    def __init__(self, inputs: int, actions: int, width: int = 256, normalised: bool = False, crelu: bool = False):
        super().__init__()

        def mlp(outputs: int) -> nn.Sequential:
            features = width * (1 + crelu)
            layers = OrderedDict[str, nn.Module]({"one": nn.ConstantPad1d((0, 1), 1.0)} if normalised else {})
            for i, fan_in in enumerate((inputs + normalised, features, features), start=1):
                layers[f"hidden{i}"] = nn.Linear(fan_in, width, bias=not normalised)
                if normalised:
                    layers[f"norm{i}"] = nn.LayerNorm(width)
                layers[f"relu{i}"] = CReLU() if crelu else nn.LeakyReLU(0.1)
            layers["head"] = nn.Linear(features, outputs)
            return nn.Sequential(layers)

        self.actor, self.critic = mlp(actions), mlp(1)
        self.heads = ["actor.head", "critic.head"]  # never projected
        self.probed = [f"{net}.relu{i}" for net in ("actor", "critic") for i in (1, 2, 3)]  # after the nonlinearity

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:  # [B, D] -> [B, A], [B]
        return self.actor(obs), self.critic(obs)[:, 0]


def make_network(env: Any, args: Args, seed: int, device: torch.device) -> ActorCritic:
    """A network for these environments, with the initial weights that this seed gives it."""
    inputs, actions = env.single_observation_space.shape[0], int(env.single_action_space.n)
    with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global stream
        torch.manual_seed(seed)
        options = args.network == "normalised", args.activation == "crelu"
        return ActorCritic(inputs, actions, args.width, *options).to(device)


def on_device(network: ActorCritic, array: np.ndarray) -> Tensor:
    """The array as a tensor where the network is."""
    return torch.from_numpy(array).to(network.actor.head.weight.device)


@torch.no_grad()
def policy_logits(network: ActorCritic, obs: np.ndarray) -> np.ndarray:
    """Preferences for actions [N, A]; the largest is the greedy action."""
    return network.actor(on_device(network, obs)).cpu().numpy()


@torch.no_grad()
def value(network: ActorCritic, obs: np.ndarray) -> np.ndarray:
    """V [N]."""
    return network.critic(on_device(network, obs))[:, 0].cpu().numpy()


# ------------------------------------------------------------------------------------------------ samples and loss


class Rollout:
    """What T steps in N environments gave: T = --num-steps, N = --num-envs."""

    def __init__(self, steps: int, num_envs: int, inputs: int):
        self.obs = np.zeros((steps, num_envs, inputs), dtype=np.float32)
        self.actions = np.zeros((steps, num_envs), dtype=np.int64)
        self.returned = np.zeros((steps, num_envs), dtype=np.float64)  # rewards as the environment gave them
        self.bootstrap = np.zeros((steps, num_envs), dtype=np.float32)  # gamma V of the last observation, if truncated
        self.dones = np.zeros((steps, num_envs), dtype=bool)  # the episode ended with this step

    def episode_returns(self) -> list[float]:
        """Undiscounted returns of the episodes in these steps, from the first step on; the last one may be cut."""
        totals = np.vstack([np.zeros(self.dones.shape[1]), self.returned.cumsum(0)])  # [T + 1, N], before each step
        found: list[float] = []
        for n, dones in enumerate(self.dones.T):
            bounds = sorted({0, *(np.flatnonzero(dones) + 1), len(dones)})
            found += np.diff(totals[bounds, n]).tolist()
        return found


# same as agents/ppo_minatar.py::gae
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


@torch.no_grad()
def samples_of(
    network: ActorCritic, rollout: Rollout, last_obs: np.ndarray, args: Args
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The T x N samples of the update, [T * N, ...] each, and what is recorded of them."""
    obs, actions = on_device(network, rollout.obs).flatten(0, 1), on_device(network, rollout.actions).flatten()
    logits, flat_values = network(obs)
    values = flat_values.cpu().numpy().reshape(rollout.dones.shape)
    rewards = (rollout.returned / args.reward_scale).astype(np.float32) + rollout.bootstrap
    experience = rewards, values, rollout.dones, value(network, last_obs), args.gamma
    advantages, deltas = gae(*experience, args.gae_lambda)
    returns = values + gae(*experience, args.value_lambda)[0]
    measured = {"losses/squared_td_error": float(np.square(deltas).mean())}
    measured["plasticity/logit_scale"] = float((logits - logits.mean(1, keepdim=True)).square().mean().sqrt())
    if spread := float(np.var(returns)):  # returns all alike leave nothing to explain
        measured["losses/explained_variance"] = 1 - float(np.var(returns - values)) / spread
    if args.norm_adv == "iteration":
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-5)
    samples = {
        "obs": obs, "actions": actions, "logprobs": F.log_softmax(logits, 1).gather(1, actions[:, None])[:, 0],
        "advantages": on_device(network, advantages.reshape(-1)), "returns": on_device(network, returns.reshape(-1)),
    }  # fmt: skip
    return samples, measured


def ppo_loss(network: ActorCritic, batch: dict[str, Tensor], args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a minibatch [] and its parts.

    L = -E min(r A, clip(r, 1 - c, 1 + c) A) + vf_coef E (V - R)^2 - ent_coef E H,
    r = pi(a | s) / pi_old(a | s)   (arXiv:1707.06347)
    """
    logits, values = network(batch["obs"])
    logprobs = F.log_softmax(logits, 1)  # [B, A]
    log_ratio = logprobs.gather(1, batch["actions"][:, None])[:, 0] - batch["logprobs"]
    ratio, advantages = log_ratio.exp(), batch["advantages"]
    if args.norm_adv == "minibatch":
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    policy_loss = -torch.min(ratio * advantages, clipped * advantages).mean()
    value_loss = (values - batch["returns"]).square().mean()
    entropy = -(logprobs.exp() * logprobs).sum(1).mean()
    parts = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "log_ratio": log_ratio}
    return policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy, parts


# same as agents/ppo_minatar.py::ppo_gradient
def ppo_gradient(
    network: ActorCritic, optimizer: FlatAdam, batch: dict[str, Tensor], args: Args
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradient of the loss of a minibatch: write every .grad; return the loss [] and its parts."""
    loss, parts = ppo_loss(network, batch, args)
    optimizer.zero_grad()
    loss.backward()
    return loss.detach(), {name: part.detach() for name, part in parts.items()}


def recorded(parts: dict[str, Tensor], clip_coef: float) -> dict[str, float]:
    """What is recorded of a minibatch's loss."""
    log_ratio = parts["log_ratio"]
    numbers = {name: parts[name] for name in ("policy_loss", "value_loss", "entropy")}
    numbers["approx_kl"] = (log_ratio.exp() - 1 - log_ratio).mean()
    numbers["clipfrac"] = ((log_ratio.exp() - 1).abs() > clip_coef).double().mean()
    return {f"losses/{name}": float(number.detach()) for name, number in numbers.items()}


# ------------------------------------------------------------------------------------------------------------ main


def main(args: Args) -> None:
    """Train one agent; everything it leaves behind is in its run directory."""
    keep_freed_memory()
    about = f"{Path(__file__).stem}__{args.env_id.replace(':', '/').split('/')[-1]}"
    run = Session(
        args, about, total=args.run_steps, streams="init env probe minibatch action switch intervene",
        reads_every=args.update_epochs * args.num_minibatches,
    )  # fmt: skip
    minibatch_rng, action_rng, reference_rng = map(run.generator, ("minibatch", "action", "intervene"))

    with one_line_errors():  # what a library refuses here becomes one line for the user; nothing is written yet
        make_env = partial(args.shift.world, args.env_id, max_episode_steps=args.max_episode_steps or None)
        env = make_env(args.num_envs)
        network = make_network(env, args, run.seed("init"), run.device)
        optimizer = FlatAdam(network.parameters(), lr=args.learning_rate, eps=args.adam_eps)
        rollout = Rollout(args.num_steps, args.num_envs, *env.single_observation_space.shape)
        gradient = partial(ppo_gradient, network, optimizer, args=args)
        gradient = Captured(gradient, run.device) if args.capture else gradient

        # The objects of elr work on the network and the optimiser in place; one that is off does nothing.
        layers = scalable_weights(network, heads=network.heads)  # weights of the hidden layers, by name
        first_task = make_env(1, changing=False)
        probe_obs = uniform_observations(first_task, args.probe.size, run.seed("probe")).to(run.device)
        filming = Filming(first_task, args.record_video)
        run.require_finite(observation_of_a_random_policy=probe_obs.abs().max().item())
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
    run.keep(network=network, optimizer=optimizer, env=env, rewarming=rewarming, projection=projection)
    run.keep(meter=meter, probe=probe, methods=methods, returns=returns)
    run.watch(network, optimizer)  # weights, gradients and moments, for `require_finite`
    obs, _ = env.reset(seed=run.seed("env"))  # [N, D] float32

    def intervene(at: int) -> None:
        """The task changed, or the trigger fired, in the iteration that ends at this step: do what --switch asks for.

        An intervention of your own belongs here, or behind an update. Change weights in place; then call
        projection.project_() to keep their norms or projection.remember_norms_() to hold the new ones.
        """
        fresh = make_network(env, args, run.seed("switch", at), run.device)
        args.switch.intervene_(network, fresh, projection, heads=network.heads)
        if args.switch.renews:
            methods.weights_renewed()
        if args.switch.does("optimizer"):  # by its own flag, or with everything else by --switch.fresh-agent
            reset_moments_(optimizer)
        if args.switch.fresh_agent:
            rewarming.reset()  # schedule and trigger as at the start of the run
        elif args.rewarm.trigger == "switch":
            rewarming.restart()  # re-warm
            run.scalar("rewarm/event", 1)
        if args.switch.does("intervention"):
            weights_changed()

    def weights_changed() -> None:
        """By something other than an update."""
        run.scalar("reset/event", 1)
        probe.forget()  # the next change of the features is measured from here, without the intervention

    with run.open():
        run.layout(layout(layers, network.probed, rewarming=args.rewarm.on), shifts=args.shift.on)
        if run.resumed:
            run.restore()
            obs = env.observation()
        else:
            run.scalars(probe.measure())
            run.checkpoint()
        evaluation_env = evaluation_world(env, args.eval_episodes, around=filming.around)

        while run.running():
            # Act: T steps in each of the N environments.
            changed, fired = False, False
            if args.fresh_episodes and run.step:
                obs, _ = env.reset()
            for t in range(args.num_steps):
                logits = policy_logits(network, obs)
                drawn = (logits + action_rng.gumbel(size=logits.shape)).argmax(1)  # a draw from the softmax
                rollout.obs[t], rollout.actions[t], rollout.bootstrap[t] = obs, drawn, 0.0
                obs, rollout.returned[t], terminated, truncated, infos = env.step(drawn)
                if truncated.any():  # the episode was cut, not finished: add the value of its last observation
                    rollout.bootstrap[t] = args.gamma * value(network, infos["final_obs"]) * truncated
                rollout.dones[t] = terminated | truncated
                run.step += args.num_envs
                if "shift" in infos and run.step < run.total:
                    changed = True
                    run.shifted(infos)
                returns.record(infos, truncated, run)  # of episodes that ended
            run.require_finite(reward=np.abs(rollout.returned).max(), observation=np.abs(rollout.obs).max())
            samples, measured = samples_of(network, rollout, obs, args)
            signal = max(measured["losses/squared_td_error"], 1e-12)  # what CUSUM watches; it takes the logarithm
            run.require_finite(squared_TD_error=signal)

            def reference(count: int, obs: Tensor = samples["obs"]) -> Tensor:
                """Observations of this iteration, for --intervene."""
                return obs[torch.from_numpy(reference_rng.integers(len(obs), size=count)).to(run.device)]

            # Learn: Algorithm 1 of arXiv:2507.20057, for each minibatch.
            for _ in range(args.update_epochs):
                order = torch.from_numpy(minibatch_rng.permutation(args.iteration_steps)).to(run.device)
                shuffled = [x[order].chunk(args.num_minibatches) for x in samples.values()]
                for batch in zip(*shuffled, strict=True):
                    loss, parts = gradient(dict(zip(samples, batch, strict=True)))  # writes every .grad
                    if args.intervene.on:
                        policy_loss = parts["policy_loss"] - args.ent_coef * parts["entropy"]
                        methods.before_step(reference, policy_loss)
                    if args.max_grad_norm:
                        optimizer.clip_(args.max_grad_norm)
                    run.require_finite(loss=loss)
                    meter.before_step()
                    optimizer.step()
                    meter.after_step()  # measures the step really taken, before the projection
                    acted = methods.after_step()  # other methods against loss of plasticity, if any
                    rate = rewarming.rate  # of this update
                    projection.step(rate)  # W <- W ||W_0|| / ||W||, gains by --nap.gains; heads stay free
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
            run.scalars({**measured, **recorded(parts, args.clip_coef), "charts/learning_rate": rate})
            run.scalars({f"physics/{what}": number for what, number in infos.get("physics", {}).items()})  # of a drift
            if args.fresh_episodes:
                run.scalar("charts/iteration_return", float(np.mean(rollout.episode_returns())))
            run.show_speed(f"mean return {returns.mean}   lr {rewarming.rate:.2e}")
            run.scalars({**rewarming.scalars(), **methods.scalars()})
            if run.due(args.eval_every * args.iteration_steps, last=True):
                if args.shift.drift:  # of the present physics, which changes without a change of task
                    evaluation_env = evaluation_world(env, args.eval_episodes, around=filming.around)
                run.evaluated(play(evaluation_env, partial(policy_logits, network), run.seed("env") + run.step))
                run.write_video(filming.film)
            if (fired if args.switch.at_trigger else changed) and run.step < run.total:
                intervene(run.step)
            if run.step < run.total and methods.react(reference, changed=changed, fired=fired):
                weights_changed()
            if changed:
                returns.clear()
                evaluation_env = evaluation_world(env, args.eval_episodes, around=filming.around)
            if run.due(args.checkpoint_every * args.iteration_steps, last=False):
                run.checkpoint()
        run.end()
    run.farewell(returns.summary)


if __name__ == "__main__":
    exit_with_one_line(lambda: main(parse(Args, PRESETS, prog_description=__doc__.split("\n\n")[0])))
