"""Small networks with fixed weights, and inputs for them."""

import math

import torch
from torch import Tensor, nn


def fill(network: nn.Module, seed: int) -> nn.Module:
    """Gaussian weights of scale 1 / sqrt(fan in), zero biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
            elif name.endswith("bias"):
                parameter.zero_()
    return network


def mlp(norm: type[nn.Module] = nn.LayerNorm, seed: int = 0) -> nn.Module:
    """6 -> 16 -> 16 -> 3 with a normalisation before each ReLU; the head is module 6."""
    hidden = [nn.Linear(6, 16, bias=False), norm(16), nn.ReLU(), nn.Linear(16, 16, bias=False), norm(16), nn.ReLU()]
    return fill(nn.Sequential(*hidden, nn.Linear(16, 3)), seed)


class Noisy(nn.Linear):
    """W = mu + sigma * eps with eps fixed: the output ignores only the joint scale of `weight` and `weight_sigma`."""

    scaled_with_weight = "weight_sigma"

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__(fan_in, fan_out, bias=False)
        self.weight_sigma = nn.Parameter(torch.full_like(self.weight, 0.5 / math.sqrt(fan_in)))
        self.register_buffer("eps", torch.outer(inputs(fan_out, seed=7), inputs(fan_in, seed=8)))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + self.weight_sigma * self.eps)


def noisy_mlp(norm: type[nn.Module] = nn.LayerNorm) -> nn.Sequential:
    """As `mlp`, with a noisy first layer and a noisy head."""
    hidden = [Noisy(6, 16), norm(16), nn.ReLU(), nn.Linear(16, 16, bias=False), norm(16), nn.ReLU()]
    network = nn.Sequential(*hidden, Noisy(16, 3))
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(inputs(*parameter.shape, seed=i) / 4 if parameter.ndim > 1 else parameter)
    return network


def inputs(*shape: int, seed: int = 1) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers by name."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two snapshots are equal bit for bit."""
    return all(torch.equal(first[name], second[name]) for name in first)
