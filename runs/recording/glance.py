"""The charts that a TensorBoard page begins with: of many layers, only the last hidden one."""

from __future__ import annotations

from collections.abc import Sequence

FIRST = "at a glance"
"""name of the group"""
_GLANCE = ("delta_c", "delta_a", "dead_fraction", "dormant_fraction", "effective_rank", "stable_rank")
_DEAD = "plasticity/dead_fraction/"
REWARMED = "rewarm/events_so_far"
"""how often an arm was re-warmed up to a step; on pages of arms, where single events have no chart"""


_TITLES = {
    "charts/average_return": "training return, running mean",
    "charts/episodic_return": "training return",
    "eval/episodic_return": "evaluation return",
    "test/accuracy": "test accuracy",
    "shift/task": "task",
    "charts/learning_rate": "learning rate",
    REWARMED: "re-warmings so far",
    "elr/": "effective learning rate",
    "plasticity/delta_c/": "change of features, delta_c",
    "plasticity/delta_a/": "change of active units, delta_a",
    "plasticity/dead_fraction/": "dead units, share",
    "plasticity/dormant_fraction/": "dormant units, share",
    "plasticity/effective_rank/": "effective rank of features",
    "plasticity/stable_rank/": "stable rank of features",
    "norms/parameter/": "norm of weights",
}


def title(tag: str) -> str:
    """What a chart shows, in words: `dead units, share (actor.relu3)`."""
    start = next((start for start in _TITLES if tag == start or (start.endswith("/") and tag.startswith(start))), None)
    if start is None:
        return tag
    layer = tag.removeprefix(start)
    return f"{_TITLES[start]} ({layer})" if layer else _TITLES[start]


def weight_before(feature: str, weights: Sequence[str]) -> str | None:
    """The weight that produces a probed feature: `hidden` for `hidden_relu`, `value_hidden` for `value_relu`; or the
    last one of the feature's block, `blocks.0.down` for `blocks.0.relu`. None if there is neither.
    """
    layer, block = feature.removesuffix("_relu"), f"{feature.rpartition('.')[0]}."
    inside = [weight for weight in weights if weight.startswith(block)]
    return next((weight for weight in (layer, f"{layer}_hidden", *inside[::-1]) if weight in weights), None)


def glance(tags: Sequence[str], *curves: str) -> list[str]:
    """The tags of the first charts: the curves that matter most, the learning rate and its restarts, and ELR, feature
    learning and plasticity of the last probed layer; of an actor and a critic, the actor's. Only those in `tags`.
    """
    features = [tag.removeprefix(_DEAD) for tag in tags if tag.startswith(_DEAD)]
    features = [name for name in features if not name.startswith("critic.")] or features
    weights = [tag.removeprefix("elr/") for tag in tags if tag.startswith("elr/")]
    weight = weight_before(features[-1], weights) if features else None
    wanted = [
        *curves,
        "charts/learning_rate",
        REWARMED,
        f"elr/{weight}",
        *(f"plasticity/{name}/{feature}" for name in _GLANCE for feature in features[-1:]),
        f"norms/parameter/{weight}",
    ]
    return [tag for tag in dict.fromkeys(wanted) if tag in tags]
