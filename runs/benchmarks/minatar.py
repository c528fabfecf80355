"""Environment steps per second of the MinAtar games as arrays, against the package's games, on your own machine.

    python -m runs bench minatar
    python -m runs bench minatar --games Breakout --num-envs 2 4 8 16

Both sides play the same random actions from the same seeds. Blocks of --steps vector steps alternate (package, arrays,
package, arrays, ...) in one process. The clock is the CPU time of the process, so other processes that take the CPU
do not count, though they may slow down its caches. The ratio is taken within each pair of blocks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np

from envs.minatar import MinAtarVectorEnv
from envs.worlds import AS_ARRAYS


@dataclass(frozen=True)
class Args:
    """What to measure, and for how long."""

    games: tuple[str, ...] = tuple(AS_ARRAYS)
    """games, as in their environment ids"""
    num_envs: tuple[int, ...] = (1, 8, 32, 128)
    """numbers of environments"""
    repeats: int = 7
    """interleaved pairs of blocks"""
    steps: int = 0
    """vector steps in a block; 0: 2,000 with one environment, fewer with more, 200 at least"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name, least in (("repeats", 1), ("steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if any(one < 1 for one in self.num_envs):
            raise ValueError(f"--num-envs must be at least 1, got {min(self.num_envs)}")
        if unknown := [name for name in self.games if name not in AS_ARRAYS]:
            raise ValueError(f"--games must be some of {', '.join(AS_ARRAYS)}, got {', '.join(unknown)}")


class Player:
    """Plays the same random actions as every other `Player` of the same number of environments, and takes the time."""

    def __init__(self, env: MinAtarVectorEnv) -> None:
        self.env, self.rng = env, np.random.default_rng(0)
        env.reset(seed=0)

    def rate(self, steps: int) -> float:
        """Play and return environment steps per second of CPU time."""
        actions = self.rng.integers(0, int(self.env.single_action_space.n), (steps, self.env.num_envs))  # type: ignore
        start = time.process_time()
        for row in actions:
            self.env.step(row)
        return steps * self.env.num_envs / (time.process_time() - start)


def measure(game: str, num_envs: int, args: Args) -> str:
    """Time one game with N environments; return the line to print."""
    env_id = f"MinAtar/{game}-v1"
    players = [Player(cls(env_id, num_envs)) for cls in (MinAtarVectorEnv, AS_ARRAYS[game][0])]
    steps = args.steps or max(200, 2000 // num_envs)
    for player in players:
        player.rate(50)
    pairs = [[player.rate(steps) for player in players] for _ in range(args.repeats)]
    ratios = [ours / package for package, ours in pairs]
    package, ours = (median(column) / 1000 for column in zip(*pairs, strict=True))
    return (
        f"{game:<14}{num_envs:>5}  {package:8.1f}  {ours:8.1f}   "
        f"{median(ratios):5.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    )


def main(args: Args) -> None:
    """Print a table."""
    print(f"thousand environment steps per second of CPU time, n = {args.repeats} pairs of blocks")
    print(f"{'game':<14}{'envs':>5}  {'package':>8}  {'arrays':>8}   ratio, median [least, greatest]")
    for game in args.games:
        for num_envs in args.num_envs:
            print(measure(game, num_envs, args), flush=True)
