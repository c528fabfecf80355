"""Fig. 4 with the paper's other network, a ResNet-18."""

from __future__ import annotations

import dataclasses

from runs.experiments.fig4 import EXPERIMENT as FIG4
from runs.experiments.shared.warm_start import PAPER, SEEDS, SMOKE
from runs.sweeps.experiment import Scale, guessed_gpu_hours

EXPERIMENT = dataclasses.replace(
    FIG4,
    name="fig4-resnet",
    source="Sec. 5 and App. A.2 of Lyle et al. 2025, which name a ResNet-18 next to the CNN of Fig. 4",
    claim=FIG4.claim.replace("a projected network", "a projected ResNet-18"),
    arms=[dataclasses.replace(arm, flags={"model": "resnet18"}) for arm in FIG4.arms],
    scales={
        "smoke": Scale(
            seeds=(1,),
            estimate="1 min on two cores",
            flags={**SMOKE, "phase_updates": 20, "eval_every": 10, "checkpoint_every": 20, "probe.size": 32},
            arms=("fig4-projected-0.1", "fig4-unconstrained-0.1"),
        ),
        "paper": Scale(
            seeds=SEEDS,  # new ones: none of them has been seen with this network, nor before the rule
            estimate=guessed_gpu_hours(30, 420_000, 150, gpus=0.5),
            flags=PAPER,
            gpus=0.5,
        ),
    },
    note="No laptop scale: a gradient of 32 images takes 0.99 s [0.94, 1.27] on one AMD EPYC core without AVX-512 "
    "(n = 7), and a run has 12,000.",
)
