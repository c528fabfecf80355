"""Arms in TensorBoard: mean and band by hand, order of charts, tags without one, foreign files."""

import dataclasses

import numpy as np
import pytest
import torch

from agents import dqn_atari, dqn_minatar, grokking, ppo_atari, ppo_control, ppo_minatar, rainbow_atari, warm_start
from elr.weights import scalable_weights
from runs.__main__ import main
from runs.figures import arms_page, board
from runs.figures.arms_page import charts, group_of, margin
from runs.figures.board import Args
from runs.recording import TAGS, Run, RunError
from runs.recording.glance import FIRST, glance
from runs.recording.terminal import tensorboard_command
from runs.sweeps import experiment as experiment_module
from runs.sweeps.experiment import Arm, Experiment, Scale, plan
from tests.agents.scripts import spaces

EXPERIMENT = Experiment(
    name="toy",
    source="ours",
    claim="High is better than low.",
    rule="None.",
    arms=[Arm("high", "grokking", "low"), Arm("low", "grokking", "low")],
    scales={"laptop": Scale(seeds=(1, 2, 3), estimate="2 s", worlds={"a": {}, "b": {}})},
    measures={},
    judge=lambda runs: None,
    curve="test/accuracy",
)
STEPS = (0, 10, 20)


@pytest.fixture(autouse=True)
def experiment(monkeypatch):
    monkeypatch.setattr(experiment_module, "load", lambda name: EXPERIMENT)


def finish(job, **more):
    """Record a finished run whose accuracy grows with its seed."""
    run = Run.create(job.directory, {**job.flags}, argv=[f"agents/{job.script}.py", job.preset], device="cpu")
    for step in STEPS:
        run.scalar("test/accuracy", step * job.seed / 100, step)
        run.scalar("plasticity/delta_a/fc1", float(job.seed**2), step)
        run.scalar("charts/SPS", 5.0, step)
        for tag, value in more.items():
            run.scalar(tag.replace("__", "/"), value, step)
    run.finish(STEPS[-1])


def write(**options):
    """The folders of the experiment's page."""
    return [folder for page in board.pages(Args(("toy",), **options)) for folder in page.write().folders]


def all_jobs(tmp_path):
    return plan(EXPERIMENT, "laptop", tmp_path)


def read(directory):
    """{tag: [(step, value), ...]} and the layout, as TensorBoard reads them."""
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
    commands = [tensorboard_command(folder / world) for world in "ab"]
    assert capsys.readouterr().out.splitlines() == [*commands, "then open Custom Scalars"]
    arms = {str(path.relative_to(folder)) for path in folder.glob("*/*")}
    assert arms == {"a/high, n = 3", "a/low, n = 3", "b/high, n = 3", "b/low, n = 3"}
    scalars, layout = read(folder / "a" / "high, n = 3")
    assert set(scalars) == {*margin("test/accuracy"), *margin("plasticity/delta_a/fc1")}
    for name, seeds in zip(margin("test/accuracy"), ((1, 2, 3), (1,), (3,)), strict=True):
        expected = [(step, pytest.approx(step * np.mean(seeds) / 100)) for step in STEPS]
        assert scalars[name] == expected
    assert scalars["plasticity/delta_a/fc1"][0] == (0, pytest.approx(14 / 3))
    drawn = [series.value for group in layout.category for chart in group.chart for series in chart.margin.series]
    assert set(drawn) == {"test/accuracy", "plasticity/delta_a/fc1"}
    assert layout.category[0].title == FIRST


def test_tag_that_one_seed_lacks_has_no_line(tmp_path):
    for job in all_jobs(tmp_path):
        finish(job, **({"test__loss": 1.0} if job.seed > 1 else {}))
    for folder in write(logs=tmp_path):
        assert "test/loss" not in read(folder / "high, n = 3")[0]


def test_steps_that_a_seed_lacks_are_left_out(tmp_path):
    values = np.array([[1.0, 2.0, np.nan, 5.0], [3.0, 4.0, 5.0, np.nan]])
    points = np.array([1.0, 2.0, 3.0, 4.0]), values
    bands = arms_page.banded({"test/loss": points})
    arms_page.write_lines(tmp_path / "arm", bands, charts(["test/loss"], "test/loss"))
    assert read(tmp_path / "arm")[0]["test/loss"] == [(1, 2.0), (2, 3.0)]


def test_page_is_rebuilt_with_more_runs(tmp_path):
    jobs = all_jobs(tmp_path)
    finish(jobs[0])
    (folder,) = write(logs=tmp_path)
    assert [path.name for path in folder.iterdir()] == ["high, n = 1"]
    for job in jobs[1:]:
        finish(job)
    assert write(logs=tmp_path)[0] == folder
    assert sorted(path.name for path in folder.iterdir()) == ["high, n = 3", "low, n = 3"]
    assert len(list((folder / "high, n = 3").glob("events*"))) == 1


def test_page_without_tasks_is_one_folder_and_can_be_written_elsewhere(tmp_path, monkeypatch):
    plain = dataclasses.replace(EXPERIMENT, scales={"laptop": Scale(seeds=(1,), estimate="2 s")})
    for job in plan(plain, "laptop", tmp_path / "logs"):
        finish(job)
    out = tmp_path / "elsewhere"
    monkeypatch.setattr(experiment_module, "load", lambda name: plain)
    assert write(logs=tmp_path / "logs", out=out) == [out / "toy" / "laptop-arms"]
    arms = {path.name for path in (out / "toy" / "laptop-arms").iterdir() if path.is_dir()}
    assert arms == {"high, n = 1", "low, n = 1"} and not (tmp_path / "logs" / "toy" / "laptop-arms").exists()
    write(logs=tmp_path / "logs", out=out)


def test_foreign_files_are_never_removed(tmp_path):
    finish(all_jobs(tmp_path)[0])
    folder = tmp_path / "toy" / "laptop-arms"
    mine = folder / "thesis.txt"
    folder.mkdir()
    mine.write_text("five years of work")
    with pytest.raises(RunError, match="exists, but this command did not write it: move it away"):
        board.main(Args(("toy",), logs=tmp_path))
    assert mine.read_text() == "five years of work"
    mine.unlink()
    folder.rmdir()
    board.main(Args(("toy",), logs=tmp_path))
    for place in (
        mine,
        folder / "a" / "high, n = 1" / "notes.txt",
        folder / "a" / "notes.txt",
        folder / "other" / "notes.txt",
    ):
        place.parent.mkdir(exist_ok=True)
        place.write_text("all of it")
        with pytest.raises(RunError, match=r"((thesis|notes).txt|other) would be removed, but"):
            board.main(Args(("toy",), logs=tmp_path))
        assert place.read_text() == "all of it"
        place.unlink()
    (folder / "other").rmdir()
    board.main(Args(("toy",), logs=tmp_path))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["laptop", "laptop-arms"]  # no temporary folder


def test_missing_runs_and_names_are_refused(tmp_path):
    with pytest.raises(RunError, match=f"no run of toy at laptop is finished in {tmp_path}"):
        board.main(Args(("toy",), logs=tmp_path))
    with pytest.raises(RunError, match=f"no experiment has a finished run at laptop in {tmp_path}"):
        board.main(Args(("all",), logs=tmp_path))
    with pytest.raises(
        RunError, match=r"^give runs, folders of runs, patterns or experiments \(python -m runs list\)$"
    ):
        board.main(Args((), logs=tmp_path))


def test_curve_of_the_experiment_is_always_drawn(tmp_path, monkeypatch):
    experiment = dataclasses.replace(EXPERIMENT, curve="charts/SPS")
    monkeypatch.setattr(experiment_module, "load", lambda name: experiment)
    finish(all_jobs(tmp_path)[0])
    (folder,) = write(logs=tmp_path)
    scalars, layout = read(folder / "high, n = 1")
    assert scalars["charts/SPS"] == [(step, 5.0) for step in STEPS]
    assert [chart.title for chart in layout.category[0].chart][-1] == "charts/SPS"  # TensorBoard shows the last first


def test_every_documented_tag_has_one_chart_or_is_left_out_on_purpose():
    concrete = [tag.replace("<layer>", "fc1") for tag in TAGS]
    none = [tag for tag in concrete if group_of(tag) is None]
    assert all(tag.startswith(arms_page.LEFT_OUT) for tag in none)
    page = charts(concrete, "test/accuracy")
    placed = [tag for group, inside in page.items() if group != FIRST for tag in inside]
    assert sorted(placed + none) == sorted(concrete)


def test_own_tags_have_a_group():
    page = charts(["losses/td_loss", "custom/my_metric"], "losses/td_loss")
    assert list(page["custom"]) == ["custom/my_metric"]


def test_charts_are_in_reverse_order_as_tensorboard_reverses_them():
    tags = ["eval/episodic_return", "losses/td_loss", "losses/q_values", "plasticity/srank/a", "plasticity/srank/b"]
    page = charts(tags, "eval/episodic_return")
    assert list(page) == [FIRST, "return", "plasticity", "losses"]
    assert list(page["plasticity"]) == ["plasticity/srank/b", "plasticity/srank/a"]
    assert list(page["losses"]) == ["losses/q_values", "losses/td_loss"]


def weights_and_features(name):
    """The metered weights and probed features of a script's network."""
    cpu = torch.device("cpu")
    if name == "grokking":
        network = grokking.Transformer(grokking.Args())
        return scalable_weights(network, embeddings=True, heads=()), ["blocks.0.attention_out", "blocks.0.relu"]
    if name.startswith("warm_start"):
        model = "resnet18" if name.endswith("resnet") else "cnn"
        network = warm_start.make_network(warm_start.Args(model=model), (3, 32, 32), 10, 1, cpu)
        return scalable_weights(network, heads=["head"]), network.probed
    script = {"dqn_minatar": dqn_minatar, "ppo_minatar": ppo_minatar, "dqn_atari": dqn_atari, "ppo_atari": ppo_atari}
    script["ppo_control"] = ppo_control
    script = script.get(name, rainbow_atari)
    shape = (3,) if name in ("dqn_atari", "rainbow_atari") else (4, 3)
    network = script.make_network(spaces(*shape), script.Args(), 1, cpu)
    weights = scalable_weights(network, heads=getattr(network, "heads", None))
    partner = {f"{weight}.sigma" for weight in weights} if script is rainbow_atari else ()
    return [*weights, *partner], network.probed


@pytest.mark.parametrize(
    ("script", "weight", "feature"),
    [
        *((name, "hidden", "hidden_relu") for name in ("dqn_minatar", "ppo_minatar", "dqn_atari", "ppo_atari")),
        ("ppo_control", "actor.hidden3", "actor.relu3"),
        ("rainbow_atari", "advantage_hidden", "advantage_relu"),
        ("warm_start", "hidden", "hidden_relu"),
        ("warm_start_resnet", "stages.3.1.conv2", "stages.3.1.relu2"),
        ("grokking", "blocks.0.down", "blocks.0.relu"),
    ],
)
def test_first_group_shows_the_last_hidden_layer(script, weight, feature):
    weights, features = weights_and_features(script)
    tags = [f"plasticity/{name}/{layer}" for layer in features for name in ("dead_fraction", "delta_a", "srank")]
    tags += [f"{kind}/{layer}" for layer in weights for kind in ("elr", "norms/parameter", "norms/update")]
    assert glance(["charts/learning_rate", *tags], "charts/learning_rate") == [
        "charts/learning_rate", f"elr/{weight}", f"plasticity/delta_a/{feature}", f"plasticity/dead_fraction/{feature}",
        f"norms/parameter/{weight}",
    ]  # fmt: skip


def test_first_group_without_probe():
    assert glance(["eval/episodic_return"], "eval/episodic_return") == ["eval/episodic_return"]
