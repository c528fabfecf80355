"""Where the frames of a replay memory are: in the host's memory, or in that of the device that trains.

A batch of 32 stacks and their successors is 1.8 MB. From the host it is gathered by the CPU and copied for every
update; a copy of that size also waits for what the device still computes. On the device only places go over, and each
new frame once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Where = Literal["auto", "host", "device"]
Places = NDArray[np.int64]
Frames = NDArray[np.uint8]


class Screens(Protocol):
    """Frames [n, H, W] by their place, 0 to n - 1; zeros where none was written.

    The state after the last step of an episode may be read before it is written. A discount of 0 takes it out of the
    target, but for the last bits of a sum of probabilities: it must be the same in a run that is repeated.
    """

    def write(self, places: Places, frames: Frames) -> None:
        """Keep frames [K, H, W] at places [K], all different."""

    def read(self, places: Places) -> Frames:
        """The frames at places [K], on the host."""

    def stacks(self, places: Places, blank: NDArray[np.bool_]) -> Any:
        """uint8 [B, S, H, W] of places [B, S], zeros where blank [B, S]: an array, or a tensor on the device."""


class HostScreens:
    """In a NumPy array; its memory is taken as it is filled."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.frames = np.zeros(shape, dtype=np.uint8)

    def write(self, places: Places, frames: Frames) -> None:
        """See Screens."""
        self.frames[places] = frames

    def read(self, places: Places) -> Frames:
        """See Screens."""
        return self.frames[places]

    def stacks(self, places: Places, blank: NDArray[np.bool_]) -> Frames:
        """See Screens."""
        stacks = self.frames[places]
        stacks[blank] = 0
        return stacks


class DeviceScreens:
    """In a tensor on a device, which nothing here waits for but `read`; its memory is taken at once.

    Raises:
        ValueError: the device has not enough memory.
    """

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        try:
            self.frames = torch.zeros(tuple(shape), dtype=torch.uint8, device=device)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:  # RuntimeError: a CPU's allocator
            raise ValueError(
                f"--replay-device device: no {size_of(shape) / 1e9:.1f} GB for the frames on {device}; lower "
                f"--buffer-size or take --replay-device host ({str(error).splitlines()[0]})"
            ) from None

    def _to_device(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.frames.device)

    def write(self, places: Places, frames: Frames) -> None:
        """See Screens."""
        self.frames.index_copy_(
            0, self._to_device(places), self._to_device(np.require(frames, requirements=["C", "W"]))
        )

    def read(self, places: Places) -> Frames:
        """See Screens. Waits for the device."""
        frames: Frames = self.frames.index_select(0, self._to_device(places)).cpu().numpy()
        return frames

    def stacks(self, places: Places, blank: NDArray[np.bool_]) -> torch.Tensor:
        """See Screens."""
        stacks = self.frames.index_select(0, self._to_device(places.reshape(-1)))
        stacks = stacks.view(*places.shape, *self.frames.shape[1:])
        return stacks.masked_fill_(self._to_device(blank)[:, :, None, None], 0)


def screens(shape: Sequence[int], where: Where, device: torch.device) -> Screens:
    """Room for frames [n, H, W].

    Args:
        shape: (n, H, W).
        where: auto is the device if it is a GPU of whose free memory half is enough, else the host.
        device: the one that trains.
    Raises:
        ValueError: the device has not enough memory.
    """
    if where == "auto":
        fits = device.type == "cuda" and 2 * size_of(shape) <= torch.cuda.mem_get_info(device)[0]
        where = "device" if fits else "host"
    return HostScreens(shape) if where == "host" else DeviceScreens(shape, device)


def size_of(shape: Sequence[int]) -> int:
    """Bytes of frames of this shape."""
    return math.prod(shape)
