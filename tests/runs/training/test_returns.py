"""Returns of the latest training episodes."""

from types import SimpleNamespace

import numpy as np
import pytest

from runs.training import Returns

MEAN = "charts/average_return"


class Recorder(SimpleNamespace):
    """A session that keeps what it is told."""

    def scalar(self, tag, value):
        self.told.append((tag, value))


def infos(returns, lengths, ended, **more):
    return {
        "episode": {"r": np.array(returns, np.float32), "l": np.array(lengths)},
        "_episode": np.array(ended),
        **more,
    }


def recorded(returns, *steps):
    """What is recorded of steps, each (infos, truncated), except the running mean."""
    run = Recorder(told=[], step=0, total=10)
    for step_infos, truncated in steps:
        returns.record(step_infos, np.array(truncated), run)
    return [told for told in run.told if told[0] != MEAN]


def means(returns, *episodes, total=1000):
    """[(step, mean)] that is recorded of episodes, each (step, return)."""
    found = []
    for step, value in episodes:
        run = Recorder(told=[], step=step, total=total)
        returns.record(infos([value], [1], [True]), np.array([False]), run)
        found += [(step, mean) for tag, mean in run.told if tag == MEAN]
    return found


def test_every_episode_that_ended_is_recorded_in_the_order_of_the_environments():
    returns = Returns(window=100)
    told = recorded(
        returns,
        (infos([1.0, 2.0, 3.0], [10, 20, 30], [True, False, True]), [False, False, True]),
        ({}, [False, False, False]),
        (infos([0.0, 6.5, 0.0], [0, 40, 0], [False, True, False]), [False, False, False]),
    )
    assert told == [
        ("charts/episodic_return", 1.0),
        ("charts/episodic_length", 10),
        ("charts/episodic_return", 3.0),
        ("charts/episodic_length", 30),
        ("charts/episodic_return", 6.5),
        ("charts/episodic_length", 40),
    ]
    assert [type(value) for _, value in told] == [float, int] * 3
    assert len(returns) == 3
    assert returns.mean == "3.50"


def test_an_episode_that_a_change_of_the_task_cut_short_is_left_out():
    cut = infos([1.0, 2.0], [10, 20], [True, True], shift={"shift-0": {"task": 1}})
    returns = Returns(window=100)
    assert recorded(returns, (cut, [True, False])) == [("charts/episodic_return", 2.0), ("charts/episodic_length", 20)]
    assert returns.mean == "2.00"
    del cut["shift"]  # truncated by a time limit
    assert len(recorded(Returns(window=100), (cut, [True, False]))) == 4


def test_the_mean_is_that_of_the_window_and_none_before_the_first_episode():
    returns = Returns(window=2)
    assert (returns.mean, len(returns)) == ("none", 0)
    for value in (1.0, 2.0, 4.0):
        recorded(returns, (infos([value], [1], [True]), [False]))
    assert (returns.mean, len(returns)) == ("3.00", 2)
    returns.clear()
    assert (returns.mean, len(returns)) == ("none", 0)


def test_the_state_restores_the_returns_oldest_first():
    returns, restored = Returns(window=4), Returns(window=4)
    for value in (1.0, 2.0, 4.0):
        recorded(returns, (infos([value], [1], [True]), [False]))
    recorded(restored, (infos([9.0], [1], [True]), [False]))
    restored.load_state_dict(returns.state_dict())
    assert restored.state_dict() == {"returns": [1.0, 2.0, 4.0], "point": 0}
    recorded(restored, (infos([9.0], [1], [True]), [False]))
    assert restored.mean == "4.00"


@pytest.mark.parametrize("envs", [1, 3])
def test_a_step_without_an_end_records_nothing(envs):
    no_end = infos([0.0] * envs, [0] * envs, [False] * envs)
    assert recorded(Returns(window=5), (no_end, [False] * envs)) == []


def test_summary_counts_the_episodes_or_says_that_there_are_none():
    returns = Returns(window=2)
    assert returns.summary == "no training episode ended"
    returns.load_state_dict({"returns": [1.0, 2.0]})
    assert returns.summary == "training return 1.50, mean of the last 2 episodes"


def test_the_running_mean_is_recorded_once_in_each_of_500_parts_of_a_run():
    episodes = [(0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0), (9, 9.0)]
    assert means(Returns(window=2), *episodes) == [(0, 1.0), (2, 4.0), (9, 8.0)]
    many = means(Returns(window=100), *((step, 1.0) for step in range(100_000)), total=100_000)
    assert len(many) == 500


def test_the_running_mean_begins_again_with_the_next_task():
    returns = Returns(window=100)
    assert means(returns, (10, 100.0)) == [(10, 100.0)]
    returns.clear()
    assert means(returns, (10, 4.0), (11, 6.0)) == [(10, 4.0)]


@pytest.mark.parametrize("cut", range(4))
def test_the_running_mean_of_a_resumed_run_is_that_of_one_that_never_stopped(cut):
    episodes = [(0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0)]
    before, after = Returns(window=3), Returns(window=3)
    found = means(before, *episodes[:cut])
    after.load_state_dict(before.state_dict())
    assert found + means(after, *episodes[cut:]) == means(Returns(window=3), *episodes)
