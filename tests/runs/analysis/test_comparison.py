"""Comparisons: the tables by hand, errors, files, the picture, runs of CleanRL."""

import csv
import json
import math

import pytest
from torch.utils.tensorboard import SummaryWriter

from runs.analysis import comparison, statistics
from runs.figures import style
from runs.recording import Run, RunError

TAG = "charts/episodic_return"


def recorded(directory, level, *, arm="plain", seed=1, task="Pong", end=100, tag=TAG, finish=True, **config):
    """A run whose curve rises from 0 to `level` until half of its steps and stays there."""
    settings = {"exp_name": arm, "seed": seed, "env_id": task, "directory": str(directory), **config}
    with Run.create(directory, settings, argv=["x.py"]) as run:
        for step in range(1, end + 1):
            run.scalar(tag, level * min(1.0, 2 * step / end), step)
        run.checkpoint(end, {})
        if finish:
            run.finish(end)
    return directory


def grid(folder, levels, **more):
    """Run directories for {(arm, task): levels of its seeds}."""
    return tuple(
        recorded(folder / f"{arm}-{task}-{seed}", level, arm=arm, task=task, seed=seed, **more)
        for (arm, task), of_seeds in levels.items()
        for seed, level in enumerate(of_seeds)
    )


def cleanrl(directory, level, seed, arm="dqn", **config):
    writer = SummaryWriter(str(directory))
    settings = {"exp_name": arm, "seed": seed, "env_id": "Pong", "track": False, **config}
    rows = "\n".join(f"|{key}|{value}|" for key, value in settings.items())
    writer.add_text("hyperparameters", "|param|value|\n|-|-|\n" + rows)
    for step in range(1, 101):
        writer.add_scalar(TAG, level, step)
    writer.close()
    return directory


def printed(capsys, *directories, **flags):
    comparison.main(comparison.Args(tuple(directories), **flags))
    return capsys.readouterr().out.splitlines()


def test_table_of_one_task_by_hand(tmp_path, capsys):
    runs = grid(
        tmp_path, {("plain", "Pong"): [1.0, 3.0, 5.0], ("nap", "Pong"): [3.0, 6.0, 9.0], ("one", "Pong"): [4.0]}
    )
    lines = printed(capsys, *runs, against="plain")
    assert lines[0].startswith(f"{TAG}, mean over the last 10 % of 100 steps; n counts runs;")
    assert lines[1] == "The arms differ in: nothing that all of them have."
    assert lines[3] == "| arm | task | n | mean | IQM | P(above plain) |"
    wins = 7.5 / 9  # 3, 6, 9 against 1, 3, 5: 1.5, 3 and 3 wins
    nap, one, plain = (line.strip("| ").split(" | ") for line in lines[5:8])
    assert nap[:4] == ["nap", "Pong", "3", f"6 ± {4.303 * 3 / math.sqrt(3):.2g}"]
    assert nap[4] == "6 [3, 9]"  # the smallest and largest of 27 resamples have probability 3.7 % each
    low, high = statistics.bootstrap(statistics.probability_of_improvement, [[3.0, 6.0, 9.0]], [[1.0, 3.0, 5.0]])
    assert nap[5] == f"{wins:.3g} [{low:.3g}, {high:.3g}]"
    assert one == ["one", "Pong", "1", "4", "4", f"{2 / 3:.3g}"] and plain[5] == "–"
    assert len(lines) == 10 and lines[8] == ""  # nothing to aggregate
    assert lines[9].startswith("With 3 runs per task bootstrap intervals are too narrow")


def test_score_is_mean_of_last_share_or_last_value(tmp_path):
    run = comparison.read_run(recorded(tmp_path / "a", 100.0))  # 2, 4, ..., 100 at step 50, then 100
    assert comparison.score(run, TAG, 100, 0.5) == 100.0
    assert comparison.score(run, TAG, 10, 0.1) == 20.0  # step 10 only: step 9 is not after 90 %
    assert comparison.score(run, TAG, 10, 0.2) == 19.0
    assert comparison.score(run, TAG, 40, 0.0) == 80.0 and comparison.score(run, TAG, 4, 1.0) == 5.0


def test_runs_are_compared_up_to_the_end_of_the_shortest(tmp_path, capsys):
    runs = (
        recorded(tmp_path / "a", 100.0, end=100, total_timesteps=100),
        recorded(tmp_path / "b", 100.0, arm="nap", end=40, total_timesteps=40),
    )
    lines = printed(capsys, *runs, allow_different=("total_timesteps",))
    assert "last 10 % of 40 steps" in lines[0] and lines[1] == "The arms differ in: total_timesteps."
    assert lines[6].startswith("| plain | Pong | 1 | 77 |")  # steps 37 to 40
    assert "last 10 % of 20 steps" in printed(capsys, *runs, allow_different=("total_timesteps",), until=20)[0]


def test_aggregate_over_tasks_by_hand(tmp_path, capsys):
    levels = {
        ("plain", "Asterix"): [0.0, 2.0], ("plain", "Pong"): [10.0, 30.0],
        ("nap", "Asterix"): [2.0, 4.0], ("nap", "Pong"): [20.0, 20.0],
    }  # fmt: skip
    runs = grid(tmp_path, levels)
    reference = tmp_path / "reference.csv"
    reference.write_text("# of nowhere\ntask,low,high\nPong,10,30\nAsterix,0,4\n")
    lines = printed(capsys, *runs, against="plain", reference=reference)
    assert [line.split(" | ")[:3] for line in lines[5:9]] == [
        ["| nap", "Asterix", "2"], ["| plain", "Asterix", "2"], ["| nap", "Pong", "2"], ["| plain", "Pong", "2"],
    ]  # fmt: skip
    assert lines[10] == "| arm, all tasks | n | mean | median | IQM | optimality gap | P(above plain) |"
    nap, plain = (line.strip("| ").split(" | ") for line in lines[12:14])
    # normalised, nap has 0.5, 1 and 0.5, 0.5; plain 0, 0.5 and 0, 1
    assert [cell.split(" ")[0] for cell in nap] == ["nap", "4", "0.625", "0.625", "0.5", "0.375", "0.688"]
    assert [cell.split(" ")[0] for cell in plain] == ["plain", "4", "0.375", "0.375", "0.25", "0.625", "–"]
    assert "0.625 [0.5, 0.75]" in lines[12]


def test_raw_scores_of_several_tasks_are_not_averaged(tmp_path, capsys):
    levels = {("plain", "Asterix"): [0.0, 2.0], ("plain", "Pong"): [10.0, 30.0], ("nap", "Pong"): [1.0, 2.0]}
    runs = grid(tmp_path, levels)
    assert printed(capsys, *runs, against="plain")[-3] == "Not aggregated over tasks: nap has no run of Asterix."
    runs += grid(tmp_path / "more", {("nap", "Asterix"): [3.0, 1.0]})
    assert "different scales (--reference)" in printed(capsys, *runs)[-3]
    lines = printed(capsys, *runs, against="plain")
    assert lines[-6] == "| arm, all tasks | n | P(above plain) |" and lines[-4].startswith("| nap | 4 | 0.375 [")


def test_files_have_all_numbers_and_n(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    runs = grid(tmp_path, {("plain", "Pong"): [1.0, 3.0], ("nap", "Pong"): [2000.25, 2000.75]})
    out = tmp_path / "out" / "table"
    out.parent.mkdir()
    lines = printed(capsys, *runs, against="plain", out=out)
    assert lines[-1] == f"wrote {out}.md, {out}.csv, {out}.png, {out}.svg"
    assert (out.parent / "table.md").read_text().splitlines() == lines[:-2]
    nap, plain = csv.DictReader((out.parent / "table.csv").read_text().splitlines())
    assert (nap["arm"], nap["task"], nap["n"], nap["tag"], nap["scores"]) == ("nap", "Pong", "2", TAG, "raw")
    assert float(nap["mean"]) == 2000.5 and float(nap["mean_low"]) == pytest.approx(2000.5 - 12.706 * 0.25)
    assert (nap["improvement"], plain["improvement"], plain["median"]) == ("1.0", "", "")
    assert (out.parent / "table.png").read_bytes().startswith(b"\x89PNG")
    drawn = (out.parent / "table.svg").read_text()
    assert "plain, n = 2" in drawn and "nap, n = 2" in drawn
    comparison.main(comparison.Args(tuple(reversed(runs)), against="plain", out=out.with_suffix(".svg")))
    assert (out.parent / "table.svg").read_text() == drawn  # the same bytes for any order of the arguments


def test_picture_shows_seeds_behind_their_mean(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(style, "save", lambda figure, paths: figures.append(figure))
    runs = grid(tmp_path, {("plain", "Pong"): [1.0, 3.0], ("nap", "Pong"): [4.0]})
    runs += (recorded(tmp_path / "other", 5.0, task="Asterix"),)
    comparison.main(comparison.Args(runs, out=tmp_path / "out"))
    asterix, pong = figures[0].axes
    assert asterix.get_title() == "Asterix" and len(asterix.lines) == 1
    nap, *seeds, mean = pong.lines
    assert [line.get_color() for line in (nap, *seeds, mean)] == [style.COLOURS[k] for k in (0, 1, 1, 1)]
    assert all(seed.get_zorder() < mean.get_zorder() and seed.get_alpha() < 0.5 for seed in seeds)
    assert seeds[1].get_ydata()[-1] == 3.0 and mean.get_ydata()[-1] == 2.0
    band = pong.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(2.0 + 12.706) and len(pong.collections) == 1  # a single run has none
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ["nap, n = 1", "plain, n = 1 to 2 per task"]


def test_profile_of_normalised_scores_is_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(style, "save", lambda figure, paths: figures.append(figure))
    reference = tmp_path / "reference.csv"
    reference.write_text("task,low,high\nPong,0,10\nAsterix,0,4\n")
    runs = grid(tmp_path, {("plain", "Pong"): [5.0, 15.0], ("plain", "Asterix"): [1.0, 2.0]})
    comparison.main(comparison.Args(runs, out=tmp_path / "out", reference=reference))
    line = figures[0].axes[2].lines[0]
    x, y = line.get_xdata(), line.get_ydata()
    assert x[0] == 0.0 and x[-1] == 1.5 and y[0] == 1.0 and y[-1] == 0.0
    assert set(y[(x > 0.26) & (x < 0.49)]) == {0.75} and set(y[(x > 0.51) & (x < 1.49)]) == {0.25}


def test_cleanrl_runs_are_compared_with_ours(tmp_path, capsys):
    runs = [cleanrl(tmp_path / f"c{seed}", 0.5 * seed, seed, total_timesteps=100) for seed in (1, 2)]
    runs += [recorded(tmp_path / f"r{seed}", 2.0, seed=seed, total_timesteps=100, nap={"on": True}) for seed in (1, 2)]
    lines = printed(capsys, *runs, against="dqn")
    assert lines[2] == "Only some of them have: nap.on."
    assert lines[6].startswith("| dqn | Pong | 2 | 0.75 ±") and lines[7].startswith("| plain | Pong | 2 | 2 ± 0 |")
    runs.append(cleanrl(tmp_path / "c3", 1.0, 3, total_timesteps=1000))
    with pytest.raises(
        RunError, match=r"c3 holds 100 of its 1,000 steps, so it is not finished: finish it, .*--unfinished"
    ):
        comparison.main(comparison.Args(tuple(runs)))


def test_tag_is_chosen_or_named(tmp_path, capsys):
    accuracy = recorded(tmp_path / "a", 0.5, tag="test/accuracy")
    assert printed(capsys, accuracy)[0].startswith("test/accuracy, last value") is False
    assert printed(capsys, accuracy, last=0.0)[0].startswith("test/accuracy, last value within 100 steps;")
    loss = recorded(tmp_path / "b", 0.5, seed=2, tag="train/loss")
    with pytest.raises(RunError, match=r"have none of .* in common: .* all runs have none"):
        comparison.main(comparison.Args((accuracy, loss)))
    with pytest.raises(RunError, match="has no train/loss; it has test/accuracy"):
        comparison.main(comparison.Args((accuracy, loss), tag="train/loss"))
    assert printed(capsys, loss, tag="train/loss")[4].startswith("| plain | Pong | 1 | 0.5 |")


def test_bad_arguments_and_runs_are_refused(tmp_path):
    run = recorded(tmp_path / "a", 1.0)
    with pytest.raises(RunError, match="nothing to compare"):
        comparison.main(comparison.Args(()))
    unfinished = recorded(tmp_path / "b", 1.0, seed=2, finish=False)
    with pytest.raises(RunError, match="b is interrupted, not finished: finish it, leave it out, or say --unfinished"):
        comparison.main(comparison.Args((run, unfinished)))
    comparison.main(comparison.Args((run, unfinished), unfinished=True))
    with pytest.raises(RunError, match="--against nap is not an arm; the arms are plain"):
        comparison.main(comparison.Args((run,), against="nap"))
    with pytest.raises(RunError, match="differ in gamma"):
        comparison.main(comparison.Args((run, recorded(tmp_path / "g", 1.0, seed=3, gamma=0.5))))
    for flags, message in (
        ({"last": 2.0}, r"--last must be in \[0, 1\] .*, got 2.0"),
        ({"replicates": 5}, "--replicates must be at least 100 .*, got 5"),
        ({"by": ()}, "--by is empty"),
        ({"until": 0}, "--until must be above 0, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            comparison.Args((run,), **flags)
    with pytest.raises(RunError, match="cannot write"):
        comparison.main(comparison.Args((run,), out=tmp_path / "no" / "out"))


def test_curves_without_a_score_are_refused(tmp_path):
    late = tmp_path / "late"
    with Run.create(late, {"exp_name": "x", "seed": 1}, argv=["x.py"]) as run:
        run.scalar(TAG, 1.0, 50)
        run.scalar("train/loss", math.nan, 95)
        run.scalar("test/loss", 1.0, 60)
        run.scalar("test/loss", 1.0, 40)
        run.checkpoint(100, {})
        run.finish(100)
    with pytest.raises(
        RunError, match=r"late has no charts/episodic_return in the last 10 % of 100 steps: give a larger"
    ):
        comparison.main(comparison.Args((late,)))
    with pytest.raises(RunError, match="late has a train/loss that is not finite"):
        comparison.main(comparison.Args((late,), tag="train/loss"))
    with pytest.raises(RunError, match="the steps of test/loss go back from 60 to 40: does it hold two runs"):
        comparison.main(comparison.Args((late,), tag="test/loss"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task,low,high\nPong,0,1\n", "has no scores of Asterix; it has Pong"),
        ("task,low,high\nAsterix,1,1\n", "Asterix low 1.0 and high 1.0: high must be above low"),
        ("task,low\nAsterix,1\n", "cannot read .*high"),
        ("task,low,high\nAsterix,1\n", "cannot read"),
        ("task,low,high\nAsterix,a,1\n", "cannot read .*could not convert"),
    ],
)
def test_bad_reference_files_are_refused(tmp_path, text, message):
    path = tmp_path / "reference.csv"
    path.write_text(text)
    with pytest.raises(RunError, match=message):
        comparison.read_reference(path, ["Asterix"])
    with pytest.raises(RunError, match=r"cannot read .*No such file"):
        comparison.read_reference(tmp_path / "none.csv", [])


def test_configuration_next_to_event_files_is_used(tmp_path, capsys):
    directory = cleanrl(tmp_path / "c", 1.0, 1)
    (directory / "config.json").write_text(json.dumps({"exp_name": "mine", "seed": 7}))
    assert printed(capsys, directory)[4].startswith("| mine | all | 1 | 1 |")
