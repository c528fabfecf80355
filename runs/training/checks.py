"""Checks that a script makes of its own flags, one line each; every one raises ValueError naming flag and value.

Flags are given by the names of their fields; one of a group is named with it: "nap.every" is --nap.every.
"""

from __future__ import annotations

import math
import os
from operator import attrgetter
from typing import Any

import torch


def flag(name: str) -> str:
    """The field `eval_every` as it stands on a command line: `--eval-every`; `nap.every` of a group: `--nap.every`."""
    return f"--{name.replace('_', '-')}"


def value_of(args: Any, name: str) -> Any:
    """The value of the field `eval_every`, or of `nap.every` in a group."""
    return attrgetter(name)(args)


def require(condition: bool, args: Any, names: str, message: str) -> None:
    """Refuse these flags (field names, separated by spaces) together unless the condition holds."""
    if not condition:
        given = " and ".join(f"{flag(name)} {value_of(args, name)}" for name in names.split())
        raise ValueError(f"{given}: {message}")


def require_positive(args: Any, names: str) -> None:
    """Each of these must be a number above 0."""
    for name in names.split():
        if not 0 < value_of(args, name) < math.inf:
            raise ValueError(f"{flag(name)} must be positive, got {value_of(args, name)}")


def require_not_negative(args: Any, names: str) -> None:
    """Each of these must be a number, 0 or more."""
    for name in names.split():
        if not 0 <= value_of(args, name) < math.inf:
            raise ValueError(f"{flag(name)} must be at least 0, got {value_of(args, name)}")


def require_share(args: Any, names: str) -> None:
    """Each of these must lie in [0, 1]."""
    for name in names.split():
        if not 0 <= value_of(args, name) <= 1:
            raise ValueError(f"{flag(name)} must lie in [0, 1], got {value_of(args, name)}")


def require_multiples(args: Any, names: str, of: str) -> None:
    """Each of these must be a multiple of the flag `of`; the message names all that are not."""
    wrong = [
        f"{flag(name)} {value_of(args, name)}" for name in names.split() if value_of(args, name) % value_of(args, of)
    ]
    if wrong:
        what = "a multiple" if len(wrong) == 1 else "multiples"
        raise ValueError(f"{' and '.join(wrong)} must be {what} of {flag(of)} {value_of(args, of)}")


def require_threads(args: Any) -> None:
    """--threads must be at least 1, and at most 8 for each CPU core of this machine."""
    require_positive(args, "threads")
    cores = os.cpu_count() or 1
    if args.threads > 8 * cores:
        raise ValueError(
            f"--threads must be at most {8 * cores} (8 for each CPU core of this machine), got {args.threads}"
        )


def require_device(args: Any) -> None:
    """--device must be one that this torch can compute on."""
    try:
        kind = torch.device(args.device).type
    except RuntimeError:
        raise ValueError(f"--device must be cpu or cuda (or cuda:N), got {args.device}") from None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda (or cuda:N), got {args.device}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: this torch sees no GPU; install a CUDA build or use --device cpu")
