"""Grokking modular addition: a large enough effective learning rate makes a network generalise, in one file.

    python agents/grokking.py                                 weights projected, rate 1e-2
    python agents/grokking.py free                            the same without projection
    python agents/grokking.py low                             projected, rate 1e-4
    python agents/grokking.py free --match-elr RUN            without projection, with the relative steps of RUN
    python agents/grokking.py adaptive                        starts at 1e-4; re-warmed when its features stop moving
    python agents/grokking.py adaptive --intervene.methods fire --intervene.when trigger      and FIRE acts then, too
    python agents/grokking.py --resume runs/logs/RUN          continue a killed or interrupted run

The method is Algorithm 1 of Lyle et al. 2025 (arXiv:2507.20057, "the paper" below): step the optimiser, project the
weights, ask the trigger whether to re-warm (restart the learning-rate schedule), set the rate of the next update. In
`main` these are three calls in this order. All steps are optimiser updates.

The network sees the five tokens "x o y = _" and predicts x o y mod p at the last one. It is trained on a fifth of all
ordered pairs (x, y) and tested on the others. A network that has only learned that x + y = y + x answers the test pairs
whose mirror (y, x) it was trained on, about 20 % of them, so accuracy is reported for both kinds.

The presets fig2-left-*, fig2-right-* and fig3-* are arms of the paper's grokking figures with fewer updates: 20,000,
6,000 and 9,000 instead of up to 1,000,000; so are fig8-*, whose weight decay is 1.

Deviations from the paper: gains of norm layers are only decayed (--scale-decay), not rescaled; the probe has pairs of
both sets (theirs: of the training set); the trigger of `adaptive` is ours, where the paper re-warms on a fixed cycle or
by CUSUM; fig3-* has beta2 0.95 and a warm-up of 500 updates (theirs: 0.999, with which 4 of 10 runs do not end at
99 %, and 1,000). Not specified in the paper, our choices: the training set is one batch, or 512 pairs per update in the
figures; one attention block (its text; its Table 1 says two); weights start as N(0, 1 / fan_in), embeddings as N(0,
0.07^2); fig2-right has rate 1e-2; fig3-* has both decays at 1 and a cosine of 3,500 updates; embeddings are projected
too (--nap.no-embeddings), and the output layer counts as one of its "linear layers" (--nap.no-decoder).

Measured: the default first reaches 99 % of the test pairs after 282 to 1,679 of its 2,000 updates (5 of 5 seeds);
`free` ends at 6 to 12 % (n = 3). It takes 90 seconds on two cores. All results: docs/results.md.
"""

from __future__ import annotations

import runs.quiet_imports  # noqa: F401  # isort: skip

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elr import flags, layout
from elr.interventions import policy_divergence
from elr.interventions.flags import InterveneArgs
from elr.matching import ElrMatch, NoElrMatch
from elr.projection import NoProjection, Projection
from elr.rewarming import Rewarming
from elr.schedules import Constant, Schedule, WarmupCosine
from elr.stagnation import Stagnation
from elr.triggers import AtKnownChange, Never, OnStagnation, Trigger
from elr.weights import gains_and_offsets, scalable_weights
from envs.modular_arithmetic import Pairs, modular_pairs
from runs.recording import exit_with_one_line, one_line_errors, parse, presets, reject_unused
from runs.training import RunArgs, Session, recorded_elr, require, require_not_negative, require_positive

# ------------------------------------------------------------------------------------------------- hyperparameters


@dataclass(frozen=True)
class NormArgs:
    """Where RMSNorm stands; the paper's figures have none or all three."""

    before_attention: bool = False
    """on the input of the attention"""
    before_mlp: bool = False
    """on the input of the MLP"""
    after_mlp: bool = False
    """on the output of the block, MLP and residual stream together"""


@dataclass(frozen=True)
class NapArgs:
    """Projection: hold every weight tensor at its initial norm."""

    enabled: bool = True
    """project the weights"""
    every: int = 1
    """updates between projections"""
    embeddings: bool = True
    """project the embeddings of tokens and positions too"""
    decoder: bool = True
    """project the decoder too"""


@dataclass(frozen=True)
class ScheduleArgs:
    """Learning rate as a function of the updates since the last trigger; its peak is --learning-rate."""

    kind: Literal["constant", "warmup-cosine"] = "constant"
    """shape of the schedule"""
    low: float = 1e-4
    """rate at the start of the warm-up and at the end of the cosine"""
    warmup_updates: int = 1000
    """updates of the warm-up"""
    decay_updates: int = 4000
    """updates of the cosine after it"""


@dataclass(frozen=True)
class RewarmArgs:
    """Start the schedule (Algorithm 1)."""

    trigger: Literal["never", "at", "stagnation"] = "never"
    """never: the schedule runs once, from the start. Otherwise a constant low rate comes first: until a given update
    (at), or until features or loss have stopped moving (stagnation)"""
    initial_rate: float = 1e-4
    """that low rate"""
    at_update: int = 5000
    """the given update (trigger at)"""
    moments: Literal["keep", "reset"] = "keep"
    """Adam's moments at a trigger"""
    signal: Literal["movement", "loss"] = "movement"
    """what stops moving: the activation pattern of the MLP, or the logarithm of the loss on the training set"""
    ratio: float = 0.1
    """it has stopped when it moves at most this share of its largest movement"""
    window: int = 5
    """probe intervals averaged"""
    burn_in: int = 10
    """probe intervals without a trigger, from the start and from the end of each restarted schedule: nearly a cycle"""


@dataclass(frozen=True)
class ProbeArgs(flags.ProbeArgs):
    """Measurements that never change training."""

    every: int = 50
    size: int = 256
    """pairs in the probe, drawn from all ordered pairs"""
    meter_every: int = 50


@dataclass(frozen=True)
class Args(RunArgs):
    """Grokking: every flag, its default, its meaning."""

    p: int = 117
    """modulus; 117 = 9 x 13 is the paper's"""
    operation: Literal["add", "subtract", "multiply", "divide"] = "add"
    """x o y mod p; divide uses only the y that have an inverse"""
    train_fraction: float = 0.2
    """share of the ordered pairs that is trained on"""
    seed: int = 1
    """seed of every random stream"""
    total_updates: int = 2000
    """optimiser updates of the run"""
    learning_rate: float = 1e-2
    """Adam's rate; with a schedule, its peak"""
    adam_beta2: float = 0.999
    """decay of Adam's second moment"""
    adam_eps: float = 1e-8
    """Adam's epsilon"""
    weight_decay: float = 0.01
    """decoupled decay of all matrices, embeddings and decoder included: W <- W - rate * decay * W"""
    scale_decay: float = 0.0
    """the same for the gains of the norm layers"""
    batch_size: int = 0
    """training pairs per update, drawn with replacement; 0 uses all of them"""
    blocks: int = 1
    """attention blocks"""
    heads: int = 4
    """attention heads"""
    head_size: int = 32
    """width of a head; the network's width is heads * head_size"""
    hidden: int = 512
    """hidden units of the MLP"""
    embedding_std: float = 0.07
    """standard deviation of the initial embeddings of tokens and positions"""
    loss_dtype: Literal["float32", "float64"] = "float32"
    """precision of the cross-entropy; in float32 the loss of a sample that is fitted too well is exactly 0"""
    match_elr: Path | None = None
    """directory of a projected run, whose realised ELR each matrix gets: the same relative steps without projection"""
    norm: NormArgs = field(default_factory=NormArgs)
    nap: NapArgs = field(default_factory=NapArgs)
    schedule: ScheduleArgs = field(default_factory=ScheduleArgs)
    rewarm: RewarmArgs = field(default_factory=RewarmArgs)
    intervene: InterveneArgs = field(default_factory=InterveneArgs)
    probe: ProbeArgs = field(default_factory=ProbeArgs)
    evaluations_per_decade: int = 40
    """evaluations, evenly spaced in the logarithm of the update, for each factor of ten"""
    checkpoint_every: int = 1000
    """updates between checkpoints"""
    threads: int = 2
    exp_name: str = "grokking"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "total_updates learning_rate adam_eps blocks heads head_size hidden embedding_std")
        require_positive(self, "evaluations_per_decade checkpoint_every nap.every")
        require_not_negative(self, "weight_decay scale_decay batch_size")
        require(self.p >= 2, self, "p", "nothing to predict; give at least 2")
        require(0 < self.train_fraction < 1, self, "train_fraction", "must lie between 0 and 1")
        require(0 <= self.adam_beta2 < 1, self, "adam_beta2", "must lie in [0, 1)")
        for decay in ("weight_decay", "scale_decay"):
            below = self.learning_rate * getattr(self, decay) <= 1
            require(below, self, f"learning_rate {decay}", "their product exceeds 1: the weights would change sign")
        has_gains = self.norm.before_attention or self.norm.before_mlp or self.norm.after_mlp
        require(has_gains or not self.scale_decay, self, "scale_decay", "there is no gain to decay; add a --norm")
        if self.nap.enabled:
            require(self.nap.every <= self.total_updates, self, "nap.every total_updates", "nothing is projected")
        else:
            reject_unused("nap", self.nap, ["every", "embeddings", "decoder"], "without --nap.enabled")
        if self.match_elr:
            free = not self.nap.enabled and self.schedule.kind == "constant" and self.rewarm.trigger == "never"
            why = "the matched run sets the size of every step; use --nap.no-enabled, constant and never"
            require(free, self, "match_elr nap.enabled schedule.kind rewarm.trigger", why)
            require(not self.intervene.on, self, "match_elr intervene.methods", "methods change the matched step")
        if self.schedule.kind == "constant":
            reject_unused("schedule", self.schedule, ["low", "warmup_updates", "decay_updates"], "with a constant rate")
        else:
            below = self.schedule.low < self.learning_rate or self.intervene.acts_at == "trigger"
            require(below, self, "schedule.low learning_rate", "the low rate must be below the peak")
        twice = self.weight_decay and "weight-decay" in self.intervene.methods
        require(not twice, self, "weight_decay intervene.methods", "both decay the weights: give one")
        self.intervene.check(
            self.rewarm.trigger, self.nap.enabled, flags.InterventionArgs(), self.learning_rate, False,
            "here, where no task changes", updates=self.total_updates,
        )  # fmt: skip
        self.probe.check()
        self._check_trigger()

    def _check_trigger(self) -> None:
        trigger, stops = self.rewarm.trigger, ["signal", "ratio", "window", "burn_in"]
        unused = {"never": ["initial_rate", "at_update", "moments", *stops], "at": stops, "stagnation": ["at_update"]}
        reject_unused("rewarm", self.rewarm, unused[trigger], f"with --rewarm.trigger {trigger}")
        warms = trigger == "never" or 0 < self.rewarm.initial_rate <= self.learning_rate
        require(warms, self, "rewarm.initial_rate learning_rate", "the initial rate must be positive and no higher")
        comes = trigger != "at" or 0 < self.rewarm.at_update < self.total_updates
        require(comes, self, "rewarm.at_update total_updates", "the trigger must come within the run")
        if trigger == "stagnation":
            require(self.probe.every > 0, self, "rewarm.trigger probe.every", "stagnation is tested at each probe")
            comes = self.rewarm.burn_in * self.probe.every < self.total_updates
            require(comes, self, "rewarm.burn_in probe.every total_updates", "the burn-in outlasts the run")


FREE, HELD = NapArgs(enabled=False), NapArgs(every=100)
NORMS = NormArgs(before_attention=True, before_mlp=True, after_mlp=True)
FIGURE: dict[str, Any] = {"batch_size": 512, "probe": ProbeArgs(every=100, meter_every=100)}
RIGHT: dict[str, Any] = {**FIGURE, "norm": NORMS, "total_updates": 6_000}
FIG3: dict[str, Any] = {
    **FIGURE, "norm": NORMS, "weight_decay": 1.0, "scale_decay": 1.0, "adam_beta2": 0.95, "total_updates": 9_000,
    "schedule": ScheduleArgs("warmup-cosine", warmup_updates=500, decay_updates=3500), "rewarm": RewarmArgs("at"),
}  # fmt: skip
PRESETS = presets(
    Args,
    {
        "free": ("as the default, unconstrained", {"nap": FREE}),
        "low": ("as the default, at rate 1e-4, for 6,000 updates", {"learning_rate": 1e-4, "total_updates": 6_000}),
        "adaptive": (
            "norm layers, scale decay, 512 pairs, as fig3-0.01; re-warmed once its features have stopped moving",
            {**FIG3, "adam_beta2": 0.999, "rewarm": RewarmArgs("stagnation"), "total_updates": 7_000},
        ),
        **{
            f"fig2-left-{name}-lr{rate:g}-wd{decay:g}": (
                f"no norm layers, {held}, rate {rate:g}, decay {decay:g}, 20,000 updates",
                {"nap": nap, "learning_rate": rate, "weight_decay": decay, "total_updates": 20_000, **FIGURE},
            )
            for name, held, nap in (("free", "unconstrained", FREE), ("projected", "projected every 100 updates", HELD))
            for rate in (1e-2, 1e-3, 1e-4) for decay in (0.01, 1.0)
        },
        **{
            f"fig2-right-{name}-{gains}-wd{decay:g}": (
                f"norm layers, {held}, rate 1e-2, decay {decay:g}, "
                + (f"gains decay by {decay:g} too" if scale else "gains do not decay") + "; 6,000 updates",
                {"nap": nap, "weight_decay": decay, "scale_decay": scale * decay, **RIGHT},
            )
            for name, held, nap in (("free", "unconstrained", FREE), ("projected", "projected every update", NapArgs()))
            for gains, scale in (("plain", 0.0), ("scale-decay", 1.0)) for decay in (1.0, 10.0)
        },
        **{
            f"fig3-{peak:g}": (
                f"norm layers, scale decay; rate 1e-4 until --rewarm.at-update, then warm-up and cosine from {peak:g}",
                {**FIG3, "learning_rate": peak},
            ) for peak in (1e-2, 1e-3)
        },
        **{
            f"fig8-{gains}-every{every}": (
                f"as fig2-right-projected-{gains}-wd1, projected every {every} updates: rank of the attention's output",
                {**RIGHT, "nap": NapArgs(every=every), "weight_decay": 1.0, "scale_decay": scale},
            ) for gains, scale in (("plain", 0.0), ("scale-decay", 1.0)) for every in (100, 1_000)
        },
    },
)  # fmt: skip

# --------------------------------------------------------------------------------------------------------- network


class Rows(NamedTuple):
    """The distinct inputs of the first block: every x at its position, every y at its own, and o, = and _ at theirs."""

    x: Tensor  # [p, D]
    y: Tensor  # [p, D]
    others: Tensor  # [3, D]


class Attention(nn.Module):
    """Causal multi-head attention without biases."""

    def __init__(self, heads: int, head_size: int):
        super().__init__()
        self.heads, self.head_size, width = heads, head_size, heads * head_size
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:  # [..., H * E] -> [..., H, E]
        return x.unflatten(-1, (self.heads, self.head_size))

    def every_position(self, x: Tensor) -> Tensor:  # [N, T, D] -> [N, T, D]
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))  # [N, T, H, E]
        scores = torch.einsum("nthe,nshe->nths", q, k) / math.sqrt(self.head_size)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)  # s > t
        weights = scores.masked_fill(later[:, None], -math.inf).softmax(-1)
        return self.o(torch.einsum("nths,nshe->nthe", weights, v).flatten(2))

    def last_position(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From all positions [N, T, D], the last one's attention weights [N, T, H] and output [N, D]."""
        q, k, v = self.split(self.q(x[:, -1])), self.split(self.k(x)), self.split(self.v(x))
        weights = (torch.einsum("nhe,nthe->nth", q, k) / math.sqrt(self.head_size)).softmax(1)
        return weights, self.o(torch.einsum("nth,nthe->nhe", weights, v).flatten(1))

    def last_position_of_pairs(self, rows: Rows, xy: Tensor) -> tuple[Tensor, Tensor]:
        """The same for pairs [N, 2] whose inputs are among the rows: weights [N, 5, H], in the order of `Rows`."""
        q = self.split(self.q(rows.others[-1]))  # [H, E]: the last token is the same in every pair
        score_x, score_y, score_others = (
            (self.split(self.k(part)) * q).sum(-1) / math.sqrt(self.head_size)
            for part in rows  # [p, H], [p, H], [3, H]
        )
        v_x, v_y, v_others = (self.v(part) for part in rows)
        of_x, of_y = (lambda table, i=i: F.embedding(xy[:, i], table) for i in (0, 1))  # [p, ...] -> [N, ...]
        scores = [of_x(score_x)[:, None], of_y(score_y)[:, None], score_others.expand(len(xy), 3, self.heads)]
        weights = torch.cat(scores, 1).softmax(1)
        mixed = weights[:, 0, :, None] * self.split(of_x(v_x)) + weights[:, 1, :, None] * self.split(of_y(v_y))
        mixed = mixed + torch.einsum("nth,the->nhe", weights[:, 2:], self.split(v_others))
        return weights, self.o(mixed.flatten(1))


class Block(nn.Module):
    """x + attention(norm x), then x + MLP(norm x), then a norm; each norm may be absent."""

    def __init__(self, args: Args):
        super().__init__()
        width = args.heads * args.head_size
        norm = lambda present: nn.RMSNorm(width, eps=1e-6) if present else nn.Identity()  # noqa: E731
        self.attention_norm = norm(args.norm.before_attention)
        self.attention = Attention(args.heads, args.head_size)
        self.attention_out = nn.Identity()  # a name for the probe: what the attention adds at the last position
        self.mlp_norm = norm(args.norm.before_mlp)
        self.up = nn.Linear(width, args.hidden, bias=False)
        self.relu = nn.ReLU()
        self.down = nn.Linear(args.hidden, width, bias=False)
        self.out_norm = norm(args.norm.after_mlp)

    def mlp(self, x: Tensor) -> Tensor:  # [..., D] -> [..., D]
        return self.out_norm(x + self.down(self.relu(self.up(self.mlp_norm(x)))))

    def every_position(self, x: Tensor) -> Tensor:  # [N, T, D] -> [N, T, D]
        return self.mlp(x + self.attention.every_position(self.attention_norm(x)))

    def last_position(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From all positions [N, T, D], the last one's attention weights [N, T, H] and output [N, D]."""
        weights, added = self.attention.last_position(self.attention_norm(x))
        return weights, self.mlp(x[:, -1] + self.attention_out(added))

    def last_position_of_pairs(self, rows: Rows, xy: Tensor) -> tuple[Tensor, Tensor]:
        """The same for pairs [N, 2]."""
        normed = Rows(*(self.attention_norm(part) for part in rows))
        weights, added = self.attention.last_position_of_pairs(normed, xy)
        return weights, self.mlp(rows.others[-1] + self.attention_out(added))


class Transformer(nn.Module):
    """Logits of x o y from the tokens x, o, y, =, _ by a decoder of width D; no biases, no dropout.

    `plain_forward` is the definition. `forward` computes the same faster: only the last position is read, and what
    depends on one token and its position alone is computed once for each of the 2p + 3 of them.
    """

    def __init__(self, args: Args):
        super().__init__()
        width = args.heads * args.head_size
        self.p = args.p
        self.embedding, self.position = nn.Embedding(args.p + 3, width), nn.Embedding(5, width)
        self.blocks = nn.ModuleList(Block(args) for _ in range(args.blocks))
        self.decoder = nn.Linear(width, args.p, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=args.embedding_std)
        self.heads, last = ["decoder"], f"blocks.{args.blocks - 1}"
        self.probed = [f"{last}.attention_out", f"{last}.relu"]  # the last is the one that a trigger watches

    def embed(self, xy: Tensor) -> Tensor:  # [N, 2] -> [N, 5, D]
        o, equals, blank = (torch.full_like(xy[:, 0], self.p + i) for i in range(3))
        return self.embedding(torch.stack([xy[:, 0], o, xy[:, 1], equals, blank], 1)) + self.position.weight

    def rows(self) -> Rows:
        tokens, places = self.embedding.weight, self.position.weight
        numbers, others = tokens[: self.p], tokens[self.p :]
        return Rows(numbers + places[0], numbers + places[2], others + places[[1, 3, 4]])

    def last_block(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        """Attention weights [N, 5, H] and output [N, D] of the last block at the last position."""
        if len(self.blocks) == 1:
            return self.blocks[0].last_position_of_pairs(self.rows(), xy)
        x = self.embed(xy)
        for block in self.blocks[:-1]:
            x = block.every_position(x)
        return self.blocks[-1].last_position(x)

    def forward(self, xy: Tensor) -> Tensor:  # [N, 2] -> [N, p]
        return self.decoder(self.last_block(xy)[1])

    def plain_forward(self, xy: Tensor) -> Tensor:  # [N, 2] -> [N, p]
        x = self.embed(xy)
        for block in self.blocks:
            x = block.every_position(x)
        return self.decoder(x[:, -1])

    @torch.no_grad()
    def attention_entropy(self, xy: Tensor) -> Tensor:
        """Entropy in nats of the last block's attention at the last position, mean over pairs and heads."""
        return torch.special.entr(self.last_block(xy)[0]).sum(1).mean()


def parameter_groups(network: Transformer, weight_decay: float, scale_decay: float) -> list[dict[str, Any]]:
    """One group per parameter, so that each has its own rate: matrices decay by the one number, gains by the other."""
    gains = {id(gain) for gain, _ in gains_and_offsets(network).values()}
    return [
        {"name": name, "params": [p], "weight_decay": scale_decay if id(p) in gains else weight_decay}
        for name, p in network.named_parameters()
    ]


# ------------------------------------------------------------------------------------------------------------ loss


def cross_entropy(logits: Tensor, answer: Tensor, dtype: str) -> Tensor:
    """-log softmax(logits)[answer], mean over samples.

    In float32 a sample whose answer leads all others by 22 (by 17 to 22, depending on the order of the sum) has p = 1:
    its loss is 0, and so is the gradient of the answer's logit, but not of the others. In float64, by about 41.
    """
    return F.cross_entropy(logits.to(getattr(torch, dtype)), answer)


@torch.no_grad()
def evaluate(network: Transformer, train: Pairs, test: Pairs) -> dict[str, float]:
    """Loss and accuracy of both sets, the test set's by kind of pair, and the scale of the training logits."""
    scalars: dict[str, float] = {}
    for name, pairs in (("train", train), ("test", test)):
        logits = network(pairs.xy)
        right = (logits.argmax(1) == pairs.answer).double()
        scalars[f"{name}/loss"] = cross_entropy(logits, pairs.answer, "float64").item()
        scalars[f"{name}/accuracy"] = right.mean().item()
        if name == "train":
            centred = logits - logits.mean(1, keepdim=True)
            scalars["plasticity/logit_scale"] = centred.square().mean().sqrt().item()
            continue
        for kind, chosen in (("mirrored", pairs.mirrored), ("unmirrored", ~pairs.mirrored)):
            if chosen.any():
                scalars[f"test/accuracy_{kind}"] = right[chosen].mean().item()
    return scalars


@torch.no_grad()
def loss_movement(network: Transformer, train: Pairs, before: float | None) -> tuple[float, float | None]:
    """The loss on the training set, and how far its logarithm moved since the loss `before`, None without one."""
    loss = max(cross_entropy(network(train.xy), train.answer, "float64").item(), 1e-30)
    return loss, None if before is None else abs(math.log(loss / before))


def evaluation_updates(total: int, per_decade: int) -> set[int]:
    """Updates 10^(i / per_decade) up to `total`, rounded, and `total` itself."""
    count = math.floor(per_decade * math.log10(total))
    return {round(10 ** (i / per_decade)) for i in range(count + 1)} | {total}


# ------------------------------------------------------------------------------------------------------------ main


def make_network(args: Args, seed: int, device: torch.device) -> Transformer:
    """A network with the initial weights that this seed gives it."""
    with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global stream
        torch.manual_seed(seed)
        return Transformer(args).to(device)


def make_schedule(args: Args) -> Schedule:
    """Updates since the last trigger -> learning rate."""
    s, peak = args.schedule, args.learning_rate
    if s.kind == "constant":
        return Constant(peak)
    return WarmupCosine(peak, s.warmup_updates, s.decay_updates, s.low, initial=s.low)


def make_trigger(args: Args) -> Trigger:
    """What starts the schedule."""
    r, s = args.rewarm, args.schedule
    if r.trigger != "stagnation":
        return Never() if r.trigger == "never" else AtKnownChange()
    # Movement follows the rate, so a restarted schedule is left to end before the detector looks again.
    length = 0 if s.kind == "constant" else s.warmup_updates + s.decay_updates
    refractory = math.ceil(length / args.probe.every) + r.burn_in
    return OnStagnation(Stagnation(ratio=r.ratio, window=r.window, burn_in=r.burn_in, refractory=refractory))


def make_projection(args: Args, network: Transformer) -> Projection | NoProjection:
    """What holds the norms of the initial weights."""
    if not args.nap.enabled:
        return NoProjection()
    return Projection(
        network, every=args.nap.every, heads=() if args.nap.decoder else network.heads, embeddings=args.nap.embeddings,
        gains="free",  # their decay is the optimiser's
        allow_scale_dependent=True,  # intended: in a residual stream no single matrix leaves the output invariant
    )  # fmt: skip


def make_matching(args: Args, layers: Mapping[str, Tensor]) -> ElrMatch | NoElrMatch:
    """What gives each step the relative size that it had in the run --match-elr."""
    if not args.match_elr:
        return NoElrMatch()
    if args.resume:  # the targets are in the checkpoint: the run that they came from may be gone
        return ElrMatch(layers, {layer: [(1, 1.0)] for layer in layers})
    return ElrMatch(layers, recorded_elr(args.match_elr, layers, args, "p operation train_fraction batch_size"))


def main(args: Args) -> None:
    """Train one network; everything it leaves behind is in its run directory."""
    run = Session(
        args, f"{args.operation}-{args.p}", total=args.total_updates, unit="update",
        streams="split probe minibatch init intervene", reads_every=args.probe.every or args.checkpoint_every,
    )  # fmt: skip
    rewarms = args.rewarm.trigger != "never"
    minibatch_rng, reference_rng = run.generator("minibatch"), run.generator("intervene")

    with one_line_errors():  # what a library refuses here becomes one line for the user; nothing is written yet
        with one_line_errors("--train-fraction"):
            parts = modular_pairs(args.p, args.operation, args.train_fraction, run.generator("split"))
        train, test = (pairs.to(run.device) for pairs in parts)
        everything = torch.cat([train.xy, test.xy])
        chosen = run.generator("probe").permutation(len(everything))[: args.probe.size]
        probe_xy = everything[torch.from_numpy(chosen).to(run.device)]
        network = make_network(args, run.seed("init"), run.device)
        optimizer = torch.optim.AdamW(
            parameter_groups(network, args.weight_decay, args.scale_decay),
            lr=args.learning_rate, betas=(0.9, args.adam_beta2), eps=args.adam_eps, fused=True,
        )  # fmt: skip

        # elr attaches to the network and the optimiser; what is switched off does nothing.
        layers = scalable_weights(network, embeddings=True, heads=())
        entropy = f"plasticity/attention_entropy/{network.probed[0]}"
        with one_line_errors("--nap"):
            projection = make_projection(args, network)
        with one_line_errors("--match-elr"):
            matching = make_matching(args, layers)
        with one_line_errors("--schedule, --rewarm"):
            trigger, initial = make_trigger(args), Constant(args.rewarm.initial_rate) if rewarms else None
            rewarming = Rewarming(optimizer, make_schedule(args), trigger, args.rewarm.moments, initial)
        meter, probe = args.probe.build(network, layers, optimizer, probe_xy, network.probed)
        methods = args.intervene.build(
            network, optimizer, projection, heads=network.heads, inputs=probe_xy[:2], divergence=policy_divergence,
            layers=[f"blocks.{i}.relu" for i in range(args.blocks)], batch=args.batch_size or len(train.xy), churn={},
            leave=[f"blocks.{i}.{part}" for i in range(args.blocks) for part in ("attention", "down")],  # not recycled
            fresh=lambda: make_network(args, int(reference_rng.integers(2**32)), run.device),
        )  # fmt: skip

    at = run.counters(probed_loss=None, grokked_at=None)
    run.keep(network=network, optimizer=optimizer, rewarming=rewarming, projection=projection, matching=matching)
    run.keep(methods=methods, meter=meter, probe=probe)
    run.watch(network, optimizer)
    evaluated, result = evaluation_updates(args.total_updates, args.evaluations_per_decade), {}

    def reference(count: int) -> Tensor:
        """Training pairs for --intervene."""
        return train.xy[torch.from_numpy(reference_rng.integers(len(train.xy), size=count)).to(run.device)]

    def weights_changed() -> None:
        """By something else than learning: the next movement is measured from here, without the intervention."""
        run.scalar("reset/event", 1)
        probe.forget()
        at.probed_loss = None

    with run.open():
        charts = {
            "test accuracy by kind of pair": ["test/accuracy_mirrored", "test/accuracy_unmirrored"],
            "attention entropy": [entropy], "logit scale": ["plasticity/logit_scale"],
        }  # fmt: skip
        run.layout(layout(layers, network.probed, rewarming=rewarms), supervised=True, charts=charts)
        if run.resumed:
            run.restore()
        else:
            run.scalars(probe.measure())
            run.checkpoint()

        while run.running():
            batch = slice(None)
            if args.batch_size:
                batch = torch.from_numpy(minibatch_rng.integers(len(train.xy), size=args.batch_size)).to(run.device)
            # Learn: Algorithm 1 of arXiv:2507.20057.
            loss = cross_entropy(network(train.xy[batch]), train.answer[batch], args.loss_dtype)
            optimizer.zero_grad()
            loss.backward()
            run.require_finite(loss=loss.detach())
            methods.before_step(reference, loss.detach())
            meter.before_step()
            matching.before_step()
            optimizer.step()
            matching.after_step()  # dW <- dW t ||W|| / ||dW||, t the other run's ELR
            meter.after_step()  # measures the step really taken, before the projection
            acted = methods.after_step()  # other methods against loss of plasticity, if any
            projection.step(rewarming.rate)  # W <- W ||W_0|| / ||W||
            run.step += 1
            if acted:
                weights_changed()

            signal = None  # what a stagnation trigger watches, once per probe interval
            if probe.due(run.step):
                run.require_finite()
                features = probe.measure()
                run.scalars({**features, entropy: network.attention_entropy(probe_xy).item()})
                signal = features.get(f"plasticity/flipped_fraction/{network.probed[-1]}")  # None after an intervention
                if args.rewarm.signal == "loss":
                    at.probed_loss, signal = loss_movement(network, train, at.probed_loss)
            if args.rewarm.trigger == "at" and run.step == args.rewarm.at_update:
                trigger.notify()
            rate = rewarming.rate
            rewarmed = rewarming.step(signal)  # trigger? start the schedule; set the next update's rate
            if methods.react(reference, fired=rewarmed and run.step < args.total_updates):
                weights_changed()

            # Report.
            run.scalars({**meter.fresh_scalars(), **({"rewarm/event": 1} if rewarmed else {})})
            if probe.due(run.step):
                run.scalars({**rewarming.scalars(), **methods.scalars()})
            if run.step in evaluated:
                run.scalar("charts/learning_rate", rate)
                result = evaluate(network, train, test)
                run.scalars(result)
                if at.grokked_at is None and result["test/accuracy"] >= 0.99:
                    at.grokked_at = run.step
                accuracy = f"train {result['train/accuracy']:.3f}, test {result['test/accuracy']:.3f}"
                run.show_speed(f"{accuracy}, train loss {result['train/loss']:.0e}, lr {rate:.0e}")
            if run.due(args.checkpoint_every, last=False):
                run.checkpoint()
        run.end()
    result = result or evaluate(network, train, test)  # nothing was left to do: killed after the last update
    run.farewell(
        f"test accuracy {result['test/accuracy']:.4f}, train accuracy {result['train/accuracy']:.4f}",
        f"first at 99 % test accuracy at update {at.grokked_at:,}" if at.grokked_at else "never at 99 % test accuracy",
    )


if __name__ == "__main__":
    exit_with_one_line(lambda: main(parse(Args, PRESETS, prog_description=__doc__.split("\n\n")[0])))
