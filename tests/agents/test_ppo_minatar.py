"""The shipped PPO script: its estimates and loss, its flags, and that all-off is the plain agent bit for bit."""

from __future__ import annotations

import dataclasses
import math
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from agents import ppo_minatar as script
from agents.ppo_minatar import ActorCritic, Args, NapArgs, ProbeArgs, RewarmArgs, ScheduleArgs, ShiftArgs, SwitchArgs
from elr.fast.flat_adam import FlatAdam
from elr.interventions.flags import BASELINES
from elr.rewarming import Rewarming
from envs.minatar import MinAtarVectorEnv
from runs.recording import NonFiniteError, RunError, load_checkpoint, parse, read_scalars, read_status
from tests.agents import scripts
from tests.agents.scripts import assert_same

CONSTANT = ScheduleArgs(kind="constant")
PROBE = ProbeArgs(every=8, size=16, meter_every=4)


def small(directory, **changes):
    """4 iterations of 128 steps and 8 updates."""
    defaults = {
        "total_timesteps": 512, "num_envs": 4, "num_steps": 32, "num_minibatches": 4, "update_epochs": 2,
        "eval_every": 0, "probe": PROBE, "checkpoint_every": 1, "directory": directory,
    }  # fmt: skip
    return Args(**{**defaults, **changes})


def run(directory, **changes):
    script.main(small(directory, **changes))
    return read_scalars(directory)


def saved(directory):
    return load_checkpoint(directory / "checkpoint.pt")["state"]


def recorded(directory):
    """Every scalar except the speed."""
    return {tag: rows for tag, rows in read_scalars(directory).items() if tag != "charts/SPS"}


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """The directory of a run that changes nothing of `small`."""
    directory = tmp_path_factory.mktemp("default") / "r"
    script.main(small(directory))
    return directory


# estimates and loss


def literal_advantage(t, n, rewards, values, dones, last, gamma, lam):
    """The definition: discounted sum of one-step errors up to the end of the episode."""
    total, weight = 0.0, 1.0
    for k in range(t, len(rewards)):
        following = last[n] if k + 1 == len(rewards) else values[k + 1][n]
        total += weight * (rewards[k][n] + gamma * following * (not dones[k][n]) - values[k][n])
        if dones[k][n]:
            break
        weight *= gamma * lam
    return total


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_gae_is_the_discounted_sum_of_errors(lam):
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 12, 3))
    dones, last = rng.random((12, 3)) < 0.25, rng.normal(size=3)
    ours, deltas = script.gae(rewards, values, dones, last, 0.9, lam)
    assert deltas == pytest.approx(script.gae(rewards, values, dones, last, 0.9, 0.0)[0])
    for t in range(12):
        for n in range(3):
            assert ours[t, n] == pytest.approx(literal_advantage(t, n, rewards, values, dones, last, 0.9, lam))


def test_gae_with_lambda_one_is_the_return_minus_the_value():
    rewards, values, dones = np.ones((50, 1)), np.full((50, 1), 3.0), np.zeros((50, 1), dtype=bool)
    ours, _ = script.gae(rewards, values, dones, np.array([10.0]), 0.9, 1.0)
    assert ours[0, 0] + 3 == pytest.approx((1 - 0.9**50) / 0.1 + 0.9**50 * 10)


@pytest.mark.parametrize("clip_vloss", [True, False])
@pytest.mark.parametrize("norm_adv", [True, False])
def test_the_loss_is_the_one_in_the_docstring(clip_vloss, norm_adv):
    args = Args(clip_vloss=clip_vloss, norm_adv=norm_adv, clip_coef=0.1, ent_coef=0.03, vf_coef=0.7)
    torch.manual_seed(0)
    network = ActorCritic(4, 3).double()
    with torch.no_grad():
        network.actor.weight.mul_(200)
    size = 40
    batch = {
        "obs": torch.randint(0, 2, (size, 4, 10, 10), dtype=torch.uint8), "actions": torch.randint(0, 3, (size,)),
        "advantages": torch.randn(size).double(), "returns": torch.randn(size).double(),
        "values": torch.randn(size).double(), "logprobs": torch.log(torch.rand(size).double()),
    }  # fmt: skip
    loss, parts = script.ppo_loss(network, batch, args)
    logits, values = (x.detach().numpy() for x in network(batch["obs"]))
    a = batch["advantages"].numpy()
    if norm_adv:
        a = (a - a.mean()) / (a.std(ddof=1) + 1e-8)
    policy, value, entropy, clipped, kl = 0.0, 0.0, 0.0, 0, 0.0
    for i in range(size):
        p = np.exp(logits[i]) / np.exp(logits[i]).sum()
        ratio = p[batch["actions"][i]] / math.exp(batch["logprobs"][i])
        policy += -min(ratio * a[i], min(max(ratio, 0.9), 1.1) * a[i]) / size
        old, target = float(batch["values"][i]), float(batch["returns"][i])
        error = (values[i] - target) ** 2
        if clip_vloss:
            error = max(error, (old + min(max(values[i] - old, -0.1), 0.1) - target) ** 2)
        value += 0.5 * error / size
        entropy += -(p * np.log(p)).sum() / size
        clipped += abs(ratio - 1) > 0.1
        kl += (ratio - 1 - math.log(ratio)) / size
    expected = {
        "policy_loss": policy, "value_loss": value, "entropy": entropy, "approx_kl": kl, "clipfrac": clipped / size
    }  # fmt: skip
    assert {name.split("/")[1]: float(part) for name, part in parts.items()} == pytest.approx(expected)
    assert float(loss.detach()) == pytest.approx(policy + 0.7 * value - 0.03 * entropy)
    assert 0 < clipped < size


def test_actions_are_drawn_from_the_policy():
    network = ActorCritic(4, 3)
    with torch.no_grad():
        network.actor.weight.zero_()
        network.actor.bias.copy_(torch.log(torch.tensor([0.6, 0.3, 0.1])))
    obs = np.zeros((20_000, 4, 10, 10), dtype=np.uint8)
    actions, logprobs, values = script.act(network, obs, np.random.default_rng(0))
    share = np.bincount(actions, minlength=3) / len(actions)
    assert np.abs(share - [0.6, 0.3, 0.1]).max() < 5 * math.sqrt(0.24 / 20_000)
    assert np.allclose(np.exp(logprobs), np.array([0.6, 0.3, 0.1])[actions])
    assert np.array_equal(values, script.value(network, obs))


def test_the_network_starts_as_published():
    network = ActorCritic(4, 6)
    for layer, gain in ((network.hidden, 2**0.5), (network.actor, 0.01), (network.critic, 1.0)):
        w = layer.weight.detach()
        assert torch.allclose(w @ w.T, gain**2 * torch.eye(len(w)), atol=1e-5)
    w = network.conv.weight.detach().flatten(1)
    assert torch.allclose(w @ w.T, 2 * torch.eye(16), atol=1e-5)
    assert network.conv.bias is None and ActorCritic(4, 6, normalised=False).conv.bias is not None


class Endless(VectorEnv):
    """Always reward 1; episodes end after ten steps, by truncation or by termination. All observations are alike."""

    def __init__(self, num_envs, truncates=True):
        self.num_envs, self.truncates, self.time = num_envs, truncates, 0
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space, self.single_action_space = Box(0, 1, (4, 10, 10), np.uint8), Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def observation(self):
        return np.ones((self.num_envs, 4, 10, 10), np.uint8)

    def reset(self, *, seed=None, options=None):
        return self.observation(), {}

    def step(self, actions):
        self.time += 1
        ended = np.full(self.num_envs, self.time % 10 == 0)
        none = np.zeros_like(ended)
        infos = {}
        if ended.any():
            lengths = np.full(self.num_envs, 10)
            infos = {"final_obs": self.observation(), "_final_obs": ended, "_episode": ended}
            infos["episode"] = {"r": lengths.astype(float), "l": lengths}
        over = (none, ended) if self.truncates else (ended, none)
        return self.observation(), np.ones(self.num_envs), *over, infos

    def state_dict(self):
        return {"time": self.time}


@pytest.mark.parametrize(("truncates", "expected"), [(True, 1 / (1 - 0.8)), (False, None)])
def test_truncation_bootstraps_and_termination_does_not(tmp_path, monkeypatch, truncates, expected):
    """The value of reward 1 for ever is 1 / (1 - gamma), however often the episode is truncated; else it is less."""
    monkeypatch.setattr(ShiftArgs, "world", lambda self, env_id, num_envs, **_: Endless(num_envs, truncates))
    monkeypatch.setattr(script, "evaluation_world", lambda *_, **__: None)
    run(
        tmp_path / "r", total_timesteps=128 * 30, gamma=0.8, learning_rate=5e-3, schedule=CONSTANT, clip_vloss=False,
        probe=ProbeArgs(every=0, meter_every=0), checkpoint_every=100,
    )  # fmt: skip
    network = ActorCritic(4, 3)
    network.load_state_dict(saved(tmp_path / "r")["network"])
    found = float(script.value(network, Endless(1).observation())[0])
    if expected is None:  # mean over ten positions of (1 - gamma^k) / (1 - gamma): the observation does not tell which
        expected = np.mean([(1 - 0.8**k) / 0.2 for k in range(1, 11)])
    assert found == pytest.approx(expected, rel=0.05 if truncates else 0.1)


# training


def plain_ppo(args):
    """PPO written out plainly, with the same random streams."""
    streams = np.random.SeedSequence(args.seed).spawn(6)
    init, env_seed = (int(s.generate_state(1)[0]) for s in streams[:2])
    minibatch_rng, action_rng = (np.random.default_rng(s) for s in streams[3:5])
    torch.manual_seed(init)
    network = ActorCritic(4, 3)
    optimizer = FlatAdam(list(network.parameters()), lr=args.learning_rate, eps=1e-5)  # Adam, see tests/elr
    env = MinAtarVectorEnv(args.env_id, args.num_envs)
    obs, _ = env.reset(seed=env_seed)
    episodes, total = [], args.total_timesteps // (args.num_envs * args.num_steps)
    for iteration in range(total):
        memory = []
        for t in range(args.num_steps):
            with torch.no_grad():
                logits, values = network(torch.from_numpy(obs))
            logprobs = F.log_softmax(logits, 1).numpy()
            actions = (logprobs + action_rng.gumbel(size=logprobs.shape)).argmax(1)
            next_obs, rewards, terminated, _, infos = env.step(actions)
            chosen = logprobs[np.arange(len(actions)), actions]
            memory.append((obs, actions, chosen, values.numpy(), rewards.astype(np.float32), terminated))
            obs = next_obs
            if "episode" in infos:
                step = (iteration * args.num_steps + t + 1) * args.num_envs
                episodes += [(step, float(infos["episode"]["r"][i])) for i in np.flatnonzero(infos["_episode"])]
        o, a, old, v, r, d = (np.stack(x) for x in zip(*memory, strict=True))
        with torch.no_grad():
            last = network(torch.from_numpy(obs))[1].numpy()
        advantages, _ = script.gae(r, v, d, last, args.gamma, args.gae_lambda)
        flat = [torch.from_numpy(x.reshape(-1, *x.shape[2:])) for x in (o, a, old, v, advantages, advantages + v)]
        names = ("obs", "actions", "logprobs", "values", "advantages", "returns")
        for _ in range(args.update_epochs):
            order = torch.from_numpy(minibatch_rng.permutation(len(flat[0])))
            for index in order.split(len(order) // args.num_minibatches):
                batch = {name: x[index] for name, x in zip(names, flat, strict=True)}
                loss, _ = script.ppo_loss(network, batch, args)
                optimizer.zero_grad()
                loss.backward()
                norm = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()  # as one vector, as there
                for p in network.parameters():
                    p.grad.mul_((args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
                optimizer.step()
    return episodes, network


def test_all_off_is_the_plain_agent_bit_for_bit(tmp_path):
    args = small(tmp_path / "r", schedule=CONSTANT)
    script.main(args)
    episodes, network = plain_ppo(args)
    assert len(episodes) > 10 and read_scalars(tmp_path / "r")["charts/episodic_return"] == episodes
    held = saved(tmp_path / "r")["network"]
    for name, p in network.state_dict().items():
        assert torch.equal(p, held[name]), name


def test_an_update_is_that_of_torchs_adam_and_clipping():
    """Up to rounding: on one vector they add up in another order."""
    args, networks = Args(max_grad_norm=0.05), []
    for flat in (True, False):
        torch.manual_seed(0)
        network = ActorCritic(4, 3)
        kwargs = {"lr": args.learning_rate, "eps": args.adam_eps}
        optimizer = (
            FlatAdam(list(network.parameters()), **kwargs) if flat else torch.optim.Adam(network.parameters(), **kwargs)
        )
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            batch = {name: torch.randn(64, generator=generator) for name in ("values", "advantages", "returns")}
            batch |= {
                "obs": torch.randint(2, (64, 4, 10, 10), generator=generator, dtype=torch.uint8),
                "actions": torch.randint(3, (64,), generator=generator), "logprobs": torch.full((64,), -1.1),
            }  # fmt: skip
            optimizer.zero_grad()
            script.ppo_loss(network, batch, args)[0].backward()
            if flat:
                assert optimizer.clip_(args.max_grad_norm) > args.max_grad_norm
            else:
                torch.nn.utils.clip_grad_norm_(network.parameters(), args.max_grad_norm)
            optimizer.step()
        networks.append(network)
    for p, q in zip(*(n.parameters() for n in networks), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-5)  # five steps of 1e-3


def test_measuring_changes_nothing(default_run, tmp_path):
    loud = read_scalars(default_run)
    quiet = run(tmp_path / "quiet", probe=ProbeArgs(every=0, meter_every=0))
    run(tmp_path / "evaluated", eval_every=2, eval_episodes=2)
    evaluated = recorded(tmp_path / "evaluated")
    assert quiet["losses/value_loss"] == loud["losses/value_loss"]
    assert "elr/conv" not in quiet
    evaluations = {tag: evaluated.pop(tag) for tag in ("eval/episodic_return", "eval/episodic_return_std")}
    assert [step for step, _ in evaluations["eval/episodic_return"]] == [256, 512]
    assert evaluated == recorded(default_run)
    assert_same(*(saved(d)["network"] for d in (default_run, tmp_path / "quiet")))


def test_projection_holds_the_trunk_and_leaves_the_heads(tmp_path):
    scalars = run(tmp_path / "r", nap=NapArgs(enabled=True), schedule=CONSTANT)
    for layer in ("conv", "hidden"):
        norms = [v for _, v in scalars[f"norms/parameter/{layer}"]]
        assert max(norms) / min(norms) < 1 + 1e-5
    assert {tag for tag in scalars if tag.startswith("norms/parameter/")} == {
        "norms/parameter/conv", "norms/parameter/hidden"
    }  # fmt: skip
    plain, held = run(tmp_path / "p", schedule=CONSTANT), saved(tmp_path / "r")["network"]
    assert plain["norms/parameter/hidden"][-1][1] > norms[-1] * 1.001
    assert held["actor.weight"].norm() > 1.1 * 0.01 * 3**0.5  # three orthogonal rows of norm 0.01 at the start


def test_the_rate_is_annealed_over_the_whole_run(default_run):
    rates = [v for _, v in read_scalars(default_run)["charts/learning_rate"]]
    assert rates == pytest.approx([1e-3 * (1 - (8 * k - 1) / 32) for k in (1, 2, 3, 4)])


def test_the_schedule_restarts_at_a_change(tmp_path):
    scalars = run(
        tmp_path / "r", rewarm=RewarmArgs(trigger="switch"), schedule=ScheduleArgs("linear-decay", 0.0, 256),
        shift=ShiftArgs(kind="actions", every_steps=256),
    )  # fmt: skip
    assert [v for _, v in scalars["charts/learning_rate"]] == pytest.approx([1e-3 * f for f in (9 / 16, 1 / 16) * 2])
    assert scalars["rewarm/event"] == scalars["shift/boundary"] == [(256, 1.0)]


def test_the_trigger_every_counts_agent_steps(tmp_path):
    scalars = run(
        tmp_path / "r", rewarm=RewarmArgs(trigger="every", every_steps=128), schedule=ScheduleArgs(period_steps=256)
    )
    assert [step for step, _ in scalars["rewarm/event"]] == [128, 256, 384, 512]


def test_cusum_rewarms_when_the_errors_of_new_steps_jump(tmp_path, monkeypatch):
    """What is watched is their mean square, the same for the 8 updates of an iteration."""
    real, step, calls, signals = script.gae, Rewarming.step, [], []

    def jumping(*args):
        advantages, deltas = real(*args)
        calls.append(None)
        noise = 0.1 * math.sin(7.0 * len(calls))
        return advantages, np.full_like(deltas, math.sqrt(1 + noise + 5.0 * (len(calls) > 12)))

    monkeypatch.setattr(script, "gae", jumping)
    monkeypatch.setattr(Rewarming, "step", lambda self, signal: signals.append(signal) or step(self, signal))
    rewarm = RewarmArgs(trigger="cusum", block=8, burn_in=5, refractory=5)  # a block is an iteration
    scalars = run(
        tmp_path / "r", rewarm=rewarm, schedule=ScheduleArgs("warmup-cosine", 1e-5, 512), total_timesteps=16 * 128
    )
    assert [step for step, _ in scalars["rewarm/event"]] == [13 * 128]
    assert "rewarm/statistic" in scalars
    assert signals == pytest.approx(np.repeat([1 + 0.1 * math.sin(7.0 * k) + 5 * (k > 12) for k in range(1, 17)], 8))


def test_a_change_of_the_task_truncates_all_episodes_and_bootstraps(tmp_path, monkeypatch):
    seen = []
    real = script.gae

    def watched(rewards, values, dones, last_values, gamma, lam):
        seen.append((rewards.copy(), dones.copy()))
        return real(rewards, values, dones, last_values, gamma, lam)

    monkeypatch.setattr(script, "gae", watched)
    monkeypatch.setattr(script, "value", lambda network, obs: np.full(len(obs), 100.0, dtype=np.float32))
    scalars = run(tmp_path / "r", shift=ShiftArgs(kind="actions", at_steps=(200,)))  # in the second iteration
    rewards, dones = seen[1]
    cut = 200 // 4 - 32 - 1
    assert dones[cut].all() and (rewards[cut] >= 99).any()  # others may have ended by themselves on that step
    assert (rewards[:cut] < 50).all() and (rewards[cut + 1 :] < 50).all()
    assert scalars["shift/boundary"] == [(200, 1.0)] and scalars["shift/task"] == [(0, 0.0), (200, 1.0)]
    since_then = [value for step, value in scalars["charts/episodic_return"] if step > 256]
    assert saved(tmp_path / "r")["returns"]["returns"] == since_then


@pytest.mark.parametrize("kind", ["none", "reset", "reset-head", "shrink-and-perturb", "fresh"])
@pytest.mark.parametrize("projected", [False, True])
def test_an_intervention_changes_the_weights_that_it_names_and_training_continues(
    kind, projected, tmp_path, monkeypatch
):
    weights, real = [], SwitchArgs.intervene_

    def watched(self, network, *args, **kwargs):
        weights.append({name: w.clone() for name, w in network.state_dict().items()})
        real(self, network, *args, **kwargs)
        weights.append({name: w.clone() for name, w in network.state_dict().items()})

    monkeypatch.setattr(SwitchArgs, "intervene_", watched)
    asked = SwitchArgs(fresh_agent=True) if kind == "fresh" else SwitchArgs(intervention=kind)
    scalars = run(
        tmp_path / "r", shift=ShiftArgs(kind="channels", at_steps=(128,)), switch=asked, total_timesteps=256,
        nap=NapArgs(enabled=projected), schedule=CONSTANT,
    )  # fmt: skip
    before, after = weights
    heads = {"actor.weight", "actor.bias", "critic.weight", "critic.bias"}
    expected = {"none": set(), "reset-head": heads}.get(kind, set(before))
    assert {name for name, w in after.items() if not torch.equal(w, before[name])} == expected
    state = saved(tmp_path / "r")
    for name, w in state["network"].items():
        assert not torch.equal(w, after[name]), name
    assert float(state["optimizer"]["state"][0]["step"]) == (8.0 if kind == "fresh" else 16.0)
    # What an intervention did to the features is not measured as learning.
    measured = [step for step, _ in scalars["plasticity/delta_a/hidden_relu"]]
    assert measured == ([128, 256] if kind == "none" else [128])
    if projected:
        for name in ("conv", "hidden"):
            held = float(state["projection"]["norms"][name])
            assert state["network"][f"{name}.weight"].norm() == pytest.approx(held, rel=1e-5)


def test_evaluation_at_a_change_is_of_the_task_that_ends(tmp_path, monkeypatch):
    tasks = []

    def watched(env, policy, seed):
        tasks.append((env.task, env.num_envs))
        return np.zeros(env.num_envs)

    monkeypatch.setattr(script, "play", watched)
    shift = ShiftArgs(kind="actions", every_steps=256, tasks=3)
    run(tmp_path / "r", shift=shift, eval_every=1, eval_episodes=2, total_timesteps=768)
    assert tasks == [(task, 2) for task in (0, 0, 1, 1, 2, 2)]


def test_a_fresh_agent_knows_nothing_of_the_first_task(tmp_path, monkeypatch):
    """Two that share no more than the seed have the same network, schedule and trigger after the change."""
    left, real = [], SwitchArgs.intervene_

    def watched(self, network, *args, **kwargs):
        real(self, network, *args, **kwargs)
        left.append({name: w.clone() for name, w in network.state_dict().items()})

    monkeypatch.setattr(SwitchArgs, "intervene_", watched)
    for name, epochs in (("a", 2), ("b", 4)):
        scalars = run(
            tmp_path / name, shift=ShiftArgs(kind="pixels", at_steps=(256,)), switch=SwitchArgs(fresh_agent=True),
            nap=NapArgs(enabled=True), rewarm=RewarmArgs(trigger="every", every_steps=192), update_epochs=epochs,
            schedule=ScheduleArgs(period_steps=256), total_timesteps=640,
        )  # fmt: skip
        # after 192 steps of the first agent (in the iteration that ends at 256), after 192 and 384 of the second
        assert [step for step, _ in scalars["rewarm/event"]] == [256, 512, 640]
        state = saved(tmp_path / name)
        assert float(state["optimizer"]["state"][0]["step"]) == 3 * epochs * 4
        assert state["rewarming"]["updates"] == 3 * epochs * 4 and state["rewarming"]["base"] == [1e-3]
    assert_same(*left)


def test_each_change_draws_a_new_network(tmp_path, monkeypatch):
    seeds, real = [], script.make_network

    def make_network(env, args, seed, device):
        seeds.append(seed)
        return real(env, args, seed, device)

    monkeypatch.setattr(script, "make_network", make_network)
    run(tmp_path / "r", shift=ShiftArgs(kind="pixels", at_steps=(128, 256)), total_timesteps=384)
    assert len(set(seeds)) == len(seeds) == 3  # of the start, and of two changes


def test_the_same_seed_repeats_the_run_and_another_does_not(default_run, tmp_path):
    for name, seed in (("same", 1), ("other", 2)):
        run(tmp_path / name, seed=seed)
    assert recorded(default_run) == recorded(tmp_path / "same") != recorded(tmp_path / "other")
    assert_same(*(saved(d) for d in (default_run, tmp_path / "same")))


FLAGS = shlex.split(
    "chain-cusum --seed 7 --total-timesteps 2500 --num-envs 4 --num-steps 16 --num-minibatches 4 --update-epochs 2 "
    "--shift.games MinAtar/Asterix-v0 MinAtar/SpaceInvaders-v0 --shift.every-steps 0 --shift.rate 0.002 "
    "--schedule.period-steps 500 --rewarm.block 2 --rewarm.burn-in 4 --rewarm.refractory 4 --rewarm.threshold 0.3 "
    "--rewarm.slack 0.1 --checkpoint-every 3 --eval-every 9 --eval-episodes 2 --probe.every 20 --probe.size 16 "
    "--probe.meter-every 7 --nap.every 3 --switch.fresh-agent"
)
SCRIPT = Path(script.__file__)


def test_killed_in_the_middle_of_a_task_and_resumed_is_bit_identical(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    script.main(parse(Args, script.PRESETS, [*FLAGS, "--directory", str(whole)]))
    for step in (400, 1300):
        flags = ["--resume", killed] if killed.exists() else [*FLAGS, "--directory", killed]
        scripts.kill_beyond(scripts.start(SCRIPT, *flags), killed, step, signal.SIGKILL)
    cut = read_status(killed)["step"]
    script.main(parse(Args, script.PRESETS, ["--resume", str(killed)]))
    assert recorded(killed) == recorded(whole)
    assert_same(*(saved(d) for d in (whole, killed)))
    scalars = recorded(whole)
    assert len(scalars["shift/boundary"]) >= 2 and scalars["shift/boundary"][-1][0] > cut
    assert "rewarm/event" in scalars


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    directory = tmp_path / "r"
    output = scripts.kill_beyond(scripts.start(SCRIPT, *FLAGS, "--directory", directory), directory, 400, signal.SIGINT)
    status = read_status(directory)
    assert status["status"] == "interrupted"
    assert f"stopped at step {status['step']}" in output and f"--resume {directory}" in output


def test_nan_stops_the_run_and_leaves_the_checkpoint_from_before(tmp_path, monkeypatch):
    real, calls = script.ppo_loss, []

    def broken(network, batch, args):
        calls.append(None)
        loss, parts = real(network, batch, args)
        return (loss * math.nan if len(calls) == 28 else loss), parts

    monkeypatch.setattr(script, "ppo_loss", broken)
    with pytest.raises(NonFiniteError, match="loss is nan at step 512, update 27"):
        run(tmp_path / "r", checkpoint_every=2)
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 256


# flags


def test_every_flag_is_read():
    assert scripts.unread_flags(script) == []


def test_a_run_is_made_of_whole_iterations_and_updates_are_counted_in_them():
    args = Args(total_timesteps=1000, num_envs=4, num_steps=32, num_minibatches=4, update_epochs=2)
    assert (args.iteration_steps, args.run_steps) == (128, 1024)
    assert [args.updates(steps) for steps in (0, 1, 128, 200, 1024)] == [64, 1, 8, 12, 64]


def test_every_preset_parses_and_differs():
    parsed = {name: parse(Args, script.PRESETS, [name, "--seed", "5"]) for name in script.PRESETS}
    assert all(args.seed == 5 and args.exp_name == name for name, args in parsed.items())
    assert (
        len({repr(dataclasses.replace(args, exp_name="")) for args in parsed.values()})
        == len(parsed)
        == 13 + len(BASELINES)
    )
    assert dataclasses.replace(parsed["baseline"], exp_name="ppo", seed=1) == Args()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        # one of each group: its check is called; tests/elr/test_flags.py and tests/envs/test_shift_flags.py have all
        (["--nap.every", "5"], ["--nap.every", "--nap.enabled"]),
        (["--schedule.cycles", "7"], ["--schedule.cycles", "--schedule.kind linear-decay"]),
        (["--rewarm.block", "9"], ["--rewarm.block", "--rewarm.trigger never"]),
        (["--probe.every", "0", "--probe.size", "9"], ["--probe.size", "--probe.every 0"]),
        (["--shift.every-steps", "9"], ["--shift.every-steps", "--shift.kind none"]),
        (["--switch.optimizer", "reset"], ["--switch.optimizer", "--shift.kind none"]),
        # where groups meet the script's numbers
        (["--schedule.low", "1"], ["--schedule.low", "--learning-rate"]),
        (["--schedule.period-steps", "-1"], ["--schedule.period-steps", "got -1"]),
        (["--rewarm.trigger", "every", "--rewarm.every-steps", "8191"], ["--rewarm.every-steps", "8192", "8191"]),
        (
            ["adaptive", "--rewarm.burn-in", "2000"],
            ["--rewarm.burn-in", "2000 blocks x 32", "39062 updates in the run"],
        ),
        (
            ["chain-cusum", "--shift.every-steps", "262144"],
            ["--rewarm.refractory", "40 blocks", "1024 updates between"],
        ),
        (
            ["--rewarm.trigger", "every", "--rewarm.every-steps", "20000000"],
            ["--rewarm.every-steps 20000000", "--total-timesteps"],
        ),
        (
            ["nap-cyclic", "--rewarm.trigger", "every", "--rewarm.every-steps", "1000000"],
            ["--rewarm.every-steps 1000000", "--schedule.period-steps 500000"],
        ),
        (["chain-plain", "--shift.every-steps", "8191"], ["8191 steps apart", "--num-envs 64 and --num-steps 128"]),
        # the script's own
        (["--num-minibatches", "7"], ["--num-minibatches 7", "--num-envs 64", "--num-steps 128"]),
        (["--num-envs", "1", "--num-steps", "8"], ["--num-minibatches 8", "--norm-adv"]),
        (["--gamma", "1.0"], ["--gamma 1.0"]),
        (["--gae-lambda", "1.1"], ["--gae-lambda 1.1"]),
        (["--ent-coef", "-1"], ["--ent-coef"]),
        (["--max-grad-norm", "0"], ["--max-grad-norm"]),
        (["--num-envs", "0"], ["--num-envs"]),
        (["--device", "abacus"], ["--device", "abacus"]),
        (["--eval-every", "0", "--eval-episodes", "9"], ["--eval-episodes", "--eval-every 0"]),
        (["nap-cylic"], ["nap-cyclic"]),
        (["--learning-rat", "1"], ["--learning-rat"]),
    ],
)
def test_conflicting_and_mistyped_flags_are_refused_by_name(flags, named, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Args, script.PRESETS, flags)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in named), message


def test_random_changes_may_come_several_times_in_an_iteration():
    Args(shift=ShiftArgs(kind="actions", rate=0.01))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"env_id": "MinAtar/Frogger-v1"}, "Frogger"),
        ({"network": "plain", "nap": NapArgs(enabled=True)}, "--nap"),
        ({"schedule": ScheduleArgs("cyclic", low=-1.0)}, "--schedule"),
        ({"probe": ProbeArgs(tau=2.0)}, "--probe"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_what_a_library_refuses_is_one_line_before_anything_is_written(changes, named, tmp_path):
    with pytest.raises(RunError, match=named) as error:
        run(tmp_path / "r", **changes)
    assert not (tmp_path / "r").exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("when", [{"at_steps": (100, 250)}, {"rate": 0.05}])
def test_a_change_in_the_last_iteration_is_recorded_but_not_one_at_the_end(when, tmp_path):
    """257 steps are three iterations, 384 steps."""
    scalars = run(tmp_path / "r", total_timesteps=257, shift=ShiftArgs(kind="actions", **when))
    steps = [step for step, _ in scalars["shift/boundary"]]
    assert read_status(tmp_path / "r")["step"] == 384 and max(steps) < 384
    assert steps == [100, 252] if "at_steps" in when else max(steps) > 257
    assert dict(scalars["shift/task"]).keys() == {0, *steps}
