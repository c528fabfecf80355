"""The DQN benchmark's parsing, arithmetic and patching, with a miniature in place of CleanRL's script."""

import importlib.util
import itertools
import math
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runs.benchmarks import cleanrl as helpers
from runs.benchmarks import dqn
from runs.benchmarks.cleanrl import Pair, Substitution
from runs.benchmarks.dqn import Args
from runs.recording import RunError

# The smallest CleanRL-like script that contains the text of every substitution and runs.
MINIATURE = """
import argparse

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn

from cleanrl_utils.buffers import ReplayBuffer


class QNetwork(nn.Module):
    pass


def make_env(env_id, seed, i, video, name):
    return lambda: gym.wrappers.RecordEpisodeStatistics(gym.make(env_id, max_episode_steps=3))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for flag in ("--env-id", "--batch-size", "--buffer-size", "--start-e", "--end-e"):
        parser.add_argument(flag)
    for flag in ("--learning-starts", "--total-timesteps", "--train-frequency"):
        parser.add_argument(flag, type=int)
    args = parser.parse_args()
    args.seed, args.num_envs = 1, 1
    args.capture_video, run_name = False, ""
    envs = gym.vector.SyncVectorEnv(
        [make_env(args.env_id, args.seed + i, i, args.capture_video, run_name) for i in range(args.num_envs)]
    )
    q_network = QNetwork(envs)
    obs, _ = envs.reset(seed=args.seed)
    returns, truncated, updates = [], 0, []
    for global_step in range(args.total_timesteps):
        actions = q_network(torch.Tensor(obs)).argmax(dim=1).numpy()
        obs, rewards, terminations, truncations, infos = envs.step(actions)
        if "final_info" in infos:
            for info in infos["final_info"]:
                if info and "episode" in info:
                    returns.append(info["episode"]["r"])
        for idx, trunc in enumerate(truncations):
            if trunc:
                truncated += infos["final_observation"][idx].shape == (10, 10, 4)
        if global_step > args.learning_starts:
            if global_step % args.train_frequency == 0:
                updates.append(global_step)
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A directory with the layout of a CleanRL clone and the miniature."""
    files = (("cleanrl", "dqn.py", MINIATURE), ("cleanrl_utils", "buffers.py", "ReplayBuffer = 0"))
    for package, module, text in files:
        (tmp_path / package).mkdir()
        (tmp_path / package / module).write_text(text)
    return tmp_path


def spaces(channels: int, actions: int) -> SimpleNamespace:
    """The attributes of a vector environment that the network reads."""
    return SimpleNamespace(
        single_observation_space=SimpleNamespace(shape=(10, 10, channels)),
        single_action_space=SimpleNamespace(n=np.int64(actions)),
    )


# timing CleanRL's script


def test_timed_range_counts_only_the_steps_from_start():
    ticks = itertools.count(start=10.0, step=2.5)
    steps = list(helpers.timed_range(5, start=2, clock=lambda: next(ticks)))
    assert steps == [0, 1, 2, 3, 4]


def test_timed_range_and_timed_rate_agree(capsys):
    now = [0.0]
    for step in helpers.timed_range(5, start=2, clock=lambda: now[0]):
        now[0] += 100.0 if step < 2 else 0.25  # two slow steps before learning starts, then three of 0.25 s
    output = f"SPS: 12\n{capsys.readouterr().out}bye\n"
    assert helpers.timed_rate(output) == 4.0


@pytest.mark.parametrize(("stop", "start"), [(5, 5), (0, 0), (3, -1)])
def test_timed_range_refuses_empty_ranges(stop, start):
    with pytest.raises(ValueError, match="times nothing"):
        list(helpers.timed_range(stop, start))


@pytest.mark.parametrize("output", ["SPS: 12\n", "timed steps=1 seconds=1.0\n" * 2])
def test_timed_rate_needs_exactly_one_line(output):
    with pytest.raises(ValueError, match="expected one"):
        helpers.timed_rate(output)


# reading our speed


def test_overall_rate_is_the_step_weighted_harmonic_mean():
    # 500 steps at 100/s take 5 s, 1000 steps at 200/s take 5 s; the interval 500-1000 has no updates.
    speeds = [(500, 9000.0), (1000, 8000.0), (1500, 100.0), (2500, 200.0)]
    assert helpers.overall_rate(speeds, after=1000) == pytest.approx(150.0)


def test_overall_rate_drops_the_interval_in_which_learning_starts():
    speeds = [(600, 9000.0), (1200, 4000.0), (1800, 100.0)]
    assert helpers.overall_rate(speeds, after=1000) == pytest.approx(100.0)
    assert helpers.overall_rate(speeds, after=600) > 150.0  # control: with it the mean is different


def test_overall_rate_without_a_whole_interval():
    with pytest.raises(ValueError, match="measure more steps"):
        helpers.overall_rate([(1000, 5.0)], after=1000)


@given(st.lists(st.floats(1.0, 1e4), min_size=1, max_size=9), st.integers(1, 500))
def test_overall_rate_lies_between_the_slowest_and_the_fastest_interval(rates, every):
    speeds = [(every * i, rate) for i, rate in enumerate([1e9, *rates], start=1)]
    overall = helpers.overall_rate(speeds, after=0)
    assert min(rates) * (1 - 1e-9) <= overall <= max(rates) * (1 + 1e-9)
    assert overall == pytest.approx(len(rates) / sum(1 / rate for rate in rates))


def test_read_speeds_picks_one_tag_in_order(tmp_path):
    table = tmp_path / "scalars.csv"
    table.write_text("step,tag,value\n10,charts/SPS,5\n10,losses/td_loss,0.5\n20,charts/SPS,7.5\n")
    assert helpers.read_speeds(table) == [(10, 5.0), (20, 7.5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [("step,tag,value\n1,losses/td_loss,2\n", "no row of charts/SPS"), ("step,name,value\n", r"no column \['tag'\]")],
)
def test_read_speeds_says_what_is_missing(tmp_path, text, message):
    table = tmp_path / "scalars.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        helpers.read_speeds(table)


# patching


def test_substitute_applies_edits_in_order():
    edits = [Substitution("one", "a", "b"), Substitution("two", "bc", "d")]
    assert helpers.substitute("ac", edits) == "d"


@pytest.mark.parametrize(("text", "count"), [("xyz", 0), ("a-a", 2)])
def test_substitute_names_the_edit_that_does_not_match_once(text, count):
    with pytest.raises(RunError, match=f"'the name'.*found it {count} times"):
        helpers.substitute(text, [Substitution("the name", "a", "b")])


@pytest.mark.parametrize("edit", dqn.substitutions(threads=1, updates=2), ids=lambda edit: edit.name)
def test_every_substitution_is_needed_once(edit):
    assert MINIATURE.count(edit.old) == 1
    for damaged in (MINIATURE.replace(edit.old, ""), MINIATURE + edit.old):
        with pytest.raises(RunError, match="exactly once"):
            helpers.substitute(damaged, dqn.substitutions(threads=1, updates=2))


def test_threads_are_set_only_if_given():
    one, as_shipped = (helpers.substitute(MINIATURE, dqn.substitutions(threads)) for threads in (1, 0))
    assert "torch.set_num_threads(1)" in one
    assert "set_num_threads" not in as_shipped


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
@pytest.mark.parametrize(("ratio", "made"), [(0.25, 7), (1.0, 29), (2.0, 58), (8.0, 232)])
def test_patched_dqn_script_runs_records_its_episodes_and_makes_its_updates(ratio, made, clone, monkeypatch, capsys):
    script = clone / "patched.py"
    frequency, updates = dqn.cadence(ratio)
    script.write_text(helpers.substitute(MINIATURE, dqn.substitutions(threads=1, updates=updates)))
    flags = [*dqn.SHARED_FLAGS, "--learning-starts", "10", "--total-timesteps", "40"]
    flags += ["--train-frequency", str(frequency)]
    monkeypatch.setattr(sys, "argv", [str(script), *flags])
    monkeypatch.syspath_prepend(clone)
    state = runpy.run_path(str(script), run_name="__main__")
    assert helpers.timed_rate(capsys.readouterr().out) > 0
    assert len(state["returns"]) >= 40 // 3 and all(np.ndim(value) == 0 for value in state["returns"])
    assert state["truncated"] >= 1  # final_obs was found; the unpatched key would raise
    assert state["global_step"] == 39 and len(state["updates"]) == made  # of the 29 steps after step 10


# the network


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_network_shapes_and_size(dtype):
    network = dqn.MinAtarQNetwork(spaces(channels=4, actions=3))
    assert network(torch.ones(5, 10, 10, 4).to(dtype)).shape == (5, 3)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in network.network]
    assert sizes == [16 * 4 * 9, 2 * 16 * 8 * 8, 0, 0, 1024 * 128, 2 * 128, 0, 128 * 3 + 3]


def test_network_reads_channels_from_the_last_axis():
    network = dqn.MinAtarQNetwork(spaces(channels=4, actions=3))
    with torch.no_grad():
        network.network[0].weight[:, 2] = 0.0  # blind to channel 2
    obs = torch.rand(2, 10, 10, 4, generator=torch.Generator().manual_seed(0))
    base = network(obs)
    for channel in range(4):
        changed = obs.clone()
        changed[..., channel] = 1 - changed[..., channel]
        assert torch.equal(network(changed), base) == (channel == 2)


# running and reporting


@pytest.mark.parametrize(
    ("ratio", "steps", "updates"), [(1.0, 1, 1), (0.5, 2, 1), (0.25, 4, 1), (1 / 3, 3, 1), (2.0, 1, 2), (8.0, 1, 8)]
)
def test_cadence(ratio, steps, updates):
    assert dqn.cadence(ratio) == (steps, updates)


@pytest.mark.parametrize("ratio", [0.0, -1.0, 0.3, 0.75, 1.5, 2.5, math.inf, math.nan])
def test_cadence_refuses_what_cleanrl_cannot_do(ratio):
    with pytest.raises(ValueError, match=r"must be k or 1/k"):
        dqn.cadence(ratio)


def test_ratios_above_and_below_one_are_measured_by_default(clone):
    assert set(Args(cleanrl=clone).replay_ratios) == {0.25, 1.0, 2.0, 4.0, 8.0}


def test_args_refuse_a_directory_without_a_clone(tmp_path):
    with pytest.raises(ValueError, match=r"has no cleanrl/dqn\.py"):
        Args(cleanrl=tmp_path)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"repeats": 0}, {"threads": -1}, {"replay_ratios": (0.3,)}])
def test_args_refuse_bad_numbers(clone, bad):
    with pytest.raises(ValueError, match=r"must be at least|must be k or 1/k"):
        Args(cleanrl=clone, **bad)


def test_child_environment_sets_threads_only_if_given(clone, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert helpers.child_environment(2, clone)["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in helpers.child_environment(0, clone)


def test_measure_ours_runs_the_script_and_reads_its_table(clone, tmp_path):
    script = tmp_path / "ours.py"
    script.write_text(
        "import pathlib, sys\n"
        "words = sys.argv[1:]\n"
        "assert words[0] == 'nap' and words[words.index('--threads') + 1] == '1'\n"
        "assert words[words.index('--replay-ratio') + 1] == '0.5'\n"
        "last = int(words[words.index('--total-timesteps') + 1])\n"
        "run = pathlib.Path(words[words.index('--directory') + 1])\n"
        "run.mkdir()\n"
        "rows = [(1000, 9e9), (1500, 300), (last, 300)]\n"
        "lines = [f'{step},charts/SPS,{rate}' for step, rate in rows]\n"
        "(run / 'scalars.csv').write_text('\\n'.join(['step,tag,value', *lines]))\n"
    )
    args = Args(cleanrl=clone, steps=2000, preset="nap")
    assert dqn.measure_ours(args, 0.5, script) == pytest.approx(300.0)


def test_failing_script_is_reported_with_its_errors(tmp_path):
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit('no such flag')")
    with pytest.raises(RuntimeError, match="no such flag"):
        helpers.run_script([script], tmp_path, {})


def test_runs_of_both_sides_alternate(clone, monkeypatch):
    calls = []
    monkeypatch.setattr(dqn, "measure_cleanrl", lambda args, ratio: calls.append("A") or 100.0)
    monkeypatch.setattr(dqn, "measure_ours", lambda args, ratio: calls.append("B") or 250.0)
    pairs = list(dqn.measure_pairs(Args(cleanrl=clone, repeats=3), 1.0))
    assert "".join(calls) == "ABABAB"
    assert pairs == [Pair(cleanrl=100.0, ours=250.0)] * 3
    assert "ratio 2.50" in helpers.describe(pairs[0])


def test_summary_takes_the_ratio_within_each_pair():
    # The machine is half as fast in the second pair.
    pairs = [Pair(200.0, 400.0), Pair(100.0, 300.0), Pair(150.0, 150.0)]
    summary = helpers.summarise(pairs)
    assert "CleanRL 150 [100, 200]" in summary
    assert "ours 300 [150, 400]" in summary
    assert "ratio 2.00 [1.00, 3.00]" in summary
    with pytest.raises(ValueError, match="no pair"):
        helpers.summarise([])


@pytest.mark.parametrize("gradient", ["default", "compiled"])
def test_our_script_is_asked_for_the_gradient(clone, monkeypatch, gradient):
    commands = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(dqn, "run_script", lambda command, *_: commands.append(command))
    monkeypatch.setattr(dqn, "read_speeds", lambda path: [])
    monkeypatch.setattr(dqn, "overall_rate", lambda speeds, after: 1.0)
    args = dqn.Args(clone, gradient=gradient)
    dqn.measure_ours(args, 1.0)
    (command,) = commands
    asked = command[command.index("--gradient") + 1] if "--gradient" in command else "default"
    assert asked == gradient


def test_compiled_without_numba_is_refused(clone, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'--gradient compiled needs numba: pip install -e "\.\[fast\]"'):
        dqn.Args(clone, gradient="compiled")
