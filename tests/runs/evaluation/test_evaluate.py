"""Agents from their checkpoints: the numbers of the run's own evaluation again, and every refusal in one line."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from agents import (
    dqn_atari,
    dqn_minatar,
    grokking,
    ppo_atari,
    ppo_control,
    ppo_minatar,
    rainbow_atari,
    theory,
    warm_start,
)
from envs.minatar import PALETTE
from envs.shifts import OffsetObservations
from runs.__main__ import main
from runs.evaluation import playing
from runs.evaluation.agent import REPOSITORY, find_agent, load_agent
from runs.recording import Run, RunError, config_to_dict, read_scalars, read_status
from runs.training import Session
from tests import documents
from tests.agents import scripts

OLDER = "from agents.dqn_minatar import Args, q_values\n\n\ndef make_network({}):\n    pass\n"
CATCH = {"env_id": "rewarm/Catch-v0", "eval_episodes": 10}
DQN = {
    "total_timesteps": 300, "learning_starts": 60, "buffer_size": 200, "batch_size": 4, "log_every": 20,
    "exploration_steps": 120, "target_network_frequency": 20, "eval_every": 100, "checkpoint_every": 100,
}  # fmt: skip
PPO = {"total_timesteps": 192, "num_envs": 4, "num_steps": 16, "num_minibatches": 2, "eval_every": 1}
FLAGS = {
    dqn_minatar: {**DQN, "eval_episodes": 3},
    ppo_minatar: {**PPO, "eval_episodes": 3},
    ppo_control: {**PPO, "eval_episodes": 5, "width": 16, "checkpoint_every": 1},
    dqn_atari: {**DQN, **CATCH, "total_timesteps": 100, "eval_epsilon": 0.7},
    ppo_atari: {**PPO, **CATCH, "total_timesteps": 64},
    rainbow_atari: {
        **{name: value for name, value in DQN.items() if name != "exploration_steps"}, **CATCH,
        "total_timesteps": 100, "eval_epsilon": 0.7,
    },
}  # fmt: skip
SHIFTED = dqn_minatar.ShiftArgs("rewards", values=(1.0, 10.0), every_steps=200)
GAMES = dqn_minatar.ShiftArgs("games", games=("MinAtar/Freeway-v0", "MinAtar/SpaceInvaders-v0"), every_steps=100)
OFFSETS = ppo_control.ShiftArgs("offsets", tasks=3, every_steps=64)
DRIFT = ppo_control.ShiftArgs("physics", what="length", values=(0.5, 2.0), every_steps=150, drift=True)
POLE = ppo_control.ShiftArgs("physics", what="length", values=(0.5, 3.0), every_steps=100)


def made(script, directory, **changes):
    """A run of the script, called as a user calls it."""
    probe = script.ProbeArgs(every=50, size=8, meter_every=50)
    flags = {**FLAGS[script], "probe": probe, "directory": directory, **changes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script.__file__), "--directory", str(directory)])
        script.main(script.Args(**flags))
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs by name, made when first asked for."""
    folder, recipes = tmp_path_factory.mktemp("runs"), {
        **{script.__name__.removeprefix("agents."): (script, {}) for script in FLAGS},
        "rewards": (dqn_minatar, {"shift": SHIFTED}),
        "games": (dqn_minatar, {"shift": GAMES, "env_id": "MinAtar/Breakout-v0"}),
        "offsets": (ppo_control, {"shift": OFFSETS}),
        "drift": (ppo_control, {"shift": DRIFT}),
        "pole": (ppo_control, {"shift": POLE}),
    }  # fmt: skip

    def run(name):
        script, changes = recipes[name]
        return folder / name if (folder / name).exists() else made(script, folder / name, **changes)

    return run


def evaluated(directory, tmp_path, *words):
    """What --out holds of one run."""
    out = tmp_path / "out.json"
    assert main(["evaluate", str(directory), "--out", str(out), *words]) == 0
    (record,) = json.loads(out.read_text())["runs"]
    return record


def last_evaluation(directory):
    scalars = read_scalars(directory)
    step, mean = scalars["eval/episodic_return"][-1]
    return step, mean, scalars["eval/episodic_return_std"][-1][1]


def content(directory):
    """Every file of a run, by a checksum."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(*words):
    """The one line that a command line is refused with; the exit code is 2."""
    done = subprocess.run(
        [sys.executable, "-m", "runs", "evaluate", *map(str, words)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done
    return done.stderr


def refusal(*words):
    """The same in this process."""
    with pytest.raises(RunError) as error:
        main(["evaluate", *map(str, words)])
    return str(error.value)


# the same numbers


@pytest.mark.parametrize("script", FLAGS, ids=lambda script: script.__name__)
def test_an_evaluation_repeats_the_last_one_of_the_run(script, runs, tmp_path, capsys):
    directory = runs(script.__name__.removeprefix("agents."))
    before, _ = content(directory), capsys.readouterr()
    record = evaluated(directory, tmp_path)
    step, mean, deviation = last_evaluation(directory)
    assert (record["step"], record["mean"], np.std(record["returns"])) == (step, mean, deviation)
    assert len(record["returns"]) == FLAGS[script]["eval_episodes"] == len(record["lengths"])
    assert content(directory) == before  # nothing is written there
    row = capsys.readouterr().out.splitlines()[2].split(" | ")
    assert [cell.strip("| ") for cell in row][:5] == [
        str(directory), f"{step:,}", "0", str(len(record["returns"])), f"{mean:,.2f}",
    ]  # fmt: skip


@pytest.mark.parametrize("script", FLAGS, ids=lambda script: script.__name__)
def test_the_seed_of_evaluations_is_the_second_stream_of_every_script(script):
    (streams,) = re.findall(r'streams="([a-z ]+)"', Path(script.__file__).read_text())
    assert streams.split()[1] == "env"


def test_an_interrupted_run_is_evaluated_at_its_checkpoint(tmp_path, monkeypatch):
    scripts.stop_at(monkeypatch, 200)
    with pytest.raises(SystemExit):
        made(dqn_minatar, tmp_path / "run")
    assert read_status(tmp_path / "run")["status"] == "interrupted"
    record = evaluated(tmp_path / "run", tmp_path)
    assert (record["step"], record["mean"]) == last_evaluation(tmp_path / "run")[:2] and record["step"] == 200


def test_a_killed_run_is_evaluated_at_its_checkpoint(tmp_path):
    words = "quickstart --exploration-steps 50 --schedule.period-steps 100 --learning-starts 60 --eval-every 100"
    process = scripts.start(
        Path(dqn_minatar.__file__), *words.split(), "--checkpoint-every", 100, "--directory", tmp_path / "run"
    )
    scripts.kill_beyond(process, tmp_path / "run", 150, signal.SIGKILL)
    assert read_status(tmp_path / "run")["status"] == "running"
    record = evaluated(tmp_path / "run", tmp_path)
    assert (record["step"], record["mean"]) in read_scalars(tmp_path / "run")["eval/episodic_return"]


def test_a_seed_repeats_its_numbers_and_others_differ(runs, tmp_path):
    one, again, other = (
        evaluated(runs("ppo_control"), tmp_path, "--episodes", "12", "--seed", seed) for seed in ("7", "7", "8")
    )
    assert one == again and len(one["returns"]) == 12
    assert one["returns"] != other["returns"]


@pytest.mark.parametrize("how", [(), ("--sampled",)])
def test_episodes_beyond_a_batch_are_of_other_seeds(how, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(playing, "BATCH", 5)
    many = evaluated(runs("ppo_control"), tmp_path, "--episodes", "12", "--seed", "7", *how)
    parts = [
        evaluated(runs("ppo_control"), tmp_path, "--episodes", count, "--seed", seed, *how)["returns"]
        for count, seed in (("5", "7"), ("5", "8"), ("2", "9"))
    ]
    assert many["returns"] == [*parts[0], *parts[1], *parts[2]]


def test_sampled_actions_are_draws_from_the_policy(runs, tmp_path):
    words = ("--episodes", "20", "--seed", "7")
    greedy = evaluated(runs("ppo_control"), tmp_path, *words)
    sampled, again = (evaluated(runs("ppo_control"), tmp_path, *words, "--sampled") for _ in range(2))
    assert sampled == again and sampled["sampled"] and sampled["returns"] != greedy["returns"]
    logits = np.log([[0.1, 0.7, 0.2]]).repeat(20_000, 0)
    rng = np.random.default_rng(0)
    drawn = playing._drawn(None, logits, logits=lambda network, obs: obs, rng=rng).argmax(1)
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, [0.1, 0.7, 0.2], atol=0.015)


def test_several_runs_have_a_row_each(runs, tmp_path, capsys):
    out, both = tmp_path / "both.json", [str(runs(name)) for name in ("dqn_minatar", "ppo_control")]
    capsys.readouterr()
    main(["evaluate", *both, "--episodes", "1", "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[3] for line in lines[2:4]] == ["1", "1"] and " – " in lines[2]
    first, second = json.loads(out.read_text())["runs"]
    assert first["run"] == str(runs("dqn_minatar")) and first["half_width"] is None
    assert second["env_id"] == "CartPole-v1" and second["script"] == str(Path(ppo_control.__file__))


# tasks


def test_a_task_is_that_of_the_shift(runs, tmp_path):
    """The rewards of task 1 are ten times those of task 0, and nothing else differs."""
    first, second = (
        evaluated(runs("rewards"), tmp_path, "--episodes", "20", "--seed", "3", "--task", task) for task in "01"
    )
    assert np.mean(first["returns"]) > 0 and np.allclose(np.multiply(first["returns"], 10), second["returns"])
    present = evaluated(runs("rewards"), tmp_path, "--episodes", "20", "--seed", "3")
    assert present["task"] == 1 and present["returns"] == second["returns"]  # it changed at step 200 of 300


def test_a_change_with_the_last_step_does_not_count(runs, tmp_path, capsys):
    """Of three games of 100 steps the last one is evaluated, as by the run itself, though the next has begun."""
    agent = load_agent(find_agent(runs("games")))
    assert agent.world.task == 0 and agent.world.last_change == 300 == agent.step
    record = evaluated(runs("games"), tmp_path)
    assert record["task"] == 2 and record["mean"] == last_evaluation(runs("games"))[1]
    assert "| 2 (MinAtar/SpaceInvaders-v0) |" in capsys.readouterr().out
    lengths = [
        evaluated(runs("games"), tmp_path, "--task", str(task), "--episodes", "2")["lengths"] for task in (0, 1, 2)
    ]
    assert lengths[1] == [2501, 2501]  # Freeway's


def test_a_run_that_stopped_at_a_change_stands_in_the_new_task(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        scripts.stop_at(patch, 200)
        made(dqn_minatar, tmp_path / "r", shift=SHIFTED)
    agent = load_agent(find_agent(tmp_path / "r"))
    assert agent.step == agent.world.last_change == 200
    assert agent.task == 1


def test_a_task_has_the_settings_that_the_run_met_it_with(runs):
    agent = load_agent(find_agent(runs("offsets")))
    env = playing._environments(agent, 2, 1, False)[0]
    env.reset(seed=9)
    met = agent.recipe.args.shift.world("CartPole-v1", 4)
    met.reset(seed=agent.seed - agent.step)
    for _ in range(16):
        met.step(np.zeros(4, dtype=np.int64))
    assert isinstance(env, OffsetObservations) and met.task == 1 == env.task
    assert np.abs(met._setting).min() > 0 and np.array_equal(met._setting, env._setting)


def test_a_drift_is_evaluated_at_the_value_of_the_checkpoint(runs, tmp_path):
    agent = load_agent(find_agent(runs("drift")))
    env, _ = playing._environments(agent, 3, 0, False)
    env.reset(seed=1)
    assert env.env.physics("length") == pytest.approx(2.0 - 1.5 * 42 / 150)  # step 192: 42 after 150
    assert evaluated(runs("drift"), tmp_path)["mean"] == last_evaluation(runs("drift"))[1]


@pytest.mark.parametrize(
    ("name", "task", "parts"),
    [
        ("drift", "0", ["length drifts", "--shift.drift", "leave --task out"]),
        ("rewards", "2", ["--task 2", "has tasks 0 to 1", "--shift.kind rewards"]),
        ("offsets", "3", ["--task 3", "has tasks 0 to 2"]),
        ("games", "3", ["--task 3", "has tasks 0 to 2"]),
        ("dqn_minatar", "1", ["--task 1", "only task 0", "--shift.kind none"]),
    ],
)
def test_a_task_that_there_is_not_is_refused(name, task, parts, runs):
    message = refusal(runs(name), "--task", task)
    assert all(part in message for part in parts), message


def test_task_0_of_a_run_without_changes_is_the_run(runs, tmp_path):
    assert evaluated(runs("dqn_minatar"), tmp_path, "--task", "0")["task"] == 0


# refusals


@pytest.mark.parametrize("script", [dqn_minatar, dqn_atari, rainbow_atari], ids=lambda script: script.__name__)
def test_q_networks_refuse_to_be_sampled(script, runs):
    message = refusal(runs(script.__name__.removeprefix("agents.")), "--sampled")
    assert f"{Path(script.__file__).name}, whose network gives Q-values" in message


@pytest.mark.parametrize("script", [warm_start, grokking, theory], ids=lambda script: script.__name__)
def test_supervised_runs_are_refused(script, tmp_path):
    with Run.create(tmp_path / "r", config_to_dict(script.Args()), argv=[str(script.__file__)]) as run:
        run.checkpoint(1, {})
        run.finish(1)
    assert refusal(tmp_path / "r").endswith(
        "trains no agent: evaluate is for runs of the reinforcement-learning scripts"
    )


def test_what_is_no_run_is_refused_by_the_command_itself(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "events.out.tfevents.1.host").write_bytes(b"")
    assert "foreign is not a run of these scripts (no config.json)" in refused(tmp_path / "foreign")
    (tmp_path / "foreign" / "config.json").write_text('{"env_id": "CartPole-v1", "seed": 1}')
    assert "not a run of these scripts (no provenance.json)" in refused(tmp_path / "foreign")


def broken(run, tmp_path, name, change):
    """A copy of the run with one file changed."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    change(copy / name)
    return copy


def written(**changes):
    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def without(name):
    def change(path):
        path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != name}))

    return change


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("checkpoint.pt", os.remove, ["has no checkpoint.pt"]),
        ("checkpoint.pt", lambda path: path.write_bytes(path.read_bytes()[:-9]), ["checkpoint.pt is truncated"]),
        ("config.json", lambda path: path.write_text("["), ["config.json is not valid JSON"]),
        ("config.json", written(gone=1), ["unknown keys: gone"]),
        ("config.json", without("shift"), ["config.json has no shift"]),
        ("config.json", without("gamma"), ["missing keys: gamma"]),
        ("config.json", written(env_id="MinAtar/Pong-v1"), ["environments do not fit", "unknown MinAtar environment"]),
        (
            "config.json",
            written(env_id="MinAtar/Asterix-v1"),
            ["environments do not fit", "built with other arguments"],
        ),
        ("config.json", written(network="plain"), ["does not fit the network of", "dqn_minatar.py", "conv.bias"]),
        ("provenance.json", written(command=["gone/dqn.py"]), ["its script gone/dqn.py is not there", "--script FILE"]),
        ("provenance.json", written(command=["-c"]), ["names '-c', not a script", "--script FILE"]),
        ("provenance.json", written(command=[]), ["names nothing, not a script"]),
    ],
)
def test_damaged_and_changed_runs_are_one_line(name, change, parts, runs, tmp_path):
    message = refusal(broken(runs("dqn_minatar"), tmp_path, name, change))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--episodes", "-1"], "--episodes must be at least 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--task", "-1"], "--task must be at least 0"),
        (["--out", "{run}/a.json"], "lies in a run directory"),
        (["--out", "{tmp}/gone/a.json"], "cannot write a.json in "),
        (["--out", "{tmp}"], "is a directory"),
        (["--out", "{tmp}/a.csv"], "must end in .json"),
        (["--script", "{tmp}/gone.py"], "gone.py is not a Python file"),
        (["--greedy"], "unknown flag --greedy"),
    ],
)
def test_bad_flags_are_one_line(words, part, runs, tmp_path):
    run = runs("dqn_minatar")
    assert part in refusal(run, *(word.format(run=run, tmp=tmp_path) for word in words))


def test_no_run_and_a_missing_directory_are_one_line(tmp_path):
    assert "at least one run directory" in refusal()
    assert refusal(tmp_path / "gone").endswith("gone: there is no such directory")


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("def f(:\n", "cannot be imported: SyntaxError"),
        ("import no_such_module\n", "cannot be imported: ModuleNotFoundError"),
        ("Args = make_network = 1\n", "has no q_values or policy_logits"),
        ("Args = q_values = 1\n", "has no make_network"),
        (OLDER.format("channels, actions, args, seed, device"), "of {tmp}/other.py cannot be called"),
    ],
)
def test_a_script_that_does_not_fit_is_one_line(source, part, runs, tmp_path):
    (tmp_path / "other.py").write_text(source)
    assert part.format(tmp=tmp_path) in refusal(runs("dqn_minatar"), "--script", tmp_path / "other.py")


# copies


def test_a_copied_and_changed_script_is_evaluated_and_its_later_changes_are_refused(tmp_path, monkeypatch):
    wider = ("filters, width = 16, 128", "filters, width = 16, 32")
    (tmp_path / "project").mkdir()
    path = Path(scripts.edited(Path(dqn_minatar.__file__), tmp_path / "project", wider).__file__)
    directory = tmp_path / "project" / "logs" / "run"
    flags = "--total-timesteps 200 --learning-starts 60 --eval-every 100 --exploration-steps 50 --gradient autograd"
    monkeypatch.chdir(tmp_path / "project")
    scripts.finish(scripts.start(Path(path.name), *flags.split(), "--directory", directory))
    monkeypatch.chdir(tmp_path)  # the script was called as my_dqn_minatar.py in another folder
    record = evaluated(directory, tmp_path)
    assert record["script"] == str(path) and record["mean"] == last_evaluation(directory)[1]
    path.write_text(path.read_text().replace("16, 32", "16, 64"))
    message = refused(directory)
    assert "does not fit the network of" in message and path.name in message and "size mismatch" in message
    moved = path.rename(tmp_path / "elsewhere.py")
    assert "not there any more" in refused(directory)
    moved.write_text(moved.read_text().replace("16, 64", "16, 32"))
    assert evaluated(directory, tmp_path, "--script", str(moved))["returns"] == record["returns"]


# videos


def gif(path):
    """Size, number of pictures, seconds, and the first and last picture as RGB."""
    with Image.open(path) as image:
        pictures, seconds = [], 0.0
        for index in range(image.n_frames):
            image.seek(index)
            pictures.append(np.asarray(image.convert("RGB")))
            seconds += image.info["duration"] / 1000
        return image.size, seconds, pictures[0], pictures[-1]


def test_a_video_of_minatar_shows_the_channels_in_their_colours(runs, tmp_path):
    run = shutil.copytree(runs("dqn_minatar"), tmp_path / "run")
    before = content(run)
    main(["evaluate", str(run), "--video", "--seed", "2"])
    (path,) = run.glob("video/*")
    assert path.name == "evaluation-step-300-seed-2.gif"
    assert content(run).items() - before.items() == {("video/" + path.name, content(run)["video/" + path.name])}
    size, seconds, first, last = gif(path)
    assert size == (320, 320)
    steps = evaluated(run, tmp_path, "--seed", "2")["lengths"][0]
    assert seconds == pytest.approx((steps + 1) / 10, abs=0.01)
    cells = first[16::32, 16::32]
    for colour, count in ((1, 1), (2, 1), (4, 29)):  # paddle, ball, and the bricks, one of which the ball hides
        assert (cells == PALETTE[colour]).all(2).sum() == count
    assert not np.array_equal(first, last)


@pytest.mark.parametrize("name", ["ppo_control", "offsets", "pole"])
def test_a_video_of_control_shows_the_state(name, runs, tmp_path):
    """A GIF next to --out; the offset of task 2 does not move the cart, and the pole of task 1 is longer."""
    pytest.importorskip("pygame")
    before = content(runs(name))
    record = evaluated(runs(name), tmp_path, "--video", "--seed", "5")
    assert content(runs(name)) == before
    assert record["video"] == str(tmp_path / "out.gif") and record["task"] == {"offsets": 2, "pole": 1}.get(name, 0)
    size, seconds, first, _ = gif(tmp_path / "out.gif")
    assert size == (600, 400) and seconds == pytest.approx(record["lengths"][0] / 50, abs=0.09)
    cart = np.flatnonzero((first == 0).all(2)[310:314].all(0))
    assert 270 < cart.min() < cart.max() < 330  # an episode starts in the middle
    pole = np.flatnonzero((first == (202, 152, 101)).all(2).any(1))
    assert pole.min() < 50 if name == "pole" else 160 < pole.min() < 200


def test_a_video_of_a_game_on_a_screen_is_what_the_agent_sees(runs, tmp_path):
    record = evaluated(runs("ppo_atari"), tmp_path, "--video")
    size, seconds, first, _ = gif(tmp_path / "out.gif")
    assert size == (168, 168) and seconds == pytest.approx((record["lengths"][0] + 1) / 15, abs=0.01)
    assert set(np.unique(first)) == {0, 128, 255}  # ball and paddle


def test_videos_of_several_runs_are_numbered_and_games_are_the_one_that_is_played(runs, tmp_path):
    out = tmp_path / "a.json"
    words = ["--task", "2", "--episodes", "1", "--video", "--out", str(out)]
    main(["evaluate", str(runs("games")), str(runs("games")), *words])
    assert [one["video"] for one in json.loads(out.read_text())["runs"]] == [
        str(tmp_path / name) for name in ("a-1.gif", "a-2.gif")
    ]
    first = gif(tmp_path / "a-1.gif")[2][16::32, 16::32]
    assert (first[:4, 2:8] == PALETTE[3]).all()  # aliens that move left


def test_without_pygame_a_video_of_control_says_what_to_install(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    message = refusal(runs("ppo_control"), "--video", "--out", tmp_path / "a.json")
    assert "pictures of CartPole-v1 need pygame: pip install -e '.[video]'" in message
    assert list(tmp_path.iterdir()) == []


def test_the_legend_of_minatar_has_a_row_for_each_channel():
    text = (REPOSITORY / "docs" / "commands.md").read_text()
    table = [line.split("|")[1:-1] for line in text.partition("| colour |")[2].split("\n\n")[0].splitlines()[2:]]
    assert [sum(bool(cell.strip()) for cell in column) for column in zip(*table, strict=True)] == [10, 4, 4, 7, 10, 6]


# the weights alone


@pytest.mark.parametrize("script", FLAGS, ids=lambda script: script.__name__)
def test_a_finished_agent_leaves_its_weights(script, runs):
    directory = runs(script.__name__.removeprefix("agents."))
    weights = torch.load(directory / "weights.pt", weights_only=True)
    agent = load_agent(find_agent(directory))
    scripts.assert_same(weights, dict(agent.policy.args[0].state_dict()))
    size = sum(weight.numel() * weight.element_size() for weight in weights.values())
    assert size < (directory / "weights.pt").stat().st_size < 1.1 * size + 10_000


def test_the_five_lines_of_the_document_act(runs):
    (code,) = documents.python_blocks("docs/commands.md", "The weights alone")
    body = code.split("\n\n")[-1].strip().splitlines()
    assert len([line for line in body if not line.startswith("run = ")]) == 5
    names = documents.run(code.replace("runs/logs/RUN", str(runs("dqn_minatar"))))
    agent = load_agent(find_agent(runs("dqn_minatar")))
    obs, _ = names["env"].reset(seed=1)
    assert names["actions"].tolist() == agent.policy(obs).argmax(1).tolist()


def test_only_a_finished_run_has_weights_and_a_resumed_one_the_same(runs, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        scripts.stop_at(patch, 150)
        with pytest.raises(SystemExit):
            made(dqn_minatar, tmp_path / "run")
    assert not (tmp_path / "run" / "weights.pt").exists()
    made(dqn_minatar, None, resume=tmp_path / "run")
    one, other = (
        torch.load(path / "weights.pt", weights_only=True) for path in (runs("dqn_minatar"), tmp_path / "run")
    )
    scripts.assert_same(one, other)


def test_weights_that_cannot_be_written_leave_a_run_that_is_resumed_at_its_end(tmp_path, monkeypatch):
    def full(session):
        raise RunError("cannot write weights.pt: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_write_weights", full)
        with pytest.raises(RunError, match="No space"):
            made(ppo_control, tmp_path / "run")
    assert read_status(tmp_path / "run")["status"] == "failed"
    made(ppo_control, None, resume=tmp_path / "run")
    assert read_status(tmp_path / "run")["status"] == "finished" and (tmp_path / "run" / "weights.pt").exists()
