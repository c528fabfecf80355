"""Arms in TensorBoard: mean and band by hand, the page's order, what has no chart, what is never removed."""

import numpy as np
import pytest

from runs import board
from runs.__main__ import main
from runs.board import FIRST, Args, charts, glance, group_of, margin
from runs.experiment import Arm, Experiment, Scale, plan
from runs.recording import TAGS, Run, RunError

EXPERIMENT = Experiment(
    name="toy",
    source="ours",
    claim="High is better than low.",
    rule="None.",
    arms=[Arm("high", "grokking", "low"), Arm("low", "grokking", "low")],
    scales={"laptop": Scale(seeds=(1, 2, 3), estimate="2 s", worlds={"a": {}, "b": {}})},
    judge=lambda results: None,
    curve="test/accuracy",
)
STEPS = (0, 10, 20)


@pytest.fixture(autouse=True)
def experiment(monkeypatch):
    monkeypatch.setattr(board, "load", lambda name: EXPERIMENT)


def finish(job, **more):
    """A finished run whose accuracy grows by its seed."""
    run = Run.create(job.directory, {**job.flags}, argv=[f"agents/{job.script}.py", job.preset], device="cpu")
    for step in STEPS:
        run.scalar("test/accuracy", step * job.seed / 100, step)
        run.scalar("plasticity/delta_a/fc1", float(job.seed**2), step)
        run.scalar("charts/SPS", 5.0, step)
        for tag, value in more.items():
            run.scalar(tag.replace("__", "/"), value, step)
    run.finish(STEPS[-1])


def all_jobs(tmp_path):
    return plan(EXPERIMENT, "laptop", tmp_path)


def read(directory):
    """{tag: [(step, value), ...]} and the layout, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    events = EventAccumulator(str(directory))
    events.Reload()
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, layout


def test_mean_and_band_of_the_seeds(tmp_path, capsys):
    for job in all_jobs(tmp_path):
        finish(job)
    assert main(["board", "toy", "--logs", str(tmp_path)]) == 0
    folder = tmp_path / "toy" / "laptop-arms"
    assert capsys.readouterr().out == f"tensorboard --logdir {folder}\n"
    arms = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert arms == ["high--a, n = 3", "high--b, n = 3", "low--a, n = 3", "low--b, n = 3"]
    scalars, layout = read(folder / arms[0])
    assert set(scalars) == {*margin("test/accuracy"), *margin("plasticity/delta_a/fc1")}
    for name, seeds in zip(margin("test/accuracy"), ((1, 2, 3), (1,), (3,)), strict=True):
        expected = [(step, pytest.approx(step * np.mean(seeds) / 100)) for step in STEPS]
        assert scalars[name] == expected
    assert scalars["plasticity/delta_a/fc1"][0] == (0, pytest.approx(14 / 3))
    drawn = [series.value for group in layout.category for chart in group.chart for series in chart.margin.series]
    assert set(drawn) == {"test/accuracy", "plasticity/delta_a/fc1"}
    assert layout.category[0].title == FIRST


def test_a_tag_that_one_seed_lacks_has_no_line(tmp_path):
    for job in all_jobs(tmp_path):
        finish(job, **({"test__loss": 1.0} if job.seed > 1 else {}))
    folder = board.write(Args(("toy",), logs=tmp_path), "toy")
    assert "test/loss" not in read(folder / "high--a, n = 3")[0]


def test_steps_that_a_seed_lacks_are_left_out(tmp_path):
    values = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 5.0]])
    points = np.array([1.0, 2.0, 3.0]), values
    board.write_arm(tmp_path / "arm", {"test/loss": points}, charts(["test/loss"], "test/loss"))
    assert read(tmp_path / "arm")[0]["test/loss"] == [(1, 2.0), (2, 3.0)]


def test_again_with_more_runs_it_is_made_anew(tmp_path):
    jobs = all_jobs(tmp_path)
    finish(jobs[0])
    folder = board.write(Args(("toy",), logs=tmp_path), "toy")
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["high--a, n = 1"]
    for job in jobs[1:]:
        finish(job)
    board.write(Args(("toy",), logs=tmp_path), "toy")
    assert not (folder / "high--a, n = 1").exists()
    assert len(list((folder / "high--a, n = 3").glob("events*"))) == 1


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    finish(all_jobs(tmp_path)[0])
    mine = tmp_path / "toy" / "laptop-arms" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("five years of work")
    with pytest.raises(RunError, match="no page of this command: move it away"):
        board.write(Args(("toy",), logs=tmp_path), "toy")
    assert mine.read_text() == "five years of work"


def test_without_runs_or_names_it_refuses(tmp_path):
    with pytest.raises(RunError, match="no run of toy at laptop is finished"):
        board.main(Args(("toy",), logs=tmp_path))
    with pytest.raises(RunError, match=r"name an experiment: .*fig3"):
        board.main(Args((), logs=tmp_path))


def test_every_documented_tag_has_one_place_or_none_for_a_reason():
    concrete = [tag.replace("<layer>", "fc1") for tag in TAGS]
    none = [tag for tag in concrete if group_of(tag) is None]
    assert all(tag.startswith(board.LEFT_OUT) for tag in none)
    page = charts(concrete, "test/accuracy")
    placed = [tag for group, inside in page.items() if group != FIRST for tag in inside]
    assert sorted(placed + none) == sorted(concrete)


def test_at_a_glance_is_the_last_hidden_layer():
    tags = ["test/accuracy", "charts/learning_rate"]
    for layer in ("conv", "fc1"):
        tags += [f"plasticity/{name}/{layer}" for name in ("dead_fraction", "delta_a", "srank")]
    tags += [f"{kind}/{layer}" for layer in ("conv", "fc1", "head") for kind in ("elr", "norms/parameter")]
    assert glance(tags, "test/accuracy") == [
        "test/accuracy", "charts/learning_rate", "elr/fc1", "plasticity/delta_a/fc1", "plasticity/dead_fraction/fc1",
        "norms/parameter/fc1",
    ]  # fmt: skip
    features = [tag.replace("plasticity/dead_fraction/fc1", "plasticity/dead_fraction/relu") for tag in tags]
    assert "elr/fc1" in glance(features, "test/accuracy")  # no weight is called relu: the last before the output's
    assert glance(["eval/episodic_return"], "eval/episodic_return") == ["eval/episodic_return"]
