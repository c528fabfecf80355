"""Grokking modular addition: a large enough effective learning rate switches generalisation on, in one file.

    python agents/grokking.py                                 weights projected, rate 1e-2
    python agents/grokking.py free                            the same without projection
    python agents/grokking.py low                             projected, rate 1e-4
    python agents/grokking.py free --match-elr RUN            without projection, with the relative steps of RUN
    python agents/grokking.py adaptive                        starts at 1e-4, re-warms when its features come to rest
    python agents/grokking.py --resume runs/logs/RUN          go on with a killed or interrupted run

Measured: the default is first at 99 % of the test pairs after 282 to 1,679 of its 2,000 updates on 5 of 5 seeds (on
another machine, whose sums round differently, after 398 to 841); `free` ends at 6 to 12 % (n = 3). It takes a minute
and a half on two cores. fig3-0.01 ends at 99 % on 9 of 9 runs. All numbers, with n: docs/results.md.

The network sees the five tokens "x o y = _" and predicts x o y mod p in the place of the last; it is trained on a fifth
of all ordered pairs (x, y) and tested on the others. A network that has merely learned that x + y = y + x answers the
test pairs whose mirror it was trained on, about 20 % of them: accuracy is reported for both kinds.

The method is Algorithm 1 of Lyle et al. 2025 (arXiv:2507.20057): optimiser step -> project -> re-warm? -> set the rate;
those lines stand in this order in `main`. The presets fig2-left-*, fig2-right-*, fig3-* and fig8 are arms of the
paper's grokking figures at a smaller scale: 20,000, 6,000, 9,000 and 2,000 updates where it has up to 1,000,000.

Deviations. The paper leaves the output layer out of the projection; here it and the embeddings are held too, as no norm
layer bounds what they do (--nap.no-decoder, --nap.no-embeddings). Gains of norm layers are not rescaled, only decayed
(--scale-decay). The trigger of `adaptive` is ours; the paper re-warms on a fixed cycle or by CUSUM.
Where the paper is silent or contradicts itself: the training set is one batch, and the long figures draw 512 pairs for
each update (--batch-size); one attention block, as its text says (its Table 1 says two: --blocks); linear weights start
as N(0, 1 / fan_in), embeddings as N(0, 0.07^2) (--embedding-std); "after the MLP" is a norm on the block's output; the
arms of fig2-right have rate 1e-2 and their gains decay as their matrices do; fig3 has both decays at 1, a warm-up of
500 and a cosine of 3,500 updates, and Adam's beta2 at 0.95 for the paper's 0.999: where gradients have long been small,
the second moment holds back too little when they return, and single runs are thrown to chance (docs/results.md).
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from elr.matching import ElrMatch
from elr.measure import Meter
from elr.probe import Probe
from elr.projection import Projection
from elr.rewarming import Rewarming
from elr.schedules import Constant, Schedule, WarmupCosine
from elr.stagnation import Stagnation
from elr.triggers import AtKnownChange, Never, OnStagnation, Trigger
from elr.weights import gains_and_offsets, scalable_weights
from runs.recording import (
    NonFiniteError,
    Preset,
    Run,
    StopOnSignal,
    config_to_dict,
    describe_nonfinite,
    exit_with_one_line,
    one_line_errors,
    parse,
    read_json,
    read_scalars,
    read_status,
    reject_unused,
    restore_rng,
    rng_state,
    weights_and_gradients,
)

# ------------------------------------------------------------------------------------------------------------ flags


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
    """Start the schedule again (Algorithm 1)."""

    trigger: Literal["never", "at", "stagnation"] = "never"
    """never: the schedule runs once, from the start; at, stagnation: a constant low rate comes first, until the given
    update, or until features (or the loss) have come to rest"""
    initial_rate: float = 1e-4
    """that low rate"""
    at_update: int = 5000
    """the given update (trigger at)"""
    moments: Literal["keep", "reset"] = "keep"
    """Adam's moments at a trigger"""
    signal: Literal["movement", "loss"] = "movement"
    """what comes to rest: the activation pattern of the MLP, or the logarithm of the loss on the training set"""
    ratio: float = 0.1
    """at rest is what moves at most this share of its largest movement"""
    window: int = 5
    """probe intervals averaged"""
    burn_in: int = 10
    """probe intervals without a trigger, counted from the start, and again from the end of a restarted schedule: from
    the first trigger on, about a fixed cycle"""


@dataclass(frozen=True)
class ProbeArgs:
    """Measurements that never change training."""

    every: int = 50
    """updates between feature-learning measurements (the interval T of Delta_C, Delta_A); 0 is off"""
    size: int = 256
    """pairs in the probe, drawn from all ordered pairs"""
    tau: float = 0.1
    """a unit is dormant when its share of the layer's mean activation is at most tau"""
    meter_every: int = 50
    """updates between measurements of the realised effective learning rate and the norms; 0 is off"""


@dataclass(frozen=True)
class Args:
    """Grokking: every flag, its default, its meaning."""

    p: int = 117
    """modulus; 117 = 9 x 13 is the paper's"""
    operation: Literal["add", "subtract", "multiply", "divide"] = "add"
    """x o y mod p; divide takes the y that have an inverse"""
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
    """training pairs per update, drawn with replacement; 0 takes all of them"""
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
    """run directory whose realised ELR each matrix is to have: relative steps of a projected run, without projection"""
    norm: NormArgs = field(default_factory=NormArgs)
    nap: NapArgs = field(default_factory=NapArgs)
    schedule: ScheduleArgs = field(default_factory=ScheduleArgs)
    rewarm: RewarmArgs = field(default_factory=RewarmArgs)
    probe: ProbeArgs = field(default_factory=ProbeArgs)
    evaluations_per_decade: int = 40
    """evaluations, evenly spaced in the logarithm of the update, for each factor of ten"""
    checkpoint_every: int = 1000
    """updates between checkpoints"""
    device: str = "cpu"
    """cpu or cuda; the latter has not been run yet"""
    threads: int = 2
    """CPU threads"""
    exp_name: str = "grokking"
    """first part of the run's name"""
    directory: Path | None = None
    """run directory; default runs/logs/<exp_name>__<operation>-<p>__s<seed>__<time>"""
    resume: Path | None = None
    """run directory to go on with; all other flags come from its config.json"""

    def __post_init__(self) -> None:
        positive = "total_updates learning_rate adam_eps blocks heads head_size hidden embedding_std"
        for name in [*positive.split(), "evaluations_per_decade", "checkpoint_every", "threads"]:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}")
        if self.p < 2:
            raise ValueError(f"--p {self.p} leaves nothing to predict: give at least 2")
        if not 0.0 < self.train_fraction < 1.0:
            raise ValueError(f"--train-fraction must lie between 0 and 1, not {self.train_fraction}")
        if not 0.0 <= self.adam_beta2 < 1.0:
            raise ValueError(f"--adam-beta2 must lie in [0, 1), not {self.adam_beta2}")
        for name in ("weight_decay", "scale_decay", "batch_size"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 0, not {getattr(self, name)}")
        for name in ("weight_decay", "scale_decay"):
            if self.learning_rate * getattr(self, name) > 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} times --learning-rate {self.learning_rate} "
                    "is above 1 and would turn the weights round"
                )
        if min(self.probe.every, self.probe.meter_every) < 0 or self.probe.size < 2:
            raise ValueError("--probe.every and --probe.meter-every must be >= 0, --probe.size at least 2")
        if not self.device.startswith(("cpu", "cuda")):
            raise ValueError(f"--device {self.device} is not supported: use cpu or cuda")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"--device {self.device}: this torch sees no GPU; install a CUDA build or use --device cpu"
            )
        self._refuse_inert_flags()

    def _refuse_inert_flags(self) -> None:
        if not self.nap.enabled:
            reject_unused("nap", self.nap, ["every", "embeddings", "decoder"], "without --nap.enabled")
        elif self.nap.every < 1:
            raise ValueError(f"--nap.every {self.nap.every} is no number of updates: give at least 1")
        elif self.nap.every > self.total_updates:
            raise ValueError(f"--nap.every {self.nap.every} projects never in --total-updates {self.total_updates}")
        if self.match_elr and self.nap.enabled:
            raise ValueError(
                "--match-elr changes nothing with --nap.enabled, which holds the norms: use --nap.no-enabled"
            )
        if self.match_elr and (self.schedule.kind != "constant" or self.rewarm.trigger != "never"):
            raise ValueError(
                "--match-elr sets the size of every step, so that --schedule.kind and --rewarm.trigger do nothing: "
                "leave them at constant and never"
            )
        if self.schedule.kind == "constant":
            reject_unused("schedule", self.schedule, ["low", "warmup_updates", "decay_updates"], "with a constant rate")
        elif self.schedule.low >= self.learning_rate:
            raise ValueError(f"--schedule.low {self.schedule.low} is not below --learning-rate {self.learning_rate}")
        rewarm, stagnation = self.rewarm, ["signal", "ratio", "window", "burn_in"]
        unused = {
            "never": ["initial_rate", "at_update", "moments", *stagnation],
            "at": stagnation,
            "stagnation": ["at_update"],
        }
        reject_unused("rewarm", rewarm, unused[rewarm.trigger], f"with --rewarm.trigger {rewarm.trigger}")
        if rewarm.trigger != "never" and not 0 < rewarm.initial_rate <= self.learning_rate:
            raise ValueError(
                f"--rewarm.initial-rate {rewarm.initial_rate} must be positive and at most --learning-rate "
                f"{self.learning_rate}, to which it is to be warmed"
            )
        if rewarm.trigger == "stagnation" and rewarm.burn_in * self.probe.every >= self.total_updates:
            raise ValueError(
                f"--rewarm.burn-in {rewarm.burn_in} intervals of --probe.every {self.probe.every} updates leave no "
                f"time for a trigger in --total-updates {self.total_updates}"
            )
        if rewarm.trigger == "at" and not 0 < rewarm.at_update < self.total_updates:
            raise ValueError(
                f"--rewarm.at-update {rewarm.at_update} is not within --total-updates {self.total_updates}"
            )
        if self.probe.every == 0:
            if rewarm.trigger == "stagnation":
                raise ValueError(
                    "--rewarm.trigger stagnation is asked once per probe interval: --probe.every 0 is none"
                )
            reject_unused("probe", self.probe, ["size", "tau"], "with --probe.every 0")
        if self.scale_decay and not any((self.norm.before_attention, self.norm.before_mlp, self.norm.after_mlp)):
            raise ValueError(f"--scale-decay {self.scale_decay} has no gain to decay: turn a --norm on")


_FREE, _NORMS = NapArgs(enabled=False), NormArgs(before_attention=True, before_mlp=True, after_mlp=True)
_FIGURE = {"batch_size": 512, "probe": ProbeArgs(every=100, meter_every=100)}


def _presets() -> dict[str, Preset[Args]]:
    def fig3(peak: float) -> Args:
        return Args(
            exp_name=f"fig3-{peak:g}", norm=_NORMS, weight_decay=1.0, scale_decay=1.0, learning_rate=peak,
            adam_beta2=0.95, schedule=ScheduleArgs(kind="warmup-cosine", warmup_updates=500, decay_updates=3500),
            rewarm=RewarmArgs(trigger="at"), total_updates=9_000, **_FIGURE,
        )  # fmt: skip

    presets = {
        "free": Preset("as the default, unconstrained", Args(exp_name="free", nap=_FREE)),
        "low": Preset(
            "as the default, at rate 1e-4, for 6,000 updates",
            Args(exp_name="low", learning_rate=1e-4, total_updates=6_000),
        ),
        "adaptive": Preset(
            "norm layers, scale decay, 512 pairs, as fig3-0.01; re-warmed once its features have come to rest",
            replace(
                fig3(1e-2),
                exp_name="adaptive",
                adam_beta2=0.999,
                rewarm=RewarmArgs(trigger="stagnation"),
                total_updates=7_000,
            ),
        ),
    }
    for name, nap in (("free", _FREE), ("projected", NapArgs(every=100))):
        for rate in (1e-2, 1e-3, 1e-4):
            for decay in (0.01, 1.0):
                key = f"fig2-left-{name}-lr{rate:g}-wd{decay:g}"
                arm = Args(
                    exp_name=key, nap=nap, learning_rate=rate, weight_decay=decay, total_updates=20_000, **_FIGURE
                )
                held = "projected every 100 updates" if nap.enabled else "unconstrained"
                presets[key] = Preset(f"no norm layers, {held}, rate {rate:g}, decay {decay:g}, 20,000 updates", arm)
    for name, nap in (("free", _FREE), ("projected", NapArgs())):
        for scale in (False, True):
            for decay in (1.0, 10.0):
                key = f"fig2-right-{name}-{'scale-decay' if scale else 'plain'}-wd{decay:g}"
                arm = Args(
                    exp_name=key, nap=nap, norm=_NORMS, learning_rate=1e-2, weight_decay=decay,
                    scale_decay=decay if scale else 0.0, total_updates=6_000, **_FIGURE,
                )  # fmt: skip
                held = "projected every update" if nap.enabled else "unconstrained"
                gains = f"gains decay by {decay:g} too" if scale else "gains do not decay"
                presets[key] = Preset(f"norm layers, {held}, rate 1e-2, decay {decay:g}, {gains}; 6,000 updates", arm)
    for peak in (1e-2, 1e-3):
        presets[f"fig3-{peak:g}"] = Preset(
            f"norm layers and scale decay; rate 1e-4 until --rewarm.at-update, then warm-up and cosine from {peak:g}",
            fig3(peak),
        )
    presets["fig8"] = Preset(
        "the default, its probe every 10 updates: effective rank of the attention's output",
        Args(exp_name="fig8", probe=ProbeArgs(every=10)),
    )
    return presets


PRESETS = _presets()

# ------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Pairs:
    """Ordered pairs (x, y) and their answers."""

    xy: Tensor  # [N, 2] int64
    answer: Tensor  # [N] int64
    mirrored: Tensor  # [N] bool: (y, x) is another pair, and a training sample


def make_data(p: int, operation: str, train_fraction: float, rng: np.random.Generator) -> tuple[Pairs, Pairs]:
    """All pairs for which x o y mod p is defined, split at random into training and test set."""
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(p), np.arange(p), indexing="ij"))
    if operation == "divide":
        inverse = {int(b): pow(int(b), -1, p) for b in range(p) if math.gcd(int(b), p) == 1}
        defined = np.isin(y, list(inverse))
        x, y = x[defined], y[defined]
        answer = x * np.array([inverse[int(b)] for b in y]) % p
    else:
        answer = {"add": x + y, "subtract": x - y, "multiply": x * y}[operation] % p
    order = rng.permutation(len(x))
    train_size = round(train_fraction * len(x))
    if not 0 < train_size < len(x):
        raise ValueError(f"--train-fraction {train_fraction} of {len(x)} pairs leaves no training or no test sample")
    trained = np.zeros((p, p), dtype=bool)
    trained[x[order[:train_size]], y[order[:train_size]]] = True

    def part(index: np.ndarray) -> Pairs:
        a, b = x[index], y[index]
        mirrored = trained[b, a] & (a != b)
        return Pairs(torch.from_numpy(np.stack([a, b], 1)), torch.from_numpy(answer[index]), torch.from_numpy(mirrored))

    return part(order[:train_size]), part(order[train_size:])


# ---------------------------------------------------------------------------------------------------------- network


class Rows(NamedTuple):
    """The distinct inputs of the first block: every x in its place, every y in its place, and o, = and _ in theirs."""

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
        """Of a stream [N, T, D], the last position's weights [N, T, H] and output [N, D]."""
        q, k, v = self.split(self.q(x[:, -1])), self.split(self.k(x)), self.split(self.v(x))
        weights = (torch.einsum("nhe,nthe->nth", q, k) / math.sqrt(self.head_size)).softmax(1)
        return weights, self.o(torch.einsum("nth,nthe->nhe", weights, v).flatten(1))

    def last_position_of_pairs(self, rows: Rows, xy: Tensor) -> tuple[Tensor, Tensor]:
        """The same for the pairs [N, 2] whose inputs are among the rows: weights [N, 5, H], in the order of `Rows`."""
        q = self.split(self.q(rows.others[-1]))  # [H, E]: every pair asks with the same token in the same place
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
        """Of a stream [N, T, D], the last position's attention weights [N, T, H] and output [N, D]."""
        weights, added = self.attention.last_position(self.attention_norm(x))
        return weights, self.mlp(x[:, -1] + self.attention_out(added))

    def last_position_of_pairs(self, rows: Rows, xy: Tensor) -> tuple[Tensor, Tensor]:
        """The same for pairs [N, 2]."""
        normed = Rows(*(self.attention_norm(part) for part in rows))
        weights, added = self.attention.last_position_of_pairs(normed, xy)
        return weights, self.mlp(rows.others[-1] + self.attention_out(added))


class Transformer(nn.Module):
    """Logits of x o y from the tokens x, o, y, =, _ by a decoder of width D; no biases, no dropout.

    `plain_forward` is the definition. `forward` computes the same without what no logit needs: only the last position
    is read, and what depends on one token and its position alone is computed once for each of the 2p + 3 of them.
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

    def attention_entropy(self, xy: Tensor) -> Tensor:
        """Entropy in nats of the last block's attention at the last position, mean over pairs and heads."""
        return torch.special.entr(self.last_block(xy)[0]).sum(1).mean()


def parameter_groups(network: Transformer, weight_decay: float, scale_decay: float) -> list[dict[str, Any]]:
    """One group per parameter, so that each can have its own rate: matrices decay by the one, gains by the other."""
    gains = {id(gain) for gain, _ in gains_and_offsets(network).values()}
    return [
        {"name": name, "params": [p], "weight_decay": scale_decay if id(p) in gains else weight_decay}
        for name, p in network.named_parameters()
    ]


# ----------------------------------------------------------------------------------------------------------- losses


def cross_entropy(logits: Tensor, answer: Tensor, dtype: str) -> Tensor:
    """-log softmax(logits)[answer], mean over samples.

    In float32 a sample whose answer leads all others by more than about 22 (17 + ln 116) has p = 1: its loss is 0, and
    so is the gradient of the answer's logit, while the others' go on. In float64 that begins at about 41.
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


def movement(features: dict[str, float], layer: str, kind: str, loss: float, probed_loss: float | None) -> float | None:
    """What a stagnation trigger watches: how far the activation pattern, or the logarithm of the loss, moved since the
    last probe; None at the first loss."""
    if kind == "movement":
        return features[f"plasticity/flipped_fraction/{layer}"]
    return None if probed_loss is None else abs(math.log(loss / probed_loss))


def recorded_elr(directory: Path, args: Args, layers: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """The realised ELR of each layer in a projected run of the same task and length, as `ElrMatch` takes it."""
    config, scalars = read_json(directory / "config.json"), read_scalars(directory)
    for name in ("p", "operation", "train_fraction", "batch_size"):
        if config.get(name) != getattr(args, name):
            raise ValueError(
                f"{directory} has --{name.replace('_', '-')} {config.get(name)}, not {getattr(args, name)}"
            )
    if not config["nap"]["enabled"]:
        raise ValueError(f"{directory} is not projected itself (--nap.no-enabled): there is nothing to separate")
    if (reached := read_status(directory)["step"]) < args.total_updates:
        raise ValueError(f"{directory} ends at update {reached}, before --total-updates {args.total_updates}")
    missing = [layer for layer in layers if f"elr/{layer}" not in scalars]
    if missing:
        raise ValueError(f"{directory} holds no elr/{missing[0]}: it is not a run of this network with its meter on")
    return {layer: scalars[f"elr/{layer}"] for layer in layers}


def evaluation_updates(total: int, per_decade: int) -> set[int]:
    """Updates 10^(i / per_decade) up to `total`, rounded, and `total` itself."""
    count = math.floor(per_decade * math.log10(total))
    return {round(10 ** (i / per_decade)) for i in range(count + 1)} | {total}


# ------------------------------------------------------------------------------------------------------------- main


def make_schedule(args: Args) -> Schedule:
    """Updates since the last trigger -> learning rate."""
    s, peak = args.schedule, args.learning_rate
    if s.kind == "constant":
        return Constant(peak)
    return WarmupCosine(peak, s.warmup_updates, s.decay_updates, s.low, initial=s.low)


def schedule_updates(args: Args) -> int:
    """Updates until the schedule has ended."""
    return 0 if args.schedule.kind == "constant" else args.schedule.warmup_updates + args.schedule.decay_updates


def make_trigger(args: Args) -> Trigger:
    """What starts the schedule."""
    r = args.rewarm
    match r.trigger:
        case "never":
            return Never()
        case "at":
            return AtKnownChange()
        case "stagnation":
            # Movement follows the rate: a restarted schedule is let anneal before rest is looked for again.
            annealing = math.ceil(schedule_updates(args) / args.probe.every)
            return OnStagnation(
                Stagnation(ratio=r.ratio, window=r.window, burn_in=r.burn_in, refractory=annealing + r.burn_in)
            )


def run_directory(args: Args) -> Path:
    """--directory, or runs/logs/<exp_name>__<operation>-<p>__s<seed>__<time>."""
    return args.directory or Path(
        "runs/logs", f"{args.exp_name}__{args.operation}-{args.p}__s{args.seed}__{datetime.now():%Y%m%d-%H%M%S-%f}"
    )


def main(args: Args) -> None:
    """Train one network; everything it leaves behind is in its run directory."""
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)

    # Every random draw below comes from one of these streams.
    with one_line_errors("--seed"):
        streams = np.random.SeedSequence(args.seed).spawn(4)
    split_rng, probe_rng, minibatch_rng = (np.random.default_rng(s) for s in streams[:3])
    with one_line_errors("--device", also=(RuntimeError,)):
        device = torch.device(args.device)
        torch.empty(1, device=device)
    with one_line_errors():
        train, test = (
            Pairs(*(t.to(device) for t in (part.xy, part.answer, part.mirrored)))
            for part in make_data(args.p, args.operation, args.train_fraction, split_rng)
        )
    everything = torch.cat([train.xy, test.xy])
    probe_xy = everything[torch.from_numpy(probe_rng.permutation(len(everything))[: args.probe.size]).to(device)]
    with torch.random.fork_rng(devices=[]):  # torch's layers initialise themselves from the global stream
        torch.manual_seed(int(streams[3].generate_state(1)[0]))
        network = Transformer(args).to(device)
    optimizer = torch.optim.AdamW(
        parameter_groups(network, args.weight_decay, args.scale_decay),
        lr=args.learning_rate,
        betas=(0.9, args.adam_beta2),
        eps=args.adam_eps,
        fused=True,
    )

    # elr attaches to the network and the optimiser.
    layers = scalable_weights(network, embeddings=True, heads=())
    probed = [f"blocks.{args.blocks - 1}.{name}" for name in ("attention_out", "relu")]
    with one_line_errors("--schedule, --rewarm"):
        initial = Constant(args.rewarm.initial_rate) if args.rewarm.trigger != "never" else None
        trigger = make_trigger(args)
        rewarming = Rewarming(optimizer, make_schedule(args), trigger, args.rewarm.moments, initial)
    projection = matching = meter = probe = None
    if args.nap.enabled:
        with one_line_errors("--nap"):
            projection = Projection(
                network,
                every=args.nap.every,
                gains="free",  # their decay is the optimiser's
                heads=() if args.nap.decoder else ["decoder"],
                embeddings=args.nap.embeddings,
                allow_scale_dependent=True,  # meant: in a residual stream no single matrix leaves the output invariant
            )
    if args.match_elr:
        with one_line_errors("--match-elr"):
            # A resumed run finds its targets in its checkpoint; the run that they came from may be gone.
            unset = {layer: [(1, 1.0)] for layer in layers}
            matching = ElrMatch(layers, unset if args.resume else recorded_elr(args.match_elr, args, layers))
    if args.probe.meter_every:
        meter = Meter(layers, every=args.probe.meter_every, optimizer=optimizer, nominal_power=1)
    if args.probe.every:
        with one_line_errors("--probe"):
            probe = Probe(network, probe_xy, probed, every=args.probe.every, tau=args.probe.tau)

    stateful: dict[str, Any] = {
        "network": network, "optimizer": optimizer, "rewarming": rewarming, "projection": projection,
        "matching": matching, "meter": meter, "probe": probe,
    }  # fmt: skip
    stateful = {name: part for name, part in stateful.items() if part is not None}
    evaluated = evaluation_updates(args.total_updates, args.evaluations_per_decade)
    updates, probed_loss, grokked_at, accuracy = 0, None, None, {}

    def require_finite(what: str = "") -> None:
        """Stop before a broken network is saved, measured or stepped; the checkpoint on disk is from before."""
        named = list(weights_and_gradients(network))
        if what or not all(bool(torch.isfinite(t).all()) for _, t in named):
            raise NonFiniteError(
                f"{what or 'a network that is'} not finite at update {updates}, learning rate {rewarming.rate:g}: "
                f"{describe_nonfinite(named)}; the last checkpoint is from before"
            )

    def checkpoint() -> None:
        require_finite()
        counters = {"updates": updates, "probed_loss": probed_loss, "grokked_at": grokked_at}
        draws = {"minibatch_rng": rng_state(minibatch_rng)}
        run.checkpoint(updates, counters | draws | {n: part.state_dict() for n, part in stateful.items()})

    def signal_now() -> float | None:
        """Measure what is due at this update, and return what the trigger is to look at, if it is to look now."""
        nonlocal probed_loss
        if isinstance(trigger, AtKnownChange) and updates == args.rewarm.at_update:
            trigger.notify()
        if not probe or not probe.due(updates):
            return None
        require_finite()
        features = probe.measure()
        run.scalars(features, updates)
        with torch.no_grad():
            run.scalar(f"plasticity/attention_entropy/{probed[0]}", network.attention_entropy(probe_xy).item(), updates)
            train_loss = max(cross_entropy(network(train.xy), train.answer, "float64").item(), 1e-30)
        signal = movement(features, probed[1], args.rewarm.signal, train_loss, probed_loss)
        probed_loss = train_loss
        return signal if isinstance(trigger, OnStagnation) else None

    if args.resume:
        run = Run.resume(args.resume, device=device)
    else:
        run = Run.create(run_directory(args), config_to_dict(args), argv=sys.argv, device=device)
    with run, StopOnSignal() as stop:
        if args.resume:
            state = run.take_state()
            misfit = f"{args.resume}: the checkpoint does not fit this version of the script"
            with one_line_errors(misfit, also=(KeyError, RuntimeError)):
                for name, part in stateful.items():
                    part.load_state_dict(state[name])
                restore_rng(minibatch_rng, state["minibatch_rng"])
                updates, probed_loss, grokked_at = state["updates"], state["probed_loss"], state["grokked_at"]
        else:
            charts = {
                "test accuracy by kind of pair": ["test/accuracy_mirrored", "test/accuracy_unmirrored"],
                "attention entropy": [f"plasticity/attention_entropy/{probed[0]}"],
                "logit scale": ["plasticity/logit_scale"],
            }
            rewarms = args.rewarm.trigger != "never"
            run.layout(list(layers), probed, supervised=True, rewarming=rewarms, charts=charts)
            if probe:
                run.scalars(probe.measure(), updates)
            checkpoint()
        training, start_update, shown = 0.0, updates, 0.0  # seconds of updates, without what is evaluated
        while updates < args.total_updates and not stop.requested:
            started = time.perf_counter()
            batch = slice(None)
            if args.batch_size:
                batch = torch.from_numpy(minibatch_rng.integers(len(train.xy), size=args.batch_size)).to(device)
            # Algorithm 1 of arXiv:2507.20057.
            loss = cross_entropy(network(train.xy[batch]), train.answer[batch], args.loss_dtype)
            optimizer.zero_grad()
            loss.backward()
            if not math.isfinite(loss.item()):
                require_finite(f"loss {loss.item()},")
            for part in (meter, matching):
                if part:
                    part.before_step()
            optimizer.step()
            if matching:
                matching.after_step()  # dW <- dW t ||W|| / ||dW||, t the other run's ELR
            measured = meter is not None and meter.after_step()  # the step really taken, before the projection
            if projection:
                projection.step(rewarming.rate)  # W <- W ||W_0|| / ||W||
            updates += 1
            rate = rewarming.rate
            rewarmed = rewarming.step(signal_now())  # trigger? start the schedule; set the next update's rate

            # Report.
            training += time.perf_counter() - started
            if measured:
                run.scalars(meter.scalars(), updates)
            if rewarmed:
                run.scalar("rewarm/event", 1, updates)
            if probe and probe.due(updates) and rewarming.statistic is not None:
                run.scalar("rewarm/statistic", rewarming.statistic, updates)
            if updates in evaluated:
                run.scalar("charts/learning_rate", rate, updates)
                accuracy = evaluate(network, train, test)
                run.scalars(accuracy, updates)
                if grokked_at is None and accuracy["test/accuracy"] >= 0.99:
                    grokked_at = updates
                if time.perf_counter() - shown > 2 or updates == args.total_updates:
                    shown = time.perf_counter()
                    print(
                        f"update {updates:>7,} of {args.total_updates:,}   train {accuracy['train/accuracy']:.3f}   "
                        f"test {accuracy['test/accuracy']:.3f}   train loss {accuracy['train/loss']:.1e}   "
                        f"learning rate {rate:.1e}   {(updates - start_update) / training:.1f} updates/s",
                        flush=True,
                    )
            if updates % args.checkpoint_every == 0 and updates < args.total_updates:
                checkpoint()

        checkpoint()
        if updates < args.total_updates:
            run.interrupt(updates)
            command = shlex.join([sys.executable, sys.argv[0], "--resume", str(run.directory)])
            print(f"\nstopped at update {updates}; go on with: {command}")
            raise SystemExit(130)
        run.finish(updates)
    print(f"\nfinished {updates:,} updates in {run.directory}")
    if accuracy:
        print(f"test accuracy {accuracy['test/accuracy']:.4f}, train accuracy {accuracy['train/accuracy']:.4f}")
    print(f"first at 99 % test accuracy after {grokked_at:,} updates" if grokked_at else "never at 99 % test accuracy")
    print(f"look at it with: tensorboard --logdir {run.directory}")


if __name__ == "__main__":
    exit_with_one_line(lambda: main(parse(Args, PRESETS, prog_description=__doc__.split("\n\n")[0])))
