"""Episodes of agents: played, tabulated, filmed, written. See `runs.evaluation.command`."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from envs.evaluation import play_episodes
from envs.flags import ControlShiftArgs, GameShiftArgs, MinAtarShiftArgs
from envs.frames import StackFrames
from envs.pictures import Film, film_of
from envs.worlds import evaluation_world
from runs.analysis.statistics import student_interval
from runs.analysis.tables import markdown, shown
from runs.evaluation.agent import MINATAR_EPISODE, Agent, Recipe, find_agent, load_agent
from runs.evaluation.command import Args
from runs.recording import RunError, one_line_errors
from runs.recording.files import failures_named, write_atomically
from runs.recording.video import FirstEpisode, write_gif

BATCH = 100
"""Episodes played side by side, in as many environments: all of them play on until the longest episode has ended."""
HEADS = ("run", "step", "task", "n", "mean", "95 % interval", "min", "max", "length")


class Played(NamedTuple):
    """One evaluation."""

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    video: Path | None


def evaluate_runs(args: Args) -> None:
    """Evaluate, print the table, write the file."""
    if not args.directories:
        raise RunError("evaluate needs at least one run directory")
    if args.out:
        _require_place(args.out, args.directories)
    recipes = [find_agent(directory, args.script) for directory in args.directories]
    for recipe in recipes:
        _require_possible(recipe, args)
    records = []
    for number, recipe in enumerate(recipes):
        agent = load_agent(recipe)
        task = agent.task if args.task is None else args.task
        seed = agent.seed if args.seed is None else args.seed
        film = _gif_path(args, agent, task, number) if args.video else None
        played = evaluate(agent, args.episodes or recipe.episodes, seed, task, args.sampled, film)
        if number == 0:  # not above an error
            print(markdown(HEADS, []), end="")
        print(_row(agent, task, played), flush=True)
        records.append(_record(agent, task, seed, args.sampled, played))
    for record in records:
        if record["video"]:
            print(f"wrote {record['video']}")
    if args.out:
        write_atomically(args.out, (json.dumps({"runs": records}, indent=2) + "\n").encode())
        print(f"wrote {args.out}")


def evaluate(agent: Agent, episodes: int, seed: int, task: int, sampled: bool, gif: Path | None = None) -> Played:
    """Play episodes in batches of BATCH, or of the run's own evaluations if they are larger.

    Args:
        agent: as `load_agent` returns it.
        episodes: how many.
        seed: of the first batch; the next ones have the numbers after it.
        task: of the run's shift.
        sampled: draw from the policy.
        gif: where to write the first episode.
    Raises:
        RunError: there is no such task, or the environment cannot be drawn, or the GIF not be written.
    """
    recipe, batch = agent.recipe, max(BATCH, agent.recipe.episodes)
    returns, lengths = [], []
    for number, begin in enumerate(range(0, episodes, batch)):
        policy = agent.policy
        if sampled:
            policy = partial(_drawn, *policy.args, logits=policy.func, rng=np.random.default_rng([1, seed + number]))
        count, filmed = min(batch, episodes - begin), gif is not None and number == 0
        with one_line_errors(str(recipe.directory)):
            env, write = _environments(agent, count, task, filmed)
        found = play_episodes(env, policy, seed + number, epsilon=0.0 if sampled else recipe.epsilon)
        if write is not None and gif is not None:
            with one_line_errors(str(recipe.directory)):
                write(gif)
        env.close()
        returns.append(found[0])
        lengths.append(found[1])
    return Played(np.concatenate(returns), np.concatenate(lengths), gif)


def _environments(agent: Agent, count: int, task: int, filmed: bool) -> tuple[VectorEnv[Any, Any, Any], Any]:
    """Environments that stay in the task; and what writes the GIF afterwards, if asked for."""
    limit = MINATAR_EPISODE if isinstance(agent.recipe.args.shift, MinAtarShiftArgs) else None
    chosen = None if _drifts(agent.recipe) else task
    if filmed and isinstance(agent.world, StackFrames):
        screen = FirstEpisode(evaluation_world(agent.world, count, limit, chosen))
        return screen, screen.write
    films: list[Film] = []

    def around(game: VectorEnv[Any, Any, Any]) -> Film:
        films.append(film_of(game))
        return films[-1]

    env = evaluation_world(agent.world, count, limit, chosen, around if filmed else None)

    def write(path: Path) -> None:
        film = next(one for one in films if one.steps)  # of several games, the one that was played
        write_gif(path, film.pictures(), per_second=film.per_second, scale=1)

    return env, write if filmed else None


def _drawn(network: Any, obs: NDArray[Any], *, logits: Any, rng: np.random.Generator) -> NDArray[Any]:
    """Logits plus Gumbel noise: the largest is a draw from the policy."""
    values = logits(network, obs)
    noisy: NDArray[Any] = values + rng.gumbel(size=values.shape)
    return noisy


def _drifts(recipe: Recipe) -> bool:
    return isinstance(recipe.args.shift, ControlShiftArgs) and recipe.args.shift.drift


def _require_possible(recipe: Recipe, args: Args) -> None:
    """Refuse --sampled and --task where they make no sense, before anything is played."""
    if args.sampled and recipe.policy == "q_values":
        raise RunError(
            f"--sampled: {recipe.directory} is an agent of {recipe.path.name}, whose network gives Q-values, which are "
            "no probabilities to draw from; leave --sampled out (it is for PPO)"
        )
    if args.task is not None and _drifts(recipe):
        raise RunError(
            f"--task: in {recipe.directory} {recipe.args.shift.what} drifts without tasks (--shift.drift); leave "
            "--task out to evaluate at its value at the checkpoint"
        )
    shift = recipe.args.shift
    tasks = _tasks(recipe)
    if args.task is not None and args.task >= len(tasks):
        which = f"has tasks 0 to {len(tasks) - 1}" if len(tasks) > 1 else "has only task 0, which never changes"
        raise RunError(f"--task {args.task}: {recipe.directory} {which} (--shift.kind {shift.kind})")


def _tasks(recipe: Recipe) -> list[str]:
    """The tasks of the run's shift, each with what tells it from the others."""
    shift, env_id = recipe.args.shift, recipe.args.env_id
    if shift.kind == "games" and isinstance(shift, GameShiftArgs):
        return [env_id, *shift.games]
    if shift.kind in shift.WORLD.VALUED:
        return ["drift"] if _drifts(recipe) else [f"{value:g}" for value in shift.values]
    return [""] * (shift.tasks if shift.kind in shift.WORLD.PERMUTED else 1)


def _row(agent: Agent, task: int, played: Played) -> str:
    mean, half = student_interval(played.returns.tolist())
    interval = "–" if math.isnan(half) else f"{mean - half:,.2f} to {mean + half:,.2f}"
    name = _tasks(agent.recipe)[task]
    cells = (
        agent.recipe.directory, f"{agent.step:,}", f"{task} ({name})" if name else task, len(played.returns),
        f"{mean:,.2f}", interval, shown(played.returns.min()), shown(played.returns.max()),
        shown(played.lengths.mean()),
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _record(agent: Agent, task: int, seed: int, sampled: bool, played: Played) -> dict[str, Any]:
    mean, half = student_interval(played.returns.tolist())
    recipe = agent.recipe
    return {
        "run": str(recipe.directory),
        "script": str(recipe.path),
        "env_id": recipe.args.env_id,
        "step": agent.step,
        "task": task,
        "seed": seed,
        "sampled": sampled,
        "epsilon": 0.0 if sampled else recipe.epsilon,
        "mean": mean,
        "half_width": None if math.isnan(half) else half,
        "returns": played.returns.tolist(),
        "lengths": played.lengths.tolist(),
        "video": str(played.video) if played.video else None,
    }


def _gif_path(args: Args, agent: Agent, task: int, number: int) -> Path:
    """Where the GIF of an evaluation goes."""
    if args.out:
        several = f"-{number + 1}" if len(args.directories) > 1 else ""
        return args.out.with_name(f"{args.out.stem}{several}.gif")
    seed = "" if args.seed is None else f"-seed-{args.seed}"
    shift = agent.recipe.args.shift.kind != "none" and not _drifts(agent.recipe)
    name = f"evaluation-step-{agent.step}{f'-task-{task}' if shift else ''}{seed}{'-sampled' * args.sampled}.gif"
    return agent.recipe.directory / "video" / name


def _require_place(out: Path, directories: tuple[Path, ...]) -> None:
    """Refuse a file that cannot be written, or that would lie in a run."""
    for directory in directories:
        if directory.resolve() in out.resolve().parents:
            raise RunError(f"--out {out} lies in a run directory, which is only read; choose another place")
    if out.is_dir():
        raise RunError(f"--out {out} is a directory; give a file name")
    if out.suffix != ".json":
        raise RunError(f"--out {out} must end in .json: with --video the GIF has the same name")
    with failures_named(f"write {out.name}", out):
        next(out.parent.iterdir(), None)  # it exists
