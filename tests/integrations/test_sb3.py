"""RewarmCallback in Stable-Baselines3: same numbers when off, norms, rates, log, detectors, saved models, refusals."""

import copy
import io
import json
import math
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import elr

pytest.importorskip("stable_baselines3", reason='Stable-Baselines3 is missing: pip install -e ".[integrations]"')
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger
from stable_baselines3.common.vec_env import VecNormalize

from elr.integrations.sb3 import LayerNormMlp, RewarmCallback, policy_projection
from elr.integrations.sb3_policies import observations, still_collecting

ROOT = Path(__file__).resolve().parents[2]
POLICY = {"net_arch": [], "features_extractor_class": LayerNormMlp, "features_extractor_kwargs": {"widths": (16, 16)}}
SMALL = {  # arguments for few and quick updates, and how many a learn(256) makes
    PPO: ({"n_steps": 64, "batch_size": 32, "n_epochs": 2}, 16),
    A2C: ({"n_steps": 16}, 16),
    DQN: ({"learning_starts": 64, "target_update_interval": 50, "buffer_size": 1_000}, 48),
}
SCHEDULE = elr.WarmupCosine(peak=1e-2, warmup_steps=5, decay_steps=20, final=1e-4)
ALGORITHMS = pytest.mark.parametrize("cls", [PPO, A2C, DQN])


def make(cls, env="CartPole-v1", seed=0, plain=False, **options):
    policy = {} if plain else dict(POLICY)
    if not plain and cls in (PPO, A2C):
        policy["share_features_extractor"] = False
    options = {**SMALL.get(cls, ({}, 0))[0], **options}
    return cls("MlpPolicy", env, seed=seed, device="cpu", policy_kwargs=policy, **options)


class Kept(KVWriter):
    """What Stable-Baselines3 writes to TensorBoard, in memory."""

    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        left_out = {key for key, excluded in key_excluded.items() if excluded and "tensorboard" in excluded}
        self.rows.append({key: value for key, value in key_values.items() if key not in left_out} | {"step": step})

    def close(self):
        pass

    def values(self, tag):
        return [row[tag] for row in self.rows if tag in row]


def log_of(model):
    kept = Kept()
    model.set_logger(Logger(folder=None, output_formats=[kept]))
    return kept


class Rates(BaseCallback):
    """The rate at every optimiser step."""

    def __init__(self, part=None):
        super().__init__()
        self.part, self.seen = part, []

    def _on_training_start(self):
        network = self.model.policy if self.part is None else getattr(self.model, self.part)
        network.optimizer.register_step_pre_hook(lambda opt, *_: self.seen.append(opt.param_groups[0]["lr"]))

    def _on_step(self):
        return True


class At(BaseCallback):
    """Call something at a number of environment steps."""

    def __init__(self, step, action):
        super().__init__()
        self.step, self.action = step, action

    def _on_step(self):
        if self.num_timesteps == self.step:
            self.action()
        return True


class Told:
    """A trigger that keeps what it is asked."""

    statistic = None

    def __init__(self):
        self.asked = []

    def fires(self, update, signal):
        self.asked.append((update, signal))
        return False

    def reset(self):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Spy(elr.Cusum):
    """A detector that keeps what it sees."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def update(self, value):
        self.seen.append(float(value))
        return super().update(value)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def norms(projection):
    return {name: float(weight.detach().double().norm()) for name, weight in projection.weights.items()}


@ALGORITHMS
def test_everything_off_gives_the_same_numbers_bit_for_bit(cls):
    results, logs = [], []
    for callback in (None, RewarmCallback(projection=elr.NoProjection())):
        model = make(cls, plain=True)  # it seeds the global random state
        logs.append(log_of(model))
        model.learn(256, log_interval=1, callback=callback)
        results.append(weights(model))
    assert callback.handle.updates == SMALL[cls][1]
    assert_equal(*results)
    timed = ("time/fps", "charts/learning_rate")
    rows = [[{k: v for k, v in row.items() if k not in timed} for row in log.rows] for log in logs]
    assert len(rows[0]) > 3 and repr(rows[0]) == repr(rows[1])  # repr: nan is itself


@ALGORITHMS
def test_measuring_and_a_constant_schedule_change_nothing(cls):
    results = []
    for attached in (False, True):
        model = make(cls, learning_rate=1e-3)
        network = model.q_net if cls is DQN else model.policy
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        callback = RewarmCallback(
            schedule=elr.Constant(1e-3),
            trigger=elr.OnCusum(elr.Cusum(block=1, burn_in=2, threshold=1e9)),
            projection=elr.NoProjection(),
            meter=1,
            probe=elr.Probe(network, inputs, ["features_extractor.layers.6"], every=1),
        )
        model.learn(256, callback=callback if attached else None)
        results.append(weights(model))
    assert_equal(*results)


@ALGORITHMS
def test_projection_holds_the_norms_of_all_layers_but_the_heads(cls):
    model = make(cls, learning_rate=1e-2)
    callback = RewarmCallback()
    before = weights(model)
    model.learn(256, callback=callback)
    after = weights(model)
    prefix = "q_net." if cls is DQN else ""
    held = {f"{prefix}{name}.weight" for name in callback.handle.projection.weights}
    extractors = ("q_net.features_extractor",) if cls is DQN else ("features_extractor", "vf_features_extractor")
    assert held == {f"{extractor}.layers.{index}.weight" for extractor in extractors for index in (1, 4)}
    for name in held:
        assert float(after[name].norm()) == pytest.approx(float(before[name].norm()), rel=1e-6)
        assert not torch.equal(before[name], after[name])
    head = "q_net.q_net.0.weight" if cls is DQN else "value_net.weight"
    assert float(after[head].norm()) != pytest.approx(float(before[head].norm()), rel=1e-4)


def test_ppo_equals_the_projection_written_out():
    model = make(PPO, learning_rate=1e-2)
    model.learn(256, callback=RewarmCallback())
    twin = make(PPO, learning_rate=1e-2)
    extractors = (twin.policy.features_extractor, twin.policy.vf_features_extractor)
    linear = [extractor.layers[index] for extractor in extractors for index in (1, 4)]
    normal = [extractor.layers[index] for extractor in extractors for index in (2, 5)]
    initial = [layer.weight.detach().norm() for layer in linear]

    @torch.no_grad()
    def project(*_):
        for layer, norm in zip(linear, initial, strict=True):
            layer.weight.mul_(norm / layer.weight.norm())
        for layer in normal:
            both = math.sqrt(16) / (layer.weight.square().sum() + layer.bias.square().sum()).sqrt()
            layer.weight.mul_(both)
            layer.bias.mul_(both)

    twin.policy.optimizer.register_step_post_hook(project)
    twin.learn(256)
    for name, weight in weights(model).items():
        assert torch.allclose(weight, weights(twin)[name], rtol=1e-3, atol=1e-5), name


@ALGORITHMS
def test_every_update_has_the_rate_of_the_schedule_and_so_has_the_log(cls):
    model, rates = make(cls), Rates()
    log = log_of(model)
    callback = RewarmCallback(schedule=SCHEDULE, trigger=elr.Every(30))
    model.learn(256, callback=[callback, rates], log_interval=1)
    expected = [SCHEDULE(step % 30) for step in range(SMALL[cls][1])]
    assert rates.seen == expected
    assert callback.handle.rate == SCHEDULE(SMALL[cls][1] % 30)
    if cls is not DQN:  # it writes when episodes end; the others before each train() what the one before has logged
        per_train = 4 if cls is PPO else 1
        assert log.values("train/learning_rate") == expected[::per_train][:-1]
        assert log.values("charts/learning_rate") == expected[per_train - 1 :: per_train][:-1]
    else:
        shown = log.values("train/learning_rate")
        assert shown == log.values("charts/learning_rate") and len(set(shown)) > 3 and set(shown) <= set(expected)


def test_without_a_schedule_the_rates_are_those_of_the_model():
    def falling(progress):
        return 1e-3 * progress

    model, rates = make(PPO, learning_rate=falling), Rates()
    model.learn(256, callback=[RewarmCallback(), rates])
    assert rates.seen == [falling(1 - steps / 256) for steps in (64, 128, 192, 256) for _ in range(4)]


def test_meter_and_probe_are_logged_and_not_printed():
    model = make(PPO, learning_rate=1e-3)
    kept, page = Kept(), io.StringIO()
    model.set_logger(Logger(folder=None, output_formats=[kept, HumanOutputFormat(page)]))
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    probe = elr.Probe(model.policy, inputs, ["features_extractor.layers.6"], every=4)
    model.learn(256, callback=RewarmCallback(meter=2, probe=probe, schedule=elr.Constant(2e-3)))
    names = [f"{extractor}.layers.{i}" for extractor in ("features_extractor", "vf_features_extractor") for i in (1, 4)]
    last = kept.rows[-1]
    for name in names:
        assert last[f"elr/{name}"] == pytest.approx(last[f"norms/update/{name}"] / last[f"norms/parameter/{name}"])
        assert last[f"elr_nominal/{name}"] == pytest.approx(2e-3 / last[f"norms/parameter/{name}"])
    assert last["plasticity/delta_c/features_extractor.layers.6"] > 0.0
    assert "plasticity/dead_fraction/features_extractor.layers.6" in kept.rows[0]  # before the first update
    printed = page.getvalue()
    assert "learning_rate" in printed and "event" in printed and "layers" not in printed


def test_meter_counts_updates_also_without_projection():
    model = make(PPO, plain=True)
    log = log_of(model)
    model.learn(256, callback=RewarmCallback(projection=elr.NoProjection(), meter=1))
    layers = {tag for tag in log.rows[-1] if tag.startswith("elr/")}
    assert layers == {f"elr/mlp_extractor.{net}.{i}" for net in ("policy_net", "value_net") for i in (0, 2)}


def test_restart_starts_the_schedule_again_and_is_logged_once():
    model, rates = make(PPO), Rates()
    log = log_of(model)
    callback = RewarmCallback(schedule=SCHEDULE)
    model.learn(320, callback=[callback, rates, At(150, callback.restart)])
    assert rates.seen == [SCHEDULE(step) for step in (*range(8), *range(12))]
    assert log.values("rewarm/event") == [0.0, 0.0, 1.0, 0.0]
    assert callback.handle.rewarming.events == [8]


def test_restart_between_two_calls_of_learn_acts_on_the_second():
    model, rates = make(PPO), Rates()
    callback = RewarmCallback(schedule=SCHEDULE)
    callback.restart()  # the schedule begins with the first update anyway
    model.learn(128, callback=callback)
    callback.restart()
    model.learn(128, callback=[callback, rates], reset_num_timesteps=False)
    assert rates.seen == [SCHEDULE(step) for step in range(8)] and callback.handle.updates == 16


@pytest.mark.parametrize(("cls", "tag"), [(PPO, "train/value_loss"), (A2C, "train/value_loss"), (DQN, "train/loss")])
def test_the_detector_sees_each_logged_loss_once(cls, tag):
    model = make(cls)
    spy, logged = Spy(block=1), []

    class Read(BaseCallback):
        def _on_rollout_start(self):
            if self.model._n_updates > 0:
                logged.append(float(self.logger.name_to_value[tag]))

        def _on_step(self):
            return True

    model.learn(256, callback=[Read(), RewarmCallback(schedule=SCHEDULE, trigger=elr.OnCusum(spy))], log_interval=None)
    trains = {PPO: 4, A2C: 16, DQN: 48}[cls]
    assert len(logged) == trains - 1  # no rollout follows the last train()
    assert spy.seen == logged


def test_the_detector_fires_at_the_first_update_of_the_next_train():
    stream = iter([1.0, 1.1, 0.9, 1.0, 1.1, 50.0, 50.0, 50.0])
    model, rates = make(PPO), Rates()
    log = log_of(model)
    trigger = elr.OnCusum(elr.Cusum(block=1, burn_in=4, threshold=5.0))
    callback = RewarmCallback(schedule=SCHEDULE, trigger=trigger, signal=lambda model: next(stream))
    model.learn(7 * 64, callback=[callback, rates])
    assert callback.handle.rewarming.events == [25]  # 50.0 is known after 6 calls of train(), each of 4 updates
    assert rates.seen == [SCHEDULE(step) for step in (*range(25), *range(3))]
    assert log.values("rewarm/event") == [0.0] * 6 and callback.handle.scalars()["rewarm/statistic"] == 0.0


def test_other_triggers_are_asked_at_each_update_with_a_number_at_the_first():
    told = Told()
    model = make(PPO)
    model.learn(192, callback=RewarmCallback(schedule=SCHEDULE, trigger=told, signal="train/entropy_loss"))
    assert [update for update, _ in told.asked] == list(range(1, 13))
    assert [update for update, number in told.asked if number is not None] == [5, 9]


def continued(cls, path, env_seed=7, **options):
    """Model and callback as saved in the middle, and as they went on without a break."""
    model = make(cls, env=make_vec_env("CartPole-v1", 2, seed=1), **options)
    callback = RewarmCallback(**arguments())
    model.learn(512, callback=callback)
    model.save(path)
    if cls is DQN:
        model.save_replay_buffer(f"{path}.buffer")
    loaded = cls.load(path, env=make_vec_env("CartPole-v1", 2, seed=1))
    if cls is DQN:
        loaded.load_replay_buffer(f"{path}.buffer")
    return (model, callback), (loaded, RewarmCallback(**arguments()))


def arguments():
    cusum = elr.Cusum(block=1, burn_in=3, threshold=3.0, slack=0.5)
    return {"schedule": SCHEDULE, "trigger": elr.OnCusum(cusum), "meter": 7, "moments": "reset"}


@pytest.mark.parametrize("cls", [PPO, DQN])
def test_a_saved_model_continues_exactly(cls, tmp_path):
    pairs = continued(cls, tmp_path / "model.zip")
    seen, results, logs = [], [], []
    for model, callback in pairs:
        rates = Rates()
        logs.append(log_of(model))
        model.set_env(make_vec_env("CartPole-v1", 2, seed=3))  # neither continues an episode
        model.set_random_seed(3)
        model.learn(1024, callback=[callback, rates], reset_num_timesteps=False, log_interval=1)
        seen.append(rates.seen)
        results.append((weights(model), callback.handle.state_dict()))
    assert_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] and len(results[0][1]["rewarming"]["events"]) >= 1
    assert seen[0] == seen[1] and len(seen[0]) > 30
    rows = [[{k: v for k, v in row.items() if k != "time/fps"} for row in log.rows] for log in logs]
    assert repr(rows[0]) == repr(rows[1])


def test_one_learn_equals_two():
    whole = make(PPO)
    whole.learn(512, callback=RewarmCallback(**arguments()))
    halves = make(PPO)
    callback = RewarmCallback(**arguments())
    halves.learn(256, callback=callback)
    halves.learn(256, callback=callback, reset_num_timesteps=False)
    assert_equal(weights(whole), weights(halves))


KILLED = """
import os, signal, sys
import elr
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from tests.integrations.test_sb3 import At, SCHEDULE, make
from elr.integrations.sb3 import RewarmCallback
model = make(PPO)
killed = At(200, lambda: os.kill(os.getpid(), signal.SIGKILL))
checkpoint = CheckpointCallback(save_freq=150, save_path=sys.argv[1], name_prefix="saved")
model.learn(512, callback=[RewarmCallback(schedule=SCHEDULE), checkpoint, killed])
"""


def test_a_run_that_was_killed_continues_from_its_checkpoint(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    model, rates = PPO.load(tmp_path / "saved_150_steps.zip", env=make_vec_env("CartPole-v1")), Rates()
    callback = RewarmCallback(schedule=SCHEDULE)
    model.learn(128, callback=[callback, rates], reset_num_timesteps=False)
    assert rates.seen == [SCHEDULE(8 + step) for step in range(8)]  # 150 steps: two calls of train() were over


WITHOUT = """
import sys
sys.modules["elr"] = None  # importing it is an error
from stable_baselines3 import PPO
model = PPO.load(sys.argv[1])
state = model.rewarm_state
print(model.lr_schedule(1.0), type(state).__name__, state["updates"], state["rewarming"]["since"])
"""


@pytest.mark.parametrize("during", [False, True])
def test_a_saved_model_loads_without_this_package(during, tmp_path):
    model = make(PPO, plain=True, learning_rate=5e-4)
    projection = policy_projection(model, allow_scale_dependent=True)
    callback = RewarmCallback(projection=projection, **arguments())
    path = tmp_path / "model.zip"
    model.learn(256, callback=[callback, At(200, lambda: model.save(path))])
    if not during:
        model.save(path)
    command = [sys.executable, "-W", "error::UserWarning:stable_baselines3", "-c", WITHOUT, str(path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    updates, since = callback.handle.updates, callback.handle.state_dict()["rewarming"]["since"]
    assert run.stdout.split() == ["0.0005", "dict", str(updates - 4 * during), str(since - 4 * during)]


def test_a_copied_model_has_its_own_rate_and_a_plain_state():
    model = make(PPO, learning_rate=5e-4)
    copies = []
    model.learn(
        128, callback=[RewarmCallback(schedule=SCHEDULE), At(100, lambda: copies.append(copy.copy(model.lr_schedule)))]
    )
    assert copies[0](1.0) == 5e-4


def test_after_learn_the_model_is_as_it_was():
    model = make(PPO, learning_rate=5e-4)
    own = model.lr_schedule
    model.learn(128, callback=RewarmCallback(schedule=SCHEDULE))
    optimizer = model.policy.optimizer
    assert model.lr_schedule is own
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    json.dumps(model.rewarm_state)  # plain numbers
    rates = Rates()
    model.learn(64, callback=rates)
    assert rates.seen == [5e-4] * 4


def test_a_learn_that_was_interrupted_can_be_followed_by_another():
    def interrupt():
        raise KeyboardInterrupt

    model = make(PPO)
    with pytest.raises(KeyboardInterrupt):
        model.learn(512, callback=[RewarmCallback(schedule=SCHEDULE), At(150, interrupt)])
    rates = Rates()
    model.learn(64, callback=[RewarmCallback(schedule=SCHEDULE), rates], reset_num_timesteps=False)
    assert rates.seen == [SCHEDULE(8 + step) for step in range(4)]


def test_resume_false_starts_anew_and_another_trigger_is_refused():
    model = make(PPO)
    model.learn(128, callback=RewarmCallback(schedule=SCHEDULE))
    with pytest.raises(ValueError, match=r"cannot continue .* trigger Never.*Every; .*; resume=False starts anew$"):
        model.learn(64, callback=RewarmCallback(schedule=SCHEDULE, trigger=elr.Every(9)))
    rates = Rates()
    model.learn(64, callback=[RewarmCallback(schedule=SCHEDULE, trigger=elr.Every(9), resume=False), rates])
    assert rates.seen == [SCHEDULE(step) for step in range(4)]


def test_a_schedule_that_ended_at_zero_can_be_continued():
    ending = elr.LinearDecay(1e-3, 0.0, 8)
    model = make(PPO)
    ended = RewarmCallback(schedule=ending)
    model.learn(128, callback=ended)
    assert ended.handle.rewarming.rate == 0.0
    callback, rates = RewarmCallback(schedule=ending), Rates()
    callback.restart()
    model.learn(64, callback=[callback, rates])
    assert rates.seen == [ending(step) for step in range(4)]


def test_a_rate_schedule_of_the_model_is_refused_or_overruled():
    model = make(PPO, learning_rate=lambda progress: 1e-3 * progress)
    with pytest.raises(ValueError, match=r"^the model has a learning-rate schedule of its own.*\"overrule\"$"):
        model.learn(64, callback=RewarmCallback(schedule=SCHEDULE))
    rates = Rates()
    model.learn(128, callback=[RewarmCallback(schedule=SCHEDULE, outside_rates="overrule"), rates])
    assert rates.seen == [SCHEDULE(step) for step in range(8)]


def test_a_rate_set_by_something_else_is_refused_or_overruled():
    def other():
        model.lr_schedule = lambda progress: 0.5

    model = make(PPO)
    with pytest.raises(RuntimeError, match=r"rate of parameter group 0 is 0.5, but the schedule has set"):
        model.learn(256, callback=[RewarmCallback(schedule=SCHEDULE), At(100, other)])
    model, rates = make(PPO), Rates()
    log = log_of(model)
    model.learn(256, callback=[RewarmCallback(schedule=SCHEDULE, outside_rates="overrule"), At(100, other), rates])
    assert rates.seen == [SCHEDULE(step) for step in range(16)]
    assert log.values("train/learning_rate") == [SCHEDULE(step) for step in (0, 4, 8)]


def test_an_optimiser_that_was_replaced_is_refused():
    def replace():
        model.policy.optimizer = torch.optim.SGD(model.policy.parameters(), lr=1e-3)

    model = make(PPO)
    with pytest.raises(RuntimeError, match="another optimizer than at the start of learn"):
        model.learn(256, callback=[RewarmCallback(), At(100, replace)])


@pytest.mark.parametrize("cls", [PPO, DQN])
def test_the_default_policy_is_refused_unless_asked_for(cls):
    model = make(cls, plain=True)
    with pytest.raises(
        ValueError, match=r"depends on the scale of .*(policy_net|q_net)\.0.*allow_scale_dependent=True"
    ) as refusal:
        model.learn(256, callback=RewarmCallback())
    assert "\n" not in str(refusal.value)
    model = make(cls, plain=True, learning_rate=1e-2)
    projection = policy_projection(model, allow_scale_dependent=True)
    before = norms(projection)
    model.learn(256, callback=RewarmCallback(projection=projection))
    assert norms(projection) == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shedule": SCHEDULE}, TypeError, "unexpected keyword argument 'shedule'"),
        ({"trigger": elr.Never()}, ValueError, "trigger has no effect without a schedule"),
        ({"schedule": SCHEDULE, "signal": "train/loss"}, ValueError, "signal has no effect: give a trigger"),
        ({"part": "critic"}, ValueError, "part='critic' has no effect: PPO has one optimiser"),
        ({"outside_rates": "ignore"}, ValueError, "outside_rates='ignore' is not known"),
        ({"moments": "forget"}, ValueError, "moments"),
        ({"meter": 0}, ValueError, "every must be at least 1, got 0"),
        (
            {"schedule": SCHEDULE, "trigger": elr.OnCusum(elr.Cusum()), "signal": "train/vloss"},
            ValueError,
            r"signal='train/vloss' is not logged by PPO.train\(\): choose one of \['train/approx_kl'",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, error, message):
    with pytest.raises(error, match=message) as refusal:
        make(PPO).learn(192, callback=RewarmCallback(**arguments))
    assert "\n" not in str(refusal.value)


def test_restart_without_a_schedule_is_refused():
    with pytest.raises(ValueError, match=r"^restart\(\) has no effect without a schedule: give RewarmCallback one$"):
        RewarmCallback().restart()


def test_another_algorithm_is_refused():
    class Mine:
        policy = None

    with pytest.raises(ValueError, match=r"^Mine is not known: RewarmCallback knows PPO.*Call elr.attach"):
        policy_projection(Mine())


@pytest.mark.parametrize("cls", [SAC, TD3, DDPG])
def test_a_part_of_an_algorithm_with_several_optimisers(cls):
    options = {
        "learning_starts": 32,
        "buffer_size": 500,
        "policy_kwargs": {"net_arch": [16, 16]},
        "learning_rate": 1e-3,
    }
    model = cls("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", **options)
    log = log_of(model)
    with pytest.raises(
        ValueError, match=rf"^{cls.__name__} has several optimisers, got part=None: choose part='critic'"
    ):
        model.learn(64, callback=RewarmCallback())
    with pytest.raises(ValueError, match="depends on the scale of"):
        model.learn(64, callback=RewarmCallback(part="actor", resume=False))
    actor, critic = (policy_projection(model, part, allow_scale_dependent=True) for part in ("actor", "critic"))
    assert list(actor.weights) == (["latent_pi.0", "latent_pi.2"] if cls is SAC else ["mu.0", "mu.2"])
    assert list(critic.weights) == [f"qf{k}.{i}" for k in range(1 if cls is DDPG else 2) for i in (0, 2)]
    before = norms(actor), norms(critic)
    both = [
        RewarmCallback(part="actor", projection=actor, meter=1, resume=False),  # keeps the model's rate
        RewarmCallback(part="critic", projection=critic, meter=1, schedule=SCHEDULE),
    ]
    rates = Rates("actor"), Rates("critic")
    model.learn(100, callback=[*both, *rates], log_interval=1)
    model.logger.dump(100)
    assert set(rates[0].seen) == {1e-3}
    assert rates[1].seen == [SCHEDULE(step) for step in range(68)]
    assert (norms(actor), norms(critic)) == tuple(pytest.approx(norm, rel=1e-6) for norm in before)
    row = log.rows[-1]
    assert row["critic/charts/learning_rate"] == SCHEDULE(67) and row["actor/charts/learning_rate"] == 1e-3
    assert row["train/learning_rate"] == 1e-3 and "critic/elr/qf0.0" in row
    assert model.rewarm_state_critic["updates"] == 68 and "rewarm_state" not in model.__dict__


@pytest.mark.parametrize("sde", [False, True])
def test_continuous_actions_leave_the_deviation_alone(sde):
    model = make(PPO, env="Pendulum-v1", use_sde=sde)
    model.learn(128, callback=(callback := RewarmCallback()))
    assert callback.handle.updates == 8 and not any("log_std" in name for name in callback.handle.projection.weights)


@pytest.mark.parametrize("cls", [PPO, DQN])
def test_normalised_observations_and_several_environments(cls):
    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
    model = make(cls, env=env)
    callback = RewarmCallback()
    model.learn(256, callback=callback)
    assert callback.handle.updates > 8 and not callback.handle.projection.unchecked


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(PPO).learn(64, callback=RewarmCallback(**arguments()))


@pytest.mark.parametrize("widths", [(16,), (16, 32)])
def test_layer_norm_mlp_ignores_the_scale_of_its_weights_near_zero_too(widths):
    model = make(DQN)
    model.policy_kwargs["features_extractor_kwargs"] = {"widths": widths}
    model._setup_model()
    near_zero = torch.from_numpy(np.random.default_rng(0).uniform(-0.02, 0.02, (64, 4)).astype(np.float32))
    elr.check_scale_invariance(model.q_net, near_zero, policy_projection(model).weights)
    layers = [layer for layer in model.q_net.features_extractor.layers if hasattr(layer, "weight")]
    assert [tuple(layer.weight.shape) for layer in layers[::2]] == [(widths[0], 4), (32, 16)][: len(widths)]
    assert [tuple(layer.weight.shape) for layer in layers[1::2]] == [(width,) for width in widths]


def test_two_callbacks_for_one_optimiser_are_refused():
    model = make(PPO)
    with pytest.raises(
        ValueError, match=r"^two RewarmCallbacks for the same optimiser in one learn\(\): keep one of them$"
    ):
        model.learn(64, callback=[RewarmCallback(schedule=SCHEDULE), RewarmCallback()])
    rates = Rates()
    model.learn(64, callback=[RewarmCallback(schedule=SCHEDULE), rates], reset_num_timesteps=False)
    assert rates.seen == [SCHEDULE(step) for step in range(4)]


def test_a_callback_that_starts_anew_forgets_what_its_parts_have_seen():
    spy = Spy(block=1)
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    model = make(PPO)
    log = log_of(model)
    meter = elr.Meter(policy_projection(model).weights, every=10, optimizer=model.policy.optimizer)
    probe = elr.Probe(model.policy, inputs, ["features_extractor.layers.6"], every=100)
    options = {"schedule": SCHEDULE, "trigger": elr.OnCusum(spy), "meter": meter, "probe": probe, "resume": False}
    callback = RewarmCallback(**options)
    for _ in range(2):
        model.learn(192, callback=callback)
        model.logger.dump()
        assert callback.handle.updates == 12 and spy.state_dict()["blocks_seen"] == 2
        assert sum("elr/features_extractor.layers.1" in row for row in log.rows) == 2  # updates 1 and 10
        assert not any(tag.startswith("plasticity/delta_c") for row in log.rows for tag in row)
        log.rows.clear()


def test_a_callback_may_serve_one_model_after_another():
    def interrupt():
        raise KeyboardInterrupt

    first, second = make(PPO), make(PPO)
    callback, rates = RewarmCallback(schedule=SCHEDULE), Rates()
    with pytest.raises(KeyboardInterrupt):
        first.learn(512, callback=[callback, At(150, interrupt)])
    second.learn(64, callback=[callback, rates])
    assert rates.seen == [SCHEDULE(step) for step in range(4)]
    assert (first.rewarm_state["updates"], second.rewarm_state["updates"]) == (8, 4)
    assert not first.policy.optimizer._optimizer_step_post_hooks


class Named(gymnasium.ObservationWrapper):
    """CartPole with its observation in a dict."""

    def __init__(self):
        super().__init__(gymnasium.make("CartPole-v1"))
        self.observation_space = gymnasium.spaces.Dict({"state": self.env.observation_space})

    def observation(self, observation):
        return {"state": observation}


class OfState(LayerNormMlp):
    def __init__(self, observation_space):
        super().__init__(observation_space["state"], widths=(16, 16))

    def forward(self, observations):
        return super().forward(observations["state"])


@pytest.mark.parametrize("cls", [PPO, DQN])
def test_observations_may_be_a_dict(cls):
    policy = {"net_arch": [], "features_extractor_class": OfState}
    model = cls("MultiInputPolicy", Named(), seed=0, device="cpu", policy_kwargs=policy, **SMALL[cls][0])
    callback = RewarmCallback()
    model.learn(256, callback=callback)
    assert not callback.handle.projection.unchecked


def test_the_check_sees_the_observations_that_were_collected_as_the_network_takes_them():
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0))
    model = SAC("MlpPolicy", env, seed=0, device="cpu", buffer_size=1_000, learning_starts=64)
    model.learn(64)
    batch, raw = observations(model), model.replay_buffer.observations[:32].reshape(64, 3)
    assert torch.equal(batch, torch.from_numpy(env.normalize_obs(raw)))
    assert not torch.equal(batch, torch.from_numpy(raw))
    assert still_collecting(model)
    model.num_timesteps = 65
    assert not still_collecting(model)


def test_the_check_sees_rows_of_the_whole_rollout():
    class AtRolloutEnd(BaseCallback):
        def _on_rollout_end(self):
            assert not still_collecting(self.model)
            seen.append((observations(self.model), self.model.rollout_buffer.observations.reshape(512, 4).copy()))

        def _on_step(self):
            return True

    seen = []
    make(PPO, env=make_vec_env("CartPole-v1", 8, seed=0)).learn(512, callback=AtRolloutEnd())
    ((batch, stored),) = seen
    assert batch.shape == (256, 4)
    assert np.array_equal(batch[0], stored[0]) and np.array_equal(batch[-1], stored[-1])
