"""Changes of the task: visits, the tables by hand, errors, the picture."""

import math
from pathlib import Path

import pytest

from runs.analysis import changes
from runs.analysis.curves import read_run
from runs.recording import Run, RunError


def recorded(directory: Path, returns, *, seed=1, name="arm", kind="actions", boundaries=(0, 1000, 2000), end=3000):
    """A run with episodes of 10 steps; `returns(step)` is the return of the one that ends there."""
    with Run.create(directory, {"exp_name": name, "seed": seed, "shift": {"kind": kind}}, argv=["x.py"]) as run:
        for k, step in enumerate(boundaries):
            run.scalar("shift/task", k % 2, step)
        for step in range(10, end + 1, 10):
            run.scalar("charts/episodic_return", float(returns(step)), step)
        run.checkpoint(end, {})
        run.finish(end)
    return directory


def climbing(step):
    """0 after each change, and 1 more every 100 steps."""
    return ((step - 1) % 1000) // 100


def test_visits_and_their_parts_by_hand(tmp_path):
    directory = recorded(tmp_path / "r", float, boundaries=(0, 1000), end=1990)
    first, second = changes.visits(read_run(directory))
    assert [(v.task, v.begin, v.end) for v in (first, second)] == [(0, 0, 1000), (1, 1000, 1990)]
    assert first.start_return == 55.0 and first.end_return == 955.0  # the episodes at 10 to 100, and at 910 to 1000
    assert second.episodes[0] == (1010, 1010.0)
    assert first.steps_until(105.0) == 200.0 and first.steps_until(105.1) == 210.0  # 105 is the mean of 10 to 200
    assert first.steps_until(905.1) == math.inf
    assert second.steps_until(0.0) == 200.0  # the first twenty episodes of this visit
    few = changes.Visit(0, 0, 100, [(50, 1.0)])
    assert all(math.isnan(x) for x in (few.end_return, few.steps_until(0.0), first.steps_until(math.nan)))


def test_arrival_is_the_median_of_the_seeds_that_arrived():
    assert changes.arrival([200.0, 300.0, math.inf, 1400.0]) == "300 (3/4)"
    assert changes.arrival([math.inf]) == "never (0/1)" and changes.arrival([1.0, math.nan]) == "–"


def test_table_by_hand(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    fresh = [recorded(tmp_path / f"f{s}", lambda step: 9, seed=s, name="fresh") for s in (1, 2)]
    arm = [recorded(tmp_path / f"a{s}", lambda step, s=s: climbing(step) + (s - 1) * 2, seed=s) for s in (1, 2)]
    changes.main(changes.Args((*arm, *fresh), fresh="fresh", out=tmp_path / "out.png"))
    lines = capsys.readouterr().out.splitlines()
    half = 12.706 / math.sqrt(2) * math.sqrt(2)  # two values that differ by 2
    plus = f"± {half:.2g}"
    # 9 is wanted. Seed 1's last 20 episodes reach 8.5. After step 850 those of seed 2 are five 8s, ten 9s, five 10s
    first, second = lines[2].split(" | "), lines[3].split(" | ")
    assert first[:8] == ["| arm", "1", "0", "0", "2", f"1 {plus}", f"10 {plus}", "–"]
    assert second[7] == "9 ± 0"  # end of the previous visit (9 and 11) minus start (0 and 2)
    assert first[8] == "850 (1/2)"
    assert first[9] == f"-1 {plus}" and first[10] == "– |"
    assert lines[4].split(" | ")[10] == "0 ± 0 |"  # the second visit to task 0 ends like the first
    assert lines[5].split(" | ")[:2] == ["| fresh", "1"] and lines[5].split(" | ")[9] == "0 ± 0"
    assert (tmp_path / "out.png").stat().st_size > 5000


def test_picture_shows_visits_with_few_episodes(tmp_path, monkeypatch):
    figures = []
    figure = pytest.importorskip("matplotlib.figure")
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: figures.append(self))
    directory = tmp_path / "r"
    with Run.create(directory, {"exp_name": "arm", "seed": 1, "shift": {"kind": "games"}}, argv=["x.py"]) as run:
        run.scalar("shift/task", 0, 0)
        for step, value in ((400, 1.0), (990, 3.0)):
            run.scalar("charts/episodic_return", value, step)
        run.checkpoint(1000, {})
        run.finish(1000)
    changes.main(changes.Args((directory,), out=tmp_path / "out.png"))
    (line,) = figures[0].axes[0].lines
    assert line.get_xdata().tolist() == pytest.approx([375.0, 975.0]) and line.get_ydata().tolist() == [1.0, 3.0]
    assert line.get_marker() == "."


def test_drop_needs_one_game_and_gap_needs_a_fresh_arm(tmp_path, capsys):
    changes.main(changes.Args((recorded(tmp_path / "a", climbing, kind="games"),)))
    line = capsys.readouterr().out.splitlines()[3]
    assert line == "| arm | 2 | 1 | 1,000 | 1 | 0 | 9 | – | – | – | – |"


def test_columns_are_explained_and_a_table_without_numbers_is_too(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    runs = [recorded(tmp_path / f"r{seed}", climbing, seed=seed) for seed in (1, 2)]
    changes.main(changes.Args(tuple(runs)))
    told = capsys.readouterr().out
    assert all(f"{column}: " in told for column in ("start, end", "drop", "again")) and "gap: " not in told
    assert "No arm has numbers" not in told
    changes.main(changes.Args(tuple(runs), fresh="arm"))
    assert "gap: the fresh agent's end" in capsys.readouterr().out
    long = recorded(tmp_path / "long", climbing, boundaries=(0,), end=58, name="long")
    changes.main(changes.Args((long,)))
    assert "No arm has numbers: " in capsys.readouterr().out


def test_shares_by_hand(tmp_path, capsys):
    # Shares by seed, over the visits from step 1,000 on: a 3 and 4; b 1 (0.5 and 1.5) and 1.5 (1 and 2).
    runs = [recorded(tmp_path / f"f{s}", lambda step, s=s: 2 * s, seed=s, name="fresh") for s in (2, 1)]
    for s in (1, 2):
        runs.append(
            recorded(tmp_path / f"a{s}", lambda step, s=s: 50 if step <= 1000 else 2 * s * (s + 2), seed=s, name="a")
        )
        low = lambda step, s=s: 2 * s * (0.5 * s if step <= 2000 else (1.5 if s == 1 else 2.0))  # noqa: E731
        runs.append(recorded(tmp_path / f"b{s}", low, seed=s, name="b"))
    changes.main(changes.Args(tuple(runs), fresh="fresh", against="b"))
    lines = capsys.readouterr().out.strip().splitlines()
    quarter = f"{12.706 / 4:.2g}"  # two values that differ by 0.5: 12.706 / sqrt(2) * 0.5 / sqrt(2)
    assert lines[-5] == "| arm | n | share | least | minus b | differs |"
    assert lines[-3:] == [
        f"| fresh | 2 | 1 ± 0 | 2 | -0.25 ± {quarter} | not shown |",
        f"| a | 2 | 3.5 ± {12.706 / 2:.2g} | 2 | 2.25 ± {quarter} | not shown |",
        f"| b | 2 | 1.25 ± {quarter} | 2 | 0 ± 0 | – |",
    ]


def test_differs_uses_the_interval_before_rounding():
    def visits(value):
        return [changes.Visit(0, 0, 100, [(100, value)]), changes.Visit(1, 100, 200, [(200, value)])]

    def differs(*values):
        fresh = {seed: visits(1.0) for seed in range(len(values))}
        arms = {"a": {seed: visits(1 + v) for seed, v in enumerate(values)}, "fresh": fresh}
        return changes.share_rows(arms, fresh, "fresh")[0][4:]

    assert differs(0.1, 0.1003, 0.0997)[1] == "more" and differs(-0.1, -0.1003)[1] == "less"
    assert differs(0.06, 0.10, 0.14)[1] == "more" and differs(0.0595, 0.10, 0.1405)[1] == "not shown"
    assert differs(0.5)[1] == "–"


def test_share_of_zero_is_unknown(tmp_path, capsys):
    runs = (recorded(tmp_path / "f", lambda step: 0, name="fresh"), recorded(tmp_path / "a", climbing))
    changes.main(changes.Args(runs, fresh="fresh"))
    assert capsys.readouterr().out.strip().splitlines()[-1] == "| arm | 1 | – | 0 | – | – |"


def test_arm_that_never_arrives(tmp_path, capsys):
    runs = (recorded(tmp_path / "a", climbing), recorded(tmp_path / "f", lambda step: 100, name="fresh"))
    changes.main(changes.Args(runs, fresh="fresh"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split(" | ")[8] == "never (0/1)" and lines[5].split(" | ")[8] == "200 (1/1)"


def test_negative_returns_are_reached(tmp_path, capsys):
    runs = (recorded(tmp_path / "f", lambda step: -20 + climbing(step), name="fresh"),)
    changes.main(changes.Args(runs, fresh="fresh"))
    # from -20 to -11: -11.9 is the mean of four -13s, ten -12s and six -11s, the last at step 960
    assert capsys.readouterr().out.splitlines()[2].split(" | ")[8] == "960 (1/1)"


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    arm = recorded(tmp_path / "a", climbing)
    other = recorded(tmp_path / "b", climbing, name="other", boundaries=(0, 500))
    task = recorded(tmp_path / "e", climbing, name="fourth", kind="noise")
    seeds = recorded(tmp_path / "c", climbing, name="third", seed=2)
    with pytest.raises(RunError, match="is given twice"):
        changes.main(changes.Args((arm, arm)))
    with pytest.raises(RunError, match="visit other tasks"):
        changes.main(changes.Args((arm, other)))
    with pytest.raises(RunError, match="fourth and arm have other games or other changes"):
        changes.main(changes.Args((arm, task)))
    with pytest.raises(RunError, match="--fresh fersh is not an arm; the arms are arm"):
        changes.main(changes.Args((arm,), fresh="fersh"))
    with pytest.raises(RunError, match="--against compares shares"):
        changes.main(changes.Args((arm,), against="arm"))
    with pytest.raises(RunError, match="--against mra is not an arm; the arms are arm"):
        changes.main(changes.Args((arm,), fresh="arm", against="mra"))
    with pytest.raises(RunError, match=r"third has seeds \[2\]"):
        changes.main(changes.Args((arm, seeds), fresh="arm"))
    with Run.create(tmp_path / "d", {"exp_name": "x", "seed": 1}, argv=["x.py"]) as run:
        run.scalar("train/loss", 1.0, 1)
        run.checkpoint(1, {})
        run.finish(1)
    with pytest.raises(RunError, match="no shift/task"):
        changes.main(changes.Args((tmp_path / "d",)))
    with Run.create(tmp_path / "g", {"exp_name": "x", "seed": 1}, argv=["x.py"]) as run:
        run.scalar("shift/task", 0, 0)
        run.checkpoint(1, {})
        run.finish(1)
    with pytest.raises(RunError, match="no episode was completed"):
        changes.main(changes.Args((tmp_path / "g",)))
    table = arm / "scalars.csv"
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(RunError, match="lines are missing"):
        changes.main(changes.Args((arm,)))
    with pytest.raises(RunError, match="no episode was completed"):
        changes.main(changes.Args((tmp_path / "g",)))
