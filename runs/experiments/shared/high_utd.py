"""What Figs. 6 and 7 share: arms, rule, the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from envs.games import HIGH_UTD_GAMES
from runs.experiments.shared.rules import all_above, difference, end_return, mean_rows, measured, per_world
from runs.sweeps.experiment import Arm, Flags, Result, Verdict

ARMS = ("baseline", "low", "cyclic", "cyclic-annealed")
RULE = (
    "Score: mean training return of the last tenth of the steps, divided by the mean over all arms and seeds of the "
    "same game. Cyclic-annealed minus baseline and minus low, paired by game and seed. Reproduced if both 95 % "
    "intervals are above 0, not reproduced if one is below, undecided otherwise."
)
PAPER_GAMES: dict[str, Flags] = {game: {"env_id": f"ALE/{game}-v5"} for game in HIGH_UTD_GAMES}


def atari_arms(script: str, prefix: str) -> dict[str, Arm]:
    """The four arms, as presets of an Atari script."""
    return {name: Arm(name, script, f"{prefix}-{name}") for name in ARMS}


def judge(results: Sequence[Result]) -> Verdict:
    """The rule above."""
    returns = measured(results, end_return)
    scores = per_world(returns)
    ahead = [difference(scores, "cyclic-annealed", other) for other in ("baseline", "low")]
    rows = [
        [world, *row]
        for world in sorted({world for runs in returns.values() for world, _ in runs})
        for row in mean_rows({arm: {k: v for k, v in runs.items() if k[0] == world} for arm, runs in returns.items()})
    ]
    return Verdict(
        all_above(ahead),
        f"cyclic-annealed minus baseline is {ahead[0]}, minus low {ahead[1]}, in units of a game's mean score",
        ("game", "arm", "n", "return of the last tenth"),
        rows,
    )
