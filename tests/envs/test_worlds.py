"""Environments from one description."""

import numpy as np
import pytest

from envs.atari import AtariVectorEnv, ThreadedAtariVectorEnv
from envs.catch import CatchVectorEnv
from envs.control import ControlVectorEnv, control_env
from envs.frames import StackFrames
from envs.minatar import MinAtarVectorEnv
from envs.shifts import ChangePhysics, DriftPhysics, EnvSequence, PermuteActions, RepeatActions, Shift
from envs.timetables import AtRandom, AtSteps, EverySteps, NoChange
from envs.worlds import ControlWorld, ScreenWorld, World, evaluation_world, resumed_observation, screen_env
from tests.envs.rollouts import equal, play

GAMES = ("MinAtar/Breakout-v0", "MinAtar/Seaquest-v0", "MinAtar/Freeway-v0")
SETTINGS = {"rewards": (1.0, -1.0), "sticky": (0.1, 0.5), "noise": (0.0, 0.2)}


def test_kind_none_is_the_bare_environment():
    env = World(GAMES[:1], num_envs=3).make()
    assert type(env) is MinAtarVectorEnv and env.num_envs == 3
    assert env._config["sticky_action_prob"] == 0.1


def test_a_chain_of_games_pads_to_the_widest():
    env = World(GAMES, 2, "games", EverySteps(10)).make()
    assert isinstance(env, EnvSequence) and env.single_observation_space.shape == (10, 10, 10)
    assert env.reset(seed=1)[0][:, 4:].sum() == 0  # Breakout has four channels
    seen = {env.step(np.zeros(2, dtype=int))[-1].get("shift", {}).get("env", {}).get("task") for _ in range(15)}
    assert seen == {None, 0, 1, 2}


@pytest.mark.parametrize("kind", ["actions", "channels", "pixels", "rewards", "sticky", "noise"])
def test_every_kind_changes_and_can_be_evaluated_in(kind):
    given = {"values": SETTINGS[kind]} if kind in SETTINGS else {"tasks": 3}
    env = World(GAMES[:1], 2, kind, AtSteps([10]), **given).make()
    assert isinstance(env, Shift)
    env.reset(seed=1)
    for _ in range(6):
        env.step(np.ones(2, dtype=int))
    assert env.task == 1
    test = evaluation_world(env, 5, max_episode_steps=20)
    test.reset(seed=2)
    assert test.num_envs == 5 and test.task == 1
    ended = np.zeros(5, dtype=bool)
    for _ in range(20):
        _, _, terminated, truncated, _ = test.step(np.zeros(5, dtype=int))
        ended |= terminated | truncated
    assert ended.all()


def test_kind_sticky_turns_the_games_own_sticky_actions_off():
    env = World(GAMES[:1], 1, "sticky", AtSteps([10]), values=(0.3, 0.6)).make()
    assert isinstance(env, RepeatActions) and env.env._config["sticky_action_prob"] == 0.0


def test_evaluation_without_shifts_is_the_bare_game():
    bare = World(GAMES[:1]).make()
    test = evaluation_world(bare, 4, max_episode_steps=50)
    twin = MinAtarVectorEnv(GAMES[0], 4, max_episode_steps=50)
    assert np.array_equal(test.reset(seed=5)[0], twin.reset(seed=5)[0])
    assert test._config == twin._config


def test_invalid_descriptions_raise():
    with pytest.raises(ValueError, match="needs exactly one game, got 3"):
        World(GAMES, 1, "actions", EverySteps(10)).make()
    with pytest.raises(ValueError, match="all actions"):
        World(("MinAtar/Breakout-v1", "MinAtar/Seaquest-v1"), 1, "games", EverySteps(10)).make()
    with pytest.raises(ValueError, match="unknown MinAtar"):
        World(("MinAtar/Brakeout-v1",)).make()
    for unused in ({"timetable": EverySteps(10)}, {"tasks": 3}, {"values": (1.0, 2.0)}):
        with pytest.raises(ValueError, match=rf"\['{next(iter(unused))}'\] would change nothing"):
            World(GAMES[:1], **unused).make()
    with pytest.raises(ValueError, match=r"\['tasks'\] would change nothing with kind 'rewards'"):
        World(GAMES[:1], 1, "rewards", EverySteps(10), tasks=3, values=(1.0, 2.0)).make()
    with pytest.raises(TypeError, match="is not an environment"):
        evaluation_world(object(), 1)


# games on a screen

BREAKOUT, PONG, CATCH = "ALE/Breakout-v5", "ALE/Pong-v5", "rewarm/Catch-v0"
LISTED = {"rewards": (1.0, -1.0), "sticky": (0.1, 0.5), "noise": (0.0, 0.2), "modes": (0, 12), "difficulties": (0, 1)}
CATCH_KINDS = ("actions", "pixels", "rewards", "sticky", "noise")
KINDS = [*((CATCH, kind) for kind in CATCH_KINDS), *((BREAKOUT, kind) for kind in ("games", "modes", "sticky"))]


def screen(game, kind, when, num_envs=2, **rules):
    """A description of this kind; with kind games, Breakout and Pong alternate."""
    given = {"values": LISTED[kind]} if kind in LISTED else {}
    return ScreenWorld((BREAKOUT, PONG) if kind == "games" else (game,), num_envs, kind, when, **given, **rules)


def test_a_screen_without_shifts_is_the_stacked_game():
    env = ScreenWorld((CATCH,), 3, sticky_action_prob=0.1).make()
    assert type(env) is StackFrames and type(env.env) is CatchVectorEnv
    assert env.single_observation_space.shape == (4, 84, 84)
    assert env.env.rules == {"num_envs": 3, "sticky_action_prob": 0.1}
    assert ScreenWorld((CATCH,)).make().env.rules == {"num_envs": 1, "sticky_action_prob": 0.25}
    env = ScreenWorld((BREAKOUT,), sticky_action_prob=0.5, noop_max=3).make()
    assert type(env) is StackFrames and type(env.env) is AtariVectorEnv
    assert env.env.rules == AtariVectorEnv(BREAKOUT, sticky_action_prob=0.5, noop_max=3).rules
    env = ScreenWorld((BREAKOUT,), 2, threads=2).make()
    assert type(env.env) is ThreadedAtariVectorEnv and env.env.rules["threads"] == env.num_envs == 2


@pytest.mark.parametrize(("game", "kind"), [(CATCH, kind) for kind in CATCH_KINDS] + [(PONG, "modes"), (PONG, "games")])
def test_a_shift_by_nothing_equals_the_bare_screen_bit_for_bit(game, kind):
    first = {"rewards": (1.0,), "sticky": (0.0,), "noise": (0.0,), "modes": (0,)}
    given = {"values": first[kind]} if kind in first else {}
    num_envs, steps = (2, 230) if game == CATCH else (1, 25)
    env = ScreenWorld((game,), num_envs, kind, NoChange(), **given).make()
    rules = {"games": {"full_action_space": True}, "sticky": {"sticky_action_prob": 0.0}}.get(kind, {})
    bare = StackFrames(screen_env(game, num_envs, **rules))
    assert isinstance(env.env, Shift)
    ours, theirs = play(env, steps), play(bare, steps)
    assert np.array_equal(ours[0][0], theirs[0][0]) and equal(ours[1:], theirs[1:])
    assert game != CATCH or sum(out[3].sum() for out in ours[1:]) == 4


@pytest.mark.parametrize(("game", "kind"), KINDS)
def test_every_kind_on_a_screen_changes_is_saved_and_can_be_evaluated_in(game, kind):
    """Breakout with sticky actions, no-op starts, and a change between saving and the end."""
    rules = {} if game == CATCH else {"noop_max": 5}
    make = lambda: screen(game, kind, AtSteps([20, 60]), **rules).make()  # noqa: E731
    env, other = make(), make()
    play(env, 17)
    assert env.env.task == 1
    state = env.state_dict()
    ahead = play(env, 40, seed=8, start=False)
    assert [step for step, out in enumerate(ahead, 1) if "shift" in out[-1]] == [13] and ahead[12][3].all()
    end = env.state_dict()
    other.load_state_dict(state)
    seen, continues = resumed_observation(other)
    assert continues and np.array_equal(seen, state["stack"])
    assert equal(ahead, play(other, 40, seed=8, start=False))
    np.testing.assert_equal(other.state_dict(), end)

    env.load_state_dict(state)
    test = evaluation_world(env, 1)
    assert type(test) is StackFrames and test.num_envs == 1 and type(test.env) is type(env.env)
    assert test.single_observation_space == env.single_observation_space
    assert not any("shift" in out[-1] for out in play(test, 40, seed=2)[1:]) and test.env.task == 1
    for attribute in ("_order", "_factor", "_probability"):
        if hasattr(env.env, attribute):
            assert np.array_equal(getattr(test.env, attribute), getattr(env.env, attribute))


@pytest.mark.parametrize("kind", ["noise", "pixels"])
def test_a_frame_is_changed_once_and_stays_the_same_in_the_stacks(kind):
    given = {"sticky_action_prob": 0.0}
    env, bare = screen(CATCH, kind, AtSteps([40]), **given).make(), StackFrames(CatchVectorEnv(2, **given))
    last, rng = env.reset(seed=1)[0], np.random.default_rng(0)
    bare.reset(seed=1)
    for step in range(1, 151):
        actions = rng.integers(3, size=2)
        obs, _, _, truncated, infos = env.step(actions)
        clean = bare.step(actions)[0]
        if step == 20:  # the change
            clean = bare.reset()[0]
        newest = infos["final_obs"] if truncated.all() else obs
        assert np.array_equal(newest[:, :-1], last[:, 1:])
        assert truncated.all() == truncated.any() == (step in (20, 130))
        assert not truncated.any() or not obs[:, :-1].any()
        differ = (obs != clean).mean((0, 2, 3))
        if step < 20:
            assert not differ.any()
        elif kind == "noise":
            there = obs.any((0, 2, 3))
            assert (np.abs(differ[there] - 0.2 * 255 / 256) < 0.02).all() and not differ[~there].any()
        else:  # the permutation is the same in every frame
            flat, order = clean.reshape(2, 4, -1), env.env._order
            assert np.array_equal(flat[:, :, order].reshape(obs.shape), obs) and differ[-1] > 0
        last = obs


@pytest.mark.parametrize(("kind", "second"), [("modes", (12, 0)), ("difficulties", (0, 1))])
def test_modes_and_difficulties_change_in_the_emulator(kind, second):
    env = screen(BREAKOUT, kind, EverySteps(16), 1).make()

    def setting():
        state = env.env.env._emulators[0].cloneState()
        return state.getCurrentMode(), state.getDifficulty()

    first, settings = env.reset(seed=1)[0], [setting()]
    for step in range(1, 49):
        obs, _, _, truncated, infos = env.step(np.array([1]))
        if step % 16 == 0:
            assert truncated.all() and infos["shift"]["env"]["task"] == step // 16 % 2
            assert np.array_equal(obs, first) == (step // 16 == 2)  # the first frame shows the setting
            settings.append(setting())
    assert settings == [(0, 0), second, (0, 0), second]
    test = evaluation_world(env, 1)
    test.reset(seed=5)
    state = test.env.env._emulators[0].cloneState()
    assert (state.getCurrentMode(), state.getDifficulty()) == second
    assert [one.rules[{"modes": "mode"}.get(kind, "difficulty")] for one in env.env._envs] == list(LISTED[kind])


def test_games_have_all_actions_and_follow_each_other():
    env = screen("", "games", EverySteps(10), 1).make()
    assert isinstance(env.env, EnvSequence) and env.single_action_space.n == 18
    twins = [AtariVectorEnv(game, full_action_space=True) for game in (BREAKOUT, PONG)]
    first = [twin.reset(seed=1)[0] for twin in twins]
    obs = env.reset(seed=1)[0]
    assert np.array_equal(obs[:, 3:], first[0]) and not obs[:, :3].any()
    for game in (0, 1):
        for _ in range(10):
            actions = np.array([17])
            obs, rewards, _, truncated, infos = env.step(actions)
            seen, theirs, *_ = twins[game].step(actions)
            assert np.array_equal(rewards, theirs)
            assert np.array_equal((infos["final_obs"] if truncated.all() else obs)[:, 3:], seen)
        assert truncated.all() and np.array_equal(obs[:, 3:], twins[1 - game].reset()[0])


def test_a_resumed_environment_reports_whether_its_episodes_continue():
    bare = World(GAMES[:1], 2, "actions", AtSteps([10])).make()
    play(bare, 7)
    obs, continues = resumed_observation(bare)
    assert continues and np.array_equal(obs, bare.observation())

    make = lambda: screen(PONG, "actions", AtSteps([10]), 1, threads=1).make()  # noqa: E731
    env, other = make(), make()
    before = play(env, 14)[-1][0]
    state = env.state_dict()
    runs = []
    for resumed in (other, env):
        resumed.load_state_dict(state)
        obs, continues = resumed_observation(resumed)
        assert not continues and not np.array_equal(obs, before)
        assert not obs[:, :3].any() and obs[:, 3].any() and np.array_equal(obs, resumed.observation())
        assert resumed.env.task == 1 and resumed.env.steps == 14  # the task is as it was saved
        runs.append(play(resumed, 10, seed=4, start=False))
    assert equal(*runs) and np.array_equal(runs[0][0][0][:, 2], obs[:, 3])


def test_evaluation_on_a_screen():
    bare = ScreenWorld((CATCH,), 2).make()
    test = evaluation_world(bare, 3)
    twin = StackFrames(CatchVectorEnv(3), 4)
    assert equal(play(test, 115), play(twin, 115))
    assert evaluation_world(StackFrames(CatchVectorEnv(2), 3), 1).single_observation_space.shape[0] == 3
    assert type(evaluation_world(CatchVectorEnv(2), 3)) is CatchVectorEnv
    threaded = evaluation_world(ScreenWorld((PONG,), 1, threads=2).make(), 2)
    assert type(threaded.env) is ThreadedAtariVectorEnv and threaded.env.rules["threads"] == threaded.num_envs == 2


def test_a_time_limit_for_games_on_a_screen_is_refused():
    env = ScreenWorld((CATCH,), 2, "rewards", AtSteps([10]), values=(1.0, 2.0)).make()
    env.reset(seed=1)
    for world in (env, env.env, CatchVectorEnv(2)):
        with pytest.raises(ValueError, match="max_episode_steps 7 is for MinAtar"):
            evaluation_world(world, 3, max_episode_steps=7)


def test_kind_sticky_turns_the_screen_games_own_sticky_actions_off():
    for game in (CATCH, PONG):
        env = ScreenWorld((game,), 1, "sticky", AtSteps([10]), values=(0.3, 0.6)).make()
        assert isinstance(env.env, RepeatActions) and env.env.env.rules["sticky_action_prob"] == 0.0
    env = ScreenWorld((CATCH,), 1, "actions", AtSteps([10]), tasks=3).make()
    assert isinstance(env.env, PermuteActions) and env.env.tasks == 3


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (ScreenWorld((BREAKOUT,), 1, "modes", EverySteps(9), values=(0, 5)), r"no mode 5: there are \[0, 4, 8"),
        (
            ScreenWorld((BREAKOUT,), 1, "difficulties", EverySteps(9), values=(0, 3)),
            r"no difficulty 3: there are \[0, 1",
        ),
        (
            ScreenWorld((BREAKOUT,), 1, "modes", EverySteps(9), values=(0, 4), threads=1),
            "does not support mode: use threads=0",
        ),
        (
            ScreenWorld((BREAKOUT,), 1, "difficulties", EverySteps(9), values=(0, 1), threads=1),
            "does not support difficulty: use threads=0",
        ),
        (ScreenWorld((BREAKOUT,), 1, "modes", EverySteps(9), values=(0, 4.5)), "modes must be whole numbers"),
        (ScreenWorld((BREAKOUT,), 1, "modes", EverySteps(9)), "at least one environment"),
        (
            ScreenWorld((BREAKOUT, PONG), 1, "difficulties", EverySteps(9), values=(0, 1)),
            "kind 'difficulties' needs exactly one game, got 2",
        ),
        (ScreenWorld((BREAKOUT, PONG)), "kind 'none' needs exactly one game, got 2"),
        (ScreenWorld((CATCH,), 1, "modes", EverySteps(9), values=(0, 1)), "Catch-v0 does not support mode"),
        (
            ScreenWorld((CATCH,), 1, "difficulties", EverySteps(9), values=(1, 0)),
            "Catch-v0 does not support difficulty",
        ),
        (ScreenWorld((CATCH, CATCH), 1, "games", EverySteps(9)), "Catch-v0 does not support full_action_space"),
        (ScreenWorld((CATCH,), noop_max=3, threads=2), "Catch-v0 does not support noop_max, threads"),
        (ScreenWorld((CATCH,), 1, "flavour"), "kind 'flavour' is unknown"),
        (ScreenWorld((CATCH,), 1, "channels", EverySteps(9)), "1 things have 1 permutations"),
        (ScreenWorld((CATCH,), timetable=EverySteps(9)), r"\['timetable'\] would change nothing"),
        (ScreenWorld((CATCH,), 1, "noise", EverySteps(9), 3, (0.0, 0.1)), r"\['tasks'\] would change nothing"),
        (ScreenWorld((CATCH,), 1, "pixels", EverySteps(9), values=(1.0,)), r"\['values'\] would change nothing"),
        (ScreenWorld(("ALE/Brekout-v5",)), "is not an Atari game"),
    ],
)
def test_invalid_descriptions_of_screens_raise(world, message):
    with pytest.raises(ValueError, match=message):
        world.make()


# control

CARTPOLE = "CartPole-v1"
CONTROL = {
    **{kind: {"tasks": 3} for kind in ("offsets", "rotations", "gains")},
    "actions": {"tasks": 2},
    "rewards": {"values": (1.0, -1.0)},
    "sticky": {"values": (0.0, 0.5)},
    "physics": {"values": (0.5, 2.0), "what": "length"},
}
DRIFT = {"values": (0.5, 2.0), "what": "length", "drift": True}


def test_control_without_shifts_is_the_bare_environment():
    env = ControlWorld(CARTPOLE, 3).make()
    assert type(env) is ControlVectorEnv and env.rules["max_episode_steps"] == 500
    ours, theirs = play(env, 200), play(control_env(CARTPOLE, 3), 200)
    assert equal(ours, theirs) and sum("episode" in out[-1] for out in ours[1:]) > 10
    assert ControlWorld(CARTPOLE, max_episode_steps=30).make().rules["max_episode_steps"] == 30


@pytest.mark.parametrize("kind", CONTROL)
def test_every_kind_of_control_changes_is_saved_and_can_be_evaluated_in(kind):
    make = lambda: ControlWorld(CARTPOLE, 2, kind, AtSteps([20, 60]), **CONTROL[kind]).make()  # noqa: E731
    env, other, bare = make(), make(), control_env(CARTPOLE, 2)
    start = play(env, 17)
    assert isinstance(env, Shift) and env.name == kind and env.task == 1
    assert equal([out[0] for out in start[:10]], [out[0] for out in play(bare, 9)])
    assert not np.array_equal(start[11][0], play(bare, 11)[-1][0])
    state = env.state_dict()
    ahead = play(env, 40, seed=8, start=False)
    assert [step for step, out in enumerate(ahead, 1) if "shift" in out[-1]] == [13] and ahead[12][3].all()
    other.load_state_dict(state)
    seen, continues = resumed_observation(other)
    assert continues and np.array_equal(seen, state["obs"])
    assert equal(ahead, play(other, 40, seed=8, start=False))

    env.load_state_dict(state)
    test = evaluation_world(env, 5, max_episode_steps=20)
    assert type(test) is type(env) and test.num_envs == 5
    assert test.single_observation_space == env.single_observation_space
    outs = play(test, 40, seed=2)[1:]
    assert not any("shift" in out[-1] for out in outs) and test.task == 1
    assert max(out[-1]["episode"]["l"].max() for out in outs if "episode" in out[-1]) <= 20


def test_evaluation_while_the_physics_drifts_has_the_present_value():
    env = ControlWorld(CARTPOLE, 2, "physics", EverySteps(50), **DRIFT).make()
    assert type(env) is DriftPhysics and env.period == 50
    out = play(env, 20)
    assert not any("shift" in one[-1] for one in out[1:]) and out[-1][-1]["physics"]["length"] == pytest.approx(1.7)
    test = evaluation_world(env, 4)
    assert all(one[-1]["physics"] == out[-1][-1]["physics"] for one in play(test, 30))
    assert test.env.physics("length") == env.env.physics("length") == out[-1][-1]["physics"]["length"]
    obs, continues = resumed_observation(env)
    assert continues and np.array_equal(obs, out[-1][0])


def test_a_drift_without_changes_stays_at_the_first_value():
    env = ControlWorld(CARTPOLE, 2, "physics", NoChange(), **DRIFT).make()
    assert type(env) is ChangePhysics and env.timetable == NoChange() and env.values == (0.5, 2.0)


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (ControlWorld(CARTPOLE, 1, "flavour"), "kind 'flavour' is unknown"),
        (ControlWorld(CARTPOLE, 1, "noise", EverySteps(9)), "kind 'noise' is unknown"),
        (ControlWorld(CARTPOLE, 1, "games", EverySteps(9)), "kind 'games' is unknown"),
        (ControlWorld(CARTPOLE, timetable=EverySteps(9)), r"\['timetable'\] would change nothing with kind 'none'"),
        (ControlWorld(CARTPOLE, scale=1.0), r"\['scale'\] would change nothing with kind 'none'"),
        (ControlWorld(CARTPOLE, 1, "rotations", EverySteps(9), scale=1.0), r"\['scale'\] would change nothing"),
        (ControlWorld(CARTPOLE, 1, "actions", EverySteps(9), what="length"), r"\['what'\] would change nothing"),
        (ControlWorld(CARTPOLE, 1, "offsets", EverySteps(9), drift=True), r"\['drift'\] would change nothing"),
        (ControlWorld(CARTPOLE, 1, "offsets", EverySteps(9), values=(1.0, 2.0)), r"\['values'\] would change nothing"),
        (ControlWorld(CARTPOLE, 1, "physics", EverySteps(9), tasks=3, **DRIFT), r"\['tasks'\] would change nothing"),
        (ControlWorld(CARTPOLE, 1, "physics", AtSteps([9]), **DRIFT), r"drift needs a period, EverySteps, got AtSteps"),
        (ControlWorld(CARTPOLE, 1, "physics", AtRandom(0.1), **DRIFT), r"drift needs a period, EverySteps, got AtRand"),
        (ControlWorld(CARTPOLE, 1, "physics", EverySteps(9), values=(1.0, 2.0)), "CartPole-v1 has no number ''"),
        (ControlWorld("CartPool-v1"), "CartPole"),
    ],
)
def test_invalid_descriptions_of_control_raise(world, message):
    with pytest.raises(ValueError, match=message) as caught:
        world.make()
    assert "\n" not in str(caught.value)
