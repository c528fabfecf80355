"""The shipped PPO for Atari: network, flags, presets, what is learned from, resuming; all off is plain PPO bit for bit.

Estimates and loss are those of ppo_minatar.py, word for word (test_same.py), and tested in test_ppo_minatar.py. That
the agent learns is tested in test_catch_learning.py.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from agents import ppo_atari as script
from agents.ppo_atari import ActorCritic, Args, NapArgs, ProbeArgs, RewarmArgs, ScheduleArgs, ShiftArgs, SwitchArgs
from elr.fast.flat_adam import FlatAdam
from elr.projection import Projection
from envs.worlds import ScreenWorld
from runs.recording import NonFiniteError, RunError, load_checkpoint, parse, read_scalars, read_status
from runs.recording.video import MAX_FRAMES
from tests.agents import scripts
from tests.agents.scripts import assert_same

CONSTANT = ScheduleArgs(kind="constant")
NAP = {"nap": NapArgs(enabled=True), "network": "normalised"}
TINY = {
    "env_id": "rewarm/Catch-v0", "total_timesteps": 128, "num_envs": 2, "num_steps": 16, "num_minibatches": 2,
    "update_epochs": 2, "eval_every": 0, "probe": ProbeArgs(every=1000, size=8, meter_every=0), "checkpoint_every": 100,
}  # fmt: skip
MEASURED = ProbeArgs(every=8, size=8, meter_every=3)


def tiny(directory, **changes):
    return Args(**{**TINY, "directory": directory, **changes})


def run(directory, **changes):
    script.main(tiny(directory, **changes))
    return read_scalars(directory)


def saved(directory):
    return load_checkpoint(directory / "checkpoint.pt")["state"]


def recorded(directory):
    """Every scalar except the speed."""
    return {tag: rows for tag, rows in read_scalars(directory).items() if tag != "charts/SPS"}


def watched(monkeypatch):
    """What each iteration learns from: rewards and dones [T, N]."""
    seen, real = [], script.gae

    def gae(rewards, values, dones, *rest):
        seen.append((rewards.copy(), dones.copy()))
        return real(rewards, values, dones, *rest)

    monkeypatch.setattr(script, "gae", gae)
    return seen


# network


@pytest.mark.parametrize("normalised", [False, True])
def test_the_network_is_the_published_one_and_starts_as_published(normalised):
    network = ActorCritic(4, 6, normalised)
    weights = {name: w.detach() for name, w in network.named_parameters() if name.endswith("weight") and w.dim() > 1}
    assert {n.split(".")[0]: tuple(w.shape) for n, w in weights.items() if "_norm" not in n} == {
        "conv1": (32, 4, 8, 8), "conv2": (64, 32, 4, 4), "conv3": (64, 64, 3, 3), "hidden": (512, 3136),
        "actor": (6, 512), "critic": (1, 512),
    }  # fmt: skip
    for name, gain in (("conv1", 2), ("conv2", 2), ("conv3", 2), ("hidden", 2), ("actor", 1e-4), ("critic", 1.0)):
        w = weights[f"{name}.weight"].flatten(1)
        assert torch.allclose(w @ w.T, gain * torch.eye(len(w)), atol=1e-5 * gain), name
        bias = getattr(network, name).bias
        assert bias is None if normalised and name not in network.heads else not bias.any()
    plain = 8224 + 32832 + 36928 + 1606144 + 7 * 513
    offsets = 2 * (32 * 20 * 20 + 64 * 9 * 9 + 64 * 7 * 7 + 512) - (32 + 64 + 64 + 512)
    assert sum(p.numel() for p in network.parameters()) == plain + normalised * offsets


@pytest.mark.parametrize("normalised", [False, True])
def test_the_network_computes_what_is_written_of_it(normalised):
    """Frames / 255, convolution, LayerNorm or bias, ReLU; whatever the order in which pixels lie in memory."""
    network = ActorCritic(4, 3, normalised).double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    obs = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = obs.double() / 255
    for i, stride in ((1, 4), (2, 2), (3, 1)):
        conv, norm = getattr(network, f"conv{i}"), getattr(network, f"conv{i}_norm")
        x = F.conv2d(x, conv.weight, conv.bias, stride)
        if normalised:
            x = F.layer_norm(x, x.shape[1:], norm.weight, norm.bias)
        x = x.clamp(min=0).contiguous()
    x = F.linear(x.reshape(2, -1), network.hidden.weight, network.hidden.bias)
    if normalised:
        x = F.layer_norm(x, (512,), network.hidden_norm.weight, network.hidden_norm.bias)
    x = x.clamp(min=0)
    logits, values = network(obs)
    torch.testing.assert_close(logits, F.linear(x, network.actor.weight, network.actor.bias))
    torch.testing.assert_close(values, F.linear(x, network.critic.weight, network.critic.bias)[:, 0])
    assert (x > 0).any() and logits.std() > 0


# training


def plain_ppo(args):
    """PPO written out plainly, with the same random streams."""
    streams = np.random.SeedSequence(args.seed).spawn(6)
    init, env_seed = (int(s.generate_state(1)[0]) for s in streams[:2])
    minibatch_rng, action_rng = (np.random.default_rng(s) for s in streams[3:5])
    torch.manual_seed(init)
    network = ActorCritic(4, 3)
    optimizer = FlatAdam(list(network.parameters()), lr=2.5e-4, eps=1e-5)  # Adam, see tests/elr
    env = ScreenWorld([args.env_id], args.num_envs).make()
    obs, _ = env.reset(seed=env_seed)
    episodes, total = [], args.total_timesteps // (args.num_envs * args.num_steps)
    for iteration in range(total):
        memory = []
        for t in range(args.num_steps):
            with torch.no_grad():
                logits, values = network(torch.from_numpy(obs))
            logprobs = F.log_softmax(logits, 1).numpy()
            actions = (logprobs + action_rng.gumbel(size=logprobs.shape)).argmax(1)
            next_obs, rewards, _, truncated, infos = env.step(actions)  # Catch is never terminated
            if truncated.any():
                with torch.no_grad():
                    rewards = rewards + 0.99 * network(torch.from_numpy(infos["final_obs"]))[1].numpy() * truncated
            chosen = logprobs[np.arange(len(actions)), actions]
            memory.append((obs, actions, chosen, values.numpy(), rewards.astype(np.float32), truncated))
            obs = next_obs
            if "episode" in infos:
                step = (iteration * args.num_steps + t + 1) * args.num_envs
                episodes += [(step, float(infos["episode"]["r"][i])) for i in np.flatnonzero(infos["_episode"])]
        o, a, old, v, r, d = (np.stack(x) for x in zip(*memory, strict=True))
        with torch.no_grad():
            last = network(torch.from_numpy(obs))[1].numpy()
        advantages, _ = script.gae(r, v, d, last, 0.99, 0.95)
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
                    p.grad.mul_((0.5 / (norm + 1e-6)).clamp(max=1.0))
                optimizer.step()
    return episodes, network


def test_all_off_is_the_plain_agent_bit_for_bit(tmp_path):
    """Past the end of the first episodes, which a time limit truncates."""
    args = tiny(tmp_path / "r", schedule=CONSTANT, num_steps=60, total_timesteps=240, update_epochs=1)
    script.main(args)
    episodes, network = plain_ppo(args)
    assert len(episodes) == 2 and read_scalars(tmp_path / "r")["charts/episodic_return"] == episodes
    held = saved(tmp_path / "r")["network"]
    for name, p in network.state_dict().items():
        assert torch.equal(p, held[name]), name


def test_measuring_changes_nothing(tmp_path):
    quiet = run(tmp_path / "a", probe=ProbeArgs(every=0, meter_every=0), total_timesteps=64)
    loud = run(tmp_path / "b", eval_every=2, eval_episodes=2, probe=MEASURED, total_timesteps=64)
    assert quiet["losses/value_loss"] == loud["losses/value_loss"]
    assert_same(*(saved(tmp_path / name)["network"] for name in "ab"))
    assert len(loud["eval/episodic_return"]) == 1 and "elr/conv1" not in quiet
    for layer in ("conv1", "conv2", "conv3", "hidden"):
        assert len(loud[f"elr/{layer}"]) == 3  # of 8 updates
    assert "plasticity/flipped_fraction/conv1_relu" in loud and "plasticity/srank/hidden_relu" in loud


def test_a_video_of_each_evaluation_changes_no_number(tmp_path, monkeypatch):
    evaluations = {"eval_every": 3, "eval_episodes": 2}
    run(tmp_path / "bare", **evaluations)
    lengths, play = [], script.play

    def watched(env, policy, seed):
        returns = play(env, policy, seed)
        lengths.append(len(env.frames))
        return returns

    monkeypatch.setattr(script, "play", watched)
    run(tmp_path / "filmed", record_video=True, **evaluations)
    assert recorded(tmp_path / "filmed") == recorded(tmp_path / "bare")
    assert_same(*(saved(tmp_path / name) for name in ("bare", "filmed")))
    assert scripts.videos(tmp_path / "filmed") == dict(zip(("step-96.gif", "step-128.gif"), lengths, strict=True))
    assert min(lengths) > 1 and not (tmp_path / "bare" / "video").exists()
    assert f"its first {MAX_FRAMES:,} steps" in inspect.getsource(Args)


def test_projection_holds_the_trunk_and_leaves_the_heads(tmp_path):
    changes = {"schedule": CONSTANT, "probe": MEASURED, "total_timesteps": 96, "learning_rate": 2.5e-3}
    scalars = run(tmp_path / "r", **changes, **NAP)
    plain = run(tmp_path / "p", network="normalised", **changes)
    for layer in ("conv1", "conv2", "conv3", "hidden"):
        norms = [v for _, v in scalars[f"norms/parameter/{layer}"]]
        assert max(norms) / min(norms) < 1 + 1e-5
        free = [v for _, v in plain[f"norms/parameter/{layer}"]]
        assert max(free) / min(free) > 1 + 2e-4
    assert "norms/parameter/actor" not in scalars
    held = saved(tmp_path / "r")["network"]
    assert held["actor.weight"].norm() > 1.02 * 0.01 * 3**0.5  # three orthogonal rows of norm 0.01 at the start


def test_the_rate_is_annealed_over_the_whole_run_and_restarts_at_a_change(tmp_path):
    scalars = run(tmp_path / "a", num_steps=8, total_timesteps=64)  # 4 iterations of 4 updates
    rates = [v for _, v in scalars["charts/learning_rate"]]
    assert rates == pytest.approx([2.5e-4 * (1 - (4 * k - 1) / 16) for k in (1, 2, 3, 4)])
    scalars = run(
        tmp_path / "b", rewarm=RewarmArgs(trigger="switch"), schedule=ScheduleArgs(period_steps=32),
        shift=ShiftArgs(kind="actions", every_steps=32), num_steps=8,
        total_timesteps=64,
    )  # fmt: skip
    assert [v for _, v in scalars["charts/learning_rate"]] == pytest.approx([2.5e-4 * f for f in (5 / 8, 1 / 8) * 2])
    assert scalars["rewarm/event"] == scalars["shift/boundary"] == [(32, 1.0)]


def test_evaluation_at_a_change_is_of_the_task_that_ends(tmp_path, monkeypatch):
    tasks = []

    def play(env, policy, seed):
        tasks.append((env.env.task, env.num_envs))
        return np.zeros(env.num_envs)

    monkeypatch.setattr(script, "play", play)
    shift = ShiftArgs(kind="pixels", every_steps=64, tasks=3)
    run(tmp_path / "r", shift=shift, eval_every=1, eval_episodes=3, total_timesteps=160, update_epochs=1)
    assert tasks == [(task, 3) for task in (0, 0, 1, 1, 2)]


def test_a_fresh_agent_knows_nothing_of_the_first_task(tmp_path, monkeypatch):
    """Two that share no more than the seed have the same network after the change."""
    left, real = [], SwitchArgs.intervene_

    def intervene_(self, network, *args, **kwargs):
        real(self, network, *args, **kwargs)
        left.append({name: w.clone() for name, w in network.state_dict().items()})

    monkeypatch.setattr(SwitchArgs, "intervene_", intervene_)
    for name, epochs in (("a", 1), ("b", 2)):
        run(
            tmp_path / name, shift=ShiftArgs(kind="noise", at_steps=(64,), values=(0.0, 0.1)), update_epochs=epochs,
            switch=SwitchArgs(fresh_agent=True), total_timesteps=96, **NAP,
        )  # fmt: skip
        state = saved(tmp_path / name)
        assert float(state["optimizer"]["state"][0]["step"]) == state["rewarming"]["updates"] == 2 * epochs
        for layer, norm in state["projection"]["norms"].items():
            assert float(left[-1][f"{layer}.weight"].double().norm()) == pytest.approx(norm, rel=1e-5)
    assert_same(*left)


def test_a_change_clears_the_returns_and_what_the_probe_compares_with(tmp_path):
    """Three iterations of 2 updates; the first episodes end in the second, and the task changes at its end."""
    scalars = run(
        tmp_path / "r", shift=ShiftArgs("actions", at_steps=(240,)), switch=SwitchArgs(intervention="reset-head"),
        num_steps=60, total_timesteps=360, update_epochs=1, probe=ProbeArgs(every=2, size=8, meter_every=0),
    )  # fmt: skip
    assert [step > 240 for step, _ in scalars["charts/episodic_return"]] == [False, False]
    assert saved(tmp_path / "r")["returns"]["returns"] == []
    assert [step for step, _ in scalars["plasticity/feature_norm/hidden_relu"]] == [0, 120, 240, 360]
    assert [step for step, _ in scalars["plasticity/delta_a/hidden_relu"]] == [120, 240]


def test_the_same_seed_repeats_the_run_and_another_does_not(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(tmp_path / name, seed=seed, total_timesteps=64, probe=MEASURED)
    a, b, c = (recorded(tmp_path / name) for name in "abc")
    assert a == b and a.keys() == c.keys()
    assert a["losses/policy_loss"] != c["losses/policy_loss"]
    assert (
        a["plasticity/effective_rank/hidden_relu"][0] != c["plasticity/effective_rank/hidden_relu"][0]
    )  # init and probe
    assert_same(*(saved(tmp_path / name) for name in "ab"))


# what is learned from


@pytest.mark.parametrize("clip", [True, False])
def test_rewards_are_clipped_for_learning_and_counted_as_they_are(tmp_path, monkeypatch, clip):
    """Catch with rewards of 5."""
    seen = watched(monkeypatch)
    monkeypatch.setattr(script, "value", lambda network, obs: np.zeros(len(obs), dtype=np.float32))
    shift = ShiftArgs("rewards", at_steps=(239,), values=(5.0, -1.0))
    scalars = run(
        tmp_path / "r", shift=shift, clip_rewards=clip, num_steps=120, total_timesteps=240, update_epochs=1,
        num_minibatches=20,
    )  # fmt: skip
    returns = [value for _, value in scalars["charts/episodic_return"]]
    assert len(returns) == 2 and all(value % 5 == 0 for value in returns) and any(returns)
    assert set(np.abs(seen[0][0]).ravel().tolist()) == ({0.0, 1.0} if clip else {0.0, 5.0})


def test_what_a_truncated_step_is_worth_is_not_clipped(tmp_path, monkeypatch):
    seen = watched(monkeypatch)
    monkeypatch.setattr(script, "value", lambda network, obs: np.full(len(obs), 100.0, dtype=np.float32))
    run(tmp_path / "r", shift=ShiftArgs(kind="actions", at_steps=(20,)), total_timesteps=32, update_epochs=1)
    ((rewards, dones),) = seen
    assert dones[9].all() and dones.sum() == 2  # after 20 steps of two environments
    assert rewards[9] == pytest.approx(99 + np.round(rewards[9] - 99)) and rewards[9].max() > 98
    assert np.abs(np.delete(rewards, 9, 0)).max() <= 1


@pytest.mark.parametrize("protocol", ["classic", "machado"])
def test_only_in_the_classic_protocol_a_lost_life_ends_the_return(tmp_path, monkeypatch, protocol):
    """Breakout: the game continues, and its episode is recorded as one, of all its lives."""
    seen, told, real, env_rules = watched(monkeypatch), [], ShiftArgs.world, []

    def world(self, env_id, num_envs, **how):
        env = real(self, env_id, num_envs, **how)
        step = env.step

        def watch(actions):
            out = step(actions)
            told.append((out[2] | out[3], out[4].get("life_lost", np.zeros(num_envs, dtype=bool))))
            return out

        env.step = watch
        env_rules.append(env.env.rules)
        return env

    monkeypatch.setattr(ShiftArgs, "world", world)
    # the agent does nothing but fire, and never moves
    fire = lambda network, obs, rng: (np.ones(len(obs), dtype=np.int64), *np.zeros((2, len(obs)), np.float32))  # noqa: E731
    monkeypatch.setattr(script, "act", fire)
    scalars = run(
        tmp_path / "r", env_id="ALE/Breakout-v5", protocol=protocol, num_steps=160, total_timesteps=320,
        num_minibatches=20, update_epochs=1,
    )  # fmt: skip
    classic = protocol == "classic"
    assert env_rules[0]["sticky_action_prob"] == (0.0 if classic else 0.25)
    assert env_rules[0]["noop_max"] == (30 if classic else 0)
    over, lost = (np.stack(part) for part in zip(*told[-160:], strict=True))
    assert lost.sum() >= 4 and not (lost & over).any()
    ((_, dones),) = seen
    assert np.array_equal(dones, over | lost if classic else over)
    assert len(scalars.get("charts/episodic_return", [])) == over.sum() >= 1
    first = np.argwhere(over)[0]
    assert lost[: first[0], first[1]].sum() == 4 and scalars["charts/episodic_length"][0][1] == first[0] + 1


# resuming

PONG = shlex.split(
    "adaptive --seed 11 --total-timesteps 160 --num-envs 2 --num-steps 16 --num-minibatches 2 --update-epochs 1 "
    "--protocol classic --shift.kind sticky --shift.values 0.1 0.5 --shift.rate 0.015 --schedule.period-steps 100 "
    "--rewarm.block 1 --rewarm.burn-in 3 --rewarm.refractory 3 --rewarm.threshold 0.05 --rewarm.slack 0.01 "
    "--switch.intervention shrink-and-perturb --nap.every 3 --checkpoint-every 1 --eval-every 0 "
    "--probe.every 5 --probe.size 8 --probe.meter-every 3"
)


def test_killed_and_resumed_is_bit_identical(tmp_path):
    """Pong, killed in the middle of an episode and of a task: emulators and wrappers are saved."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    script.main(parse(Args, script.PRESETS, [*PONG, "--directory", str(whole)]))
    process = scripts.start(Path(script.__file__), *PONG, "--directory", killed)
    scripts.kill_beyond(process, killed, 40, signal.SIGKILL)
    cut = read_status(killed)["step"]
    script.main(parse(Args, script.PRESETS, ["--resume", str(killed)]))
    assert 40 < cut < 160 and recorded(killed) == recorded(whole)
    assert any(step > cut for step, _ in recorded(whole)["shift/boundary"]) and "rewarm/event" in recorded(whole)
    assert_same(*(saved(d) for d in (whole, killed)))


def test_with_threads_a_resumed_run_starts_new_episodes(tmp_path, monkeypatch, capsys):
    args = tiny(tmp_path / "r", env_id="ALE/Pong-v5", env_threads=1, total_timesteps=192, update_epochs=1)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        scripts.stop_at(patch, 96)  # after the third iteration
        script.main(args)
    assert stop.value.code == 130
    status = read_status(tmp_path / "r")
    assert status["status"] == "interrupted" and status["step"] == 96
    out = capsys.readouterr().out
    assert "stopped at step 96" in out and f"--resume {tmp_path / 'r'}" in out
    assert saved(tmp_path / "r")["env"]["env"]["lengths"].tolist() == [48, 48]
    first, real = [], script.act
    monkeypatch.setattr(script, "act", lambda network, obs, rng: first.append(obs) or real(network, obs, rng))
    script.main(parse(Args, script.PRESETS, ["--resume", str(tmp_path / "r")]))
    state = saved(tmp_path / "r")["env"]
    assert state["env"]["resumptions"] == 1 and state["env"]["lengths"].tolist() == [48, 48]
    assert not first[0][:, :3].any() and first[0][:, 3].any()  # an episode's first stack
    assert "--env-threads 1: emulators cannot be saved, so new episodes start" in capsys.readouterr().out
    assert read_status(tmp_path / "r")["status"] == "finished"


def test_nan_stops_the_run_and_leaves_the_checkpoint_from_before(tmp_path, monkeypatch):
    real, calls = script.ppo_loss, []

    def broken(network, batch, args):
        calls.append(None)
        loss, parts = real(network, batch, args)
        return (loss * math.nan if len(calls) == 7 else loss), parts

    monkeypatch.setattr(script, "ppo_loss", broken)
    with pytest.raises(NonFiniteError, match="loss is nan at step 64, update 6"):
        run(tmp_path / "r", checkpoint_every=1)
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 32


# flags


def test_every_flag_is_read():
    assert scripts.unread_flags(script) == []


def test_the_defaults_are_those_published():
    """PPO for Atari, Huang et al. 2022: 10 million steps, 40 million frames."""
    published = {
        "total_timesteps": 10_000_000, "learning_rate": 2.5e-4, "adam_eps": 1e-5, "num_envs": 8, "num_steps": 128,
        "gamma": 0.99, "gae_lambda": 0.95, "num_minibatches": 4, "update_epochs": 4, "norm_adv": True,
        "clip_coef": 0.1, "clip_vloss": True, "ent_coef": 0.01, "vf_coef": 0.5, "max_grad_norm": 0.5,
        "clip_rewards": True, "network": "plain",
    }  # fmt: skip
    args = Args()
    assert {name: getattr(args, name) for name in published} == published
    assert args.schedule == ScheduleArgs("linear-decay", 0.0, 0) and not args.nap.enabled
    assert args.protocol == "machado" and args.env_threads == 0


def test_every_preset_is_valid_and_differs():
    assert parse(Args, script.PRESETS, ["chain-cusum", "--seed", "5"]) == dataclasses.replace(
        script.PRESETS["chain-cusum"].args, seed=5
    )
    parsed = {name: preset.args for name, preset in script.PRESETS.items()}
    assert all(args.exp_name == name for name, args in parsed.items())
    assert len({repr(dataclasses.replace(args, exp_name="")) for args in parsed.values()}) == len(parsed) == 13
    assert dataclasses.replace(parsed["baseline"], exp_name="ppo") == Args()
    assert {name for name, args in parsed.items() if args.nap.enabled} == {
        "nap", "nap-constant", "nap-cyclic", "adaptive", "chain-nap", "chain-switch", "chain-cusum", "catch"
    }  # fmt: skip
    assert all((args.network == "normalised") == args.nap.enabled for args in parsed.values())
    chains = [args for name, args in parsed.items() if name.startswith("chain-")]
    assert len({(args.env_id, args.shift, args.total_timesteps) for args in chains}) == 1
    shift, iteration = chains[0].shift, chains[0].num_envs * chains[0].num_steps
    assert shift.every_steps % iteration == 0 and chains[0].total_timesteps == 6 * shift.every_steps


def test_the_environments_of_the_presets_exist():
    for name, actions in (("baseline", 6), ("chain-plain", 18), ("catch", 3)):
        args = script.PRESETS[name].args
        env = args.shift.world(args.env_id, 1, protocol=args.protocol, threads=args.env_threads)
        assert env.single_observation_space.shape == (4, 84, 84) and env.single_action_space.n == actions


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        # one of each group: its check is called; tests/elr/test_flags.py and tests/envs/test_shift_flags.py have all
        (["--nap.every", "5"], ["--nap.every", "--nap.enabled"]),
        (["--nap.enabled"], ["--nap.enabled", "--network normalised"]),
        (["--schedule.cycles", "7"], ["--schedule.cycles", "--schedule.kind linear-decay"]),
        (["--rewarm.block", "9"], ["--rewarm.block", "--rewarm.trigger never"]),
        (["--probe.every", "0", "--probe.size", "9"], ["--probe.size", "--probe.every 0"]),
        (["--switch.optimizer", "reset"], ["--switch.optimizer", "--shift.kind none"]),
        (["catch", "--env-threads", "2"], ["--env-threads", "--env-id rewarm/Catch-v0"]),
        (
            ["--shift.kind", "rewards", "--shift.values", "1", "10", "--shift.every-steps", "5000"],
            ["--shift.values (1.0, 10.0)", "--clip-rewards"],
        ),
        (["--shift.kind", "channels", "--shift.every-steps", "5000"], ["--shift.kind"]),
        # where groups meet the script's numbers
        (["--schedule.low", "1"], ["--schedule.low", "--learning-rate"]),
        (["--rewarm.trigger", "every", "--rewarm.every-steps", "1023"], ["--rewarm.every-steps", "1024", "1023"]),
        (["adaptive", "--rewarm.burn-in", "2000"], ["--rewarm.burn-in", "2000 blocks x 128"]),
        (["chain-cusum", "--shift.every-steps", "262144"], ["--rewarm.refractory", "4096 updates between"]),
        (
            ["nap-cyclic", "--rewarm.trigger", "every", "--rewarm.every-steps", "2000000"],
            ["--rewarm.every-steps 2000000", "--schedule.period-steps 1000000"],
        ),
        (["chain-plain", "--shift.every-steps", "1023"], ["1023 steps apart", "--num-envs 8 and --num-steps 128"]),
        # the script's own
        (["--num-minibatches", "7"], ["--num-minibatches 7", "--num-envs 8", "--num-steps 128"]),
        (["--num-envs", "1", "--num-steps", "4"], ["--num-minibatches 4", "--norm-adv"]),
        (["--gamma", "1.0"], ["--gamma 1.0"]),
        (["--ent-coef", "-1"], ["--ent-coef"]),
        (["--env-threads", "-1"], ["--env-threads"]),
        (["--device", "abacus"], ["--device", "abacus"]),
        (["--eval-every", "0", "--eval-episodes", "9"], ["--eval-episodes", "--eval-every 0"]),
        (["--eval-every", "0", "--record-video"], ["--record-video", "--eval-every 0"]),
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
    if not any(name in message for name in ("Unrecognized options", "Invalid choice")):  # the parser's own words
        assert "\n" not in message.strip()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"env_id": "ALE/Pongg-v5"}, "ALE/Pong-v5"),
        ({"env_id": "ALE/Pong-v5", "shift": ShiftArgs("modes", every_steps=64, values=(0, 77))}, "no mode 77"),
        ({"network": "normalised", "nap": NapArgs(enabled=True, gain_strength=1.0)}, "--nap"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_what_a_library_refuses_is_one_line_before_anything_is_written(changes, named, tmp_path):
    with pytest.raises(RunError, match=named) as error:
        run(tmp_path / "r", **changes)
    assert not (tmp_path / "r").exists() and "\n" not in str(error.value)


# bf16


def test_a_run_in_bf16_is_projected_and_measured_like_any_other(tmp_path):
    for bf16 in (False, True):
        run(tmp_path / str(bf16), bf16=bf16, probe=MEASURED, **NAP)
    scripts.assert_projected_in_bf16(tmp_path / "False", tmp_path / "True", "network")


def test_scale_invariance_is_checked_in_float32(tmp_path, monkeypatch):
    """At the start, and again at a change that resets the network: bfloat16's rounding would look like a dependence."""
    computing, real = [], Projection.remember_norms_

    def watched(self):
        computing.append(self._network.bf16)
        real(self)

    monkeypatch.setattr(Projection, "remember_norms_", watched)
    run(
        tmp_path / "r", bf16=True, total_timesteps=64, shift=ShiftArgs("actions", at_steps=(32,)), update_epochs=1,
        switch=SwitchArgs(intervention="reset"), **NAP,
    )  # fmt: skip
    assert computing == [False, False]
