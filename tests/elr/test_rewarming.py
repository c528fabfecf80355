"""Re-warming: when and how much, exact rates, bit-equality when off, moments, exact resume."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from elr.changepoint import Cusum
from elr.moments import reset_moments_
from elr.rewarming import Rewarming
from elr.schedules import Constant, Cyclic, LinearDecay, WarmupCosine
from elr.stagnation import Stagnation
from elr.triggers import AtKnownChange, Every, Never, OnCusum, OnStagnation, Trigger


def network(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


def batch(update: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(update))
    return x, x.sum(1, keepdim=True).sin()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, updates: range, after: Callable[[Tensor], object]) -> None:
    for update in updates:
        x, y = batch(update)
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after(loss)


def two_groups(net: nn.Sequential, first: float = 1e-3, second: float = 1e-2, **kwargs) -> torch.optim.Adam:
    groups = [{"params": net[0].parameters(), "lr": first}, {"params": net[2].parameters(), "lr": second}]
    return torch.optim.Adam(groups, **kwargs)


def bit_equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def cusum() -> Cusum:
    return Cusum(block=1, burn_in=10, refractory=10, threshold=12.0, slack=0.5)


@pytest.mark.parametrize("fastest", [1e-3, 6.25e-5, 0.1, 1 / 3])
def test_never_and_constant_equal_plain_adam_bit_for_bit(fastest: float) -> None:
    plain, rewarmed = network(), network()
    optimizers = [two_groups(net, fastest / 7, fastest) for net in (plain, rewarmed)]
    rewarming = Rewarming(optimizers[1], Constant(fastest), Never())
    train(plain, optimizers[0], range(50), lambda loss: None)
    train(rewarmed, optimizers[1], range(50), rewarming.step)
    assert bit_equal(plain, rewarmed)
    assert [g["lr"] for g in optimizers[1].param_groups] == [fastest / 7, fastest]
    assert all(type(g["lr"]) is float for g in optimizers[1].param_groups)


def test_another_rate_does_move_the_parameters() -> None:
    plain, rewarmed = network(), network()
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-3) for net in (plain, rewarmed)]
    train(plain, optimizers[0], range(5), lambda loss: None)
    train(rewarmed, optimizers[1], range(5), Rewarming(optimizers[1], Constant(1.0001e-3), Never()).step)
    assert not bit_equal(plain, rewarmed)


def test_every_update_runs_at_the_schedules_rate() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.5)
    schedule = LinearDecay(1.0, 0.1, 3)
    rewarming = Rewarming(optimizer, schedule, Every(4))
    used, fired = [], []
    for _ in range(9):
        used.append(optimizer.param_groups[0]["lr"])  # the rate the optimiser step would use
        fired.append(rewarming.step())
    assert used == [schedule(t) for t in (0, 1, 2, 3, 0, 1, 2, 3, 0)]
    assert fired == [False, False, False, True] * 2 + [False]
    assert rewarming.events == [4, 8]
    assert (rewarming.state_dict()["updates"], rewarming.state_dict()["since"], rewarming.rate) == (9, 1, schedule(1))
    assert rewarming.statistic is None


def test_every_with_a_one_cycle_long_schedule_is_cyclic() -> None:
    schedule = Cyclic(1e-6, 6.25e-5, 20)
    optimizers = [torch.optim.Adam(network().parameters(), lr=1.0) for _ in range(2)]
    cycled, restarted = (Rewarming(o, schedule, t) for o, t in zip(optimizers, (Never(), Every(20)), strict=True))
    for _ in range(70):
        cycled.step()
        restarted.step()
        assert cycled.rate == restarted.rate == optimizers[1].param_groups[0]["lr"]


@given(st.lists(st.just(0.0) | st.floats(1e-8, 10.0), min_size=2, max_size=2).filter(any), st.floats(1e-8, 10.0))
def test_groups_keep_their_ratios_and_the_fastest_gets_the_schedule(base: list[float], rate: float) -> None:
    optimizer = two_groups(network(), *base)
    Rewarming(optimizer, Constant(rate), Never())
    rates = [g["lr"] for g in optimizer.param_groups]
    assert max(rates) == rate
    for lr, before in zip(rates, base, strict=True):
        assert lr == pytest.approx(rate * before / max(base), rel=1e-12, abs=1e-300)


def test_ratios_are_kept_through_a_rate_of_zero() -> None:
    optimizer = two_groups(network(), 1e-3, 1e-2)
    rewarming = Rewarming(optimizer, WarmupCosine(peak=1e-2, warmup_steps=1, decay_steps=1, final=0.0), Never())
    assert [g["lr"] for g in optimizer.param_groups] == [0.0, 0.0]
    rewarming.step()
    assert [g["lr"] for g in optimizer.param_groups] == [1e-3, 1e-2]
    rewarming.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.0, 0.0]


def test_tensor_rates_are_filled_in_place() -> None:
    net = network()
    rate = torch.tensor(1.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, capturable=False)
    held = optimizer.param_groups[0]["lr"]
    rewarming = Rewarming(optimizer, LinearDecay(0.5, 0.25, 2), Never())
    assert held.item() == 0.5
    rewarming.step()
    rewarming.step()
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == 0.25


def test_unchanged_rate_does_not_touch_the_groups() -> None:
    optimizer = torch.optim.Adam(network().parameters(), lr=torch.tensor(0.1))
    rewarming = Rewarming(optimizer, Constant(0.1), Every(2))
    version = optimizer.param_groups[0]["lr"]._version
    assert [rewarming.step() for _ in range(4)] == [False, True, False, True]
    assert optimizer.param_groups[0]["lr"]._version == version


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1), torch.tensor([0.1], dtype=torch.float64)])
def test_rate_set_by_something_else_is_refused_or_overruled(lr) -> None:
    optimizer = torch.optim.Adam(network().parameters(), lr=lr)
    rewarming = Rewarming(optimizer, LinearDecay(0.1, 0.0, 10), Never())
    rewarming.step()
    optimizer.load_state_dict(optimizer.state_dict())  # another object of the same value
    rewarming.step()
    group = optimizer.param_groups[0]
    if isinstance(lr, torch.Tensor):
        group["lr"].fill_(0.7)
    else:
        group["lr"] = 0.7
    for check in (rewarming.require_own_rates, rewarming.step):
        with pytest.raises(RuntimeError, match=r"group 0 is 0\.7, but the schedule has set 0"):
            check()
    assert rewarming.state_dict()["updates"] == 2
    rewarming.set_rates_again()
    rewarming.step()
    assert float(group["lr"]) == pytest.approx(0.07)


def test_cusum_rewarms_after_a_planted_jump_and_only_then() -> None:
    optimizer = torch.optim.Adam(network().parameters(), lr=0.1)
    rewarming = Rewarming(optimizer, LinearDecay(0.1, 0.01, 50), OnCusum(cusum()))
    loss = torch.rand(400, generator=torch.Generator().manual_seed(0)) + 1
    loss[200:] += 5
    statistics = []
    for value in loss:
        rewarming.step(value)
        statistics.append(rewarming.statistic)
        assert rewarming.rate == optimizer.param_groups[0]["lr"] == rewarming.schedule(rewarming.state_dict()["since"])
    assert rewarming.events == [201]
    assert max(statistics) > 0


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.Adam(p, lr=1e-2),
        lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=1e-2),
    ],
)
def test_moments_reset_equals_a_new_optimiser_and_keeps_the_tensors(build) -> None:
    net = network()
    optimizer = build(net.parameters())
    rewarming = Rewarming(optimizer, Constant(1e-2), Every(20), moments="reset")
    train(net, optimizer, range(19), rewarming.step)
    before = {id(v) for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)}
    train(net, optimizer, range(19, 20), rewarming.step)
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    assert {id(v) for v in state} == before
    assert all(not v.any() for v in state)

    fresh_net = copy.deepcopy(net)
    fresh = build(fresh_net.parameters())
    train(net, optimizer, range(20, 30), lambda loss: None)
    train(fresh_net, fresh, range(20, 30), lambda loss: None)
    assert bit_equal(net, fresh_net)


def test_keep_does_not_change_the_moments() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    train(net, optimizer, range(20), Rewarming(optimizer, Constant(1e-2), Every(20)).step)
    assert all(state["step"] == 20 and state["exp_avg"].any() for state in optimizer.state.values())


def test_integer_step_counts_are_reset() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state[parameter] = {"step": 7, "exp_avg": torch.ones(2), "momentum_buffer": None}
    reset_moments_(optimizer)
    assert optimizer.state[parameter]["step"] == 0 and not optimizer.state[parameter]["exp_avg"].any()


def test_unknown_optimiser_state_is_an_error_before_anything_is_reset() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    train(net, optimizer, range(0, 1), lambda _: None)
    for state in optimizer.state.values():
        state["own_memory"] = torch.ones(())
    rewarming = Rewarming(optimizer, Constant(1e-2), Every(4), moments="reset")
    with pytest.raises(ValueError, match=r"Adam keeps \['own_memory'\]"):
        train(net, optimizer, range(5), rewarming.step)
    # after the first update that is counted, not at the first restart
    assert all(state["exp_avg"].any() and state["step"] == 2 for state in optimizer.state.values())
    assert rewarming.events == []


def test_groups_that_share_a_tensor_as_rate_are_recognised_without_reading_it() -> None:
    rate, net = torch.tensor(0.1), network()
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam([{"params": parameters[:1]}, {"params": parameters[1:]}], lr=rate)
    rewarming = Rewarming(optimizer, LinearDecay(0.1, 0.01, 10), Never())
    for group in optimizer.param_groups:
        group["lr"] = rate
    for _ in range(3):
        rewarming.step()
        assert [mine._version for mine in rewarming._set] == [rate._version] * 2


TRIGGERS: list[Callable[[], Trigger]] = [Never, lambda: Every(7), lambda: OnCusum(cusum()), AtKnownChange]


@pytest.mark.parametrize("make_trigger", TRIGGERS)
@pytest.mark.parametrize("rate", [1e-2, torch.tensor(1e-2)])
def test_reset_equals_a_rebuilt_rewarming(make_trigger: Callable[[], Trigger], rate: float | Tensor) -> None:
    def build(optimizer: torch.optim.Optimizer) -> Rewarming:
        return Rewarming(optimizer, LinearDecay(1e-2, 0.0, 30), make_trigger(), initial=Constant(1e-3))

    def run(net: nn.Module, optimizer: torch.optim.Optimizer, rewarming: Rewarming, updates: range) -> list[float]:
        rates = []

        def after(loss: Tensor) -> None:
            update = rewarming.state_dict()["updates"]
            if isinstance(rewarming.trigger, AtKnownChange) and update in (5, 24):
                rewarming.trigger.notify()  # at 24 the announcement is pending when the run ends
            rewarming.step(loss.detach() + (5.0 if update > 12 else 0.0))
            rates.extend(float(group["lr"]) for group in optimizer.param_groups)

        train(net, optimizer, updates, after)
        return rates

    left = []
    for rebuilt in (False, True):
        net = network()
        optimizer = two_groups(net, 3e-3, rate.clone() if isinstance(rate, Tensor) else rate)
        base = [float(group["lr"]) for group in optimizer.param_groups]
        rewarming = build(optimizer)
        run(net, optimizer, rewarming, range(25))
        if isinstance(rewarming.trigger, AtKnownChange):
            rewarming.trigger.notify()
        if rebuilt:  # what a script would have to do
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr
            rewarming = build(optimizer)
        else:
            rewarming.reset()
        state = copy.deepcopy(rewarming.state_dict())
        rates = [rewarming.rate, *(float(group["lr"]) for group in optimizer.param_groups)]
        left.append((state, rates, run(net, optimizer, rewarming, range(25, 60)), rewarming.state_dict(), net))
    assert left[0][:4] == left[1][:4]
    assert bit_equal(left[0][4], left[1][4])


def test_reset_keeps_the_moments_of_the_optimiser() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    rewarming = Rewarming(optimizer, Constant(1e-2), Never(), moments="reset")
    train(net, optimizer, range(5), rewarming.step)
    rewarming.reset()
    assert all(state["step"] == 5 and state["exp_avg"].any() for state in optimizer.state.values())


def test_scalars_are_the_statistic_if_there_is_one() -> None:
    rewarmings = [Rewarming(two_groups(network()), Constant(0.1), make()) for make in TRIGGERS]
    rewarmings.append(Rewarming(two_groups(network()), Constant(0.1), OnStagnation(Stagnation())))
    for rewarming in rewarmings:
        for value in (*(1.0 + 0.1 * i for i in range(10)), 4.0):
            rewarming.step(value)
    recorded = [rewarming.scalars() for rewarming in rewarmings]
    assert recorded[:2] == [{}, {}] and recorded[3] == {}
    assert recorded[2] == {"rewarm/statistic": rewarmings[2].trigger.statistic} and rewarmings[2].trigger.statistic > 0
    assert recorded[4] == {"rewarm/statistic": 1.0}


@pytest.mark.parametrize("make_trigger", TRIGGERS)
@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("moments", ["keep", "reset"])
def test_resume_is_exact(make_trigger: Callable[[], Trigger], optimizer_first: bool, moments: str) -> None:
    def build() -> tuple[nn.Sequential, torch.optim.Adam, Rewarming]:
        net = network()
        optimizer = two_groups(net, 3e-3, 1e-2)
        return net, optimizer, Rewarming(optimizer, LinearDecay(1e-2, 0.0, 30), make_trigger(), moments)

    def run(net: nn.Sequential, optimizer: torch.optim.Adam, rewarming: Rewarming, updates: range) -> None:
        def after(loss: Tensor) -> None:
            rewarming.step(loss.detach() + (5.0 if rewarming.state_dict()["updates"] > 44 else 0.0))
            if isinstance(rewarming.trigger, AtKnownChange) and rewarming.state_dict()["updates"] in (20, 33):
                rewarming.trigger.notify()

        train(net, optimizer, updates, after)

    whole = build()
    run(*whole, range(60))
    net, optimizer, rewarming = build()
    run(net, optimizer, rewarming, range(33))  # rate 0 for Never, a pending notice for AtKnownChange
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), rewarming.state_dict()))

    net, optimizer, rewarming = build()
    net.load_state_dict(saved[0])
    if optimizer_first:
        optimizer.load_state_dict(saved[1])
    rewarming.load_state_dict(saved[2])
    if not optimizer_first:
        optimizer.load_state_dict(saved[1])
    run(net, optimizer, rewarming, range(33, 60))
    assert bit_equal(net, whole[0])
    assert rewarming.state_dict() == whole[2].state_dict()
    assert rewarming.events or make_trigger is Never
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in whole[1].param_groups]


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.5, [0.125, 0.5]),
        (0.4, [0.1, 0.4]),  # the initial rate: each group gets its own, without rounding
    ],
)
def test_ratios_of_the_groups_come_from_the_state(rate: float, expected: list[float]) -> None:
    saved = Rewarming(two_groups(network(), 0.1, 0.4), Constant(rate), Never()).state_dict()
    optimizer = two_groups(network(), 7.0, 3.0)
    Rewarming(optimizer, Constant(rate), Never()).load_state_dict(saved)
    assert [g["lr"] for g in optimizer.param_groups] == expected


@pytest.mark.parametrize("make_trigger", TRIGGERS)
def test_state_of_another_trigger_is_an_error(make_trigger: Callable[[], Trigger]) -> None:
    stored = Rewarming(torch.optim.Adam(network().parameters()), Constant(0.1), make_trigger()).state_dict()
    other = Every(3) if stored["trigger_type"] != "Every" else Never()
    with pytest.raises(ValueError, match=f"state comes from the trigger {stored['trigger_type']}"):
        Rewarming(torch.optim.Adam(network().parameters()), Constant(0.1), other).load_state_dict(stored)


def test_changed_number_of_groups_is_an_error() -> None:
    optimizer = torch.optim.Adam(network().parameters(), lr=0.1)
    rewarming = Rewarming(optimizer, LinearDecay(0.1, 0.0, 5), Never())
    other = Rewarming(two_groups(network()), LinearDecay(0.1, 0.0, 5), Never())
    with pytest.raises(ValueError, match=r"1 parameter groups but rates were recorded for 2"):
        rewarming.load_state_dict(other.state_dict())
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(ValueError, match=r"2 parameter groups but rates were recorded for 1"):
        rewarming.step()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Rewarming(two_groups(network(), 0.0, 0.0), Constant(0.1), Never()), "at least one > 0"),
        (lambda: Rewarming(two_groups(network()), lambda t: math.nan, Never()), "gives the rate nan at step 0"),
        (lambda: Rewarming(two_groups(network()), Constant(0.1), Never(), "drop"), r"moments = 'drop'"),
    ],
)
def test_bad_arguments_are_errors(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("rate", [-0.1, math.inf])
def test_invalid_group_rates_are_errors(rate: float) -> None:
    optimizer = two_groups(network())
    optimizer.param_groups[0]["lr"] = rate
    with pytest.raises(ValueError, match="each must be finite and >= 0"):
        Rewarming(optimizer, Constant(0.1), Never())


@pytest.mark.parametrize("moments", ["keep", "reset"])
def test_restart_does_the_same_as_a_trigger_and_does_not_ask_it(moments) -> None:
    """A change announced to the trigger before the last update, and a restart after it, give the same network."""
    left = []
    for told in (True, False):
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        trigger = AtKnownChange() if told else Every(1000)
        rewarming = Rewarming(optimizer, LinearDecay(1e-2, 1e-4, 20), trigger, moments)
        train(net, optimizer, range(7), lambda loss, rewarming=rewarming: rewarming.step(loss))
        if told:
            trigger.notify()
        train(net, optimizer, range(7, 8), lambda loss, rewarming=rewarming: rewarming.step(loss))
        if not told:
            asked = copy.deepcopy(trigger.state_dict())
            rewarming.restart()
            assert trigger.state_dict() == asked
        assert rewarming.rate == 1e-2 and rewarming.events == [8] and rewarming.state_dict()["since"] == 0
        train(net, optimizer, range(8, 12), lambda loss, rewarming=rewarming: rewarming.step(loss))
        left.append(net)
    assert bit_equal(*left)


def test_another_schedule_until_the_first_trigger() -> None:
    trigger = AtKnownChange()
    optimizer = torch.optim.Adam(network().parameters(), lr=1e-2)
    rewarming = Rewarming(optimizer, LinearDecay(1e-2, 0.0, 4), trigger, initial=Constant(1e-4))
    rates = [rewarming.rate]
    for update in range(1, 9):
        if update in (3, 7):
            trigger.notify()
        assert rewarming.step() is (update in (3, 7))
        rates.append(rewarming.rate)
    # low until the trigger after update 3; the second trigger, after update 7, restarts the schedule itself
    assert rates == pytest.approx([1e-4, 1e-4, 1e-4, 1e-2, 7.5e-3, 5e-3, 2.5e-3, 1e-2, 7.5e-3])
    resumed = Rewarming(
        torch.optim.Adam(network().parameters(), lr=1e-2), LinearDecay(1e-2, 0.0, 4), AtKnownChange(),
        initial=Constant(1e-4),
    )  # fmt: skip
    assert resumed.rate == 1e-4
    resumed.load_state_dict(rewarming.state_dict())
    assert resumed.rate == rewarming.rate
