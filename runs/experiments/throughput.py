"""The cost of projection, meter and probe for a whole agent, in steps per second."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runs.experiments.shared.rules import column, decide, mean_rows
from runs.sweeps.experiment import Arm, Experiment, Measured, Result, Scale, Verdict

AGENTS = ("dqn", "ppo")
SPEED = "steps per second, median of the second half"


def speed(result: Result) -> float:
    """Median of the steps per second over the second half of the run."""
    values = [value for _, value in result.scalars["charts/SPS"]]
    return float(np.median(values[len(values) // 2 :]))


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    speeds = column(runs, SPEED)
    medians = {
        agent: float(np.median([speeds[f"{agent}-nap"][pair] / plain for pair, plain in speeds[agent].items()]))
        for agent in AGENTS
    }
    least = min(medians.values())
    said = ", ".join(f"{median:.2f} ({agent}, n = {len(speeds[agent])})" for agent, median in medians.items())
    return Verdict(
        decide(least >= 0.9, least < 0.8),
        f"steps per second with projection over those without, median of the pairs: {said}",
        ("arm", "n", "steps per second"),
        mean_rows(speeds),
    )


EXPERIMENT = Experiment(
    name="throughput",
    source="ours",
    claim="Projection every update costs an agent less than a tenth of its speed.",
    rule="Steps per second of the projected over the plain agent of the same seed, median over seeds, meter and probe "
    "on in both. Reproduced if it is at least 0.9 for each agent, not reproduced if one is below 0.8, undecided "
    "otherwise.",
    arms=[
        Arm("dqn", "dqn_minatar", "baseline", {"network": "normalised"}),
        Arm("dqn-nap", "dqn_minatar", "nap"),
        Arm("ppo", "ppo_minatar", "baseline", {"network": "normalised"}),
        Arm("ppo-nap", "ppo_minatar", "nap"),
    ],
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="1 min on two cores",
            by_arm={
                "dqn": {"total_timesteps": 4_000, "learning_starts": 500},
                "dqn-nap": {"total_timesteps": 4_000, "learning_starts": 500},
                "ppo": {"total_timesteps": 32_768},
                "ppo-nap": {"total_timesteps": 32_768},
            },
        ),
        "laptop": Scale(
            seeds=(1, 2, 3, 4, 5),
            estimate="10 min on two cores",
            by_arm={
                "dqn": {"total_timesteps": 30_000},
                "dqn-nap": {"total_timesteps": 30_000},
                "ppo": {"total_timesteps": 262_144},
                "ppo-nap": {"total_timesteps": 262_144},
            },
        ),
        "paper": Scale(
            seeds=(1, 2, 3, 4, 5),
            estimate="an hour on two cores; no GPU is needed",
            by_arm={
                "dqn": {"total_timesteps": 200_000},
                "dqn-nap": {"total_timesteps": 200_000},
                "ppo": {"total_timesteps": 2_000_000},
                "ppo-nap": {"total_timesteps": 2_000_000},
            },
        ),
    },
    measures={SPEED: speed},
    judge=judge,
    curve="charts/SPS",
)
