"""Runs that words on a command line mean: directories, folders, patterns, and what is refused."""

import pytest

from runs.analysis.found_runs import found_runs
from runs.recording import Run, RunError

PAGE = "mark"


def ours(directory):
    Run.create(directory, {}, argv=["x.py"]).finish(0)
    return directory


def foreign(directory):
    directory.mkdir(parents=True)
    (directory / "events.out.tfevents.1.host").write_bytes(b"")
    return directory


def names(*words):
    return [path.name for path in found_runs([str(word) for word in words], PAGE)]


def test_directories_folders_patterns_and_event_files(tmp_path):
    for name in ("b", "a", "deep/er/c"):
        ours(tmp_path / "logs" / name)
    foreign(tmp_path / "logs" / "cleanrl" / "d")
    assert names(tmp_path / "logs" / "b") == ["b"]
    assert names(tmp_path / "logs") == ["a", "b", "d", "c"]
    assert names(tmp_path / "logs" / "[ab]") == ["a", "b"]
    assert names(tmp_path / "logs" / "**" / "c") == ["c"]
    file = tmp_path / "logs" / "cleanrl" / "d" / "events.out.tfevents.1.host"
    assert found_runs([str(file)], PAGE) == [file]


def test_a_run_that_several_words_mean_is_found_once(tmp_path):
    ours(tmp_path / "a")
    ours(tmp_path / "b")
    assert names(tmp_path / "b", tmp_path, tmp_path / "b" / ".." / "a") == ["b", "a"]


def test_pages_hidden_folders_and_what_is_inside_a_run_are_left_out(tmp_path):
    ours(tmp_path / "a")
    foreign(tmp_path / "a" / "inside")
    foreign(tmp_path / ".hidden")
    foreign(tmp_path / "page" / "arm")
    (tmp_path / "page" / PAGE).touch()
    assert names(tmp_path) == ["a"]


def test_words_without_a_run_are_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder").mkdir()
    for word in ("missing", "miss*"):
        with pytest.raises(RunError, match=rf"no run in .*{word[:4]}.*: there is no such file or directory"):
            names(tmp_path / word)
    for word in ("folder", "notes.txt", "*.txt"):
        with pytest.raises(RunError, match="it holds no run"):
            names(tmp_path / word)
