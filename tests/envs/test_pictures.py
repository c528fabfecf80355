"""Films: the pictures are those of the state that the game was in, whatever a shift makes of it."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from envs.catch import CatchVectorEnv
from envs.control import control_env
from envs.evaluation import play
from envs.minatar import PALETTE, MinAtarVectorEnv, picture
from envs.pictures import CELL, GRID_LINE, LAYERS, MAX_PICTURES, MinAtarFilm, film_of
from envs.timetables import AtSteps
from envs.worlds import ControlWorld, World, evaluation_world


def always(action, actions=3):
    return lambda obs: np.eye(actions)[[action] * len(obs)]


def filmed(world, policy, seed, n=3, task=None):
    """A film of an evaluation, and the observations that the agent had in environment 0."""
    films, seen = [], []

    def around(game):
        films.append(film_of(game))
        return films[-1]

    def watched(obs):
        seen.append(obs[0].copy())
        return policy(obs)

    env = evaluation_world(world, n, task=task, around=around)
    returns = play(env, watched, seed)
    return films[0], seen, returns


def test_every_game_has_each_channel_once_in_its_layers():
    for game, layers in LAYERS.items():
        channels = MinAtarVectorEnv(f"MinAtar/{game}-v1").single_observation_space.shape[0]
        assert sorted(layers) == list(range(channels)), game


def test_layers_decide_what_is_on_top():
    cells = np.zeros((3, 10, 10), np.uint8)
    cells[:, 4, 5], cells[1, 0, 0] = 1, 1
    for layers, top in ((None, 2), ((2, 1, 0), 0), ((0, 2, 1), 1)):
        drawn = picture(cells, 2, layers)
        assert drawn.shape == (20, 20, 3)
        assert (drawn[8:10, 10:12] == PALETTE[top + 1]).all() and (drawn[:2, :2] == PALETTE[2]).all()
        assert not drawn[2:8].any()


def test_a_film_of_minatar_shows_the_cells_though_the_agent_sees_them_permuted():
    world = World(["MinAtar/Breakout-v1"], 2, "pixels", AtSteps([2])).make()
    world.reset(seed=1)
    world.step(np.zeros(2, dtype=np.int64))
    assert world.task == 1
    film, seen, _ = filmed(world, always(0), seed=4)
    bare, cells, _ = filmed(MinAtarVectorEnv("MinAtar/Breakout-v1"), always(0), seed=4)
    pictures = list(film.pictures())
    assert not np.array_equal(seen[0], cells[0])  # the agent of the one sees something else
    assert len(pictures) == film.steps + 1 and film.every == 1
    for drawn, expected in zip(pictures, bare.pictures(), strict=True):
        assert np.array_equal(drawn, expected)
    for drawn, cell in zip(pictures[:-1], cells[: film.steps], strict=True):
        assert drawn.shape == (10 * CELL, 10 * CELL, 3)
        middles = drawn[CELL // 2 :: CELL, CELL // 2 :: CELL]
        assert np.array_equal(middles.any(2), cell.any(0))  # a colour where there is something
        assert (drawn[::CELL] == GRID_LINE).all() and (drawn[:, ::CELL] == GRID_LINE).all()


def test_the_last_picture_is_of_the_state_that_ended_the_episode():
    """The ball falls past the paddle: at the end it is in the lowest row, not where the next game begins."""
    film, _, _ = filmed(MinAtarVectorEnv("MinAtar/Breakout-v1", sticky_action_prob=0.0), always(1), seed=0)
    last = list(film.pictures())[-1][CELL // 2 :: CELL, CELL // 2 :: CELL]
    assert np.argwhere((last == PALETTE[2]).all(2))[:, 0].tolist() == [9]


def test_a_film_keeps_one_episode_and_a_limited_part_of_it():
    film = MinAtarFilm(MinAtarVectorEnv("MinAtar/Freeway-v1", 1))
    film.reset(seed=1)
    for _ in range(MAX_PICTURES + 50):
        film.step(np.array([0]))
    assert sum(1 for _ in film.pictures()) == MAX_PICTURES
    film = MinAtarFilm(MinAtarVectorEnv("MinAtar/Breakout-v1", 1, max_episode_steps=4))
    film.reset(seed=1)
    for _ in range(9):
        film.step(np.array([0]))
    assert film.steps == 4
    film.reset(seed=2)
    assert film.steps == 0


@pytest.mark.parametrize("n", [1, 4])
def test_a_film_of_control_is_drawn_by_gymnasium_from_the_state(n):
    """The loop and the arrays: the pictures of the same episode in Gymnasium's environment."""
    pytest.importorskip("pygame")
    film, seen, returns = filmed(control_env("CartPole-v1", 1), always(1, 2), seed=6, n=n)
    env = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    obs, _ = env.reset(seed=film._start[0])
    assert np.array_equal(obs, seen[0]) and film.every == 2 and film.steps_per_second == 50
    expected, over = [env.render()], False
    while not over:
        _, _, over, _, _ = env.step(1)
        expected.append(env.render())
    pictures = list(film.pictures())
    assert film.steps == returns[0] == len(expected) - 1
    chosen = [*expected[:-1:2], expected[-1]]
    assert len(pictures) == len(chosen) and all(map(np.array_equal, pictures, chosen))


def test_a_film_of_changed_physics_is_of_the_changed_ones():
    pytest.importorskip("pygame")
    world = ControlWorld("CartPole-v1", 1, "physics", AtSteps([2]), values=(0.5, 3.0), what="length").make()
    world.reset(seed=1)
    short, long = (next(filmed(world, always(1, 2), seed=6, task=task)[0].pictures()) for task in (0, 1))
    poles = [np.flatnonzero((drawn == (202, 152, 101)).all(2).any(1)).min() for drawn in (short, long)]
    assert poles[1] < 30 < 150 < poles[0]


class Drawn(gymnasium.Env):
    """Ends after 5 steps; `moods` makes every new one begin elsewhere."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space, action_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32), gymnasium.spaces.Discrete(2)
    moods = 0
    picture = np.zeros((4, 4, 3), np.uint8)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, Drawn.moods = 0, Drawn.moods + (Drawn.moods > 0)
        return np.array([Drawn.moods], np.float32), {}

    def step(self, action):
        self.t += 1
        return np.array([self.t], np.float32), 1.0, self.t == 5, False, {}

    def render(self):
        return self.picture


class Blind(Drawn):
    metadata = {"render_modes": []}  # noqa: RUF012


class Unmoded(Drawn):
    def __init__(self):
        self.render_mode = None


@pytest.fixture
def registered():
    names = {"Drawn": Drawn, "Blind": Blind, "Unmoded": Unmoded}
    for name, kind in names.items():
        gymnasium.register(f"{name}-v0", kind, max_episode_steps=9)
    yield
    for name in names:
        del gymnasium.registry[f"{name}-v0"]
    Drawn.moods = 0


@pytest.mark.usefixtures("registered")
def test_any_environment_that_draws_is_filmed():
    film, _, _ = filmed(control_env("Drawn-v0"), always(1, 2), seed=1)
    assert film.every == 1 and len(list(film.pictures())) == 6


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("env_id", "message"),
    [("Blind-v0", "no render mode rgb_array"), ("Unmoded-v0", "unexpected keyword argument 'render_mode'")],
)
def test_an_environment_that_cannot_draw_is_refused(env_id, message):
    with pytest.raises(ValueError, match=f"^{env_id} cannot be drawn: .*{message}"):
        film_of(control_env(env_id))


@pytest.mark.usefixtures("registered")
def test_what_is_no_picture_is_refused(monkeypatch):
    monkeypatch.setattr(Drawn, "picture", None)
    with pytest.raises(ValueError, match=r"^Drawn-v0 cannot be drawn: render\(\) gave NoneType, not a picture"):
        film_of(control_env("Drawn-v0"))


@pytest.mark.usefixtures("registered")
def test_an_episode_that_cannot_be_played_again_is_not_drawn(monkeypatch):
    monkeypatch.setattr(Drawn, "moods", 1)
    film, _, _ = filmed(control_env("Drawn-v0"), always(1, 2), seed=1)
    with pytest.raises(ValueError, match=r"^Drawn-v0 cannot be drawn: .* came elsewhere at step 0$"):
        next(film.pictures())


def test_a_game_on_a_screen_has_no_film():
    with pytest.raises(TypeError, match="CatchVectorEnv has no pictures of its own"):
        film_of(CatchVectorEnv())
