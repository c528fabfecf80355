"""The simulation of App. C: closed forms, controls that are wrong, resumption, refusals."""

import math
import sys

import pytest
import torch

import agents.theory as script
from agents.theory import Args
from runs.recording import NonFiniteError, exit_with_one_line, parse, read_scalars
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
        ({"sigma": math.nan}, "--sigma"),
        ({"alpha": 1e300}, "--alpha must lie in"),
        ({"sigma": 1e308}, "--sigma must lie in"),
        ({"lowest": 1e-300, "highest": 1e300}, "--lowest must lie in"),
        ({"highest": 1e300}, "--highest must lie in"),
        ({"highest": 0.01}, "--highest"),
        ({"threads": 0}, "--threads must be positive, got 0"),
        ({"threads": -1}, "--threads must be positive, got -1"),
        ({"rates": 1}, "--rates"),
        ({"fan_in": 8}, "--fan-in 8 has no room for --inputs 64"),
    ],
)
def test_values_without_meaning_are_refused(flags, named):
    with pytest.raises(ValueError, match=named):
        Args(**flags)


@pytest.mark.parametrize("flags", ["--threads 0", "--sigma 1e308", "--width 2 --inputs 40"])
def test_what_cannot_be_computed_is_one_line_and_exit_code_2(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["theory.py", *flags.split(), "--directory", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stopped:
        exit_with_one_line(lambda: script.main(parse(Args, script.PRESETS)))
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert flags.split()[0] in line


def test_all_numbers_are_finite_at_the_limits_of_the_flags(tmp_path):
    """Four runs with the largest and the smallest ratios, weights and gradients."""
    for i, (alpha, sigma) in enumerate([(1e-6, 1e-6), (1e-6, 1e6), (1e6, 1e-6), (1e6, 1e6)]):
        directory = tmp_path / str(i)
        script.main(Args(alpha=alpha, sigma=sigma, lowest=1e-6, highest=1e6, rates=5, width=64, directory=directory))
        curves = read_scalars(directory)
        assert all(math.isfinite(value) for curve in curves.values() for _, value in curve)
        for tag, tolerance in (("cosine", 0.05), ("switched_off", 0.05)):
            pairs = zip(curves[f"theory/{tag}"], curves[f"theory/{tag}_closed"], strict=True)
            assert max(abs(value - closed) for (_, value), (_, closed) in pairs) < tolerance


def test_a_number_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "one_step", lambda *_: (torch.full((64, 8), math.inf), torch.ones(64, 8)))
    with pytest.raises(NonFiniteError, match="cosine is nan at update 1; the last checkpoint predates it"):
        script.main(Args(directory=tmp_path / "run"))


def test_other_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="--device cuda: this simulation runs on the CPU"):
        Args(device="cuda")
