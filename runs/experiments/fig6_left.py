"""Fig. 6, left: at one update in four steps, Rainbow's rate decays once or cycles four times."""

from __future__ import annotations

from envs.games import ATARI_57
from runs.experiments.shared.atari import MEASURES, PAPER_GAMES, SMOKE, SPEED, ahead, arms, instead, rule
from runs.sweeps.experiment import Experiment, Scale, guessed_gpu_hours

ARMS = ("constant", "one-cycle", "four-cycles", "reset", "reset-cycles", "early-stop")
PAIRS = (
    ("one-cycle", "constant"),
    ("four-cycles", "early-stop"),
    ("four-cycles", "reset-cycles"),
    ("early-stop", "reset"),
    ("reset-cycles", "reset"),
)
GAMES = {game: {"env_id": f"ALE/{game}-v5"} for game in ATARI_57}

EXPERIMENT = Experiment(
    name="fig6-left",
    source="Fig. 6 (left) of Lyle et al. 2025",
    claim="Of projected Rainbow agents with one update in four steps, one decay is ahead of a constant rate; four "
    "cycles are ahead of stopping early and of cycles with resets; and both of these are ahead of resets alone.",
    rule=rule(PAIRS),
    arms=arms("rainbow_atari", "quick-low-utd", *ARMS),
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="4 min on two cores",
            flags={**SMOKE, "probe.every": 20},
            by_arm={
                "one-cycle": {"schedule.period_steps": 200},
                "four-cycles": {"schedule.period_steps": 50},
                "reset": {"reset.at_steps": (1_350, 1_400, 1_450)},
            },
            arms=("constant", "one-cycle", "four-cycles", "reset"),
            worlds={"Pong": PAPER_GAMES["Pong"]},
        ),
        "paper": Scale(
            seeds=(1, 2, 3),
            estimate=guessed_gpu_hours(1026, 12_500_000, SPEED["rainbow_atari"]),
            instead=instead("rainbow_atari", "low-utd", *ARMS),
            worlds=GAMES,
            gpus=0.25,
        ),
    },
    measures=MEASURES,
    judge=ahead(PAIRS),
    judged=("paper",),
    curve="charts/episodic_return",
)
