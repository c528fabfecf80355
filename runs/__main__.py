"""Run and compare experiments: python -m runs COMMAND ... (installed as: rewarm COMMAND ...)

    demo                      two agents whose task changes, one of them re-warmed: start here
    list                      every experiment, its scales and their cost
    show EXPERIMENT           claim, rule and arms of an experiment
    new NAME                  a file for an experiment of your own
    run EXPERIMENT ...        make its runs, here or on a Ray cluster; again to resume
    status EXPERIMENT ...     which runs are finished, running, interrupted
    report EXPERIMENT ...     the verdict of its rule, as a page with a figure
    board RUN ...             any runs, or an EXPERIMENT, as arms in TensorBoard
    compare RUN ...           means, intervals and curves of any runs, also CleanRL's
    plot RUN ...              curves of single runs in one picture
    changes RUN ...           what each change of the task cost, and the recovery
    around RUN ...            what entropy, dead units and other numbers do around the changes
    alarms RUN ...            changes that CUSUM found or missed, false alarms
    evaluate RUN ...          returns of an agent from its checkpoint, and a video
    gaps RUN ...              generalisation gaps of warm-started networks
    fig2-left RUN ...         the paper's Fig. 2 (left) from your runs
    bench NAME                speed, on this machine: dqn, ppo, control, ... (bench --help)

Examples:
    python -m runs run fig3 --scale smoke
    python -m runs compare runs/logs/nap__* runs/logs/baseline__* --against baseline
    python -m runs COMMAND --help
"""

# Only the standard library is imported here, so that --help is quick.
from __future__ import annotations

import difflib
import importlib
import inspect
import io
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """Where a command is: a module, its dataclass of flags, and its function, which may return an exit code."""

    module: str
    args: str = "Args"
    main: str = "main"


COMMANDS: Mapping[str, Command] = {
    "demo": Command("runs.demo.command"),
    "list": Command("runs.sweeps.commands", "ListArgs", "list_experiments"),
    "show": Command("runs.sweeps.commands", "ShowArgs", "show"),
    "new": Command("runs.sweeps.new"),
    "run": Command("runs.sweeps.commands", "RunArgs", "run"),
    "status": Command("runs.sweeps.commands", "StatusArgs", "status"),
    "report": Command("runs.figures.report"),
    "board": Command("runs.figures.board"),
    "compare": Command("runs.analysis.comparison"),
    "plot": Command("runs.figures.plot"),
    "changes": Command("runs.analysis.changes"),
    "around": Command("runs.analysis.around"),
    "alarms": Command("runs.analysis.alarms"),
    "evaluate": Command("runs.evaluation.command"),
    "gaps": Command("runs.analysis.gaps"),
    "fig2-left": Command("runs.analysis.fig2_left"),
}
BENCHMARKS: Mapping[str, Command] = {
    name: Command(f"runs.benchmarks.{name.replace('-', '_')}")
    for name in (
        "dqn",
        "ppo",
        "peers",
        "control",
        "atari",
        "minatar",
        "probe",
        "grokking",
        "warm-start",
        "parts",
        "attach",
        "interventions",
        "sb3-elr",
    )
}
_ALL: Mapping[str, Command | None] = {**COMMANDS, "bench": None}
_HELP = ("-h", "--help")
_BENCH_HELP = """Measure on this machine: python -m runs bench NAME ...

    dqn            agents/dqn_minatar.py against CleanRL's dqn.py
    ppo            agents/ppo_minatar.py against CleanRL's ppo.py
    peers          both MinAtar scripts against Stable-Baselines3, SBX, and one compiled loop in JAX
    control        agents/ppo_control.py against CleanRL's ppo.py
    atari          environments, DQN and parts of Rainbow against CleanRL's
    minatar        MinAtar games as arrays against the package's games
    probe          what a measurement of the probe costs, by the number of its inputs
    grokking       agents/grokking.py against the same model in plain PyTorch
    warm-start     agents/warm_start.py against a plain loop over a DataLoader
    parts          what projection, meter and probe cost, as shares of an update
    interventions  what each method of --intervene costs
    attach         what elr.attach adds to an update of a plain loop
    sb3-elr        effective learning rates in Stable-Baselines3, with projection and without

Example:
    python -m runs bench dqn --cleanrl path/to/cleanrl
"""


def main(words: Sequence[str]) -> int:
    """Run one command line; the exit code.

    Raises:
        SystemExit: 2 after one line on stderr for a command line that cannot be read, 0 after --help.
        RunError: the command refuses.
    """
    return _run(*_choose("python -m runs", str(__doc__), _ALL, words))


def _choose(
    prog: str, help_text: str, commands: Mapping[str, Command | None], words: Sequence[str]
) -> tuple[str, Command, Sequence[str]]:
    """The full name of a command, the command, and the words after it."""
    if not words or words[0] in _HELP:
        print(help_text.strip())
        raise SystemExit(0 if words else 2)
    name, rest = words[0], words[1:]
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(commands)}"
        print(f"{prog}: there is no command {name}; {hint} ({prog} --help explains)", file=sys.stderr)
        raise SystemExit(2)
    command = commands[name]
    if command is None:
        return _choose(f"{prog} {name}", _BENCH_HELP, BENCHMARKS, rest)
    return f"{prog} {name}", command, rest


def _run(prog: str, command: Command, words: Sequence[str]) -> int:
    from runs.recording.reading import read_flags

    module = importlib.import_module(command.module)
    cls = getattr(module, command.args)
    description = inspect.cleandoc(str((module if command.args == "Args" else cls).__doc__))
    code: int | None = getattr(module, command.main)(read_flags(cls, words, prog=prog, description=description))
    return code or 0


def run_from_command_line() -> None:
    """The entry of `python -m runs` and of the installed command `rewarm`.

    Raises:
        SystemExit: with the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # ± or a name must not end a command whose output cannot encode it
    chosen = _choose("python -m runs", str(__doc__), _ALL, sys.argv[1:])
    try:
        import tyro  # noqa: F401  each command reads its flags with it

        from runs.recording.interrupt import exit_with_one_line
    except KeyboardInterrupt:
        print(f"{chosen[0]}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except ModuleNotFoundError as error:
        print(
            f"{chosen[0]}: {error.name} is not installed in {sys.executable}: use the Python of an environment with "
            "rewarm, such as .venv/bin/python",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    sys.argv[0] = chosen[0]  # the name of the command in messages
    exit_with_one_line(lambda: sys.exit(_run(*chosen)))


if __name__ == "__main__":
    run_from_command_line()
