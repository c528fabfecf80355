"""Environments seen as single frames, and the stack of the last few that an agent sees.

A `FrameVectorEnv` gives one grey frame per environment and step. Shifts (`envs.shifts`) wrap it: noise or a permutation
of pixels is applied to each frame once. `StackFrames` wraps the shifts. A replay memory can then keep each frame once
and put the stacks together again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.minatar import game_seed

SIZE = 84
"""Height and width of a frame."""

STACK = 4
"""Frames that an agent sees at once."""

Step = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]


class FrameVectorEnv(VectorEnv[NDArray[np.uint8], NDArray[np.int64], NDArray[Any]]):
    """N environments of one game, one grey frame each; a finished game restarts within the same step (SAME_STEP).

    Observations are uint8 [N, 1, 84, 84], fresh arrays that are safe to keep. Rewards are float64 [N], as the game
    gives them: nothing is clipped. `terminated` and `truncated` are bool [N] and never both true.

    When an episode ended in a step (and only then) `infos` holds `final_obs`, `_final_obs`, `episode` and `_episode`
    as `MinAtarVectorEnv` describes them. When a life was lost and the game continues, it holds `life_lost`, bool [N].

    Subclasses define `_begin`, `_play` and `with_num_envs`.
    """

    resumes_exactly = True
    """whether `load_state_dict` continues the running episodes; if not, `reset()` is called after it"""

    def __init__(self, num_envs: int, actions: int) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs, self._actions = num_envs, actions
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"], "render_fps": 15}
        self.render_mode = "rgb_array"
        self.single_observation_space = Box(0, 255, (1, SIZE, SIZE), np.uint8)
        self.single_action_space = Discrete(actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
        self._frames: NDArray[np.uint8] | None = None  # [N, 84, 84], what the last reset or step returned

    def _begin(self, seeds: list[int] | None) -> NDArray[np.uint8]:
        """Start all episodes, with random streams of these seeds or the present ones; return frames [N, 84, 84]."""
        raise NotImplementedError

    def _play(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """One step; finished games are restarted.

        Returns:
            frames [N, 84, 84] to continue from; final frames where a game finished, the same frames elsewhere;
            rewards [N]; terminated [N]; truncated [N]; life_lost [N].
        """
        raise NotImplementedError

    def with_num_envs(self, num_envs: int) -> FrameVectorEnv:
        """Build the same game with the same rules and another number of environments."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start a new episode in every environment.

        Args:
            seed: an int seeds environment i with `game_seed(seed, i)`, reduced to 31 bits; a sequence of N gives each
                environment its own number in 0 .. 2**31 - 1; None continues the streams.
            options: none are supported, `reset_mask` included.
        Raises:
            ValueError: options were given, a seed is out of range, or there are not N of them.
        """
        if options:
            raise ValueError(
                f"{type(self).__name__}.reset takes no options, got {sorted(options)}: single environments cannot "
                "be reset from outside, they restart within the step that ends an episode"
            )
        seeds: list[int] | None = None
        if isinstance(seed, (int, np.integer)):
            seeds = [game_seed(int(seed), i) & 0x7FFFFFFF for i in range(self.num_envs)]
            super().reset(seed=int(seed))
        elif seed is not None:
            given, n = list(seed), self.num_envs
            if len(given) != n or not all(isinstance(one, (int, np.integer)) and 0 <= one < 2**31 for one in given):
                raise ValueError(f"reset(seed=[...]) takes {n} integers in 0 .. 2**31 - 1, got {given}")
            seeds = [int(one) for one in given]
        self._frames = self._begin(seeds)
        self._returns[:], self._lengths[:] = 0.0, 0
        return self.observation(), {}

    def step(self, actions: NDArray[np.int64]) -> Step:
        """Play one action in every environment.

        Raises:
            ValueError: actions have another shape or type, or one is out of range. No environment has moved then.
            gymnasium.error.ResetNeeded: `reset` was never called.
        """
        if self._frames is None:
            raise gymnasium.error.ResetNeeded(f"call {type(self).__name__}.reset() before the first step()")
        array, limit = np.asarray(actions), self._actions
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iu":
            raise ValueError(f"actions must be integers of shape ({self.num_envs},), got {array.dtype} {array.shape}")
        if array.min() < 0 or array.max() >= limit:  # ale-py's vector environment waits forever for such an action
            raise ValueError(f"actions must lie in 0 .. {limit - 1}, got {array.tolist()}")
        frames, final, rewards, terminated, truncated, life_lost = self._play(array)
        self._frames = frames
        self._returns += rewards
        self._lengths += 1
        infos: dict[str, Any] = {}
        if life_lost.any():
            infos["life_lost"] = life_lost
        if (ended := terminated | truncated).any():
            infos |= {
                "final_obs": final[:, None].copy(),
                "_final_obs": ended,
                "episode": {"r": np.where(ended, self._returns, 0.0), "l": np.where(ended, self._lengths, 0)},
                "_episode": ended.copy(),
            }
            self._returns[ended], self._lengths[ended] = 0.0, 0
        return self.observation(), rewards, terminated, truncated, infos

    def observation(self) -> NDArray[np.uint8]:
        """Return the present observations [N, 1, 84, 84], those that the last `reset` or `step` returned."""
        if self._frames is None:
            raise gymnasium.error.ResetNeeded(f"call {type(self).__name__}.reset() first")
        return self._frames[:, None].copy()

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """Draw environment 0, uint8 [84, 84, 3]."""
        return np.repeat(self.observation()[0, 0, :, :, None], 3, axis=2)

    def _statistics(self) -> dict[str, Any]:
        """A copy of what `step` keeps."""
        frames = None if self._frames is None else self._frames.copy()
        return {"returns": self._returns.copy(), "lengths": self._lengths.copy(), "frames": frames}

    def _load_statistics(self, state: dict[str, Any]) -> None:
        self._returns, self._lengths = state["returns"].copy(), state["lengths"].copy()
        self._frames = None if state["frames"] is None else state["frames"].copy()


class StackFrames(VectorWrapper):
    """The last K frames [N, K, H, W], the newest last; before an episode's first frame there are zeros.

    Args:
        env: vector environment with observations [N, 1, H, W] and `AutoresetMode.SAME_STEP`.
        frames: K.
    Raises:
        ValueError: observations of another shape, another autoreset mode, or K < 1.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], frames: int = 4) -> None:
        super().__init__(env)
        space = env.single_observation_space
        shape = space.shape or ()
        if not isinstance(space, Box) or len(shape) != 3 or shape[0] != 1:
            raise ValueError(f"StackFrames needs observations [1, H, W], got {space}")
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise ValueError("StackFrames needs an environment with AutoresetMode.SAME_STEP")
        if frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}")
        self.frames = frames
        self.single_observation_space = Box(
            float(space.low.min()), float(space.high.max()), (frames, *shape[1:]), space.dtype.type
        )
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._stack = np.zeros((self.num_envs, frames, *shape[1:]), dtype=space.dtype)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start a new episode in every environment."""
        env: Any = self.env
        obs, infos = env.reset(seed=seed, options=options)
        self._stack[:], self._stack[:, -1] = 0, obs[:, 0]
        return self._stack.copy(), infos

    def step(self, actions: NDArray[Any]) -> Step:
        """One step in every environment; `final_obs` is stacked too."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        self._stack[:, :-1] = self._stack[:, 1:]
        self._stack[:, -1] = obs[:, 0]
        ended = terminated | truncated
        if ended.any():
            final = self._stack.copy()
            for i in np.flatnonzero(ended):  # one by one: Gymnasium's own environments give objects
                final[i, -1] = infos["final_obs"][i][0]
            self._stack[ended, :-1] = 0
            infos = {**infos, "final_obs": final}
        return self._stack.copy(), rewards, terminated, truncated, infos

    def observation(self) -> NDArray[Any]:
        """Return the stacks that the last `reset` or `step` returned."""
        return self._stack.copy()

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that decides what happens next, including the wrapped environment's state."""
        env: Any = self.env
        return {"stack": self._stack.copy(), "env": env.state_dict()}

    def load_state_dict(self, state: dict[str, Any], inner: Callable[[Any, Any], None] | None = None) -> None:
        """Continue where `state_dict` was called.

        Args:
            state: from `state_dict`.
            inner: loads the wrapped environment's part into it; None means by its own `load_state_dict`.
        Raises:
            ValueError: the state is of a stack of another shape, or does not fit the wrapped environment.
        """
        if state["stack"].shape != self._stack.shape:
            raise ValueError(f"this state is of a stack {state['stack'].shape}, not {self._stack.shape}")
        env: Any = self.env
        inner(env, state["env"]) if inner else env.load_state_dict(state["env"])
        self._stack = state["stack"].copy()
