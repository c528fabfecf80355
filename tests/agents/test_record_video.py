"""--record-video of the scripts whose games are drawn: a GIF of each evaluation, and no other number changes."""

import importlib

import pytest
from PIL import Image

from elr.flags import ProbeArgs
from envs import pictures
from runs.recording import RunError, read_scalars
from runs.training import Session

PPO = {
    "num_envs": 2,
    "num_steps": 16,
    "num_minibatches": 2,
    "update_epochs": 1,
    "total_timesteps": 128,
    "eval_every": 2,
}
DQN = {"total_timesteps": 60, "learning_starts": 20, "batch_size": 4, "eval_every": 30}
SCRIPTS = {"ppo_control": PPO, "ppo_minatar": PPO, "dqn_minatar": DQN}
SIZE = {"ppo_control": (600, 400), "ppo_minatar": (320, 320), "dqn_minatar": (320, 320)}


def run(name, directory, **changes):
    script = importlib.import_module(f"agents.{name}")
    args = {**SCRIPTS[name], "eval_episodes": 2, "probe": ProbeArgs(size=8), **changes}
    script.main(script.Args(directory=directory, **args))
    return {tag: points for tag, points in read_scalars(directory).items() if tag != "charts/SPS"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_evaluation_leaves_a_gif_and_changes_no_number(name, tmp_path, monkeypatch):
    if name == "ppo_control":
        pytest.importorskip("pygame")
    seconds, write = {}, Session.write_video

    def watched(session, film):
        write(session, film)
        if film is not None:
            shown = len(range(0, film.steps, film.every)) + 1  # the last state as well
            seconds[f"step-{session.step}.gif"] = min(shown, pictures.MAX_PICTURES) / film.per_second

    monkeypatch.setattr(Session, "write_video", watched)
    bare = run(name, tmp_path / "bare")
    assert run(name, tmp_path / "filmed", record_video=True) == bare
    assert not (tmp_path / "bare" / "video").exists()
    steps = [step for step, _ in bare["eval/episodic_return"]]
    assert len(steps) == 2
    assert sorted(path.name for path in (tmp_path / "filmed" / "video").iterdir()) == sorted(seconds)
    assert list(seconds) == [f"step-{step}.gif" for step in steps]
    for file, expected in seconds.items():
        with Image.open(tmp_path / "filmed" / "video" / file) as gif:
            assert gif.size == SIZE[name]
            lasts = sum(gif.seek(index) or gif.info["duration"] for index in range(gif.n_frames)) / 1000
        assert lasts == pytest.approx(expected, abs=0.02)


def test_after_a_change_the_new_task_is_filmed(tmp_path):
    script = importlib.import_module("agents.dqn_minatar")
    shift = script.ShiftArgs("games", games=("MinAtar/Freeway-v0",), at_steps=(40,))
    run("dqn_minatar", tmp_path / "r", env_id="MinAtar/Breakout-v0", shift=shift, record_video=True)
    seen = []
    for step in (30, 60):
        with Image.open(tmp_path / "r" / "video" / f"step-{step}.gif") as gif:
            seen.append(gif.convert("RGB").tobytes())
    assert seen[0] != seen[1]  # bricks, and a road


def test_a_game_that_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    def refuse(env):
        raise ValueError("it has no pictures")

    monkeypatch.setattr(pictures, "film_of", refuse)
    with pytest.raises(RunError, match="it has no pictures"):
        run("dqn_minatar", tmp_path / "r", record_video=True)
    assert not (tmp_path / "r").exists()


def test_without_evaluations_there_is_nothing_to_film():
    script = importlib.import_module("agents.ppo_control")
    with pytest.raises(ValueError, match="--record-video True has no effect with --eval-every 0"):
        script.Args(eval_every=0, record_video=True)
