"""What holds of all five scripts of reinforcement learning, or of both memories that keep frames once."""

import dataclasses
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from agents import dqn_atari, dqn_minatar, ppo_atari, ppo_minatar, rainbow_atari
from runs.recording import Pieces

SCRIPTS = {
    script.__name__.rpartition(".")[2]: script
    for script in (dqn_atari, dqn_minatar, ppo_atari, ppo_minatar, rainbow_atari)
}
KINDS = get_args(get_type_hints(dqn_atari.ScheduleArgs)["kind"])


def schedule_of(script, kind):
    low, peak = 1e-6, script.Args().learning_rate
    flags = {"kind": kind, "low": low, "period_steps": 40_960, "warmup_frac": 0.25}
    unused = {"low", "period_steps", "warmup_frac"} - set(script.SCHEDULE_FLAGS[kind])
    return script.make_schedule(
        script.Args(schedule=script.ScheduleArgs(**{k: v for k, v in flags.items() if k not in unused}))
    ), peak


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "constant"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_kind_of_schedule_begins_peaks_and_ends_where_its_flags_say(name, kind):
    script = SCRIPTS[name]
    assert kind in get_args(get_type_hints(script.ScheduleArgs)["kind"])
    schedule, peak = schedule_of(script, kind)
    period = script.to_updates(script.Args(), 40_960)
    rates = [schedule(step) for step in range(period + 1)]
    top = 0 if kind == "linear-decay" else round(0.25 * period)
    assert np.argmax(rates) == top and rates[top] == pytest.approx(peak)
    assert rates[0] == pytest.approx(peak if kind == "linear-decay" else 1e-6)
    assert rates[-2] < 1.1e-6 + 2 * (peak / period) and min(rates) == pytest.approx(1e-6, rel=1e-2)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_probe_of_one_observation_and_a_trigger_that_never_comes_are_refused(name):
    script = SCRIPTS[name]
    with pytest.raises(ValueError, match=r"--probe.size 1"):
        script.Args(probe=script.ProbeArgs(size=1))
    flags = {"schedule": script.ScheduleArgs("warmup-cosine"), "total_timesteps": 1_000_000}
    with pytest.raises(ValueError, match=r"--rewarm.every-steps 1000000 never comes in --total-timesteps 1000000"):
        script.Args(rewarm=script.RewarmArgs("every", every_steps=1_000_000), **flags)


@pytest.mark.parametrize("name", ["dqn_atari", "ppo_atari", "rainbow_atari"])
def test_factors_that_clipping_makes_alike_are_refused(name):
    script = SCRIPTS[name]
    shift = script.ShiftArgs("rewards", every_steps=100_000, values=(1.0, 10.0))
    with pytest.raises(ValueError, match=r"--shift.values \(1.0, 10.0\) .* --clip-rewards"):
        script.Args(shift=shift)
    script.Args(shift=shift, clip_rewards=False)
    script.Args(shift=dataclasses.replace(shift, values=(1.0, -1.0)))


@pytest.mark.parametrize("name", ["dqn_atari", "rainbow_atari"])
def test_an_update_before_the_first_whole_transition_is_refused(name):
    script = SCRIPTS[name]
    with pytest.raises(ValueError, match=r"--learning-starts 5 .*--n-step 3"):
        script.Args(learning_starts=5, n_step=3, num_envs=2)
    script.Args(learning_starts=6, n_step=3, num_envs=2)


@pytest.mark.parametrize("name", ["dqn_atari", "rainbow_atari"])
def test_an_episode_that_was_cut_stays_cut_after_any_number_of_resumptions(name, tmp_path):
    """The row before the cut is in a piece that an earlier session wrote, without the cut."""
    script, pieces = SCRIPTS[name], Pieces(tmp_path)
    none = np.zeros(1, dtype=bool)

    def play(memory, rewards):
        for reward in rewards:
            obs = np.full((1, 4, 84, 84), reward, np.uint8)
            memory.add(obs, np.zeros(1, int), np.full(1, float(reward)), none, none, none, obs)

    def resumed(memory):
        state = memory.save(pieces)
        pieces.keep_only(name for name, *_ in memory.pieces)
        other = script.ReplayMemory(40, 1, 0.5, 3)
        other.load(state, pieces)
        other.cut(np.full((1, 4, 84, 84), 9, np.uint8))
        return other

    memory = script.ReplayMemory(40, 1, 0.5, 3)
    play(memory, [1, 1, 1])
    for _ in range(3):
        memory = resumed(memory)
        play(memory, [100, 100, 100])
        slot = np.array([2])  # the last step before the first cut
        assert memory.valid(slot).all()
        _, _, returns, next_obs, discounts = memory.gather(slot)
        assert returns.tolist() == [1.0] and discounts.tolist() == [0.5] and (next_obs[0, -1] == 9).all()


def outputs_and_gradient(script, network, obs):
    """What the network says, in one row, and the gradient of its mean square."""
    found = network.logits(obs) if hasattr(network, "logits") else network(obs)
    values = torch.cat([part.flatten() for part in (found if isinstance(found, tuple) else (found,))])
    network.zero_grad()
    values.square().mean().backward()
    return values.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("network", ["plain", "normalised"])
@pytest.mark.parametrize("name", ["dqn_atari", "ppo_atari", "rainbow_atari"])
def test_bf16_is_the_same_network_coarsely(name, network):
    """Outputs and gradient within bfloat16's rounding, in float32, and not the same; the weights are the same."""
    script = SCRIPTS[name]
    shape = (4, 3) if name == "ppo_atari" else (3,)
    obs = torch.from_numpy(np.random.default_rng(0).integers(0, 256, size=(8, 4, 84, 84), dtype=np.uint8))
    fine, coarse = (
        script.make_network(*shape, script.Args(network=network, bf16=bf16), 1, torch.device("cpu"))
        for bf16 in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(fine.parameters(), coarse.parameters(), strict=True))
    for net in (fine, coarse) if name == "rainbow_atari" else ():
        script.draw_noise_(net, np.random.default_rng(2))
    (values, gradient), (rounded, other) = (outputs_and_gradient(script, net, obs) for net in (fine, coarse))
    assert rounded.dtype == other.dtype == torch.float32
    assert not torch.equal(values, rounded) and torch.norm(rounded - values) < 0.02 * torch.norm(values)
    assert torch.cosine_similarity(gradient, other, dim=0) > 0.99
