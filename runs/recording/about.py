"""What TensorBoard's Text page says of a run: its flags, its command, and where it comes from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from runs.recording.config import flat

PLACES = ("directory", "resume")
"""flags that say where a run is, and not what it is"""


def about(config: Mapping[str, Any], defaults: Mapping[str, Any] | None, origin: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a run, in Markdown, by tag.

    Args:
        config: the configuration, nested.
        defaults: the configuration without any flag; None if it is not known.
        origin: as `provenance` returns it.
    Returns:
        "about": the command, the flags that differ from the defaults, and the provenance. "hyperparameters": all
        flags, in the form of CleanRL's.
    """
    flags, usual = flat(config), flat(defaults or {})
    parts = [f"    {shlex.join(map(str, origin['command']))}"]
    if defaults is not None:
        rows = {
            f"--{key.replace('_', '-')}": (value, usual.get(key, ""))
            for key, value in flags.items()
            if key not in PLACES and (key not in usual or usual[key] != value)
        }
        parts.append(_table("flag | value | default", rows) if rows else "All flags have their default values.")
    git, versions = origin["git"], origin["versions"]
    changed = {True: ", with uncommitted changes", False: "", None: ""}[git["dirty"]]
    known = {
        "started": origin["started"],
        "revision": f"{git['revision']}{changed}",
        "machine": f"{origin['host']}, {origin['cpu']}, {origin['cpu_count']} cores, {origin['platform']}",
        "device": origin["device"] or "not known",
        "threads": origin["threads"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    }
    parts.append(_table("origin | ", {name: (value,) for name, value in known.items()}))
    return {
        "about": "\n\n".join(parts),
        "hyperparameters": _table("param | value", {key: (value,) for key, value in flags.items()}),
    }


def _table(head: str, rows: Mapping[str, tuple[Any, ...]]) -> str:
    cells = [head.split(" | "), ["-"] * len(head.split(" | ")), *([name, *values] for name, values in rows.items())]
    return "\n".join("|" + "|".join(str(cell).replace("|", "\\|") for cell in row) + "|" for row in cells)
