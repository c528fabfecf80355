"""Arms of any runs in TensorBoard: ours, CleanRL's, Stable-Baselines3's; unfinished ones; watching; errors."""

import json
import time
from types import SimpleNamespace

import pytest
from torch.utils.tensorboard import SummaryWriter

from runs.__main__ import main
from runs.figures import board
from runs.recording import Run, RunError
from runs.recording.terminal import tensorboard_command
from tests.runs.figures.test_board import read

STEPS = range(0, 1001, 100)


def ours(directory, seed=1, *, name="nap", until=1000, end=True, tag="charts/episodic_return", **config):
    """A run of ours whose return is its step times its seed; open if `end` is None."""
    run = Run.create(directory, {"exp_name": name, "seed": seed, **config}, argv=["x.py"])
    for step in STEPS:
        if step <= until:
            run.scalar(tag, float(step * seed), step)
            run.scalar("elr/fc", 0.1, step)
    run.flush()
    if end is not None:
        (run.finish if end else run.interrupt)(until)
    return run


def cleanrl(directory, seed=1, *, until=1000, name="ppo", **config):
    """What CleanRL leaves behind."""
    writer = SummaryWriter(str(directory))
    flags = {"exp_name": name, "seed": seed, "total_timesteps": 1000, "track": False, **config}
    table = "\n".join(f"|{key}|{value}|" for key, value in flags.items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{table}")
    for step in STEPS:
        if step <= until:
            writer.add_scalar("charts/episodic_return", step * seed, step)
            writer.add_scalar("losses/value_loss", 1.0, step)
    writer.close()


def sb3(directory, seed=1):
    """What Stable-Baselines3 leaves behind, with a configuration by hand."""
    writer = SummaryWriter(str(directory))
    for step in STEPS:
        writer.add_scalar("rollout/ep_rew_mean", step * seed, step)
        writer.add_scalar("train/approx_kl", 0.1, step)
        writer.add_scalar("time/fps", 500, step)
    writer.close()
    (directory / "config.json").write_text(json.dumps({"exp_name": "sb3", "seed": seed}))


def words(tmp_path, *more):
    return ["board", str(tmp_path / "runs"), "--logs", str(tmp_path / "logs"), *more]


def arms(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if any(path.glob("events*")))


def test_two_arms_made_by_hand(tmp_path, capsys):
    for seed in (1, 2, 3):
        ours(tmp_path / "runs" / f"nap__x__s{seed}", seed)
        ours(tmp_path / "runs" / f"plain__x__s{seed}", seed, name="plain", until=1000)
    assert main(words(tmp_path)) == 0
    page = tmp_path / "logs" / "board-arms"
    assert capsys.readouterr().out.splitlines() == [
        "2 arms: nap; plain", tensorboard_command(page), "then open Custom Scalars",
    ]  # fmt: skip
    assert arms(page) == ["nap, n = 3", "plain, n = 3"]
    scalars, layout = read(page / "nap, n = 3")
    assert scalars["elr/fc"][-1] == (1000, pytest.approx(0.1))
    middle, value = scalars["charts/episodic_return"][-1]
    assert scalars["lowest/charts/episodic_return"][-1] == (middle, pytest.approx(value / 2))
    assert scalars["highest/charts/episodic_return"][-1] == (middle, pytest.approx(value * 1.5))
    assert [chart.title for chart in layout.category[0].chart][-1] == "training return"


def test_ours_and_cleanrls_are_on_one_page_and_tasks_apart(tmp_path):
    for task in ("Pong", "Breakout"):
        ours(tmp_path / "runs" / f"a-{task}", env_id=f"ALE/{task}-v5")
        cleanrl(tmp_path / "runs" / f"{task}__ppo__1__17", env_id=f"ALE/{task}-v5")
        cleanrl(tmp_path / "runs" / f"{task}__ppo__2__17", 2, env_id=f"ALE/{task}-v5")
    main(words(tmp_path, "--out", str(tmp_path / "page")))
    tasks = ("ALE-Breakout-v5", "ALE-Pong-v5")
    assert arms(tmp_path / "page") == [f"{task}/{arm}" for task in tasks for arm in ("nap, n = 1", "ppo, n = 2")]
    scalars, _ = read(tmp_path / "page" / "ALE-Pong-v5" / "ppo, n = 2")
    assert {"charts/episodic_return", "losses/value_loss"} <= scalars.keys()


def test_stable_baselines3(tmp_path):
    for seed in (1, 2):
        sb3(tmp_path / "runs" / f"PPO_{seed}", seed)
    main(words(tmp_path))
    scalars, layout = read(tmp_path / "logs" / "board-arms" / "sb3, n = 2")
    assert scalars["rollout/ep_rew_mean"][-1] == (1000, 1500.0)
    assert "train/approx_kl" in scalars and "time/fps" not in scalars
    assert [chart.title for chart in layout.category[0].chart] == ["rollout/ep_rew_mean"]


def test_tags_of_other_programs_have_charts(tmp_path):
    cleanrl(tmp_path / "runs" / "a")
    writer = SummaryWriter(str(tmp_path / "runs" / "a"), filename_suffix=".more")
    writer.add_scalar("my/own", 3.0, 5)
    writer.close()
    main(words(tmp_path))
    _, layout = read(tmp_path / "logs" / "board-arms" / "ppo, n = 1")
    assert layout.category[-1].title == "others" and layout.category[-1].chart[0].title == "my/own"


def test_unfinished_runs_are_included_to_the_common_step_and_named(tmp_path, capsys):
    ours(tmp_path / "runs" / "a", 1)
    ours(tmp_path / "runs" / "b", 2, until=500, end=False)
    ours(tmp_path / "runs" / "c", 3, name="plain")
    cleanrl(tmp_path / "runs" / "d", 1, until=300)
    main(words(tmp_path))
    out = capsys.readouterr().out
    assert "not finished: 2 of 4 runs" in out and "nap at 500, ppo at 300" in out
    page = tmp_path / "logs" / "board-arms"
    assert arms(page) == ["nap, n = 2, 1 not finished", "plain, n = 1", "ppo, n = 1, 1 not finished"]
    scalars, _ = read(page / "nap, n = 2, 1 not finished")
    assert scalars["elr/fc"][-1][0] == 500 and scalars["charts/episodic_return"][-1][0] <= 500
    main(words(tmp_path, "--finished"))
    assert arms(page) == ["nap, n = 1", "plain, n = 1"]
    assert "left out: 2 of 4 runs, which are not finished" in capsys.readouterr().out


def test_a_run_that_has_just_begun_is_left_out_and_named(tmp_path, capsys):
    ours(tmp_path / "runs" / "a")
    ours(tmp_path / "runs" / "b", 2, until=-1, end=None)
    main(words(tmp_path))
    assert f"left out, no score so far: {tmp_path / 'runs' / 'b'}" in capsys.readouterr().out
    assert arms(tmp_path / "logs" / "board-arms") == ["nap, n = 1"]


def test_the_page_can_be_below_the_folder_of_runs_and_is_replaced(tmp_path):
    ours(tmp_path / "runs" / "a")
    line = ["board", str(tmp_path / "runs"), "--logs", str(tmp_path / "runs")]
    main(line)
    ours(tmp_path / "runs" / "b", 2)
    main(line)
    assert arms(tmp_path / "runs" / "board-arms") == ["nap, n = 2"]
    files = {file.name for file in (tmp_path / "runs" / "board-arms" / "nap, n = 2").iterdir()}
    assert files == {"events.out.tfevents.000001"}  # a new name: an open TensorBoard reads it


def test_the_first_curve_and_the_arms_can_be_chosen(tmp_path):
    ours(tmp_path / "runs" / "a", rate=1, width=1)
    ours(tmp_path / "runs" / "b", 2, rate=1, width=2)
    main(words(tmp_path, "--by", "rate", "--tag", "elr/fc"))
    _, layout = read(tmp_path / "logs" / "board-arms" / "rate=1, n = 2")
    assert layout.category[0].chart[-1].title == "effective learning rate (fc)"


def test_bad_input_is_one_line(tmp_path):
    ours(tmp_path / "runs" / "a")
    refused = {
        "no run in .*missing": [str(tmp_path / "missing")],
        "fig3 is an experiment, but .* is not": ["fig3", str(tmp_path / "runs")],
        "--tag cannot be given for experiments": ["fig3", "--tag", "x"],
        "--scale smoke cannot be given for runs": [str(tmp_path / "runs"), "--scale", "smoke"],
        "has no charts/none": [str(tmp_path / "runs"), "--tag", "charts/none"],
        "--watch takes one number of seconds": [str(tmp_path / "runs"), "--watch", "1", "2"],
        "--watch takes one number of seconds, at least 1": [str(tmp_path / "runs"), "--watch", "0"],
    }
    for message, line in refused.items():
        with pytest.raises(RunError, match=message):
            main(["board", *line, "--logs", str(tmp_path / "logs")])
    with pytest.raises(RunError, match="none of the 1 runs is finished"):
        ours(tmp_path / "b" / "a", until=500, end=False)
        main(["board", str(tmp_path / "b"), "--finished", "--logs", str(tmp_path / "logs")])
    assert not (tmp_path / "logs").exists()


def test_runs_without_a_common_score_and_damaged_ones_are_refused(tmp_path):
    ours(tmp_path / "runs" / "a")
    ours(tmp_path / "runs" / "b", 2, tag="test/accuracy")
    with pytest.raises(RunError, match=r"have none of .* in common: choose one with --tag; all runs have elr/fc"):
        main(words(tmp_path))
    table = tmp_path / "runs" / "b" / "scalars.csv"
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(RunError, match="lines are missing"):
        main(words(tmp_path))


def test_damaged_event_files_and_those_without_a_configuration_are_refused(tmp_path):
    cleanrl(tmp_path / "runs" / "a")
    (file,) = (tmp_path / "runs" / "a").glob("*tfevents*")
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    with pytest.raises(RunError, match="is damaged"):
        main(words(tmp_path))
    file.unlink()
    SummaryWriter(str(tmp_path / "runs" / "a")).close()
    with pytest.raises(RunError, match="has no configuration"):
        main(words(tmp_path))


def test_a_folder_of_others_is_never_replaced(tmp_path):
    ours(tmp_path / "runs" / "a")
    mine = tmp_path / "out" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("five years of work")
    with pytest.raises(RunError, match="this command did not write it"):
        main(words(tmp_path, "--out", str(tmp_path / "out")))
    with pytest.raises(RunError, match="this command did not write it"):
        main(words(tmp_path, "--out", str(tmp_path / "runs")))
    assert mine.read_text() == "five years of work" and (tmp_path / "runs" / "a" / "scalars.csv").exists()


class Sleeps:
    """Instead of waiting, do the next thing."""

    def __init__(self, monkeypatch, *things):
        self.things, self.seconds = list(things), []
        monkeypatch.setattr(board, "time", SimpleNamespace(sleep=self, strftime=time.strftime))

    def __call__(self, seconds):
        self.seconds.append(seconds)
        self.things.pop(0)()


def test_watching_writes_again_until_all_runs_are_finished(tmp_path, monkeypatch, capsys):
    ours(tmp_path / "runs" / "a")
    run = ours(tmp_path / "runs" / "b", 2, until=500, end=None)
    page = tmp_path / "logs" / "board-arms"
    seen = []

    def more():
        seen.append(arms(page))
        run.scalar("charts/episodic_return", 1.0, 600)
        run.flush()

    def new():
        ours(tmp_path / "runs" / "c", 3, until=100, end=False)

    def finish():
        seen.append(arms(page))
        run.finish(1000)

    sleeps = Sleeps(monkeypatch, more, new, finish)
    main(words(tmp_path, "--watch", "7"))
    assert sleeps.seconds == [7.0] * 3 and not sleeps.things
    assert seen == [["nap, n = 2, 1 not finished"], ["nap, n = 3, 2 not finished"]]
    assert arms(page) == ["nap, n = 3, 1 not finished"]  # the one that was interrupted is not waited for
    assert capsys.readouterr().out.endswith("no run is under way\n")


def test_watching_does_not_write_what_has_not_changed_and_ends_by_interrupt(tmp_path, monkeypatch, capsys):
    run = ours(tmp_path / "runs" / "a", until=500, end=None)
    written = []
    write_runs = board.write_runs
    monkeypatch.setattr(board, "write_runs", lambda *a, **o: written.append(1) or write_runs(*a, **o))

    def interrupt():
        raise KeyboardInterrupt

    sleeps = Sleeps(monkeypatch, lambda: None, lambda: None, interrupt)
    main(words(tmp_path, "--watch"))
    assert len(written) == 1 and sleeps.seconds == [30.0] * 3
    assert "no longer watched" in capsys.readouterr().out
    run.finish(500)


def test_watching_outlasts_a_run_that_is_just_being_made(tmp_path, monkeypatch, capsys):
    run = ours(tmp_path / "runs" / "a", until=500, end=None)

    def half_made():
        (tmp_path / "runs" / "b").mkdir()
        (tmp_path / "runs" / "b" / "scalars.csv").write_text("step,tag,value\n")

    def whole():
        (tmp_path / "runs" / "b" / "scalars.csv").unlink()
        run.finish(500)

    Sleeps(monkeypatch, half_made, whole)
    main(words(tmp_path, "--watch", "1"))
    assert "not written: " in capsys.readouterr().out
    assert arms(tmp_path / "logs" / "board-arms") == ["nap, n = 1"]


def test_watching_ends_when_the_last_run_is_killed(tmp_path, monkeypatch, capsys):
    run = ours(tmp_path / "runs" / "a", until=500, end=None)
    (page,) = board.pages(board.Args((str(tmp_path / "runs"),)))
    before = page.state()
    assert page.state() == before

    def kill():
        run._lock.release()  # the operating system does this; no file changes
        assert page.state() != before

    sleeps = Sleeps(monkeypatch, kill)
    main(words(tmp_path, "--watch", "1"))
    assert not sleeps.things and capsys.readouterr().out.endswith("no run is under way\n")
