# SPDX-License-Identifier: Apache-2.0
"""Adapters from elsewhere under a run, and over a model that is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, quant, shard, trees
from jaxpost.faults import Fault
from jaxpost.interop import peft
from jaxpost.recipes import trained
from jaxpost.recipes.assembly import assemble
from jaxpost.recipes.base import Pretrained
from jaxpost.shard import MeshShape, make_mesh
from jaxpost.train.optimisers import Optimiser
from tests.interop.adapters import GOLDEN
from tests.interop.adapters import trained as drawn

NANO = Pretrained("nano", dtype="float32")


def here(tree):
    """On one device."""
    return jax.tree.map(jnp.asarray, jax.device_get(tree))


@pytest.fixture(scope="module")
def plain():
    mesh = make_mesh(MeshShape(fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        return mesh, trained.load(NANO, mesh)


@pytest.fixture(scope="module")
def written(plain, tmp_path_factory):
    """An adapter over the built-in model, and its edits."""
    _, loaded = plain
    weights = here(loaded.weights)
    edits = drawn(loaded.config, weights, delta.Lora(rank=4, targets=("q", "down"), dropout=0.1))
    edits |= drawn(loaded.config, weights, delta.Full(targets=("norm",)))
    directory = tmp_path_factory.mktemp("adapters") / "lora"
    peft.save(directory, loaded.config, edits, "nano", weights)
    return directory, edits


@jax.jit
def formed(leaves):
    """In one program: each operation by itself would be compiled by itself."""
    return {path: delta.dense(leaf) for path, leaf in leaves.items()}


def numbers(weights):
    flat = {path: jax.device_get(leaf) for path, leaf in trees.flatten(weights).items() if leaf is not None}
    edited = {path: here(leaf) for path, leaf in flat.items() if not isinstance(leaf, np.ndarray)}
    return {path: np.asarray(leaf, np.float32) for path, leaf in (flat | formed(edited)).items()}


def assert_equal_weights(one, other, tolerance=1e-5):
    ours, theirs = numbers(one), numbers(other)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_allclose(theirs[path], value, rtol=0, atol=tolerance, err_msg=path)


def test_a_run_starts_from_base_and_adapter_and_the_base_stays_apart(plain, written):
    mesh, loaded = plain
    directory, edits = written
    with jax.set_mesh(mesh):
        under = trained.load(Pretrained("nano", "float32", "int8", adapter=str(directory)), mesh)
        stored = jax.jit(lambda weights: quant.quantise_tree(weights, loaded.specs, quant.Int8()))(loaded.weights)
        # A copy of a norm is a difference from what the base has, which is not quantised.
        assert_equal_weights(under.weights, delta.bind(stored, edits))
        assembly = assemble(under.config, under.specs, delta.Lora(rank=2, targets=("q",)), Optimiser(), 1, mesh)
        state, fixed = assembly.make(jax.random.key(0), under.weights)
    places = trees.flatten(shard.shardings(under.specs, mesh))
    q = under.weights["layers"]["attn"]["q"]
    assert isinstance(q, delta.Bound) and q.edit.a.sharding == places["layers/attn/q"].edit.a
    assert "tensor" in str(q.edit.b.sharding.spec)
    over = delta.combine(state.trainable, fixed)
    run = trained.Trained(None, under.config, under.tokenizer, under.weights, over, under.adapter)
    weights, whole = run.apart
    assert_equal_weights(weights, stored)
    assert set(whole) == set(edits)
    assert_equal_weights(delta.bind(weights, whole), run.weights)


def test_a_model_is_used_with_an_adapter_over_it(written):
    directory, edits = written
    model = trained.read("nano", over=str(directory))
    assert set(model.delta) == set(edits)
    assert_equal_weights(model.weights, delta.bind(model.base, edits), 1e-2)  # nano is in 16 bits


def test_a_prompt_from_elsewhere_reserves_its_places(plain, tmp_path):
    config = plain[1].config
    peft.save(tmp_path / "prompt", config, {"prompt": delta.Insert(jnp.ones((3, config.d)))})
    model = trained.read("nano", over=str(tmp_path / "prompt"))
    assert model.tokenizer.virtual.count == 3
    with pytest.raises(Fault, match="it fills prompt, and a run starts from adapters of weights only"):
        trained.load(Pretrained("nano", adapter=str(tmp_path / "prompt")), plain[0])


def test_adapters_that_are_not_there_or_of_another_base(tmp_path):
    with pytest.raises(Fault, match="no such directory; an adapter is one with adapter_config.json"):
        trained.read("nano", over=str(tmp_path / "none"))
    with pytest.raises(Fault, match="does not fit this base and its adapter_config.json: .*instead of"):
        trained.read("nano", over=str(GOLDEN / "peft" / "lora-rank_stabilised"))


def test_exports_say_what_the_other_format_would_be(plain, tmp_path):
    from jaxpost.cli.results import _write_adapter, _write_model
    from jaxpost.data.tokenizers import Virtual, with_virtual

    _, loaded = plain
    prompt = {"prompt": delta.Insert(jnp.ones((3, loaded.config.d)))}
    tokenizer = with_virtual(loaded.tokenizer, Virtual(3, "between"))
    model = trained.Trained(None, loaded.config, tokenizer, loaded.weights, prompt)
    with pytest.raises(Fault, match="nano fills prompt, which a model directory has no place for; .* --to peft"):
        _write_model(tmp_path / "out", "nano", model, "")
    with pytest.raises(Fault, match="between prompt and answer, and in adapters of others it stands before both"):
        _write_adapter(tmp_path / "out", "nano", model, "peft")
    with pytest.raises(Fault, match="is a model and no run, so there is no adapter to write"):
        _write_adapter(
            tmp_path / "out",
            "nano",
            trained.Trained(None, loaded.config, loaded.tokenizer, loaded.weights, {}),
            "peft",
        )
    assert not (tmp_path / "out").exists()
