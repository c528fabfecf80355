"""The shipped Atari agents learn Catch on a screen to 90 % of the best return; with a broken target they fail to.

Each takes minutes on two cores: run with `pytest -m slow tests/agents/test_catch_learning.py -s`.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from agents import dqn_atari, ppo_atari, rainbow_atari
from envs.catch import best_return
from envs.replay import FrameMemory
from runs.recording import read_scalars

pytestmark = pytest.mark.slow
SCRIPTS = {"dqn": dqn_atari, "ppo": ppo_atari, "rainbow": rainbow_atari}


def final_return(script, directory, seed=1):
    """Greedy return of the preset `catch`: the mean of the last evaluation's episodes."""
    began = time.perf_counter()
    script.main(dataclasses.replace(script.PRESETS["catch"].args, directory=directory, seed=seed))
    value = read_scalars(directory)["eval/episodic_return"][-1][1]
    print(f"{script.__name__}: {value:.2f} of {best_return():.2f} after {time.perf_counter() - began:.0f} s")
    return value


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_learns_catch(name, tmp_path):
    assert final_return(SCRIPTS[name], tmp_path / "run") >= 0.9 * best_return()


@pytest.mark.parametrize("name", ["dqn", "rainbow"])
def test_without_the_value_of_the_next_state_the_agent_fails(name, tmp_path, monkeypatch):
    """Only rewards within n steps count: the paddle starts to move when it is too late."""
    gather = FrameMemory.gather

    def short_sighted(self, slots):
        *parts, discounts = gather(self, slots)
        return [*parts, np.zeros_like(discounts)]

    monkeypatch.setattr(FrameMemory, "gather", short_sighted)
    assert final_return(SCRIPTS[name], tmp_path / "run") < 0.5 * best_return()


def test_without_credit_for_later_rewards_ppo_fails(tmp_path, monkeypatch):
    gae = ppo_atari.gae
    monkeypatch.setattr(ppo_atari, "gae", lambda r, v, d, last, gamma, lam: gae(r, v, d, last, 0.0, lam))
    assert final_return(ppo_atari, tmp_path / "run") < 0.5 * best_return()
