"""CUSUM: numbers from a vectorised twin over many streams, Siegmund's approximation, a literal twin of one stream,
training on labels that are permuted, properties, exact resume."""

import functools
import math
import re
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elr import changepoint
from elr.changepoint import Cusum

DEFAULTS = {"threshold": 10.0, "slack": 1.0, "burn_in": 50, "refractory": 100, "smoothing": 0.01}


@dataclass
class Twin:
    """The rules of Cusum on [streams] of block means at once; with ``known`` the estimates stay at 0 and 1."""

    streams: int
    threshold: float
    slack: float
    burn_in: int
    refractory: int
    smoothing: float
    clip: float = math.inf
    floor: float = 0.0
    log: bool = False
    known: bool = False

    def __post_init__(self) -> None:
        n = self.streams
        self.mean, self.var, self.s, self.f = np.zeros((4, n))
        self.previous, self.spread, self.steps, self.rises = np.zeros((4, n))
        self.fall_sum, self.fall_blocks = np.zeros((2, n))
        self.estimated, self.left = np.zeros(n, int), np.zeros(n, int)
        self.tested = self.burn_ins = self.warnings = 0

    @property
    def deviation(self) -> np.ndarray:
        return np.maximum(np.sqrt(self.var), self.floor * (1.0 if self.log else abs(self.mean)))

    def step(self, y: np.ndarray) -> np.ndarray:
        if self.known:
            return self._step_known(y)
        resting, burning = self.left > 0, self.estimated < self.burn_in
        self.left = np.maximum(0, self.left - 1)
        n, d = self.estimated + 1, y - self.mean
        deviation = np.where(burning, 1.0, self.deviation)
        test, learn = ~burning & ~resting, ~burning & (self.s == 0) & (self.f == 0)
        z = d / deviation
        self.s = np.where(test, np.maximum(0.0, self.s + z - self.slack), self.s)
        self.tested += int(test.sum())
        alarm = self.s > self.threshold
        self._burn(burning, n, d, y)
        self.f = np.where(burning, 0.0, np.maximum(0.0, self.f - z - self.slack))
        self.fall_blocks = np.where(self.f > 0, self.fall_blocks + 1, 0)
        self.fall_sum = np.where(self.f > 0, self.fall_sum + y, 0.0)
        fell = self.f > 2 * self.threshold
        learn &= ~fell
        a, c = self.smoothing, np.clip(z, -self.clip, self.clip) * deviation
        self.var = np.where(learn, (1 - a) * (self.var + a * c * c), self.var)
        self.mean = np.where(burning, self.mean + d / n, np.where(learn, self.mean + a * c, self.mean))
        self.mean[fell] = self.fall_sum[fell] / self.fall_blocks[fell]
        self.estimated = np.where(burning, n, self.estimated)
        self.f[fell] = self.fall_sum[fell] = self.fall_blocks[fell] = 0
        for array in (self.mean, self.var, self.s, self.f, self.estimated, self.fall_sum, self.fall_blocks):
            array[alarm] = 0
        for array in (self.spread, self.steps, self.rises):
            array[alarm] = 0
        self.left[alarm] = self.refractory
        return alarm

    def _burn(self, burning: np.ndarray, n: np.ndarray, d: np.ndarray, y: np.ndarray) -> None:
        late = burning & (n > 1)
        square = np.where(late, d * d * (n - 1) / n, 0.0)
        self.spread += square
        self.rises += 2 * np.where(d > 0, square, 0.0)
        self.steps += np.where(late, (y - self.previous) ** 2 / 2, 0.0)
        self.previous = y + 0.0
        self.var = np.where(late, np.maximum(self.steps, self.rises) / np.maximum(n - 1, 1), self.var)
        end = burning & (n == self.burn_in)
        hidden = self.slack * np.sqrt(self.var) >= (math.log(1.5) if self.log else 0.5 * abs(y))
        self.burn_ins += int(end.sum())
        self.warnings += int((end & hidden & (self.var < self.spread / (self.burn_in - 1) / 4)).sum())

    def _step_known(self, y: np.ndarray) -> np.ndarray:
        self.s = np.maximum(0.0, self.s + y - self.slack)
        alarm = self.s > self.threshold
        self.s[alarm] = 0.0
        self.tested += len(y)
        return alarm


class BlockMeans:
    """Exact block means of a stationary AR(1) stream in units of their own deviation (rho = 0: iid)."""

    def __init__(self, streams: int, rho: float, block: int, rng: np.random.Generator) -> None:
        age = block - np.arange(1, block + 1)  # updates from each innovation to the block's end
        to_end = rho**age * math.sqrt(1 - rho**2)
        to_mean = (1 - rho ** (age + 1)) / (1 - rho) / block * math.sqrt(1 - rho**2)
        self.end_sd = math.sqrt(to_end @ to_end)
        self.shared = to_end @ to_mean / self.end_sd
        self.own = math.sqrt(max(0.0, to_mean @ to_mean - self.shared**2))
        self.carry_end = rho**block
        self.carry_mean = float((rho ** np.arange(1, block + 1)).mean())
        self.deviation = math.sqrt(self.carry_mean**2 + to_mean @ to_mean)
        self.rng, self.x = rng, rng.standard_normal(streams)

    def __call__(self) -> np.ndarray:
        e, f = self.rng.standard_normal((2, len(self.x)))
        mean = self.carry_mean * self.x + self.shared * e + self.own * f
        self.x = self.carry_end * self.x + self.end_sd * e
        return mean / self.deviation


class SquaredErrorMeans:
    """Means of 50 squared standard normals, standardised: a skewed stream like a squared loss."""

    def __init__(self, streams: int, rng: np.random.Generator) -> None:
        self.streams, self.rng = streams, rng

    def __call__(self) -> np.ndarray:
        return (self.rng.standard_gamma(25.0, self.streams) - 25.0) / 5.0


def false_alarms(draw, streams: int, blocks: int, **settings_) -> tuple[int, int]:
    """(alarms, tested blocks) of streams in which nothing happens."""
    twin = Twin(streams, **{**DEFAULTS, **settings_})
    alarms = sum(int(twin.step(draw()).sum()) for _ in range(blocks))
    return alarms, twin.tested


def delays(streams: int, jump: float, seed: int, quiet: int = 250, **settings_) -> np.ndarray:
    """Blocks from a jump (in sd) to the alarm: 1 if at once, 0 if not within 400; early alarms are left out."""
    twin = Twin(streams, **{**DEFAULTS, **settings_})
    draw = BlockMeans(streams, 0.0, 1, np.random.default_rng(seed))
    early = np.zeros(streams, bool)
    for _ in range(quiet):
        early |= twin.step(draw())
    delay = np.zeros(streams, int)
    for t in range(1, 401):
        alarm = twin.step(draw() + jump)
        delay[alarm & (delay == 0)] = t
    return delay[~early]


def siegmund(drift: float, threshold: float) -> float:
    b = threshold + 1.166
    return (math.exp(-2 * drift * b) + 2 * drift * b - 1) / (2 * drift**2)


def feed(detector: Cusum, stream) -> list[int]:
    return [i for i, x in enumerate(stream) if detector.update(x)]


def test_simulated_block_means_have_the_distribution_of_an_averaged_ar1_stream() -> None:
    rho, block, n = 0.9, 50, 4000
    rng = np.random.default_rng(0)
    x = rng.standard_normal(n)
    direct = np.zeros((3, n))
    for b in range(3):
        for _ in range(block):
            x = rho * x + math.sqrt(1 - rho**2) * rng.standard_normal(n)
            direct[b] += x / block
    draw = BlockMeans(n, rho, block, rng)
    exact = np.stack([draw() for _ in range(3)])
    assert direct.std() == pytest.approx(draw.deviation, rel=0.03)
    assert exact.std() == pytest.approx(1.0, rel=0.03)
    # rho (1 - rho^B)^2 / (B (1 - rho^2) - 2 rho (1 - rho^B)), the lag-one correlation of AR(1) block means
    tail = 1 - rho**block
    lag_one = rho * tail**2 / (block * (1 - rho**2) - 2 * rho * tail)
    for means in (direct, exact):
        assert np.corrcoef(means[0], means[1])[0, 1] == pytest.approx(lag_one, abs=0.04)


@pytest.mark.parametrize(("threshold", "false_alarm"), [(4.0, 338), (5.0, 938)])
def test_with_known_parameters_the_false_alarm_rate_is_siegmunds(threshold: float, false_alarm: int) -> None:
    assert siegmund(-0.5, threshold) == pytest.approx(false_alarm, abs=1)
    draw = BlockMeans(1000, 0.0, 1, np.random.default_rng(0))
    alarms, tested = false_alarms(draw, 1000, 1500, threshold=threshold, slack=0.5, known=True)
    assert tested / alarms == pytest.approx(false_alarm, rel=3 / math.sqrt(alarms) + 0.01)


@pytest.mark.parametrize(("threshold", "jump", "delay"), [(4, 1, 8.3), (4, 2, 3.2), (5, 1, 10.3), (5, 2, 3.9)])
def test_with_known_parameters_the_delay_is_siegmunds(threshold: float, jump: float, delay: float) -> None:
    assert siegmund(jump - 0.5, threshold) == pytest.approx(delay, abs=0.05)
    seen = delays(3000, jump, seed=0, quiet=1, threshold=threshold, slack=0.5, known=True)
    assert seen.mean() == pytest.approx(delay, rel=0.05)


DOCUMENTED_RATES = [  # slack, threshold, block of AR(1) 0.9 (None: iid), blocks per false alarm
    (1.0, 10.0, 10, 6039),
    (1.0, 10.0, 1, 84),
    (0.5, 12.0, 50, 22445),
    (0.5, 12.0, None, 80815),
]


@pytest.mark.parametrize(("slack", "threshold", "block", "documented"), DOCUMENTED_RATES)
def test_documented_false_alarm_rates(slack: float, threshold: float, block: int | None, documented: float) -> None:
    draw = BlockMeans(1000, 0.9 if block else 0.0, block or 1, np.random.default_rng(5))
    alarms, tested = false_alarms(draw, 1000, 2000, slack=slack, threshold=threshold)
    expected = tested / documented
    assert abs(alarms - expected) <= 3.5 * math.sqrt(expected) + 0.03 * expected
    assert re.search(rf" {slack}, {threshold:g} .*[ ]{documented}\n", changepoint.__doc__ or "")


def test_defaults_are_silent_for_a_million_blocks_of_each_stream() -> None:
    n, rng = 1000, np.random.default_rng(6)
    for draw in (BlockMeans(n, 0.0, 1, rng), BlockMeans(n, 0.9, 50, rng), SquaredErrorMeans(n, rng)):
        alarms, tested = false_alarms(draw, n, 1100)
        assert tested >= 1_000_000
        assert alarms <= 2  # expected at most 0.16


@pytest.mark.parametrize(
    ("jump", "mean", "late"), [(1.5, 24.1, 78), (2.0, 11.4, 23), (3.0, 5.9, 10), (5.0, 3.2, 4), (10.0, 1.8, 2)]
)
def test_documented_delays(jump: float, mean: float, late: int) -> None:
    delay = delays(1000, jump, seed=8)
    assert (delay > 0).mean() >= (0.99 if jump < 2 else 1.0)
    assert delay.mean() == pytest.approx(mean, rel=0.12)
    assert np.quantile(delay, 0.99) == pytest.approx(late, rel=0.3, abs=1)


def test_constants_of_the_rl_scripts_are_as_documented() -> None:
    n, rng = 1000, np.random.default_rng(7)
    for draw in (BlockMeans(n, 0.0, 1, rng), SquaredErrorMeans(n, rng)):
        assert false_alarms(draw, n, 500, **AGENTS)[0] <= 1
    alarms, tested = false_alarms(BlockMeans(n, 0.9, 10, rng), n, 1500, **AGENTS)
    assert abs(alarms - tested / 18935) <= 3.5 * math.sqrt(tested / 18935)
    for jump, mean in ((3.0, 8.0), (5.0, 3.1), (10.0, 1.3)):
        delay = delays(1000, jump, seed=9, **AGENTS)
        assert delay[delay > 0].mean() == pytest.approx(mean, rel=0.12) and (delay > 0).mean() > 0.99
    assert 0.4 < (delays(1000, 2.0, seed=9, **AGENTS) > 0).mean() < 0.7
    assert delays(1000, 5.0, seed=9, **{**AGENTS, "clip": math.inf}).mean() == pytest.approx(3.9, rel=0.12)


def test_learning_only_low_blocks_would_raise_false_alarms() -> None:
    """Negative control for the rule S_{t-1} = 0: with S_t = 0 the estimates drift down and raise false alarms."""

    class OnlyLow(Twin):
        def step(self, y: np.ndarray) -> np.ndarray:
            z = (y - self.mean) / np.sqrt(np.where(self.var > 0, self.var, 1.0))
            high = (self.estimated >= self.burn_in) & (self.s + z - self.slack > 0)
            kept_mean, kept_var = self.mean[high], self.var[high]
            alarm = super().step(y)
            still = ~alarm[high]
            self.mean[high] = np.where(still, kept_mean, 0.0)
            self.var[high] = np.where(still, kept_var, 0.0)
            return alarm

    rng = np.random.default_rng(1)
    ours, naive = Twin(300, **DEFAULTS), OnlyLow(300, **DEFAULTS)
    counts = np.zeros(2, int)
    for _ in range(1000):
        y = rng.standard_normal(300)
        counts += [ours.step(y).sum(), naive.step(y).sum()]
    assert counts[0] == 0
    assert counts[1] > 100


@pytest.mark.parametrize(("refractory", "clip"), [(0, math.inf), (7, math.inf), (40, math.inf), (7, 1.5)])
def test_class_agrees_with_the_twin_at_every_block(refractory: int, clip: float) -> None:
    rules = {"threshold": 2.5, "slack": 0.3, "burn_in": 12, "refractory": refractory, "smoothing": 0.05, "clip": clip}
    streams, block = 4, 3
    twin = Twin(streams, **rules)
    detectors = [Cusum(block=block, min_relative_deviation=0.0, **rules) for _ in range(streams)]
    rng = np.random.default_rng(0)
    alarms = 0
    for t in range(600):
        x = rng.standard_normal((block, streams)) + (t > 300) + 2.0
        expected = twin.step(sum(x) / block)
        for i, detector in enumerate(detectors):
            fired = [detector.update(float(value)) for value in x[:, i]]
            assert fired == [False, False, bool(expected[i])]
            assert detector.statistic == pytest.approx(twin.s[i], abs=1e-9)
            if twin.estimated[i] >= 2:
                assert detector.mean == pytest.approx(twin.mean[i], abs=1e-9)
                assert detector.deviation == pytest.approx(math.sqrt(twin.var[i]), abs=1e-9)
        alarms += int(expected.sum())
    assert alarms > 20


def literal(blocks: list[float], rules: dict[str, float]) -> list[tuple[bool, bool, float, float, float]]:
    """(alarm, level moved, S, mu, var) after each block, all sums over kept blocks; no floor, no clip."""
    n, h, k, a = (rules[name] for name in ("burn_in", "threshold", "slack", "smoothing"))
    out = []
    start, s, mu, var = 0, 0.0, 0.0, 0.0  # start: first block of the current burn-in
    falls: list[float] = []  # the terms of F since it was 0
    quiet_until = 0
    for t, y in enumerate(blocks):
        own = np.array(blocks[start : t + 1])
        if len(own) <= n:
            below = [x - own[:i].mean() for i, x in enumerate(own) if i]
            d = (np.diff(own) ** 2).sum() / 2 / max(len(own) - 1, 1)
            r = 2 * sum(i / (i + 1) * max(0.0, x) ** 2 for i, x in enumerate(below, 1)) / max(len(own) - 1, 1)
            mu, var = own.mean(), max(d, r)
            out.append((False, False, s, mu, var))
            continue
        z = (y - mu) / math.sqrt(var)
        learn = s == 0.0 and not falls
        if t >= quiet_until:
            s = max(0.0, s + z - k)
        if s > h:
            out.append((True, False, 0.0, math.nan, math.nan))
            start, s, falls, quiet_until = t + 1, 0.0, [], t + 1 + rules["refractory"]
            continue
        falls.append(-z - k)
        if sum(falls) <= 0.0:
            falls = []
        moved = sum(falls) > 2 * h
        if moved:
            mu, falls = float(np.mean(blocks[t + 1 - len(falls) : t + 1])), []
        elif learn:
            var = (1 - a) * (var + a * (y - mu) ** 2)
            mu += a * (y - mu)
        out.append((False, moved, s, mu, var))
    return out


@pytest.mark.parametrize(("seed", "refractory"), [(0, 0), (1, 7), (2, 40)])
def test_class_agrees_with_a_literal_twin_on_a_wandering_stream(seed: int, refractory: int) -> None:
    rules = {"threshold": 2.5, "slack": 0.3, "burn_in": 9, "refractory": refractory, "smoothing": 0.05}
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.standard_normal(30) * 3, 20) - np.linspace(0, 20, 600)
    stream = (level + rng.standard_normal(600)).tolist()
    detector = Cusum(block=1, min_relative_deviation=0.0, **rules)
    expected = literal(stream, rules)
    for x, (alarm, _, statistic, mu, var) in zip(stream, expected, strict=True):
        assert detector.update(x) == alarm
        assert detector.statistic == pytest.approx(statistic, abs=1e-9)
        if not alarm and var > 0:
            assert detector.mean == pytest.approx(mu, rel=1e-9, abs=1e-9)
            assert detector.deviation == pytest.approx(math.sqrt(var), rel=1e-9)
    assert sum(alarm for alarm, *_ in expected) >= 5
    assert sum(moved for _, moved, *_ in expected) >= 5


def test_hand_worked_stream() -> None:
    detector = Cusum(threshold=3, slack=0.5, block=1, burn_in=2, refractory=4, smoothing=0.5, min_relative_deviation=0)
    assert math.isnan(detector.mean) and math.isnan(detector.deviation)
    assert not any(detector.update(x) for x in (1.0, 3.0))
    assert (detector.mean, detector.deviation) == (2.0, 2.0)  # D = (3 - 1)^2 / 2 = 2, R = 2 (1 - 1/2) (3 - 1)^2 = 4
    assert not detector.update(6.0)  # z = 2, S = 1.5; learned, because S was 0
    assert detector.statistic == 1.5
    assert detector.mean == 4.0
    assert detector.deviation == pytest.approx(math.sqrt(0.5 * (4 + 0.5 * 16)))
    frozen = (detector.mean, detector.deviation)
    assert not detector.update(frozen[0] + frozen[1])  # z = 1, S = 2; not learned
    assert detector.statistic == pytest.approx(2.0)
    assert (detector.mean, detector.deviation) == frozen
    assert detector.update(frozen[0] + 2 * frozen[1])  # z = 2, S = 3.5
    assert detector.statistic == 0.0 and math.isnan(detector.mean)
    # two blocks of burn-in and two more of refractory pass untested, the fifth is tested
    assert feed(detector, [5.0, 6.0, 1e3, 1e3, 1e9]) == [4]
    assert detector.state_dict()["blocks_seen"] == 10


def test_hand_worked_fall() -> None:
    rules = {"threshold": 3, "slack": 0.5, "block": 1, "burn_in": 2, "smoothing": 0.5, "min_relative_deviation": 0}
    detector = Cusum(**rules)
    feed(detector, [3.0, 1.0])
    assert (detector.mean, detector.deviation) == (2.0, math.sqrt(2.0))  # D = 2, R = 0
    detector = Cusum(**rules)
    feed(detector, [1.0, 3.0, -2.0])  # z = -2, F = 1.5; learned, because F was 0
    assert (detector.mean, detector.deviation) == (0.0, math.sqrt(6.0))
    low = -3 * math.sqrt(6.0)
    feed(detector, [low])  # z = -3, F = 4; not learned
    assert (detector.mean, detector.deviation) == (0.0, math.sqrt(6.0))
    feed(detector, [2 * low])  # z = -6, F = 9.5 > 6: the level moves to the three blocks of the fall
    assert detector.mean == pytest.approx((-2 + 3 * low) / 3) and detector.deviation == math.sqrt(6.0)
    detector.update(detector.mean - 7 * math.sqrt(6.0))  # z = -7, F = 6.5: one block moves it, and nothing is learned
    assert detector.mean == pytest.approx((-2 + 3 * low) / 3 - 7 * math.sqrt(6.0))
    assert detector.deviation == math.sqrt(6.0)


def test_clip_limits_what_one_block_teaches() -> None:
    rules = {"threshold": 3, "slack": 0.5, "block": 1, "burn_in": 2, "smoothing": 0.5, "min_relative_deviation": 0}
    detector = Cusum(clip=1.0, **rules)
    assert feed(detector, [1.0, 3.0, 6.0]) == []  # z = 2, S = 1.5; learned as if z were 1
    assert detector.statistic == 1.5
    assert detector.mean == 3.0
    assert detector.deviation == pytest.approx(math.sqrt(0.5 * (4 + 0.5 * 4)))
    below = Cusum(clip=1.0, **rules)
    assert feed(below, [1.0, 3.0, -2.0]) == []
    assert below.mean == 1.0 and below.deviation == detector.deviation


# Losses that fall, then jump. The labels of a training set are permuted once it is memorised.
PERMUTED_AT = 2800


@functools.cache
def memorised() -> np.ndarray:
    """Losses [3 seeds, updates] of networks that memorise random labels, permuted before update PERMUTED_AT."""
    draw = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(3, 128, 16, generator=draw), torch.randint(10, (3, 128), generator=draw)
    hidden = (torch.randn(3, 16, 64, generator=draw) / 4).requires_grad_()
    head = (torch.randn(3, 64, 10, generator=draw) / 8).requires_grad_()
    optimizer = torch.optim.Adam([hidden, head], lr=2e-3)
    losses = np.zeros((3, PERMUTED_AT + 200))
    for update in range(losses.shape[1]):
        if update == PERMUTED_AT:
            labels = torch.stack([own[torch.randperm(128, generator=draw)] for own in labels])
        batch = torch.randint(128, (64,), generator=draw)
        logits = torch.bmm(torch.bmm(inputs[:, batch], hidden).relu(), head)
        each = torch.nn.functional.cross_entropy(logits.mT, labels[:, batch], reduction="none").mean(1)
        optimizer.zero_grad()
        each.sum().backward()
        optimizer.step()
        losses[:, update] = each.detach()
    return losses


AGENTS = {"slack": 1.5, "threshold": 8.0, "burn_in": 20, "refractory": 40, "smoothing": 0.05, "clip": 3.0}
DETECTORS = {
    "defaults": {},
    "defaults, log": {"log": True},
    "RL scripts": {**AGENTS, "block": 100, "log": True, "min_relative_deviation": 0.05},
    "warm_start": {"block": 20, "burn_in": 20, "refractory": 25, "log": True},
}


@pytest.mark.filterwarnings("ignore:Cusum. the stream fell")
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", DETECTORS)
def test_permuted_labels_are_detected_in_their_first_block(name: str, seed: int) -> None:
    losses = memorised()[seed]
    assert losses[0] > 2.0 and losses[PERMUTED_AT - 50 : PERMUTED_AT].mean() < 5e-3 and losses[PERMUTED_AT] > 2.0
    detector = Cusum(**DETECTORS[name])
    assert feed(detector, losses) == [PERMUTED_AT + detector.block - 1]


@pytest.mark.parametrize("log", [False, True])
def test_the_ordinary_variance_of_the_burn_in_would_hide_permuted_labels(log: bool) -> None:
    """Negative control: the estimates that hold the fall, with no move of the level."""

    class Ordinary(Twin):
        def _burn(self, *args: np.ndarray) -> None:
            super()._burn(*args)
            self.var = self.spread / np.maximum(args[1] - 1, 1) * args[0] + self.var * ~args[0]
            self.f[:] = -math.inf

    blocks = memorised().reshape(3, -1, 50).mean(2)
    blocks = np.log(blocks) if log else blocks
    ours, ordinary = (kind(3, **DEFAULTS, floor=0.01, log=log) for kind in (Twin, Ordinary))
    alarms = np.array([[twin.step(y) for twin in (ours, ordinary)] for y in blocks.T])  # [blocks, twins, streams]
    assert (np.argwhere(alarms)[:, 0] == PERMUTED_AT // 50).sum() == 3
    assert alarms[:, 0].sum() == 3 and alarms[:, 1].sum() == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_ignores_affine_maps_of_the_stream(seed: int, scale: float, shift: float) -> None:
    stream = np.random.default_rng(seed).standard_normal(240)
    stream[120:] += 4.0
    rules = {"threshold": 5.0, "slack": 0.5, "block": 2, "burn_in": 20, "refractory": 25, "min_relative_deviation": 0.0}
    one, other = Cusum(**rules), Cusum(**rules)
    alarms = 0
    for x in stream:
        fired = one.update(float(x))
        assert other.update(float(scale * x + shift)) == fired
        assert other.statistic == pytest.approx(one.statistic, abs=1e-6)
        alarms += fired
    assert alarms >= 1


def test_log_ignores_the_unit_of_the_stream() -> None:
    stream = np.random.default_rng(0).standard_normal(4000) * 0.1 - np.linspace(0, 0.5, 4000)
    stream[3000:] += 3.0
    hits = [feed(Cusum(log=True, block=10), np.exp(stream) * unit) for unit in (1.0, 1e-6, 1e6)]
    assert hits[0] == hits[1] == hits[2]
    assert len(hits[0]) == 1 and 3000 <= hits[0][0] < 3020


@given(st.floats(-1e6, 1e6, allow_subnormal=False), st.sampled_from([0.0, 0.01]))
def test_is_quiet_on_constants(value: float, floor: float) -> None:
    detector = Cusum(block=2, burn_in=5, refractory=0, threshold=0.1, slack=0.01, min_relative_deviation=floor)
    assert feed(detector, [value] * 60) == []
    assert detector.deviation > 0


@pytest.mark.filterwarnings("ignore:Cusum. the stream fell")
def test_is_quiet_while_a_loss_falls_and_after_it_is_memorised() -> None:
    rng = np.random.default_rng(0)
    loss = 2.3 * np.exp(-np.arange(60_000) / 8000) * (1 + 0.3 * rng.standard_normal(60_000)) + 1e-4
    assert feed(Cusum(), loss) == []
    loss[50_000:] += 2.3
    hits = feed(Cusum(), loss)
    assert len(hits) == 1 and hits[0] == 50_049  # the very first block after the jump


LEVELS = {
    "2.3 exp(-t/30) + 1e-5": lambda t: 2.3 * math.exp(-t / 30) + 1e-5,
    "2.3 exp(-t/100) + 1e-5": lambda t: 2.3 * math.exp(-t / 100) + 1e-5,
    "2.3 / (1 + t/2)": lambda t: 2.3 / (1 + t / 2),
}
DOCUMENTED_FALLS = [  # level, log, column of the table, factor (None: to 4.6), found, median delay
    ("2.3 exp(-t/30) + 1e-5", True, 2, 3.0, 0.98, 3),
    ("2.3 exp(-t/30) + 1e-5", True, 4, None, 1.0, 1),
    ("2.3 exp(-t/30) + 1e-5", False, 3, 10.0, 0.25, None),
    ("2.3 exp(-t/30) + 1e-5", False, 4, None, 1.0, 1),
    ("2.3 exp(-t/100) + 1e-5", True, 1, 1.5, 0.34, None),
    ("2.3 exp(-t/100) + 1e-5", False, 2, 3.0, 0.70, 3),
    ("2.3 / (1 + t/2)", True, 2, 3.0, 1.0, 3),
    ("2.3 / (1 + t/2)", False, 3, 10.0, 1.0, 5),
]


@pytest.mark.parametrize(("level", "log", "column", "factor", "found", "median"), DOCUMENTED_FALLS)
def test_documented_jumps_after_a_fall(level, log, column, factor, found, median) -> None:
    streams, rng = 500, np.random.default_rng(4)
    jump = rng.integers(60, 300, streams)
    twin = Twin(streams, **DEFAULTS, floor=0.01, log=log)
    delay, early = np.zeros(streams, int), np.zeros(streams, bool)
    for t in range(400):
        now = LEVELS[level](t)
        y = np.where(t >= jump, factor * now if factor else 4.6, now) * rng.standard_gamma(100.0, streams) / 100
        alarm = twin.step(np.log(y) if log else y)
        early |= alarm & (t < jump)
        first = alarm & (t >= jump) & (t < jump + 100) & (delay == 0)
        delay[first] = (t - jump + 1)[first]
    assert early.sum() <= 1  # none in 1.9e7 blocks
    share = (delay > 0).mean()
    assert abs(share - found) <= 3.5 * math.sqrt(found * (1 - found) / streams) + 0.01
    assert median is None or np.median(delay[delay > 0]) == median
    (row,) = (line for line in (changepoint.__doc__ or "").splitlines() if level in line and log == ("  yes  " in line))
    cell = re.split(r"\s{2,}", row.strip())[column + 1]
    assert cell.startswith(f"{found:.2f} {median} (" if median else f"{found:.2f} (")


@pytest.mark.parametrize("q", [0.1, 1.0, 3.0])
def test_level_stays_near_a_stream_that_falls(q: float) -> None:
    detector = Cusum(block=1, smoothing=0.0, min_relative_deviation=0.0)
    feed(detector, np.random.default_rng(0).standard_normal(50))
    sd, y = detector.deviation, detector.mean
    lags = []
    for _ in range(500):
        y -= q * sd
        lags.append((detector.mean - y) / sd)  # as it is tested
        assert not detector.update(y)
    bound = 1.0 + math.sqrt(4 * 10.0 * q)
    assert 0.8 * bound < max(lags) < bound + q


def fell(stream: np.ndarray | list[float], **rules) -> list[str]:
    """The warnings of a detector's burn-in."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        feed(Cusum(block=1, **rules), stream)
    assert all(warning.category is UserWarning and warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_a_burn_in_that_hides_a_jump_warns_once_with_its_numbers() -> None:
    halving = [2.0**-i for i in range(10)]
    mean, last = np.mean(halving), 2.0**-9
    hidden = math.sqrt((np.diff(halving) ** 2).sum() / 2 / 9)
    (message,) = fell([*halving, *[last] * 50], burn_in=10, refractory=0)
    assert message == (
        f"Cusum: the stream fell during burn-in (blocks 1 to 10: mean {mean:.3g}, last {last:.3g}), which inflates the "
        f"deviation: a rise by less than {hidden:.3g} is no alarm until the estimates have followed; use log=True, or "
        "call reset() after the fall"
    )
    # what it says is so: mu has followed, and a rise by less is no alarm, a larger one is
    for share, alarms in ((0.9, 0), (3.0, 1)):
        rise = [last + share * hidden] * 20
        with pytest.warns(UserWarning, match="blocks 1 to 10"):
            hits = feed(Cusum(block=1, burn_in=10, refractory=1000), [*halving, *[last] * 50, *rise])
        assert len(hits) == alarms


def test_log_of_a_steady_fall_does_not_warn_and_of_a_steep_start_does() -> None:
    noise = 0.05 * np.random.default_rng(0).standard_normal(20)
    assert fell(np.exp(-0.3 * np.arange(20) + noise), burn_in=20, log=True) == []
    steep = np.exp(np.maximum(10.0 - 2.0 * np.arange(20), 0.0))
    (message,) = fell(steep, burn_in=20, log=True)
    assert "geometric mean" in message and "use a smaller block, or call reset()" in message
    hidden = math.exp(math.sqrt(5 * 4 / 2 / 19))
    assert f"a rise to less than {hidden:.3g} times is no alarm" in message


def test_each_burn_in_warns_for_itself() -> None:
    halving = [2.0**-i for i in range(10)]
    messages = fell([*halving, 50.0, *halving], burn_in=10, refractory=0)
    assert ["blocks 1 to 10:" in messages[0], "blocks 12 to 21:" in messages[1], len(messages)] == [True, True, 2]


def test_no_warning_without_a_fall_that_hides_something() -> None:
    rng = np.random.default_rng(0)
    assert fell(np.arange(20.0) + 1, burn_in=20) == []  # a rise
    assert fell(100 - 0.5 * np.arange(20.0), burn_in=20) == []  # small steps: after it a rise by half is seen
    assert fell([1.0] * 20, burn_in=20) == [] == fell([0.0] * 20, burn_in=20)
    assert fell(rng.standard_gamma(0.5, 20), burn_in=20) == []
    for burn_in in (5, 20, 50):  # noise alone, with a mean of 0 so that every rise counts as large
        twin = Twin(20_000, **{**DEFAULTS, "burn_in": burn_in})
        for _ in range(burn_in):
            twin.step(rng.standard_normal(20_000))
        assert twin.burn_ins == 20_000
        assert twin.warnings <= {5: 60, 20: 1, 50: 0}[burn_in]


@settings(deadline=None)
@given(st.floats(1.5, 1e4), st.floats(0.1, 10.0))
def test_delay_is_bounded_on_a_noiseless_jump(jump_in_floors: float, level: float) -> None:
    h, k, a = 10.0, 1.0, 0.01
    detector = Cusum(block=1, refractory=0)
    floor = 0.01 * level
    assert feed(detector, [level] * 100) == []
    hits = feed(detector, [level + jump_in_floors * floor] * 200)
    z = jump_in_floors
    # the first block is learned (S was 0): a smaller z from then on, constant because the estimates are frozen
    mean = level * (1 + a * 0.01 * z)
    deviation = max(0.01 * mean, floor * math.sqrt((1 - a) * a) * z)
    bound = 1 + max(0, math.ceil((h - (z - k)) / ((1 - a) * z * floor / deviation - k) + 1e-6))
    assert len(hits) >= 1 and hits[0] + 1 <= bound


def test_downward_jumps_are_not_alarms() -> None:
    assert feed(Cusum(block=1), [1.0] * 100 + [0.1] * 400) == []


@pytest.mark.parametrize("log", [False, True])
def test_resume_is_exact_in_burn_in_in_a_fall_and_in_a_rise(log: bool) -> None:
    rules = {"threshold": 3.0, "slack": 0.2, "block": 2, "burn_in": 10, "refractory": 12, "log": log}
    level = np.repeat(np.random.default_rng(1).standard_normal(12) * 0.5, 20)
    stream = np.exp(level + 0.1 * np.random.default_rng(2).standard_normal(240)).tolist()
    whole = Cusum(**rules)
    seen = {"burn-in": 0, "fall": 0, "rise": 0, "alarms": 0}
    for cut, x in enumerate(stream):
        state = whole.state_dict()
        seen["burn-in"] += 0 < state["estimated"] < 10
        seen["fall"] += state["fall_blocks"] > 1
        seen["rise"] += state["statistic"] > 0
        copy = Cusum(**rules)
        copy.load_state_dict(state)
        rest = copy.update(x), feed(copy, stream[cut + 1 :])
        fired = whole.update(x)
        seen["alarms"] += fired
        other = Cusum(**rules)
        other.load_state_dict(whole.state_dict())
        assert rest == (fired, feed(other, stream[cut + 1 :]))
        assert copy.state_dict() == other.state_dict()
    assert min(seen.values()) >= 2


@pytest.mark.parametrize("cut", [0, 7, 333, 334, 1001, 2999])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_resume_is_exact_also_within_a_block(cut: int, as_tensor: bool) -> None:
    rules = {"threshold": 2.0, "slack": 0.2, "block": 10, "burn_in": 10, "refractory": 12}
    values = torch.rand(3000, generator=torch.Generator().manual_seed(0))
    stream = list(values) if as_tensor else values.tolist()
    whole, first, second = Cusum(**rules), Cusum(**rules), Cusum(**rules)
    expected = feed(whole, stream)
    hits = feed(first, stream[:cut])
    state = first.state_dict()
    assert all(type(value) in (int, float) for value in state.values())
    second.load_state_dict(state)
    hits += [cut + i for i in feed(second, stream[cut:])]
    assert hits == expected and len(expected) > 3
    assert second.state_dict() == whole.state_dict()


def test_tensor_is_read_once_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: reads.append(1) or read(self))
    forbidden = ("item", "__bool__", "tolist", "cpu", "numpy")
    for name in forbidden:
        monkeypatch.setattr(torch.Tensor, name, lambda self, *_: pytest.fail("host sync"))
    detector = Cusum(block=20)
    feed(detector, torch.ones(100))
    assert len(reads) == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.float64])
def test_sums_of_narrow_dtypes_do_not_lose_values(dtype: torch.dtype) -> None:
    detector = Cusum(block=1000, burn_in=2)
    feed(detector, torch.ones(2000, dtype=dtype))
    assert detector.mean == 1.0 and detector.state_dict()["blocks_seen"] == 2


def test_stream_with_a_graph_is_detached() -> None:
    detector = Cusum(block=3)
    weight = torch.ones((), requires_grad=True)
    detector.update(weight * 2)
    assert not detector._block_sum.requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_non_finite_block_raises_and_keeps_the_estimates(bad: float, as_tensor: bool) -> None:
    detector = Cusum(block=2, burn_in=5)
    feed(detector, [1.0, 2.0] * 10 + [3.0, 4.0])
    before = detector.state_dict()
    detector.update(torch.tensor(bad) if as_tensor else bad)
    with pytest.raises(FloatingPointError, match=r"block 12 has mean (nan|-?inf)"):
        detector.update(1.0)
    assert detector.state_dict() == before
    assert feed(detector, [1.5] * 10) == []


def test_log_refuses_non_positive_blocks() -> None:
    with pytest.raises(ValueError, match=r"block 1 has mean -1\.0; log=True needs >= 0"):
        Cusum(block=1, log=True).update(-1.0)


def test_vector_signals_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        Cusum().update(torch.ones(2))


def test_state_of_another_detector_is_refused() -> None:
    long = Cusum(block=50)
    feed(long, [1.0] * 30)
    with pytest.raises(ValueError, match="30 values of a block"):
        Cusum(block=10).load_state_dict(long.state_dict())
    with pytest.raises(ValueError, match="exactly"):
        Cusum().load_state_dict({"mean": 1.0})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 0.0),
        ("threshold", math.inf),
        ("slack", -0.1),
        ("block", 0),
        ("block", 1.5),
        ("burn_in", 1),
        ("refractory", -1),
        ("smoothing", 1.0),
        ("smoothing", math.nan),
        ("min_relative_deviation", -0.01),
        ("clip", 0.0),
        ("clip", math.nan),
    ],
)
def test_bad_arguments_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} = {value} .* must be"):
        Cusum(**{name: value})


def test_a_loss_that_becomes_exactly_zero_is_no_error_and_no_alarm() -> None:
    """The float32 cross-entropy of a network that has fitted its data; then the task changes."""
    loss = [max(3.0 * 0.97**i, 0.0) if i < 700 else 0.0 for i in range(2000)] + [2.0] * 20
    cusum = Cusum(log=True, block=10)
    fired = [i for i, value in enumerate(loss) if cusum.update(value)]
    assert fired == [2009]  # in the block of the change
