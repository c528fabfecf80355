"""Scripts stay short enough to be read in one sitting."""

import ast
import importlib
from pathlib import Path

import pytest

from runs.recording import parse

AGENTS = Path(__file__).resolve().parents[2] / "agents"
MAX_LINES = {
    "dqn_minatar": 523,
    "ppo_minatar": 569,
    "ppo_control": 566,
    "dqn_atari": 536,
    "ppo_atari": 545,
    "rainbow_atari": 710,
    "grokking": 659,
    "warm_start": 689,
    "theory": 151,  # a simulation: no training
}
MAX_MAIN = 174
MAX_SUM = 4_946


def length(name):
    return len((AGENTS / f"{name}.py").read_text().splitlines())


def test_every_script_has_a_budget():
    assert {path.stem for path in AGENTS.glob("*.py")} == set(MAX_LINES)


@pytest.mark.parametrize("name", MAX_LINES)
def test_script_is_within_its_budget(name):
    assert length(name) <= MAX_LINES[name]


@pytest.mark.parametrize("name", MAX_LINES)
def test_main_is_within_its_budget(name):
    (main,) = (
        node
        for node in ast.parse((AGENTS / f"{name}.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    assert main.end_lineno - main.lineno + 1 <= MAX_MAIN


def test_all_scripts_together_are_within_the_budget():
    assert sum(map(length, MAX_LINES)) <= MAX_SUM


@pytest.mark.parametrize("name", MAX_LINES)
def test_help_fits_two_screens(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.argv", [f"agents/{name}.py"])
    script = importlib.import_module(f"agents.{name}")
    with pytest.raises(SystemExit):
        parse(script.Args, script.PRESETS, ["--help"], "What it does.")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 100
