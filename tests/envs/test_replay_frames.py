"""FrameMemory against a literal memory that keeps every step whole."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from envs.replay import FrameMemory, frames


class InMemoryPieces(dict):
    """Pieces of a checkpoint that are kept in memory; none may be written twice."""

    def write(self, name, content):
        assert name not in self
        self[name] = {part: np.array(array) for part, array in content.items()}

    def read(self, name):
        return self[name]

    def keep_only(self, names):
        """As `runs.recording.Pieces`: forget all others."""
        kept = set(names)
        for name in [name for name in self if name not in kept]:
            del self[name]


class Lane:
    """What happened in one environment, kept whole: a literal replay memory without an end."""

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


def play(memory, num_envs, steps, seed=0, ends=0.1):
    """Random frames, rewards and ends; yields after each step the lanes, and which step is in which slot."""
    rng = np.random.default_rng(seed)
    frame = lambda: rng.integers(1, 256, (84, 84), dtype=np.uint8)  # noqa: E731
    stacks = np.zeros((num_envs, 4, 84, 84), np.uint8)
    stacks[:, -1] = [frame() for _ in range(num_envs)]
    lanes, where = [Lane() for _ in range(num_envs)], {}
    for _ in range(steps):
        obs, actions = stacks.copy(), rng.integers(5, size=num_envs)
        rewards = rng.normal(size=num_envs).astype(np.float32)
        terminated = rng.random(num_envs) < ends
        truncated = (rng.random(num_envs) < ends) & ~terminated
        life_lost = (rng.random(num_envs) < ends) & ~terminated & ~truncated
        final = np.roll(stacks, -1, axis=1)
        final[:, -1] = [frame() for _ in range(num_envs)]
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


def fill(memory, num_envs, steps, **how):
    """Play to the end."""
    *_, last = play(memory, num_envs, steps, **how)
    return last


def one_by_one(memory, slots):
    """`valid` of each slot in a separate call: a batch may take the short cut."""
    return [memory.valid(slots[k : k + 1]).item() for k in range(len(slots))]


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("n", [1, 3])
def test_what_is_sampled_is_what_happened(n, num_envs, where):
    """While the ring wraps several times, with terminated and truncated episodes and lost lives."""
    memory, rows = FrameMemory(31 * num_envs, num_envs, 0.9, n, where=where), 0
    for t, (lanes, where) in enumerate(play(memory, num_envs, 150), start=1):
        if t % 10:
            continue
        slots = np.arange(31 * num_envs)
        alone = one_by_one(memory, slots)
        slots = slots[memory.valid(slots)]
        assert slots.tolist() == np.flatnonzero(alone).tolist()
        obs, actions, returns, next_obs, discounts = memory.gather(slots)
        for i, slot in enumerate(slots):
            e, step = where[int(slot)]
            total, discount, state = lanes[e].after(step, n, 0.9)
            assert np.array_equal(obs[i], lanes[e].steps[step]["obs"])
            assert actions[i] == lanes[e].steps[step]["action"]
            assert returns[i] == pytest.approx(total, abs=1e-5)
            assert discounts[i] == pytest.approx(discount, abs=1e-6)
            assert state is None or np.array_equal(next_obs[i], state)
        rows += len(slots)
    assert rows > 150 * num_envs and len(memory) == 31 * num_envs


def test_a_step_is_invalid_only_while_what_follows_is_unknown():
    """Before the ring wraps."""
    memory = FrameMemory(1000, 2, 0.9, 3)
    lanes, where = fill(memory, 2, 120)
    slots = np.array(sorted(where))
    known = [lanes[where[s][0]].after(where[s][1], 3, 0.9) is not None for s in slots.tolist()]
    assert memory.valid(slots).tolist() == known
    assert one_by_one(memory, slots) == known


def test_states_to_bootstrap_from_and_empty_rows_are_invalid():
    memory = FrameMemory(1000, 2, 0.9, 3)
    _, where = fill(memory, 2, 120)
    others = np.setdiff1d(np.arange(1000), np.array(sorted(where)))
    assert memory.only_state.ravel()[others].any()
    assert not memory.valid(others).any() and not any(one_by_one(memory, others))


def test_sampling_is_uniform_over_the_valid_slots():
    memory = FrameMemory(40, 2, 0.9)
    fill(memory, 2, 60)
    slots = np.arange(40)
    valid, rng = slots[memory.valid(slots)], np.random.default_rng(1)
    memory.gather = lambda chosen: chosen
    drawn = np.concatenate([memory.sample(32, rng) for _ in range(400)])
    counts = np.bincount(drawn, minlength=40)
    assert counts[np.setdiff1d(slots, valid)].sum() == 0
    expected = len(drawn) / len(valid)
    chi2 = float((((counts[valid] - expected) ** 2) / expected).sum())
    assert chi2 < len(valid) + 4 * math.sqrt(2 * len(valid))  # mean and deviation of chi-squared


def test_sampling_without_a_valid_slot_raises():
    memory = FrameMemory(40, 1, 0.9)
    fill(memory, 1, 1, ends=0.0)
    with pytest.raises(ValueError, match="holds no transition"):
        memory.sample(1, np.random.default_rng(0))


def test_a_cleared_memory_returns_nothing_from_before():
    memory = FrameMemory(50, 1, 0.9)
    game = play(memory, 1, 60, ends=0.05)
    for _ in range(30):
        next(game)
    memory.clear()
    assert len(memory) == 0 and not memory.valid(np.arange(50)).any() and len(memory.only_states()) == 0
    for _ in range(20):
        _, where = next(game)
    valid = np.flatnonzero(one_by_one(memory, np.arange(50)))
    assert len(valid) and all(where[int(slot)][1] >= 30 for slot in valid)


def assert_equal_memories(one, other):
    slots = np.arange(60)
    assert np.array_equal(other.valid(slots), one.valid(slots)) and one.valid(slots).any()
    for a, b in zip(*(m.gather(slots[m.valid(slots)]) for m in (one, other)), strict=True):
        a, b = np.asarray(a), np.asarray(b)  # stacks may be tensors
        assert a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize(("where", "there"), [("host", "host"), ("device", "host"), ("host", "device")])
def test_a_memory_saved_in_pieces_comes_back_exactly_and_no_piece_is_written_twice(monkeypatch, where, there):
    """Also in a memory whose frames are elsewhere."""
    monkeypatch.setattr(frames, "PIECE_ROWS", 16)
    pieces, memory, written = InMemoryPieces(), FrameMemory(60, 2, 0.9, 2, where=where), set()
    for t, _ in enumerate(play(memory, 2, 100), start=1):
        if t % 9 == 0:
            state = memory.save(pieces)
            pieces.keep_only(name for name, *_ in memory.pieces)
            assert {len(piece["actions"]) for piece in pieces.values()} <= set(range(1, 17))
            written |= pieces.keys()
            other = FrameMemory(60, 2, 0.9, 2, where=there)
            other.load(state, pieces)
            assert_equal_memories(memory, other)
            np.testing.assert_equal(other.save(pieces), memory.save(pieces))
    assert len(written) > len(pieces)  # old pieces are gone


def test_a_loaded_memory_continues_exactly():
    pieces, memory, other = InMemoryPieces(), FrameMemory(60, 2, 0.9, 2), FrameMemory(60, 2, 0.9, 2)
    fill(memory, 2, 40)
    other.load(memory.save(pieces), pieces)
    for each in (memory, other):
        fill(each, 2, 25, seed=1)
    assert_equal_memories(memory, other)


@pytest.mark.parametrize(("capacity", "num_envs"), [(60, 2), (40, 1)])
def test_a_state_of_another_shape_is_refused(capacity, num_envs):
    pieces = InMemoryPieces()
    state = FrameMemory(40, 2, 0.9).save(pieces)
    with pytest.raises(ValueError, match="another shape"):
        FrameMemory(capacity, num_envs, 0.9).load(state, pieces)


@pytest.mark.parametrize("where", ["host", "device"])
def test_cut_truncates_the_running_episodes(where):
    memory, last = FrameMemory(60, 2, 0.9, where=where), np.array([19, 30 + 19])
    fill(memory, 2, 20, ends=0.0)
    seen = np.full((2, 4, 84, 84), 7, np.uint8)
    assert not memory.valid(last).any()
    memory.cut(seen)
    assert memory.valid(last).all() and not memory.valid(last + 1).any()
    obs, _, _, next_obs, discounts = memory.gather(last)
    assert (next_obs[:, -1] == 7).all() and np.array_equal(next_obs[:, :-1], obs[:, 1:])
    assert discounts.tolist() == pytest.approx([0.9, 0.9])
    assert memory.only_states().tolist() == [20, 50]


def test_a_second_cut_changes_nothing():
    memory = FrameMemory(60, 2, 0.9)
    fill(memory, 2, 20, ends=0.0)
    for _ in range(2):
        memory.cut(np.full((2, 4, 84, 84), 7, np.uint8))
        assert len(memory) == 42


def test_an_episode_that_was_cut_stays_cut_when_the_run_is_resumed_again_and_again():
    """The row before the cut is in a piece that an earlier session wrote, without the cut."""
    pieces, none = InMemoryPieces(), np.zeros(1, dtype=bool)

    def add(memory, rewards):
        for reward in rewards:
            obs = np.full((1, 4, 84, 84), reward, np.uint8)
            memory.add(obs, np.zeros(1, int), np.full(1, float(reward)), none, none, none, obs)

    def resumed(memory):
        state = memory.save(pieces)
        pieces.keep_only(name for name, *_ in memory.pieces)
        other = FrameMemory(40, 1, 0.5, 3)
        other.load(state, pieces)
        other.cut(np.full((1, 4, 84, 84), 9, np.uint8))
        return other

    memory, slot = FrameMemory(40, 1, 0.5, 3), np.array([2])  # the last step before the first cut
    add(memory, [1, 1, 1])
    for _ in range(3):
        memory = resumed(memory)
        add(memory, [100, 100, 100])
        assert memory.valid(slot).all()
        _, _, returns, next_obs, discounts = memory.gather(slot)
        assert returns.tolist() == [1.0] and discounts.tolist() == [0.5] and (next_obs[0, -1] == 9).all()


def test_only_states_are_the_newest_rows_that_hold_no_transition():
    memory, obs = FrameMemory(30, 3, 0.9), np.zeros((3, 4, 84, 84), np.uint8)
    assert len(memory.only_states()) == 0
    no, truncated = np.zeros(3, bool), np.array([False, True, False])
    memory.add(obs, np.zeros(3, int), np.zeros(3), no, truncated, truncated, obs)
    assert memory.only_states().tolist() == [11]
    memory.add(obs, np.zeros(3, int), np.zeros(3), no, no, no, obs)
    assert len(memory.only_states()) == 0


def test_a_million_transitions_take_under_eight_gigabytes_and_none_before_they_come():
    memory = FrameMemory(1_000_000, 1, 0.99)
    parts = [*vars(memory).values(), memory.screens.frames]
    arrays = [value for value in parts if isinstance(value, np.ndarray)]
    assert 7.05e9 < sum(array.nbytes for array in arrays) < 7.1e9
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 if Path("/proc/self/statm").exists() else 0
    assert resident < 3e9
