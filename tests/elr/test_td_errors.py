"""RecentTDErrors: errors by hand for one and several environments, double precision, exact resume, off."""

import copy
import math

import numpy as np
import pytest
import torch

from elr.td_errors import RecentTDErrors

NO, YES = np.array([False]), np.array([True])


def values(*best_and_chosen: tuple[float, float]) -> np.ndarray:
    """Q of two actions for each environment: the best is action 0, the chosen one action 1 (0 where they are equal)."""
    return np.array(best_and_chosen)


def test_one_environment_by_hand() -> None:
    recent = RecentTDErrors(0.5)
    assert recent.read() == 0.0
    recent.act(values((7.0, 4.0)), 1)
    recent.step([1.0], NO, NO)
    recent.act(values((6.0, 5.0)), 1)  # 1 + 0.5 * 6 - 4 = 0
    recent.step([2.0], YES, NO)  # 2 - 5 = -3
    recent.act(values((9.0, 8.0)), 1)  # no transition led to the first state of the next episode
    recent.step([3.0], NO, YES)  # truncated: left out
    recent.act(values((2.0, 2.0)), 1)
    recent.step([0.0], NO, NO)
    assert recent.read() == pytest.approx((0 + 9) / 2)
    assert recent.read() == pytest.approx(4.5)  # nothing new: the last reading
    recent.act(values((10.0, 1.0)), 1)
    assert recent.read() == pytest.approx(9.0)  # 0 + 0.5 * 10 - 2


def test_several_environments_by_hand() -> None:
    recent, both = RecentTDErrors(0.5, num_envs=2), np.array([1, 1])
    recent.act(values((3.0, 2.0), (1.0, 1.0)), both)
    assert recent.read() == 0.0  # no transition yet
    recent.step([1.0, -1.0], np.array([False, True]), np.array([False, False]))
    assert recent.read() == (-1 - 1.0) ** 2  # the terminal transition: r - Q
    recent.act(values((4.0, 4.0), (9.0, 8.0)), both)
    assert recent.read() == (1 + 0.5 * 4 - 2.0) ** 2  # environment 1 is in a new episode
    recent.step([0.0, 0.0], np.array([False, False]), np.array([True, False]))
    recent.act(values((5.0, 5.0), (5.0, 5.0)), both)
    assert recent.read() == (0 + 0.5 * 5 - 8.0) ** 2  # environment 0 was truncated: left out
    recent.step([1.0, 2.0], np.array([True, False]), np.array([False, False]))
    recent.act(values((1.0, 1.0), (6.0, 1.0)), both)
    assert recent.read() == ((1 - 5.0) ** 2 + (2 + 0.5 * 6 - 5.0) ** 2) / 2  # averaged over environments


def test_cut_leaves_out_the_transitions_of_running_episodes() -> None:
    recent = RecentTDErrors(0.5, num_envs=2)
    recent.act(values((3.0, 5.0), (1.0, 8.0)), np.array([1, 1]))
    recent.step([1.0, 2.0], np.array([True, False]), np.array([False, False]))
    recent.cut()
    recent.act(values((1.0, 1.0), (1.0, 1.0)), np.array([1, 1]))
    assert recent.read() == (1 - 5.0) ** 2  # the terminal one only


def test_a_reading_of_errors_is_above_zero() -> None:
    recent = RecentTDErrors(0.5)
    recent.step([0.0], YES, NO)
    assert recent.read() == 1e-12  # a detector takes the logarithm


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arithmetic_is_in_double_precision(convert, dtype) -> None:
    """Equal to Python floats bit for bit; 0.99 * Q in float32 would differ."""
    rng = np.random.default_rng(0)
    recent, chosen, reward, errors = RecentTDErrors(0.99), 0.0, None, []
    for _ in range(200):
        q, action = rng.standard_normal((1, 4)).astype(dtype), int(rng.integers(4))
        recent.act(convert(q), action)
        if reward is not None:
            errors.append((reward + 0.99 * float(q.max()) - chosen) ** 2)
        chosen, reward = float(q[0, action]), float(rng.standard_normal())
        recent.step([reward], NO, NO)
    assert recent.read() == float(np.mean(errors))


def stream(recent: RecentTDErrors, steps: range) -> list[float | None]:
    """Readings along a random stream, the same for the same steps."""
    readings = []
    for step in steps:
        rng = np.random.default_rng(step)
        recent.act(rng.standard_normal((recent.num_envs, 3)), rng.integers(3, size=recent.num_envs))
        recent.step(rng.standard_normal(recent.num_envs), *(rng.random((2, recent.num_envs)) < 0.2))
        if step % 3 == 0:
            readings.append(recent.read())
    return readings


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("at", [20, 21, 22])
def test_resume_is_exact(num_envs: int, at: int) -> None:
    whole, first, second = (RecentTDErrors(0.9, num_envs) for _ in range(3))
    expected = stream(whole, range(40))
    found = stream(first, range(at))
    saved = first.state_dict()
    as_saved = copy.deepcopy(saved)
    second.load_state_dict(saved)
    stream(first, range(at, 40))
    assert saved == as_saved  # a saved state does not change
    assert found + stream(second, range(at, 40)) == expected
    assert second.state_dict() == whole.state_dict()


def test_clear_equals_a_new_object() -> None:
    recent, new = RecentTDErrors(0.9, 3), RecentTDErrors(0.9, 3)
    stream(recent, range(20))
    recent.clear()
    assert recent.state_dict() == new.state_dict()
    assert stream(recent, range(20)) == stream(new, range(20))


def test_off_does_nothing() -> None:
    recent = RecentTDErrors(0.9, on=False)
    recent.act(None, 1)
    recent.step([1.0], YES, NO)
    recent.cut()
    recent.clear()
    recent.load_state_dict(recent.state_dict())
    assert recent.read() is None
    assert recent.state_dict() == {}


def test_nan_reaches_the_reading() -> None:
    recent = RecentTDErrors(0.5)
    recent.act(values((1.0, 1.0)), 1)
    recent.step([1.0], NO, NO)
    recent.act(values((math.nan, 2.0)), 1)
    assert math.isnan(recent.read())


def test_state_of_another_setting_is_an_error() -> None:
    on, off = RecentTDErrors(0.9), RecentTDErrors(0.9, on=False)
    with pytest.raises(ValueError, match="exactly"):
        off.load_state_dict(on.state_dict())
    with pytest.raises(ValueError, match="exactly"):
        on.load_state_dict(off.state_dict())
    with pytest.raises(ValueError, match="of 1 environments, num_envs is 2"):
        RecentTDErrors(0.9, 2).load_state_dict(on.state_dict())


def test_bad_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        RecentTDErrors(0.9, 0)
    recent = RecentTDErrors(0.9, 2)
    with pytest.raises(ValueError, match="needs the action values"):
        recent.act(None, [0, 0])
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        recent.act(np.ones((1, 2)), [0])
    with pytest.raises(ValueError, match="1 actions for num_envs=2"):
        recent.act(np.ones((2, 2)), [0])
