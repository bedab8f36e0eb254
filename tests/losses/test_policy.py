# SPDX-License-Identifier: Apache-2.0
"""Laws of the policy losses: what a cut, padding or an extreme ratio may not change, and where gradients point."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jaxpost.faults import Fault
from jaxpost.losses import (
    FAMILY,
    Counts,
    aggregate,
    clipped,
    counts,
    effective_sample_size,
    log_ratios,
    off_policy_mask,
    ppo,
    reinforce,
    sampler_weights,
    top_entropy_mask,
)
from jaxpost.losses.ratios import of_tokens

LENGTH = 6
HOWS = ("tokens", "sequence_means", "sequence_sums", "constant")
SUMS = ("luspo", "rloo")  # at ratio 1 the gradient is that of the sum over an answer


@jax.jit
def family(log_probs, old, advantages, mask, whole):
    """Every member's loss and gradient."""

    def total(log_probs, member):
        return aggregate(member.loss(log_probs, old, advantages, mask), mask, member.how, whole, length=LENGTH)

    return {name: jax.value_and_grad(total)(log_probs, member) for name, member in FAMILY.items()}


def draw(seed, rows=4, width=5):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, width + 1, rows)
    lengths[seed % rows] = max(1, lengths[seed % rows])
    mask = (np.arange(width) < lengths[:, None]).astype(np.float32)
    old = -rng.gamma(1.0, 1.0, (rows, width)).astype(np.float32)
    log_probs = old + 0.4 * rng.normal(size=old.shape).astype(np.float32)
    return log_probs, old, rng.normal(size=rows).astype(np.float32), mask


def padded(x, width, fill):
    return np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=fill)


@settings(max_examples=12, derandomize=True)
@given(st.integers(0, 2**16))
def test_parts_add_up_however_cut_and_padded(seed):
    """Two halves, wider by columns of NaN, against the whole."""
    log_probs, old, advantages, mask = draw(seed)
    whole = counts(jnp.asarray(mask))
    one = family(log_probs, old, advantages, mask, whole)
    halves = []
    for rows in (slice(0, 2), slice(2, 4)):
        wide = [padded(x[rows], 7, np.nan) for x in (log_probs, old)]
        halves.append(family(*wide, advantages[rows], padded(mask[rows], 7, 0.0), whole))
    for name, (value, gradient) in one.items():
        np.testing.assert_allclose(sum(half[name][0] for half in halves), value, atol=1e-5, rtol=1e-5, err_msg=name)
        parts = np.concatenate([half[name][1] for half in halves])
        np.testing.assert_allclose(parts[:, :5], gradient, atol=1e-6, rtol=1e-5, err_msg=name)
        assert not np.any(parts[:, 5:]) and not np.any(np.where(mask > 0, 0, gradient)), name


@settings(max_examples=12, derandomize=True)
@given(st.integers(0, 2**16))
def test_at_ratio_one_the_gradient_is_the_policy_gradient(seed):
    log_probs, _, advantages, mask = draw(seed)
    found = family(log_probs, log_probs, advantages, mask, counts(jnp.asarray(mask)))
    length = np.maximum(mask.sum(1, keepdims=True), 1)
    sequences, wanted = max(1, np.any(mask, axis=1).sum()), -advantages[:, None] * mask
    by_how = {
        "tokens": wanted / mask.sum(),
        "sequence_means": wanted / length / sequences,
        "sequence_sums": wanted / sequences,
        "constant": wanted / sequences / LENGTH,
    }
    for name, (_, gradient) in found.items():
        how = "sequence_sums" if name in SUMS else FAMILY[name].how
        np.testing.assert_allclose(gradient, by_how[how], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("far", [1e4, -1e4])
def test_extreme_ratios_stay_finite(far):
    """Values and gradients, for good answers and bad, at every token or one of them."""
    old = np.full((4, 5), -5000.0, np.float32)
    log_probs = old + np.array([[far] * 5, [far, 0, 0, 0, 0]] * 2, np.float32)
    found = family(log_probs, old, np.array([1, 1, -1, -1], np.float32), np.ones((4, 5), np.float32), None)
    assert len(found) == 10
    for name, (value, gradient) in found.items():
        assert np.isfinite(value) and np.all(np.isfinite(gradient)), name


def test_the_clip_stops_what_goes_on_in_its_direction_only():
    """Ratios of 2 and 1/2: up with A > 0 and down with A < 0 stop, the others go back."""
    log_probs = jnp.log(jnp.array([[2.0], [2.0], [0.5], [0.5]]))
    advantages, old, mask = jnp.array([1.0, -1.0, 1.0, -1.0]), jnp.zeros((4, 1)), jnp.ones((4, 1))
    kinds = {"plain": {}, "dual": {"dual": 1.5}, "cap": {"cap": 1.5}}

    @jax.jit
    def slopes(p):
        each = {k: jax.grad(lambda p, o=o: jnp.sum(ppo(p, old, advantages, mask, **o)))(p) for k, o in kinds.items()}
        return each, clipped(p, old, advantages, mask)

    found, outside = slopes(log_probs)
    np.testing.assert_allclose(found["plain"][:, 0], [0.0, 2.0, -0.5, 0.0], atol=1e-6)
    np.testing.assert_allclose(found["dual"][:, 0], [0.0, 0.0, -0.5, 0.0], atol=1e-6)
    np.testing.assert_allclose(found["cap"][:, 0], [0.0, 0.0, -0.5, 0.0], atol=1e-6)
    np.testing.assert_array_equal(outside[:, 0], [1, 0, 0, 1])


def test_what_no_gradient_may_reach():
    log_probs, old, advantages, mask = (jnp.asarray(x) for x in draw(5))

    @jax.jit
    def gradients(old, advantages):
        losses = {name: lambda p, a, m=m: m.loss(log_probs, p, a, mask) for name, m in FAMILY.items()}
        losses["reinforce"] = lambda p, a: reinforce(log_probs, a, mask)
        return {
            name: jax.grad(lambda p, a, f=f: jnp.sum(f(p, a)), (0, 1))(old, advantages) for name, f in losses.items()
        }

    found = gradients(old, advantages)
    assert len(found) == 11 and not any(np.any(x) for x in jax.tree.leaves(found))


def test_shards_add_up():
    """Eight devices, a row each: their sums over the whole batch's counts are the loss."""
    log_probs, old, advantages, mask = (jnp.asarray(x) for x in draw(3, rows=8))
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))

    def part(log_probs, old, advantages, mask, whole):
        return jax.lax.psum(aggregate(ppo(log_probs, old, advantages, mask), mask, "sequence_means", whole), "rows")

    rows = (P("rows"), P("rows"), P("rows"), P("rows"), P())
    sharded = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=rows, out_specs=P()))
    found = sharded(log_probs, old, advantages, mask, counts(mask))
    wanted = jax.jit(lambda: aggregate(ppo(log_probs, old, advantages, mask), mask, "sequence_means"))()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_aggregate_by_hand():
    losses = jnp.array([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    rows = Counts(jnp.float32(3), jnp.float32(3))

    @jax.jit
    def every(losses, mask):
        found = [aggregate(losses, mask, how, length=4) for how in HOWS]
        return counts(mask), counts(0 * mask), [*found, aggregate(losses, mask, "sequence_means", rows)]

    of_some, of_none, found = every(losses, mask)
    assert of_some == (3, 2) and of_none == (1, 1)
    np.testing.assert_allclose(found, [7 / 3, (1.5 + 4) / 2, 7 / 2, 7 / 8, 5.5 / 3], rtol=1e-6)


def test_weights_for_another_sampler():
    """exp of the difference, of tokens and of answers; what is unknown counts as equal, what is hidden not at all."""
    log_probs = jnp.log(jnp.array([[2.0, 2.0, 2.0], [0.5, 8.0, 1.0]]))
    sampler, mask = jnp.zeros((2, 3)).at[0, 2].set(jnp.nan), jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])

    @jax.jit
    def every(*arrays):
        return [
            sampler_weights(*arrays, level=level, beyond=beyond, low=0.6, high=3.0)
            for level in ("token", "sequence")
            for beyond in ("truncate", "mask")
        ]

    truncated, masked, of_answers, answers_masked = every(log_probs, sampler, mask)
    np.testing.assert_allclose(truncated, [[2, 2, 1], [0.6, 3, 1]], rtol=1e-5)
    np.testing.assert_allclose(masked, [[2, 2, 1], [0, 0, 1]], rtol=1e-5)
    np.testing.assert_allclose(of_answers, [[3, 3, 3], [3, 3, 3]], rtol=1e-5)
    np.testing.assert_allclose(answers_masked, [[0, 0, 0], [0, 0, 0]], rtol=1e-5)
    far = every(jnp.full((2, 3), 1e4), jnp.full((2, 3), -1e4), mask)
    np.testing.assert_allclose(far[2], 3.0)


def test_masks_that_give_up():
    log_probs, sampler = jnp.full((3, 2), -2.0), jnp.array([[-1.0, -1.0], [-1.0, -1.0], [jnp.nan, -1.0]])
    mask, entropies = jnp.ones((3, 2)), jnp.arange(1.0, 7.0).reshape(3, 2)
    kept = jax.jit(partial(off_policy_mask, threshold=0.6))(log_probs, sampler, jnp.array([1.0, -1.0, -1.0]), mask)
    np.testing.assert_array_equal(kept, [[1, 1], [0, 0], [1, 1]])
    top = jax.jit(top_entropy_mask, static_argnums=2)
    np.testing.assert_array_equal(top(entropies, mask, 0.3), [[0, 0], [0, 0], [1, 1]])
    np.testing.assert_array_equal(top(entropies, jnp.array([[1.0, 1], [1, 1], [0, 0]]), 0.5), [[0, 0], [1, 1], [0, 0]])
    assert not np.any(top(entropies, jnp.zeros((3, 2)), 0.5))


def test_effective_sample_size():
    mask, share = jnp.array([1.0, 1.0, 1.0, 0.0]), jax.jit(effective_sample_size)
    for weights, wanted in (([3, 3, 3, 9], 1.0), ([5, 0, 0, 9], 1 / 3), ([1e30, 1e30, 0, 0], 2 / 3), ([0, 0, 0, 1], 0)):
        np.testing.assert_allclose(share(jnp.array(weights, jnp.float32), mask), wanted, rtol=1e-5)


def test_what_cannot_be_asked():
    x = jnp.zeros((1, 2))
    with pytest.raises(Fault, match="dual=1.0 must be above 1"):
        ppo(x, x, x, x, dual=1.0)
    with pytest.raises(Fault, match="length that answers may have"):
        aggregate(x, x, "constant")
    for broken in (
        lambda: aggregate.__wrapped__(x, x, "token"),
        lambda: log_ratios.__wrapped__(x, x, x, "sentence"),
        lambda: sampler_weights.__wrapped__(x, x, x, level="word"),
        lambda: sampler_weights.__wrapped__(x, x, x, beyond="drop"),
    ):
        with pytest.raises(Fault, match="no (way|level|way with what lies) '"):
            broken()
    for broken in (
        lambda: log_ratios.__wrapped__(x, x[:, :1], x),
        lambda: aggregate.__wrapped__(x, x[0]),
        lambda: of_tokens.__wrapped__(jnp.zeros(2), x),
    ):
        with pytest.raises(Fault, match="must (have one shape|be)"):
            broken()
