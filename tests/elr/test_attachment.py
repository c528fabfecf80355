"""elr.attach: the whole of Algorithm 1 inside `optimizer.step()`, against the loop written out."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from elr.attachment import attach
from elr.changepoint import Cusum
from elr.measure import Meter
from elr.probe import Probe
from elr.projection import NoProjection, Projection
from elr.rewarming import Rewarming
from elr.schedules import Constant, Cyclic, LinearDecay, WarmupCosine
from elr.signals import MeanSignal
from elr.triggers import AtKnownChange, Every, Never, OnCusum
from elr.weights import scalable_weights
from tests.elr.networks import with_torchs_weights as network

SCHEDULE = WarmupCosine(peak=3e-3, warmup_steps=10, decay_steps=60, final=1e-4, initial=1e-4)


def batches(count, dtype=torch.float64):
    """Regression on noise; from update 100 on the targets are larger."""
    generator = torch.Generator().manual_seed(1)
    for i in range(count):
        x = torch.randn(32, 6, generator=generator, dtype=dtype)
        yield x, torch.randn(32, 2, generator=generator, dtype=dtype) * (5 if i >= 100 else 1)


def detector():
    return OnCusum(Cusum(block=2, burn_in=8, refractory=8, threshold=6.0))


def loss_of(net, batch):
    return nn.functional.mse_loss(net(batch[0]), batch[1])


def train(net, optimizer, handle, data):
    """The loop of somebody else; returns what is logged."""
    logged = []
    for batch in data:
        optimizer.zero_grad()
        loss = loss_of(net, batch)
        loss.backward()
        if handle is not None and handle.rewarming is not None and isinstance(handle.rewarming.trigger, OnCusum):
            handle.signal(loss)
        optimizer.step()
        logged.append({} if handle is None else handle.scalars())
    return logged


def parameters(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_equals_the_loop_written_out_bit_for_bit():
    """Projection, trigger, schedule, meter and probe called by hand, in the order of Algorithm 1."""
    ours, theirs = network(), network()
    probe_inputs = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-3)
    handle = attach(
        ours,
        optimizer,
        schedule=SCHEDULE,
        trigger=detector(),
        meter=50,
        probe=Probe(ours, probe_inputs, ["2"], every=70),
    )
    measured_at_start = handle.scalars()
    logged = train(ours, optimizer, handle, batches(200))

    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    projection = Projection(theirs, check_inputs=next(batches(1))[0])
    rewarming = Rewarming(optimizer, SCHEDULE, detector())
    meter = Meter(scalable_weights(theirs), every=50, optimizer=optimizer, nominal_power=1)
    probe = Probe(theirs, probe_inputs, ["2"], every=70)
    assert measured_at_start == probe.measure()
    assert any(name.startswith("plasticity/") for name in measured_at_start)
    for update, batch in enumerate(batches(200), start=1):
        optimizer.zero_grad()
        loss = loss_of(theirs, batch)
        loss.backward()
        meter.before_step()
        optimizer.step()
        meter.after_step()
        rate = rewarming.rate
        projection.step(rate)
        fired = rewarming.step(loss)
        expected = {"charts/learning_rate": rate, **({"rewarm/event": 1.0} if fired else {}), **rewarming.scalars()}
        expected |= meter.fresh_scalars() | (probe.measure() if probe.due(update) else {})
        assert logged[update - 1] == expected
    assert torch.equal(parameters(ours), parameters(theirs))
    assert handle.rewarming.events == rewarming.events
    assert 1 <= len(rewarming.events) <= 3 and rewarming.events[0] > 100  # the larger targets were noticed
    assert handle.updates == 200


def test_equals_the_formulas():
    """200 updates of Adam at eta(s), W <- W rho / ||W||, (g, b) <- (g, b) sqrt(d) / ||(g, b)||, restart every 70."""
    ours, theirs = network(), network()
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-3)
    train(ours, optimizer, attach(ours, optimizer, schedule=SCHEDULE, trigger=Every(70)), batches(200))

    named = dict(theirs.named_parameters())
    radius = {name: float(named[name].detach().norm()) for name in ("0.weight", "3.weight")}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in named.items()}
    since = 0
    for update, batch in enumerate(batches(200), start=1):
        loss = loss_of(theirs, batch)
        gradients = torch.autograd.grad(loss, list(named.values()))
        if since < 10:
            eta = 1e-4 + (3e-3 - 1e-4) * since / 10
        elif since < 70:
            eta = 1e-4 + (3e-3 - 1e-4) * (1 + math.cos(math.pi * (since - 10) / 60)) / 2
        else:
            eta = 1e-4
        with torch.no_grad():
            for (name, p), g in zip(named.items(), gradients, strict=True):
                m, v = moments[name]
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p -= eta * (m / (1 - 0.9**update)) / ((v / (1 - 0.999**update)).sqrt() + 1e-8)
            for name, rho in radius.items():
                named[name] *= rho / named[name].norm()
            for layer in ("1", "4"):
                gain, offset = named[f"{layer}.weight"], named[f"{layer}.bias"]
                scale = 4.0 / (gain.square().sum() + offset.square().sum()).sqrt()
                gain *= scale
                offset *= scale
        since = 0 if update % 70 == 0 else since + 1
    assert parameters(ours) == pytest.approx(parameters(theirs), abs=1e-11)


def test_only_projects_by_default():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    norms = {name: float(w.detach().norm()) for name, w in scalable_weights(net).items()}
    head = float(net[6].weight.detach().norm())
    handle = attach(net, optimizer)
    logged = train(net, optimizer, handle, batches(30))
    assert {n: float(w.detach().norm()) for n, w in scalable_weights(net).items()} == pytest.approx(norms, rel=1e-12)
    assert abs(float(net[6].weight.detach().norm()) - head) > 1e-3
    assert logged == [{"charts/learning_rate": 0.1}] * 30
    assert handle.rate == optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_everything_off_nothing_changes(dtype):
    ours, plain = network(dtype), network(dtype)
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-3)
    train(ours, optimizer, attach(ours, optimizer, projection=NoProjection()), batches(30, dtype))
    train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-3), None, batches(30, dtype))
    assert torch.equal(parameters(ours), parameters(plain))


@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("cut", [1, 37, 151])
def test_continues_exactly(cut, optimizer_first):
    def build():
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        probe = Probe(net, torch.ones(4, 6, dtype=torch.float64).cumsum(0), ["2"], every=25)
        return net, optimizer, attach(net, optimizer, schedule=SCHEDULE, trigger=detector(), meter=20, probe=probe)

    net, optimizer, handle = build()
    whole = train(net, optimizer, handle, batches(200))

    data = list(batches(200))
    first, optimizer, handle = build()
    logged = train(first, optimizer, handle, data[:cut])
    handle.signal(1e3)  # a number for the next update is part of the state
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict(), handle.state_dict()], file)
    file.seek(0)
    second, optimizer, handle = build()
    weights, moments, state = torch.load(file, weights_only=True)
    second.load_state_dict(weights)
    if optimizer_first:
        optimizer.load_state_dict(moments)
    handle.load_state_dict(state)
    if not optimizer_first:
        optimizer.load_state_dict(moments)
    assert handle._signal.take() == 1e3
    logged += train(second, optimizer, handle, data[cut:])
    assert logged == whole
    assert torch.equal(parameters(second), parameters(net))
    assert handle.updates == 200


def test_run_whose_layer_has_died_is_resumed():
    """The check of the first batch is not repeated: it could not judge a layer on which the output does not depend."""

    def build():
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        return net, optimizer, attach(net, optimizer)

    net, optimizer, handle = build()
    train(net, optimizer, handle, batches(2))
    with torch.no_grad():
        net[4].bias.fill_(-100.0)
    train(net, optimizer, handle, batches(2))
    state = copy.deepcopy((net.state_dict(), optimizer.state_dict(), handle.state_dict()))
    train(net, optimizer, handle, batches(2))
    other, second, resumed = build()
    other.load_state_dict(state[0])
    second.load_state_dict(state[1])
    resumed.load_state_dict(state[2])
    assert not other._forward_pre_hooks
    train(other, second, resumed, batches(2))
    assert torch.equal(parameters(other), parameters(net))
    early = build()[2].state_dict()  # before the first step nothing has been checked
    assert early["checked"] is False and state[2]["checked"] is True


def test_restart_between_save_and_update_is_reported_after_the_resume():
    def build():
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        return net, optimizer, attach(net, optimizer, schedule=SCHEDULE)

    net, optimizer, handle = build()
    train(net, optimizer, handle, batches(3))
    handle.restart()
    state = handle.state_dict()
    net, optimizer, resumed = build()
    resumed.load_state_dict(state)
    first, second = train(net, optimizer, resumed, batches(2))
    assert first["rewarm/event"] == 1.0 and "rewarm/event" not in second
    assert first["charts/learning_rate"] == SCHEDULE(0) and resumed.rewarming.events == [3]


def test_what_was_measured_before_a_load_is_gone():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    probe = Probe(net, next(batches(1))[0], ["2"], every=1)
    handle = attach(net, optimizer, schedule=SCHEDULE, trigger=Every(1), meter=1, probe=probe)
    loss_of(net, next(batches(1))).backward()
    optimizer.step()  # rate, event, meter and probe are there, but nobody has read them
    handle.load_state_dict(handle.state_dict())
    assert handle.scalars() == {}


def test_state_from_before_the_first_update_does_not_skip_the_check():
    def build():
        net = without_norm()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        return net, optimizer, attach(net, optimizer)

    state = build()[2].state_dict()
    net, optimizer, handle = build()
    handle.load_state_dict(state)
    loss_of(net, next(batches(1))).backward()
    with pytest.raises(ValueError, match="depends on the scale of '0'"):
        optimizer.step()


def test_detached_nothing_is_left():
    ours, plain = network(), network()
    data = list(batches(40))
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-3)
    handle = attach(ours, optimizer, meter=10)
    train(ours, optimizer, handle, data[:20])
    handle.detach()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert not ours._forward_pre_hooks
    plain.load_state_dict(ours.state_dict())
    other = torch.optim.Adam(plain.parameters(), lr=1e-3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(ours, optimizer, None, data[20:])
    train(plain, other, None, data[20:])
    assert torch.equal(parameters(ours), parameters(plain))
    handle.detach()  # a second time it does nothing
    for call in (handle.restart, lambda: handle.signal(1.0)):
        with pytest.raises(RuntimeError, match="detached: attach again"):
            call()
    attach(ours, optimizer).detach()  # can be attached again, and detached before any step
    assert not ours._forward_pre_hooks


def test_known_change_restarts_the_schedule():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1.0)
    handle = attach(net, optimizer, schedule=LinearDecay(1e-2, 0.0, 10), moments="reset")
    data = list(batches(8))
    train(net, optimizer, handle, data[:5])
    assert handle.rate == pytest.approx(0.5e-2)
    handle.restart()
    assert handle.rate == 1e-2 == optimizer.param_groups[0]["lr"]
    assert optimizer.state[net[0].weight]["exp_avg"].abs().sum() == 0
    logged = train(net, optimizer, handle, data[5:])
    assert [(s["charts/learning_rate"], s.get("rewarm/event", 0.0)) for s in logged] == [
        (pytest.approx(1e-2), 1.0), (pytest.approx(0.9e-2), 0.0), (pytest.approx(0.8e-2), 0.0),
    ]  # fmt: skip
    assert handle.rewarming.events == [5]


def test_several_signals_before_an_update_are_averaged():
    seen = []

    class Watching(OnCusum):
        def fires(self, update, signal):
            seen.append(signal)
            return False

    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer, schedule=Constant(1e-3), trigger=Watching(Cusum()))
    for signals in ([0.1], [1.0, torch.tensor([4.0], dtype=torch.float16)], [torch.tensor(2.0, requires_grad=True)]):
        loss_of(net, next(batches(1))).backward()
        for signal in signals:
            handle.signal(signal)
        optimizer.step()
    assert [float(s) for s in seen] == [0.1, 2.5, 2.0]
    assert not any(isinstance(s, torch.Tensor) and s.requires_grad for s in seen)


def test_detector_without_a_signal_is_refused_before_the_update():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    attach(net, optimizer, schedule=Constant(1e-3), trigger=detector())
    loss_of(net, next(batches(1))).backward()
    before = parameters(net)
    with pytest.raises(ValueError, match=r"call signal\(loss\) before the step"):
        optimizer.step()
    assert torch.equal(parameters(net), before)


def without_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).double()


def test_first_batch_checks_scale_invariance_before_the_first_update():
    net = without_norm()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    attach(net, optimizer)
    before = parameters(net)
    loss_of(net, next(batches(1))).backward()
    with pytest.raises(ValueError, match="depends on the scale of '0'"):
        optimizer.step()
    assert torch.equal(parameters(net), before)
    with pytest.raises(ValueError, match="depends on the scale of '0'"):
        optimizer.step()  # still refused

    net = without_norm()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    norm = float(net[0].weight.detach().norm())
    train(net, optimizer, attach(net, optimizer, projection=Projection(net, allow_scale_dependent=True)), batches(3))
    assert float(net[0].weight.detach().norm()) == pytest.approx(norm, rel=1e-12)


def test_network_that_was_not_called_cannot_be_checked():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    attach(net, optimizer)
    with torch.no_grad():
        net(torch.ones(2, 6, dtype=torch.float64))  # a rollout is no training batch
    x, y = next(batches(1))
    for layer in net:
        x = layer(x)
    nn.functional.mse_loss(x, y).backward()
    with pytest.raises(ValueError, match=r"was not called, network\(...\).*check_inputs=batch"):
        optimizer.step()


def test_first_batch_may_be_keywords_and_overwritten_later():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, *, features, scale=1.0):
            return {"out": self.body(features * scale)}

    net = Keywords()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    attach(net, optimizer)
    x = torch.randn(16, 6, dtype=torch.float64)
    net(features=x, scale=2.0)["out"].square().mean().backward()
    x.zero_()  # zeros would be refused by the check
    optimizer.step()
    assert net.body[0].weight.grad is not None


def test_check_takes_the_training_batch_not_the_observations_before_it():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    attach(net, optimizer)
    for _ in range(3):
        net(torch.zeros(1, 6, dtype=torch.float64))  # an agent that acts; zeros would be refused by the check
    loss_of(net, next(batches(1))).backward()
    optimizer.step()


def test_copies_of_the_network_are_free_of_hooks():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    attach(net, optimizer)
    twin, both = copy.deepcopy(net), copy.deepcopy((net, optimizer))
    pickled = pickle.loads(pickle.dumps(net))
    for other in (twin, both[0], pickled):
        other(torch.zeros(2, 6, dtype=torch.float64)).sum().backward()  # is not taken for the first batch
    assert not both[1]._optimizer_step_pre_hooks
    train(net, optimizer, None, batches(2))
    assert not torch.equal(parameters(net), parameters(twin))


def test_replica_of_the_network_does_not_give_the_batch():
    """DataParallel calls shallow copies, which share the hook, on parts of the batch."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer)
    batch = next(batches(1))
    loss_of(net, batch).backward()
    replica = net._replicate_for_data_parallel()
    assert replica._forward_pre_hooks
    replica(torch.zeros(2, 6, dtype=torch.float64))  # zeros would be refused by the check
    assert torch.equal(handle._training_batch.arguments().args[0], batch[0])
    optimizer.step()


def test_copy_of_a_handle_says_that_it_controls_nothing():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer)
    for copied in (copy.deepcopy((net, optimizer, handle))[2], pickle.loads(pickle.dumps(handle)), copy.copy(handle)):
        copy.deepcopy(copied)
        with pytest.raises(RuntimeError, match=r"scalars: this is a copy of a handle .* controls nothing"):
            copied.scalars()
    train(net, optimizer, handle, batches(2))
    assert handle.updates == 2


@pytest.mark.filterwarnings("ignore")  # torch's own, of its profiler
def test_compiled_step():
    net = network(torch.float32)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    norm = float(net[0].weight.detach().norm())
    handle = attach(net, optimizer)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for batch in batches(3, torch.float32):
        loss_of(net, batch).backward()
        step()
    assert handle.updates == 3 and not handle.projection.unchecked
    assert float(net[0].weight.detach().norm()) == pytest.approx(norm, rel=1e-6)


def test_compiled_network():
    net = network(torch.float32)
    compiled = torch.compile(net, backend="eager")
    optimizer = torch.optim.Adam(compiled.parameters(), lr=1e-3)
    norm = float(net[0].weight.detach().norm())
    handle = attach(compiled, optimizer, meter=1)
    logged = train(compiled, optimizer, handle, batches(5, torch.float32))
    assert float(net[0].weight.detach().norm()) == pytest.approx(norm, rel=1e-6)
    assert "elr/0" in logged[0] and "elr/3" in logged[0]


def test_measurements_and_events_wait_until_they_are_read():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    probe = Probe(net, next(batches(1))[0], ["2"], every=4)
    handle = attach(net, optimizer, schedule=SCHEDULE, trigger=Every(4), meter=4, probe=probe)
    assert "plasticity/dead_fraction/2" in handle.scalars()
    for update, batch in enumerate(batches(11), start=1):
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        optimizer.step()
        if update % 4 == 1:  # 1, 5, 9: never where something is measured after the first update
            seen, again = handle.scalars(), handle.scalars()
            assert seen == again and "elr/0" in seen and seen["charts/learning_rate"] == SCHEDULE((update - 1) % 4)
            assert ("rewarm/event" in seen) == ("plasticity/delta_c/2" in seen) == (update > 1)
        if update in (2, 6):
            assert set(handle.scalars()) == {"charts/learning_rate"}  # what was read is not news any more


def test_weights_of_a_new_norm_need_a_new_projection():
    """A network that is loaded after attach would be scaled back to the norms of the fresh one."""
    for change in ("weight", "gain", "state"):
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        handle = attach(net, optimizer)
        with torch.no_grad():
            net[1 if change == "gain" else 0].weight.mul_(3.0)
        loss_of(net, next(batches(1))).backward()
        if change == "state":
            handle.load_state_dict(handle.state_dict())
            optimizer.step()
            continue
        with pytest.raises(ValueError, match=r"norms of \['[01]'\] have changed since .*load the weights before"):
            optimizer.step()


def test_layer_that_is_unfrozen_later_is_refused():
    net = network()
    net[0].requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer)
    train(net, optimizer, handle, batches(2))
    net[0].requires_grad_(True)
    loss_of(net, next(batches(1))).backward()
    with pytest.raises(RuntimeError, match=r"\['0.weight'\] were frozen .* detach\(\) and attach again"):
        optimizer.step()
    handle.detach()
    attach(net, optimizer)
    train(net, optimizer, None, batches(1))


def test_step_that_calls_the_step_of_its_class_counts_once():
    """torch runs the hooks of both if both classes have made an optimiser."""

    class Mine(torch.optim.Adam):
        def step(self, closure=None):
            loss = None if closure is None else closure()
            super().step()
            return loss

    for with_closure in (False, True):
        ours, theirs = network(), network()
        plain = torch.optim.Adam(theirs.parameters(), lr=1e-3)
        mine = Mine(ours.parameters(), lr=1e-3)
        expected = attach(theirs, plain, schedule=SCHEDULE, meter=1)
        handle = attach(ours, mine, schedule=SCHEDULE, meter=1)
        wanted = train(theirs, plain, expected, batches(5))
        for batch, scalars in zip(batches(5), wanted, strict=True):

            def closure(batch=batch, ours=ours, mine=mine):
                mine.zero_grad()
                loss_of(ours, batch).backward()

            if with_closure:
                mine.step(closure)
            else:
                closure()
                mine.step()
            assert handle.scalars() == scalars
        assert handle.updates == 5 and torch.equal(parameters(ours), parameters(theirs))


def test_detach_gives_the_rates_back_so_that_a_refusal_can_be_mended():
    net = without_norm()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.25)
    handle = attach(net, optimizer, schedule=WarmupCosine(peak=0.1, warmup_steps=5, decay_steps=5, final=0.0))
    assert optimizer.param_groups[0]["lr"] == 0.0
    loss_of(net, next(batches(1))).backward()
    with pytest.raises(ValueError, match="depends on the scale"):
        optimizer.step()
    handle.detach()
    assert optimizer.param_groups[0]["lr"] == 0.25
    attach(net, optimizer, schedule=Constant(0.1), projection=NoProjection())
    optimizer.step()


def test_state_of_an_interrupted_step_is_refused():
    """Ctrl-C within the optimiser's own update: weights and moments may be of two updates."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer, schedule=SCHEDULE)
    train(net, optimizer, handle, batches(2))
    handle.state_dict()

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = optimizer.register_step_post_hook(interrupt)
    optimizer._optimizer_step_post_hooks.move_to_end(hook.id, last=False)
    with pytest.raises(KeyboardInterrupt):
        train(net, optimizer, handle, batches(1))
    with pytest.raises(RuntimeError, match=r"was interrupted.*save between steps"):
        handle.state_dict()
    hook.remove()
    train(net, optimizer, handle, batches(1))
    assert handle.state_dict()["updates"] == 3


def test_refused_state_leaves_everything_as_it_was():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer, schedule=SCHEDULE, trigger=detector(), meter=2)
    other = network()
    with torch.no_grad():
        other[0].weight.mul_(2.0)
    another = torch.optim.Adam(other.parameters(), lr=1e-3)
    theirs = attach(other, another, schedule=SCHEDULE, trigger=OnCusum(Cusum(threshold=7.0)), meter=2)
    before = handle.state_dict()
    with pytest.raises(ValueError, match=r"saved with Cusum\(threshold=7.0, .*block=50.*\): build it with the same"):
        handle.load_state_dict(theirs.state_dict())
    assert handle.state_dict() == before


def test_trigger_that_has_watched_another_run_starts_anew():
    trigger = detector()
    for _ in range(2):
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        handle = attach(net, optimizer, schedule=SCHEDULE, trigger=trigger)
        assert trigger.cusum.state_dict()["blocks_seen"] == 0
        train(net, optimizer, handle, batches(10))
        assert trigger.cusum.state_dict()["blocks_seen"] == 5


def test_first_batch_is_kept_as_it_was_given():
    """Autocast, hooks of the user, arguments that the forward pass consumes."""

    class Eats(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network(torch.float32)

        def forward(self, batch):
            return self.body(batch.pop("x"))

    net = Eats()
    net.register_forward_pre_hook(lambda module, args: ({"x": args[0]["x"] * 0.5},))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    attach(net, optimizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net({"x": torch.randn(32, 6, dtype=torch.bfloat16)}).square().mean()
    loss.backward()
    optimizer.step()


def test_closure_is_evaluated_once_and_measured():
    ours, theirs = network(), network()
    data = list(batches(10))
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    expected = train(theirs, optimizer, attach(theirs, optimizer, schedule=SCHEDULE, meter=1), data)

    for keyword in (True, False):
        ours = network()
        optimizer = torch.optim.Adam(ours.parameters(), lr=1e-3)
        handle = attach(ours, optimizer, schedule=SCHEDULE, meter=1)
        logged = []
        for batch in data:

            def closure(net=ours, batch=batch, optimizer=optimizer):
                optimizer.zero_grad()
                loss = loss_of(net, batch)
                loss.backward()
                return loss

            loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
            assert float(loss.detach()) > 0
            logged.append(handle.scalars())
        assert logged == expected
        assert torch.equal(parameters(ours), parameters(theirs))


class Twice(torch.optim.SGD):
    """Evaluates its closure twice, as LBFGS and sharpness-aware minimisation do."""

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        return super().step(closure)


def test_optimizers_that_evaluate_a_closure_several_times_are_refused():
    net = network()
    with pytest.raises(ValueError, match="LBFGS evaluates the loss several times"):
        attach(net, torch.optim.LBFGS(net.parameters()))
    optimizer = Twice(net.parameters(), lr=0.1)
    attach(net, optimizer)
    data = next(batches(1))
    with pytest.raises(RuntimeError, match="twice in one step"):
        optimizer.step(lambda: loss_of(net, data).backward())


def test_interrupted_step_is_not_counted():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer, schedule=SCHEDULE, meter=2)
    train(net, optimizer, handle, batches(3))
    original = handle.meter._record_before

    def interrupt():
        original()
        raise KeyboardInterrupt

    handle.meter._record_before = interrupt
    with pytest.raises(KeyboardInterrupt):
        train(net, optimizer, handle, batches(1))
    handle.meter._record_before = original
    assert handle.updates == 3
    logged = train(net, optimizer, handle, batches(1))
    assert handle.updates == 4 and "elr/0" in logged[0]
    assert handle.meter.state_dict() == {"updates": 4}


@pytest.mark.parametrize("fused", [True, False])
def test_step_skipped_by_a_scaler_counts_for_nothing(fused):
    net = network(torch.float32)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=fused)
    handle = attach(net, optimizer, schedule=SCHEDULE, meter=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, next(batches(1, torch.float32)))).backward()
        if bad:
            net[0].weight.grad[0, 0] = math.inf
        before, state = parameters(net), handle.state_dict()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, parameters(net)) == bad
        assert (handle.state_dict() == state) == bad
    assert handle.updates == 2
    assert handle.rate == pytest.approx(SCHEDULE(2))


def test_rates_of_others_are_refused_or_overruled():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer, schedule=Cyclic(1e-4, 1e-3, period=10))
    train(net, optimizer, handle, batches(3))
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(RuntimeError, match=r"parameter group 0 is 0.5, but the schedule has set"):
        train(net, optimizer, handle, batches(1))
    handle.detach()

    handle = attach(net, optimizer, schedule=Cyclic(1e-4, 1e-3, period=10), outside_rates="overrule")
    used = []
    optimizer.register_step_post_hook(lambda *_: None)
    for i, batch in enumerate(batches(12)):
        optimizer.param_groups[0]["lr"] = 0.5  # as a framework does before every update
        train(net, optimizer, handle, [batch])
        used.append(handle.scalars()["charts/learning_rate"])
        assert used[i] == Cyclic(1e-4, 1e-3, period=10)(i)
    moved = float(optimizer.state[net[0].weight]["step"])
    assert moved == 3 + 12


def test_optimizer_moves_at_the_rate_that_is_reported():
    """With SGD the step is the rate times the gradient, also when a framework had set another rate."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    handle = attach(
        net, optimizer, schedule=LinearDecay(0.1, 0.0, 10), outside_rates="overrule", projection=NoProjection()
    )
    for batch in batches(5):
        optimizer.param_groups[0]["lr"] = 7.0
        loss_of(net, batch).backward()
        before, gradient = net[0].weight.detach().clone(), net[0].weight.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        rate = handle.scalars()["charts/learning_rate"]
        assert net[0].weight.detach() == pytest.approx(before - rate * gradient, abs=1e-15)
    assert rate == pytest.approx(0.06)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trigger": Never()}, "trigger has no effect without a schedule"),
        ({"moments": "reset"}, "moments has no effect without a schedule"),
        ({"outside_rates": "overrule"}, "outside_rates has no effect without a schedule"),
        ({"schedule": Constant(0.1), "outside_rates": "ignore"}, "outside_rates='ignore' is not known"),
        ({"schedule": Constant(0.1), "moments": "forget"}, "moments = 'forget' is not known"),
        ({"projection": "other network"}, r"holds \['0', '3'\] of another network"),
        ({"meter": 0}, "every must be at least 1"),
        ({"meter": 2.5}, "meter=float is not of the right kind: give a whole number of updates"),
        ({"projection": False}, r"projection=bool is not of the right kind: give NoProjection\(\) for none"),
        ({"probe": 100}, r"probe=int is not of the right kind: give Probe\("),
        ({"schedule": 1e-3}, r"schedule=float is not of the right kind: give Constant\(0.001\)"),
        ({"schedule": Cyclic}, "schedule=Cyclic is not of the right kind"),
        ({"schedule": Constant(0.1), "trigger": Cusum()}, r"trigger=Cusum is .* give OnCusum\(Cusum\(...\)\)"),
        ({"schedule": Constant(0.1), "trigger": OnCusum}, "trigger=OnCusum is not of the right kind"),
        ({"schedule": Constant(0.1), "trigger": 100}, "trigger=int is not of the right kind"),
    ],
)
def test_arguments_without_effect_are_refused(arguments, message):
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    if arguments.get("projection") == "other network":
        arguments = {"projection": Projection(network(), check_inputs=next(batches(1))[0])}
    with pytest.raises(ValueError, match=message):
        attach(net, optimizer, **arguments)
    assert optimizer.param_groups[0]["lr"] == 1e-3 and not optimizer._optimizer_step_pre_hooks
    assert not net._forward_pre_hooks
    attach(net, optimizer)  # a refusal leaves nothing behind


def test_signals_that_nothing_watches_are_refused():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer)
    with pytest.raises(ValueError, match="there is no trigger"):
        handle.signal(1.0)
    with pytest.raises(ValueError, match="without a schedule"):
        handle.restart()
    handle.detach()
    handle = attach(net, optimizer, schedule=Constant(0.1), trigger=AtKnownChange())
    with pytest.raises(ValueError, match="AtKnownChange watches nothing"):
        handle.signal(1.0)
    handle.detach()
    handle = attach(net, optimizer, schedule=Constant(0.1), trigger=detector())
    with pytest.raises(ValueError, match=r"one number, got shape \(2,\)"):
        handle.signal(torch.ones(2))
    for value in (None, "1", [1.0], np.ones(2)):
        with pytest.raises(ValueError, match=r"signal\(\) needs "):
            handle.signal(value)
    handle.signal(np.float32(0.25))
    assert handle._signal.take() == 0.25


def test_sum_of_signals_in_half_precision_does_not_overflow(monkeypatch):
    monkeypatch.setattr("elr.signals._is_on_host", lambda value: False)  # as on a GPU
    signal = MeanSignal()
    for _ in range(4):
        signal.add(torch.tensor(51392.0, dtype=torch.float16), detector())  # twice this is infinite in float16
    mean = signal.take()
    assert mean.dtype == torch.float32 and float(mean) == 51392.0


def test_several_numbers_that_wait_are_restored_with_their_count():
    first, second = MeanSignal(), MeanSignal()
    first.add(1.0, detector())
    first.add(2.0, detector())
    second.load_state_dict(first.state_dict())
    second.add(6.0, detector())
    assert second.take() == 3.0


def test_signals_that_wait_are_restored_in_their_precision(monkeypatch):
    """Several float32 losses, saved between two of them: the mean is the same to the last bit."""
    monkeypatch.setattr("elr.signals._is_on_host", lambda value: False)  # as on a GPU
    losses = torch.rand(3, generator=torch.Generator().manual_seed(5)) / 3
    whole, first, second = MeanSignal(), MeanSignal(), MeanSignal()
    for signal in (whole, first):
        signal.add(losses[0], detector())
        signal.add(losses[1], detector())
    second.load_state_dict(first.state_dict())
    for signal in (whole, second):
        signal.add(losses[2], detector())
    mean = whole.take()
    assert mean.dtype == torch.float32 and torch.equal(mean, second.take())


def test_parts_of_another_network_or_optimizer_are_refused():
    net, other = network(), network()
    optimizer, another = (torch.optim.Adam(n.parameters(), lr=1e-3) for n in (net, other))
    with pytest.raises(ValueError, match="meter was built with another optimiser"):
        attach(net, optimizer, meter=Meter(scalable_weights(other), every=1, optimizer=another))
    with pytest.raises(ValueError, match="probe is of another network"):
        attach(net, optimizer, probe=Probe(other, next(batches(1))[0], ["2"], every=10))
    compiled = torch.compile(net, backend="eager")
    attach(compiled, optimizer, probe=Probe(net, next(batches(1))[0], ["2"], every=10))  # the same network


def test_a_check_that_never_ran_is_not_saved_as_done():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer)
    handle.detach()
    assert handle.state_dict()["checked"] is False


def test_optimizer_must_hold_the_weights():
    net = network()
    optimizer = torch.optim.Adam(net[3:].parameters(), lr=1e-3)
    with pytest.raises(ValueError, match=r"does not hold \['0'\].*leave="):
        attach(net, optimizer)
    attach(net, optimizer, projection=Projection(net, leave=["0"]))


def test_second_attachment_is_refused():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    attach(net, optimizer)
    with pytest.raises(ValueError, match="attached already"):
        attach(net, optimizer)


def test_state_of_other_parts_is_refused():
    net, other = network(), network()
    optimizer, another = (torch.optim.Adam(n.parameters(), lr=1e-3) for n in (net, other))
    state = attach(net, optimizer).state_dict()
    handle = attach(other, another, schedule=Constant(0.1))
    with pytest.raises(ValueError, match=r"only one of the state and this attachment has \['rewarming'\]"):
        handle.load_state_dict(state)
    with pytest.raises(ValueError, match="Attachment needs exactly"):
        handle.load_state_dict({"updates": 1})


def test_what_cannot_be_attached_is_refused_by_name(monkeypatch):
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.optimizer = inner

    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match=r"needs an nn.Module first, got Adam"):
        attach(optimizer, net)
    with pytest.raises(ValueError, match="needs a torch optimiser, got list"):
        attach(net, [optimizer])
    with pytest.raises(ValueError, match="Wrapper wraps an optimiser and runs no step hooks"):
        attach(net, Wrapper(optimizer))
    attach(net, optimizer)
    loss_of(net, next(batches(1))).backward()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="captured in a CUDA graph"):
        optimizer.step()


def test_all_that_is_held_is_listed():
    net = network()
    projection = Projection(net, check_inputs=next(batches(1))[0])
    held = [net[0].weight, net[3].weight, net[1].weight, net[4].weight, net[1].bias, net[4].bias]
    assert [id(p) for p in projection.held()] == [id(p) for p in held]
    assert len(Projection(net, check_inputs=next(batches(1))[0], gains="free").held()) == 2


def test_state_can_be_loaded_after_an_interrupted_step_but_not_into_a_detached_handle():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer, schedule=SCHEDULE, meter=1)
    data = list(batches(6))
    train(net, optimizer, handle, data[:3])
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), handle.state_dict()))
    expected = train(net, optimizer, handle, data[3:])
    weights = parameters(net)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = optimizer.register_step_post_hook(interrupt)
    optimizer._optimizer_step_post_hooks.move_to_end(hook.id, last=False)
    with pytest.raises(KeyboardInterrupt):
        train(net, optimizer, handle, data[:1])
    hook.remove()
    net.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    handle.load_state_dict(saved[2])
    assert handle.state_dict() == saved[2]
    assert train(net, optimizer, handle, data[3:]) == expected
    assert torch.equal(parameters(net), weights)
    handle.detach()
    with pytest.raises(RuntimeError, match="detached: attach again"):
        handle.load_state_dict(saved[2])
