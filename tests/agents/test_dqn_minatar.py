"""The shipped DQN script: its gradient, its optimiser, its flags, and that all-off is the plain agent bit for bit."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_info

from agents import dqn_minatar as script
from agents.dqn_minatar import Args, NapArgs, QNetwork
from elr.fast.flat_adam import FlatAdam
from elr.interventions.flags import Q_BASELINES
from envs.minatar import MinAtarVectorEnv
from envs.replay import TransitionMemory
from runs.recording import (
    NonFiniteError,
    Run,
    RunError,
    config_from_dict,
    config_to_dict,
    load_checkpoint,
    parse,
    read_scalars,
    read_status,
)
from tests.agents import scripts

SHORT = {"total_timesteps": 900, "learning_starts": 200, "buffer_size": 500, "eval_every": 400, "eval_episodes": 2}
SMALL_PROBE = script.ProbeArgs(every=100, size=16, meter_every=50)


def short(directory, **changes):
    return Args(**{**SHORT, "probe": SMALL_PROBE, "log_every": 100, "directory": directory, **changes})


def recorded(directory):
    """Every scalar except the speed."""
    return {tag: rows for tag, rows in read_scalars(directory).items() if tag != "charts/SPS"}


# all off is the plain agent


def plain_dqn(args: Args, seeds) -> tuple[list[tuple[int, float]], QNetwork]:
    """DQN as in the literature, on torch.optim.Adam, with nothing of elr: the literal twin of the script's loop."""
    init_seed, env_seed, minibatch_rng, action_rng = seeds
    torch.manual_seed(init_seed)
    network, target = QNetwork(4, 3), QNetwork(4, 3)
    target.load_state_dict(network.state_dict())
    adam = torch.optim.Adam(network.parameters(), lr=args.learning_rate, eps=args.adam_eps, fused=True)
    env, memory, returns, updates = MinAtarVectorEnv(args.env_id, args.num_envs), [], [], 0
    obs, _ = env.reset(seed=env_seed)
    for step in range(0, args.total_timesteps, args.num_envs):
        epsilon = args.start_e + (args.end_e - args.start_e) * min(step / args.exploration_steps, 1)
        explores = [action_rng.random() < epsilon for _ in range(args.num_envs)]
        drawn = [int(action_rng.integers(3)) if random else None for random in explores]
        with torch.no_grad():
            greedy = network(torch.from_numpy(obs)).argmax(1).tolist()
        actions = [best if random is None else random for best, random in zip(greedy, drawn, strict=True)]
        next_obs, reward, terminated, _, infos = env.step(np.array(actions))
        true_next, after = infos.get("final_obs", next_obs), step + args.num_envs
        for i, action in enumerate(actions):
            memory.append((obs[i], action, np.float32(reward[i]), true_next[i], np.float32(terminated[i])))
            if "episode" in infos and infos["_episode"][i]:
                returns.append((after, float(infos["episode"]["r"][i])))
        obs = next_obs
        priming = args.priming_updates if after == args.learning_starts else 0
        new = args.num_envs * int(args.replay_ratio) if after > args.learning_starts else 0
        for _ in range(priming + new):
            chosen = [memory[i] for i in minibatch_rng.integers(len(memory), size=args.batch_size)]
            o, a, r, n, d = (torch.from_numpy(np.stack(column)) for column in zip(*chosen, strict=True))
            with torch.no_grad():
                y = r + args.gamma * (1 - d) * target(n).max(1).values
            loss = F.mse_loss(network(o).gather(1, a[:, None])[:, 0], y)
            adam.zero_grad()
            loss.backward()
            adam.step()
            updates += 1
            if priming and updates % args.target_network_frequency == 0:
                target.load_state_dict(network.state_dict())
        if after % args.target_network_frequency == 0:
            target.load_state_dict(network.state_dict())
    return returns, network


@pytest.mark.parametrize(("num_envs", "ratio", "priming"), [(1, 1.0, 0), (1, 1.0, 260), (5, 1.0, 260), (5, 2.0, 0)])
def test_all_off_is_the_plain_agent_bit_for_bit(num_envs, ratio, priming, tmp_path):
    """In one environment and several, at one update per step and several; also after many updates at first."""
    args = short(
        tmp_path / "run", gradient="autograd", buffer_size=2000, target_network_frequency=100, exploration_steps=600,
        checkpoint_every=900, priming_updates=priming, num_envs=num_envs, replay_ratio=ratio,
    )  # fmt: skip
    script.main(args)
    streams = np.random.SeedSequence(args.seed).spawn(5)
    init, env = (int(s.generate_state(1)[0]) for s in streams[:2])
    returns, network = plain_dqn(args, (init, env, *(np.random.default_rng(s) for s in streams[3:])))
    assert len(returns) > 10
    assert read_scalars(tmp_path / "run")["charts/episodic_return"] == returns
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["state"]["q_network"]
    for name, p in network.state_dict().items():
        assert torch.equal(p, saved[name]), name


def test_the_explicit_gradient_trains_as_autograd_does(tmp_path):
    """The default path is the same agent up to rounding: over a short run in float32 the networks stay together."""
    for gradient in ("explicit", "autograd"):
        script.main(
            short(
                tmp_path / gradient, gradient=gradient, total_timesteps=260, end_e=1.0, eval_every=0, eval_episodes=10
            )
        )
    explicit, autograd = (load_checkpoint(tmp_path / g / "checkpoint.pt")["state"] for g in ("explicit", "autograd"))
    assert explicit["counters"]["updates"] == autograd["counters"]["updates"] == 60
    for name, weight in explicit["q_network"].items():
        torch.testing.assert_close(weight, autograd["q_network"][name], rtol=1e-3, atol=1e-4)
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence(1).spawn(5)[0].generate_state(1)[0]))
        initial = script.QNetwork(4, 3)
    for name, weight in initial.state_dict().items():
        assert not torch.equal(explicit["q_network"][name], weight), f"{name} never moved"


@pytest.mark.parametrize("normalised", [False, True])
def test_crelu_doubles_what_the_next_layer_reads(normalised):
    torch.manual_seed(0)
    net, obs = QNetwork(4, 3, normalised, crelu=True).double(), torch.randint(2, (7, 4, 10, 10)).double()
    w = {name: p.detach() for name, p in net.named_parameters()}

    def both(x, dim):
        return torch.cat([x.clamp(min=0), (-x).clamp(min=0)], dim)

    x = F.conv2d(obs, w["conv.weight"], w.get("conv.bias"))
    x = both(F.layer_norm(x, (16, 8, 8)) if normalised else x, 1)
    x = x.permute(0, 2, 3, 1).reshape(7, 2048) @ w["hidden.weight"].T
    x = both(F.layer_norm(x, (128,)) if normalised else x + w["hidden.bias"], 1)
    expected = x @ w["head.weight"].T + w["head.bias"]
    torch.testing.assert_close(net(obs).detach(), expected, rtol=1e-10, atol=1e-10)


def test_crelu_trains_by_autograd_without_being_told_to(tmp_path, capsys):
    for gradient in ("auto", "autograd"):
        script.main(short(tmp_path / gradient, activation="crelu", gradient=gradient, total_timesteps=260))
    assert "by autograd" not in capsys.readouterr().out  # nothing was tried and failed
    scripts.assert_same(*(load_checkpoint(tmp_path / g / "checkpoint.pt")["state"] for g in ("auto", "autograd")))
    assert {"plasticity/dead_fraction/conv_relu", "elr/hidden"} <= set(recorded(tmp_path / "auto"))


@pytest.mark.parametrize("ratio, num_envs, updates", [(0.25, 1, 175), (2.0, 1, 1400), (0.25, 5, 175), (2.0, 5, 1400)])
def test_updates_per_step(ratio, num_envs, updates, tmp_path):
    probe, schedule = script.ProbeArgs(every=100, size=16), script.ScheduleArgs(kind="linear-decay", period_steps=700)
    changes = {"probe": probe, "schedule": schedule, "log_every": 25}
    script.main(short(tmp_path / "r", replay_ratio=ratio, num_envs=num_envs, **changes))
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["state"]["counters"]["updates"] == updates
    rates = recorded(tmp_path / "r")["charts/learning_rate"]
    assert len(rates) == updates // 25 and rates[-1][0] == 900
    # 700 agent steps of decay are all the updates there are; the last one runs one update before the end of it
    assert rates[-1][1] == pytest.approx(4e-6 + (2.5e-4 - 4e-6) / updates, rel=1e-6)


def test_measuring_changes_nothing(tmp_path):
    off = script.ProbeArgs(every=0, meter_every=0)
    for name, probe, evaluations in (("on", SMALL_PROBE, 100), ("off", off, 0)):
        changes = {"eval_episodes": 10} if not evaluations else {}
        script.main(short(tmp_path / name, probe=probe, eval_every=evaluations, **changes))
    on, off = recorded(tmp_path / "on"), recorded(tmp_path / "off")
    assert {"elr/hidden", "plasticity/delta_a/conv_relu", "eval/episodic_return"} <= set(on) - set(off)
    assert off == {tag: on[tag] for tag in off}


@pytest.mark.parametrize("num_envs", [1, 5])
def test_the_same_seed_repeats_the_run_and_another_does_not(num_envs, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        script.main(short(tmp_path / name, nap=NapArgs(enabled=True), num_envs=num_envs, seed=seed))
    assert recorded(tmp_path / "a") == recorded(tmp_path / "b")
    assert recorded(tmp_path / "a")["losses/td_loss"] != recorded(tmp_path / "c")["losses/td_loss"]


def test_steps_of_several_environments_are_counted_together(tmp_path):
    """Exploration, target network, records, evaluations and checkpoints are all due in agent steps."""
    args = short(
        tmp_path / "r", num_envs=5, total_timesteps=903, exploration_steps=600, log_every=50, probe=SMALL_PROBE
    )
    script.main(args)
    scalars, saved = recorded(tmp_path / "r"), load_checkpoint(tmp_path / "r" / "checkpoint.pt")
    assert saved["step"] == 905  # the first whole step of all environments with at least 903
    assert [step for step, _ in scalars["eval/episodic_return"]] == [400, 800, 905]
    epsilon = dict(scalars["charts/epsilon"])
    assert sorted(epsilon) == list(range(50, 901, 50))
    assert epsilon[300] == pytest.approx(1 - 0.95 * 295 / 600)  # before the step that made it 300
    assert {step % 5 for rows in scalars.values() for step, _ in rows} == {0}
    assert saved["state"]["counters"]["updates"] == 705
    assert len({step for step, _ in scalars["charts/episodic_return"]}) > 10


@pytest.mark.parametrize("gradient", ["explicit", "autograd"])
def test_several_environments_act_on_their_own_observations(gradient, tmp_path, monkeypatch):
    """Greedy actions are those that the network of this moment would take in each environment alone."""
    seen, real = [], script.RecentTDErrors.act
    monkeypatch.setattr(script.RecentTDErrors, "act", lambda self, *a: seen.append(a[1].copy()) or real(self, *a))
    script.main(
        short(
            tmp_path / "r", num_envs=5, start_e=0.0, end_e=0.0, learning_rate=1e-30, gradient=gradient,
            total_timesteps=400, eval_every=0, eval_episodes=10,
        )
    )  # fmt: skip
    state = load_checkpoint(tmp_path / "r" / "checkpoint.pt")["state"]
    replay = TransitionMemory(500, state["replay"]["shape"][1:], 5)
    replay.load_state_dict(state["replay"])
    network = QNetwork(4, 3)
    network.load_state_dict(state["q_network"])
    greedy = [int(script.q_values(network, replay.obs[i : i + 1]).argmax()) for i in range(400)]
    assert replay.actions[:400].tolist() == np.concatenate(seen).tolist() == greedy
    assert len(set(greedy)) > 1
    assert not np.array_equal(replay.obs[395], replay.obs[396])


def test_each_stream_decides_its_own_draws(tmp_path, monkeypatch):
    """Replace one stream at a time by another seed's: only what is drawn from it changes at first.

    The sixth is for changes of the task.
    """
    whole = np.random.SeedSequence

    class OneStreamOfSeedTwo(whole):
        replaced = None

        def spawn(self, n):
            streams = whole(1).spawn(n)
            if n == 7 and self.replaced is not None:
                streams[self.replaced] = whole(2).spawn(n)[self.replaced]
            return streams

    monkeypatch.setattr(script.np.random, "SeedSequence", OneStreamOfSeedTwo)
    seen = {}
    for name in (None, 0, 1, 2, 3, 4):
        OneStreamOfSeedTwo.replaced = name
        script.main(short(tmp_path / str(name), total_timesteps=210, eval_every=0, eval_episodes=10))
        scalars = recorded(tmp_path / str(name))
        state = load_checkpoint(tmp_path / str(name) / "checkpoint.pt")["state"]
        seen[name] = [
            scalars["norms/parameter/conv"][0],
            np.asarray(state["replay"]["obs"])[:50].tolist(),
            scalars["plasticity/feature_norm/conv_relu"][0],
            str(state["generators"]["minibatch"]),
            np.asarray(state["replay"]["actions"])[:5].tolist(),
        ]
    for name in range(5):
        changed = [a != b for a, b in zip(seen[None], seen[name], strict=True)]
        assert changed[name], f"stream {name} decides nothing"
        allowed = {0: {0, 2}, 1: {1}, 2: {2}, 3: {3}, 4: {4, 1}}[name]  # features see weights; pictures see actions
        assert {i for i, c in enumerate(changed) if c} <= allowed, f"stream {name} leaks"


def test_projection_holds_the_norms_and_the_rate_follows_the_schedule(tmp_path):
    args = dataclasses.replace(
        script.PRESETS["nap-cyclic"].args, **SHORT, probe=SMALL_PROBE, directory=tmp_path / "r", log_every=1,
        schedule=script.ScheduleArgs(kind="cyclic", period_steps=200),
    )  # fmt: skip
    script.main(args)
    scalars = recorded(tmp_path / "r")
    for layer in ("conv", "hidden"):
        norms = [value for _, value in scalars[f"norms/parameter/{layer}"]]
        assert max(norms) / min(norms) - 1 < 1e-5
    rates = [value for _, value in scalars["charts/learning_rate"]]
    schedule = args.schedule.build(args.learning_rate, args.updates)
    assert rates == [schedule(i) for i in range(700)]
    assert max(rates) == pytest.approx(args.learning_rate) and min(rates) == pytest.approx(args.schedule.low)


def test_adaptive_rewarms_when_new_errors_jump(tmp_path, monkeypatch):
    args = short(
        tmp_path / "r", total_timesteps=700,
        schedule=script.ScheduleArgs(kind="warmup-cosine", period_steps=100),
        rewarm=script.RewarmArgs(trigger="cusum", block=5, burn_in=20, refractory=20),
    )  # fmt: skip
    calls = []

    def jumping(self):
        calls.append(1)
        return 1.0 + 0.1 * (len(calls) % 2) if len(calls) < 300 else 50.0

    monkeypatch.setattr(script.RecentTDErrors, "read", jumping)
    script.main(args)
    events = [step for step, _ in recorded(tmp_path / "r")["rewarm/event"]]
    assert events and 500 <= events[0] <= 510  # update 300 is step 500


@pytest.mark.parametrize("num_envs", [1, 5])
def test_recent_errors_are_those_of_the_transitions_in_the_replay_memory(num_envs, tmp_path, monkeypatch):
    """With a network that does not learn, every error can be computed again from what was stored."""
    errors, real = [], script.RecentTDErrors.read
    monkeypatch.setattr(script.RecentTDErrors, "read", lambda self: (errors.append(list(self._errors)), real(self))[1])
    steps = {"total_timesteps": 700, "learning_starts": 50, "buffer_size": 1000, "learning_rate": 1e-30}
    script.main(
        short(
            tmp_path / "r", **(SHORT | steps), env_id="MinAtar/Breakout-v0", network="plain", exploration_steps=300,
            num_envs=num_envs,
            shift=script.ShiftArgs(kind="games", games=("MinAtar/Asterix-v0",), at_steps=(333, 500)),
            schedule=script.ScheduleArgs(kind="warmup-cosine", period_steps=100, low=1e-31),
            rewarm=script.RewarmArgs(trigger="cusum", threshold=1e6, block=5, refractory=20),
        )
    )  # fmt: skip
    state = load_checkpoint(tmp_path / "r" / "checkpoint.pt")["state"]
    args = Args(buffer_size=1000)
    replay = TransitionMemory(1000, state["replay"]["shape"][1:])
    replay.load_state_dict(state["replay"])
    network = QNetwork(replay.obs.shape[1], 6, normalised=False)
    network.load_state_dict(state["q_network"])
    with torch.no_grad():
        q, next_q = (network(torch.from_numpy(obs[:700])).numpy() for obs in (replay.obs, replay.next_obs))
    chosen = q[np.arange(700), replay.actions[:700]]
    expected = (replay.rewards[:700] + args.gamma * next_q.max(1) * (1 - replay.terminated[:700]) - chosen) ** 2
    ends = replay.terminated[:700].astype(bool)
    # The transitions that a change truncated: those of the step that reaches 333, and of the one that reaches 500.
    changed = {i for at in (333, 500) for i in range(700) if i // num_envs == (at - 1) // num_envs}
    # The error of an episode's last step is known at once, that of any other when the agent acts again.
    order = sorted(
        (i // num_envs + (not ends[i]), bool(ends[i]), i)
        for i in range(700)
        if ends[i] or (i < 700 - num_envs and i not in changed)
    )
    known = [expected[i] for *_, i in order]
    assert [e for some in errors for e in some] == pytest.approx(known, rel=1e-4, abs=1e-7)
    assert replay.terminated[:700].sum() > 5 and len({int(a) for a in replay.actions[:700]}) == 6


def test_watching_for_a_change_changes_nothing_until_it_comes(tmp_path, monkeypatch):
    seen, real = [], script.RecentTDErrors.step

    def watched(self, reward, terminated, truncated):
        if self.on:
            seen.append((float(reward[0]), bool(terminated[0])))
        real(self, reward, terminated, truncated)

    monkeypatch.setattr(script.RecentTDErrors, "step", watched)
    schedule = script.ScheduleArgs(kind="warmup-cosine", period_steps=500)
    for name, rewarm in (("a", script.RewarmArgs()), ("b", script.RewarmArgs(trigger="cusum", threshold=1e6, block=5))):
        script.main(short(tmp_path / name, schedule=schedule, rewarm=rewarm, eval_every=0, eval_episodes=10))
    quiet, watching = (load_checkpoint(tmp_path / name / "checkpoint.pt")["state"] for name in "ab")
    assert all(torch.equal(p, watching["q_network"][name]) for name, p in quiet["q_network"].items())
    replay = watching["replay"]
    held = list(zip(replay["rewards"].tolist(), replay["terminated"].astype(bool).tolist(), strict=True))
    position = replay["position"]  # 900 steps, 500 of them remembered
    assert held[position:] + held[:position] == seen[-500:] and len(seen) == 900 and any(r for r, _ in seen)
    assert watching["rewarming"]["trigger"]["cusum"]["blocks_seen"] == 700 // 5
    assert watching["recent"]["mean"] > 0 and quiet["recent"] == {}


# flags


def test_every_flag_is_read():
    assert scripts.unread_flags(script) == []


def test_updates_converts_steps_by_the_replay_ratio():
    assert [Args(replay_ratio=0.25).updates(steps) for steps in (1, 6, 1000)] == [1, 2, 250]


@pytest.mark.parametrize(
    "flags, named",
    [
        # one of each group: its check is called; tests/elr/test_flags.py and tests/envs/test_shift_flags.py have all
        (["--nap.every", "5"], ["--nap.every", "--nap.enabled"]),
        (["low", "--schedule.kind", "cyclic"], ["--schedule.low", "--learning-rate"]),
        (["cyclic", "--schedule.period-steps", "0"], ["--schedule.period-steps"]),
        (["--rewarm.every-steps", "9"], ["--rewarm.every-steps", "--rewarm.trigger never"]),
        (["--probe.every", "0", "--probe.size", "9"], ["--probe.size", "--probe.every 0"]),
        (["--shift.every-steps", "9"], ["--shift.every-steps", "--shift.kind none"]),
        (["--switch.replay", "clear"], ["--switch.replay", "--shift.kind none"]),
        (["chain-fresh", "--switch.replay", "clear"], ["--switch.replay", "--switch.fresh-agent"]),
        # the script's own
        (["--eval-every", "0", "--eval-episodes", "9"], ["--eval-episodes", "--eval-every 0"]),
        (["--batch-size", "64", "--buffer-size", "32"], ["--batch-size", "--buffer-size"]),
        (["--replay-ratio", "0"], ["--replay-ratio"]),
        (["--replay-ratio", "nan"], ["--replay-ratio"]),
        (["--num-envs", "0"], ["--num-envs"]),
        (
            ["--num-envs", "16"],
            ["--learning-starts 5000 and --target-network-frequency 1000 and --log-every 1000", "--num-envs 16"],
        ),
        (["--num-envs", "3", "--log-every", "999"], ["--buffer-size 100000", "multiples of --num-envs 3"]),
        (
            ["chain-fresh", "--shift.every-steps", "5004", "--num-envs", "5"],
            ["--learning-starts 5000", "--num-envs 5", "5004"],
        ),
        (["--end-e", "0.5", "--start-e", "0.2"], ["--end-e", "--start-e"]),
        (["--total-timesteps", "4000"], ["--learning-starts", "--total-timesteps"]),
        (["--gamma", "1"], ["--gamma 1"]),
        (["--gradient", "explicit", "--device", "meta"], ["--device", "meta"]),
        (["chain-crelu", "--gradient", "explicit"], ["--gradient explicit", "--activation crelu"]),
        (["chain-redo", "--activation", "crelu"], ["--intervene.methods redo and --activation crelu"]),
        (["--device", "abacus"], ["--device", "abacus"]),
        # where groups meet --learning-starts
        (["adaptive", "--learning-starts", "0"], ["--learning-starts 0", "--rewarm.trigger cusum"]),
        (["adaptive", "--rewarm.burn-in", "10000"], ["--rewarm.burn-in", "10000 blocks x 100 updates"]),
        (
            ["chain-cusum", "--shift.every-steps", "0", "--shift.at-steps", "6000", "300000"],
            ["--rewarm.burn-in", "1000 updates before the first change"],
        ),
        (["chain-cusum", "--rewarm.refractory", "2000"], ["--rewarm.refractory", "200000 updates between"]),
        (
            ["chain-cusum", "--switch.replay", "clear", "--rewarm.refractory", "1960"],
            ["--rewarm.refractory", "195000 updates between"],
        ),
        (["chain-fresh", "--shift.every-steps", "4000"], ["--learning-starts 5000", "4000", "--switch"]),
        (["chain-plain", "--switch.replay", "clear", "--shift.every-steps", "4000"], ["--learning-starts", "4000"]),
        (
            ["chain-plain", "--switch.exploration", "restart", "--start-e", "0.1", "--end-e", "0.1"],
            ["--switch.exploration", "--start-e", "--end-e"],
        ),
        (
            ["cyclic", "--rewarm.trigger", "every", "--rewarm.every-steps", "996000"],
            ["--rewarm.every-steps 996000", "995000 steps of learning"],
        ),
        (["nap-cylic"], ["nap-cyclic"]),
        (["--learning-rat", "1"], ["--learning-rat"]),
    ],
)  # fmt: skip
def test_conflicting_and_mistyped_flags_are_refused_by_name(flags, named, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Args, script.PRESETS, flags)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in named), message


def test_a_run_from_before_several_environments_had_one():
    config = config_to_dict(Args(seed=3))
    del config["num_envs"]
    assert config_from_dict(Args, config) == Args(seed=3, num_envs=1)


def test_flags_that_are_not_in_use_are_not_judged():
    """--schedule.period-steps 50000 at this ratio is less than one update, but the rate is constant."""
    parse(Args, script.PRESETS, ["--replay-ratio", "1e-5"])


def test_every_preset_parses_and_differs(capsys):
    parsed = {name: parse(Args, script.PRESETS, [name, "--seed", "5"]) for name in script.PRESETS}
    named = {"baseline", "low", "cyclic", "cyclic-annealed", "nap", "nap-cyclic", "adaptive", "quickstart"}
    named |= {f"replay-ratio-{ratio}" for ratio in (2, 4, 8)}
    named |= {f"chain-{arm}" for arm in ("plain", "fresh", "reset", "nap", "switch", "cusum", "crelu", *Q_BASELINES)}
    assert set(parsed) == named
    assert all(args.seed == 5 and args.exp_name == name for name, args in parsed.items())
    assert len({repr(dataclasses.replace(args, exp_name="")) for args in parsed.values()}) == len(named)
    assert dataclasses.replace(parsed["baseline"], exp_name="dqn", seed=1) == Args()
    for ratio in (2, 4, 8):
        args = parsed[f"replay-ratio-{ratio}"]
        assert dataclasses.replace(args, exp_name="dqn", seed=1) == Args(replay_ratio=float(ratio))
    quick = parsed["quickstart"]  # measures often enough that TensorBoard shows curves
    assert (quick.total_timesteps - quick.learning_starts) // quick.probe.every >= 20
    assert quick.total_timesteps // quick.eval_every >= 5


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"schedule": script.ScheduleArgs(kind="cyclic-then-constant", cycles=0)}, "cycles"),
        ({"schedule": script.ScheduleArgs(kind="cyclic", low=-1.0)}, "low"),
        ({"schedule": script.ScheduleArgs(kind="cyclic"), "rewarm": script.RewarmArgs("cusum", block=0)}, "block"),
        ({"probe": script.ProbeArgs(tau=2.0)}, "tau"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_values_out_of_range_are_one_line_before_anything_is_written(changes, named, tmp_path):
    with pytest.raises(RunError, match=named):
        script.main(short(tmp_path / "r", **changes))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("env_id", "hint"),
    [
        ("CartPole-v1", "agents/ppo_control.py is for CartPole-v1"),
        ("MinAtar/Breakot-v1", "Did you mean 'MinAtar/Breakout-v1'"),
        ("ALE/Breakout-v5", "agents/dqn_atari.py"),
    ],
)
def test_another_environment_is_refused(env_id, hint, tmp_path):
    with pytest.raises(RunError, match=hint):
        script.main(Args(env_id=env_id, directory=tmp_path / "r"))
    assert not (tmp_path / "r").exists()


def test_projecting_the_plain_network_is_refused_unless_meant(tmp_path):
    with pytest.raises(RunError, match=r"(?s)conv.*allow_scale_dependent"):
        script.main(short(tmp_path / "r", network="plain", nap=NapArgs(enabled=True)))
    script.main(
        short(
            tmp_path / "meant", network="plain", total_timesteps=250, eval_every=0, eval_episodes=10,
            nap=NapArgs(enabled=True, gains="free", allow_scale_dependent=True),
        )
    )  # fmt: skip
    assert read_status(tmp_path / "meant")["status"] == "finished"


# failures


def test_nan_stops_the_run_and_leaves_the_checkpoint_from_before(tmp_path, monkeypatch):
    step, calls = FlatAdam.step, []

    def poisoned(self):
        step(self)
        calls.append(1)
        if len(calls) == 150:
            self.param_groups[0]["params"][3].data.view(-1)[0] = math.nan  # hidden.weight

    monkeypatch.setattr(FlatAdam, "step", poisoned)
    with pytest.raises(NonFiniteError) as error:
        script.main(short(tmp_path / "r", checkpoint_every=100))
    for part in ("step 351", "update 150", "rate 0.00025", "the weight hidden.weight"):
        assert part in str(error.value)
    assert read_status(tmp_path / "r")["status"] == "failed"
    saved = load_checkpoint(tmp_path / "r" / "checkpoint.pt")
    assert saved["step"] == 300 and all(torch.isfinite(w).all() for w in saved["state"]["q_network"].values())


def test_a_run_that_overflows_stops_with_its_own_error_alone(tmp_path):
    """Warnings are errors in these tests: one of NumPy's would come first."""
    with pytest.raises(NonFiniteError, match="learning rate"):
        script.main(
            short(tmp_path / "r", network="plain", learning_rate=1e30, probe=script.ProbeArgs(0, meter_every=0))
        )
    assert read_status(tmp_path / "r")["status"] == "failed"


def test_threads_hold_for_every_library(tmp_path, monkeypatch):
    pools = []
    monkeypatch.setattr(script, "play", lambda *_, **__: pools.extend(threadpool_info()) or np.zeros(2))
    script.main(short(tmp_path / "r", total_timesteps=400))
    assert {pool["user_api"] for pool in pools} >= {"blas"}
    assert all(pool["num_threads"] == 1 for pool in pools) and torch.get_num_threads() == 1


def test_a_finished_run_is_neither_overwritten_nor_resumed(tmp_path, capsys):
    script.main(short(tmp_path / "r", total_timesteps=250, eval_every=0, eval_episodes=10))
    before = (tmp_path / "r" / "scalars.csv").read_bytes()
    with pytest.raises(RunError, match="finished"):
        script.main(short(tmp_path / "r"))
    with pytest.raises(RunError, match="already finished at step 250"):
        script.main(short(tmp_path / "r", resume=tmp_path / "r"))
    with pytest.raises(SystemExit):
        parse(Args, script.PRESETS, ["--resume", str(tmp_path / "r"), "--env-id", "MinAtar/Freeway-v1"])
    assert "--env-id" in capsys.readouterr().err
    assert (tmp_path / "r" / "scalars.csv").read_bytes() == before


def test_resuming_at_the_end_only_finishes(tmp_path, monkeypatch):
    """Killed between the last checkpoint and the finish: nothing is left to do, and that is no error."""
    monkeypatch.setattr(Run, "finish", lambda run, step: run.interrupt(step))
    script.main(short(tmp_path / "r", total_timesteps=250))
    monkeypatch.undo()
    script.main(short(tmp_path / "r", total_timesteps=250, resume=tmp_path / "r"))
    assert read_status(tmp_path / "r")["status"] == "finished"


def test_priming_needs_steps_to_learn_from_and_does_not_mislead_cusum():
    with pytest.raises(ValueError, match=r"--priming-updates 10 and --learning-starts 0"):
        Args(priming_updates=10, learning_starts=0)
    with pytest.raises(ValueError, match=r"--priming-updates 10 and --rewarm.trigger cusum"):
        dataclasses.replace(script.PRESETS["adaptive"].args, priming_updates=10)
