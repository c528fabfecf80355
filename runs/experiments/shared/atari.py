"""What the experiments on Atari share: games, the score, a rule with games as the sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from envs.games import HIGH_UTD_GAMES
from runs.experiments.shared.rules import (
    Column,
    all_above,
    column,
    difference,
    end_return,
    mean_rows,
    over_games,
    standardised,
)
from runs.sweeps.experiment import Arm, Flags, Measured, Result, Scale, Verdict, guessed_gpu_hours

SCORE = "mean training return of the last fiftieth of the steps"
TENTH = "mean training return of the last tenth of the steps"
HOW = (
    "Score: mean training return of the last fiftieth of the steps (4 million of 200 million frames), where a rate "
    "that cycles has come down; minus the game's mean and divided by its standard deviation, over all arms and seeds "
    "of the game; averaged over seeds."
)
PAPER_GAMES: dict[str, Flags] = {game: {"env_id": f"ALE/{game}-v5"} for game in HIGH_UTD_GAMES}
TWO_GAMES: dict[str, Flags] = {name: PAPER_GAMES[name] for name in ("Pong", "Breakout")}

SMOKE: Flags = {
    "total_timesteps": 1_500,  # more than an episode, which has about 900 steps at first
    "learning_starts": 1_300,
    "buffer_size": 2_000,
    "target_network_frequency": 100,
    "eval_every": 0,
    "probe.every": 100,
    "checkpoint_every": 1_500,
}
SPEED = {"dqn_atari": 1_000, "rainbow_atari": 700}
"""updates per second on a GPU: a guess, as no Atari game has been trained on one yet"""


def arms(script: str, prefix: str, *names: str) -> list[Arm]:
    """Arms of Figs. 6 and 7, as presets of an Atari script."""
    return [Arm(name, script, f"{prefix}-{name}") for name in names]


def instead(script: str, prefix: str, *names: str) -> dict[str, Arm]:
    """The same, by name."""
    return {arm.name: arm for arm in arms(script, prefix, *names)}


def smoke(by_arm: dict[str, Flags]) -> Scale:
    """One short run of each arm, on Pong."""
    return Scale(
        seeds=(1,),
        estimate="3 min on two cores",
        flags=SMOKE,
        by_arm=by_arm,
        worlds={"Pong": PAPER_GAMES["Pong"]},
    )


def high_utd_scales(script: str, names: Sequence[str], by_arm: dict[str, Flags]) -> dict[str, Scale]:
    """Scales of Figs. 6 (right) and 7: one update per step. Experiments on the same script share their runs.

    There is no scale `laptop`: 2M frames are the least that ranks arms on most games, and take hours a run on one core.
    """
    agent = script.removesuffix("_atari")
    return {
        "smoke": smoke(by_arm),
        "quick": Scale(
            seeds=(1, 2),
            estimate=guessed_gpu_hours(2 * len(names) * len(TWO_GAMES), 500_000, SPEED[script]),
            worlds=TWO_GAMES,
            gpus=0.25,
            folder=f"high-utd-{agent}/quick",
        ),
        "paper": Scale(
            seeds=(1, 2, 3),
            estimate=guessed_gpu_hours(3 * len(names) * len(PAPER_GAMES), 50_000_000, SPEED[script]),
            instead=instead(script, "high-utd", *names),
            worlds=PAPER_GAMES,
            gpus=0.25,
            folder=f"high-utd-{agent}/paper",
        ),
    }


def end(result: Result) -> float:
    """The score of a run, before it is compared with the other runs of its game."""
    return end_return(result, 0.02)


MEASURES = {SCORE: end, TENTH: end_return}


def of_game(values: Column, game: str) -> Column:
    """The numbers of one game."""
    return {arm: {key: value for key, value in runs.items() if key[0] == game} for arm, runs in values.items()}


Pairs = Sequence[tuple[str, str]]
"""(arm, another): the claim is that the first does better"""


def ahead(pairs: Pairs) -> Callable[[Sequence[Measured]], Verdict]:
    """The rule that each arm of a pair is ahead of the other, with games as the sample."""

    def judge(runs: Sequence[Measured]) -> Verdict:
        columns = [column(runs, name) for name in MEASURES]
        scores = over_games(standardised(columns[0]))
        leads = [difference(scores, better, other) for better, other in pairs]
        rows = [
            [world, *row]
            for world in dict.fromkeys(run.world for run in runs)
            for row in mean_rows(*(of_game(one, world) for one in columns))
        ]
        said = ", ".join(f"{better} minus {other} {lead}" for (better, other), lead in zip(pairs, leads, strict=True))
        return Verdict(
            all_above(leads),
            f"in standard deviations of a game, with a game as a pair: {said}",
            ("game", "arm", "n", "return of the last fiftieth", "of the last tenth"),
            rows,
        )

    return judge


def rule(pairs: Pairs) -> str:
    """That rule in words."""
    named = ", ".join(f"{better} minus {other}" for better, other in pairs)
    return (
        f"{HOW} Differences, paired by game: {named}. Reproduced if all 95 % intervals are above 0, not reproduced if "
        "one is below, undecided otherwise."
    )
