"""DQN's gradient written out by hand: equal to autograd's, by hand on small cases, and never taken where it differs."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agents.dqn_minatar import QNetwork, q_values, td_gradient
from elr.fast.flat_adam import FlatAdam
from elr.fast.minatar_q import ExplicitGradient, proved, written_out
from elr.fast.proof import NotTheSame


def random_network(channels=4, actions=3, normalised=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    network = QNetwork(channels, actions, normalised).double()
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.2 + (p.dim() == 1) * 0.5
    return network


def random_batch(channels=4, actions=3, size=32, seed=1):
    rng = np.random.default_rng(seed)
    obs, next_obs = (rng.integers(0, 2, (size, channels, 10, 10), dtype=np.uint8) for _ in range(2))
    reward, terminated = (rng.integers(0, 2, size).astype(np.float64) for _ in range(2))
    return [obs, rng.integers(0, actions, size), reward, next_obs, terminated]


def explicit(online, target, *, gamma=0.99, double_q=False, size=32):
    return ExplicitGradient(online, target, gamma=gamma, double_q=double_q, batch_size=size)


def by_autograd(online, target, *, gamma=0.99, double_q=False, size=32):
    return partial(td_gradient, online, target, gamma=gamma, double_q=double_q)


# Equal to autograd.


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("channels, actions", [(4, 3), (10, 6)])
@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("size", [1, 32])
def test_gradient_equals_autograd(normalised, channels, actions, double_q, size):
    online = random_network(channels, actions, normalised)
    target = random_network(channels, actions, normalised, seed=9)
    batch = random_batch(channels, actions, size)
    for p in online.parameters():
        p.grad = torch.full_like(p, math.nan)  # whatever is not written shows
    loss, q = explicit(online, target, double_q=double_q, size=size)(batch)
    found = [p.grad.clone() for p in online.parameters()]
    expected_loss, expected_q = by_autograd(online, target, double_q=double_q)(batch)
    assert loss == pytest.approx(expected_loss.item(), rel=1e-12)
    np.testing.assert_allclose(q, expected_q, rtol=1e-12, atol=1e-12)
    for (name, p), grad in zip(online.named_parameters(), found, strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-10, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")
        assert p.grad.abs().max() > 0, name


def test_network_without_gradients_to_write_to_is_refused():
    with pytest.raises(ValueError, match=r"no \.grad"):
        explicit(QNetwork(4, 3), QNetwork(4, 3))


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("size", [1, 7])
def test_forward_equals_the_network_and_sees_changed_weights(normalised, size):
    network = random_network(normalised=normalised)
    by_hand, obs = written_out(network, size), random_batch(size=size)[0]
    before = by_hand.forward(obs).copy()
    np.testing.assert_allclose(before, network(torch.from_numpy(obs)).detach(), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        network.conv.weight.mul_(-1.5)
        network.conv_norm.bias.add_(0.1) if normalised else network.conv.bias.add_(0.1)
    after = by_hand.forward(obs)
    np.testing.assert_allclose(after, network(torch.from_numpy(obs)).detach(), rtol=1e-12, atol=1e-12)
    assert not np.allclose(after, before)


# By hand.


def constant_network(values):
    """Q(s, .) = values, whatever s is."""
    network = QNetwork(4, len(values)).double()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor(values))
    return network


@pytest.mark.parametrize("gradient", [by_autograd, explicit])
@pytest.mark.parametrize("double_q, bootstrapped", [(False, 20.0), (True, 10.0)])
def test_td_error_by_hand(gradient, double_q, bootstrapped):
    """Q = (2, 1), Q' = (10, 20): the maximum is 20; the online network chooses action 0, which is worth 10."""
    online, target = constant_network([2.0, 1.0]), constant_network([10.0, 20.0])
    for p in online.parameters():
        p.grad = torch.zeros_like(p)
    obs, *_ = random_batch(size=2)
    batch = [obs, np.array([1, 0]), np.array([0.5, 1.0]), obs, np.array([0.0, 1.0])]
    loss, q = gradient(online, target, gamma=0.9, double_q=double_q, size=2)(batch)
    errors = np.array([1.0 - (0.5 + 0.9 * bootstrapped), 2.0 - 1.0])  # the second transition terminates
    assert float(loss) == pytest.approx((errors**2).mean(), rel=1e-12)
    assert q.tolist() == [1.0, 2.0]
    np.testing.assert_allclose(online.head.bias.grad, [errors[1], errors[0]], rtol=1e-12)  # 2 / B errors, by action


@pytest.mark.parametrize("bootstrap, value", [(True, 2.0), (False, 1.0)])
def test_learns_the_value_of_an_endless_reward(bootstrap, value):
    """Reward 1 for ever with gamma = 0.5 is worth 1 / (1 - gamma) = 2; a target that never bootstraps stays at 1."""
    torch.manual_seed(0)
    online, target = QNetwork(4, 3), QNetwork(4, 3)
    obs = random_batch(size=32)[0]
    one, zero = np.ones(32, np.float32), np.zeros(32, np.float32)
    actions = np.arange(32) % 3
    batch = [obs, actions, one, obs, zero if bootstrap else one]
    optimizer = FlatAdam(online.parameters(), lr=3e-3, eps=1e-8)
    gradient = explicit(online, target, gamma=0.5)
    for update in range(400):
        gradient(batch)
        optimizer.step()
        if update % 20 == 0:
            target.load_state_dict(online.state_dict())
    chosen = online(torch.from_numpy(obs))[torch.arange(32), torch.from_numpy(actions)]
    assert chosen.mean().item() == pytest.approx(value, abs=0.05)


# Proved before it is used.


def learning(network):
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    return network


def prove(network=QNetwork, update=td_gradient, values=q_values, normalised=True, double_q=False):
    constants = {"gamma": 0.9, "double_q": double_q}
    online, target = (network(4, 3, normalised) for _ in range(2))
    return proved(learning(online), target, partial(update, **constants), values, batch_size=8, **constants)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_shipped_network_and_loss_pass(normalised, double_q, seed):
    torch.manual_seed(seed)
    prove(normalised=normalised, double_q=double_q)


@pytest.mark.parametrize("num_envs", [1, 5, 40])
def test_what_is_proved_works_on_the_networks_themselves(num_envs):
    """Also in more environments than there are transitions in a batch."""
    torch.manual_seed(0)
    online, target = learning(QNetwork(4, 3)), QNetwork(4, 3)
    weights = [p.detach().clone() for p in online.parameters()]
    reference = partial(td_gradient, gamma=0.9, double_q=False)
    gradient, act = proved(
        online, target, reference, q_values, gamma=0.9, double_q=False, batch_size=32, num_envs=num_envs
    )
    assert all(torch.equal(a, b) for a, b in zip(weights, online.parameters(), strict=True))
    assert all(not p.grad.any() for p in online.parameters()), "the proof wrote gradients into the network"
    batch = [a.astype(np.float32) if a.dtype == np.float64 else a for a in random_batch()]
    gradient(batch)
    found = [p.grad.clone() for p in online.parameters()]
    reference(online, target, batch)
    for a, p in zip(found, online.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-6)
    obs = random_batch(size=num_envs, seed=2)[0]
    np.testing.assert_allclose(act(obs), q_values(online, obs), rtol=1e-4, atol=1e-6)


def test_the_proof_draws_nothing_from_the_global_generators():
    torch.manual_seed(3)
    online, target = learning(QNetwork(4, 3)), QNetwork(4, 3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    reference = partial(td_gradient, gamma=0.9, double_q=False)
    proved(online, target, reference, q_values, gamma=0.9, double_q=False, batch_size=32)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


class Clamped(QNetwork):
    def forward(self, obs):
        return super().forward(obs).clamp(max=5.0)  # shows only where values are large


class Dropout(QNetwork):
    def forward(self, obs):
        return F.dropout(super().forward(obs), 0.1)


class Gelu(QNetwork):
    def __init__(self, *args):
        super().__init__(*args)
        self.hidden_relu = nn.GELU()


class ExtraLayer(QNetwork):
    def __init__(self, *args):
        super().__init__(*args)
        self.extra = nn.Linear(128, 128)

    def forward(self, obs):
        x = self.conv_relu(self.conv_norm(self.conv(obs.to(self.head.weight.dtype)))).permute(0, 2, 3, 1).flatten(1)
        return self.head(torch.relu(self.extra(self.hidden_relu(self.hidden_norm(self.hidden(x))))))


class UnusedParameter(QNetwork):
    def __init__(self, *args):
        super().__init__(*args)
        self.unused = nn.Parameter(torch.ones(3))


class Masked(QNetwork):
    """A mask that is all ones at first and may change later."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("mask", torch.ones(3))

    def forward(self, obs):
        return super().forward(obs) * self.mask


class Renamed(QNetwork):
    def __init__(self, *args):
        super().__init__(*args)
        self.body = self.hidden
        del self.hidden

    def forward(self, obs):
        x = self.conv_relu(self.conv_norm(self.conv(obs.to(self.head.weight.dtype)))).permute(0, 2, 3, 1).flatten(1)
        return self.head(self.hidden_relu(self.hidden_norm(self.body(x))))


OTHERS = [Clamped, Dropout, Gelu, ExtraLayer, UnusedParameter, Masked, Renamed]


@pytest.mark.parametrize("network", OTHERS, ids=lambda network: network.__name__)
def test_another_network_is_not_the_same(network):
    with pytest.raises(NotTheSame):
        prove(network)


def huber(online, target, batch, *, gamma, double_q):
    """Squared error up to 1, linear beyond, times 2 so that small errors agree."""
    return _backward(online, target, batch, gamma, lambda q, y: 2 * F.smooth_l1_loss(q, y))


def wrong_discount(online, target, batch, *, gamma, double_q):
    return td_gradient(online, target, batch, gamma=gamma**2, double_q=double_q)


def regularised(online, target, batch, *, gamma, double_q):
    return _backward(
        online, target, batch, gamma, lambda q, y: F.mse_loss(q, y) + 1e-2 * online.head.bias.square().sum()
    )


def clipped(online, target, batch, *, gamma, double_q):
    loss, q = td_gradient(online, target, batch, gamma=gamma, double_q=double_q)
    nn.utils.clip_grad_norm_(online.parameters(), 1.0)
    return loss, q


def _backward(online, target, batch, gamma, loss_of):
    obs, actions, rewards, next_obs, terminated = (torch.from_numpy(array) for array in batch)
    with torch.no_grad():
        y = rewards + gamma * (1 - terminated) * target(next_obs).max(1).values
    q = online(obs).gather(1, actions[:, None])[:, 0]
    loss = loss_of(q, y)
    online.zero_grad(set_to_none=False)
    loss.backward()
    return loss.detach(), q.detach()


@pytest.mark.parametrize("update", [huber, wrong_discount, regularised, clipped], ids=lambda f: f.__name__)
def test_another_loss_is_not_the_same(update):
    with pytest.raises(NotTheSame):
        prove(update=update)


def test_another_way_to_act_is_not_the_same():
    with pytest.raises(NotTheSame, match="to act on"):
        prove(values=lambda network, obs: -q_values(network, obs))


def test_the_message_says_where_they_differ():
    with pytest.raises(NotTheSame, match=r"Q\(s, a\)|gradient of|the loss"):
        prove(update=huber)
    with pytest.raises(NotTheSame, match="does not fit the network"):
        prove(Renamed)


@pytest.mark.parametrize("limit", [5.0, 100.0, 400.0])
@pytest.mark.parametrize("what", ["target", "rewards", "huber"])
def test_a_limit_that_shows_only_for_large_errors_is_not_the_same(limit, what):
    def update(online, target, batch, *, gamma, double_q):
        if what == "rewards":
            obs, actions, rewards, next_obs, terminated = batch
            clipped = [obs, actions, np.clip(rewards, -limit, limit), next_obs, terminated]
            return td_gradient(online, target, clipped, gamma=gamma, double_q=double_q)
        if what == "huber":
            return _backward(online, target, batch, gamma, lambda q, y: 2 * F.huber_loss(q, y, delta=limit))
        return _backward(online, target, batch, gamma, lambda q, y: F.mse_loss(q, y.clamp(-limit, limit)))

    with pytest.raises(NotTheSame):
        prove(update=update)


def test_parameters_without_gradients_are_not_written_to():
    """As of an optimiser that makes no .grad: the script falls back to autograd."""
    online, target = QNetwork(4, 3), QNetwork(4, 3)
    reference = partial(td_gradient, gamma=0.9, double_q=False)
    with pytest.raises(NotTheSame, match=r"no \.grad"):
        proved(online, target, reference, q_values, gamma=0.9, double_q=False, batch_size=8)


def test_an_update_that_wants_another_batch_is_not_the_same():
    def weighted(online, target, batch, *, gamma, double_q):
        *batch, _ = batch
        return td_gradient(online, target, batch, gamma=gamma, double_q=double_q)

    with pytest.raises(NotTheSame, match="does not fit"):
        prove(update=weighted)


class Hooked(QNetwork):
    def __init__(self, *args):
        super().__init__(*args)
        self.conv.weight.register_hook(lambda grad: 0 * grad)


def test_hooks_would_not_be_called_and_are_refused():
    with pytest.raises(NotTheSame, match="has hooks"):
        prove(Hooked)


def test_an_update_that_writes_some_gradients_is_not_the_same():
    def heads_alone(online, target, batch, *, gamma, double_q):
        obs, actions, rewards, next_obs, terminated = (torch.from_numpy(array) for array in batch)
        with torch.no_grad():
            y = rewards + gamma * (1 - terminated) * target(next_obs).max(1).values
        q = online(obs).gather(1, actions[:, None])[:, 0]
        loss, heads = F.mse_loss(q, y), [*online.head.parameters()]
        for p, grad in zip(heads, torch.autograd.grad(loss, heads), strict=True):
            p.grad.copy_(grad)
        return loss.detach(), q.detach()

    with pytest.raises(NotTheSame, match=r"the gradient of conv.weight is not the script's own"):
        prove(update=heads_alone)


@pytest.mark.parametrize("replaced", ["online data", "target data", "online grad"])
def test_replaced_memory_is_noticed(replaced):
    online, target = learning(QNetwork(4, 3)), QNetwork(4, 3)
    reference = partial(td_gradient, gamma=0.9, double_q=False)
    gradient, _ = proved(online, target, reference, q_values, gamma=0.9, double_q=False, batch_size=32)
    batch = [a.astype(np.float32) if a.dtype == np.float64 else a for a in random_batch()]
    target.load_state_dict(online.state_dict())  # in place: seen
    gradient(batch)
    which, what = replaced.split()
    weight = {"online": online, "target": target}[which].hidden.weight
    setattr(weight, what, weight.detach().clone())
    with pytest.raises(RuntimeError, match=r"hidden.weight was given other memory.*--gradient autograd"):
        gradient(batch)
