# SPDX-License-Identifier: Apache-2.0
"""A model that is asked answers as it would alone, and says of letters what its logits say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import params
from jaxpost.data.principles import Asked
from jaxpost.data.tokenizers import SentencePieceTokenizer, prompt_ids
from jaxpost.evals.judge import by_likelihood
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder
from jaxpost.recipes.base import BUILT_IN
from jaxpost.recipes.feedback.asking import Speaker
from jaxpost.sample import Sampling

TOKENIZER = SentencePieceTokenizer.load(BUILT_IN["nano"] / "tokenizer.model")
CONFIG = Decoder(vocab=2048, d=16, layers=1, heads=1, kv_heads=1, head_size=16, ffn=16, max_length=48, tied=True)


@pytest.fixture(scope="module")
def speaker():
    return Speaker(
        CONFIG,
        TOKENIZER,
        jax.jit(lambda key: params.init(params.filled(decoder.specs(CONFIG)), key))(jax.random.key(0)),
        rows=4,
    )


@jax.jit
def next_token(weights, tokens):
    """Log-probabilities of what follows."""
    places = decoder.rows(tokens, jnp.ones_like(tokens), jnp.arange(tokens.shape[1])[None], 1)
    hidden, _ = decoder.trunk(CONFIG, weights, decoder.embed(CONFIG, weights, tokens), places)
    return jax.nn.log_softmax(decoder.head(CONFIG, weights, hidden).astype(jnp.float32))[0, -1]


def test_answers_are_drawn_by_the_prompts_place(speaker):
    prompts = ["What is 3 plus 4?", "Who is there?", "Say something."]
    sampling = Sampling(max_new=8, temperature=1.0, seed=3)
    done = speaker.write(prompts, sampling, 2)
    assert [len(some) for some in done] == [2, 2, 2] and speaker.cut == 0
    assert speaker.write(prompts, sampling, 2) == done and done[0][0] != done[0][1]
    assert all(one.tokens == 8 if one.reason == "length" else one.tokens <= 8 for some in done for one in some)
    assert speaker.fits("dog " * 20, sampling) and not speaker.fits("dog " * 60, sampling)


def test_letters_are_scored_where_they_stand(speaker):
    asked = [Asked("Which is kind?\n"), Asked(({"role": "user", "content": "Which?"},), "It is ")]
    scores = speaker.letters(asked, ("A", "B"))
    ids = [speaker.ids(one) for one in asked]
    assert ids[0] == prompt_ids(TOKENIZER, "Which is kind?\n") and ids[1][: len(ids[1]) - 2] != ids[1]
    said = next_token(speaker.weights, jnp.asarray([ids[0]]))
    letters = [TOKENIZER.encode_offsets(letter, "Which is kind?\n")[0][0] for letter in "AB"]
    np.testing.assert_allclose(scores.logprobs[:2], np.asarray(said)[np.asarray(letters)], rtol=1e-4, atol=1e-4)
    opinion, _ = by_likelihood(scores)
    a, b = scores.logprobs[:2]
    assert opinion.first == pytest.approx(1 / (1 + np.exp(b - a)))
