"""Someone copies a PPO script and edits network or loss: the copy trains what it shows, or is refused in one line.

The yardstick is torch's own Adam and gradient clipping in place of FlatAdam: it steps whatever parameters there are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agents import ppo_atari, ppo_control, ppo_minatar
from elr.weights import scalable_weights
from runs.recording import RunError, load_checkpoint, read_scalars
from tests.agents import scripts

MINATAR, ATARI, CONTROL = (Path(script.__file__) for script in (ppo_minatar, ppo_atari, ppo_control))
RELU = "        self.hidden_relu = CReLU() if crelu else nn.ReLU()\n"
HEADS = "        self.actor, self.critic = (nn.Linear(width * (1 + crelu), outputs) for outputs in (actions, 1))\n"
ATARI_HEADS = "        self.actor, self.critic = nn.Linear(width, actions), nn.Linear(width, 1)\n"
NAMED_HEADS = 'self.heads = ["actor", "critic"]'
PROBED = 'self.probed = ["conv_relu", "hidden_relu"]'
HIDDEN = "        x = self.hidden_relu(self.hidden_norm(self.hidden(x.flatten(1))))  # [B, 128]\n"
OUT = "        return self.actor(x), self.critic(x)[:, 0]\n"
ERRORS = '    errors = (values - batch["returns"]).square()\n'
LOSS = "return policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy, parts"


class TorchAdam(torch.optim.Adam):
    """What FlatAdam stands for."""

    def __init__(self, parameters, **options):
        super().__init__(list(parameters), **options)

    def clip_(self, max_norm):
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], max_norm)


def run(script, directory, **changes):
    """One iteration of 8 updates; the final weights and the table."""
    args = {
        "total_timesteps": 128, "num_envs": 4, "num_steps": 32, "num_minibatches": 4, "update_epochs": 2,
        "eval_every": 0, "probe": script.ProbeArgs(every=4, size=16, meter_every=2), "directory": directory,
        "schedule": script.ScheduleArgs("constant"),
    }  # fmt: skip
    script.main(script.Args(**{**args, **changes}))
    return load_checkpoint(directory / "checkpoint.pt")["state"]["network"], read_scalars(directory)


def initial(script, *shape, **flags):
    """The network before the first update."""
    seed = int(np.random.SeedSequence(1).spawn(6)[0].generate_state(1)[0])
    return script.make_network(scripts.spaces(*shape), script.Args(**flags), seed, torch.device("cpu"))


def check(tmp_path, *edits, original=MINATAR, shape=(4, 3), **flags):
    """Every parameter of the edited copy moves, as under torch's Adam, and every weight is measured: those weights."""
    script = scripts.edited(original, tmp_path, *edits)
    found, scalars = run(script, tmp_path / "r", **flags)
    network = initial(script, *shape, **flags)
    for name, weight in network.state_dict().items():
        assert not torch.equal(found[name], weight), f"{name} was never trained"
    for layer in scalable_weights(network, heads=network.heads):
        assert all(value > 0 for _, value in scalars[f"elr/{layer}"] + scalars[f"norms/gradient/{layer}"]), layer
    for layer in network.probed:
        assert f"plasticity/delta_a/{layer}" in scalars
    script.FlatAdam = TorchAdam
    expected, _ = run(script, tmp_path / "adam", **flags)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-2, atol=1e-4)
    return found


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The weights that the script itself gives."""
    return run(ppo_minatar, tmp_path_factory.mktemp("shipped") / "r")[0]


ADDED = (
    (
        HEADS,
        "        self.hidden2 = nn.Linear(width, width, bias=not normalised)\n"
        "        self.hidden2_norm = nn.LayerNorm(width) if normalised else nn.Identity()\n"
        "        self.hidden2_relu = nn.ReLU()\n" + HEADS,
    ),
    (PROBED, PROBED.replace("]", ', "hidden2_relu"]')),
    (HIDDEN, HIDDEN + "        x = self.hidden2_relu(self.hidden2_norm(self.hidden2(x)))\n"),
)
EDITS = {
    # of the network
    "width 256": [("filters, width = 16, 128", "filters, width = 16, 256")],
    "32 channels": [("filters, width = 16, 128", "filters, width = 32, 128")],
    "extra layer": ADDED,
    "gelu": [(RELU, "        self.hidden_relu = nn.GELU()\n")],
    "tanh": [(RELU, "        self.hidden_relu = nn.Tanh()\n")],
    "leaky relu": [(RELU, "        self.hidden_relu = nn.LeakyReLU(0.01)\n")],
    "rms norm": [("nn.LayerNorm(width)", "nn.RMSNorm(width)")],
    "centred head": [(OUT, OUT.replace("self.actor(x)", "self.actor(x) - self.actor(x).mean(1, keepdim=True)"))],
    "deep value head": [
        (
            HEADS,
            "        self.actor = nn.Linear(width, actions)\n"
            "        self.critic = nn.Sequential(nn.Linear(width, 9), nn.ReLU(), nn.Linear(9, 1))\n",
        ),
        (NAMED_HEADS, 'self.heads = ["actor", "critic.2"]'),
        ("(self.actor, 0.01), (self.critic, 1.0)):", "(self.actor, 0.01)):"),
    ],
    "learned temperature": [
        (HEADS, HEADS + "        self.temperature = nn.Parameter(torch.ones(()))\n"),
        (OUT, OUT.replace("self.actor(x)", "self.actor(x) * self.temperature")),
    ],
    "residual": [
        (HIDDEN, "        h = self.hidden(x.flatten(1))\n        x = h + self.hidden_relu(self.hidden_norm(h))\n")
    ],
    "padding": [
        ("kernel_size=3, bias", "kernel_size=3, padding=1, bias"),
        ("nn.LayerNorm((filters, 8, 8))", "nn.LayerNorm((filters, 10, 10))"),
        ("filters * 8 * 8", "filters * 10 * 10"),
    ],
    # of the loss
    "huber loss": [(ERRORS, '    errors = F.smooth_l1_loss(values, batch["returns"], reduction="none")\n')],
    "weight decay in the loss": [(LOSS, LOSS.replace(", parts", " + network.hidden.weight.square().sum(), parts"))],
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_another_network_or_loss_is_trained_and_measured_as_the_file_says(name, tmp_path, shipped):
    found = check(tmp_path, *EDITS[name])
    if "loss" in name:  # the edit changes what is learned
        assert not torch.equal(found["hidden.weight"], shipped["hidden.weight"])


def test_a_doubled_and_an_added_hidden_layer_are_held_by_projection(tmp_path):
    script = scripts.edited(MINATAR, tmp_path, EDITS["width 256"][0], *ADDED)
    weights, scalars = run(script, tmp_path / "r", nap=script.NapArgs(enabled=True))
    assert weights["hidden.weight"].shape == (256, 1024)
    for layer in ("hidden", "hidden2"):
        norms = [value for _, value in scalars[f"norms/parameter/{layer}"]]
        assert len(norms) == 5 and max(norms) / min(norms) - 1 < 3e-5
    assert scalars["plasticity/delta_a/hidden2_relu"][-1][1] > 0


def test_the_atari_network_is_changed_in_the_same_three_places(tmp_path):
    hidden = "            x = self.hidden_relu(self.hidden_norm(self.hidden(x.flatten(1))))  # [B, 512]\n"
    script = scripts.edited(
        ATARI,
        tmp_path,
        ("width, bias = bf16, 512, not normalised", "width, bias = bf16, 1024, not normalised"),
        (
            ATARI_HEADS,
            "        self.hidden2 = nn.Linear(width, width, bias=bias)\n"
            "        self.hidden2_norm, self.hidden2_relu = norm(width), nn.ReLU()\n" + ATARI_HEADS,
        ),
        (hidden, hidden + "            x = self.hidden2_relu(self.hidden2_norm(self.hidden2(x)))\n"),
    )
    changes = {
        "env_id": "rewarm/Catch-v0", "num_envs": 2, "num_steps": 16, "total_timesteps": 32, "network": "normalised",
        "num_minibatches": 2,
    }  # fmt: skip
    weights, scalars = run(script, tmp_path / "r", nap=script.NapArgs(enabled=True), **changes)
    before = initial(script, 4, 3, network="normalised").state_dict()
    for name, weight in before.items():
        assert not torch.equal(weights[name], weight), f"{name} was never trained"
    assert weights["hidden.weight"].shape == (1024, 3136) and scalars["elr/hidden2"][-1][1] > 0
    assert weights["hidden2.weight"].norm() == pytest.approx(float(before["hidden2.weight"].norm()), rel=3e-5)


def test_dropout_trains_and_the_same_seed_draws_the_same_units(tmp_path, shipped):
    dropout = HIDDEN, HIDDEN + "        x = F.dropout(x, 0.2, self.training)\n"
    first = check(tmp_path, dropout)
    again, _ = run(scripts.edited(MINATAR, tmp_path, dropout), tmp_path / "again")
    assert all(torch.equal(first[name], weight) for name, weight in again.items())
    assert not torch.equal(first["hidden.weight"], shipped["hidden.weight"])


def test_a_frozen_layer_stays_as_it_is(tmp_path):
    script = scripts.edited(MINATAR, tmp_path, (RELU, RELU + "        self.conv.weight.requires_grad_(False)\n"))
    weights, _ = run(script, tmp_path / "r")
    network = initial(script, 4, 3)
    assert torch.equal(weights["conv.weight"], network.conv.weight)
    assert not torch.equal(weights["hidden.weight"], network.hidden.weight)


def test_a_head_has_any_name(tmp_path, shipped):
    """What is outside of the class asks the network for its heads."""
    source = MINATAR.read_text().replace("self.actor", "self.policy").replace('"actor"', '"policy"')
    path = tmp_path / "renamed.py"
    path.write_text(source)
    weights, scalars = run(scripts.edited(path, tmp_path), tmp_path / "r")
    assert torch.equal(weights["policy.weight"], shipped["actor.weight"]) and "elr/policy" not in scalars


@pytest.mark.parametrize(
    ("edits", "named"),
    [
        ([(PROBED, PROBED.replace("hidden_relu", "hiden_relu"))], "hiden_relu"),
        ([(NAMED_HEADS, NAMED_HEADS.replace("critic", "value"))], "value"),
        ([(NAMED_HEADS, NAMED_HEADS.replace(', "critic"', ""))], "critic"),  # which is not scale-invariant
        ([ADDED[0]], "hidden2"),  # which `forward` does not use
        ([(ADDED[0][0], ADDED[0][1].replace("nn.LayerNorm(width) if normalised else ", "")), *ADDED[1:]], "hidden2"),
        ([(HEADS, HEADS + "        self.memory = nn.GRUCell(width, width)\n")], "memory"),
    ],
)
def test_a_network_that_cannot_be_projected_or_probed_is_refused_in_one_line(edits, named, tmp_path):
    script = scripts.edited(MINATAR, tmp_path, *edits)
    with pytest.raises(RunError, match=named) as error:
        run(script, tmp_path / "r", nap=script.NapArgs(enabled=True))
    assert "\n" not in str(error.value) and not (tmp_path / "r").exists()


# ppo_control.py: policy and value are two networks, built by one function


LEAKY = "CReLU() if crelu else nn.LeakyReLU(0.1)"
SIZES = "(inputs + normalised, features, features)"
CONTROL_PROBED = "for i in (1, 2, 3)]"
NETS = "        self.actor, self.critic = mlp(actions), mlp(1)\n"
CONTROL_HEADS = 'self.heads = ["actor.head", "critic.head"]'
CONTROL_OUT = "        return self.actor(obs), self.critic(obs)[:, 0]\n"
VALUE = '    value_loss = (values - batch["returns"]).square().mean()\n'
FOURTH = (
    (SIZES, SIZES.replace("features)", "features, features)")),
    (CONTROL_PROBED, CONTROL_PROBED.replace("3", "3, 4")),
)
CONTROL_EDITS = {
    # of the network
    "fourth layer": FOURTH,
    "relu": [(LEAKY, "nn.ReLU()")],
    "tanh": [(LEAKY, "nn.Tanh()")],
    "rms norm": [("nn.LayerNorm(width)", "nn.RMSNorm(width)")],
    "narrow value": [
        ("def mlp(outputs: int)", "def mlp(outputs: int, width: int = width)"),
        (NETS, NETS.replace("mlp(1)", "mlp(1, 8)")),
    ],
    "learned temperature": [
        (NETS, NETS + "        self.temperature = nn.Parameter(torch.ones(()))\n"),
        (CONTROL_OUT, CONTROL_OUT.replace("self.actor(obs)", "self.actor(obs) * self.temperature")),
    ],
    # of the loss
    "huber loss": [(VALUE, '    value_loss = F.smooth_l1_loss(values, batch["returns"])\n')],
    "weight decay in the loss": [
        (LOSS, LOSS.replace(", parts", " + network.actor.hidden2.weight.square().sum(), parts"))
    ],
}
SMALL = {"width": 16}


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """The weights that ppo_control.py itself gives, by its network."""
    folder = tmp_path_factory.mktemp("control")
    return {kind: run(ppo_control, folder / kind, network=kind, **SMALL)[0] for kind in ("plain", "normalised")}


@pytest.mark.parametrize("kind", ["plain", "normalised"])
@pytest.mark.parametrize("name", CONTROL_EDITS)
def test_another_control_network_or_loss_is_trained_and_measured_as_the_file_says(name, kind, tmp_path, control):
    found = check(tmp_path, *CONTROL_EDITS[name], original=CONTROL, shape=(4, 2), network=kind, **SMALL)
    if "loss" in name:  # the edit changes what is learned
        assert not torch.equal(found["critic.hidden1.weight"], control[kind]["critic.hidden1.weight"]) or (
            not torch.equal(found["actor.hidden2.weight"], control[kind]["actor.hidden2.weight"])
        )


def test_a_fourth_layer_and_another_width_are_held_by_projection(tmp_path):
    script = scripts.edited(CONTROL, tmp_path, *FOURTH)
    weights, scalars = run(script, tmp_path / "r", nap=script.NapArgs(enabled=True), network="normalised", width=24)
    assert weights["actor.hidden4.weight"].shape == (24, 24)
    for layer in ("actor.hidden1", "actor.hidden4", "critic.hidden4"):
        norms = [value for _, value in scalars[f"norms/parameter/{layer}"]]
        assert len(norms) == 5 and max(norms) / min(norms) - 1 < 3e-5
    assert scalars["plasticity/delta_a/actor.relu4"][-1][1] > 0


def test_a_frozen_control_layer_stays_as_it_is(tmp_path):
    frozen = NETS + "        self.actor.hidden1.weight.requires_grad_(False)\n"
    script = scripts.edited(CONTROL, tmp_path, (NETS, frozen))
    weights, _ = run(script, tmp_path / "r", **SMALL)
    network = initial(script, 4, 2, **SMALL)
    assert torch.equal(weights["actor.hidden1.weight"], network.actor.hidden1.weight)
    assert not torch.equal(weights["actor.hidden2.weight"], network.actor.hidden2.weight)


@pytest.mark.parametrize(
    ("edits", "named"),
    [
        ([(CONTROL_PROBED, CONTROL_PROBED.replace("3", "4"))], "actor.relu4"),
        ([(CONTROL_HEADS, CONTROL_HEADS.replace("critic.head", "critic.out"))], "critic.out"),
        ([(CONTROL_HEADS, CONTROL_HEADS.replace(', "critic.head"', ""))], "critic.head"),  # it is not scale-invariant
        ([("bias=not normalised)", "bias=True)")], "actor.hidden1"),
        ([(NETS, NETS + "        self.memory = nn.GRUCell(width, width)\n")], "memory"),
    ],
)
def test_a_control_network_that_cannot_be_projected_or_probed_is_refused_in_one_line(edits, named, tmp_path):
    script = scripts.edited(CONTROL, tmp_path, *edits)
    with pytest.raises(RunError, match=named) as error:
        run(script, tmp_path / "r", nap=script.NapArgs(enabled=True), network="normalised", **SMALL)
    assert "\n" not in str(error.value) and not (tmp_path / "r").exists()
