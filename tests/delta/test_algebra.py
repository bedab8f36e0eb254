# SPDX-License-Identifier: Apache-2.0
"""Adding, taking off, scaling, stacking and switching whole deltas does to weights what it does to numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost import delta
from jaxpost.delta import Dense, Insert, LowRank, Scale, Stack, algebra
from jaxpost.delta.adalora import Svd
from jaxpost.faults import Fault
from tests.delta.drawn import FLAT, base, change, close, drawn, kinds, numbers

FEW = settings(max_examples=8)
seeds = st.integers(0, 2**16)


@FEW
@given(st.lists(kinds, min_size=1, max_size=3), seeds)
def test_a_sum_changes_every_weight_by_the_sum(chosen, seed):
    deltas = [drawn(some, seed + i) for i, some in enumerate(chosen)]
    whole = algebra.add(*deltas)
    assert whole.keys() == {path for some in deltas for path in some}
    parts = [change(some) for some in deltas]
    close(change(whole), {path: sum(part[path] for part in parts) for path in FLAT})


@FEW
@given(kinds, kinds, seeds)
def test_a_difference_added_back_is_what_it_was(one, other, seed):
    a, b = drawn(one, seed), drawn(other, seed + 1)
    found, wanted, taken = change(algebra.subtract(a, b)), change(a), change(b)
    close(found, {path: wanted[path] - taken[path] for path in FLAT})
    close(change(algebra.add(algebra.subtract(a, b), b)), wanted)


@FEW
@given(kinds, st.sampled_from([0.0, 1.0, -1.0, 2.5]), seeds)
def test_a_number_acts_on_the_change(chosen, by, seed):
    made = drawn(chosen, seed)
    close(change(algebra.scale(made, by)), {path: by * c for path, c in change(made).items()})


@FEW
@given(kinds, kinds, st.booleans(), seeds)
def test_switching_is_taking_off_and_adding(one, other, biased, seed):
    """- B A + B' A': over a model with the old delta folded in it gives the model with the new one."""
    old, new = drawn(one, seed), drawn(other, seed + 1, others=biased)
    tuned = delta.fold(base(), old)
    found = delta.fold(tuned, algebra.switch(old, new))
    wanted = delta.fold(base(), new)
    if not biased:
        np.testing.assert_array_equal(found["layers"]["q_bias"], 0.0)
        wanted["layers"]["q_bias"] = jnp.zeros(FLAT["layers/q_bias"].shape)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-4), found, wanted)


@FEW
@given(st.lists(kinds, min_size=2, max_size=3), seeds)
def test_a_stack_is_deltas_bound_one_over_the_other(chosen, seed):
    deltas = [drawn(some, seed + i, others=False) for i, some in enumerate(chosen)]
    deltas.append({"layers/q": Scale(numbers(np.random.default_rng(seed), (2, 1, 3, 2)))})
    wanted = base()
    for some in deltas:
        wanted = delta.fold(wanted, some)
    found = delta.fold(base(), algebra.stack(*deltas))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, wanted)


def test_low_rank_updates_become_one_whose_rank_is_the_sum():
    rng = np.random.default_rng(0)
    one, two = (
        {"layers/q": LowRank(numbers(rng, (2, 4, r)), numbers(rng, (2, r, 3, 2)), jnp.full(2, 2.0))} for r in (2, 3)
    )
    whole = algebra.add(one, two)["layers/q"]
    assert isinstance(whole, LowRank) and whole.a.shape == (2, 4, 5) and whole.b.shape == (2, 5, 3, 2)
    np.testing.assert_array_equal(whole.scale, 1.0)


def test_mixed_kinds_stack_with_the_dense_one_next_to_the_weight():
    rng = np.random.default_rng(0)
    low = LowRank(numbers(rng, (7, 2)), numbers(rng, (2, 4)), jnp.float32(1.0))
    whole = algebra.add({"embed": low}, {"embed": Dense(numbers(rng, (7, 4)))}, {"embed": low})["embed"]
    assert isinstance(whole, Stack) and [type(part) for part in whole.edits] == [Dense, LowRank]
    assert whole.edits[1].a.shape == (7, 4)


def test_low_rank_updates_in_other_words_are_low_rank_updates():
    rng = np.random.default_rng(0)
    svd = Svd(numbers(rng, (7, 2)), numbers(rng, (2,)), numbers(rng, (2, 4)), jnp.float32(0.5))
    whole = algebra.add({"embed": svd}, {"embed": svd})
    assert isinstance(whole["embed"], LowRank) and whole["embed"].a.shape == (7, 4)
    close(change(whole), change(algebra.scale({"embed": svd}, 2.0)))


def test_arithmetic_has_gradients():
    """A sum's weights may be what is trained."""
    one, two = drawn({"embed": "lora"}, 0, others=False), drawn({"embed": "dense"}, 1, others=False)

    def total(by):
        return jnp.sum(delta.fold(base(), algebra.add(algebra.scale(one, by), algebra.scale(two, by)))["embed"])

    wanted = sum(change(some)["embed"].sum() for some in (one, two))
    np.testing.assert_allclose(jax.jit(jax.grad(total))(0.5), wanted, rtol=1e-4)


@pytest.mark.parametrize("act", [lambda d: algebra.scale(d, 2.0), lambda d: algebra.add(d, d)])
@pytest.mark.parametrize(
    "made, text",
    [
        (
            {"layers/q": Scale(jnp.ones((2, 1, 3, 2)))},
            "'layers/q' is edited by a Scale, which has no change of its own",
        ),
        ({"prompt": Insert(jnp.ones((2, 4)))}, "'prompt' is an Insert: only biases can be scaled or added"),
    ],
)
def test_what_has_no_change_of_its_own_is_refused(act, made, text):
    with pytest.raises(Fault, match=text):
        act(made)


def test_what_only_one_delta_has_may_be_of_any_kind():
    prompt, factor = {"prompt": Insert(jnp.ones((2, 4)))}, {"layers/q": Scale(jnp.ones((2, 1, 3, 2)))}
    assert algebra.add(prompt, factor) == prompt | factor


def test_a_slot_holds_one():
    prompt = {"prompt": Insert(jnp.ones((2, 4)))}
    with pytest.raises(Fault, match="two deltas fill 'prompt', and a slot holds one"):
        algebra.stack(prompt, prompt)
