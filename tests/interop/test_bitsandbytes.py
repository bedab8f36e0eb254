# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that transformers saved in four bits with bitsandbytes (tests/golden/README.md)."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpost import quant, shard, trees
from jaxpost.faults import Fault
from jaxpost.interop import hf
from jaxpost.models import decoder
from tests.interop.golden import GOLDEN

QUANT = GOLDEN / "quant"
NAMES = {"q": "self_attn.q_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "down": "mlp.down_proj"}


@pytest.mark.parametrize("name", ["nested", "plain"])
def test_codes_and_values_are_those_of_the_file_and_logits_agree(name):
    file, numbers = load_file(QUANT / name / "model.safetensors"), load_file(QUANT / name / "numbers.safetensors")
    config, params = hf.load(QUANT / name)
    flat = trees.flatten(params)
    packed = [path for path, leaf in flat.items() if isinstance(leaf, quant.QArray)]
    assert len(packed) == 7 and all(flat[path].format.double == (name == "nested") for path in packed)
    for short, long in NAMES.items():
        (path,) = (path for path in packed if path.endswith(f"/{short}"))
        for layer in range(2):
            key = f"model.layers.{layer}.{long}.weight"
            own = jax.tree.map(lambda x, i=layer: x[i], flat[path])
            out = int(np.prod(own.codes.shape[own.inner :]))
            np.testing.assert_array_equal(np.asarray(own.codes).reshape(-1, out).T.reshape(-1, 1), file[key])
            np.testing.assert_array_equal(
                np.asarray(own.scales["absmax"]).reshape(-1, out).T.reshape(-1), file[f"{key}.absmax"]
            )
            if key in numbers:
                np.testing.assert_allclose(quant.dequantise(own).reshape(-1, out).T, numbers[key], rtol=3e-7)
    tokens = jnp.asarray(numbers["tokens"], jnp.int32)
    places = decoder.rows(tokens, jnp.ones_like(tokens), jnp.tile(jnp.arange(tokens.shape[1]), (len(tokens), 1)))
    found = jax.jit(lambda params: decoder.logits(config, params, tokens, places))(params)
    np.testing.assert_allclose(found, numbers["logits"], atol=1e-4)


def test_packed_matrices_are_laid_out_on_a_mesh():
    mesh = shard.make_mesh(shard.MeshShape(2, 2, 2))
    _, params, specs = hf.stored(QUANT / "nested", None, lambda specs: shard.shardings(specs, mesh))
    places = jax.tree.leaves(shard.shardings(specs, mesh))
    for leaf, place in zip(jax.tree.leaves(params), places, strict=True):
        assert leaf.sharding == place
    assert params["layers"]["mlp"]["up"].codes.sharding.spec == jax.P(None, "fsdp", "tensor")
    jax.tree.map(np.testing.assert_array_equal, params, hf.load(QUANT / "nested")[1])


def changed(tmp_path, change) -> str:
    shutil.copytree(QUANT / "nested", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    return tmp_path / "model"


UP = "model.layers.1.mlp.up_proj.weight"
STATE = f"{UP}.quant_state.bitsandbytes__nf4"


def said(tensors, **fields) -> None:
    state = {**json.loads(bytes(tensors[STATE])), **fields}
    tensors[STATE] = np.frombuffer(json.dumps(state).encode(), np.uint8)


def unpacked(tensors) -> None:
    for name in [name for name in tensors if name.startswith(UP)]:
        del tensors[name]
    tensors[UP] = np.ones((320, 64), np.float32)


def fp4(tensors) -> None:
    tensors[STATE.replace("nf4", "fp4")] = tensors.pop(STATE)


@pytest.mark.parametrize(
    "change, words",
    [
        (fp4, r"up_proj.weight is stored as fp4; of bitsandbytes' formats only nf4 is read"),
        (lambda t: t.pop(f"{UP}.nested_absmax"), r"is there and .*up_proj.weight.nested_absmax is not"),
        (lambda t: said(t, blocksize=128), r"\[320, 64\] is in four bits with blocks of 128 that run across rows"),
        (lambda t: said(t, blocksize=32), r"in a layout that is not read \(blocks of \[32, 64\]"),
        (lambda t: said(t, nested_blocksize=128), r"of another kind than NF4 with blocks of 256"),
        (lambda t: t.update({STATE: t[STATE][:9]}), r"is no description of a matrix in four bits"),
        (unpacked, r"layers\.0\.mlp\.up_proj\.weight is in four bits and .*layers\.1\.mlp\.up_proj\.weight is not"),
    ],
)
def test_what_is_not_read_is_said(tmp_path, change, words):
    with pytest.raises(Fault, match=words):
        hf.load(changed(tmp_path, change))


def test_another_format_for_packed_weights_is_refused():
    with pytest.raises(Fault, match="the weights are in NF4 already and cannot become Int8; leave out quant"):
        hf.stored(QUANT / "nested", format=quant.Int8())


def test_a_map_of_another_make_keeps_values_exact(tmp_path):
    """A build of bitsandbytes for CPUs once wrote -1 in front: block maxima are then decoded as they are read."""

    def other(tensors):
        tensors[f"{UP}.nested_quant_map"] = np.concatenate([[np.float32(-1)], tensors[f"{UP}.nested_quant_map"][1:]])

    ours, theirs = hf.load(changed(tmp_path, other))[1], hf.load(QUANT / "nested")[1]
    up = ours["layers"]["mlp"]["up"]
    assert not up.format.double and ours["layers"]["mlp"]["gate"].format.double
    wanted = quant.dequantise(theirs["layers"]["mlp"]["up"])
    np.testing.assert_allclose(quant.dequantise(up)[0], wanted[0], rtol=1e-6)
