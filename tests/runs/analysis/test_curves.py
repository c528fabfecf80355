"""Runs as arrays: the fast reader against `read_scalars`, event files, finished or not, windows, common steps."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

from runs.analysis import curves
from runs.recording import Run, RunError, read_scalars

CELL = st.text(alphabet="01.-e,\nax \r_é", max_size=4)
LINE = st.one_of(
    st.tuples(st.integers(0, 10**12), st.sampled_from(["a", "b/c"]), st.floats()).map(
        lambda row: "{},{},{!r}".format(*row)
    ),
    st.tuples(CELL, CELL, CELL).map(",".join),
)


def outcome(read, directory):
    """What a reader returns, or its error; nan is made equal to itself."""
    try:
        table = read(directory)
    except RunError as error:
        return str(error)
    return {tag: [(int(step), repr(float(value))) for step, value in curve] for tag, curve in table.items()}


def as_pairs(directory):
    return {tag: list(zip(*curve, strict=True)) for tag, curve in curves.read_table(directory).items()}


@given(lines=st.lists(LINE, max_size=6), end=st.sampled_from(["\n", "", "\n5,a,1."]))
def test_read_table_equals_read_scalars(tmp_path_factory, lines, end):
    directory = tmp_path_factory.mktemp("run")
    (directory / "scalars.csv").write_bytes(("step,tag,value\n" + "\n".join(lines) + end).encode())
    assert outcome(as_pairs, directory) == outcome(read_scalars, directory)


@pytest.mark.parametrize(
    "text",
    ["", "step,tag,value", "step,tag,value\n", "step,tag,value\n1,a,2.0\n3,b\n", "step,tag,value\n1,a\n2.0,4,b,5.0\n"],
)
def test_incomplete_lines_are_read_as_read_scalars_does(tmp_path, text):
    (tmp_path / "scalars.csv").write_text(text)
    assert outcome(as_pairs, tmp_path) == outcome(read_scalars, tmp_path)


def test_missing_table_and_huge_steps_are_refused(tmp_path):
    assert outcome(as_pairs, tmp_path) == outcome(read_scalars, tmp_path)
    (tmp_path / "scalars.csv").write_text(f"step,tag,value\n{10**30},a,1.0\n")
    with pytest.raises(RunError, match="beyond 64 bits"):
        curves.read_table(tmp_path)


def test_our_run_is_read_with_its_state(tmp_path):
    config = {"seed": 3, "nap": {"enabled": True, "deep": {"x": [1, 2]}}}
    with Run.create(tmp_path, config, argv=["x.py"]) as run:
        run.scalar("train/loss", 0.1, 5)
        run.checkpoint(8, {})
    found = curves.read_run(tmp_path)
    assert found.config == {"seed": 3, "nap.enabled": True, "nap.deep.x": [1, 2]}
    assert found.end == 8 and found.unfinished == "is interrupted, not finished"
    assert found.curves["train/loss"][1].tolist() == [0.1]  # from the table: event files round
    with Run.resume(tmp_path) as run:
        run.finish(9)
    assert curves.read_run(tmp_path).unfinished == "" and curves.read_run(tmp_path).end == 9
    table = tmp_path / "scalars.csv"
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(RunError, match="lines are missing"):
        curves.read_run(tmp_path)


def test_a_run_counts_as_stopped_when_nobody_writes_to_it(tmp_path):
    run = Run.create(tmp_path, {"seed": 3}, argv=["x.py"])
    assert not curves.read_run(tmp_path).stopped
    run._lock.release()  # as the operating system does for a killed process; the status is still running
    killed = curves.read_run(tmp_path)
    assert killed.stopped and killed.unfinished == "is running, not finished"


def foreign(directory, table="|param|value|\n|-|-|\n|seed|3|\n|total_timesteps|1000|", last=1000):
    writer = SummaryWriter(str(directory))
    if table:
        writer.add_text("hyperparameters", table)
    for step in range(50, last + 1, 50):
        writer.add_scalar("charts/SPS", 0.5, step)
    writer.close()
    return directory


def test_cleanrl_run_is_read_from_event_files(tmp_path):
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
    assert curves.read_run(file).config["seed"] == 3  # the file itself can be given


def test_a_run_of_cleanrls_ppo_ends_with_its_last_whole_iteration(tmp_path):
    table = "|param|value|\n|-|-|\n|seed|3|\n|total_timesteps|1000|\n|num_envs|4|\n|num_steps|{}|"
    assert curves.read_run(foreign(tmp_path / "a", table.format(150), last=600)).unfinished == ""  # 1 x 600
    assert "holds 550 of its 1,000" in curves.read_run(foreign(tmp_path / "b", table.format(150), last=550)).unfinished
    assert "holds 600 of its 1,000" in curves.read_run(foreign(tmp_path / "c", table.format(500), last=600)).unfinished


def test_configuration_next_to_event_files_is_read(tmp_path):
    with pytest.raises(RunError, match=r"has no configuration: .* Write a config.json with exp_name"):
        curves.read_run(foreign(tmp_path, table=""))
    (tmp_path / "config.json").write_text(json.dumps({"exp_name": "sb3", "seed": 1}))
    assert curves.read_run(tmp_path).config == {"exp_name": "sb3", "seed": 1}
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match=r"holds neither scalars.csv nor event files"):
        curves.read_run(tmp_path / "other")


def test_windowed_means_by_hand():
    curve = np.array([0, 5, 10, 11, 31, 40]), np.array([9.0, 1.0, 3.0, 7.0, 2.0, 8.0])
    found = curves.windowed(curve, np.array([0.0, 10.0, 20.0, 30.0, 39.0]))
    assert found.tolist() == pytest.approx([2.0, 7.0, np.nan, 2.0], nan_ok=True)  # (0, 10], (10, 20], ...


@pytest.mark.parametrize("status", ["finished", "running"])
def test_our_run_without_its_table_is_refused(tmp_path, status):
    run = Run.create(tmp_path / "r", {"seed": 1, "exp_name": "a"}, argv=["agents/x.py"], device="cpu")
    run.scalar("test/accuracy", 0.5, 10)
    run.finish(10) if status == "finished" else run.interrupt(10)
    (tmp_path / "r" / "scalars.csv").unlink()
    with pytest.raises(RunError, match=r"cannot read scalars\.csv"):
        curves.read_run(tmp_path / "r")


def test_finished_table_that_changed_is_refused(tmp_path):
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
        with pytest.raises(RunError, match=f"{what}.*repeat the run elsewhere"):
            curves.read_run(tmp_path / "r")
    table.write_bytes(whole)
    assert curves.read_run(tmp_path / "r").unfinished == ""


def test_file_that_is_not_an_event_file_is_refused(tmp_path):
    (tmp_path / "a-s1.log").write_text("step 1")
    with pytest.raises(RunError, match=r"a-s1.log is a file, but not an event file .*give run directories"):
        curves.read_run(tmp_path / "a-s1.log")


def test_common_points_are_as_recorded_or_windows():
    evaluations = [
        (np.array([10, 20, 30]), np.array([1.0, 2.0, 3.0])),
        (np.array([10, 20, 30]), np.array([3.0, 4.0, 5.0])),
    ]
    x, runs = curves.common_points(evaluations, 20)
    assert x.tolist() == [10.0, 20.0] and runs.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    steps = np.arange(8)
    x, runs = curves.common_points([(steps, steps * 1.0), (steps + 1, steps * 2.0)], 8)
    assert x.tolist() == [2.0, 6.0]  # eight points make two windows, (0, 4] and (4, 8], the first with step 0
    assert runs.tolist() == [[2.0, 6.0], [3.0, 11.0]]


def test_windows_end_at_whole_steps():
    """Of 119,936 in 100, the 25th ends at 29,984, though floating point says a little less."""
    steps = np.arange(32, 119_937, 32)
    _, (values,) = curves.common_points([(steps, steps * 1.0)], 119_936)
    assert len(values) == 100 and values[24] == np.mean(steps[(steps > 28_785) & (steps <= 29_984)])


def test_seeds_with_the_same_steps_are_taken_as_recorded():
    short, long = np.array([0, 5, 7]), np.array([0, 5, 7, 20])
    runs = [(short, np.array([1.0, 2.0, 3.0])), (long, np.array([4.0, 5.0, 6.0, 7.0]))]
    x, values = curves.over_seeds("test/accuracy", runs)
    assert x.tolist() == [0, 5, 7] and values.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("seeds", [1, 2])
def test_episodes_are_averaged_over_windows(seeds):
    episodes = [(np.arange(1, 1001), np.full(1000, 2.0 + seed)) for seed in range(seeds)]  # even at the same steps
    x, values = curves.over_seeds("charts/episodic_return", episodes)
    assert 1 < len(x) <= 250 and values.tolist() == [[2.0 + seed] * len(x) for seed in range(seeds)]


def test_a_step_recorded_twice_is_not_lost():
    steps, values = np.array([10, 10, *range(20, 120, 10)]), np.arange(12.0)
    _, found = curves.over_seeds("losses/td_loss", [(steps, values)])
    assert np.average(found[0]) == pytest.approx(values.mean(), rel=0.1) and len(found[0]) == 3
