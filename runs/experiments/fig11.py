"""Fig. 11: a cycling agent recovers from a re-warming sooner than a resetting one from a reset."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from runs.experiments.fig6_left import EXPERIMENT as FIG6_LEFT
from runs.experiments.shared.atari import SPEED
from runs.experiments.shared.rules import all_above, difference, mean_rows, over_games
from runs.sweeps.experiment import Experiment, Measured, Result, Scale, Verdict, guessed_gpu_hours

BEFORE = "mean return of the last tenth before each re-warming or reset"
AFTER = "mean return of the first fifth after each"
CYCLES, RESETS = "four-cycles", "reset"


def around(result: Result, begin: float, end: float) -> tuple[float, ...]:
    """Mean return between two times relative to the three events, in quarters of the run; nan without an episode.

    The events come after a quarter, a half and three quarters of the run.
    """
    quarter = result.config["total_timesteps"] / 4
    episodes = result.scalars.get("charts/episodic_return", ())
    found = []
    for event in (1, 2, 3):
        values = [r for step, r in episodes if (event + begin) * quarter < step <= (event + end) * quarter]
        found.append(float(np.mean(values)) if values else math.nan)
    return tuple(found)


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    games = {run.world: [] for run in runs}
    for run in runs:
        games[run.world].append(np.abs(run.values[BEFORE]).mean())
    losses: dict[str, dict[tuple[str, int], float]] = {}
    for run in runs:
        loss = np.subtract(run.values[BEFORE], run.values[AFTER]).mean() / (np.mean(games[run.world]) or 1.0)
        losses.setdefault(run.arm, {})[run.world, run.seed] = float(loss)
    less = difference(over_games(losses), RESETS, CYCLES)
    return Verdict(
        all_above([less]),
        f"what a cycling agent loses at first is smaller by {less}, in units of a game's mean return before the "
        "events, with a game as a pair",
        ("arm", "n", "loss"),
        mean_rows(losses),
    )


EXPERIMENT = Experiment(
    name="fig11",
    source="Fig. 11 of Lyle et al. 2025",
    claim="A projected Rainbow loses less of its return in the first fifth after a re-warming than after a reset.",
    rule="Loss: mean return of the last tenth before a re-warming or reset minus that of the first fifth of the time "
    "to the next, mean over the three, in units of the game's mean absolute return before them, averaged over seeds. "
    "Resets minus four cycles, paired by game. Reproduced if the 95 % interval is above 0, not reproduced if it is "
    "below, undecided otherwise.",
    arms=[arm for arm in FIG6_LEFT.arms if arm.name in (CYCLES, RESETS)],
    scales={
        "smoke": Scale(
            **{
                **vars(FIG6_LEFT.scales["smoke"]),
                "arms": None,
                "folder": "fig6-left/smoke",
                "by_arm": {name: FIG6_LEFT.scales["smoke"].by_arm[name] for name in (CYCLES, RESETS)},
            }
        ),
        "paper": Scale(
            **{
                **vars(FIG6_LEFT.scales["paper"]),
                "estimate": guessed_gpu_hours(342, 12_500_000, SPEED["rainbow_atari"]),
                "instead": {name: FIG6_LEFT.scales["paper"].instead[name] for name in (CYCLES, RESETS)},
                "folder": "fig6-left/paper",
            }
        ),
    },
    measures={BEFORE: lambda run: around(run, -0.1, 0.0), AFTER: lambda run: around(run, 0.0, 0.2)},
    judge=judge,
    judged=("paper",),
    curve="charts/episodic_return",
)
