"""--track: the numbers of a run at Weights & Biases as well, with the tags and settings of CleanRL's runs.

The x axis is `global_step`; settings are those of config.json, with env_id, seed and exp_name at the top. So tools that
read CleanRL's runs from there (Open RL Benchmark) read these.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runs.recording.errors import RunError
from runs.recording.files import write_atomically

RECORD = "wandb.json"
"""in the run directory: project, entity and id of the run there, which a resumed run continues"""


def require_wandb() -> Any:
    """The module `wandb`.

    Raises:
        RunError: it is not installed.
    """
    try:
        import wandb
    except ImportError:
        wandb = None
    if not hasattr(wandb, "init"):  # a folder of its files, ./wandb, can be imported as well
        raise RunError("--track needs the package wandb: pip install -e '.[track]'")
    return wandb


class Tracker:
    """A run at Weights & Biases; one that was begun from the same run directory is continued.

    Args:
        directory: of the run; local files go to its folder wandb/.
        config: the run's settings.
        project: --wandb-project-name.
        entity: --wandb-entity; None is the user's own.
    Raises:
        RunError: wandb is not installed, or cannot begin the run (no login, no network).
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], project: str, entity: str | None):
        wandb, record = require_wandb(), directory / RECORD
        known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else None
        if known is None:
            known = {"project": project, "entity": entity, "id": secrets.token_hex(4)}
            write_atomically(record, (json.dumps(known, indent=2) + "\n").encode())
        try:
            self._run = wandb.init(
                **known, name=directory.name, dir=str(directory), config=dict(config), resume="allow",
                settings=wandb.Settings(console="off"),
            )  # fmt: skip
        except Exception as error:  # of many kinds, wandb.errors.Error and others
            raise RunError(f"--track: Weights & Biases does not begin the run: {error}") from error
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")
        self._row: dict[str, float] = {}

    def add(self, tag: str, value: float, step: int) -> None:
        """Send one number; those of one step are sent together."""
        if self._row and (self._row["global_step"] != step or tag in self._row):
            self._send()
        self._row |= {"global_step": step, tag: value}

    def finish(self, finished: bool) -> None:
        """Send the rest; the run is shown as finished or failed."""
        self._send()
        self._run.finish(exit_code=0 if finished else 1)

    def _send(self) -> None:
        if self._row:
            self._run.log(self._row)
        self._row = {}
