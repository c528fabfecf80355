"""Figs. 6 (right) and 7 on MinAtar: DQN's rate cycles for a while and then stays low."""

from __future__ import annotations

from collections.abc import Sequence

from runs.experiments.shared.atari import TENTH as SCORE
from runs.experiments.shared.rules import all_above, column, difference, end_return, mean_rows, per_world
from runs.sweeps.experiment import Arm, Experiment, Measured, Scale, Verdict

MINATAR = {name: {"env_id": f"MinAtar/{name}-v1"} for name in ("Breakout", "SpaceInvaders")}


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    returns = column(runs, SCORE)
    scores = per_world(returns)
    ahead = [difference(scores, "cyclic-annealed", other) for other in ("baseline", "low")]
    rows = [
        [world, *row]
        for world in dict.fromkeys(run.world for run in runs)
        for row in mean_rows({a: {k: v for k, v in one.items() if k[0] == world} for a, one in returns.items()})
    ]
    return Verdict(
        all_above(ahead),
        f"cyclic-annealed minus baseline is {ahead[0]}, minus low {ahead[1]}, in units of a game's mean score",
        ("game", "arm", "n", "return of the last tenth"),
        rows,
    )


EXPERIMENT = Experiment(
    name="high-utd-minatar",
    source="after Figs. 6 (right) and 7 (right) of Lyle et al. 2025, on MinAtar, where one update per step is usual",
    claim="On MinAtar's Breakout and Space Invaders, DQN with one update per step does better when its rate cycles for "
    "a while and then stays low than at a constant rate, high or low.",
    rule="Score: mean training return of the last tenth of the steps, divided by the mean over all arms and seeds of "
    "the same game. Cyclic-annealed minus baseline and minus low, paired by game and seed. Reproduced if both 95 % "
    "intervals are above 0, not reproduced if one is below, undecided otherwise.",
    arms=[Arm(name, "dqn_minatar", name) for name in ("baseline", "low", "cyclic", "cyclic-annealed")],
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="2 min on two cores",
            flags={"total_timesteps": 3_000, "learning_starts": 500},
            by_arm={"cyclic": {"schedule.period_steps": 1_000}, "cyclic-annealed": {"schedule.period_steps": 500}},
            worlds={"Breakout": MINATAR["Breakout"]},
        ),
        "laptop": Scale(
            seeds=(11, 12, 13),
            estimate="40 min on two cores",
            flags={"total_timesteps": 120_000},
            by_arm={"cyclic": {"schedule.period_steps": 12_000}, "cyclic-annealed": {"schedule.period_steps": 12_000}},
            worlds=MINATAR,
        ),
        "paper": Scale(
            seeds=(11, 12, 13, 14, 15),
            estimate="20 hours on two cores; no GPU is needed",
            flags={"total_timesteps": 2_000_000},
            by_arm={
                "cyclic": {"schedule.period_steps": 200_000},
                "cyclic-annealed": {"schedule.period_steps": 200_000},
            },
            worlds=MINATAR,
        ),
    },
    measures={SCORE: end_return},
    judge=judge,
    note="One update per step is MinAtar's usual number, so this is not the paper's regime of many updates. The "
    "network has LayerNorm, that of the paper's DQN none. Without an arm of one cycle or of a linear decay, "
    "cycles and a decay cannot be told apart.",
    curve="charts/episodic_return",
)
