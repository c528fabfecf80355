"""What a step does to features, in closed form and by simulation: one file, a few seconds.

    python agents/theory.py                                   weights of unit scale
    python agents/theory.py doubled                           weights twice as large, the same steps
    python agents/theory.py --alpha 0.5 --sigma 2             any scale of weights and gradients
    python agents/theory.py --resume runs/logs/RUN            continue a killed or interrupted run

App. C of Lyle et al. 2025 (arXiv:2507.20057, "the paper" below) asks how far one step moves the features of a hidden
layer z = alpha W x with W_ij ~ N(0, 1), if the step adds -eta G with G_ij ~ N(0, sigma^2), drawn independently of W.
For one input, (z, z') of a unit before and after the step are normal with correlation rho, and so

    cosine of z and z'                       rho = 1 / sqrt(1 + r^2),        r = eta sigma / alpha
    share of active units that switch off    arctan(r) / pi = 1/2 - arctan(1/r) / pi

Nothing depends on the rate eta, on the scale of the weights alpha or on that of the gradient sigma but through r: the
size of a step relative to the weights, the effective learning rate. So what a high rate does to the features of small
weights, it does not do to those of large ones.

Each step of a run is one rate eta, from --lowest to --highest, evenly in its logarithm: fresh W and G are drawn, the
step is taken, and cosine and share are recorded next to their closed forms, with their standard errors.

The paper writes the second form with eta sigma alone, that is for alpha = 1, and speaks of the cosine "between an
embedding and its update": it is that with the updated embedding, before the nonlinearity. With the update itself it is
0 on average. sigma is the scale of the gradient at the weights alpha W; in a scale-invariant network it is 1 / alpha of
that at W. A true gradient is not independent of W: units that are off for all inputs get none.
"""

from __future__ import annotations

import runs.quiet_imports  # noqa: F401  # isort: skip

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from runs.recording import RunError, exit_with_one_line, parse, presets
from runs.training import RunArgs, Session


@dataclass(frozen=True)
class Args(RunArgs):
    """Flags; --help lists them."""

    alpha: float = 1.0
    """scale of the weights"""
    sigma: float = 1.0
    """scale of the gradient at these weights"""
    lowest: float = 0.05
    """lowest rate"""
    highest: float = 20.0
    """highest rate"""
    rates: int = 40
    """rates between them, both included: steps of the run"""
    inputs: int = 64
    """inputs x, each orthogonal to the others, so that its units are independent of theirs"""
    width: int = 4096
    """units of the hidden layer"""
    fan_in: int = 64
    """entries of an input; at least --inputs"""
    seed: int = 1
    """random seed"""
    exp_name: str = "theory"

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        super().__post_init__()
        for name in ("alpha", "sigma", "lowest", "highest"):
            if not 1e-6 <= getattr(self, name) <= 1e6:  # double precision holds all products and squares of these
                raise ValueError(f"--{name} must lie in [1e-6, 1e6], got {getattr(self, name)}")
        if not self.lowest < self.highest:
            raise ValueError(f"--highest {self.highest} must be above --lowest {self.lowest}")
        for name, least in (("rates", 2), ("inputs", 2), ("width", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if torch.device(self.device).type != "cpu":
            raise ValueError(f"--device {self.device}: this simulation runs on the CPU")
        if self.fan_in < self.inputs:
            raise ValueError(f"--fan-in {self.fan_in} has no room for --inputs {self.inputs} orthogonal inputs")


PRESETS = presets(
    Args,
    {
        "halved": ("weights half as large, the same steps", {"alpha": 0.5}),
        "doubled": ("weights twice as large, the same steps", {"alpha": 2.0}),
        "steep": ("gradients three times as large", {"sigma": 3.0}),
    },
)


def closed_cosine(ratio: float) -> float:
    """Cosine of pre-activations before and after a step; ratio is eta sigma / alpha."""
    return 1 / math.sqrt(1 + ratio**2)


def closed_share(ratio: float) -> float:
    """Share of the active units that switch off."""
    return math.atan(ratio) / math.pi


def one_step(args: Args, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pre-activations [inputs, width] before and after a step at this rate, in double precision."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = torch.linalg.qr(normal(args.fan_in, args.inputs)).Q.T  # orthogonal, of norm 1
    weights = args.alpha * normal(args.fan_in, args.width)
    gradient = args.sigma * normal(args.fan_in, args.width)
    return x @ weights, x @ (weights - rate * gradient)


def main(args: Args) -> None:
    """Take a step at each rate; everything the run leaves behind is in its run directory."""
    run = Session(args, f"alpha{args.alpha:g}", total=args.rates, streams="draws", unit="update")
    with run.open():
        run.restore() if run.resumed else run.checkpoint()
        while run.running():
            rate = args.lowest * (args.highest / args.lowest) ** (run.step / (args.rates - 1))
            generator = torch.Generator().manual_seed(run.seed("draws", run.step))
            run.step += 1
            z, moved = one_step(args, rate, generator)

            cosines = torch.cosine_similarity(z, moved, dim=1)
            active = z > 0
            if not active.any(1).all():
                raise RunError(f"--width {args.width} is too small: an input has no active unit; use at least 64")
            shares = (active & (moved <= 0)).sum(1) / active.sum(1)
            run.require_finite(cosine=cosines.mean(), share_switched_off=shares.mean())
            ratio = rate * args.sigma / args.alpha
            for name, values, closed in (
                ("cosine", cosines, closed_cosine(ratio)),
                ("switched_off", shares, closed_share(ratio)),
            ):
                run.scalars(
                    {
                        f"theory/{name}": values.mean().item(),
                        f"theory/{name}_closed": closed,
                        f"theory/{name}_error": values.std().item() / math.sqrt(args.inputs),
                    }
                )
            run.scalars({"theory/ratio": ratio, "charts/learning_rate": rate})
            run.show_speed(f"ratio {ratio:.3g}   cosine {cosines.mean():.4f}, closed form {closed_cosine(ratio):.4f}")
        run.end()
    run.farewell("cosine and share switched off at each rate: the tags theory/*, next to their closed forms")


if __name__ == "__main__":
    exit_with_one_line(lambda: main(parse(Args, PRESETS, prog_description=__doc__.split("\n\n")[0])))
