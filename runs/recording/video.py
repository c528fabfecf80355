"""What an agent saw in the first episode of an evaluation, as an animated GIF at the speed of the game."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray

from runs.recording.files import failures_named, replace_atomically

MAX_FRAMES = 2_700
"""Frames kept of an episode, its first: three minutes of play, where a game of Atari may last half an hour. They take
19 MB, and some 90 MB more while they are written."""
STEPS_PER_SECOND = 15
"""A step of an agent is four frames of a screen at 60 Hz."""
SCALE = 2
"""Height and width of a pixel in the GIF."""


class FirstEpisode(VectorWrapper):
    """Hands everything on unchanged, and keeps what copy 0 shows in its first episode since the last reset.

    Args:
        env: observations [N, K, H, W] uint8 on a grey scale, the newest frame last, with `AutoresetMode.SAME_STEP`.
    Attributes:
        frames: copies [H, W], the newest one of each observation in turn, the one that ended the episode included; of a
            long episode the first MAX_FRAMES.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.frames: list[NDArray[np.uint8]] = []
        self._running = False

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Restart every copy, and the frames with it."""
        obs, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self.frames, self._running = [obs[0, -1].copy()], True
        return obs, infos

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """One step in every copy."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        if self._running and len(self.frames) < MAX_FRAMES:
            self._running = not (terminated[0] or truncated[0])
            shown = obs[0] if self._running else infos["final_obs"][0]  # obs is of the next episode already
            self.frames.append(shown[-1].copy())
        return obs, rewards, terminated, truncated, infos

    def write(self, path: Path) -> None:
        """Write the frames kept so far; see `write_gif`."""
        write_gif(path, self.frames)


def write_gif(path: Path, frames: Sequence[NDArray[np.uint8]]) -> None:
    """Write frames as an animated GIF that repeats for ever, in place of an older one; equal frames give equal bytes.

    A step lasts 1/15 s and a GIF counts in 1/100 s: frames last 0.07, 0.06 and 0.07 s in turn, and no error adds up.
    A frame that repeats the one before is not stored again: that one lasts longer.

    Args:
        path: the file; its directory is made if missing, the one above is not.
        frames: [H, W] uint8 each, of one size, 0 black and 255 white; a pixel becomes SCALE x SCALE.
    Raises:
        ValueError: there are no frames.
        RunError: the disk is full, or the directory cannot be made or written. An older file stays.
    """
    if not frames:
        raise ValueError(f"no frames for {path.name}: reset the environment first")
    from PIL import Image  # only runs that record need it

    height, width = frames[0].shape
    size = SCALE * width, SCALE * height
    images = (Image.fromarray(frame).resize(size, Image.Resampling.NEAREST) for frame in frames)
    ends = np.rint(np.arange(len(frames) + 1) * 100 / STEPS_PER_SECOND)  # in hundredths of a second
    milliseconds = [10 * int(hundredths) for hundredths in np.diff(ends)]
    encoded = io.BytesIO()  # Pillow's own writing to a file loses the reason when the disk is full
    # All 256 greys as palette of every frame: exact, a quarter of the time and smaller than a palette fitted to each.
    next(images).save(
        encoded, "GIF", save_all=True, append_images=images, duration=milliseconds, loop=0, optimize=False
    )
    with failures_named(f"write {path.name}", path):
        path.parent.mkdir(exist_ok=True)

    def write(file: BinaryIO) -> None:
        file.write(encoded.getbuffer())

    replace_atomically(path, write)
