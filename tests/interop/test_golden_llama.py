# SPDX-License-Identifier: Apache-2.0
"""The decoder and its loader against numbers that transformers made (tests/golden/README.md)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxpost import trees
from jaxpost.interop import load, save
from jaxpost.interop.names import names, stored
from jaxpost.kernels.attention import Rows
from jaxpost.models.decoder import logits, specs

GOLDEN = Path(__file__).parent.parent / "golden" / "llama"
CASES = ("plain", "tied", "llama3", "biased", "mistral")


def test_every_golden_case_is_tested_and_says_how_it_was_made():
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(CASES)
    for name in CASES:
        with safe_open(GOLDEN / name / "numbers.safetensors", framework="numpy") as file:
            assert file.metadata()["made_by"].startswith("python tools/golden/llama.py (seed")


def rows_of(real):
    positions = np.broadcast_to(np.arange(real.shape[1]), real.shape) * real
    return Rows(jnp.asarray(real, jnp.int32), jnp.asarray(positions, jnp.int32))


def mean_loss(params, config, tokens, rows):
    """Mean over real next tokens, and the logits."""
    out = logits(config, params, tokens, rows)
    picked = jnp.take_along_axis(jax.nn.log_softmax(out)[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    real = rows.segments[:, 1:] > 0
    return -jnp.sum(jnp.where(real, picked, 0)) / jnp.sum(real), out


forward = jax.jit(logits, static_argnums=0)
backward = jax.jit(jax.value_and_grad(mean_loss, has_aux=True), static_argnums=1)


class Case:
    """One golden case, run once by us."""

    def __init__(self, name):
        self.config, self.params = load(GOLDEN / name, dtype="float32")
        self.numbers = load_file(GOLDEN / name / "numbers.safetensors")
        self.real = np.arange(self.numbers["tokens"].shape[1]) < self.numbers["lengths"][:, None]
        self.tokens = jnp.asarray(self.numbers["tokens"])
        self.plain = backward(self.params, self.config, self.tokens, rows_of(np.ones_like(self.real)))
        self.padded = backward(self.params, self.config, self.tokens * self.real, rows_of(self.real))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


def test_logits_agree(case):
    (_, out), _ = case.plain
    expected = case.numbers["plain/logits"]
    assert out.dtype == jnp.float32 and np.std(expected) > 0.5
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)


def test_logits_agree_under_padding_on_the_right(case):
    (_, out), _ = case.padded
    np.testing.assert_allclose(out[case.real], case.numbers["padded/logits"][case.real], rtol=0, atol=1e-4)


def test_rows_packed_into_one_agree(case):
    """transformers saw each example in a row of its own."""
    example, position = np.nonzero(case.real)
    packed = Rows(jnp.asarray(example[None] + 1, jnp.int32), jnp.asarray(position[None], jnp.int32))
    out = forward(case.config, case.params, case.tokens[case.real][None], packed)
    np.testing.assert_allclose(out[0], case.numbers["padded/logits"][case.real], rtol=0, atol=1e-4)


def test_losses_agree(case):
    for kind in ("plain", "padded"):
        (loss, _), _ = getattr(case, kind)
        np.testing.assert_allclose(loss, case.numbers[f"{kind}/loss"], rtol=0, atol=1e-5)


def test_gradient_norms_agree(case):
    _, grads = case.padded
    found = {}
    for path, spec in trees.flatten(specs(case.config)).items():
        if (grad := trees.flatten(grads)[path]) is not None:
            layers = np.asarray(grad) if spec.sizes(0) else [np.asarray(grad)]
            found |= dict(zip(names(path, spec), map(np.linalg.norm, layers), strict=True))
    prefix = "padded/grad_norm/"
    expected = {name.removeprefix(prefix): norm for name, norm in case.numbers.items() if name.startswith(prefix)}
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_equals_what_transformers_saved(name, tmp_path):
    """Names, shapes, types and values, bit by bit."""
    save(tmp_path / "again", *load(GOLDEN / name))
    theirs, ours = tensors(GOLDEN / name), tensors(tmp_path / "again")
    assert ours.keys() == theirs.keys()
    for tensor, value in theirs.items():
        assert ours[tensor].dtype == value.dtype
        np.testing.assert_array_equal(ours[tensor], value, err_msg=tensor)


def tensors(directory):
    found = {}
    for file in sorted(directory.glob("model*.safetensors")):
        found |= load_file(file)
    return found


def test_a_stored_matrix_is_out_by_in():
    config, params = load(GOLDEN / "llama3")
    spec = specs(config)["layers"]["attn"]["q"]
    matrix = stored(np.asarray(params["layers"]["attn"]["q"][1]), "layers/attn/q", spec, np.dtype("float32"))
    assert matrix.shape == (config.heads * config.head_size, config.d)
    assert matrix[config.head_size + 1, 3] == params["layers"]["attn"]["q"][1, 3, 1, 1]
