"""Fig. 5, right: projection and re-warming each help."""

from __future__ import annotations

from collections.abc import Sequence

from runs.experiments.shared.rules import all_above, difference, mean_rows, measured
from runs.experiments.shared.warm_start import REGIME, SMOKE, gap, paper
from runs.sweeps.experiment import Arm, Experiment, Result, Scale, Verdict

PLAIN = "fig5-right-unconstrained-single"
BETTER = ("fig5-right-projected-cusum", "fig5-right-projected-single", "fig5-right-unconstrained-cusum")


def judge(results: Sequence[Result]) -> Verdict:
    """The rule below."""
    accuracy = measured(results, lambda run: 100 * run.scalars["test/accuracy"][-1][1])
    ahead = [difference(accuracy, arm, PLAIN) for arm in BETTER]
    said = ", ".join(f"{arm.removeprefix('fig5-right-')} by {one}" for arm, one in zip(BETTER, ahead, strict=True))
    return Verdict(
        all_above(ahead),
        f"ahead of the unconstrained network with one decay, in points of accuracy: {said}",
        ("arm", "n", "accuracy of the warm network, %", "gap, points"),
        mean_rows(accuracy, measured(results, gap)),
    )


EXPERIMENT = Experiment(
    name="fig5-right",
    source="Fig. 5 (right) of Lyle et al. 2025",
    claim="Projection and re-warming by CUSUM each help a warm-started network; with neither it ends worst.",
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
        "laptop": Scale(seeds=(6, 7, 8), estimate="35 to 65 min on two cores", flags=REGIME),
        "paper": paper(4),
    },
    judge=judge,
    curve="test/accuracy",
)
