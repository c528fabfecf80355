"""Three MinAtar games in turn, twice: other methods against loss of plasticity."""

from __future__ import annotations

from collections.abc import Sequence

from runs.experiments.shared.chains import ENDS, budget, decays, end_returns, shares_of, smoke
from runs.experiments.shared.panels import UNTUNED, listed
from runs.experiments.shared.rules import decide, difference, mean_rows
from runs.sweeps.experiment import Arm, Experiment, Measured, Scale, Verdict

OURS, AROUND = "chain-switch", ("chain-plain", "chain-fresh", "chain-reset", "chain-nap", "chain-switch")
METHODS = (
    "reset-head", "shrink-and-perturb", "soft-shrink-and-perturb", "fire", "local-time", "redo", "continual-backprop",
    "weight-clipping", "weight-decay", "l2-init", "churn", "trac", "crelu",
)  # fmt: skip


def judge(runs: Sequence[Measured]) -> Verdict:
    """The rule below."""
    shares = shares_of(runs)
    others = ("chain-plain", "chain-reset", *(f"chain-{name}" for name in METHODS))
    leads = {arm: difference(shares, OURS, arm) for arm in others}
    behind = [arm for arm, lead in leads.items() if lead.sign > 0]
    ahead = [arm for arm, lead in leads.items() if lead.sign < 0]
    return Verdict(
        decide(len(behind) == len(leads), bool(ahead)),
        f"{OURS} is ahead of {len(behind)} of {len(leads)} others; behind {', '.join(ahead) or 'none'}; minus plain "
        f"training it is {leads['chain-plain']}",
        ("arm", "n", "share of the fresh agent's return"),
        mean_rows(shares),
    )


EXPERIMENT = Experiment(
    name="panel-minatar",
    source="ours; the chain of chain-of-games",
    claim="When three games come in turn, twice, a DQN that is projected and re-warmed at the changes keeps up with a "
    "fresh agent better than a plain one, one that is reset, and one with any of the other methods that the rule "
    "lists, at constants that were not tuned here.",
    rule="Per seed, the mean over the visits but the first of the end return (last tenth of the visit) as a share "
    "of the fresh agent's of the same visit and seed. Re-warmed at the changes minus the plain agent, minus one "
    "that is reset (weights and moments), and minus one with each method, paired by seed. Reproduced if every 95 % "
    "interval is above 0, not reproduced if one is below 0, undecided otherwise. " + listed(METHODS),
    arms=[Arm(name, "dqn_minatar", name) for name in (*AROUND, *(f"chain-{name}" for name in METHODS))],
    scales={
        "smoke": Scale(
            **{**vars(smoke()), "arms": ("chain-plain", "chain-fresh", "chain-redo", "chain-churn"), "by_arm": {}}
        ),
        "laptop": Scale(
            seeds=(4, 5, 6),
            estimate="2 h on two cores after chain-of-games, whose runs it shares",
            flags=budget(100_000, exploration_steps=25_000, buffer_size=50_000),
            by_arm={"chain-switch": decays(100_000, block=50)["chain-switch"]},
            folder="chain-of-games/laptop",
        ),
        "paper": Scale(
            seeds=(1, 2, 3, 4, 5),
            estimate="some 75 core-hours: visits of 200,000 steps at one update per step; no GPU is needed",
            folder="chain-of-games/paper",
        ),
    },
    measures={ENDS: end_returns},
    judge=judge,
    note=f"{UNTUNED} At scale laptop the runs shared with chain-of-games have these seeds and were known before any "
    "run of a method.",
    curve="charts/episodic_return",
)
