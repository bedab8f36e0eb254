# SPDX-License-Identifier: Apache-2.0
"""Laws of what travels: halves of trees, optimiser states, checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from hypothesis import given
from hypothesis import strategies as st

from jaxpost import delta, shard, trees
from jaxpost.models import decoder
from jaxpost.quant import Int8, QArray
from tests.laws.models import STACKS, base_of, join, small, stack_of, unbind

NAMES = st.text("abq", min_size=1, max_size=2)
LEAVES = st.one_of(
    st.integers(1, 99),
    st.builds(lambda n: QArray(n, {"scale": n + 1}, Int8()), st.integers(0, 99)),
    st.builds(lambda n: delta.Bound(n, delta.Dense(n + 1)), st.integers(0, 99)),
)
TREES = st.recursive(LEAVES, lambda t: st.dictionaries(NAMES, t, min_size=1, max_size=3)).filter(
    lambda t: isinstance(t, dict)
)


def same(one, other) -> bool:
    return jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.leaves(one) == jax.tree.leaves(other)


@given(TREES, st.sets(st.sampled_from("abq")))
def test_partition_and_combine_are_inverse(tree, letters):
    """For any leaves, quantised and bound ones included, and in either order."""
    keep, rest = trees.partition(tree, lambda path: path[0] in letters)
    assert same(trees.combine(keep, rest), tree) and same(trees.combine(rest, keep), tree)
    assert all(leaf is None or path[0] in letters for path, leaf in trees.flatten(keep).items())
    assert all(leaf is None or path[0] not in letters for path, leaf in trees.flatten(rest).items())


@given(TREES)
def test_flatten_and_unflatten_are_inverse(tree):
    assert same(trees.unflatten(trees.flatten(tree)), tree)


def test_an_optimiser_meets_only_what_is_trained(tmp_path):
    """Two steps of AdamW, saved, restored and two more are four, to the bit. Every trainable leaf moves."""
    config = small()
    weights = base_of(config, "int8")
    halves = [delta.partition(edits) for edits in stack_of(config, "all of it")]
    start, fixed = [half[0] for half in halves], [half[1] for half in halves]
    optimiser = optax.adamw(1e-2, weight_decay=0.1)

    def size(tree):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))

    @jax.jit
    def step(trainable, opt_state):
        gradients = jax.grad(lambda t: size(unbind(join(weights, t, fixed))))(trainable)
        updates, opt_state = optimiser.update(gradients, opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state

    half_way = step(*step(start, optimiser.init(start)))
    trainable, opt_state = half_way
    for tree in (trainable, opt_state[0].mu, opt_state[0].nu):
        assert jax.tree.structure(tree) == jax.tree.structure(start)
        names = {trees.path_of(path).rsplit("/", 1)[-1] for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
        assert names == {"a", "b", "dw", "s", "value", "down", "down_bias", "up", "up_bias"}, "and no fixed scale"
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.all(a != b)), start, trainable)))

    saver = ocp.StandardCheckpointer()
    saver.save(tmp_path / "state", half_way)
    saver.wait_until_finished()
    restored = saver.restore(tmp_path / "state", jax.eval_shape(lambda: half_way))
    assert jax.tree.structure(restored) == jax.tree.structure(half_way)
    jax.tree.map(np.testing.assert_array_equal, step(*step(*restored)), step(*step(*half_way)))


def test_a_delta_with_holes_survives_orbax(tmp_path):
    halves = [half for name in STACKS for edits in stack_of(small(), name) for half in delta.partition(edits)]
    trees_by_name = {str(i): half for i, half in enumerate(halves)}
    saver = ocp.StandardCheckpointer()
    saver.save(tmp_path / "delta", trees_by_name)
    saver.wait_until_finished()
    again = saver.restore(tmp_path / "delta", jax.eval_shape(lambda: trees_by_name))
    assert jax.tree.structure(again) == jax.tree.structure(trees_by_name)
    jax.tree.map(np.testing.assert_array_equal, again, trees_by_name)
    assert len(halves) == 2 * sum(len(stack(decoder.specs(small()))) for stack in STACKS.values()) > 16


def test_quantised_params_survive_orbax_and_change_mesh(tmp_path):
    base = base_of(small(tied=True), "int8")
    saver = ocp.StandardCheckpointer()
    saver.save(tmp_path / "base", base)
    saver.wait_until_finished()
    mesh = shard.make_mesh(shard.MeshShape(2, 2, 2))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), base)
    again = saver.restore(tmp_path / "base", target)
    assert jax.tree.structure(again) == jax.tree.structure(base)
    jax.tree.map(np.testing.assert_array_equal, again, base)
    assert all(leaf.sharding == where for leaf in jax.tree.leaves(again))
    assert again["embed"].codes.dtype == jnp.int8 and again["head"] is None
