"""A search for a setting on MinAtar in which many updates per step make DQN stop improving."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runs.experiments.shared.rules import column, decide, defined, difference, mean_rows
from runs.sweeps.experiment import Arm, Experiment, Measured, Result, Scale, Verdict

MIDDLE, LATE = "return, 30 % to 60 % of the steps", "return, last 30 % of the steps"
NETWORKS, MANY = ("plain", "normalised"), (4, 8)
WORLDS = {name: {"env_id": f"MinAtar/{name}-v1"} for name in ("Freeway", "Seaquest", "Breakout")}


def between(result: Result, begin: float, end: float) -> float:
    """Mean training return of the episodes that ended between two shares of the run's steps."""
    total = result.config["total_timesteps"]
    curve = result.scalars.get("charts/episodic_return", ())
    values = [value for step, value in curve if begin * total < step <= end * total]
    return defined(float(np.mean(values)) if values else np.nan, f"the return from {begin:.0%} to {end:.0%}", result)


def judge(runs: Sequence[Measured]) -> Verdict:
    """Decide by the rule of EXPERIMENT."""
    middle, late = column(runs, MIDDLE), column(runs, LATE)
    of_games: dict[str, list[float]] = {}
    for arm in (f"{network}-{ratio}" for network in NETWORKS for ratio in (1, *MANY)):
        for (game, _), value in late[arm].items():
            of_games.setdefault(game, []).append(value)
    means = {game: float(np.mean(values)) for game, values in of_games.items()}
    if min(means.values()) <= 0:
        raise ValueError(f"the mean return of the last 30 % must be above 0 in every game to divide by it: {means}")
    ends = {arm: {key: value / means[key[0]] for key, value in of_arm.items()} for arm, of_arm in late.items()}
    gains = {arm: {key: end - middle[arm][key] / means[key[0]] for key, end in ends[arm].items()} for arm in ends}
    less, more, said = [], [], []
    for network in NETWORKS:
        gain, end = (
            [difference(values, f"{network}-{ratio}", f"{network}-1") for ratio in MANY] for values in (gains, ends)
        )
        less.append(all(one.sign < 0 for one in gain) and all(one.sign <= 0 for one in end))
        more.append(all(one.sign > 0 for one in (*gain, *end)))
        said.append(f"{network}: gain {' and '.join(map(str, gain))}, end {' and '.join(map(str, end))}")
    flattest = min(gains, key=lambda arm: float(np.mean(list(gains[arm].values()))))
    return Verdict(
        decide(any(less), all(more)),
        f"at 4 and at 8 updates per step minus at 1, {'; '.join(said)}; the smallest gain has {flattest}",
        ("arm", "n", "gain, in units of a game's mean", LATE),
        mean_rows(gains, late),
    )


EXPERIMENT = Experiment(
    name="high-utd-pilot",
    source="ours; a pilot for the claims of Figs. 6 and 7 of Lyle et al. 2025 at MinAtar's scale",
    claim="In three games of MinAtar, DQN at a constant rate improves less from the middle to the end of training when "
    "it makes four or eight updates per step than when it makes one, and ends no higher.",
    rule="End: mean training return of the last 30 % of the steps. Gain: the end minus the mean return of 30 % to "
    "60 %. Both are divided by the mean end over all arms without a suffix and all seeds in the same game. At 4 and 8 "
    "updates per step minus at 1, paired by game and seed, for the plain and the normalised network. Reproduced if for "
    "one of the networks the 95 % intervals of both gains are below 0, and neither end's is above 0; not reproduced if "
    "for both networks the intervals of both gains and of both ends are above 0; undecided otherwise.",
    arms=[
        *(
            Arm(f"{network}-{ratio}", "dqn_minatar", "baseline", {"network": network, "replay_ratio": float(ratio)})
            for network in NETWORKS
            for ratio in (1, *MANY)
        ),
        Arm(
            "plain-4-epsilon", "dqn_minatar", "baseline", {"network": "plain", "replay_ratio": 4.0, "adam_eps": 1.5e-4}
        ),
        *(
            Arm(f"{network}-primed", "dqn_minatar", "baseline", {"network": network, "priming_updates": 100_000})
            for network in NETWORKS
        ),
    ],
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="1 min on two cores",
            flags={"total_timesteps": 9_000, "learning_starts": 8_000, "eval_every": 0},
            by_arm={f"{network}-primed": {"priming_updates": 500} for network in NETWORKS},
            worlds={"Breakout": WORLDS["Breakout"]},
        ),
        "laptop": Scale(
            seeds=(101, 102),
            estimate="3 hours on two cores",
            flags={"total_timesteps": 60_000, "exploration_steps": 15_000, "eval_every": 0},
            worlds=WORLDS,
        ),
        "paper": Scale(
            seeds=(101, 102, 103),
            estimate="some 120 core-hours; no GPU is needed",
            flags={"total_timesteps": 1_000_000, "eval_every": 0},
            worlds=WORLDS,
        ),
    },
    measures={MIDDLE: lambda result: between(result, 0.3, 0.6), LATE: lambda result: between(result, 0.7, 1.0)},
    judge=judge,
    note="A pilot: it looks for the regime of a later experiment, whose seeds are others. Adam's epsilon of 1.5e-4 and "
    "100,000 updates on the first 5,000 steps (heavy priming) are not part of the rule. Pairs of three games and two "
    "seeds say nothing about other games.",
    curve="charts/episodic_return",
)
