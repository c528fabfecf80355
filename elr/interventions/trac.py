"""TRAC: the distance from the initial weights tunes itself (Muppidi et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from elr.states import check_keys

BETAS = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
"""discounts of the authors' tuners"""


def erfi(x: float) -> float:
    """2 / sqrt(pi) times the integral of exp(t^2) from 0 to x, the imaginary error function.

    By its series, sum_n x^(2n + 1) / (n! (2n + 1)), whose terms all have the sign of x, so that nothing cancels.
    Infinite where it exceeds double precision (|x| above 26.6); nan of nan.
    """
    power = total = x
    n = 0
    while abs(power / (2 * n + 1)) > 1e-17 * abs(total) and math.isfinite(total):
        n += 1
        power *= x * x / n
        total += power / (2 * n + 1)
    return 2 / math.sqrt(math.pi) * total


class Trac:
    """Scale the displacement that an optimiser makes, by how well it has paid so far.

    In each update, with g the gradient at theta, u the optimiser's step from theta, and S = 0 before the first update:

        delta = (theta - theta(0)) / (S + 1e-8)                      the optimiser's own displacement
        h = <g, delta>,   v_i <- beta_i^2 v_i + h^2,   sigma_i <- beta_i sigma_i - h       from v = 0, sigma = 1e-8
        S = max(0, sum_i (s / erfi(1 / sqrt 2)) erfi(sigma_i / (sqrt(2 v_i) + 1e-8)))
        theta <- theta(0) + S (delta + u)

    S is about 1e-7 after the first update. It grows while displacements lower the loss, and falls where they do not.
    While it is 0, the weights are theta(0) and h is 0. It can grow again when the tuners that made it 0, those of small
    beta first, have faded and the others are still positive.

    Use: build it before training; call `before_step` before each optimiser step and `step_` after it, with the
    gradients still there. Something else may change the weights only between the two, as a part of the optimiser's
    step, or with `remember_`.

    Args:
        parameters_by_name: name to parameter, any shape, on one device; all those that the optimiser holds.
        betas: one tuner for each.
        scale: s, the unit of S; 1e-8 in the authors' code.

    Raises:
        ValueError: there are no parameters or betas, a beta is not in (0, 1), or the scale is not positive and finite.

    Source: Muppidi et al. 2024 (arXiv:2405.16642); the authors' package trac-optimizer 0.0.2 (MIT). As in the package,
        the displacement is computed back from the weights, which loses some of it while S is near 1e-8, and all of it
        where S is 0. In float32 it is lost as well where S (delta + u) is below the resolution of theta(0): at first
        only small weights move, and a network of large ones may never start.
    Deviation: erfi is exact; theirs is up to 1.05 % off, most near 0. sigma, v and S are in double precision, theirs in
        torch's default type. Where theirs raises an error for a NaN, here the weights become NaN.
    """

    def __init__(
        self, parameters_by_name: Mapping[str, Tensor], *, betas: Sequence[float] = BETAS, scale: float = 1e-8
    ) -> None:
        if not parameters_by_name:
            raise ValueError("Trac needs at least one named parameter, got none")
        if not betas or not all(0 < beta < 1 for beta in betas) or not 0 < scale < math.inf:
            raise ValueError(f"betas must lie in (0, 1) and scale be positive and finite, got {betas} and {scale}")
        self.betas, self._factor = tuple(betas), scale / erfi(math.sqrt(0.5))
        self._parameters = dict(parameters_by_name)
        self.remember_()

    def remember_(self) -> None:
        """Start again from the values that the parameters have now, as a new Trac would."""
        self._start = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._before: dict[str, Tensor] | None = None
        self._sums, self._squares = [1e-8] * len(self.betas), [0.0] * len(self.betas)
        self.scale = 0.0
        """S of the latest update"""

    @torch.no_grad()
    def before_step(self) -> None:
        """Keep theta, from which the optimiser is about to step."""
        self._before = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def step_(self) -> None:
        """After the optimiser's step: renew S, and move the weights. Waits for the device once.

        Parameters without a gradient are left alone.

        Raises:
            ValueError: `before_step` has not been called since the last one; nothing has been changed.
        """
        if self._before is None:
            raise ValueError("call before_step before each optimiser step, and step_ after it")
        trained = {name: theta for name, theta in self._parameters.items() if theta.grad is not None}
        before, start = ([kept[name] for name in trained] for kept in (self._before, self._start))
        self._before = None
        if not trained:
            return
        thetas = list(trained.values())
        delta = torch._foreach_sub(before, start)
        torch._foreach_div_(delta, self.scale + 1e-8)
        products = [torch.dot(d.flatten(), theta.grad.flatten()) for d, theta in zip(delta, thetas, strict=True)]  # type: ignore[union-attr]
        h = float(torch.stack(products).sum())
        self._squares = [beta**2 * v + h * h for beta, v in zip(self.betas, self._squares, strict=True)]
        self._sums = [beta * sigma - h for beta, sigma in zip(self.betas, self._sums, strict=True)]
        shares = [
            self._factor * erfi(sigma / (math.sqrt(2) * math.sqrt(v) + 1e-8))
            for sigma, v in zip(self._sums, self._squares, strict=True)
        ]
        self.scale = 0.0 if (total := sum(shares)) < 0 else total  # nan stays nan
        torch._foreach_add_(delta, torch._foreach_sub(thetas, before))
        torch._foreach_mul_(delta, self.scale)
        torch._foreach_copy_(thetas, torch._foreach_add(start, delta))

    def state_dict(self) -> dict[str, Any]:
        """theta(0) by name, as copies; sigma, v and S. The betas are configuration. Between two updates."""
        return {
            "start": {name: start.clone() for name, start in self._start.items()},
            "sums": list(self._sums),
            "squares": list(self._squares),
            "scale": self.scale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them.

        Raises:
            ValueError: names, shapes or the number of betas differ; nothing has been changed.
        """
        check_keys("Trac", state, ("start", "sums", "squares", "scale"))
        saved, held = ({n: tuple(t.shape) for n, t in each.items()} for each in (state["start"], self._start))
        if saved != held:
            raise ValueError(f"saved initial values are of {saved}, the parameters {held}: build with the same network")
        if not len(state["sums"]) == len(state["squares"]) == len(self.betas):
            raise ValueError(f"the saved state is of {len(state['sums'])} betas, and this Trac has {len(self.betas)}")
        for name, start in self._start.items():
            start.copy_(state["start"][name])
        self._sums, self._squares, self.scale = list(state["sums"]), list(state["squares"]), state["scale"]
        self._before = None
