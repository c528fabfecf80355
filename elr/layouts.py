"""The layout of TensorBoard's Custom Scalars tab: curves that answer one question are in one group."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from elr.attachment import Attachment
from elr.measure import Meter
from elr.metrics import CHANGE_METRICS, MOMENT_METRICS
from elr.probe import Probe

Layout = dict[str, dict[str, tuple[str, list[str]]]]
"""{group: {chart: ("Multiline", [regular expression that matches one tag exactly, ...])}}"""


def layout(
    layers: Iterable[str] | Attachment, probed: Iterable[str] | None = None, *, rewarming: bool | None = None
) -> Layout:
    """Group the tags of `Meter`, `Probe` and `attach` into charts, one line per layer.

        writer = SummaryWriter()
        writer.add_custom_scalars(elr.layout(handle))

    `add_custom_scalars` keeps the last layout only. To have charts of your own in it, merge the dictionaries; the
    anchors ^ and $ keep TensorBoard, which matches the start of a tag, from drawing fc10 in the chart of fc1:

        {"loss": {"loss": ("Multiline", ["^train/loss$", "^test/loss$"])}, **elr.layout(handle)}

    Args:
        layers: what `elr.attach` returned: its meter, probe and schedule give the charts. Or the names of the layers
            whose weights are measured, as in the tags; may be empty.
        probed: names of the layers whose features are probed; None means none. Not with a handle.
        rewarming: something can re-warm the rate; None means yes. Not with a handle.

    Returns:
        Charts that would stay empty are left out: without measured layers the effective learning rates and the norms,
        without probed ones feature learning and plasticity, and re-warming.

    Raises:
        ValueError: one name instead of a sequence, or `probed` or `rewarming` next to a handle.
    """
    if isinstance(layers, Attachment):
        given = {"probed": probed is not None, "rewarming": rewarming is not None}
        if unused := [name for name, used in given.items() if used]:
            raise ValueError(f"{', '.join(unused)} has no effect: layout(handle) knows its parts. Leave it out")
        return _grouped(*_measured(layers), rewarming=layers.rewarming is not None)
    for name, names in (("layers", layers), ("probed", probed)):
        if isinstance(names, str):
            raise ValueError(f"{name}={names!r} must be a sequence of layer names: write [{names!r}]")
    return _grouped(list(layers), list(probed or ()), rewarming=rewarming is not False)


def _measured(handle: Attachment) -> tuple[list[str], list[str]]:
    """Names of the layers that a handle's meter and probe measure."""
    meter, probe = handle.meter, handle.probe
    return (
        list(meter._layers) if isinstance(meter, Meter) else [],
        list(probe._modules) if isinstance(probe, Probe) else [],
    )


def _grouped(layers: list[str], probed: list[str], *, rewarming: bool) -> Layout:
    elr = {"realised ELR": _per_layer("elr", layers), "nominal ELR": _per_layer("elr_nominal", layers)}
    events = {"re-warming": _chart(["rewarm/event", "rewarm/statistic"])}
    measured: Layout = {
        "rate and realised ELR": {
            "learning rate": _chart(["charts/learning_rate"]),
            **(elr if layers else {}),
            **(events if rewarming else {}),
        },
    }
    if probed:
        for group, metrics in (("feature learning", CHANGE_METRICS), ("plasticity", MOMENT_METRICS)):
            measured[group] = {name: _per_layer(f"plasticity/{name}", probed) for name in metrics}
    if layers:
        norms = ("parameter", "gradient", "update")
        measured["norms"] = {name: _per_layer(f"norms/{name}", layers) for name in norms}
    return measured


def _per_layer(prefix: str, layers: Sequence[str]) -> tuple[str, list[str]]:
    return _chart([f"{prefix}/{layer}" for layer in layers])


def _chart(tags: Sequence[str]) -> tuple[str, list[str]]:
    return "Multiline", [f"^{re.escape(tag)}$" for tag in tags]
