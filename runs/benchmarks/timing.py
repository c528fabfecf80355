"""Time two ways of doing the same work in interleaved pairs, so that a machine that slows down slows both."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def rate(update: Callable[[], object], count: int) -> float:
    """Calls per second over `count` calls."""
    start = time.perf_counter()
    for _ in range(count):
        update()
    return count / (time.perf_counter() - start)


def compare(plain: Callable[[], object], ours: Callable[[], object], *, repeats: int, updates: int, unit: float) -> str:
    """Time blocks of `updates` calls (plain, ours, plain, ours, ...) after five calls of each to warm up.

    Args:
        unit: factor of the printed rates, for instance the images in a minibatch.
    Returns:
        One line with median, smallest and largest of the ratios within a pair. Each pair is printed as it is measured.
    """
    for update in (plain, ours):
        rate(update, 5)
    ratios = []
    for i in range(repeats):
        slow, fast = rate(plain, updates), rate(ours, updates)
        ratios.append(fast / slow)
        print(f"pair {i + 1}: plain {slow * unit:.1f}, script {fast * unit:.1f} per second", flush=True)
    return (
        f"ratio: median {median(ratios):.2f} [smallest {min(ratios):.2f}, largest {max(ratios):.2f}], n = {repeats} "
        f"pairs of {updates} updates, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
