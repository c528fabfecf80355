"""The Atari benchmark's patching and measurements, with miniatures in place of CleanRL's scripts."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents import dqn_atari
from runs.benchmarks import atari
from runs.benchmarks import cleanrl as helpers
from runs.benchmarks.atari import Args
from runs.benchmarks.cleanrl import Pair
from runs.recording import RunError, parse

# The smallest CleanRL-like scripts that contain the text of every substitution and run. A game of this one is three
# steps of the agent: a life ends after the second, which costs one more frame, and a game has at most four frames.
DQN = """
import argparse

import gymnasium as gym
import torch

from cleanrl_utils.buffers import ReplayBuffer


class Lives(gym.Wrapper):
    frames, over = 0, True

    def reset(self, **kwargs):
        if not self.over:
            return self.env.step(0)[0], {}
        self.frames = 0
        return self.env.reset(**kwargs)

    def step(self, action):
        obs, reward, _, self.over, info = self.env.step(action)
        self.frames += 1
        return obs, reward, self.frames == 2, self.over, info


def make_env(env_id, seed, idx, capture_video, run_name):
    def thunk():
        env = Lives(gym.wrappers.RecordEpisodeStatistics(gym.make(env_id, max_episode_steps=4)))
        env = gym.wrappers.GrayScaleObservation(env)
        env = gym.wrappers.FrameStack(env, 4)
        return env

    return thunk


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--env-id")
    for flag in ("--learning-starts", "--total-timesteps"):
        parser.add_argument(flag, type=int)
    args, _ = parser.parse_known_args()
    args.seed, args.num_envs = 1, 1
    args.capture_video, run_name = False, ""
    envs = gym.vector.SyncVectorEnv(
        [make_env(args.env_id, args.seed + i, i, args.capture_video, run_name) for i in range(args.num_envs)]
    )
    obs, _ = envs.reset(seed=args.seed)
    lengths, lives, truncated = [], 0, 0
    for global_step in range(args.total_timesteps):
        obs, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
        if "final_info" in infos:
            for info in infos["final_info"]:
                if info and "episode" in info:
                    lengths.append(int(info["episode"]["l"]))
        for idx, trunc in enumerate(truncations):
            if trunc:
                truncated += infos["final_observation"][idx].shape == (4, 210, 160)
        lives += int(terminations.sum())
"""

RAINBOW = """
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import torch

PrioritizedBatch = namedtuple("PrioritizedBatch", ["observations", "indices"])


@dataclass
class Args:
    gamma: float = 0.99
    n_step: int = 3
    n_atoms: int = 51
    v_min: float = -10
    v_max: float = 10
    prioritized_replay_alpha: float = 0.5
    prioritized_replay_beta: float = 0.4
    prioritized_replay_eps: float = 1e-6


class NoisyDuelingDistributionalNetwork(torch.nn.Module):
    def __init__(self, env, n_atoms, v_min, v_max):
        super().__init__()
        self.actions, self.support = env.single_action_space.n, torch.linspace(v_min, v_max, n_atoms)

    def reset_noise(self):
        pass

    def forward(self, obs):
        return torch.zeros(len(obs), self.actions, len(self.support))


class Tree:
    def __init__(self, capacity):
        self.tree = np.zeros(2 * capacity - 1, dtype=np.float32)

    def total(self):
        return self.tree[0]


class PrioritizedReplayBuffer:
    def __init__(self, capacity, obs_shape, device, n_step, gamma, alpha, beta, eps):
        self.sum_tree, self.min_tree, self.alpha, self.eps = Tree(capacity), Tree(capacity), alpha, eps
        self.frames, self.updated = np.zeros((capacity,) + obs_shape), []

    def sample(self, batch_size):
        samples = {
            "observations": 1 / 0,  # must not be built
        }
        samples["indices"] = list(range(batch_size))
        return PrioritizedBatch(**samples)

    def update_priorities(self, indices, priorities):
        self.updated += indices


if __name__ == "__main__":
    for global_step in range(args.total_timesteps):
        if global_step > args.learning_starts:
            if global_step % args.train_frequency == 0:
                with torch.no_grad():
                    # compute the n-step Bellman update.
                    last = args.n_atoms - 1
                    place = data.rewards + args.gamma**args.n_step * support * ~data.dones
                    place = ((place - args.v_min) / (args.v_max - args.v_min) * last).clamp(0, last)
                    target_pmfs = torch.zeros_like(next_pmfs)
                    for i, row in enumerate(place):
                        for j, x in enumerate(row):
                            share = x - x.floor()
                            target_pmfs[i, int(x)] += next_pmfs[i, j] * (1 - share)
                            target_pmfs[i, min(int(x) + 1, last)] += next_pmfs[i, j] * share

                dist = q_network(data.observations)
"""

old_ids = pytest.mark.filterwarnings("ignore:.*out of date")  # the ids of the games in CleanRL


@pytest.fixture
def clone(tmp_path: Path, monkeypatch) -> Path:
    """A directory with the layout of a CleanRL clone and the miniatures; OpenCV seems to be installed."""
    files = (("cleanrl", "dqn_atari.py", DQN), ("cleanrl", "rainbow_atari.py", RAINBOW))
    for package, module, text in (*files, ("cleanrl_utils", "buffers.py", "ReplayBuffer = 0")):
        (tmp_path / package).mkdir(exist_ok=True)
        (tmp_path / package / module).write_text(text)
    monkeypatch.setattr(atari, "find_spec", lambda name: name)
    return tmp_path


def sides(cleanrl: str = RAINBOW, clone: Path = Path("/")) -> tuple[dict, dict]:
    """The names that both Rainbow scripts define."""
    script = helpers.ROOT / "agents" / "rainbow_atari.py"
    return atari.load(atari.with_projection(cleanrl), clone), runpy.run_path(str(script))


# patching


@pytest.mark.parametrize("edit", atari.dqn_substitutions(threads=1), ids=lambda edit: edit.name)
def test_every_substitution_in_dqn_is_needed_once(edit):
    assert DQN.count(edit.old) == 1
    for damaged in (DQN.replace(edit.old, ""), DQN + edit.old):
        with pytest.raises(RunError, match=f"{edit.name!r}.*exactly once in CleanRL's dqn_atari.py"):
            helpers.substitute(damaged, atari.dqn_substitutions(threads=1), "dqn_atari.py")


@pytest.mark.parametrize("edit", atari.RAINBOW_SUBSTITUTIONS, ids=lambda edit: edit.name)
def test_every_substitution_in_rainbow_is_needed_once(edit):
    assert RAINBOW.count(edit.old) == 1
    for damaged in (RAINBOW.replace(edit.old, ""), RAINBOW + edit.old):
        with pytest.raises(RunError, match=f"{edit.name!r}.*exactly once in CleanRL's rainbow_atari.py"):
            atari.with_projection(damaged)


@old_ids
def test_patched_dqn_atari_runs_and_distinguishes_games_from_lives(clone, monkeypatch, capsys):
    script = clone / "patched.py"
    script.write_text(helpers.substitute(DQN, atari.dqn_substitutions(threads=1)))
    flags = ["--env-id", "PongNoFrameskip-v4", "--learning-starts", "10", "--total-timesteps", "30"]
    monkeypatch.setattr(sys, "argv", [str(script), *flags])
    monkeypatch.syspath_prepend(clone)
    state = runpy.run_path(str(script), run_name="__main__")
    assert helpers.timed_rate(capsys.readouterr().out) > 0
    assert state["lengths"] == [4] * 10  # frames of each game; nothing is recorded at the end of a life
    assert state["lives"] == state["truncated"] == 10


def test_script_is_loaded_with_its_clone_and_sys_path_is_restored(clone):
    (clone / "only_in_this_clone.py").write_text("number = 3")
    before = list(sys.path)
    assert atari.load("from only_in_this_clone import number", clone)["number"] == 3
    with pytest.raises(ZeroDivisionError):
        atari.load("1 / 0", clone)
    assert sys.path == before


def test_only_the_projection_becomes_a_function():
    text = atari.with_projection(RAINBOW)
    begin = text.index("def project(")
    assert text[begin:].count("target_pmfs = torch.zeros_like(next_pmfs)") == 1
    assert "q_network(data.observations)" not in text[begin:] and "cut here" not in text
    assert atari.load(text, Path("/"))["Args"]().n_step == 3


# environments


def test_blocks_alternate_after_a_warm_up():
    calls = []
    pairs = list(atari.interleave(lambda: calls.append("A"), lambda: calls.append("B"), repeats=2, calls=2, unit=7))
    assert "".join(calls) == "AAABBB" + "AABB" * 2
    assert len(pairs) == 2 and all(speed > 0 for pair in pairs for speed in pair)


def test_both_environments_get_the_same_actions():
    played = []
    for actions in (played, played):
        env = SimpleNamespace(num_envs=3, single_action_space=SimpleNamespace(n=4), reset=lambda seed: None)
        env.step = lambda a, to=actions: to.append(a.tolist())
        step = atari.player(env)
        step(), step()
    assert played[:2] == played[2:] and played[0] != played[1]


@old_ids
def test_envs_are_measured_on_both_sides(clone, capsys):
    args = Args(clone, what=("envs",), games=("Pong",), num_envs=1, env_steps=1, repeats=1, env_threads=(1, 0))
    atari.main(args)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("ours 1 thread(s)") and lines[4].endswith("ours in Python")
    assert all(line.count("ratio") == 1 for line in (*lines[2:4], *lines[5:7]))


@old_ids
def test_cleanrl_environments_restart_within_the_step(clone):
    script = atari.load(helpers.substitute(DQN, atari.dqn_substitutions(1)), clone)
    env = atari.cleanrl_envs(script, "Pong", 1)
    env.reset(seed=1)
    infos = [env.step(np.zeros(1, dtype=np.int64))[4] for _ in range(3)]
    assert [("final_obs" in info, "episode" in info.get("final_info", {})) for info in infos] == [
        (False, False),
        (True, False),
        (True, True),
    ]
    env.close()


# DQN


@pytest.mark.parametrize("bf16", [False, True])
def test_our_script_gets_the_same_work(clone, monkeypatch, bf16):
    given = []

    def run_script(command, directory, environment):
        given.extend(command[1:])
        run = Path(given[given.index("--directory") + 1])
        run.mkdir()
        rows = [f"{step},charts/SPS,{speed}" for step, speed in ((100, 900), (200, 900), (300, 30), (400, 30))]
        (run / "scalars.csv").write_text("\n".join(["step,tag,value", *rows]))
        assert environment["OMP_NUM_THREADS"] == "2"

    monkeypatch.setattr(atari, "run_script", run_script)
    args = Args(clone, steps=200, learning_starts=200, bf16=bf16)
    assert atari.measure_our_dqn(args, "Pong", 2) == pytest.approx(30)
    flags = parse(dqn_atari.Args, dqn_atari.PRESETS, given)
    assert flags.bf16 == bf16
    assert (flags.env_id, flags.protocol, flags.network, flags.threads) == ("ALE/Pong-v5", "classic", "plain", 2)
    assert (flags.batch_size, flags.replay_ratio, flags.learning_starts, flags.total_timesteps) == (32, 0.25, 200, 400)
    assert flags.start_e == flags.end_e == atari.EPSILON and flags.buffer_size >= 400
    assert not flags.nap.enabled and flags.probe == dqn_atari.ProbeArgs()


def test_cleanrl_script_gets_the_same_work(clone, monkeypatch):
    given = []

    def run_script(command, directory, environment):
        given.extend(command[1:])
        assert "torch.set_num_threads(2)" in command[0].read_text()
        return "SPS: 3\ntimed steps=200 seconds=10.0\n"

    monkeypatch.setattr(atari, "run_script", run_script)
    args = Args(clone, steps=200, learning_starts=200)
    assert atari.measure_cleanrl_dqn(args, "Pong", 2) == 20
    flags = dict(zip(given[::2], given[1::2], strict=True))
    assert flags["--env-id"] == "PongNoFrameskip-v4" and flags["--train-frequency"] == "4"
    assert flags["--total-timesteps"] == "401"  # it counts from 0 and learns from the next step on
    shared = atari.shared_flags(args)
    assert given[4:-2] == shared and "--batch-size" in shared


def test_dqn_scripts_alternate(clone, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(atari, "measure_cleanrl_dqn", lambda *a: calls.append(("A", *a[1:])) or 50.0)
    monkeypatch.setattr(atari, "measure_our_dqn", lambda *a: calls.append(("B", *a[1:])) or 80.0)
    atari.main(Args(clone, what=("dqn",), games=("Pong",), repeats=2))
    expected = [(side, "Pong", threads) for threads in (1, 2) for side in "ABAB"]
    assert calls == expected and capsys.readouterr().out.count("ratio 1.60 [1.60, 1.60]") == 2


def test_python_path_of_the_caller_is_kept(clone, monkeypatch):
    args = Args(clone)
    monkeypatch.setenv("PYTHONPATH", "/where/opencv/is")
    ours = helpers.child_environment(1, clone)["PYTHONPATH"]
    assert atari.environment(args, 1)["PYTHONPATH"] == f"{ours}:/where/opencv/is"
    monkeypatch.delenv("PYTHONPATH")
    assert atari.environment(args, 1)["PYTHONPATH"] == ours


# parts of Rainbow


@given(st.lists(st.integers(0, 100), min_size=1, max_size=70), st.sampled_from([np.add, np.minimum]))
def test_every_inner_node_combines_its_children(leaves, combine):
    n = len(leaves)
    nodes = np.full(2 * n - 1, -1.0)
    atari.fill_tree(nodes, np.array(leaves, dtype=float), combine)
    assert nodes[n - 1 :].tolist() == leaves
    assert all(nodes[k] == combine(nodes[2 * k + 1], nodes[2 * k + 2]) for k in range(n - 1))


def test_every_part_of_rainbow_is_timed(clone, capsys):
    atari.main(Args(clone, what=("parts",), blocks=2, calls=1, capacity=1000))
    lines = capsys.readouterr().out.splitlines()
    assert "batch 32, 1,000 transitions, medians of 2 blocks of 1 calls" in lines[1]
    names = ["noise", "noise, forward of 32", "projection", "prioritised sampling", "new priorities"]
    assert [line.split("CleanRL")[0].strip() for line in lines[2:]] == names


def test_both_memories_have_the_same_priorities_and_get_the_same_updates():
    cleanrl, ours = sides()
    sampling, update = atari.priority_parts(cleanrl, ours, 1000)
    assert len(sampling.cleanrl()["indices"]) == len(sampling.ours()[0]) == atari.BATCH
    inside = [dict(zip(f.__code__.co_freevars, f.__closure__, strict=True)) for f in (update.cleanrl, update.ours)]
    theirs, priorities = inside[0]["theirs"].cell_contents, inside[1]["priorities"].cell_contents
    assert np.allclose(theirs.sum_tree.tree[999:], priorities.tree.leaves, atol=1e-5)
    assert theirs.min_tree.tree[0] == theirs.min_tree.tree[999:].min() > 0
    before = priorities.tree.leaves.copy()
    update.cleanrl(), update.ours()
    assert sorted(theirs.updated) == np.flatnonzero(priorities.tree.leaves != before).tolist()


def test_different_projections_are_refused():
    wrong = RAINBOW.replace("(1 - share)", "(2 - share)")
    with pytest.raises(RunError, match="projection: CleanRL's"):
        atari.network_parts(*sides(wrong))


def test_microseconds_are_medians_and_the_ratio_is_within_a_pair():
    line = atari.microseconds("noise", [Pair(1000.0, 4000.0), Pair(500.0, 1000.0)])
    assert line.split() == ["noise", "CleanRL", "1500", "ours", "625", "ratio", "3.00", "[2.00,", "4.00]"]


# bad arguments


@pytest.mark.parametrize("name", ["dqn_atari.py", "rainbow_atari.py"])
def test_atari_args_refuse_a_directory_without_a_clone(clone, name):
    (clone / "cleanrl" / name).unlink()
    with pytest.raises(ValueError, match=f"has no cleanrl/{name}"):
        Args(clone)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"repeats": 0}, "--repeats must be at least 1, got 0"),
        ({"steps": 50}, "--steps must be at least 100, got 50"),
        ({"learning_starts": 250}, r"--learning-starts must be a multiple of 100 .*, got 250"),
        ({"threads": (1, 0)}, "--threads must be >= 1 and --env-threads >= 0"),
        ({"games": ()}, "--games is empty"),
        ({"bf16": True, "what": ("envs", "parts")}, "--bf16 has no effect with --what envs parts"),
    ],
)
def test_atari_args_refuse_bad_numbers(clone, bad, message):
    with pytest.raises(ValueError, match=message):
        Args(clone, **bad)


def test_opencv_is_required_only_where_it_is_needed(clone, monkeypatch):
    monkeypatch.setattr(atari, "find_spec", lambda name: None)
    for what in ("envs", "dqn"):
        with pytest.raises(ValueError, match="pip install opencv-python-headless"):
            Args(clone, what=(what,))
    assert Args(clone, what=("parts",)).what == ("parts",)


def test_networks_have_the_same_output_shape():
    cleanrl, ours = sides()
    parts = atari.network_parts(cleanrl, ours)
    with torch.no_grad():
        assert parts[1].cleanrl().shape == parts[1].ours().shape == (atari.BATCH, atari.ACTIONS, 51)
