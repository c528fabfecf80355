"""Ctrl-C while a script, or a tool, is still importing: one line and exit code 130."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "agents").glob("*.py"))


def interrupted_at(module, folder, *words):
    """The result of a command in which Ctrl-C is pressed while it imports a module."""
    (folder / f"{module}.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_is_interrupted_while_it_imports_torch_says_so_in_one_line(name, tmp_path):
    result = interrupted_at("torch", tmp_path, f"agents/{name}.py", "--seed", "1")
    assert (result.returncode, result.stderr) == (130, f"{name}.py: interrupted\n")


def test_so_does_a_tool(tmp_path):
    result = interrupted_at("tyro", tmp_path, "-m", "runs", "list")
    assert (result.returncode, result.stderr) == (130, "python -m runs list: interrupted\n")


def test_a_program_that_imports_a_script_keeps_its_own_way(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import sys\nimport runs.quiet_imports as first\nassert sys.excepthook is first._quiet\n"
        "sys.excepthook = sys.__excepthook__\ndel sys.modules['runs.quiet_imports']\n"
        "import helper\nassert sys.excepthook is sys.__excepthook__\n"
    )
    (tmp_path / "helper.py").write_text("import runs.quiet_imports\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, tmp_path / "mine.py"], env=environment, check=True)
