# SPDX-License-Identifier: Apache-2.0
"""Completions are what one pass without a cache gives, whoever else is in the batch, cut where they should be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, params, quant, shard, trees
from jaxpost.faults import Fault
from jaxpost.kernels.attention import Rows
from jaxpost.models import decoder
from jaxpost.models.architecture import Decoder, Layer
from jaxpost.sample import Sampling, generate, stream
from jaxpost.sample.decode import LOOK, Seats, begin, decode, place, prefill
from jaxpost.sample.engine import CHUNK, _begin, _decode, _place, _prefill
from jaxpost.sample.generate import stops_at
from tests.jaxprs import equations

CONFIG = Decoder(vocab=40, d=16, layers=2, heads=4, kv_heads=2, head_size=8, ffn=24, max_length=64)
PROMPTS = [[7, 3, 9, 30, 2], [5], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]]
FREE = Sampling(max_new=20, temperature=1.0, seed=3)


@functools.cache
def weights_of(kind):
    specs = decoder.specs(CONFIG)
    flat = trees.flatten(params.init(specs, jax.random.key(0)))
    base = trees.unflatten({p: x if x is None or "norm" in p else 8 * x for p, x in flat.items()})
    if kind == "plain":
        return base
    edits = params.init(delta.Lora(rank=2, dropout=0.5)(specs), jax.random.key(1))
    edits = {
        p: e.replace(b=0.3 * jax.random.normal(jax.random.key(i), e.b.shape)) for i, (p, e) in enumerate(edits.items())
    }
    return delta.bind(quant.quantise_tree(base, specs, quant.Int8()), edits)


@functools.partial(jax.jit, static_argnums=0)
def forward(config, weights, tokens):
    places = jnp.arange(tokens.shape[1])[None]
    return jax.nn.log_softmax(decoder.logits(config, weights, tokens, Rows(jnp.ones_like(tokens), places)))


def scores(weights, tokens):
    """Log-probabilities of what follows each token, from one pass over all of them without a cache."""
    padded = np.zeros((1, CONFIG.max_length), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(forward(CONFIG, weights, padded))[0, : len(tokens)]


def text_of(tokens):
    """Two characters a token."""
    return "".join(f"{token:02d}" for token in tokens)


@functools.cache
def completed(kind="plain", sampling=FREE):
    return generate(CONFIG, weights_of(kind), PROMPTS, sampling)


@pytest.mark.parametrize("kind", ["plain", "int8 under lora"])
def test_greedy_is_the_argmax_of_the_whole_pass(kind):
    weights, sampling = weights_of(kind), Sampling(max_new=20)
    for prompt, completion in zip(PROMPTS, completed(kind, sampling), strict=True):
        assert len(completion.tokens) == 20 and completion.reason == "length"
        found = scores(weights, prompt + completion.tokens)[len(prompt) - 1 : -1]
        assert found.argmax(axis=1).tolist() == completion.tokens
        assert completion.log_probs.tolist() == [0.0] * 20, "greedy draws from a distribution with one token"
    assert len({tuple(c.tokens) for c in completed(kind, sampling)}) == 3, "the prompts matter"


@pytest.mark.parametrize("window", [1, 15])
def test_layers_with_a_window_remember_no_more(window):
    """Shorter than prompts and than what is drawn, or longer than some; in a tail, too."""
    config = dataclasses.replace(CONFIG, layers=3, pattern=(Layer(window=window), Layer()))
    flat = trees.flatten(params.init(decoder.specs(config), jax.random.key(0)))
    weights = trees.unflatten({p: x if x is None or "norm" in p else 8 * x for p, x in flat.items()})
    state = jax.eval_shape(lambda: begin(config, 3, 48))
    rings = {name: (entries.k.shape[0], entries.k.shape[3]) for name, entries in state.kv.items()}
    assert rings == {f"last {window}": (2, window), "all": (1, 48)}, "of layers 0 and 2, the tail, and of layer 1"
    for prompt, completion in zip(PROMPTS, generate(config, weights, PROMPTS, FREE), strict=True):
        tokens = np.zeros((1, config.max_length), np.int32)
        tokens[0, : len(prompt) + 20] = prompt + completion.tokens
        found = np.asarray(forward(config, weights, tokens))[0, len(prompt) - 1 :]
        np.testing.assert_allclose(completion.log_probs, found[np.arange(20), completion.tokens], atol=2e-4)
        blind = np.asarray(forward(dataclasses.replace(config, pattern=(Layer(), Layer())), weights, tokens))[0]
        assert np.abs(blind[len(prompt) + 18] - found[19]).max() > 1e-2, "the window matters"


def test_an_edit_changes_what_is_said():
    sampling = Sampling(max_new=20)
    assert [c.tokens for c in completed("plain", sampling)] != [
        c.tokens for c in completed("int8 under lora", sampling)
    ]


@pytest.mark.parametrize("kind", ["plain", "int8 under lora"])
def test_log_probabilities_are_the_models(kind):
    """At temperature 1 those of the whole pass. Of every token, over more than one chunk."""
    assert FREE.max_new > CHUNK
    for prompt, completion in zip(PROMPTS, completed(kind), strict=True):
        found = scores(weights_of(kind), prompt + completion.tokens)[len(prompt) - 1 : -1]
        wanted = found[np.arange(20), completion.tokens]
        np.testing.assert_allclose(completion.log_probs, wanted, atol=2e-4)
        assert completion.log_probs.min() < -1.0, "it was free to choose"


def test_log_probabilities_are_of_the_distribution_drawn_from():
    """With temperature and top-k: the model's, sharpened and cut."""
    sampling = Sampling(max_new=6, temperature=0.5, top_k=3, seed=1)
    for prompt, completion in zip(PROMPTS, generate(CONFIG, weights_of("plain"), PROMPTS, sampling), strict=True):
        found = scores(weights_of("plain"), prompt + completion.tokens)[len(prompt) - 1 : -1] / 0.5
        for row, token, score in zip(found, completion.tokens, completion.log_probs, strict=True):
            kept = np.where(row >= np.sort(row)[-3], row, -np.inf)
            np.testing.assert_allclose(score, row[token] - np.logaddexp.reduce(kept), atol=5e-4)


@pytest.mark.parametrize("kind", ["plain", "int8 under lora"])
def test_a_batch_is_each_prompt_alone(kind):
    alone = [generate(CONFIG, weights_of(kind), [prompt], Sampling(max_new=20))[0] for prompt in PROMPTS]
    assert [c.tokens for c in alone] == [c.tokens for c in completed(kind, Sampling(max_new=20))]


def test_the_seed_alone_decides():
    """Not the other prompts, their number or lengths, nor how much more may be drawn."""
    wanted = completed()
    others = [PROMPTS[0], [1] * 16, [2, 2], [9, 9, 9]]
    weights = weights_of("plain")
    assert generate(CONFIG, weights, others, FREE)[0].tokens == wanted[0].tokens
    assert generate(CONFIG, weights, PROMPTS, FREE)[2].tokens == wanted[2].tokens
    shorter = Sampling(max_new=7, temperature=1.0, seed=3)
    assert [c.tokens for c in generate(CONFIG, weights, PROMPTS, shorter)] == [c.tokens[:7] for c in wanted]
    another = Sampling(max_new=20, temperature=1.0, seed=4)
    assert all(a.tokens != b.tokens for a, b in zip(completed("plain", another), wanted, strict=True))
    same = generate(CONFIG, weights, [PROMPTS[0]] * 3, FREE)
    assert len({tuple(c.tokens) for c in same}) == 3, "equal prompts of a batch are completed differently"


@pytest.mark.parametrize("max_new", [1, 16, 17])
def test_so_many_tokens_and_no_more(max_new):
    found = generate(CONFIG, weights_of("plain"), PROMPTS, Sampling(max_new=max_new, temperature=1.0, seed=3))
    for completion, wanted in zip(found, completed(), strict=True):
        assert completion.tokens == wanted.tokens[:max_new] and completion.reason == "length"
        assert len(completion.log_probs) == max_new


def test_a_mesh_changes_nothing():
    """Weights cut over data, fsdp and tensor axes, and rows that the mesh does not divide."""
    mesh = shard.make_mesh(shard.MeshShape(2, 2, 2))
    places = shard.shardings(params.filled(decoder.specs(CONFIG)), mesh)
    with jax.set_mesh(mesh):
        found = generate(CONFIG, jax.device_put(weights_of("plain"), places), PROMPTS, FREE)
    for completion, whole in zip(found, completed(), strict=True):
        assert completion.tokens == whole.tokens
        np.testing.assert_allclose(completion.log_probs, whole.log_probs, atol=1e-3)


@pytest.mark.parametrize("tied", [False, True])
def test_sixteen_bit_models_write_sixteen_bit_caches(tied):
    config = dataclasses.replace(CONFIG, dtype="bfloat16", tied=tied)
    weights = params.init(decoder.specs(config), jax.random.key(0))
    each = jnp.zeros(2, jnp.int32)

    def shapes(weights):
        state = begin(config, 2, 32)
        read = prefill(config, weights, jnp.ones((2, 16), jnp.int32), each + 3)
        sat = place(state, read, Seats(each, each, each, each, each), jax.random.key(0))
        return state, read, sat, decode(config, weights, sat, each > 0, FREE, each, 4)[0]

    state, read, *later = jax.eval_shape(shapes, weights)
    assert state.kv["all"][0].dtype == read.kv["all"][0].dtype == read.logits.dtype == jnp.bfloat16
    assert state.kv["all"][0].shape == (2, 2, 2, 32, 8)
    assert all(changed == state for changed in later), "every array keeps its type and shape, as a loop's must"


def an_end():
    """A token that the second prompt's completion has, but not among its first six."""
    row = completed()[1].tokens
    return next(token for token in row[6:8] if row.index(token) >= 6)


def test_an_end_token_ends_its_row_only():
    wanted, end = completed(), an_end()
    found = generate(CONFIG, weights_of("plain"), PROMPTS, FREE, ends=(end,))
    reasons = set()
    for completion, whole in zip(found, wanted, strict=True):
        reasons.add(completion.reason)
        if end in whole.tokens:
            at = whole.tokens.index(end)
            assert completion.reason == "end" and completion.tokens == whole.tokens[:at]
            np.testing.assert_allclose(completion.log_probs, whole.log_probs[: at + 1], atol=1e-5)
        else:
            assert completion.reason == "length" and completion.tokens == whole.tokens
    assert "end" in reasons and found[1].reason == "end"


def test_token_zero_is_a_token():
    """It also fills the room behind finished rows, and must be told from that."""
    weights = weights_of("plain")
    tried = [Sampling(max_new=20, temperature=1.0, seed=seed) for seed in range(20)]
    sampling = next(s for s in tried if any(0 in row.tokens[:15] for row in completed("plain", s)))
    found = completed("plain", sampling)
    assert all(len(c.tokens) == 20 for c in found)
    for completion, whole in zip(generate(CONFIG, weights, PROMPTS, sampling, ends=(0,)), found, strict=True):
        assert completion.tokens == (whole.tokens[: whole.tokens.index(0)] if 0 in whole.tokens else whole.tokens)


def first_at(row, start, length):
    """A piece of a row's text that is found nowhere before."""
    text = text_of(row.tokens)
    piece = text[start : start + length]
    assert text.find(piece) == start, "choose another seed"
    return piece


@pytest.mark.parametrize("start, length", [(10, 2), (9, 4), (31, 4), (30, 6), (35, 4)])
def test_a_stop_string_is_cut_off(start, length):
    """On a token's border and within tokens; 32 characters are a chunk, so some lie across two of them."""
    wanted = completed()
    piece = first_at(wanted[1], start, length)
    stop = stops_at([piece, "never this"], text_of)
    found = generate(CONFIG, weights_of("plain"), PROMPTS, FREE, stop=stop)
    for completion, whole in zip(found, wanted, strict=True):
        at = text_of(whole.tokens).find(piece)
        cut = None if at < 0 else at // 2
        assert completion.tokens == whole.tokens[:cut]
        assert completion.reason == ("length" if at < 0 else "stop")
        np.testing.assert_allclose(completion.log_probs, whole.log_probs[:cut], atol=1e-5)
    assert found[1].reason == "stop" and len(found[1].tokens) == start // 2


def test_the_first_of_several_stops_and_ends_counts():
    whole = completed()[1]
    early, late = first_at(whole, 8, 3), first_at(whole, 16, 3)
    end = an_end()
    at = whole.tokens.index(end)

    def one(stop, ends):
        return generate(CONFIG, weights_of("plain"), PROMPTS, FREE, stop=stops_at(stop, text_of), ends=ends)[1]

    found = one([late, early], ())
    assert (found.tokens, found.reason) == (whole.tokens[:4], "stop")
    found = one([late], (end,))
    assert (found.tokens, found.reason) == (whole.tokens[:at], "end"), "what stands behind the end is not text"
    found = one([text_of([end, 0])], (end,))
    assert (found.tokens, found.reason) == (whole.tokens[:at], "end"), "nor is the end itself, or the room behind it"
    found = one([early], (end,))
    assert (found.tokens, found.reason) == (whole.tokens[:4], "stop")


@pytest.mark.parametrize(
    "tokens, strings, wanted",
    [
        ([1, 2, 3], ["03"], 2),
        ([1, 2, 3], ["20"], 1),  # begins within the second token
        ([1, 2, 3], ["01"], 0),
        ([1, 2, 3], ["9"], None),
        ([1, 2, 3], ["03", "02"], 1),
        ([], ["0"], None),
        ([1, 2, 3], [], None),
    ],
)
def test_where_a_stop_cuts(tokens, strings, wanted):
    assert stops_at(strings, text_of)(tokens) == wanted


def test_a_stop_keeps_tokens_that_say_nothing():
    """As many tokens as end before it: one without text of its own does."""
    words = {1: "ab", 2: "", 3: "!"}
    assert stops_at(["!"], lambda ids: "".join(words[i] for i in ids))([1, 2, 3]) == 2


def test_the_stream_grows_into_the_result():
    seen = list(stream(CONFIG, weights_of("plain"), PROMPTS, FREE))
    assert len(seen) == -(-FREE.max_new // CHUNK) == 2
    for earlier, later in zip(seen, seen[1:], strict=False):
        for a, b in zip(earlier, later, strict=True):
            assert b.tokens[: len(a.tokens)] == a.tokens and len(b.tokens) > len(a.tokens)
            np.testing.assert_array_equal(b.log_probs[: len(a.tokens)], a.log_probs)
    assert [c.tokens for c in seen[-1]] == [c.tokens for c in completed()]
    assert [len(c.tokens) for c in seen[0]] == [CHUNK] * 3


def test_a_stopped_row_stays_as_it_is_while_others_go_on():
    piece = first_at(completed()[1], 6, 4)
    stop = stops_at([piece], text_of)
    first, last = stream(CONFIG, weights_of("plain"), PROMPTS, FREE, stop=stop)
    assert first[1].tokens == last[1].tokens == completed()[1].tokens[:3] and last[1].reason == "stop"
    assert len(last[0].tokens) == 20


def seated(lengths, most):
    """A batch of as many rows as there are prompts of these lengths."""
    each = np.arange(len(lengths), dtype=np.int32)
    read = _prefill(CONFIG, weights_of("plain"), np.ones((4, 16), np.int32), np.array(lengths, np.int32))
    seats = Seats(each, each, each, each, np.array(most, np.int32))
    return _place(_begin(CONFIG, 4, 48), read, seats, jax.random.key(0))


def test_only_rows_that_go_on_are_waited_for():
    """Neither for those that are full, nor for those that have ended, nor for those that nobody wants any more."""
    sampling = dataclasses.replace(FREE, max_new=1, seed=0)
    live = np.array([True, False, True, True])

    def after(most, ends=(-1,) * 40):
        state, ends = seated([3, 1, 16, 2], most), np.array(ends, np.int32)
        state, tokens, log_probs = _decode(CONFIG, weights_of("plain"), state, live, sampling, ends, CHUNK)
        assert tokens.shape == log_probs.shape == (4, 16)
        return int(state.clock), state.left.tolist()

    assert after([40, 40, 40, 40]) == (16, [24, 0, 24, 24])
    assert after([2, 40, 1, 0]) == (LOOK, [0] * 4)
    assert after([LOOK + 1, 40, 1, 2]) == (2 * LOOK, [0] * 4)
    assert after([40] * 4, tuple(range(CONFIG.vocab))) == (LOOK, [0] * 4)
    assert after([0] * 4) == (0, [0] * 4)


def test_on_a_gpu_it_is_looked_once_and_nothing_else_changes(monkeypatch):
    """A look is a wait of the host: a chunk is begun if anybody wants it, and then written to its end."""
    sampling = dataclasses.replace(FREE, max_new=1, seed=0)
    live, ends = jnp.ones(4, bool), jnp.array([2], jnp.int32)

    def after(most):
        def write(state):  # traced anew each time
            return decode(CONFIG, weights_of("plain"), state, live, sampling, ends, CHUNK)

        return jax.jit(write)(seated([3, 1, 16, 2], most))

    here = after([40] * 4)
    monkeypatch.setattr("jaxpost.sample.decode.platform", lambda: "gpu")
    there = after([40] * 4)
    assert (here[0].clock, here[0].left.tolist()) == (there[0].clock, there[0].left.tolist())
    np.testing.assert_array_equal(here[1], there[1])
    np.testing.assert_array_equal(here[2], there[2])
    assert int(after([1] * 4)[0].clock) == CHUNK and int(after([0] * 4)[0].clock) == 0
    names = [e.primitive.name for e in equations(jax.make_jaxpr(lambda: after([40] * 4))().jaxpr)]
    assert names.count("cond") == 1


def test_it_ends_when_all_rows_have_ended():
    every = tuple(range(CONFIG.vocab))
    seen = list(stream(CONFIG, weights_of("plain"), PROMPTS, FREE, ends=every))
    assert len(seen) == 1 and all(c.tokens == [] and c.reason == "end" and len(c.log_probs) == 1 for c in seen[0])


def test_nothing_to_complete():
    assert generate(CONFIG, weights_of("plain"), [], FREE) == []


def test_what_does_not_fit_is_refused():
    with pytest.raises(Fault, match="prompt 1 is empty; give at least one token"):
        generate(CONFIG, weights_of("plain"), [[1], []], FREE)
    with pytest.raises(Fault, match="a prompt of 45 tokens with 20 new ones exceeds the model's 64 positions"):
        generate(CONFIG, weights_of("plain"), [[1], [1] * 45], FREE)


def test_the_last_position_can_be_used():
    prompt = list(np.random.default_rng(0).integers(1, 40, 44))
    (completion,) = generate(CONFIG, weights_of("plain"), [prompt], Sampling(max_new=20))
    found = scores(weights_of("plain"), prompt + completion.tokens)[len(prompt) - 1 : -1]
    assert found.argmax(axis=1).tolist() == completion.tokens and len(completion.tokens) == 20


def test_programs_are_shared_by_batches_of_similar_size():
    """Seeds, prompts, their number and length, and the number of new tokens compile nothing within a power of two."""
    weights = weights_of("plain")
    generate(CONFIG, weights, PROMPTS, FREE)
    before = _prefill._cache_size(), _decode._cache_size()
    for seed, prompts, max_new in [
        (1, PROMPTS, 20),
        (2, [[4] * 16, [3], [2], [1]], 17),
        (3, [[4] * n for n in (1, 2, 3)], 32),
    ]:
        generate(CONFIG, weights, prompts, Sampling(max_new=max_new, temperature=1.0, seed=seed))
    assert (_prefill._cache_size(), _decode._cache_size()) == before
    generate(CONFIG, weights, PROMPTS, Sampling(max_new=20, temperature=0.5))
    assert (_prefill._cache_size(), _decode._cache_size()) == (before[0], before[1] + 1)


@pytest.mark.parametrize("kv, most", [("int8", 0.02), ("fp8", 0.1)])
def test_a_cache_of_eight_bits_says_nearly_the_same(kv, most):
    """Log-probabilities of what was drawn, against one pass in which nothing is stored in eight bits."""
    weights, sampling = weights_of("plain"), dataclasses.replace(FREE, kv=kv)
    state = jax.eval_shape(lambda: begin(CONFIG, 3, 48, kv))
    own = jax.eval_shape(lambda: begin(CONFIG, 3, 48))
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.kv)) < sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(own.kv)
    )
    off = []
    for prompt, completion in zip(PROMPTS, generate(CONFIG, weights, PROMPTS, sampling), strict=True):
        found = scores(weights, prompt + completion.tokens)[len(prompt) - 1 : -1]
        off.append(completion.log_probs - found[np.arange(20), completion.tokens])
    off = np.abs(np.concatenate(off))
    assert 1e-4 < off.mean() < most, "rounded, and not by much"
