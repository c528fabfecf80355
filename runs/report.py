"""A page per experiment: its claim, the rule written before the runs, what was measured, and the verdict.

    python -m runs report fig3 --scale laptop

reads the finished runs of the plan, applies the rule, and writes `fig3-laptop.md` with its figure (PNG and SVG) and the
verdict in a form for programs (`fig3-laptop.json`) to `runs/results/`; then the table of claims in README.md, which is
made of these files, is written anew. A rule is not applied to part of a plan: with runs missing the command refuses,
unless --partial asks for a page without a verdict. Scales that are too small to judge get none either.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from runs import style
from runs.comparison import common_points, markdown, student_band
from runs.curves import Curve
from runs.executing import inspect
from runs.experiment import (
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
)  # fmt: skip
from runs.recording import RunError, one_line_errors, read_json, read_scalars, read_status

RESULTS = Path(__file__).resolve().parent / "results"
BEGIN, END = "<!-- claims: written by `python -m runs report` -->", "<!-- end of claims -->"


@dataclass(frozen=True)
class Args:
    """Write the page of an experiment, and README's table of claims."""

    experiments: Annotated[tuple[str, ...], tyro.conf.arg(metavar="EXPERIMENT ...")]
    """names, as `python -m runs list` shows them, or all: those whose runs are finished; none only writes the table of
    README.md"""
    scale: str = "laptop"
    """which of its scales"""
    logs: Path = LOGS
    """where the run directories are"""
    out: Path = RESULTS
    """folder of the pages"""
    partial: bool = False
    """write a page without a verdict from the runs that are finished, NAME-SCALE-partial, beside any other"""


def results_of(jobs: Sequence[Job]) -> dict[str, Result]:
    """The finished runs of a plan, by job.

    Raises:
        RunError: a directory holds another run than the plan's, or its table has lost lines.
    """
    found = {}
    for job in jobs:
        if inspect(job).state == "finished":
            config, scalars = read_json(job.directory / "config.json"), read_scalars(job.directory)
            found[job.id] = Result(job.arm, job.world, job.seed, config, scalars)
    return found


def judged(experiment: Experiment, scale: str, results: Sequence[Result], complete: bool) -> Verdict | None:
    """What the rule says, or None where it does not speak: too small a scale, or runs missing.

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
    """When, where and from which source the runs were made."""
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
    """Of a page's files, without the ending; part of a plan never takes the place of a whole one."""
    return f"{experiment.name}-{scale}{'-partial' if partial else ''}"


def page(
    experiment: Experiment,
    scale: str,
    done: Sequence[Job],
    planned: int,
    verdict: Verdict | None,
    where: dict[str, Any],
) -> str:
    """The page in markdown; its figure lies beside it."""
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
        "Seeds thin, their mean thick, its 95 % interval (Student's) shaded as far as the axis goes.", "",
    ]  # fmt: skip
    if verdict and verdict.rows:
        lines.append(markdown(verdict.heads, verdict.rows))
        if any("±" in cell for row in verdict.rows for cell in row):
            lines += ["± is Student's 95 % interval.", ""]
    lines += [
        work(experiment, scale, done),
        "",
        f"{len(done)} runs: {arms} arms{' and worlds' if any(job.world for job in done) else ''}, seeds {seeds}. "
        f"`{run_command(experiment, scale, LOGS)}`, then `python -m runs report {experiment.word} "
        f"--scale {scale}{' --partial' if len(done) < planned else ''}`.",
        "",
        f"{' to '.join(sorted({where['first'], where['last']}))}, revision {', '.join(where['revisions'])}, torch "
        f"{', '.join(where['torch'])}, {'; '.join(where['hardware'])}, {done[0].threads} "
        f"thread{'s' * (done[0].threads > 1)} per run.",
        "",
    ]
    return "\n".join(lines)


def shortest(curves: Sequence[Curve]) -> int:
    """The last step that all of them reach."""
    return min(int(steps[-1]) for steps, _ in curves)


def work(experiment: Experiment, scale: str, done: Sequence[Job]) -> str:
    """What each run was, in a sentence: scripts, and the flags that this scale gives to all, and to each world."""
    size, there = experiment.scales[scale], {job.world for job in done} - {""}
    scripts = " and ".join(f"`agents/{name}.py`" for name in sorted({job.script for job in done}))
    given = f" with `{shlex.join(as_words(size.flags))}`" if size.flags else ""
    named = {world: shlex.join(as_words(flags)) for world, flags in size.worlds.items() if world in there}
    worlds = "; " + ", ".join(f"{world} is `{flags}`" for world, flags in named.items()) if named else ""
    shows = f"`{run_command(experiment, scale, LOGS)} --dry-run`"
    return f"Each run is {scripts}{given}, and the flags of its arm ({shows}){worlds}."


def together(tag: str, curves: Sequence[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Curves of an arm's seeds at common steps up to the last that all reach, x [points] and values [runs, points].

    Episodes are taken as means over equal windows of steps. What is recorded at fixed steps (evaluations, probes) is
    taken as it is, at the steps that all have: windows would put all of a logarithmic axis but its end into one. Where
    a step is recorded twice, or a tenth of them not by all, it is windows again.
    """
    steps = sorted(set.intersection(*(set(one.tolist()) for one, _ in curves)))
    fixed = all((np.diff(one) > 0).all() for one, _ in curves) and len(steps) >= 0.9 * min(len(c[0]) for c in curves)
    if tag.startswith("charts/episodic_") or not fixed:
        return common_points(curves, shortest(curves))
    return np.array(steps, dtype=np.float64), np.stack([values[np.isin(one, steps)] for one, values in curves])


def draw(experiment: Experiment, jobs: Sequence[Job], results: Mapping[str, Result], stem: Path) -> None:
    """The experiment's curve, one panel per world, as PNG and SVG.

    Raises:
        RunError: a run has not recorded it, matplotlib is missing, or a file cannot be written.
    """
    curves: dict[str, dict[str, list[Curve]]] = {}
    for job in jobs:
        curve = results[job.id].scalars.get(experiment.curve)
        if not curve:
            raise RunError(f"{job.directory} has recorded no {experiment.curve}")
        steps, values = np.array([step for step, _ in curve]), np.array([value for _, value in curve])
        curves.setdefault(job.world, {}).setdefault(job.arm, []).append((steps, values))
    looks = style.looks(job.arm for job in jobs)
    figure, panels = style.begin(len(curves))
    for axes, (world, arms) in zip(panels, curves.items(), strict=True):
        for arm, runs in arms.items():
            x, values = together(experiment.curve, runs)
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
    """README's table of claims, from the verdicts in a folder; a page without one is left out."""
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
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise RunError(f"{readme} has no place for the table of claims: put {BEGIN} and {END} where it shall stand")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    with one_line_errors(f"cannot write {readme}", also=(OSError,)):
        readme.write_text(f"{before}{BEGIN}\n{claims(folder)}\n{END}{after}")


def write(args: Args, experiment: Experiment) -> Path:
    """The page of one experiment, its figure and its verdict; returns the page's path.

    Raises:
        RunError: no run (NoRuns), or not every run, of the plan is finished; or as `results_of` and `judged`.
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
                f"with {run_command(experiment, args.scale, args.logs)}, or see --partial"
            )
    verdict = judged(experiment, args.scale, list(results.values()), len(done) == len(jobs))
    where = circumstances(done)
    stem = args.out / page_name(experiment, args.scale, partial)
    with one_line_errors(f"cannot write {stem}.md", also=(OSError,)):
        args.out.mkdir(parents=True, exist_ok=True)
        draw(experiment, done, results, stem)
        stem.with_name(stem.name + ".md").write_text(page(experiment, args.scale, done, len(jobs), verdict, where))
        record = {
            "experiment": name, "scale": args.scale, "claim": experiment.claim, "source": experiment.source,
            "outcome": verdict.outcome if verdict else None, "reason": verdict.reason if verdict else None,
            "runs": len(done), "planned": len(jobs), "seeds": len({job.seed for job in done}),
            "written": time.strftime("%Y-%m-%d"), **where,
        }  # fmt: skip
        stem.with_name(stem.name + ".json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return stem.with_name(stem.name + ".md")


def main(args: Args) -> None:
    """Write the pages, then the table.

    Raises:
        RunError: as `chosen` and `write`; with `all`, if no experiment has a finished run.
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
        raise RunError(f"of no experiment all runs at {args.scale} are finished in {args.logs}")
    if args.out.resolve() == RESULTS:
        write_claims()
        print("wrote the table of claims in README.md")
    elif not written:
        raise RunError(f"name an experiment: the table of README.md is written from {RESULTS}, not {args.out}")
