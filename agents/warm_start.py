"""Warm-starting an image classifier: a network trained on part of the data first, against a fresh one, in one file.

    python agents/warm_start.py                               digits: projected, re-warmed when the data grow
    python agents/warm_start.py unconstrained                 digits: no projection, one long decay
    python agents/warm_start.py fig4-projected-0.1 --data-folder cifar-10-batches-bin
    python agents/warm_start.py --resume runs/logs/RUN        go on with a killed or interrupted run

The digits show the machinery within half a minute; they are too easy for a gap (359 test images: one is 0.28 points).
The figures' presets use CIFAR-10, read from --data-folder or downloaded once (170 MB). Measured on 20,000 of its images
(--batches 1 2, n = 5): gap 0.60 points for fig4-projected-0.1, 3.70 for fig5-right-unconstrained-single.
All numbers, with n: docs/results.md.

Phase k trains on the first `fractions[k]` of a shuffled training set, each phase for the same number of updates (or of
epochs). From the last switch on, a fresh network, the control, learns beside the warm one from the same minibatches.
What the run is about is the gap: test accuracy of the fresh network minus that of the warm one, in points.

The method is Algorithm 1 of Lyle et al. 2025 (arXiv:2507.20057): optimiser step -> project -> re-warm? -> set the rate;
those lines stand in this order in `main`. The presets fig4-*, fig5-left-*, fig5-right-*, fig9-* and fig13-* are arms of
that paper's figures at a smaller budget; shrink-and-perturb, reset, reset-head, l2-init and weight-decay are the
baselines.

Deviations. Where the paper is silent: strides 2, 2, 1 and 256 hidden units (--strides, --hidden); minibatches are drawn
without replacement, in a new order every epoch; pixels are normalised by channel with the training set's mean and
deviation; all matrices decay, gains, offsets and biases do not. The paper's hidden layer has no norm; here it has one,
as projection presumes scale invariance (--no-hidden-norm with --nap.allow-scale-dependent is theirs). "LayerNorm" of a
convolution is over channels and space, with a gain and an offset per channel; the ResNet-18 has the same norm, which
unlike BatchNorm sees each image alone, and is scale-invariant just as well.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from elr.changepoint import Cusum
from elr.interventions import L2Init, reset_, shrink_and_perturb_
from elr.layerwise import layerwise_groups
from elr.measure import Meter
from elr.moments import reset_moments_
from elr.probe import Probe
from elr.projection import Projection
from elr.rewarming import Rewarming
from elr.schedules import Constant, Schedule, WarmupCosine
from elr.triggers import AtKnownChange, Every, Never, OnCusum, Trigger
from elr.weights import gains_and_offsets, scalable_weights
from envs.images import Images, load_images
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
    read_scalars,
    reject_unused,
    restore_rng,
    rng_state,
    weights_and_gradients,
)

# ------------------------------------------------------------------------------------------------------------ flags


@dataclass(frozen=True)
class NapArgs:
    """Normalize-and-project: hold every hidden weight tensor at its initial norm."""

    enabled: bool = True
    """project the weights"""
    every: int = 1
    """updates between projections"""
    gains: Literal["joint", "regularise", "decay", "free"] = "joint"
    """gains g and offsets b of norm layers: hold their joint norm, pull them to 1 and 0, decay g to 0, or leave them"""
    gain_strength: float = 0.0
    """strength of regularise or decay, multiplied by the fastest layer's rate as in decoupled weight decay"""
    allow_scale_dependent: bool = False
    """project even a network whose output changes when a weight tensor is scaled"""


@dataclass(frozen=True)
class ScheduleArgs:
    """Learning rate as a function of the updates since the last trigger; its peak is --learning-rate."""

    kind: Literal["constant", "warmup-cosine"] = "warmup-cosine"
    """shape of the schedule"""
    low: float = 1e-6
    """rate at the start of the warm-up and at the end of the cosine"""
    warmup_frac: float = 0.05
    """share of the schedule spent rising"""


@dataclass(frozen=True)
class RewarmArgs:
    """Start the schedule again (Algorithm 1)."""

    trigger: Literal["never", "switch", "cusum", "cycle"] = "switch"
    """never: one decay over the whole run; switch: when the data grow (told); cusum: at a change point in the loss,
    the decay being as long as the first phase, and after an alarm as the last; cycle: a fixed number in the run"""
    cycles: int = 5
    """decays in the run (trigger cycle)"""
    peak_factor: float = 1.0
    """peak of the schedule after a trigger, as a multiple of --learning-rate"""
    moments: Literal["keep", "reset"] = "keep"
    """Adam's moments at a trigger (cusum, cycle; at a switch --switch.optimizer decides)"""
    threshold: float = 10.0
    """CUSUM alarm threshold h, in standard deviations of a block mean"""
    slack: float = 1.0
    """CUSUM slack k: half the smallest shift of interest, in standard deviations"""
    block: int = 20
    """updates averaged into one value of the CUSUM, whose logarithm is tested"""
    burn_in: int = 20
    """blocks from which mean and deviation are estimated before the CUSUM may fire"""
    refractory: int = 25
    """blocks after an alarm in which none is raised"""


@dataclass(frozen=True)
class SwitchArgs:
    """What else happens when the data grow."""

    optimizer: Literal["keep", "reset"] = "keep"
    """Adam's moments and step counts: kept, or set to zero as in an optimiser that is built anew"""
    intervention: Literal["none", "shrink-and-perturb", "reset", "reset-head"] = "none"
    """what is done to the weights"""
    shrink: float = 0.4
    """W <- shrink * W + perturb * W_fresh (shrink-and-perturb; Ash and Adams' code has 0.4 and 0.1)"""
    perturb: float = 0.1
    """see shrink"""


@dataclass(frozen=True)
class ProbeArgs:
    """Measurements that never change training."""

    every: int = 100
    """updates between feature-learning measurements (the interval T of Delta_C, Delta_A); 0 is off"""
    size: int = 256
    """training images in the probe; at most so many old and as many new ones give the norms of their gradients"""
    tau: float = 0.1
    """a unit is dormant when its share of the layer's mean activation is at most tau"""
    meter_every: int = 100
    """updates between measurements of the realised effective learning rate and the norms; 0 is off"""


@dataclass(frozen=True)
class Args:
    """Warm-starting: every flag, its default, its meaning."""

    dataset: Literal["digits", "cifar10", "mnist", "fashion-mnist"] = "digits"
    """digits is part of the package; the others are read from --data-folder or downloaded once"""
    data_folder: Path | None = None
    """folder that holds the set's official files; nothing is downloaded then"""
    cache: Path | None = None
    """where downloads are kept; default rewarm in $XDG_CACHE_HOME or ~/.cache"""
    batches: tuple[int, ...] = ()
    """numbers of the CIFAR-10 training batches to use, 1 to 5; none means all five"""
    train_images: int = 0
    """use only so many training images, drawn by the seed; 0 takes all"""
    seed: int = 1
    """seed of every random stream"""
    fractions: tuple[float, ...] = (0.1, 1.0)
    """share of the training images in each phase, growing; one phase is a fresh network alone"""
    phase_updates: int = 1000
    """updates of each phase"""
    phase_epochs: int = 0
    """epochs of each phase instead, over the images it has; 0 goes by --phase-updates"""
    control: Literal["fresh", "none"] = "fresh"
    """train a fresh network beside the warm one from the last switch on; whatever the trigger, its rate makes one decay
    over the last phase, from --learning-rate"""
    model: Literal["cnn", "resnet18"] = "cnn"
    """the paper's small network, or a ResNet-18 for small images without biases"""
    width: int = 32
    """channels of the convolutions (cnn); the ResNet-18 has 64 and its multiples"""
    strides: tuple[int, int, int] = (2, 2, 1)
    """strides of the three convolutions (cnn)"""
    hidden: int = 256
    """units of the hidden layer (cnn)"""
    hidden_norm: bool = True
    """LayerNorm before the hidden layer's ReLU too (cnn)"""
    batch_size: int = 64
    """images per update"""
    augment: bool = False
    """random shifts by an eighth of the image and mirror images (mirrored only where that keeps the class: CIFAR-10)"""
    learning_rate: float = 1e-3
    """Adam's rate at the peak of the schedule"""
    assignment: Literal["constant", "fast-features", "slow-features", "even-ratio-abs"] = "constant"
    """per-layer rates: all the same; the last layer's, or all others', a tenth; proportional to mean |w|"""
    weight_decay: float = 0.0
    """decoupled decay of all matrices: W <- W - rate * decay * W"""
    l2_init: float = 0.0
    """strength of the penalty on the squared distance from the initial weights (Kumar et al. 2023); an intervention
    moves that origin only if it is reset"""
    nap: NapArgs = field(default_factory=NapArgs)
    schedule: ScheduleArgs = field(default_factory=ScheduleArgs)
    rewarm: RewarmArgs = field(default_factory=RewarmArgs)
    switch: SwitchArgs = field(default_factory=SwitchArgs)
    probe: ProbeArgs = field(default_factory=ProbeArgs)
    eval_every: int = 100
    """updates between evaluations on the test set"""
    log_every: int = 10
    """updates between points of the minibatch loss and the rate"""
    checkpoint_every: int = 1000
    """updates between checkpoints"""
    device: str = "cpu"
    """cpu or cuda; the latter has not been run yet"""
    bf16: bool = False
    """forward pass in bfloat16 where torch's autocast does that (GPU only)"""
    threads: int = 2
    """CPU threads"""
    exp_name: str = "warm_start"
    """first part of the run's name"""
    directory: Path | None = None
    """run directory; default runs/logs/<exp_name>__<dataset>__s<seed>__<time>"""
    resume: Path | None = None
    """run directory to go on with; all other flags come from its config.json"""

    def __post_init__(self) -> None:
        positive = "phase_updates width hidden batch_size learning_rate eval_every log_every checkpoint_every threads"
        for name in positive.split():
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}")
        for name in ("train_images", "phase_epochs", "weight_decay", "l2_init"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 0, not {getattr(self, name)}")
        shares = self.fractions
        if not shares or not 0 < shares[0] <= shares[-1] <= 1 or list(shares) != sorted(shares):
            raise ValueError(f"--fractions {shares}: give shares in (0, 1] that do not fall")
        if min(self.strides) < 1:
            raise ValueError(f"--strides {self.strides} must be at least 1 each")
        greatest = self.learning_rate * max(1.0, self.rewarm.peak_factor)
        for flag, pull in (("weight-decay", self.weight_decay), ("nap.gain-strength", self.nap.gain_strength)):
            if greatest * pull > 1:
                raise ValueError(
                    f"--{flag} {pull} times the greatest rate {greatest:g} (--learning-rate, --rewarm.peak-factor) is "
                    "above 1 and would turn the weights round"
                )
        if min(self.probe.every, self.probe.meter_every) < 0 or self.probe.size < 2:
            raise ValueError("--probe.every and --probe.meter-every must be >= 0, --probe.size at least 2")
        if not self.device.startswith(("cpu", "cuda")):
            raise ValueError(f"--device {self.device} is not supported: use cpu or cuda")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"--device {self.device}: this torch sees no GPU; install a CUDA build or use --device cpu"
            )
        if self.bf16 and not self.device.startswith("cuda"):
            raise ValueError(f"--bf16 is for a GPU, not for --device {self.device}; drop one of them")
        self._refuse_inert_flags()

    def _refuse_inert_flags(self) -> None:
        rewarm, switch = self.rewarm, self.switch
        if self.dataset == "digits":
            reject_unused("", self, ["data_folder", "cache"], "with --dataset digits, which is part of the package")
        if self.dataset != "cifar10":
            reject_unused("", self, ["batches"], f"with --dataset {self.dataset}")
        if self.data_folder:
            reject_unused("", self, ["cache"], "with --data-folder, from which all is read")
        if self.phase_epochs:
            reject_unused("", self, ["phase_updates"], "with --phase-epochs")
        if self.model == "resnet18":
            reject_unused("", self, ["width", "strides", "hidden", "hidden_norm"], "with --model resnet18")
        if not self.nap.enabled:
            unused = ["every", "gains", "gain_strength", "allow_scale_dependent"]
            reject_unused("nap", self.nap, unused, "without --nap.enabled")
        if self.schedule.kind == "constant":
            reject_unused("schedule", self.schedule, ["low", "warmup_frac"], "with a constant rate")
        elif not (0 <= self.schedule.low < self.learning_rate and 0 <= self.schedule.warmup_frac < 1):
            raise ValueError(
                f"--schedule.low {self.schedule.low} must lie below --learning-rate {self.learning_rate}, and "
                f"--schedule.warmup-frac {self.schedule.warmup_frac} in [0, 1)"
            )
        detector = ["threshold", "slack", "block", "burn_in", "refractory"]
        unused = {
            "never": ["cycles", "peak_factor", "moments", *detector],
            "switch": ["cycles", "moments", *detector],
            "cusum": ["cycles"],
            "cycle": detector,
        }
        reject_unused("rewarm", rewarm, unused[rewarm.trigger], f"with --rewarm.trigger {rewarm.trigger}")
        if not 0 < rewarm.peak_factor < math.inf or rewarm.cycles < 2:
            raise ValueError("--rewarm.peak-factor must be positive, --rewarm.cycles at least 2")
        changes_rate = self.schedule.kind != "constant" or rewarm.peak_factor != 1
        if rewarm.trigger != "never" and not changes_rate and rewarm.moments == "keep":
            raise ValueError(
                f"--rewarm.trigger {rewarm.trigger} re-warms nothing with --schedule.kind constant: choose another "
                "schedule, --rewarm.peak-factor, or --rewarm.trigger never"
            )
        if len(self.fractions) == 1:
            reject_unused("", self, ["control"], "with a single phase: the network is the fresh one")
            reject_unused("switch", switch, ["optimizer", "intervention"], "with a single phase: there is no switch")
            if rewarm.trigger == "switch":
                raise ValueError("--rewarm.trigger switch never comes with the single phase of --fractions: use never")
        if switch.intervention != "shrink-and-perturb":
            why = f"with --switch.intervention {switch.intervention}"
            reject_unused("switch", switch, ["shrink", "perturb"], why)
        if not (0 <= switch.shrink <= 1 and 0 <= switch.perturb < math.inf):
            raise ValueError(f"--switch.shrink {switch.shrink} must lie in [0, 1], --switch.perturb at 0 or above")
        mixes = (switch.shrink, switch.perturb)
        if switch.intervention == "shrink-and-perturb" and (mixes == (1, 0) or mixes == (0, 0)):
            raise ValueError(
                f"--switch.shrink {switch.shrink} with --switch.perturb {switch.perturb} "
                + ("changes nothing" if switch.shrink else "makes every weight zero")
            )
        if self.probe.every == 0:
            checked = self.nap.enabled and not self.nap.allow_scale_dependent
            inert = ["tau"] if checked else ["size", "tau"]  # projection is checked on the probe's images
            reject_unused("probe", self.probe, inert, "with --probe.every 0")


_FREE = NapArgs(enabled=False)
_ONCE = RewarmArgs(trigger="never")


def _presets() -> dict[str, Preset[Args]]:
    cifar = Args(
        dataset="cifar10", phase_updates=6_000, batch_size=32, learning_rate=3e-3, eval_every=1000,
        checkpoint_every=3000, probe=ProbeArgs(every=500, meter_every=500),
    )  # fmt: skip
    presets = {
        "unconstrained": Preset(
            "digits, no projection, one decay over the run", Args(exp_name="unconstrained", nap=_FREE, rewarm=_ONCE)
        ),
        "online": Preset(
            "digits arriving in four chunks",
            Args(exp_name="online", fractions=(0.25, 0.5, 0.75, 1.0), phase_updates=500),
        ),
    }

    def add(name: str, description: str, **changes: Any) -> None:
        presets[name] = Preset(f"CIFAR-10, {description}", replace(cifar, exp_name=name, **changes))

    for fraction in (0.1, 0.5, 1.0):
        for arm, nap in (("projected", NapArgs()), ("unconstrained", _FREE)):
            name = f"fig4-{arm}-{fraction:g}"
            add(name, f"{arm}, {fraction:g} first, re-warmed at the switch", nap=nap, fractions=(fraction, 1.0))
    for assignment in ("constant", "fast-features", "slow-features", "even-ratio-abs"):
        add(f"fig5-left-{assignment}", f"projected, re-warmed at the switch, rates {assignment}", assignment=assignment)
        for factor in (3.0, 10.0):
            add(
                f"fig13-{assignment}-x{factor:g}",
                f"as fig5-left-{assignment}, the second peak {factor:g} times the first",
                assignment=assignment,
                rewarm=RewarmArgs(peak_factor=factor),
            )
    for arm, nap in (("projected", NapArgs()), ("unconstrained", _FREE)):
        add(
            f"fig5-right-{arm}-cusum",
            f"{arm}, re-warmed by CUSUM on the loss",
            nap=nap,
            rewarm=RewarmArgs(trigger="cusum"),
        )
        add(f"fig5-right-{arm}-single", f"{arm}, one decay over the run", nap=nap, rewarm=_ONCE)
        add(f"fig9-{arm}", f"{arm}, five cycles, off the data's phase", nap=nap, rewarm=RewarmArgs(trigger="cycle"))
    baselines = {
        "shrink-and-perturb": {"switch": SwitchArgs(optimizer="reset", intervention="shrink-and-perturb")},
        "reset": {"switch": SwitchArgs(optimizer="reset", intervention="reset")},
        "reset-head": {"switch": SwitchArgs(optimizer="reset", intervention="reset-head")},
        "l2-init": {"l2_init": 1e-4},
        "weight-decay": {"weight_decay": 0.1},
    }
    for name, changes in baselines.items():
        add(name, f"baseline {name}: unconstrained, re-warmed at the switch", nap=_FREE, **changes)
    return presets


PRESETS = _presets()

# ------------------------------------------------------------------------------------------------------------- data


class Minibatches:
    """Indices below n in a random order, every epoch in a new one; an epoch's last batch is filled from the next."""

    def __init__(self, n: int, batch_size: int, rng: np.random.Generator):
        self.batch_size, self.rng = batch_size, rng
        self.grow(n)

    def grow(self, n: int) -> None:
        """Begin a new epoch, over n images."""
        self.n, self.order, self.position = n, self.rng.permutation(n), 0

    def draw(self) -> np.ndarray:  # [B]
        parts, missing = [], self.batch_size
        while missing:
            if self.position == self.n:
                self.order, self.position = self.rng.permutation(self.n), 0
            parts.append(self.order[self.position : self.position + missing])
            self.position += len(parts[-1])
            missing -= len(parts[-1])
        return np.concatenate(parts)

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n, "order": self.order, "position": self.position, "rng": rng_state(self.rng)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n, self.order, self.position = state["n"], state["order"], state["position"]
        restore_rng(self.rng, state["rng"])


class Pixels:
    """Images as bytes on the device, handed out normalised by channel, and shifted and mirrored when asked to."""

    def __init__(self, images: Images, device: torch.device):
        self.train_x, self.train_y = images.train_x.to(device), images.train_y.to(device)
        self.test_x, self.test_y = images.test_x.to(device), images.test_y.to(device)
        channels = self.train_x.shape[1]
        counts = torch.stack([self.train_x[:, c].flatten().bincount(minlength=256) for c in range(channels)]).double()
        levels, total = torch.arange(256, device=device).double(), counts.sum(1)
        mean = (counts * levels).sum(1) / total
        deviation = ((counts * (levels - mean[:, None]).square()).sum(1) / total).sqrt()
        self.mean, self.deviation = (t.float().view(1, -1, 1, 1) for t in (mean, deviation))
        self.mirrored = images.name == "cifar10"

    def normalised(self, x: Tensor) -> Tensor:  # [B, C, H, W] bytes -> float32, channels last
        return ((x - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)

    def augmented(self, x: Tensor, rng: np.random.Generator) -> Tensor:  # [B, C, H, W] bytes -> bytes
        batch, _, height, width = x.shape
        reach = max(1, height // 8)
        dy, dx = (torch.from_numpy(rng.integers(2 * reach + 1, size=batch)).to(x.device) for _ in range(2))
        windows = F.pad(x, (reach, reach, reach, reach)).unfold(2, height, 1).unfold(3, width, 1)
        x = windows[torch.arange(batch, device=x.device), :, dy, dx]
        if self.mirrored:
            flip = torch.from_numpy(rng.random(batch) < 0.5).to(x.device)
            x = torch.where(flip[:, None, None, None], x.flip(3), x)
        return x


def phase_lengths(args: Args, sizes: Sequence[int]) -> list[int]:
    """Updates of each phase.

    Raises:
        ValueError: they leave no room for what the flags ask for.
    """
    lengths = [args.phase_updates] * len(sizes)
    if args.phase_epochs:
        lengths = [math.ceil(args.phase_epochs * size / args.batch_size) for size in sizes]
    total, r = sum(lengths), args.rewarm
    if args.nap.enabled and not 1 <= args.nap.every <= total:
        raise ValueError(f"--nap.every {args.nap.every} projects never in {total} updates")
    if r.trigger == "cycle" and total % r.cycles:
        raise ValueError(f"--rewarm.cycles {r.cycles} does not divide the {total} updates of the run")
    if r.trigger == "cusum":
        for flag, blocks, limit in (
            ("burn-in", r.burn_in, lengths[0]),
            ("refractory", r.refractory, min(lengths[1:], default=total)),
        ):
            if blocks * r.block >= limit:
                raise ValueError(
                    f"--rewarm.{flag} {blocks} blocks of --rewarm.block {r.block} updates outlast a phase of {limit}: "
                    "the next switch could not be found"
                )
    return lengths


# ---------------------------------------------------------------------------------------------------------- network


def layer_norm(channels: int) -> nn.GroupNorm:
    """LayerNorm of [B, C, H, W] over channels and space, a gain and an offset per channel."""
    return nn.GroupNorm(1, channels)


class CNN(nn.Module):
    """The paper's network: convolutions 5x5, 3x3, 3x3, each with LayerNorm and ReLU, a hidden layer, a linear head.

    No bias stands before a norm, whose offset makes it redundant.
    """

    probed = ("conv1_relu", "conv2_relu", "conv3_relu", "hidden_relu")

    def __init__(self, shape: Sequence[int], classes: int, args: Args):
        super().__init__()
        channels, size = shape[0], np.array(shape[1:])
        for i, (kernel, stride) in enumerate(zip((5, 3, 3), args.strides, strict=True), start=1):
            conv = nn.Conv2d(channels, args.width, kernel, stride=stride, padding=kernel // 2, bias=False)
            for name, module in (("", conv), ("_norm", layer_norm(args.width)), ("_relu", nn.ReLU())):
                self.add_module(f"conv{i}{name}", module)
            channels, size = args.width, -(-size // stride)
        self.hidden = nn.Linear(channels * int(size.prod()), args.hidden, bias=not args.hidden_norm)
        self.hidden_norm = nn.LayerNorm(args.hidden) if args.hidden_norm else nn.Identity()
        self.hidden_relu = nn.ReLU()
        self.head = nn.Linear(args.hidden, classes)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, K]
        x = self.conv1_relu(self.conv1_norm(self.conv1(x)))
        x = self.conv2_relu(self.conv2_norm(self.conv2(x)))
        x = self.conv3_relu(self.conv3_norm(self.conv3(x)))
        x = x.permute(0, 2, 3, 1).flatten(1)  # channels last, the order in which they lie in memory
        x = self.hidden_relu(self.hidden_norm(self.hidden(x)))  # [B, hidden]
        return self.head(x)


class ResidualBlock(nn.Module):
    """relu(x + norm(conv(relu(norm(conv x))))); x through a strided 1x1 convolution with a norm where sizes change."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.norm1, self.relu1 = layer_norm(out), nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2, self.relu2 = layer_norm(out), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), layer_norm(out))

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, out, H / stride, W / stride]
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(self.shortcut(x) + y)


class ResNet18(nn.Module):
    """ResNet-18 for small images: a 3x3 stem without pooling, four stages of two blocks, 64 to 512 channels."""

    probed = ("stem_relu", "stages.0.1.relu2", "stages.1.1.relu2", "stages.2.1.relu2", "stages.3.1.relu2")

    def __init__(self, shape: Sequence[int], classes: int, args: Args):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False), layer_norm(64)
        self.stem_relu = nn.ReLU()
        widths = (64, 64, 128, 256, 512)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(ResidualBlock(widths[i], out, 1 if i == 0 else 2), ResidualBlock(out, out, 1))
                for i, out in enumerate(widths[1:])
            )
        )
        self.head = nn.Linear(512, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, K]
        x = self.stages(self.stem_relu(self.stem_norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


def make_network(args: Args, shape: Sequence[int], classes: int, seed: int, device: torch.device) -> nn.Module:
    """A network with the weights that this seed gives it, in channels-last memory."""
    with torch.random.fork_rng(devices=[]):  # torch's layers initialise themselves from the global stream
        torch.manual_seed(seed)
        network = (CNN if args.model == "cnn" else ResNet18)(shape, classes, args)
    return network.to(device, memory_format=torch.channels_last)


# ----------------------------------------------------------------------------------------------------------- losses


@torch.no_grad()
def evaluate(network: nn.Module, pixels: Pixels, batch_size: int = 500) -> tuple[float, float]:
    """Cross-entropy and accuracy on the test set."""
    loss, right = 0.0, 0
    for i in range(0, len(pixels.test_y), batch_size):
        logits = network(pixels.normalised(pixels.test_x[i : i + batch_size])).float()
        answer = pixels.test_y[i : i + batch_size]
        loss += F.cross_entropy(logits, answer, reduction="sum").item()
        right += int((logits.argmax(1) == answer).sum())
    return loss / len(pixels.test_y), right / len(pixels.test_y)


def gradient_norm(network: nn.Module, x: Tensor, answer: Tensor) -> float:
    """Euclidean norm of the gradient of the mean loss on these images, over all parameters."""
    gradients = torch.autograd.grad(F.cross_entropy(network(x), answer), list(network.parameters()))
    return math.sqrt(sum(g.double().square().sum().item() for g in gradients))


# ------------------------------------------------------------------------------------------------------------- main


def make_schedule(args: Args, updates: int, peak: float) -> Schedule:
    """Updates since the last trigger -> learning rate, a decay that takes `updates`."""
    if args.schedule.kind == "constant":
        return Constant(peak)
    warmup = min(round(args.schedule.warmup_frac * updates), updates - 1)
    return WarmupCosine(peak, warmup, updates - warmup, args.schedule.low, initial=args.schedule.low)


def make_trigger(args: Args, total: int) -> Trigger:
    """What starts the schedule again."""
    r = args.rewarm
    match r.trigger:
        case "never":
            return Never()
        case "switch":
            return AtKnownChange()
        case "cycle":
            return Every(total // r.cycles)
        case "cusum":
            return OnCusum(
                Cusum(
                    threshold=r.threshold, slack=r.slack, block=r.block, burn_in=r.burn_in, refractory=r.refractory,
                    log=True,
                )
            )  # fmt: skip


@dataclass
class Learner:
    """A network in training: its optimiser, and what holds its norms and sets its rate."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    rewarming: Rewarming
    projection: Projection | None
    l2_init: L2Init | None

    def parts(self) -> Iterator[tuple[str, Any]]:
        for name in ("network", "optimizer", "rewarming", "projection", "l2_init"):
            if getattr(self, name) is not None:
                yield name, getattr(self, name)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts():
            part.load_state_dict(state[name])


def make_projection(args: Args, network: nn.Module, check: Tensor) -> Projection | None:
    """What holds this network's norms where they are now."""
    if not args.nap.enabled:
        return None
    with one_line_errors("--nap"):
        return Projection(
            network,
            every=args.nap.every,
            gains=args.nap.gains,
            gain_strength=args.nap.gain_strength,
            heads=["head"],
            check_inputs=check,
            allow_scale_dependent=args.nap.allow_scale_dependent,
        )


def make_l2_init(args: Args, network: nn.Module) -> L2Init | None:
    """The pull towards the weights of now; gains and offsets of norm layers are left out, as in its source."""
    if not args.l2_init:
        return None
    norms = {id(p) for pair in gains_and_offsets(network).values() for p in pair}
    return L2Init({name: p for name, p in network.named_parameters() if id(p) not in norms}, args.l2_init)


def make_learner(
    args: Args, network: nn.Module, check: Tensor, schedule: Schedule, trigger: Trigger, initial: Schedule | None = None
) -> Learner:
    """Everything but the network itself; `check` is a batch on which its scale invariance is verified."""
    with one_line_errors("--assignment"):
        modules = layerwise_groups(network, args.learning_rate, args.assignment, head="head")
    merged: dict[tuple[float, float], list[nn.Parameter]] = {}  # by rate and decay; fewer groups are fewer kernels
    for group in modules:
        for p in group["params"]:
            merged.setdefault((group["lr"], args.weight_decay if p.ndim > 1 else 0.0), []).append(p)
    groups = [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in merged.items()]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, fused=True)
    with one_line_errors("--schedule, --rewarm"):
        rewarming = Rewarming(optimizer, schedule, trigger, args.rewarm.moments, initial)
    return Learner(network, optimizer, rewarming, make_projection(args, network, check), make_l2_init(args, network))


def intervene(args: Args, learner: Learner, fresh: nn.Module, check: Tensor) -> None:
    """What --switch asks for, in place; `fresh` is a newly initialised network."""
    s, network, optimizer = args.switch, learner.network, learner.optimizer
    if s.intervention == "shrink-and-perturb":
        shrink_and_perturb_(network, fresh, shrink=s.shrink, perturb=s.perturb)
        if learner.projection:  # of shrinking and perturbing a new direction is left
            learner.projection.project_()
    elif s.intervention == "reset-head":
        reset_(network, fresh, modules=["head"])
    elif s.intervention == "reset":
        reset_(network, fresh)
        learner.projection = make_projection(args, network, check)  # the norms and the origin are the new network's
        learner.l2_init = make_l2_init(args, network)
    if s.optimizer == "reset":
        reset_moments_(optimizer)


def run_directory(args: Args) -> Path:
    """--directory, or runs/logs/<exp_name>__<dataset>__s<seed>__<time>."""
    return args.directory or Path(
        "runs/logs", f"{args.exp_name}__{args.dataset}__s{args.seed}__{datetime.now():%Y%m%d-%H%M%S-%f}"
    )


def draw_comparison(directory: Path) -> Path | None:
    """Picture of the test accuracies of both networks; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    scalars = read_scalars(directory)
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for tag, label, colour in (("test/accuracy", "warm", "#D55E00"), ("test/accuracy_fresh", "fresh", "#0072B2")):
        if tag in scalars:
            axes.plot(*zip(*scalars[tag], strict=True), label=label, color=colour, marker=".", markersize=3)
    for i, (update, _) in enumerate(scalars.get("shift/boundary", [])):
        axes.axvline(update, color="0.6", linewidth=0.8, linestyle=":", label=None if i else "data grow")
    axes.set_ylim(
        top=1.0, bottom=max(0.0, min(v for _, v in scalars["test/accuracy"]) - 0.02)
    )  # the control starts at chance
    axes.set_xlabel("update")
    axes.set_ylabel("test accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
    path = directory / "comparison.png"
    figure.savefig(path, dpi=110)
    return path


def main(args: Args) -> None:
    """Train one network, and its control; everything they leave behind is in the run directory."""
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)

    # Every random draw below comes from one of these streams.
    with one_line_errors("--seed"):
        streams = np.random.SeedSequence(args.seed).spawn(6)
    split_rng, minibatch_rng, augment_rng, probe_rng = (np.random.default_rng(s) for s in streams[:4])
    init_seed, fresh_stream = int(streams[4].generate_state(1)[0]), streams[5]
    with one_line_errors("--device", also=(RuntimeError,)):
        device = torch.device(args.device)
        torch.empty(1, device=device)
    with one_line_errors("--dataset", also=(OSError,)):
        images = load_images(args.dataset, folder=args.data_folder, cache=args.cache, batches=args.batches or None)
        if args.train_images > len(images.train_y):
            raise ValueError(f"--train-images {args.train_images}: there are {len(images.train_y)} in {images.source}")
    order = torch.from_numpy(split_rng.permutation(len(images.train_y)))[: args.train_images or None]
    images = replace(images, train_x=images.train_x[order], train_y=images.train_y[order])
    pixels = Pixels(images, device)
    shape, count = pixels.train_x.shape[1:], len(images.train_y)
    sizes = [round(fraction * count) for fraction in args.fractions]
    with one_line_errors():
        if min(sizes) < 1:
            raise ValueError(f"--fractions {args.fractions} of {count} images leaves a phase without any")
        lengths = phase_lengths(args, sizes)
    total, switches = sum(lengths), [int(u) for u in np.cumsum(lengths)[:-1]]
    print(f"{images.source}; phases of {', '.join(f'{n:,}' for n in sizes)} images, {total:,} updates", flush=True)

    *switch_seeds, control_seed = (int(s.generate_state(1)[0]) for s in fresh_stream.spawn(len(switches) + 1))

    def new_network(seed: int) -> nn.Module:
        return make_network(args, shape, images.classes, seed, device)

    # elr attaches to the network and the optimiser.
    network = new_network(init_seed)
    probe_index = torch.from_numpy(probe_rng.permutation(count)[: args.probe.size]).to(device)
    probe_x = pixels.normalised(pixels.train_x[probe_index])
    peak, again = args.learning_rate, args.learning_rate * args.rewarm.peak_factor
    match args.rewarm.trigger:  # updates of the decay from the start, and of those after a trigger
        case "never":
            first = later = total
        case "cycle":
            first = later = total // args.rewarm.cycles
        case _:
            first, later = lengths[0], lengths[-1]
    with one_line_errors("--schedule, --rewarm"):
        schedules = make_schedule(args, later, again), make_trigger(args, total), make_schedule(args, first, peak)
    warm = make_learner(args, network, probe_x, *schedules)
    control: Learner | None = None
    layers = scalable_weights(network, heads=["head"])
    meter = probe = None
    if args.probe.meter_every:
        meter = Meter(layers, every=args.probe.meter_every, optimizer=warm.optimizer, nominal_power=1)
    if args.probe.every:
        with one_line_errors("--probe"):
            probe = Probe(network, probe_x, network.probed, every=args.probe.every, tau=args.probe.tau)
    minibatches = Minibatches(sizes[0], args.batch_size, minibatch_rng)
    updates, result = 0, {}

    def make_control() -> Learner:
        return make_learner(args, new_network(control_seed), probe_x, make_schedule(args, lengths[-1], peak), Never())

    def phase() -> int:
        return sum(updates >= switch for switch in switches)

    def fit_schedule() -> None:
        """Let the decay that a switch has started end with its phase."""
        if args.rewarm.trigger == "switch" and phase():
            warm.rewarming.schedule = make_schedule(args, lengths[phase()], again)

    def require_finite(what: str = "") -> None:
        """Stop before a broken network is saved, measured or stepped; the checkpoint on disk is from before."""
        for name, learner in (("", warm), ("the control's ", control)):
            named = [] if learner is None else list(weights_and_gradients(learner.network))
            if (what and not control) or not all(bool(torch.isfinite(t).all()) for _, t in named):
                raise NonFiniteError(
                    f"{what or 'a network that is'} not finite at update {updates}, learning rate "
                    f"{warm.rewarming.rate:g}: {name}{describe_nonfinite(named)}; the last checkpoint is from before"
                )
        if what:
            raise NonFiniteError(f"{what} not finite at update {updates}; the last checkpoint is from before")

    def checkpoint() -> None:
        require_finite()
        parts = {"warm": warm, "control": control, "meter": meter, "probe": probe, "minibatches": minibatches}
        state = {name: part.state_dict() for name, part in parts.items() if part is not None}
        run.checkpoint(updates, {"updates": updates, "augment_rng": rng_state(augment_rng), **state})

    def measure() -> None:
        """Features on the probe, and the gradients of images known since before the phase and of new ones."""
        require_finite()
        run.scalars(probe.measure(), updates)
        known = sizes[max(phase() - 1, 0)]
        arrived = sizes[phase()] - known
        n = min(args.probe.size, known, arrived or known)  # the norm of a mean over more images is smaller
        for name, begin in (("old", 0), ("new", known)) if arrived else (("old", 0),):
            x = pixels.normalised(pixels.train_x[begin : begin + n])
            run.scalar(f"norms/gradient_{name}", gradient_norm(network, x, pixels.train_y[begin : begin + n]), updates)

    def evaluated() -> dict[str, float]:
        """Both networks on the test set."""
        scalars = dict(zip(("test/loss", "test/accuracy"), evaluate(network, pixels), strict=True))
        if control:
            pair = evaluate(control.network, pixels)
            scalars |= dict(zip(("test/loss_fresh", "test/accuracy_fresh"), pair, strict=True))
            scalars["test/gap"] = 100 * (scalars["test/accuracy_fresh"] - scalars["test/accuracy"])
        return scalars

    def report(scalars: dict[str, float]) -> None:
        run.scalars(scalars, updates)
        speed = (updates - start_update) / max(time.perf_counter() - started, 1e-9)
        beside = f"   fresh {scalars['test/accuracy_fresh']:.3f}" if control else ""
        print(
            f"update {updates:>7,} of {total:,}   {sizes[phase()]:,} images   test {scalars['test/accuracy']:.3f}"
            f"{beside}   learning rate {trained['charts/learning_rate']:.1e}   {speed:.1f} updates/s",
            flush=True,
        )

    def switch() -> None:
        """The data grow."""
        nonlocal control
        minibatches.grow(sizes[phase()])
        fit_schedule()
        intervene(args, warm, new_network(switch_seeds[phase() - 1]), probe_x)
        if updates == switches[-1] and args.control == "fresh":
            control = make_control()
        run.scalar("shift/task", phase(), updates)
        run.scalar("shift/boundary", 1, updates)

    if args.resume:
        run = Run.resume(args.resume, device=device)
    else:
        run = Run.create(run_directory(args), config_to_dict(args), argv=sys.argv, device=device)
    with run, StopOnSignal() as stop:
        if args.resume:
            state = run.take_state()
            misfit = f"{args.resume}: the checkpoint does not fit this version of the script"
            with one_line_errors(misfit, also=(KeyError, RuntimeError)):
                updates = state["updates"]
                fit_schedule()  # before the state, from which the next update's rate follows
                control = make_control() if "control" in state else None
                parts = {"warm": warm, "control": control, "meter": meter, "probe": probe, "minibatches": minibatches}
                for name, part in parts.items():
                    if part is not None:
                        part.load_state_dict(state[name])
                restore_rng(augment_rng, state["augment_rng"])
        else:
            charts = {
                "accuracy, warm and fresh": ["test/accuracy", "test/accuracy_fresh"],
                "gap": ["test/gap"],
                "gradients of old and new images": ["norms/gradient_old", "norms/gradient_new"],
            }
            rewarms = args.rewarm.trigger != "never"
            run.layout(list(layers), network.probed, supervised=True, rewarming=rewarms, charts=charts)
            run.scalar("shift/task", 0, 0)
            if probe:
                measure()
            checkpoint()
        started, start_update = time.perf_counter(), updates
        while updates < total and not stop.requested:
            index = torch.from_numpy(minibatches.draw()).to(device)
            x, answer = pixels.train_x[index], pixels.train_y[index]
            if args.augment:
                x = pixels.augmented(x, augment_rng)
            x = pixels.normalised(x)
            announced = warm.rewarming.trigger if updates + 1 in switches else None
            if isinstance(announced, AtKnownChange):
                announced.notify()
            for learner in (warm, control):
                if learner is None:
                    continue
                # Algorithm 1 of arXiv:2507.20057.
                with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                    logits = learner.network(x)
                cross_entropy = F.cross_entropy(logits.float(), answer)
                loss = cross_entropy + learner.l2_init.penalty() if learner.l2_init else cross_entropy
                learner.optimizer.zero_grad()
                loss.backward()
                if not math.isfinite(loss.item()):
                    require_finite(f"loss {loss.item()},")
                if learner is warm and meter:
                    meter.before_step()
                learner.optimizer.step()
                if learner is warm:
                    measured = meter is not None and meter.after_step()  # the step really taken, before the projection
                if learner.projection:
                    learner.projection.step(learner.rewarming.rate)  # W <- W ||W_0|| / ||W||
                rate = learner.rewarming.rate
                value = cross_entropy.item()
                # trigger? restart the schedule; set the next update's rate (CUSUM takes the loss's logarithm)
                rewarmed = updates + 1 < total and learner.rewarming.step(max(value, 1e-30))
                if learner is warm:
                    trained = {"train/loss": value, "charts/learning_rate": rate}
                    events = {"rewarm/event": 1} if rewarmed else {}
            updates += 1
            if updates in switches:
                switch()

            # Report.
            if measured:
                run.scalars(meter.scalars(), updates)
            run.scalars(events, updates)
            if updates % args.log_every == 0:
                run.scalars(trained, updates)
                if warm.rewarming.statistic is not None:
                    run.scalar("rewarm/statistic", warm.rewarming.statistic, updates)
            if probe and probe.due(updates):
                measure()
            if updates % args.eval_every == 0 or updates == total:
                result = evaluated()
                report(result)
            if updates % args.checkpoint_every == 0 and updates < total:
                checkpoint()

        checkpoint()
        if updates < total:
            run.interrupt(updates)
            command = shlex.join([sys.executable, sys.argv[0], "--resume", str(run.directory)])
            print(f"\nstopped at update {updates}; go on with: {command}")
            raise SystemExit(130)
        result = result or evaluated()  # nothing was left to do for a run that was killed after its last update
        run.finish(updates)
    print(f"\nfinished {updates:,} updates in {run.directory}")
    print(f"test accuracy {100 * result['test/accuracy']:.2f} %", end="")
    if control:
        print(
            f", fresh network {100 * result['test/accuracy_fresh']:.2f} %: gap {result['test/gap']:.2f} points", end=""
        )
    picture = draw_comparison(run.directory)
    print(f"\n{f'drawn in {picture}' if picture else 'no picture: pip install -e .[plots] draws one'}")
    print(f"look at it with: tensorboard --logdir {run.directory}")


if __name__ == "__main__":
    exit_with_one_line(lambda: main(parse(Args, PRESETS, prog_description=__doc__.split("\n\n")[0])))
