"""What runs and tools print: durations, and the command that shows runs in TensorBoard."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path


def duration(seconds: float) -> str:
    """3 min, 2 h 05 min, 3 d 04 h."""
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min" if minutes else f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 24 else f"{hours // 24} d {hours % 24:02} h"


def tensorboard_command(runs: Path | Mapping[str, Path]) -> str:
    """The command that shows a directory, or several runs by name, in TensorBoard.

    In an environment that is not activated, `tensorboard` is not found: then the command names this Python.
    """
    viewer = "tensorboard" if shutil.which("tensorboard") else f"{shlex.quote(sys.executable)} -m tensorboard.main"
    if isinstance(runs, Path):
        return f"{viewer} --logdir {shlex.quote(str(runs))}"
    listed = ",".join(f"{name}:{directory}" for name, directory in runs.items())
    return f"{viewer} --logdir_spec {shlex.quote(listed)}"
