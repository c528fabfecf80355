"""--seeds: a run for each seed, followed to its end."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runs.recording import RunError, read_json, read_scalars, read_status
from runs.recording.terminal import tensorboard_command
from runs.sweeps import run_job as run_job_module
from runs.sweeps import seeds as module
from runs.sweeps.seeds import run_seeds, seed_jobs, without_seeds
from runs.training import RunArgs
from tests.runs.sweeps.fakes import FAKE, wait_until

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(run_job_module, "_POLL_SECONDS", 0.02)


def launched(monkeypatch, folder, *words, seeds=(1, 2, 3), name="run-s{}", **flags):
    """The exit code of the fake script with these words and --seeds."""
    monkeypatch.setattr(sys, "argv", [f"{FAKE}.py", *words, "--seeds", *map(str, seeds)])
    return run_seeds(RunArgs(seeds=seeds, **flags), {seed: folder / name.format(seed) for seed in seeds})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["s.py", "nap", "--seeds", "1", "2", "--x", "3"], ["s.py", "nap", "--x", "3"]),
        (["s.py", "--seeds=1", "2"], ["s.py"]),
        (["s.py", "--games", "a", "b", "--seeds", "1"], ["s.py", "--games", "a", "b"]),
        (["s.py", "--seed", "1"], ["s.py", "--seed", "1"]),
    ],
)
def test_the_seeds_are_taken_from_the_command_line(words, expected):
    assert without_seeds(words) == expected


def test_each_seed_has_the_users_command_line_and_its_own_directory(tmp_path):
    jobs = seed_jobs(
        ["agents/s.py", "nap", "--x", "1", "--seeds", "4", "5"], {4: tmp_path / "a", 5: tmp_path / "b"}, 2, 0
    )
    assert jobs[1].command() == [
        sys.executable, "agents/s.py", "nap", "--x", "1", "--seed", "5", "--directory", str(tmp_path / "b"),
    ]  # fmt: skip
    assert jobs[1].resume_command() == [sys.executable, "agents/s.py", "--resume", str(tmp_path / "b")]
    assert (jobs[0].preset, jobs[0].script, jobs[0].threads, jobs[0].folder) == ("nap", "s", 2, Path.cwd())
    with pytest.raises(RunError, match="on a command line only"):
        seed_jobs(["s.py"], {1: tmp_path}, 1, 0)


def test_all_seeds_are_trained_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert launched(monkeypatch, tmp_path, "--total-updates", "7") == 0
    out = capsys.readouterr().out
    for seed in (1, 2, 3):
        directory = tmp_path / f"run-s{seed}"
        assert read_status(directory)["status"] == "finished" and read_json(directory / "config.json")["seed"] == seed
        assert f"seed {seed}: {directory}\n" in out
    assert "3 runs: 3 run, 0 failed" in out
    *_, looks, _ = out.splitlines()
    assert re.fullmatch(rf"look at them with: .*tensorboard\S* --logdir_spec s1:{tmp_path}/run-s1,s2:\S+,s3:\S+", looks)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "run-s1",
        "run-s2",
        "run-s3",
    ]  # a pattern finds runs only


def test_one_that_fails_does_not_stop_the_others_and_gives_code_1(tmp_path, monkeypatch, capsys):
    (tmp_path / "run-s2").mkdir()
    (tmp_path / "run-s2" / "config.json").write_text("{}")  # the script refuses it
    assert launched(monkeypatch, tmp_path) == 1
    out = capsys.readouterr().out
    assert [read_status(tmp_path / f"run-s{seed}")["status"] for seed in (1, 3)] == ["finished"] * 2
    assert "seed 2 failed: " in out and "3 runs: 2 run, 1 failed" in out


def test_the_last_lines_name_the_runs_that_began(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "my runs"
    directories = {seed: folder / f"nap__x__s{seed}__t" for seed in (1, 2, 3)}
    for seed in (1, 3):
        directories[seed].mkdir(parents=True)
    (directories[1] / "config.json").write_text("{}")  # the script refuses it
    assert launched(monkeypatch, folder, name="nap__x__s{}__t") == 1
    *_, looks, board = capsys.readouterr().out.splitlines()
    assert looks == f"look at them with: {tensorboard_command({f's{seed}': directories[seed] for seed in (2, 3)})}"
    pattern = folder / "nap__x__s*__t"
    assert board == f"their mean and range: {shlex.quote(sys.executable)} -m runs board {shlex.quote(str(pattern))}"
    assert launched(monkeypatch, folder, name="nap__x__s{}__t", seeds=(1,)) == 1
    out = capsys.readouterr().out
    assert "their mean and range" not in out and out.count("look at them with") == 1


def test_ctrl_c_stops_all_at_checkpoints_and_says_how_to_resume(tmp_path, monkeypatch, capsys):
    directories = [tmp_path / f"run-s{seed}" for seed in (1, 2, 3)]
    monkeypatch.setattr(module, "available_cores", lambda: [0, 1])

    def interrupt():
        wait_until(lambda: all((directory / "checkpoint.pt").exists() for directory in directories[:2]))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert launched(monkeypatch, tmp_path, "--seconds", "0.05", "--total-updates", "500", "--every", "2") == 130
    output = capsys.readouterr()
    assert [read_status(directory)["status"] for directory in directories[:2]] == ["interrupted"] * 2
    assert output.err.endswith("interrupted; the commands that resume the runs follow\n")
    resume = [f"{shlex.join([sys.executable, f'{FAKE}.py', '--resume', str(d)])}" for d in directories[:2]]
    assert f"to resume all 2 at once:\n{resume[0]} &\n{resume[1]}\n" in output.out
    assert re.search(r"not begun.*\n.*fake_agent.py --seconds 0.05 .* --seeds 3\n", output.out)


def test_the_latest_line_of_each_run_is_its_progress(tmp_path):
    (job,) = seed_jobs(["s.py", "--seeds", "1"], {1: tmp_path}, 1, 0)
    assert module._last_progress(job) == "starting"
    job.log.write_text(
        "--- python s.py\nrun directory: x\nstep 10 of 1,000   5.0 steps/s\nstep 20 of 1,000   6.0\nelse\n"
    )
    assert module._last_progress(job) == "step 20 of 1,000   6.0"
    job.log.write_text("finished 1,000 steps in x\nreturn 3\nevaluation 4\nlook at it with: y\n")
    assert list(module._summary_of(job)) == ["return 3", "evaluation 4"]


def test_a_script_trains_its_seeds_and_repeats_a_single_run(tmp_path):
    script = ROOT / "agents" / "theory.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def called(*words):
        return subprocess.run(
            [sys.executable, script, "halved", "--rates", "2", "--width", "512", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    several = called("--seeds", "1", "2")
    assert several.returncode == 0, several.stderr
    runs = sorted((tmp_path / "runs" / "logs").iterdir())
    names = [re.fullmatch(r"halved__alpha0.5__s(\d)__(\S+)", run.name).groups() for run in runs]
    assert [seed for seed, _ in names] == ["1", "2"] and names[0][1] == names[1][1]  # one time for both
    assert called("--seed", "2", "--directory", "alone").returncode == 0
    assert read_scalars(runs[1]) == read_scalars(tmp_path / "alone") != read_scalars(runs[0])
    refused = called("--seeds", "1", "1")
    assert refused.returncode == 2 and "--seeds must be distinct and at least 0, got 1 1" in refused.stderr
