"""The page of an experiment: its claim, the rule written before the runs, the measurements, and the verdict.

    python -m runs report fig3 --scale laptop

Reads the finished runs of the plan, applies the rule, and writes `fig3-laptop.md` with its figure (PNG and SVG) and a
machine-readable verdict (`fig3-laptop.json`) to `runs/results/`. Then it rewrites the table of claims in README.md from
these files. A rule is never applied to part of a plan: if runs are missing, the command refuses, unless --partial asks
for a page without a verdict. Scales that are too small to judge get no verdict either.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs.analysis.curves import Curve, as_curve, over_seeds
from runs.analysis.statistics import student_band
from runs.analysis.tables import markdown
from runs.figures import style
from runs.positionals import Experiments
from runs.recording import RunError, one_line_errors, read_json, read_status
from runs.sweeps.experiment import (
    LOGS,
    REPOSITORY,
    Experiment,
    Job,
    NoRuns,
    Result,
    Unfinished,
    Verdict,
    as_words,
    chosen,
    plan,
    run_command,
)
from runs.sweeps.results import results_of

RESULTS = Path(__file__).resolve().parents[1] / "results"
BEGIN, END = "<!-- claims: written by `python -m runs report` -->", "<!-- end of claims -->"


@dataclass(frozen=True)
class Args:
    """Write the page of an experiment, and README's table of claims."""

    experiments: Experiments
    """names as in `python -m runs list`, or all: those whose runs are finished; without a name, only the table in
    README.md is written"""
    scale: str = "laptop"
    """which of its scales"""
    logs: Path = LOGS
    """where the run directories are"""
    out: Path = RESULTS
    """folder of the pages"""
    partial: bool = False
    """write a page without a verdict, NAME-SCALE-partial, from the runs that are finished"""


def judged(experiment: Experiment, scale: str, results: Sequence[Result], complete: bool) -> Verdict | None:
    """The verdict of the rule, or None if the scale is too small to judge or runs are missing.

    Raises:
        RunError: the rule cannot be applied to these runs.
    """
    if scale not in experiment.judged or not complete:
        return None
    try:
        return experiment.judge(results)
    except (ValueError, KeyError, ArithmeticError) as error:
        raise RunError(f"the rule of {experiment.name} cannot be applied at {scale}: {error}") from error


def circumstances(jobs: Sequence[Job]) -> dict[str, Any]:
    """When, where and from which revisions the runs were made."""
    records = [read_json(job.directory / "provenance.json") for job in jobs]
    ends = [read_status(job.directory)["written"] for job in jobs]
    sessions = [session["git"] for record in records for session in (record, *record["resumed"])]
    return {
        "revisions": sorted({git["revision"][:7] + (" with changes" if git["dirty"] else "") for git in sessions}),
        "first": min(r["started"] for r in records)[:10],
        "last": max(ends)[:10],
        "torch": sorted({r["versions"]["torch"] for r in records}),
        "hardware": sorted({f"{r['cpu']}, {r['cpu_count']} cores, device {r['device']}" for r in records}),
    }


def page_name(experiment: Experiment, scale: str, partial: bool) -> str:
    """Name of a page's files without the ending. A page of part of a plan never replaces that of the whole."""
    return f"{experiment.name}-{scale}{'-partial' if partial else ''}"


def page(
    experiment: Experiment,
    scale: str,
    done: Sequence[Job],
    planned: int,
    verdict: Verdict | None,
    where: dict[str, Any],
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
        "Thin lines are seeds, thick ones their mean with its 95 % interval (Student's), cut off at the axis.", "",
    ]  # fmt: skip
    if verdict and verdict.rows:
        lines.append(markdown(verdict.heads, verdict.rows))
        named = any("±" in head for head in verdict.heads)  # a head that says what its ± is
        if not named and any("±" in cell for row in verdict.rows for cell in row):
            lines += ["± is Student's 95 % interval.", ""]
    lines += [
        work(experiment, scale, done),
        "",
        f"{len(done)} runs: {arms} arms{' and tasks' if any(job.world for job in done) else ''}, seeds {seeds}. "
        f"`{run_command(experiment, scale, LOGS)}`, then `python -m runs report {experiment.word} "
        f"--scale {scale}{' --partial' if len(done) < planned else ''}`.",
        "",
        f"{' to '.join(sorted({where['first'], where['last']}))}, revision {', '.join(where['revisions'])}, torch "
        f"{', '.join(where['torch'])}, {'; '.join(where['hardware'])}, {done[0].threads} "
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


def draw(experiment: Experiment, jobs: Sequence[Job], results: Mapping[str, Result], stem: Path) -> None:
    """The experiment's curve, one panel per task, as PNG and SVG.

    Raises:
        RunError: a run has not recorded the curve, matplotlib is missing, or a file cannot be written.
    """
    curves: dict[str, dict[str, list[Curve]]] = {}
    for job in jobs:
        curve = results[job.id].scalars.get(experiment.curve)
        if not curve:
            raise RunError(f"{job.directory} has recorded no {experiment.curve}")
        curves.setdefault(job.world, {}).setdefault(job.arm, []).append(as_curve(curve, job.directory))
    looks = style.looks(job.arm for job in jobs)
    figure, panels = style.begin(len(curves))
    for axes, (world, arms) in zip(panels, curves.items(), strict=True):
        for arm, runs in arms.items():
            x, values = over_seeds(experiment.curve, runs)
            style.draw_arm(axes, x, values, looks[arm], f"{arm}, n = {len(runs)}", student_band(values), cut=True)
        axes.set_title(world, fontsize=9)
        axes.set_ylabel(experiment.curve, fontsize=8)
        style.steps_axis(axes)
        if experiment.log_steps:
            axes.set_xscale("log")
            axes.set_xlim(left=min(steps[steps > 0][0] for runs in arms.values() for steps, _ in runs))
    style.legend_below(figure, panels)
    style.save(figure, [stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")])


def claims(folder: Path = RESULTS) -> str:
    """README's table of claims, from the verdicts in a folder. Pages without a verdict are left out."""
    lines = ["| claim | source | scale | n | verdict |", "|---|---|---|---|---|"]
    for path in sorted(folder.glob("*.json")):
        record = read_json(path)
        if record["outcome"]:
            link = f"[{record['outcome']}](runs/results/{path.stem}.md)"
            seeds = f"{record['seeds']} seeds"
            lines.append(f"| {record['claim']} | {record['source']} | {record['scale']} | {seeds} | {link} |")
    return "\n".join(lines)


def write_claims(readme: Path = REPOSITORY / "README.md", folder: Path = RESULTS) -> None:
    """Put the table between its two marks in README.md.

    Raises:
        RunError: the marks are not there, or the file cannot be written.
    """
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise RunError(f"{readme} has no place for the table of claims: put {BEGIN} and {END} where it belongs")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    with one_line_errors(f"cannot write {readme}", also=(OSError,)):
        readme.write_text(f"{before}{BEGIN}\n{claims(folder)}\n{END}{after}", encoding="utf-8")


def write(args: Args, experiment: Experiment) -> Path:
    """The page of one experiment, its figure and its verdict; returns the page's path.

    Raises:
        RunError: no run of the plan is finished (NoRuns), or some are not; or as `results_of` and `judged`.
    """
    name = experiment.name
    jobs = plan(experiment, args.scale, args.logs)
    results = results_of(jobs)
    done = [job for job in jobs if job.id in results]
    if not done:
        raise NoRuns(experiment, args.scale, args.logs)
    if partial := len(done) < len(jobs):
        missing = next(job.id for job in jobs if job.id not in results)
        if not args.partial:
            raise Unfinished(
                f"{len(done)} of {len(jobs)} runs of {name} at {args.scale} are finished (not {missing}): run them "
                f"with {run_command(experiment, args.scale, args.logs)}, or use --partial"
            )
    verdict = judged(experiment, args.scale, list(results.values()), len(done) == len(jobs))
    where = circumstances(done)
    stem = args.out / page_name(experiment, args.scale, partial)
    with one_line_errors(f"cannot write {stem}.md", also=(OSError,)):
        args.out.mkdir(parents=True, exist_ok=True)
        draw(experiment, done, results, stem)
        text = page(experiment, args.scale, done, len(jobs), verdict, where)
        stem.with_name(stem.name + ".md").write_text(text, encoding="utf-8")
        record = {
            "experiment": name, "scale": args.scale, "claim": experiment.claim, "source": experiment.source,
            "outcome": verdict.outcome if verdict else None, "reason": verdict.reason if verdict else None,
            "runs": len(done), "planned": len(jobs), "seeds": len({job.seed for job in done}),
            "written": time.strftime("%Y-%m-%d"), **where,
        }  # fmt: skip
        verdict_text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        stem.with_name(stem.name + ".json").write_text(verdict_text, encoding="utf-8")
    return stem.with_name(stem.name + ".md")


def main(args: Args) -> None:
    """Write the pages, then the table.

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
    if args.out.resolve() == RESULTS:
        write_claims()
        print("wrote the table of claims in README.md")
    elif not written:
        raise RunError(f"name an experiment: the table in README.md is made from {RESULTS}, not from {args.out}")
