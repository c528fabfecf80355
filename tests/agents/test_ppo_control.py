"""The shipped PPO script for control: samples and loss against literal twins, changes, alarms, resume, flags."""

from __future__ import annotations

import dataclasses
import importlib
import math
import shlex
import signal
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from agents import ppo_control as script
from agents.ppo_control import (
    ActorCritic,
    Args,
    NapArgs,
    ProbeArgs,
    RewarmArgs,
    Rollout,
    ScheduleArgs,
    ShiftArgs,
    SwitchArgs,
)
from elr.fast.flat_adam import FlatAdam
from elr.interventions import CReLU
from elr.interventions.flags import BASELINES, InterveneArgs
from elr.rewarming import Rewarming
from envs.control import ControlVectorEnv
from envs.minatar import game_seed
from runs.recording import (
    NonFiniteError,
    RunError,
    config_to_dict,
    load_checkpoint,
    parse,
    read_scalars,
    read_status,
)
from runs.training import RunArgs, Session
from tests.agents import scripts
from tests.agents.scripts import assert_same

SCRIPT = Path(script.__file__)
QUIET = ProbeArgs(every=0, meter_every=0)
OFFSETS = ShiftArgs("offsets", every_steps=128, tasks=3)


def small(directory, **changes):
    """4 iterations of 64 steps and 8 updates, with small networks. Untrained, CartPole ends after 10 to 30 steps."""
    defaults = {
        "total_timesteps": 256, "num_envs": 4, "num_steps": 16, "num_minibatches": 4, "update_epochs": 2, "width": 16,
        "eval_every": 0, "probe": ProbeArgs(every=8, size=16, meter_every=4), "checkpoint_every": 1,
        "directory": directory,
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


def steps_of(scalars, tag):
    return [step for step, _ in scalars.get(tag, [])]


@pytest.fixture
def parts(monkeypatch):
    """The parts that the run in this process keeps, by name."""
    kept, keep = {}, Session.keep
    monkeypatch.setattr(Session, "keep", lambda self, **more: kept.update(more) or keep(self, **more))
    return kept


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """The directory of a run that changes nothing of `small`."""
    directory = tmp_path_factory.mktemp("default") / "r"
    script.main(small(directory))
    return directory


# samples and loss


def literal_advantage(t, rewards, values, dones, last, gamma, lam):
    """The definition, of one environment: discounted sum of TD errors up to the end of the episode."""
    total, weight = 0.0, 1.0
    for k in range(t, len(rewards)):
        following = last if k + 1 == len(rewards) else values[k + 1]
        total += weight * (rewards[k] + gamma * following * (not dones[k]) - values[k])
        if dones[k]:
            break
        weight *= gamma * lam
    return total


def a_rollout(rng, steps=12, num_envs=3, inputs=4, actions=2):
    """Filled at random; some episodes are terminated, some truncated."""
    rollout = Rollout(steps, num_envs, inputs)
    rollout.obs[:] = rng.normal(size=rollout.obs.shape)
    rollout.actions[:] = rng.integers(actions, size=(steps, num_envs))
    rollout.returned[:] = 10 * rng.normal(size=(steps, num_envs))
    rollout.dones[:] = rng.random((steps, num_envs)) < 0.3
    truncated = rollout.dones & (rng.random((steps, num_envs)) < 0.5)
    rollout.bootstrap[:] = rng.normal(size=(steps, num_envs)) * truncated
    assert 3 < truncated.sum() < rollout.dones.sum() - 3
    return rollout


@pytest.mark.parametrize("lambdas", [(0.95, 1.0), (1.0, 0.6), (0.0, 0.0)])
@pytest.mark.parametrize("norm_adv", ["iteration", "minibatch", "off"])
def test_samples_are_those_of_a_literal_loop_in_float64(lambdas, norm_adv):
    rng = np.random.default_rng(0)
    rollout, last_obs = a_rollout(rng), rng.normal(size=(3, 4)).astype(np.float32)
    args = Args(reward_scale=7.0, gamma=0.9, gae_lambda=lambdas[0], value_lambda=lambdas[1], norm_adv=norm_adv)
    network = script.make_network(scripts.spaces(4, 2), args, 5, torch.device("cpu"))
    samples, measured = script.samples_of(network, rollout, last_obs, args)

    exact = script.make_network(scripts.spaces(4, 2), args, 5, torch.device("cpu")).double()
    with torch.no_grad():
        logits, values = (x.numpy() for x in exact(torch.from_numpy(rollout.obs.reshape(-1, 4)).double()))
        last = exact(torch.from_numpy(last_obs).double())[1].numpy()
    values = values.reshape(12, 3)
    rewards = rollout.returned / 7.0 + rollout.bootstrap
    found = {lam: np.zeros((12, 3)) for lam in (*lambdas, 0.0)}
    for lam, advantages in found.items():
        for t in range(12):
            for n in range(3):
                of_one = rewards[:, n], values[:, n], rollout.dones[:, n], last[n]
                advantages[t, n] = literal_advantage(t, *of_one, 0.9, lam)
    advantages, deltas = found[lambdas[0]], found[0.0]
    returns = values + found[lambdas[1]]
    if norm_adv == "iteration":
        advantages = (advantages - advantages.mean()) / (math.sqrt(advantages.var()) + 1e-5)

    near = {"rel": 1e-4, "abs": 1e-5}  # sums of 12 float32 numbers of size 10
    assert samples["advantages"].numpy() == pytest.approx(advantages.flatten(), **near)
    assert samples["returns"].numpy() == pytest.approx(returns.flatten(), **near)
    assert np.array_equal(samples["obs"].numpy(), rollout.obs.reshape(-1, 4))
    assert np.array_equal(samples["actions"].numpy(), rollout.actions.reshape(-1))
    for i, action in enumerate(rollout.actions.reshape(-1)):
        p = np.exp(logits[i]) / np.exp(logits[i]).sum()
        assert float(samples["logprobs"][i]) == pytest.approx(math.log(p[action]), **near)
    centred = logits - logits.mean(1, keepdims=True)
    assert measured == pytest.approx(
        {
            "losses/squared_td_error": (deltas**2).mean(),
            "plasticity/logit_scale": math.sqrt((centred**2).mean()),
            "losses/explained_variance": 1 - (returns - values).var() / returns.var(),
        },
        rel=1e-4,
    )


@pytest.mark.parametrize("ends", ["never", "terminated", "truncated"])
def test_values_learn_discounted_sums_of_rewards_up_to_the_end_of_the_episode(ends):
    """Rewards of 40, scaled to 2, whatever the values are: sum of 2 * 0.9^k, and 0.9^n V where the episode goes on."""
    args = Args(gamma=0.9, reward_scale=20.0)
    assert args.value_lambda == 1.0
    rng = np.random.default_rng(1)
    rollout, last_obs = Rollout(8, 1, 4), rng.normal(size=(1, 4)).astype(np.float32)
    rollout.obs[:], rollout.returned[:] = rng.normal(size=rollout.obs.shape), 40.0
    rollout.dones[4] = ends != "never"
    rollout.bootstrap[4] = 0.9 * 5 * (ends == "truncated")
    network = script.make_network(scripts.spaces(4, 2), args, 5, torch.device("cpu"))
    returns = script.samples_of(network, rollout, last_obs, args)[0]["returns"].numpy()
    after = float(script.value(network, last_obs)[0])
    for t in range(8):
        left, beyond = (5 - t, 5.0 * (ends == "truncated")) if t < 5 and ends != "never" else (8 - t, after)
        assert returns[t] == pytest.approx(2 * (1 - 0.9**left) / 0.1 + 0.9**left * beyond, rel=1e-5)


def test_returns_that_are_all_alike_explain_nothing():
    rollout, args = Rollout(4, 1, 4), Args()
    network = script.make_network(scripts.spaces(4, 2), args, 5, torch.device("cpu"))
    rollout.dones[:] = True
    _, measured = script.samples_of(network, rollout, np.zeros((1, 4), np.float32), args)
    assert measured.keys() == {"losses/squared_td_error", "plasticity/logit_scale"}


def test_episode_returns_are_sums_between_ends_and_the_last_may_be_cut():
    rollout = Rollout(6, 3, 4)
    rollout.returned[:] = np.array([[1, 10, 100], [2, 20, 200], [3, 30, 300], [4, 40, 400], [5, 50, 500], [6, 60, 600]])
    assert rollout.episode_returns() == [21, 210, 2100]
    rollout.dones[[1, 2], 0] = True  # 1 + 2, 3, and 4 + 5 + 6 to the end of the iteration
    rollout.dones[5, 1] = True  # the whole column, and nothing after it
    rollout.dones[[0, 5], 2] = True
    assert rollout.episode_returns() == [3, 3, 15, 210, 100, 2000]


@pytest.mark.parametrize("norm_adv", ["iteration", "minibatch", "off"])
def test_the_loss_is_the_one_in_the_docstring(norm_adv):
    args = Args(norm_adv=norm_adv, clip_coef=0.1, ent_coef=0.03, vf_coef=0.7)
    torch.manual_seed(0)
    network = ActorCritic(4, 3, 8).double()
    with torch.no_grad():
        network.actor.head.weight.mul_(20)
    size = 40
    batch = {
        "obs": torch.randn(size, 4).double(), "actions": torch.randint(0, 3, (size,)),
        "advantages": torch.randn(size).double(), "returns": torch.randn(size).double(),
        "logprobs": torch.log(torch.rand(size).double()),
    }  # fmt: skip
    loss, parts = script.ppo_loss(network, batch, args)
    logits, values = (x.detach().numpy() for x in network(batch["obs"]))
    a = batch["advantages"].numpy()
    if norm_adv == "minibatch":
        a = (a - a.mean()) / (a.std(ddof=1) + 1e-8)
    policy, value, entropy, clipped, kl = 0.0, 0.0, 0.0, 0, 0.0
    for i in range(size):
        p = np.exp(logits[i]) / np.exp(logits[i]).sum()
        ratio = p[batch["actions"][i]] / math.exp(batch["logprobs"][i])
        policy += -min(ratio * a[i], min(max(ratio, 0.9), 1.1) * a[i]) / size
        value += (values[i] - float(batch["returns"][i])) ** 2 / size
        entropy += -(p * np.log(p)).sum() / size
        clipped += abs(ratio - 1) > 0.1
        kl += (ratio - 1 - math.log(ratio)) / size
    assert float(loss.detach()) == pytest.approx(policy + 0.7 * value - 0.03 * entropy, rel=1e-12)
    assert script.recorded(parts, args.clip_coef) == pytest.approx(
        {
            "losses/policy_loss": policy, "losses/value_loss": value, "losses/entropy": entropy,
            "losses/approx_kl": kl, "losses/clipfrac": clipped / size,
        },
        rel=1e-9,
    )  # fmt: skip
    assert 0 < clipped < size
    # The derivative by the logits: log-probabilities of the rollout, advantages and returns are constants.
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


@pytest.mark.parametrize("crelu", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_network_is_two_of_three_hidden_layers(normalised, crelu):
    torch.manual_seed(0)
    network, obs = ActorCritic(4, 3, 16, normalised, crelu).double(), torch.randn(10, 4).double()
    behind = 32 if crelu else 16
    with torch.no_grad():
        for name, parameter in network.named_parameters():  # gains and offsets that show
            if "norm" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
        found = network(obs)
    for net, outputs, ours in ((network.actor, 3, found[0]), (network.critic, 1, found[1][:, None])):
        x = np.hstack(
            [obs.numpy(), np.ones((10, int(normalised)))]
        )  # LayerNorm would hide the length of the observation
        for i in (1, 2, 3):
            layer = getattr(net, f"hidden{i}")
            assert layer.weight.shape == (16, 4 + normalised if i == 1 else behind)
            assert (layer.bias is None) == normalised
            bound = 1 / math.sqrt(layer.weight.shape[1])  # torch's own initialisation
            assert 0.9 * bound < layer.weight.abs().max() <= bound
            x = x @ layer.weight.detach().numpy().T
            if normalised:
                norm = getattr(net, f"norm{i}")
                x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + norm.eps)
                x = x * norm.weight.detach().numpy() + norm.bias.detach().numpy()
            else:
                x = x + layer.bias.detach().numpy()
            x = np.hstack([np.maximum(x, 0), np.maximum(-x, 0)]) if crelu else np.where(x > 0, x, 0.1 * x)
        assert net.head.weight.shape == (outputs, behind)
        expected = x @ net.head.weight.detach().numpy().T + net.head.bias.detach().numpy()
        assert ours.numpy() == pytest.approx(expected, rel=1e-10)
    assert not {id(p) for p in network.actor.parameters()} & {id(p) for p in network.critic.parameters()}
    assert len(list(network.children())) == 2 and network.heads == ["actor.head", "critic.head"]
    kind = CReLU if crelu else nn.LeakyReLU
    assert [type(network.get_submodule(name)) for name in network.probed] == [kind] * 6


def test_actions_are_drawn_with_the_probabilities_of_the_softmax(tmp_path, monkeypatch):
    chances, drawn, real = np.array([0.9, 0.08, 0.02]), [], script.samples_of
    monkeypatch.setattr(script, "policy_logits", lambda _, obs: np.tile(np.log(chances) + 3, (len(obs), 1)))
    monkeypatch.setattr(script, "samples_of", lambda *args: drawn.append(args[1].actions.copy()) or real(*args))
    run(tmp_path / "r", env_id="Acrobot-v1", num_envs=8, num_steps=500, total_timesteps=8000, probe=QUIET)
    actions = np.stack(drawn).reshape(-1, 8)
    share = np.bincount(actions.flatten(), minlength=3) / actions.size
    assert np.abs(share - chances).max() < 5 * math.sqrt(0.9 * 0.1 / actions.size)
    # Draws of different steps and environments are independent: pairs of action 0 come as often as they must.
    for pair in ((actions[:-1] == 0) & (actions[1:] == 0), (actions[:, :-1] == 0) & (actions[:, 1:] == 0)):
        assert abs(pair.mean() - 0.81) < 5 * math.sqrt(0.81 * 0.19 / pair.size)


# training


def plain_ppo(args):
    """PPO written out plainly on Gymnasium's own environments, with the same random streams."""
    streams = np.random.SeedSequence(args.seed).spawn(6)
    init, env_seed = (int(s.generate_state(1)[0]) for s in streams[:2])
    minibatch_rng, action_rng = (np.random.default_rng(s) for s in streams[3:5])
    envs = [gymnasium.make(args.env_id, max_episode_steps=args.max_episode_steps) for _ in range(args.num_envs)]
    obs = np.stack([env.reset(seed=game_seed(env_seed, i) & 0x7FFFFFFF)[0] for i, env in enumerate(envs)])
    torch.manual_seed(init)
    network = ActorCritic(obs.shape[1], int(envs[0].action_space.n), args.width)
    optimizer = FlatAdam(list(network.parameters()), lr=args.learning_rate, eps=args.adam_eps)  # see tests/elr
    sums, episodes, step = np.zeros(args.num_envs), [], 0
    for _ in range(args.total_timesteps // (args.num_envs * args.num_steps)):
        if args.fresh_episodes and step:
            obs, sums = np.stack([env.reset()[0] for env in envs]), np.zeros(args.num_envs)
        memory = []
        for _ in range(args.num_steps):
            with torch.no_grad():
                logits = network.actor(torch.from_numpy(obs)).numpy()
            actions = (logits + action_rng.gumbel(size=logits.shape)).argmax(1)
            seen, following = obs, []
            rewards, dones, cut = np.zeros(args.num_envs), np.zeros(args.num_envs, bool), np.zeros(args.num_envs, bool)
            last = seen.copy()
            step += args.num_envs
            for i, env in enumerate(envs):
                last[i], rewards[i], terminated, truncated, _ = env.step(actions[i])
                sums[i] += rewards[i]
                dones[i], cut[i] = terminated or truncated, truncated and not terminated
                following.append(last[i].copy())
                if dones[i]:
                    episodes.append((step, sums[i]))
                    sums[i], following[i] = 0.0, env.reset()[0]
            bonus = np.zeros(args.num_envs, np.float32)
            if cut.any():
                with torch.no_grad():
                    bonus[cut] = args.gamma * network.critic(torch.from_numpy(last))[:, 0].numpy()[cut]
            memory.append((seen, actions, (rewards / args.reward_scale).astype(np.float32) + bonus, dones))
            obs = np.stack(following)
        seen, actions, rewards, dones = (np.stack(x) for x in zip(*memory, strict=True))
        flat = torch.from_numpy(seen.reshape(-1, seen.shape[-1]))
        chosen = torch.from_numpy(actions.reshape(-1))
        with torch.no_grad():
            logits, values = network(flat)
            last = network.critic(torch.from_numpy(obs))[:, 0].numpy()
        values = values.numpy().reshape(rewards.shape)
        advantages, _ = script.gae(rewards, values, dones, last, args.gamma, args.gae_lambda)
        returns = values + script.gae(rewards, values, dones, last, args.gamma, args.value_lambda)[0]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-5)
        samples = {
            "obs": flat, "actions": chosen, "advantages": torch.from_numpy(advantages.reshape(-1)),
            "logprobs": torch.log_softmax(logits, 1)[range(len(chosen)), chosen],
            "returns": torch.from_numpy(returns.reshape(-1)),
        }  # fmt: skip
        for _ in range(args.update_epochs):
            order = torch.from_numpy(minibatch_rng.permutation(len(flat)))
            for index in order.split(len(order) // args.num_minibatches):
                loss, _ = script.ppo_loss(network, {name: x[index] for name, x in samples.items()}, args)
                optimizer.zero_grad()
                loss.backward()
                if args.max_grad_norm:
                    norm = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
                    for p in network.parameters():
                        p.grad.mul_((args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
                optimizer.step()
    return episodes, network


@pytest.mark.parametrize(
    "changes",
    [
        {"env_id": "CartPole-v1", "max_episode_steps": 14},  # some episodes end by themselves, some are cut
        {"env_id": "CartPole-v1", "max_episode_steps": 14, "fresh_episodes": True, "value_lambda": 0.9},
        {"env_id": "Acrobot-v1", "max_episode_steps": 20, "max_grad_norm": 0.05, "num_envs": 1, "num_steps": 64},
    ],
    ids=["cartpole", "fresh", "acrobot"],
)
def test_all_off_is_the_plain_agent_bit_for_bit(changes, tmp_path):
    args = small(tmp_path / "r", **changes, total_timesteps=512)
    script.main(args)
    episodes, network = plain_ppo(args)
    assert len(episodes) > 10 and read_scalars(tmp_path / "r")["charts/episodic_return"] == episodes
    held = saved(tmp_path / "r")["network"]
    for name, p in network.state_dict().items():
        assert torch.equal(p, held[name]), name


def test_measuring_changes_nothing(default_run, tmp_path):
    quiet = run(tmp_path / "quiet", probe=QUIET)
    run(tmp_path / "evaluated", eval_every=2, eval_episodes=2)
    evaluated, loud = recorded(tmp_path / "evaluated"), recorded(default_run)
    assert quiet["losses/value_loss"] == loud["losses/value_loss"]
    assert "elr/actor.hidden1" in loud and "elr/actor.hidden1" not in quiet
    evaluations = {tag: evaluated.pop(tag) for tag in ("eval/episodic_return", "eval/episodic_return_std")}
    assert [step for step, _ in evaluations["eval/episodic_return"]] == [128, 256]
    assert evaluated == loud
    assert_same(*(saved(d)["network"] for d in (default_run, tmp_path / "quiet")))


def test_the_same_seed_repeats_the_run_and_another_does_not(default_run, tmp_path):
    for name, seed in (("same", 1), ("other", 2)):
        run(tmp_path / name, seed=seed)
    assert recorded(default_run) == recorded(tmp_path / "same") != recorded(tmp_path / "other")
    assert_same(*(saved(d) for d in (default_run, tmp_path / "same")))


def test_projection_holds_the_hidden_layers_and_leaves_the_heads(tmp_path):
    hidden = [f"{net}.hidden{i}" for net in ("actor", "critic") for i in (1, 2, 3)]
    scalars = run(tmp_path / "r", nap=NapArgs(enabled=True), network="normalised")
    plain = run(tmp_path / "p", network="normalised")
    assert {tag for tag in scalars if tag.startswith("norms/parameter/")} == {f"norms/parameter/{n}" for n in hidden}
    for layer in hidden:
        (norms, free) = ([v for _, v in s[f"norms/parameter/{layer}"]] for s in (scalars, plain))
        assert max(norms) / min(norms) < 1 + 1e-5 < 1 + 1e-4 < max(free) / min(free)
    assert saved(tmp_path / "r")["projection"]["norms"].keys() == set(hidden)


def test_fresh_episodes_begin_with_each_iteration_and_cut_the_last_one(tmp_path, monkeypatch):
    seen, real = [], script.samples_of

    def watched(network, rollout, last_obs, args):
        seen.append((rollout.obs.copy(), rollout.returned.copy(), rollout.dones.copy(), last_obs.copy()))
        return real(network, rollout, last_obs, args)

    monkeypatch.setattr(script, "samples_of", watched)
    scalars = run(tmp_path / "r", fresh_episodes=True, num_envs=2, num_steps=32)
    means, ended = [], 0
    for obs, returned, dones, last_obs in seen:
        assert np.abs(obs[0]).max() <= 0.05  # CartPole starts there
        assert np.abs(last_obs).max() > 0.05 and not dones[-1].all()  # the last one is valued where it was cut
        each = [part.sum() for n in (0, 1) for part in np.split(returned[:, n], np.flatnonzero(dones[:, n]) + 1)]
        each = [total for total in each if total]
        means.append(np.mean(each))
        ended += dones.sum()
    assert [value for _, value in scalars["charts/iteration_return"]] == means and len(means) == 4
    assert len(scalars["charts/episodic_return"]) == ended  # one that is cut has no return of its own
    seen.clear()
    scalars = run(tmp_path / "s", num_envs=2, num_steps=32)
    assert max(np.abs(obs[0]).max() for obs, *_ in seen) > 0.05
    assert "charts/iteration_return" not in scalars


def final_return(directory, **changes):
    """Greedy return on CartPole, up to 500: the mean of 100 episodes at the end of 24,000 steps."""
    rare = {"eval_every": 1000, "eval_episodes": 100, "probe": QUIET, "directory": directory}
    script.main(Args(**{"total_timesteps": 24_000, "width": 64, **rare, **changes}))
    return read_scalars(directory)["eval/episodic_return"][-1][1]


def test_it_learns_cartpole(tmp_path):
    assert final_return(tmp_path / "r") >= 475


def test_with_advantages_of_other_steps_it_learns_nothing(tmp_path, monkeypatch):
    real, rng = script.samples_of, np.random.default_rng(0)

    def permuted(*args):
        samples, measured = real(*args)
        order = torch.from_numpy(rng.permutation(len(samples["advantages"])))
        return {**samples, "advantages": samples["advantages"][order]}, measured

    monkeypatch.setattr(script, "samples_of", permuted)
    assert final_return(tmp_path / "r") < 400  # 13 runs gave 9 to 180: the policy drifts at random


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_the_preset_baseline_solves_cartpole(seed, tmp_path):
    """At a constant rate it falls for a moment now and then: most evaluations count, and the first 40,000 steps."""
    args = script.PRESETS["baseline"].args
    script.main(dataclasses.replace(args, seed=seed, eval_every=10, eval_episodes=100, directory=tmp_path / "r"))
    evaluations = read_scalars(tmp_path / "r")["eval/episodic_return"]
    print(f"seed {seed}:", *(f"{step // 1000}k {value:.0f}" for step, value in evaluations))
    assert max(value for step, value in evaluations if step <= 40_000) >= 475
    assert np.median([value for _, value in evaluations[-10:]]) >= 475


# changes of the task


def test_the_schedule_restarts_at_a_change(tmp_path):
    scalars = run(
        tmp_path / "r", rewarm=RewarmArgs(trigger="switch"), schedule=ScheduleArgs("linear-decay", 0.0, 128),
        shift=OFFSETS,
    )  # fmt: skip
    assert [v for _, v in scalars["charts/learning_rate"]] == pytest.approx([1e-3 * f for f in (9 / 16, 1 / 16) * 2])
    assert scalars["rewarm/event"] == scalars["shift/boundary"] == [(128, 1.0)]
    assert scalars["shift/task"] == [(0, 0.0), (128, 1.0)] and "reset/event" not in scalars


def test_a_change_of_the_task_truncates_all_episodes_and_bootstraps(tmp_path, monkeypatch):
    seen, real = [], script.samples_of

    def watched(network, rollout, last_obs, args):
        seen.append((rollout.bootstrap.copy(), rollout.dones.copy()))
        return real(network, rollout, last_obs, args)

    monkeypatch.setattr(script, "samples_of", watched)
    monkeypatch.setattr(script, "value", lambda network, obs: np.full(len(obs), 100.0, dtype=np.float32))
    scalars = run(tmp_path / "r", shift=ShiftArgs("offsets", at_steps=(100,)), gamma=0.5)  # in the second iteration
    bootstrap, dones = seen[1]
    cut = 100 // 4 - 16 - 1
    assert dones[cut].all() and set(bootstrap[cut]) <= {0.0, 50.0} and (bootstrap[cut] == 50).any()
    assert not bootstrap[:cut].any() and not bootstrap[cut + 1 :].any()
    assert scalars["shift/boundary"] == [(100, 1.0)]
    since_then = [value for step, value in scalars["charts/episodic_return"] if step > 128]
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
        tmp_path / "r", shift=ShiftArgs("rotations", at_steps=(64,)), switch=asked, total_timesteps=128,
        nap=NapArgs(enabled=projected), network="normalised",
    )  # fmt: skip
    before, after = weights
    heads = {f"{net}.head.{part}" for net in ("actor", "critic") for part in ("weight", "bias")}
    expected = {"none": set(), "reset-head": heads}.get(kind, set(before))
    assert {name for name, w in after.items() if not torch.equal(w, before[name])} == expected
    state = saved(tmp_path / "r")
    for name, w in state["network"].items():
        assert not torch.equal(w, after[name]), name
    assert float(state["optimizer"]["state"][0]["step"]) == (8.0 if kind == "fresh" else 16.0)
    # What an intervention did to the features is not measured as learning.
    assert steps_of(scalars, "plasticity/delta_a/actor.relu3") == ([64, 128] if kind == "none" else [64])
    assert steps_of(scalars, "reset/event") == ([] if kind == "none" else [64])
    if projected:
        for name, held in state["projection"]["norms"].items():
            assert state["network"][f"{name}.weight"].norm() == pytest.approx(float(held), rel=1e-5)


def seed_of_a_change(at, seed=1):
    """Of the network that a change at this step draws."""
    stream = np.random.SeedSequence(seed).spawn(6)[5]
    return int(np.random.SeedSequence(seed, spawn_key=(*stream.spawn_key, at)).generate_state(1)[0])


def test_a_fresh_agent_at_a_change_is_a_newly_built_agent(tmp_path, monkeypatch, parts):
    """Weights of that seed, moments of zero, schedule and trigger at their start, norms of the new weights."""
    states, real = [], script.evaluation_world  # which is built at the start, and after what happens at a change

    def watched(env, episodes, **options):
        states.append({name: parts[name].state_dict() for name in ("network", "rewarming", "optimizer", "projection")})
        states[-1]["network"] = {name: w.clone() for name, w in states[-1]["network"].items()}
        states[-1]["optimizer"] = [
            {name: moment.clone() for name, moment in state.items()}
            for state in states[-1]["optimizer"]["state"].values()
        ]
        states[-1]["rate"] = parts["rewarming"].rate
        return real(env, episodes, **options)

    monkeypatch.setattr(script, "evaluation_world", watched)
    args = small(
        tmp_path / "r", shift=OFFSETS, switch=SwitchArgs(fresh_agent=True), nap=NapArgs(enabled=True),
        network="normalised", schedule=ScheduleArgs("warmup-cosine", 1e-5, 128), total_timesteps=320,
        rewarm=RewarmArgs("every", every_steps=96),
    )  # fmt: skip
    script.main(args)
    assert len(states) == 3
    for at, found in zip((0, 128, 256), states, strict=True):
        seed = seed_of_a_change(at) if at else int(np.random.SeedSequence(1).spawn(6)[0].generate_state(1)[0])
        expected = script.make_network(scripts.spaces(4, 2), args, seed, torch.device("cpu"))
        assert_same(dict(expected.state_dict()), found["network"])
        for state in found["optimizer"]:
            assert not any(moment.any() for moment in state.values())
        assert found["rate"] == 1e-5 and found["rewarming"]["events"] == []
        assert found["rewarming"]["updates"] == found["rewarming"]["since"] == 0
        assert found["rewarming"]["trigger"] == states[0]["rewarming"]["trigger"]
        for name, norm in found["projection"]["norms"].items():
            assert float(norm) == pytest.approx(expected.get_submodule(name).weight.detach().norm().item(), rel=1e-6)
    # 96 steps after each start, and not 96 steps after the last restart: rounded up to whole iterations
    assert steps_of(read_scalars(tmp_path / "r"), "rewarm/event") == [128, 256]
    assert len({w["actor.hidden1.weight"].sum().item() for w in (s["network"] for s in states)}) == 3


def test_evaluation_at_a_change_is_of_the_task_that_ends(tmp_path, monkeypatch):
    tasks, seeds = [], []

    def watched(env, policy, seed):
        tasks.append((env.task, env.num_envs))
        seeds.append(seed)
        return np.zeros(env.num_envs)

    monkeypatch.setattr(script, "play", watched)
    run(tmp_path / "r", shift=OFFSETS, eval_every=1, eval_episodes=2, total_timesteps=384)
    assert tasks == [(task, 2) for task in (0, 0, 1, 1, 2, 2)]
    first = int(np.random.SeedSequence(1).spawn(6)[1].generate_state(1)[0])  # of the stream "env"
    assert seeds == [first + step for step in range(64, 385, 64)]  # other episodes each time


def drift(steps):
    """The length of the pole after so many steps: 0.5, at 256 steps 1.5, at 512 steps 0.5 again."""
    return 0.5 + (steps / 256 if steps <= 256 else 2 - steps / 256)


DRIFT = ShiftArgs("physics", what="length", values=(0.5, 1.5), every_steps=256, drift=True)


def test_physics_that_drift_are_recorded_and_evaluated_as_they_are_now(tmp_path, monkeypatch):
    evaluated = []

    def watched(env, policy, seed):
        evaluated.append(env.env.physics("length"))
        return np.zeros(env.num_envs)

    monkeypatch.setattr(script, "play", watched)
    scalars = run(tmp_path / "r", shift=DRIFT, eval_every=2, total_timesteps=384)
    assert evaluated == pytest.approx([drift(step) for step in (128, 256, 384)])
    found = dict(scalars["physics/length"])
    assert found == pytest.approx({step: drift(step) for step in range(64, 385, 64)})
    assert "shift/boundary" not in scalars and "shift/task" not in scalars


def test_physics_that_jump_change_the_task(tmp_path):
    jumps = ShiftArgs("physics", what="length", values=(0.5, 1.5), every_steps=128)
    scalars = run(tmp_path / "r", shift=jumps)
    assert scalars["shift/boundary"] == [(128, 1.0)] and "physics/length" not in scalars


# triggers


def test_the_trigger_every_counts_agent_steps(tmp_path):
    scalars = run(
        tmp_path / "r", rewarm=RewarmArgs("every", every_steps=64), schedule=ScheduleArgs("linear-decay", 0.0, 128)
    )
    assert steps_of(scalars, "rewarm/event") == [64, 128, 192, 256]


def jumping(monkeypatch, at):
    """The TD errors jump by a factor after so many iterations; the signals that the trigger gets."""
    real, step, calls, signals = script.samples_of, Rewarming.step, [], []

    def noisy(*args):
        samples, measured = real(*args)
        calls.append(None)
        jump = 5.0 * (len(calls) > at)
        return samples, {**measured, "losses/squared_td_error": 1 + 0.1 * math.sin(7.0 * len(calls)) + jump}

    monkeypatch.setattr(script, "samples_of", noisy)
    monkeypatch.setattr(Rewarming, "step", lambda self, signal: signals.append(signal) or step(self, signal))
    return signals


CUSUM = RewarmArgs("cusum", block=8, burn_in=5, refractory=5)  # a block is an iteration


def test_cusum_rewarms_when_the_errors_of_new_steps_jump(tmp_path, monkeypatch):
    """What is watched is their mean square, the same for the 8 updates of an iteration."""
    signals = jumping(monkeypatch, at=12)
    scalars = run(
        tmp_path / "r", rewarm=CUSUM, schedule=ScheduleArgs("warmup-cosine", 1e-5, 512), total_timesteps=16 * 64
    )
    assert steps_of(scalars, "rewarm/event") == [13 * 64] and "reset/event" not in scalars
    assert "rewarm/statistic" in scalars
    assert signals == pytest.approx(np.repeat([1 + 0.1 * math.sin(7.0 * k) + 5 * (k > 12) for k in range(1, 17)], 8))


def test_an_alarm_of_cusum_makes_a_fresh_agent(tmp_path, monkeypatch):
    jumping(monkeypatch, at=12)
    run(
        tmp_path / "r", rewarm=CUSUM, switch=SwitchArgs(fresh_agent=True, when="trigger"), total_timesteps=16 * 64,
        shift=ShiftArgs("offsets", at_steps=(448,)),
    )  # fmt: skip
    scalars, state = read_scalars(tmp_path / "r"), saved(tmp_path / "r")
    assert steps_of(scalars, "rewarm/event") == steps_of(scalars, "reset/event") == [13 * 64]
    assert steps_of(scalars, "shift/boundary") == [448]  # which changed nothing
    assert float(state["optimizer"]["state"][0]["step"]) == state["rewarming"]["updates"] == 3 * 8
    assert state["rewarming"]["events"] == []


@pytest.mark.parametrize("when", ["change", "trigger"])
def test_an_intervention_comes_at_a_change_or_when_the_trigger_fires(when, tmp_path, monkeypatch):
    """Fired within an iteration, at its end; and neither in the last iteration, after which nothing is learned."""
    real, changed = SwitchArgs.intervene_, []

    def watched(self, network, fresh, *args, **kwargs):
        real(self, network, fresh, *args, **kwargs)
        changed.append(torch.equal(network.actor.head.weight, fresh.actor.head.weight))

    monkeypatch.setattr(SwitchArgs, "intervene_", watched)
    scalars = run(
        tmp_path / "r", rewarm=RewarmArgs("every", every_steps=160), schedule=ScheduleArgs("linear-decay", 0.0, 160),
        shift=ShiftArgs("gains", at_steps=(64, 384)), total_timesteps=640,
        switch=SwitchArgs(intervention="reset", optimizer="reset", when=when),
    )  # fmt: skip
    fired, shifted = [192, 320, 512, 640], [64, 384]
    assert steps_of(scalars, "rewarm/event") == fired and steps_of(scalars, "shift/boundary") == shifted
    assert steps_of(scalars, "reset/event") == (shifted if when == "change" else fired[:-1])
    assert changed == [True] * (2 if when == "change" else 3)
    counted = float(saved(tmp_path / "r")["optimizer"]["state"][0]["step"])
    assert counted == (640 - (384 if when == "change" else 512)) / 64 * 8
    # Returns belong to a task: they are forgotten at a change in both cases.
    since_then = [value for step, value in scalars["charts/episodic_return"] if step > 384]
    assert saved(tmp_path / "r")["returns"]["returns"] == since_then[-100:]


# killed and resumed


OWN = '''
"""An environment of one's own: noisy steps to one of two ends, with random numbers in every step."""
import gymnasium
import numpy as np


class Walk(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Discrete(3, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.normal(), 0
        return self.seen(), {}

    def seen(self):
        return np.array([self.place, self.steps / 10, self.np_random.normal()])

    def step(self, action):
        self.steps += 1
        self.place += action - 2 + 0.3 * self.np_random.normal()
        return self.seen(), 1.0 - abs(self.place), bool(abs(self.place) > 3), False, {}


gymnasium.register("Walk-v0", Walk, max_episode_steps=9)
'''


@pytest.mark.parametrize("name", BASELINES)
def test_a_method_of_intervene_acts_and_a_resumed_run_is_the_whole_one(name, tmp_path, monkeypatch):
    """Three iterations with a change before the third, stopped after the second."""
    args = BASELINES[name]
    read = {flag for method in args.methods for flag in args.READS.get(method, ())}
    read |= {"every"} if args.acts_at == "every" else set()
    sooner = {"every": 3, "maturity": 2, "rate": 0.02, "kappa": 0.9, "tau": 0.5}
    args = dataclasses.replace(args, **{flag: value for flag, value in sooner.items() if flag in read})
    changes = {"shift": ShiftArgs("offsets", at_steps=(128,)), "total_timesteps": 192, "intervene": args}
    if args.acts_at == "trigger":
        changes |= {"rewarm": RewarmArgs("every", every_steps=64)}
    whole = run(tmp_path / "whole", **changes)
    assert whole != run(tmp_path / "plain", shift=changes["shift"], total_timesteps=192)
    acted = any(method in args.ACT and method != "local-time" for method in args.methods)
    assert ("reset/event" in whole) == acted
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        scripts.stop_at(patch, 128)
        run(tmp_path / "killed", **changes)
    script.main(parse(Args, script.PRESETS, ["--resume", str(tmp_path / "killed")]))
    assert recorded(tmp_path / "killed") == recorded(tmp_path / "whole")
    scripts.assert_same(saved(tmp_path / "killed"), saved(tmp_path / "whole"))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The id of an environment in a module of its own."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_walk.py").write_text(OWN)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield "my_walk:Walk-v0"
    sys.path.remove(str(folder))
    sys.modules.pop("my_walk", None)
    gymnasium.registry.pop("Walk-v0", None)


DRIFTS = shlex.split(
    "--shift.kind physics --shift.what length --shift.values 0.5 1.5 --shift.every-steps 8000 --shift.drift"
)
# Changes at 192, 384, ... ; a checkpoint every 192 steps, so also at each change.
FLAGS = shlex.split(
    "--seed 7 --total-timesteps 768 --num-envs 4 --num-steps 16 --num-minibatches 4 --update-epochs 2 --width 16 "
    "--max-episode-steps 14 --checkpoint-every 3 --eval-every 2 --eval-episodes 2 --probe.every 20 --probe.size 16 "
    "--probe.meter-every 7"
)
LEVELS = shlex.split("--shift.every-steps 192 --shift.tasks 3")
DECAYS = shlex.split("--schedule.period-steps 192")
DETECTS = shlex.split(
    "--rewarm.block 2 --rewarm.burn-in 3 --rewarm.refractory 3 --rewarm.threshold 0.3 --rewarm.slack 0.1"
)
KILLED = {
    "plain": ("CartPole-v1", ["levels-plain", *FLAGS, *LEVELS]),
    "crelu": ("Acrobot-v1", ["levels-crelu", *FLAGS, *LEVELS, "--intervene.methods", "l2-init", "fire"]),
    "oracle": ("own", ["levels-oracle", *FLAGS, *LEVELS]),
    "nap-switch": ("Acrobot-v1", ["levels-nap-switch", *FLAGS, *LEVELS, *DECAYS, "--nap.every", "3"]),
    "nap-cusum": ("own", ["levels-nap-cusum", *FLAGS, *LEVELS, *DECAYS, *DETECTS]),
    "reset-cusum": ("CartPole-v1", ["levels-reset-cusum", *FLAGS, *LEVELS, *DETECTS]),
    "drift": ("CartPole-v1", ["nap", *FLAGS, *DRIFTS[:-2], "256", "--shift.drift"]),
}
DIE = """

def die(where: str) -> None:
    points = Path(__file__).with_suffix(".kill")
    if (left := points.read_text().split()) and left[0] == where:
        points.write_text(" ".join(left[1:]))
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
"""
SCHEDULE = "\n\n@dataclass(frozen=True)\nclass ScheduleArgs("
ACT, UPDATE, END = (
    " " * 16 + "run.step += args.num_envs\n",
    " " * 20 + "run.updates += 1\n",
    " " * 16 + "run.checkpoint()\n        run.end()",
)
DIES = (
    (SCHEDULE, DIE + SCHEDULE),
    (ACT, ACT + " " * 16 + "die(f'act{run.step}')\n"),
    (UPDATE, UPDATE + " " * 20 + "die(f'update{run.updates}')\n"),
    (END, END.replace("        run.end()", "            die(f'end{run.step}')\n        run.end()")),
)


@pytest.mark.parametrize("name", KILLED)
def test_killed_and_resumed_is_bit_identical(name, tmp_path, own):
    """In the middle of a level, right after the checkpoint at a change, and between two steps of the next level."""
    env_id, flags = KILLED[name]
    flags = [*flags, "--env-id", own if env_id == "own" else env_id]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    script.main(parse(Args, script.PRESETS, [*flags, "--directory", str(whole)]))
    copy = Path(scripts.edited(SCRIPT, tmp_path, *DIES).__file__)
    points = ["update13", "end192", "act300"]
    copy.with_suffix(".kill").write_text(" ".join(points))
    for checkpoint in (0, 192, 192):
        more = ["--resume", killed] if killed.exists() else [*flags, "--directory", killed]
        process = scripts.start(copy, *more)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == -signal.SIGKILL, output
        assert load_checkpoint(killed / "checkpoint.pt")["step"] == checkpoint
    assert not copy.with_suffix(".kill").read_text()
    script.main(parse(Args, script.PRESETS, ["--resume", str(killed)]))
    assert recorded(killed) == recorded(whole)
    assert_same(*(saved(d) for d in (whole, killed)))
    scalars = recorded(whole)
    assert steps_of(scalars, "eval/episodic_return") == [128, 256, 384, 512, 640, 768]
    assert steps_of(scalars, "shift/boundary") == ([] if name == "drift" else [192, 384, 576])
    for tag in ("rewarm/event", "reset/event"):
        expected = {
            "rewarm/event": "cusum" in name or "switch" in name,
            "reset/event": name in ("oracle", "reset-cusum", "crelu"),
        }
        assert (tag in scalars) == expected[tag], tag


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    directory = tmp_path / "r"
    process = scripts.start(SCRIPT, *FLAGS, "--total-timesteps", "1000000", "--directory", directory)
    output = scripts.kill_beyond(process, directory, 400, signal.SIGINT)
    status = read_status(directory)
    assert status["status"] == "interrupted" and process.returncode == 130
    assert f"stopped at step {status['step']}" in output and f"--resume {directory}" in output


# what goes wrong while it runs


BROKEN = {
    "reward": (40, 1, "reward is nan at step 192, update 16"),
    "observation": (40, 0, "observation is nan at step 192, update 16"),
    "last observation": (48, 0, "squared TD error is nan at step 192, update 16"),
}


@pytest.mark.parametrize(
    "more", [{}, {"norm_adv": "off", "rewarm": RewarmArgs("cusum", moments="reset", block=2, burn_in=3, refractory=3)}]
)
@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_environment_that_breaks_stops_the_run_with_one_line(what, value, more, tmp_path, monkeypatch):
    """The updates of that iteration never come, and the checkpoint is from before it."""
    at, entry, message = BROKEN[what]
    steps, real = [], ControlVectorEnv.step

    def step(self, actions):
        out = real(self, actions)
        if self.num_envs == 4:
            steps.append(None)
            if len(steps) == at:
                out[entry][1] = value
        return out

    monkeypatch.setattr(ControlVectorEnv, "step", step)
    with pytest.raises(NonFiniteError) as error, np.errstate(invalid="ignore"):
        run(tmp_path / "r", probe=QUIET, **more)
    expected = message if what == "last observation" else message.replace("nan", str(value))
    assert str(error.value).startswith(expected) and "\n" not in str(error.value)
    state = load_checkpoint(tmp_path / "r" / "checkpoint.pt")
    assert state["step"] == 128 and state["state"]["counters"] == {"updates": 16}
    assert read_status(tmp_path / "r")["status"] == "failed"


def test_an_environment_that_breaks_for_the_probe_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    real = ControlVectorEnv.step

    def step(self, actions):
        obs, *rest = real(self, actions)
        return obs * math.nan, *rest

    monkeypatch.setattr(ControlVectorEnv, "step", step)
    with pytest.raises(RunError, match="observation of a random policy is nan"):
        run(tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_nan_stops_the_run_and_leaves_the_checkpoint_from_before(tmp_path, monkeypatch):
    real, calls = script.ppo_loss, []

    def broken(network, batch, args):
        calls.append(None)
        loss, parts = real(network, batch, args)
        return (loss * math.nan if len(calls) == 28 else loss), parts

    monkeypatch.setattr(script, "ppo_loss", broken)
    with pytest.raises(NonFiniteError, match="loss is nan at step 256, update 27"):
        run(tmp_path / "r", checkpoint_every=2)
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 128


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


@pytest.mark.parametrize("name", script.PRESETS)
def test_a_preset_is_what_its_text_says(name):
    text, args = script.PRESETS[name].description, script.PRESETS[name].args
    levels = script.PRESETS["levels-plain"].args
    assert ("ten levels" in text) == args.shift.on == name.startswith("levels-")
    assert ("normalize-and-project" in text) == args.nap.enabled == ("nap" in name)
    assert (args.network == "normalised") == (args.nap.enabled or "LayerNorm" in text)
    assert ("re-warmed" in text) == (args.rewarm.on and args.schedule.kind == "warmup-cosine")
    assert ("cusum" in text.lower()) == (args.rewarm.trigger == "cusum") == name.endswith("cusum")
    assert ("at each change" in text) == (args.rewarm.trigger == "switch") == name.endswith("-switch")
    assert ("fresh agent" in text) == args.switch.fresh_agent == (name in ("levels-oracle", "levels-reset-cusum"))
    assert args.switch.at_trigger == (name == "levels-reset-cusum")
    decays = {"one decay": 0, "re-warmed": 160_000}  # over the run, or over a level
    period = next((steps for words, steps in decays.items() if words in text), None)
    expected = ScheduleArgs() if period is None else ScheduleArgs("warmup-cosine", 1e-5, period)
    assert args.schedule == expected and (args.schedule.kind == "constant" or "constant" not in text)
    # Nothing else differs: from the defaults, or from plain PPO on the same levels.
    same = ("nap", "network", "activation", "rewarm", "schedule", "switch", "intervene", "exp_name")
    base = levels if args.shift.on else Args()
    assert dataclasses.replace(base, **{field: getattr(args, field) for field in same}) == args
    assert (args.activation == "crelu") == ("CReLU" in text) == (name == "levels-crelu")
    assert args.intervene == BASELINES.get(name.removeprefix("levels-"), InterveneArgs())
    assert args.intervene.on == (text == f"ten levels, plain PPO and {name.removeprefix('levels-')}")
    # A block is the 125 updates of an iteration.
    alarm = RewarmArgs("cusum", block=125, burn_in=10, refractory=20, smoothing=0.2)
    assert args.rewarm == (alarm if "cusum" in name else RewarmArgs(args.rewarm.trigger))


def test_plain_ppo_on_levels_has_the_published_constants():
    """Muppidi et al. 2024, as Tang et al. 2025 aligned it."""
    args = script.PRESETS["levels-plain"].args
    published = {
        "total_timesteps": 10 * 200 * 800, "num_envs": 1, "num_steps": 800, "max_episode_steps": 400,
        "fresh_episodes": True, "learning_rate": 1e-3, "adam_eps": 1e-8, "gamma": 0.99, "gae_lambda": 0.95,
        "value_lambda": 1.0, "reward_scale": 20.0, "num_minibatches": 25, "update_epochs": 5, "norm_adv": "iteration",
        "clip_coef": 0.2, "ent_coef": 0.01, "vf_coef": 0.5, "max_grad_norm": 0.0, "network": "plain", "width": 256,
        "activation": "leaky-relu",
    }  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published
    assert args.iteration_steps // args.num_minibatches == 32 and args.updates(0) == 2000 * 125
    shift = {"kind": "offsets", "scale": 2.0, "tasks": 10, "every_steps": 200 * 800, "at_steps": (), "rate": 0.0}
    assert {name: getattr(args.shift, name) for name in shift} == shift
    assert args.schedule.kind == "constant" and not args.rewarm.on and not args.nap.enabled
    assert args.switch == SwitchArgs() and args.intervene == InterveneArgs() and args.env_id == "CartPole-v1"
    checked = {*published, "shift", "schedule", "rewarm", "nap", "switch", "intervene", "env_id"}
    of_every_run = {field.name for field in dataclasses.fields(RunArgs)}
    elsewhere = {"seed", "probe", "capture", "eval_every", "eval_episodes", "checkpoint_every", "record_video"}
    assert set(config_to_dict(args)) == checked | elsewhere | of_every_run


def test_levels_add_another_constant_to_each_observation():
    """Ten offsets, that of the first level 0, all others drawn from N(0, 4)."""
    args = script.PRESETS["levels-plain"].args
    env = dataclasses.replace(args.shift, every_steps=1).world(args.env_id, 1, max_episode_steps=400)
    env.reset(seed=3)
    found = [env.env.observation()[0] * 0]
    for _ in range(10):
        obs = env.step(np.array([0]))[0]
        found.append(np.round((obs - env.env.observation())[0].astype(np.float64), 5))
    assert not found[0].any() and not found[10].any() and len({tuple(one) for one in found[:10]}) == 10
    assert 1.4 < np.std(found[1:10]) < 2.6  # 36 draws: 5 standard errors are 1.2


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        # one of each group: its check is called; tests/elr/test_flags.py and tests/envs/test_shift_flags.py have all
        (["--nap.every", "5"], ["--nap.every", "--nap.enabled"]),
        (["--nap.enabled"], ["--nap.enabled", "--network normalised", "--nap.allow-scale-dependent"]),
        (["--schedule.low", "7"], ["--schedule.low", "--schedule.kind constant"]),
        (["--rewarm.block", "9"], ["--rewarm.block", "--rewarm.trigger never"]),
        (["--probe.every", "0", "--probe.size", "9"], ["--probe.size", "--probe.every 0"]),
        (["--shift.every-steps", "9"], ["--shift.every-steps", "--shift.kind none"]),
        (["--switch.optimizer", "reset"], ["--switch.optimizer", "--shift.kind none"]),
        # where groups meet the script's numbers
        (["--schedule.kind", "cyclic", "--schedule.low", "1"], ["--schedule.low", "--learning-rate"]),
        (["levels-nap-switch", "--schedule.period-steps", "-1"], ["--schedule.period-steps", "got -1"]),
        (
            ["--schedule.kind", "cyclic", "--rewarm.trigger", "every", "--rewarm.every-steps", "799"],
            ["--rewarm.every-steps", "800", "799"],
        ),
        (["levels-nap-cusum", "--rewarm.burn-in", "200"], ["--rewarm.burn-in", "200 blocks x 125", "25000 updates"]),
        (["levels-nap-cusum", "--shift.every-steps", "16000"], ["--rewarm.refractory", "20 blocks", "2500 updates"]),
        (["levels-nap-switch", "--schedule.kind", "constant"], ["--schedule.low", "--schedule.kind constant"]),
        (["levels-plain", "--shift.every-steps", "799"], ["799 steps apart", "--num-envs 1 and --num-steps 800"]),
        # what happens when the trigger fires
        (["levels-oracle", "--switch.when", "trigger"], ["--switch.when trigger", "--rewarm.trigger never"]),
        (["levels-nap-switch", "--switch.when", "trigger"], ["--switch.when trigger", "--rewarm.trigger switch"]),
        (
            ["--rewarm.trigger", "every", "--switch.when", "trigger"],
            ["--switch.when trigger", "--switch.fresh-agent, --switch.intervention or"],
        ),
        (["levels-reset-cusum", "--switch.optimizer", "reset"], ["--switch.optimizer reset", "--switch.fresh-agent"]),
        (["levels-oracle", "--rewarm.trigger", "switch"], ["--rewarm.trigger switch", "--schedule.kind constant"]),
        # physics
        (["--shift.kind", "physics", "--shift.every-steps", "9000"], ["--shift.kind physics", "--shift.what"]),
        (["levels-plain", "--shift.drift"], ["--shift.drift", "--shift.kind offsets"]),
        (["levels-plain", "--shift.what", "length"], ["--shift.what length", "--shift.kind offsets"]),
        ([*DRIFTS[:7], "--shift.at-steps", "8000", "--shift.drift"], ["--shift.drift", "--shift.at-steps (8000,)"]),
        ([*DRIFTS[:7], "--shift.rate", "0.01", "--shift.drift"], ["--shift.drift", "--shift.rate 0.01"]),
        ([*DRIFTS, "--switch.optimizer", "reset"], ["--switch.optimizer reset", "--shift.drift"]),
        ([*DRIFTS, "--switch.fresh-agent"], ["--switch.fresh-agent", "--shift.drift"]),
        ([*DRIFTS, "--shift.scale", "3.0"], ["--shift.scale 3.0", "--shift.kind physics"]),
        ([*DRIFTS, "--shift.tasks", "3"], ["--shift.tasks 3", "--shift.kind physics"]),
        (
            shlex.split("levels-nap-switch --shift.every-steps 8000 --total-timesteps 24000"),  # rises for 16,000
            ["--rewarm.trigger switch", "--schedule.period-steps", "--schedule.warmup-frac", "after 8000"],
        ),
        (
            ["levels-nap-switch", "--shift.every-steps", "159200"],
            ["--rewarm.trigger switch", "every 159200 steps", "--schedule.period-steps 160000", "give 1 to 159200"],
        ),
        # the script's own
        (["--num-minibatches", "7"], ["--num-minibatches 7", "--num-envs 8", "--num-steps 100"]),
        (["--num-minibatches", "800", "--norm-adv", "minibatch"], ["--num-minibatches 800", "--norm-adv minibatch"]),
        (["--num-envs", "1", "--num-steps", "1", "--num-minibatches", "1"], ["--num-steps 1", "--norm-adv iteration"]),
        (["--gamma", "1.0"], ["--gamma 1.0"]),
        (["--gae-lambda", "1.1"], ["--gae-lambda", "1.1"]),
        (["--value-lambda", "-0.1"], ["--value-lambda", "-0.1"]),
        (["--reward-scale", "0"], ["--reward-scale"]),
        (["--ent-coef", "-1"], ["--ent-coef"]),
        (["--max-grad-norm", "-1"], ["--max-grad-norm"]),
        (["levels-redo", "--activation", "crelu"], ["--intervene.methods redo and --activation crelu"]),
        (["levels-crelu", "--intervene.methods", "continual-backprop"], ["continual-backprop and --activation crelu"]),
        (["--max-episode-steps", "-1"], ["--max-episode-steps"]),
        (["--width", "0"], ["--width"]),
        (["--device", "abacus"], ["--device", "abacus"]),
        (["--eval-every", "0", "--eval-episodes", "9"], ["--eval-episodes", "--eval-every 0"]),
        (["levels-plian"], ["levels-plain"]),
        (["--learning-rat", "1"], ["--learning-rat"]),
    ],
)
def test_conflicting_and_mistyped_flags_are_refused_by_name(flags, named, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Args, script.PRESETS, flags)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in named), message


def test_what_is_next_to_a_refusal_is_accepted():
    for flags in (
        DRIFTS,
        [*DRIFTS[:-2], "100", "--shift.drift"],  # a drift has no changes that could come too fast
        ["--nap.enabled", "--nap.allow-scale-dependent"],
        ["--num-minibatches", "800"],
        ["--num-minibatches", "800", "--norm-adv", "off"],
        ["levels-plain", "--shift.every-steps", "800"],
        shlex.split("levels-nap-switch --shift.every-steps 0 --shift.at-steps 160000 176800"),  # rises for 16,000
        ["--shift.kind", "offsets", "--shift.rate", "0.01"],  # several may come in an iteration
        shlex.split("--rewarm.trigger every --switch.when trigger --switch.optimizer reset"),  # without a change
    ):
        parse(Args, script.PRESETS, flags)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"env_id": "CartPole-v9"}, "unknown environment 'CartPole-v9'. Did you mean CartPole-v1"),
        ({"env_id": "no_such_module:Walk-v0"}, "the module 'no_such_module' cannot be imported"),
        ({"env_id": "MountainCarContinuous-v0"}, "continuous actions"),
        ({"env_id": "MinAtar/Breakout-v1"}, "agents/ppo_minatar.py"),
        ({"env_id": "ALE/Pong-v5"}, "agents/ppo_atari.py"),
        ({"env_id": "Images-v0"}, r"observations Box\(0, 255, \(4, 4, 3\), uint8\), but a flat Box"),
        ({"env_id": "FrozenLake-v1"}, r"observations Discrete\(16\), but a flat Box"),
        ({"shift": dataclasses.replace(DRIFT, what="lenght")}, "lenght.*it has: gravity"),
        ({"shift": dataclasses.replace(DRIFT, every_steps=3)}, "--shift: the period must be at least the 4"),
        ({"schedule": ScheduleArgs("cyclic", low=-1.0)}, "--schedule"),
        ({"probe": ProbeArgs(tau=2.0)}, "--probe"),
        ({"seed": -1}, "--seed"),
    ],
)  # fmt: skip
def test_what_a_library_refuses_is_one_line_before_anything_is_written(changes, named, tmp_path):
    class Images(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)
        action_space = gymnasium.spaces.Discrete(2)

    gymnasium.register("Images-v0", Images)
    try:
        with pytest.raises(RunError, match=named) as error:
            run(tmp_path / "r", **changes)
    finally:
        del gymnasium.registry["Images-v0"]
    assert not (tmp_path / "r").exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("when", [{"at_steps": (50, 130)}, {"rate": 0.05}])
def test_a_change_in_the_last_iteration_is_recorded_but_not_one_at_the_end(when, tmp_path):
    """140 steps are three iterations, 192 steps."""
    switch = SwitchArgs(intervention="reset")
    scalars = run(tmp_path / "r", total_timesteps=140, shift=ShiftArgs("offsets", **when), switch=switch)
    steps = steps_of(scalars, "shift/boundary")
    assert read_status(tmp_path / "r")["step"] == 192 and max(steps) < 192
    assert steps == [52, 132] if "at_steps" in when else max(steps) > 140
    assert dict(scalars["shift/task"]).keys() == {0, *steps}
    assert steps_of(scalars, "reset/event") == ([64] if "at_steps" in when else [64, 128])  # once per iteration
