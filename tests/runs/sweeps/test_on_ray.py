"""A Ray cluster of two nodes that loses one during a sweep; skipped if Ray is not installed."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from runs.sweeps import on_ray
from runs.sweeps.on_ray import run_on_node
from runs.sweeps.run_job import News
from tests.runs.sweeps.fakes import job, recorded, resumptions, scalars, starts, wait_until

needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")
FAKE = Path(__file__).parent / "fake_agent"
MINE = f"""
from runs.sweeps.experiment import Arm, Experiment, Scale, Verdict

EXPERIMENT = Experiment(
    name="fake", source="ours", claim="It counts.", rule="Reproduced if it counts.", curve="test/accuracy",
    arms=[Arm("a", {str(FAKE)!r}, flags={{"seconds": 0.1, "every": 10}})],
    scales={{"smoke": Scale(seeds=range(6), estimate="a minute", flags={{"total_updates": 100}}),
             "gpu": Scale(seeds=(1,), estimate="a second", gpus=0.25)}},
    measures={{}},
    judge=lambda runs: Verdict("undecided", ""),
)
"""
ENVIRONMENT = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}


@contextlib.contextmanager
def cluster(*cores):
    """The cluster's address, and a function that kills its second node."""
    command = [sys.executable, str(Path(__file__).with_name("two_nodes.py")), *map(str, cores)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)

    def lose():
        print("lose", file=process.stdin, flush=True)
        return process.stdout.readline()

    with process:  # it ends with its standard input
        yield process.stdout.readline().strip(), lose


def launched(mine, address, logs, **more):
    command = [sys.executable, "-m", "runs", "run", str(mine), "--scale", "smoke", "--engine", "ray"]
    command += ["--address", address, "--logs", str(logs)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, **more
    )


def jobs(logs):
    planned = [job(logs, f"a-s{seed}", seed=seed, total_updates=100) for seed in range(6)]
    assert [j.directory.parent for j in planned] == [logs / "fake" / "smoke"] * 6
    return planned


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


@needs_ray
def test_lost_node_loses_nothing_and_ctrl_c_stops_at_checkpoints(tmp_path, mine):
    runs = jobs(tmp_path)
    with cluster(1, 2) as (address, lose):
        first = launched(mine, address, tmp_path)
        wait_until(lambda: sum((j.directory / "checkpoint.pt").exists() for j in runs) >= 3, 180)
        assert lose().startswith("lost ")
        output = first.communicate(timeout=400)[0]
        assert first.returncode == 0, output
        assert output.count(": waiting, its node is lost") == 2
        assert [recorded(j) for j in runs] == [scalars(j) for j in runs]
        assert sum(resumptions(j) for j in runs) == 2, output  # the ones on the lost node
        assert [j.log.read_text().count("finished 100 updates") for j in runs] == [1] * 6

        logs = tmp_path / "stopped"
        stopped = launched(mine, address, logs)
        wait_until((logs / "fake/smoke/a-s0/scalars.csv").exists, 180)
        stopped.send_signal(signal.SIGINT)
        output = stopped.communicate(timeout=200)[0]
        assert stopped.returncode == 130, output
        assert "6 runs: 0 run, 0 failed, 6 interrupted" in output
        assert '"interrupted"' in (logs / "fake/smoke/a-s0/status.json").read_text()
        assert not (logs / "fake/smoke/a-s5").exists()
        assert not list(tmp_path.rglob(".shared-with-every-node-*"))


@needs_ray
def test_address_without_a_cluster_is_one_line(tmp_path, mine):
    process = launched(mine, "127.0.0.1:1", tmp_path)
    *_, line = process.communicate(timeout=200)[0].splitlines()
    assert process.returncode == 2
    assert line.startswith(
        "python -m runs run: no Ray cluster at --address 127.0.0.1:1 ([Errno 111] Connection refused); "
    )


def test_node_without_the_shared_file_system_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "_node_id", lambda: "n1")
    token = tmp_path / "token"
    missing = run_on_node(job(tmp_path), 0, token, "x", None)
    token.write_text("of another file system")
    other = run_on_node(job(tmp_path), 0, token, "x", None)
    for news in (missing, other):
        assert news.state == "failed" and f"does not share {tmp_path} with the launcher" in news.text
    assert not job(tmp_path).log.exists()


def test_task_reports_its_node_and_refuses_another_run(tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "_node_id", lambda: "n1")
    reported = []
    board = SimpleNamespace(tell=SimpleNamespace(remote=lambda *news: reported.append(news)))
    token = tmp_path / "token"
    token.write_text("x")
    assert run_on_node(job(tmp_path), 0, token, "x", board).state == "finished"
    assert starts(job(tmp_path)) == 1
    ((news, node),) = reported
    assert news.text.startswith("started on ") and node == "n1"
    assert run_on_node(job(tmp_path, total_updates=9), 0, token, "x", board) == News(
        "fake/smoke/a", "failed", f"{tmp_path}/fake/smoke/a holds another run: its total_updates is 20, that of "
        "fake/smoke/a is 9; move it away, or give other --logs",
    )  # fmt: skip
