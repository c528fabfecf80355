"""envs.breakout: the surprising rules one by one, so that a package with other rules is noticed by name.

tests/envs/test_array_games.py compares it with the package in everything else.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.envs.array_games import GAMES, LEFT, RIGHT, plant, play

LEFT_UP, RIGHT_UP, RIGHT_DOWN, LEFT_DOWN = range(4)


def bricks(*cells):
    board = np.zeros((10, 10))
    for cell in cells:
        board[cell] = 1.0
    return board


@pytest.fixture(scope="module")
def pair():
    package, arrays = GAMES["Breakout"].both("MinAtar/Breakout-v0", 1, sticky_action_prob=0.0)
    package.reset(seed=0)
    arrays.reset(seed=0)
    return package, arrays


def start(ball, direction, **others):
    """Attributes of a ball at [row, column], one brick elsewhere, and the paddle far away."""
    y, x = ball
    plain = {"ball_y": y, "ball_x": x, "ball_dir": direction, "last_y": 0, "last_x": 0, "pos": 0, "strike": False}
    return {**plain, "brick_map": bricks((1, 9)), **others}


PLANTED = {
    # name: (attributes, action, reward, lost, where the ball is then, bricks left)
    "a ball turns at a wall and stays in its column": (start((6, 0), LEFT_UP), 0, 0, False, (5, 0), 1),
    "a ball turns at the ceiling and stays in its row": (start((0, 4), LEFT_UP), 0, 0, False, (0, 3), 1),
    "a brick sends the ball back into its row": (
        start((4, 4), LEFT_UP, brick_map=bricks((1, 9), (3, 3))), 0, 1, False, (4, 3), 1,
    ),
    "a second brick at once is flown through": (
        start((4, 4), LEFT_UP, brick_map=bricks((1, 9), (3, 3)), strike=True), 0, 0, False, (3, 3), 2,
    ),
    "the last brick leaves no wall": (start((4, 4), LEFT_UP, brick_map=bricks((3, 3))), 0, 1, False, (4, 3), 0),
    "a new wall comes when the ball is at the bottom": (
        start((8, 4), RIGHT_DOWN, brick_map=bricks(), pos=4), 0, 0, False, (8, 5), 30,
    ),
    "even if it is lost there": (start((8, 4), RIGHT_DOWN, brick_map=bricks()), 0, 0, True, (9, 5), 30),
    "the paddle moves first": (start((8, 4), RIGHT_DOWN, pos=6), LEFT, 0, False, (8, 5), 1),
    "and can leave the ball": (start((8, 4), RIGHT_DOWN, pos=5), RIGHT, 0, True, (9, 5), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_rules_found_by_observation(pair, name):
    attributes, action, reward, lost, ball, left = PLANTED[name]
    plant(*pair, [attributes])
    obs, rewards, terminated, _, infos = play(*pair, lambda obs: np.array([action]), 1)[0]
    seen = infos.get("final_obs", obs)[0]
    assert (rewards[0], terminated[0]) == (reward, lost)
    assert tuple(np.argwhere(seen[1])[0]) == ball and seen[3].sum() == left


@pytest.mark.parametrize(("paddle", "goes"), [(4, RIGHT_UP), (5, LEFT_UP)])
def test_the_side_of_the_paddle_decides_where_the_ball_goes(pair, paddle, goes):
    plant(*pair, [start((8, 4), RIGHT_DOWN, pos=paddle)])
    play(*pair, lambda obs: np.array([0]), 1)
    assert pair[0]._seats[0].game.ball_dir == goes


def test_every_flight_equals_the_package(pair):
    """All columns, directions and paddles, without bricks around."""
    package, arrays = GAMES["Breakout"].both("MinAtar/Breakout-v0", 100, sticky_action_prob=0.0)
    package.reset(seed=0)
    arrays.reset(seed=0)
    for direction in range(4):
        for row in (0, 1, 5, 7, 8):
            balls = [start((row, i // 10), direction, pos=i % 10, brick_map=bricks()) for i in range(100)]
            plant(package, arrays, balls)
            play(package, arrays, lambda obs: np.zeros(100, dtype=int), 1)


@settings(max_examples=100)
@given(
    st.tuples(st.integers(0, 8), st.integers(0, 9)),
    st.integers(0, 3),
    st.integers(0, 9),
    st.booleans(),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9)), max_size=30),
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
)
def test_every_step_equals_the_package_from_any_state(pair, ball, direction, paddle, strike, left, actions):
    plant(*pair, [start(ball, direction, pos=paddle, strike=strike, brick_map=bricks(*left))])
    for action in actions:
        play(*pair, lambda obs, action=action: np.array([action]), 1)
