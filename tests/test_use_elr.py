"""The recipes of docs/use-elr.md and README's example, run as they stand there."""

import pytest
import torch

import elr
from tests.documents import ROOT, python_blocks, run

PAGE = "docs/use-elr.md"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def norms(handle):
    return {name: float(weight.detach().norm()) for name, weight in handle.projection.weights.items()}


def test_plain_loop(capsys):
    code, _ = python_blocks(PAGE, "A plain PyTorch loop")
    handle = run(code)["handle"]
    assert handle.updates == 5000
    assert norms(handle) == pytest.approx(handle.projection.norms, rel=1e-5)
    assert len(handle.rewarming.events) == 1 and 4000 < handle.rewarming.events[0] <= 4200  # the change, and no other
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11  # every 500 updates, and the alarm
    assert "'elr/0'" in lines[0] and "'rewarm/event': 1.0" in "".join(lines)


def test_readme_shows_the_plain_loop_of_the_page():
    (readme,) = python_blocks("README.md", "elr in your own loop")
    assert readme == python_blocks(PAGE, "A plain PyTorch loop")[0]


def test_every_block_of_the_page_is_run():
    """Here, or in tests/integrations, where the framework is installed."""
    here = {"A plain PyTorch loop": 2, "Metrics only, on any SummaryWriter": 1, "What you call": 1, "Your network": 1}
    elsewhere = {"Stable-Baselines3": 1, "Lightning": 1}
    assert {heading: len(python_blocks(PAGE, heading)) for heading in (*here, *elsewhere)} == {**here, **elsewhere}
    assert (ROOT / PAGE).read_text().count("```python\n") == sum((*here.values(), *elsewhere.values()))
    recipes = (ROOT / "tests" / "integrations" / "test_recipes.py").read_text()
    assert all(f'python_blocks(PAGE, "{heading}")' in recipes for heading in elsewhere)


def test_resume_of_the_plain_loop_is_exact(tmp_path):
    """The loop stopped at 700 of 900 updates, its state saved and loaded by the lines of the page."""
    from torch.utils.tensorboard import SummaryWriter

    code, resume = python_blocks(PAGE, "A plain PyTorch loop")
    setup, loop = code.split("for update in range(1, 5001):")
    save, load = resume.split("# in the new process")

    def go(names, first, last):
        run(f"for update in range({first}, {last + 1}):{loop}", **names)

    torch.manual_seed(0)
    whole = run(setup)
    go(whole, 1, 900)
    torch.manual_seed(0)
    first = run(setup)
    go(first, 1, 700)
    run(save, **first, path=tmp_path / "saved.pt")
    torch.manual_seed(1)
    second = run(setup)
    names = {**second, "path": tmp_path / "saved.pt", "log_dir": tmp_path, "SummaryWriter": SummaryWriter}
    run(load.split("\n", 1)[1], **names)["writer"].close()
    go(second, 701, 900)
    for ours, theirs in zip(second["network"].parameters(), whole["network"].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert second["handle"].state_dict() == whole["handle"].state_dict()


def test_metrics_only(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    (code,) = python_blocks(PAGE, "Metrics only, on any SummaryWriter")
    assert len([line for line in code.splitlines() if line]) <= 20
    run(code)
    control = "schedule=elr.LinearDecay(1e-2, 1e-4, decay_steps=300), trigger=elr.Every(500)"
    controlled = code.replace("projection=elr.NoProjection()", control).replace("logs/without", "logs/with")
    assert control in controlled
    run(controlled)
    for name in ("with", "without"):
        events = EventAccumulator(str(tmp_path / "logs" / name))
        events.Reload()
        tags = events.Tags()["scalars"]
        assert {"elr/0", "plasticity/dead_fraction/2", "plasticity/delta_c/2", "norms/parameter/0"} <= set(tags)
        assert [event.step for event in events.Scalars("elr/0")] == list(range(20, 1001, 20))
        assert [event.step for event in events.Scalars("plasticity/dead_fraction/2")] == list(range(0, 1001, 100))
        assert [event.step for event in events.Scalars("plasticity/delta_c/2")] == list(range(100, 1001, 100))
        assert [event.step for event in events.Scalars("rewarm/event")] == [500, 1000] if name == "with" else True
        assert ("rewarm/event" in tags) == (name == "with")
        norm = [event.value for event in events.Scalars("norms/parameter/0")]
        held = max(norm) / min(norm) < 1 + 1e-5  # measured before the step, after the projection of the last one
        assert held == (name == "with")


def test_calls_as_they_are_listed():
    network = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.LayerNorm(8), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(network.parameters())
    (code,) = python_blocks(PAGE, "What you call")
    handle = run(code, elr=elr, network=network, optimizer=optimizer)["handle"]
    listed = (ROOT / PAGE).read_text().split("## What you call")[1].split("## ")[0]
    for name in ("signal", "restart", "scalars", "rate", "updates", "state_dict", "load_state_dict", "detach"):
        assert f"handle.{name}" in listed and hasattr(handle, name)


class Kinds(torch.nn.Module):
    """Has what the lines about networks name."""

    def __init__(self):
        super().__init__()

        def mlp():
            hidden = [torch.nn.Linear(6, 6, bias=False), torch.nn.LayerNorm(6), torch.nn.ReLU()]
            return torch.nn.Sequential(*hidden, torch.nn.Identity(), torch.nn.Linear(6, 2))

        self.actor, self.critic, self.encoder = mlp(), mlp(), torch.nn.Linear(6, 6, bias=False)
        self.fc, self.norm = torch.nn.Module(), torch.nn.Module()
        self.fc.weight_mu, self.fc.weight_sigma = (torch.nn.Parameter(torch.randn(6, 6)) for _ in range(2))
        self.norm.g = torch.nn.Parameter(torch.ones(6))
        self.actor_logstd = torch.nn.Parameter(torch.zeros(1, 2))

    def forward(self, x):
        x = torch.nn.functional.layer_norm(x @ (self.fc.weight_mu + self.fc.weight_sigma), (6,)) * self.norm.g
        return self.actor(x), self.critic(x)


def test_lines_about_networks_name_arguments_that_exist():
    """Each line, completed by the names that the others give."""
    (code,) = python_blocks(PAGE, "Your network")
    lines = [line.split("#")[0].strip() for line in code.splitlines()]
    assert len(lines) == 6
    everything = {
        "heads": ["actor.4", "critic.4"],
        "leave": ["encoder", "actor_logstd"],
        "more_weights": [("fc.weight_mu", "fc.weight_sigma")],
        "more_gains": ["norm.g"],
    }
    for line in lines:
        given = eval(line.replace("elr.Projection(network, ", "dict("), {"batch": torch.randn(16, 6)})
        (name,) = given
        assert name in (*everything, "check_inputs", "allow_scale_dependent")
        if name in everything:
            assert given[name] == everything[name]
        projection = elr.Projection(Kinds(), **{**everything, **given})
        assert sorted(projection.weights) == ["actor.0", "critic.0", "fc.weight_mu"]
