"""The agent of a run, built by the run's own script and loaded from its checkpoint. Nothing in the run is changed.

Any script is understood that keeps to what the scripts in agents/ have in common, so also a copy of one, elsewhere:

    Args                                     the flags, with env_id, seed, total_timesteps and a shift of `envs.flags`
    make_network(env, args, seed, device)    the network
    q_values(network, obs) -> [N, A]         the largest is the greedy action; run.keep(q_network=..., env=...)
    policy_logits(network, obs) -> [N, A]    or this one;                      run.keep(network=..., env=...)
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import nn

from envs.flags import ControlShiftArgs, MinAtarShiftArgs, ScreenShiftArgs
from envs.worlds import shift_of
from runs.recording import RunError, config_from_dict, load_checkpoint, read_json
from runs.recording.directory import CHECKPOINT, CONFIG, PROVENANCE

REPOSITORY = Path(__file__).resolve().parents[2]
POLICIES = {"q_values": "q_network", "policy_logits": "network"}
"""the function of a script that gives each action a number, and the part of a checkpoint that it works on"""
MINATAR_EPISODE = 10_000
"""longest episode of an evaluation in MinAtar, in steps, as in its scripts"""


@dataclass(frozen=True)
class Recipe:
    """What is known of a run's agent before its checkpoint is read."""

    directory: Path
    script: ModuleType
    args: Any
    """the flags of the run, on a CPU"""

    @property
    def path(self) -> Path:
        """The script."""
        return Path(str(self.script.__file__))

    @property
    def policy(self) -> str:
        """The name of the script's function: "q_values" or "policy_logits"."""
        return next(name for name in POLICIES if hasattr(self.script, name))

    @property
    def episodes(self) -> int:
        """Episodes of the script's own evaluations."""
        return int(getattr(self.args, "eval_episodes", 10))

    @property
    def epsilon(self) -> float:
        """Probability of a random action in the script's own evaluations."""
        return float(getattr(self.args, "eval_epsilon", 0.0))


@dataclass(frozen=True)
class Agent:
    """An agent at its checkpoint."""

    recipe: Recipe
    policy: partial[Any]
    """observations [N, ...] -> numbers of the actions [N, A]"""
    step: int
    """of the checkpoint"""
    world: VectorEnv[Any, Any, Any]
    """the environments of the run, as they were at the checkpoint"""

    @property
    def seed(self) -> int:
        """The seed of the script's own evaluation at this step: `run.seed("env") + run.step`."""
        stream = np.random.SeedSequence(self.recipe.args.seed).spawn(2)[1]  # "env" is the second in every script
        return int(stream.generate_state(1)[0]) + self.step

    @property
    def task(self) -> int:
        """The task in which the run stands. A change with the run's very last step does not count: no step follows."""
        shift = shift_of(self.world)
        if shift is None:
            return 0
        ended = self.step >= self.recipe.args.total_timesteps and shift.last_change == self.step
        return (shift.task - ended) % shift.tasks


def find_agent(directory: Path, script: Path | None = None) -> Recipe:
    """Read a run's flags and import its script.

    Args:
        directory: of the run.
        script: the script, if it is no longer where the run's provenance says.
    Raises:
        RunError: it is no run of these scripts, or trains no agent, or the script is not found or does not fit.
    """
    if not directory.is_dir():
        raise RunError(f"{directory}: there is no such directory")
    if missing := [name for name in (CONFIG, PROVENANCE) if not (directory / name).exists()]:
        raise RunError(
            f"{directory} is not a run of these scripts (no {missing[0]}): evaluate needs a run's flags and checkpoint"
        )
    config = read_json(directory / CONFIG)
    if "env_id" not in config:
        raise RunError(f"{directory} trains no agent: evaluate is for runs of the reinforcement-learning scripts")
    if lacking := [name for name in ("seed", "shift", "total_timesteps") if name not in config]:
        raise RunError(
            f"{directory / CONFIG} has no {lacking[0]}, which evaluate needs to build the agent's environments"
        )
    if not (directory / CHECKPOINT).exists():
        raise RunError(f"{directory} has no {CHECKPOINT}: the run stopped before the first one, or it was removed")
    module = _imported(script or _script_of(directory), directory)
    with _about(directory):
        others = {"device": "cpu", "resume": None}  # a GPU is not needed to evaluate
        args = config_from_dict(module.Args, {**config, **{name: others[name] for name in others if name in config}})
    return Recipe(directory, module, args)


def load_agent(recipe: Recipe) -> Agent:
    """Read the checkpoint.

    Raises:
        RunError: it is damaged, or does not fit the script.
    """
    directory, script, args = recipe.directory, recipe.script, recipe.args
    part = POLICIES[recipe.policy]
    saved = load_checkpoint(directory / CHECKPOINT)
    state = saved.get("state", {})
    if lacking := [name for name in (part, "env") if name not in state]:
        raise RunError(f"{directory / CHECKPOINT} holds no {lacking[0]}: {recipe.path} must give it to run.keep")
    with _about(f"{directory}: its environments do not fit {recipe.path}"):
        world: Any = make_world(args)
        world.load_state_dict(state["env"])
    with _about(f"{directory}: make_network(env, args, seed, device) of {recipe.path} cannot be called"):
        network: nn.Module = script.make_network(world, args, 0, torch.device("cpu"))
    with _about(f"{directory}: its checkpoint does not fit the network of {recipe.path}"):
        network.load_state_dict(state[part])
    # As many threads as the run, where there are so many: sums in another order have other last digits.
    torch.set_num_threads(min(getattr(args, "threads", 1), os.cpu_count() or 1))
    return Agent(recipe, partial(getattr(script, recipe.policy), network), int(saved["step"]), world)


def make_world(args: Any) -> VectorEnv[Any, Any, Any]:
    """The environments of a script with these flags.

    Raises:
        ValueError: its group --shift is none of `envs.flags`.
    """
    shift, num_envs = args.shift, getattr(args, "num_envs", 1)
    if isinstance(shift, ScreenShiftArgs):
        return shift.world(args.env_id, num_envs, protocol=args.protocol, threads=args.env_threads)
    if isinstance(shift, ControlShiftArgs):
        return shift.world(args.env_id, num_envs, max_episode_steps=args.max_episode_steps or None)
    if isinstance(shift, MinAtarShiftArgs):
        return shift.world(args.env_id, num_envs)
    raise ValueError(f"--shift is a {type(shift).__name__}, which is none of envs.flags")


def _script_of(directory: Path) -> Path:
    """Where the run's script is: as it was called, seen from the run, from here or from this checkout."""
    record = read_json(directory / PROVENANCE)
    resumed = record.get("resumed")
    last = resumed[-1] if isinstance(resumed, list) and resumed else record  # it may have been moved since the start
    command = last.get("command") if isinstance(last, dict) else None
    if not command or not isinstance(command, list) or not str(command[0]).endswith(".py"):
        called = f"{command[0]!r}" if command else "nothing"
        raise RunError(f"{directory / PROVENANCE} names {called}, not a script; give the script with --script FILE")
    called = Path(str(command[0]))
    places = [*directory.resolve().parents, Path.cwd(), REPOSITORY]
    found = (place / called for place in places if (place / called).is_file())
    if (path := next(found, None)) is None:
        raise RunError(f"{directory}: its script {called} is not there any more; give it with --script FILE")
    return path.resolve()


_modules: dict[Path, ModuleType] = {}


def _imported(path: Path, directory: Path) -> ModuleType:
    """The script as a module; its folder is on sys.path meanwhile, as when it runs."""
    path = path.resolve()
    if path not in _modules:
        name = f"script_of_a_run_{len(_modules)}_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise RunError(f"{directory}: its script {path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        sys.path.insert(0, str(path.parent))
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise RunError(f"{directory}: its script {path} cannot be imported: {what}") from error
        finally:
            sys.path.remove(str(path.parent))
        _modules[path] = module
    module = _modules[path]
    lacking = [name for name in ("Args", "make_network") if not hasattr(module, name)]
    if not any(hasattr(module, name) for name in POLICIES):
        lacking.append(" or ".join(POLICIES))
    if lacking:
        raise RunError(f"{directory}: its script {path} has no {lacking[0]}, so its agent cannot be built")
    return module


@contextmanager
def _about(what: object) -> Iterator[None]:
    """Turn errors about flags, states and shapes into a RunError that begins with `what`."""
    try:
        yield
    except (RunError, ValueError, ImportError, RuntimeError, TypeError, AttributeError) as error:
        raise RunError(f"{what}: {error}") from error
    except KeyError as error:
        raise RunError(f"{what}: no entry {error}") from error
