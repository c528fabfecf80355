"""--intervene in the scripts: each method acts, and a run that is stopped and resumed is the whole one."""

import dataclasses

import pytest

from agents import dqn_minatar, grokking, ppo_minatar, warm_start
from elr.flags import ProbeArgs, RewarmArgs, ScheduleArgs
from elr.interventions.flags import BASELINES, Q_BASELINES, Q_CHURN, InterveneArgs
from envs.flags import MinAtarShiftArgs as ShiftArgs
from runs.recording import load_checkpoint, parse, read_scalars
from tests.agents import scripts

PROBE = ProbeArgs(every=8, size=16, meter_every=4)


def dqn(directory, **changes):
    """48 updates from step 40 on; the task changes at step 60."""
    shift = ShiftArgs("actions", at_steps=(60,))
    return dqn_minatar.Args(
        total_timesteps=88, learning_starts=40, buffer_size=80, batch_size=8, replay_ratio=1.0, eval_every=0,
        exploration_steps=50, log_every=10, target_network_frequency=20, checkpoint_every=1, probe=PROBE, shift=shift,
        directory=directory, **changes,
    )  # fmt: skip


def ppo(directory, **changes):
    """Three iterations of 64 steps and 8 updates; the task changes with the second."""
    return ppo_minatar.Args(
        total_timesteps=192, num_envs=4, num_steps=16, num_minibatches=4, update_epochs=2, eval_every=0,
        checkpoint_every=1, probe=PROBE, shift=ShiftArgs("actions", at_steps=(128,)), schedule=ScheduleArgs("constant"),
        directory=directory, **changes,
    )  # fmt: skip


def warm(directory, **changes):
    """Two phases of 20 updates on digits."""
    return warm_start.Args(
        phase_updates=20, batch_size=8, eval_every=20, log_every=4, checkpoint_every=1, width=4, hidden=16, threads=1,
        nap=warm_start.FREE, probe=PROBE, control="none", directory=directory, **changes,
    )  # fmt: skip


def grok(directory, **changes):
    """40 updates, re-warmed after 25 of them; no task changes, so what acts at a change acts then."""
    if (method := changes.get("intervene")) and method.acts_at == "change":
        changes["intervene"] = dataclasses.replace(method, when="trigger")
    return grokking.Args(
        p=11, train_fraction=0.5, heads=2, head_size=4, hidden=16, total_updates=40, checkpoint_every=1, threads=1,
        blocks=2, norm=grokking.NORMS, scale_decay=0.5, weight_decay=0.0, nap=grokking.FREE, probe=PROBE,
        rewarm=grokking.RewarmArgs("at", at_update=25), directory=directory, **changes,
    )  # fmt: skip


SCRIPTS = {
    "dqn": (dqn_minatar, dqn, Q_BASELINES, 70),
    "ppo": (ppo_minatar, ppo, BASELINES, 128),
    "warm start": (warm_start, warm, BASELINES, 25),
    "grokking": (grokking, grok, BASELINES, 20),
}


def soon(args):
    """The method with constants at which it acts within a few updates."""
    read = {flag for method in args.methods for flag in args.READS.get(method, ())}
    read |= {"every"} if args.acts_at == "every" else set()
    sooner = {"every": 3, "maturity": 2, "rate": 0.02, "kappa": 0.9, "tau": 0.5}
    return dataclasses.replace(args, **{flag: value for flag, value in sooner.items() if flag in read})


def recorded(directory):
    return {tag: rows for tag, rows in read_scalars(directory).items() if tag != "charts/SPS"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What a run without methods records, by script."""
    found = {}
    for kind, (script, small, _, _) in SCRIPTS.items():
        directory = tmp_path_factory.mktemp(kind) / "run"
        script.main(small(directory))
        found[kind] = recorded(directory)
    return found


@pytest.mark.parametrize("kind", SCRIPTS)
@pytest.mark.parametrize("name", BASELINES)
def test_a_method_acts_and_a_resumed_run_is_the_whole_one(kind, name, tmp_path, monkeypatch, plain):
    script, small, methods, stop = SCRIPTS[kind]
    changes = {"intervene": soon(methods[name])}
    if changes["intervene"].acts_at == "trigger" and kind != "grokking":  # which has a trigger anyway
        fires = {"dqn": RewarmArgs("every", every_steps=10), "ppo": RewarmArgs("every", every_steps=64)}
        changes["rewarm"] = fires.get(kind) or warm_start.RewarmArgs("cycle", cycles=4)
    script.main(small(tmp_path / "whole", **changes))
    whole = recorded(tmp_path / "whole")
    assert whole != plain[kind]
    acted = any(method in InterveneArgs.ACT and method != "local-time" for method in changes["intervene"].methods)
    assert ("reset/event" in whole) == acted
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        scripts.stop_at(patch, stop)
        script.main(small(tmp_path / "killed", **changes))
    script.main(parse(script.Args, script.PRESETS, ["--resume", str(tmp_path / "killed")]))
    assert recorded(tmp_path / "killed") == whole
    one, other = (load_checkpoint(tmp_path / run / "checkpoint.pt")["state"] for run in ("killed", "whole"))
    scripts.assert_same(one, other)


def test_a_method_that_needs_autograd_refuses_the_gradient_written_by_hand(tmp_path):
    method = InterveneArgs(("continual-backprop",), maturity=5)
    with pytest.raises(ValueError, match=r"--gradient and --intervene.methods|--gradient explicit"):
        dqn(tmp_path, intervene=method, gradient="explicit")
    dqn(tmp_path, intervene=method)


@pytest.mark.parametrize("kind", ["dqn", "ppo"])
def test_presets_are_the_plain_chain_and_one_method(kind):
    script, _, methods, _ = SCRIPTS[kind]
    plain = script.PRESETS["chain-plain"].args
    for name, args in methods.items():
        if name == "reset":  # chain-reset and chain-fresh are older than --intervene
            continue
        preset = script.PRESETS[f"chain-{name}"].args
        expected = dataclasses.replace(plain, intervene=args, exp_name=f"chain-{name}", rewarm=preset.rewarm)
        assert preset == expected and preset.rewarm.on == (args.acts_at == "trigger")


@pytest.mark.parametrize("kind", ["dqn", "ppo"])
def test_crelu_is_the_plain_chain_and_resumed_it_is_the_whole_run(kind, tmp_path, monkeypatch):
    script, small, _, stop = SCRIPTS[kind]
    preset, plain = (script.PRESETS[f"chain-{name}"].args for name in ("crelu", "plain"))
    assert preset == dataclasses.replace(plain, activation="crelu", exp_name="chain-crelu")
    changes = {
        "activation": "crelu",
        "nap": script.NapArgs(enabled=True),
        "intervene": script.InterveneArgs(("l2-init",)),
    }
    script.main(small(tmp_path / "whole", **changes))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        scripts.stop_at(patch, stop)
        script.main(small(tmp_path / "killed", **changes))
    script.main(parse(script.Args, script.PRESETS, ["--resume", str(tmp_path / "killed")]))
    assert recorded(tmp_path / "killed") == recorded(tmp_path / "whole")
    with pytest.raises(ValueError, match="--activation crelu"):
        small(tmp_path / "no", activation="crelu", intervene=InterveneArgs(("redo",), when="every", every=3))


def test_a_change_right_after_resuming_is_no_less_an_event(tmp_path, monkeypatch):
    """Updates come every ten steps: none lies between the checkpoint and the change."""
    method = dqn_minatar.InterveneArgs(("reset-head",))

    def small(directory):
        return dataclasses.replace(dqn(directory, intervene=method), replay_ratio=0.1, learning_starts=30)

    dqn_minatar.main(small(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        scripts.stop_at(patch, 59)
        dqn_minatar.main(small(tmp_path / "killed"))
    dqn_minatar.main(parse(dqn_minatar.Args, dqn_minatar.PRESETS, ["--resume", str(tmp_path / "killed")]))
    assert recorded(tmp_path / "killed") == recorded(tmp_path / "whole")
    assert recorded(tmp_path / "whole")["reset/event"] == [(60, 1.0)]


def test_a_method_acts_before_the_memory_is_cleared(tmp_path):
    switch = dqn_minatar.SwitchArgs(replay="clear")
    dqn_minatar.main(dqn(tmp_path / "r", intervene=InterveneArgs(("local-time", "redo"), when="change"), switch=switch))
    assert recorded(tmp_path / "r")["shift/boundary"]


def test_a_trigger_in_the_last_iteration_changes_nothing_any_more(tmp_path):
    ppo_minatar.main(
        ppo(
            tmp_path / "r",
            intervene=InterveneArgs(("reset",), when="trigger"),
            rewarm=RewarmArgs("every", every_steps=64),
        )
    )
    assert max(step for step, _ in recorded(tmp_path / "r")["reset/event"]) < 192


def test_warm_start_records_events_at_the_update_and_measures_features_from_there(tmp_path, monkeypatch):
    forgotten = []
    forget = warm_start.ProbeArgs.build.__globals__["Probe"].forget
    monkeypatch.setattr(
        warm_start.ProbeArgs.build.__globals__["Probe"], "forget", lambda self: (forgotten.append(1), forget(self))
    )
    method = InterveneArgs(("redo",), when="every", every=10, tau=5.0)
    warm_start.main(warm(tmp_path / "run", intervene=method))
    scalars = read_scalars(tmp_path / "run")
    assert [step for step, _ in scalars["reset/event"]] == [10, 20, 30, 40]
    assert len(forgotten) == 4
    counts = [value for _, value in scalars["intervene/recycled"]]
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[-1]  # logged every 4 updates


def test_what_fires_and_what_changes_are_told_apart(tmp_path):
    """The task changes with the second iteration; a trigger that comes with every iteration acts in the first too."""
    method = InterveneArgs(("fire",), when="trigger")
    rewarm = RewarmArgs("every", every_steps=64)
    schedule = ScheduleArgs("warmup-cosine", 1e-5, 64)
    plain = ppo(tmp_path / "run")
    ppo_minatar.main(dataclasses.replace(plain, intervene=method, rewarm=rewarm, schedule=schedule))
    assert [step for step, _ in read_scalars(tmp_path / "run")["reset/event"]] == [64, 128]


@pytest.mark.parametrize("flags", [
    {"methods": ("redo",), "when": "every", "every": 49}, {"methods": ("continual-backprop",), "maturity": 48},
])  # fmt: skip
def test_what_never_comes_in_the_run_is_refused(tmp_path, flags):
    with pytest.raises(ValueError, match=r"never comes: the run has 48 updates"):
        dqn(tmp_path, intervene=InterveneArgs(**flags))


def test_constants_of_presets_are_those_of_their_sources():
    churn, q = BASELINES["churn"], Q_BASELINES["churn"]
    assert (churn.ratio, q.ratio) == (1e4, 1e-2)
    assert parse(dqn_minatar.Args, {}, ["--intervene.methods", "churn"]).intervene.ratio == 1e-2  # by flags as well
    assert Q_CHURN == {"start": 50.0, "block": 100, "window": 500, "warmup": 100}
    backprop = BASELINES["continual-backprop"]
    assert (backprop.rate, backprop.maturity, BASELINES["weight-clipping"].kappa) == (1e-4, 10_000, 3.0)
    assert (BASELINES["redo"].tau, BASELINES["redo"].every) == (0.1, 1_000)
