"""The origin of a run: source revision, versions, machine, command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "numpy", "gymnasium", "minatar", "ale-py", "tyro", "tensorboard", "rewarm")
LOCATION = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")


def provenance(argv: Sequence[str], device: str | torch.device | None = None) -> dict[str, Any]:
    """Describe this process as plain data.

    Args:
        argv: the command line, script first; the script's directory is where the source revision is looked up.
        device: what the run computes on; None is recorded as null.
    Returns:
        JSON-ready; unknown values are null or "unknown". This never raises.
    """
    import torch

    script = Path(argv[0]) if argv else Path()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": list(argv),
        "executable": sys.executable,
        "git": git_state(script.parent),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
            "torch": str(torch.__version__),  # with its local part, +cu130 or +cpu, which pip's metadata may lack
        },
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "device": _device(device),
    }


def git_state(directory: Path) -> dict[str, Any]:
    """Revision of the source tree around `directory`, and whether the tree has changes (untracked files count)."""
    revision = _git(directory, "rev-parse", "HEAD")
    changes = _git(directory, "status", "--porcelain")
    return {"revision": revision or "unknown", "dirty": None if changes is None else bool(changes)}


def _git(directory: Path, *command: str) -> str | None:
    # Without optional locks `git status` does not write the index, as several runs may start at once. In a git hook
    # GIT_DIR and similar variables name the repository of the hook. File names need not be UTF-8.
    environment = {name: value for name, value in os.environ.items() if name not in LOCATION}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        result = subprocess.run(
            ["git", "-C", str(directory), *command],
            capture_output=True, text=True, errors="replace", timeout=10, env=environment,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _device(device: str | torch.device | None) -> str | None:
    import torch

    if device is None or torch.device(device).type != "cuda":
        return None if device is None else str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"
