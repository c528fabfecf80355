"""DQN and PPO of Stable-Baselines3 or SBX on MinAtar: what `python -m runs bench peers` compares with.

    python -m runs.benchmarks.peer_sb3 sb3 dqn 1 4000        # 1 update per agent step, 4,000 agent steps
    python -m runs.benchmarks.peer_sb3 sbx ppo 8 8000        # 8 environments

With the network of agents/dqn_minatar.py and agents/ppo_minatar.py, their batch sizes and numbers of updates. SBX has
no layers that policy and value share, so that its PPO trains two such networks. Prints the speed after learning has
started (PPO: without the first iteration).
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

import gymnasium
import minatar.gym
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

GAME = "MinAtar/Breakout-v1"
STARTS = 1_000
DQN = {
    "batch_size": 32, "buffer_size": 100_000, "learning_starts": STARTS, "target_update_interval": 1_000,
    "exploration_initial_eps": 0.1, "exploration_final_eps": 0.1, "learning_rate": 2.5e-4,
}  # fmt: skip
PPO = {"n_steps": 128, "n_epochs": 4, "clip_range": 0.1, "ent_coef": 0.01, "learning_rate": 2.5e-4}


class Trunk(BaseFeaturesExtractor):
    """3x3 convolution (16), 128 hidden units, LayerNorm before each ReLU: [B, 10, 10, C] -> [B, 128]."""

    def __init__(self, observation_space: gymnasium.spaces.Box) -> None:
        super().__init__(observation_space, features_dim=128)
        self.layers = nn.Sequential(
            nn.Conv2d(observation_space.shape[-1], 16, kernel_size=3, bias=False), nn.LayerNorm([16, 8, 8]), nn.ReLU(),
            nn.Flatten(), nn.Linear(1024, 128, bias=False), nn.LayerNorm(128), nn.ReLU(),
        )  # fmt: skip

    def forward(self, obs: Tensor) -> Tensor:
        """Features of observations."""
        features: Tensor = self.layers(obs.permute(0, 3, 1, 2))
        return features


class Clock(BaseCallback):
    """Times the agent steps from the first one after `after` on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after
        self.began: tuple[int, float] | None = None

    def _on_step(self) -> bool:
        if self.began is None and self.num_timesteps > self.after:
            self.began = self.num_timesteps, time.perf_counter()
        return True

    def _on_training_end(self) -> None:
        assert self.began is not None
        steps, seconds = self.num_timesteps - self.began[0], time.perf_counter() - self.began[1]
        print(f"timed steps={steps} seconds={seconds!r}")


def for_sbx() -> dict[str, Any]:
    """Give SBX the network above: replace that of its DQN, and return the options of its PPO's policy."""
    import flax.linen as fnn
    import jax.numpy as jnp
    import sbx.dqn.policies
    import tensorflow_probability.substrates.jax as tfp

    def trunk(x: Any) -> Any:  # called within a compact module
        x = fnn.Conv(16, (3, 3), padding="VALID", use_bias=False)(x.astype(jnp.float32))
        x = fnn.relu(fnn.LayerNorm(reduction_axes=(-3, -2, -1), feature_axes=(-3, -2, -1))(x))
        x = fnn.Dense(128, use_bias=False)(x.reshape(len(x), -1))
        return fnn.relu(fnn.LayerNorm()(x))

    class QNetwork(fnn.Module):
        n_actions: int
        n_units: int = 128
        activation_fn: Any = fnn.relu

        @fnn.compact
        def __call__(self, x: Any) -> Any:
            return fnn.Dense(self.n_actions)(trunk(x))

    class Actor(fnn.Module):
        action_dim: int
        net_arch: Any = ()
        log_std_init: float = 0.0
        activation_fn: Any = fnn.relu
        num_discrete_choices: Any = None
        max_num_choices: int = 0
        split_indices: Any = ()
        ortho_init: bool = False
        features_extractor: Any = None
        features_dim: int = 128

        def get_std(self) -> Any:
            return jnp.array(0.0)

        @fnn.compact
        def __call__(self, x: Any) -> Any:
            return tfp.distributions.Categorical(logits=fnn.Dense(self.action_dim)(trunk(x)))

    class Critic(fnn.Module):
        net_arch: Any = ()
        activation_fn: Any = fnn.relu
        features_extractor: Any = None
        features_dim: int = 128

        @fnn.compact
        def __call__(self, x: Any) -> Any:
            return fnn.Dense(1)(trunk(x))

    sbx.dqn.policies.QNetwork = QNetwork
    return {"actor_class": Actor, "critic_class": Critic}


def main(library: str, what: str, setting: str, steps: str) -> None:
    """Train for a while and print the speed."""
    torch.set_num_threads(1)
    minatar.gym.register_envs()
    module: Any = importlib.import_module({"sb3": "stable_baselines3", "sbx": "sbx"}[library])
    network: dict[str, Any] = {"features_extractor_class": Trunk, "net_arch": []} if library == "sb3" else for_sbx()
    if what == "dqn":
        ratio = float(setting)
        often = {"train_freq": max(1, round(1 / ratio)), "gradient_steps": max(1, round(ratio))}
        options = network if library == "sb3" else {}
        agent = module.DQN("MlpPolicy", make_vec_env(GAME), policy_kwargs=options, seed=0, **DQN, **often)
        after, total = STARTS + 200, STARTS + 200 + int(steps)  # SBX compiles at its first update
    else:
        envs = int(setting)
        size = envs * 128
        agent = module.PPO(
            "MlpPolicy", make_vec_env(GAME, envs), policy_kwargs=network, seed=0, batch_size=size // 4, **PPO
        )
        after, total = size, size * (1 + max(1, int(steps) // size))
    agent.learn(total, callback=Clock(after))


if __name__ == "__main__":
    main(*sys.argv[1:])
