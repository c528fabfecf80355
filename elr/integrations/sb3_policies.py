"""What is known of the algorithms of Stable-Baselines3: networks, optimisers, heads, observations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space
from numpy.typing import NDArray
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor, nn

from elr.projection import Projection

_ROWS = 256  # of the observations on which scale invariance is checked


def policy_projection(model: BaseAlgorithm, part: str | None = None, **options: Any) -> Projection:
    """A Projection of the network that `RewarmCallback` attaches to, with the output layers of its policy as heads.

    Heads: action_net and value_net (PPO, A2C), the last layer (DQN, actor of TD3), mu and log_std (actor of SAC), the
    last layer of each critic. A `log_std` that is a parameter is left alone.

    Args:
        model: the algorithm.
        part: as in `RewarmCallback`.
        options: arguments of `Projection`, such as gains or allow_scale_dependent.

    Raises:
        ValueError: as `RewarmCallback` and `Projection`.
    """
    target = find(model, part)
    return Projection(target.network, **{"heads": target.heads, "leave": target.leave, **options})


class LayerNormMlp(BaseFeaturesExtractor):
    """Hidden layers whose scale the output ignores, as projection presumes: (Linear, LayerNorm, ReLU) for each width.

    The policies of Stable-Baselines3 have no normalisation layers, but take a features extractor. With `net_arch=[]`
    all hidden layers are in it, and only the heads follow:

        policy_kwargs = dict(net_arch=[], features_extractor_class=LayerNormMlp)                  # DQN
        policy_kwargs |= dict(share_features_extractor=False)                                     # PPO, A2C: one each

    Args:
        observation_space: flattened.
        widths: of the hidden layers.
        activation: positively homogeneous, as projection of the gains presumes.
    """

    def __init__(
        self, observation_space: Space[Any], widths: Sequence[int] = (64, 64), activation: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__(observation_space, widths[-1])
        layers: list[nn.Module] = [nn.Flatten()]
        fan_in = get_flattened_obs_dim(observation_space)
        for width in widths:
            # Observations near 0 make outputs near 0; the usual eps of 1e-5 would not be small against their variance.
            layers += [nn.Linear(fan_in, width, bias=False), nn.LayerNorm(width, eps=1e-8), activation()]
            fan_in = width
        self.layers = nn.Sequential(*layers)

    def forward(self, observations: Tensor) -> Tensor:
        """[B, ...] -> [B, widths[-1]]."""
        features: Tensor = self.layers(observations)
        return features


class Target(NamedTuple):
    """What is attached to, and what is known of it."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    heads: tuple[str, ...] | None = None
    leave: tuple[str, ...] = ()
    has_no_forward: bool = False  # train() calls other methods than network(...)


def find(model: BaseAlgorithm, part: str | None) -> Target:
    """The network to attach to, its optimiser and its heads.

    Raises:
        ValueError: the algorithm is not known, or has no such part.
    """
    network: Any
    if isinstance(model, SAC | TD3):
        if part not in ("actor", "critic"):
            raise ValueError(
                f"{type(model).__name__} has several optimisers, got part={part!r}: choose part='critic' or 'actor'"
            )
        network = getattr(model, part)
        if part == "critic":
            heads = tuple(_last_linear(network, f"qf{index}") for index in range(network.n_critics))
            return Target(network, network.optimizer, heads)
        if isinstance(model, TD3):
            return Target(network, network.optimizer)
        raw = isinstance(network.log_std, nn.Parameter)
        heads = (_last_linear(network, "mu"), *(() if raw else ("log_std",)))
        return Target(network, network.optimizer, heads, ("log_std",) if raw else (), has_no_forward=True)
    if part is not None:
        raise ValueError(f"part={part!r} has no effect: {type(model).__name__} has one optimiser or is not known")
    network = model.policy
    if isinstance(model, PPO | A2C):
        leave = ("log_std",) if "log_std" in network._parameters else ()
        return Target(network, network.optimizer, ("action_net", "value_net"), leave, has_no_forward=True)
    if isinstance(model, DQN):
        return Target(network.q_net, network.optimizer)
    raise ValueError(
        f"{type(model).__name__} is not known: RewarmCallback knows PPO, A2C, DQN, SAC, TD3 and DDPG. Call elr.attach "
        "with its network and optimiser, and outside_rates='overrule'"
    )


def _last_linear(network: nn.Module, name: str) -> str:
    """Full name of the last linear layer within a module."""
    inside = [(inner, module) for inner, module in network.named_modules() if f"{inner}.".startswith(f"{name}.")]
    last: str = [inner for inner, module in inside if isinstance(module, nn.Linear)][-1]
    return last


def still_collecting(model: BaseAlgorithm) -> bool:
    """Whether no `train()` will follow the rollout that ends now."""
    return isinstance(model, OffPolicyAlgorithm) and model.num_timesteps <= model.learning_starts


def observations(model: BaseAlgorithm) -> Any:
    """Some of the observations that have been collected, as the network takes them."""
    if isinstance(model, OffPolicyAlgorithm):
        buffer: Any = model.replay_buffer
        filled = buffer.size()
    else:
        buffer = model.rollout_buffer  # type: ignore[attr-defined]
        filled = buffer.buffer_size

    def rows(stored: NDArray[Any]) -> NDArray[Any]:
        flat = stored[:filled].reshape(-1, *stored.shape[2:])  # [steps, environments, ...]
        chosen: NDArray[Any] = flat[np.linspace(0, len(flat) - 1, min(len(flat), _ROWS)).astype(int)]
        return chosen

    stored = buffer.observations
    batch: Any = {name: rows(array) for name, array in stored.items()} if isinstance(stored, dict) else rows(stored)
    if isinstance(model, OffPolicyAlgorithm) and model._vec_normalize_env is not None:
        batch = model._vec_normalize_env.normalize_obs(batch)  # a replay buffer holds what the environment returned
    return obs_as_tensor(batch, model.device)
