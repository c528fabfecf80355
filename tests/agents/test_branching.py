"""Every script: a branch without changed flags is its parent bit for bit; with one, only what it governs differs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shlex
import shutil
import typing

import numpy as np
import pytest
import torch

from runs.analysis.curves import read_table, with_history
from runs.recording import (
    RunError,
    config_from_dict,
    config_to_dict,
    exit_with_one_line,
    load_checkpoint,
    parse,
    read_scalars,
    read_status,
)
from runs.training.branching import HONOURED, IN_PHASES, OWN, REFUSED, Branch, rule
from tests.agents import scripts
from tests.agents.scripts import assert_same

ATARI = (
    "chain-cusum --env-id rewarm/Catch-v0 --shift.kind actions --shift.games --shift.every-steps 130 --seed 5 "
    "--total-timesteps 200 --learning-starts 60 --buffer-size 120 --batch-size 4 --num-envs 2 "
    "--target-network-frequency 40 --checkpoint-every 40 --log-every 2 --eval-every 0 --schedule.period-steps 100 "
    "--rewarm.block 2 --rewarm.burn-in 5 --rewarm.refractory 5 --rewarm.threshold 1 --rewarm.slack 0.1 "
    "--rewarm.moments reset --nap.every 3 --switch.intervention reset-head --reset.at-steps 180 --reset.layers dense "
    "--probe.every 20 --probe.size 8 --probe.meter-every 7 --keep-checkpoints-every 80 "
)
# Everything with a state is on. The flags, the step to branch at, and the end.
RUNS = {
    "ppo_control": (
        "levels-nap-cusum --env-id CartPole-v1 --seed 7 --total-timesteps 768 --num-envs 4 --num-steps 16 "
        "--num-minibatches 4 --update-epochs 2 --width 16 --max-episode-steps 14 --checkpoint-every 3 --eval-every 2 "
        "--eval-episodes 2 --probe.every 20 --probe.size 16 --probe.meter-every 7 --shift.every-steps 200 "
        "--shift.tasks 3 --schedule.period-steps 192 --rewarm.block 2 --rewarm.burn-in 3 --rewarm.refractory 3 "
        "--rewarm.threshold 0.3 --rewarm.slack 0.1 --intervene.methods l2-init redo --intervene.when every "
        "--intervene.every 30 --keep-checkpoints-every 384",
        384,
    ),
    "ppo_minatar": (
        "chain-cusum --seed 7 --total-timesteps 768 --num-envs 4 --num-steps 16 --num-minibatches 4 --update-epochs 2 "
        "--shift.games MinAtar/Asterix-v0 MinAtar/SpaceInvaders-v0 --shift.every-steps 200 --schedule.period-steps 300 "
        "--rewarm.block 2 --rewarm.burn-in 4 --rewarm.refractory 4 --rewarm.threshold 0.3 --rewarm.slack 0.1 "
        "--checkpoint-every 3 --eval-every 0 --probe.every 20 --probe.size 16 --probe.meter-every 7 --nap.every 3 "
        "--intervene.methods churn --keep-checkpoints-every 384",
        384,
    ),
    "ppo_atari": (
        "adaptive --env-id rewarm/Catch-v0 --seed 11 --total-timesteps 192 --num-envs 2 --num-steps 16 "
        "--num-minibatches 2 --update-epochs 1 --shift.kind noise --shift.values 0.1 0.5 --shift.every-steps 70 "
        "--schedule.period-steps 100 --rewarm.block 1 --rewarm.burn-in 2 --rewarm.refractory 2 --rewarm.threshold 0.05 "
        "--rewarm.slack 0.01 --nap.every 3 --checkpoint-every 1 --eval-every 0 --probe.every 5 --probe.size 8 "
        "--probe.meter-every 3 --keep-checkpoints-every 96",
        96,
    ),
    "dqn_minatar": (
        "adaptive --env-id MinAtar/Asterix-v1 --seed 7 --total-timesteps 300 --learning-starts 60 --buffer-size 100 "
        "--exploration-steps 700 --target-network-frequency 150 --checkpoint-every 50 --log-every 1 --eval-every 0 "
        "--nap.every 3 --schedule.period-steps 150 --rewarm.block 5 --rewarm.burn-in 5 --rewarm.threshold 2 "
        "--rewarm.slack 0.1 --rewarm.refractory 5 --rewarm.moments reset --probe.every 60 --probe.size 16 "
        "--probe.meter-every 17 --intervene.methods continual-backprop --intervene.maturity 20 --intervene.rate 0.01 "
        "--keep-checkpoints-every 150",
        150,
    ),
    "dqn_atari": (ATARI + "--n-step 3 --exploration-steps 150", 80),
    "rainbow_atari": (ATARI, 80),
    "grokking": (
        "--p 7 --operation add --seed 3 --total-updates 240 --blocks 1 --heads 2 --head-size 4 --hidden 16 "
        "--batch-size 8 --train-fraction 0.5 --schedule.kind warmup-cosine --schedule.low 1e-4 "
        "--schedule.warmup-updates 20 --schedule.decay-updates 100 --rewarm.trigger at --rewarm.at-update 60 "
        "--rewarm.moments reset --intervene.methods l2-init --probe.every 20 --probe.size 16 --probe.meter-every 7 "
        "--checkpoint-every 40 --keep-checkpoints-every 120 --threads 1",
        120,
    ),
    "warm_start": (
        "--train-images 120 --seed 3 --phase-updates 60 --width 4 --hidden 8 --batch-size 16 --eval-every 20 "
        "--log-every 1 --checkpoint-every 20 --probe.every 15 --probe.size 16 --probe.meter-every 7 --fractions 0.3 1 "
        "--intervene.methods l2-init --threads 1 --keep-checkpoints-every 40",
        80,  # in the second phase, where the control trains as well
    ),
}  # fmt: skip
SCRIPTS = [*RUNS, "theory"]
MEASURED = ("plasticity/", "elr", "norms/")


def module_of(name):
    return importlib.import_module(f"agents.{name}")


def run(name, *words):
    module = module_of(name)
    module.main(parse(module.Args, module.PRESETS, [str(word) for word in words]))


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """The directory of a script's parent run, made once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "parent"
            run(name, *shlex.split(RUNS[name][0]), "--directory", made[name])
        return made[name]

    return make


def branch(name, directory, out, *words, step=None):
    run(name, "--branch", f"{directory}@{RUNS[name][1] if step is None else step}", "--directory", out, *words)
    return out


def rows(directory, after, leave=()):
    """(tag, step, value) beyond a step, in the order of writing within a tag."""
    table = read_scalars(directory)
    kept = {tag: points for tag, points in table.items() if tag != "charts/SPS" and not tag.startswith(leave)}
    return {tag: one for tag, points in kept.items() if (one := [(s, str(v)) for s, v in points if s > after])}


def state_of(directory):
    """Of the latest checkpoint, without the names of the pieces, which depend on when it was written."""
    state = load_checkpoint(directory / "checkpoint.pt")["state"]
    state.get("replay", {}).pop("pieces", None)
    return state


# what is carried over


@pytest.mark.parametrize("name", RUNS)
def test_without_changed_flags_it_is_the_parent_also_when_resumed_without_it(name, parent, tmp_path, monkeypatch):
    directory, (_, step) = parent(name), RUNS[name]
    source = tmp_path / "source"
    shutil.copytree(directory, source)
    with monkeypatch.context() as stopping, pytest.raises(SystemExit):
        scripts.stop_at(stopping, step + 1)
        branch(name, source, tmp_path / "child")
    assert not [path for path in (tmp_path / "child").rglob("*") if path.is_symlink()]
    shutil.rmtree(source)
    run(name, "--resume", tmp_path / "child")
    assert rows(tmp_path / "child", step) == rows(directory, step)
    assert_same(state_of(tmp_path / "child"), state_of(directory))
    assert min(s for points in read_scalars(tmp_path / "child").values() for s, _ in points) >= step
    config = json.loads((tmp_path / "child" / "config.json").read_text())
    theirs = json.loads((directory / "config.json").read_text())
    assert config["branch"] == f"{source}@{step}"
    assert {key for key in config if config[key] != theirs[key]} == {"branch", "directory"}
    record = json.loads((tmp_path / "child" / "provenance.json").read_text())["branch"]
    assert record["step"] == step and record["changed"] == {} and record["directory"] == str(source.resolve())
    assert record["revision"] == json.loads((directory / "provenance.json").read_text())["git"]["revision"]


@pytest.mark.parametrize("name", RUNS)
def test_with_another_learning_rate_the_first_loss_is_the_parents_and_the_weights_differ(name, parent, tmp_path):
    directory, (_, step) = parent(name), RUNS[name]
    child = branch(name, directory, tmp_path / "child", "--learning-rate", "0.002")
    ours, theirs = rows(child, step), rows(directory, step)
    loss = "train/loss" if name == "warm_start" else "losses/td_loss"
    if loss in theirs:  # the others record losses after many updates
        assert ours[loss][0] == theirs[loss][0] and ours[loss][-1] != theirs[loss][-1]
    rate = [float(one["charts/learning_rate"][0][1]) for one in (ours, theirs)]
    was = json.loads((directory / "config.json").read_text())["learning_rate"]
    assert rate[0] != rate[1] and (rate[0] > rate[1]) == (was < 0.002)
    network = "q_network" if "q_network" in state_of(child) else "network"
    if name == "warm_start":
        networks = state_of(child)["warm"]["network"], state_of(directory)["warm"]["network"]
    else:
        networks = state_of(child)[network], state_of(directory)[network]
    assert any(not torch.equal(a, b) for a, b in zip(networks[0].values(), networks[1].values(), strict=True))
    changed = json.loads((child / "provenance.json").read_text())["branch"]["changed"]
    assert changed == {"--learning-rate": [was, 0.002]}


@pytest.mark.parametrize("name", RUNS)
def test_with_other_measurements_nothing_else_differs(name, parent, tmp_path):
    directory, (_, step) = parent(name), RUNS[name]
    child = branch(name, directory, tmp_path / "child", "--probe.every", "4", "--probe.meter-every", "5")
    own = ("rewarm/event",) if name == "grokking" else ()  # nothing at this trigger
    ours, theirs = (rows(one, step, (*MEASURED, "intervene/", "rewarm/statistic", *own)) for one in (child, directory))
    assert ours == theirs
    assert rows(child, step) != rows(directory, step)
    parts = [part for part in state_of(child) if part not in ("probe", "meter", "warm")]
    for part in parts:
        assert_same(state_of(child)[part], state_of(directory)[part], part)


@pytest.mark.parametrize("name", RUNS)
def test_each_part_begins_as_documented(name, parent, tmp_path, monkeypatch):
    """Projection off, and on again in a branch of that branch; another schedule; other methods."""
    directory = parent(name)
    seen = {}
    module = importlib.import_module("runs.training.session")
    restore = module.Session.restore

    def restored(session):
        restore(session)
        seen.update({part: one for part, one in session._parts.items()})
        seen["at"] = {
            key: one.state_dict() for key, one in seen.items() if key in ("rewarming", "projection", "methods")
        }

    monkeypatch.setattr(module.Session, "restore", restored)
    free = ["--nap.no-enabled", "--keep-checkpoints-every", "0"]
    middle = branch(name, directory, tmp_path / "free", *free)
    state = state_of(middle)["warm" if name == "warm_start" else "projection"]
    assert (state["projection"] if name == "warm_start" else state) == {}
    if name == "warm_start":
        return
    assert seen["at"]["rewarming"]["updates"] > 0  # carried over

    # Projection on again: the norms are those of the weights at the branch point.
    total = {"grokking": "--total-updates"}.get(name, "--total-timesteps")
    end = load_checkpoint(middle / "checkpoint.pt")["step"]
    more = [total, end * 2, "--nap.enabled"]
    scripts.stop_at(monkeypatch, end + 1)
    if name in ("dqn_atari", "rainbow_atari"):
        with pytest.raises(RunError, match="its replay memory is not there"):  # of a finished run
            branch(name, middle, tmp_path / "held", *more, step=end)
        return
    with pytest.raises(SystemExit):
        branch(name, middle, tmp_path / "held", *more, step=end)
    weights = state_of(middle)["q_network" if "q_network" in state_of(middle) else "network"]
    for layer, norm in seen["at"]["projection"]["norms"].items():
        tensor = weights.get(f"{layer}.weight", weights.get(layer))
        assert norm == pytest.approx(float(tensor.double().norm()), rel=1e-9)


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("warm_start",)])
def test_another_schedule_begins_at_the_branch_point(name, parent, tmp_path):
    directory, (_, step) = parent(name), RUNS[name]
    if name == "grokking":
        words = ["--schedule.decay-updates", "50", "--rewarm.trigger", "never"]
    else:
        words = ["--schedule.kind", "linear-decay", "--schedule.period-steps", "80", "--rewarm.trigger", "never"]
        if name == "ppo_control":
            words += ["--intervene.methods"]
    child = branch(name, directory, tmp_path / "child", *words)
    rewarming = state_of(child)["rewarming"]
    before = load_checkpoint(directory / "checkpoints" / f"step-{step}.pt")["state"]
    updates = state_of(child)["counters"]["updates"] - before["counters"]["updates"]
    if name == "grokking":
        updates = 240 - step
    assert rewarming["updates"] == rewarming["since"] == updates > 0
    config = json.loads((child / "config.json").read_text())
    assert (
        config["rewarm"]["trigger"] == "never" and config["rewarm"].get("threshold", 8.0) == 8.0
    )  # cusum's own: default
    if name != "grokking":  # 80 steps are over, and the rate is at its bottom
        assert float(rows(child, step)["charts/learning_rate"][-1][1]) == pytest.approx(config["schedule"]["low"])


def test_a_new_method_begins_with_the_weights_at_the_branch_point(parent, tmp_path, monkeypatch):
    directory, (_, step) = parent("ppo_control"), RUNS["ppo_control"]
    run_end = step + 1
    with monkeypatch.context() as stopping, pytest.raises(SystemExit):
        scripts.stop_at(stopping, run_end)
        branch("ppo_control", directory, tmp_path / "c", "--nap.no-enabled", "--intervene.methods", "l2-init", "trac")
    methods = state_of(tmp_path / "c")["methods"]["methods"]
    saved = load_checkpoint(directory / "checkpoints" / f"step-{step}.pt")["state"]
    assert_same(methods["l2-init"], saved["methods"]["methods"]["l2-init"])  # as it was in the parent
    for name, start in methods["trac"]["start"].items():
        assert torch.equal(start, saved["network"][name])


# environments


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ppo_control", "--shift.kind offsets --shift.every-steps 500"),
        ("ppo_control", "--shift.kind physics --shift.what length --shift.values 0.5 1.5 --shift.at-steps 450"),
        ("ppo_control", "--shift.kind sticky --shift.values 0.2 0.6 --shift.at-steps 450"),
        ("ppo_minatar", "--shift.kind actions --shift.every-steps 500"),
        ("dqn_minatar", "--shift.kind pixels --shift.at-steps 250"),
        ("dqn_atari", "--shift.kind actions --shift.every-steps 100"),
    ],
)
def test_a_shift_begins_at_its_first_task_around_the_running_episodes(name, words, parent, tmp_path):
    flags = {
        "ppo_control": RUNS["ppo_control"][0].replace("levels-nap-cusum", "nap --network normalised"),
        "ppo_minatar": RUNS["ppo_minatar"][0].replace("chain-cusum", "nap"),
        "dqn_minatar": RUNS["dqn_minatar"][0],
        "dqn_atari": RUNS["dqn_atari"][0].replace("chain-cusum", "nap"),
    }[name]
    kept, skip = [], False
    for word in shlex.split(flags):
        if word.startswith("--"):
            skip = word.startswith(("--shift", "--rewarm", "--schedule", "--switch", "--intervene"))
        kept += [] if skip else [word]
    kept += ["--directory", tmp_path / "p"]
    if name == "dqn_minatar":
        kept[0] = "nap"
    run(name, *kept)
    step = RUNS[name][1]
    same = branch(name, tmp_path / "p", tmp_path / "same")
    child = branch(name, tmp_path / "p", tmp_path / "c", *shlex.split(words))
    changes = [s for s, _ in read_scalars(child)["shift/boundary"]]
    first = int(words.split()[-1])
    assert len(changes) == 1 and first <= changes[0] < first + 4
    assert read_scalars(child)["shift/task"][0] == (step, 0)
    if "sticky" in words:  # from the first task on
        return
    before = {tag: [p for p in points if p[0] < first - 70] for tag, points in rows(child, step).items()}
    theirs = {tag: [p for p in points if p[0] < first - 70] for tag, points in rows(same, step).items()}
    assert {t: p for t, p in before.items() if p} == {t: p for t, p in theirs.items() if p}
    returns = [[p for p in rows(one, step).get("charts/episodic_return", []) if p[0] < first] for one in (child, same)]
    assert returns[0] == returns[1]


def test_other_times_of_changes(parent, tmp_path):
    directory, (_, step) = parent("ppo_control"), RUNS["ppo_control"]
    assert [s for s, _ in read_scalars(directory)["shift/boundary"]] == [200, 400, 600]
    child = branch("ppo_control", directory, tmp_path / "c", "--shift.every-steps", "0", "--shift.at-steps", "600")
    assert [s for s, _ in read_scalars(child)["shift/boundary"]] == [600]
    assert read_scalars(child)["shift/task"] == [(step, 1), (600, 2)]


# refusals


def refused(capsys, name, *words):
    with pytest.raises(SystemExit) as end:
        exit_with_one_line(lambda: run(name, *words))
    message = capsys.readouterr().err.strip()
    assert end.value.code not in (0, None) and "\n" not in message, message
    return message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--seed 8", "--seed cannot change in a branch, from 7 to 8: its random streams"),
        ("--num-envs 8", "--num-envs cannot change"),
        ("--width 32", "--width cannot change"),
        ("--env-id Acrobot-v1", "--env-id cannot change"),
        ("--shift.tasks 4", "--shift.tasks cannot change"),
        ("--shift.kind none --intervene.methods", "--shift.kind cannot change"),
        ("--total-timesteps 384 --shift.every-steps 200", "nothing is left to do: --total-timesteps is 384"),
        ("--shift.every-steps 0 --shift.at-steps 300 700", "--shift.at-steps 300 never comes"),
        ("--resume x", "give one of them"),
        ("--keep-checkpoints-every 100", "checkpoints are written every 192 steps"),
        ("--schedule.kind linear-decay", "--schedule.period-steps 0, the whole run, has no meaning"),
        ("--gradient auto", "unknown flag --gradient"),
        ("--extend 900", "--extend needs --resume"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(words, said, parent, tmp_path, capsys):
    source = f"{parent('ppo_control')}@384"
    out = tmp_path / "out"
    message = refused(capsys, "ppo_control", "--branch", source, "--directory", out, *shlex.split(words))
    assert said in message
    assert not out.exists()


def test_a_parent_that_cannot_be_is_one_line(parent, tmp_path, capsys):
    directory = parent("ppo_control")

    def say(source, name="ppo_control", *words):
        message = refused(capsys, name, *words, "--branch", source)
        assert not (tmp_path / "out").exists()
        return message

    assert "there is no such directory" in say(tmp_path / "none")
    assert "not a run directory" in say(tmp_path)
    assert "a whole number, got 'x'" in say(f"{directory}@x")
    assert "at step 400: the steps of its kept checkpoints are: 384, 768" in say(f"{directory}@400")
    assert "the preset nap cannot be given with --branch" in say(directory, "ppo_control", "nap")
    assert "unknown keys" in say(directory, "dqn_minatar")
    assert "that of the run to branch from" in say(directory, "ppo_control", "--directory", str(directory))
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    data = bytearray((copy / "checkpoints" / "step-384.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "checkpoints" / "step-384.pt").write_bytes(data)
    assert "is damaged" in say(f"{copy}@384")
    (copy / "checkpoint.pt").unlink()
    assert "it has no checkpoint" in say(copy)


def names_of(cls, prefix=""):
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from names_of(kind, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_has_a_rule(name):
    cls = module_of(name).Args
    config = {field.name: None for field in dataclasses.fields(cls)}
    for flag in names_of(cls):
        honoured, why = rule(flag, config)
        assert why and isinstance(honoured, bool)


def test_no_rule_is_of_a_flag_that_does_not_exist_or_is_there_twice():
    flags = {flag for name in SCRIPTS for flag in names_of(module_of(name).Args)}
    known = flags | {f"{flag.partition('.')[0]}.*" for flag in flags if "." in flag}
    assert set(HONOURED) | set(REFUSED) | set(IN_PHASES) | set(OWN) <= known
    assert not set(HONOURED) & set(REFUSED)


def test_a_flag_of_a_copied_script_that_has_no_rule_cannot_change(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Copied(module_of("ppo_control").Args):
        dropout: float = 0.0
        """share of units set to zero"""

    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(Copied())))
    Branch(parse(Copied, {}, ["--branch", str(tmp_path)]))
    with pytest.raises(RunError) as refusal:
        Branch(parse(Copied, {}, ["--branch", str(tmp_path), "--dropout", "0.5"]))
    assert str(refusal.value) == (
        "--dropout cannot change in a branch: no rule says what that would mean; add one to HONOURED or REFUSED in "
        "runs/training/branching.py"
    )


# flags that are read when they are needed

OTHERWISE = {
    "gamma": "0.5", "gae_lambda": "0.3", "value_lambda": "0.3", "clip_coef": "0.001", "ent_coef": "0.5",
    "vf_coef": "0.1", "max_grad_norm": "0.01", "adam_eps": "0.1", "adam_beta2": "0.5", "weight_decay": "0.5",
    "batch_size": "5", "n_step": "1", "target_network_frequency": "50", "end_e": "0.9",
    "exploration_steps": "20", "prioritized_replay_beta": "1", "prioritized_replay_uniform": "0.9",
}  # fmt: skip
FIELDS = {name: {field.name for field in dataclasses.fields(module_of(name).Args)} for name in RUNS}
PAIRS = [
    (name, flag)
    for name, fields in FIELDS.items()
    for flag in OTHERWISE
    if flag in fields and rule(flag, dict.fromkeys(fields))[0] and (name, flag) != ("rainbow_atari", "n_step")
]


@pytest.mark.parametrize(("name", "flag"), PAIRS)
def test_a_flag_that_is_read_when_needed_changes_what_is_learned(name, flag, parent, tmp_path):
    directory = parent(name)
    words = ["--weight-decay", "0.5"] if flag == "weight_decay" else [f"--{flag.replace('_', '-')}", OTHERWISE[flag]]
    child = branch(name, directory, tmp_path / "c", *words)
    network = "q_network" if "q_network" in state_of(child) else "network"
    ours, theirs = state_of(child)[network], state_of(directory)[network]
    assert any(not torch.equal(ours[key], theirs[key]) for key in ours)
    if flag in ("adam_eps", "weight_decay"):
        group = state_of(child)["optimizer"]["param_groups"][0]
        assert group[{"adam_eps": "eps"}.get(flag, flag)] == float(OTHERWISE[flag])


# a finished run is made longer


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("warm_start", "rainbow_atari")])
def test_a_finished_run_made_longer_is_a_run_of_that_length(name, tmp_path):
    flags = RUNS[name][0]
    total = "--total-updates" if name == "grokking" else "--total-timesteps"
    words = shlex.split(flags)
    end = int(words[words.index(total) + 1])
    if name == "dqn_atari":
        words += ["--keep-checkpoints-every", "200"]
    longer = {
        "ppo_control": 960,
        "ppo_minatar": 960,
        "dqn_minatar": 350,
        "dqn_atari": 240,
        "ppo_atari": 256,
        "grokking": 300,
    }[name]
    whole, short = tmp_path / "whole", tmp_path / "short"
    run(name, *words, "--directory", short)
    run(name, *words, total, longer, "--keep-checkpoints-every", 0, "--directory", whole)
    assert read_status(short)["status"] == "finished"
    run(name, "--resume", short, "--extend", longer)
    assert read_status(short)["status"] == "finished" and read_status(short)["step"] == longer
    config = json.loads((short / "config.json").read_text())
    assert config[total[2:].replace("-", "_")] == longer and config["extend"] is None
    record = json.loads((short / "provenance.json").read_text())["resumed"][-1]
    assert record["step"] == end and record["extended"] == {total[2:].replace("-", "_"): [end, longer]}
    # What is recorded at the first end as well:
    supervised = ("test/", "train/", "charts/learning_rate", "plasticity/logit_scale")
    leave = supervised if name == "grokking" else ("eval/", "charts/average_return")  # its points follow the length
    assert rows(short, -1, leave) == rows(whole, -1, leave)
    ours, theirs = state_of(short), state_of(whole)
    assert_same(ours, theirs)


def test_extensions_that_change_the_past_are_refused(parent, tmp_path, capsys):
    words = shlex.split(RUNS["ppo_control"][0])
    at = words.index("--schedule.period-steps")
    words[at + 1] = "0"
    run("ppo_control", *words, "--directory", tmp_path / "p")
    message = refused(capsys, "ppo_control", "--resume", tmp_path / "p", "--extend", "960")
    assert "--schedule.period-steps 0 spreads --schedule.kind" in message
    assert read_status(tmp_path / "p")["status"] == "finished"
    assert "--prioritized-replay-beta" in refused(
        capsys, "rainbow_atari", "--resume", parent("rainbow_atari"), "--extend", "400"
    )
    assert "does not make the run longer" in refused(
        capsys, "ppo_control", "--resume", tmp_path / "p", "--extend", "700"
    )
    assert "follows from other flags" in refused(
        capsys, "warm_start", "--resume", parent("warm_start"), "--extend", "700"
    )


def test_an_end_at_a_change_of_the_task_is_no_place_to_continue_from(tmp_path, capsys):
    words = shlex.split(RUNS["ppo_control"][0])
    words[words.index("--shift.every-steps") + 1] = "192"
    run("ppo_control", *words, "--directory", tmp_path / "p")
    for more in (["--resume", tmp_path / "p", "--extend", 960], ["--branch", tmp_path / "p", "--total-timesteps", 960]):
        assert "the task changed in the last step or iteration" in refused(capsys, "ppo_control", *more)
    assert read_status(tmp_path / "p")["status"] == "finished"


# kept checkpoints


def test_kept_checkpoints_stay_with_their_pieces(parent):
    directory = parent("dqn_atari")
    assert sorted(path.name for path in (directory / "checkpoints").glob("*.pt")) == ["step-160.pt", "step-80.pt"]
    state = load_checkpoint(directory / "checkpoints" / "step-80.pt")["state"]
    names = {f"{name}.pt" for name, *_ in state["replay"]["pieces"]}
    assert names == {path.name for path in (directory / "checkpoints" / "step-80").iterdir()}
    assert not (directory / "pieces").exists()


def test_a_finished_run_without_its_replay_memory_has_no_state_to_branch_from(parent, capsys):
    message = refused(capsys, "dqn_atari", "--branch", parent("dqn_atari"), "--total-timesteps", "300")
    assert "its replay memory is not there" in message and "--keep-checkpoints-every" in message


def test_a_configuration_from_before_these_flags_is_read(parent):
    config = json.loads((parent("ppo_control") / "config.json").read_text())
    cls = module_of("ppo_control").Args
    args = config_from_dict(cls, {key: value for key, value in config.items() if key not in cls.LATER})
    assert args.branch is None and args.extend is None and args.keep_checkpoints_every == 0


def test_the_curves_of_a_branch_with_its_history(parent, tmp_path):
    directory, (_, step) = parent("ppo_control"), RUNS["ppo_control"]
    child = branch("ppo_control", directory, tmp_path / "c")
    whole, joined = read_table(directory), with_history(child, read_table(child))
    assert read_table(child)["charts/learning_rate"][0].min() > step
    for tag in ("charts/learning_rate", "losses/value_loss", "charts/episodic_return"):
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(joined[tag], whole[tag], strict=True))
    (child / "provenance.json").write_text(
        (child / "provenance.json").read_text().replace(str(directory), str(tmp_path / "gone"))
    )
    with pytest.raises(RunError, match="leave out --history"):
        with_history(child, read_table(child))


def test_records_are_finite(parent):
    for name in ("ppo_control", "dqn_atari"):
        values = [value for points in read_scalars(parent(name)).values() for _, value in points]
        assert np.isfinite(values).all()
