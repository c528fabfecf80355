"""`--gradient compiled` of the MinAtar scripts: the same agent up to rounding, repeated and resumed to the last bit."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from elr.flags import NapArgs
from runs.recording import RunError, load_checkpoint, parse, read_scalars
from tests.agents import scripts

SHORT = {"threads": 1, "nap": NapArgs(enabled=True), "eval_every": 0}
SCRIPTS = {
    "dqn_minatar": {
        "total_timesteps": 260, "learning_starts": 200, "buffer_size": 300, "start_e": 1.0, "end_e": 1.0,
        "log_every": 20,
    },
    "ppo_minatar": {"total_timesteps": 128, "num_envs": 4, "num_steps": 16, "num_minibatches": 2, "update_epochs": 2},
}  # fmt: skip
NETWORK = {"dqn_minatar": "q_network", "ppo_minatar": "network"}
BY_TORCH = {"dqn_minatar": "explicit", "ppo_minatar": "autograd"}


@pytest.fixture
def numba():
    pytest.importorskip("numba")


def train(name, directory, script=None, **changes):
    """Final weights and everything recorded but the speed."""
    script = script or importlib.import_module(f"agents.{name}")
    script.main(script.Args(**{**SHORT, **SCRIPTS[name], "directory": directory, **changes}))
    weights = load_checkpoint(directory / "checkpoint.pt")["state"][NETWORK[name]]
    return weights, {tag: rows for tag, rows in read_scalars(directory).items() if "SPS" not in tag}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("network", ["normalised", "plain"])
def test_it_trains_as_the_default_does_and_repeats_exactly(name, network, tmp_path, numba):
    flags = {"network": network, "nap": NapArgs(enabled=network == "normalised")}
    default, recorded = train(name, tmp_path / "default", gradient=BY_TORCH[name], **flags)
    first, first_recorded = train(name, tmp_path / "first", gradient="compiled", **flags)
    again, again_recorded = train(name, tmp_path / "again", gradient="compiled", **flags)
    still, _ = train(name, tmp_path / "still", gradient="compiled", learning_rate=1e-30, **flags)
    assert first_recorded == again_recorded and first_recorded.keys() == recorded.keys()
    for weight, expected in default.items():
        assert torch.equal(first[weight], again[weight])
        torch.testing.assert_close(first[weight], expected, rtol=1e-3, atol=1e-4)
        assert not torch.equal(first[weight], still[weight]), f"{weight} never moved"


@pytest.mark.parametrize("flags", [{}, {"double_q": True}, {"num_envs": 2, "learning_starts": 200}])
def test_dqn_acts_greedily_as_the_default_does(flags, tmp_path, numba):
    flags = {"start_e": 0.0, "end_e": 0.0, **flags}
    default, compiled = (train("dqn_minatar", tmp_path / g, gradient=g, **flags) for g in ("explicit", "compiled"))
    assert compiled[1]["charts/episodic_return"] == default[1]["charts/episodic_return"]
    for name, weight in default[0].items():
        torch.testing.assert_close(compiled[0][name], weight, rtol=1e-3, atol=1e-4)


def test_ppo_diverges_without_numpys_warnings(tmp_path, numba):
    """Warnings are errors here; the run ends with the line of `require_finite`."""
    with pytest.raises(RunError, match=r"^loss is nan at step 64, update 1, "):
        train("ppo_minatar", tmp_path / "r", gradient="compiled", learning_rate=1e30, nap=NapArgs(), network="plain")


@pytest.mark.parametrize("name", SCRIPTS)
def test_stopped_and_resumed_is_bit_identical(name, tmp_path, numba, monkeypatch):
    script = importlib.import_module(f"agents.{name}")
    changes = {"gradient": "compiled", "checkpoint_every": {"dqn_minatar": 50, "ppo_minatar": 1}[name]}
    whole = train(name, tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        scripts.stop_at(patch, {"dqn_minatar": 230, "ppo_minatar": 64}[name])
        with pytest.raises(SystemExit):
            train(name, tmp_path / "cut", **changes)
    script.main(parse(script.Args, script.PRESETS, ["--resume", str(tmp_path / "cut")]))
    weights = load_checkpoint(tmp_path / "cut" / "checkpoint.pt")["state"][NETWORK[name]]
    assert all(torch.equal(weights[layer], weight) for layer, weight in whole[0].items())
    assert {tag: rows for tag, rows in read_scalars(tmp_path / "cut").items() if "SPS" not in tag} == whole[1]


def test_ppo_reacts_to_changes_and_truncated_episodes(tmp_path, numba):
    """A change of the task cuts episodes, whose last observations are valued; a new network is acted on at once."""
    script = importlib.import_module("agents.ppo_minatar")
    flags = {
        "env_id": "MinAtar/Breakout-v0", "total_timesteps": 256,
        "shift": script.ShiftArgs(kind="pixels", at_steps=(64, 128)), "switch": script.SwitchArgs(fresh_agent=True),
        "schedule": script.ScheduleArgs("constant"),
    }  # fmt: skip
    default, compiled = (train("ppo_minatar", tmp_path / g, gradient=g, **flags) for g in ("autograd", "compiled"))
    assert len(compiled[1]["shift/boundary"]) == 2
    for name, weight in default[0].items():
        torch.testing.assert_close(compiled[0][name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--capture"], ["--gradient compiled", "--capture"]),
        (["--device", "cuda"], ["--gradient compiled", "--device cuda"]),
        (["--activation", "crelu"], ["--gradient compiled", "--activation crelu"]),
        (["--intervene.methods", "continual-backprop"], ["--gradient compiled", "--intervene.methods"]),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(name, flags, named, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    script = importlib.import_module(f"agents.{name}")
    with pytest.raises(SystemExit):
        parse(script.Args, script.PRESETS, ["--gradient", "compiled", *flags])
    message = capsys.readouterr().err
    assert all(one in message for one in named), message


RELU = "        self.hidden_relu = CReLU() if crelu else nn.ReLU()\n"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_copy_with_another_nonlinearity_is_refused_in_one_line(name, tmp_path, numba):
    original = Path(importlib.import_module(f"agents.{name}").__file__)
    script = scripts.edited(original, tmp_path, (RELU, RELU.replace("nn.ReLU", "nn.GELU")))
    with pytest.raises(RunError, match=r"--gradient compiled: .* is not the script's own") as error:
        train(name, tmp_path / "refused", script, gradient="compiled")
    assert "\n" not in str(error.value) and not (tmp_path / "refused").exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_numba_one_line_says_what_to_install(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "elr.fast.minatar_kernels", raising=False)
    with pytest.raises(
        RunError, match=r'^(--gradient compiled: )?it needs numba: pip install -e "\.\[fast\]"'
    ) as error:
        train(name, tmp_path / "refused", gradient="compiled")
    assert "\n" not in str(error.value) and not (tmp_path / "refused").exists()
