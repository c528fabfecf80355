"""The shipped grokking script: the fast forward pass, all-off equality, flags, re-warming, resuming, edited copies."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from agents import grokking as script
from agents.grokking import Args, NapArgs, NormArgs, ProbeArgs, RewarmArgs, ScheduleArgs, Transformer
from elr.interventions.flags import InterveneArgs
from elr.interventions.units import hidden_units
from elr.stagnation import Stagnation
from envs.modular_arithmetic import modular_pairs
from runs.recording import NonFiniteError, Run, RunError, load_checkpoint, parse, read_scalars, read_status
from tests.agents import scripts
from tests.agents.scripts import assert_same, finish, kill_beyond

SCRIPT = Path(__file__).parents[2] / "agents" / "grokking.py"
TINY = {"p": 11, "train_fraction": 0.5, "heads": 2, "head_size": 4, "hidden": 16, "total_updates": 40, "threads": 1}
SMALL_PROBE = ProbeArgs(every=5, size=16, meter_every=5)
FREE = NapArgs(enabled=False)
NORMS = NormArgs(before_attention=True, before_mlp=True, after_mlp=True)


def tiny(directory=None, **changes):
    return Args(**{**TINY, "probe": SMALL_PROBE, "directory": directory, **changes})


def run(directory, **changes):
    """The scalars of a tiny run."""
    script.main(tiny(directory, **changes))
    return read_scalars(directory)


def weights(directory):
    """The network in the last checkpoint."""
    return load_checkpoint(directory / "checkpoint.pt")["state"]["network"]


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """Directory and scalars of the tiny run as it is, for the tests that compare with it."""
    directory = tmp_path_factory.mktemp("grokking") / "default"
    return directory, run(directory)


def network(**changes):
    torch.manual_seed(0)
    built = Transformer(tiny(embedding_std=0.5, **changes)).double()
    with torch.no_grad():
        for name, p in built.named_parameters():
            if "norm" in name:
                p.add_(0.3 * torch.randn_like(p))
    return built


ALL_PAIRS = torch.tensor(list(itertools.product(range(11), repeat=2)))


# network


@pytest.mark.parametrize("norm", [NormArgs(), NORMS, NormArgs(before_attention=True)])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_fast_forward_pass_is_the_plain_one(norm, blocks):
    built = network(norm=norm, blocks=blocks)
    fast, plain = built(ALL_PAIRS), built.plain_forward(ALL_PAIRS)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-11)
    weights = torch.randn(fast.shape, dtype=fast.dtype, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((out * weights).sum(), list(built.parameters())) for out in (fast, plain)]
    for (name, _), one, other in zip(built.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")
        assert one.abs().max() > 0, name


def test_attention_is_causal_and_sees_both_numbers():
    built = network(blocks=2)
    x = built.embed(ALL_PAIRS[:5])
    changed = x.clone()
    changed[:, 3] += 1.0
    one, other = (built.blocks[0].every_position(stream) for stream in (x, changed))
    assert torch.equal(one[:, :3], other[:, :3]) and not torch.allclose(one[:, 4], other[:, 4])
    for pairs in ([[1, 2], [3, 2]], [[1, 2], [1, 5]]):
        logits = built(torch.tensor(pairs))
        assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("blocks", [1, 2])
def test_attention_entropy_by_hand(blocks):
    built = network(norm=NORMS, blocks=blocks)
    x = built.embed(ALL_PAIRS)
    for block in built.blocks[:-1]:
        x = block.every_position(x)
    last = built.blocks[-1]
    x = last.attention_norm(x)
    total = 0.0
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        q, k = (x @ layer.weight[rows].T for layer in (last.attention.q, last.attention.k))
        weights = (torch.einsum("ne,nte->nt", q[:, -1], k) / 2.0).softmax(-1)
        total += -(weights * weights.log()).sum(-1).mean() / 2
    torch.testing.assert_close(built.attention_entropy(ALL_PAIRS), total, rtol=1e-10, atol=1e-12)
    assert 0 < total < math.log(5)


def test_every_parameter_is_in_one_group_with_its_decay():
    built = network(norm=NORMS)
    groups = {g["name"]: g for g in script.parameter_groups(built, 0.1, 0.7)}
    assert [g["params"][0] for g in groups.values()] == [p for _, p in built.named_parameters()]
    decays = {name: g["weight_decay"] for name, g in groups.items()}
    assert {name for name, decay in decays.items() if decay == 0.7} == {n for n in decays if "norm" in n}
    assert decays["embedding.weight"] == decays["decoder.weight"] == decays["blocks.0.up.weight"] == 0.1


# numbers


def test_float32_cross_entropy_is_zero_where_float64_is_not():
    answer = torch.tensor([0])
    # Of one answer over 116 others. A CPU that adds one by one loses every e^-lead from 17 on, all together from 22.
    for lead, zero in ((16.0, False), (23.0, True)):
        logits = torch.zeros(1, 117)
        logits[0, 0] = lead
        logits.requires_grad_()
        loss = script.cross_entropy(logits, answer, "float32")
        assert (loss.item() == 0.0) is zero
        loss.backward()
        assert (logits.grad[0, 0] == 0.0) == zero and (logits.grad[0, 1:] > 0).all()
        exact = script.cross_entropy(logits, answer, "float64").item()
        assert exact == pytest.approx(math.log1p(116 * math.exp(-lead)), rel=1e-6)


def test_evaluations_are_log_spaced():
    updates = sorted(script.evaluation_updates(1000, 4))
    assert updates == [1, 2, 3, 6, 10, 18, 32, 56, 100, 178, 316, 562, 1000]
    assert max(script.evaluation_updates(1234, 4)) == 1234


# training


def test_all_off_is_plain_adamw_bit_for_bit(tmp_path):
    args = tiny(tmp_path / "r", nap=FREE, weight_decay=0.3, batch_size=17, adam_beta2=0.95, adam_eps=1e-4)
    script.main(args)
    streams = np.random.SeedSequence(args.seed).spawn(4)
    train, test = modular_pairs(11, "add", 0.5, np.random.default_rng(streams[0]))
    minibatches = np.random.default_rng(streams[2])
    torch.manual_seed(int(streams[3].generate_state(1)[0]))
    plain = Transformer(args)
    adam = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.3, fused=True)
    for _ in range(40):
        batch = torch.from_numpy(minibatches.integers(len(train.xy), size=17))
        loss = F.cross_entropy(plain(train.xy[batch]), train.answer[batch])
        adam.zero_grad()
        loss.backward()
        adam.step()
    saved = weights(tmp_path / "r")
    for name, p in plain.state_dict().items():
        assert torch.equal(p, saved[name]), name
    with torch.no_grad():
        accuracy = (plain(test.xy).argmax(1) == test.answer).double().mean().item()
    assert read_scalars(tmp_path / "r")["test/accuracy"][-1] == (40, accuracy)


def moved(scalars):
    """The layers whose norm changed, of all whose norm was measured."""
    norms = {tag.rsplit("/", 1)[1]: [v for _, v in rows] for tag, rows in scalars.items() if "norms/parameter" in tag}
    assert len(norms) == 9
    return {layer for layer, values in norms.items() if max(values) / min(values) > 1 + 1e-5}


def test_projection_holds_what_it_is_told_to_hold(default_run, tmp_path):
    assert moved(default_run[1]) == set()
    part = run(tmp_path / "part", nap=NapArgs(embeddings=False, decoder=False))
    assert moved(part) == {"embedding", "position", "decoder"}


def test_a_matched_run_takes_the_relative_steps_of_the_other(tmp_path):
    """The realised ELR, which in a free run that fits its data falls far below the projected one's."""
    probe = ProbeArgs(every=50, size=16, meter_every=1)
    changes = {"probe": probe, "total_updates": 150}
    projected = run(tmp_path / "projected", **changes)
    unmatched = run(tmp_path / "free", nap=FREE, **changes)
    matched = run(tmp_path / "matched", nap=FREE, match_elr=tmp_path / "projected", **changes)
    for layer in ("embedding", "blocks.0.up", "decoder"):
        one, other, alone = (dict(scalars[f"elr/{layer}"]) for scalars in (projected, matched, unmatched))
        assert all(other[u] == pytest.approx(one[u], rel=1e-3) for u in one)
        assert alone[150] < 0.8 * one[150]
        norms = [v for _, v in matched[f"norms/parameter/{layer}"]]
        assert max(norms) / min(norms) > 1.05
    with pytest.raises(RunError, match=r"--match-elr: .*projected has --p 11, not 7"):
        run(tmp_path / "refused", nap=FREE, match_elr=tmp_path / "projected", p=7)
    assert not (tmp_path / "refused").exists()


def test_rewarming_at_an_update(tmp_path):
    rewarm = RewarmArgs(trigger="at", at_update=12)
    schedule = ScheduleArgs(kind="warmup-cosine", warmup_updates=4, decay_updates=10)
    scalars = run(tmp_path / "r", rewarm=rewarm, schedule=schedule, evaluations_per_decade=1000)
    rates = dict(scalars["charts/learning_rate"])
    assert all(rates[u] == 1e-4 for u in range(1, 13))
    assert rates[17] == 1e-2 and rates[27] == 1e-4
    assert scalars["rewarm/event"] == [(12, 1.0)]


@pytest.mark.parametrize("signal", ["movement", "loss"])
def test_rewarming_when_learning_stops(tmp_path, signal, monkeypatch):
    """The trigger sees what the run recorded, and fires only once a restarted schedule of 23 updates has ended."""
    losses, measured = [], script.loss_movement

    def remembered(*args):
        losses.append(measured(*args)[0])
        return measured(*args)

    monkeypatch.setattr(script, "loss_movement", remembered)
    rewarm = RewarmArgs(
        trigger="stagnation", signal=signal, ratio=0.5, window=2, burn_in=4, initial_rate=1e-2, moments="reset"
    )
    schedule = ScheduleArgs(kind="warmup-cosine", warmup_updates=10, decay_updates=13)
    changes = {"total_updates": 250, "evaluations_per_decade": 5000}
    scalars = run(tmp_path / "r", rewarm=rewarm, schedule=schedule, **changes)
    events = [u for u, _ in scalars["rewarm/event"]]
    assert len(events) >= 2 and events[0] >= 20
    if signal == "movement":
        signals = dict(scalars["plasticity/flipped_fraction/blocks.0.relu"])
    else:
        signals = {5 * i: abs(math.log(losses[i - 1] / losses[i - 2])) for i in range(2, 51)}
    twin, expected, statistic = Stagnation(ratio=0.5, window=2, burn_in=4, refractory=5 + 4), [], 1.0
    recorded = dict(scalars["rewarm/statistic"])
    for update in range(5, 251, 5):
        if update in signals:
            if twin.update(signals[update]):
                expected.append(update)
            statistic = twin.statistic
        assert recorded[update] == statistic
    assert events == expected
    assert recorded[events[0]] <= 0.5
    rates = dict(scalars["charts/learning_rate"])
    assert rates[events[0]] == 1e-2 and rates[events[0] + 1] == 1e-4  # the warm-up starts low
    assert rates[events[0] + 11] == 1e-2 and rates[events[0] + 24] == 1e-4


STOPS = RewarmArgs("stagnation", initial_rate=1e-2, ratio=0.9, window=2, burn_in=3)
PULSE = {"schedule": ScheduleArgs("warmup-cosine", low=1e-2, warmup_updates=5, decay_updates=15), "rewarm": STOPS}
FIRE = InterveneArgs(("fire",), when="trigger")


def test_a_method_acts_when_the_network_would_be_rewarmed_and_the_rate_stays(tmp_path):
    """Until then nothing differs; from then on, features are measured without the intervention."""
    changes = {**PULSE, "total_updates": 100, "evaluations_per_decade": 1000}
    rewarmed = run(tmp_path / "rewarmed", learning_rate=3e-2, **changes)
    acted = run(tmp_path / "acted", learning_rate=1e-2, intervene=FIRE, **changes)
    first = rewarmed["rewarm/event"][0][0]
    assert first < 60
    assert {rate for _, rate in acted["charts/learning_rate"]} == {1e-2}
    assert acted["reset/event"] == acted["rewarm/event"] and acted["reset/event"][0] == (first, 1.0)
    flipped = [scalars["plasticity/flipped_fraction/blocks.0.relu"] for scalars in (acted, rewarmed)]
    before = [[row for row in rows if row[0] <= first] for rows in flipped]
    assert before[0] == before[1] and before[0][-1][0] == first
    assert next(update for update, _ in flipped[0] if update > first) == first + 10


def test_a_rate_that_stays_needs_a_method_at_the_trigger():
    with pytest.raises(ValueError, match=r"--schedule.low 0.01 and --learning-rate 0.01: the low rate must be below"):
        tiny(learning_rate=1e-2, **PULSE)
    tiny(learning_rate=1e-2, intervene=FIRE, **PULSE)


def test_a_method_that_acts_at_a_probe_acts_before_it_is_measured(tmp_path):
    method = InterveneArgs(("shrink-and-perturb",), when="every", every=10)
    scalars = run(tmp_path / "r", intervene=method)
    assert [update for update, _ in scalars["reset/event"]] == [10, 20, 30, 40]
    assert [update for update, _ in scalars["plasticity/flipped_fraction/blocks.0.relu"]] == [5, 15, 25, 35]


def test_the_loss_before_an_intervention_is_no_reference_for_the_loss_after_it(tmp_path, monkeypatch):
    """Each event is between two probes, so none has a movement."""
    befores, measured = [], script.loss_movement
    monkeypatch.setattr(script, "loss_movement", lambda *args: (befores.append(args[2]), measured(*args))[1])
    method = InterveneArgs(("reset-head",), when="every", every=5)
    rewarm = dataclasses.replace(STOPS, signal="loss")
    run(tmp_path / "r", intervene=method, rewarm=rewarm, learning_rate=3e-2)
    assert befores == [None] * 8


def test_a_trigger_after_the_last_update_changes_no_weight(tmp_path):
    changes = {**PULSE, "learning_rate": 1e-2, "total_updates": 100}
    first, second = (update for update, _ in run(tmp_path / "r", intervene=FIRE, **changes)["reset/event"][:2])
    short = run(tmp_path / "short", intervene=FIRE, **{**changes, "total_updates": second})
    assert short["rewarm/event"] == [(first, 1.0), (second, 1.0)] and short["reset/event"] == [(first, 1.0)]


@pytest.mark.parametrize("blocks", [1, 2])
def test_units_that_can_be_recycled_are_those_of_the_mlp(blocks):
    names = [f"blocks.{i}" for i in range(blocks)]
    found = hidden_units(network(norm=NORMS, blocks=blocks), [f"{name}.relu" for name in names], ALL_PAIRS[:4])
    for name, hidden in zip(names, found, strict=True):
        assert list(hidden.makers) == [f"{name}.up.weight"] and hidden.units == 16
        (reader,) = hidden.readers
        assert reader.name == f"{name}.down" and reader.columns.tolist() == reader.unit_of.tolist() == list(range(16))


def test_redo_leaves_the_attention_alone(tmp_path):
    """Every unit counts as dormant: all of the MLP is redrawn, and nothing else differs at that update."""
    method = InterveneArgs(("redo",), when="every", every=7, tau=1e6)
    changes = {"total_updates": 7, "probe": ProbeArgs(every=7, size=16, meter_every=5), "nap": FREE}
    recycled = run(tmp_path / "redo", intervene=method, **changes)
    run(tmp_path / "plain", **changes)
    one, other = weights(tmp_path / "redo"), weights(tmp_path / "plain")
    assert {name for name in one if not torch.equal(one[name], other[name])} == {
        "blocks.0.up.weight", "blocks.0.down.weight"
    }  # fmt: skip
    assert not one["blocks.0.down.weight"].any() and recycled["intervene/recycled"] == [(7, 16.0)]


def test_the_loss_on_the_whole_training_set_is_computed_only_for_the_trigger_that_needs_it(tmp_path, monkeypatch):
    monkeypatch.delattr(script, "loss_movement")
    schedule = ScheduleArgs(kind="warmup-cosine", warmup_updates=4, decay_updates=10)
    for trigger in (RewarmArgs("stagnation", window=2, burn_in=2), RewarmArgs("at", at_update=12)):
        run(tmp_path / trigger.trigger, rewarm=trigger, schedule=schedule)


def test_a_small_task_generalises_at_the_high_rate_and_not_at_the_low_one(tmp_path):
    """x + y mod 23 from four fifths of the pairs, projected; chance is 1 in 23."""
    task = {"p": 23, "train_fraction": 0.8, "heads": 4, "head_size": 16, "hidden": 256, "total_updates": 300}
    high, low = (run(tmp_path / str(rate), learning_rate=rate, **task) for rate in (1e-2, 1e-4))
    assert high["test/accuracy"][-1][1] > 0.9
    assert low["test/accuracy"][-1][1] < 0.1


def test_measuring_changes_nothing(default_run, tmp_path):
    run(tmp_path / "off", probe=ProbeArgs(every=0, meter_every=0), evaluations_per_decade=1)
    on, off = weights(default_run[0]), weights(tmp_path / "off")
    assert all(torch.equal(on[name], off[name]) for name in on)


def test_the_same_seed_repeats_the_run_and_another_does_not(default_run, tmp_path):
    _, first = default_run
    same, other = run(tmp_path / "same"), run(tmp_path / "other", seed=2)
    assert same == first and first.keys() == other.keys()
    assert other["norms/parameter/embedding"][0] != first["norms/parameter/embedding"][0]


def test_each_stream_decides_its_own_draws(tmp_path, monkeypatch):
    """Replace one stream at a time by another seed's: only what is drawn from it changes at first."""
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
    for stream in (None, 0, 1, 2, 3):
        OneStreamOfSeedTwo.replaced = stream
        scalars = run(tmp_path / str(stream), total_updates=1, batch_size=20)
        state = load_checkpoint(tmp_path / str(stream) / "checkpoint.pt")["state"]
        seen[stream] = [
            str(state["generators"]["split"]),
            scalars["plasticity/feature_norm/blocks.0.relu"][0],  # of the probe, before the first update
            str(state["generators"]["minibatch"]),
            scalars["norms/parameter/decoder"][0],
        ]
    allowed = {0: {0, 1}, 1: {1}, 2: {2}, 3: {3, 1}}  # the probe is drawn from the pairs; its features see the weights
    for stream, others in allowed.items():
        changed = {i for i, (a, b) in enumerate(zip(seen[None], seen[stream], strict=True)) if a != b}
        assert stream in changed, f"stream {stream} decides nothing"
        assert changed <= others, f"stream {stream} leaks"


# flags


def test_every_flag_is_read():
    assert scripts.unread_flags(script) == []


STAGNATION = {
    "rewarm": RewarmArgs("stagnation", initial_rate=1e-2, window=2, burn_in=3, ratio=0.9),
    "schedule": ScheduleArgs("warmup-cosine", warmup_updates=5, decay_updates=10), "total_updates": 60,
}  # fmt: skip
AT = {**STAGNATION, "rewarm": RewarmArgs("at", at_update=20)}
EFFECTS = [
    ({}, "norm.before_attention", True), ({}, "norm.before_mlp", True), ({}, "norm.after_mlp", True),
    ({}, "nap.enabled", False), ({}, "nap.every", 3), ({}, "nap.embeddings", False), ({}, "nap.decoder", False),
    (AT, "schedule.kind", "constant"), (AT, "schedule.low", 1e-3), (AT, "schedule.warmup_updates", 8),
    (AT, "schedule.decay_updates", 20), (AT, "rewarm.initial_rate", 1e-3), (AT, "rewarm.at_update", 30),
    (AT, "rewarm.moments", "reset"), (STAGNATION, "rewarm.signal", "loss"), (STAGNATION, "rewarm.ratio", 0.2),
    (STAGNATION, "rewarm.window", 3), (STAGNATION, "rewarm.burn_in", 5), (STAGNATION, "rewarm.trigger", "never"),
]  # fmt: skip


def test_every_flag_of_the_scripts_own_groups_is_in_the_list_of_effects():
    groups = {"norm": NormArgs, "nap": NapArgs, "schedule": ScheduleArgs, "rewarm": RewarmArgs}
    flags = {f"{group}.{field.name}" for group, cls in groups.items() for field in dataclasses.fields(cls)}
    assert {flag for _, flag, _ in EFFECTS} == flags


@pytest.fixture(scope="module")
def final_weights(tmp_path_factory):
    """Final weights of a run with the given flags; each different one is made once."""
    made = {}

    def of(changes):
        if (key := repr(changes)) not in made:
            directory = tmp_path_factory.mktemp("flags") / "run"
            run(directory, **changes)
            made[key] = weights(directory)
        return made[key]

    return of


@pytest.mark.parametrize(("changes", "flag", "value"), EFFECTS, ids=[flag for _, flag, _ in EFFECTS])
def test_every_flag_of_the_scripts_own_groups_changes_the_weights(changes, flag, value, final_weights):
    group, name = flag.split(".")
    without = {"never": RewarmArgs(), "constant": ScheduleArgs()}  # which have no use for the other flags
    other = without.get(value) or dataclasses.replace(getattr(tiny(**changes), group), **{name: value})
    one, two = final_weights(changes), final_weights({**changes, group: other})
    assert one.keys() != two.keys() or any(not torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["free", "--nap.every", "5"], ["--nap.every", "--nap.enabled"]),
        (["--match-elr", "runs/logs/x"], ["--match-elr", "--nap.enabled"]),
        (
            ["free", "--match-elr", "runs/logs/x", "--schedule.kind", "warmup-cosine"],
            ["--match-elr", "--schedule.kind", "--rewarm.trigger"],
        ),
        (["--nap.every", "0"], ["--nap.every must be positive, got 0"]),
        (["--nap.every", "5000"], ["--nap.every 5000", "--total-updates"]),
        (["--probe.size", "-5"], ["--probe.size"]),
        (["--weight-decay", "nan"], ["--weight-decay"]),
        (["adaptive", "--rewarm.initial-rate", "0.5"], ["--rewarm.initial-rate", "--learning-rate"]),
        (["adaptive", "--total-updates", "400"], ["--rewarm.burn-in", "--total-updates"]),
        (["--schedule.warmup-updates", "7"], ["--schedule.warmup-updates", "constant"]),
        (["low", "--schedule.kind", "warmup-cosine"], ["--schedule.low", "--learning-rate"]),
        (["--rewarm.at-update", "7"], ["--rewarm.at-update", "--rewarm.trigger never"]),
        (["--rewarm.trigger", "at"], ["--rewarm.at-update 5000", "--total-updates 2000"]),
        (["adaptive", "--rewarm.at-update", "7"], ["--rewarm.at-update", "--rewarm.trigger stagnation"]),
        (["adaptive", "--probe.every", "0"], ["--rewarm.trigger stagnation", "--probe.every 0"]),
        (["--probe.every", "0", "--probe.size", "9"], ["--probe.size", "--probe.every 0"]),
        (["--scale-decay", "1"], ["--scale-decay", "--norm"]),
        (["adaptive", "--intervene.methods", "fire"], ["--intervene.when change", "no task changes"]),
        (["free", "--match-elr", "x", "--intervene.methods", "trac"], ["--match-elr", "--intervene.methods"]),
        (["--intervene.methods", "fire", "--intervene.when", "trigger"], ["--intervene.when trigger", "never"]),
        (["free", "--intervene.methods", "weight-decay"], ["--weight-decay 0.01", "--intervene.methods"]),
        (["--intervene.methods", "weight-decay", "--weight-decay", "0"], ["weight-decay and --nap.enabled"]),
        (
            ["--intervene.methods", "redo", "--intervene.when", "every", "--intervene.every", "2001"],
            ["--intervene.every 2,001 never comes"],
        ),
        (["--weight-decay", "200"], ["--weight-decay", "--learning-rate"]),
        (["--train-fraction", "1"], ["--train-fraction"]),
        (["--p", "1"], ["--p"]),
        (["--device", "abacus"], ["--device", "abacus"]),
        (["--device", "meta"], ["--device", "meta"]),
        (["fig3"], ["fig3-0.01"]),
        (["--learning-rat", "1"], ["--learning-rat"]),
    ],
)
def test_conflicting_and_mistyped_flags_are_refused_by_name(flags, named, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Args, script.PRESETS, flags)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in named), message


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"p": 2, "train_fraction": 0.01}, "--train-fraction: 0.01 of 4 pairs"),
        ({"rewarm": RewarmArgs("stagnation", window=7, burn_in=5)}, "--schedule, --rewarm: burn_in"),
        ({"schedule": ScheduleArgs("warmup-cosine", decay_updates=0)}, "--schedule, --rewarm: decay_steps"),
        ({"probe": ProbeArgs(tau=2.0)}, "--probe: tau"),
    ],
)
def test_values_out_of_range_are_one_line_before_anything_is_written(changes, named, tmp_path):
    with pytest.raises(RunError, match=named) as error:
        run(tmp_path / "r", **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "r").exists()


def test_presets_are_the_arms_of_the_figures():
    parsed = {name: preset.args for name, preset in script.PRESETS.items()}
    assert parse(Args, script.PRESETS, ["fig3-0.01"]) == parsed["fig3-0.01"]
    assert len({repr(dataclasses.replace(args, exp_name="")) for args in parsed.values()}) == len(parsed)
    assert all(args.exp_name == name for name, args in parsed.items())
    assert not any(args.match_elr for args in parsed.values())
    for prefix, arms in (("fig2-left-", 12), ("fig2-right-", 8), ("fig3-", 2), ("fig8-", 4)):
        assert sum(name.startswith(prefix) for name in parsed) == arms
    left = {(a.learning_rate, a.weight_decay, a.nap.enabled) for n, a in parsed.items() if n.startswith("fig2-left")}
    assert left == set(itertools.product((1e-2, 1e-3, 1e-4), (0.01, 1.0), (True, False)))
    right = {(a.scale_decay, a.weight_decay, a.nap.enabled) for n, a in parsed.items() if n.startswith("fig2-right")}
    assert right == {(s * wd, wd, on) for s in (0, 1) for wd in (1.0, 10.0) for on in (True, False)}


# an edited copy


def test_a_doubled_and_an_added_hidden_layer_are_three_edits_in_the_network(tmp_path):
    copy = scripts.edited(
        SCRIPT,
        tmp_path,
        (
            "        self.up = nn.Linear(width, args.hidden, bias=False)\n"
            "        self.relu = nn.ReLU()\n"
            "        self.down = nn.Linear(args.hidden, width, bias=False)\n",
            "        self.up = nn.Linear(width, 2 * args.hidden, bias=False)\n"
            "        self.relu = nn.ReLU()\n"
            "        self.more = nn.Linear(2 * args.hidden, 2 * args.hidden, bias=False)\n"
            "        self.more_relu = nn.ReLU()\n"
            "        self.down = nn.Linear(2 * args.hidden, width, bias=False)\n",
        ),
        ("self.relu(self.up(self.mlp_norm(x)))", "self.more_relu(self.more(self.relu(self.up(self.mlp_norm(x)))))"),
        ('f"{last}.relu"]', 'f"{last}.relu", f"{last}.more_relu"]'),
    )
    rewarm = copy.RewarmArgs("stagnation", window=2, burn_in=2)
    copy.main(copy.Args(**TINY, probe=copy.ProbeArgs(5, 16, meter_every=5), rewarm=rewarm, directory=tmp_path / "r"))
    scalars = read_scalars(tmp_path / "r")
    for tag in ("elr/blocks.0.more", "norms/gradient/blocks.0.more", "plasticity/delta_a/blocks.0.more_relu"):
        assert scalars[tag][-1][1] > 0, tag
    norms = [value for _, value in scalars["norms/parameter/blocks.0.more"]]
    assert max(norms) / min(norms) - 1 < 3e-5
    assert weights(tmp_path / "r")["blocks.0.up.weight"].shape == (32, 8)


# failures and resuming


def poison(monkeypatch, at, harm):
    """Call harm(optimizer) after its step number `at`."""
    step, calls = torch.optim.AdamW.step, []

    def poisoned(self, *args, **kwargs):
        step(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == at:
            harm(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", poisoned)


def test_nan_stops_the_run_and_leaves_the_checkpoint_from_before(tmp_path, monkeypatch):
    poison(monkeypatch, 25, lambda adam: adam.param_groups[0]["params"][0].data.view(-1)[0].fill_(math.nan))
    with pytest.raises(NonFiniteError, match=r"update 25.*the weight embedding.weight"):
        run(tmp_path / "r", checkpoint_every=10, nap=FREE)
    assert read_status(tmp_path / "r")["status"] == "failed"
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 20


def test_an_infinite_second_moment_is_not_saved(tmp_path, monkeypatch):
    """Its weight stands still from then on, so neither loss nor weights show it."""

    def harm(adam):
        adam.state[adam.param_groups[0]["params"][0]]["exp_avg_sq"].fill_(math.inf)

    poison(monkeypatch, 25, harm)
    with pytest.raises(NonFiniteError, match=r"update 30.*second moment of embedding.weight"):
        run(tmp_path / "r", checkpoint_every=10, nap=FREE, probe=ProbeArgs(every=0, meter_every=0))
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 20


def test_a_finished_run_is_neither_overwritten_nor_resumed(default_run):
    directory, _ = default_run
    before = (directory / "scalars.csv").read_bytes()
    with pytest.raises(RunError, match="finished"):
        script.main(tiny(directory))
    with pytest.raises(RunError, match="already finished"):
        script.main(tiny(directory, resume=directory))
    assert (directory / "scalars.csv").read_bytes() == before


def test_a_run_killed_after_its_last_update_is_resumed_to_its_summary(default_run, tmp_path, monkeypatch, capsys):
    def killed(self, step):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Run, "finish", killed)
        script.main(tiny(tmp_path / "r"))
    capsys.readouterr()
    script.main(tiny(tmp_path / "r", resume=tmp_path / "r"))
    assert f"test accuracy {default_run[1]['test/accuracy'][-1][1]:.4f}" in capsys.readouterr().out
    assert read_status(tmp_path / "r")["status"] == "finished"


COMMON = (
    "--p 11 --train-fraction 0.5 --heads 2 --head-size 4 --hidden 16 --threads 1 --total-updates 400 "
    "--checkpoint-every 20 --probe.every 7 --probe.size 16 --probe.meter-every 11 --evaluations-per-decade 60 "
    "--norm.before-mlp "
)
ADAPTIVE = (
    f"adaptive {COMMON} --scale-decay 0.5 --rewarm.window 2 --rewarm.burn-in 4 --rewarm.ratio 0.6 "
    "--rewarm.moments reset --schedule.warmup-updates 5 --schedule.decay-updates 50 "
)
VARIANTS = {
    "adaptive": f"{ADAPTIVE} --rewarm.signal loss --nap.every 7 --batch-size 20",
    "matched": f"free {COMMON} --match-elr ",
}


def start(*flags):
    return scripts.start(SCRIPT, *flags)


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_interrupted_and_resumed_is_bit_identical(tmp_path, variant):
    whole, killed, other = tmp_path / "whole", tmp_path / "killed", tmp_path / "other"
    flags = shlex.split(VARIANTS[variant])
    if variant == "matched":
        run(other, norm=NormArgs(before_mlp=True), total_updates=400)
        flags.append(other)
    finish(start(*flags, "--directory", whole))
    assert variant == "matched" or len(read_scalars(whole)["rewarm/event"]) >= 1
    kill_beyond(start(*flags, "--directory", killed), killed, 60, signal.SIGKILL)
    if variant == "matched":
        shutil.rmtree(other)  # its curve is in the checkpoint
    output = kill_beyond(start("--resume", killed), killed, 200, signal.SIGINT)
    step = read_status(killed)["step"]
    assert f"stopped at update {step}" in output and f"--resume {killed}" in output
    finish(start("--resume", killed))
    assert (killed / "scalars.csv").read_bytes() == (whole / "scalars.csv").read_bytes()
    assert_same(*(load_checkpoint(d / "checkpoint.pt")["state"] for d in (whole, killed)))
