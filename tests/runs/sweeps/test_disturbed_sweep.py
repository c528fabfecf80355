"""Twenty real runs whose processes, launcher and node are killed give the same tables as an undisturbed sweep.

    pytest -m slow -s tests/runs/sweeps/test_disturbed_sweep.py

This takes half an hour: ten to thirty CPU-seconds per run, mostly for importing torch. The second test needs Ray.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from runs.recording import read_status
from runs.sweeps.experiment import REPOSITORY, load, plan
from tests.runs.sweeps.fakes import recorded, resumptions, starts, wait_until
from tests.runs.sweeps.test_on_ray import ENVIRONMENT, cluster, needs_ray

pytestmark = pytest.mark.slow
SWEEP = """
from runs.sweeps.experiment import Arm, Experiment, Scale, Verdict

EXPERIMENT = Experiment(
    name="sweep", source="ours", claim="Kills change nothing.", rule="See the test.", curve="test/accuracy",
    arms=[Arm("low", "grokking", "low", {"p": 31, "total_updates": 300, "checkpoint_every": 20})],
    scales={"smoke": Scale(seeds=range(20), estimate="5 min on two cores")},
    measures={},
    judge=lambda runs: Verdict("undecided", ""),
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
    """Jobs that are being written, with the process that holds their lock."""
    active = []
    for job in runs:
        if (job.directory / "checkpoint.pt").exists() and read_status(job.directory)["status"] == "running":
            with contextlib.suppress(OSError, IndexError):  # it is being written, or the process is gone
                process = int((job.directory / "lock").read_text().split()[1])
                if str(job.directory) in Path(f"/proc/{process}/cmdline").read_text():
                    active.append((job, process))
    return active


def lost(before):
    """The jobs of `before` whose process is gone without a final status."""
    now = [process for _, process in under_way([job for job, _ in before])]
    return [
        job.id for job, process in before if process not in now and read_status(job.directory)["status"] == "running"
    ]


def kill_one(runs, rng):
    """SIGKILL a random active run at a random moment; returns its job."""
    time.sleep(rng.uniform(0, 90))
    wait_until(lambda: under_way(runs), 600)
    job, process = rng.choice(under_way(runs))
    step = read_status(job.directory)["step"]
    os.kill(process, signal.SIGKILL)
    print(f"killed {job.id} (process {process}), its checkpoint is at step {step}", flush=True)
    return job


def check(runs, expected):
    """All runs finished once, none was started again, all tables are equal byte by byte. Returns resumptions by job."""
    directories = [path for path in runs[0].directory.parent.iterdir() if path.is_dir()]
    identical = sum(recorded(job) == expected[job.id] for job in runs)
    continued = {job.id: count - 1 for job in runs if (count := starts(job)) > 1}
    print(f"{len(runs)} runs, {len(directories)} directories: {identical} identical; resumed: {continued}", flush=True)
    assert [read_status(job.directory)["status"] for job in runs] == ["finished"] * 20
    assert [job.log.read_text().count("finished 300 updates") for job in runs] == [1] * 20
    assert identical == len(directories) == 20
    for job in runs:  # all processes but the first were told to resume
        assert job.log.read_text().count(" --resume ") == continued.get(job.id, 0)
        assert (resumptions(job) > 0) == (job.id in continued)
    return continued


def test_disturbed_sweep_on_this_machine(sweep, tmp_path):
    file, expected = sweep
    runs, rng, killed = jobs(file, tmp_path), random.Random(1), []
    launcher = launched(file, tmp_path, "--jobs", "2")
    for number in range(KILLS):
        if number == 3:
            wait_until(lambda: len(under_way(runs)) == 2, 600)
            launcher.kill()
            launcher.wait()
            orphans = under_way(runs)
            print(f"killed the launcher; {[job.id for job, _ in orphans]} continue", flush=True)
            launcher = launched(file, tmp_path, "--jobs", "2")
        killed.append(kill_one(runs, rng).id)
    assert launcher.wait(timeout=3000) == 0
    assert check(runs, expected) == Counter(killed)  # the death of the launcher stopped no run


@needs_ray
def test_disturbed_sweep_on_ray(sweep, tmp_path):
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
                before = under_way(runs)
                print(lose().strip(), "of the second node", flush=True)
                wait_until(partial(lost, before), 30)
                print(f"lost with it: {lost(before)}", flush=True)
                killed += lost(before)
            killed.append(kill_one(runs, rng).id)
        assert launcher.wait(timeout=3000) == 0
    # Five killed, one lost with its node, two stopped at checkpoints when the launcher was killed.
    continued = check(runs, expected)
    assert set(killed) <= set(continued) and KILLS + 1 <= sum(continued.values()) <= KILLS + 3
