"""What the panels of methods share: how they name the methods and their constants."""

from __future__ import annotations

from collections.abc import Sequence

UNTUNED = (
    "No constant of a method was tuned here. They are of the literature, some of them for another setting than this "
    "one. Exceptions are weight-decay's 1e-3, which is our choice, and l2-init's 1e-3, which merely lies within the "
    "sweep of its source."
)
"""about the presets `BASELINES`"""


def listed(methods: Sequence[str]) -> str:
    """The methods that a rule is about, in words."""
    return f"The methods are {', '.join(methods[:-1])} and {methods[-1]}."
