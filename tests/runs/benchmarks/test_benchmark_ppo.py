"""The PPO benchmark's timing, patching and network, with a miniature in place of CleanRL's script."""

import contextlib
import importlib.util
import io
import runpy
import sys
from pathlib import Path

import pytest
import torch

from agents.ppo_minatar import ActorCritic
from runs.benchmarks import cleanrl as helpers
from runs.benchmarks import ppo
from runs.recording import RunError

# The smallest CleanRL-like script that contains the text of every substitution and runs.
MINIATURE = """
import argparse

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
from torch.utils.tensorboard import SummaryWriter


class Agent(nn.Module):
    pass


def make_env(env_id, idx):
    return lambda: gym.wrappers.RecordEpisodeStatistics(gym.make(env_id, max_episode_steps=3))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--env-id")
    for flag in ("--num-envs", "--num-steps", "--update-epochs", "--num-minibatches", "--total-timesteps"):
        parser.add_argument(flag, type=int)
    args = parser.parse_args()
    args.batch_size = args.num_envs * args.num_steps
    args.num_iterations = args.total_timesteps // args.batch_size
    envs = gym.vector.SyncVectorEnv(
        [make_env(args.env_id, i) for i in range(args.num_envs)],
    )
    agent, lengths, seen = Agent(envs), [], []
    next_obs, _ = envs.reset(seed=1)
    for iteration in range(1, args.num_iterations + 1):
        seen.append(iteration)
        for step in range(args.num_steps):
            action = agent.get_action_and_value(torch.Tensor(next_obs))[0]
            next_obs, *_, infos = envs.step(action.numpy())
            if "final_info" in infos:
                for info in infos["final_info"]:
                    if info and "episode" in info:
                        lengths.append(int(info["episode"]["l"]))
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "cleanrl").mkdir()
    (tmp_path / "cleanrl" / "ppo.py").write_text(MINIATURE)
    return tmp_path


def test_all_but_the_first_iteration_are_timed(capsys):
    now = [0.0]
    for iteration in ppo.timed_iterations(4, 100, clock=lambda: now[0]):
        now[0] += 50.0 if iteration == 1 else 0.5
    assert helpers.timed_rate(capsys.readouterr().out) == 300 / 1.5


@pytest.mark.parametrize("edit", ppo.substitutions(threads=1), ids=lambda edit: edit.name)
def test_every_substitution_is_needed_once(edit):
    assert MINIATURE.count(edit.old) == 1
    for damaged in (MINIATURE.replace(edit.old, ""), MINIATURE + edit.old):
        with pytest.raises(RunError, match="exactly once"):
            helpers.substitute(damaged, ppo.substitutions(threads=1))


@pytest.mark.filterwarnings("ignore:.*Overriding environment MinAtar")  # another test may have registered the games
def test_patched_ppo_script_runs_and_records_every_episode(clone, monkeypatch, capsys):
    args = ppo.Args(clone, num_steps=12, iterations=2)
    script = clone / "patched.py"
    script.write_text(helpers.substitute(MINIATURE, ppo.substitutions(threads=1)))
    monkeypatch.setattr(sys, "argv", [str(script), *ppo.shared_flags(args, 3)])
    state = runpy.run_path(str(script), run_name="__main__")
    assert helpers.timed_rate(capsys.readouterr().out) > 0
    assert state["seen"] == [1, 2] and state["lengths"] == [3] * (2 * 12 * 3 // 3)


def in_this_process(command, directory, environment):
    """What `run_script` does, without the seconds that a new process needs to import torch."""
    assert environment["OMP_NUM_THREADS"] == "1"
    script, *words = map(str, command)
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", [script, *words])
        patch.chdir(directory)
        runpy.run_path(script, run_name="__main__")
    return output.getvalue()


@pytest.mark.filterwarnings("ignore:.*Overriding environment MinAtar")
def test_both_ppo_scripts_are_measured(clone, capsys, monkeypatch):
    monkeypatch.setattr(ppo, "run_script", in_this_process)
    args = ppo.Args(clone, num_envs=(4,), num_steps=16, iterations=2, repeats=1)
    ppo.main(args)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "4 environments" and lines[2].count("ratio") == 1 and "[min, max] of 1" in lines[3]


def test_network_is_that_of_our_script():
    class Envs:
        single_observation_space = torch.zeros(10, 10, 4)
        single_action_space = type("Space", (), {"n": 3})

    theirs, ours = ppo.MinAtarAgent(Envs()), ActorCritic(4, 3)
    sizes = [sorted(p.numel() for p in network.parameters()) for network in (theirs, ours)]
    assert sizes[0] == sizes[1]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    obs = torch.randint(0, 2, (5, 10, 10, 4)).float()
    assert torch.allclose(theirs.get_value(obs)[:, 0], ours(obs.permute(0, 3, 1, 2))[1], atol=1e-6)


def test_bad_arguments_are_refused(clone):
    with pytest.raises(ValueError, match=r"no cleanrl/ppo\.py"):
        ppo.Args(clone / "elsewhere")
    with pytest.raises(ValueError, match="--iterations must be at least 2, got 1"):
        ppo.Args(clone, iterations=1)


@pytest.mark.parametrize("gradient", ["default", "compiled"])
def test_our_script_is_asked_for_the_gradient(clone, monkeypatch, gradient):
    commands = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(ppo, "run_script", lambda command, *_: commands.append(command))
    monkeypatch.setattr(ppo, "read_speeds", lambda path: [])
    monkeypatch.setattr(ppo, "overall_rate", lambda speeds, after: 1.0)
    args = ppo.Args(clone, gradient=gradient)
    ppo.measure_ours(args, 4)
    (command,) = commands
    asked = command[command.index("--gradient") + 1] if "--gradient" in command else "default"
    assert asked == gradient


def test_compiled_without_numba_is_refused(clone, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'--gradient compiled needs numba: pip install -e "\.\[fast\]"'):
        ppo.Args(clone, gradient="compiled")
