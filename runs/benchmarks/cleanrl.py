"""Running CleanRL's scripts and ours, and reading their speed.

None of CleanRL's code is in this repository. The text of a clone is read, and substitutions, each of which must match
exactly once, make it run on Gymnasium 1.x and time itself. Written against CleanRL fe8d8a0 (April 2026).
"""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

from runs.recording import RunError

ROOT = Path(__file__).resolve().parents[2]

Gradient = Literal["default", "compiled"]


class Substitution(NamedTuple):
    """A named edit of a source text: `old`, which must occur exactly once, becomes `new`."""

    name: str
    old: str
    new: str


class Pair(NamedTuple):
    """Agent steps per second of two runs, one after the other."""

    cleanrl: float
    ours: float


def timed_range(stop: int, start: int, clock: Callable[[], float] = time.perf_counter) -> Iterator[int]:
    """Yield 0 ... stop - 1, then print how many seconds the steps from `start` on took.

    Raises:
        ValueError: no step would be timed.
    """
    if not 0 <= start < stop:
        raise ValueError(f"timing from step {start} of {stop} times nothing; give more steps")
    began = math.nan
    for step in range(stop):
        if step == start:
            began = clock()
        yield step
    print(f"timed steps={stop - start} seconds={clock() - began!r}", flush=True)


def timed_rate(output: str) -> float:
    """Steps per second from the line of `timed_range` in a script's output.

    Raises:
        ValueError: there is not exactly one such line.
    """
    matches = re.findall(r"^timed steps=(\d+) seconds=(\S+)$", output, flags=re.MULTILINE)
    if len(matches) != 1:
        raise ValueError(f"expected one 'timed steps=' line in the script's output, found {len(matches)}")
    steps, seconds = matches[0]
    return int(steps) / float(seconds)


def substitute(text: str, edits: Iterable[Substitution], name: str = "dqn.py") -> str:
    """Apply the edits in order; `name` is the name of the text, for the message.

    Raises:
        RunError: the text of an edit does not occur exactly once after the edits before it.
    """
    for edit in edits:
        count = text.count(edit.old)
        if count != 1:
            raise RunError(
                f"substitution {edit.name!r} needs {edit.old!r} exactly once in CleanRL's {name} and found it {count} "
                "times; the clone is not the version that this was written for: check out fe8d8a0"
            )
        text = text.replace(edit.old, edit.new)
    return text


def read_speeds(table: Path) -> list[tuple[int, float]]:
    """The (step, steps per second) rows of charts/SPS in a run's scalars.csv, in order.

    Raises:
        ValueError: the table lacks a column, or holds no charts/SPS.
    """
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"step", "tag", "value"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{table} has no column {sorted(missing)}; it has {reader.fieldnames}")
        rows = [(int(row["step"]), float(row["value"])) for row in reader if row["tag"] == "charts/SPS"]
    if not rows:
        raise ValueError(f"{table} has no row of charts/SPS; run longer than one logging interval")
    return rows


def overall_rate(speeds: Sequence[tuple[int, float]], after: int) -> float:
    """Steps per second over all logging intervals that begin at step `after` or later.

    sum_i n_i / sum_i (n_i / r_i): the harmonic mean, weighted by the steps n_i of each interval at rate r_i. The first
    row only marks where the second interval begins, and the interval in which learning starts is left out.

    Raises:
        ValueError: no interval lies entirely after `after`.
    """
    steps, seconds = 0, 0.0
    for (begin, _), (end, rate) in pairwise(speeds):
        if begin >= after:
            steps += end - begin
            seconds += (end - begin) / rate
    if steps == 0:
        raise ValueError(f"no interval of charts/SPS lies after step {after}; measure more steps")
    return steps / seconds


def gradient_flags(gradient: Gradient) -> list[str]:
    """Flags of our MinAtar scripts.

    Raises:
        ValueError: compiled, and numba is not installed.
    """
    if gradient == "compiled" and importlib.util.find_spec("numba") is None:
        raise ValueError('--gradient compiled needs numba: pip install -e ".[fast]"')
    return ["--gradient", gradient] if gradient != "default" else []


def child_environment(threads: int, clone: Path) -> dict[str, str]:
    """Environment variables of both scripts: CPU only, `threads` threads, and the clone importable."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT}{os.pathsep}{clone.resolve()}"}
    if threads:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return environment


def run_script(command: Sequence[str | Path], directory: Path, environment: dict[str, str]) -> str:
    """Run a Python script in `directory` and return its output.

    Raises:
        RuntimeError: it failed; the message ends with the last lines of its errors.
    """
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} exited with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def describe(pair: Pair) -> str:
    """One line about a pair."""
    return f"  CleanRL {pair.cleanrl:7.0f}   ours {pair.ours:7.0f}   ratio {pair.ours / pair.cleanrl:.2f}"


def spread(values: Sequence[float], digits: int) -> str:
    """Median [smallest, largest]."""
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def summarise(pairs: Sequence[Pair]) -> str:
    """Median, smallest and largest of both speeds and of the ratio within a pair.

    Raises:
        ValueError: there is no pair.
    """
    if not pairs:
        raise ValueError("no pair was measured; give --repeats 1 or more")

    return (
        f"  median [min, max] of {len(pairs)}: CleanRL {spread([p.cleanrl for p in pairs], 0)}, "
        f"ours {spread([p.ours for p in pairs], 0)}, ratio {spread([p.ours / p.cleanrl for p in pairs], 2)}"
    )
