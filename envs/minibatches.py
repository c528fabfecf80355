"""From images in memory to what a network is trained on: minibatches, normalised pixels, augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from envs.images import Images


class Minibatches:
    """Indices below n in a random order, a new one in each epoch; an epoch's last batch is filled from the next.

    Args:
        n: images.
        batch_size: indices per draw.
        rng: draws the orders. Its state is the caller's to save.
    """

    def __init__(self, n: int, batch_size: int, rng: np.random.Generator) -> None:
        self.batch_size, self.rng = batch_size, rng
        self.grow(n)

    def grow(self, n: int) -> None:
        """Begin a new epoch, over n images."""
        self.n, self.order, self.position = n, self.rng.permutation(n), 0

    def draw(self) -> np.ndarray:  # [B]
        """The next minibatch's indices."""
        parts: list[np.ndarray] = []
        missing = self.batch_size
        while missing:
            if self.position == self.n:
                self.grow(self.n)
            parts.append(self.order[self.position : self.position + missing])
            self.position += len(parts[-1])
            missing -= len(parts[-1])
        return np.concatenate(parts)

    def state_dict(self) -> dict[str, Any]:
        """The present epoch's order and the position in it, without the generator's state."""
        return {"n": self.n, "order": self.order, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        self.n, self.order, self.position = state["n"], state["order"], state["position"]


class Pixels:
    """A data set as bytes on a device, handed out normalised by channel, and shifted and mirrored when asked to.

    Attributes:
        train_x, train_y, test_x, test_y: as in `Images`, on the device.
        mean, deviation: of each channel over the training set, float32 [1, C, 1, 1].
        mirrors: augmentation mirrors images, which keeps the class in CIFAR-10 but not of digits and garments.
    """

    def __init__(self, images: Images, device: torch.device) -> None:
        self.train_x, self.train_y = images.train_x.to(device), images.train_y.to(device)
        self.test_x, self.test_y = images.test_x.to(device), images.test_y.to(device)
        channels = self.train_x.shape[1]
        counts = torch.stack([self.train_x[:, c].flatten().bincount(minlength=256) for c in range(channels)]).double()
        levels, total = torch.arange(256, device=device).double(), counts.sum(1)
        mean = (counts * levels).sum(1) / total
        deviation = ((counts * (levels - mean[:, None]).square()).sum(1) / total).sqrt()
        self.mean, self.deviation = (t.float().view(1, -1, 1, 1) for t in (mean, deviation))
        self.mirrors = images.name == "cifar10"

    def normalised(self, x: Tensor) -> Tensor:  # [B, C, H, W] bytes -> float32, channels last
        """Mean 0 and deviation 1 in each channel of the training set."""
        return ((x - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)

    def augmented(self, x: Tensor, rng: np.random.Generator) -> Tensor:  # [B, C, H, W] bytes -> bytes
        """Each image shifted by up to an eighth of its size, and half of them mirrored where that keeps the class."""
        batch, _, height, width = x.shape
        reach = max(1, height // 8)
        dy, dx = (torch.from_numpy(rng.integers(2 * reach + 1, size=batch)).to(x.device) for _ in range(2))
        windows = F.pad(x, (reach, reach, reach, reach)).unfold(2, height, 1).unfold(3, width, 1)
        x = windows[torch.arange(batch, device=x.device), :, dy, dx]
        if self.mirrors:
            flip = torch.from_numpy(rng.random(batch) < 0.5).to(x.device)
            x = torch.where(flip[:, None, None, None], x.flip(3), x)
        return x
