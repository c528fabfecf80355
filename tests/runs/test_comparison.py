"""Comparisons: the tables by hand, refusals, files, the picture, runs of CleanRL, the colours."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from runs import comparison, statistics, style
from runs.recording import Run, RunError

TAG = "charts/episodic_return"


def recorded(directory, level, *, arm="plain", seed=1, task="Pong", end=100, tag=TAG, finish=True, **config):
    """Rises from 0 to `level` at half of its steps, where it stays."""
    settings = {"exp_name": arm, "seed": seed, "env_id": task, "directory": str(directory), **config}
    with Run.create(directory, settings, argv=["x.py"]) as run:
        for step in range(1, end + 1):
            run.scalar(tag, level * min(1.0, 2 * step / end), step)
        run.checkpoint(end, {})
        if finish:
            run.finish(end)
    return directory


def grid(folder, levels, **more):
    """{(arm, task): levels of its seeds} -> run directories."""
    return tuple(
        recorded(folder / f"{arm}-{task}-{seed}", level, arm=arm, task=task, seed=seed, **more)
        for (arm, task), found in levels.items()
        for seed, level in enumerate(found)
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


def test_the_table_of_one_task_by_hand(tmp_path, capsys):
    runs = grid(
        tmp_path, {("plain", "Pong"): [1.0, 3.0, 5.0], ("nap", "Pong"): [3.0, 6.0, 9.0], ("one", "Pong"): [4.0]}
    )
    lines = printed(capsys, *runs, against="plain")
    assert lines[0].startswith(f"{TAG}, mean over the last 10 % of 100 steps; n counts runs;")
    assert lines[1] == "The arms differ in: nothing that all of them have."
    assert lines[3] == "| arm | task | n | mean | IQM | P(above plain) |"
    wins = 7.5 / 9  # of 3, 6, 9 over 1, 3, 5: 1 and a half, 3, 3
    nap, one, plain = (line.strip("| ").split(" | ") for line in lines[5:8])
    assert nap[:4] == ["nap", "Pong", "3", f"6 ± {4.303 * 3 / math.sqrt(3):.2g}"]
    assert nap[4] == "6 [3, 9]"  # the least and the largest of 27 resamples have 3.7 % each
    low, high = statistics.bootstrap(statistics.probability_of_improvement, [[3.0, 6.0, 9.0]], [[1.0, 3.0, 5.0]])
    assert nap[5] == f"{wins:.3g} [{low:.3g}, {high:.3g}]"
    assert one == ["one", "Pong", "1", "4", "4", f"{2 / 3:.3g}"] and plain[5] == "–"
    assert len(lines) == 10 and lines[8] == ""  # nothing to aggregate
    assert lines[9].startswith("Of 3 runs on one task an interval by resampling is too narrow")


def test_scores_are_means_of_the_last_share_or_the_last_value(tmp_path):
    run = comparison.read_run(recorded(tmp_path / "a", 100.0))  # 2, 4, ..., 100 at step 50, then 100
    assert comparison.score(run, TAG, 100, 0.5) == 100.0
    assert comparison.score(run, TAG, 10, 0.1) == 20.0  # step 10 alone: 9 is not beyond 90 %
    assert comparison.score(run, TAG, 10, 0.2) == 19.0
    assert comparison.score(run, TAG, 40, 0.0) == 80.0 and comparison.score(run, TAG, 4, 1.0) == 5.0


def test_runs_of_a_task_are_compared_until_the_end_of_the_shortest(tmp_path, capsys):
    runs = (
        recorded(tmp_path / "a", 100.0, end=100, total_timesteps=100),
        recorded(tmp_path / "b", 100.0, arm="nap", end=40, total_timesteps=40),
    )
    lines = printed(capsys, *runs, allow_different=("total_timesteps",))
    assert "last 10 % of 40 steps" in lines[0] and lines[1] == "The arms differ in: total_timesteps."
    assert lines[6].startswith("| plain | Pong | 1 | 77 |")  # steps 37 to 40
    assert "last 10 % of 20 steps" in printed(capsys, *runs, allow_different=("total_timesteps",), until=20)[0]


def test_the_aggregate_over_tasks_by_hand(tmp_path, capsys):
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


def test_files_hold_everything_and_n(tmp_path, capsys):
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
    assert (out.parent / "table.svg").read_text() == drawn  # whatever the order of the arguments, on whatever day


def test_the_picture_shows_seeds_behind_their_mean(tmp_path, monkeypatch):
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
    assert band[:, 1].max() == pytest.approx(2.0 + 12.706) and len(pong.collections) == 1  # none of one run
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ["nap, n = 1", "plain, n = 1 to 2 per task"]


def test_the_profile_is_drawn_of_normalised_scores(tmp_path, monkeypatch):
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


def test_points_as_recorded_or_in_windows():
    evaluations = [
        (np.array([10, 20, 30]), np.array([1.0, 2.0, 3.0])),
        (np.array([10, 20, 30]), np.array([3.0, 4.0, 5.0])),
    ]
    x, runs = comparison.common_points(evaluations, 20)
    assert x.tolist() == [10.0, 20.0] and runs.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    steps = np.arange(8)
    x, runs = comparison.common_points([(steps, steps * 1.0), (steps + 1, steps * 2.0)], 8)
    assert x.tolist() == [2.0, 6.0]  # eight points make two windows, (0, 4] and (4, 8], the first with step 0
    assert runs.tolist() == [[2.0, 6.0], [3.0, 11.0]]


def test_windows_end_at_whole_steps():
    """Of 119,936 in 100, the 25th ends at 29,984, though floating point says a little less."""
    steps = np.arange(32, 119_937, 32)
    _, (values,) = comparison.common_points([(steps, steps * 1.0)], 119_936)
    assert len(values) == 100 and values[24] == np.mean(steps[(steps > 28_785) & (steps <= 29_984)])


def test_runs_of_cleanrl_beside_ours(tmp_path, capsys):
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


def test_the_tag_is_chosen_or_named(tmp_path, capsys):
    accuracy = recorded(tmp_path / "a", 0.5, tag="test/accuracy")
    assert printed(capsys, accuracy)[0].startswith("test/accuracy, last value") is False
    assert printed(capsys, accuracy, last=0.0)[0].startswith("test/accuracy, last value within 100 steps;")
    loss = recorded(tmp_path / "b", 0.5, seed=2, tag="train/loss")
    with pytest.raises(RunError, match=r"have none of .* in common: .* all have nothing"):
        comparison.main(comparison.Args((accuracy, loss)))
    with pytest.raises(RunError, match="records no train/loss; it has test/accuracy"):
        comparison.main(comparison.Args((accuracy, loss), tag="train/loss"))
    assert printed(capsys, loss, tag="train/loss")[4].startswith("| plain | Pong | 1 | 0.5 |")


def test_refusals(tmp_path):
    run = recorded(tmp_path / "a", 1.0)
    with pytest.raises(RunError, match="nothing to compare"):
        comparison.main(comparison.Args(()))
    going = recorded(tmp_path / "b", 1.0, seed=2, finish=False)
    with pytest.raises(RunError, match="b is interrupted, not finished: finish it, leave it out, or say --unfinished"):
        comparison.main(comparison.Args((run, going)))
    comparison.main(comparison.Args((run, going), unfinished=True))
    with pytest.raises(RunError, match="--against nap is none of the arms: plain"):
        comparison.main(comparison.Args((run,), against="nap"))
    with pytest.raises(RunError, match="differ in gamma"):
        comparison.main(comparison.Args((run, recorded(tmp_path / "g", 1.0, seed=3, gamma=0.5))))
    for flags, message in (
        ({"last": 2.0}, "--last 2.0"),
        ({"replicates": 5}, "--replicates 5"),
        ({"by": ()}, "--by is empty"),
        ({"until": 0}, "--until 0"),
    ):
        with pytest.raises(ValueError, match=message):
            comparison.Args((run,), **flags)
    with pytest.raises(RunError, match="cannot write"):
        comparison.main(comparison.Args((run,), out=tmp_path / "no" / "out"))


def test_curves_that_make_no_score(tmp_path):
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
def test_references_that_are_none(tmp_path, text, message):
    path = tmp_path / "reference.csv"
    path.write_text(text)
    with pytest.raises(RunError, match=message):
        comparison.read_reference(path, ["Asterix"])
    with pytest.raises(RunError, match=r"cannot read .*No such file"):
        comparison.read_reference(tmp_path / "none.csv", [])


def test_numbers_as_they_are_shown():
    numbers = (math.nan, 0.12345, 12.345, 999.4, 999.6, -1234.5, 0.0)
    assert [comparison.shown(number) for number in numbers] == ["–", "0.123", "12.3", "999", "1,000", "-1,234", "0"]


def test_looks_depend_on_names_alone():
    found = style.looks(["b", "a", "c", "a"])
    assert found == style.looks(["c", "b", "a"]) and list(found) == ["a", "b", "c"]
    many = style.looks([f"{k:02d}" for k in range(28)])
    assert len(set(many.values())) == 28 and many["07"] == (style.COLOURS[0], "dashed")
    with pytest.raises(RunError, match="29 arms cannot be told apart"):
        style.looks(map(str, range(29)))


@pytest.mark.parametrize("length", [5, 45])
def test_the_legend_fits_into_the_picture(length, tmp_path):
    pytest.importorskip("matplotlib")
    names = [f"{letter}" * length for letter in "abcd"]
    figure, panels = style.begin(1)
    for name, look in style.looks(names).items():
        style.draw_arm(panels[0], np.arange(2.0), np.ones((1, 2)), look, name)
    style.legend_below(figure, panels)
    style.save(figure, [tmp_path / "out.png"])
    box, room = figure.legends[0].get_window_extent(), figure.bbox
    assert room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0
    assert box.y1 < panels[0].get_window_extent().y0


def test_the_command_line(tmp_path):
    import subprocess
    import sys

    run = recorded(tmp_path / "a", 1.0)
    command = [sys.executable, "-m", "runs.comparison", str(run), "--against", "nap"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--against nap is none of the arms" in done.stderr


def test_config_written_beside_foreign_event_files(tmp_path, capsys):
    directory = cleanrl(tmp_path / "c", 1.0, 1)
    (directory / "config.json").write_text(json.dumps({"exp_name": "mine", "seed": 7}))
    assert printed(capsys, directory)[4].startswith("| mine | all | 1 | 1 |")


def test_tools_that_read_runs_do_not_wait_for_torch():
    code = "import sys, runs.comparison, runs.report; print({'torch', 'gymnasium', 'matplotlib'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.strip() == "set()"
