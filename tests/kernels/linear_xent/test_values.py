# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost.kernels.linear_xent import linear_values

HIDDEN = jax.random.normal(jax.random.key(0), (2, 7, 5))
HEAD = {"w": jax.random.normal(jax.random.key(1), (5, 11)), "codes": jnp.arange(3)}
TARGETS = jax.random.randint(jax.random.key(2), (2, 7), 0, 11)
CHUNKS = [1, 4, 100]


def contract(hidden, weights):
    return hidden @ weights["w"]


def values(logits, targets):
    logs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(logs) * logs, axis=-1)


def far(found):
    """Not linear in what it is given, so that each token's cotangent is another."""
    chosen, entropy = found
    return jnp.sum(jnp.tanh(jnp.sum(chosen, axis=1))) + jnp.sum(jnp.square(entropy) * jnp.arange(7.0)[None])


def whole(head, hidden):
    return values(contract(hidden, head), TARGETS)


def chunked(chunk):
    return lambda head, hidden: linear_values(contract, values, head, hidden, TARGETS, chunk)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_values_are_those_of_all_logits_at_once(chunk):
    for ours, theirs in zip(chunked(chunk)(HEAD, HIDDEN), whole(HEAD, HIDDEN), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("trained", ["hidden", "head", "both"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_gradients_are_those_of_all_logits_at_once(chunk, trained):
    def gradient(of):
        def loss(w, hidden):
            return far(of({**HEAD, "w": w}, hidden))

        wanted = {"hidden": (1,), "head": (0,), "both": (0, 1)}[trained]
        return jax.jit(jax.grad(loss, wanted))(HEAD["w"], HIDDEN)

    for ours, theirs in zip(gradient(chunked(chunk)), gradient(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_value_that_nobody_uses_has_no_part_in_the_gradient():
    ours = jax.grad(lambda hidden: jnp.sum(chunked(4)(HEAD, hidden)[0]))(HIDDEN)
    theirs = jax.grad(lambda hidden: jnp.sum(whole(HEAD, hidden)[0]))(HIDDEN)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    trained = jax.grad(lambda w: jnp.sum(chunked(4)({**HEAD, "w": w}, HIDDEN)[0]))(HEAD["w"])
    assert np.all(np.isfinite(trained)) and np.any(trained != 0)


def test_logits_of_all_tokens_never_exist():
    text = jax.jit(jax.grad(lambda hidden: far(chunked(2)(HEAD, hidden)))).lower(HIDDEN).as_text()
    assert "2x1x11xf32" in text and "2x7x11xf32" not in text
