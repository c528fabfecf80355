"""The shipped grokking script: data, the fast forward pass, all-off equality, flags, re-warming, exact resume."""

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
from agents.grokking import Args, NapArgs, NormArgs, Transformer
from elr.stagnation import Stagnation
from runs.recording import NonFiniteError, RunError, load_checkpoint, parse, read_scalars, read_status
from tests.agents import scripts
from tests.agents.scripts import assert_same, finish, kill_beyond

SCRIPT = Path(__file__).parents[2] / "agents" / "grokking.py"
TINY = {"p": 11, "train_fraction": 0.5, "heads": 2, "head_size": 4, "hidden": 16, "total_updates": 40, "threads": 1}
SMALL_PROBE = script.ProbeArgs(every=5, size=16, meter_every=5)
NORMS = NormArgs(before_attention=True, before_mlp=True, after_mlp=True)


def tiny(directory=None, **changes):
    return Args(**{**TINY, "probe": SMALL_PROBE, "directory": directory, **changes})


def network(**changes):
    torch.manual_seed(0)
    built = Transformer(tiny(embedding_std=0.5, **changes)).double()
    with torch.no_grad():
        for name, p in built.named_parameters():
            if "norm" in name:
                p.add_(0.3 * torch.randn_like(p))
    return built


ALL_PAIRS = torch.tensor(list(itertools.product(range(11), repeat=2)))


# data


@pytest.mark.parametrize("operation", ["add", "subtract", "multiply", "divide"])
@pytest.mark.parametrize("p", [7, 12])
def test_answers_and_split(operation, p):
    train, test = script.make_data(p, operation, 0.3, np.random.default_rng(0))
    seen = {}
    for part in (train, test):
        for (x, y), answer in zip(part.xy.tolist(), part.answer.tolist(), strict=True):
            assert (x, y) not in seen
            seen[x, y] = answer
    for (x, y), answer in seen.items():
        if operation == "divide":
            assert math.gcd(y, p) == 1 and answer * y % p == x and 0 <= answer < p
        else:
            assert answer == {"add": x + y, "subtract": x - y, "multiply": x * y}[operation] % p
    count = p * sum(math.gcd(y, p) == 1 for y in range(p)) if operation == "divide" else p * p
    assert len(seen) == count and len(train.xy) == round(0.3 * count)


def test_mirrored_pairs_are_those_whose_mirror_was_trained_on():
    train, test = script.make_data(13, "add", 0.4, np.random.default_rng(3))
    trained = set(map(tuple, train.xy.tolist()))
    expected = [(y, x) in trained and x != y for x, y in test.xy.tolist()]
    assert test.mirrored.tolist() == expected and 0 < sum(expected) < len(expected)
    other, _ = script.make_data(13, "add", 0.4, np.random.default_rng(4))
    assert other.xy.tolist() != train.xy.tolist()


def test_a_split_without_a_test_or_training_sample_is_refused():
    with pytest.raises(ValueError, match="train-fraction"):
        script.make_data(2, "add", 0.01, np.random.default_rng(0))


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
    for lead, zero in ((20.0, False), (23.0, True)):  # of one answer over 116 others
        logits = torch.zeros(1, 117)
        logits[0, 0] = lead
        logits.requires_grad_()
        loss = script.cross_entropy(logits, answer, "float32")
        assert (loss.item() == 0.0) is zero
        loss.backward()
        assert (logits.grad[0, 0] == 0.0) == zero and (logits.grad[0, 1:] > 0).all()
        exact = script.cross_entropy(logits, answer, "float64").item()
        assert exact == pytest.approx(116 * math.exp(-lead), rel=1e-6)


def test_evaluations_are_log_spaced():
    updates = sorted(script.evaluation_updates(1000, 4))
    assert updates == [1, 2, 3, 6, 10, 18, 32, 56, 100, 178, 316, 562, 1000]
    assert max(script.evaluation_updates(1234, 4)) == 1234


# training


def test_all_off_is_plain_adamw_bit_for_bit(tmp_path):
    args = tiny(
        tmp_path / "r", nap=NapArgs(enabled=False), weight_decay=0.3, batch_size=17, adam_beta2=0.95, adam_eps=1e-4
    )
    script.main(args)
    streams = np.random.SeedSequence(args.seed).spawn(4)
    train, test = script.make_data(11, "add", 0.5, np.random.default_rng(streams[0]))
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
    saved = load_checkpoint(tmp_path / "r" / "checkpoint.pt")["state"]["network"]
    for name, p in plain.state_dict().items():
        assert torch.equal(p, saved[name]), name
    with torch.no_grad():
        accuracy = (plain(test.xy).argmax(1) == test.answer).double().mean().item()
    assert read_scalars(tmp_path / "r")["test/accuracy"][-1] == (40, accuracy)


def test_projection_holds_what_it_is_told_to_hold(tmp_path):
    for name, nap, free in (("all", NapArgs(), set()), ("part", NapArgs(embeddings=False, decoder=False), None)):
        script.main(tiny(tmp_path / name, nap=nap))
        scalars = read_scalars(tmp_path / name)
        norms = {
            tag.rsplit("/", 1)[1]: [v for _, v in rows] for tag, rows in scalars.items() if "norms/parameter" in tag
        }
        moved = {layer for layer, values in norms.items() if max(values) / min(values) > 1 + 1e-5}
        assert moved == ({"embedding", "position", "decoder"} if free is None else free)
        assert len(norms) == 9


def test_a_matched_run_takes_the_relative_steps_of_the_other(tmp_path):
    """The realised ELR, which in a free run that fits its data falls far below the projected one's."""
    probe = script.ProbeArgs(every=50, size=16, meter_every=1)
    free = NapArgs(enabled=False)
    script.main(tiny(tmp_path / "projected", probe=probe, total_updates=150))
    script.main(tiny(tmp_path / "free", probe=probe, total_updates=150, nap=free))
    script.main(tiny(tmp_path / "matched", probe=probe, total_updates=150, nap=free, match_elr=tmp_path / "projected"))
    projected, unmatched, matched = (read_scalars(tmp_path / name) for name in ("projected", "free", "matched"))
    for layer in ("embedding", "blocks.0.up", "decoder"):
        one, other, alone = (dict(scalars[f"elr/{layer}"]) for scalars in (projected, matched, unmatched))
        assert all(other[u] == pytest.approx(one[u], rel=1e-3) for u in one)
        assert alone[150] < 0.8 * one[150]
        norms = [v for _, v in matched[f"norms/parameter/{layer}"]]
        assert max(norms) / min(norms) > 1.05
    with pytest.raises(RunError, match=r"--match-elr.*embedding"):
        off = script.ProbeArgs(every=50, size=16, meter_every=0)
        script.main(tiny(tmp_path / "unmeasured", probe=off))
        script.main(tiny(tmp_path / "other", nap=free, match_elr=tmp_path / "unmeasured"))
    for changes, named in (
        ({"p": 7}, "--p 11, not 7"),
        ({"total_updates": 200}, "ends at update 150"),
        ({"match_elr": tmp_path / "free"}, "is not projected"),
    ):
        changes = {"nap": free, "match_elr": tmp_path / "projected", "total_updates": 150, **changes}
        with pytest.raises(RunError, match=f"--match-elr.*{named}"):
            script.main(tiny(tmp_path / "refused", **changes))


def test_rewarming_at_an_update(tmp_path):
    rewarm = script.RewarmArgs(trigger="at", at_update=12)
    schedule = script.ScheduleArgs(kind="warmup-cosine", warmup_updates=4, decay_updates=10)
    script.main(tiny(tmp_path / "r", rewarm=rewarm, schedule=schedule, evaluations_per_decade=1000))
    scalars = read_scalars(tmp_path / "r")
    rates = dict(scalars["charts/learning_rate"])
    assert all(rates[u] == 1e-4 for u in range(1, 13))
    assert rates[17] == 1e-2 and rates[27] == 1e-4 and scalars["rewarm/event"] == [(12, 1.0)]


@pytest.mark.parametrize("signal", ["movement", "loss"])
def test_rewarming_when_learning_comes_to_rest(tmp_path, signal, monkeypatch):
    """The trigger sees what the run recorded, and fires only once a restarted schedule of 23 updates has annealed."""
    losses = []
    watched = script.movement
    monkeypatch.setattr(script, "movement", lambda *a: losses.append(a[3]) or watched(*a))
    rewarm = script.RewarmArgs(
        trigger="stagnation", signal=signal, ratio=0.5, window=2, burn_in=4, initial_rate=1e-2, moments="reset"
    )
    schedule = script.ScheduleArgs(kind="warmup-cosine", warmup_updates=10, decay_updates=13)
    script.main(tiny(tmp_path / "r", rewarm=rewarm, schedule=schedule, total_updates=400, evaluations_per_decade=5000))
    scalars = read_scalars(tmp_path / "r")
    events = [u for u, _ in scalars["rewarm/event"]]
    assert events and events[0] >= 20
    if signal == "movement":
        signals = dict(scalars["plasticity/flipped_fraction/blocks.0.relu"])
    else:
        signals = {5 * i: abs(math.log(losses[i - 1] / losses[i - 2])) for i in range(2, 81)}
    twin, expected, statistic = Stagnation(ratio=0.5, window=2, burn_in=4, refractory=5 + 4), [], 1.0
    recorded = dict(scalars["rewarm/statistic"])
    for update in range(5, 401, 5):
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


def test_a_small_task_generalises_at_the_high_rate_and_not_at_the_low_one(tmp_path):
    """x + y mod 23 from four fifths of the pairs, projected; chance is 1 in 23."""
    reached = {}
    for rate in (1e-2, 1e-4):
        args = Args(p=23, train_fraction=0.8, total_updates=400, threads=1, learning_rate=rate)
        script.main(dataclasses.replace(args, directory=tmp_path / str(rate)))
        reached[rate] = read_scalars(tmp_path / str(rate))["test/accuracy"][-1][1]
    assert reached[1e-2] > 0.7 and reached[1e-4] < 0.3


def test_measuring_changes_nothing(tmp_path):
    script.main(tiny(tmp_path / "on"))
    off = script.ProbeArgs(every=0, meter_every=0)
    script.main(tiny(tmp_path / "off", probe=off, evaluations_per_decade=1))
    on, off = (load_checkpoint(tmp_path / name / "checkpoint.pt")["state"]["network"] for name in ("on", "off"))
    assert all(torch.equal(on[name], off[name]) for name in on)


def test_seeds_decide_everything(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        script.main(tiny(tmp_path / name, seed=seed))
    a, b, c = (read_scalars(tmp_path / name) for name in "abc")
    assert a == b and a.keys() == c.keys()
    assert a["norms/parameter/embedding"][0] != c["norms/parameter/embedding"][0]


# flags


def test_every_flag_is_read():
    groups = {
        "norm": NormArgs, "nap": NapArgs, "schedule": script.ScheduleArgs, "rewarm": script.RewarmArgs,
        "probe": script.ProbeArgs,
    }  # fmt: skip
    assert scripts.unread_flags(script, groups, {"schedule": "s", "rewarm": "r"}) == []


@pytest.mark.parametrize(
    "flags, named",
    [
        (["free", "--nap.every", "5"], ["--nap.every", "--nap.enabled"]),
        (["--match-elr", "runs/logs/x"], ["--match-elr", "--nap.enabled"]),
        (
            ["free", "--match-elr", "runs/logs/x", "--schedule.kind", "warmup-cosine"],
            ["--match-elr", "--schedule.kind", "--rewarm.trigger"],
        ),
        (["--nap.every", "0"], ["--nap.every 0", "at least 1"]),
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
        (["--weight-decay", "200"], ["--weight-decay", "--learning-rate"]),
        (["--train-fraction", "1"], ["--train-fraction"]),
        (["--p", "1"], ["--p"]),
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


def test_presets_are_the_arms_of_the_figures():
    parsed = {name: parse(Args, script.PRESETS, [name]) for name in script.PRESETS}
    assert len({repr(dataclasses.replace(args, exp_name="")) for args in parsed.values()}) == len(parsed)
    assert all(args.exp_name == name for name, args in parsed.items())
    assert not any(args.match_elr for args in parsed.values())
    for prefix, arms in (("fig2-left-", 12), ("fig2-right-", 8), ("fig3-", 2), ("fig8", 1)):
        assert sum(name.startswith(prefix) for name in parsed) == arms
    left = {(a.learning_rate, a.weight_decay, a.nap.enabled) for n, a in parsed.items() if n.startswith("fig2-left")}
    assert left == set(itertools.product((1e-2, 1e-3, 1e-4), (0.01, 1.0), (True, False)))


# failures and resuming


def test_nan_stops_the_run_and_leaves_the_checkpoint_from_before(tmp_path, monkeypatch):
    step, calls = torch.optim.AdamW.step, []

    def poisoned(self, *args, **kwargs):
        step(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 25:
            self.param_groups[0]["params"][0].data.view(-1)[0] = math.nan

    monkeypatch.setattr(torch.optim.AdamW, "step", poisoned)
    with pytest.raises(NonFiniteError, match=r"update 25.*the weight embedding.weight"):
        script.main(tiny(tmp_path / "r", checkpoint_every=10, nap=NapArgs(enabled=False)))
    assert read_status(tmp_path / "r")["status"] == "failed"
    assert load_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 20


def test_a_finished_run_is_neither_overwritten_nor_resumed(tmp_path):
    script.main(tiny(tmp_path / "r"))
    before = (tmp_path / "r" / "scalars.csv").read_bytes()
    with pytest.raises(RunError, match="finished"):
        script.main(tiny(tmp_path / "r"))
    with pytest.raises(RunError, match="already finished"):
        script.main(tiny(tmp_path / "r", resume=tmp_path / "r"))
    assert (tmp_path / "r" / "scalars.csv").read_bytes() == before


COMMON = (
    "adaptive --p 11 --train-fraction 0.5 --heads 2 --head-size 4 --hidden 16 --threads 1 --total-updates 2200 "
    "--checkpoint-every 90 --probe.every 7 --probe.size 16 --probe.meter-every 11 --rewarm.window 2 --rewarm.burn-in 4 "
    "--rewarm.ratio 0.6 --rewarm.moments reset --schedule.warmup-updates 5 --schedule.decay-updates 50 "
    "--evaluations-per-decade 100 --norm.before-mlp --scale-decay 0.5 "
)
MATCHED = (
    "free --p 11 --train-fraction 0.5 --heads 2 --head-size 4 --hidden 16 --threads 1 --total-updates 2200 "
    "--checkpoint-every 90 --probe.every 7 --probe.size 16 --probe.meter-every 11 --evaluations-per-decade 100 "
    "--norm.before-mlp "
)
VARIANTS = {"movement": "--batch-size 20", "loss": "--rewarm.signal loss --nap.every 7"}


def run(*flags):
    return scripts.start(SCRIPT, *flags)


@pytest.mark.parametrize("variant", [*VARIANTS, "matched"])
def test_killed_interrupted_and_resumed_is_bit_identical(tmp_path, variant):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    if variant == "matched":
        script.main(tiny(tmp_path / "other", norm=NormArgs(before_mlp=True), total_updates=2200))
    matched = f"--match-elr {tmp_path / 'other'}"
    flags = shlex.split(COMMON + VARIANTS[variant] if variant in VARIANTS else MATCHED + matched)
    finish(run(*flags, "--directory", whole))
    assert variant == "matched" or len(read_scalars(whole)["rewarm/event"]) >= 1
    kill_beyond(run(*flags, "--directory", killed), killed, 300, signal.SIGKILL)
    if variant == "matched":
        shutil.rmtree(tmp_path / "other")  # its curve is in the checkpoint
    output = kill_beyond(run("--resume", killed), killed, 1100, signal.SIGINT)
    step = read_status(killed)["step"]
    assert f"stopped at update {step}" in output and f"--resume {killed}" in output
    finish(run("--resume", killed))
    assert (killed / "scalars.csv").read_bytes() == (whole / "scalars.csv").read_bytes()
    assert_same(*(load_checkpoint(d / "checkpoint.pt")["state"] for d in (whole, killed)))
