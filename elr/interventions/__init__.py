"""Baselines that act on weights or their gradients, for networks that lose plasticity.

Each is a function or a small class over a network and its optimiser, with explicit state. They work in place on the
tensors that the optimiser already holds, so nothing is left out of it. `fresh` is a newly initialised network of the
same architecture. The caller draws it from a generator; here it is only read. When a function raises an error, nothing
has been changed.

    at a change, or now and then       reset_, shrink_and_perturb_, fire_, restart_local_time_, ReDo
    after every optimiser step         ContinualBackprop, WeightClipping, shrink_and_perturb_ with a shrink near 1
    around every optimiser step        Trac
    to the gradient, before it         L2Init, ChurnReduction
    in the network                     CReLU

Under a Projection only the direction of a projected weight changes, because the next projection returns it to the
recorded norm. Of shrink-and-perturb only the ratio perturb : shrink matters there.
"""

from elr.interventions.churn import ChurnReduction, policy_divergence, value_divergence
from elr.interventions.continual_backprop import ContinualBackprop
from elr.interventions.crelu import CReLU
from elr.interventions.fire import fire_
from elr.interventions.l2_init import L2Init
from elr.interventions.local_time import restart_local_time_
from elr.interventions.redo import ReDo
from elr.interventions.reset import reset_
from elr.interventions.shrink_and_perturb import shrink_and_perturb_
from elr.interventions.trac import Trac
from elr.interventions.weight_clipping import WeightClipping

__all__ = [
    "CReLU",
    "ChurnReduction",
    "ContinualBackprop",
    "L2Init",
    "ReDo",
    "Trac",
    "WeightClipping",
    "fire_",
    "policy_divergence",
    "reset_",
    "restart_local_time_",
    "shrink_and_perturb_",
    "value_divergence",
]
