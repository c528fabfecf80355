"""Flags common to all training scripts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from runs.recording import reject_unused
from runs.training.checks import require, require_device, require_not_negative, require_positive


@dataclass(frozen=True)
class RunArgs:
    """Where a run computes and what it leaves behind. The `Args` of scripts inherit this; --help lists it last."""

    seeds: tuple[int, ...] = ()
    """several seeds instead of --seed: 1 2 3 makes three runs, in parallel"""
    track: bool = False
    """send what is recorded to Weights & Biases as well (extra "track")"""
    wandb_project_name: str = "rewarm"
    """project there"""
    wandb_entity: str | None = None
    """user or team there; default: your own"""
    device: str = "cpu"
    """cpu or cuda"""
    threads: int = 1
    """CPU threads of torch and of NumPy's linear algebra"""
    exp_name: str = "run"
    """first part of the run's name"""
    directory: Path | None = None
    """run directory; default runs/logs/<exp_name>__<script>__<task>__s<seed>__<time>"""
    resume: Path | None = None
    """run directory to resume; all other flags come from its config.json"""
    extend: int | None = None
    """with --resume: the new total of steps or updates, also of a finished run"""
    branch: str | None = None
    """run directory, or RUN@STEP: start a new run from its state; the other flags change its flags"""
    keep_checkpoints_every: int = 0
    """steps (or updates) between checkpoints kept for --branch; 0: none"""

    LATER: ClassVar[tuple[str, ...]] = (
        "extend", "branch", "keep_checkpoints_every", "seeds", "track", "wandb_project_name", "wandb_entity",
        "record_video", "num_envs", "capture", "gradient", "replay_device",
    )  # fmt: skip
    """flags that the config.json of older runs does not have"""

    def __post_init__(self) -> None:
        require_positive(self, "threads")
        require_not_negative(self, "keep_checkpoints_every")
        require_device(self)
        if not self.track:
            reject_unused("", self, ["wandb_project_name", "wandb_entity"], "without --track")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds, default=0) < 0:
            raise ValueError(f"--seeds must be distinct and at least 0, got {' '.join(map(str, self.seeds))}")
        if self.extend is not None and self.resume is None:
            raise ValueError("--extend needs --resume RUN, the run that it makes longer")
        if self.keep_checkpoints_every:
            require(
                hasattr(self, "checkpoint_every"),
                self,
                "keep_checkpoints_every",
                "this script writes no checkpoints during training",
            )
            cadence = getattr(self, "checkpoint_every", 1) * getattr(self, "iteration_steps", 1)
            fits = cadence < 1 or self.keep_checkpoints_every % cadence == 0
            unit = "updates" if hasattr(self, "total_updates") or hasattr(self, "phase_updates") else "steps"
            why = f"checkpoints are written every {cadence:,} {unit}: give a multiple"
            require(fits, self, "keep_checkpoints_every checkpoint_every", why)
