# SPDX-License-Identifier: Apache-2.0
"""Laws on a mesh: cut over data, fsdp and tensor axes, everything is what it is on one device."""

import functools
import math
import re

import jax
import numpy as np
import pytest

from jaxpost import delta, shard, trees
from jaxpost.delta.contract import letters
from jaxpost.models import decoder
from jaxpost.params import filled
from jaxpost.quant import QArray
from jaxpost.shard.rules import partition_spec
from tests.laws.models import STACKS, base_of, batch, join, loss, small, stack_of

MESHES = {"2x2x2": shard.MeshShape(2, 2, 2), "1x8x1": shard.MeshShape(1, 8, 1), "4x1x2": shard.MeshShape(4, 1, 2)}
CASES = [
    ("float32", False, "plain", "lora", "2x2x2"),
    ("int8", False, "plain", "all of it", "2x2x2"),
    ("float32", True, "plain", "full", "4x1x2"),
    ("nf4", True, "plain", "lora", "1x8x1"),
    ("int8", True, "plain", "factors", "2x2x2"),
    ("int8", True, "experts", "lora", "2x2x2"),
]


def laid_out(base, config, mesh):
    """The base where its specs say, codes and scales where their letters say."""
    specs = trees.flatten(decoder.specs(config))
    places = trees.flatten(shard.shardings(decoder.specs(config), mesh))

    def place(path, w):
        if not isinstance(w, QArray):
            return None if w is None else jax.device_put(w, places[path])
        lead, *rest = (" ".join(group) for group in specs[path].groups)

        def put(leaf, axes):
            names = f"{lead} {axes}".split()
            spec = partition_spec(names, leaf.shape, shard.RULES.storage, mesh, True, path)
            return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))

        return jax.tree.map(put, w, letters(w, *rest))

    return trees.unflatten({path: place(path, w) for path, w in trees.flatten(base).items()})


def step(config, fixed):
    def value(trainable, base, batch):
        return loss(config, join(base, trainable, fixed), batch, remat="full")

    return jax.value_and_grad(value)


def program(base_kind, tied, family, name, shape):
    config = small(tied, family=family)
    halves = [delta.partition(edits) for edits in stack_of(config, name)]
    trainable, fixed = [half[0] for half in halves], [half[1] for half in halves]
    base = base_of(config, base_kind)
    mesh = shard.make_mesh(MESHES[shape])
    specs = [delta.partition(edits)[0] for edits in STACKS[name](decoder.specs(config))]
    places = shard.shardings(specs, mesh)
    args = jax.device_put(trainable, places), laid_out(base, config, mesh), jax.device_put(batch(), shard.rows(mesh))
    alone = jax.jit(step(config, fixed))
    with jax.set_mesh(mesh):
        compiled = jax.jit(step(config, fixed), out_shardings=(None, places)).lower(*args).compile()
    return alone, (trainable, base, batch()), compiled, args


program = functools.cache(program)


def gathers(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Type and shape of every result of an all-gather, axes of size one left out."""
    found = []
    for line in re.findall(r"= (.*?) all-gather(?:-start)?\(", text):
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", line):
            found.append((kind, tuple(sorted(int(n) for n in shape.split(",") if n and n != "1"))))
    return found


@pytest.mark.parametrize("base, tied, family, name, shape", CASES)
def test_value_and_gradients_are_those_of_one_device(base, tied, family, name, shape):
    alone, alone_args, compiled, args = program(base, tied, family, name, shape)
    value, gradients = compiled(*args)
    wanted, gradients_wanted = alone(*alone_args)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert jax.tree.structure(gradients) == jax.tree.structure(gradients_wanted)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients_wanted), strict=True):
        assert np.linalg.norm(b) > 1e-6
        assert np.linalg.norm(np.asarray(a) - np.asarray(b)) < 1e-4 * np.linalg.norm(b)


def test_every_kind_of_edit_and_mesh_is_tried():
    kinds = {type(edit) for case in CASES for edits in stack_of(small(), case[3]) for edit in edits.values()}
    assert len(CASES) == 6 and {case[4] for case in CASES} == set(MESHES)
    assert kinds >= {delta.LowRank, delta.Dense, delta.Scale, delta.Insert, delta.Stack, delta.Svd, delta.Vectors}


def test_int8_codes_travel_and_dequantised_weights_do_not():
    _, _, compiled, args = program("int8", False, "plain", "all of it", "2x2x2")
    found = gathers(compiled.as_text())
    weights = {  # one layer of each, whole along fsdp and still cut along tensor
        tuple(sorted(n for n in shape if n != 1)) for shape in [(8, 2, 4), (8, 1, 4), (2, 4, 8), (8, 6), (6, 8)]
    }
    kinds = {(kind, shape) for kind, shape in found if shape in weights}
    assert {shape for kind, shape in kinds if kind == "s8"} == weights
    # The edit of `down` has a dense part, and adapters of 8 by 4 stand in the stream: those are float32 by themselves.
    assert {(kind, shape) for kind, shape in kinds if kind != "s8"} <= {("f32", (6, 8)), ("f32", (4, 8))}


def test_a_plain_base_travels_as_it_is():
    """The same question where the answer is known to be the other one."""
    _, _, compiled, _ = program("float32", False, "plain", "lora", "2x2x2")
    assert ("f32", (2, 4, 8)) in gathers(compiled.as_text())
    assert not any(kind == "s8" for kind, _ in gathers(compiled.as_text()))


def test_parameters_rest_cut():
    """Each device holds its share of a weight: nothing is laid out whole by mistake."""
    config, mesh = small(), shard.make_mesh(MESHES["2x2x2"])
    base = laid_out(base_of(config, "int8"), config, mesh)
    cut = {"layers/attn/q": 4, "layers/attn/k": 4, "layers/mlp/down": 4, "embed": 4, "head": 4}
    for path, ways in cut.items():
        codes = trees.flatten(base)[path].codes
        assert math.prod(codes.shape) == ways * math.prod(codes.addressable_shards[0].data.shape), path
    assert jax.tree.structure(filled(decoder.specs(config))) == jax.tree.structure(base_of(config, "float32"))
