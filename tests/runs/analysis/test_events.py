"""Event files: of torch's SummaryWriter, of TensorFlow 2's kind and of ours, resumed, cut short and damaged."""

import struct

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c, masked_crc32c
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from runs.analysis import events
from runs.analysis.found_runs import found_runs, is_run
from runs.recording import Run, RunError, read_scalars
from runs.recording.events_file import EventFile

CLEANRL = {
    "exp_name": "dqn",
    "seed": 3,
    "env_id": "CartPole-v1",
    "learning_rate": 0.00025,
    "track": False,
    "entity": None,
}


def records(path, contents):
    """An event file of these events, after the one that says its version."""
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for event in (event_pb2.Event(file_version="brain.Event:2"), *contents):
            writer.write(event if isinstance(event, bytes) else event.SerializeToString())
    return path


def scalar(tag, value, step):
    return event_pb2.Event(step=step, summary=summary_pb2.Summary(value=[{"tag": tag, "simple_value": value}]))


def start(step):
    return event_pb2.Event(step=step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))


def accumulated(path):
    """What tensorboard's own reader makes of it."""
    reader = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_files_of_cleanrl(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    table = "\n".join(f"|{key}|{value}|" for key, value in CLEANRL.items())
    writer.add_text("hyperparameters", "|param|value|\n|-|-|\n" + table)
    for step in range(0, 4000, 100):  # enough of one length to check them together
        writer.add_scalar("charts/episodic_return", step / 7, step)
    writer.add_scalar("losses/td_loss", 0.5, 100)
    writer.add_histogram("weights", np.arange(5.0), 100)
    writer.close()
    found = events.read_events(tmp_path)
    assert found.scalars == accumulated(tmp_path)
    assert found.scalars["charts/episodic_return"][2] == (200, float(np.float32(200 / 7)))
    assert len(found.scalars["charts/episodic_return"]) == 40 and found.scalars.keys() >= {"losses/td_loss"}
    assert events.hyperparameters(found.texts) == CLEANRL
    assert not found.cut


def test_files_of_tensorflow_2(tmp_path):
    tensors = [
        scalar_pb("loss", 0.25),
        histogram_pb("weights", np.arange(5.0), buckets=3),
        text_pb("hyperparameters", "|param|value|\n|-|-|\n|gamma|0.99|\n|note|a | b|"),
    ]
    contents = [event_pb2.Event(step=7, summary=one) for one in tensors]
    later = scalar_pb("loss", 0.125)
    later.value[0].ClearField("metadata")  # only a tag's first value says that it is a scalar
    contents.append(event_pb2.Event(step=8, summary=later))
    found = events.read_events(records(tmp_path / "a.tfevents", contents))
    assert found.scalars == {"loss": [(7, 0.25), (8, 0.125)]}
    assert events.hyperparameters(found.texts) == {"gamma": 0.99, "note": "a | b"}


def test_our_files_equal_the_table(tmp_path):
    with Run.create(tmp_path, {}, argv=["x.py"]) as run:
        for step in range(5):
            run.scalars({"charts/SPS": step / 4, "train/loss": 0.5 * step}, step)
        run.checkpoint(3, {})
        run.finish(4)
    assert events.read_events(tmp_path).scalars == read_scalars(tmp_path)  # halves and quarters fit 32 bits


def test_scalars_after_the_checkpoint_of_a_resumed_run_are_dropped(tmp_path):
    first, second = EventFile(tmp_path), None
    for step in (1, 2, 3, 4):
        first.add("train/loss", float(step), step)
        first.add("test/loss", float(step), step)
    first.file.close()
    second = EventFile(tmp_path, purge_step=3)
    second.add("train/loss", 30.0, 3)
    second.file.close()
    found = events.read_events(tmp_path)
    assert found.scalars == accumulated(tmp_path)
    assert found.scalars == {"train/loss": [(1, 1.0), (2, 2.0), (3, 30.0)], "test/loss": [(1, 1.0), (2, 2.0)]}


def test_files_are_read_in_the_order_of_their_names(tmp_path):
    records(tmp_path / "events.out.tfevents.2", [start(5), scalar("a", 2.0, 5)])
    records(tmp_path / "events.out.tfevents.1", [scalar("a", 1.0, 5)])
    assert events.read_events(tmp_path).scalars == {"a": [(5, 2.0)]}


@pytest.mark.parametrize(
    "name", ["._{}", ".{}.swp", ".{}.x7Kq2a", "{}~", "{}.part", "{}.filepart", "{}.crdownload", "{}.tmp"]
)
def test_what_lies_next_to_an_event_file_is_left_out(tmp_path, name):
    path = records(tmp_path / "events.out.tfevents.1", [scalar("a", 1.0, 5)])
    (tmp_path / name.format(path.name)).write_bytes(b"Mac OS X" * 8)
    assert events.read_events(tmp_path).scalars == {"a": [(5, 1.0)]}
    assert events.event_files(tmp_path) == [path]
    path.unlink()
    assert not is_run(tmp_path)
    with pytest.raises(RunError, match=r"no run in .*: it holds no run"):
        found_runs([str(tmp_path)], "page")


def test_incomplete_record_is_left_out(tmp_path):
    path = records(tmp_path / "events.out.tfevents.1", [scalar("a", 1.0, 1), scalar("a", 2.0, 2)])
    whole = path.read_bytes()
    last = len(whole) - len(scalar("a", 2.0, 2).SerializeToString()) - 16
    for length in (last + 3, last + 12, last + 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        found = events.read_events(path)
        assert found.cut and found.scalars == {"a": [(1, 1.0)]}
    path.write_bytes(whole[:last])
    assert not events.read_events(path).cut
    path.write_bytes(whole[:-1])
    records(tmp_path / "events.out.tfevents.2", [start(2), scalar("a", 3.0, 2)])
    assert not events.read_events(tmp_path).cut  # the kill was followed by a resumption
    assert events.read_events(tmp_path).scalars == {"a": [(1, 1.0), (2, 3.0)]}


@pytest.mark.parametrize("count", [3, 60])  # few records, and many of one length
def test_every_damaged_byte_is_found(tmp_path, count):
    path = records(tmp_path / "a.tfevents", [scalar("a", 1.0, 1000 + k) for k in range(count)])
    whole = path.read_bytes()
    size = len(scalar("a", 1.0, 1000).SerializeToString()) + 16
    begin = len(whole) - 2 * size
    for place in range(begin, begin + size):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(RunError, match=rf"a.tfevents is damaged at byte ({begin}|{begin + 12}):"):
            events.read_events(path)
    path.write_bytes(whole[:begin] + struct.pack("<Q", 1 << 40) + whole[begin + 8 :])  # not taken for a cut
    with pytest.raises(RunError, match=f"damaged at byte {begin}:.*copy it again"):
        events.read_events(path)


def test_files_that_are_not_event_files_are_refused(tmp_path):
    with pytest.raises(RunError, match="holds no event file"):
        events.read_events(tmp_path)
    path = tmp_path / "scalars.csv"
    with pytest.raises(RunError, match=r"cannot read scalars.csv in .*: No such file"):
        events.read_events(path)
    path.write_text("step,tag,value\n1,train/loss,0.5\n")
    with pytest.raises(RunError, match=r"damaged at byte 0: .* it is not an event file"):
        events.read_events(path)
    with pytest.raises(RunError, match="a record at byte 43 that is not an event"):
        events.read_events(records(tmp_path / "b.tfevents", [b"\xff\xff\xff"]))


def test_only_numbers_as_python_prints_them_are_converted():
    values = {"a": 7, "b": -0.5, "c": 1e-05, "d": True, "e": None, "f": 1e20, "g": float("inf")}
    names = {"h": "2024_01_15", "i": "1e5", "j": "007", "k": "+1", "l": "1_000.0", "m": "Infinity", "n": "[1, 2]"}
    rows = "\n".join(f"|{key}|{value}|" for key, value in {**values, **names}.items())
    assert events.hyperparameters({"hyperparameters": f"|param|value|\n|-|-|\n{rows}"}) == {**values, **names}


def test_texts_without_a_table_have_no_configuration():
    assert events.hyperparameters({}) == {} and events.hyperparameters({"hyperparameters": "none"}) == {}
    assert events.hyperparameters({"notes/text_summary": "|param|value|\n|-|-|\n|a|1|"}) == {}


@pytest.mark.parametrize("rows", [1, 40])
def test_checksums_are_those_of_tensorboard(rows):
    data = np.random.default_rng(0).integers(0, 256, (rows, 23)).astype(np.uint8)
    assert events._masked_crc32c(data).tolist() == [masked_crc32c(row.tobytes()) for row in data]
    assert events._crc32c(b"123456789", events._TABLE.tolist()) == crc32c(b"123456789") == 0xE3069283  # RFC 3720
