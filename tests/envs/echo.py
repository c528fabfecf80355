"""Vector environments that show back what they were given: as images, and as vectors with physics."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space


class EchoEnv(VectorEnv):
    """Observation [N, C, 2, 2] bytes: pixel (0, 0) of channel c holds 10 * c + mark; (0, 1) the step of the episode,
    (1, 0) the executed action, (1, 1) the number of the environment. Reward: the action. Episodes of environment i end
    after `length` + i steps, by termination, or by truncation if `truncates`."""

    def __init__(self, num_envs=2, channels=2, actions=4, length=5, mark=0, truncates=False, objects=False):
        self.num_envs, self.length, self.mark, self.truncates, self.objects = num_envs, length, mark, truncates, objects
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = None
        self.single_observation_space = Box(0, 255, (channels, 2, 2), np.uint8)
        self.single_action_space = Discrete(actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.time = np.zeros(num_envs, dtype=int)
        self.actions = np.zeros(num_envs, dtype=int)
        self.seeds: list[Any] = []
        self.closed_by_us = False

    def seen(self):
        obs = np.zeros((self.num_envs, *self.single_observation_space.shape), dtype=np.uint8)
        obs[:, :, 0, 0] = 10 * np.arange(obs.shape[1]) + self.mark
        obs[:, :, 0, 1] = self.time[:, None]
        obs[:, :, 1, 0] = self.actions[:, None]
        obs[:, :, 1, 1] = np.arange(self.num_envs)[:, None]
        return obs

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.time[:] = self.actions[:] = 0
        return self.seen(), {}

    def step(self, actions):
        if len(self.seeds) == 0:
            raise gymnasium.error.ResetNeeded("not reset")
        self.time += 1
        self.actions = np.array(actions)
        rewards = np.array(actions, dtype=np.float64)
        ended = self.time >= self.length + np.arange(self.num_envs)
        final, infos = self.seen(), {}
        if ended.any():
            self.time[ended] = self.actions[ended] = 0
            if self.objects:
                rows = np.empty(self.num_envs, dtype=object)
                for i in np.flatnonzero(ended):
                    rows[i] = final[i]
                final = rows
            infos = {"final_obs": final, "_final_obs": ended.copy()}
        none = np.zeros(self.num_envs, dtype=bool)
        over = (none, ended) if self.truncates else (ended, none)
        return self.seen(), rewards, *over, infos

    def state_dict(self):
        return {"time": self.time.copy(), "actions": self.actions.copy(), "seeds": list(self.seeds)}

    def load_state_dict(self, state):
        self.time, self.actions = state["time"].copy(), state["actions"].copy()
        self.seeds = list(state["seeds"])

    def close(self, **kwargs):
        self.closed_by_us = True


class VectorEchoEnv(EchoEnv):
    """Observation [N, 6] floats: the mark, the step of the episode, the executed action, the number of the environment,
    gravity and length. The last two are its physics, positive numbers. Otherwise as `EchoEnv`."""

    def __init__(self, num_envs=2, dtype=np.float32, low=-np.inf, high=np.inf, gravity=10.0, **echo):
        super().__init__(num_envs, **echo)
        self.single_observation_space = Box(low, high, (6,), dtype)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.numbers = {"gravity": gravity, "length": 0.5}
        self.set = []

    def seen(self):
        columns = (self.mark, self.time, self.actions, np.arange(self.num_envs), *self.numbers.values())
        rows = [np.broadcast_to(column, self.num_envs) for column in columns]
        return np.stack(rows, axis=1).astype(self.single_observation_space.dtype)

    def physics(self, name):
        if name not in self.numbers:
            raise ValueError(f"echo has no number {name!r}; it has: gravity, length")
        return self.numbers[name]

    def set_physics(self, name, value):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
        self.set.append((name, value))
        self.numbers[name] = value

    def state_dict(self):
        return {**super().state_dict(), "numbers": dict(self.numbers)}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.numbers = dict(state["numbers"])
