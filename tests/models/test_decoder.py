# SPDX-License-Identifier: Apache-2.0
"""What must hold of the decoder: who sees whom, that packing and padding change nothing, that shapes follow roles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost import params as parameters
from jaxpost import trees
from jaxpost.kernels.attention import Rows
from jaxpost.models.decoder import Decoder, embed, head, logits, specs, trunk
from jaxpost.shard import MeshShape, make_mesh, shardings

CONFIG = Decoder(vocab=40, d=24, layers=3, heads=4, kv_heads=2, head_size=8, ffn=40)
LENGTH = 16

forward = jax.jit(logits, static_argnums=0)


def loud(config, seed=0):
    """Parameters large enough that every part of the model shows in the logits."""
    flat = trees.flatten(parameters.init(specs(config), jax.random.key(seed)))
    return trees.unflatten({p: x if x is None or "norm" in p else 8 * x for p, x in flat.items()})


@pytest.fixture(scope="module")
def weights():
    return loud(CONFIG)


def rows_of(lengths, length=LENGTH):
    """One packed row of examples of these lengths, padding last."""
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])
    pad = length - len(segments)
    return Rows(jnp.asarray(np.pad(segments, (0, pad))[None]), jnp.asarray(np.pad(positions, (0, pad))[None]))


def tokens_of(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, CONFIG.vocab, shape))


def dependence(weights, rows):
    """How strongly the output at each position (first axis) depends on the input at each (second), by gradients."""

    def outputs(x):
        hidden, _ = trunk(CONFIG, weights, x, rows)
        return jnp.sum(head(CONFIG, weights, hidden)[0] ** 2, axis=-1)

    x = embed(CONFIG, weights, tokens_of(1, LENGTH))
    return np.linalg.norm(jax.jit(jax.jacrev(outputs))(x)[:, 0], axis=-1)


def test_outputs_depend_on_earlier_inputs_and_on_no_later_one(weights):
    found = dependence(weights, rows_of([LENGTH]))
    earlier = np.tril(np.ones((LENGTH, LENGTH), bool))
    assert np.all(found[~earlier] == 0.0)
    assert np.all(found[earlier] > 0.0)


def test_packed_examples_depend_on_themselves_only(weights):
    rows = rows_of([5, 1, 7])
    found = dependence(weights, rows)
    segments = np.asarray(rows.segments[0])
    same = (segments[:, None] == segments[None]) & np.tril(np.ones((LENGTH, LENGTH), bool))
    real = segments > 0
    assert np.all(found[real][~same[real]] == 0.0)
    assert np.all(found[real][same[real]] > 0.0)


def nll(weights, tokens, rows):
    """Summed loss of next tokens within segments."""
    scores = jax.nn.log_softmax(logits(CONFIG, weights, tokens, rows))
    picked = jnp.take_along_axis(scores[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    inside = (rows.segments[:, 1:] == rows.segments[:, :-1]) & (rows.segments[:, 1:] > 0)
    return -jnp.sum(jnp.where(inside, picked, 0.0))


backward = jax.jit(jax.value_and_grad(nll))


def unpacked(tokens, rows):
    """The examples of one row, each in a row of its own; always `LENGTH` rows, so that shapes never change."""
    segments, apart = np.asarray(rows.segments[0]), np.zeros((LENGTH, LENGTH), np.int32)
    taken = np.zeros((LENGTH, LENGTH), np.int32)
    for number in range(1, segments.max() + 1):
        where = segments == number
        apart[number - 1, : where.sum()] = np.asarray(tokens[0])[where]
        taken[number - 1, : where.sum()] = 1
    positions = np.arange(LENGTH) * taken
    return jnp.asarray(apart), Rows(jnp.asarray(taken), jnp.asarray(positions))


lengths = st.lists(st.integers(1, LENGTH), min_size=1, max_size=LENGTH).map(
    lambda parts: [n for i, n in enumerate(parts) if sum(parts[: i + 1]) <= LENGTH] or [LENGTH]
)


@settings(max_examples=25, deadline=None)
@given(parts=lengths, seed=st.integers(0, 1000))
def test_packed_equals_separate(weights, parts, seed):
    """The gate: logits, loss and gradients, whatever the cuts."""
    tokens, rows = tokens_of(1, LENGTH, seed=seed), rows_of(parts)
    apart, apart_rows = unpacked(tokens, rows)
    together, separate = forward(CONFIG, weights, tokens, rows), forward(CONFIG, weights, apart, apart_rows)
    np.testing.assert_allclose(together[0, : sum(parts)], separate[apart_rows.segments > 0], rtol=0, atol=1e-5)
    (loss, grads), (loss_apart, grads_apart) = backward(weights, tokens, rows), backward(weights, apart, apart_rows)
    np.testing.assert_allclose(loss, loss_apart, rtol=1e-5, atol=1e-5)
    for path, grad in trees.flatten(grads).items():
        if grad is not None:
            scale = max(1.0, float(jnp.max(jnp.abs(grad))))
            np.testing.assert_allclose(grad, trees.flatten(grads_apart)[path], rtol=0, atol=1e-5 * scale, err_msg=path)


def test_what_stands_in_the_padding_does_not_matter(weights):
    rows, tokens, other = rows_of([6, 4]), tokens_of(1, LENGTH), tokens_of(1, LENGTH, seed=1)
    moved = rows.replace(positions=rows.positions.at[:, 10:].set(3))
    before = forward(CONFIG, weights, tokens, rows)
    after = forward(CONFIG, weights, jnp.where(rows.segments > 0, tokens, other), moved)
    np.testing.assert_array_equal(before[:, :10], after[:, :10])
    assert np.all(np.isfinite(after))


def test_how_much_padding_there_is_does_not_matter(weights):
    tokens = tokens_of(1, LENGTH)
    short = forward(CONFIG, weights, tokens[:, :9], rows_of([9], 9))
    np.testing.assert_allclose(forward(CONFIG, weights, tokens, rows_of([9]))[:, :9], short, rtol=0, atol=1e-5)


def test_only_distances_between_positions_matter(weights):
    tokens, rows = tokens_of(1, LENGTH), rows_of([LENGTH])
    later = rows.replace(positions=rows.positions + 100)
    stretched = rows.replace(positions=rows.positions * 2)
    found = forward(CONFIG, weights, tokens, rows)
    np.testing.assert_allclose(forward(CONFIG, weights, tokens, later), found, rtol=0, atol=1e-4)
    assert np.max(np.abs(forward(CONFIG, weights, tokens, stretched) - found)) > 0.01


def test_a_tied_head_is_the_embedding(weights):
    tied = dataclasses.replace(CONFIG, tied=True)
    assert parameters.init(specs(tied), jax.random.key(0))["head"] is None
    tokens, rows = tokens_of(1, LENGTH), rows_of([LENGTH])
    found = forward(tied, weights | {"head": None}, tokens, rows)
    expected = forward(CONFIG, weights | {"head": weights["embed"].T}, tokens, rows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_shared_key_heads_are_repeated_key_heads(weights):
    attn = weights["layers"]["attn"]
    repeated = attn | {name: jnp.repeat(attn[name], 2, axis=2) for name in ("k", "v")}
    whole = weights | {"layers": weights["layers"] | {"attn": repeated}}
    tokens, rows = tokens_of(1, LENGTH), rows_of([LENGTH])
    found = forward(dataclasses.replace(CONFIG, kv_heads=4), whole, tokens, rows)
    np.testing.assert_allclose(found, forward(CONFIG, weights, tokens, rows), rtol=0, atol=1e-5)


def test_sixteen_bits_run_through(weights):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    tokens, rows = tokens_of(1, LENGTH), rows_of([LENGTH])
    found = forward(config, jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights), tokens, rows)
    expected = forward(CONFIG, weights, tokens, rows)
    assert found.dtype == jnp.bfloat16
    error = np.linalg.norm(found.astype(jnp.float32) - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.05


@pytest.mark.parametrize("shape", [MeshShape(data=2, fsdp=2, tensor=2), MeshShape(fsdp=8)], ids=str)
def test_a_mesh_changes_nothing(weights, shape):
    mesh = make_mesh(shape)
    tokens = tokens_of(8, LENGTH)
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (8, LENGTH)), rows_of([9, 5]))
    placed = jax.tree.map(jax.device_put, weights, shardings(parameters.filled(specs(CONFIG)), mesh))
    with jax.set_mesh(mesh):
        found = forward(CONFIG, placed, tokens, rows)
    np.testing.assert_allclose(found, forward(CONFIG, weights, tokens, rows), rtol=0, atol=1e-5)
