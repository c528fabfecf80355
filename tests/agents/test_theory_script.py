"""The simulation of App. C: closed forms, controls that are wrong, resumption, refusals."""

import math

import pytest
import torch

import agents.theory as script
from agents.theory import Args
from runs.recording import RunError, parse, read_scalars
from tests.agents import scripts


def test_closed_forms_at_points_that_are_known():
    assert script.closed_cosine(0.0) == 1.0 and script.closed_cosine(1.0) == pytest.approx(math.sqrt(0.5))
    assert script.closed_share(0.0) == 0.0 and script.closed_share(1.0) == 0.25
    assert script.closed_share(1e9) == pytest.approx(0.5)
    assert script.closed_share(0.7) == pytest.approx(0.5 - math.atan(1 / 0.7) / math.pi)  # as the paper writes it


@pytest.mark.parametrize("flags", [{}, {"alpha": 2.0}, {"sigma": 3.0, "alpha": 0.5}])
def test_simulation_agrees_with_the_closed_forms_and_not_with_others(tmp_path, flags, capsys):
    script.main(Args(rates=9, directory=tmp_path / "run", **flags))
    scalars = {tag: [v for _, v in curve] for tag, curve in read_scalars(tmp_path / "run").items()}
    for name in ("cosine", "switched_off"):
        curves = (scalars[f"theory/{name}{part}"] for part in ("", "_closed", "_error"))
        deviations = [(value - closed) / error for value, closed, error in zip(*curves, strict=True)]
        assert max(map(abs, deviations)) < 5
    doubled = [script.closed_cosine(2 * ratio) for ratio in scalars["theory/ratio"]]
    errors = zip(scalars["theory/cosine"], doubled, scalars["theory/cosine_error"], strict=True)
    assert max(abs(value - other) / error for value, other, error in errors) > 50
    assert scalars["charts/learning_rate"][0] == 0.05 and scalars["charts/learning_rate"][-1] == pytest.approx(20)


def test_a_step_is_that_of_the_text():
    """W and G have the scales of their flags, and inputs are orthogonal and of norm 1: variances of z and of z' - z."""
    args = Args(alpha=3.0, sigma=0.5, width=20_000)
    z, moved = script.one_step(args, 2.0, torch.Generator().manual_seed(1))
    assert z.shape == (64, 20_000)
    assert z.var().item() == pytest.approx(9.0, rel=0.01) and (moved - z).var().item() == pytest.approx(1.0, rel=0.01)
    assert torch.corrcoef(z[:2])[0, 1].abs() < 0.03 and abs((z * (moved - z)).mean().item()) < 0.02


def test_interrupted_and_resumed_run_is_that_which_was_not(tmp_path, monkeypatch, capsys):
    script.main(Args(rates=9, width=64, directory=tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        scripts.stop_at(patch, 4)
        script.main(Args(rates=9, width=64, directory=tmp_path / "run"))
    script.main(parse(Args, script.PRESETS, ["--resume", str(tmp_path / "run")]))
    assert read_scalars(tmp_path / "run") == read_scalars(tmp_path / "whole")


def test_every_flag_is_read():
    assert scripts.unread_flags(script) == []


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"alpha": 0.0}, "--alpha"),
        ({"sigma": math.inf}, "--sigma"),
        ({"highest": 0.01}, "--highest"),
        ({"rates": 1}, "--rates"),
        ({"fan_in": 8}, "--fan-in 8 has no room for --inputs 64"),
    ],
)
def test_values_without_meaning_are_refused(flags, named):
    with pytest.raises(ValueError, match=named):
        Args(**flags)


def test_other_devices_are_refused(tmp_path):
    with pytest.raises(RunError, match="--device"):
        script.main(Args(device="meta", directory=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
