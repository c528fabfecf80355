"""Fig. 6: at one update per step, DQN's rate cycles and then stays low."""

from __future__ import annotations

from runs.experiments.shared.high_utd import ARMS, PAPER_GAMES, RULE, atari_arms, judge
from runs.sweeps.experiment import Arm, Experiment, Scale, guessed_gpu_hours

MINATAR = {name: {"env_id": f"MinAtar/{name}-v1"} for name in ("Breakout", "SpaceInvaders")}

EXPERIMENT = Experiment(
    name="fig6-high-utd",
    source="Fig. 6 of Lyle et al. 2025",
    claim="DQN with one update per step does better when its rate cycles for a while and then stays low than at a "
    "constant rate, high or low.",
    rule=RULE,
    arms=[Arm(name, "dqn_minatar", name) for name in ARMS],
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="2 min on two cores",
            flags={"total_timesteps": 3_000, "learning_starts": 500},
            by_arm={
                "cyclic": {"schedule.period_steps": 1_000},
                "cyclic-annealed": {"schedule.period_steps": 500},
            },
            worlds={"Breakout": MINATAR["Breakout"]},
        ),
        "laptop": Scale(
            seeds=(11, 12, 13),
            estimate="40 min on two cores",
            flags={"total_timesteps": 120_000},
            by_arm={
                "cyclic": {"schedule.period_steps": 12_000},
                "cyclic-annealed": {"schedule.period_steps": 12_000},
            },
            worlds=MINATAR,
        ),
        "quick": Scale(
            seeds=(1, 2),
            estimate=guessed_gpu_hours(16, 500_000, 1_000),
            instead=atari_arms("dqn_atari", "quick-high-utd"),
            worlds={name: PAPER_GAMES[name] for name in ("Pong", "Breakout")},
            gpus=0.25,
        ),
        "paper": Scale(
            seeds=(1, 2, 3),
            estimate=guessed_gpu_hours(240, 50_000_000, 1_000),
            instead=atari_arms("dqn_atari", "high-utd"),
            worlds=PAPER_GAMES,
            gpus=0.25,
        ),
    },
    judge=judge,
    judged=("laptop", "quick", "paper"),
    curve="charts/episodic_return",
)
