"""TransitionMemory: what is kept, sampled and saved."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from envs.replay import TransitionMemory

SHAPE = (4, 10, 10)


def filled(highest: int, capacity: int = 8, steps: int = 11) -> tuple[TransitionMemory, np.ndarray]:
    """A memory after steps i = 0, 1, ... with action i mod 3, reward i, termination at even i; and its observations."""
    memory = TransitionMemory(capacity, SHAPE)
    observations = np.random.default_rng(0).integers(0, highest, (steps + 1, *SHAPE), dtype=np.uint8, endpoint=True)
    for i in range(steps):
        add(memory, observations[i], i % 3, float(i), observations[i + 1], i % 2 == 0)
    return memory, observations


def add(memory: TransitionMemory, *transition) -> None:
    """One transition, of one environment."""
    memory.add(*(np.array([part]) for part in transition))


def test_the_newest_transitions_are_kept():
    memory, observations = filled(1)
    assert len(memory) == 8 and memory.position == 3
    assert sorted(memory.rewards.tolist()) == [float(i) for i in range(3, 11)]
    obs, actions, rewards, next_obs, terminated = memory.sample(64, np.random.default_rng(1))
    i = rewards.astype(int)
    assert np.array_equal(obs, observations[i])
    assert np.array_equal(next_obs, observations[i + 1])
    assert np.array_equal(actions, i % 3)
    assert np.array_equal(terminated, i % 2 == 0)


def test_the_dtypes_are_those_that_torch_needs():
    dtypes = [array.dtype.name for array in filled(1)[0].sample(2, np.random.default_rng(1))]
    assert dtypes == ["uint8", "int64", "float32", "uint8", "float32"]


def test_sampling_is_uniform():
    memory = TransitionMemory(10, SHAPE)
    for i in range(10):
        add(memory, np.zeros(SHAPE, np.uint8), 0, float(i), np.zeros(SHAPE, np.uint8), False)
    counts = np.bincount(memory.sample(20_000, np.random.default_rng(0))[2].astype(int), minlength=10)
    assert ((counts - 2000.0) ** 2 / 2000).sum() < 27.9  # 99.9 % point of chi-squared with 9 degrees of freedom


@pytest.mark.parametrize("highest", [1, 255])
@pytest.mark.parametrize("steps", [0, 5, 11])
def test_a_saved_memory_continues_exactly(highest, steps):
    memory, _ = filled(highest, steps=steps)
    other = TransitionMemory(8, SHAPE)
    other.load_state_dict(memory.state_dict())
    np.testing.assert_equal(other.state_dict(), memory.state_dict())
    for each in (memory, other):
        add(each, np.ones(SHAPE, np.uint8), 2, 7.0, np.zeros(SHAPE, np.uint8), True)
    for mine, theirs in zip(*(m.sample(64, np.random.default_rng(1)) for m in (memory, other)), strict=True):
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)


@pytest.mark.parametrize(("highest", "bits"), [(1, 1), (2, 8), (255, 8)])
def test_binary_observations_are_saved_as_bits(highest, bits):
    memory, _ = filled(highest)
    assert memory.state_dict()["obs"].nbytes == 8 * 400 * bits // 8


def test_a_saved_state_is_not_changed_by_later_steps():
    memory, _ = filled(255)
    state = memory.state_dict()
    before = copy.deepcopy(state)
    add(memory, np.zeros(SHAPE, np.uint8), 5, 0.5, np.zeros(SHAPE, np.uint8), True)
    np.testing.assert_equal(state, before)


@pytest.mark.parametrize(("capacity", "shape"), [(7, SHAPE), (8, (4, 10, 9)), (8, (400,))])
def test_a_state_that_does_not_fit_is_refused(capacity, shape):
    with pytest.raises(ValueError, match="does not fit"):
        TransitionMemory(capacity, shape).load_state_dict(filled(1)[0].state_dict())


def test_a_cleared_memory_is_filled_from_the_start():
    memory, _ = filled(1)
    memory.clear()
    assert len(memory) == 0
    add(memory, np.ones(SHAPE, np.uint8), 1, 50.0, np.ones(SHAPE, np.uint8), False)
    assert memory.sample(20, np.random.default_rng(0))[2].tolist() == [50.0] * 20


def test_environments_fill_slots_in_their_order_and_share_them_when_full():
    memory, drawn = TransitionMemory(6, SHAPE, num_envs=2), np.random.default_rng(0)
    steps = [drawn.integers(256, size=(2, *SHAPE), dtype=np.uint8) for _ in range(6)]
    for i in range(5):
        rewards, terminated = np.array([10.0 * i, 10.0 * i + 1]), np.array([False, i == 3])
        memory.add(steps[i], np.array([i, i + 1]), rewards, steps[i + 1], terminated)
    assert len(memory) == 6 and memory.position == 4
    assert memory.rewards.tolist() == [30, 31, 40, 41, 20, 21]  # the oldest step was overwritten as a whole
    assert memory.actions.tolist() == [3, 4, 4, 5, 2, 3]
    assert memory.terminated.tolist() == [0, 1, 0, 0, 0, 0]
    assert np.array_equal(memory.obs, np.concatenate([steps[3], steps[4], steps[2]]))
    assert np.array_equal(memory.next_obs, np.concatenate([steps[4], steps[5], steps[3]]))


@pytest.mark.parametrize(("capacity", "num_envs"), [(7, 2), (8, 0), (8, -2)])
def test_a_capacity_that_is_no_multiple_of_the_environments_is_refused(capacity, num_envs):
    with pytest.raises(ValueError, match=f"capacity must be a multiple of num_envs, got {capacity} and {num_envs}"):
        TransitionMemory(capacity, SHAPE, num_envs)


def test_a_state_in_the_middle_of_a_step_of_its_environments_is_refused():
    state = filled(1, steps=3)[0].state_dict()
    with pytest.raises(ValueError, match="does not fit 2 environments"):
        TransitionMemory(8, SHAPE, num_envs=2).load_state_dict(state)
