# SPDX-License-Identifier: Apache-2.0
"""Whoever sits where and whenever, a completion is the same: rows are refilled, prompts read once, layers apart."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, params, trees
from jaxpost.delta.bank import Bank
from jaxpost.delta.contract import Bound
from jaxpost.faults import Fault
from jaxpost.kernels.linear_xent import linear_xent
from jaxpost.losses import cross_entropy
from jaxpost.models import decoder
from jaxpost.models.architecture import Decoder, Layer
from jaxpost.sample import Sampling, engine, generate, merged
from jaxpost.sample.engine import Engine

CONFIG = Decoder(vocab=40, d=16, layers=2, heads=4, kv_heads=2, head_size=8, ffn=24, max_length=64,
                 pattern=(Layer(window=4), Layer()))  # fmt: skip
PROMPTS = [[7, 3, 9, 30, 2], [5], list(range(11, 27)), [4, 4]]
FREE = Sampling(max_new=20, temperature=1.0, seed=3)
ENDS, NEVER = (5, 9, 17), (-1, -2, -3)


@functools.cache
def base_of(config=CONFIG):
    flat = trees.flatten(params.init(decoder.specs(config), jax.random.key(0)))
    return trees.unflatten({p: x if x is None or "norm" in p else 8 * x for p, x in flat.items()})


def lora(seed):
    edits = params.init(delta.Lora(rank=2)(decoder.specs(CONFIG)), jax.random.key(seed))
    shapes = {path: edit.b.shape for path, edit in edits.items()}
    return {p: e.replace(b=0.3 * jax.random.normal(jax.random.key(seed), shapes[p])) for p, e in edits.items()}


def banked():
    """Two deltas in a bank, of which the prompts choose, the fourth none."""
    specs = decoder.specs(CONFIG)
    bank = delta.bank([lora(1), lora(2)], specs)
    return delta.bind(base_of(), delta.at(bank, jnp.array([1, 0, 0, -1]), specs))


@functools.cache
def whole():
    """All rows at once."""
    return generate(CONFIG, base_of(), PROMPTS, FREE, ends=ENDS, samples=2)


def assert_same(found, wanted):
    assert [(c.tokens, c.reason) for c in found] == [(c.tokens, c.reason) for c in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=2e-5)


def test_samples_of_a_prompt_stand_together_and_differ():
    found = whole()
    assert len(found) == 8 and {c.reason for c in found} == {"end", "length"}
    assert all((c.end in ENDS) == (c.reason == "end") == (len(c.log_probs) > len(c.tokens)) for c in found)
    assert len({tuple(c.tokens) for c in found}) == 8
    assert_same(generate(CONFIG, base_of(), PROMPTS, FREE, ends=ENDS, slots=2), found[::2])


@pytest.mark.parametrize("slots", [1, 2])
def test_however_few_rows_are_written_at_once(slots):
    """Rows are refilled while others go on, and the samples of a prompt come to sit at different times."""
    assert_same(generate(CONFIG, base_of(), PROMPTS, FREE, ends=ENDS, samples=2, slots=slots), whole())


def test_each_prompt_keeps_its_entry_of_a_bank_wherever_it_sits():
    found = generate(CONFIG, banked(), PROMPTS, FREE, ends=ENDS, slots=2)
    tuned = [delta.bind(base_of(), lora(seed)) for seed in (1, 2)]
    first, second = (generate(CONFIG, weights, PROMPTS, FREE, ends=ENDS, slots=2) for weights in tuned)
    base = whole()[::2]
    assert_same(found, [second[0], first[1], first[2], base[3]])
    assert all(len({tuple(c.tokens) for c in own}) == 3 for own in zip(first, second, base, strict=True)), "they matter"


def test_with_layers_apart():
    weights = banked()
    apart = Engine(CONFIG, weights, PROMPTS, FREE, ENDS, None, 1, 2, apart=True)
    for _ in apart.run():
        pass
    wanted = generate(CONFIG, weights, PROMPTS, FREE, ends=ENDS, slots=2)
    assert [(row.tokens, row.reason) for row in apart.rows] == [(c.tokens, c.reason) for c in wanted]
    for row, completion in zip(apart.rows, wanted, strict=True):
        np.testing.assert_allclose(row.log_probs, completion.log_probs, atol=2e-5)


def test_a_merged_copy_says_what_the_bound_weights_say():
    """In float32, where nothing is lost; banks and empty slots stay what they are."""
    bound = delta.bind(base_of(), lora(1))
    copy = merged(CONFIG, bound)
    assert not any(isinstance(w, Bound) for w in trees.flatten(copy).values())
    assert_same(
        generate(CONFIG, copy, PROMPTS, FREE, ends=ENDS, slots=2),
        generate(CONFIG, bound, PROMPTS, FREE, ends=ENDS, slots=2),
    )
    left = trees.flatten(merged(CONFIG, banked()))
    assert isinstance(left["layers/0/attn/q"].edit, Bank) and left["prompt"] is None


def counting(monkeypatch, name):
    """What a program is called with, while it does what it did."""
    calls, real = [], getattr(engine, name)
    monkeypatch.setattr(engine, name, lambda *args: calls.append(args) or real(*args))
    return calls


def test_a_prompt_is_read_once_for_all_its_samples(monkeypatch):
    reads = counting(monkeypatch, "_prefill")
    for slots in (None, 2):
        reads.clear()
        generate(CONFIG, base_of(), PROMPTS, FREE, ends=ENDS, samples=2, slots=slots)
        read = [tuple(row[:n]) for _, _, tokens, lengths, *_ in reads for row, n in zip(tokens, lengths, strict=True)]
        assert sorted(prompt for prompt in read if prompt != (0,)) == sorted(map(tuple, PROMPTS))


def test_no_row_is_left_empty_while_others_wait(monkeypatch):
    """Every chunk that is asked for has work for both rows, until none waits. A policy that never stops ends by
    length."""
    asked = counting(monkeypatch, "_decode")
    found = generate(CONFIG, base_of(), PROMPTS, FREE, ends=NEVER, samples=2, slots=2)
    assert all(c.reason == "length" and len(c.tokens) == len(c.log_probs) == 20 for c in found)
    assert [args[3].tolist() for args in asked] == [[True, True]] * 8, "two chunks for every two rows"
    asked.clear()
    generate(CONFIG, base_of(), PROMPTS, FREE, ends=ENDS, samples=2, slots=2)
    together = sum(-(-len(c.log_probs) // engine.CHUNK) for c in whole())
    assert sum(int(args[3].sum()) for args in asked) <= together + 2, "what was asked ahead, but for rows that ended"


@pytest.mark.parametrize("dtype, tolerance, temperature", [("float32", 1e-5, 1.0), ("bfloat16", 2e-2, 0.7)])
def test_the_trainer_gives_a_sample_the_probability_that_it_was_drawn_with(dtype, tolerance, temperature):
    """The loss of training, in chunks over packed rows, against decoding token by token: in 16 bits the two round
    differently."""
    config = dataclasses.replace(CONFIG, dtype=dtype)
    weights = params.init(decoder.specs(config), jax.random.key(0))
    weights = jax.tree.map(lambda x: 4 * x if x.ndim > 2 else x, weights)
    found = generate(config, weights, PROMPTS, dataclasses.replace(FREE, temperature=temperature), ends=ENDS, slots=2)
    tokens, segments, positions = np.zeros((3, 1, 160), np.int32)
    targets, mask, wanted, at = np.zeros((1, 160), np.int32), np.zeros((1, 160), bool), np.zeros((1, 160)), 0
    for number, (prompt, completion) in enumerate(zip(PROMPTS, found, strict=True), 1):
        text, start = prompt + completion.tokens, at + len(prompt) - 1
        here = slice(at, at + len(text))
        tokens[0, here], segments[0, here], positions[0, here] = text, number, np.arange(len(text))
        drawn = slice(start, start + len(completion.tokens))
        targets[0, drawn], mask[0, drawn] = completion.tokens, True
        wanted[0, drawn] = completion.log_probs[: len(completion.tokens)]
        at += len(text)
    assert mask.sum() > 30

    @jax.jit
    def losses(weights, tokens, segments, positions, targets):
        rows = decoder.rows(tokens, segments, positions)
        hidden, _ = decoder.trunk(config, weights, decoder.embed(config, weights, tokens), rows)
        part, contract = decoder.head_weights(config, weights), decoder.contract_head(config)
        scaled = lambda logits, targets: cross_entropy(logits / temperature, targets)  # noqa: E731
        return linear_xent(contract, scaled, part, hidden, targets, jnp.ones(targets.shape), chunk=64)[1]

    log_probs = -np.asarray(losses(weights, tokens, segments, positions, targets))
    np.testing.assert_allclose(wanted[mask], log_probs[mask], atol=tolerance)


def test_what_cannot_be_is_refused():
    with pytest.raises(Fault, match="^generate: samples is 0; it must be at least 1$"):
        generate(CONFIG, base_of(), PROMPTS, FREE, samples=0)
    with pytest.raises(Fault, match="^generate: slots is -2; it must be at least 1$"):
        generate(CONFIG, base_of(), PROMPTS, FREE, slots=-2)
    with pytest.raises(Fault, match="^prompt 1 is empty; give at least one token"):
        generate(CONFIG, base_of(), [[1], []], FREE, samples=2)


def test_sizes_are_few_and_little_is_spare():
    sizes = [engine.rounded(n) for n in range(1, 5000)]
    assert all(size >= n and size % 16 == 0 for n, size in enumerate(sizes, 1))
    assert all(size <= 1.25 * n + 15 for n, size in enumerate(sizes, 1)) and len(set(sizes)) < 40
    assert [engine.group(n) for n in (1, 2, 3, 4, 5, 8, 9, 32, 33, 64)] == [1, 1, 4, 4, 4, 4, 16, 16, 64, 64]


def test_long_lists_of_prompts_are_read_in_pieces(monkeypatch):
    reads = counting(monkeypatch, "_prefill")
    monkeypatch.setattr(engine, "READ", 64)
    assert_same(generate(CONFIG, base_of(), PROMPTS, FREE, ends=ENDS, samples=2), whole())
    assert max(tokens.size for _, _, tokens, *_ in reads) <= 64
