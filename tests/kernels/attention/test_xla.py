# SPDX-License-Identifier: Apache-2.0
"""Attention block by block, against attention of everything at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import partial_eval

from jaxpost.kernels.attention import Rows, attention, xla
from jaxpost.kernels.attention.reference import visible
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.models.remat import rematerialised
from jaxpost.shard import MeshShape, make_mesh
from tests.jaxprs import equations
from tests.kernels.attention.test_splash import CASES, distance, inputs, reference, rows_of, values_and_gradients


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Blocks of at most 64 tokens."""
    monkeypatch.setattr(xla, "largest", lambda: 64)


def by_blocks(rows, **options):
    return lambda q, k, v: attention(q, k, v, rows, impl="xla", **options)


@pytest.mark.parametrize("case", sorted(set(CASES) - {"uneven blocks"}))
def test_values_and_gradients_are_the_references(case):
    options = dict(CASES[case])
    rows = rows_of(options.pop("lengths"), options.pop("most", 3), tokens=150)
    given = inputs(rows, **{name: options.pop(name) for name in ("heads", "kv_heads", "size") if name in options})
    found = values_and_gradients(by_blocks(rows, **options), rows, *given)
    wanted = values_and_gradients(reference(rows, **options), rows, *given)
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        if options.get("window") == 1 and name in ("dq", "dk"):  # one key: its weight is 1 whatever the score
            np.testing.assert_allclose(one, other, atol=1e-5)
        else:
            assert distance(one, other) < 2e-6, name


@pytest.mark.parametrize("window", [None, 70])
def test_padding_may_stand_anywhere_where_the_number_of_segments_is_unknown(window):
    """In front, and within a segment, whose tokens a window then counts by position."""
    segments = np.r_[np.zeros(30), np.ones(100), np.zeros(90), np.ones(60), np.full(40, 2)].astype(np.int32)[None]
    positions = np.zeros_like(segments)
    for number in (1, 2):
        positions[segments == number] = np.arange(np.sum(segments == number))
    rows = Rows(jnp.asarray(segments), jnp.asarray(positions), None)
    given = inputs(rows)
    found = values_and_gradients(by_blocks(rows, window=window), rows, *given)
    wanted = values_and_gradients(reference(rows, window=window), rows, *given)
    for one, other in zip(found, wanted, strict=True):
        assert np.all(np.isfinite(one)) and distance(one, other) < 2e-6


def test_in_sixteen_bits_it_is_as_near_to_float32_as_the_reference():
    rows = rows_of([[60, 70, 130], [128, 1, 31]])
    given = [x.astype(jnp.bfloat16) for x in inputs(rows)]
    wanted = values_and_gradients(reference(rows), rows, *(x.astype(jnp.float32) for x in given))
    found, other = (values_and_gradients(attend(rows), rows, *given) for attend in (by_blocks, reference))
    for one, two, right in zip(found, other, wanted, strict=True):
        assert one.dtype == jnp.bfloat16
        assert distance(one, right) < 1.2 * distance(two, right)


def traced(tokens, **options):
    """The program of values and gradients."""
    rows = rows_of([[tokens]], most=1)
    q, k, v, _ = inputs(rows)
    return jax.make_jaxpr(jax.grad(lambda *given: jnp.sum(by_blocks(rows, **options)(*given)), (0, 1, 2)))(q, k, v)


def test_nothing_of_tokens_times_tokens_is_there():
    tokens, heads, size = 2048, 4, 64
    sizes = [v.aval.size for e in equations(traced(tokens).jaxpr) for v in e.outvars if hasattr(v.aval, "size")]
    assert tokens * heads * size <= max(sizes) < tokens * tokens


def steps(tokens, **options):
    return {e.params["length"] for e in equations(traced(tokens, **options).jaxpr) if e.primitive.name == "scan"}


def test_blocks_that_no_query_sees_are_not_visited():
    assert steps(1024) == {16 * 17 // 2}
    assert steps(1024, window=64) == {16 + 15}, "its own block, and the one before"
    assert steps(1024, window=1) == {16}


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.lists(st.integers(1, 24), min_size=1, max_size=5),
    st.sampled_from([1, 4, 15, 30]),
    st.none() | st.integers(1, 40),
)
def test_what_a_query_sees_lies_in_blocks_that_are_visited(lengths, block, window):
    rows = rows_of([lengths], tokens=120)
    visited = xla.How(block, window, 1.0, None, True).pairs(120 // block)
    seen = np.argwhere(np.asarray(visible(rows, window) & (rows.segments > 0)[..., None])[0]) // block
    assert set(map(tuple, seen.tolist())) <= set(map(tuple, visited.tolist()))
    assert sorted(visited.tolist()) == visited.tolist(), "a block's own keys come last: they hide what none has seen"


def block(x, weights):
    """What a decoder does around attention, as far as remat is concerned."""
    q, k, v = (checkpoint_name(x[..., None, :] * w, "qkv") for w in weights[:, None, None, None])
    return x + by_blocks(rows_of([[60, 140]]))(q, k, v)[:, :, 0]


@pytest.mark.parametrize("remat, scans", [("none", 2), ("most", 2), ("result", 2), ("full", 3)])
def test_keeping_attention_keeps_it_from_running_again(remat, scans):
    def loss(weights, x):
        return jnp.sum(rematerialised(block, remat)(x, weights) ** 2)

    program = jax.make_jaxpr(jax.grad(loss))(jnp.ones((3, 64)), jnp.ones((1, 200, 64))).jaxpr
    program, _ = partial_eval.dce_jaxpr(program, [True])  # what nobody reads, the compiler drops
    assert sum(e.primitive.name == "scan" for e in equations(program)) == scans


def test_on_a_mesh_it_is_the_same():
    rows = rows_of([[60, 140], [200], [3, 90], [50]])
    given = inputs(rows)
    wanted = values_and_gradients(by_blocks(rows), rows, *given)
    with jax.set_mesh(make_mesh(MeshShape(data=2, fsdp=2, tensor=2))):
        found = values_and_gradients(by_blocks(rows), rows, *given)
    for one, other in zip(found, wanted, strict=True):
        assert distance(one, other) < 1e-6


def test_short_rows_are_taken_whole():
    rows = rows_of([[128]])
    with pytest.raises(Unsupported, match="rows of 128 tokens are short enough to be taken whole"):
        by_blocks(rows)(*inputs(rows)[:3])


def test_blocks_are_larger_on_accelerators(monkeypatch):
    monkeypatch.undo()
    assert xla.largest() == 256
    monkeypatch.setattr(xla, "platform", lambda: "gpu")
    assert xla.largest() == 1024
