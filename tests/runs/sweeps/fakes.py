"""Jobs that run the fake script, for the tests of the launcher."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs.recording import read_json
from runs.sweeps.experiment import Job

FAKE = Path(__file__).parent / "fake_agent"


def job(root: Path, name: str = "a", preset: str | None = None, **flags: Any) -> Job:
    """A run of the fake script: 20 updates with a checkpoint every 5."""
    flags = {"seed": 1, "threads": 1, "exp_name": name, "total_updates": 20, **flags}
    directory = root / "fake" / "smoke" / name
    return Job(
        f"fake/smoke/{name}", "fake", "smoke", name, "", flags["seed"], str(FAKE), preset, flags, directory, 1, 0.0
    )


def scalars(job: Job) -> bytes:
    """The table that an uninterrupted run writes."""
    seed, total = job.flags["seed"], job.flags["total_updates"]
    lines = (f"{step},test/accuracy,{(seed * 7919 + step * 31) % 101 / 100!r}\n" for step in range(1, total + 1))
    return ("step,tag,value\n" + "".join(lines)).encode()


def recorded(job: Job) -> bytes:
    """The table on disk."""
    return (job.directory / "scalars.csv").read_bytes()


def resumptions(job: Job) -> int:
    """How often the run was resumed."""
    return len(read_json(job.directory / "provenance.json")["resumed"])


def starts(job: Job) -> int:
    """How many processes launchers have started for the job."""
    return sum(line.startswith("--- ") for line in job.log.read_text().splitlines())


def wait_until(true: Callable[[], object], seconds: float = 300.0) -> None:
    """Return as soon as the condition holds."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "the condition did not become true"
        time.sleep(0.02)


def process_of(job: Job) -> int:
    """The process whose command line names the job's directory."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(job.directory).encode() in path.read_bytes().split(b"\0"):
                return int(path.parent.name)
    raise AssertionError(f"no process runs {job.id}")
