"""What Fig. 6 (right) and Fig. 7 share: Atari games, the score, games as the sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from envs.games import HIGH_UTD_GAMES
from runs.experiments.shared.rules import all_above, column, difference, mean_rows, over_games, per_world
from runs.sweeps.experiment import Arm, Flags, Measured, Verdict

SCORE = "mean training return of the last tenth of the steps"
HOW = (
    "Score: mean training return of the last tenth of the steps, divided by the mean over all arms and seeds of the "
    "same game, and averaged over the seeds of a game."
)
PAPER_GAMES: dict[str, Flags] = {game: {"env_id": f"ALE/{game}-v5"} for game in HIGH_UTD_GAMES}
TWO_GAMES: dict[str, Flags] = {name: PAPER_GAMES[name] for name in ("Pong", "Breakout")}


def arms(script: str, prefix: str, *names: str) -> list[Arm]:
    """Arms of Figs. 6 and 7, as presets of an Atari script."""
    return [Arm(name, script, f"{prefix}-{name}") for name in names]


def instead(script: str, prefix: str, *names: str) -> dict[str, Arm]:
    """The same, by name."""
    return {arm.name: arm for arm in arms(script, prefix, *names)}


def ahead_of_both(best: str, others: tuple[str, str]) -> Callable[[Sequence[Measured]], Verdict]:
    """The rule that an arm is ahead of each of two others, with games as the sample."""

    def judge(runs: Sequence[Measured]) -> Verdict:
        returns = column(runs, SCORE)
        scores = over_games(per_world(returns))
        ahead = [difference(scores, best, other) for other in others]
        rows = [
            [world, *row]
            for world in dict.fromkeys(run.world for run in runs)
            for row in mean_rows({a: {k: v for k, v in one.items() if k[0] == world} for a, one in returns.items()})
        ]
        return Verdict(
            all_above(ahead),
            f"{best} minus {others[0]} is {ahead[0]}, minus {others[1]} {ahead[1]}, in units of a game's mean score; a "
            "pair is a game",
            ("game", "arm", "n", "return of the last tenth"),
            rows,
        )

    return judge


def rule(best: str, others: tuple[str, str]) -> str:
    """That rule in words."""
    return (
        f"{HOW} {best[0].upper()}{best[1:]} minus {others[0]} and minus {others[1]}, paired by game. Reproduced if "
        "both 95 % intervals are above 0, not reproduced if one is below, undecided otherwise."
    )
