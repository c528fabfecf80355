"""The recipes of docs/use-elr.md for other people's trainers, run as they stand there."""

import math

import pytest
import torch

from tests.documents import python_blocks, run

PAGE = "docs/use-elr.md"


def test_stable_baselines3(tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (code,) = python_blocks(PAGE, "Stable-Baselines3")
    defined = run(code)
    handle, model = defined["callback"].handle, defined["model"]
    # Three times 500 steps in rollouts of 128: 4 + 4 + 4 calls of train(), each 10 epochs of 2 minibatches.
    assert handle.updates == 3 * 4 * 10 * 2
    assert 80 in handle.rewarming.events  # restart() after the first learn()
    held = {name: float(weight.detach().norm()) for name, weight in handle.projection.weights.items()}
    assert held == pytest.approx(handle.projection.norms, rel=1e-5) and len(held) == 4
    assert model.policy.optimizer.param_groups[0]["lr"] == 3e-4 != handle.rate  # the model's own, when learn() is over
    assert (tmp_path / "ppo_cartpole.zip").exists() and any((tmp_path / "logs").rglob("events*"))


@pytest.mark.filterwarnings(r"ignore:::pytorch_lightning(\.|$)")
@pytest.mark.filterwarnings(r"ignore:::lightning_")
def test_lightning(tmp_path):
    pl = pytest.importorskip("pytorch_lightning")
    from pytorch_lightning.loggers import CSVLogger
    from torch.utils.data import DataLoader, TensorDataset

    (code,) = python_blocks(PAGE, "Lightning")
    Regression = run(code)["Regression"]
    x = torch.randn(320, 8, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, x[:, :1].sin()), batch_size=32)

    def fit(epochs, checkpoint=None):
        torch.manual_seed(0)
        model = Regression()
        trainer = pl.Trainer(
            max_epochs=epochs, logger=CSVLogger(tmp_path), accelerator="cpu", enable_progress_bar=False,
            enable_model_summary=False, log_every_n_steps=1, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(model, data, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return model

    whole = fit(12)
    assert whole.handle.updates == 120
    held = {name: float(weight.detach().norm()) for name, weight in whole.handle.projection.weights.items()}
    assert held == pytest.approx(whole.handle.projection.norms, rel=1e-6)
    peak, final = 1e-3, 1e-5
    assert whole.handle.rate == pytest.approx(peak - (peak - final) * (1 - math.cos(math.pi * 70 / 950)) / 2)
    fit(5)
    resumed = fit(12, tmp_path / "5.ckpt")
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert "elr/0" in next(tmp_path.rglob("metrics.csv")).read_text()
