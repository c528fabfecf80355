"""CartPole, Acrobot and MountainCar with all N environments at once in arrays.

They play exactly as Gymnasium's environments do, which is tested bit for bit, and are faster with many environments.
Written from the equations of motion, without code of Gymnasium. What decides the last bit is taken from there: the
order of additions and multiplications, and the function that computes a cosine or a square (see `_squares`).

Sources: the cart and the pole: Florian, "Correct equations for the dynamics of the cart-pole system" (2007), without
friction. The acrobot: Sutton and Barto, Reinforcement Learning (1998), section 11.3. The car: the same, section 8.4.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

from envs.control_loop import assign, make, numbers, spaces

Floats = NDArray[np.float64]
Outcome = tuple[NDArray[np.float32], Floats, NDArray[np.bool_]]
"""observations [N, D], rewards [N], terminated [N]"""


_FOUR_THIRDS = np.array(4.0 / 3.0)


class Arrays:
    """N environments whose state is one array [4, N] or [2, N] of float64.

    Each has a random stream of its own, which draws what Gymnasium's environment draws, in the same order.
    Subclasses define `_prepare`, `_start` and `_advance`.
    """

    SIZE: ClassVar[int]
    """numbers of a state"""
    REWARD: ClassVar[float]
    """of a step"""

    def __init__(self, env_id: str, spec: Any, num_envs: int) -> None:
        env = make(env_id, spec)  # never stepped: it has the spaces, and holds the numbers of physics
        self._env_id, self._num_envs, self._env = env_id, num_envs, env
        self.spaces = spaces(env_id, env)
        self.names = numbers(env)
        self.changed: dict[str, float] = {}
        self._defaults = {name: getattr(env.unwrapped, name) for name in self.names}
        self._streams = [seeding.np_random()[0] for _ in range(num_envs)]
        self._state, self._rewards = np.zeros((self.SIZE, num_envs)), np.full(num_envs, self.REWARD)
        self._prepare(env.unwrapped)

    def _prepare(self, env: Any) -> None:
        """Read the numbers of physics, which are attributes of the environment.

        They are kept as arrays without axes: NumPy converts a Python number in every operation.
        """
        raise NotImplementedError

    def _start(self, i: int) -> Any:
        """Draw the first state of an episode in environment i, and return its observation [D]."""
        raise NotImplementedError

    def _advance(self, actions: NDArray[np.int64]) -> Outcome:
        """One step of the state."""
        raise NotImplementedError

    def begin(self, seeds: list[int] | None) -> NDArray[np.float32]:
        """Start all episodes, with random streams of these seeds or the present ones."""
        if seeds is not None:
            self._streams = [seeding.np_random(seed)[0] for seed in seeds]
        obs = np.empty((self._num_envs, *self.spaces[0].shape), dtype=np.float32)
        for i in range(self._num_envs):
            obs[i] = self._start(i)
        return obs

    def restart(self, i: int) -> Any:
        """Start an episode in environment i and return its observation [D]."""
        return self._start(i)

    def play(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float32], Floats, Any, Any, bool]:
        """One step: observations, rewards, terminated, truncated, and whether any episode ended."""
        obs, rewards, terminated = self._advance(actions)
        never = np.zeros(self._num_envs, dtype=np.bool_)
        return obs, rewards, terminated, never, bool(np.count_nonzero(terminated))

    def physics(self, name: str) -> float:
        """The present value of a number in `names`."""
        return float(getattr(self._env.unwrapped, name))

    def set_physics(self, name: str, value: float) -> None:
        """Change a number in `names`."""
        assign(self._env, name, value)
        self.changed[name] = value
        self._prepare(self._env.unwrapped)

    def state_dict(self) -> dict[str, Any]:
        """A copy of states, streams and physics."""
        streams = [stream.bit_generator.state for stream in self._streams]
        return {"state": self._state.copy(), "streams": streams, "physics": dict(self.changed)}

    def load_state_dict(self, state: dict[str, Any], obs: Any, returns: Any) -> None:
        """Continue where `state_dict` was called."""
        self._state = state["state"].copy()
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.bit_generator.state = saved
        for name in self.changed:
            assign(self._env, name, self._defaults[name])
        self.changed = {}
        for name, value in state["physics"].items():
            self.set_physics(name, value)
        self._prepare(self._env.unwrapped)

    def close(self) -> None:
        """Close the environment that holds the numbers."""
        self._env.close()


class CartPole(Arrays):
    """State: position x and velocity of the cart, angle θ and angular velocity of the pole."""

    SIZE, REWARD = 4, 1.0

    def _prepare(self, env: Any) -> None:
        self._total, self._moment = np.array(env.total_mass), np.array(env.polemass_length)
        self._pole_mass, self._half_length = np.array(env.masspole), np.array(env.length)
        self._gravity, self._tau = np.array(env.gravity), np.array(env.tau)
        self._forces = np.array([-env.force_mag, env.force_mag])
        self._limits = np.array([[env.x_threshold], [env.theta_threshold_radians]])

    def _start(self, i: int) -> Any:
        self._state[:, i] = self._streams[i].uniform(low=-0.05, high=0.05, size=4)
        return self._state[:, i]

    def _advance(self, actions: NDArray[np.int64]) -> Outcome:
        #  θ'' = (g sin θ - cos θ a) / (l (4/3 - m cos² θ / M)),  x'' = a - m l θ'' cos θ / M,
        #    a = (F + m l θ'² sin θ) / M,  M the mass of cart and pole, m the pole's, l half its length
        state = self._state
        angle, spin = state[2], state[3]
        cosine, sine = np.cos(angle), np.sin(angle)
        push = (self._forces[actions] + self._moment * (spin * spin) * sine) / self._total
        inertia = self._half_length * (_FOUR_THIRDS - self._pole_mass * (cosine * cosine) / self._total)
        rates = np.empty_like(state)
        rates[0], rates[2] = state[1], spin
        rates[3] = angular = (self._gravity * sine - cosine * push) / inertia
        rates[1] = push - self._moment * angular * cosine / self._total
        self._state = state = state + self._tau * rates
        beyond = np.abs(state[::2]) > self._limits
        return state.T.astype(np.float32, order="C"), self._rewards.copy(), beyond[0] | beyond[1]


class MountainCar(Arrays):
    """State: position and velocity."""

    SIZE, REWARD = 2, -1.0

    def _prepare(self, env: Any) -> None:
        self._pushes, self._pull = np.array([-1, 0, 1]) * env.force, np.array(-env.gravity)
        self._fastest, self._slowest = np.array(env.max_speed), np.array(-env.max_speed)
        self._left, self._right = np.array(env.min_position), np.array(env.max_position)
        self._goal = np.array([[env.goal_position], [env.goal_velocity]])

    def _start(self, i: int) -> Any:
        self._state[:, i] = self._streams[i].uniform(low=-0.6, high=-0.4), 0.0
        return self._state[:, i]

    def _advance(self, actions: NDArray[np.int64]) -> Outcome:
        #  v' = F - g cos 3x,  x' = v; the car stops at the left wall
        position, velocity = self._state
        # Gymnasium takes the cosine of Python's math, which need not agree with NumPy's in the last bit.
        slope = np.array([math.cos(angle) for angle in (3 * position).tolist()])
        velocity = velocity + (self._pushes[actions] + slope * self._pull)
        velocity = np.minimum(np.maximum(velocity, self._slowest), self._fastest)
        position = np.minimum(np.maximum(position + velocity, self._left), self._right)
        self._state = state = np.empty((2, self._num_envs))
        state[0] = position
        state[1] = np.where((position == self._left) & (velocity < 0), 0.0, velocity)
        reached = state >= self._goal
        return state.T.astype(np.float32, order="C"), self._rewards.copy(), reached[0] & reached[1]


class Acrobot(Arrays):
    """State: angles of the first link (from hanging down) and of the second (from the first), and their velocities."""

    SIZE, REWARD = 4, -1.0

    def _prepare(self, env: Any) -> None:
        m1, m2, inertia = env.LINK_MASS_1, env.LINK_MASS_2, env.LINK_MOI
        l1, c1, c2, g = env.LINK_LENGTH_1, env.LINK_COM_POS_1, env.LINK_COM_POS_2, 9.8
        # What the equations need of masses m, lengths l, centres of mass c and moments of inertia I.
        self._m2, self._inertia = np.array(m2), np.array(inertia)
        self._own_1, self._own_2, self._rest_2 = np.array(m1 * c1**2), np.array(c2**2), np.array(m2 * c2**2 + inertia)
        self._sum_2, self._cross, self._cross_2 = np.array(l1**2 + c2**2), np.array(l1 * c2), np.array(2 * l1 * c2)
        self._swing_1, self._swing_2 = np.array(m2 * l1 * c2), np.array(-m2 * l1 * c2)
        self._swing_12 = np.array(2 * m2 * l1 * c2)
        self._weight_1, self._weight_2 = np.array((m1 * c1 + m2 * l1) * g), np.array(m2 * c2 * g)
        self._upright = np.array(np.pi / 2)
        self._dt, self._half_dt, self._sixth_dt = np.array(env.dt), np.array(env.dt / 2.0), np.array(env.dt / 6.0)
        self._noise, self._torques = env.torque_noise_max, np.array(env.AVAIL_TORQUE, dtype=np.float64)
        self._fastest = np.array([[env.MAX_VEL_1], [env.MAX_VEL_2]])

    def _start(self, i: int) -> Any:
        # Gymnasium's first state of an episode is of float32, and so are the cosines of its first observation.
        first = self._streams[i].uniform(low=-0.1, high=0.1, size=4).astype(np.float32)
        self._state[:, i] = first
        (cos_1, cos_2), (sin_1, sin_2) = np.cos(first[:2]), np.sin(first[:2])
        return cos_1, sin_1, cos_2, sin_2, first[2], first[3]

    def _advance(self, actions: NDArray[np.int64]) -> Outcome:
        torque = self._torques[actions]
        if self._noise > 0:
            torque = torque + np.array([stream.uniform(-self._noise, self._noise) for stream in self._streams])
        state = self._state  # the method of Runge and Kutta
        k1 = self._rates(state, torque)
        k2 = self._rates(state + self._half_dt * k1, torque)
        k3 = self._rates(state + self._half_dt * k2, torque)
        k4 = self._rates(state + self._dt * k3, torque)
        self._state = state = state + self._sixth_dt * (k1 + (k2 + k2) + (k3 + k3) + k4)
        angles, velocities = state[:2], state[2:]
        while np.count_nonzero(beyond := angles > np.pi):
            angles[beyond] -= 2 * np.pi
        while np.count_nonzero(beyond := angles < -np.pi):
            angles[beyond] += 2 * np.pi
        np.minimum(np.maximum(velocities, -self._fastest), self._fastest, out=velocities)
        obs = np.empty((self._num_envs, 6), dtype=np.float32)
        cosines = np.cos(angles)
        obs[:, 0:4:2], obs[:, 1:4:2], obs[:, 4:] = cosines.T, np.sin(angles).T, velocities.T
        terminated = -cosines[0] - np.cos(angles[1] + angles[0]) > 1.0  # the tip is a link's length above the joint
        return obs, terminated - 1.0, terminated

    def _rates(self, state: Floats, torque: Floats) -> Floats:
        """Time derivatives of a state [4, N].

        d₁ θ₁'' + d₂ θ₂'' + φ₁ = 0  and  d₂ θ₁'' + (m₂ c₂² + I) θ₂'' + m₂ l₁ c₂ θ₁'² sin θ₂ + φ₂ = τ,
        where d₁ = m₁ c₁² + m₂ (l₁² + c₂² + 2 l₁ c₂ cos θ₂) + 2 I,  d₂ = m₂ (c₂² + l₁ c₂ cos θ₂) + I,
        φ₂ = m₂ c₂ g cos(θ₁ + θ₂ - π/2)  and
        φ₁ = -m₂ l₁ c₂ θ₂' (θ₂' + 2 θ₁') sin θ₂ + (m₁ c₁ + m₂ l₁) g cos(θ₁ - π/2) + φ₂.
        """
        angle_1, angle_2, spin_1, spin_2 = state
        square_1, square_2 = _squares(state[2:])
        cosine, sine = np.cos(angle_2), np.sin(angle_2)
        d1 = self._own_1 + self._m2 * (self._sum_2 + self._cross_2 * cosine) + self._inertia + self._inertia
        d2 = self._m2 * (self._own_2 + self._cross * cosine) + self._inertia
        phi2 = self._weight_2 * np.cos(angle_1 + angle_2 - self._upright)
        phi1 = (
            self._swing_2 * square_2 * sine
            - self._swing_12 * spin_2 * spin_1 * sine
            + self._weight_1 * np.cos(angle_1 - self._upright)
            + phi2
        )
        rates = np.empty_like(state)
        rates[:2] = state[2:]
        rates[3] = second = (torque + d2 / d1 * phi1 - self._swing_1 * square_1 * sine - phi2) / (
            self._rest_2 - _squares(d2) / d1
        )
        rates[2] = -(d2 * second + phi1) / d1
        return rates


def _squares(values: Floats) -> Floats:
    """Squares, one by one: of a single number NumPy takes the C library's pow, of an array the product.

    The two differ in the last bit in one of a thousand cases.
    """
    return np.array([value**2 for value in values.ravel().tolist()]).reshape(values.shape)


FASTER_FROM: dict[str, tuple[type[Arrays], int]] = {
    "gymnasium.envs.classic_control.cartpole:CartPoleEnv": (CartPole, 3),
    "gymnasium.envs.classic_control.acrobot:AcrobotEnv": (Acrobot, 3),
    "gymnasium.envs.classic_control.mountain_car:MountainCarEnv": (MountainCar, 2),
}
"""Entry point of Gymnasium's environment -> the class that plays it in arrays, and the smallest N for which that is
faster: a step of N = 8 takes 12, 78 and 11 microseconds instead of 36, 198 and 61 in the loop."""
