# SPDX-License-Identifier: Apache-2.0
"""IA3, VeRA, BitFit, AdaLoRA and parts of methods: what they tune, how they start, what input they refuse."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpost import delta, params, trees
from jaxpost.delta import AdaLora, BitFit, Dense, Full, Ia3, Insert, Lora, Scale, Select, Vera
from jaxpost.faults import Fault
from jaxpost.models.decoder import Decoder, specs
from jaxpost.train import optimisers

CONFIG = Decoder(vocab=14, d=8, layers=3, heads=4, kv_heads=2, head_size=4, ffn=12)
SPECS = specs(CONFIG)
GPT = specs(dataclasses.replace(CONFIG, norm="layer", biases=("q", "k", "v", "o", "up", "down"), gated=False))
KEY = jax.random.key(0)


def trained(method, of=SPECS) -> int:
    return params.count(delta.partition(method(of))[0])


def test_ia3_scales_keys_values_and_what_goes_down():
    start = params.init(Ia3()(SPECS), KEY)
    assert {path: (edit.s.shape, edit.side) for path, edit in start.items()} == {
        "layers/attn/k": ((3, 1, 2, 4), "out"),
        "layers/attn/v": ((3, 1, 2, 4), "out"),
        "layers/mlp/down": ((3, 12, 1), "in"),
    }
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(start))
    assert trained(Ia3()) == 3 * (8 + 8 + 12)


def test_factors_do_not_decay():
    """Decay would pull them towards zero, which is not where they do nothing."""
    made = Ia3()(SPECS) | delta.Dora(2, targets=("q",))(SPECS) | Vera(2, targets=("o",))(SPECS)
    trainable = delta.partition(made)[0]
    optimiser = optimisers.make(optimisers.Optimiser(weight_decay=0.5, lr=0.1, clip=0.0), 9, trainable)
    start = jax.tree.map(lambda spec: jnp.ones(spec.shape), trainable)
    updates, _ = optimiser.update(jax.tree.map(jnp.zeros_like, start), optimiser.init(start), start)
    moved = {trees.path_of(path): bool(np.any(u)) for path, u in jax.tree_util.tree_leaves_with_path(updates)}
    assert {path for path, did in moved.items() if did} == {"layers/attn/q/edits/0/a", "layers/attn/q/edits/0/b"}


def test_a_factor_near_one_is_not_rounded_to_it_in_sixteen_bits():
    """0.1 % of 1000 is no step of bfloat16, and of a product of many such factors something would be missing."""
    w, x = jnp.full((1, 256), 1.0), jnp.full((1, 1), 1.0, jnp.bfloat16)
    s = jnp.linspace(1.0, 1.01, 256)[None]
    y = delta.einsum("sd,df->sf", x, delta.Bound(w, Scale(s))).astype(jnp.float32)
    assert len(np.unique(np.asarray(y))) == len(np.unique(np.asarray(s.astype(jnp.bfloat16), np.float32)))
    big = delta.einsum("sd,df->sf", 3 * x, delta.Bound(w, Scale(s))).astype(jnp.float32)
    np.testing.assert_array_equal(big, (3 * s).astype(jnp.bfloat16).astype(jnp.float32))


def test_vera_shares_its_matrices_and_trains_vectors():
    method = Vera(16, targets=("q", "o", "down"), seed=3)
    start = params.init(method(SPECS), KEY)
    q, o, down = (start[f"layers/{name}"] for name in ("attn/q", "attn/o", "mlp/down"))
    np.testing.assert_array_equal(o.a.reshape(3, 16, 16)[0, :8], q.a[2])
    np.testing.assert_array_equal(o.a.reshape(3, 16, 16)[0, :12], down.a[1])
    np.testing.assert_array_equal(q.b.reshape(3, 16, 16)[0, :, :8], o.b[1])
    assert 0.9 * math.sqrt(6 / 16) < np.abs(o.a).max() <= math.sqrt(6 / 16)
    assert np.all(q.d == np.float32(0.1)) and not np.any(q.s)
    assert trained(method) == 3 * (3 * 16 + 16 + 8 + 8)
    again = params.init(method(SPECS), jax.random.key(7))
    jax.tree.map(np.testing.assert_array_equal, again, start)
    assert not np.array_equal(params.init(Vera(16, targets=("q",))(SPECS), KEY)["layers/attn/q"].a, q.a)


def test_bitfit_tunes_what_is_there_and_adds_the_rest_when_asked():
    there = BitFit()(GPT)
    assert {path.rsplit("/", 1)[-1] for path in there} == {
        *(f"{name}_bias" for name in ("q", "k", "v", "o", "up", "down", "attn_norm", "mlp_norm", "norm"))
    }
    assert all(isinstance(edit, Dense) for edit in there.values())
    added = BitFit(add=True)(SPECS)
    assert all(isinstance(edit, Insert) and not edit.value.optional for edit in added.values())
    assert trained(BitFit(add=True)) == 3 * (16 + 8 + 8 + 8 + 12 + 12 + 8)
    start = params.init(added, KEY)
    tuned = delta.bind(params.init(SPECS, KEY), start)
    assert tuned["layers"]["attn"]["q_bias"].shape == (3, 4, 4) and not np.any(tuned["layers"]["attn"]["q_bias"])


def test_a_part_of_a_method():
    whole, part = Full(("q", "norm")), Select(Full(("q", "norm")), layers=(0, -1))
    assert part(SPECS).keys() == {"layers/attn/q"} and whole(SPECS).keys() == {"layers/attn/q", "norm"}
    assert trained(part) == 2 * 8 * 16
    assert Select(Full(), names=("*norm",))(SPECS).keys() == {"layers/attn_norm", "layers/mlp_norm", "norm"}
    assert trained(Select(Full(), names=("*norm",), layers=(1,))) == 2 * 8
    assert trained(Select(Full(("q", "norm")), names=("layers/[12]/*", "norm"))) == 2 * 8 * 16 + 8
    ranked = Select(Lora(4, targets=("q",), ranks={"layers/0/*": 1}), layers=(0, 1))
    assert trained(ranked) == (1 + 4) * (8 + 16)


def test_layers_left_out_stay_as_they_are_and_weigh_nothing():
    part = Select(Lora(2, targets=("q", "v"), b_ratio=2.0), layers=(1,))
    made = part(SPECS)
    start, _ = delta.partition(params.init(made, KEY))
    halves = delta.partition(made)[0]
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0), optax.add_decayed_weights(-0.5))
    optimiser = part.optimiser(inner, halves, 9)
    gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 10.0), start)
    updates, _ = optimiser.update(gradients, optimiser.init(start), start)
    size = sum(leaf[1].size for leaf in jax.tree.leaves(start))
    for path, edit in updates.items():
        for name, times in (("a", 1.0), ("b", 2.0)):
            moved = getattr(edit, name)
            assert not np.any(moved[jnp.array([0, 2])])
            wanted = times * (-1 / math.sqrt(size) - 0.5 * getattr(start[path], name)[1])
            np.testing.assert_allclose(moved[1], wanted, rtol=1e-5)


def test_a_part_starts_and_speaks_as_the_whole():
    part = Select(delta.Dora(2, targets=("q",)), layers=(2,))
    weights = params.init(SPECS, KEY)
    begun = part.start(params.init(part(SPECS), KEY), delta.Given(weights, KEY))["layers/attn/q"]
    np.testing.assert_allclose(
        begun.edits[-1].m, jnp.linalg.norm(weights["layers"]["attn"]["q"], axis=1, keepdims=True)
    )
    assert part.virtual == 0 and part.facts({}) == {}


@pytest.mark.parametrize(
    "method, text",
    [
        (Ia3(outputs=("k", "down")), "'layers/mlp/down' is among the outputs and the inputs"),
        (Ia3(outputs=("kk",)), "ia3 outputs: no parameter matches 'kk'"),
        (Ia3((), ()), "neither outputs nor inputs name a weight"),
        (Vera(0), "vera: rank is 0"),
        (Vera(targets=()), "vera: targets name no weight"),
        (Vera(dropout=1.0), "vera: dropout is 1.0"),
        (BitFit(), "this model has none; BitFit\\(add=True\\)"),
        (AdaLora(4, 5), "target is 5; it must be at least 1 and at most rank, 4"),
        (AdaLora(12, 2), "adalora: rank 12 is above that of 'layers/attn/q'; choose at most 8"),
        (AdaLora(4, 2, settle=0), "settle is 0"),
        (AdaLora(4, 2, warmup=-1), "warmup is -1"),
        (AdaLora(4, 2, b1=1.0), "b1 is 1.0; it must be at least 0 and below 1"),
        (AdaLora(4, 2, targets=()), "adalora: targets name no weight"),
        (Select(Full(), layers=(3,)), "the model has 3 layers, so none has the number 3"),
        (Select(Full(), names=("layers/7/*",)), "select.names: nothing that is tuned matches 'layers/7/\\*'"),
        (Select(Full(("norm",)), layers=(0,)), "nothing that Full tunes has such a name in such a layer"),
    ],
)
def test_bad_input_is_a_fault(method, text):
    with pytest.raises(Fault, match=text):
        method(SPECS)


def test_a_run_too_short_for_its_budget_is_a_fault_once_it_trains():
    """And not before: whoever reads what a run made assembles it with any number of steps."""
    method = AdaLora(4, 2, targets=("q",), warmup=5, settle=3)
    halves, start = delta.partition(method(SPECS))[0], delta.partition(params.init(method(SPECS), KEY))[0]
    optimiser = method.optimiser(optax.sgd(0.1), halves, 8)
    state = optimiser.init(start)
    with pytest.raises(
        Fault, match="the budget falls from step 5 \\(warmup\\) to step 5 \\(settle steps before the end"
    ):
        optimiser.update(start, state, start)


def test_a_one_bit_delta_is_found_beside_the_run_that_made_it(tmp_path):
    made = delta.BitDelta(file="elsewhere/one_bit.safetensors")
    assert made.within(tmp_path) == made
    (tmp_path / "one_bit.safetensors").write_bytes(b"")
    assert made.within(tmp_path).file == str(tmp_path / "one_bit.safetensors")
    assert delta.Full().within(tmp_path) == delta.Full()
