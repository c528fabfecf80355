"""A function on fixed memory, and what a graph of it replays.

No GPU is needed: `Tape` takes the place of a CUDA graph. It notes the operations of torch while a function runs, and
does them again on the same memory, without the function's Python. As a CUDA graph, it refuses to record an operation
that waits for a number or draws one.
"""

import contextlib
import importlib
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from agents import dqn_minatar, ppo_control, ppo_minatar
from elr.fast.captured import WARM_UP, Captured
from elr.fast.flat_adam import FlatAdam
from elr.flags import NapArgs
from runs.recording import parse, read_scalars

CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    """Operations in order, with their arguments and results."""

    def __init__(self):
        super().__init__()
        self.noted, self.replays = [], 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a graph cannot wait for a number")
        if torch.Tag.nondeterministic_seeded in operation.tags:
            raise RuntimeError(f"a graph here draws no random numbers: {operation}")
        result = operation(*args, **(kwargs or {}))
        self.noted.append((operation, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for operation, args, kwargs, result in self.noted:
            again = operation(*args, **kwargs)
            for old, new in zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Stream:
    """Of kernels; on a CPU everything runs in order."""

    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


@pytest.fixture
def tapes(monkeypatch):
    """Let Captured believe that the CPU is a GPU whose graphs are tapes; returns those made."""
    made = []

    def graph():
        made.append(Tape())
        return made[-1]

    warmed, within = [], []

    @contextlib.contextmanager
    def device(chosen):
        within.append(chosen)
        yield
        within.pop()

    def warm(stream):
        warmed.append(stream)
        return contextlib.nullcontext()

    def record(tape, stream):
        assert within and stream is warmed[-1]  # on the network's device, which need not be the current one
        return tape

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", warm)
    return made


class OnTape(Captured):
    """Captured on the CPU as if it were a GPU."""

    def __init__(self, function, device):
        super().__init__(function, device)
        self._records = True


def test_on_a_cpu_the_function_is_called_on_memory_that_stays():
    seen = []

    def function(inputs):
        seen.append([x.data_ptr() for x in inputs])
        return inputs[0] + inputs[1]

    captured = Captured(function, CPU)
    a, b = np.array([1.0, 2.0]), torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert captured([a, b]).tolist() == [4.0, 6.0]
    a += 1  # the array is the caller's
    assert captured([a, b]).tolist() == [5.0, 7.0]
    assert seen[0] == seen[1] and b.data_ptr() not in seen[0]


def test_inputs_by_name_arrive_by_name():
    captured = Captured(lambda inputs: inputs["a"] - inputs["b"], CPU)
    assert captured({"a": torch.tensor(3.0), "b": torch.tensor(1.0)}) == 2
    assert captured({"b": torch.tensor(1.0), "a": torch.tensor(5.0)}) == 4


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([torch.zeros(3)], r"captured for an input 0 of shape \(2,\) and torch.float32, got \(3,\) and torch.float32"),
        ([torch.zeros(1)], r"got \(1,\)"),  # copy_ would broadcast it
        ([torch.zeros(2, dtype=torch.float64)], "got .2,. and torch.float64"),  # copy_ would round it
        ([torch.zeros(2), torch.zeros(2)], r"captured for the inputs \[0\], got \[0, 1\]"),
        ({"obs": torch.zeros(2)}, r"captured for the inputs \[0\], got \['obs'\]"),
    ],
)
def test_other_inputs_are_refused(other, message):
    captured = Captured(lambda inputs: inputs[0], CPU)
    captured([torch.zeros(2)])
    with pytest.raises(ValueError, match=message):
        captured(other)
    assert captured([torch.ones(2)]).tolist() == [1.0, 1.0]


def test_a_graph_is_recorded_once_and_replayed(tapes):
    calls = []

    def function(inputs):
        calls.append(1)
        return inputs[0] * 2

    captured = OnTape(function, CPU)
    assert captured([torch.tensor(1.0)]) == 2
    recorded = len(calls)
    assert recorded == WARM_UP + 1
    assert [captured([torch.tensor(x)]).item() for x in (2.0, 3.0)] == [4.0, 6.0]
    assert len(calls) == recorded and [tape.replays for tape in tapes] == [3]


def test_the_tape_refuses_what_a_graph_cannot_do(tapes):
    for bad in (lambda inputs: inputs[0].item(), lambda inputs: torch.rand(2) + inputs[0]):
        with pytest.raises(RuntimeError, match="a graph"):
            OnTape(bad, CPU)([torch.tensor(1.0)])


def test_after_a_recording_that_failed_it_records_again(tapes):
    broken = [True]

    def function(inputs):
        if broken[0] and len(tapes) == 1:  # while it is recorded
            raise RuntimeError("out of memory")
        return inputs[0] * 2

    captured = OnTape(function, CPU)
    with pytest.raises(RuntimeError, match="out of memory"):
        captured([torch.tensor(1.0)])
    broken[0] = False
    assert captured([torch.tensor(2.0)]) == 4 and [tape.replays for tape in tapes] == [0, 1]


def dqn(seed):
    """The gradient of dqn_minatar on random batches, its network and target, and the optimiser."""
    torch.manual_seed(seed)
    online, target = (dqn_minatar.QNetwork(4, 3) for _ in range(2))
    rng = np.random.default_rng(seed)

    def batch():
        obs = rng.integers(0, 2, size=(2, 8, 4, 10, 10)).astype(np.uint8)
        actions, rewards = rng.integers(3, size=8), rng.normal(size=8).astype(np.float32)
        return [obs[0], actions, rewards, obs[1], (rng.random(8) < 0.3).astype(np.float32)]

    gradient = partial(dqn_minatar.td_gradient, online, target, gamma=0.9, double_q=True)
    return online, [target], FlatAdam(online.parameters(), lr=1e-2, eps=1e-8), gradient, batch


def ppo_batch(rng, obs):
    n = len(obs)
    return {
        "obs": obs, "actions": torch.from_numpy(rng.integers(2, size=n)), "logprobs": torch.full((n,), -0.7),
        "advantages": torch.from_numpy(rng.normal(size=n)).float(), "values": torch.zeros(n),
        "returns": torch.from_numpy(rng.normal(size=n)).float(),
    }  # fmt: skip


def ppo(script, make_network, shape, seed):
    torch.manual_seed(seed)
    network = make_network()
    optimizer = FlatAdam(network.parameters(), lr=1e-2, eps=1e-8)
    rng = np.random.default_rng(seed)
    gradient = partial(script.ppo_gradient, network, optimizer, args=script.Args())
    return network, [], optimizer, gradient, lambda: ppo_batch(rng, torch.from_numpy(rng.random((8, *shape))).float())


CASES = {
    "dqn_minatar": dqn,
    "ppo_minatar": partial(ppo, ppo_minatar, lambda: ppo_minatar.ActorCritic(4, 2), (4, 10, 10)),
    "ppo_control": partial(ppo, ppo_control, lambda: ppo_control.ActorCritic(3, 2, 16), (3,)),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", [Captured, OnTape])
def test_updates_with_a_captured_gradient_are_those_without(make, kind, tapes):
    """Weights change between the calls, by updates and in place by copies, as at a change of the target network."""

    def train(wrap):
        network, others, optimizer, gradient, batch = make(1)
        gradient, losses = wrap(gradient), []
        for step in range(6):
            loss, _ = gradient(batch())
            losses.append(loss.item())
            optimizer.step()
            if step == 2:
                for other in others:
                    other.load_state_dict(network.state_dict())
        return losses, optimizer.vector.clone()

    plain, captured = train(lambda gradient: gradient), train(lambda gradient: kind(gradient, CPU))
    assert plain[0] == captured[0] and len(set(plain[0])) == 6
    assert torch.equal(plain[1], captured[1])
    assert len(tapes) == (kind is OnTape) and all(tape.replays == 6 for tape in tapes)


SHORT = {"threads": 1, "nap": NapArgs(enabled=True)}
ITERATIONS = {"num_envs": 2, "num_steps": 16, "num_minibatches": 2, "update_epochs": 2, "eval_every": 0}
SCRIPTS = {
    "dqn_minatar": {
        "total_timesteps": 400, "learning_starts": 100, "buffer_size": 200, "target_network_frequency": 50,
        "gradient": "autograd", "eval_every": 0, "log_every": 20,
    },
    "ppo_minatar": {**ITERATIONS, "total_timesteps": 256},
    "ppo_control": {**ITERATIONS, "total_timesteps": 256, "width": 16, "network": "normalised"},
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("as_gpu", [False, True])
def test_a_script_trains_alike_with_and_without(name, as_gpu, tmp_path, monkeypatch, tapes):
    script = importlib.import_module(f"agents.{name}")
    if as_gpu:
        monkeypatch.setattr(script, "Captured", OnTape)
    scalars = []
    for capture in (False, True):
        directory = tmp_path / str(capture)
        script.main(script.Args(**SHORT, **SCRIPTS[name], capture=capture, directory=directory))
        scalars.append({tag: v for tag, v in read_scalars(directory).items() if "SPS" not in tag})
    assert scalars[0] == scalars[1] and len(scalars[0]) > 20
    assert bool(tapes) == as_gpu and all(tape.replays > 10 for tape in tapes)


@pytest.mark.parametrize(
    ("name", "flags", "named"),
    [
        ("dqn_minatar", ["--gradient", "explicit"], ["--gradient explicit", "--capture"]),
        ("dqn_minatar", ["--intervene.methods", "continual-backprop"], ["--capture", "--intervene.methods"]),
        ("ppo_minatar", ["--intervene.methods", "continual-backprop"], ["--capture", "--intervene.methods"]),
        ("ppo_control", ["--intervene.methods", "continual-backprop"], ["--capture", "--intervene.methods"]),
    ],
)
def test_what_a_graph_would_leave_out_is_refused(name, flags, named, capsys):
    script = importlib.import_module(f"agents.{name}")
    with pytest.raises(SystemExit):
        parse(script.Args, script.PRESETS, ["--capture", *flags])
    message = capsys.readouterr().err
    assert all(one in message for one in named), message
