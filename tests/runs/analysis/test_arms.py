"""Arms of runs made by hand: by name, by what differs, over tasks and seeds."""

from pathlib import Path

import pytest

from runs.analysis.arms import arms_of
from runs.analysis.curves import Recorded
from runs.recording import RunError


def run(name, arm="plain", seed=1, unfinished="", **config):
    """A run without curves; two underscores in a keyword stand for a dot."""
    settings = {key.replace("__", "."): value for key, value in config.items()}
    named = {"exp_name": arm} if arm else {}
    return Recorded(Path(name), {**named, "seed": seed, "directory": name, **settings}, {}, 100, unfinished)


def grouped(*runs, **options):
    """{arm: {task: directories}}"""
    arms = arms_of(runs, **options)
    return {arm: {task: [str(r.directory) for r in some] for task, some in by.items()} for arm, by in arms.runs.items()}


def test_arms_are_called_by_their_names_where_these_differ():
    runs = [run("a", "nap", 1, nap__enabled=True), run("b", "nap", 2, nap__enabled=True), run("c", nap__enabled=False)]
    assert grouped(*runs) == {"nap": {"": ["a", "b"]}, "plain": {"": ["c"]}}
    assert arms_of(runs).differ == ["nap.enabled"]


def test_arms_of_one_name_are_called_by_the_settings_that_differ():
    runs = [run("a", rate=0.1), run("b", seed=2, rate=0.1), run("c", rate=0.01)]
    assert grouped(*runs) == {"rate=0.01": {"": ["c"]}, "rate=0.1": {"": ["a", "b"]}}
    other = run("d", "nap", rate=0.1)
    assert list(grouped(*runs, other)) == ["nap", "plain, rate=0.01", "plain, rate=0.1"]
    assert list(grouped(*[run(name, arm=None, rate=rate) for name, rate in (("a", 1), ("b", 2))])) == [
        "rate=1",
        "rate=2",
    ]


def test_names_have_only_as_many_settings_as_tell_arms_apart():
    runs = [run("a", x=1, y=1, z=5), run("b", x=2, y=1, z=6), run("c", x=1, y=2, z=7)]
    assert list(grouped(*runs)) == ["z=5", "z=6", "z=7"]
    assert arms_of(runs).differ == ["x", "y", "z"]
    four = [run(f"{x}{y}", x=x, y=y) for x in (1, 2) for y in (1, 2)]
    assert list(grouped(*four)) == ["x=1, y=1", "x=1, y=2", "x=2, y=1", "x=2, y=2"]


def test_a_setting_that_only_some_runs_have_differs():
    assert list(grouped(run("a"), run("b", seed=2, rate=1))) == ["rate=(missing)", "rate=1"]


def test_one_arm_has_its_name_and_differs_in_nothing():
    runs = [run("a"), run("b", seed=2, track=True)]  # track is not a setting of the agent
    assert grouped(*runs) == {"plain": {"": ["a", "b"]}} and arms_of(runs).differ == []
    assert list(grouped(run("a", arm=None))) == ["runs"]


def test_by_ignores_other_settings():
    runs = [run("a", x=1, y=1), run("b", seed=2, x=1, y=2), run("c", x=2, y=1)]
    assert grouped(*runs, by=["x"]) == {"x=1": {"": ["a", "b"]}, "x=2": {"": ["c"]}}
    with pytest.raises(RunError, match="a has no setting z"):
        arms_of(runs, by=["z"])


def test_tasks_are_apart_and_can_be_folders():
    runs = [run("a", env_id="MinAtar/Breakout-v1"), run("b", env_id="Pong"), run("c", "nap", env_id="Pong")]
    assert grouped(*runs) == {"nap": {"Pong": ["c"]}, "plain": {"MinAtar-Breakout-v1": ["a"], "Pong": ["b"]}}


@pytest.mark.parametrize("name", ["../x", "a\nb", "..", ""])
def test_names_that_are_no_folders_are_changed_or_refused(name):
    runs = [run("a", name, x=1), run("b", "other", x=2)]
    if name == "..":
        with pytest.raises(RunError, match="cannot be the name"):
            arms_of(runs)
    else:
        assert all("/" not in arm and "\n" not in arm and arm for arm in grouped(*runs))


def test_long_values_whose_beginnings_are_equal_stay_apart():
    runs = [run("a", x="y" * 50 + "1"), run("b", x="y" * 50 + "2"), run("c", seed=2, x="y" * 50 + "1")]
    assert sorted(map(len, (by[""] for by in grouped(*runs).values()))) == [1, 2]


def test_the_same_run_again_is_refused_or_left_out_if_it_is_not_finished():
    with pytest.raises(RunError, match="a and b are both plain, seed 1: leave one out"):
        arms_of([run("a"), run("b")])
    with pytest.raises(RunError, match="both plain, seed 1"):
        arms_of([run("a", unfinished="is running"), run("b", unfinished="is running")])
    arms = arms_of([run("a", unfinished="is interrupted"), run("b")])
    assert [str(one.directory) for one in arms.left_out] == ["a"]
    assert [str(one.directory) for one in arms.runs["plain"][""]] == ["b"]


def test_runs_without_a_seed_are_refused():
    with pytest.raises(RunError, match="x has no setting seed"):
        arms_of([Recorded(Path("x"), {"exp_name": "a"}, {}, 1, "")])
