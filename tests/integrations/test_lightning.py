"""elr.attach and RewarmingLR in Lightning's Trainer, against the same loop written out with the parts."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import elr
from tests.elr.networks import with_torchs_weights as network

pl = pytest.importorskip("pytorch_lightning", reason='Lightning is missing: pip install -e ".[integrations]"')
from pytorch_lightning.loggers.logger import Logger  # noqa: E402

# Lightning's own warnings: deprecated functions of torch that it calls, few workers, no checkpoint folder, ...
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:::pytorch_lightning(\.|$)"),
    pytest.mark.filterwarnings(r"ignore:::lightning_"),
]

SCHEDULE = elr.WarmupCosine(peak=3e-3, warmup_steps=10, decay_steps=60, final=1e-4, initial=1e-4)


def batches(count, changes_at=None, dtype=torch.float64):
    """Regression on noise, whose targets are larger from batch `changes_at` on."""
    generator = torch.Generator().manual_seed(1)
    xs, ys = (torch.randn(count, 32, width, generator=generator, dtype=dtype) for width in (6, 2))
    return [
        (x, y if changes_at is None or i < changes_at else 5 * y) for i, (x, y) in enumerate(zip(xs, ys, strict=True))
    ]


def detector():
    return elr.OnCusum(elr.Cusum(block=2, burn_in=8, refractory=8, threshold=6.0))


def everything(net, optimizer):
    return elr.attach(net, optimizer, schedule=SCHEDULE, trigger=detector(), meter=20)


class Regression(pl.LightningModule):
    """As in the guide: attach in configure_optimizers, signal in training_step, log after each batch."""

    def __init__(self, attach, dtype=torch.float64):
        super().__init__()
        self.network = network(dtype)
        self.attach = attach
        self.handle = self.saved = None
        self.rates, self.losses, self.logged = [], [], []

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        self.handle = self.attach(self.network, optimizer)
        if self.saved is not None:
            self.handle.load_state_dict(self.saved)
        return optimizer

    def loss(self, batch):
        loss = nn.functional.mse_loss(self.network(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        if self.watched():
            self.handle.signal(loss)
        return loss

    def watched(self):
        rewarming = None if self.handle is None else self.handle.rewarming
        return rewarming is not None and isinstance(rewarming.trigger, elr.OnCusum)

    def on_before_optimizer_step(self, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, *_):
        if self.handle is not None:
            self.logged.append(self.handle.scalars())
            if self.logger is not None:
                self.logger.log_metrics(self.logged[-1], step=self.handle.updates)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["elr"] = self.handle.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.saved = checkpoint["elr"]


class Scheduled(Regression):
    """RewarmingLR as the module's scheduler; the rest is attached."""

    def __init__(self, attach, make_scheduler):
        super().__init__(attach)
        self.make_scheduler = make_scheduler

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = self.make_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.lr_schedulers().signal(loss)
        return loss


def fit(module, data, epochs=1, resume_from=None, **options):
    options = {"logger": False, "enable_checkpointing": False, **options}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(data, batch_size=None), ckpt_path=resume_from)
    return trainer


def weights_of(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def norm_of(net, name):
    return float(net.get_submodule(name).weight.detach().norm())


def written_out(data, accumulate=1, clip=None):
    """The parts called by hand. Returns the network, the rates that were used, the events, and what is logged."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    projection = elr.Projection(net, check_inputs=data[0][0])
    rewarming = elr.Rewarming(optimizer, SCHEDULE, detector())
    meter = elr.Meter(elr.scalable_weights(net), every=20, optimizer=optimizer)
    rates, logged, losses, scalars = [], [], [], {}
    for i, (x, y) in enumerate(data):
        loss = nn.functional.mse_loss(net(x), y)
        losses.append(loss.detach())
        if i % accumulate == 0:
            optimizer.zero_grad()
        (loss / accumulate).backward()
        if (i + 1) % accumulate == 0:
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            rate = rewarming.rate
            rates.append(rate)
            meter.before_step()
            optimizer.step()
            meter.after_step()
            projection.step(rate)
            event = {"rewarm/event": 1.0} if rewarming.step(sum(losses) / accumulate) else {}
            losses = []
            scalars = {"charts/learning_rate": rate, **event, **rewarming.scalars()}
            scalars |= meter.fresh_scalars()
        logged.append(scalars)
    return net, rates, rewarming.events, logged


@pytest.mark.parametrize("accumulate, clip", [(1, None), (2, 0.5)])
def test_attach_equals_the_loop_written_out_bit_for_bit(accumulate, clip):
    """Closures, accumulation (the detector sees the mean loss) and clipping, with everything on."""
    data = batches(120 * accumulate, changes_at=60 * accumulate)
    net, rates, events, logged = written_out(data, accumulate, clip)
    module = Regression(everything)
    fit(module, data, accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    assert torch.equal(weights_of(module.network), weights_of(net))
    assert module.rates == rates
    assert module.handle.updates == 120
    assert module.handle.rewarming.events == events and events[0] > 60  # the larger targets were noticed
    assert module.logged[accumulate - 1 :] == logged[accumulate - 1 :]
    assert sum("elr/0" in scalars for scalars in logged) == 7 * accumulate - (accumulate - 1)  # updates 1, 20, ..., 120


def test_detector_sees_the_mean_loss_of_each_update():
    """With 7 batches and accumulation of 3 the last update of the epoch has one batch only."""

    class Recorder:
        statistic = None

        def __init__(self):
            self.seen = []

        def fires(self, update, signal):
            self.seen.append(float(signal))
            return False

        def reset(self):
            self.seen.clear()

    trigger = Recorder()
    module = Regression(lambda net, optimizer: elr.attach(net, optimizer, schedule=SCHEDULE, trigger=trigger))
    module.watched = lambda: True
    fit(module, batches(7), accumulate_grad_batches=3)
    losses = module.losses
    assert trigger.seen == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]], rel=1e-12)


def test_clipping_is_inside_the_measured_step():
    """The meter's gradient norms are those after Lightning has clipped."""
    module = Regression(everything)
    fit(module, batches(40), gradient_clip_val=1e-3)
    measured = [scalars for scalars in module.logged if "norms/gradient/0" in scalars]
    assert len(measured) == 3
    assert all(0 < scalars["norms/gradient/0"] <= 1e-3 for scalars in measured)


@pytest.mark.parametrize("accumulate, clip", [(1, None), (3, 0.5)])
def test_everything_off_changes_no_bit(accumulate, clip):
    def nothing(net, optimizer):
        return elr.attach(net, optimizer, projection=elr.NoProjection())

    runs = []
    for attach in (lambda net, optimizer: None, nothing):
        module = Regression(attach)
        fit(module, batches(60), accumulate_grad_batches=accumulate, gradient_clip_val=clip)
        runs.append(module)
    without, attached = runs
    assert torch.equal(weights_of(attached.network), weights_of(without.network))
    assert attached.losses == without.losses
    assert attached.handle.updates == 60 // accumulate
    assert attached.logged[-1] == {"charts/learning_rate": 1e-3}


def test_norms_are_held():
    held = Regression(lambda net, optimizer: elr.attach(net, optimizer))
    free = Regression(lambda net, optimizer: elr.attach(net, optimizer, projection=elr.NoProjection()))
    start = {name: norm_of(network(), name) for name in ("0", "3")}
    for module in (held, free):
        fit(module, batches(120))
    for name, norm in start.items():
        assert norm_of(held.network, name) == pytest.approx(norm, rel=1e-12)
        assert abs(norm_of(free.network, name) / norm - 1) > 1e-3


def test_scale_invariance_is_checked_on_the_first_training_batch():
    """Not on the batches of validation, which comes first and has no gradients: on zeros it could not be judged."""

    class Validated(Regression):
        validated = 0

        def val_dataloader(self):
            return DataLoader([torch.zeros(32, 6, dtype=torch.float64)], batch_size=None)

        def validation_step(self, batch, batch_idx):
            self.network(batch)
            self.validated += 1

    module = Validated(lambda net, optimizer: elr.attach(net, optimizer))
    fit(module, batches(4))
    assert module.validated == 2  # before training, and after it
    assert not module.handle.projection.unchecked

    module = Regression(lambda net, optimizer: elr.attach(net, optimizer))
    module.network[4] = nn.Identity()
    with pytest.raises(ValueError, match="depends on the scale of '3'"):
        fit(module, batches(4))


def test_rates_follow_the_schedule_and_a_restart():
    """The rate at each optimiser step is that of the schedule; restart() before update 31 starts it again."""

    class KnownChange(Regression):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 30:
                self.handle.restart()

    module = KnownChange(lambda net, optimizer: elr.attach(net, optimizer, schedule=SCHEDULE))
    fit(module, batches(50))
    assert module.rates == [SCHEDULE(s) for s in (*range(30), *range(20))]
    assert [i for i, scalars in enumerate(module.logged) if "rewarm/event" in scalars] == [30]


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    """The handle's state in Lightning's checkpoint; the detector fires after the interruption."""
    data = batches(40)
    straight = Regression(everything)
    fit(straight, data, epochs=2)
    fit(Regression(everything), data).save_checkpoint(tmp_path / "half.ckpt")
    resumed = Regression(everything)
    fit(resumed, data, epochs=2, resume_from=tmp_path / "half.ckpt")
    assert torch.equal(weights_of(resumed.network), weights_of(straight.network))
    assert resumed.rates == straight.rates[40:]
    assert resumed.logged == straight.logged[40:]
    assert resumed.handle.updates == 80

    # The detector's estimates and the norms are from before the interruption.
    changed = Regression(everything)
    fit(changed, batches(40, changes_at=0), epochs=2, resume_from=tmp_path / "half.ckpt")
    assert changed.handle.rewarming.events and changed.handle.rewarming.events[0] > 40
    assert norm_of(changed.network, "3") == pytest.approx(norm_of(network(), "3"), rel=1e-12)


def test_logger_receives_what_was_measured():
    class InMemory(Logger):
        name, version = "in memory", 0

        def __init__(self):
            super().__init__()
            self.lines = {}

        def log_hyperparams(self, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step=None):
            self.lines.setdefault(step, {}).update(metrics)

    logger = InMemory()
    module = Regression(everything)
    fit(module, batches(40), logger=logger)
    assert list(logger.lines) == list(range(1, 41))
    assert all(line["charts/learning_rate"] == SCHEDULE(update - 1) for update, line in logger.lines.items())
    assert [update for update, line in logger.lines.items() if "elr/3" in line] == [1, 20, 40]
    tags = {"elr/0", "elr_nominal/0", "norms/parameter/0", "norms/gradient/0", "norms/update/0"}
    assert tags <= set(logger.lines[20])


def test_bf16_mixed_keeps_float32_weights_at_their_norms():
    module = Regression(everything, dtype=torch.float32)
    fit(module, batches(60, dtype=torch.float32), precision="bf16-mixed")
    assert all(p.dtype == torch.float32 for p in module.network.parameters())
    assert module.rates == [SCHEDULE(s) for s in range(60)]
    for name in ("0", "3"):
        start = norm_of(network(torch.float32), name)
        assert norm_of(module.network, name) == pytest.approx(start, rel=1e-6)


def test_bf16_weights_are_refused():
    with pytest.raises(ValueError, match=r"bfloat16"):
        fit(Regression(everything, dtype=torch.float32), batches(2, dtype=torch.float32), precision="bf16-true")


def test_scheduler_next_to_a_schedule_is_refused():
    """Lightning steps the scheduler after the first update; the second update is refused."""
    module = Scheduled(
        lambda net, optimizer: elr.attach(net, optimizer, schedule=SCHEDULE),
        lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    )
    module.training_step = lambda batch, batch_idx: module.loss(batch)
    with pytest.raises(RuntimeError, match="learning rate of parameter group 0 is"):
        fit(module, batches(4))
    assert module.handle.updates == 1


@pytest.mark.parametrize("wrapped", [True, False])
def test_manual_optimisation(wrapped):
    """step() without a closure. `self.optimizers()` returns Lightning's wrapper, or the optimiser itself."""

    class Manual(Regression):
        def __init__(self):
            super().__init__(lambda net, optimizer: None)
            self.automatic_optimization = False

        def on_train_start(self):
            self.handle = everything(self.network, self.optimizers(use_pl_optimizer=wrapped))

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.handle.signal(loss)
            optimizer.step()

    data = batches(120, changes_at=60)
    net, rates, events, logged = written_out(data)
    module = Manual()
    fit(module, data)
    assert torch.equal(weights_of(module.network), weights_of(net))
    assert module.rates == rates and module.logged == logged
    assert module.handle.rewarming.events == events


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rewarming_lr_is_a_lightning_scheduler(accumulate):
    """interval="step"; with attach for the projection alone it equals the loop written out."""
    data = batches(120 * accumulate, changes_at=60 * accumulate)
    net, rates, events, _ = written_out(data, accumulate)
    module = Scheduled(
        lambda net, optimizer: elr.attach(net, optimizer),
        lambda optimizer: elr.RewarmingLR(optimizer, SCHEDULE, detector()),
    )
    fit(module, data, accumulate_grad_batches=accumulate)
    assert module.rates == rates
    assert module.lr_schedulers().events == events and len(events) == 1
    assert torch.equal(weights_of(module.network), weights_of(net))


def test_rewarming_lr_resumes_from_lightnings_checkpoint(tmp_path):
    def module():
        return Scheduled(
            lambda net, optimizer: elr.attach(net, optimizer),
            lambda optimizer: elr.RewarmingLR(optimizer, SCHEDULE, detector()),
        )

    data = batches(80, changes_at=40)
    straight = module()
    fit(straight, data, epochs=2)
    fit(module(), data).save_checkpoint(tmp_path / "half.ckpt")
    resumed = module()
    fit(resumed, data, epochs=2, resume_from=tmp_path / "half.ckpt")
    assert resumed.rates == straight.rates[80:]
    assert resumed.lr_schedulers().events == straight.lr_schedulers().events != []
    assert torch.equal(weights_of(resumed.network), weights_of(straight.network))
