# SPDX-License-Identifier: Apache-2.0
"""Classification: a label's loss is its own, wherever its text lies, and teaches the prefix and the head."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, params
from jaxpost.data.batches.marks import Marks
from jaxpost.data.batches.packing import Shifted
from jaxpost.data.rows.labels import Classes
from jaxpost.data.tokenizers import SentencePieceTokenizer
from jaxpost.delta import Both, Head, Lora, Prefix
from jaxpost.faults import Fault
from jaxpost.losses import last_tokens
from jaxpost.models import decoder, heads
from jaxpost.recipes import classify, run
from jaxpost.recipes.labelling import label
from jaxpost.recipes.labels import BuiltIn, Labels, classes_of
from jaxpost.recipes.sft import denominators
from jaxpost.recipes.trained import Trained
from tests.end_to_end.runs import TOKENIZER
from tests.train.tiny import CONFIG, base, stacked

PLACES = 2
METHOD = Both(Prefix(PLACES), Head(3))
LENGTHS = [9, 2, 5, 4, 7, 3, 1, 6]
KINDS = ("sequence", "token", "span")


def example(kind, length, seed):
    """A text of this length behind the reserved places, with labels as the data lay them."""
    rng = np.random.default_rng(seed)
    tokens = np.concatenate([[-1, -2], rng.integers(1, CONFIG.vocab, length)]).astype(np.int32)
    targets, mask = np.zeros(length, np.int32), np.zeros(length, np.float32)
    if kind == "span":
        start, end = sorted(rng.integers(0, length, 2))
        targets[start] += 1
        targets[end] += 2
        mask[[start, end]] = 0.5 if start < end else 1.0
    else:
        mask[:] = rng.random(length) < 0.6 if kind == "token" else 0
        mask[-1] = 1.0
        targets[:] = np.where(mask > 0, rng.integers(0, 3, length), 0)
    pad = PLACES, 0
    return Shifted(tokens, np.pad(targets, pad), np.pad(mask, pad))


@functools.cache
def batches(kind):
    """Packed, and each by itself."""
    each = [example(kind, length, seed) for seed, length in enumerate(LENGTHS)]
    packed = [[each[i] for i in row] for row in ([0, 1], [2, 3], [4, 5], [6, 7])]
    return stacked(packed, 16), stacked([[one] for one in each], 16)


@functools.cache
def halves(kind):
    """With every number drawn, so that every leaf has a gradient."""
    method = METHOD if kind != "span" else replace(METHOD, second=Head(2))
    made = params.init(method(decoder.specs(CONFIG)), jax.random.key(1))
    trainable, fixed = delta.partition(
        jax.tree.map(lambda x: x + 0.5 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), made)
    )
    return trainable, {"base": base(), "fixed": fixed}


@functools.cache
def program(kind):
    loss = classify.make_loss(CONFIG, classify.Config("", kind=kind))

    def value(trainable, frozen, batch):
        return loss(trainable, frozen, None, {**batch, **denominators(batch)}, None)

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def measured(kind, batch):
    # Texts and words are judged by one program: what is labelled is the batch's to say.
    return jax.device_get(program("span" if kind == "span" else "token")(*halves(kind), batch))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_separate(kind):
    """Loss, metrics and gradients; and all that is trained is taught something."""
    packed, separate = batches(kind)
    (one, metrics), gradients = measured(kind, packed)
    (other, wanted), wanted_gradients = measured(kind, separate)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert metrics.keys() == wanted.keys() >= {"loss", "accuracy", "predictions", "tokens"}
    for name in wanted:
        np.testing.assert_allclose(metrics[name], wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert set(gradients) == {"heads/classes", "heads/classes_shift", "layers/attn/prefix_k", "layers/attn/prefix_v"}
    for path, edit in gradients.items():
        np.testing.assert_allclose(edit.value, wanted_gradients[path].value, rtol=0, atol=1e-5)
        # Of all ends of spans alike, a bias says nothing.
        assert np.linalg.norm(edit.value) > 1e-4 or (kind == "span" and path == "heads/classes_shift")
    assert metrics["predictions"] == (packed["mask"].sum() if kind == "token" else len(LENGTHS))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_has_no_say(kind):
    """Whatever stands in it; and a token that looks like padding counts where the text has it."""
    packed, _ = batches(kind)
    padding = packed["segments"] == 0
    odd = {
        **packed,
        "tokens": np.where(padding, 7, packed["tokens"]),
        "targets": np.where(padding, 1, packed["targets"]),
    }
    one, other = measured(kind, packed), measured(kind, odd)
    assert padding.any()
    jax.tree.map(np.testing.assert_array_equal, one, other)
    last = np.asarray(last_tokens(jnp.asarray(packed["segments"]))) > 0
    ended = {**packed, "tokens": np.where(last, 0, packed["tokens"])}
    (loss, metrics), _ = measured(kind, ended)
    assert metrics["predictions"] == one[0][1]["predictions"] and abs(loss - one[0][0]) > 1e-4


def test_a_text_is_judged_by_its_last_token():
    """As the plain model, given each text alone and without padding, says there."""
    packed, separate = batches("sequence")
    np.testing.assert_array_equal(packed["mask"], last_tokens(jnp.asarray(packed["segments"])))
    trainable, frozen = halves("sequence")
    weights = delta.bind(frozen["base"], delta.combine(trainable, frozen["fixed"]))
    scores = np.asarray(jax.jit(classify.score, static_argnums=(0, 3))(CONFIG, weights, separate, 1), np.float64)
    losses, hits = [], []
    for i, length in enumerate(LENGTHS):
        own, target = scores[i, PLACES + length - 1], separate["targets"][i, PLACES + length - 1]
        losses.append(np.log(np.exp(own).sum()) - own[target])
        hits.append(own.argmax() == target)
    (loss, metrics), _ = measured("sequence", packed)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(hits), rtol=1e-6)


def test_every_example_may_have_a_prefix_and_a_head_of_its_own():
    """Several tasks over one base in one batch, each judged as if it came alone."""
    _, batch = batches("sequence")
    trainable, frozen = halves("sequence")
    one = delta.combine(trainable, frozen["fixed"])
    other, specs = jax.tree.map(lambda x: x + jnp.sin(x), one), decoder.specs(CONFIG)
    rows = jnp.arange(len(LENGTHS)) % 2
    jitted = jax.jit(lambda made, batch: classify.score(CONFIG, delta.bind(base(), made), batch, 1))
    judge = functools.partial(jitted, batch=batch)
    together = judge(delta.at(delta.bank([one, other], specs), rows, specs, some=False))
    for number, made in enumerate((one, other)):
        np.testing.assert_allclose(together[number::2], judge(made)[number::2], rtol=1e-4, atol=1e-5)


def test_a_prompts_places_are_no_answers():
    """However they score, and whoever stands beside: the losses of one example's places are likelihoods of its text."""
    packed, _ = batches("span")
    scores = jnp.where((packed["tokens"] < 0)[..., None], 1e6, jnp.zeros((*packed["tokens"].shape, 2)))
    found = jax.jit(classify.judged, static_argnums=0)("span", scores, packed)
    lengths = np.concatenate([[length] * 2 for length in LENGTHS])
    total = np.sum(found["loss"] * packed["mask"])
    np.testing.assert_allclose(total, np.log(lengths).sum() / 2, rtol=1e-5)
    assert np.all(found["F1"] <= 1) and np.all(found["accuracy"] <= found["F1"])


def test_a_model_without_a_head_says_so():
    with pytest.raises(Fault, match="no head for classes; train one"):
        heads.classes(CONFIG, base(), jnp.zeros((1, 2, CONFIG.d)))


@pytest.mark.parametrize(
    "kind, labels, method, message",
    [
        ("sequence", (), Lora(2), r"classes need a head; choose Both\(..., Head\(classes\)\)"),
        ("sequence", ("a", "b"), METHOD, r"the head has 3 classes, and labels names 2 classes; choose Head\(2\)"),
        ("sequence", ("a",), METHOD, "labels names 'a' alone"),
        ("span", (), METHOD, r"the head has 3 classes, and a span has 2 ends; choose Head\(2\)"),
    ],
)
def test_the_head_fits_what_is_asked(kind, labels, method, message):
    with pytest.raises(Fault, match=message):
        classes_of(kind, labels, method, CONFIG)
    assert classes_of("token", (), METHOD, CONFIG).count == 3


def test_built_in_rows_are_asked_in_words():
    row = BuiltIn("read_who").training(0)[0]
    assert row["answer"] in row["context"] and row["question"].endswith("?") and row["context"] not in row["question"]
    row = BuiltIn("mood").held_out(0)[0]
    assert row["label"] in ("happy", "sad", "angry", "scared") and row["text"].startswith(row["context"])
    assert "text" in BuiltIn("add").training(0)[0]
    with pytest.raises(Fault, match="no built-in task is called 'moods'; did you mean mood"):
        BuiltIn("moods").training(0)


@pytest.mark.parametrize(
    "kind, row, columns",
    [
        ("sequence", {"text": "A day.", "label": "b"}, None),
        ("sequence", {"sentence": "A day.", "label": 1, "idx": 7}, {"sentence": "text"}),
        ("token", {"tokens": ["A", "day", "."], "labels": [0, 1, -100]}, None),
        ("token", {"tokens": ["A", "day", "."], "ner_tags": ["a", None, "b"], "id": "0"}, {"ner_tags": "labels"}),
        ("span", {"question": "What?", "context": "A day.", "answers": {"text": ["day"], "answer_start": [2]}}, None),
    ],
)
def test_files_of_labels_make_batches(tmp_path, kind, row, columns):
    """Through all that a run's rows go through."""
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 12)
    tokenizer, batches = SentencePieceTokenizer.load(TOKENIZER), classify.Batches(rows=2, seq_len=32)
    corpus = classify.Files(str(tmp_path / "rows.jsonl"), hold=2, columns=columns)
    labels = Labels(corpus, tokenizer, kind, Classes(2, ("a", "b")))
    config = classify.Config("", data=corpus, batches=batches, train=classify.Training(steps=3))
    batch = run.sources(replace(config, data=labels), tokenizer, Marks(kind, 32)).loader.next()
    marks = {"sequence": {1}, "token": {0, 1}, "span": {1, 2, 3}}[kind]
    assert batch["mask"].any(axis=1).all() and set(batch["targets"][batch["mask"] > 0].tolist()) <= marks


# --- texts that nobody has labelled


@pytest.fixture(scope="module")
def labeller():
    """What a run has learned of each kind, in a model that knows the built-in tokenizer's words."""
    model = replace(CONFIG, vocab=2048, layers=1)
    specs, tokenizer = decoder.specs(model), SentencePieceTokenizer.load(TOKENIZER)

    def of(kind, names=()):
        method = Both(Prefix(PLACES), Head(len(names) or 2))
        made = jax.tree.map(lambda x: 20 * x, params.init(method(specs), jax.random.key(3)))
        config = classify.Config("", kind=kind, labels=names, delta=method)
        return Trained(config, model, tokenizer, params.init(specs, jax.random.key(4)), made)

    return of


def test_texts_are_labelled(labeller):
    texts = ["Max lost his dog.", "It is a good day, and Emma is in the park with a red ball.", "A cup."]
    learned = labeller("sequence", ("happy", "sad", "angry"))
    together = label(learned, [{"text": text} for text in texts])
    for text, said in zip(texts, together, strict=True):
        (share,), (alone,) = said.shares, label(learned, [{"text": text}])[0].shares
        assert said.answers == (max(share, key=share.get),) and share.keys() == {"happy", "sad", "angry"}
        np.testing.assert_allclose([*share.values()], [*alone.values()], rtol=1e-4)
        np.testing.assert_allclose(sum(share.values()), 1, rtol=1e-5)
    assert len({said.shares[0]["sad"] for said in together}) == 3


def test_words_and_spans_are_labelled(labeller):
    words = "Max lost his dog .".split()
    (said,) = label(labeller("token"), [{"tokens": words}])
    assert len(said.answers) == len(words) and set(said.answers) <= {"0", "1"}
    (said,) = label(labeller("span"), [{"context": " ".join(words), "question": "Who lost his dog?"}])
    assert said.answers[0] in " ".join(words) and not said.shares


def test_what_cannot_be_labelled(labeller):
    with pytest.raises(Fault, match="this run has learned no classes"):
        label(replace(labeller("sequence"), config=None), [{"text": "a"}])
    with pytest.raises(Fault, match="text 1 is longer than the 64 positions"):
        label(labeller("span"), [{"context": "dog " * 90}])
