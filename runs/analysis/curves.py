"""Curves and configuration of one recorded run, as arrays: a run of ours, or TensorBoard event files.

A run directory of ours holds config.json, status.json and scalars.csv. Any other directory must hold TensorBoard event
files; its configuration is a config.json next to them (write one with exp_name and seed if there is none), or the text
"hyperparameters" that CleanRL records. The curves of several runs are brought to common steps here, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runs.analysis.events import PATTERN, Events, event_files, hyperparameters, is_event_file, read_events
from runs.recording import RunError, read_json, read_scalars, read_status, require_whole
from runs.recording.config import flat
from runs.recording.directory import LOCK
from runs.recording.lock import is_held
from runs.recording.tags import TASK

Scalars: TypeAlias = Mapping[str, Sequence[tuple[int, float]]]
"""(step, value) pairs by tag, in the order of writing"""
Curve: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float64]]
"""steps and values, in the order of writing"""

_CONFIG, _TABLE = "config.json", "scalars.csv"
_OURS = ("status.json", "provenance.json")  # they identify a run of ours that has lost its table
_WHOLE = 0.95  # event files do not mark the end; CleanRL's last scalar comes within an iteration of total_timesteps
_WINDOWS = 100


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
    stopped: bool = False
    """of a run of ours: nothing writes to it, because it has ended or was killed"""

    @cached_property
    def scalars(self) -> Scalars:
        """The curves as (step, value) pairs."""
        return {tag: list(zip(x.tolist(), y.tolist(), strict=True)) for tag, (x, y) in self.curves.items()}


def read_run(directory: Path) -> Recorded:
    """Read a run directory, or one of event files, or an event file.

    Raises:
        RunError: it is none of these, has no configuration, or its files are damaged or have lost lines.
    """
    if is_ours(directory):
        config = read_json(directory / _CONFIG)
        status = read_status(directory)
        if finished := status["status"] == "finished":
            require_whole(directory, status)
        unfinished = "" if finished else f"is {status['status']}, not finished"
        stopped = status["status"] in ("interrupted", "failed") or not is_held(directory / LOCK)
        return Recorded(directory, flat(config), read_table(directory), int(status["step"]), unfinished, stopped)
    return _from_events(directory)


def is_ours(directory: Path) -> bool:
    """Whether it is a run directory of ours, even if it has lost its table."""
    return any((directory / name).exists() for name in (_TABLE, *_OURS))


def read_drawn(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Curve]]:
    """What a picture of one run needs: its configuration, which is empty if event files have none, and its curves.

    Raises:
        RunError: as `read_run`, except that an unfinished table may be damaged at its end.
    """
    if is_ours(path):
        return flat(read_json(path / _CONFIG)), read_table(path)
    config, events = _read_events(path)
    return config, _curves(events, path)


def _read_events(path: Path) -> tuple[dict[str, Any], Events]:
    if path.is_file() and not is_event_file(path):
        raise RunError(f"{path} is a file, but not an event file by its name ({PATTERN}): give run directories")
    if path.is_dir() and not event_files(path):
        inside = any(any(path.glob(f"*/{name}")) for name in (PATTERN, _TABLE))
        hint = f"; there are runs in {path / '*'}" if inside else ""
        raise RunError(f"{path} is not a run: it holds neither {_TABLE} nor event files ({PATTERN}){hint}")
    events = read_events(path)
    folder = path if path.is_dir() else path.parent
    written = read_json(folder / _CONFIG) if (folder / _CONFIG).exists() else hyperparameters(events.texts)
    return flat(written), events


def _curves(events: Events, path: Path) -> dict[str, Curve]:
    return {tag: as_curve(points, path) for tag, points in events.scalars.items() if points}


def _from_events(path: Path) -> Recorded:
    config, events = _read_events(path)
    if not config:
        raise RunError(
            f"{path} has no configuration: neither {_CONFIG} nor a text 'hyperparameters' like CleanRL's. Write a "
            f"{_CONFIG} with exp_name, seed and env_id next to it"
        )
    curves = _curves(events, path)
    end = max((int(steps.max()) for steps, _ in curves.values()), default=0)
    unfinished = "ends in the middle of a record: it is still running, or was killed" if events.cut else ""
    total = config.get("total_timesteps", 0)
    if isinstance(total, int) and end < min(_WHOLE * total, _whole_iterations(total, config)):
        unfinished = f"holds {end:,} of its {total:,} steps, so it is not finished"
    return Recorded(path, config, curves, end, unfinished)


def _whole_iterations(total: int, config: Mapping[str, Any]) -> int:
    """The last step of a run of CleanRL's PPO, which makes as many whole iterations as fit into its steps."""
    envs, steps = config.get("num_envs"), config.get("num_steps")
    steps = envs * steps if isinstance(envs, int) and isinstance(steps, int) and envs * steps > 0 else 1
    return total // steps * steps if steps <= total else total


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
    """A run's table as arrays: the content of `read_scalars`, in two thirds of its time.

    Raises:
        RunError: as `read_scalars`, with the same messages.
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
    except (OSError, ValueError, OverflowError):  # it says what is wrong and where, or reads a table without lines
        return {tag: as_curve(points, directory / _TABLE) for tag, points in read_scalars(directory).items()}
    tags = cells[1::3]
    index = {tag: k for k, tag in enumerate(dict.fromkeys(tags))}
    which = np.array(list(map(index.__getitem__, tags)))
    return {tag: (steps[which == k], values[which == k]) for tag, k in index.items()}


def with_history(directory: Path, table: Mapping[str, Curve]) -> dict[str, Curve]:
    """A branch's curves behind those of its parent, and of the parent's, up to where it branched. Of a run that is no
    branch, its own.

    Raises:
        RunError: a parent is not where it was.
    """
    origin = read_json(directory / "provenance.json").get("branch")
    if not isinstance(origin, dict):
        return dict(table)
    parent = Path(origin["directory"])
    if not (parent / _TABLE).exists():
        raise RunError(f"{directory} is a branch of {parent}, which is not there any more: leave out --history")
    return joined(with_history(parent, read_table(parent)), table, origin["step"])


def joined(parent: Mapping[str, Curve], branch: Mapping[str, Curve], step: int) -> dict[str, Curve]:
    """A parent's curves up to the step at which a branch left it, and the branch's own behind them."""
    curves = dict(branch)
    for tag, (steps, values) in parent.items():
        before = steps <= step
        if before.any():
            own = branch.get(tag, (steps[:0], values[:0]))
            if tag == TASK:  # a branch says again in which task it begins
                own = own[0][own[0] > step], own[1][own[0] > step]
            curves[tag] = np.concatenate([steps[before], own[0]]), np.concatenate([values[before], own[1]])
    return curves


def windowed(curve: Curve, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the values in each window (edges[k], edges[k + 1]] of steps; nan for a window without values."""
    steps, values = curve
    place = np.searchsorted(edges, steps, side="left") - 1
    inside = (place >= 0) & (place < len(edges) - 1)
    count = np.bincount(place[inside], minlength=len(edges) - 1)
    total = np.bincount(place[inside], weights=values[inside], minlength=len(edges) - 1)
    found = np.full(len(count), np.nan)
    np.divide(total, count, out=found, where=count > 0)
    return found


def common_points(curves: Sequence[Curve], end: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Curves at common steps up to `end`, x [points] and values [runs, points].

    If all were recorded at the same steps (evaluations), and at no more than a hundred, they are taken as recorded.
    Otherwise the points are means over equal windows of steps, placed at the middle of each window; a run with few
    points makes the windows fewer.
    """
    cut = [(steps[steps <= end], values[steps <= end]) for steps, values in curves]
    first = cut[0][0]
    if len(first) <= _WINDOWS and all(np.array_equal(steps, first) for steps, _ in cut) and (np.diff(first) > 0).all():
        return first.astype(np.float64), np.stack([values for _, values in cut])
    count = max(1, min(_WINDOWS, min(len(steps) for steps, _ in cut) // 4))
    edges = np.round(np.linspace(0.0, end, count + 1))  # steps are whole numbers
    middle = (edges[1:] + edges[:-1]) / 2
    edges[0] = -1.0  # what was recorded at step 0 belongs to the first window
    return middle, np.stack([windowed(curve, edges) for curve in cut])


def over_seeds(tag: str, curves: Sequence[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Curves of an arm's seeds at common steps up to the last that all reach, x [points] and values [runs, points].

    Episodes are averaged over equal windows of steps. Tags that are recorded at fixed steps (evaluations, probes) are
    taken as recorded, at the steps that all seeds have: on a logarithmic axis windows would put all points but the last
    into one. Windows are used for them, too, if a step was recorded twice, or if the common steps are less than nine
    tenths of the shortest curve's.
    """
    steps = sorted(set.intersection(*(set(one.tolist()) for one, _ in curves)))
    fixed = all((np.diff(one) > 0).all() for one, _ in curves) and len(steps) >= 0.9 * min(len(c[0]) for c in curves)
    if tag.startswith("charts/episodic_") or not fixed:
        return common_points(curves, min(int(steps[-1]) for steps, _ in curves))
    return np.array(steps, dtype=np.float64), np.stack([values[np.isin(one, steps)] for one, values in curves])
