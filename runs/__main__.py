"""Run whole experiments, see where they stand, and judge them.

    python -m runs list                                     every experiment, its scales and what they cost
    python -m runs show fig3                                its claim, the rule that decides it, its arms
    python -m runs run fig3 --scale smoke                   all its runs, on this machine; again to go on
    python -m runs run fig3 --scale laptop --dry-run        the commands instead
    python -m runs status fig3 --scale laptop               which runs are finished, running, interrupted
    python -m runs report fig3 --scale laptop               the verdict by its rule, as a page with a figure
    python -m runs board fig3 --scale laptop                its arms in TensorBoard, a line and a band for each
    python -m runs compare RUN RUN ...                      any runs: means, intervals, curves

An experiment is a file of runs/experiments/, or a path to one of your own that ends in .py.
"""

# Nothing heavy is imported up here: --help should not wait for torch.
from __future__ import annotations

import argparse
import importlib
import importlib.util
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from runs.experiment import Job

_OTHERS = {
    "board": ("runs.board", "its arms in TensorBoard, a line and a band over the seeds for each"),
    "compare": ("runs.comparison", "means, intervals and curves of any runs, also of other programs"),
    "report": ("runs.report", "the verdict by its rule, as a page with a figure"),
}
"""Subcommands that are modules with `Args` and `main(args)`, and what they are for."""
_RAW = argparse.RawDescriptionHelpFormatter

_RUN = """Bring every run of an experiment to its end.

    python -m runs run fig3 --scale smoke
    python -m runs run fig3 fig8 --scale laptop --jobs 4 --seeds 1 2
    python -m runs run all --scale paper --engine ray --address auto

Each run is its script as a process of its own, with the flags that `--dry-run` prints. The same command, given again,
goes on: what is finished is skipped, what was interrupted or killed is resumed from its checkpoint, and what another
launcher is running is waited for. Nothing is overwritten: a run directory made with other flags is refused by name
before anything starts, and what was killed before its first checkpoint is moved aside to RUN.abandoned-1. The output
of a run is in RUN.log, beside its directory.

Ctrl-C lets the runs write checkpoints; a second one kills them. If the launcher itself is killed, its runs go on (on
Ray they write a checkpoint and stop), and the same command waits for them.

Exit codes: 0 all finished, 1 a run failed, 2 refused, 130 interrupted."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help explains\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("python -m runs", description=__doc__, formatter_class=_RAW)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, what: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=what, description=text, formatter_class=_RAW)

    add("list", "every experiment, its scales and what they cost", "Every experiment.\n\n    python -m runs list")
    show = add("show", "claim, rule and arms", "What an experiment is.\n\n    python -m runs show fig3")
    show.add_argument("experiment", metavar="EXPERIMENT")

    run = add("run", "bring all runs to their end, on this machine or a Ray cluster", _RUN)
    status = add(
        "status",
        "which runs are finished, running, interrupted",
        "Where the runs of an experiment stand.\n\n    python -m runs status fig3 --scale laptop",
    )
    for command in (run, status):
        command.add_argument("experiments", metavar="EXPERIMENT", nargs="+", help="names, or all")
        command.add_argument(
            "--scale",
            required=True,
            metavar="SCALE",
            help="smoke (does everything work?), laptop, paper, or another that list shows",
        )
        command.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms")
        command.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="only these of the scale's seeds")
        command.add_argument(
            "--logs", type=Path, default=Path("runs/logs"), metavar="DIR",
            help="runs are made in DIR/EXPERIMENT/SCALE/ (default runs/logs)",
        )  # fmt: skip
    run.add_argument(
        "--data-folder", type=Path, metavar="DIR",
        help="the folder of CIFAR-10's official files, for runs of warm_start.py, which download them otherwise",
    )  # fmt: skip
    run.add_argument("--dry-run", action="store_true", help="print the commands and start nothing")
    run.add_argument(
        "--retries", type=_count, default=2, metavar="N",
        help="how often a run that crashed is continued from its checkpoint (default 2)",
    )  # fmt: skip
    here = run.add_argument_group("on this machine")
    here.add_argument(
        "--jobs", type=_positive, metavar="N",
        help="runs at the same time (default: as many as cores and GPUs carry)",
    )  # fmt: skip
    here.add_argument(
        "--no-pin", action="store_true",
        help="do not hold each run to cores of its own; two launchers would hold theirs to the same ones",
    )  # fmt: skip
    cluster = run.add_argument_group("on a Ray cluster (pip install -e '.[ray]')")
    cluster.add_argument("--engine", choices=("local", "ray"), default="local", help="where runs are (default local)")
    cluster.add_argument(
        "--address", metavar="ADDRESS",
        help="auto or host:port of the cluster that this machine belongs to (ray start --head, ray start --address), "
        "or local to start one here (default auto); --logs must be on a file system that all nodes see",
    )  # fmt: skip
    for name, (module, what) in _OTHERS.items():
        if importlib.util.find_spec(module):
            commands.add_parser(name, add_help=False, help=f"{what} (python -m runs {name} --help)")
    return parser


def _positive(word: str) -> int:
    if (number := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is none: give at least 1")
    return number


def _count(word: str) -> int:
    if (number := int(word)) < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def planned(args: Any) -> list[Job]:
    """The jobs that the command line asks for.

    Raises:
        RunError: there is no such experiment, scale, arm or seed.
    """
    from runs.experiment import chosen, plan
    from runs.recording import RunError

    jobs = [job for one in chosen(args.experiments, args.scale) for job in plan(one, args.scale, args.logs.absolute())]
    for what, asked, there in (
        ("arm", args.arms, {job.arm for job in jobs}),
        ("seed", args.seeds, {job.seed for job in jobs}),
    ):
        for name in asked or ():
            if name not in there:
                raise RunError(f"there is no {what} {name} at scale {args.scale}; there are {_listed(there)}")
    return [job for job in jobs if job.arm in (args.arms or [job.arm]) and job.seed in (args.seeds or [job.seed])]


def _listed(values: set[Any]) -> str:
    return ", ".join(map(str, sorted(values)))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="    ", subsequent_indent="    ")


def list_experiments() -> None:
    """Print each experiment, its claim and its scales."""
    from runs.experiment import load, names, plan

    for experiment in map(load, names()):
        print(f"{experiment.name}  ({experiment.source})\n{_wrapped(experiment.claim)}")
        for label, scale in experiment.scales.items():
            print(f"    {label:<7} {len(plan(experiment, label, Path())):>4} runs  {scale.estimate}")
        print()


def show(name: str) -> None:
    """Print an experiment's claim, rule and arms."""
    from runs.experiment import as_words, load

    experiment = load(name)
    print(f"{experiment.name}  ({experiment.source})")
    print(f"\nClaim:\n{_wrapped(experiment.claim)}\n\nRule:\n{_wrapped(experiment.rule)}\n\nArms:")
    for arm in experiment.arms:
        words = [f"{arm.script}.py", *([arm.preset] if arm.preset else []), *as_words(arm.flags)]
        print(f"    {arm.name}: {shlex.join(words)}")
    print("\nScales:")
    for label, scale in experiment.scales.items():
        seeds = f"seeds {', '.join(map(str, scale.seeds))}"
        print(f"    {label}: {scale.estimate}; {' '.join([seeds, *as_words(scale.flags)])}")
        for arm in (scale.instead.get(arm.name, arm) for arm in experiment.arms):
            words = as_words(scale.by_arm.get(arm.name, {}))
            if scale.arms is not None and arm.name not in scale.arms:
                words = ["(not run)"]
            elif arm.name in scale.instead:
                words = [f"{arm.script}.py", *([arm.preset] if arm.preset else []), *as_words(arm.flags), *words]
            if words:
                print(f"        {arm.name}: {' '.join(words)}")
    print(f"\nNext: python -m runs run {name} --scale {next(iter(experiment.scales))}")


def status(jobs: Sequence[Job]) -> None:
    """Print what each run's directory holds, without disturbing whoever writes it."""
    from runs.executing import claimed, inspect, writer
    from runs.progress import last_step, total_steps
    from runs.recording import RunError

    for job in jobs:
        try:
            found = inspect(job)
        except RunError as error:
            print(f"{job.id}: {error}")
            continue
        # Whoever probes a run's lock holds it for an instant: not while a launcher may be starting that run.
        busy = found.state != "finished" and (claimed(job) or writer(job) is not None)
        gone = {"running": "killed", "": "not started"}.get(found.status, found.status)
        step, total = last_step(job.directory), total_steps(job.directory)
        at = "" if step is None else f", step {step:,}" + (f" of {total:,}" if total else "")
        print(f"{job.id}: {'running' if busy else gone}{at}")


def placed(jobs: Sequence[Job], folder: Path | None) -> list[Job]:
    """The jobs, told where the images are.

    Raises:
        RunError: none of them reads a folder of images.
    """
    from runs.recording import RunError

    if folder is None:
        return list(jobs)
    reads = [job.script == "warm_start" and job.flags.get("dataset") != "digits" for job in jobs]
    if not any(reads):
        raise RunError(f"--data-folder {folder} has no effect: none of the runs reads images from a folder")
    there = {"data_folder": folder.absolute()}
    return [replace(job, places=there) if one else job for job, one in zip(jobs, reads, strict=True)]


def run(jobs: Sequence[Job], args: Any) -> int:
    """Launch; the exit code."""
    from runs.executing import inspect
    from runs.launcher import follow, launch
    from runs.progress import Progress
    from runs.recording import RunError

    if args.engine == "local" and args.address:
        raise RunError(f"--address {args.address} has no effect with --engine local; drop it or give --engine ray")
    if args.engine == "ray" and (args.jobs or args.no_pin):
        raise RunError(
            "--jobs and --no-pin have no effect with --engine ray: the cluster has as many runs as it carries"
        )
    if args.dry_run:
        from runs.experiment import REPOSITORY

        print(f"cd {shlex.quote(str(REPOSITORY))}", *(shlex.join(job.command()) for job in jobs), sep="\n")
        return 0
    for job in jobs:  # refuse now rather than after hours
        inspect(job)
    if args.engine == "local":
        return launch(jobs, args.jobs, args.retries, not args.no_pin)
    from runs.on_ray import OnRay

    engine = OnRay(jobs, args.address or "auto", args.retries, args.logs.absolute())
    progress = Progress(jobs, sys.stdout)
    if shortage := engine.shortage(jobs):
        progress.say(shortage)
    return follow(engine, progress)


def _other(name: str, words: Sequence[str]) -> None:
    """A subcommand that is a module of its own."""
    import tyro

    module = importlib.import_module(_OTHERS[name][0])
    module.main(
        tyro.cli(
            module.Args, args=words, prog=f"python -m runs {name}", description=module.__doc__,
            config=(tyro.conf.PositionalRequiredArgs,),
        )
    )  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Do what the command line says; the exit code."""
    if words and words[0] in _OTHERS and importlib.util.find_spec(_OTHERS[words[0]][0]):
        _other(words[0], words[1:])
        return 0
    args = _parser().parse_args(words)
    if args.command == "list":
        list_experiments()
    elif args.command == "show":
        show(args.experiment)
    elif args.command == "status":
        status(planned(args))
    else:
        return run(placed(planned(args), args.data_folder), args)
    return 0


def _main() -> None:
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]) and sys.argv[1] not in _OTHERS:
        _parser().parse_args()  # leaves, before the imports below
    from runs.recording import exit_with_one_line

    sys.argv[0] = "python -m runs"  # how its messages name it
    exit_with_one_line(lambda: sys.exit(main(sys.argv[1:])))


if __name__ == "__main__":
    _main()
