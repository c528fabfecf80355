"""The shipped DQN script with --shift: what happens when the task changes, and what does not."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from agents import dqn_minatar as script
from agents.dqn_minatar import Args, NapArgs, RewarmArgs, ScheduleArgs, ShiftArgs, SwitchArgs
from envs.replay import TransitionMemory
from envs.shifts import Shift
from runs.recording import RunError, load_checkpoint, read_scalars
from tests.agents import scripts
from tests.agents.scripts import assert_same, finish

CHAIN = ShiftArgs(kind="games", games=("MinAtar/Freeway-v0", "MinAtar/Seaquest-v0"), every_steps=120)


def run(directory, **changes):
    defaults = {
        "env_id": "MinAtar/Breakout-v0", "total_timesteps": 400, "learning_starts": 40, "buffer_size": 2000,
        "exploration_steps": 160, "target_network_frequency": 100, "eval_every": 0, "log_every": 1,
        "probe": script.ProbeArgs(every=50, size=16, meter_every=10), "shift": CHAIN, "directory": directory,
    }  # fmt: skip
    script.main(Args(**{**defaults, **changes}))
    return read_scalars(directory)


def saved(directory):
    return load_checkpoint(directory / "checkpoint.pt")["state"]


def rows(scalars, tag):
    return dict(scalars[tag])


def test_a_chain_of_games_changes_at_its_steps(tmp_path):
    scalars = run(tmp_path / "r")
    assert scalars["shift/task"] == [(0, 0.0), (120, 1.0), (240, 2.0), (360, 0.0)]
    assert scalars["shift/boundary"] == [(120, 1.0), (240, 1.0), (360, 1.0)]
    assert "rewarm/event" not in scalars
    state = saved(tmp_path / "r")
    assert state["replay"]["shape"] == [400, 10, 10, 10]
    # The last transition before each change: not terminated, its next observation still of the old game.
    memory = TransitionMemory(2000, (10, 10, 10))
    memory.load_state_dict(state["replay"])
    widths = [int(memory.obs[i:j].any(axis=(0, 2, 3)).nonzero()[0].max()) + 1 for i, j in ((0, 120), (120, 240))]
    assert widths == [4, 7]
    for change, channels in ((120, 4), (240, 7)):
        assert memory.terminated[change - 1] == 0  # truncated: the target bootstraps
        assert not memory.next_obs[change - 1, channels:].any() and memory.next_obs[change - 1, :channels].any()


def test_several_environments_change_together_at_the_first_step_that_reaches_the_number(tmp_path):
    """The pauses after it count from that step."""
    shift = ShiftArgs(kind="games", games=("MinAtar/Freeway-v0", "MinAtar/Seaquest-v0"), at_steps=(122, 240))
    scalars = run(tmp_path / "kept", shift=shift, num_envs=5, log_every=5)
    assert scalars["shift/boundary"] == [(125, 1.0), (240, 1.0)]
    assert scalars["shift/task"] == [(0, 0.0), (125, 1.0), (240, 2.0)]
    memory = TransitionMemory(2000, (10, 10, 10), num_envs=5)
    memory.load_state_dict(saved(tmp_path / "kept")["replay"])
    for change, before, after in ((125, 4, 7), (240, 7, 10)):
        last, first = slice(change - 5, change), slice(change, change + 5)
        assert not memory.terminated[last].any()  # truncated: the targets bootstrap
        assert not memory.next_obs[last, before:].any() and memory.next_obs[last, :before].any((1, 2, 3)).all()
        assert memory.obs[first, before:after].any((1, 2, 3)).all()  # of the new game, in every environment
    everything = SwitchArgs(replay="clear", exploration="restart")
    cleared = run(tmp_path / "cleared", shift=shift, num_envs=5, log_every=5, switch=everything)
    state = saved(tmp_path / "cleared")
    assert state["replay"]["shape"][0] == 400 - 240
    assert state["counters"]["updates"] == (125 - 40) + (240 - 165) + (400 - 280)
    learned = [step for step, _ in cleared["losses/td_loss"]]
    assert [step for step in learned if 115 < step < 175] == [120, 125, 170]
    epsilon = rows(cleared, "charts/epsilon")
    assert epsilon[130] == 1.0 and epsilon[165] == pytest.approx(1 - 0.95 * 35 / 160)


def test_by_default_only_the_task_changes(tmp_path):
    """Updates and exploration continue, and the rate stays."""
    scalars = run(tmp_path / "r")
    assert rows(scalars, "charts/epsilon")[300] == pytest.approx(0.05)
    assert len(scalars["losses/td_loss"]) == 360
    assert {rate for _, rate in scalars["charts/learning_rate"]} == {2.5e-4}


def test_until_the_first_change_the_run_is_the_one_without(tmp_path):
    shifted = run(tmp_path / "a", shift=ShiftArgs(kind="actions", every_steps=250))
    bare = run(tmp_path / "b", shift=ShiftArgs())
    for tag in ("losses/td_loss", "charts/episodic_return", "norms/parameter/conv"):
        before = [[row for row in scalars[tag] if row[0] <= 250] for scalars in (shifted, bare)]
        assert before[0] == before[1] and before[0]
    assert shifted["losses/td_loss"] != bare["losses/td_loss"]
    assert "shift/task" not in bare


def test_an_episode_that_a_change_cuts_short_is_not_reported(tmp_path):
    scalars = run(tmp_path / "r", shift=ShiftArgs(kind="rewards", at_steps=(200, 201, 202), values=(1.0, 2.0)))
    ends = [step for step, _ in scalars["charts/episodic_length"]]
    assert not {201, 202} & set(ends)  # one step long, had they been reported
    assert all(length > 1 for _, length in scalars["charts/episodic_length"])


def test_evaluation_at_a_change_is_of_the_task_that_ends(tmp_path, monkeypatch):
    tasks = []
    play = script.play

    def watched(env, policy, seed):
        tasks.append((env.task if isinstance(env, Shift) else None, env.num_envs))
        return play(env, policy, seed)

    monkeypatch.setattr(script, "play", watched)
    run(tmp_path / "r", eval_every=60, eval_episodes=2, total_timesteps=400)
    assert tasks == [(task, 2) for task in (0, 0, 1, 1, 2, 2, 0)]


def test_a_known_change_restarts_the_schedule_with_the_next_update(tmp_path):
    schedule = ScheduleArgs(kind="linear-decay", period_steps=120)
    scalars = run(tmp_path / "r", schedule=schedule, rewarm=RewarmArgs(trigger="switch"))
    rate = rows(scalars, "charts/learning_rate")
    assert [step for step, _ in scalars["rewarm/event"]] == [120, 240, 360]
    assert rate[41] == rate[121] == rate[241] == rate[361] == 2.5e-4
    assert rate[240] < rate[180] < rate[121] and rate[240] == pytest.approx(4e-6 + (2.5e-4 - 4e-6) / 120, rel=1e-6)


def test_switches_do_what_they_say_and_only_that(tmp_path):
    """Each flag alone; the others stay as in the plain run, whose state until the change is the same."""

    def at(step, name, switch=None):
        shift = ShiftArgs(kind="actions", at_steps=(200,))
        scalars = run(tmp_path / f"{name}{step}", shift=shift, switch=switch or SwitchArgs(), total_timesteps=step)
        return scalars, saved(tmp_path / f"{name}{step}")

    scalars, plain = at(201, "plain")
    # the replay memory: updates pause until there are --learning-starts transitions
    cleared, state = at(260, "clear", SwitchArgs(replay="clear"))
    assert state["replay"]["shape"][0] == 60
    updates = [step for step, _ in cleared["losses/td_loss"]]
    assert [step for step in updates if 195 < step < 245] == [196, 197, 198, 199, 200, 241, 242, 243, 244]
    # exploration
    epsilon = rows(at(260, "explore", SwitchArgs(exploration="restart"))[0], "charts/epsilon")
    assert epsilon[200] == pytest.approx(0.05) and epsilon[201] == 1.0
    assert epsilon[241] == pytest.approx(1 - 0.95 * 40 / 160)
    # Adam
    _, reset = at(201, "adam", SwitchArgs(optimizer="reset"))
    steps = [float(one["optimizer"]["state"][0]["step"]) for one in (plain, reset)]
    assert steps == [161.0, 1.0]
    assert (
        scalars["losses/td_loss"] == read_scalars(tmp_path / "adam201")["losses/td_loss"]
    )  # the update comes after it


@pytest.mark.parametrize("target", ["keep", "copy"])
def test_the_target_network_is_copied_at_once_when_asked(tmp_path, target, monkeypatch):
    shift = ShiftArgs(kind="actions", at_steps=(180,))
    run(tmp_path / "r", shift=shift, switch=SwitchArgs(target=target), total_timesteps=181)
    state = saved(tmp_path / "r")
    online, held = state["q_network"]["conv.weight"], state["target_network"]["conv.weight"]
    step = float((online - held).norm() / online.norm())
    # copied at 180, one update ago, against at 100
    assert (step < 2e-3) == (target == "copy") and step > 0


@pytest.mark.parametrize("kind", ["reset", "reset-head", "shrink-and-perturb"])
@pytest.mark.parametrize("projected", [False, True])
def test_interventions_change_the_weights_they_name_and_learning_continues(tmp_path, kind, projected):
    def at(step, switch, name):
        run(
            tmp_path / f"{name}{step}", shift=ShiftArgs(kind="channels", at_steps=(150,)), switch=switch,
            total_timesteps=step, nap=NapArgs(enabled=projected),
        )  # fmt: skip
        return saved(tmp_path / f"{name}{step}")

    plain, changed = at(151, SwitchArgs(), "plain"), at(151, SwitchArgs(intervention=kind), "changed")
    moved = {name: float((w - plain["q_network"][name]).norm() / w.norm()) for name, w in changed["q_network"].items()}
    weights = ("conv.weight", "hidden.weight", "head.weight")
    expected = {"reset": weights, "reset-head": ("head.weight",), "shrink-and-perturb": weights}[kind]
    for name in weights:
        assert (moved[name] > 0.05) == (name in expected), (name, moved)
    if projected and kind == "shrink-and-perturb":
        gain, offset = (changed["q_network"][f"hidden_norm.{name}"] for name in ("weight", "bias"))
        assert float((gain.square().sum() + offset.square().sum()).sqrt()) == pytest.approx(128**0.5, rel=1e-4)
    if projected:
        for name in ("conv", "hidden"):
            norm = changed["q_network"][f"{name}.weight"].norm()
            assert norm == pytest.approx(float(changed["projection"]["norms"][name]), rel=1e-5)
    later = at(170, SwitchArgs(intervention=kind), "changed")
    for name, w in later["q_network"].items():
        assert not torch.equal(w, changed["q_network"][name]), name


def test_a_fresh_agent_knows_nothing_of_the_first_task(tmp_path):
    """Two that share no more than the seed have the same network, schedule and trigger after the change."""
    schedule, every = ScheduleArgs(kind="linear-decay", period_steps=120), RewarmArgs(trigger="every", every_steps=60)
    states = []
    for name, learns in (("a", 40), ("b", 20)):
        scalars = run(
            tmp_path / name, schedule=schedule, rewarm=every, nap=NapArgs(enabled=True), total_timesteps=201,
            switch=SwitchArgs(fresh_agent=True), shift=ShiftArgs(kind="pixels", at_steps=(200,)),
            learning_starts=learns,
        )  # fmt: skip
        assert rows(scalars, "charts/epsilon")[201] == 1.0
        states.append(saved(tmp_path / name))
        assert states[-1]["replay"]["shape"][0] == 1
        assert all(float(s["step"]) == 0 for s in states[-1]["optimizer"]["state"].values())
    for part in ("q_network", "target_network", "projection", "rewarming"):
        assert_same(states[0][part], states[1][part], part)
    assert_same(states[0]["q_network"], states[0]["target_network"])
    later = run(
        tmp_path / "c", schedule=schedule, rewarm=every, nap=NapArgs(enabled=True), total_timesteps=400,
        switch=SwitchArgs(fresh_agent=True), shift=ShiftArgs(kind="pixels", at_steps=(200,)),
    )  # fmt: skip
    # 40 steps without an update, then a restart after every 60 updates: of the first agent, and of the second
    assert [step for step, _ in later["rewarm/event"]] == [100, 160, 300, 360]
    assert rows(later, "charts/learning_rate")[241] == 2.5e-4


def test_an_intervention_is_no_feature_learning(tmp_path):
    """The probe starts again: the change of the features by the intervention is not in its numbers."""
    shift, probe = ShiftArgs(kind="actions", at_steps=(150,)), script.ProbeArgs(every=50, size=16, meter_every=0)
    plain = run(tmp_path / "a", shift=shift, probe=probe)
    reset = run(tmp_path / "b", shift=shift, probe=probe, switch=SwitchArgs(intervention="reset"))
    tag = "plasticity/delta_a/hidden_relu"
    steps = [[step for step, _ in scalars[tag]] for scalars in (plain, reset)]
    assert steps[0] == [90, 140, 190, 240, 290, 340, 390] and steps[1] == [90, 140, 240, 290, 340, 390]


def test_each_change_draws_its_own_fresh_network(tmp_path):
    heads = []
    for at in (100, 150):
        run(
            tmp_path / str(at), shift=ShiftArgs(kind="actions", at_steps=(at,)), total_timesteps=at + 1,
            switch=SwitchArgs(intervention="reset"), learning_starts=at, replay_ratio=0.5,
        )  # fmt: skip
        heads.append(saved(tmp_path / str(at))["q_network"]["head.weight"])
    assert not torch.equal(*heads)


def test_a_fresh_agent_remembers_no_errors_of_the_one_before(tmp_path):
    run(
        tmp_path / "r", shift=ShiftArgs(kind="actions", at_steps=(300,)), switch=SwitchArgs(fresh_agent=True),
        total_timesteps=350, learning_starts=100, schedule=script.ScheduleArgs("warmup-cosine", period_steps=100),
        rewarm=script.RewarmArgs(trigger="cusum", block=2, burn_in=5, refractory=5),
    )  # fmt: skip
    recent = saved(tmp_path / "r")["recent"]  # updates have not begun again
    assert recent["mean"] == 0.0 and 45 <= len(recent["errors"]) <= 50


FLAGS = shlex.split(
    "chain-switch --seed 7 --total-timesteps 1000 --learning-starts 60 --buffer-size 700 --exploration-steps 600 "
    "--target-network-frequency 150 --checkpoint-every 50 --log-every 25 --eval-every 300 --eval-episodes 2 "
    "--shift.games MinAtar/Freeway-v0 MinAtar/Asterix-v0 --shift.every-steps 0 --shift.rate 0.005 "
    "--schedule.period-steps 400 --probe.every 90 --probe.size 16 --probe.meter-every 37 "
    "--switch.replay clear --switch.exploration restart --switch.intervention reset --switch.optimizer reset"
)


CUSUM = [
    "--rewarm.block",
    "2",
    "--rewarm.burn-in",
    "4",
    "--rewarm.refractory",
    "4",
    "--rewarm.threshold",
    "0.5",
    "--rewarm.slack",
    "0.1",
]


ON_CUSUM = ["chain-cusum", *FLAGS[1:], *CUSUM]


@pytest.mark.parametrize(
    "flags", [FLAGS, ON_CUSUM, [*ON_CUSUM, "--num-envs", "5"]], ids=["switch", "cusum", "several-environments"]
)
def test_killed_in_the_middle_of_a_task_and_resumed_is_bit_identical(tmp_path, flags):
    script_path = Path(script.__file__)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(scripts.start(script_path, *flags, "--directory", whole))
    for step in (300, 650):
        process = scripts.start(
            script_path, *(["--resume", killed] if killed.exists() else [*flags, "--directory", killed])
        )
        scripts.kill_beyond(process, killed, step, signal.SIGKILL)
    finish(scripts.start(script_path, "--resume", killed))
    tables = [
        [line for line in (d / "scalars.csv").read_text().splitlines() if ",charts/SPS," not in line]
        for d in (whole, killed)
    ]
    assert tables[0] == tables[1]
    assert sum(",shift/boundary," in line for line in tables[0]) >= 3
    assert sum(",rewarm/event," in line for line in tables[0]) >= 3
    assert_same(*(saved(d) for d in (whole, killed)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"shift": ShiftArgs(kind="games", games=("MinAtar/Freeway-v1",), every_steps=300)}, "all actions"),
        ({"shift": ShiftArgs(kind="games", games=("MinAtar/Frogger-v0",), every_steps=300)}, "Frogger"),
        ({"shift": ShiftArgs(kind="noise", values=(0.0, 3.0), every_steps=300)}, "probabilities"),
        ({"shift": ShiftArgs(kind="actions", tasks=1000, every_steps=300)}, "720 permutations"),
    ],
)
def test_impossible_tasks_are_refused_in_one_line_before_anything_is_written(tmp_path, changes, told):
    with pytest.raises(RunError, match=told) as error:
        run(tmp_path / "r", **changes)
    assert "\n" not in str(error.value) and not (tmp_path / "r").exists()


def test_probe_and_evaluation_do_not_disturb_a_changing_run(tmp_path):
    quiet = run(tmp_path / "a", probe=script.ProbeArgs(every=0, meter_every=0))
    loud = run(tmp_path / "b", eval_every=100, eval_episodes=2)
    assert quiet["losses/td_loss"] == loud["losses/td_loss"]
    assert np.isfinite([v for _, v in loud["eval/episodic_return"]]).all()
