"""A TensorBoard page of arms: for each task a folder, in it for each arm a TensorBoard run with mean and band, and one
that marks the changes of the task.

The page is written next to the old one and then put in its place. A folder that holds other files is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from runs.analysis.curves import Curve, over_seeds
from runs.figures.task_changes import NONE, Marks, peaks, rewarmed
from runs.recording import RunError, one_line_errors
from runs.recording.events_file import EventFile, number_of
from runs.recording.glance import FIRST, REWARMED, glance, title
from runs.recording.layout import Layout

GROUPS: Mapping[str, Sequence[str]] = {
    "return": ("charts/episodic_return", "charts/iteration_return", "eval/", "rollout/ep_rew_mean"),
    "accuracy and loss": ("train/", "test/"),
    "rate and realised ELR": ("charts/learning_rate", "elr/", "elr_nominal/", "rewarm/statistic", REWARMED),
    "feature learning": ("plasticity/delta_c/", "plasticity/delta_a/", "plasticity/flipped_fraction/"),
    "plasticity": ("plasticity/",),
    "norms": ("norms/",),
    "other methods": ("intervene/",),
    "losses": ("losses/",),
    "theory": ("theory/",),
    "custom": ("custom/",),
    "others": ("",),
}
"""The group of a tag's chart: the first one that lists a prefix of the tag. Other programs' tags are the others."""
LEFT_OUT = (
    "charts/SPS",
    "charts/epsilon",
    "charts/average_return",
    "charts/episodic_length",
    "rewarm/event",
    "reset/event",
    "shift/",
    "physics/",
    "rollout/ep_len_mean",
    "time/",
)
"""Not averaged over seeds, unless it is the first curve: speed and exploration are not results, events are moments,
tasks and the physics of a world are not the network's, and returns are averaged over windows anyway."""
MARK = "made-by-runs-board"

Points: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""x [points], values [seeds, points]"""
Arms: TypeAlias = Mapping[str, Mapping[str, Points]]
"""points by tag, by the arm's name"""
Band: TypeAlias = tuple[NDArray[np.float64], ...]
"""x, the line, and the two ends of its band, each [points]"""


@dataclass(frozen=True)
class Written:
    """A page that was written."""

    folders: Sequence[Path]
    """one for each task"""
    under_way: int
    """runs that may still change: those that are not finished, and were not stopped"""
    notes: Sequence[str] = ()
    """what users must know of it, a line each"""


def group_of(tag: str) -> str | None:
    """The group of a tag's chart; None: the tag has no chart."""
    if tag.startswith(LEFT_OUT):
        return None
    return next(group for group, starts in GROUPS.items() if tag.startswith(tuple(starts)))


def averaged(seeds: Sequence[Mapping[str, Curve]], curve: str) -> dict[str, Points]:
    """The curves of an arm at common steps, of the tags that have a chart, or are `curve`, and that all seeds have,
    and how often they were re-warmed.
    """
    shared = {
        tag: over_seeds(tag, [run[tag] for run in seeds])
        for tag in seeds[0]
        if (group_of(tag) or tag == curve) and all(tag in run for run in seeds)
    }
    return {**shared, **rewarmed(seeds)}


def margin(tag: str) -> list[str]:
    """The tags of a line and of its band."""
    return [tag, f"lowest/{tag}", f"highest/{tag}"]


def charts(tags: Sequence[str], curve: str) -> Layout:
    """The page: for each tag a chart with a line and a band per arm, in groups."""
    groups = {FIRST: glance(tags, curve, "eval/episodic_return")}
    for group in GROUPS:
        inside = [tag for tag in tags if group_of(tag) == group]
        groups[group] = sorted(
            inside, key=lambda tag: tag.rpartition("/")[0]
        )  # keeps all layers of one metric together
    # TensorBoard (2.21) shows the margin charts of a group from the last to the first
    return {
        group: {title(tag) if group == FIRST else tag: ("Margin", margin(tag)) for tag in reversed(inside)}
        for group, inside in groups.items()
        if inside
    }


def banded(curves: Mapping[str, Points]) -> dict[str, Band]:
    """Mean, lowest and highest seed of each tag, at the steps where every seed has a value."""
    bands: dict[str, Band] = {}
    for tag, (x, values) in curves.items():
        known = np.isfinite(values).all(axis=0)
        values = values[:, known]
        bands[tag] = x[known], values.mean(axis=0), values.min(axis=0), values.max(axis=0)
    return bands


def marked(arms: Sequence[Mapping[str, Band]], changes: Sequence[int]) -> dict[str, Band]:
    """The line that marks the changes, in the chart of each tag whose values differ."""
    bands: dict[str, Band] = {}
    for tag in dict.fromkeys(tag for arm in arms for tag in arm):
        drawn = [arm[tag] for arm in arms if tag in arm and len(arm[tag][0])]
        low = min((float(low.min()) for _, _, low, _ in drawn), default=0.0)
        high = max((float(high.max()) for _, _, _, high in drawn), default=0.0)
        if low < high:
            x, line = peaks(changes, max(float(x[-1]) for x, *_ in drawn), low, high)
            bands[tag] = x, line, line, line
    return bands


def write_lines(directory: Path, bands: Mapping[str, Band], layout: Layout, number: int = 0) -> None:
    """One TensorBoard run. Its event file has this number."""
    directory.mkdir(parents=True)
    events = EventFile(directory, number=number, purge_step=0 if number else None)
    events.add_layout(layout)
    for tag, (x, *lines) in bands.items():
        for name, line in zip(margin(tag), lines, strict=True):
            for step, value in zip(x.tolist(), line.tolist(), strict=True):
                events.add(name, value, round(step))
    events.file.close()


def require_ours(folder: Path) -> int:
    """A folder that is to be replaced holds only files that this command wrote. Returns the highest number of an event
    file in it.

    Raises:
        RunError: it holds something else.
    """
    if not (folder / MARK).is_file():
        raise RunError(f"{folder} exists, but this command did not write it: move it away")
    arms = {folder / path for path in (folder / MARK).read_text(encoding="utf-8").split("\n")}
    parents = {parent for arm in arms for parent in arm.parents if folder in parent.parents}
    ours, numbers = {folder / MARK, *arms, *parents}, [0]
    for path in folder.rglob("*"):
        if path.parent in arms and path.name.startswith("events.out."):
            numbers.append(number_of(path) or 0)
        elif path not in ours:
            raise RunError(f"{path} would be removed, but this command did not write it: move it away")
    return max(numbers)


def write_page(folder: Path, tasks: Mapping[str, Arms], curve: str, marks: Mapping[str, Marks] | None = None) -> None:
    """Write the arms of each task; replaces the page that this command wrote there before.

    Event files get a new number: a TensorBoard that is open notices new files, and not that one was replaced.

    Args:
        folder: of the page.
        tasks: the arms by task; a task with an empty name has no folder of its own.
        curve: tag of the first chart.
        marks: the changes of the task to mark, by task.
    Raises:
        RunError: the folder holds something else, or it cannot be written.
    """
    with one_line_errors(f"cannot write {folder}", also=(OSError,)):
        number = require_ours(folder) + 1 if folder.exists() else 0
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            made, old = Path(temporary) / "new", Path(temporary) / "old"
            made.mkdir()
            steps = {task: (marks or {}).get(task, NONE).steps for task in tasks}
            written = [Path(task) / name for task, arms in tasks.items() for name in (*arms, *steps[task])]
            (made / MARK).write_text("\n".join(map(str, written)), encoding="utf-8")
            for task, arms in tasks.items():
                layout = charts(list(dict.fromkeys(tag for curves in arms.values() for tag in curves)), curve)
                bands = {arm: banded(curves) for arm, curves in arms.items()}
                bands |= {name: marked(list(bands.values()), changes) for name, changes in steps[task].items()}
                for name, its in bands.items():
                    write_lines(made / task / name, its, layout, number)
            if folder.exists():
                folder.rename(old)  # removed with the temporary folder
            made.rename(folder)
