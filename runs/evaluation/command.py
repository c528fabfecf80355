"""Evaluate the agents of runs, finished, interrupted or killed, and film them.

    python -m runs evaluate runs/logs/RUN
    python -m runs evaluate runs/logs/nap__* --episodes 100 --seed 1 --out nap.json
    python -m runs evaluate runs/logs/RUN --task 1 --video

Loads each agent from its run's checkpoint, in the task of that moment, and prints a row for each: returns over
episodes, with Student's 95 % interval of their mean. It is an interval over episodes of one agent, not over seeds.

Without --episodes and --seed it repeats the run's own evaluation at the checkpoint. The same flags give the same
numbers again, on a CPU exactly. Agents act greedily, as in the script's evaluations (Atari's DQN and Rainbow with
--eval-epsilon); --sampled draws PPO's actions from its policy.

Runs are only read: of a run directory nothing changes, except that --video adds video/evaluation-*.gif. With --out the
GIFs are written next to that file instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runs.positionals import Directories


@dataclass(frozen=True)
class Args:
    """Evaluate the agents of runs."""

    directories: Directories
    """run directories"""
    episodes: int = 0
    """episodes of each agent; 0: as many as the run's own evaluations, --eval-episodes"""
    seed: int | None = None
    """seed of the environments and of random actions; default: that of the run's own evaluation at this step"""
    sampled: bool = False
    """draw actions from the policy instead of taking the likeliest (PPO)"""
    task: int | None = None
    """another task of the run's --shift; default: the one at the checkpoint"""
    video: bool = False
    """write the first episode as a GIF: video/evaluation-*.gif in the run directory, with --out next to that file"""
    out: Path | None = None
    """JSON file to write, with the return and length of every episode"""
    script: Path | None = None
    """the script of the runs, if it is not where it was; default: as the run recorded it"""

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before anything is played."""
        if self.episodes < 0:
            raise ValueError(f"--episodes must be at least 1, or 0 for as many as the run's own, got {self.episodes}")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {self.seed}")
        if self.task is not None and self.task < 0:
            raise ValueError(f"--task must be at least 0, got {self.task}")


def main(args: Args) -> None:
    """Evaluate, print the table, write the file."""
    from runs.evaluation.playing import evaluate_runs  # imports torch and the environments, which takes seconds

    evaluate_runs(args)
