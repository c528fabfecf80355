"""What is published of an experiment's runs: the numbers on which the rule decides, their curve, how they were made.

Next to the page NAME-SCALE.md are two files. NAME-SCALE.json holds the verdict and the numbers of every run, from which
anyone can apply the rule again. NAME-SCALE.csv.gz holds the curve of every run as the figure draws it (at most 200
points), with columns arm, world, seed, step, value. Both can be read back, and joined with the runs of another machine.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from runs.analysis.curves import Curve, as_curve, windowed
from runs.recording import RunError, one_line_errors, read_json, read_status
from runs.recording.files import replace_atomically
from runs.sweeps.experiment import Experiment, Job, Measured, Value, Verdict
from runs.sweeps.results import Undefined, measure, result_of

POINTS = 200
"""of a published curve, at most"""


class Key(NamedTuple):
    """Which run of a plan."""

    arm: str
    world: str
    seed: int


@dataclass(frozen=True)
class Circumstances:
    """When, where and from which revisions runs were made."""

    revisions: tuple[str, ...]
    """of the repository, seven digits, "with changes" if it was not clean"""
    first: str
    last: str
    """days on which the first began and the last ended"""
    torch: tuple[str, ...]
    hardware: tuple[str, ...]

    def joined(self, other: Circumstances) -> Circumstances:
        """Those of both."""

        def union(one: Sequence[str], two: Sequence[str]) -> tuple[str, ...]:
            return tuple(sorted({*one, *two}))

        return Circumstances(
            union(self.revisions, other.revisions),
            min(self.first, other.first),
            max(self.last, other.last),
            union(self.torch, other.torch),
            union(self.hardware, other.hardware),
        )


@dataclass(frozen=True)
class Record:
    """The finished runs of an experiment at one scale, in the order of the plan."""

    runs: Mapping[Key, Measured]
    curves: Mapping[Key, Curve]
    flags: Mapping[str, str]
    """digest of script, preset and flags by arm and task, so that only runs of the same plan are joined"""
    where: Circumstances


def key_of(job: Job | Measured) -> Key:
    """The arm, task and seed of a run."""
    return Key(job.arm, job.world, job.seed)


def digest(job: Job) -> str:
    """Eight digits that change with the job's script, preset or flags, whatever its seed."""
    flags = {name: value for name, value in job.flags.items() if name != "seed"}
    return hashlib.sha256(json.dumps([job.script, job.preset, flags], sort_keys=True).encode()).hexdigest()[:8]


def digests(jobs: Sequence[Job]) -> dict[str, str]:
    """The digests of a plan, by arm and task."""
    return {f"{job.arm}--{job.world}" if job.world else job.arm: digest(job) for job in jobs}


def collect(experiment: Experiment, jobs: Sequence[Job]) -> Record | None:
    """Measure the finished runs of a plan; None if there is none.

    Runs at a scale that is not judged may be too short for a measure; they are then kept without numbers.

    Raises:
        RunError: a directory holds another run, a run is damaged, cannot be measured or has recorded no curve.
    """
    runs, curves, done = {}, {}, []
    for job in jobs:
        if result := result_of(job):
            curve = result.scalars.get(experiment.curve)
            if not curve:
                raise RunError(f"{job.directory} has recorded no {experiment.curve}")
            try:
                runs[key_of(job)] = measure(experiment, result)
            except Undefined:
                if job.scale in experiment.judged:
                    raise
                runs[key_of(job)] = Measured(job.arm, job.world, job.seed, {})
            curves[key_of(job)] = thinned(as_curve(curve, job.directory), experiment.log_steps)
            done.append(job)
    return Record(runs, curves, digests(done), circumstances(done)) if done else None


def circumstances(jobs: Sequence[Job]) -> Circumstances:
    """When, where and from which revisions the runs of these jobs were made."""
    records = [read_json(job.directory / "provenance.json") for job in jobs]
    ends = [read_status(job.directory)["written"] for job in jobs]
    sessions = [session["git"] for record in records for session in (record, *record["resumed"])]
    return Circumstances(
        tuple(sorted({git["revision"][:7] + (" with changes" if git["dirty"] else "") for git in sessions})),
        min(r["started"] for r in records)[:10],
        max(ends)[:10],
        tuple(sorted({r["versions"]["torch"] for r in records})),
        tuple(sorted({f"{r['cpu']}, {r['cpu_count']} cores, device {r['device']}" for r in records})),
    )


def thinned(curve: Curve, log_steps: bool) -> Curve:
    """At most 200 points, with six digits: means over equal windows of steps, placed at the windows' ends.

    For a logarithmic axis they are chosen from those recorded, about evenly in the logarithm of the step: windows would
    put all early points into one.
    """
    steps, values = curve
    if len(steps) > POINTS:
        if log_steps:
            wanted = np.geomspace(max(1, steps[0]), steps[-1], POINTS)
            chosen = np.unique(np.minimum(np.searchsorted(steps, wanted), len(steps) - 1))
            steps, values = steps[chosen], values[chosen]
        else:
            edges = np.round(np.linspace(0.0, float(steps.max()), POINTS + 1))
            edges[0] = -1.0  # what was recorded at step 0 belongs to the first window
            means = windowed(curve, edges)
            known = ~np.isnan(means)
            steps, values = edges[1:][known].astype(np.int64), means[known]
    return steps, np.array([float(f"{value:.6g}") for value in values.tolist()])


def joined(record: Record | None, others: Sequence[tuple[Path, Record]], order: Sequence[Job]) -> Record | None:
    """These runs and those of other records, in the order of the plan.

    Raises:
        RunError: two records hold a run with different numbers.
    """
    for path, other in others:
        if record is None:
            record = other
            continue
        for key, run in record.runs.items():
            if run != other.runs.get(key, run):
                name = f"{key.arm}--{key.world}" if key.world else key.arm
                raise RunError(f"{path} has other numbers for {name}, seed {key.seed}, than the runs here")
        record = Record(
            {**other.runs, **record.runs},
            {**other.curves, **record.curves},
            {**other.flags, **record.flags},
            record.where.joined(other.where),
        )
    if record is None:
        return None
    keys = [key for key in map(key_of, order) if key in record.runs]
    flags = {name: record.flags[name] for name in digests(order) if name in record.flags}
    return Record({k: record.runs[k] for k in keys}, {k: record.curves[k] for k in keys}, flags, record.where)


def write(
    stem: Path, experiment: Experiment, scale: str, planned: int, record: Record, verdict: Verdict | None
) -> None:
    """STEM.json and STEM.csv.gz.

    Raises:
        RunError: they cannot be written.
    """
    head = {
        "experiment": experiment.name, "scale": scale, "claim": experiment.claim, "source": experiment.source,
        "rule": experiment.rule,
        "outcome": verdict.outcome if verdict else None, "reason": verdict.reason if verdict else None,
        "runs": len(record.runs), "planned": planned, "seeds": len({key.seed for key in record.runs}),
        "revisions": record.where.revisions, "first": record.where.first, "last": record.where.last,
        "torch": record.where.torch, "hardware": record.where.hardware, "flags": record.flags,
    }  # fmt: skip
    rows = [
        json.dumps({**key._asdict(), **{name: _as_json(value) for name, value in run.values.items()}})
        for key, run in record.runs.items()
    ]
    body = json.dumps(head, indent=2, ensure_ascii=False).removesuffix("\n}")
    text = body + ',\n  "values": [\n    ' + ",\n    ".join(rows) + "\n  ]\n}\n"
    _put(stem.with_name(f"{stem.name}.json"), text.encode())

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*Key._fields, "step", "value"])
    for key, (steps, values) in record.curves.items():
        writer.writerows([*key, step, value] for step, value in zip(steps.tolist(), values.tolist(), strict=True))
    packed = gzip.compress(table.getvalue().encode(), mtime=0)  # the same bytes each time
    _put(stem.with_name(f"{stem.name}.csv.gz"), packed)


def read(path: Path, experiment: Experiment, scale: str, jobs: Sequence[Job]) -> Record:
    """The record in NAME.json and NAME.csv.gz next to it.

    Raises:
        RunError: there is none, it is damaged, of another experiment or scale, holds no numbers of single runs, or its
            runs had other flags than the plan has now.
    """
    written = read_json(path)
    if (written.get("experiment"), written.get("scale")) != (experiment.name, scale):
        raise RunError(
            f"{path} is of {written.get('experiment')} at {written.get('scale')}, not of {experiment.name} at {scale}"
        )
    if "values" not in written:
        raise RunError(f"{path} holds no numbers of single runs: it was written before they were published")
    curves_path = path.with_suffix(".csv.gz")
    with one_line_errors(f"{path} is damaged", also=(KeyError, TypeError, ValueError)):
        runs = {}
        for row in written["values"]:
            key = Key(*(row.pop(name) for name in Key._fields))
            runs[key] = Measured(*key, {name: _from_json(value) for name, value in row.items()})
        flags: dict[str, str] = dict(written["flags"])
        lists = (tuple(written[name]) for name in ("revisions", "torch", "hardware"))
        revisions, torch, hardware = lists
        where = Circumstances(revisions, written["first"], written["last"], torch, hardware)
    with one_line_errors(f"cannot read {curves_path}", also=(OSError, EOFError, ValueError)):
        points: dict[Key, list[tuple[int, float]]] = {}
        with gzip.open(curves_path, "rt", encoding="utf-8", newline="") as file:
            for arm, world, seed, step, value in list(csv.reader(file))[1:]:
                points.setdefault(Key(arm, world, int(seed)), []).append((int(step), float(value)))
    plan, known = digests(jobs), {key_of(job) for job in jobs}
    for key, run in runs.items():
        name = f"{key.arm}--{key.world}" if key.world else key.arm
        if key not in known or flags.get(name) != plan.get(name):
            raise RunError(f"{path} holds {name}, seed {key.seed}, which is not in the plan, or has other flags there")
        if key not in points:
            raise RunError(f"{curves_path} has no curve of {name}, seed {key.seed}")
        if run.values.keys() != experiment.measures.keys() and (run.values or scale in experiment.judged):
            raise RunError(f"{path} was measured otherwise: {experiment.name} now measures other numbers of each run")
    return Record(runs, {key: as_curve(points[key], curves_path) for key in runs}, flags, where)


def _put(path: Path, data: bytes) -> None:
    def write(file: BinaryIO) -> None:
        file.write(data)

    replace_atomically(path, write)


def _as_json(value: Value) -> Any:
    """JSON has no infinity: null stands for an event that never came."""
    if isinstance(value, tuple):
        return [_as_json(one) for one in value]
    return None if value == math.inf else value


def _from_json(value: Any) -> Value:
    if isinstance(value, list):
        return tuple(float(_from_json(one)) for one in value)  # type: ignore[arg-type]
    return math.inf if value is None else float(value)
