"""PPO's gradient written out by hand: equal to autograd's, by hand on a small case, never taken where it differs."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agents import ppo_minatar as script
from agents.ppo_minatar import ActorCritic, Args, ppo_gradient, ppo_loss
from elr.fast.flat_adam import FlatAdam
from elr.fast.minatar_ppo import Loss, proved
from elr.fast.proof import NotTheSame

needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="needs the extra fast")


def random_batch(logits, values, seed=0, spread=0.4):
    """Ratios and values on both sides of each clip."""
    rng = np.random.default_rng(seed)
    size, actions = logits.shape
    chosen = torch.from_numpy(rng.integers(actions, size=size))
    logprobs = F.log_softmax(logits, 1).gather(1, chosen[:, None])[:, 0]
    noise = torch.from_numpy(rng.standard_normal((4, size)))
    return {
        "obs": torch.zeros(size, 4, 10, 10, dtype=torch.uint8), "actions": chosen,
        "logprobs": logprobs + spread * noise[0], "advantages": noise[1], "returns": values + noise[2],
        "values": values + spread * noise[3],
    }  # fmt: skip


def constants(args):
    return Loss(args.norm_adv, args.clip_coef, args.clip_vloss, args.ent_coef, args.vf_coef)


@pytest.mark.parametrize("norm_adv, clip_vloss", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("clip_coef, ent_coef, vf_coef", [(0.2, 0.01, 0.5), (0.1, 0.0, 1.0), (0.5, 0.3, 0.0)])
def test_loss_its_parts_and_its_gradient_equal_autograd(norm_adv, clip_vloss, clip_coef, ent_coef, vf_coef):
    args = Args(norm_adv=norm_adv, clip_vloss=clip_vloss, clip_coef=clip_coef, ent_coef=ent_coef, vf_coef=vf_coef)
    rng = np.random.default_rng(1)
    logits, values = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((64, 5), (64,)))
    batch = random_batch(logits, values)
    loss, parts, d_logits, d_values = constants(args)(logits.numpy(), values.numpy(), batch)
    leaves = [logits.clone().requires_grad_(), values.clone().requires_grad_()]
    expected, expected_parts = ppo_loss(lambda obs: leaves, batch, args)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-12)
    assert {name: pytest.approx(float(part), rel=1e-10) for name, part in expected_parts.items()} == parts
    assert 0.1 < parts["losses/clipfrac"] < 0.9
    for found, leaf in zip((d_logits, d_values), leaves, strict=True):
        np.testing.assert_allclose(found, leaf.grad, rtol=1e-9, atol=1e-14)


def test_one_step_by_hand():
    """pi = (3/4, 1/4), action 0 as likely as before, A = 2, V = 1, R = 3: L = -2 + 0.5 (0.5 * 4) - 0.1 H."""
    policy = np.array([0.75, 0.25])
    batch = {
        "actions": torch.tensor([0]), "logprobs": torch.tensor([math.log(0.75)]), "advantages": torch.tensor([2.0]),
        "returns": torch.tensor([3.0]), "values": torch.tensor([1.0]),
    }  # fmt: skip
    entropy = -(policy * np.log(policy)).sum()
    loss, parts, d_logits, d_values = Loss(False, 0.2, True, 0.1, 0.5)(np.log(policy)[None], np.array([1.0]), batch)
    assert loss == pytest.approx(-2 + 1 - 0.1 * entropy, rel=1e-6)
    assert parts["losses/entropy"] == pytest.approx(entropy)
    # d log pi(0) / d logits = (1/4, -1/4); d H / d logits = -pi (log pi + H)
    np.testing.assert_allclose(d_logits[0], [-2 / 4, 2 / 4] + 0.1 * policy * (np.log(policy) + entropy), rtol=1e-6)
    np.testing.assert_allclose(d_values, [0.5 * (1 - 3)])


# Proved before it is used.


def prove(make=ActorCritic, reference=ppo_gradient, normalised=True, batch_size=16, num_envs=3, **flags):
    args = Args(**flags)
    network = make(4, 3, normalised)
    optimizer = FlatAdam(network.parameters(), lr=1e-3, eps=1e-5)
    found = proved(network, partial(reference, args=args), constants(args), batch_size=batch_size, num_envs=num_envs)
    return network, optimizer, args, *found


@needs_numba
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(
    "flags",
    [
        {}, {"norm_adv": False}, {"clip_vloss": False}, {"clip_coef": 0.1, "vf_coef": 1.0}, {"clip_coef": 1e-5},
        {"clip_coef": 1000.0}, {"ent_coef": 0.0, "vf_coef": 0.0},
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_the_shipped_network_and_loss_pass(normalised, flags, seed):
    torch.manual_seed(seed)
    prove(normalised=normalised, **flags)


@needs_numba
@pytest.mark.parametrize("num_envs", [1, 5, 40])
def test_what_is_proved_works_on_the_network_itself(num_envs):
    """Also in more environments than there are steps in a minibatch."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    network, optimizer, args, gradient, actor = prove(batch_size=32, num_envs=num_envs)
    torch.set_rng_state(before)
    expected = ActorCritic(4, 3, True).state_dict()
    assert all(torch.equal(p, expected[name]) for name, p in network.state_dict().items()), "the proof changed weights"
    assert not optimizer.grad.any(), "the proof wrote gradients into the network"
    rng = np.random.default_rng(0)
    obs = torch.from_numpy((rng.random((32, 4, 10, 10)) < 0.1).astype(np.uint8))
    with torch.no_grad():
        logits, values = network(obs)
    batch = {n: x.float() if x.is_floating_point() else x for n, x in random_batch(logits, values).items()}
    batch["obs"] = obs
    loss, parts = gradient(batch)
    found = optimizer.grad.clone()
    expected_loss, expected_parts = ppo_gradient(network, optimizer, batch, args)
    torch.testing.assert_close(found, optimizer.grad, rtol=1e-3, atol=1e-6)
    assert float(loss) == pytest.approx(expected_loss.item(), rel=1e-4) and parts.keys() == expected_parts.keys()
    some = torch.from_numpy(np.resize(obs.numpy(), (num_envs, 4, 10, 10)))
    with torch.no_grad():
        for a, b in zip(actor(some), network(some), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@needs_numba
def test_the_proof_draws_nothing_from_the_global_generators():
    network, args = ActorCritic(4, 3), Args()
    FlatAdam(network.parameters(), lr=1e-3, eps=1e-5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    proved(network, partial(ppo_gradient, args=args), constants(args), batch_size=8, num_envs=2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


class ClampedLogits(ActorCritic):
    def forward(self, obs):
        logits, values = super().forward(obs)
        return logits.clamp(-200, 200), values


class ClampedValues(ActorCritic):
    def forward(self, obs):
        logits, values = super().forward(obs)
        return logits, values.clamp(max=200)


class Gelu(ActorCritic):
    def __init__(self, *args):
        super().__init__(*args)
        self.hidden_relu = nn.GELU()


class Detached(ActorCritic):
    """The critic does not train the features."""

    def forward(self, obs):
        x = self.conv_relu(self.conv_norm(self.conv(obs.to(self.conv.weight.dtype))))
        x = self.hidden_relu(self.hidden_norm(self.hidden(x.flatten(1))))
        return self.actor(x), self.critic(x.detach())[:, 0]


class Masked(ActorCritic):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("mask", torch.zeros(3))

    def forward(self, obs):
        logits, values = super().forward(obs)
        return logits + self.mask, values


class ChannelsLast(ActorCritic):
    def forward(self, obs):
        x = self.conv_relu(self.conv_norm(self.conv(obs.to(self.conv.weight.dtype))))
        x = self.hidden_relu(self.hidden_norm(self.hidden(x.permute(0, 2, 3, 1).flatten(1))))
        return self.actor(x), self.critic(x)[:, 0]


class Wider(ActorCritic):
    def __init__(self, *args):
        super().__init__(*args)
        self.conv, self.conv_norm = nn.Conv2d(4, 32, 3, bias=False), nn.LayerNorm((32, 8, 8))
        self.hidden = nn.Linear(2048, 128, bias=False)


class OtherNorm(ActorCritic):
    """Pairs of hidden units are normalised: gain and offset are shorter than the layer."""

    def __init__(self, *args):
        super().__init__(*args)
        self.hidden_norm = nn.LayerNorm(2)

    def forward(self, obs):
        x = self.conv_relu(self.conv_norm(self.conv(obs.to(self.conv.weight.dtype))))
        x = self.hidden_norm(self.hidden(x.flatten(1)).unflatten(1, (64, 2))).flatten(1)
        x = self.hidden_relu(x)
        return self.actor(x), self.critic(x)[:, 0]


class Renamed(ActorCritic):
    def __init__(self, *args):
        super().__init__(*args)
        self.body = self.hidden
        del self.hidden

    def forward(self, obs):
        x = self.conv_relu(self.conv_norm(self.conv(obs.to(self.conv.weight.dtype))))
        x = self.hidden_relu(self.hidden_norm(self.body(x.flatten(1))))
        return self.actor(x), self.critic(x)[:, 0]


def hooked(where, kind):
    class Hooked(ActorCritic):
        def __init__(self, *args):
            super().__init__(*args)
            part = self.conv.weight if where == "parameter" else self.conv
            getattr(part, kind)(lambda *numbers: None)

    return Hooked


class Half(ActorCritic):
    def __init__(self, *args):
        super().__init__(*args)
        self.half()


DIFFERS, FITS_NOT = "is not the script's own", "does not fit the network"
NETWORKS = {
    "clamped logits": (ClampedLogits, DIFFERS), "clamped values": (ClampedValues, DIFFERS), "gelu": (Gelu, DIFFERS),
    "detached": (Detached, DIFFERS), "mask": (Masked, "has buffers"), "channels last": (ChannelsLast, DIFFERS),
    "wider": (Wider, "not one of 16 3x3 filters"), "other norm": (OtherNorm, "2 and 2 numbers instead of .128, 128"),
    "renamed": (Renamed, FITS_NOT), "half": (Half, "neither in float32 nor in float64"),
    "hook of a gradient": (hooked("parameter", "register_hook"), "has hooks"),
    "hook behind a gradient": (hooked("parameter", "register_post_accumulate_grad_hook"), "has hooks"),
    "forward hook": (hooked("layer", "register_forward_hook"), "has hooks"),
}  # fmt: skip


@needs_numba
@pytest.mark.parametrize(("make", "message"), NETWORKS.values(), ids=NETWORKS)
def test_another_network_is_not_the_same(make, message):
    with pytest.raises(NotTheSame, match=message):
        prove(make)


def changed_loss(change):
    """ppo_gradient with a changed loss: change(loss, parts, network, batch) -> loss."""

    def gradient(network, optimizer, batch, args):
        loss, parts = ppo_loss(network, batch, args)
        loss = change(loss, parts, network, batch)
        optimizer.zero_grad()
        loss.backward()
        return loss.detach(), parts

    return gradient


def flags_changed(**flags):
    return lambda network, optimizer, batch, args: ppo_gradient(
        network, optimizer, batch, dataclasses.replace(args, **flags)
    )


def other_record(network, optimizer, batch, args):
    loss, parts = ppo_gradient(network, optimizer, batch, args)
    return loss, {**parts, "losses/approx_kl": parts["losses/approx_kl"] + 1}


def more_records(network, optimizer, batch, args):
    loss, parts = ppo_gradient(network, optimizer, batch, args)
    return loss, {**parts, "losses/old_approx_kl": parts["losses/approx_kl"]}


def fewer_records(network, optimizer, batch, args):
    loss, parts = ppo_gradient(network, optimizer, batch, args)
    del parts["losses/clipfrac"]
    return loss, parts


def clipped(network, optimizer, batch, args):
    found = ppo_gradient(network, optimizer, batch, args)
    optimizer.clip_(0.5)
    return found


def heads_alone(network, optimizer, batch, args):
    """Writes some gradients and leaves the others as they were."""
    loss, parts = ppo_loss(network, batch, args)
    heads = [*network.actor.parameters(), *network.critic.parameters()]
    for p, grad in zip(heads, torch.autograd.grad(loss, heads), strict=True):
        p.grad.copy_(grad)
    return loss.detach(), parts


def limited(limit):
    """ppo_gradient of a batch whose old log probabilities let no ratio beyond the limit."""

    def gradient(network, optimizer, batch, args):
        chosen = F.log_softmax(network(batch["obs"])[0], 1).gather(1, batch["actions"][:, None])[:, 0]
        near = (chosen - batch["logprobs"]).clamp(-limit, limit)
        return ppo_gradient(network, optimizer, {**batch, "logprobs": (chosen - near).detach()}, args)

    return gradient


def dual_clip(network, optimizer, batch, args):
    """No more than three times an advantage below 0 (arXiv:1912.09729)."""
    loss, parts = ppo_loss(network, batch, args)
    advantages = (batch["advantages"] - batch["advantages"].mean()) / (batch["advantages"].std() + 1e-8)
    chosen = F.log_softmax(network(batch["obs"])[0], 1).gather(1, batch["actions"][:, None])[:, 0]
    ratio = (chosen - batch["logprobs"]).exp()
    usual = torch.min(ratio * advantages, ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef) * advantages)
    dual = torch.where(advantages < 0, torch.max(usual, 3 * advantages), usual)
    loss = loss + usual.mean() - dual.mean()
    optimizer.zero_grad()
    loss.backward()
    return loss.detach(), parts


OTHERS = {
    "twice": (changed_loss(lambda loss, *_: 2 * loss), DIFFERS),
    "l2": (changed_loss(lambda loss, parts, net, batch: loss + 1e-3 * net.actor.weight.square().sum()), DIFFERS),
    "second pass": (changed_loss(lambda loss, parts, net, batch: loss + net(batch["obs"].flip(3))[1].mean()), DIFFERS),
    "other clip": (flags_changed(clip_coef=0.3), DIFFERS),
    "other entropy": (flags_changed(ent_coef=0.02), DIFFERS),
    "no value clip": (flags_changed(clip_vloss=False), DIFFERS),
    "dual clip": (dual_clip, DIFFERS),
    "ratios up to e^2": (limited(2), DIFFERS),
    "other record": (other_record, DIFFERS),
    "more records": (more_records, "losses/old_approx_kl is computed by only one"),
    "fewer records": (fewer_records, "losses/clipfrac is computed by only one"),
    "clipped": (clipped, DIFFERS),
    "heads alone": (heads_alone, DIFFERS),
}


@needs_numba
@pytest.mark.parametrize("size", [16, 256])
@pytest.mark.parametrize(("reference", "message"), OTHERS.values(), ids=OTHERS)
def test_another_loss_is_not_the_same(reference, message, size):
    with pytest.raises(NotTheSame, match=message):
        prove(reference=reference, batch_size=size)


@needs_numba
@pytest.mark.parametrize("what", ["data", "grad"])
def test_replaced_memory_is_noticed(what):
    network, _, _, gradient, _ = prove()
    batch = random_batch(torch.zeros(16, 3), torch.zeros(16))
    batch = {n: x.float() if x.is_floating_point() else x for n, x in batch.items()}
    gradient(batch)
    with torch.no_grad():
        network.hidden.weight.mul_(1.1)  # in place: seen
    gradient(batch)
    setattr(network.hidden.weight, what, network.hidden.weight.detach().clone())
    with pytest.raises(RuntimeError, match=r"hidden.weight was given other memory.*--gradient autograd"):
        gradient(batch)


@needs_numba
def test_parameters_without_gradients_are_not_written_to():
    args = Args()
    with pytest.raises(NotTheSame, match=r"no \.grad"):
        proved(ActorCritic(4, 3), partial(ppo_gradient, args=args), constants(args), batch_size=8, num_envs=2)


def test_every_constant_of_the_scripts_loss_is_handed_over():
    """A flag that ppo_loss reads and Loss does not would be dropped without a word, but for the proof."""
    tree = ast.parse(inspect.getsource(script.ppo_loss))
    read = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "args"}
    assert read == {field.name for field in dataclasses.fields(Loss)}
