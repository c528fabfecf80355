"""Event files written by other programs' own code, and the commands: what works, and what is refused in one line."""

import importlib
import json
import re

import pytest

from runs.__main__ import main
from runs.recording import RunError

CONFIG = {"exp_name": "theirs", "env_id": "CartPole-v1", "total_timesteps": 2000, "track": False}
WRITERS = {"torch": "torch.utils.tensorboard", "tensorboardX": "tensorboardX"}


def written(package, directory, seed, text):
    """What a script with a SummaryWriter leaves behind; `text`: with CleanRL's hyperparameters."""
    writer = pytest.importorskip(WRITERS[package]).SummaryWriter(str(directory))
    if text:
        rows = "\n".join(f"|{key}|{value}|" for key, value in {**CONFIG, "seed": seed}.items())
        writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
    for step in range(0, 2001, 50):
        writer.add_scalar("charts/episodic_return", step * seed, step)
        writer.add_scalar("losses/value_loss", 1.0, step)
    writer.add_hparams({"lr": 1e-3}, {"score": 1.0})  # torch puts another event file into a folder below
    writer.close()
    return directory


def trained(directory, seed):
    """What Stable-Baselines3 leaves behind."""
    ppo = pytest.importorskip("stable_baselines3").PPO
    log = str(directory)
    ppo("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=1, seed=seed, tensorboard_log=log).learn(512)
    return directory / "PPO_1"


def configured(directory, seed):
    """With the configuration that the refusal asks for."""
    (directory / "config.json").write_text(json.dumps({"exp_name": "theirs", "seed": seed, "env_id": "CartPole-v1"}))
    return directory


MADE = {
    "CleanRL": lambda folder, seed: written("torch", folder, seed, text=True),
    "CleanRL by tensorboardX": lambda folder, seed: written("tensorboardX", folder, seed, text=True),
    "torch": lambda folder, seed: written("torch", folder, seed, text=False),
    "tensorboardX": lambda folder, seed: written("tensorboardX", folder, seed, text=False),
    "torch, config.json": lambda folder, seed: configured(written("torch", folder, seed, text=False), seed),
    "Stable-Baselines3": trained,
    "Stable-Baselines3, config.json": lambda folder, seed: configured(trained(folder, seed), seed),
}
NO_CONFIG = "has no configuration: .* Write a config.json with exp_name, seed and env_id next to it"
NONE = ("torch", "tensorboardX", "Stable-Baselines3")
"""without a configuration"""
REFUSALS = {
    "evaluate": r"is not a run of these scripts \(no \w+\.json\): evaluate needs a run's flags and checkpoint",
    "changes": "records no shift/task: run it with --shift",
    "around": "records no shift/boundary: its task never changes",
    "alarms": r"has no --rewarm\.trigger: leave it out",
    "gaps": "has recorded no test/gap: it has no control, or is not a run of warm_start.py",
    "fig2-left": r"is not a run of agents/grokking\.py: it has no scalars\.csv",
    "report": "is no experiment .* for runs, use board, compare or plot",
    "show": "is no experiment .* for runs, use board, compare or plot",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of each kind, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("runs")
            made[kind] = [str(MADE[kind](folder / f"s{seed}", seed)) for seed in (1, 2)]
        return made[kind]

    return of


def refused(verb, words):
    """The one line in which a command refuses."""
    with pytest.raises(RunError) as caught:
        main([verb, *words])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", MADE)
def test_board_and_compare_need_a_configuration(runs, kind, tmp_path, capsys):
    words, page = runs(kind), tmp_path / "page"
    if kind in NONE:
        assert all(re.search(NO_CONFIG, refused(verb, words)) for verb in ("board", "compare"))
        return
    main(["board", *words, "--out", str(page)])
    assert [path.name for path in page.iterdir() if path.is_dir()] == ["theirs, n = 2"]
    main(["compare", *words])
    tag = "rollout/ep_rew_mean" if "Baselines" in kind else "charts/episodic_return"
    table = capsys.readouterr().out
    assert tag in table and "| theirs | CartPole-v1 | 2 |" in table


@pytest.mark.parametrize("kind", MADE)
def test_plot_needs_none(runs, kind, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    style = importlib.import_module("runs.figures.style")
    figures, save = [], style.save
    monkeypatch.setattr(style, "save", lambda figure, paths: (figures.append(figure), save(figure, paths)))
    words = runs(kind)
    main(["plot", *words, "--history", "--out", str(tmp_path / "curves.png")])
    first = figures[0].axes[0]
    tag = "rollout/ep_rew_mean" if "Baselines" in kind else "charts/episodic_return"
    assert first.get_title() == tag and len(first.lines) >= 2
    labels = [text.get_text() for legend in figures[0].legends for text in legend.get_texts()]
    if kind not in NONE:
        assert labels == ["theirs, seed 1", "theirs, seed 2"]
    elif "Baselines" in kind:
        assert labels == [f"PPO_1 ({word})" for word in words]
    else:
        assert labels == ["s1", "s2"]


@pytest.mark.parametrize("verb", REFUSALS)
@pytest.mark.parametrize("kind", MADE)
def test_what_needs_our_runs_is_refused_in_one_line(runs, kind, verb):
    needs_config = verb in ("changes", "around", "alarms", "gaps")
    words = runs(kind)[: 1 if verb == "show" else 2]
    assert re.search(NO_CONFIG if kind in NONE and needs_config else REFUSALS[verb], refused(verb, words))


def test_a_folder_of_runs_is_told_where_they_are(runs, tmp_path):
    written("torch", tmp_path / "log" / "PPO_1", 1, text=True)
    for verb in ("compare", "plot"):
        assert f"; there are runs in {tmp_path / 'log' / '*'}" in refused(verb, [str(tmp_path / "log")])


def test_unusual_tags_are_listed(tmp_path):
    directory = str(tmp_path / "r")
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(directory)
    writer.add_scalar("my/score", 1.0, 5)
    writer.close()
    told = refused("plot", [directory])
    assert re.search("nothing that is usually drawn; name .* by --tags. It holds my/score", told)
    configured(tmp_path / "r", 1)
    assert refused("around", [directory]).endswith(REFUSALS["around"])  # not asked for --tags, which would not help
