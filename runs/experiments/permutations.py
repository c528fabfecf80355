"""The orders of actions or of channels change: does re-warming keep DQN as able to learn as a fresh agent?"""

from __future__ import annotations

from runs.experiment import Experiment, Flags, Scale
from runs.experiments._chains import CLAIM, RULE, arms, judge

WORLDS: dict[str, Flags] = {
    kind: {"env_id": "MinAtar/Breakout-v1", "shift.kind": kind, "shift.games": (), "shift.tasks": 3}
    for kind in ("actions", "channels")
}


def _budget(visit: int) -> Flags:
    return {"shift.every_steps": visit, "total_timesteps": 6 * visit, "replay_ratio": 0.25}


EXPERIMENT = Experiment(
    name="permutations",
    source="ours",
    claim=CLAIM,
    rule=RULE,
    arms=arms("dqn_minatar"),
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="3 min on two cores",
            flags={**_budget(3_000), "learning_starts": 500, "exploration_steps": 1_000},
            by_arm={
                "chain-switch": {"schedule.period_steps": 3_000},
                "chain-cusum": {"schedule.period_steps": 3_000, "rewarm.block": 10, "rewarm.refractory": 5},
            },
            worlds={"actions": WORLDS["actions"]},
        ),
        "laptop": Scale(
            seeds=(4, 5, 6),
            estimate="50 min on two cores",
            flags={**_budget(40_000), "exploration_steps": 10_000, "buffer_size": 50_000},
            by_arm={
                "chain-switch": {"schedule.period_steps": 40_000},
                "chain-cusum": {"schedule.period_steps": 40_000, "rewarm.block": 50},
            },
            worlds=WORLDS,
        ),
        "paper": Scale(
            seeds=(1, 2, 3, 4, 5),
            estimate="some 240 core-hours: visits of a million steps; no GPU is needed",
            worlds=WORLDS,
        ),
    },
    judge=judge,
    curve="charts/episodic_return",
)
