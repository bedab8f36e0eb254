# SPDX-License-Identifier: Apache-2.0
"""Laws of returns and advantages: against sums written out, in their limits, under reordering, and with odd groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.faults import Fault
from jaxpost.losses import (
    decoupled_advantages,
    gae,
    group_advantages,
    lambda_returns,
    last_places,
    leave_one_out,
    length_weighted_advantages,
    monte_carlo,
    reinforce_plus_plus_baseline,
    td_errors,
    token_rewards,
    varied,
    whiten,
)

ROWS, WIDTH = 3, 6


@jax.jit
def along(rewards, values, mask, discounts, final):
    """Everything that goes along an answer."""
    more = {"gamma": discounts, "final_values": final}
    return {
        "gae": gae(rewards, values, mask, lam=0.7, **more),
        "to_the_end": gae(rewards, values, mask, lam=1.0, **more)[0],
        "monte_carlo": monte_carlo(rewards, mask, **more),
        "one_step": gae(rewards, values, mask, lam=0.0, **more)[0],
        "td_errors": td_errors(rewards, values, mask, **more),
        "lambda_returns": lambda_returns(rewards, values, mask, lam=0.7, **more),
        "by_number": monte_carlo(rewards, mask, gamma=0.5),
        "last": last_places(mask),
    }


def written_out(rewards, values, discounts, final, lam):
    """One answer without holes: `A_t = sum_k (prod gamma lam) d_{t+k}`."""
    following = np.append(values[1:], final)
    errors = rewards + discounts * following - values
    return [
        sum(np.prod(discounts[t : t + k] * lam) * errors[t + k] for k in range(len(rewards) - t))
        for t in range(len(rewards))
    ]


@settings(max_examples=12, derandomize=True)
@given(st.integers(0, 2**16))
def test_gae_is_the_sum_of_discounted_errors_as_if_holes_were_not_there(seed):
    rng = np.random.default_rng(seed)
    rewards, values = (rng.normal(size=(ROWS, WIDTH)).astype(np.float32) for _ in range(2))
    discounts = rng.choice([0.0, 0.5, 0.9, 1.0], (ROWS, WIDTH)).astype(np.float32)
    mask, final = rng.integers(0, 2, (ROWS, WIDTH)).astype(np.float32), rng.normal(size=ROWS).astype(np.float32)
    odd = np.where(mask > 0, 0.0, np.nan).astype(np.float32)  # what stands in a hole does not matter
    found = jax.tree.map(np.asarray, along(rewards + odd, values + odd, mask, discounts, final))
    for i in range(ROWS):
        inside = mask[i] > 0
        r, v, g = rewards[i, inside], values[i, inside], discounts[i, inside]
        for name, values_of, lam in (("gae", v, 0.7), ("monte_carlo", 0 * v, 1.0), ("td_errors", v, 0.0)):
            of_ours = found[name][0] if name == "gae" else found[name]
            wanted = written_out(r, values_of, g, final[i], lam)
            np.testing.assert_allclose(of_ours[i, inside], wanted, atol=1e-5, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(found["to_the_end"], mask * (found["monte_carlo"] - values), atol=1e-5)
    np.testing.assert_allclose(found["one_step"], found["td_errors"])
    np.testing.assert_allclose(found["lambda_returns"], found["gae"][1])
    np.testing.assert_allclose(found["gae"][1], mask * (found["gae"][0] + values), atol=1e-6)
    assert not any(np.any(np.where(mask > 0, 0, x)) for x in jax.tree.leaves(found))
    np.testing.assert_array_equal(np.sum(found["last"], axis=1), np.any(mask, axis=1))
    np.testing.assert_allclose(
        np.sum(found["last"] * np.arange(WIDTH), axis=1), np.max(mask * np.arange(WIDTH), axis=1)
    )


def test_the_score_stands_on_the_last_token_and_the_kl_on_each():
    mask = jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    kl = jnp.array([[1.0, 2.0, jnp.nan], [jnp.nan] * 3, [3.0, jnp.nan, 4.0]])
    found = jax.jit(token_rewards)(jnp.array([10.0, 20.0, 30.0]), mask, kl, jnp.float32(0.5))
    np.testing.assert_allclose(found, [[-0.5, 9.0, 0.0], [0.0, 0.0, 0.0], [-1.5, 0.0, 28.0]])


@jax.jit
def among(rewards, groups, mask):
    """Everything that goes among answers."""
    return {
        **{scale: group_advantages(rewards, groups, scale=scale) for scale in ("group", "batch", "none")},
        "plain": group_advantages(rewards, groups, eps=0.0),
        "kept": group_advantages(rewards, groups, lone="keep"),
        "rloo": leave_one_out(rewards, groups),
        "rloo_kept": leave_one_out(rewards, groups, lone="keep"),
        "opo": length_weighted_advantages(rewards, mask, groups),
        "baseline": jnp.sum(reinforce_plus_plus_baseline(rewards, mask, groups) * mask, axis=1),
        "decoupled": decoupled_advantages(jnp.stack([rewards, -rewards], 1), jnp.array([1.0, 0.5]), groups),
        "varied": varied(rewards, groups),
    }


def drawn(seed):
    rng = np.random.default_rng(seed)
    rewards, groups = rng.normal(size=8).astype(np.float32), rng.choice([0, 2, 5, 7], 8).astype(np.int32)
    rewards[rng.integers(0, 8, 2)] = np.nan
    mask = (np.arange(4) < rng.integers(1, 5, 8)[:, None]).astype(np.float32)
    return rng, rewards, groups, mask


@settings(max_examples=12, derandomize=True)
@given(st.integers(0, 2**16))
def test_of_groups_only_the_members_matter(seed):
    """Not their order, nor the group's number; and each by itself is what the definition says."""
    rng, rewards, groups, mask = drawn(seed)
    found = jax.tree.map(np.asarray, among(rewards, groups, mask))
    order, names = rng.permutation(8), rng.permutation(8).astype(np.int32)
    moved = jax.tree.map(np.asarray, among(rewards[order], names[groups][order], mask[order]))
    assert len(found) == 11
    for name, advantages in found.items():
        np.testing.assert_allclose(moved[name], advantages[order], atol=1e-5, err_msg=name)
        assert not np.any(advantages[np.isnan(rewards)]), name
    for group in set(groups):
        members = np.flatnonzero((groups == group) & ~np.isnan(rewards))
        own = rewards[members]
        if len(own) > 1:
            centred = own - own.mean()
            np.testing.assert_allclose(found["none"][members], centred, atol=1e-5)
            np.testing.assert_allclose(
                found["group"][members], centred / (own.std(ddof=1) + 1e-4), rtol=1e-3, atol=1e-5
            )
            others = [np.delete(own, i).mean() for i in range(len(own))]
            np.testing.assert_allclose(found["rloo"][members], own - others, atol=1e-5)
            np.testing.assert_allclose(np.sum(found["plain"][members]), 0, atol=1e-4)
        elif len(own) == 1:
            assert not any(found[name][members[0]] for name in ("group", "batch", "none", "rloo", "opo", "varied"))
            np.testing.assert_allclose(found["kept"][members], own / (1 + 1e-4), rtol=1e-6)
            np.testing.assert_allclose(found["rloo_kept"][members], own)


@settings(max_examples=12, derandomize=True)
@given(st.integers(0, 2**16), st.floats(0.1, 100), st.floats(-10, 10))
def test_standardised_rewards_have_no_unit(seed, scale, shift):
    _, rewards, groups, mask = drawn(seed)
    one, other = among(rewards, groups, mask), among(scale * rewards + shift, groups, mask)
    np.testing.assert_allclose(other["plain"], one["plain"], atol=1e-2)
    np.testing.assert_allclose(other["rloo"], scale * one["rloo"], atol=1e-3)
    np.testing.assert_array_equal(other["varied"], one["varied"])


@pytest.mark.parametrize("reward", [0.1, 1000.1, -1e30])
def test_equal_rewards_teach_nothing(reward):
    """Not even by rounding: the mean of three 1000.1 is not 1000.1."""
    rewards, groups = np.full(8, reward, np.float32), np.array([0, 0, 0, 1, 1, 1, 1, 2], np.int32)
    found = among(rewards, groups, np.ones((8, 4), np.float32))
    assert not any(np.any(x) for name, x in found.items() if "kept" not in name)
    assert all(np.all(np.isfinite(x)) for x in found.values())


def test_what_is_whitened_has_mean_zero_and_unbiased_variance_one():
    rng = np.random.default_rng(0)
    x, mask = 3 + 5 * rng.normal(size=(4, 5)).astype(np.float32), rng.integers(0, 2, (4, 5)).astype(np.float32)
    shown = np.where(mask > 0, x, np.nan).astype(np.float32)
    both = jax.jit(lambda x, mask: (whiten(x, mask), whiten(x, mask, shift_mean=False)))
    centred, kept = both(shown, mask)
    inside = centred[mask > 0]
    np.testing.assert_allclose([inside.mean(), inside.var(ddof=1)], [0, 1], atol=1e-5)
    np.testing.assert_allclose(kept[mask > 0].mean(), x[mask > 0].mean(), rtol=1e-5)
    assert not np.any(centred[mask == 0]) and not np.any(kept[mask == 0])
    one = np.zeros((4, 5), np.float32)
    one[1, 2] = 1
    assert not np.any(both(x, one)[0]) and not np.any(both(x, 0 * one)[0])


def test_what_cannot_be_asked():
    with pytest.raises(Fault, match="no scale 'groups'; did you mean group?"):
        group_advantages.__wrapped__(jnp.zeros(2), jnp.zeros(2, jnp.int32), scale="groups")
