"""--bf16 of the three Atari scripts: the same network, computed coarsely."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents import dqn_atari, ppo_atari, rainbow_atari
from tests.agents import scripts

SCRIPTS = {"dqn_atari": dqn_atari, "ppo_atari": ppo_atari, "rainbow_atari": rainbow_atari}


def outputs_and_gradient(network, obs):
    """The network's outputs in one row, and the gradient of their mean square."""
    found = network.logits(obs) if hasattr(network, "logits") else network(obs)
    values = torch.cat([part.flatten() for part in (found if isinstance(found, tuple) else (found,))])
    network.zero_grad()
    values.square().mean().backward()
    return values.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("network", ["plain", "normalised"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_bf16_is_the_same_network_coarsely(name, network):
    """Outputs and gradient are float32, differ, and agree within bfloat16's rounding; the weights are the same."""
    script = SCRIPTS[name]
    shape = (4, 3) if name == "ppo_atari" else (3,)
    obs = torch.from_numpy(np.random.default_rng(0).integers(0, 256, size=(8, 4, 84, 84), dtype=np.uint8))
    fine, coarse = (
        script.make_network(scripts.spaces(*shape), script.Args(network=network, bf16=bf16), 1, torch.device("cpu"))
        for bf16 in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(fine.parameters(), coarse.parameters(), strict=True))
    for net in (fine, coarse) if name == "rainbow_atari" else ():
        script.draw_noise_(net, np.random.default_rng(2))
    (values, gradient), (rounded, other) = (outputs_and_gradient(net, obs) for net in (fine, coarse))
    assert rounded.dtype == other.dtype == torch.float32
    assert not torch.equal(values, rounded)
    assert torch.norm(rounded - values) < 0.02 * torch.norm(values)
    assert torch.cosine_similarity(gradient, other, dim=0) > 0.99
