"""Shifts of vector observations: offsets, rotations, gains; on an echo environment and on CartPole."""

from __future__ import annotations

import copy
import re
import zlib

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.utils.env_checker import check_env

from envs.control import control_env
from envs.shifts import (
    OffsetObservations,
    PermuteActions,
    RotateObservations,
    ScaleObservations,
    ScaleRewards,
)
from envs.timetables import AtRandom, AtSteps, EverySteps, NoChange
from tests.envs.echo import EchoEnv, VectorEchoEnv
from tests.envs.rollouts import equal, play
from tests.envs.single import SingleEnv

CARTPOLE = "CartPole-v1"
KINDS = {"offsets": OffsetObservations, "rotations": RotateObservations, "gains": ScaleObservations}
EVERY = pytest.mark.parametrize("name", KINDS)


def stream(seed, name, task):
    """The random stream of a task's setting."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()), task)))


def expected(name, seed, task, rows, scale=2.0):
    """What task `task` makes of float64 rows [N, D], written out."""
    rng, size = stream(seed, name, task), rows.shape[1]
    if task == 0:
        return rows
    if name == "offsets":
        return rows + np.array([scale * rng.standard_normal() for _ in range(size)])
    if name == "gains":
        return rows * np.array([2.0 ** (scale * rng.standard_normal()) for _ in range(size)])
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    for column in range(size):
        if r[column, column] < 0:
            q[:, column] = -q[:, column]
    return np.array([[sum(q[i, j] * row[j] for j in range(size)) for i in range(size)] for row in rows])


def settings_of(name, tasks, seed=3, **given):
    """Float64 observations of each task: [tasks, N, 6], and those of the environment inside."""
    inner = VectorEchoEnv(num_envs=2, dtype=np.float64, length=10**6, mark=7.0)
    env = KINDS[name](inner, EverySteps(2), tasks=tasks, **given)
    out, bare = [env.reset(seed=seed)[0]], [inner.seen()]
    for _ in range(tasks - 1):
        out.append(env.step(np.array([1, 3]))[0])
        bare.append(inner.seen())
    return np.array(out), np.array(bare)


# what changes


@EVERY
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_task_has_the_setting_that_the_seed_gives_it(name, dtype):
    inner = VectorEchoEnv(num_envs=3, dtype=dtype, mark=-1.5, length=100)
    env = KINDS[name](inner, EverySteps(3), tasks=4)
    rng, tolerance = np.random.default_rng(0), 1e-14 if dtype == np.float64 else 2e-7
    obs = env.reset(seed=11)[0]
    for step in range(9):
        rows, task = inner.seen().astype(np.float64), step % 4
        assert obs.dtype == dtype and env.task == task
        twin = expected(name, 11, task, rows)
        scale = np.linalg.norm(rows, axis=1, keepdims=True) if name == "rotations" else np.abs(twin)
        assert (np.abs(obs - twin) <= tolerance * scale).all()
        assert task == 0 or not np.allclose(obs, rows, rtol=0.01)
        obs, _, _, truncated, infos = env.step(rng.integers(4, size=3))
        assert truncated.all() and infos["shift"][name]["task"] == (step + 1) % 4


@EVERY
def test_settings_depend_only_on_the_seed_the_task_and_the_scale(name):
    def settings(seed=1, total=3, when=None, **given):
        env, found = KINDS[name](VectorEchoEnv(num_envs=4), when or EverySteps(4), tasks=total, **given), {}
        env.reset(seed=seed)
        for _ in range(12):
            found.setdefault(env.task, []).append(env._setting)
            env.step(np.zeros(4, dtype=int))
        assert found[0] == [None] * len(found[0])
        return found

    base = settings()
    assert [len(base[task]) for task in range(3)] == [4, 4, 4]
    for task in (1, 2):
        first = base[task][0]
        assert all(np.array_equal(one, first) for one in base[task])  # whenever it comes
        for other in (settings(total=5), settings(when=EverySteps(8)), settings(when=AtSteps([5, 20, 30]))):
            assert np.array_equal(other[task][0], first)
        assert not np.allclose(settings(seed=2)[task][0], first)
        if name == "offsets":
            np.testing.assert_allclose(settings(scale=4.0)[task][0], 2 * first, rtol=1e-14)
        if name == "gains":
            np.testing.assert_allclose(settings(scale=4.0)[task][0], first**2, rtol=1e-13)
    assert not np.allclose(base[1][0], base[2][0])


def test_offsets_and_gains_have_the_distribution_that_the_scale_says():
    """3,000 draws: the mean is within 4 standard errors, the standard deviation within 5 percent."""
    for name, scale in (("offsets", 2.0), ("offsets", 0.5), ("gains", 1.5)):
        ours, theirs = settings_of(name, 501, scale=scale)
        if name == "offsets":
            drawn = (ours - theirs)[1:, 1]
        else:
            seen = theirs[1:, 1] != 0
            drawn = np.log2(ours[1:, 1][seen] / theirs[1:, 1][seen])
        assert drawn.size >= 2000 and abs(drawn.mean()) < 4 * scale / np.sqrt(drawn.size)
        assert abs(drawn.std() / scale - 1) < 0.05
    ours, theirs = settings_of("offsets", 50)
    assert np.ptp(np.round(ours - theirs, 12), axis=1).max() == 0  # the same in all environments


def test_rotations_keep_lengths_and_angles_and_are_uniform():
    inner = VectorEchoEnv(num_envs=6, dtype=np.float64, length=10**6)
    inner.seen = lambda: np.eye(6)
    env = RotateObservations(inner, EverySteps(6), tasks=1001)
    assert np.array_equal(env.reset(seed=3)[0], np.eye(6))
    maps = np.array([env.step(np.zeros(6, dtype=int))[0].T for _ in range(1000)])
    np.testing.assert_allclose(maps @ maps.transpose(0, 2, 1), np.broadcast_to(np.eye(6), maps.shape), atol=1e-14)
    # Haar's measure: every entry has mean 0, mean square 1 / D and mean fourth power 3 / (D (D + 2)); half reflect.
    assert np.abs(maps.mean(0)).max() < 4.5 * np.sqrt(1 / 6 / 1000)
    assert np.abs((maps**2).mean(0) - 1 / 6).max() < 0.04 and abs((maps**4).mean() - 3 / 48) < 0.004
    assert abs((np.linalg.det(maps) > 0).mean() - 0.5) < 0.07


@EVERY
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_task_0_returns_the_observations_bit_for_bit(name, dtype):
    """Also signed zeros, infinities and NaN."""
    given = {} if name == "rotations" else {"scale": 0.5}
    env = KINDS[name](VectorEchoEnv(mark=-0.0, gravity=np.inf, dtype=dtype), AtSteps([20]), **given)
    bare = VectorEchoEnv(mark=-0.0, gravity=np.inf, dtype=dtype)
    ours, theirs = play(env, 9), play(bare, 9)
    assert ours[0][0].dtype == dtype and ours[0][0].tobytes() == theirs[0][0].tobytes()
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert a[0].tobytes() == b[0].tobytes() and a[0].dtype == dtype and equal(a[1:4], b[1:4])
        if "final_obs" in b[-1]:
            ended = b[-1]["_final_obs"]
            assert a[-1]["final_obs"][ended].tobytes() == b[-1]["final_obs"][ended].tobytes()


# when an episode ends


def test_a_change_truncates_and_the_final_observation_is_of_the_old_task():
    inner = VectorEchoEnv(dtype=np.float64, length=100, mark=2.0)
    env = OffsetObservations(inner, AtSteps([4, 8]), tasks=3)
    env.reset(seed=5)
    for task in (0, 1):
        for step in (1, 2):
            obs, rewards, terminated, truncated, infos = env.step(np.array([3, 1]))
            assert truncated.tolist() == [step == 2] * 2 and not terminated.any() and rewards.tolist() == [3.0, 1.0]
        final = np.array([[2.0, 2, 3, 0, 10, 0.5], [2.0, 2, 1, 1, 10, 0.5]])
        np.testing.assert_allclose(infos["final_obs"], expected("offsets", 5, task, final), atol=1e-14)
        first = np.array([[2.0, 0, 0, 0, 10, 0.5], [2.0, 0, 0, 1, 10, 0.5]])
        np.testing.assert_allclose(obs, expected("offsets", 5, task + 1, first), atol=1e-14)
        np.testing.assert_allclose(env.observation(), obs)
        assert infos["episode"]["r"].tolist() == [6.0, 2.0] and infos["episode"]["l"].tolist() == [2, 2]
        report = {"task": task + 1, "changes": task + 1, "step": 4 * (task + 1), "changed": True}
        assert infos["shift"] == {"offsets": report}


@EVERY
def test_final_observations_without_a_change_are_of_the_present_task(name):
    env = KINDS[name](VectorEchoEnv(dtype=np.float64, length=3, objects=True), AtSteps([2]))
    env.reset(seed=5)
    for _ in range(4):
        infos = env.step(np.array([2, 1]))[-1]
    assert infos["_final_obs"].tolist() == [True, False]  # environment 1 lasts one step longer
    rows = np.array([[0.0, 3, 2, 0, 10, 0.5]])
    np.testing.assert_allclose(infos["final_obs"][:1], expected(name, 5, 1, rows), rtol=1e-12, atol=1e-12)


# nesting


def test_wrappers_nest_and_the_outer_one_acts_on_what_the_inner_one_returns():
    """First x + b, then R (x + b), then the factors; each by its own timetable."""
    inner = VectorEchoEnv(dtype=np.float64, length=100, mark=1.0)
    env = ScaleObservations(RotateObservations(OffsetObservations(inner, AtSteps([2])), AtSteps([4])), AtSteps([6]))
    env = PermuteActions(ScaleRewards(env, AtSteps([8]), (1.0, -2.0)), AtSteps([10]), tasks=2)
    env.reset(seed=9)
    for step in range(1, 7):
        obs, rewards, _, truncated, infos = env.step(np.array([2, 1]))
        assert truncated.all() == (step <= 5)
        seen = inner.seen()
        for number, name in enumerate(KINDS, 1):
            seen = expected(name, 9, int(step >= number), seen)
        np.testing.assert_allclose(obs, seen, rtol=1e-12, atol=1e-12)
        if step <= 5:
            changed = {name: report["changed"] for name, report in infos["shift"].items()}
            names = ("offsets", "rotations", "gains", "rewards", "actions")
            assert changed == {name: names[step - 1] == name for name in names}
    assert rewards.tolist() != [-4.0, -2.0] and set(rewards / -2) <= {0.0, 1.0, 2.0, 3.0}  # the actions are permuted


# spaces


def box(low, high, dtype=np.float32):
    """The space that the echo environment says it has."""
    inner = VectorEchoEnv(dtype=dtype)
    inner.single_observation_space = Box(np.array(low, dtype=dtype), np.array(high, dtype=dtype), dtype=dtype)
    return inner


def test_observation_spaces_hold_what_can_come_out():
    low, high = [-3, 0, -4, -np.inf, 0, 0], [1, 2, 4, 0, 0, np.inf]
    space = OffsetObservations(box(low, high), EverySteps(9)).single_observation_space
    assert space == Box(-np.inf, np.inf, (6,), np.float32)
    env = ScaleObservations(box(low, high), EverySteps(9))
    assert env.single_observation_space.low.tolist() == [-np.inf, 0, -np.inf, -np.inf, 0, 0]
    assert env.single_observation_space.high.tolist() == [np.inf, np.inf, np.inf, 0, 0, np.inf]
    assert RotateObservations(box(low, high), EverySteps(9)).single_observation_space.low.max() == -np.inf
    env = RotateObservations(box([-3, 0, -4, 0, 0, 0], [1, 2, 4, 0, 0, 0], np.float64), EverySteps(9))
    assert env.single_observation_space.high == pytest.approx([np.sqrt(9 + 4 + 16)] * 6, rel=1e-14)
    assert (env.single_observation_space.low == -env.single_observation_space.high).all()
    assert env.observation_space.shape == (2, 6) and env.single_observation_space.dtype == np.float64
    largest = float(np.finfo(np.float32).max)
    assert (
        RotateObservations(box([-largest] * 6, [largest] * 6), EverySteps(9)).single_observation_space.high[0] == np.inf
    )


@EVERY
def test_with_one_task_the_space_stays(name):
    space = box([0] * 6, [1] * 6).single_observation_space
    assert KINDS[name](box([0] * 6, [1] * 6), NoChange(), tasks=1).single_observation_space == space


@EVERY
def test_all_observations_lie_in_the_space(name):
    env = KINDS[name](control_env("Acrobot-v1", 2), EverySteps(10), tasks=50)
    for out in play(env, 300):
        assert env.observation_space.contains(out[0]) and out[0].dtype == np.float32
    bound = np.sqrt(4 + 16 * np.pi**2 + 81 * np.pi**2)
    assert name != "rotations" or env.single_observation_space.high == pytest.approx([bound] * 6, rel=1e-6)


# refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OffsetObservations(EchoEnv(), NoChange()), r"OffsetObservations needs .* vectors of floats, got Box"),
        (lambda: RotateObservations(EchoEnv(), NoChange()), r"RotateObservations needs .* vectors of floats, got Box"),
        (lambda: OffsetObservations(float_images(), NoChange()), "vectors of floats"),
        (lambda: ScaleObservations(VectorEchoEnv(dtype=np.int64, low=0, high=9), NoChange()), "vectors of floats"),
        (lambda: OffsetObservations(VectorEchoEnv(), EverySteps(9), scale=0.0), "scale above 0 .* got 0.0"),
        (lambda: OffsetObservations(VectorEchoEnv(), EverySteps(9), scale=-1.0), "scale above 0 .* got -1.0"),
        (lambda: OffsetObservations(VectorEchoEnv(), EverySteps(9), scale=np.nan), "scale above 0 .* got nan"),
        (lambda: OffsetObservations(VectorEchoEnv(), EverySteps(9), scale=1e38), "at most 3.4e.37, with float32"),
        (lambda: ScaleObservations(VectorEchoEnv(), EverySteps(9), scale=0.0), "scale above 0 .* got 0.0"),
        (lambda: ScaleObservations(VectorEchoEnv(), EverySteps(9), scale=13.0), "at most 12.8, with float32"),
        (lambda: ScaleObservations(VectorEchoEnv(dtype=np.float16), EverySteps(9)), "at most 1.6, with float16"),
        (lambda: RotateObservations(VectorEchoEnv(), EverySteps(9), tasks=1), "one task"),
        (lambda: RotateObservations(one_coordinate(), EverySteps(9)), "at least 2 coordinates"),
        (lambda: OffsetObservations(OffsetObservations(VectorEchoEnv(), NoChange()), NoChange()), "already changes"),
        (lambda: OffsetObservations(VectorEchoEnv(num_envs=8), EverySteps(7)), "7 agent steps apart"),
    ],
)
def test_invalid_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def float_images():
    inner = EchoEnv()
    inner.single_observation_space = Box(0, 1, (2, 2, 2), np.float32)
    return inner


def one_coordinate():
    inner = VectorEchoEnv()
    inner.single_observation_space = Box(-1, 1, (1,), np.float32)
    return inner


# what holds for every wrapper, on CartPole

WRAPPERS = {
    **{name: lambda env, when, kind=kind: kind(env, when, tasks=3) for name, kind in KINDS.items()},
    "actions": lambda env, when: PermuteActions(env, when, tasks=2),
    "both": lambda env, when: OffsetObservations(RotateObservations(env, AtSteps([60])), when),
}
ALL = pytest.mark.parametrize("name", WRAPPERS)


@ALL
@pytest.mark.parametrize("when", [NoChange(), AtSteps([900])], ids=["never", "later"])
def test_before_a_change_it_equals_the_bare_environment_bit_for_bit(name, when):
    bare, env = control_env(CARTPOLE, 3), WRAPPERS[name](control_env(CARTPOLE, 3), when)
    if name == "both":
        env = OffsetObservations(RotateObservations(control_env(CARTPOLE, 3), when), when)
    theirs, ours = play(bare, 290), play(env, 290)
    assert sum("episode" in out[-1] for out in theirs) > 10
    assert ours[0][0].tobytes() == theirs[0][0].tobytes()
    for a, b in zip(theirs[1:], ours[1:], strict=True):
        assert equal(a, b) and a[0].tobytes() == b[0].tobytes()


@ALL
@pytest.mark.parametrize("when", [EverySteps(40), AtRandom(0.02)], ids=["every", "random"])
def test_a_saved_environment_continues_exactly(name, when):
    make = lambda: WRAPPERS[name](control_env(CARTPOLE, 2), when)  # noqa: E731
    env, other = make(), make()
    play(env, 47)
    assert env.task or name != "offsets" or when != EverySteps(40)
    state = copy.deepcopy(env.state_dict())
    ahead = play(env, 150, seed=8, start=False)
    other.load_state_dict(state)
    assert np.array_equal(other.observation(), state["obs"])
    assert equal(ahead, play(other, 150, seed=8, start=False))
    assert sum("shift" in out[-1] for out in ahead) >= 3


@ALL
def test_a_frozen_copy_stays_in_the_present_task(name):
    env = WRAPPERS[name](control_env(CARTPOLE, 2), AtSteps([20, 50]))
    play(env, 25 if name == "actions" else 30, seed=3)
    frozen = env.frozen_copy(lambda bare: bare.with_num_envs(5))
    assert frozen.num_envs == 5 and frozen.single_observation_space == env.single_observation_space
    assert type(frozen) is type(env)
    ours = play(frozen, 60, seed=77)
    assert not any("shift" in out[-1] for out in ours[1:]) and frozen.task == env.task
    theirs, seen = play(control_env(CARTPOLE, 5), 60, seed=77), env.task
    if name in KINDS:  # another seed, the same setting
        assert seen == 2
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a[0], expected(name, 3, seen, b[0].astype(np.float64)), rtol=1e-5, atol=1e-5)
    again = frozen.frozen_copy(lambda bare: bare.with_num_envs(3))
    assert again.reset(seed=78)[0].shape == (3, 4) and again.task == env.task
    for attribute in ("_setting", "_order"):
        if hasattr(env, attribute):
            assert np.array_equal(getattr(again, attribute), getattr(env, attribute))


@EVERY
def test_a_frozen_copy_is_built_with_the_same_arguments(name):
    given = {} if name == "rotations" else {"scale": 0.7}
    env = KINDS[name](VectorEchoEnv(), EverySteps(9), tasks=3, **given)
    env.reset(seed=1)
    frozen = env.frozen_copy(lambda bare: VectorEchoEnv(4))
    assert frozen.state_dict()["built"] == {**env.state_dict()["built"], "timetable": "NoChange()"}
    assert frozen.state_dict()["built"]["tasks"] == "3" and frozen.num_envs == 4
    with pytest.raises(ValueError, match="tasks: 3 saved, 4 here"):
        KINDS[name](VectorEchoEnv(), EverySteps(9), tasks=4, **given).load_state_dict(env.state_dict())
    if given:
        with pytest.raises(ValueError, match=re.escape("scale: 0.7 saved, 2.0 here")):
            KINDS[name](VectorEchoEnv(), EverySteps(9), tasks=3).load_state_dict(env.state_dict())


@pytest.mark.filterwarnings("ignore:.*A Box observation space m.* value is -?infinity:UserWarning")
@ALL
def test_gymnasium_s_check_env_passes(name):
    env = SingleEnv(WRAPPERS[name](control_env(CARTPOLE), EverySteps(7)))
    env.spec = gymnasium.envs.registration.EnvSpec(id="Changing-v0")
    check_env(env, skip_render_check=True, skip_close_check=True)


@EVERY
def test_returned_arrays_are_safe_to_keep(name):
    env = KINDS[name](VectorEchoEnv(length=3), EverySteps(4))
    obs, kept = env.reset(seed=1)[0], []
    for _ in range(6):
        kept.append((obs, obs.copy()))
        obs = env.step(np.array([1, 2]))[0]
        obs[:, 5] += 0.0
    assert all(np.array_equal(a, b) for a, b in kept)
    obs[:] = 77
    assert not (env.observation() == 77).any()


def test_random_changes_do_not_depend_on_the_actions():
    when = []
    for seed in (1, 2):
        env = OffsetObservations(control_env(CARTPOLE, 2), AtRandom(0.01))
        env.reset(seed=7)
        out = play(env, 400, seed=seed, start=False)
        when.append([one[-1]["shift"]["offsets"]["step"] for one in out if "shift" in one[-1]])
    assert when[0] == when[1] and len(when[0]) >= 3
