# SPDX-License-Identifier: Apache-2.0
"""The loss of supervised fine-tuning: over the trained tokens, whatever they are packed with; noise and smoothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost import delta, params
from jaxpost.data.batches.packing import MOST
from jaxpost.kernels.attention import Rows
from jaxpost.models import decoder
from jaxpost.recipes import run, sft
from tests.train.tiny import CONFIG, base, config, examples, stacked

LENGTHS = [9, 2, 5, 4, 7, 3, 1, 6]
EXAMPLES = examples(LENGTHS)
PACKED = stacked([[EXAMPLES[i] for i in row] for row in ([0, 1], [2, 3, 5], [4, 6], [7])])
SEPARATE = stacked([[example] for example in EXAMPLES])
PLAIN = sft.Loss()
KINDS = {"full": delta.Full(), "lora": delta.Lora(rank=2)}


@functools.cache
def halves(kind):
    """A delta with every number drawn, so that every leaf has a gradient."""
    whole = params.init(KINDS[kind](decoder.specs(CONFIG)), jax.random.key(1))
    trainable, fixed = delta.partition(whole)
    leaves, form = jax.tree.flatten(trainable)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    drawn = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(form, drawn), {"base": base(), "fixed": fixed}


@functools.cache
def program(loss=PLAIN, kind="full", gradient=False):
    loss_fn = sft.make_loss(CONFIG, config(loss=loss, delta=KINDS[kind]))

    def value(trainable, frozen, batch, key):
        return loss_fn(trainable, frozen, None, {**batch, **sft.denominators(batch)}, key)

    return jax.jit(jax.value_and_grad(value, has_aux=True) if gradient else value)


def measured(batch, key=None, kind="full", gradient=False, **choices):
    """Loss and metrics, with the gradient beside them if asked. The plain loss always comes from the program that makes
    both, which is there anyway."""
    both = gradient or "loss" not in choices
    found = jax.device_get(program(kind=kind, gradient=both, **choices)(*halves(kind), batch, key))
    return found if gradient or not both else found[0]


@functools.cache
def reference(kind="full"):
    """Log-probabilities of everything at every place of the separate rows, from the plain model, on folded weights."""
    trainable, frozen = halves(kind)
    weights = delta.fold(frozen["base"], delta.combine(trainable, frozen["fixed"]))
    rows = Rows(jnp.asarray(SEPARATE["segments"]), jnp.asarray(SEPARATE["positions"]))
    logits = jax.jit(decoder.logits, static_argnums=0)(CONFIG, weights, jnp.asarray(SEPARATE["tokens"]), rows)
    return np.asarray(logits, np.float64)


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def averaged(values):
    return (values * SEPARATE["mask"]).sum() / SEPARATE["mask"].sum()


def likelihood():
    return -np.take_along_axis(log_softmax(reference()), SEPARATE["targets"][..., None], axis=-1)[..., 0]


def test_the_loss_is_the_mean_over_the_trained_tokens():
    total, metrics = measured(SEPARATE)
    np.testing.assert_allclose(total, averaged(likelihood()), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
    hits = reference().argmax(axis=-1) == SEPARATE["targets"]
    np.testing.assert_allclose(metrics["accuracy"], averaged(hits), rtol=1e-5)
    assert metrics["predictions"] == SEPARATE["mask"].sum() and metrics["tokens"] == sum(LENGTHS)
    assert 0 < metrics["predictions"] < metrics["tokens"], "completion only"


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_separate(kind):
    """Loss, metrics and gradients: a row's neighbours, its padding and its place change nothing."""
    (one, metrics), gradients = measured(PACKED, kind=kind, gradient=True)
    (other, wanted), wanted_gradients = measured(SEPARATE, kind=kind, gradient=True)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    for name in wanted:
        np.testing.assert_allclose(metrics[name], wanted[name], rtol=0, atol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted_gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
        assert np.linalg.norm(b) > 1e-4, "and there is a gradient"


def test_packing_with_others_would_be_noticed():
    """The same rows as if each were one example."""
    mixed = {**PACKED, "segments": (PACKED["segments"] > 0).astype(np.int32)}
    assert abs(measured(mixed)[0] - measured(PACKED)[0]) > 1e-3


def test_what_is_masked_has_no_say():
    """Nor have targets under padding, which may be no token at all. Where nothing is trained, all is 0."""
    odd = {**PACKED, "targets": np.where(PACKED["mask"] > 0, PACKED["targets"], -100).astype(np.int32)}
    (one, metrics), gradients = measured(odd, gradient=True)
    (two, wanted), wanted_gradients = measured(PACKED, gradient=True)
    assert one == two and metrics["accuracy"] == wanted["accuracy"]
    jax.tree.map(np.testing.assert_array_equal, gradients, wanted_gradients)
    (nothing, metrics), gradients = measured({**PACKED, "mask": np.zeros_like(PACKED["mask"])}, gradient=True)
    assert nothing == 0.0 and metrics["predictions"] == 0.0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("chunk", [1, 20])
def test_the_chunk_is_only_a_matter_of_memory(chunk):
    np.testing.assert_allclose(measured(PACKED, loss=sft.Loss(chunk=chunk))[0], measured(PACKED)[0], rtol=1e-5)


def test_label_smoothing_and_z_loss():
    """Smoothing moves a tenth of the target's probability to all tokens alike; the z-loss adds a squared normaliser."""
    total, metrics = measured(SEPARATE, loss=sft.Loss(label_smoothing=0.1, z_loss=0.01))
    smoothed = 0.9 * likelihood() - 0.1 * log_softmax(reference()).mean(axis=-1)
    squared = np.log(np.exp(reference()).sum(axis=-1)) ** 2
    np.testing.assert_allclose(total, averaged(smoothed + 0.01 * squared), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
    assert abs(averaged(smoothed) - averaged(likelihood())) > 1e-3 and averaged(0.01 * squared) > 1e-3


def test_denominators_count_the_trained_tokens():
    assert sft.denominators({"mask": jnp.asarray(PACKED["mask"])})["trained"] == PACKED["mask"].sum()
    assert sft.denominators({"mask": jnp.zeros((2, 3))})["trained"] == 1.0


@pytest.mark.parametrize("packing, most", [("pack", MOST), ("none", 1), ("blocks", 1)])
def test_rows_say_how_many_examples_they_hold(monkeypatch, packing, most):
    """Which is what lets fast attention serve them."""
    seen = []
    monkeypatch.setattr(
        sft, "rows", lambda t, segments, positions, most: seen.append(most) or Rows(segments, positions)
    )
    loss = sft.make_loss(CONFIG, config(batches=run.Batches(packing=packing)))
    batch = {**PACKED, "trained": np.float32(1.0)}
    jax.eval_shape(lambda trainable, frozen, batch: loss(trainable, frozen, None, batch, None), *halves("full"), batch)
    assert seen == [most]


# --- NEFTune


def noise_of(segments, size=5.0, seed=0, width=16):
    zeros = jnp.zeros((*np.shape(segments), width))
    return np.asarray(sft.noisy(zeros, jnp.asarray(segments), size, jax.random.key(seed)))


ROW = st.lists(st.integers(1, 5), min_size=1, max_size=4).filter(lambda row: sum(row) <= 12)


def segments_of(lengths, total=12):
    return np.pad(np.repeat(np.arange(1, len(lengths) + 1), lengths), (0, total - sum(lengths))).astype(np.int32)


@given(st.lists(ROW, min_size=3, max_size=3), st.sampled_from([0.5, 5.0]), st.integers(0, 99))
@settings(max_examples=25)
def test_noise_is_bounded_by_the_length_of_its_own_example(rows, size, seed):
    segments = np.stack([segments_of(row) for row in rows])
    noise = noise_of(segments, size, seed)
    for lengths, row_segments, row in zip(rows, segments, noise, strict=True):
        for number, length in enumerate(lengths, start=1):
            found, bound = np.abs(row[row_segments == number]), size / np.sqrt(length * 16)
            assert found.max() <= bound * (1 + 1e-6)
            assert found.max() > 0.6 * bound, "and it reaches for that bound: 16 numbers or more"


def test_noise_does_not_know_its_neighbours():
    """The same example at the same place, with and without others and padding around it."""
    packed, padded, alone = segments_of([4, 3, 5]), segments_of([4, 3]), segments_of([4])
    noise = noise_of(np.stack([packed])), noise_of(np.stack([padded])), noise_of(np.stack([alone]))
    for other in noise[1:]:
        np.testing.assert_array_equal(noise[0][0, :4], other[0, :4])
    np.testing.assert_array_equal(noise[0][0, 4:7], noise[1][0, 4:7])
    assert not np.array_equal(noise[1][0, 7:], noise[2][0, 7:]), "where it does depend on the length"


def test_noise_is_uniform():
    noise = noise_of(np.stack([segments_of([12])] * 200)) * np.sqrt(12 * 16) / 5.0
    assert abs(noise.mean()) < 0.01 and abs((noise**2).mean() - 1 / 3) < 0.01
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.25, "every row has its own"


def test_noise_keeps_the_type_and_adds_to_what_is_there():
    x = jnp.ones((1, 12, 16), jnp.bfloat16)
    noisy = sft.noisy(x, jnp.asarray(segments_of([12])[None]), 0.5, jax.random.key(0))
    assert noisy.dtype == jnp.bfloat16 and 0.9 < float(noisy.min()) < 1 < float(noisy.max()) < 1.1


def test_no_key_no_noise():
    loss = sft.Loss(neftune=5.0)
    plain, quiet = measured(PACKED)[0], measured(PACKED, loss=loss)[0]
    np.testing.assert_allclose(quiet, plain, rtol=1e-6)
    noisy = [measured(PACKED, jax.random.key(seed), loss=loss)[0] for seed in (0, 0, 1)]
    assert noisy[0] == noisy[1]
    assert min(abs(noisy[0] - quiet), abs(noisy[2] - quiet), abs(noisy[0] - noisy[2])) > 1e-3


def test_noise_and_dropout_do_not_share_their_luck(monkeypatch):
    """The two get keys of their own: noise drawn from the dropout's would follow it."""
    keys = []

    def noisy(x, segments, size, key):
        keys.append(key)
        raise StopIteration  # nothing behind this is asked about

    bind = delta.bind
    monkeypatch.setattr(sft, "noisy", noisy)
    monkeypatch.setattr(delta, "bind", lambda base, edits, key: keys.append(key) or bind(base, edits, key))
    loss = sft.make_loss(CONFIG, config(loss=sft.Loss(neftune=5.0)))
    with pytest.raises(StopIteration):
        loss(*halves("full"), None, jax.tree.map(jnp.asarray, PACKED), jax.random.key(7))
    drop, noise = (jax.random.key_data(key).tolist() for key in keys)
    assert drop != noise and jax.random.key_data(jax.random.key(7)).tolist() not in (drop, noise)
