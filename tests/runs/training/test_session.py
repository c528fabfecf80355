"""The session of a training run: streams, checkpoints, signals, finiteness, records and what is printed."""

import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info
from torch import nn

import elr
from elr.fast.flat_adam import FlatAdam
from runs.recording import (
    NonFiniteError,
    Run,
    RunError,
    exit_with_one_line,
    load_checkpoint,
    read_scalars,
    read_status,
)
from runs.recording.events_file import EventFile
from runs.training import Session
from runs.training import session as module

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Args:
    """What a session reads of a script's flags."""

    seed: int = 7
    threads: int = 1
    device: str = "cpu"
    exp_name: str = "name"
    log_every: int = 4
    eval_every: int = 5
    directory: Path | None = None
    resume: Path | None = None
    seeds: tuple[int, ...] = ()
    track: bool = False
    wandb_project_name: str = "rewarm"
    wandb_entity: str | None = None
    extend: int | None = None
    branch: str | None = None
    keep_checkpoints_every: int = 0


def session(directory=None, *, total=10, streams="init env action", unit="step", **flags):
    return Session(Args(directory=directory, **flags), "about", total=total, streams=streams, unit=unit)


@contextmanager
def opened(directory, **changes) -> Iterator[Session]:
    """An open session without parts."""
    run = session(directory, **changes)
    with run.open():
        yield run


def state_of(directory):
    return load_checkpoint(directory / "checkpoint.pt")["state"]


# randomness


def test_streams_are_the_children_of_the_seed_in_the_order_of_their_names():
    run = session(streams="init env action")
    children = np.random.SeedSequence(7).spawn(3)
    for name, child in zip(("init", "env", "action"), children, strict=True):
        assert run.seed(name) == int(child.generate_state(1)[0])
        assert run.generator(name).random(5).tolist() == np.random.default_rng(child).random(5).tolist()
    assert session().seed("init") == 1201125462  # NumPy promises that it stays this number


def test_a_seed_with_a_key_is_that_of_a_child_and_needs_no_state():
    run = session(streams="init env action")
    child = np.random.SeedSequence(7).spawn(3)[2].spawn(6)[5]
    assert run.seed("action", 5) == int(child.generate_state(1)[0])
    assert run.seed("action", 5, 1) == int(child.spawn(2)[1].generate_state(1)[0])
    run.generator("action").random(3)
    assert run.seed("action", 5) == session(streams="init env action").seed("action", 5)


def test_a_generator_continues_where_it_is_asked_for_again():
    run = session()
    first = run.generator("env")
    first.random(3)
    assert run.generator("env") is first


def test_torchs_generator_is_seeded_so_that_dropout_repeats():
    drawn = []
    for seed in (7, 7, 8):
        session(seed=seed)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"seed": -1}, "--seed -1"),
        ({"device": "abacus"}, "--device abacus"),
        ({"device": "cuda:99"}, "--device cuda:99"),
    ],
)
def test_a_seed_or_device_that_cannot_be_is_one_line_and_nothing_is_written(tmp_path, flags, named):
    with pytest.raises(RunError, match=named) as error:
        session(tmp_path / "r", **flags)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "r").exists()


def test_threads_are_those_of_torch_and_of_numpy():
    try:
        session(threads=2)
        assert torch.get_num_threads() == 2
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {2}
    finally:
        session(threads=1)
    assert torch.get_num_threads() == 1
    assert {pool["num_threads"] for pool in threadpool_info()} == {1}


def test_more_threads_than_the_machine_can_use_are_refused_before_they_are_set(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: pytest.fail(f"{n} threads were set"))
    monkeypatch.setattr(module, "threadpool_limits", lambda n: pytest.fail(f"{n} threads were set"))
    for threads in (1_000_000, 0):
        with pytest.raises(RunError, match=r"--threads must be .*, got ") as error:
            session(tmp_path / "r", threads=threads)
        assert "\n" not in str(error.value) and not (tmp_path / "r").exists()


def test_a_resumed_run_may_come_from_a_larger_machine(tmp_path, monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(module, "threadpool_limits", lambda _: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    session(resume=tmp_path, threads=17)
    assert set_to == [17]


# checkpoints


class Rows:
    """A part in pieces: a growing list, of which each checkpoint writes the last ten in one piece."""

    def __init__(self):
        self.rows = []
        self.pieces = []

    def save(self, pieces):
        name = f"rows-{len(self.rows)}"
        pieces.write(name, {"rows": self.rows[-10:]})
        self.pieces = [(name, len(self.rows))]
        return {"pieces": self.pieces}

    def load(self, state, pieces):
        self.pieces = [tuple(piece) for piece in state["pieces"]]
        (name, _) = self.pieces[0]
        self.rows = pieces.read(name)["rows"]


def train(directory, *, until=10, resume=False, streams="init env action"):
    """A network with dropout fitted to noise; at step 4 a second one begins. What a checkpoint must bring back."""
    run = session(directory, streams=streams, **({"resume": directory} if resume else {}))
    with torch.random.fork_rng():
        torch.manual_seed(run.seed("init"))
        network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer, late, rows = torch.optim.Adam(network.parameters(), lr=0.01), nn.Linear(1, 1), Rows()
    env, action = run.generator("env"), run.generator("action")
    at = run.counters(first=0, name="a")
    run.keep(network=network, optimizer=optimizer, rows=rows)
    run.watch(network, optimizer)
    with run.open():
        if "late" in run.saved:
            run.keep(late=late)
        run.restore() if run.resumed else run.checkpoint()
        while run.running() and run.step < until:
            x = torch.from_numpy(env.random((5, 3), dtype=np.float32))
            loss = (network(x) - float(action.random())).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step, run.updates = run.step + 1, run.updates + 2
            at.first, at.name = run.step * 3, f"{at.name}{run.step}"
            rows.rows.append(run.step)
            run.scalar("losses/td_loss", loss.item())
            if run.step == 4:
                nn.init.constant_(late.weight, 4)
                run.keep(late=late)
            if run.due(2, last=False):
                run.checkpoint()
        if run.step == run.total:
            run.end()
    return run, {"network": network.state_dict(), "optimizer": optimizer.state_dict()["state"], "late": late.weight}


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    _, whole = train(tmp_path / "whole")
    train(tmp_path / "cut", until=7)  # stopped behind the checkpoint of step 6
    run, resumed = train(tmp_path / "cut", resume=True)
    assert read_scalars(tmp_path / "cut") == read_scalars(tmp_path / "whole")
    for name, tensor in whole["network"].items():
        assert torch.equal(tensor, resumed["network"][name])
    for index, moments in whole["optimizer"].items():
        assert all(torch.equal(value, resumed["optimizer"][index][key]) for key, value in moments.items())
    assert torch.equal(whole["late"], resumed["late"])
    states = [state_of(tmp_path / name) for name in ("cut", "whole")]
    assert states[0]["counters"] == states[1]["counters"] == {"updates": 20, "first": 30, "name": "a12345678910"}
    assert states[0]["generators"].keys() == {"torch", "env", "action"}
    for name in ("env", "action"):
        assert states[0]["generators"][name] == states[1]["generators"][name]
    assert torch.equal(*(state["generators"]["torch"]["state"] for state in states))
    assert run.updates == 20
    assert read_status(tmp_path / "cut")["status"] == "finished"


def test_a_checkpoint_names_its_pieces_and_lets_go_of_older_ones(tmp_path):
    train(tmp_path / "r", until=7)
    assert [path.stem for path in (tmp_path / "r" / "pieces").glob("*.pt")] == ["rows-6"]
    run = session(tmp_path / "r", resume=tmp_path / "r")
    rows = Rows()
    run.generator("env")
    run.generator("action")
    run.counters(first=0, name="")
    others = SimpleNamespace(load_state_dict=lambda state: None)
    run.keep(rows=rows, network=others, optimizer=others, late=others)
    with run.open():
        run.restore()
    assert rows.rows == [1, 2, 3, 4, 5, 6]


def test_parts_may_come_later_and_the_checkpoint_says_which_it_holds(tmp_path):
    train(tmp_path / "early", until=3)
    train(tmp_path / "later", until=7)
    for name, held in (("early", False), ("later", True)):
        run = session(tmp_path / name, resume=tmp_path / name)
        with run.open():
            assert ("late" in run.saved) == held
            assert run.step == {"early": 2, "later": 6}[name]
        assert ("late" in state_of(tmp_path / name)) == held


MISFITS = {
    "part": (lambda run: run.keep(target=nn.Linear(1, 1)), "no entry 'target'"),
    "shape": (lambda run: run.keep(network=nn.Linear(2, 2)), "Linear"),
    "generator": (lambda run: run.generator("init"), "no entry 'init'"),
    "counter": (
        lambda run: run.counters(second=0),
        "it counts ['first', 'name'], the script ['first', 'name', 'second']",
    ),
    "part that is not kept": (
        lambda run: run.keep(rows=Rows()),
        "it has network, optimizer, which the script does not keep",
    ),
}
"""Ways in which a script no longer fits the checkpoint of `train`, and what is said of it."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that stopped at its checkpoint of step 2."""
    directory = tmp_path_factory.mktemp("stopped") / "r"
    train(directory, until=2)
    return directory


@pytest.mark.parametrize(("change", "named"), MISFITS.values(), ids=MISFITS)
def test_a_checkpoint_of_another_version_of_the_script_is_refused_in_one_line(stopped, capsys, change, named):
    before = (stopped / "scalars.csv").read_bytes()
    run = session(stopped, resume=stopped)
    run.counters(first=0, name="")
    change(run)

    def resume():
        with run.open():
            run.restore()

    with pytest.raises(SystemExit) as end:
        exit_with_one_line(resume)
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert message.count("\n") == 1
    assert f"{stopped}: the checkpoint does not fit this version of the script" in message
    assert named in message
    assert (stopped / "scalars.csv").read_bytes() == before  # nothing is lost: the right version can resume it


def test_a_checkpoint_of_an_older_layout_is_refused_in_one_line(tmp_path):
    with Run.create(tmp_path / "r", {}, argv=["x"]) as old:
        old.checkpoint(0, {"network": nn.Linear(1, 1).state_dict(), "updates": 5})
    run = session(tmp_path / "r", resume=tmp_path / "r")
    run.keep(network=nn.Linear(1, 1))
    with pytest.raises(RunError, match=r"does not fit this version of the script: no entry 'generators'"), run.open():
        run.restore()


def test_the_default_directory_says_what_the_run_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with opened(None) as run:
        assert run.directory.parent == Path("runs/logs")
        assert run.directory.name.startswith("name__about__s7__2")
    assert not run.resumed
    assert run.on_cpu


# how a run ends


def test_a_run_that_reaches_its_last_step_is_finished(tmp_path):
    with opened(tmp_path / "r", total=3) as run:
        while run.running():
            run.step += 2  # two environments: the last step may pass the total
        run.end()
    assert read_status(tmp_path / "r")["status"] == "finished"
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_loop_and_says_how_to_resume(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(sys, "argv", ["agents/some script.py", "--seed", "7"])
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, opened(tmp_path / "r") as run:
        while run.running():
            run.step += 1
            if run.step == 3:
                os.kill(os.getpid(), number)
        run.end()
    assert end.value.code == 130
    assert run.step == 3
    status = read_status(tmp_path / "r")
    assert (status["status"], status["step"]) == ("interrupted", 3)
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 3
    command = f"{sys.executable} 'agents/some script.py' --resume {tmp_path / 'r'}"
    assert capsys.readouterr().out.endswith(f"\nstopped at step 3; resume with: {command}\n")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_an_exception_marks_the_run_as_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), opened(tmp_path / "r") as run:
        run.checkpoint()
        run.step = 1 // 0
    status = read_status(tmp_path / "r")
    assert status["status"] == "failed"
    assert "ZeroDivisionError" in status["message"]


def test_a_directory_with_a_run_is_not_overwritten(tmp_path):
    with opened(tmp_path / "r", total=0) as run:
        run.end()
    with pytest.raises(RunError, match="finished"), opened(tmp_path / "r"):
        raise AssertionError("not reached")
    with pytest.raises(RunError, match="finished"), opened(tmp_path / "r", resume=tmp_path / "r"):
        raise AssertionError("not reached")


@pytest.mark.parametrize(
    ("step", "every", "at_other_times", "with_the_last", "without_the_last"),
    [
        (4, 4, True, True, True),
        (5, 4, False, False, False),
        (8, 4, True, True, True),
        (10, 4, False, True, False),  # 10 is the last step
        (10, 5, True, True, False),
        (11, 4, False, True, False),  # beyond it
        (12, 4, True, True, False),
        (4, 0, False, False, False),
        (10, 0, False, False, False),  # off
    ],
)
def test_when_something_is_due(step, every, at_other_times, with_the_last, without_the_last):
    run = session(total=10)
    run.step = step
    assert run.due(every) == at_other_times
    assert run.due(every, last=True) == with_the_last
    assert run.due(every, last=False) == without_the_last


# finiteness


def fitted(optimizer=torch.optim.Adam, **options):
    """A network after one update, with its optimiser."""
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)
    optimizer = optimizer(network.parameters(), lr=0.25, **options)
    network(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    return network, optimizer


@pytest.mark.parametrize("bad", [NAN, INF, -INF, torch.tensor(NAN), np.float32(INF)])
def test_a_number_that_is_not_finite_is_named_with_step_update_rate_and_layer(bad):
    run = session()
    network, optimizer = fitted()
    run.watch(network, optimizer)
    run.step, run.updates = 5, 3
    run.require_finite(loss=1.0, td_error=torch.tensor(2.0), absent=None)
    with pytest.raises(NonFiniteError) as error:
        run.require_finite(loss=1.0, td_error=bad)
    message = str(error.value)
    assert message.startswith(f"td error is {float(bad)} at step 5, update 3, learning rate 0.25: all 12 tensors")
    assert message.endswith("; the last checkpoint predates it")
    with torch.no_grad():
        network[1].weight[0, 1] = NAN
    with pytest.raises(NonFiniteError, match=r"the weight 1.weight holds 1 nan and 0 inf among 3 entries"):
        run.require_finite(loss=bad)


def test_given_numbers_are_checked_alone():
    """Looking at every weight after every update would take longer than the update."""
    run = session()
    network, optimizer = fitted()
    run.watch(network, optimizer)
    network[0].bias.grad[0] = NAN
    run.require_finite(loss=1.0)
    with pytest.raises(NonFiniteError):
        run.require_finite()


def test_without_a_network_the_number_alone_is_named():
    with pytest.raises(NonFiniteError, match=r"^loss is nan at step 0, update 0; the last"):
        session().require_finite(loss=NAN)


def test_where_a_step_is_an_update_one_count_is_named():
    run = session(unit="update")
    run.step = 6
    with pytest.raises(NonFiniteError, match=r"^loss is nan at update 6; the last"):
        run.require_finite(loss=NAN)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, FlatAdam])
@pytest.mark.parametrize("where", ["weight", "gradient", "second moment"])
@pytest.mark.parametrize("owner", ["", "the control's "])
def test_the_first_tensor_that_is_not_finite_is_found_and_named_with_its_owner(optimizer, where, owner):
    run = session()
    run.watch(*fitted(optimizer, eps=1e-8), "" if owner else "the other's ")
    network, adam = fitted(optimizer, eps=1e-8)
    run.watch(network, adam, owner)
    run.require_finite()
    weight = network[1].weight
    tensors = {"weight": weight.data, "gradient": weight.grad, "second moment": adam.state[weight]["exp_avg_sq"]}
    tensors[where].view(-1)[2] = INF
    names = {
        "weight": "the weight 1.weight", "gradient": "the gradient of 1.weight",
        "second moment": "Adam's second moment of 1.weight",
    }  # fmt: skip
    with pytest.raises(NonFiniteError) as error:
        run.require_finite()
    message = str(error.value)
    assert message.startswith("the network is not finite at step 0, update 0, learning rate 0.25: ")
    assert f": {owner}{names[where]} holds 0 nan and 1 inf among 3 entries" in message


def test_an_optimiser_without_moments_is_checked_too():
    run = session()
    network, optimizer = fitted(torch.optim.SGD)
    run.watch(network, optimizer)
    run.require_finite()
    network[0].bias.grad[0] = NAN
    with pytest.raises(NonFiniteError, match=r"the gradient of 0.bias"):
        run.require_finite()


class OnGpu(torch.Tensor):
    """A number that says it is on a GPU."""

    @property
    def device(self):
        return torch.device("cuda")


@pytest.mark.parametrize("unit", ["step", "update"])
def test_a_number_on_a_gpu_is_read_only_where_the_script_records(unit):
    run = session(log_every=4, unit=unit)
    loss = torch.tensor(NAN).as_subclass(OnGpu)
    refused = []
    for update in range(8):
        setattr(run, "updates" if unit == "step" else "step", update)  # updates taken before this one
        try:
            run.require_finite(loss=loss)
        except NonFiniteError:
            refused.append(update + 1)
    assert refused == [4, 8]


def test_a_broken_network_leaves_the_checkpoint_from_before(tmp_path):
    network, optimizer = fitted()
    run = session(tmp_path / "r")
    run.keep(network=network)
    run.watch(network, optimizer)
    with pytest.raises(NonFiniteError, match="at step 2"), run.open():
        run.step = 1
        run.checkpoint()
        run.step = 2
        network[0].weight.data[0, 0] = NAN
        run.checkpoint()
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 1
    assert state_of(tmp_path / "r")["network"]["0.weight"].isfinite().all()
    status = read_status(tmp_path / "r")
    assert status["status"] == "failed"
    assert "the weight 0.weight" in status["message"]


# records


def test_numbers_are_recorded_at_the_present_step(tmp_path):
    with opened(tmp_path / "r") as run:
        run.step = 3
        run.scalar("charts/epsilon", 0.5)
        run.scalars({"losses/td_loss": 1.0, "losses/q_values": 2.0})
        run.shifted({"shift": {"shift-0": {"task": 1}}})
        run.step = 4
        run.evaluated(np.array([1.0, 3.0]))
    assert read_scalars(tmp_path / "r") == {
        "charts/epsilon": [(3, 0.5)],
        "losses/td_loss": [(3, 1.0)],
        "losses/q_values": [(3, 2.0)],
        "shift/task": [(3, 1.0)],
        "shift/boundary": [(3, 1.0)],
        "eval/episodic_return": [(4, 2.0)],
        "eval/episodic_return_std": [(4, 1.0)],
    }


def test_a_run_whose_task_changes_has_a_chart_of_it_that_begins_at_task_0(tmp_path, monkeypatch):
    layouts = []
    monkeypatch.setattr(Run, "layout", lambda run, *names, **options: layouts.append((names, options)))
    with opened(tmp_path / "r") as run:
        run.layout({"norms": {}}, supervised=True)
        assert read_scalars_now(run) == {}
        run.layout({"norms": {}}, shifts=True, charts={"gap": ["test/accuracy"]})
        assert read_scalars_now(run) == {"shift/task": [(0, 0.0)]}
    assert layouts == [
        (({"norms": {}},), {"supervised": True}),
        (({"norms": {}},), {"charts": {"task": ["shift/task"], "gap": ["test/accuracy"]}}),
    ]


@pytest.mark.parametrize(("eval_every", "charts"), [(0, []), (5, ["evaluation return"])])
def test_a_run_without_evaluations_has_no_chart_of_them(tmp_path, monkeypatch, eval_every, charts):
    layouts = []
    monkeypatch.setattr(EventFile, "add_layout", lambda file, layout: layouts.append(layout))
    with opened(tmp_path / "r", eval_every=eval_every) as run:
        run.layout(elr.layout([]))
    named = [name for group in layouts[0].values() for name in group if "evaluation" in name]
    assert sorted(set(named)) == charts and "training return, running mean" in layouts[0]["at a glance"]


def read_scalars_now(run):
    run._run.flush()
    return read_scalars(run.directory)


# the terminal


class Clock:
    """Time as the test sets it."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("runs.training.session.time", SimpleNamespace(perf_counter=lambda: self.now))


@pytest.mark.parametrize(("terminal", "seconds"), [(False, 10.0), (True, 1.0)])
def test_speed_is_recorded_at_each_call_and_printed_now_and_then(tmp_path, monkeypatch, capsys, terminal, seconds):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    printed = []
    with opened(tmp_path / "r", total=5_000) as run:
        capsys.readouterr()
        for step in range(1_000, 6_000, 1_000):
            run.step, run.updates, clock.now = step, step, clock.now + 0.4 * seconds
            run.show_speed(f"mean {step}")
            printed.append(capsys.readouterr().out)
    speed = 1_000 / (0.4 * seconds)
    assert [value for _, value in read_scalars(tmp_path / "r")["charts/SPS"]] == pytest.approx([speed] * 5)
    # At once, again when the time is over, and at the last step whatever the time.
    assert [bool(text) for text in printed] == [True, False, False, True, True]
    line = f"step 4,000 of 5,000   {speed:.0f} steps/s   {0.4 * seconds:.0f} s left   mean 4000"
    assert printed[3] == (f"\r{line:<79}" if terminal else f"{line}\n")
    assert "left" not in printed[4]


@pytest.mark.parametrize(("columns", "width"), [("60", 59), ("200", 100)])
def test_a_line_on_a_terminal_is_cut_to_its_width(tmp_path, monkeypatch, capsys, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with opened(tmp_path / "r") as run:
        capsys.readouterr()
        run.step = 1
        run.show_speed("x" * 200)
    line = capsys.readouterr().out
    assert line[0] == "\r" and len(line) == 1 + width


def test_speed_without_updates_is_labelled_and_does_not_count_for_the_time_left(tmp_path, monkeypatch, capsys):
    clock, lines = Clock(monkeypatch), []
    with opened(tmp_path / "r", total=10_000) as run:
        capsys.readouterr()
        for seconds, updates in ((10, 0), (100, 1_000), (200, 2_000), (50, 2_000)):
            run.step, run.updates, clock.now = run.step + 1_000, updates, clock.now + seconds
            run.show_speed("")
            lines.append(capsys.readouterr().out.strip())
    assert lines == [
        "step 1,000 of 10,000   100 steps/s, no updates yet",
        "step 2,000 of 10,000   10 steps/s   13 min left",  # 8,000 steps of 0.1 s
        "step 3,000 of 10,000   5.0 steps/s   18 min left",  # 7,000 of 0.15 s
        "step 4,000 of 10,000   20 steps/s, no updates",
    ]


def test_a_run_says_at_once_where_it_is_and_how_to_look_at_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: "/bin/tensorboard")
    with opened(tmp_path / "r") as run:
        looks = f"look at it with: tensorboard --logdir {tmp_path / 'r'}\n"
        assert capsys.readouterr().out == f"run directory: {tmp_path / 'r'}\ndevice: cpu, 1 thread\n{looks}"
        run.step = 2
        run.checkpoint()
    with opened(tmp_path / "r", resume=tmp_path / "r"):
        assert capsys.readouterr().out.startswith(f"run directory: {tmp_path / 'r'}, resumed at step 2\n")


def test_speed_in_updates_is_printed_and_not_recorded(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with opened(tmp_path / "r", unit="update") as run:
        capsys.readouterr()
        run.step, clock.now = 5, clock.now + 10
        run.show_speed("loss 1")
    assert capsys.readouterr().out == "update 5 of 10   0.5 updates/s   10 s left   loss 1\n"
    assert read_scalars(tmp_path / "r") == {}


def test_speed_after_resuming_counts_from_the_checkpoint(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with opened(tmp_path / "r", total=5_000) as run:
        run.step = 3_000
        run.checkpoint()
    with opened(tmp_path / "r", total=5_000, resume=tmp_path / "r") as run:
        run.step, run.updates, clock.now = 4_000, 1, clock.now + 20
        run.show_speed("")
    assert "4,000 of 5,000   50 steps/s   20 s left" in capsys.readouterr().out


@pytest.mark.parametrize("found", [True, False])
def test_a_finished_run_says_where_it_is_and_how_to_look_at_it(tmp_path, monkeypatch, capsys, found):
    monkeypatch.setattr("shutil.which", lambda name: "/bin/tensorboard" if found else None)
    viewer = "tensorboard" if found else f"{sys.executable} -m tensorboard.main"
    directory = tmp_path / "r"
    with opened(directory, total=1_000) as run:
        capsys.readouterr()
        run.step = 1_000
        run.farewell("first", "second")
        plain = capsys.readouterr().out
        run.evaluated(np.array([7.0, 9.0]))
        run.evaluated(np.array([1.0, 2.0]))  # the last evaluation is printed
        run.end()
    run.farewell()
    looks = f"look at it with: {viewer} --logdir {directory}\n"
    assert plain == f"\nfinished 1,000 steps in {directory}\nfirst\nsecond\n{looks}"
    evaluation = "evaluation return 1.50, mean of 2 episodes\n"
    assert capsys.readouterr().out == f"\nfinished 1,000 steps in {directory}\n{evaluation}{looks}"
