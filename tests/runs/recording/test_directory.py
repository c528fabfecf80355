"""Run directories: files, errors, and that a resumed run equals one that never stopped."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from runs.recording import Run, RunError, load_checkpoint, read_scalars, read_status, save_checkpoint
from runs.recording import directory as directory_module
from runs.recording import provenance as provenance_module
from runs.recording.directory import kept_steps, read_state
from runs.recording.events_file import EventFile
from runs.recording.lock import RunLock, is_held
from runs.recording.provenance import git_state, provenance

CONFIG = {"seed": 3, "rewarm": {"trigger": "cusum"}}
ARGV = [__file__, "--seed", "3"]
ROOT = Path(__file__).parents[3]


def create(directory):
    return Run.create(directory, CONFIG, argv=ARGV)


def events(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {t: [(e.step, e.value) for e in accumulator.Scalars(t)] for t in accumulator.Tags()["scalars"]}


def in_float32(curves):
    return {tag: [(s, float(np.float32(v))) for s, v in points] for tag, points in curves.items()}


def test_finished_run_has_configuration_provenance_and_scalars(tmp_path):
    directory = tmp_path / "runs" / "one"
    with create(directory) as run:
        assert read_status(directory)["status"] == "running"
        run.scalars({"losses/td_loss": 0.1, "charts/epsilon": 1}, 1)
        run.scalar("losses/td_loss", np.float32(0.1), np.int64(2))
        run.finish(2)
    assert json.loads((directory / "config.json").read_text()) == CONFIG
    record = json.loads((directory / "provenance.json").read_text())
    assert record["command"] == ARGV and record["versions"]["torch"] == torch.__version__
    assert {"python", "numpy", "gymnasium", "minatar", "ale-py", "tyro", "tensorboard", "rewarm"} < set(
        record["versions"]
    )
    assert set(record["git"]) == {"revision", "dirty"} and record["threads"] == torch.get_num_threads()
    assert read_status(directory)["status"] == "finished" and read_status(directory)["step"] == 2
    assert read_status(directory)["table_bytes"] == (directory / "scalars.csv").stat().st_size
    assert read_scalars(directory) == {
        "losses/td_loss": [(1, 0.1), (2, 0.10000000149011612)],
        "charts/epsilon": [(1, 1.0)],
    }


def test_values_are_read_back_without_loss_also_by_pandas(tmp_path):
    values = [0.1, 1 / 3, 1e-300, -1e300, math.pi * 1e17, float("inf"), -float("inf"), float("nan"), 5e-324]
    with create(tmp_path) as run:
        for step, value in enumerate(values):
            run.scalar("train/loss", value, step)
        run.finish(len(values))
    read = [v for _, v in read_scalars(tmp_path)["train/loss"]]
    assert list(map(repr, read)) == list(map(repr, values))
    frame = pandas.read_csv(tmp_path / "scalars.csv", converters={"value": float})
    assert list(frame.columns) == ["step", "tag", "value"]
    assert list(map(repr, map(float, frame["value"]))) == list(map(repr, values))


def test_event_file_has_the_scalars_of_the_table(tmp_path):
    with create(tmp_path) as run:
        run.layout({"rate": {"realised ELR": ("Multiline", ["^elr/fc\\.0$"])}})
        for step in range(50):
            run.scalars({"elr/fc.0": 1 / (step + 1), "charts/SPS": step * 1.5}, step)
        run.finish(50)
    assert events(tmp_path) == in_float32(read_scalars(tmp_path))


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.ones(2), np.ones(1), "1.0", None, 1j])
def test_values_that_are_not_numbers_are_refused(tmp_path, value):
    with create(tmp_path) as run, pytest.raises(ValueError, match="train/loss was given a"):
        run.scalar("train/loss", value, 0)


@pytest.mark.parametrize("step", [-1, 1.0, True, None])
def test_steps_that_are_not_whole_numbers_are_refused(tmp_path, step):
    with create(tmp_path) as run, pytest.raises(ValueError, match="a step is a whole number"):
        run.scalar("train/loss", 1.0, step)


def test_undocumented_tag_is_refused(tmp_path):
    with create(tmp_path) as run, pytest.raises(ValueError, match=r"losses/td_los.* did you mean losses/td_loss\?"):
        run.scalar("losses/td_los", 1.0, 0)


def test_own_scalar_is_in_the_table_and_in_tensorboard(tmp_path):
    with create(tmp_path) as run:
        run.scalar("custom/my_metric", 0.5, 3)
        run.finish(3)
    assert read_scalars(tmp_path) == events(tmp_path) == {"custom/my_metric": [(3, 0.5)]}


def record(run, steps):
    for step in steps:
        run.scalars({"train/loss": math.sin(step), "train/accuracy": step / 7}, step)


@pytest.mark.parametrize("torn", [0, 1, 7])
def test_killed_and_resumed_run_equals_one_that_never_stopped(tmp_path, torn):
    with create(tmp_path / "whole") as run:
        record(run, range(30))
        run.finish(30)
    run = create(tmp_path / "killed")
    record(run, range(10))
    run.checkpoint(9, {"counter": 9, "rng": np.arange(3, dtype=np.uint32)})
    record(run, range(10, 17))
    run.flush()
    run._lock.release()  # as the operating system does for a killed process; the status is still running
    with open(tmp_path / "killed" / "scalars.csv", "ab") as table:
        table.write(b"17,train/loss,0.12"[: torn * 2])
    with open(tmp_path / "killed" / "events.out.tfevents.000000", "ab") as file:
        file.write(b"\x2d\0\0\0\0\0\0\0\x11\x22\x33\x44rest"[: torn * 2])
    assert read_scalars(tmp_path / "killed")["train/loss"][-1][0] == 16  # the torn line is not read
    with Run.resume(tmp_path / "killed", argv=["x.py", "--resume"]) as run:
        state = run.take_state()
        assert run.step == 9 and state["counter"] == 9 and state["rng"].dtype == np.uint32
        with pytest.raises(RunError, match="already taken"):
            run.take_state()
        record(run, range(10, 30))
        run.finish(30)
    whole, resumed = ((tmp_path / name / "scalars.csv").read_bytes() for name in ("whole", "killed"))
    assert whole == resumed
    assert events(tmp_path / "killed") == events(tmp_path / "whole") == in_float32(read_scalars(tmp_path / "whole"))
    sessions = json.loads((tmp_path / "killed" / "provenance.json").read_text())["resumed"]
    assert [(s["step"], s["command"]) for s in sessions] == [(9, ["x.py", "--resume"])]


def test_resumed_run_whose_state_does_not_fit_loses_nothing(tmp_path):
    with create(tmp_path) as run:
        record(run, range(5))
        run.checkpoint(4, {"weights": 1})
        record(run, range(5, 9))
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.suffix == ".csv" or "tfevents" in p.name}
    with pytest.raises(KeyError), Run.resume(tmp_path) as run:
        run.take_state()["biases"]
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.suffix == ".csv" or "tfevents" in p.name} == before
    closed = Run.resume(tmp_path)
    closed.interrupt(4)
    with pytest.raises(RunError, match="is closed"):
        closed.flush()
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.suffix == ".csv" or "tfevents" in p.name} == before
    with Run.resume(tmp_path) as run:
        run.finish(4)
    assert read_scalars(tmp_path)["train/loss"][-1][0] == 4


def test_run_whose_files_cannot_be_opened_is_unlocked(tmp_path, monkeypatch):
    with create(tmp_path) as run:
        run.checkpoint(4, {})
    monkeypatch.setattr(directory_module, "EventFile", lambda *_: (_ for _ in ()).throw(RunError("no room")))
    run = Run.resume(tmp_path)
    with pytest.raises(RunError, match="no room"):
        run.finish(5)
    monkeypatch.undo()
    Run.resume(tmp_path).finish(4)


def test_table_shorter_than_at_the_checkpoint_is_refused(tmp_path):
    with create(tmp_path) as run:
        record(run, range(5))
        run.checkpoint(4, {})
    os.truncate(tmp_path / "scalars.csv", 20)
    with pytest.raises(RunError, match="lines are missing; restore it from a copy, or start a new run elsewhere"):
        Run.resume(tmp_path)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "lost": Path.unlink,
    "emptied": lambda path: os.truncate(path, 0),
    "shortened": lambda path: os.truncate(path, path.stat().st_size - 1),
    "bit": flip,
}


def stopped(directory, *ends, start=0):
    """A run that ended a process after each of these steps, at a checkpoint."""
    for k, end in enumerate(ends):
        with Run.resume(directory) if k else create(directory) as run:
            if k == 0:
                run.layout({"rate": {"ELR": ("Multiline", ["^elr/fc$"])}})
            record(run, range(start, end))
            run.checkpoint(end - 1, {})
        start = end


@pytest.mark.parametrize("damage", [*DAMAGE, "edited", "line removed, another added"])
def test_changed_table_is_refused_in_one_line_and_nothing_is_written(tmp_path, damage):
    stopped(tmp_path, 5, 9)
    path = tmp_path / "scalars.csv"
    if damage in DAMAGE:
        DAMAGE[damage](path)
    else:
        first, second, *rest = path.read_bytes().splitlines(keepends=True)
        changed = [second.replace(b"0.0", b"9.0")] if damage == "edited" else rest[:1]
        path.write_bytes(b"".join([first, *changed, *rest]))
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.name != "lock"}
    with pytest.raises(RunError, match=r"scalars\.csv") as caught:
        Run.resume(tmp_path)
    assert "\n" not in str(caught.value)
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir() if p.name != "lock"}


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_event_file_is_written_again_from_the_table(tmp_path, damage, number, capsys):
    stopped(tmp_path / "whole", 5, 9, 12)
    stopped(tmp_path / "damaged", 5, 9)
    path = tmp_path / "damaged" / f"events.out.tfevents.{number:06d}"
    DAMAGE[damage](path)
    with Run.resume(tmp_path / "damaged") as run:
        assert str(path) in capsys.readouterr().err
        record(run, range(9, 12))
        run.checkpoint(11, {})
    assert events(tmp_path / "damaged") == events(tmp_path / "whole") == in_float32(read_scalars(tmp_path / "whole"))
    with Run.resume(tmp_path / "damaged") as run:
        run.finish(11)
    assert capsys.readouterr().err == ""
    assert events(tmp_path / "damaged") == events(tmp_path / "whole")


def test_rewritten_event_file_has_the_grouping_of_charts(tmp_path):
    stopped(tmp_path, 5)
    (tmp_path / "events.out.tfevents.000000").unlink()
    with Run.resume(tmp_path) as run:
        run.finish(5)
    assert b"custom_scalars" in (tmp_path / "events.out.tfevents.000000").read_bytes()


def test_run_of_an_earlier_version_without_checksums_is_resumed(tmp_path):
    stopped(tmp_path, 5)
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    save_checkpoint(tmp_path / "checkpoint.pt", {key: saved[key] for key in ("step", "table_bytes", "state")})
    with Run.resume(tmp_path) as run:
        record(run, range(5, 7))
        run.finish(6)
    assert events(tmp_path) == in_float32(read_scalars(tmp_path))


def test_event_files_are_numbered_after_the_last_one(tmp_path):
    for number in ("000000", "000002"):
        (tmp_path / f"events.out.tfevents.{number}").write_bytes(b"")
    EventFile(tmp_path).file.close()
    assert (tmp_path / "events.out.tfevents.000003").exists()


def test_create_refuses_existing_runs_and_changes_nothing(tmp_path):
    finished, unfinished, early, foreign = (tmp_path / name for name in ("finished", "unfinished", "early", "foreign"))
    with create(finished) as run:
        run.finish(7)
    with create(unfinished) as run:
        run.checkpoint(5, {})
    with create(early) as run:
        run.interrupt(2)
    foreign.mkdir()
    (foreign / "scalars.csv").write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"}
    for directory, message in [
        (finished, r"finished run \(step 7\); choose another"),
        (unfinished, rf"unfinished run \(step 5\); resume it with --resume {unfinished}"),
        (early, "before its first checkpoint; choose another"),
        (foreign, "already holds scalars.csv"),
    ]:
        with pytest.raises(RunError, match=message):
            create(directory)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"}


def test_create_keeps_other_files(tmp_path):
    (tmp_path / "stdout.log").write_text("launched")
    with create(tmp_path) as run:
        run.finish(0)
    assert (tmp_path / "stdout.log").read_text() == "launched"


def test_runs_that_cannot_be_resumed_are_refused_in_one_line(tmp_path):
    with create(tmp_path / "finished") as run:
        run.checkpoint(5, {})
        run.finish(8)
    with create(tmp_path / "early") as run:
        run.interrupt(1)
    (tmp_path / "empty").mkdir()
    with create(tmp_path / "damaged") as run:
        run.checkpoint(1, {})
    (tmp_path / "damaged" / "checkpoint.pt").write_bytes(b"rewarm-")
    for name, message in [
        ("finished", "already finished at step 8"),
        ("early", "before its first checkpoint"),
        ("empty", "no config.json"),
        ("missing", "no such directory"),
        ("damaged", "truncated"),
    ]:
        with pytest.raises(RunError, match=message) as caught:
            Run.resume(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_end_of_the_block_sets_the_status(tmp_path):
    with pytest.raises(ZeroDivisionError), create(tmp_path / "error") as run:
        run.scalar("train/loss", 1.0, 4)
        raise ZeroDivisionError("by zero")
    status = read_status(tmp_path / "error")
    assert (status["status"], status["step"], status["message"]) == ("failed", 4, "ZeroDivisionError: by zero")
    assert read_scalars(tmp_path / "error") == {"train/loss": [(4, 1.0)]}
    with pytest.raises(KeyboardInterrupt), create(tmp_path / "ctrl-c"):
        raise KeyboardInterrupt
    assert read_status(tmp_path / "ctrl-c")["status"] == "interrupted"
    with create(tmp_path / "left"):
        pass
    assert read_status(tmp_path / "left")["status"] == "interrupted"


def test_closed_run_records_nothing(tmp_path):
    run = create(tmp_path)
    run.finish(0)
    for call in (lambda: run.scalar("train/loss", 1.0, 1), lambda: run.checkpoint(1, {}), lambda: run.finish(1)):
        with pytest.raises(RunError, match="is closed"):
            call()


def test_second_writer_is_refused_until_the_first_is_gone(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from runs.recording import Run\n"
        "run = Run.create(Path(sys.argv[1]), {}, argv=['x.py']); run.checkpoint(3, {}); print('open', flush=True)\n"
        "time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment, text=True
    ) as first:
        try:
            assert first.stdout.readline() == "open\n"
            for attempt in (lambda: Run.resume(tmp_path), lambda: create(tmp_path)):
                with pytest.raises(RunError, match=rf"written by another process \(process {first.pid}\)"):
                    attempt()
        finally:
            first.send_signal(signal.SIGKILL)
    assert read_status(tmp_path)["status"] == "running"
    Run.resume(tmp_path).finish(3)  # the lock was released with its process


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("full", [0, 1], ids=["table", "events"])
def test_full_disk_while_recording_is_one_run_error(tmp_path, full, capfd):
    run = create(tmp_path)
    run.scalar("train/loss", 1.0, 0)
    file = run._opened_files()[full].file
    device = os.open("/dev/full", os.O_WRONLY)
    os.dup2(device, file._handle)
    os.close(device)
    with pytest.raises(RunError, match=f"in {tmp_path}: No space left"), run:
        run.finish(1)
    assert read_status(tmp_path)["status"] == "running"  # not finished: the numbers are not on the disk
    assert capfd.readouterr().err == ""
    with pytest.raises(RunError, match="before its first checkpoint"):  # and no longer locked
        create(tmp_path)


def test_directory_that_cannot_be_created_is_one_run_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make a run"):
        create(tmp_path / "file" / "run")


def test_revision_is_unknown_without_git_or_repository(tmp_path, monkeypatch):
    assert provenance_module.git_state(tmp_path) == {"revision": "unknown", "dirty": None}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance_module.git_state(ROOT) == {"revision": "unknown", "dirty": None}


def test_git_revision_and_changes_are_those_of_the_source_tree(tmp_path):
    def git(*command):
        who = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", tmp_path, *who, *command], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "script.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    revision = git("rev-parse", "HEAD").strip()
    assert provenance_module.git_state(tmp_path) == {"revision": revision, "dirty": False}
    (tmp_path / "script.py").write_text("2")
    assert provenance_module.provenance([str(tmp_path / "script.py")])["git"] == {"revision": revision, "dirty": True}


def test_importing_recording_imports_neither_torch_tensorboard_nor_tyro():
    code = "import sys, runs.recording; print([m for m in sys.modules if 'tensorboard' in m or m in ('torch', 'tyro')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_provenance_keeps_the_local_version_of_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")  # pip's metadata may say 2.14.1 only
    assert provenance(ARGV)["versions"]["torch"] == "2.14.1+cu130"


def test_git_state_ignores_git_dir_and_reads_names_that_are_not_utf_8(tmp_path, monkeypatch):
    for name in ("ours", "other"):
        subprocess.run(["git", "init", "-q", tmp_path / name], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.quotePath=false"]
    commit = ["git", "-C", tmp_path / "ours", *identity, "commit", "-q", "--allow-empty", "-m", "first"]
    subprocess.run(commit, check=True)
    expected = git_state(tmp_path / "ours")
    assert len(expected["revision"]) == 40 and expected["dirty"] is False
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert git_state(tmp_path / "ours") == expected
    (tmp_path / "ours" / os.fsdecode(b"caf\xe9")).touch()
    subprocess.run(["git", "-C", tmp_path / "ours", "config", "core.quotePath", "false"], check=True, env=without_git())
    assert git_state(tmp_path / "ours")["dirty"] is True


def without_git() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


# kept checkpoints


def kept(directory):
    """A run with a checkpoint at step 1, which is not kept, and pieces of two."""
    run = Run.create(directory, {}, argv=["script.py"])
    run.pieces.write("a", {"n": 1})
    run.checkpoint(1, {"memory": {"pieces": [("a",)]}})
    run.pieces.write("b", {"n": 2})
    return run


def test_kept_checkpoints_and_their_pieces_outlive_the_run(tmp_path):
    run = kept(tmp_path / "r")
    state = {"memory": {"pieces": [("a",), ("b",)]}}
    run.checkpoint(2, state, keep=["a", "b"])
    run.pieces.keep_only(["b"])
    run.checkpoint(3, {"memory": {"pieces": [("b",)]}})
    run.finish(3)
    assert kept_steps(tmp_path / "r") == [2] and not (tmp_path / "r" / "pieces").exists()
    saved = read_state(tmp_path / "r", 2)
    assert (saved.step, saved.state) == (2, state)
    assert [saved.pieces.read(name) for name in ("a", "b")] == [{"n": 1}, {"n": 2}]
    assert read_state(tmp_path / "r").step == 3
    with pytest.raises(RunError, match="kept checkpoints are: 2; its latest checkpoint is of step 3"):
        read_state(tmp_path / "r", 1)


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOTSUP, errno.EXDEV])
def test_without_hard_links_kept_checkpoints_are_copies(tmp_path, monkeypatch, error):
    def refuse(*_):
        raise OSError(error, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    run = kept(tmp_path / "r")
    run.checkpoint(2, {"x": 1}, keep=["a"])
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 2
    assert read_state(tmp_path / "r", 2).pieces.read("a") == {"n": 1}
    assert not [path for path in (tmp_path / "r").rglob("*.tmp")]


@pytest.mark.parametrize("links", [0, 1])
def test_full_disk_while_keeping_leaves_the_checkpoint_before(tmp_path, monkeypatch, links):
    """Killed there, the run is in the same state: it continues from the checkpoint before, and keeps this one again."""
    real, made = os.link, []

    def full(*paths):
        if len(made) == links:
            raise OSError(errno.ENOSPC, "No space left on device")
        made.append(paths)
        real(*paths)

    run = kept(tmp_path / "r")
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(RunError, match="No space left on device"):
        run.checkpoint(2, {"x": 1}, keep=["a"])
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 1
    run.interrupt(2)
    monkeypatch.setattr(os, "link", real)
    again = Run.resume(tmp_path / "r", argv=["script.py"])
    assert again.step == 1
    again.checkpoint(2, {"x": 2}, keep=["a"])
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["state"] == read_state(tmp_path / "r", 2).state == {"x": 2}
    assert not [path for path in (tmp_path / "r").rglob("*.tmp")]


def test_a_lock_is_held_while_its_process_lives(tmp_path):
    path = tmp_path / "lock"
    assert not is_held(path) and not path.exists()
    code = (
        "import sys; from pathlib import Path; from runs.recording.lock import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        before = path.read_bytes(), path.stat().st_mtime_ns
        assert before[0] == f"process {process.pid}\n".encode()
        assert is_held(path) and is_held(path)  # asking does not release it
        process.kill()
    assert not is_held(path) and before == (path.read_bytes(), path.stat().st_mtime_ns)
    lock = RunLock(path)
    assert is_held(path)
    lock.release()
    assert not is_held(path)


def test_a_lock_that_cannot_be_looked_at_counts_as_held(tmp_path, monkeypatch):
    (tmp_path / "lock").touch()
    assert not is_held(tmp_path / "lock" / "lock")  # in an event file, there is none

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert is_held(tmp_path / "lock")
