# SPDX-License-Identifier: Apache-2.0
"""Prompts and prefixes: what stands in reserved places, through whole models; where it starts from; how much it is."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, params, trees
from jaxpost.delta.prompt import learned, nearest
from jaxpost.faults import Fault
from jaxpost.models import decoder
from jaxpost.models.presets import PRESETS
from jaxpost.recipes.assembly import _given
from jaxpost.sample import Sampling, generate
from tests.laws.models import base_of, small

PLACES = 3
TEXT = [3, 1, 4]
ENCODE = {"pi": TEXT, "one": [1], "two words": [5, 6], "long": [7, 8, 9, 10, 11], "": []}
METHODS = {
    "prompt": delta.Prompt(PLACES),
    "lstm": delta.Ptuning(PLACES, hidden=6),
    "mlp": delta.Ptuning(PLACES, "mlp"),
    "prefix": delta.Prefix(PLACES),
    "network": delta.Prefix(PLACES, hidden=5),
}
WRITTEN = ("lstm", "network")
"""Those that a network writes; what holds for them, with fewer steps, holds for the others."""
VIRTUAL = [-1, -2, -3]


def model(family="plain", **changes):
    return replace(small(family=family), max_length=32, **changes)


def given(config, base, seed=0, read=None):
    return _given(config, base, jax.random.key(seed), ENCODE.__getitem__, read)


def begun(method, config=None, base="float32", seed=0, **options):
    """A delta as a run would start it."""
    config = config or model()
    start = params.init(method(decoder.specs(config)), jax.random.key(seed))
    return jax.jit(lambda start, base: method.start(start, given(config, base, seed, **options)))(
        start, base_of(config, base)
    )


def shaken(method, config=None, seed=0):
    """A delta away from its start, so large that it matters."""
    made = begun(method, config, seed=seed)
    leaves, form = jax.tree.flatten(made)
    keys = jax.random.split(jax.random.key(seed + 7), len(leaves))
    drawn = [x + 0.5 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(form, drawn)


@functools.partial(jax.jit, static_argnums=0)
def logits(config, weights, tokens):
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return decoder.logits(config, weights, tokens, decoder.rows(tokens, jnp.ones_like(places), places, 1))


@functools.partial(jax.jit, static_argnums=0)
def by_hand(config, weights, rows, tokens):
    x = jnp.concatenate([rows, decoder.embed(config, weights, tokens)], axis=1)
    place = jnp.arange(x.shape[1])[None]
    hidden, _ = decoder.trunk(config, weights, x, decoder.Rows(jnp.ones_like(place), place))
    return decoder.head(config, weights, hidden)


def ids(*rows):
    return jnp.asarray(rows, jnp.int32)


@pytest.mark.parametrize("family, base", [("windows", "int8"), ("learned positions", "float32")])
def test_started_from_text_they_do_what_the_text_does(family, base):
    """Scaled embeddings, windows, turned keys, learned positions: a prompt is what the blocks read, a prefix is what
    attention meets, whatever the family does before."""
    config = model(family)
    weights = base_of(config, base)
    wanted = logits(config, weights, ids([*TEXT, 9, 2, 6, 5]))[:, PLACES:]
    plain = logits(config, weights, ids([9, 2, 6, 5]))
    assert np.abs(np.asarray(wanted - plain)).max() > 1e-2
    for method in (delta.Prompt(PLACES, "text", "pi"), delta.Prefix(PLACES, init="text", text="pi")):
        bound = delta.bind(weights, begun(method, config, base))
        found = logits(config, bound, ids([*VIRTUAL, 9, 2, 6, 5]))[:, PLACES:]
        np.testing.assert_allclose(found, wanted, atol=2e-4)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_prompt_is_its_rows_in_front_of_the_embeddings(name):
    config = model()
    weights, made = base_of(config, "float32"), shaken(METHODS[name])
    found = logits(config, delta.bind(weights, made), ids([*VIRTUAL, 9, 2, 6]))
    folded = jax.jit(delta.fold)(weights, made)
    np.testing.assert_allclose(logits(config, folded, ids([*VIRTUAL, 9, 2, 6])), found, atol=1e-5)
    if "prompt" not in delta.spread(made):
        return
    rows = learned(made, "")[None]
    np.testing.assert_allclose(by_hand(config, weights, rows, ids([9, 2, 6])), found, atol=1e-5)


@pytest.mark.parametrize("name", WRITTEN)
def test_every_number_of_them_has_a_gradient_and_none_is_fixed(name):
    config, made = model(), shaken(METHODS[name])
    weights = base_of(config, "float32")
    trainable, fixed = delta.partition(made)
    whole = delta.combine(trainable, fixed)
    assert not jax.tree.leaves(fixed) and jax.tree.structure(whole) == jax.tree.structure(made)

    @jax.jit
    @jax.grad
    def slopes(part):
        found = logits(config, delta.bind(weights, delta.combine(part, fixed)), ids([*VIRTUAL, 9, 2, 6]))
        return jnp.sum(jax.nn.log_softmax(found)[0, PLACES:, 1])

    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes(trainable)):
        assert np.linalg.norm(leaf) > 1e-7, trees.path_of(path)


@pytest.mark.parametrize("name, place", [("prompt", "before"), ("prefix", "between")])
def test_written_token_by_token_as_in_one_pass(name, place):
    """Prompts of unequal lengths, each with its places; what is drawn has the probability of the whole text's pass."""
    config = model("windows")
    bound = delta.bind(base_of(config, "float32"), shaken(METHODS[name], config))
    texts = [[9, 2, 6, 5], [3, 8]]
    prompts = [VIRTUAL + text if place == "before" else text + VIRTUAL for text in texts]
    for prompt, done in zip(prompts, generate(config, bound, prompts, Sampling(6, temperature=1.0)), strict=True):
        whole = jax.nn.log_softmax(logits(config, bound, ids(prompt + done.tokens)))[0]
        at = np.arange(len(prompt) - 1, len(prompt) + 5)
        np.testing.assert_allclose(done.log_probs, whole[at, jnp.asarray(done.tokens)], atol=1e-4)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_many_tasks_in_one_batch_are_each_alone(name):
    """Logits, gradients and samples of a batch whose examples have prompts of their own, or none."""
    config = model()
    weights, specs = base_of(config, "float32"), decoder.specs(config)
    tasks = [shaken(METHODS[name], seed=seed) for seed in range(3)]
    bank, chosen = delta.bank(tasks, specs), jnp.array([2, 0, 1, 0])
    tokens = ids(*([*VIRTUAL, 9, 2, 6, 5 + i] for i in range(4)))

    def likelihood(bank):
        found = jax.nn.log_softmax(logits(config, delta.bind(weights, delta.at(bank, chosen, specs)), tokens))
        return jnp.sum(found[:, PLACES:, 1]), found

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def alone(task, mine):
        found = jax.nn.log_softmax(logits(config, delta.bind(weights, task), tokens))
        return jnp.sum(found[:, PLACES:, 1] * mine[:, None]), found

    (_, mixed), gradient = jax.jit(jax.value_and_grad(likelihood, has_aux=True))(bank)
    for number, task in enumerate(tasks):
        (_, found), wanted = alone(task, chosen == number)
        np.testing.assert_allclose(mixed[chosen == number], found[chosen == number], atol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), delta.pick(gradient, number, specs), wanted
        )
    prompts, sampling = tokens.tolist(), Sampling(4)
    together = generate(config, delta.bind(weights, delta.at(bank, chosen, specs)), prompts, sampling)
    for i, task in enumerate(chosen.tolist()):
        (by_itself,) = generate(config, delta.bind(weights, tasks[task]), [prompts[i]], sampling)
        assert together[i].tokens == by_itself.tokens


def test_where_a_prompt_starts_from():
    config = model(embed_scale=3.0)
    table = 3.0 * np.asarray(base_of(config, "float32")["embed"])

    def rows(**options):
        return np.asarray(learned(begun(delta.Prompt(**{"tokens": 4, **options}), config), ""))

    drawn = rows(most=5)
    assert all((np.abs(table[:5] - row).sum(axis=1) < 1e-5).any() for row in drawn)
    assert len(np.unique(drawn, axis=0)) == 4 and len(rows(tokens=7, most=2)) == 7
    np.testing.assert_allclose(rows(init="text", text="pi"), table[[3, 1, 4, 3]], rtol=1e-6)
    np.testing.assert_allclose(rows(init="text", text="long"), table[[7, 8, 9, 10]], rtol=1e-6)
    named = rows(init="labels", labels=("one", "two words"))
    np.testing.assert_allclose(named[:2], [table[1], (table[5] + table[6]) / 2], rtol=1e-6)
    assert all((np.abs(table - row).sum(axis=1) < 1e-5).any() for row in named[2:])
    size = np.sqrt(np.mean(np.square(rows(tokens=200, init="random"))) / np.mean(np.square(table)))
    assert 0.9 < size < 1.1


def test_a_prompt_starts_from_that_of_another_run():
    source = shaken(METHODS["mlp"], seed=3)
    method = delta.Prompt(PLACES, from_run="runs/other")
    found = learned(begun(method, read={"runs/other": source}.__getitem__), "")
    np.testing.assert_allclose(found, learned(source, ""), rtol=1e-5)
    with pytest.raises(Fault, match=r"from_run runs/other: its prompt is \(3, 8\), and this one \(5, 8\)"):
        begun(replace(method, tokens=5), read=lambda name: source)
    with pytest.raises(Fault, match="has learned no prompt .it tuned layers/attn/prefix_k"):
        begun(method, read=lambda name: begun(delta.Prefix(2)))


@pytest.mark.parametrize(
    "method, said",
    [
        (delta.Prompt(0), "tokens must be at least 1"),
        (delta.Prompt(init="text"), "needs a text.*delta.text"),
        (delta.Prompt(2, "labels", labels=("a", "b", "c")), "1 to 2 labels.*has 3"),
        (delta.Prompt(most=0), "most is 0"),
        (delta.Prefix(0), "tokens is 0"),
        (delta.Prefix(init="text", text="pi", hidden=4), "delta.hidden 0"),
        (delta.Ptuning(hidden=-1), "hidden is -1"),
        (delta.Prompt(init="text", text=" "), "' ' has no tokens"),
    ],
)
def test_what_makes_no_sense_is_said(method, said):
    with pytest.raises(Fault, match=said):
        config = model()
        start = params.init(method(decoder.specs(config)), jax.random.key(0))
        method.start(start, _given(config, base_of(config, "float32"), jax.random.key(0), lambda text: [], None))


@pytest.mark.parametrize("base", ["float32", "int8"])
def test_the_nearest_words_of_words_are_themselves(base):
    config = model()
    weights = base_of(config, base)
    words = 0.1 * learned(begun(delta.Prompt(PLACES, "text", "pi"), config, base), "")
    found, cosines = nearest(words, weights["embed"], 4)
    assert found.shape == (PLACES, 4) and found[:, 0].tolist() == TEXT
    np.testing.assert_allclose(cosines[:, 0], 1.0, atol=1e-5)
    assert (np.diff(np.asarray(cosines), axis=1) <= 0).all()


def test_how_much_the_literature_says_it_is():
    """Lester et al. 2021, figure 4: below 0.01 % for models of billions; P-tuning v2: 0.01 to 3 %."""
    specs = decoder.specs(PRESETS["llama-2-7b"])

    def share(method):
        return 100 * params.count(method(specs)) / params.count(specs)

    assert round(share(delta.Prompt(100)), 3) == 0.006
    assert 0.01 < share(delta.Prefix(5)) < share(delta.Prefix(100)) < share(delta.Prefix(700)) < 3
    assert params.count(delta.Prefix(20)(specs)) == 20 * 32 * 2 * 4096
