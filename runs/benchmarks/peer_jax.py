"""DQN and PPO on gymnax's MinAtar as one compiled loop: what `python -m runs bench peers` compares with.

    python -m runs.benchmarks.peer_jax dqn 1 20000        # 1 update per agent step, 20,000 agent steps
    python -m runs.benchmarks.peer_jax ppo 8 20000        # 8 environments

Acting, game, memory and update are one function that JAX compiles for this machine, without Python in between. It has
the network, batch sizes and losses of agents/dqn_minatar.py and agents/ppo_minatar.py, plain (no projection,
nothing is recorded). The 3x3 convolution is a product of patches, which on a CPU is faster than JAX's own.
Prints the speed without compilation, and the mean return of the last episodes: an agent that learns nothing is no peer.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from gymnax import make

Params = dict[str, Any]

GAME = "Breakout-MinAtar"
BATCH, BUFFER, STARTS, TARGET_EVERY, GAMMA, EPSILON = 32, 100_000, 1_000, 1_000, 0.99, 0.1
T, EPOCHS, MINIBATCHES, LAMBDA, CLIP, ENTROPY, MAX_NORM = 128, 4, 4, 0.95, 0.1, 0.01, 0.5


def init(key: jax.Array, channels: int, outputs: tuple[int, ...]) -> Params:
    """Weights of the shared layers and of a linear head for each of `outputs`."""

    def uniform(key: jax.Array, *shape: int) -> jax.Array:
        bound = shape[0] ** -0.5
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    keys = jax.random.split(key, 2 + len(outputs))
    return {
        "conv": uniform(keys[0], 9 * channels, 16), "conv_norm": (jnp.ones((8, 8, 16)), jnp.zeros((8, 8, 16))),
        "hidden": uniform(keys[1], 1024, 128), "hidden_norm": (jnp.ones(128), jnp.zeros(128)),
        "heads": [(uniform(k, 128, n), jnp.zeros(n)) for k, n in zip(keys[2:], outputs, strict=True)],
    }  # fmt: skip


def layer_norm(x: jax.Array, gain_and_offset: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Over all axes but the first."""
    axes = tuple(range(1, x.ndim))
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * gain_and_offset[0] + gain_and_offset[1]


def forward(params: Params, obs: jax.Array) -> list[jax.Array]:
    """The heads' outputs for obs [B, 10, 10, C]: 3x3 convolution (16), 128 hidden units, LayerNorm before each ReLU."""
    x = obs.astype(jnp.float32)
    patches = jnp.concatenate([x[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)], -1)  # [B, 8, 8, 9C]
    x = jax.nn.relu(layer_norm(patches @ params["conv"], params["conv_norm"]))
    x = jax.nn.relu(layer_norm(x.reshape(len(x), -1) @ params["hidden"], params["hidden_norm"]))
    return [x @ weight + bias for weight, bias in params["heads"]]


def dqn(ratio: float, seed: int = 0) -> tuple[Any, Any, int]:
    """A compiled function of the learner's state that makes about 1,000 agent steps, the first state, and how many."""
    env, env_params = make(GAME)
    every, updates = max(1, round(1 / ratio)), max(1, round(ratio))
    optimizer = optax.adam(2.5e-4)
    key, k_init, k_reset = jax.random.split(jax.random.key(seed), 3)
    obs, env_state = env.reset(k_reset, env_params)
    channels, actions = obs.shape[-1], int(env.action_space(env_params).n)
    params = init(k_init, channels, (actions,))
    memory = {
        "obs": jnp.zeros((BUFFER, *obs.shape), jnp.uint8), "next_obs": jnp.zeros((BUFFER, *obs.shape), jnp.uint8),
        "action": jnp.zeros(BUFFER, jnp.int32), "reward": jnp.zeros(BUFFER), "done": jnp.zeros(BUFFER),
    }  # fmt: skip

    def act(state: dict[str, Any], _: Any) -> tuple[dict[str, Any], tuple[jax.Array, jax.Array]]:
        key, k_explore, k_action, k_step = jax.random.split(state["key"], 4)
        greedy = forward(state["params"], state["obs"][None])[0][0].argmax()
        chosen = jnp.where(
            jax.random.uniform(k_explore) < EPSILON, jax.random.randint(k_action, (), 0, actions), greedy
        )
        obs, env_state, reward, terminated, truncated, _ = env.step(k_step, state["env"], chosen, env_params)
        done = terminated | truncated
        new = {"obs": state["obs"], "next_obs": obs, "action": chosen, "reward": reward, "done": done}
        slot = state["step"] % BUFFER
        memory = {name: kept.at[slot].set(new[name].astype(kept.dtype)) for name, kept in state["memory"].items()}
        state = {**state, "key": key, "obs": obs, "env": env_state, "memory": memory, "step": state["step"] + 1}
        return state, (reward, done)

    def td_loss(params: Params, target: Params, batch: dict[str, jax.Array]) -> jax.Array:
        next_q = forward(target, batch["next_obs"])[0].max(1)
        td_target = batch["reward"] + GAMMA * (1 - batch["done"]) * next_q
        q = jnp.take_along_axis(forward(params, batch["obs"])[0], batch["action"][:, None], 1)[:, 0]
        return jnp.square(q - td_target).mean()

    def update(state: dict[str, Any], _: Any) -> tuple[dict[str, Any], None]:
        key, k_batch = jax.random.split(state["key"])
        slots = jax.random.randint(k_batch, (BATCH,), 0, jnp.minimum(state["step"], BUFFER))
        batch = {name: kept[slots] for name, kept in state["memory"].items()}
        gradient = jax.grad(td_loss)(state["params"], state["target"], batch)
        step, adam = optimizer.update(gradient, state["adam"])
        return {**state, "key": key, "params": optax.apply_updates(state["params"], step), "adam": adam}, None

    def learn(state: dict[str, Any]) -> dict[str, Any]:
        state, _ = jax.lax.scan(update, state, None, updates)
        renew = state["step"] % TARGET_EVERY < every
        target = jax.tree.map(lambda new, old: jnp.where(renew, new, old), state["params"], state["target"])
        return {**state, "target": target}

    def turn(state: dict[str, Any], _: Any) -> tuple[dict[str, Any], tuple[jax.Array, jax.Array]]:
        state, seen = jax.lax.scan(act, state, None, every)
        return jax.lax.cond(state["step"] >= STARTS, learn, lambda state: state, state), seen

    size = max(1, 1_000 // every) * every

    @partial(jax.jit, donate_argnums=0)
    def block(state: dict[str, Any]) -> tuple[dict[str, Any], tuple[jax.Array, jax.Array]]:
        state, (rewards, dones) = jax.lax.scan(turn, state, None, size // every)
        return state, (rewards.reshape(-1, 1), dones.reshape(-1, 1))

    first = {
        "params": params, "target": jax.tree.map(jnp.copy, params), "adam": optimizer.init(params), "memory": memory,
        "obs": obs, "env": env_state, "key": key, "step": jnp.zeros((), jnp.int32),
    }  # fmt: skip
    return block, first, size


def ppo(num_envs: int, seed: int = 0) -> tuple[Any, Any, int]:
    """A compiled function of the learner's state that makes one iteration, the first state, and its agent steps."""
    env, env_params = make(GAME)
    optimizer = optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adam(2.5e-4, eps=1e-5))
    key, k_init, k_reset = jax.random.split(jax.random.key(seed), 3)
    obs, env_state = jax.vmap(env.reset, (0, None))(jax.random.split(k_reset, num_envs), env_params)
    actions = int(env.action_space(env_params).n)
    params = init(k_init, obs.shape[-1], (actions, 1))

    def act(state: dict[str, Any], _: Any) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        key, k_action, k_step = jax.random.split(state["key"], 3)
        logits, value = forward(state["params"], state["obs"])
        action = jax.random.categorical(k_action, logits)
        logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]
        keys = jax.random.split(k_step, num_envs)
        obs, env_state, reward, terminated, truncated, _ = jax.vmap(env.step, (0, 0, 0, None))(
            keys, state["env"], action, env_params
        )
        seen = {
            "obs": state["obs"], "action": action, "logprob": logprob, "value": value[:, 0], "reward": reward,
            "done": terminated | truncated,
        }  # fmt: skip
        return {**state, "key": key, "obs": obs, "env": env_state}, seen

    def loss(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        logits, values = forward(params, batch["obs"])
        logprobs, values = jax.nn.log_softmax(logits), values[:, 0]
        ratio = jnp.exp(jnp.take_along_axis(logprobs, batch["action"][:, None], 1)[:, 0] - batch["logprob"])
        advantage = batch["advantage"]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage).mean()
        near = batch["value"] + jnp.clip(values - batch["value"], -CLIP, CLIP)
        errors = jnp.maximum(jnp.square(values - batch["return"]), jnp.square(near - batch["return"]))
        entropy = -(jnp.exp(logprobs) * logprobs).sum(1).mean()
        return policy + 0.5 * 0.5 * errors.mean() - ENTROPY * entropy

    def update(carry: tuple[Params, Any], batch: dict[str, jax.Array]) -> tuple[tuple[Params, Any], None]:
        params, adam = carry
        step, adam = optimizer.update(jax.grad(loss)(params, batch), adam)
        return (optax.apply_updates(params, step), adam), None

    @partial(jax.jit, donate_argnums=0)
    def iteration(state: dict[str, Any]) -> tuple[dict[str, Any], tuple[jax.Array, jax.Array]]:
        state, seen = jax.lax.scan(act, state, None, T)
        last = forward(state["params"], state["obs"])[1][:, 0]
        continues = 1.0 - seen["done"]
        following = jnp.concatenate([seen["value"][1:], last[None]])
        deltas = seen["reward"] + GAMMA * following * continues - seen["value"]

        def accumulate(advantage: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            advantage = one[0] + GAMMA * LAMBDA * one[1] * advantage
            return advantage, advantage

        _, advantages = jax.lax.scan(accumulate, jnp.zeros(num_envs), (deltas, continues), reverse=True)
        samples = {**seen, "advantage": advantages, "return": advantages + seen["value"]}
        flat = {name: x.reshape(T * num_envs, *x.shape[2:]) for name, x in samples.items()}

        def epoch(carry: Any, key: jax.Array) -> tuple[Any, None]:
            order = jax.random.permutation(key, T * num_envs).reshape(MINIBATCHES, -1)
            return jax.lax.scan(lambda carry, i: update(carry, {n: x[i] for n, x in flat.items()}), carry, order)

        key, k_epochs = jax.random.split(state["key"])
        (params, adam), _ = jax.lax.scan(epoch, (state["params"], state["adam"]), jax.random.split(k_epochs, EPOCHS))
        return {**state, "params": params, "adam": adam, "key": key}, (seen["reward"], seen["done"])

    first = {"params": params, "adam": optimizer.init(params), "obs": obs, "env": env_state, "key": key}
    return iteration, first, T * num_envs


def mean_return(rewards: list[Any], dones: list[Any]) -> float:
    """Mean undiscounted return of the episodes that begin and end within these steps, [steps, environments] each."""
    reward, done = (jnp.concatenate([jnp.asarray(x) for x in parts]).T for parts in (rewards, dones))
    found: list[float] = []
    for one, ends in zip(reward, done, strict=True):
        at = jnp.flatnonzero(ends)
        found += jnp.diff(one.cumsum()[at]).tolist()
    return sum(found) / len(found) if found else float("nan")


def main(what: str, setting: str, steps: str) -> None:
    """Train for a while and print the speed."""
    block, state, size = dqn(float(setting)) if what == "dqn" else ppo(int(setting))
    for _ in range(2):  # compiles; of DQN also the steps before learning starts
        state, _ = jax.block_until_ready(block(state))
    rewards, dones, count = [], [], max(1, int(steps) // size)
    began = time.perf_counter()
    for _ in range(count):
        state, (reward, done) = block(state)
        rewards.append(reward)
        dones.append(done)
    jax.block_until_ready(state)
    print(f"timed steps={count * size} seconds={time.perf_counter() - began!r}")
    half = len(rewards) // 2
    print(f"mean return of the second half: {mean_return(rewards[half:], dones[half:]):.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
