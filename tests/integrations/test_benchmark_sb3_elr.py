"""The benchmark of ELR in Stable-Baselines3: what it measures, the table and the picture."""

import json

import numpy as np
import pytest

from runs.benchmarks import sb3_elr
from runs.benchmarks.sb3_elr import Args, Job

LAYER = {"deviation": 0.25, "drift": -0.5, "drift of u": 0.0004, "nominal": [3e-4] * 100, "realised": [1e-4] * 100}


@pytest.fixture
def sb3():
    return pytest.importorskip("stable_baselines3", reason='pip install -e ".[integrations]"')


def small(algorithm, optimiser, projected, rates="constant"):
    return sb3_elr.train(Job(algorithm, optimiser, rates, projected, 1, 2_048 if algorithm == "ppo" else 1_800, 1))


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_projection_holds_the_nominal_elr_and_with_signs_the_realised_one(algorithm, sb3):
    on, off = (small(algorithm, "sign", projected) for projected in (True, False))
    assert on["updates"] == off["updates"] == (160 if algorithm == "ppo" else 200)
    assert len(on["layers"]) == (4 if algorithm == "ppo" else 2)
    for layer in on["layers"].values():
        assert layer["deviation"] < 1e-5 and abs(layer["drift"]) < 1e-4 and abs(layer["drift of u"]) < 1e-4
        rate = sb3_elr.RATE[algorithm]
        assert layer["nominal"] == pytest.approx([rate] * 100) and layer["realised"] == pytest.approx(
            [rate] * 100, rel=1e-3
        )
    for layer in off["layers"].values():
        assert layer["deviation"] > 1e-5
        # realised / eta is nominal / eta times u
        assert layer["drift"] != pytest.approx(0.0, abs=1e-6) and abs(layer["drift of u"]) < 1e-4


def test_the_schedule_is_warmed_twice_and_the_nominal_elr_follows(sb3):
    run = small("ppo", "adam", True, "schedule")
    rate = np.array(run["rate"])
    assert (rate[:50].argmax() < 10) and (rate[50:].argmax() < 10) and rate[48] < rate.max() / 10
    for layer in run["layers"].values():
        assert layer["nominal"] == pytest.approx(run["rate"], rel=1e-4)
        assert layer["realised"] != pytest.approx(run["rate"], rel=0.1)  # Adam's step is smaller than the rate


def test_steps_of_normalised_have_one_size():
    import torch

    weight = torch.nn.Parameter(torch.zeros(4, 4))
    optimizer = sb3_elr.Normalised([weight], lr=0.5)
    weight.grad = torch.full((4, 4), 7.0)
    optimizer.step()
    assert torch.equal(weight, torch.full((4, 4), -0.5))
    weight.grad = torch.zeros(4, 4)
    optimizer.step()
    assert torch.equal(weight, torch.full((4, 4), -0.5))


def test_runs_that_the_file_holds_are_not_repeated_and_all_are_in_table_and_picture(tmp_path, monkeypatch, capsys, sb3):
    pytest.importorskip("matplotlib")
    made = []

    def train(job):
        made.append(job)
        return {
            "layers": {"a": LAYER, "b": {**LAYER, "drift": 0.1}},
            "rate": [3e-4] * 100,
            "updates": 10,
            "return": 30.0,
        }

    monkeypatch.setattr(sb3_elr, "train", train)
    args = Args(seeds=(1, 2), numbers=tmp_path / "n.json", out=tmp_path / "p.png")
    sb3_elr.main(args)
    assert len(made) == len(json.loads(args.numbers.read_text())) == 2 * 2 * 2 * 2 * 2
    lines = capsys.readouterr().out.splitlines()
    assert "| ppo | sign | constant | off | 25.0 % (25.0 %) | -20.0 % (-50.0 %) | 0.04 % (0.04 %) | 30 | 2 |" in lines
    assert args.out.stat().st_size > 20_000
    sb3_elr.main(args)
    assert len(made) == 32


def test_a_bad_number_is_refused():
    with pytest.raises(ValueError, match="--ppo-steps must be at least 1, got 0"):
        Args(ppo_steps=0)
