"""Twenty real runs whose processes, launcher and node are killed give what an undisturbed sweep gives; half an hour.

    pytest -m slow -s tests/runs/test_disturbed_sweep.py

Ten to thirty CPU-seconds a run, most of them for importing torch; the second test needs Ray.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runs.experiment import REPOSITORY, load, plan
from runs.recording import read_status
from tests.runs.fakes import recorded, resumptions, starts, wait_until
from tests.runs.test_on_ray import ENVIRONMENT, cluster, needs_ray

pytestmark = pytest.mark.slow
SWEEP = """
from runs.experiment import Arm, Experiment, Scale, Verdict

EXPERIMENT = Experiment(
    name="sweep", source="ours", claim="Kills change nothing.", rule="See the test.", curve="test/accuracy",
    arms=[Arm("low", "grokking", "low", {"p": 31, "total_updates": 300, "checkpoint_every": 20})],
    scales={"smoke": Scale(seeds=range(20), estimate="5 min on two cores")},
    judge=lambda results: Verdict("undecided", ""),
)
"""
KILLS = 5


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The experiment's file, and the tables of its undisturbed runs by job."""
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "sweep.py").write_text(SWEEP)
    process = launched(root / "sweep.py", root / "logs", "--jobs", "2")
    assert process.wait() == 0
    return root / "sweep.py", {job.id: recorded(job) for job in jobs(root / "sweep.py", root / "logs")}


def jobs(file, logs):
    return plan(load(str(file)), "smoke", logs)


def launched(file, logs, *more):
    words = ["run", str(file), "--scale", "smoke", "--logs", str(logs), "--retries", str(KILLS), *more]
    return subprocess.Popen([sys.executable, "-m", "runs", *words], cwd=REPOSITORY, env=ENVIRONMENT)


def under_way(runs):
    """Jobs that a process is writing, by the lock that it holds, and that process."""
    found = []
    for job in runs:
        if (job.directory / "checkpoint.pt").exists() and read_status(job.directory)["status"] == "running":
            process = int((job.directory / "lock").read_text().split()[1])
            with contextlib.suppress(OSError):
                if str(job.directory) in Path(f"/proc/{process}/cmdline").read_text():
                    found.append((job, process))
    return found


def kill_one(runs, rng):
    """SIGKILL, at a random moment, a random run that is under way; returns its job."""
    time.sleep(rng.uniform(0, 90))
    wait_until(lambda: under_way(runs), 600)
    job, process = rng.choice(under_way(runs))
    step = read_status(job.directory)["step"]
    os.kill(process, signal.SIGKILL)
    print(f"killed {job.id} (process {process}), its checkpoint is at step {step}", flush=True)
    return job


def check(runs, expected, killed):
    """All ended, once; none was started anew; all tables equal, byte for byte."""
    restarted = [path for path in runs[0].directory.parent.iterdir() if ".abandoned-" in path.name]
    identical = sum(recorded(job) == expected[job.id] for job in runs)
    resumed = {job.id: count for job in runs if (count := resumptions(job))}
    print(f"{len(runs)} runs: {identical} identical, {resumed} resumed, {len(restarted)} restarted", flush=True)
    assert [read_status(job.directory)["status"] for job in runs] == ["finished"] * 20
    assert [job.log.read_text().count("finished 300 updates") for job in runs] == [1] * 20
    assert identical == 20 and restarted == []
    for job in runs:
        assert killed.count(job.id) <= resumptions(job) == starts(job) - 1
    return resumed


def test_on_this_machine(sweep, tmp_path):
    file, expected = sweep
    runs, rng, killed = jobs(file, tmp_path), random.Random(1), []
    launcher = launched(file, tmp_path, "--jobs", "2")
    for number in range(KILLS):
        if number == 3:
            wait_until(lambda: len(under_way(runs)) == 2, 600)
            launcher.kill()
            launcher.wait()
            orphans = under_way(runs)
            print(f"killed the launcher; {[job.id for job, _ in orphans]} go on", flush=True)
            launcher = launched(file, tmp_path, "--jobs", "2")
        killed.append(kill_one(runs, rng).id)
    assert launcher.wait(timeout=3000) == 0
    assert sum(check(runs, expected, killed).values()) == KILLS  # the launcher's death stopped no run


@needs_ray
def test_on_ray(sweep, tmp_path):
    file, expected = sweep
    runs, rng, killed = jobs(file, tmp_path), random.Random(2), []
    with cluster(1, 1) as (address, lose):
        launcher = launched(file, tmp_path, "--engine", "ray", "--address", address)
        for number in range(KILLS):
            if number == 2:
                wait_until(lambda: len(under_way(runs)) == 2, 600)
                launcher.kill()
                launcher.wait()
                print("killed the launcher", flush=True)
                launcher = launched(file, tmp_path, "--engine", "ray", "--address", address)
            if number == 4:
                wait_until(lambda: len(under_way(runs)) == 2, 600)
                before = {job.id for job, _ in under_way(runs)}
                print(lose().strip(), "of the second node", flush=True)
                after = {job.id for job, _ in under_way(runs)}
                print(f"with it went {before - after}", flush=True)
                assert len(before - after) == 1
                killed += before - after
            killed.append(kill_one(runs, rng).id)
        assert launcher.wait(timeout=3000) == 0
    # Five killed, one lost with its node, two stopped at checkpoints when the launcher was killed.
    assert KILLS + 1 <= sum(check(runs, expected, killed).values()) <= KILLS + 3
