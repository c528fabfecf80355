"""docs/own-environment.md: its blocks run as they stand there, and its commands are accepted by the script."""

import importlib
import re
import shlex

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from agents import ppo_control
from runs.recording import parse, read_scalars
from tests.documents import ROOT, python_blocks, run

PAGE = "docs/own-environment.md"


@pytest.fixture(scope="module", autouse=True)
def corridor(tmp_path_factory):
    """The page's environment as the module that the page asks for."""
    folder = tmp_path_factory.mktemp("own")
    (code,) = python_blocks(PAGE, "Write and register it")
    (folder / "corridor.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def commands():
    text = (ROOT / PAGE).read_text().replace("\\\n", " ")
    return re.findall(r"^PYTHONPATH=\. python agents/ppo_control\.py (.+)$", text, re.M)


def test_environment_is_one_that_gymnasium_accepts():
    check_env(importlib.import_module("corridor").Corridor(), skip_render_check=True)


def test_wrapped_in_your_own_loop(capsys):
    (code,) = python_blocks(PAGE, "Change the task in your own loop")
    names = run(code)
    printed = capsys.readouterr().out.strip()
    assert printed == str(names["changes"]) == "[(2000, 1), (4000, 2), (6000, 0)]"
    assert f"`{printed}`" in (ROOT / PAGE).read_text()
    assert np.isfinite(names["returns"]).all()


def test_gymnasiums_own_vector_environment(capsys):
    (code,) = python_blocks(PAGE, "Gymnasium's own vector environments")
    run(code)
    assert capsys.readouterr().out == "1.0 -1.0\n"


def test_it_is_refused_with_gymnasiums_default():
    (code,) = python_blocks(PAGE, "Gymnasium's own vector environments")
    with pytest.raises(ValueError, match="SAME_STEP"):
        run(code.replace(", autoreset_mode=AutoresetMode.SAME_STEP", ""))


@pytest.mark.parametrize("command", commands())
def test_command_trains(command, tmp_path):
    """The first steps of it; a change comes after 400 of them."""
    args = parse(ppo_control.Args, ppo_control.PRESETS, shlex.split(command))
    short = re.sub(r"(--total-timesteps) \d+", r"\1 800", command)
    short = re.sub(r"(--shift.every-steps|--schedule.period-steps) \d+", r"\1 400", short)
    small = f"{short} --width 8 --num-envs 4 --num-steps 50 --num-minibatches 2 --update-epochs 1 --probe.size 16"
    directory = f" --eval-every 0 --directory {tmp_path / 'run'}"
    ppo_control.main(parse(ppo_control.Args, ppo_control.PRESETS, shlex.split(small + directory)))
    scalars = read_scalars(tmp_path / "run")
    assert scalars["charts/episodic_return"]
    assert ("rewarm/event" in scalars) == args.shift.on


def test_there_are_three_commands():
    assert len(commands()) == 3
