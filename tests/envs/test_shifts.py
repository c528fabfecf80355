"""Shifts: how a change happens, and what holds for every wrapper; on an echo environment and on MinAtar."""

from __future__ import annotations

import copy

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.minatar import MinAtarVectorEnv
from envs.shifts import (
    CorruptObservations,
    EnvSequence,
    PermuteActions,
    PermuteObservations,
    RepeatActions,
    ScaleRewards,
)
from envs.timetables import AtRandom, AtSteps, EverySteps, NoChange
from tests.envs.echo import EchoEnv
from tests.envs.rollouts import equal, play
from tests.envs.single import SingleEnv

BREAKOUT = "MinAtar/Breakout-v0"


def sequence(timetable, **echo):
    return EnvSequence([EchoEnv(**echo), EchoEnv(**{**echo, "channels": 3, "mark": 5})], timetable)


WRAPPERS = {
    "env": lambda env, when: EnvSequence([env, copy.deepcopy(env)], when),
    "actions": lambda env, when: PermuteActions(env, when, tasks=2),
    "channels": lambda env, when: PermuteObservations(env, when, tasks=2),
    "pixels": lambda env, when: PermuteObservations(env, when, tasks=2, what="pixels"),
    "rewards": lambda env, when: ScaleRewards(env, when, values=(1.0, -2.0)),
    "sticky": lambda env, when: RepeatActions(env, when, values=(0.0, 0.5)),
    "noise": lambda env, when: CorruptObservations(env, when, values=(0.0, 0.3)),
}


def test_a_change_truncates_all_episodes_and_returns_the_first_observation_of_the_new_task():
    env = sequence(EverySteps(6), num_envs=2, length=10)
    obs, infos = env.reset(seed=1)
    assert infos["shift"] == {"env": {"task": 0, "changes": 0, "step": 0, "changed": False}}
    assert obs.shape == (2, 3, 2, 2) and obs[0, :, 0, 0].tolist() == [0, 10, 0]  # padded with zeros
    for step in (1, 2):
        obs, rewards, terminated, truncated, infos = env.step(np.array([3, 1]))
        assert not terminated.any() and not truncated.any() and infos == {}
        assert obs[:, 0, 0, 1].tolist() == [step, step] and rewards.tolist() == [3.0, 1.0]
    obs, rewards, terminated, truncated, infos = env.step(np.array([2, 1]))  # 6 agent steps
    assert truncated.all() and not terminated.any()
    assert infos["shift"] == {"env": {"task": 1, "changes": 1, "step": 6, "changed": True}}
    assert infos["final_obs"][:, 0, 0, 1].tolist() == [3, 3] and infos["final_obs"][:, 0, 1, 0].tolist() == [2, 1]
    assert infos["final_obs"][0, :, 0, 0].tolist() == [0, 10, 0]
    assert obs[0, :, 0, 0].tolist() == [5, 15, 25] and (obs[:, :, 0, 1] == 0).all()
    assert infos["episode"]["r"].tolist() == [8.0, 3.0] and infos["episode"]["l"].tolist() == [3, 3]
    assert infos["_episode"].all() and infos["_final_obs"].all() and rewards.tolist() == [2.0, 1.0]
    tasks = [env.task]
    for _ in range(9):
        infos = env.step(np.array([0, 0]))[-1]
        if "shift" in infos:
            tasks.append(infos["shift"]["env"]["task"])
    assert tasks == [1, 0, 1, 0] and env.steps == 24


@pytest.mark.parametrize("truncates", [False, True])
@pytest.mark.parametrize("objects", [False, True])
def test_an_episode_that_ends_on_the_step_of_a_change_keeps_its_own_ending(truncates, objects):
    env = ScaleRewards(EchoEnv(length=3, truncates=truncates, objects=objects), AtSteps([6]), values=(1.0, -2.0))
    env.reset(seed=1)
    for _ in range(2):
        env.step(np.array([1, 1]))
    obs, rewards, terminated, truncated, infos = env.step(np.array([1, 3]))
    assert terminated.tolist() == [not truncates, False] and truncated.tolist() == [truncates, True]
    assert infos["final_obs"][:, 0, 0, 1].tolist() == [3, 3]  # environment 0 had been restarted within the step
    assert infos["episode"]["l"].tolist() == [3, 3] and infos["episode"]["r"].tolist() == [3.0, 5.0]
    assert rewards.tolist() == [1.0, 3.0] and (obs[:, :, 0, 1] == 0).all()  # the old factor until the end
    assert env.step(np.array([1, 3]))[1].tolist() == [-2.0, -6.0]


def test_episodes_that_end_without_a_change_report_the_learner_s_rewards():
    env = ScaleRewards(EchoEnv(length=3), NoChange(), values=(-2.0,))
    env.reset(seed=1)
    for _ in range(2):
        assert env.step(np.array([1, 1]))[-1] == {}
    _, _, terminated, truncated, infos = env.step(np.array([2, 3]))
    assert terminated.tolist() == [True, False] and not truncated.any()
    assert infos["episode"]["r"].tolist() == [-8.0, 0.0] and infos["episode"]["l"].tolist() == [3, 0]
    assert infos["_episode"].tolist() == infos["_final_obs"].tolist() == [True, False]
    infos = env.step(np.array([0, 1]))[-1]  # environment 1, whose episodes are one step longer
    assert infos["episode"]["r"].tolist() == [0.0, -12.0] and infos["episode"]["l"].tolist() == [0, 4]


def test_several_changes_in_one_step_are_counted_and_made_at_once():
    env = sequence(AtRandom(1.0), num_envs=3)  # due after every agent step: three a step
    env.reset(seed=1)
    infos = env.step(np.zeros(3, dtype=int))[-1]
    assert infos["shift"]["env"] == {"task": 1, "changes": 3, "step": 3, "changed": True}
    infos = env.step(np.zeros(3, dtype=int))[-1]
    assert infos["shift"]["env"] == {"task": 0, "changes": 6, "step": 6, "changed": True}


def test_nested_wrappers_each_follow_their_own_timetable():
    env = PermuteActions(EchoEnv(length=100), AtSteps([4]), tasks=2)
    env = ScaleRewards(env, AtSteps([8]), values=(1.0, -1.0))
    assert set(env.reset(seed=1)[1]["shift"]) == {"actions", "rewards"}
    order = {}
    for step in range(1, 6):
        _, rewards, _, truncated, infos = env.step(np.array([1, 2]))
        assert truncated.tolist() == [step in (2, 4)] * 2, step
        if step == 2:
            assert infos["shift"] == {
                "actions": {"task": 1, "changes": 1, "step": 4, "changed": True},
                "rewards": {"task": 0, "changes": 0, "step": 0, "changed": False},
            }
            assert infos["episode"]["r"].tolist() == [2.0, 4.0]
        if step == 4:
            assert infos["shift"] == {
                "actions": {"task": 1, "changes": 1, "step": 4, "changed": False},
                "rewards": {"task": 1, "changes": 1, "step": 8, "changed": True},
            }
        order[step] = rewards.tolist()
    assert order[1] == order[2] == [1.0, 2.0] and order[3] == order[4] != order[1]
    assert order[5] == [-r for r in order[4]]


def test_a_reset_without_a_seed_keeps_the_task():
    env = sequence(EverySteps(6), length=100)
    env.reset(seed=1)
    play(env, 4, start=False)
    assert (env.task, env.steps) == (1, 8)
    obs, infos = env.reset()
    assert infos["shift"]["env"] == {"task": 1, "changes": 1, "step": 6, "changed": False} and obs[0, 0, 0, 0] == 5
    infos = env.step(np.zeros(2, dtype=int))[-1]
    assert infos == {}
    infos = env.step(np.zeros(2, dtype=int))[-1]
    assert infos["shift"]["env"]["changes"] == 2 and infos["episode"]["l"].tolist() == [2, 2]
    env.reset(seed=1)
    assert (env.task, env.steps) == (0, 0)


@pytest.mark.parametrize("name", WRAPPERS)
def test_without_a_change_it_equals_the_bare_environment_bit_for_bit(name):
    bare, env = MinAtarVectorEnv(BREAKOUT, 3), WRAPPERS[name](MinAtarVectorEnv(BREAKOUT, 3), NoChange())
    theirs, ours = play(bare, 300), play(env, 300)
    assert any("episode" in out[-1] for out in theirs)
    for a, b in zip(theirs[1:], ours[1:], strict=True):
        assert equal(a, b)
    assert np.array_equal(theirs[0][0], ours[0][0])


@pytest.mark.parametrize("name", WRAPPERS)
def test_gymnasium_s_check_env_passes(name):
    env = SingleEnv(WRAPPERS[name](MinAtarVectorEnv(BREAKOUT), EverySteps(7)))
    env.spec = gymnasium.envs.registration.EnvSpec(id="Changing-v0")
    check_env(env, skip_render_check=True, skip_close_check=True)


@pytest.mark.parametrize("when", [EverySteps(40), AtRandom(0.02)], ids=["every", "random"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_saved_environment_continues_exactly(name, when):
    make = lambda: WRAPPERS[name](MinAtarVectorEnv(BREAKOUT, 2), when)  # noqa: E731
    env = make()
    play(env, 37)
    state = copy.deepcopy(env.state_dict())
    ahead = play(env, 150, seed=8, start=False)
    other = make()
    other.load_state_dict(state)
    assert np.array_equal(other.observation(), state["obs"])
    assert equal(ahead, play(other, 150, seed=8, start=False))
    assert sum("shift" in out[-1] for out in ahead) >= 3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(WRAPPERS)))
def test_equal_seeds_give_equal_results(seed, name):
    env = WRAPPERS[name](MinAtarVectorEnv(BREAKOUT, 2), AtRandom(0.05))
    assert equal(play(env, 40, seed=seed), play(env, 40, seed=seed))


@pytest.mark.parametrize(
    "env",
    [
        PermuteActions(EchoEnv(), EverySteps(9), tasks=3),
        PermuteObservations(EchoEnv(), EverySteps(9), tasks=3, what="pixels"),
        ScaleRewards(EchoEnv(), EverySteps(9), values=(1.0, 2.0, 3.0)),
        RepeatActions(EchoEnv(), EverySteps(9), values=(0.1, 0.2, 0.3)),
        CorruptObservations(EchoEnv(), EverySteps(9), values=(0.1, 0.2, 0.3)),
        EnvSequence([EchoEnv(), EchoEnv(), EchoEnv()], EverySteps(9)),
    ],
    ids=lambda env: env.name,
)
def test_a_frozen_copy_is_built_with_the_same_arguments(env):
    env.reset(seed=1)
    frozen = env.frozen_copy(lambda bare: EchoEnv(4))
    assert type(frozen) is type(env) and frozen.num_envs == 4 and frozen.tasks == 3
    assert frozen.state_dict()["built"] == {**env.state_dict()["built"], "timetable": "NoChange()"}


def test_returned_arrays_are_safe_to_keep():
    env = WRAPPERS["channels"](EchoEnv(), NoChange())
    obs = env.reset(seed=1)[0]
    kept = obs.copy()
    obs[:] = 77
    assert np.array_equal(env.observation(), kept)
    out = env.step(np.array([1, 1]))[0]
    before = out.copy()
    env.step(np.array([2, 2]))
    assert np.array_equal(out, before)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_frozen_copy_of_another_task_has_that_task_s_settings(name):
    env = WRAPPERS[name](MinAtarVectorEnv(BREAKOUT, 2), AtSteps([20]))
    assert env.last_change is None
    play(env, 5, seed=3)
    ahead = env.frozen_copy(lambda bare: MinAtarVectorEnv(BREAKOUT, 5), task=1)
    play(env, 15, seed=None)
    assert env.task == 1 and env.last_change == 20
    there, back = (env.frozen_copy(lambda bare: MinAtarVectorEnv(BREAKOUT, 5), task=task) for task in (None, 0))
    first, same, other = (play(frozen, 30, seed=7)[1:] for frozen in (ahead, there, back))
    alike, differ = (
        [np.array_equal(x[0], y[0]) and np.array_equal(x[1], y[1]) for x, y in zip(first, one, strict=True)]
        for one in (same, other)
    )
    assert (ahead.task, there.task, back.task) == (1, 1, 0) and all(alike)
    assert all(differ) == (name == "env")  # whose copies are all of one game
    with pytest.raises(ValueError, match=f"^there is no task 2: the tasks of {type(env).__name__} are 0 to 1$"):
        env.frozen_copy(lambda bare: bare, task=2)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_frozen_copy_stays_in_the_present_task(name):
    inner = WRAPPERS[name](MinAtarVectorEnv(BREAKOUT, 2), AtSteps([20]))
    env = PermuteObservations(inner, AtSteps([30]), what="channels" if name == "pixels" else "pixels")
    play(env, 25, seed=3)
    assert env.task == env.env.task == 1
    frozen = env.frozen_copy(lambda bare: MinAtarVectorEnv(BREAKOUT, 5))
    assert frozen.num_envs == 5 and frozen.single_observation_space == env.single_observation_space
    out = play(frozen, 100, seed=77)
    assert not any("shift" in one[-1] for one in out[1:])
    assert {key: value["task"] for key, value in out[0][1]["shift"].items()} == {env.env.name: 1, env.name: 1}
    assert env.env.name != env.name
    assert np.array_equal(frozen._order, env._order)
    for attribute in ("_order", "_factor", "_probability"):
        if hasattr(env.env, attribute):
            assert np.array_equal(getattr(frozen.env, attribute), getattr(env.env, attribute)), attribute
    again = frozen.frozen_copy(lambda bare: MinAtarVectorEnv(BREAKOUT, 3))
    again.reset(seed=78)
    assert again.task == 1 and np.array_equal(again._order, env._order)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PermuteActions(EchoEnv(num_envs=8), EverySteps(7)), "7 agent steps apart"),
        (lambda: PermuteActions(EchoEnv(), EverySteps(7), tasks=1), "one task"),
        (lambda: PermuteActions(EchoEnv(), AtRandom(0.1), tasks=1), "one task"),
        (lambda: PermuteActions(EchoEnv(), NoChange(), tasks=0), "at least one task"),
        (lambda: PermuteObservations(EchoEnv(), NoChange(), what="colours"), "must be channels or pixels"),
        (lambda: PermuteObservations(EchoEnv(channels=2), EverySteps(9), tasks=3), "2 things have 2 permutations"),
        (lambda: ScaleRewards(EchoEnv(), EverySteps(9), values=(1.0, np.inf)), "finite"),
        (lambda: ScaleRewards(EchoEnv(), NoChange(), values=()), "at least one task"),
        (lambda: RepeatActions(EchoEnv(), EverySteps(9), values=(0.0, 1.2)), "probabilities"),
        (lambda: CorruptObservations(EchoEnv(), EverySteps(9), values=(0.0, -0.1)), "probabilities"),
        (lambda: EnvSequence([], NoChange()), "at least one environment"),
        (lambda: EnvSequence([EchoEnv(2), EchoEnv(3)], EverySteps(9)), "got 2 and 3"),
        (lambda: EnvSequence([EchoEnv(), EchoEnv(actions=5)], EverySteps(9)), "all actions"),
        (
            lambda: EnvSequence([MinAtarVectorEnv(BREAKOUT), EchoEnv(1, actions=6)], EverySteps(9)),
            "more than their channels",
        ),
        (lambda: PermuteActions(next_step_env(), NoChange()), "SAME_STEP"),
        (
            lambda: PermuteActions(ScaleRewards(PermuteActions(EchoEnv(), NoChange()), NoChange(), (1.0,)), NoChange()),
            "'actions' already changes",
        ),
        (lambda: EnvSequence([EchoEnv(1, actions=2), next_step_env()], EverySteps(9)), "SAME_STEP"),
    ],
)
def test_invalid_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def next_step_env():
    return SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")], autoreset_mode=AutoresetMode.NEXT_STEP)


def test_invalid_calls_raise():
    env = WRAPPERS["actions"](EchoEnv(), NoChange())
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.array([0, 0]))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.observation()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.frozen_copy(lambda bare: bare)
    with pytest.raises(ValueError, match="restart within the step"):
        env.reset(options={"reset_mask": np.ones(2, dtype=bool)})
    with pytest.raises(ValueError, match="one for every environment"):
        env.reset(seed=[1, None])
    env.reset(seed=[1, 2])
    for actions, message in (([0, 4], "0 .. 3"), ([-1, 0], "0 .. 3"), ([0], "shape"), ([0.5, 1], "integers")):
        with pytest.raises(ValueError, match=message):
            env.step(np.array(actions))


def test_the_state_of_another_environment_is_refused():
    state = WRAPPERS["actions"](EchoEnv(), EverySteps(9)).state_dict()
    for other, message in (
        (WRAPPERS["rewards"](EchoEnv(), EverySteps(9)), "name: actions saved, rewards here"),
        (WRAPPERS["actions"](EchoEnv(), EverySteps(10)), "period=9"),
        (PermuteActions(EchoEnv(), EverySteps(9), tasks=3), "tasks: 2 saved, 3 here"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
    state = ScaleRewards(EchoEnv(), AtSteps([9]), values=(1.0, 2.0)).state_dict()
    with pytest.raises(ValueError, match=r"values: \(1.0, 2.0\) saved, \(1.0, 3.0\) here"):
        ScaleRewards(EchoEnv(), AtSteps((9,)), values=(1.0, 3.0)).load_state_dict(state)
    ScaleRewards(EchoEnv(), AtSteps((9,)), values=(1.0, 2.0)).load_state_dict(state)
    cartpole = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(TypeError, match="SyncVectorEnv has no state_dict"):
        ScaleRewards(cartpole, NoChange(), values=(1.0,)).state_dict()


def test_gymnasiums_own_environments_can_be_wrapped():
    """Their final observations are object arrays, and observations are floats."""
    make = lambda: SyncVectorEnv(  # noqa: E731
        [lambda: gymnasium.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    bare, env = make(), ScaleRewards(make(), AtSteps([100]), values=(1.0, 3.0))
    theirs, ours = play(bare, 120), play(env, 120)
    for a, b in zip(theirs[1:50], ours[1:50], strict=True):
        assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
        if "final_obs" in a[-1]:
            for i in np.flatnonzero(a[-1]["_final_obs"]):
                assert np.array_equal(a[-1]["final_obs"][i], b[-1]["final_obs"][i])
    assert ours[50][3].any() and set(ours[60][1]) == {3.0}


@pytest.mark.parametrize("name", WRAPPERS)
def test_random_changes_do_not_depend_on_the_actions(name):
    when = []
    for seed in (1, 2):
        env = WRAPPERS[name](MinAtarVectorEnv(BREAKOUT, 2), AtRandom(0.01))
        env.reset(seed=7)
        out = play(env, 400, seed=seed, start=False)
        when.append([one[-1]["shift"][env.name]["step"] for one in out if "shift" in one[-1]])
    assert when[0] == when[1] and len(when[0]) >= 3


def test_infos_after_a_change_are_of_the_new_episodes():
    class Lives(EchoEnv):
        def reset(self, **kwargs):
            return super().reset(**kwargs)[0], {"lives": np.full(2, 3)}

        def step(self, actions):
            *out, infos = super().step(actions)
            return *out, {**infos, "lives": np.full(2, 1)}

    env = ScaleRewards(Lives(length=100), AtSteps([4]), values=(1.0, 2.0))
    env.reset(seed=1)
    assert env.step(np.array([0, 0]))[-1]["lives"].tolist() == [1, 1]
    infos = env.step(np.array([0, 0]))[-1]
    assert infos["lives"].tolist() == [3, 3] and infos["final_obs"][:, 0, 0, 1].tolist() == [2, 2]


def test_final_observations_are_correct_with_an_environment_that_reuses_its_array():
    """The new task's first observation must not overwrite the old one's last."""

    class Reuse(EchoEnv):
        def seen(self):
            if not hasattr(self, "array"):
                self.array = super().seen()
            self.array[:] = super().seen()
            return self.array

    env = ScaleRewards(Reuse(length=100), AtSteps([4]), values=(1.0, 2.0))
    env.reset(seed=1)
    env.step(np.array([3, 3]))
    assert env.step(np.array([3, 3]))[-1]["final_obs"][:, 0, 0, 1].tolist() == [2, 2]


def test_a_frozen_copy_stays_frozen_when_its_state_is_loaded():
    env = PermuteActions(MinAtarVectorEnv(BREAKOUT, 2), AtSteps([4]), tasks=2)
    play(env, 5, seed=3)
    frozen = env.frozen_copy(lambda bare: MinAtarVectorEnv(BREAKOUT, 2))
    frozen.reset(seed=9)
    other = PermuteActions(MinAtarVectorEnv(BREAKOUT, 2), NoChange(), tasks=2)
    other.load_state_dict(frozen.state_dict())
    assert np.array_equal(other._order, env._order) and other.task == 1
