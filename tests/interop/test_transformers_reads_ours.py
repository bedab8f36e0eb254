# SPDX-License-Identifier: Apache-2.0
"""What we save, loaded by transformers itself. Runs where the `parity` extra is installed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import params as parameters
from jaxpost import trees
from jaxpost.interop import load, save
from jaxpost.kernels.attention import Rows
from jaxpost.models.decoder import Decoder, logits, specs
from jaxpost.models.rope import Llama3, Rope
from tests.interop.golden import CASES, GOLDEN

try:
    import torch
    import transformers
except ImportError:
    pytest.skip("needs transformers and torch: install the parity extra", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours to mend
SMALL = Decoder(vocab=40, d=32, layers=3, heads=4, kv_heads=2, head_size=10, ffn=56, max_length=128)
STRETCHED = Rope(500.0, Llama3(4.0, original=32))


def assert_same_logits(directory):
    """Same logits, with nothing missing or left over on their side."""
    config, params = load(directory)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (2, 48))
    rows = Rows(jnp.ones(tokens.shape, jnp.int32), jnp.broadcast_to(jnp.arange(48), tokens.shape))
    ours = np.asarray(jax.jit(logits, static_argnums=0)(config, params, jnp.asarray(tokens, jnp.int32), rows))
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype="auto", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert model.dtype == getattr(torch, config.dtype)
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(tokens)).logits.numpy()
    assert np.std(theirs) > 0.3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(SMALL, tied=True, rope=STRETCHED)], ids=["own", "tied"])
@pytest.mark.parametrize("shard_bytes", [10**9, 30_000])
def test_fresh_models(tmp_path, config, shard_bytes):
    flat = trees.flatten(parameters.init(specs(config), jax.random.key(0)))
    loud = {path: leaf if leaf is None or "norm" in path else 8 * leaf for path, leaf in flat.items()}
    save(tmp_path / "m", config, trees.unflatten(loud), shard_bytes=shard_bytes)
    assert_same_logits(tmp_path / "m")


@pytest.mark.parametrize("name", CASES)
def test_their_models_through_us(tmp_path, name):
    save(tmp_path / "m", *load(GOLDEN / name, dtype="float32"))
    assert_same_logits(tmp_path / "m")


def test_sixteen_bits_stay_sixteen_bits(tmp_path):
    config, params = load(GOLDEN / "mistral-plain")
    save(tmp_path / "m", config, params)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto")
    original = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / "mistral-plain", dtype="auto")
    assert model.dtype == original.dtype == torch.bfloat16
    for (name, ours), (_, theirs) in zip(model.named_parameters(), original.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
