"""Experiments as data: flags as words, planning, names, and errors."""

import random
import sys
from pathlib import Path

import pytest

from runs.__main__ import main
from runs.recording import RunError
from runs.sweeps.experiment import REPOSITORY, Arm, Experiment, Scale, Verdict, as_words, load, names, plan


def experiment(**changes):
    return Experiment(
        **{
            "name": "x",
            "source": "ours",
            "claim": "it works",
            "rule": "it does",
            "arms": [Arm("plain", "grokking", "free", {"p": 7}), Arm("nap", "grokking", flags={"nap.every": 2})],
            "scales": {"smoke": Scale(seeds=(1, 2), estimate="nothing")},
            "measures": {},
            "judge": lambda runs: Verdict("undecided", ""),
            "curve": "test/accuracy",
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"seed": 1}, ["--seed", "1"]),
        ({"rewarm.at_update": 5_000}, ["--rewarm.at-update", "5000"]),
        ({"nap.enabled": True}, ["--nap.enabled"]),
        ({"nap.weights_too": False}, ["--nap.no-weights-too"]),
        ({"normalise": False}, ["--no-normalise"]),
        ({"games": ("a", "b"), "rate": 1e-4}, ["--games", "a", "b", "--rate", "0.0001"]),
        ({"match_elr": None}, ["--match-elr", "None"]),
        ({}, []),
    ],
)
def test_flags_as_words(flags, words):
    assert as_words(flags) == words


def test_plan_goes_seed_by_seed_and_later_flags_win():
    scale = Scale(
        seeds=(3, 4), estimate="", flags={"p": 11, "total_updates": 5}, by_arm={"nap": {"total_updates": 6}},
        worlds={"easy": {"hidden": 8}, "hard": {"p": 13}}, threads=2,
    )  # fmt: skip
    jobs = plan(experiment(scales={"laptop": scale}), "laptop", Path("logs"))
    assert [job.id for job in jobs[:4]] == [
        f"x/laptop/{arm}--{world}-s3" for world in ("easy", "hard") for arm in ("plain", "nap")
    ]
    assert [job.seed for job in jobs] == [3] * 4 + [4] * 4
    assert jobs[0].flags == {
        "p": 11, "total_updates": 5, "hidden": 8, "seed": 3, "threads": 2, "exp_name": "plain"
    }  # fmt: skip
    assert jobs[3].flags["p"] == 13 and jobs[3].flags["total_updates"] == 6
    assert jobs[0].directory == Path("logs/x/laptop/plain--easy-s3")
    assert jobs[0].log == Path("logs/x/laptop/plain--easy-s3.log")
    assert len({job.directory for job in jobs}) == len(jobs) == 8


def test_commands_start_and_resume_the_script():
    job = plan(experiment(), "smoke", Path("logs"))[0]
    words = "agents/grokking.py free --p 7 --seed 1 --threads 1 --exp-name plain --directory logs/x/smoke/plain-s1"
    assert job.command()[1:] == words.split()
    assert job.resume_command()[1:] == ["agents/grokking.py", "--resume", "logs/x/smoke/plain-s1"]


def test_share_of_a_gpu_sets_the_device():
    scale = Scale(seeds=(1,), estimate="", gpus=0.25, arms=("nap",))
    (job,) = plan(experiment(scales={"paper": scale}), "paper", Path())
    assert (job.flags["device"], job.gpus) == ("cuda", 0.25)


def test_every_experiment_can_be_planned_under_its_name():
    assert "fig3" in names() and names() == sorted(names())
    for name in names():
        loaded = load(name)
        assert loaded.name == name
        for scale in loaded.scales:
            ids = [job.id for job in plan(loaded, scale, Path())]
            assert ids and len(set(ids)) == len(ids)


def test_unknown_names_are_refused_with_suggestions(tmp_path):
    with pytest.raises(RunError, match=r"no experiment fig33; did you mean fig3 .*path of a .py file"):
        load("fig33")
    with pytest.raises(RunError, match=r"no experiment fig6; did you mean fig6-left or fig6-right\?"):
        load("fig6")
    with pytest.raises(RunError, match=r"no experiment zzz; there are .*fig3"):
        load("zzz")
    with pytest.raises(RunError, match=r"x has no scale huge; it has smoke"):
        plan(experiment(), "huge", Path())
    with pytest.raises(RunError, match="there is no file"):
        load(str(tmp_path / "mine.py"))
    (tmp_path / "mine.py").write_text("x = 1\n")
    with pytest.raises(RunError, match="defines no EXPERIMENT"):
        load(str(tmp_path / "mine.py"))


def own(path, name="fig3"):
    """An experiment of a user: one of ours under this name."""
    path.write_text(
        f"import dataclasses\nfrom runs.sweeps.experiment import load\n"
        f"EXPERIMENT = dataclasses.replace(load('fig3'), name={name!r})\n"
    )
    return str(path)


def test_a_file_elsewhere_cannot_have_the_name_of_one_of_our_experiments(tmp_path):
    """Its runs and its page would overwrite those of ours."""
    path = own(tmp_path / "mine.py")
    with pytest.raises(RunError) as refusal:
        load(path)
    assert str(refusal.value) == f"{path}: the name fig3 is that of another experiment; give yours its own name"
    assert load(own(tmp_path / "mine.py", "mine")).name == "mine"
    assert load(str(REPOSITORY / "runs" / "experiments" / "fig3.py")).name == "fig3"


def test_a_file_named_like_a_module_is_loaded_and_does_not_replace_the_module(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "random", random)  # put back, should it be replaced
    assert load(own(tmp_path / "random.py", "mine")).name == "mine"
    assert sys.modules["random"] is random


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": [Arm("a", "s"), Arm("a", "s")]}, "two arms are called a"),
        ({"scales": {"smoke": Scale(seeds=(1,), estimate="", arms=("b",))}}, "there is no arm b; arms: plain, nap"),
        ({"scales": {"smoke": Scale(seeds=(1,), estimate="", by_arm={"b": {}})}}, "there is no arm b"),
        (
            {"scales": {"smoke": Scale(seeds=(1,), estimate="", instead={"nap": Arm("b", "s")})}},
            "must have its name, got b",
        ),
        ({"scales": {"smoke": Scale(seeds=(), estimate="")}}, "give at least one seed"),
        ({"scales": {"smoke": Scale(seeds=(1, 1), estimate="")}}, "and each once"),
    ],
)
def test_contradictory_experiments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        experiment(**changes)


@pytest.mark.parametrize("words", [["run", "theory", "--scale", "smoke"], ["demo"]])
def test_a_wheel_without_scripts_says_so_in_one_line(words, tmp_path, monkeypatch):
    monkeypatch.setattr("runs.sweeps.experiment.REPOSITORY", tmp_path)
    with pytest.raises(RunError, match=r"there is no .*agents/.*\.py: the scripts come with a clone"):
        main([*words, "--logs", str(tmp_path / "logs")])
    assert not (tmp_path / "logs").exists()
