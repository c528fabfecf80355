"""Progress of a launch: speeds, the table, lines of news, and the counts at the end."""

import io
import json

import pytest

from runs.sweeps.progress import Pace, Progress, duration, last_step, total_steps
from runs.sweeps.run_job import News
from tests.runs.sweeps.fakes import job


def progress(jobs, live=False):
    out = io.StringIO()
    return Progress(jobs, out, live), out


def test_pace_by_hand():
    pace = Pace()
    assert pace.per_second is None
    for now, step in ((0.0, None), (10.0, 100), (11.0, 100)):
        pace.see(now, step)
    assert pace.per_second is None
    pace.see(20.0, 600)
    pace.see(25.0, 600)  # nothing new on the disk: the speed does not change
    assert pace.per_second == 50.0
    pace.see(30.0, 400)  # resumed from an earlier checkpoint
    assert pace.per_second is None
    pace.see(40.0, 500)
    assert pace.per_second == 10.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(9, "9 s"), (200, "3 min"), (3600, "1 h 00 min"), (7500, "2 h 05 min"), (90_000, "1 d 01 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("table", "step"),
    [
        (None, None), ("", None), ("step,tag,value\n", None), ("step,tag,value\n5,a,1.0\n", 5),
        ("step,tag,value\n5,a,1.0\n10,a,2", 5), ("step,tag,value\n" + "123456,a,0.5\n" * 1000, 123456),
    ],
)  # fmt: skip
def test_last_step_is_that_of_the_last_complete_line(tmp_path, table, step):
    if table is not None:
        (tmp_path / "scalars.csv").write_text(table)
    assert last_step(tmp_path) == step


@pytest.mark.parametrize(
    ("config", "total"), [({"total_timesteps": 9}, 9), ({"total_updates": 8}, 8), ({"seed": 1}, None)]
)
def test_total_comes_from_the_configuration(tmp_path, config, total):
    assert total_steps(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert total_steps(tmp_path) == total


def test_lines_of_news_without_a_terminal(tmp_path):
    shown, out = progress([job(tmp_path, "a"), job(tmp_path, "b")])
    shown.take(News("fake/smoke/a", "running", "started"))
    shown.show()  # within the first minute: no summary
    shown._summary_at -= 60
    shown.show()
    shown.take(News("fake/smoke/a", "finished", "at step 20"))
    lines = [line[10:] for line in out.getvalue().splitlines()]  # without the time of day
    assert lines == [
        "fake/smoke/a: running, started",
        "0 of 2 finished, 1 running, 1 waiting",
        "fake/smoke/a: finished, at step 20",
    ]
    assert "\x1b" not in out.getvalue()


def test_table_is_redrawn_in_place_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "5")
    jobs = [job(tmp_path, name) for name in "abcd"]
    shown, out = progress(jobs, live=True)
    jobs[0].directory.mkdir(parents=True)
    (jobs[0].directory / "config.json").write_text(json.dumps({"total_updates": 20_000}))
    (jobs[0].directory / "scalars.csv").write_text("step,tag,value\n1000,a,0.0\n")
    for name in "abc":
        shown.take(News(f"fake/smoke/{name}", "running", "started"))
    shown.show()
    (jobs[0].directory / "scalars.csv").write_text("step,tag,value\n1000,a,0.0\n3000,a,0.0\n")
    shown._paces["fake/smoke/a"].started = (shown._paces["fake/smoke/a"].started[0] - 200.0, 1000)
    shown._drawn_at -= 1
    before = len(out.getvalue())
    shown.show()
    redrawn = out.getvalue()[before:]
    assert redrawn.startswith("\x1b[4F\x1b[J")  # four lines: the summary, two runs, one line for the third
    head, a, b, more = redrawn.removeprefix("\x1b[4F\x1b[J").splitlines()
    assert head == "0 of 4 finished, 3 running, 1 waiting"
    assert a.split() == ["fake/smoke/a", "3,000", "of", "20,000", "10.0/s", "28", "min", "left", "started"]
    assert b.split() == ["fake/smoke/b", "started"]
    assert more == "... and 1 more"


def test_news_in_the_table_are_not_printed_as_lines(tmp_path):
    jobs = [job(tmp_path, name) for name in "abc"]
    shown, out = progress(jobs, live=True)
    for name, state, text, resumed in (
        ("a", "running", "started on node", False), ("a", "finished", "at step 20", False),
        ("b", "running", "resumed at step 5", True), ("b", "interrupted", "at step 7", False),
        ("c", "interrupted", "before it was started", False),
    ):  # fmt: skip
        shown.take(News(f"fake/smoke/{name}", state, text, resumed))
    assert [line[10:] for line in out.getvalue().splitlines()] == [
        "fake/smoke/b: running, resumed at step 5",
        "fake/smoke/b: interrupted, at step 7",
    ]


def test_close_prints_counts_and_logs_of_failed_jobs(tmp_path):
    jobs = [job(tmp_path, name) for name in "abcdef"]
    shown, out = progress(jobs)
    jobs[3].log.parent.mkdir(parents=True)
    jobs[3].log.write_text("".join(f"line {i}\n" for i in range(30)))
    for name, state, resumed in (
        ("a", "running", False), ("b", "running", False), ("b", "running", True), ("d", "running", False),
        ("c", "finished", False), ("b", "finished", True), ("a", "finished", False), ("d", "failed", False),
        ("e", "interrupted", False), ("f", "blocked", False), ("f", "finished", False),
        ("a", "running", False),  # late news from a node
    ):  # fmt: skip
        shown.take(News(f"fake/smoke/{name}", state, "", resumed))
    assert not shown.open
    shown.close()
    *_, log, counts = out.getvalue().rstrip().split("\n\n")
    assert counts == "6 runs: 1 run, 1 resumed, 2 already finished, 1 failed, 1 interrupted"
    assert log.splitlines()[0] == "fake/smoke/d failed: "
    assert [line.strip() for line in log.splitlines()[2:]] == [f"line {i}" for i in range(15, 30)]
