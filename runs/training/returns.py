"""Returns of the latest training episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from runs.training.session import Session

POINTS = 500
"""of the running mean in a run; TensorBoard shows all points of a curve only up to a thousand"""


class Returns:
    """Training returns of the last `window` episodes. An episode that a change of the task cut short is left out."""

    def __init__(self, window: int) -> None:
        self._returns: deque[float] = deque(maxlen=window)
        self._point = -1  # the latest of the POINTS parts of the run with a recorded mean

    def record(self, infos: Mapping[str, Any], truncated: np.ndarray, run: Session) -> None:
        """Remember and record return and length of every episode that ended in this step, and now and then the mean.

        Args:
            infos: of a vector environment under gymnasium's RecordEpisodeStatistics; "shift" in it marks a change.
            truncated: [N] bool.
        """
        if "episode" not in infos:
            return
        whole = infos["_episode"] & ~truncated if "shift" in infos else infos["_episode"]
        for env in np.flatnonzero(whole):
            self._returns.append(float(infos["episode"]["r"][env]))
            run.scalar("charts/episodic_return", self._returns[-1])
            run.scalar("charts/episodic_length", int(infos["episode"]["l"][env]))
        point = run.step * POINTS // run.total
        if whole.any() and point != self._point:
            self._point = point
            run.scalar("charts/average_return", float(np.mean(self._returns)))

    def clear(self) -> None:
        """Forget all: the next task is another."""
        self._returns.clear()
        self._point = -1

    def __len__(self) -> int:
        return len(self._returns)

    @property
    def mean(self) -> str:
        """Mean with two decimals, or "none" before the first episode."""
        return f"{np.mean(self._returns):.2f}" if self._returns else "none"

    @property
    def summary(self) -> str:
        """What a finished run says of them."""
        if not self._returns:
            return "no training episode ended"
        return f"training return {self.mean}, mean of the last {len(self._returns)} episodes"

    def state_dict(self) -> dict[str, Any]:
        """The returns, oldest first, and when their mean was recorded."""
        return {"returns": list(self._returns), "point": self._point}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        self._returns.clear()
        self._returns.extend(state["returns"])
        self._point = state.get("point", -1)  # checkpoints of earlier versions have none
