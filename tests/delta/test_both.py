# SPDX-License-Identifier: Apache-2.0
"""Two methods as one delta: each does to its own edits what it does alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpost import delta, params
from jaxpost.delta import Both
from jaxpost.faults import Fault
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import record

CONFIG = Decoder(vocab=20, d=8, layers=2, heads=2, kv_heads=2, head_size=4, ffn=12)
SPECS = decoder.specs(CONFIG)
PREFIXED = Both(delta.Prefix(3), delta.Head(5))


def test_it_is_the_union():
    made = PREFIXED(SPECS)
    assert made.keys() == delta.Prefix(3)(SPECS).keys() | delta.Head(5)(SPECS).keys()
    assert made["heads/classes"].value.shape == (8, 5) and made["heads/classes_shift"].value.shape == (5,)
    weights = delta.bind(params.init(SPECS, jax.random.key(0)), params.init(made, jax.random.key(1)))
    assert weights["heads"]["classes"].shape == (8, 5) and weights["layers"]["attn"]["prefix_k"].shape == (2, 3, 2, 4)


def test_it_reserves_what_its_part_reserves():
    assert (PREFIXED.virtual, PREFIXED.place) == (3, "before")
    between = Both(delta.Head(2), delta.Prompt(4, place="between"))
    assert (between.virtual, between.place) == (4, "between")
    assert Both(delta.Lora(), delta.Head(2)).virtual == 0


@pytest.mark.parametrize("first, second", [(0, 1), (1, 0)])
def test_each_starts_its_own(first, second):
    """A principal start and a prompt drawn from words, either of which would stumble over the other's edits."""
    parts = (delta.Lora(2, init="pissa"), delta.Prompt(4, init="text", text="a"))
    both = Both(parts[first], parts[second])
    base, key = params.init(SPECS, jax.random.key(0)), jax.random.key(1)
    given = delta.Given(
        base, key, encode=lambda text: [7, 9], embed=lambda ids: decoder.embed(CONFIG, base, ids[None])[0], specs=SPECS
    )
    begun = both.start(params.init(both(SPECS), key), given)
    assert begun.keys() == both(SPECS).keys()
    for part in parts:
        alone = part.start(params.init(part(SPECS), key), given)
        jax.tree.map(np.testing.assert_array_equal, alone, {path: begun[path] for path in alone})


def test_their_optimisers_lie_around_one_another():
    both = Both(delta.Lora(2, b_ratio=16.0, targets=("q",)), delta.Head(2))
    trainable, _ = delta.partition(params.init(both(SPECS), jax.random.key(0)))
    specs, _ = delta.partition(both(SPECS))
    made = both.optimiser(optax.sgd(1.0), specs, 10)
    updates, _ = made.update(jax.tree.map(jnp.ones_like, trainable), made.init(trainable), trainable)
    edit = updates["layers/attn/q"]
    assert np.all(edit.b == -16) and np.all(edit.a == -1) and np.all(updates["heads/classes"].value == -1)
    with pytest.raises(Fault, match="two Lora would both change the optimiser"):
        twice = Both(delta.Lora(b_ratio=2.0, targets=("q",)), delta.Lora(b_ratio=4.0, targets=("v",)))
        twice.optimiser(optax.sgd(1.0), specs, 10)


def test_facts_of_both():
    both = Both(delta.AdaLora(3, 2, targets=("q",)), delta.Head(2))
    assert "final ranks" in both.facts(params.init(both(SPECS), jax.random.key(0)))


@pytest.mark.parametrize(
    "method, message",
    [
        (Both(delta.Lora(2), delta.Lora(2, targets=("q",))), "Lora and Lora both edit 'layers/attn/q'"),
        (Both(delta.Head(2), delta.Head(3)), "both edit 'heads/classes'"),
        (Both(delta.Prefix(2), delta.Prompt(2)), "Prefix and Prompt both learn what stands in front of the text"),
        (delta.Head(0), "classes is 0; one is a score, and two or more tell something apart"),
    ],
)
def test_what_does_not_go_together(method, message):
    with pytest.raises(Fault, match=message):
        method(SPECS)


def test_a_config_holds_it():
    assert record.recorded(PREFIXED) == PREFIXED
