"""Continual backprop: at every update a few of the least useful units are recycled (Dohare et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from elr.interventions.recycle import check_fresh, recycle_, tensors_by_name
from elr.interventions.units import Hidden, check_held, hidden_units
from elr.states import check_keys


class ContinualBackprop:
    """Generate and test: a running utility of every unit, and a slow replacement of the least useful ones.

    After each update, for the units i of a layer, with h the output of the nonlinearity in the update's forward passes,
    f_i its mean over batch and space, w the weights that read it, and a_i the unit's age in updates:

        u_i <- eta u_i + (1 - eta) E|h_i| mean|w_out,i|          f^_i <- eta f^_i + (1 - eta) f_i      both from 0
        n <- n + rho (number of units with a_i > maturity)       floor(n) of these with the lowest u_i / (1 - eta^a_i)
                                                                 are replaced, and n keeps the rest

    A unit that is replaced is recycled by `recycle_`. What it contributed on average is put into the readers' biases,

        b <- b + w_out,i f^_i / (1 - eta^a_i),

    and u_i, f^_i and a_i begin at 0.

    Use: build it before training; call `step_` after each optimiser step. Features are taken by hooks from all forward
    passes with gradients since the last one, so passes under no_grad do not count. Remove the hooks by `close`.

    Args:
        network: changed in place.
        layers: names of the nonlinearities; see `hidden_units`.
        inputs: a few inputs to find the units by, at least 2.
        optimizer: holds the network's parameters; None keeps its moments.
        rate: rho, the share of mature units replaced per update; 1e-4 in the authors' PPO.
        maturity: updates in which a new unit is safe; 100 in their supervised runs, 10,000 in PPO.
        decay: eta; 0.99 in their runs.

    Raises:
        ValueError: an argument out of range, the units cannot be told apart, or the optimiser does not hold their
            weights.

    Source: Dohare et al. 2024, github.com/shibhansh/loss-of-plasticity (MIT): `GnT` with utility "contribution", whose
        utilities these equal.
    Deviations: the authors' code clears f^ before it reads it, so that its biases never change; here they do, as in
        the paper. It counts steps of Adam per entry and restarts them; torch's Adam counts them per tensor, and here
        they go on. Readers without a bias (in front of a norm layer) get no correction. New weights are those of a
        freshly initialised network, theirs are drawn by Kaiming's rule.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Iterable[str],
        inputs: Tensor,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        rate: float = 1e-4,
        maturity: int = 1_000,
        decay: float = 0.99,
    ) -> None:
        if not 0 < rate <= 1 or maturity < 0 or not 0 <= decay < 1:
            raise ValueError(
                f"rate must lie in (0, 1], maturity be at least 0 and decay lie in [0, 1), got {rate}, {maturity} and "
                f"{decay}"
            )
        self.rate, self.maturity, self.decay = rate, maturity, decay
        self._optimizer = optimizer
        self.hidden = hidden_units(network, layers, inputs)
        check_held(optimizer, self.hidden)
        self._seen: dict[str, tuple[int, Tensor, Tensor]] = {}  # numbers per unit, mean activity, mean
        self._watching = True
        self._state = {hidden.name: self._new_state(hidden) for hidden in self.hidden}
        self._handles = [hidden.module.register_forward_hook(self._watch(hidden)) for hidden in self.hidden]

    @staticmethod
    def _new_state(hidden: Hidden) -> dict[str, Tensor]:
        weight = next(iter(hidden.makers.values()))
        return {
            "utility": weight.new_zeros(hidden.units),
            "mean": weight.new_zeros(hidden.units),
            "age": weight.new_zeros(hidden.units, dtype=torch.int64),
            "due": torch.zeros((), dtype=torch.float64),
        }

    def _watch(self, hidden: Hidden) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if self._watching and torch.is_grad_enabled():
                features = output.detach().to(self._state[hidden.name]["mean"].dtype)
                size, active, mean = (
                    features.numel() // hidden.units,
                    hidden.mean_activity(features),
                    features.mean(hidden.other_dims),
                )
                if earlier := self._seen.get(hidden.name):  # another pass of the same update: the mean over both
                    both = size + earlier[0]
                    active, mean = active.lerp(earlier[1], earlier[0] / both), mean.lerp(earlier[2], earlier[0] / both)
                    size = both
                self._seen[hidden.name] = size, active, mean

        return hook

    def hold_(self) -> None:
        """The last forward pass is that of the update: those until the next `step_` do not count."""
        self._watching = False

    def forget_(self) -> None:
        """All units are new: utilities, means and ages begin at 0."""
        for state in self._state.values():
            for tensor in state.values():
                tensor.zero_()
        self._seen.clear()

    @torch.no_grad()
    def step_(self, fresh: Callable[[], nn.Module]) -> int:
        """After an update: renew utilities, and replace the units that are due; how many.

        Args:
            fresh: makes a newly initialised network of the same shape; called only if a unit is replaced.

        Raises:
            ValueError: no forward pass with gradients has been made since the last call.
        """
        if missing := [hidden.name for hidden in self.hidden if hidden.name not in self._seen]:
            raise ValueError(f"no forward pass with gradients reached {missing} since the last step_")
        self._watching = True
        replaced, new = 0, None
        for hidden in self.hidden:
            state = self._state[hidden.name]
            _, active, mean = self._seen.pop(hidden.name)
            state["age"] += 1
            state["utility"].lerp_(active * self._read(hidden), 1 - self.decay)
            state["mean"].lerp_(mean, 1 - self.decay)
            mature = state["age"] > self.maturity
            state["due"] += self.rate * int(mature.sum())
            number = int(state["due"])
            if number == 0:
                continue
            state["due"] -= number
            corrected = state["utility"] / (1 - self.decay ** state["age"].to(state["utility"]))
            order = torch.where(mature, corrected, torch.inf).argsort(stable=True)
            chosen = torch.zeros_like(mature)
            chosen[order[:number]] = True
            if new is None:
                new = tensors_by_name(fresh())
                check_fresh(self.hidden, new)
            self._move_to_biases(hidden, chosen)
            recycle_(hidden, chosen, new, self._optimizer)
            for name in ("utility", "mean", "age"):
                state[name][chosen] = 0
            replaced += number
        return replaced

    def _read(self, hidden: Hidden) -> Tensor:
        """mean|w_out| of every unit, over all weights that read it, [units]."""
        total = torch.zeros_like(self._state[hidden.name]["utility"])
        count = torch.zeros_like(total)
        for reader in hidden.readers:
            sizes = reader.weight.abs().sum(dim=[0, *range(2, reader.weight.ndim)])[reader.columns]
            total.index_add_(0, reader.unit_of, sizes)
            weights = reader.weight[:, 0].numel()  # of one column
            count.index_add_(0, reader.unit_of, torch.full_like(sizes, weights))
        return total / count

    def _move_to_biases(self, hidden: Hidden, chosen: Tensor) -> None:
        """What the chosen units contribute on average becomes a part of the readers' biases."""
        state = self._state[hidden.name]
        mean = state["mean"] / (1 - self.decay ** state["age"].to(state["mean"]))
        for reader in hidden.readers:
            if reader.bias is None:
                continue
            taken = chosen[reader.unit_of]
            weight = reader.weight[:, reader.columns[taken]]
            weight = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
            reader.bias.add_(weight @ mean[reader.unit_of[taken]])

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Utilities, means, ages and what is due, by layer, as copies."""
        return {"layers": {name: {key: t.clone() for key, t in one.items()} for name, one in self._state.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them.

        Raises:
            ValueError: layers or numbers of units differ.
        """
        check_keys("ContinualBackprop", state, ("layers",))
        saved, held = (
            {name: {key: tuple(t.shape) for key, t in one.items()} for name, one in each.items()}
            for each in (state["layers"], self._state)
        )
        if saved != held:
            raise ValueError(f"the saved state is of {sorted(saved)}, this one of {sorted(held)}, or of other widths")
        for name, one in self._state.items():
            for key, tensor in one.items():
                tensor.copy_(state["layers"][name][key])
