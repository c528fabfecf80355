"""--shift: every refusal once, and that every flag reaches the environments."""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass

import numpy as np
import pytest

from envs.control import ControlVectorEnv
from envs.flags import ControlShiftArgs, MinAtarShiftArgs, ScreenShiftArgs, reject_unused
from envs.frames import StackFrames
from envs.minatar import MinAtarVectorEnv
from envs.shifts import (
    ChangePhysics,
    DriftPhysics,
    EnvSequence,
    OffsetObservations,
    PermuteActions,
    PermuteObservations,
    RepeatActions,
    RotateObservations,
    ScaleObservations,
    ScaleRewards,
)
from envs.timetables import AtRandom, AtSteps, EverySteps, NoChange
from envs.worlds import PROTOCOLS, ControlKind

BREAKOUT, CATCH, PONG, CARTPOLE = "MinAtar/Breakout-v0", "rewarm/Catch-v0", "ALE/Pong-v5", "CartPole-v1"
BOTH = pytest.mark.parametrize("group", [MinAtarShiftArgs, ScreenShiftArgs])
ALL = pytest.mark.parametrize("group", [MinAtarShiftArgs, ScreenShiftArgs, ControlShiftArgs])


def check(shift, env_id=None, total_steps=1_000_000, **screen):
    """The check as a script calls it."""
    if isinstance(shift, ScreenShiftArgs):
        shift.check(env_id or PONG, total_steps, **{"clip_rewards": True, "threads": 0, **screen})
    else:
        first = CARTPOLE if isinstance(shift, ControlShiftArgs) else BREAKOUT
        shift.check(env_id or first, total_steps)


def refused(shift, *named, **how):
    """The check fails in one line that names all of these."""
    with pytest.raises(ValueError, match=re.escape(named[0])) as caught:
        check(shift, **how)
    message = str(caught.value)
    assert [part for part in named if part not in message] == [] and "\n" not in message


# flags that contradict each other or do nothing


@BOTH
@pytest.mark.parametrize(
    ("flag", "value"),
    [("every_steps", 9), ("at_steps", (9,)), ("rate", 0.1), ("games", (CATCH,)), ("tasks", 3), ("values", (1.0, 2.0))],
)
def test_no_flag_has_an_effect_without_a_kind(group, flag, value):
    name = f"--shift.{flag.replace('_', '-')}"
    refused(group(**{flag: value}), name, "has no effect", "--shift.kind none", "drop it")


@ALL
@pytest.mark.parametrize("when", [{}, {"every_steps": 9, "rate": 0.1}, {"at_steps": (9,), "every_steps": 9}])
def test_exactly_one_flag_says_when(group, when):
    flags = ("--shift.every-steps", "--shift.at-steps", "--shift.rate")
    refused(group("actions", **when), "--shift.kind actions needs exactly one", *flags)


@ALL
@pytest.mark.parametrize(
    ("when", "named"),
    [
        ({"every_steps": -1}, ["--shift.every-steps", "-1", "at least 1"]),
        ({"at_steps": (300, 200)}, ["--shift.at-steps", "(300, 200)", "rise"]),
        ({"at_steps": (0, 200)}, ["--shift.at-steps", "(0, 200)", "begin at 1"]),
        ({"rate": 3.0}, ["--shift.rate", "3.0", "probability"]),
        ({"rate": -0.1}, ["--shift.rate", "-0.1", "probability"]),
    ],
)
def test_impossible_times_are_refused(group, when, named):
    refused(group("actions", **when), *named)


@BOTH
@pytest.mark.parametrize(
    ("kind", "flags", "named"),
    [
        ("actions", {"values": (1.0, 2.0)}, "--shift.values (1.0, 2.0)"),
        ("actions", {"games": (CATCH,)}, "--shift.games"),
        ("rewards", {"tasks": 3, "values": (1.0, -1.0)}, "--shift.tasks 3"),
        ("games", {"tasks": 3, "games": (CATCH,)}, "--shift.tasks 3"),
    ],
)
def test_a_flag_that_the_kind_does_not_use_is_refused(group, kind, flags, named):
    refused(group(kind, rate=0.1, **flags), named, "has no effect", f"--shift.kind {kind}")


@BOTH
def test_games_are_needed_and_must_differ_from_the_first(group):
    refused(group("games", rate=0.1), "--shift.kind games", "--shift.games")
    refused(group("games", rate=0.1, games=(BREAKOUT, BREAKOUT)), "--shift.games", f"--env-id {BREAKOUT}",
            env_id=BREAKOUT)  # fmt: skip
    check(group("games", rate=0.1, games=(BREAKOUT, PONG)), env_id=BREAKOUT)


VALUED = [
    (group, kind) for group in (MinAtarShiftArgs, ScreenShiftArgs, ControlShiftArgs) for kind in group.WORLD.VALUED
]


@pytest.mark.parametrize(("group", "kind"), VALUED)
def test_values_must_be_two_at_least_and_differ(group, kind):
    given = {"rate": 0.1, "what": "length"} if kind == "physics" else {"rate": 0.1}
    refused(group(kind, **given), f"--shift.kind {kind}", "two --shift.values")
    refused(group(kind, values=(1.0,), **given), f"--shift.kind {kind}", "two --shift.values")
    refused(group(kind, values=(1.0, 1.0), **given), "--shift.values (1.0, 1.0)", "alike")
    check(group(kind, values=(1.0, 0.0), **given))


@ALL
@pytest.mark.parametrize("when", [{"every_steps": 1000}, {"at_steps": (9, 1000)}])
def test_a_change_that_never_comes_is_refused(group, when):
    flag = f"--shift.{next(iter(when)).replace('_', '-')}"
    refused(group("actions", **when), flag, "step 1000", "--total-timesteps 1000", total_steps=1000)
    check(group("actions", **when), total_steps=1001)


# Atari and Catch


@pytest.mark.parametrize("kind", ["none", "actions"])
def test_catch_does_not_support_threads(kind):
    shift = ScreenShiftArgs(kind, every_steps=50 * (kind != "none"))
    refused(shift, f"--env-id {CATCH}", "--env-threads", "got 2", env_id=CATCH, threads=2)
    check(shift, env_id=CATCH)


@pytest.mark.parametrize("kind", ["games", "modes", "difficulties"])
def test_catch_does_not_support_what_only_atari_has(kind):
    given = {"games": (PONG,)} if kind == "games" else {"values": (0.0, 1.0)}
    shift = ScreenShiftArgs(kind, every_steps=50, **given)
    refused(shift, f"--env-id {CATCH}", f"--shift.kind {kind}", env_id=CATCH)
    check(shift, env_id="ALE/Breakout-v5")


def test_catch_cannot_follow_an_atari_game():
    shift = ScreenShiftArgs("games", every_steps=50, games=("ALE/Breakout-v5", CATCH))
    refused(shift, f"--shift.games {CATCH}", "--shift.kind games")
    refused(shift, f"--shift.games {CATCH}", "--env-threads", threads=1)


@pytest.mark.parametrize("kind", ["modes", "difficulties"])
def test_threads_do_not_support_modes_and_difficulties(kind):
    shift = ScreenShiftArgs(kind, every_steps=50, values=(0.0, 1.0))
    refused(shift, "--env-threads 2", f"--shift.kind {kind}", threads=2)
    check(shift, threads=0)
    check(ScreenShiftArgs("actions", every_steps=50), threads=2)


@pytest.mark.parametrize("values", [(1.0, 10.0), (2.0, 5.0, 10.0), (-1.0, -3.0)])
def test_factors_that_clipping_makes_alike_are_refused(values):
    shift = ScreenShiftArgs("rewards", every_steps=50, values=values)
    refused(shift, f"--shift.values {values}", "--clip-rewards", "--no-clip-rewards")
    check(shift, clip_rewards=False)


@pytest.mark.parametrize("values", [(1.0, -1.0), (0.5, 10.0), (10.0, 0.0)])
def test_factors_that_clipping_leaves_apart_are_accepted(values):
    check(ScreenShiftArgs("rewards", every_steps=50, values=values))


def test_noise_of_values_that_clipping_would_make_alike_is_accepted():
    check(ScreenShiftArgs("modes", every_steps=50, values=(4.0, 8.0)))


# control


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("every_steps", 9), ("at_steps", (9,)), ("rate", 0.1), ("tasks", 3), ("values", (1.0, 2.0))),
        *(("scale", 1.5), ("what", "length"), ("drift", True)),
    ],
)
def test_no_flag_of_control_has_an_effect_without_a_kind(flag, value):
    name = f"--shift.{flag.replace('_', '-')} {value}"
    refused(ControlShiftArgs(**{flag: value}), name, "has no effect", "--shift.kind none", "drop it")


USED = {
    "offsets": {"tasks", "scale"},
    "rotations": {"tasks"},
    "gains": {"tasks", "scale"},
    "actions": {"tasks"},
    "rewards": {"values"},
    "sticky": {"values"},
    "physics": {"values", "what", "drift"},
}
GIVEN = {"tasks": 3, "values": (0.5, 0.25), "scale": 1.5, "what": "length", "drift": True}
NEEDED = {"values", "what"}


@pytest.mark.parametrize("kind", USED)
def test_every_flag_of_control_is_used_by_its_kinds_and_refused_by_the_others(kind):
    needed = {name: GIVEN[name] for name in USED[kind] & NEEDED}
    check(ControlShiftArgs(kind, every_steps=9, **needed))
    check(ControlShiftArgs(kind, every_steps=9, **{name: GIVEN[name] for name in USED[kind]}))
    for name in GIVEN.keys() - USED[kind]:
        shift = ControlShiftArgs(kind, every_steps=9, **needed, **{name: GIVEN[name]})
        refused(shift, f"--shift.{name} {GIVEN[name]}", "has no effect", f"--shift.kind {kind}", "drop it")


def test_control_has_no_other_games_and_no_noise():
    assert "games" not in {field.name for field in dataclasses.fields(ControlShiftArgs)}
    assert not {"games", "noise"} & set(typing.get_args(ControlKind))
    assert set(typing.get_args(ControlKind)) == {"none", *USED}


@pytest.mark.parametrize("kind", ["offsets", "gains"])
@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_scales_must_be_positive(kind, scale):
    refused(ControlShiftArgs(kind, every_steps=9, scale=scale), "--shift.scale must be positive", f"got {scale}")


def test_physics_needs_a_name():
    refused(ControlShiftArgs("physics", every_steps=9, values=(1.0, 2.0)), "--shift.kind physics needs --shift.what")


DRIFT = {"kind": "physics", "what": "length", "values": (0.5, 2.0), "drift": True}


def test_a_drift_needs_a_period_and_no_times():
    flags = ("--shift.drift", "no changes", "use --shift.every-steps")
    refused(ControlShiftArgs(**DRIFT, at_steps=(9, 20)), "--shift.at-steps (9, 20)", *flags)
    refused(ControlShiftArgs(**DRIFT, rate=0.1), "--shift.rate 0.1", *flags)
    refused(ControlShiftArgs(**DRIFT, rate=0.1, every_steps=9), "--shift.rate 0.1", *flags)
    refused(ControlShiftArgs(**DRIFT), "--shift.drift needs --shift.every-steps, the agent steps from one value")
    refused(ControlShiftArgs(**DRIFT, every_steps=-3), "--shift.every-steps", "at least 1 agent step, got -3")


def test_a_drift_is_no_change_of_the_task_and_may_take_longer_than_the_run():
    shift = ControlShiftArgs(**DRIFT, every_steps=5000)
    check(shift, total_steps=1000)
    assert not shift.on and shift.gaps() == [] and (shift.first_change, shift.shortest_gap) == (None, None)
    assert shift.unchanged == "with --shift.drift: the physics moves slowly, and the task does not change"
    jumps = ControlShiftArgs(**{**DRIFT, "drift": False}, every_steps=500)
    assert jumps.on and jumps.gaps() == [500]
    refused(jumps, "--shift.every-steps", "step 500", "--total-timesteps 500", total_steps=500)
    assert ControlShiftArgs().unchanged == "with --shift.kind none: the task does not change"


def test_every_flag_of_control_reaches_the_environments():
    env = ControlShiftArgs().world(CARTPOLE, 3, max_episode_steps=70)
    assert type(env) is ControlVectorEnv
    assert env.rules == {"env_id": CARTPOLE, "num_envs": 3, "max_episode_steps": 70}
    assert ControlShiftArgs().world(CARTPOLE, 1).rules["max_episode_steps"] == 500
    for kind, wrapper in (("offsets", OffsetObservations), ("gains", ScaleObservations)):
        env = ControlShiftArgs(kind, every_steps=70, tasks=5, scale=0.25).world(CARTPOLE, 2, max_episode_steps=30)
        assert type(env) is wrapper and (env.tasks, env.scale, env.num_envs) == (5, 0.25, 2)
        assert env.timetable == EverySteps(70) and env.env.rules["max_episode_steps"] == 30
        assert ControlShiftArgs(kind, rate=0.1).world(CARTPOLE, 2).scale == 2.0
    env = ControlShiftArgs("rotations", at_steps=(50, 90), tasks=4).world(CARTPOLE, 2)
    assert type(env) is RotateObservations and env.tasks == 4 and env.timetable == AtSteps((50, 90))
    env = ControlShiftArgs("actions", rate=0.1).world(CARTPOLE, 2)
    assert type(env) is PermuteActions and env.tasks == 2 and env.timetable == AtRandom(0.1)
    env = ControlShiftArgs("rewards", every_steps=70, values=(1.0, -2.0)).world(CARTPOLE, 2)
    assert type(env) is ScaleRewards and env.values == (1.0, -2.0)
    env = ControlShiftArgs("sticky", every_steps=70, values=(0.1, 0.2)).world(CARTPOLE, 2)
    assert type(env) is RepeatActions and env.values == (0.1, 0.2)
    env = ControlShiftArgs("physics", every_steps=70, values=(0.5, 2.0), what="length").world(CARTPOLE, 2)
    assert type(env) is ChangePhysics and (env.what, env.values) == ("length", (0.5, 2.0))
    env = ControlShiftArgs(**DRIFT, every_steps=70).world(CARTPOLE, 2)
    assert type(env) is DriftPhysics and (env.what, env.values, env.period) == ("length", (0.5, 2.0), 70)


@pytest.mark.parametrize("drift", [False, True])
def test_physics_that_does_not_change_stays_at_the_first_value(drift):
    shift = ControlShiftArgs(**{**DRIFT, "values": (0.7, 2.0), "drift": drift}, every_steps=4)
    env = shift.world(CARTPOLE, 2, changing=False)
    env.reset(seed=1)
    for _ in range(30):
        assert "shift" not in env.step(np.zeros(2, dtype=int))[-1] and env.env.physics("length") == 0.7
    env = ControlShiftArgs("offsets", every_steps=4).world(CARTPOLE, 2, changing=False)
    assert type(env) is OffsetObservations and env.timetable == NoChange()


# when changes come


@pytest.mark.parametrize(
    ("flags", "timetable", "gaps", "first", "shortest"),
    [
        ({}, NoChange(), [], None, None),
        ({"kind": "actions", "every_steps": 70}, EverySteps(70), [70], 70, 70),
        ({"kind": "actions", "at_steps": (50, 90, 100)}, AtSteps((50, 90, 100)), [50, 40, 10], 50, 10),
        ({"kind": "actions", "at_steps": (20, 90)}, AtSteps((20, 90)), [20, 70], 20, 70),
        ({"kind": "actions", "at_steps": (50,)}, AtSteps((50,)), [50], 50, None),
        ({"kind": "actions", "rate": 0.004}, AtRandom(0.004), [], 250, 250),
        ({"kind": "actions", "rate": 0.7}, AtRandom(0.7), [], 1, 1),
    ],
)
@ALL
def test_timetable_and_gaps(group, flags, timetable, gaps, first, shortest):
    shift = group(**flags)
    assert shift.timetable() == timetable and shift.gaps() == gaps
    assert (shift.first_change, shift.shortest_gap) == (first, shortest)
    assert shift.on == (flags != {})


# what is built


def built(shift, num_envs=2, **how):
    """The wrapper that changes something, or the bare environment."""
    if isinstance(shift, MinAtarShiftArgs):
        return shift.world(BREAKOUT, num_envs, **how)
    stack = shift.world(CATCH, num_envs, protocol="machado", threads=0, **how)
    assert type(stack) is StackFrames
    return stack.env


@BOTH
def test_every_flag_reaches_the_environments(group):
    assert built(group("actions", every_steps=70), num_envs=3).num_envs == 3
    for when in ({"every_steps": 70}, {"at_steps": (50, 90)}, {"rate": 0.1}):
        env = built(group("actions", tasks=5, **when))
        assert type(env) is PermuteActions and env.tasks == 5
        assert env.timetable == group("actions", **when).timetable()
    env = built(group("pixels", every_steps=70, tasks=4))
    assert type(env) is PermuteObservations and (env.what, env.tasks) == ("pixels", 4)
    env = built(group("rewards", every_steps=70, values=(1.0, -2.0, 3.0)))
    assert type(env) is ScaleRewards and env.values == (1.0, -2.0, 3.0)
    assert type(built(group("sticky", every_steps=70, values=(0.1, 0.2)))) is RepeatActions


def test_games_follow_each_other():
    env = MinAtarShiftArgs("games", every_steps=70, games=("MinAtar/Freeway-v0",)).world(BREAKOUT, 2)
    assert type(env) is EnvSequence and env.tasks == 2 and env.single_observation_space.shape[0] == 7
    shift = ScreenShiftArgs("games", every_steps=70, games=("ALE/Breakout-v5",))
    assert shift.world(PONG, 1, protocol="machado", threads=0).env.single_action_space.n == 18


@BOTH
def test_environments_that_do_not_change_stay_in_the_first_task(group):
    env = built(group("rewards", every_steps=70, values=(3.0, -2.0)), changing=False)
    assert type(env) is ScaleRewards and env.timetable == NoChange() and env.values[0] == 3.0


def test_without_a_kind_there_is_no_wrapper():
    assert type(built(MinAtarShiftArgs())) is MinAtarVectorEnv
    assert built(ScreenShiftArgs()).rules == {"num_envs": 2, "sticky_action_prob": 0.25}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_protocol_s_rules_are_used(protocol):
    rules = ScreenShiftArgs().world(PONG, 1, protocol=protocol, threads=0).env.rules
    assert {name: rules[name] for name in PROTOCOLS[protocol]} == PROTOCOLS[protocol]
    threaded = ScreenShiftArgs().world(PONG, 1, protocol=protocol, threads=2).env.rules
    assert threaded["threads"] == 2 and threaded["noop_max"] == PROTOCOLS[protocol]["noop_max"]


def test_catch_has_no_no_op_starts():
    env = ScreenShiftArgs().world(CATCH, 1, protocol="classic", threads=0)
    assert env.env.rules == {"num_envs": 1, "sticky_action_prob": 0.0}


@pytest.mark.parametrize(
    ("shift", "env_id", "named"),
    [
        (MinAtarShiftArgs("games", games=("MinAtar/Freeway-v1",), every_steps=300), BREAKOUT, "all actions"),
        (MinAtarShiftArgs("games", games=("MinAtar/Frogger-v0",), every_steps=300), BREAKOUT, "Frogger"),
        (MinAtarShiftArgs("noise", values=(0.0, 3.0), every_steps=300), BREAKOUT, "probabilities"),
        (MinAtarShiftArgs("actions", tasks=1000, every_steps=300), BREAKOUT, "720 permutations"),
        (ScreenShiftArgs("modes", values=(0.0, 77.0), every_steps=300), PONG, "no mode 77"),
        (ControlShiftArgs(**{**DRIFT, "what": "mass"}, every_steps=300), CARTPOLE, "no number 'mass'.*masscart"),
        (ControlShiftArgs("physics", what="mass", values=(1, 2), rate=0.1), CARTPOLE, "no number 'mass'.*masscart"),
        (ControlShiftArgs("actions", tasks=3, every_steps=300), CARTPOLE, "2 permutations"),
        (ControlShiftArgs("gains", scale=20.0, every_steps=300), CARTPOLE, "at most 12.8"),
        (ControlShiftArgs("offsets", tasks=1, every_steps=300), CARTPOLE, "one task"),
        (ControlShiftArgs("offsets", every_steps=300), "CartPool-v1", "CartPole"),
    ],
)
def test_what_an_environment_refuses_names_the_flags(shift, env_id, named):
    how = {"protocol": "machado", "threads": 0} if isinstance(shift, ScreenShiftArgs) else {}
    with pytest.raises(ValueError, match=f"^--env-id, --shift: .*{named}"):
        shift.world(env_id, 1, **how)


def test_an_unknown_game_without_shifts_does_not_mention_them():
    with pytest.raises(ValueError, match="Brakeout") as caught:
        MinAtarShiftArgs().world("MinAtar/Brakeout-v1", 1)
    assert "--shift" not in str(caught.value)
    with pytest.raises(ValueError, match="CartPool") as caught:
        ControlShiftArgs().world("CartPool-v1", 1)
    assert "--shift" not in str(caught.value)


# subclasses


@dataclass(frozen=True)
class OtherDefaults(MinAtarShiftArgs):
    """A script's own defaults."""

    tasks: int = 5


def test_a_subclass_is_compared_with_its_own_defaults():
    check(OtherDefaults())
    refused(OtherDefaults(tasks=2), "--shift.tasks 2")
    assert OtherDefaults("actions", every_steps=9).world(BREAKOUT, 1).tasks == 5


def test_reject_unused_names_the_flag_the_value_and_the_reason():
    with pytest.raises(ValueError, match=r"--shift\.at-steps \(3,\) has no effect with this; drop it"):
        reject_unused("shift", MinAtarShiftArgs(at_steps=(3,)), ["rate", "at_steps"], "with this")
    reject_unused("shift", MinAtarShiftArgs(at_steps=(3,)), ["rate"], "with this")


@BOTH
def test_the_kind_comes_first_so_presets_can_leave_its_name_out(group):
    assert group("actions").kind == "actions"
    assert [field.name for field in dataclasses.fields(group)] == [
        "kind", "every_steps", "at_steps", "rate", "games", "tasks", "values"
    ]  # fmt: skip


def test_control_has_these_flags():
    shift = ControlShiftArgs("offsets")
    assert dataclasses.asdict(shift) == {
        "kind": "offsets", "every_steps": 0, "at_steps": (), "rate": 0.0, "tasks": 2, "values": (), "scale": 2.0,
        "what": "", "drift": False,
    }  # fmt: skip
    assert [field.name for field in dataclasses.fields(shift)][:4] == ["kind", "every_steps", "at_steps", "rate"]


def test_environments_of_flags_can_be_played():
    env = MinAtarShiftArgs("channels", at_steps=(6,)).world(BREAKOUT, 2)
    env.reset(seed=1)
    infos = [env.step(np.zeros(2, dtype=int))[-1] for _ in range(3)]
    assert infos[2]["shift"]["channels"]["task"] == 1
