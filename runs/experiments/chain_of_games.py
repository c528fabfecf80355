"""Three games in turn, twice: does re-warming keep DQN as able to learn as a fresh agent?"""

from __future__ import annotations

from runs.experiment import Experiment, Flags, Scale
from runs.experiments._chains import CLAIM, RULE, arms, judge


def _budget(visit: int) -> Flags:
    return {"shift.every_steps": visit, "total_timesteps": 6 * visit, "replay_ratio": 0.25}


EXPERIMENT = Experiment(
    name="chain-of-games",
    source="ours; the agent, the games and the re-warming of Lyle et al. 2025, Sec. 6, at MinAtar's scale",
    claim=CLAIM,
    rule=RULE,
    arms=arms("dqn_minatar"),
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="2 min on two cores",
            flags={**_budget(3_000), "learning_starts": 500, "exploration_steps": 1_000},
            by_arm={
                "chain-switch": {"schedule.period_steps": 3_000},
                "chain-cusum": {"schedule.period_steps": 3_000, "rewarm.block": 10, "rewarm.refractory": 5},
            },
        ),
        "laptop": Scale(
            seeds=(4, 5, 6),
            estimate="60 min on two cores",
            flags={**_budget(100_000), "exploration_steps": 25_000, "buffer_size": 50_000},
            by_arm={
                "chain-switch": {"schedule.period_steps": 100_000},
                "chain-cusum": {"schedule.period_steps": 100_000, "rewarm.block": 50},
            },
        ),
        "paper": Scale(
            seeds=(1, 2, 3, 4, 5),
            estimate="some 120 core-hours: visits of a million steps; no GPU is needed",
        ),
    },
    judge=judge,
    curve="charts/episodic_return",
)
