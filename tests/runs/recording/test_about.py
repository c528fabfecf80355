"""The Text and HParams pages of a run: what they say, and that they are there once after resuming and repair."""

import json
import os

import pytest

from runs.analysis.events import hyperparameters, read_events
from runs.recording import Run
from runs.recording.about import about

DEFAULTS = {"seed": 1, "rate": 1e-3, "nap": {"enabled": False, "every": 1}, "directory": None, "resume": None}
CONFIG = {**DEFAULTS, "seed": 3, "nap": {"enabled": True, "every": 1}, "directory": "somewhere"}
ARGV = ["agents/x.py", "nap", "--seed", "3", "--note", "a b"]


def create(directory, **options):
    return Run.create(directory, CONFIG, argv=ARGV, device="cpu", **{"defaults": DEFAULTS, **options})


def shown(directory):
    """What TensorBoard reads: texts by tag, and the values of the HParams page."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    events = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    events.Reload()
    texts = {
        tag: [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
        for tag in events.PluginTagToContent("text")
    }
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    flags = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    return texts, flags


def test_text_page_has_command_changed_flags_and_origin(tmp_path):
    create(tmp_path).finish(0)
    texts, _ = shown(tmp_path)
    (summary,) = texts["about"]
    assert "    agents/x.py nap --seed 3 --note 'a b'" in summary
    assert "|--seed|3|1|" in summary and "|--nap.enabled|True|False|" in summary
    assert "--rate" not in summary and "--directory" not in summary
    record = json.loads((tmp_path / "provenance.json").read_text())
    for what in (record["started"], record["git"]["revision"], record["host"], f"torch {record['versions']['torch']}"):
        assert what in summary
    assert "|device|cpu|" in summary


def test_flags_are_read_back_as_cleanrls_are(tmp_path):
    create(tmp_path).finish(0)
    found = hyperparameters(read_events(tmp_path).texts)
    assert found["seed"] == 3 and found["rate"] == 1e-3 and found["nap.enabled"] is True and found["resume"] is None


def test_hparams_page_has_every_flag_but_places(tmp_path):
    create(tmp_path).finish(0)
    assert shown(tmp_path)[1] == {"seed": 3.0, "rate": 1e-3, "nap.enabled": True, "nap.every": 1.0}


def test_defaults_may_be_unknown_or_all_kept(tmp_path):
    create(tmp_path / "a", defaults=None).finish(0)
    assert "--seed|" not in shown(tmp_path / "a")[0]["about"][0]
    create(tmp_path / "b", defaults=CONFIG).finish(0)
    assert "All flags have their default values." in shown(tmp_path / "b")[0]["about"][0]


@pytest.mark.parametrize("damage", [None, "lost", "shortened"])
def test_resumed_and_repaired_runs_show_both_pages(tmp_path, damage):
    run = create(tmp_path)
    whole = shown_now(run, tmp_path)
    run.scalar("train/loss", 1.0, 1)
    run.checkpoint(1, {})
    run.interrupt(1)
    file = tmp_path / "events.out.tfevents.000000"
    if damage == "lost":
        file.unlink()
    elif damage:
        os.truncate(file, file.stat().st_size // 3)
    with Run.resume(tmp_path) as run:
        run.scalar("train/loss", 0.5, 2)
        run.checkpoint(2, {})
        run.interrupt(2)
    with Run.resume(tmp_path) as run:
        run.finish(2)
    assert shown(tmp_path) == whole
    assert read_events(tmp_path).scalars == {"train/loss": [(1, 1.0), (2, 0.5)]} or damage == "shortened"


def shown_now(run, directory):
    run.flush()
    return shown(directory)


def test_a_scalar_costs_no_more_bytes_than_before(tmp_path):
    run = create(tmp_path)
    run.flush()
    file = tmp_path / "events.out.tfevents.000000"
    before = file.stat().st_size
    run.scalar("train/loss", 1.0, 1)
    run.flush()
    assert file.stat().st_size - before < 64
    run.finish(1)


def test_unknown_origin():
    origin = {
        "command": [], "git": {"revision": "unknown", "dirty": None}, "started": "now", "host": "", "cpu": "unknown",
        "cpu_count": None, "platform": "", "device": None, "threads": 1, "versions": {"torch": "2", "ale-py": None},
    }  # fmt: skip
    texts = about({}, None, origin)
    assert "|revision|unknown|" in texts["about"] and "ale-py" not in texts["about"]
