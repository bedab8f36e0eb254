# SPDX-License-Identifier: Apache-2.0
"""LoRA with everything that may be asked of it: ranks by layer, starts, biases, a rate of its own for b."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost import delta, params, quant, trees
from jaxpost.delta import Given, Lora, LowRank, Stack
from jaxpost.delta.places import names
from jaxpost.faults import Fault
from jaxpost.models.architecture import Experts, Layer
from jaxpost.models.decoder import Decoder, specs

CONFIG = Decoder(vocab=14, d=8, layers=3, heads=4, kv_heads=2, head_size=4, ffn=12)
SPECS = specs(CONFIG)
BIASED = specs(dataclasses.replace(CONFIG, norm="layer", biases=("q", "k", "v", "o", "gate", "up", "down")))
KEY = jax.random.key(0)
PLACE_O, PLACE_DOWN = ("layers", "attn", "o"), ("layers", "mlp", "down")


def trained(method, of=SPECS) -> int:
    return params.count(delta.partition(method(of))[0])


def base(of=SPECS):
    return params.init(of, jax.random.key(1))


def test_layers_have_names_of_their_own():
    tail = specs(dataclasses.replace(CONFIG, layers=5, pattern=(Layer(window=2), Layer())))
    found = {path: names(path, spec) for path, spec in trees.flatten(tail).items() if path.endswith("attn/q")}
    assert found == {
        "layers/0/attn/q": ("layers/0/attn/q", "layers/2/attn/q"),
        "layers/1/attn/q": ("layers/1/attn/q", "layers/3/attn/q"),
        "layers/tail/0/attn/q": ("layers/4/attn/q",),
    }
    assert names("embed", SPECS["embed"]) == ("embed",)


def test_ranks_and_alphas_by_pattern():
    ranks, alphas = {"layers/0/attn/q": 1, "*/q": 4, "layers/2/*": 2}, {"layers/1/*": 16.0}
    method = Lora(3, 6.0, ("q", "v"), ranks=ranks, alphas=alphas)
    start = params.init(method(SPECS), KEY)
    q, v = start["layers/attn/q"], start["layers/attn/v"]
    np.testing.assert_allclose(q.scale, [6 / 1, 16 / 4, 6 / 4])
    np.testing.assert_allclose(v.scale, [6 / 3, 16 / 3, 6 / 2])
    assert [np.any(q.a != 0, 1).sum(-1).tolist(), np.any(v.a != 0, 1).sum(-1).tolist()] == [[1, 4, 4], [3, 3, 2]]
    assert 0.6 < float(jnp.std(q.a[0, :, 0])) < 1.6, "one over the rank of its own layer"
    assert trained(method) == (1 + 4 + 4) * (8 + 16) + (3 + 3 + 2) * (8 + 8)


def test_padding_stays_zero():
    trainable, fixed = delta.partition(params.init(Lora(4, targets=("q",), ranks={"layers/1/*": 2})(SPECS), KEY))
    base_, optimiser = {"layers/attn/q": base()["layers"]["attn"]["q"]}, optax.adamw(0.1, weight_decay=0.1)

    def loss(trainable):
        w = delta.fold({"q": base_["layers/attn/q"]}, {"q": delta.combine(trainable, fixed)["layers/attn/q"]})["q"]
        return jnp.sum(jnp.sin(w))

    @jax.jit
    def step(trainable, state):
        updates, state = optimiser.update(jax.grad(loss)(trainable), state, trainable)
        return optax.apply_updates(trainable, updates), state

    now, _ = step(*step(trainable, optimiser.init(trainable)))
    edit = now["layers/attn/q"]
    assert np.all(edit.a[1, :, :2] != trainable["layers/attn/q"].a[1, :, :2]) and np.all(edit.b[1, :2])
    assert not np.any(edit.a[1, :, 2:]) and not np.any(edit.b[1, 2:])


def test_ranks_reach_every_expert_of_a_layer():
    moe = specs(dataclasses.replace(CONFIG, experts=Experts(4, 2, 6)))
    method = Lora(3, targets=("up",), ranks={"layers/2/*": 1})
    edit = params.init(method(moe), KEY)["layers/mlp/up"]
    assert edit.a.shape == (3, 4, 8, 3) and edit.scale.shape == (3, 4)
    assert np.any(edit.a != 0, 2).sum(-1).tolist() == [[3] * 4, [3] * 4, [1] * 4]
    assert trained(method, moe) == 4 * (3 + 3 + 1) * (8 + 6)


def test_kaiming_is_uniform_by_the_number_of_inputs():
    start = params.init(Lora(3, targets=("o", "embed"), init="kaiming")(SPECS), KEY)
    a = np.asarray(start["layers/attn/o"].a)
    assert 0.9 / math.sqrt(16) < np.abs(a).max() <= 1 / math.sqrt(16) and abs(a.mean()) < 0.05
    assert not np.any(start["layers/attn/o"].b) and not np.any(start["embed"].a)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("format", [None, quant.Int8()])
def test_factors_of_the_weight_leave_the_model_as_it_is(init, format):
    """And the base too: what is trained is taken off below, layer by layer with its own rank."""
    method = Lora(3, targets=("o", "embed"), init=init, ranks={"layers/1/*": 1}, dropout=0.5)
    weights = base() if format is None else quant.quantise_tree(base(), SPECS, format)
    start = params.init(method(SPECS), KEY)
    begun = jax.jit(lambda start, base: method.start(start, Given(base, KEY)))(start, weights)
    assert jax.tree.structure(begun) == jax.tree.structure(start)
    flat = trees.flatten(weights)
    for path, edit in begun.items():
        off, on = edit.edits
        np.testing.assert_array_equal(off.a, on.a)
        plain = delta.dense(flat[path])
        np.testing.assert_allclose(edit.dense(flat[path], jnp.float32), plain, atol=1e-5)
        assert np.linalg.norm(off.dense(flat[path], jnp.float32) - plain) > 0.1 * np.linalg.norm(plain)
    o = begun["layers/attn/o"].edits[1]
    assert np.any(o.a != 0, (1, 2)).sum(-1).tolist() == np.any(o.b != 0, 2).sum(-1).tolist() == [3, 1, 3]
    trainable, fixed = delta.partition(begun)
    assert len(jax.tree.leaves(trainable)) == 4 and len(jax.tree.leaves(fixed)) == 8
    assert trained(method) == (3 + 1 + 3) * (16 + 8) + 3 * (14 + 8)


@pytest.mark.parametrize("format", [quant.Int4(group=4), quant.Nf4(block=4)])
def test_base_and_update_made_for_each_other_lose_less(format):
    method = Lora(3, targets=("o", "down", "embed"), ranks={"layers/1/*": 1})
    weights = base()
    losses = []
    for rounds in (1, 5):
        quantised, begun = delta.loftq(weights, SPECS, method, format, KEY, rounds=rounds)
        o = begun["layers/attn/o"]
        assert np.any(o.a != 0, (1, 2)).sum(-1).tolist() == [3, 1, 3]
        assert not np.any(begun["embed"].a) and quantised["embed"] is weights["embed"], "which is not quantised"
        folded = delta.fold(quantised, begun)
        losses.append([np.linalg.norm(folded[a][b][c] - weights[a][b][c]) for a, b, c in (PLACE_O, PLACE_DOWN)])
    plain = quant.dequantise_tree(quant.quantise_tree(weights, SPECS, format))
    alone = [np.linalg.norm(plain[a][b][c] - weights[a][b][c]) for a, b, c in (PLACE_O, PLACE_DOWN)]
    assert np.all(np.array(losses[0]) < 0.9 * np.array(alone))
    assert np.all(np.array(losses[1]) < np.array(losses[0])), "turns help"


def test_b_learns_faster():
    method = Lora(2, targets=("q", "v"), b_ratio=8.0, init="pissa")
    specs_ = delta.partition(method(SPECS))[0]
    plain, faster = optax.adam(0.1), method.optimiser(optax.adam(0.1), specs_, 10)
    start, _ = delta.partition(params.init(method(SPECS), KEY))
    gradients = jax.tree.map(jnp.ones_like, start)
    one, other = (o.update(gradients, o.init(start), start)[0] for o in (plain, faster))
    for path in one:
        np.testing.assert_allclose(other[path].edits[1].a, one[path].edits[1].a)
        np.testing.assert_allclose(other[path].edits[1].b, 8 * one[path].edits[1].b)
    assert Lora().optimiser(plain, specs_, 10) is plain


def test_biases_are_trained_too():
    made = Lora(2, targets=("q",), biases="all")(BIASED)
    dense = {path for path, edit in made.items() if isinstance(edit, delta.Dense)}
    assert dense == {
        path for path, spec in trees.flatten(BIASED).items() if path.endswith("_bias") and not spec.optional
    }
    assert len(dense) == 3 + 7


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**16))
def test_at_full_rank_with_biases_any_tuning_of_weights_and_biases_can_be_had(seed):
    """Each matrix of each layer at the rank of its smaller side: there are factors for any change whatever, and where
    a starts square, steps of b alone reach every direction."""
    sizes = {path: spec for path, spec in trees.flatten(BIASED).items() if not spec.optional and "norm" not in path}
    full = {path: min(math.prod(s.sizes(1)), math.prod(s.sizes(2))) for path, s in sizes.items() if all(s.groups[1:])}
    ranks = {name: rank for path, rank in full.items() for name in names(path, sizes[path])}
    method = Lora(1, targets=tuple(full), ranks=ranks, biases="all", alpha=3.0)
    made = params.init(method(BIASED), jax.random.key(seed))
    assert made.keys() >= sizes.keys(), "every weight and every bias"
    rng = np.random.default_rng(seed)
    weights, wanted = trees.flatten(base(BIASED)), {}
    for path, edit in made.items():
        change = rng.normal(size=weights[path].shape).astype(np.float32)
        wanted[path] = weights[path] + change
        if isinstance(edit, delta.Dense):
            made[path] = edit.replace(dw=jnp.asarray(change))
            continue
        lead, rank = edit.scale.shape, edit.a.shape[-1]
        out = math.prod(edit.b.shape[len(lead) + 1 :])
        u, s, v = np.linalg.svd(change.reshape(*lead, -1, out), full_matrices=False)
        a, b = u * s[..., None, :] / np.asarray(edit.scale)[..., None, None], v
        made[path] = edit.replace(a=jnp.asarray(a.reshape(edit.a.shape)), b=jnp.asarray(b.reshape(edit.b.shape)))
        if edit.a.shape[len(lead) : -1] == (rank,):
            assert np.all(np.linalg.matrix_rank(np.asarray(edit.a)) == rank)
    tuned = trees.flatten(delta.fold(base(BIASED), made))
    for path, whole in wanted.items():
        np.testing.assert_allclose(tuned[path], whole, atol=2e-5)


@pytest.mark.parametrize(
    "config, text",
    [
        (Lora(rank=9, targets=("q",)), "rank 9 for 'layers/attn/q', a matrix of 8 x 16; choose at most 8"),
        (Lora(ranks={"layers/3/*": 2}), "lora.ranks: nothing that is tuned matches 'layers/3/\\*'"),
        (Lora(targets=("q",), alphas={"*/v": 2.0}), "lora.alphas: nothing that is tuned matches"),
        (Lora(ranks={"*/q": 0}), "rank is 0 for 'layers/attn/q'"),
        (Lora(b_ratio=0.0), "b_ratio is 0.0"),
        (Lora(alphas={"*/q": 0.0}), "alpha is 0.0 for 'layers/attn/q'; it must be above 0"),
        (Lora(targets=()), "lora: targets name no weight"),
        (Lora(biases="all"), "this model has none"),
    ],
)
def test_bad_input_is_a_fault(config, text):
    with pytest.raises(Fault, match=text):
        config(SPECS)


def test_a_magnitude_goes_over_whatever_lora_makes():
    method = delta.Dora(2, targets=("q", "embed"), init="pissa")
    weights = base()
    begun = method.start(params.init(method(SPECS), KEY), Given(weights, KEY))
    kinds = [type(edit) for edit in begun["layers/attn/q"].edits]
    assert kinds == [LowRank, LowRank, delta.Magnitude] and isinstance(begun["embed"], Stack)
    q = weights["layers"]["attn"]["q"]
    m = begun["layers/attn/q"].edits[-1].m
    np.testing.assert_allclose(m, jnp.sqrt(jnp.sum(q**2, 1, keepdims=True)), rtol=1e-5)
    np.testing.assert_allclose(begun["layers/attn/q"].dense(q, jnp.float32), q, atol=1e-5)
    assert trained(method) == 3 * (2 * (8 + 16) + 16) + 2 * (14 + 8) + 8


def test_no_gradient_and_no_residual_goes_through_the_norm():
    """What is kept for the way back is as large as what LoRA keeps, and the result before the magnitude."""
    w = jax.random.normal(KEY, (32, 48))
    low = LowRank(jnp.ones((32, 1)), jnp.ones((1, 48)), jnp.ones(()))
    edit = Stack((low, delta.Magnitude(jnp.ones((1, 48)))))
    _, pullback = jax.vjp(lambda x, e: delta.einsum("sd,df->sf", x, delta.Bound(w, e)), jnp.ones((5, 32)), edit)
    kept = [leaf.shape for leaf in jax.tree.leaves(pullback)]
    assert kept.count((32, 48)) == 1, "the base itself"


def test_dropout_in_a_stack_is_drawn_and_leaves_the_norm_alone():
    low = LowRank(jnp.ones((64, 1)), jnp.ones((1, 2)), jnp.ones(()), dropout=0.5)
    edit = Stack((low, delta.Magnitude(jnp.ones((1, 2)))))
    w = {"w": jnp.zeros((64, 2))}
    plain, one, other = (
        delta.einsum("sd,df->sf", jnp.ones((9, 64)), delta.bind(w, {"w": edit}, key)["w"])
        for key in (None, jax.random.key(0), jax.random.key(1))
    )
    np.testing.assert_allclose(plain, np.full((9, 2), 8.0), rtol=1e-6)  # 64 over a norm of 8
    assert np.std(one) > 0.1 and not np.array_equal(one, other)
