"""The layout of TensorBoard's Custom Scalars tab: curves that answer one question are in one group."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from runs.recording.glance import FIRST, glance, title
from runs.recording.tags import TASK, check_tag

Layout = dict[str, dict[str, tuple[str, list[str]]]]

_EVALUATED = "eval/episodic_return"
_RETURNS = {
    "training return, running mean": "charts/average_return",
    "evaluation return": _EVALUATED,
    "training return, each episode": "charts/episodic_return",
}
"""A chart for each: within a chart, TensorBoard draws all curves of a run in one colour."""


def layout(
    measured: Layout,
    *,
    supervised: bool = False,
    evaluations: bool = True,
    charts: Mapping[str, Sequence[str]] | None = None,
) -> Layout:
    """Put the charts of a script before those of what it measures, in the form of TensorBoard's custom scalars.

    Args:
        measured: the charts of rates, layers and features, as `elr.layout` returns them.
        supervised: accuracy and loss come first, instead of returns.
        evaluations: the agent is evaluated; else there is no chart of that, which would stay empty.
        charts: charts of this experiment only, tags by the chart's name; they form the third group.
    Returns:
        {group: {chart: ("Multiline", [regular expression that matches one tag exactly, ...])}}. The first group shows
        the scores, the task if `charts` has it, and the last hidden layer.
    Raises:
        ValueError: a tag is not documented.
    """
    scores = {name: _chart(f"train/{name}", f"test/{name}") for name in ("accuracy", "loss")}
    if not supervised:
        scores = {name: _chart(tag) for name, tag in _RETURNS.items() if evaluations or tag != _EVALUATED}
    own = {name: _chart(*tags) for name, tags in (charts or {}).items()}
    tags = [
        check_tag(re.sub(r"\\(.)", r"\1", expression[1:-1]))  # without the anchors
        for group in measured.values()
        for _, expressions in group.values()
        for expression in expressions
    ]
    best = ["test/accuracy"] if supervised else ["charts/average_return", *([_EVALUATED] if evaluations else [])]
    best += [TASK] if [TASK] in map(list, (charts or {}).values()) else []
    return {
        FIRST: {title(tag): _chart(tag) for tag in glance([*best, *tags], *best)},
        "accuracy and loss" if supervised else "return": scores,
        **({"this experiment": own} if own else {}),
        **measured,
    }


def _chart(*tags: str) -> tuple[str, list[str]]:
    # TensorBoard matches only from the start of the tag: without the anchors fc1 would also draw fc10
    return "Multiline", [f"^{re.escape(check_tag(tag))}$" for tag in tags]
