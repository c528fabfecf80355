"""A replay memory of screens that keeps each frame once, for stacks of four frames and n-step returns."""

from __future__ import annotations

import zlib
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from envs.frames import SIZE, STACK
from envs.replay.screens import Where, screens

Slots = NDArray[np.int64]
"""Places in a memory, lane * rows + row, [B]."""

ROW_PARTS = ("actions", "rewards", "age", "terminal", "truncated", "only_state")
LANE_PARTS = ("written", "forgotten", "next_age")
PIECE_ROWS = 8192
"""Rows of one file of a checkpoint."""


class Pieces(Protocol):
    """Files next to a checkpoint that it names, never changed after they are written (`runs.recording.Pieces`)."""

    def write(self, name: str, content: dict[str, Any]) -> None: ...  # noqa: D102
    def read(self, name: str) -> dict[str, Any]: ...  # noqa: D102


class FrameMemory:
    """The last transitions of N environments with a screen, each frame kept once; sampled uniformly.

    Every environment has a lane, a ring of L = capacity / N rows. Row t holds the newest frame of s_t, a_t, r_t, and
    how the episode continued; the stack s_t is put together from the rows before. An episode that is truncated is
    followed by a row that holds its last frame and nothing else: a state to bootstrap from, in which no action was
    taken.

    A slot is a place in the memory, lane * L + row. What follows from it, with n = n_step:

        R = sum_{k < m} gamma^k r_{t+k},   discount = gamma^m (0 if s_{t+m} is terminal),   s_{t+m}

    where m = n, or less where the episode ends before. Memory: 84 x 84 + 16 bytes per transition, on the host taken
    when filled.

    Args:
        capacity: rows of all lanes together, a multiple of num_envs.
        num_envs: N.
        gamma: discount.
        n_step: n.
        where: the frames are on the host or on the device (`envs.replay.screens`); all else is on the host.
        device: the one that trains.
    Raises:
        ValueError: the device has not enough memory.
    """

    def __init__(
        self, capacity: int, num_envs: int, gamma: float, n_step: int = 1,
        *, where: Where = "host", device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.lanes, self.rows, self.gamma, self.n_step = num_envs, capacity // num_envs, gamma, n_step
        shape = (self.lanes, self.rows)
        self.screens = screens((self.lanes * self.rows, SIZE, SIZE), where, torch.device(device))
        self.actions = np.zeros(shape, dtype=np.int64)
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.age = np.zeros(shape, dtype=np.uint8)  # frames of the same episode before this one, at most 3
        self.terminal = np.zeros(shape, dtype=np.bool_)  # the return ends with this reward
        self.truncated = np.zeros(shape, dtype=np.bool_)  # the episode was cut here: the next row is only a state
        self.only_state = np.zeros(shape, dtype=np.bool_)
        self.next_age = np.zeros(self.lanes, dtype=np.uint8)
        self.written = np.zeros(self.lanes, dtype=np.int64)  # rows ever written in each lane
        self.forgotten = np.zeros(self.lanes, dtype=np.int64)  # rows before this one were cleared
        self.saved = np.zeros(self.lanes, dtype=np.int64)  # rows that are in pieces on the disk
        self.pieces: list[tuple[str, int, int, int]] = []  # name, lane, first row, row after the last

    def __len__(self) -> int:
        """Rows held."""
        return int((self.written - self._oldest()).sum())

    def _oldest(self) -> NDArray[np.int64]:
        """Number of the oldest row held, counted since the start, of each lane."""
        return np.maximum(self.written - self.rows, self.forgotten)

    def add(
        self,
        obs: NDArray[np.uint8],
        actions: NDArray[np.integer[Any]],
        rewards: NDArray[np.floating[Any]],
        terminal: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        restarted: NDArray[np.bool_],
        final_obs: NDArray[np.uint8],
    ) -> Slots:
        """Keep one transition of every environment; return their slots [N].

        Args:
            obs: s_t [N, 4, 84, 84], what was acted on.
            actions: a_t [N].
            rewards: r_t [N].
            terminal: the return ends here [N].
            truncated: the episode was cut, and `final_obs` [N, 4, 84, 84] is the state to bootstrap from [N].
            restarted: another episode begins, so stacks must not reach back [N]; False where only a life was lost.
            final_obs: the last observations of truncated episodes; other entries are not read.
        """
        lanes = np.arange(self.lanes)
        rows = self.written % self.rows
        slots: Slots = lanes * self.rows + rows
        self.screens.write(slots, obs[:, -1])
        self.actions[lanes, rows], self.rewards[lanes, rows] = actions, rewards
        self.terminal[lanes, rows], self.truncated[lanes, rows] = terminal, truncated & ~terminal
        self.age[lanes, rows], self.only_state[lanes, rows] = self.next_age, False
        self.next_age = np.minimum(self.next_age + 1, STACK - 1).astype(np.uint8)
        self.written += 1
        for lane in np.flatnonzero(truncated & ~terminal):
            self._add_state(lane, final_obs[lane, -1])
        self.next_age[restarted] = 0
        return slots

    def _add_state(self, lane: np.int64, frame: NDArray[np.uint8]) -> None:
        row = self.written[lane] % self.rows
        self.screens.write(np.array([lane * self.rows + row]), frame[None])
        self.age[lane, row], self.only_state[lane, row] = self.next_age[lane], True
        self.terminal[lane, row] = self.truncated[lane, row] = False
        self.written[lane] += 1

    def only_states(self) -> Slots:
        """Slots of the rows written last, of each lane, that hold a state to bootstrap from and no transition [K]."""
        lanes, rows = np.arange(self.lanes), (self.written - 1) % self.rows
        held = self.only_state[lanes, rows] & (self.written > self.forgotten)
        return (lanes * self.rows + rows)[held]

    def cut(self, obs: NDArray[np.uint8]) -> None:
        """Truncate all running episodes at `obs` [N, 4, 84, 84]: they cannot be continued."""
        last = (self.written - 1) % self.rows
        for lane in np.flatnonzero((self.written > self.forgotten) & (self.next_age > 0)):
            if not self.terminal[lane, last[lane]]:
                self.truncated[lane, last[lane]] = True
                # A piece holds this row as it was: it is written again.
                self.saved[lane] = min(self.saved[lane], self.written[lane] - 1)
                self._add_state(lane, obs[lane, -1])
        self.next_age[:] = 0

    def valid(self, slots: Slots) -> NDArray[np.bool_]:
        """Whether everything about these slots [B] is in memory: the stack before and the n steps after."""
        lanes, rows = slots // self.rows, slots % self.rows
        newest = self.written[lanes] - 1
        number = newest - (newest - rows) % self.rows  # of the row, counted since the start
        oldest = self._oldest()[lanes]
        transition = ~self.only_state[lanes, rows]
        if ((number - STACK >= oldest) & (number + self.n_step <= newest)).all():  # nearly always, of a large memory
            return transition
        whole = number - self.age[lanes, rows].astype(np.int64) >= oldest
        ended = np.zeros(len(slots), dtype=np.bool_)
        for k in range(self.n_step):
            row = (rows + k) % self.rows
            ended |= (number + k <= newest) & (self.terminal[lanes, row] | self.truncated[lanes, row])
        return whole & transition & (ended | (number + self.n_step <= newest))

    def gather(self, slots: Slots) -> list[Any]:
        """s_t [B, 4, 84, 84], a_t [B], R [B], s_{t+m} [B, 4, 84, 84], discounts [B], for valid slots.

        Arrays; the two stacks are tensors on the device if the frames are there.
        """
        lanes, rows = slots // self.rows, slots % self.rows
        returns, continues = np.zeros(len(slots), dtype=np.float32), np.ones(len(slots), dtype=np.bool_)
        discounts, m = np.ones(len(slots), dtype=np.float32), np.zeros(len(slots), dtype=np.int64)
        for k in range(self.n_step):
            row = (rows + k) % self.rows
            returns += np.where(continues, np.float32(self.gamma**k) * self.rewards[lanes, row], 0)
            m += continues
            discounts = np.where(continues, np.float32(self.gamma ** (k + 1)), discounts)
            discounts[continues & self.terminal[lanes, row]] = 0
            continues &= ~(self.terminal[lanes, row] | self.truncated[lanes, row])
        next_obs = self._stacks(lanes, (rows + m) % self.rows)
        return [self._stacks(lanes, rows), self.actions[lanes, rows], returns, next_obs, discounts]

    def _stacks(self, lanes: NDArray[np.int64], rows: NDArray[np.int64]) -> Any:
        """[B, 4, 84, 84]: each frame with the three before it, zeros where the episode had not begun."""
        back = np.arange(STACK - 1, -1, -1)  # 3 2 1 0
        slots: Slots = lanes[:, None] * self.rows + (rows[:, None] - back) % self.rows
        return self.screens.stacks(slots, back > self.age[lanes, rows][:, None])

    def sample(self, batch_size: int, rng: np.random.Generator) -> list[Any]:
        """`gather` for B slots drawn uniformly, with replacement, from the valid ones.

        Raises:
            ValueError: next to none is valid.
        """
        slots: Slots = np.empty(0, dtype=np.int64)
        held = self.written - self._oldest()
        ends = np.cumsum(held)
        for _ in range(1000):
            drawn = rng.integers(ends[-1], size=batch_size)
            lanes = np.searchsorted(ends, drawn, side="right")
            rows = (self.written[lanes] - 1 - (drawn - (ends[lanes] - held[lanes]))) % self.rows
            found = lanes * self.rows + rows
            slots = np.concatenate([slots, found[self.valid(found)]])
            if len(slots) >= batch_size:
                return self.gather(slots[:batch_size])
        raise ValueError(
            "the replay memory holds no transition whose following steps are known: use a larger memory, or more steps "
            "before the first update"
        )

    def clear(self) -> None:
        """Forget all transitions."""
        self.forgotten = self.written.copy()
        self.next_age[:] = 0

    def save(self, pieces: Pieces) -> dict[str, Any]:
        """Write the rows that no piece holds yet; return what a checkpoint keeps, which names the pieces."""
        oldest = self._oldest()
        for lane in range(self.lanes):
            for first in range(max(self.saved[lane], oldest[lane]), self.written[lane], PIECE_ROWS):
                end = min(first + PIECE_ROWS, int(self.written[lane]))
                rows = np.arange(first, end) % self.rows
                content = {name: getattr(self, name)[lane, rows] for name in ROW_PARTS}
                frames = zlib.compress(self.screens.read(lane * self.rows + rows).data, 1)
                name = f"replay-{lane}-{first}-{end}"
                pieces.write(name, content | {"frames": np.frombuffer(frames, dtype=np.uint8)})
                self.pieces.append((name, lane, int(first), end))
        self.saved = self.written.copy()
        self.pieces = [piece for piece in self.pieces if piece[3] > oldest[piece[1]]]
        lanes = {name: getattr(self, name).copy() for name in LANE_PARTS}
        return lanes | {"rows": self.rows, "pieces": list(self.pieces)}

    def load(self, state: dict[str, Any], pieces: Pieces) -> None:
        """Continue from what `save` returned.

        Raises:
            ValueError: the state is of a memory with another number of lanes or rows.
        """
        if state["rows"] != self.rows or len(state["written"]) != self.lanes:
            raise ValueError(f"the checkpoint's replay memory has another shape than {self.lanes} x {self.rows}")
        for name in LANE_PARTS:
            setattr(self, name, state[name].copy())
        self.saved, self.pieces = self.written.copy(), [(n, lane, a, b) for n, lane, a, b in state["pieces"]]
        for name, lane, first, end in self.pieces:
            content, rows = pieces.read(name), np.arange(first, end) % self.rows
            frames = np.frombuffer(zlib.decompress(content["frames"].tobytes()), dtype=np.uint8)
            self.screens.write(lane * self.rows + rows, frames.reshape(-1, SIZE, SIZE))
            for part in ROW_PARTS:
                getattr(self, part)[lane, rows] = content[part]
