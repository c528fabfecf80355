"""The benchmark of PPO on control: its flags, patches and networks, with a miniature in place of CleanRL's script."""

from pathlib import Path

import pytest
import torch
from gymnasium.spaces import Box, Discrete

from agents.ppo_control import PRESETS, ActorCritic
from runs.benchmarks import cleanrl as helpers
from runs.benchmarks import control
from runs.recording import RunError, parse
from tests.runs.benchmarks.test_benchmark_ppo import MINIATURE, in_this_process


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "cleanrl").mkdir()
    (tmp_path / "cleanrl" / "ppo.py").write_text(MINIATURE)
    return tmp_path


class Envs:
    single_observation_space, single_action_space = Box(-1, 1, (6,)), Discrete(3)


@pytest.mark.parametrize("preset", ["nap", "layernorm", "baseline"])
def test_networks_are_those_of_our_script(preset, clone):
    args = control.Args(clone, preset=preset)
    assert args.normalised == (PRESETS[preset].args.network == "normalised") and PRESETS[preset].args.width == 256
    (imported,) = [edit.new for edit in control.substitutions(args) if "as Agent" in edit.new]
    agent = control.ControlAgent if args.normalised else control.PlainAgent
    assert f"import {agent.__name__} as Agent\n" in imported
    theirs, ours = agent(Envs()), ActorCritic(6, 3, normalised=args.normalised)
    weights = (dict(network.named_parameters()) for network in (theirs, ours))
    with torch.no_grad():
        for (_, p), (name, q) in zip(*(w.items() for w in weights), strict=True):
            assert p.shape == q.shape, name
            p.copy_(q)
    obs = torch.randn(5, 6)
    logits, values = ours(obs)
    assert torch.allclose(theirs.get_value(obs)[:, 0], values, atol=1e-6)
    actions = torch.tensor([0, 1, 2, 0, 1])
    chosen, logprobs, entropy, again = theirs.get_action_and_value(obs, actions)
    expected = logits.log_softmax(1)
    assert torch.equal(chosen, actions) and torch.allclose(again[:, 0], values, atol=1e-6)
    assert torch.allclose(logprobs, expected[range(5), actions], atol=1e-6)
    assert torch.allclose(entropy, -(expected.exp() * expected).sum(1), atol=1e-6)
    assert theirs.get_action_and_value(obs)[0].shape == (5,)


def test_cases_are_accepted_by_our_script_and_the_task_never_changes():
    for name, case in control.CASES.items():
        args = parse(type(PRESETS["nap"].args), PRESETS, ["nap", *control.shared_flags(case, 16)])
        assert (args.env_id, args.num_envs, args.num_steps) == case[:3], name
        assert (args.update_epochs, args.num_minibatches, args.total_timesteps) == (*case[3:], 16 * case.steps)
        assert not args.shift.on and args.probe.every and args.probe.meter_every and args.nap.enabled
    defaults = type(args)()
    script = control.CASES["script"]
    assert (defaults.env_id, defaults.num_envs, defaults.num_steps, defaults.update_epochs) == script[:4]


@pytest.mark.parametrize("index", range(5))
def test_every_substitution_is_needed_once(index, clone):
    edits = control.substitutions(control.Args(clone))
    edit = edits[index]
    assert len(edits) == 5 and MINIATURE.count(edit.old) == 1
    for damaged in (MINIATURE.replace(edit.old, ""), MINIATURE + edit.old):
        with pytest.raises(RunError, match="exactly once"):
            helpers.substitute(damaged, edits)


def test_both_scripts_are_measured(clone, capsys, monkeypatch):
    commands = []

    def run_script(command, directory, environment):
        commands.append(list(map(str, command)))
        return in_this_process(command, directory, environment)

    monkeypatch.setattr(control, "run_script", run_script)
    monkeypatch.setitem(control.CASES, "acrobot", control.Case("Acrobot-v1", 2, 16, 1, 4))
    control.main(control.Args(clone, cases=("acrobot",), iterations=2, repeats=2))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "acrobot: Acrobot-v1, 2 environments x 16 steps, 1 epochs x 4 minibatches"
    assert [line.count("ratio") for line in lines[2:]] == [1, 1, 1] and "[min, max] of 2" in lines[4]
    theirs, ours = commands[2:]
    assert ours[0] == str(control.SCRIPT) and ours[1] == "nap" and theirs[0].endswith("cleanrl_ppo.py")
    assert theirs[1:] == control.shared_flags(control.CASES["acrobot"], 2) == ours[2 : 2 + len(theirs[1:])]
    assert ours[ours.index("--eval-every") + 1] == "0" and ours[ours.index("--threads") + 1] == "1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cleanrl": Path("elsewhere")}, r"no cleanrl/ppo\.py"),
        ({"iterations": 1}, "--iterations must be at least 2, got 1"),
        ({"repeats": 0}, "--repeats must be at least 1, got 0"),
        ({"threads": 0}, "--threads must be at least 1, got 0"),
        ({"cases": ("script", "pong")}, "--cases must be some of cleanrl, script, levels, acrobot, got pong"),
        ({"preset": "levels-plain"}, "--preset must be one of baseline, layernorm, nap, .* got levels-plain"),
    ],
)
def test_bad_arguments_are_refused(changes, message, clone):
    with pytest.raises(ValueError, match=message):
        control.Args(**{"cleanrl": clone, **changes})
