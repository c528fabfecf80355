"""MinAtar as a Gymnasium vector environment: a thin layer around the games of the `minatar` package.

The games are the package's own (`minatar`, GPL-3, installed by the user; this module contains no code of it). It adds
what a training script needs: batches, sticky actions, time limits, episode statistics, seeds, exact saving, and frames
to look at. Trajectories equal those of `minatar.Environment` bit for bit (see `game_seed`).

`import minatar` costs 2.5-3 s because it imports seaborn and matplotlib. Only the file of the
requested game is loaded here, which needs only NumPy.

Source: the games are MinAtar's (arXiv:1903.03176).
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.games import script_for

GAME_FILES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
"""Name of each game in an environment id -> its file in the `minatar` package."""

NUM_ACTIONS = 6
"""Actions of every game under a -v0 id: no-op, left, up, right, down, fire."""

PALETTE: NDArray[np.uint8] = np.array(
    [
        (0, 0, 0),  # nothing
        (255, 255, 255),  # channel 0, in every game the player
        (230, 159, 0),  # channels 1-7: the colour-blind safe set of Okabe and Ito (2008)
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (213, 94, 0),
        (0, 114, 178),
        (204, 121, 167),
        (254, 176, 202),  # channels 8 and 9 (Seaquest only): found by search to differ clearly from the others
        (254, 46, 72),
    ],
    dtype=np.uint8,
)
"""RGB colours, uint8 [11, 3]: the empty cell, then one colour per channel."""

FRAME_SCALE = 16
"""Frame pixels per cell side: the 10 x 10 cells give frames of 160 x 160."""


class _Game(Protocol):
    """What the `Env` class of every game file offers."""

    random: np.random.RandomState

    def act(self, a: int) -> tuple[float, bool]: ...

    def state(self) -> NDArray[np.bool_]: ...

    def reset(self) -> None: ...

    def state_shape(self) -> list[int]: ...

    def minimal_action_set(self) -> list[int]: ...


def game_seed(seed: int, index: int = 0) -> int:
    """Seed of game `index` in a `MinAtarVectorEnv` reset with the integer `seed`.

    s_i = SeedSequence(seed).spawn(N)[i].generate_state(1)[0]: independent 32-bit numbers that do not depend on N.
    Neither neighbouring seeds nor neighbouring games share a stream (with Gymnasium's seed + i, game 1 of seed 0 equals
    game 0 of seed 1).

    A `minatar.Environment` on which `seed(game_seed(seed, i))` and then `reset()` were called plays as game i does.

    Args:
        seed: the integer given to `reset(seed=...)`, at least 0.
        index: which game, at least 0.
    Returns:
        A seed for `numpy.random.RandomState`, 0 <= s < 2**32.
    Raises:
        ValueError: seed or index is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"game_seed needs seed >= 0 and index >= 0, got seed={seed}, index={index}")
    return int(np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1)[0])


class MinAtarVectorEnv(VectorEnv[NDArray[np.uint8], NDArray[np.int64], NDArray[Any]]):
    """N environments of one MinAtar game; a finished game restarts within the step (`AutoresetMode.SAME_STEP`).

    Observations are uint8 [N, C, 10, 10] holding 0 or 1: channels first, as torch convolutions need them, and one byte
    per cell, as a replay memory should hold them. C is 4, 4, 7, 10, 6 for Asterix, Breakout,
    Freeway, Seaquest and SpaceInvaders. Every call returns fresh arrays, which are safe to keep.

    Rewards are float64 [N], as in Gymnasium's own vector environments. `terminated` and `truncated` are bool [N] and
    never both true: a game that ends by itself on the last step allowed is terminated.

    When an episode ended in a step (and only then) `infos` holds, for all games at once,

    * `final_obs`: uint8 [N, C, 10, 10], the observation before the restart; where no episode ended it equals the
      returned one, so `infos.get("final_obs", obs)` is the true next observation of every game,
    * `episode`: {"r": float64 [N], "l": int64 [N]}, return and length in steps, 0 where no episode ended,
    * `_final_obs` and `_episode`: bool [N], where an episode ended.

    `gymnasium.wrappers.vector.RecordEpisodeStatistics` is not needed. It refuses to overwrite `episode`; give it
    another `stats_key` to use both.

    Sticky actions: with probability `sticky_action_prob` the game receives the previous action instead. As in the
    package, the previous action is kept beyond the end of an episode, and one number is drawn per step even if the
    probability is 0.

    Freeway ends after 2501 steps. As in the package this is a termination, although it is a time limit and the
    observation does not show the time.

    Deviation: `final_obs` is one stacked array, not Gymnasium's array of objects; `reset(seed=...)` also forgets the
    previous action, which the package keeps: the seed alone decides what follows; `render` returns one frame.
    """

    _saved_in = "games"
    """the entry of `state_dict` that holds the games; it tells the states of subclasses apart"""

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        *,
        sticky_action_prob: float = 0.1,
        difficulty_ramping: bool = True,
        max_episode_steps: int | None = None,
    ) -> None:
        """Build the games, with streams from the operating system's entropy until `reset(seed=...)`.

        Args:
            env_id: "MinAtar/<Game>-v1" (only the actions that do something) or "MinAtar/<Game>-v0" (all six).
            num_envs: number of games N.
            sticky_action_prob: probability that the previous action is repeated.
            difficulty_ramping: whether the game becomes harder with time (no effect in Breakout and Freeway).
            max_episode_steps: longer episodes are truncated; None for no limit.
        Raises:
            ValueError: unknown id, or a number out of range.
            ImportError: the `minatar` package is not installed.
        """
        game_name, all_actions = _parse_id(env_id)
        _check_arguments(num_envs, sticky_action_prob, max_episode_steps)
        self._config: dict[str, Any] = {
            "env_id": env_id,
            "num_envs": num_envs,
            "sticky_action_prob": float(sticky_action_prob),
            "difficulty_ramping": bool(difficulty_ramping),
            "max_episode_steps": max_episode_steps,
        }
        self._max_episode_steps = math.inf if max_episode_steps is None else max_episode_steps
        self._started = False
        minimal_actions, channels = self._build(game_name)
        self._action_set = list(range(NUM_ACTIONS)) if all_actions else minimal_actions
        self._set_spaces(num_envs, channels)

    def _build(self, game_name: str) -> tuple[list[int], int]:
        """Build the games of `_config`; return the actions that do something, and the number of channels."""
        game_class, rules = _game_class(game_name), self._config
        self._seats = [
            _Seat(game_class(ramping=rules["difficulty_ramping"]), rules["sticky_action_prob"])
            for _ in range(rules["num_envs"])
        ]
        first = self._seats[0].game
        return first.minimal_action_set(), first.state_shape()[2]

    def _set_spaces(self, num_envs: int, channels: int) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"], "render_fps": 10}
        self.render_mode = "rgb_array"
        self.single_observation_space = gymnasium.spaces.Box(0, 1, (channels, 10, 10), np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(len(self._action_set))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._obs_shape = (num_envs, channels, 10, 10)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start a new episode in every game.

        Args:
            seed: an int seeds game i with `game_seed(seed, i)`; a sequence of N gives each game its own
                `numpy.random.RandomState` seed, as it is; None, alone or in the sequence, continues the stream.
            options: none are supported, `reset_mask` included.
        Returns:
            Observations [N, C, 10, 10], and an empty dictionary.
        Raises:
            ValueError: options were given, a seed is out of range, or there are not N of them.
        """
        if options:
            raise ValueError(
                f"MinAtarVectorEnv.reset takes no options, got {sorted(options)}: single games cannot be reset from "
                "outside, they restart within the step that ends an episode; call reset() to restart all of them"
            )
        seeds = _seeds_per_game(seed, self.num_envs)
        if isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))  # only for `np_random_seed`: no game draws from Gymnasium's generator
        self._restart(seeds)
        self._started = True
        return self.observation(), {}

    def _restart(self, seeds: list[int | None]) -> None:
        """Start every game again, with a random stream of its seed, or with its present one where the seed is None."""
        for seat, one_seed in zip(self._seats, seeds, strict=True):
            seat.reset(one_seed)

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Play one action in every game.

        Args:
            actions: integers [N], each in 0 .. number of actions - 1.
        Returns:
            Observations, rewards, terminated, truncated and infos, as described at the class.
        Raises:
            ValueError: actions have another shape or type, or one is out of range. No game has moved then.
            gymnasium.error.ResetNeeded: `reset` was never called.
        """
        chosen = self._game_actions(actions)
        rewards, terminals, ended = [], [], []
        obs = np.empty(self._obs_shape, dtype=np.uint8)
        cells = _as_cells(obs)
        for i, (seat, action) in enumerate(zip(self._seats, chosen, strict=True)):
            reward, terminal = seat.act(action)
            cells[i] = seat.game.state()
            rewards.append(reward)
            terminals.append(terminal)
            if terminal or seat.episode_length >= self._max_episode_steps:
                ended.append(i)
        terminated = np.array(terminals, dtype=np.bool_)
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        infos: dict[str, Any] = {}
        if ended:
            truncated[ended] = ~terminated[ended]
            infos = self._end_episodes(ended, obs)
        return obs, np.array(rewards, dtype=np.float64), terminated, truncated, infos

    def _game_actions(self, actions: NDArray[np.int64]) -> list[int]:
        """Check the actions, and that `reset` was called; return the actions [N] as the games number them."""
        if not self._started:
            raise gymnasium.error.ResetNeeded("call MinAtarVectorEnv.reset() before the first step()")
        array = np.asarray(actions)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iu":
            raise ValueError(f"actions must be integers of shape ({self.num_envs},), got {array.dtype} {array.shape}")
        chosen = array.tolist()
        # The games index a list with the action: -1 would be accepted silently.
        if min(chosen) < 0 or max(chosen) >= len(self._action_set):
            raise ValueError(f"actions must lie in 0 .. {len(self._action_set) - 1}, got {chosen}")
        return [self._action_set[action] for action in chosen]

    def _end_episodes(self, ended: list[int], obs: NDArray[np.uint8]) -> dict[str, Any]:
        """Restart the games in `ended`, put their new observations into `obs`, and report what ended."""
        final_obs = obs.copy()
        cells = _as_cells(obs)
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        returns = np.zeros(self.num_envs, dtype=np.float64)
        lengths = np.zeros(self.num_envs, dtype=np.int64)
        for i in ended:
            seat = self._seats[i]
            mask[i], returns[i], lengths[i] = True, seat.episode_return, seat.episode_length
            seat.reset(None)
            cells[i] = seat.game.state()
        return {
            "final_obs": final_obs,
            "_final_obs": mask,
            "episode": {"r": returns, "l": lengths},
            "_episode": mask.copy(),
        }

    def observation(self) -> NDArray[np.uint8]:
        """Return the present observations [N, C, 10, 10], those that the last `reset` or `step` returned."""
        obs = np.empty(self._obs_shape, dtype=np.uint8)
        cells = _as_cells(obs)
        for i, seat in enumerate(self._seats):
            cells[i] = seat.game.state()
        return obs

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that decides what happens next, in plain types and NumPy arrays.

        That is every attribute of every game, its random stream, the previous action, and return and length so far of
        the running episode. Not included: the generator of `action_space.sample`, which no game draws from.
        """
        return {
            "config": dict(self._config),
            "started": self._started,
            "games": [seat.state_dict() for seat in self._seats],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was called; `observation()` then gives the observations of that moment.

        Args:
            state: from an environment of this class built with the same arguments. It is copied.
        Raises:
            ValueError: class, arguments, or the attributes of the games, differ. Nothing has been changed then.
        """
        self._require_own(state)
        for seat, saved in zip(self._seats, state["games"], strict=True):
            seat.check_state(saved)
        for seat, saved in zip(self._seats, state["games"], strict=True):
            seat.load_state_dict(saved)
        self._started = bool(state["started"])

    def _require_own(self, state: dict[str, Any]) -> None:
        """Refuse the state of another class, or of other arguments."""
        if self._saved_in not in state:
            raise ValueError(
                f"this state is not of a {type(self).__name__}: it has no {self._saved_in!r}; load it into the class "
                "that it was saved from"
            )
        theirs = state["config"]
        if theirs != self._config:
            differing = sorted(k for k in {*self._config, *theirs} if self._config.get(k) != theirs.get(k))
            differences = ", ".join(f"{k}: {theirs.get(k)!r} saved, {self._config.get(k)!r} here" for k in differing)
            raise ValueError(f"this state is of a {type(self).__name__} built with other arguments ({differences})")

    @property
    def rules(self) -> dict[str, Any]:
        """The arguments that it was built with, by name."""
        return dict(self._config)

    def frame(self, index: int = 0) -> NDArray[np.uint8]:
        """Draw game `index` as RGB, uint8 [160, 160, 3]; where channels overlap, the last one is drawn."""
        return picture(self.observation()[index])

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """Draw game 0, uint8 [160, 160, 3]; just after the end of an episode it shows the next one's start.

        Deviation: Gymnasium asks for a tuple with one frame per game; `frame` draws the others.
        """
        return self.frame(0)


def picture(
    cells: NDArray[np.uint8], scale: int = FRAME_SCALE, layers: Sequence[int] | None = None
) -> NDArray[np.uint8]:
    """Draw one observation [C, 10, 10] in the colours of `PALETTE`, as RGB, uint8 [10 scale, 10 scale, 3].

    Args:
        cells: the observation.
        scale: height and width of a cell.
        layers: the channels from the lowest to the one on top; None for 0, 1, 2, ...
    """
    topmost = np.zeros(cells.shape[1:], dtype=np.int64)  # [10, 10]; 0 stays for the empty cell
    for channel in range(len(cells)) if layers is None else layers:
        topmost[cells[channel] > 0] = channel + 1
    return PALETTE[topmost].repeat(scale, axis=0).repeat(scale, axis=1)


class _Seat:
    """One game, its random stream and previous action (which the package keeps too), and its episode's statistics."""

    def __init__(self, game: _Game, sticky_action_prob: float) -> None:
        self.game = game
        self.sticky_action_prob = sticky_action_prob
        self.last_action = 0
        self._use_stream(game.random)
        self.reset(None)

    def _use_stream(self, stream: np.random.RandomState) -> None:
        # Game and sticky actions draw from one stream, in the same order as in the package.
        self.stream = self.game.random = stream

    def reset(self, seed: int | None) -> None:
        if seed is not None:
            self._use_stream(np.random.RandomState(seed))
            self.last_action = 0
        self.game.reset()
        self.episode_return = 0.0
        self.episode_length = 0

    def act(self, action: int) -> tuple[float, bool]:
        if self.stream.random_sample() < self.sticky_action_prob:
            action = self.last_action
        self.last_action = action
        reward, terminal = self.game.act(action)
        self.episode_return += reward
        self.episode_length += 1
        return reward, terminal

    def state_dict(self) -> dict[str, Any]:
        attributes = {name: value for name, value in vars(self.game).items() if name != "random"}
        return {
            "attributes": _plain(attributes),
            "random": _plain(self.stream.get_state(legacy=False)),
            "last_action": self.last_action,
            "episode_return": float(self.episode_return),
            "episode_length": self.episode_length,
        }

    def check_state(self, state: dict[str, Any]) -> None:
        saved, here = set(state["attributes"]), set(vars(self.game)) - {"random"}
        if saved != here:
            raise ValueError(
                f"the saved game has other attributes than this one (differing: {sorted(saved ^ here)}); "
                "load it with the version of minatar that it was saved with"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self.game).update(_plain(state["attributes"]))
        self.stream.set_state(state["random"])  # in place: the game draws from this object
        self.last_action = state["last_action"]
        self.episode_return = state["episode_return"]
        self.episode_length = state["episode_length"]


def _as_cells(obs: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """View observations [N, C, 10, 10] as the games write them, bool [N, 10, 10, C] (a copy without conversion)."""
    return obs.view(np.bool_).transpose(0, 2, 3, 1)


def _plain(value: Any) -> Any:
    """Copy nested dicts and lists, with NumPy scalars as Python numbers; refuse what cannot be saved exactly."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a game holds a {type(value).__name__}, which state_dict cannot save exactly")


def _parse_id(env_id: str) -> tuple[str, bool]:
    """Split an environment id into the game's name and whether it has all six actions."""
    known = {f"MinAtar/{name}-v{version}": (name, version == 0) for name in GAME_FILES for version in (0, 1)}
    if env_id in known:
        return known[env_id]
    elsewhere = "" if str(env_id).startswith("MinAtar/") else script_for(str(env_id))
    if elsewhere:
        raise ValueError(f"{env_id!r} is not a MinAtar game{elsewhere}")
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(env_id).lower(), by_lower, n=1)
    hint = f" Did you mean {by_lower[close[0]]!r}?" if close else ""
    raise ValueError(
        f"unknown MinAtar environment {env_id!r}.{hint} There are MinAtar/<Game>-v1 (actions that do something) "
        f"and -v0 (all six) with <Game> one of {', '.join(GAME_FILES)}"
    )


def _check_arguments(num_envs: int, sticky_action_prob: float, max_episode_steps: int | None) -> None:
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    if not 0.0 <= sticky_action_prob <= 1.0:
        raise ValueError(f"sticky_action_prob is a probability in [0, 1], got {sticky_action_prob}")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps must be at least 1, or None for no limit, got {max_episode_steps}")


def _seeds_per_game(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, (int, np.integer)):
        return [game_seed(int(seed), i) for i in range(num_envs)]
    seeds = list(seed)
    if len(seeds) != num_envs:
        raise ValueError(f"reset(seed=[...]) needs one seed per game, {num_envs}, got {len(seeds)}")
    if any(one is not None and not 0 <= one < 2**32 for one in seeds):
        raise ValueError(f"reset(seed=[...]) takes integers in 0 .. 2**32 - 1 or None, got {seeds}")
    return seeds


@cache
def _game_class(name: str) -> Callable[..., _Game]:
    """Load the file of one game from the installed package, without importing the package (which imports seaborn)."""
    spec = importlib.util.find_spec("minatar")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("MinAtar environments need the minatar package: pip install minatar (or, lighter, --no-deps)")
    path = Path(spec.submodule_search_locations[0], "environments", f"{GAME_FILES[name]}.py")
    module_spec = importlib.util.spec_from_file_location(f"_rewarm_minatar_{GAME_FILES[name]}", path)
    if module_spec is None or module_spec.loader is None or not path.is_file():
        raise ImportError(f"the installed minatar package has no file {path}: pip install 'minatar>=1.0.15'")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return cast("Callable[..., _Game]", module.Env)
