"""The benchmark against other libraries: its cases, its table, and the agents that it brings itself."""

import importlib.util
import os

import numpy as np
import pytest
import torch

from agents.dqn_minatar import QNetwork
from runs.benchmarks import peers
from runs.recording import RunError

SPEEDS = {"ours": 300.0, "sb3": 100.0, "jax": 400.0}


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)


@pytest.mark.parametrize("case", ["dqn:1", "dqn:0.25", "dqn:8", "ppo:1", "ppo:128"])
def test_cases(case):
    assert ":".join(peers.parts(case)) == case


@pytest.mark.parametrize(
    "case", ["dqn", "dqn:0", "dqn:1.5", "dqn:0.3", "dqn:nan", "ppo:0", "ppo:2.5", "sac:1", "ppo:x", ""]
)
def test_other_cases_are_refused(case, installed):
    with pytest.raises(ValueError, match="--cases are dqn:RATIO with a ratio of k or 1/k, or ppo:N, got"):
        peers.Args(cases=(case,))


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "sbx" else name)
    with pytest.raises(
        ValueError, match=r'--peers sbx is not installed: pip install -e "\.\[peers\]", or leave it out'
    ):
        peers.Args()
    assert peers.Args(peers=("sb3",)).peers == ("sb3",)


def test_rounds_are_interleaved_and_ratios_are_of_a_round(installed, monkeypatch, capsys):
    calls = []

    def measure(who, case, steps, preset, gradient):
        assert gradient == "default"
        calls.append((who, steps))
        slower = 1 + len(calls) // 9  # the machine slows down in the last round
        return SPEEDS[who] / slower

    monkeypatch.setattr(peers, "measure", measure)
    peers.main(peers.Args(peers=("sb3", "jax"), cases=("dqn:1",), repeats=2, seconds=10))
    assert [who for who, _ in calls] == ["ours", "sb3", "jax"] * 3
    assert [steps for _, steps in calls] == [3_000] * 3 + [3_000, 1_000, 4_000] * 2  # about ten seconds, at least 1,000
    out = capsys.readouterr().out
    assert "dqn:1, round 2: ours 300, sb3 100, jax 200" in out
    assert out.splitlines()[-1] == "| dqn:1 | 300 [300, 300] | 100, 3.00 [3.00, 3.00] | 300, 1.12 [0.75, 1.50] |"


def test_compiled_needs_numba_and_is_what_our_script_is_asked_for(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "numba" else name)
    with pytest.raises(ValueError, match=r'--gradient compiled needs numba: pip install -e "\.\[fast\]"'):
        peers.Args(gradient="compiled")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name)
    commands = []
    monkeypatch.setattr(peers, "run_script", lambda command, *_: commands.append(command))
    monkeypatch.setattr(peers, "read_speeds", lambda path: [])
    monkeypatch.setattr(peers, "overall_rate", lambda speeds, after: 1.0)
    for gradient in ("default", "compiled"):
        peers.measure("ours", "ppo:8", 10, "nap", gradient)
    assert "--gradient" not in commands[0]
    assert commands[1][commands[1].index("--gradient") + 1] == "compiled"


def test_a_peer_that_fails_is_one_line(installed, monkeypatch):
    def fails(*_):
        raise RuntimeError("it exited with 1")

    monkeypatch.setattr(peers, "measure", fails)
    with pytest.raises(RunError, match="it exited with 1"):
        peers.main(peers.Args())


@pytest.mark.parametrize("case", ["dqn:1", "ppo:1"])
def test_our_own_speed_is_measured(case):
    assert 10 < peers.measure("ours", case, 10, "nap") < 100_000


def has(module):
    return importlib.util.find_spec(module) is not None


@pytest.mark.skipif(not has("gymnax"), reason="needs the extra peers")
@pytest.mark.parametrize(("who", "case"), [("jax", "dqn:1"), ("jax", "dqn:0.25"), ("jax", "ppo:2")])
def test_the_compiled_loop_runs(who, case):
    assert peers.measure(who, case, 1_000, "nap") > 10


@pytest.mark.skipif(not has("sbx"), reason="needs the extra peers")
@pytest.mark.parametrize("who", ["sb3", "sbx"])
@pytest.mark.parametrize("case", ["dqn:1", "ppo:2"])
def test_other_libraries_run(who, case):
    assert peers.measure(who, case, 300, "nap") > 10


@pytest.mark.skipif(not has("gymnax"), reason="needs the extra peers")
def test_the_network_of_the_compiled_loop_is_that_of_the_script():
    import jax

    from runs.benchmarks import peer_jax

    params = peer_jax.init(jax.random.key(1), 4, (3,))
    network = QNetwork(4, 3)
    array = {name: torch.from_numpy(np.array(params[name])) for name in ("conv", "hidden")}
    with torch.no_grad():
        # [9C, F], patches in the order of rows, columns, channels -> [F, C, 3, 3]
        network.conv.weight.copy_(array["conv"].view(3, 3, 4, 16).permute(3, 2, 0, 1))
        network.hidden.weight.copy_(array["hidden"].T)
        network.head.weight.copy_(torch.from_numpy(np.array(params["heads"][0][0])).T)
        network.head.bias.zero_()
    obs = np.random.default_rng(0).integers(0, 2, (5, 10, 10, 4)).astype(np.uint8)
    ours = network(torch.from_numpy(obs).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(peer_jax.forward(params, obs)[0], ours, rtol=1e-4, atol=1e-5)
