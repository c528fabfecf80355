"""The demo: its numbers from hand-made runs, its sentence in each case, and being stopped, continued, or failing."""

import io
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from runs.demo import command, design, summary, watch
from runs.demo.command import Args, main, next_folder, pictures
from runs.demo.design import Size, planned
from runs.demo.summary import Scores, scores, sentence, table
from runs.recording import Run, RunError, read_json, read_scalars, read_status
from runs.sweeps import run_job as run_job_module
from runs.sweeps.experiment import REPOSITORY
from runs.sweeps.run_job import News
from tests.runs.sweeps.fakes import job, starts, wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the fake script prints its cores")
SIZE = Size(levels=2, iterations=75)  # a window has 4,000 steps, the last fifth of a level 12,000
TINY = Size(levels=2, iterations=8)


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(run_job_module, "_POLL_SECONDS", 0.02)


def curve(*points):
    return np.array([step for step, _ in points]), np.array([value for _, value in points], dtype=float)


def returns(*points):
    return {design.RETURN: curve(*points)}


# Numbers.


def test_size_by_hand():
    assert (SIZE.level, SIZE.total, list(SIZE.changes)) == (60_000, 120_000, [60_000])
    assert list(Size(4, 10).changes) == [8_000, 16_000, 24_000]
    assert SIZE.level / summary.WINDOWS / 8 >= design.LIMIT  # each environment ends an episode in each window


def test_scores_weigh_windows_alike_however_many_episodes_end_in_them():
    run = returns(
        (100, 10), (48_000, 50), (48_001, 100), (52_000, 200), (60_000, 330),  # 60,000 still belongs to level 1
        (60_001, 20), (60_002, 40), (64_000, 60), (108_000, 10), (108_001, 70),
    )  # fmt: skip
    found = scores(run, SIZE)
    assert found.ends == [(150 + 330) / 2, 70]
    assert found.later == (40 + 10 + 70) / 3


def test_level_without_an_episode_is_a_dash_and_not_learned():
    found = scores(returns((60_000, 300)), SIZE)
    assert found.ends[0] == 300 and math.isnan(found.ends[1]) and math.isnan(found.later)
    assert found.learned == [True, False]
    assert table({"plain": found}, {"plain": "plain PPO"}).splitlines()[2].split() == ["plain", "PPO", "-", "300", "-"]


def test_table_by_hand():
    measured = {"plain": Scores(9.4, [399.6, 9, 9]), "rewarmed": Scores(310.5, [250, 360, 1])}
    assert table(measured, {"plain": "plain PPO", "rewarmed": "projected"}) == (
        "mean return   levels 2-3   end of 1   end of 2   end of 3\n"
        "---------------------------------------------------------\n"
        "plain PPO              9        400          9          9\n"
        "projected            310        250        360          1"
    )


LOST, KEPT, HALF = Scores(9, [400, 9, 9]), Scores(300, [400, 390, 380]), Scores(150, [400, 300, 9])


@pytest.mark.parametrize(
    ("plain", "rewarmed", "said"),
    [
        (LOST, KEPT, ["none of the 2", "all of the 2", "plain PPO did not learn again"]),
        (LOST, HALF, ["none of the 2", "1 of the 2", "the re-warmed agent learned more often"]),
        (HALF, KEPT, ["1 of the 2", "all of the 2", "the re-warmed agent learned more often"]),
        (KEPT, HALF, ["all of the 2", "1 of the 2", "plain PPO did better"]),
        (KEPT, KEPT, ["all of the 2", "plain PPO did not stop learning"]),
        (LOST, LOST, ["none of the 2", "the two do not differ"]),
        (HALF, HALF, ["1 of the 2", "the two do not differ"]),
        (Scores(9, [20, 9, 9]), KEPT, ["Plain PPO did not learn the first level (20 of 400)", "does not show"]),
        (LOST, Scores(300, [50, 390, 380]), ["agent did not learn the first level (50 of 400) and learned all"]),
    ],
)
def test_sentence_says_what_the_numbers_show(plain, rewarmed, said):
    one = sentence(plain, rewarmed)
    assert one.startswith("Plain PPO ") and one.count(".") == 1 and one.endswith(".")
    assert all(words in one for words in said)
    verdicts = ["learn again", "more often", "did better", "did not stop", "do not differ", "does not show"]
    assert sum(verdict in one for verdict in verdicts) == 1


def test_a_level_counts_as_learned_from_the_threshold_on():
    assert Scores(0, [summary.LEARNED, summary.LEARNED - 0.1]).learned == [True, False]


# Progress.


def recorded(directory, *points):
    with Run.create(directory, {"seed": 1}, argv=["x.py"]) as run:
        for step, tag, value in points:
            run.scalar(tag, value, step)
    return directory


def test_latest_step_and_return_are_those_of_the_level(tmp_path):
    assert watch.latest(tmp_path / "none", SIZE) == (0, None)
    before = [(59_000 + k, design.RETURN, 400.0) for k in range(30)]
    first = recorded(tmp_path / "a", *before)
    assert watch.latest(first, SIZE) == (59_029, 400.0)
    boundary = recorded(tmp_path / "b", *before, (60_001, "losses/entropy", 0.5))
    assert watch.latest(boundary, SIZE) == (60_001, None)
    after = [(60_002 + k, design.RETURN, float(k)) for k in range(40)]
    second = recorded(tmp_path / "c", *before, *after, (70_000, "charts/SPS", 1.0))
    assert watch.latest(second, SIZE) == (70_000, np.mean(range(20, 40)))


def test_a_line_that_is_not_complete_is_left_out(tmp_path):
    (tmp_path / "scalars.csv").write_text(f"step,tag,value\n8,{design.RETURN},20.0\n16,{design.RETURN},3")
    assert watch.latest(tmp_path, SIZE) == (8, 20.0)


@pytest.mark.parametrize(("step", "level"), [(0, 1), (1, 1), (60_000, 1), (60_001, 2), (120_000, 2)])
def test_level_of_a_step(step, level):
    assert watch.level_of(step, SIZE) == level


def watched(tmp_path, live):
    jobs, out = planned(tmp_path, 3, SIZE), io.StringIO()
    return watch.Watch(jobs, SIZE, out, live), jobs, out


def test_lines_say_step_level_and_return(tmp_path):
    shown, jobs, out = watched(tmp_path, live=False)
    recorded(jobs[0].directory, (60_010, design.RETURN, 12.4))
    shown.take(News(jobs[0].id, "running", "started"))
    shown.show()
    assert out.getvalue() == ""  # not yet ten seconds
    shown._drawn_at -= 10
    shown.show()
    assert out.getvalue() == (
        "plain     step  60,010 of 120,000   level 2 of 2   mean return   12\n"
        "rewarmed  step       0 of 120,000   level 1 of 2   mean return none   waiting\n"
    )
    shown.show()
    assert len(out.getvalue().splitlines()) == 2


def test_lines_are_redrawn_in_place_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    shown, _, out = watched(tmp_path, live=True)
    shown.show()
    shown._drawn_at -= 1
    shown.show()
    assert out.getvalue().count("\x1b[2F\x1b[J") == 1
    assert max(map(len, out.getvalue().splitlines())) <= 39 + len("\x1b[2F\x1b[J")


@pytest.mark.parametrize("state", ["finished", "failed", "interrupted"])
def test_away_from_a_terminal_an_agent_that_has_ended_is_shown_once(tmp_path, state):
    shown, jobs, out = watched(tmp_path, live=False)
    for news in (News(jobs[0].id, state, ""), News(jobs[1].id, "running", "started")):
        shown.take(news)
    for _ in range(3):
        shown._drawn_at -= 10
        shown.show()
    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["plain", *["rewarmed"] * 3]
    assert out.getvalue().count(state) == 1
    shown.take(News(jobs[1].id, "finished", ""))
    shown.close()
    shown.close()
    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["plain", *["rewarmed"] * 4]


def test_on_a_terminal_an_agent_that_has_ended_keeps_its_line(tmp_path):
    shown, jobs, out = watched(tmp_path, live=True)
    shown.take(News(jobs[0].id, "finished", ""))
    shown.show()
    shown.close()
    assert out.getvalue().count("plain") == out.getvalue().count("rewarmed") == 2


def test_what_is_unusual_has_its_own_line(tmp_path):
    shown, jobs, out = watched(tmp_path, live=False)
    shown.take(News(jobs[0].id, "blocked", "another launcher, or a run left by one, has it"))
    shown.take(News(jobs[1].id, "running", "resumed at step 8,000", resumed=True))
    first, second = out.getvalue().splitlines()
    assert first.endswith("plain: another process trains this agent; following it")
    assert second.endswith("rewarmed: resumed at step 8,000")


# Folders.


def test_folders_of_other_seeds_and_of_earlier_demos_do_not_collide(tmp_path):
    logs = tmp_path / "logs"
    assert next_folder(logs, 3, SIZE) == logs / "s3"
    for number, name in enumerate(("s3", "s3-2"), start=2):
        (logs / name).mkdir(parents=True)
        assert next_folder(logs, 3, SIZE) == logs / name  # nothing in it
        pictures(logs / name)[0].touch()
        assert next_folder(logs, 3, SIZE) == logs / name  # killed while it drew
        pictures(logs / name)[1].touch()
        assert next_folder(logs, 3, SIZE) == logs / f"s3-{number}"
    assert next_folder(logs, 4, SIZE) == logs / "s4"


def test_folder_with_runs_of_another_size_is_left_alone(tmp_path):
    plain = planned(tmp_path / "s3", 3, SIZE)[0]
    Run.create(
        plain.directory, {"seed": 3, "total_timesteps": 7}, argv=["agents/ppo_control.py", "levels-plain"]
    ).finish(7)
    assert next_folder(tmp_path, 3, SIZE) == tmp_path / "s3-2"


# The command, with runs of the fake script, which counts.


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """Calls the command with two fake runs; these flags are those of the first one."""
    reported = []
    monkeypatch.setattr(command, "report", lambda *arguments: reported.append(arguments))
    monkeypatch.setattr(sys, "argv", ["python -m runs demo"])

    def call(both=(), **flags):
        jobs = [job(tmp_path, "plain", **dict(both), **flags), job(tmp_path, "rewarmed", **dict(both))]
        monkeypatch.setattr(command, "planned", lambda *_: jobs)
        return main(Args(3, tmp_path / "logs"), TINY), jobs, reported

    return call


def test_both_agents_are_trained_then_reported(faked, capsys):
    code, jobs, reported = faked()
    assert (code, [read_status(j.directory)["status"] for j in jobs]) == (0, ["finished"] * 2)
    assert len(reported) == 1 and reported[0][0] == jobs
    assert "side by side" in capsys.readouterr().out or len(os.sched_getaffinity(0)) == 1


def test_with_one_core_they_train_one_after_the_other(faked, capsys, monkeypatch):
    monkeypatch.setattr(command, "available_cores", lambda: [0])
    assert faked()[0] == 0
    assert "one after the other, on the one core there is" in capsys.readouterr().out


def test_a_crash_is_one_line_and_stops_the_other_agent(faked, capsys):
    code, jobs, reported = faked(both={"seconds": 0.02, "total_updates": 2000}, crash_at=7, crashes=9)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"python -m runs demo: plain failed: exited with code 3: about to crash (its output is in {jobs[0].log})"
    )
    assert (code, reported, starts(jobs[0])) == (1, [], 1)
    assert read_status(jobs[1].directory)["status"] == "interrupted"


def test_ctrl_c_saves_both_and_the_same_command_continues(faked, capsys, tmp_path):
    both = {"seconds": 0.02, "total_updates": 150, "every": 1000}
    files = [tmp_path / "fake" / "smoke" / name / "status.json" for name in ("plain", "rewarmed")]

    def press():
        wait_until(lambda: all(file.exists() for file in files))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    code, jobs, reported = faked(both)
    thread.join()
    assert (code, reported) == (130, [])
    assert [read_status(j.directory)["status"] for j in jobs] == ["interrupted"] * 2
    assert "interrupted; run the same command again to resume" in capsys.readouterr().err
    assert faked(both)[0] == 0 and len(reported) == 1
    assert [len(read_json(j.directory / "provenance.json")["resumed"]) for j in jobs] == [1, 1]
    assert capsys.readouterr().out.count("resumed at step") == 2


def test_second_demo_follows_agents_of_the_first(faked, tmp_path, capsys):
    first = job(tmp_path, "plain", seconds=0.05, total_updates=60)
    code = "import pickle, sys; from runs.sweeps.run_job import run_job; run_job(pickle.load(sys.stdin.buffer))"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=REPOSITORY)
    other.stdin.write(pickle.dumps(first))
    other.stdin.close()
    wait_until((first.directory / "status.json").exists)
    assert faked({"total_updates": 60}, seconds=0.05)[0] == 0
    assert other.wait(timeout=60) == 0 and starts(first) == 1
    assert "plain: another process trains this agent; following it" in capsys.readouterr().out


@pytest.mark.parametrize("installed", [True, False])
def test_without_matplotlib_everything_else_is_shown(tmp_path, monkeypatch, capsys, installed):
    if installed:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    jobs = planned(tmp_path / "s3", 3, SIZE)
    for agent, value in zip(jobs, (9.0, 300.0), strict=True):
        points = [(step, design.RETURN, value) for step in range(4_000, SIZE.total + 1, 4_000)]
        recorded(agent.directory, *points, (4_000, summary.ENTROPY, 0.5), (4_000, summary.ELR, 1e-3))
    command.report(jobs, SIZE, 3, tmp_path / "s3")
    out = capsys.readouterr().out
    assert re.search(r"^plain PPO +9 +9 +9$", out, re.M) and re.search(
        r"^projected, re-warmed +300 +300 +300$", out, re.M
    )
    assert "this seed does not show" in " ".join(out.split()) and "--logdir" in out
    assert ("pip install -e '.[plots]'" in out) is not installed
    assert [picture.exists() for picture in pictures(tmp_path / "s3")] == [installed] * 2


def test_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot make runs in \S+/file/s3: Not a directory"):
        main(Args(3, tmp_path / "file"), TINY)


def test_negative_seed_is_refused():
    with pytest.raises(ValueError, match="--seed must be at least 0, got -1"):
        Args(-1)


# The real agents.

DRIVER = f"""
import sys
from pathlib import Path
from runs.demo.command import Args, main
from runs.demo.design import Size
from runs.recording import exit_with_one_line
sys.argv[0] = "python -m runs demo"
exit_with_one_line(lambda: sys.exit(main(Args(101, Path(sys.argv[1])), {TINY!r})))
"""


def demo(logs, **options):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(logs)], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def alive(directory):
    """Whether a process writes this run."""
    return run_job_module.writer(replace(planned(directory.parent, 101, TINY)[0], directory=directory)) is not None


def test_interrupted_demo_is_continued_to_its_table_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [tmp_path / "s101" / name for name in ("plain", "rewarmed")]
    first = demo(tmp_path)
    wait_until(lambda: all((run / "checkpoint.pt").exists() for run in runs))
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 130, (out, err)
    assert err == "python -m runs demo: interrupted; run the same command again to resume from the checkpoints\n"
    assert [read_status(run)["status"] for run in runs] == ["interrupted"] * 2

    second = demo(tmp_path)
    out, err = second.communicate(timeout=300)
    assert (second.returncode, err) == (0, ""), out
    assert out.count(": resumed at step ") == 2
    assert [read_status(run)["step"] for run in runs] == [TINY.total] * 2
    assert [len(read_json(run / "provenance.json")["resumed"]) for run in runs] == [1, 1]
    assert read_scalars(runs[0])["shift/boundary"] == [(TINY.level, 1.0)]
    (cells,) = re.findall(r"^plain PPO +(\d+) +(\d+) +(\d+)$", out, re.M)
    curves = {design.RETURN: curve(*read_scalars(runs[0])[design.RETURN])}
    expected = scores(curves, TINY)
    assert [int(cell) for cell in cells] == [round(value) for value in (expected.later, *expected.ends)]
    assert re.search(r"^Plain PPO (learned|did not learn) the first level", out, re.M)
    assert f"--logdir {tmp_path / 's101'}\n" in out and "seed 101" in out
    for picture in pictures(tmp_path / "s101"):
        assert str(picture) in out and picture.stat().st_size > 10_000
    assert next_folder(tmp_path, 101, TINY) == tmp_path / "s101-2"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux tells the agents")
def test_agents_of_a_killed_demo_save_and_stop(tmp_path):
    runs = [tmp_path / "s101" / name for name in ("plain", "rewarmed")]
    first = demo(tmp_path)
    wait_until(lambda: all((run / "checkpoint.pt").exists() for run in runs))
    first.kill()
    first.communicate()
    wait_until(lambda: not any(map(alive, runs)))
    assert [read_status(run)["status"] for run in runs] == ["interrupted"] * 2
