"""The benchmark of attach: both sides train the same network on the same batches, and every part is timed."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runs.benchmarks import attach

SMALL = attach.Case("mlp", 8, "adam")


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(attach, "POOL", 32)
    monkeypatch.setattr(attach, "PROBED", 8)


@pytest.fixture
def clock(monkeypatch):
    """Time that only passes in `tick`."""
    now = [0.0]
    monkeypatch.setattr(attach, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def tick(seconds):
        now[0] += seconds

    return tick


@pytest.mark.parametrize("case", [attach.Case("mlp", 8, "sgd"), attach.Case("cnn", 2, "adam")], ids=str)
def test_both_sides_draw_the_same_batches_and_only_one_is_projected(case):
    plain = attach.Loop(case)
    torch.rand(1)  # the global random state has no say
    attached = attach.AttachedLoop(case)
    weights = {name: w for name, w in plain.network.named_parameters() if name in {"0.weight", "3.weight", "6.weight"}}
    ours = dict(attached.network.named_parameters())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    assert all(torch.equal(weight, ours[name]) for name, weight in weights.items())
    assert torch.equal(plain.loss(), attached.loss())
    plain.optimizer.param_groups[0]["lr"] = 0.1  # the norms that nobody holds move visibly
    for _ in range(3):
        plain.update()
        attached.update()
    assert set(attached.handle.projection.weights) == {"0", "3", "6"}
    for name, weight in before.items():
        assert not torch.equal(weights[name], weight) and not torch.equal(ours[name], weight)
        assert float(ours[name].detach().norm()) == pytest.approx(float(weight.norm()), rel=1e-6)
        assert float(weights[name].detach().norm()) != pytest.approx(float(weight.norm()), rel=1e-6)


def test_everything_is_on():
    handle = attach.AttachedLoop(SMALL).handle
    relus = [name for name, module in attach.make_network("mlp")[0].named_modules() if isinstance(module, nn.ReLU)]
    assert relus == ["2", "5", "8"]
    assert handle.rate == 0.0 and handle.rewarming.schedule(250) == 5e-4
    assert handle.probe.every == 1000 and handle.projection.every == 1
    assert {tag.split("/")[-1] for tag in handle.scalars() if tag.startswith("plasticity/")} == set(relus)
    loop = attach.AttachedLoop(SMALL)
    measured = []
    for update in range(1, 101):
        loop.update()
        if "elr/3" in loop.handle.scalars():
            measured.append(update)
    assert measured == [1, 100]
    cusum = loop.handle.rewarming.trigger.cusum
    assert cusum.log and (cusum.state_dict()["blocks_seen"], cusum.block) == (2, 50)  # one number per update


def test_overhead_is_the_ratio_within_a_pair(clock, monkeypatch):
    turns = []

    def loop(name, seconds):
        def update():
            turns.append(name)
            clock(seconds)

        return lambda case: SimpleNamespace(update=update)

    monkeypatch.setattr(attach, "Loop", loop("plain", 0.5))
    monkeypatch.setattr(attach, "AttachedLoop", loop("attached", 0.6))
    args = attach.Args(repeats=2, updates=6, slice=3)
    assert list(attach.pairs(SMALL, args)) == [pytest.approx((0.5, 0.6))] * 2
    assert turns == ["plain"] * 5 + ["attached"] * 5 + (["plain"] * 3 + ["attached"] * 3) * 4


def test_parts_are_timed_each_by_itself_and_hooks_are_the_rest(clock, monkeypatch):
    class Ticking(attach.AttachedLoop):
        """A loop whose parts take known times."""

        def __init__(self, case, spent):
            super().__init__(case, None)
            self.optimizer = torch.optim.Adam(self.network.parameters())
            hooks = attach.HookClock(self.optimizer, spent)
            nothing = SimpleNamespace
            self.handle = nothing(
                projection=nothing(step=lambda rate: clock(1.0)),
                rewarming=nothing(step=lambda signal: clock(2.0)),
                meter=nothing(before_step=lambda: clock(4.0), after_step=lambda: clock(8.0)),
                probe=nothing(measure=lambda: clock(16.0)),
                signal=lambda value: clock(32.0),
                scalars=lambda: clock(64.0),
                updates=0,
            )
            self.optimizer.register_step_pre_hook(self.before)
            self.optimizer.register_step_post_hook(self.after)
            hooks.end_here()
            hooks.parts_of(self.handle)
            self.optimizer.register_step_post_hook(lambda *_: clock(1000.0))  # not a hook of attach

        def before(self, *_):
            clock(128.0)
            self.handle.meter.before_step()

        def after(self, *_):
            clock(256.0)
            self.handle.meter.after_step()
            self.handle.projection.step(0.1)
            self.handle.rewarming.step(0.5)
            self.handle.probe.measure()
            self.handle.updates = 100

    monkeypatch.setattr(attach, "AttachedLoop", Ticking)
    monkeypatch.setattr(attach, "Loop", lambda case: SimpleNamespace(update=lambda: clock(512.0)))
    shares = attach.parts(SMALL, attach.Args(updates=6, slice=3))
    assert {part: share * 512.0 for part, share in shares.items()} == {
        "projection": 1.0,
        "schedule and trigger": 2.0 + 32.0,
        "meter": 4.0 + 8.0 + 64.0,
        "probe": 16.0,
        "hooks": 128.0 + 256.0,
    }


def test_parts_of_a_real_loop():
    shares = attach.parts(SMALL, attach.Args(updates=100, slice=50))
    assert list(shares) == list(attach.PARTS)
    assert all(share > 0 for part, share in shares.items() if part != "probe")
    assert shares["probe"] == 0.0  # due at update 1000 only


def test_prints_every_case_of_a_network(capsys):
    attach.main(attach.Args(networks=("mlp",), repeats=2, updates=2, slice=1))
    lines = capsys.readouterr().out.splitlines()
    cases = [str(case) for case in attach.CASES if case.network == "mlp"]
    assert [line for line in lines if line in cases] == cases
    assert cases == ["mlp, batch 256, adam", "mlp, batch 64, adam", "mlp, batch 256, sgd", "mlp, batch 64, sgd"]
    words = [[line.split()[0] for line in lines[i : i + 5]] for i in range(1, len(lines), 5)]
    assert words == [["mlp,", "plain", "plain", "overhead:", "of"]] * 4


def test_the_line_of_a_case(monkeypatch, capsys):
    monkeypatch.setattr(attach, "pairs", lambda case, args: iter([(1e-3, 1.05e-3), (2e-3, 2.02e-3), (1e-3, 1.1e-3)]))
    monkeypatch.setattr(attach, "parts", lambda case, args: {"projection": 0.02, "hooks": 0.01})
    assert attach.measure(SMALL, attach.Args(repeats=3)) == (
        "overhead: median +5.0% [smallest +1.0%, largest +10.0%], n = 3 pairs of 1000 updates\n"
        "  of which projection 2.0%, hooks 1.0%"
    )
    assert capsys.readouterr().out.splitlines()[0] == "  plain 1000 us, attached 1050 us: +5.0%"


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"updates": 0}, {"slice": 0}, {"threads": 0}])
def test_attach_args_refuse_bad_numbers(wrong):
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))} must be at least 1, got 0"):
        attach.Args(**wrong)


def test_slices_fill_a_pair():
    with pytest.raises(ValueError, match="--updates 100 must be a multiple of --slice 30"):
        attach.Args(updates=100, slice=30)
