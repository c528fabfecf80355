"""Learning-rate schedules: how much, as a function of the updates since the last trigger.

A schedule maps the number of optimiser updates since the last re-warming (0 for the update right after it) to the
learning rate of the next update. A trigger decides when it restarts, see ``elr.triggers``.

Every schedule here is an immutable dataclass: it prints as the call that made it, compares by value, and holds no
state, so resuming a run needs nothing but the step count.

Source: arXiv:2507.20057, Secs. 4-6 (constant, warm-up + cosine, cyclic, cyclic then constant, one cycle, linear decay).
Deviation: the paper does not give the shape of a cycle. Ours is a linear rise over a fraction ``warmup_frac`` of the
period (rounded to whole updates, at least one), then half a cosine down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]
"""Updates since the last trigger -> learning rate of the next update."""


@dataclass(frozen=True)
class Constant:
    """The same rate at every update.

    eta(t) = rate

    Args:
        rate: learning rate, >= 0.
    Raises:
        ValueError: the rate is negative or not finite; on call, a negative step.
    """

    rate: float

    def __post_init__(self) -> None:
        _check_rate("rate", self.rate, math.inf)

    def __call__(self, step: int) -> float:
        """Rate of the update that comes ``step`` updates after the trigger."""
        _check_step(step)
        return self.rate


@dataclass(frozen=True)
class LinearDecay:
    """A straight line down, then constant.

    eta(t) = initial + (final - initial) * t / decay_steps  for t < decay_steps, else final

    Args:
        initial: rate at step 0, > 0.
        final: rate from ``decay_steps`` on, 0 <= final <= initial.
        decay_steps: updates, >= 1.
    Raises:
        ValueError: an argument outside its range; on call, a negative step.
    """

    initial: float
    final: float
    decay_steps: int

    def __post_init__(self) -> None:
        _check_peak("initial", self.initial)
        _check_rate("final", self.final, self.initial)
        _check_count("decay_steps", self.decay_steps, 1)

    def __call__(self, step: int) -> float:
        """Rate of the update that comes ``step`` updates after the trigger."""
        _check_step(step)
        if step >= self.decay_steps:
            return self.final
        return self.initial + (self.final - self.initial) * (step / self.decay_steps)


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, half a cosine down, then constant (the paper's grokking schedule).

    With w = warmup_steps, d = decay_steps:
        eta(t) = initial + (peak - initial) * t / w                         for t < w
        eta(t) = peak - (peak - final) * (1 - cos(pi * (t - w) / d)) / 2    for w <= t < w + d
        eta(t) = final                                                      for t >= w + d

    Args:
        peak: rate at step ``warmup_steps``, > 0.
        warmup_steps: updates, >= 0 (0 starts at the peak).
        decay_steps: updates from peak to final, >= 1.
        final: 0 <= final <= peak.
        initial: rate at step 0, 0 <= initial <= peak. At 0 the first update after a trigger moves no weight.
    Raises:
        ValueError: an argument outside its range; on call, a negative step.
    """

    peak: float
    warmup_steps: int
    decay_steps: int
    final: float
    initial: float = 0.0

    def __post_init__(self) -> None:
        _check_peak("peak", self.peak)
        _check_count("warmup_steps", self.warmup_steps, 0)
        _check_count("decay_steps", self.decay_steps, 1)
        _check_rate("final", self.final, self.peak)
        _check_rate("initial", self.initial, self.peak)

    def __call__(self, step: int) -> float:
        """Rate of the update that comes ``step`` updates after the trigger."""
        _check_step(step)
        return _rise_and_fall(
            step, self.initial, self.peak, self.final, self.warmup_steps, self.warmup_steps + self.decay_steps
        )


@dataclass(frozen=True)
class Cyclic:
    """Cycles of fixed length between a low and a high rate, without end.

    With P = period, w = max(1, round(warmup_frac * P)) and p = t mod P:
        eta(t) = low + (high - low) * p / w                                for p < w
        eta(t) = high - (high - low) * (1 - cos(pi * (p - w) / (P - w))) / 2    for w <= p < P

    Args:
        low: rate at both ends of a cycle, 0 <= low <= high.
        high: rate at the top, reached exactly at p = w, > 0.
        period: updates in a cycle, >= 2.
        warmup_frac: share of the period spent rising, > 0, with w <= period - 1.
    Raises:
        ValueError: an argument outside its range; on call, a negative step.
    Deviation: the paper gives the two rates and the period; the shape and ``warmup_frac`` are our choice.
    """

    low: float
    high: float
    period: int
    warmup_frac: float = 0.1

    def __post_init__(self) -> None:
        _check_peak("high", self.high)
        _check_rate("low", self.low, self.high)
        _check_count("period", self.period, 2)
        _check_warmup(self.warmup_frac, self.period)

    def __call__(self, step: int) -> float:
        """Rate of the update that comes ``step`` updates after the trigger."""
        _check_step(step)
        warmup = _warmup_updates(self.warmup_frac, self.period)
        return _rise_and_fall(step % self.period, self.low, self.high, self.low, warmup, self.period)


@dataclass(frozen=True)
class CyclicThenConstant:
    """A number of cycles, then the low rate ("cyclic with annealing", early-stopped cycling).

    eta(t) = Cyclic(low, high, period, warmup_frac)(t)  for t < cycles * period, else low

    Args:
        low: rate at the ends of a cycle and after the last, 0 <= low <= high.
        high: rate at the top of a cycle, > 0.
        period: updates in a cycle, >= 2.
        cycles: how many, >= 1 (the paper's DQN runs: ten).
        warmup_frac: as in :class:`Cyclic`.
    Raises:
        ValueError: an argument outside its range; on call, a negative step.
    Deviation: shape of a cycle as in :class:`Cyclic`.
    """

    low: float
    high: float
    period: int
    cycles: int
    warmup_frac: float = 0.1

    def __post_init__(self) -> None:
        _check_peak("high", self.high)
        _check_rate("low", self.low, self.high)
        _check_count("period", self.period, 2)
        _check_count("cycles", self.cycles, 1)
        _check_warmup(self.warmup_frac, self.period)

    def __call__(self, step: int) -> float:
        """Rate of the update that comes ``step`` updates after the trigger."""
        _check_step(step)
        if step >= self.cycles * self.period:
            return self.low
        warmup = _warmup_updates(self.warmup_frac, self.period)
        return _rise_and_fall(step % self.period, self.low, self.high, self.low, warmup, self.period)


@dataclass(frozen=True)
class OneCycle:
    """One rise, one decay, then constant.

    With w = max(1, round(warmup_frac * total_steps)):
    eta = WarmupCosine(peak=high, warmup_steps=w, decay_steps=total_steps - w, final=final, initial=low)

    Args:
        low: rate at step 0, 0 <= low <= high.
        high: rate at the top, > 0.
        total_steps: updates from step 0 to the final rate, >= 2.
        final: rate from ``total_steps`` on, 0 <= final <= high.
        warmup_frac: share of ``total_steps`` spent rising, > 0, with w <= total_steps - 1.
    Raises:
        ValueError: an argument outside its range; on call, a negative step.
    Deviation: shape as in :class:`Cyclic`.
    """

    low: float
    high: float
    total_steps: int
    final: float
    warmup_frac: float = 0.1

    def __post_init__(self) -> None:
        _check_peak("high", self.high)
        _check_rate("low", self.low, self.high)
        _check_count("total_steps", self.total_steps, 2)
        _check_rate("final", self.final, self.high)
        _check_warmup(self.warmup_frac, self.total_steps)

    def __call__(self, step: int) -> float:
        """Rate of the update that comes ``step`` updates after the trigger."""
        _check_step(step)
        warmup = _warmup_updates(self.warmup_frac, self.total_steps)
        return _rise_and_fall(step, self.low, self.high, self.final, warmup, self.total_steps)


def _rise_and_fall(step: int, start: float, peak: float, end: float, warmup: int, total: int) -> float:
    # Written from the side of the exact value: start at 0, peak at warmup and end at total carry no rounding.
    if step >= total:
        return end
    if step < warmup:
        return start + (peak - start) * (step / warmup)
    return peak - (peak - end) * (0.5 * (1.0 - math.cos(math.pi * (step - warmup) / (total - warmup))))


def _warmup_updates(warmup_frac: float, total: int) -> int:
    return max(1, round(warmup_frac * total))


def _check_step(step: int) -> None:
    if step < 0:
        raise ValueError(f"step = {step} is not a number of updates since the last trigger; it must be >= 0")


def _check_rate(name: str, value: float, upper: float) -> None:
    if not (math.isfinite(value) and 0.0 <= value <= upper):
        bound = "finite" if math.isinf(upper) else f"at most the peak {upper}"
        raise ValueError(f"{name} = {value} is not a valid learning rate here; it must be >= 0 and {bound}")


def _check_peak(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"{name} = {value} is not a valid peak learning rate; it must be > 0 and finite")


def _check_count(name: str, value: int, least: int) -> None:
    if value != int(value) or value < least:
        raise ValueError(f"{name} = {value} is not a valid count; it must be a whole number >= {least}")


def _check_warmup(warmup_frac: float, total: int) -> None:
    if not (math.isfinite(warmup_frac) and warmup_frac > 0.0 and _warmup_updates(warmup_frac, total) < total):
        raise ValueError(
            f"warmup_frac = {warmup_frac} leaves no rise or no decay within {total} updates; "
            f"it must be > 0 and at most about {(total - 1) / total:.4g}"
        )
