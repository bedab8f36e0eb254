# SPDX-License-Identifier: Apache-2.0
"""The PPO losses alone, on a pole to be balanced: nothing in them knows about language.

The cart and pole are those of Barto, Sutton and Anderson 1983 (https://doi.org/10.1109/TSMC.1983.6313077), in Euler
steps of 0.02 s: pushed left or right with 10 N, a reward of 1 a step until the cart is 2.4 m off or the pole leans 12
degrees. An untrained policy keeps it up for about twenty steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpost.losses import aggregate, counts, gae, masked_mean, ppo, value_loss, whiten

CARTS, STEPS, ROUNDS, EPOCHS, PARTS, WIDTH = 16, 64, 20, 4, 4, 32
SEEDS = 3
GAMMA, LAMBDA, ENTROPY = 0.98, 0.9, 0.01


def fresh(key):
    return jax.random.uniform(key, (CARTS, 4), minval=-0.05, maxval=0.05)


def push(state, right):
    """Where the carts are a step later."""
    x, speed, angle, turning = state.T
    force, sin, cos = jnp.where(right, 10.0, -10.0), jnp.sin(angle), jnp.cos(angle)
    pull = (force + 0.05 * turning**2 * sin) / 1.1
    bend = (9.8 * sin - cos * pull) / (0.5 * (4.0 / 3.0 - 0.1 * cos**2 / 1.1))
    return state + 0.02 * jnp.stack([speed, pull - 0.05 * bend * cos / 1.1, turning, bend], axis=1)


def fallen(state):
    return (jnp.abs(state[:, 0]) > 2.4) | (jnp.abs(state[:, 2]) > np.deg2rad(12.0))


def layers(key, out):
    keys = jax.random.split(key)
    return {"in": jax.random.normal(keys[0], (4, WIDTH)), "out": 0.1 * jax.random.normal(keys[1], (WIDTH, out))}


def run(weights, state):
    return jnp.tanh(state @ weights["in"]) @ weights["out"]


def act(weights, carry, key):
    """One step of all carts; those that fell start again."""
    state, keys = carry, jax.random.split(key)
    log_probs = jax.nn.log_softmax(run(weights["policy"], state))
    action = jax.random.categorical(keys[0], log_probs)
    after = push(state, action == 1)
    down = fallen(after)
    seen = {"state": state, "action": action, "down": down}
    return jnp.where(down[:, None], fresh(keys[1]), after), seen


def of_actions(weights, batch):
    """Log-probabilities of what was done, entropies and values, `[carts, steps]`."""
    every = jax.nn.log_softmax(run(weights["policy"], batch["state"]))
    chosen = jnp.take_along_axis(every, batch["action"][..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(every) * every, axis=-1), run(weights["value"], batch["state"])[..., 0]


def loss(weights, batch, whole):
    log_probs, entropies, values = of_actions(weights, batch)
    policy = aggregate(
        ppo(log_probs, batch["log_probs"], batch["advantages"], batch["mask"]), batch["mask"], "tokens", whole
    )
    critic = aggregate(value_loss(values, batch["returns"], batch["values"], 10.0), batch["mask"], "tokens", whole)
    return policy + 0.05 * critic - ENTROPY * masked_mean(entropies, batch["mask"], whole.tokens)


def learn(key):
    """Rounds of rollout and update; how many poles fell in each round."""
    keys = jax.random.split(key, 4)
    weights = {"policy": layers(keys[0], 2), "value": layers(keys[1], 1)}
    optimiser = optax.adam(0.01)

    def round_(carry, key):
        weights, moments, state = carry
        keys = jax.random.split(key)
        state, seen = jax.lax.scan(lambda s, k: act(weights, s, k), state, jax.random.split(keys[0], STEPS))
        batch = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), seen)
        batch["mask"] = jnp.ones((CARTS, STEPS))
        batch["log_probs"], _, batch["values"] = of_actions(weights, batch)
        discounts = jnp.where(batch["down"], 0.0, GAMMA)
        final = run(weights["value"], state)[:, 0]
        advantages, batch["returns"] = gae(
            batch["mask"], batch["values"], batch["mask"], gamma=discounts, lam=LAMBDA, final_values=final
        )
        batch["advantages"] = whiten(advantages, batch["mask"])

        def update(carry, chosen):
            weights, moments = carry
            part = jax.tree.map(lambda x: x[chosen], batch)
            updates, moments = optimiser.update(jax.grad(loss)(weights, part, counts(part["mask"])), moments)
            return (optax.apply_updates(weights, updates), moments), None

        orders = jax.vmap(lambda k: jax.random.permutation(k, CARTS))(jax.random.split(keys[1], EPOCHS))
        (weights, moments), _ = jax.lax.scan(update, (weights, moments), orders.reshape(EPOCHS * PARTS, -1))
        return (weights, moments, state), jnp.sum(batch["down"])

    start = (weights, optimiser.init(weights), fresh(keys[2]))
    return jax.lax.scan(round_, start, jax.random.split(keys[3], ROUNDS))[1]


def test_a_policy_learns_to_balance_a_pole():
    """Episodes of the first round last 20 to 50 steps, those of the last five 200 on average."""
    fell = np.asarray(jax.jit(jax.vmap(learn))(jax.random.split(jax.random.key(0), SEEDS)))
    assert fell.shape == (SEEDS, ROUNDS)
    first = CARTS * STEPS / np.maximum(1, fell[:, 0])
    last = 5 * CARTS * STEPS / np.maximum(1, fell[:, -5:].sum(axis=1))
    assert np.all(first < 60) and np.all(last > 100), (first, last)
