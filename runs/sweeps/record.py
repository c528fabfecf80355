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
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from runs.analysis.curves import Curve, as_curve, windowed
from runs.recording import RunError, one_line_errors, read_json, read_status
from runs.recording.files import failures_named, replace_atomically
from runs.sweeps.experiment import Experiment, Job, Measured, Value, Verdict
from runs.sweeps.results import Undefined, measure, result_of

POINTS = 200
"""of a published curve, at most"""


class Key(NamedTuple):
    """Which run of a plan."""

    arm: str
    world: str
    seed: int

    @property
    def group(self) -> str:
        """Arm and task, as in the names of runs."""
        return f"{self.arm}--{self.world}" if self.world else self.arm

    def __str__(self) -> str:
        return f"{self.group}, seed {self.seed}"


HEADER = [*Key._fields, "step", "value"]
"""first line of the curves' table"""


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
    """Eight digits that change with the job's script, preset or flags, or its parent's, whatever its seed."""
    flags = {name: value for name, value in job.flags.items() if name != "seed"}
    parent = [] if job.parent is None else [digest(job.parent), job.branch_step]
    return hashlib.sha256(json.dumps([job.script, job.preset, flags, *parent], sort_keys=True).encode()).hexdigest()[:8]


def digests(jobs: Sequence[Job]) -> dict[str, str]:
    """The digests of a plan, by arm and task."""
    return {key_of(job).group: digest(job) for job in jobs}


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
        RunError: two records hold a run with different numbers or curves.
    """
    for path, other in others:
        if record is None:
            record = other
            continue
        for key, run in record.runs.items():
            if run != other.runs.get(key, run):
                raise RunError(f"{path} has other numbers for {key}, than the runs here")
            pairs = zip(record.curves[key], other.curves.get(key, record.curves[key]), strict=True)
            if not all(np.array_equal(one, two, equal_nan=True) for one, two in pairs):
                raise RunError(f"{path} has another curve for {key}, than the runs here")
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


def contents(
    stem: Path, experiment: Experiment, scale: str, planned: int, record: Record, verdict: Verdict | None
) -> dict[Path, bytes]:
    """What STEM.json and STEM.csv.gz hold; `write` writes it."""
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

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(HEADER)
    for key, (steps, values) in record.curves.items():
        writer.writerows([*key, step, value] for step, value in zip(steps.tolist(), values.tolist(), strict=True))
    packed = gzip.compress(table.getvalue().encode(), mtime=0)  # the same bytes each time
    return {stem.with_name(f"{stem.name}.json"): text.encode(), stem.with_name(f"{stem.name}.csv.gz"): packed}


def changes(path: Path, new: bytes) -> str:
    """How outcome, reason, claim and rule of a published record differ from its new content; empty if they do not.

    Raises:
        RunError: the record cannot be read.
    """
    old, now = read_json(path), json.loads(new)
    return "; ".join(
        f"{name} was {json.dumps(old.get(name), ensure_ascii=False)}, now {json.dumps(now[name], ensure_ascii=False)}"
        for name in ("outcome", "reason", "claim", "rule")
        if old.get(name) != now[name]
    )


def read(path: Path, experiment: Experiment, scale: str, jobs: Sequence[Job]) -> Record:
    """The record in NAME.json and NAME.csv.gz next to it.

    Raises:
        RunError: there is none, it is damaged, of another experiment or scale, holds no numbers of single runs or a
            run twice, or its runs had other flags than the plan has now.
    """
    written = read_json(path)
    if (written.get("experiment"), written.get("scale")) != (experiment.name, scale):
        raise RunError(
            f"{path} is of {written.get('experiment')} at {written.get('scale')}, not of {experiment.name} at {scale}"
        )
    if "values" not in written:
        raise RunError(f"{path} holds no numbers of single runs: it was written before they were published")
    with one_line_errors(f"{path} is damaged", also=(KeyError, OverflowError)):
        runs = _runs(written["values"])
        flags = written["flags"]
        if not isinstance(flags, dict) or not all(isinstance(one, str) for one in flags.values()):
            raise ValueError(f"flags must be an object of strings, got {flags!r:.80}")
        revisions, torch, hardware = (_texts(name, written[name]) for name in ("revisions", "torch", "hardware"))
        first, last = written["first"], written["last"]
        if not isinstance(first, str) or not isinstance(last, str):
            raise ValueError(f"first and last must be strings, got {first!r:.80} and {last!r:.80}")
        where = Circumstances(revisions, first, last, torch, hardware)
    curves_path = path.with_suffix(".csv.gz")
    with failures_named(f"read {curves_path.name}", curves_path):
        packed = curves_path.read_bytes()
    with one_line_errors(f"{curves_path} is damaged", also=(OSError, EOFError, zlib.error, csv.Error)):
        curves = _curves(gzip.decompress(packed).decode(), curves_path)
    plan, known = digests(jobs), {key_of(job) for job in jobs}
    for key, run in runs.items():
        if key not in known or flags.get(key.group) != plan.get(key.group):
            raise RunError(f"{path} holds {key}, which is not in the plan, or has other flags there")
        if key not in curves:
            raise RunError(f"{curves_path} has no curve of {key}")
        if run.values.keys() != experiment.measures.keys() and (run.values or scale in experiment.judged):
            raise RunError(f"{path} was measured otherwise: {experiment.name} now measures other numbers of each run")
    return Record(runs, {key: curves[key] for key in runs}, flags, where)


def write(files: Mapping[Path, bytes]) -> None:
    """Replace files, one after the other, each atomically.

    Raises:
        RunError: one cannot be written.
    """
    for path, data in files.items():

        def fill(file: BinaryIO, data: bytes = data) -> None:
            file.write(data)

        replace_atomically(path, fill)


def _runs(rows: Any) -> dict[Key, Measured]:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"values must be a list of objects, one for each run, got {rows!r:.80}")
    runs = {}
    for row in rows:
        key = Key(*(row[name] for name in Key._fields))
        if [type(one) for one in key] != [str, str, int]:
            raise ValueError(
                f"a run must have the strings arm and world and a whole number seed, got {tuple(key)!r:.80}"
            )
        if key in runs:
            raise ValueError(f"it holds {key}, twice")
        runs[key] = Measured(*key, {name: _from_json(name, row[name]) for name in row if name not in Key._fields})
    return runs


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{name} must be a list of strings, got {value!r:.80}")
    return tuple(value)


def _curves(table: str, path: Path) -> dict[Key, Curve]:
    """Steps may repeat (episodes that end together) and values be nan, as a run may record both."""
    head, *lines = csv.reader(io.StringIO(table, newline="")) if table else [[]]
    if head != HEADER:
        raise ValueError(f"its first line must be {','.join(HEADER)}, got {','.join(head)!r:.80}")
    points: dict[Key, list[tuple[int, float]]] = {}
    for arm, world, seed, step, value in lines:
        points.setdefault(Key(arm, world, int(seed)), []).append((int(step), float(value)))
    curves = {key: as_curve(curve, path) for key, curve in points.items()}
    for key, (steps, _) in curves.items():
        if (np.diff(steps, prepend=0) < 0).any():
            raise ValueError(f"the steps of {key}, are not in ascending order")
    return curves


def _as_json(value: Value) -> Any:
    """JSON has no infinity: null stands for an event that never came."""
    if isinstance(value, tuple):
        return [_as_json(one) for one in value]
    return None if value == math.inf else value


def _from_json(name: str, value: Any) -> Value:
    if isinstance(value, list):
        return tuple(_number(name, one) for one in value)
    return _number(name, value)


def _number(name: str, value: Any) -> float:
    if value is None:
        return math.inf
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{name!r} must be a number, null, or a list of these, got {value!r:.80}")
    return float(value)
