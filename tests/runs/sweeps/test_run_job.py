"""One job, from every state its directory can be in."""

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

from runs.recording import RunError, read_status
from runs.sweeps import run_job as run_job_module
from runs.sweeps.experiment import REPOSITORY
from runs.sweeps.run_job import claimed, end_of_log, inspect, run_job, writer
from tests.runs.sweeps.fakes import job, process_of, recorded, resumptions, scalars, starts, wait_until


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(run_job_module, "_POLL_SECONDS", 0.02)


def spawned(the_job):
    """The script, started by hand."""
    return subprocess.Popen(the_job.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def launcher(the_job, **options):
    """`run_job` in its own process, which a test can kill."""
    code = f"""
import pickle, sys
from runs.sweeps.run_job import run_job
print(run_job(pickle.loads(sys.stdin.buffer.read()), **{options!r}).state)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=REPOSITORY)
    process.stdin.write(pickle.dumps(the_job))
    process.stdin.close()
    return process


def test_new_job_is_run_once(tmp_path):
    a, events = job(tmp_path), []
    news = run_job(a, tell=events.append)
    assert (news.state, news.resumed, [n.text for n in events]) == ("finished", False, ["started"])
    assert recorded(a) == scalars(a)
    assert "threads 1" in a.log.read_text()
    before = a.log.read_bytes()
    assert run_job(a, tell=events.append).state == "finished"
    assert len(events) == 1 and a.log.read_bytes() == before


def test_job_is_resumed_from_its_checkpoint_after_a_crash(tmp_path):
    a, events = job(tmp_path, crash_at=13, crashes=2), []
    news = run_job(a, tell=events.append)
    assert (news.state, news.resumed) == ("finished", True)
    assert [n.text for n in events][1:] == [
        f"resumed at step 10, because it exited with code 3 (retry {i} of 2)" for i in (1, 2)
    ]
    assert (starts(a), resumptions(a), recorded(a)) == (3, 2, scalars(a))


def test_job_fails_after_max_retries_and_can_be_resumed(tmp_path):
    a = job(tmp_path, crash_at=13, crashes=2)
    news = run_job(a, retries=1)
    assert (news.state, news.text, starts(a)) == ("failed", "exited with code 3, 2 times in total", 2)
    assert end_of_log(a, 1) == ["about to crash"]
    assert run_job(a).state == "finished" and recorded(a) == scalars(a)


def test_killed_process_is_reported_with_its_signal(tmp_path):
    a, events = job(tmp_path, seconds=0.02), []

    def kill():
        wait_until(lambda: inspect(a).step >= 5)
        os.kill(process_of(a), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    assert run_job(a, tell=events.append).state == "finished"
    thread.join()
    assert "was ended by SIGKILL (retry 1 of 2)" in events[1].text and recorded(a) == scalars(a)


def test_refused_flags_are_not_retried(tmp_path):
    a = job(tmp_path, nonsense=1)
    news = run_job(a)
    assert (news.state, news.text, starts(a)) == (
        "failed", "refused its flags or its directory: exited with code 2", 1,
    )  # fmt: skip
    assert "unrecognized arguments: --nonsense 1" in "".join(end_of_log(a))


def test_exit_code_0_without_finishing_is_a_crash(tmp_path):
    a = job(tmp_path, unfinished=True)
    assert (run_job(a, retries=1).text, starts(a)) == ("exited with code 0, 2 times in total", 2)


def test_run_killed_before_its_first_checkpoint_is_moved_aside(tmp_path):
    a, events = job(tmp_path, crash_at=3, crashes=2), []
    assert run_job(a, tell=events.append).state == "finished"
    assert [n.resumed for n in events] == [False] * 3
    assert "is now a.abandoned-2" in events[2].text
    for number in (1, 2):
        aside = a.directory.with_name(f"a.abandoned-{number}")
        assert (aside / "scalars.csv").read_bytes().count(b"\n") == 4  # header and three steps, unchanged
    assert recorded(a) == scalars(a)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flags": {"total_updates": 30}}, "its total_updates is 20, that of fake/smoke/a is 30"),
        ({"flags": {"nap.every": 2}}, "its nap.every is '(none)', that of fake/smoke/a is 2"),
        ({"preset": "low"}, "its preset is None, that of fake/smoke/a is 'low'"),
        ({"script": "grokking"}, "its script is 'fake_agent', that of fake/smoke/a is 'grokking'"),
    ],
)
def test_another_run_is_refused_and_the_first_different_key_named(tmp_path, changes, message):
    a = job(tmp_path)
    run_job(a)
    before = {path: path.read_bytes() for path in a.directory.iterdir()}
    with pytest.raises(RunError, match=re.escape(message)):
        run_job(replace(a, **{**changes, "flags": {**a.flags, **changes.get("flags", {})}}))
    assert {path: path.read_bytes() for path in a.directory.iterdir()} == before and starts(a) == 1


def test_branches_and_longer_runs_are_not_those_of_an_experiment(tmp_path):
    a = job(tmp_path)
    run_job(a)
    config, record = a.directory / "config.json", a.directory / "provenance.json"
    plain = config.read_text(), record.read_text()
    config.write_text(json.dumps({**json.loads(plain[0]), "branch": "other@5"}))
    with pytest.raises(RunError, match="its branch is 'other@5'"):
        run_job(a)
    config.write_text(plain[0])
    record.write_text(json.dumps({**json.loads(plain[1]), "resumed": [{"extended": {"total_timesteps": [5, 9]}}]}))
    with pytest.raises(RunError, match=r"its length \(--extend\)"):
        run_job(a)
    record.write_text(plain[1])
    assert run_job(a).state == "finished"


def test_tuples_and_paths_equal_their_json_form(tmp_path):
    a = job(tmp_path)
    run_job(a)
    config = {**json.loads((a.directory / "config.json").read_text()), "at": [1, 2], "nap": {"source": "x/y"}}
    (a.directory / "config.json").write_text(json.dumps(config))
    same = {"at": (1, 2), "nap.source": Path("x/y")}
    assert inspect(replace(a, flags={**a.flags, **same})).state == "finished"
    with pytest.raises(RunError, match=r"its at is \[1, 2\], that of fake/smoke/a is \(1, 3\)"):
        inspect(replace(a, flags={**a.flags, **same, "at": (1, 3)}))


def test_run_of_another_process_is_waited_for(tmp_path):
    a, events = job(tmp_path, seconds=0.05), []
    by_hand = spawned(a)
    wait_until(lambda: (a.directory / "status.json").exists())
    assert "is being written by another process" in writer(a)
    assert run_job(a, tell=events.append).state == "finished"
    assert by_hand.wait() == 0
    assert ([n.state for n in events], starts(a), recorded(a)) == (["blocked"], 0, scalars(a))


def test_two_launchers_never_run_a_job_twice(tmp_path):
    """The second launcher decides while the first one's process is loading and does not hold the run's lock yet."""
    a, events, ended = job(tmp_path, loading=0.5), [], []
    threads = [threading.Thread(target=lambda: ended.append(run_job(a, tell=events.append))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [n.state for n in ended] == ["finished"] * 2
    assert sorted(n.state for n in events) == ["blocked", "running"] and starts(a) == 1


def test_run_of_a_killed_launcher_continues_and_is_waited_for(tmp_path):
    a, events = job(tmp_path, loading=1.0, seconds=0.05), []
    first = launcher(a)
    wait_until(lambda: a.log.exists() and "cores" in a.log.read_text())
    first.kill()
    first.wait()
    assert claimed(a)  # although its launcher is dead and the run was not created yet
    assert run_job(a, tell=events.append).state == "finished"
    assert ([n.state for n in events], starts(a), resumptions(a)) == (["blocked"], 1, 0)
    assert recorded(a) == scalars(a) and not claimed(a)


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_run_with_die_with_parent_stops_at_a_checkpoint_when_its_launcher_is_killed(tmp_path):
    a = job(tmp_path, seconds=0.05, every=1000)
    first = launcher(a, die_with_parent=True)
    wait_until(lambda: (a.directory / "scalars.csv").exists() and recorded(a).count(b"\n") > 5)
    first.kill()
    first.wait()
    wait_until(lambda: not claimed(a))
    assert read_status(a.directory)["status"] == "interrupted"
    news = run_job(a)
    assert (news.state, news.resumed, resumptions(a), recorded(a)) == ("finished", True, 1, scalars(a))


def test_halting_lets_the_run_write_a_checkpoint(tmp_path):
    a = job(tmp_path, seconds=0.05, every=1000)
    news = run_job(a, halt=lambda: (a.directory / "status.json").exists())
    assert news.state == "interrupted" and read_status(a.directory)["status"] == "interrupted"
    assert (run_job(a).resumed, recorded(a)) == (True, scalars(a))


def test_halting_at_once_kills(tmp_path):
    a = job(tmp_path, seconds=0.05, every=1)
    news = run_job(a, halt=lambda: 2 * (inspect(a).step > 2))
    assert news.state == "interrupted" and read_status(a.directory)["status"] == "running"
    assert (run_job(a).resumed, recorded(a)) == (True, scalars(a))


def test_halting_ends_waiting(tmp_path):
    a = job(tmp_path, seconds=0.05)
    by_hand = spawned(a)
    wait_until(lambda: (a.directory / "status.json").exists())
    events = []
    assert run_job(a, tell=events.append, halt=lambda: len(events)).state == "interrupted"
    by_hand.kill()
    by_hand.wait()


def test_finished_run_that_lost_lines_is_refused(tmp_path):
    a = job(tmp_path)
    run_job(a)
    status = {**read_status(a.directory), "table_bytes": len(recorded(a)) + 1}
    (a.directory / "status.json").write_text(json.dumps(status))
    with pytest.raises(RunError, match="lines are missing"):
        run_job(a)
