"""Shifts of the physics, jumps and drift; on an echo environment that shows its gravity and length, and on CartPole."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from envs.control import control_env
from envs.shifts import ChangePhysics, DriftPhysics, EnvSequence, OffsetObservations, PermuteActions, ScaleRewards
from envs.timetables import AtRandom, AtSteps, EverySteps, NoChange
from runs.training.returns import Returns
from tests.envs.echo import EchoEnv, VectorEchoEnv
from tests.envs.rollouts import equal, play

CARTPOLE, GRAVITY, LENGTH = "CartPole-v1", 4, 5  # columns of the echo environment's observation


def echo(**given):
    """Two environments in float64, so that numbers come back exactly."""
    return VectorEchoEnv(**{"dtype": np.float64, "length": 100, **given})


def still(env, steps, column=GRAVITY):
    """What the observations show after each of these steps, one number per environment."""
    return [env.step(np.zeros(env.num_envs, dtype=int))[0][:, column].tolist() for _ in range(steps)]


# jumps


def test_a_change_sets_the_number_and_the_final_observation_shows_the_old_one():
    env = ChangePhysics(echo(), EverySteps(4), "gravity", (10.0, 5.0, 2.5))
    obs, infos = env.reset(seed=1)
    assert obs[:, GRAVITY].tolist() == [10, 10] and obs[:, LENGTH].tolist() == [0.5, 0.5]
    assert infos == {"shift": {"physics": {"task": 0, "changes": 0, "step": 0, "changed": False}}}
    for change, (old, new) in enumerate([(10.0, 5.0), (5.0, 2.5), (2.5, 10.0), (10.0, 5.0)], 1):
        obs, _, terminated, truncated, infos = env.step(np.array([3, 1]))
        assert not truncated.any() and infos == {} and (obs[:, GRAVITY] == old).all()
        obs, rewards, terminated, truncated, infos = env.step(np.array([3, 1]))
        assert truncated.all() and not terminated.any() and rewards.tolist() == [3.0, 1.0]
        assert infos["final_obs"].tolist() == [[0, 2, 3, 0, old, 0.5], [0, 2, 1, 1, old, 0.5]]
        assert obs.tolist() == [[0, 0, 0, 0, new, 0.5], [0, 0, 0, 1, new, 0.5]]
        report = {"task": change % 3, "changes": change, "step": 4 * change, "changed": True}
        assert infos["shift"] == {"physics": report} and infos["episode"]["l"].tolist() == [2, 2]


def test_a_reset_with_a_seed_goes_back_to_the_first_value_and_one_without_keeps_the_present_one():
    env = ChangePhysics(echo(), AtSteps([2]), "length", (0.7, 0.9))
    assert env.reset(seed=1)[0][:, LENGTH].tolist() == [0.7, 0.7]
    assert still(env, 2, LENGTH) == [[0.9, 0.9]] * 2
    assert env.reset()[0][:, LENGTH].tolist() == [0.9, 0.9]
    assert env.reset(seed=1)[0][:, LENGTH].tolist() == [0.7, 0.7] and env.task == 0


def test_other_wrappers_may_lie_between_and_every_environment_of_a_sequence_changes():
    inner = echo()
    env = ChangePhysics(PermuteActions(ScaleRewards(inner, NoChange(), (2.0,)), NoChange()), AtSteps([2]), "gravity",
                        (10.0, 3.0))  # fmt: skip
    env.reset(seed=1)
    assert still(env, 1) == [[3.0, 3.0]] and inner.numbers["gravity"] == 3.0
    games = [echo(), echo(mark=5)]
    env = ChangePhysics(EnvSequence(games, AtSteps([6])), AtSteps([4]), "gravity", (8.0, 3.0))
    env.reset(seed=1)
    assert [game.numbers["gravity"] for game in games] == [8.0, 8.0]
    assert still(env, 3) == [[8.0, 8.0], [3.0, 3.0], [3.0, 3.0]] and env.env.task == 1
    assert [game.numbers["gravity"] for game in games] == [3.0, 3.0]


def test_building_leaves_the_environment_as_it_was_and_nothing_is_set_twice():
    inner = echo()
    env = ChangePhysics(inner, AtSteps([4]), "gravity", (10.0, 3.0))
    assert inner.numbers == {"gravity": 10.0, "length": 0.5}
    inner.set.clear()
    env.reset(seed=1)
    assert inner.set == []
    still(env, 6)
    assert inner.set == [("gravity", 3.0)]


@pytest.mark.parametrize("when", [NoChange(), AtSteps([900])], ids=["never", "later"])
def test_before_a_change_it_equals_the_bare_environment_bit_for_bit(when):
    bare, env = control_env(CARTPOLE, 3), ChangePhysics(control_env(CARTPOLE, 3), when, "length", (0.5, 2.0))
    theirs, ours = play(bare, 290), play(env, 290)
    assert ours[0][0].tobytes() == theirs[0][0].tobytes()
    assert all(equal(a, b) and a[0].tobytes() == b[0].tobytes() for a, b in zip(ours[1:], theirs[1:], strict=True))


def test_cartpole_after_a_jump_is_cartpole_with_the_other_length():
    """The twin is Gymnasium's own environment, with the attribute and what follows from it set by hand."""
    env = ChangePhysics(control_env(CARTPOLE, 1), AtSteps([10]), "length", (0.5, 1.7))
    env.reset(seed=[4])
    play(env, 10, seed=1, start=False)
    twin = gymnasium.make(CARTPOLE).unwrapped
    twin.reset(seed=4)
    twin.length = 1.7
    twin.polemass_length = 0.1 * 1.7
    other = gymnasium.make(CARTPOLE).unwrapped
    other.state = twin.state = tuple(float(x) for x in np.array(env.observation()[0], dtype=np.float64))
    differ = 0.0
    start = env.state_dict()
    for action in (0, 1, 1, 0, 1, 0, 0, 1):
        obs = env.step(np.array([action]))[0][0]
        np.testing.assert_allclose(obs, twin.step(action)[0], rtol=1e-4, atol=1e-6)
        differ = max(differ, float(np.abs(obs - other.step(action)[0]).max()))
    assert differ > 0.01 and start["changes"] == 1


# drift


def line(values, period, n):
    """The value after n agent steps, by the formula of the documentation."""
    leg, along = n // period, n % period
    start, end = values[leg % len(values)], values[(leg + 1) % len(values)]
    return start + (end - start) * along / period


def test_the_number_drifts_in_a_straight_line_and_back_to_the_first_value():
    """By hand: two environments make 2 agent steps, so a period of 8 is four steps from value to value."""
    env = DriftPhysics(echo(), 8, "gravity", (10.0, 6.0))
    assert env.reset(seed=1)[0][:, GRAVITY].tolist() == [10, 10]
    shown = still(env, 17)  # an observation shows the number that was used in its step
    assert shown == [[g, g] for g in [10, 9, 8, 7, 6, 7, 8, 9, 10, 9, 8, 7, 6, 7, 8, 9, 10]]
    assert env.value == 9.0 and env.env.numbers["gravity"] == 9.0


@pytest.mark.parametrize(("values", "period"), [((10.0, 4.0, 7.0), 12), ((1.0, 2.0), 7), ((3.0, 9.0, 9.0, 1.0), 3)])
def test_drift_is_a_function_of_the_number_of_agent_steps_alone(values, period):
    env = DriftPhysics(echo(num_envs=3, length=4), period, "length", values)
    obs, infos = env.reset(seed=1)
    assert infos["physics"] == {"length": values[0]} and (obs[:, LENGTH] == values[0]).all()
    reached = set()
    for step in range(1, 60):
        if step == 30:
            obs, infos = env.reset()  # new episodes; the steps count on
            assert (obs[:, LENGTH] == line(values, period, 87)).all()
            assert infos["physics"]["length"] == pytest.approx(line(values, period, 87), rel=1e-15)
        obs, _, terminated, truncated, infos = env.step(np.zeros(3, dtype=int))
        used, following = line(values, period, 3 * (step - 1)), line(values, period, 3 * step)
        assert obs[:, LENGTH].tolist() == pytest.approx([used] * 3, rel=1e-15)
        assert infos["physics"] == {"length": pytest.approx(following, rel=1e-15)}
        assert "shift" not in infos and not truncated.any() and terminated.any() == ("episode" in infos)
        reached.add(infos["physics"]["length"])
    assert set(values) <= reached  # exactly


def test_a_seed_starts_the_drift_again():
    env = DriftPhysics(echo(), 8, "gravity", (10.0, 6.0))
    env.reset(seed=1)
    still(env, 3)
    obs, infos = env.reset(seed=2)
    assert (obs[:, GRAVITY] == 10).all() and infos["physics"] == {"gravity": 10.0} and env.steps == 0
    assert infos["shift"] == {"physics": {"task": 0, "changes": 0, "step": 0, "changed": False}}


def test_scripts_see_no_change_of_the_task():
    """No step reports a shift, and episodes that reach their time limit count as whole."""
    env = DriftPhysics(echo(length=3, truncates=True), 4, "gravity", (10.0, 6.0))
    env.reset(seed=1)
    recorded, returns = [], Returns(window=100)
    run = SimpleNamespace(step=0, total=1, scalar=lambda name, value: recorded.append((name, value)))
    for _ in range(12):
        _, _, _, truncated, infos = env.step(np.array([2, 1]))
        assert "shift" not in infos
        returns.record(infos, truncated, run)
    assert [value for name, value in recorded if name == "charts/episodic_return"] == [
        6.0,
        4.0,
        6.0,
        4.0,
        6.0,
        6.0,
        4.0,
    ]


def test_offsets_around_a_drift_truncate_and_the_drift_goes_on():
    inner = echo()
    env = OffsetObservations(DriftPhysics(inner, 8, "gravity", (10.0, 6.0)), AtSteps([6]))
    env.reset(seed=1)
    for step in range(1, 7):
        obs, _, _, truncated, infos = env.step(np.array([0, 0]))
        assert truncated.all() == (step == 3) and ("shift" in infos) == (step == 3)
        assert infos["physics"] == {"gravity": [9.0, 8.0, 7.0, 6.0, 7.0, 8.0][step - 1]}
        if step == 3:
            assert infos["shift"]["physics"] == {"task": 0, "changes": 0, "step": 0, "changed": False}
            assert infos["shift"]["offsets"] == {"task": 1, "changes": 1, "step": 6, "changed": True}
            assert infos["final_obs"][:, GRAVITY].tolist() == [8.0, 8.0]
            offset = obs[:, GRAVITY] - 7.0
            assert offset[0] == offset[1] != 0
    np.testing.assert_allclose(obs[:, GRAVITY], 7.0 + offset, rtol=1e-14)  # used in step 6


def test_offsets_inside_a_drift_are_reported():
    env = DriftPhysics(OffsetObservations(echo(), AtSteps([6])), 8, "gravity", (10.0, 6.0))
    env.reset(seed=1)
    for step in range(1, 6):
        _, _, _, truncated, infos = env.step(np.array([0, 0]))
        assert truncated.all() == (step == 3) and ("shift" in infos) == (step == 3)
        assert step != 3 or {name: one["changed"] for name, one in infos["shift"].items()} == {
            "offsets": True, "physics": False
        }  # fmt: skip


def test_before_its_first_step_a_drift_equals_the_bare_environment_and_a_flat_part_all_along():
    bare = control_env(CARTPOLE, 2)
    env = DriftPhysics(control_env(CARTPOLE, 2), 300, "length", (0.5, 0.5, 2.0))
    theirs, ours = play(bare, 149), play(env, 149)
    assert ours[0][0].tobytes() == theirs[0][0].tobytes()
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert a[-1].pop("physics") == {"length": 0.5}
        assert equal(a, b) and a[0].tobytes() == b[0].tobytes()


# saving


WRAPPERS = {
    "change": lambda env, when: ChangePhysics(env, when, "length", (0.5, 2.0, 1.0)),
    "drift": lambda env, when: DriftPhysics(env, 64, "masspole", (0.1, 1.0, 0.4)),
    "change inside": lambda env, when: OffsetObservations(
        ChangePhysics(env, AtRandom(0.02), "length", (0.5, 2.0)), when
    ),
    "drift inside": lambda env, when: OffsetObservations(DriftPhysics(env, 64, "gravity", (9.8, 20.0)), when),
}
ALL = pytest.mark.parametrize("name", WRAPPERS)


@ALL
@pytest.mark.parametrize("before", [0, 47])
def test_a_saved_environment_continues_exactly(name, before):
    make = lambda: WRAPPERS[name](control_env(CARTPOLE, 2), EverySteps(40))  # noqa: E731
    env, other = make(), make()
    play(env, before)
    state = copy.deepcopy(env.state_dict())
    ahead = play(env, 150, seed=8, start=False)
    play(other, 13, seed=5)  # it was elsewhere
    other.load_state_dict(state)
    assert np.array_equal(other.observation(), state["obs"])
    assert equal(ahead, play(other, 150, seed=8, start=False))
    assert sum("shift" in out[-1] for out in ahead) >= (0 if name == "drift" else 3)
    assert equal(env.state_dict()["obs"], other.state_dict()["obs"])


def test_a_resumed_drift_has_the_value_of_the_saved_step():
    make = lambda: DriftPhysics(echo(), 10, "gravity", (10.0, 5.0))  # noqa: E731
    env, other = make(), make()
    env.reset(seed=1)
    still(env, 3)
    other.load_state_dict(env.state_dict())
    assert other.value == 7.0 and other.env.numbers["gravity"] == 7.0
    assert still(other, 3) == still(env, 3) == [[7.0] * 2, [6.0] * 2, [5.0] * 2]


def test_the_state_of_another_environment_is_refused():
    def drift(period=10, what="gravity", values=(10.0, 5.0)):
        env = DriftPhysics(echo(), period, what, values)
        env.reset(seed=1)
        return env

    state = drift(values=[10, 5]).state_dict()  # numbers of another type are the same values
    drift().load_state_dict(state)
    for other, message in (
        (drift(period=12), "period: 10 saved, 12 here"),
        (drift(what="length"), "what: 'gravity' saved, 'length' here"),
        (drift(values=(10.0, 6.0)), r"values: \(10.0, 5.0\) saved, \(10.0, 6.0\) here"),
        (ChangePhysics(echo(), NoChange(), "gravity", (10.0, 5.0)), "period: 10 saved, None here"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)


# frozen copies


def test_a_frozen_copy_of_a_jump_stays_at_the_present_value():
    env = ChangePhysics(echo(), AtSteps([4, 8]), "gravity", (10.0, 5.0, 2.5))
    env.reset(seed=1)
    for value in (10.0, 5.0, 2.5):
        frozen = env.frozen_copy(lambda bare: echo(num_envs=3, gravity=77.0))
        assert frozen.reset(seed=9)[0][:, GRAVITY].tolist() == [value] * 3
        assert still(frozen, 12) == [[value] * 3] * 12
        assert frozen.reset()[0][:, GRAVITY].tolist() == [value] * 3
        still(env, 2)


def test_a_frozen_copy_of_a_drift_stays_at_the_present_value():
    with pytest.raises(gymnasium.error.ResetNeeded):
        DriftPhysics(echo(), 8, "gravity", (10.0, 6.0)).frozen_copy(lambda bare: echo())
    env = OffsetObservations(DriftPhysics(echo(), 8, "gravity", (10.0, 6.0)), AtSteps([100]))
    env.reset(seed=1)
    still(env, 3)
    frozen = env.frozen_copy(lambda bare: echo(num_envs=5, gravity=77.0))
    obs, infos = frozen.reset(seed=9)
    assert obs[:, GRAVITY].tolist() == [7.0] * 5 and infos["physics"] == {"gravity": 7.0}
    assert still(frozen, 12) == [[7.0] * 5] * 12 and frozen.env.value == 7.0
    still(env, 1)
    assert env.env.value == 6.0
    again = frozen.frozen_copy(lambda bare: echo(num_envs=4))
    assert again.reset(seed=2)[0][:, GRAVITY].tolist() == [7.0] * 4
    other = DriftPhysics(echo(num_envs=5), 8, "gravity", (10.0, 6.0))  # what drifts becomes frozen, and again drifts
    play(other, 3)
    drifting = other.state_dict()
    other.load_state_dict(frozen.env.state_dict())
    assert still(other, 12) == [[7.0] * 5] * 12
    other.load_state_dict(drifting)
    assert other.value == line((10.0, 6.0), 8, 15) == other.env.numbers["gravity"] != 7.0


@ALL
def test_a_frozen_copy_on_cartpole_plays_like_cartpole_with_these_numbers(name):
    if "inside" in name:
        return
    env = WRAPPERS[name](control_env(CARTPOLE, 2), AtSteps([20, 50]))
    play(env, 31)
    what, value = (env.what, 1.0) if name == "change" else ("masspole", line((0.1, 1.0, 0.4), 64, 62))
    frozen, bare = env.frozen_copy(lambda inner: inner.with_num_envs(3)), control_env(CARTPOLE, 3)
    bare.set_physics(what, value)
    assert frozen.env.physics(what) == pytest.approx(value, rel=1e-15)
    bare.set_physics(what, frozen.env.physics(what))
    for a, b in zip(play(frozen, 60, seed=7), play(bare, 60, seed=7), strict=True):
        assert np.array_equal(a[0], b[0])
    assert env.env.physics(what) == frozen.env.physics(what)


# refusals


def bare_sync():
    return SyncVectorEnv([lambda: gymnasium.make(CARTPOLE)], autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChangePhysics(echo(), EverySteps(9), "mass", (1.0, 2.0)), "no number 'mass'; it has: gravity, length"),
        (lambda: DriftPhysics(echo(), 9, "mass", (1.0, 2.0)), "no number 'mass'; it has: gravity, length"),
        (lambda: ChangePhysics(control_env(CARTPOLE), EverySteps(9), "mass", (1, 2)), "CartPole-v1 has no number 'mas"),
        (lambda: ChangePhysics(echo(), EverySteps(9), "gravity", (1.0, 2.0, -3.0)), "gravity must be positive, got -3"),
        (lambda: DriftPhysics(echo(), 9, "gravity", (1.0, -3.0)), "gravity must be positive, got -3"),
        (lambda: ChangePhysics(echo(), EverySteps(9), "gravity", (1.0, np.nan)), "'gravity' must be finite, got .*nan"),
        (lambda: DriftPhysics(echo(), 9, "gravity", (1.0, np.inf)), "'gravity' must be finite, got .*inf"),
        (lambda: ChangePhysics(echo(), EverySteps(9), "gravity", (1.0,)), "one task"),
        (lambda: ChangePhysics(echo(), NoChange(), "gravity", ()), "at least one task"),
        (lambda: DriftPhysics(echo(), 9, "gravity", (1.0,)), "at least two values of 'gravity', got"),
        (lambda: DriftPhysics(echo(num_envs=8), 7, "gravity", (1.0, 2.0)), "at least the 8 agent steps .* got 7"),
        (lambda: DriftPhysics(echo(), 0, "gravity", (1.0, 2.0)), "at least the 2 agent steps .* got 0"),
        (
            lambda: ChangePhysics(ScaleRewards(EchoEnv(), NoChange(), (1.0,)), NoChange(), "gravity", (1.0,)),
            "ChangePhysics needs an environment whose physics can be set, .* got EchoEnv",
        ),
        (lambda: DriftPhysics(bare_sync(), 9, "gravity", (1.0, 2.0)), "DriftPhysics needs .* got SyncVectorEnv"),
        (
            lambda: ChangePhysics(
                DriftPhysics(echo(), 9, "gravity", (1.0, 2.0)), EverySteps(9), "length", (1.0, 2.0)
            ),
            "'physics' already changes",
        ),
    ],
)  # fmt: skip
def test_invalid_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
