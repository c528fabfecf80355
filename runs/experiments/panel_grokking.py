"""Grokking on demand: five methods at the update at which a network is re-warmed, and three that act throughout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from runs.experiments.shared.rules import Column, column, decide, difference, first_reaching, last
from runs.sweeps.experiment import Arm, Experiment, Flags, Measured, Result, Scale, Verdict, guessed_gpu_hours

OURS, LOW = "rewarmed", "low"
AT_TRIGGER = ("shrink-and-perturb", "reset-head", "fire", "local-time", "redo")
THROUGHOUT = ("l2-init", "weight-decay", "weight-clipping")
EVENT, TRAINED = "first update at which the trigger fires", "training accuracy then, or at the end"
ARRIVAL, END = "first update at 90 % test accuracy", "test accuracy at the end"
APART = 500
"""updates. Until the trigger, the runs of a seed are the same; sums that round differently may move it a little"""

LOW_RATE: Flags = {"learning_rate": 1e-4}
"""a peak as low as the rate before: where a trigger fires, the schedule restarts and the rate stays"""
WITHOUT_TRIGGER: Flags = {
    **LOW_RATE, "rewarm.trigger": "never", "schedule.kind": "constant", "schedule.warmup_updates": 1_000,
    "schedule.decay_updates": 4_000,
}  # fmt: skip
"""the same rate by a constant schedule, whose other flags are back at their defaults"""
OF_METHOD: dict[str, Flags] = {  # not projected; clipping comes on top of the weight decay that all arms have
    "weight-decay": {"nap.enabled": False, "weight_decay": 0.0, "intervene.decay": 1.0},
    "weight-clipping": {"nap.enabled": False},
}


def event(result: Result) -> float:
    """The first update at which the trigger fired, inf without one."""
    return first_reaching(result, "rewarm/event", 1.0)


def trained(result: Result) -> float:
    """Training accuracy at the last evaluation before the trigger fired; at the end where it did not."""
    return [value for step, value in result.scalars["train/accuracy"] if step <= event(result)][-1]


def together(events: Column, arm: str, pair: tuple[str, int]) -> bool:
    """Whether the trigger fired within reach of the one that re-warmed this seed, where the method waits for it.

    False where one of the two, or both, never fired (the distance is inf or nan).
    """
    return arm not in AT_TRIGGER or abs(events[arm][pair] - events[OURS][pair]) <= APART


def rows(events: Column, first: Column, ends: Column) -> list[list[str]]:
    """A row per arm: name, n, and the numbers of each seed."""

    def updates(values: Mapping[tuple[str, int], float]) -> str:
        return ", ".join("never" if value == math.inf else f"{value:,.0f}" for value in values.values())

    accuracies = {arm: ", ".join(f"{end:.3f}" for end in values.values()) for arm, values in ends.items()}
    return [[arm, str(len(first[arm])), updates(events[arm]), updates(first[arm]), accuracies[arm]] for arm in first]


def judge(runs: Sequence[Measured]) -> Verdict:
    """Decide by the rule of EXPERIMENT."""
    events, accuracies, first, ends = (column(runs, name) for name in (EVENT, TRAINED, ARRIVAL, END))
    others, total = [arm for arm in first if arm != OURS], {arm: len(values) for arm, values in first.items()}
    counts = {arm: [pair for pair in first[arm] if together(events, arm, pair)] for arm in first}
    grok = {arm: sum(first[arm][pair] < math.inf for pair in pairs) for arm, pairs in counts.items()}
    on_demand = sum(
        accuracies[OURS][pair] >= 0.99 and events[OURS][pair] < update < math.inf
        for pair, update in first[OURS].items()
    )
    leads = {arm: difference(ends, OURS, arm) for arm in others}
    closest = min(leads, key=lambda arm: leads[arm].mean)
    left_out = sum(total[arm] - len(counts[arm]) for arm in others)
    alone = not left_out and not any(grok[arm] for arm in others) and all(lead.sign > 0 for lead in leads.values())
    apart = f"; {left_out} runs of methods that acted at another time, or never, do not count" if left_out else ""
    return Verdict(
        decide(
            alone and on_demand == total[OURS],
            grok[OURS] <= total[OURS] / 2 or any(grok[arm] > total[arm] / 2 for arm in others),
        ),
        f"{on_demand} of {total[OURS]} networks memorise, are re-warmed and then grok; of the others "
        f"{', '.join(f'{grok[arm]} of {total[arm]} with {arm}' for arm in others if grok[arm]) or 'none'}; test "
        f"accuracy at the end, minus that of the closest others ({closest}), is {leads[closest]}{apart}",
        ("arm", "n", "trigger, by seed", "first update at 90 %, by seed", "test accuracy at the end, by seed"),
        rows(events, first, ends),
    )


TRIGGERED = (OURS, *AT_TRIGGER)
EXPERIMENT = Experiment(
    name="panel-grokking",
    source="ours; the network of Fig. 3 of Lyle et al. 2025, re-warmed when its features have stopped moving",
    claim="A projected network that has memorised at a low rate groks when it is re-warmed. At the low rate it does "
    "not, within the same number of updates: neither by itself nor with any of eight other methods against loss of "
    "plasticity, which act at the same update or throughout.",
    rule="A network groks if it has an evaluation at a test accuracy of 90 %. Reproduced if all of this holds: every "
    "re-warmed network has a training accuracy of 99 % at the last evaluation before it is re-warmed, and groks after "
    "it; no network of another arm groks; and re-warmed minus every other arm, in test accuracy at the end by seed, "
    "has a 95 % interval above 0 (an interval without width decides nothing). Not reproduced if at most half of the "
    "re-warmed networks grok, or more than half of those of another arm. Undecided otherwise. A method at the trigger "
    f"counts for a seed only if the trigger fires within {APART} updates of the one that re-warms that seed; if "
    "a run does not count, the outcome is not reproduced or undecided.",
    arms=[
        Arm(OURS, "grokking", "adaptive"),
        Arm(LOW, "grokking", "adaptive", WITHOUT_TRIGGER),
        *(
            Arm(name, "grokking", "adaptive", {**LOW_RATE, "intervene.methods": (name,), "intervene.when": "trigger"})
            for name in AT_TRIGGER
        ),
        *(
            Arm(
                name,
                "grokking",
                "adaptive",
                {**WITHOUT_TRIGGER, "intervene.methods": (name,), **OF_METHOD.get(name, {})},
            )
            for name in THROUGHOUT
        ),
    ],
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="1 min on two cores",
            flags={"total_updates": 150, "probe.every": 10, "checkpoint_every": 150},
            by_arm={
                arm: {
                    "rewarm.ratio": 0.9,
                    "rewarm.window": 2,
                    "rewarm.burn_in": 3,
                    "schedule.warmup_updates": 10,
                    "schedule.decay_updates": 50,
                }
                for arm in TRIGGERED
            },
            arms=(OURS, LOW, "fire", "redo", "weight-decay"),
        ),
        "laptop": Scale(seeds=(12, 13, 14, 15, 16), estimate="60 min on two cores"),
        "paper": Scale(
            seeds=tuple(range(17, 27)),
            estimate=guessed_gpu_hours(100, 40_000, 250),
            flags={"total_updates": 40_000},
            by_arm={arm: {"schedule.warmup_updates": 1_000, "schedule.decay_updates": 36_000} for arm in TRIGGERED},
            gpus=0.25,
        ),
    },
    measures={
        EVENT: event,
        TRAINED: trained,
        ARRIVAL: lambda run: first_reaching(run, "test/accuracy", 0.9),
        END: lambda run: last(run, "test/accuracy"),
    },
    judge=judge,
    note="All arms have the network, the data, the rate of 1e-4 and the weight decay of 1 of the preset adaptive. "
    "Until the trigger fires, a network with a method that waits for it trains exactly as the re-warmed one of "
    "its seed. The arms with weight decay and weight clipping are not projected, because projection sets the "
    "norms; the arm with weight clipping keeps the weight decay of 1. Constants are those of the presets of "
    "--intervene and were not tuned, except that the method weight-decay has 1, the larger decay of the paper's "
    "Fig. 2. Left out are a full reset, soft shrink-and-perturb, churn reduction, TRAC, CReLU, and continual backprop, "
    "whose units mature in 10,000 updates. The scale paper has 40,000 updates, because in the "
    "paper's Fig. 2 projected networks at this low rate grok by themselves after some 65,000.",
    curve="test/accuracy",
    log_steps=True,
)
