"""What the tests of every script share: running it as a process, comparing states, finding flags that nobody reads."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from runs.recording import load_checkpoint, read_scalars


def start(script: Path, *flags: object) -> subprocess.Popen[str]:
    """The script as a process of its own, on one thread."""
    command = [sys.executable, str(script), *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run that must succeed; return its output."""
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return output


def kill_beyond(process: subprocess.Popen[str], directory: Path, step: int, how: signal.Signals) -> str:
    """Send the signal once the checkpoint on disk is from beyond `step`; return the output."""
    status = directory / "status.json"
    while process.poll() is None and (not status.exists() or json.loads(status.read_text())["step"] <= step):
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(how)
    return process.communicate(timeout=120)[0]


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


def unread_flags(script: ModuleType, groups: dict[str, type], short_for: dict[str, str]) -> list[str]:
    """Flags that are never read as args.<flag>, args.<group>.<flag> or <short>.<flag> outside the checks of Args."""
    tree = ast.parse(inspect.getsource(script))
    tree.body = [node for node in tree.body if not (isinstance(node, ast.ClassDef) and node.name == "Args")]
    read = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    flags = [f"args.{field.name}" for field in dataclasses.fields(script.Args)]
    flags += [f"args.{group}.{f.name}" for group, cls in groups.items() for f in dataclasses.fields(cls)]

    def is_read(flag: str) -> bool:
        _, group, *rest = flag.split(".")
        return flag in read or f"{short_for.get(group)}.{'.'.join(rest)}" in read

    return [flag for flag in flags if not is_read(flag)]


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
