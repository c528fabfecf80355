"""Atari games as Gymnasium vector environments of single frames, on ale-py (GPL-2, imported; the ROMs come with it).

Two classes play the same games and give the same results under the same seeds:

* `AtariVectorEnv`: emulators in Python, one after another. Its state, including the emulators' random streams, can be
  saved: a killed run resumes exactly. It supports modes and difficulties.
* `ThreadedAtariVectorEnv`: ale-py's own vector environment, in C++ with threads: faster with more than a few
  environments. It cannot be saved: a resumed run starts new episodes.

A step is one action, repeated for 4 frames. The observed frame is the maximum of the last two, in grey, resized to
84 x 84 by area. The defaults are the protocol of Machado et al. (2018, arXiv:1709.06009): sticky actions with
probability 0.25 (drawn in every frame), lost lives are not signalled, episodes are truncated after 108,000 frames.
`infos["life_lost"]` reports lost lives, for the older protocol; the game itself continues.
"""

from __future__ import annotations

import difflib
import math
from functools import cache
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from envs.frames import SIZE, FrameVectorEnv
from envs.games import script_for

FRAME_SKIP = 4
"""Frames per step, during which the action is repeated."""

MAX_FRAMES = 108_000
"""Frames of the longest episode, half an hour of play."""

_Played = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


class _Atari(FrameVectorEnv):
    """Common to both classes: arguments, actions, and when a life was lost."""

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        sticky_action_prob: float,
        full_action_space: bool,
        noop_max: int,
        max_episode_frames: int,
        **more: Any,
    ) -> None:
        if not 0.0 <= sticky_action_prob <= 1.0:
            raise ValueError(f"sticky_action_prob must be a probability in [0, 1], got {sticky_action_prob}")
        if noop_max < 0 or max_episode_frames < FRAME_SKIP:
            raise ValueError(
                f"noop_max must be at least 0, got {noop_max}, and max_episode_frames at least {FRAME_SKIP}, "
                f"got {max_episode_frames}"
            )
        self._config: dict[str, Any] = {
            "env_id": env_id,
            "num_envs": num_envs,
            "sticky_action_prob": float(sticky_action_prob),
            "full_action_space": bool(full_action_space),
            "noop_max": noop_max,
            "max_episode_frames": max_episode_frames,
            **more,
        }
        # Every instance would print a banner on stderr.
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._rom = rom(env_id)
        game = _game(self._rom)
        legal = game.getLegalActionSet() if full_action_space else game.getMinimalActionSet()
        super().__init__(num_envs, len(legal))
        self._action_set, self._lives = legal, np.zeros(num_envs, dtype=np.int64)

    def _emulator(self, seed: int = 0) -> ale_py.ALEInterface:
        """Load the game, which takes some 70 ms."""
        emulator = ale_py.ALEInterface()
        emulator.setInt("random_seed", seed)
        emulator.setFloat("repeat_action_probability", self._config["sticky_action_prob"])
        emulator.setInt("max_num_frames_per_episode", self._config["max_episode_frames"])
        emulator.loadROM(self._rom)
        return emulator

    @property
    def rules(self) -> dict[str, Any]:
        """The arguments that it was built with, by name."""
        return dict(self._config)

    def with_num_envs(self, num_envs: int) -> _Atari:
        """Build the same game with the same rules and another number of environments."""
        return type(self)(**{**self.rules, "num_envs": num_envs})

    def _require_own(self, state: dict[str, Any]) -> None:
        if state.get("config") != self._config:
            raise ValueError(f"this state is of an environment built with {state.get('config')}, not {self._config}")

    def _life_lost(self, lives: NDArray[np.int64], ended: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Where a game continues with fewer lives than before the step; `lives` are those after restarts."""
        lost: NDArray[np.bool_] = (lives < self._lives) & ~ended
        self._lives = lives
        return lost


class AtariVectorEnv(_Atari):
    """N environments of one Atari game, played one after another, whose state can be saved.

    Args:
        env_id: "ALE/<Game>-v5".
        num_envs: N.
        sticky_action_prob: probability that the emulator repeats its previous action in a frame.
        full_action_space: all 18 actions, or those that the game uses.
        noop_max: an episode begins with 1 to noop_max frames without action, drawn uniformly; 0 for none.
        max_episode_frames: longer episodes are truncated.
        mode: one of the game's modes; None for the emulator's default, the first.
        difficulty: one of the game's difficulties; None for the emulator's default, 0.
    Raises:
        ValueError: unknown game, mode or difficulty, or a number out of range.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        *,
        sticky_action_prob: float = 0.25,
        full_action_space: bool = False,
        noop_max: int = 0,
        max_episode_frames: int = MAX_FRAMES,
        mode: int | None = None,
        difficulty: int | None = None,
    ) -> None:
        super().__init__(
            env_id,
            num_envs,
            sticky_action_prob=sticky_action_prob,
            full_action_space=full_action_space,
            noop_max=noop_max,
            max_episode_frames=max_episode_frames,
            mode=mode,
            difficulty=difficulty,
        )
        game = _game(self._rom)
        for name, value, available in (
            ("mode", mode, game.getAvailableModes()),
            ("difficulty", difficulty, game.getAvailableDifficulties()),
        ):
            if value is not None and value not in available:
                raise ValueError(f"{env_id} has no {name} {value}: there are {list(available)}")
        self._emulators: list[ale_py.ALEInterface] = []  # loaded when the first episodes begin
        self._noops = [np.random.default_rng(i) for i in range(num_envs)]
        # The emulator's state does not contain its previous action, which a sticky action repeats. After a reset
        # there is none: an episode is saved as its start and the actions since.
        self._starts = [np.zeros(0, dtype=np.uint8) for _ in range(num_envs)]
        self._played: list[list[int]] = [[] for _ in range(num_envs)]
        height, width = game.getScreenDims()
        self._screens = np.zeros((2, height, width), dtype=np.uint8)

    def _begin(self, seeds: list[int] | None) -> NDArray[np.uint8]:
        if seeds is not None:
            self._noops = [np.random.default_rng(seed) for seed in seeds]
        if seeds is not None or not self._emulators:
            self._emulators = [self._emulator(seed) for seed in seeds or range(self.num_envs)]
        frames = np.stack([self._restart(i) for i in range(self.num_envs)])
        self._lives = self._lives_now()
        return frames

    def _restart(self, i: int) -> NDArray[np.uint8]:
        """Start an episode of environment i; return its first frame."""
        emulator = self._emulators[i]
        if self._config["mode"] is not None:
            emulator.setMode(self._config["mode"])
        if self._config["difficulty"] is not None:
            emulator.setDifficulty(self._config["difficulty"])
        emulator.reset_game()
        if self._config["noop_max"]:
            for _ in range(int(self._noops[i].integers(1, self._config["noop_max"], endpoint=True))):
                emulator.act(0)
                if emulator.game_over():
                    emulator.reset_game()
        self._starts[i], self._played[i] = _saved_emulator(emulator), []
        emulator.getScreenGrayscale(self._screens[0])
        return area_resize(self._screens[0])

    def _play(self, actions: NDArray[np.int64]) -> _Played:
        n = self.num_envs
        final, rewards = np.empty((n, SIZE, SIZE), dtype=np.uint8), np.zeros(n)
        terminated, truncated = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
        for i, (emulator, action) in enumerate(zip(self._emulators, actions.tolist(), strict=True)):
            self._played[i].append(action)
            final[i], rewards[i] = self._repeat(emulator, self._action_set[action])
            terminated[i] = emulator.game_over(with_truncation=False)
            truncated[i] = emulator.game_truncated() and not terminated[i]  # the game's own end has priority
        frames, ended = final.copy(), terminated | truncated
        for i in np.flatnonzero(ended).tolist():
            frames[i] = self._restart(i)
        return frames, final, rewards, terminated, truncated, self._life_lost(self._lives_now(), ended)

    def _repeat(self, emulator: ale_py.ALEInterface, action: ale_py.Action) -> tuple[NDArray[np.uint8], float]:
        """Repeat the action for 4 frames, or until the episode ends; return the observed frame and the reward."""
        reward, seen = 0, 0
        for k in range(FRAME_SKIP):
            reward += emulator.act(action)
            over = emulator.game_over()
            if over or k >= FRAME_SKIP - 2:
                emulator.getScreenGrayscale(self._screens[seen])
                seen += 1
            if over:
                break
        return area_resize(self._screens[:seen].max(0)), float(reward)

    def _lives_now(self) -> NDArray[np.int64]:
        return np.array([emulator.lives() for emulator in self._emulators])

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """Draw environment 0 in colour, uint8 [210, 160, 3]."""
        if not self._emulators:
            raise gymnasium.error.ResetNeeded(f"call {type(self).__name__}.reset() first")
        screen: NDArray[np.uint8] = self._emulators[0].getScreenRGB()
        return screen

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that decides what happens next, including emulators and random streams."""
        return {
            "config": dict(self._config),
            "starts": [start.copy() for start in self._starts],
            "played": [np.array(actions, dtype=np.uint8) for actions in self._played],
            "noops": [rng.bit_generator.state for rng in self._noops],
            "lives": self._lives.copy(),
            **self._statistics(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was called; the running episodes are replayed up to there.

        Raises:
            ValueError: the state is of an environment built with other arguments. Nothing has been changed then.
        """
        self._require_own(state)
        if state["frames"] is None:  # saved before its first episodes
            self._emulators = []
        elif not self._emulators:
            self._emulators = [self._emulator() for _ in range(self.num_envs)]
        self._starts = [start.copy() for start in state["starts"]]
        self._played = [played.tolist() for played in state["played"]]
        for emulator, start, played in zip(self._emulators, self._starts, self._played, strict=False):
            emulator.reset_game()  # there is no previous action, as at the start
            emulator.restoreState(ale_py.ALEState(start.tobytes()))
            for action in played:
                for _ in range(FRAME_SKIP):
                    emulator.act(self._action_set[action])
        for rng, saved in zip(self._noops, state["noops"], strict=True):
            rng.bit_generator.state = saved
        self._lives = state["lives"].copy()
        self._load_statistics(state)


@cache
def _game(path: Path) -> ale_py.ALEInterface:
    """An emulator that is never played, for reading the game's actions, modes, difficulties and size."""
    emulator = ale_py.ALEInterface()
    emulator.loadROM(path)
    return emulator


def _saved_emulator(emulator: ale_py.ALEInterface) -> NDArray[np.uint8]:
    """An emulator's state, including its random stream."""
    return np.frombuffer(emulator.cloneState(include_rng=True).serialize(), dtype=np.uint8).copy()


class ThreadedAtariVectorEnv(_Atari):
    """N environments of one Atari game in ale-py's C++ vector environment, without saving, modes and difficulties.

    Without no-op starts (C++ draws their number differently) it plays bit for bit as `AtariVectorEnv`, for any number
    of threads, except for one frame: in ale-py 0.12 the newest frame of `final_obs` does not contain the screen on
    which the episode ended. It is the frame of the step before, combined with the third screen of the last step if
    that step had four.

    Args:
        threads: number of threads that run the emulators, at least 1.
        others: as for `AtariVectorEnv`.
    """

    resumes_exactly = False

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        sticky_action_prob: float = 0.25,
        full_action_space: bool = False,
        noop_max: int = 0,
        max_episode_frames: int = MAX_FRAMES,
        threads: int = 1,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        super().__init__(
            env_id,
            num_envs,
            sticky_action_prob=sticky_action_prob,
            full_action_space=full_action_space,
            noop_max=noop_max,
            max_episode_frames=max_episode_frames,
            threads=threads,
        )
        self._env = ale_py.AtariVectorEnv(
            self._rom.stem,
            num_envs,
            num_threads=threads,
            max_num_frames_per_episode=max_episode_frames,
            repeat_action_probability=sticky_action_prob,
            full_action_space=full_action_space,
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=SIZE,
            img_width=SIZE,
            stack_num=1,
            frameskip=FRAME_SKIP,
            noop_max=noop_max,
            reward_clipping=False,
            use_fire_reset=False,
        )
        self._seeds: list[int] | None = None
        self._resumptions = 0

    def _begin(self, seeds: list[int] | None) -> NDArray[np.uint8]:
        if seeds is not None:
            self._seeds, self._resumptions = seeds, 0
        obs, infos = self._env.reset(seed=None if seeds is None else np.array(seeds))
        self._lives = infos["lives"].astype(np.int64)
        return np.array(obs[:, 0])

    def _play(self, actions: NDArray[np.int64]) -> _Played:
        obs, rewards, terminated, truncated, infos = self._env.step(actions.astype(np.int64, copy=False))
        terminated, truncated = np.array(terminated), np.array(truncated)
        truncated &= ~terminated
        frames, ended = np.array(obs[:, 0]), terminated | truncated
        final = frames.copy()
        if ended.any():
            final[ended] = infos["final_obs"][ended, 0]
        lost = self._life_lost(infos["lives"].astype(np.int64), ended)
        return frames, final, rewards.astype(np.float64), terminated, truncated, lost

    def state_dict(self) -> dict[str, Any]:
        """Return arguments, seeds, and how often the run was resumed. The emulators cannot be saved."""
        return {
            "config": dict(self._config),
            "seeds": None if self._seeds is None else list(self._seeds),
            "resumptions": self._resumptions,
            **self._statistics(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start new episodes, with random streams that depend only on the seeds and the number of resumptions.

        Raises:
            ValueError: the state is of an environment built with other arguments.
        """
        self._require_own(state)
        if state["seeds"] is None:
            raise ValueError("this state is of an environment that was never seeded: reset(seed=...) it before saving")
        again = state["resumptions"] + 1
        fresh = [int(np.random.SeedSequence([seed, again]).generate_state(1)[0]) >> 1 for seed in state["seeds"]]
        self._frames = self._begin(fresh)
        self._seeds, self._resumptions = list(state["seeds"]), again
        self._returns[:], self._lengths[:] = 0.0, 0


def atari_env(env_id: str, num_envs: int = 1, *, threads: int = 0, **rules: Any) -> _Atari:
    """Build a `ThreadedAtariVectorEnv`, or an `AtariVectorEnv` if threads is 0.

    Raises:
        ValueError: as the classes do; or a mode or difficulty with threads, which are not supported together.
    """
    if not threads:
        return AtariVectorEnv(env_id, num_envs, **rules)
    if unknown := [name for name in ("mode", "difficulty") if rules.pop(name, None) is not None]:
        raise ValueError(f"ale-py's vector environment does not support {unknown[0]}: use threads=0")
    return ThreadedAtariVectorEnv(env_id, num_envs, threads=threads, **rules)


def rom(env_id: str) -> Path:
    """The game's file in the ale-py package.

    Raises:
        ValueError: there is no such game; the message names similar ones.
    """
    spec = gymnasium.registry.get(env_id)
    if spec is None or not env_id.startswith("ALE/"):
        known = sorted(name for name in gymnasium.registry if name.startswith("ALE/") and name.endswith("-v5"))
        near = difflib.get_close_matches(env_id, known, n=3, cutoff=0.5)
        elsewhere = "" if env_id.startswith("ALE/") or "NoFrameskip-" in env_id else script_for(env_id)
        hint = elsewhere or (f"; similar: {near}" if near else "")
        raise ValueError(f"{env_id!r} is not an Atari game: ids are ALE/<Game>-v5{hint}")
    return Path(str(ale_py.roms.get_rom_path(spec.kwargs["game"])))


@cache
def _taps(size: int) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]:
    """For each of 84 cells of an axis of `size` pixels: its pixels, in order, and the share of the cell of each."""
    scale = size / SIZE
    cells = []
    for cell in range(SIZE):
        low, high = cell * scale, (cell + 1) * scale
        pixels = range(math.floor(low), min(math.ceil(high - 1e-9), size))
        cells.append([(p, (min(high, p + 1) - max(low, p)) / scale) for p in pixels])
    most = max(map(len, cells))
    cells = [cell + [(cell[-1][0], 0.0)] * (most - len(cell)) for cell in cells]
    return (
        [np.array([cell[k][0] for cell in cells]) for k in range(most)],
        [np.array([cell[k][1] for cell in cells], dtype=np.float32) for k in range(most)],
    )


def area_resize(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize [H, W] to [84, 84]: each cell is the mean of the area that it covers, rounded half to even.

    Summed in float32, along rows first and pixel by pixel, as OpenCV's INTER_AREA does: ties round in the same way, and
    the result equals that of ale-py's vector environment, which uses OpenCV.
    """
    pixels = image.astype(np.float32)
    places, shares = _taps(image.shape[1])
    rows = pixels[:, places[0]] * shares[0]
    for place, share in zip(places[1:], shares[1:], strict=True):
        rows += pixels[:, place] * share
    places, shares = _taps(image.shape[0])
    cells = rows[places[0]] * shares[0][:, None]
    for place, share in zip(places[1:], shares[1:], strict=True):
        cells += rows[place] * share[:, None]
    resized: NDArray[np.uint8] = np.rint(cells).astype(np.uint8)
    return resized
