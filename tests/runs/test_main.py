"""The command line of whole experiments: help, lists, refusals, and one experiment from a file."""

import subprocess
import sys
from pathlib import Path

import pytest

from runs.__main__ import main
from runs.experiment import REPOSITORY
from runs.recording import RunError

FAKE = Path(__file__).parent / "fake_agent"
MINE = f"""
from runs.experiment import Arm, Experiment, Scale, Verdict

EXPERIMENT = Experiment(
    name="mine", source="ours", claim="It counts.", rule="Reproduced if it counts.", curve="test/accuracy",
    arms=[Arm("a", {str(FAKE)!r}), Arm("b", {str(FAKE)!r}, flags={{"every": 4}})],
    scales={{"smoke": Scale(seeds=(1, 2), estimate="a second", flags={{"total_updates": 8}})}},
    judge=lambda results: Verdict("undecided", ""),
)
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return str(path), "--scale", "smoke", "--logs", str(tmp_path / "logs")


def called(*words):
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "runs", *words], capture_output=True, text=True, cwd=REPOSITORY
    )


@pytest.mark.parametrize("words", [("--help",), ("run", "--help"), ("status", "-h")])
def test_help_teaches_by_example_and_does_not_wait_for_torch(words):
    result = called(*words)
    assert result.returncode == 0
    assert "    python -m runs " in result.stdout
    assert "argparse" in result.stderr and "torch" not in result.stderr and "numpy" not in result.stderr


def test_help_and_the_module_say_the_same():
    shown = called("run", "--help").stdout
    for word in ("--dry-run", "--retries", "--engine", "--address", "--jobs", "--arms", "--seeds", "--logs", ".log"):
        assert word in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: COMMAND"),
        (["walk"], "invalid choice: 'walk'"),
        (["run", "fig3"], "required: --scale"),
        (["run", "fig3", "--scale", "smoke", "--jobs", "0"], "0 is none"),
        (["run", "fig3", "--scale", "smoke", "--retries", "-1"], "-1 is negative"),
        (["run", "fig3", "--scale", "smoke", "--engine", "dask"], "invalid choice: 'dask'"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert leaving.value.code == 2 and message in line and line.endswith("--help explains")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "fig33"], "there is no experiment fig33; there are "),
        (["run", "fig3", "--scale", "huge"], "fig3 has no scale huge; it has smoke"),
        (["run", "all", "--scale", "huge"], "no experiment has a scale huge"),
        (["status", "fig3", "--scale", "smoke", "--arms", "x"], "there is no arm x at scale smoke; there are fig3-"),
        (["run", "fig3", "--scale", "smoke", "--seeds", "77"], "there is no seed 77 at scale smoke; there are 1"),
        (["run", "fig3", "--scale", "smoke", "--address", "auto"], "no effect with --engine local"),
        (["run", "fig3", "--scale", "smoke", "--engine", "ray", "--jobs", "2"], "no effect with --engine ray"),
    ],
)
def test_what_does_not_exist_or_has_no_effect_is_refused(words, message):
    with pytest.raises(RunError, match=message):
        main(words)


def test_a_refusal_is_one_line_and_code_2():
    result = subprocess.run(
        [sys.executable, "-m", "runs", "show", "fig33"], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("python -m runs: there is no experiment fig33; there are ")


def test_list_and_show(capsys):
    assert main(["list"]) == 0
    assert "fig3  (Fig. 3 of Lyle et al. 2025)\n    A network" in capsys.readouterr().out
    assert main(["show", "fig3"]) == 0
    shown = capsys.readouterr().out
    assert "Rule:\n    Reproduced if" in shown and "grokking.py fig3-0.01 --rewarm.at-update 5000" in shown


def test_show_tells_what_a_scale_changes(capsys):
    assert main(["show", "fig6-high-utd"]) == 0
    scales = capsys.readouterr().out.split("Scales:\n")[1]
    laptop, quick = scales.split("    laptop: ")[1].split("    quick: ")
    assert "        cyclic: --schedule.period-steps 12000\n" in laptop and "baseline" not in laptop
    assert "        low: dqn_atari.py quick-high-utd-low\n" in quick.split("    paper: ")[0]
    assert main(["show", "fig2-left"]) == 0
    smoke = capsys.readouterr().out.split("    smoke: ")[1].split("    laptop: ")[0].split("    paper: ")[0]
    assert smoke.count("(not run)") == 10


def test_a_dry_run_prints_commands_and_makes_nothing(mine, tmp_path, capsys):
    assert main(["run", *mine, "--arms", "b", "--seeds", "2", "--dry-run"]) == 0
    where, command = capsys.readouterr().out.splitlines()
    assert where == f"cd {REPOSITORY}"
    assert command.endswith(
        f"--every 4 --total-updates 8 --seed 2 --threads 1 --exp-name b --directory {tmp_path}/logs/mine/smoke/b-s2"
    )
    assert not (tmp_path / "logs").exists()


def test_an_experiment_of_one_s_own_is_run_and_its_status_told(mine, tmp_path, capsys):
    assert main(["run", *mine, "--arms", "a"]) == 0
    assert main(["run", *mine]) == 0
    assert capsys.readouterr().out.endswith("\n4 runs: 2 run, 2 skipped, as they were finished, 0 failed\n")
    (tmp_path / "logs/mine/smoke/b-s1/status.json").write_text('{"status": "running", "step": 4}')
    (tmp_path / "logs/mine/smoke/b-s2/config.json").write_text('{"seed": 3}')
    assert main(["status", *mine]) == 0
    a1, b1, a2, b2 = capsys.readouterr().out.splitlines()
    assert a1 == "mine/smoke/a-s1: finished, step 8 of 8" and a2.startswith("mine/smoke/a-s2: finished")
    assert b1 == "mine/smoke/b-s1: killed, step 8 of 8"
    assert "holds another run: every is '(none)' there and 4" in b2


def test_another_run_is_refused_before_anything_starts(mine, tmp_path):
    assert main(["run", *mine, "--arms", "b", "--seeds", "2"]) == 0
    (tmp_path / "logs/mine/smoke/b-s2/config.json").write_text('{"seed": 2}')
    with pytest.raises(RunError, match="every is '\\(none\\)' there"):
        main(["run", *mine])
    assert not (tmp_path / "logs/mine/smoke/a-s1").exists()


def test_without_ray_one_line_says_how_to_get_it(mine, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"needs Ray: pip install -e '\.\[ray\]'"):
        main(["run", *mine, "--engine", "ray"])


def test_a_folder_of_images_goes_to_those_who_read_one_and_is_no_part_of_the_run(capsys, tmp_path):
    assert main(["run", "fig4", "fig3", "--scale", "laptop", "--data-folder", "images", "--dry-run"]) == 0
    commands = capsys.readouterr().out.splitlines()[1:]
    told = [f"--data-folder {Path('images').absolute()}" in command for command in commands]
    assert told == ["warm_start.py" in command for command in commands] and any(told) and not all(told)
    with pytest.raises(RunError, match=r"--data-folder images has no effect"):
        main(["run", "fig3", "fig4", "--scale", "smoke", "--data-folder", "images", "--dry-run"])
