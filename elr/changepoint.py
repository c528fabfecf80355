"""Change-point detection on a training signal: one-sided (upper) CUSUM.

False alarms and delays, simulated on normal streams, in blocks. All arguments except the named ones have their defaults
(burn_in 50, refractory 100, smoothing 0.01). False alarms are from 2000 to 10,000 streams of 2000 blocks each:

    slack, threshold   stream                     tested blocks    alarms   blocks per false alarm
    1.0, 10 (default)  iid                        1.9e7                 1   2e7
    1.0, 10            AR(1) 0.9, blocks of 50    1.9e7                 3   6e6
    1.0, 10            AR(1) 0.9, blocks of 10    7.7e6              1271   6039
    1.0, 10            AR(1) 0.9, no averaging    1.8e6             21505   84
    1.0, 10            mean of 50 squared normals 9.7e6                 2   5e6
    1.0, 10            one squared normal         3.8e6               691   5547
    1.0, 8             AR(1) 0.9, blocks of 50    1.9e7                27   7.2e5
    0.5, 12            iid                        1.9e7               241   80815
    0.5, 12            AR(1) 0.9, blocks of 50    1.9e7               865   22445
    1.0, 10            falls below, 1000 blocks   1.9e7                 0   > 6e6
    1.0, 10, smoothing 0 (burn-in estimate kept), iid: 4 alarms in 9.7e6

    jump, in sd of a block mean              1.5     2      3      5      10      (n = 2000 streams each)
    mean delay, slack 1.0, threshold 10      24.1    11.4   5.9    3.2    1.8
    99th percentile                          78      23     10     4      2
    mean delay, slack 0.5, threshold 12      13.1    8.8    5.4    3.2

So with its defaults the detector raised one alarm in 1e9 updates (2e7 blocks of 50) while nothing changed, and it
detects a jump of five deviations of a block mean (0.7 deviations of one value, if the 50 are independent) within about
200 updates. The estimates absorb some jumps of 1.5 without an alarm (3 of 2000 streams). With known mean and deviation,
slack 0.5 and threshold 5, 6421 alarms in 6e6 blocks give 934 blocks per false alarm; Siegmund's approximation is 938.

A loss that falls and then jumps, at a block drawn from 60 to 299 (n = 2000 streams, block means with a relative
deviation of 0.1). Share found within 100 blocks and, from one half on, their median delay; in brackets the same with
mean and variance of the burn-in as its ordinary ones and no F (see :class:`Cusum`):

    level at block t        log  x 1.5           x 3               x 10              to 4.6
    2.3 exp(-t/10) + 1e-4   yes  0.62 11 (0.00)  0.83 3 (0.00)     1.00 1 (0.00)     1.00 1 (1.00 8)
    2.3 exp(-t/30) + 1e-5   yes  0.00 (0.00)     0.98 3 (0.00)     1.00 1 (0.01)     1.00 1 (1.00 9)
    2.3 exp(-t/100) + 1e-5  yes  0.34 (0.00)     1.00 2 (0.17)     1.00 1 (1.00 7)   1.00 1 (1.00 5)
    2.3 / (1 + t/2)         yes  0.20 (0.00)     1.00 3 (0.00)     1.00 1 (0.71 16)  1.00 1 (1.00 4)
    2.3 / sqrt(1 + t/2)     yes  0.85 8 (0.00)   1.00 2 (0.55 18)  1.00 1 (1.00 4)   1.00 1 (1.00 3)
    2.3 exp(-t/10) + 1e-4   no   0.00 (0.00)     0.00 (0.00)       0.00 (0.00)       1.00 1 (1.00 1)
    2.3 exp(-t/30) + 1e-5   no   0.00 (0.00)     0.02 (0.00)       0.25 (0.02)       1.00 1 (1.00 2)
    2.3 exp(-t/100) + 1e-5  no   0.03 (0.00)     0.70 3 (0.20)     1.00 1 (0.93 3)   1.00 1 (1.00 2)
    2.3 / (1 + t/2)         no   0.00 (0.00)     0.00 (0.00)       1.00 5 (0.00)     1.00 1 (1.00 1)
    2.3 / sqrt(1 + t/2)     no   0.01 (0.00)     1.00 3 (0.14)     1.00 1 (1.00 2)   1.00 1 (1.00 1)

So ``log`` is the choice for a loss. A jump back to the loss of an untrained network is found at once either way. While
a stream falls by q sd per block, mu is at most about slack + sqrt(4 threshold q) sd above it, which hides jumps of that
size. Streams that wander, such as the TD errors of an agent that learns from a replay memory, need a larger slack and
smoothing, as in :mod:`elr.flags`.
"""

from __future__ import annotations

import math
import warnings
from typing import TypedDict

import torch
from torch import Tensor

from elr.states import check_keys

_TINY_DEVIATION = 1e-12
_LEAST = 1e-8  # under a logarithm: the cross-entropy of a network that has fitted its data becomes exactly 0 in float32
_FALL = 2.0  # a fall moves the level at this multiple of the threshold: a needless move costs false alarms later
_MOSTLY_FALL = 0.25  # share of the ordinary variance that is left without the fall; independent blocks leave about 1
_HIDDEN_RISE = 1.5  # a burn-in that hides a rise by this factor is worth a warning


class CusumState(TypedDict):
    """Everything a :class:`Cusum` needs to continue exactly, as plain numbers."""

    block_sum: float
    block_filled: int
    blocks_seen: int
    estimated: int
    mean: float
    variance: float
    statistic: float
    refractory_left: int
    previous: float
    spread: float
    steps: float
    rises: float
    fall: float
    fall_mean: float
    fall_blocks: int


class Cusum:
    """One-sided upper CUSUM on the standardised block means of a stream.

    Let y_t be the mean of the t-th block of ``block`` consecutive values (its logarithm when ``log``):
        z_t = (y_t - mu_{t-1}) / sd_{t-1}
        S_t = max(0, S_{t-1} + z_t - slack),   alarm if S_t > threshold                      (Page 1954)
    mu and sd = sqrt(var) are estimated on n = ``burn_in`` blocks, during which nothing is tested. With m_t the mean of
    the first t of them and sums over t = 2..n:
        mu = m_n,   var = max(D, R),   D = sum (y_t - y_{t-1})^2 / 2 / (n - 1)              (von Neumann 1941)
                                       R = 2 sum (1 - 1/t) max(0, y_t - m_{t-1})^2 / (n - 1)
    D and R, like the ordinary variance, have the true variance as their mean if the blocks are independent and
    symmetric. A fall adds its whole height to the ordinary variance, only its single steps to D and nothing to R.
    R is there for correlated blocks, whose variance D understates. After the burn-in exponential averages at rate
    a = ``smoothing`` follow:
        d = y_t - mu, clipped to at most ``clip`` sd either way;
        mu <- mu + a d;   var <- (1 - a)(var + a d^2),   only if S_{t-1} = 0 and F_{t-1} = 0.
    F is the same sum for falls. It raises no alarm but moves the level, and such a block is not averaged:
        F_t = max(0, F_{t-1} - z_t - slack),   if F_t > 2 threshold: mu <- mean of the blocks since F was 0, F_t <- 0.
    At an alarm S = F = 0, mu and sd are forgotten, a new burn-in starts, and so does the refractory period: for
    ``refractory`` blocks the estimates learn but nothing is tested.

    Args:
        threshold: h > 0, in standard deviations of a block mean.
        slack: k >= 0, in the same unit; half the smallest jump that should be detected.
        block: updates averaged into one value, >= 1. Long blocks undo the autocorrelation of a training signal.
        burn_in: blocks used for the first estimate, >= 2.
        refractory: blocks after an alarm without a test, >= 0; no effect up to ``burn_in``, which tests nothing either.
        smoothing: a in [0, 1); 0 keeps the estimates of the burn-in.
        min_relative_deviation: floor of sd as a fraction of abs(mu), >= 0. With ``log`` it is the floor itself, because
            sd(log x) is approximately sd(x) / x. Without it, memorisation drives sd to 0 and everything is an alarm.
        clip: c > 0, in sd: limits how far one block moves the estimates, so that the first block of a jump does not
            mask the rest when ``smoothing`` is large; inf for no limit.
        log: test the logarithm of the block mean, which must not be negative; below 1e-8 it counts as 1e-8.
    Raises:
        ValueError: an argument outside its range.
    Warns:
        UserWarning: at the end of a burn-in that holds a fall (var below a quarter of the ordinary variance) if slack
            sd is at least half the size of the last block (with ``log``, the logarithm of 1.5): a rise to 1.5 times
            the present value would be no alarm until the estimates have followed. Of 5e5 burn-ins of independent
            blocks with mean 0 none warns (20 blocks: 2, 10 blocks: 114); with AR(1) 0.9 and no averaging 7 % do.
    Deviation: arXiv:2507.20057 names CUSUM on the loss without its constants; all constants are ours. It is one-sided
        because a loss falls while training succeeds. The estimates learn block t if S_{t-1} = 0 rather than if S_t = 0:
        the latter never learns a high block, so mu and sd drift down until there is an alarm without a change. The same
        holds for F and low blocks.
    """

    def __init__(
        self,
        *,
        threshold: float = 10.0,
        slack: float = 1.0,
        block: int = 50,
        burn_in: int = 50,
        refractory: int = 100,
        smoothing: float = 0.01,
        min_relative_deviation: float = 0.01,
        clip: float = math.inf,
        log: bool = False,
    ) -> None:
        _check("threshold", threshold, math.isfinite(threshold) and threshold > 0, "> 0 and finite")
        _check("slack", slack, math.isfinite(slack) and slack >= 0, ">= 0 and finite")
        _check("block", block, block == int(block) and block >= 1, "a whole number of updates >= 1")
        _check("burn_in", burn_in, burn_in == int(burn_in) and burn_in >= 2, "a whole number of blocks >= 2")
        _check("refractory", refractory, refractory == int(refractory) and refractory >= 0, "a whole number >= 0")
        _check("smoothing", smoothing, 0 <= smoothing < 1, "in [0, 1)")
        floor = min_relative_deviation
        _check("min_relative_deviation", floor, math.isfinite(floor) and floor >= 0, ">= 0 and finite")
        _check("clip", clip, clip > 0, "> 0; inf for no limit")
        self.threshold = threshold
        self.slack = slack
        self.block = block
        self.burn_in = burn_in
        self.refractory = refractory
        self.smoothing = smoothing
        self.min_relative_deviation = min_relative_deviation
        self.clip = clip
        self.log = log
        self.reset()

    def reset(self) -> None:
        """Return to the state after construction: forget the estimates, S, and a partly filled block."""
        self._block_sum: float | Tensor = 0.0
        self._block_filled = 0
        self._blocks_seen = 0
        self._refractory_left = 0
        self._forget()

    @property
    def statistic(self) -> float:
        """S, in standard deviations of a block mean; 0 during burn-in and the refractory period."""
        return self._statistic

    @property
    def mean(self) -> float:
        """Current estimate of the level of the (log) block means; nan before the first block of a burn-in."""
        return self._mean if self._estimated else math.nan

    @property
    def deviation(self) -> float:
        """Current deviation of a (log) block mean, floor included; nan before the second block of a burn-in."""
        if self._estimated < 2:
            return math.nan
        floor = self.min_relative_deviation * (1.0 if self.log else abs(self._mean))
        return max(math.sqrt(self._variance), floor, _TINY_DEVIATION)

    def update(self, x: float | Tensor) -> bool:
        """Take one value of the stream; True at an alarm.

        O(1). A tensor is summed on its own device and read (one host sync) only when it completes a block.

        Args:
            x: a number or a tensor with one element, of any real dtype.
        Raises:
            ValueError: the tensor does not have exactly one element, or ``log`` meets a block mean below 0.
            FloatingPointError: the block mean is NaN or infinite.
            After either error of a completed block, that block is dropped and estimates and S are as before it.
        """
        self._block_sum = self._block_sum + (_scalar(x) if isinstance(x, Tensor) else x)
        self._block_filled += 1
        if self._block_filled < self.block:
            return False
        total = float(self._block_sum)
        self._block_sum, self._block_filled = 0.0, 0
        return self._observe(self._transform(total / self.block))

    def state_dict(self) -> CusumState:
        """State as plain numbers, a partly filled block included (reading its sum is a host sync)."""
        return CusumState(
            block_sum=float(self._block_sum),
            block_filled=self._block_filled,
            blocks_seen=self._blocks_seen,
            estimated=self._estimated,
            mean=self._mean,
            variance=self._variance,
            statistic=self._statistic,
            refractory_left=self._refractory_left,
            previous=self._previous,
            spread=self._spread,
            steps=self._steps,
            rises=self._rises,
            fall=self._fall,
            fall_mean=self._fall_mean,
            fall_blocks=self._fall_blocks,
        )

    def load_state_dict(self, state: CusumState) -> None:
        """Continue exactly from :meth:`state_dict`; the constructor's arguments must be the same.

        Raises:
            ValueError: keys are missing or unknown, or the stored block or burn-in is longer than this detector's.
        """
        check_keys("Cusum", state, CusumState.__annotations__)
        if state["block_filled"] >= self.block or state["estimated"] > self.burn_in:
            raise ValueError(
                f"state holds {state['block_filled']} values of a block and {state['estimated']} blocks of a burn-in, "
                f"which block = {self.block}, burn_in = {self.burn_in} cannot give; use the stored run's arguments"
            )
        self._block_sum = state["block_sum"]
        self._block_filled = state["block_filled"]
        self._blocks_seen = state["blocks_seen"]
        self._estimated = state["estimated"]
        self._mean = state["mean"]
        self._variance = state["variance"]
        self._statistic = state["statistic"]
        self._refractory_left = state["refractory_left"]
        self._previous = state["previous"]
        self._spread = state["spread"]
        self._steps = state["steps"]
        self._rises = state["rises"]
        self._fall = state["fall"]
        self._fall_mean = state["fall_mean"]
        self._fall_blocks = state["fall_blocks"]

    def _transform(self, mean: float) -> float:
        if not math.isfinite(mean):
            raise FloatingPointError(f"block {self._blocks_seen + 1} has mean {mean}; CUSUM needs finite values")
        if not self.log:
            return mean
        if mean < 0.0:
            raise ValueError(f"block {self._blocks_seen + 1} has mean {mean}; log=True needs >= 0, use log=False")
        return math.log(max(mean, _LEAST))

    def _observe(self, y: float) -> bool:
        self._blocks_seen += 1
        in_refractory = self._refractory_left > 0
        self._refractory_left = max(0, self._refractory_left - 1)
        if self._estimated < self.burn_in:
            self._estimate(y)
            return False
        learn = self._statistic == 0.0 and self._fall == 0.0
        z = (y - self._mean) / self.deviation
        if not in_refractory:
            self._statistic = max(0.0, self._statistic + z - self.slack)
        if self._statistic > self.threshold:
            self._forget()
            self._refractory_left = self.refractory
            return True
        if not self._falls(y, z) and learn:
            self._follow(y)
        return False

    def _estimate(self, y: float) -> None:
        self._estimated += 1
        n = self._estimated
        delta = y - self._mean
        self._mean += delta / n
        if n > 1:
            square = delta * delta * (n - 1) / n
            self._spread += square
            self._rises += 2.0 * square if delta > 0.0 else 0.0
            self._steps += (y - self._previous) ** 2 / 2.0
            self._variance = max(self._steps, self._rises) / (n - 1)
        self._previous = y
        if n == self.burn_in:
            self._warn_of_fall(y)

    def _warn_of_fall(self, y: float) -> None:
        hidden = self.slack * math.sqrt(self._variance)
        if self._variance >= _MOSTLY_FALL * self._spread / (self.burn_in - 1):
            return
        if hidden < (math.log(_HIDDEN_RISE) if self.log else (_HIDDEN_RISE - 1.0) * abs(y)):
            return
        mean, last, rise = self._mean, y, f"by less than {hidden:.3g}"
        if self.log:
            mean, last, rise = math.exp(mean), math.exp(y), f"to less than {math.exp(min(hidden, 700.0)):.3g} times"
        remedy = "use a smaller block" if self.log else "use log=True"
        warnings.warn(
            f"Cusum: the stream fell during burn-in (blocks {self._blocks_seen - self.burn_in + 1} to "
            f"{self._blocks_seen}: {'geometric ' * self.log}mean {mean:.3g}, last {last:.3g}), which inflates the "
            f"deviation: a rise {rise} is no alarm until the estimates have followed; {remedy}, or call reset() after "
            "the fall",
            UserWarning,
            stacklevel=5,
        )

    def _falls(self, y: float, z: float) -> bool:
        """Take a block into F; True if it moved the level."""
        self._fall = max(0.0, self._fall - z - self.slack)
        if self._fall == 0.0:
            self._fall_blocks = 0
            return False
        self._fall_blocks += 1
        self._fall_mean += (y - self._fall_mean) / self._fall_blocks
        if self._fall <= _FALL * self.threshold:
            return False
        self._mean = self._fall_mean
        self._fall, self._fall_blocks = 0.0, 0
        return True

    def _follow(self, y: float) -> None:
        most = self.clip * self.deviation
        delta = min(max(y - self._mean, -most), most)
        self._mean += self.smoothing * delta
        self._variance = (1.0 - self.smoothing) * (self._variance + self.smoothing * delta * delta)

    def _forget(self) -> None:
        self._estimated = 0
        self._mean = 0.0
        self._variance = 0.0
        self._statistic = 0.0
        self._previous = self._spread = self._steps = self._rises = 0.0
        self._fall = self._fall_mean = 0.0
        self._fall_blocks = 0


def _scalar(x: Tensor) -> Tensor:
    if x.numel() != 1:
        raise ValueError(f"the stream's value has shape {tuple(x.shape)}; CUSUM needs one number, pass e.g. its mean")
    # Half precision would lose the block's sum: 50 values of 1.0 and one of 0.1 are already beyond bfloat16.
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    return x.detach().reshape(()).to(wide)


def _check(name: str, value: float, valid: bool, range_: str) -> None:
    if not valid:
        raise ValueError(f"{name} = {value} is not valid for Cusum; it must be {range_}")
