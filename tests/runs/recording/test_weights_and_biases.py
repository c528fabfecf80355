"""--track: what Weights & Biases is told; with the real package, offline, where it is installed."""

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from runs.recording import Run, RunError, read_scalars
from runs.recording.weights_and_biases import RECORD, require_wandb
from runs.training import RunArgs

ROOT = Path(__file__).resolve().parents[3]
INSTALLED = importlib.util.find_spec("wandb") is not None
CONFIG = {"env_id": "CartPole-v1", "seed": 3, "exp_name": "nap", "nap": {"enabled": True}}


class Fake:
    """A module `wandb` that keeps what it is told."""

    Settings = SimpleNamespace

    def __init__(self):
        self.begun, self.rows, self.metrics, self.ended = [], [], [], []

    def init(self, **options):
        self.begun.append(options)
        return SimpleNamespace(
            log=lambda row: self.rows.append(dict(row)),
            define_metric=lambda *names, **more: self.metrics.append((*names, more)),
            finish=lambda exit_code: self.ended.append(exit_code),
        )


@pytest.fixture
def fake(monkeypatch):
    module = Fake()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_numbers_are_sent_by_step_with_the_same_tags(tmp_path, fake):
    with Run.create(tmp_path / "r", CONFIG, argv=["s.py"]) as run:
        run.track("project", "me")
        run.scalar("charts/episodic_return", 1.0, 10)
        run.scalar("charts/episodic_return", 2.0, 10)  # two episodes that ended together
        run.scalars({"charts/SPS": 5.0, "losses/entropy": 0.5}, 20)
        assert fake.rows[-1] == {"global_step": 10, "charts/episodic_return": 2.0}
        run.finish(20)
    assert fake.rows == [
        {"global_step": 10, "charts/episodic_return": 1.0},
        {"global_step": 10, "charts/episodic_return": 2.0},
        {"global_step": 20, "charts/SPS": 5.0, "losses/entropy": 0.5},
    ]
    assert fake.ended == [0]
    assert ("*", {"step_metric": "global_step"}) in fake.metrics
    (begun,) = fake.begun
    assert begun["config"] == CONFIG and begun["name"] == "r" and begun["dir"] == str(tmp_path / "r")
    assert (begun["project"], begun["entity"]) == ("project", "me")


def test_a_resumed_run_continues_the_same_run(tmp_path, fake):
    with Run.create(tmp_path / "r", CONFIG, argv=["s.py"]) as run:
        run.track("project", None)
        run.checkpoint(1, {})
    assert fake.ended == [1]  # interrupted
    with Run.resume(tmp_path / "r", argv=["s.py"]) as run:
        run.track("project", None)
        run.finish(2)
    first, second = fake.begun
    assert first["id"] == second["id"] and second["resume"] == "allow"


def test_a_run_that_cannot_begin_is_refused_in_one_line(tmp_path, fake, monkeypatch):
    def refuse(**options):
        raise ValueError("no API key")

    monkeypatch.setattr(fake, "init", refuse)
    with (
        pytest.raises(RunError, match="--track: Weights & Biases does not begin the run: no API key"),
        Run.create(tmp_path / "r", CONFIG, argv=["s.py"]) as run,
    ):
        run.track("project", None)


@pytest.mark.parametrize("module", [None, SimpleNamespace()])
def test_without_the_package_it_is_refused_in_one_line(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(RunError, match=r"^--track needs the package wandb: pip install -e '.\[track\]'$"):
        require_wandb()


@pytest.mark.parametrize("flag", [{"wandb_project_name": "x"}, {"wandb_entity": "me"}])
def test_its_flags_have_no_effect_without_it(flag):
    name, value = next((f"--{name.replace('_', '-')}", value) for name, value in flag.items())
    with pytest.raises(ValueError, match=f"^{name} {value} has no effect without --track; drop it$"):
        RunArgs(**flag)
    assert RunArgs(track=True, **flag).track


def test_off_it_is_not_imported(tmp_path):
    code = "import sys\nfrom runs.training import RunArgs, Session\nassert 'wandb' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


def records(path):
    """The records of a local file: LevelDB's log format behind seven bytes, in blocks of 32 KiB."""
    data, at, parts = path.read_bytes(), 7, []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield b"".join(parts)
            parts = []


def sent(directory):
    """Rows of history, settings, and ids, of all local files of a run."""
    from wandb.proto import wandb_internal_pb2

    rows, config, ids = [], {}, set()
    for path in sorted(directory.glob("wandb/offline-run-*/run-*.wandb")):
        for data in records(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
            elif kind == "run":
                ids.add(record.run.run_id)
                config |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
    return rows, config, ids


@pytest.mark.skipif(not INSTALLED, reason="wandb is not installed")
def test_the_real_package_receives_what_the_table_has(tmp_path):
    script = ROOT / "agents" / "theory.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "WANDB_MODE": "offline"}
    words = ["--track", "--wandb-project-name", "p", "--rates", "3", "--width", "512", "--seed", "4"]
    result = subprocess.run(
        [sys.executable, script, "halved", *words, "--directory", "r"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    rows, config, ids = sent(tmp_path / "r")
    assert ids == {json.loads((tmp_path / "r" / RECORD).read_text())["id"]}
    assert (config["seed"], config["exp_name"], config["track"]) == (4, "halved", True)
    for tag, points in read_scalars(tmp_path / "r").items():
        assert [(row["global_step"], row[tag]) for row in rows if tag in row] == points
    assert not (tmp_path / "wandb").exists()  # a folder of this name would hide a missing package
