"""Triggers: when each fires, exact resume, and reset to the state after construction."""

from collections.abc import Callable

import pytest
import torch

from elr.changepoint import Cusum
from elr.stagnation import Stagnation
from elr.triggers import AtKnownChange, Every, Never, OnCusum, OnStagnation, Trigger


def on_cusum() -> OnCusum:
    return OnCusum(Cusum(block=2, burn_in=2, refractory=3, threshold=2.0, slack=0.5))


def on_stagnation() -> OnStagnation:
    return OnStagnation(Stagnation(ratio=0.5, window=1, burn_in=2))


MAKERS: list[Callable[[], Trigger]] = [Never, lambda: Every(3), on_cusum, on_stagnation, AtKnownChange]


def fired(trigger: Trigger, signals: list[float], first: int = 1) -> list[int]:
    """Numbers of the updates after which the trigger fires; AtKnownChange is told of a change at 4 and 9."""
    updates = []
    for update, signal in enumerate(signals, start=first):
        if isinstance(trigger, AtKnownChange) and update in (4, 9):
            trigger.notify()
        if trigger.fires(update, signal):
            updates.append(update)
    return updates


SIGNALS = [1.0, 1.1, 0.9, 1.0, 1.1, 1.0, 9.0, 9.0, 9.0, 0.1, 0.1]


@pytest.mark.parametrize(("make", "expected"), list(zip(MAKERS, ([], [3, 6, 9], [8], [10], [4, 9]), strict=True)))
def test_when_each_trigger_fires(make: Callable[[], Trigger], expected: list[int]) -> None:
    assert fired(make(), SIGNALS) == expected


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("cut", [3, 7, 9])
def test_resume_is_exact(make: Callable[[], Trigger], cut: int) -> None:
    whole, first, second = make(), make(), make()
    expected = fired(whole, SIGNALS)
    found = fired(first, SIGNALS[:cut])
    second.load_state_dict(first.state_dict())
    assert found + fired(second, SIGNALS[cut:], cut + 1) == expected
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("used", [3, 7, 11])
def test_reset_equals_a_new_trigger(make: Callable[[], Trigger], used: int) -> None:
    trigger, new = make(), make()
    fired(trigger, SIGNALS[:used])
    if isinstance(trigger, AtKnownChange):
        trigger.notify()
    trigger.reset()
    assert trigger.state_dict() == new.state_dict()
    assert trigger.statistic == new.statistic
    assert fired(trigger, SIGNALS) == fired(new, SIGNALS)


@pytest.mark.parametrize("make", MAKERS)
def test_state_with_other_keys_is_an_error(make: Callable[[], Trigger]) -> None:
    with pytest.raises(ValueError, match="exactly"):
        make().load_state_dict({"other": 1})


@pytest.mark.parametrize("period", [0, -3, 2.5])
def test_period_must_be_a_whole_number_of_updates(period: float) -> None:
    with pytest.raises(ValueError, match=f"period = {period}"):
        Every(period)


def test_cusum_without_a_signal_is_an_error() -> None:
    with pytest.raises(ValueError, match="update 1 came without a signal"):
        on_cusum().fires(1, None)


def test_several_announcements_before_a_check_count_as_one() -> None:
    trigger = AtKnownChange()
    trigger.notify()
    trigger.notify()
    assert [trigger.fires(update, None) for update in (1, 2)] == [True, False]


def test_stagnation_ignores_updates_without_a_signal() -> None:
    trigger = on_stagnation()
    signals = [None, 8.0, None, torch.tensor(6.0), None, None, 1.0, None]
    assert [trigger.fires(update, signal) for update, signal in enumerate(signals)] == [False] * 6 + [True, False]
    assert trigger.statistic == 1 / 8  # the value that raised the alarm


def test_only_detectors_have_a_statistic() -> None:
    assert [make().statistic for make in MAKERS] == [None, None, 0.0, 1.0, None]
