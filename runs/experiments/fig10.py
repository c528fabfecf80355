"""Fig. 10: where the cycles stop."""

from __future__ import annotations

from runs.experiments.shared.atari import MEASURES, PAPER_GAMES, SPEED, ahead, arms, rule, smoke
from runs.sweeps.experiment import Experiment, Scale, guessed_gpu_hours

ARMS = ("baseline", "cyclic-annealed-8M", "cyclic-annealed-20M", "cyclic-annealed")
PAIRS = tuple((arm, "baseline") for arm in ARMS[1:])

EXPERIMENT = Experiment(
    name="fig10",
    source="Fig. 10 of Lyle et al. 2025",
    claim="DQN with one update per step does better than at a constant rate when its rate cycles until 8, 20 or 40 "
    "million frames and then stays low.",
    rule=rule(PAIRS),
    arms=arms("dqn_atari", "high-utd", *ARMS),
    scales={
        "smoke": smoke({arm: {"schedule.period_steps": 30} for arm in ARMS[1:]}),
        "paper": Scale(
            seeds=(1, 2, 3),
            estimate=guessed_gpu_hours(240, 50_000_000, SPEED["dqn_atari"]),
            worlds=PAPER_GAMES,
            gpus=0.25,
            folder="high-utd-dqn/paper",
        ),
    },
    measures=MEASURES,
    judge=ahead(PAIRS),
    judged=("paper",),
    note="The figure has no sentence of its own in the paper's text that we know; the claim is our reading of it.",
    curve="charts/episodic_return",
)
