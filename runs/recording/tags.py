"""Every scalar of our scripts, its meaning and its unit: the same tag means the same in all scripts.

Scalars of your own go under `custom/`: `run.scalar("custom/my_metric", value, step)` needs no entry here.
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from typing import NamedTuple

TASK = "shift/task"


class Tag(NamedTuple):
    """What a tag means, and the unit of its value."""

    meaning: str
    unit: str


TAGS: dict[str, Tag] = {
    "charts/episodic_return": Tag("sum of raw rewards of a training episode, when it ends", "reward"),
    "charts/average_return": Tag("mean of the last 100 training returns in this task; some 500 points", "reward"),
    "charts/episodic_length": Tag("agent decisions in a training episode, when it ends", "steps"),
    "charts/iteration_return": Tag("mean return of the iteration's episodes, those cut at its end included", "reward"),
    "charts/SPS": Tag("agent decisions per second of wall time since the previous point", "steps/s"),
    "charts/learning_rate": Tag("learning rate of the latest update", "1"),
    "charts/epsilon": Tag("chance that the agent takes a random action", "probability"),
    "eval/episodic_return": Tag("mean over evaluation episodes of the sum of raw rewards", "reward"),
    "eval/episodic_return_std": Tag("standard deviation of it over the evaluation episodes", "reward"),
    "losses/td_loss": Tag("temporal-difference loss of the latest minibatch", "loss"),
    "losses/q_values": Tag("mean predicted value of the actions in the latest minibatch", "reward"),
    "losses/policy_loss": Tag("clipped policy objective, negated", "loss"),
    "losses/value_loss": Tag("value regression loss", "loss"),
    "losses/squared_td_error": Tag("mean squared TD error of an iteration's steps, valued as they were taken", "loss"),
    "losses/entropy": Tag("mean entropy of the policy", "nats"),
    "losses/approx_kl": Tag("estimated divergence of the new policy from the one that acted", "nats"),
    "losses/clipfrac": Tag("share of samples whose probability ratio was clipped", "fraction"),
    "losses/explained_variance": Tag("1 - Var(returns - values) / Var(returns)", "fraction"),
    "elr/<layer>": Tag("realised effective learning rate ||dW|| / ||W||, dW as the optimiser took it", "1"),
    "elr_nominal/<layer>": Tag("effective learning rate that the schedule asks for: rate / ||W||", "1"),
    "norms/parameter/<layer>": Tag("Frobenius norm of the weight", "1"),
    "norms/gradient/<layer>": Tag("Frobenius norm of the gradient of the weight", "loss"),
    "norms/gradient_old": Tag("norm of the loss gradient on training images of earlier phases", "loss"),
    "norms/gradient_new": Tag("norm of the loss gradient on training images new in this phase", "loss"),
    "norms/update/<layer>": Tag("Frobenius norm of the step the optimiser took, before projection", "1"),
    "plasticity/delta_c/<layer>": Tag("change of the normalised feature covariance since the last probe", "1"),
    "plasticity/delta_a/<layer>": Tag("Frobenius norm of the change of the activation pattern", "1"),
    "plasticity/flipped_fraction/<layer>": Tag("share of probe activations that changed sign pattern", "fraction"),
    "plasticity/dead_fraction/<layer>": Tag("share of units that are positive on no probe input", "fraction"),
    "plasticity/dormant_fraction/<layer>": Tag("share of units with a normalised score of at most tau", "fraction"),
    "plasticity/effective_rank/<layer>": Tag("exp of the entropy of the normalised singular values", "rank"),
    "plasticity/stable_rank/<layer>": Tag("||F||_F^2 / ||F||_2^2", "rank"),
    "plasticity/srank/<layer>": Tag("fewest singular values that hold 1 - delta of their sum", "rank"),
    "plasticity/feature_norm/<layer>": Tag("mean Euclidean norm of a feature vector", "1"),
    "plasticity/attention_entropy/<layer>": Tag("mean over inputs and heads of the entropy of the attention", "nats"),
    "plasticity/logit_scale": Tag("root mean square of the logits, each input's mean removed", "1"),
    "theory/ratio": Tag("rate x scale of the gradient / scale of the weights", "1"),
    "theory/cosine": Tag("cosine of pre-activations before and after a step, mean over inputs", "1"),
    "theory/cosine_closed": Tag("the same in closed form", "1"),
    "theory/cosine_error": Tag("standard error of that mean", "1"),
    "theory/switched_off": Tag("share of the active units that a step switches off, mean over inputs", "fraction"),
    "theory/switched_off_closed": Tag("the same in closed form", "fraction"),
    "theory/switched_off_error": Tag("standard error of that mean", "fraction"),
    "rewarm/event": Tag("1 at the update at which the schedule was restarted", "1"),
    "rewarm/statistic": Tag("CUSUM: the sum, in standard deviations; stagnation: recent movement / largest", "1"),
    "reset/event": Tag(
        "1 where a method changed weights: reset, FIRE, ReDo, ...; for --switch see shift/boundary", "1"
    ),
    "intervene/recycled": Tag("units that ReDo has recycled so far", "units"),
    "intervene/replaced": Tag("units that continual backprop has replaced so far", "units"),
    "intervene/clipped_fraction": Tag("share of the weights and biases at the bound of weight clipping", "fraction"),
    "intervene/l2_init_penalty": Tag("penalty of L2-init", "loss"),
    "intervene/churn": Tag("divergence from the older network's outputs at the latest update", "loss"),
    "intervene/churn_strength": Tag("factor of that divergence in the next update's loss", "1"),
    "intervene/trac_scale": Tag("factor of TRAC for the displacement from the initial weights", "1"),
    TASK: Tag("index of the task being trained on", "index"),
    "physics/<layer>": Tag("a number of the simulated world that drifts, by its name", "its own"),
    "shift/boundary": Tag("1 at the step at which the task changed", "1"),
    "train/loss": Tag("loss on the training set or the latest minibatch", "loss"),
    "train/accuracy": Tag("share of training samples classified correctly", "fraction"),
    "test/loss": Tag("loss on the test set", "loss"),
    "test/accuracy": Tag("share of test samples classified correctly", "fraction"),
    "test/loss_fresh": Tag("loss on the test set of the control, a fresh network trained for comparison", "loss"),
    "test/accuracy_fresh": Tag("share of test samples that the control classifies correctly", "fraction"),
    "test/gap": Tag("accuracy of the control minus accuracy of the warm-started network", "points"),
    "test/accuracy_mirrored": Tag("the same, pairs (x, y) whose mirror (y, x) is a training sample", "fraction"),
    "test/accuracy_unmirrored": Tag("the same, for the other pairs", "fraction"),
}

CUSTOM = "custom/"
"""prefix of scalars of your own"""

_LAYER = r"[^/,\"\s]+"  # a module path such as encoder.0; no slash, so that groups keep their depth, and no CSV syntax
_OWN = rf"{CUSTOM}{_LAYER}(?:/{_LAYER})*"
_KNOWN = re.compile("|".join([*(re.escape(tag).replace("<layer>", _LAYER) for tag in TAGS), _OWN]))


@cache
def check_tag(tag: str) -> str:
    """Return `tag` if TAGS documents it, or if it begins with `custom/`.

    Raises:
        ValueError: neither; the message names the nearest documented tag.
    """
    if _KNOWN.fullmatch(tag):
        return tag
    near = _nearest(tag)
    own = re.sub(r"[^A-Za-z0-9_.-]", "_", tag.rpartition("/")[2]) or "my_metric"
    raise ValueError(
        f"{tag!r} is not a documented tag{f'; did you mean {near}?' if near else '.'} Scalars of your own go under "
        f"custom/, for instance custom/{own}; runs/recording/tags.py lists all others"
    )


def _nearest(tag: str) -> str | None:
    """The documented tag with the most similar spelling; only the part before the layer is compared."""
    head, _, layer = tag.rpartition("/")
    whole = [known for known in TAGS if not known.endswith("<layer>")]
    heads = [known.removesuffix("/<layer>") for known in TAGS if known.endswith("<layer>")]
    near = difflib.get_close_matches(tag, whole, n=1, cutoff=0.75)
    if layer:
        near += [f"{one}/{layer}" for one in difflib.get_close_matches(head, heads, n=1, cutoff=0.75)]
    return next((one for one in near if one != tag), None)
