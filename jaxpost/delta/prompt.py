# SPDX-License-Identifier: Apache-2.0
"""Soft prompts: rows that stand before the text as if they were embeddings of tokens (Lester et al. 2021,
https://arxiv.org/abs/2104.08691)."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxpost import trees
from jaxpost.arrays import Array, Float, Int, Tree
from jaxpost.delta.bind import Delta, spread
from jaxpost.delta.contract import Weight, dense
from jaxpost.delta.insert import Insert
from jaxpost.delta.method import Given, Method, Place
from jaxpost.faults import Fault
from jaxpost.params import constant


@dataclass(frozen=True)
class Prompt(Method):
    """Prompt tuning: `tokens` rows of the model's width, trained in float32. They are what the blocks read: where a
    family scales its embeddings (Gemma), these are as large as scaled ones.

    init: `vocabulary` draws words from the `most` first ids, which in most vocabularies are the most common (the paper:
    5,000); `text` takes the words of `text`, again and again or cut; `labels` one row for each of `labels`, the mean of
    its tokens, and words for the rest (the paper's best for classification); `random` numbers of the size that words
    have here (the paper's uniform [-0.5, 0.5] and PEFT's N(0, 1) suit embeddings of that size). `from_run` starts from
    what another run learned instead (Vu et al. 2022, https://arxiv.org/abs/2110.07904).
    """

    tokens: int = 20
    init: Literal["random", "vocabulary", "text", "labels"] = "vocabulary"
    text: str = ""
    labels: tuple[str, ...] = ()
    from_run: str = ""
    most: int = 5000
    place: Place = "before"

    @property
    def virtual(self) -> int:
        return self.tokens

    def __call__(self, specs: Tree) -> dict[str, Insert]:
        if self.most < 1:
            raise Fault(f"prompt: most is {self.most}; it counts the words to draw from, and must be at least 1")
        if self.init == "text" and not self.text and not self.from_run:
            raise Fault("prompt: init 'text' needs a text to start from; give delta.text")
        if self.init == "labels" and not 1 <= len(self.labels) <= self.tokens:
            raise Fault(f"prompt: init 'labels' needs 1 to {self.tokens} labels, a row each; delta.labels has "
                        f"{len(self.labels)}")  # fmt: skip
        return {"prompt": Insert(slot(specs, self.tokens))}

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.from_run,) if self.from_run else ()

    def start(self, delta: Delta, given: Given) -> Delta:
        """Without a way to read the other run, as where what was learned since takes its place, the rows stay zero."""
        shape = delta["prompt"].value.shape
        if not self.from_run:
            return {"prompt": Insert(self._drawn(given, shape).astype(jnp.float32))}
        if given.read is None:
            return delta
        rows = learned(given.read(self.from_run), f"delta.from_run {self.from_run}")
        if rows.shape != shape:
            raise Fault(
                f"delta.from_run {self.from_run}: its prompt is {rows.shape}, and this one {shape}; set delta.tokens "
                "to as many, over a base of that width"
            )
        return {"prompt": Insert(rows.astype(jnp.float32))}

    def _drawn(self, given: Given, shape: tuple[int, int]) -> Array:
        assert given.embed is not None, "what a prompt starts from is drawn from a model"
        vocabulary = jax.eval_shape(dense, given.base["embed"]).shape[0]
        count, most = self.tokens, min(self.most, vocabulary)
        if self.init == "random":
            words = given.embed(jnp.arange(most)).astype(jnp.float32)
            return jax.random.normal(given.key, shape) * jnp.sqrt(jnp.mean(jnp.square(words)))
        if self.init == "text":
            ids = encoded(given, self.text)
            return given.embed(jnp.resize(jnp.asarray(ids), (count,)))
        words = given.embed(jax.random.choice(given.key, most, (count,), replace=count > most))
        if self.init == "vocabulary":
            return words
        means = [given.embed(jnp.asarray(encoded(given, label))).mean(axis=0) for label in self.labels]
        return jnp.concatenate([jnp.stack(means), words[len(means) :]])


def slot(specs: Tree, tokens: int) -> Any:
    """The spec of a prompt of so many rows in this model."""
    if tokens < 1:
        raise Fault(f"a prompt of {tokens} tokens; delta.tokens must be at least 1")
    spec = trees.flatten(specs)["prompt"]
    shape = (tokens, *spec.sizes(2))
    return replace(spec, shape=shape, init=constant(0.0), dtype=jnp.float32, optional=False, derived=True)


def encoded(given: Given, text: str) -> list[int]:
    """The text's tokens, of which there must be some."""
    ids = given.encode(text) if given.encode else []
    if not ids:
        raise Fault(f"{text!r} has no tokens for a prompt or prefix to start from; give some text")
    return ids


def learned(delta: Delta, where: str) -> Array:
    """The rows of a delta's prompt, whatever wrote them."""
    if (found := spread(delta).get("prompt")) is None:
        raise Fault(f"{where}: that run has learned no prompt (it tuned {', '.join(sorted(delta)[:3]) or 'nothing'})")
    return found.value


def nearest(rows: Float[Array, "t d"], table: Weight, count: int) -> tuple[Int[Array, "t n"], Float[Array, "t n"]]:
    """The words whose embeddings point most nearly where each row of a prompt does: ids, nearest first, and the cosines
    of the angles between."""
    words = dense(table, jnp.float32)
    lengths = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (rows, words)]
    cosines = (rows / jnp.maximum(lengths[0], 1e-12)) @ (words / jnp.maximum(lengths[1], 1e-12)).T
    best, ids = jax.lax.top_k(cosines, min(count, words.shape[0]))
    return ids, best


def uniform(fan_in: int) -> Any:
    """U(-1/sqrt(n), 1/sqrt(n)) for n inputs: how torch starts the layers of encoders."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
