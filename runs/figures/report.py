"""The page of an experiment: its claim, the rule written before the runs, the measurements, and the verdict.

    python -m runs report fig3 --scale laptop

Reads the finished runs of the plan, applies the rule, and writes `fig3-laptop.md` with its figure (PNG and SVG), the
verdict with the numbers of every run (`fig3-laptop.json`) and the curves (`fig3-laptop.csv.gz`) next to the runs, to
`runs/logs/fig3/`, or to --out. A rule is never applied to part of a plan: if runs are missing, the command refuses,
unless --partial asks for a page without a verdict. Scales that are too small to judge get no verdict either.

    python -m runs report fig3 --scale laptop --publish

writes to the published pages, `runs/results/`, instead, and rewrites the tables of claims in README.md and
docs/claims.md from them. It is for this project's own results.

    python -m runs report fig3 --scale laptop --from-json

applies the rule to the published numbers instead, without any run directory. So anyone can check a verdict, and a page
can be drawn or worded again. If the published outcome, reason, claim or rule differ from those of now, it prints both.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runs.analysis.curves import Curve, over_seeds
from runs.analysis.statistics import student_band
from runs.analysis.tables import markdown
from runs.figures import style
from runs.figures.claims import RESULTS, write_claims
from runs.positionals import Experiments
from runs.recording import RunError, one_line_errors
from runs.sweeps import record
from runs.sweeps.experiment import (
    LOGS,
    Experiment,
    Job,
    Measured,
    NoRuns,
    Unfinished,
    Verdict,
    as_words,
    chosen,
    plan,
    run_command,
)
from runs.sweeps.record import Record

FEW_ARMS = 6
"""in a panel, with whose seeds and intervals a picture can still be read"""
UNCROWDED_TEXT = "Thin lines are seeds, thick ones their mean with its 95 % interval (Student's), cut off at the axis."
CROWDED_TEXT = f"Lines are means over seeds. With more than {FEW_ARMS} arms, seeds and intervals are not drawn."


@dataclass(frozen=True)
class Args:
    """Write the page of an experiment."""

    experiments: Experiments
    """names as in `python -m runs list`, or all: those whose runs are finished; --publish without a name only writes
    the tables of claims"""
    scale: str = "laptop"
    """which of its scales"""
    logs: Path = LOGS
    """where the run directories are"""
    out: Path | None = None
    """folder of the page; default: LOGS/EXPERIMENT"""
    partial: bool = False
    """write a page without a verdict, NAME-SCALE-partial, from the runs that are finished"""
    join: tuple[Path, ...] = ()
    """records (NAME-SCALE.json, or -partial) of runs on other machines, which are added to the runs here"""
    from_json: bool = False
    """take the runs from NAME-SCALE.json and .csv.gz in OUT, by default the published ones, instead of from run
    directories"""
    publish: bool = False
    """write the page to runs/results/, and the tables of claims in README.md and docs/claims.md"""

    def __post_init__(self) -> None:
        """Refuse flags that contradict each other."""
        if self.from_json and self.logs != LOGS:
            raise ValueError(f"--logs {self.logs} has no effect with --from-json, which reads no run directory")
        if (self.from_json or self.join) and not self.experiments:
            raise ValueError(f"{'--from-json' if self.from_json else '--join'} needs the name of an experiment")
        if self.publish and self.out is not None:
            raise ValueError(f"--out {self.out} has no effect with --publish, which writes to {RESULTS}; drop one")
        if self.out is not None and self.out.resolve() == RESULTS:
            raise ValueError(f"--out {self.out} holds the published pages: give --publish, or another folder")

    def folder(self, experiment: Experiment) -> Path:
        """Where the page of an experiment goes."""
        return RESULTS if self.publish else self.out or self.logs / experiment.name

    @property
    def published(self) -> Path:
        """Where --from-json reads."""
        return self.out or RESULTS


def judged(experiment: Experiment, scale: str, runs: Sequence[Measured], complete: bool) -> Verdict | None:
    """The verdict of the rule, or None if the scale is too small to judge or runs are missing.

    Raises:
        RunError: the rule cannot be applied to these runs.
    """
    if scale not in experiment.judged or not complete:
        return None
    try:
        return experiment.judge(runs)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise RunError(f"the rule of {experiment.name} cannot be applied at {scale}: {error}") from error


def page_name(experiment: Experiment, scale: str, partial: bool) -> str:
    """Name of a page's files without the ending. A page of part of a plan never replaces that of the whole."""
    return f"{experiment.name}-{scale}{'-partial' if partial else ''}"


def page(
    experiment: Experiment,
    scale: str,
    done: Sequence[Job],
    planned: int,
    verdict: Verdict | None,
    where: record.Circumstances,
) -> str:
    """The page in Markdown; its figure is in the same folder."""
    if verdict:
        said = f"**Verdict: {verdict.outcome}.** {verdict.reason[0].upper()}{verdict.reason[1:]}."
    elif scale not in experiment.judged:
        said = f"**No verdict**: the scale {scale} shows that everything runs, and is too small for the rule."
    else:
        said = f"**No verdict**: {len(done)} of {planned} runs are finished."
    seeds = ", ".join(str(seed) for seed in sorted({job.seed for job in done}))
    arms = len({(job.arm, job.world) for job in done})
    noted = [f"*{experiment.note}*", ""] if experiment.note else []
    lines = [
        f"# {experiment.name}, {scale}", "",
        f"**Claim** ({experiment.source}). {experiment.claim}", "", *noted,
        f"**Rule, written before the runs.** {experiment.rule}", "", said, "",
        f"![{experiment.curve} over steps]({page_name(experiment, scale, len(done) < planned)}.png)", "",
        CROWDED_TEXT if crowded(done) else UNCROWDED_TEXT, "",
    ]  # fmt: skip
    if verdict and verdict.rows:
        lines.append(markdown(verdict.heads, verdict.rows))
        named = any("±" in head for head in verdict.heads)  # a head that says what its ± is
        if not named and any("±" in cell for row in verdict.rows for cell in row):
            lines += ["± is Student's 95 % interval.", ""]
    name = page_name(experiment, scale, len(done) < planned)
    lines += [
        work(experiment, scale, done),
        "",
        f"{len(done)} runs: {arms} arms{' and tasks' if any(job.world for job in done) else ''}, seeds {seeds}. "
        f"`{run_command(experiment, scale, LOGS)}`, then `python -m runs report {experiment.word} "
        f"--scale {scale}{' --partial' if len(done) < planned else ''}`. The numbers of every run are in "
        f"[{name}.json]({name}.json), the curves in [{name}.csv.gz]({name}.csv.gz); `report` with `--from-json` "
        "applies the rule to them again.",
        "",
        f"{' to '.join(sorted({where.first, where.last}))}, revision {', '.join(where.revisions)}, torch "
        f"{', '.join(where.torch)}, {'; '.join(where.hardware)}, {done[0].threads} "
        f"thread{'s' * (done[0].threads > 1)} per run.",
        "",
    ]
    return "\n".join(lines)


def work(experiment: Experiment, scale: str, done: Sequence[Job]) -> str:
    """One sentence on the runs: scripts, and the flags that this scale gives to all runs and to each task."""
    size, run = experiment.scales[scale], {job.world for job in done} - {""}
    scripts = " and ".join(f"`agents/{name}.py`" for name in sorted({job.script for job in done}))
    given = f" with `{shlex.join(as_words(size.flags))}`" if size.flags else ""
    named = {world: shlex.join(as_words(flags)) for world, flags in size.worlds.items() if world in run}
    worlds = "; " + ", ".join(f"{world} is `{flags}`" for world, flags in named.items()) if named else ""
    shows = f"`{run_command(experiment, scale, LOGS)} --dry-run`"
    return f"Each run is {scripts}{given}, and the flags of its arm ({shows}){worlds}."


def crowded(jobs: Sequence[Job]) -> bool:
    """Whether a panel has too many arms for their seeds and intervals."""
    return len({job.arm for job in jobs}) > FEW_ARMS


def draw(experiment: Experiment, jobs: Sequence[Job], runs: Record, stem: Path) -> None:
    """The experiment's curve, one panel per task, as PNG and SVG.

    Raises:
        RunError: matplotlib is missing, or a file cannot be written.
    """
    curves: dict[str, dict[str, list[Curve]]] = {}
    for job in jobs:
        curves.setdefault(job.world, {}).setdefault(job.arm, []).append(runs.curves[record.key_of(job)])
    looks = style.looks(job.arm for job in jobs)
    figure, panels = style.begin(len(curves))
    for axes, (world, arms) in zip(panels, curves.items(), strict=True):
        for arm, seeds in arms.items():
            x, values = over_seeds(experiment.curve, seeds)
            label = f"{arm}, n = {len(seeds)}"
            if crowded(jobs):
                style.draw_arm(axes, x, values.mean(axis=0, keepdims=True), looks[arm], label)
            else:
                style.draw_arm(axes, x, values, looks[arm], label, student_band(values), cut=True)
        axes.set_title(world, fontsize=9)
        axes.set_ylabel(experiment.curve, fontsize=8)
        style.steps_axis(axes)
        if experiment.log_steps:
            axes.set_xscale("log")
            axes.set_xlim(left=min(steps[steps > 0][0] for seeds in arms.values() for steps, _ in seeds))
    style.legend_below(figure, panels)
    style.save(figure, [stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")])


def gathered(args: Args, experiment: Experiment, jobs: Sequence[Job]) -> Record:
    """The finished runs of a plan: from their directories or the published files, and from those of other machines.

    Raises:
        RunError: there is none (NoRuns), one cannot be measured or read, or two records disagree.
    """

    def read(path: Path) -> Record:
        return record.read(path, experiment, args.scale, jobs)

    here = args.published / f"{page_name(experiment, args.scale, args.partial)}.json"
    first = read(here) if args.from_json else record.collect(experiment, jobs)
    found = record.joined(first, [(path, read(path)) for path in args.join], jobs)
    if found is None:
        raise NoRuns(experiment, args.scale, args.logs)
    return found


def write(args: Args, experiment: Experiment) -> Path:
    """The page of one experiment, its figure and its verdict; returns the page's path.

    Raises:
        RunError: some runs of the plan are not finished; or as `gathered` and `judged`.
    """
    jobs = plan(experiment, args.scale, args.logs)
    runs = gathered(args, experiment, jobs)
    done = [job for job in jobs if record.key_of(job) in runs.runs]
    if partial := len(done) < len(jobs):
        missing = next(job.id for job in jobs if record.key_of(job) not in runs.runs)
        if not args.partial:
            raise Unfinished(
                f"{len(done)} of {len(jobs)} runs of {experiment.name} at {args.scale} are finished (not {missing}): "
                f"run them with {run_command(experiment, args.scale, args.logs)}, or use --partial"
            )
    verdict = judged(experiment, args.scale, list(runs.runs.values()), len(done) == len(jobs))
    out, name = args.folder(experiment), page_name(experiment, args.scale, partial)
    stem, path, published = out / name, out / f"{name}.md", args.published / f"{name}.json"
    # Everything is made before the first file is written, so an error changes none of them.
    text = page(experiment, args.scale, done, len(jobs), verdict, runs.where)
    files = record.contents(stem, experiment, args.scale, len(jobs), runs, verdict)
    with (
        one_line_errors(f"cannot draw the figure of {path}", also=(OSError,)),
        tempfile.TemporaryDirectory() as folder,
    ):
        draw(experiment, done, runs, Path(folder) / stem.name)
        files |= {out / picture.name: picture.read_bytes() for picture in sorted(Path(folder).iterdir())}
    if args.from_json and published.exists() and (changed := record.changes(published, files[out / published.name])):
        print(f"{published} changes: {changed}", flush=True)
    with one_line_errors(f"cannot write {path}", also=(OSError,)):
        out.mkdir(parents=True, exist_ok=True)
    record.write({**files, path: text.encode()})
    return path


def main(args: Args) -> None:
    """Write the pages; with --publish, then the tables.

    Raises:
        RunError: as `chosen` and `write`; with `all`, if no experiment has all its runs finished.
    """
    written = 0
    for experiment in chosen(args.experiments, args.scale) if args.experiments else ():
        try:
            print(f"wrote {write(args, experiment)}", flush=True)
            written += 1
        except Unfinished as error:
            if args.experiments != ("all",):
                raise
            if not isinstance(error, NoRuns):
                print(f"left out: {error}")
    if args.experiments and not written:
        raise RunError(f"no experiment has all its runs at {args.scale} finished in {args.logs}")
    if args.publish:
        write_claims()
        print("wrote the tables of claims in README.md and docs/claims.md")
    elif not written:
        raise RunError("name an experiment, or give --publish to write the tables of claims")
