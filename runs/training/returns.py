"""Returns of the latest training episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from runs.training.session import Session


class Returns:
    """Training returns of the last `window` episodes. An episode that a change of the task cut short is left out."""

    def __init__(self, window: int) -> None:
        self._returns: deque[float] = deque(maxlen=window)

    def record(self, infos: Mapping[str, Any], truncated: np.ndarray, run: Session) -> None:
        """Remember and record return and length of every episode that ended in this step.

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

    def clear(self) -> None:
        """Forget all: the next task is another."""
        self._returns.clear()

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
        """The returns, oldest first."""
        return {"returns": list(self._returns)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        self._returns.clear()
        self._returns.extend(state["returns"])
