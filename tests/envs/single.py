"""A vector environment of one game as a plain Gymnasium environment, for tools without a batch axis."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray


class SingleEnv(gymnasium.Env[NDArray[Any], Any]):
    """A vector environment with num_envs 1, without its batch axis.

    The vector environment restarts within the step that ends an episode; here that step returns the episode's last
    observation, and the following `reset()` without a seed returns the first of the new episode. Stepping without it
    raises: otherwise the new episode would continue unnoticed. `infos["episode"]` loses its batch axis, too.

    Args:
        env: num_envs 1, with `AutoresetMode.SAME_STEP`.
    Raises:
        ValueError: another num_envs, or another autoreset mode.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        if env.num_envs != 1 or env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"SingleEnv needs num_envs 1 with AutoresetMode.SAME_STEP, got {env.num_envs} with "
                f"{env.metadata.get('autoreset_mode')}"
            )
        self.env = env
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self.metadata = {**env.metadata}
        self.render_mode = env.render_mode
        self._waiting: NDArray[Any] | None = None
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode: the waiting one, or a new one."""
        super().reset(seed=seed)
        obs = self._waiting
        infos: dict[str, Any] = {}
        if obs is None or seed is not None or options:
            batch, infos = self.env.reset(seed=seed, options=options)
            obs = batch[0]
        self._waiting, self._running = None, True
        return obs, infos

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """One step.

        Raises:
            gymnasium.error.ResetNeeded: the episode has ended, or none has begun.
        """
        if not self._running:
            raise gymnasium.error.ResetNeeded("call reset() before the first step() and after the end of an episode")
        obs, rewards, terminated, truncated, infos = self.env.step(np.array([action]))
        last, infos = obs[0], dict(infos)
        if terminated[0] or truncated[0]:
            self._waiting, self._running = obs[0], False
            last = infos["final_obs"][0]
            if "episode" in infos:
                infos["episode"] = {key: values[0].item() for key, values in infos["episode"].items()}
        for key in ("final_obs", "_final_obs", "_episode", "final_info", "_final_info"):
            infos.pop(key, None)
        return last, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), infos

    def render(self) -> Any:
        """Return what the vector environment draws."""
        return self.env.render()

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()
