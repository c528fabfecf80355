"""Fig. 6, right: at one update per step, DQN's rate cycles."""

from __future__ import annotations

from runs.experiments.shared.atari import MEASURES, PAPER_GAMES, TWO_GAMES, ahead, arms, instead, rule
from runs.sweeps.experiment import Experiment, Scale, guessed_gpu_hours

ARMS = ("baseline", "low", "cyclic")
PAIRS = (("cyclic", "baseline"), ("cyclic", "low"))

EXPERIMENT = Experiment(
    name="fig6-right",
    source="Fig. 6 (right) of Lyle et al. 2025",
    claim="DQN with one update per step does better when its rate cycles than at a constant rate, high or low.",
    rule=rule(PAIRS),
    arms=arms("dqn_atari", "quick-high-utd", *ARMS),
    scales={
        # There is no scale `laptop`: on one core 2M frames, the least that ranks arms on most games, take hours a run.
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
            by_arm={"cyclic": {"schedule.period_steps": 100}},
            worlds={"Pong": PAPER_GAMES["Pong"]},
        ),
        "quick": Scale(
            seeds=(1, 2),
            estimate=guessed_gpu_hours(12, 500_000, 1_000),
            worlds=TWO_GAMES,
            gpus=0.25,
            folder="high-utd-dqn/quick",
        ),
        "paper": Scale(
            seeds=(1, 2, 3),
            estimate=guessed_gpu_hours(180, 50_000_000, 1_000),
            instead=instead("dqn_atari", "high-utd", *ARMS),
            worlds=PAPER_GAMES,
            gpus=0.25,
            folder="high-utd-dqn/paper",
        ),
    },
    measures=MEASURES,
    judge=ahead(PAIRS),
    judged=("paper",),
    curve="charts/episodic_return",
)
