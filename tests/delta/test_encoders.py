# SPDX-License-Identifier: Apache-2.0
"""Networks that write prompts and prefixes, by formulas written a second time in float64."""

import jax
import numpy as np
import pytest

from jaxpost import delta, params, trees
from jaxpost.models import decoder
from tests.laws.cases import wide
from tests.laws.models import small


def started(method, config=None):
    return params.init(method(decoder.specs(config or small())), jax.random.key(1))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def states(w, x):
    """An LSTM, a gate and a place at a time."""
    inner, back, b = (wide(w[name]) for name in ("inner", "back", "b"))
    size = len(back)
    state, cell, done = np.zeros(size), np.zeros(size), []
    for row in x:
        gates = np.split(row @ inner + state @ back + b, 4)
        cell = sigmoid(gates[1]) * cell + sigmoid(gates[0]) * np.tanh(gates[2])
        state = sigmoid(gates[3]) * np.tanh(cell)
        done.append(state)
    return np.array(done)


@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_a_prompt_encoder_writes_what_its_formula_says(kind):
    made = started(delta.Ptuning(4, kind, hidden=6))["encoder"]
    x = wide(made.embedding)
    for forward, backward in made.recurrent:
        x = np.concatenate([states(forward, x), states(backward, x[::-1])[::-1]], axis=1)
    assert x.shape == ((4, 12) if kind == "lstm" else (4, 8))
    for number, layer in enumerate(made.linear):
        x = (np.maximum(x, 0) if number else x) @ wide(layer["w"]) + wide(layer["b"])
    np.testing.assert_allclose(made.rows(), x, atol=1e-5)
    assert len(made.recurrent) == (2 if kind == "lstm" else 0) and len(made.linear) == (2 if kind == "lstm" else 3)


def test_the_two_directions_start_apart():
    (forward, backward), _ = started(delta.Ptuning(4))["encoder"].recurrent
    assert np.abs(wide(forward["inner"]) - wide(backward["inner"])).max() > 0.1


@pytest.mark.parametrize("family", ["plain", "windows", "experts"])
def test_a_network_writes_the_prefix_of_every_layer(family):
    config = small(family=family)
    made = started(delta.Prefix(3, hidden=5), config)["prefix"]
    hidden = np.tanh(wide(made.embedding) @ wide(made.into["w"]) + wide(made.into["b"]))
    rows = (hidden @ wide(made.out["w"]) + wide(made.out["b"])).reshape(3, config.layers, 2, 2, 4)
    edits = made.edits()
    assert edits.keys() == delta.Prefix(3)(decoder.specs(config)).keys()
    specs, seen = decoder.specs(config), []
    for path, spec in ((path, spec) for path, spec in trees.flatten(specs).items() if path in edits):
        value = wide(edits[path].value).reshape(len(spec.layers), 3, 2, 4)
        for number, layer in enumerate(spec.layers):
            np.testing.assert_allclose(value[number], rows[:, layer, int(path.endswith("v"))], atol=1e-6)
            seen.append((layer, path[-1]))
    assert sorted(seen) == [(layer, which) for layer in range(config.layers) for which in "kv"]
