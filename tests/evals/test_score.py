# SPDX-License-Identifier: Apache-2.0
"""Likelihoods against a log-softmax written out, for any batching, before and after an edit, on one device and on
eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import params
from jaxpost.data.batches.packing import Shifted, lay
from jaxpost.delta import Insert, Lora, bind
from jaxpost.evals.score import Scorer, row_sums, token_stats
from jaxpost.faults import Fault
from jaxpost.kernels.attention import Rows
from jaxpost.models.decoder import Decoder, logits, specs
from jaxpost.shard import MeshShape, make_mesh, shardings

CONFIG = Decoder(vocab=32, d=16, layers=2, heads=2, kv_heads=1, head_size=8, ffn=24, max_length=64)


@pytest.fixture(scope="module")
def weights():
    plain = jax.jit(lambda: params.init(specs(CONFIG), jax.random.key(0)))()
    return jax.tree.map(lambda w: w * 8, plain)  # sharp enough that likelihoods differ


@jax.jit
def _table(weights, ids):
    rows = Rows(jnp.ones_like(ids), jnp.arange(ids.size, dtype=jnp.int32)[None])
    return jax.nn.log_softmax(logits(CONFIG, weights, ids, rows)[0])


def table(weights, ids) -> np.ndarray:
    """Log-probabilities of every next token of one text, `[n, v]`; what follows it does not matter."""
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(ids)] = ids
    return np.asarray(_table(weights, padded))[: len(ids)]


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    return [(rng.integers(1, 32, n).tolist(), rng.integers(1, 32, m).tolist()) for n, m in
            [(3, 1), (40, 4), (7, 2), (1, 5), (12, 3), (0, 3), (33, 9)]]  # fmt: skip


def by_hand(weights, prompt, completion) -> float:
    ids = np.array([*prompt, *completion], np.int32)
    logprobs = table(weights, ids)
    return sum(float(logprobs[i - 1, ids[i]]) for i in range(max(1, len(prompt)), len(ids)))


def test_scores_are_sums_of_log_softmax(weights, pairs):
    found = Scorer(CONFIG, rows=3).score(weights, pairs)
    np.testing.assert_allclose(found.logprobs, [by_hand(weights, *pair) for pair in pairs], rtol=1e-5)
    assert found.counts.tolist() == [1, 4, 2, 5, 3, 2, 9]  # behind an empty prompt the first token has no score
    assert found.cut == 0
    assert np.ptp(found.logprobs) > 1


@pytest.mark.parametrize("rows", [1, 8])
def test_batching_changes_no_score(weights, pairs, rows):
    once = Scorer(CONFIG, rows=3).score(weights, pairs)
    np.testing.assert_allclose(Scorer(CONFIG, rows=rows).score(weights, pairs).logprobs, once.logprobs, rtol=1e-5)
    backwards = Scorer(CONFIG, rows=3).score(weights, pairs[::-1])
    np.testing.assert_allclose(backwards.logprobs[::-1], once.logprobs, rtol=1e-5)


def test_before_and_after_share_few_programs(weights, pairs):
    delta = Lora(rank=2, targets=("q", "v"))(specs(CONFIG))
    fresh = params.init(delta, jax.random.key(1))
    tuned = jax.tree.map(lambda leaf: leaf + 0.3, fresh)
    scorer = Scorer(CONFIG, rows=2, length=48)
    known = row_sums._cache_size()
    before = scorer.over(bind(weights, fresh))(pairs)
    programs = row_sums._cache_size()
    assert programs == known + 2  # two lengths: 32, and 47 for what is longer
    after = scorer.over(bind(weights, tuned))(pairs)
    assert row_sums._cache_size() == programs
    np.testing.assert_allclose(before.logprobs, scorer.score(weights, pairs).logprobs, rtol=1e-5)
    assert not np.allclose(before.logprobs, after.logprobs, rtol=1e-2)


def test_a_long_prompt_loses_its_beginning_and_is_counted(weights):
    prompt, completion = list(range(1, 31)), [5, 6]
    found = Scorer(CONFIG, rows=1, length=12).score(weights, [(prompt, completion), ([3], [4])])
    assert found.cut == 1
    assert found.logprobs[0] == pytest.approx(by_hand(weights, prompt[-10:], completion), rel=1e-5)


@pytest.mark.parametrize("at", [0, 45])
def test_a_prompt_that_is_cut_keeps_its_reserved_places(weights, at):
    rng = np.random.default_rng(1)
    text, completion = rng.integers(1, 32, 70).tolist(), [5, 6, 7]
    kept = text[-59:]  # beside two places and three tokens of the completion
    prompted = bind(weights, {"prompt": Insert(8 * jax.random.normal(jax.random.key(3), (2, 16)))})
    long, wanted = [*text[:at], -1, -2, *text[at:]], [*kept[: max(0, at - 11)], -1, -2, *kept[max(0, at - 11) :]]
    found = [Scorer(CONFIG, 1).score(prompted, [(prompt, completion)]) for prompt in (long, wanted)]
    assert [one.cut for one in found] == [1, 0] and found[0].logprobs == found[1].logprobs
    with pytest.raises(Fault, match="has 63 tokens, but there is room for 1 to 61"):
        Scorer(CONFIG, 1).score(prompted, [([-1, -2], [5] * 63)])


def test_the_model_s_own_limit_holds(weights):
    assert Scorer(CONFIG, length=1000).limit == 64


@pytest.mark.parametrize("completion", [[], list(range(12))])
def test_a_completion_that_does_not_fit_is_a_fault(weights, completion):
    with pytest.raises(Fault, match=f"has {len(completion)} tokens.*1 to 11"):
        Scorer(CONFIG, rows=1, length=12).score(weights, [([1, 2], completion)])


def test_sizes_of_a_scorer_are_checked():
    with pytest.raises(Fault, match="rows=0"):
        Scorer(CONFIG, rows=0)


def test_token_stats_weigh_every_token_the_same(weights):
    rng = np.random.default_rng(1)

    def example(size, trained):
        ids = rng.integers(1, 32, size + 1).astype(np.int32)
        mask = np.zeros(size, np.float32)
        mask[size - trained :] = 1
        return Shifted(ids[:-1], ids[1:], mask)

    examples = [example(9, 3), example(5, 5), example(14, 1)]
    packed = [lay(examples[:2], 16, 0), lay(examples[2:], 16, 0)]
    batches = [{name: row[name][None] for name in row} for row in packed]
    stats = token_stats(CONFIG, weights, batches)
    nll = hits = 0
    for x in examples:
        logprobs = table(weights, x.inputs)
        nll -= np.sum(logprobs[np.arange(len(x.targets)), x.targets] * x.mask)
        hits += np.sum((np.argmax(logprobs, -1) == x.targets) * x.mask)
    assert stats.count == 9
    assert stats.loss == pytest.approx(nll / 9, rel=1e-5)
    assert stats.accuracy == pytest.approx(hits / 9)
    assert stats.perplexity == pytest.approx(np.exp(nll / 9), rel=1e-4)


def test_nothing_to_predict_is_a_fault(weights):
    empty = {name: row[None] for name, row in lay([], 8, 0).items()}
    with pytest.raises(Fault, match="no token to predict"):
        token_stats(CONFIG, weights, [empty])


def test_a_hopeless_model_has_infinite_perplexity(weights):
    batch = {name: row[None] for name, row in lay([Shifted(*(np.ones(4, t) for t in "iif"))], 8, 0).items()}
    stats = token_stats(CONFIG, weights | {"head": weights["head"] * 1e6}, [batch])
    assert stats.loss > 1000 and stats.perplexity == np.inf


def test_a_mesh_changes_no_score(weights, pairs):
    alone = Scorer(CONFIG, rows=8).score(weights, pairs)
    mesh = make_mesh(MeshShape(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        spread = jax.device_put(weights, shardings(params.filled(specs(CONFIG)), mesh))
        found = Scorer(CONFIG, rows=8).score(spread, pairs)
    np.testing.assert_allclose(found.logprobs, alone.logprobs, rtol=1e-4)
