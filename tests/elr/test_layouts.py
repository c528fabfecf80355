"""The layout draws each tag that was measured once, in the right group, and has no empty chart."""

import re

import pytest
import torch
from torch import nn

import elr


def make():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(3, 8, bias=False), nn.LayerNorm(8), nn.ReLU(),
        nn.Linear(8, 8, bias=False), nn.LayerNorm(8), nn.ReLU(),
        nn.Linear(8, 1),
    )  # fmt: skip
    return network, torch.optim.Adam(network.parameters(), lr=1e-3)


def attached(**parts):
    """A handle with a meter of weights 0 and 3 and a probe of the ReLUs 2 and 5, unless `parts` says otherwise."""
    network, optimizer = make()
    x = torch.randn(16, 3)
    defaults = {"projection": elr.NoProjection(), "meter": 2, "probe": elr.Probe(network, x, ["2", "5"], every=2)}
    return elr.attach(network, optimizer, **{**defaults, **parts}), network, optimizer, x


def drawn(groups):
    """(group, chart, expression) of every line."""
    return [(g, c, e) for g, charts in groups.items() for c, (_, expressions) in charts.items() for e in expressions]


def place(groups, tag):
    """Group and chart in which TensorBoard, which matches the start of a tag, draws it."""
    return [(group, chart) for group, chart, expression in drawn(groups) if re.match(expression, tag)]


@pytest.mark.parametrize("schedule", [None, elr.Constant(1e-3)])
def test_every_scalar_of_a_handle_is_in_one_chart_and_every_chart_has_one(schedule):
    handle, network, optimizer, x = attached(schedule=schedule)
    seen = set(handle.scalars())
    if schedule is not None:
        handle.restart()
    for _ in range(4):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
        seen |= set(handle.scalars())
    groups = elr.layout(handle)
    assert len(seen) == 1 + (schedule is not None) + 5 * 2 + 9 * 2
    assert {tag: len(place(groups, tag)) for tag in seen} == dict.fromkeys(seen, 1)
    filled = {where for tag in seen for where in place(groups, tag)}
    assert filled == {(group, chart) for group, charts in groups.items() for chart in charts}


def test_groups_in_order_with_the_metrics_that_belong_there():
    groups = elr.layout(["fc1", "fc10"], ["relu"])
    assert {group: list(charts) for group, charts in groups.items()} == {
        "rate and realised ELR": ["learning rate", "realised ELR", "nominal ELR", "re-warming"],
        "feature learning": ["delta_c", "delta_a", "flipped_fraction"],
        "plasticity": [
            "dead_fraction",
            "dormant_fraction",
            "effective_rank",
            "stable_rank",
            "srank",
            "feature_norm",
        ],
        "norms": ["parameter", "gradient", "update"],
    }
    assert list(groups) == ["rate and realised ELR", "feature learning", "plasticity", "norms"]
    assert place(groups, "elr/fc10") == [("rate and realised ELR", "realised ELR")]
    assert place(groups, "elr_nominal/fc10") == [("rate and realised ELR", "nominal ELR")]
    assert place(groups, "rewarm/statistic") == [("rate and realised ELR", "re-warming")]
    assert place(groups, "plasticity/srank/relu") == [("plasticity", "srank")]
    assert place(groups, "plasticity/delta_a/relu") == [("feature learning", "delta_a")]
    assert place(groups, "norms/update/fc1") == [("norms", "update")]


def test_a_dot_in_a_name_is_a_dot():
    groups = elr.layout(["a.b"])
    assert groups["norms"]["update"] == ("Multiline", [r"^norms/update/a\.b$"])
    assert place(groups, "norms/update/axb") == []


def test_parts_that_are_off_have_no_charts():
    bare = {"rate and realised ELR": {"learning rate": ("Multiline", ["^charts/learning_rate$"])}}
    assert elr.layout([], rewarming=False) == bare
    assert elr.layout(attached(meter=None, probe=None)[0]) == bare
    assert list(elr.layout(attached(probe=None)[0])) == ["rate and realised ELR", "norms"]
    assert list(elr.layout(attached(meter=None)[0])) == ["rate and realised ELR", "feature learning", "plasticity"]
    rates = elr.layout(attached(meter=None, probe=None, schedule=elr.Constant(1e-3))[0])["rate and realised ELR"]
    assert list(rates) == ["learning rate", "re-warming"]


def test_generators_and_dictionaries_name_layers():
    expected = elr.layout(["a", "b"], ["c"])
    assert elr.layout({"a": 1, "b": 2}, (name for name in "c")) == expected
    assert elr.layout((name for name in "ab"), ["c"]) == expected


def test_a_string_is_refused():
    with pytest.raises(ValueError, match=re.escape("layers='fc' must be a sequence of layer names: write ['fc']")):
        elr.layout("fc")
    with pytest.raises(ValueError, match=re.escape("probed='relu' must be a sequence of layer names: write ['relu']")):
        elr.layout(["fc"], "relu")


@pytest.mark.parametrize("extra", [{"probed": ["2"]}, {"probed": []}, {"rewarming": True}, {"rewarming": False}])
def test_a_handle_needs_no_names(extra):
    with pytest.raises(ValueError, match=f"{next(iter(extra))} has no effect"):
        elr.layout(attached()[0], **extra)


def test_tensorboard_reads_it_and_keeps_charts_of_your_own(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2
    from torch.utils.tensorboard import SummaryWriter

    groups = {"loss": {"loss": ("Multiline", ["^train/loss$"])}, **elr.layout(attached()[0])}
    writer = SummaryWriter(str(tmp_path))
    writer.add_custom_scalars(groups)
    writer.close()
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    [event] = accumulator.Tensors("custom_scalars__config__")
    read = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert {g.title: {c.title: ("Multiline", list(c.multiline.tag)) for c in g.chart} for g in read.category} == groups
