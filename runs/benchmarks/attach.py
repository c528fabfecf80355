"""What `elr.attach` adds to an update of a plain PyTorch loop, on your own machine.

    python -m runs bench attach

The plain side trains a network on random data: draw a batch, forward, cross-entropy, backward, step. The other side is
the same loop with everything on: projection at every update, a warm-up and cosine whose rate changes at every update,
CUSUM on the logarithm of every loss, the meter every 100 updates, the probe of all ReLUs every 1,000 updates on 256
inputs. It reads `handle.scalars()` every 100 updates. Both sides start from the same weights and draw the same batches.

A pair is --updates updates of each side, in slices that alternate (plain, attached, plain, attached, ...), so that a
machine that slows down slows both. The overhead is attached / plain - 1 within a pair. Then the parts are timed one by
one in one more such pair, as shares of its plain update; `hooks` is the rest of what attach does in a step. They need
not add up to the overhead, because attach also slows down the loop around it: it uses the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

import elr

METER_EVERY, PROBE_EVERY, PROBED = 100, 1000, 256
CLASSES = 10
POOL = 4096
"""samples from which batches are drawn"""
HOOKS = "hooks"
PARTS = ("projection", "schedule and trigger", "meter", "probe", HOOKS)


class Case(NamedTuple):
    """One network, batch size and optimiser."""

    network: Literal["mlp", "cnn"]
    batch_size: int
    optimizer: Literal["adam", "sgd"]

    def __str__(self) -> str:
        """As it is printed."""
        return f"{self.network}, batch {self.batch_size}, {self.optimizer}"


CASES = (
    Case("mlp", 256, "adam"),
    Case("mlp", 64, "adam"),
    Case("mlp", 256, "sgd"),
    Case("mlp", 64, "sgd"),
    Case("cnn", 64, "adam"),
    Case("cnn", 64, "sgd"),
)


@dataclass(frozen=True)
class Args:
    """What to measure, and for how long."""

    networks: tuple[Literal["mlp", "cnn"], ...] = ("mlp", "cnn")
    """mlp: three layers of width 256 with LayerNorm on 64 inputs; cnn: three convolutions on 3 x 32 x 32 pixels"""
    repeats: int = 5
    """interleaved pairs per case"""
    updates: int = 1000
    """updates of each side in a pair; use a multiple of 1,000 to include the probe at its true share"""
    slice: int = 50
    """updates of one side before the other has its turn"""
    threads: int = 1
    """CPU threads"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name in ("repeats", "updates", "slice", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.updates % self.slice:
            raise ValueError(f"--updates {self.updates} must be a multiple of --slice {self.slice}")


def make_network(kind: Literal["mlp", "cnn"]) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A network, and the shape of one input."""

    def hidden(layer: nn.Module, norm: nn.Module) -> list[nn.Module]:
        return [layer, norm, nn.ReLU()]

    if kind == "mlp":
        widths = ((64, 256), (256, 256), (256, 256))
        layers = [part for i, o in widths for part in hidden(nn.Linear(i, o, bias=False), nn.LayerNorm(o))]
        return nn.Sequential(*layers, nn.Linear(256, CLASSES)), (64,)
    channels = ((3, 32, 1), (32, 64, 2), (64, 64, 2))
    layers = [
        part
        for i, o, stride in channels
        for part in hidden(nn.Conv2d(i, o, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(1, o))
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 8 * 8, CLASSES)), (3, 32, 32)


class Loop:
    """A plain training loop; `update` is one pass through its body."""

    def __init__(self, case: Case) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network, shape = make_network(case.network)
            self.x, self.answer = torch.randn(POOL, *shape), torch.randint(CLASSES, (POOL,))
        make = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[case.optimizer]
        self.optimizer: torch.optim.Optimizer = make(self.network.parameters(), lr=1e-3)
        self._batch_size, self._rng = case.batch_size, torch.Generator().manual_seed(1)

    def loss(self) -> Tensor:
        """Draw a batch and make its gradients."""
        index = torch.randint(POOL, (self._batch_size,), generator=self._rng)
        loss = F.cross_entropy(self.network(self.x[index]), self.answer[index])
        self.optimizer.zero_grad()
        loss.backward()
        return loss

    def update(self) -> None:
        """One update."""
        self.loss()
        self.optimizer.step()


class AttachedLoop(Loop):
    """The same loop with everything on.

    Args:
        spent: seconds by part are added here; None times nothing.
    """

    def __init__(self, case: Case, spent: dict[str, float] | None = None) -> None:
        super().__init__(case)
        clock = None if spent is None else HookClock(self.optimizer, spent)
        relus = [name for name, module in self.network.named_modules() if isinstance(module, nn.ReLU)]
        self.handle = elr.attach(
            self.network,
            self.optimizer,
            schedule=elr.WarmupCosine(peak=1e-3, warmup_steps=500, decay_steps=100_000, final=1e-5),
            trigger=elr.OnCusum(elr.Cusum(log=True)),
            meter=METER_EVERY,
            probe=elr.Probe(self.network, self.x[:PROBED], relus, every=PROBE_EVERY),
        )
        if clock is not None:
            clock.end_here()
            clock.parts_of(self.handle)

    def update(self) -> None:
        """One update."""
        self.handle.signal(self.loss())
        self.optimizer.step()
        if self.handle.updates % METER_EVERY == 0:
            self.handle.scalars()


class HookClock:
    """Adds up the seconds of the step hooks that are registered between construction and `end_here`."""

    def __init__(self, optimizer: torch.optim.Optimizer, spent: dict[str, float]) -> None:
        self._optimizer, self._spent, self._began = optimizer, spent, 0.0
        optimizer.register_step_pre_hook(self._begin)
        optimizer.register_step_post_hook(self._begin)

    def end_here(self) -> None:
        """Hooks registered later are not timed."""
        self._optimizer.register_step_pre_hook(self._end)
        self._optimizer.register_step_post_hook(self._end)

    def parts_of(self, handle: elr.Attachment) -> None:
        """Time the parts of a handle."""
        self._time("projection", handle.projection, "step", inside=True)
        self._time("schedule and trigger", handle.rewarming, "step", inside=True)
        self._time("schedule and trigger", handle, "signal")
        self._time("meter", handle.meter, "before_step", inside=True)
        self._time("meter", handle.meter, "after_step", inside=True)
        self._time("meter", handle, "scalars")
        self._time("probe", handle.probe, "measure", inside=True)

    def _time(self, part: str, owner: Any, name: str, *, inside: bool = False) -> None:
        function = getattr(owner, name)

        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            result = function(*args)
            second = time.perf_counter() - start
            self._spent[part] += second
            self._spent[HOOKS] -= second * inside
            return result

        setattr(owner, name, timed)

    def _begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self._spent[HOOKS] += time.perf_counter() - self._began


def seconds(update: Callable[[], None], count: int) -> float:
    """Seconds that `count` updates take."""
    start = time.perf_counter()
    for _ in range(count):
        update()
    return time.perf_counter() - start


def pair(plain: Loop, attached: Loop, args: Args) -> tuple[float, float]:
    """Seconds per update, plain and attached, in slices that alternate."""
    spent = [0.0, 0.0]
    for _ in range(args.updates // args.slice):
        for side, loop in enumerate((plain, attached)):
            spent[side] += seconds(loop.update, args.slice)
    return spent[0] / args.updates, spent[1] / args.updates


def pairs(case: Case, args: Args) -> Iterator[tuple[float, float]]:
    """One pair after another; five updates of each side come first."""
    plain, attached = Loop(case), AttachedLoop(case)
    for loop in (plain, attached):
        seconds(loop.update, 5)
    for _ in range(args.repeats):
        yield pair(plain, attached, args)


def parts(case: Case, args: Args) -> dict[str, float]:
    """Time of each part of the attached loop, as a share of the plain update."""
    spent = dict.fromkeys(PARTS, 0.0)
    plain, attached = Loop(case), AttachedLoop(case, spent)
    for loop in (plain, attached):
        seconds(loop.update, 5)
    spent |= dict.fromkeys(PARTS, 0.0)
    whole = pair(plain, attached, args)[0] * args.updates
    return {part: second / whole for part, second in spent.items()}


def measure(case: Case, args: Args) -> str:
    """Print each pair as it is measured; the lines that sum up."""
    ratios = []
    for plain, attached in pairs(case, args):
        ratios.append(attached / plain - 1)
        print(f"  plain {plain * 1e6:.0f} us, attached {attached * 1e6:.0f} us: {ratios[-1]:+.1%}", flush=True)
    shares = ", ".join(f"{part} {share:.1%}" for part, share in parts(case, args).items())
    return (
        f"overhead: median {median(ratios):+.1%} [smallest {min(ratios):+.1%}, largest {max(ratios):+.1%}], "
        f"n = {args.repeats} pairs of {args.updates} updates\n  of which {shares}"
    )


def main(args: Args) -> None:
    """Measure and print, case by case."""
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    print(f"time per update, {args.threads} thread(s), torch {torch.__version__}")
    for case in CASES:
        if case.network in args.networks:
            print(case, flush=True)
            print(f"  {measure(case, args)}", flush=True)
