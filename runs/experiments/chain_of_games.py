"""Three games in turn, twice: with re-warming, does DQN still learn as well as a fresh agent?"""

from __future__ import annotations

from runs.experiments.shared.chains import CLAIM, ENDS, RULE, arms, budget, decays, end_returns, judge, smoke
from runs.sweeps.experiment import Experiment, Scale

EXPERIMENT = Experiment(
    name="chain-of-games",
    source="ours; after the sequence of games of Lyle et al. 2024 (arXiv:2407.01800), with the re-warming of Lyle et "
    "al. 2025",
    claim=CLAIM,
    rule=RULE,
    arms=arms("dqn_minatar"),
    scales={
        "smoke": smoke(),
        "laptop": Scale(
            seeds=(4, 5, 6),
            estimate="50 min on two cores",
            flags=budget(100_000, exploration_steps=25_000, buffer_size=50_000),
            by_arm=decays(100_000, block=50),
        ),
        "paper": Scale(
            seeds=(1, 2, 3, 4, 5),
            estimate="some 25 core-hours: visits of 200,000 steps at one update per step; no GPU is needed",
        ),
    },
    measures={ENDS: end_returns},
    judge=judge,
    curve="charts/episodic_return",
)
