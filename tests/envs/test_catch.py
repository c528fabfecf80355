"""envs.catch: the rules by hand, and the best return by recursion and by playing."""

from __future__ import annotations

import copy
from functools import cache

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import catch
from envs.catch import CatchVectorEnv, best_return
from envs.frames import StackFrames
from envs.minatar import game_seed
from tests.envs.rollouts import equal, play
from tests.envs.single import SingleEnv

STAY, LEFT, RIGHT = 0, 1, 2


def cells(frame):
    """Where the ball is (row, column), and the columns of the paddle; each cell must be of one colour."""
    grid = frame[::7, ::7]
    assert grid.shape == (12, 12) and np.array_equal(frame, np.kron(grid, np.ones((7, 7), dtype=np.uint8)))
    assert set(np.unique(grid)) <= {0, 128, 255} and (grid[:-1] != 128).all()
    (ball,) = np.argwhere(grid == 255).tolist()
    return tuple(ball), np.flatnonzero(grid[-1] == 128).tolist()


def aimed(env):
    """Towards the column of the ball."""
    return np.array([STAY, RIGHT, LEFT])[np.sign(env._ball - env._paddle)]


def returns(env, choose):
    """Returns of one episode in each environment."""
    for _ in range(110):
        *_, truncated, infos = env.step(choose(env))
    assert truncated.all()
    return infos["episode"]["r"]


def test_a_ball_by_hand():
    env = CatchVectorEnv(2, sticky_action_prob=0.0)
    obs, infos = env.reset(seed=3)
    balls = [np.random.default_rng(game_seed(3, i) % 2**31).integers(12) for i in range(2)]
    assert infos == {} and env.observation_space.contains(obs)
    assert [cells(obs[i, 0]) for i in range(2)] == [((0, ball), [5, 6, 7]) for ball in balls]
    paddles = np.array([6, 6])
    for row in range(1, 12):
        obs, rewards, terminated, truncated, infos = env.step(np.array([LEFT, RIGHT]))
        paddles = np.array([max(1, 6 - row), min(10, 6 + row)])  # up to the wall
        assert not terminated.any() and not truncated.any() and infos == {}
        if row == 11:
            break
        assert rewards.tolist() == [0.0, 0.0]
        for i in range(2):
            ball, paddle = cells(obs[i, 0])
            assert ball == (row, balls[i]) and paddle == [paddles[i] - 1, paddles[i], paddles[i] + 1]
    assert rewards.tolist() == [1.0 if balls[0] <= 2 else -1.0, 1.0 if balls[1] >= 9 else -1.0]
    for i, paddle in enumerate(paddles):  # the next ball falls at once; the paddle stays in place
        ball, columns = cells(obs[i, 0])
        assert ball[0] == 0 and columns == [paddle - 1, paddle, paddle + 1]


def test_a_ball_is_caught_by_any_of_the_three_cells_and_missed_otherwise():
    """Every column against every paddle: one cell to each side is caught; the ball is drawn over the paddle."""
    for paddle in range(1, 11):
        env = CatchVectorEnv(12, sticky_action_prob=0.0)
        env.reset(seed=0)
        env._ball, env._row, env._paddle = np.arange(12), np.full(12, 10), np.full(12, paddle)
        env._balls[:] = 9  # the frame of the landing is then in final_obs
        _, rewards, _, truncated, infos = env.step(np.zeros(12, dtype=int))
        assert rewards.tolist() == [1.0 if paddle - 1 <= ball <= paddle + 1 else -1.0 for ball in range(12)]
        assert truncated.all()
        for ball, frame in enumerate(infos["final_obs"][:, 0]):
            visible = [column for column in (paddle - 1, paddle, paddle + 1) if column != ball]
            assert cells(frame) == ((11, ball), visible)


def test_an_episode_is_truncated_after_ten_balls():
    env = CatchVectorEnv(3)
    env.reset(seed=1)
    rng, total = np.random.default_rng(0), np.zeros(3)
    for step in range(1, 331):
        obs, rewards, terminated, truncated, infos = env.step(rng.integers(3, size=3))
        total += rewards
        assert set(np.abs(rewards)) == {1.0 if step % 11 == 0 else 0.0} and rewards.dtype == np.float64
        assert not terminated.any() and (truncated == (step % 110 == 0)).all()
        assert not infos or truncated.all()
        if truncated.all():
            assert infos.keys() == {"final_obs", "_final_obs", "episode", "_episode"}
            assert infos["episode"]["l"].tolist() == [110] * 3
            assert np.array_equal(infos["episode"]["r"], total)
            assert all(cells(infos["final_obs"][i, 0])[0][0] == 11 for i in range(3))
            assert all(cells(obs[i, 0])[0][0] == 0 and cells(obs[i, 0])[1] == [5, 6, 7] for i in range(3))
            total[:] = 0


def test_sticky_actions_repeat_the_executed_action_and_start_with_stay():
    env = CatchVectorEnv(400, sticky_action_prob=0.3)
    env.reset(seed=2)
    executed, rng, repeats, before = np.zeros(400, dtype=int), np.random.default_rng(0), [], np.full(400, 6)
    for step in range(120):
        if step == 110:
            executed, before = np.zeros(400, dtype=int), np.full(400, 6)
        chosen = rng.integers(3, size=400)
        env.step(chosen)
        repeated = env._executed == executed
        if step != 109:
            assert ((env._executed == chosen) | repeated).all()
            differ = chosen != executed
            repeats.append(repeated[differ].mean())
            move = np.array([0, -1, 1])[env._executed]
            assert np.array_equal(env._paddle, np.clip(before + move, 1, 10))
        executed, before = env._executed.copy(), env._paddle.copy()
    assert abs(np.mean(repeats) - 0.3) < 0.01 and abs(repeats[0] - 0.3) < 0.1
    env = CatchVectorEnv(2, sticky_action_prob=1.0)
    env.reset(seed=2)
    play(env, 60, start=False)
    assert env._paddle.tolist() == [6, 6]


def test_balls_fall_from_every_column_equally_often():
    env = CatchVectorEnv(200)
    env.reset(seed=0)
    balls = []
    for _ in range(12):
        balls.append(env._ball.copy())
        for _ in range(11):
            env.step(np.zeros(200, dtype=int))
    counts = np.bincount(np.concatenate(balls), minlength=12)
    chi2 = ((counts - 200) ** 2 / 200).sum()
    assert len(counts) == 12 and chi2 < 24.7  # 1 % of chi-square with 11 degrees of freedom


# the best return


def best_play(sticky, balls):
    """The rules in plain Python: the expected return of the best policy, and its action in each state."""

    @cache
    def values(balls_left, row, ball, paddle, executed):
        """Of stay, left, right."""

        def after(move):
            moved = min(max(paddle + (0, -1, 1)[move], 1), 10)
            if row + 1 < 11:
                return max(values(balls_left, row + 1, ball, moved, move))
            reward = 1.0 if abs(ball - moved) <= 1 else -1.0
            return reward + (dropped(balls_left - 1, moved, move) if balls_left > 1 else 0.0)

        repeated = after(executed)
        return [(1 - sticky) * after(action) + sticky * repeated for action in (STAY, LEFT, RIGHT)]

    @cache
    def dropped(balls_left, paddle, executed):
        return sum(max(values(balls_left, 0, ball, paddle, executed)) for ball in range(12)) / 12

    return dropped(balls, 6, STAY), lambda *state: int(np.argmax(values(*state)))


@pytest.mark.parametrize(("sticky", "balls"), [(0.0, 2), (0.25, 1), (0.25, 3), (0.8, 2), (1.0, 2)])
def test_best_return_equals_a_search_over_the_rules(monkeypatch, sticky, balls):
    monkeypatch.setattr(catch, "BALLS", balls)
    assert best_return(sticky) == pytest.approx(best_play(sticky, balls)[0], abs=1e-12)


def test_best_return_at_both_ends():
    assert best_return(0.0) == pytest.approx(10.0, abs=1e-12)  # eleven steps reach every column
    # The paddle never moves: it catches 3 of 12 columns, ten times 3/12 - 9/12.
    assert best_return(1.0) == pytest.approx(-5.0, abs=1e-12)
    values = [best_return(sticky) for sticky in (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)]
    assert values == sorted(values, reverse=True) and len(set(values)) == 6
    assert best_return() == values[1]


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_aiming_comes_close_to_the_best_return(sticky):
    env = CatchVectorEnv(200, sticky_action_prob=sticky)
    env.reset(seed=5)
    got = returns(env, aimed)
    error = got.std() / np.sqrt(len(got))
    assert best_return(sticky) - 0.7 < got.mean() <= best_return(sticky) + 3 * error
    assert sticky > 0 or (got == 10).all()


def test_the_best_policy_reaches_the_best_return():
    """With sticky actions of probability 0.6, where aiming reaches 7.7 of 9.1."""
    _, choice = best_play(0.6, 10)

    def best(env):
        state = (10 - env._balls, env._row, env._ball, env._paddle, env._executed)
        return np.array([choice(*one) for one in zip(*(numbers.tolist() for numbers in state), strict=True)])

    env = CatchVectorEnv(250, sticky_action_prob=0.6)
    env.reset(seed=5)
    got = returns(env, best)
    assert abs(got.mean() - best_return(0.6)) < 3 * got.std() / np.sqrt(250) < 0.5


def test_random_play_catches_a_quarter():
    """A paddle that ignores the ball catches it in three of twelve columns: ten times -1/2."""
    rng = np.random.default_rng(0)
    for sticky, choose in ((0.25, lambda env: rng.integers(3, size=200)), (1.0, aimed)):
        env = CatchVectorEnv(200, sticky_action_prob=sticky)
        env.reset(seed=6)
        got = returns(env, choose)
        assert abs(got.mean() + 5) < 3 * np.sqrt(10 * 0.75 / len(got))
        assert got.std() == pytest.approx(np.sqrt(10 * 0.75), rel=0.15)


# as any other environment


def test_equal_seeds_give_equal_results():
    env, other = CatchVectorEnv(3), CatchVectorEnv(3)
    first = play(env, 130, seed=3)
    assert equal(first, play(env, 130, seed=3)) and equal(first, play(other, 130, seed=3))
    env.reset(seed=[game_seed(3, i) % 2**31 for i in range(3)])
    assert equal(first[1:], play(env, 130, seed=3, start=False))
    env.reset(seed=4)
    assert not equal(first[1:], play(env, 130, seed=3, start=False))
    assert np.array_equal(env.reset()[0][:, 0, -7:, :], np.broadcast_to(first[0][0][0, 0, -7:], (3, 7, 84)))
    assert not equal(first[1:], play(env, 130, seed=3, start=False))


def test_environments_differ_and_do_not_depend_on_their_number():
    few, many = CatchVectorEnv(2), CatchVectorEnv(5)
    few.reset(seed=4)
    many.reset(seed=4)
    ours = np.stack([few.step(np.full(2, RIGHT))[0] for _ in range(130)])
    theirs = np.stack([many.step(np.full(5, RIGHT))[0] for _ in range(130)])
    assert np.array_equal(ours, theirs[:, :2])
    assert len({theirs[:, i].tobytes() for i in range(5)}) == 5


@pytest.mark.parametrize("steps", [0, 5, 108, 115])
def test_a_saved_environment_continues_exactly(steps):
    env, other = CatchVectorEnv(2), CatchVectorEnv(2)
    play(env, steps, seed=1)
    state = env.state_dict()
    kept = copy.deepcopy(state)
    ahead = play(env, 150, seed=8, start=False)
    play(other, 3, seed=9)
    for again in (other, env):
        again.load_state_dict(state)
        assert np.array_equal(again.observation(), state["frames"][:, None])
        assert equal(ahead, play(again, 150, seed=8, start=False))
    np.testing.assert_equal(state, kept)
    np.testing.assert_equal(env.state_dict(), other.state_dict())


def test_the_state_of_another_environment_is_refused():
    env = CatchVectorEnv(2)
    env.reset(seed=0)
    before = env.state_dict()
    for state in (CatchVectorEnv(3).state_dict(), CatchVectorEnv(2, sticky_action_prob=0.1).state_dict(), {}):
        with pytest.raises(ValueError, match="this state is of an environment built with"):
            env.load_state_dict(state)
    np.testing.assert_equal(env.state_dict(), before)


def test_with_num_envs_keeps_the_rules():
    env = CatchVectorEnv(2, sticky_action_prob=0.5)
    assert type(env.with_num_envs(7)) is CatchVectorEnv
    assert env.with_num_envs(7).rules == {"num_envs": 7, "sticky_action_prob": 0.5} and env.rules["num_envs"] == 2


def test_invalid_arguments_raise():
    for rules in ({"sticky_action_prob": 1.1}, {"sticky_action_prob": float("nan")}, {"num_envs": 0}):
        with pytest.raises(ValueError, match=next(iter(rules))):
            CatchVectorEnv(**rules)
    env = CatchVectorEnv(2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.array([0, 0]))
    env.reset(seed=0)
    before = env.state_dict()
    with pytest.raises(ValueError, match=r"actions must lie in 0 .. 2"):
        env.step(np.array([0, 3]))
    np.testing.assert_equal(env.state_dict(), before)


@pytest.mark.parametrize("stacked", [False, True])
def test_gymnasium_s_check_env_passes(stacked):
    env = SingleEnv(StackFrames(CatchVectorEnv()) if stacked else CatchVectorEnv())
    env.spec = gymnasium.envs.registration.EnvSpec(id=catch.ENV_ID)
    check_env(env, skip_render_check=True, skip_close_check=True)


def test_the_global_random_stream_is_not_used():
    before = np.random.get_state()[1].copy()
    play(CatchVectorEnv(2), 30)
    assert np.array_equal(np.random.get_state()[1], before)
