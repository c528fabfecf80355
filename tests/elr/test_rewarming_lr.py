"""RewarmingLR: Rewarming as a torch scheduler, in torch's own habits."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from elr.changepoint import Cusum
from elr.moments import Moments
from elr.rewarming import Rewarming
from elr.rewarming_lr import RewarmingLR
from elr.schedules import Constant, Cyclic, LinearDecay
from elr.triggers import Every, OnCusum

DECAY = LinearDecay(1.0, 0.0, 10)


def optimizer(lr=0.1, **more):
    net = nn.Linear(2, 2)
    groups = [{"params": [net.weight]}, {"params": [net.bias], "lr": lr * 0.5}]
    made = torch.optim.Adam(groups, lr=lr, **more)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    return made


def rates(made):
    return [float(group["lr"]) for group in made.param_groups]


def losses(count):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(count, generator=generator)
    values[count // 2 :] += 10
    return values


@pytest.mark.parametrize("moments", ["keep", "reset"])
def test_gives_the_rates_of_rewarming(moments: Moments):
    ours, theirs = optimizer(), optimizer()
    arguments = {"block": 1, "burn_in": 10, "refractory": 5}
    scheduler = RewarmingLR(ours, DECAY, OnCusum(Cusum(**arguments)), moments)
    rewarming = Rewarming(theirs, DECAY, OnCusum(Cusum(**arguments)), moments)
    assert isinstance(scheduler, lr_scheduler.LRScheduler)
    for loss in losses(60):
        assert rates(ours) == rates(theirs) == scheduler.get_last_lr()
        ours.step()
        theirs.step()
        scheduler.signal(loss)
        scheduler.step()
        rewarming.step(loss)
    assert scheduler.events == rewarming.events and len(scheduler.events) >= 1
    assert scheduler.scalars() == rewarming.scalars()
    assert scheduler.last_epoch == 60


def test_restart_and_ratio_of_groups():
    made = optimizer()
    scheduler = RewarmingLR(made, DECAY)
    for _ in range(4):
        made.step()
        scheduler.step()
    assert rates(made) == pytest.approx([0.6, 0.3])
    scheduler.restart()
    assert rates(made) == scheduler.get_last_lr() == [1.0, 0.5]
    made.step()
    scheduler.step()
    assert rates(made) == pytest.approx([0.9, 0.45]) and scheduler.rate == pytest.approx(0.9)
    assert scheduler.events == [4]


def test_reading_the_rate_does_not_move_the_schedule():
    made = optimizer()
    scheduler = RewarmingLR(made, DECAY)
    made.step()
    scheduler.step()
    assert scheduler.get_lr() == scheduler.get_lr() == rates(made)
    made.step()
    scheduler.step()
    assert rates(made) == pytest.approx([0.8, 0.4])


@pytest.mark.parametrize("cut", [1, 13, 45])
def test_continues_exactly_from_plain_numbers(cut):
    def build():
        made = optimizer()
        return made, RewarmingLR(made, DECAY, OnCusum(Cusum(block=2, burn_in=6, refractory=5)))

    def run(made, scheduler, values):
        seen = []
        for loss in values:
            made.step()
            scheduler.signal(loss)
            scheduler.step()
            seen.append((rates(made), scheduler.get_last_lr(), scheduler.last_epoch, scheduler.scalars()))
        return seen

    values = losses(60)
    whole = run(*build(), values)
    made, scheduler = build()
    seen = run(made, scheduler, values[:cut])
    file = io.BytesIO()
    torch.save([made.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    made, scheduler = build()
    state = torch.load(file, weights_only=True)
    made.load_state_dict(state[0])
    for group in made.param_groups:  # the gradients belong to the new network
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    scheduler.load_state_dict(state[1])
    assert seen + run(made, scheduler, values[cut:]) == whole


def test_signal_that_waits_is_part_of_the_state():
    seen = []

    class Watching(OnCusum):
        def fires(self, update, signal):
            seen.append(signal)
            return False

    scheduler = RewarmingLR(optimizer(), DECAY, Watching(Cusum()))
    scheduler.signal(5.0)
    made = optimizer()
    resumed = RewarmingLR(made, DECAY, Watching(Cusum()))
    resumed.load_state_dict(scheduler.state_dict())
    made.step()
    resumed.step()
    assert seen == [5.0]


def test_another_scheduler_on_the_same_optimizer_is_refused():
    made = optimizer()
    chained = lr_scheduler.ChainedScheduler([RewarmingLR(made, DECAY), lr_scheduler.ExponentialLR(made, 0.5)])
    made.step()
    chained.step()
    made.step()
    with pytest.raises(RuntimeError, match="something else sets it too"):
        chained.step()


def test_follows_another_scheduler_in_sequence():
    """Torch hands over by a step of its own; the schedule starts there, at the ratios of the groups."""
    made = optimizer()
    warmup = lr_scheduler.LinearLR(made, start_factor=0.1, total_iters=3)
    sequence = lr_scheduler.SequentialLR(made, [warmup, RewarmingLR(made, DECAY)], milestones=[3])
    seen = []
    for _ in range(6):
        seen.append(rates(made)[0])
        assert rates(made)[1] == pytest.approx(rates(made)[0] / 2)
        made.step()
        sequence.step()
    assert seen == pytest.approx([0.01, 0.04, 0.07, 1.0, 0.9, 0.8])


def test_step_zero_starts_schedule_and_trigger_again():
    """As torch calls it at a hand-over."""
    made = optimizer()
    trigger = OnCusum(Cusum(block=1, burn_in=5))
    scheduler = RewarmingLR(made, DECAY, trigger)
    for _ in range(8):
        made.step()
        scheduler.signal(1.0)
        scheduler.step()
    assert scheduler.rate == pytest.approx(0.2) and trigger.cusum.state_dict()["blocks_seen"] == 8
    made.step()
    scheduler.signal(100.0)  # of another scheduler's turn
    scheduler.step(0)
    assert rates(made) == scheduler.get_last_lr() == [1.0, 0.5] and scheduler.last_epoch == 0
    assert trigger.cusum.state_dict()["blocks_seen"] == 0
    made.step()
    scheduler.signal(1.0)
    scheduler.step()
    assert rates(made) == pytest.approx([0.9, 0.45]) and trigger.cusum.state_dict()["blocks_seen"] == 1
    assert trigger.cusum.mean == 1.0


def test_ratios_are_those_recorded_also_where_another_scheduler_has_filled_the_tensors():
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [first], "lr": torch.tensor(0.1)}, {"params": [second], "lr": torch.tensor(0.4)}]
    made = torch.optim.Adam(groups, foreach=False)
    scheduler = RewarmingLR(made, DECAY)
    made.param_groups[0]["lr"].fill_(0.4)
    made.step()
    scheduler.step(0)
    assert rates(made) == pytest.approx([0.25, 1.0], rel=1e-6)


def test_sequence_that_is_saved_before_the_hand_over_continues_exactly():
    def build():
        made = optimizer()
        warmup = lr_scheduler.LinearLR(made, start_factor=0.1, total_iters=5)
        return made, lr_scheduler.SequentialLR(made, [warmup, RewarmingLR(made, DECAY)], milestones=[5])

    def run(made, sequence, steps):
        seen = []
        for _ in range(steps):
            seen.append(rates(made))
            made.step()
            sequence.step()
        return seen

    whole = run(*build(), 9)
    made, sequence = build()
    seen = run(made, sequence, 3)
    state = copy.deepcopy([made.state_dict(), sequence.state_dict()])
    made, sequence = build()
    sequence.load_state_dict(state[1])
    made.load_state_dict(state[0])
    for group in made.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    assert seen + run(made, sequence, 6) == whole


@pytest.mark.filterwarnings("ignore:The epoch parameter in .scheduler.step:UserWarning")  # torch 2.6's ConstantLR
def test_comes_first_in_a_sequence():
    made = optimizer()
    ours = RewarmingLR(made, DECAY, Every(2))
    sequence = lr_scheduler.SequentialLR(made, [ours, lr_scheduler.ConstantLR(made, 0.5)], milestones=[4])
    seen = []
    for _ in range(6):
        seen.append(rates(made)[0])
        made.step()
        sequence.step()
    assert seen == pytest.approx([1.0, 0.9, 1.0, 0.9, 0.05, 0.05])


def test_epochs_and_useless_signals_are_refused():
    made = optimizer()
    scheduler = RewarmingLR(made, Constant(0.1))
    with pytest.raises(ValueError, match="call step\\(\\) without an epoch, got epoch=3"):
        scheduler.step(3)
    with pytest.raises(ValueError, match="signal\\(\\) has no effect: there is no trigger"):
        scheduler.signal(1.0)
    with pytest.raises(ValueError, match="RewarmingLR needs exactly"):
        scheduler.load_state_dict({"last_epoch": 3})


def test_a_detector_without_a_number_is_refused():
    made = optimizer()
    scheduler = RewarmingLR(made, DECAY, OnCusum(Cusum()))
    made.step()
    with pytest.raises(ValueError, match=r"OnCusum needs a number for each update: call signal\(loss\)"):
        scheduler.step()


def test_warns_as_torch_does_of_a_step_before_the_optimizer():
    scheduler = RewarmingLR(optimizer(), DECAY)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()


def test_a_step_without_an_update_changes_nothing_and_several_updates_are_refused():
    made = optimizer()
    scheduler = RewarmingLR(made, DECAY)
    made.step()
    scheduler.step()
    scheduler.step()  # as after an update that was skipped
    assert rates(made) == pytest.approx([0.9, 0.45])
    for _ in range(50):  # an epoch
        made.step()
    with pytest.raises(RuntimeError, match=r"50 updates since the last RewarmingLR.step\(\).*interval"):
        scheduler.step()


def test_an_update_that_a_scaler_skips_in_the_kernel_does_not_count():
    net = nn.Linear(2, 2)
    made = torch.optim.Adam(net.parameters(), lr=0.1, fused=True)
    scheduler = RewarmingLR(made, DECAY)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for bad, rate in ((False, 0.9), (True, 0.9), (False, 0.8)):
        made.zero_grad()
        scaler.scale(net(torch.ones(3, 2)).sum()).backward()
        if bad:
            net.weight.grad[0, 0] = float("inf")
        scaler.step(made)
        scaler.update()
        scheduler.step()
        assert scheduler.rate == pytest.approx(rate)


def test_a_copy_is_refused_as_its_optimizer_has_no_hook():
    made = optimizer()
    original = RewarmingLR(made, DECAY)
    made.step()
    original.step()
    copied, scheduler = copy.deepcopy((made, original))
    for group in copied.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    copied.step()
    with pytest.raises(RuntimeError, match="this RewarmingLR is a copy"):
        scheduler.step()


def test_tensor_rates_are_filled_in_place():
    made = torch.optim.Adam(nn.Linear(2, 2).parameters(), lr=torch.tensor(0.1), foreach=False)
    rate = made.param_groups[0]["lr"]
    scheduler = RewarmingLR(made, Cyclic(0.1, 1.0, period=4, warmup_frac=0.25))
    for expected in (0.1, 1.0, 0.775, 0.325, 0.1):
        assert made.param_groups[0]["lr"] is rate
        assert float(rate) == pytest.approx(expected, rel=1e-6)
        assert float(scheduler.get_last_lr()[0]) == float(rate)
        made.step()
        scheduler.step()


def test_start_at_zero_does_not_lose_the_groups_ratio():
    """torch records the groups' first rates; the schedule's own start, 0, must not be taken for them."""
    made = optimizer()
    RewarmingLR(made, Cyclic(0.0, 1.0, period=4))
    assert rates(made) == [0.0, 0.0]
    assert [group["initial_lr"] for group in made.param_groups] == [0.1, 0.05]


def test_last_rates_do_not_change_with_the_tensor_of_a_group():
    made = torch.optim.Adam(nn.Linear(2, 2).parameters(), lr=torch.tensor(0.1), foreach=False)
    scheduler = RewarmingLR(made, DECAY)
    for act in (scheduler.step, scheduler.restart):
        made.step()
        act()
        last = scheduler.get_last_lr()[0]
        expected = float(last)
        assert expected == pytest.approx(scheduler.rate, rel=1e-6)
        with torch.no_grad():
            made.param_groups[0]["lr"].fill_(7.0)
        assert float(last) == float(scheduler.get_last_lr()[0]) == expected
