"""The shipped warm-starting script: data order, networks, schedules, control, interventions, flags, exact resume."""

from __future__ import annotations

import dataclasses
import math
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from agents import warm_start as script
from agents.warm_start import Args, Minibatches, NapArgs, Pixels, ProbeArgs, RewarmArgs, ScheduleArgs, SwitchArgs
from elr.scale_invariance import check_scale_invariance
from elr.weights import scalable_weights
from envs.images import Images, load_images
from runs.experiments.shared.warm_start import gap
from runs.sweeps.experiment import Result
from runs.recording import NonFiniteError, RunError, load_checkpoint, parse, read_scalars, read_status
from tests.agents import scripts
from tests.agents.scripts import assert_same, finish, kill_beyond

SCRIPT = Path(__file__).parents[2] / "agents" / "warm_start.py"
SMALL = {"phase_updates": 30, "width": 4, "hidden": 8, "batch_size": 16, "threads": 1, "eval_every": 10, "log_every": 1}
SMALL_PROBE = ProbeArgs(every=10, size=16, meter_every=5)
FREE = NapArgs(enabled=False)


def small(directory=None, **changes):
    return Args(**{**SMALL, "probe": SMALL_PROBE, "directory": directory, **changes})


def run(directory, **changes):
    script.main(small(directory, **changes))
    return read_scalars(directory)


# data


def test_minibatches_are_epochs_without_replacement_and_grow():
    minibatches = Minibatches(10, 4, np.random.default_rng(0))
    drawn = np.concatenate([minibatches.draw() for _ in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert list(drawn[:10]) != list(drawn[10:])
    minibatches.grow(13)
    assert sorted(np.concatenate([minibatches.draw() for _ in range(13)])) == sorted([*range(13)] * 4)
    tiny = Minibatches(3, 8, np.random.default_rng(0)).draw()  # a batch of more than two epochs
    assert sorted(tiny[:3]) == sorted(tiny[3:6]) == [0, 1, 2] and len(tiny) == 8


def made(name="digits", channels=1, count=12, size=8, seed=0):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(200, size=(count, channels, size, size)).astype(np.uint8))
    y = torch.from_numpy(rng.integers(10, size=count))
    return Images(x, y, x.flip(0), y.flip(0), 10, name, "made")


def test_pixels_are_normalised_by_channel_of_the_training_set():
    images = made(channels=3)
    x = Pixels(images, torch.device("cpu")).normalised(images.train_x)
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_augmentation_shifts_and_mirrors_cifar_only(name):
    images = made(name, count=400, size=8)
    pixels = Pixels(images, torch.device("cpu"))
    x = images.train_x + 1  # so that 0 is padding
    out = pixels.augmented(x, np.random.default_rng(0))
    padded = F.pad(x, (1, 1, 1, 1))
    seen = set()
    for before, after in zip(padded, out, strict=True):
        options = {
            (dy, dx, flip): (lambda w: w.flip(2) if flip else w)(before[:, dy : dy + 8, dx : dx + 8])
            for dy in range(3)
            for dx in range(3)
            for flip in (False, True)
        }
        found = [key for key, window in options.items() if torch.equal(window, after)]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == (18 if name == "cifar10" else 9)
    assert name == "cifar10" or not any(flip for *_, flip in seen)


def test_phases_are_as_long_as_asked():
    assert script.phase_lengths(Args(phase_updates=7), [10, 100]) == [7, 7]
    assert script.phase_lengths(Args(phase_epochs=3, batch_size=32), [10, 100]) == [1, 10]
    alone = Args(fractions=(1.0,), rewarm=RewarmArgs(trigger="cusum"))
    assert script.phase_lengths(alone, [100]) == [1000]
    for args, named in (
        (Args(nap=NapArgs(every=2001)), "--nap.every"),
        (Args(rewarm=RewarmArgs(trigger="cycle", cycles=3)), "--rewarm.cycles"),
        (Args(rewarm=RewarmArgs(trigger="cusum", burn_in=50)), "--rewarm.burn-in"),
        (Args(rewarm=RewarmArgs(trigger="cusum", refractory=50)), "--rewarm.refractory"),
    ):
        with pytest.raises(ValueError, match=named):
            script.phase_lengths(args, [100, 1000])


# networks


@pytest.mark.parametrize("model", ["cnn", "resnet18"])
def test_networks_are_scale_invariant_but_for_the_head(model):
    args = small() if model == "cnn" else Args(model=model)
    network = script.make_network(args, (3, 16, 16), 10, 0, torch.device("cpu"))
    weights = scalable_weights(network, heads=["head"])
    check_scale_invariance(network, torch.randn(8, 3, 16, 16), weights)
    assert all(
        p is network.head.weight or any(p is w for w in weights.values()) for p in network.parameters() if p.ndim > 1
    )
    assert model == "cnn" or all(m.bias is None for m in network.modules() if isinstance(m, torch.nn.Linear))
    if model == "resnet18":
        assert sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) for m in network.modules()) == 17
    assert set(network.probed) <= {name for name, _ in network.named_modules()}


def test_the_papers_hidden_layer_is_refused_unless_meant(tmp_path):
    with pytest.raises(RunError, match=r"--nap.*hidden"):
        script.main(small(tmp_path / "a", hidden_norm=False))
    run(tmp_path / "b", hidden_norm=False, nap=NapArgs(allow_scale_dependent=True))


# schedules and triggers


def rates(scalars):
    return [rate for _, rate in scalars["charts/learning_rate"]]


@pytest.mark.parametrize(
    "rewarm, peaks",
    [
        (RewarmArgs(trigger="never"), [4]),
        (RewarmArgs(), [3, 33]),
        (RewarmArgs(peak_factor=3.0), [3, 33]),
        (RewarmArgs(trigger="cycle", cycles=5), [2, 14, 26, 38, 50]),
    ],
)
def test_the_rate_follows_schedule_and_trigger(tmp_path, rewarm, peaks):
    """Peaks are updates (from 1) at which the rate is greatest in its decay: warm-up of 5 % of 60, 30 or 12 updates."""
    found = rates(run(tmp_path / "r", rewarm=rewarm))
    assert len(found) == 60
    local = [
        i + 1 for i in range(60) if found[i] == max(found[max(0, i - 4) : i + 5]) and found[i] >= 1e-3 * (1 - 1e-9)
    ]
    assert local == peaks
    factor = rewarm.peak_factor
    assert found[peaks[0] - 1] == 1e-3 and all(found[p - 1] == pytest.approx(factor * 1e-3) for p in peaks[1:])


def test_cusum_is_fed_the_loss_of_the_warm_network(tmp_path):
    rewarm = RewarmArgs(trigger="cusum", block=2, burn_in=4, refractory=3, threshold=1.0, slack=0.1)
    scalars = run(tmp_path / "r", rewarm=rewarm, phase_updates=80)
    twin = script.make_trigger(small(rewarm=rewarm), 160)
    losses = dict(scalars["train/loss"])
    events, statistics = [], {}
    for update in range(1, 160):  # the last update has no next rate to set
        if twin.fires(update, losses[update]):
            events.append(update)
        statistics[update] = twin.statistic
    assert [u for u, _ in scalars["rewarm/event"]] == events and events
    assert {u: v for u, v in scalars["rewarm/statistic"] if u < 160} == pytest.approx(statistics)


# control and interventions


def test_every_phase_anneals_to_its_end(tmp_path):
    """Three phases of unequal length, by epochs: the rate is lowest at each switch and highest soon after it."""
    args = {"fractions": (0.25, 0.5, 1.0), "phase_epochs": 1, "phase_updates": 1000}
    found = rates(run(tmp_path / "r", **args))
    ends = np.cumsum(script.phase_lengths(small(**args), [360, 719, 1438]))
    assert list(ends) == [23, 68, 158]
    for end in ends[:-1]:
        assert found[end - 1] < 1e-5 and found[end] == 1e-6 and max(found[end : end + 6]) == 1e-3
    assert found[-1] < 1e-5


def test_all_off_is_plain_adamw_bit_for_bit(tmp_path):
    """Two phases of plain training: no projection, a constant rate, nothing at the switch, and a control beside it."""
    once, constant = RewarmArgs(trigger="never"), ScheduleArgs(kind="constant")
    args = small(tmp_path / "r", nap=FREE, rewarm=once, schedule=constant, fractions=(0.5, 1.0), weight_decay=0.1)
    script.main(args)
    streams = np.random.SeedSequence(args.seed).spawn(6)
    split_rng, rng = (np.random.default_rng(s) for s in streams[:2])
    images = load_images("digits")
    order = torch.from_numpy(split_rng.permutation(len(images.train_y)))
    x, y = images.train_x[order].float(), images.train_y[order]
    pixels = Pixels(images, torch.device("cpu"))
    x = (x - pixels.mean) / pixels.deviation
    torch.manual_seed(int(streams[4].generate_state(1)[0]))
    plain = script.CNN(x.shape[1:], images.classes, args).to(memory_format=torch.channels_last)
    decayed = [p for p in plain.parameters() if p.ndim > 1]
    others = [p for p in plain.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    for n in (round(0.5 * len(y)), len(y)):
        upcoming: list[int] = []
        for _ in range(args.phase_updates):
            while len(upcoming) < args.batch_size:
                upcoming += rng.permutation(n).tolist()
            batch, upcoming = torch.tensor(upcoming[: args.batch_size]), upcoming[args.batch_size :]
            loss = F.cross_entropy(plain(x[batch].contiguous(memory_format=torch.channels_last)), y[batch])
            adam.zero_grad()
            loss.backward()
            adam.step()
    saved = load_checkpoint(tmp_path / "r" / "checkpoint.pt")["state"]["warm"]["network"]
    for name, p in plain.state_dict().items():
        assert torch.equal(p, saved[name]), name


@pytest.mark.parametrize("nap", [FREE, NapArgs()])
def test_a_reset_network_is_the_control_bit_for_bit(tmp_path, nap, monkeypatch):
    """The strongest check of the pairing: same weights, minibatches, rate and moments from the switch on.

    Networks made later than the first are here all the same; as shipped each has a seed of its own.
    """
    made_by_seed, make = [], script.make_network

    def make_network(args, shape, classes, seed, device):
        made_by_seed.append(seed)
        return make(args, shape, classes, seed if len(made_by_seed) == 1 else 7, device)

    monkeypatch.setattr(script, "make_network", make_network)
    switch = SwitchArgs(optimizer="reset", intervention="reset")
    scalars = run(tmp_path / "r", nap=nap, switch=switch, l2_init=1e-3, weight_decay=0.1, augment=True)
    gaps = scalars["test/gap"]
    assert [u for u, _ in gaps] == [30, 40, 50, 60] and all(gap == 0.0 for _, gap in gaps)
    assert scalars["test/loss"][-4:] == scalars["test/loss_fresh"]
    assert len(set(made_by_seed)) == 3
    made_by_seed.clear()
    other = run(tmp_path / "o", nap=nap, switch=dataclasses.replace(switch, intervention="reset-head"))
    assert other["test/loss"][-4:] != other["test/loss_fresh"]


def test_the_control_changes_nothing(tmp_path):
    one, other = run(tmp_path / "a"), run(tmp_path / "b", control="none")
    assert one["test/loss"] == other["test/loss"] and "test/gap" not in other
    assert one["test/gap"][-1][1] == pytest.approx(
        100 * (one["test/accuracy_fresh"][-1][1] - one["test/accuracy"][-1][1])
    )
    # and the rules of experiments take it as it is, in points
    assert gap(Result("arm", "", 1, {}, one)) == one["test/gap"][-1][1]


def test_measuring_changes_nothing(tmp_path):
    one, other = run(tmp_path / "a"), run(tmp_path / "b", probe=ProbeArgs(every=0, meter_every=0, size=16))
    assert one["test/loss"] == other["test/loss"]
    assert "plasticity/delta_a/hidden_relu" in one and not any(tag.startswith("plasticity") for tag in other)


def learner(**changes):
    args = small(**changes)
    network = script.make_network(args, (1, 8, 8), 10, 3, torch.device("cpu"))
    check = torch.randn(16, 1, 8, 8)
    built = script.make_learner(args, network, check, script.Constant(1e-3), script.Never())
    F.cross_entropy(network(check), torch.arange(16) % 10).backward()
    built.optimizer.step()
    return args, built, check


def test_interventions_do_what_they_say():
    fresh = script.make_network(small(), (1, 8, 8), 10, 4, torch.device("cpu"))
    for name in ("none", "shrink-and-perturb", "reset-head", "reset"):
        args, built, check = learner(nap=FREE, switch=SwitchArgs(intervention=name, optimizer="reset"))
        before = {n: p.detach().clone() for n, p in built.network.named_parameters()}
        script.intervene(args, built, fresh, check)
        for n, p in built.network.named_parameters():
            new = dict(fresh.named_parameters())[n]
            expected = {
                "none": before[n],
                "shrink-and-perturb": 0.4 * before[n] + 0.1 * new,
                "reset-head": new if n.startswith("head") else before[n],
                "reset": new,
            }[name]
            assert torch.allclose(p, expected, atol=1e-7), (name, n)
            assert not built.optimizer.state[p]["exp_avg"].any() and built.optimizer.state[p]["step"] == 0
    args, built, check = learner(switch=SwitchArgs(intervention="shrink-and-perturb"))  # projected
    script.intervene(args, built, fresh, check)
    for name, weight in built.projection.weights.items():
        assert weight.norm().item() == pytest.approx(built.projection.norms[name], rel=1e-5)
    args, built, check = learner(nap=FREE)
    script.intervene(args, built, fresh, check)
    assert all(built.optimizer.state[p]["step"] == 1 for p in built.network.parameters())


def test_matrices_decay_and_vectors_do_not():
    _, built, _ = learner(weight_decay=0.3, assignment="slow-features")
    decayed = {id(p) for g in built.optimizer.param_groups if g["weight_decay"] == 0.3 for p in g["params"]}
    assert decayed == {id(p) for p in built.network.parameters() if p.ndim > 1}
    held = [p for g in built.optimizer.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(map(id, built.network.parameters()))
    rate = {id(p): g["lr"] for g in built.optimizer.param_groups for p in g["params"]}
    assert rate[id(built.network.head.weight)] == 1e-3 and rate[id(built.network.hidden.weight)] == 1e-4


def test_l2_init_pulls_towards_the_start(tmp_path):
    distance = {}
    for strength in (0.0, 10.0):
        script.main(small(tmp_path / str(strength), nap=FREE, l2_init=strength))
        state = load_checkpoint(tmp_path / str(strength) / "checkpoint.pt")["state"]["warm"]["network"]
        seeds = np.random.SeedSequence(1).spawn(6)
        start = script.make_network(small(), (1, 8, 8), 10, int(seeds[4].generate_state(1)[0]), torch.device("cpu"))
        distance[strength] = sum((state[n] - p).square().sum().item() for n, p in start.named_parameters())
    assert distance[10.0] < 0.6 * distance[0.0]  # Adam takes steps of its own size, however strong the pull


def test_evaluation_is_of_the_test_set_whatever_the_batch():
    images = made(count=30)
    images = dataclasses.replace(images, test_x=images.test_x[:20], test_y=images.test_y[:20])
    pixels = Pixels(images, torch.device("cpu"))
    network = script.make_network(small(), (1, 8, 8), 10, 3, torch.device("cpu"))
    logits = network(pixels.normalised(images.test_x))
    expected = F.cross_entropy(logits, images.test_y).item(), (logits.argmax(1) == images.test_y).double().mean().item()
    for batch_size in (7, 500):
        assert script.evaluate(network, pixels, batch_size) == pytest.approx(expected, rel=1e-5)


def test_gradient_norm_against_autograd_by_hand():
    network, x, y = torch.nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    network(x)
    error = (network(x).softmax(1) - F.one_hot(y, 4)) / 5
    expected = math.sqrt((error.T @ x).square().sum().item() + error.sum(0).square().sum().item())
    assert script.gradient_norm(network, x, y) == pytest.approx(expected, rel=1e-5)
    assert all(p.grad is None for p in network.parameters())


def test_old_and_new_images_are_told_apart(tmp_path, monkeypatch):
    scalars = run(tmp_path / "r")
    assert [u for u, _ in scalars["norms/gradient_old"]] == [0, 10, 20, 30, 40, 50, 60]
    assert [u for u, _ in scalars["norms/gradient_new"]] == [30, 40, 50, 60]
    seen = []
    norm = script.gradient_norm
    monkeypatch.setattr(script, "gradient_norm", lambda network, x, y: seen.append(y) or norm(network, x, y))
    script.main(small(tmp_path / "s", probe=ProbeArgs(every=30, size=1000, meter_every=0)))
    images = load_images("digits")
    order = torch.from_numpy(np.random.default_rng(np.random.SeedSequence(1).spawn(6)[0]).permutation(1438))
    answers = images.train_y[order]  # 144 are known before the switch, and as many of the new ones are compared
    for found, expected in zip(seen, [answers[:144], *[answers[:144], answers[144:288]] * 2], strict=True):
        assert torch.equal(found, expected)
    assert scalars["shift/boundary"] == [(30, 1.0)] and scalars["shift/task"] == [(0, 0.0), (30, 1.0)]


def test_phases_grow_in_order(tmp_path, monkeypatch):
    sizes = []
    grow = Minibatches.grow
    monkeypatch.setattr(Minibatches, "grow", lambda self, n: sizes.append(n) or grow(self, n))
    run(tmp_path / "r", fractions=(0.25, 0.5, 1.0))
    count = len(load_images("digits").train_y)
    assert sizes == [round(0.25 * count), round(0.5 * count), count]


# flags


def test_every_flag_is_read():
    groups = {
        "nap": NapArgs, "schedule": ScheduleArgs, "rewarm": RewarmArgs, "switch": SwitchArgs, "probe": ProbeArgs,
    }  # fmt: skip
    assert scripts.unread_flags(script, groups, {"switch": "s", "rewarm": "r"}) == []


@pytest.mark.parametrize(
    "flags, named",
    [
        (["unconstrained", "--nap.every", "5"], ["--nap.every", "--nap.enabled"]),
        (["--data-folder", "x"], ["--data-folder", "--dataset digits"]),
        (["--batches", "1", "2"], ["--batches", "--dataset digits"]),
        (["--dataset", "mnist", "--data-folder", "x", "--cache", "y"], ["--cache", "--data-folder"]),
        (["--phase-epochs", "2", "--phase-updates", "7"], ["--phase-updates", "--phase-epochs"]),
        (["--model", "resnet18", "--hidden", "7"], ["--hidden", "resnet18"]),
        (["--fractions", "0.5", "0.1"], ["--fractions"]),
        (["--fractions", "1.0"], ["--rewarm.trigger switch", "--fractions"]),
        (["--fractions", "1.0", "--rewarm.trigger", "never", "--control", "none"], ["--control", "single phase"]),
        (["--schedule.kind", "constant"], ["--rewarm.trigger switch", "--schedule.kind constant"]),
        (["--schedule.kind", "constant", "--schedule.low", "1e-5"], ["--schedule.low", "constant"]),
        (["--schedule.low", "0.1"], ["--schedule.low", "--learning-rate"]),
        (["--rewarm.threshold", "3"], ["--rewarm.threshold", "--rewarm.trigger switch"]),
        (["--rewarm.moments", "reset"], ["--rewarm.moments", "--rewarm.trigger switch"]),
        (["unconstrained", "--rewarm.peak-factor", "3"], ["--rewarm.peak-factor", "--rewarm.trigger never"]),
        (["--switch.intervention", "shrink-and-perturb", "--switch.shrink", "1", "--switch.perturb", "0"], ["nothing"]),
        (["--weight-decay", "500", "--rewarm.peak-factor", "10"], ["--weight-decay", "--rewarm.peak-factor"]),
        (["--nap.gains", "decay", "--nap.gain-strength", "2000"], ["--nap.gain-strength", "--learning-rate"]),
        (["--device", "meta"], ["--device meta"]),
        (["--switch.shrink", "0.5"], ["--switch.shrink", "--switch.intervention none"]),
        (["--bf16"], ["--bf16", "--device cpu"]),
        (["--weight-decay", "2000"], ["--weight-decay", "--learning-rate"]),
        (["--probe.every", "0", "--probe.tau", "0.2"], ["--probe.tau", "--probe.every 0"]),
        (["fig4"], ["fig4-"]),
        (["--widht", "3"], ["--widht"]),
    ],
)
def test_conflicting_and_mistyped_flags_are_refused_by_name(flags, named, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Args, script.PRESETS, flags)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in named), message


def test_presets_are_the_arms_of_the_figures():
    parsed = {name: parse(Args, script.PRESETS, [name]) for name in script.PRESETS}
    for prefix, arms in (("fig4-", 6), ("fig5-left-", 4), ("fig5-right-", 4), ("fig9-", 2), ("fig13-", 8)):
        assert sum(name.startswith(prefix) for name in parsed) == arms
    assert all(args.exp_name == name for name, args in parsed.items() if args.dataset == "cifar10")


# failures and resuming


def test_a_run_killed_after_its_last_update_is_resumed_to_its_summary(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script.Run, "finish", lambda self, step: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        script.main(small(tmp_path / "r"))
    monkeypatch.undo()
    script.main(small(tmp_path / "r", resume=tmp_path / "r"))
    assert "gap" in capsys.readouterr().out and read_status(tmp_path / "r")["status"] == "finished"


def test_missing_data_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"--dataset.*data_batch_1\.bin") as error:
        script.main(small(tmp_path / "r", dataset="cifar10", data_folder=tmp_path))
    assert "\n" not in str(error.value) and not (tmp_path / "r").exists()


@pytest.mark.parametrize("whose", [0, 1])
def test_nan_stops_the_run_and_leaves_the_checkpoint_from_before(tmp_path, monkeypatch, whose):
    step, made_by = torch.optim.AdamW.step, []

    def poisoned(self, *args, **kwargs):
        step(self, *args, **kwargs)
        made_by.append(id(self))
        if len(made_by) > 36 and self is not None and list(dict.fromkeys(made_by)).index(id(self)) == whose:
            self.param_groups[0]["params"][0].data.view(-1)[0] = math.nan

    monkeypatch.setattr(torch.optim.AdamW, "step", poisoned)
    with pytest.raises(
        NonFiniteError, match=r"not finite at update 3\d.*" + ("the control's" if whose else "the weight")
    ):
        script.main(small(tmp_path / "r", checkpoint_every=10, nap=FREE))
    assert read_status(tmp_path / "r")["status"] == "failed"
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 30


def test_seeds_decide_everything(tmp_path):
    a, b, c = (run(tmp_path / name, seed=seed, augment=True) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert a == b and a["norms/parameter/conv1"][0] != c["norms/parameter/conv1"][0]


FLAGS = (
    "--width 4 --hidden 8 --batch-size 16 --threads 1 --phase-epochs 5 --fractions 0.2 0.5 1.0 --augment "
    "--checkpoint-every 45 --eval-every 150 --log-every 7 --probe.every 50 --probe.size 16 --probe.meter-every 11 "
    "--l2-init 1e-4 --weight-decay 0.01 --nap.every 3 "
)
VARIANTS = {
    "cusum": "--rewarm.trigger cusum --rewarm.block 5 --rewarm.burn-in 10 --rewarm.threshold 2 --rewarm.moments reset",
    "reset": "--switch.intervention reset --switch.optimizer reset --rewarm.peak-factor 2",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_interrupted_and_resumed_is_bit_identical(tmp_path, variant):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = shlex.split(FLAGS + VARIANTS[variant])
    finish(scripts.start(SCRIPT, *flags, "--directory", whole))
    kill_beyond(scripts.start(SCRIPT, *flags, "--directory", killed), killed, 220, signal.SIGKILL)
    output = kill_beyond(scripts.start(SCRIPT, "--resume", killed), killed, 640, signal.SIGINT)
    step = read_status(killed)["step"]
    assert f"stopped at update {step}" in output and f"--resume {killed}" in output
    output = finish(scripts.start(SCRIPT, "--resume", killed))
    assert "fresh network" in output and "gap" in output
    assert (killed / "scalars.csv").read_bytes() == (whole / "scalars.csv").read_bytes()
    assert_same(*(load_checkpoint(d / "checkpoint.pt")["state"] for d in (whole, killed)))
