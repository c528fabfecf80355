"""Arms that branch from the run of another arm."""

import dataclasses
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from runs.recording import RunError, read_json, read_scalars
from runs.sweeps import launcher, results
from runs.sweeps.commands import RunArgs, left_to_do, planned
from runs.sweeps.experiment import Arm, Experiment, Job, Scale, Verdict, plan, with_parents
from runs.sweeps.launcher import Local, launch
from runs.sweeps.record import digest
from runs.sweeps.results import result_of
from runs.sweeps.run_job import News, inspect

TINY = {
    "p": 11, "train_fraction": 0.5, "heads": 2, "head_size": 4, "hidden": 16, "total_updates": 40,
    "checkpoint_every": 10, "evaluations_per_decade": 5, "probe.every": 10,
}  # fmt: skip
LOW = Arm("low", "grokking", None, {**TINY, "learning_rate": 1e-4, "keep_checkpoints_every": 10})
SAME = Arm("same", "grokking", None, {"branch": "low@20"})
HIGH = Arm("high", "grokking", None, {"branch": "low@20", "learning_rate": 1e-2, "keep_checkpoints_every": 10})
LONGER = Arm("longer", "grokking", None, {"branch": "high", "total_updates": 60})


def experiment(*arms, **scale):
    scales = {"smoke": Scale(seeds=(1,), estimate="seconds", **scale)}
    verdict = Verdict("undecided", "no rule")
    return Experiment("x", "ours", "?", "?", arms, scales, {}, lambda runs: verdict, "test/accuracy")


def job(name, parent=None, **flags):
    return Job(f"x/smoke/{name}", "x", "smoke", name, "", 1, "s", None, flags, Path(name), 1, 0.0, parent=parent)


def test_a_plan_names_parent_and_step(tmp_path):
    low, same, longer = plan(
        experiment(LOW, SAME, Arm("longer", "grokking", None, {"branch": "low"})), "smoke", tmp_path
    )
    assert (low.parent, same.parent, same.branch_step, longer.parent, longer.branch_step) == (None, low, 20, low, None)
    words = same.command()
    assert words[words.index("--branch") + 1] == f"{low.directory}@20" and "branch" not in same.flags
    assert f"{low.directory}" == longer.command()[longer.command().index("--branch") + 1]


def test_each_seed_and_task_branches_from_its_own_parent(tmp_path):
    tasks = {"add": {"operation": "add"}, "subtract": {"operation": "subtract"}}
    one = experiment(LOW, SAME, worlds=tasks)
    size = dataclasses.replace(one.scales["smoke"], seeds=(1, 2))
    jobs = plan(dataclasses.replace(one, scales={"smoke": size}), "smoke", tmp_path)
    children = [job for job in jobs if job.parent]
    assert len(children) == 4
    assert all((job.world, job.seed, "low") == (job.parent.world, job.parent.seed, job.parent.arm) for job in children)


def test_a_scale_can_name_another_step(tmp_path):
    _, same = plan(experiment(LOW, SAME, by_arm={"same": {"branch": "low@10"}}), "smoke", tmp_path)
    assert same.branch_step == 10


@pytest.mark.parametrize(
    "arms, message",
    [
        ([SAME], "branches from low@20, but no arm low comes before it"),
        ([SAME, LOW], "branches from low@20, but no arm low comes before it"),
        ([LOW, Arm("a", "grokking", None, {"branch": "low@x"})], "after @ comes a step, a whole number"),
        ([LOW, Arm("a", "warm_start", None, {"branch": "low"})], "a run of grokking, and is a run of warm_start"),
        ([LOW, Arm("a", "grokking", "low", {"branch": "low"})], "it can have no preset, got low"),
    ],
)
def test_a_parent_that_cannot_be_one_is_refused(tmp_path, arms, message):
    with pytest.raises(RunError, match=message):
        plan(experiment(*arms), "smoke", tmp_path)


def test_an_arm_that_is_not_run_at_a_scale_is_no_parent(tmp_path):
    with pytest.raises(RunError, match="no arm low comes before it"):
        plan(experiment(LOW, SAME, arms=("same",)), "smoke", tmp_path)


def test_the_digest_changes_with_parent_and_step(tmp_path):
    def of(low, same):
        return digest(plan(experiment(low, same), "smoke", tmp_path)[1])

    other = dataclasses.replace(LOW, flags={**LOW.flags, "learning_rate": 2e-4})
    later = dataclasses.replace(SAME, flags={"branch": "low@30"})
    assert len({of(LOW, SAME), of(other, SAME), of(LOW, later)}) == 3 and of(LOW, SAME) == of(LOW, SAME)


def test_a_job_waits_for_its_parent_while_others_run(monkeypatch):
    began, may_end = [], threading.Event()

    def run_job(job, **options):
        began.append(job.arm)
        if job.arm == "parent":
            assert may_end.wait(20)
        return News(job.id, "finished")

    monkeypatch.setattr(launcher, "run_job", run_job)
    parent = job("parent")
    jobs = [parent, job("child", parent), job("other")]
    engine = Local(jobs, launcher.make_slots(jobs, 2, False, [0, 1]), 0)
    until = time.monotonic() + 20
    while len(began) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)  # time enough to begin what should wait
    assert began == ["parent", "other"]
    may_end.set()
    ended = []
    while len(ended) < 3 and time.monotonic() < until:
        ended += engine.news()
    assert began == ["parent", "other", "child"] and {news.state for news in ended} == {"finished"}


def test_the_branches_of_a_failed_run_fail_and_say_why(monkeypatch):
    monkeypatch.setattr(launcher, "run_job", lambda job, **options: News(job.id, "failed", "it was refused"))
    parent = job("parent")
    child = job("child", parent)
    engine, ended = Local([parent, child, job("grandchild", child)], [launcher.Slot()], 0), []
    until = time.monotonic() + 20
    while len(ended) < 3 and time.monotonic() < until:
        ended += engine.news()
    assert [news.text for news in ended] == [
        "it was refused",
        "it branches from x/smoke/parent, which failed",
        "it branches from x/smoke/child, which failed",
    ]


def test_selecting_an_arm_selects_what_it_branches_from(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from tests.runs.sweeps.test_branching_arms import HIGH, LONGER, LOW, SAME, experiment\n"
        "EXPERIMENT = experiment(LOW, SAME, HIGH, LONGER)\n"
    )
    args = RunArgs((str(file),), scale="smoke", arms=("longer",), logs=tmp_path)
    assert [job.arm for job in planned(args)] == ["low", "high", "longer"]


def test_a_parent_is_run_as_long_as_a_branch_needs_it():
    parent = job("parent")
    assert [job.arm for job in with_parents([job("child", parent)])] == ["parent", "child"]
    assert left_to_do([parent], [], "smoke") == [parent]


def test_arms_are_trained_from_the_run_of_another_and_read_with_its_history(tmp_path, capsys):
    jobs = plan(experiment(LOW, SAME, HIGH, LONGER), "smoke", tmp_path)
    assert launch(jobs, 2) == 0, capsys.readouterr().out
    low, same, high, longer = (result_of(job).scalars for job in jobs)
    for tag, points in low.items():
        if tag != "charts/SPS":  # a measured speed
            assert same[tag] == points, tag  # nothing changed: equal to its parent, its history included
    assert min(step for step, _ in read_scalars(jobs[1].directory)["charts/learning_rate"]) > 20
    rates = dict(high["charts/learning_rate"])
    assert {rates[step] for step in rates if step <= 20} == {1e-4} and {rates[s] for s in rates if s > 20} == {1e-2}
    assert max(step for step, _ in longer["charts/learning_rate"]) == 60  # from the end of a branch
    assert longer["test/accuracy"][: len(high["test/accuracy"]) - 1] == high["test/accuracy"][:-1]
    updates = [int(read_json(job.directory / "status.json")["step"]) for job in jobs]
    assert updates == [40, 40, 40, 60]
    assert launch(jobs, 2) == 0 and "40" in capsys.readouterr().out  # all are found finished
    other = dataclasses.replace(jobs[0], flags={**jobs[0].flags, "hidden": 8})
    with pytest.raises(RunError, match=r"same-s1 holds another run: its hidden is 16, that of x/smoke/same-s1 is 8"):
        inspect(dataclasses.replace(jobs[1], parent=other))  # made from a parent that is planned otherwise now
    moved = dataclasses.replace(jobs[1], branch_step=10)
    with pytest.raises(RunError, match=r"its branch is '.*low-s1@20', that of x/smoke/same-s1 is 'low-s1@10'"):
        inspect(moved)
    with pytest.raises(RunError, match=r"its branch is .*, that of x/smoke/same-s1 is None"):
        inspect(dataclasses.replace(jobs[1], parent=None, branch_step=None))
    jobs[2].directory.rename(tmp_path / "away")
    assert result_of(jobs[3]) is None and result_of(jobs[1])  # what a branch of a missing run had before is not known


def test_a_branch_begins_no_second_visit_of_its_task(monkeypatch):
    def table(*points):
        return {"shift/task": (np.array([step for step, _ in points]), np.array([task for _, task in points]))}

    tables = {"parent": table((0, 0.0), (5, 1.0), (20, 2.0)), "child": table((10, 1.0), (15, 2.0))}
    monkeypatch.setattr(results, "read_table", lambda directory: tables[directory.name])
    monkeypatch.setattr(results, "read_json", lambda path: {"branch": {"step": 10}})
    scalars = results.scalars_of(job("child", job("parent")))
    assert scalars == {"shift/task": [(0, 0.0), (5, 1.0), (15, 2.0)]}
    tables["parent"] = {"test/loss": (np.array([1]), np.array([3.0]))}  # of a parent whose task never changes
    assert results.scalars_of(job("child", job("parent")))["shift/task"] == [(10, 1.0), (15, 2.0)]
