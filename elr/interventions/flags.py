"""Methods against loss of plasticity as a group of flags, `--intervene.*`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from elr.flags import NO_CHANGE, InterventionArgs, reject_unused
from elr.interventions.churn import ChurnReduction, Divergence
from elr.interventions.continual_backprop import ContinualBackprop
from elr.interventions.l2_init import L2Init
from elr.interventions.methods import (
    Churn,
    Clip,
    Displacement,
    Fire,
    Fresh,
    GenerateAndTest,
    Held,
    LocalTime,
    Method,
    Methods,
    Pull,
    Recycle,
    Reset,
    ResetHeads,
    ShrinkAndPerturb,
    WeightDecay,
    When,
)
from elr.interventions.redo import ReDo
from elr.interventions.trac import Trac
from elr.interventions.units import NORMS, check_complete
from elr.interventions.weight_clipping import WeightClipping
from elr.undisturbed import undisturbed

Name = Literal[
    "reset", "reset-head", "shrink-and-perturb", "fire", "local-time", "redo", "continual-backprop", "weight-clipping",
    "weight-decay", "l2-init", "churn", "trac",
]  # fmt: skip


@dataclass(frozen=True)
class InterveneArgs:
    """Methods against loss of plasticity, besides projection and re-warming."""

    methods: tuple[Name, ...] = ()
    """which, in this order; docs/baselines.md says what each does and where it is from"""
    when: When | Literal["usual"] = "usual"
    """when reset, reset-head, shrink-and-perturb, fire, local-time and redo act: every so many updates, at a change of
    the task, of which the agent is told, or when --rewarm.trigger fires; usual: redo every so many updates, as in its
    source, the others at a change"""
    every: int = 1_000
    """updates between two times (when every; redo's usual)"""
    tau: float = 0.1
    """redo: a unit is recycled whose share of its layer's mean activity is at most tau"""
    rate: float = 1e-4
    """continual-backprop: share of the mature units replaced per update"""
    maturity: int = 10_000
    """continual-backprop: updates in which a new unit is safe"""
    kappa: float = 3.0
    """weight-clipping: no entry beyond kappa / sqrt(fan_in)"""
    decay: float = 1e-3
    """weight-decay: strength, multiplied by the learning rate as in AdamW"""
    pull: float = 1e-3
    """l2-init: strength of the squared distance to the initial weights"""
    ratio: float = 1e4
    """churn: the regulariser is weighed so that it is this many times the loss (the policy's in PPO)"""
    shrink: float = 0.4
    """shrink-and-perturb: W <- shrink * W + perturb * W_fresh"""
    perturb: float = 0.1
    """see shrink"""

    READS: ClassVar[Mapping[str, Sequence[str]]] = {
        "redo": ["tau"], "continual-backprop": ["rate", "maturity"], "weight-clipping": ["kappa"],
        "weight-decay": ["decay"], "l2-init": ["pull"], "churn": ["ratio"], "shrink-and-perturb": ["shrink", "perturb"],
    }  # fmt: skip
    """flags that single methods read"""
    ACT: ClassVar[Sequence[str]] = ("reset", "reset-head", "shrink-and-perturb", "fire", "local-time", "redo")
    """methods that act at times, which --intervene.when chooses"""
    CLASH: ClassVar[Sequence[tuple[Sequence[str], str]]] = (
        (("reset", "reset-head", "shrink-and-perturb", "fire"), "both decide what becomes of the weights"),
        (("reset", "local-time"), "both restart Adam's count of steps"),
        *(
            (("trac", other), "both decide where weights are after an update")
            for other in (
                "reset-head", "shrink-and-perturb", "fire", "redo", "continual-backprop", "weight-clipping",
            )
        ),
    )  # fmt: skip
    """methods of which only one can act"""

    @property
    def on(self) -> bool:
        """There is a method."""
        return bool(self.methods)

    @property
    def watches(self) -> bool:
        """A method takes features from the forward pass of an update, which must be torch's own."""
        return "continual-backprop" in self.methods

    @property
    def acts_at(self) -> When | Literal[""]:
        """ "every", "change" or "trigger" if a method acts at times, else nothing."""
        acting = [name for name in self.methods if name in self.ACT]
        if not acting or self.when != "usual":
            return self.when if acting else ""  # type: ignore[return-value]
        return "every" if "redo" in acting else "change"

    def check(
        self, trigger: str, projected: bool, switch: InterventionArgs, peak: float, changes: bool,
        unchanged: str = NO_CHANGE, *, updates: int | None = None, activation: str = "",
    ) -> None:  # fmt: skip
        """Refuse flags without effect or meaning.

        Args:
            trigger: --rewarm.trigger.
            projected: --nap.enabled.
            switch: --switch, which may renew weights at a change as well.
            peak: the highest learning rate.
            changes: whether the task changes; if not, `unchanged` says why not.
            updates: of the whole run, if they are known.
            activation: --activation, in scripts that have it.
        """
        if repeated := {name for name in self.methods if self.methods.count(name) > 1}:
            raise ValueError(f"--intervene.methods names {sorted(repeated)} twice")
        read = {flag for name in self.methods for flag in self.READS.get(name, ())}
        read |= {"when", "every"} if self.acts_at == "every" else {"when"} if self.acts_at else set()
        unread = [field.name for field in dataclasses.fields(self) if field.name not in {"methods", *read}]
        reject_unused("intervene", self, unread, f"with --intervene.methods {' '.join(self.methods) or '(none)'}")
        if self.when == "usual" and "redo" in self.methods and len({*self.methods} & {*self.ACT}) > 1:
            raise ValueError(
                f"--intervene.methods {' '.join(self.methods)}: redo usually acts every so many updates, the others at "
                "a change; give --intervene.when"
            )
        for clashing, why in self.CLASH:
            if len(both := [name for name in self.methods if name in clashing]) > 1:
                raise ValueError(f"--intervene.methods {' and '.join(both)} {why}: give one")
        renewing = [name for name in self.methods if name in self.CLASH[0][0]]
        if renewing and switch.does("intervention") and self.acts_at == switch.acts_at:
            raise ValueError(
                f"--intervene.methods {' '.join(renewing)} and --switch (intervention, fresh-agent) both renew "
                "weights at the same time: give one"
            )
        if "trac" in self.methods and switch.does("intervention") and not switch.renews:
            raise ValueError(
                "--intervene.methods trac takes all weights that are new as its start, but --switch.intervention "
                "makes only some of them new; give reset"
            )
        voids = ("weight-clipping", "weight-decay", "trac")
        if projected and (void := [name for name in self.methods if name in voids]):
            raise ValueError(
                f"--intervene.methods {' '.join(void)} and --nap.enabled both decide how large weights are: give one"
            )
        if activation == "crelu" and (single := [n for n in self.methods if n in ("redo", "continual-backprop")]):
            raise ValueError(
                f"--intervene.methods {' '.join(single)} and --activation crelu: a unit of CReLU has two outputs, but "
                "only units with one can be recycled"
            )
        if self.acts_at == "change" and not changes:
            raise ValueError(f"--intervene.when change has no effect {unchanged}; give every or trigger")
        if self.acts_at == "trigger" and trigger in ("never", "switch"):
            raise ValueError(f"--intervene.when trigger needs a --rewarm.trigger that fires by itself, not {trigger}")
        self._check_numbers()
        for flag, acts in (("every", self.acts_at == "every"), ("maturity", "continual-backprop" in self.methods)):
            if acts and updates is not None and (value := getattr(self, flag)) > updates - (flag == "maturity"):
                raise ValueError(f"--intervene.{flag} {value:,} never comes: the run has {updates:,} updates")
        if "weight-decay" in self.methods and peak * self.decay > 1:
            raise ValueError(
                f"--intervene.decay {self.decay:g} times --learning-rate {peak:g} exceeds 1: the weights would change "
                "sign"
            )

    def _check_numbers(self) -> None:
        positive = ("every", "rate", "kappa", "decay", "pull", "ratio")
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--intervene.{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.tau < math.inf or self.maturity < 0 or self.rate > 1:
            raise ValueError(
                f"--intervene.tau and --intervene.maturity must be at least 0 and --intervene.rate at most 1, got "
                f"{self.tau}, {self.maturity} and {self.rate}"
            )
        shares = 0 <= self.shrink <= 1 and 0 <= self.perturb < math.inf
        if not shares or (self.shrink, self.perturb) in ((1, 0), (0, 0)):
            raise ValueError(
                f"--intervene.shrink must lie in [0, 1] and --intervene.perturb be at least 0, got {self.shrink} and "
                f"{self.perturb}; (1, 0) changes nothing and (0, 0) makes all weights zero"
            )

    def build(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        held: Held,
        *,
        layers: Sequence[str],
        heads: Sequence[str],
        inputs: Tensor,
        fresh: Fresh,
        divergence: Divergence,
        batch: int,
        churn: Mapping[str, Any],
        leave: Sequence[str] = (),
    ) -> Methods:
        """The methods, on this network and its optimiser.

        Args:
            held: the projection; what it does nothing for stays as it is.
            layers: the nonlinearities, whose units redo and continual-backprop recycle. All trained linear and
                convolutional layers must make such units, except heads and `leave`.
            heads: output layers, which reset-head resets, and fire leaves alone.
            inputs: a few inputs, to find the units by.
            fresh: makes a newly initialised network of the same shape, another each time.
            divergence: of outputs, which churn reduces.
            batch: inputs on which churn is reduced.
            churn: further arguments of `ChurnReduction`.
            leave: modules without units that could be recycled, such as attention, each with all beneath it.
        """
        norms = {id(p) for module in network.modules() if isinstance(module, NORMS) for p in module.parameters()}
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        named = {name: p for name, p in trained.items() if id(p) not in norms}

        if "churn" in self.methods:
            with torch.no_grad(), undisturbed(network, inputs):  # whether it takes the outputs of this network
                divergence(network(inputs), network(inputs))

        def made(name: Name) -> Method:
            match name:
                case "reset":
                    return Reset(network, optimizer, held)
                case "reset-head":
                    return ResetHeads(network, optimizer, heads)
                case "shrink-and-perturb":
                    return ShrinkAndPerturb(network, held, self.shrink, self.perturb)
                case "fire":
                    return Fire(network, held, heads)
                case "local-time":
                    return LocalTime(optimizer)
                case "redo":
                    redo = ReDo(network, layers, inputs, optimizer=optimizer, tau=self.tau)
                    check_complete(network, redo.hidden, (*heads, *leave))
                    return Recycle(redo, held)
                case "continual-backprop":
                    kept = ContinualBackprop(
                        network, layers, inputs, optimizer=optimizer, rate=self.rate, maturity=self.maturity
                    )
                    check_complete(network, kept.hidden, (*heads, *leave))
                    return GenerateAndTest(kept, fresh)
                case "weight-clipping":
                    return Clip(WeightClipping(network, kappa=self.kappa))
                case "weight-decay":
                    return WeightDecay(list(named.values()), optimizer, self.decay)
                case "l2-init":
                    return Pull(L2Init(named, self.pull))
                case "trac":
                    return Displacement(Trac(trained), optimizer)
                case "churn":
                    return Churn(ChurnReduction(network, divergence, ratio=self.ratio, **churn), batch)

        methods: dict[str, Method] = {name: made(name) for name in self.methods}
        return Methods(methods, when=self.acts_at, every=self.every, fresh=fresh)


@dataclass(frozen=True)
class QInterveneArgs(InterveneArgs):
    """Methods against loss of plasticity, for networks of action values."""

    ratio: float = 1e-2
    """churn: the regulariser is weighed so that it is this many times the loss; as in Tang et al.'s DQN on MinAtar"""


BASELINES: Mapping[str, InterveneArgs] = {
    "reset": InterveneArgs(("reset",)),
    "reset-head": InterveneArgs(("reset-head",)),
    "shrink-and-perturb": InterveneArgs(("shrink-and-perturb",)),  # 0.4 and 0.1: Ash and Adams' code
    "soft-shrink-and-perturb": InterveneArgs(  # Juliani and Ash 2024
        ("shrink-and-perturb",), when="every", every=1, shrink=1 - 1e-6, perturb=1e-6
    ),
    "fire": InterveneArgs(("fire",)),
    "fire-cusum": InterveneArgs(("fire",), when="trigger"),
    "local-time": InterveneArgs(("local-time",)),
    "redo": InterveneArgs(("redo",), when="every", every=1_000, tau=0.1),  # Sokar et al. 2023
    "continual-backprop": InterveneArgs(("continual-backprop",), rate=1e-4, maturity=10_000),  # Dohare et al. 2024, PPO
    "weight-clipping": InterveneArgs(("weight-clipping",), kappa=3.0),  # Elsayed et al. 2024, PPO
    "weight-decay": InterveneArgs(("weight-decay",), decay=1e-3),  # our choice
    "l2-init": InterveneArgs(("l2-init",), pull=1e-3),  # within Kumar et al.'s sweep of 1e-2 to 1e-5
    "churn": InterveneArgs(("churn",), ratio=1e4),  # Tang et al. 2025, classic control
    "trac": InterveneArgs(("trac",)),  # Muppidi et al. 2024; it has no constants to choose
}
"""one preset per method, with constants of the literature where a comment does not say otherwise"""
Q_BASELINES: Mapping[str, InterveneArgs] = {
    name: QInterveneArgs(**{**vars(args), "ratio": QInterveneArgs.ratio}) for name, args in BASELINES.items()
}
"""the same for networks of action values: churn as in Tang et al.'s DQN on MinAtar"""
Q_CHURN: Mapping[str, Any] = {"start": 50.0, "block": 100, "window": 500, "warmup": 100}
"""its other constants: 10,000 updates until the first estimate, and 50,000 that count"""
