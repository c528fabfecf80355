"""Flags that every training script has, beside its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runs.recording import reject_unused
from runs.training.checks import require_device, require_positive


@dataclass(frozen=True)
class RunArgs:
    """Where a run computes and what it leaves behind. The `Args` of scripts inherit this; --help lists it last."""

    seeds: tuple[int, ...] = ()
    """several seeds instead of --seed, such as 1 2 3: each is a run of its own, in parallel on the cores there are"""
    track: bool = False
    """send what is recorded to Weights & Biases as well (pip install -e '.[track]')"""
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

    def __post_init__(self) -> None:
        require_positive(self, "threads")
        require_device(self)
        if not self.track:
            reject_unused("", self, ["wandb_project_name", "wandb_entity"], "without --track")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds, default=0) < 0:
            raise ValueError(f"--seeds must be different numbers from 0 on, got {' '.join(map(str, self.seeds))}")
