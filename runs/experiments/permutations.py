"""The order of actions or channels changes: with re-warming, does DQN still learn as well as a fresh agent?"""

from __future__ import annotations

from runs.experiments.shared.chains import CLAIM, ENDS, RULE, arms, budget, decays, end_returns, judge, smoke
from runs.sweeps.experiment import Experiment, Flags, Scale

WORLDS: dict[str, Flags] = {
    kind: {"env_id": "MinAtar/Breakout-v1", "shift.kind": kind, "shift.games": (), "shift.tasks": 3}
    for kind in ("actions", "channels")
}


EXPERIMENT = Experiment(
    name="permutations",
    source="ours",
    claim=CLAIM,
    rule=RULE,
    arms=arms("dqn_minatar"),
    scales={
        "smoke": smoke(actions=WORLDS["actions"]),
        "laptop": Scale(
            seeds=(4, 5, 6),
            estimate="50 min on two cores",
            flags=budget(40_000, exploration_steps=10_000, buffer_size=50_000),
            by_arm=decays(40_000, block=50),
            worlds=WORLDS,
        ),
        "paper": Scale(
            seeds=(1, 2, 3, 4, 5),
            estimate="some 50 core-hours: visits of 200,000 steps at one update per step; no GPU is needed",
            worlds=WORLDS,
        ),
    },
    measures={ENDS: end_returns},
    judge=judge,
    curve="charts/episodic_return",
)
