"""Tags and layout: documented and own tags, suggestions, and charts that draw each tag once."""

import re

import pytest

import elr
from runs.recording import TAGS, check_tag, layout
from runs.recording.glance import FIRST, title

LAYERS = ["fc1", "fc10", "encoder.0"]


def concrete():
    return [tag.replace("<layer>", layer) for tag in TAGS for layer in (LAYERS if "<layer>" in tag else [""])]


def test_every_documented_tag_is_accepted_and_has_meaning_and_unit():
    assert all(check_tag(tag) == tag for tag in concrete())
    assert all(tag.meaning and tag.unit for tag in TAGS.values())


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "elr",
        "elr/",
        "elr/a/b",
        "elr/a,b",
        "elr/a\n",
        "charts/sps",
        "charts/SPS/x",
        "xcharts/SPS",
        "plasticity/rank/fc1",
    ],
)
def test_undocumented_tags_are_refused(tag):
    with pytest.raises(ValueError, match=re.escape(repr(tag))):
        check_tag(tag)


@pytest.mark.parametrize(
    ("tag", "near"),
    [
        ("losses/tdloss", "losses/td_loss"),
        ("charts/episodic_retrun", "charts/episodic_return"),
        ("norms/paramter/fc1", "norms/parameter/fc1"),
    ],
)
def test_mistyped_tag_gets_a_suggestion(tag, near):
    with pytest.raises(ValueError, match=rf"did you mean {near}\? .*go under custom/"):
        check_tag(tag)


def test_unknown_tag_is_told_where_own_scalars_go():
    with pytest.raises(ValueError, match=r"charts/my_metric' is not .* tag\. Scalars .* instance custom/my_metric;"):
        check_tag("charts/my_metric")


@pytest.mark.parametrize("tag", ["custom/my_metric", "custom/entropy/fc1", "custom/a.b-c"])
def test_own_tags_go_under_custom(tag):
    assert check_tag(tag) == tag


@pytest.mark.parametrize("tag", ["custom", "custom/", "custom/a b", "custom/a,b", "custom//a", "custom/a/"])
def test_own_tags_must_fit_into_the_table(tag):
    with pytest.raises(ValueError, match=re.escape(repr(tag))):
        check_tag(tag)


def drawn(groups):
    """Every expression of a layout."""
    return [e for charts in groups.values() for kind, expressions in charts.values() for e in expressions]


def test_each_chart_expression_matches_one_documented_tag():
    groups = layout(elr.layout(LAYERS, LAYERS))
    assert list(groups) == [FIRST, "return", "rate and realised ELR", "feature learning", "plasticity", "norms"]
    expressions = drawn({name: group for name, group in groups.items() if name != FIRST})
    assert len(expressions) == len(set(expressions)) == 6 + (2 + 3 + 6 + 3) * len(LAYERS)
    assert set(drawn({FIRST: groups[FIRST]})) < set(expressions)
    for expression in expressions:
        assert len([tag for tag in concrete() if re.match(expression, tag)]) == 1


def test_tensorboard_reads_the_layout(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    from runs.recording import Run

    run = Run.create(tmp_path, {}, argv=["x.py"])
    run.layout(elr.layout(LAYERS, LAYERS), supervised=True)
    run.finish(0)
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    [event] = accumulator.Tensors("custom_scalars__config__")
    read = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert {c.title: [chart.title for chart in c.chart] for c in read.category} == {
        group: list(charts) for group, charts in layout(elr.layout(LAYERS, LAYERS), supervised=True).items()
    }


@pytest.mark.parametrize("name", ["a/b", "a b"])
def test_layers_that_no_tag_may_name_are_refused(name):
    with pytest.raises(ValueError, match=f"'elr/{name}' is not a documented tag"):
        layout(elr.layout([name]))


def test_supervised_layout_starts_with_accuracy_and_loss():
    groups = layout(elr.layout(LAYERS), supervised=True)
    assert list(groups)[:2] == [FIRST, "accuracy and loss"] and "return" not in groups
    assert next(iter(groups[FIRST])) == "test accuracy"
    assert groups["accuracy and loss"]["accuracy"] == ("Multiline", ["^train/accuracy$", "^test/accuracy$"])
    assert {name: groups[name] for name in list(groups)[2:]} == elr.layout(LAYERS)


def test_layout_with_own_charts():
    groups = layout(elr.layout(LAYERS), supervised=True, charts={"gap": ["test/gap"]})
    assert list(groups)[1:3] == ["accuracy and loss", "this experiment"]
    assert groups["this experiment"] == {"gap": ("Multiline", ["^test/gap$"])}
    with pytest.raises(ValueError, match="not a documented tag"):
        layout(elr.layout(LAYERS), charts={"x": ["no/tag"]})


def test_first_group_shows_returns_apart_and_the_last_hidden_layer_only():
    measured = elr.layout(["conv", "hidden"], ["conv_relu", "hidden_relu"])
    groups = layout(measured, charts={"task": ["shift/task"]})
    first = list(groups[FIRST])
    assert next(iter(groups)) == FIRST
    scores = ["training return, running mean", "evaluation return", "task"]
    assert first[:5] == [*scores, "learning rate", "effective learning rate (hidden)"]
    assert groups[FIRST]["dead units, share (hidden_relu)"][1] == ["^plasticity/dead_fraction/hidden_relu$"]
    assert not [name for name in first if "conv" in name or "/" in name]
    assert all(len(expressions) == 1 for _, expressions in groups["return"].values())  # no two in one colour


def test_first_group_without_measurements():
    groups = layout(elr.layout([], rewarming=False))
    assert list(groups[FIRST]) == ["training return, running mean", "evaluation return", "learning rate"]


def test_titles_are_words_where_there_are_any():
    assert title("plasticity/delta_c/blocks.0.relu") == "change of features, delta_c (blocks.0.relu)"
    assert title("charts/learning_rate") == "learning rate" and title("elr/w") == "effective learning rate (w)"
    assert title("my/own") == "my/own" and title("charts/learning_rate_2") == "charts/learning_rate_2"
