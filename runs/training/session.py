"""A training run in progress: its device and random streams, what a checkpoint holds, when it stops, what it prints.

The script owns the loop; the session owns the disk, the terminal and the signals. It never calls the script: there is
nothing to subclass, and nothing to register except the parts whose state a checkpoint holds.

    run = Session(args, "breakout", total=args.total_timesteps, streams="init env minibatch action")
    ... build everything, with run.seed(...), run.generator(...), run.device; nothing is written yet ...
    run.keep(network=network, optimizer=optimizer, env=env)
    run.watch(network, optimizer)
    with run.open():                      # makes the run directory, or reopens it at its checkpoint (--resume)
        run.layout(...)
        run.restore() if run.resumed else run.checkpoint()  # --branch: resumed from another run's checkpoint
        while run.running():              # until `total`, or SIGINT / SIGTERM
            ...
            run.step += 1
            run.scalar("charts/episodic_return", value)
            if run.due(args.checkpoint_every, last=False):
                run.checkpoint()
        run.end()                         # last checkpoint; finished, or interrupted with the command that resumes;
                                          # of a finished agent, weights.pt
    run.farewell("...")
"""

from __future__ import annotations

import contextlib
import io
import math
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from runs.recording import (
    NonFiniteError,
    Run,
    RunError,
    StopOnSignal,
    config_to_dict,
    describe_nonfinite,
    one_line_errors,
    restore_rng,
    rng_state,
    weights_and_gradients,
)
from runs.recording.files import write_atomically
from runs.recording.layout import Layout
from runs.recording.terminal import duration, tensorboard_command
from runs.recording.weights_and_biases import require_wandb
from runs.training.branching import Branch, piece_names, read_to_extend, task_of
from runs.training.checks import require_threads

WEIGHTS = "weights.pt"
"""of a finished agent, in its run directory: the network's state_dict, tensors by name"""


@runtime_checkable
class Piecewise(Protocol):
    """A part so large that it is written in pieces next to the checkpoint (the Atari replay memory)."""

    pieces: Sequence[tuple[Any, ...]]  # the first entry of each is the piece's name

    def save(self, pieces: Any) -> dict[str, Any]: ...  # noqa: D102
    def load(self, state: dict[str, Any], pieces: Any) -> None: ...  # noqa: D102


def default_directory(args: Any, about: str, seed: int, at: datetime) -> Path:
    """Where a run is kept if --directory does not say it."""
    return Path("runs/logs", f"{args.exp_name}__{about}__s{seed}__{at:%Y%m%d-%H%M%S-%f}")


class Film(Protocol):
    """The pictures of an episode, `envs.pictures.Film`."""

    @property
    def per_second(self) -> float: ...  # noqa: D102
    def pictures(self) -> Iterator[np.ndarray]: ...  # noqa: D102


class Session:
    """See the module's text.

    Args:
        args: the script's flags, of which seed and those of RunArgs are read.
        about: what the run is about; part of its name, runs/logs/<exp_name>__<about>__s<seed>__<time>.
        total: steps of the run (updates, where `unit` is "update"); what `step` counts up to.
        streams: names of the random streams, in order: stream i is SeedSequence(seed).spawn(n)[i].
        unit: what `step` counts, for messages.
        reads_every: on a GPU, the loss is checked every this many updates, because reading it waits for the device;
            default: --log-every. On a CPU it is checked at each update.
    Attributes:
        step: x axis of everything recorded; the script counts it up.
        updates: optimiser updates; a script whose step is the update leaves it alone.
        device: where the script computes.
        directory: of the run; known once it is open.
        pieces: see `runs.recording.Pieces`; known once it is open.
        saved: names of the parts in the checkpoint, between `open` and `restore`.
    Raises:
        RunError: a negative seed, a device that torch does not have, too many threads, or a flag that --branch cannot
            change.
        SystemExit: with --seeds, when the processes that train them have ended.
    """

    def __init__(
        self,
        args: Any,
        about: str,
        *,
        total: int,
        streams: str,
        unit: Literal["step", "update"] = "step",
        reads_every: int | None = None,
    ) -> None:
        if args.resume is None:  # a resumed run may come from a larger machine
            with one_line_errors():
                require_threads(args)
        if args.track:
            require_wandb()  # now, and not after the data are read
        if args.seeds:
            from runs.sweeps.seeds import run_seeds

            at = datetime.now()
            raise SystemExit(run_seeds(args, {seed: default_directory(args, about, seed, at) for seed in args.seeds}))
        self._branch = Branch(args) if args.branch is not None and args.resume is None else None
        torch.set_num_threads(args.threads)
        threadpool_limits(args.threads)  # NumPy's BLAS: two pools that wait for each other are slower than one thread
        with one_line_errors(f"--seed {args.seed}"):
            root = np.random.SeedSequence(args.seed)
        with one_line_errors(f"--device {args.device}", also=(RuntimeError, AssertionError)):
            self.device = torch.device(args.device)
            torch.empty(1, device=self.device)
        # No script of ours draws from torch's global generator, but a copy of one may: a network with dropout.
        torch.manual_seed(int(root.generate_state(1)[0]))
        names = streams.split()
        self.total, self.step, self.updates = total, 0, 0
        self.saved: frozenset[str] = frozenset()
        self._args, self._about, self._unit = args, about, unit
        self._reads_every: int = getattr(args, "log_every", 1) if reads_every is None else reads_every
        self._streams = dict(zip(names, root.spawn(len(names)), strict=True))
        self._generators: dict[str, np.random.Generator | torch.Generator] = {"torch": torch.default_generator}
        self._parts: dict[str, Any] = {}
        self._watched: list[tuple[str, nn.Module, torch.optim.Optimizer]] = []
        self._counters = SimpleNamespace()
        self._greedy: np.ndarray | None = None
        self._timed = (0, 0, 0.0)  # step, updates and time of the last measurement of speed
        self._learning: tuple[int, float] | None = None  # step and time from which on updates were made
        self._shown = -math.inf
        self._shifts = False  # the task changes

    @property
    def on_cpu(self) -> bool:
        """Reading a number does not wait for a device."""
        return self.device.type == "cpu"

    @property
    def resumed(self) -> bool:
        """The run continues from a checkpoint, its own or, as a branch, that of its parent."""
        return self._args.resume is not None or self._branch is not None

    # Randomness.

    def seed(self, stream: str, *key: int) -> int:
        """A seed from a stream. With a key: from that child of it, which needs no state (a new network at step k)."""
        sequence = self._streams[stream]
        if key:
            sequence = np.random.SeedSequence(self._args.seed, spawn_key=(*sequence.spawn_key, *key))
        return int(sequence.generate_state(1)[0])

    def generator(self, stream: str) -> np.random.Generator:
        """The stream as a generator. From now on checkpoints hold its state."""
        return self._generators.setdefault(stream, np.random.default_rng(self._streams[stream]))

    # What a checkpoint holds.

    def keep(self, **parts: Any) -> None:
        """Name parts whose state checkpoints hold, by their `state_dict` and `load_state_dict` or as `Piecewise`; more
        may be added at any time before the next checkpoint."""
        self._parts |= parts

    def counters(self, **start: Any) -> SimpleNamespace:
        """Numbers of the script's own that checkpoints hold: `at = run.counters(first=0)`, then `at.first += 1`."""
        vars(self._counters).update(start)
        return self._counters

    def watch(self, network: nn.Module, optimizer: torch.optim.Optimizer, name: str = "") -> None:
        """At each checkpoint and bare `require_finite`, weights, gradients and second moments must be finite. With
        several networks, messages put `name` before that of a layer: "the control's "."""
        self._watched.append((name, network, optimizer))

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Make the run directory, or reopen that of --resume (RunError if it cannot be); stop on signals; an exception
        marks the run failed."""
        args, saved = self._args, None
        directory = args.directory or default_directory(args, self._about, args.seed, datetime.now())
        usual = config_to_dict(type(args)())
        if self._branch is not None:
            saved = self._branch.read(self._parts)
            if saved.step >= self.total:
                length = f"the run has {self.total:,} {self._unit}s"
                raise RunError(f"nothing is left to do: the branch starts at {saved.step:,}, and {length}")
            config = {**config_to_dict(args), "branch": f"{self._branch.directory}@{saved.step}"}
            record = self._branch.record()
            self._run = Run.create(
                directory, config, argv=sys.argv, device=self.device, defaults=usual, branch=record, step=saved.step
            )
            print(self._branch.described(self._unit), flush=True)
        elif args.extend is not None:
            saved = read_to_extend(args)
            config = {**config_to_dict(args), "extend": None, "resume": None}
            self._run = Run.resume(args.resume, device=self.device, longer=config)
        elif self.resumed:
            self._run = Run.resume(args.resume, device=self.device)
        else:
            self._run = Run.create(directory, config_to_dict(args), argv=sys.argv, device=self.device, defaults=usual)
        self.directory, self.pieces = self._run.directory, self._run.pieces
        with self._run, StopOnSignal() as self._stop:
            if saved is not None and saved.pieces.directory != self.pieces.directory:
                saved.pieces.link_to(self.pieces.directory, piece_names(saved.state))
            if self.resumed:
                self._state = saved.state if saved is not None and self._branch else self._run.take_state()
                self.step, self.saved = self._run.step, frozenset(self._state)
                del saved
            self._timed = self.step, self.updates, time.perf_counter()
            self._say_where()
            if args.track:
                self._run.track(args.wandb_project_name, args.wandb_entity)
            yield

    def restore(self) -> None:
        """Put every part, generator and counter back; RunError if the state does not fit what the script built.

        In a branch, parts whose flags have changed begin as `runs.training.branching` says; a checkpoint is written.
        """
        state, self._state = self._state, {}  # let go of it: a replay memory should not stay in memory twice
        where = self._args.resume if self._branch is None else self._branch.directory
        misfit = f"{where}: the checkpoint does not fit this version of the script"
        with one_line_errors(misfit, also=(KeyError, RuntimeError)):
            for name, part in self._parts.items():
                if isinstance(part, Piecewise):
                    part.load(state[name], self.pieces)
                elif self._branch is not None:
                    taken = state["counters"]["updates"] if self._unit == "step" else self.step
                    self._branch.load(name, part, state[name], updates=taken)
                else:
                    part.load_state_dict(state[name])
            for name, generator in self._generators.items():
                restore_rng(generator, state["generators"][name])
            counters = dict(state["counters"])
            self.updates = counters.pop("updates")
            if counters.keys() != vars(self._counters).keys():
                raise ValueError(f"it counts {sorted(counters)}, the script {sorted(vars(self._counters))}")
            vars(self._counters).update(counters)
            if unknown := sorted(state.keys() - self._parts.keys() - {"counters", "generators"}):
                raise ValueError(f"it has {', '.join(unknown)}, which the script does not keep")
        if self._branch is not None:
            if self._shifts and (task := task_of(self._parts.get("env"))) is not None:
                self.scalar("shift/task", task)
            del state
            self.checkpoint(keep=False)

    def checkpoint(self, keep: bool = True) -> None:
        """Make the present state the one that --resume starts from. Call it last in a step.

        Args:
            keep: keep a copy of it to branch from, if --keep-checkpoints-every asks for it at this step.

        Raises:
            NonFiniteError: what is watched is not finite; the checkpoint on disk stays.
            RunError: the disk is full.
        """
        self.require_finite()
        generators = {name: rng_state(generator) for name, generator in self._generators.items()}
        state = {"counters": {"updates": self.updates, **vars(self._counters)}, "generators": generators}
        large = {name: part for name, part in self._parts.items() if isinstance(part, Piecewise)}
        for name, part in self._parts.items():
            state[name] = part.save(self.pieces) if name in large else part.state_dict()
        args = self._args
        every = args.keep_checkpoints_every
        kept = keep and every and self.step and self.step % every == 0
        self._run.checkpoint(self.step, state, keep=piece_names(state) if kept else None)
        if large:  # pieces that the checkpoint does not name are old
            self.pieces.keep_only(name for part in large.values() for name, *_ in part.pieces)

    # The loop.

    def running(self) -> bool:
        """There are steps left, and no signal has asked to stop."""
        return self.step < self.total and not self._stop.requested

    def due(self, every: int, *, last: bool | None = None) -> bool:
        """`step` is a multiple of `every`; 0 is never due. With `last` True the last step of the run is due as well;
        with False it is not, whatever `every` is."""
        if every == 0:
            return False
        if self.step >= self.total and last is not None:
            return last
        return self.step % every == 0

    def require_finite(self, **numbers: float | Tensor | None) -> None:
        """Stop before a broken network is saved, measured or stepped; the checkpoint on disk predates it.

        Args:
            numbers: what must be finite, by name; None is left out. A number on a GPU is read every `reads_every`
                updates only, because reading it waits for the device. Without numbers, everything watched must be
                finite.
        Raises:
            NonFiniteError: with step, update, rate and the first layer that is not finite; on a GPU up to
                `reads_every` updates later.
        """
        for name, number in numbers.items():
            if number is None or (isinstance(number, Tensor) and not self._on_host(number) and not self._reads_now()):
                continue
            if not math.isfinite(number):
                self._refuse(f"{name.replace('_', ' ')} is {float(number)}")
        if not numbers and not all(bool(tensor.isfinite().all()) for _, tensor in self._tensors()):
            self._refuse("the network is not finite")

    def _on_host(self, number: Tensor) -> bool:
        """Reading it does not wait."""
        return number.device.type == "cpu"

    def _reads_now(self) -> bool:
        """The update about to be taken is one after which the script records, and so waits for the device anyway."""
        taken = self.updates if self._unit == "step" else self.step
        return (taken + 1) % self._reads_every == 0

    def _refuse(self, what: str) -> None:
        where = f"step {self.step}, update {self.updates}" if self._unit == "step" else f"update {self.step}"
        rate = f", learning rate {float(self._watched[0][2].param_groups[0]['lr']):g}" if self._watched else ""
        cause = f": {describe_nonfinite(self._tensors())}" if self._watched else ""
        raise NonFiniteError(f"{what} at {where}{rate}{cause}; the last checkpoint predates it")

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Weights, gradients, second moments of everything watched, named."""
        for owner, network, optimizer in self._watched:
            for name, tensor in weights_and_gradients(network):
                yield f"{owner}{name}", tensor
            for name, parameter in network.named_parameters():
                moment = optimizer.state.get(parameter, {}).get("exp_avg_sq")
                if moment is not None:
                    yield f"{owner}Adam's second moment of {name}", moment

    # Records.

    def layout(self, measured: Layout, *, shifts: bool = False, **options: Any) -> None:
        """Give TensorBoard the grouping of charts, as `runs.recording.layout`; if the task changes during the run
        (`shifts`), with a chart of it, which begins at task 0."""
        if self._args.resume is not None:  # the checkpoint has it
            return
        self._shifts = shifts
        if getattr(self._args, "eval_every", None) == 0:
            options["evaluations"] = False
        if not shifts:
            self._run.layout(measured, **options)
            return
        charts = {"task": ["shift/task"], **options.pop("charts", {})}
        self._run.layout(measured, charts=charts, **options)
        if not self.resumed:
            self.scalar("shift/task", 0)

    def scalar(self, tag: str, value: float) -> None:
        """Record one number at the present step; see `runs.recording.Run.scalar`."""
        self._run.scalar(tag, value, self.step)

    def scalars(self, values: Mapping[str, float]) -> None:
        """Record several."""
        self._run.scalars(values, self.step)

    def evaluated(self, returns: np.ndarray) -> None:
        """Record mean and standard deviation of evaluation returns [N]; the last ones are printed at the end."""
        self._greedy = returns
        self.scalars({"eval/episodic_return": returns.mean(), "eval/episodic_return_std": returns.std()})

    def write_video(self, film: Film | None) -> None:
        """Write an evaluation's first episode as a GIF, video/step-<step>.gif in the run directory; None is left out.

        Raises:
            RunError: it cannot be drawn or written.
        """
        if film is not None:
            from runs.recording.video import write_gif

            with one_line_errors("--record-video"):
                path = self.directory / "video" / f"step-{self.step}.gif"
                write_gif(path, film.pictures(), per_second=film.per_second, scale=1)

    def shifted(self, infos: Mapping[str, Any]) -> None:
        """Record that the task has changed, by what the environment says of it."""
        (told,) = infos["shift"].values()
        self.scalars({"shift/task": told["task"], "shift/boundary": 1})

    # The terminal.

    def _say_where(self) -> None:
        """Print run directory, device, threads, and the TensorBoard command."""
        gpu = "" if self.on_cpu else f" ({torch.cuda.get_device_name(self.device)})"
        threads = f"{self._args.threads} thread{'s' * (self._args.threads > 1)}"
        resumed = f", resumed at {self._unit} {self.step:,}" if self.resumed else ""
        print(f"run directory: {self.directory}{resumed}")
        print(f"device: {self.device}{gpu}, {threads}")
        print(f"look at it with: {tensorboard_command(self.directory)}", flush=True)

    def show_speed(self, line: str) -> None:
        """Record charts/SPS since the last call, and print one line with it, at most once in ten seconds (on a
        terminal: once in a second, in place). Where a step is an update, nothing is recorded.

        While no update is made, the line says so: acting alone is many times as fast as learning. The time left is an
        estimate from the speed since the first update.
        """
        now = time.perf_counter()
        (step, updates, then), self._timed = self._timed, (self.step, self.updates, now)
        speed = (self.step - step) / (now - then)
        if self._unit == "step":
            self.scalar("charts/SPS", speed)
        learns = self._unit == "update" or self.updates > updates
        if learns and self._learning is None:
            self._learning = step, then
        terminal = sys.stdout.isatty()
        if now - self._shown < (1.0 if terminal else 10.0) and self.step < self.total:
            return
        self._shown = now
        pace = f"{speed:.{int(speed < 10)}f} {self._unit}s/s"
        if not learns:
            pace += ", no updates" if self.updates else ", no updates yet"
        elif self._learning and self.step < self.total:
            begun, since = self._learning
            pace += f"   {duration((self.total - self.step) * (now - since) / (self.step - begun))} left"
        text = f"{self._unit} {self.step:,} of {self.total:,}   {pace}   {line}"
        width = min(100, shutil.get_terminal_size().columns - 1)  # a longer line would not be replaced as a whole
        print(f"\r{text[:width]:<{width}}" if terminal else text, end="" if terminal else "\n", flush=True)

    def end(self) -> None:
        """Write the last checkpoint; then finish, or, if steps are left, say how to resume and exit with code 130."""
        self.checkpoint()
        if self.step < self.total:
            self._run.interrupt(self.step)
            command = shlex.join([sys.executable, sys.argv[0], "--resume", str(self.directory)])
            print(f"\nstopped at {self._unit} {self.step}; resume with: {command}")
            raise SystemExit(130)
        self._write_weights()
        self._run.finish(self.step)

    def _write_weights(self) -> None:
        """The agent's network alone, for `torch.load(path, weights_only=True)`; supervised scripts keep none."""
        network = self._parts.get("q_network", self._parts.get("network"))
        if self._unit == "step" and isinstance(network, nn.Module):
            weights, encoded = network.state_dict(), io.BytesIO()  # torch hides why a file cannot be written
            torch.save({name: weight.detach().cpu().clone() for name, weight in weights.items()}, encoded)
            write_atomically(self.directory / WEIGHTS, encoded.getvalue())

    def farewell(self, *lines: str) -> None:
        """Print what a finished run says: length, directory, these lines, the last evaluation, how to look at it."""
        if self._greedy is not None:
            lines += (f"evaluation return {self._greedy.mean():.2f}, mean of {len(self._greedy)} episodes",)
        print(f"\nfinished {self.step:,} {self._unit}s in {self.directory}", *lines, sep="\n")
        print(f"look at it with: {tensorboard_command(self.directory)}")
