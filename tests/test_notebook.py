"""docs/notebook.ipynb: stored outputs that anyone may have seen, commands that exist, and cells that run."""

import ast
import base64
import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import sys
import types
from pathlib import Path

import pytest

from agents import grokking
from runs.__main__ import COMMANDS
from runs.demo import command as demo
from runs.demo.design import Size
from runs.demo.summary import LEARNED
from runs.recording import parse
from tests.documents import ROOT, python_blocks
from tests.test_project import anchors

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
CONTENT = json.loads(NOTEBOOK.read_text())
CELLS = CONTENT["cells"]
CODE = {cell["id"]: "".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"}
OUTPUTS = {cell["id"]: cell["outputs"] for cell in CELLS if cell["cell_type"] == "code"}
PROSE = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
LINE = re.compile(r"^( *)([!%])(.+)$", re.M)
"""what IPython runs in a shell (!), or itself (%)"""


def as_python(code: str) -> str:
    """Lines for IPython as calls of `shell` and `magic`."""
    names = {"!": "shell", "%": "magic"}
    return LINE.sub(lambda line: f"{line[1]}{names[line[2]]}({line[3]!r})", code)


def commands() -> list[list[str]]:
    """Words of every command after `python`, up to the pipe."""
    lines = [line[3] for code in CODE.values() for line in LINE.finditer(code) if line[2] == "!"]
    found = [re.fullmatch(r"python (.+?) \| (?:cat|tail -n 4)", line) for line in lines]
    assert all(found), lines
    return [shlex.split(match[1]) for match in found]


def module(name: str) -> types.ModuleType:
    """A file of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def printed(cell: str) -> str:
    return "".join("".join(output["text"]) for output in OUTPUTS[cell] if output["output_type"] == "stream")


def pictures(cell: str) -> list[bytes]:
    drawn = (output.get("data", {}).get("image/png") for output in OUTPUTS[cell])
    return [base64.b64decode("".join(data)) for data in drawn if data]


# What is stored.


def test_format():
    assert (CONTENT["nbformat"], CONTENT["nbformat_minor"]) == (4, 5)
    assert CONTENT["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    assert all("execution" not in cell["metadata"] for cell in CELLS)  # times: a difference in every line of a diff


def test_all_cells_were_executed_once_from_top_to_bottom():
    counts = [cell["execution_count"] for cell in CELLS if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert all(OUTPUTS.values())


def test_outputs_have_no_errors_and_no_progress_of_a_terminal():
    for cell, outputs in OUTPUTS.items():
        assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs), cell
        assert not re.search(r"[\x1b\r\x08]", printed(cell)), cell
        assert not re.search(r"Traceback|Warning|[Ee]rror:|failed", printed(cell)), cell


def test_streams_are_stored_in_one_piece():
    def stream(name, text):
        return {"output_type": "stream", "name": name, "text": text}

    pieces = [stream("stdout", "a\r\n"), stream("stdout", "b\n"), stream("stderr", "c\n"), stream("stdout", "d\n")]
    pieces.insert(3, {"output_type": "display_data", "data": {}})
    whole = module("execute_notebook").joined(pieces)
    assert whole == [stream("stdout", "a\nb\n"), *pieces[2:]]
    assert all(len(outputs) == 1 for outputs in OUTPUTS.values())


def test_outputs_are_those_of_the_commands():
    assert re.search(r"^projected, re-warmed +\d+ ", printed("demo"), re.M)
    assert "learning rate re-warmed at each change" in printed("demo")
    assert all("finished 2,000 updates in runs/logs/" in printed(cell) for cell in ("grokking", "free"))
    assert printed("elr").count("'rewarm/event': 1.0") >= 1
    for cell in ("demo-picture", "grokking-picture"):
        (picture,) = pictures(cell)
        assert picture.startswith(b"\x89PNG")


def test_the_text_agrees_with_the_outputs():
    """What the cells below the outputs say of them."""
    accuracies = re.compile(r"^test accuracy (\S+), train accuracy (\S+)$", re.M)
    ends = [accuracies.search(printed(cell)).groups() for cell in ("grokking", "free")]
    (test, train), (free_test, free_train) = (map(float, end) for end in ends)
    assert min(train, free_train) >= 0.99 and test >= 0.99 and free_test < 0.2
    scores = re.findall(r"^(?:plain PPO|projected, re-warmed) +([\d ]+)$", printed("demo"), re.M)
    plain, rewarmed = ([int(number) for number in row.split()] for row in scores)
    assert max(plain[2:]) < LEARNED <= min(rewarmed[1:])  # mean over levels 2 to 5, then the end of each level
    updates = [int(line.split()[0]) for line in printed("elr").splitlines() if "rewarm/event" in line]
    assert len(updates) == 1 and 4000 < updates[0] <= 4200


def test_nothing_stored_names_a_machine():
    text = PROSE + "".join((*CODE.values(), *map(printed, CODE)))
    assert re.findall(r"(?<![\w.:/<`~])/[A-Za-z]\w*/\S*", text) == []
    assert not re.search(r"[A-Z]:\\|~/|site-packages", text)


def test_it_is_small():
    assert NOTEBOOK.stat().st_size < 400_000


def test_pictures_have_an_alternative_text():
    assert [cell["id"] for cell in CELLS if cell["cell_type"] == "code" and "alt" in cell["metadata"]] == [
        cell for cell in CODE if pictures(cell)
    ]


# What it says.


def test_it_shows_the_loop_of_the_readme():
    (readme,) = python_blocks("README.md", "elr in your own loop")
    assert CODE["elr"] == readme.rstrip("\n")


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?://)([^)#\s]+)(?:#([^)\s]+))?\)", PROSE)
    assert len(links) >= 5
    for link, anchor in links:
        target = NOTEBOOK.parent / link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), f"{link}#{anchor}"


def test_it_is_linked():
    assert "](docs/notebook.ipynb)" in (ROOT / "README.md").read_text()
    assert "](notebook.ipynb)" in (ROOT / "docs" / "index.md").read_text()


def test_its_page_on_the_site_has_text_code_outputs_and_pictures():
    pytest.importorskip("mkdocs")
    page = module("hooks").notebook_page(NOTEBOOK.read_text())
    assert page.startswith("# rewarm in a notebook\n")
    assert f"```python\n{CODE['demo']}\n```\n\n\n```text\n{printed('demo').rstrip()}\n```" in page
    assert len(re.findall(r'^<img alt="\w[^"]+" src="data:image/png;base64,[\w+/=]+">$', page, re.M)) == 2


# What it runs.


def test_commands_are_accepted():
    for words in commands():
        if words[:2] == ["-m", "runs"]:
            assert words[2:] == ["demo"] and "demo" in COMMANDS
            continue
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                assert words[0] == "agents/grokking.py"
                parse(grokking.Args, grokking.PRESETS, words[1:])
            except SystemExit:
                pytest.fail(errors.getvalue())


@pytest.mark.parametrize("cell", CODE)
def test_cells_compile(cell):
    ast.parse(as_python(CODE[cell]))


def test_cells_run_next_to_a_clone(tmp_path, monkeypatch):
    """In order, with short runs. The demo and the loop of the README are run by test_demo.py and test_use_elr.py."""
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    matplotlib.use("Agg")
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "agents").symlink_to(ROOT / "agents")
    ran, shown = [], []

    def shell(line):
        words = shlex.split(line.partition("|")[0])[1:]
        ran.append(words)
        if words == ["-m", "runs", "demo"]:
            args = demo.Args()
            for picture in demo.pictures(demo.next_folder(args.logs, args.seed, Size())):
                picture.parent.mkdir(parents=True, exist_ok=True)
                picture.touch()
        else:
            quick = ["--total-updates", "60", "--evaluations-per-decade", "2", "--probe.every", "0"]
            grokking.main(parse(grokking.Args, grokking.PRESETS, [*words[1:], *quick]))

    def magic(line):
        pytest.fail(f"nothing is missing, but the notebook runs %{line}")

    display = types.ModuleType("IPython.display")
    display.Image = lambda filename, width: shown.append(filename)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setenv("PATH", os.environ["PATH"])  # the notebook's change of it ends with the test
    monkeypatch.chdir(tmp_path)
    names = {"shell": shell, "magic": magic}
    for cell in [cell for cell in CODE if cell != "elr"]:
        exec(compile(as_python(CODE[cell]), cell, "exec"), names)
    assert Path.cwd() == tmp_path / "clone"
    assert Path(shutil.which("python")).parent == Path(sys.executable).parent
    assert ran == commands() and shown == ["runs/logs/demo/s1/demo.png"]
    left, right = names["figure"].axes
    assert [line.get_label() for line in right.lines] == ["projected", "not projected"]
    assert [len(line.get_xdata()) > 1 for line in (*left.lines, *right.lines)] == [True] * 6
    free, projected = (line.get_ydata()[-1] for line in reversed(right.lines))
    assert free != projected  # two runs
    names["plt"].close("all")


def test_without_the_repository_the_first_cell_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="Clone or upload the repository"):
        exec(compile(as_python(CODE["set-up"]), "set-up", "exec"), {})


def test_the_first_cell_installs_what_is_missing(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tyro" else name)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.chdir(ROOT / "docs")
    exec(compile(as_python(CODE["set-up"]), "set-up", "exec"), {"magic": asked.append})
    assert asked == ['pip install -q -e ".[plots]"'] and Path.cwd() == ROOT
