"""Fig. 4: with projection and re-warming, it does not matter how much data the network saw first."""

from __future__ import annotations

from collections.abc import Sequence

from runs.analysis.statistics import student_interval
from runs.experiments.shared.rules import column, decide, difference
from runs.experiments.shared.warm_start import ACCURACY, GAP, REGIME, SEEDS, SMOKE, accuracy, behind, gap, paper, rows
from runs.sweeps.experiment import Arm, Experiment, Measured, Scale, Verdict

SHARES = ("0.1", "0.5", "1")


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    accuracies = column(runs, ACCURACY)
    gaps = {
        f"fig4-{held}-{share}": behind(accuracies, f"fig4-{held}-{share}", f"fig4-{held}-1")
        for held in ("projected", "unconstrained")
        for share in SHARES[:2]
    }
    means = {arm: student_interval(list(values.values())) for arm, values in gaps.items()}
    ours = [means[f"fig4-projected-{share}"] for share in SHARES[:2]]
    free = means["fig4-unconstrained-0.1"]
    more = difference(gaps, "fig4-unconstrained-0.1", "fig4-projected-0.1")
    n = len(gaps["fig4-projected-0.1"])
    return Verdict(
        decide(
            max(mean for mean, _ in ours) <= 1 and free[0] > free[1] > 0 and more.sign > 0,
            max(mean for mean, _ in ours) > 2 or -free[0] > free[1] > 0 or more.sign < 0,
        ),
        f"behind its own arm at 100 %, in points, n = {n}: projected {ours[0][0]:.2f} ± {ours[0][1]:.2f} from 10 % and "
        f"{ours[1][0]:.2f} ± {ours[1][1]:.2f} from 50 %, unconstrained {free[0]:.2f} ± {free[1]:.2f} from 10 %; "
        f"unconstrained minus projected {more}",
        ("arm", "n", "accuracy, %", "behind 100 %, points", "behind a fresh network, points"),
        rows(accuracies, gaps, column(runs, GAP)),
    )


EXPERIMENT = Experiment(
    name="fig4",
    source="Fig. 4 of Lyle et al. 2025",
    claim="Re-warmed when the data grow, a projected network ends as well from 10 % or 50 % as from 100 %; an "
    "unconstrained one from 10 % does not.",
    rule="Gap: test accuracy at the end of the same arm that has 100 % in both phases, minus that of the arm, by seed. "
    "Reproduced if the projected network's mean gaps from 10 % and from 50 % are at most 1 point, the unconstrained "
    "one's from 10 % is above 0 (95 % interval), and larger than the projected one's by seed (95 % interval above 0). "
    "Not reproduced if a mean gap of the projected network exceeds 2 points, or one of these intervals is below 0. "
    "Undecided otherwise.",
    arms=[
        Arm(name, "warm_start", name)
        for share in SHARES
        for held in ("projected", "unconstrained")
        for name in (f"fig4-{held}-{share}",)
    ],
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="1 min on two cores",
            flags=SMOKE,
            arms=("fig4-projected-0.1", "fig4-unconstrained-0.1"),
        ),
        "laptop": Scale(seeds=SEEDS, estimate="60 min on two cores", flags=REGIME),
        "paper": paper(6, control=True),
    },
    measures={ACCURACY: accuracy, GAP: gap},
    judge=judge,
    note="A first page compared the projected network from 10 % with a fresh one that learns in the last phase only.",
    curve="test/accuracy",
)
