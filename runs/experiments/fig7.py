"""Fig. 7: as Fig. 6, for Rainbow."""

from __future__ import annotations

from runs.experiments.shared.high_utd import PAPER_GAMES, RULE, atari_arms, judge
from runs.sweeps.experiment import Experiment, Scale, guessed_gpu_hours

EXPERIMENT = Experiment(
    name="fig7",
    source="Fig. 7 of Lyle et al. 2025",
    claim="Rainbow with one update per step does better when its rate cycles for a while and then stays low than at a "
    "constant rate, high or low.",
    rule=RULE,
    arms=list(atari_arms("rainbow_atari", "quick-high-utd").values()),
    scales={
        # There is no scale `laptop`: an update takes 87 ms on a core of an AMD EPYC, so 2M frames, the least that ranks
        # arms on most games, take twelve hours.
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
            estimate=guessed_gpu_hours(16, 500_000, 700),
            worlds={name: PAPER_GAMES[name] for name in ("Pong", "Breakout")},
            gpus=0.25,
        ),
        "paper": Scale(
            seeds=(1, 2, 3),
            estimate=guessed_gpu_hours(240, 50_000_000, 700),
            instead=atari_arms("rainbow_atari", "high-utd"),
            worlds=PAPER_GAMES,
            gpus=0.25,
        ),
    },
    judge=judge,
    judged=("quick", "paper"),
    curve="charts/episodic_return",
)
