"""python -m runs new: the file that it writes runs, and is reported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runs.__main__ import main
from runs.recording import RunError
from runs.sweeps.experiment import load

ROOT = Path(__file__).resolve().parents[3]


def test_the_file_defines_an_experiment_and_is_not_overwritten(tmp_path, capsys):
    assert main(["new", "my-question", "--out", str(tmp_path)]) == 0
    path = tmp_path / "my_question.py"
    assert f"python -m runs run {path} --scale smoke" in capsys.readouterr().out
    text = path.read_text()
    assert len(text.splitlines()) < 40 and "NAME" not in text and "FILE" not in text
    experiment = load(str(path))
    assert experiment.name == "my-question" and list(experiment.scales) == ["smoke", "laptop"]
    path.write_text("mine")
    with pytest.raises(RunError, match="exists and is not overwritten"):
        main(["new", "my-question", "--out", str(tmp_path)])
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["a b", "../x", "1st", "a.py", "é"])
def test_a_name_that_is_no_file_is_refused(name, tmp_path):
    with pytest.raises(RunError, match="letters, digits"):
        main(["new", name, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, f"there is an experiment {name} already") for name in ("fig3", "chain-of-games", "chain_of_games")),
        *((name, f"{name} is the name of a Python module") for name in ("random", "agents", "typing-extensions")),
    ],
)
def test_the_name_of_another_experiment_or_of_a_module_is_refused(name, reason, tmp_path):
    with pytest.raises(RunError, match=reason):
        main(["new", name, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_no_module_that_it_would_hide(tmp_path, monkeypatch):
    """`python -m` can import the files of the folder that it is called in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    main(["new", "my-question"])
    with pytest.raises(RunError, match=r"my_question\.py exists and is not overwritten"):
        main(["new", "my-question"])
    (tmp_path / "sub").mkdir()
    with pytest.raises(RunError, match="is the name of a Python module"):
        main(["new", "my-question", "--out", "sub"])


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"cannot write mine\.py"):
        main(["new", "mine", "--out", str(tmp_path / "none")])


def test_the_file_runs_and_is_reported(tmp_path):
    """As a user does: `new`, `run`, `report` in a folder of one's own."""

    def called(*words):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, "-m", "runs", *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=600,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    pytest.importorskip("matplotlib")
    called("new", "mine")
    called("run", "mine.py", "--scale", "smoke")
    assert "wrote runs/logs/mine/mine-smoke.md" in called("report", "mine.py", "--scale", "smoke")
    page = (tmp_path / "runs" / "logs" / "mine" / "mine-smoke.md").read_text()
    assert "No verdict" in page and "2 runs: 2 arms" in page


def test_the_rule_of_the_template_gives_a_verdict(tmp_path):
    from runs.sweeps.experiment import Measured

    main(["new", "mine", "--out", str(tmp_path)])
    experiment = load(str(tmp_path / "mine.py"))
    (score,) = experiment.measures
    runs = [
        Measured(arm, "", seed, {score: 10.0 * (arm == "nap") + seed**0.5})
        for seed in (1, 2, 3)
        for arm in ("baseline", "nap")
    ]
    runs[0] = Measured("baseline", "", 1, {score: 1.5})
    assert experiment.judge(runs).outcome == "reproduced"
