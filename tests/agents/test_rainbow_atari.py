"""The shipped Rainbow: noisy layers, network, loss, flags, runs; its learning is in test_catch_learning.py."""

from __future__ import annotations

import dataclasses
import inspect
import math
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents import rainbow_atari as script
from agents.rainbow_atari import (
    PRESETS,
    Args,
    NapArgs,
    NoisyLinear,
    ProbeArgs,
    QNetwork,
    ResetArgs,
    RewarmArgs,
    ScheduleArgs,
    ShiftArgs,
    SwitchArgs,
    categorical_projection,
    cross_entropies,
    double_q_target,
    draw_noise_,
    dueling,
    expected_returns,
    td_gradient,
)
from elr import projection as projection_module
from elr.interventions import reset_
from elr.projection import Projection
from elr.scale_invariance import check_scale_invariance
from elr.weights import partners, scalable_weights
from envs.replay import Priorities
from envs.worlds import ScreenWorld
from runs.recording import NonFiniteError, load_checkpoint, parse, read_scalars, read_status
from runs.recording.video import MAX_FRAMES
from tests.agents import scripts
from tests.agents.scripts import assert_same

SUPPORT = torch.linspace(-10, 10, 51, dtype=torch.float64)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(rng(seed).standard_normal(shape))


def make_network(normalised: bool = True, actions: int = 3, seed: int = 0) -> QNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return QNetwork(actions, SUPPORT.float(), 0.1, normalised)


def frames(batch: int, seed: int = 0) -> np.ndarray:
    return rng(seed).integers(256, size=(batch, 4, 84, 84), dtype=np.uint8)


# noisy layers


def noisy_layer(bias: bool = True, in_features: int = 7, out_features: int = 5) -> NoisyLinear:
    layer = NoisyLinear(in_features, out_features, bias, 0.5).double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=i))
    return layer


@pytest.mark.parametrize("bias", [True, False])
def test_a_noisy_layer_is_the_literal_sum(bias):
    layer, x = noisy_layer(bias), normal(3, 7, seed=9)
    draw_noise_(layer, rng(4))
    eps = rng(4).standard_normal(12, dtype=np.float32)
    f = [math.copysign(math.sqrt(abs(float(e))), float(e)) for e in eps]
    with torch.no_grad():
        y, y_mean = layer(x), layer.eval()(x)
    mu, sigma = layer.weight.tolist(), layer.weight_sigma.tolist()
    for b in range(3):
        for j in range(5):
            literal = mean = 0.0
            for i in range(7):
                literal += (mu[j][i] + sigma[j][i] * f[7 + j] * f[i]) * float(x[b, i])
                mean += mu[j][i] * float(x[b, i])
            if bias:
                literal += layer.bias[j].item() + layer.bias_sigma[j].item() * f[7 + j]
                mean += layer.bias[j].item()
            assert float(y[b, j]) == pytest.approx(literal, rel=1e-5)  # the noise is float32
            assert float(y_mean[b, j]) == pytest.approx(mean, rel=1e-12)


def test_noise_has_rank_one_and_the_moments_of_its_definition():
    layer = noisy_layer()
    draw_noise_(layer, rng(1))
    with torch.no_grad():
        weights = layer(torch.eye(7, dtype=torch.float64)) - layer(torch.zeros(1, 7, dtype=torch.float64))
        noise = (weights.T - layer.weight) / layer.weight_sigma
    singular = torch.linalg.svdvals(noise)
    assert singular[0] > 1 and singular[1] < 1e-12 * singular[0]
    wide = NoisyLinear(50_000, 1, True, 0.1)
    draw_noise_(wide, rng(2))
    f = wide.noise_in.double()
    # f^2 = |eps| and f^4 = eps^2: means sqrt(2/pi) and 1, and 5 standard errors of n = 50,000
    assert abs(float(f.mean())) < 5 * math.sqrt(math.sqrt(2 / math.pi) / 50_000)
    assert float(f.square().mean()) == pytest.approx(math.sqrt(2 / math.pi), abs=5 * math.sqrt((1 - 2 / math.pi) / 5e4))
    assert float((f**4).mean()) == pytest.approx(1.0, abs=5 * math.sqrt(2 / 5e4))


def test_noise_comes_from_its_generator_alone_and_differs_at_each_draw():
    network = make_network()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    stream, seen = rng(3), []
    for _ in range(2):
        draw_noise_(network, stream)
        seen.append(network.value_hidden.noise_in.clone())
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    assert not torch.equal(*seen)
    other = make_network()
    draw_noise_(other, rng(3))
    assert torch.equal(other.value_hidden.noise_in, seen[0])
    layers = [network.value_hidden, network.value, network.advantage_hidden, network.advantage]
    noise = torch.cat([part for layer in layers for part in (layer.noise_in, layer.noise_out)])
    assert len(noise) == 2 * (3136 + 512) + (512 + 51) + (512 + 3 * 51)
    assert len(noise.unique()) > len(noise) - 10  # no two layers share theirs
    assert not any("noise" in name for name in network.state_dict())


def test_means_and_noise_scales_start_as_specified():
    layer = make_network().value_hidden
    assert layer.bias is None and layer.bias_sigma is None
    mu, bound = layer.weight.detach().double(), 1 / math.sqrt(3136)
    assert float(mu.abs().max()) <= bound
    assert float(mu.square().mean()) == pytest.approx(bound**2 / 3, rel=0.01)
    assert torch.all(layer.weight_sigma == torch.tensor(0.1 / math.sqrt(3136)))
    head = make_network().value
    assert torch.all(head.bias_sigma == torch.tensor(0.1 / math.sqrt(512))) and head.bias.abs().max() <= 512**-0.5


def test_noise_scales_learn_and_noise_does_not():
    layer, x = noisy_layer(), normal(4, 7, seed=3)
    draw_noise_(layer, rng(5))
    layer(x).sum().backward()
    outer = torch.outer(layer.noise_out, layer.noise_in)
    torch.testing.assert_close(layer.weight_sigma.grad, layer.weight.grad * outer)
    torch.testing.assert_close(layer.bias_sigma.grad, 4 * layer.noise_out)
    assert not layer.noise_in.requires_grad


# the network


@pytest.mark.parametrize("normalised", [True, False])
def test_the_network_is_dueling_over_atoms(normalised):
    network = make_network(normalised)
    draw_noise_(network, rng(0))
    obs = torch.from_numpy(frames(2))
    with torch.no_grad():
        logits, q = network.logits(obs), network(obs)
        head_inputs = []
        for head in (network.value, network.advantage):
            handle = head.register_forward_hook(lambda _, __, y: head_inputs.append(y.double()))
            network(obs)
            handle.remove()
    value, advantage = head_inputs
    for b in range(2):
        for j in range(51):
            column = [float(advantage[b, 51 * a + j]) for a in range(3)]
            for a in range(3):
                literal = float(value[b, j]) + column[a] - sum(column) / 3
                assert float(logits[b, a, j]) == pytest.approx(literal, abs=1e-5)
        for a in range(3):
            weights = [math.exp(float(x)) for x in logits[b, a]]
            literal = sum(w * float(z) for w, z in zip(weights, SUPPORT, strict=True)) / sum(weights)
            assert float(q[b, a]) == pytest.approx(literal, abs=1e-4)


def test_pixels_reach_the_first_convolution_between_zero_and_one():
    network, seen = make_network(), []
    network.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.tensor([0, 51, 255], dtype=torch.uint8).repeat(4 * 84 * 28).view(1, 4, 84, 84))
    assert seen[0].unique().tolist() == pytest.approx([0, 0.2, 1], rel=1e-6) and seen[0].dtype == torch.float32


def test_a_constant_added_to_all_advantages_changes_nothing():
    value, advantage = normal(2, 51), normal(2, 4, 51, seed=1)
    torch.testing.assert_close(dueling(value, advantage + 7 * value[:, None]), dueling(value, advantage))
    torch.testing.assert_close(dueling(value, advantage).mean(1), value)


def test_plain_and_normalised_differ_in_norms_and_biases_only():
    plain, normalised = make_network(False), make_network(True)
    hidden = ["conv1", "conv2", "conv3", "value_hidden", "advantage_hidden"]
    for name in hidden:
        assert normalised.get_submodule(name).bias is None and plain.get_submodule(name).bias is not None
    norms = [m for m in normalised.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 5 and not any(isinstance(m, nn.LayerNorm) for m in plain.modules())
    shapes = lambda n: {k: v.shape for k, v in n.state_dict().items() if "weight" in k and "norm" not in k}  # noqa: E731
    assert shapes(plain) == shapes(normalised)


# the distributional update


def literal_projection(z: list[float], reward: float, discount: float, p: list[float]) -> list[float]:
    """Bellemare et al. 2017, Algorithm 1."""
    spacing = (z[-1] - z[0]) / (len(z) - 1)
    m = [0.0] * len(z)
    for z_j, p_j in zip(z, p, strict=True):
        b = (min(max(reward + discount * z_j, z[0]), z[-1]) - z[0]) / spacing
        b = round(b) if abs(b - round(b)) < 1e-9 else b
        low, high = math.floor(b), math.ceil(b)
        if low == high:
            m[low] += p_j
        else:
            m[low] += p_j * (high - b)
            m[high] += p_j * (b - low)
    return m


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_projection_equals_the_literal_loop(dtype):
    returns = torch.cat([normal(60) * 4, torch.tensor([0.0, 0.4, -2.8, 10.0, -10.0, 25.0, -25.0, 3.0])]).to(dtype)
    discounts = torch.tensor([0.99**3, 0.99, 0.0, 1.0] * 17).to(dtype)
    p = (normal(68, 51, seed=1) * 2).softmax(1).to(dtype)
    projected = categorical_projection(SUPPORT.to(dtype), returns, discounts, p)
    literal = [
        literal_projection(SUPPORT.tolist(), *row)
        for row in zip(returns.tolist(), discounts.tolist(), p.tolist(), strict=True)
    ]
    accurate = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(projected.double(), torch.tensor(literal, dtype=torch.float64), rtol=0, atol=accurate)
    torch.testing.assert_close(projected.sum(1), torch.ones(68, dtype=dtype), rtol=0, atol=accurate)


def one_at(atom: int) -> Tensor:
    return nn.functional.one_hot(torch.tensor([atom]), 51).double()


@pytest.mark.parametrize(
    ("reward", "discount", "atom", "expected"),
    [
        (0.0, 1.0, 17, {17: 1.0}),  # stays where it is
        (0.4, 1.0, 17, {18: 1.0}),  # exactly one atom on
        (0.1, 1.0, 17, {17: 0.75, 18: 0.25}),
        (-0.3, 1.0, 17, {16: 0.75, 17: 0.25}),
        (1.0, 1.0, 50, {50: 1.0}),  # beyond both ends
        (-1.0, 1.0, 0, {0: 1.0}),
        (100.0, 0.0, 3, {50: 1.0}),
        (-100.0, 0.0, 3, {0: 1.0}),
        (9.9, 0.0, 3, {49: 0.25, 50: 0.75}),  # next to an end
        (-9.7, 0.0, 3, {0: 0.25, 1: 0.75}),
        (1.0, 0.0, 3, {27: 0.5, 28: 0.5}),  # terminated: the reward, whatever was expected
        (0.0, 0.5, 35, {30: 1.0}),  # half of 4 is 2
        (1.0, 0.5, 35, {32: 0.5, 33: 0.5}),  # 1 + 2 = 3
    ],
)
def test_projection_by_hand(reward, discount, atom, expected):
    returns, discounts = (torch.tensor([number], dtype=torch.float64) for number in (reward, discount))
    projected = categorical_projection(SUPPORT, returns, discounts, one_at(atom))[0]
    wanted = torch.zeros(51, dtype=torch.float64)
    for index, share in expected.items():
        wanted[index] = share
    torch.testing.assert_close(projected, wanted, rtol=0, atol=1e-12)


def test_projection_keeps_the_mean_within_the_support():
    returns, p = normal(40).clamp(-1, 1), (normal(40, 51, seed=2) * 3).softmax(1)
    discounts = torch.full((40,), 0.9).double()
    projected = categorical_projection(SUPPORT, returns, discounts, p)
    torch.testing.assert_close(projected @ SUPPORT, returns + discounts * (p @ SUPPORT))


def test_the_online_network_chooses_and_the_target_network_values():
    """Two actions, three atoms -1, 0, 1; n-step return 0.5 with what gamma = 0.5 leaves of three steps."""
    z = torch.tensor([-1.0, 0.0, 1.0]).double()
    p = torch.tensor([[0.1, 0.1, 0.8], [0.5, 0.25, 0.25]]).double()  # the target network prefers action 0
    next_q = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]).double()  # the online one action 1, 0, 0
    returns, discounts = torch.tensor([0.5, 0.5, 0.5]).double(), torch.tensor([0.125, 0.125, 0.0]).double()
    target = double_q_target(z, returns, discounts, next_q, p.log().expand(3, 2, 3))
    # Atoms land at 0.375, 0.5, 0.625: between 0 and 1. Of 1, the mean is 0.5 + 0.125 * mean.
    for row, share in enumerate([0.5 + 0.125 * -0.25, 0.5 + 0.125 * 0.7, 0.5]):
        torch.testing.assert_close(target[row], torch.tensor([0.0, 1 - share, share]).double())


def test_cross_entropy_and_its_gradient_by_formula():
    """d / d logit = w / B (p - m) of the action taken, 0 of the others."""
    logits = normal(4, 3, 51).requires_grad_()
    target, actions, weights = normal(4, 51, seed=1).softmax(1), torch.tensor([2, 0, 1, 1]), normal(4, seed=2).abs()
    losses = cross_entropies(logits, actions, target)
    (losses * weights).mean().backward()
    for b, a in enumerate(actions.tolist()):
        total = sum(math.exp(x) for x in logits[b, a].tolist())
        p = [math.exp(x) / total for x in logits[b, a].tolist()]
        assert losses[b].item() == pytest.approx(
            -sum(m * math.log(q) for m, q in zip(target[b].tolist(), p, strict=True))
        )
        expected = torch.zeros(3, 51, dtype=torch.float64)
        expected[a] = float(weights[b]) / 4 * (torch.tensor(p, dtype=torch.float64) - target[b])
        torch.testing.assert_close(logits.grad[b], expected)


def test_an_update_is_the_literal_one_with_three_draws_of_noise():
    q_network, target_network = make_network(seed=0), make_network(seed=1)
    obs, next_obs = frames(3), frames(3, seed=1)
    batch = [obs, np.array([0, 2, 1]), np.float32([1, -1, 0.3]), next_obs, np.float32([0.97, 0, 0.99])]
    weights = np.array([1.0, 0.5, 0.25])
    losses, q = td_gradient(q_network, target_network, batch, weights, rng=rng(7))
    gradients = {name: p.grad.clone() for name, p in q_network.named_parameters()}
    q_network.zero_grad()

    stream, mean_loss = rng(7), 0.0
    with torch.no_grad():
        draw_noise_(q_network, stream)
        best = q_network(torch.from_numpy(next_obs)).argmax(1).tolist()
        draw_noise_(target_network, stream)
        next_p = target_network.logits(torch.from_numpy(next_obs)).softmax(2).double()
        draw_noise_(q_network, stream)
    for b in range(3):
        m = literal_projection(SUPPORT.tolist(), float(batch[2][b]), float(batch[4][b]), next_p[b, best[b]].tolist())
        p = q_network.logits(torch.from_numpy(obs[b : b + 1]))[0, batch[1][b]].softmax(0)
        loss = -(torch.tensor(m) * p.log()).sum()
        mean_loss = mean_loss + weights[b] * loss / 3
        assert losses[b].item() == pytest.approx(loss.item(), rel=1e-4)
        assert q[b].item() == pytest.approx(float(p.detach().double() @ SUPPORT), abs=1e-4)
    mean_loss.backward()
    for name, parameter in q_network.named_parameters():
        expected, got = parameter.grad, gradients[name]
        assert float((got - expected).norm()) <= 1e-4 * float(expected.norm()), name
        assert expected.norm() > 0, name
    assert all(p.grad is None for p in target_network.parameters())


class Table(nn.Module):
    """One state, whose values a noisy layer holds."""

    def __init__(self):
        super().__init__()
        self.layer = NoisyLinear(1, 2 * 51, True, 0.1)
        self.register_buffer("support", SUPPORT.float())

    def logits(self, obs: Tensor) -> Tensor:
        return self.layer(obs).unflatten(1, (2, 51))

    def forward(self, obs: Tensor) -> Tensor:
        return expected_returns(self.logits(obs), self.support)


@pytest.mark.parametrize(("discount", "value"), [(0.5, 2.0), (0.0, 1.0)])
def test_a_loop_with_reward_one_is_worth_one_over_one_minus_gamma(discount, value):
    torch.manual_seed(0)
    online, target = Table(), Table()
    noise, optimizer = rng(0), torch.optim.Adam(online.parameters(), lr=0.1)
    ones = np.ones((8, 1), dtype=np.float32)
    batch = [ones, np.array([0, 1] * 4), np.float32([1] * 8), ones, np.float32([discount] * 8)]
    for update in range(150):
        if update % 10 == 0:
            target.load_state_dict(online.state_dict())
        td_gradient(online, target, batch, np.ones(8), rng=noise)
        optimizer.step()
    learned = online.eval()(torch.ones(1, 1))[0]
    torch.testing.assert_close(learned, torch.full((2,), value), rtol=0, atol=0.1)


# projection of the network


def noisy_forward(network: QNetwork, obs: Tensor) -> Tensor:
    draw_noise_(network, rng(11))
    with torch.no_grad():
        return network.logits(obs)


def test_projection_rescales_means_and_noise_scales_together_and_leaves_the_heads():
    network, obs = make_network().double(), torch.from_numpy(frames(4))
    projection = Projection(network, heads=network.heads, gains="free", check_inputs=obs)
    hidden = ["conv1", "conv2", "conv3", "value_hidden", "advantage_hidden"]
    assert list(projection.weights) == hidden
    radii = {}
    for name in hidden:
        layer = network.get_submodule(name)
        parts = [layer.weight, layer.weight_sigma] if isinstance(layer, NoisyLinear) else [layer.weight]
        radii[name] = math.sqrt(sum(float(part.detach().square().sum()) for part in parts))
        assert projection.norms[name] == pytest.approx(radii[name], rel=1e-12)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.3).add_(0.02 * normal(*parameter.shape, seed=parameter.numel()) * parameter.std())
    before, output = {k: v.clone() for k, v in network.state_dict().items()}, noisy_forward(network, obs)
    projection.step(0.0)
    after = noisy_forward(network, obs)
    assert float((after - output).norm() / output.norm()) < 1e-4  # the eps of LayerNorm
    for name, value in network.state_dict().items():
        module, _, what = name.rpartition(".")
        if module not in hidden:
            assert torch.equal(value, before[name]), name
            continue
        both = [before[f"{module}.{part}"] for part in ("weight", "weight_sigma") if f"{module}.{part}" in before]
        assert what in ("weight", "weight_sigma")
        scalar = radii[module] / math.sqrt(sum(float(part.square().sum()) for part in both))
        assert 0.7 < scalar < 0.8
        torch.testing.assert_close(value, before[name] * scalar, rtol=1e-12, atol=0)


def test_projecting_the_means_alone_would_change_the_function():
    network, obs = make_network().double(), torch.from_numpy(frames(4))
    before = noisy_forward(network, obs)
    with torch.no_grad():
        network.value_hidden.weight.mul_(0.75)
    alone = noisy_forward(network, obs)
    with torch.no_grad():
        network.value_hidden.weight_sigma.mul_(0.75)
    together = noisy_forward(network, obs)
    assert float((alone - before).norm()) > 100 * float((together - before).norm())


def test_the_plain_network_is_refused_and_every_dependent_layer_named():
    network, obs = make_network(False), torch.from_numpy(frames(4))
    weights = scalable_weights(network, heads=network.heads)
    with pytest.raises(ValueError, match="depends on the scale of") as failure:
        check_scale_invariance(network, obs, weights)
    assert all(f"'{name}' (" in str(failure.value) for name in weights)
    found = partners(network, weights)
    assert found["value_hidden"] is network.value_hidden.weight_sigma and found["conv1"] is None


# flags and presets


def test_every_flag_is_read():
    assert scripts.unread_flags(script) == []
    names = {f.name for f in dataclasses.fields(Args)} | {f.name for f in dataclasses.fields(SwitchArgs)}
    assert not names & {"start_e", "end_e", "exploration_steps", "exploration"}


PONG_AND_BREAKOUT = ShiftArgs("games", every_steps=20_000, games=("ALE/Breakout-v5",))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        # one of each group: its check is called
        ({"nap": NapArgs(every=3)}, ["--nap.every", "--nap.enabled"]),
        ({"nap": NapArgs(enabled=True)}, ["--nap.enabled", "--network normalised"]),
        ({"schedule": ScheduleArgs("one-cycle"), "learning_rate": 1e-6}, ["--schedule.low", "--learning-rate"]),
        ({"rewarm": RewarmArgs("every")}, ["--rewarm.trigger", "--schedule.kind"]),
        ({"shift": ShiftArgs(every_steps=9)}, ["--shift.every-steps", "--shift.kind none"]),
        ({"shift": ShiftArgs("rewards", 99, values=(1.0, 9.0))}, ["--shift.values", "--clip-rewards"]),
        ({"switch": SwitchArgs(replay="clear")}, ["--switch.replay", "--shift.kind none"]),
        (
            {"switch": SwitchArgs(fresh_agent=True, target="copy"), "shift": PONG_AND_BREAKOUT},
            ["--switch.target", "--switch.fresh-agent"],
        ),
        ({"reset": ResetArgs(layers="head")}, ["--reset.layers", "--reset.at-steps"]),
        ({"probe": ProbeArgs(size=1)}, ["--probe.size must be at least 2"]),
        # the script's own
        ({"v_min": 3.0, "v_max": 3.0}, ["--v-min 3", "--v-max 3"]),
        ({"v_max": math.inf}, ["--v-max inf"]),
        ({"n_atoms": 1}, ["--n-atoms 1"]),
        ({"noisy_sigma": 0.0}, ["--noisy-sigma"]),
        ({"max_grad_norm": math.nan}, ["--max-grad-norm"]),
        ({"gamma": 1.0}, ["--gamma 1"]),
        ({"prioritized_replay_beta": 1.5}, ["--prioritized-replay-beta"]),
        ({"prioritized_replay_alpha": -1.0}, ["--prioritized-replay-alpha"]),
        (
            {"prioritized_replay_alpha": 0.0, "prioritized_replay_beta": 0.5},
            ["--prioritized-replay-beta", "--prioritized-replay-alpha 0"],
        ),
        (
            {"prioritized_replay_uniform": 1.0, "prioritized_replay_alpha": 0.6},
            ["--prioritized-replay-alpha", "--prioritized-replay-uniform 1"],
        ),
        ({"num_envs": 3}, ["--buffer-size", "--num-envs"]),
        ({"num_envs": 8, "checkpoint_every": 50}, ["--checkpoint-every", "--num-envs"]),
        ({"buffer_size": 7, "batch_size": 4}, ["--buffer-size 7", "--n-step 3"]),
        ({"batch_size": 64, "buffer_size": 32}, ["--batch-size 64", "--buffer-size 32"]),
        ({"learning_starts": 5, "num_envs": 2}, ["--learning-starts 5", "--n-step 3", "--num-envs 2"]),
        ({"total_timesteps": 20_000}, ["--learning-starts 20000", "--total-timesteps 20000"]),
        ({"eval_every": 0, "eval_epsilon": 0.1}, ["--eval-epsilon", "--eval-every"]),
        ({"eval_every": 0, "record_video": True}, ["--record-video", "--eval-every 0"]),
        ({"device": "abacus"}, ["--device", "abacus"]),
        # where groups meet the script's flags
        (
            {"switch": SwitchArgs(replay="clear"), "shift": PONG_AND_BREAKOUT},
            ["--switch (replay", "--learning-starts 20000"],
        ),
        (
            {"rewarm": RewarmArgs("cusum", refractory=30_000), "schedule": ScheduleArgs("one-cycle")},
            ["--rewarm.refractory", "--rewarm.block"],
        ),
        (
            {
                "rewarm": RewarmArgs("cusum"), "schedule": ScheduleArgs("one-cycle"), "learning_starts": 3,
                "n_step": 1, "num_envs": 2,
            },
            ["--learning-starts 3", "--rewarm.trigger cusum"],
        ),
    ],
)  # fmt: skip
def test_flags_that_contradict_or_do_nothing_are_refused_by_name(changes, named):
    with pytest.raises(ValueError) as error:
        Args(**changes)
    message = str(error.value)
    assert "\n" not in message
    assert all(name in message for name in named), message


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("chain-nap --network plain", ["--nap.enabled", "--network normalised", "chain-nap"]),
        ("low-utd-early-stop --learning-rate 1e-7", ["--schedule.low", "--learning-rate"]),
    ],
)
def test_on_the_command_line_a_refusal_is_one_line(words, named, capsys):
    with pytest.raises(SystemExit) as end:
        parse(Args, PRESETS, shlex.split(words))
    message = capsys.readouterr().err.strip()
    assert end.value.code == 2
    assert "\n" not in message
    assert all(name in message for name in named), message


def schedule_of(args: Args):
    return args.schedule.build(args.learning_rate, args.updates)


def test_the_papers_low_update_to_data_arms():
    """arXiv:2507.20057, Sec. 6: Rainbow with NaP, 200M frames, one update in four steps, rate 6.25e-5 at its peak."""
    names = ("constant", "one-cycle", "four-cycles", "reset", "reset-cycles", "early-stop")
    arms = {name: PRESETS[f"low-utd-{name}"].args for name in names}
    for args in arms.values():
        assert (args.total_timesteps * 4, args.replay_ratio, args.learning_rate) == (200_000_000, 0.25, 6.25e-5)
        assert (args.nap, args.network, args.weight_decay) == (NapArgs(enabled=True), "normalised", 0)
        assert args.protocol == "classic"  # "following the protocol used by (Hessel et al. 2018)"
    kinds = {name: args.schedule.kind for name, args in arms.items()}
    assert [kinds[name] for name in names] == [
        "constant", "one-cycle", "cyclic", "constant", "cyclic", "cyclic-then-constant"
    ]  # fmt: skip
    frames = {name: 4 * args.schedule.period_steps for name, args in arms.items() if kinds[name] != "constant"}
    assert frames["one-cycle"] == 200_000_000
    assert {frames[name] for name in ("four-cycles", "reset-cycles", "early-stop")} == {50_000_000}
    for name in names:
        resets = [4 * step for step in arms[name].reset.at_steps]
        assert resets == ([50_000_000, 100_000_000, 150_000_000] if "reset" in name else [])
        assert arms[name].reset.layers == "all"


def test_the_papers_low_update_to_data_schedules():
    quarter = 50_000_000 // 4 // 4  # updates
    early = schedule_of(PRESETS["low-utd-early-stop"].args)
    assert [early(3 * quarter), early(4 * quarter - 1)] == [1e-7, 1e-7]
    assert early(3 * quarter - quarter // 2) > 3e-5
    one = schedule_of(PRESETS["low-utd-one-cycle"].args)
    rates = [one(update) for update in range(0, 4 * quarter, quarter // 20)]
    top = int(np.argmax(rates))
    assert max(rates) == 6.25e-5
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    four = schedule_of(PRESETS["low-utd-four-cycles"].args)
    assert [four(cycle * quarter) for cycle in range(4)] == [1e-6] * 4


def test_the_papers_high_update_to_data_arms():
    """arXiv:2507.20057, App. A.3: rates, cycles, budget."""
    arms = {name: PRESETS[f"high-utd-{name}"].args for name in ("baseline", "low", "cyclic", "cyclic-annealed")}
    for args in arms.values():
        assert (args.replay_ratio, args.total_timesteps, args.network) == (1, 50_000_000, "plain")
        assert (args.nap.enabled, args.weight_decay) == (False, 0)
    assert [args.learning_rate for args in arms.values()] == [6.25e-5, 1e-6, 6.25e-5, 6.25e-5]
    assert arms["cyclic"].schedule == ScheduleArgs("cyclic", 1e-6, 20_000_000 // 4, 0.1, 10)  # as Fig. 7's curves
    early = arms["cyclic-annealed"].schedule
    assert (early.kind, early.low, early.cycles) == ("cyclic-then-constant", 1e-6, 10)
    assert 4 * early.period_steps == 4_000_000
    assert PRESETS["high-utd-weight-decay"].args.weight_decay == 1e-2


def test_every_preset_parses_and_differs():
    named = "quick-low-utd-reset-cycles"
    assert parse(Args, PRESETS, [named, "--seed", "5"]) == dataclasses.replace(PRESETS[named].args, seed=5)
    assert all(preset.args.exp_name == name for name, preset in PRESETS.items())
    assert len({repr(dataclasses.replace(preset.args, exp_name="")) for preset in PRESETS.values()}) == len(PRESETS)
    assert dataclasses.replace(PRESETS["baseline"].args, exp_name="rainbow") == Args()
    chains = {name for name in PRESETS if name.startswith("chain-")}
    assert chains == {f"chain-{arm}" for arm in ("plain", "fresh", "nap", "switch", "cusum")}


def test_quick_arms_have_a_hundredth_of_the_budget():
    arms = {name.removeprefix("quick-") for name in PRESETS if name.startswith("quick-")}
    assert len(arms) == 10
    assert {name for name in arms if "low-utd" in name} == {name for name in PRESETS if name.startswith("low-utd")}
    for name in arms:
        whole, quick = PRESETS[name].args, PRESETS[f"quick-{name}"].args
        assert quick.total_timesteps * 100 == whole.total_timesteps
        assert [step * 100 for step in quick.reset.at_steps] == list(whole.reset.at_steps)
        if whole.schedule.kind != "constant":
            assert quick.schedule.period_steps * 100 == whole.schedule.period_steps
        for same in ("nap", "network", "replay_ratio", "learning_rate"):
            assert getattr(quick, same) == getattr(whole, same)


def test_the_defaults_are_dqn_zoos():
    """Its flags, in agent steps."""
    args = Args()
    assert (args.learning_rate, args.adam_eps) == (0.00025 / 4, 0.005 / 32)
    assert (args.batch_size, args.learning_starts, args.target_network_frequency) == (32, 20_000, 32_000 // 4)
    assert (args.n_step, args.n_atoms, args.v_min, args.v_max, args.noisy_sigma) == (3, 51, -10, 10, 0.1)
    assert (args.prioritized_replay_alpha, args.prioritized_replay_beta) == (0.5, 0.4)
    assert (args.prioritized_replay_uniform, args.max_grad_norm, args.replay_ratio) == (1e-3, 10, 4 / 16)


@pytest.mark.parametrize("layers", ["head", "dense", "all"])
def test_a_reset_renews_its_layers_and_their_moments_alone(layers):
    args = Args(network="normalised" if layers == "dense" else "plain", reset=ResetArgs((5,), layers))
    ours, fresh = (script.make_network(scripts.spaces(3), args, seed, torch.device("cpu")) for seed in (1, 2))
    optimizer = script.make_optimizer(ours, args)
    draw_noise_(ours, rng(0))
    for p in ours.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    named = {"head": ours.heads, "dense": ours.dense, "all": None}[layers]
    reset_(ours, fresh, modules=named, optimizer=optimizer, moments="reset")
    heads = ("value.", "advantage.")
    dense = (*heads, "value_hidden.", "value_norm.", "advantage_hidden.", "advantage_norm.")
    renewed = {"head": heads, "dense": dense, "all": ""}[layers]
    for (name, p), q in zip(ours.named_parameters(), fresh.parameters(), strict=True):
        new = name.startswith(renewed)
        assert torch.equal(p, q) == new, name
        assert (optimizer.state[p]["exp_avg"].abs().sum() == 0) == new
        assert (optimizer.state[p]["step"] == 0) == new
    sigma = ours.value.weight_sigma
    assert torch.all(sigma == sigma[0, 0])
    assert float(optimizer.state[sigma]["exp_avg_sq"].sum()) == 0


# runs


TINY = {
    "env_id": "rewarm/Catch-v0", "total_timesteps": 120, "learning_starts": 80, "buffer_size": 200, "batch_size": 4,
    "eval_every": 0, "log_every": 2, "checkpoint_every": 1000, "target_network_frequency": 20,
    "probe": ProbeArgs(every=5, size=8, meter_every=5),
}  # fmt: skip
EVALUATED = {"eval_every": 120, "eval_episodes": 1}
UNSEEN = ProbeArgs(every=0, meter_every=0)
PROJECTED = {"network": "normalised", "nap": NapArgs(enabled=True)}


def tiny(directory: Path, **changes) -> Args:
    return Args(**{**TINY, "directory": directory, **changes})


def recorded(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar except the speed."""
    return {tag: rows for tag, rows in read_scalars(directory).items() if tag != "charts/SPS"}


def saved(directory: Path) -> dict:
    return load_checkpoint(directory / "checkpoint.pt")["state"]


class Watched:
    """A run, and what it did: draws of noise, betas, whether the network was in training mode when it learned and when
    it was evaluated, and the arguments of `play`."""

    def __init__(self, directory: Path, **changes):
        draws, self.betas, self.training, self.evaluated, self.played = [], [], [], [], []
        draw, weigh, play = script.draw_noise_, Priorities.importance_weights, script.play

        def watched_gradient(q_network, *rest, **more):
            self.training.append(q_network.value.training)
            return td_gradient(q_network, *rest, **more)

        def watched_play(env, policy, seed, *, epsilon):
            self.played.append((env.num_envs, seed, epsilon))
            self.evaluated.append(policy.args[0].value.training)
            return play(env, policy, seed, epsilon=epsilon)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(script, "draw_noise_", lambda network, stream: draws.append(1) or draw(network, stream))
            patch.setattr(
                Priorities, "importance_weights", lambda s, p, beta: self.betas.append(beta) or weigh(s, p, beta)
            )
            patch.setattr(script, "td_gradient", watched_gradient)
            patch.setattr(script, "play", watched_play)
            script.main(tiny(directory, **changes))
        self.draws, self.scalars, self.state = len(draws), recorded(directory), saved(directory)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Watched:
    """Everything off; an episode ends at step 110, and an evaluation follows at the end."""
    return Watched(tmp_path_factory.mktemp("plain") / "run", **EVALUATED)


def test_noise_is_drawn_at_every_step_and_three_times_per_update(plain):
    assert plain.state["counters"]["updates"] == 10
    assert plain.draws == 120 + 3 * 10
    assert plain.training == [True] * 10


def test_an_evaluation_is_without_noise_and_epsilon_greedy_in_freshly_seeded_environments(plain):
    assert plain.evaluated == [False]
    env_seed = int(np.random.SeedSequence(1).spawn(6)[1].generate_state(1)[0])
    assert plain.played == [(1, env_seed + 120, 0.001)]
    assert [step for step, _ in plain.scalars["eval/episodic_return"]] == [120]


def test_without_evaluations_no_environment_is_built_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "evaluation_world", lambda *_: pytest.fail("an environment was built"))
    script.main(tiny(tmp_path / "run", total_timesteps=84, probe=UNSEEN))


def test_beta_grows_linearly_over_the_run(plain):
    steps = [80 + 4 * k for k in range(1, 11)]
    assert plain.betas == pytest.approx([0.4 + 0.6 * step / 120 for step in steps], rel=1e-12)
    assert plain.betas[-1] == 1.0


def test_the_same_seed_repeats_the_run_and_another_does_not(plain, tmp_path):
    script.main(tiny(tmp_path / "same", **EVALUATED))
    assert recorded(tmp_path / "same") == plain.scalars
    assert_same(saved(tmp_path / "same"), plain.state)
    script.main(tiny(tmp_path / "other", seed=2, total_timesteps=90))
    other = recorded(tmp_path / "other")
    for tag in ("losses/td_loss", "plasticity/effective_rank/value_relu"):
        assert other[tag][0] != plain.scalars[tag][0]


def test_a_video_of_each_evaluation_changes_no_number(plain, tmp_path, monkeypatch):
    lengths, play = [], script.play

    def watched(env, *rest, **more):
        returns = play(env, *rest, **more)
        lengths.append(len(env.frames))
        return returns

    monkeypatch.setattr(script, "play", watched)
    script.main(tiny(tmp_path / "run", **EVALUATED, record_video=True))
    assert recorded(tmp_path / "run") == plain.scalars
    assert_same(saved(tmp_path / "run"), plain.state)
    assert scripts.videos(tmp_path / "run") == {"step-120.gif": lengths[0]}
    assert lengths[0] > 1
    assert f"its first {MAX_FRAMES:,} steps" in inspect.getsource(Args)


def literal_rainbow(args: Args, streams) -> tuple[list[tuple[int, float]], QNetwork]:
    """Rainbow on torch.optim, with nothing of elr: a list of all transitions, n-step returns by hand."""
    init_seed, env_seed = (int(s.generate_state(1)[0]) for s in streams[:2])
    minibatches, noise = (np.random.default_rng(s) for s in streams[3:5])
    env, support = ScreenWorld([args.env_id]).make(), torch.linspace(-10, 10, 51)
    with torch.random.fork_rng():
        torch.manual_seed(init_seed)
        network = QNetwork(3, support, 0.1, False)
    target = QNetwork(3, support, 0.1, False)
    target.load_state_dict(network.state_dict())
    adam = torch.optim.Adam(network.parameters(), lr=args.learning_rate, eps=args.adam_eps, fused=True)
    memory, returns = [], []
    priorities = Priorities(args.buffer_size, 0.5, 1e-3)

    def follow(slot: int) -> tuple[float, float, np.ndarray] | None:
        """(R, discount, state) after three steps, or where the episode was truncated."""
        total = np.float32(0)
        for k in range(3):
            if slot + k >= len(memory):
                return None
            _, _, reward, truncated, final = memory[slot + k]
            total += np.float32(args.gamma**k) * np.float32(reward)
            if truncated:
                return total, args.gamma ** (k + 1), final
        if slot + 3 >= len(memory):
            return None
        return total, args.gamma**3, memory[slot + 3][0]

    def valid(slots: np.ndarray) -> np.ndarray:
        return np.array([memory[slot] is not None and follow(slot) is not None for slot in slots.tolist()])

    obs, _ = env.reset(seed=env_seed)
    for step in range(1, args.total_timesteps + 1):
        draw_noise_(network, noise)
        with torch.no_grad():
            action = int(network(torch.from_numpy(obs)).argmax())
        next_obs, reward, _, truncated, infos = env.step(np.array([action]))
        priorities.add(np.array([len(memory)]))
        final = infos["final_obs"][0] if truncated[0] else None
        memory.append((obs[0], action, reward[0], bool(truncated[0]), final))
        if truncated[0]:
            priorities.blank(np.array([len(memory)]))
            memory.append(None)
            returns.append((step, float(infos["episode"]["r"][0])))
        obs = next_obs
        if step > args.learning_starts and (step - args.learning_starts) % 4 == 0:
            slots, p = priorities.sample(args.batch_size, minibatches, valid)
            rows, after = [memory[slot] for slot in slots], [follow(slot) for slot in slots]
            batch = [np.stack([row[0] for row in rows]), np.array([row[1] for row in rows])]
            batch += [np.float32([a[0] for a in after]), np.stack([a[2] for a in after])]
            batch += [np.float32([a[1] for a in after])]
            beta = 0.4 + (1.0 - 0.4) * (step / args.total_timesteps)
            weights = (priorities.size * p) ** -beta
            losses, _ = td_gradient(network, target, batch, weights / weights.max(), rng=noise)
            norm = torch.stack([w.grad.norm() for w in network.parameters()]).norm()
            for w in network.parameters():
                w.grad *= (args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            adam.step()
            priorities.update(slots, losses.numpy())
        if step % args.target_network_frequency == 0:
            target.load_state_dict(network.state_dict())
    return returns, network


def test_all_off_is_the_plain_agent_bit_for_bit(tmp_path):
    """Through the end of an episode, with gradients that are clipped and a target network that is copied."""
    args = tiny(tmp_path / "run", probe=UNSEEN, max_grad_norm=0.01)
    script.main(args)
    returns, network = literal_rainbow(args, np.random.SeedSequence(args.seed).spawn(6))
    assert len(returns) == 1
    assert recorded(tmp_path / "run")["charts/episodic_return"] == returns
    state = saved(tmp_path / "run")["q_network"]
    for name, p in network.state_dict().items():
        assert torch.equal(p, state[name]), name


def test_measuring_changes_nothing_and_neither_does_a_projection_that_never_comes(tmp_path):
    loud = {"nap": NapArgs(enabled=True, every=1000, gains="free"), "eval_every": 60, "eval_episodes": 1}
    quiet = {"probe": UNSEEN}
    for name, changes in (("loud", loud), ("quiet", quiet)):
        script.main(tiny(tmp_path / name, network="normalised", total_timesteps=100, **changes))
    loud, quiet = (saved(tmp_path / name) for name in ("loud", "quiet"))
    assert loud["projection"]["updates"] == 5
    assert quiet["projection"] == {}
    for part in ("q_network", "optimizer", "priorities"):
        assert_same(loud[part], quiet[part], part)


@pytest.fixture(scope="module")
def projected(tmp_path_factory):
    """Scalars of a run that is projected and measured at each update, with a reset after the fifth of ten."""
    directory = tmp_path_factory.mktemp("projected") / "run"
    script.main(
        tiny(
            directory, **PROJECTED, reset=ResetArgs((100,)), learning_rate=1e-3, max_grad_norm=0.01,
            probe=ProbeArgs(every=0, size=8, meter_every=1),
        )
    )  # fmt: skip
    return recorded(directory)


HIDDEN = ["conv1", "conv2", "conv3", "value_hidden", "advantage_hidden"]
SIGMAS = ["value_hidden.sigma", "advantage_hidden.sigma"]


def test_means_and_noise_scales_are_metered(projected):
    assert {tag.removeprefix("elr/") for tag in projected if tag.startswith("elr/")} == {*HIDDEN, *SIGMAS}


@pytest.mark.parametrize("layer", HIDDEN)
def test_projection_holds_joint_norms_through_updates_and_a_reset_brings_new_ones(projected, layer):
    assert projected["reset/event"] == [(100, 1.0)]
    names = [name for name in (layer, f"{layer}.sigma") if name in (*HIDDEN, *SIGMAS)]
    rows = zip(*(projected[f"norms/parameter/{name}"] for name in names), strict=True)
    joint = [(row[0][0], math.hypot(*(value for _, value in row))) for row in rows]
    before, after = ([v for s, v in joint if (s <= 100) == first] for first in (True, False))
    for norms in (before, after):
        assert len(norms) == 5
        assert max(norms) == pytest.approx(min(norms), rel=1e-5)
    assert before[0] != pytest.approx(after[0], rel=1e-5)


@pytest.mark.parametrize("name", SIGMAS)
def test_noise_scales_alone_are_not_held(projected, name):
    norms = [value for step, value in projected[f"norms/parameter/{name}"] if step <= 100]
    assert max(norms) > min(norms) * (1 + 1e-4)


def test_gradients_are_metered_as_clipped(projected):
    """Nearly all of the norm: heads and gains are not metered."""
    for update in range(10):
        squares = [projected[f"norms/gradient/{name}"][update][1] ** 2 for name in (*HIDDEN, *SIGMAS)]
        assert 0.003 < math.sqrt(sum(squares)) <= 0.01 * (1 + 1e-5)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_cleared_replay_memory_has_no_priorities_and_a_fresh_agent_no_largest(tmp_path, fresh):
    """A change at step 60, after five updates; the losses of the first agent are above 1."""
    shift = ShiftArgs("actions", at_steps=(60,))
    switch = SwitchArgs(fresh_agent=True) if fresh else SwitchArgs(replay="clear")
    few = {"total_timesteps": 70, "learning_starts": 40, "probe": UNSEEN}
    script.main(tiny(tmp_path / "run", shift=shift, switch=switch, **few))
    state = saved(tmp_path / "run")
    assert state["counters"] == {"updates": 5, "learning_step": 100, "learning_updates": 5}
    assert state["replay"]["written"] - state["replay"]["forgotten"] == 10
    largest = state["priorities"]["largest"]
    assert (largest == 1.0) if fresh else (largest > 1.0)
    assert state["priorities"]["leaves"].tolist() == [largest**0.5] * 10
    assert state["priorities"]["order"].tolist() == list(range(61, 71))  # row 60: the state that the change cut


def test_a_run_that_overflows_names_step_update_and_rate(tmp_path):
    with pytest.raises(NonFiniteError, match=r"loss is nan at step 88, update 1, learning rate 1e\+30"):
        script.main(tiny(tmp_path / "run", learning_rate=1e30, probe=UNSEEN))
    assert read_status(tmp_path / "run")["status"] == "failed"


EVERYTHING = shlex.split(
    "chain-cusum --env-id rewarm/Catch-v0 --shift.kind actions --shift.games --shift.every-steps 130 --seed 5 "
    "--total-timesteps 200 --learning-starts 60 --buffer-size 120 --batch-size 4 --num-envs 2 "
    "--target-network-frequency 40 --checkpoint-every 80 --log-every 2 --eval-every 0 --schedule.period-steps 100 "
    "--rewarm.block 2 --rewarm.burn-in 5 --rewarm.refractory 5 --rewarm.threshold 1 --rewarm.slack 0.1 "
    "--rewarm.moments reset --nap.every 3 --switch.intervention reset-head --reset.at-steps 180 --reset.layers dense "
    "--probe.every 20 --probe.size 8 --probe.meter-every 7"
)


@pytest.mark.parametrize("where", ["host", "device"])
def test_killed_and_resumed_is_bit_identical(tmp_path, monkeypatch, where):
    """Everything that has a state is on: two environments, a ring that wraps, truncated episodes. A row that holds only
    a state is never drawn. Also with the frames elsewhere."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sample = Priorities.sample

    def watched(self, batch_size, stream, valid):
        slots, probabilities = sample(self, batch_size, stream, valid)
        replay = valid.__self__
        assert not replay.only_state.ravel()[slots].any()
        assert not self.tree.leaves[replay.only_state.ravel()].any()
        return slots, probabilities

    monkeypatch.setattr(Priorities, "sample", watched)
    script.main(parse(Args, PRESETS, [*EVERYTHING, "--directory", str(whole)]))
    process = scripts.start(Path(script.__file__), *EVERYTHING, "--replay-device", where, "--directory", killed)
    scripts.kill_beyond(process, killed, 20, signal.SIGKILL)
    assert list((killed / "pieces").glob("replay-0-*.pt"))
    assert len(saved(killed)["priorities"]["order"]) >= 80
    script.main(parse(Args, PRESETS, ["--resume", str(killed)]))
    assert recorded(killed) == recorded(whole)
    assert {"reset/event", "rewarm/event", "shift/boundary"} <= recorded(whole).keys()
    states = [saved(directory) for directory in (whole, killed)]
    for state in states:
        state["replay"].pop("pieces")  # cut where the run was
    assert_same(*states)
    assert len(states[0]["priorities"]["order"]) == 120
    assert not (killed / "pieces").exists()


def test_with_threads_a_resumed_run_starts_new_episodes(tmp_path, monkeypatch):
    args = tiny(
        tmp_path / "run", env_id="ALE/Pong-v5", env_threads=1, num_envs=2, total_timesteps=120, probe=UNSEEN,
        learning_starts=90,
    )  # fmt: skip
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        scripts.stop_at(patch, 100)
        script.main(args)
    assert read_status(args.directory)["step"] == 100
    script.main(dataclasses.replace(args, resume=args.directory))
    state = saved(args.directory)
    assert state["env"]["env"]["resumptions"] == 1
    assert state["env"]["env"]["lengths"].tolist() == [10, 10]
    assert state["replay"]["written"].tolist() == [61, 61]  # one more state in each lane, to bootstrap from
    leaves = dict(zip(state["priorities"]["order"].tolist(), state["priorities"]["leaves"].tolist(), strict=True))
    assert leaves[50] == leaves[100 + 50] == 0
    assert sum(leaf > 0 for leaf in leaves.values()) == 120


def test_with_noise_on_the_projected_layers_scale_means_and_scales_jointly():
    """The check at the start sees means only, because it runs without noise."""
    torch.manual_seed(0)
    support = torch.linspace(-10, 10, 51)
    network = QNetwork(4, support, 0.5, normalised=True).train()
    draw_noise_(network, rng(0))
    obs = torch.randint(256, (8, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(obs)
        for layer in (network.value_hidden, network.advantage_hidden):
            layer.weight.mul_(2)
        alone = (network(obs) - before).abs().max()
        for layer in (network.value_hidden, network.advantage_hidden):
            layer.weight_sigma.mul_(2)
        jointly = (network(obs) - before).abs().max()
    assert jointly < 1e-3
    assert alone > 20 * jointly


def test_a_run_in_bf16_is_projected_and_measured_like_any_other(tmp_path):
    for bf16 in (False, True):
        script.main(tiny(tmp_path / str(bf16), bf16=bf16, total_timesteps=112, **PROJECTED))
    scripts.assert_projected_in_bf16(tmp_path / "False", tmp_path / "True", "q_network")


def test_scale_invariance_is_checked_in_float32_at_the_start_at_a_reset_and_at_a_change(tmp_path, monkeypatch):
    """The rounding of bfloat16 would look like a dependence on the scale of the weights."""
    seen = []
    check = lambda network, *_, **__: seen.append(network.bf16)  # noqa: E731
    monkeypatch.setattr(projection_module, "check_scale_invariance", check)
    script.main(
        tiny(
            tmp_path / "run", bf16=True, probe=ProbeArgs(0, 8, meter_every=0), total_timesteps=104,
            reset=ResetArgs((90,)), shift=ShiftArgs("actions", at_steps=(100,)),
            switch=SwitchArgs(intervention="reset"), **PROJECTED,
        )
    )  # fmt: skip
    assert seen == [False, False, False]


# a copy of the script


def test_a_copy_with_wider_streams_and_an_added_hidden_layer_is_three_edits_of_the_network(tmp_path):
    copy = scripts.edited(
        Path(script.__file__), tmp_path,
        ("bf16, not normalised, 512", "bf16, not normalised, 1024"),
        (
            '        self.probed = ["conv1_relu", ',
            "        self.hidden2, self.hidden2_norm = NoisyLinear(width, width, bias, sigma_0), norm(width)\n"
            "        self.hidden2_relu = nn.ReLU()\n"
            '        self.probed = ["hidden2_relu", "conv1_relu", ',
        ),
        (
            "self.value_hidden(x)))  # [B, 512]\n",
            "self.value_hidden(x)))\n"
            "            value = self.hidden2_relu(self.hidden2_norm(self.hidden2(value)))\n",
        ),
    )  # fmt: skip
    copy.main(copy.Args(**{**TINY, **PROJECTED, "total_timesteps": 104, "directory": tmp_path / "run"}))
    scalars, state = recorded(tmp_path / "run"), saved(tmp_path / "run")
    assert state["q_network"]["hidden2.weight"].shape == (1024, 1024)
    assert scalars["elr/hidden2"][-1][1] > 0
    assert scalars["elr/hidden2.sigma"][-1][1] > 0
    assert scalars["plasticity/delta_a/hidden2_relu"][-1][1] > 0
    weights = [state["q_network"][f"hidden2.{part}"].double().norm() for part in ("weight", "weight_sigma")]
    assert math.hypot(*weights) == pytest.approx(state["projection"]["norms"]["hidden2"], rel=3e-5)
