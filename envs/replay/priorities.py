"""Prioritised sampling of the slots of a replay memory, and the tree that makes it fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]
Floats = NDArray[np.float64]


class SumTree:
    """Non-negative numbers x_0 ... x_{n-1}; the one that holds a point of [0, sum) is found in a few searches.

    A tree with 64 children to a node: for a million numbers two levels below 245 nodes. A node is the sum of its
    children. Each level also keeps where its nodes end, as shares of their parents, in one sorted row,

        ends_i = parent + (x_first + ... + x_i) / (x_first + ... + x_last),   over i's siblings, parent = i // 64

    so the child that holds the share s of a parent, the first that ends beyond parent + s, is found by one binary
    search of the whole level. A level resolves shares to 2^-52 times the number of parents, at most 4e-12 here.
    Where a number changes, the sums over it are computed again, so no rounding error accumulates.

    Args:
        size: n.
    """

    FAN, TOP = 64, 1024

    def __init__(self, size: int) -> None:
        self.nodes: list[Floats] = []  # from x up, rows of siblings [parents, 64]
        parents = size
        while not self.nodes or parents > self.TOP:
            parents = -(-parents // self.FAN)
            self.nodes.append(np.zeros((parents, self.FAN)))
        self.top = np.zeros(parents)
        self.ends = [np.zeros_like(level) + np.arange(len(level))[:, None] for level in self.nodes]
        self.leaves = self.nodes[0].reshape(-1)[:size]

    @property
    def total(self) -> float:
        """The sum of all x."""
        return float(self.top.sum())

    def set(self, index: Slots, values: Floats) -> None:
        """x[index] <- values, [B] each; of an index that comes twice the last value stays."""
        self.leaves[index] = values
        self._sum_up(index // self.FAN)

    def set_all(self, values: Floats) -> None:
        """x <- values, [n]."""
        self.leaves[:] = values
        self._sum_up(np.arange(len(self.nodes[0])))

    def _sum_up(self, parents: NDArray[np.int64]) -> None:
        for nodes, ends, above in zip(self.nodes, self.ends, [*self.nodes[1:], self.top], strict=True):
            sums = np.cumsum(nodes[parents], axis=1)
            above.reshape(-1)[parents] = whole = sums[:, -1]
            ends[parents] = parents[:, None] + sums / (whole + (whole == 0))[:, None]
            parents = parents // self.FAN

    def find(self, points: Floats) -> Slots:
        """The i with x_0 + ... + x_{i-1} <= point < x_0 + ... + x_i for each point [B] in [0, sum), up to rounding.

        Never one with x_i = 0, whichever way the sums round; 0 if all are.
        """
        nodes, ends, whole = self.top, self.top.cumsum(), np.ones((), dtype=np.float64)
        if not ends[-1] > 0:
            return np.zeros(len(points), dtype=np.int64)
        key = np.minimum(points, np.nextafter(ends[-1], 0))  # rounding may have put it past the end
        node: Slots = ends.searchsorted(key, side="right")  # the first whose end is beyond the point: it is not empty
        for below, ends_below in zip(self.nodes[::-1], self.ends[::-1], strict=True):
            within = nodes[node]
            share = 1 - (ends[node] - key) * whole / within
            key = node + np.minimum(np.maximum(share, 0), 1 - len(below) * 2.0**-52)  # rounding, again
            whole, nodes, ends = within, below.reshape(-1), ends_below.reshape(-1)
            node = ends.searchsorted(key, side="right")
        return node


class Priorities:
    """Prioritised sampling of replay slots, proportional variant (Schaul et al. 2016, arXiv:1511.05952).

    P(i) = (1 - u) p_i^alpha / sum_k p_k^alpha + u / n,   over the n slots that have been written

    A new transition gets the largest priority seen so far, at first 1. A slot that holds none adds nothing to the sum.

    Args:
        slots: how many there are.
        exponent: alpha.
        uniform: u, the share of draws that are uniform.
    """

    def __init__(self, slots: int, exponent: float, uniform: float) -> None:
        self.tree, self.exponent, self.uniform, self.largest = SumTree(slots), exponent, uniform, 1.0
        # Slots in the order in which they were first written, and which of them were.
        self.order, self.written, self.size = np.zeros(slots, dtype=np.int64), np.zeros(slots, dtype=np.bool_), 0

    def add(self, slots: Slots) -> None:
        """The slots [K], all different, hold new transitions."""
        self._write(slots, self.largest**self.exponent)

    def blank(self, slots: Slots) -> None:
        """The slots [K], all different, were written and hold no transition, whatever they held before."""
        if len(slots):
            self._write(slots, 0.0)

    def _write(self, slots: Slots, leaf: float) -> None:
        new = slots[~self.written[slots]]
        self.order[self.size : self.size + len(new)] = new
        self.written[new], self.size = True, self.size + len(new)
        self.tree.set(slots, np.full(len(slots), leaf))

    def update(self, slots: Slots, priorities: NDArray[np.floating[Any]]) -> None:
        """The slots [B] now have these priorities p >= 0."""
        self.largest = max(self.largest, float(priorities.max()))
        self.tree.set(slots, priorities.astype(np.float64) ** self.exponent)

    def sample(
        self, batch_size: int, rng: np.random.Generator, valid: Callable[[Slots], NDArray[np.bool_]]
    ) -> tuple[Slots, Floats]:
        """Slots [B], drawn independently, and their P(i) [B]; a slot that is not valid is drawn again.

        Given that a slot is valid, its probability is P(i) divided by that of a valid one: one factor for all.

        Raises:
            ValueError: next to none is valid.
        """
        slots = self._draw(batch_size, rng)
        for _ in range(1000):
            if not len(again := np.flatnonzero(~valid(slots))):
                return slots, self.probabilities(slots)
            slots[again] = self._draw(len(again), rng)
        raise ValueError(
            f"next to none of {self.size} replay slots has known following steps: use a larger memory, or more steps "
            "before the first update"
        )

    def _draw(self, count: int, rng: np.random.Generator) -> Slots:
        which, point, place = rng.random((3, count))
        slots = self.tree.find(point * self.tree.total)
        if (uniform := which < self.uniform).any():
            slots[uniform] = self.order[(place[uniform] * self.size).astype(np.int64)]
        return slots

    def probabilities(self, slots: Slots) -> Floats:
        """P(i) [B]."""
        return (1 - self.uniform) * self.tree.leaves[slots] / self.tree.total + self.uniform / self.size

    def importance_weights(self, probabilities: Floats, beta: float) -> Floats:
        """w_i = (n P(i))^-beta, divided by the largest of the batch, [B]."""
        weights = (self.size * probabilities) ** -beta
        normalised: Floats = weights / weights.max()
        return normalised

    def clear(self, *, forget_largest: bool = False) -> None:
        """Forget all slots. The largest priority stays, unless it is forgotten too: then all is as when built."""
        self.tree.set_all(np.zeros(len(self.order)))
        self.written[:], self.size = False, 0
        if forget_largest:
            self.largest = 1.0

    def state_dict(self) -> dict[str, Any]:
        """Slots in the order of writing, their p^alpha, and the largest priority."""
        order = self.order[: self.size]
        return {"slots": len(self.order), "order": order, "leaves": self.tree.leaves[order], "largest": self.largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: the state is of another number of slots.
        """
        if state["slots"] != len(self.order):
            raise ValueError(f"the checkpoint has priorities of {state['slots']} slots, not of {len(self.order)}")
        order, leaves = state["order"], np.zeros(len(self.order))
        leaves[order] = state["leaves"]
        self.tree.set_all(leaves)
        self.size, self.largest = len(order), state["largest"]
        self.order[: self.size], self.written[:] = order, False
        self.written[order] = True
