"""Checks that a script makes of its own flags, one line each; every one raises ValueError naming flag and value."""

from __future__ import annotations

import math
from typing import Any

import torch


def flag(name: str) -> str:
    """The field `eval_every` as it stands on a command line: `--eval-every`."""
    return f"--{name.replace('_', '-')}"


def require(condition: bool, args: Any, names: str, message: str) -> None:
    """Refuse these flags (field names, separated by spaces) together unless the condition holds."""
    if not condition:
        given = " and ".join(f"{flag(name)} {getattr(args, name)}" for name in names.split())
        raise ValueError(f"{given}: {message}")


def require_positive(args: Any, names: str) -> None:
    """Each of these must be a number above 0."""
    for name in names.split():
        if not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"{flag(name)} must be positive, got {getattr(args, name)}")


def require_not_negative(args: Any, names: str) -> None:
    """Each of these must be a number, 0 or more."""
    for name in names.split():
        if not 0 <= getattr(args, name) < math.inf:
            raise ValueError(f"{flag(name)} must be at least 0, got {getattr(args, name)}")


def require_share(args: Any, names: str) -> None:
    """Each of these must lie in [0, 1]."""
    for name in names.split():
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"{flag(name)} must lie in [0, 1], got {getattr(args, name)}")


def require_multiples(args: Any, names: str, of: str) -> None:
    """Each of these must be a multiple of the flag `of`."""
    for name in names.split():
        if getattr(args, name) % getattr(args, of):
            raise ValueError(f"{flag(name)} {getattr(args, name)} must be a multiple of {flag(of)} {getattr(args, of)}")


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
