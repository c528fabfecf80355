"""Where the scripts call the methods of --intervene, and what they give them."""

import dataclasses

import numpy as np
import pytest
import torch

from agents import ppo_control, warm_start
from elr.fast.flat_adam import FlatAdam
from elr.flags import InterventionArgs
from elr.interventions import flags
from elr.interventions.flags import Q_CHURN, InterveneArgs
from elr.interventions.methods import Method, Methods
from elr.projection import Projection
from envs.flags import ControlShiftArgs
from runs.recording import load_checkpoint
from tests.agents import test_intervene
from tests.agents.scripts import assert_same
from tests.agents.test_intervene import PROBE, recorded


def control(directory, **changes):
    """Three iterations of 64 steps and 8 updates; the task changes with the third."""
    return ppo_control.Args(
        total_timesteps=192, num_envs=4, num_steps=16, num_minibatches=4, update_epochs=2, width=16, eval_every=0,
        checkpoint_every=1, probe=PROBE, shift=ControlShiftArgs("offsets", at_steps=(128,)), directory=directory,
        **changes,
    )  # fmt: skip


SCRIPTS = {
    **{kind: (script, small) for kind, (script, small, *_) in test_intervene.SCRIPTS.items()},
    "control": (ppo_control, control),
}
L2_INIT = InterveneArgs(("l2-init",))


def saved(directory):
    return load_checkpoint(directory / "checkpoint.pt")["state"]


def watch(monkeypatch, owner, name, before=lambda *args: None, after=lambda *args: None):
    """Call these next to a method, with its arguments."""
    real = getattr(owner, name)

    def watched(*args, **kwargs):
        before(*args)
        result = real(*args, **kwargs)
        after(*args)
        return result

    monkeypatch.setattr(owner, name, watched)


@pytest.mark.parametrize("kind", SCRIPTS)
def test_gradients_are_added_before_clipping_and_weights_changed_before_the_projection(kind, tmp_path, monkeypatch):
    script, small = SCRIPTS[kind]
    clips = kind in ("ppo", "control")
    changes = {"max_grad_norm": 0.5} if clips else {}
    changes |= {} if kind in ("warm start", "grokking") else {"network": "normalised"}
    calls = []
    optimizer = {"warm start": torch.optim.Adam, "grokking": torch.optim.AdamW}.get(kind, FlatAdam)
    places = [(Methods, "before_step"), (FlatAdam, "clip_"), (optimizer, "step"), (Methods, "after_step")]
    for owner, name in (*places, (Projection, "step")):
        called = f"{owner.__name__}.{name}"
        watch(monkeypatch, owner, name, before=lambda *_, called=called: calls.append(called))
    args = small(tmp_path / "r", intervene=L2_INIT)
    script.main(dataclasses.replace(args, nap=script.NapArgs(enabled=True), **changes))
    update = ["Methods.before_step", *["FlatAdam.clip_"] * clips, f"{optimizer.__name__}.step"]
    update += ["Methods.after_step", "Projection.step"]
    assert calls == update * (len(calls) // len(update)) and len(calls) >= 20 * len(update)


@pytest.mark.parametrize("kind", [kind for kind in SCRIPTS if kind != "grokking"])  # which has no --switch
def test_l2_init_pulls_to_the_weights_that_a_switch_renewed(kind, tmp_path, monkeypatch):
    script, small = SCRIPTS[kind]
    renewed = []

    def keep(self, network, *_):
        renewed.append({name: weight.detach().clone() for name, weight in network.named_parameters()})

    watch(monkeypatch, InterventionArgs, "intervene_", after=keep)
    switch = script.SwitchArgs(intervention="reset") if kind == "warm start" else script.SwitchArgs(fresh_agent=True)
    script.main(small(tmp_path / "r", intervene=L2_INIT, switch=switch))
    state = saved(tmp_path / "r")
    methods = (state["warm"] if kind == "warm start" else state)["methods"]
    origin = methods["methods"]["l2-init"]["initial"]
    assert origin and len(renewed) == 1
    assert_same({name: renewed[0][name] for name in origin}, origin)


class Draws(Method):
    """Draws inputs and makes fresh networks, and changes nothing."""

    def __init__(self):
        self.inputs, self.networks = [], []

    def act(self, inputs, fresh):
        self.inputs.append(inputs.clone())
        self.networks.append(torch.cat([p.detach().flatten() for p in fresh().parameters()]))
        return False


@pytest.fixture
def draws(monkeypatch):
    """What is drawn at every update of the runs with --intervene."""
    drawn = Draws()

    def build(self, *_, fresh, **__):
        return Methods({"draws": drawn} if self.on else {}, when="every", every=1, fresh=fresh)

    monkeypatch.setattr(InterveneArgs, "build", build)
    return drawn


@pytest.mark.parametrize("kind", SCRIPTS)
def test_what_methods_draw_comes_from_a_stream_of_its_own(kind, tmp_path, draws):
    script, small = SCRIPTS[kind]
    script.main(small(tmp_path / "plain"))
    script.main(small(tmp_path / "drawing", intervene=L2_INIT))
    assert recorded(tmp_path / "drawing") == recorded(tmp_path / "plain")
    streams, plain = (saved(tmp_path / run)["generators"] for run in ("drawing", "plain"))
    own = streams.pop("intervene")
    assert own not in [*streams.values(), plain.pop("intervene")]
    assert_same(streams, plain)
    assert len({network.numpy().tobytes() for network in draws.networks}) == len(draws.networks) >= 20
    assert len({inputs.numpy().tobytes() for inputs in draws.inputs}) == len(draws.inputs)


def test_reference_inputs_of_warm_starting_are_images_known_so_far(tmp_path, monkeypatch, draws):
    kept = []
    watch(monkeypatch, warm_start.Pixels, "__init__", after=lambda self, *_: kept.append(self))
    args = test_intervene.warm(tmp_path / "r", intervene=L2_INIT, fractions=(0.1, 1.0))
    warm_start.main(args)
    images = kept[0].normalised(kept[0].train_x)
    place = {image.numpy().tobytes(): k for k, image in reversed(list(enumerate(images)))}
    known = round(0.1 * len(images))
    phases = [[place[x.numpy().tobytes()] for x in inputs] for inputs in draws.inputs]
    assert len(phases) == 40
    assert known - 10 < max(max(one) for one in phases[:20]) < known
    assert len(images) - 10 < max(max(one) for one in phases[20:]) and min(len(one) for one in phases) == 256


@pytest.mark.parametrize("kind", ["ppo", "control"])
def test_churn_weighs_the_loss_of_the_policy_with_its_entropy(kind, tmp_path, monkeypatch):
    script, small = SCRIPTS[kind]
    learned, given, real = [], [], script.ppo_loss

    def loss(network, batch, args):
        total, parts = real(network, batch, args)
        named = {name.removeprefix("losses/"): float(part.detach().mean()) for name, part in parts.items()}
        learned.append(named["policy_loss"] - 0.5 * named["entropy"])
        return total, parts

    monkeypatch.setattr(script, "ppo_loss", loss)
    watch(monkeypatch, Methods, "before_step", before=lambda self, reference, value: given.append(value))
    script.main(small(tmp_path / "r", intervene=InterveneArgs(("churn",)), ent_coef=0.5))
    assert given == pytest.approx(learned, rel=1e-5) and len(given) == 24


CHURN = {"dqn": Q_CHURN, "ppo": {"block": 8, "least": 1.0}, "control": {"block": 8, "least": 1.0}, "warm start": {}}


@pytest.mark.parametrize("kind", CHURN)
def test_churn_has_the_constants_of_its_source_and_a_minibatch_as_reference(kind, tmp_path, monkeypatch):
    script, small = SCRIPTS[kind]
    built, batches, real = [], [], flags.Churn
    reduction = flags.ChurnReduction

    def constructed(*args, **constants):
        built.append(constants)
        return reduction(*args, **constants)

    monkeypatch.setattr(flags, "ChurnReduction", constructed)
    monkeypatch.setattr(flags, "Churn", lambda churn, batch: batches.append(batch) or real(churn, batch))
    script.main(small(tmp_path / "r", intervene=InterveneArgs(("churn",), ratio=2.0)))
    assert built == [{"ratio": 2.0, **CHURN[kind]}] and batches == [16 if kind in ("ppo", "control") else 8]


def test_the_control_of_warm_starting_gets_no_method(tmp_path):
    """It is the same with and without the methods of the network that is warm-started."""
    for name, methods in (("plain", ()), ("methods", ("l2-init", "redo"))):
        changes = {"when": "every", "every": 5, "tau": 0.5} if methods else {}
        args = test_intervene.warm(tmp_path / name, intervene=InterveneArgs(methods, **changes))
        warm_start.main(dataclasses.replace(args, control="fresh"))
    plain, other = (saved(tmp_path / name) for name in ("plain", "methods"))
    assert_same(plain["control"], other["control"])
    assert not np.array_equal(*(next(iter(one["warm"]["network"].values())) for one in (plain, other)))
