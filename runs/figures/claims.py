"""The tables of claims: README's, of what has a verdict, and docs/claims.md, of everything.

Both are made from the verdicts in `runs/results/`, and docs/claims.md from the experiments that have none yet as well,
with what their runs would cost. `python -m runs report --publish` writes both.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from runs.recording import RunError, one_line_errors, read_json
from runs.sweeps.experiment import REPOSITORY, Experiment, load, names

RESULTS = Path(__file__).resolve().parents[1] / "results"
BEGIN, END = "<!-- claims: written by `python -m runs report --publish` -->", "<!-- end of claims -->"
README, EVERYTHING = REPOSITORY / "README.md", REPOSITORY / "docs" / "claims.md"
EARLIER = "; judged by an earlier rule, not yet run again under the current one"
HEAD = """# All claims and their verdicts

Written by `python -m runs report --publish`. A row is an experiment of [`runs/experiments/`](../runs/experiments): what
it claims, after which figure, and the verdict of its rule, with n and interval. `python -m runs show NAME` prints the
rule.
*Reproduced*, *not reproduced* and *undecided* are defined by each rule; each page says what its rule asks for. An
experiment that was not run has the estimated cost of its runs instead.

"""


def verdicts(folder: Path = RESULTS) -> list[tuple[str, dict[str, Any]]]:
    """Names of the pages in a folder that have a verdict, with their records, in alphabetical order."""
    records = [(path.stem, read_json(path)) for path in sorted(folder.glob("*.json"))]
    return [(name, record) for name, record in records if record["outcome"]]


def superseded(record: dict[str, Any]) -> bool:
    """Whether the verdict is of a claim or rule that the experiment no longer has."""
    if record["experiment"] not in names():
        return True
    experiment = load(record["experiment"])
    return (record["claim"], record.get("rule", experiment.rule)) != (experiment.claim, experiment.rule)


def claims(folder: Path = RESULTS) -> str:
    """README's table, from the verdicts in a folder."""
    lines = ["| claim | source | scale | n | verdict |", "|---|---|---|---|---|"]
    for name, one in verdicts(folder):
        link = f"[{one['outcome']}](runs/results/{name}.md){EARLIER if superseded(one) else ''}"
        lines.append(f"| {one['claim']} | {one['source']} | {one['scale']} | {one['seeds']} seeds | {link} |")
    return "\n".join(lines)


def by_figure(experiment: Experiment) -> tuple[bool, list[int], str]:
    """Orders experiments: those about the paper first, by the number of their first figure, then by name."""
    figures = [int(number) for number in re.findall(r"Figs?\. (\d+)", experiment.source)]
    return "Lyle" not in experiment.source, figures[:1] or [99], experiment.name


def everything(folder: Path = RESULTS) -> str:
    """docs/claims.md: a row for every experiment and scale with a verdict, and one for each experiment without."""
    judged: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, record in verdicts(folder):
        judged.setdefault(record["experiment"], []).append((name, record))
    heads = ("experiment", "claim", "source", "n", "verdict", "numbers, or what the runs would cost")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for experiment in sorted(map(load, names()), key=by_figure):
        for name, one in judged.get(experiment.name, []):
            link = f"[{one['outcome']}](../runs/results/{name}.md), {one['scale']}"
            link += EARLIER if superseded(one) else ""
            lines.append(
                f"| `{experiment.name}` | {one['claim']} | {one['source']} | {one['seeds']} seeds | {link} | "
                f"{one['reason'][0].upper()}{one['reason'][1:]} |"
            )
        if experiment.name not in judged:
            scales = [(label, experiment.scales[label]) for label in experiment.judged if label in experiment.scales]
            cost = "; ".join(f"{label}: {scale.estimate}" for label, scale in scales)
            lines.append(f"| `{experiment.name}` | {experiment.claim} | {experiment.source} | – | not run | {cost} |")
    return HEAD + "\n".join(lines) + "\n"


def write_claims(readme: Path = README, folder: Path = RESULTS, every: Path = EVERYTHING) -> None:
    """Put README's table between its two marks, and write docs/claims.md.

    Raises:
        RunError: the marks are not there, or a file cannot be written.
    """
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise RunError(f"{readme} has no place for the table of claims: put {BEGIN} and {END} where it belongs")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    for path, content in ((readme, f"{before}{BEGIN}\n{claims(folder)}\n{END}{after}"), (every, everything(folder))):
        with one_line_errors(f"cannot write {path}", also=(OSError,)):
            path.write_text(content, encoding="utf-8")
