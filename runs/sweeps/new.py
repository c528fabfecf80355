"""Write an experiment of your own: a file with two arms, a claim and a rule, to be changed.

    python -m runs new my-experiment
    python -m runs run my_experiment.py --scale smoke
    python -m runs report my_experiment.py --scale smoke

An existing file is not overwritten.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from runs.positionals import Name
from runs.recording import RunError
from runs.recording.files import failures_named
from runs.sweeps.experiment import names

TEMPLATE = '''"""Change the claim, the rule and the arms; `python -m runs run FILE --scale smoke` tries everything."""

from runs.experiments.shared.rules import all_above, column, difference, end_return, mean_rows
from runs.sweeps.experiment import Arm, Experiment, Scale, Verdict

SCORE = "mean training return over the last tenth of the steps"


def judge(runs):  # the rule as code; it gets the numbers of every run, by the names of `measures`
    scores = column(runs, SCORE)
    ahead = difference(scores, "nap", "baseline")  # paired by seed
    return Verdict(all_above([ahead]), f"nap minus baseline: {ahead}", ("arm", "n", SCORE), mean_rows(scores))


EXPERIMENT = Experiment(
    name="NAME",
    source="ours",
    claim="On CartPole, PPO with normalize-and-project does better than plain PPO.",  # one sentence
    rule="Score: mean training return over the last tenth of the steps. Reproduced if Student's 95 % interval of nap "
    "minus baseline, paired by seed, is above 0; not reproduced if below; undecided otherwise.",  # before the first run
    # An arm: its name, a script of agents/, a preset, and flags as in config.json: {"nap.gains": "free"}.
    arms=[Arm("baseline", "ppo_control", "baseline"), Arm("nap", "ppo_control", "nap")],
    scales={  # flags here are for every arm; `smoke` only shows that everything works and gets no verdict
        "smoke": Scale(seeds=(1,), estimate="20 seconds on two cores", flags={"total_timesteps": 4_000}),
        "laptop": Scale(seeds=(1, 2, 3, 4, 5), estimate="25 min on two cores", flags={"total_timesteps": 160_000}),
    },
    measures={SCORE: end_return},  # what the rule needs of a run: a function of its config and its scalars
    judge=judge,
    curve="charts/episodic_return",  # in the figure
)
'''


@dataclass(frozen=True)
class Args:
    """Write an experiment of your own."""

    name: Name
    """letters, digits, - and _; the file is NAME.py, with _ for -"""
    out: Path = Path()
    """folder of the file"""

    @property
    def path(self) -> Path:
        """The file."""
        return self.out / f"{self.name.replace('-', '_')}.py"

    def __post_init__(self) -> None:
        """Refuse names that cannot be a file or a folder of runs."""
        if not re.fullmatch(r"[A-Za-z][\w-]*", self.name, re.ASCII):
            raise ValueError(
                f"an experiment's name has letters, digits, - and _ and begins with a letter, got {self.name!r}"
            )
        if self.name.replace("_", "-") in names():
            raise ValueError(f"there is an experiment {self.name} already; give yours its own name")
        found = importlib.util.find_spec(self.path.stem)
        if found is not None and not (found.origin and self.path.resolve() == Path(found.origin).resolve()):
            raise ValueError(f"{self.name} is the name of a Python module, which the file would hide; give another")


def main(args: Args) -> None:
    """Write the file and say what to do with it.

    Raises:
        RunError: the file exists, or cannot be written.
    """
    path = args.path
    with failures_named(f"write {path.name}", path):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(TEMPLATE.replace('"NAME"', f'"{args.name}"').replace("FILE", path.name))
        except FileExistsError:
            raise RunError(f"{path} exists and is not overwritten; give another name or --out") from None
    word = shlex.quote(str(path))
    print(f"wrote {path}: two arms, a claim and a rule, to be changed. Then:")
    for verb in ("run", "report"):
        print(f"  python -m runs {verb} {word} --scale smoke")
