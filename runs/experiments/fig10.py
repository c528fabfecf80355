"""Fig. 10: where the cycles stop."""

from __future__ import annotations

from runs.experiments.shared.atari import MEASURES, PAPER_GAMES, ahead, arms, rule
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
        "smoke": Scale(
            seeds=(1,),
            estimate="3 min on two cores",
            flags={
                "total_timesteps": 1_500,  # more than an episode, which has about 900 steps at first
                "learning_starts": 1_300,
                "buffer_size": 2_000,
                "target_network_frequency": 100,
                "eval_every": 0,
                "probe.every": 100,
                "checkpoint_every": 1_500,
            },
            by_arm={arm: {"schedule.period_steps": 30} for arm in ARMS[1:]},
            worlds={"Pong": PAPER_GAMES["Pong"]},
        ),
        "paper": Scale(
            seeds=(1, 2, 3),
            estimate=guessed_gpu_hours(240, 50_000_000, 1_000),
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
