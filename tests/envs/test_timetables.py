"""When changes are due."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.timetables import AtRandom, AtSteps, EverySteps, NoChange


def changes(timetable, until: int, seed=0) -> list[int]:
    rng, due, found = np.random.default_rng(seed), 0, []
    while (due := timetable.next_change(due, rng)) is not None and due <= until:
        found.append(due)
    return found


def test_due_steps_by_hand():
    assert changes(NoChange(), 1000) == []
    assert changes(EverySteps(100), 350) == [100, 200, 300]
    assert changes(AtSteps((3, 10, 11)), 1000) == [3, 10, 11]
    assert changes(AtRandom(1.0), 5) == [1, 2, 3, 4, 5]


def test_smallest_gaps():
    assert NoChange().smallest_gap is None and AtRandom(0.5).smallest_gap is None
    assert EverySteps(7).smallest_gap == 7
    assert AtSteps((5, 9, 11)).smallest_gap == 2 and AtSteps((1, 9)).smallest_gap == 1


@given(st.integers(1, 50), st.integers(0, 1000))
def test_the_next_change_is_the_next_multiple_of_the_period(period, after):
    due = EverySteps(period).next_change(after, np.random.default_rng(0))
    assert after < due <= after + period and due % period == 0


def test_only_random_timetables_draw():
    for timetable in (NoChange(), EverySteps(5), AtSteps((3, 8))):
        rng = np.random.default_rng(1)
        timetable.next_change(0, rng)
        assert rng.random() == np.random.default_rng(1).random()


def test_random_gaps_are_geometric():
    gaps = np.diff([0, *changes(AtRandom(0.02), 400_000)])
    n, q = len(gaps), 0.98
    assert abs(gaps.mean() - 50) < 5 * np.sqrt(q) / 0.02 / np.sqrt(n)
    assert abs((gaps > 50).mean() - q**50) < 5 * np.sqrt(0.25 / n)
    assert changes(AtRandom(0.02), 2000, seed=1) == changes(AtRandom(0.02), 2000, seed=1)
    assert changes(AtRandom(0.02), 2000, seed=1) != changes(AtRandom(0.02), 2000, seed=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EverySteps(0), "at least 1"),
        (lambda: AtSteps(()), "no step is listed"),
        (lambda: AtSteps((0, 5)), "begin at 1"),
        (lambda: AtSteps((5, 5)), "rise"),
        (lambda: AtRandom(0.0), "probability"),
        (lambda: AtRandom(1.5), "probability"),
        (lambda: AtRandom(float("nan")), "probability"),
    ],
)
def test_invalid_timetables_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()
