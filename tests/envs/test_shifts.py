"""Worlds that change: every wrapper on an echo environment and on MinAtar."""

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
from envs.single import SingleEnv
from envs.timetables import AtRandom, AtSteps, EverySteps, NoChange
from tests.envs.echo import EchoEnv

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


def play(env, steps, seed=3, start=True):
    """Everything that comes back, under actions of a stream of its own."""
    rng, out = np.random.default_rng(seed), []
    if start:
        out.append(env.reset(seed=seed))
    for _ in range(steps):
        out.append(env.step(rng.integers(env.single_action_space.n, size=env.num_envs)))
    return out


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(equal, a, b))
    return np.array_equal(a, b)


# when a change happens


def test_a_change_truncates_all_and_shows_the_last_of_the_old_and_the_first_of_the_new():
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
def test_an_episode_that_ends_on_the_step_of_a_change_ends_as_it_did(truncates, objects):
    env = ScaleRewards(EchoEnv(length=3, truncates=truncates, objects=objects), AtSteps([6]), values=(1.0, -2.0))
    env.reset(seed=1)
    for _ in range(2):
        env.step(np.array([1, 1]))
    obs, rewards, terminated, truncated, infos = env.step(np.array([1, 3]))
    assert terminated.tolist() == [not truncates, False] and truncated.tolist() == [truncates, True]
    assert infos["final_obs"][:, 0, 0, 1].tolist() == [3, 3]  # copy 0 had been restarted within the step
    assert infos["episode"]["l"].tolist() == [3, 3] and infos["episode"]["r"].tolist() == [3.0, 5.0]
    assert rewards.tolist() == [1.0, 3.0] and (obs[:, :, 0, 1] == 0).all()  # the old factor until the end
    assert env.step(np.array([1, 3]))[1].tolist() == [-2.0, -6.0]


def test_ends_without_a_change_are_reported_in_the_learners_rewards():
    env = ScaleRewards(EchoEnv(length=3), NoChange(), values=(-2.0,))
    env.reset(seed=1)
    for _ in range(2):
        assert env.step(np.array([1, 1]))[-1] == {}
    _, _, terminated, truncated, infos = env.step(np.array([2, 3]))
    assert terminated.tolist() == [True, False] and not truncated.any()
    assert infos["episode"]["r"].tolist() == [-8.0, 0.0] and infos["episode"]["l"].tolist() == [3, 0]
    assert infos["_episode"].tolist() == infos["_final_obs"].tolist() == [True, False]
    infos = env.step(np.array([0, 1]))[-1]  # copy 1, whose episodes are one longer
    assert infos["episode"]["r"].tolist() == [0.0, -12.0] and infos["episode"]["l"].tolist() == [0, 4]


def test_changes_that_fall_into_one_step_are_counted_but_made_once():
    env = sequence(AtRandom(1.0), num_envs=3)  # due after every agent step: three a step
    env.reset(seed=1)
    infos = env.step(np.zeros(3, dtype=int))[-1]
    assert infos["shift"]["env"] == {"task": 1, "changes": 3, "step": 3, "changed": True}
    infos = env.step(np.zeros(3, dtype=int))[-1]
    assert infos["shift"]["env"] == {"task": 0, "changes": 6, "step": 6, "changed": True}


def test_wrappers_nest_and_each_keeps_its_own_time():
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


def test_resets_between_changes_leave_the_world_as_it_is():
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


# what changes


def test_actions_are_permuted_and_come_back():
    env = PermuteActions(EchoEnv(num_envs=4, length=1000), EverySteps(4), tasks=3)
    env.reset(seed=5)
    maps = []
    for _ in range(7):
        obs = env.step(np.arange(4))
        maps.append(tuple(obs[1].astype(int)))  # rewards are the executed actions
    assert maps[0] == (0, 1, 2, 3) and all(sorted(m) == [0, 1, 2, 3] for m in maps)
    assert len(set(maps[:3])) == 3 and maps[3:6] == maps[:3] and maps[6] == maps[0]


def test_all_permutations_of_few_things_can_be_asked_for_and_no_more():
    env = PermuteActions(EchoEnv(num_envs=3, actions=3, length=1000), EverySteps(3), tasks=6)
    env.reset(seed=5)
    assert len({tuple(env.step(np.arange(3))[1]) for _ in range(6)}) == 6
    with pytest.raises(ValueError, match="7 tasks, but 3 things have 6"):
        PermuteActions(EchoEnv(actions=3), EverySteps(3), tasks=7)


def test_permutations_follow_from_the_seed_alone():
    def maps(seed, tasks, timetable):
        env = PermuteActions(EchoEnv(num_envs=4, length=1000), timetable, tasks=tasks)
        env.reset(seed=seed)
        return [tuple(env.step(np.arange(4))[1]) for _ in range(12)]

    assert maps(1, 3, EverySteps(4))[:3] == maps(1, 5, EverySteps(4))[:3]
    assert maps(1, 3, EverySteps(4))[:3] == maps(1, 3, EverySteps(8))[0:6:2]
    assert maps(1, 3, EverySteps(4)) != maps(2, 3, EverySteps(4))


def test_channels_and_pixels_are_permuted():
    for what, shape in (("channels", (6, 2, 2)), ("pixels", (2, 2, 2))):
        env = PermuteObservations(EchoEnv(channels=shape[0], length=1000), EverySteps(2), tasks=2, what=what)
        before = env.reset(seed=2)[0]
        after = env.step(np.array([0, 0]))[0]
        inner = env.env.seen()
        assert not np.array_equal(after, inner)
        for i in range(2):
            moved = after[i] if what == "channels" else after[i].reshape(shape[0], -1).T
            original = inner[i] if what == "channels" else inner[i].reshape(shape[0], -1).T
            assert sorted(map(bytes, moved)) == sorted(map(bytes, original))
        assert np.array_equal(before, EchoEnv(channels=shape[0]).seen())
        assert env.observation_space.contains(after)


def test_the_last_observation_of_an_episode_is_changed_alike():
    bare, env = EchoEnv(channels=4, length=3), PermuteObservations(EchoEnv(channels=4, length=3), AtSteps([2]), tasks=2)
    env.reset(seed=2)
    first = env.step(np.array([0, 0]))[-1]["final_obs"]
    assert first[0, :, 0, 0].tolist() == [0, 10, 20, 30]  # of the old world
    order = (env.observation()[0, :, 0, 0] // 10).tolist()
    assert order != [0, 1, 2, 3]
    bare.reset()
    for _ in range(3):
        ours, theirs = env.step(np.array([1, 2])), bare.step(np.array([1, 2]))
    assert np.array_equal(ours[-1]["final_obs"], theirs[-1]["final_obs"][:, order])
    assert np.array_equal(ours[0], theirs[0][:, order])


def test_sticky_actions_repeat_what_was_executed_but_never_across_episodes():
    env = RepeatActions(EchoEnv(num_envs=500, length=10_000), NoChange(), values=(0.3,))
    env.reset(seed=1)
    previous, rng, repeated = None, np.random.default_rng(0), []
    for step in range(40):
        chosen = rng.integers(4, size=500)
        executed = env.step(chosen)[1].astype(int)
        if step == 0:
            assert np.array_equal(executed, chosen)
        else:
            differ = chosen != previous
            assert np.array_equal(executed[differ & (executed != chosen)], previous[differ & (executed != chosen)])
            repeated.append((executed[differ] == previous[differ]).mean())
        previous = executed
    assert abs(np.mean(repeated) - 0.3) < 0.02
    env = RepeatActions(EchoEnv(num_envs=2, length=1), NoChange(), values=(1.0,))
    env.reset(seed=1)
    assert env.step(np.array([1, 1]))[1].tolist() == [1.0, 1.0]
    assert env.step(np.array([2, 2]))[1].tolist() == [2.0, 1.0]  # copy 0 has begun a new episode


def test_noise_replaces_entries_with_the_given_probability():
    env = CorruptObservations(EchoEnv(num_envs=400, channels=20, length=3), EverySteps(400), values=(0.0, 0.25))
    obs = env.reset(seed=1)[0]
    assert np.array_equal(obs, env.env.seen())
    obs, *_, infos = env.step(np.zeros(400, dtype=int))
    share = (obs != env.env.seen()).mean()
    assert abs(share - 0.25 * 255 / 256) < 0.01
    assert np.array_equal(infos["final_obs"][:, :, 0, 0], env.env.seen()[:, :, 0, 0])  # of the old, quiet world
    other = env.step(np.zeros(400, dtype=int))[0]
    assert np.array_equal(other, env.env.seen())  # back to 0


def test_noise_on_zeros_and_ones_flips_half_of_the_replaced_entries():
    env = CorruptObservations(MinAtarVectorEnv(BREAKOUT, 50), NoChange(), values=(0.4,))
    obs = env.reset(seed=1)[0]
    assert obs.max() == 1 and abs((obs != env.env.observation()).mean() - 0.2) < 0.02
    for _ in range(200):
        obs, *_, infos = env.step(np.ones(50, dtype=int))
        assert env.observation_space.contains(obs)
        if "final_obs" in infos:
            going = ~infos["_final_obs"]
            assert np.array_equal(infos["final_obs"][going], obs[going])
    assert np.array_equal(env.observation(), obs)


def test_a_sequence_gives_each_game_its_own_stream_and_takes_it_up_again():
    env = EnvSequence([EchoEnv(), EchoEnv(mark=5)], EverySteps(4))
    env.reset(seed=9)
    play(env, 5, start=False)
    assert [e.seeds for e in env._envs] == [[9, None], [9, None]]
    env.close()
    assert all(e.closed_by_us for e in env._envs)


# all wrappers


@pytest.mark.parametrize("name", WRAPPERS)
def test_without_a_change_it_is_the_bare_environment_bit_for_bit(name):
    bare, env = MinAtarVectorEnv(BREAKOUT, 3), WRAPPERS[name](MinAtarVectorEnv(BREAKOUT, 3), NoChange())
    theirs, ours = play(bare, 300), play(env, 300)
    assert any("episode" in out[-1] for out in theirs)
    for a, b in zip(theirs[1:], ours[1:], strict=True):
        assert equal(a, b)
    assert np.array_equal(theirs[0][0], ours[0][0])


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_check_of_gymnasium_passes(name):
    env = SingleEnv(WRAPPERS[name](MinAtarVectorEnv(BREAKOUT), EverySteps(7)))
    env.spec = gymnasium.envs.registration.EnvSpec(id="Changing-v0")
    check_env(env, skip_render_check=True, skip_close_check=True)


@pytest.mark.parametrize("when", [EverySteps(40), AtRandom(0.02)], ids=["every", "random"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_saved_in_the_middle_it_continues_exactly(name, when):
    make = lambda: WRAPPERS[name](MinAtarVectorEnv(BREAKOUT, 2), when)  # noqa: E731
    env = make()
    play(env, 37)
    state = copy.deepcopy(env.state_dict())
    ahead = play(env, 150, seed=8, start=False)
    other = make()
    other.load_state_dict(state)
    assert np.array_equal(other.observation(), make_observation(state))
    assert equal(ahead, play(other, 150, seed=8, start=False))
    assert sum("shift" in out[-1] for out in ahead) >= 3


def make_observation(state):
    return state["obs"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(WRAPPERS)))
def test_a_seed_fixes_everything(seed, name):
    env = WRAPPERS[name](MinAtarVectorEnv(BREAKOUT, 2), AtRandom(0.05))
    assert equal(play(env, 40, seed=seed), play(env, 40, seed=seed))


@pytest.mark.parametrize("name", WRAPPERS)
def test_constructor_arguments_are_recorded(name):
    env = WRAPPERS[name](EchoEnv(), EverySteps(10))
    assert env._saved_kwargs["timetable"] == EverySteps(10)
    again = type(env)(**{k: v for k, v in env._saved_kwargs.items()})
    assert again.tasks == 2


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
def test_a_pinned_copy_stays_in_the_present_task(name):
    inner = WRAPPERS[name](MinAtarVectorEnv(BREAKOUT, 2), AtSteps([20]))
    env = PermuteObservations(inner, AtSteps([30]), what="channels" if name == "pixels" else "pixels")
    play(env, 25, seed=3)
    assert env.task == env.env.task == 1
    pinned = env.pinned(lambda bare: bare.copies(5))
    assert pinned.num_envs == 5 and pinned.single_observation_space == env.single_observation_space
    out = play(pinned, 100, seed=77)
    assert not any("shift" in one[-1] for one in out[1:])
    assert {key: value["task"] for key, value in out[0][1]["shift"].items()} == {env.env.name: 1, env.name: 1}
    assert env.env.name != env.name
    assert np.array_equal(pinned._order, env._order)
    for attribute in ("_order", "_factor", "_probability"):
        if hasattr(env.env, attribute):
            assert np.array_equal(getattr(pinned.env, attribute), getattr(env.env, attribute)), attribute
    again = pinned.pinned(lambda bare: bare.copies(3))
    again.reset(seed=78)
    assert again.task == 1 and np.array_equal(again._order, env._order)


# refusals


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: PermuteActions(EchoEnv(num_envs=8), EverySteps(7)), "7 agent steps apart"),
        (lambda: PermuteActions(EchoEnv(), EverySteps(7), tasks=1), "one task"),
        (lambda: PermuteActions(EchoEnv(), AtRandom(0.1), tasks=1), "one task"),
        (lambda: PermuteActions(EchoEnv(), NoChange(), tasks=0), "at least one task"),
        (lambda: PermuteObservations(EchoEnv(), NoChange(), what="colours"), "channels or pixels"),
        (lambda: PermuteObservations(EchoEnv(channels=2), EverySteps(9), tasks=3), "2 things have 2 permutations"),
        (lambda: ScaleRewards(EchoEnv(), EverySteps(9), values=(1.0, np.inf)), "finite"),
        (lambda: ScaleRewards(EchoEnv(), NoChange(), values=()), "at least one task"),
        (lambda: RepeatActions(EchoEnv(), EverySteps(9), values=(0.0, 1.2)), "probabilities"),
        (lambda: CorruptObservations(EchoEnv(), EverySteps(9), values=(0.0, -0.1)), "probabilities"),
        (lambda: EnvSequence([], NoChange()), "at least one environment"),
        (lambda: EnvSequence([EchoEnv(2), EchoEnv(3)], EverySteps(9)), "2 and of 3 copies"),
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
def test_what_cannot_be_done_is_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def next_step_env():
    return SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")], autoreset_mode=AutoresetMode.NEXT_STEP)


def test_bad_calls_are_refused():
    env = WRAPPERS["actions"](EchoEnv(), NoChange())
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.array([0, 0]))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.observation()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.pinned(lambda bare: bare)
    with pytest.raises(ValueError, match="restart within the step"):
        env.reset(options={"reset_mask": np.ones(2, dtype=bool)})
    with pytest.raises(ValueError, match="one for every copy"):
        env.reset(seed=[1, None])
    env.reset(seed=[1, 2])
    for actions, told in (([0, 4], "0 .. 3"), ([-1, 0], "0 .. 3"), ([0], "shape"), ([0.5, 1], "integers")):
        with pytest.raises(ValueError, match=told):
            env.step(np.array(actions))


def test_another_worlds_state_is_refused():
    state = WRAPPERS["actions"](EchoEnv(), EverySteps(9)).state_dict()
    for other, told in (
        (WRAPPERS["rewards"](EchoEnv(), EverySteps(9)), "name: actions saved, rewards here"),
        (WRAPPERS["actions"](EchoEnv(), EverySteps(10)), "period=9"),
        (PermuteActions(EchoEnv(), EverySteps(9), tasks=3), "tasks: 2 saved, 3 here"),
    ):
        with pytest.raises(ValueError, match=told):
            other.load_state_dict(state)
    state = ScaleRewards(EchoEnv(), AtSteps([9]), values=(1.0, 2.0)).state_dict()
    with pytest.raises(ValueError, match=r"values: \(1.0, 2.0\) saved, \(1.0, 3.0\) here"):
        ScaleRewards(EchoEnv(), AtSteps((9,)), values=(1.0, 3.0)).load_state_dict(state)
    ScaleRewards(EchoEnv(), AtSteps((9,)), values=(1.0, 2.0)).load_state_dict(state)
    cartpole = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(TypeError, match="SyncVectorEnv has no state_dict"):
        ScaleRewards(cartpole, NoChange(), values=(1.0,)).state_dict()


def test_gymnasiums_own_environments_can_be_wrapped():
    """Object arrays of final observations, float observations."""
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
def test_what_the_agent_does_does_not_decide_when_the_world_changes(name):
    when = []
    for seed in (1, 2):
        env = WRAPPERS[name](MinAtarVectorEnv(BREAKOUT, 2), AtRandom(0.01))
        env.reset(seed=7)
        out = play(env, 400, seed=seed, start=False)
        when.append([one[-1]["shift"][env.name]["step"] for one in out if "shift" in one[-1]])
    assert when[0] == when[1] and len(when[0]) >= 3


def test_the_infos_of_a_change_are_those_of_the_new_start():
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


def test_the_last_observation_is_a_copy():
    """An environment that hands out the same array every time must not write the new world over it."""

    class Reused(EchoEnv):
        def seen(self):
            if not hasattr(self, "array"):
                self.array = super().seen()
            self.array[:] = super().seen()
            return self.array

    env = ScaleRewards(Reused(length=100), AtSteps([4]), values=(1.0, 2.0))
    env.reset(seed=1)
    env.step(np.array([3, 3]))
    assert env.step(np.array([3, 3]))[-1]["final_obs"][:, 0, 0, 1].tolist() == [2, 2]


def test_a_pinned_copys_state_keeps_it_pinned():
    world = PermuteActions(MinAtarVectorEnv(BREAKOUT, 2), AtSteps([4]), tasks=2)
    play(world, 5, seed=3)
    pinned = world.pinned(lambda bare: bare.copies(2))
    pinned.reset(seed=9)
    other = PermuteActions(MinAtarVectorEnv(BREAKOUT, 2), NoChange(), tasks=2)
    other.load_state_dict(pinned.state_dict())
    assert np.array_equal(other._order, world._order) and other.task == 1


def test_a_world_that_begins_without_a_seed_begins_everywhere():
    games = [PermuteActions(EchoEnv(mark=mark), NoChange()) for mark in (0, 5)]
    env = EnvSequence(games, EverySteps(8))
    env.reset()
    assert env.pinned(lambda bare: EchoEnv(3, mark=bare.mark)).num_envs == 3
