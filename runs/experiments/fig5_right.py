"""Fig. 5, right: projection and re-warming each help."""

from __future__ import annotations

from collections.abc import Sequence

from runs.experiments.shared.rules import all_above, column, difference
from runs.experiments.shared.warm_start import ACCURACY, GAP, REGIME, SEEDS, SMOKE, accuracy, gap, paper, rows
from runs.sweeps.experiment import Arm, Experiment, Measured, Scale, Verdict

PLAIN = "fig5-right-unconstrained-single"
BETTER = ("fig5-right-projected-cusum", "fig5-right-projected-single", "fig5-right-unconstrained-cusum")


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    accuracies = column(runs, ACCURACY)
    ahead = [difference(accuracies, arm, PLAIN) for arm in BETTER]
    said = ", ".join(f"{arm.removeprefix('fig5-right-')} by {one}" for arm, one in zip(BETTER, ahead, strict=True))
    return Verdict(
        all_above(ahead),
        f"ahead of the unconstrained network with one decay, in points of accuracy: {said}",
        ("arm", "n", "accuracy of the warm network, %", "behind a fresh network, points"),
        rows(accuracies, column(runs, GAP)),
    )


EXPERIMENT = Experiment(
    name="fig5-right",
    source="Fig. 5 (right) of Lyle et al. 2025",
    claim="A warm-started network ends better with projection, with re-warming by CUSUM, and with both, than with "
    "neither.",
    rule="Test accuracy at the end, by seed, of each of the other arms minus that of the unconstrained one with a "
    "single decay. Reproduced if all three 95 % intervals are above 0, not reproduced if one is below, undecided "
    "otherwise.",
    arms=[Arm(name, "warm_start", name) for name in (*BETTER, PLAIN)],
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="1 min on two cores",
            flags=SMOKE,
            arms=("fig5-right-projected-single", PLAIN),
        ),
        "laptop": Scale(seeds=SEEDS, estimate="50 min on two cores", flags=REGIME),
        "paper": paper(4, control=True),
    },
    measures={ACCURACY: accuracy, GAP: gap},
    judge=judge,
    note="The fresh network of an arm shares its projection, and has one decay in all arms. Its accuracy is that of "
    "the warm network plus the last column: projection helps fresh networks as well.",
    curve="test/accuracy",
)
