"""Evaluation runs in eval mode and leaves training alone, also in a copy of a script with dropout or batch norm."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from agents import dqn_minatar, ppo_control, ppo_minatar, warm_start
from envs.evaluation import evaluation_mode, play
from runs.recording import load_checkpoint, read_scalars
from tests.agents import scripts
from tests.agents.scripts import assert_same

PPO = {"total_timesteps": 128, "num_envs": 2, "num_steps": 16, "num_minibatches": 2, "update_epochs": 1}
DQN = {"total_timesteps": 150, "learning_starts": 100, "buffer_size": 200, "log_every": 10}
IMAGES = {"phase_updates": 12, "width": 4, "hidden": 8, "batch_size": 16, "threads": 1, "log_every": 1}
HIDDEN_RELU = "        self.hidden_relu = nn.ReLU()\n"
DROPOUT = (HIDDEN_RELU, "        self.hidden_relu = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))\n")
EITHER = ("        self.hidden_relu = CReLU() if crelu else nn.ReLU()\n", DROPOUT[1])
LEAKY = ("else nn.LeakyReLU(0.1)", "else nn.Sequential(nn.LeakyReLU(0.1), nn.Dropout(0.5))")
BATCH_NORM = ("self.hidden_norm = nn.LayerNorm(width) if normalised else nn.Identity()",
              "self.hidden_norm = nn.BatchNorm1d(width)")  # fmt: skip
COPIES = {
    "ppo_control": (ppo_control, LEAKY, {**PPO, "width": 8}, "network"),
    "ppo_minatar": (ppo_minatar, EITHER, PPO, "network"),
    "dqn_minatar": (dqn_minatar, EITHER, DQN, "q_network"),
    "ppo_minatar with batch norm": (ppo_minatar, BATCH_NORM, PPO, "network"),
    "warm_start": (warm_start, DROPOUT, IMAGES, "warm"),
}


@pytest.mark.parametrize("name", COPIES)
def test_training_of_a_copy_with_dropout_or_batch_norm_does_not_depend_on_evaluations(name, tmp_path, monkeypatch):
    original, edit, flags, kept = COPIES[name]
    script = scripts.edited(Path(original.__file__), tmp_path, edit)
    if original is warm_start:
        monkeypatch.setattr(script, "draw_comparison", lambda *_, **__: None)
        rare, often = {"eval_every": 1_000}, {"eval_every": 3}
    else:
        rare, often = {"eval_every": 0}, {"eval_every": 40 if original is dqn_minatar else 2, "eval_episodes": 1}
    states = []
    for folder, evaluations in (("rare", rare), ("often", often)):
        probe = script.ProbeArgs(every=0, meter_every=0)
        script.main(script.Args(**flags, **evaluations, probe=probe, directory=tmp_path / folder))
        state = load_checkpoint(tmp_path / folder / "checkpoint.pt")["state"]
        states.append(state[kept])
    assert any(tag.startswith(("eval/", "test/")) for tag in read_scalars(tmp_path / "often"))
    assert_same(*states)


class Steps:
    """Two environments whose episodes last 3 steps; the reward is the action."""

    num_envs, single_action_space = 2, SimpleNamespace(n=4)

    def reset(self, seed):
        self.t = 0
        return np.ones((2, 8), np.float32), {}

    def step(self, actions):
        self.t += 1
        over = np.full(2, self.t == 3)
        return np.ones((2, 8), np.float32), actions.astype(float), over, over & False, {}


def watched_network():
    """Dropout in training mode, batch norm that is held in eval mode; and what they output and their flags, in a list.

    train() is overridden, as some networks of noisy layers do: play must not call it.
    """

    class Network(nn.Sequential):
        def train(self, mode=True):
            raise AssertionError("train() was called")

    network = Network(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    network[1].training = False
    return network


@torch.no_grad()
def values(seen, network, obs):
    output = network(torch.from_numpy(obs)).numpy()
    seen.append((output, [module.training for module in network.modules()], torch.is_grad_enabled()))
    return output


@pytest.mark.parametrize("by_keyword", [False, True])
def test_play_runs_a_network_in_eval_mode_and_restores_flags_statistics_and_random_state(by_keyword):
    network, seen = watched_network(), []
    state, buffers = torch.get_rng_state(), {name: b.clone() for name, b in network.named_buffers()}
    if by_keyword:
        play(Steps(), partial(lambda obs, net: values(seen, net, obs), net=network), seed=1)
    else:
        play(Steps(), partial(values, seen, network), seed=1)
    assert len(seen) == 3
    assert all(flags == [False] * 4 and np.array_equal(output, seen[0][0]) for output, flags, _ in seen)
    assert [module.training for module in network.modules()] == [True, True, False, True]
    assert_same(dict(network.named_buffers()), buffers)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_policy_that_draws_by_itself_leaves_the_random_state_and_flags_return_after_an_error():
    network, state = watched_network(), torch.get_rng_state()
    play(Steps(), lambda obs: torch.rand(2, 4).numpy(), seed=1)
    with pytest.raises(KeyError), evaluation_mode(partial(values, [], network)):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == [True, True, False, True]


def test_the_test_set_of_warm_start_is_classified_in_eval_mode():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    x = torch.randn(7, 1, 2, 2)
    pixels = SimpleNamespace(test_x=x, test_y=torch.tensor([0, 1, 2, 0, 1, 2, 0]), normalised=lambda x: x)
    state, buffers = torch.get_rng_state(), {name: b.clone() for name, b in network.named_buffers()}
    found = warm_start.evaluate(network, pixels, batch_size=3)
    assert all(module.training for module in network.modules()) and torch.equal(torch.get_rng_state(), state)
    assert_same(dict(network.named_buffers()), buffers)
    logits = network.eval()(x)
    loss = nn.functional.cross_entropy(logits, pixels.test_y).item()
    assert found == pytest.approx((loss, (logits.argmax(1) == pixels.test_y).double().mean().item()))
