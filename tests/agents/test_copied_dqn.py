"""Someone copies agents/dqn_minatar.py and edits it: the copy trains what it shows, or is refused in one line.

The yardstick is the copy itself with `--gradient autograd`, which differentiates whatever the file says.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agents import dqn_minatar
from runs.recording import RunError, load_checkpoint, read_scalars, read_status
from tests.agents import scripts

CONV_RELU, HIDDEN_RELU = (
    f"        self.{name}_relu = CReLU() if crelu else nn.ReLU()\n" for name in ("conv", "hidden")
)
HEAD = "        self.head = nn.Linear(width * (1 + crelu), actions)\n"
PROBED = '        self.probed = ["conv_relu", "hidden_relu"]'
HIDDEN = "        x = self.hidden_relu(self.hidden_norm(self.hidden(x)))  # [B, 128]\n"
OUT = "        return self.head(x)\n"
LOSS = "loss = (q - td_target).square().mean()"


def edited(tmp_path, *edits):
    """The script with each (old, new) replaced."""
    return scripts.edited(Path(dqn_minatar.__file__), tmp_path, *edits)


def run(script, directory, **changes):
    """50 updates; the final weights and the table."""
    args = {
        "total_timesteps": 150, "learning_starts": 100, "buffer_size": 200, "eval_every": 0, "log_every": 10,
        "learning_rate": 1e-3, "probe": script.ProbeArgs(every=25, size=16, meter_every=10), "directory": directory,
    }  # fmt: skip
    script.main(script.Args(**{**args, **changes}))
    assert read_status(directory)["status"] == "finished"
    return load_checkpoint(directory / "checkpoint.pt")["state"]["q_network"], read_scalars(directory)


def check(tmp_path, capsys, *edits, explicit):
    """The edited copy trains as autograd does, every parameter moves, and it says when the fast path does not apply."""
    script = edited(tmp_path, *edits)
    found, scalars = run(script, tmp_path / "auto")
    said = "gradient by autograd" in capsys.readouterr().out
    expected, _ = run(script, tmp_path / "autograd", gradient="autograd")
    assert said != explicit
    for name, weight in expected.items():
        if explicit:
            torch.testing.assert_close(found[name], weight, rtol=1e-2, atol=1e-3)
        else:
            assert torch.equal(found[name], weight), name
    still = run(script, tmp_path / "still", learning_rate=1e-30)[0]
    for name, weight in found.items():
        assert not torch.equal(weight, still[name]), f"{name} was never trained"
    if not explicit:
        with pytest.raises(RunError, match=r"--gradient explicit: ") as error:
            run(script, tmp_path / "refused", gradient="explicit")
        assert "\n" not in str(error.value) and not (tmp_path / "refused").exists()
    return scalars


def test_the_unchanged_copy_takes_the_explicit_gradient(tmp_path, capsys):
    check(tmp_path, capsys, explicit=True)


def test_a_doubled_and_an_added_hidden_layer_are_three_edits_in_the_network(tmp_path, capsys):
    scalars = check(
        tmp_path,
        capsys,
        ("filters, width = 16, 128", "filters, width = 16, 256"),
        (
            HEAD + PROBED,
            "        self.hidden2 = nn.Linear(width, width, bias=not normalised)\n"
            "        self.hidden2_norm = nn.LayerNorm(width) if normalised else nn.Identity()\n"
            "        self.hidden2_relu = nn.ReLU()\n" + HEAD + PROBED.replace("]", ', "hidden2_relu"]'),
        ),
        (HIDDEN, HIDDEN + "        x = self.hidden2_relu(self.hidden2_norm(self.hidden2(x)))\n"),
        explicit=False,
    )
    for tag in ("elr/hidden2", "norms/gradient/hidden2", "plasticity/delta_a/hidden2_relu"):
        assert scalars[tag][-1][1] > 0, tag


def test_an_added_layer_is_projected(tmp_path):
    script = edited(
        tmp_path,
        (
            HEAD,
            "        self.hidden2 = nn.Linear(width, width, bias=False)\n"
            "        self.hidden2_norm = nn.LayerNorm(width)\n" + HEAD,
        ),
        (HIDDEN, HIDDEN + "        x = torch.relu(self.hidden2_norm(self.hidden2(x)))\n"),
    )
    _, scalars = run(script, tmp_path / "r", nap=script.NapArgs(enabled=True))
    norms = [value for _, value in scalars["norms/parameter/hidden2"]]
    assert len(norms) >= 5 and max(norms) / min(norms) - 1 < 3e-5


def test_a_wider_layer_or_more_filters_keep_the_explicit_gradient(tmp_path, capsys):
    check(tmp_path, capsys, ("filters, width = 16, 128", "filters, width = 32, 256"), explicit=True)


DUELLING = (
    (HEAD, HEAD + "        self.value = nn.Linear(width, 1)\n"),
    (
        OUT,
        "        advantage = self.head(x)\n        return self.value(x) + advantage - advantage.mean(1)[:, None]\n",
    ),
)
EDITS = {
    # of the report
    "gelu": [(HIDDEN_RELU, "        self.hidden_relu = nn.GELU()\n")],
    "tanh": [(HIDDEN_RELU, "        self.hidden_relu = nn.Tanh()\n")],
    "dropout": [(OUT, "        return self.head(nn.functional.dropout(x, 0.1))\n")],
    "duelling head": DUELLING,
    "centred head": [(OUT, "        return self.head(x) - self.head(x).mean(1, keepdim=True)\n")],
    "huber loss": [(LOSS, "loss = nn.functional.smooth_l1_loss(q, td_target)")],
    "rms norm": [("nn.LayerNorm(width)", "nn.RMSNorm(width)")],
    # and others
    "leaky relu": [(CONV_RELU, "        self.conv_relu = nn.LeakyReLU(0.01)\n")],
    "scaled observations": [("self.conv(obs.to(self.head.weight.dtype))", "self.conv(obs.float() / 4)")],
    "residual": [(HIDDEN, "        h = self.hidden(x)\n        x = h + self.hidden_relu(self.hidden_norm(h))\n")],
    "padding": [
        ("kernel_size=3, bias", "kernel_size=3, padding=1, bias"),
        ("nn.LayerNorm((filters, 8, 8))", "nn.LayerNorm((filters, 10, 10))"),
        ("filters * 8 * 8", "filters * 10 * 10"),
    ],
    "clipped target": [("td_target = rewards + gamma", "td_target = rewards.clamp(-1, 1) + gamma")],
    "weight decay in the loss": [(LOSS, LOSS + " + 1e-3 * q_network.head.weight.square().sum()")],
    "undiscounted": [("rewards + gamma * (1 - terminated)", "rewards + 1.0 * (1 - terminated)")],
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_another_network_or_loss_is_trained_by_autograd_as_the_file_says(name, tmp_path, capsys):
    check(tmp_path, capsys, *EDITS[name], explicit=False)


def test_a_loss_is_changed_by_one_edit(tmp_path):
    """The Huber copy's gradient differs from the shipped script's, and only one line of it was edited."""
    script = edited(tmp_path, *EDITS["huber loss"])
    huber, _ = run(script, tmp_path / "huber")
    squared, _ = run(dqn_minatar, tmp_path / "squared")
    assert not torch.equal(huber["head.weight"], squared["head.weight"])


def test_a_changed_way_to_act_is_taken(tmp_path):
    """Acting on negated values changes what is played, although the gradient is the same."""
    script = edited(tmp_path, ("device)).cpu().numpy()", "device)).cpu().neg().numpy()"))
    greedy = {"start_e": 0.0, "end_e": 0.0}
    _, scalars = run(script, tmp_path / "own", **greedy)
    _, shipped = run(dqn_minatar, tmp_path / "shipped", **greedy)
    assert scalars["charts/episodic_length"] != shipped["charts/episodic_length"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ((PROBED, PROBED.replace("hidden_relu", "hiden_relu")), "hiden_relu"),
        (("nn.LayerNorm((filters, 8, 8))", "nn.LayerNorm((filters, 9, 9))"), "shape"),
    ],
)
def test_a_mistake_in_the_network_is_one_line(edit, message, tmp_path):
    script = edited(tmp_path, edit)
    with pytest.raises((RunError, RuntimeError), match=message):
        run(script, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_another_optimiser_falls_back_to_autograd(tmp_path, capsys):
    script = edited(tmp_path, ("FlatAdam(q_network.parameters(), lr=", "torch.optim.AdamW(q_network.parameters(), lr="))
    weights, _ = run(script, tmp_path / "adamw")
    assert "gradient by autograd" in capsys.readouterr().out
    still, _ = run(script, tmp_path / "still", learning_rate=1e-30)
    assert not any(torch.equal(weights[name], still[name]) for name in weights)


def test_gradients_cleared_by_the_module_are_learned_from(tmp_path):
    """network.zero_grad() replaces the gradients that FlatAdam laid out."""
    script = edited(
        tmp_path,
        ("q_network.zero_grad(set_to_none=False)  # FlatAdam keeps these very tensors", "q_network.zero_grad()"),
    )
    weights, _ = run(script, tmp_path / "cleared", gradient="autograd")
    expected, _ = run(dqn_minatar, tmp_path / "shipped", gradient="autograd")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_layer_defined_behind_the_head_is_not_taken_for_it(tmp_path):
    extra = "        self.extra = nn.Linear(width, width, bias=False)\n        self.extra_norm = nn.LayerNorm(width)\n"
    script = edited(
        tmp_path,
        (PROBED, extra + PROBED),
        (OUT, "        return self.head(torch.relu(self.extra_norm(self.extra(x))))\n"),
    )
    _, scalars = run(script, tmp_path / "r", nap=script.NapArgs(enabled=True))
    assert "elr/extra" in scalars and "elr/head" not in scalars
