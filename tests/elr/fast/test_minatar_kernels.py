"""Features compiled by numba: equal to autograd's in double precision, also where images are full or empty."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.dqn_minatar import QNetwork
from agents.ppo_minatar import ActorCritic
from elr.fast.minatar_layers import NumpyFeatures, Windows
from elr.fast.proof import NotTheSame

pytest.importorskip("numba")
from elr.fast import minatar_kernels
from elr.fast.minatar_kernels import CompiledFeatures

ROOT = Path(__file__).resolve().parents[3]


def random_network(make=QNetwork, channels=4, normalised=True, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    network = make(channels, 3, normalised).to(dtype)
    for p in network.parameters():
        p.data = (torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.2 + (p.dim() == 1) * 0.5).to(dtype)
        p.grad = torch.full_like(p, math.nan)  # whatever is not written shows
    return network


def images(size, channels=4, density=0.1, largest=1, seed=1):
    rng = np.random.default_rng(seed)
    return (
        (rng.random((size, channels, 10, 10)) < density) * rng.integers(1, largest + 1, (size, channels, 10, 10))
    ).astype(np.uint8)


def features(network, obs):
    """h [B, H], as the script defines it."""
    x = network.conv_relu(network.conv_norm(network.conv(torch.from_numpy(obs).to(network.conv.weight.dtype))))
    x = x.permute(0, 2, 3, 1).flatten(1) if isinstance(network, QNetwork) else x.flatten(1)
    return network.hidden_relu(network.hidden_norm(network.hidden(x)))


def layers(network):
    return {name: p for name, p in network.named_parameters() if name.startswith(("conv", "hidden"))}


@pytest.mark.parametrize("make", [QNetwork, ActorCritic], ids=["channels last", "channels first"])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("channels, size", [(4, 1), (4, 7), (10, 32)])
@pytest.mark.parametrize("density, largest", [(0.0, 1), (0.05, 1), (0.3, 7), (1.0, 1)])
def test_features_and_gradient_equal_autograd(make, normalised, channels, size, density, largest):
    network, obs = random_network(make, channels, normalised), images(size, channels, density, largest)
    d_h = np.random.default_rng(2).standard_normal((size, 128))
    compiled = CompiledFeatures(network, size, learns=True, channels_last=make is QNetwork)
    h = compiled.forward(obs).copy()
    compiled.backward(d_h.copy())
    found = {name: p.grad.clone() for name, p in layers(network).items()}
    for p in network.parameters():
        p.grad = None
    expected = features(network, obs)
    expected.backward(torch.from_numpy(d_h))
    np.testing.assert_allclose(h, expected.detach(), rtol=1e-11, atol=1e-11)
    assert h.any()
    for name, p in layers(network).items():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-9, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")
        assert p.grad.any() or density == 0, name


def test_to_act_is_to_learn_without_a_way_back():
    """Of maps that are flattened channels first: the one puts the maps in order, the other the weights."""
    network, obs = random_network(ActorCritic), images(5)
    acting, learning = (CompiledFeatures(network, 5, learns, channels_last=False) for learns in (False, True))
    np.testing.assert_allclose(acting.forward(obs), learning.forward(obs), rtol=1e-13, atol=1e-13)


def test_changed_weights_are_seen_and_large_pixels_count_as_what_they_are():
    network, obs = random_network(), images(6, largest=7)
    assert obs.max() > 1
    compiled = CompiledFeatures(network, 6, learns=False, channels_last=True)
    before = compiled.forward(obs).copy()
    with torch.no_grad():
        network.conv.weight.mul_(-1.5)
        network.conv_norm.bias.add_(0.1)
        network.hidden.weight.add_(0.01)
    after = compiled.forward(obs)
    np.testing.assert_allclose(after, features(network, obs).detach(), rtol=1e-11, atol=1e-11)
    assert not np.allclose(after, before)


def test_numpy_features_are_its_twin_in_single_precision():
    network, obs = random_network(dtype=torch.float32), images(32)
    numpy_features = NumpyFeatures(network, Windows(network.conv, 32), learns=True)
    compiled = CompiledFeatures(network, 32, learns=True, channels_last=True)
    d_h = np.random.default_rng(2).standard_normal((32, 128)).astype(np.float32)
    gradients = []
    for each in (numpy_features, compiled):
        h = each.forward(obs).copy()
        each.backward(d_h.copy())
        gradients.append([h, *(p.grad.numpy().copy() for p in layers(network).values())])
    for a, b in zip(*gradients, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("where", ["conv", "hidden"])
def test_a_nan_stays_a_nan(normalised, where):
    network = random_network(normalised=normalised, dtype=torch.float32)
    with torch.no_grad():
        getattr(network, where).weight[0] = math.nan
    compiled = CompiledFeatures(network, 4, learns=True, channels_last=True)
    assert np.isnan(compiled.forward(images(4, density=0.5))).any()
    compiled.backward(np.ones((4, 128), np.float32))  # a plain network's ReLU lets no NaN back, as under autograd
    assert getattr(network, where).weight.grad.isnan().any() == normalised


def test_other_images_or_layers_are_refused():
    network = random_network()
    compiled = CompiledFeatures(network, 4, learns=False, channels_last=True)
    for other in (images(5), images(3), images(4, channels=6), images(4)[..., :9]):
        with pytest.raises(ValueError, match=r"made for images \[4, 4, 10, 10\], got"):
            compiled.forward(other)
    network.hidden_norm = torch.nn.LayerNorm(2)
    with pytest.raises(NotTheSame, match=r"2 and 2 numbers instead of \(128, 128\)"):
        CompiledFeatures(network, 4, learns=False, channels_last=True)
    network.hidden = torch.nn.Linear(512, 128)
    with pytest.raises(NotTheSame, match="512 inputs instead of 1024"):
        CompiledFeatures(network, 4, learns=False, channels_last=True)
    network.conv = torch.nn.Conv2d(4, 32, 3)
    with pytest.raises(NotTheSame, match="not one of 16 3x3 filters"):
        CompiledFeatures(network, 4, learns=False, channels_last=True)
    with pytest.raises(NotTheSame, match=r"no \.grad"):
        CompiledFeatures(QNetwork(4, 3), 4, learns=True, channels_last=True)


@pytest.mark.parametrize("size", [1, 7, 63, 64, 65, 128, 200])
def test_sums_of_any_length(size):
    x, y = np.random.default_rng(size).standard_normal((2, size))
    assert minatar_kernels._dot(x, y, np.empty(64)) == pytest.approx(x @ y, rel=1e-12, abs=1e-12)


def fingerprint():
    """Of a gradient in single precision, printed by the processes of the next test."""
    network = random_network(ActorCritic, dtype=torch.float32)
    compiled = CompiledFeatures(network, 32, learns=True, channels_last=False)
    h = compiled.forward(images(32)).copy()
    compiled.backward(h - h.mean())
    return hashlib.sha256(b"".join(p.grad.numpy().tobytes() for p in layers(network).values())).hexdigest()


def test_kernels_compiled_now_and_read_from_the_disk_give_the_same_bits(tmp_path):
    """With fast mathematics they did not: a run repeated on the same machine could differ from the first one."""
    command = [sys.executable, "-c", f"from {__name__} import fingerprint; print(fingerprint())"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert list(tmp_path.rglob("*.nbc")), "nothing was kept"
    assert len(first.strip()) == 64 and first == second


def test_without_numba_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "elr.fast.minatar_kernels")
    with pytest.raises(ImportError, match=r'^it needs numba: pip install -e "\.\[fast\]" \(import of numba halted'):
        import elr.fast.minatar_kernels  # noqa: F401
