# SPDX-License-Identifier: Apache-2.0
"""Laws of a bank: each example of a batch goes through its own entry, as if it came alone."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost import delta
from jaxpost.delta import Insert
from jaxpost.faults import Fault
from jaxpost.models import decoder
from tests.laws.cases import USES, Case, bound, cases, randomised, wide
from tests.laws.models import base_of, batch, logits, small, stack_of

CHOICES = st.lists(st.integers(-1, 2), min_size=3, max_size=3)


def entries(case: Case) -> list[dict[str, Any]]:
    """Three edits of the case's first kind."""
    (first, *_) = case.deltas()
    return [first, *(jax.tree.map(lambda x, y: x + y, first, randomised(first, case.seed + i)) for i in (1, 2))]


def of_one(case: Case, x: jax.Array, number: int) -> jax.Array:
    """The batch with this example alone."""
    return jnp.take(x, jnp.array([number]), axis=axes(case)[0])


def axes(case: Case) -> tuple[int, int]:
    spec = USES[case.use].spec
    return (0, 0) if spec is None else delta.Einsum(spec).batch


@given(cases(most=2), CHOICES, st.booleans())
def test_each_example_goes_through_its_own_entry(case, chosen, below):
    """Over any base, with other edits under the bank or on top of it; -1 is none."""
    if case.use == "sorted experts":
        return
    x, specs = case.x(), case.specs()
    chosen = chosen[: x.shape[axes(case)[0]]]
    made = entries(case)
    # A magnitude over a bank would need the norm of each example's own weight: it is no one number.
    kinds = (case.kinds[0], *(kind for kind in case.kinds[1:] if kind != "dora"))
    deltas = replace(case, kinds=kinds).deltas()
    if case.base == "inserted":  # the base is the bank
        deltas, made, chosen = deltas[1:], made, [max(0, row) for row in chosen]
    else:
        deltas = deltas[1:]
    base = bound(case.params(), deltas if below and case.base != "inserted" else [])
    on_top = [] if below and case.base != "inserted" else deltas
    whole = delta.at(delta.bank(made, specs), jnp.array(chosen), specs)
    together = wide(case.contract(x, bound(base, [whole, *on_top])["w"]))
    for number, row in enumerate(chosen):
        own = [made[row]] if row >= 0 else []
        alone = wide(case.contract(of_one(case, x, number), bound(base, [*own, *on_top])["w"]))
        mine = np.take(together, [number], axis=axes(case)[1])
        scale = np.abs(alone).max() + 1e-30
        np.testing.assert_allclose(mine / scale, alone / scale, atol=2e-6 if case.dtype == "float32" else 2**-6)


@settings(max_examples=settings.default.max_examples // 3)
@given(cases(bases=("float32",), most=1, dtypes=("float32",)), CHOICES)
def test_a_bank_over_a_bank(case, chosen):
    if case.use == "sorted experts":
        return
    x, specs, made = case.x(), case.specs(), entries(case)
    size = x.shape[axes(case)[0]]
    rows = jnp.array(chosen[:size])
    one, two = (delta.at(delta.bank(made, specs), r, specs) for r in (rows, rows[::-1]))
    together = wide(case.contract(x, bound(case.params(), [one, two])["w"]))
    for number in range(size):
        own = [made[int(r[number])] for r in (rows, rows[::-1]) if int(r[number]) >= 0]
        alone = wide(case.contract(of_one(case, x, number), bound(case.params(), own)["w"]))
        mine = np.take(together, [number], axis=axes(case)[1])
        np.testing.assert_allclose(mine, alone, atol=1e-5 * (np.abs(alone).max() + 1e-30))


@pytest.mark.parametrize(
    "name, family",
    [("lora", "plain"), ("scales", "plain"), ("inserts", "learned positions"), ("adapters", "windows")],
)
def test_a_mixed_batch_is_each_example_alone(name, family):
    """Through a whole decoder over int8 weights, under its scan, with some examples that have no delta."""
    config = small(tied=True, family=family)
    specs, base, data = decoder.specs(config), base_of(config, "int8"), batch()
    (first,) = stack_of(config, name)
    made = [first, jax.tree.map(lambda x: 1.5 * x, first)]
    rows = jnp.array([0, 1, -1, 1, 0, 0, -1, 1])
    together = logits(config, delta.bind(base, delta.at(delta.bank(made, specs), rows, specs)), data)
    alone = [logits(config, delta.bind(base, one), data) for one in (*made, {})]
    scale = float(jnp.abs(alone[0]).max())
    for number, row in enumerate(rows.tolist()):
        np.testing.assert_allclose(together[number] / scale, alone[row][number] / scale, atol=1e-5)
    assert all(np.abs(alone[0] - other).max() / scale > 1e-3 for other in alone[1:])


def test_entries_are_trained_by_their_own_examples():
    """The gradient of an entry is that of its examples alone, and an entry without examples has none."""
    config = small()
    specs, base, data = decoder.specs(config), base_of(config, "float32"), batch()
    (first,) = stack_of(config, "lora")
    rows = jnp.array([0, 0, 1, 1, 1, 0, 0, 0])
    trained, fixed = delta.partition(delta.bank([first, first, first], specs))

    def total(trained, some):
        whole = delta.at(delta.combine(trained, fixed), rows, specs, some)
        return jnp.sum(jnp.square(logits(config, delta.bind(base, whole), data).astype(jnp.float32)))

    def alone(one, number):
        squares = jnp.square(logits(config, delta.bind(base, one), data).astype(jnp.float32))
        return jnp.sum(squares * (rows == number)[:, None, None])

    banked = [jax.grad(total)(trained, some) for some in (True, False)]
    for number in range(2):
        wanted = delta.partition(jax.grad(alone, allow_int=True)(first, number))[0]
        for found in banked:
            picked = delta.pick(found, number, specs)
            for a, b in zip(jax.tree.leaves(picked), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4 * float(jnp.abs(b).max()))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(delta.pick(banked[0], 2, specs)))


def edits(shape=(2, 4, 3), path="layers/attn/q", rank=2):
    return {path: delta.LowRank(jnp.ones((*shape[:-1], rank)), jnp.ones((2, rank, 4, 4)), jnp.ones(2))}


SPECS = decoder.specs(small())


@pytest.mark.parametrize(
    "deltas, said",
    [
        ([], "at least one"),
        ([edits(), edits(path="layers/attn/k")], "only delta number 1 edits layers/attn/k"),
        ([edits(), {"layers/attn/q": delta.Dense(jnp.ones(3))}], "hold LowRank and Dense at 'layers/attn/q'"),
        ([edits(), {"layers/attn/q": edits()["layers/attn/q"].replace(dropout=0.5)}], "LowRank of unequal settings"),
        ([edits(), edits(rank=3)], r"delta 0 has the shapes .* and delta 1 .*3"),
    ],
)
def test_deltas_that_make_no_bank(deltas, said):
    with pytest.raises(Fault, match=said):
        delta.bank(deltas, SPECS)


def test_numbers_that_no_entry_has():
    whole = delta.bank([edits(), edits()], SPECS)
    with pytest.raises(Fault, match="example 1 chooses delta 2 of a bank of 2; -1 is none, and they count from 0 to 1"):
        delta.at(whole, jnp.array([0, 2]), SPECS)
    with pytest.raises(Fault, match="chooses delta -1 of a bank of 2; they count"):
        delta.at(whole, jnp.array([-1, 0]), SPECS, some=False)
    with pytest.raises(Fault, match="has no number 2"):
        delta.pick(whole, 2, SPECS)
    with pytest.raises(Fault, match="is no one weight"):
        delta.fold({"layers": {"attn": {"q": jnp.ones((2, 4, 4, 4))}}}, delta.at(whole, jnp.array([0]), SPECS))


def test_experts_take_no_bank():
    case = Case("sorted experts", 0, "float32", ("lora",), "float32", 1.0, 0)
    whole = delta.at(delta.bank(case.deltas(), case.specs()), jnp.array([0]), case.specs())
    with pytest.raises(Fault, match="experts"):
        case.contract(case.x(), bound(case.params(), [whole])["w"])


def test_picked_entries_are_those_put_in():
    made = [{"b": Insert(jnp.full(3, float(i)))} for i in range(3)]
    specs = {"b": SPECS["norm"]}
    whole = delta.bank(made, specs)
    for i, one in enumerate(made):
        assert delta.pick(whole, i, specs)["b"].value.tolist() == one["b"].value.tolist()


def test_a_bank_is_chosen_from_as_it_should_be():
    specs, whole = {"b": SPECS["norm"]}, delta.bank([{"b": Insert(jnp.ones(3))}] * 2, {"b": SPECS["norm"]})
    with pytest.raises(Fault, match="one whole number for each example"):
        delta.at(whole, jnp.array([[0, 1]]), specs)
    with pytest.raises(Fault, match="one whole number for each example"):
        delta.at(whole, jnp.array([0.5]), specs)
    with pytest.raises(Fault, match="before its entries were chosen"):
        delta.plus(jnp.ones((2, 3)), delta.bind({"b": None}, whole)["b"])
    chosen = delta.at(whole, jnp.array([0, 1]), specs)
    with pytest.raises(Fault, match="chosen for 2 examples, and the batch has 3"):
        delta.plus(jnp.ones((3, 3)), delta.bind({"b": None}, chosen)["b"])
