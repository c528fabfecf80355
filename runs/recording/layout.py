"""The layout of TensorBoard's Custom Scalars tab: curves that answer one question are in one group."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from runs.recording.tags import check_tag

Layout = dict[str, dict[str, tuple[str, list[str]]]]

_FEATURE_LEARNING = ("delta_c", "delta_a", "flipped_fraction")
_PLASTICITY = ("dead_fraction", "dormant_fraction", "effective_rank", "stable_rank", "srank", "feature_norm")


def layout(
    layers: Sequence[str],
    probed: Sequence[str] | None = None,
    *,
    supervised: bool = False,
    rewarming: bool = True,
    charts: Mapping[str, Sequence[str]] | None = None,
) -> Layout:
    """Group the documented tags of `layers` into charts, in the form of TensorBoard's custom scalars.

    Args:
        layers: names of the layers whose weights are measured, as in the tags.
        probed: names of the layers whose features are probed; None means the same.
        supervised: accuracy and loss come first, instead of returns.
        rewarming: something can re-warm the rate; otherwise the chart would stay empty and is left out.
        charts: charts of this experiment only, tags by the chart's name; they form the second group.
    Returns:
        {group: {chart: ("Multiline", [regular expression that matches one tag exactly, ...])}}.
    Raises:
        ValueError: no layer is given, or a name cannot stand in a tag.
    """
    probed = layers if probed is None else probed
    if not layers:
        raise ValueError("a layout needs at least one layer, got none")
    returns = {"return": {"episodic return": _chart("charts/episodic_return", "eval/episodic_return")}}
    accuracy = {
        "accuracy and loss": {name: _chart(f"train/{name}", f"test/{name}") for name in ("accuracy", "loss")},
    }
    own = {name: _chart(*tags) for name, tags in (charts or {}).items()}
    return {
        **(accuracy if supervised else returns),
        **({"this experiment": own} if own else {}),
        "rate and realised ELR": {
            "learning rate": _chart("charts/learning_rate"),
            "realised ELR": _per_layer("elr", layers),
            "nominal ELR": _per_layer("elr_nominal", layers),
            **({"re-warming": _chart("rewarm/event", "rewarm/statistic")} if rewarming else {}),
        },
        "feature learning": {name: _per_layer(f"plasticity/{name}", probed) for name in _FEATURE_LEARNING},
        "plasticity": {name: _per_layer(f"plasticity/{name}", probed) for name in _PLASTICITY},
        "norms": {name: _per_layer(f"norms/{name}", layers) for name in ("parameter", "gradient", "update")},
    }


def _per_layer(prefix: str, layers: Sequence[str]) -> tuple[str, list[str]]:
    return _chart(*(f"{prefix}/{layer}" for layer in layers))


def _chart(*tags: str) -> tuple[str, list[str]]:
    # TensorBoard matches only from the start of the tag: without the anchors fc1 would also draw fc10
    return "Multiline", [f"^{re.escape(check_tag(tag))}$" for tag in tags]
