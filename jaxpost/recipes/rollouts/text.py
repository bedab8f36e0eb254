# SPDX-License-Identifier: Apache-2.0
"""Text that is learned from beside answers, so that what the model knew is not lost (PPO-ptx: Ouyang et al. 2022,
https://arxiv.org/abs/2203.02155, equation 2)."""

from dataclasses import dataclass
from typing import Any

from jaxpost.arrays import Array, Batch, Tree
from jaxpost.data.batches.loader import Loader
from jaxpost.data.batches.packing import MOST
from jaxpost.data.tokenizers import Tokenizer, TrainOn
from jaxpost.kernels.linear_xent import linear_xent
from jaxpost.losses import cross_entropy
from jaxpost.models.decoder import Decoder, contract_head, head_weights
from jaxpost.models.remat import Remat
from jaxpost.recipes.corpus import Files, Mixed, Tasks, Tfds, World
from jaxpost.recipes.likelihood import hidden_states
from jaxpost.recipes.rollouts.rollout import MIXED
from jaxpost.recipes.telling import reading


@dataclass(frozen=True)
class Pretraining:
    """As many rows of `seq_len` tokens as the rollout has, whose mean loss a token counts `weight`."""

    data: Tasks | Files | Tfds | Mixed | World = Tasks()
    seq_len: int = 256
    weight: float = 1.0
    train_on: TrainOn = "completion"


def loader(config: Any, tokenizer: Tokenizer) -> Loader | None:
    """The rows of text of a run, if it has any."""
    text = getattr(config, "pretraining", None)
    if text is None:
        return None
    return Loader(
        reading(lambda: text.data.training(config.train.seed), "reading the text to be mixed in"),
        tokenizer,
        config.rollout.rows,
        text.seq_len,
        packing="pack",
        seed=config.train.seed,
        train_on=text.train_on,
        columns=text.data.columns,
    )


def loss(model: Decoder, weights: Tree, batch: Batch, remat: Remat) -> Array:
    """The mean negative log-likelihood of the trained tokens of the text that came with a rollout, over the whole
    minibatch."""
    rows = {name.removeprefix(MIXED): x for name, x in batch.items() if name.startswith(MIXED)}
    hidden, scale = hidden_states(model, weights, rows, MOST, remat), rows["mask"] / batch["whole_text"]
    head = head_weights(model, weights)
    return linear_xent(contract_head(model), cross_entropy, head, hidden, rows["targets"], scale)[0]
