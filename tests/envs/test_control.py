"""envs.control: equal to Gymnasium bit for bit, in a loop and in arrays; physics, saving, refusals."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from envs import classic_control
from envs.classic_control import FASTER_FROM, Arrays
from envs.control import ControlVectorEnv, control_env
from envs.control_loop import Loop
from envs.minatar import game_seed
from envs.shifts import ChangePhysics, PermuteActions
from envs.timetables import EverySteps, NoChange
from envs.worlds import ControlWorld, evaluation_world
from tests.envs.rollouts import equal, play
from tests.envs.single import SingleEnv

CLASSIC = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0")
HAS_BOX2D = all(importlib.util.find_spec(name) for name in ("Box2D", "pygame"))


@pytest.fixture(params=["loop", "arrays"])
def engine(request, monkeypatch):
    """Whether the classic environments are stepped one by one, or in arrays."""
    choose(monkeypatch, request.param)
    return request.param


def choose(monkeypatch, engine):
    for key, (arrays, _) in FASTER_FROM.items():
        monkeypatch.setitem(FASTER_FROM, key, (arrays, 1 if engine == "arrays" else 10**9))


# against Gymnasium


class Gymnasium:
    """N environments of `gymnasium.make` with its own time limit, restarted within the step."""

    def __init__(self, env_id, num_envs, limit=None):
        more = {} if limit is None else {"max_episode_steps": limit}
        self.envs = [gymnasium.make(gymnasium.spec(env_id), disable_env_checker=True, **more) for _ in range(num_envs)]

    def reset(self, seed=None):
        seeds = [None if seed is None else game_seed(seed, i) % 2**31 for i in range(len(self.envs))]
        return np.stack([env.reset(seed=one)[0] for env, one in zip(self.envs, seeds, strict=True)])

    def step(self, actions):
        obs, rewards, terminated, truncated, _ = map(
            np.array, zip(*(env.step(action) for env, action in zip(self.envs, actions, strict=True)), strict=True)
        )
        truncated &= ~terminated
        final = obs.copy()
        for i in np.flatnonzero(terminated | truncated):
            obs[i] = self.envs[i].reset()[0]
        return obs, rewards, terminated, truncated, final

    def set(self, name, value):
        for env in self.envs:
            inner = env.unwrapped
            assert hasattr(inner, name)
            setattr(inner, name, value)
            if "CartPole" in inner.spec.id:
                inner.total_mass = inner.masscart + inner.masspole
                inner.polemass_length = inner.length * inner.masspole


def decent(env_id, obs):
    """Actions of a policy that balances the pole for some time, swings the links up, or drives up the hill."""
    if env_id.startswith("CartPole"):
        return (obs @ np.array([0.05, 0.1, 1.0, 0.3]) > 0).astype(int)
    return np.where(obs[:, 5 if env_id.startswith("Acrobot") else 1] > 0, 2, 0)


def compare(env_id, num_envs, steps, changes=(), limit=None, seed=3):
    """Both play the same actions; the counts of episodes that terminated and were truncated, and the observations."""
    ours, theirs = control_env(env_id, num_envs, max_episode_steps=limit), Gymnasium(env_id, num_envs, limit)
    obs, infos = ours.reset(seed=seed)
    assert infos == {} and obs.dtype == np.float32 and np.array_equal(obs, theirs.reset(seed))
    rng, ended, seen = np.random.default_rng(seed), np.zeros(2, dtype=int), []
    changes = dict(changes)
    for step in range(steps):
        for name, value in changes.get(step, ()):
            ours.set_physics(name, value)
            theirs.set(name, value)
            assert ours.physics(name) == value
        # Stretches of random actions, and stretches of a policy with few of them.
        explores = rng.random(num_envs) < (0.05 if step // 100 % 3 else 1.0)
        random = rng.integers(ours.single_action_space.n, size=num_envs)
        actions = np.where(explores, random, decent(env_id, obs))
        obs, *mine, infos = ours.step(actions)
        expected, *others, final = theirs.step(actions)
        assert np.array_equal(obs, expected), step
        assert all(np.array_equal(a, b) for a, b in zip(mine, others, strict=True)), step
        if isinstance(ours._engine, Arrays):  # in float64, where a difference in the last bit is seen at once
            states = np.stack([env.unwrapped.state for env in theirs.envs], axis=1)
            assert np.array_equal(ours._engine._state, states), step
        over = others[1] | others[2]
        assert bool(infos) == over.any() and (not infos or np.array_equal(infos["final_obs"][over], final[over]))
        ended += others[1].sum(), others[2].sum()
        seen.append(obs)
    return ended, np.array(seen)


CHANGES = {
    "CartPole-v1": {900: [("gravity", 4.7), ("length", 0.83)], 1500: [("masspole", 0.31)], 1977: [("tau", 0.013)]},
    "Acrobot-v1": {
        900: [("LINK_MASS_2", 0.7)],
        1500: [("LINK_LENGTH_1", 1.2), ("dt", 0.17)],
        1977: [("LINK_MOI", 1.3)],
    },
    "MountainCar-v0": {900: [("gravity", 0.0021)], 1500: [("force", 0.0013)], 1977: [("max_speed", 0.061)]},
}
LIMITS = {"CartPole-v1": 70, "Acrobot-v1": 150, "MountainCar-v0": None}
"""Time limits under which episodes of both policies end in both ways."""


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("env_id", CLASSIC)
def test_arrays_equal_gymnasium_bit_for_bit(env_id, num_envs, changes, monkeypatch):
    """At least 7,000 steps in the environments; `test_many_steps` plays more."""
    choose(monkeypatch, "arrays")
    steps = {1: 7000, 3: 2500, 8: 2000}[num_envs]
    ended, _ = compare(env_id, num_envs, steps, CHANGES[env_id] if changes else (), LIMITS[env_id])
    assert (ended > 3).all()


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("env_id", CLASSIC)
def test_many_steps(env_id, num_envs, engine):
    changes = {step + 3000 * i: what for i in range(8) for step, what in CHANGES[env_id].items()}
    ended, _ = compare(env_id, num_envs, 24_000, changes, LIMITS[env_id], seed=11)
    assert (ended > 10).all()


@pytest.mark.parametrize("env_id", ["CartPole-v0", *CLASSIC])
def test_the_loop_equals_gymnasium_with_its_own_time_limit(env_id, monkeypatch):
    choose(monkeypatch, "loop")
    ended, _ = compare(env_id, 2, 1600, {1200: CHANGES.get(env_id, CHANGES["CartPole-v1"])[900]})
    assert ended.sum() > 2


def test_an_environment_whose_constructor_refused_can_be_closed():
    ControlVectorEnv.__new__(ControlVectorEnv).close()


def test_which_of_the_two_plays():
    for env_id in CLASSIC:
        arrays, faster_from = FASTER_FROM[gymnasium.spec(env_id).entry_point]
        assert type(control_env(env_id, faster_from)._engine) is arrays and issubclass(arrays, Arrays)
        assert type(control_env(env_id, faster_from - 1)._engine) is Loop
    assert type(control_env("CartPole-v0", 64)._engine) is classic_control.CartPole


def test_another_environment_under_the_same_entry_point_is_not_played_in_arrays(register):
    register("Sutton-v0", "gymnasium.envs.classic_control.cartpole:CartPoleEnv", kwargs={"sutton_barto_reward": True})
    env = control_env("Sutton-v0", 8)
    assert type(env._engine) is Loop
    env.reset(seed=0)
    assert env.step(np.zeros(8, dtype=int))[1].tolist() == [0.0] * 8


PHYSICS = {
    "CartPole-v1": {
        **{"gravity": 3.1, "masscart": 2.2, "masspole": 0.5, "length": 1.1, "force_mag": 3.7, "tau": 0.05},
        **{"x_threshold": 0.2, "theta_threshold_radians": 0.1},
    },
    "Acrobot-v1": {
        **{"LINK_LENGTH_1": 1.4, "LINK_MASS_1": 1.9, "LINK_MASS_2": 0.6, "LINK_COM_POS_1": 0.3, "LINK_COM_POS_2": 0.8},
        **{"LINK_MOI": 0.7, "MAX_VEL_1": 0.9, "MAX_VEL_2": 0.9, "dt": 0.05, "torque_noise_max": 0.4},
    },
    "MountainCar-v0": {
        **{"force": 0.003, "gravity": 0.001, "max_speed": 0.02, "min_position": -0.45, "max_position": -0.3},
        **{"goal_position": -0.35, "goal_velocity": 0.02},
    },
}


@pytest.mark.parametrize(("env_id", "name"), [(env_id, name) for env_id in CLASSIC for name in PHYSICS[env_id]])
def test_every_number_of_physics_acts_as_in_gymnasium(env_id, name, engine):
    """From step 20 on; before, nothing differs, and afterwards something does."""
    before = {0: [("goal_position", -0.35)]} if name == "goal_velocity" else {}
    _, same = compare(env_id, 2, 320, before)
    _, changed = compare(env_id, 2, 320, {**before, 20: [(name, PHYSICS[env_id][name])]})
    assert np.array_equal(same[:20], changed[:20]) and not np.array_equal(same, changed)


def test_every_number_of_physics_is_tested():
    for env_id in CLASSIC:
        assert control_env(env_id)._engine.names.keys() == PHYSICS[env_id].keys()


# episodes, by hand


class Scripted(gymnasium.Env):
    """Observation [steps of the episode, action, a number of the stream]; the reward is the action. Action 12 ends the
    episode, 13 truncates it, 14 does both. It has three numbers, and one that is none."""

    size, flag, _hidden = 3, True, 4

    def __init__(self, start=10):
        self.observation_space = Box(-1e300, 1e300, (3,), np.float64)
        self.action_space = Discrete(5, start=start)
        self.whole, self.ratio, self.text = 2, 0.5, "2"

    @property
    def derived(self):
        return 2.0 * self.ratio

    def _seen(self, action):
        return np.array([self.time, action, self.np_random.random() + self.ratio])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._seen(0), {"unused": 1}

    def step(self, action):
        assert isinstance(action, np.int64)
        self.time += 1
        return self._seen(action), float(action), action in (12, 14), action in (13, 14), {"unused": 1}


@pytest.fixture
def register():
    """`gymnasium.register` until the end of the test."""
    before = dict(gymnasium.registry)
    yield lambda env_id, entry_point, **more: gymnasium.register(env_id, entry_point, **more)
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def test_without_a_time_limit_it_is_refused(register):
    """An evaluation might never end."""
    register("Scripted-v0", Scripted)
    with pytest.raises(ValueError, match="Scripted-v0 is registered without a time limit: give one with"):
        ControlWorld("Scripted-v0").make()
    assert ControlWorld("Scripted-v0", max_episode_steps=7).make().rules["max_episode_steps"] == 7


def test_an_observation_of_another_shape_is_refused(register):
    class Scalar(Scripted):
        def _seen(self, action):
            return np.float64(1.0)  # NumPy would repeat it

    register("Scalar-v0", Scalar, max_episode_steps=7)
    with pytest.raises(ValueError, match=r"Scalar-v0 gave an observation of shape \(\), but has \(3,\)"):
        control_env("Scalar-v0", 2).reset(seed=1)


def test_episodes_by_hand(register):
    register("Scripted-v0", Scripted, max_episode_steps=3)
    env = control_env("Scripted-v0", 4)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and env.rules["max_episode_steps"] == 3
    assert env.single_action_space == Discrete(5) and env.action_space.shape == (4,)
    assert env.single_observation_space == Box(-np.inf, np.inf, (3,), np.float32)
    assert env.observation_space.shape == (4, 3) and env.observation_space.dtype == np.float32
    obs, infos = env.reset(seed=1)
    assert infos == {} and obs.dtype == np.float32 and obs[:, :2].tolist() == [[0, 0]] * 4
    first = [np.random.default_rng(game_seed(1, i) % 2**31).random() + 0.5 for i in range(4)]
    assert obs[:, 2].tolist() == np.float32(first).tolist()

    obs, rewards, terminated, truncated, infos = env.step(np.array([0, 1, 2, 3]))
    assert rewards.dtype == np.float64 and rewards.tolist() == [10, 11, 12, 13]
    assert terminated.tolist() == [False, False, True, False] and truncated.tolist() == [False, False, False, True]
    assert obs[:, :2].tolist() == [[1, 10], [1, 11], [0, 0], [0, 0]]
    assert infos.keys() == {"final_obs", "_final_obs", "episode", "_episode"}
    assert infos["final_obs"][:, :2].tolist() == [[1, 10], [1, 11], [1, 12], [1, 13]]
    assert infos["final_obs"].dtype == np.float32 and np.array_equal(infos["final_obs"][:2], obs[:2])
    assert infos["_final_obs"].tolist() == infos["_episode"].tolist() == [False, False, True, True]
    assert infos["episode"]["r"].tolist() == [0, 0, 12, 13] and infos["episode"]["l"].tolist() == [0, 0, 1, 1]

    obs, _, terminated, truncated, infos = env.step(np.array([0, 1, 0, 1]))
    assert not terminated.any() and not truncated.any() and infos == {}
    obs, _, terminated, truncated, infos = env.step(np.array([0, 2, 4, 0]))  # the limit of the first two
    assert terminated.tolist() == [False, True, True, False] and truncated.tolist() == [True, False, False, False]
    assert infos["episode"]["r"].tolist() == [30, 34, 24, 0] and infos["episode"]["l"].tolist() == [3, 3, 2, 0]
    assert obs[:, 0].tolist() == [0, 0, 0, 2] and np.array_equal(env.observation(), obs)
    obs, _, _, truncated, infos = env.step(np.zeros(4, dtype=np.uint8))  # the limit of the last
    assert truncated.tolist() == [False, False, False, True] and infos["episode"]["l"].tolist() == [0, 0, 0, 3]
    assert infos["episode"]["r"][3] == 31


@pytest.mark.parametrize("registered", [None, 5])
def test_the_time_limit_replaces_that_of_the_id(register, registered):
    register("Scripted-v0", Scripted, max_episode_steps=registered)
    for limit in (2, 8, None):
        env, lengths = control_env("Scripted-v0", 2, max_episode_steps=limit), []
        expected = limit or registered
        assert env.rules == {"env_id": "Scripted-v0", "num_envs": 2, "max_episode_steps": expected}
        env.reset(seed=0)
        for _ in range(40):
            infos = env.step(np.zeros(2, dtype=int))[4]
            lengths += infos["episode"]["l"].tolist() if infos else []
        assert lengths == ([expected] * (2 * (40 // expected)) if expected else [])


def test_the_time_limits_of_gymnasium_s_environments():
    limits = {"CartPole-v1": 500, "CartPole-v0": 200, "Acrobot-v1": 500, "MountainCar-v0": 200}
    assert {env_id: control_env(env_id).rules["max_episode_steps"] for env_id in limits} == limits


def test_a_longer_limit_of_mountain_car(engine):
    env = control_env("MountainCar-v0", 2, max_episode_steps=400)
    env.reset(seed=0)
    ends = [step for step in range(1, 1001) if env.step(np.ones(2, dtype=int))[4]]
    assert ends == [400, 800]
    env.reset()
    assert [step for step in range(1, 1001) if env.step(np.ones(2, dtype=int))[4]] == [400, 800]


def test_returned_arrays_are_safe_to_keep_and_to_change(engine):
    env, other = control_env("CartPole-v1", 2), control_env("CartPole-v1", 2)
    kept = play(env, 60)
    copied = copy.deepcopy(kept)
    expected = play(other, 120)[61:]
    for obs in (env.observation(), kept[0][0], kept[-1][0]):
        obs[:] = 0
    assert np.array_equal(env.observation(), copied[-1][0])
    kept[0] = copied[0]
    kept[-1] = copied[-1]
    assert equal(kept, copied)
    rng = np.random.default_rng(3)
    rng.integers(2, size=(60, 2))
    assert equal([env.step(rng.integers(2, size=2)) for _ in range(60)], expected)


# seeds


def test_equal_seeds_give_equal_results(engine):
    env, other = control_env("CartPole-v1", 3), control_env("CartPole-v1", 3)
    first = play(env, 130)
    assert equal(first, play(env, 130)) and equal(first, play(other, 130))
    env.reset(seed=[game_seed(3, i) % 2**31 for i in range(3)])
    assert equal(first[1:], play(env, 130, start=False))
    env.reset(seed=4)
    assert not equal(first[1:], play(env, 130, start=False))
    continued = env.reset()[0]
    assert not np.array_equal(continued, first[0][0]) and not np.array_equal(continued, env.reset()[0])
    assert not np.array_equal(control_env("CartPole-v1").reset()[0], control_env("CartPole-v1").reset()[0])


def test_environments_differ_and_do_not_depend_on_their_number():
    few, many = control_env("CartPole-v1", 2), control_env("CartPole-v1", 17)
    assert type(few._engine) is not type(many._engine)
    few.reset(seed=4)
    many.reset(seed=4)
    ours = np.stack([few.step(np.zeros(2, dtype=int))[0] for _ in range(60)])
    theirs = np.stack([many.step(np.zeros(17, dtype=int))[0] for _ in range(60)])
    assert np.array_equal(ours, theirs[:, :2]) and len({theirs[:, i].tobytes() for i in range(17)}) == 17


def test_the_global_random_stream_is_not_used(engine):
    before = np.random.get_state()[1].copy()
    play(control_env("CartPole-v1", 2), 60)
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.filterwarnings("ignore:.*A Box observation space m.* value is -?infinity")
@pytest.mark.parametrize("env_id", CLASSIC)
def test_gymnasium_s_check_env_passes(env_id, engine):
    env = SingleEnv(control_env(env_id))
    env.spec = gymnasium.spec(env_id)
    check_env(env, skip_render_check=True, skip_close_check=True)


# physics


def test_physics_by_hand(engine):
    """One step of the pole: twice the mass of the cart, and the force of Florian's equations."""
    env = control_env("CartPole-v1", 1)
    env.set_physics("masscart", 2.0)
    env.set_physics("masspole", 0.4)
    env.set_physics("length", 0.7)
    x, v, theta, omega = np.float64(env.reset(seed=0)[0][0])
    after = env.step(np.array([1]))[0][0]
    a = (10.0 + 0.4 * 0.7 * omega**2 * math.sin(theta)) / 2.4
    angular = (9.8 * math.sin(theta) - math.cos(theta) * a) / (0.7 * (4 / 3 - 0.4 * math.cos(theta) ** 2 / 2.4))
    linear = a - 0.4 * 0.7 * angular * math.cos(theta) / 2.4
    expected = [x + 0.02 * v, v + 0.02 * linear, theta + 0.02 * omega, omega + 0.02 * angular]
    assert after == pytest.approx(expected, rel=1e-6)


def test_physics_of_any_environment(register):
    register("Scripted-v0", Scripted)
    env = control_env("Scripted-v0", 2)
    with pytest.raises(ValueError) as error:
        env.physics("derived")
    assert str(error.value) == ("Scripted-v0 has no number 'derived' that can be changed; it has: size, whole, ratio")
    assert env.physics("whole") == 2.0 and type(env.physics("whole")) is float
    env.set_physics("whole", 3.0)
    env.set_physics("size", 2.5)
    inner = [one.unwrapped for one in env._engine._envs]
    assert [(type(one.whole), one.whole, one.size) for one in inner] == [(int, 3, 2.5)] * 2 and Scripted.size == 3
    env.reset(seed=0)
    before = env.step(np.zeros(2, dtype=int))[0]
    assert (before[:, 2] < 1.5).all()
    env.set_physics("ratio", -7.0)
    assert (env.step(np.zeros(2, dtype=int))[0][:, 2] < -6).all()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("mass", 1.0, "has no number 'mass' that can be changed; it has: gravity, force_mag"),
        ("total_mass", 1.0, "has no number 'total_mass'"),
        ("gravity", math.nan, "gravity of CartPole-v1 must be a finite number, got nan"),
        ("gravity", math.inf, "gravity of CartPole-v1 must be a finite number, got inf"),
        ("length", 0.0, "length of CartPole-v1 must be a positive number, got 0.0"),
        ("tau", -0.1, "tau of CartPole-v1 must be a positive number"),
    ],
)
def test_impossible_physics_is_refused(name, value, words, engine):
    env = control_env("CartPole-v1", 2)
    before = env.state_dict()
    with pytest.raises(ValueError, match=words):
        env.set_physics(name, value)
    with pytest.raises(ValueError, match="has no number 'mass'"):
        env.physics("mass")
    np.testing.assert_equal(env.state_dict(), before)
    with pytest.raises(ValueError, match="LINK_LENGTH_2"):  # is drawn only
        control_env("Acrobot-v1").set_physics("LINK_LENGTH_2", 2.0)


@pytest.mark.parametrize("env_id", CLASSIC)
def test_another_number_of_environments_keeps_physics_and_rules(env_id):
    name, value = next(iter(PHYSICS[env_id].items()))
    for first, second in ((1, 9), (9, 1)):
        env = control_env(env_id, first, max_episode_steps=33)
        env.set_physics(name, value)
        other = env.with_num_envs(second)
        assert type(env._engine) is not type(other._engine) and other.physics(name) == value
        assert other.rules == {"env_id": env_id, "num_envs": second, "max_episode_steps": 33}
        assert env.with_num_envs(2, 55).rules["max_episode_steps"] == 55
        ours, theirs = env.reset(seed=1)[0], other.reset(seed=1)[0]
        for _ in range(40):
            assert np.array_equal(ours[0], theirs[0])
            ours, theirs = (one.step(np.zeros(one.num_envs, dtype=int))[0] for one in (env, other))
        env.set_physics(name, 2 * value)
        assert other.physics(name) == value


def test_evaluation_keeps_the_present_physics():
    env = control_env("CartPole-v1", 2)
    env.set_physics("length", 0.9)
    copied = evaluation_world(env, 5, max_episode_steps=40)
    assert type(copied) is ControlVectorEnv and copied.physics("length") == 0.9
    assert copied.rules == {"env_id": "CartPole-v1", "num_envs": 5, "max_episode_steps": 40}
    assert evaluation_world(env, 5).rules["max_episode_steps"] == 500
    shifted = PermuteActions(ChangePhysics(env, EverySteps(10), "gravity", (9.8, 3.0)), NoChange(), 2)
    play(shifted, 5)
    frozen = evaluation_world(shifted, 5)
    inner = frozen.env.env
    assert inner.physics("gravity") == 3.0 and inner.physics("length") == 0.9
    play(shifted, 5, start=False)
    assert env.physics("gravity") == 9.8 and inner.physics("gravity") == 3.0
    play(frozen, 30)
    assert inner.physics("gravity") == 3.0


# saving

BOX2D = pytest.param("LunarLander-v3", marks=pytest.mark.skipif(not HAS_BOX2D, reason="needs Box2D and pygame"))
NUMBER = {"CartPole-v1": "length", "Acrobot-v1": "dt", "MountainCar-v0": "force", "LunarLander-v3": "gravity"}


@pytest.mark.parametrize("steps", [0, 1, 57, 260])
@pytest.mark.parametrize("env_id", [*CLASSIC, BOX2D])
def test_a_saved_environment_continues_exactly(env_id, steps, engine):
    if env_id == "LunarLander-v3" and engine == "arrays":
        pytest.skip("there is none in arrays")
    make = lambda: control_env(env_id, 2, max_episode_steps=97)  # noqa: E731
    env, other = make(), make()
    play(env, steps, seed=1)
    state = env.state_dict()
    kept = copy.deepcopy(state)
    ahead = play(env, 150, seed=8, start=False)
    play(other, 3, seed=9)
    other.set_physics(NUMBER[env_id], 0.7 * other.physics(NUMBER[env_id]))
    for again in (other, env, make()):
        again.load_state_dict(state)
        assert np.array_equal(again.observation(), state["obs"])
        assert again.physics(NUMBER[env_id]) == make().physics(NUMBER[env_id])
        np.testing.assert_equal(again.state_dict(), kept)
        assert equal(ahead, play(again, 150, seed=8, start=False))
    np.testing.assert_equal(env.state_dict(), other.state_dict())
    env.load_state_dict(state)
    env.reset(seed=0)
    np.testing.assert_equal(state, kept)


@pytest.mark.parametrize("env_id", [*CLASSIC, BOX2D])
def test_physics_that_changed_during_the_episode_is_resumed_exactly(env_id, engine):
    """Before the first reset, at the start of an episode, in it (twice in one step), and after the last step."""
    make = lambda: control_env(env_id, 2, max_episode_steps=40)  # noqa: E731
    env, other, name = make(), make(), NUMBER[env_id]
    value = env.physics(name)
    env.set_physics(name, 0.9 * value)
    env.reset(seed=2)
    env.set_physics(name, 0.8 * value)
    play(env, 45, start=False)
    env.set_physics(name, 0.5 * value)
    env.set_physics(name, 1.1 * value)
    play(env, 7, seed=4, start=False)
    env.set_physics(name, 0.95 * value)
    state = env.state_dict()
    ahead = play(env, 100, seed=8, start=False)
    other.load_state_dict(state)
    np.testing.assert_equal(other.state_dict(), state)
    assert other.physics(name) == 0.95 * value
    assert equal(ahead, play(other, 100, seed=8, start=False))
    np.testing.assert_equal(env.state_dict(), other.state_dict())


def test_an_environment_that_was_never_reset_can_be_saved(engine):
    env, other = control_env("CartPole-v1", 2), control_env("CartPole-v1", 2)
    env.set_physics("gravity", 5.0)
    state = env.state_dict()
    other.reset(seed=1)
    other.load_state_dict(state)
    with pytest.raises(gymnasium.error.ResetNeeded):
        other.step(np.array([0, 0]))
    assert other.physics("gravity") == 5.0
    assert np.array_equal(env.reset()[0], other.reset()[0])
    assert equal(play(env, 60, start=False), play(other, 60, start=False))


def test_the_state_of_another_environment_is_refused(monkeypatch):
    env = control_env("CartPole-v1", 8)
    env.reset(seed=0)
    before = env.state_dict()
    others = [control_env("CartPole-v1", 9), control_env("CartPole-v0", 8)]
    others.append(control_env("CartPole-v1", 8, max_episode_steps=400))
    choose(monkeypatch, "loop")
    others.append(control_env("CartPole-v1", 8))
    for state in (*(other.state_dict() for other in others), {}):
        with pytest.raises(ValueError, match="this state is of an environment built with"):
            env.load_state_dict(state)
    np.testing.assert_equal(env.state_dict(), before)


class Counts(Scripted):
    """Something carries over from one episode to the next, and is seen in `where`."""

    def __init__(self, where="obs"):
        super().__init__(start=0)
        self.where, self.total = where, 0

    def reset(self, *, seed=None, options=None):
        self.total += 1
        return super().reset(seed=seed)

    def step(self, action):
        obs, reward, *rest = super().step(action)
        if self.where == "stream" and self.total > 1 and self.time == 2:  # the last step, whose observation is drawn
            self.np_random.random()
        return obs + (self.where == "obs") * self.total, reward + (self.where == "reward") * self.total, *rest


@pytest.mark.parametrize("where", ["obs", "reward", "stream"])
def test_an_environment_that_cannot_be_resumed_is_refused(register, where):
    register("Counts-v0", Counts, kwargs={"where": where}, max_episode_steps=10)
    env, other = control_env("Counts-v0", 2), control_env("Counts-v0", 2)
    play(env, 7)
    other.load_state_dict(env.state_dict())  # the first episode carries nothing
    play(env, 15, start=False)
    other.set_physics("ratio", 3.0)
    before = other.state_dict()
    with pytest.raises(ValueError) as error:
        other.load_state_dict(env.state_dict())
    assert str(error.value) == (
        "Counts-v0 is not determined by its random stream and its actions, so it cannot be resumed exactly: "
        "environment 0, 2 steps into its episode, came elsewhere"
    )
    np.testing.assert_equal(other.state_dict(), before)
    assert other.physics("ratio") == 3.0


def test_closing_closes_all(register):
    closed = []

    class Closes(Scripted):
        def close(self):
            closed.append(self)

    register("Closes-v0", Closes)
    env = control_env("Closes-v0", 3)
    env.reset(seed=0)
    env.load_state_dict(env.state_dict())
    assert len(closed) == 3
    env.close()
    env.close()
    assert len({id(one) for one in closed}) == len(closed) == 6


# what is refused, and what else is taken


def test_an_id_of_another_package(tmp_path, monkeypatch, register):
    (tmp_path / "their_package.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('theirs/Pole-v3', CartPoleEnv, max_episode_steps=12)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = control_env("their_package:theirs/Pole-v3", 8)
    assert type(env._engine) is Loop and env.rules["max_episode_steps"] == 12
    assert env.with_num_envs(2).rules["env_id"] == "their_package:theirs/Pole-v3"
    assert equal(play(env, 30), play(control_env("CartPole-v1", 8, max_episode_steps=12), 30))
    with pytest.raises(ValueError, match=r"'their_package:theirs/Pole-v4'\. Did you mean theirs/Pole-v3"):
        control_env("their_package:theirs/Pole-v4")


class Other(Scripted):
    def __init__(self, observations=None, actions=None):
        super().__init__()
        self.observation_space = observations or self.observation_space
        self.action_space = actions or self.action_space


IMAGES = Box(0, 255, (84, 84, 3), np.uint8)
FLAT = Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("spaces", "words"),
    [
        ({"observations": Discrete(4)}, r"has observations Discrete\(4\), but a flat Box of floats is needed$"),
        (
            {"observations": IMAGES},
            r"has observations Box\(0, 255, \(84, 84, 3\), uint8\).*ppo_minatar.py and ppo_atari",
        ),
        ({"observations": Box(0, 255, (128,), np.uint8)}, r"Box\(0, 255, \(128,\), uint8\), but a flat Box of floats"),
        ({"observations": Box(-1, 1, (2, 2), np.float32)}, r"Box\(-1.0, 1.0, \(2, 2\), float32\), but a flat Box"),
        ({"observations": Dict({"a": FLAT})}, r"has observations Dict\('a': Box"),
        ({"actions": FLAT}, r"has continuous actions Box\(-1.0, 1.0, \(2,\), float32\).*this policy is categorical"),
        ({"actions": gymnasium.spaces.MultiDiscrete([2, 2])}, r"has actions MultiDiscrete\(\[2 2\]\), but Discrete"),
    ],
)
def test_other_spaces_are_refused(register, spaces, words):
    register("Other-v0", Other, kwargs=spaces)
    with pytest.raises(ValueError, match=words):
        control_env("Other-v0")


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("Cartpole-v1", "unknown environment 'Cartpole-v1'. Did you mean CartPole-v1 or CartPole-v0?"),
        ("CartPole", "unknown environment 'CartPole'. Did you mean CartPole-v1"),
        ("zzzzqqqq", "unknown environment 'zzzzqqqq'. Give one of gymnasium.registry"),
        ("no_such_module:Env-v0", "no_such_module:Env-v0: the module 'no_such_module' cannot be imported"),
        ("MinAtar/Breakout-v1", "agents/ppo_minatar.py is for it"),
        ("ALE/Pong-v5", "agents/ppo_atari.py is for it"),
        ("rewarm/Catch-v0", "agents/ppo_atari.py is for it"),
        ("Pendulum-v1", "continuous actions"),
    ],
)
def test_unsuitable_ids_are_refused(env_id, words):
    with pytest.raises(ValueError) as error:
        control_env(env_id)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["Box2D", "pygame"])
def test_without_box2d_the_remedy_is_named(missing, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    if missing == "pygame":
        if not HAS_BOX2D:
            pytest.skip("needs Box2D and pygame")
        control_env("LunarLander-v3")  # Box2D cannot be imported with warnings as errors, which `make` turns off
        for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=r"^LunarLander-v3 needs Box2D and pygame: pip install -e '.\[box2d\]'$"):
        control_env("LunarLander-v3")


def test_a_missing_package_is_named(register):
    register("Missing-v0", "no_such_module:Env")
    with pytest.raises(ValueError, match="Missing-v0 cannot be built: No module named 'no_such_module'"):
        control_env("Missing-v0")


@pytest.mark.skipif(not HAS_BOX2D, reason="needs Box2D and pygame")
def test_lunar_lander_equals_gymnasium():
    ours, theirs = control_env("LunarLander-v3", 3), Gymnasium("LunarLander-v3", 3)
    assert np.array_equal(ours.reset(seed=5)[0], theirs.reset(5))
    rng, ended = np.random.default_rng(0), 0
    for step in range(600):
        if step == 300:
            ours.set_physics("gravity", -5.0)
            theirs.set("gravity", -5.0)
        actions = rng.integers(4, size=3)
        got, expected = ours.step(actions), theirs.step(actions)
        assert equal(got[:4], expected[:4])
        ended += (expected[2] | expected[3]).sum()
    assert ended > 5


def test_invalid_arguments_raise(engine):
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        control_env("CartPole-v1", 0)
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1, or None for the id's own, got 0"):
        control_env("CartPole-v1", max_episode_steps=0)
    env = control_env("CartPole-v1", 2)
    for call in (env.observation, lambda: env.step(np.array([0, 0]))):
        with pytest.raises(gymnasium.error.ResetNeeded):
            call()
    env.reset(seed=0)
    before = env.state_dict()
    for actions, words in (
        ([0, 2], "actions must lie in 0 .. 1, got"),
        ([-1, 0], "actions must lie in 0 .. 1, got"),
        ([0], r"integers of shape \(2,\), got int64 \(1,\)"),
        ([0.0, 1.0], "integers of shape"),
    ):
        with pytest.raises(ValueError, match=words):
            env.step(np.array(actions))
    for seed in ([1], [1, -1], [1, 2**31], [1, None]):
        with pytest.raises(ValueError, match=r"takes 2 integers in 0 .. 2\*\*31 - 1"):
            env.reset(seed=seed)
    with pytest.raises(ValueError, match="takes no options"):
        env.reset(options={"low": 0.0})
    np.testing.assert_equal(env.state_dict(), before)
