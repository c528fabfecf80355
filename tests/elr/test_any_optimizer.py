"""elr.attach with every optimiser of torch and with the loops people write: right numbers, or one line that refuses.

The yardstick is the same optimiser of torch in a loop in which projection, schedule and measurement are written out.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from elr.attachment import attach
from elr.changepoint import Cusum
from elr.fast.flat_adam import FlatAdam
from elr.measure import Meter
from elr.projection import NoProjection, Projection
from elr.schedules import Constant, LinearDecay, WarmupCosine
from elr.triggers import Every, OnCusum
from tests.elr.networks import with_torchs_weights as network

UPDATES, RESTART, CADENCE = 60, 25, 10


def batches(count=UPDATES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(32, width, generator=generator, dtype=dtype) for width in (6, 2)] for _ in range(count)]


def loss_of(net, batch):
    return nn.functional.mse_loss(net(batch[0]), batch[1])


def parameters(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def schedule_of(rate):
    return WarmupCosine(peak=rate, warmup_steps=5, decay_steps=15, final=0.1 * rate, initial=0.2 * rate)


def eta(rate, since):
    """The same, written out."""
    if since < 5:
        return 0.2 * rate + 0.8 * rate * since / 5
    return 0.1 * rate + 0.9 * rate * (1 + math.cos(math.pi * min(since - 5, 15) / 15)) / 2


def set_rates(optimizer, rates):
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class Norms:
    """Normalize-and-project for `network`, written out."""

    def __init__(self, net):
        self.weights = [net[0].weight, net[3].weight]
        self.radii = [weight.detach().square().sum().sqrt() for weight in self.weights]
        self.norms = [net[1], net[4]]

    @torch.no_grad()
    def project(self):
        for weight, radius in zip(self.weights, self.radii, strict=True):
            weight *= radius / weight.square().sum().sqrt()
        for norm in self.norms:
            scale = 4.0 / (norm.weight.square().sum() + norm.bias.square().sum()).sqrt()  # 16 gains: radius 4
            norm.weight *= scale
            norm.bias *= scale


def one_backward(net, optimizer, batch):
    optimizer.zero_grad()
    loss_of(net, batch).backward()


def written_out(net, optimizer, rate, gradients=one_backward, step=None, ratios=(1.0,), power=1, at_restart=None):
    """The loop as it would be without `attach`; the measured ELRs by update."""
    norms, measured, since = Norms(net), {}, 0
    held = {layer: weight for layer, weight in zip("03", norms.weights, strict=True)}
    for update, batch in enumerate(batches(), start=1):
        set_rates(optimizer, [eta(rate, since) * ratio for ratio in ratios])
        gradients(net, optimizer, batch)
        before = {layer: weight.detach().clone() for layer, weight in held.items()}
        expected = {f"elr_nominal/{layer}": eta(rate, since) / float(w.norm()) ** power for layer, w in before.items()}
        expected |= {f"norms/gradient/{layer}": float(weight.grad.norm()) for layer, weight in held.items()}
        (step or optimizer.step)()
        if update == 1 or update % CADENCE == 0:
            for layer, w in before.items():
                expected[f"elr/{layer}"] = float((held[layer].detach() - w).norm() / w.norm())
            measured[update] = expected
        norms.project()
        since += 1
        if update % RESTART == 0:
            since = 0
            if at_restart is not None:
                optimizer = at_restart(net)
    return measured


def attached(net, optimizer, rate, gradients=one_backward, step=None, **arguments):
    """The loop with `attach`; what is logged by update."""
    meter = Meter({"0": net[0].weight, "3": net[3].weight}, every=CADENCE, optimizer=optimizer,
                  **({} if arguments.pop("known", True) else {"nominal_power": 1}))  # fmt: skip
    handle = attach(net, optimizer, schedule=schedule_of(rate), trigger=Every(RESTART), meter=meter, **arguments)
    logged = {}
    for update, batch in enumerate(batches(), start=1):
        gradients(net, optimizer, batch)
        (step or optimizer.step)()
        logged[update] = handle.scalars()
    assert handle.updates == UPDATES and handle.rewarming.events == [RESTART, 2 * RESTART]
    return logged


def check(ours, theirs, logged, measured, tolerance=1e-9):
    assert parameters(ours) == pytest.approx(parameters(theirs), rel=tolerance, abs=tolerance)
    assert not torch.allclose(parameters(ours), parameters(network()), atol=1e-4)
    for update, expected in measured.items():
        for tag, value in expected.items():
            assert logged[update][tag] == pytest.approx(value, rel=max(tolerance, 1e-7)), (update, tag)
    assert [u for u, scalars in logged.items() if "elr/0" in scalars] == list(measured)


SGD, Adam, RMSprop = torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop
OPTIMIZERS = {
    "SGD": (SGD, 0.2, {}),
    "SGD momentum": (SGD, 0.05, {"momentum": 0.9, "weight_decay": 0.01}),
    "SGD nesterov": (SGD, 0.05, {"momentum": 0.9, "nesterov": True}),
    "SGD foreach": (SGD, 0.05, {"momentum": 0.9, "foreach": True}),
    "SGD foreach nesterov": (SGD, 0.05, {"momentum": 0.9, "nesterov": True, "foreach": True}),
    "SGD fused": (SGD, 0.05, {"momentum": 0.9, "fused": True}),
    "Adam": (Adam, 3e-3, {}),
    "Adam amsgrad": (Adam, 3e-3, {"amsgrad": True}),
    "Adam foreach": (Adam, 3e-3, {"foreach": True}),
    "Adam fused": (Adam, 3e-3, {"fused": True}),
    "AdamW": (torch.optim.AdamW, 3e-3, {"weight_decay": 0.1}),
    "AdamW fused": (torch.optim.AdamW, 3e-3, {"weight_decay": 0.1, "fused": True}),
    "Adamax": (torch.optim.Adamax, 3e-3, {}),
    "NAdam": (torch.optim.NAdam, 3e-3, {}),
    "NAdam foreach": (torch.optim.NAdam, 3e-3, {"foreach": True}),
    "RAdam": (torch.optim.RAdam, 3e-3, {}),
    "RMSprop": (RMSprop, 1e-3, {}),
    "RMSprop centered, momentum": (RMSprop, 1e-3, {"centered": True, "momentum": 0.9}),
    "RMSprop foreach": (RMSprop, 1e-3, {"centered": True, "momentum": 0.9, "foreach": True}),
    "Adagrad": (torch.optim.Adagrad, 1e-2, {}),
    "Adagrad fused": (torch.optim.Adagrad, 1e-2, {"fused": True}),
    "Adadelta": (torch.optim.Adadelta, 0.5, {}),
    "ASGD": (torch.optim.ASGD, 0.05, {}),
    "FlatAdam": (FlatAdam, 3e-3, {"eps": 1e-8}),
}
UNKNOWN_POWER = ("Adadelta", "ASGD")


def build(kind, net, rate=None):
    constructor, usual, options = OPTIMIZERS[kind]
    return constructor(net.parameters(), lr=usual if rate is None else rate, **options)


def twin(kind, net):
    """FlatAdam's numbers are torch's."""
    return torch.optim.Adam(net.parameters(), lr=3e-3, fused=True) if kind == "FlatAdam" else build(kind, net)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_equals_the_loop_written_out(kind):
    ours, theirs = network(), network()
    rate = OPTIMIZERS[kind][1]
    logged = attached(ours, build(kind, ours), rate, known=kind not in UNKNOWN_POWER)
    power = 2 if kind.startswith("SGD") else 1
    check(ours, theirs, logged, written_out(theirs, twin(kind, theirs), rate, power=power))


@pytest.mark.parametrize("kind", ["SGD momentum", "Adam", "Adam fused", "NAdam", "RMSprop centered, momentum",
                                  "Adagrad fused", "Adamax", "RAdam", "Adadelta", "FlatAdam"])  # fmt: skip
def test_moments_are_reset_at_a_restart_as_by_a_new_optimizer(kind):
    ours, theirs, kept = network(), network(), network()
    rate = OPTIMIZERS[kind][1]
    logged = attached(ours, build(kind, ours), rate, moments="reset", known=kind not in UNKNOWN_POWER)

    # A new optimiser inside the loop that is written out: its step must be the one that is called.
    current = [twin(kind, theirs)]

    def renew(net):
        current[0] = twin(kind, net)
        return current[0]

    power = 2 if kind.startswith("SGD") else 1
    measured = written_out(theirs, current[0], rate, step=lambda: current[0].step(), power=power, at_restart=renew)
    check(ours, theirs, logged, measured)
    written_out(kept, twin(kind, kept), rate)
    assert not torch.allclose(parameters(ours), parameters(kept), atol=1e-5)


@pytest.mark.parametrize("kind", UNKNOWN_POWER)
def test_a_cadence_alone_needs_an_optimizer_whose_nominal_elr_is_known(kind):
    net = network()
    with pytest.raises(ValueError, match=f"how the updates of {kind} grow with the gradient is not known: give nomin"):
        attach(net, build(kind, net), meter=10)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "Adam fused", "AdamW", "FlatAdam"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rates_that_are_tensors(kind, shape, dtype):
    """They are filled in place, in their own precision."""
    ours, theirs = network(), network()
    rate = OPTIMIZERS[kind][1]
    lr = torch.full(shape, rate, dtype=dtype)
    other = network()
    one_backward(other, plain := build(kind, other, lr.clone()), batches(1)[0])
    try:
        plain.step()
    except TypeError:
        pytest.skip("this release of torch takes no rates of shape (1,) here")
    optimizer = build(kind, ours, lr)
    logged = attached(ours, optimizer, rate)
    (group,) = optimizer.param_groups
    assert group["lr"] is lr and lr.shape == shape
    measured = written_out(theirs, twin(kind, theirs), rate, power=2 if kind == "SGD" else 1)
    check(ours, theirs, logged, measured, 1e-9 if dtype == torch.float64 else 1e-5)


def in_groups(net, kind="Adam", tensors=False):
    """Three groups at 1 : 0.25 : 0."""
    constructor, rate, options = OPTIMIZERS[kind]
    chosen = (
        [*net[0].parameters(), *net[3].parameters()],
        [*net[1].parameters(), *net[4].parameters()],
        [*net[6].parameters()],
    )
    rates = (0.25 * rate, rate, 0.0)
    return constructor(
        [{"params": ps, "lr": torch.tensor(lr, dtype=torch.float64) if tensors else lr}
         for ps, lr in zip(chosen, rates, strict=True)],
        lr=7.0, **options,
    )  # fmt: skip


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("kind", ["SGD momentum", "Adam", "RMSprop"])
def test_several_groups_keep_their_ratios(kind, tensors):
    ours, theirs = network(), network()
    rate = OPTIMIZERS[kind][1]
    optimizer = in_groups(ours, kind, tensors)
    logged = attached(ours, optimizer, rate)
    measured = written_out(theirs, in_groups(theirs, kind), rate, ratios=(0.25, 1.0, 0.0), power=1 + (kind[0] == "S"))
    for expected in measured.values():  # the weights are in the slower group
        expected |= {tag: 0.25 * value for tag, value in expected.items() if tag.startswith("elr_nominal")}
    check(ours, theirs, logged, measured)
    assert torch.equal(ours[6].weight, network()[6].weight)  # its rate is 0
    assert [logged[u]["charts/learning_rate"] for u in (1, 6, 26)] == pytest.approx([0.2 * rate, rate, 0.2 * rate])
    assert [float(g["lr"]) for g in optimizer.param_groups] == pytest.approx([0.25 * eta(rate, 10), eta(rate, 10), 0])


def test_without_a_schedule_the_rate_that_is_logged_is_the_fastest_groups_at_the_update():
    net = network()
    rates = [torch.tensor([0.25]), torch.tensor(0.5), 0.125]
    optimizer = SGD(
        [{"params": net[i].parameters(), "lr": lr} for i, lr in zip((0, 3, 6), rates, strict=True)], fused=True
    )
    handle = attach(net, optimizer, projection=Projection(net, gains="free", check_inputs=batches(1)[0][0]))
    assert handle.rate == 0.5
    one_backward(net, optimizer, batches(1)[0])
    optimizer.step()
    rates[1].fill_(0.0)
    assert handle.scalars() == {"charts/learning_rate": 0.5} and handle.rate == 0.25


@pytest.mark.parametrize("foreach", [True, False])
def test_groups_that_share_one_tensor_as_their_rate(foreach):
    ours, theirs = network(), network()
    lr = torch.tensor(0.2, dtype=torch.float64)
    optimizer = SGD([{"params": net.parameters()} for net in (ours[:3], ours[3:])], lr=lr, foreach=foreach)
    logged = attached(ours, optimizer, 0.2)
    check(ours, theirs, logged, written_out(theirs, SGD(theirs.parameters(), lr=0.2), 0.2, power=2))


@pytest.mark.parametrize(("option", "error"), [("capturable", AssertionError), ("differentiable", RuntimeError)])
def test_what_torch_refuses_in_the_step_counts_nothing(option, error):
    """Capturable needs an accelerator, differentiable parameters that are not leaves."""
    net = network()
    optimizer = Adam(net.parameters(), lr=1e-3, **{option: True})
    handle = attach(net, optimizer, schedule=schedule_of(1e-3), meter=1)
    one_backward(net, optimizer, batches(1)[0])
    for _ in range(2):
        with pytest.raises(error, match=r"capturable=True|leaf Variable"):
            optimizer.step()
    assert handle.updates == 0 and torch.equal(parameters(net), parameters(network()))
    optimizer.param_groups[0][option] = optimizer.defaults[option] = False
    optimizer.state.clear()
    optimizer.step()
    assert handle.updates == 1 and handle.meter.state_dict() == {"updates": 1}
    assert handle.scalars()["charts/learning_rate"] == pytest.approx(0.2e-3) and handle.rate == eta(1e-3, 1)


class Table(nn.Module):
    """A table with sparse gradients in front of a fixed head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 8, sparse=True)
        self.norm = nn.LayerNorm(8, elementwise_affine=False)
        self.head = nn.Linear(8, 2).requires_grad_(False)
        self.double()

    def forward(self, index):
        return self.head(self.norm(self.table(index)))


@pytest.mark.parametrize(("constructor", "power"), [(torch.optim.SparseAdam, 1), (SGD, 2)])
def test_sparse_gradients(constructor, power):
    ours, theirs = Table(), Table()
    optimizer = constructor(list(ours.table.parameters()), lr=0.05)
    handle = attach(
        ours, optimizer, schedule=schedule_of(0.05), trigger=Every(RESTART), meter=1,
        projection=Projection(ours, embeddings=True, heads=["head"]),
    )  # fmt: skip
    by_hand = constructor(list(theirs.table.parameters()), lr=0.05)
    weight, since = theirs.table.weight, 0
    radius = float(weight.detach().norm())
    for update in range(1, UPDATES + 1):
        index = torch.randint(10, (6,), generator=torch.Generator().manual_seed(update))
        for net, each in ((ours, optimizer), (theirs, by_hand)):
            each.zero_grad()
            (net(index) - 1.0).square().sum().backward()
            if net is theirs:
                set_rates(each, [eta(0.05, since)])
                before, gradient = weight.detach().clone(), float(weight.grad.to_dense().norm())
            each.step()
        out = handle.scalars()
        assert out["elr/table"] == pytest.approx(float((weight.detach() - before).norm()) / radius, rel=1e-8)
        assert out["elr_nominal/table"] == pytest.approx(eta(0.05, since) / radius**power, rel=1e-9)
        assert out["norms/gradient/table"] == pytest.approx(gradient, rel=1e-8)
        with torch.no_grad():
            weight *= radius / weight.norm()
        since = 0 if update % RESTART == 0 else since + 1
    assert ours.table.weight.detach() == pytest.approx(weight.detach(), rel=1e-9)
    assert not torch.allclose(weight, Table().table.weight, atol=0.1)


def test_lbfgs_is_refused():
    net = network()
    with pytest.raises(ValueError, match=r"^LBFGS evaluates the loss several times per step"):
        attach(net, torch.optim.LBFGS(net.parameters()))


def test_moments_that_cannot_be_reset_are_refused_by_name():
    net = network()
    optimizer = torch.optim.Rprop(net.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match=r"^Rprop keeps \['prev', 'step_size'\], .*: keep the moments, or build a new"):
        attach(net, optimizer, schedule=Constant(1e-3), trigger=Every(2), moments="reset")
        for batch in batches(2):
            one_backward(net, optimizer, batch)
            optimizer.step()


# Loops


def accumulated(net, optimizer, batch):
    optimizer.zero_grad()
    for half in (slice(0, 16), slice(16, 32)):
        (loss_of(net, [part[half] for part in batch]) / 2).backward()


def clipped(net, optimizer, batch):
    one_backward(net, optimizer, batch)
    norm = nn.utils.clip_grad_norm_(net.parameters(), 0.05)
    assert norm > 0.05


def clipped_by_value(net, optimizer, batch):
    one_backward(net, optimizer, batch)
    nn.utils.clip_grad_value_(net.parameters(), 1e-3)


def cleared_by_the_network(net, optimizer, batch):
    net.zero_grad(set_to_none=True)
    loss_of(net, batch).backward()


def summed_on(net, optimizer, batch):
    """zero_grad is forgotten."""
    loss_of(net, batch).backward()


LOOPS = {loop.__name__: loop for loop in (accumulated, clipped, clipped_by_value, cleared_by_the_network, summed_on)}


@pytest.mark.parametrize("kind", ["SGD momentum", "Adam", "Adam fused", "FlatAdam"])
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_every_way_to_make_gradients(loop, kind):
    ours, theirs = network(), network()
    rate = OPTIMIZERS[kind][1]
    logged = attached(ours, build(kind, ours), rate, loop)
    measured = written_out(theirs, twin(kind, theirs), rate, loop, power=1 + (kind[0] == "S"))
    check(ours, theirs, logged, measured)
    if loop is clipped:
        for scalars in (logged[u] for u in measured):
            assert scalars["norms/gradient/0"] ** 2 + scalars["norms/gradient/3"] ** 2 < 0.05**2


def test_flat_adam_clips_its_vector():
    ours, theirs = network(), network()
    optimizer, by_hand = build("FlatAdam", ours), twin("FlatAdam", theirs)

    def flat_clipped(net, optimizer, batch):
        one_backward(net, optimizer, batch)
        assert optimizer.clip_(0.05) > 0.05

    check(ours, theirs, attached(ours, optimizer, 3e-3, flat_clipped), written_out(theirs, by_hand, 3e-3, clipped))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch itself
@pytest.mark.filterwarnings("ignore:Graph break due to unsupported:UserWarning")  # of torch 2.6
def test_a_compiled_step():
    """Compiled, torch's Adam rounds its bias corrections to float32, so the yardstick is compiled too."""
    ours, theirs = network(), network()
    optimizer, by_hand = build("Adam", ours), build("Adam", theirs)
    steps = [torch.compile(lambda each=each: each.step(), backend="eager") for each in (optimizer, by_hand)]
    projection = Projection(ours, check_inputs=batches(1)[0][0])
    logged = attached(ours, optimizer, 3e-3, step=steps[0], projection=projection)
    check(ours, theirs, logged, written_out(theirs, by_hand, 3e-3, step=steps[1]))


def test_signals_of_accumulated_batches_are_averaged():
    seen = []

    class Watching(OnCusum):
        def fires(self, update, signal):
            seen.append(float(signal))
            return False

    net = network()
    optimizer = Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer, schedule=Constant(1e-3), trigger=Watching(Cusum()))
    expected = []
    for batch in batches(5):
        optimizer.zero_grad()
        losses = [loss_of(net, [part[half] for part in batch]) for half in (slice(0, 8), slice(8, 16), slice(16, 32))]
        for loss in losses:
            (loss / 3).backward()
            handle.signal(loss)
        optimizer.step()
        expected.append(sum(float(loss.detach()) for loss in losses) / 3)
    assert seen == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["SGD momentum", "Adam", "Adam fused", "RMSprop", "FlatAdam"])
def test_closures(kind):
    """The gradients that are measured are those that the closure makes within the step."""
    ours, theirs = network(), network()
    rate = OPTIMIZERS[kind][1]
    optimizer = build(kind, ours)
    pending = []

    def closure():
        one_backward(ours, optimizer, pending[-1])
        return loss_of(ours, pending[-1])

    logged = attached(
        ours, optimizer, rate, lambda net, optimizer, batch: pending.append(batch), lambda: optimizer.step(closure)
    )
    check(ours, theirs, logged, written_out(theirs, twin(kind, theirs), rate, power=1 + (kind[0] == "S")))


@pytest.mark.parametrize("kind", ["SGD momentum", "SGD fused", "Adam", "Adam fused", "AdamW fused", "RMSprop",
                                  "Adagrad fused", "FlatAdam"])  # fmt: skip
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler(kind, unscale):
    """Skipped steps are not counted: no projection, no measurement, and the schedule waits. Gradients are the true."""
    ours, theirs = network(torch.float32), network(torch.float32)
    rate, data = OPTIMIZERS[kind][1], batches(20, torch.float32)
    optimizer, by_hand = build(kind, ours), twin(kind, theirs)
    handle = attach(ours, optimizer, schedule=schedule_of(rate), trigger=Every(7),
                    meter=Meter({"0": ours[0].weight, "3": ours[3].weight}, every=1, optimizer=optimizer))  # fmt: skip
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=3)
    norms, since, taken, out = Norms(theirs), 0, 0, handle.scalars()
    for i, batch in enumerate(data):
        # Fused SGD has a fault of its own: if the very first step is skipped, its momentum is memory never written to.
        skipped = i in (4, 5, 11, 12 if kind == "SGD fused" else 0)
        optimizer.zero_grad()
        scaler.scale(loss_of(ours, batch)).backward()
        if skipped:
            ours[3].weight.grad[1, 2] = (math.inf, math.nan)[i % 2]
        if unscale:
            scaler.unscale_(optimizer)
        before, state = parameters(ours), handle.state_dict()
        scaler.step(optimizer)
        scaler.update()
        if skipped:
            assert torch.equal(parameters(ours), before)
            assert handle.state_dict() | {"checked": True} == state | {"checked": True}  # done before the first step
            # A step that the scaler does not even call is unknown to the handle, which still knows the last update.
            called = hasattr(optimizer, "_step_supports_amp_scaling")
            assert handle.scalars() == ({} if called else out)
            continue
        taken += 1
        set_rates(by_hand, [eta(rate, since)])
        one_backward(theirs, by_hand, batch)
        w = theirs[3].weight.detach().clone()
        by_hand.step()
        out = handle.scalars()
        assert out["norms/gradient/3"] == pytest.approx(float(theirs[3].weight.grad.norm()), rel=2e-3)
        assert out["elr/3"] == pytest.approx(float((theirs[3].weight.detach() - w).norm() / w.norm()), rel=2e-3)
        assert out["charts/learning_rate"] == pytest.approx(eta(rate, since), rel=1e-12)
        norms.project()
        since = 0 if taken % 7 == 0 else since + 1
        assert handle.updates == taken and handle.meter.state_dict() == {"updates": taken}
    assert taken == 16 and handle.rewarming.events == [7, 14]
    assert parameters(ours) == pytest.approx(parameters(theirs), rel=1e-3, abs=1e-4)


# Other things that act on the optimiser


SCHEDULERS = {
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.01, total_steps=UPDATES + 1),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(o, [
        torch.optim.lr_scheduler.LinearLR(o, total_iters=10),
        torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=40),
    ], milestones=[10]),
    "ChainedScheduler": lambda o: torch.optim.lr_scheduler.ChainedScheduler([
        torch.optim.lr_scheduler.ConstantLR(o, 0.1, 10), torch.optim.lr_scheduler.ExponentialLR(o, 0.95),
    ]),
    "CosineAnnealingWarmRestarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=15),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # of SequentialLR in older releases
@pytest.mark.parametrize("attach_first", [True, False])
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_scheduler_of_torch_is_left_alone_without_a_schedule(make, attach_first):
    ours, theirs = network(), network()
    optimizer, by_hand = (Adam(net.parameters(), lr=3e-3) for net in (ours, theirs))
    scheduler = None if attach_first else make(optimizer)
    handle = attach(ours, optimizer, meter=1)
    scheduler, theirs_scheduler = scheduler or make(optimizer), make(by_hand)
    norms = Norms(theirs)
    for batch in batches():
        one_backward(ours, optimizer, batch)
        one_backward(theirs, by_hand, batch)
        rate = by_hand.param_groups[0]["lr"]
        optimizer.step()
        by_hand.step()
        out = handle.scalars()
        assert out["charts/learning_rate"] == rate
        assert out["elr_nominal/0"] == pytest.approx(rate / float(norms.radii[0]), rel=1e-9)
        norms.project()
        scheduler.step()
        theirs_scheduler.step()
    assert parameters(ours) == pytest.approx(parameters(theirs), rel=1e-10, abs=1e-10)


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # of SequentialLR in older releases
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_scheduler_of_torch_next_to_a_schedule_is_refused_or_overruled(make):
    net = network()
    optimizer = Adam(net.parameters(), lr=3e-3)
    scheduler = make(optimizer)
    handle = attach(net, optimizer, schedule=LinearDecay(3e-3, 0.0, 50))
    with pytest.raises(RuntimeError, match=r"parameter group 0 is .* something else sets it too. .* A torch scheduler"):
        for batch in batches(3):
            one_backward(net, optimizer, batch)
            before = parameters(net)
            optimizer.step()
            scheduler.step()
    assert torch.equal(parameters(net), before) and handle.updates <= 2
    handle.detach()

    ours, theirs = network(), network()
    optimizer, by_hand = (SGD(each.parameters(), lr=3e-3) for each in (ours, theirs))
    if make is not SCHEDULERS["OneCycleLR"]:  # which wants momentum
        scheduler = make(optimizer)
        attach(ours, optimizer, schedule=LinearDecay(0.1, 0.0, 50), outside_rates="overrule")
        norms = Norms(theirs)
        for update, batch in enumerate(batches(40)):
            one_backward(ours, optimizer, batch)
            one_backward(theirs, by_hand, batch)
            set_rates(by_hand, [0.1 * (1 - update / 50)])
            optimizer.step()
            by_hand.step()
            norms.project()
            scheduler.step()
        assert parameters(ours) == pytest.approx(parameters(theirs), rel=1e-10, abs=1e-10)


def test_a_plateau_scheduler_and_a_framework_that_sets_the_rate():
    net = network()
    optimizer = Adam(net.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    attach(net, optimizer, schedule=Constant(3e-3))
    with pytest.raises(RuntimeError, match=r"is 0\.0015, but the schedule has set 0\.003: something else sets it too"):
        for batch in batches(3):
            one_backward(net, optimizer, batch)
            optimizer.step()
            scheduler.step(1.0)


@pytest.mark.parametrize("kind", ["SGD momentum", "Adam", "Adam fused", "FlatAdam"])
def test_averaged_models(kind):
    ours, theirs = network(), network()
    rate = OPTIMIZERS[kind][1]
    optimizer, by_hand = build(kind, ours), twin(kind, theirs)
    attach(ours, optimizer, schedule=schedule_of(rate))
    norms = Norms(theirs)
    averages = [torch.optim.swa_utils.AveragedModel(net) for net in (ours, theirs)]
    moving = [
        torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
        for net in (ours, theirs)
    ]
    for update, batch in enumerate(batches()):
        set_rates(by_hand, [eta(rate, update)])
        for net, each in ((ours, optimizer), (theirs, by_hand)):
            one_backward(net, each, batch)
            each.step()
        norms.project()
        for kept in (averages, moving):
            kept[0].update_parameters(ours)
            kept[1].update_parameters(theirs)
    for kept in (averages, moving):
        assert parameters(kept[0].module) == pytest.approx(parameters(kept[1].module), rel=1e-9, abs=1e-9)
        assert not torch.allclose(parameters(kept[0].module), parameters(ours), atol=1e-4)
    x = batches(1)[0][0]
    assert torch.equal(moving[0](x), moving[0].module(x))  # an evaluation


@pytest.mark.parametrize("kind", ["SGD momentum", "Adam", "FlatAdam", "RMSprop"])
def test_a_copy_of_network_and_optimizer_is_a_plain_optimizer_which_can_be_attached(kind):
    """As torch's copies of optimisers have no hooks: it neither projects nor moves the rate."""
    net = network()
    rate = OPTIMIZERS[kind][1]
    optimizer = build(kind, net)
    handle = attach(net, optimizer, schedule=schedule_of(rate))
    for batch in batches(8):
        one_backward(net, optimizer, batch)
        optimizer.step()
    twin_net, twin_optimizer = copy.deepcopy((net, optimizer))
    before, norm = parameters(net), float(net[0].weight.detach().norm())
    lr = twin_optimizer.param_groups[0]["lr"]
    for batch in batches(4):
        one_backward(twin_net, twin_optimizer, batch)
        twin_optimizer.step()
    assert torch.equal(parameters(net), before) and handle.updates == 8
    assert twin_optimizer.param_groups[0]["lr"] == lr == handle.rate
    assert abs(float(twin_net[0].weight.detach().norm()) / norm - 1.0) > 1e-6
    second = attach(twin_net, twin_optimizer, schedule=schedule_of(rate))
    held = float(twin_net[0].weight.detach().norm())
    for batch in batches(4):
        one_backward(twin_net, twin_optimizer, batch)
        twin_optimizer.step()
    assert second.updates == 4 and handle.updates == 8
    assert float(twin_net[0].weight.detach().norm()) == pytest.approx(held, rel=1e-12)


@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("kind", ["SGD momentum", "SGD fused", "Adam fused", "NAdam", "RMSprop centered, momentum",
                                  "Adagrad", "FlatAdam", "tensor rate", "groups"])  # fmt: skip
def test_states_of_optimizer_and_handle_are_loaded_in_either_order(kind, optimizer_first):
    def make():
        net = network()
        if kind == "tensor rate":
            optimizer = Adam(net.parameters(), lr=torch.tensor(3e-3))
        else:
            optimizer = in_groups(net) if kind == "groups" else build(kind, net)
        rate = max(float(group["lr"]) for group in optimizer.param_groups)
        return net, optimizer, attach(net, optimizer, schedule=schedule_of(rate), trigger=Every(RESTART), meter=7)

    def run(net, optimizer, handle, data):
        logged = []
        for batch in data:
            one_backward(net, optimizer, batch)
            optimizer.step()
            logged.append(handle.scalars())
        return logged

    data = batches()
    net, optimizer, handle = make()
    whole = run(net, optimizer, handle, data)
    first, optimizer, handle = make()
    logged = run(first, optimizer, handle, data[:32])
    saved = copy.deepcopy([first.state_dict(), optimizer.state_dict(), handle.state_dict()])
    second, optimizer, handle = make()
    second.load_state_dict(saved[0])
    for load, state in ((optimizer.load_state_dict, saved[1]), (handle.load_state_dict, saved[2]))[
        :: 1 if optimizer_first else -1
    ]:
        load(state)
    logged += run(second, optimizer, handle, data[32:])
    assert logged == whole and torch.equal(parameters(net), parameters(second)) and handle.updates == UPDATES


def test_an_optimizers_state_without_the_handles_is_refused_if_its_rate_is_another():
    net = network()
    optimizer = Adam(net.parameters(), lr=1e-3)
    attach(net, optimizer, schedule=LinearDecay(1e-3, 0.0, 10))
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = 5e-4
    optimizer.load_state_dict(state)
    one_backward(net, optimizer, batches(1)[0])
    with pytest.raises(RuntimeError, match=r"is 0\.0005, but the schedule has set 0\.001"):
        optimizer.step()


def test_one_optimizer_takes_one_handle_and_two_optimizers_take_two():
    net = network()
    both = Adam(net.parameters(), lr=1e-3)
    attach(net, both)
    with pytest.raises(ValueError, match="this optimiser is attached already: keep one handle, or detach the other"):
        attach(net, both, schedule=Constant(1e-3))
    net = network()
    parts = [(part, SGD(part.parameters(), lr=0.1)) for part in (net[:3], net[3:])]
    handles = [
        attach(part, optimizer, projection=Projection(part, heads=heads, allow_scale_dependent=True), meter=1)
        for (part, optimizer), heads in zip(parts, ([], ["6"]), strict=True)
    ]
    radii = [float(weight.detach().norm()) for weight in (net[0].weight, net[3].weight)]
    for batch in batches(10):
        loss_of(net, batch).backward()
        for _, optimizer in parts:
            optimizer.step()
            optimizer.zero_grad()
    assert [handle.updates for handle in handles] == [10, 10] and "elr/3" in handles[1].scalars()
    assert [float(w.detach().norm()) for w in (net[0].weight, net[3].weight)] == pytest.approx(radii, rel=1e-12)


def test_an_optimizer_without_the_networks_weights_is_refused():
    net = network()
    with pytest.raises(ValueError, match=r"the optimiser does not hold \['0'\]: attach the part of the network"):
        attach(net, Adam(net[3:].parameters(), lr=1e-3))
    with pytest.raises(ValueError, match=r"the optimiser does not hold \['0', '3'\]"):
        attach(net, Adam(network().parameters(), lr=1e-3))
    with pytest.raises(ValueError, match=r"the optimiser does not hold \['0', '3'\]: build it over the parameters"):
        attach(net, Adam(network().parameters(), lr=1e-3), projection=NoProjection(), meter=5)


def test_a_group_added_later_is_refused_with_a_schedule_and_trained_without():
    extra = nn.Parameter(torch.ones(3, dtype=torch.float64))
    net = network()
    optimizer = Adam(net.parameters(), lr=1e-3)
    attach(net, optimizer, schedule=LinearDecay(1e-3, 0.0, 10))
    optimizer.add_param_group({"params": [extra], "lr": 5e-4})
    one_backward(net, optimizer, batches(1)[0])
    with pytest.raises(ValueError, match="the optimiser has 2 parameter groups but rates were recorded for 1"):
        optimizer.step()
    assert torch.equal(parameters(net), parameters(network()))

    net = network()
    optimizer = Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer, meter=1)
    optimizer.add_param_group({"params": [extra], "lr": 5e-4})
    one_backward(net, optimizer, batches(1)[0])
    radius = float(net[0].weight.detach().norm())
    extra.grad = torch.ones_like(extra)
    optimizer.step()
    assert handle.scalars()["charts/learning_rate"] == handle.rate == 1e-3
    assert extra.detach().tolist() == pytest.approx([1 - 5e-4] * 3, rel=1e-6)
    assert handle.scalars()["elr_nominal/0"] == pytest.approx(1e-3 / radius, rel=1e-9)
    assert float(net[0].weight.detach().norm()) == pytest.approx(radius, rel=1e-12)


def test_a_weight_without_a_gradient_in_a_step():
    """Unused in this batch: torch leaves it alone, its ELR is 0 and its gradient has no tag."""
    net = network()
    optimizer = Adam(net.parameters(), lr=1e-3)
    handle = attach(net, optimizer, meter=1)
    for used in (True, False, True):
        one_backward(net, optimizer, batches(1)[0])
        if not used:
            net[3].weight.grad = None
        optimizer.step()
        out = handle.scalars()
        assert ("norms/gradient/3" in out) == used and (out["elr/3"] > 0.0) == used
        assert out["norms/gradient/0"] > 0.0 and out["elr/0"] > 0.0
