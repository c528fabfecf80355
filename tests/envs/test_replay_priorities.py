"""The sum tree against running sums, and prioritised sampling against its formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from envs.replay import FrameMemory, Priorities, SumTree


def everything_valid(slots: np.ndarray) -> np.ndarray:
    return np.ones(len(slots), dtype=bool)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("size", [1, 2, 5, 64, 65, 200, 4096, 4097, 70_000, 300_000])
def test_the_sum_tree_finds_what_a_running_sum_finds(size):
    tree, values = SumTree(size), rng(size).integers(0, 4, size=size).astype(float)
    values[rng(1).integers(size)] = 2.0  # not all zero
    tree.set(np.arange(size), values)
    assert tree.total == values.sum()
    points = np.arange(0.125, values.sum(), 0.25)  # not at a border, where rounding decides
    np.testing.assert_array_equal(tree.find(points), np.searchsorted(np.cumsum(values), points, side="right"))


def test_a_sum_tree_after_many_changes_equals_a_new_one(monkeypatch):
    monkeypatch.setattr(SumTree, "TOP", 3)
    tree, literal, stream = SumTree(9000), [0.0] * 9000, rng(0)
    for _ in range(2000):
        index, values = stream.integers(9000, size=6), stream.random(6)
        tree.set(index, values)
        for i, value in zip(index, values, strict=True):  # of repetitions the last value stays
            literal[i] = value
    assert tree.leaves.tolist() == literal
    fresh = SumTree(9000)
    fresh.set_all(tree.leaves.copy())
    assert [level.shape for level in tree.nodes] == [(141, 64), (3, 64)] and tree.top.shape == (3,)
    for one, other in zip([*fresh.nodes, *fresh.ends, fresh.top], [*tree.nodes, *tree.ends, tree.top], strict=True):
        np.testing.assert_array_equal(one, other)
    assert tree.total == pytest.approx(math.fsum(literal), rel=1e-14)
    for k, number in enumerate(tree.nodes[1].ravel()[:141]):
        assert number == pytest.approx(math.fsum(literal[64 * k : 64 * k + 64]), rel=1e-14)
    for k in (0, 1, 63, 64, 8999):  # the first, the last of its siblings, the first of the next, the last of all
        siblings = literal[k // 64 * 64 : k // 64 * 64 + 64]
        share = math.fsum(siblings[: k % 64 + 1]) / math.fsum(siblings)
        assert tree.ends[0].ravel()[k] == pytest.approx(k // 64 + share, rel=1e-14)
        assert tree.find(np.array([math.fsum(literal[:k]) + 0.5 * literal[k]])).tolist() == [k]


def test_a_point_at_the_end_finds_no_empty_leaf():
    tree = SumTree(11)
    tree.set(np.array([2, 5]), np.array([0.1, 0.2]))
    assert tree.find(np.array([0.0, 0.1 + 1e-12, tree.total, np.nextafter(tree.total, 0), 1.0])).tolist() == [
        2,
        5,
        5,
        5,
        5,
    ]


@pytest.mark.parametrize("seed", range(5))
def test_points_at_the_borders_of_numbers_of_all_sizes_find_no_empty_leaf(seed):
    stream = rng(seed)
    tree, values = SumTree(5000), 10.0 ** stream.uniform(-12, 3, size=5000) * (stream.random(5000) < 0.02)
    tree.set_all(values)
    ends = np.cumsum(values)
    points = np.concatenate([ends, np.nextafter(ends, 0), np.nextafter(ends, np.inf), [tree.total]])
    found = tree.find(points[points >= 0])
    assert (values[found] > 0).all()
    literal = np.minimum(np.searchsorted(ends, points[points >= 0], side="right"), np.flatnonzero(values)[-1])
    off = np.abs(ends[found] - ends[literal])  # where the roundings differ it is a neighbour, of a point at the border
    assert (off <= np.maximum(values[found], values[literal]) + 1e-12 * tree.total).all()


def test_an_empty_sum_tree_finds_the_first_leaf():
    assert SumTree(2000).find(np.zeros(3)).tolist() == [0, 0, 0]


def priorities_of(values: list[float], uniform: float = 1e-3, slots: int | None = None) -> Priorities:
    priorities = Priorities(slots or len(values), 0.5, uniform)
    priorities.add(np.arange(len(values)))
    priorities.update(np.arange(len(values)), np.array(values))
    return priorities


def test_probabilities_and_importance_weights_by_formula():
    p = [4.0, 1.0, 0.0, 0.25, 9.0]
    priorities = priorities_of(p, uniform=0.2, slots=8)
    roots = [math.sqrt(x) for x in p]
    literal = [0.8 * x / sum(roots) + 0.2 / 5 for x in roots]
    slots = np.array([4, 2, 0, 0])
    got = priorities.probabilities(slots)
    np.testing.assert_allclose(got, [literal[i] for i in slots], rtol=1e-14)
    for beta in (0.4, 1.0):
        raw = [(1 / (5 * literal[i])) ** beta for i in slots]
        np.testing.assert_allclose(priorities.importance_weights(got, beta), [w / max(raw) for w in raw], rtol=1e-13)
    assert np.all(priorities.importance_weights(got, 0.0) == 1)


@pytest.mark.parametrize("uniform", [1e-3, 0.5])
def test_slots_are_drawn_in_proportion(uniform):
    """Pearson's statistic with 6 degrees of freedom exceeds 22.5 once in a thousand; and a control that must fail."""
    priorities = priorities_of([1.0, 4.0, 0.0, 9.0, 0.01, 2.0, 2.5], uniform, slots=16)
    slots, probabilities = priorities.sample(40_000, rng(5), everything_valid)
    counts, expected = np.bincount(slots, minlength=7), 40_000 * priorities.probabilities(np.arange(7))
    assert expected.sum() == pytest.approx(40_000) and len(counts) == 7
    assert ((counts - expected) ** 2 / expected).sum() < 22.5
    assert ((counts - 40_000 / 7) ** 2 / (40_000 / 7)).sum() > 1000
    np.testing.assert_array_equal(probabilities, priorities.probabilities(slots))


def test_invalid_slots_are_drawn_again_and_the_others_keep_their_proportions():
    priorities = priorities_of([1.0, 100.0, 4.0, 9.0])
    slots, _ = priorities.sample(30_000, rng(2), lambda slots: slots != 1)
    counts = np.bincount(slots, minlength=4)
    p = priorities.probabilities(np.arange(4))
    expected = 30_000 * p / (p[0] + p[2] + p[3])
    assert counts[1] == 0 and ((counts - expected) ** 2 / expected)[[0, 2, 3]].sum() < 13.8  # 2 degrees, 1 in 1000
    with pytest.raises(ValueError, match="next to none of 4"):
        priorities.sample(5, rng(0), lambda slots: np.zeros(len(slots), dtype=bool))


def test_new_transitions_get_the_largest_priority_seen():
    priorities = Priorities(6, 0.5, 1e-3)
    priorities.add(np.array([0, 3]))
    assert priorities.tree.leaves.tolist() == [1, 0, 0, 1, 0, 0]
    priorities.update(np.array([0, 3]), np.array([0.09, 16.0]))
    priorities.update(np.array([3]), np.array([0.25]))  # the largest is remembered after its slot has changed
    priorities.add(np.array([4, 0]))
    assert priorities.tree.leaves.tolist() == pytest.approx([4, 0, 0, 0.5, 4, 0])
    assert priorities.size == 3 and priorities.order[:3].tolist() == [0, 3, 4]
    priorities.update(np.array([0]), np.float32([0.5]))  # below the first largest, 1
    assert priorities.largest == 16.0


def test_saved_priorities_continue_exactly():
    priorities, stream = Priorities(50, 0.5, 0.1), rng(0)
    for _ in range(30):
        priorities.add(stream.permutation(40)[:3])
        slots, _ = priorities.sample(8, stream, everything_valid)
        priorities.update(slots, stream.random(8) * 5)
    state = priorities.state_dict()
    other = priorities_of([3.0, 2.0], slots=50)
    other.uniform = 0.1
    other.load_state_dict(state)
    for theirs, ours in zip(other.tree.nodes, priorities.tree.nodes, strict=True):
        assert np.array_equal(theirs, ours)
    np.testing.assert_equal(other.state_dict(), state)
    draws = [p.sample(64, rng(1), everything_valid) for p in (priorities, other)]
    np.testing.assert_equal(*draws)
    for each in (priorities, other):
        each.add(np.array([45, 2]))
    np.testing.assert_equal(other.state_dict(), priorities.state_dict())
    with pytest.raises(ValueError, match="50 slots, not of 51"):
        Priorities(51, 0.5, 0.1).load_state_dict(state)


@pytest.mark.parametrize(("forget_largest", "leaf"), [(False, 2.0), (True, 1.0)])
def test_cleared_priorities_are_those_of_an_empty_memory(forget_largest, leaf):
    priorities = priorities_of([4.0, 1.0], slots=5)
    priorities.clear(forget_largest=forget_largest)
    assert priorities.size == 0 and priorities.tree.total == 0
    priorities.add(np.array([4]))
    assert priorities.sample(3, rng(0), everything_valid)[0].tolist() == [4, 4, 4]
    assert priorities.tree.leaves[4] == leaf


def test_priorities_cleared_with_their_largest_are_as_when_built():
    cleared, fresh = priorities_of([4.0, 1.0, 7.0], slots=5), Priorities(5, 0.5, 1e-3)
    cleared.clear(forget_largest=True)
    for each in (cleared, fresh):
        each.add(np.array([3, 1]))
        each.update(np.array([1]), np.array([5.0]))
    np.testing.assert_equal(cleared.state_dict(), fresh.state_dict())
    np.testing.assert_equal(vars(cleared.tree), vars(fresh.tree))


@pytest.mark.parametrize("exponent", [0.5, 0.0])
def test_a_slot_without_a_transition_is_never_drawn_for_its_priority(exponent):
    priorities = Priorities(4, exponent, 0.0)
    priorities.add(np.array([0, 1, 2]))
    priorities.update(np.array([1]), np.array([1000.0]))
    priorities.blank(np.array([1]))
    priorities.blank(np.array([3]))
    priorities.blank(np.array([], dtype=np.int64))
    assert priorities.tree.leaves.tolist() == [1, 0, 1, 0] and priorities.size == 4
    assert set(priorities.sample(200, rng(0), everything_valid)[0]) == {0, 2}
    priorities.add(np.array([1]))
    assert priorities.tree.leaves[1] == 1000.0**exponent


def play(replay: FrameMemory, priorities: Priorities, steps: int, blank: bool = True) -> None:
    """Steps of a memory with many truncated episodes, whose transitions get random priorities."""
    stream, n = rng(1), replay.lanes
    obs = np.zeros((n, 4, 84, 84), dtype=np.uint8)
    for _ in range(steps):
        truncated, terminal = stream.random(n) < 0.2, stream.random(n) < 0.1
        slots = replay.add(obs, np.zeros(n, dtype=int), np.zeros(n), terminal, truncated, terminal | truncated, obs)
        priorities.add(slots)
        if blank:
            priorities.blank(replay.only_states())
        priorities.update(slots, stream.random(n) + 0.1)


def shares_of_states(replay: FrameMemory, priorities: Priorities) -> list[float]:
    """Leaves of the slots that hold only a state; every other slot's are positive."""
    held = replay.only_state.ravel()
    assert held.sum() >= 2 and (priorities.tree.leaves[~held & priorities.written] > 0).all()
    return priorities.tree.leaves[held].tolist()


@pytest.mark.parametrize("num_envs", [1, 3])
def test_states_to_bootstrap_from_are_never_drawn_for_their_priority(num_envs):
    """Also where such a row overwrote a transition, and after the episodes were cut."""
    replay, priorities = FrameMemory(40 * num_envs, num_envs, 0.9), Priorities(40 * num_envs, 0.5, 0.0)
    for _ in range(6):
        play(replay, priorities, 37)
        assert not any(shares_of_states(replay, priorities))
    assert not replay.only_state.ravel()[priorities.sample(2000, rng(0), everything_valid)[0]].any()
    replay.cut(np.zeros((num_envs, 4, 84, 84), dtype=np.uint8))
    priorities.blank(replay.only_states())
    assert not any(shares_of_states(replay, priorities))
    replay.clear()
    assert len(replay.only_states()) == 0  # cleared rows are not reported again

    replay, priorities = FrameMemory(40, 1, 0.9), Priorities(40, 0.5, 0.0)
    play(replay, priorities, 120, blank=False)
    assert any(shares_of_states(replay, priorities))  # the control: priorities of what was there before
