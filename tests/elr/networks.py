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


def with_torchs_weights(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """6 -> 16 -> 16 -> 2, each hidden layer with LayerNorm and ReLU; torch's own initial weights of seed 0."""
    torch.manual_seed(0)
    hidden = [nn.Linear(6, 16, bias=False), nn.LayerNorm(16), nn.ReLU()]
    hidden += [nn.Linear(16, 16, bias=False), nn.LayerNorm(16), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(16, 2)).to(dtype)


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


class RawNoisy(nn.Module):
    """A noisy layer as in CleanRL's Rainbow: its matrices are its own parameters `weight_mu` and `weight_sigma`."""

    def __init__(self, fan_in: int, fan_out: int, bias: bool = False):
        super().__init__()
        self.weight_mu = nn.Parameter(inputs(fan_out, fan_in, seed=fan_in) / math.sqrt(fan_in))
        self.weight_sigma = nn.Parameter(torch.full((fan_out, fan_in), 0.5 / math.sqrt(fan_in)))
        self.register_buffer("weight_epsilon", torch.outer(inputs(fan_out, seed=7), inputs(fan_in, seed=8)))
        self.bias_mu = nn.Parameter(torch.zeros(fan_out)) if bias else None
        self.bias_sigma = nn.Parameter(torch.full((fan_out,), 0.5 / math.sqrt(fan_in))) if bias else None
        self.register_buffer("bias_epsilon", inputs(fan_out, seed=9))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return nn.functional.linear(x, self.weight_mu, self.bias_mu)
        bias = None if self.bias_mu is None else self.bias_mu + self.bias_sigma * self.bias_epsilon
        return nn.functional.linear(x, self.weight_mu + self.weight_sigma * self.weight_epsilon, bias)


class HandWrittenNorm(nn.Module):
    """RMS normalisation with a gain `g` and, if asked for, an offset `shift`."""

    def __init__(self, width: int, shifted: bool = False):
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width)) if shifted else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.g * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return y if self.shift is None else y + self.shift


class AttentionBlock(nn.Module):
    """A block of a transformer, pre-norm or post-norm; a cheap MLP is its second half."""

    def __init__(self, width: int, pre_norm: bool = True):
        super().__init__()
        self.pre_norm = pre_norm
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, D] -> [B, T, D]
        attend = lambda y: self.attention(y, y, y, need_weights=False)[0]  # noqa: E731
        if self.pre_norm:
            x = x + attend(self.norm1(x))
            return x + self.down(self.up(self.norm2(x)).relu())
        x = self.norm1(x + attend(x))
        return self.norm2(x + self.down(self.up(x).relu()))


class ImageTransformer(nn.Module):
    """A small ViT: patches, a class token, positions, blocks, a head that reads the class token."""

    def __init__(self, width: int = 8, blocks: int = 2, pre_norm: bool = True):
        super().__init__()
        self.class_token = nn.Parameter(0.1 * inputs(1, 1, width, seed=3))
        self.positions = nn.Parameter(0.1 * inputs(1, 5, width, seed=4))
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.blocks = nn.Sequential(*(AttentionBlock(width, pre_norm) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:  # [B, 1, 4, 4] -> [B, 3]
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class ResidualBlock(nn.Module):
    """x + batch norm(conv(ReLU(batch norm(conv x)))), whose last gain starts at zero, as torchvision offers."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


class ResNet(nn.Module):
    """A small one with two blocks of zero-initialised gains."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(ResidualBlock(channels), ResidualBlock(channels))
        self.head = nn.Linear(channels, 3)

    def forward(self, images: Tensor) -> Tensor:  # [B, 1, H, W] -> [B, 3]
        return self.head(self.blocks(self.norm(self.stem(images)).relu()).mean((2, 3)))


class Recurrent(nn.Module):
    """A recurrent layer of any type, then a linear head: on the mean of its outputs, or on the last one of a cell."""

    def __init__(self, layer: nn.Module, width: int):
        super().__init__()
        self.recurrent, self.head = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, 6] -> [B, 3]
        if not isinstance(self.recurrent, nn.RNNCellBase):
            return self.head(self.recurrent(x.transpose(0, 1))[0].mean(0))
        state = None
        for step in x.unbind(1):
            state = self.recurrent(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def inputs(*shape: int, seed: int = 1) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers by name."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two snapshots are equal bit for bit."""
    return all(torch.equal(first[name], second[name]) for name in first)
