"""Warm-starting: other methods against loss of plasticity, on the same growth of the data."""

from __future__ import annotations

from collections.abc import Sequence

from runs.experiments.shared.panels import UNTUNED, listed
from runs.experiments.shared.rules import column, decide, difference
from runs.experiments.shared.warm_start import ACCURACY, ALONE, REGIME, SEEDS, SMOKE, accuracy, paper, rows
from runs.sweeps.experiment import Arm, Experiment, Measured, Scale, Verdict

OURS = "projected"
METHODS = (
    "reset", "reset-head", "shrink-and-perturb", "soft-shrink-and-perturb", "fire", "local-time", "redo",
    "continual-backprop", "weight-clipping", "weight-decay", "l2-init", "trac",
)  # fmt: skip
AROUND = {"projected": "fig4-projected-0.1", "plain": "fig4-unconstrained-0.1"}


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    accuracies = column(runs, ACCURACY)
    leads = {method: difference(accuracies, OURS, method) for method in (*METHODS, "plain")}
    behind = [method for method, lead in leads.items() if lead.sign > 0]
    ahead = [method for method, lead in leads.items() if lead.sign < 0]
    closest = min(leads.values(), key=lambda lead: lead.mean)
    return Verdict(
        decide(len(behind) == len(leads), bool(ahead)),
        f"the projected network is ahead of {len(behind)} of {len(leads)} others, of the closest by {closest} points; "
        f"behind {', '.join(ahead) or 'none'}",
        ("arm", "n", "accuracy, %"),
        rows(accuracies),
    )


EXPERIMENT = Experiment(
    name="panel-warm-start",
    source="ours; the data and the re-warming of Fig. 4 of Lyle et al. 2025",
    claim="Re-warmed when the data grow from 10 %, a projected network ends with a higher test accuracy than an "
    "unconstrained one, plain or with any of the other methods that the rule lists, at constants that were not tuned "
    "here.",
    rule="Test accuracy at the end of the projected network minus that of the plain one, and of one with each method, "
    "by seed. Reproduced if every 95 % interval is above 0, not reproduced if one is below 0, undecided otherwise. "
    + listed(METHODS),
    arms=[
        *(Arm(name, "warm_start", preset) for name, preset in AROUND.items()),
        *(Arm(name, "warm_start", name) for name in METHODS),
    ],
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="1 min on two cores",
            flags={**SMOKE, **ALONE},
            by_arm={"redo": {"intervene.every": 50}},
            arms=("projected", "redo", "fire"),
        ),
        "laptop": Scale(seeds=SEEDS, estimate="65 min on two cores", flags={**REGIME, **ALONE}),
        "paper": paper(14),
    },
    measures={ACCURACY: accuracy},
    judge=judge,
    note="All networks are re-warmed at the switch. Churn reduction is left out: its constants are for RL agents. "
    + UNTUNED,
    curve="test/accuracy",
)
