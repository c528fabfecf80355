"""Schedules: closed forms at every joint, ranges, periodicity, and refusals that name the argument."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elr.schedules import Constant, Cyclic, CyclicThenConstant, LinearDecay, OneCycle, Schedule, WarmupCosine

LOW, HIGH = 1e-6, 6.25e-5  # the paper's DQN rates: neither their sum nor difference is exact in binary


def within(value: float, low: float, high: float) -> bool:
    return low * (1 - 1e-12) <= value <= high * (1 + 1e-12)


def test_constant_is_the_same_float_at_every_step() -> None:
    schedule = Constant(6.25e-5)
    assert all(schedule(step) == 6.25e-5 for step in (0, 1, 10**9))


def test_linear_decay_table() -> None:
    schedule = LinearDecay(1.0, 0.2, 4)
    assert [schedule(t) for t in range(7)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2], rel=1e-15)
    assert (schedule(0), schedule(4), schedule(10**9)) == (1.0, 0.2, 0.2)


def test_warmup_cosine_table() -> None:
    schedule = WarmupCosine(peak=1.0, warmup_steps=2, decay_steps=4, final=0.2, initial=0.5)
    # 0.2 + 0.8 (1 + cos(pi q / 4)) / 2 at q = 0..4, with cos(pi / 4) = sqrt(1/2)
    half = math.sqrt(0.5)
    decay = [1.0, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half), 0.2]
    assert [schedule(t) for t in range(8)] == pytest.approx([0.5, 0.75, *decay, 0.2], rel=1e-15)


def test_warmup_cosine_with_the_papers_grokking_numbers_has_exact_endpoints() -> None:
    schedule = WarmupCosine(peak=1e-2, warmup_steps=1000, decay_steps=99_000, final=1e-4)
    assert (schedule(0), schedule(1000), schedule(100_000), schedule(10**7)) == (0.0, 1e-2, 1e-4, 1e-4)
    assert schedule(500) == pytest.approx(5e-3, rel=1e-15)
    assert schedule(1000 + 49_500) == pytest.approx((1e-2 + 1e-4) / 2, rel=1e-14)


def test_warmup_cosine_without_warmup_starts_at_the_peak() -> None:
    assert WarmupCosine(peak=HIGH, warmup_steps=0, decay_steps=10, final=LOW)(0) == HIGH


def test_cyclic_table() -> None:
    schedule = Cyclic(low=1.0, high=3.0, period=6, warmup_frac=1 / 3)
    half = math.sqrt(0.5)
    cycle = [1.0, 2.0, 3.0, 2.0 + half, 2.0, 2.0 - half]
    assert [schedule(t) for t in range(12)] == pytest.approx(cycle * 2, rel=1e-15)


@pytest.mark.parametrize("schedule", [Cyclic(LOW, HIGH, 1000), CyclicThenConstant(LOW, HIGH, 1000, cycles=3)])
def test_cycles_have_exact_ends_and_top(schedule: Schedule) -> None:
    assert [schedule(t) for t in (0, 100, 1000, 1100, 2000, 2100)] == [LOW, HIGH] * 3


def test_cyclic_then_constant_is_cyclic_and_then_low() -> None:
    cyclic, annealed = Cyclic(LOW, HIGH, 50), CyclicThenConstant(LOW, HIGH, 50, cycles=3)
    assert [annealed(t) for t in range(150)] == [cyclic(t) for t in range(150)]
    assert {annealed(t) for t in range(150, 400)} == {LOW}


def test_one_cycle_rises_once_and_stays_at_its_own_final_rate() -> None:
    schedule = OneCycle(low=LOW, high=HIGH, total_steps=200, final=1e-7, warmup_frac=0.25)
    values = [schedule(t) for t in range(300)]
    assert (values[0], values[50], set(values[200:])) == (LOW, HIGH, {1e-7})
    assert values[:51] == sorted(values[:51]) and values[50:] == sorted(values[50:], reverse=True)
    same = WarmupCosine(peak=HIGH, warmup_steps=50, decay_steps=150, final=1e-7, initial=LOW)
    assert values == [same(t) for t in range(300)]


rates = st.floats(1e-9, 1.0)
fractions = st.floats(0.01, 0.9)


@given(st.tuples(rates, rates).map(sorted), st.integers(20, 10**6), fractions, st.integers(0, 10**8))
def test_cyclic_stays_in_range_and_repeats(ends: list[float], period: int, frac: float, step: int) -> None:
    schedule = Cyclic(*ends, period, frac)
    assert within(schedule(step), *ends)
    assert schedule(step + period) == schedule(step)


@given(st.tuples(rates, rates).map(sorted), st.integers(20, 10**6), fractions)
def test_joints_are_continuous(ends: list[float], period: int, frac: float) -> None:
    low, high = ends
    schedules: list[Schedule] = [
        Cyclic(low, high, period, frac),
        CyclicThenConstant(low, high, period, 2, frac),
        OneCycle(low, high, period, low, frac),
        LinearDecay(high, low, period),
    ]
    warmup = max(1, round(frac * period))
    # the steepest line is the warm-up, the cosine's slope is at most pi/2 of the mean slope
    steepest = (high - low) * max(1 / warmup, math.pi / 2 / (period - warmup), 1 / period)
    for schedule in schedules:
        for joint in (warmup, period, 2 * period):
            for step in (joint - 1, joint):
                assert abs(schedule(step + 1) - schedule(step)) <= steepest * (1 + 1e-9) + 1e-15


@given(st.tuples(rates, rates, rates).map(sorted), st.integers(0, 1000), st.integers(1, 1000), st.integers(0, 3000))
def test_warmup_cosine_stays_between_its_ends(ends: list[float], warmup: int, decay: int, step: int) -> None:
    final, initial, peak = ends
    schedule = WarmupCosine(peak, warmup, decay, final, initial)
    assert within(schedule(step), initial if step < warmup else final, peak)
    assert (schedule(warmup), schedule(warmup + decay)) == (peak, final)


def test_schedules_print_as_their_call_and_compare_by_value() -> None:
    assert repr(Cyclic(0.1, 0.2, 10)) == "Cyclic(low=0.1, high=0.2, period=10, warmup_frac=0.1)"
    assert Cyclic(0.1, 0.2, 10) == Cyclic(0.1, 0.2, 10) != Cyclic(0.1, 0.2, 11)


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(0.1),
        LinearDecay(1.0, 0.1, 5),
        WarmupCosine(1.0, 2, 3, 0.1),
        Cyclic(0.1, 1.0, 10),
        CyclicThenConstant(0.1, 1.0, 10, 2),
        OneCycle(0.1, 1.0, 10, 0.1),
    ],
)
def test_negative_step_is_refused(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match=r"step = -1"):
        schedule(-1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Constant(-0.1), r"rate = -0\.1 .* >= 0"),
        (lambda: Constant(math.nan), r"rate = nan"),
        (lambda: Constant(math.inf), r"rate = inf"),
        (lambda: LinearDecay(0.0, 0.0, 5), r"initial = 0\.0 .* > 0"),
        (lambda: LinearDecay(0.1, 0.2, 5), r"final = 0\.2 .* at most the peak 0\.1"),
        (lambda: LinearDecay(0.1, 0.0, 0), r"decay_steps = 0 .* >= 1"),
        (lambda: WarmupCosine(0.1, -1, 5, 0.0), r"warmup_steps = -1 .* >= 0"),
        (lambda: WarmupCosine(0.1, 1, 1.5, 0.0), r"decay_steps = 1\.5 .* whole number"),
        (lambda: WarmupCosine(0.1, 1, 5, 0.0, initial=0.2), r"initial = 0\.2 .* at most the peak"),
        (lambda: Cyclic(0.2, 0.1, 10), r"low = 0\.2 .* at most the peak"),
        (lambda: Cyclic(0.0, 0.0, 10), r"high = 0\.0 .* > 0"),
        (lambda: Cyclic(0.1, 0.2, 1), r"period = 1 .* >= 2"),
        (lambda: Cyclic(0.1, 0.2, 10, 0.0), r"warmup_frac = 0\.0 .* > 0"),
        (lambda: Cyclic(0.1, 0.2, 10, 0.99), r"warmup_frac = 0\.99 leaves no rise or no decay within 10"),
        (lambda: CyclicThenConstant(0.1, 0.2, 10, 0), r"cycles = 0 .* >= 1"),
        (lambda: OneCycle(0.1, 0.2, 1, 0.1), r"total_steps = 1 .* >= 2"),
        (lambda: OneCycle(0.1, 0.2, 10, 0.3), r"final = 0\.3 .* at most the peak"),
    ],
)
def test_bad_arguments_name_themselves_their_value_and_the_range(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
