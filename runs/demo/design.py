"""What the demo runs: two agents, the changes of their task, and where the runs are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runs.sweeps.experiment import Flags, Job

RETURN = "charts/episodic_return"
LIMIT = 400
"""steps of an episode, each of reward 1"""


@dataclass(frozen=True)
class Size:
    """How long the agents learn."""

    levels: int = 5
    """settings of the offset; the first one is 0"""
    iterations: int = 75
    """of a level, each of 8 environments with 100 steps"""

    @property
    def level(self) -> int:
        """Agent steps of a level."""
        return 800 * self.iterations

    @property
    def total(self) -> int:
        """Agent steps of a run."""
        return self.levels * self.level

    @property
    def changes(self) -> range:
        """Steps at which the task changes."""
        return range(self.level, self.total, self.level)


@dataclass(frozen=True)
class Agent:
    """One of the two."""

    preset: str
    name: str
    """in tables and pictures"""
    flags: Flags
    about: str


def agents(size: Size) -> dict[str, Agent]:
    """Both agents, by the name of their run."""
    return {
        "plain": Agent("levels-plain", "plain PPO", {}, "constant learning rate"),
        "rewarmed": Agent(
            "levels-nap-switch",
            "projected, re-warmed",
            {"schedule.period_steps": size.level},
            "LayerNorm, weights projected, learning rate re-warmed at each change",
        ),
    }


def planned(folder: Path, seed: int, size: Size) -> list[Job]:
    """The run of each agent."""
    shared: Flags = {
        "num_envs": 8, "num_steps": 100, "fresh_episodes": False, "max_episode_steps": LIMIT,
        "total_timesteps": size.total, "shift.tasks": size.levels, "shift.every_steps": size.level,
        "eval_every": 0, "probe.every": 625, "probe.meter_every": 125, "checkpoint_every": 10,
    }  # fmt: skip
    return [
        Job(
            f"demo/{run}", "demo", "", run, "", seed, "ppo_control", agent.preset,
            {**shared, **agent.flags, "seed": seed, "threads": 1, "exp_name": run}, folder.absolute() / run, 1, 0.0,
        )
        for run, agent in agents(size).items()
    ]  # fmt: skip
