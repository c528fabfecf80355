"""The shipped DQN for Atari: replay memory, loss, flags, presets, resuming; learning is in test_catch_learning.py."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import shlex
import signal
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from agents import dqn_atari as script
from agents.dqn_atari import PRESETS, Args, NewestErrors, QNetwork, ReplayMemory, gradient
from runs.recording import Pieces, RunError, load_checkpoint, parse, read_scalars, read_status
from runs.recording.video import MAX_FRAMES
from tests.agents import scripts

SCRIPT = Path(__file__).parents[2] / "agents" / "dqn_atari.py"
TINY = {
    "env_id": "rewarm/Catch-v0", "total_timesteps": 260, "learning_starts": 100, "buffer_size": 200, "batch_size": 4,
    "eval_every": 130, "eval_episodes": 1, "log_every": 20, "checkpoint_every": 60, "exploration_steps": 200,
    "target_network_frequency": 40, "probe": script.ProbeArgs(every=10, size=8, meter_every=8),
}  # fmt: skip


def tiny(directory, **changes):
    return Args(**{**TINY, "directory": directory, **changes})


def recorded(directory):
    """Every scalar but the speed."""
    return {tag: rows for tag, rows in read_scalars(directory).items() if tag != "charts/SPS"}


# the replay memory


class Lane:
    """What happened in one copy, kept whole: a literal replay memory without an end."""

    def __init__(self):
        self.steps: list[dict] = []

    def after(self, t, n, gamma):
        """(R, discount, next state) from step t, or None while the step that decides it has not been made."""
        total = 0.0
        for k in range(n):
            step = self.steps[t + k] if t + k < len(self.steps) else None
            if step is None:
                return None
            total += gamma**k * step["reward"]
            if step["terminal"]:
                return total, 0.0, None
            if step["truncated"]:
                return total, gamma ** (k + 1), step["final"]
        if t + n >= len(self.steps):
            return None
        return total, gamma**n, self.steps[t + n]["obs"]


def play(memory, copies, steps, seed=0, ends=0.1):
    """Random frames, rewards and ends; yields after each step the lanes, and which step is in which slot."""
    rng = np.random.default_rng(seed)
    frame = lambda: rng.integers(1, 256, (84, 84), dtype=np.uint8)  # noqa: E731
    stacks = np.zeros((copies, 4, 84, 84), np.uint8)
    stacks[:, -1] = [frame() for _ in range(copies)]
    lanes, where = [Lane() for _ in range(copies)], {}
    for _ in range(steps):
        obs, actions = stacks.copy(), rng.integers(5, size=copies)
        rewards = rng.normal(size=copies).astype(np.float32)
        terminated = rng.random(copies) < ends
        truncated = (rng.random(copies) < ends) & ~terminated
        life_lost = (rng.random(copies) < ends) & ~terminated & ~truncated
        final = np.roll(stacks, -1, axis=1)
        final[:, -1] = [frame() for _ in range(copies)]
        terminal = terminated | life_lost
        slots = memory.add(obs, actions, rewards, terminal, truncated, terminated | truncated, final)
        for e, lane in enumerate(lanes):
            where[int(slots[e])] = e, len(lane.steps)
            parts = {"obs": obs, "action": actions, "reward": rewards, "terminal": terminal, "truncated": truncated}
            lane.steps.append({name: part[e] for name, part in (parts | {"final": final}).items()})
        stacks = final.copy()
        for e in np.flatnonzero(terminated | truncated):
            stacks[e], stacks[e, -1] = 0, frame()
        yield lanes, where


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("n", [1, 3])
def test_what_is_sampled_is_what_happened(n, copies):
    """Against every step kept whole, while the ring wraps several times, through terminal, truncated and lost lives."""
    memory, rows = ReplayMemory(31 * copies, copies, 0.9, n), 0
    for t, (lanes, where) in enumerate(play(memory, copies, 150), start=1):
        if t % 10:
            continue
        slots = np.arange(31 * copies)
        alone = [memory.valid(slots[k : k + 1]).item() for k in range(len(slots))]
        slots = slots[memory.valid(slots)]
        assert slots.tolist() == np.flatnonzero(alone).tolist()  # however close a look was taken
        obs, actions, returns, next_obs, discounts = memory.gather(slots)
        for i, slot in enumerate(slots):
            e, step = where[int(slot)]
            total, discount, state = lanes[e].after(step, n, 0.9)
            assert np.array_equal(obs[i], lanes[e].steps[step]["obs"]) and actions[i] == lanes[e].steps[step]["action"]
            assert returns[i] == pytest.approx(total, abs=1e-5) and discounts[i] == pytest.approx(discount, abs=1e-6)
            assert state is None or np.array_equal(next_obs[i], state)
        rows += len(slots)
    assert rows > 150 * copies and len(memory) == 31 * copies


def test_everything_that_can_be_known_is_valid():
    """Before the ring wraps, a step is invalid only while what follows is unknown."""
    memory = ReplayMemory(1000, 2, 0.9, 3)
    *_, (lanes, where) = play(memory, 2, 120)
    slots = np.array(sorted(where))
    known = [lanes[where[s][0]].after(where[s][1], 3, 0.9) is not None for s in slots.tolist()]
    assert memory.valid(slots).tolist() == known
    assert [memory.valid(slots[k : k + 1]).item() for k in range(len(slots))] == known  # alone, most need no close look
    others = np.setdiff1d(np.arange(1000), slots)
    assert not any(memory.valid(others[k : k + 1]).any() for k in range(len(others)))
    assert not memory.valid(others).any()  # states to bootstrap from, and what was never written


def test_sampling_is_uniform_over_the_valid():
    memory = ReplayMemory(40, 2, 0.9)
    for _ in play(memory, 2, 60):
        pass
    slots = np.arange(40)
    valid, rng = slots[memory.valid(slots)], np.random.default_rng(1)
    memory.gather = lambda chosen: chosen
    drawn = np.concatenate([memory.sample(32, rng) for _ in range(400)])
    counts = np.bincount(drawn, minlength=40)
    assert counts[np.setdiff1d(slots, valid)].sum() == 0
    expected = len(drawn) / len(valid)
    chi2 = float((((counts[valid] - expected) ** 2) / expected).sum())
    assert chi2 < len(valid) + 4 * math.sqrt(2 * len(valid))  # mean and deviation of chi-squared


def test_a_memory_without_a_known_transition_says_so():
    memory = ReplayMemory(40, 1, 0.9)
    next(play(memory, 1, 1, ends=0.0))
    with pytest.raises(RunError, match="holds no transition"):
        memory.sample(1, np.random.default_rng(0))


def test_cleared_it_holds_nothing_of_before():
    memory = ReplayMemory(50, 1, 0.9)
    game = play(memory, 1, 60, ends=0.05)
    for _ in range(30):
        next(game)
    memory.clear()
    assert len(memory) == 0 and not memory.valid(np.arange(50)).any()
    for _ in range(20):
        _, where = next(game)
    valid = np.flatnonzero([memory.valid(np.array([slot])).item() for slot in range(50)])
    assert len(valid) and all(where[int(slot)][1] >= 30 for slot in valid)


def test_saved_in_pieces_it_comes_back_exactly_and_nothing_is_written_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "PIECE_ROWS", 16)
    pieces, memory = Pieces(tmp_path / "pieces"), ReplayMemory(60, 2, 0.9, 2)
    written = {}
    for t, _ in enumerate(play(memory, 2, 100), start=1):
        if t % 9 == 0:
            state = memory.save(pieces)
            pieces.keep_only(name for name, *_ in memory.pieces)
            for path in (tmp_path / "pieces").iterdir():
                stamp = path.stat().st_mtime_ns
                assert written.setdefault(path.name, stamp) == stamp  # a piece is never touched again
            other = ReplayMemory(60, 2, 0.9, 2)
            other.load(state, pieces)
            slots = np.arange(60)
            assert np.array_equal(other.valid(slots), memory.valid(slots)) and memory.valid(slots).any()
            for one, two in zip(*(m.gather(slots[m.valid(slots)]) for m in (memory, other)), strict=True):
                assert np.array_equal(one, two)
            scripts.assert_same(other.save(pieces), memory.save(pieces))
    assert len(written) > len(list((tmp_path / "pieces").iterdir()))  # old pieces have gone


def test_a_memory_of_another_shape_is_refused(tmp_path):
    memory = ReplayMemory(40, 2, 0.9)
    state = memory.save(Pieces(tmp_path))
    for capacity, copies in ((60, 2), (40, 1)):
        with pytest.raises(RunError, match="another shape"):
            ReplayMemory(capacity, copies, 0.9).load(state, Pieces(tmp_path))


def test_episodes_that_cannot_be_gone_on_with_end_truncated():
    memory = ReplayMemory(60, 2, 0.9)
    for _ in play(memory, 2, 20, ends=0.0):
        pass
    seen = np.full((2, 4, 84, 84), 7, np.uint8)
    assert not memory.valid(np.array([19, 30 + 19])).any()
    memory.cut(seen)
    obs, _, _, next_obs, discounts = memory.gather(np.array([19, 30 + 19]))
    assert memory.valid(np.array([19, 30 + 19])).all() and not memory.valid(np.array([20, 50])).any()
    assert (next_obs[:, -1] == 7).all() and np.array_equal(next_obs[:, :-1], obs[:, 1:])
    assert discounts.tolist() == pytest.approx([0.9, 0.9])
    memory.cut(seen)  # nothing runs any more
    assert len(memory) == 42


def test_a_million_transitions_take_under_eight_gigabytes_and_nothing_before_they_come():
    memory = ReplayMemory(1_000_000, 1, 0.99)
    arrays = [value for value in vars(memory).values() if isinstance(value, np.ndarray)]
    assert 7.05e9 < sum(array.nbytes for array in arrays) < 7.1e9
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 if Path("/proc/self/statm").exists() else 0
    assert resident < 3e9


# network, loss, errors


@pytest.mark.parametrize("normalised", [False, True])
def test_the_networks_sizes_are_those_published(normalised):
    network = QNetwork(6, normalised)
    weights = [w for name, w in network.named_parameters() if w.dim() > 1]
    assert [tuple(w.shape) for w in weights][:5] == [
        (32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (6, 512)
    ] or normalised  # fmt: skip
    plain = sum(p.numel() for p in QNetwork(6).parameters())
    assert plain == 8224 + 32832 + 36928 + 1606144 + 3078
    gains = 2 * (32 * 20 * 20 + 64 * 9 * 9 + 64 * 7 * 7 + 512)
    assert sum(p.numel() for p in network.parameters()) == plain + normalised * (gains - 32 - 64 - 64 - 512)


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
    """Q = (2, 1), Q' = (10, 20): the maximum is 20, the online network's choice, action 0, is worth 10."""
    online, target = constant_network([2.0, 1.0]), constant_network([10.0, 20.0])
    obs = np.zeros((2, 4, 84, 84), np.uint8)
    batch = [obs, np.array([1, 0]), np.array([0.5, 1.0]), obs, np.array([0.9**3, 0.0])]
    loss, q = gradient(online, target, batch, double_q)
    errors = np.array([1.0 - (0.5 + 0.9**3 * bootstrapped), 2.0 - 1.0])
    assert loss.item() == pytest.approx((errors**2).mean(), rel=1e-12) and q.tolist() == [1.0, 2.0]
    np.testing.assert_allclose(online.head.bias.grad, [errors[1], errors[0]], rtol=1e-12)
    assert all(p.grad is None for p in target.parameters())


def test_the_newest_errors_by_hand():
    newest = NewestErrors(0.5, 2)
    newest.act(np.array([3.0, 1.0]), np.array([2.0, 1.0]))
    assert newest.read() == 0.0  # no transition yet
    newest.step(np.array([1.0, -1.0]), np.array([False, True]), np.array([False, False]))
    assert newest.read() == (-1 - 1.0) ** 2  # the terminal one: r - Q
    newest.act(np.array([4.0, 9.0]), np.array([4.0, 8.0]))
    assert newest.read() == (1 + 0.5 * 4 - 2.0) ** 2  # copy 1 began anew
    newest.step(np.array([0.0, 0.0]), np.array([False, False]), np.array([True, False]))
    newest.act(np.array([5.0, 5.0]), np.array([5.0, 5.0]))
    assert newest.read() == (0 + 0.5 * 5 - 8.0) ** 2  # copy 0 was truncated: left out
    again = NewestErrors(0.5, 2)
    newest.step(np.array([1.0, 2.0]), np.array([True, False]), np.array([False, False]))
    again.load_state_dict(newest.state_dict())
    scripts.assert_same(again.state_dict(), newest.state_dict())
    again.cut()
    again.act(np.array([1.0, 1.0]), np.array([1.0, 1.0]))
    assert again.read() == (1 - 5.0) ** 2  # of the terminal one alone


# flags


def test_every_flag_is_read():
    groups = {f.name: type(getattr(Args(), f.name)) for f in dataclasses.fields(Args) if "." not in f.name}
    groups = {name: kind for name, kind in groups.items() if dataclasses.is_dataclass(kind)}
    short_for = {"schedule": "s", "rewarm": "r", "shift": "shift", "switch": "switch", "nap": "nap", "probe": "probe"}
    assert scripts.unread_flags(script, groups, short_for) == []


@pytest.mark.parametrize(
    "words, named",
    [
        ("--nap.enabled", ["--nap.enabled", "--network normalised"]),
        ("--nap.every 3", ["--nap.every", "--nap.enabled"]),
        ("--num-envs 3", ["--buffer-size", "--num-envs"]),
        ("--num-envs 8 --checkpoint-every 50", ["--checkpoint-every", "--num-envs"]),
        ("--reset.layers head", ["--reset.layers", "--reset.at-steps"]),
        ("--reset.at-steps 5 3", ["--reset.at-steps"]),
        ("--reset.at-steps 20000000", ["--reset.at-steps", "--total-timesteps"]),
        ("--rewarm.trigger every", ["--rewarm.trigger", "--schedule.kind"]),
        ("--shift.kind modes --shift.every-steps 100", ["--shift.kind modes", "--shift.values"]),
        ("--eval-every 0 --eval-epsilon 0.1", ["--eval-epsilon", "--eval-every"]),
        ("--eval-every 0 --record-video", ["--record-video", "--eval-every 0"]),
        ("--weight-decay -1", ["--weight-decay"]),
        ("--learning-rate 1e-7 --schedule.kind cyclic", ["--schedule.low", "--learning-rate"]),
        ("--device cuda", ["--device"]),
    ],
)
def test_flags_that_contradict_or_do_nothing_are_refused_by_name(words, named, capsys):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as end:
        parse(Args, PRESETS, shlex.split(words))
    message = capsys.readouterr().err.strip()
    assert end.value.code == 2 and "\n" not in message and all(name in message for name in named), message


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"env_id": "ALE/Pongg-v5"}, "ALE/Pong-v5"),
        ({"env_id": "ALE/Pong-v5", "shift": script.ShiftArgs("modes", every_steps=50, values=(0, 77))}, "no mode 77"),
        ({"shift": script.ShiftArgs("modes", every_steps=50, values=(0, 1))}, "mode"),
        ({"env_threads": 1}, "threads"),
    ],
)
def test_worlds_that_do_not_exist_are_one_line(tmp_path, changes, named):
    with pytest.raises(RunError, match=named):
        script.main(tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_the_papers_arms():
    """arXiv:2507.20057, App. A.3: rates, cycles, budget."""
    arms = {name: PRESETS[f"high-utd-{name}"].args for name in ("baseline", "low", "cyclic", "cyclic-annealed")}
    for args in arms.values():
        assert (args.replay_ratio, args.adam_eps, args.total_timesteps, args.network) == (
            1,
            1.5e-4,
            50_000_000,
            "plain",
        )
        assert not args.nap.enabled and args.weight_decay == 0
    assert [arms[name].learning_rate for name in arms] == [6.25e-5, 1e-6, 6.25e-5, 6.25e-5]
    assert arms["cyclic"].schedule == script.ScheduleArgs("cyclic", 1e-6, 1_000_000, 0.1, 10)
    for name, frames in (("cyclic-annealed", 40), ("cyclic-annealed-8M", 8), ("cyclic-annealed-20M", 20)):
        schedule = PRESETS[f"high-utd-{name}"].args.schedule
        assert schedule.kind == "cyclic-then-constant" and schedule.low == 1e-6
        assert 4 * schedule.cycles * schedule.period_steps == frames * 1_000_000
    assert PRESETS["high-utd-weight-decay"].args.weight_decay == 1e-2
    quick = PRESETS["quick-high-utd-cyclic-annealed"].args
    assert quick.total_timesteps * 100 == 50_000_000 and quick.schedule.period_steps * 100 == 1_000_000


def test_weight_decay_is_decoupled(tmp_path):
    network = QNetwork(3)
    optimizer = script.make_optimizer(network, Args(weight_decay=0.5, learning_rate=0.1))
    before = network.head.weight.detach().clone()
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(network.head.weight.detach(), before * (1 - 0.1 * 0.5))


# runs


def test_rewards_are_clipped_for_learning_and_counted_as_they_are(tmp_path, monkeypatch):
    """Catch with rewards of 5: returns are multiples of 5, the memory holds -1, 0 and 1."""
    held = []
    add = ReplayMemory.add
    monkeypatch.setattr(ReplayMemory, "add", lambda self, *a: held.append(a[2]) or add(self, *a))
    shift = script.ShiftArgs("rewards", at_steps=(250,), values=(5.0, -1.0))
    for clip in (True, False):
        held.clear()
        script.main(tiny(tmp_path / str(clip), shift=shift, clip_rewards=clip, learning_starts=240))
        returns = [value for _, value in read_scalars(tmp_path / str(clip))["charts/episodic_return"]]
        assert returns and all(value % 5 == 0 for value in returns)
        assert {abs(float(x)) for row in held for x in row} == ({0.0, 1.0} if clip else {0.0, 5.0})


class TwoCopies:
    """Rewards of 1 and 10 a step; copy 0 ends after 2 steps, copy 1 after 50, and both go on for who steps them."""

    num_envs, single_action_space = 2, gymnasium.spaces.Discrete(3)

    def reset(self, seed):
        self.seen, self.t = [], 0
        return np.zeros((2, 4, 84, 84), np.uint8), {}

    def step(self, actions):
        self.seen.append(actions.tolist())
        self.t += 1
        ended = np.array([self.t % 2 == 0, self.t == 50])
        return self.reset_obs(), np.array([1.0, 10.0]), ended & [True, False], ended & [False, True], {}

    def reset_obs(self):
        return np.zeros((2, 4, 84, 84), np.uint8)


def test_an_evaluation_counts_one_episode_of_each_copy_and_acts_at_random_so_often():
    env, network = TwoCopies(), constant_network([1.0, 0.0, 2.0]).float()
    assert script.evaluate(network, env, 3, 0.0).tolist() == [2.0, 500.0]
    assert {action for actions in env.seen for action in actions} == {2}
    script.evaluate(network, env, 3, 1.0)
    assert {action for actions in env.seen for action in actions} == {0, 1, 2}


def test_a_video_of_each_evaluation_changes_no_number(tmp_path, monkeypatch):
    lengths, evaluate = [], script.evaluate

    def watched(network, env, *rest):
        returns = evaluate(network, env, *rest)
        lengths.append(len(env.frames))
        return returns

    script.main(tiny(tmp_path / "bare", eval_episodes=2))
    monkeypatch.setattr(script, "evaluate", watched)
    script.main(tiny(tmp_path / "filmed", eval_episodes=2, record_video=True))
    assert recorded(tmp_path / "filmed") == recorded(tmp_path / "bare")
    scripts.assert_same(*(load_checkpoint(tmp_path / name / "checkpoint.pt")["state"] for name in ("bare", "filmed")))
    assert scripts.videos(tmp_path / "filmed") == dict(zip(("step-130.gif", "step-260.gif"), lengths, strict=True))
    assert min(lengths) > 1 and not (tmp_path / "bare" / "video").exists()
    assert f"its first {MAX_FRAMES:,} steps" in inspect.getsource(Args)


def test_a_resumed_run_writes_the_same_video_again(tmp_path, monkeypatch):
    """Stopped at step 140: its checkpoint is of step 120, before the evaluation at 130."""
    for name in ("whole", "broken"):
        with monkeypatch.context() as patch, contextlib.suppress(ZeroDivisionError):
            if name == "broken":
                patch.setattr(script.Progress, "show", lambda self, step, *rest: 1 / (step - 140))
            script.main(tiny(tmp_path / name, record_video=True))
    whole, broken = (tmp_path / name / "video" / "step-130.gif" for name in ("whole", "broken"))
    assert broken.read_bytes() == whole.read_bytes() and read_status(tmp_path / "broken")["status"] == "failed"
    broken.write_bytes(b"half of")
    script.main(parse(Args, PRESETS, ["--resume", str(tmp_path / "broken")]))
    assert broken.read_bytes() == whole.read_bytes() and recorded(tmp_path / "broken") == recorded(tmp_path / "whole")


def changed_world(directory, **switch):
    """A change of the actions at step 150 of 260; the run's last state and its scalars."""
    args = tiny(
        directory, switch=script.SwitchArgs(**switch), shift=script.ShiftArgs("actions", at_steps=(150,)),
        eval_every=0, eval_episodes=5, target_network_frequency=10**6, exploration_steps=100,
    )  # fmt: skip
    script.main(args)
    return load_checkpoint(directory / "checkpoint.pt")["state"], read_scalars(directory)


def adam_steps(state):
    return {int(one["step"]) for one in state["optimizer"]["state"].values()}


def test_what_happens_at_a_change_is_what_the_flags_say(tmp_path):
    """Up to step 150 there are 12 updates; a pause of 100 steps leaves room for 2 more of the 40."""
    plain, scalars = changed_world(tmp_path / "plain")
    assert plain["updates"] == 40 and adam_steps(plain) == {40} and scalars["shift/boundary"] == [(150, 1.0)]
    rates = dict(scalars["charts/epsilon"])
    assert rates[140] == pytest.approx(0.01) and rates[260] == pytest.approx(0.01)
    start = script.make_network(3, Args(), 0, torch.device("cpu")).state_dict().keys()
    begun = dict(plain["target_network"])  # never copied: as at the start

    state, _ = changed_world(tmp_path / "clear", replay="clear")
    assert state["updates"] == 14 and adam_steps(state) == {14} and state["learns_from"] == 250
    _, scalars = changed_world(tmp_path / "explore", exploration="restart")
    assert dict(scalars["charts/epsilon"])[160] == pytest.approx(1 - 0.99 * 0.09)
    state, _ = changed_world(tmp_path / "moments", optimizer="reset")
    assert state["updates"] == 40 and adam_steps(state) == {28}
    state, _ = changed_world(tmp_path / "target", target="copy")
    assert any(not torch.equal(begun[name], state["target_network"][name]) for name in start)
    state, scalars = changed_world(tmp_path / "fresh", fresh_agent=True)
    assert state["updates"] == 14 and adam_steps(state) == {2} and dict(scalars["charts/epsilon"])[160] > 0.9
    for name in start:
        if "weight" in name:
            assert not torch.equal(begun[name], state["target_network"][name])


def test_a_reset_comes_at_the_first_step_from_its_number_on(tmp_path):
    script.main(tiny(tmp_path / "run", num_envs=2, reset=script.ResetArgs((151, 180)), eval_every=0, eval_episodes=5))
    assert read_scalars(tmp_path / "run")["reset/event"] == [(152, 1.0), (180, 1.0)]


@pytest.mark.parametrize("protocol", ["machado", "classic"])
def test_a_lost_life_ends_the_return_in_the_classic_protocol_alone(tmp_path, monkeypatch, protocol):
    """Breakout at random loses a life every few dozen steps; the stack reaches back over it, as the game goes on."""
    lost, add = [], ReplayMemory.add

    def spy(self, obs, actions, rewards, terminal, truncated, restarted, final_obs):
        lost.append((terminal & ~restarted).copy())
        slots = add(self, obs, actions, rewards, terminal, truncated, restarted, final_obs)
        if lost[-1][0]:
            assert self.terminal[0, slots[0]] and self.next_age[0] == min(len(lost), 3)
        return slots

    monkeypatch.setattr(ReplayMemory, "add", spy)
    flags = {"env_id": "ALE/Breakout-v5", "total_timesteps": 130, "learning_starts": 129, "exploration_steps": 10**6}
    script.main(tiny(tmp_path / "run", protocol=protocol, eval_every=0, eval_episodes=5, **flags))
    assert (sum(one.sum() for one in lost) >= 1) == (protocol == "classic")


def test_the_same_seed_repeats_and_another_does_not(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        script.main(tiny(tmp_path / name, seed=seed, total_timesteps=240, eval_every=0, eval_episodes=5))
    a, b, c = (recorded(tmp_path / name) for name in "abc")
    assert a == b and a["losses/td_loss"] != c["losses/td_loss"]
    assert (
        a["plasticity/effective_rank/hidden_relu"][0] != c["plasticity/effective_rank/hidden_relu"][0]
    )  # init and probe


def test_measurements_change_nothing(tmp_path):
    off = script.ProbeArgs(every=0, meter_every=0)
    for name, probe in (("on", TINY["probe"]), ("off", off)):
        script.main(tiny(tmp_path / name, probe=probe, total_timesteps=140, eval_every=0, eval_episodes=5))
    on, off = (load_checkpoint(tmp_path / name / "checkpoint.pt")["state"]["q_network"] for name in ("on", "off"))
    scripts.assert_same(dict(on), dict(off))


def test_projection_holds_the_norms_and_resets_bring_new_ones(tmp_path):
    nap = {"network": "normalised", "nap": script.NapArgs(enabled=True)}
    script.main(tiny(tmp_path / "run", reset=script.ResetArgs((200,)), **nap))
    scalars = read_scalars(tmp_path / "run")
    assert scalars["reset/event"] == [(200, 1.0)]
    for layer in ("conv1", "hidden"):
        norms = scalars[f"norms/parameter/{layer}"]
        for part in ([v for s, v in norms if s < 200], [v for s, v in norms if s > 200]):
            assert len(part) > 1 and max(part) == pytest.approx(min(part), rel=1e-5)


@pytest.mark.parametrize("layers", ["head", "dense", "all"])
@pytest.mark.parametrize("network", ["plain", "normalised"])
def test_a_reset_renews_its_layers_and_their_moments_alone(layers, network):
    args = Args(network=network, reset=script.ResetArgs((5,), layers))
    ours, fresh = (script.make_network(3, args, seed, torch.device("cpu")) for seed in (1, 2))
    optimizer = script.make_optimizer(ours, args)
    for p in ours.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    script.reset_(ours, fresh, modules=script.layers_to_reset(args), optimizer=optimizer, moments="reset")
    renewed = {"head": ["head."], "dense": ["head.", "hidden.", "hidden_norm."], "all": [""]}[layers]
    for (name, p), q in zip(ours.named_parameters(), fresh.parameters(), strict=True):
        new = any(name.startswith(start) for start in renewed)
        assert torch.equal(p, q) == new, name
        assert (optimizer.state[p]["exp_avg"].abs().sum() == 0) == new and (optimizer.state[p]["step"] == 0) == new


EVERYTHING = shlex.split(
    "chain-cusum --env-id ALE/Pong-v5 --shift.games ALE/Breakout-v5 --seed 5 --total-timesteps 420 "
    "--learning-starts 60 --buffer-size 160 --batch-size 4 --num-envs 2 --n-step 3 --double-q --shift.every-steps "
    "150 --protocol classic --exploration-steps 200 --target-network-frequency 40 --checkpoint-every 20 "
    "--log-every 20 --eval-every 0 --schedule.period-steps 100 --rewarm.block 2 --rewarm.burn-in 5 "
    "--rewarm.refractory 5 --rewarm.threshold 1 --rewarm.slack 0.1 --rewarm.moments reset --nap.every 3 "
    "--reset.at-steps 260 --reset.layers head --probe.every 20 --probe.size 8 --probe.meter-every 7 "
)


def test_killed_and_resumed_is_bit_identical(tmp_path):
    """Two games in turn, both emulators and the memory in pieces; the ring wraps."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    scripts.finish(scripts.start(SCRIPT, *EVERYTHING, "--directory", whole))
    scripts.kill_beyond(scripts.start(SCRIPT, *EVERYTHING, "--directory", killed), killed, 80, signal.SIGKILL)
    assert list((killed / "pieces").glob("replay-0-*.pt"))
    scripts.kill_beyond(scripts.start(SCRIPT, "--resume", killed), killed, 240, signal.SIGKILL)
    scripts.finish(scripts.start(SCRIPT, "--resume", killed))
    assert recorded(killed) == recorded(whole) and "reset/event" in recorded(whole)
    states = [load_checkpoint(d / "checkpoint.pt")["state"] for d in (whole, killed)]
    for state in states:
        state["replay"].pop("pieces")  # cut where the run was
    scripts.assert_same(*states)
    assert read_status(killed)["status"] == "finished" and not (killed / "pieces").exists()


def test_with_threads_a_resumed_run_begins_new_episodes(tmp_path):
    flags = shlex.split(
        "--env-id ALE/Pong-v5 --env-threads 1 --num-envs 2 --total-timesteps 200 --learning-starts 60 --batch-size 4 "
        "--buffer-size 160 --checkpoint-every 20 --log-every 20 --target-network-frequency 40 --eval-every 0 "
        "--probe.every 0"
    )
    run = tmp_path / "run"
    scripts.kill_beyond(scripts.start(SCRIPT, *flags, "--directory", run), run, 60, signal.SIGKILL)
    cut = read_status(run)["step"]
    scripts.finish(scripts.start(SCRIPT, "--resume", run))
    state = load_checkpoint(run / "checkpoint.pt")["state"]
    assert state["env"]["env"]["resumptions"] == 1 and state["env"]["env"]["lengths"].tolist() == [(200 - cut) // 2] * 2
    assert state["replay"]["written"].tolist() == [101, 101]  # one more state in each lane, to bootstrap from


def test_a_run_in_bf16_is_projected_and_measured_like_any_other(tmp_path):
    projected = {"network": "normalised", "nap": script.NapArgs(enabled=True), "eval_every": 0, "eval_episodes": 5}
    for bf16 in (False, True):
        script.main(tiny(tmp_path / str(bf16), bf16=bf16, **projected))
    scripts.assert_projected_in_bf16(tmp_path / "False", tmp_path / "True", "q_network")
