"""Changes of a world: visits, the table by hand, refusals, the picture."""

import math
from pathlib import Path

import pytest

from runs import changes
from runs.recording import Run, RunError


def recorded(directory: Path, returns, *, seed=1, name="arm", kind="actions", boundaries=(0, 1000, 2000), end=3000):
    """Episodes of 10 steps; `returns(step)` is what the one that ends there brought."""
    with Run.create(directory, {"exp_name": name, "seed": seed, "shift": {"kind": kind}}, argv=["x.py"]) as run:
        for k, step in enumerate(boundaries):
            run.scalar("shift/task", k % 2, step)
        for step in range(10, end + 1, 10):
            run.scalar("charts/episodic_return", float(returns(step)), step)
        run.checkpoint(end, {})
        run.finish(end)
    return directory


def climbing(step):
    """10 at the end of the first visit; falls to 0 at a change and climbs by 1 every 100 steps."""
    return ((step - 1) % 1000) // 100


def test_visits_and_their_parts_by_hand(tmp_path):
    (first, second, third) = changes.visits(
        {
            "shift/task": [(0, 0.0), (100, 1.0), (200, 0.0)],
            "charts/episodic_return": [(s, s) for s in range(5, 301, 5)],
        },
        tmp_path,
    )
    assert [(v.task, v.begin, v.end) for v in (first, second, third)] == [(0, 0, 100), (1, 100, 200), (0, 200, 300)]
    assert first.start_return == 7.5 and first.end_return == 97.5  # 5, 10 and 95, 100
    assert second.start_return == 107.5 and second.episodes[0] == (105, 105)
    assert first.steps_until(52.5) == 100.0 and first.steps_until(52.6) == math.inf  # mean of all twenty
    assert second.steps_until(0.0) == 100.0  # twenty episodes are needed, and are of this visit alone
    assert math.isnan(changes.Visit(0, 0, 100, []).end_return)


def test_the_table_by_hand(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    fresh = [recorded(tmp_path / f"f{s}", lambda step: 9, seed=s, name="fresh") for s in (1, 2)]
    arm = [recorded(tmp_path / f"a{s}", lambda step, s=s: climbing(step) + (s - 1) * 2, seed=s) for s in (1, 2)]
    changes.main(changes.Args((*arm, *fresh), fresh="fresh", out=tmp_path / "out.png"))
    lines = capsys.readouterr().out.splitlines()
    half = 12.706 / math.sqrt(2) * math.sqrt(2)  # of two values that differ by 2
    plus = f"± {half:.2g}"
    # steps: seed 1 has a mean of 8.1 over 20 episodes when 2 of them are of the last hundred steps (7, 8, 9: later than
    # 900), seed 2, two higher, some 200 steps before; the median is between
    first, second = lines[2].split(" | "), lines[3].split(" | ")
    assert first[:8] == ["| arm", "1", "0", "0", "2", f"1 {plus}", f"10 {plus}", "–"]
    assert second[7] == "9 ± 0"  # end of the visit before, 9 and 11, minus start, 0 and 2
    assert float(first[8].replace(",", "")) == pytest.approx(870, abs=60)
    assert first[9] == f"-1 {plus}" and first[10] == "– |"
    assert lines[4].split(" | ")[10] == "0 ± 0 |"  # the second visit to task 0 ends as the first
    assert lines[5].split(" | ")[:2] == ["| fresh", "1"] and lines[5].split(" | ")[9] == "0 ± 0"
    assert (tmp_path / "out.png").stat().st_size > 5000


def test_drop_needs_one_game_and_the_rest_a_fresh_arm(tmp_path, capsys):
    changes.main(changes.Args((recorded(tmp_path / "a", climbing, kind="games"),)))
    line = capsys.readouterr().out.splitlines()[3]
    assert line == "| arm | 2 | 1 | 1,000 | 1 | 0 | 9 | – | – | – | – |"


def test_who_never_arrives(tmp_path, capsys):
    runs = (recorded(tmp_path / "a", climbing), recorded(tmp_path / "f", lambda step: 100, name="fresh"))
    changes.main(changes.Args(runs, fresh="fresh"))
    assert capsys.readouterr().out.splitlines()[2].split(" | ")[8] == "never"


def test_refusals(tmp_path):
    arm = recorded(tmp_path / "a", climbing)
    other = recorded(tmp_path / "b", climbing, name="other", boundaries=(0, 500))
    seeds = recorded(tmp_path / "c", climbing, name="third", seed=2)
    with pytest.raises(RunError, match="visit other tasks"):
        changes.main(changes.Args((arm, other)))
    with pytest.raises(RunError, match="--fresh fersh is none of the arms: arm"):
        changes.main(changes.Args((arm,), fresh="fersh"))
    with pytest.raises(RunError, match=r"third has seeds \[2\]"):
        changes.main(changes.Args((arm, seeds), fresh="arm"))
    with Run.create(tmp_path / "d", {"exp_name": "x", "seed": 1}, argv=["x.py"]) as run:
        run.scalar("train/loss", 1.0, 1)
        run.checkpoint(1, {})
        run.finish(1)
    with pytest.raises(RunError, match="no shift/task"):
        changes.main(changes.Args((tmp_path / "d",)))
