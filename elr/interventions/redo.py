"""ReDo: units that hardly do anything are recycled (Sokar et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from elr.interventions.recycle import check_fresh, recycle_, tensors_by_name
from elr.interventions.units import check_held, hidden_units
from elr.undisturbed import undisturbed


class ReDo:
    """Recycle dormant units.

    In each layer, with h the output of the nonlinearity and the mean over batch and space,

        s_i = E|h_i| / (mean_k E|h_k| + 1e-9),    a unit with s_i <= tau is recycled   (arXiv:2302.12902)

    by `recycle_`: weights that make it redrawn, weights that read it 0, moments of both forgotten.

    Args:
        network: changed in place by `step_`.
        layers: names of the nonlinearities; see `hidden_units` for what they must be like.
        inputs: a few inputs to find the units by, at least 2.
        optimizer: holds the network's parameters; None keeps its moments.
        tau: threshold; 0.1 in the paper for DQN, 0.025 in others' later work.

    Raises:
        ValueError: tau is negative, the units cannot be told apart, or the optimiser does not hold their weights.

    Source: Sokar et al. 2023; dopamine's labs/redo, Apache-2.0. On the same activations scores and masks equal its own
        (docs/baselines.md).
    Deviation: new weights are those of a freshly initialised network of the same class. Dopamine's code draws them by
        Xavier's rule, whatever the layer was initialised with, and sets biases to 0. Where a recycled unit reads a
        recycled unit of the layer before, the weight is redrawn here and 0 there. After a flattened convolution,
        dopamine's code takes the columns for those of channels first, although they are channels last.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Iterable[str],
        inputs: Tensor,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        tau: float = 0.1,
    ) -> None:
        if not tau >= 0:
            raise ValueError(f"tau must be at least 0, got {tau}")
        self.tau = tau
        self._network, self._optimizer = network, optimizer
        self.hidden = hidden_units(network, layers, inputs)
        check_held(optimizer, self.hidden)

    @torch.no_grad()
    def scores(self, inputs: Tensor) -> dict[str, Tensor]:
        """s_i of every unit, [units], by layer; one forward pass in eval mode that leaves no trace."""
        activity: dict[str, Tensor] = {}
        handles = [
            hidden.module.register_forward_hook(
                lambda module, args, output, hidden=hidden: activity.update({hidden.name: hidden.mean_activity(output)})
            )
            for hidden in self.hidden
        ]
        try:
            with undisturbed(self._network, inputs):
                self._network(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return {name: mean / (mean.mean() + 1e-9) for name, mean in activity.items()}

    @torch.no_grad()
    def step_(self, inputs: Tensor, fresh: nn.Module) -> dict[str, int]:
        """Recycle the units that are dormant on these inputs; how many of each layer.

        All scores are taken before anything is changed.

        Args:
            inputs: 256 in the paper's code.
            fresh: a newly initialised network of the same shape.
        """
        new = tensors_by_name(fresh)
        check_fresh(self.hidden, new)
        chosen = {name: scores <= self.tau for name, scores in self.scores(inputs).items()}
        for hidden in self.hidden:
            recycle_(hidden, chosen[hidden.name], new, self._optimizer)
        return {name: int(mask.sum()) for name, mask in chosen.items()}
