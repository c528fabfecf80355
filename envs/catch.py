"""Catch on a screen: a small game with Atari's observations, whose best possible return can be computed.

A ball falls through a grid of 12 x 12 cells, one row per step, from a random column. The agent moves a paddle of three
cells below it. A caught ball is worth 1, a missed one -1; then the next ball falls. An episode is truncated after ten
balls. With sticky actions (with probability 0.25, as in Atari, the previous action is repeated) even the best policy
misses some balls; `best_return` is what it reaches on average.

Use it to test or try an agent: what takes millions of frames in Atari takes minutes here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.frames import SIZE, FrameVectorEnv

ENV_ID = "rewarm/Catch-v0"
GRID = 12
"""Rows and columns; a cell is 7 x 7 pixels of the frame."""
BALLS = 10
"""Balls of an episode."""
BALL_STEPS = GRID - 1
"""Steps that a ball falls, from the top row to the paddle's."""

_CELL = SIZE // GRID
_MOVES = np.array([0, -1, 1])  # stay, left, right


class CatchVectorEnv(FrameVectorEnv):
    """N environments of Catch; actions: stay, left, right.

    Args:
        num_envs: N.
        sticky_action_prob: probability that the action executed before it in the episode is repeated instead.
    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, num_envs: int = 1, *, sticky_action_prob: float = 0.25) -> None:
        if not 0.0 <= sticky_action_prob <= 1.0:
            raise ValueError(f"sticky_action_prob must be a probability in [0, 1], got {sticky_action_prob}")
        super().__init__(num_envs, len(_MOVES))
        self._config = {"num_envs": num_envs, "sticky_action_prob": float(sticky_action_prob)}
        self._streams = [np.random.default_rng(i) for i in range(num_envs)]
        self._ball, self._row, self._paddle, self._executed, self._balls = np.zeros((5, num_envs), dtype=np.int64)

    @property
    def rules(self) -> dict[str, Any]:
        """The arguments that it was built with, by name."""
        return dict(self._config)

    def with_num_envs(self, num_envs: int) -> CatchVectorEnv:
        """Build the same game with the same rules and another number of environments."""
        return CatchVectorEnv(**{**self.rules, "num_envs": num_envs})

    def _begin(self, seeds: list[int] | None) -> NDArray[np.uint8]:
        if seeds is not None:
            self._streams = [np.random.default_rng(seed) for seed in seeds]
        for i in range(self.num_envs):
            self._restart(i)
        return self._drawn()

    def _restart(self, i: int) -> None:
        self._balls[i] = self._executed[i] = 0  # the first action of an episode may become "stay"
        self._paddle[i] = GRID // 2
        self._drop(i)

    def _drop(self, i: int) -> None:
        self._ball[i], self._row[i] = self._streams[i].integers(GRID), 0

    def _play(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, Any, Any]:
        n = self.num_envs
        sticky = np.array([stream.random() for stream in self._streams]) < self._config["sticky_action_prob"]
        self._executed = np.where(sticky, self._executed, actions)
        self._paddle = np.clip(self._paddle + _MOVES[self._executed], 1, GRID - 2)
        self._row = self._row + 1
        landed = self._row == BALL_STEPS
        caught = landed & (np.abs(self._ball - self._paddle) <= 1)
        self._balls = self._balls + landed
        final = self._drawn()
        truncated = self._balls == BALLS
        for i in np.flatnonzero(landed).tolist():
            (self._restart if truncated[i] else self._drop)(i)
        never = np.zeros(n, dtype=np.bool_)
        return self._drawn(), final, np.where(caught, 1.0, -1.0) * landed, never, truncated, never.copy()

    def _drawn(self) -> NDArray[np.uint8]:
        """Frames [N, 84, 84]: the ball white, the paddle grey, the rest black."""
        cells = np.zeros((self.num_envs, GRID, GRID), dtype=np.uint8)
        each = np.arange(self.num_envs)
        for offset in (-1, 0, 1):
            cells[each, GRID - 1, self._paddle + offset] = 128
        cells[each, self._row, self._ball] = 255
        return cells.repeat(_CELL, axis=1).repeat(_CELL, axis=2)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that decides what happens next."""
        numbers = np.stack([self._ball, self._row, self._paddle, self._executed, self._balls])
        streams = [stream.bit_generator.state for stream in self._streams]
        return {"config": dict(self._config), "numbers": numbers, "streams": streams, **self._statistics()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was called.

        Raises:
            ValueError: the state is of an environment built with other arguments.
        """
        if state.get("config") != self._config:
            raise ValueError(f"this state is of an environment built with {state.get('config')}, not {self._config}")
        self._ball, self._row, self._paddle, self._executed, self._balls = state["numbers"].copy()
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.bit_generator.state = saved
        self._load_statistics(state)


def best_return(sticky_action_prob: float = 0.25) -> float:
    """Expected return of the best policy over an episode, by backward induction over all states of the game.

    The yardstick for an agent's return on Catch: nothing in this package calls it.

    V_t(ball, paddle, executed) = max_a E[r + V_{t+1}], the expectation over the sticky action and the next ball.
    """
    p, paddles = sticky_action_prob, np.arange(1, GRID - 1)
    # value[ball, paddle - 1, executed]: expected return from here to the end of the episode
    value = np.zeros((GRID, len(paddles), len(_MOVES)))
    moved = np.clip(paddles[:, None] + _MOVES, 1, GRID - 2) - 1  # [P, M], where a move leads
    caught = np.abs(np.arange(GRID)[:, None] - paddles) <= 1  # [ball, P]
    for step in reversed(range(BALLS * BALL_STEPS)):
        if (step + 1) % BALL_STEPS == 0:  # the ball lands in this step; the next one falls anywhere
            value = np.where(caught, 1.0, -1.0)[:, :, None] + value.mean(0)
        after = np.stack([value[:, moved[:, m], m] for m in range(len(_MOVES))], 2)  # [ball, P, M], having executed m
        value = (1 - p) * after.max(2, keepdims=True) + p * after
    return float(value[:, GRID // 2 - 1, 0].mean())
