"""Many jobs on this machine: slots, exit codes, Ctrl-C, and a real script."""

import io
import os
import signal
import threading
from pathlib import Path

import pytest

from runs.executing import inspect
from runs.experiment import Job
from runs.launcher import Local, Slot, available_cores, follow, launch, make_slots
from runs.progress import Progress
from runs.recording import RunError, read_scalars, read_status
from tests.runs.fakes import job, process_of, recorded, scalars, starts, wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the fake script asks for its cores")


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
def test_each_slot_has_cores_of_its_own_while_there_are_some(jobs, at_once, cores, expected):
    assert cores_of(make_slots(jobs, at_once, True, cores)) == expected
    assert cores_of(make_slots(jobs, at_once, False, cores)) == [[]] * len(expected)


def test_gpus_are_shared_and_taken_in_turn(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    slots = make_slots(sized(20, gpus=0.25), None, False, range(64), gpus=2)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["3", "5"] * 4
    assert len(make_slots(sized(20, gpus=1 / 3), None, False, range(64), gpus=1)) == 3
    assert len(make_slots(sized(20, gpus=0.25), None, False, range(3), gpus=2)) == 3
    with pytest.raises(RunError, match="needs a GPU"):
        make_slots(sized(1, gpus=0.25), None, False, range(4), gpus=0)


def test_all_jobs_end_and_the_second_time_there_is_nothing_to_do(tmp_path, capsys):
    jobs = [job(tmp_path, f"r{i}", seed=i) for i in range(5)]
    assert launch(jobs, at_once=2) == 0
    assert [recorded(j) for j in jobs] == [scalars(j) for j in jobs]
    assert capsys.readouterr().out.endswith("\n5 runs: 5 run, 0 failed\n")
    assert launch(jobs) == 0
    assert capsys.readouterr().out.endswith("\n5 runs: 0 run, 5 skipped, as they were finished, 0 failed\n")
    assert [starts(j) for j in jobs] == [1] * 5


def test_runs_are_held_to_their_slot_s_cores(tmp_path):
    core = available_cores()[-1]
    a, before = job(tmp_path), os.sched_getaffinity(0)
    assert follow(Local([a], [Slot(frozenset({core}))], 0), Progress([a], io.StringIO())) == 0
    assert f"cores [{core}] threads 1" in a.log.read_text()
    assert os.sched_getaffinity(0) == before


def test_a_failure_is_shown_with_its_log_and_the_others_go_on(tmp_path, capsys):
    jobs = [job(tmp_path, "bad", crash_at=7, crashes=9), job(tmp_path, "flags", nonsense=1), job(tmp_path, "good")]
    assert launch(jobs, at_once=1, retries=1) == 1
    out = capsys.readouterr().out
    assert "fake/smoke/bad failed: left with exit code 3, 2 times in all" in out
    assert "    about to crash" in out and "unrecognized arguments: --nonsense 1" in out
    assert out.endswith("\n3 runs: 1 run, 2 failed\n")
    assert (starts(jobs[0]), starts(jobs[1]), recorded(jobs[2])) == (2, 1, scalars(jobs[2]))


def test_another_run_s_directory_fails_that_job_alone(tmp_path, capsys):
    assert launch([job(tmp_path, "a")]) == 0
    assert launch([job(tmp_path, "a", total_updates=30), job(tmp_path, "b")]) == 1
    assert "total_updates is 20 there and 30 in fake/smoke/a" in capsys.readouterr().out


def when(condition, *signals):
    """Send this process signals, each once its condition holds, as somebody at the keyboard would."""

    def send():
        wait_until(condition)
        for number in signals:
            os.kill(os.getpid(), number)
            threading.Event().wait(0.5)

    threading.Thread(target=send).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_ctrl_c_lets_runs_write_checkpoints(tmp_path, capsys, number):
    jobs = [job(tmp_path, f"r{i}", seconds=0.05, every=1000) for i in range(3)]
    when(lambda: all((j.directory / "status.json").exists() for j in jobs[:2]), number)
    assert launch(jobs, at_once=2) == 130
    assert [read_status(j.directory)["status"] for j in jobs[:2]] == ["interrupted"] * 2
    assert not jobs[2].directory.exists()
    output = capsys.readouterr()
    assert output.out.endswith("\n3 runs: 0 run, 0 failed, 3 interrupted\n")
    assert output.err.endswith("interrupted; the same command goes on from the checkpoints\n")
    assert launch(jobs) == 0
    assert capsys.readouterr().out.endswith("\n3 runs: 1 run, 2 resumed, 0 failed\n")
    assert [recorded(j) for j in jobs] == [scalars(j) for j in jobs]


def test_the_second_ctrl_c_kills(tmp_path, capsys):
    a = job(tmp_path, seconds=60)  # it looks at its signals after an update: in a minute
    when((a.directory / "status.json").exists, signal.SIGINT, signal.SIGINT)
    assert launch([a]) == 130
    assert read_status(a.directory)["status"] == "running"  # it had no time to say otherwise
    assert "killing the runs" in capsys.readouterr().out


def test_a_run_is_in_a_session_of_its_own(tmp_path):
    """So that a terminal's Ctrl-C reaches it through the launcher alone, and a closed terminal does not end it."""
    a, found = job(tmp_path, seconds=0.05), []

    def look():
        wait_until(lambda: inspect(a).step > 0)
        found.append(os.getsid(process_of(a)))

    thread = threading.Thread(target=look)
    thread.start()
    assert launch([a]) == 0
    thread.join()
    assert found[0] != os.getsid(0)


def test_a_real_script(tmp_path, capsys):
    flags = {"p": 7, "total_updates": 12, "checkpoint_every": 5, "hidden": 8, "seed": 1, "threads": 1, "exp_name": "a"}
    directory = tmp_path / "grokking"
    a = Job("x/smoke/a", "x", "smoke", "a", "", 1, "grokking", "low", flags, directory, 1, 0.0)
    assert launch([a]) == 0, capsys.readouterr().out
    assert read_scalars(directory)["test/accuracy"][-1][0] == 12
    assert inspect(a).state == "finished"
    with pytest.raises(RunError, match="preset is 'low' there and None"):
        inspect(Job(*[{"low": None}.get(v, v) if isinstance(v, str) else v for v in vars(a).values()]))
