"""The finished runs of a plan, as rules and figures read them."""

from __future__ import annotations

from collections.abc import Sequence

from runs.recording import read_json, read_scalars
from runs.sweeps.experiment import Job, Result
from runs.sweeps.run_job import inspect


def results_of(jobs: Sequence[Job]) -> dict[str, Result]:
    """The finished runs of a plan, by job.

    Raises:
        RunError: a directory holds another run than the planned one, or its table has lost lines.
    """
    results = {}
    for job in jobs:
        if inspect(job).state == "finished":
            config, scalars = read_json(job.directory / "config.json"), read_scalars(job.directory)
            results[job.id] = Result(job.arm, job.world, job.seed, config, scalars)
    return results
