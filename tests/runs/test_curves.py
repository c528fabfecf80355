"""Runs as arrays: the fast table against `read_scalars`, foreign runs, what counts as finished, windows."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

from runs import curves
from runs.recording import Run, RunError, read_scalars

CELL = st.text(alphabet="01.-e,\nax \r_é", max_size=4)
LINE = st.one_of(
    st.tuples(st.integers(0, 10**12), st.sampled_from(["a", "b/c"]), st.floats()).map(
        lambda row: "{},{},{!r}".format(*row)
    ),
    st.tuples(CELL, CELL, CELL).map(",".join),
)


def outcome(read, directory):
    """What a reader returns, or how it refuses; nan made equal to itself."""
    try:
        found = read(directory)
    except RunError as error:
        return str(error)
    return {tag: [(int(step), repr(float(value))) for step, value in curve] for tag, curve in found.items()}


def as_pairs(directory):
    return {tag: list(zip(*curve, strict=True)) for tag, curve in curves.read_table(directory).items()}


@given(lines=st.lists(LINE, max_size=6), end=st.sampled_from(["\n", "", "\n5,a,1."]))
def test_the_table_is_what_read_scalars_reads(tmp_path_factory, lines, end):
    directory = tmp_path_factory.mktemp("run")
    (directory / "scalars.csv").write_bytes(("step,tag,value\n" + "\n".join(lines) + end).encode())
    assert outcome(as_pairs, directory) == outcome(read_scalars, directory)


@pytest.mark.parametrize(
    "text",
    ["", "step,tag,value", "step,tag,value\n", "step,tag,value\n1,a,2.0\n3,b\n", "step,tag,value\n1,a\n2.0,4,b,5.0\n"],
)
def test_tables_without_whole_lines(tmp_path, text):
    (tmp_path / "scalars.csv").write_text(text)
    assert outcome(as_pairs, tmp_path) == outcome(read_scalars, tmp_path)


def test_a_table_that_is_not_there_or_has_huge_steps(tmp_path):
    assert outcome(as_pairs, tmp_path) == outcome(read_scalars, tmp_path)
    (tmp_path / "scalars.csv").write_text(f"step,tag,value\n{10**30},a,1.0\n")
    with pytest.raises(RunError, match="beyond 64 bits"):
        curves.read_table(tmp_path)


def test_a_run_of_ours(tmp_path):
    config = {"seed": 3, "nap": {"enabled": True, "deep": {"x": [1, 2]}}}
    with Run.create(tmp_path, config, argv=["x.py"]) as run:
        run.scalar("train/loss", 0.1, 5)
        run.checkpoint(8, {})
    found = curves.read_run(tmp_path)
    assert found.config == {"seed": 3, "nap.enabled": True, "nap.deep.x": [1, 2]}
    assert found.end == 8 and found.unfinished == "is interrupted, not finished"
    assert found.curves["train/loss"][1].tolist() == [0.1]  # of the table: event files would round it
    with Run.resume(tmp_path) as run:
        run.finish(9)
    assert curves.read_run(tmp_path).unfinished == "" and curves.read_run(tmp_path).end == 9
    table = tmp_path / "scalars.csv"
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(RunError, match="lines are missing"):
        curves.read_run(tmp_path)


def foreign(directory, table="|param|value|\n|-|-|\n|seed|3|\n|total_timesteps|1000|", last=1000):
    writer = SummaryWriter(str(directory))
    if table:
        writer.add_text("hyperparameters", table)
    for step in range(50, last + 1, 50):
        writer.add_scalar("charts/SPS", 0.5, step)
    writer.close()
    return directory


def test_a_run_of_cleanrl(tmp_path):
    found = curves.read_run(foreign(tmp_path / "whole"))
    assert found.config == {"seed": 3, "total_timesteps": 1000} and found.end == 1000 and found.unfinished == ""
    assert found.curves["charts/SPS"][0].tolist() == list(range(50, 1001, 50))
    assert curves.read_run(foreign(tmp_path / "near", last=950)).unfinished == ""
    assert curves.read_run(foreign(tmp_path / "half", last=500)).unfinished == (
        "holds 500 of its 1,000 steps, so it is not finished"
    )
    file = next((tmp_path / "whole").glob("*tfevents*"))
    file.write_bytes(file.read_bytes()[:-1])
    assert "in the middle of a record" in curves.read_run(tmp_path / "whole").unfinished
    assert curves.read_run(file).config["seed"] == 3  # the file itself will do


def test_a_configuration_written_beside_event_files(tmp_path):
    with pytest.raises(RunError, match=r"has no configuration, .* write one with exp_name"):
        curves.read_run(foreign(tmp_path, table=""))
    (tmp_path / "config.json").write_text(json.dumps({"exp_name": "sb3", "seed": 1}))
    assert curves.read_run(tmp_path).config == {"exp_name": "sb3", "seed": 1}
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match=r"holds neither scalars.csv nor event files"):
        curves.read_run(tmp_path / "other")


def test_windows_by_hand():
    curve = np.array([0, 5, 10, 11, 31, 40]), np.array([9.0, 1.0, 3.0, 7.0, 2.0, 8.0])
    found = curves.windowed(curve, np.array([0.0, 10.0, 20.0, 30.0, 39.0]))
    assert found.tolist() == pytest.approx([2.0, 7.0, np.nan, 2.0], nan_ok=True)  # (0, 10], (10, 20], ...


@pytest.mark.parametrize("status", ["finished", "running"])
def test_a_run_of_ours_without_its_table_is_not_read_from_its_event_files(tmp_path, status):
    run = Run.create(tmp_path / "r", {"seed": 1, "exp_name": "a"}, argv=["agents/x.py"], device="cpu")
    run.scalar("test/accuracy", 0.5, 10)
    run.finish(10) if status == "finished" else run.interrupt(10)
    (tmp_path / "r" / "scalars.csv").unlink()
    with pytest.raises(RunError, match=r"cannot read scalars\.csv"):
        curves.read_run(tmp_path / "r")


def test_a_finished_table_that_has_grown_is_refused(tmp_path):
    run = Run.create(tmp_path / "r", {"seed": 1, "exp_name": "a"}, argv=["agents/x.py"], device="cpu")
    run.scalar("test/accuracy", 0.5, 10)
    run.finish(10)
    table = tmp_path / "r" / "scalars.csv"
    whole = table.read_bytes()
    for content, what in (
        (whole + b"10,test/accuracy,0.9\n", "something was added"),
        (whole[:-5], "lines are missing"),
    ):
        table.write_bytes(content)
        with pytest.raises(RunError, match=f"{what}.*make the run again elsewhere"):
            curves.read_run(tmp_path / "r")
    table.write_bytes(whole)
    assert curves.read_run(tmp_path / "r").unfinished == ""


def test_a_file_that_is_no_event_file_is_named_as_such(tmp_path):
    (tmp_path / "a-s1.log").write_text("step 1")
    with pytest.raises(RunError, match=r"a-s1.log is a file and, by its name, no event file .*give run directories"):
        curves.read_run(tmp_path / "a-s1.log")
