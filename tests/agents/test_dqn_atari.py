"""The shipped DQN for Atari: network, loss, flags, presets, runs; its learning is in test_catch_learning.py."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from agents import dqn_atari as script
from agents.dqn_atari import PRESETS, Args, QNetwork, td_gradient
from elr import projection
from elr.interventions import reset_
from envs.replay import FrameMemory
from envs.worlds import ScreenWorld
from runs.recording import RunError, load_checkpoint, parse, read_scalars, read_status
from runs.recording.video import MAX_FRAMES
from runs.training import Session
from tests.agents import scripts

SCRIPT = Path(script.__file__)
CPU = torch.device("cpu")
TINY = {
    "env_id": "rewarm/Catch-v0", "total_timesteps": 160, "learning_starts": 80, "buffer_size": 120, "batch_size": 4,
    "eval_every": 0, "log_every": 20, "checkpoint_every": 60, "exploration_steps": 120, "target_network_frequency": 20,
    "probe": script.ProbeArgs(every=5, size=8, meter_every=4),
}  # fmt: skip
EVALUATED = {"eval_every": 80, "eval_episodes": 2}
UNSEEN = script.ProbeArgs(every=0, meter_every=0)
PROJECTED = {"network": "normalised", "nap": script.NapArgs(enabled=True)}


def tiny(directory, **changes):
    return Args(**{**TINY, "directory": directory, **changes})


def recorded(directory):
    """Every scalar except the speed."""
    return {tag: rows for tag, rows in read_scalars(directory).items() if tag != "charts/SPS"}


def saved(directory):
    return load_checkpoint(directory / "checkpoint.pt")["state"]


def run(directory, **changes):
    """The scalars and the last state of a short run."""
    script.main(tiny(directory, **changes))
    return recorded(directory), saved(directory)


# network and loss


@pytest.mark.parametrize("normalised", [False, True])
def test_the_network_has_the_published_sizes(normalised):
    network = QNetwork(6, normalised)
    shapes = {name: tuple(w.shape) for name, w in network.named_parameters() if w.dim() > 1 and "norm" not in name}
    assert list(shapes.values()) == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (6, 512)]
    plain = 8224 + 32832 + 36928 + 1606144 + 3078
    gains = 2 * (32 * 20 * 20 + 64 * 9 * 9 + 64 * 7 * 7 + 512)
    biases = 32 + 64 + 64 + 512
    assert sum(p.numel() for p in network.parameters()) == plain + normalised * (gains - biases)


def test_pixels_are_divided_by_255():
    network, seen = QNetwork(3), []
    network.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    network(torch.full((1, 4, 84, 84), 255, dtype=torch.uint8))
    assert seen[0].unique().tolist() == [1.0]


def constant_network(values):
    """Q(s, .) = values, whatever s is."""
    network = QNetwork(len(values)).double()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor(values))
    return network


@pytest.mark.parametrize("double_q, bootstrapped", [(False, 20.0), (True, 10.0)])
def test_td_error_by_hand(double_q, bootstrapped):
    """Q = (2, 1), Q' = (10, 20): the maximum is 20; the online network chooses action 0, which is worth 10."""
    online, target = constant_network([2.0, 1.0]), constant_network([10.0, 20.0])
    obs = np.zeros((2, 4, 84, 84), np.uint8)
    batch = [obs, np.array([1, 0]), np.array([0.5, 1.0]), obs, np.array([0.9**3, 0.0])]
    loss, q = td_gradient(online, target, batch, double_q=double_q)
    errors = np.array([1.0 - (0.5 + 0.9**3 * bootstrapped), 2.0 - 1.0])
    assert loss.item() == pytest.approx((errors**2).mean(), rel=1e-12)
    assert q.tolist() == [1.0, 2.0]
    np.testing.assert_allclose(online.head.bias.grad, [errors[1], errors[0]], rtol=1e-12)
    assert all(p.grad is None for p in target.parameters())


def test_weight_decay_is_decoupled():
    network = QNetwork(3)
    optimizer = script.make_optimizer(network, Args(weight_decay=0.5, learning_rate=0.1))
    before = network.head.weight.detach().clone()
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(network.head.weight.detach(), before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("layers", ["head", "dense", "all"])
@pytest.mark.parametrize("network", ["plain", "normalised"])
def test_a_reset_renews_its_layers_and_their_moments_alone(layers, network):
    args = Args(network=network, reset=script.ResetArgs((5,), layers))
    ours, fresh = (script.make_network(scripts.spaces(3), args, seed, CPU) for seed in (1, 2))
    optimizer = script.make_optimizer(ours, args)
    for p in ours.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    named = {"head": ours.heads, "dense": ours.dense, "all": None}[layers]
    reset_(ours, fresh, modules=named, optimizer=optimizer, moments="reset")
    renewed = {"head": ["head."], "dense": ["head.", "hidden.", "hidden_norm."], "all": [""]}[layers]
    for (name, p), q in zip(ours.named_parameters(), fresh.parameters(), strict=True):
        new = any(name.startswith(start) for start in renewed)
        assert torch.equal(p, q) == new, name
        assert (optimizer.state[p]["exp_avg"].abs().sum() == 0) == new
        assert (optimizer.state[p]["step"] == 0) == new


# flags and presets


def test_every_flag_is_read():
    assert scripts.unread_flags(script) == []


@pytest.mark.parametrize(
    "words, named",
    [
        # one of each group: its check is called
        ("--nap.every 3", ["--nap.every", "--nap.enabled"]),
        ("--nap.enabled", ["--nap.enabled", "--network normalised"]),
        ("--learning-rate 1e-7 --schedule.kind cyclic", ["--schedule.low", "--learning-rate"]),
        ("--schedule.kind cyclic --schedule.period-steps 3", ["--schedule.period-steps must be at least 4"]),
        ("--rewarm.trigger every", ["--rewarm.trigger", "--schedule.kind"]),
        ("--shift.kind modes --shift.every-steps 100", ["--shift.kind modes", "--shift.values"]),
        ("--shift.kind rewards --shift.every-steps 99 --shift.values 1 9", ["--shift.values", "--clip-rewards"]),
        ("--env-id rewarm/Catch-v0 --env-threads 2", ["--env-id", "--env-threads"]),
        ("--switch.replay clear", ["--switch.replay", "--shift.kind none"]),
        ("--reset.layers head", ["--reset.layers", "--reset.at-steps"]),
        ("--probe.every 0 --probe.size 9", ["--probe.size", "--probe.every 0"]),
        # the script's own
        ("--num-envs 3", ["--buffer-size", "--num-envs"]),
        ("--num-envs 8 --checkpoint-every 50", ["--checkpoint-every", "--num-envs"]),
        ("--buffer-size 6 --batch-size 4 --n-step 2", ["--buffer-size 6", "--n-step 2"]),
        ("--batch-size 64 --buffer-size 32", ["--batch-size 64", "--buffer-size 32"]),
        ("--learning-starts 5 --n-step 3 --num-envs 2", ["--learning-starts 5", "--n-step 3", "--num-envs 2"]),
        ("--total-timesteps 20000", ["--learning-starts 20000", "--total-timesteps 20000"]),
        ("--start-e 0.1 --end-e 0.2", ["--start-e", "--end-e"]),
        ("--gamma 1", ["--gamma 1"]),
        ("--eval-epsilon 2", ["--eval-epsilon 2"]),
        ("--eval-every 0 --eval-epsilon 0.1", ["--eval-epsilon", "--eval-every"]),
        ("--eval-every 0 --record-video", ["--record-video", "--eval-every 0"]),
        ("--weight-decay -1", ["--weight-decay"]),
        ("--device abacus", ["--device", "abacus"]),
        # where groups meet the script's flags
        ("chain-cusum --learning-starts 3 --num-envs 2", ["--learning-starts 3", "--rewarm.trigger cusum"]),
        ("chain-fresh --learning-starts 5000000", ["--learning-starts 5000000", "--switch"]),
        (
            "chain-plain --switch.exploration restart --end-e 0.1 --start-e 0.1",
            ["--switch.exploration", "--start-e", "--end-e"],
        ),
    ],
)  # fmt: skip
def test_flags_that_contradict_or_do_nothing_are_refused_by_name(words, named, capsys):
    with pytest.raises(SystemExit) as end:
        parse(Args, PRESETS, shlex.split(words))
    message = capsys.readouterr().err.strip()
    assert end.value.code == 2
    assert "\n" not in message
    assert all(name in message for name in named), message


def test_what_is_next_to_a_refusal_is_accepted():
    Args(learning_starts=6, n_step=3, num_envs=2)
    Args(replay_ratio=1e-5)  # a period of less than one update, but the rate is constant
    Args(nap=script.NapArgs(enabled=True, allow_scale_dependent=True))
    Args(shift=script.ShiftArgs("rewards", every_steps=99, values=(1.0, 9.0)), clip_rewards=False)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"env_id": "ALE/Pongg-v5"}, "ALE/Pong-v5"),
        ({"env_id": "ALE/Pong-v5", "shift": script.ShiftArgs("modes", every_steps=50, values=(0, 77))}, "no mode 77"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_what_does_not_exist_is_one_line_and_nothing_is_written(tmp_path, changes, named):
    with pytest.raises(RunError, match=named):
        script.main(tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_the_papers_arms():
    """arXiv:2507.20057, App. A.3: rates, cycles, budget."""
    arms = {name: PRESETS[f"high-utd-{name}"].args for name in ("baseline", "low", "cyclic", "cyclic-annealed")}
    for args in arms.values():
        assert (args.replay_ratio, args.adam_eps, args.total_timesteps) == (1, 1.5e-4, 50_000_000)
        assert (args.network, args.nap.enabled, args.weight_decay) == ("plain", False, 0)
    assert [arms[name].learning_rate for name in arms] == [6.25e-5, 1e-6, 6.25e-5, 6.25e-5]
    assert arms["cyclic"].schedule == script.ScheduleArgs("cyclic", 1e-6, 20_000_000 // 4, 0.1, 10)
    for name, frames in (("cyclic-annealed", 40), ("cyclic-annealed-8M", 8), ("cyclic-annealed-20M", 20)):
        schedule = PRESETS[f"high-utd-{name}"].args.schedule
        assert (schedule.kind, schedule.low, 4 * schedule.period_steps) == ("cyclic-then-constant", 1e-6, 4_000_000)
        assert 4 * schedule.cycles * schedule.period_steps == frames * 1_000_000
    assert PRESETS["high-utd-weight-decay"].args.weight_decay == 1e-2


def test_quick_arms_have_a_hundredth_of_the_budget():
    arms = [name for name in PRESETS if name.startswith("quick-")]
    assert len(arms) == 4
    for name in arms:
        whole, quick = PRESETS[name.removeprefix("quick-")].args, PRESETS[name].args
        assert quick.total_timesteps * 100 == whole.total_timesteps
        assert (quick.replay_ratio, quick.learning_rate) == (whole.replay_ratio, whole.learning_rate)
        assert (quick.schedule.kind, quick.schedule.cycles) == (whole.schedule.kind, whole.schedule.cycles)
        if whole.schedule.kind != "constant":
            assert quick.schedule.period_steps * 100 == whole.schedule.period_steps


def test_every_preset_parses_and_differs():
    parsed = {name: parse(Args, PRESETS, [name, "--seed", "5"]) for name in ("high-utd-low", "chain-cusum")}
    assert all(args == dataclasses.replace(PRESETS[name].args, seed=5) for name, args in parsed.items())
    assert all(preset.args.exp_name == name for name, preset in PRESETS.items())
    assert len({repr(dataclasses.replace(preset.args, exp_name="")) for preset in PRESETS.values()}) == len(PRESETS)
    assert dataclasses.replace(PRESETS["baseline"].args, exp_name="dqn") == Args()


# runs


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run with everything off except measurements and evaluations: its directory, scalars and last state."""
    directory = tmp_path_factory.mktemp("plain") / "run"
    return directory, *run(directory, **EVALUATED)


def literal_dqn(args: Args) -> tuple[list[tuple[int, float]], QNetwork]:
    """DQN on torch.optim, with nothing of elr: a list of all transitions."""
    streams = np.random.SeedSequence(args.seed).spawn(6)
    init_seed, env_seed = (int(s.generate_state(1)[0]) for s in streams[:2])
    minibatches, exploration = (np.random.default_rng(s) for s in streams[3:5])
    env, memory, returns = ScreenWorld([args.env_id]).make(), [], []
    with torch.random.fork_rng():
        torch.manual_seed(init_seed)
        network = QNetwork(3)
    target = QNetwork(3)
    target.load_state_dict(network.state_dict())
    adam = torch.optim.Adam(network.parameters(), lr=args.learning_rate, eps=args.adam_eps, fused=True)
    obs, _ = env.reset(seed=env_seed)
    for step in range(1, args.total_timesteps + 1):
        epsilon = args.start_e + (args.end_e - args.start_e) * min((step - 1) / args.exploration_steps, 1)
        explores, action = exploration.random() < epsilon, int(exploration.integers(3))
        if not explores:
            with torch.no_grad():
                action = int(network(torch.from_numpy(obs)).argmax())
        next_obs, reward, terminated, truncated, infos = env.step(np.array([action]))
        assert not terminated[0]  # Catch has a time limit
        clipped = np.float32(min(max(reward[0], -1.0), 1.0))
        memory.append((obs[0], action, clipped, infos["final_obs"][0] if truncated[0] else next_obs[0]))
        if truncated[0]:
            memory.append(None)  # its place in the memory holds the last state
            returns.append((step, float(infos["episode"]["r"][0])))
        obs = next_obs
        if step > args.learning_starts and (step - args.learning_starts) % 4 == 0:
            batch = []
            while len(batch) < args.batch_size:  # the newest transition is known only when its next state is stored
                rows = [memory[-1 - i] for i in minibatches.integers(len(memory), size=args.batch_size)]
                newest = memory[-1]
                batch += [row for row in rows if row is not None and row is not newest]
            o, a, r, n = (torch.from_numpy(np.stack(part)) for part in zip(*batch[: args.batch_size], strict=True))
            with torch.no_grad():
                y = r + torch.full_like(r, args.gamma) * target(n).max(1).values
            loss = (network(o).gather(1, a[:, None])[:, 0] - y).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        if step % args.target_network_frequency == 0:
            target.load_state_dict(network.state_dict())
    return returns, network


def test_all_off_is_the_plain_agent_bit_for_bit(tmp_path):
    """Through the end of an episode, with a target network that is copied."""
    args = tiny(tmp_path / "run", probe=UNSEEN, buffer_size=1000)
    script.main(args)
    returns, network = literal_dqn(args)
    assert len(returns) == 1
    assert recorded(tmp_path / "run")["charts/episodic_return"] == returns
    for name, p in network.state_dict().items():
        assert torch.equal(p, saved(tmp_path / "run")["q_network"][name]), name


def test_the_same_seed_repeats_the_run_and_another_does_not(plain, tmp_path):
    _, scalars, state = plain
    again, same = run(tmp_path / "again", **EVALUATED)
    assert again == scalars
    scripts.assert_same(same, state)
    other, _ = run(tmp_path / "other", seed=2)
    for tag in ("losses/td_loss", "plasticity/effective_rank/hidden_relu"):
        assert other[tag][0] != scalars[tag][0]


def test_measurements_and_evaluations_change_nothing(plain, tmp_path):
    _, measured, state = plain
    quiet, other = run(tmp_path / "off", probe=UNSEEN)
    assert {"elr/hidden", "plasticity/delta_a/conv1_relu", "eval/episodic_return"} <= measured.keys() - quiet.keys()
    assert quiet == {tag: measured[tag] for tag in quiet}
    scripts.assert_same(other["q_network"], state["q_network"])


def test_an_evaluation_is_epsilon_greedy_in_freshly_seeded_environments(tmp_path, monkeypatch):
    seen = []

    def play(env, policy, seed, *, epsilon):
        seen.append((env.num_envs, policy(np.zeros((2, 4, 84, 84), np.uint8)).shape, seed, epsilon))
        return np.zeros(env.num_envs)

    monkeypatch.setattr(script, "play", play)
    args = tiny(tmp_path / "run", **EVALUATED, eval_epsilon=0.25, total_timesteps=90, probe=UNSEEN)
    script.main(args)
    first = int(np.random.SeedSequence(1).spawn(6)[1].generate_state(1)[0])
    assert seen == [(2, (2, 3), first + step, 0.25) for step in (80, 90)]


def test_without_evaluations_no_environment_is_built_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "evaluation_world", lambda *_: pytest.fail("an environment was built"))
    run(tmp_path / "run", total_timesteps=90, probe=UNSEEN)


def test_rewards_are_clipped_for_learning_and_recorded_as_they_are(tmp_path, monkeypatch):
    """Catch with rewards of 5: returns are multiples of 5, the memory holds -1, 0 and 1."""
    held, add = [], FrameMemory.add
    monkeypatch.setattr(FrameMemory, "add", lambda self, *a: held.append(a[2]) or add(self, *a))
    shift = script.ShiftArgs("rewards", at_steps=(150,), values=(5.0, -1.0))
    for clip in (True, False):
        held.clear()
        changes = {"shift": shift, "clip_rewards": clip, "learning_starts": 150, "probe": UNSEEN}
        scalars, _ = run(tmp_path / str(clip), **changes)
        returns = [value for _, value in scalars["charts/episodic_return"]]
        assert returns and all(value % 5 == 0 for value in returns)
        assert {abs(float(x)) for row in held for x in row} == ({0.0, 1.0} if clip else {0.0, 5.0})


@pytest.mark.parametrize("protocol", ["machado", "classic"])
def test_a_lost_life_ends_the_return_in_the_classic_protocol_alone(tmp_path, monkeypatch, protocol):
    """Random play loses a life of Breakout every few dozen steps; stacks reach back over it, as the game continues."""
    lost, add = [], FrameMemory.add

    def spy(self, obs, actions, rewards, terminal, truncated, restarted, final_obs):
        lost.append((terminal & ~restarted).copy())
        slots = add(self, obs, actions, rewards, terminal, truncated, restarted, final_obs)
        if lost[-1][0]:
            assert self.terminal[0, slots[0]]
            assert self.next_age[0] == min(len(lost), 3)
        return slots

    monkeypatch.setattr(FrameMemory, "add", spy)
    flags = {"env_id": "ALE/Breakout-v5", "total_timesteps": 130, "learning_starts": 129, "exploration_steps": 10**6}
    run(tmp_path / "run", protocol=protocol, probe=UNSEEN, **flags)
    assert (sum(one.sum() for one in lost) >= 1) == (protocol == "classic")


def test_a_video_of_each_evaluation_changes_no_number(plain, tmp_path, monkeypatch):
    directory, scalars, state = plain
    lengths, play = [], script.play

    def watched(env, *rest, **more):
        returns = play(env, *rest, **more)
        lengths.append(len(env.frames))
        return returns

    monkeypatch.setattr(script, "play", watched)
    filmed, same = run(tmp_path / "filmed", **EVALUATED, record_video=True)
    assert filmed == scalars
    scripts.assert_same(same, state)
    assert scripts.videos(tmp_path / "filmed") == dict(zip(("step-80.gif", "step-160.gif"), lengths, strict=True))
    assert min(lengths) > 1
    assert not (directory / "video").exists()
    assert f"its first {MAX_FRAMES:,} steps" in inspect.getsource(Args)


def test_a_resumed_run_writes_the_same_video_again(tmp_path, monkeypatch):
    """Broken at step 100: its checkpoint is of step 60, before the evaluation at step 80."""
    flags = {**EVALUATED, "total_timesteps": 120, "record_video": True}
    for name in ("whole", "broken"):
        with monkeypatch.context() as patch, contextlib.suppress(ZeroDivisionError):
            if name == "broken":
                patch.setattr(Session, "show_speed", lambda self, line: 1 / (self.step - 100))
            run(tmp_path / name, **flags)
    whole, broken = (tmp_path / name / "video" / "step-80.gif" for name in ("whole", "broken"))
    assert broken.read_bytes() == whole.read_bytes()
    assert read_status(tmp_path / "broken")["status"] == "failed"
    broken.write_bytes(b"half of")
    script.main(parse(Args, PRESETS, ["--resume", str(tmp_path / "broken")]))
    assert broken.read_bytes() == whole.read_bytes()
    assert recorded(tmp_path / "broken") == recorded(tmp_path / "whole")


def changed_task(directory, **switch):
    """A change of the actions at step 100 of 160, with 5 updates before it and 15 after it, and no copy of the target
    network: scalars and last state."""
    shift = script.ShiftArgs("actions", at_steps=(100,))
    flags = {"target_network_frequency": 10**6, "exploration_steps": 60, "learning_starts": 80, "probe": UNSEEN}
    return run(directory, switch=script.SwitchArgs(**switch), shift=shift, **{**flags, "log_every": 10})


def adam_steps(state):
    return {int(one["step"]) for one in state["optimizer"]["state"].values()}


@pytest.fixture(scope="module")
def unanswered(tmp_path_factory):
    return changed_task(tmp_path_factory.mktemp("unanswered") / "run")


def test_by_default_nothing_but_the_task_changes(unanswered):
    scalars, state = unanswered
    assert state["counters"]["updates"] == 20
    assert adam_steps(state) == {20}
    assert scalars["shift/boundary"] == [(100, 1.0)]
    assert scalars["shift/task"] == [(0, 0.0), (100, 1.0)]
    assert [dict(scalars["charts/epsilon"])[step] for step in (100, 160)] == pytest.approx([0.01, 0.01])


def test_a_cleared_replay_memory_pauses_the_updates(tmp_path):
    """Until 80 steps after the change, when the run is over."""
    _, state = changed_task(tmp_path / "run", replay="clear")
    assert state["counters"] == {"updates": 5, "exploration_step": 0, "learning_step": 180, "learning_updates": 5}
    assert (state["replay"]["written"] - state["replay"]["forgotten"]).tolist() == [60]


def test_exploration_restarts(tmp_path):
    scalars, _ = changed_task(tmp_path / "run", exploration="restart")
    assert dict(scalars["charts/epsilon"])[110] == pytest.approx(1 - 0.99 * 9 / 60)


def test_moments_are_reset(tmp_path):
    _, state = changed_task(tmp_path / "run", optimizer="reset")
    assert adam_steps(state) == {15}
    assert state["counters"]["updates"] == 20


def test_the_target_network_is_copied(unanswered, tmp_path):
    _, state = changed_task(tmp_path / "run", target="copy")
    initial = unanswered[1]["target_network"]
    assert not torch.equal(state["target_network"]["head.weight"], initial["head.weight"])


def test_a_fresh_agent_starts_anew_in_everything(unanswered, tmp_path):
    scalars, state = changed_task(tmp_path / "run", fresh_agent=True)
    assert state["counters"] == {"updates": 5, "exploration_step": 100, "learning_step": 180, "learning_updates": 5}
    assert adam_steps(state) == {0}
    assert dict(scalars["charts/epsilon"])[110] > 0.8
    for name, initial in unanswered[1]["target_network"].items():
        if "weight" in name:
            assert not torch.equal(state["target_network"][name], initial)
            assert torch.equal(state["target_network"][name], state["q_network"][name])


def test_projection_holds_the_norms_and_a_reset_brings_new_ones(tmp_path):
    """With two environments a reset comes at the first step from its number on."""
    scalars, _ = run(tmp_path / "run", reset=script.ResetArgs((119, 150)), num_envs=2, **PROJECTED)
    assert scalars["reset/event"] == [(120, 1.0), (150, 1.0)]
    for layer in ("conv1", "hidden"):
        norms = scalars[f"norms/parameter/{layer}"]
        before, after = ([v for s, v in norms if a < s <= b] for a, b in ((0, 120), (120, 150)))
        assert len(before) > 1 and max(before) == pytest.approx(min(before), rel=1e-5)
        assert len(after) > 1 and max(after) == pytest.approx(min(after), rel=1e-5)
        assert before[0] != pytest.approx(after[0], rel=1e-5)


def test_a_run_in_bf16_is_projected_and_measured_like_any_other(tmp_path):
    for bf16 in (False, True):
        run(tmp_path / str(bf16), bf16=bf16, total_timesteps=120, **PROJECTED)
    scripts.assert_projected_in_bf16(tmp_path / "False", tmp_path / "True", "q_network")


def test_scale_invariance_is_checked_in_float32_at_the_start_at_a_reset_and_at_a_change(tmp_path, monkeypatch):
    """The rounding of bfloat16 would look like a dependence on the scale of the weights."""
    seen = []
    monkeypatch.setattr(projection, "check_scale_invariance", lambda network, *_, **__: seen.append(network.bf16))
    script.main(
        tiny(
            tmp_path / "run", bf16=True, probe=script.ProbeArgs(0, 8, meter_every=0), total_timesteps=140,
            reset=script.ResetArgs((101,)), shift=script.ShiftArgs("actions", at_steps=(130,)),
            switch=script.SwitchArgs(intervention="reset"), **PROJECTED,
        )
    )  # fmt: skip
    assert seen == [False, False, False]


EVERYTHING = shlex.split(
    "chain-cusum --env-id ALE/Pong-v5 --shift.games ALE/Breakout-v5 --seed 5 --total-timesteps 300 "
    "--learning-starts 60 --buffer-size 120 --batch-size 4 --num-envs 2 --n-step 3 --double-q --shift.every-steps "
    "110 --protocol classic --exploration-steps 200 --target-network-frequency 40 --checkpoint-every 40 "
    "--log-every 20 --eval-every 0 --schedule.period-steps 100 --rewarm.block 2 --rewarm.burn-in 5 "
    "--rewarm.refractory 5 --rewarm.threshold 0.2 --rewarm.slack 0.01 --rewarm.moments reset --nap.every 3 "
    "--reset.at-steps 190 --reset.layers head --probe.every 20 --probe.size 8 --probe.meter-every 7 "
)


@pytest.mark.parametrize("where", ["host", "device"])
def test_killed_and_resumed_is_bit_identical(tmp_path, where):
    """Two games in turn, both emulators and the memory in pieces; the ring wraps. Also with the frames elsewhere."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    scripts.finish(scripts.start(SCRIPT, *EVERYTHING, "--directory", whole))
    flags = (*EVERYTHING, "--replay-device", where, "--directory", killed)
    scripts.kill_beyond(scripts.start(SCRIPT, *flags), killed, 60, signal.SIGKILL)
    assert list((killed / "pieces").glob("replay-0-*.pt"))
    scripts.kill_beyond(scripts.start(SCRIPT, "--resume", killed), killed, 160, signal.SIGKILL)
    scripts.finish(scripts.start(SCRIPT, "--resume", killed))
    assert recorded(killed) == recorded(whole)
    assert {"reset/event", "rewarm/event", "shift/boundary"} <= recorded(whole).keys()
    states = [saved(directory) for directory in (whole, killed)]
    for state in states:
        state["replay"].pop("pieces")  # cut where the run was
    scripts.assert_same(*states)
    assert read_status(killed)["status"] == "finished"
    assert not (killed / "pieces").exists()


def test_with_threads_a_resumed_run_starts_new_episodes(tmp_path, monkeypatch):
    args = tiny(
        tmp_path / "run", env_id="ALE/Pong-v5", env_threads=1, num_envs=2, total_timesteps=120, learning_starts=90,
        probe=UNSEEN,
    )  # fmt: skip
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        scripts.stop_at(patch, 100)
        script.main(args)
    assert read_status(args.directory)["step"] == 100
    script.main(dataclasses.replace(args, resume=args.directory))
    state = saved(args.directory)
    assert state["env"]["env"]["resumptions"] == 1
    assert state["env"]["env"]["lengths"].tolist() == [10, 10]
    assert state["replay"]["written"].tolist() == [61, 61]  # one more state in each lane, to bootstrap from


# a copy of the script


def test_a_copy_with_a_wider_and_an_added_hidden_layer_is_three_edits_of_the_network(tmp_path):
    copy = scripts.edited(
        SCRIPT, tmp_path,
        ("bf16, not normalised, 512", "bf16, not normalised, 1024"),
        (
            '        self.head = nn.Linear(width, actions)\n        self.probed = ["conv1_relu", ',
            "        self.hidden2, self.hidden2_norm = nn.Linear(width, width, bias=bias), norm(width)\n"
            "        self.hidden2_relu = nn.ReLU()\n"
            '        self.head = nn.Linear(width, actions)\n        self.probed = ["hidden2_relu", "conv1_relu", ',
        ),
        (
            "self.hidden(x)))  # [B, 512]\n",
            "self.hidden(x)))\n            x = self.hidden2_relu(self.hidden2_norm(self.hidden2(x)))\n",
        ),
    )  # fmt: skip
    copy.main(copy.Args(**{**TINY, **PROJECTED, "total_timesteps": 110, "directory": tmp_path / "run"}))
    scalars, state = recorded(tmp_path / "run"), saved(tmp_path / "run")
    assert state["q_network"]["hidden2.weight"].shape == (1024, 1024)
    assert scalars["elr/hidden2"][-1][1] > 0
    assert scalars["plasticity/delta_a/hidden2_relu"][-1][1] > 0
    norms = [value for _, value in scalars["norms/parameter/hidden2"]]
    assert len(norms) > 1 and max(norms) == pytest.approx(min(norms), rel=1e-4)
    assert not torch.equal(state["q_network"]["hidden2.weight"], state["target_network"]["hidden2.weight"])
