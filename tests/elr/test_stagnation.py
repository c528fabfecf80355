"""The stagnation detector: hand-worked alarms, streams without alarms, exact resume."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elr.stagnation import Stagnation


def alarms(detector, movements):
    return [t for t, m in enumerate(movements, start=1) if detector.update(m)]


def test_hand_worked():
    # r_t, the means of two: -, 3, 5, 6, 4, 2, 1; the largest is 6; 2 <= 0.4 * 6 at t = 6
    assert alarms(Stagnation(ratio=0.4, window=2, burn_in=2), [2, 4, 6, 6, 2, 2, 0]) == [6]


def test_burn_in_delays_the_alarm_and_an_alarm_forgets_the_past():
    movements = [8, 8, 1, 1, 1, 1, 1]
    assert alarms(Stagnation(ratio=0.5, window=1, burn_in=2), movements) == [3]  # afterwards the largest is 1
    assert alarms(Stagnation(ratio=0.5, window=1, burn_in=6), movements) == [6]
    again = Stagnation(ratio=0.5, window=1, burn_in=2)
    assert alarms(again, [8, 1, 4, 1]) == [2, 4]


def test_refractory_lets_a_schedule_anneal_and_remembers_its_peak():
    movements = [8, 1, 4, 2, 0.3, 0.3, 0.3]  # an alarm at 2; then a schedule with peak 4, annealed
    assert alarms(Stagnation(ratio=0.5, window=1, burn_in=2), movements) == [
        2,
        4,
    ]  # the first of them false
    assert alarms(Stagnation(ratio=0.5, window=1, burn_in=2, refractory=4), movements) == [2, 6]


def test_statistic_is_the_share_of_the_largest():
    detector = Stagnation(ratio=0.1, window=2, burn_in=2)
    assert detector.statistic == 1.0
    for movement in (2.0, 6.0, 2.0):
        detector.update(movement)
    assert detector.statistic == 1.0  # means 4, 4
    detector.update(0.0)
    assert detector.statistic == 0.25
    assert detector.update(0.0) and detector.statistic == 0.0  # what raised the alarm
    detector.update(1.0)
    assert detector.statistic == 1.0


@given(st.floats(1e-6, 1e6), st.integers(1, 40))
def test_constant_and_growing_movement_raise_no_alarm(level, count):
    assert alarms(Stagnation(), [level] * count) == []
    assert alarms(Stagnation(), [level * i for i in range(count)]) == []
    assert alarms(Stagnation(), [0.0] * count) == []


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-30, 100.0)), max_size=60),
    st.sampled_from([2.0**k for k in range(-9, 10)]),
)
def test_the_unit_does_not_matter(movements, unit):
    scaled = [m * unit for m in movements]
    assert alarms(Stagnation(), scaled) == alarms(Stagnation(), movements)


@given(st.lists(st.floats(0.0, 10.0), max_size=50), st.integers(0, 50))
def test_resume_is_exact(movements, cut):
    whole, first, second = (Stagnation(window=3, burn_in=4, refractory=6) for _ in range(3))
    expected = [whole.update(m) for m in movements]
    found = [first.update(m) for m in movements[:cut]]
    second.load_state_dict(first.state_dict())
    found += [second.update(m) for m in movements[cut:]]
    assert found == expected and second.state_dict() == whole.state_dict()


def test_refusals():
    for bad in ({"ratio": 0.0}, {"ratio": 1.0}, {"window": 0}, {"burn_in": 4}, {"window": 1.5}, {"refractory": 4}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Stagnation(**bad)
    detector = Stagnation()
    with pytest.raises(ValueError, match="negative"):
        detector.update(-1.0)
    with pytest.raises(FloatingPointError):
        detector.update(math.nan)
    assert detector.state_dict() == Stagnation().state_dict()
    with pytest.raises(ValueError, match="exactly"):
        detector.load_state_dict({"recent": []})
    with pytest.raises(ValueError, match="window 5"):
        detector.load_state_dict({"recent": [1.0] * 6, "peak": 1.0, "seen": 6, "alarms": 0, "statistic": 1.0})
