# SPDX-License-Identifier: Apache-2.0
"""A trained model that is asked: for answers, as many as wanted, and for how likely it finds what others say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import numpy as np

from jaxpost.arrays import Tree
from jaxpost.data.principles import Asked
from jaxpost.data.rows.shapes import Said
from jaxpost.data.text import as_prompt
from jaxpost.data.tokenizers import Tokenizer, newest, prompt_ids
from jaxpost.evals.judge import choices
from jaxpost.evals.rank import Pair, Scores
from jaxpost.evals.score import Scorer
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import trained
from jaxpost.recipes.telling import reading
from jaxpost.sample import Sampling, generate
from jaxpost.sample.generate import stops_at
from jaxpost.shard import MeshShape, make_mesh


@dataclass(frozen=True)
class Written:
    """What a model answered. `reason`: why it stopped (`length`: because it had to); `tokens`: how many it wrote, the
    end token included."""

    text: str
    reason: Literal["end", "stop", "length"]
    tokens: int


class Speaks(Protocol):
    """Whoever can be asked."""

    def write(self, asked: Sequence[Said | Asked], sampling: Sampling, samples: int = 1) -> list[list[Written]]:
        """So many answers to each. What is drawn depends on the sampling's seed and the prompt's place among these."""
        ...

    def letters(self, asked: Sequence[Asked], letters: Sequence[str]) -> Scores:
        """How likely each of the letters is as the answer to each question, one behind the other."""
        ...


class Speaker:
    """A model in memory, and how many prompts it is asked at once. `cut` counts prompts that lost their beginning, for
    they were longer than the model remembers."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, weights: Tree, rows: int):
        self.model, self.tokenizer, self.weights, self.rows = model, tokenizer, weights, rows
        self.cut = 0
        self._mesh = make_mesh(MeshShape())

    def text(self, asked: Said | Asked) -> tuple[str, str]:
        """A prompt as the model reads it, and how its answer begins. Messages are worded by its chat template."""
        if not isinstance(asked, Asked):
            asked = Asked(as_prompt(asked) if isinstance(asked, str) else asked)
        said = asked.prompt
        return (
            said if isinstance(said, str) else self.tokenizer.template.prompt(said, where="a prompt")
        ), asked.opening

    def ids(self, asked: Said | Asked) -> list[int]:
        """The prompt's tokens, with those of how its answer begins."""
        prompt, opening = self.text(asked)
        begun = self.tokenizer.encode_offsets(opening, prompt)[0] if opening else ()
        return [*prompt_ids(self.tokenizer, prompt), *(int(i) for i in begun)]

    def fits(self, asked: Said | Asked, sampling: Sampling) -> bool:
        """Whether the model can read all of the prompt and answer it."""
        return len(self.ids(asked)) <= self.model.max_length - sampling.max_new

    def write(self, asked: Sequence[Said | Asked], sampling: Sampling, samples: int = 1) -> list[list[Written]]:
        room = self.model.max_length - sampling.max_new
        prompts = []
        for one in asked:
            ids = np.asarray(self.ids(one), np.int32)
            self.cut += len(ids) > room
            prompts.append(ids[newest(ids, room, self.tokenizer.bos)].tolist())
        said = [one.prompt if isinstance(one, Asked) else one for one in asked]
        stops = () if all(isinstance(one, str) for one in said) else self.tokenizer.template.stops
        with jax.set_mesh(self._mesh):
            done = generate(
                self.model,
                self.weights,
                prompts,
                sampling,
                ends=self.tokenizer.ends,
                stop=stops_at(stops, self.tokenizer.decode) if stops else None,
                samples=samples,
                slots=min(self.rows, max(1, len(prompts) * samples)),
            )
        texts = [Written(self.tokenizer.decode(c.tokens).strip(), c.reason, len(c.log_probs)) for c in done]
        return [texts[at : at + samples] for at in range(0, len(texts), samples)]

    def letters(self, asked: Sequence[Asked], letters: Sequence[str]) -> Scores:
        pairs = [pair for one in asked for pair in choices(self.tokenizer, *self.text(one), letters)]
        return self.score(pairs)

    def score(self, pairs: Sequence[Pair]) -> Scores:
        scorer = Scorer(self.model, self.rows, self.model.max_length, self.tokenizer.pad)
        with jax.set_mesh(self._mesh):
            found = scorer.score(self.weights, pairs)
        self.cut += found.cut
        return found


def speaker(name: str | Any, rows: int) -> Speaker:
    """The model of a run's directory, or one that `Pretrained` takes, be it a name or a config's."""
    if isinstance(name, str):
        read = reading(lambda: trained.read(name), f"reading {name}")
        return Speaker(read.model, read.tokenizer, read.weights, rows)
    mesh = make_mesh(MeshShape())
    with jax.set_mesh(mesh):
        loaded = reading(lambda: trained.load(name, mesh), "reading the model")
    return Speaker(loaded.config, loaded.tokenizer, loaded.weights, rows)
