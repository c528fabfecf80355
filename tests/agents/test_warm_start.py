"""The shipped warm-starting script: networks, schedules, control, interventions, flags, resuming, edited copies."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from agents import warm_start as script
from agents.warm_start import Args, NapArgs, ProbeArgs, RewarmArgs, ScheduleArgs, SwitchArgs
from elr.interventions.flags import BASELINES, InterveneArgs
from elr.scale_invariance import check_scale_invariance
from elr.weights import scalable_weights
from envs.images import Images, load_images
from envs.minibatches import Minibatches, Pixels
from runs.experiments.shared.warm_start import gap
from runs.recording import NonFiniteError, Run, RunError, load_checkpoint, parse, read_scalars, read_status
from runs.sweeps.experiment import Result
from tests.agents import scripts
from tests.agents.scripts import assert_same, finish, kill_beyond

SCRIPT = Path(__file__).parents[2] / "agents" / "warm_start.py"
SMALL = {"phase_updates": 30, "width": 4, "hidden": 8, "batch_size": 16, "threads": 1, "eval_every": 10, "log_every": 1}
SMALL_PROBE = ProbeArgs(every=10, size=16, meter_every=5)
FREE = NapArgs(enabled=False)
CPU = torch.device("cpu")


def small(directory=None, **changes):
    return Args(**{**SMALL, "probe": SMALL_PROBE, "directory": directory, **changes})


def run(directory, **changes):
    """The scalars of a small run."""
    script.main(small(directory, **changes))
    return read_scalars(directory)


def state(directory):
    """What the last checkpoint holds."""
    return load_checkpoint(directory / "checkpoint.pt")["state"]


def digits_network(seed=3, **changes):
    return script.make_network(small(**changes), (1, 8, 8), 10, seed, CPU)


@pytest.fixture(autouse=True, scope="module")
def pictures():
    """Directories of the runs for which a picture was asked; none is drawn, because each takes longer than its run."""
    asked = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(script, "draw_comparison", lambda directory, curves, ylabel: asked.append((directory, curves)))
        yield asked


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """Directory and scalars of the small run as it is, for the tests that compare with it."""
    directory = tmp_path_factory.mktemp("warm_start") / "default"
    return directory, run(directory)


# phases


def test_phases_are_as_long_as_asked():
    assert script.phase_lengths(Args(phase_updates=7), [10, 100]) == [7, 7]
    assert script.phase_lengths(Args(phase_epochs=3, batch_size=32), [10, 100]) == [1, 10]
    alone = Args(fractions=(1.0,), rewarm=RewarmArgs(trigger="cusum"))
    assert script.phase_lengths(alone, [100]) == [1000]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"nap": NapArgs(every=2001)}, "--nap.every 2001: .*2000 updates"),
        ({"rewarm": RewarmArgs(trigger="cycle", cycles=3)}, "--rewarm.cycles 3: .*2000 updates"),
        ({"rewarm": RewarmArgs(trigger="cusum", burn_in=50)}, "--rewarm.burn-in 50 and --rewarm.block 20: .*1000"),
        ({"rewarm": RewarmArgs(trigger="cusum", refractory=50)}, "--rewarm.refractory 50 and --rewarm.block 20: "),
    ],
)
def test_flags_that_do_not_fit_the_phases_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        script.phase_lengths(Args(**changes), [100, 1000])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train_images": 1439}, "--train-images 1439: there are 1438"),
        ({"train_images": 9, "fractions": (0.01, 1.0)}, "--fractions .*none of the 9 images"),
        ({"nap": NapArgs(every=61)}, "--nap.every 61"),
    ],
)
def test_what_does_not_fit_the_data_is_one_line_before_anything_is_written(changes, named, tmp_path):
    with pytest.raises(RunError, match=named) as error:
        run(tmp_path / "r", **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "r").exists()


# networks


@pytest.mark.parametrize("model", ["cnn", "resnet18"])
def test_networks_are_scale_invariant_except_for_the_head(model):
    args = small() if model == "cnn" else Args(model=model)
    network = script.make_network(args, (3, 16, 16), 10, 0, CPU)
    weights = scalable_weights(network, heads=network.heads)
    check_scale_invariance(network, torch.randn(4, 3, 16, 16), weights)
    matrices = {id(p) for p in network.parameters() if p.ndim > 1}
    assert matrices == {id(network.head.weight), *map(id, weights.values())}
    assert set(network.probed) <= {name for name, _ in network.named_modules()}
    if model == "resnet18":
        assert all(m.bias is None for m in network.modules() if isinstance(m, torch.nn.Linear))
        assert sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) for m in network.modules()) == 17


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


def test_all_off_is_plain_adam_bit_for_bit(tmp_path):
    """Two phases of plain training: no projection, a constant rate, nothing at the switch, and a control as well."""
    once, constant = RewarmArgs(trigger="never"), ScheduleArgs(kind="constant")
    args = small(tmp_path / "r", nap=FREE, rewarm=once, schedule=constant, fractions=(0.5, 1.0))
    script.main(args)
    streams = np.random.SeedSequence(args.seed).spawn(6)
    split_rng, rng = (np.random.default_rng(s) for s in streams[:2])
    images = load_images("digits")
    order = torch.from_numpy(split_rng.permutation(len(images.train_y)))
    x, y = images.train_x[order].float(), images.train_y[order]
    pixels = Pixels(images, CPU)
    x = (x - pixels.mean) / pixels.deviation
    torch.manual_seed(int(streams[4].generate_state(1)[0]))
    plain = script.CNN(x.shape[1:], images.classes, args).to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3, fused=True)
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

    Here all networks made after the first have the same seed; as shipped each has its own.
    """
    made_by_seed, make = [], script.make_network

    def make_network(args, shape, classes, seed, device):
        made_by_seed.append(seed)
        return make(args, shape, classes, seed if len(made_by_seed) == 1 else 7, device)

    monkeypatch.setattr(script, "make_network", make_network)
    switch = SwitchArgs(optimizer="reset", intervention="reset")
    scalars = run(tmp_path / "r", nap=nap, switch=switch, augment=True)
    gaps = scalars["test/gap"]
    assert [u for u, _ in gaps] == [30, 40, 50, 60] and all(gap == 0.0 for _, gap in gaps)
    assert scalars["test/loss"][-4:] == scalars["test/loss_fresh"]
    assert len(set(made_by_seed)) == 3
    made_by_seed.clear()
    other = run(tmp_path / "o", nap=nap, switch=dataclasses.replace(switch, intervention="reset-head"))
    assert other["test/loss"][-4:] != other["test/loss_fresh"]


def test_the_control_changes_nothing(default_run, tmp_path):
    one, other = default_run[1], run(tmp_path / "r", control="none")
    assert one["test/loss"] == other["test/loss"]
    assert "test/gap" not in other


def test_the_gap_is_in_points_and_is_what_the_rules_of_experiments_read(default_run):
    _, scalars = default_run
    expected = 100 * (scalars["test/accuracy_fresh"][-1][1] - scalars["test/accuracy"][-1][1])
    assert scalars["test/gap"][-1][1] == pytest.approx(expected)
    assert gap(Result("arm", "", 1, {}, scalars)) == scalars["test/gap"][-1][1]


def test_a_finished_run_draws_both_accuracies(default_run, pictures):
    directory, scalars = default_run
    (curves,) = (curves for asked, curves in pictures if asked == directory)
    assert curves == {"test/accuracy": "warm", "test/accuracy_fresh": "fresh"}
    assert curves.keys() <= scalars.keys()


def test_measuring_changes_nothing(default_run, tmp_path):
    one, other = default_run[1], run(tmp_path / "r", probe=ProbeArgs(every=0, meter_every=0, size=16))
    assert one["test/loss"] == other["test/loss"]
    assert "plasticity/delta_a/hidden_relu" in one and not any(tag.startswith("plasticity") for tag in other)


def learner(**changes):
    """After one update, so that the optimiser has moments."""
    args, network, check = small(**changes), digits_network(), torch.randn(16, 1, 8, 8)
    built = script.make_learner(
        args, network, check, script.Constant(1e-3), script.Never(), args.intervene, digits_network
    )
    F.cross_entropy(network(check), torch.arange(16) % 10).backward()
    built.optimizer.step()
    return built


@pytest.mark.parametrize(
    ("intervention", "expected"),
    [
        ("none", lambda name, old, new: old),
        ("shrink-and-perturb", lambda name, old, new: 0.4 * old + 0.1 * new),
        ("reset-head", lambda name, old, new: new if name.startswith("head") else old),
        ("reset", lambda name, old, new: new),
    ],
)
def test_interventions_do_what_they_say(intervention, expected):
    built, fresh = learner(nap=FREE), digits_network(seed=4)
    before = {name: p.detach().clone() for name, p in built.network.named_parameters()}
    script.intervene_(SwitchArgs(intervention=intervention, optimizer="reset"), built, fresh)
    new = dict(fresh.named_parameters())
    for name, p in built.network.named_parameters():
        assert torch.allclose(p, expected(name, before[name], new[name]), atol=1e-7), name
        assert not built.optimizer.state[p]["exp_avg"].any() and built.optimizer.state[p]["step"] == 0


def test_shrink_and_perturb_keeps_the_norms_that_projection_holds():
    built = learner()
    script.intervene_(SwitchArgs(intervention="shrink-and-perturb"), built, digits_network(seed=4))
    for name, weight in built.projection.weights.items():
        assert weight.norm().item() == pytest.approx(built.projection.norms[name], rel=1e-5)


def test_a_reset_moves_the_norms_and_the_origin_of_l2_init():
    """Another intervention leaves the origin."""
    pull = BASELINES["l2-init"]
    for intervention, leaves in (("reset", False), ("shrink-and-perturb", True)):
        built, fresh = learner(intervene=pull), digits_network(seed=4)
        before = built.methods.state_dict()
        assert built.methods.scalars()["intervene/l2_init_penalty"] > 0
        script.intervene_(SwitchArgs(intervention=intervention), built, fresh)
        assert (built.methods.scalars()["intervene/l2_init_penalty"] > 0) is leaves
        if leaves:
            assert_same(before, built.methods.state_dict())
            continue
        for name, weight in scalable_weights(fresh, heads=fresh.heads).items():
            assert built.projection.norms[name] == pytest.approx(weight.norm().item(), rel=1e-5)


def test_moments_are_kept_unless_they_are_reset():
    built = learner(nap=FREE)
    script.intervene_(SwitchArgs(), built, digits_network(seed=4))
    assert all(built.optimizer.state[p]["step"] == 1 for p in built.network.parameters())


def test_the_optimiser_holds_every_parameter_at_the_rate_of_its_layer():
    built = learner(assignment="slow-features")
    held = [p for g in built.optimizer.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(map(id, built.network.parameters()))
    rate = {id(p): g["lr"] for g in built.optimizer.param_groups for p in g["params"]}
    assert rate[id(built.network.head.weight)] == 1e-3 and rate[id(built.network.hidden.weight)] == 1e-4


def test_l2_init_pulls_towards_the_start(tmp_path):
    start = digits_network(seed=int(np.random.SeedSequence(1).spawn(6)[4].generate_state(1)[0]))
    distance = {}
    for strength in (0.0, 10.0):
        pull = InterveneArgs(("l2-init",), pull=strength) if strength else InterveneArgs()
        run(tmp_path / str(strength), nap=FREE, intervene=pull, control="none")
        weights = state(tmp_path / str(strength))["warm"]["network"]
        distance[strength] = sum((weights[n] - p).square().sum().item() for n, p in start.named_parameters())
    assert distance[10.0] < 0.6 * distance[0.0]  # Adam takes steps of its own size, however strong the pull


def test_evaluation_is_of_the_test_set_whatever_the_batch():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(200, size=(50, 1, 8, 8)).astype(np.uint8))
    y = torch.from_numpy(rng.integers(10, size=50))
    pixels, network = Pixels(Images(x[20:], y[20:], x[:20], y[:20], 10, "digits", "made"), CPU), digits_network()
    logits = network(pixels.normalised(x[:20]))
    expected = F.cross_entropy(logits, y[:20]).item(), (logits.argmax(1) == y[:20]).double().mean().item()
    for batch_size in (7, 500):
        assert script.evaluate(network, pixels, batch_size) == pytest.approx(expected, rel=1e-5)


def test_gradient_norm_against_autograd_by_hand():
    network, x, y = torch.nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    network(x)
    error = (network(x).softmax(1) - F.one_hot(y, 4)) / 5
    expected = math.sqrt((error.T @ x).square().sum().item() + error.sum(0).square().sum().item())
    assert script.gradient_norm(network, x, y) == pytest.approx(expected, rel=1e-5)
    assert all(p.grad is None for p in network.parameters())


def test_switches_and_gradients_of_old_and_new_images_are_recorded(default_run):
    _, scalars = default_run
    assert [u for u, _ in scalars["norms/gradient_old"]] == [0, 10, 20, 30, 40, 50, 60]
    assert [u for u, _ in scalars["norms/gradient_new"]] == [30, 40, 50, 60]
    assert scalars["shift/boundary"] == [(30, 1.0)]
    assert scalars["shift/task"] == [(0, 0.0), (30, 1.0)]


def test_old_images_are_those_known_before_the_phase_and_new_ones_are_as_many(tmp_path, monkeypatch):
    seen, norm = [], script.gradient_norm
    monkeypatch.setattr(script, "gradient_norm", lambda network, x, y: seen.append(y) or norm(network, x, y))
    run(tmp_path / "r", probe=ProbeArgs(every=30, size=1000, meter_every=0), control="none")
    images = load_images("digits")
    order = torch.from_numpy(np.random.default_rng(np.random.SeedSequence(1).spawn(6)[0]).permutation(1438))
    answers = images.train_y[order]  # 144 are known before the switch
    for found, expected in zip(seen, [answers[:144], *[answers[:144], answers[144:288]] * 2], strict=True):
        assert torch.equal(found, expected)


def test_phases_grow_in_order(tmp_path, monkeypatch):
    sizes = []
    grow = Minibatches.grow
    monkeypatch.setattr(Minibatches, "grow", lambda self, n: sizes.append(n) or grow(self, n))
    run(tmp_path / "r", fractions=(0.25, 0.5, 1.0))
    count = len(load_images("digits").train_y)
    in_order = [size for size, _ in itertools.groupby(sizes)]  # a new epoch of the same phase has the same size
    assert in_order == [round(0.25 * count), round(0.5 * count), count]


# flags


def test_every_flag_is_read():
    assert scripts.unread_flags(script) == []


NEVER = {"rewarm": RewarmArgs("never")}
CYCLE = {"rewarm": RewarmArgs("cycle")}
CUSUM = {"rewarm": RewarmArgs("cusum", block=1, burn_in=4, refractory=3, threshold=1.0, slack=0.1, peak_factor=2.0)}
EFFECTS = [
    (NEVER, "schedule.kind", "constant"), ({}, "schedule.low", 1e-4), ({}, "schedule.warmup_frac", 0.3),
    ({}, "rewarm.trigger", "never"), ({}, "rewarm.peak_factor", 3.0), (CYCLE, "rewarm.cycles", 6),
    (CYCLE, "rewarm.moments", "reset"), (CUSUM, "rewarm.threshold", 1e6), (CUSUM, "rewarm.slack", 1e6),
    (CUSUM, "rewarm.block", 2), (CUSUM, "rewarm.burn_in", 12), (CUSUM, "rewarm.refractory", 12),
]  # fmt: skip


@pytest.fixture(scope="module")
def rates_and_weights(tmp_path_factory):
    """Learning rates and final weights of a run with the given flags; each different one is made once."""
    made = {}

    def of(changes):
        if (key := repr(changes)) not in made:
            directory = tmp_path_factory.mktemp("flags") / "run"
            scalars = run(directory, control="none", probe=ProbeArgs(every=0, meter_every=0, size=16), **changes)
            made[key] = scalars["charts/learning_rate"], state(directory)["warm"]["network"]
        return made[key]

    return of


def test_every_flag_of_the_scripts_own_groups_is_in_the_list_of_effects():
    groups = {"schedule": ScheduleArgs, "rewarm": RewarmArgs}
    flags = {f"{group}.{field.name}" for group, cls in groups.items() for field in dataclasses.fields(cls)}
    assert {flag for _, flag, _ in EFFECTS} == flags


@pytest.mark.parametrize(("changes", "flag", "value"), EFFECTS, ids=[flag for _, flag, _ in EFFECTS])
def test_every_flag_of_the_scripts_own_groups_changes_the_run(changes, flag, value, rates_and_weights):
    group, name = flag.split(".")
    other = dataclasses.replace(getattr(small(**changes), group), **{name: value})
    one, two = rates_and_weights(changes), rates_and_weights({**changes, group: other})
    assert one[0] != two[0] or name == "moments"
    assert any(not torch.equal(one[1][key], two[1][key]) for key in one[1])


@pytest.mark.parametrize(
    "flags, named",
    [
        (["unconstrained", "--nap.every", "5"], ["--nap.every", "--nap.enabled"]),
        (["--nap.every", "0"], ["--nap.every", "at least 1"]),
        (["--data-folder", "x"], ["--data-folder", "--dataset digits"]),
        (["--batches", "1", "2"], ["--batches", "--dataset digits"]),
        (["--dataset", "mnist", "--data-folder", "x", "--cache", "y"], ["--cache", "--data-folder"]),
        (["--phase-epochs", "2", "--phase-updates", "7"], ["--phase-updates", "--phase-epochs"]),
        (["--model", "resnet18", "--hidden", "7"], ["--hidden", "resnet18"]),
        (["--fractions", "0.5", "0.1"], ["--fractions"]),
        (["--fractions", "1.0"], ["--rewarm.trigger switch", "--fractions"]),
        (["--fractions", "1.0", "--rewarm.trigger", "never", "--control", "none"], ["--control", "single phase"]),
        (
            ["unconstrained", "--fractions", "1.0", "--switch.optimizer", "reset"],
            ["--switch.optimizer", "single phase of --fractions"],
        ),
        (["--schedule.kind", "constant"], ["--rewarm.trigger switch", "--schedule.kind constant"]),
        (["--schedule.kind", "constant", "--schedule.low", "1e-5"], ["--schedule.low", "constant"]),
        (["--schedule.low", "0.1"], ["--schedule.low", "--learning-rate"]),
        (["--rewarm.threshold", "3"], ["--rewarm.threshold", "--rewarm.trigger switch"]),
        (["--rewarm.moments", "reset"], ["--rewarm.moments", "--rewarm.trigger switch"]),
        (["unconstrained", "--rewarm.peak-factor", "3"], ["--rewarm.peak-factor", "--rewarm.trigger never"]),
        (["--switch.intervention", "shrink-and-perturb", "--switch.shrink", "1", "--switch.perturb", "0"], ["nothing"]),
        (["--nap.gains", "decay", "--nap.gain-strength", "2000"], ["--nap.gain-strength", "--learning-rate"]),
        (["--device", "meta"], ["--device", "meta"]),
        (["--switch.shrink", "0.5"], ["--switch.shrink", "--switch.intervention none"]),
        (["--bf16"], ["--bf16", "--device cpu", "GPU"]),
        (["--device", "abacus"], ["--device", "abacus"]),
        (["--seed", "-1"], ["--seed"]),
        (["--rewarm.cycles", "1"], ["--rewarm.cycles"]),
        (["--strides", "1", "0", "1"], ["--strides"]),
        (
            ["--intervene.methods", "weight-decay", "--intervene.decay", "2000", "--nap.no-enabled"],
            ["--intervene.decay", "--learning-rate"],
        ),
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
    parsed = {name: preset.args for name, preset in script.PRESETS.items()}
    assert parse(Args, script.PRESETS, ["fig4-projected-0.1"]) == parsed["fig4-projected-0.1"]
    for prefix, arms in (("fig4-", 6), ("fig5-left-", 4), ("fig5-right-", 4), ("fig9-", 2), ("fig13-", 8)):
        assert sum(name.startswith(prefix) for name in parsed) == arms
    assert all(args.exp_name == name for name, args in parsed.items() if args.dataset == "cifar10")


# an edited copy


def test_a_doubled_and_an_added_hidden_layer_are_three_edits_in_the_network(tmp_path):
    copy = scripts.edited(
        SCRIPT,
        tmp_path,
        (
            "        self.hidden = nn.Linear(channels * int(size.prod()), args.hidden, bias=not args.hidden_norm)\n"
            "        self.hidden_norm = nn.LayerNorm(args.hidden) if args.hidden_norm else nn.Identity()\n"
            "        self.hidden_relu = nn.ReLU()\n"
            "        self.head = nn.Linear(args.hidden, classes)\n",
            "        self.hidden = nn.Linear(channels * int(size.prod()), 2 * args.hidden, bias=False)\n"
            "        self.hidden_norm, self.hidden_relu = nn.LayerNorm(2 * args.hidden), nn.ReLU()\n"
            "        self.more = nn.Linear(2 * args.hidden, 2 * args.hidden, bias=False)\n"
            "        self.more_norm, self.more_relu = nn.LayerNorm(2 * args.hidden), nn.ReLU()\n"
            "        self.head = nn.Linear(2 * args.hidden, classes)\n",
        ),
        ('"conv3_relu", "hidden_relu")', '"conv3_relu", "hidden_relu", "more_relu")'),
        ("        return self.head(x)\n", "        return self.head(self.more_relu(self.more_norm(self.more(x))))\n"),
    )
    probe = copy.ProbeArgs(every=10, size=16, meter_every=5)
    copy.main(copy.Args(**SMALL, probe=probe, directory=tmp_path / "r"))
    scalars = read_scalars(tmp_path / "r")
    for tag in ("elr/more", "norms/gradient/more", "plasticity/delta_a/more_relu"):
        assert scalars[tag][-1][1] > 0, tag
    norms = [value for _, value in scalars["norms/parameter/more"]]
    assert max(norms) / min(norms) - 1 < 3e-5
    assert state(tmp_path / "r")["control"]["network"]["more.weight"].shape == (16, 16)


# failures and resuming


def test_a_run_killed_after_its_last_update_is_resumed_to_its_summary(tmp_path, monkeypatch, capsys):
    def killed(self, step):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Run, "finish", killed)
        script.main(small(tmp_path / "r"))
    capsys.readouterr()
    script.main(small(tmp_path / "r", resume=tmp_path / "r"))
    assert "gap" in capsys.readouterr().out
    assert read_status(tmp_path / "r")["status"] == "finished"


def test_missing_data_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"--dataset.*data_batch_1\.bin") as error:
        script.main(small(tmp_path / "r", dataset="cifar10", data_folder=tmp_path))
    assert "\n" not in str(error.value) and not (tmp_path / "r").exists()


def poison(monkeypatch, whose, harm):
    """Call harm(optimizer) after each step from the seventh of the control on; `whose`: 0 the warm one, 1 its own."""
    step, made_by = torch.optim.Adam.step, []

    def poisoned(self, *args, **kwargs):
        step(self, *args, **kwargs)
        made_by.append(id(self))
        if len(made_by) > 36 and list(dict.fromkeys(made_by)).index(id(self)) == whose:
            harm(self)

    monkeypatch.setattr(torch.optim.Adam, "step", poisoned)


@pytest.mark.parametrize(("whose", "named"), [(0, "the weight conv1"), (1, "the control's the weight conv1")])
def test_nan_stops_the_run_and_leaves_the_checkpoint_from_before(tmp_path, monkeypatch, whose, named):
    poison(monkeypatch, whose, lambda adam: adam.param_groups[0]["params"][0].data.view(-1)[0].fill_(math.nan))
    with pytest.raises(NonFiniteError, match=rf"at update 3\d.*: {named}"):
        script.main(small(tmp_path / "r", checkpoint_every=10, nap=FREE))
    assert read_status(tmp_path / "r")["status"] == "failed"
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 30


@pytest.mark.parametrize("whose", [0, 1])
def test_an_infinite_second_moment_is_not_saved(tmp_path, monkeypatch, whose):
    """Its weight stands still from then on, so neither loss nor weights show it."""

    def harm(adam):
        adam.state[adam.param_groups[0]["params"][0]]["exp_avg_sq"].fill_(math.inf)

    poison(monkeypatch, whose, harm)
    named = "the control's Adam's second moment" if whose else "40.*: Adam's second moment"
    with pytest.raises(NonFiniteError, match=f"{named} of conv1.weight"):
        run(tmp_path / "r", checkpoint_every=10, nap=FREE, probe=ProbeArgs(every=0, meter_every=0, size=256))
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 30


def test_the_same_seed_repeats_the_run_and_another_does_not(tmp_path):
    seeds = (("a", 1), ("b", 1), ("c", 2))
    a, b, c = (run(tmp_path / name, seed=seed, augment=True, phase_updates=10) for name, seed in seeds)
    assert a == b
    assert a["norms/parameter/conv1"][0] != c["norms/parameter/conv1"][0]


def test_each_stream_decides_its_own_draws(tmp_path, monkeypatch):
    """Replace one stream at a time by another seed's: only what is drawn from it changes at first.

    The sixth gives the seeds of later networks; that they differ is part of the test of a reset network.
    """
    whole = np.random.SeedSequence

    class OneStreamOfSeedTwo(whole):
        replaced = None

        def spawn(self, n):
            streams = whole(1).spawn(n)
            if self.replaced is not None:
                streams[self.replaced] = whole(2).spawn(n)[self.replaced]
            return streams

    monkeypatch.setattr(np.random, "SeedSequence", OneStreamOfSeedTwo)
    seen = {}
    for stream in (None, 0, 1, 2, 3, 4):
        OneStreamOfSeedTwo.replaced = stream
        scalars = run(tmp_path / str(stream), phase_updates=1, augment=True, control="none")
        generators = state(tmp_path / str(stream))["generators"]
        seen[stream] = [
            *(str(generators[name]) for name in ("split", "minibatch", "augment")),
            scalars["plasticity/feature_norm/conv1_relu"][0],  # of the probe, before the first update
            scalars["norms/parameter/conv1"][0],
        ]
    allowed = {0: {0, 3}, 1: {1}, 2: {2}, 3: {3}, 4: {4, 3}}  # features see the split and the weights
    for stream, others in allowed.items():
        changed = {i for i, (a, b) in enumerate(zip(seen[None], seen[stream], strict=True)) if a != b}
        assert stream in changed, f"stream {stream} decides nothing"
        assert changed <= others, f"stream {stream} leaks"


FLAGS = (
    "--width 4 --hidden 8 --batch-size 16 --threads 1 --phase-epochs 3 --fractions 0.2 0.5 1.0 --augment "
    "--checkpoint-every 20 --eval-every 100 --log-every 7 --probe.every 50 --probe.size 16 --probe.meter-every 11 "
    "--intervene.methods l2-init --intervene.pull 1e-4 --nap.every 3 "
)  # phases of 54, 135 and 270 updates
VARIANTS = {
    "cusum": "--rewarm.trigger cusum --rewarm.block 5 --rewarm.burn-in 8 --rewarm.threshold 2 --rewarm.moments reset",
    "reset": "--switch.intervention reset --switch.optimizer reset --rewarm.peak-factor 2",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_interrupted_and_resumed_is_bit_identical(tmp_path, variant):
    """Killed in the second phase, and interrupted in the third, when there is a control."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = shlex.split(FLAGS + VARIANTS[variant])
    finish(scripts.start(SCRIPT, *flags, "--directory", whole))
    kill_beyond(scripts.start(SCRIPT, *flags, "--directory", killed), killed, 70, signal.SIGKILL)
    output = kill_beyond(scripts.start(SCRIPT, "--resume", killed), killed, 210, signal.SIGINT)
    step = read_status(killed)["step"]
    assert f"stopped at update {step}" in output and f"--resume {killed}" in output
    output = finish(scripts.start(SCRIPT, "--resume", killed))
    assert "fresh network" in output and "gap" in output
    assert (killed / "scalars.csv").read_bytes() == (whole / "scalars.csv").read_bytes()
    assert_same(*(load_checkpoint(d / "checkpoint.pt")["state"] for d in (whole, killed)))
