"""Runs of an experiment by arm, means with intervals over seeds, and tables in markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runs.recording import RunError, read_json, read_scalars, read_status, require_whole

Scalars = Mapping[str, Sequence[tuple[int, float]]]
"""The table of a run: (step, value) pairs by tag."""

# Quantiles 0.975 of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086)  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """Finished runs that differ in nothing but their seed."""

    name: str
    directories: Sequence[Path]
    runs: Sequence[Scalars]
    seeds: Sequence[int]
    config: Mapping[str, Any]
    """of the first"""


def read_arms(directories: Sequence[Path]) -> list[Runs]:
    """The runs by exp_name.

    Raises:
        RunError: there is no run; one is given twice, is not finished, or its table has lost lines; two runs of an arm
            have the same seed or differ in more than the seed.
    """
    if not directories:
        raise RunError("there is nothing to tabulate: give run directories")
    arms: dict[str, list[tuple[Path, dict[str, Any], Scalars]]] = {}
    for directory in directories:
        config = read_json(directory / "config.json")
        if (status := read_status(directory))["status"] != "finished":
            raise RunError(f"{directory} is {status['status']}, not finished: finish it with --resume, or leave it out")
        require_whole(directory, status)
        name = str(config["exp_name"])
        for other, known, _ in arms.setdefault(name, []):
            differ = {key for key in config if config[key] != known.get(key)} - {"directory"}
            if other.resolve() == directory.resolve():
                raise RunError(f"{directory} is given twice")
            if differ != {"seed"}:
                what = sorted(differ) or "nothing"
                raise RunError(f"{directory} and {other} are both {name} and differ in {what}: give one --exp-name")
        arms[name].append((directory, config, read_scalars(directory)))
    return [
        Runs(name, [run[0] for run in runs], [run[2] for run in runs], [run[1]["seed"] for run in runs], runs[0][1])
        for name, runs in arms.items()
    ]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of Student's 95 % interval; nan for a single value."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.nan
    quantile = _T[n - 2] if n - 2 < len(_T) else 1.96 + 2.5 / (n - 1)  # within 0.0015 beyond 20 degrees of freedom
    return float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / math.sqrt(n)


def shown(number: float) -> str:
    """Three digits, or a dash for what was not recorded."""
    return "–" if math.isnan(number) else f"{number:.3g}"


def estimate(values: Sequence[float]) -> str:
    """Mean over the seeds to three digits, its interval's half-width to two."""
    mean, half = interval(values)
    return shown(mean) if math.isnan(half) else f"{shown(mean)} ± {half:.2g}"


def table(heads: Sequence[str], rows: Sequence[str]) -> None:
    """Print a markdown table."""
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", *rows, "", sep="\n")
