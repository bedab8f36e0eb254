# SPDX-License-Identifier: Apache-2.0
"""How tensors reach devices: laid out in all ways, read once and no more than is needed, with how little memory."""

import dataclasses
import math
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from jaxpost import trees
from jaxpost.interop import load, loading, save, tensors, weights
from jaxpost.interop.names import copy
from jaxpost.models.architecture import Decoder, Experts, Layer, specs
from jaxpost.models.rope import Rope
from jaxpost.shard import MeshShape, make_mesh
from jaxpost.shard import shardings as lay_out

SMALL = Decoder(vocab=48, d=16, layers=3, heads=4, kv_heads=2, head_size=6, ffn=24, max_length=64)
GPT2 = dataclasses.replace(
    SMALL, kv_heads=4, head_size=4, rope=None, norm="layer", biases=("q", "k", "v", "o", "up", "down"), gated=False,
    activation="gelu_tanh", tied=True,
)  # fmt: skip
PHI3 = dataclasses.replace(SMALL, rope=Rope(fraction=2 / 3), family="phi3")
GEMMA3 = dataclasses.replace(
    SMALL, layers=5, norm="offset", embed_scale=4.0, activation="gelu_tanh", tied=True, post_norms=True, qk_norm=True,
    pattern=(Layer(8, Rope(100.0)), Layer()),
)  # fmt: skip
MIXTRAL = dataclasses.replace(SMALL, experts=Experts(4, 2, 24))
MOE = dataclasses.replace(SMALL, qk_norm=True, experts=Experts(4, 2, 8), pattern=(Layer(dense=True), Layer()))


def fresh(config, seed=0):
    flat = trees.flatten(specs(config))
    random = np.random.default_rng(seed)
    drawn = {p: jnp.asarray(random.standard_normal(s.shape), s.dtype) for p, s in flat.items() if not s.optional}
    return trees.unflatten({path: drawn.get(path) for path in flat})


def assert_same(found, expected):
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert (found[path] is None) == (leaf is None), path
        if leaf is not None:
            assert found[path].dtype == leaf.dtype, path
            np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(leaf), err_msg=path)


CONFIGS = {"llama": SMALL, "gpt2": GPT2, "phi3": PHI3, "gemma3": GEMMA3, "mixtral": MIXTRAL, "moe": MOE}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layout_of_tensors_goes_round(tmp_path, name):
    """Fused, input-major, unfused experts, periods and tails."""
    config, params = CONFIGS[name], fresh(CONFIGS[name])
    save(tmp_path / "m", config, params)
    found, loaded = load(tmp_path / "m")
    assert found == config
    assert_same(loaded, params)


def test_fused_tensors_hold_their_parts_in_order():
    d = dict(tensors(PHI3, params := fresh(PHI3)))
    fused = d["model.layers.1.self_attn.qkv_proj.weight"]
    assert fused.shape == ((4 + 2 + 2) * 6, 16)
    q, v = params["layers"]["attn"]["q"][1], params["layers"]["attn"]["v"][1]
    np.testing.assert_array_equal(fused[:24], q.reshape(16, 24).T)
    np.testing.assert_array_equal(fused[36:], v.reshape(16, 12).T)
    np.testing.assert_array_equal(
        d["model.layers.1.mlp.gate_up_proj.weight"],
        np.concatenate([params["layers"]["mlp"]["gate"][1].T, params["layers"]["mlp"]["up"][1].T]),
    )
    d = dict(tensors(GPT2, params := fresh(GPT2)))
    assert d["transformer.h.2.attn.c_attn.weight"].shape == (16, 48)  # [in, out]
    k = params["layers"]["attn"]["k"][2].reshape(16, 16)
    np.testing.assert_array_equal(d["transformer.h.2.attn.c_attn.weight"][:, 16:32], k)


@pytest.mark.parametrize("name, prefix", [("mixtral", "block_sparse_moe"), ("moe", "mlp")])
def test_tensors_that_hold_all_experts_are_read(tmp_path, name, prefix):
    config, params = CONFIGS[name], fresh(CONFIGS[name])
    save(tmp_path / "m", config, params)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    names = ("w1", "w3", "w2") if name == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    for layer in (n for n in range(3) if not config.layer(n).dense):
        of = f"model.layers.{layer}.{prefix}."
        experts = [[stored.pop(f"{of}experts.{e}.{part}.weight") for e in range(4)] for part in names]
        gate, up, down = map(np.stack, experts)
        stored[f"model.layers.{layer}.mlp.gate.weight"] = stored.pop(f"{of}gate.weight")
        stored[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        stored[f"model.layers.{layer}.mlp.experts.down_proj"] = down
    save_file(stored, tmp_path / "m" / "model.safetensors")
    assert_same(load(tmp_path / "m")[1], params)


@pytest.mark.parametrize(
    "name, rename",
    [
        ("llama", lambda name: name.removeprefix("model.")),
        ("gpt2", lambda name: name.removeprefix("transformer.")),
        ("gemma3", lambda name: f"language_model.{name}"),
        ("gemma3", lambda name: name.replace("model.", "model.language_model.", 1)),
    ],
)
def test_names_of_base_models_and_of_text_parts_are_known(tmp_path, name, rename):
    config, params = CONFIGS[name], fresh(CONFIGS[name])
    save(tmp_path / "m", config, params)
    file = tmp_path / "m" / "model.safetensors"
    stored = {rename(name): tensor for name, tensor in load_file(file).items()}
    if name == "gemma3":
        stored["vision_tower.embeddings.patch_embedding.weight"] = np.ones((2, 2), np.float32)
        stored["multi_modal_projector.mm_soft_emb_norm.weight"] = np.ones(2, np.float32)
    if name == "gpt2":
        stored |= {f"h.{layer}.attn.bias": np.ones((1, 1, 8, 8), np.float32) for layer in range(3)}
    save_file(stored, file)
    assert_same(load(tmp_path / "m")[1], params)


@pytest.mark.parametrize(
    "name, in_host, shape",
    [
        ("phi3", True, MeshShape(fsdp=4, tensor=2)),
        ("gpt2", True, MeshShape(data=2, fsdp=2, tensor=2)),
        ("mixtral", True, MeshShape(fsdp=4, tensor=2)),
        ("mixtral", False, MeshShape(fsdp=2)),
    ],
)
def test_shards_are_read_into_place(tmp_path, monkeypatch, name, in_host, shape):
    """From columns and rows of fused, input-major and experts' tensors; and as it is done where devices have memory of
    their own."""
    monkeypatch.setattr(loading, "_uses_host_memory", lambda device: in_host)
    config, params = CONFIGS[name], fresh(CONFIGS[name])
    save(tmp_path / "m", config, params)
    # Two devices are enough there: each has programs of its own to compile.
    mesh = make_mesh(shape, None if in_host else jax.devices()[:2])
    wanted = trees.flatten(lay_out(specs(config), mesh))
    with jax.set_mesh(mesh):  # as recipes do
        loaded = load(tmp_path / "m", dtype="bfloat16", shardings=trees.unflatten(wanted))[1]
    assert_same(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    assert all(leaf is None or leaf.sharding == wanted[path] for path, leaf in trees.flatten(loaded).items())


def test_any_axis_may_be_cut(tmp_path):
    """Layers; head sizes, of which a device then holds no range of rows; both at once."""
    config = dataclasses.replace(SMALL, layers=4)
    save(tmp_path / "m", config, params := fresh(config))
    mesh = make_mesh(MeshShape(fsdp=4, tensor=2))
    cut = {"layers/attn/q": P("fsdp", None, None, "tensor"), "layers/attn/k": P(None, "fsdp", None, "tensor")}
    cut |= {
        "layers/attn/o": P(None, None, "tensor", "fsdp"),
        "layers/mlp/up": P("fsdp"),
        "embed": P(("fsdp", "tensor")),
    }
    whole = trees.flatten(specs(config))
    places = {path: NamedSharding(mesh, cut.get(path, P())) for path in whole}
    places["layers/attn/v"] = NamedSharding(mesh, P(None, None, None, "tensor"))
    loaded = load(tmp_path / "m", shardings=trees.unflatten(places))[1]
    assert_same(loaded, params)
    assert loaded["layers"]["attn"]["q"].addressable_shards[0].data.shape == (1, 16, 4, 3)
    save(tmp_path / "again", config, loaded)
    assert_same(load(tmp_path / "again")[1], params)


class Others:
    """A sharding of which other processes' devices hold a part."""

    def __init__(self, sharding, mine):
        self.sharding, self.mine = sharding, mine

    def addressable_devices_indices_map(self, shape):
        return {d: i for d, i in self.sharding.addressable_devices_indices_map(shape).items() if d.id in self.mine}


@pytest.mark.parametrize("mine, share", [(range(8), 1.0), ([0, 1], 0.25), ([5], 0.125)])
def test_what_this_process_holds_is_read_once_and_little_else(tmp_path, monkeypatch, mine, share):
    config = dataclasses.replace(SMALL, vocab=64, d=64, head_size=8, ffn=64, layers=2)
    save(tmp_path / "m", config, fresh(config))
    read, whole = [], weights.Tensor._read
    monkeypatch.setattr(loading, "_whole", lambda spec, place, shards: jnp.zeros(()))
    monkeypatch.setattr(
        weights.Tensor, "_read", lambda self, into, offset: (read.append(into.nbytes), whole(self, into, offset))[1]
    )
    wanted = lay_out(specs(config), make_mesh(MeshShape(fsdp=4, tensor=2)))
    load(tmp_path / "m", shardings=jax.tree.map(lambda place: Others(place, mine), wanted))
    size = sum(4 * math.prod(spec.shape) for spec in trees.flatten(specs(config)).values() if not spec.optional)
    assert share * size <= sum(read) <= share * size * 1.1


def test_progress_is_reported_in_bytes(tmp_path):
    saved, loaded = [], []
    save(tmp_path / "m", SMALL, fresh(SMALL), report=lambda *said: saved.append(said), shard_bytes=8000)
    load(tmp_path / "m", report=lambda *said: loaded.append(said))
    size = sum(4 * math.prod(s.shape) for s in trees.flatten(specs(SMALL)).values() if not s.optional)
    for said in (saved, loaded):
        done, totals = zip(*said, strict=True)
        assert list(done) == sorted(set(done)) and done[-1] == size and set(totals) == {size}


def test_an_accelerators_host_holds_a_tensor_a_reader(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, vocab=64, d=256, layers=40, ffn=512, dtype="float16")
    save(tmp_path / "m", config, fresh(config))
    sizes = {p: 2 * math.prod(s.shape) for p, s in trees.flatten(specs(config)).items() if not s.optional}
    monkeypatch.setattr(loading, "_uses_host_memory", lambda device: False)
    monkeypatch.setattr(loading._Shard, "_put", lambda self, block, at: None)  # as if devices were elsewhere
    monkeypatch.setattr(loading, "_whole", lambda spec, place, shards: jnp.zeros(()))
    load(tmp_path / "m")  # caches and imports are no part of it
    tracemalloc.start()
    load(tmp_path / "m")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest, bookkeeping = max(size / 40 if "layers" in path else size for path, size in sizes.items()), 400_000
    # A tensor as it is stored and as it is placed, for each reader and for the one that is being placed.
    assert peak < 2 * (loading.READERS + 1) * largest + bookkeeping < sum(sizes.values())


def test_arrays_on_a_cpu_are_the_memory_that_was_read_into(tmp_path):
    config = dataclasses.replace(SMALL, vocab=256, d=128, layers=8, ffn=512, dtype="bfloat16")
    save(tmp_path / "m", config, fresh(config))
    size = sum(2 * math.prod(s.shape) for s in trees.flatten(specs(config)).values() if not s.optional)
    load(tmp_path / "m")
    tracemalloc.start()
    _, loaded = load(tmp_path / "m")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < held < 1.1 * size  # a copy of XLA's own would not be seen, nor would the buffer be kept
    assert peak < held + 2 * 2 * 512 * 128 * (loading.READERS + 1)
    del loaded


@pytest.mark.parametrize("into", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("of", ["float32", "bfloat16", "float16"])
def test_copies_round_as_jax_does_turned_or_not(of, into):
    source = np.asarray(jnp.asarray(np.random.default_rng(0).standard_normal((200, 7)), of))
    expected = np.asarray(jnp.asarray(source).astype(into))
    for target in (np.empty((200, 7), into), np.empty((7, 200), into).T, np.empty((200, 9), into)[:, 1:8]):
        copy(target, source)
        np.testing.assert_array_equal(target, expected)
