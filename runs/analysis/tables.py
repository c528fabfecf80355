"""Numbers and tables as the analyses print them: three digits, an interval behind its mean, Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runs.analysis.statistics import student_interval


def shown(number: float) -> str:
    """Three digits, whole numbers from a thousand on; a dash for nan."""
    if math.isnan(number):
        return "–"
    return f"{number:,.0f}" if abs(number) >= 999.5 else f"{number:.3g}"


def with_half_width(mean: float, half: float) -> str:
    """A mean and half the width of its symmetric interval, which is left out if it is nan: `0.61 ± 0.12`."""
    return shown(mean) if math.isnan(half) else f"{shown(mean)} ± {half:.2g}"


def mean_over_seeds(values: Sequence[float]) -> str:
    """Mean, and half the width of Student's 95 % interval."""
    return with_half_width(*student_interval(values))


def markdown(heads: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown, ending with a line break."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"
