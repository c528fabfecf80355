"""Compute in float32 for a moment, in a script that has --bf16."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def in_float32(network: Any) -> Iterator[None]:
    """Switch off `network.bf16`, and restore it afterwards, also after an exception.

    Projection checks that the output ignores the scale of the weights. The rounding of bfloat16 would look like a
    dependence on it.

    Args:
        network: a module whose `forward` reads its attribute `bf16`, a bool.
    """
    bf16, network.bf16 = network.bf16, False
    try:
        yield
    finally:
        network.bf16 = bf16
