"""Pictures of an episode, drawn from the state of the game: what a person sees, not what a shift makes the agent see.

    filming = Filming(world)
    env = evaluation_world(world, 10, around=filming.around)
    play(env, policy, seed)
    for picture in filming.film.pictures():  # uint8 [H, W, 3], of the first episode in environment 0
        ...

A film is a wrapper of the game itself. It changes nothing and keeps only observations and actions, so that a long
episode takes little memory; the pictures are drawn afterwards, one by one.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray

from envs.control import ControlVectorEnv
from envs.control_loop import assign, make
from envs.minatar import MinAtarVectorEnv, game_seed, picture
from envs.worlds import evaluation_world

MAX_PICTURES = 1_000
"""The first pictures of an episode are drawn: MinAtar's ten in a second last 100 seconds."""
CELL = 32
"""Height and width of a MinAtar cell in a picture, in pixels."""
LAYERS = {
    "Asterix": (2, 3, 1, 0),
    "Breakout": (2, 3, 0, 1),
    "Freeway": (2, 3, 4, 5, 6, 1, 0),
    "Seaquest": (7, 8, 3, 9, 5, 6, 4, 2, 1, 0),
    "SpaceInvaders": (1, 2, 3, 4, 5, 0),
}
"""Channels of each game from the lowest to the one on top: trails and walls below, the player above. In the order of
the channels Breakout's bricks would hide the ball."""
GRID_LINE = (40, 40, 40)
"""Colour between the cells."""
MAX_PER_SECOND = 30
"""Of a faster environment every second picture is drawn, or every third, ..."""

_QUIET = {"PYGAME_HIDE_SUPPORT_PROMPT": "1", "SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}
"""for pygame: no line on stdout, and neither screen nor sound, which it would look for and miss on a server"""


class Film(VectorWrapper):
    """Passes everything on unchanged, and keeps the first episode of environment 0 after a reset.

    Args:
        env: an environment of one game, with `AutoresetMode.SAME_STEP`.
    Attributes:
        steps_per_second: the speed of the game.
        every: steps from one picture to the next.
        steps: of the episode, so far.
    """

    steps_per_second: float
    every = 1

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self._seen: list[NDArray[Any]] = []
        self._actions: list[int] = []
        self._running = False
        self.begun: Callable[[Film], None] = lambda film: None  # called at each reset

    @property
    def per_second(self) -> float:
        """Pictures in a second."""
        return self.steps_per_second / self.every

    @property
    def steps(self) -> int:
        """Steps of the episode."""
        return len(self._actions)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset every environment, and begin a new film."""
        obs, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._begin(seed)
        self.begun(self)
        self._seen, self._actions, self._running = [obs[0].copy()], [], True
        return obs, infos

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step every environment."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        if self._running and len(self._seen) <= MAX_PICTURES * self.every:
            self._running = not (terminated[0] or truncated[0])
            shown = obs if self._running else infos["final_obs"]  # obs already belongs to the next episode
            self._seen.append(shown[0].copy())
            self._actions.append(int(actions[0]))
        return obs, rewards, terminated, truncated, infos

    def _begin(self, seed: int | Sequence[int] | None) -> None:
        """Note what the episode starts from."""

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        """Draw the episode, uint8 [H, W, 3] each: the first state, every `every`-th and the last."""
        raise NotImplementedError

    def _drawn(self) -> list[int]:
        """The steps after which a picture is drawn; 0 is the start."""
        return [*range(0, self.steps, self.every), self.steps][:MAX_PICTURES]


class MinAtarFilm(Film):
    """A MinAtar game: a colour for each channel, `envs.minatar.PALETTE`; what moves is above what does not."""

    steps_per_second = 10.0

    def __init__(self, env: MinAtarVectorEnv) -> None:
        super().__init__(env)
        self._layers = LAYERS[env.rules["env_id"].removeprefix("MinAtar/").partition("-")[0]]

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        """See `Film`."""
        for step in self._drawn():
            drawn = picture(self._seen[step], CELL, self._layers)
            drawn[::CELL], drawn[:, ::CELL] = GRID_LINE, GRID_LINE
            yield drawn


class ControlFilm(Film):
    """A Gymnasium environment, by its own renderer: the episode is played again in one environment that draws.

    Raises:
        ValueError: the environment cannot draw; the message says what to install.
    """

    env: ControlVectorEnv

    def __init__(self, env: ControlVectorEnv) -> None:
        super().__init__(env)
        self._env_id: str = env.rules["env_id"]
        self._start: tuple[int, dict[str, float]] | None = None
        drawing = self._drawing()
        drawing.reset(seed=0)
        self._draw(drawing)  # fails now, not after the evaluation
        drawing.close()
        fps = float(drawing.metadata.get("render_fps") or 30)
        self.every = math.ceil(fps / MAX_PER_SECOND)
        self.steps_per_second = fps

    def _drawing(self) -> gymnasium.Env[Any, Any]:
        """An environment that draws."""
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        spec = gymnasium.spec(self._env_id.rpartition(":")[2])
        try:
            with warnings.catch_warnings():  # Gymnasium warns of a render mode that the environment does not list
                warnings.simplefilter("ignore")
                env = make(self._env_id, spec, render_mode="rgb_array")
        except TypeError as error:  # its constructor does not know a render mode
            raise ValueError(f"{self._env_id} cannot be drawn: {error}") from error
        if "rgb_array" not in (env.metadata.get("render_modes") or ()):
            raise ValueError(f"{self._env_id} cannot be drawn: it has no render mode rgb_array")
        return env

    def _draw(self, env: gymnasium.Env[Any, Any]) -> NDArray[np.uint8]:
        try:
            with warnings.catch_warnings():  # pygame warns while it is imported
                warnings.simplefilter("ignore")
                drawn: Any = env.render()
        except gymnasium.error.DependencyNotInstalled:
            raise ValueError(f"pictures of {self._env_id} need pygame: pip install -e '.[video]'") from None
        if not isinstance(drawn, np.ndarray) or drawn.ndim != 3:
            raise ValueError(f"{self._env_id} cannot be drawn: render() gave {type(drawn).__name__}, not a picture")
        return drawn.astype(np.uint8, copy=False)

    def _begin(self, seed: int | Sequence[int] | None) -> None:
        if seed is None:
            self._start = None
            return
        if not isinstance(seed, (int, np.integer)):
            self._start = int(seed[0]), self.env.changed_physics
        else:
            self._start = game_seed(int(seed)) & 0x7FFFFFFF, self.env.changed_physics

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        """See `Film`.

        Raises:
            ValueError: the environment was reset without a seed, or came elsewhere when it played the episode again.
        """
        if self._start is None:
            raise ValueError("reset the environment with a seed first")
        env, (seed, physics), drawn = self._drawing(), self._start, self._drawn()
        wanted, first = set(drawn), self._first_action(env)
        for name, value in physics.items():
            assign(env, name, value)
        obs = env.reset(seed=seed)[0]
        for step in range(drawn[-1] + 1):
            if not np.array_equal(np.asarray(obs, dtype=np.float32), self._seen[step]):
                raise ValueError(
                    f"{self._env_id} cannot be drawn: played again with the same seed and actions, it came elsewhere "
                    f"at step {step}"
                )
            if step in wanted:
                yield self._draw(env)
            if step < drawn[-1]:
                obs = env.step(first + np.int64(self._actions[step]))[0]
        env.close()

    @staticmethod
    def _first_action(env: gymnasium.Env[Any, Any]) -> np.int64:
        space: Any = env.action_space
        return np.int64(space.start)


def film_of(env: Any) -> Film:
    """The wrapper that keeps the first episode of this game.

    Raises:
        ValueError: it cannot be drawn.
        TypeError: an environment that is not from this package, or a game on a screen, which is its own picture.
    """
    if isinstance(env, MinAtarVectorEnv):
        return MinAtarFilm(env)
    if isinstance(env, ControlVectorEnv):
        return ControlFilm(env)
    raise TypeError(f"{type(env).__name__} has no pictures of its own")


class Filming:
    """Keeps the film of the latest evaluation; off, nothing is filmed.

    Args:
        world: an environment that was reset, to find out now whether its game can be drawn.
        on: whether anything is filmed.
    Attributes:
        around: for `evaluation_world`.
        film: of the game that was reset last; None when off or before the first reset.
    Raises:
        ValueError: the environment cannot be drawn.
    """

    def __init__(self, world: VectorEnv[Any, Any, Any], on: bool = True) -> None:
        self.film: Film | None = None
        self.around: Callable[[Any], VectorEnv[Any, Any, Any]] | None = self._around if on else None
        if on:
            evaluation_world(world, 1, around=self._around).close()

    def _around(self, game: Any) -> Film:
        film = film_of(game)
        film.begun = self._begun
        return film

    def _begun(self, film: Film) -> None:
        self.film = film
