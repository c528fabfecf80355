"""What the experiments with changing tasks share: arms, the rule of docs/chains.md, the verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runs.analysis.changes import split
from runs.experiments.shared.rules import all_above, difference, mean_rows
from runs.sweeps.experiment import Arm, Flags, Measured, Result, Scale, Verdict

ENDS = "mean training return of the last tenth of each visit"

ARMS = ("plain", "reset", "fresh", "nap", "switch", "cusum")
RULE = (
    "Per seed, the mean over the visits but the first of the end return (last tenth of the visit) as a share of the "
    "fresh agent's of the same visit and seed. Re-warmed at the known change (switch) and by CUSUM, each minus plain, "
    "paired by world and seed. Reproduced if both 95 % intervals are above 0, not reproduced if one is below, "
    "undecided otherwise."
)
CLAIM = (
    "An agent that is projected and re-warmed when its world changes keeps up with a fresh one better than one that is "
    "trained on plainly."
)


def budget(visit: int, **flags: object) -> Flags:
    """Three tasks in turn, twice, `visit` steps each."""
    return {"shift.every_steps": visit, "total_timesteps": 6 * visit, "replay_ratio": 0.25, **flags}


def decays(visit: int, **cusum: object) -> dict[str, Flags]:
    """The learning rate of the re-warmed arms decays over one visit; `cusum` are more flags of CUSUM's arm."""
    return {
        "chain-switch": {"schedule.period_steps": visit},
        "chain-cusum": {"schedule.period_steps": visit, **{f"rewarm.{name}": value for name, value in cusum.items()}},
    }


def smoke(**worlds: Flags) -> Scale:
    """Visits of 3,000 steps."""
    return Scale(
        seeds=(1,),
        estimate="2 min on two cores",
        flags=budget(3_000, learning_starts=500, exploration_steps=1_000),
        by_arm=decays(3_000, block=10, refractory=5),
        worlds=worlds or {"": {}},
    )


def arms(script: str) -> list[Arm]:
    """The presets chain-* of a script."""
    return [Arm(f"chain-{name}", script, f"chain-{name}") for name in ARMS]


def end_returns(result: Result) -> tuple[float, ...]:
    """The mean training return of the last tenth of each visit, in order; nan for a visit without an episode there."""
    return tuple(visit.end_return for visit in split(result.scalars, result.config["total_timesteps"], result.arm))


def share(ends: Sequence[float], fresh: Sequence[float]) -> float:
    """Mean over all visits but the first of the end return divided by the fresh agent's.

    Raises:
        ValueError: the numbers of visits differ, or the fresh agent's return in one is not above 0.
    """
    pairs = list(zip(ends[1:], fresh[1:], strict=True))
    if not pairs or not all(theirs > 0 for _, theirs in pairs):
        raise ValueError("a share needs a fresh agent whose return is above 0 in every visit but the first")
    return float(np.mean([ours / theirs for ours, theirs in pairs]))


def shares_of(runs: Sequence[Measured]) -> dict[str, dict[tuple[str, int], float]]:
    """The share of every run, by arm."""
    ends = {(run.arm, run.world, run.seed): run.values[ENDS] for run in runs}
    shares: dict[str, dict[tuple[str, int], float]] = {}
    for (arm, world, seed), of_run in ends.items():
        fresh = ends["chain-fresh", world, seed]
        assert isinstance(of_run, tuple) and isinstance(fresh, tuple)
        shares.setdefault(arm, {})[world, seed] = share(of_run, fresh)
    return shares


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule above."""
    shares = shares_of(runs)
    ahead = [difference(shares, arm, "chain-plain") for arm in ("chain-switch", "chain-cusum")]
    return Verdict(
        all_above(ahead),
        f"share of the fresh agent's return, minus that of plain training: switch {ahead[0]}, CUSUM {ahead[1]}",
        ("arm", "n", "share"),
        mean_rows(shares),
    )
