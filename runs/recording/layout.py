"""The layout of TensorBoard's Custom Scalars tab: curves that answer one question are in one group."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from runs.recording.tags import check_tag

Layout = dict[str, dict[str, tuple[str, list[str]]]]


def layout(measured: Layout, *, supervised: bool = False, charts: Mapping[str, Sequence[str]] | None = None) -> Layout:
    """Put the charts of a script before those of what it measures, in the form of TensorBoard's custom scalars.

    Args:
        measured: the charts of rates, layers and features, as `elr.layout` returns them.
        supervised: accuracy and loss come first, instead of returns.
        charts: charts of this experiment only, tags by the chart's name; they form the second group.
    Returns:
        {group: {chart: ("Multiline", [regular expression that matches one tag exactly, ...])}}.
    Raises:
        ValueError: a tag is not documented.
    """
    returns = {"return": {"episodic return": _chart("charts/episodic_return", "eval/episodic_return")}}
    accuracy = {
        "accuracy and loss": {name: _chart(f"train/{name}", f"test/{name}") for name in ("accuracy", "loss")},
    }
    own = {name: _chart(*tags) for name, tags in (charts or {}).items()}
    for group in measured.values():
        for _, expressions in group.values():
            for expression in expressions:
                check_tag(re.sub(r"\\(.)", r"\1", expression[1:-1]))  # without the anchors
    return {
        **(accuracy if supervised else returns),
        **({"this experiment": own} if own else {}),
        **measured,
    }


def _chart(*tags: str) -> tuple[str, list[str]]:
    # TensorBoard matches only from the start of the tag: without the anchors fc1 would also draw fc10
    return "Multiline", [f"^{re.escape(check_tag(tag))}$" for tag in tags]
