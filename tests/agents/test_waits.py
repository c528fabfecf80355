"""On a GPU an update must not wait for the device.

Between two updates the host reads nothing that the device computed, except to act and where the script records. Each
script runs on the CPU as it would on a GPU, and reads by the methods in READS are noted. Operations that wait inside
torch (`x[mask]`, `nonzero`, `torch.equal`) are not seen here: a GPU shows them by torch.cuda.set_sync_debug_mode.
"""

import collections
import importlib
import sys
from pathlib import Path

import pytest
import torch

from elr.flags import ProbeArgs
from elr.projection import Projection
from runs.training.session import Session

READS = ("item", "cpu", "numpy", "tolist", "__float__", "__bool__", "__int__", "__index__", "__array__")
ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(str(ROOT / package) for package in ("agents", "elr", "envs", "runs"))  # not an environment inside ROOT
NEVER = 1_000_000

OFF = {"probe": ProbeArgs(every=0, meter_every=0), "checkpoint_every": NEVER}
MEMORY = {"learning_starts": 60, "buffer_size": 200, "batch_size": 4, "log_every": NEVER, "eval_every": 0}
GREEDY = {"exploration_steps": 1, "end_e": 0.0}
CATCH = {"env_id": "rewarm/Catch-v0", "target_network_frequency": NEVER, "network": "normalised"}
ITERATIONS = {"num_steps": 16, "num_minibatches": 4, "update_epochs": 2, "eval_every": 0, "network": "normalised"}
FLAGS = {
    "dqn_minatar": {**MEMORY, **GREEDY, "total_timesteps": 90, "gradient": "autograd"},
    "dqn_atari": {**MEMORY, **GREEDY, **CATCH, "total_timesteps": 100},
    "rainbow_atari": {**MEMORY, **CATCH, "total_timesteps": 100},
    "ppo_minatar": {**ITERATIONS, "num_envs": 4, "total_timesteps": 128},
    "ppo_control": {**ITERATIONS, "num_envs": 4, "total_timesteps": 128, "width": 16},
    "ppo_atari": {**ITERATIONS, "num_envs": 2, "total_timesteps": 64, "env_id": "rewarm/Catch-v0"},
    "warm_start": {
        "phase_updates": 12, "width": 4, "hidden": 8, "batch_size": 16, "eval_every": NEVER, "log_every": NEVER,
    },
    "grokking": {
        "p": 11, "train_fraction": 0.5, "heads": 2, "head_size": 4, "hidden": 16, "total_updates": 40,
        "evaluations_per_decade": 1,
    },
}  # fmt: skip
PPO_UPDATES = 8
"""of an iteration"""


def names_a_function_of_ours(code):
    """Comprehensions have frames of their own before Python 3.12: the function around them counts."""
    return code.co_filename.startswith(OURS) and not code.co_name.startswith("<")


@pytest.fixture
def updates(monkeypatch):
    """For each update of a run, the functions of ours that read a tensor since the update before, and how often."""
    noted, current, reading = [], collections.Counter(), False

    def watch(name):
        original = getattr(torch.Tensor, name)

        def read(self, *args, **options):
            nonlocal reading
            if reading:  # one read may use another: float() of a tensor, item()
                return original(self, *args, **options)
            frame = sys._getframe(1)
            while frame is not None and not names_a_function_of_ours(frame.f_code):
                frame = frame.f_back
            current[frame.f_code.co_name if frame else "a library"] += 1
            reading = True
            try:
                return original(self, *args, **options)
            finally:
                reading = False

        monkeypatch.setattr(torch.Tensor, name, read)

    for name in READS:
        watch(name)
    step = Projection.step

    def end_of_update(self, rate):
        step(self, rate)
        noted.append(dict(current))
        current.clear()

    monkeypatch.setattr(Projection, "step", end_of_update)
    monkeypatch.setattr(Session, "on_cpu", property(lambda self: False))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(Session, "_on_host", lambda self, number: False)
    return noted


def run(name, directory, **flags):
    script = importlib.import_module(f"agents.{name}")
    script.main(script.Args(**OFF, **FLAGS[name], **flags, nap=script.NapArgs(enabled=True), directory=directory))


ON_DEVICE = {"replay_device": "device"}


@pytest.mark.parametrize(("name", "flags"), [("dqn_minatar", {}), ("dqn_atari", {}), ("dqn_atari", ON_DEVICE)])
def test_a_dqn_update_reads_nothing_but_the_action(name, flags, tmp_path, updates):
    run(name, tmp_path / "r", **flags)
    assert len(updates) > 8
    for readers in updates[1:]:
        assert readers.keys() <= {"q_values"}
    assert any(updates[1:])  # acting is noted


@pytest.mark.parametrize("flags", [{}, ON_DEVICE])
def test_a_rainbow_update_reads_only_the_losses_for_the_priorities(flags, tmp_path, updates):
    run("rainbow_atari", tmp_path / "r", **flags)
    assert len(updates) > 8
    for readers in updates[1:]:
        assert readers.pop("main") <= 2 and readers.keys() <= {"q_values"}  # .cpu().numpy()


@pytest.mark.parametrize("name", ["ppo_minatar", "ppo_control", "ppo_atari"])
def test_a_ppo_update_reads_nothing_within_an_iteration(name, tmp_path, updates):
    run(name, tmp_path / "r")
    assert len(updates) == 2 * PPO_UPDATES
    for i, readers in enumerate(updates):
        if i % PPO_UPDATES == PPO_UPDATES - 1:
            assert readers == {"require_finite": 1}  # the loss, once per iteration
        elif i % PPO_UPDATES:
            assert readers == {}


@pytest.mark.parametrize("name", ["warm_start", "grokking"])
def test_a_supervised_update_reads_nothing(name, tmp_path, updates):
    run(name, tmp_path / "r")
    noisy = [readers for readers in updates[1:] if readers]
    assert len(updates) > 20 and len(noisy) <= 2  # grokking's probe; warm_start's fresh network
    beginning = {"check_scale_invariance", "_views"}  # NumPy's views of weights are taken on a CPU only
    for readers in noisy:
        assert readers.keys() & {"evaluate", "measure", "accuracy", "gradient_norm", *beginning}
