"""Groups of runs: arms, tasks and seeds, what may differ, and every error."""

from pathlib import Path

import pytest

from runs.analysis import run_groups
from runs.analysis.arms import arms_of
from runs.analysis.curves import Recorded
from runs.recording import RunError
from runs.training import RunArgs


def run(name, arm="plain", seed=1, **config):
    """A run without curves; two underscores in a keyword stand for a dot."""
    settings = {key.replace("__", "."): value for key, value in config.items()}
    return Recorded(Path(name), {"exp_name": arm, "seed": seed, "directory": name, **settings}, {}, 100, "")


def test_arms_tasks_and_seeds_are_sorted():
    runs = [
        run("d", "plain", 10, env_id="Pong"),
        run("c", "plain", 9, env_id="Pong"),
        run("b", "nap", 1, env_id="Pong"),
        run("a", "nap", 1, env_id="Asterix"),
    ]
    groups = run_groups.group(runs)
    assert list(groups.arms) == ["nap", "plain"] and groups.tasks == ["Asterix", "Pong"]
    assert [one.directory.name for one in groups.arms["plain"]["Pong"]] == ["c", "d"]
    assert [one.directory.name for one in groups.arms["nap"]["Asterix"]] == ["a"]


def test_tasks_are_named_by_a_setting_that_every_run_has():
    assert run_groups.group([run("a"), run("b", seed=2)]).tasks == ["all"]
    assert run_groups.group([run("a", dataset="digits")]).tasks == ["digits"]
    assert run_groups.group([run("a", p=7), run("b", p=11)], task="p").tasks == ["11", "7"]


def test_named_arms_may_differ_in_settings_of_the_agent_which_are_listed():
    plain = run("a", "plain", nap__enabled=False, total_timesteps=100, gamma=0.9)
    nap = run("b", "nap", nap__enabled=True, total_timesteps=100, gamma=0.9)
    other = run("c", "cleanrl", total_timesteps=100, gamma=0.8, track=True)
    groups = run_groups.group([plain, nap])
    assert groups.differ == ["nap.enabled"] and groups.partial == []
    groups = run_groups.group([plain, nap, other])
    assert groups.differ == ["gamma"] and groups.partial == ["nap.enabled"]  # track is not a setting of the agent


@pytest.mark.parametrize("key", ["total_timesteps", "eval_episodes", "shift__kind", "protocol"])
def test_named_arms_may_not_differ_in_budget_task_or_evaluation(key):
    runs = [run("a", "plain", **{key: 1}), run("b", "nap", **{key: 2})]
    name = key.replace("__", ".")
    with pytest.raises(RunError, match=rf"plain, nap differ in {name} \(1 \| 2\), .* --allow-different {name}$"):
        run_groups.group(runs)
    assert run_groups.group(runs, allow=[name]).differ == [name]
    assert run_groups.group(runs, allow=[name.split(".")[0]]).differ == [name]
    assert run_groups.group([runs[0], run("b", "cleanrl")]).partial == [name]  # another program may not have it


def test_only_the_stated_difference_is_allowed():
    plain = run("a", "x", nap__enabled=False, nap__every=1, gamma=0.9)
    nap = run("b", "y", nap__enabled=True, nap__every=1, gamma=0.9)
    faster = run("c", "z", nap__enabled=True, nap__every=1, gamma=0.8)
    groups = run_groups.group([plain, nap], by=["nap.enabled"])
    assert list(groups.arms) == ["nap.enabled=False", "nap.enabled=True"] and groups.differ == []
    with pytest.raises(RunError, match=r"differ in gamma \(0.9 \| 0.8\), and not only in nap.enabled"):
        run_groups.group([plain, faster], by=["nap.enabled"])
    with pytest.raises(RunError, match=r"differ in nap.enabled .*, and not only in gamma"):
        run_groups.group([plain, faster], differ_in=["gamma"])
    with pytest.raises(RunError, match=r"differ in gamma \(0.9 \| \(missing\)\)"):
        run_groups.group([plain, run("d", nap__enabled=True, nap__every=1)], by=["nap.enabled"])
    assert run_groups.group([plain, faster], differ_in=["gamma", "nap"]).differ == ["gamma", "nap.enabled"]
    assert list(run_groups.group([plain, faster], by=["nap.enabled", "gamma"]).arms) == [
        "nap.enabled=False, gamma=0.9",
        "nap.enabled=True, gamma=0.8",
    ]


def test_runs_of_an_arm_differ_only_in_seed_and_task():
    first = run("a", gamma=0.9, env_id="Pong")
    with pytest.raises(RunError, match=r"a and b are both plain and differ in gamma \(0.9 \| 0.8\): .*different gamma"):
        run_groups.group([first, run("b", seed=2, gamma=0.8, env_id="Pong")])
    with pytest.raises(RunError, match=r"differ in gamma \(0.9 \| 0.8\)"):  # on another task too
        run_groups.group([first, run("b", gamma=0.8, env_id="Breakout")])
    with pytest.raises(RunError, match=r"differ in threads \(\(missing\) \| 2\)"):
        run_groups.group([first, run("b", seed=2, gamma=0.9, env_id="Pong", threads=2)])
    runs = [first, run("b", seed=2, gamma=0.8, env_id="Pong")]
    assert len(run_groups.group(runs, allow=["gamma"]).arms["plain"]["Pong"]) == 2


def test_a_nan_equals_itself():
    nan = [run(f"a{seed}", seed=seed, gamma=float("nan"), betas=[float("nan"), 1]) for seed in (1, 2)]
    assert len(run_groups.group(nan).arms["plain"]["all"]) == 2
    assert run_groups.differences(nan[0], run("a", gamma=0.5, betas=[0.5, 1])) == ["betas", "directory", "gamma"]


def test_runs_that_cannot_be_grouped_are_refused():
    with pytest.raises(RunError, match="nothing to compare"):
        run_groups.group([])
    with pytest.raises(RunError, match="a is given twice"):
        run_groups.group([run("a"), run("a")])
    for branch in ({}, {"branch": "p@8"}):
        with pytest.raises(RunError, match=r"a and b are both plain, seed 1: leave one out$"):
            run_groups.group([run("a", **branch), run("b", **branch)])
    for branch in ({}, {"branch": "p@4"}):
        with pytest.raises(RunError, match=r"seed 1: leave one out, or give each its own --exp-name$"):
            run_groups.group([run("a", **branch), run("b", branch="p@8")])
    with pytest.raises(RunError, match=r"a has no setting nap: it is a group: name one of nap.enabled, nap.every"):
        run_groups.group([run("a", nap__enabled=True, nap__every=1)], by=["nap"])
    with pytest.raises(RunError, match="a has no setting env_id: its configuration lacks it"):
        run_groups.group([run("a")], task="env_id")
    with pytest.raises(RunError, match="no setting seed"):
        run_groups.group([Recorded(Path("a"), {"exp_name": "x"}, {}, 1, "")])
    for flags in ({"allow": ["gama"]}, {"differ_in": ["gama"]}):
        with pytest.raises(RunError, match=r"--(allow-different|differ-in) gama: no run has such a setting"):
            run_groups.group([run("a", gamma=0.9)], **flags)


@pytest.mark.parametrize(
    ("key", "before", "other"), [("capture", False, True), ("num_envs", 1, 8), ("gradient", "autograd", "compiled")]
)
def test_a_run_made_before_there_was_a_flag_is_like_one_with_its_default(key, before, other):
    """From either side, for arms of a comparison and for those that are found."""
    for runs in ([run("a"), run("b", seed=2, **{key: before})], [run("a", **{key: before}), run("b", seed=2)]):
        assert list(run_groups.group(runs).arms) == ["plain"]
        assert len(arms_of(runs).runs) == 1
    with pytest.raises(RunError, match=rf"differ in {key} \({before} \| {other}\)"):
        run_groups.group([run("a"), run("b", seed=2, **{key: other})])
    assert arms_of([run("a"), run("b", seed=2, **{key: other})]).differ == [key]


def test_every_flag_that_scripts_have_gained_has_a_meaning_in_runs_without_it():
    assert set(RunArgs.LATER) <= {*run_groups.NAMES, *run_groups._GAINED}
