"""Playing environments with random actions, and comparing what comes back."""

from __future__ import annotations

import numpy as np


def play(env, steps, seed=3, start=True):
    """What `reset` (if `start`) and every `step` return, under random actions that follow from the seed."""
    rng, out = np.random.default_rng(seed), []
    if start:
        out.append(env.reset(seed=seed))
    for _ in range(steps):
        out.append(env.step(rng.integers(env.single_action_space.n, size=env.num_envs)))
    return out


def equal(a, b):
    """Whether two nests of dictionaries, lists and arrays hold the same numbers."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(equal, a, b))
    return np.array_equal(a, b)
