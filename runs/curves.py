"""Curves and configuration of one recorded run, ours or not, as arrays.

A directory of ours holds config.json, status.json and scalars.csv. Any other holds TensorBoard event files; its
configuration is a config.json beside them (write one with exp_name and seed, if there is none), or the text
"hyperparameters" that CleanRL records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runs.events import PATTERN, hyperparameters, read_events
from runs.recording import RunError, read_json, read_scalars, read_status, require_whole

Curve: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float64]]
"""steps and values, in the order of writing"""

_CONFIG, _TABLE = "config.json", "scalars.csv"
_OURS = ("status.json", "provenance.json")  # by which a run that has lost its table is known
_WHOLE = 0.95  # an event file tells no end; CleanRL's last scalar comes within an iteration of its total_timesteps


@dataclass(frozen=True)
class Recorded:
    """One run as it was recorded."""

    directory: Path
    config: Mapping[str, Any]
    """flat, nested keys joined by dots: nap.enabled"""
    curves: Mapping[str, Curve]
    """by tag"""
    end: int
    """last step of the run"""
    unfinished: str
    """why it does not count as finished; empty if it does"""


def read_run(directory: Path) -> Recorded:
    """Read a run directory, or one of event files, or an event file.

    Raises:
        RunError: it is neither, has no configuration, or its files are damaged or have lost lines.
    """
    if any((directory / name).exists() for name in (_TABLE, *_OURS)):
        config = read_json(directory / _CONFIG)
        status = read_status(directory)
        if finished := status["status"] == "finished":
            require_whole(directory, status)
        unfinished = "" if finished else f"is {status['status']}, not finished"
        return Recorded(directory, flat(config), read_table(directory), int(status["step"]), unfinished)
    if directory.is_file() and not directory.match(PATTERN):
        raise RunError(f"{directory} is a file and, by its name, no event file ({PATTERN}): give run directories")
    if directory.is_dir() and not any(directory.glob(PATTERN)):
        raise RunError(f"{directory} is no run: it holds neither {_TABLE} nor event files ({PATTERN})")
    return _from_events(directory)


def _from_events(path: Path) -> Recorded:
    events = read_events(path)
    folder = path if path.is_dir() else path.parent
    written = read_json(folder / _CONFIG) if (folder / _CONFIG).exists() else hyperparameters(events.texts)
    if not written:
        raise RunError(
            f"{path} has no configuration, neither a text 'hyperparameters' as CleanRL writes nor {_CONFIG}: write one "
            "with exp_name, seed and env_id beside it"
        )
    config = flat(written)
    curves = {tag: as_curve(points, path) for tag, points in events.scalars.items() if points}
    end = max((int(steps.max()) for steps, _ in curves.values()), default=0)
    unfinished = "ends in the middle of a record: it is being written, or was killed" if events.cut else ""
    total = config.get("total_timesteps", 0)
    if isinstance(total, int) and end < _WHOLE * total:
        unfinished = f"holds {end:,} of its {total:,} steps, so it is not finished"
    return Recorded(path, config, curves, end, unfinished)


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested groups as dotted keys: {"nap": {"enabled": True}} -> {"nap.enabled": True}."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{below}": one for below, one in flat(value).items()}
        else:
            found[key] = value
    return found


def as_curve(points: Sequence[tuple[int, float]], path: Path) -> Curve:
    """(step, value) pairs as arrays.

    Raises:
        RunError: a step does not fit 64 bits.
    """
    try:
        return np.array([step for step, _ in points], dtype=np.int64), np.array([value for _, value in points])
    except OverflowError:
        raise RunError(f"{path} holds a step beyond 64 bits") from None


def read_table(directory: Path) -> dict[str, Curve]:
    """A run's table as arrays: what `read_scalars` returns, in two thirds of its time.

    Raises:
        RunError: as `read_scalars`, in the same words.
    """
    try:
        data = (directory / _TABLE).read_bytes()
        body = data[data.index(b"\n") + 1 : data.rindex(b"\n")]  # a last line without its end is left out
        separators = np.frombuffer(body + b"\n", dtype=np.uint8)
        separators = separators[(separators == ord(",")) | (separators == ord("\n"))]
        if not (separators.reshape(-1, 3) == np.frombuffer(b",,\n", dtype=np.uint8)).all():
            raise ValueError("a line is not three cells")
        cells = body.decode(errors="replace").replace("\n", ",").split(",")
        steps = np.array(list(map(int, cells[::3])), dtype=np.int64)
        values = np.array(list(map(float, cells[2::3])))
    except (OSError, ValueError, OverflowError):  # it says what is wrong, and where; or reads a table without lines
        return {tag: as_curve(points, directory / _TABLE) for tag, points in read_scalars(directory).items()}
    tags = cells[1::3]
    index = {tag: k for k, tag in enumerate(dict.fromkeys(tags))}
    which = np.array(list(map(index.__getitem__, tags)))
    return {tag: (steps[which == k], values[which == k]) for tag, k in index.items()}


def windowed(curve: Curve, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the values in each window (edges[k], edges[k + 1]] of steps; nan where there is none."""
    steps, values = curve
    place = np.searchsorted(edges, steps, side="left") - 1
    inside = (place >= 0) & (place < len(edges) - 1)
    count = np.bincount(place[inside], minlength=len(edges) - 1)
    total = np.bincount(place[inside], weights=values[inside], minlength=len(edges) - 1)
    found = np.full(len(count), np.nan)
    np.divide(total, count, out=found, where=count > 0)
    return found
