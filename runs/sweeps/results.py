"""The finished runs of a plan, as figures read them, and their numbers, as rules do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from runs.analysis.curves import Curve, Scalars, joined, read_table
from runs.recording import RunError, read_json, read_scalars
from runs.recording.directory import CONFIG, PROVENANCE
from runs.sweeps.experiment import Experiment, Job, Measured, Result
from runs.sweeps.run_job import inspect


class Undefined(RunError):
    """A measure is not defined for a run, which may be too short for it."""


def result_of(job: Job) -> Result | None:
    """What a job's run recorded; None if it is not finished, or if one that it branches from is not.

    Raises:
        RunError: its directory holds another run than the planned one, or its table has lost lines.
    """
    above: Job | None = job
    while above is not None:
        if inspect(above).state != "finished":
            return None
        above = above.parent
    return Result(job.arm, job.world, job.seed, read_json(job.directory / CONFIG), scalars_of(job))


def scalars_of(job: Job) -> Scalars:
    """What a run recorded; of a branch with what its parent recorded until then."""
    if job.parent is None:
        return read_scalars(job.directory)
    return {tag: list(zip(*map(np.ndarray.tolist, curve), strict=True)) for tag, curve in curves_of(job).items()}


def curves_of(job: Job) -> Mapping[str, Curve]:
    """The same as arrays."""
    own = read_table(job.directory)
    if job.parent is None:
        return own
    return joined(curves_of(job.parent), own, int(read_json(job.directory / PROVENANCE)["branch"]["step"]))


def results_of(jobs: Sequence[Job]) -> dict[str, Result]:
    """The finished runs of a plan, by job.

    Raises:
        RunError: as `result_of`.
    """
    results = {job.id: result_of(job) for job in jobs}
    return {name: result for name, result in results.items() if result}


def measure(experiment: Experiment, result: Result) -> Measured:
    """The numbers of a run that the rule reads.

    Raises:
        Undefined: one is not defined for this run, as no episode ended when it should have, for instance.
        RunError: one cannot be measured at all, as the run records no such tag or flag.
    """
    values = {}
    for name, of in experiment.measures.items():
        try:
            value = of(result)
        except KeyError as error:
            raise RunError(f"{experiment.name}: {name} cannot be measured: there is no {error}") from error
        except (ValueError, ArithmeticError) as error:
            raise Undefined(f"{experiment.name}: {name} cannot be measured: {error}") from error
        if any(map(math.isnan, value if isinstance(value, tuple) else [value])):
            where = f" in {result.world}" if result.world else ""
            raise Undefined(f"{experiment.name}: {name} is undefined for {result.arm}, seed {result.seed}{where}")
        values[name] = value
    return Measured(result.arm, result.world, result.seed, values)
