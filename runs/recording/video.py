"""The observations of the first episode of an evaluation as an animated GIF, at the speed of the game."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray

from runs.recording.files import failures_named, write_atomically

MAX_FRAMES = 2_700
"""The first frames of an episode are kept: three minutes of play, while a game of Atari may last half an hour. They
take 19 MB, and about 90 MB more while they are written."""
STEPS_PER_SECOND = 15
"""A step of an agent is four frames of a screen at 60 Hz."""
SCALE = 2
"""Height and width of a pixel in the GIF."""


class FirstEpisode(VectorWrapper):
    """Passes everything on unchanged, and keeps what environment 0 shows in its first episode after a reset.

    Args:
        env: greyscale observations [N, K, H, W] uint8, the newest frame last, with `AutoresetMode.SAME_STEP`.
    Attributes:
        frames: copies [H, W] of the newest frame of each observation, including the one that ended the episode; at most
            the first MAX_FRAMES.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.frames: list[NDArray[np.uint8]] = []
        self._running = False

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Reset every environment, and the frames."""
        obs, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self.frames, self._running = [obs[0, -1].copy()], True
        return obs, infos

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step every environment."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        if self._running and len(self.frames) < MAX_FRAMES:
            self._running = not (terminated[0] or truncated[0])
            shown = obs[0] if self._running else infos["final_obs"][0]  # obs already belongs to the next episode
            self.frames.append(shown[-1].copy())
        return obs, rewards, terminated, truncated, infos

    def write(self, path: Path) -> None:
        """Write the frames kept so far; see `write_gif`."""
        write_gif(path, self.frames)


def write_gif(
    path: Path, frames: Iterable[NDArray[np.uint8]], *, per_second: float = STEPS_PER_SECOND, scale: int = SCALE
) -> None:
    """Write frames as an endlessly repeating GIF, replacing an older file; equal frames give equal bytes.

    A step lasts 1/15 s and a GIF counts in 1/100 s, so frames last 0.07, 0.06 and 0.07 s in turn and no error adds up.
    A frame equal to the one before is not stored again; the earlier one lasts longer.

    Args:
        path: the file; its directory is created if missing, the directory above is not.
        frames: of one size, [H, W] uint8 each, 0 black and 255 white, or [H, W, 3] in RGB; a colour picture of more
            than 256 colours is stored with the 256 nearest.
        per_second: frames in a second.
        scale: a pixel becomes scale x scale.
    Raises:
        ValueError: there are no frames.
        RunError: the disk is full, or the directory cannot be made or written. An older file stays.
    """
    from PIL import Image  # only runs that record videos need it

    def as_image(frame: NDArray[np.uint8]) -> Image.Image:
        image = Image.fromarray(frame)
        image = image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
        return image.quantize(dither=Image.Dither.NONE) if image.mode == "RGB" else image

    images = map(as_image, frames)
    first = next(images, None)
    if first is None:
        raise ValueError(f"no frames for {path.name}: reset the environment first")
    count = len(frames) if isinstance(frames, Sized) else MAX_FRAMES  # or fewer
    ends = np.rint(np.arange(count + 1) * 100 / per_second)  # in hundredths of a second
    milliseconds = [10 * int(hundredths) for hundredths in np.diff(ends)]
    encoded = io.BytesIO()  # writing to a file, Pillow loses the reason when the disk is full
    # One palette of all 256 greys for every frame is exact, smaller, and four times as fast as fitted palettes.
    first.save(encoded, "GIF", save_all=True, append_images=images, duration=milliseconds, loop=0, optimize=False)
    with failures_named(f"write {path.name}", path):
        path.parent.mkdir(exist_ok=True)
    write_atomically(path, encoded.getvalue())
