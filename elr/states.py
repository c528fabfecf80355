"""Checks that a saved state fits the object that loads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def check_keys(owner: str, state: Mapping[str, Any], expected: Iterable[str]) -> None:
    """Refuse a state with missing or unknown keys.

    Args:
        owner: name of the class, for the message.
        state: what `load_state_dict` was given.
        expected: the keys that `state_dict` of this class returns.

    Raises:
        ValueError: the keys differ.
    """
    if set(state) != set(expected):
        raise ValueError(f"state has keys {sorted(state)}; {owner} needs exactly {sorted(expected)}")
