"""One job from every state that its directory can be in."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from runs.executing import claimed, end_of_log, execute, inspect, writer
from runs.experiment import REPOSITORY
from runs.recording import RunError, read_status
from tests.runs.fakes import job, process_of, recorded, resumptions, scalars, starts, wait_until


def spawned(the_job):
    """The script started by hand."""
    return subprocess.Popen(the_job.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def launcher(the_job, **options):
    """`execute` in a process of its own, which a test may kill."""
    code = f"""
import pickle, sys
from runs.executing import execute
print(execute(pickle.loads(sys.stdin.buffer.read()), **{options!r}).state)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=REPOSITORY)
    process.stdin.write(pickle.dumps(the_job))
    process.stdin.close()
    return process


def test_a_new_job_is_run_and_then_left_alone(tmp_path):
    a, told = job(tmp_path), []
    news = execute(a, tell=told.append)
    assert (news.state, news.resumed, [n.text for n in told]) == ("finished", False, ["started"])
    assert recorded(a) == scalars(a)
    assert "threads 1" in a.log.read_text()
    before = a.log.read_bytes()
    assert execute(a, tell=told.append).state == "finished"
    assert len(told) == 1 and a.log.read_bytes() == before


def test_a_crash_is_followed_by_a_resumption_from_the_checkpoint(tmp_path):
    a, told = job(tmp_path, crash_at=13, crashes=2), []
    news = execute(a, tell=told.append)
    assert (news.state, news.resumed) == ("finished", True)
    assert [n.text for n in told][1:] == [
        f"resumed at step 10, as it left with exit code 3 (retry {i} of 2)" for i in (1, 2)
    ]
    assert (starts(a), resumptions(a), recorded(a)) == (3, 2, scalars(a))


def test_a_job_that_crashes_again_and_again_fails_and_can_be_gone_on_with(tmp_path):
    a = job(tmp_path, crash_at=13, crashes=2)
    news = execute(a, retries=1)
    assert (news.state, news.text, starts(a)) == ("failed", "left with exit code 3, 2 times in all", 2)
    assert end_of_log(a, 1) == ["about to crash"]
    assert execute(a).state == "finished" and recorded(a) == scalars(a)


def test_a_killed_process_is_named_by_its_signal(tmp_path):
    a, told = job(tmp_path, seconds=0.02), []

    def kill():
        wait_until(lambda: inspect(a).step >= 5)
        os.kill(process_of(a), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    assert execute(a, tell=told.append).state == "finished"
    thread.join()
    assert "was ended by SIGKILL (retry 1 of 2)" in told[1].text and recorded(a) == scalars(a)


def test_refused_flags_are_not_tried_again(tmp_path):
    a = job(tmp_path, nonsense=1)
    news = execute(a)
    assert (news.state, news.text, starts(a)) == (
        "failed", "refused its flags or its directory: left with exit code 2", 1,
    )  # fmt: skip
    assert "unrecognized arguments: --nonsense 1" in "".join(end_of_log(a))


def test_leaving_with_code_0_unfinished_is_a_crash(tmp_path):
    a = job(tmp_path, unfinished=True)
    assert (execute(a, retries=1).text, starts(a)) == ("left with exit code 0, 2 times in all", 2)


def test_what_was_killed_before_its_first_checkpoint_is_moved_aside(tmp_path):
    a, told = job(tmp_path, crash_at=3, crashes=2), []
    assert execute(a, tell=told.append).state == "finished"
    assert [n.resumed for n in told] == [False] * 3
    assert "is now a.abandoned-2" in told[2].text
    for number in (1, 2):
        aside = a.directory.with_name(f"a.abandoned-{number}")
        assert (aside / "scalars.csv").read_bytes().count(b"\n") == 4  # header and three steps, as they were
    assert recorded(a) == scalars(a)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flags": {"total_updates": 30}}, "total_updates is 20 there and 30 in fake/smoke/a"),
        ({"flags": {"nap.every": 2}}, "nap.every is '(none)' there and 2 in"),
        ({"preset": "low"}, "preset is None there and 'low' in"),
        ({"script": "grokking"}, "script is 'fake_agent' there and 'grokking' in"),
    ],
)
def test_another_run_is_refused_by_the_first_key_that_differs(tmp_path, changes, message):
    a = job(tmp_path)
    execute(a)
    before = {path: path.read_bytes() for path in a.directory.iterdir()}
    with pytest.raises(RunError, match=re.escape(message)):
        execute(replace(a, **{**changes, "flags": {**a.flags, **changes.get("flags", {})}}))
    assert {path: path.read_bytes() for path in a.directory.iterdir()} == before and starts(a) == 1


def test_tuples_and_paths_equal_what_json_made_of_them(tmp_path):
    a = job(tmp_path)
    execute(a)
    config = {**json.loads((a.directory / "config.json").read_text()), "at": [1, 2], "nap": {"source": "x/y"}}
    (a.directory / "config.json").write_text(json.dumps(config))
    same = {"at": (1, 2), "nap.source": Path("x/y")}
    assert inspect(replace(a, flags={**a.flags, **same})).state == "finished"
    with pytest.raises(RunError, match=r"at is \[1, 2\] there and \(1, 3\)"):
        inspect(replace(a, flags={**a.flags, **same, "at": (1, 3)}))


def test_a_run_that_somebody_else_writes_is_waited_for(tmp_path):
    a, told = job(tmp_path, seconds=0.05), []
    by_hand = spawned(a)
    wait_until(lambda: (a.directory / "status.json").exists())
    assert "is being written by another process" in writer(a)
    assert execute(a, tell=told.append).state == "finished"
    assert by_hand.wait() == 0
    assert ([n.state for n in told], starts(a), recorded(a)) == (["blocked"], 0, scalars(a))


def test_two_launchers_never_run_a_job_twice(tmp_path):
    """The second decides while the first one's process is loading and holds no lock of the run yet."""
    a, told, ended = job(tmp_path, loading=0.5), [], []
    threads = [threading.Thread(target=lambda: ended.append(execute(a, tell=told.append))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [n.state for n in ended] == ["finished"] * 2
    assert sorted(n.state for n in told) == ["blocked", "running"] and starts(a) == 1


def test_the_run_of_a_killed_launcher_goes_on_and_is_waited_for(tmp_path):
    a, told = job(tmp_path, loading=1.0, seconds=0.05), []
    first = launcher(a)
    wait_until(lambda: a.log.exists() and "cores" in a.log.read_text())
    first.kill()
    first.wait()
    assert claimed(a)  # although its launcher is dead and the run not created yet
    assert execute(a, tell=told.append).state == "finished"
    assert ([n.state for n in told], starts(a), resumptions(a)) == (["blocked"], 1, 0)
    assert recorded(a) == scalars(a) and not claimed(a)


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_tethered_run_stops_at_a_checkpoint_when_its_launcher_is_killed(tmp_path):
    a = job(tmp_path, seconds=0.05, every=1000)
    first = launcher(a, tethered=True)
    wait_until(lambda: (a.directory / "scalars.csv").exists() and recorded(a).count(b"\n") > 5)
    first.kill()
    first.wait()
    wait_until(lambda: not claimed(a))
    assert read_status(a.directory)["status"] == "interrupted"
    news = execute(a)
    assert (news.state, news.resumed, resumptions(a), recorded(a)) == ("finished", True, 1, scalars(a))


def test_halting_lets_the_run_write_a_checkpoint(tmp_path):
    a = job(tmp_path, seconds=0.05, every=1000)
    news = execute(a, halt=lambda: (a.directory / "status.json").exists())
    assert news.state == "interrupted" and read_status(a.directory)["status"] == "interrupted"
    assert (execute(a).resumed, recorded(a)) == (True, scalars(a))


def test_halting_at_once_kills(tmp_path):
    a = job(tmp_path, seconds=0.05, every=1)
    news = execute(a, halt=lambda: 2 * (inspect(a).step > 2))
    assert news.state == "interrupted" and read_status(a.directory)["status"] == "running"
    assert (execute(a).resumed, recorded(a)) == (True, scalars(a))


def test_halting_ends_waiting(tmp_path):
    a = job(tmp_path, seconds=0.05)
    by_hand = spawned(a)
    wait_until(lambda: (a.directory / "status.json").exists())
    told = []
    assert execute(a, tell=told.append, halt=lambda: len(told)).state == "interrupted"
    by_hand.kill()
    by_hand.wait()


def test_a_finished_run_that_lost_lines_is_no_result(tmp_path):
    a = job(tmp_path)
    execute(a)
    status = {**read_status(a.directory), "table_bytes": len(recorded(a)) + 1}
    (a.directory / "status.json").write_text(json.dumps(status))
    with pytest.raises(RunError, match="lines are missing"):
        execute(a)
