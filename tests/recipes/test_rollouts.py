# SPDX-License-Identifier: Apache-2.0
"""Rollouts: answers stand where learning looks for them, and a run that goes on draws what it would have drawn."""

import copy
import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost.data.chat.template import BuiltIn
from jaxpost.data.tokenizers import Virtual
from jaxpost.faults import Fault
from jaxpost.models import decoder
from jaxpost.recipes import grpo
from jaxpost.recipes.rollouts import policy
from jaxpost.recipes.rollouts import rollout as module
from jaxpost.recipes.rollouts.prompts import Request
from jaxpost.recipes.rollouts.rollout import GIVEN, Rollout, Rollouts, lay
from jaxpost.recipes.rollouts.scoring import Function, Scoring
from jaxpost.sample import Completion
from tests.recipes.rolled import CONFIG, METHODS, Learner, full, settings
from tests.train.tiny import CUBE

ENDS = (2, 9, 17, 23, 30)


class Ids:
    """As much of a tokenizer as rollouts ask for."""

    vocab_size, bos, eos, pad, ends, template, continues = CONFIG.vocab, 1, 2, 0, ENDS, BuiltIn(), True
    virtual = Virtual()

    def encode(self, text): ...
    def encode_offsets(self, text, after=""): ...
    def encode_offsets_batch(self, texts, after): ...
    def piece(self, token): ...
    def save(self, directory): ...
    def decode(self, ids):
        return " ".join(map(str, ids))


class Numbered:
    """Prompts of one to five tokens, the n-th known by its first; endless, or so many."""

    def __init__(self, end: int | None = None):
        self.number, self.end, self.counts = 0, end, {"read": 0, "left out": 0, "truncated": 0}

    def next(self):
        if self.number == self.end:
            raise StopIteration
        self.number += 1
        self.counts["read"] += 1
        ids = (3 + self.number % 20, *range(4, 4 + self.number % 5))
        return Request(ids, str(self.number), {"number": self.number})

    def __iter__(self):
        while self.number != self.end:
            yield self.next()

    def save(self):
        return {"number": self.number, "counts": dict(self.counts)}

    def restore(self, saved):
        self.number, self.counts = saved["number"], dict(saved["counts"])


def asked_at(n):
    prompts = Numbered()
    return [prompts.next().ids for _ in range(n + 1)][-1]


SMALL = Rollout(prompts=4, samples=2, prompt_tokens=5, answer_tokens=6, temperature=0.8)
PLAIN = settings(grpo.Config("", delta=METHODS["plain"], rewards=(Function("length:3"),), epochs=2))
PLAIN = replace(PLAIN, rollout=SMALL)


def feed(rollout=SMALL, rewards=PLAIN.rewards, seed=0, held=9, **options):
    return Rollouts(
        rollout=rollout, model=CONFIG, tokenizer=Ids(), prompts=Numbered(), held=lambda: Numbered(held),  # pyright: ignore
        scoring=Scoring(rewards), judges={}, seed=seed, steps=5, updates=2, eval_batches=3, **options,
    )  # fmt: skip


# --- with a model


@functools.cache
def learner(shape=None):
    return Learner(grpo, PLAIN, "plain", shape)


def begun(made, shape=None, **changes):
    """The feed as a run begins it, and the state that it samples from."""
    own = learner(shape)
    programs = {name: program.call for name, program in own.programs.items()}
    made.begin(own.frozen | changes, programs, own.assembly.mesh)
    return made, own.state


@functools.cache
def first():
    made, state = begun(feed())
    return made.next(state), made


def test_answers_stand_where_learning_looks_for_them():
    """At `start` and behind it the whole model says what the sampler said; the end token is the last of an answer."""
    batch, _ = first()
    given = {name: jnp.asarray(x) for name, x in batch.items()}
    logs, _ = jax.jit(lambda weights, batch: full(weights, batch, SMALL.temperature))(learner().weights, given)
    chosen = np.take_along_axis(np.asarray(logs), batch["answers"][..., None], axis=-1)[..., 0]
    taught = batch["mask"] > 0
    assert np.abs(chosen - batch["sampler_log_probs"])[taught].max() < 1e-5
    assert np.abs(batch["log_probs"] - batch["sampler_log_probs"])[taught].max() < 1e-5
    last = batch["mask"].sum(axis=1).astype(int) - 1
    ended = np.isin(batch["answers"][np.arange(8), last], ENDS)
    np.testing.assert_array_equal(ended, batch["ended"])
    assert 0 < ended.sum() < 8 and not np.isin(batch["answers"], ENDS)[np.arange(6)[None] < last[:, None]].any()
    for row in range(8):
        start, size = batch["start"][row], int(batch["mask"][row].sum())
        np.testing.assert_array_equal(batch["tokens"][row, start + 1 : start + 1 + size], batch["answers"][row, :size])
        assert batch["segments"][row].sum() == start + 1 + size


def test_a_group_is_the_answers_to_one_prompt():
    batch, made = first()
    np.testing.assert_array_equal(batch["group"], [0, 0, 1, 1, 2, 2, 3, 3])
    for i in range(0, 8, 2):
        assert batch["start"][i] == batch["start"][i + 1] == len(asked_at(i // 2)) - 1
        np.testing.assert_array_equal(batch["tokens"][i, : batch["start"][i] + 1], asked_at(i // 2))
    assert len({tuple(row) for row in batch["answers"].tolist()}) > 5
    assert made.counts == {
        "answers": 8,
        "ended": int(batch["ended"].sum()),
        "tokens": int(batch["mask"].sum()),
        "alike": 0,
    }


def test_the_reward_knows_the_answer():
    """The end token is none of its tokens."""
    batch, _ = first()
    words = batch["mask"].sum(axis=1) - batch["ended"]
    np.testing.assert_allclose(batch["reward"], np.maximum(0, 1 - np.abs(words - 3) / 3), atol=1e-6)
    assert batch["scores"].shape == (8, 1) and batch["scores"].dtype == np.float32


def test_it_goes_on_with_what_it_would_have_drawn():
    one, state = begun(feed())
    one.next(state)
    saved = json.loads(json.dumps(one.save()))
    wanted = one.next(state)
    other, _ = begun(feed())
    other.resume([saved])
    found = other.next(state)
    for name, x in wanted.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)
    assert other.save() == one.save()
    assert not np.array_equal(found["answers"], first()[0]["answers"])


def test_what_is_measured_is_always_drawn_alike():
    made, state = begun(feed())
    found = made.measure(state)
    made.next(state)
    assert made.measure(state) == found and made.counts["answers"] == 8, "and is none of what was learned from"
    assert found.keys() == {"reward", "reward/length", "length", "ended"} and made.better(found) == -found["reward"]


def test_in_sixteen_bits_sampler_and_trainer_are_near():
    """With weights eight times as large as they start, 0.018 nats at most and 0.002 in the mean were measured."""
    half = replace(CONFIG, dtype="bfloat16")
    own = learner()
    weights = jax.tree.map(lambda x: x.astype(jnp.bfloat16), own.frozen["base"])
    asked = [request for request in (Numbered().next(),) * 8]
    written = module.generate(half, weights, [r.ids for r in asked], SMALL.sampling(0), ends=ENDS)
    batch = {name: jnp.asarray(x) for name, x in lay(asked, written, SMALL, 0).items()}
    found = jax.jit(lambda batch: policy.answers(half, weights, batch, SMALL.temperature).log_probs)(batch)
    gap = np.where(batch["mask"] > 0, found - batch["sampler_log_probs"], 0.0)
    assert decoder.head(half, weights, jnp.zeros((1, 1, 16), jnp.bfloat16)).dtype == jnp.bfloat16
    taught = float(batch["mask"].sum())
    assert np.abs(gap).max() < 0.05 and np.abs(gap).sum() / taught < 0.005 and abs(gap.sum()) / taught < 0.003


def test_on_eight_devices_a_step_is_what_it_is_on_one():
    """Sampling, learning and all: with fewer rows at once than devices, too."""
    made, state = begun(feed(replace(SMALL, slots=2)), CUBE)
    with jax.set_mesh(learner(CUBE).assembly.mesh):
        batch = made.next(state)
    wanted, _ = first()
    for name, x in wanted.items():
        np.testing.assert_allclose(batch[name], x, atol=1e-5, err_msg=name)
    ((moved, metrics),) = learner(CUBE).steps(batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moved)) and np.isfinite(metrics["loss"])
    assert any(np.any(leaf) for leaf in jax.tree.leaves(moved))


# --- with answers that are made up


def written(texts):
    """`generate` as if the model wrote these tokens, by the number of the prompt, the seed and the sample."""

    def generate(model, weights, prompts, sampling, *, ends, samples, slots):
        assert model is CONFIG and ends == ENDS and sampling.max_new == SMALL.answer_tokens
        made = []
        for prompt in prompts:
            for sample in range(samples):
                tokens = texts(prompt[0] - 3, sampling.seed, sample)
                stops = len(tokens) < sampling.max_new
                logs = -np.ones(len(tokens) + stops, np.float32)
                made.append(Completion(tokens, logs, "end" if stops else "length", 2 if stops else None))
        return made

    return generate


def fed(monkeypatch, texts, rollout=SMALL, **options):
    monkeypatch.setattr(module, "generate", written(texts))
    made = feed(rollout, **options)
    own = learner()
    made.begin(own.frozen, {}, own.assembly.mesh)
    return made, functools.partial(made.next, own.state), functools.partial(made.measure, own.state)


def own_reward(tmp_path, body):
    path = tmp_path / "mine.py"
    path.write_text(f"def own(answered):\n    number, text = answered.row['number'], answered.text\n    {body}\n")
    return (Function(f"{path}:own"),)


def one_or_more(number, seed, sample):
    return [4] * (1 + sample)


def test_groups_that_are_rewarded_alike_are_drawn_anew(monkeypatch, tmp_path):
    rewards = own_reward(tmp_path, "return 1.0 if number % 2 else float(len(text))")
    made, take, _ = fed(monkeypatch, one_or_more, replace(SMALL, varied=True), rewards=rewards)
    batch = take()
    assert made.prompts.number == 8, "two rounds of four, of which two differ"
    np.testing.assert_array_equal(batch["reward"], [1, 3] * 4)
    np.testing.assert_array_equal(batch["tokens"][::2, 0], [3 + n for n in (2, 4, 6, 8)])
    np.testing.assert_array_equal(batch["group"], np.repeat(range(4), 2))
    assert made.counts["alike"] == 4 and "The answers to 4 prompts were all rewarded alike." in made.told()
    plain, take, _ = fed(monkeypatch, one_or_more, rewards=rewards)
    assert np.isin(take()["reward"], [1, 3]).all() and plain.prompts.number == 4


def test_if_all_are_alike_they_stay_and_teach_nothing(monkeypatch, tmp_path):
    rewards = own_reward(tmp_path, "return 1.0")
    made, take, _ = fed(monkeypatch, one_or_more, replace(SMALL, varied=True, tries=2), rewards=rewards)
    batch = take()
    assert made.prompts.number == 8 and made.counts["alike"] == 8
    config = replace(PLAIN, objective=grpo.Objective(kind="dapo"))
    found, metrics = grpo.prepare(config, {name: jnp.asarray(x) for name, x in batch.items()}, None)
    assert not found["advantages"].any() and metrics["varied"] == 0.0


def test_what_has_no_score_has_no_mask(monkeypatch, tmp_path):
    rewards = own_reward(tmp_path, "return None if number == 2 else float('nan') if text == '4' else 1.0")
    made, take, _ = fed(monkeypatch, one_or_more, rewards=rewards)
    batch = take()
    np.testing.assert_array_equal(batch["reward"], [np.nan, 1, np.nan, np.nan, np.nan, 1, np.nan, 1])
    np.testing.assert_array_equal(batch["mask"].sum(axis=1), [0, 3, 0, 0, 0, 3, 0, 3])
    assert "5 answers had no score and taught nothing." in made.told()
    assert "Rewards gave NaN or infinity 3 times; those were left out." in made.told()
    assert made.facts()["answers without a score"] == 5
    silent, take, measure = fed(monkeypatch, one_or_more, rewards=own_reward(tmp_path / "..", "return None"))
    assert np.isnan(take()["reward"]).all() and np.isnan(measure()["reward"]) and silent.save()["reached"] is None


def test_a_policy_that_never_stops(monkeypatch):
    made, take, measure = fed(monkeypatch, lambda number, seed, sample: [4] * 6, replace(SMALL, unended=-0.5))
    batch = take()
    assert not batch["ended"].any() and batch["mask"].all()
    np.testing.assert_array_equal(batch["reward"], -0.5)
    assert made.told()[0] == "8 answers of 48 tokens; 0% ended."
    assert measure()["ended"] == 0.0
    made, take, measure = fed(monkeypatch, lambda number, seed, sample: [4] * 6, replace(SMALL, mask_unended=True))
    assert not take()["mask"].any()
    assert measure()["length"] == 6.0, "they are long all the same"


def test_it_stops_once_the_reward_is_what_was_wanted(monkeypatch, tmp_path):
    rewards = own_reward(tmp_path, "return number / 8")
    made, take, _ = fed(monkeypatch, one_or_more, rewards=rewards, until=0.8)
    assert take()["reward"].mean() == 2.5 / 8 and take()["reward"].mean() == 6.5 / 8
    with pytest.raises(StopIteration):
        take()
    again, take, _ = fed(monkeypatch, one_or_more, rewards=rewards, until=0.8)
    again.restore(json.loads(json.dumps(made.save())))
    with pytest.raises(StopIteration):
        take()


def test_every_held_out_prompt_is_measured_once(monkeypatch, tmp_path):
    """Nine of them in batches of four: the last one counts as much as any."""
    seen = []
    rewards = own_reward(tmp_path, "return float(number)")
    made, _, measure = fed(monkeypatch, lambda number, seed, sample: seen.append(number) or [4], rewards=rewards)
    assert measure()["reward"] == 5.0
    assert made.scoring.counts["scored"] == 0, "it is not counted among what was learned from"
    assert sorted(set(seen)) == list(range(1, 10)) and len(seen) == 3 * 8
    made.eval_batches = 1
    assert measure()["reward"] == 2.5
    made.held = lambda: Numbered(0)  # pyright: ignore
    assert measure() == {}


def test_a_reward_that_fails_loses_nothing(monkeypatch, tmp_path):
    """What was asked before it failed is asked again."""
    rewards = own_reward(tmp_path, "return 1 / (number - 6)")
    made, take, _ = fed(monkeypatch, one_or_more, rewards=rewards)
    take()
    before = copy.deepcopy(made.save())
    with pytest.raises(Fault, match="mine.py, line 3 in own: ZeroDivisionError"):
        take()
    assert made.save() == before


def test_drawn_text_comes_along(monkeypatch):
    """Each row of a minibatch has text beside it where a recipe learns from both."""

    class Text:
        def __init__(self):
            self.number = 0

        def next(self):
            self.number += 1
            return {"tokens": np.full((8, 4), self.number, np.int32)}

        def save(self):
            return self.number

        def restore(self, saved):
            self.number = saved

    made, take, _ = fed(monkeypatch, one_or_more, mixed=Text())
    assert (take()[f"{module.MIXED}tokens"] == 1).all() and (take()[f"{module.MIXED}tokens"] == 2).all()
    other, take, _ = fed(monkeypatch, one_or_more, mixed=Text())
    other.restore(json.loads(json.dumps(made.save())))
    assert (take()[f"{module.MIXED}tokens"] == 3).all()


# --- rows


def test_rows_are_laid_out_by_hand():
    asked = [Request((5, 6, 7), "", {}), Request((-1, 8), "", {})]
    said = [Completion([9, 10], np.array([-1, -2, -3], np.float32), "end", 2),
            Completion([11] * 6, -np.ones(6, np.float32), "length")]  # fmt: skip
    batch = lay(asked, said, SMALL, 99)
    assert set(batch) == set(GIVEN)
    np.testing.assert_array_equal(batch["tokens"][0], [5, 6, 7, 9, 10, 2, *[99] * 5])
    np.testing.assert_array_equal(batch["tokens"][1], [-1, 8, *[11] * 6, *[99] * 3])
    np.testing.assert_array_equal(batch["segments"].sum(axis=1), [6, 8])
    np.testing.assert_array_equal(batch["positions"][0], [0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(batch["answers"], [[9, 10, 2, 99, 99, 99], [11] * 6])
    np.testing.assert_array_equal(batch["mask"], [[1, 1, 1, 0, 0, 0], [1] * 6])
    np.testing.assert_array_equal(batch["sampler_log_probs"][0], [-1, -2, -3, 0, 0, 0])
    np.testing.assert_array_equal(batch["start"], [2, 1])
    np.testing.assert_array_equal(batch["ended"], [1, 0])


@pytest.mark.parametrize("name, value, said", [
    ("prompts", 0, "rollout.prompts is 0; it must be at least 1"), ("samples", -1, "rollout.samples is -1"),
    ("answer_tokens", 0, "rollout.answer_tokens is 0"), ("tries", 0, "rollout.tries is 0"),
    ("temperature", 0.0, "rollout.temperature is 0.0; a policy that learns from its own answers must draw"),
    ("temperature", float("nan"), "rollout.temperature is nan"), ("top_p", 0.0, "rollout.top_p is 0.0"),
    ("top_k", -1, "rollout.top_k is -1"),
])  # fmt: skip
def test_a_rollout_that_cannot_be(name, value, said):
    with pytest.raises(Fault, match=said):
        replace(SMALL, **{name: value})
