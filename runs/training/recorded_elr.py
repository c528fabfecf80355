"""The realised effective learning rates that another run recorded, for a run that is to have the same."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runs.recording import read_json, read_scalars, read_status
from runs.training.checks import flag


def recorded_elr(directory: Path, layers: Iterable[str], args: Any, same: str) -> dict[str, list[tuple[int, float]]]:
    """Per layer (update, ||dW|| / ||W||), from a projected run of the same task that is at least as long.

    Args:
        directory: of the recorded run.
        layers: names of the layers that need a rate.
        args: the script's flags, of which total_updates is read.
        same: the fields, separated by spaces, in which the two runs must agree.
    Raises:
        ValueError: the recorded run differs in such a field, is not projected, is shorter, or has no rate for a layer.
        RunError: it cannot be read.
    """
    config, scalars = read_json(directory / "config.json"), read_scalars(directory)
    for name in same.split():
        if config.get(name) != getattr(args, name):
            raise ValueError(f"{directory} has {flag(name)} {config.get(name)}, not {getattr(args, name)}")
    if not config["nap"]["enabled"]:
        raise ValueError(f"{directory} is not projected (--nap.no-enabled); give a projected run")
    if (reached := read_status(directory)["step"]) < args.total_updates:
        raise ValueError(f"{directory} ends at update {reached}, before --total-updates {args.total_updates}")
    rates = {layer: scalars.get(f"elr/{layer}", []) for layer in layers}
    if missing := [layer for layer, points in rates.items() if not points]:
        raise ValueError(f"{directory} has no elr/{missing[0]}: it is not a run of this network with its meter on")
    return rates
