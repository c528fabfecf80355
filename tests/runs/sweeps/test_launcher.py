"""Many jobs on this machine: slots, exit codes, Ctrl-C, and a real script."""

import errno
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runs.recording import RunError, read_scalars, read_status
from runs.sweeps import run_job as run_job_module
from runs.sweeps.experiment import REPOSITORY, Job
from runs.sweeps.launcher import Local, Slot, available_cores, follow, launch, make_slots
from runs.sweeps.progress import Progress
from runs.sweeps.run_job import inspect
from tests.runs.sweeps.fakes import job, process_of, recorded, scalars, starts, wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the fake script prints its cores")


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(run_job_module, "_POLL_SECONDS", 0.02)


def sized(count, threads=1, gpus=0.0):
    return [Job(f"x/{i}", "x", "smoke", "a", "", i, "s", None, {}, Path(), threads, gpus) for i in range(count)]


def cores_of(slots):
    return [sorted(slot.cores) for slot in slots]


@pytest.mark.parametrize(
    ("jobs", "at_once", "cores", "expected"),
    [
        (sized(9), None, [0, 1, 4], [[0], [1], [4]]),
        (sized(2), None, [0, 1, 4], [[0], [1]]),
        (sized(9, threads=2), None, [0, 1, 2, 3, 4], [[0, 1], [2, 3]]),
        (sized(9, threads=8), None, [0, 1], [[0, 1]]),
        (sized(9), 3, [0, 1], [[0], [1], [0]]),
        (sized(1, threads=1) + sized(1, threads=2), None, [0, 1], [[0, 1]]),
    ],
)
def test_each_slot_has_its_own_cores_while_there_are_enough(jobs, at_once, cores, expected):
    assert cores_of(make_slots(jobs, at_once, True, cores)) == expected
    assert cores_of(make_slots(jobs, at_once, False, cores)) == [[]] * len(expected)


def test_gpus_are_shared_and_used_in_turn(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    slots = make_slots(sized(20, gpus=0.25), None, False, range(64), gpus=2)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["3", "5"] * 4
    assert len(make_slots(sized(20, gpus=1 / 3), None, False, range(64), gpus=1)) == 3
    assert len(make_slots(sized(20, gpus=0.25), None, False, range(3), gpus=2)) == 3
    with pytest.raises(RunError, match="needs a GPU"):
        make_slots(sized(1, gpus=0.25), None, False, range(4), gpus=0)


def test_all_jobs_finish_and_are_skipped_the_second_time(tmp_path, capsys):
    jobs = [job(tmp_path, f"r{i}", seed=i) for i in range(5)]
    assert launch(jobs, at_once=2) == 0
    assert [recorded(j) for j in jobs] == [scalars(j) for j in jobs]
    assert capsys.readouterr().out.endswith("\n5 runs: 5 run, 0 failed\n")
    assert launch(jobs) == 0
    assert capsys.readouterr().out.endswith("\n5 runs: 0 run, 5 already finished, 0 failed\n")
    assert [starts(j) for j in jobs] == [1] * 5


def test_runs_are_pinned_to_the_cores_of_their_slot(tmp_path):
    core = available_cores()[-1]
    a, before = job(tmp_path), os.sched_getaffinity(0)
    assert follow(Local([a], [Slot(frozenset({core}))], 0), Progress([a], io.StringIO())) == 0
    assert f"cores [{core}] threads 1" in a.log.read_text()
    assert os.sched_getaffinity(0) == before


def test_failure_is_shown_with_its_log_and_other_jobs_continue(tmp_path, capsys):
    jobs = [job(tmp_path, "bad", crash_at=7, crashes=9), job(tmp_path, "flags", nonsense=1), job(tmp_path, "good")]
    assert launch(jobs, at_once=1, retries=1) == 1
    out = capsys.readouterr().out
    assert "fake/smoke/bad failed: exited with code 3, 2 times in total" in out
    assert "    about to crash" in out and "unrecognized arguments: --nonsense 1" in out
    assert out.endswith("\n3 runs: 1 run, 2 failed\n")
    assert (starts(jobs[0]), starts(jobs[1]), recorded(jobs[2])) == (2, 1, scalars(jobs[2]))


@pytest.mark.parametrize("stops", [True, False])
def test_other_jobs_stop_after_a_failure_if_asked(tmp_path, capsys, stops):
    jobs = [job(tmp_path, "bad", crash_at=7, crashes=9), job(tmp_path, "good", seconds=0.02, total_updates=100)]
    engine = Local(jobs, [Slot(), Slot()], 0)
    assert follow(engine, Progress(jobs, io.StringIO()), stop_at_failure=stops) == 1
    # On a busy machine the failure can come before the other run has made its directory: then it is not there.
    assert inspect(jobs[1]).status in (("interrupted", "") if stops else ("finished",))
    assert capsys.readouterr().err == ""


def test_log_that_cannot_be_written_is_named(tmp_path):
    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"cannot write the log in \S+: No space left on device"):
        run_job_module._run(job(tmp_path), ["x"], Full(), lambda: 0, False, {})


def test_directory_of_another_run_fails_only_that_job(tmp_path, capsys):
    assert launch([job(tmp_path, "a")]) == 0
    assert launch([job(tmp_path, "a", total_updates=30), job(tmp_path, "b")]) == 1
    assert "its total_updates is 20, that of fake/smoke/a is 30" in capsys.readouterr().out


def when(condition, *signals):
    """Send signals to this process once the condition holds, as somebody at the keyboard would."""

    def send():
        wait_until(condition)
        for number in signals:
            os.kill(os.getpid(), number)
            threading.Event().wait(0.5)

    threading.Thread(target=send).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_ctrl_c_lets_runs_write_checkpoints(tmp_path, capsys, number):
    jobs = [job(tmp_path, f"r{i}", seconds=0.05, every=1000) for i in range(3)]
    when(lambda: all((j.directory / "status.json").exists() for j in jobs[:2]), number)
    assert launch(jobs, at_once=2) == 130
    assert [read_status(j.directory)["status"] for j in jobs[:2]] == ["interrupted"] * 2
    assert not jobs[2].directory.exists()
    output = capsys.readouterr()
    assert output.out.endswith("\n3 runs: 0 run, 0 failed, 3 interrupted\n")
    assert output.err.endswith("interrupted; run the same command again to resume from the checkpoints\n")
    assert launch(jobs) == 0
    assert capsys.readouterr().out.endswith("\n3 runs: 1 run, 2 resumed, 0 failed\n")
    assert [recorded(j) for j in jobs] == [scalars(j) for j in jobs]


def test_second_ctrl_c_kills(tmp_path, capsys):
    a = job(tmp_path, seconds=60)  # it checks for signals after an update, in a minute
    when((a.directory / "status.json").exists, signal.SIGINT, signal.SIGINT)
    assert launch([a]) == 130
    assert read_status(a.directory)["status"] == "running"  # it had no time to write another status
    assert "killing the runs" in capsys.readouterr().out


def test_run_is_in_its_own_session(tmp_path):
    """Ctrl-C in a terminal reaches it only through the launcher, and a closed terminal does not end it."""
    a, sessions = job(tmp_path, seconds=0.05), []

    def look():
        wait_until(lambda: inspect(a).step > 0)
        sessions.append(os.getsid(process_of(a)))

    thread = threading.Thread(target=look)
    thread.start()
    assert launch([a]) == 0
    thread.join()
    assert sessions[0] != os.getsid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux tells the run")
@pytest.mark.parametrize("dies", [True, False])
def test_run_of_a_killed_launcher_stops_if_asked(tmp_path, dies):
    a = job(tmp_path, seconds=0.02, total_updates=200, every=1000)
    code = f"""
import io, pickle, sys
from runs.sweeps.launcher import Local, Progress, Slot, follow
a = pickle.load(sys.stdin.buffer)
follow(Local([a], [Slot()], 0, die_with_parent={dies}), Progress([a], io.StringIO()))
"""
    launcher = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=REPOSITORY)
    launcher.stdin.write(pickle.dumps(a))
    launcher.stdin.close()
    wait_until((a.directory / "status.json").exists)
    launcher.kill()
    launcher.wait()
    wait_until(lambda: inspect(a).status != "running")
    assert inspect(a).status == ("interrupted" if dies else "finished")


def test_real_script_is_run_as_a_job(tmp_path, capsys):
    flags = {"p": 7, "total_updates": 12, "checkpoint_every": 5, "hidden": 8, "seed": 1, "threads": 1, "exp_name": "a"}
    directory = tmp_path / "grokking"
    a = Job("x/smoke/a", "x", "smoke", "a", "", 1, "grokking", "low", flags, directory, 1, 0.0)
    assert launch([a]) == 0, capsys.readouterr().out
    assert read_scalars(directory)["test/accuracy"][-1][0] == 12
    assert inspect(a).state == "finished"
    with pytest.raises(RunError, match="its preset is 'low', that of x/smoke/a is None"):
        inspect(Job(*[{"low": None}.get(v, v) if isinstance(v, str) else v for v in vars(a).values()]))
