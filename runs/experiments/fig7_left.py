"""Fig. 7, left: at one update per step, Rainbow's rate cycles and then stays low."""

from __future__ import annotations

from runs.experiments.shared.atari import MEASURES, PAPER_GAMES, TWO_GAMES, ahead, arms, instead, rule
from runs.sweeps.experiment import Experiment, Scale, guessed_gpu_hours

ARMS = ("baseline", "cyclic", "cyclic-annealed")
PAIRS = (("cyclic-annealed", "baseline"), ("cyclic-annealed", "cyclic"))

EXPERIMENT = Experiment(
    name="fig7-left",
    source="Fig. 7 (left) of Lyle et al. 2025",
    claim="Rainbow with one update per step does better when its rate cycles for a while and then stays low than "
    "at a constant rate or when it goes on cycling.",
    rule=rule(PAIRS),
    arms=arms("rainbow_atari", "quick-high-utd", *ARMS),
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
            by_arm={"cyclic": {"schedule.period_steps": 100}, "cyclic-annealed": {"schedule.period_steps": 30}},
            worlds={"Pong": PAPER_GAMES["Pong"]},
        ),
        "quick": Scale(
            seeds=(1, 2),
            estimate=guessed_gpu_hours(12, 500_000, 700),
            worlds=TWO_GAMES,
            gpus=0.25,
            folder="high-utd-rainbow/quick",
        ),
        "paper": Scale(
            seeds=(1, 2, 3),
            estimate=guessed_gpu_hours(180, 50_000_000, 700),
            instead=instead("rainbow_atari", "high-utd", *ARMS),
            worlds=PAPER_GAMES,
            gpus=0.25,
            folder="high-utd-rainbow/paper",
        ),
    },
    measures=MEASURES,
    judge=ahead(PAIRS),
    judged=("paper",),
    curve="charts/episodic_return",
)
