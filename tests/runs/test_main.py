"""The command line of `python -m runs`: help, every command's errors in one line, and experiments from a file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runs.__main__ import BENCHMARKS, COMMANDS, main
from runs.recording import RunError
from runs.sweeps.experiment import REPOSITORY

FAKE = Path(__file__).parent / "sweeps" / "fake_agent"
MINE = f"""
from runs.sweeps.experiment import Arm, Experiment, Scale, Verdict

EXPERIMENT = Experiment(
    name="mine", source="ours", claim="It counts.", rule="Reproduced if it counts.", curve="test/accuracy",
    arms=[Arm("a", {str(FAKE)!r}), Arm("b", {str(FAKE)!r}, flags={{"every": 4}})],
    scales={{"smoke": Scale(seeds=(1, 2), estimate="a second", flags={{"total_updates": 8}})}},
    measures={{}},
    judge=lambda runs: Verdict("undecided", ""),
)
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return str(path), "--scale", "smoke", "--logs", str(tmp_path / "logs")


def called(*words, options=(), **more):
    command = [sys.executable, *options, "-m", "runs", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, **more)


def test_help_fits_on_one_screen_and_imports_nothing_heavy():
    result = called("--help", options=("-X", "importtime"))
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert all(f"\n    {command} " in result.stdout for command in [*COMMANDS, "bench"])
    assert "\n    python -m runs run fig3 --scale smoke\n" in result.stdout
    assert not any(heavy in result.stderr for heavy in ("torch", "numpy", "tyro"))


@pytest.mark.parametrize("words", [[name] for name in COMMANDS] + [["bench", name] for name in BENCHMARKS])
def test_help_of_each_command_names_it(words, capsys):
    if words in (["bench", "atari"], ["bench", "dqn"], ["bench", "ppo"]):
        pytest.importorskip("gymnasium")
    with pytest.raises(SystemExit) as leaving:
        main([*words, "--help"])
    assert leaving.value.code == 0
    description, usage = capsys.readouterr().out.split("usage: ")
    assert usage.startswith(f"python -m runs {' '.join(words)} ")
    assert f"python -m runs {' '.join(words)}" in description
    assert len(description.splitlines()) > 2 and max(map(len, description.splitlines())) <= 120


def test_help_of_run_has_every_flag(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    flags = "--scale --dry-run --retries --engine --address --jobs --no-pin --arms --seeds --logs --data-folder"
    for word in (*flags.split(), "RUN.log", "Exit codes"):
        assert word in shown


def test_example_in_the_help_of_run_works(capsys):
    from runs.sweeps.commands import RunArgs

    examples = [line.split()[3:] for line in RunArgs.__doc__.splitlines() if line.strip().startswith("python -m runs")]
    assert len(examples) == 3
    for words in examples[:2]:
        assert main([*words, "--dry-run"]) == 0
    ray = [word for word in examples[2] if word not in ("--engine", "ray", "--address", "auto")]
    assert main([*ray, "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "fig3"], "Missing from python -m runs run: --scale"),
        (["run", "fig3", "--scale", "smoke", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["run", "fig3", "--scale", "smoke", "--retries", "-1"], "--retries must be at least 0, got -1"),
        (["run", "fig3", "--scale", "smoke", "--engine", "dask"], "dask"),
        (["run", "fig3", "--scale", "smoke", "--address", "auto"], "no effect with --engine local"),
        (["run", "fig3", "--scale", "smoke", "--engine", "ray", "--jobs", "2"], "no effect with --engine ray"),
        (["run", "fig3", "--scale", "smoke", "--engine", "ray", "--no-pin"], "no effect with --engine ray"),
        (["report", "fig3", "--scle", "smoke"], "unknown flag --scle; did you mean --scale?"),
        (["compare", "a", "--unfinshed"], "unknown flag --unfinshed; did you mean --unfinished?"),
        (["compare", "a", "--last", "x"], "could not convert string to float: 'x'"),
        (["compare", "a", "--last", "2"], "--last must be in [0, 1]"),
        (["board", "fig3", "--logs"], "--logs"),  # the sentence around it depends on tyro's version
        (["list", "fig3"], "fig3"),
        (["plot", "a", "--window", "-1"], "--window must be at least 1 step"),
        (["alarms", "a", "--within", "2"], "--within must be in (0, 1]"),
        (["changes", "a", "--fersh", "x"], "unknown flag --fersh; did you mean --fresh?"),
        (["gaps", "a", "--uot", "x"], "unknown flag --uot; did you mean --out?"),
        (["fig2-left", "a", "--at", "x"], "x"),
    ],
)
def test_flags_that_cannot_be_read_are_refused_in_one_line(words, message, capsys):
    with pytest.raises(RunError) as refusal:
        main(words)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["repot"], "python -m runs: there is no command repot; did you mean report?"),
        (["xyz"], "python -m runs: there is no command xyz; there are demo, list, show"),
        (["bench", "dnq"], "python -m runs bench: there is no command dnq; did you mean dqn?"),
    ],
)
def test_unknown_command_is_one_line_with_a_suggestion(words, message, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert leaving.value.code == 2 and line.startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "fig33"], "there is no experiment fig33; did you mean fig3"),
        (["run", "fig3", "--scale", "huge"], "fig3 has no scale huge; it has smoke"),
        (["run", "all", "--scale", "huge"], "no experiment has a scale huge"),
        (["status", "fig3", "--scale", "smoke", "--arms", "x"], "there is no arm x at scale smoke; there are fig3-"),
        (["run", "fig3", "--scale", "smoke", "--seeds", "77"], "there is no seed 77 at scale smoke; there are 1"),
        (["compare"], "give run directories"),
        (["plot"], "give run directories"),
        (["changes"], "give run directories"),
        (["gaps"], "give run directories"),
        (["alarms"], "give run directories"),
        (["fig2-left"], "give run directories"),
        (["board"], "give runs, folders of runs, patterns or experiments"),
    ],
)
def test_missing_and_unknown_names_are_refused(words, message):
    with pytest.raises(RunError, match=message):
        main(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "fig33"), "python -m runs show: there is no experiment fig33; "),
        (("compare", "a", "--last", "x"), "python -m runs compare: Error parsing --last: "),
    ],
)
def test_error_of_a_command_is_one_line_and_code_2(words, message):
    result = called(*words)
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(message)


def test_a_python_without_the_packages_is_named_in_one_line():
    result = called("list", options=("-S", "-E"))
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == (
        f"python -m runs list: tyro is not installed in {sys.executable}: use the Python of an environment with "
        "rewarm, such as .venv/bin/python\n"
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp932"])
def test_output_that_cannot_be_encoded_is_replaced(encoding, tmp_path):
    directories = []
    for seed in (1, 2):
        directories.append(tmp_path / f"run-{seed}")
        directories[-1].mkdir()
        (directories[-1] / "config.json").write_text(f'{{"exp_name": "nap", "seed": {seed}}}')
        (directories[-1] / "status.json").write_text('{"status": "finished", "step": 10}')
        (directories[-1] / "scalars.csv").write_text("step,tag,value\n10,test/accuracy,0.5\n")
    words = ("compare", *map(str, directories), "--against", "nap")
    result = called(*words, env={**os.environ, "PYTHONIOENCODING": encoding}, encoding=encoding)
    assert result.returncode == 0 and result.stderr == ""
    plus_minus = "±" if encoding == "cp932" else "?"
    assert f"| nap | all | 2 | 0.5 {plus_minus} 0 | 0.5 [0.5, 0.5] | ? |" in result.stdout


def test_commands_that_read_runs_do_not_import_torch():
    modules = sorted({command.module for command in COMMANDS.values()})
    heavy = "{'torch', 'gymnasium', 'matplotlib', 'ray', 'pandas'} & set(sys.modules)"
    code = f"import sys, importlib; [importlib.import_module(name) for name in {modules}]; print({heavy})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert result.stdout.strip() == "set()"


def test_list_and_show(capsys):
    assert main(["list"]) == 0
    assert "fig3  (Fig. 3 of Lyle et al. 2025)\n    A network" in capsys.readouterr().out
    assert main(["show", "fig3"]) == 0
    shown = capsys.readouterr().out
    assert "Rule:\n    With Adam's beta2" in shown and "grokking.py fig3-0.01 --rewarm.at-update 8000" in shown


def test_show_prints_what_a_scale_changes(capsys):
    assert main(["show", "high-utd-minatar"]) == 0
    laptop = capsys.readouterr().out.split("    laptop: ")[1].split("    paper: ")[0]
    assert "        cyclic: --schedule.period-steps 12000\n" in laptop and "baseline" not in laptop
    assert main(["show", "fig6-right"]) == 0
    assert "        low: dqn_atari.py high-utd-low\n" in capsys.readouterr().out.split("    paper: ")[1]
    assert main(["show", "fig2-left"]) == 0
    smoke = capsys.readouterr().out.split("    smoke: ")[1].split("    laptop: ")[0].split("    paper: ")[0]
    assert smoke.count("(not run)") == 10


def test_dry_run_prints_commands_and_makes_nothing(mine, tmp_path, capsys):
    assert main(["run", *mine, "--arms", "b", "--seeds", "2", "--dry-run"]) == 0
    where, command = capsys.readouterr().out.splitlines()
    assert where == f"cd {REPOSITORY}"
    assert command.endswith(
        f"--every 4 --total-updates 8 --seed 2 --threads 1 --exp-name b --directory {tmp_path}/logs/mine/smoke/b-s2"
    )
    assert not (tmp_path / "logs").exists()


def test_own_experiment_is_run_and_its_status_printed(mine, tmp_path, capsys):
    assert main(["run", *mine, "--arms", "a"]) == 0
    assert main(["run", *mine]) == 0
    assert capsys.readouterr().out.endswith("\n4 runs: 2 run, 2 already finished, 0 failed\n")
    (tmp_path / "logs/mine/smoke/b-s1/status.json").write_text('{"status": "running", "step": 4}')
    (tmp_path / "logs/mine/smoke/b-s2/config.json").write_text('{"seed": 3}')
    assert main(["status", *mine]) == 0
    a1, b1, a2, b2 = capsys.readouterr().out.splitlines()
    assert a1 == "mine/smoke/a-s1: finished, step 8 of 8" and a2.startswith("mine/smoke/a-s2: finished")
    assert b1 == "mine/smoke/b-s1: killed, step 8 of 8"
    assert "holds another run: its every is '(none)', that of mine/smoke/b-s2 is 4" in b2


def test_another_run_is_refused_before_anything_starts(mine, tmp_path):
    assert main(["run", *mine, "--arms", "b", "--seeds", "2"]) == 0
    (tmp_path / "logs/mine/smoke/b-s2/config.json").write_text('{"seed": 2}')
    with pytest.raises(RunError, match="its every is '\\(none\\)'"):
        main(["run", *mine])
    assert not (tmp_path / "logs/mine/smoke/a-s1").exists()


def test_missing_ray_is_one_line_with_the_remedy(mine, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"needs Ray: pip install -e '\.\[ray\]'"):
        main(["run", *mine, "--engine", "ray"])


def test_data_folder_is_given_to_the_runs_that_read_one(capsys):
    assert main(["run", "fig4", "fig3", "--scale", "laptop", "--data-folder", "images", "--dry-run"]) == 0
    commands = capsys.readouterr().out.splitlines()[1:]
    given = [f"--data-folder {Path('images').absolute()}" in command for command in commands]
    assert given == ["warm_start.py" in command for command in commands] and any(given) and not all(given)
    with pytest.raises(RunError, match=r"--data-folder images has no effect"):
        main(["run", "fig3", "fig4", "--scale", "smoke", "--data-folder", "images", "--dry-run"])
