"""runs.training.recorded_elr: the rates of a recorded run, and the runs that are refused as a source."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runs.recording import Run, RunError
from runs.training import recorded_elr

CONFIG = {"p": 11, "batch_size": 0, "nap": {"enabled": True}}
ARGS = SimpleNamespace(p=11, batch_size=0, total_updates=50)


def record(directory, config=None, updates=50, layers=("up", "down")):
    with Run.create(directory, {**CONFIG, **(config or {})}, argv=["script.py"]) as run:
        for layer in layers:
            run.scalar(f"elr/{layer}", 0.5, 1)
            run.scalar(f"elr/{layer}", 0.25, updates)
        run.finish(updates)
    return directory


def test_rates_are_those_of_the_layers_asked_for(tmp_path):
    rates = recorded_elr(record(tmp_path / "r"), ["down"], ARGS, "p batch_size")
    assert rates == {"down": [(1, 0.5), (50, 0.25)]}


def test_a_longer_run_is_a_source_too(tmp_path):
    assert recorded_elr(record(tmp_path / "r", updates=60), ["up"], ARGS, "p")["up"][-1] == (60, 0.25)


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ({"config": {"p": 7}}, "has --p 7, not 11"),
        ({"config": {"batch_size": 64}}, "has --batch-size 64, not 0"),
        ({"config": {"nap": {"enabled": False}}}, "is not projected"),
        ({"updates": 49}, "ends at update 49, before --total-updates 50"),
        ({"layers": ("up",)}, "has no elr/down"),
    ],
)
def test_a_run_of_another_task_or_without_its_rates_is_refused(recorded, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        recorded_elr(record(tmp_path / "r", **recorded), ["up", "down"], ARGS, "p batch_size")


def test_a_missing_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"config\.json"):
        recorded_elr(tmp_path / "nowhere", ["up"], ARGS, "p")
