"""What the tests of every script share: running it as a process, comparing states, finding flags that nobody reads."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import json
import math
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from runs.recording import load_checkpoint, read_scalars
from runs.training import session


class ScriptProcess:
    """A script as a process of its own, forked from a server that has imported torch already: no seconds of imports.

    It can be killed like any process. What it prints goes to a file. The interface is that of subprocess.Popen.
    """

    _context = multiprocessing.get_context("forkserver")
    _context.set_forkserver_preload(
        # torch._dynamo: the first optimiser of torch.optim imports it
        ["torch", "torch._dynamo", "torch.utils.tensorboard", "elr.flags", "envs.flags", "runs.training"]
    )

    def __init__(self, script: Path, flags: tuple[str, ...]) -> None:
        descriptor, name = tempfile.mkstemp(suffix=".txt")
        os.close(descriptor)
        self._output = Path(name)
        self._process = self._context.Process(target=_run_script, args=(str(script), flags, name))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float) -> tuple[str]:
        """Wait for the end; what was printed."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"the script still runs after {timeout} s")
        printed = self._output.read_text()
        self._output.unlink()
        return (printed,)


def _run_script(script: str, flags: tuple[str, ...], output: str) -> None:
    """In the process: as `python script flags` does."""
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = [script, *flags]
    torch.set_num_threads(1)
    runpy.run_path(script, run_name="__main__")


def start(script: Path, *flags: object) -> ScriptProcess:
    """The script as a process of its own, on one thread."""
    return ScriptProcess(script, tuple(map(str, flags)))


def finish(process: ScriptProcess) -> str:
    """Wait for a run that must succeed; return its output."""
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return output


def kill_beyond(process: ScriptProcess, directory: Path, step: int, how: signal.Signals) -> str:
    """Send the signal once the checkpoint on disk is from beyond `step`; return the output."""
    status = directory / "status.json"
    while process.poll() is None and (not status.exists() or json.loads(status.read_text())["step"] <= step):
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(how)
    return process.communicate(timeout=120)[0]


def spaces(*sizes: int) -> SimpleNamespace:
    """What `make_network` reads of environments: the first size of an observation, if given, and how many actions."""
    *inputs, actions = sizes
    single_observation_space, single_action_space = SimpleNamespace(shape=tuple(inputs)), SimpleNamespace(n=actions)
    return SimpleNamespace(single_observation_space=single_observation_space, single_action_space=single_action_space)


def stop_at(monkeypatch: Any, step: int) -> None:
    """A run in this process stops at this step as if it had been sent a signal."""
    running = session.Session.running
    monkeypatch.setattr(session.Session, "running", lambda self: running(self) and self.step < step)


def edited(script: Path, folder: Path, *edits: tuple[str, str]) -> ModuleType:
    """A copy of the script with each (old, new) replaced, imported; every old text must stand there once."""
    source = script.read_text()
    for old, new in edits:
        assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in the script"
        source = source.replace(old, new)
    path = folder / f"my_{script.name}"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def assert_same(a: Any, b: Any, where: str = "state") -> None:
    """Equal to the last bit, through dictionaries, lists, tensors and arrays."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and np.array_equal(a, b), where
    else:
        assert a == b, where


def videos(directory: Path) -> dict[str, int]:
    """The GIFs of a run by name, and how many agent steps each shows: 1/15 s is one."""
    shown = {}
    for path in (directory / "video").glob("*"):
        with Image.open(path) as gif:
            duration = sum(gif.seek(index) or gif.info["duration"] for index in range(gif.n_frames))
        shown[path.name] = round(duration * 15 / 1000)
    return shown


def unread_flags(script: ModuleType) -> list[str]:
    """Flags that neither the script nor its session reads; that the checks of Args read them does not count.

    What a group does with its own flags is tested in tests/elr/test_flags.py and tests/envs/test_shift_flags.py.
    """
    tree = ast.parse(inspect.getsource(script))
    (args,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Args")
    tree.body.remove(args)
    conversions = [node for node in args.body if isinstance(node, ast.FunctionDef) and node.name != "__post_init__"]
    read = set()
    for name, parts in (("args", [tree, ast.parse(inspect.getsource(session))]), ("self", conversions)):
        nodes = [node for part in parts for node in ast.walk(part) if isinstance(node, ast.Attribute)]
        read |= {node.attr for node in nodes if ast.unparse(node.value) == name and isinstance(node.ctx, ast.Load)}
    return [field.name for field in dataclasses.fields(script.Args) if field.name not in read]


def assert_projected_in_bf16(fine: Path, coarse: Path, network: str) -> None:
    """Of two runs that differ in --bf16: both measured alike, all finite, not the same, and the norms are held."""
    scalars = [{tag: rows for tag, rows in read_scalars(run).items() if tag != "charts/SPS"} for run in (fine, coarse)]
    assert scalars[0].keys() == scalars[1].keys() and scalars[0] != scalars[1]
    assert np.isfinite([value for rows in scalars[1].values() for _, value in rows]).all()
    state = load_checkpoint(coarse / "checkpoint.pt")["state"]
    weights, norms = state[network], state["projection"]["norms"]
    assert len(norms) >= 4
    for name, norm in norms.items():
        parts = [weights[f"{name}.{part}"] for part in ("weight", "weight_sigma") if f"{name}.{part}" in weights]
        assert all(part.dtype == torch.float32 for part in parts)
        # 3e-5: what elr/projection.py documents for sums in float32, whose order differs between CPUs
        assert abs(math.hypot(*(float(part.double().norm()) for part in parts)) / norm - 1) < 3e-5
