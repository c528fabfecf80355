"""Warm-starting an image classifier: a network trained on part of the data first, against a fresh one, in one file.

    python agents/warm_start.py                               digits: projected, re-warmed when the data grow
    python agents/warm_start.py unconstrained                 digits: no projection, one long decay
    python agents/warm_start.py fig4-projected-0.1 --data-folder cifar-10-batches-bin
    python agents/warm_start.py --resume runs/logs/RUN        continue a killed or interrupted run

The method is Algorithm 1 of Lyle et al. 2025 (arXiv:2507.20057, "the paper" below): step the optimiser, project the
weights, ask the trigger whether to re-warm (restart the learning-rate schedule), set the rate of the next update. In
`main` these are three calls in this order. All steps are optimiser updates.

Phase k trains on the first `fractions[k]` of a shuffled training set, each phase for the same number of updates (or of
epochs). From the last switch on a fresh network, the control, trains on the same minibatches as the warm one. The
result is the gap: test accuracy of the fresh network minus that of the warm one, in points.

The presets fig4-*, fig5-left-*, fig5-right-*, fig9-* and fig13-* are arms of the paper's figures with a smaller budget,
and those named after a method of --intervene are baselines, on CIFAR-10 (read from --data-folder or downloaded once,
170 MB). The digits only show how it works, in half a minute: they are too easy for a gap.

Deviations from the paper: the control is a fresh network, where the paper's reference has 100 % of the data in both
phases (`--fractions 1 1`); its hidden layer has no norm; ours has one, because projection needs scale invariance
(--no-hidden-norm with --nap.allow-scale-dependent is theirs). Not specified in the paper, our choices: strides 2, 2, 1
and 256 hidden units; the rate; minibatches without replacement, in a new order every epoch; pixels normalised by
channel with the training set's mean and deviation. "LayerNorm" of a convolution is over channels and space, with a gain
and an offset per channel. The ResNet-18 has the same norm instead of BatchNorm.

Measured on 20,000 images of CIFAR-10 (--batches 1 2, n = 5): gap 0.60 points for fig4-projected-0.1, 3.70 for
fig5-right-unconstrained-single. All results: docs/results.md.
"""

from __future__ import annotations

import runs.quiet_imports  # noqa: F401  # isort: skip

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elr import flags, layout
from elr.changepoint import Cusum
from elr.flags import InterventionArgs as SwitchArgs
from elr.interventions import policy_divergence
from elr.interventions.flags import BASELINES, InterveneArgs
from elr.interventions.methods import Methods
from elr.layerwise import layerwise_groups
from elr.measure import Meter, NoMeter
from elr.moments import reset_moments_
from elr.projection import NoProjection, Projection
from elr.rewarming import Rewarming
from elr.schedules import Constant, Schedule, WarmupCosine
from elr.triggers import AtKnownChange, Every, Never, OnCusum, Trigger
from elr.undisturbed import undisturbed
from elr.weights import scalable_weights
from envs.images import load_images
from envs.minibatches import Minibatches, Pixels
from runs.recording import exit_with_one_line, one_line_errors, parse, presets, reject_unused
from runs.training import RunArgs, Session, draw_comparison, require, require_not_negative, require_positive

# ------------------------------------------------------------------------------------------------- hyperparameters


@dataclass(frozen=True)
class NapArgs(flags.NapArgs):
    """Normalize-and-project: hold every hidden weight tensor at its initial norm."""

    enabled: bool = True


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
    """Restart the schedule (Algorithm 1)."""

    trigger: Literal["never", "switch", "cusum", "cycle"] = "switch"
    """never: one decay over the whole run; switch: when the data grow (the network is told); cusum: at a change point
    in the loss, with the first decay as long as the first phase and later ones as long as the last; cycle: at equal
    intervals, --rewarm.cycles decays in all (the other scripts' `every` takes the interval in steps instead)"""
    cycles: int = 5
    """number of decays in the run (trigger cycle)"""
    peak_factor: float = 1.0
    """peak of the schedule after a trigger, as a multiple of --learning-rate"""
    moments: Literal["keep", "reset"] = "keep"
    """Adam's moments at a restart (cusum, cycle; at a switch --switch.optimizer decides)"""
    threshold: float = 10.0
    """CUSUM alarm threshold h, in standard deviations of a block mean"""
    slack: float = 1.0
    """CUSUM slack k: half the smallest shift of interest, in standard deviations"""
    block: int = 20
    """updates whose losses are averaged into one CUSUM value, of which the logarithm is tested"""
    burn_in: int = 20
    """blocks from which mean and deviation are estimated before CUSUM may fire"""
    refractory: int = 25
    """blocks after an alarm during which no alarm is raised"""


@dataclass(frozen=True)
class ProbeArgs(flags.ProbeArgs):
    """Measurements that never change training."""

    every: int = 100
    size: int = 256
    """training images in the probe; at most this many old and as many new ones give the norms of their gradients"""
    meter_every: int = 100


@dataclass(frozen=True)
class Args(RunArgs):
    """Warm-starting: every flag, its default, its meaning."""

    dataset: Literal["digits", "cifar10", "mnist", "fashion-mnist"] = "digits"
    """digits is part of the package; the others are read from --data-folder or downloaded once"""
    data_folder: Path | None = None
    """folder with the official files of the data set; nothing is downloaded then"""
    cache: Path | None = None
    """where downloads are kept; default rewarm in $XDG_CACHE_HOME or ~/.cache"""
    batches: tuple[int, ...] = ()
    """numbers of the CIFAR-10 training batches to use, 1 to 5; none means all five"""
    train_images: int = 0
    """use only this many training images, drawn by the seed; 0 uses all"""
    seed: int = 1
    """seed of every random stream"""
    fractions: tuple[float, ...] = (0.1, 1.0)
    """share of the training images in each phase, growing; one phase is a fresh network alone"""
    phase_updates: int = 1000
    """updates of each phase"""
    phase_epochs: int = 0
    """epochs of each phase instead, over the images it has; 0 uses --phase-updates"""
    control: Literal["fresh", "none"] = "fresh"
    """train a fresh network as well from the last switch on; whatever the trigger, its rate makes one decay over the
    last phase, from --learning-rate"""
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
    """random shifts by up to an eighth of the image, and mirror images where that keeps the class (CIFAR-10)"""
    learning_rate: float = 1e-3
    """Adam's rate at the peak of the schedule"""
    assignment: Literal["constant", "fast-features", "slow-features", "even-ratio-abs"] = "constant"
    """per-layer rates: all the same; the last layer's, or all others', a tenth; proportional to mean |w|"""
    nap: NapArgs = field(default_factory=NapArgs)
    schedule: ScheduleArgs = field(default_factory=ScheduleArgs)
    rewarm: RewarmArgs = field(default_factory=RewarmArgs)
    switch: SwitchArgs = field(default_factory=SwitchArgs)
    intervene: InterveneArgs = field(default_factory=InterveneArgs)
    probe: ProbeArgs = field(default_factory=ProbeArgs)
    eval_every: int = 100
    """updates between evaluations on the test set"""
    log_every: int = 10
    """updates between records of the minibatch loss and the rate"""
    checkpoint_every: int = 1000
    """updates between checkpoints"""
    bf16: bool = False
    """forward pass in bfloat16 by torch's autocast; here on a GPU only (the Atari scripts' also runs on a CPU)"""
    threads: int = 2
    exp_name: str = "warm_start"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "phase_updates width hidden batch_size learning_rate eval_every log_every")
        require_positive(self, "checkpoint_every rewarm.peak_factor")
        require_not_negative(self, "seed train_images phase_epochs")
        shares = self.fractions
        grow = bool(shares) and 0 < shares[0] <= shares[-1] <= 1 and list(shares) == sorted(shares)
        require(grow, self, "fractions", "give shares in (0, 1] that do not fall")
        require(min(self.strides) >= 1, self, "strides", "each must be at least 1")
        require(self.rewarm.cycles >= 2, self, "rewarm.cycles", "give at least 2")
        require(not self.bf16 or self.device.startswith("cuda"), self, "bf16 device", "bfloat16 here needs a GPU")
        greatest, rates = self.learning_rate * max(1.0, self.rewarm.peak_factor), "learning_rate rewarm.peak_factor"
        flips = "their product exceeds 1: the gains would change sign"
        require(greatest * self.nap.gain_strength <= 1, self, f"nap.gain_strength {rates}", flips)
        if self.dataset == "digits":
            reject_unused("", self, ["data_folder", "cache"], "with --dataset digits, which is part of the package")
        if self.dataset != "cifar10":
            reject_unused("", self, ["batches"], f"with --dataset {self.dataset}")
        if self.data_folder:
            reject_unused("", self, ["cache"], "with --data-folder, from which everything is read")
        if self.phase_epochs:
            reject_unused("", self, ["phase_updates"], "with --phase-epochs")
        if self.model == "resnet18":
            reject_unused("", self, ["width", "strides", "hidden", "hidden_norm"], "with --model resnet18")
        switches = len(self.fractions) > 1
        if not switches:
            reject_unused("", self, ["control"], "with a single phase of --fractions: the network is the fresh one")
            require(self.rewarm.trigger != "switch", self, "rewarm.trigger fractions", "no switch comes; use never")
        self.switch.check(switches, one := "with a single phase of --fractions: there is no switch")
        self.nap.check()
        updates = None if self.phase_epochs else self.phase_updates * len(self.fractions)
        self.intervene.check(
            self.rewarm.trigger, self.nap.enabled, self.switch, greatest, switches, one, updates=updates
        )  # fmt: skip
        self.probe.check(size_is_read=self.nap.enabled and not self.nap.allow_scale_dependent)
        self._check_schedule()

    def _check_schedule(self) -> None:
        schedule, rewarm = self.schedule, self.rewarm
        if schedule.kind == "constant":
            reject_unused("schedule", schedule, ["low", "warmup_frac"], "with a constant rate")
        else:
            below = 0 <= schedule.low < self.learning_rate
            require(below, self, "schedule.low learning_rate", "the low rate must be below the peak")
            require(0 <= schedule.warmup_frac < 1, self, "schedule.warmup_frac", "must lie in [0, 1)")
        detector = ["threshold", "slack", "block", "burn_in", "refractory"]
        unused = {
            "never": ["cycles", "peak_factor", "moments", *detector], "switch": ["cycles", "moments", *detector],
            "cusum": ["cycles"], "cycle": detector,
        }  # fmt: skip
        reject_unused("rewarm", rewarm, unused[rewarm.trigger], f"with --rewarm.trigger {rewarm.trigger}")
        warms = schedule.kind != "constant" or rewarm.peak_factor != 1 or rewarm.moments == "reset"
        warms = warms or self.intervene.acts_at == "trigger"
        why = "nothing is re-warmed; choose another schedule, --rewarm.peak-factor, or the trigger never"
        require(warms or rewarm.trigger == "never", self, "rewarm.trigger schedule.kind", why)


FREE, ONCE = NapArgs(enabled=False), RewarmArgs("never")
ARMS = (("projected", NapArgs()), ("unconstrained", FREE))
ASSIGNMENTS = ("constant", "fast-features", "slow-features", "even-ratio-abs")
CIFAR: dict[str, Any] = {
    "dataset": "cifar10", "phase_updates": 6_000, "batch_size": 32, "learning_rate": 3e-3, "eval_every": 1000,
    "checkpoint_every": 3000, "probe": ProbeArgs(every=500, meter_every=500),
}  # fmt: skip
PRESETS = presets(
    Args,
    {
        "unconstrained": ("digits, no projection, one decay over the run", {"nap": FREE, "rewarm": ONCE}),
        "online": ("digits arriving in four chunks", {"fractions": (0.25, 0.5, 0.75, 1.0), "phase_updates": 500}),
        **{
            f"fig4-{arm}-{fraction:g}": (
                f"CIFAR-10, {arm}, {fraction:g} first, re-warmed at the switch",
                {**CIFAR, "nap": nap, "fractions": (fraction, 1.0)},
            )
            for fraction in (0.1, 0.5, 1.0)
            for arm, nap in ARMS
        },
        **{
            f"fig5-left-{rates}": (f"CIFAR-10, projected, re-warmed, rates {rates}", {**CIFAR, "assignment": rates})
            for rates in ASSIGNMENTS
        },
        **{
            f"fig13-{rates}-x{factor:g}": (
                f"CIFAR-10, as fig5-left-{rates}, the second peak {factor:g} times the first",
                {**CIFAR, "assignment": rates, "rewarm": RewarmArgs(peak_factor=factor)},
            )
            for rates in ASSIGNMENTS
            for factor in (3.0, 10.0)
        },
        **{
            f"{figure}-{arm}{how}": (f"CIFAR-10, {arm}, {text}", {**CIFAR, "nap": nap, "rewarm": rewarm})
            for arm, nap in ARMS
            for figure, how, text, rewarm in (
                ("fig5-right", "-cusum", "re-warmed by CUSUM on the loss", RewarmArgs("cusum")),
                ("fig5-right", "-single", "one decay over the run", ONCE),
                ("fig9", "", "five cycles, not aligned with the switch", RewarmArgs("cycle")),
            )
        },
        **{
            name: (
                f"CIFAR-10, unconstrained, re-warmed at a switch, and {name}", {**CIFAR, "nap": FREE, "intervene": args}
            ) for name, args in BASELINES.items() if name not in ("fire-cusum", "churn")
        },
    },
)  # fmt: skip

# --------------------------------------------------------------------------------------------------------- network


def layer_norm(channels: int) -> nn.GroupNorm:
    """LayerNorm of [B, C, H, W] over channels and space, a gain and an offset per channel."""
    return nn.GroupNorm(1, channels)


class CNN(nn.Module):
    """The paper's network: convolutions 5x5, 3x3, 3x3, each with LayerNorm and ReLU, a hidden layer, a linear head.

    Layers before a norm have no bias, which its offset makes redundant.
    """

    heads = ("head",)  # neither projected nor measured
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
        x = x.permute(0, 2, 3, 1).flatten(1)  # channels last, as they are in memory
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

    heads = ("head",)
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
    """A network with the initial weights that this seed gives it, in channels-last memory."""
    with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global stream
        torch.manual_seed(seed)
        network = (CNN if args.model == "cnn" else ResNet18)(shape, classes, args)
    return network.to(device, memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------------------------------ loss


def evaluate(network: nn.Module, pixels: Pixels, batch_size: int = 500) -> tuple[float, float]:
    """Cross-entropy and accuracy on the test set."""
    loss, right = 0.0, 0
    with torch.no_grad(), undisturbed(network, pixels.test_x):  # in eval mode
        for x, answer in zip(pixels.test_x.split(batch_size), pixels.test_y.split(batch_size), strict=True):
            logits = network(pixels.normalised(x)).float()
            loss += F.cross_entropy(logits, answer, reduction="sum").item()
            right += int((logits.argmax(1) == answer).sum())
    return loss / len(pixels.test_y), right / len(pixels.test_y)


def compare(learners: Mapping[str, Learner], pixels: Pixels) -> dict[str, float]:
    """Both networks on the test set, and the gap between them in points."""
    loss, accuracy = evaluate(learners["warm"].network, pixels)
    scalars = {"test/loss": loss, "test/accuracy": accuracy}
    if "control" in learners:
        loss, fresh = evaluate(learners["control"].network, pixels)
        scalars |= {"test/loss_fresh": loss, "test/accuracy_fresh": fresh, "test/gap": 100 * (fresh - accuracy)}
    return scalars


def gradient_norm(network: nn.Module, x: Tensor, answer: Tensor) -> float:
    """Euclidean norm of the gradient of the mean loss on these images, over all parameters."""
    gradients = torch.autograd.grad(F.cross_entropy(network(x), answer), list(network.parameters()))
    return math.sqrt(sum(g.double().square().sum().item() for g in gradients))


# ------------------------------------------------------------------------------------------------------------ main


def phase_lengths(args: Args, sizes: Sequence[int]) -> list[int]:
    """Updates of each phase.

    Raises:
        ValueError: they leave no room for what the flags ask for.
    """
    lengths = [args.phase_updates] * len(sizes)
    if args.phase_epochs:
        lengths = [math.ceil(args.phase_epochs * size / args.batch_size) for size in sizes]
    total, r = sum(lengths), args.rewarm
    projects = args.nap.every <= total or not args.nap.enabled
    require(projects, args, "nap.every", f"must be at most the run's {total} updates")
    require(
        r.trigger != "cycle" or total % r.cycles == 0, args, "rewarm.cycles", f"must divide the run's {total} updates"
    )
    if r.trigger == "cusum":
        later = min(lengths[1:], default=total)
        for name, blocks, phase in (("burn_in", r.burn_in, lengths[0]), ("refractory", r.refractory, later)):
            why = f"their product must be below {phase}, the updates of a phase, or CUSUM would miss the next switch"
            require(blocks * r.block < phase, args, f"rewarm.{name} rewarm.block", why)
    return lengths


def make_schedule(args: Args, updates: int, peak: float) -> Schedule:
    """Updates since the last trigger -> learning rate, a decay that takes `updates`."""
    if args.schedule.kind == "constant":
        return Constant(peak)
    warmup = min(round(args.schedule.warmup_frac * updates), updates - 1)
    return WarmupCosine(peak, warmup, updates - warmup, args.schedule.low, initial=args.schedule.low)


def make_schedules(args: Args, lengths: Sequence[int]) -> tuple[Schedule, Schedule]:
    """The schedule after a trigger, and the one from the start."""
    first, later = lengths[0], lengths[-1]
    if args.rewarm.trigger in ("never", "cycle"):
        first = later = sum(lengths) // (args.rewarm.cycles if args.rewarm.trigger == "cycle" else 1)
    again = args.learning_rate * args.rewarm.peak_factor
    return make_schedule(args, later, again), make_schedule(args, first, args.learning_rate)


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
            blocks = {"block": r.block, "burn_in": r.burn_in, "refractory": r.refractory}
            return OnCusum(Cusum(threshold=r.threshold, slack=r.slack, log=True, **blocks))


@dataclass
class Learner:
    """A network in training: its optimiser, and what sets its rate, holds its norms and measures it."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    rewarming: Rewarming
    projection: Projection | NoProjection
    methods: Methods
    meter: Meter | NoMeter = field(default_factory=NoMeter)

    def state_dict(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name).state_dict() for part in fields(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part in fields(self):
            getattr(self, part.name).load_state_dict(state[part.name])


def make_learner(
    args: Args, network: nn.Module, check: Tensor, schedule: Schedule, trigger: Trigger, intervene: InterveneArgs,
    fresh: Callable[[], nn.Module], initial: Schedule | None = None,
) -> Learner:  # fmt: skip
    """Everything except the network itself; `check` is a batch on which its scale invariance is verified."""
    with one_line_errors("--assignment"):
        modules = layerwise_groups(network, args.learning_rate, args.assignment, head=network.heads[0])
    merged: dict[float, list[nn.Parameter]] = {}  # by rate; fewer groups are fewer kernels
    for group in modules:
        merged.setdefault(group["lr"], []).extend(group["params"])
    groups = [{"params": params, "lr": rate} for rate, params in merged.items()]
    optimizer = torch.optim.Adam(groups, lr=args.learning_rate, fused=True)
    with one_line_errors("--schedule, --rewarm"):
        rewarming = Rewarming(optimizer, schedule, trigger, args.rewarm.moments, initial)
    projection = args.nap.build(network, inputs=check, heads=network.heads)
    methods = intervene.build(
        network, optimizer, projection, layers=network.probed, heads=network.heads, inputs=check[:2], fresh=fresh,
        divergence=policy_divergence, batch=args.batch_size, churn={},
    )  # fmt: skip
    return Learner(network, optimizer, rewarming, projection, methods)


def intervene_(switch: SwitchArgs, learner: Learner, fresh: nn.Module) -> None:
    """What --switch asks for, in place; `fresh` is a newly initialised network."""
    switch.intervene_(learner.network, fresh, learner.projection, heads=learner.network.heads)
    if switch.renews:
        learner.methods.weights_renewed()
    if switch.does("optimizer"):
        reset_moments_(learner.optimizer)


def main(args: Args) -> None:
    """Train one network, and its control; everything they leave behind is in the run directory."""
    with one_line_errors("--dataset", also=(OSError,)):
        images = load_images(args.dataset, folder=args.data_folder, cache=args.cache, batches=args.batches or None)
    with one_line_errors():
        there, count = len(images.train_y), args.train_images or len(images.train_y)
        require(count <= there, args, "train_images", f"there are {there} in {images.source}")
        sizes = [round(fraction * count) for fraction in args.fractions]  # images of each phase
        require(min(sizes) >= 1, args, "fractions", f"a phase has none of the {count} images")
        lengths = phase_lengths(args, sizes)
    total, switches = sum(lengths), [int(update) for update in np.cumsum(lengths)[:-1]]
    run = Session(
        args, args.dataset, total=total, streams="split minibatch augment probe init fresh intervene", unit="update"
    )
    augment_rng, reference_rng = run.generator("augment"), run.generator("intervene")
    print(f"{images.source}; phases of {', '.join(f'{n:,}' for n in sizes)} images, {total:,} updates", flush=True)

    with one_line_errors():  # what a library refuses here becomes one line for the user; nothing is written yet
        order = torch.from_numpy(run.generator("split").permutation(there))[:count]
        pixels = Pixels(replace(images, train_x=images.train_x[order], train_y=images.train_y[order]), run.device)
        minibatches = Minibatches(sizes[0], args.batch_size, run.generator("minibatch"))
        new_network = partial(make_network, args, pixels.train_x.shape[1:], images.classes, device=run.device)

        # elr attaches to the network and the optimiser; what is switched off does nothing.
        network = new_network(run.seed("init"))
        chosen = torch.from_numpy(run.generator("probe").permutation(count)[: args.probe.size]).to(run.device)
        probe_x = pixels.normalised(pixels.train_x[chosen])
        with one_line_errors("--schedule, --rewarm"):
            schedule, initial = make_schedules(args, lengths)
            trigger = make_trigger(args, total)
        renewed = lambda: new_network(int(reference_rng.integers(2**32)))  # noqa: E731
        warm = make_learner(args, network, probe_x, schedule, trigger, args.intervene, renewed, initial)
        layers = scalable_weights(network, heads=network.heads)
        warm.meter, probe = args.probe.build(network, layers, warm.optimizer, probe_x, network.probed)

    learners, result = {"warm": warm}, {}
    run.keep(warm=warm, probe=probe, minibatches=minibatches)
    run.watch(network, warm.optimizer)

    def phase() -> int:
        return sum(run.step >= switch for switch in switches)

    def fit_schedule() -> None:
        """Let the decay that a switch has started end with its phase."""
        if args.rewarm.trigger == "switch" and phase():
            peak = args.learning_rate * args.rewarm.peak_factor
            warm.rewarming.schedule = make_schedule(args, lengths[phase()], peak)

    def add_control() -> None:
        """From now on a fresh network trains on the same minibatches."""
        decay = make_schedule(args, lengths[-1], args.learning_rate)
        control = new_network(run.seed("fresh", len(switches)))
        control = make_learner(args, control, probe_x, decay, Never(), InterveneArgs(), renewed)
        learners["control"] = control
        run.keep(control=control)
        run.watch(control.network, control.optimizer, "the control's ")

    def switch() -> None:
        """The data have grown: do what --switch asks for."""
        minibatches.grow(sizes[phase()])
        fit_schedule()
        intervene_(args.switch, warm, new_network(run.seed("fresh", phase() - 1)))
        if args.switch.does("intervention"):
            probe.forget()
        if warm.methods.react(reference, changed=True):
            weights_changed()
        if run.step == switches[-1] and args.control == "fresh":
            add_control()
        run.scalars({"shift/task": phase(), "shift/boundary": 1})

    def weights_changed() -> None:
        """By something else than learning."""
        run.scalar("reset/event", 1)
        probe.forget()  # the next change of the features is measured from here, without the intervention

    def reference(count: int) -> Tensor:
        """Images known so far, for --intervene."""
        return pixels.normalised(pixels.train_x[reference_rng.integers(sizes[phase()], size=count)])

    def measure() -> None:
        """Features on the probe, and the gradients of images known since before the phase and of new ones."""
        run.require_finite()
        run.scalars(probe.measure())
        known = sizes[max(phase() - 1, 0)]
        arrived = sizes[phase()] - known
        n = min(args.probe.size, known, arrived or known)  # the norm of a mean over more images is smaller
        for name, begin in (("old", 0), ("new", known)) if arrived else (("old", 0),):
            x = pixels.normalised(pixels.train_x[begin : begin + n])
            run.scalar(f"norms/gradient_{name}", gradient_norm(network, x, pixels.train_y[begin : begin + n]))

    with run.open():
        charts = {
            "accuracy, warm and fresh": ["test/accuracy", "test/accuracy_fresh"],
            "gap": ["test/gap"],
            "gradients of old and new images": ["norms/gradient_old", "norms/gradient_new"],
        }
        rewarms = args.rewarm.trigger != "never"
        run.layout(layout(layers, network.probed, rewarming=rewarms), shifts=True, supervised=True, charts=charts)
        if run.resumed:
            fit_schedule()  # before the state, from which the next update's rate follows
            if "control" in run.saved:
                add_control()
            run.restore()
        else:
            if probe.due(0):
                measure()
            run.checkpoint()

        while run.running():
            index = torch.from_numpy(minibatches.draw()).to(run.device)
            x, answer = pixels.train_x[index], pixels.train_y[index]
            if args.augment:
                x = pixels.augmented(x, augment_rng)
            x = pixels.normalised(x)
            if args.rewarm.trigger == "switch" and run.step + 1 in switches:
                trigger.notify()  # the data grow after this update

            for learner in learners.values():
                # Learn: Algorithm 1 of arXiv:2507.20057.
                with torch.autocast(run.device.type, torch.bfloat16, enabled=args.bf16):
                    logits = learner.network(x)
                loss = F.cross_entropy(logits.float(), answer)
                learner.optimizer.zero_grad()
                loss.backward()
                run.require_finite(loss=loss.detach())
                learner.methods.before_step(reference, loss.detach())
                learner.meter.before_step()
                learner.optimizer.step()
                learner.meter.after_step()  # measures the step really taken, before the projection
                acted = learner.methods.after_step()  # other methods against loss of plasticity, if any
                learner.projection.step(learner.rewarming.rate)  # W <- W ||W_0|| / ||W||
                rate = learner.rewarming.rate
                signal = max(loss.item(), 1e-30) if args.rewarm.trigger == "cusum" else None  # it takes the logarithm
                # trigger? restart the schedule; set the next update's rate
                rewarmed = run.step + 1 < total and learner.rewarming.step(signal)
                if learner is warm:
                    trained_loss, trained_rate = loss.detach(), rate
                    events = {"rewarm/event": 1} if rewarmed else {}
                    intervened = learner.methods.react(reference, fired=rewarmed) or acted
            run.step += 1
            if intervened:
                weights_changed()
            if run.step in switches:
                switch()

            # Report.
            run.scalars({**warm.meter.fresh_scalars(), **events})
            if run.due(args.log_every):
                run.scalars({"train/loss": float(trained_loss), "charts/learning_rate": trained_rate})
                run.scalars({**warm.rewarming.scalars(), **warm.methods.scalars()})
            if probe.due(run.step):
                measure()
            if run.due(args.eval_every, last=True):
                result = compare(learners, pixels)
                run.scalars(result)
                fresh = f", fresh {result['test/accuracy_fresh']:.3f}" if "control" in learners else ""
                accuracy = f"{sizes[phase()]:,} images, test {result['test/accuracy']:.3f}{fresh}"
                run.show_speed(f"{accuracy}, lr {trained_rate:.1e}")
            if run.due(args.checkpoint_every, last=False):
                run.checkpoint()
        run.end()
    result = result or compare(learners, pixels)  # nothing was left to do: killed after the last update
    line = f"test accuracy {100 * result['test/accuracy']:.2f} %"
    if "control" in learners:
        line += f", fresh network {100 * result['test/accuracy_fresh']:.2f} %: gap {result['test/gap']:.2f} points"
    curves = {"test/accuracy": "warm", "test/accuracy_fresh": "fresh"}
    picture = draw_comparison(run.directory, curves, ylabel="test accuracy")
    run.farewell(line, f"drawn in {picture}" if picture else "no picture: pip install -e .[plots] draws one")


if __name__ == "__main__":
    exit_with_one_line(lambda: main(parse(Args, PRESETS, prog_description=__doc__.split("\n\n")[0])))
