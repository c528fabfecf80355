"""Pieces of a state next to the checkpoint that names them."""

from __future__ import annotations

import numpy as np
import pytest

from runs.recording import Pieces, Run, RunError


def test_piece_is_restored_exactly(tmp_path):
    pieces = Pieces(tmp_path / "pieces")
    content = {"frames": np.arange(7, dtype=np.uint8), "first": 3}
    pieces.write("replay-0-0", content)
    found = pieces.read("replay-0-0")
    assert found["first"] == 3 and found["frames"].dtype == np.uint8 and found["frames"].tolist() == list(range(7))


def test_only_named_pieces_are_kept(tmp_path):
    pieces = Pieces(tmp_path / "pieces")
    for name in ("a", "b", "c"):
        pieces.write(name, {"x": 1})
    pieces.keep_only(["b", "never-written"])
    assert [path.name for path in (tmp_path / "pieces").iterdir()] == ["b.pt"]
    pieces.keep_only([])
    assert not (tmp_path / "pieces").exists()
    pieces.keep_only([])  # nothing there: nothing to do


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "a.pt", "-a"])
def test_bad_names_of_pieces_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="the name of a piece must have"):
        Pieces(tmp_path).write(name, {})


def test_missing_and_damaged_pieces_are_one_line(tmp_path):
    pieces = Pieces(tmp_path / "pieces")
    with pytest.raises(RunError, match=r"cannot read the checkpoint .*gone\.pt"):
        pieces.read("gone")
    pieces.write("hurt", {"x": np.zeros(1000)})
    path = tmp_path / "pieces" / "hurt.pt"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"hurt\.pt is damaged"):
        pieces.read("hurt")


def test_unwritable_directory_of_pieces_is_one_line(tmp_path):
    (tmp_path / "pieces").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write a\.pt in .*pieces"):
        Pieces(tmp_path / "pieces").write("a", {})


def test_run_keeps_pieces_until_it_finishes(tmp_path):
    with Run.create(tmp_path / "run", {}, argv=["x"]) as run:
        run.pieces.write("a", {"x": 1})
        run.checkpoint(1, {"pieces": ["a"]})
    with Run.resume(tmp_path / "run", argv=["x"]) as run:
        (name,) = run.take_state()["pieces"]
        assert run.pieces.read(name) == {"x": 1}
        run.finish(2)
    assert not (tmp_path / "run" / "pieces").exists()
